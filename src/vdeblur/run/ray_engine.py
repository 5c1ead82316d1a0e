"""The work on many processes or machines, by Ray: files and shares of their segments are its tasks.

A task is what `vdeblur run --share K/N` does, so nothing but small settings travels: every machine must see the inputs
and the outputs' folder under the same names, as on a network file system, and have vdeblur installed. What a worker
leaves undone, because it died or was taken away, is made when the shares are joined.
"""

import dataclasses
import logging
import signal
import socket
import threading
from typing import Any

from vdeblur.errors import InterruptedRunError, UsageError, VdeblurError, error_facts
from vdeblur.events import Ask, Notify, Stop, Talk, ignore, never
from vdeblur.models import weights
from vdeblur.run import pipeline, segments
from vdeblur.run.batch import Outcome, RunJob, check_comparison, compare_with_input, row_of, run_job
from vdeblur.settings import Settings
from vdeblur.source import video

POLL_SECONDS = 0.2  # between looks at signals
KNOCK_SECONDS = 5  # to wait for a cluster's answer
SHARES_PER_WORKER = 3  # so that a slow machine holds nobody up for long


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
    """Restore them all on a Ray cluster; a failure of one is no matter to the others.

    workers: so many tasks at once; None: one for each GPU of the cluster, or for each of its machines. address: of a
    running cluster ("auto": the one that this machine is in); None: one on this machine alone.

    Raises: UsageError where Ray is not installed or the cluster cannot be reached, InterruptedRunError where a signal
    came.
    """
    if settings.compare:
        for job in jobs:
            check_comparison(job, settings)
    ray = _start(address, workers)
    if settings.model != pipeline.BEST:  # one of us asks, so that no worker has to
        weights.load_model(settings.model, settings.checkpoint, Talk(settings.offline, settings.yes, notify, ask, stop))
    try:
        resources, workers = _resources(ray, settings, workers)
        task: Any = ray.remote(**resources)(_work)
        shares = {job: _shares(job, job.settings(settings), workers) for job in jobs}
        running = {
            task.remote(job, job.settings(settings), share): (job, share) for job in jobs for share in shares[job]
        }
        notify("engine", {"engine": "ray", "workers": workers, "tasks": len(running)})
        outcomes: dict[RunJob, Outcome] = {}
        left = {job: len(shares[job]) for job in jobs}
        while running:
            done, _ = ray.wait(list(running), num_returns=1, timeout=POLL_SECONDS)
            status = stop()
            if status is not None:
                for reference in running:
                    ray.cancel(reference)
                raise InterruptedRunError(status)
            for reference in done:
                job, share = running.pop(reference)
                result = _result(ray, reference)
                left[job] -= 1
                if share is not None and isinstance(result, Exception):
                    facts: dict[str, object] = {
                        "code": "W_ENGINE",
                        "message": f"share {share[0]} of {share[1]} of {job.source}: {result}",
                    }
                    notify("warning", facts)
                if not left[job]:
                    outcomes[job] = _finish(job, share, result, job.settings(settings), notify, ask, stop)
    finally:
        ray.shutdown()
    done_jobs = [outcomes[job] for job in jobs]
    if len(jobs) > 1:
        notify("batch", {"files": [row_of(outcome) for outcome in done_jobs]})
    return done_jobs


def _start(address: str | None, workers: int | None) -> Any:
    """Join or make a cluster."""
    try:
        import ray
    except ImportError as error:
        raise UsageError("--engine ray needs Ray, which is not installed", "pip install 'vdeblur[ray]'") from error
    options: dict[str, Any] = {"address": address} if address else {"include_dashboard": False, "num_cpus": workers}
    handler = signal.getsignal(signal.SIGTERM)
    try:
        _knock(address)
        ray.init(logging_level=logging.ERROR, log_to_driver=False, **options)
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"the Ray cluster cannot be reached: {reason}", "check --ray-address") from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)  # Ray sets its own, which ends the process there and then
    return ray


def _knock(address: str | None) -> None:
    """See that somebody listens, where an address has a port; Ray itself tries for minutes.

    Raises: OSError, ValueError.
    """
    host, colon, port = (address or "").removeprefix("ray://").rpartition(":")
    if colon:
        socket.create_connection((host, int(port)), KNOCK_SECONDS).close()


def _resources(ray: Any, settings: Settings, workers: int | None) -> tuple[dict[str, float], int]:
    """Give what a task takes of the cluster, and how many fit."""
    has = ray.cluster_resources()
    gpus = int(has.get("GPU", 0))
    if gpus and settings.device.startswith(("auto", "cuda")):
        count = min(workers or gpus, gpus)
        return {"num_gpus": gpus / count if count > gpus else 1, "num_cpus": 1}, count
    count = workers or len(ray.nodes())
    return {"num_cpus": max(int(has.get("CPU", 1)) // count, 1)}, count


def _shares(job: RunJob, settings: Settings, workers: int) -> list[tuple[int, int] | None]:
    """Share a file out, as far as its segments can be counted; [None]: it is one task."""
    if settings.cut.frames is not None or pipeline.writes_pictures(job.output, settings) or not settings.resume:
        return [None]
    try:
        source = video.open_source(job.source, settings.cut, ignore)
    except VdeblurError:
        return [None]  # the task will tell
    duration, first = source.wanted_seconds, source.first_seconds
    source.close()
    count = segments.Division(first, settings.segment).count(duration) or 1
    shares = min(count, SHARES_PER_WORKER * workers)
    return [(number, shares) for number in range(1, shares + 1)] if shares > 1 else [None]


def _work(job: RunJob, settings: Settings, share: tuple[int, int] | None) -> pipeline.RunResult:
    """Do one task, in a worker."""
    return pipeline.restore_file(job.source, job.output, dataclasses.replace(settings, share=share))


def _result(ray: Any, reference: Any) -> pipeline.RunResult | Exception:
    try:
        result: pipeline.RunResult = ray.get(reference)
        return result
    except ray.exceptions.RayTaskError as error:
        cause: object = error.cause
        return cause if isinstance(cause, Exception) else RuntimeError(str(error))
    except ray.exceptions.RayError as error:
        return RuntimeError(str(error))


def _finish(
    job: RunJob,
    share: tuple[int, int] | None,
    result: pipeline.RunResult | Exception,
    settings: Settings,
    notify: Notify,
    ask: Ask | None,
    stop: Stop,
) -> Outcome:
    """Join the shares of a file, here; what is missing of them is made on the way."""
    error: Exception
    try:
        if share is not None:
            return Outcome(job, run_job(job, settings, notify=notify, ask=ask, stop=stop))
        if isinstance(result, pipeline.RunResult):
            facts = {"input": str(job.source), "output": str(job.output), "frames": result.frames}
            speed = {"seconds": round(result.seconds, 3), "fps": round(result.frames / result.seconds, 3)}
            notify("file_done", {**facts, **speed, "warnings": list(result.warnings)})
            if settings.compare:
                compare_with_input(job, settings, notify, stop)
            return Outcome(job, result)
        error = result
    except InterruptedRunError:
        raise
    except Exception as caught:
        error = caught
    notify("error", {**error_facts(error), "input": str(job.source)})
    return Outcome(job, error=error)
