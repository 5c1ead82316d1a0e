"""Files that others may have put beside an input or output: links, forged states, hostile folders."""

import ast
import json
import os
import random
import subprocess
import sys
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import filelock
import pytest

from tests import clips
from tests.conftest import ROOT
from vdeblur.run.store import folder_of
from vdeblur.source import decoders

H264 = ("-c:v", "libx264", "-preset", "ultrafast")
RUN = ("-m", "identity", "--preset", "ultrafast")


def _error(result) -> str:
    """Return the one line of an error, without a traceback."""
    lines = [line for line in result.stderr.splitlines() if line.startswith("vdeblur: ")]
    assert len(lines) == 1, result.output
    assert "Traceback" not in result.output
    assert "internal" not in result.output
    return lines[0]


def _interrupted(folder: Path, frames: int = 60, stop_at: int = 40) -> tuple[Path, Path]:
    """Return an input and an output of which only the first segment of one second is finished."""
    source = clips.make(folder / "in.mp4", frames=frames, codec=H264, audio=("-c:a", "aac"))
    output = folder / "out.mp4"
    command = [sys.executable, "-m", "tests.signalled", "2", "progress", str(stop_at), "run", source, output]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}/src"}
    done = subprocess.run(
        [*map(str, command), *RUN, "--segment", "1"], cwd=ROOT, env=environment, capture_output=True, check=False
    )
    assert done.returncode == 130, done.stderr
    assert (folder_of(output) / "000000.json").is_file()
    return source, output


# Links ---------------------------------------------------------------------------------------------------------------


def _tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("more", [(), ("--no-resume",), ("--share", "1/2"), ("--dry-run",), ("-m", "best")], ids=str)
def test_a_link_with_the_name_of_the_state_folder(vdeblur, tmp_path: Path, more: tuple[str, ...]) -> None:
    """C high 1: the link's target was emptied."""
    victim = tmp_path / "photos"
    (victim / "2024").mkdir(parents=True)
    for name in ("a.jpg", "000000.json", "000000.packets", "state.json", "2024/b.jpg"):
        (victim / name).write_bytes(name.encode())
    before = _tree(victim)
    source = clips.make(tmp_path / "in.mp4", frames=5, codec=H264)
    output = tmp_path / "out.mp4"
    folder_of(output).symlink_to(victim)
    result = vdeblur("run", source, output, *RUN, *more)
    assert result.exit_code == 4
    assert "symbolic link" in _error(result)
    assert "rm -r" in _error(result)
    assert _tree(victim) == before
    assert not output.exists()


@pytest.mark.parametrize(
    "name",
    [
        *("state.json", "lock", "others"),
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("000000.json", "000000.packets", "000001.draft", "whole.mp4", "pictures")
        ),
    ],
)
def test_links_in_the_state_folder(vdeblur, tmp_path: Path, name: str) -> None:
    """C high 1: nothing is read or written through a link inside it, either."""
    source, output = _interrupted(tmp_path)
    victim = tmp_path / "victim"
    if name == "pictures":
        victim.mkdir()
        (victim / "000001.png").write_bytes(b"precious")
    else:
        victim.write_bytes(b"precious")
    link = folder_of(output) / name
    link.unlink(missing_ok=True)
    link.symlink_to(victim)
    result = vdeblur("run", source, output, *RUN, "--segment", "1")
    assert result.exit_code == 4
    assert name in _error(result)
    assert victim.read_bytes() == b"precious" if victim.is_file() else _tree(victim) == {"000001.png": b"precious"}


def test_hard_links_in_the_state_folder(vdeblur, tmp_path: Path) -> None:
    """C high 1: a hard link to a file elsewhere is removed, not written through."""
    source, output = _interrupted(tmp_path)
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    for name in ("000001.draft", "whole.mp4"):
        (folder_of(output) / name).unlink(missing_ok=True)
        os.link(victim, folder_of(output) / name)
    assert vdeblur("run", source, output, *RUN, "--segment", "1").exit_code == 0
    assert victim.read_bytes() == b"precious"
    assert len(clips.frame_hashes(output)) == 60


def test_a_folder_of_that_name_that_vdeblur_did_not_make(vdeblur, tmp_path: Path) -> None:
    """C high 1: other files in it are never removed."""
    source = clips.make(tmp_path / "in.mp4", frames=5, codec=H264)
    output = tmp_path / "out.mp4"
    folder = folder_of(output)
    (folder / "pictures").mkdir(parents=True)
    (folder / "pictures" / "wedding.png").write_bytes(b"precious")
    result = vdeblur("run", source, output, *RUN)
    assert result.exit_code == 4
    assert "holds other files" in _error(result)
    assert _tree(folder) == {"pictures/wedding.png": b"precious"}


def test_other_files_in_the_state_folder_stay(vdeblur, tmp_path: Path) -> None:
    """C high 1: only files with our own names are removed, at the end and when a run starts over."""
    source, output = _interrupted(tmp_path)
    precious = folder_of(output) / "notes.txt"
    precious.write_text("precious")
    assert vdeblur("run", source, output, *RUN, "--segment", "1", "--no-resume").exit_code == 0
    assert _tree(folder_of(output)) == {"notes.txt": b"precious"}
    assert len(clips.frame_hashes(output)) == 60


def test_a_pipe_in_the_state_folder(vdeblur, tmp_path: Path) -> None:
    """C low: a FIFO in place of a record does not hang the run."""
    source, output = _interrupted(tmp_path)
    (folder_of(output) / "state.json").unlink()
    os.mkfifo(folder_of(output) / "state.json")
    result = vdeblur("run", source, output, *RUN, "--segment", "1")
    assert result.exit_code == 4
    assert "plain file" in _error(result)


@pytest.mark.parametrize("name", [".earlier", ".drafts", ".lock", "manifest.json"])
def test_links_in_the_folder_of_synth(vdeblur, tmp_path: Path, name: str) -> None:
    """C high 1: synth moved sequences out of the target of a link that is called .earlier."""
    source = clips.make(tmp_path / "sharp.mp4", frames=30, size="96x96", codec=H264)
    out, other = tmp_path / "out", tmp_path / "other"
    for folder in (out, other):
        assert vdeblur("synth", source, folder, "--average", "3", "--split", "train").exit_code == 0
    before = _tree(other)
    (out / name).unlink(missing_ok=True)
    (out / name).symlink_to(other / "manifest.json" if "." in name[1:] else other)
    result = vdeblur("synth", source, out, "--average", "3", "--split", "train", "-y")
    assert result.exit_code == 4
    assert "symbolic link" in _error(result)
    assert _tree(other) == before


# Forged records ------------------------------------------------------------------------------------------------------


def _change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_a_record_that_claims_to_be_the_last(vdeblur, tmp_path: Path) -> None:
    """C medium: a forged "last" gave half a film with exit 0."""
    source, output = _interrupted(tmp_path)
    _change(folder_of(output) / "000000.json", last=True)
    result = vdeblur("run", source, output, *RUN, "--segment", "1")
    assert result.exit_code == 0, result.output
    assert "the record of segment 0 does not fit the input" in result.stderr
    assert len(clips.frame_hashes(output)) == 60


def test_a_record_of_fewer_frames(vdeblur, tmp_path: Path) -> None:
    """C medium: a forged number of frames left frames out with exit 0."""
    source, output = _interrupted(tmp_path, 80, 60)
    paths = [folder_of(output) / f"{index:06}.json" for index in (0, 1)]
    first, second = (json.loads(path.read_text()) for path in paths)
    packets = first["packets"][:5]
    size = sum(packet[0] for packet in packets)
    data = (folder_of(output) / "000000.packets").read_bytes()[:size]
    (folder_of(output) / "000000.packets").write_bytes(data)
    _change(paths[0], frames=5, packets=packets, bytes=size, crc=zlib.crc32(data))
    assert second["before"] == first["tail"]
    result = vdeblur("run", source, output, *RUN, "--segment", "1")
    assert result.exit_code == 0, result.output
    assert "the record of segment 0 does not fit the input" in result.stderr
    assert len(clips.frame_hashes(output)) == 80


def test_a_record_of_one_frame_less(vdeblur, tmp_path: Path) -> None:
    """C medium: nine frames in ten were enough to be believed."""
    source, output = _interrupted(tmp_path, 80, 60)
    path = folder_of(output) / "000000.json"
    record = json.loads(path.read_text())
    data = (folder_of(output) / "000000.packets").read_bytes()
    data = data[: len(data) - record["packets"][-1][0]]
    (folder_of(output) / "000000.packets").write_bytes(data)
    packets = record["packets"][:-1]
    _change(path, frames=24, packets=packets, bytes=len(data), crc=zlib.crc32(data))
    result = vdeblur("run", source, output, *RUN, "--segment", "1")
    assert result.exit_code == 0, result.output
    assert "the record of segment 0 does not fit the input" in result.stderr
    assert len(clips.frame_hashes(output)) == 80


@pytest.mark.parametrize("kind", ["uneven", "damaged", "avi"])
def test_honest_records_are_believed(vdeblur, tmp_path: Path, kind: str) -> None:
    """C medium: packets that give no frame, and times that are uneven, make no record wrong."""
    source, output = tmp_path / ("in.avi" if kind == "avi" else "in.mkv"), tmp_path / "out.mkv"
    select = ("-vf", "select='not(eq(mod(n,7),3))'", "-fps_mode", "passthrough") if kind == "uneven" else ()
    clips.make(source, frames=90, codec=("-c:v", "mpeg4", "-bf", "2", "-q:v", "2"), extra=select)
    if kind == "damaged":
        data = bytearray(source.read_bytes())
        data[len(data) // 4 : len(data) // 4 + 9000] = bytes(9000)
        source.write_bytes(data)
    command = [sys.executable, "-m", "tests.signalled", "2", "progress", "40", "run", source, output, *RUN]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}/src"}
    words = [*map(str, command), "--segment", "0.5"]
    assert subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, check=False).returncode == 130
    finished = len(list(folder_of(output).glob("0*.json")))
    assert finished >= 2
    result = vdeblur("run", source, output, *RUN, "--segment", "0.5", "--json")
    assert result.exit_code == 0, result.output
    events = [json.loads(line) for line in result.stdout.splitlines()]
    assert "W_RESUME" not in [event.get("code") for event in events]


def test_a_record_of_frames_that_never_came_before(vdeblur, tmp_path: Path) -> None:
    """C medium: a last record with other frames before it was an error at every run; it is made once more."""
    source, output = _interrupted(tmp_path)
    _change(folder_of(output) / "000000.json", last=True, before=[[1, 2], [3, 4]])
    result = vdeblur("run", source, output, *RUN, "--segment", "1")
    assert result.exit_code == 0, result.output
    assert len(clips.frame_hashes(output)) == 60


def test_a_record_of_fewer_pictures(vdeblur, tmp_path: Path) -> None:
    """C medium: of a folder of pictures, too."""
    source = tmp_path / "in"
    source.mkdir()
    clips.make(source / "%03d.png", frames=10, codec=("-c:v", "png"), size="32x32")
    output = tmp_path / "out"
    command = [sys.executable, "-m", "tests.signalled", "2", "progress", "8", "run", source, output, *RUN[:2]]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}/src"}
    words = [*map(str, command), "--segment", "0.1"]
    assert subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, check=False).returncode == 130
    path = folder_of(output) / "000000.json"
    _change(path, frames=1, names=json.loads(path.read_text())["names"][:1])
    result = vdeblur("run", source, output, *RUN[:2], "--segment", "0.1")
    assert result.exit_code == 0, result.output
    assert "does not fit the input" in result.stderr
    assert len(list(output.iterdir())) == 10


def all_but_first_slow(values: Iterable[Any]) -> list[Any]:
    first, *others = values
    return [first, *(pytest.param(value, marks=pytest.mark.slow) for value in others)]


JUNK: dict[str, Any] = {
    "index": "../../../tmp/x", "frames": -1, "last": "yes", "before": [[1]], "tail": [[1, "x"]], "bytes": 1e400,
    "packets": [[1, 2]], "names": ["../../victim.png"], "crc": None, "damaged": [], "warnings": [["W_X"]],
}  # fmt: skip


@pytest.mark.parametrize("key", all_but_first_slow(JUNK))
def test_junk_in_a_record(vdeblur, tmp_path: Path, key: str) -> None:
    """C low: junk in the state was an internal error; the segment is made once more."""
    source, output = _interrupted(tmp_path)
    _change(folder_of(output) / "000000.json", **{key: JUNK[key]})
    result = vdeblur("run", source, output, *RUN, "--segment", "1")
    assert result.exit_code == 0, result.output
    assert len(clips.frame_hashes(output)) == 60


STATES = ["", "[]", "3", "{", "[" * 100_000, '{"format": 1, "fingerprint": [], "plan": 4}',
          '{"format": 1, "fingerprint": "x", "plan": {}}']  # fmt: skip


@pytest.mark.parametrize("state", all_but_first_slow(STATES), ids=range(7))
def test_junk_as_state(vdeblur, tmp_path: Path, state: str) -> None:
    """C low: junk in state.json was an internal error."""
    source, output = _interrupted(tmp_path)
    (folder_of(output) / "state.json").write_text(state)
    result = vdeblur("run", source, output, *RUN, "--segment", "1")
    assert result.exit_code == 0, result.output
    assert len(clips.frame_hashes(output)) == 60


@pytest.mark.parametrize(
    "plan", all_but_first_slow([{"tile": 7}, {"tile": "9x"}, {"window": "x"}, {"model": 3}, {"scenes": [7]}]), ids=str
)
def test_junk_in_the_plan(vdeblur, tmp_path: Path, plan: dict[str, Any]) -> None:
    """C low: junk in the plan of an earlier run was an internal error."""
    source, output = _interrupted(tmp_path)
    path = folder_of(output) / "state.json"
    _change(path, plan=json.loads(path.read_text())["plan"] | plan)
    assert vdeblur("run", source, output, *RUN, "--segment", "1").exit_code == 0


def test_a_state_cannot_name_code_to_run(vdeblur, tmp_path: Path) -> None:
    """C medium: with -m best, the model in a forged state was run as a Python file."""
    source, output = _interrupted(tmp_path)
    code = tmp_path / "evil.py"
    code.write_text(f"open({str(tmp_path / 'proof')!r}, 'w')")
    path = folder_of(output) / "state.json"
    _change(path, plan=json.loads(path.read_text())["plan"] | {"model": f"{code}:Net"})
    vdeblur("run", source, output, "-m", "best", "--offline", "--dry-run")
    assert not (tmp_path / "proof").exists()


# Inputs and outputs that lead to further files ------------------------------------------------------------------------


def _playlists(folder: Path) -> dict[str, str]:
    """Return inputs that lead to the video in.mp4 or elsewhere, by name."""
    dash = '<?xml version="1.0"?>\n<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"></MPD>'
    sdp = "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=x\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\nm=video 5004 RTP/AVP 96\r\n"
    playlist = "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nin.mp4\n#EXT-X-ENDLIST\n"
    return {
        "list.ffconcat": "ffconcat version 1.0\nfile in.mp4\n",
        "list.mp4": "ffconcat version 1.0\nfile in.mp4\n",
        "list.m3u8": playlist,
        "list.mkv": f"\ufeff\n{playlist}",
        "list.mpd": dash,
        "session.sdp": sdp,
        "index.idx": "# VobSub index file, v7 (do not modify this line!)\nid: en, index: 0\n",
        "page.txt": "hello\n" * 100,
        "art.ans": "\x1b[1mhello\n" * 100,
        "script.avs": 'FFVideoSource("in.mp4")\n',
        "list.qtl": '<?xml version="1.0"?><?quicktime type="application/x-quicktime-media-link"?><embed src="in.mp4"/>',
        "list.asx": '<asx version="3.0"><entry><ref href="in.mp4"/></entry></asx>',
    }


@pytest.mark.parametrize("name", _playlists(Path()))
def test_inputs_that_open_further_files(vdeblur, tmp_path: Path, name: str) -> None:
    """C medium: playlists, lists and text were opened, and led to any file or address."""
    clips.make(tmp_path / "in.mp4", frames=3, codec=H264)
    source = tmp_path / name
    source.write_text(_playlists(tmp_path)[name])
    result = vdeblur("run", source, tmp_path / "out.mkv", *RUN)
    assert result.exit_code == 3, result.output
    assert name in _error(result)
    if name.startswith("list.m"):
        assert f"ffmpeg -i {name} -c copy" in _error(result)
    assert vdeblur("probe", source).exit_code == 3
    assert vdeblur("compare", source, tmp_path / "in.mp4", "--metrics").exit_code == 3
    assert not (tmp_path / "out.mkv").exists()


@pytest.mark.parametrize("name", ["list.m3u8", "list.mkv", "list.txt"])
def test_the_ffmpeg_program_opens_no_further_files(tmp_path: Path, name: str) -> None:
    """C medium: the name of a codec without a decoder was asked of an ffmpeg that opens whatever a file names."""
    clips.make(tmp_path / "in.mp4", frames=5, codec=H264)
    playlist = "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nin.mp4\n#EXT-X-ENDLIST\n"
    (tmp_path / name).write_text("ffconcat version 1.0\nfile in.mp4\n" if name.endswith("txt") else playlist)
    assert decoders._foreign_codec(tmp_path / name) == "unknown codec"
    assert decoders._foreign_codec(tmp_path / "in.mp4") == "h264"


def test_a_picture_whose_name_is_a_pattern(vdeblur, tmp_path: Path) -> None:
    """C medium: a star in the name of a picture led to other files."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    clips.make(folder / "a.jpg", frames=1, codec=("-c:v", "mjpeg"), extra=("-update", "1"), pix_fmt="yuvj420p")
    clips.make(tmp_path / "b.jpg", frames=1, codec=("-c:v", "mjpeg"), size="32x32", pix_fmt="yuvj420p")
    (folder / "a.jpg").rename(folder / "z*.jpg")
    (tmp_path / "b.jpg").rename(folder / "z%00000.jpg")
    result = vdeblur("run", folder, tmp_path / "out", *RUN[:2])
    assert result.exit_code == 3
    assert "32x32" in _error(result), "both files are read, each as itself"


@pytest.mark.parametrize(
    ("name", "form"),
    [("out.m3u8", ()), ("out.mpd", ()), ("out.mp4", ("-f", "hds")), ("out.mkv", ("-f", "hls")),
     ("out.mkv", ("-f", "dash")), ("out.mkv", ("-f", "segment")), ("out.mkv", ("-f", "tee")),
     ("out.mkv", ("-f", "image2")), ("out.mkv", ("-f", "rtsp")), ("out.mkv", ("-f", "fifo")),
     ("out.mkv", ("-f", "webm_chunk")), ("out.mkv", ("-f", "smoothstreaming"))],
)  # fmt: skip
def test_outputs_that_open_further_files(vdeblur, tmp_path: Path, name: str, form: tuple[str, ...]) -> None:
    """C medium: muxers that open files by themselves wrote beside the output, complete or not."""
    source = clips.make(tmp_path / "in.mp4", frames=3, codec=H264)
    result = vdeblur("run", source, tmp_path / name, *RUN, *form)
    assert result.exit_code == 4, result.output
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "cache") == ["in.mp4"]


# What killed processes leave --------------------------------------------------------------------------------------


def _killed(*arguments: object) -> None:
    """Run the command line until its third progress, and kill it there."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}/src"}
    command = [sys.executable, "-m", "tests.signalled", "9", "progress", "3", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=False)
    assert done.returncode == -9, done.stderr


def test_leftovers_of_a_killed_sample_and_comparison(vdeblur, tmp_path: Path) -> None:
    """C low: their hidden drafts stayed beside the output for good."""
    source = clips.make(tmp_path / "in.mp4", frames=60, codec=H264)
    _killed("run", source, tmp_path / "sample.mp4", *RUN, "--sample")
    _killed("run", source, tmp_path / "out.mp4", *RUN, "--compare", "side")
    left = [path.name for path in tmp_path.glob(".vdeblur-*")]
    assert len(left) >= 1
    foreign = tmp_path / ".vdeblur-00000000-999999-abcdef01.draft.mp4"  # another machine may still write it
    mine = tmp_path / ".vdeblur-notes.mp4"
    segments = tmp_path / ".vdeblur-sample-20240101-123456-da1f77a4"  # of an output called sample-20240101-123456
    segments.mkdir()
    os.utime(segments, (0, 0))
    foreign.touch()
    mine.touch()
    assert vdeblur("run", source, tmp_path / "sample.mp4", *RUN, "--sample").exit_code == 0
    assert vdeblur("run", source, tmp_path / "out.mp4", *RUN, "--compare", "side", "-y").exit_code == 0
    assert sorted(path.name for path in tmp_path.glob(".vdeblur-*")) == sorted([foreign.name, mine.name, segments.name])
    os.utime(foreign, (0, 0))
    assert vdeblur("compare", source, tmp_path / "out.mp4", "-o", tmp_path / "c.mp4").exit_code == 0
    assert sorted(path.name for path in tmp_path.glob(".vdeblur-*")) == sorted([mine.name, segments.name])


def test_two_runs_on_one_output(vdeblur, tmp_path: Path) -> None:
    """C: the second of two processes that write one output is refused, and the first one finishes."""
    source, output = _interrupted(tmp_path)
    with filelock.FileLock(folder_of(output) / "lock"):
        result = vdeblur("run", source, output, *RUN, "--segment", "1")
        assert result.exit_code == 4
        assert "another run is writing" in _error(result)
    assert vdeblur("run", source, output, *RUN, "--segment", "1").exit_code == 0
    assert len(clips.frame_hashes(output)) == 60


PRIVATE_CLUSTER = """
import logging
import os
import psutil
from vdeblur.run.ray_engine import keep_cluster_private
keep_cluster_private()
import ray
ray.init(include_dashboard=False, num_cpus=1, logging_level=logging.ERROR, log_to_driver=False)
processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
places = {each.laddr.ip for process in processes for each in process.net_connections("inet") if each.status == "LISTEN"}
print(sorted(places), os.environ["RAY_AUTH_MODE"], len(os.environ["RAY_AUTH_TOKEN"]))
ray.shutdown()
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere Ray listens on this machine alone by itself")
def test_a_cluster_that_is_started_here_is_private() -> None:
    """C low: Ray listened on all networks, and ran the code of whoever connected."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'vdeblur[ray]'")
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}/src"}
    command = [sys.executable, "-c", PRIVATE_CLUSTER]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    places, mode, length = done.stdout.strip().rsplit(" ", 2)
    assert (mode, length) == ("token", "64")
    assert set(ast.literal_eval(places)) <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}


@pytest.mark.slow
def test_three_hundred_damaged_files(vdeblur, tmp_path: Path) -> None:
    """C: whatever bytes are damaged or missing, a run ends with an exit code of its own and one line."""
    random.seed(7)
    makes = {"mp4": H264, "mkv": ("-c:v", "ffv1"), "avi": ("-c:v", "mjpeg"), "ts": H264, "webm": ("-c:v", "libvpx-vp9")}
    good = {
        suffix: clips.make(tmp_path / f"good.{suffix}", frames=8, size="64x48", codec=codec).read_bytes()
        for suffix, codec in makes.items()
    }
    for number in range(300):
        suffix = list(good)[number % len(good)]
        data = bytearray(good[suffix])
        for _ in range(random.choice((1, 10, 200))):
            data[random.randrange(len(data))] = random.randrange(256)
        source = tmp_path / f"bad.{suffix}"
        source.write_bytes(data[: random.choice((len(data), random.randrange(1, len(data))))])
        result = vdeblur("run", source, tmp_path / "out.mkv", *RUN, "-y")
        assert result.exit_code in (0, 3), (number, result.output)
        assert "internal" not in result.output
        assert not list(tmp_path.glob(".vdeblur-*"))
