"""Fixtures: the command line in this process, the independent ffmpeg, the shared footage."""

import gc
import os
from collections.abc import Iterator
from pathlib import Path

# Tests run in parallel on small frames: more threads would only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from click.testing import CliRunner, Result

from vdeblur.cli.main import main
from vdeblur.restore import processor

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"


@pytest.fixture(autouse=True)
def _keep_random_state() -> Iterator[None]:
    with torch.random.fork_rng():
        yield


@pytest.fixture(autouse=True)
def _freeze_survivors() -> Iterator[None]:
    """Exclude what outlives a test from garbage collection: `run` collects, and modules hold many objects (40 ms)."""
    yield
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write without waiting for the disk, which only a loss of power would show; the suite asks thousands of times."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture(autouse=True)
def _own_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Separate the tests from the user's options, cache and models."""
    for name in [name for name in os.environ if name.startswith("VDEBLUR_") and name != "VDEBLUR_REQUIRE_CUDA"]:
        monkeypatch.delenv(name)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "no-config"))
    monkeypatch.setenv("VDEBLUR_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="session", autouse=True)
def _same_precision() -> Iterator[None]:
    """Compute in float32 unless a test names the precision, whatever is faster on this processor."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(processor, "_speedup_of", lambda machine: 1.0)
        yield


@pytest.fixture
def vdeblur():
    """Return a function that runs the command line and returns click's result, with its exit_code."""

    def call(*arguments: object) -> Result:
        return CliRunner().invoke(main, [str(argument) for argument in arguments])

    return call


@pytest.fixture
def shared() -> Path:
    """The folder with real footage, which is not part of the repository."""
    if not SHARED.is_dir():
        pytest.skip("needs the folder shared/ with real footage beside this checkout")
    return SHARED


def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available() and os.environ.get("VDEBLUR_REQUIRE_CUDA") != "1":
        skip = pytest.mark.skip(reason="needs a CUDA device; VDEBLUR_REQUIRE_CUDA=1 makes its absence a failure")
        for item in items:
            if "cuda" in item.keywords:
                item.add_marker(skip)
