"""Three operations as their equations say, in loops and float64: what the fast implementations are tested against.

Slow, so for arrays of some hundred numbers. Images and features are (C, H, W); a flow is (2, H, W), horizontal first,
in pixels of the array it belongs to.
"""

import numpy

DIRECTIONS = ("right", "left", "down", "up")


def linear_rnn_1d(feature: numpy.ndarray, weight: numpy.ndarray) -> numpy.ndarray:
    """Run g[t] = (1 - w[t]) * f[t] + w[t] * g[t - 1], g[-1] = 0, along the last axis.

    Source: "Deep Dynamic Scene Deblurring from Optical Flow", Eq. (13). The paper does not say what comes before the
    first element; zero is what the authors' layer uses.
    """
    feature, weight = numpy.asarray(feature, numpy.float64), numpy.asarray(weight, numpy.float64)
    if feature.shape != weight.shape:
        raise ValueError(f"feature {feature.shape} and weight {weight.shape} differ in shape")
    result = numpy.empty_like(feature)
    for index in numpy.ndindex(feature.shape[:-1]):
        previous = 0.0
        for t in range(feature.shape[-1]):
            w = weight[(*index, t)]
            previous = (1.0 - w) * feature[(*index, t)] + w * previous
            result[(*index, t)] = previous
    return result


def directional_pass(feature: numpy.ndarray, weight: numpy.ndarray, direction: str) -> numpy.ndarray:
    """Run one of the four passes: (C, H, W) in and out, float64.

    "right": the state travels with growing x; "left": with falling x; "down": with growing y; "up": with falling y.
    In every direction a pixel uses the weight stored at that pixel.
    """
    if direction == "right":
        return linear_rnn_1d(feature, weight)
    if direction == "left":
        return linear_rnn_1d(feature[:, :, ::-1], weight[:, :, ::-1])[:, :, ::-1].copy()
    if direction == "down":
        return linear_rnn_1d(feature.swapaxes(1, 2), weight.swapaxes(1, 2)).swapaxes(1, 2).copy()
    if direction == "up":
        return directional_pass(feature[:, ::-1], weight[:, ::-1], "down")[:, ::-1].copy()
    raise ValueError(f"direction {direction!r} is none of {DIRECTIONS}")


def spatial_rnn(
    feature: numpy.ndarray,
    weights: numpy.ndarray,
    weight_order: tuple[str, ...] = DIRECTIONS,
    output_order: tuple[str, ...] = DIRECTIONS,
) -> numpy.ndarray:
    """Run all four passes over one feature, (C, H, W), and stack them in output_order: (4 C, H, W).

    weights: (4 C, H, W); block i of C channels drives the pass weight_order[i]. Source: Eq. (13) with Table I.
    """
    channels, height, width = feature.shape
    if weights.shape != (4 * channels, height, width):
        raise ValueError(f"weights must be {(4 * channels, height, width)}, not {weights.shape}")
    if sorted(weight_order) != sorted(DIRECTIONS) or sorted(output_order) != sorted(DIRECTIONS):
        raise ValueError("both orders must name each direction once")
    blocks = dict(zip(weight_order, numpy.split(weights, 4), strict=True))
    return numpy.concatenate([directional_pass(feature, blocks[direction], direction) for direction in output_order])


def backward_warp(image: numpy.ndarray, flow: numpy.ndarray) -> numpy.ndarray:
    """Sample an image, (C, H, W), at (x + flow_x, y + flow_y), bilinearly; pixels outside count as zero.

    Pixel centres lie on whole coordinates, as grid_sample has them with align_corners=True.
    Source: W(., .) in Eq. (14) of "Deep Dynamic Scene Deblurring from Optical Flow"; the border is not in the paper.
    """
    image, flow = numpy.asarray(image, numpy.float64), numpy.asarray(flow, numpy.float64)
    _, height, width = image.shape
    if flow.shape != (2, height, width):
        raise ValueError(f"flow must be {(2, height, width)}, not {flow.shape}")
    result = numpy.zeros_like(image)
    for y in range(height):
        for x in range(width):
            at_x, at_y = x + flow[0, y, x], y + flow[1, y, x]
            left, top = int(numpy.floor(at_x)), int(numpy.floor(at_y))
            for row, weight_y in ((top, 1.0 - (at_y - top)), (top + 1, at_y - top)):
                for column, weight_x in ((left, 1.0 - (at_x - left)), (left + 1, at_x - left)):
                    if 0 <= row < height and 0 <= column < width:
                        result[:, y, x] += weight_y * weight_x * image[:, row, column]
    return result


def gradient_magnitude(image: numpy.ndarray, eps: float = 0.0) -> numpy.ndarray:
    """Compute sqrt(dx^2 + dy^2 + eps) of an image, (H, W), with forward differences; zero across the far edges.

    Source: "Video Deblurring via Spatiotemporal Pyramid Network and Adversarial Gradient Prior", Eq. (2). The paper
    names neither the differences nor the border: both are our choice.
    """
    image = numpy.asarray(image, numpy.float64)
    height, width = image.shape
    result = numpy.empty_like(image)
    for y in range(height):
        for x in range(width):
            dx = image[y, x + 1] - image[y, x] if x + 1 < width else 0.0
            dy = image[y + 1, x] - image[y, x] if y + 1 < height else 0.0
            result[y, x] = numpy.sqrt(dx * dx + dy * dy + eps)
    return result
