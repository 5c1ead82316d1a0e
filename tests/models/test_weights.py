"""Weights: the right ones load, everything else is refused with a reason."""

import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from tests import clips
from tests.conftest import ROOT
from vdeblur import networks
from vdeblur.errors import ExitStatus, ModelError
from vdeblur.fetch import http, sources
from vdeblur.models import cache, registry, weights
from vdeblur.models.registry import ModelEntry
from vdeblur.networks.lite import Lite

UNPINNED = {"cdvd-tsp", "flow-rnn", "pvdnet", "pvdnet-large", "pwc-net", "dstnet-plus", "dstnet-plus-l"}
UNPINNED |= {"estrnn", "turtle", "turtle-bsd", "basicvsrpp@handheld"}


def test_every_model_loads_that_needs_no_download() -> None:
    for name, entry in registry.known_models().items():
        in_package = [file.name for file in entry.weights.values() if file.in_package]
        if not in_package and (entry.weights or entry.no_weights):
            continue
        network = weights.load_model(name)
        assert not network.training
        assert all(parameter.isfinite().all() for parameter in network.parameters())


def test_the_weights_in_the_package_are_small_and_whole() -> None:
    assert cache.path_of("lite").stat().st_size <= 4_000_000


def test_the_registry_is_whole() -> None:
    """Checked with models whose networks do not exist yet."""
    everything = type("Everything", (), {"__contains__": lambda self, name: bool(name)})()
    entries = registry.read_registry(everything)
    assert {"cdvd-tsp", "pvdnet", "pvdnet-large", "dstnet", "dstnet-l", "spn", "spgan", "flow-rnn", "lite"} <= set(
        entries
    )
    for entry in entries.values():
        assert entry.start_of in ("", *entries)
        assert entry.weights or entry.no_weights or entry.name == "identity"
        for file in entry.weights.values():
            assert file.in_package or file.remote.page.startswith("https://")
            # Only digests that the authors published may be in weights.toml.
            assert bool(file.remote.pins) != bool({entry.name, f"{entry.name}@{file.name}"} & UNPINNED)
    assert entries["dstnet"].weights.keys() == {"gopro", "dvd", "bsd-1ms8ms"}
    assert entries["cdvd-tsp"].default == "gopro"
    assert not any(
        entry.network not in networks.NETWORKS for entry in registry.known_models().values() if entry.network
    )


def test_the_entry_in_contributing_is_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text().split("```toml\n")[1].split("```")[0]
    text = text.replace('sha256 = "..."', f'sha256 = "{"0" * 64}"').replace("key-of-NETWORKS", "lite")
    (tmp_path / "registry.toml").write_text(text)
    monkeypatch.setenv("VDEBLUR_REGISTRY", str(tmp_path / "registry.toml"))
    entry = registry.find_entry("name@gopro")
    assert {source.kind for source in entry.weights["gopro"].remote.sources} | {"package"} == set(registry.SOURCES)
    assert (entry.prefix, entry.ignored, entry.default) == ("generator.", ("step_counter",), "gopro")


def test_the_registry_knows_the_kinds_of_sources_that_fetch_knows() -> None:
    assert set(registry.SOURCES) == set(sources.FETCHERS) | {"package", "manual"}


def test_a_registry_is_parsed_once_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parsed = []
    parse = registry._parse_entry

    def counted(name: str, table: dict[str, Any]) -> ModelEntry:
        parsed.append(name)
        return parse(name, table)

    monkeypatch.setattr(registry, "_parse_entry", counted)
    path = tmp_path / "registry.toml"
    monkeypatch.setenv("VDEBLUR_REGISTRY", str(path))
    text = '[mine]\nnetwork = "identity"\ndescription = "first"\nlicense = "MIT"\n'
    path.write_text(text)
    for _ in range(3):
        assert registry.find_entry("mine").description == "first"
    assert parsed.count("mine") == 1
    path.write_text(text.replace("first", "the second"))
    assert registry.find_entry("mine").description == "the second"
    monkeypatch.delenv("VDEBLUR_REGISTRY")
    with pytest.raises(ModelError, match="unknown model 'mine'"):
        registry.find_entry("mine")
    assert parsed.count("mine") == 2


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth", ".pytorch"])
@pytest.mark.parametrize("wrap", [None, "state_dict", "params_ema", "module."])
def test_our_own_checkpoints_load(tmp_path: Path, suffix: str, wrap: str | None) -> None:
    network = Lite()
    torch.nn.init.normal_(network.reconstruct.bias)
    state = network.half().state_dict()
    path = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        safetensors.torch.save_file(state, path)
    elif wrap == "module.":
        torch.save({"module." + key: value for key, value in state.items()}, path)
    else:
        torch.save({wrap: state, "epoch": 3} if wrap else state, path)
    loaded = weights.load_model("lite", path)
    assert torch.equal(loaded.reconstruct.bias, network.reconstruct.bias.float())


class Malice:
    """A pickle that writes a file if it is read without weights_only."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return (Path.touch, (self.target,))


def test_faulty_checkpoints(vdeblur, tmp_path: Path) -> None:
    source = clips.make(tmp_path / "in.mkv", frames=2)
    state = Lite().state_dict()

    def refused(path: Path) -> str:
        result = vdeblur("run", source, tmp_path / "out.mkv", "--weights", path)
        assert result.exit_code == ExitStatus.MODEL, result.output
        lines = [line for line in result.output.splitlines() if line.startswith("vdeblur: ")]
        assert len(lines) == 1
        assert not (tmp_path / "out.mkv").exists()
        return lines[0]

    assert "no such file" in refused(tmp_path / "none.pt")
    page = tmp_path / "page.pth"
    page.write_text("<!DOCTYPE html><html>quota exceeded</html>")
    assert "is a web page" in refused(page)
    torch.save(state, tmp_path / "whole.pt")
    cut = tmp_path / "cut.pt"
    cut.write_bytes((tmp_path / "whole.pt").read_bytes()[:100_000])
    assert "not a complete PyTorch checkpoint" in refused(cut)
    safetensors.torch.save_file(state, tmp_path / "whole.safetensors")
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes((tmp_path / "whole.safetensors").read_bytes()[:100_000])
    assert "not a complete safetensors file" in refused(cut)
    evil = tmp_path / "evil.pt"
    torch.save({"state_dict": Malice(tmp_path / "owned")}, evil)
    assert "did not run it" in refused(evil)
    evil.write_bytes(pickle.dumps(Malice(tmp_path / "owned")))
    assert "did not run it" in refused(evil)
    assert not (tmp_path / "owned").exists()
    for size in (10, 1000, 20_000, 100_000):  # the layout before PyTorch 1.6
        cut = tmp_path / "cut.pt"
        torch.save(state, cut, _use_new_zipfile_serialization=False)
        cut.write_bytes(cut.read_bytes()[:size])
        assert "not a complete PyTorch checkpoint" in refused(cut)
    noise = tmp_path / "noise.pt"
    noise.write_bytes(bytes(range(256)) * 40)
    assert "not a complete PyTorch checkpoint" in refused(noise)
    with zipfile.ZipFile(noise, "w") as archive:
        archive.writestr("checkpoints/ESTRNN.tar", b"weights")
    assert "it is an archive: take checkpoints/ESTRNN.tar out of it" in refused(noise)
    noise.write_bytes(b"")
    assert "not a complete PyTorch checkpoint" in refused(noise)
    torch.save(state, tmp_path / "legacy.pth", _use_new_zipfile_serialization=False)
    weights.load_model("lite", tmp_path / "legacy.pth")
    other = tmp_path / "other.pt"
    torch.save({"conv.weight": torch.zeros(3)}, other)
    assert "tensors missing" in refused(other)
    torch.save({**state, "extra": torch.zeros(1)}, other)
    assert "1 unknown, extra first" in refused(other)
    torch.save(Lite(channels=16).state_dict(), other)
    assert "of another shape" in refused(other)
    torch.save([1, 2], other)
    assert "no named tensors" in refused(other)


def odd_tensors(like: torch.Tensor) -> dict[str, torch.Tensor]:
    return {
        "sparse": like.to_sparse(),
        "meta": like.to("meta"),
        "quantized": torch.quantize_per_tensor(like, 0.1, 0, torch.qint8),
        "nested": torch.nested.nested_tensor([like, like]),
        "float8_e4m3fn": like.to(torch.float8_e4m3fn),
        "complex64": like.to(torch.complex64),
        "bool": like.bool(),
    }


ODD = ("sparse", "meta", "quantized", "nested", "float8_e4m3fn", "complex64", "bool")


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.filterwarnings("ignore")
def test_tensors_that_are_not_plain_are_refused_in_one_line(tmp_path: Path, kind: str) -> None:
    state: dict[str, torch.Tensor] = Lite().state_dict()
    state["reconstruct.bias"] = odd_tensors(state["reconstruct.bias"])[kind]
    path = tmp_path / "odd.pth"
    torch.save(state, path)
    with pytest.raises(ModelError, match=f"holds reconstruct.bias as a {kind} tensor") as caught:
        weights.load_model("lite", path)
    assert "\n" not in str(caught.value)
    if kind in ("float8_e4m3fn", "complex64", "bool"):
        safetensors.torch.save_file(state, tmp_path / "odd.safetensors")
        with pytest.raises(ModelError, match=f"holds reconstruct.bias as a {kind} tensor"):
            weights.load_model("lite", tmp_path / "odd.safetensors")


@pytest.mark.parametrize(
    ("bias", "words"),
    [
        (torch.zeros(57, dtype=torch.int32), "1 of integers instead of floats, reconstruct.bias first"),
        (
            torch.full((57,), 1e300, dtype=torch.float64),
            "reconstruct.bias holds NaN, or values too large for float32",
        ),
    ],
)
def test_integers_and_numbers_beyond_float32_are_refused(tmp_path: Path, bias: torch.Tensor, words: str) -> None:
    state = Lite().state_dict()
    torch.save({**state, "reconstruct.bias": bias}, tmp_path / "odd.pth")
    with pytest.raises(ModelError, match=words):
        weights.load_model("lite", tmp_path / "odd.pth")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(
    ("content", "kind"),
    [
        ("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n", "a Git LFS pointer"),
        ('{"error": "Entry not found"}', "a page of JSON"),
        ('[\n {"error": 1}]', "a page of JSON"),
        ('<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "a page of XML"),
    ],
)
def test_what_servers_send_instead_of_weights_is_named(tmp_path: Path, content: str, kind: str, suffix: str) -> None:
    path = tmp_path / f"net{suffix}"
    path.write_text(content)
    with pytest.raises(ModelError, match=f"is {kind}"):
        weights.load_model("lite", path)
    with pytest.raises(http.DigestError, match=f"is {kind}"):
        sources.verify_file(path, sources.RemoteFile("net.pth", ()))


def test_a_folder_is_called_a_folder(vdeblur, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is a folder, not a checkpoint"):
        weights.load_model("lite", tmp_path)
    result = vdeblur("models", "import", tmp_path, "--as", "lite@mine")
    assert result.exit_code == ExitStatus.MODEL
    assert "is a folder, not a checkpoint" in result.stderr


def test_identity_has_no_weights(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    safetensors.torch.save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(ModelError, match="has no weights"):
        weights.load_model("identity", path)


def test_weights_that_nobody_has_checked_say_so(vdeblur) -> None:
    """SelfHVD's, of another paper than the model's."""
    shown = vdeblur("models", "show", "basicvsrpp@handheld").stdout
    assert "paper: Xu, Zhang, Fan, Wu, Zuo: SelfHVD" in shown
    assert "checks: not done yet, 1: it is a file, not Drive's page about its quota" in shown
    assert "checks" not in vdeblur("models", "show", "basicvsrpp@gopro").stdout
    listed = {
        row["weights"]: row
        for row in json.loads(vdeblur("models", "list", "--json").stdout)
        if row["model"] == "basicvsrpp"
    }
    assert listed["gopro"]["paper"].startswith("Chan, Zhou, Xu, Loy")
    assert listed["handheld"]["paper"].startswith("Xu, Zhang, Fan, Wu, Zuo")
