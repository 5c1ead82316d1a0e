"""Shared by the networks: declared facts, the recorder of their insides, warping, correlation, a fast convolution."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BLOCK = 32  # most pixels of a row that correlate compares in one matrix product


@dataclass(frozen=True)
class Memory:
    """Peak memory of a network without its weights, in bytes per pixel, measured by benchmarks.network_memory.

    tile: per pixel of the tiles that are computed together. frame: per pixel of a frame, even if it is cut into tiles.
    tile_held, frame_held: the same, for each frame held in a window.
    """

    tile: int = 0
    frame: int = 0
    tile_held: int = 0
    frame_held: int = 0


@dataclass(frozen=True)
class Inside:
    """A declaration of what a network can show of its insides; `show` hands over the values.

    text: in a few words. kind: "flow" (two channels, horizontal first), "picture" (RGB in [0, 1]), "map" (one channel)
    or "channels" (any number). unit: of the values; empty for plain numbers. channels: their names, if they have any.
    """

    text: str
    kind: Literal["flow", "picture", "map", "channels"]
    unit: str = ""
    channels: tuple[str, ...] = ()


FLOW_PIXELS = "pixels of its own resolution"


class Network(nn.Module):
    """A network that declares what its callers must know.

    feeding: which function of streams.py feeds it. radius: frames on each side of the middle one, if it is fed windows.
    earlier: frames before a frame that its result depends on, if it is fed causally; None if nobody knows.
    looks_ahead: a network that is fed views keeps nothing between look and difference, so a thread may look at the next
    frame meanwhile.
    multiple: height and width must be divisible by this. smallest: least height and width. padding: how frames are
    extended on the right and at the bottom to fit: "reflect", "replicate" or "zeros". tile_multiple: positions and
    sizes of tiles must be divisible by this, if it is more than `multiple`.
    half_precision: which of "fp16" and "bf16" agree with float32 to 50 dB, with the weights of its parity cases.
    float32_parts: submodules that stay in float32 even then.
    constant_buffers: buffers that checkpoints hold, but whose values the constructor sets for good.
    left_out: submodules that a switch of the constructor leaves out, by the switch and its value.
    fit_any_weights: arguments of the constructor that change no weights, so that they may change after the training.
    overlap: pixels that neighbouring tiles should share. reach: distance in pixels beyond which one pixel cannot
    affect another, if it is known. whole_pixels: up to this many pixels, a frame is better not cut into tiles.
    best_tile: side of the tiles that give the best result, even where a whole frame would fit.
    memory, half_memory: memory in float32 and in half precision.
    float32_weights: the weights in float32, if the network runs in half precision.
    trained: the constructor sets the trained parameters itself, so that the user's own network runs without weights.
    shows: what `show` hands over during a forward pass, by the name that `vdeblur inspect --show` takes.
    """

    feeding: ClassVar[str]
    radius: int = 0
    earlier: int | None = None
    looks_ahead: ClassVar[bool] = False
    multiple: ClassVar[int] = 1
    tile_multiple: ClassVar[int | None] = None
    smallest: ClassVar[int] = 1
    padding: ClassVar[str] = "reflect"
    half_precision: ClassVar[tuple[str, ...]] = ()
    float32_parts: ClassVar[tuple[str, ...]] = ()
    constant_buffers: ClassVar[tuple[str, ...]] = ()
    left_out: ClassVar[Mapping[tuple[str, Any], tuple[str, ...]]] = {}
    fit_any_weights: ClassVar[tuple[str, ...]] = ()
    overlap: ClassVar[int] = 32
    reach: ClassVar[int | None] = None
    whole_pixels: ClassVar[int] = 3_000_000
    best_tile: int | None = None
    trained: ClassVar[bool] = False
    shows: ClassVar[Mapping[str, Inside]] = {}
    memory: Memory = Memory()
    half_memory: Memory = Memory()
    float32_weights: dict[str, Tensor] | None = None

    @staticmethod
    def official_name(name: str) -> str:
        """Return the key of this network's tensor `name` in its authors' checkpoints, without a leading `module.`."""
        return name

    def show_all_but(self, *names: str) -> None:
        """Leave names out of `shows` of this object, because its switches leave out what they are of."""
        self.shows = {name: inside for name, inside in self.shows.items() if name not in names}  # type: ignore[misc]

    def to_precision(self, dtype: torch.dtype) -> Self:
        """Convert weights and buffers to dtype, those of float32_parts to float32, in place; return the network."""
        exact = tuple(f"{part}." for part in self.float32_parts)
        for name, tensor in (*self.named_parameters(), *self.named_buffers()):
            if tensor.is_floating_point():
                tensor.data = tensor.data.to(torch.float32 if name.startswith(exact) else dtype)
        return self


@dataclass(frozen=True)
class Shown:
    """A value from inside a network, of one frame: float32 (C, h, w) on the CPU.

    name: a key of Network.shows. part: which of several, as backward_propagation or to_previous; may be empty. frame:
    its number in the clip.
    """

    name: str
    part: str
    frame: int
    values: Tensor


class Recorder:
    """Collects what a network shows while it restores one clip.

    network: it names the parts. names: keys of Network.shows. frames: the numbers of the frames to keep. A value that
    is shown without a frame belongs to the frame after the one of its last value, because networks restore in order.
    """

    def __init__(self, network: nn.Module, names: frozenset[str], frames: frozenset[int]) -> None:
        self.paths = {id(module): path for path, module in network.named_modules()}
        self.names, self.frames = names, frames
        self.shown: list[Shown] = []
        self.place: tuple[int | None, str] = (None, "")  # frame and part, as shown_as sets them
        self.counts: dict[tuple[str, str], int] = {}

    def take(self, module: object, name: str, values: Tensor | Callable[[], Tensor], part: str) -> None:
        """Keep a copy of values if they were asked for; see show."""
        if name not in self.names:
            return
        frame, stage = self.place
        part = " ".join(word for word in (stage, self.paths.get(id(module), ""), part) if word)
        if frame is None:
            frame = self.counts[name, part] = self.counts.get((name, part), -1) + 1
        if frame in self.frames:
            tensor = values if isinstance(values, Tensor) else values()
            self.shown.append(Shown(name, part, frame, tensor[0].detach().to("cpu", torch.float32, copy=True)))


RECORDER: ContextVar[Recorder | None] = ContextVar("RECORDER", default=None)


@contextlib.contextmanager
def recording(recorder: Recorder) -> Iterator[None]:
    """Let a recorder take what networks show in this thread while the block runs."""
    token = RECORDER.set(recorder)
    try:
        yield
    finally:
        RECORDER.reset(token)


def show(module: object, name: str, values: Tensor | Callable[[], Tensor], part: str = "") -> None:
    """Hand an intermediate result to the recorder, if there is one; this never changes it.

    module: where it is computed; a submodule's path becomes part of the name. name: a key of Network.shows.
    values: (1, C, h, w), or a function that computes them for the recorder alone. part: which of several.
    """
    recorder = RECORDER.get()
    if recorder is not None:
        recorder.take(module, name, values, part)


@contextlib.contextmanager
def shown_as(frame: int | None, part: str = "") -> Iterator[None]:
    """Name the frame and the part that the block's values belong to; for networks that do not go in order."""
    recorder = RECORDER.get()
    if recorder is None:
        yield
        return
    before = recorder.place
    recorder.place = (frame, part)
    try:
        yield
    finally:
        recorder.place = before


def dtype_of(module: nn.Module) -> torch.dtype:
    """Return the precision in which a module computes."""
    return next(module.parameters()).dtype


def in_channels_last(x: Tensor) -> Tensor:
    """Return x, (B, C, H, W), in the memory layout in which convolutions are fastest."""
    return x.contiguous(memory_format=torch.channels_last)


def sampling_grid(flow: Tensor) -> Tensor:
    """Return the positions that flow points to, as grid_sample with aligned corners takes them.

    flow: (B, 2, H, W), pixels of its own resolution, horizontal first. Result: (B, H, W, 2), float32, -1 at the first
    pixel and 1 at the last. It is float32 for any type of flow, because in half precision it would be off by a third
    of a pixel at a width of 1280.
    """
    height, width = flow.shape[2:]
    flow = flow.float()
    x = torch.arange(width, device=flow.device) + flow[:, 0]
    y = torch.arange(height, device=flow.device)[:, None] + flow[:, 1]
    return torch.stack((x * (2 / max(width - 1, 1)) - 1, y * (2 / max(height - 1, 1)) - 1), 3)


def warp(x: Tensor, flow: Tensor, border: str = "zeros") -> Tensor:
    """Sample x where flow points (backward warping), bilinearly.

    x: (B, C, H, W), any float type. flow: (B, 2, H, W), see sampling_grid. border: what lies outside x, "zeros" or
    "border", the nearest edge pixel. Result: (B, C, H, W), of x's type, computed in float32 at least.
    """
    exact = torch.promote_types(x.dtype, torch.float32)
    grid = sampling_grid(flow).to(exact)
    return F.grid_sample(x.to(exact), grid, "bilinear", border, align_corners=True).to(x.dtype)


def is_inside(flow: Tensor) -> Tensor:
    """Return 1 where all pixels that warp samples lie inside the frame, else 0: (B, 1, H, W) float32, no gradient."""
    with torch.no_grad():
        ones = flow.new_ones(flow.shape[0], 1, *flow.shape[2:], dtype=torch.float32)
        return (warp(ones, flow) > 0.999).float()


def correlate(first: Tensor, second: Tensor, radius: int, stride: int = 1) -> Tensor:
    """Correlate each pixel of first with a neighbourhood in second: the mean over channels of their products.

    first, second: (B, C, H, W). Result: (B, (2 radius + 1)^2, ceil(H / stride), ceil(W / stride)), float32. Channel
    (2 radius + 1) (dy + radius) + dx + radius holds first(p) second(p + stride (dx, dy)), with zeros outside second.
    """
    # Positions and displacements are multiples of the stride, so only those pixels of either are needed.
    first, second = (x[..., ::stride, ::stride].permute(0, 2, 3, 1).float() for x in (first, second))  # channels last
    batch, height, width, channels = first.shape
    side = 2 * radius + 1
    # A matrix product compares a block of pixels in a row with all pixels near the block, in all channels at once.
    # Only a diagonal band of it is needed; computing the rest still takes less time than a loop over displacements.
    count = -(-width // BLOCK)
    block = -(-width // count)
    extra = count * block - width
    first = F.pad(first, (0, 0, 0, extra)).reshape(-1, block, channels)
    second = F.pad(second, (0, 0, radius, radius + extra, radius, radius)).unfold(2, block + 2 * radius, block)
    bands = []
    for y in range(side):
        row = second[:, y : y + height].reshape(-1, channels, block + 2 * radius)
        products = torch.bmm(first, row)  # (B height count, block, block + 2 radius)
        steps = products.stride()
        bands.append(products.as_strided((len(first), block, side), (steps[0], steps[1] + 1, steps[2])))
    compared = torch.stack(bands, 2).view(batch, height, count * block, side**2) / channels
    return compared[:, :, :width].permute(0, 3, 1, 2)


class FewChannelsConv2d(nn.Conv2d):
    """A convolution with stride 1, an odd kernel and few output channels: equal to nn.Conv2d, but faster on CPUs.

    CPUs always compute at least 16 output channels. So this computes the four pixels of a 2x2 block as channels, with
    stride 2 and a kernel one larger that holds the weights at four positions (64 to 3 channels, 5x5, in float32: 0.4 of
    the time).
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, out, H, W) from x, (B, in, H, W)."""
        if x.shape[2] % 2 or x.shape[3] % 2 or x.device.type != "cpu":
            return super().forward(x)
        kernels = torch.stack([F.pad(self.weight, (i, 1 - i, j, 1 - j)) for j in (0, 1) for i in (0, 1)], 1)
        bias = None if self.bias is None else self.bias.repeat_interleave(4)
        blocks = F.conv2d(x, in_channels_last(kernels.flatten(0, 1)), bias, 2, self.padding)
        return F.pixel_shuffle(blocks, 2)


class ChannelNorm(nn.Module):
    """Normalise the channels of each pixel to mean 0 and variance 1, then scale and shift them.

    epsilon: added to the variance.
    """

    def __init__(self, channels: int, epsilon: float) -> None:
        super().__init__()
        self.epsilon = epsilon
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, h, w) from x of that shape; PyTorch computes this in float32 even in half precision."""
        normed = F.layer_norm(x.permute(0, 2, 3, 1), self.weight.shape, self.weight, self.bias, self.epsilon)
        return normed.permute(0, 3, 1, 2)
