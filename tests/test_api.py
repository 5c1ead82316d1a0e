"""The public API: what `import vdeblur` offers, and that it does what the command line does."""

import dataclasses
import inspect
import subprocess
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import get_type_hints

import numpy
import pytest
import torch
from torch import Tensor, nn

import vdeblur as api
from tests import clips
from tests.conftest import ROOT
from tests.test_docs import fences
from vdeblur.errors import ExitStatus
from vdeblur.models import weights
from vdeblur.models.model import Model
from vdeblur.networks import NETWORKS
from vdeblur.networks.layers import Network

SIZE = (48, 64)
# Arguments of networks that would take long otherwise
SMALL: dict[str, dict] = {
    "basicvsrpp": {"blocks": 2},
    "turtle": {"channels": 4, "encoder_blocks": (1, 1, 1), "middle_blocks": 2, "decoder_blocks": (1, 1, 1)},
}
MY_NET = """
from torch import Tensor
from vdeblur.networks.layers import Network

class Negative(Network):
    feeding = "frame"

    def forward(self, blurry: Tensor) -> Tensor:
        return 1 - blurry
"""


class Mean(Network):
    """The mean of a frame and its neighbours; where half precision is asked for, it may overflow."""

    feeding, radius, overlap, reach = "window", 1, 8, 0
    half_precision = ("bf16",)

    def __init__(self, overflows: bool = False) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(()))
        self.overflows = overflows

    def forward(self, window: Tensor) -> Tensor:
        mean = (window * self.factor.float()).mean(1)
        return mean * torch.inf if self.overflows and self.factor.dtype != torch.float32 else mean


class Greedy(Network):
    """Leaves frames as they are, and has no memory for large tiles."""

    feeding, overlap, reach = "frame", 8, 0

    def forward(self, blurry: Tensor) -> Tensor:
        if blurry.shape[-1] > 64:
            raise torch.OutOfMemoryError("out of memory")
        return blurry


class Doubtful(Network):
    """Returns values that are not finite."""

    feeding = "frame"

    def forward(self, blurry: Tensor) -> Tensor:
        return blurry / 0


def moving_clip(frames: int = 5, height: int = SIZE[0], width: int = SIZE[1]) -> Tensor:
    """A texture that pans: (T, 3, H, W), uint8."""
    generator = torch.Generator().manual_seed(1)
    wide = nn.functional.avg_pool2d(torch.rand(1, 3, height, width + 3 * frames, generator=generator), 5, 1, 2)[0]
    return torch.stack([(wide[..., 3 * t : 3 * t + width] * 255).round().to(torch.uint8) for t in range(frames)])


def drawn(name: str) -> Network:
    """An untrained network whose last layers do something."""
    torch.manual_seed(0)
    network = NETWORKS[name](**SMALL.get(name, {}))
    for parameter in network.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.02)
    return network.eval()


def model_of(network: Network, **options) -> Model:
    return api.load_model(network, device="cpu", precision=options.pop("precision", "fp32"), **options)


# What the package offers


def test_importing_it_is_light() -> None:
    code = "import sys, vdeblur; vdeblur.Settings(); dir(vdeblur)\n"
    code += "assert not {'torch', 'av', 'numpy', 'click', 'rich', 'requests'} & set(sys.modules)\n"
    code += "assert callable(vdeblur.open) and 'torch' in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_name_is_there_and_documented() -> None:
    assert {*api.__all__, "open"} == set(dir(api))
    for name in {*api.__all__, "open"} - {"__version__"}:
        assert inspect.getdoc(getattr(api, name)), name
    with pytest.raises(AttributeError, match="no attribute 'deblurr'"):
        api.deblurr  # type: ignore[attr-defined]  # noqa: B018


def test_type_checkers_read_the_annotations() -> None:
    """PEP 561; without the marker they take every name of an installed package for Any."""
    assert Path(api.__file__).with_name("py.typed").is_file()


def test_a_star_import_leaves_the_builtin_open() -> None:
    names: dict = {}
    exec("from vdeblur import *", names)
    assert "deblur" in names
    assert "open" not in names


def test_every_error_is_exported() -> None:
    from vdeblur import errors

    for name, kind in vars(errors).items():
        if isinstance(kind, type) and issubclass(kind, errors.VdeblurError):
            assert getattr(api, name) is kind


def test_the_keywords_of_deblur_are_the_fields_of_the_settings() -> None:
    kinds = (api.Settings, api.EncodeOptions, api.Cut)
    expected = {field.name for kind in kinds for field in dataclasses.fields(kind)}
    assert set(get_type_hints(api.RunOptions)) == expected | {"weights"}


# deblur


def test_deblur_writes_what_run_writes(vdeblur, tmp_path: Path) -> None:
    source = clips.make(tmp_path / "in.mkv", frames=6)
    run = vdeblur(
        "run", source, tmp_path / "run.mkv", "--lossless", "-ss", "0.04", "--frames", "3", "--strength", "0.5"
    )
    assert run.exit_code == 0, run.output
    output = str(tmp_path / "out.mkv")
    result = api.deblur(str(source), output, lossless=True, start=0.04, frames=3, strength=0.5)
    assert (result.output, result.frames, result.warnings) == (Path(output), 3, ())
    assert clips.frame_hashes(tmp_path / "run.mkv") == clips.frame_hashes(result.output)


def test_deblur_takes_settings_and_keywords_replace_their_fields(tmp_path: Path) -> None:
    source = clips.make(tmp_path / "in.mkv", frames=6)
    settings = api.Settings(
        model="identity", cut=api.Cut(frames=2), encoding=api.EncodeOptions(codec="ffv1", overwrite=True)
    )
    output = tmp_path / "out.mkv"
    output.write_bytes(b"before")
    assert api.deblur(source, output, settings=settings).frames == 2
    assert clips.facts(output).streams == [("video", "ffv1")]
    assert api.deblur(source, output, settings=settings, frames=3, codec="h264").frames == 3
    assert clips.facts(output).streams == [("video", "h264")]


def test_deblur_does_all_that_settings_say(tmp_path: Path) -> None:
    """Samples and comparisons, which once only the command line made."""
    source = clips.make(tmp_path / "in.mkv", frames=20)
    events: list[str] = []
    api.deblur(
        source, tmp_path / "out.mkv", model="identity", compare="side", notify=lambda name, facts: events.append(name)
    )
    assert clips.facts(tmp_path / "out_side.mkv").size == (2 * 64, 48)
    assert "comparison" in events
    api.deblur(source, tmp_path / "sample.mkv", model="identity", sample=True)
    assert clips.facts(tmp_path / "sample.mkv").size == (2 * 64, 48)


def test_deblur_takes_a_folder_as_the_command_line_does(tmp_path: Path) -> None:
    source = clips.make(tmp_path / "in.mkv", frames=2)
    assert api.deblur(source, f"{tmp_path}/out.d/", model="identity").frames == 2
    assert [path.name for path in (tmp_path / "out.d").iterdir()] == ["in.mkv"]
    assert api.deblur(source, f"{tmp_path}/p/%d.png", model="identity").frames == 2
    assert api.deblur(source, f"{tmp_path}/more/", model="identity", pictures=True).frames == 2
    assert len(list((tmp_path / "p").iterdir())) == len(list((tmp_path / "more").iterdir())) == 2


def test_options_of_the_encoder_as_a_dict(tmp_path: Path) -> None:
    source = clips.make(tmp_path / "in.mkv", frames=2)
    with pytest.raises(api.VdeblurError, match="nonsense"):
        api.deblur(source, tmp_path / "out.mkv", model="identity", codec="h264", options={"nonsense": "1"})


def test_deblur_stops_when_asked_to(tmp_path: Path) -> None:
    source = clips.make(tmp_path / "in.mkv", frames=6)
    with pytest.raises(api.InterruptedRunError):
        api.deblur(source, tmp_path / "out.mkv", model="identity", should_stop=lambda: ExitStatus.INTERRUPTED)
    assert not (tmp_path / "out.mkv").exists()


def test_unknown_options_name_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(api.UsageError, match=r"unknown option 'strenght' \(did you mean strength"):
        api.deblur("in.mp4", "out.mp4", strenght=0.5)  # type: ignore[call-arg]
    with pytest.raises(api.UsageError, match="choose from audio, "):
        api.deblur("in.mp4", "out.mp4", zzz=1)  # type: ignore[call-arg]
    with pytest.raises(api.UsageError, match="weights and checkpoint"):
        api.deblur("in.mp4", "out.mp4", weights="a.pt", checkpoint="b.pt")


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"precision": "fp8"}, "UsageError"),
        ({"strength": 7}, "UsageError"),
        ({"device": "abacus"}, "DeviceError"),
        ({"model": "nope"}, "ModelError"),
        ({"crf": -1}, "UsageError"),
        ({"frames": 0}, "UsageError"),
        ({"start": "soon"}, "UsageError"),
        ({"start": 2, "stop": 1}, "UsageError"),
        ({"compare": "upside-down"}, "UsageError"),
        ({"deinterlace": "perhaps"}, "UsageError"),
    ],
    ids=str,
)
def test_wrong_values_are_one_clear_error(tmp_path: Path, options: dict, kind: str) -> None:
    source = clips.make(tmp_path / "in.mkv", frames=2)
    with pytest.raises(api.VdeblurError) as caught:
        api.deblur(source, tmp_path / "out.mkv", **options)
    assert type(caught.value).__name__ == kind
    assert caught.value.hint
    assert str(*options.values() if len(options) == 1 else "1") in str(caught.value)
    assert {path.name for path in tmp_path.iterdir()} <= {"in.mkv", "cache"}, "nothing was begun"


@pytest.mark.parametrize(
    ("model", "options", "kind"),
    [
        ("lite", {"precision": "fp8"}, "UsageError"),
        ("lite", {"strength": 7}, "UsageError"),
        ("lite", {"device": "abacus"}, "DeviceError"),
        ("lite", {"weights": "no.safetensors"}, "ModelError"),
        ("nope", {}, "ModelError"),
        ("best", {}, "UsageError"),
        (nn.Conv2d(3, 3, 3), {}, "UsageError"),
        (Mean(), {"weights": "some.pt"}, "UsageError"),
    ],
    ids=str,
)
def test_wrong_values_for_load_model(model, options: dict, kind: str) -> None:
    with pytest.raises(api.VdeblurError) as caught:
        api.load_model(model, **options)
    assert type(caught.value).__name__ == kind
    assert caught.value.hint


# Models: clips and streams


@pytest.mark.parametrize("name", ["lite", "stub", "dstnet", "cdvd-tsp", "basicvsrpp", "pvdnet"])
def test_clip_stream_and_run_agree(name: str, vdeblur, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = weights.load_model("lite") if name == "lite" else Mean() if name == "stub" else drawn(name)
    monkeypatch.setattr(weights, "load_model", lambda *_: network)
    clip = moving_clip()
    save_pictures(clip, tmp_path / "in")
    options = ("-d", "cpu", "-p", "fp32", "--no-scene-detect", "--no-guard", "-m", "lite")  # Model has no guard
    run = vdeblur("run", tmp_path / "in", tmp_path / "out", *options)
    assert run.exit_code == 0, run.output
    written = read_pictures(tmp_path / "out")
    model = api.load_model("lite", device="cpu", precision="fp32")
    restored = model(clip)
    assert (restored.int() - clip.int()).abs().max() > 1, "the network is meant to do something"
    torch.testing.assert_close(restored, written, rtol=0, atol=1)
    assert torch.equal(torch.stack(list(model.stream(clip))), restored)
    in_floats = model(clip.float() / 255)
    torch.testing.assert_close(in_floats * 255, restored.float(), rtol=0, atol=0.51)


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_every_network_restores_clips(name: str) -> None:
    model, clip = model_of(drawn(name)), moving_clip(3, 33, 35).float() / 255
    restored = model(clip)
    assert restored.shape == clip.shape
    assert restored.min() >= 0
    assert restored.max() <= 1
    torch.testing.assert_close(torch.stack(list(model.stream(iter(clip)))), restored, rtol=0, atol=0)


def save_pictures(clip: Tensor, folder: Path) -> None:
    folder.mkdir()
    raw = folder.with_suffix(".rgb")
    raw.write_bytes(clip.permute(0, 2, 3, 1).contiguous().numpy().tobytes())
    size = f"{clip.shape[3]}x{clip.shape[2]}"
    clips.ffmpeg("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", size, "-i", raw, folder / "%03d.png")


def read_pictures(folder: Path) -> Tensor:
    pictures = [clips.rgb(path)[0] for path in sorted(folder.iterdir())]
    return torch.from_numpy(numpy.stack(pictures)).permute(0, 3, 1, 2)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("batch", [None, 2])
def test_tensors_come_back_as_they_were(dtype: torch.dtype, batch: int | None) -> None:
    clip = moving_clip() if dtype == torch.uint8 else (moving_clip().float() / 255).to(dtype)
    if batch:
        clip = torch.stack((clip, clip.flip(1)))
    restored = model_of(Mean())(clip)
    assert (restored.shape, restored.dtype, restored.device) == (clip.shape, dtype, clip.device)
    padded = torch.cat((clip[..., :1, :, :, :], clip, clip[..., -1:, :, :, :]), -4).double()
    mean = torch.stack([padded[..., shift : shift + 5, :, :, :] for shift in range(3)]).mean(0)
    limit = {torch.uint8: 0.51, torch.bfloat16: 0.005, torch.float16: 0.001}.get(dtype, 1e-6)
    torch.testing.assert_close(restored.double(), mean, rtol=0, atol=limit)


@pytest.mark.parametrize("dtype", [numpy.uint8, numpy.float16, numpy.float32, numpy.float64])
@pytest.mark.parametrize("batch", [None, 2])
def test_arrays_come_back_as_they_were(dtype: type, batch: int | None) -> None:
    model = model_of(Mean())
    tensor = moving_clip() if dtype is numpy.uint8 else moving_clip().float() / 255
    clip: numpy.ndarray = tensor.permute(0, 2, 3, 1).numpy().astype(dtype)
    clip.flags.writeable = False
    clip = numpy.stack((clip, clip[:, ::-1])) if batch else clip
    restored = model(clip)
    assert (type(restored), restored.shape, restored.dtype) == (numpy.ndarray, clip.shape, clip.dtype)
    first = torch.from_numpy((restored[0] if batch else restored).astype(numpy.float64)).permute(0, 3, 1, 2)
    torch.testing.assert_close(first, model(tensor).double(), rtol=0, atol=1e-3)
    frames = list(model.stream(clip[0] if batch else clip))
    assert all(isinstance(frame, numpy.ndarray) and frame.dtype == clip.dtype for frame in frames)


def test_results_are_plain_tensors() -> None:
    """Inference tensors would refuse to be changed in place, or to be part of a loss."""
    clip = (moving_clip().float() / 255).requires_grad_()
    for restored in (model_of(Mean())(clip), next(model_of(Mean()).stream(clip))):
        assert not restored.is_inference()
        assert not restored.requires_grad
        restored.mul_(2)
        (restored * torch.ones((), requires_grad=True)).sum().backward()


def test_frames_that_a_stream_makes_are_no_inference_tensors() -> None:
    made: list[Tensor] = []

    def frames() -> Iterator[Tensor]:
        for _ in range(4):
            made.append(torch.rand(3, 8, 8))
            yield made[-1]

    assert len(list(model_of(Mean()).stream(frames()))) == 4
    assert not any(frame.is_inference() for frame in made)


@pytest.mark.parametrize(("name", "most"), [("stub", 2), ("lite", 2), ("cdvd-tsp", 4), ("dstnet", 40)])
def test_a_stream_reads_no_more_than_the_network_needs(name: str, most: int) -> None:
    """So an endless video has its first frames restored, in bounded memory."""
    model, frame = model_of(Mean() if name == "stub" else drawn(name)), moving_clip(1, 16, 16)[0]
    read = 0

    def frames() -> Iterator[Tensor]:
        nonlocal read
        while True:
            read += 1
            yield frame

    stream = model.stream(frames())
    for count in range(1, 5):
        assert next(stream).shape == frame.shape
        assert read <= count + most
    stream.close()


def test_an_empty_stream_and_an_empty_clip() -> None:
    model = model_of(Mean())
    assert list(model.stream([])) == []
    assert model(moving_clip()[:0]).shape == (0, 3, *SIZE)


@pytest.mark.parametrize(
    ("clip", "message"),
    [
        (torch.zeros(3, 8, 8), r"\(T, 3, H, W\) or \(B, T, 3, H, W\), not \(3, 8, 8\)"),
        (torch.zeros(2, 8, 8, 3), r"a tensor must be \(3, H, W\), not \(8, 8, 3\)"),
        (numpy.zeros((2, 3, 8, 8), numpy.float32), r"an array must be \(H, W, 3\), not \(3, 8, 8\)"),
        (numpy.zeros((8, 8, 3), numpy.uint8), r"\(T, H, W, 3\)"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.int64), "int64"),
        (numpy.zeros((2, 8, 8, 3), numpy.uint16), "uint16"),
        (torch.full((2, 3, 8, 8), 200.0), r"in \[0, 1\], not 200 to 200"),
        (torch.full((2, 3, 8, 8), torch.nan), r"in \[0, 1\], not nan"),
        (torch.zeros(2, 3, 0, 8), r"not \(3, 0, 8\)"),
        ([torch.zeros(3, 8, 8)], "not list"),
    ],
    ids=str,
)
def test_what_is_no_clip_is_refused(clip, message: str) -> None:
    with pytest.raises(api.UsageError, match=message):
        model_of(Mean())(clip)


def test_frames_of_two_sizes_are_refused() -> None:
    with pytest.raises(api.UsageError, match="one size, but one is 9x8 after 8x8"):
        list(model_of(Mean()).stream([torch.zeros(3, 8, 8), torch.zeros(3, 8, 9)]))


def test_an_error_of_the_frames_is_passed_on() -> None:
    def frames() -> Iterator[Tensor]:
        yield torch.zeros(3, 8, 8)
        raise RuntimeError("out of memory")  # as an allocator says it, but it is not ours

    with pytest.raises(RuntimeError, match="out of memory"):
        list(model_of(Mean()).stream(frames()))


# Models: devices, tiles, recovery


def test_a_model_says_what_it_is() -> None:
    model = api.load_model("lite", device="cpu", precision="bf16")
    assert (model.name, model.device, model.precision) == ("lite", torch.device("cpu"), "bf16")
    assert isinstance(model.network, nn.Module)
    assert not model.network.training
    assert repr(model) == "Model('lite', device='cpu', precision='bf16')"


def test_tiles_and_strength() -> None:
    clip = moving_clip(4, 80, 112).float() / 255
    whole = model_of(Mean())(clip)
    torch.testing.assert_close(model_of(Mean(), tile="40", tile_overlap=8)(clip), whole, rtol=0, atol=1e-6)
    torch.testing.assert_close(model_of(Mean(), strength=0.5)(clip), (clip + whole) / 2, rtol=0, atol=1e-6)
    with pytest.raises(api.UsageError, match="too small"):
        model_of(Mean(), tile="8")(clip)


def test_smaller_tiles_where_memory_does_not_suffice() -> None:
    events: list[tuple[str, dict]] = []
    model = model_of(Greedy(), notify=lambda name, facts: events.append((name, facts)))
    clip = moving_clip(3, 40, 200)
    assert torch.equal(model(clip), clip)
    assert {facts["code"] for _, facts in events} == {"W_OUT_OF_MEMORY"}


def test_float32_where_half_precision_overflows() -> None:
    events: list[dict] = []
    model = model_of(Mean(overflows=True), precision="bf16", notify=lambda _, facts: events.append(facts))
    clip = moving_clip(5)
    assert torch.equal(model(clip), model_of(Mean())(clip))
    assert [facts["code"] for facts in events] == ["W_NON_FINITE"]
    with pytest.raises(api.DeviceError, match="not finite"):
        model_of(Doubtful())(clip)


def test_a_precision_that_a_network_does_not_bear_warns() -> None:
    codes: list[object] = []
    model_of(Mean(), precision="fp16", notify=lambda _, facts: codes.append(facts["code"]))
    assert codes == ["W_PRECISION"]


@pytest.mark.cuda
def test_a_clip_on_the_cpu_and_a_model_on_a_gpu() -> None:
    model = api.load_model("lite", device="cuda", precision="fp32")
    clip = moving_clip()
    on_cpu, on_gpu = model(clip), model(clip.cuda())
    assert (on_cpu.device.type, on_gpu.device.type) == ("cpu", "cuda")
    torch.testing.assert_close(on_cpu, on_gpu.cpu(), rtol=0, atol=1)
    half = api.load_model("lite", device="cuda")
    assert half.precision == "fp16"
    torch.testing.assert_close(half(clip), on_cpu, rtol=0, atol=3)


# Networks of one's own


def test_a_network_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "my_net.py"
    path.write_text(MY_NET)
    model = api.load_model(f"{path}:Negative", device="cpu")
    assert type(model.network).__name__ == "Negative"
    assert torch.equal(model(moving_clip()), 255 - moving_clip())
    with pytest.raises(api.ModelError, match="Positive"):
        api.load_model(f"{path}:Positive")
    with pytest.raises(api.ModelError, match=r"absent\.py"):
        api.load_model(f"{tmp_path}/absent.py:Negative")


def test_the_example_of_an_own_network(tmp_path: Path) -> None:
    model = api.load_model(f"{ROOT / 'examples' / 'own_network.py'}:UnsharpMask", device="cpu", precision="fp32")
    clip = moving_clip(2, 40, 200).float() / 255
    sharp = model(clip)
    assert (sharp - clip).abs().mean() > 0.01
    tiled = api.load_model(type(model.network)(), device="cpu", precision="fp32", tile="64")
    torch.testing.assert_close(tiled(clip), sharp, rtol=0, atol=1e-6)
    run_example("own_network.py", clips.make(tmp_path / "in.mp4", frames=3), tmp_path / "out.mp4")


def test_the_example_that_restores_a_file_and_a_clip(tmp_path: Path) -> None:
    said = run_example("restore_clip.py", clips.make(tmp_path / "in.mp4", frames=6), tmp_path / "out.mp4")
    assert "lite changed pixels by" in said


def run_example(name: str, source: Path, output: Path) -> str:
    command = [sys.executable, str(ROOT / "examples" / name), str(source), str(output)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(clips.facts(output).seconds) == len(clips.facts(source).seconds)
    return done.stdout


def test_the_examples_of_the_python_page_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clips.make(tmp_path / "in.mp4", frames=12, codec=("-c:v", "libx264", "-preset", "ultrafast"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    names: dict = {}
    for code in fences(ROOT / "docs" / "python.md", "python"):
        if code.startswith("# my_net.py"):
            (tmp_path / "my_net.py").write_text(code)
        exec(compile(code, "docs/python.md", "exec"), names)
    assert names["sharp"].shape == names["clip"].shape == (8, 3, *SIZE)
    assert "missing.mp4: no such file" in capsys.readouterr().out
    assert {path.name for path in tmp_path.glob("*.*")} == {
        *("in.mp4", "out.mp4", "part.mp4", "page.html", "wipe.mp4", "profile.png", "my_net.py", "my_net.safetensors")
    }


# open


def test_frames_have_their_pictures_and_times(tmp_path: Path) -> None:
    source = clips.make(tmp_path / "in.mkv", frames=4, pix_fmt="yuv444p")
    with api.open(str(source)) as video:
        assert (video.width, video.height, video.rate, video.frames, video.rotation) == (64, 48, 25, 4, 0)
        frames = list(video)
    assert [frame.seconds for frame in frames] == pytest.approx([0, 0.04, 0.08, 0.12])
    assert [frame.duration for frame in frames] == pytest.approx([0.04] * 4)
    for frame, expected in zip(frames, clips.rgb(source), strict=True):
        rgb = frame.rgb()
        assert (rgb.shape, rgb.dtype) == ((3, 48, 64), torch.float32)
        error = (rgb.permute(1, 2, 0) * 255 - torch.from_numpy(expected.astype(numpy.float32))).abs()
        assert error.max() < 2, "the independent ffmpeg rounds"


def test_durations_follow_a_variable_rate(tmp_path: Path) -> None:
    source = clips.make(tmp_path / "in.mkv", frames=3, extra=("-vf", "setpts=N*N/25/TB", "-fps_mode", "vfr"))
    with api.open(source) as video:
        frames = list(video)
    assert [frame.seconds for frame in frames] == pytest.approx([0, 0.04, 0.16])
    assert [frame.duration for frame in frames][:2] == pytest.approx([0.04, 0.12])


def test_a_part_of_a_video_and_a_folder_of_pictures(tmp_path: Path) -> None:
    source = clips.make(tmp_path / "in.mkv", frames=10)
    with api.open(source, start=0.1, stop=Fraction(3, 10), frames=4) as video:
        assert [frame.seconds for frame in video] == pytest.approx([0.12, 0.16, 0.2, 0.24])
    clip = moving_clip(3)
    save_pictures(clip, tmp_path / "pictures")
    with api.open(tmp_path / "pictures") as video:
        frames = list(video)
    assert [frame.name for frame in frames] == ["001.png", "002.png", "003.png"]
    assert torch.equal(torch.stack([frame.rgb() for frame in frames]), clip / 255)


def test_a_closed_video_gives_no_frames(tmp_path: Path) -> None:
    source = clips.make(tmp_path / "in.mkv", frames=3)
    with api.open(source) as video:
        first = next(video)
    assert first.rgb().shape == (3, 48, 64)
    with pytest.raises(api.UsageError, match="is closed"):
        next(video)
    video.close()


def test_what_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(api.InputError, match="no such file"):
        api.open(tmp_path / "absent.mp4")
    with pytest.raises(api.UsageError, match="pipes"):
        api.open("-")
    with pytest.raises(api.UsageError, match="nan"):
        api.open(tmp_path, start=float("nan"))


def test_an_opened_video_goes_through_a_model(tmp_path: Path) -> None:
    source = clips.make(tmp_path / "in.mkv", frames=4)
    with api.open(source) as video:
        assert len(list(model_of(Mean()).stream(frame.rgb() for frame in video))) == 4


# list_models, probe, compare


def test_models_are_listed_with_their_weights() -> None:
    listed = {model.name: model for model in api.list_models()}
    assert {"lite", "dstnet", "dstnet@dvd", "identity"} <= listed.keys()
    assert listed["lite"].cached
    assert listed["identity"].cached
    assert not listed["dstnet@dvd"].cached
    assert (listed["dstnet@dvd"].model, listed["dstnet@dvd"].weights) == ("dstnet", "dvd")
    assert all(model.description and model.license for model in listed.values())
    for name, model in listed.items():
        if model.cached:
            api.load_model(name, device="cpu", offline=True)
    fast = {model.name: model.seconds_per_720p_frame for model in api.list_models(speed=True)}
    assert (fast["lite"] or 0) > 0
    assert listed["lite"].seconds_per_720p_frame is None


def test_probe_takes_strings(tmp_path: Path) -> None:
    source = clips.make(tmp_path / "in.mkv", frames=3)
    assert api.probe(str(source)) == api.probe(source)
    assert api.probe(str(source))["frames"] == 3


def test_compare_chooses_its_mode_by_the_name(tmp_path: Path) -> None:
    a, b = str(clips.make(tmp_path / "a.mkv", frames=3)), str(clips.make(tmp_path / "b.mkv", frames=3))
    assert api.compare(a, b, str(tmp_path / "page.html")) == 3
    assert "<html" in (tmp_path / "page.html").read_text()
    assert api.compare(a, b, tmp_path / "out.mkv") == 3
    assert clips.facts(tmp_path / "out.mkv").size == (128, 48)
    with pytest.raises(api.OutputError, match="exists already"):
        api.compare(a, b, tmp_path / "out.mkv")
    assert api.compare(a, b, tmp_path / "out.mkv", "wipe", overwrite=True) == 3
    assert clips.facts(tmp_path / "out.mkv").size == (64, 48)
    with pytest.raises(api.UsageError, match="choose from side, split, wipe, diff, html"):
        api.compare(a, b, tmp_path / "other.mkv", "upside-down")
