"""Recipes: wrong values are refused at once, with their names; and the weights that a training starts from."""

from pathlib import Path

import pytest
import safetensors.torch
import torch

from vdeblur.errors import ExitStatus, ModelError
from vdeblur.events import Talk
from vdeblur.models import registry
from vdeblur.networks.pvdnet import PVDNet
from vdeblur.train import recipes, start

COUNT, NUMBER = "a whole number above 0", "a number, 0 or above"
# Model, key, value, and what the value must be.
WRONG = (
    ("lite", "training.seed", "abc", "a whole number, 0 or above"),
    ("lite", "training.seed", "1.0", "a whole number, 0 or above"),
    ("lite", "training.batch", "true", COUNT),
    ("lite", "training.ema", "2", "a number from 0 to below 1"),
    ("lite", "training.validation_frames", "abc", COUNT),
    ("lite", "training.validation_frames", "0", COUNT),
    ("lite", "training.stop_after", "x", COUNT),
    ("lite", "training.keep_minutes", "0", "a number above 0"),
    ("lite", "training.save", "xx", "one of fp32, fp16"),
    ("lite", "training.precision", "fp8", "one of fp32, bf16, fp16"),
    ("lite", "training.accumulate", "0", COUNT),
    ("lite", "training.batch.x", "3", COUNT),
    ("lite", "optimiser.rate", "nan", "a number between 0 and 1"),
    ("lite", "optimiser.betas", "3", "a list of 2, each a number from 0 to below 1"),
    ("lite", "optimiser.betas", "[0.9, 1.0]", "a list of 2, each"),
    ("lite", "optimiser.betas", "[0.9]", "a list of 2, each"),
    ("lite", "optimiser.clip", "-1", NUMBER),
    ("lite", "optimiser.kind", "sgd", "one of adam, adamw, radam, muon"),
    ("lite", "optimiser.rates.weigh", "-1", "a number from 0 to below 1"),
    ("lite", "optimiser.frozen.weigh", "1.5", "a whole number, 0 or above"),
    ("spgan", "optimiser.discriminator.rate", "2", "a number between 0 and 1"),
    ("spgan", "optimiser.discriminator", "2", "a table"),
    ("lite", "data.noise", "foo", NUMBER),
    ("lite", "data.margin", "-1", "a whole number, 0 or above"),
    ("lite", "data.sampling", "some", "one of windows, grid, clips, starts"),
    ("lite", "data.augment", '["turn", "trun"]', "a list, each one of flip_horizontal"),
    ("lite", "data.blur", "blurr", "one of blur, blur_gamma"),
    ("lite", "data", "3", "a table"),
    ("lite", "optimiser.rates", "3", "a table"),
    ("pvdnet", "start", "bimnet", "a table"),
    ("pvdnet", "start.bimnet", "3", "a string"),
    ("lite", "schedule.warm_up", "0", COUNT),
    ("lite", "schedule.warmup", "5", "known: kind, warm_up"),
    ("dstnet", "schedule.kind", "constant2", "choose from constant"),
    ("pvdnet", "schedule.periods", "[0, 5]", "a list, each a whole number above 0"),
    ("pvdnet", "schedule.weights", "[1.0]", "one for each of 5 periods"),
    ("lite", "loss.ends", "abc", "a number from 0 to 1"),
    ("pvdnet", "loss.joint", "1", "true or false"),
    ("pvdnet", "loss.begin_with", "previuos", "one of previous, current"),
    ("pvdnet", "loss.distance", "l2", "one of mse, l1"),
    ("spgan", "loss.adversarial", "satturating", "one of saturating, nonsaturating"),
    ("lite", "data.scale", "2", "choose from augment"),
)


@pytest.mark.parametrize(("model", "key", "value", "said"), WRONG)
def test_values_that_make_no_sense_end_at_once(vdeblur, model: str, key: str, value: str, said: str) -> None:
    result = vdeblur("train", "-m", model, "--set", f"{key}={value}", "--print-config")
    assert result.exit_code == ExitStatus.USAGE
    assert key.removesuffix(".x").rpartition(".")[2] in result.output
    assert said in result.output


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("training.keep_minutes", "2.5"),
        ("training.ema", "0.999"),
        ("optimiser.rates", '{ "weigh.0" = 1e-5, extract = 0 }'),
        ("schedule.kind", "constant"),
        ("data.augment", "[]"),
    ],
)
def test_values_that_make_sense_are_taken(vdeblur, key: str, value: str) -> None:
    result = vdeblur("train", "-m", "lite", "--set", f"{key}={value}", "--print-config")
    assert result.exit_code == 0, result.output
    assert key.rpartition(".")[2] in result.stdout


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[data]\ncrop = 64\naugment = [", "not TOML, or not finished: Invalid value (at line 3, the end)"),
        ("[data]\ncrop : 64\n", "(at line 2, "),
        ("[data]\ncrop = 64\ncrop = 65\n", "Cannot overwrite a value (at line 3, "),
        ("data = 3\n", "data is 3"),
        ("[[data]]\ncrop = 3\n", "data is [{'crop': 3}]"),
    ],
)
def test_a_file_that_is_no_recipe_is_told_by_its_line(vdeblur, tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(text)
    result = vdeblur("train", "-m", "lite", "--config", file, "--print-config")
    assert result.exit_code == ExitStatus.USAGE
    assert f"{file}" in result.output
    assert said in result.output


@pytest.fixture
def own_bimnet(tmp_path: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    """A file as the stage bimnet writes it, a complete PVDNet; and its BIMNet's weights."""
    torch.manual_seed(1)
    trained = PVDNet(channels=8, blocks=1)
    file = tmp_path / "last.safetensors"
    safetensors.torch.save_file(trained.state_dict(), file)
    return file, trained.bimnet.state_dict()


@pytest.mark.parametrize(("model", "joint"), [("pvdnet", "false"), ("pvdnet-large", "false"), ("pvdnet", "true")])
def test_a_training_begins_with_the_bimnet_of_its_own_stage(
    own_bimnet: tuple[Path, dict[str, torch.Tensor]], model: str, joint: str
) -> None:
    file, expected = own_bimnet
    begun = begin(model, ("start.bimnet", str(file)), ("loss.joint", joint))
    found = begun.bimnet.state_dict()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def begin(model: str, *values: tuple[str, str]) -> PVDNet:
    """Return a network with its start weights; only its BIMNet has the same size as own_bimnet's."""
    torch.manual_seed(2)
    network = PVDNet(channels=16, blocks=1)
    entry = registry.find_entry(model)
    start.begin(network, entry, recipes.load_recipe(entry, values=values), None, Talk(offline=True))
    return network


def test_a_bimnet_that_is_trained_along_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VDEBLUR_CACHE", str(tmp_path))
    torch.manual_seed(2)
    drawn = PVDNet(channels=16, blocks=1).state_dict()
    begun = begin("pvdnet", ("loss.joint", "true")).state_dict()
    assert all(torch.equal(begun[name], value) for name, value in drawn.items())
    with pytest.raises(ModelError):  # it would be fetched, which is not allowed here
        begin("pvdnet")
