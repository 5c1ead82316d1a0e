"""Tiles: cut and blended."""

from itertools import pairwise

import pytest
import torch

from vdeblur.restore.tiles import TileNeeds, cut_tiles, pad_to


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (64, 64), (65, 97), (150, 200), (480, 854), (1, 10000), (2160, 33)])
@pytest.mark.parametrize("tile", [None, (64, 64), (96, 128)])
@pytest.mark.parametrize("multiple", [1, 4, 32])
def test_split_and_join_are_the_identity(size: tuple[int, int], tile: tuple[int, int] | None, multiple: int) -> None:
    plan = cut_tiles(*size, tile, 32, TileNeeds(multiple))
    picture = torch.rand(1, 3, *size)
    tiles = plan.split(plan.pad(picture))
    assert tiles.shape == (plan.count, 3, *plan.tile)
    assert all(side % multiple == 0 for side in plan.tile)
    torch.testing.assert_close(plan.crop(plan.join([tiles])), picture)


@pytest.mark.parametrize("multiple", [1, 2, 4, 16, 64])
@pytest.mark.parametrize("side", [64, 96, 160, 256])
@pytest.mark.parametrize("overlap", [0, 16, 32, 64])
def test_no_holes_and_at_least_the_overlap(multiple: int, side: int, overlap: int) -> None:
    """With 64-pixel steps, rounding once left columns without a tile."""
    for width in (1, 63, 200, 399, 400, 401, 854, 1920):
        plan = cut_tiles(50, width, (64, side), overlap, TileNeeds(multiple))
        assert plan.lefts[0] == 0
        assert plan.padded[1] >= width
        room = plan.tile[1] - overlap >= multiple
        for left, right in pairwise(plan.lefts):
            assert left < right <= left + plan.tile[1] - (overlap if room else 0), (multiple, side, overlap, width)


def test_joined_tiles_keep_their_type() -> None:
    plan = cut_tiles(64, 160, (64, 96), 32, TileNeeds(4))
    assert plan.join([torch.rand(plan.count, 3, 64, 96, dtype=torch.bfloat16)]).dtype == torch.bfloat16


def test_blending_has_no_seams() -> None:
    """Between tiles that differ, the blended picture changes without a step."""
    plan = cut_tiles(64, 160, (64, 96), 32, TileNeeds(4))
    tiles = torch.stack([torch.full((3, 64, 96), float(index)) for index in range(plan.count)])
    joined = plan.join([tiles])
    assert joined.diff(dim=3).abs().max() < 0.1


def test_padding_mirrors_repeats_or_is_black() -> None:
    picture = torch.arange(6.0).reshape(1, 1, 2, 3)
    assert pad_to(picture, 2, 7)[0, 0, 0].tolist() == [0, 1, 2, 1, 0, 1, 2]
    assert pad_to(picture, 2, 7, "replicate")[0, 0, 0].tolist() == [0, 1, 2, 2, 2, 2, 2]
    assert pad_to(picture, 3, 5, "zeros")[0, 0].tolist() == [[0, 1, 2, 0, 0], [3, 4, 5, 0, 0], [0, 0, 0, 0, 0]]
    assert pad_to(torch.ones(1, 3, 1, 1), 8, 8).shape == (1, 3, 8, 8)


def test_a_function_is_applied_tile_by_tile_at_any_scale() -> None:
    plan = cut_tiles(90, 150, (64, 64), 16, TileNeeds(8), at_once=3)
    picture = plan.pad(torch.rand(1, 3, 90, 150))
    halves = torch.nn.functional.avg_pool2d(picture, 2)
    restored = plan.apply(lambda full, half, none: full[..., ::2, ::2] + half, picture, halves, None)
    torch.testing.assert_close(restored, picture[..., ::2, ::2] + halves)
