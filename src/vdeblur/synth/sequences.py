"""Sequences of blurry and sharp pictures: by averaging footage, by a camera over a photograph, or as random clips.

The result depends only on the options and the sources' content. A sequence is written in a hidden folder and appears
complete, with a record of how it was made, by one renaming.
"""

import json
import math
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor

from vdeblur.datasets.pictures import write_png
from vdeblur.errors import InputError, InterruptedRunError, OutputError
from vdeblur.events import Notify, Stop
from vdeblur.look.compose import upright_size
from vdeblur.restore.scenes import SceneDetector
from vdeblur.synth import exposure, footage
from vdeblur.synth.clips import GAMMA, LEAST_SIDE, ClipShape, follow_path, random_clip, seeded, to_bytes
from vdeblur.synth.footage import Footage

SPLITS = ("train", "test")
BLURS = {"blur": ("blur",), "blur_gamma": ("blur_gamma",), "both": ("blur", "blur_gamma")}
LEAST_FRAMES = 10  # shorter sequences are dropped, unless a source gives no other
STEP_PIXELS = 1.5  # above this motion between neighbours their mean shows steps instead of blur
RECORD, DRAFTS = "sequence.json", ".drafts"
PROGRESS_SECONDS = 0.5


@dataclass(frozen=True)
class Options:
    """All that determines the data set; see the command's help.

    average, duty, crf, speed: lowest and highest value, drawn for each sequence. stride: None for the number of
    averaged frames. size: None for the source's. clips: sequences of each source; for the way random, of all together.
    """

    way: str = "gopro"
    average: tuple[int, int] = (7, 13)
    duty: tuple[float, float] = (1.0, 1.0)
    stride: int | None = None
    steps: int = 8
    blur: str = "both"
    frames: int = 100
    clips: int | None = None
    size: tuple[int, int] | None = None
    scale: float = 1.0
    speed: tuple[float, float] = (2.0, 20.0)
    noise: tuple[float, float] = (0.0, 0.0)
    crf: tuple[int, int] | None = None
    test_share: float = 0.1
    split: str | None = None
    seed: int = 0

    def facts(self) -> dict[str, Any]:
        """Return the options as they are in the manifest."""
        facts: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return facts


@dataclass(frozen=True)
class ManifestEntry:
    """A source in the plan. stem: its sequences' names without their number."""

    footage: Footage
    sha256: str
    split: str
    stem: str

    def facts(self) -> dict[str, Any]:
        """Return the source's entry in the manifest, without its path."""
        return {"name": self.footage.name, "kind": self.footage.kind, "sha256": self.sha256, "split": self.split}


@dataclass(frozen=True)
class Piece:
    """A piece of work: a source by its number, or for the way random the clips from first to stop."""

    split: str
    source: int = -1
    first: int = 0
    stop: int = 0


@dataclass
class SynthJob:
    """All that a worker needs. loaded: photographs and takes of a split, for the way random."""

    options: Options
    out: Path
    entries: list[ManifestEntry]
    notify: Notify
    stop: Stop
    loaded: dict[str, Any] = field(default_factory=dict)

    def warn(self, code: str, message: str) -> None:
        """Send a warning."""
        self.notify("warning", {"code": code, "message": message})

    def check_stop(self) -> None:
        """Stop the work when a signal has arrived.

        Raises: InterruptedRunError.
        """
        status = self.stop()
        if status is not None:
            error = InterruptedRunError(status)
            error.message = "stopped; finished sequences are kept, and the same command continues"
            raise error


def do_piece(job: SynthJob, piece: Piece) -> dict[str, Any]:
    """Make the missing sequences of a piece of work; return what the manifest records about its source."""
    torch.set_num_threads(1)  # pieces run side by side, and sums in threads may differ
    if job.options.way == "random":
        return _make_random(job, piece)
    entry = job.entries[piece.source]
    with footage.reading(entry.footage.path):  # failures to write are translated where they happen
        return _make_camera(job, entry) if job.options.way == "camera" else _make_averaged(job, entry)


class SequenceFiles:
    """The files of a sequence; `finish` makes them appear together. exists: already made, so nothing is written."""

    def __init__(self, job: SynthJob, split: str, name: str, kinds: tuple[str, ...]) -> None:
        self.job, self.name, self.split = job, name, split
        self.target = job.out / split / name
        self.exists = self.target.is_dir()
        self.draft = job.out / DRAFTS / f"{os.getpid()}-{name}"
        self.written = dict.fromkeys((*kinds, "sharp"), 0)

    def write(self, kind: str, picture: numpy.ndarray | Tensor) -> None:
        """Add a picture: uint8, an array (H, W, 3) or a tensor (3, H, W)."""
        self.written[kind] += 1
        if not self.exists:
            tensor = picture if isinstance(picture, Tensor) else torch.from_numpy(picture).permute(2, 0, 1)
            write_png(self.draft / kind / f"{self.written[kind]:06}.png", tensor)

    def finish(self, record: dict[str, Any]) -> None:
        """Make the sequence appear, with its record."""
        assert len(set(self.written.values())) == 1, "every blurry frame has its sharp frame"
        if self.exists:
            return
        frames = self.written["sharp"]
        facts = {"name": self.name, "split": self.split, "frames": frames, **record}
        try:
            (self.draft / RECORD).write_text(json.dumps(facts, indent=1), "utf-8")
            self.target.parent.mkdir(exist_ok=True)
            os.replace(self.draft, self.target)
        except OSError as error:
            raise OutputError(f"{self.target} cannot be written: {error.strerror}", "make room") from error
        self.job.notify("sequence_made", {"sequence": self.name, "split": self.split, "frames": frames})

    def drop(self) -> None:
        """Delete what was written."""
        shutil.rmtree(self.draft, ignore_errors=True)


@dataclass(frozen=True)
class Shutter:
    """Values drawn for a sequence of averages: frames to average, duty, frames between windows, compression."""

    average: int
    duty: float
    stride: int
    crf: int | None
    window: exposure.Window


def draw_shutter(options: Options, seed: int) -> Shutter:
    """Draw a sequence's shutter."""
    rng = numpy.random.default_rng(seed)
    low, high = options.average
    average = low + 2 * int(rng.integers((high - low) // 2 + 1))
    duty = float(rng.uniform(*options.duty))
    crf = _draw_crf(options, rng)
    fades = options.way == "dvd"
    window = exposure.faded_window(average, duty, options.steps) if fades else exposure.plain_window(average, duty)
    return Shutter(average, duty, options.stride or average, crf, window)


def _draw_crf(options: Options, rng: numpy.random.Generator) -> int | None:
    return None if options.crf is None else int(rng.integers(options.crf[0], options.crf[1] + 1))


class SharpClip:
    """A sequence made by averaging. first, last: numbers of its first and last window's frames; count: its pairs."""

    def __init__(self, job: SynthJob, entry: ManifestEntry, number: int, first: int) -> None:
        self.entry, self.options = entry, job.options
        self.first, self.last, self.count = first, first, 0
        self.seed = clip_seed(job.options.seed, entry.sha256, number)
        self.shutter = draw_shutter(job.options, self.seed)
        self.exposures = exposure.Exposures(self.shutter.window, self.shutter.stride)
        kinds = BLURS[job.options.blur]
        self.files = SequenceFiles(job, entry.split, f"{entry.stem}_{number:02}", kinds)
        self.sensors = sensors(kinds, job.options, self.shutter.crf, self.seed)

    def add(self, number: int, picture: Tensor) -> bool:
        """Add a sharp frame, uint8 (3, H, W); return whether the sequence is now full."""
        frames = self.exposures.push(picture.permute(1, 2, 0).contiguous().numpy())
        if frames is not None:
            self.count += 1
            self.last = number
            if not self.files.exists:
                self.files.write("sharp", frames[len(frames) // 2])
                for kind, sensor in self.sensors.items():
                    for frame in sensor.push(exposure.average(frames, self.shutter.window, kind)):
                        self.files.write(kind, frame)
        return self.count == self.options.frames

    def finish(self) -> str:
        """Make the sequence appear; return its name."""
        for kind, sensor in self.sensors.items():
            for frame in sensor.end():
                self.files.write(kind, frame)
        shutter = self.shutter
        drawn = {"average": shutter.average, "duty": shutter.duty, "stride": shutter.stride}
        record = {"first_frame": self.first, "last_frame": self.last, **drawn, "weights": shutter.window.weights}
        self.files.finish(_record(self.options, self.entry, self.seed, shutter.crf) | record)
        return self.files.name


def clip_seed(seed: int, content: str, number: int) -> int:
    """Return a sequence's seed, which depends on its own source's content only."""
    return int.from_bytes(sha256(f"{seed} {content} {number}".encode()).digest()[:8]) >> 1


def sensors(kinds: tuple[str, ...], options: Options, crf: int | None, seed: int) -> dict[str, exposure.Sensor]:
    """Return a sensor for each kind of blurry frames."""
    return {kind: exposure.Sensor(options.noise, crf, (seed, place)) for place, kind in enumerate(kinds)}


def _record(options: Options, entry: ManifestEntry, seed: int, crf: int | None) -> dict[str, Any]:
    facts = {"source": entry.footage.name, "source_sha256": entry.sha256, "way": options.way, "seed": seed}
    gamma = GAMMA if options.blur != "blur" else None
    return {**facts, "blur": BLURS[options.blur], "gamma": gamma, "noise": options.noise, "crf": crf}


def _make_averaged(job: SynthJob, entry: ManifestEntry) -> dict[str, Any]:
    """Average the frames of a source into sequences, one after the other, none of which spans a cut."""
    motion = look_at_motion(job, entry)
    source = footage.open_footage(entry.footage, job.warn)
    fit = _fitting(upright_size(source.info), job.options, entry.footage.path)
    cuts = SceneDetector()
    clip: SharpClip | None = None
    made: list[str] = []
    longest = 0
    number = -1
    most = job.options.clips or math.inf
    total = source.info.frames_estimate
    pace = Pace(job, entry.footage.name, total)
    try:
        for number, picture in enumerate(footage.pictures_of(source)):
            job.check_stop()
            pace.report(number + 1)
            small = fit(picture)
            if cuts.is_cut(small.float() / 255) and clip is not None:
                made += _end_short(clip, lone=False)
                clip = None
            if clip is None:
                if len(made) >= most:
                    break
                clip = SharpClip(job, entry, len(made), number)
            full = clip.add(number, small)
            longest = max(longest, clip.count)
            if full:
                made.append(clip.finish())
                clip = None
        if clip is not None:
            made += _end_short(clip, lone=not made)
            clip = None
    finally:
        source.close()
        if clip is not None:
            clip.files.drop()
    if longest < job.options.frames:
        _warn_of_short(job, entry, number + 1, longest, kept=bool(made))
    return {"motion_pixels": motion, "made": made}


def _warn_of_short(job: SynthJob, entry: ManifestEntry, read: int, longest: int, *, kept: bool) -> None:
    """Warn of a source without any sequence, or without a full one."""
    options = job.options
    if longest:
        wanted, found = _counted(options.frames, "pair"), _counted(longest, "pair")
        message = f"no scene for a sequence of {wanted}, only for {found}{'' if kept else '; it is left out'}"
        hint = f"--frames {longest}, a smaller --stride"
    else:
        message = f"only {_counted(read, 'frame')} in a scene, and {max(options.average)} are averaged; it is left out"
        hint = f"--average {max((read - 1) // 2 * 2 - 1, 3)}"
    job.warn("W_SHORT", f"{entry.footage.path} has {message} ({hint}, or longer footage)")


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _end_short(clip: SharpClip, *, lone: bool) -> list[str]:
    """Keep a sequence that ended early if it is long enough, or the only one of its source (lone)."""
    if clip.count >= LEAST_FRAMES or (lone and clip.count):
        return [clip.finish()]
    clip.files.drop()
    return []


class Pace:
    """Reports progress within a source."""

    def __init__(self, job: SynthJob, name: str, total: int | None) -> None:
        self.job, self.name, self.total = job, name, total
        self.begun = self.reported = time.monotonic()

    def report(self, done: int) -> None:
        """Report how many frames are done, at most every PROGRESS_SECONDS."""
        now = time.monotonic()
        if now - self.reported < PROGRESS_SECONDS:
            return
        self.reported = now
        fps = done / (now - self.begun)
        left = None if self.total is None else max(self.total - done, 0) / fps
        facts = {"input": self.name, "frame": done, "frames_estimate": self.total}
        self.job.notify("progress", {**facts, "fps": round(fps, 2), "eta_seconds": left})


def look_at_motion(job: SynthJob, entry: ManifestEntry) -> float:
    """Return a source's motion in pixels of the output; warn where it would show as steps instead of blur."""
    options = job.options
    source = footage.open_footage(entry.footage, job.warn)
    width, height = upright_size(source.info)
    source.close()
    _fitting((width, height), options, entry.footage.path)
    scale = max(options.size[0] / width, options.size[1] / height) if options.size else options.scale
    motion = round(footage.motion_of(entry.footage) * scale, 1)
    if motion > STEP_PIXELS:
        enough = f"--scale {max(math.floor(scale * STEP_PIXELS / motion * 100) / 100, 0.01):g} hides them"
        if options.way == "dvd":
            artefact, hint = "cross-fades will leave ghosts", enough
        else:
            artefact = "averaging will show steps"
            hint = f"{enough}, --way dvd softens them; more frames a second are best"
        message = f"{entry.footage.path} moves {motion:g} pixels from frame to frame: {artefact} ({hint})"
        job.warn("W_STEPS", message)
    return motion


def _fitting(size: tuple[int, int], options: Options, path: Path) -> Callable[[Tensor], Tensor]:
    """Return a function that reduces a picture of this width and height to the output's size, and crops the middle.

    Raises: InputError for too small a picture.
    """
    width, height = size
    wide, high = options.size or (max(round(width * options.scale), 1), max(round(height * options.scale), 1))
    if wide > width or high > height:
        raise InputError(f"{path} is {width}x{height}, smaller than {wide}x{high}", "choose a smaller --size")
    scale = max(wide / width, high / height) if options.size else options.scale
    inner = (max(round(width * scale), wide), max(round(height * scale), high))
    left, top = (inner[0] - wide) // 2, (inner[1] - high) // 2

    def fit(picture: Tensor) -> Tensor:
        return footage.reduced(picture, *inner)[:, top : top + high, left : left + wide].contiguous()

    return fit


def _make_camera(job: SynthJob, entry: ManifestEntry) -> dict[str, Any]:
    """Move a camera over a photograph, on another path for each sequence."""
    options = job.options
    side = options.size[0] if options.size else ClipShape().side
    still = footage.read_still(entry.footage.path)
    if min(still.shape[1:]) < 1.2 * side:
        job.warn("W_SMALL", f"{entry.footage.path} is too small for {side}x{side}; it is left out (--size)")
        return {"made": []}
    made = []
    for number in range(options.clips or 1):
        seed = clip_seed(options.seed, entry.sha256, number)
        rng = numpy.random.default_rng(seed)
        duty, speed = float(rng.uniform(*options.duty)), float(numpy.exp(rng.uniform(*numpy.log(options.speed))))
        crf = _draw_crf(options, rng)
        files = SequenceFiles(job, entry.split, f"{entry.stem}_{number:02}", BLURS[options.blur])
        made.append(files.name)
        if files.exists:
            continue
        cameras = sensors(BLURS[options.blur], options, crf, seed)
        shape = ClipShape(options.frames, side)
        for frame in follow_path(seeded(seed), still, shape, duty, speed):
            job.check_stop()
            files.write("sharp", to_bytes(frame.sharp))
            for kind, camera in cameras.items():
                codes = getattr(frame, kind).double().permute(1, 2, 0).numpy() * 255
                for picture in camera.push(codes):
                    files.write(kind, picture)
        for kind, camera in cameras.items():
            for picture in camera.end():
                files.write(kind, picture)
        files.finish(_record(options, entry, seed, crf) | {"duty": duty, "speed": speed})
    return {"made": made}


def random_name(number: int) -> str:
    """Return a clip's name, for the way random."""
    return f"clip_{number:05}"


def _make_random(job: SynthJob, piece: Piece) -> dict[str, Any]:
    """Make clips of the mixture for `lite`."""
    options = job.options
    shape = ClipShape(options.frames, options.size[0] if options.size else ClipShape().side)
    if piece.split not in job.loaded:
        job.loaded[piece.split] = _load(job, piece.split, shape)
    stills, takes = job.loaded[piece.split]
    if not len(stills):
        side = math.ceil(LEAST_SIDE * shape.side)
        raise InputError(f"no photograph for {piece.split} has {side} pixels on its shorter side", "reduce --size")
    for number in range(piece.first, piece.stop):
        job.check_stop()
        files = SequenceFiles(job, piece.split, random_name(number), ("blur",))
        if files.exists:
            continue
        blurry, sharp = random_clip(options.seed, number, stills, takes, shape)
        for kind, clip in (("blur", blurry), ("sharp", sharp)):
            for picture in clip:
                files.write(kind, picture)
        files.finish({"source": "", "way": "random", "seed": options.seed, "number": number})
    return {}


def _load(job: SynthJob, split: str, shape: ClipShape) -> tuple[footage.Stills, list[footage.Take]]:
    """Open the photographs and videos of a split."""
    own = [entry.footage for entry in job.entries if entry.split == split]
    stills = footage.Stills([source for source in own if source.kind == "still"], LEAST_SIDE * shape.side)
    takes = []
    for source in own:
        if source.kind == "video":
            take = footage.Take(source, job.warn)
            if len(take) >= 3 * shape.frames:
                takes.append(take)
            else:
                job.warn("W_SHORT", f"{source.path} is too short for {shape.frames} frames; it is left out")
    return stills, takes
