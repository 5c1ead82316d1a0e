"""Devices that are missing, busy, too small or lost; free memory, and plans that fit into it."""

import functools
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests import clips
from vdeblur.errors import DeviceError, ExitStatus
from vdeblur.models import choice, registry
from vdeblur.networks import NETWORKS
from vdeblur.networks.layers import Network
from vdeblur.restore import device, memory, plan, streams
from vdeblur.restore.tiles import TilePlan
from vdeblur.run import loading
from vdeblur.settings import Settings

CPU = torch.device("cpu")


@functools.cache
def unfilled(name: str) -> Network:
    """Return a network on the meta device, for its declared facts."""
    with torch.device("meta"):
        return NETWORKS[name]()


@pytest.fixture
def busy_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulate a CUDA device that is present, but fails at every use."""

    def ones(*size: int, device: torch.device) -> torch.Tensor:
        if device.type == "cuda":
            raise torch.AcceleratorError("CUDA error: device busy or unavailable\nSearch for `cudaErrorDevices'...")
        return original(*size, device=device)

    original = torch.ones
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch, "ones", ones)


@pytest.mark.usefixtures("busy_gpu")
def test_auto_passes_over_a_gpu_that_fails_and_says_why() -> None:
    reasons: list[str] = []
    assert device.choose_device("auto", reasons.append) == CPU
    assert reasons == ["cuda is present, but not usable: CUDA error: device busy or unavailable"]


@pytest.mark.usefixtures("busy_gpu")
@pytest.mark.parametrize("name", ["cuda", "cuda:0"])
def test_a_gpu_asked_for_by_name_that_fails_is_an_error(name: str) -> None:
    with pytest.raises(DeviceError, match=f"{name} is present, but not usable: CUDA error: device busy") as caught:
        device.choose_device(name)
    assert caught.value.status == ExitStatus.DEVICE


@pytest.mark.parametrize("name", ["cuda:99", "xpu:99", "abacus"])
def test_a_missing_device_asked_for_by_name_is_an_error(vdeblur, tmp_path: Path, name: str) -> None:
    source = clips.make(tmp_path / "in.mkv", frames=1)
    result = vdeblur("run", source, tmp_path / "out.mkv", "-m", "identity", "-d", name)
    assert result.exit_code == ExitStatus.DEVICE
    assert re.search("there is no device|unknown device", result.output)


@pytest.mark.usefixtures("busy_gpu")
def test_run_falls_back_to_the_cpu_and_says_how_long_it_takes(
    vdeblur, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame = choice.seconds_per_frame(registry.find_entry("lite"), 48, 64, 1.0)  # on a machine that slow
    monkeypatch.setattr(choice, "multiply_adds_per_second", lambda chosen, precision: frame / 7)
    source = clips.make(tmp_path / "in.mkv", frames=2)
    result = vdeblur("run", source, tmp_path / "out.mkv")
    assert result.exit_code == 0, result.output
    assert "warning: cuda is present, but not usable: CUDA error: device busy or unavailable; " in result.output
    assert "computing on cpu instead, about 14 seconds for this file" in result.output


@pytest.mark.parametrize("asked", ["auto", "cuda"])
def test_a_gpu_without_room_for_the_network(monkeypatch: pytest.MonkeyPatch, asked: str) -> None:
    """`auto` falls back to the CPU, with the network's loaded weights."""
    network = NETWORKS["lite"]().eval()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    move = Network.to

    def to(self: Network, *arguments: object, **named: object) -> object:
        if arguments and getattr(arguments[0], "type", "") == "cuda":
            self.half()  # half converted when it fails
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB. GPU 0 has...")
        return move(self, *arguments, **named)  # type: ignore[call-overload]

    monkeypatch.setattr(Network, "to", to)
    monkeypatch.setattr(choice, "multiply_adds_per_second", lambda chosen, precision: 1e9)
    settings, entry = Settings(device=asked, precision="fp32"), registry.find_entry("lite")

    def settle() -> loading.Placed:
        return loading.settle(network, entry, torch.device("cuda"), settings, [], (720, 1280, 600))

    if asked != "auto":
        with pytest.raises(DeviceError, match="cuda cannot take the network: CUDA out of memory"):
            settle()
        return
    placed = settle()
    assert (placed.device, placed.precision) == (CPU, "fp32")
    assert placed.fallback is not None
    assert "cuda cannot take the network: CUDA out of memory" in placed.fallback
    assert (
        "computing on cpu instead, about 14.1 hours for this file" in placed.fallback
    )  # 3e9 * 14.06 * 600 * 2 / 1e9 s
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_the_float32_copy_is_the_network_as_it_was_loaded() -> None:
    for name in ("lite", "dstnet"):  # dstnet has buffers, too
        network = NETWORKS[name]().eval()
        before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
        half = device.place(network, CPU, "fp16")
        float32 = device.float32_copy(half, CPU)
        assert all(torch.equal(tensor, before[key]) for key, tensor in float32.state_dict().items())
        assert all(tensor.dtype == torch.float16 for tensor in half.parameters())
        assert float32.float32_weights is None
        assert half.float32_weights is not None
    assert device.place(NETWORKS["lite"](), CPU, "fp32").float32_weights is None, "nothing is kept twice"


def test_lack_of_memory_and_lost_devices_are_told_apart() -> None:
    lacking: list[BaseException] = [torch.OutOfMemoryError("CUDA out of memory."), MemoryError()]
    lacking += [
        RuntimeError(text) for text in ("MPS backend out of memory (MPS allocated: 5 GB)", "std::bad allocation")
    ]
    lacking += [RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")]
    assert all(memory.is_lacking(error) for error in lacking)
    lost = RuntimeError("CUDA error: an illegal memory access was encountered")
    assert device.is_lost(lost)
    assert not memory.is_lacking(lost)
    for other in (RuntimeError("The size of tensor a (3) must match"), ValueError("CUDA error: mine")):
        assert not device.is_lost(other)
        assert not memory.is_lacking(other)


def test_limits_of_control_groups_count(tmp_path: Path) -> None:
    """Version 2: the group above has the limit; version 1: a container sees its own group as the topmost."""
    (tmp_path / "proc/self").mkdir(parents=True)
    inner = tmp_path / "sys/fs/cgroup/work.slice/job"
    inner.mkdir(parents=True)
    for group, most, now, cached in ((inner, "max", 300, 0), (inner.parent, "5000", 2000, 700)):
        (group / "memory.max").write_text(f"{most}\n")
        (group / "memory.current").write_text(f"{now}\n")
        (group / "memory.stat").write_text(f"anon 1\ninactive_file {cached}\n")
    (tmp_path / "proc/self/cgroup").write_text("0::/work.slice/job\n")
    assert list(memory.control_groups(tmp_path)) == [(5000, 1300)]

    (tmp_path / "proc/self/cgroup").write_text("5:cpu,cpuacct:/x\n4:memory:/docker/abc\n0::/\n")
    old = tmp_path / "sys/fs/cgroup/memory"
    old.mkdir()
    (old / "memory.limit_in_bytes").write_text("9000\n")
    (old / "memory.usage_in_bytes").write_text("4000\n")
    (old / "memory.stat").write_text("inactive_file 1\ntotal_inactive_file 1000\n")
    assert list(memory.control_groups(tmp_path)) == [(9000, 3000)]
    assert list(memory.control_groups(tmp_path / "elsewhere")) == []


def test_this_machine_has_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 1e7 < memory.free_bytes(CPU) <= memory.total_bytes(CPU) < 1e14
    monkeypatch.setattr(memory, "control_groups", lambda: iter([(10**9, 4 * 10**8)]))
    assert memory.free_bytes(CPU) == 6 * 10**8
    assert memory.total_bytes(CPU) == 10**9


def test_pytorchs_cache_counts_as_free(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = {"mem_get_info": (100, 1000), "memory_reserved": 70, "memory_allocated": 30}
    for name, value in kept.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    assert memory.free_bytes(torch.device("cuda")) == 140
    assert memory.total_bytes(torch.device("cuda")) == 1000


def planned(
    name: str, monkeypatch: pytest.MonkeyPatch, gigabytes: float, kind: str = "cpu", **told: object
) -> TilePlan:
    """Plan for 1280x720 with this much free memory."""
    monkeypatch.setattr(memory, "free_bytes", lambda device: gigabytes * 1e9)
    monkeypatch.setattr(memory, "total_bytes", lambda device: 2 * gigabytes * 1e9)
    return plan.plan_tiles(Settings(**told), 720, 1280, unfilled(name), torch.device(kind))


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_plans_fit_into_what_is_free(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    network = unfilled(name)
    before = math.inf
    for gigabytes in (64, 16, 8, 4, 2, 1, 0.5):
        found = planned(name, monkeypatch, gigabytes)
        needed = plan.needed_bytes(network, found)
        assert needed <= before, "less memory never means a larger plan"
        least = plan.needed_bytes(network, planned(name, monkeypatch, 0))
        assert needed <= max(gigabytes * 1e9 * plan.CPU_SHARE, plan.NEARLY * least)
        before = needed
        if gigabytes == 64 and network.best_tile is None:
            assert found.count == 1, "a frame of this size stays whole where there is room"
            assert found.window == streams.WINDOWS.get(network.feeding)


@pytest.mark.parametrize("name", sorted(NETWORKS.keys() - {"identity"}))
def test_every_network_says_what_memory_it_takes(name: str) -> None:
    network = unfilled(name)
    for cost in (network.memory, network.half_memory):
        assert cost.tile + cost.frame > 100, "bytes per pixel"
        assert (cost.tile_held + cost.frame_held > 0) == (network.feeding in streams.WINDOWS)


def test_half_precision_takes_less(monkeypatch: pytest.MonkeyPatch) -> None:
    network = NETWORKS["spn"]()
    whole = planned("spn", monkeypatch, 64)
    in_full = plan.needed_bytes(network, whole)
    assert plan.needed_bytes(device.place(network, CPU, "bf16"), whole) < in_full


def test_a_gpu_stacks_tiles_as_memory_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    stacks = [planned("lite", monkeypatch, gigabytes, "cuda", tile="256").at_once for gigabytes in (8, 0.6, 0.45)]
    assert stacks[0] == plan.STACK
    assert stacks == sorted(stacks, reverse=True)
    assert stacks[-1] < plan.STACK


def test_a_deterministic_plan_does_not_depend_on_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    found = planned("dstnet", monkeypatch, 8, deterministic=True)
    monkeypatch.setattr(memory, "free_bytes", lambda device: 0)
    again = plan.plan_tiles(Settings(deterministic=True), 720, 1280, unfilled("dstnet"), CPU)
    assert again == found
    assert again != planned("dstnet", monkeypatch, 0)


@pytest.mark.parametrize("size", [(4320, 7680), (10000, 1), (1, 10000), (10000, 40)])
@pytest.mark.parametrize("name", ["lite", "dstnet", "flow-rnn"])
def test_very_large_frames_and_strips_can_be_planned(
    monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], name: str
) -> None:
    network = unfilled(name)
    for gigabytes in (0, 4, 64):
        monkeypatch.setattr(memory, "free_bytes", lambda device, gigabytes=gigabytes: gigabytes * 1e9)
        found: TilePlan | None = plan.plan_tiles(Settings(), *size, network, CPU)
        while found is not None:  # every step is smaller, and the steps end
            next_one = plan.smaller(found, network.overlap, network)
            if next_one is not None:
                assert plan.needed_bytes(network, next_one) < plan.needed_bytes(network, found)
            found = next_one


def test_a_shorter_window_keeps_a_share_of_look_ahead() -> None:
    frames = [torch.rand(1, 3, 16, 16) for _ in range(23)]
    network = NETWORKS["dstnet-plus"](width=8, blocks=1, filter_blocks=1).eval()
    whole = plan.plan_tiles(Settings(), 16, 16, network, CPU)
    with torch.inference_mode():
        expected = list(streams.stream(network, iter(frames), whole))
        short = list(streams.stream(network, iter(frames), replace(whole, window=plan.LEAST_WINDOW)))
    assert len(short) == len(expected) == 23
    assert any(not torch.equal(a, b) for a, b in zip(short, expected, strict=True)), "it is another window"


@pytest.fixture
def _undone() -> Iterator[None]:
    cudnn = torch.backends.cudnn
    filling: bool = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    before = cudnn.benchmark, cudnn.deterministic, filling
    yield
    torch.use_deterministic_algorithms(False)
    cudnn.benchmark, cudnn.deterministic, torch.utils.deterministic.fill_uninitialized_memory = before  # type: ignore[attr-defined]


@pytest.mark.usefixtures("_undone")
def test_deterministic_algorithms_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    device.make_deterministic()
    assert torch.are_deterministic_algorithms_enabled()
    assert torch.is_deterministic_algorithms_warn_only_enabled()
    assert torch.backends.cudnn.deterministic
    assert not torch.backends.cudnn.benchmark


@pytest.mark.cuda
def test_cuda_has_memory_and_works() -> None:
    cuda = torch.device("cuda")
    assert device.fault_of(cuda) is None
    assert 0 < memory.free_bytes(cuda) <= memory.total_bytes(cuda)


@pytest.mark.cuda
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_cuda_restores_a_file_as_the_cpu_does(vdeblur, tmp_path: Path, precision: str) -> None:
    source = clips.make(tmp_path / "in.mkv", size="160x120", frames=12)
    for name in ("cpu", "cuda"):
        options = ("-d", name, "-p", "fp32" if name == "cpu" else precision, "--lossless")
        assert vdeblur("run", source, tmp_path / f"{name}.mkv", *options).exit_code == 0
    assert clips.psnr(clips.rgb(tmp_path / "cpu.mkv"), clips.rgb(tmp_path / "cuda.mkv")) > 48


@pytest.mark.parametrize("name", sorted(NETWORKS))
@pytest.mark.parametrize("overlap", [0, 64, 128, 192])
def test_every_overlap_has_a_plan(name: str, overlap: int) -> None:
    with torch.device("meta"):
        network = NETWORKS[name]()
    settings = Settings(tile_overlap=overlap)
    assert plan.plan_tiles(settings, 720, 1280, network, torch.device("cpu")).tile
