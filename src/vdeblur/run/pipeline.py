"""A blurry video in, a sharp one out: the entry to every run.

    decode -> segments -> RGB on the device -> split at scene cuts -> tiles -> network stream -> blend
           -> difference onto the original planes -> encode -> assemble

Up to encoding, every arrow is an iterator of frames. Decoding and encoding run in threads of their own behind bounded
queues, so the device seldom waits for them, and memory does not grow with the video's length. Each segment becomes a
finished file beside the output; when all are finished they are joined to the output, which appears complete or not at
all.

To follow a video through the code, read on in this order:

    file_run    the steps of a run
    sinks       the two kinds of output: a file, made of segments (then maker and assemble), or a pipe
    maker       restores and encodes the segments (with reading, segments, parts and store)
    assemble    joins the segments to the output

    loading     the network
    context     what all of these share
"""

from pathlib import Path

from vdeblur.errors import DamageError
from vdeblur.events import Ask, Notify, Stop, ignore, never
from vdeblur.run.candidates import is_page, run_candidates
from vdeblur.run.compare_input import check_comparison, compare_with_input, without_repeated_warnings
from vdeblur.run.context import Context, RunResult
from vdeblur.run.file_run import run_file
from vdeblur.run.sample import run_sample
from vdeblur.settings import Settings

__all__ = ["RunResult", "restore_file"]


def restore_file(
    source_path: Path | str,
    output: Path | str,
    settings: Settings,
    *,
    makes_folder: bool = False,
    notify: Notify = ignore,
    ask: Ask | None = None,
    stop: Stop = never,
) -> RunResult:
    """Restore one video file or folder of pictures; do everything that the settings say.

    With settings.sample the output shows short samples beside the input; with settings.compare a comparison is written
    beside the output.

    source_path, output: `-` is standard input and output. makes_folder: whether a dry run accepts that the output's
    folder is missing, since the run would make it. notify: takes the events probe, choice, plan, progress,
    segment, warning, file_done, profile, comparison and sample, and download, download_progress and download_done
    while weights are downloaded, each with its facts. ask: asks a person whether to download weights whose authors
    published no digest; None: nobody can be asked. stop: asked before every frame; a status means that a signal
    arrived, and the run ends with InterruptedRunError.

    Raises: VdeblurError, one kind for each fault. An existing output then stays as it was. But after a DamageError, or
    an error of the comparison, the new output is complete.
    """
    source_path, output = Path(source_path), Path(output)
    if settings.sample:
        run_samples = run_candidates if is_page(output) else run_sample
        return run_samples(source_path, output, settings, notify=notify, ask=ask, stop=stop)
    if settings.compare is None:
        return run_file(Context(source_path, output, settings, notify, ask, stop, makes_folder))
    check_comparison(source_path, output, settings)
    notify = without_repeated_warnings(notify)
    context = Context(source_path, output, settings, notify, ask, stop, makes_folder)
    try:
        result = run_file(context)
    except DamageError:  # the output is complete all the same
        compare_with_input(source_path, output, settings, notify, stop)
        raise
    compare_with_input(source_path, output, settings, notify, stop)
    return result
