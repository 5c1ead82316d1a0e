"""Plan the output of every input: a file, a folder, a folder of pictures, or a pipe."""

import dataclasses
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from vdeblur.errors import InputError, OutputError, UsageError
from vdeblur.output import encoding
from vdeblur.output.pictures import NUMBER, PICTURE_ENCODERS
from vdeblur.run.compare_input import comparison_path
from vdeblur.settings import Settings
from vdeblur.source import demux
from vdeblur.source.pictures import PICTURE_SUFFIXES, is_picture, natural_key, no_pictures
from vdeblur.source.urls import check_no_url, check_output_is_no_url

# The files of a folder that count as videos; a file that the user names is opened whatever its suffix.
VIDEO_SUFFIXES = {
    *(".3g2", ".3gp", ".avi", ".dv", ".flv", ".h264", ".h265", ".hevc", ".m2t", ".m2ts", ".m2v", ".m4v", ".mkv"),
    *(".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".mxf", ".nut", ".ogv", ".ts", ".vob", ".webm", ".wmv", ".y4m"),
}
WRITTEN_PICTURES = (".png", ".tif", ".tiff")  # lossless; a pattern for pictures ends in one of them


@dataclass(frozen=True)
class RunJob:
    """An input and its output.

    pictures: whether the output is a folder of pictures even if its name has a suffix. names: the pattern of their
    names; empty for the usual ones. makes_folder: whether the output's folder is made if it is missing.
    """

    source: Path
    output: Path
    pictures: bool = False
    names: str = ""
    makes_folder: bool = False

    def settings(self, settings: Settings) -> Settings:
        """Return the settings for this job."""
        return dataclasses.replace(settings, pictures=self.pictures, picture_names=self.names)

    def is_done(self) -> bool:
        """Return whether the output exists; of pictures with a pattern, whether one of them does."""
        if not self.names:
            return os.path.exists(self.output)
        before, after = map(re.escape, NUMBER.split(self.names, maxsplit=1))
        named = re.compile(f"{before}[0-9]+{after}")
        return os.path.isdir(self.output) and any(named.fullmatch(entry.name) for entry in self.output.iterdir())


def plan_jobs(
    inputs: Iterable[str], output: str | None, suffix: str | None, settings: Settings, *, recursive: bool = False
) -> list[RunJob]:
    """Choose the output of every input; write nothing.

    output: as the user names it; None: beside the inputs, with the suffix added to their names. recursive: take the
    folders within folders, too; the output then repeats their tree.

    Raises: InputError for a folder without videos or pictures, OutputError and UsageError if the output does not fit
    the inputs.
    """
    names = list(inputs)
    for name in names:
        check_no_url(name)
    paths = [Path(name) for name in names]
    avoided = None if output is None or output == "-" else Path(output).absolute()
    found = [(source, place) for path in paths for source, place in _sources(path, recursive, avoided)]
    sources = [source for source, _ in found]
    if output is None:
        jobs = _jobs_beside(sources, suffix, settings)
    elif len(paths) == 1 and sources == paths:
        return [plan_job(sources[0], output, settings)]
    else:
        jobs = _jobs_within(found, output, settings)
    _check_names(jobs, settings)
    return jobs


def plan_job(source: Path, output: str, settings: Settings) -> RunJob:
    """Choose the output of one video or folder of pictures; write nothing.

    output: a file; a folder, which exists or ends in a slash: it gets a video or one picture under the input's name, or
    the pictures of a folder of pictures; a pattern such as dir/%06d.png, or with settings.pictures a folder, for
    pictures; or `-`. For pictures a name without suffix is a folder, too.

    Raises: OutputError and UsageError if it does not fit the input.
    """
    if output == "-":
        return RunJob(source, demux.PIPE, settings.pictures)
    check_output_is_no_url(output)
    path = Path(output)
    if names := _pattern(path):
        return RunJob(source, path.parent.absolute(), pictures=True, names=names)
    is_one_picture = _is_one_picture(source)
    is_folder = os.path.isdir(path) or output.endswith(("/", os.sep)) or (is_one_picture and not path.suffix)
    if settings.pictures or os.path.isdir(source):
        return RunJob(source, path.absolute(), settings.pictures or is_folder)
    if is_folder:
        if source == demux.PIPE:
            raise UsageError("standard input has no name for a file in a folder", f"name the file: {path}/NAME.mkv")
        _check_folder(path.absolute())
        name = _picture_name(source) if is_one_picture else _file_name(source)
        return RunJob(source, _written(path.absolute() / name, source, settings), makes_folder=True)
    if not path.suffix:
        raise UsageError(
            f"{output} has no suffix and is no folder, so its format is unknown",
            f"name a file, as {output}.mp4, or a folder, as {output}/",
        )
    return RunJob(source, path.absolute())


def _pattern(path: Path) -> str:
    """Return the name of a pattern for numbered pictures, as %06d.png; "" if the path is none.

    Raises: UsageError for a pattern of another kind of pictures.
    """
    if len(NUMBER.findall(path.name)) != 1 or os.path.isdir(path):
        return ""
    if path.suffix.lower() in WRITTEN_PICTURES:
        return path.name
    if path.suffix.lower() in PICTURE_SUFFIXES | {".bmp", ".exr"}:
        raise UsageError(
            f"pictures are not written as {path.suffix}, which would lose quality", f"use {path.with_suffix('.png')}"
        )
    return ""


def _sources(path: Path, recursive: bool, avoided: Path | None) -> Iterator[tuple[Path, Path]]:
    """Yield the videos and folders of pictures that an input stands for, each with its place in the output's folder.

    avoided: a folder that is left out, since it holds the outputs.
    """
    if not os.path.isdir(path):
        yield path, Path(_file_name(path))
        return
    if not recursive:
        sources = _sources_of_folder(path, recursive=False)
        yield from ((each, Path(_file_name(each))) for each in sources)
        return
    count = 0
    for place, folders, _ in os.walk(path):
        folder = Path(place)
        shown = (name for name in folders if not name.startswith(".") and (folder / name).absolute() != avoided)
        folders[:] = sorted(shown, key=lambda name: natural_key(Path(name)))
        for source in _sources_of_folder(folder, recursive=True):
            count += 1
            name = Path(path.resolve().name) if source == path else source.relative_to(path)
            yield source, name.with_name(_file_name(source))
    if not count:
        raise InputError(f"{path}: no pictures in this folder and its folders, and no videos", "check the path")


def _sources_of_folder(path: Path, recursive: bool) -> list[Path]:
    """Return the videos of a folder; the folder itself if it holds pictures.

    recursive: pictures beside videos are left out, and a folder with neither is no error.

    Raises: InputError.
    """
    try:
        everything = list(path.iterdir())
        entries = [entry for entry in everything if entry.is_file() and not entry.name.startswith(".")]
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}", "check its permissions") from error
    videos = sorted((e for e in entries if e.suffix.lower() in VIDEO_SUFFIXES), key=natural_key)
    pictures = any(entry.suffix.lower() in PICTURE_SUFFIXES for entry in entries)
    if recursive:
        return videos or ([path] if pictures else [])
    if videos and pictures:
        raise InputError(f"{path} holds both videos and pictures", "name the videos one by one, or move one kind away")
    if not videos and not pictures:
        fault = no_pictures(path)
        if any(entry.is_dir() and not entry.name.startswith(".") for entry in everything):
            fault.hint = "add --recursive for the folders in it"
        raise fault
    return videos or [path]


def _is_one_picture(source: Path) -> bool:
    try:
        return is_picture(source)
    except OSError:
        return False  # reading it reports the error


def _picture_name(source: Path) -> str:
    """Return the name of a picture's output in a folder: written without loss, TIFF as TIFF, others as PNG."""
    return source.name if source.suffix.lower() in WRITTEN_PICTURES else f"{source.stem}.png"


def _file_name(source: Path) -> str:
    """Return the name of a source's output in a folder; a video without suffix gets one."""
    return source.resolve().name if os.path.isdir(source) else source.name if source.suffix else f"{source.name}.mkv"


def _jobs_beside(sources: list[Path], suffix: str | None, settings: Settings) -> list[RunJob]:
    if not suffix or "/" in suffix:
        raise UsageError(f"--suffix {suffix!r} cannot be added to a name", "use --suffix _sharp")
    if demux.PIPE in sources:
        raise UsageError("standard input has no name to add a suffix to", "name an OUTPUT")
    jobs = []
    for path in sources:
        if os.path.isdir(path) or settings.pictures:
            name = path.resolve().name if os.path.isdir(path) else path.stem
            jobs.append(RunJob(path, path.absolute().with_name(f"{name}{suffix}"), settings.pictures))
        else:
            output = path.with_name(f"{path.stem}{suffix}{path.suffix}")
            jobs.append(RunJob(path, _written(output, path, settings)))
    return jobs


def _jobs_within(found: list[tuple[Path, Path]], output: str, settings: Settings) -> list[RunJob]:
    """Return the jobs whose outputs stand in one folder. found: each source, and its place there."""
    if output == "-":
        raise UsageError("several inputs cannot go to one pipe", "name a folder for them")
    check_output_is_no_url(output)
    folder = Path(output).absolute()
    if _pattern(Path(output)):
        raise UsageError(f"{output} names the pictures of one video", "use --pictures, and name a folder")
    if not os.path.isdir(folder) and folder.suffix and not output.endswith(("/", os.sep)):
        raise UsageError(f"{output} is one file, but there are several inputs", f"name a folder: {output}/")
    _check_folder(folder)
    jobs = []
    for source, place in found:
        if source == demux.PIPE:
            raise UsageError("standard input has no name for a file in a folder", "run it alone, and name the file")
        is_pictures = settings.pictures and not os.path.isdir(source)
        path = folder / place.with_suffix("") if is_pictures else _written(folder / place, source, settings)
        jobs.append(RunJob(source, path, settings.pictures, makes_folder=True))
    return jobs


def _check_folder(folder: Path) -> None:
    """Refuse a folder that neither exists nor can be made.

    Raises: OutputError.
    """
    if os.path.exists(folder) and not os.path.isdir(folder):
        raise OutputError(f"the folder {folder} cannot be made: a file has this name", "choose another name")
    if not os.path.isdir(folder.parent):
        raise OutputError(
            f"the folder {folder} cannot be made: there is no {folder.parent}", f"make it: mkdir -p '{folder.parent}'"
        )


def _written(path: Path, source: Path, settings: Settings) -> Path:
    """Return the output's path, with .mkv for a container that cannot be written or that cannot hold the codec.

    Only one picture keeps a picture's suffix: an animated PNG or WebP is a video.
    """
    if not path.suffix:
        return path.absolute()
    is_of_picture = path.suffix.lower() in PICTURE_ENCODERS
    if is_of_picture and _is_one_picture(source):
        return path.absolute()
    if is_of_picture or settings.encoding.lossless:
        return path.with_suffix(".mkv").absolute()
    return path.absolute() if encoding.is_container(path.suffix) else path.with_suffix(".mkv").absolute()


def _check_names(jobs: list[RunJob], settings: Settings) -> None:
    """Refuse outputs with the same name, and outputs that are inputs.

    Raises: UsageError.
    """
    outputs: dict[Path, Path] = {}
    inputs = {job.source.resolve() for job in jobs}
    for job in jobs:
        for output in [job.output] + (
            [comparison_path(job.output, job.settings(settings))] if settings.compare else []
        ):
            if output in outputs:
                raise UsageError(f"{outputs[output]} and {job.source} would both become {output}", "rename one")
            if output.resolve() in inputs:
                raise UsageError(f"{output} is one of the inputs", "choose another folder for the outputs")
            outputs[output] = job.source
