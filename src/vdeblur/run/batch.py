"""Several inputs: which output each has, and how they are restored one after the other, or some at once.

`restore` does all that is asked for of one of them: its output and the comparison beside it, or a sample.
"""

import dataclasses
import os
import threading
from collections.abc import Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

import torch

from vdeblur import files
from vdeblur.errors import (
    BatchError,
    DamageError,
    InputError,
    InterruptedRunError,
    OutputError,
    UsageError,
    error_facts,
)
from vdeblur.events import Ask, Notify, Stop, ignore, never
from vdeblur.look import compare
from vdeblur.output import encoding
from vdeblur.run import pipeline, sample
from vdeblur.settings import Settings
from vdeblur.source import demux
from vdeblur.source.pictures import PICTURE_SUFFIXES, natural_key

# What is taken for a video in a folder; a file that is named is opened whatever its name says.
VIDEO_SUFFIXES = {
    *(".3g2", ".3gp", ".avi", ".dv", ".flv", ".h264", ".h265", ".hevc", ".m2t", ".m2ts", ".m2v", ".m4v", ".mkv"),
    *(".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".mxf", ".nut", ".ogv", ".ts", ".vob", ".webm", ".wmv", ".y4m"),
}


@dataclass(frozen=True)
class RunJob:
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

    job: RunJob
    result: pipeline.RunResult | None = None
    error: BaseException | None = None


def plan_jobs(inputs: Iterable[str], output: str | None, suffix: str | None, settings: Settings) -> list[RunJob]:
    """Give every input its output.

    output: a file, or a folder for several inputs; None: beside the inputs, with the suffix added to their names.

    Raises: InputError where a folder holds nothing of use, UsageError where the output or options do not fit.
    """
    check_extras(settings)
    paths = [Path(name) for name in inputs]
    sources = [source for path in paths for source in _sources(path)]
    several = len(paths) > 1 or sources != paths
    if output is None:
        assert suffix is not None
        if not suffix or "/" in suffix:
            raise UsageError(f"--suffix {suffix!r} is not something to add to a name", "use --suffix _sharp")
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
    """Give the videos in a folder of videos; anything else is an input by itself."""
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
    return path.absolute() if encoding.is_container(path.suffix) else path.with_suffix(".mkv").absolute()


def check_extras(settings: Settings) -> None:
    """Refuse what --compare and --sample do not go together with.

    Raises: UsageError.
    """
    asked = [f"--{name}" for name in ("compare", "sample") if getattr(settings, name)]
    if len(asked) == 2:
        raise UsageError("--sample shows the input beside the output already", "leave out --compare")
    for option in asked:
        if settings.share is not None:
            raise UsageError(f"{option} needs an output, and --share makes none", "give it to the run that joins them")
        if settings.dry_run:
            raise UsageError(f"{option} needs an output, and --dry-run makes none", "leave out one of them")
    if settings.sample and settings.profile:
        raise UsageError("--profile is of a whole run, not of samples", "leave out one of them")


def comparison_of(job: RunJob, settings: Settings) -> Path:
    """Give the name of the comparison of a job's input and output, beside the output."""
    output, settings = job.output, job.settings(settings)
    if settings.compare == "html":
        suffix = ".html"
    else:
        is_video = not pipeline.writes_pictures(output, settings) and encoding.is_container(output.suffix)
        suffix = output.suffix if is_video else ".mp4"
    stem = output.name if pipeline.writes_pictures(output, settings) else output.stem
    return output.with_name(f"{stem}_{settings.compare}{suffix}")


def _check_names(jobs: list[RunJob], settings: Settings) -> None:
    """Refuse outputs of one name, and outputs that are inputs.

    Raises: UsageError.
    """
    outputs: dict[Path, Path] = {}
    inputs = {job.source.resolve() for job in jobs}
    for job in jobs:
        for output in [job.output] + ([comparison_of(job, settings)] if settings.compare else []):
            if output in outputs:
                raise UsageError(f"{outputs[output]} and {job.source} would both become {output}", "rename one")
            if output.resolve() in inputs:
                raise UsageError(f"{output} is one of the inputs", "choose another folder for the outputs")
            outputs[output] = job.source


def without_existing(jobs: list[RunJob], notify: Notify = ignore) -> list[RunJob]:
    """Leave out the jobs whose output is there."""
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
    """Restore them all; a failure of one is no matter to the others.

    at_once: so many are in work at the same time, each in a thread of its own, and share the processor's cores.

    Raises: of a single job what pipeline.run raises. Of several, what went wrong is in their outcomes; see `check`.
    """
    if len(jobs) > 1:
        return _Batch(jobs, settings, at_once, notify, ask, stop).run()
    return [Outcome(job, run_job(job, settings, notify=notify, ask=ask, stop=stop)) for job in jobs]


def run_job(
    job: RunJob,
    settings: Settings,
    *,
    notify: Notify = ignore,
    ask: Ask | None = None,
    stop: Stop = never,
) -> pipeline.RunResult:
    """Restore one file, or with --sample samples of it, and with --compare show it beside its input, too.

    Raises: what pipeline.run, sample.run and compare raise. An output that is done stays, whatever comes of the
    comparison.
    """
    settings = job.settings(settings)
    check_extras(settings)
    if settings.sample:
        return sample.run_sample(job.source, job.output, settings, notify=notify, ask=ask, stop=stop)
    if settings.compare:
        check_comparison(job, settings)
        notify = _once(notify)  # the input is read again, and says the same again
    try:
        result = pipeline.restore_file(job.source, job.output, settings, notify=notify, ask=ask, stop=stop)
    except DamageError:  # the output is there all the same
        if settings.compare:
            compare_with_input(job, settings, notify, stop)
        raise
    if settings.compare:
        compare_with_input(job, settings, notify, stop)
    return result


def _once(notify: Notify) -> Notify:
    """Pass events on, but no warning twice."""
    told: set[tuple[object, object]] = set()

    def pass_on(event: str, facts: dict[str, object]) -> None:
        warning = (facts.get("code"), facts.get("message"))
        if event != "warning" or warning not in told:
            notify(event, facts)
        if event == "warning":
            told.add(warning)

    return pass_on


def check_comparison(job: RunJob, settings: Settings) -> None:
    """Refuse a comparison that must not or cannot be written, before any work.

    Raises: UsageError for pipes, OutputError.
    """
    if demux.PIPE in (job.source, job.output):
        raise UsageError("--compare takes no pipes: input and output are read once more", "use files")
    files.check_output(comparison_of(job, settings), job.source, settings.encoding.overwrite)


def compare_with_input(job: RunJob, settings: Settings, notify: Notify, stop: Stop) -> None:
    """Show a job's input, or the part of it that was asked for, and its output in one file beside the output."""
    assert settings.compare is not None
    path = comparison_of(job, settings)
    told: dict[str, object] = {"input": str(job.source), "output": str(path), "mode": settings.compare}

    def notify_warning(event: str, facts: dict[str, object]) -> None:
        if event == "warning":  # progress is of the work that is done by now
            notify(event, facts)

    try:
        compare.write_comparison(
            job.source,
            job.output,
            path,
            settings.compare,
            overwrite=settings.encoding.overwrite,
            cut=settings.cut,
            notify=notify_warning,
            stop=stop,
        )
    except InterruptedRunError as error:
        error.message = f"stopped; {job.output} is done, {path.name} is not"
        error.hint = f"vdeblur compare {job.source} {job.output} makes it"
        raise
    notify("comparison", told)


class _Batch:
    """Several jobs at work; see run_jobs."""

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
        self.asking = threading.Lock()
        self.ask = None if ask is None else self._one_at_a_time(ask)

    def _one_at_a_time(self, ask: Ask) -> Ask:
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

    def _one(self, job: RunJob) -> Outcome:
        try:
            return Outcome(job, run_job(job, self.settings, notify=self.notify, ask=self.ask, stop=self.stop))
        except Exception as error:  # the other files are none the worse
            return self._failed(job, error)

    def _failed(self, job: RunJob, error: Exception) -> Outcome:
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


def check_outcomes(outcomes: list[Outcome]) -> None:
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
