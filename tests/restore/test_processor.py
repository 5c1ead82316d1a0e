"""When `auto` means bfloat16 on a CPU: measured once, kept in the cache, measured again where that is unreadable."""

import json
import math
from pathlib import Path
from types import MappingProxyType, SimpleNamespace

import pytest
import torch
from torch.nn import functional

from tests import clips
from vdeblur.networks import NETWORKS
from vdeblur.restore import device, processor
from vdeblur.run import doctor

CPU = torch.device("cpu")
REMEMBERING = processor._speedup_of  # which conftest.py replaces
TORTOISE = {"cpu_name": "Tortoise", "avx512_bf16": True}


class Measure:
    """A measurement that returns `speedup` and counts how often it is asked."""

    def __init__(self) -> None:
        self.speedup, self.count = 1.7, 0

    def __call__(self) -> float:
        self.count += 1
        return self.speedup


@pytest.fixture
def measure(monkeypatch: pytest.MonkeyPatch) -> Measure:
    """A processor with bfloat16 instructions that nothing is known of."""
    fake = Measure()
    monkeypatch.setattr(processor, "measure_bf16_speedup", fake)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: MappingProxyType(TORTOISE))
    for name in processor.LIMITS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(processor, "_speedup_of", REMEMBERING.__wrapped__)  # as in a new process each time
    return fake


def kept(tmp_path: Path) -> Path:
    (path,) = (tmp_path / "cache" / "processors").iterdir()
    return path


@pytest.mark.parametrize(("speedup", "precision"), [(1.7, "bf16"), (1.1, "bf16"), (1.09, "fp32"), (0.6, "fp32")])
def test_auto_is_bf16_where_it_is_clearly_faster(measure: Measure, speedup: float, precision: str) -> None:
    measure.speedup = speedup
    assert device.choose_precision("auto", CPU, NETWORKS["lite"]) == precision
    assert device.choose_precision("auto", CPU, NETWORKS["nafnet"]) == "fp32", "it loses quality in bf16"


def test_nothing_is_measured_where_the_answer_is_known(measure: Measure, monkeypatch: pytest.MonkeyPatch) -> None:
    assert device.choose_precision("bf16", CPU, NETWORKS["lite"]) == "bf16"
    assert device.choose_precision("auto", torch.device("cuda"), NETWORKS["lite"]) == "fp16"
    assert device.choose_precision("auto", CPU, NETWORKS["nafnet"]) == "fp32"
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"cpu_name": "Tortoise", "avx512_bf16": False})
    assert processor.bf16_speedup() is None
    assert device.choose_precision("auto", CPU, NETWORKS["lite"]) == "fp32"
    assert measure.count == 0


def test_it_is_measured_once(measure: Measure, tmp_path: Path) -> None:
    assert processor.bf16_speedup() == 1.7
    measure.speedup = 0.5
    assert processor.bf16_speedup() == 1.7, "read from the file, since this function has no memory here"
    assert measure.count == 1
    assert json.loads(kept(tmp_path).read_text())["bf16_speedup"] == 1.7


def test_a_process_reads_the_file_once(measure: Measure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor, "_speedup_of", REMEMBERING)
    try:
        processor.bf16_speedup()
        kept(tmp_path).unlink()
        assert processor.bf16_speedup() == 1.7
    finally:
        REMEMBERING.cache_clear()
    assert measure.count == 1


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"[" * 100_000,
        b"[]",
        b'{"format": 1, "bf16_speedup": 9.0}',
        b'{"format": 1, "machine": {"processor": "another"}, "bf16_speedup": 9.0}',
    ],
)
def test_an_unreadable_or_foreign_file_is_measured_again(measure: Measure, tmp_path: Path, content: bytes) -> None:
    processor.bf16_speedup()
    right = kept(tmp_path).read_bytes()
    kept(tmp_path).write_bytes(content)
    assert processor.bf16_speedup() == 1.7
    assert measure.count == 2
    assert kept(tmp_path).read_bytes() == right, "and written again"


@pytest.mark.parametrize("value", ["true", "NaN", "Infinity", "-1.0", '"1.7"', "null"])
def test_a_speedup_that_is_none_is_measured_again(measure: Measure, tmp_path: Path, value: str) -> None:
    processor.bf16_speedup()
    kept(tmp_path).write_text(kept(tmp_path).read_text().replace("1.7", value))
    assert processor.bf16_speedup() == 1.7
    assert measure.count == 2


@pytest.mark.parametrize("folder", ["/dev/null/cache", "~nobody-of-this-name/cache"])
def test_a_cache_that_cannot_be_written_is_no_error(
    measure: Measure, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    monkeypatch.setenv("VDEBLUR_CACHE", folder)
    assert [processor.bf16_speedup(), processor.bf16_speedup()] == [1.7, 1.7]
    assert measure.count == 2


def test_other_circumstances_are_measured_for_themselves(measure: Measure, monkeypatch: pytest.MonkeyPatch) -> None:
    processor.bf16_speedup()
    for change in (
        lambda: monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2"),
        lambda: monkeypatch.setattr(torch, "__version__", "99.0"),
        lambda: monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"cpu_name": "Hare", "amx_bf16": True}),
    ):
        change()
        before = measure.count
        processor.bf16_speedup()
        processor.bf16_speedup()
        assert measure.count == before + 1
    monkeypatch.undo()


def test_the_best_round_of_each_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Float32 takes 9, 3, 4, 3 and 5 s, bfloat16 8, 2, 2, 2 and 1.5 s."""
    readings: list[float] = [0.0]
    for pair in zip((9, 3, 4, 3, 5), (8, 2, 2, 2, 1.5), strict=True):
        for seconds in pair:
            readings += [readings[-1] + seconds, readings[-1] + seconds]
    clock = iter(readings)
    monkeypatch.setattr(processor, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    before = torch.get_rng_state()
    assert processor.measure_bf16_speedup() == 2.0
    assert torch.equal(torch.get_rng_state(), before), "the caller's random numbers stay the same"


def test_this_machine_is_measured_in_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[int] = []
    convolve = functional.conv2d

    def watched(x: torch.Tensor, weight: torch.Tensor, padding: int) -> torch.Tensor:
        threads.append(torch.get_num_threads())
        return convolve(x, weight, padding=padding)

    monkeypatch.setattr(functional, "conv2d", watched)
    before = torch.get_num_threads()
    speedup = processor.measure_bf16_speedup()
    assert math.isfinite(speedup)
    assert speedup > 0
    assert set(threads) == {1}
    assert torch.get_num_threads() == before


def test_doctor_says_what_was_measured(measure: Measure, monkeypatch: pytest.MonkeyPatch) -> None:
    measure.speedup = 0.62
    assert doctor._auto_precision() == "auto precision fp32: in bf16 a convolution is 0.62 times as fast as in fp32"
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"cpu_name": "Tortoise"})
    assert doctor._auto_precision() == "auto precision fp32, since there are no bfloat16 instructions"


def test_a_dry_run_keeps_nothing(measure: Measure, vdeblur, tmp_path: Path) -> None:
    """D3: a dry run wrote the speed that it had measured into the cache."""
    source = clips.make(tmp_path / "in.mp4", frames=4, codec=("-c:v", "libx264"))
    before = set(tmp_path.rglob("*"))
    assert vdeblur("run", source, tmp_path / "out.mp4", "-m", "lite", "--dry-run").exit_code == 0
    assert measure.count >= 1
    assert set(tmp_path.rglob("*")) == before
    assert vdeblur("run", source, tmp_path / "out.mp4", "-m", "identity").exit_code == 0
    assert json.loads(kept(tmp_path).read_text())["bf16_speedup"] == 1.7
