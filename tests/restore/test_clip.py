"""Clips of tensors restored as streams."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from vdeblur.networks.layers import Network
from vdeblur.restore.clip import restored_pictures
from vdeblur.settings import Settings

CPU = torch.device("cpu")


class Brighter(Network):
    """Adds 0.125, which bytes and floats hold exactly."""

    feeding = "neighbours"
    multiple = 8

    def forward(self, previous: Tensor | None, current: Tensor, following: Tensor | None) -> Tensor:
        return current + 0.125


def clip(dtype: torch.dtype) -> list[Tensor]:
    pictures = list(torch.randint(0, 200, (5, 3, 13, 21), dtype=torch.uint8))
    return pictures if dtype == torch.uint8 else [(picture.float() / 255).to(dtype) for picture in pictures]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float16])
def test_results_have_the_scale_of_the_pictures(dtype: torch.dtype) -> None:
    pictures = clip(dtype)
    restored = list(restored_pictures(Brighter(), CPU, iter(pictures)))
    assert len(restored) == len(pictures)
    change = 0.125 * (255 if dtype == torch.uint8 else 1)
    for before, after in zip(pictures, restored, strict=True):
        assert after.dtype == torch.float32
        torch.testing.assert_close(after, before.float() + change)


def test_strength_scales_the_change() -> None:
    pictures = clip(torch.float32)
    restored = restored_pictures(Brighter(), CPU, iter(pictures), settings=Settings(strength=0.5))
    torch.testing.assert_close(torch.stack(list(restored)), torch.stack(pictures) + 0.0625)


def test_it_reads_no_further_ahead_than_the_network() -> None:
    read = 0

    def pictures() -> Iterator[Tensor]:
        nonlocal read
        for picture in clip(torch.uint8):
            read += 1
            yield picture

    restored = restored_pictures(Brighter(), CPU, pictures())
    assert read == 0
    for count, _ in enumerate(restored, 1):
        assert read == min(count + 1, 5)


def test_a_clip_without_pictures() -> None:
    assert list(restored_pictures(Brighter(), CPU, iter([]))) == []
