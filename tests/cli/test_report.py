"""Events in words, and reporters without a terminal."""

import json
import time

import pytest

from vdeblur.cli import report
from vdeblur.cli.lines import clock, counted, lines_of
from vdeblur.events import ErrorEvent, PlanEvent, ProgressEvent, ValidationEvent

PLAN: PlanEvent = {
    "input": "in.mp4",
    "model": "lite",
    "device": "cpu",
    "precision": "fp32",
    "tile": "none",
    "only_blurred": False,
    "guard": True,
    "segments": 3,
    "frames_done": 0,
    "keep": ["audio:aac"],
    "convert": ["subtitle:srt becomes mov_text"],
    "drop": ["data"],
    "drop_reasons": ["cannot be held by .mp4"],
    "frames_estimate": 75,
    "frames_counted": True,
    "dry_run": False,
    "output": "out.mp4",
    "container": "mp4",
    "encoder": "libx264",
    "pixel_format": "yuv420p",
    "quality": "crf 16, preset medium",
    "seconds_estimate": None,
    "bytes_estimate": 2_500_000,
    "input_bytes": 1_000_000_000,
    "download_megabytes": 0,
    "reasons": {"device": "no GPU works here"},
}
PROGRESS: ProgressEvent = {"input": "in.mp4", "frame": 5, "frames_estimate": None, "fps": 2.0, "eta_seconds": None}
ERROR: ErrorEvent = {"code": "E_INPUT", "exit": 3, "message": "in.mp4 is empty", "hint": "", "input": "in.mp4"}


def test_a_plan_lists_streams_only_in_a_dry_run() -> None:
    assert lines_of("plan", {**PLAN}) == ["in.mp4: lite on cpu in fp32"]
    assert lines_of("plan", {**PLAN, "dry_run": True, "tile": "256x256", "frames_done": 1}) == [
        "in.mp4: lite on cpu in fp32, tiles of 256x256; 1 frame done already",
        "  output: out.mp4 (mp4)",
        "  encoder: libx264, yuv420p, crf 16, preset medium",
        "  frames: 75",
        "  time: unknown",
        "  size: about 2.5 MB; the input has 1 GB",
        "  keep: audio:aac",
        "  convert: subtitle:srt becomes mov_text",
        "  drop: data, cannot be held by .mp4",
    ]


def test_what_is_not_known_is_left_out() -> None:
    assert lines_of("progress", {**PROGRESS}) == ["  in.mp4: frame 5, 2.00 fps"]
    known = {**PROGRESS, "frames_estimate": 75, "eta_seconds": 35.0}
    assert lines_of("progress", known) == ["  in.mp4: frame 5 of 75, 2.00 fps, 0:35 left"]
    assert lines_of("error", {**ERROR}) == ["vdeblur: in.mp4 is empty"]
    assert lines_of("error", {**ERROR, "hint": "copy it again"}) == ["vdeblur: in.mp4 is empty (copy it again)"]


def test_a_validation_shows_a_score_or_a_loss() -> None:
    score: ValidationEvent = {"blurry": 25.0, "psnr": 26.5, "ssim": 0.9, "untouched": None, "mild_gain": None}  # type: ignore[typeddict-item]
    assert lines_of("validation", {**score}) == [
        "    validation: blurry 25.00 dB, restored 26.50 dB (+1.50), SSIM 0.9000"
    ]
    assert lines_of("validation", {"validation_loss": 0.25}) == ["    validation loss 0.25"]


def test_events_for_programs_have_no_line() -> None:
    assert lines_of("segment", {"input": "in.mp4", "index": 0, "first": 0, "last": 9}) == []
    assert lines_of("an event of tomorrow", {}) == []


def test_numbers_and_times_in_words() -> None:
    assert [counted(number, "frame") for number in (0, 1, 2)] == ["0 frames", "1 frame", "2 frames"]
    assert [clock(seconds) for seconds in (0, 59.6, 3599, 3600.4)] == ["0:00", "1:00", "59:59", "1:00:00"]


def test_progress_is_a_line_now_and_then(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    reporter = report.HumanReporter()
    for seconds in (1.0, report.LINE_SECONDS, 1.0):
        now += seconds
        reporter.notify("progress", PROGRESS)
    reporter.notify("warning", {"code": "W_TIMING", "message": "uneven"})
    assert capsys.readouterr().err.splitlines() == ["  in.mp4: frame 5, 2.00 fps", "warning: uneven"]


def test_sequences_are_counted(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    reporter = report.HumanReporter()
    reporter.notify("sequence_made", {"sequence": "a_000", "split": "train", "frames": 7})
    now += report.LINE_SECONDS
    reporter.notify("sequence_made", {"sequence": "a_001", "split": "train", "frames": 7})
    assert capsys.readouterr().err.splitlines() == ["  train/a_001: 7 frames; 2 sequences so far"]
    reporter.notify("warning", {"code": "W_VFR", "message": "uneven"})
    assert capsys.readouterr().err.splitlines() == ["warning: uneven"]


def test_json_has_progress_at_most_twice_a_second_and_file(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    reporter = report.JsonReporter()
    for seconds in (0.0, 0.1, report.PROGRESS_SECONDS):
        now += seconds
        reporter.notify("progress", {**PROGRESS})
        reporter.notify("progress", {**PROGRESS, "input": "other.mp4"})
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["input"] for line in lines] == ["in.mp4", "other.mp4"] * 2
    assert {line["v"] for line in lines} == {1}


def test_an_error_reporter_shows_errors_alone(capsys: pytest.CaptureFixture[str]) -> None:
    reporter = report.ErrorReporter()
    reporter.notify("plan", PLAN)
    reporter.notify("error", ERROR)
    assert capsys.readouterr().err.splitlines() == ["vdeblur: in.mp4 is empty"]
