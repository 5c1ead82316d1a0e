"""Paired blurry and sharp clips with known truth, from sharp photographs or sharp video.

From a photograph: a virtual camera moves over it along a smooth random path of homographies (translation, rotation,
zoom, perspective); foreground layers pass in front, each with its own motion. A blurry frame is the mean of many
sub-frames over the open part of the frame interval (the duty cycle); its sharp partner is the sub-frame in the middle.
From video: the mean of N neighbouring frames, and the middle one.

Most clips average linear light, as a sensor does; the others average gamma-encoded values, as in GoPro's `blur` (Nah et
al., CVPR 2017, Sec. 3). Sensor noise and video compression come last, on the blurry frames only.

All random values come from one `torch.Generator`, so a clip is a function of its seed.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Protocol

import numpy
import torch
from torch import Tensor
from torch.nn import functional as F

from vdeblur.train.coder import Coder
from vdeblur.train.mixture import homographies

GAMMA = 2.2  # display gamma, assumed to decode and encode stills
SUPERSAMPLE = 2  # against aliasing, pictures are drawn this many times larger and averaged down
MAX_SUBFRAMES = 36  # per blurry frame; up to this speed two sub-frames are at most one output pixel apart
SHARD_CLIPS = 100  # seeds count clips within hundreds, see random_clip
VIDEO_SHARE = 0.15  # share of clips averaged from video, if any is given
LEAST_SIDE = 2.4  # shorter side of a photograph, in sides of a clip: room for the camera to move


@dataclass(frozen=True)
class ClipShape:
    """Frames in a clip, and the side of these square frames in pixels."""

    frames: int = 7
    side: int = 160


def seeded(*numbers: int) -> torch.Generator:
    """Return a clip's random generator; neighbouring numbers lead to unlike clips."""
    # The Mersenne twister's first draws are similar for neighbouring seeds, so the numbers are mixed first.
    mixed = numpy.random.SeedSequence(numbers).generate_state(1, numpy.uint64)[0]
    return torch.Generator().manual_seed(int(mixed >> numpy.uint64(1)))


class Pictures(Protocol):
    """Photographs by number, uint8 (3, H, W); for example a list."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Tensor: ...


class Frames(Protocol):
    """Frames of one take; a slice is uint8 (N, 3, H, W)."""

    @property
    def shape(self) -> torch.Size:
        """The size of all frames together, (T, 3, H, W)."""

    def __len__(self) -> int: ...

    def __getitem__(self, stretch: slice, /) -> Tensor: ...


def uniform(generator: torch.Generator, low: float, high: float) -> float:
    """Draw one number from [low, high)."""
    return low + (high - low) * torch.rand((), generator=generator).item()


def chance(generator: torch.Generator, probability: float) -> bool:
    """Draw true with this probability."""
    return torch.rand((), generator=generator).item() < probability


def draw_path(generator: torch.Generator, times: Tensor, speed: float, side: int) -> Tensor:
    """Draw a camera's path: a homography per time, (N, 3, 3), from output to source positions, in halves of the side.

    times: (N,) in frame intervals. speed: mean motion of the picture's points, output pixels per frame interval.
    """
    # A random mixture of shift x, y; zoom; turn; stretch; shear; slant x, y. Shifts are strongest.
    weight = torch.tensor([1.0, 1.0, 0.6, 0.4, 0.15, 0.15, 0.35, 0.35])
    weight = weight * torch.randn(8, generator=generator)
    motion = torch.zeros(len(times), 8)
    if chance(generator, 0.8):  # a steady part: panning, walking
        motion += times[:, None] * weight
    for _ in range(2):  # a shaky part: two oscillations, slow to fast, each with its own direction
        period = math.exp(uniform(generator, math.log(2.5), math.log(25.0)))
        phase = 2 * math.pi * torch.rand(8, generator=generator)
        amplitude = weight.abs().mean() * torch.randn(8, generator=generator) * weight.abs().clamp(0.1) * period / 8
        motion += amplitude * torch.sin(2 * math.pi * times[:, None] / period + phase)
    motion = motion - motion[len(times) // 2]

    matrices = homographies(motion)
    # Scale the motion such that five points of the picture have the given mean speed (path length per interval).
    points = torch.tensor([[0.0, 0, 1], [0.8, 0.8, 1], [-0.8, 0.8, 1], [0.8, -0.8, 1], [-0.8, -0.8, 1]])
    for _ in range(2):  # slants are not linear, so a second time
        places = torch.einsum("nij,pj->npi", matrices, points)
        places = places[..., :2] / places[..., 2:].clamp(0.2)
        length = (places[1:] - places[:-1]).norm(dim=-1).sum(0).mean() * side / 2
        wanted = speed * (times[-1] - times[0])
        motion = motion * (wanted / length.clamp(1e-6))
        matrices = homographies(motion)
    return matrices


def look_through(picture: Tensor, homographies: Tensor, centre: Tensor, density: float, side: int) -> Tensor:
    """Draw a picture as seen through each homography.

    picture: (C, H, W). centre: (2,) x, y in its pixels. density: its pixels per output pixel.
    Result: (N, C, side, side).
    """
    height, width = picture.shape[1:]
    axis = (torch.arange(side) + 0.5) / side * 2 - 1
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    grid = torch.stack((x, y, torch.ones_like(x)), -1).reshape(-1, 3)  # (side^2, 3)
    places = grid @ homographies.transpose(1, 2)  # (N, side^2, 3)
    places = places[..., :2] / places[..., 2:].clamp(0.2) * (density * side / 2) + centre
    places = places / torch.tensor([width / 2, height / 2]) - 1
    return F.grid_sample(
        picture.expand(len(homographies), -1, -1, -1),
        places.unflatten(1, (side, side)),
        padding_mode="reflection",
        align_corners=False,
    )


def draw_mask(generator: torch.Generator, size: int) -> Tensor:
    """Draw a foreground object's mask: (1, size, size) in [0, 1], with edges about a pixel soft, empty at the rim."""
    axis = (torch.arange(size) + 0.5) / size * 2 - 1
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    radius, angle = (x**2 + y**2).sqrt(), torch.atan2(y, x)
    outline = torch.full_like(radius, 0.55)
    for order in range(1, 7):  # a blob with bays, or thin limbs where orders are high
        strength, phase = uniform(generator, 0.0, 0.5) / order, uniform(generator, 0, 2 * math.pi)
        outline = outline + strength * torch.cos(order * angle + phase) * 0.7
    mask = ((outline - radius) * size / 2).clamp(0, 1)
    if chance(generator, 0.3):  # bars: poles, railings, lettering
        direction, period = uniform(generator, 0, math.pi), uniform(generator, 0.15, 0.6)
        wave = torch.sin((x * math.cos(direction) + y * math.sin(direction)) * 2 * math.pi / period)
        mask = mask * (wave * size * period / 6).clamp(0, 1)
    rim = (1 - torch.maximum(x.abs(), y.abs())) * size / 2 - 2
    return (mask * rim.clamp(0, 1))[None]


@dataclass(frozen=True)
class Layer:
    """A picture (C, H, W) in linear light, with a mask as fourth channel if it is a foreground, and its path."""

    picture: Tensor
    path: Tensor
    centre: Tensor
    density: float


def draw_layers(layers: list[Layer], start: int, stop: int, side: int) -> Tensor:
    """Draw sub-frames start to stop of all layers on top of each other: (N, 3, side, side), linear light."""
    fine = side * SUPERSAMPLE
    back, *fronts = layers
    canvas = look_through(back.picture, back.path[start:stop], back.centre, back.density / SUPERSAMPLE, fine)
    for front in fronts:
        seen = look_through(front.picture, front.path[start:stop], front.centre, front.density / SUPERSAMPLE, fine)
        canvas = canvas.lerp(seen[:, :3], seen[:, 3:])
    return F.avg_pool2d(canvas, SUPERSAMPLE)


def render_clip(generator: torch.Generator, stills: Pictures, shape: ClipShape) -> tuple[Tensor, Tensor]:
    """Make a blurry and a sharp clip from photographs: two uint8 (T, 3, side, side), RGB.

    stills: uint8 (3, H, W) photographs of at least the clip's side.
    """
    sharp_only = chance(generator, 0.14)  # so that a network learns to leave sharp clips as they are
    duty = 0.0
    if not sharp_only:
        duty = uniform(generator, 0.7, 1.0) if chance(generator, 0.7) else uniform(generator, 0.3, 0.7)
    speed = min(max(7.0 * math.exp(0.75 * torch.randn((), generator=generator).item()), 0.4), 32.0)
    count = 1 if sharp_only else min(max(math.ceil(speed * 1.3 * duty), 5), MAX_SUBFRAMES) | 1  # odd: has a middle
    offsets = (torch.arange(count) - count // 2) / max(count, 2) * duty
    times = (torch.arange(shape.frames)[:, None] + offsets).flatten() if count > 1 else torch.arange(shape.frames) * 1.0
    linear = not chance(generator, 0.35)
    exposure = math.exp(uniform(generator, -0.4, 0.5))

    draw = partial(_draw_layer, generator, stills, times, speed, exposure, shape.side)
    layers = [draw(foreground=False)]
    fronts = int(chance(generator, 0.5)) + int(chance(generator, 0.25))
    layers += [draw(foreground=True) for _ in range(fronts)]

    blurry, sharp = [], []
    for frame in range(shape.frames):
        seen = draw_layers(layers, frame * count, (frame + 1) * count, shape.side)
        if not linear:  # the camera clips and encodes each sub-frame, then they are averaged
            seen = encode_gamma(seen)
            blurry.append(seen.mean(0))
            sharp.append(seen[count // 2])
        else:
            blurry.append(encode_gamma(seen.mean(0)))
            sharp.append(encode_gamma(seen[count // 2]))
    blurry_clip, sharp_clip = torch.stack(blurry), torch.stack(sharp)
    if chance(
        generator, 0.15
    ):  # a soft lens or an enlarged video: a network shall not add sharpness that the frame never had
        sigma = uniform(generator, 0.4, 0.9)
        blurry_clip, sharp_clip = soften(blurry_clip, sigma), soften(sharp_clip, sigma)
    sharp_clip = to_bytes(sharp_clip)
    blurry_clip = degrade(generator, blurry_clip)
    return blurry_clip, (blurry_clip.clone() if sharp_only else sharp_clip)


def _draw_layer(
    generator: torch.Generator,
    stills: Pictures,
    times: Tensor,
    speed: float,
    exposure: float,
    side: int,
    *,
    foreground: bool,
) -> Layer:
    """Draw a layer: a random part of a random photograph, and its path. exposure: factor of its light."""
    still = stills[int(torch.randint(len(stills), (), generator=generator))]
    density = 1.05 if chance(generator, 0.3) else uniform(generator, 1.05, 2.4)  # source pixels per output pixel
    reach = int(side * density * 1.1)
    window_top, window_left = _detailed_window(generator, still, reach)
    # The path may leave the window: twice the window is cut out around it; beyond that the picture is mirrored.
    top, left = max(window_top - reach // 2, 0), max(window_left - reach // 2, 0)
    cut = still[:, top : top + 2 * reach, left : left + 2 * reach].float() / 255
    picture = cut**GAMMA * exposure
    if foreground:
        size = min(int(side * density * uniform(generator, 0.3, 1.0)), *picture.shape[1:])
        inner_top, inner_left = window_top - top, window_left - left
        part = picture[:, inner_top : inner_top + size, inner_left : inner_left + size]
        return _foreground(generator, part, times, speed, side, density)
    centre = torch.tensor([window_left - left + reach / 2, window_top - top + reach / 2])
    return Layer(picture, draw_path(generator, times, speed, side), centre, density)


def _detailed_window(generator: torch.Generator, still: Tensor, reach: int) -> tuple[int, int]:
    """Return top and left of the most detailed of five random windows: blurred backgrounds teach little.

    reach: a window's side in pixels of the photograph.
    """
    height, width = still.shape[1:]
    best, place = -1.0, (0, 0)
    for _ in range(5):
        top = int(torch.randint(max(height - reach, 1), (), generator=generator))
        left = int(torch.randint(max(width - reach, 1), (), generator=generator))
        window = still[1, top : top + reach, left : left + reach].float()
        detail = float((window[1:, 1:] - window[:-1, :-1]).abs().mean())
        if detail > best:
            best, place = detail, (top, left)
    return place


def _foreground(
    generator: torch.Generator, picture: Tensor, times: Tensor, speed: float, side: int, density: float
) -> Layer:
    """Cut an object out of a picture, linear light (3, H, W), and draw its own path."""
    size = min(picture.shape[1:])
    picture = torch.cat((picture[:, :size, :size], draw_mask(generator, size)))
    own_speed = speed * uniform(generator, 0.2, 1.8)
    path = draw_path(generator, times, own_speed, side).clone()
    shift = torch.tensor([uniform(generator, -0.6, 0.6), uniform(generator, -0.6, 0.6)])
    path[:, :2] = path[:, :2] + shift[:, None] * path[:, 2:]
    picture = F.pad(picture, (size, size, size, size))  # an empty rim, so that mirroring shows nothing
    return Layer(picture, path, torch.tensor([size * 1.5, size * 1.5]), density)


def average_clip(generator: torch.Generator, frames: Frames, shape: ClipShape) -> tuple[Tensor, Tensor]:
    """Make a blurry and a sharp clip by averaging neighbours of real sharp footage: two uint8 (T, 3, side, side).

    frames: of one take. A random factor reduces them first, which hides the steps between neighbours.
    """
    count, stride = _draw_window(generator, len(frames), shape.frames)
    needed = stride * (shape.frames - 1) + count
    first = int(torch.randint(len(frames) - needed + 1, (), generator=generator))
    height, width = frames.shape[2:]
    factor = uniform(generator, 2.0, max(2.0, min(4.5, min(height, width) / shape.side)))
    reach = min(math.ceil(shape.side * factor), height, width)
    top = int(torch.randint(height - reach + 1, (), generator=generator))
    left = int(torch.randint(width - reach + 1, (), generator=generator))
    cut = frames[first : first + needed][:, :, top : top + reach, left : left + reach].float() / 255
    small = F.interpolate(cut, (shape.side, shape.side), mode="bilinear", antialias=True).clamp(0, 1)
    linear = chance(generator, 0.65)
    light = small**GAMMA if linear else small
    windows = torch.stack([light[k * stride : k * stride + count] for k in range(shape.frames)])
    blurry = windows.mean(1)
    sharp = windows[:, count // 2]
    if linear:
        blurry, sharp = encode_gamma(blurry), encode_gamma(sharp)
    return degrade(generator, blurry), to_bytes(sharp)


def _draw_window(generator: torch.Generator, available: int, clip_frames: int) -> tuple[int, int]:
    """Draw how many frames to average, and the stride between blurry frames; a clip fits into those available."""
    count = int(torch.randint(1, 6, (), generator=generator)) * 2 + 1
    count = min(count, (available - 1) // clip_frames | 1)
    stride = count if chance(generator, 0.6) else count + int(torch.randint(1, 3, (), generator=generator))
    while stride * (clip_frames - 1) + count > available:
        count -= 2
        stride = count
    return count, stride


def random_clip(
    seed: int, number: int, stills: Pictures, takes: Sequence[Frames], shape: ClipShape
) -> tuple[Tensor, Tensor]:
    """Make clip `number` of the mixture for training `lite`: blurry and sharp, two uint8 (T, 3, side, side)."""
    generator = seeded(seed, number // SHARD_CLIPS, number % SHARD_CLIPS)
    if takes and chance(generator, VIDEO_SHARE):
        return average_clip(generator, takes[int(torch.randint(len(takes), (), generator=generator))], shape)
    return render_clip(generator, stills, shape)


@dataclass(frozen=True)
class CameraFrame:
    """A frame of a moving camera, [0, 1] (3, side, side), gamma-encoded.

    blur: mean of the encoded sub-frames. blur_gamma: encoded mean of their linear light.
    """

    blur: Tensor
    blur_gamma: Tensor
    sharp: Tensor


def follow_path(
    generator: torch.Generator, still: Tensor, shape: ClipShape, duty: float, speed: float
) -> Iterator[CameraFrame]:
    """Yield the frames of a camera that moves over a photograph (uint8 (3, H, W)) on a random path; see render_clip.

    duty: share of the frame interval in which the shutter is open. speed: mean motion, pixels per frame interval.
    """
    count = min(max(math.ceil(speed * 1.3 * duty), 5), MAX_SUBFRAMES) | 1
    times = (torch.arange(shape.frames)[:, None] + (torch.arange(count) - count // 2) / count * duty).flatten()
    layer = _draw_layer(generator, [still], times, speed, 1.0, shape.side, foreground=False)
    for frame in range(shape.frames):
        seen = draw_layers([layer], frame * count, (frame + 1) * count, shape.side)
        encoded = encode_gamma(seen)
        yield CameraFrame(encoded.mean(0), encode_gamma(seen.mean(0)), encoded[count // 2])


def encode_gamma(light: Tensor) -> Tensor:
    """Clip linear light to [0, 1], as a sensor does, and encode it."""
    return light.clamp(0, 1) ** (1 / GAMMA)


def soften(clip: Tensor, sigma: float) -> Tensor:
    """Blur each frame (T, 3, H, W) with a 5x5 Gaussian of this many pixels."""
    axis = torch.arange(5) - 2.0
    kernel = torch.exp(-(axis**2) / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).repeat(3, 1)
    padded = F.pad(clip, (2, 2, 2, 2), mode="replicate")
    return F.conv2d(F.conv2d(padded, kernel[:, None, :, None], groups=3), kernel[:, None, None, :], groups=3)


def to_bytes(clip: Tensor) -> Tensor:
    """Round [0, 1] to uint8."""
    return (clip.clamp(0, 1) * 255).round().to(torch.uint8)


def degrade(generator: torch.Generator, clip: Tensor) -> Tensor:
    """Add sensor noise to four clips in ten and H.264 compression to as many; (T, 3, H, W) in [0, 1] to uint8."""
    if chance(generator, 0.4):
        read, shot = uniform(generator, 0.2, 2.5) / 255, uniform(generator, 0.0, 2.5) / 255
        sigma = (read**2 + shot**2 * clip).sqrt()
        clip = clip + sigma * torch.randn(clip.shape, generator=generator)
    data = to_bytes(clip)
    if chance(generator, 0.4):
        data = compress(data, crf=int(torch.randint(15, 29, (), generator=generator)))
    return data


def compress(clip: Tensor, crf: int) -> Tensor:
    """Encode a clip (uint8 (T, 3, H, W)) with x264 at this CRF, and decode it again."""
    height, width = clip.shape[2:]
    even = numpy.pad(clip.numpy(), ((0, 0), (0, 0), (0, height % 2), (0, width % 2)), mode="edge")
    coder = Coder(even.shape[3], even.shape[2], crf)
    pictures = numpy.ascontiguousarray(even.transpose(0, 2, 3, 1))
    decoded = [*chain.from_iterable(coder.push(picture) for picture in pictures), *coder.end()]
    whole = torch.stack([torch.from_numpy(picture) for picture in decoded]).permute(0, 3, 1, 2)
    return whole[:, :, :height, :width].contiguous()
