"""Networks that are fed views: a thread may look at the next frame while the current one is restored."""

import threading
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from vdeblur.networks.layers import Network
from vdeblur.networks.lite import Lite
from vdeblur.restore import streams, tiles


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


class Recalls(Network):
    """Restores a frame as the sum of its neighbours; where `fails_at` says, looking fails."""

    feeding = "view"
    looks_ahead = True

    def __init__(self, fails_at: int | None = None) -> None:
        super().__init__()
        self.fails_at, self.looks, self.threads = fails_at, 0, set[str]()

    def look(self, previous: Tensor | None, frame: Tensor, following: Tensor | None) -> tuple[Tensor, Tensor]:
        self.threads.add(threading.current_thread().name)
        if self.looks == self.fails_at:
            raise MemoryError("out of memory")
        self.looks += 1
        zero = torch.zeros_like(frame)
        return zero if previous is None else previous, zero if following is None else following

    def difference(self, previous: Tensor, following: Tensor) -> Tensor:
        return previous + following


def restore(network: Network, frames: Tensor) -> list[Tensor]:
    plan = tiles.cut_tiles(frames.shape[2], frames.shape[3], None, 0, tiles.TileNeeds.of(network))
    return list(streams.stream(network, iter([frame[None] for frame in frames]), plan))


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("count", [0, 1, 2, 3, 5])
def test_each_frame_meets_its_own_neighbours(count: int) -> None:
    frames = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    network = Recalls()
    found = restore(network, frames)
    assert len(found) == count
    for index, frame in enumerate(found):
        expected = frames[max(index - 1, 0) : index + 2].sum(0, keepdim=True)
        torch.testing.assert_close(frame, expected)
    assert len(network.threads) == (count > 0)
    assert all(name.startswith("look") for name in network.threads), "in a thread of its own"
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("look")]


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("inference", [True, False])
def test_lite_restores_the_same(inference: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    network = Lite(16, 1).eval().requires_grad_(False)
    torch.nn.init.normal_(network.reconstruct.weight, std=0.02)
    frames = torch.rand(4, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode(inference):
        ahead = restore(network, frames)
        monkeypatch.setattr(Lite, "looks_ahead", False)
        in_turn = restore(network, frames)
    assert all(torch.equal(a, b) for a, b in zip(ahead, in_turn, strict=True))
    assert any(not torch.equal(a, frame[None]) for a, frame in zip(ahead, frames, strict=True))
    assert all(frame.is_inference() is inference for frame in ahead)


@pytest.mark.usefixtures("two_threads")
def test_what_fails_while_looking_comes_at_its_frame() -> None:
    frames = torch.rand(4, 3, 8, 8)
    network = Recalls(fails_at=2)
    plan = tiles.cut_tiles(8, 8, None, 0, tiles.TileNeeds.of(network))
    stream = streams.stream(network, iter(frames.split(1)), plan)
    next(stream)
    next(stream)
    with pytest.raises(MemoryError):
        next(stream)


@pytest.mark.usefixtures("two_threads")
def test_frames_before_a_failing_one_are_restored() -> None:
    def frames() -> Iterator[Tensor]:
        for _ in range(3):
            yield torch.rand(1, 3, 8, 8)
        raise OSError("the disk is gone")

    found: list[Tensor] = []
    network = Recalls()
    stream = streams.stream(network, frames(), tiles.cut_tiles(8, 8, None, 0, tiles.TileNeeds.of(network)))
    with pytest.raises(OSError, match="the disk is gone"):
        found.extend(stream)
    assert len(found) == 2, "the third needs the fourth"


@pytest.mark.usefixtures("two_threads")
def test_a_stream_that_is_closed_early_leaves_no_thread() -> None:
    network = Recalls()
    plan = tiles.cut_tiles(8, 8, None, 0, tiles.TileNeeds.of(network))
    stream = iter(streams.stream(network, iter(torch.rand(5, 3, 8, 8).split(1)), plan))
    next(stream)
    stream.close()  # type: ignore[attr-defined]  # a generator
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("look")]


def test_one_thread_looks_in_turn() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        network = Recalls()
        restore(network, torch.rand(3, 3, 8, 8))
    finally:
        torch.set_num_threads(before)
    assert network.threads == {threading.current_thread().name}
