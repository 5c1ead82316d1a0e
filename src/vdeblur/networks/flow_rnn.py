"""Flow-RNN: recurrent passes over the picture, steered by optical flow, remove blur along its own direction.

Deep Dynamic Scene Deblurring from Optical Flow
J. Zhang, J. Pan, D. Wang, S. Zhou, X. Wei, F. Zhao, J. Liu, J. Ren; IEEE Transactions on Circuits and Systems for
Video Technology; arXiv 2301.07329

Removing motion blur takes filters as long as the motion, in a different direction at every pixel. Convolutions reach
that far only through depth; a linear recurrence along a line of pixels reaches across the whole picture with one weight
per pixel. So the frame's features are scanned in four directions, with weights that a flow network predicts from the
motion to the next frame, because this motion caused the blur. The flow is not supervised: it learns from the
restoration loss, and from warping the next frame onto the current one. All this happens at three resolutions, which a
decoder combines.

Parts, in the order of use (Table I lists the layers, with the names used here):

- `FlowRNN`     the whole network
- `FlowPart`    FlowNetS with 3/8 of its channels and one decoder step more; also the flows for the loss, Eq. (14)
- `spatial_rnn` the four passes, Eq. (13)
- `LinearScan`  one pass and its gradient, computed by `scan_by_steps` or by `scan_in_chunks`

Where this differs from the paper, because the authors' released definition of the network does (MatCaffe, 2022; marked
"released"), or because the paper's way does not suit a tool for video:

1. The state before the first pixel is 0 (released; the paper does not say).
2. Weight blocks are in the order right, down, left, up, passes in the order right, left, down, up, and the decoder's
   concatenations begin with the encoder's features (released). What the network can learn does not depend on the order.
3. 8,281,696 parameters, as Table I and the released definition add up to. Table III says 8.7 million; no choice of
   biases explains the difference.
4. The last frame of a scene is paired with the previous frame, where the release skips it: reversed motion blurs along
   the same line (Eq. (12)). A frame paired with itself would not be restored at all (Fig. 6b).
5. Sides are padded to multiples of 64 with zeros (released: 48 rows below 720; the paper does not say).
6. Nothing is pretrained: He initialisation for the flow part and the decoder's d_deconv layers, Xavier for the others.
   The paper's pretrained FlowNet may not be redistributed.

The released weights are a Caffe model in transposed axes: models/released_flow_rnn.py converts it.
"""

import math
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from vdeblur.networks.layers import FLOW_PIXELS, Inside, Memory, Network, dtype_of, in_channels_last, show, warp

SLOPE = 0.1  # of every leaky ReLU
WEIGHT_ORDER = ("right", "down", "left", "up")  # where the state moves: right is growing x, down growing y
PASS_ORDER = ("right", "left", "down", "up")


class FlowRNN(Network):
    """Restore a frame with the help of the next one, or of the previous one.

    width: channels of the first convolution, 24 in Table I; all others are in proportion.
    Switches of the paper's ablations. rnn: "passes", or what replaces them: "concatenate" puts their weights beside the
    features, "none" leaves the features, and with that the flow part, out; "decoder" moves the passes into the decoder,
    one after each of its steps below the full size. flow: "next"; "two-way", from the previous
    frame as well; or "none", where the frame alone predicts the weights. pairing: "next", or "itself", the frame in
    place of its neighbour.
    """

    feeding = "pair"
    multiple = 64
    padding = "zeros"
    overlap = 128  # no overlap makes tiles exact, because a pass carries its state across the whole picture
    # So frames up to 4K are not cut. The largest tensors are 96 channels at half the size, 0.2 GB for 1920x1088 in
    # float32; a process that restores frames of that size takes 1.5 GB in all.
    whole_pixels = 10_000_000
    # Against float32, with initial weights: 54 dB in bf16 (0.010 at most), 73 dB in fp16 (0.001). The passes and their
    # weights are always computed in float32: with weights near -1 they would be off by 0.8 in fp16. So is the last
    # layer, because the frame itself passes through it.
    half_precision = ("fp16", "bf16")
    float32_parts = ("d_conv0",)
    left_out: ClassVar = {
        ("rnn", "none"): ("flow_part", "rnnw1", "rnnw2", "rnnw3"),
        ("flow", "none"): tuple(f"flow_part.refine{level}.{part}" for level in range(2, 7) for part in ("flow", "up")),
    }
    memory = Memory(tile=825, frame=97)
    half_memory = Memory(tile=707, frame=151)
    shows: ClassVar = {
        "flow": Inside("flow from the frame to its neighbour, at 1/4 to 1/64 of the size", "flow", FLOW_PIXELS),
        "warp": Inside("the neighbour at 1/4 of the size, warped onto the frame by the flow (Eq. 14)", "picture"),
        "gates": Inside(
            "weights of the four passes at each scale, in [-1, 1]: a quarter of the channels each, for right, down, "
            "left and up",
            "channels",
        ),
        "rnn": Inside("results of the four passes at each scale, right, left, down and up (Eq. 13)", "channels"),
        "features": Inside("features of the decoder at full size", "channels"),
    }

    def __init__(
        self,
        width: int = 24,
        rnn: Literal["passes", "concatenate", "none", "decoder"] = "passes",
        flow: Literal["next", "two-way", "none"] = "next",
        pairing: Literal["next", "itself"] = "next",
    ) -> None:
        super().__init__()
        if width < 2:
            raise ValueError(f"width must be 2 or more, because some layers have half of it, not {width}")
        w = width
        self.rnn, self.flow, self.pairing = rnn, flow, pairing
        self.two_way = flow == "two-way" and rnn != "none"
        if self.two_way:
            self.feeding = "neighbours"  # type: ignore[misc]  # of this object alone
        if rnn == "none" or flow == "none":
            self.show_all_but("flow", "warp")
        if rnn not in ("passes", "decoder"):
            self.show_all_but("gates", "rnn")
        self.flow_part = None
        if rnn != "none":
            self.flow_part = FlowPart(w, estimates=flow != "none")
            ways, flows = 1 + self.two_way, 2 * (flow != "none")
            self.rnnw1 = _conv(ways * (w + w // 2 + flows), 4 * w, 3)
            self.rnnw2 = _conv(ways * (3 * w + flows), 8 * w, 3)
            self.rnnw3 = _conv(ways * (6 * w + flows), 8 * w if rnn == "decoder" else 16 * w, 3)

        # Channels that the next layer sees, per channel of d_conv1, d_conv2 and d_conv3
        factor = {"passes": 4, "concatenate": 5, "none": 1, "decoder": 1}[rnn]
        r1, r2, r3 = factor * w, 2 * factor * w, 4 * factor * w
        decoded = 4 * w if rnn == "decoder" else w  # the same of the decoder's features
        self.d_conv1 = _conv(3, w, 5, 2)
        self.d_conv2 = _conv(r1, 2 * w, 5, 2)
        self.d_conv3 = _conv(r2, 4 * w, 5, 2)
        self.d_conv3_2 = _conv(r3, 4 * w, 5)
        self.d_conv3_3 = _conv(4 * w, 2 * w, 5)
        self.d_deconv3, self.d_deconv3_1 = _upsampling(r3 + 2 * decoded, 2 * w), _conv(2 * w, 2 * w, 5)
        self.d_deconv2, self.d_deconv2_1 = _upsampling(r2 + 2 * decoded, w), _conv(w, w, 5)
        self.d_deconv1, self.d_deconv1_1 = _upsampling(r1 + decoded, w // 2), _conv(w // 2, w // 2, 5)
        self.d_conv0 = _conv(3 + w // 2, 3, 5)

        for name, layer in self.named_modules():
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
                if name.startswith(("flow_part.", "d_deconv")):
                    _initialise_for_leaky_relu(layer)
                else:
                    nn.init.xavier_uniform_(layer.weight)

    def forward(self, *frames: Tensor | None) -> Tensor:
        """Restore the current frame, (B, 3, H, W) RGB in [0, 1], not clamped; H and W are multiples of 64.

        frames: the current one and its neighbour; with two-way flow the previous, the current and the next one, None
        beyond the ends of a scene.
        """
        if not self.two_way:
            current, neighbour = frames
            assert current is not None
            assert neighbour is not None
            return self.restore_with_flows(current, neighbour)[0]
        previous, current, following = frames
        assert current is not None
        # As in a pair, the other neighbour stands in for a missing one.
        nearest = [previous if following is None else following, following if previous is None else previous]
        return self.restore_with_flows(current, *(current if frame is None else frame for frame in nearest))[0]

    def flows(self, current: Tensor, *neighbours: Tensor) -> tuple[Tensor, ...]:
        """Estimate the flows from current to a neighbour at 1/4, 1/8, ... 1/64 of the size: flow2 to flow6.

        Each is (B, 2, h, w), in pixels of its own resolution, horizontal first. With two-way flow the five to the next
        frame come first, then the five to the previous one; without flow there are none.
        """
        return self._look(current, neighbours)[1]

    def restore_with_flows(self, current: Tensor, *neighbours: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the results of forward and of flows, computed together; neighbours: the next, two-way the previous."""
        blurry = in_channels_last(current.to(dtype_of(self)))
        features, flows = self._look(blurry, neighbours)

        # Eq. (13) at three resolutions. No activations in the encoder: sparse features would starve the passes.
        d_rnn1 = self._pass(1, self.d_conv1(blurry), features)  # (B, 96, H/2, W/2)
        d_rnn2 = self._pass(2, self.d_conv2(d_rnn1), features)  # (B, 192, H/4, W/4)
        d_rnn3 = self._pass(3, self.d_conv3(d_rnn2), features)  # (B, 384, H/8, W/8)
        for index, flow in enumerate(flows):
            way, level = divmod(index, 5)  # see flows
            show(self, "flow", flow, f"flow{level + 2}" + "_to_previous" * way)
        if flows:
            source = current if self.pairing == "itself" else neighbours[0]
            show(self, "warp", lambda: warp(F.avg_pool2d(source, 4), flows[0]))

        x = _leaky(self.d_conv3_3(_leaky(self.d_conv3_2(d_rnn3))))  # (B, 48, H/8, W/8)
        x = self._pass(3, x, features, in_decoder=True)
        x = _leaky(self.d_deconv3_1(_leaky(self.d_deconv3(torch.cat((d_rnn3, x), 1)))))  # (B, 48, H/4, W/4)
        x = self._pass(2, x, features, in_decoder=True)
        x = _leaky(self.d_deconv2_1(_leaky(self.d_deconv2(torch.cat((d_rnn2, x), 1)))))  # (B, 24, H/2, W/2)
        x = self._pass(1, x, features, in_decoder=True)
        x = _leaky(self.d_deconv1_1(_leaky(self.d_deconv1(torch.cat((d_rnn1, x), 1)))))  # (B, 12, H, W)
        show(self, "features", x)
        restored: Tensor = self.d_conv0(torch.cat((current, x.to(current.dtype)), 1))  # (B, 3, H, W)
        return restored, flows

    def _look(self, current: Tensor, neighbours: tuple[Tensor, ...]) -> tuple[list[Tensor], tuple[Tensor, ...]]:
        """Return the features that predict the weights of the passes at 1/2, 1/4 and 1/8 of the size, and the flows."""
        if self.flow_part is None:
            return [], ()
        dtype = dtype_of(self)
        if self.pairing == "itself":
            neighbours = (current,) * len(neighbours)
        found = [self.flow_part(current.to(dtype), neighbour.to(dtype)) for neighbour in neighbours]
        return [torch.cat(level, 1) for level in zip(*(features for features, _ in found), strict=True)], tuple(
            flow for _, flows in found for flow in flows
        )

    def _pass(self, level: int, feature: Tensor, features: list[Tensor], in_decoder: bool = False) -> Tensor:
        """Scan features (B, C, h, w) at a level to (B, 4 C, h, w), or do what replaces that, see `rnn`."""
        if self.rnn == "none" or in_decoder != (self.rnn == "decoder"):
            return feature
        weights = _bounded(self.get_submodule(f"rnnw{level}")(features[level - 1]))
        if self.rnn == "concatenate":
            return torch.cat((feature, weights.to(feature.dtype)), 1)
        passes = spatial_rnn(feature, weights)
        show(self, "gates", weights, f"rnnw{level}")
        show(self, "rnn", passes, f"d_rnn{level}")
        return passes


class FlowPart(nn.Module):
    """Estimate optical flow, and the features that predict the weights of the passes.

    estimates: without it there is no flow, and only the current frame is looked at.
    """

    def __init__(self, width: int, estimates: bool = True) -> None:
        super().__init__()
        w = width
        self.estimates, flow = estimates, 2 if estimates else 0
        self.conv1, self.conv2 = _conv(6 if estimates else 3, w, 7, 2), _conv(w, 2 * w, 5, 2)
        self.conv3, self.conv3_1 = _conv(2 * w, 4 * w, 5, 2), _conv(4 * w, 4 * w, 3)
        self.conv4, self.conv4_1 = _conv(4 * w, 8 * w, 3, 2), _conv(8 * w, 8 * w, 3)
        self.conv5, self.conv5_1 = _conv(8 * w, 8 * w, 3, 2), _conv(8 * w, 8 * w, 3)
        self.conv6, self.conv6_1 = _conv(8 * w, 16 * w, 3, 2), _conv(16 * w, 16 * w, 3)
        self.refine6 = Refinement(16 * w, 8 * w, estimates)
        self.refine5 = Refinement(8 * w + 8 * w + flow, 4 * w, estimates)
        self.refine4 = Refinement(8 * w + 4 * w + flow, 2 * w, estimates)
        self.refine3 = Refinement(4 * w + 2 * w + flow, w, estimates)
        self.refine2 = Refinement(2 * w + w + flow, w // 2, estimates)

    def forward(self, current: Tensor, neighbour: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Return features at 1/2, 1/4 and 1/8 of the size, and flow2 to flow6, from two frames (B, 3, H, W)."""
        pair = torch.cat((current, neighbour), 1) if self.estimates else current
        conv1 = _leaky(self.conv1(in_channels_last(pair)))  # (B, 24, H/2, W/2)
        conv2 = _leaky(self.conv2(conv1))  # (B, 48, H/4, W/4)
        conv3 = _leaky(self.conv3_1(_leaky(self.conv3(conv2))))  # (B, 96, H/8, W/8)
        conv4 = _leaky(self.conv4_1(_leaky(self.conv4(conv3))))  # (B, 192, H/16, W/16)
        conv5 = _leaky(self.conv5_1(_leaky(self.conv5(conv4))))  # (B, 192, H/32, W/32)
        conv6 = _leaky(self.conv6_1(_leaky(self.conv6(conv5))))  # (B, 384, H/64, W/64)

        flow6, finer = self.refine6(conv6)
        flow5, finer = self.refine5(torch.cat((conv5, finer), 1))
        flow4, finer = self.refine4(torch.cat((conv4, finer), 1))
        cat3 = torch.cat((conv3, finer), 1)  # (B, 146, H/8, W/8)
        flow3, finer = self.refine3(cat3)
        cat2 = torch.cat((conv2, finer), 1)  # (B, 74, H/4, W/4)
        flow2, finer = self.refine2(cat2)
        cat1 = torch.cat((conv1, finer), 1)  # (B, 38, H/2, W/2)
        flows = (flow2, flow3, flow4, flow5, flow6)
        return (cat1, cat2, cat3), tuple(flow for flow in flows if flow is not None)


class Refinement(nn.Module):
    """One step of the flow part's decoder: flow6, deconv6 and up6to5 of Table I, and so on."""

    def __init__(self, before: int, after: int, estimates: bool) -> None:
        super().__init__()
        self.flow = _conv(before, 2, 3) if estimates else None
        self.deconv = _upsampling(before, after)
        self.up = _upsampling(2, 2) if estimates else None

    def forward(self, x: Tensor) -> tuple[Tensor | None, Tensor]:
        """Return the flow (B, 2, h, w), and features with that flow for the next step (B, C + 2, 2h, 2w).

        Without flow, only (B, C, 2h, 2w).
        """
        if self.flow is None or self.up is None:
            return None, _leaky(self.deconv(x))
        flow = self.flow(x)
        return flow, torch.cat((_leaky(self.deconv(x)), self.up(flow)), 1)


def spatial_rnn(
    feature: Tensor,
    weights: Tensor,
    weight_order: tuple[str, ...] = WEIGHT_ORDER,
    pass_order: tuple[str, ...] = PASS_ORDER,
) -> Tensor:
    """Scan a picture in four directions, each with its own weights, and concatenate the passes: (B, 4C, H, W).

    feature: (B, C, H, W), the input of every pass. weights: (B, 4C, H, W) in [-1, 1], w at the pixel that is written.
    In each direction, g[t] = (1 - w[t]) f[t] + w[t] g[t - 1], with g[-1] = 0: Eq. (13). Computed in float32 at least;
    the result is of feature's type.
    """
    exact = torch.promote_types(feature.dtype, torch.float32)
    f = feature.to(exact).permute(0, 2, 3, 1)  # channels last (B, H, W, C): transposing then moves whole pixels
    w = dict(zip(weight_order, weights.to(exact).permute(0, 2, 3, 1).chunk(4, 3), strict=True))
    passes: dict[str, Tensor] = {}
    for axis, forth, back in ((2, "right", "left"), (1, "down", "up")):
        line = f.movedim(axis, 0)  # (T, B, L, C)
        both = LinearScan.apply(
            torch.stack((line, line.flip(0)), 1),
            torch.stack((w[forth].movedim(axis, 0), w[back].movedim(axis, 0).flip(0)), 1),
        )  # (T, 2, B, L, C): both directions at once
        passes[forth] = both[:, 0].movedim(0, axis)
        passes[back] = both[:, 1].flip(0).movedim(0, axis)
    scanned = torch.cat([passes[direction] for direction in pass_order], 3)  # (B, H, W, 4C)
    return scanned.permute(0, 3, 1, 2).to(feature.dtype)


class LinearScan(torch.autograd.Function):
    """Compute g[t] = (1 - w[t]) f[t] + w[t] g[t - 1] along the first axis, g[-1] = 0, from f and w of equal shape.

    The gradient: let d[t] be the derivative of the loss by the output g[t] alone and G[t] that by g[t] with all later
    g. Then G[t] = d[t] + w[t + 1] G[t + 1], the same scan backwards, dL/df = G (1 - w) and
    dL/dw[t] = G[t] (g[t - 1] - f[t]).
    """

    @staticmethod
    def forward(ctx: Any, feature: Tensor, weight: Tensor) -> Tensor:
        """Return g from f and w."""
        states = _scan(torch.addcmul(feature, feature, weight, value=-1), weight)
        ctx.save_for_backward(feature, weight, states)
        return states

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Return dL/df and dL/dw from d."""
        feature, weight, states = ctx.saved_tensors
        total = _scan(gradient.flip(0), _delayed(weight.flip(0))).flip(0)
        return torch.addcmul(total, total, weight, value=-1), total * (_delayed(states) - feature)


def scan_by_steps(terms: Tensor, weight: Tensor) -> Tensor:
    """Compute g[t] = terms[t] + weight[t] g[t - 1] along the first axis, g[-1] = 0; overwrite terms with it."""
    state, *rest = terms.unbind(0)
    for term, w in zip(rest, weight[1:].unbind(0), strict=True):
        state = term.addcmul_(w, state)
    return terms


def scan_in_chunks(terms: Tensor, weight: Tensor) -> Tensor:
    """Compute the same as scan_by_steps in about 3 sqrt(T) large steps instead of T small ones, for GPUs.

    All chunks run at once, each from 0; the running products of w are the factors by which the state before a chunk
    adds to its elements. Quotients of products over the whole length would need one step only, but they underflow.
    """
    length = len(terms)
    size = math.isqrt(length - 1) + 1
    filler = terms.new_zeros(-length % size, *terms.shape[1:])
    states = torch.cat((terms, filler)).unflatten(0, (-1, size))  # (chunks, size, ...)
    products = torch.cat((weight, filler)).unflatten(0, (-1, size))
    for t in range(1, size):
        states[:, t].addcmul_(products[:, t], states[:, t - 1])
        products[:, t].mul_(products[:, t - 1])
    for chunk in range(1, len(states)):
        states[chunk, -1].addcmul_(products[chunk, -1], states[chunk - 1, -1])
    states[1:, :-1].addcmul_(products[1:, :-1], states[:-1, -1:])
    scanned: Tensor = states.flatten(0, 1)[:length]
    return scanned


def _scan(terms: Tensor, weight: Tensor) -> Tensor:
    """Scan in the way that is faster on the device: a GPU takes about as long for a small step as for a large one."""
    return scan_by_steps(terms, weight) if terms.device.type == "cpu" else scan_in_chunks(terms, weight)


def _delayed(values: Tensor) -> Tensor:
    """Shift values one step later along the first axis, starting with 0."""
    return torch.cat((torch.zeros_like(values[:1]), values[:-1]))


def _bounded(weights: Tensor) -> Tensor:
    """Bound a pass's weights to (-1, 1), in float32 at least: half precision would round many to 1."""
    return torch.tanh(weights.to(torch.promote_types(weights.dtype, torch.float32)))


def _leaky(x: Tensor) -> Tensor:
    return F.leaky_relu(x, SLOPE, inplace=True)


def _conv(before: int, after: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(before, after, kernel, stride, padding=kernel // 2)


def _upsampling(before: int, after: int) -> nn.ConvTranspose2d:
    """Return a transposed convolution that exactly doubles the size."""
    return nn.ConvTranspose2d(before, after, 4, stride=2, padding=1)


def _initialise_for_leaky_relu(layer: nn.Conv2d | nn.ConvTranspose2d) -> None:
    """Draw weights as He et al., to keep the variance; a transposed output pixel sees a quarter of the kernel."""
    inputs = layer.in_channels * math.prod(layer.kernel_size)
    if isinstance(layer, nn.ConvTranspose2d):
        inputs //= math.prod(layer.stride)
    nn.init.normal_(layer.weight, std=math.sqrt(2 / (1 + SLOPE**2) / inputs))
