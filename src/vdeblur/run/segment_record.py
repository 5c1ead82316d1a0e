"""The record of a finished segment, and reading it back without trusting it.

A record lies beside the output, where others may have put it. So every value is checked before anything uses it.
"""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vdeblur.run.segments import CHECKED, Mark

LARGEST = 1 << 62  # of any number in a record; FFmpeg's times are 64 bits wide
LARGEST_BYTES = 1 << 30  # of a record or a state; an hour of video in one segment has a record of about 4 MB
WARNING_CODE = re.compile(r"W_[A-Z0-9_]{1,40}")
JUNK = (OSError, ValueError, KeyError, TypeError, RecursionError, AttributeError)  # what reading damaged JSON raises


@dataclass
class SegmentRecord:
    """The record of a finished segment.

    before, tail: marks of the last frames before it, and of its own last frames. packets: of each encoded packet its
    size in bytes, time, duration (in units of the video's time base), and whether it is a key frame, in decoding order;
    empty for pictures. names: of pictures. bytes, crc: size and CRC-32 of the data. damaged: packets of the input that
    could not be decoded. warnings: codes and messages of the run so far. guarded: times, in units of the video's time
    base, of frames of which the guard kept parts. restored, strength: number of frames with a strength above 0, and the
    sum of all strengths; see restore/only_blurred.py.
    """

    index: int
    frames: int
    last: bool
    before: list[Mark]
    tail: list[Mark]
    packets: list[tuple[int, int, int, int]] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    bytes: int = 0
    crc: int = 0
    damaged: int = 0
    warnings: list[tuple[str, str]] = field(default_factory=list)
    guarded: list[int] = field(default_factory=list)
    restored: int = 0
    strength: float = 0.0

    def follows(self, tail: list[Mark]) -> bool:
        """Return whether this segment directly follows the frames with these marks; no marks: whether it is first."""
        shared = min(len(self.before), len(tail))
        return self.before[-shared:] == tail[-shared:] if shared else not self.before and not tail

    def is_sound(self) -> bool:
        """Return whether the values have their types and agree with each other."""
        counts = (self.index, self.frames, self.bytes, self.crc, self.damaged, self.restored)
        if not all(_is_number(value, 0) for value in counts) or not isinstance(self.last, bool):
            return False
        if not isinstance(self.strength, float) or not 0 <= self.strength <= LARGEST:
            return False
        for marks in (self.before, self.tail):
            if len(marks) > CHECKED or not all(len(mark) == 2 and all(map(_is_number, mark)) for mark in marks):
                return False
        if not all(len(packet) == 4 and all(map(_is_number, packet)) for packet in self.packets):
            return False
        if any(size <= 0 or duration < 0 for size, _, duration, _ in self.packets):
            return False
        if len({pts for _, pts, _, _ in self.packets}) != len(self.packets):
            return False
        if not all(map(_is_number, self.guarded)) or len(self.guarded) > self.frames:
            return False
        if not all(map(_is_plain_name, self.names)) or len(set(self.names)) != len(self.names):
            return False
        if not all(len(pair) == 2 and all(isinstance(text, str) for text in pair) for pair in self.warnings):
            return False
        if not all(WARNING_CODE.fullmatch(code) for code, _ in self.warnings):
            return False
        return self.frames == len(self.packets or self.names) and not (self.packets and self.names)


def read_segment_record(path: Path) -> SegmentRecord | None:
    """Read a record; None if the file is another one, damaged, or not what vdeblur writes."""
    try:
        facts = read_json(path)
        for key in ("before", "tail", "packets", "warnings"):
            facts[key] = [tuple(item) for item in facts[key]]
        record = SegmentRecord(**facts)
        is_its_own = record.is_sound() and path.name == f"{record.index:06}.json"
        return record if is_its_own else None
    except JUNK:  # state.json, or an incomplete record
        return None


def read_json(path: Path) -> Any:
    """Read a JSON file of the state.

    Raises: one of JUNK, FileNotFoundError among them, where it is missing, damaged or far too large.
    """
    if path.stat().st_size > LARGEST_BYTES:
        raise ValueError(f"{path} is too large")
    return json.loads(path.read_text("utf-8"))


def _is_number(value: object, least: int = -LARGEST) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= LARGEST


def _is_plain_name(name: object) -> bool:
    """Return whether this is a name of a picture in a folder, and no path out of it."""
    return isinstance(name, str) and name not in ("", ".", "..") and not re.search(r"[/\\\0]", name)
