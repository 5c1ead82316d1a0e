"""Several inputs: the output of each, and restoring them one after the other or several at once."""

import dataclasses
import os
import threading
from collections.abc import Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

import torch

from vdeblur.errors import BatchError, InputError, InterruptedRunError, OutputError, UsageError, error_facts
from vdeblur.events import Ask, Notify, Stop, Talk, ignore, never
from vdeblur.output import encoding
from vdeblur.run.compare_input import comparison_path
from vdeblur.run.context import RunResult
from vdeblur.run.pipeline import restore_file
from vdeblur.run.questions import answer_questions
from vdeblur.settings import Settings
from vdeblur.source import demux
from vdeblur.source.pictures import PICTURE_SUFFIXES, natural_key, no_pictures

# The files of a folder that count as videos; a file that the user names is opened whatever its suffix.
VIDEO_SUFFIXES = {
    *(".3g2", ".3gp", ".avi", ".dv", ".flv", ".h264", ".h265", ".hevc", ".m2t", ".m2ts", ".m2v", ".m4v", ".mkv"),
    *(".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".mxf", ".nut", ".ogv", ".ts", ".vob", ".webm", ".wmv", ".y4m"),
}


@dataclass(frozen=True)
class RunJob:
    """An input and its output. pictures: whether the output is a folder of pictures even if its name has a suffix."""

    source: Path
    output: Path
    pictures: bool = False

    def settings(self, settings: Settings) -> Settings:
        """Return the settings for this job."""
        return dataclasses.replace(settings, pictures=self.pictures)


@dataclass(frozen=True)
class Outcome:
    """The end of a job: a result or an error."""

    job: RunJob
    result: RunResult | None = None
    error: BaseException | None = None


def plan_jobs(inputs: Iterable[str], output: str | None, suffix: str | None, settings: Settings) -> list[RunJob]:
    """Choose the output of every input.

    output: a file, or a folder for several inputs; None: beside the inputs, with the suffix added to their names.

    Raises: InputError for a folder without videos or pictures, UsageError if the output does not fit the inputs.
    """
    paths = [Path(name) for name in inputs]
    sources = [source for path in paths for source in _sources(path)]
    several = len(paths) > 1 or sources != paths
    if output is None:
        assert suffix is not None
        if not suffix or "/" in suffix:
            raise UsageError(f"--suffix {suffix!r} cannot be added to a name", "use --suffix _sharp")
        jobs = [
            RunJob(path, _written(path.with_name(f"{path.stem}{suffix}{path.suffix}"), settings)) for path in sources
        ]
    elif not several:
        return [RunJob(sources[0], demux.PIPE if output == "-" else Path(output).absolute(), settings.pictures)]
    else:
        folder = _folder(output)  # its slash does not ask for pictures, then
        names = [path.name if path.suffix or path.is_dir() else f"{path.name}.mkv" for path in sources]
        jobs = [RunJob(path, _written(folder / name, settings)) for path, name in zip(sources, names, strict=True)]
    _check_names(jobs, settings)
    return jobs


def _sources(path: Path) -> list[Path]:
    """Return the videos of a folder of videos; anything else is one input."""
    if not path.is_dir():
        return [path]
    try:
        entries = [entry for entry in path.iterdir() if entry.is_file() and not entry.name.startswith(".")]
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}", "check its permissions") from error
    videos = sorted((e for e in entries if e.suffix.lower() in VIDEO_SUFFIXES), key=natural_key)
    pictures = any(entry.suffix.lower() in PICTURE_SUFFIXES for entry in entries)
    if videos and pictures:
        raise InputError(f"{path} holds both videos and pictures", "name the videos one by one, or move one kind away")
    if not videos and not pictures:
        raise no_pictures(path)
    return videos or [path]


def _folder(output: str) -> Path:
    """Return the folder for several outputs, made if missing."""
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
    """Return the output's path, with .mkv for a container that cannot be written or that cannot hold the codec."""
    if not path.suffix:
        return path.absolute()
    if settings.encoding.lossless:
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


def without_existing(jobs: list[RunJob], notify: Notify = ignore) -> list[RunJob]:
    """Leave out the jobs whose output exists."""
    for job in jobs:
        if job.output.exists():
            notify("file_skipped", {"input": str(job.source), "output": str(job.output)})
    return [job for job in jobs if not job.output.exists()]


def run_jobs(
    jobs: list[RunJob],
    settings: Settings,
    at_once: int = 1,
    *,
    notify: Notify = ignore,
    ask: Ask | None = None,
    stop: Stop = never,
) -> list[Outcome]:
    """Restore all; the failure of one does not stop the others.

    at_once: so many run at the same time, each in a thread of its own, and share the processor's cores.

    Raises: for a single job what restore_file raises. For several, their outcomes hold the errors, see check_outcomes;
    but ModelError if weights without a published digest are declined or cannot be downloaded.
    """
    if len(jobs) > 1:
        answer_questions(settings, Talk(settings.offline, settings.yes, notify, ask, stop))
        return _Batch(jobs, settings, at_once, notify, ask, stop).run()
    return [Outcome(job, run_job(job, settings, notify=notify, ask=ask, stop=stop)) for job in jobs]


def run_job(
    job: RunJob,
    settings: Settings,
    *,
    notify: Notify = ignore,
    ask: Ask | None = None,
    stop: Stop = never,
) -> RunResult:
    """Restore one file; see restore_file."""
    return restore_file(job.source, job.output, job.settings(settings), notify=notify, ask=ask, stop=stop)


class _Batch:
    """Several jobs, some at once; see run_jobs."""

    def __init__(
        self,
        jobs: list[RunJob],
        settings: Settings,
        at_once: int,
        notify: Notify,
        ask: Ask | None,
        stop: Stop,
    ) -> None:
        self.jobs, self.settings, self.at_once = jobs, settings, at_once
        self.notify, self.stop = notify, stop
        self.ask = None if ask is None else _one_at_a_time(ask)

    def run(self) -> list[Outcome]:
        """Run all jobs, and report the outcomes."""
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
                    pending[pool.submit(self._run_one, job)] = index
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

    def _run_one(self, job: RunJob) -> Outcome:
        try:
            return Outcome(job, run_job(job, self.settings, notify=self.notify, ask=self.ask, stop=self.stop))
        except Exception as error:  # the other files go on
            return self._failed(job, error)

    def _failed(self, job: RunJob, error: Exception) -> Outcome:
        if not isinstance(error, InterruptedRunError):
            self.notify("error", {**error_facts(error), "input": str(job.source)})
        return Outcome(job, error=error)


def _one_at_a_time(ask: Ask) -> Ask:
    """Return an Ask that puts one question after the other, whichever thread it comes from."""
    asking = threading.Lock()

    def ask_in_turn(text: str) -> bool:
        with asking:
            return ask(text)

    return ask_in_turn


def row_of(outcome: Outcome) -> dict[str, object]:
    """Return an outcome as a row of the table at the end."""
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


def check_outcomes(outcomes: list[Outcome]) -> None:
    """Check that all jobs succeeded.

    Raises: BatchError if one failed, InterruptedRunError if a signal stopped them.
    """
    failed = [outcome for outcome in outcomes if outcome.error is not None]
    stopped = next((each.error for each in failed if isinstance(each.error, InterruptedRunError)), None)
    if stopped is not None:
        error = InterruptedRunError(stopped.status)
        error.message = f"stopped; {len(outcomes) - len(failed)} of {len(outcomes)} files are done"
        error.hint = "run the same command with --skip-existing to go on"
        raise error
    if failed:
        names = ", ".join(str(outcome.job.source) for outcome in failed[:3]) + (", ..." if len(failed) > 3 else "")
        raise BatchError(
            f"{len(failed)} of {len(outcomes)} files failed: {names}",
            "see above; the same command with --skip-existing tries the failed ones again",
        )
