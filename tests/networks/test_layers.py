"""Correlation and the convolution to few channels against their definitions."""

import numpy as np
import pytest
import torch
from torch import nn

from vdeblur.networks.layers import FewChannelsConv2d, correlate


@pytest.mark.parametrize(("size", "radius", "stride"), [((1, 1), 3, 1), ((7, 10), 3, 2), ((5, 70), 2, 1)])
def test_correlation_is_as_defined(size: tuple[int, int], radius: int, stride: int) -> None:
    torch.manual_seed(4)
    first, second = torch.randn(2, 2, 6, *size).unbind(0)
    found = correlate(first, second, radius, stride)
    side = 2 * radius + 1
    for k, b, y, x in np.ndindex(side**2, 2, *found.shape[2:]):
        to_y, to_x = stride * (y + k // side - radius), stride * (x + k % side - radius)
        inside = 0 <= to_y < size[0] and 0 <= to_x < size[1]
        expected = (
            (first[b, :, stride * y, stride * x] * second[b, :, to_y, to_x]).mean() if inside else torch.zeros(())
        )
        torch.testing.assert_close(found[b, k, y, x], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [(8, 12), (2, 2), (7, 8), (1, 1)])
@pytest.mark.parametrize("kernel", [3, 7])
def test_a_convolution_to_few_channels_is_one(size: tuple[int, int], kernel: int) -> None:
    torch.manual_seed(5)
    ours, theirs = (kind(5, 3, kernel, padding=kernel // 2).double() for kind in (FewChannelsConv2d, nn.Conv2d))
    theirs.load_state_dict(ours.state_dict())
    pictures = torch.randn(2, 5, *size, dtype=torch.float64)
    torch.testing.assert_close(ours(pictures), theirs(pictures))
