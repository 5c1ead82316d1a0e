"""The released weights of flow-rnn, a Caffe model, under the names and in the axes of networks/flow_rnn.py.

The authors ran Caffe from MATLAB, which hands over transposed pictures, so the released network thinks in transposed
axes: its vertical is our horizontal. Converting the weights once is enough, and exact:

1. The two axes of every kernel are exchanged.
2. Layers that return a flow exchange its two channels, and so do layers that take one.
3. The released passes go along the other axis. Blocks of weights change from (right, down, left, up) in transposed axes
   to the same order in ours, blocks of results likewise from (right, left, down, up).

The authors' definition of the network (MatCaffe, 2022) has the names and the orders of channels.
"""

import torch
from torch import Tensor

from vdeblur.models.caffe import CaffeError, CaffeModel
from vdeblur.networks.flow_rnn import FlowRNN

CONVOLUTIONS = ("conv1", "conv2", "conv3", "conv3_1", "conv4", "conv4_1", "conv5", "conv5_1", "conv6", "conv6_1")
# Our layers by their released names. The released deconv5 is Table I's deconv6, and so on.
LAYERS = {
    **{name: f"flow_part.{name}" for name in CONVOLUTIONS},
    **{f"predict_conv{level}": f"flow_part.refine{level}.flow" for level in range(2, 7)},
    **{f"deconv{level - 1}": f"flow_part.refine{level}.deconv" for level in range(2, 7)},
    **{f"upsample_flow{level}to{level - 1}": f"flow_part.refine{level}.up" for level in range(2, 7)},
    **{f"conv_rnnw{level + 1}": f"rnnw{level}" for level in (1, 2, 3)},
    **{f"conv_rnne_{level}": f"d_conv{level}" for level in (1, 2, 3)},
    "conv_rnne_4": "d_conv3_2",
    "conv_rnne_4_1": "d_conv3_3",
    **{f"conv_rnnd_{level + 1}": f"d_deconv{level}" for level in (1, 2, 3)},
    **{f"conv_rnnd_{level + 1}_1": f"d_deconv{level}_1" for level in (1, 2, 3)},
    "conv_rnnd_1": "d_conv0",
}
# The passes hold 97,440 numbers that the release never uses.
UNUSED = {f"rnn{level}_{direction}" for level in (2, 3, 4) for direction in (1, 2, 3, 4)}
FLOWS_OUT = {name for name in LAYERS if name.startswith(("predict_", "upsample_"))}
FLOWS_IN = {name for name in LAYERS if name.startswith(("predict_", "upsample_", "deconv", "conv_rnnw"))} - {
    *("predict_conv6", "deconv5")  # their input is conv6_1, without a flow
}
WEIGHT_BLOCKS = (1, 0, 3, 2)  # of conv_rnnw*: right and down, left and up change places
PASS_BLOCKS = (2, 3, 0, 1)  # of a pass's results: right and left, down and up change places
# Channels of the four passes at the beginning of the input.
PASSES_IN = {
    f"{part}{level}": 4 * width for level, width in ((2, 24), (3, 48), (4, 96)) for part in ("conv_rnne_", "conv_rnnd_")
}


def convert(model: CaffeModel) -> dict[str, Tensor]:
    """Return the state dict of FlowRNN from the released Caffe model.

    Raises: CaffeError naming the first layer that does not fit.
    """
    with torch.device("meta"):
        wanted = FlowRNN().state_dict()
    missing = [name for name in LAYERS if name not in model.layers]
    extra = sorted(model.layers.keys() - LAYERS.keys() - UNUSED)
    faults = []
    if missing:
        faults.append(f"{len(missing)} layers are" if len(missing) > 1 else "1 layer is")
        faults[0] += f" missing, {missing[0]}" + (" first" if len(missing) > 1 else "")
    if extra:
        faults.append(f"{len(extra)} unknown, {extra[0]}" + (" first" if len(extra) > 1 else ""))
    if faults:
        raise CaffeError("; ".join(faults))
    state: dict[str, Tensor] = {}
    for name, ours in LAYERS.items():
        blobs = model.layers[name]
        shapes = [tuple(wanted[f"{ours}.{kind}"].shape) for kind in ("weight", "bias")]
        found = [tuple(blob.shape) for blob in blobs]
        if found[:1] != shapes[:1] or [_long_sides(shape) for shape in found[1:]] != [shapes[1]]:
            raise CaffeError(f"layer {name} has blobs of {_in_words(found)} instead of {_in_words(shapes)}")
        weight, bias = _upright(name, blobs[0], blobs[1].reshape(shapes[1]))
        state[f"{ours}.weight"], state[f"{ours}.bias"] = weight, bias
    return state


def _upright(name: str, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Return a released layer's weight and bias in our axes."""
    into, out = (0, 1) if name.startswith(("deconv", "upsample_")) or _is_decoding(name) else (1, 0)
    weight = weight.transpose(2, 3)
    if name in FLOWS_OUT:
        weight, bias = weight.flip(out), bias.flip(0)
    if name in FLOWS_IN:
        *features, x, y = weight.unbind(into)
        weight = torch.stack((*features, y, x), into)
    if name.startswith("conv_rnnw"):
        weight, bias = _reordered(weight, out, len(bias), WEIGHT_BLOCKS), _reordered(bias, 0, len(bias), WEIGHT_BLOCKS)
    if name in PASSES_IN:
        weight = _reordered(weight, into, PASSES_IN[name], PASS_BLOCKS)
    return weight.contiguous(), bias.contiguous()


def _is_decoding(name: str) -> bool:
    """Return whether a layer is one of the decoder's transposed convolutions, whose kernels begin with the input."""
    return name in ("conv_rnnd_4", "conv_rnnd_3", "conv_rnnd_2")


def _reordered(tensor: Tensor, axis: int, channels: int, order: tuple[int, ...]) -> Tensor:
    """Reorder the four equal blocks that an axis begins with; channels: of all four together."""
    first, rest = tensor.split([channels, tensor.shape[axis] - channels], axis)
    blocks = first.chunk(4, axis)
    return torch.cat((*(blocks[index] for index in order), rest), axis)


def _long_sides(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(side for side in shape if side != 1)


def _in_words(shapes: list[tuple[int, ...]]) -> str:
    return " and ".join("x".join(map(str, shape)) for shape in shapes)
