"""Restore several inputs, one after the other or several at once; jobs.py plans the output of each."""

import threading
import time
from collections import Counter
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

import torch

from vdeblur.errors import BatchError, InterruptedRunError, OutputError, error_facts
from vdeblur.events import Ask, Notify, Stop, Talk, ignore, never
from vdeblur.run.context import RunResult
from vdeblur.run.jobs import RunJob
from vdeblur.run.pipeline import restore_file
from vdeblur.run.questions import answer_questions
from vdeblur.run.run_log import RunLog
from vdeblur.settings import Settings

STATUSES = ("restored", "planned", "skipped", "stopped", "failed")


@dataclass(frozen=True)
class Outcome:
    """The end of a job: a result or an error, or neither if its output existed and it was skipped."""

    job: RunJob
    result: RunResult | None = None
    error: BaseException | None = None

    @property
    def status(self) -> str:
        """The end in a word: restored, planned (by a dry run), skipped, stopped or failed."""
        if self.error is not None:
            return "stopped" if isinstance(self.error, InterruptedRunError) else "failed"
        if self.result is None:
            return "skipped"
        return "planned" if self.result.is_planned else "restored"


def without_existing(jobs: list[RunJob], notify: Notify = ignore) -> list[RunJob]:
    """Leave out the jobs whose output exists."""
    return [job for job in jobs if not _is_skipped(job, notify)]


def _is_skipped(job: RunJob, notify: Notify) -> bool:
    if not job.is_done():
        return False
    notify("file_skipped", {"input": str(job.source), "output": str(job.output), "status": "skipped"})
    return True


def run_jobs(
    jobs: list[RunJob],
    settings: Settings,
    at_once: int = 1,
    *,
    skip_existing: bool = False,
    log: RunLog | None = None,
    notify: Notify = ignore,
    ask: Ask | None = None,
    stop: Stop = never,
) -> list[Outcome]:
    """Restore all; the failure of one does not stop the others.

    at_once: so many run at the same time, each in a thread of its own, and share the processor's cores. skip_existing:
    leave out jobs whose output exists. log: gets a line for each file that ends.

    Raises: for a single job what restore_file raises. For several, their outcomes hold the errors, see check_outcomes;
    but ModelError if weights without a published digest are declined or cannot be downloaded.
    """
    runner = _Runner(settings, skip_existing, log, notify, None if ask is None else _one_at_a_time(ask), stop)
    if len(jobs) > 1:
        is_needed = not settings.dry_run and not (skip_existing and all(job.is_done() for job in jobs))
        if is_needed:  # a dry run downloads nothing
            answer_questions(settings, Talk(settings.offline, settings.yes, notify, ask, stop))
        return _Batch(jobs, at_once, runner).run()
    return [runner.run(job) for job in jobs]


def run_job(
    job: RunJob,
    settings: Settings,
    *,
    notify: Notify = ignore,
    ask: Ask | None = None,
    stop: Stop = never,
) -> RunResult:
    """Restore one file; make the folder of its output if the job says so. See restore_file."""
    make_folder(job, settings)
    return restore_file(
        job.source, job.output, job.settings(settings), makes_folder=job.makes_folder, notify=notify, ask=ask, stop=stop
    )


def make_folder(job: RunJob, settings: Settings) -> None:
    """Make the folder of a job's output, unless this is a dry run.

    Raises: OutputError.
    """
    if not job.makes_folder or settings.dry_run:
        return
    try:
        job.output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(f"the folder {job.output.parent} cannot be made: {reason}", "check the path") from error


@dataclass(frozen=True)
class _Runner:
    """Runs one job at a time with the same settings, and logs it."""

    settings: Settings
    skip_existing: bool
    log: RunLog | None
    notify: Notify
    ask: Ask | None
    stop: Stop

    def run(self, job: RunJob) -> Outcome:
        """Run a job.

        Raises: what restore_file raises.
        """
        if self.skip_existing and _is_skipped(job, self.notify):
            return Outcome(job)
        begun = time.monotonic()
        try:
            result = run_job(job, self.settings, notify=self.notify, ask=self.ask, stop=self.stop)
        except Exception as error:
            self._write_log(Outcome(job, error=error), time.monotonic() - begun)
            raise
        outcome = Outcome(job, result)
        self._write_log(outcome, result.seconds)
        return outcome

    def _write_log(self, outcome: Outcome, seconds: float) -> None:
        if self.log is not None and not self.settings.dry_run:
            job, error = outcome.job, outcome.error
            reason = "" if error is None else str(error)
            self.log.write(
                job.source, job.output, outcome.status, reason, job.settings(self.settings), outcome.result, seconds
            )


class _Batch:
    """Several jobs, some at once; see run_jobs."""

    def __init__(self, jobs: list[RunJob], at_once: int, runner: _Runner) -> None:
        self.jobs, self.at_once, self.runner = jobs, at_once, runner
        self.notify, self.stop = runner.notify, runner.stop

    def run(self) -> list[Outcome]:
        """Run all jobs, and report the outcomes."""
        begun = time.monotonic()
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
                    pending[pool.submit(self._run_one, index, job)] = index
                while pending:
                    self._collect(pending, outcomes)
        finally:
            torch.set_num_threads(threads)
        status = self.stop()
        if status is not None:
            left = {index: Outcome(job, error=InterruptedRunError(status)) for index, job in enumerate(self.jobs)}
            outcomes = left | outcomes
        done = [outcomes[index] for index in sorted(outcomes)]
        rows = [row_of(outcome) for outcome in done]
        self.notify("batch", {"files": rows, "total": total_of(done, time.monotonic() - begun)})
        return done

    @staticmethod
    def _collect(pending: dict[Future[Outcome], int], outcomes: dict[int, Outcome]) -> None:
        for future in wait(pending, return_when=FIRST_COMPLETED).done:
            outcomes[pending.pop(future)] = future.result()

    def _run_one(self, index: int, job: RunJob) -> Outcome:
        place = {"number": index + 1, "files": len(self.jobs)}
        self.notify("file", {"input": str(job.source), "output": str(job.output), **place})
        try:
            return self.runner.run(job)
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
    """Return an outcome as a row of the table at the end; the frames of a dry run are an estimate."""
    result = outcome.result
    frames = 0 if result is None else (result.frames_estimate or 0) if result.is_planned else result.frames
    return {
        "input": str(outcome.job.source),
        "output": str(outcome.job.output),
        "result": f"failed: {outcome.error}" if outcome.status == "failed" else outcome.status,
        "status": outcome.status,
        "frames": frames,
        "seconds": 0.0 if result is None else round(result.seconds, 1),
        "warnings": 0 if result is None else len(result.warnings),
    }


def total_of(outcomes: list[Outcome], seconds: float) -> dict[str, object]:
    """Return the number of files by status, and the sums over all files. seconds: of the batch."""
    count = Counter(outcome.status for outcome in outcomes)
    rows = [row_of(outcome) for outcome in outcomes]
    return {
        "files": len(outcomes),
        **{status: count[status] for status in STATUSES},
        "frames": sum(int(str(row["frames"])) for row in rows),
        "seconds": round(seconds, 1),
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
