"""Run on many processes or machines with Ray: files, or shares of their segments, are its tasks.

A task does what `vdeblur run --share K/N` does, so only small settings travel. Every machine must have vdeblur
installed, and see the inputs and the outputs' folder under the same paths, such as on a network file system. If a
worker dies or is taken away, what it leaves undone is made when the shares are joined.
"""

import contextlib
import dataclasses
import logging
import os
import secrets
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

from vdeblur.errors import InterruptedRunError, UsageError, VdeblurError, error_facts
from vdeblur.events import Ask, Notify, Stop, Talk, ignore, never
from vdeblur.models import own, weights
from vdeblur.models.registry import CHOSEN_NAMES
from vdeblur.restore import device
from vdeblur.run import auto, loading
from vdeblur.run.batch import Outcome, row_of, run_job, run_jobs, total_of
from vdeblur.run.compare_input import check_comparison, compare_with_input
from vdeblur.run.context import Context, RunResult
from vdeblur.run.file_run import run_file
from vdeblur.run.jobs import RunJob
from vdeblur.run.segments import Division
from vdeblur.run.sinks import writes_pictures
from vdeblur.run.store import ModelChoice
from vdeblur.settings import Settings
from vdeblur.source import counting, video

POLL_SECONDS = 0.2  # between two checks for signals
CONNECT_SECONDS = 5  # to wait for a cluster's answer
SHARES_PER_WORKER = 3  # so that a slow machine does not hold up the others for long

Share = tuple[int, int] | None  # k and n of the k-th of n shares; None: the whole file is one task


def run_jobs_on_ray(
    jobs: list[RunJob],
    settings: Settings,
    workers: int | None = None,
    address: str | None = None,
    *,
    notify: Notify = ignore,
    ask: Ask | None = None,
    stop: Stop = never,
) -> list[Outcome]:
    """Restore all on a Ray cluster; the failure of one does not stop the others.

    workers: number of tasks at once; None: one for each GPU of the cluster, or else for each of its machines. address:
    of a running cluster ("auto": the one that this machine is in); None: start one on this machine alone.

    Raises: UsageError if Ray is not installed or the cluster cannot be reached, or for a device with a number;
    InterruptedRunError at a signal.
    """
    begun = time.monotonic()
    if ":" in settings.device:
        raise UsageError(
            f"--engine ray chooses the device of each task, so {settings.device} names none",
            f"use -d {settings.device.partition(':')[0]}",
        )
    if settings.compare:
        for job in jobs:
            check_comparison(job.source, job.output, job.settings(settings))
    if address is None:
        keep_cluster_private()
    ray = _imported()
    if settings.dry_run:
        return run_jobs(jobs, settings, 1, notify=notify, ask=ask, stop=stop)  # there is nothing to divide
    _start(ray, address, workers)
    try:
        if settings.model not in CHOSEN_NAMES:  # asks here about weights without a digest, so that no worker has to
            talk = Talk(settings.offline, settings.yes, notify, ask, stop)
            weights.load_model(settings.model, settings.checkpoint, talk)
        cluster = _Cluster(ray, jobs, settings, notify, ask, stop)
        cluster.submit(workers)
        cluster.collect()
    finally:
        ray.shutdown()
    outcomes = [cluster.outcomes[job] for job in jobs]
    if len(jobs) > 1:
        total = total_of(outcomes, time.monotonic() - begun)
        notify("batch", {"files": [row_of(outcome) for outcome in outcomes], "total": total})
    return outcomes


class _Cluster:
    """The tasks of a run on a cluster.

    settled: the settings of each file. In them `auto` and `best` are the model that was chosen here, once: two machines
    may choose differently, and would clear each other's segments. running: Ray's reference of each task to its job and
    share. left: of each job how many tasks are not done.
    """

    def __init__(
        self, ray: Any, jobs: list[RunJob], settings: Settings, notify: Notify, ask: Ask | None, stop: Stop
    ) -> None:
        self.ray, self.jobs, self.settings = ray, jobs, settings
        self.notify, self.ask, self.stop = notify, ask, stop
        self.running: dict[Any, tuple[RunJob, Share]] = {}
        self.settled: dict[RunJob, Settings] = {}
        self.left: dict[RunJob, int] = {}
        self.outcomes: dict[RunJob, Outcome] = {}

    def submit(self, workers: int | None) -> None:
        """Divide all files into tasks and hand them to Ray."""
        resources, count = _resources(self.ray, self.settings, workers)
        task: Any = self.ray.remote(**resources)(_work)
        for job in self.jobs:
            context = self._settle(job)
            settings = self.settled[job] = context.settings
            shares = _shares(job, settings, count)
            self.left[job] = len(shares)
            for share in shares:
                self.running[task.remote(*_with_absolute_paths(job, settings), share, context.chosen)] = (job, share)
        self.notify("engine", {"engine": "ray", "workers": count, "tasks": len(self.running)})

    def _settle(self, job: RunJob) -> Context:
        """Return what a file's tasks begin with: the settings, with a model's name instead of `auto` or `best`.

        Raises: InterruptedRunError.
        """
        context = Context(job.source, job.output, job.settings(self.settings), self.notify, self.ask, self.stop)
        settings = context.settings
        if settings.model not in CHOSEN_NAMES:
            return context
        try:
            with contextlib.closing(video.open_source(job.source, settings.cut, ignore)) as source:
                counting.settle_frames(source)
                if settings.model == auto.AUTO:
                    context.settings = auto.settled_settings(context, source.info)
                else:
                    chosen = device.choose_device(settings.device, ignore)  # the tasks report faults
                    model = loading.best_model(context, source.info, chosen)
                    context.settings = dataclasses.replace(settings, model=model)
        except InterruptedRunError:
            raise
        except VdeblurError:
            return context  # the task reports the error
        return context

    def collect(self) -> None:
        """Wait for all tasks; join the shares of each file as soon as all of them are done.

        Raises: InterruptedRunError.
        """
        while self.running:
            done, _ = self.ray.wait(list(self.running), num_returns=1, timeout=POLL_SECONDS)
            status = self.stop()
            if status is not None:
                for reference in self.running:
                    self.ray.cancel(reference)
                raise InterruptedRunError(status)
            for reference in done:
                self._take(reference)

    def _take(self, reference: Any) -> None:
        job, share = self.running.pop(reference)
        result = self._result(reference)
        self.left[job] -= 1
        if share is not None and isinstance(result, Exception):
            message = f"share {share[0]} of {share[1]} of {job.source}: {result}"
            self.notify("warning", {"code": "W_ENGINE", "message": message})
        if not self.left[job]:
            self.outcomes[job] = self._finish(job, share, result)

    def _result(self, reference: Any) -> RunResult | Exception:
        try:
            result: RunResult = self.ray.get(reference)
            return result
        except self.ray.exceptions.RayTaskError as error:
            cause: object = error.cause
            return cause if isinstance(cause, Exception) else RuntimeError(str(error))
        except self.ray.exceptions.RayError as error:
            return RuntimeError(str(error))

    def _finish(self, job: RunJob, share: Share, result: RunResult | Exception) -> Outcome:
        """Finish a file here: join its shares, making what is missing of them, or report what the one task made."""
        try:
            if share is not None:
                return Outcome(job, run_job(job, self.settled[job], notify=self.notify, ask=self.ask, stop=self.stop))
            if isinstance(result, Exception):
                raise result
            self._tell_done(job, result)
            return Outcome(job, result)
        except InterruptedRunError:
            raise
        except Exception as error:
            self.notify("error", {**error_facts(error), "input": str(job.source)})
            return Outcome(job, error=error)

    def _tell_done(self, job: RunJob, result: RunResult) -> None:
        facts = {"input": str(job.source), "output": str(job.output), "frames": result.frames}
        speed = {"seconds": round(result.seconds, 3), "fps": round(result.frames / result.seconds, 3)}
        self.notify("file_done", {**facts, **speed, "warnings": list(result.warnings)})
        if self.settings.compare:
            compare_with_input(job.source, job.output, job.settings(self.settings), self.notify, self.stop)


def keep_cluster_private() -> None:
    """Let a cluster that is started here listen on this machine alone, and obey only processes that know its token.

    By default Ray listens on all networks, and whoever reaches it runs code. It reads these settings when imported.
    """
    if "ray" in sys.modules:
        return
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # the loopback address, on Linux too
    if "RAY_AUTH_MODE" not in os.environ:
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


def _imported() -> Any:
    """Return the module ray.

    Raises: UsageError.
    """
    try:
        import ray
    except ImportError as error:
        raise UsageError("--engine ray needs Ray, which is not installed", "pip install 'vdeblur[ray]'") from error
    return ray


def _start(ray: Any, address: str | None, workers: int | None) -> None:
    """Join a cluster, or start one.

    Raises: UsageError.
    """
    options: dict[str, Any] = {"address": address} if address else {"include_dashboard": False, "num_cpus": workers}
    handler = signal.getsignal(signal.SIGTERM)
    try:
        _check_connection(address)
        with contextlib.chdir(Path(__file__).parents[2]):
            # Ray's workers import from the folder in which this is called. In the working folder, others may have put
            # modules; this one holds vdeblur itself.
            ray.init(logging_level=logging.ERROR, log_to_driver=False, **options)
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"the Ray cluster cannot be reached: {reason}", "check --ray-address") from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)  # Ray sets its own, which ends the process at once


def _check_connection(address: str | None) -> None:
    """Connect once, if the address has a port; Ray itself tries for minutes.

    Raises: OSError, ValueError.
    """
    host, colon, port = (address or "").removeprefix("ray://").rpartition(":")
    if colon:
        socket.create_connection((host, int(port)), CONNECT_SECONDS).close()


def _resources(ray: Any, settings: Settings, workers: int | None) -> tuple[dict[str, float], int]:
    """Return the resources of the cluster that a task takes, and how many tasks fit."""
    available = ray.cluster_resources()
    gpus = int(available.get("GPU", 0))
    if gpus and settings.device.startswith(("auto", "cuda")):
        count = min(workers or gpus, gpus)
        return {"num_gpus": gpus / count if count > gpus else 1, "num_cpus": 1}, count
    count = workers or len(ray.nodes())
    return {"num_cpus": max(int(available.get("CPU", 1)) // count, 1)}, count


def _shares(job: RunJob, settings: Settings, workers: int) -> list[Share]:
    """Divide a file into shares, if its segments can be counted; [None]: it is one task."""
    if settings.cut.frames is not None or writes_pictures(job.output, settings) or not settings.resume:
        return [None]
    try:
        source = video.open_source(job.source, settings.cut, ignore)
    except VdeblurError:
        return [None]  # the task reports the error
    duration, first = source.wanted_seconds, source.first_seconds
    source.close()
    count = Division(first, settings.segment).count(duration) or 1
    shares = min(count, SHARES_PER_WORKER * workers)
    return [(number, shares) for number in range(1, shares + 1)] if shares > 1 else [None]


def _with_absolute_paths(job: RunJob, settings: Settings) -> tuple[RunJob, Settings]:
    """Return a job and settings for a worker, whose working folder is another one."""
    model, checkpoint = settings.model, settings.checkpoint
    if own.is_file_name(model):
        model = str(Path(model).expanduser().absolute())
    checkpoint = None if checkpoint is None else checkpoint.absolute()
    mask = None if settings.mask is None else settings.mask.absolute()
    here = dataclasses.replace(job, source=job.source.absolute())
    return here, dataclasses.replace(settings, model=model, checkpoint=checkpoint, mask=mask)


def _work(job: RunJob, settings: Settings, share: Share, chosen: ModelChoice | None) -> RunResult:
    """Do one task, in a worker. chosen: the model, if the user did not name it."""
    settings = dataclasses.replace(settings, share=share, compare=None)
    return run_file(Context(job.source, job.output, settings, chosen=chosen))
