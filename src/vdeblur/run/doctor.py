"""Check what vdeblur needs: versions, devices, codecs, folders, settings, a self test.

The checks try things out: encoders encode, decoders decode, devices compute, a clip is restored. Nothing uses the
network.
"""

import enum
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from importlib import metadata
from pathlib import Path

import av
import av.error
import imageio_ffmpeg
import numpy
import torch

from vdeblur import files
from vdeblur.errors import ExitStatus, OutputError, VdeblurError
from vdeblur.models import registry
from vdeblur.restore import device, memory, processor
from vdeblur.run.pipeline import restore_file
from vdeblur.settings import EncodeOptions, Settings
from vdeblur.version import __version__

SIDE, TRIAL_FRAMES = 64, 2  # of the clips that are encoded; some encoders refuse smaller ones
CLIP = (48, 64, 6)  # height, width and frames of the self test's clip
LIKE_DB = 20.0  # least PSNR of that clip restored by lite: 35 dB is normal, a black picture has 6
LITTLE_MEMORY, LITTLE_DISK = 2e9, 1e8  # bytes
# Encoders, each with a pixel format. Without the needed ones usual runs fail.
NEEDED = (("libx264", "yuv420p"), ("ffv1", "yuv420p"), ("png", "rgb24"))
WELCOME = (
    ("libx264rgb", "rgb24"), ("libx265", "yuv420p"), ("libx265", "yuv420p10le"), ("libsvtav1", "yuv420p10le"),
    ("libvpx-vp9", "yuv420p"), ("prores_ks", "yuv422p10le"), ("tiff", "rgb48le"),
)  # fmt: skip
DECODERS = ("h264", "hevc", "vp9", "libdav1d", "mpeg2video", "mpeg4", "prores", "dnxhd", "mjpeg", "png", "tiff", "webp")
AV1_DECODER = "libdav1d"  # FFmpeg's own needs a GPU
FEATURES = (
    "avx2",
    "avx512_f",
    "avx512_bf16",
    "amx_bf16",
    "neon",
    "sve",
    "arm_bf16",
)  # instructions that speed networks up
PACKAGES = ("torch", "av", "numpy", "safetensors", "huggingface_hub", "click", "rich")


class CheckState(enum.StrEnum):
    """The result of a check."""

    OK = "ok"
    WARNING = "warning"
    FAIL = "fail"


@dataclass(frozen=True)
class Check:
    """A check and its finding. hint: what to do. status: the exit status that a failure causes."""

    group: str
    name: str
    found: str
    state: CheckState = CheckState.OK
    hint: str = ""
    status: ExitStatus = ExitStatus.DONE


def examine(configuration: list[Path]) -> Iterator[Check]:
    """Yield all checks, one after the other. configuration: existing files with options that vdeblur reads."""
    yield from _versions()
    yield from _devices()
    yield from _codecs()
    yield from _room()
    yield from _caches()
    yield from _settings(configuration)
    yield from _self_test()


def _versions() -> Iterator[Check]:
    yield Check("versions", "vdeblur", f"{__version__}, in {Path(__file__).parents[1]}")
    yield Check("versions", "python", f"{platform.python_version()} on {platform.platform()}")
    for package in PACKAGES:
        try:
            yield Check("versions", package, metadata.version(package))
        except metadata.PackageNotFoundError:
            yield Check("versions", package, "works, but is not installed as a package", CheckState.WARNING)
    libraries = ", ".join(f"{name} {'.'.join(map(str, number))}" for name, number in av.library_versions.items())
    yield Check("versions", "FFmpeg", f"{av.ffmpeg_version_info}: {libraries}")
    try:
        yield Check("versions", "ffmpeg program", f"{imageio_ffmpeg.get_ffmpeg_version()}")
    except (RuntimeError, OSError) as error:
        hint = "pip install --force-reinstall imageio-ffmpeg"
        yield Check("versions", "ffmpeg program", str(error).splitlines()[0], CheckState.WARNING, hint)


def _devices() -> Iterator[Check]:
    facts = torch.cpu.get_capabilities()
    named = ", ".join(name for name in FEATURES if facts.get(name)) or "none of " + ", ".join(FEATURES)
    cores = f"{os.cpu_count()} cores, {torch.get_num_threads()} threads of PyTorch; {named}"
    yield _guarded("devices", "cpu", lambda: f"{platform.machine()}, {cores}; {_auto_precision()}", ExitStatus.DEVICE)
    yield _guarded("devices", "cpu computes", partial(_compute, torch.device("cpu")), ExitStatus.DEVICE)
    for index in range(torch.cuda.device_count()):
        gpu = torch.device("cuda", index)
        yield _guarded("devices", str(gpu), partial(_cuda_facts, gpu), ExitStatus.DEVICE)
    for kind, backend in (("mps", torch.backends.mps), ("xpu", torch.xpu)):
        if backend.is_available():
            yield _guarded("devices", kind, partial(_compute, torch.device(kind)), ExitStatus.DEVICE)
    if device.choose_device("auto").type == "cpu":
        yield _no_gpu()


def _auto_precision() -> str:
    speedup = processor.bf16_speedup()
    if speedup is None:
        return "auto precision fp32, since there are no bfloat16 instructions"
    precision = "bf16" if processor.is_bf16_faster() else "fp32"
    return f"auto precision {precision}: in bf16 a convolution is {speedup:.2f} times as fast as in fp32"


def _no_gpu() -> Check:
    if shutil.which("nvidia-smi") is None:
        return Check("devices", "gpu", "none; runs use the cpu")
    if torch.version.cuda is None:
        hint = "install PyTorch with CUDA: https://pytorch.org/get-started"
        return Check(
            "devices", "gpu", "an NVIDIA driver is installed, but this PyTorch has no CUDA", CheckState.WARNING, hint
        )
    hint = "run nvidia-smi; the driver may be too old for this CUDA, or CUDA_VISIBLE_DEVICES is empty"
    return Check("devices", "gpu", f"PyTorch's CUDA {torch.version.cuda} finds no device", CheckState.WARNING, hint)


def _cuda_facts(gpu: torch.device) -> str:
    free, total = torch.cuda.mem_get_info(gpu)
    properties = torch.cuda.get_device_properties(gpu)
    memory = f"{free / 1e9:.1f} of {total / 1e9:.1f} GB free"
    version = f"capability {properties.major}.{properties.minor}, CUDA {torch.version.cuda}"
    return f"{properties.name}, {memory}, {version}; {_compute(gpu)}"


def _compute(target: torch.device) -> str:
    """Check a convolution against a known result."""
    x = torch.arange(64.0, device=target).reshape(1, 1, 8, 8)
    blurred = torch.nn.functional.conv2d(x, torch.ones(1, 1, 3, 3, device=target))
    if not torch.allclose(blurred, 9 * x[..., 1:-1, 1:-1]):
        raise RuntimeError("a convolution returned wrong numbers")
    return "computes"


def _codecs() -> Iterator[Check]:
    for needed, codecs in ((True, NEEDED), (False, WELCOME)):
        for name, pixel_format in codecs:
            state = CheckState.FAIL if needed else CheckState.WARNING
            hint = "reinstall PyAV: pip install --force-reinstall av" if needed else "choose another --codec"
            trial = partial(_encode, name, pixel_format)
            check = _guarded("codecs", f"{name}, {pixel_format}", trial, ExitStatus.OUTPUT)
            if check.state is CheckState.FAIL:
                status = ExitStatus.OUTPUT if needed else ExitStatus.DONE
                check = Check(check.group, check.name, check.found, state, hint, status)
            yield check
    missing = [name for name in DECODERS if not _is_decoder(name)]
    if missing:
        hint = "reinstall PyAV: pip install --force-reinstall av"
        yield Check("codecs", "decoders", f"missing: {', '.join(missing)}", CheckState.WARNING, hint)
    else:
        yield Check("codecs", "decoders", ", ".join(DECODERS))


def _encode(name: str, pixel_format: str) -> str:
    """Encode some frames, and decode the result."""
    os.environ.setdefault("SVT_LOG", "1")  # errors only; SVT-AV1 writes to stderr by itself
    encoder = av.CodecContext.create(name, "w")
    assert isinstance(encoder, av.VideoCodecContext)
    encoder.width = encoder.height = SIDE
    encoder.pix_fmt, encoder.time_base, encoder.framerate = pixel_format, Fraction(1, 25), Fraction(25)
    encoder.options = {"x265-params": "log-level=none"} if name == "libx265" else {}
    packets = []
    for index in range(TRIAL_FRAMES):
        picture = av.VideoFrame.from_ndarray(_drawing(SIDE, SIDE, index)).reformat(format=pixel_format)
        picture.pts, picture.time_base = index, encoder.time_base
        packets += encoder.encode(picture)
    packets += encoder.encode(None)
    family = encoder.codec.canonical_name
    decoder = av.CodecContext.create(AV1_DECODER if family == "av1" else family, "r")
    assert isinstance(decoder, av.VideoCodecContext)
    if encoder.extradata:
        decoder.extradata = encoder.extradata
    decoder.width, decoder.height, decoder.pix_fmt = SIDE, SIDE, pixel_format
    decoded = [picture for packet in [*packets, None] for picture in decoder.decode(packet)]
    if len(decoded) != TRIAL_FRAMES:
        raise RuntimeError(f"{len(decoded)} frames of {TRIAL_FRAMES} came back")
    return "writes and reads"


def _is_decoder(name: str) -> bool:
    try:
        av.Codec(name, "r")
    except ValueError:
        return False
    return True


def _room() -> Iterator[Check]:
    free = memory.free_bytes(torch.device("cpu"))
    low = free < LITTLE_MEMORY
    hint = "close other programs, or give run a small --tile" if low else ""
    yield Check("room", "memory", f"{free / 1e9:.1f} GB free", CheckState.WARNING if low else CheckState.OK, hint)
    for name, folder in (("disk here", Path.cwd), ("disk for temporary files", _temporary_folder)):
        yield _guarded("room", name, partial(_disk, folder), ExitStatus.OUTPUT)


def _temporary_folder() -> Path:
    return Path(tempfile.gettempdir())  # raises if none is writable


def _disk(find_folder: Callable[[], Path]) -> str:
    folder = find_folder()
    free = shutil.disk_usage(folder).free
    if free < LITTLE_DISK:
        fault = f"only {free / 1e9:.1f} GB are free in {folder}"
        raise OutputError(fault, "free some space: an output and its finished segments need about twice its size")
    return f"{free / 1e9:.1f} GB free in {folder}"


def _caches() -> Iterator[Check]:
    hint = "set VDEBLUR_CACHE to another folder"
    own = files.cache_folder()
    hub = Path(files.hub_folder() or os.environ.get("HF_HUB_CACHE") or _hub_home() / "hub").expanduser()
    for name, folder in (("weights", own), ("Hugging Face Hub", hub)):
        existing = next(path for path in (folder, *folder.parents) if path.exists())
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file() and not file.is_symlink())
        found = f"{folder}, {size / 1e6:.1f} MB" if folder.exists() else f"{folder}, does not exist yet"
        writable = existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)
        if writable:
            yield Check("caches", name, found)
        else:
            yield Check("caches", name, f"{found}; {existing} is not writable", CheckState.WARNING, hint)
    yield _guarded("caches", "models", lambda: f"{len(registry.known_models())} are known", ExitStatus.MODEL)


def _hub_home() -> Path:
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    return Path(home)


def _settings(configuration: list[Path]) -> Iterator[Check]:
    for path in configuration:
        yield Check("settings", "file", str(path))
    ours = {name: value for name, value in os.environ.items() if name.startswith("VDEBLUR_")}
    ours |= {name: os.environ[name] for name in ("HF_HUB_OFFLINE", "HF_HOME", "NO_COLOR") if name in os.environ}
    for name, value in sorted(ours.items()):
        yield Check("settings", "environment", f"{name}={value}")
    if not configuration and not ours:
        yield Check("settings", "options", "only those of the command line")
    streams = {name: getattr(sys, name) for name in ("stdin", "stdout", "stderr")}  # None if it is closed
    names = [name for name, stream in streams.items() if stream is not None and stream.isatty()]
    encoding = getattr(sys.stdout, "encoding", None) or "no encoding"
    terminal = f"{' and '.join(names) or 'nothing'} on a terminal, TERM={os.environ.get('TERM', '')}"
    terminal += f", {shutil.get_terminal_size().columns} columns, {encoding}"
    if encoding.lower().replace("-", "") == "utf8":
        yield Check("settings", "terminal", terminal)
    else:
        yield Check("settings", "terminal", terminal, CheckState.WARNING, "set LANG to a UTF-8 locale, say C.UTF-8")


def _self_test() -> Iterator[Check]:
    with tempfile.TemporaryDirectory(prefix="vdeblur-") as name:
        folder = Path(name)
        source = folder / "in.mkv"
        made = _guarded("self test", "clip", partial(_make_clip, source), ExitStatus.OUTPUT)
        if made.state is CheckState.FAIL:
            yield made
            return
        yield _guarded("self test", "identity", partial(_identity, source, folder), ExitStatus.VERIFICATION)
        yield _guarded("self test", "lite", partial(_lite, source, folder), ExitStatus.VERIFICATION)


def _drawing(height: int, width: int, index: int) -> numpy.ndarray:
    """Draw a blurry pattern that moves with the index: uint8 (height, width, 3)."""
    y, x = numpy.mgrid[:height, :width].astype(numpy.float64)
    waves = [numpy.sin((x - 3 * index) * step / 5) * numpy.cos(y * step / 7) for step in (1, 2, 3)]
    drawing: numpy.ndarray = (127.5 + 100 * numpy.stack(waves, -1)).round().astype(numpy.uint8)
    return drawing


def _make_clip(path: Path) -> str:
    height, width, frames = CLIP
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for index in range(frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(_drawing(height, width, index))))
        container.mux(stream.encode(None))
    return f"{frames} frames of {width}x{height}"


def _planes(path: Path) -> numpy.ndarray:
    with av.open(str(path)) as container:
        return numpy.stack([picture.to_ndarray() for picture in container.decode(video=0)])


def _run(model: str, source: Path, folder: Path) -> numpy.ndarray:
    output = folder / f"{model}.mkv"
    restore_file(source, output, Settings(model=model, offline=True, encoding=EncodeOptions(lossless=True)))
    return _planes(output)


def _identity(source: Path, folder: Path) -> str:
    if not numpy.array_equal(_run("identity", source, folder), _planes(source)):
        raise RuntimeError("identity changed the samples")
    return "bit-exact"


def _lite(source: Path, folder: Path) -> str:
    before, after = _planes(source).astype(numpy.float64), _run("lite", source, folder)
    if before.shape != after.shape:
        raise RuntimeError(f"{len(before)} frames became {len(after)}")
    error = ((after - before) ** 2).mean()
    if error == 0:
        raise RuntimeError("lite changed nothing")
    likeness = 10 * numpy.log10(255**2 / error)
    if likeness < LIKE_DB:
        raise RuntimeError(
            f"the clip that lite restored differs too much ({likeness:.0f} dB): the device computes wrongly"
        )
    return f"restores on {device.choose_device('auto')} ({likeness:.0f} dB from the input)"


def _guarded(group: str, name: str, examine_it: Callable[[], str], status: ExitStatus) -> Check:
    """Run one check; turn any exception into a failed check, since finding faults is its purpose."""
    try:
        return Check(group, name, examine_it())
    except VdeblurError as error:
        return Check(group, name, error.message, CheckState.FAIL, error.hint, error.status)
    except Exception as error:
        lines = str(error).splitlines() or [""]
        hint = "reinstall vdeblur and what it needs: pip install --force-reinstall vdeblur"
        return Check(group, name, f"{type(error).__name__}: {lines[0]}", CheckState.FAIL, hint, status)
