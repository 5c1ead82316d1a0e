"""Blurry and sharp clips with known truth, made in batches on the training's own device.

A virtual camera moves over a sharp picture along a smooth random path of homographies, with smooth depth; a foreground
object with its own path may pass in front. A blurry frame is the mean of sub-frames, at most about a pixel apart, over
the open part of the frame interval; its sharp partner is the sub-frame in the middle. So one path gives both the motion
between frames and the blur. Light is averaged linearly, as on a sensor, and clipped after that. Noise, a tone curve and
H.264 come last. docs/lite.md tells why averaging coded values, as in the GoPro data set, does harm.

All random values come from one `torch.Generator`, so a batch is a function of its seed.
"""

import math
from dataclasses import dataclass
from itertools import chain
from typing import Annotated

import numpy
import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from vdeblur.errors import UsageError
from vdeblur.train.coder import Coder
from vdeblur.train.rules import COUNT, POSITIVE, TEXT, Rule, list_of
from vdeblur.train.sharp_pictures import GAMMA, SharpPictures

# At these places within a pixel, in turn, sub-frames are drawn: together they average over the pixel's area.
PLACES = ((-0.25, -0.25), (0.25, 0.25), (-0.25, 0.25), (0.25, -0.25))
MOST_SUBFRAMES = 44
MOTIONS = 8  # shift x, y; zoom; turn; stretch; shear; slant x, y
STRENGTHS = (1.0, 1.0, 0.6, 0.4, 0.15, 0.15, 0.35, 0.35)  # of each, drawn at random
OBJECT = 160  # side of a foreground's mask in pixels of its picture
SPEED, SPREAD = 4.5, 0.95  # median speed in pixels a frame interval, and the deviation of its logarithm
SPEEDS = (0.3, 32.0)  # least and greatest
LEAST_EXPOSURE = 0.1  # share of the frame interval for which the shutter is open, up to 1
DENSITIES = (1.0, 2.6)  # pixels of a picture per pixel drawn: as soft as a phone's video, or as sharp as a reduced one
STILL = 0.08  # share of clips without blur, so that a network learns to leave sharp ones as they are
BUCKETS = 6  # clips of like blur are made together, since they need as many sub-frames

_SQUARE = Rule(
    lambda value: isinstance(value, int) and value > 0 and math.isqrt(value) ** 2 == value, "a square number"
)


@dataclass(frozen=True)
class Mixture:
    """A recipe's table [mixture].

    clips: made together; a square number, as they are compressed as one mosaic. frames: of a clip. side: of a frame, in
    pixels. window: side of the windows of sharp pictures. uses: how often each frame trains, in the mean. kept: batches
    of clips from which training draws. held_out: videos that validate, beside one photograph in ten.
    validation: batches of clips to validate on. below: only frames whose blurry PSNR is lower, in dB, decide which
    weights are best.

    Raises: UsageError for sizes that do not fit.
    """

    clips: Annotated[int, _SQUARE] = 16
    frames: Annotated[int, COUNT] = 5
    side: Annotated[int, COUNT] = 144
    window: Annotated[int, COUNT] = 448
    uses: Annotated[int, COUNT] = 6
    kept: Annotated[int, COUNT] = 96
    held_out: Annotated[list[str], list_of(TEXT)] = ()  # type: ignore[assignment]
    validation: Annotated[int, COUNT] = 14
    below: Annotated[float, POSITIVE] = 34.0

    def __post_init__(self) -> None:
        if self.frames < 3 or self.side % 8 or self.window < 2 * self.side:
            raise UsageError(
                f"[mixture] has {self.frames} frames of {self.side} pixels in windows of {self.window}",
                "choose at least 3 frames, a side that 8 divides, and a window of at least twice the side",
            )


def make_clips(mixture: Mixture, pictures: SharpPictures, seed: int, device: torch.device) -> Tensor:
    """Return clips, uint8 (B, 2, T, 3, side, side) on the device: blurry, then sharp."""
    generator = Generator().manual_seed(seed)
    return _Maker(mixture, pictures, generator, device).make()


def _uniform(generator: Generator, low: float, high: float, *shape: int) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=generator)


@dataclass
class _Layer:
    """A picture, linear light (B, C, window, window), with its opacity as fourth channel if it is a foreground.

    path: (B, T, N + 1, 3, 3) homographies from output to source, in halves of the output's side; the last of each
    frame is the sharp one's. shift: (B, T, N + 1, 2), their shifts. depth: (B, side, side), the share by which a pixel
    shifts more, or None. density: (B, 1, 1), pixels of the picture per pixel of the output.
    """

    picture: Tensor
    path: Tensor
    shift: Tensor
    depth: Tensor | None
    density: Tensor


class _Maker:
    """Makes one batch of clips."""

    def __init__(self, mixture: Mixture, pictures: SharpPictures, generator: Generator, device: torch.device) -> None:
        self.mixture, self.pictures, self.generator, self.device = mixture, pictures, generator, device
        self.count = mixture.clips
        self.noise = Generator(device).manual_seed(generator.initial_seed())
        self.curve = (torch.arange(256) / 255).pow(GAMMA).to(device)  # of linear light
        self.axis = torch.arange(mixture.side, device=device) + 0.5 - mixture.side / 2

    def make(self) -> Tensor:
        """Return the batch, see make_clips."""
        speed, exposure = self._draw_blur()
        count = min(4 * max(math.ceil(float((speed * exposure).max()) * 1.35 / 4), 1), MOST_SUBFRAMES)
        opened = (torch.arange(count) + 0.5) / count - 0.5
        frames = torch.arange(self.mixture.frames)[None, :, None].float()
        times = torch.cat((frames + opened * exposure[:, None, None], frames.expand(self.count, -1, 1)), 2)
        layers = [self._background(times, speed)]
        if self._is(0.45):
            layers.append(self._foreground(times, speed))
        gain = torch.exp(self._draw(-0.5, 0.5, self.count, 1, 1, 1)).to(self.device)
        for layer in layers:
            layer.picture[:, :3] *= gain
        blurry = self._render(layers, range(count))
        sharp = self._render(layers, [count] * len(PLACES))
        if self._is(0.15):  # a soft lens or an enlarged video: networks must not invent sharpness
            deviation = float(self._draw(0.4, 0.9))
            blurry, sharp = _softened(blurry, deviation), _softened(sharp, deviation)
        if self._is(0.55):
            blurry = self._add_noise(blurry)
        kind, contrast = float(self._draw(0, 1)), float(self._draw(0, 0.25))
        clips = torch.stack([_encoded(light, kind, contrast) for light in (blurry, sharp)], 1)
        if self._is(0.4):
            clips[:, 0] = _compressed(clips[:, 0], int(self._draw(15, 33)))
        return clips

    def _draw(self, low: float, high: float, *shape: int) -> Tensor:
        return _uniform(self.generator, low, high, *shape)

    def _is(self, probability: float) -> bool:
        return bool(torch.rand((), generator=self.generator) < probability)

    def _draw_blur(self) -> tuple[Tensor, Tensor]:
        """Draw speeds (pixels per frame interval) and exposures (shares of it), (B,) each, of like blur."""
        drawn = BUCKETS * self.count
        speed = (SPEED * torch.exp(SPREAD * torch.randn(drawn, generator=self.generator))).clamp(*SPEEDS)
        exposure = 1 - (1 - LEAST_EXPOSURE) * self._draw(0, 1, drawn) ** 1.6
        bucket = int(torch.randint(BUCKETS, (), generator=self.generator))
        chosen = (speed * exposure).argsort()[bucket * self.count : (bucket + 1) * self.count]
        return speed[chosen], exposure[chosen] * (self._draw(0, 1, self.count) >= STILL)

    def _windows(self) -> Tensor:
        """Draw windows, linear light (B, 3, window, window)."""
        windows = torch.stack([self.pictures.draw(self.generator) for _ in range(self.count)])
        return self.curve[windows.to(self.device).long()]

    def _background(self, times: Tensor, speed: Tensor) -> _Layer:
        picture = self._windows()
        if self._is(0.5):  # highlights beyond white, which the sensor clips only after blurring them
            excess = ((picture.mean(1, keepdim=True) - 0.75) / 0.25).clamp(0, 1).square()
            picture = picture * (1 + self._draw(0, 4, self.count, 1, 1, 1).to(self.device) * excess)
        coarse = torch.randn(self.count, 1, 4, 4, generator=self.generator)
        amount = self._draw(0, 0.5, self.count, 1, 1, 1) * (self._draw(0, 1, self.count, 1, 1, 1) < 0.6)
        side = self.mixture.side
        depth = F.interpolate(coarse * amount, (side, side), mode="bicubic", align_corners=False)[:, 0].clamp(-0.7, 0.7)
        return self._layer(picture, times, speed, depth.to(self.device))

    def _foreground(self, times: Tensor, speed: Tensor) -> _Layer:
        """Cut objects out of windows; each moves on its own path, and starts at its own place."""
        picture = self._windows()
        margin = (self.mixture.window - OBJECT) // 2
        masks = torch.stack([draw_opacity(self.generator, OBJECT) for _ in range(self.count)])
        opacity = F.pad(masks, (margin, self.mixture.window - OBJECT - margin) * 2).to(self.device)
        own = speed * self._draw(0.1, 1.8, self.count)
        place = self._draw(-0.6, 0.6, self.count, 1, 1, 2)
        return self._layer(torch.cat((picture * opacity, opacity), 1), times, own, None, place)

    def _layer(
        self, picture: Tensor, times: Tensor, speed: Tensor, depth: Tensor | None, place: Tensor | None = None
    ) -> _Layer:
        flat = times.flatten(1)
        order = flat.argsort(1)
        motion = draw_paths(self.generator, flat.gather(1, order), speed, self.mixture.side)
        motion = motion.gather(1, order.argsort(1)[..., None].expand(-1, -1, MOTIONS)).view(*times.shape, MOTIONS)
        if place is not None:
            motion = torch.cat((motion[..., :2] + place, motion[..., 2:]), -1)
        motion = motion.to(self.device)
        density = self._draw(*DENSITIES, self.count, 1, 1).to(self.device)
        return _Layer(picture, homographies(motion), motion[..., :2], depth, density)

    def _render(self, layers: list[_Layer], subframes: "range | list[int]") -> Tensor:
        """Return the mean of sub-frames of each frame, (B, T, 3, side, side) in linear light, not clipped."""
        frames = []
        for frame in range(self.mixture.frames):
            total: Tensor | None = None
            for index, subframe in enumerate(subframes):
                back, *fronts = (self._seen(layer, frame, subframe, PLACES[index % len(PLACES)]) for layer in layers)
                for front in fronts:
                    back = back * (1 - front[:, 3:]) + front[:, :3]
                total = back if total is None else total.add_(back)
            assert total is not None
            frames.append(total / len(subframes))
        return torch.stack(frames, 1)

    def _seen(self, layer: _Layer, frame: int, subframe: int, place: tuple[float, float]) -> Tensor:
        """Draw one sub-frame of a layer, each pixel at a place within it: (B, C, side, side)."""
        side = self.mixture.side
        x = ((self.axis + place[0]) / (side / 2))[None, None, :]
        y = ((self.axis + place[1]) / (side / 2))[None, :, None]
        matrix = layer.path[:, frame, subframe, :, :, None, None]
        depth = 1 / (matrix[:, 2, 0] * x + matrix[:, 2, 1] * y + matrix[:, 2, 2]).clamp(0.2)
        across = (matrix[:, 0, 0] * x + matrix[:, 0, 1] * y + matrix[:, 0, 2]) * depth
        down = (matrix[:, 1, 0] * x + matrix[:, 1, 1] * y + matrix[:, 1, 2]) * depth
        if layer.depth is not None:
            shift = layer.shift[:, frame, subframe, :, None, None]
            across, down = across + shift[:, 0] * layer.depth, down + shift[:, 1] * layer.depth
        grid = torch.stack((across, down), -1) * (layer.density * (side / self.mixture.window))[..., None]
        return F.grid_sample(layer.picture, grid, padding_mode="reflection", align_corners=False)

    def _add_noise(self, light: Tensor) -> Tensor:
        """Add shot and read noise of each clip's own strength."""
        shot = 10 ** self._draw(-4.5, -2.9, self.count, 1, 1, 1, 1).to(self.device)
        read = 10 ** self._draw(-3.3, -2.2, self.count, 1, 1, 1, 1).to(self.device)
        noise = torch.randn(light.shape, generator=self.noise, device=self.device)
        return light + noise * (shot * light.clamp(0) + read * read).sqrt()


def homographies(motion: Tensor) -> Tensor:
    """Return (..., 3, 3) from (..., 8): shift x, y; zoom; turn; stretch; shear; slant x, y."""
    x, y, zoom, turn, stretch, shear, slant_x, slant_y = motion.unbind(-1)
    slant_x, slant_y = slant_x.clamp(-0.4, 0.4), slant_y.clamp(-0.4, 0.4)
    scale, stretch, shear = zoom.clamp(-0.7, 0.7).exp(), stretch.clamp(-0.4, 0.4), shear.clamp(-0.4, 0.4)
    cos, sin = turn.cos() * scale, turn.sin() * scale
    rows = (
        torch.stack((cos + stretch, shear - sin, x), -1),
        torch.stack((sin, cos - stretch, y), -1),
        torch.stack((slant_x, slant_y, torch.ones_like(x)), -1),
    )
    return torch.stack(rows, -2)


def draw_paths(generator: Generator, times: Tensor, speed: Tensor, side: int) -> Tensor:
    """Draw camera paths: motions (B, N, 8), see homographies, in halves of the output's side.

    times: (B, N), ascending, in frame intervals. speed: (B,), mean motion in output pixels per frame interval.
    """
    count = len(times)
    weight = torch.tensor(STRENGTHS) * torch.randn(count, MOTIONS, generator=generator)
    is_steady = torch.rand(count, 1, 1, generator=generator) < 0.8  # panning, walking
    motion = times[..., None] * weight[:, None] * is_steady
    for _ in range(2):  # a shaky part: two oscillations, slow to fast, each with its own direction
        period = torch.exp(_uniform(generator, math.log(2.5), math.log(25), count, 1, 1))
        phase = 2 * math.pi * torch.rand(count, 1, MOTIONS, generator=generator)
        direction = torch.randn(count, 1, MOTIONS, generator=generator) * weight.abs().clamp(0.1)[:, None]
        amplitude = weight.abs().mean(1)[:, None, None] * direction * period / 8
        motion = motion + amplitude * torch.sin(2 * math.pi * times[..., None] / period + phase)
    motion = motion - motion[:, motion.shape[1] // 2][:, None]
    # Scale the motion such that five points of the picture have the given mean speed (path length per interval).
    points = torch.tensor([[0.0, 0, 1], [0.8, 0.8, 1], [-0.8, 0.8, 1], [0.8, -0.8, 1], [-0.8, -0.8, 1]])
    for _ in range(2):  # slants are not linear, so a second time
        places = torch.einsum("bnij,pj->bnpi", homographies(motion), points)
        places = places[..., :2] / places[..., 2:].clamp(0.2)
        length = (places[:, 1:] - places[:, :-1]).norm(dim=-1).sum(1).mean(1) * side / 2
        wanted = speed * (times[:, -1] - times[:, 0])
        motion = motion * (wanted / length.clamp(1e-6))[:, None, None]
    return motion


def draw_opacity(generator: Generator, size: int) -> Tensor:
    """Draw the opacity of a foreground object: (1, size, size) in [0, 1], with edges about a pixel soft."""
    axis = (torch.arange(size) + 0.5) / size * 2 - 1
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    radius, angle = (x**2 + y**2).sqrt(), torch.atan2(y, x)
    outline = torch.full_like(radius, 0.45)
    for order in range(1, 7):  # a blob with bays, or thin limbs where orders are high
        strength, phase = _uniform(generator, 0, 0.35), _uniform(generator, 0, 2 * math.pi)
        outline = outline + strength / order * torch.cos(order * angle + phase)
    mask = ((outline - radius) * size / 2).clamp(0, 1)
    if torch.rand((), generator=generator) < 0.3:  # bars: poles, railings, lettering
        direction, period = _uniform(generator, 0, math.pi), _uniform(generator, 0.1, 0.6)
        wave = torch.sin((x * direction.cos() + y * direction.sin()) * 2 * math.pi / period)
        mask = mask * (wave * size * period / 6).clamp(0, 1)
    return mask[None]


def _softened(light: Tensor, deviation: float) -> Tensor:
    """Blur frames (..., side, side) with a Gaussian of this deviation in pixels."""
    steps = torch.arange(-3, 4)
    kernel = torch.exp(-(steps**2) / (2 * deviation**2))
    kernel = kernel / kernel.sum()
    wide = F.pad(light.flatten(0, 2), (3, 3, 3, 3), mode="reflect")
    side = light.shape[-1]
    across = sum((kernel[k] * wide[..., k : k + side] for k in range(7)), torch.zeros((), device=light.device))
    down = sum((kernel[k] * across[..., k : k + side, :] for k in range(7)), torch.zeros((), device=light.device))
    return down.view_as(light)


def _encoded(light: Tensor, kind: float, contrast: float) -> Tensor:
    """Clip linear light and encode it as uint8: by gamma 2.2, sRGB's curve, or a camera's own with more contrast.

    kind: in [0, 1), decides among these. contrast: of the third.
    """
    light = light.clamp(0, 1)
    if kind < 0.45:
        coded = light ** (1 / GAMMA)
    elif kind < 0.75:
        coded = torch.where(light < 0.0031308, 12.92 * light, 1.055 * light.clamp(1e-6) ** (1 / 2.4) - 0.055)
    else:
        coded = light ** (1 / (1.9 + 2.8 * (kind - 0.75)))
        coded = coded + contrast * (coded * coded * (3 - 2 * coded) - coded)
    return (coded * 255).round().to(torch.uint8)


def _compressed(clips: Tensor, crf: int) -> Tensor:
    """Encode clips, uint8 (B, T, 3, side, side), as one mosaic with x264 at this CRF, and decode it again."""
    count, length, _, side, _ = clips.shape
    edge = math.isqrt(count)
    mosaic = clips.view(edge, edge, length, 3, side, side).permute(2, 0, 4, 1, 5, 3)
    pictures = mosaic.reshape(length, edge * side, edge * side, 3).cpu().numpy()
    coder = Coder(edge * side, edge * side, crf)
    coded = [*chain.from_iterable(coder.push(picture) for picture in pictures), *coder.end()]
    tiles = torch.from_numpy(numpy.stack(coded)).view(length, edge, side, edge, side, 3)
    return tiles.permute(1, 3, 0, 5, 2, 4).reshape(clips.shape).to(clips.device)
