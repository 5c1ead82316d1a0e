"""The lines of text that people read for an event: pure functions of the payload."""

import os
import shlex
from collections.abc import Callable
from typing import Any

from vdeblur.events import (
    BenchEvent,
    BenchKeptEvent,
    BenchModelEvent,
    CandidateRow,
    ChoiceEvent,
    ComparisonEvent,
    DatasetDoneEvent,
    DatasetDownloadEvent,
    DownloadDoneEvent,
    DownloadEvent,
    DownloadProgressEvent,
    ErrorEvent,
    FileDoneEvent,
    FileEvent,
    FileSkippedEvent,
    FirstPassEvent,
    FirstPassProgressEvent,
    MeasuringEvent,
    OffsetEvent,
    PlanEvent,
    ProfileEvent,
    ProgressEvent,
    SampleEvent,
    SequenceDoneEvent,
    SequenceMadeEvent,
    StillEvent,
    SynthDoneEvent,
    SynthPlanEvent,
    TrainedEvent,
    TrainingEvent,
    TrainProgressEvent,
    ValidationEvent,
    WarningEvent,
)

_STATUSES = ("restored", "planned", "skipped", "stopped", "failed")  # of a batch's files, in this order
PASSED_OVER = 3  # models that a line names
WAITED = 0.05  # of a training's time; a smaller share is not worth reporting
# Stages of --profile in words: those that follow one another, then those that run beside them.
PROFILE_STAGES = {
    "start": "opening the input, loading the network",
    "wait_decode": "waiting for the decoder",
    "blur": "measuring blur",
    "color": "upload, conversion to RGB",
    "scenes": "scene detection",
    "network": "network, tiles",
    "difference": "difference, download",
    "wait_encode": "waiting for the encoder",
    "assemble": "joining the segments",
    "decode": "decoding, in a thread of its own",
    "encode": "encoding, in a thread of its own",
}


def lines_of(event: str, facts: dict[str, Any]) -> list[str]:
    """Return the lines for an event; none for events that only programs need."""
    return _LINES[event](facts) if event in _LINES else []


def shown(path: str) -> str:
    """Return the path relative to the working folder if that is shorter."""
    return min(os.path.normpath(path), os.path.relpath(path), key=len)


def counted(number: int, thing: str) -> str:
    """Return a number of things: "1 frame", "2 frames"."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def total_in_words(total: dict[str, Any]) -> str:
    """Return the sum of a batch: "12 files: 10 restored, 2 failed; 1234 frames in 2:03"."""
    parts = [f"{total[status]} {status}" for status in _STATUSES if total[status]]
    frames = f"{counted(total['frames'], 'frame')} in {clock(total['seconds'])}"
    return f"{counted(total['files'], 'file')}: {', '.join(parts)}; {frames}"


def duration_in_words(seconds: float) -> str:
    """Return a duration with its largest unit: "12 s", "15 min", "2.5 h", "3 days"."""
    for unit, length, most in (("s", 1, 90), ("min", 60, 90), ("h", 3600, 48)):
        number = seconds / length
        if number < most:
            return f"{number:.2g} {unit}" if number < 10 else f"{number:.0f} {unit}"
    return f"{seconds / 86400:.0f} days"


def clock(seconds: float) -> str:
    """Return a duration as [H:]MM:SS."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


# Every command


def _warning(facts: WarningEvent) -> list[str]:
    return [f"warning: {facts['message']}"]


def _error(facts: ErrorEvent) -> list[str]:
    hint = f" ({facts['hint']})" if facts["hint"] else ""
    return [f"vdeblur: {facts['message']}{hint}"]


def _progress(facts: ProgressEvent) -> list[str]:
    of = "" if facts["frames_estimate"] is None else f" of {facts['frames_estimate']}"
    left = "" if facts["eta_seconds"] is None else f", {clock(facts['eta_seconds'])} left"
    return [f"  {facts['input']}: frame {facts['frame']}{of}, {facts['fps']:.2f} fps{left}"]


def _download(facts: DownloadEvent) -> list[str]:
    size = "" if facts["megabytes"] is None else f", about {facts['megabytes']:g} MB"
    notice = f"; note: {facts['notice']}" if facts["notice"] else ""
    return [
        f"{facts['model']}@{facts['weights']}: downloading {facts['file']}{size} from {facts['source']}",
        f"  licence: {facts['license']}{notice}",
    ]


def _download_progress(facts: DownloadProgressEvent) -> list[str]:
    of = "" if facts["bytes_total"] is None else f" of {facts['bytes_total'] / 1e6:.1f}"
    return [f"  {facts['bytes'] / 1e6:.1f}{of} MB"]


def _download_done(facts: DownloadDoneEvent) -> list[str]:
    verified = {
        "pinned": "verified",
        "partly": "partly verified, by 8 digits of its SHA-256",
        "unpinned": "not verified: its authors published no digest; vdeblur will notice if the file changes later",
    }[facts["verification"]]
    return [f"  {verified}; SHA-256 {facts['sha256']}"]


# run


def _choice(facts: ChoiceEvent) -> list[str]:
    if facts.get("asked") != "auto":
        return [f"best here: {facts['model']}, {facts['reason']}"]
    strength = "" if facts["strength"] == 1 else f" at strength {facts['strength']:g}"
    over = facts["passed_over"]
    named = ", ".join(over[:PASSED_OVER]) + (f" and {len(over) - PASSED_OVER} more" if len(over) > PASSED_OVER else "")
    return [f"auto: {facts['model']}{strength}: {facts['reason']}{f'; passed over: {named}' if over else ''}"]


def _first_pass(facts: FirstPassEvent) -> list[str]:
    return [f"  {facts['input']}: first pass, to learn how sharp its scenes are"]


def _first_pass_progress(facts: FirstPassProgressEvent) -> list[str]:
    return [line.replace(": frame", ": first pass, frame") for line in _progress(facts)]


def _file(facts: FileEvent) -> list[str]:
    return [f"file {facts['number']} of {facts['files']}: {facts['input']}"]


def _plan(facts: PlanEvent) -> list[str]:
    tiled = "" if facts["tile"] == "none" else f", tiles of {facts['tile']}"
    done = f"; {counted(facts['frames_done'], 'frame')} done already" if facts["frames_done"] else ""
    share = facts.get("restored_share")
    part = "" if share is None else f", in {f'{share:.0%}' if share >= 0.01 else 'less than 1%'} of the picture"
    head = f"{facts['input']}: {facts['model']} on {facts['device']} in {facts['precision']}{tiled}{part}{done}"
    return [head, *plan_details(facts)] if facts["dry_run"] else [head]


def plan_details(facts: PlanEvent) -> list[str]:
    """Return the lines of a dry run: what is written, how large, how long it takes, what becomes of the streams."""
    lines = [
        f"  output: {shown(facts['output'])} ({facts['container']})",
        f"  encoder: {facts['encoder']}, {facts['pixel_format']}, {facts['quality']}",
        f"  frames: {_frames_in_words(facts)}",
        *_estimates_in_words(facts),
    ]
    if facts["download_megabytes"] != 0:
        size = facts["download_megabytes"]
        lines.append(f"  download: the weights of {facts['model']}" + (f", about {size:g} MB" if size else ""))
    kept = [stream for stream in facts["keep"] if not any(each.startswith(stream) for each in facts["convert"])]
    lines += [f"  keep: {stream}" for stream in kept]
    lines += [f"  convert: {stream}" for stream in facts["convert"]]
    reasons = zip(facts["drop"], facts["drop_reasons"], strict=True)
    return lines + [f"  drop: {stream}{f', {reason}' if reason else ''}" for stream, reason in reasons]


def plan_reasons(facts: PlanEvent) -> list[str]:
    """Return the lines of --verbose: each decision with its reason."""
    words = {"pixel_format": "pixel format"}
    known = {key: reason for key, reason in facts["reasons"].items() if key in facts}
    return [f"  {words.get(key, key)} {facts.get(key)}: {reason}" for key, reason in known.items()]


def _frames_in_words(facts: PlanEvent) -> str:
    if facts["frames_estimate"] is None:
        return "unknown"
    return f"{facts['frames_estimate']}" if facts["frames_counted"] else f"about {facts['frames_estimate']}"


def _estimates_in_words(facts: PlanEvent) -> list[str]:
    if not facts["dry_run"]:
        return []
    spent = "unknown" if facts["seconds_estimate"] is None else f"about {clock(facts['seconds_estimate'])}"
    size = "unknown" if facts["bytes_estimate"] is None else f"about {bytes_in_words(facts['bytes_estimate'])}"
    given = "" if facts["input_bytes"] is None else f"; the input has {bytes_in_words(facts['input_bytes'])}"
    return [f"  time: {spent}", f"  size: {size}{given}"]


def bytes_in_words(number: float) -> str:
    """Return a size in GB, MB or kB."""
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number / 1e3:.3g} kB"


def _file_done(facts: FileDoneEvent) -> list[str]:
    spent = clock(facts["seconds"])
    line = f"{shown(facts['output'])}: {facts['frames']} frames in {spent} ({facts['fps']:.2f} fps)"
    change, blurred, guarded = facts.get("change"), facts.get("only_blurred"), facts.get("guarded", 0)
    kept = [f"  guarded: parts of {counted(guarded, 'frame')} stay as they were"] if guarded else []
    restored = [] if blurred is None else [_only_blurred(blurred)]
    verdict = [] if change is None else _verdict(change)
    # The reason why frames changed little is not told of frames that were left alone on purpose.
    return [line, *restored, *(verdict if blurred is None else verdict[:1]), *kept]


def _only_blurred(blurred: dict[str, Any]) -> str:
    """Return how many frames were blurred, and how strongly they were restored."""
    restored, frames = blurred["restored"], blurred["frames"]
    words = f"  restored {restored} of {counted(frames, 'frame')}, at a mean strength of {blurred['mean_strength']:.2f}"
    return words if restored == frames else f"{words} over all frames; the others passed unchanged"


def _verdict(change: dict[str, Any]) -> list[str]:
    """Return how much changed and, where that is little, the measured reason."""
    if not change["mean_change"]:
        return ["  nothing changed"]
    sharp = f"sharpness {change['sharpness'] or 0:.2f} of 1"
    mean, share, least = change["mean_change"], change["little_share"], change["little_below"]
    lines = [f"  changed by {mean:.2g} of 255 brightness levels on average"]
    if share:
        lines[0] += f"; {share:.0%} of the frames by less than {least:g}"
        reason = {
            "sharp": f"they are sharp already ({sharp})",
            "dark": f"they are very dark (brightness {change['brightness'] or 0:.2f} of 1)",
            "still": f"they hardly move ({change['motion'] or 0:.2%} from frame to frame), so blur is no motion blur",
            "soft": f"they are soft ({sharp}), but the model found little motion blur",
        }.get(change["reason"])
        lines += [] if reason is None else [f"  why: {reason}"]
    return lines


def _file_skipped(facts: FileSkippedEvent) -> list[str]:
    return [f"{shown(facts['output'])}: exists already, skipped"]


def _comparison(facts: ComparisonEvent) -> list[str]:
    return [f"{shown(facts['output'])}: comparison of input and output ({facts['mode']})"]


def _offset(facts: OffsetEvent) -> list[str]:
    if facts["seconds"] > 0:
        line = f"{shown(facts['b'])} begins at {facts['seconds']:.3f} s of {shown(facts['a'])}"
    else:
        line = f"{shown(facts['a'])} begins at {-facts['seconds']:.3f} s of {shown(facts['b'])}"
    return [line if facts["certain"] else f"{line}, or elsewhere: other places look alike (--offset SECONDS sets it)"]


def _sample(facts: SampleEvent) -> list[str]:
    if "candidates" in facts:
        models = counted(len(facts["candidates"]), "candidate")
        return [f"{shown(facts['output'])}: {models} on the blurriest second", *map(_candidate, facts["candidates"])]
    predicted = "no prediction for the complete run, since the length of the input is unknown"
    if facts["seconds_estimate"] is not None and facts["bytes_estimate"] is not None:
        size = facts["bytes_estimate"] / 1e6
        predicted = f"the complete run takes about {clock(facts['seconds_estimate'])} and writes {size:.3g} MB"
    return [f"{shown(facts['output'])}: {facts['frames']} frames, the input on the left; {predicted}"]


def _candidate(row: CandidateRow) -> str:
    strength = "" if row["strength"] == 1 else f" at strength {row['strength']:g}"
    cost = "time and size unknown, since the length of the input is unknown"
    if row["seconds_estimate"] is not None and row["bytes_estimate"] is not None:
        cost = f"about {clock(row['seconds_estimate'])} and {bytes_in_words(row['bytes_estimate'])} for the whole"
    return f"  {row['model']}{strength}: {cost}{'; chosen' if row['is_chosen'] else ''}"


def _still(facts: StillEvent) -> list[str]:
    line = f"{shown(facts['output'])}: the frame at {facts['at']:.3f} s, restored by {facts['model']}"
    if not facts["neighbours"]:
        return [f"{line}; no neighbours"]
    return [f"{line}; {facts['share']:.0%} of it comes from {counted(facts['neighbours'], 'neighbour')}"]


def _profile(facts: ProfileEvent) -> list[str]:
    host = "?" if facts["peak_memory_bytes"] is None else f"{facts['peak_memory_bytes'] / 1e6:.0f}"
    device = facts["peak_device_bytes"]
    on_device = "" if device is None else f", {device / 1e6:.0f} MB on the device"
    lines = [f"{facts['input']}: peak memory {host} MB{on_device}; seconds per stage:"]
    seconds = facts["seconds"]
    return lines + [f"  {seconds[name]:9.2f}  {words}" for name, words in PROFILE_STAGES.items() if name in seconds]


# bench


def _dataset_download(facts: DatasetDownloadEvent) -> list[str]:
    size = "" if facts["megabytes"] is None else f", about {facts['megabytes'] / 1000:.1f} GB in all"
    return [
        f"{facts['dataset']}: downloading the {facts['split']} split of {facts['file']}{size}",
        f"  from {facts['source']}; licence: {facts['license']}",
    ]


def _dataset_done(facts: DatasetDoneEvent) -> list[str]:
    return [f"  in {shown(facts['path'])}"]


def _bench(facts: BenchEvent) -> list[str]:
    size = f"{facts['sequences']} sequences, {facts['frames']} frames"
    return [
        f"{facts['title']}, {facts['split']}: {size}, layout of {facts['layout']}; blurry: {facts['blur']}",
        f"protocol: {facts['protocol']}",
    ]


def _bench_model(facts: BenchModelEvent) -> list[str]:
    again = f"; {counted(facts['finished'], 'sequence')} kept from an interrupted bench" if facts["finished"] else ""
    return [f"{facts['model']} on {facts['device']} in {facts['precision']}{again}"]


def _bench_kept(facts: BenchKeptEvent) -> list[str]:
    return [f"{counted(facts['sequences'], 'sequence')} kept: the same command continues"]


def _sequence_done(facts: SequenceDoneEvent) -> list[str]:
    psnr = "inf" if facts["psnr"] is None else f"{facts['psnr']:.2f}"
    return [f"  {facts['sequence']}: {psnr} dB"]


def _measuring(facts: MeasuringEvent) -> list[str]:
    part = " ".join(filter(None, (facts["model"], facts["precision"], facts["part"])))
    if "seconds" not in facts:
        return [part]
    return [f"  {part}: {clock(facts['seconds'])} so far (part {facts['number']} of {facts['parts']})"]


# train


def _training(facts: TrainingEvent) -> list[str]:
    name = f"{facts['model']}, stage {facts['stage']}" if facts["stage"] else facts["model"]
    on = facts["device"] if facts["processes"] == 1 else f"{facts['device']} in {facts['processes']} processes"
    again = f"; continuing from update {facts['update']}" if facts["update"] else ""
    held_out = f"{counted(facts['validation_sequences'], 'sequence')} for validation"
    trained = f"{counted(facts['sequences'], 'sequence')}, {facts['frames']} frames in all"
    return [
        f"{name}: {facts['parameters']:,} parameters to train, on {on} in {facts['precision']}{again}",
        f"{facts['dataset']}: {trained}; {held_out}",
    ]


def _train_progress(facts: TrainProgressEvent) -> list[str]:
    left = "" if facts["eta_seconds"] is None else f", {clock(facts['eta_seconds'])} left"
    waited = f", {facts['waited_share']:.0%} waiting for data" if facts["waited_share"] >= WAITED else ""
    pace = f"{facts['clips_per_second']:.1f} clips/s{waited}{left}"
    return [f"  update {facts['update']} of {facts['iterations']}: loss {facts['loss']:.5g}, {pace}"]


def _validation(facts: ValidationEvent) -> list[str]:
    lines = _train_progress(facts) if "loss" in facts else []
    if "psnr" not in facts:
        return [*lines, f"    validation loss {facts['validation_loss']:.5g}"]
    blurry, restored = facts["blurry"], facts["psnr"]
    untouched = "" if facts["untouched"] is None else f"; frames without blur: {facts['untouched']:.2f} dB"
    if facts["mild_gain"] is not None:
        untouched += f"; frames with little blur: {facts['mild_gain']:+.2f} dB"
    gain = f"blurry {blurry:.2f} dB, restored {restored:.2f} dB ({restored - blurry:+.2f})"
    return [*lines, f"    validation: {gain}, SSIM {facts['ssim']:.4f}{untouched}"]


def _trained(facts: TrainedEvent) -> list[str]:
    best, out = facts["best"], shown(facts["out"])
    figure = f"{best:.2f} dB" if facts["measure"] == "psnr" else f"loss {-best:.5g}"
    when = f"after update {facts['best_update']}" if facts["best_update"] else "the initial ones"
    lines = [f"{out}/best.safetensors: the best weights ({when}), {figure} in validation"]
    if facts["measure"] == "psnr":
        lines.append(
            f"use them: vdeblur run INPUT OUTPUT -m {facts['model']} --weights {shlex.quote(out)}/best.safetensors"
        )
    return lines


# synth


def _synth_plan(facts: SynthPlanEvent) -> list[str]:
    counts = f"{counted(facts['train'], 'source')} for train, {facts['test']} for test"
    return [f"{shown(facts['output'])}: {counts}; {facts['way']}"]


def _sequence_made(facts: SequenceMadeEvent) -> list[str]:
    return [f"  {facts['split']}/{facts['sequence']}: {counted(facts['frames'], 'frame')}"]


def _synth_done(facts: SynthDoneEvent) -> list[str]:
    counts = f"{counted(facts['train'], 'sequence')} for train, {facts['test']} for test"
    return [f"{shown(facts['output'])}: {counts}; {counted(facts['frames'], 'pair')} in {clock(facts['seconds'])}"]


_LINES: dict[str, Callable[[Any], list[str]]] = {
    "warning": _warning,
    "error": _error,
    "progress": _progress,
    "download": _download,
    "download_progress": _download_progress,
    "download_done": _download_done,
    "choice": _choice,
    "first_pass": _first_pass,
    "first_pass_progress": _first_pass_progress,
    "file": _file,
    "plan": _plan,
    "file_done": _file_done,
    "file_skipped": _file_skipped,
    "comparison": _comparison,
    "offset": _offset,
    "sample": _sample,
    "still": _still,
    "profile": _profile,
    "dataset_download": _dataset_download,
    "dataset_done": _dataset_done,
    "bench": _bench,
    "bench_model": _bench_model,
    "bench_kept": _bench_kept,
    "sequence_done": _sequence_done,
    "measuring": _measuring,
    "training": _training,
    "train_progress": _train_progress,
    "validation": _validation,
    "trained": _trained,
    "synth_plan": _synth_plan,
    "sequence_made": _sequence_made,
    "synth_done": _synth_done,
}
