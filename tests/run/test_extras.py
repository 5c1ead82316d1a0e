"""`vdeblur run --compare`, `--sample` and `--profile`: what is written beside a restored file, or told of a run."""

import json
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import pytest
import torch
from click.testing import Result

from tests import clips
from tests.clocks import Clock
from vdeblur import threads
from vdeblur.errors import ExitStatus, InterruptedRunError
from vdeblur.look import compose
from vdeblur.restore import color, memory, scenes, streams, watch
from vdeblur.run import assemble, batch, compare_input, context, file_run, jobs, loading, parts, pipeline, sample, store
from vdeblur.run.context import Context
from vdeblur.settings import Cut, EncodeOptions, Settings
from vdeblur.source import deinterlace, demux, video

H264 = ("-c:v", "libx264", "-preset", "ultrafast")


def events(result: Result, kind: str) -> list[dict]:
    told = [json.loads(line) for line in result.output.splitlines() if line.startswith("{")]
    return [event for event in told if event["event"] == kind]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name not in ("cache", "no-config"))


# --compare ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["side", "split", "wipe", "diff", "html"])
def test_every_mode_of_compare_shows_the_part_that_was_restored(vdeblur, tmp_path: Path, mode: str) -> None:
    source = clips.make(tmp_path / "in.mkv", frames=20)
    output, told = tmp_path / "out.mkv", ("-m", "identity", "--lossless", "-ss", "0.2", "-t", "0.4")
    result = vdeblur("run", source, output, *told, "--compare", mode, "--json")
    assert result.exit_code == 0, result.output
    shown = tmp_path / ("out_html.html" if mode == "html" else f"out_{mode}.mkv")
    assert names(tmp_path) == sorted(["in.mkv", "out.mkv", shown.name])
    [event] = events(result, "comparison")
    assert (event["input"], event["output"], event["mode"]) == (str(source), str(shown), mode)
    assert not events(result, "warning"), "each frame has its counterpart"
    if mode == "html":
        assert shown.read_text().count("data:image/png") == 2 * 10, "10 frames before and after"
        return
    before, following = (clips.rgb(source)[begin : begin + 10].astype(int) for begin in (5, 6))
    after = clips.rgb(shown).astype(int)
    assert clips.facts(output).seconds == pytest.approx(clips.facts(shown).seconds, abs=1e-3)
    if mode == "diff":  # identity changes nothing, so frames of one moment cancel out
        assert abs(after - 126).max() <= 2
    elif mode == "side":
        for half in (after[:, :, :64], after[:, :, 64:]):
            assert abs(half - before).mean() < 1
    else:
        other = (abs(after - before).max(-1) > 20).mean()
        assert other <= 2 / 64, "all but the white line, which is 2 of 64 columns"
        assert other < (abs(after - following).max(-1) > 20).mean()


def test_compare_of_so_many_frames_of_a_video_as_pictures(vdeblur, tmp_path: Path) -> None:
    source = clips.make(tmp_path / "in.mkv", frames=20)
    told = ("-m", "identity", "-ss", "0.2", "--frames", "4", "--compare", "side")
    result = vdeblur("run", source, f"{tmp_path}/out/", "--pictures", *told)
    assert result.exit_code == 0, result.output
    assert "out_side.mp4: comparison of input and output (side)" in result.output
    shown, whole = clips.rgb(tmp_path / "out_side.mp4"), clips.rgb(source)
    assert len(shown) == len(names(tmp_path / "out")) == 4
    for half in (shown[:, :, :64], shown[:, :, 64:]):
        assert clips.psnr(half, whole[5:9]) > max(clips.psnr(half, whole[first : first + 4]) for first in (0, 4, 6))
    assert names(tmp_path) == ["in.mkv", "out", "out_side.mp4"]


def test_compare_in_a_batch(vdeblur, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in ("a", "b"):
        clips.make(tmp_path / "in" / f"{name}.mkv", frames=3)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "b_side.mkv").write_text("mine")
    result = vdeblur("run", tmp_path / "in", tmp_path / "out", "-m", "identity", "--compare", "side")
    assert result.exit_code == ExitStatus.BATCH
    assert "b_side.mkv exists already" in result.output
    assert names(tmp_path / "out") == ["a.mkv", "a_side.mkv", "b_side.mkv"], "b was not begun"
    assert (tmp_path / "out" / "b_side.mkv").read_text() == "mine"


def test_compare_never_replaces_an_input(vdeblur, tmp_path: Path) -> None:
    for name in ("a", "a_sharp_side"):
        clips.make(tmp_path / f"{name}.mkv", frames=3)
    told = ("--suffix", "_sharp", "-m", "identity", "--compare", "side", "-y")
    result = vdeblur("run", tmp_path / "a.mkv", tmp_path / "a_sharp_side.mkv", *told)
    assert result.exit_code == ExitStatus.USAGE
    assert "a_sharp_side.mkv is one of the inputs" in result.output
    assert names(tmp_path) == ["a.mkv", "a_sharp_side.mkv"]


def test_an_existing_comparison_is_replaced_only_with_y(vdeblur, tmp_path: Path) -> None:
    source, output, shown = clips.make(tmp_path / "in.mkv", frames=3), tmp_path / "out.mkv", tmp_path / "out_side.mkv"
    shown.write_text("mine")
    told = ("run", source, output, "-m", "identity", "--compare", "side")
    result = vdeblur(*told)
    assert result.exit_code == ExitStatus.OUTPUT
    assert "out_side.mkv exists already" in result.output
    assert names(tmp_path) == ["in.mkv", "out_side.mkv"]
    assert vdeblur(*told, "-y").exit_code == 0
    assert clips.facts(shown).size == (128, 48)


@pytest.mark.parametrize(
    ("output", "options", "words"),
    [
        ("-", ["--compare", "side"], "--compare takes no pipes"),
        ("out.mkv", ["--compare", "side", "--share", "1/2"], "--share makes none"),
        ("out.mkv", ["--compare", "side", "--dry-run"], "--dry-run makes none"),
        ("out.mkv", ["--compare", "side", "--sample"], "leave out --compare"),
        ("-", ["--sample"], "--sample takes no pipes"),
        ("out/", ["--sample", "--pictures"], "is a folder of pictures"),
        ("out.mkv", ["--sample", "--share", "1/2"], "--share makes none"),
        ("out.mkv", ["--sample", "--profile"], "leave out one of them"),
        ("out.mkv", ["--sample", "--engine", "ray"], "--engine ray has many"),
        ("out.mkv", ["--compare", "upside"], "'upside' is not one of"),
    ],
)
def test_what_does_not_go_together(vdeblur, tmp_path: Path, output: str, options: list[str], words: str) -> None:
    source = clips.make(tmp_path / "in.mkv", frames=2)
    result = vdeblur("run", source, output if output == "-" else f"{tmp_path}/{output}", "-m", "identity", *options)
    assert result.exit_code == ExitStatus.USAGE
    assert words in result.output
    assert names(tmp_path) == ["in.mkv"]


def test_a_signal_during_the_comparison_leaves_the_output(tmp_path: Path) -> None:
    source, output = clips.make(tmp_path / "in.mkv", frames=5), tmp_path / "out.mkv"
    settings = Settings(model="identity", compare="side", encoding=EncodeOptions(lossless=True))
    told: list[str] = []
    with pytest.raises(InterruptedRunError, match=r"out\.mkv is done, out_side\.mkv is not"):
        batch.run_job(
            jobs.RunJob(source, output),
            settings,
            notify=lambda event, facts: told.append(event),
            stop=lambda: ExitStatus.INTERRUPTED if "file_done" in told else None,
        )
    assert names(tmp_path) == ["in.mkv", "out.mkv"]
    assert clips.frame_hashes(output) == clips.frame_hashes(source)


def test_a_comparison_is_written_of_what_strict_finds_fault_with(vdeblur, tmp_path: Path) -> None:
    source = clips.make(tmp_path / "in.mkv", codec=H264, audio=("-c:a", "libvorbis"))
    result = vdeblur("run", source, tmp_path / "out.mov", "-m", "identity", "--strict", "--compare", "side")
    assert result.exit_code == ExitStatus.DAMAGE
    assert result.output.count("cannot be held by .mov") == 1, "it is told once"
    assert names(tmp_path) == ["in.mkv", "out.mov", "out_side.mov"]


# --sample ----------------------------------------------------------------------------------------------------------


def test_samples_stand_in_the_middle_of_their_thirds() -> None:
    middles = [(begin + end) / 2 for begin, end in sample.spans(Fraction(18))]
    assert middles == [3, 9, 15]
    assert all(end - begin == 2 for begin, end in sample.spans(Fraction(18)))
    assert sample.spans(Fraction(5)) == [(Fraction(3, 2), Fraction(7, 2))]
    assert sample.spans(Fraction(1)) == [(Fraction(0), Fraction(1))]
    assert sample.spans(None) == [(Fraction(0), Fraction(2))]


def test_samples_beside_the_input_and_what_the_whole_costs(
    vdeblur, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, first = Clock(), iter([1.0] * 20)  # the network warms up in the first sample, whose frames take longer
    monkeypatch.setattr(sample, "time", clock)
    monkeypatch.setattr(streams, "stream", clock.items(streams.stream, lambda: next(first, 0.125)))
    source = clips.make(tmp_path / "in.mp4", frames=200, rate="10", codec=H264, audio=("-c:a", "aac"))
    output = tmp_path / "sample.mp4"
    result = vdeblur("run", source, output, "--sample", "--json", "-p", "fp32")
    assert result.exit_code == 0, result.output
    assert names(tmp_path) == ["in.mp4", "sample.mp4"]
    facts = clips.facts(output)
    assert facts.streams == [("video", "h264")]
    assert facts.seconds == pytest.approx([index / 10 for index in range(60)])
    whole, shown = clips.rgb(source), clips.rgb(output)
    for index, begin in enumerate((24, 90, 157)):  # of 200 frames, 20 around each of 33.3, 100 and 166.7
        for half in (shown[20 * index : 20 * index + 20, :, :64], shown[20 * index : 20 * index + 20, :, 64:]):
            there = clips.psnr(half, whole[begin : begin + 20])
            assert there > 28
            assert there > clips.psnr(half, whole[begin + 1 : begin + 21]) + 3
    [told] = events(result, "sample")
    assert (told["input"], told["output"], told["frames"]) == (str(source), str(output), 60)
    progress = [event["frame"] for event in events(result, "progress")]
    assert progress == sorted(progress)
    assert not events(result, "segment") + events(result, "file_done")
    [plan] = events(result, "plan")
    assert (plan["model"], plan["frames_estimate"]) == ("lite", 60)

    assert vdeblur("run", source, tmp_path / "whole.mp4", "-p", "fp32").exit_code == 0
    size = (tmp_path / "whole.mp4").stat().st_size
    assert told["bytes_estimate"] == pytest.approx(size, rel=0.25)
    assert told["seconds_estimate"] == 200 * 0.125


def test_the_part_asked_for_is_sampled(vdeblur, tmp_path: Path) -> None:
    source, output = clips.make(tmp_path / "in.mkv", frames=300), tmp_path / "sample.mkv"
    told = ("-m", "identity", "--lossless", "--sample", "-ss", "4")
    result = vdeblur("run", source, output, *told, "--frames", "200", "--json")
    assert result.exit_code == 0, result.output
    shown, whole = clips.rgb(output), clips.rgb(source)
    assert shown.shape == (150, 48, 128, 3)
    # 8 s from 4 s on; samples around 5.333, 8 and 10.667 s
    for index, begin in enumerate((109, 175, 242)):
        expected = whole[begin : begin + 50]
        for half in (shown[50 * index : 50 * index + 50, :, :64], shown[50 * index : 50 * index + 50, :, 64:]):
            assert (half == expected).all()
    [event] = events(result, "sample")
    assert event["bytes_estimate"] == pytest.approx(200 / 150 * output.stat().st_size / 2, rel=0.2), "half of it is new"


def test_a_short_clip_is_its_own_sample(vdeblur, tmp_path: Path) -> None:
    source, output = clips.make(tmp_path / "in.mkv", frames=25), tmp_path / "sample.mkv"
    result = vdeblur("run", source, output, "-m", "identity", "--lossless", "--sample")
    assert result.exit_code == 0, result.output
    assert "sample.mkv: 25 frames, the input on the left; the complete run takes about 0:0" in result.output
    assert (clips.rgb(output)[:, :, :64] == clips.rgb(source)).all()
    assert vdeblur("run", source, output, "-m", "identity", "--sample").exit_code == ExitStatus.OUTPUT
    assert vdeblur("run", source, output, "-m", "identity", "--sample", "-y").exit_code == 0
    assert names(tmp_path) == ["in.mkv", "sample.mkv"]


def test_what_does_not_say_its_length_is_sampled_at_its_beginning(vdeblur, tmp_path: Path) -> None:
    source, output = clips.make(tmp_path / "in.h264", frames=75, codec=H264), tmp_path / "sample.mkv"
    result = vdeblur("run", source, output, "-m", "identity", "--sample", "--json")
    assert result.exit_code == 0, result.output
    [event] = events(result, "sample")
    assert (event["frames"], event["seconds_estimate"], event["bytes_estimate"]) == (50, None, None)


def test_samples_of_a_batch_and_of_pictures(vdeblur, tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    clips.make(tmp_path / "pictures" / "%03d.png", pix_fmt="rgb24", frames=5, codec=("-c:v", "png"))
    result = vdeblur("run", tmp_path / "pictures", tmp_path / "of_pictures.mp4", "-m", "identity", "--sample")
    assert result.exit_code == 0, result.output
    (tmp_path / "in").mkdir()
    for name in ("a", "b"):
        clips.make(tmp_path / "in" / f"{name}.mkv", frames=3)
    result = vdeblur("run", tmp_path / "in", tmp_path / "out", "-m", "identity", "--sample")
    assert result.exit_code == 0, result.output
    assert names(tmp_path / "out") == ["a.mkv", "b.mkv"]
    assert clips.facts(tmp_path / "out" / "a.mkv").size == clips.facts(tmp_path / "of_pictures.mp4").size == (128, 48)


def test_a_file_that_ends_early_is_sampled_as_far_as_it_goes(vdeblur, tmp_path: Path) -> None:
    whole = clips.make(tmp_path / "whole.mkv", frames=300, codec=(*H264, "-g", "10"))
    source = tmp_path / "in.mkv"
    source.write_bytes(whole.read_bytes()[: whole.stat().st_size * 6 // 10])
    told = ("-m", "identity", "--sample")
    result = vdeblur("run", source, tmp_path / "sample.mkv", *told, "--json")
    assert result.exit_code == 0, result.output
    assert "there is no sample from 9.0 s on" in events(result, "warning")[-1]["message"]
    assert events(result, "sample")[0]["frames"] >= 75
    assert vdeblur("run", source, tmp_path / "strict.mkv", *told, "--strict").exit_code == ExitStatus.INPUT
    assert names(tmp_path) == ["in.mkv", "sample.mkv", "whole.mkv"]


def test_a_signal_leaves_nothing_of_a_sample(tmp_path: Path) -> None:
    source = clips.make(tmp_path / "in.mkv", frames=20)
    for limit in (5, 30):  # while the sample is restored, and while it is put beside the input
        asked = iter(range(limit))

        def stop(asked: Iterator[int] = asked) -> ExitStatus | None:
            return ExitStatus.INTERRUPTED if next(asked, None) is None else None

        with pytest.raises(InterruptedRunError, match="nothing was written"):
            sample.run_sample(source, tmp_path / "sample.mkv", Settings(model="identity"), stop=stop)
        assert names(tmp_path) == ["in.mkv"]


# --profile ---------------------------------------------------------------------------------------------------------


def test_the_stages_make_up_the_run(vdeblur, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes time is counted in its own stage, once, and nothing of it is left out."""
    clock, frames = Clock(), 30
    monkeypatch.setattr(watch, "time", clock)
    monkeypatch.setattr(context, "time", clock)
    for place, name, seconds in (
        (video, "open_source", 1.0), (file_run, "prepare_network", 2.0), (color, "to_rgb", 0.25),
        (scenes.SceneDetector, "is_cut", 0.0625), (color, "add_difference", 0.5), (threads.Worker, "_join", 4.0),
        (assemble, "assemble", 8.0), (parts.VideoPart, "write", 0.75),
    ):  # fmt: skip
        monkeypatch.setattr(place, name, clock.calls(getattr(place, name), seconds))
    for place, name, pace in (
        (threads, "threaded", lambda: 0.125), (streams, "stream", lambda: 1.0),
        (deinterlace, "deinterlaced", lambda: 0.375),
    ):  # fmt: skip
        monkeypatch.setattr(place, name, clock.items(getattr(place, name), pace))
    source = clips.make(tmp_path / "in.mp4", frames=frames, codec=H264)
    told = ("run", source, tmp_path / "out.mp4", "-y", "--profile")
    result = vdeblur(*told, "--json")
    assert result.exit_code == 0, result.output
    [event] = events(result, "profile")
    [done] = events(result, "file_done")
    seconds = event["seconds"]
    stages = [name for name in watch.STAGES if name != "blur"]  # that is --only-blurred's
    assert list(seconds) == [*stages, *watch.BESIDE]
    assert seconds == {
        "start": 3.0, "wait_decode": frames / 8, "color": frames / 4, "scenes": frames / 16, "network": frames,
        "difference": frames / 2, "wait_encode": 4.0, "assemble": 8.0, "decode": frames * 3 / 8,
        "encode": frames * 3 / 4,
    }  # fmt: skip
    assert done["seconds"] == sum(seconds[name] for name in stages)
    assert 100e6 < event["peak_memory_bytes"] < 100e9
    assert event["peak_device_bytes"] is None
    shown = vdeblur(*told, "-m", "identity").output
    for words in ("network, tiles", "waiting for the encoder", "decoding, in a thread of its own", "peak memory"):
        assert words in shown


def test_a_profile_changes_nothing(vdeblur, tmp_path: Path) -> None:
    source = clips.make(tmp_path / "in.mkv")
    for name, options in (("a", ()), ("b", ("--profile",))):
        assert vdeblur("run", source, tmp_path / f"{name}.mkv", "--lossless", *options).exit_code == 0
    assert clips.frame_hashes(tmp_path / "a.mkv") == clips.frame_hashes(tmp_path / "b.mkv")
    assert not events(vdeblur("run", source, tmp_path / "c.mkv", "-m", "identity", "--json"), "profile")


def test_a_profile_to_a_pipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, real = clips.make(tmp_path / "in.mkv"), av.open
    told: dict[str, Any] = {}
    monkeypatch.setattr(
        av, "open", lambda file, *rest, **given: real(tmp_path / "out" if file == "pipe:1" else file, *rest, **given)
    )
    settings = Settings(profile=True, encoding=EncodeOptions(format="nut"))
    pipeline.restore_file(source, demux.PIPE, settings, notify=lambda event, facts: told.update({event: facts}))
    assert set(told["profile"]["seconds"]) == {*watch.STAGES, *watch.BESIDE} - {"assemble", "blur"}
    assert len(clips.frame_hashes(tmp_path / "out")) == 10


def test_an_interrupted_run_goes_on_with_other_extras(vdeblur, tmp_path: Path) -> None:
    """What is finished does not depend on these options."""
    told = [Settings(), Settings(profile=True, compare="side", device="cpu")]
    source = video.open_source(clips.make(tmp_path / "in.mkv"), Cut(), lambda code, message: None)
    loaded = loading.prepare_network(Context(source.path, tmp_path / "out.mkv", told[0]), source.info)
    source.close()
    first, second = (store.fingerprint(settings, loaded.model, loaded.digest, source) for settings in told)
    assert first == second


def test_the_peak_begins_anew() -> None:
    large = torch.zeros(100_000_000, dtype=torch.uint8) + 1
    before = memory.resident_peak()
    del large
    memory.reset_resident_peak()
    after = memory.resident_peak()
    assert before is not None
    assert after is not None
    assert after < before - 50_000_000


def test_a_comparison_of_all_modes_has_a_name() -> None:
    job = jobs.RunJob(Path("in.mp4"), Path("/out/a.b.mkv"))
    for mode in (*compose.MODES, "html"):
        path = compare_input.comparison_path(job.output, Settings(compare=mode))
        assert path == Path(f"/out/a.b_{mode}{'.html' if mode == 'html' else '.mkv'}")
    odd = jobs.RunJob(Path("in.mp4"), Path("/out/a.film"))
    assert (
        compare_input.comparison_path(odd.output, Settings(compare="side", encoding=EncodeOptions(format="mp4"))).suffix
        == ".mp4"
    )
