"""docs/papers.md: each row's command trains the variant that it names, with that many parameters, by the right loss."""

import json
import re
import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import safetensors.torch
import tomlkit
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.conftest import ROOT
from vdeblur.errors import ModelError
from vdeblur.models import registry, switches
from vdeblur.models.registry import ModelEntry
from vdeblur.models.weights import load_model
from vdeblur.networks.cdvd_tsp import CDVDTSP
from vdeblur.networks.flow_rnn import FlowRNN
from vdeblur.networks.layers import Network
from vdeblur.networks.turtle import Turtle
from vdeblur.restore.streams import FEEDINGS
from vdeblur.restore.tiles import TileNeeds, cut_tiles
from vdeblur.train import optimisers, recipes
from vdeblur.train.data import stacked
from vdeblur.train.distributed import ProcessGroup
from vdeblur.train.folder import TrainingFolder
from vdeblur.train.objectives import OBJECTIVES
from vdeblur.train.objectives.base import Batch, Clip, Objective
from vdeblur.train.recipes import Recipe

TEXT = (ROOT / "docs/papers.md").read_text("utf-8")
ROWS = re.findall(r"^\| (.+?) \| `(-m .+?)` \| ([\d,]+) \|", TEXT, re.MULTILINE)
# Small networks of the same kind, and the side of a crop that they take
TINY: dict[str, tuple[dict[str, Any], int]] = {
    "cdvd-tsp": ({"channels": 4, "blocks": 1}, 32),
    "pvdnet": ({"channels": 8, "blocks": 1, "width": 8}, 32),
    "spn": ({"channels": 8, "blocks": 1}, 32),
    "flow-rnn": ({"width": 4}, 64),
    "dstnet": ({"channels": 8, "width": 8, "blocks": 1}, 32),
    "turtle": ({"channels": 4, "encoder_blocks": (1, 1, 1), "middle_blocks": 2, "decoder_blocks": (1, 1, 1)}, 96),
}
IMAGE_LOSSES = {"cdvd-tsp": "loss", "pvdnet": "image", "spn": "loss", "spgan": "content", "flow-rnn": "image"}


def read(command: str) -> tuple[ModelEntry, Recipe]:
    """Return the model and the recipe of a row's options."""
    paper = " --paper" in command
    words = shlex.split(command.replace(" --paper", ""))
    options = dict(zip(words[::2], words[1::2], strict=True))
    values = [tuple(words[at + 1].split("=", 1)) for at, word in enumerate(words) if word == "--set"]
    entry = registry.find_entry(options["-m"])
    return entry, recipes.load_recipe(entry, options.get("--stage"), paper=paper, values=values)


def sample(frames: int, side: int, *, sharp: bool = False) -> Clip:
    """Return a clip whose blurry frames are means of three; sharp: the sharp frames themselves."""
    texture = F.interpolate(torch.rand(1, 3, 12, 12), (2 * side, 2 * side), mode="bicubic").clamp(0, 1)[0]
    clip = torch.stack([texture[:, 8 : 8 + side, 2 * t : 2 * t + side] for t in range(frames + 2)])
    moments = torch.stack([clip[t : t + 3].mean(0) for t in range(frames)])
    both = [(255 * pictures).round().byte() for pictures in (moments, clip[1:-1])]
    return Clip(both[1] if sharp else both[0], both[1])


def sizes_of(command: str, recipe: Recipe) -> dict[str, Any]:
    """Return the sizes of a row that is about them, reduced."""
    is_about_sizes = "channels=" in command or "width=" in command
    return {key: value // 8 for key, value in recipe.network.items()} if is_about_sizes else {}


def begin(command: str, *, sharp: bool = False) -> tuple[Objective, Recipe, Batch]:
    """Return a row's objective with a tiny network of its variant, its recipe, and a batch."""
    torch.manual_seed(4)
    entry, recipe = read(command)
    arguments, side = TINY[entry.network]
    network = entry.with_arguments({**recipe.network, **arguments, **sizes_of(command, recipe)}).build()
    numbers = recipe.numbers
    if "discriminator_width" in numbers:
        numbers |= {"discriminator_width": 4, "discriminator_first": 0}
    objective = OBJECTIVES[recipe.objective](network, numbers | {"flow_warm_up": 0})
    objective.initialise()
    frames = recipe.data.frames + 2 * recipe.data.margin
    rng = numpy.random.default_rng(1)
    batch = stacked([objective.prepare(sample(frames, side, sharp=sharp), rng) for _ in range(2)])
    return objective.train(), recipe, batch


def mostly_slow(commands: Iterable[str]) -> list[Any]:
    """Mark all commands slow but the first of each network."""
    found: list[Any] = []
    seen: set[str] = set()
    for command in commands:
        name = command.split()[1]
        found.append(pytest.param(command, marks=pytest.mark.slow) if name in seen else command)
        seen.add(name)
    return found


@pytest.mark.parametrize("command", mostly_slow(command for _, command, _ in ROWS))
def test_weights_of_a_row_run(command: str, tmp_path: Path) -> None:
    """Weights as `train` writes them: with the row's switches and sizes, whichever the registry gives the model."""
    objective, recipe, _ = begin(command)
    network = objective.network
    entry, _ = read(command)
    table = tomlkit.table()
    table.update({**recipe.network, **TINY[entry.network][0], **(sizes_of(command, recipe))})
    recipe.tables["network"] = table
    alone = ProcessGroup(0, 1, torch.device("cpu"))
    TrainingFolder(tmp_path, recipe, alone).write_weights("last", network, {})
    file = tmp_path / "last.safetensors"
    if recipe.stage:
        with pytest.raises(ModelError, match=f"is of the stage {recipe.stage}"):
            load_model(entry.name, file)
        return
    loaded = load_model(entry.name, file)
    assert type(loaded) is type(network)
    saved = network.state_dict()
    assert loaded.state_dict().keys() == saved.keys()
    assert all(torch.equal(value, saved[name]) for name, value in loaded.state_dict().items())
    for switch, value in read(command)[1].network.items():
        if (found := getattr(loaded, switch, None)) is not None and not isinstance(found, nn.Module):
            assert switches.plain({switch: found}) == {switch: value}


def test_one_stage_of_two_stage_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CDVD-TSP's row "stage 1": a model of the user's registry runs the first stage of weights that have two."""
    registered = re.search(r"```toml\n(\[cdvd-tsp-stage1\].*?)```", TEXT, re.DOTALL)
    assert registered
    file = tmp_path / "registry.toml"
    file.write_text(registered[1])
    monkeypatch.setenv("VDEBLUR_REGISTRY", str(file))
    entry = registry.find_entry("cdvd-tsp").with_arguments(TINY["cdvd-tsp"][0])
    torch.manual_seed(5)
    network = entry.build().eval()
    about = {"model": "cdvd-tsp", "stage": "", "network": switches.plain(entry.variant)}
    safetensors.torch.save_file(network.state_dict(), tmp_path / "two.safetensors", {"training": json.dumps(about)})
    loaded = load_model("cdvd-tsp-stage1", tmp_path / "two.safetensors")
    assert isinstance(loaded, CDVDTSP)
    assert (loaded.stages, loaded.prior) == (1, True)
    clip = torch.rand(1, 3, 3, 64, 64)
    plan = cut_tiles(64, 64, None, 0, TileNeeds.of(loaded))
    with torch.no_grad():
        ours = list(FEEDINGS["cascade"](loaded, iter(clip.unbind(1)), plan))[1]
        torch.testing.assert_close(ours, network(*clip.unbind(1)))


def turns(objective: Objective, batch: Batch, most: int = 3) -> Iterator[tuple[str, dict[str, Tensor]]]:
    carried: Any = None
    for turn, name in enumerate(objective.turns(0)[:most]):
        found, carried = objective(batch, turn, 0, carried)
        yield name, found


@pytest.mark.parametrize(("row", "command", "parameters"), ROWS, ids=[command for _, command, _ in ROWS])
def test_a_row_is_the_network_that_it_names(row: str, command: str, parameters: str) -> None:
    entry, recipe = read(command)
    with torch.device("meta"):
        network = entry.with_arguments(recipe.network).build()
    assert f"{sum(parameter.numel() for parameter in network.parameters()):,}" == parameters
    if not recipe.objective.startswith(("clip", "pvdnet")):
        frames = {"cdvd-tsp": lambda: 2 * network.stages + 1, "spn": lambda: 2 * network.radius + 1}
        frames |= {"turtle": lambda: 5}  # consecutive frames, whose losses count
        expected = frames[entry.network]() if entry.network in frames else 3 if "two-way" in command else 2
        assert recipe.data.frames == expected


@pytest.mark.parametrize("command", mostly_slow(command for _, command, _ in ROWS))
def test_a_row_trains(command: str) -> None:
    """Two steps: finite losses, and a gradient for each parameter that the recipe trains."""
    objective, recipe, batch = begin(command)
    settings = recipe.optimisers
    both = {name: optimisers.build(objective, name, settings[name]) for name in set(objective.turns(0))}
    reached: set[str] = set()
    for _ in range(2):
        for name, found in turns(objective, batch):
            assert all(loss.dtype == torch.float32 and not loss.shape for loss in found.values())
            assert bool(torch.stack([loss.detach() for loss in found.values()]).isfinite().all())
            found["loss"].backward()
            reached |= {key for key, p in objective.network.named_parameters() if p.grad is not None and p.grad.any()}
            both[name].step()
            both[name].zero_grad()
    trained = {key for key, p in objective.parameters_of("network") if p.requires_grad}
    unused = {"flow_part.refine2.flow"} if "flow_weight=0" in command else set()  # the last flow serves its loss alone
    left = {key for key in trained - reached if key.rpartition(".")[0] not in unused}
    if command == "-m turtle-bsd":  # without alignment, three weights of each aligner have no effect
        assert {key.rpartition(".align.")[2] for key in left} == {"qk.weight", "qk_dwconv.weight", "temperature"}
        left = set()
    assert left == set()


ABLATIONS = [command for _, command, _ in ROWS if "--stage" not in command]


@pytest.mark.parametrize("command", ABLATIONS)
def test_what_changes_nothing_has_no_loss_on_sharp_frames(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the blurry frames are the sharp ones, and the network returns its frame: target and frame are the same."""
    objective, recipe, batch = begin(command, sharp=True)
    objective.numbers["noise"] = 0.0
    pass_through(objective.network, monkeypatch)
    if recipe.objective == "pvdnet":
        batch = {**batch, "blurry": batch["sharp"]}  # without the recipe's noise
    name = {"clip": "charbonnier"}.get(recipe.objective, IMAGE_LOSSES.get(recipe.objective, "loss"))
    with torch.no_grad():
        seen = [found.get(name, found["loss"]) for turn, found in turns(objective, batch) if turn == "network"]
    assert seen
    # Charbonnier's is its epsilon, and a luma is rounded; Turtle's blurry frames are rounded to float16.
    limit = {"clip": 2e-6, "turtle": 2**-13}.get(recipe.objective, 1e-9)
    assert all(float(loss) < limit for loss in seen)


@pytest.mark.parametrize("command", mostly_slow(ABLATIONS))
def test_a_row_restores_a_clip_as_run_does(command: str) -> None:
    """Through the same streams, ends of the clip included; each frame once, in its size, and none empty."""
    objective, _, _ = begin(command)
    network = objective.network.eval()
    clip = sample(6, TINY[read(command)[0].network][1]).blurry[:, None] / 255
    plan = cut_tiles(clip.shape[3], clip.shape[4], None, 0, TileNeeds.of(network))
    with torch.no_grad():
        restored = list(FEEDINGS[network.feeding](network, iter(clip), plan))
    assert [frame.shape for frame in restored] == [frame.shape for frame in clip]
    assert all(bool(frame.isfinite().all()) and float(frame.std()) > 0 for frame in restored)


def pass_through(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a network return the frame that it restores."""
    if isinstance(network, CDVDTSP):
        monkeypatch.setattr(network, "restore", lambda aligned: aligned[:, 3:6])
        return
    last: Any = [module for module in network.modules() if isinstance(module, nn.Conv2d)][-1]
    if isinstance(network, FlowRNN):
        last = network.d_conv0
    if isinstance(network, Turtle):
        last = network.ending
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    if isinstance(network, FlowRNN):  # its output is the frame itself, not a difference from it
        for channel in range(3):
            last.weight.data[channel, channel, 2, 2] = 1.0


def test_published_figures_are_the_registrys() -> None:
    """A row of a registered model as it is, whose data set is named, quotes what weights.toml has."""
    compared = 0
    for section in TEXT.split("\n## ")[1:]:
        everywhere = re.search(r"^PSNR and SSIM on (\w+)", section, re.MULTILINE)
        for model, cell in re.findall(r"^\| [^|]+ \| `-m (\S+)` \| [\d,]+ \| ([^|]+) \|$", section, re.MULTILINE):
            entry = registry.find_entry(model)
            scores = [*entry.scores, *(score for weights in entry.weights.values() for score in weights.scores)]
            known = {(score.data, score.psnr, score.ssim) for score in scores}
            quoted = re.findall(r"([\d.]+) / ([\d.]+)(?: on ([\w ]+\w))?", cell)
            assert quoted, cell
            for psnr, ssim, data in quoted:
                assert (data or (everywhere and everywhere[1]), float(psnr), float(ssim)) in known, (model, cell)
                compared += 1
    assert compared >= 8


def test_rows_of_pvdnets_tables_train_as_the_paper_says() -> None:
    """Its ablations have no cosine annealing, and Eq. (1) no mask."""
    rows = [command for _, command, _ in ROWS if command.startswith("-m pvdnet --")]
    of_paper = [command for command in rows if "--paper" in command]
    assert len(of_paper) == 10
    assert {*rows} - {*of_paper} == {"-m pvdnet --set loss.joint=true", "-m pvdnet --stage bimnet"}
    for command in of_paper:
        tables = read(command)[1].values
        assert tables["schedule"]["kind"] == "steps", command
        assert tables["loss"]["masked"] is False, command


def test_flow_rnn_starts_by_xavier_as_its_paper_does() -> None:
    """All but the flow part; by default the decoder's d_deconv layers have He's wider start."""
    of_paper, ours = (begin(f"-m flow-rnn{option}")[0].network for option in (" --paper", ""))
    for name in ("d_deconv3", "d_deconv2_1"):
        layers: list[Any] = [network.get_submodule(name) for network in (of_paper, ours)]
        fan = sum(layers[0].weight.shape[:2]) * layers[0].weight[0, 0].numel()
        limit = (6 / fan) ** 0.5
        assert 0.9 * limit < float(layers[0].weight.detach().abs().max()) <= limit
        assert float(layers[1].weight.detach().abs().max()) > limit
        assert not layers[0].bias.any()


def test_the_table_has_the_papers_rows() -> None:
    commands = {command for _, command, _ in ROWS}
    assert len(commands) == len(ROWS) > 40
    assert {command.split()[1] for command in commands} == {*TINY, "spgan", "pvdnet-large", "turtle-bsd"}
    assert Path(ROOT / "docs/papers.md").is_file()
