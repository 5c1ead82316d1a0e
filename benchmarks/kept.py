"""Restore files with `identity`, and tabulate what each output keeps of its input, converts and drops, with reasons.

    python -m benchmarks.kept FILES... --suffixes same .mkv .mp4 > table.md

The table comes from the events of `vdeblur run --json`, a process per file, so that a crash is a row, too. The outputs
are read back by the ffmpeg program: a line `found` per file says which streams it sees, in case a plan is not true.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import imageio_ffmpeg

PICTURES = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".bmp", ".heic", ".jxl", ".exr", ".avif"}
NO_INPUTS = {".md", ".py", ".txt"}
SECONDS = 1  # of each video
LIMIT_SECONDS = 300  # of a run
HEADS = ["input and output", "frames, encoder", "kept", "converted", "dropped", "messages", "found in the output"]
RAW = re.compile(r"Traceback|internal error|avcodec_open2|<none>|Errno \d{3}")  # what no person should ever read


@dataclass
class Outcome:
    """What became of a file. status: of the process. streams: of the output, as the ffmpeg program sees them."""

    name: str
    suffix: str
    status: int = 0
    frames: int = 0
    plan: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    error: str = ""
    streams: list[str] = field(default_factory=list)
    raw: str = ""


def inputs_of(path: Path) -> Iterator[Path]:
    """Yield the videos in a folder and its folders, and each folder of pictures."""
    if path.is_file():
        yield path
        return
    files = sorted(path.iterdir())
    if any(file.suffix.lower() in PICTURES for file in files):
        yield path
        return
    for file in files:
        if file.is_dir():
            yield from inputs_of(file)
        elif file.suffix.lower() not in NO_INPUTS and not file.name.startswith("."):
            yield file


def restore(source: Path, suffix: str, folder: Path) -> Outcome:
    """Restore the first second of a file with `identity`; an empty suffix writes pictures."""
    output = folder / f"out{suffix}"
    command = [sys.executable, "-m", "vdeblur", "run", str(source), str(output), "-m", "identity", "--json", "-y"]
    command += ["-t", str(SECONDS), *(["--preset", "ultrafast"] if suffix else [])]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=LIMIT_SECONDS)
    outcome = Outcome(source.name, suffix or " pictures", done.returncode)
    for line in done.stdout.splitlines():
        event = json.loads(line)
        if event["event"] == "plan":
            outcome.plan = event
        elif event["event"] == "warning":
            outcome.warnings.append(f"{event['code']}: {event['message']}".replace(f"{source}", source.name))
        elif event["event"] == "error":
            outcome.error = f"{event['message']} ({event['hint']})".replace(f"{source}", source.name)
        elif event["event"] == "file_done":
            outcome.frames = event["frames"]
    outcome.raw = " ".join(RAW.findall(done.stdout + done.stderr))
    if output.is_file():
        outcome.streams = streams_of(output)
    return outcome


def streams_of(path: Path) -> list[str]:
    """Return type and codec of a file's streams, as the ffmpeg program sees them."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-i", str(path)]
    text = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False).stderr
    return [f"{kind.lower()} {codec}" for kind, codec in re.findall(r"Stream #\S+ (\w+): (\w+)", text)]


def row(outcome: Outcome) -> str:
    """Return a row of the table, in Markdown."""
    plan = outcome.plan
    converted = plan.get("convert", [])
    kept = [name for name in plan.get("keep", []) if not any(text.startswith(name) for text in converted)]
    dropped = [
        f"{name} {reason}" for name, reason in zip(plan.get("drop", []), plan.get("drop_reasons", []), strict=True)
    ]
    messages = [text for text in outcome.warnings if not text.startswith("W_STREAM")]
    if outcome.status:
        messages.append(f"exit {outcome.status}: {outcome.error or 'the process was ended'}")
    if outcome.raw:
        messages.append(f"**raw: {outcome.raw}**")
    cells = [f"{outcome.name} to {outcome.suffix}", f"{outcome.frames}, {plan.get('encoder', '')}"]
    cells += ["; ".join(words) for words in (kept, converted, dropped, messages, outcome.streams)]
    return "| " + " | ".join(cell.replace("|", "\\|") or "-" for cell in cells) + " |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("paths", nargs="+", type=Path)
    parser.add_argument("--suffixes", nargs="+", default=[".mkv", ".mp4"], help="of outputs; `same` is the input's own")
    options = parser.parse_args()
    lines = [HEADS, ["---"] * len(HEADS)]
    print("\n".join("| " + " | ".join(cells) + " |" for cells in lines))
    for source in (source for path in options.paths for source in inputs_of(path)):
        own = source.suffix.lower() if source.is_file() else ""
        for suffix in dict.fromkeys(own if suffix == "same" else suffix for suffix in options.suffixes):
            with tempfile.TemporaryDirectory() as name:
                print(row(restore(source, suffix, Path(name))), flush=True)


if __name__ == "__main__":
    main()
