"""Colour: the network's RGB, and the difference that returns to the planes."""

from fractions import Fraction

import av
import numpy
import pytest
import torch

import vdeblur
from vdeblur.frame import Frame, layout_of, planar_name, plane_array
from vdeblur.restore import color

CPU = torch.device("cpu")


def random_frame(name: str, width: int, height: int) -> Frame:
    picture = av.VideoFrame(width, height, name)
    layout = layout_of(name)
    assert layout is not None
    rng = numpy.random.default_rng(0)
    for index in range(len(picture.planes)):
        plane = plane_array(picture, index)
        plane[:] = rng.integers(0, layout.peak + 1, plane.shape)
    return Frame(picture, 0, Fraction(1, 25))


@pytest.mark.parametrize("name", ["yuv420p", "yuv422p10le", "yuv444p16le", "yuv411p", "gray10le", "gbrap12le"])
def test_no_difference_changes_no_sample(name: str) -> None:
    frame = random_frame(name, 37, 23)
    space = color.ColorSpace.of(frame.picture)
    planes = color.planes_of(frame, space, CPU)
    same = color.add_difference(planes, torch.zeros(3, 23, 37), space)
    picture = color.with_planes(frame.picture, same, space)
    for index in range(len(picture.planes)):
        assert numpy.array_equal(plane_array(picture, index), plane_array(frame.picture, index))


@pytest.mark.parametrize("matrix", [1, 5, 9])
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("bits", [8, 10])
def test_rgb_by_the_definition(matrix: int, full: bool, bits: int) -> None:
    """Compare with H.273's equations, inverted here independently."""
    kr, kb = {1: (0.2126, 0.0722), 5: (0.299, 0.114), 9: (0.2627, 0.0593)}[matrix]
    rgb = torch.rand(3, 8, 8, dtype=torch.float64)
    y = kr * rgb[0] + (1 - kr - kb) * rgb[1] + kb * rgb[2]
    cb, cr = (rgb[2] - y) / (2 - 2 * kb), (rgb[0] - y) / (2 - 2 * kr)
    step, peak = 2 ** (bits - 8), 2**bits - 1
    codes = (
        torch.stack((y * peak, cb * peak + 128 * step, cr * peak + 128 * step))
        if full
        else torch.stack((219 * y + 16, 224 * cb + 128, 224 * cr + 128)) * step
    )
    layout = layout_of("yuv444p" if bits == 8 else "yuv444p10le")
    assert layout is not None
    space = color.ColorSpace(layout, kr, kb, full)
    planes = [plane.round().clamp(0, peak).to(torch.uint8 if bits == 8 else torch.uint16) for plane in codes]
    # Rounding three codes of 1/219 each moves RGB by at most about one and a half of them.
    assert (color.to_rgb(planes, space) - rgb).abs().max() < 2.2 / (219 * step)


def test_a_difference_arrives_whole() -> None:
    """A constant change of RGB results in the same change of the decoded picture, on every chroma grid."""
    change = torch.tensor([0.10, -0.05, 0.02])[:, None, None].expand(3, 24, 36)
    for name in ("yuv444p16le", "yuv422p16le", "yuv420p16le", "gbrp16le"):
        frame = random_frame(name, 36, 24)
        for index in range(3):
            plane_array(frame.picture, index)[:] = 30000
        space = color.ColorSpace.of(frame.picture)
        planes = color.planes_of(frame, space, CPU)
        before = color.to_rgb(planes, space)
        after = color.to_rgb(color.add_difference(planes, change, space), space)
        assert (after - before - change).abs().max() < 1e-4, name


def test_untagged_colour_goes_by_size() -> None:
    small, large = (color.ColorSpace.of(random_frame("yuv420p", *size).picture) for size in ((720, 576), (1280, 720)))
    assert (small.kr, small.kb) == color.BT601
    assert (large.kr, large.kb) == color.BT709


def test_packed_formats_have_a_planar_one() -> None:
    for name in ("nv12", "p010le", "yuyv422", "rgb24", "bgr0", "rgba", "rgb48be", "yuv420p10be", "gray16be"):
        assert layout_of(name) is None
        assert layout_of(planar_name(name)) is not None


PLACES = {
    "left": (0, 0.5),
    "center": (0.5, 0.5),
    "topleft": (0, 0),
    "top": (0.5, 0),
    "bottomleft": (0, 1),
    "bottom": (0.5, 1),
}


@pytest.mark.parametrize("location", PLACES)
@pytest.mark.parametrize("name", ["yuv420p16le", "yuv422p16le", "yuv411p"])
def test_chroma_is_sampled_where_it_lies(name: str, location: str) -> None:
    """R16: every location was taken for left. A ramp of chroma must reach the network, and return, undisplaced."""
    layout = layout_of(name)
    assert layout is not None
    width, height = 48, 32
    columns, rows = 1 << layout.log2_width, 1 << layout.log2_height
    across, down = PLACES[location]
    # The luma coordinates of the chroma samples, by the definition of H.273, Fig. 7.
    x = torch.arange(0, width, columns)[None] + across * (columns - 1)
    y = torch.arange(0, height, rows)[:, None] + down * (rows - 1)

    def ramp(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (x - width / 2) / 200 + (y - height / 2) / 300  # of Cb, in -0.5 to 0.5

    space = color.ColorSpace.of(random_frame(name, width, height).picture, location)
    black, extent = space.luma
    neutral, swing = space.chroma
    luma = torch.full((height, width), 0.5) * extent + black
    planes = [luma, ramp(x, y) * swing + neutral, torch.full_like(ramp(x, y), neutral)]
    rgb = color.to_rgb(planes, space)
    blue = (rgb[2] - 0.5) / (2 * (1 - space.kb))  # B' = Y' + 2 (1 - Kb) Cb
    whole = ramp(torch.arange(width)[None], torch.arange(height)[:, None])
    inside = (slice(rows, -rows), slice(columns, -columns))  # at the borders, chroma is constant
    assert (blue - whole)[inside].abs().max() < 1e-6

    flat = [plane.clone() for plane in planes]
    flat[1].fill_(neutral)
    cb = whole
    green = -2 * space.kb * (1 - space.kb) / (1 - space.kr - space.kb) * cb  # keeps Y' and Cr
    change = torch.stack((torch.zeros_like(cb), green, 2 * (1 - space.kb) * cb))
    back = color.add_difference([plane.round() for plane in flat], change, space)[1]
    error = ((back - neutral) / swing - ramp(x, y))[1:-1, 1:-1]
    assert error.abs().max() <= 0.51 / swing, "it is rounded to whole codes"


def test_a_jpeg_arrives_undisplaced(tmp_path) -> None:
    """R16: JPEG's chroma lies in the middle of its four pixels; it reached networks half a pixel to the left."""
    x = numpy.tile(numpy.arange(64), (48, 1))
    red = (40 + 2.5 * x).astype(numpy.uint8)
    picture = numpy.stack((red, numpy.full_like(red, 120), 200 - red // 2), -1)
    frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
    frame.to_image().save(tmp_path / "1.jpg", quality=100, subsampling="4:2:0")
    with vdeblur.open(tmp_path) as opened:
        seen = next(iter(opened)).rgb()
    error = seen[:, 4:-4, 4:-4] * 255 - torch.from_numpy(picture).permute(2, 0, 1)[:, 4:-4, 4:-4]
    assert error.mean((1, 2)).abs().max() < 0.35, "half a pixel of chroma is 0.9 of red and blue"


@pytest.mark.parametrize("full", [False, True])
def test_ycgco_by_the_definition(full: bool) -> None:
    """B: YCgCo was claimed, but taken for BT.601 or BT.709. Compare with H.273's equations, on codes of R'G'B'."""
    rgb = torch.rand(3, 8, 8, dtype=torch.float64)
    red, green, blue = rgb * 65535 if full else (219 * rgb + 16) * 256
    planes = [green / 2 + (blue + red) / 4, green / 2 - (blue + red) / 4 + 32768, (red - blue) / 2 + 32768]
    picture = random_frame("yuv444p16le", 8, 8).picture
    picture.colorspace, picture.color_range = 8, 2 if full else 1
    space = color.ColorSpace.of(picture)
    assert (color.to_rgb(planes, space) - rgb).abs().max() < 1e-6
    change = torch.tensor([0.10, -0.05, 0.02])[:, None, None].expand(3, 8, 8)
    middle = [torch.full((8, 8), 32768.0) for _ in range(3)]
    after = color.to_rgb(color.add_difference(middle, change, space), space)
    assert (after - color.to_rgb(middle, space) - change).abs().max() < 1e-4
