"""Parity cases: the output of a paper's reference implementation for drawn weights and frames.

tests/data/parity holds one or a few small cases of each model. shared/parity beside the checkout, where there is one,
holds more cases, and the intermediate results of all.
"""

import json
import os
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor

from tests import recipe
from tests.conftest import ROOT, SHARED
from vdeblur.models import registry, weights
from vdeblur.models.checkpoint import fit_model, read_checkpoint
from vdeblur.networks.layers import Network
from vdeblur.restore import streams, tiles

PARITY = ROOT / "tests" / "data" / "parity"
STORED = SHARED / "parity"
# How the authors save: the file's name, and the key that holds the tensors. The manifests have the keys' prefixes.
LAYOUTS = {
    "basicvsrpp": ("weights.pth", "state_dict"),
    "cdvd-tsp": ("weights.pt", None),
    "dstnet": ("weights.pth", "params"),
    "dstnet-plus": ("weights.pth", "params"),
    "estrnn": ("weights.tar", "state_dict"),
    "nafnet": ("weights.pth", "params"),
    "pvdnet": ("weights.pytorch", None),
    "turtle": ("weights.pth", "params"),
}


@dataclass(frozen=True)
class Case:
    """One parity case, in the folder of its network."""

    folder: str
    name: str

    def __str__(self) -> str:
        return f"{self.folder}-{self.name}"

    @property
    def is_shipped(self) -> bool:
        """True if the case is in this repository."""
        return (PARITY / self.folder / f"{self.name}.json").is_file()

    @property
    def directory(self) -> Path:
        """The folder with the case's files."""
        return (PARITY if self.is_shipped else STORED) / self.folder

    @property
    def facts(self) -> dict[str, Any]:
        """The contents of the case's json."""
        return json.loads((self.directory / f"{self.name}.json").read_text())

    @property
    def model(self) -> str:
        """The model's name on the command line."""
        variant = self.facts.get("variant", self.folder).replace("width", "")  # NAFNet's
        return variant if variant.startswith(self.folder) else self.folder

    @property
    def arguments(self) -> dict[str, Any]:
        """The network's arguments that differ from the model's own."""
        if self.folder == "estrnn":
            sizes = {"features": self.facts["arguments"]["n_features"], "blocks": self.facts["arguments"]["n_blocks"]}
            return {} if sizes == {"features": 16, "blocks": 15} else sizes
        if "arguments" in self.facts:  # a small network of Turtle's kind
            return self.facts["arguments"]
        pool = self.facts.get("pool", {})  # NAFNet's
        if pool.get("kind") == "global":
            return {"tlc": "off"}
        size = {"train_size": pool["train_size"]} if pool.get("train_size", 256) != 256 else {}
        return size | ({"tlc": "fast"} if pool.get("fast_imp") else {})

    @property
    def tolerance(self) -> float:
        """The largest difference allowed."""
        return self.facts["tolerance"]["max_abs"]

    @property
    def chunk(self) -> int | None:
        """The number of frames in a chunk, if the reference cuts the clip into chunks, or does not lengthen it."""
        if self.facts.get("edge") == "drop":
            return self.facts["chunk"]["num_frame"] or self.facts["frames"]["count"]
        length = self.facts.get("chunk", {}).get("num_frame")
        return length if length is not None and length < self.facts["frames"]["count"] else None

    @property
    def tile(self) -> tuple[int, int] | None:
        """Side and overlap of the tiles of which the reference takes the plain mean, if it does."""
        tile = self.facts.get("tile")
        return None if tile is None else (tile["size"], tile["overlap"])

    @property
    def smallest(self) -> int | None:
        """The size that the case pads smaller frames to, if it says so; the network's own may differ."""
        return self.facts.get("pad", {}).get("minimum")

    @property
    def output_frames(self) -> list[int] | slice:
        """The numbers of the frames that the reference's output has."""
        return self.facts.get("output_frames", slice(None))

    def output(self) -> numpy.ndarray:
        """The reference's output, float32 (T, H, W, 3)."""
        with numpy.load(self.directory / f"{self.name}.npz") as arrays:
            return arrays["output"]

    def steps(self) -> dict[str, numpy.ndarray]:
        """The reference's intermediate results: of shared/parity; empty without it."""
        path = STORED / self.folder / f"{self.name}.npz"
        if not path.is_file():
            return {}
        with numpy.load(path) as arrays:
            return {name: array for name, array in arrays.items() if name != "output"}

    def frames(self) -> numpy.ndarray:
        """The frames (T, H, W, 3), uint8; without the rows and columns that the reference crops."""
        height, width = self.output().shape[1:3]
        return recipe.frames(**self.facts["frames"])[:, :height, :width]

    def manifest(self) -> dict[str, Any]:
        """Every key of the checkpoint."""
        return recipe.load_manifest(self.directory / self.facts.get("manifest", "manifest.json"))

    def tensors(self) -> dict[str, Tensor]:
        """The weights under the authors' keys."""
        drawn = recipe.state_dict(self.manifest(), self.facts["weights_seed"])
        return {key: torch.from_numpy(array) for key, array in drawn.items()}

    def checkpoint(self, folder: Path) -> Path:
        """Write the weights as the authors do."""
        name, wrapper = LAYOUTS[self.folder]
        tensors = self.tensors()
        others = {"epoch": 500, "model": "ESTRNN", "optimizer": {"state": {}}} if self.folder == "estrnn" else {}
        torch.save({**others, wrapper: tensors} if wrapper else tensors, folder / name)
        return folder / name


def cases() -> list[Case]:
    """Return the shipped cases, then the others, if there are any; VDEBLUR_REQUIRE_SHARED=1 makes them obligatory."""
    if os.environ.get("VDEBLUR_REQUIRE_SHARED") == "1" and not STORED.is_dir():
        raise FileNotFoundError(STORED)
    found = [
        Case(folder, path.stem)
        for root in (PARITY, STORED)
        for folder in LAYOUTS
        for path in sorted((root / folder).glob("case-*.json"))
        if path.with_suffix(".npz").is_file()
    ]
    return list(dict.fromkeys(found))


def each(cases: Iterable[Case], slow: Collection[str] = ()) -> list[Any]:
    """Return cases as a test's parameters; those outside this repository, and of slow models, are slow tests."""
    marks = {True: pytest.mark.slow, False: ()}
    return [pytest.param(case, id=str(case), marks=marks[not case.is_shipped or case.model in slow]) for case in cases]


def as_tensor(frames: numpy.ndarray) -> Tensor:
    """Return 8-bit frames (T, H, W, 3) as networks take them: (T, 3, H, W) in [0, 1]."""
    return torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255


def load(case: Case, folder: Path) -> Network:
    """Write a case's weights to the folder as the authors do, and load its model from there."""
    path = case.checkpoint(folder)
    if not case.arguments:
        return weights.load_model(case.model, path)
    entry = registry.find_entry(case.model).with_arguments(case.arguments)
    network = entry.build()
    network.load_state_dict(fit_model(read_checkpoint(path), network, entry, path.name))
    return network.eval()


def restore(
    network: Network,
    frames: numpy.ndarray,
    chunk: int | None = None,
    tile: tuple[int, int] | None = None,
    smallest: int | None = None,
    mean_tiles: tuple[int, int] | None = None,
) -> numpy.ndarray:
    """Restore a clip (T, H, W, 3) as `run` does, without clamping; smallest replaces the network's own.

    mean_tiles: side and overlap of tiles as Turtle's authors cut them.
    """
    height, width = frames.shape[1:3]
    facts = (network.multiple, network.smallest if smallest is None else max(smallest, 1), network.padding)
    plan = tiles.cut_tiles(height, width, tile, 64, tiles.TileNeeds(*facts, tile_multiple=network.tile_multiple))
    if mean_tiles is not None:
        plan = tiles.cut_mean_tiles(height, width, *mean_tiles)
    padded = (plan.pad(frame[None]) for frame in as_tensor(frames))
    with torch.inference_mode():
        if chunk is None:
            restored = list(streams.stream(network, padded, plan))
        else:
            restored = list(streams.stream_chunks(network, padded, plan, chunk))
    return torch.cat([plan.crop(frame) for frame in restored]).permute(0, 2, 3, 1).numpy()
