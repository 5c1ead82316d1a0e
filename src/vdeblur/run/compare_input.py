"""`vdeblur run --compare`: the input and the output of a run in one file beside the output."""

import shlex
from pathlib import Path

from vdeblur import files
from vdeblur.errors import InterruptedRunError, UsageError
from vdeblur.events import Notify, Stop
from vdeblur.look import compare
from vdeblur.output import encoding
from vdeblur.output.pictures import PICTURE_ENCODERS
from vdeblur.run.sinks import writes_pictures
from vdeblur.settings import Settings
from vdeblur.source import demux


def comparison_path(output: Path, settings: Settings) -> Path:
    """Return the path of the comparison: the output's name with the mode added."""
    is_pictures = writes_pictures(output, settings)
    if settings.compare == "html":
        suffix = ".html"
    else:
        is_pictures_or_one = is_pictures or output.suffix.lower() in PICTURE_ENCODERS
        suffix = ".mp4" if is_pictures_or_one or not encoding.is_container(output.suffix) else output.suffix
    stem = output.name if is_pictures else output.stem
    return output.with_name(f"{stem}_{settings.compare}{suffix}")


def check_comparison(source: Path, output: Path, settings: Settings) -> None:
    """Refuse a comparison that must not or cannot be written, before any work.

    Raises: UsageError for pipes, OutputError.
    """
    if demux.PIPE in (source, output):
        raise UsageError("--compare takes no pipes: input and output are read once more", "use files")
    files.check_output(comparison_path(output, settings), source, settings.encoding.overwrite)


def compare_with_input(source: Path, output: Path, settings: Settings, notify: Notify, stop: Stop) -> None:
    """Write the comparison of the input, or of the part that was restored, and the output."""
    assert settings.compare is not None
    path = comparison_path(output, settings)

    def notify_warning(event: str, facts: dict[str, object]) -> None:
        if event == "warning":  # progress would look like that of the restoration
            notify(event, facts)

    try:
        compare.write_comparison(
            source,
            output,
            path,
            settings.compare,
            overwrite=settings.encoding.overwrite,
            cut=settings.cut,
            notify=notify_warning,
            stop=stop,
        )
    except InterruptedRunError as error:
        error.message = f"stopped; {output} is done, {path.name} is not"
        error.hint = f"{shlex.join(['vdeblur', 'compare', str(source), str(output)])} makes it"
        raise
    notify("comparison", {"input": str(source), "output": str(path), "mode": settings.compare})


def without_repeated_warnings(notify: Notify) -> Notify:
    """Return a Notify that passes events on, but no warning twice: the comparison reads the input again."""
    reported: set[tuple[object, object]] = set()

    def pass_on(event: str, facts: dict[str, object]) -> None:
        if event == "warning":
            warning = (facts.get("code"), facts.get("message"))
            if warning in reported:
                return
            reported.add(warning)
        notify(event, facts)

    return pass_on
