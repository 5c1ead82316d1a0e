"""The guard: where a network clearly fails, blocks keep the input; what a network may do is left alone."""

import json
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy
import pytest
import torch
from torch import Tensor

import vdeblur as api
from tests import clips
from vdeblur.errors import ExitStatus
from vdeblur.frame import Frame, plane_array
from vdeblur.models import weights
from vdeblur.networks.layers import Network
from vdeblur.restore import device, plan
from vdeblur.restore.area import Area
from vdeblur.restore.clip import restored_pictures
from vdeblur.restore.guard import Guard
from vdeblur.restore.restorer import Restorer
from vdeblur.settings import Settings

CPU = torch.device("cpu")
HEIGHT, WIDTH = 180, 320
Fault = Callable[[int, tuple[int, int]], Tensor]  # takes a frame's number and its size; what the network adds to it


class Failing(Network):
    """Brightens frames by 8 codes, and adds a fault to them."""

    feeding = "frame"
    overlap, multiple = 16, 4

    def __init__(self, fault: Fault) -> None:
        super().__init__()
        self.fault, self.seen = fault, 0
        self.weight = torch.nn.Parameter(torch.tensor(8 / 255))

    def forward(self, frame: Tensor) -> Tensor:
        number, self.seen = self.seen, self.seen + 1
        return frame + self.weight.float() + self.fault(number, (frame.shape[2], frame.shape[3]))


class Diverging(Network):
    """Adds its state, which grows from frame to frame."""

    feeding = "recurrent"

    def align(self, restored: Tensor, current: Tensor, seen: Tensor | None) -> tuple[Tensor, Tensor]:
        state = torch.full((1, 3, 1, 1), 4 / 255) if seen is None else seen * 2
        return restored * 0 + state, state

    def forward(self, aligned: Tensor, previous: Tensor, current: Tensor, following: Tensor) -> Tensor:
        return current + aligned * current.new_tensor([1, -1, 1]).view(1, 3, 1, 1)


def frames(count: int, height: int = HEIGHT, width: int = WIDTH, codes: tuple[int, ...] = ()) -> Iterator[Frame]:
    """Yield RGB frames of a smooth texture, or of one colour."""
    for index in range(count):
        picture = av.VideoFrame(width, height, "gbrp")
        waves = numpy.sin(numpy.mgrid[:height, :width].sum(0) / 9 + index) * 60 + 120
        for place, plane in enumerate((2, 0, 1)):  # R, G, B
            plane_array(picture, plane)[:] = codes[place] if codes else waves
        yield Frame(picture, index, Fraction(1, 25))


def run(network: Network, source: list[Frame], **given: object) -> tuple[list[Frame], numpy.ndarray]:
    """Restore frames; return them, and how they changed, int (T, H, W, 3)."""
    settings = Settings(scene_detect=False, **{"tile": "none", "guard": True, **given})
    size = (source[0].picture.height, source[0].picture.width)
    restorer = Restorer(network, plan.plan_tiles(settings, *size, network, CPU), CPU, settings)
    done = list(restorer.restore(iter(source)))
    assert [frame.pts for frame in done] == list(range(len(source)))
    pictures = [[frame.picture.to_ndarray(format="rgb24") for frame in part] for part in (done, source)]
    return done, numpy.stack(pictures[0]).astype(int) - numpy.stack(pictures[1])


def mosaic(size: tuple[int, int], codes: float, cell: int) -> Tensor:
    """Return cells of random colours: 1x3xHxW, each channel brighter or darker by so many codes."""
    signs = torch.rand(3, -(-size[0] // cell), -(-size[1] // cell), generator=torch.Generator().manual_seed(cell))
    cells = (signs.round() * 2 - 1) * codes / 255
    return cells.repeat_interleave(cell, 1).repeat_interleave(cell, 2)[None, :, : size[0], : size[1]]


@pytest.mark.parametrize(("codes", "cell"), [(40, 2), (40, 8), (80, 2), (80, 8)])
@pytest.mark.parametrize("given", [{}, {"tile": "128"}, {"precision": "fp16"}], ids=["whole", "tiles", "half"])
def test_mosaics_are_caught(codes: int, cell: int, given: dict[str, str]) -> None:
    def fault(number: int, size: tuple[int, int]) -> Tensor:
        spoilt = number // (1 if "tile" not in given else 6) == 1  # 6 tiles a frame
        return mosaic(size, codes, cell) if spoilt else torch.zeros(1, 3, *size)

    precision = given.get("precision", "fp32")
    done, change = run(device.place(Failing(fault), CPU, precision), list(frames(3)), **given)
    assert [frame.is_guarded for frame in done] == [False, True, False]
    assert not change[1].any(), "a frame of which more than a quarter failed stays as it was"
    assert (change[[0, 2]] == 8).all(), "other frames are restored"
    free, unguarded = run(device.place(Failing(fault), CPU, precision), list(frames(3)), guard=False, **given)
    assert not any(frame.is_guarded for frame in free)
    assert unguarded[1].std() > codes / 2


@pytest.mark.parametrize("light", [0.9, -3.0])
def test_a_spot_is_kept_with_its_neighbours_and_a_ramp(light: float) -> None:
    def fault(number: int, size: tuple[int, int]) -> Tensor:
        spot = torch.zeros(1, 3, *size)
        spot[..., 97:100, 142:147] = light * 8 if light > 0 else light  # too bright as a mean, or beyond all pictures
        return spot

    done, change = run(Failing(fault), list(frames(1)))
    assert done[0].is_guarded
    kept = (change[0] == 0).all(2)
    # Blocks are 15x15 or 16; the spot's is in row 6 and column 9, lines 90 to 104 and columns 137 to 151.
    rows = numpy.flatnonzero(kept.any(1))
    assert 75 - 1 <= rows[0] <= 75 <= 119 <= rows[-1] <= 120
    assert kept[75:120, 125:160].all()
    assert (change[0][:, 200:] == 8).all(), "the rest is restored"
    ramp = change[0][98, 160:180, 0]
    assert (numpy.diff(ramp) >= 0).all(), "no edge is visible"
    assert set(ramp) >= {2, 4, 6, 8}


def test_failures_outside_of_a_region_do_not_count() -> None:
    def fault(number: int, size: tuple[int, int]) -> Tensor:
        spot = torch.zeros(1, 3, *size)
        spot[..., :12, :] = 0.9  # at the edge of what the network gets, 16 pixels around the region
        return spot

    source, network, settings = list(frames(1)), Failing(fault), Settings(tile="none")
    wanted = torch.zeros(HEIGHT, WIDTH)
    wanted[60:120, 100:200] = 1
    area = Area.of(wanted, network, network.overlap)
    planned = plan.plan_tiles(settings, *area.size, network, CPU)
    (done,) = Restorer(network, planned, CPU, settings, area=area).restore(iter(source))
    assert not done.is_guarded
    change = done.picture.to_ndarray(format="rgb24").astype(int) - source[0].picture.to_ndarray(format="rgb24")
    assert (change[70:110, 110:190] == 8).all()
    assert not change[:60].any()


@pytest.mark.cuda
def test_cuda_guards_as_the_cpu_does() -> None:
    def fault(number: int, size: tuple[int, int]) -> Tensor:
        corner = mosaic(size, 80, 2)
        corner[..., size[0] // 4 :, :] = 0
        return corner if number == 1 else torch.zeros(1, 3, *size)

    cuda = torch.device("cuda")
    expected, change = run(Failing(fault), list(frames(3)))
    network = device.place(Failing(lambda number, size: fault(number, size).to(cuda)), cuda, "fp32")
    planned = plan.plan_tiles(Settings(tile="none"), HEIGHT, WIDTH, network, cuda)
    done = list(Restorer(network, planned, cuda, Settings(tile="none", scene_detect=False)).restore(frames(3)))
    assert [frame.is_guarded for frame in done] == [frame.is_guarded for frame in expected] == [False, True, False]
    for ours, theirs in zip(done, expected, strict=True):
        both = [frame.picture.to_ndarray(format="rgb24").astype(int) for frame in (ours, theirs)]
        assert abs(both[0] - both[1]).max() <= 1
    assert change[1].any()


def test_a_state_that_runs_away_is_forgotten() -> None:
    done, change = run(Diverging(), list(frames(14)))
    guarded = [frame.is_guarded for frame in done]
    assert guarded[:7] == [False] * 3 + [True] * 3 + [False], "two frames in a row, and the one read ahead; then afresh"
    assert not change[3:6].any()
    assert abs(change[6]).max() == 4, "a new state"
    assert abs(change).max() <= 16


def test_a_network_without_a_state_keeps_its_neighbours() -> None:
    """There is nothing to forget after frames that failed."""
    seen: list[tuple[bool, bool]] = []

    class Neighbours(Network):
        feeding = "neighbours"

        def forward(self, previous: Tensor | None, frame: Tensor, following: Tensor | None) -> Tensor:
            seen.append((previous is not None, following is not None))
            return frame + 0.4 * (len(seen) in (3, 4))

    done, _ = run(Neighbours(), list(frames(7)))
    assert [frame.is_guarded for frame in done] == [number in (2, 3) for number in range(7)]
    assert seen == [(number > 0, number < 6) for number in range(7)]


def test_garbage_of_a_flat_frame_is_caught() -> None:
    """NAFNet's issue 83: any size of one flat colour (33, 25, 23)."""

    def checks(number: int, size: tuple[int, int]) -> Tensor:
        board = (torch.arange(size[0])[:, None] // 8 + torch.arange(size[1]) // 8) % 2 * 2.0 - 1
        return torch.stack((board, -board, board))[None] * 0.2

    done, change = run(Failing(checks), list(frames(1, codes=(33, 25, 23))))
    assert done[0].is_guarded
    assert not change.any()


@pytest.mark.parametrize("size", [(1, 1), (7, 2), (16, 200), (95, 131), (96, 96), (97, 131)])
def test_frames_of_any_size(size: tuple[int, int]) -> None:
    def gray(number: int, size: tuple[int, int]) -> Tensor:
        return torch.full((1, 3, *size), 0.0 if number % 2 else 0.3)

    done, change = run(Failing(gray), list(frames(2, *size)))
    is_judged = min(size) >= 96
    assert [frame.is_guarded for frame in done] == [is_judged, False]
    assert change[0].any() != is_judged
    assert (change[1] == 8).all()
    blocks = Guard.of(*size, min(size))
    for edges, side in zip((blocks.rows, blocks.columns), size, strict=True):
        widths = numpy.diff(edges)
        assert edges[-1] == side
        assert widths.min() >= min(side, 15)
    weights_of_one = blocks.weights(torch.zeros(len(blocks.rows) - 1, len(blocks.columns) - 1, dtype=torch.bool))
    assert weights_of_one is not None
    torch.testing.assert_close(weights_of_one, torch.ones(size))


def read(path: Path, count: int | None = None) -> list[Tensor]:
    with api.open(path, frames=count) as video:
        return [frame.rgb() for frame in video]


def worst(blurry: list[Tensor], restored: list[Tensor]) -> tuple[int, float, float]:
    """Return the number of frames in which blocks failed, and the largest means of light and chroma in codes."""
    count, light, chroma = 0, 0.0, 0.0
    for before, after in zip(blurry, restored, strict=True):
        height, width = before.shape[1:]
        blocks = Guard.of(height, width, min(height, width))
        means = blocks.measure(after - before)
        lowest, highest = after.aminmax()
        count += bool(blocks.failed(means, after, float(lowest), float(highest)).any())
        light, chroma = max(light, float(means[:3].abs().max()) * 255), max(chroma, float(means[3].max()) * 255)
    return count, light, chroma


@pytest.mark.parametrize("scene", ["reds_alley", "reds_market", "reds_wall"])
def test_a_perfect_restorer_raises_no_alarm(shared: Path, scene: str) -> None:
    folder = shared / "data" / "pairs" / scene
    count, light, chroma = worst(read(folder / "blur"), read(folder / "sharp"))
    assert count == 0
    assert 24 < light < 34, "and not by far: thresholds are 48 and 32"
    assert 11 < chroma < 23


@pytest.mark.slow
def test_lite_raises_no_alarm(shared: Path) -> None:
    network = weights.load_model("lite").eval()
    data = shared / "data"
    places = [*(data / "natural").iterdir(), *(data / "sharp").iterdir(), *(data / "pairs").glob("*/blur")]
    for place in places:
        if place.is_dir() or place.suffix == ".mp4":
            blurry = read(place, 5)
            restored = list(restored_pictures(network, CPU, iter(blurry)))
            assert worst(blurry, restored)[0] == 0, place


# The command line -----------------------------------------------------------------------------------------------------

NETWORK = '''
import torch
from vdeblur.networks.layers import Network


class Spoils(Network):
    """Darkens by 10 codes; frames whose upper left corner is bright get a mosaic."""

    feeding = "frame"

    def forward(self, blurry):
        dark = blurry - 10 / 255
        if blurry[..., :16, :16].mean() < 0.9:
            return dark
        signs = torch.rand(blurry.shape, generator=torch.Generator().manual_seed(0)).round() * 2 - 1
        return dark + signs * 0.4
'''


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """A clip of 8 frames, of which number 5 and 6 have a bright corner; and the network that fails on these."""
    (tmp_path / "net.py").write_text(NETWORK)
    corner = ("-vf", "drawbox=0:0:32:32:white:fill:enable='between(n,5,6)'")
    return clips.make(tmp_path / "in.mkv", size="128x96", frames=8, extra=corner)


def events(result: object, name: str) -> list[dict]:
    found = [json.loads(line) for line in result.stdout.splitlines()]  # type: ignore[attr-defined]
    return [event for event in found if event["event"] == name]


def test_run_counts_guarded_frames_once(vdeblur, clip: Path, tmp_path: Path) -> None:
    words = ("run", clip, "-m", f"{tmp_path}/net.py:Spoils", "--lossless", "--segment", "0.12")
    result = vdeblur(*words, tmp_path / "out.mkv", "--json")
    assert result.exit_code == 0, result.output
    (warning,) = events(result, "warning")
    assert warning["code"] == "W_GLITCH"
    assert "2 frames, first at 0.200 s" in warning["message"]
    (done,) = events(result, "file_done")
    assert (done["guarded"], done["warnings"]) == (2, ["W_GLITCH"])
    before, after = clips.frame_hashes(clip), clips.frame_hashes(tmp_path / "out.mkv")
    assert [a == b for a, b in zip(before, after, strict=True)] == [number in (5, 6) for number in range(8)]
    again = vdeblur(*words, "-y", tmp_path / "out.mkv")
    assert "guarded: parts of 2 frames stay as they were" in again.output
    free = vdeblur(*words, tmp_path / "free.mkv", "--no-guard", "--json")
    assert (events(free, "warning"), events(free, "file_done")[0]["guarded"]) == ([], 0)
    assert not set(clips.frame_hashes(tmp_path / "free.mkv")) & set(before)
    strict = vdeblur(*words, tmp_path / "strict.mkv", "--strict")
    assert strict.exit_code == ExitStatus.DAMAGE
    assert clips.frame_hashes(tmp_path / "strict.mkv") == after, "the output is in place"
    piped = vdeblur("run", clip, "-", *words[2:4])
    assert piped.exit_code == 0
    assert "2 frames, first at 0.200 s" in piped.stderr


def test_a_resumed_run_counts_and_restores_the_same(vdeblur, clip: Path, tmp_path: Path) -> None:
    words = ("run", clip, "-m", f"{tmp_path}/net.py:Spoils", "--lossless", "--segment", "0.12")
    assert vdeblur(*words, tmp_path / "whole.mkv").exit_code == 0
    assert vdeblur(*words, tmp_path / "out.mkv", "--share", "2/3").exit_code == 0  # frames 3 to 5
    resumed = vdeblur(*words, tmp_path / "out.mkv", "--json")
    assert events(resumed, "plan")[0]["frames_done"] == 0
    assert [event["index"] for event in events(resumed, "segment")] == [0, 2], "the second was finished"
    assert events(resumed, "file_done")[0]["guarded"] == 2
    assert clips.frame_hashes(tmp_path / "out.mkv") == clips.frame_hashes(tmp_path / "whole.mkv")
