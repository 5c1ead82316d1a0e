"""A run that is stopped, at any moment and in any way, goes on with the same command and comes to the same result."""

import dataclasses
import json
import multiprocessing
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy
import pytest

from tests import clips, signalled
from vdeblur.errors import ExitStatus, InputError, InterruptedRunError, OutputError
from vdeblur.frame import Frame
from vdeblur.run import assemble, pipeline, segments
from vdeblur.run import context as run_context
from vdeblur.run.segment_record import SegmentRecord
from vdeblur.run.store import Store, folder_of
from vdeblur.settings import Cut, EncodeOptions, Settings

H264 = ("-c:v", "libx264", "-preset", "ultrafast", "-bf", "2", "-g", "20")
ONE = Settings(model="identity", segment=Fraction(1), deterministic=True)


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch):
    """Let signals stop at once, so that it is known where; and keep what --deterministic switches on in its test."""
    import torch

    monkeypatch.setattr(run_context, "GRACE_SECONDS", 0)
    yield
    torch.use_deterministic_algorithms(False)


def frames_at(*times: int) -> list[Frame]:
    pictures = [av.VideoFrame.from_ndarray(numpy.full((8, 8), time % 256, numpy.uint8), "gray") for time in times]
    return [Frame(picture, time, Fraction(1, 10)) for picture, time in zip(pictures, times, strict=True)]


def stop_after(frames: int) -> Callable[[], ExitStatus | None]:
    """Give a signal after so many frames were read."""
    asked = iter(range(10**9))
    return lambda: ExitStatus.INTERRUPTED if next(asked) >= frames else None


# Dividing ----------------------------------------------------------------------------------------------------------


def test_segments_have_frames_around_them() -> None:
    division = segments.Division(Fraction(0), Fraction(1))
    divider = segments.Divider(iter(frames_at(*range(40))), division, before=2, after=3)
    seen = []
    while divider.skip_to(0):
        segment = divider.segment()
        seen.append(([frame.pts for frame in segment.frames], segment))
    assert [times for times, _ in seen] == [
        list(range(max(first - 2, 0), min(first + 13, 40))) for first in (0, 10, 20, 30)
    ]
    assert [segment.lead for _, segment in seen] == [0, 2, 2, 2]
    assert [segment.own_frames for _, segment in seen] == [10] * 4
    assert [segment.last for _, segment in seen] == [False, False, False, True]
    assert all(after.before == before.tail for (_, before), (_, after) in pairwise(seen))


def test_segments_without_frames_are_passed_over() -> None:
    divider = segments.Divider(iter(frames_at(0, 1, 57, 58)), segments.Division(Fraction(0), Fraction(1)), 0, 0)
    first = divider.segment()
    assert len(list(first.frames)) == 2
    second = divider.segment()
    assert (second.index, len(list(second.frames)), second.last) == (5, 2, True)


def test_decoding_times_advance_and_never_come_after_their_frame() -> None:
    """Of two parts with B-frames and uneven times: each packet's decoding time is some frame's time, shifted."""
    packets = [[(1, pts, 0, 0) for pts in times] for times in ([0, 90, 30, 60, 95], [100, 400, 200, 300, 401])]
    records = [SegmentRecord(index, 5, False, [], [], part) for index, part in enumerate(packets)]
    times, step = assemble.decoding_times(records)
    shown = [pts for part in packets for _, pts, _, _ in part]
    assert all(a < b for a, b in pairwise(times))
    assert all(decoded <= pts for decoded, pts in zip(times, shown, strict=True))
    assert times == [-30, 0, 30, 60, 90, 95, 100, 200, 300, 400]
    assert step == 30


# Going on ----------------------------------------------------------------------------------------------------------

SOURCES: dict[str, dict[str, Any]] = {
    "b-frames.mp4": {"codec": H264, "audio": ("-c:a", "aac")},
    "uneven.mkv": {
        "codec": H264,
        "extra": ("-vf", "settb=1/25000,setpts=N*1000+mod(N*N\\,7)*90", "-fps_mode", "vfr"),
    },
    "unseekable.ts": {"codec": H264, "audio": ("-c:a", "mp2")},
    "hevc.mp4": {"codec": ("-c:v", "libx265", "-preset", "ultrafast", "-x265-params", "log-level=none:keyint=20")},
    "deep.mkv": {"codec": ("-c:v", "ffv1"), "pix_fmt": "yuv422p10le"},
}


@pytest.mark.parametrize("name", SOURCES)
def test_stopped_and_gone_on_with_is_the_same(tmp_path: Path, name: str) -> None:
    source = clips.make(tmp_path / name, frames=80, **SOURCES[name])
    whole, stopped = tmp_path / f"whole{source.suffix}", tmp_path / f"stopped{source.suffix}"
    assert pipeline.restore_file(source, whole, ONE).frames == 80
    done = []
    for frames in (37, 62):  # those that are passed over are counted again
        with pytest.raises(InterruptedRunError) as stop:
            pipeline.restore_file(source, stopped, ONE, stop=stop_after(frames))
        assert "finished and kept" in stop.value.message
        assert not stopped.exists()
        done.append(len(list(folder_of(stopped).glob("*.packets"))))
    assert 1 <= done[0] < done[1]
    made: list[object] = []
    pipeline.restore_file(
        source, stopped, ONE, notify=lambda event, facts: made.append(facts) if event == "progress" else None
    )
    assert len(made) == 80 - 25 * done[1], "only what was missing is made"
    assert stopped.read_bytes() == whole.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == sorted(
        [source.name, whole.name, stopped.name]
    )
    assert not folder_of(stopped).exists()


def test_a_signal_waits_for_a_segment_that_is_soon_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_context, "GRACE_SECONDS", 60)
    source = clips.make(tmp_path / "in.mp4", frames=80, codec=H264)
    with pytest.raises(InterruptedRunError, match=r"50 frames of out.mp4 are finished and kept"):
        pipeline.restore_file(source, tmp_path / "out.mp4", ONE, stop=stop_after(30))
    monkeypatch.setattr(run_context, "GRACE_SECONDS", 1e-9)  # which is too long to wait for
    with pytest.raises(InterruptedRunError, match=r"50 frames of out.mp4 are finished and kept"):
        pipeline.restore_file(source, tmp_path / "out.mp4", ONE, stop=stop_after(20))


def test_a_network_with_context_gives_the_same(tmp_path: Path) -> None:
    """Of lite, whose look is one frame to each side: segments are not seen in the picture, stopped or not."""
    source = clips.make(tmp_path / "in.mkv", frames=30)
    lossless = EncodeOptions(lossless=True)
    settings = Settings(segment=None, precision="fp32", encoding=lossless)
    pipeline.restore_file(source, tmp_path / "whole.mkv", settings)
    divided = Settings(segment=Fraction(1, 3), precision="fp32", encoding=lossless)
    with pytest.raises(InterruptedRunError):
        pipeline.restore_file(source, tmp_path / "parts.mkv", divided, stop=stop_after(20))
    pipeline.restore_file(source, tmp_path / "parts.mkv", divided)
    assert clips.frame_hashes(tmp_path / "parts.mkv") == clips.frame_hashes(tmp_path / "whole.mkv")
    assert clips.frame_hashes(tmp_path / "parts.mkv") != clips.frame_hashes(source)


@pytest.mark.parametrize("cut", [Cut(Fraction(1, 2), Fraction(5, 2)), Cut(frames=61), Cut(Fraction(1, 2), None, 60)])
def test_a_part_is_gone_on_with(tmp_path: Path, cut: Cut) -> None:
    source = clips.make(tmp_path / "in.mp4", frames=100, codec=H264, audio=("-c:a", "aac"))
    settings = Settings(model="identity", segment=Fraction(1), deterministic=True, cut=cut)
    result = pipeline.restore_file(source, tmp_path / "whole.mp4", settings)
    assert result.frames == (50 if cut.frames is None else cut.frames)
    with pytest.raises(InterruptedRunError):
        pipeline.restore_file(source, tmp_path / "stopped.mp4", settings, stop=stop_after(40))
    pipeline.restore_file(source, tmp_path / "stopped.mp4", settings)
    assert (tmp_path / "stopped.mp4").read_bytes() == (tmp_path / "whole.mp4").read_bytes()


def test_pictures_are_gone_on_with(tmp_path: Path) -> None:
    source = clips.make(tmp_path / "in.mkv", frames=60)
    pipeline.restore_file(source, tmp_path / "whole", ONE)
    with pytest.raises(InterruptedRunError):
        pipeline.restore_file(source, tmp_path / "stopped", ONE, stop=stop_after(40))
    assert not (tmp_path / "stopped").exists()
    pipeline.restore_file(source, tmp_path / "stopped", ONE)
    names = sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert len(names) == 60
    assert sorted(path.name for path in (tmp_path / "stopped").iterdir()) == names
    assert all((tmp_path / "stopped" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes() for name in names)
    with pytest.raises(InterruptedRunError):
        pipeline.restore_file(tmp_path / "whole", tmp_path / "again", ONE, stop=stop_after(40))
    pipeline.restore_file(tmp_path / "whole", tmp_path / "again", ONE)
    assert clips.frame_hashes(tmp_path / "again" / names[45]) == clips.frame_hashes(tmp_path / "whole" / names[45])


def events_of(source: Path, output: Path, settings: Settings) -> list[tuple[str, dict[str, object]]]:
    events: list[tuple[str, dict[str, object]]] = []
    pipeline.restore_file(source, output, settings, notify=lambda event, facts: events.append((event, facts)))
    return events


def test_what_has_changed_is_noticed_and_said(tmp_path: Path) -> None:
    source = clips.make(tmp_path / "in.mp4", frames=60, codec=H264)
    output = tmp_path / "out.mp4"
    with pytest.raises(InterruptedRunError):
        pipeline.restore_file(source, output, ONE, stop=stop_after(55))
    other = Settings(model="identity", segment=Fraction(1), deterministic=True, strength=0.5)
    strict = Settings(model="identity", segment=Fraction(1), deterministic=True, strength=0.5, strict=True)
    with pytest.raises(OutputError, match="--strength changed since"):
        pipeline.restore_file(source, output, strict)
    assert list(folder_of(output).glob("*.packets")), "a refusal removes nothing"
    warnings = [facts for event, facts in events_of(source, output, other) if event == "warning"]
    assert [warning["code"] for warning in warnings] == ["W_RESUME"]
    assert "--strength changed since; starting over" in str(warnings[0]["message"])
    output.unlink()
    with pytest.raises(InterruptedRunError):
        pipeline.restore_file(source, output, ONE, stop=stop_after(55))
    os.utime(source)  # touched: it may be another
    assert any("the input changed since" in str(facts.get("message")) for _, facts in events_of(source, output, ONE))
    output.unlink()
    with pytest.raises(InterruptedRunError):
        pipeline.restore_file(source, output, ONE, stop=stop_after(55))
    anew = Settings(model="identity", segment=Fraction(1), deterministic=True, resume=False)
    events = events_of(source, output, anew)
    assert sum(event == "progress" for event, _ in events) == 60
    assert not [facts for event, facts in events if event == "warning"]


def test_a_segment_that_was_damaged_on_the_disk_is_made_again(tmp_path: Path) -> None:
    source = clips.make(tmp_path / "in.mp4", frames=60, codec=H264)
    whole, output = tmp_path / "whole.mp4", tmp_path / "out.mp4"
    pipeline.restore_file(source, whole, ONE)
    with pytest.raises(InterruptedRunError):
        pipeline.restore_file(source, output, ONE, stop=stop_after(55))
    part = next(folder_of(output).glob("000000.packets"))
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 1
    part.write_bytes(data)
    with pytest.raises(OutputError, match=r"segment 0 of .* was damaged on the disk"):
        pipeline.restore_file(source, output, ONE)
    assert not output.exists()
    pipeline.restore_file(source, output, ONE)
    assert output.read_bytes() == whole.read_bytes()
    assert not folder_of(output).exists()


def test_work_is_gone_on_with_on_another_device(tmp_path: Path) -> None:
    """As errors of a GPU advise: --device cpu throws away nothing that is finished."""
    source = clips.make(tmp_path / "in.mp4", frames=60, codec=H264)
    with pytest.raises(InterruptedRunError):
        pipeline.restore_file(source, tmp_path / "out.mp4", ONE, stop=stop_after(55))
    events = events_of(source, tmp_path / "out.mp4", dataclasses.replace(ONE, device="cpu"))
    assert sum(event == "progress" for event, _ in events) == 10
    assert not [facts for event, facts in events if event == "warning"]


def test_an_input_that_cannot_be_reached_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a network drive is gone: what is finished stays for the next run."""
    source = clips.make(tmp_path / "in.mp4", frames=60, codec=H264)
    output = tmp_path / "out.mp4"
    with pytest.raises(InterruptedRunError):
        pipeline.restore_file(source, output, ONE, stop=stop_after(55))

    def gone(self: object, *arguments: object) -> None:
        raise InputError("in.mp4 cannot be read as video: Host is down") from OSError(112, "Host is down")

    with monkeypatch.context() as patch:
        patch.setattr("vdeblur.source.video.VideoSource.frames", gone)
        with pytest.raises(InputError):
            pipeline.restore_file(source, output, ONE)
    assert len(list(folder_of(output).glob("*.packets"))) == 2
    made = [event for event, _ in events_of(source, output, ONE) if event == "progress"]
    assert len(made) == 10


def test_what_another_run_did_after_this_one_looked_counts(tmp_path: Path) -> None:
    output = tmp_path / "out.mp4"
    first = Store(output, {"a": 1})
    first.open({"tile": "none"})
    first.save(SegmentRecord(0, 0, False, [], []))
    late = Store(output, {"a": 1})
    assert late.records
    first.close(keep=False)  # its output is done
    late.open({"tile": "64x64"})
    assert not late.records
    assert late.plan == {"tile": "64x64"}
    assert (late.folder / "state.json").exists()
    late.close(keep=True)
    assert not late.folder.exists(), "nothing in it was worth keeping"


def test_shares_that_begin_together_plan_alike(tmp_path: Path) -> None:
    """Each looks before any has begun; the first to begin decides for all, whatever memory the others have."""
    stores = [Store(tmp_path / "out.mp4", {"a": 1}) for _ in range(2)]
    for store, tile in zip(stores, ("512x512", "256x256"), strict=True):
        store.open({"tile": tile}, shared=True)
    assert [store.plan for store in stores] == [{"tile": "512x512"}] * 2


def test_two_runs_do_not_write_one_output(tmp_path: Path) -> None:
    source = clips.make(tmp_path / "in.mp4", frames=60, codec=H264)
    output = tmp_path / "out.mp4"
    refused: list[bool] = []

    def meddle() -> None:
        if folder_of(output).exists() and not refused:
            refused.append(True)
            with pytest.raises(OutputError, match="another run is writing"):
                pipeline.restore_file(source, output, ONE)

    pipeline.restore_file(source, output, ONE, stop=meddle)
    assert refused
    assert len(clips.facts(output).seconds) == 60


# Sharing out -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["b-frames.mp4", "unseekable.ts"])
def test_shares_make_the_same(vdeblur, tmp_path: Path, name: str) -> None:
    source = clips.make(tmp_path / name, frames=130, **SOURCES[name])
    whole, shared = tmp_path / f"whole{source.suffix}", tmp_path / f"shared{source.suffix}"
    options = ("-m", "identity", "--segment", "1", "--deterministic")
    assert vdeblur("run", source, whole, *options).exit_code == 0
    for share in ("3/3", "1/3", "2/3"):
        result = vdeblur("run", source, shared, *options, "--share", share)
        assert result.exit_code == 0, result.output
        assert not shared.exists()
    result = vdeblur("run", source, shared, *options, "--json")
    assert result.exit_code == 0, result.output
    assert '"event": "progress"' not in result.stdout, "nothing was left to make"
    assert shared.read_bytes() == whole.read_bytes()


def test_what_a_share_left_undone_is_made_by_the_last(vdeblur, tmp_path: Path) -> None:
    source = clips.make(tmp_path / "in.mp4", frames=130, codec=H264)
    options = ("-m", "identity", "--segment", "1", "--deterministic")
    assert vdeblur("run", source, tmp_path / "whole.mp4", *options).exit_code == 0
    assert vdeblur("run", source, tmp_path / "out.mp4", *options, "--share", "2/3").exit_code == 0
    result = vdeblur("run", source, tmp_path / "out.mp4", *options, "--json")
    made = [json.loads(line) for line in result.stdout.splitlines() if '"event": "segment"' in line]
    assert [event["index"] for event in made] == [0, 1, 4, 5]
    assert (tmp_path / "out.mp4").read_bytes() == (tmp_path / "whole.mp4").read_bytes()


def test_no_share_makes_what_is_another_ones(vdeblur, tmp_path: Path) -> None:
    """Where a gap in the video leaves segments empty, a share does not go on with the next that is not."""
    gap = ("-vf", "select=lt(t\\,1.5)+gt(t\\,5.2)", "-fps_mode", "vfr")
    source = clips.make(tmp_path / "in.mkv", frames=107, codec=H264, extra=gap)
    options = ("-m", "identity", "--segment", "1", "--deterministic")
    made: list[int] = []
    for share in ("2/4", "1/4", "3/4", "4/4"):
        result = vdeblur("run", source, tmp_path / "out.mkv", *options, "--share", share, "--json")
        assert result.exit_code == 0, result.output
        events = [json.loads(line) for line in result.stdout.splitlines()]
        made += [event["index"] for event in events if event["event"] == "segment"]
    assert sorted(made) == [0, 1, 5, 6, 7]
    assert vdeblur("run", source, tmp_path / "out.mkv", *options).exit_code == 0
    assert vdeblur("run", source, tmp_path / "whole.mkv", *options).exit_code == 0
    assert (tmp_path / "out.mkv").read_bytes() == (tmp_path / "whole.mkv").read_bytes()


def test_shares_are_of_the_part_asked_for(vdeblur, tmp_path: Path) -> None:
    source = clips.make(tmp_path / "in.mp4", frames=150, codec=H264)
    options = ("-m", "identity", "--segment", "0.5", "-ss", "2", "-t", "2", "--json")
    counts = []
    for share in ("1/2", "2/2"):
        result = vdeblur("run", source, tmp_path / "out.mp4", *options, "--share", share)
        assert result.exit_code == 0, result.output
        counts.append(result.stdout.count('"event": "segment"'))
    assert counts == [2, 2]


# Signals, kills and full disks -------------------------------------------------------------------------------------


def start(context, source: Path, output: Path, signals: Sequence[int] = ()):
    """Start a run; gives the process, and a stream of its events. signals: to itself, after its first segment."""
    read, write = os.pipe()
    arguments = ["run", str(source), str(output), "--segment", "0.5", "--deterministic", "--json"]
    process = context.Process(target=_forked, args=(signals, arguments, multiprocessing.reduction.DupFd(write)))
    process.start()
    os.close(write)
    return process, os.fdopen(read)


def _forked(signals: Sequence[int], arguments: list[str], handle) -> None:
    os.dup2(handle.detach(), 1)
    signalled.run(signals, "segment", 1, arguments)


@pytest.fixture
def context():
    """Give a way to start processes that have everything imported, so that starting one takes no seconds."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["vdeblur.run.batch", "vdeblur.networks.lite", "tests.run.test_segments"])
    return context


@pytest.mark.slow
def test_killed_at_ten_random_moments(context, tmp_path: Path) -> None:
    """SIGKILL, ten times, then once more without: the result is that of a run that nobody disturbed, bit for bit."""
    source = clips.make(tmp_path / "in.mp4", frames=300, codec=H264, audio=("-c:a", "aac"))
    whole, killed = tmp_path / "whole.mp4", tmp_path / "killed.mp4"
    process, events = start(context, source, whole)
    events.read()
    process.join()
    assert process.exitcode == 0
    seed = random.randrange(10**6)
    dice = random.Random(seed)
    kept = 0
    for _ in range(10):
        process, events = start(context, source, killed)
        wanted, line = dice.randint(1, 3), ""
        while wanted and (line := events.readline()):
            wanted -= json.loads(line)["event"] in ("plan", "segment")
        time.sleep(dice.random() * 0.1)
        process.kill()
        process.join()
        if killed.exists():
            break  # it was quicker than the dice
        kept = max(kept, len(list(folder_of(killed).glob("*.packets"))))
    process, events = start(context, source, killed)
    events.read()
    process.join()
    assert process.exitcode in (0, ExitStatus.OUTPUT)  # 4: done before, it is there already
    assert kept > 1
    assert killed.read_bytes() == whole.read_bytes(), f"with random seed {seed}"
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["in.mp4", "killed.mp4", "whole.mp4"]


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)]
)
def test_a_signal_keeps_what_is_finished(context, tmp_path: Path, number: int, status: int) -> None:
    source = clips.make(tmp_path / "in.mp4", frames=300, codec=H264)
    output = tmp_path / "out.mp4"
    process, events = start(context, source, output, [number])
    rest = [json.loads(line) for line in events]
    process.join()
    assert process.exitcode == status
    assert rest[-1]["event"] == "done"
    assert rest[-2]["event"] == "error"
    assert "finished and kept" in rest[-2]["message"]
    assert "same command again" in rest[-2]["hint"]
    kept = list(folder_of(output).glob("*.packets"))
    assert kept
    assert not list(folder_of(output).glob("*.draft"))
    process, events = start(context, source, output)
    made = sum(json.loads(line)["event"] == "segment" for line in events)
    process.join()
    assert process.exitcode == 0
    assert made == 24 - len(kept)
    assert len(clips.facts(output).seconds) == 300


def test_a_second_signal_stops_at_once_and_keeps_a_valid_state(context, tmp_path: Path) -> None:
    source = clips.make(tmp_path / "in.mp4", frames=300, codec=H264)
    output = tmp_path / "out.mp4"
    process, events = start(context, source, output, [signal.SIGINT] * 2)
    events.read()
    process.join()
    assert process.exitcode == 130
    process, events = start(context, source, output)
    events.read()
    process.join()
    assert process.exitcode == 0
    assert len(clips.facts(output).seconds) == 300


def test_a_full_disk_keeps_what_is_finished(tmp_path: Path) -> None:
    """With a limit on the size of files in place of a full disk: it takes no rights, and writing fails likewise."""
    source = clips.make(tmp_path / "in.mkv", frames=60, size="128x96")
    output = tmp_path / "out.mkv"
    settings = Settings(
        model="identity", segment=Fraction(1), deterministic=True, encoding=EncodeOptions(lossless=True)
    )
    pipeline.restore_file(source, tmp_path / "whole.mkv", settings)
    largest = (tmp_path / "whole.mkv").stat().st_size * 3 // 4  # each part fits, all together do not
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest, before[1]))
    try:
        with pytest.raises(OutputError, match="cannot be written"):
            pipeline.restore_file(source, output, settings)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not output.exists()
    assert len(list(folder_of(output).glob("*.packets"))) == 3
    assert not list(folder_of(output).glob("whole*")), "no half of it takes room"
    made = [event for event, _ in events_of(source, output, settings) if event == "progress"]
    assert not made, "all segments were there"
    assert output.read_bytes() == (tmp_path / "whole.mkv").read_bytes()


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="a disk to fill is mounted by root only")
def test_a_really_full_disk(tmp_path: Path) -> None:
    place = tmp_path / "small"
    place.mkdir()
    source = clips.make(tmp_path / "in.mkv", frames=60, size="128x96")
    pipeline.restore_file(
        source, tmp_path / "whole.mkv", Settings(model="identity", encoding=EncodeOptions(lossless=True))
    )
    limit = (tmp_path / "whole.mkv").stat().st_size * 3 // 2  # the parts fit, the output beside them does not
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={limit}", "tmpfs", place], check=False).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        command: list[Any] = [
            sys.executable,
            "-m",
            "vdeblur",
            "run",
            source,
            place / "out.mkv",
            "-m",
            "identity",
            "--lossless",
        ]
        done = subprocess.run([*command, "--segment", "1"], capture_output=True, text=True, check=False)
        assert done.returncode == ExitStatus.OUTPUT
        assert "the disk is full" in done.stderr
        assert not (place / "out.mkv").exists()
        subprocess.run(["mount", "-o", "remount,size=8m", place], check=True)
        done = subprocess.run([*command, "--segment", "1"], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "done already" in done.stderr
    finally:
        subprocess.run(["umount", place], check=True)
