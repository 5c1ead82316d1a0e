"""Several inputs: which output each has, and how they are restored one after the other, or some at once."""

import dataclasses
import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

import torch

from vdeblur import decode, encode, pipeline
from vdeblur.errors import (
    BatchError,
    ExitStatus,
    InputError,
    InterruptedRunError,
    OutputError,
    UsageError,
    error_facts,
)
from vdeblur.restore import never
from vdeblur.settings import Settings

# What is taken for a video in a folder; a file that is named is opened whatever its name says.
VIDEO_SUFFIXES = {
    *(".3g2", ".3gp", ".avi", ".dv", ".flv", ".h264", ".h265", ".hevc", ".m2t", ".m2ts", ".m2v", ".m4v", ".mkv"),
    *(".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".mxf", ".nut", ".ogv", ".ts", ".vob", ".webm", ".wmv", ".y4m"),
}


@dataclass(frozen=True)
class Job:
    """An input and its output; pictures: whether that is a folder of them whatever its name looks like."""

    source: Path
    output: Path
    pictures: bool = False

    def settings(self, settings: Settings) -> Settings:
        """Give the settings for this job."""
        return dataclasses.replace(settings, pictures=self.pictures)


@dataclass(frozen=True)
class Outcome:
    """What came of a job: a result or an error."""

    job: Job
    result: pipeline.Result | None = None
    error: BaseException | None = None


def plan_jobs(inputs: Iterable[str], output: str | None, suffix: str | None, settings: Settings) -> list[Job]:
    """Give every input its output.

    output: a file, or a folder for several inputs; None: beside the inputs, with the suffix added to their names.

    Raises: InputError where a folder holds nothing of use, UsageError where the output does not fit.
    """
    paths = [Path(name) for name in inputs]
    sources = [source for path in paths for source in _sources(path)]
    several = len(paths) > 1 or sources != paths
    if output is None:
        assert suffix is not None
        if not suffix or "/" in suffix:
            raise UsageError(f"--suffix {suffix!r} is not something to add to a name", "use --suffix _sharp")
        jobs = [Job(path, _written(path.with_name(f"{path.stem}{suffix}{path.suffix}"), settings)) for path in sources]
    elif not several:
        return [Job(sources[0], decode.PIPE if output == "-" else Path(output).absolute(), settings.pictures)]
    else:
        folder = _folder(output)  # its slash does not ask for pictures, then
        names = [path.name if path.suffix or path.is_dir() else f"{path.name}.mkv" for path in sources]
        jobs = [Job(path, _written(folder / name, settings)) for path, name in zip(sources, names, strict=True)]
    _check_names(jobs)
    return jobs


def _sources(path: Path) -> list[Path]:
    """Give the videos in a folder of videos; anything else is an input by itself."""
    if not path.is_dir():
        return [path]
    try:
        entries = [entry for entry in path.iterdir() if entry.is_file() and not entry.name.startswith(".")]
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}", "check its permissions") from error
    videos = sorted((e for e in entries if e.suffix.lower() in VIDEO_SUFFIXES), key=decode.natural_key)
    pictures = any(entry.suffix.lower() in decode.PICTURE_SUFFIXES for entry in entries)
    if videos and pictures:
        raise InputError(f"{path} holds both videos and pictures", "name the videos one by one, or move one kind away")
    if not videos and not pictures:
        raise InputError(f"{path}: no pictures in this folder, and no videos", "check the path")
    return videos or [path]


def _folder(output: str) -> Path:
    """Give the folder for several outputs; it is made."""
    if output == "-":
        raise UsageError("several inputs cannot go to one pipe", "name a folder for them")
    folder = Path(output).absolute()
    if not folder.is_dir() and folder.suffix and not output.endswith(("/", os.sep)):
        raise UsageError(f"{output} is one file, but there are several inputs", f"name a folder: {output}/")
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise OutputError(f"the folder {folder} cannot be made: {error.strerror}", "check the path") from error
    return folder


def _written(path: Path, settings: Settings) -> Path:
    """Give an output a name that stands for a container that can be written, with the codec that is asked for."""
    if not path.suffix:
        return path.absolute()
    if settings.encoding.lossless:
        return path.with_suffix(".mkv").absolute()
    return path.absolute() if encode.is_container(path.suffix) else path.with_suffix(".mkv").absolute()


def _check_names(jobs: list[Job]) -> None:
    """Refuse outputs of one name, and outputs that are inputs.

    Raises: UsageError.
    """
    outputs: dict[Path, Path] = {}
    inputs = {job.source.resolve() for job in jobs}
    for job in jobs:
        if job.output in outputs:
            raise UsageError(f"{outputs[job.output]} and {job.source} would both become {job.output}", "rename one")
        if job.output.resolve() in inputs:
            raise UsageError(f"{job.output} is one of the inputs", "choose another folder for the outputs")
        outputs[job.output] = job.source


def without_existing(jobs: list[Job], notify: pipeline.Notify = pipeline.ignore) -> list[Job]:
    """Leave out the jobs whose output is there."""
    for job in jobs:
        if job.output.exists():
            notify("file_skipped", {"input": str(job.source), "output": str(job.output)})
    return [job for job in jobs if not job.output.exists()]


def run_jobs(
    jobs: list[Job],
    settings: Settings,
    at_once: int = 1,
    *,
    notify: pipeline.Notify = pipeline.ignore,
    ask: Callable[[str], bool] | None = None,
    stop: Callable[[], ExitStatus | None] = never,
) -> list[Outcome]:
    """Restore them all; a failure of one is no matter to the others.

    at_once: so many are in work at the same time, each in a thread of its own, and share the processor's cores.

    Raises: of a single job what pipeline.run raises. Of several, what went wrong is in their outcomes; see `check`.
    """
    if len(jobs) > 1:
        return _Batch(jobs, settings, at_once, notify, ask, stop).run()
    return [
        Outcome(job, pipeline.run(job.source, job.output, job.settings(settings), notify=notify, ask=ask, stop=stop))
        for job in jobs
    ]


class _Batch:
    """Several jobs at work; see run_jobs."""

    def __init__(
        self,
        jobs: list[Job],
        settings: Settings,
        at_once: int,
        notify: pipeline.Notify,
        ask: Callable[[str], bool] | None,
        stop: Callable[[], ExitStatus | None],
    ) -> None:
        self.jobs, self.settings, self.at_once = jobs, settings, at_once
        self.notify, self.stop = notify, stop
        self.asking = threading.Lock()
        self.ask = None if ask is None else self._one_at_a_time(ask)

    def _one_at_a_time(self, ask: Callable[[str], bool]) -> Callable[[str], bool]:
        def asked(text: str) -> bool:
            with self.asking:
                return ask(text)

        return asked

    def run(self) -> list[Outcome]:
        """Do all, and tell of all."""
        threads = torch.get_num_threads()
        torch.set_num_threads(max(threads // self.at_once, 1))
        pending: dict[Future[Outcome], int] = {}
        outcomes: dict[int, Outcome] = {}
        try:
            with ThreadPoolExecutor(self.at_once, "file") as pool:
                for index, job in enumerate(self.jobs):
                    while len(pending) >= self.at_once:
                        self._collect(pending, outcomes)
                    if self.stop() is not None:
                        break
                    pending[pool.submit(self._one, job)] = index
                while pending:
                    self._collect(pending, outcomes)
        finally:
            torch.set_num_threads(threads)
        status = self.stop()
        if status is not None:
            left = {index: Outcome(job, error=InterruptedRunError(status)) for index, job in enumerate(self.jobs)}
            outcomes = left | outcomes
        done = [outcomes[index] for index in sorted(outcomes)]
        self.notify("batch", {"files": [row_of(outcome) for outcome in done]})
        return done

    @staticmethod
    def _collect(pending: dict[Future[Outcome], int], outcomes: dict[int, Outcome]) -> None:
        for future in wait(pending, return_when=FIRST_COMPLETED).done:
            outcomes[pending.pop(future)] = future.result()

    def _one(self, job: Job) -> Outcome:
        try:
            return Outcome(job, self._restore(job))
        except Exception as error:  # the other files are none the worse
            return self._failed(job, error)

    def _restore(self, job: Job) -> pipeline.Result:
        settings = job.settings(self.settings)
        return pipeline.run(job.source, job.output, settings, notify=self.notify, ask=self.ask, stop=self.stop)

    def _failed(self, job: Job, error: Exception) -> Outcome:
        if not isinstance(error, InterruptedRunError):
            self.notify("error", {**error_facts(error), "input": str(job.source)})
        return Outcome(job, error=error)


def row_of(outcome: Outcome) -> dict[str, object]:
    """Describe an outcome for the table at the end."""
    result, error = outcome.result, outcome.error
    word = "restored" if error is None else "stopped" if isinstance(error, InterruptedRunError) else f"failed: {error}"
    return {
        "input": str(outcome.job.source),
        "output": str(outcome.job.output),
        "result": word,
        "frames": 0 if result is None else result.frames,
        "seconds": 0.0 if result is None else round(result.seconds, 1),
        "warnings": 0 if result is None else len(result.warnings),
    }


def check(outcomes: list[Outcome]) -> None:
    """Say how many failed.

    Raises: BatchError where one did, InterruptedRunError where a signal came.
    """
    failed = [outcome for outcome in outcomes if outcome.error is not None]
    stopped = next((each.error for each in failed if isinstance(each.error, InterruptedRunError)), None)
    if stopped is not None:
        error = InterruptedRunError(stopped.status)
        error.message = f"stopped; {len(outcomes) - len(failed)} of {len(outcomes)} files are done"
        error.hint = "the same command with --skip-existing goes on"
        raise error
    if failed:
        names = ", ".join(str(outcome.job.source) for outcome in failed[:3]) + (", ..." if len(failed) > 3 else "")
        raise BatchError(
            f"{len(failed)} of {len(outcomes)} files failed: {names}",
            "see above; the same command with --skip-existing does the failed ones again",
        )
