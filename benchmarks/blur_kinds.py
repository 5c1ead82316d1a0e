"""Confusion table of the kinds of blur that `probe` names, on real footage and on stills that are degraded on purpose.

    python -m benchmarks.blur_kinds DATA [--stills 44] [--first 1] [--only-stills] [--verbose]

DATA holds pairs/ (sequences with blur/ and sharp/ folders), sharp/ and natural/ (videos), and stills/ (photographs).
A verdict is that of five consecutive frames, as in `probe`. Thresholds were set with the stills of `--first 0`; those
of `--first 1` are the test.
"""

import argparse
import io
import math
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path

import av
import numpy
import torch
from torch import Tensor
from torch.nn import functional as F

from vdeblur.look.verdicts import FRAMES, PartVerdict, judge
from vdeblur.source.pictures import read_picture

SIDE = 256  # of made clips, after averaging 2x2 pixels
LENGTH = 9  # frames of made clips; the last five are judged
SAMPLES = 17  # of an exposure
GAMMA = 2.2
EXPOSURE = 0.7  # share of the frame interval
KINDS = ("sharp", "soft", "motion blur", "defocus", "noise", "compression")
MADE = (
    "sharp",
    "sharp, noise, CRF 24",
    "motion",
    "motion, noise, CRF 24",
    "defocus",
    "defocus, noise, CRF 24",
    "noise",
    "CRF 33 to 42",
)
SUFFIXES = {".jpg", ".jpeg", ".png"}


@dataclass
class Clip:
    """Frames (1, 1, H, W), luma in [0, 1]. bits: per pixel, of H.264; None if they were not encoded."""

    name: str
    frames: list[Tensor]
    bits: float | None = None


def main() -> None:
    """Print the table; with --verbose also each verdict's measures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--stills", type=int, default=44)
    parser.add_argument("--first", type=int, default=1, help="the first still; others follow at even distances")
    parser.add_argument("--only-stills", action="store_true")
    parser.add_argument("--verbose", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print("| footage | parts | " + " | ".join(KINDS) + " |")
    print("| --- " * (len(KINDS) + 2) + "|", flush=True)
    real = () if arguments.only_stills else _real(arguments.data)
    for title, clips in chain(real, _made(arguments.data / "stills", arguments.stills, arguments.first)):
        counts: Counter[str] = Counter()
        for clip in clips:
            verdict = judge(clip.frames, clip.bits)
            counts[verdict.kind if verdict else "nothing"] += 1
            if arguments.verbose and verdict:
                print(_measures(clip, verdict), file=sys.stderr)
        cells = " | ".join(str(counts[kind] or "") for kind in KINDS)
        print(f"| {title} | {counts.total()} | {cells} |", flush=True)


def _measures(clip: Clip, verdict: PartVerdict) -> str:
    m = verdict.measure
    bits = "none" if clip.bits is None else f"{clip.bits:.3f}"
    return (
        f"{clip.name}: {verdict.kind}; along {m.slope_along:.2f} across {m.slope_across:.2f} motion {m.motion:.2f} "
        f"noise {m.noise:.2f} alike {m.alikeness:.2f} edges {verdict.edges:.2f} bits {bits} shutter {verdict.shutter}"
    )


def _real(data: Path) -> Iterator[tuple[str, Iterator[Clip]]]:
    for kind in ("sharp", "blur"):
        folders = sorted((data / "pairs").glob(f"*/{kind}"))
        yield f"pairs, {kind}", (clip for folder in folders for clip in _groups(folder.parent.name, _pictures(folder)))
    yield (
        "gopro_square_blurry",
        _groups("gopro_square_blurry", _pictures(data / "natural" / "gopro_square_blurry")),
    )
    for folder in ("sharp", "natural"):
        for path in sorted((data / folder).glob("*.mp4")):
            yield path.stem, _of_video(path)


def _groups(name: str, frames: Iterator[Tensor]) -> Iterator[Clip]:
    every = list(frames)
    for first in range(0, len(every) - FRAMES + 1, FRAMES):
        yield Clip(f"{name} {first}", every[first : first + FRAMES])


def _pictures(folder: Path) -> Iterator[Tensor]:
    return (_luma(read_picture(path)[0]) for path in sorted(folder.iterdir()))


def _luma(picture: av.VideoFrame) -> Tensor:
    return torch.from_numpy(picture.to_ndarray(format="gray"))[None, None].float() / 255


def _of_video(path: Path, parts: int = 16) -> Iterator[Clip]:
    """Yield groups of frames, evenly spaced over a video."""
    with av.open(str(path)) as container:
        packets = [packet.size for packet in container.demux(container.streams.video[0])]
    with av.open(str(path)) as container:
        video = container.streams.video[0]
        count = sum(size > 0 for size in packets)
        bits = 8 * sum(packets) / count / video.width / video.height
        step = max(count // parts, FRAMES)
        frames: list[Tensor] = []
        for index, picture in enumerate(container.decode(video)):
            if index % step < FRAMES:
                frames.append(_luma(picture))
            if len(frames) == FRAMES:
                yield Clip(f"{path.stem} {index - FRAMES + 1}", frames, bits if video.codec.name == "h264" else None)
                frames = []


def _made(folder: Path, count: int, first: int) -> Iterator[tuple[str, Iterator[Clip]]]:
    wanted = [path for path in sorted(folder.glob("*/*")) if path.suffix in SUFFIXES]
    wanted = wanted[first :: max(len(wanted) // count, 1)][:count]
    for title in MADE:
        yield f"stills: {title}", (_degraded(path, title) for path in wanted)


def _degraded(path: Path, title: str) -> Clip:
    """Make a moving clip of a still, sharp or degraded; its numbers come from the file's name."""
    random = numpy.random.default_rng([MADE.index(title), *path.stem.encode()])
    picture = _sharpest(_luma(read_picture(path)[0]))
    if title.startswith("defocus"):
        picture = _disk(picture, 2 * random.uniform(1.5, 4))
    blurred = title.startswith("motion")
    length = random.uniform(2.5, 12) / EXPOSURE if blurred else random.uniform(0.3, 4)
    angle = random.uniform(0, 2 * math.pi)
    step = 2 * length * numpy.array([math.cos(angle), math.sin(angle)])
    turn = random.uniform(-0.03, 0.03)  # the path bends
    light = picture**GAMMA
    count = LENGTH if "CRF" in title else FRAMES
    frames = [_exposed(light, step, turn, t - (count - 3), EXPOSURE if blurred else 0) for t in range(count)]
    strength = random.uniform(8, 20) if title == "noise" else 3 if "noise" in title else 0
    made = [
        (frame + torch.from_numpy(random.normal(0, strength / 255, frame.shape)).float()).clamp(0, 1)
        for frame in frames
    ]
    name = f"{path.stem}, {title}"
    if "CRF" not in title:
        return Clip(name, made)
    decoded, bits = _encoded(made, 24 if "24" in title else random.uniform(33, 42))
    return Clip(name, decoded[-FRAMES:], bits)


def _sharpest(luma: Tensor) -> Tensor:
    """Cut the window of 640 pixels, or less of a small picture, that has the most detail."""
    height, width = luma.shape[-2:]
    side = min(640, height, width)
    detail = (luma[..., 1:, 1:] - luma[..., :-1, :-1]).square()
    means = F.avg_pool2d(detail, side - 1, 16)
    top, left = divmod(int(means.argmax()), means.shape[-1])
    return luma[..., 16 * top : 16 * top + side, 16 * left : 16 * left + side]


def _disk(luma: Tensor, radius: float) -> Tensor:
    reach = math.ceil(radius)
    y, x = torch.meshgrid(*(torch.arange(-reach, reach + 1.0),) * 2, indexing="ij")
    kernel = (radius + 0.5 - (x * x + y * y).sqrt()).clamp(0, 1)
    light = F.pad(luma**GAMMA, (reach,) * 4, mode="reflect")
    return F.conv2d(light, (kernel / kernel.sum())[None, None]) ** (1 / GAMMA)


def _exposed(light: Tensor, step: numpy.ndarray, turn: float, time: float, exposure: float) -> Tensor:
    """Return a frame of SIDE x SIDE: the mean light along the path around `time`, frames from the middle."""
    height, width = light.shape[-2:]
    inner = torch.arange(2 * SIDE) - SIDE + 0.5
    total = torch.zeros(1, 1, 2 * SIDE, 2 * SIDE)
    times = numpy.linspace(-exposure / 2, exposure / 2, SAMPLES) if exposure else [0.0]
    for moment in times:
        t = time + moment
        x, y = step * t + turn * t * t * numpy.array([-step[1], step[0]])
        grid = torch.stack(
            torch.meshgrid((inner + float(x)) * (2 / width), (inner + float(y)) * (2 / height), indexing="xy"), -1
        )
        total += F.grid_sample(light, grid[None], padding_mode="reflection", align_corners=False)
    return F.avg_pool2d(total / len(times), 2) ** (1 / GAMMA)


def _encoded(frames: list[Tensor], crf: float) -> tuple[list[Tensor], float]:
    """Encode frames with H.264; return them decoded, and the bits per pixel of all but the first."""
    file = io.BytesIO()
    sizes = []
    with av.open(file, "w", format="matroska") as container:
        stream = container.add_stream("libx264", rate=Fraction(30), options={"crf": f"{crf:.1f}"})
        stream.width = stream.height = SIDE
        stream.pix_fmt = "yuv420p"
        for frame in [*frames, None]:
            picture = None
            if frame is not None:
                codes = (frame[0, 0] * 255).round().byte().numpy()
                picture = av.VideoFrame.from_ndarray(codes, format="gray").reformat(format="yuv420p")
            for packet in stream.encode(picture):
                sizes.append(0 if packet.is_keyframe else packet.size)
                container.mux(packet)
    file.seek(0)
    with av.open(file, "r") as encoded:
        decoded = [_luma(picture) for picture in encoded.decode(video=0)]
    return decoded, 8 * sum(sizes) / (len(frames) - 1) / SIDE**2


if __name__ == "__main__":
    main()
