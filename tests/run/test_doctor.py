"""`vdeblur doctor`: healthy here, and ill where something is broken on purpose."""

import json
import socket
from pathlib import Path

import numpy
import pytest
import torch

import vdeblur as vdeblur_package
from vdeblur.errors import ExitStatus
from vdeblur.run import doctor


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise AssertionError("doctor touched the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def ill(vdeblur, name: str) -> tuple[int, dict]:
    """Give doctor's exit status and the check of this name."""
    result = vdeblur("doctor", "--json")
    report = json.loads(result.stdout)
    assert report["exit"] == result.exit_code
    return result.exit_code, next(check for check in report["checks"] if check["name"] == name)


def test_all_is_well(vdeblur) -> None:
    result = vdeblur("doctor")
    assert result.exit_code == 0, result.output
    assert "FAIL" not in result.stdout
    for group in ("versions", "devices", "codecs", "room", "caches", "settings", "self test"):
        assert f"\n{group}\n" in f"\n{result.stdout}"
    assert f"{Path(vdeblur_package.__file__).parent}\n" in result.stdout
    for line in ("libx264, yuv420p: writes and reads", "identity: bit-exact", "lite: restores on"):
        assert f"  ok       {line}" in result.stdout
    assert "all checks passed" in result.stdout.splitlines()[-1]


def test_json(vdeblur) -> None:
    report = json.loads(vdeblur("doctor", "--json").stdout)
    assert (report["v"], report["exit"]) == (1, 0)
    assert all(set(check) == {"group", "name", "found", "state", "hint", "status"} for check in report["checks"])
    versions = {check["name"]: check["found"] for check in report["checks"]}
    assert versions["torch"].split("+")[0] == torch.__version__.split("+")[0]


def test_settings_in_force_are_shown(vdeblur, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VDEBLUR_RUN_CRF", "20")
    (tmp_path / "vdeblur.toml").write_text("[run]\ncrf = 18\n")
    text = vdeblur("doctor").stdout
    assert f"file: {tmp_path / 'vdeblur.toml'}" in text
    assert "environment: VDEBLUR_RUN_CRF=20" in text


def test_a_missing_encoder(vdeblur, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "WELCOME", (("libx999", "yuv420p"),))
    status, check = ill(vdeblur, "libx999, yuv420p")
    assert (status, check["state"]) == (0, "warning")
    monkeypatch.setattr(doctor, "NEEDED", (("libx999", "yuv420p"),))
    status, check = ill(vdeblur, "libx999, yuv420p")
    assert (status, check["state"]) == (4, "fail")
    assert check["hint"]


def test_a_broken_registry(vdeblur, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "more.toml").write_text("[[[")
    monkeypatch.setenv("VDEBLUR_REGISTRY", str(tmp_path / "more.toml"))
    result = vdeblur("doctor")
    assert result.exit_code == 5
    assert "  FAIL     models: " in result.stdout
    assert "failed: models" in result.stderr


def test_a_gpu_that_does_not_answer(vdeblur, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object) -> None:
        raise RuntimeError("CUDA error: unspecified launch failure\nmore")

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "mem_get_info", broken)
    status, check = ill(vdeblur, "cuda:0")
    assert status == 6
    assert check["found"] == "RuntimeError: CUDA error: unspecified launch failure"


@pytest.mark.parametrize("model", ["identity", "lite"])
@pytest.mark.parametrize("damage", ["black", "lost frame"])
def test_a_machine_that_computes_wrongly(vdeblur, model: str, damage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = doctor._run

    def wrong(name: str, source: Path, folder: Path) -> numpy.ndarray:
        planes = right(name, source, folder)
        return planes if name != model else planes[:-1] if damage == "lost frame" else numpy.zeros_like(planes)

    monkeypatch.setattr(doctor, "_run", wrong)
    assert ill(vdeblur, model)[0] == ExitStatus.VERIFICATION


def test_a_network_that_does_nothing(vdeblur, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_run", lambda name, source, folder: doctor._planes(source))
    status, check = ill(vdeblur, "lite")
    assert (status, check["found"]) == (9, "RuntimeError: lite changed nothing")


def test_a_cache_that_cannot_be_written(vdeblur, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VDEBLUR_CACHE", "/dev/null/cache")
    status, check = ill(vdeblur, "weights")
    assert (status, check["state"]) == (0, "warning")
    assert "VDEBLUR_CACHE" in check["hint"]


def test_a_full_disk(vdeblur, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "LITTLE_DISK", 1e18)
    status, check = ill(vdeblur, "disk here")
    assert (status, check["state"]) == (4, "fail")
