"""The stored proof cases of shared/parity: what a reference gives for drawn weights and frames."""

import importlib.util
import json
import os
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy
import torch
from torch import Tensor

from tests.conftest import SHARED
from vdeblur.models import registry, weights
from vdeblur.networks import NETWORKS
from vdeblur.networks.layers import Network
from vdeblur.restore import streams, tiles

PARITY = SHARED / "parity"
# How the authors save: the file's name, the key around the tensors. Prefixes of keys stand in the manifests.
LAYOUTS = {
    "basicvsrpp": ("weights.pth", "state_dict"),
    "cdvd-tsp": ("weights.pt", None),
    "dstnet": ("weights.pth", "params"),
    "dstnet-plus": ("weights.pth", "params"),
    "nafnet": ("weights.pth", "params"),
    "pvdnet": ("weights.pytorch", None),
}


@dataclass(frozen=True)
class Case:
    """One stored case."""

    folder: str
    name: str

    def __str__(self) -> str:
        return f"{self.folder}-{self.name}"

    @property
    def facts(self) -> dict[str, Any]:
        """What stands in its json."""
        return json.loads((PARITY / self.folder / f"{self.name}.json").read_text())

    @property
    def model(self) -> str:
        """The model's name on the command line."""
        variant = self.facts.get("variant", self.folder).replace("width", "")  # NAFNet's
        return variant if variant.startswith(self.folder) else self.folder

    @property
    def arguments(self) -> dict[str, Any]:
        """What the network is built with beyond, or other than, the model's own arguments."""
        pool = self.facts.get("pool", {})  # NAFNet's
        if pool.get("kind") == "global":
            return {"tlc": "off"}
        size = {"train_size": pool["train_size"]} if pool.get("train_size", 256) != 256 else {}
        return size | ({"tlc": "fast"} if pool.get("fast_imp") else {})

    @property
    def tolerance(self) -> float:
        """The largest difference that is allowed."""
        return self.facts["tolerance"]["max_abs"]

    @property
    def chunk(self) -> int | None:
        """Frames in a chunk, where the case has more than one."""
        length = self.facts.get("chunk", {}).get("num_frame")
        return length if length is not None and length < self.facts["frames"]["count"] else None

    @property
    def smallest(self) -> int | None:
        """What frames are padded to at least, where the case says so; the network's own policy may be another."""
        return self.facts.get("pad", {}).get("minimum")

    def arrays(self) -> dict[str, numpy.ndarray]:
        """The output and the intermediates."""
        with numpy.load(PARITY / self.folder / f"{self.name}.npz") as arrays:
            return dict(arrays)

    def frames(self) -> numpy.ndarray:
        """The frames (T, H, W, 3), uint8; without the rows and columns that the reference drops."""
        height, width = self.arrays()["output"].shape[1:3]
        return recipe().frames(**self.facts["frames"])[:, :height, :width]

    def manifest(self) -> dict[str, Any]:
        """Every key of the checkpoint."""
        return recipe().load_manifest(PARITY / self.folder / self.facts.get("manifest", "manifest.json"))

    def checkpoint(self, folder: Path) -> Path:
        """Write the weights as the authors do."""
        tensors = recipe().state_dict(self.manifest(), self.facts["weights_seed"])
        content: dict[str, Any] = {key: torch.from_numpy(value) for key, value in tensors.items()}
        name, wrapper = LAYOUTS[self.folder]
        torch.save({wrapper: content} if wrapper else content, folder / name)
        return folder / name


def recipe() -> ModuleType:
    """The module that draws weights and frames."""
    spec = importlib.util.spec_from_file_location("recipe", PARITY / "recipe.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def cases() -> list[Case]:
    """All that are there; with VDEBLUR_REQUIRE_SHARED=1 there must be some."""
    if os.environ.get("VDEBLUR_REQUIRE_SHARED") == "1" and not PARITY.is_dir():
        raise FileNotFoundError(PARITY)
    return [
        Case(folder, path.stem)
        for folder in LAYOUTS
        for path in sorted((PARITY / folder).glob("case-*.json"))
        if path.with_suffix(".npz").is_file()
    ]


def as_tensor(frames: numpy.ndarray) -> Tensor:
    """Give 8-bit frames (T, H, W, 3) as the networks see them: (T, 3, H, W) in [0, 1]."""
    return torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255


def load(case: Case, folder: Path) -> Network:
    """Load a case's model from the authors' file, which is written to the folder."""
    network = weights.load_model(case.model, case.checkpoint(folder))
    if not case.arguments:
        return network
    entry = registry.find_entry(case.model)
    other = NETWORKS[entry.network](**{**entry.arguments, **case.arguments})
    other.load_state_dict(network.state_dict())
    return other.eval()


def restore(
    network: Network,
    frames: numpy.ndarray,
    chunk: int | None = None,
    tile: tuple[int, int] | None = None,
    smallest: int | None = None,
) -> numpy.ndarray:
    """Restore a clip (T, H, W, 3) as `run` does, not clamped; smallest: instead of the network's own."""
    height, width = frames.shape[1:3]
    facts = (network.multiple, network.smallest if smallest is None else max(smallest, 1), network.padding)
    plan = tiles.cut_tiles(height, width, tile, 64, tiles.TileNeeds(*facts, tile_multiple=network.tile_multiple))
    padded = (plan.pad(frame[None]) for frame in as_tensor(frames))
    with torch.inference_mode():
        if chunk is None:
            restored = list(streams.stream(network, padded, plan))
        else:
            restored = list(streams.stream_chunks(network, padded, plan, chunk))
    return torch.cat([plan.crop(frame) for frame in restored]).permute(0, 2, 3, 1).numpy()
