"""`vdeblur probe`: describe a video, and what `run` would do with it."""

from json import dumps
from pathlib import Path
from typing import Any

import click

from vdeblur.cli.lines import clock, counted
from vdeblur.cli.printable import printable
from vdeblur.cli.report import HumanReporter, reported
from vdeblur.errors import BatchError, VdeblurError, error_facts

CLOCK_SECONDS = 60  # longer videos show times as minutes and seconds
MEASURED_LINES = 540  # motion_pixels are those of a picture reduced to so many lines
VERDICTS = {
    "sharp": "sharp",
    "soft": "slightly soft",
    "motion blur": "motion blur",
    "defocus": "out of focus",
    "noise": "noise",
    "compression": "perhaps soft by compression",
    None: "nothing to see",
}


@click.command("probe", short_help="Describe a video: format, blur, and what run would keep.")
@click.argument("files", type=click.Path(path_type=Path, readable=False), nargs=-1, required=True, metavar="FILE...")
@click.option("--json", is_flag=True, help="Print one JSON object per line and FILE.")
@click.option(
    "--output-suffix",
    metavar=".SUFFIX",
    help="Suffix of the planned output, as .mkv.  [default: FILE's, or .mkv if that keeps more streams]",
)
def probe_command(files: tuple[Path, ...], json: bool, output_suffix: str | None) -> None:
    """Describe each FILE, a video or a folder of pictures: format, streams, colour, and how blurry each part looks.

    Shows what `vdeblur run` would keep, convert or drop, what it would write, and about how long it would take here.
    Writes nothing. Blur is estimated from a few frames with a no-reference metric: a rough guide.

    \b
    Examples:
      vdeblur probe shaky.mp4
      vdeblur probe --json --output-suffix .mkv *.mp4
    """
    reporter = HumanReporter()
    with reported(reporter, [str(file) for file in files]):
        from vdeblur.look import probe as probing  # torch and av take seconds; --help must not wait

        failed = 0
        suffix = output_suffix if output_suffix is None or output_suffix.startswith(".") else f".{output_suffix}"
        for index, file in enumerate(files):
            try:
                facts = probing.probe(file, suffix)
            except VdeblurError as error:
                if len(files) == 1:
                    raise
                failed += 1
                reporter.notify("error", {**error_facts(error), "input": str(file)})
                continue
            if json:
                click.echo(dumps(facts))
            else:
                click.echo("\n" * (index > 0) + "\n".join(map(printable, _lines(facts))))
        if failed:
            raise BatchError(f"{failed} of {len(files)} could not be probed")


def _lines(facts: dict[str, Any]) -> list[str]:
    aspect = facts["sample_aspect_ratio"]
    picture = [
        f"{facts['width']}x{facts['height']}", facts["codec"], facts["pixel_format"],
        f"{facts['bits']} bit", facts["chroma"],
        "" if aspect in (None, "1:1") else f"pixels {aspect}",
        f"turned by {facts['rotation']} degrees" if facts["rotation"] else "",
        "interlaced" if facts["interlaced"] else "",
    ]  # fmt: skip
    color = facts["color"]
    tags = " / ".join(color[key] or "untagged" for key in ("primaries", "transfer", "matrix"))
    lines = [
        f"{facts['input']} ({facts['container']})",
        f"  picture   {', '.join(word for word in picture if word)}",
        f"  timing    {_timing(facts)}",
        f"  colour    {tags}, {color['range'] or 'untagged'} range{', ' + color['hdr'] if color['hdr'] else ''}",
    ]
    for stream in facts["streams"]:
        language = f", {stream['language']}" if stream["language"] else ""
        reason = f": {stream['reason']}" if stream["reason"] else ""
        lines.append(
            f"  stream {stream['index']}  {stream['action']} {stream['type']}, {stream['codec']}{language}{reason}"
        )
    output = facts["output"]
    how = f"{output['encoder']}, {output['pixel_format']}" if output["encoder"] else "pictures"
    lines.append(f"  output    {output['file']} ({how})")
    lines += [f"  warning   {warning['message']}" for warning in facts["warnings"]]
    return lines + _verdicts(facts) + _suggestion(facts["suggestion"])


def _timing(facts: dict[str, Any]) -> str:
    duration = "duration unknown" if facts["duration"] is None else f"{facts['duration']:.3f} s"
    estimated = "" if facts["frames_counted"] else "about "
    frames = "frames unknown" if facts["frames"] is None else f"{estimated}{counted(facts['frames'], 'frame')}"
    rate = f"{facts['rate']:g} fps, evenly spaced"
    if facts["gaps"]:
        rate += f" but for {facts['gaps']} {'gap' if facts['gaps'] == 1 else 'gaps'}"
    if facts["variable_rate"]:
        least, _, most = facts["interval_seconds"]
        rate = f"variable rate, {1000 * least:.1f} to {1000 * most:.1f} ms between frames"
    return f"{rate}, {duration}, {frames}"


def _verdicts(facts: dict[str, Any]) -> list[str]:
    parts = facts["sharpness"]["parts"]
    lines = ["  blur      of each part, as five of its frames show it:"]
    scale = max(min(facts["width"], facts["height"]) / MEASURED_LINES, 1)
    span = clock if any(part["end"] >= CLOCK_SECONDS for part in parts) else "{:.2f} s".format
    for part in parts:
        words = [VERDICTS[part["kind"]]]
        if part["kind"] == "motion blur":
            words.append(f"moves by {counted(round(scale * part['motion_pixels']), 'pixel')} a frame")
        if "shutter" in part:
            words.append(_shutter(part["shutter"], facts))
        lines.append(f"    {span(part['begin']):>7} - {span(part['end']):>7}  {', '.join(words)}")
    return lines


def _shutter(share: float, facts: dict[str, Any]) -> str:
    """Return the exposure in words: pictures have no rate of their own."""
    if facts["container"] == "pictures":
        return f"shutter open for {share:.0%} of the time"
    return f"shutter about 1/{facts['rate'] / share:.0f} s"


def _suggestion(facts: dict[str, Any]) -> list[str]:
    lines = [f"  try       {facts['command']}"]
    if facts["network_seconds"] is not None:
        spent = clock(facts["network_seconds"])
        lines.append(f"            about {spent} for {facts['model']} on {facts['device']} in {facts['precision']}, "
                     "and more for decoding and encoding where they share its cores")  # fmt: skip
    return lines + [f"            {note}" for note in facts["notes"]]
