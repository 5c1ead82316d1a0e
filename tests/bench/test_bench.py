"""`vdeblur bench` on real pairs: its scores against independent computations."""

import dataclasses
import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy
import pytest
import safetensors.torch
import torch
from skimage.metrics import structural_similarity

from tests import clips
from tests.conftest import ROOT
from vdeblur import files
from vdeblur.bench import contenders, evaluate, kept, memory, results
from vdeblur.bench.speed_results import SpeedTask
from vdeblur.cli import bench as cli_bench
from vdeblur.datasets import known as datasets_known
from vdeblur.datasets import layouts, pictures
from vdeblur.datasets.known import KnownSet, NumberSpan
from vdeblur.errors import ExitStatus, InputError, InterruptedRunError
from vdeblur.measure import metrics, protocols, temporal, vmaf
from vdeblur.models import registry, weights
from vdeblur.networks.dstnet import DSTNet
from vdeblur.restore import streams, tiles

FRAMES = 5
SEQUENCES = ("reds_alley", "reds_wall")
FILTERS = {"unsharp": "unsharp=5:5:1:5:5:0", "cas": "cas=0.5"}


@pytest.fixture(scope="module")
def footage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SEQUENCE/{blur,sharp}: the first frames of real pairs, cropped to 96x64."""
    pairs = ROOT.parent / "shared" / "data" / "pairs"
    if not pairs.is_dir():
        pytest.skip("needs the folder shared/ with real footage beside this checkout")
    folder = tmp_path_factory.mktemp("footage")
    for sequence in SEQUENCES:
        for kind in ("blur", "sharp"):
            (folder / sequence / kind).mkdir(parents=True)
            for file in sorted((pairs / sequence / kind).iterdir())[:FRAMES]:
                clips.ffmpeg("-i", file, "-vf", "crop=96:64:100:60", folder / sequence / kind / file.name)
    return folder


def arrange(footage: Path, folder: Path, blurry: str, sharp: str) -> Path:
    """Link the pictures into another layout; {} stands for the sequence."""
    for sequence in SEQUENCES:
        for kind, pattern in (("blur", blurry), ("sharp", sharp)):
            place = folder / pattern.format(sequence)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(footage / sequence / kind)
    return folder


def read(folder: Path) -> numpy.ndarray:
    """Decode the pictures of a folder with an ffmpeg that is not ours: uint8 (T, H, W, 3)."""
    return numpy.concatenate([clips.rgb(file) for file in sorted(folder.iterdir())])


def similarity(restored: numpy.ndarray, sharp: numpy.ndarray) -> float:
    """SSIM by scikit-image, mean over frames."""
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
    both = zip(restored, sharp, strict=True)
    return float(numpy.mean([structural_similarity(x, z, channel_axis=2, **options) for z, x in both]))


@pytest.fixture(scope="module")
def expected(footage: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, numpy.ndarray]]:
    """Each model's restored sequences: by `vdeblur run` for lite, by the other ffmpeg for its filters."""
    from click.testing import CliRunner

    from vdeblur.cli.main import main

    folder = tmp_path_factory.mktemp("expected")
    restored: dict[str, dict[str, numpy.ndarray]] = {"identity": {}, "lite": {}, **{name: {} for name in FILTERS}}
    for sequence in SEQUENCES:
        blurry = footage / sequence / "blur"
        restored["identity"][sequence] = read(blurry)
        arguments = ["run", str(blurry), str(folder / sequence), "--no-scene-detect"]
        assert CliRunner().invoke(main, arguments).exit_code == 0
        restored["lite"][sequence] = read(folder / sequence)
        for name, text in FILTERS.items():
            (folder / name / sequence).mkdir(parents=True)
            for file in blurry.iterdir():
                clips.ffmpeg("-i", file, "-vf", text, "-pix_fmt", "rgb24", folder / name / sequence / file.name)
            restored[name][sequence] = read(folder / name / sequence)
    return restored


def bench(vdeblur, *arguments: object, folder: Path) -> dict[str, Any]:
    result = vdeblur("bench", *arguments, "--report", folder / "report.json")
    assert result.exit_code == 0, result.output
    report: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return report


def by_name(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {model["model"]: model for model in report["models"]}


LAYOUTS = {
    "GoPro": ("test/{}/blur", "test/{}/sharp"),
    "VRT": ("GoPro11/test_GT_blurred/{}", "GoPro11/test_GT/{}"),
    "DVD": ("DeepVideo/DeepVideo/quantitative_datasets/{}/input", "DeepVideo/DeepVideo/quantitative_datasets/{}/GT"),
    "CDVD-TSP": ("test/blur/{}", "test/gt/{}"),
    "STDAN": ("test/blur/{}", "test/GT/{}"),
    "REDS": ("val/val_blur/{}", "val/val_sharp/{}"),
    "BSD": ("BSD_1ms8ms/test/{}/Blur/RGB", "BSD_1ms8ms/test/{}/Sharp/RGB"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_figures_equal_an_independent_computation(
    vdeblur, footage: Path, expected: dict, tmp_path: Path, layout: str
) -> None:
    folder = arrange(footage, tmp_path / "set", *LAYOUTS[layout])
    report = bench(vdeblur, "--dataset", folder, "--model", "lite,identity", folder=tmp_path)
    assert report["dataset_details"]["layout"].startswith(layout)
    found = by_name(report)
    assert list(found) == ["lite", "identity", "unsharp", "cas"]
    sharp = {sequence: read(footage / sequence / "sharp") for sequence in SEQUENCES}
    for name, sequences in expected.items():
        for measured in found[name]["sequences"]:
            restored = sequences[measured["name"]], sharp[measured["name"]]
            assert measured["psnr"] == pytest.approx(clips.psnr(*restored), abs=1e-9)
            assert measured["ssim_2d"] == pytest.approx(similarity(*restored), abs=1e-9)
            assert len(measured["per_frame"]) == measured["frames"] == FRAMES
        assert found[name]["psnr"] == pytest.approx(
            numpy.mean([clips.psnr(sequences[name], sharp[name]) for name in SEQUENCES]), abs=1e-9
        )
        assert found[name]["seconds_per_frame"] > 0
    assert found["lite"]["psnr"] > found["identity"]["psnr"]
    assert found["lite"]["params"] == sum(parameter.numel() for parameter in weights.load_model("lite").parameters())
    assert found["lite"]["weights_sha256"] == registry.find_entry("lite").weights["package"].remote.pins["sha256"]


def test_3d_ssim_is_higher_and_in_the_report(vdeblur, footage: Path, expected: dict, tmp_path: Path) -> None:
    found = by_name(bench(vdeblur, "--dataset", footage, folder=tmp_path))["lite"]
    z, x = (
        torch.from_numpy(numpy.concatenate(list(several))).permute(0, 3, 1, 2)
        for several in (expected["lite"].values(), [read(footage / name / "sharp") for name in SEQUENCES])
    )
    assert found["ssim_3d"] == pytest.approx(metrics.ssim_3d(z, x).mean().item(), abs=1e-9)
    assert found["ssim_3d"] > found["ssim_2d"]


def test_steadiness_and_sharpness_are_those_of_the_frames(vdeblur, footage: Path, tmp_path: Path) -> None:
    found = by_name(bench(vdeblur, "--dataset", footage, "--model", "identity", folder=tmp_path))["identity"]
    errors = []
    for sequence in found["sequences"]:
        blurry, sharp = (
            torch.from_numpy(read(footage / sequence["name"] / kind)).permute(0, 3, 1, 2).float() / 255
            for kind in ("blur", "sharp")
        )
        errors.append(temporal.warping_error(blurry[:2], sharp[:2]))  # of every fifth pair the first, so one of four
        assert sequence["warping_error"] == pytest.approx(errors[-1], rel=1e-6)
        wanted = temporal.sharpness(blurry).tolist()
        assert [frame["sharpness"] for frame in sequence["per_frame"]] == pytest.approx(wanted, abs=1e-9)
    assert found["warping_error"] == pytest.approx(numpy.mean(errors), rel=1e-6)


def test_printed_tables(vdeblur, footage: Path, tmp_path: Path) -> None:
    result = vdeblur("bench", "--dataset", footage, "--limit", 2)
    assert result.exit_code == 0, result.output
    table = result.stdout.splitlines()
    assert table[0].split()[:7] == ["MODEL", "WEIGHTS", "PRECISION", "PSNR", "SSIM-2D", "SSIM-3D", "PUBLISHED"]
    assert [line.split()[0] for line in table[1:5]] == ["lite", "identity", "unsharp", "cas"]
    assert table[6].split() == ["MODEL", "WEIGHTS", "WARPING,", "1E-3", "SHARPNESS"]
    more = {line.split()[0]: line.split()[-2:] for line in table[7:11]}
    assert list(more) == ["lite", "identity", "unsharp", "cas"]
    report = by_name(bench(vdeblur, "--dataset", footage, "--limit", 2, folder=tmp_path))
    for name, model in report.items():
        assert more[name] == [f"{1e3 * model['warping_error']:.3f}", f"{model['sharpness']:.3f}"]
    assert "protocol plain: all frames, nothing cropped, not aligned, RGB, 8 bit rounded" in result.stdout
    assert "layout of GoPro" in result.stderr
    assert f"{footage.name} test (blur): 4 frames" in result.stdout


def test_events(vdeblur, footage: Path) -> None:
    result = vdeblur("bench", "--dataset", footage, "--limit", 2, "--json")
    events = [json.loads(line) for line in result.stdout.splitlines()]
    kinds = [event["event"] for event in events]
    assert (kinds[0], kinds[1], kinds[-2], kinds[-1]) == ("start", "bench", "report", "done")
    assert {"bench_model", "progress", "sequence_done"} <= set(kinds)
    assert all(event["v"] == 1 for event in events)
    assert [model["model"] for model in events[-2]["models"]] == ["lite", "identity", "unsharp", "cas"]
    assert str(files.cache_folder()) not in result.stdout, "the report must not name files that are removed"


def test_equal_frames_have_a_null_psnr_in_events(vdeblur, footage: Path, tmp_path: Path) -> None:
    folder = arrange(footage, tmp_path / "set", "{}/blur", "{}/sharp")
    for sequence in SEQUENCES:
        (folder / sequence / "blur").unlink()
        (folder / sequence / "blur").symlink_to(footage / sequence / "sharp")

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    result = vdeblur("bench", "--dataset", folder, "--model", "identity", "--limit", 2, "--json")
    events = [json.loads(line, parse_constant=refuse) for line in result.stdout.splitlines()]
    scores = {event["model"]: event["psnr"] for event in events if event["event"] == "sequence_done"}
    assert scores["identity"] is None
    assert scores["unsharp"] > 0


def test_save_keeps_what_run_writes(vdeblur, footage: Path, expected: dict, tmp_path: Path) -> None:
    report = bench(vdeblur, "--dataset", footage, "--save", tmp_path / "kept", folder=tmp_path)
    for name, sequences in expected.items():
        for sequence, restored in sequences.items():
            folder = tmp_path / "kept" / name / sequence
            assert sorted(file.name for file in folder.iterdir()) == sorted(
                file.name for file in (footage / sequence / "blur").iterdir()
            )
            assert (read(folder) == restored).all()
    assert Path(report["models"][0]["sequences"][0]["saved"]) == tmp_path / "kept" / "lite" / SEQUENCES[0]


def test_a_page_shows_the_worst_and_the_best(vdeblur, footage: Path, tmp_path: Path) -> None:
    result = vdeblur("bench", "--dataset", footage, "--limit", 2, "--report", tmp_path / "r.html")
    assert result.exit_code == 0, result.output
    page = (tmp_path / "r.html").read_text()
    for kind in ("worst", "best"):
        for sequence in SEQUENCES:
            assert f"{kind} frame of {sequence}" in page


def test_vmaf_is_ffmpegs(vdeblur, footage: Path, tmp_path: Path) -> None:
    result = vdeblur("bench", "--dataset", footage, "--vmaf", "--model", "identity", "--report", tmp_path / "r.json")
    assert result.exit_code == 0, result.output
    assert "VMAF" in result.stdout
    found = by_name(json.loads((tmp_path / "r.json").read_text()))
    for sequence in found["identity"]["sequences"]:
        inputs: list[object] = []
        for kind in ("blur", "sharp"):
            first = min((footage / sequence["name"] / kind).iterdir())
            inputs += ["-start_number", int(first.stem), "-i", first.with_name("%08d.png")]
        formats = "[0]format=yuv420p[a];[1]format=yuv420p[b]"
        log = tmp_path / f"{sequence['name']}.json"
        clips.ffmpeg(*inputs, "-lavfi", f"{formats};[a][b]libvmaf=log_fmt=json:log_path={log}", "-f", "null", "-")
        wanted = json.loads(log.read_text())["pooled_metrics"]["vmaf"]["mean"]
        assert sequence["vmaf"] == pytest.approx(wanted, abs=1e-3)
    mean = numpy.mean([sequence["vmaf"] for sequence in found["identity"]["sequences"]])
    assert found["identity"]["vmaf"] == pytest.approx(mean)


def test_an_ffmpeg_without_vmaf(vdeblur, footage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", "/bin/true")
    result = vdeblur("bench", "--dataset", footage, "--vmaf")
    assert result.exit_code == 2
    assert "/bin/true has no filter libvmaf (leave out --vmaf)" in result.output


def test_vmaf_of_pictures_that_it_cannot_measure(vdeblur, footage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vmaf, "GRAPH", vmaf.GRAPH.replace("libvmaf=", "libvmaf=model=path=nowhere:"))
    result = vdeblur("bench", "--dataset", footage, "--vmaf", "--model", "identity")
    assert result.exit_code == 2
    assert "cannot measure these pictures (leave out --vmaf)" in result.output


@pytest.mark.cuda
def test_on_a_gpu(vdeblur, footage: Path, tmp_path: Path) -> None:
    on_gpu, on_cpu = (
        by_name(bench(vdeblur, "--dataset", footage, "-d", device, "-p", "fp32", folder=tmp_path))
        for device in ("cuda", "cpu")
    )
    for name, model in on_gpu.items():
        assert model["psnr"] == pytest.approx(on_cpu[name]["psnr"], abs=0.01)
        assert model["ssim_3d"] == pytest.approx(on_cpu[name]["ssim_3d"], abs=1e-4)
    assert 0 < on_gpu["lite"]["peak_memory_bytes"] < on_cpu["lite"]["peak_memory_bytes"]


# Protocols


def measured(footage: Path, protocol: str, **options) -> dict[str, Any]:
    report = evaluate.run_bench(results.BenchTask(str(footage), ("lite",), protocol, precision="fp32", **options))
    assert report.protocol.name == protocol
    return by_name(report.to_json())


def test_cdvd_tsps_protocol(footage: Path, expected: dict) -> None:
    found = measured(footage, "cdvd-tsp")["identity"]
    sharp = {name: read(footage / name / "sharp") for name in SEQUENCES}
    for sequence in found["sequences"]:
        inner = (slice(2, -2), slice(4, -4), slice(4, -4))
        both = [frames[sequence["name"]][inner] for frames in (expected["identity"], sharp)]
        assert sequence["frames"] == 1
        assert sequence["psnr"] == pytest.approx(clips.psnr(*both), abs=1e-9)
        assert sequence["ssim_2d"] == pytest.approx(similarity(*both), abs=1e-9)


def test_pvdnets_protocol_takes_blur_gamma(footage: Path, tmp_path: Path) -> None:
    """Each sequence's sharp frames serve as blur_gamma, moved by 2 lines and dimmed: alignment undoes both."""
    for sequence in SEQUENCES:
        (tmp_path / sequence / "blur_gamma").mkdir(parents=True)
        for kind in ("blur", "sharp"):
            (tmp_path / sequence / kind).symlink_to(footage / sequence / kind)
        for file in (footage / sequence / "sharp").iterdir():
            moved = tmp_path / sequence / "blur_gamma" / file.name
            clips.ffmpeg("-i", file, "-vf", "crop=96:62:0:0,pad=96:64:0:2,lutrgb=r=val*0.8:g=val*0.8:b=val*0.8", moved)
    report = evaluate.run_bench(results.BenchTask(str(tmp_path), ("identity",), "pvdnet")).to_json()
    assert report["dataset_details"]["blur"] == "blur_gamma"
    for sequence in by_name(report)["identity"]["sequences"]:
        assert sequence["frames"] == FRAMES - 1
        assert sequence["ssim_3d"] is None
        folders = tmp_path / sequence["name"] / "blur_gamma", footage / sequence["name"] / "sharp"
        wanted = [koehler(z, x) for z, x in zip(*(read(folder)[1:] for folder in folders), strict=True)]
        assert [(frame["psnr"], frame["ssim_2d"]) for frame in sequence["per_frame"]] == [
            pytest.approx(score, abs=1e-8) for score in wanted
        ]
        assert sequence["psnr"] > clips.psnr(*(read(folder)[1:] for folder in folders)) + 3


def koehler(result: numpy.ndarray, truth: numpy.ndarray) -> tuple[float, float]:
    """The definition with every shift of up to 6 pixels tried, instead of a Fourier transform."""
    z, x = (picture[16:-16, 16:-16].astype(float) for picture in (result, truth))
    z = z * (x * z).sum() / (z * z).sum()

    def moved(picture: numpy.ndarray, down: int, right: int) -> numpy.ndarray:
        return numpy.roll(picture, (down, right), (0, 1))

    grid = [(down, right) for down in range(-6, 7) for right in range(-6, 7)]
    down, right = max(grid, key=lambda by: (moved(z.mean(2), *by) * x.mean(2)).sum())
    rows, columns = numpy.mgrid[: z.shape[0], : z.shape[1]]
    inside = (rows >= down) & (rows < z.shape[0] + down) & (columns >= right) & (columns < z.shape[1] + right)
    luma = [(picture * inside[..., None]) @ [0.299, 0.587, 0.114] for picture in (moved(z, down, right), x)]
    psnr = 10 * numpy.log10(255**2 / ((luma[0] - luma[1]) ** 2).mean())
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
    return float(psnr), float(structural_similarity(luma[1], luma[0], **options))


def test_estrnns_protocol_cuts_off(footage: Path) -> None:
    found = measured(footage, "estrnn")["lite"]["sequences"][0]
    folder = footage / found["name"]
    blurry = torch.from_numpy(read(folder / "blur")).permute(0, 3, 1, 2) / 255
    network = weights.load_model("lite")
    plan = tiles.cut_tiles(64, 96, None, 0, tiles.TileNeeds(network.multiple))
    with torch.inference_mode():
        restored = torch.cat(list(streams.stream(network, map(plan.pad, blurry.split(1)), plan)))
    truncated = (plan.crop(restored).clamp(0, 1) * 255).floor().permute(0, 2, 3, 1).numpy()[2:-2]
    assert found["psnr"] == pytest.approx(clips.psnr(truncated, read(folder / "sharp")[2:-2]), abs=0.002)


def register(vdeblur, folder: Path, monkeypatch: pytest.MonkeyPatch, bench: str = '["dstnet"]') -> None:
    """Make a small network with drawn weights known as `tiny`, with a score on GoPro."""
    torch.manual_seed(0)
    network = DSTNet(channels=8, width=8, blocks=1)
    safetensors.torch.save_file(network.state_dict(), folder / "tiny.safetensors")
    (folder / "registry.toml").write_text(f"""
[tiny]
network = "dstnet"
arguments = {{ channels = 8, width = 8, blocks = 1 }}
description = "drawn weights"
license = "MIT"
[tiny.weights.drawn]
file = "tiny.safetensors"
sources = [{{ kind = "manual", page = "https://nowhere.example" }}]
scores = [
    {{ data = "GoPro", psnr = 31.5, ssim = 0.91, ssim_kind = "3D", protocol = "in words", bench = {bench} }},
    {{ data = "DVD", psnr = 32.5, ssim_kind = "not stated", protocol = "in words", bench = {bench} }},
]
""")
    monkeypatch.setenv("VDEBLUR_REGISTRY", str(folder / "registry.toml"))
    assert vdeblur("models", "import", folder / "tiny.safetensors", "--as", "tiny@drawn").exit_code == 0


def test_dstnets_protocol_feeds_its_chunks(
    vdeblur, footage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(vdeblur, tmp_path, monkeypatch)
    monkeypatch.setattr(protocols, "OTHER_CHUNK", 3)
    for name, feed in (("dstnet", "stream_chunks"), ("plain", "stream")):
        task = results.BenchTask(str(footage), ("tiny",), name, precision="fp32", save=tmp_path / name)
        evaluate.run_bench(task)
        network = weights.load_model("tiny")
        blurry = torch.from_numpy(read(footage / SEQUENCES[0] / "blur")).permute(0, 3, 1, 2) / 255
        plan = tiles.cut_tiles(64, 96, None, 0, tiles.TileNeeds.of(network))
        with torch.inference_mode():
            options = {"chunk": 3} if name == "dstnet" else {}
            restored = list(getattr(streams, feed)(network, map(plan.pad, blurry.split(1)), plan, **options))
        wanted = (plan.crop(torch.cat(restored)) * 255).round().clamp(0, 255).permute(0, 2, 3, 1).numpy()
        differences = numpy.abs(read(tmp_path / name / "tiny" / SEQUENCES[0]) - wanted)
        assert differences.max() <= 1
        assert (differences > 0).mean() < 1e-3  # where a value lies between two codes
    chunked, unchunked = (read(tmp_path / name / "tiny" / SEQUENCES[0]) for name in ("dstnet", "plain"))
    assert (chunked != unchunked).any()


@pytest.mark.slow
def test_turtles_protocol_cuts_its_tiles(footage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of 64 in frames of 96x64, with their plain mean; the whole frame restores otherwise."""
    blocks = "encoder_blocks = [1, 1, 1], middle_blocks = 2, decoder_blocks = [1, 1, 1], refinement_blocks = 1"
    lines = f'[tiny]\nnetwork = "turtle"\narguments = {{ channels = 4, {blocks} }}\ndescription = ""\nlicense = "MIT"\n'
    (tmp_path / "registry.toml").write_text(f'{lines}no_weights = "for tests"\n')
    monkeypatch.setenv("VDEBLUR_REGISTRY", str(tmp_path / "registry.toml"))
    torch.manual_seed(0)
    network = registry.find_entry("tiny").build().eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    monkeypatch.setattr(weights, "load_model", lambda name, **options: network)
    monkeypatch.setattr(contenders, "TILE_SIDE", 64)
    monkeypatch.setattr(protocols, "OTHER_OVERLAP", 32)
    evaluate.run_bench(results.BenchTask(str(footage), ("tiny",), "turtle", precision="fp32", save=tmp_path / "turtle"))
    blurry = torch.from_numpy(read(footage / SEQUENCES[0] / "blur")).permute(0, 3, 1, 2) / 255
    found = {}
    plans = {
        "tiles": tiles.cut_mean_tiles(64, 96, 64, 32),
        "whole": tiles.cut_tiles(64, 96, None, 0, tiles.TileNeeds()),
    }
    for name, plan in plans.items():
        with torch.inference_mode():
            restored = torch.cat(list(streams.stream(network, map(plan.pad, blurry.split(1)), plan)))
        wanted = (plan.crop(restored) * 255).round().clamp(0, 255).permute(0, 2, 3, 1).numpy()
        found[name] = numpy.abs(read(tmp_path / "turtle" / "tiny" / SEQUENCES[0]) - wanted).max()
    assert found["tiles"] <= 1 < found["whole"]


# Published figures


@pytest.fixture
def gopro(footage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let GoPro be a small set."""
    spans = {sequence: NumberSpan(FRAMES) for sequence in SEQUENCES}
    small = KnownSet("gopro", "GoPro", "", "", "test", "", {"test": spans})
    for module in (datasets_known, layouts):
        monkeypatch.setattr(module, "known_sets", lambda: {"gopro": small})


@pytest.mark.usefixtures("gopro")
def test_published_figures_only_where_all_matches(
    vdeblur, footage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(vdeblur, tmp_path, monkeypatch)
    monkeypatch.setattr(contenders, "ALWAYS", ("identity",))
    known = ("--dataset", "gopro", "--data", footage, "--model", "tiny")
    result = vdeblur("bench", *known, "--protocol", "dstnet", "--report", tmp_path / "r.json")
    assert "31.50 / 0.9100 (3D)" in result.stdout
    rows = by_name(json.loads((tmp_path / "r.json").read_text()))
    wanted = {"psnr": 31.5, "ssim": 0.91, "ssim_kind": "3D", "protocol": "in words", "data": "GoPro"}
    wanted["weights"] = rows["tiny"]["weights"]
    assert rows["tiny"]["published"] == wanted
    assert rows["identity"]["published"] is None

    result = vdeblur("bench", *known, "--protocol", "plain")
    assert "31.50" not in result.stdout, "another protocol"
    assert "tiny: figures were published by protocol dstnet" in result.stdout
    result = vdeblur("bench", *known, "--protocol", "dstnet", "--limit", 2)
    assert "31.50" not in result.stdout, "only some frames"
    (tmp_path / "tiny.safetensors").unlink()
    torch.manual_seed(1)
    safetensors.torch.save_file(DSTNet(channels=8, width=8, blocks=1).state_dict(), tmp_path / "mine.safetensors")
    assert vdeblur("models", "import", tmp_path / "mine.safetensors", "--as", "tiny@mine").exit_code == 0
    result = vdeblur("bench", *known[:-1], "tiny@mine", "--protocol", "dstnet")
    assert result.exit_code == 0
    assert f"31.50 / 0.9100 (3D) of @{wanted['weights']}" in result.stdout, "imported weights, beside the paper's"


def test_the_registrys_scores_name_protocols_that_there_are() -> None:
    scores = [
        score
        for entry in registry.known_models().values()
        for weights in entry.weights.values()
        for score in weights.scores
    ]
    titles = {known.title for known in datasets_known.known_sets().values()}
    named = [score for score in scores if score.bench]
    assert len(named) >= 15
    for score in named:
        assert set(score.bench) <= protocols.PROTOCOLS.keys()
        assert score.data in titles
        if score.ssim_kind in ("2D", "3D"):
            assert all(protocols.PROTOCOLS[name].ssim in (score.ssim_kind, "both") for name in score.bench)
        assert (score.ssim_kind == "Koehler") == (score.bench == ("pvdnet",))
    assert set(cli_bench.PROTOCOLS) == protocols.PROTOCOLS.keys()


def test_speed_is_asked_for_by_the_same_command(vdeblur, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple] = []
    monkeypatch.setattr(cli_bench, "run_speed", lambda *facts: calls.append(facts[:-1]))
    report = tmp_path / "speed.md"
    options = ("--size", "64x48", "--frames", 4, "--repeats", 2, "-d", "cpu", "-p", "fp32,bf16", "--report", report)
    assert vdeblur("bench", "--speed", "--model", "lite,identity", *options, "--json").exit_code == 0
    task = SpeedTask(("lite", "identity"), ("fp32", "bf16"), "64x48", 4, "cpu", (), 2)
    assert calls == [(task, report, True)]


def test_memory_that_was_taken_is_seen() -> None:
    peak = memory.Peak(torch.device("cpu"))
    with peak:
        pass
    before = peak.bytes
    with peak:
        torch.ones(30_000_000)
    if before is None:
        pytest.skip("this system does not tell")
    assert peak.bytes > before + 100_000_000
    taken = peak.bytes
    with peak:
        pass
    assert peak.bytes == taken


# Interruptions and faults


def test_an_interrupted_bench_goes_on(footage: Path) -> None:
    task = results.BenchTask(str(footage), ("identity",))
    undisturbed = evaluate.run_bench(task)
    finished: list[tuple[str, str]] = []

    def notify(event: str, facts: dict) -> None:
        if event == "sequence_done":
            finished.append((facts["model"], facts["sequence"]))

    def stop() -> ExitStatus | None:
        return ExitStatus.INTERRUPTED if len(finished) == 3 else None

    with pytest.raises(InterruptedRunError):
        evaluate.run_bench(task, notify=notify, stop=stop)
    assert finished == [("identity", SEQUENCES[0]), ("identity", SEQUENCES[1]), ("unsharp", SEQUENCES[0])]
    models: dict[str, int] = {}
    counted: dict[str, int] = {}

    def count(event: str, facts: dict) -> None:
        if event == "bench_model":
            models[facts["model"]] = facts["finished"]
        if event == "progress":
            counted[facts["input"]] = facts["frame"]

    report = evaluate.run_bench(task, notify=count)
    assert models == {"identity": 2, "unsharp": 1, "cas": 0}
    assert counted == {"unsharp": FRAMES, "cas": 2 * FRAMES}, "frames that were restored this time"
    for model, other in zip(undisturbed.models, report.models, strict=True):
        assert [frame.psnr for sequence in model.sequences for frame in sequence.frames] == [
            frame.psnr for sequence in other.sequences for frame in sequence.frames
        ]
    assert not list((files.cache_folder() / "bench").iterdir()), "nothing is left when it is through"


@pytest.mark.parametrize("change", ["protocol", "limit", "pictures", "save"])
def test_what_is_kept_serves_only_the_same(footage: Path, tmp_path: Path, change: str) -> None:
    folder = arrange(footage, tmp_path / "set", "{}/blur", "{}/sharp")
    task = results.BenchTask(str(folder), ("identity",))
    seen: list[str] = []
    with pytest.raises(InterruptedRunError):
        evaluate.run_bench(
            task,
            notify=lambda event, facts: seen.append(event),
            stop=lambda: ExitStatus.INTERRUPTED if "sequence_done" in seen else None,
        )
    if change == "pictures":
        place = folder / SEQUENCES[1] / "blur"
        place.unlink()
        place.symlink_to(footage / SEQUENCES[0] / "sharp")
        with pytest.raises(InputError, match="without a partner"):
            evaluate.run_bench(task)
        place.unlink()
        place.mkdir()
        for file in (footage / SEQUENCES[1] / "sharp").iterdir():
            (place / file.name).write_bytes(file.read_bytes())
    else:
        other: dict[str, Any] = {"protocol": "cdvd-tsp", "limit": 4, "save": tmp_path / "kept"}
        task = dataclasses.replace(task, **{change: other[change]})
    models: list[int] = []
    evaluate.run_bench(task, notify=lambda event, facts: models.append(facts.get("finished", 0)))
    assert not any(models)


def test_saved_frames_that_are_gone_are_made_again(footage: Path, tmp_path: Path) -> None:
    task = results.BenchTask(str(footage), ("identity",), save=tmp_path / "kept")
    seen: list[str] = []
    with pytest.raises(InterruptedRunError):
        evaluate.run_bench(
            task,
            notify=lambda event, facts: seen.append(event),
            stop=lambda: ExitStatus.INTERRUPTED if seen.count("sequence_done") == 2 else None,
        )
    first, second = (tmp_path / "kept" / "identity" / name for name in SEQUENCES)
    min(first.iterdir()).unlink()
    models: list[int] = []
    evaluate.run_bench(task, notify=lambda event, facts: models.append(facts.get("finished", 0)))
    assert max(models) == 1, "the other sequence's frames are there"
    assert len(list(first.iterdir())) == len(list(second.iterdir())) == FRAMES


def test_a_signal_ends_it_cleanly(vdeblur, footage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = kept.ResultCache.write

    def then_interrupt(self: kept.ResultCache, result: results.SequenceResult) -> None:
        write(self, result)
        os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(kept.ResultCache, "write", then_interrupt)
        result = vdeblur("bench", "--dataset", footage, "--model", "identity")
    assert result.exit_code == 130
    assert "1 sequence kept: the same command continues" in result.stderr
    assert len(list((files.cache_folder() / "bench").rglob("*.json"))) == 1
    result = vdeblur("bench", "--dataset", footage, "--model", "identity")
    assert "1 sequence kept from an interrupted bench" in result.stderr


def test_a_sequence_that_is_too_short(vdeblur, footage: Path) -> None:
    result = vdeblur("bench", "--dataset", footage, "--protocol", "cdvd-tsp", "--limit", 4)
    assert result.exit_code == 3
    assert "leaves out 4 frames of each sequence" in result.output


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        ((), 2, "--dataset gopro, or --speed"),
        (("--dataset", "nowhere"), 3, "no such folder (choose gopro, dvd, reds, bsd, or an existing folder"),
        (("--dataset", "{}", "--model", "lite,none"), 5, "unknown model 'none'"),
        (("--dataset", "{}", "--model", "spn"), 5, "spn has no published weights"),
        (("--dataset", "{}", "--model", "cdvd-tsp"), 5, "has no digest from its authors"),
        (("--dataset", "{}", "--model", "best"), 2, "no model of its own"),
        (("--dataset", "{}", "--model", "lite,"), 2, "has an empty name"),
        (("--dataset", "{}", "--protocol", "mine"), 2, "is not one of 'plain', 'cdvd-tsp'"),
        (("--dataset", "{}", "--precision", "fp32,bf16"), 2, "several only with --speed"),
        (("--dataset", "{}", "--precision", "int8"), 2, "'int8' is not one of auto, fp32, bf16, fp16"),
        (("--dataset", "{}", "--speed"), 2, "--speed needs no data set"),
        (("--speed", "--report", "a.md", "--report", "b.md"), 2, "writes one report"),
        (("--dataset", "{}", "--report", "report.pdf"), 2, "a report cannot be of the kind '.pdf'"),
        (("--dataset", "{}", "--data", "{}"), 2, "--data is for known data sets"),
        (("--dataset", "gopro", "--offline"), 5, "GoPro is not in the cache, and the network is off"),
        (("--dataset", "bsd"), 5, "its authors published no digest"),
        (("--dataset", "{}", "--device", "cuda:7"), 6, "there is no device"),
    ],
)
def test_what_users_do_wrong(vdeblur, footage: Path, arguments: tuple[str, ...], status: int, words: str) -> None:
    result = vdeblur("bench", *(argument.format(footage) for argument in arguments))
    assert result.exit_code == status
    assert words in result.output


def test_pictures_of_other_sizes(vdeblur, footage: Path, tmp_path: Path) -> None:
    folder = arrange(footage, tmp_path, "{}/blur", "{}/other")
    for sequence in SEQUENCES:
        (folder / sequence / "sharp").mkdir()
        for file in (folder / sequence / "other").iterdir():
            clips.ffmpeg("-i", file, "-vf", "crop=94:64", folder / sequence / "sharp" / file.name)
    result = vdeblur("bench", "--dataset", folder)
    assert result.exit_code == 3
    assert "has another size than" in result.output


def test_a_jpeg_is_decoded_nearly_as_libjpeg_does(vdeblur, tmp_path: Path) -> None:
    from skimage.io import imread  # Pillow, so libjpeg

    y, x = numpy.mgrid[:64, :96]
    waves = numpy.stack([127 + 120 * numpy.sin(x / 5), 127 + 120 * numpy.sin((x + y) / 7), x * 2], 2)
    (tmp_path / "one.rgb").write_bytes(waves.round().astype(numpy.uint8).tobytes())
    raw = ("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", "96x64", "-i", tmp_path / "one.rgb")
    for kind, quality in (("input", 8), ("GT", 2)):
        (tmp_path / "one" / kind).mkdir(parents=True)
        clips.ffmpeg(*raw, "-pix_fmt", "yuvj420p", "-q:v", quality, tmp_path / "one" / kind / "00000.jpg")
    file = tmp_path / "one" / "GT" / "00000.jpg"
    ours = pictures.read_rgb(file).permute(1, 2, 0).numpy()
    assert clips.psnr(ours[None], imread(file)[None]) > 48
    result = vdeblur("bench", "--dataset", tmp_path, "--model", "identity")
    assert "JPEG decoder: FFmpeg's, chroma bilinear" in result.stdout
