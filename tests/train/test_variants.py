# ruff: noqa: F811  # pairs is a fixture from another file
"""Variants of networks in training: switches, what follows from them, the weights' memory; epochs and sources."""

import json
import re
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch

from tests.train.test_training import SMALL, pairs, rows, state_of  # noqa: F401  # a fixture
from vdeblur.datasets import pictures
from vdeblur.errors import ExitStatus, ModelError
from vdeblur.models import registry
from vdeblur.models.switches import plain
from vdeblur.models.weights import load_model
from vdeblur.networks.flow_rnn import FlowRNN
from vdeblur.networks.pvdnet import PVDNet
from vdeblur.train import recipes
from vdeblur.train.schedules import Plateau, PlateauSchedule

TINY = """
[spn-tiny]
network = "spn"
arguments = { channels = 4, blocks = 1 }
description = "SPN, for tests"
license = "MIT"
no_weights = "it is for tests"

[spn-single]
network = "spn"
arguments = { channels = 4, blocks = 1, scales = [1] }
description = "SPN of single frames, for tests"
license = "MIT"
no_weights = "it is for tests"

[pvdnet-tiny]
network = "pvdnet"
arguments = { channels = 8, blocks = 1 }
description = "PVDNet, for tests"
license = "MIT"
no_weights = "it is for tests"
"""


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = tmp_path / "registry.toml"
    file.write_text(TINY)
    monkeypatch.setenv("VDEBLUR_REGISTRY", str(file))
    return file


# Sources


@pytest.mark.parametrize("name", [name for name in recipes.trainable() if not name.startswith("lite")])
def test_each_value_has_its_source_and_no_others(vdeblur, name: str) -> None:
    """With --set, the comment that explained the old value is gone; --rate replaces those of all rates."""
    changes = ("--set", "training.seed=7", "--set", "data.limit=50", "--rate", "3e-5")
    printed = vdeblur("train", "-m", name, *changes, "--print-config").stdout
    assert re.search(r"^seed = 7 +# command line$", printed, re.MULTILINE)
    assert re.search(r"^limit = 50 +# command line$", printed, re.MULTILINE)
    assert re.search(r"^rate = (0\.00003|3e-0?5) +# command line: --rate$", printed, re.MULTILINE)


PAPERS = [
    (name, "") for name in ("cdvd-tsp", "pvdnet", "pvdnet-large", "spn", "spgan", "flow-rnn", "dstnet", "dstnet-l")
]


@pytest.mark.parametrize(("name", "stage"), [*PAPERS, ("pvdnet", "bimnet")])
@pytest.mark.parametrize("paper", [False, True])
def test_every_number_of_the_five_papers_names_its_source(name: str, stage: str, paper: bool) -> None:
    entry = registry.find_entry(name)
    lines = recipes.load_recipe(entry, stage, paper=paper).text.splitlines()
    values = [line for line in lines[lines.index("[data]") :] if " = " in line and not line.startswith("#")]
    bare = [line for line in values if "  # " not in line]
    assert not bare
    # What stands there under --paper is not explained by the code that the paper differs from.
    if paper:
        own = recipes.load_recipe(entry, stage).values
        changed = recipes.load_recipe(entry, stage, paper=True).values
        for table in ("data", "optimiser", "schedule", "loss", "training"):
            for key, value in changed[table].items():
                if own[table].get(key) != value:
                    section = lines[next(at for at, line in enumerate(lines) if line.startswith(f"[{table}]")) :]
                    line = next(line for line in section if line.startswith(f"{key} = "))
                    assert "paper" in line or "STFAN" in line, line


def test_a_replaced_value_loses_the_comment_of_the_old_one(vdeblur) -> None:
    printed = vdeblur("train", "-m", "flow-rnn", "--paper", "--print-config").stdout
    assert re.search(r"^rate = 0.001 +# paper$", printed, re.MULTILINE)
    assert "is risky" not in printed
    printed = vdeblur("train", "-m", "cdvd-tsp", "--set", "optimiser.rates.flow_net=1e-5", "--print-config").stdout
    assert re.search(r"^rates = .* # command line$", printed, re.MULTILINE)


def test_a_file_brings_its_own_comments(vdeblur, tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("[training]\nseed = 3  # my lucky one\nbatch = 2\n[network]\nstages = 1  # a single stage\n")
    command = ("train", "-m", "cdvd-tsp", "--config", file, "--print-config")
    printed = vdeblur(*command).stdout
    assert "seed = 3  # my lucky one" in printed
    assert "batch = 2  # mine.toml" in printed
    assert "stages = 1  # a single stage" in printed
    assert "frames = 3  # follows from [network]" in printed
    again = tmp_path / "again.toml"
    again.write_text(printed)
    assert vdeblur("train", "-m", "cdvd-tsp", "--config", again, "--print-config").stdout == printed


# Epochs


@pytest.mark.parametrize(
    ("windows", "epoch", "halved", "end"), [(5262, 658, 131_600, 329_000), (1955, 978, 195_600, 489_000)]
)
def test_epochs_of_cdvd_tsp_are_those_of_its_loader(windows: int, epoch: int, halved: int, end: int) -> None:
    """DVD and GoPro, by their windows of five among the first hundred frames."""
    recipe = recipes.load_recipe(registry.find_entry("cdvd-tsp")).in_updates(windows)
    assert recipe.epoch == epoch
    assert recipe.training.iterations == end == recipe.numbers["iterations"]
    assert recipe.training.validate_every == 10 * epoch
    factors = [recipe.schedule.multiplier(update, end, 1e-4) for update in (0, halved - 1, halved, end - 1)]
    assert factors == [1, 1, 0.5, 0.25]


def test_a_batch_of_several_updates_counts_as_such() -> None:
    recipe = recipes.load_recipe(registry.find_entry("pvdnet"), values=[("training.iterations", "2 epochs")])
    assert recipe.in_updates(80).training.iterations == 2 * 10 * 13


def test_epochs_of_a_real_set(vdeblur, tmp_path: Path, models: Path, pairs: Path) -> None:
    """Two sequences of six frames, each frame once an epoch: three batches of four."""
    command = ("train", "-m", "spn-tiny", "--dataset", pairs, "--crop", 32, "--batch", 4, "--workers", 0)
    epochs = ("--set", "training.iterations=2 epochs", "--set", "training.validate_every=1 epoch")
    result = vdeblur(*command, *epochs, "--device", "cpu", "--json", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    [begun] = [event for event in map(json.loads, result.stdout.splitlines()) if event["event"] == "training"]
    assert begun["iterations"] == 6
    assert [row["update"] for row in rows(tmp_path / "out")] == ["3", "6"]
    with safetensors.safe_open(tmp_path / "out/last.safetensors", "pt") as file:
        metadata = file.metadata()
    training = json.loads(metadata["training"])
    assert (training["epoch"], training["iterations"]) == (3, 6)
    assert 'iterations = "2 epochs"  # command line' in metadata["recipe"]
    assert 'iterations = "2 epochs"  # command line' in (tmp_path / "out/recipe.toml").read_text()


# Errors by name


@pytest.mark.parametrize(
    ("model", "options", "said"),
    [
        ("spn", ("--set", "data.frames=4"), "data.frames is 4, but this spn takes samples of 5"),
        ("flow-rnn", ("--set", "data.frames=3"), "data.frames is 3, but this flow-rnn takes samples of 2"),
        ("cdvd-tsp", ("--set", "data.frames=3"), "data.frames is 3, but this cdvd-tsp takes samples of 5"),
        ("pvdnet", ("--set", "data.margin=0"), "data.margin is 0, but pvdnet takes 1"),
        ("spn", ("--set", "data.margin=1"), "data.margin is 1, but spn takes 0"),
        ("dstnet", ("--crop", "100"), "data.crop is 100, but dstnet takes multiples of 16, from 16 (choose 96 or 112)"),
        ("flow-rnn", ("--crop", "32"), "data.crop is 32, but flow-rnn takes multiples of 64, from 64 (choose 64)"),
        ("spgan", ("--crop", "8"), "data.crop is 8, but spgan takes multiples of 4, from 16 (choose 16)"),
        ("spn", ("--set", "network.scale=[1]"), "[network] of spn: there is no 'scale' (choose from scales,"),
        ("spn", ("--set", "network.scales=[1,4]"), "scales must be odd"),
        ("spn", ("--set", "network.scales=[]"), "scales is []"),
        ("spn", ("--set", "network.scales=3"), "scales is 3 (it must be a list, each a whole number"),
        ("pvdnet", ("--set", "network.motion=off"), 'motion is "off" (it must be one of volume, warp, none)'),
        ("pvdnet", ("--set", "network.side=4"), "side must be odd"),
        ("dstnet", ("--set", "network.gating=yes"), 'gating is "yes" (it must be a whole number'),
        ("cdvd-tsp", ("--set", "network.prior=1"), "prior is 1 (it must be true or false)"),
        ("cdvd-tsp", ("--set", "network.stages=0"), "stages is 0 (it must be a whole number, 1 or above)"),
        ("cdvd-tsp", ("--set", "network=3"), "it must be a table"),
        ("cdvd-tsp", ("--set", "network.channels=0"), "channels is 0 (it must be a whole number, 1 or above)"),
        ("pvdnet", ("--set", "network.width=0"), "width is 0 (it must be a whole number, 1 or above)"),
        ("pvdnet", ("--set", "network.width=1"), "width must be 2 or more"),
        ("flow-rnn", ("--set", "network.width=1"), "width must be 2 or more"),
        ("spn", ("--set", "network.scales=[0]"), "it must be a list, each a whole number, 1 or above"),
        ("dstnet", ("--set", "network.gating=-1"), "gating is -1 (it must be a whole number, 0 or above)"),
        ("pvdnet", ("--set", "network.motion=none", "--stage", "bimnet"), "there is no BIMNet to train"),
        ("pvdnet", ("--set", "network.motion=none", "--set", "loss.joint=true"), "there is no BIMNet to train"),
        ("cdvd-tsp", ("--set", "training.iterations=0 epochs"), 'or of epochs, as "500 epochs"'),
    ],
)
def test_what_does_not_fit_the_network_is_named(vdeblur, model: str, options: tuple[str, ...], said: str) -> None:
    result = vdeblur("train", "-m", model, *options, "--print-config")
    assert result.exit_code == ExitStatus.USAGE, result.output
    assert said in " ".join(result.output.split())
    assert "Traceback" not in result.output
    assert result.output.strip().count("\n") == 0


@pytest.fixture
def large_pairs(tmp_path: Path) -> Path:
    """Three sequences of three equal pictures that are large enough for all networks."""
    picture = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    for name in ("train/a", "test/b"):
        for kind in ("blur", "sharp"):
            for index in range(5):
                pictures.write_png(tmp_path / "large" / name / kind / f"{index}.png", picture)
    return tmp_path / "large"


def test_a_part_can_start_from_a_file_and_others_are_named(vdeblur, tmp_path: Path, large_pairs: Path) -> None:
    torch.manual_seed(3)
    network = FlowRNN(4)
    file = tmp_path / "flow.safetensors"
    safetensors.torch.save_file(network.flow_part.state_dict(), file)
    command: tuple[object, ...] = (
        "train",
        "-m",
        "flow-rnn",
        "--dataset",
        large_pairs,
        "--crop",
        64,
        "--batch",
        1,
        "--iterations",
        1,
    )
    command += ("--workers", 0, "--device", "cpu", "--set", "network.width=4", "--set", "loss.flow_warm_up=1")
    for part, given, said in (
        ("flows", file, "start.flows: no part of the network is called 'flows' (choose from flow_part, rnnw1"),
        ("flow_part", "no-such-thing", "unknown model 'no-such-thing'"),
        ("rnnw1", file, "does not fit rnnw1"),
    ):
        result = vdeblur(*command, "--set", f"start.{part}={given}", "--out", tmp_path / "none")
        assert result.exit_code in (ExitStatus.USAGE, ExitStatus.MODEL), result.output
        assert said in " ".join(result.output.split())
        assert "internal" not in result.output
    frozen = ("--set", "optimiser.rates.flow_part=0", "--set", f"start.flow_part={file}", "--out", tmp_path / "out")
    result = vdeblur(*command[:-2], "--set", "loss.flow_warm_up=0", *frozen)
    assert result.exit_code == 0, result.output
    begun = safetensors.torch.load_file(tmp_path / "out/last.safetensors")
    for key, value in network.flow_part.state_dict().items():
        assert torch.equal(begun[f"flow_part.{key}"], value)


# Weights remember


def test_weights_remember_their_variant(vdeblur, tmp_path: Path, models: Path, pairs: Path) -> None:
    out = tmp_path / "out"
    command = ("train", "--dataset", pairs, *SMALL, "--iterations", 2)
    result = vdeblur(*command, "-m", "spn-tiny", "--set", "network.scales=[1,3]", "--out", out)
    assert result.exit_code == 0, result.output
    assert state_of(out)["tables"]["data"]["frames"] == 3
    weights = out / "best.safetensors"
    with safetensors.safe_open(weights, "pt") as file:
        trained = json.loads(file.metadata()["training"])
    assert trained["network"]["scales"] == [1, 3]
    assert trained["network"]["channels"] == 4

    # The model by its own name: the file says which variant it is.
    blurry = pairs / "test/c/blur"
    command_of_run = ("run", blurry, tmp_path / "sharp", "-m", "spn-tiny", "--weights", weights, "--device", "cpu")
    result = vdeblur(*command_of_run)
    assert result.exit_code == 0, result.output
    assert len(list((tmp_path / "sharp").iterdir())) == 6

    # A list of TOML is the constructor's tuple: the model itself is no other network.
    command_of_same = (*command, "-m", "spn-tiny", "--set", "network.scales=[1,3,5]", "--init", "spn-tiny")
    result = vdeblur(*command_of_same, "--out", tmp_path / "same")
    assert "spn-tiny has no published weights" in result.output

    # Where the variant is fixed, or would be forgotten, it is refused by name.
    variant = "holds weights of another variant of {}: scales = [1, 3], not scales = {}"
    result = vdeblur("models", "import", weights, "--as", "spn-tiny@mine")
    assert result.exit_code == ExitStatus.MODEL
    assert variant.format("spn-tiny", "[1, 3, 5]") in " ".join(result.output.split())
    result = vdeblur(*command, "-m", "spn-tiny", "--init", weights, "--out", tmp_path / "second")
    assert result.exit_code == ExitStatus.MODEL
    assert variant.format("spn-tiny", "[1, 3, 5]") in " ".join(result.output.split())
    result = vdeblur(*command, "-m", "spn-single", "--init", weights, "--out", tmp_path / "third")
    assert result.exit_code == ExitStatus.MODEL
    assert variant.format("spn-single", "[1]") in " ".join(result.output.split())
    result = vdeblur(
        *command, "-m", "spn-tiny", "--set", "network.scales=[1,3]", "--init", weights, "--out", tmp_path / "fourth"
    )
    assert result.exit_code == 0, result.output


def test_a_users_model_takes_only_its_own_variant(vdeblur, tmp_path: Path, models: Path) -> None:
    entry = registry.find_entry("spn-tiny")
    about = {"model": "spn-tiny", "stage": "", "network": plain(entry.with_arguments({"scales": [1, 3]}).variant)}
    file = tmp_path / "weights.safetensors"
    state = entry.with_arguments({"scales": [1, 3]}).build().state_dict()
    safetensors.torch.save_file(state, file, {"training": json.dumps(about)})
    load_model("spn-tiny", file)
    single = tmp_path / "single.safetensors"
    safetensors.torch.save_file(state, single, {"training": json.dumps({**about, "model": "spn-single"})})
    with pytest.raises(ModelError, match=r"scales = \[1, 3\], not scales = \[1\]"):
        load_model("spn-single", single)
    with pytest.raises(ModelError, match="were trained as spn-tiny, not spn"):
        load_model("spn", file)


def test_bimnet_alone_is_no_pvdnet(vdeblur, tmp_path: Path, models: Path, pairs: Path) -> None:
    """The file of the stage fits, but its PVDNet is random; a bare BIMNet does not fit. Both start the stage."""
    torch.manual_seed(1)
    network = PVDNet(8, 1)
    bare, made = tmp_path / "liteflownet.pytorch", tmp_path / "stage.safetensors"
    official = {network.bimnet.official_name(key): value for key, value in network.bimnet.state_dict().items()}
    torch.save(official, bare)
    metadata = {"training": json.dumps({"model": "pvdnet-tiny", "stage": "bimnet"})}
    safetensors.torch.save_file(network.state_dict(), made, metadata)
    command = ("train", "-m", "pvdnet-tiny", "--dataset", pairs, *SMALL, "--iterations", 1)
    blurry = pairs / "test/c/blur"
    for file, said in ((made, "is of the stage bimnet: only that part"), (bare, "holds bimnet alone")):
        for tried in (
            (*command, "--set", "data.frames=2", "--init", file, "--out", tmp_path / "none"),
            ("run", blurry, tmp_path / "sharp", "-m", "pvdnet-tiny", "--weights", file, "--device", "cpu"),
            ("models", "import", file, "--as", "pvdnet-tiny@mine"),
        ):
            result = vdeblur(*tried)
            assert result.exit_code == ExitStatus.MODEL, result.output
            assert said in " ".join(result.output.split())
    for number, file in enumerate((made, bare)):
        out = tmp_path / f"stage{number}"
        still = ("--set", "optimiser.rate=1e-12", "--set", "data.blur=blur")
        result = vdeblur(*command, "--stage", "bimnet", "--init", file, *still, "--out", out)
        assert result.exit_code == 0, result.output
        begun = safetensors.torch.load_file(out / "last.safetensors")
        for key, value in network.bimnet.state_dict().items():
            torch.testing.assert_close(begun[f"bimnet.{key}"], value, atol=1e-9, rtol=1e-6)


def test_registry_arguments_are_checked(vdeblur, models: Path) -> None:
    models.write_text(TINY.replace("scales = [1]", "scale = [1]"))
    result = vdeblur("train", "-m", "spn-single", "--print-config")
    assert result.exit_code == ExitStatus.USAGE
    assert "there is no 'scale'" in result.output
    result = vdeblur("run", "no-such.mp4", "out.mp4", "-m", "spn-single")
    assert "internal" not in result.output


# Patience


def test_updates_of_the_discriminator_alone_do_not_count_as_waiting() -> None:
    plateau = Plateau(PlateauSchedule(patience=2, reductions=0))
    plateau.observe(30.0, counts=False)
    for _ in range(5):
        plateau.observe(30.0, counts=False)
    assert (plateau.waited, plateau.finished) == (0, False)
    plateau.observe(29.0)
    assert not plateau.finished
    plateau.observe(29.0)
    assert plateau.finished


def test_spgan_trains_on_after_its_discriminators_first_updates(
    vdeblur,
    tmp_path: Path,
    models: Path,
    pairs: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With patience 1, validations during these updates would end the training before the generator has a step."""
    with models.open("a") as file:
        file.write(TINY.split("\n\n")[0].replace("[spn-tiny]", "[spgan-tiny]"))
    monkeypatch.setattr(recipes, "_base", lambda entry: "spgan" if "spgan" in entry.name else entry.network)
    command: tuple[object, ...] = (
        "train",
        "--dataset",
        pairs,
        "--crop",
        32,
        "--batch",
        4,
        "--workers",
        0,
        "--device",
        "cpu",
    )
    result = vdeblur(*command, "-m", "spn-tiny", "--iterations", 1, "--out", tmp_path / "spn")
    assert result.exit_code == 0, result.output
    weights = tmp_path / "spn/best.safetensors"
    values = ("schedule.patience=1", "loss.discriminator_first=4", "loss.discriminator_width=4", "optimiser.rate=1e-12")
    options = [option for value in values for option in ("--set", value)]
    command += ("-m", "spgan-tiny", "--init", weights, "--validate-every", 1, "--iterations", 20, *options)
    result = vdeblur(*command, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    reached = state_of(tmp_path / "out")["update"]
    assert reached > 4
