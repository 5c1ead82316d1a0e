"""Metrics against vectors computed elsewhere, scikit-image, and ffmpeg's filter; protocols against their parts."""

import json
import math
import re
import subprocess
from pathlib import Path

import numpy
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor

from tests import clips, recipe
from tests.parity import PARITY
from vdeblur.measure import metrics, protocols
from vdeblur.measure.protocols import PROTOCOLS, Quality


def batch(*pictures: numpy.ndarray) -> Tensor:
    """(B, 3, H, W) of (H, W, 3) pictures."""
    return torch.from_numpy(numpy.stack(pictures)).permute(0, 3, 1, 2)


def to_8bit(values: numpy.ndarray) -> numpy.ndarray:
    return numpy.clip(numpy.floor(values + 0.5), 0, 255).astype(numpy.uint8)


@pytest.fixture(scope="module")
def waves() -> tuple[numpy.ndarray, numpy.ndarray]:
    """The result and the truth of the test vector: sums of sines, 64x96."""
    y, x = numpy.mgrid[0:64, 0:96].astype(numpy.float64)
    sin, cos = numpy.sin, numpy.cos
    sharp = 127.5 + numpy.stack(
        [
            80 * sin(x / 5) + 40 * cos(y / 7),
            70 * sin((x + y) / 6) + 50 * cos((x - 2 * y) / 9),
            90 * cos(x * y / 400) + 30 * sin(y / 3),
        ],
        2,
    )
    restored = 127.5 + numpy.stack(
        [
            76 * sin((x + 0.6) / 5) + 40 * cos(y / 7) + 4 * sin(1.7 * x + 2.3 * y),
            66 * sin((x + y + 0.6) / 6) + 50 * cos((x + 0.6 - 2 * y) / 9) + 4 * cos(2.1 * x - 1.3 * y),
            86 * cos((x + 0.6) * y / 400) + 30 * sin(y / 3) + 4 * sin(0.9 * x + 3.1 * y),
        ],
        2,
    )
    pair = to_8bit(restored), to_8bit(sharp)
    assert (pair[0].sum(), pair[1].sum()) == (2432430, 2438278)
    assert (tuple(pair[0][10, 20]), tuple(pair[1][10, 20])) == ((72, 113, 193), (73, 110, 201))
    return pair


def test_the_vector(waves: tuple[numpy.ndarray, numpy.ndarray]) -> None:
    restored, sharp = (batch(picture) for picture in waves)
    cut = metrics.crop(restored, 4), metrics.crop(sharp, 4)
    found = {
        "psnr": metrics.psnr(restored, sharp),
        "psnr, 4 cropped": metrics.psnr(*cut),
        "2d": metrics.ssim_2d(restored, sharp),
        "2d, 4 cropped": metrics.ssim_2d(*cut),
        "3d": metrics.ssim_3d(restored, sharp),
        "3d, mirrored": metrics.ssim_3d_mirrored(restored, sharp),
        "luma": metrics.psnr(metrics.to_luma(restored), metrics.to_luma(sharp)),
    }
    assert {name: round(value.item(), 6) for name, value in found.items()} == {
        "psnr": 31.598605,
        "psnr, 4 cropped": 31.717748,
        "2d": 0.972852,
        "2d, 4 cropped": 0.972872,
        "3d": 0.988381,
        "3d, mirrored": 0.988565,
        "luma": 34.719546,
    }
    assert [score.item() for score in metrics.ssim_both(restored, sharp)] == pytest.approx(
        [found["2d"].item(), found["3d"].item()], abs=1e-12
    )


def koehler(restored: numpy.ndarray, sharp: numpy.ndarray, cropped: int) -> tuple[tuple[int, int], float, float]:
    z, x = metrics.crop(batch(restored), cropped), metrics.crop(batch(sharp), cropped)
    aligned = metrics.align(z, x)
    luma = metrics.to_luma(aligned.restored), metrics.to_luma(aligned.sharp)
    return aligned.shift, round(metrics.psnr(*luma).item(), 6), round(metrics.ssim_2d(*luma).item(), 6)


def test_the_vector_aligned(waves: tuple[numpy.ndarray, numpy.ndarray]) -> None:
    assert koehler(*waves, 0) == ((0, 0), 34.704787, 0.980844)
    assert koehler(*waves, 16) == ((0, 0), 35.287639, 0.978655)
    (quality,) = PROTOCOLS["pvdnet"].measure(*(batch(picture) for picture in waves))
    assert (round(quality.psnr, 6), round(quality.ssim_2d, 6), quality.ssim_3d) == (35.287639, 0.978655, None)


def test_the_alignment_vector() -> None:
    y, x, c = numpy.mgrid[0:96, 0:128, 0:3]
    sharp = (7 * x**2 + 13 * y**2 + 5 * x * y + 29 * c + 31 * x + 17 * y) % 251
    assert sharp.sum() == 4570448
    assert tuple(sharp[5, 7]) == (141, 170, 199)
    moved = numpy.zeros_like(sharp)
    moved[2:, :-3] = sharp[:-2, 3:]
    assert koehler(moved, sharp, 16) == ((-2, 3), 17.612955, 0.918717)
    plain = metrics.psnr(metrics.crop(batch(moved), 16), metrics.crop(batch(sharp), 16))
    assert round(plain.item(), 6) == 7.948102
    assert koehler(numpy.floor(0.8 * moved + 0.5), sharp, 16) == ((-2, 3), 17.612822, 0.918712)


def test_dstnets_figures() -> None:
    known = json.loads((PARITY / "dstnet" / "metrics.json").read_text())
    for pair in known["pairs"]:
        frames = recipe.frames(**pair["frames"])
        (quality,) = PROTOCOLS["dstnet"].measure(batch(frames[pair["b"]]), batch(frames[pair["a"]]))
        assert quality.psnr == pytest.approx(pair["psnr_rgb"], abs=1e-6)
        assert (quality.ssim_2d, quality.ssim_3d) == pytest.approx((pair["ssim_2d"], pair["ssim_3d"]), abs=1e-6)


def test_estrnns_figures() -> None:
    known = json.loads((PARITY / "estrnn" / "metrics.json").read_text())
    for pair in known["pairs"]:
        frames = recipe.frames(**pair["frames"])
        restored = torch.from_numpy(0.7 * frames[0] + 0.3 * frames[1] + 0.37).permute(2, 0, 1)[None]
        truncated = PROTOCOLS["estrnn"].to_8bit(restored)
        assert truncated.sum() == pair["sum_of_truncated"]
        (quality,) = PROTOCOLS["estrnn"].measure(truncated, batch(frames[0]))
        assert quality.psnr == pytest.approx(pair["psnr"], abs=1e-4)
        assert quality.ssim_2d == pytest.approx(pair["ssim"], abs=1e-5)


def test_cdvd_tsps_figures() -> None:
    known = json.loads((PARITY / "cdvd-tsp" / "metrics-and-loss.json").read_text())["metrics"]
    for case, share in zip(known, (0.7, 0.5), strict=True):
        frames = recipe.frames(**case["frames"])
        restored = numpy.rint(share * frames[0] + (1 - share) * frames[1]).astype(numpy.uint8)
        (quality,) = PROTOCOLS["cdvd-tsp"].measure(batch(restored), batch(frames[0]))
        assert quality.psnr == pytest.approx(case["psnr"], abs=1e-6)
        assert quality.ssim_2d == pytest.approx(case["ssim"], abs=1e-7)


def test_pvdnets_figures() -> None:
    known = json.loads((PARITY / "pvdnet" / "metric.json").read_text())
    for case in known["cases"]:
        height, width, dy, dx = (case[key] for key in ("height", "width", "dy", "dx"))
        big = recipe.frames(count=1, height=height + 8, width=width + 8, seed=case["seed"], shift=1.5)[0]
        wave = recipe.frames(count=1, height=height, width=width, seed=case["seed"] + 100, shift=1.5)[0]
        sharp = big[4 : 4 + height, 4 : 4 + width]
        moved = big[4 + dy : 4 + dy + height, 4 + dx : 4 + dx + width]
        restored = numpy.clip(numpy.rint(0.95 * moved + (wave - 127.5) * case["amp"] / 127.5), 0, 255)
        pair = batch(restored.astype(numpy.uint8)), batch(sharp.copy())
        aligned = metrics.align(*(metrics.crop(picture, 16) for picture in pair))
        (quality,) = PROTOCOLS["pvdnet"].measure(*pair)
        wanted = case["aligned"]
        assert aligned.scale == pytest.approx(wanted["scale"], abs=1e-9)
        assert aligned.shift == tuple(wanted["shift_rows_cols"])
        assert quality.psnr == pytest.approx(wanted["psnr"], abs=1e-6)
        assert quality.ssim_2d == pytest.approx(wanted["ssim"], abs=1e-8)
        assert metrics.psnr(*pair).item() == pytest.approx(case["rgb_psnr_unaligned_no_crop"], abs=1e-9)


def pictures(height: int, width: int, count: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    sharp = torch.randint(0, 256, (count, 3, height, width), generator=generator, dtype=torch.uint8)
    noise = torch.randn(sharp.shape, generator=generator) * 20
    return (sharp + noise).round().clamp(0, 255).to(torch.uint8), sharp


@pytest.mark.parametrize("size", [(40, 64), (11, 11), (37, 53)])
def test_the_same_as_scikit_image(size: tuple[int, int]) -> None:
    restored, sharp = pictures(*size)
    for i in range(len(sharp)):
        z, x = (picture[i].permute(1, 2, 0).numpy() for picture in (restored, sharp))
        assert metrics.psnr(restored, sharp)[i].item() == pytest.approx(peak_signal_noise_ratio(x, z, data_range=255))
        options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
        wanted = structural_similarity(x, z, channel_axis=2, **options)
        assert metrics.ssim_2d(restored, sharp)[i].item() == pytest.approx(wanted, abs=1e-12)
        assert metrics.ssim_both(restored, sharp)[0][i].item() == pytest.approx(wanted, abs=1e-12)


def test_psnr_is_ffmpegs(tmp_path: Path) -> None:
    """Its ssim filter has another definition (8x8 blocks), its psnr filter the same."""
    restored, sharp = pictures(48, 64)
    paths = []
    for name, several in (("restored", restored), ("sharp", sharp)):
        raw = tmp_path / f"{name}.rgb"
        raw.write_bytes(several.permute(0, 2, 3, 1).contiguous().numpy().tobytes())
        paths += ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", "64x48", "-i", str(raw)]
    filters = "[0]format=gbrp[a];[1]format=gbrp[b];[a][b]psnr=stats_file=-"
    command = [clips.FFMPEG, "-v", "error", *paths, "-lavfi", filters, "-f", "null", "-"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    wanted = [float(value) for value in re.findall(r"psnr_avg:([\d.]+)", done.stdout)]
    assert len(wanted) == 3
    assert metrics.psnr(restored, sharp).tolist() == pytest.approx(wanted, abs=0.005)  # it prints two places


def test_equal_pictures() -> None:
    _, sharp = pictures(32, 40, 1)
    assert metrics.psnr(sharp, sharp).item() == math.inf
    assert metrics.ssim_2d(sharp, sharp).item() == pytest.approx(1, abs=1e-12)
    assert metrics.ssim_3d(sharp, sharp).item() == pytest.approx(1, abs=1e-12)


def test_pictures_smaller_than_the_window() -> None:
    with pytest.raises(ValueError, match="at least 11 pixels"):
        metrics.ssim_2d(*pictures(10, 40, 1))


@pytest.mark.parametrize(
    ("name", "counted", "words"),
    [
        ("plain", [0, 1, 2, 3, 4, 5], "all frames, nothing cropped, not aligned, RGB"),
        ("cdvd-tsp", [2, 3], "without the first 2 and the last 2 of each sequence, 4 px cropped"),
        (
            "pvdnet",
            [1, 2, 3, 4, 5],
            "without the first of each sequence, 16 px cropped, aligned (Koehler), luma, 8 bit rounded before",
        ),
        ("dstnet", [0, 1, 2, 3, 4, 5], "SSIM 3D, mean over all frames; fed in the chunks of its authors"),
        ("estrnn", [2, 3], "8 bit truncated, SSIM 2D"),
        ("vrt", [0, 1, 2, 3, 4, 5], "SSIM 3D"),
        ("turtle", [0, 1, 2, 3, 4, 5], "SSIM 3D, mirrored, mean over all frames; fed in the tiles of its authors"),
    ],
)
def test_a_protocol_says_what_it_does(name: str, counted: list[int], words: str) -> None:
    protocol = PROTOCOLS[name]
    assert [index for index in range(6) if protocol.counts(index, 6)] == counted
    assert words in protocol.description
    exact = torch.tensor([-1.0, 0.4, 0.6, 99.9, 255.7])
    expected = [0, 0, 0, 99, 255] if name == "estrnn" else [0, 0, 1, 100, 255]
    assert protocol.to_8bit(exact).tolist() == expected
    assert (protocol.blur == "blur_gamma") == (name == "pvdnet")


def test_only_turtles_protocol_feeds_the_authors_tiles(waves: tuple[numpy.ndarray, numpy.ndarray]) -> None:
    protocol = PROTOCOLS["turtle"]
    assert [protocol.overlap_of("turtle", name) for name in ("gopro", "bsd-3ms24ms", "")] == [192, 128, 128]
    assert protocol.overlap_of("lite", "gopro") is None
    assert PROTOCOLS["plain"].overlap_of("turtle", "gopro") is None
    (quality,) = protocol.measure(*(batch(picture) for picture in waves))
    assert (round(quality.psnr, 6), round(quality.ssim_3d or 0, 6)) == (31.598605, 0.988565)


def test_protocols_feed_the_chunks_of_their_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocols, "OTHER_CHUNK", 7)
    chunks = [PROTOCOLS["dstnet"].chunk_of(*which) for which in (("dstnet", "gopro"), ("dstnet", "dvd"))]
    assert chunks == [30, 25]
    assert PROTOCOLS["dstnet"].chunk_of("dstnet-plus", "gopro") == 50
    assert PROTOCOLS["dstnet"].chunk_of("dstnet", "bsd-2ms16ms") == 30
    assert PROTOCOLS["dstnet"].chunk_of("dstnet-plus", "") == 7
    assert PROTOCOLS["dstnet"].chunk_of("lite", "gopro") is None
    assert PROTOCOLS["plain"].chunk_of("dstnet", "gopro") is None
    assert [PROTOCOLS["estrnn"].chunk_of("estrnn", name) for name in ("bsd-3ms24ms", "")] == [20, 20]
    assert PROTOCOLS["estrnn"].chunk_of("dstnet", "bsd-1ms8ms") is None


def test_means_ignore_missing_scores() -> None:
    assert protocols.mean([Quality(30, 0.9, None), Quality(34, 0.8, None)]) == Quality(32, pytest.approx(0.85), None)
    assert protocols.mean([Quality(30, 0.9, 1), Quality(math.inf, 1, 1)]).psnr == math.inf
