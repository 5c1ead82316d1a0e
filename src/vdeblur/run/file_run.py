"""One run on one file, from opening it to its output."""

import contextlib
import gc
import shlex
from dataclasses import replace

import torch

from vdeblur.errors import DamageError, DeviceError, InputError
from vdeblur.output import carry, tracks
from vdeblur.output.codecs import quality_in_words
from vdeblur.output.encoding import VideoEncoding, warn_of_plans
from vdeblur.restore import device, processor
from vdeblur.restore import plan as plans
from vdeblur.restore.area import Area, wanted_weights
from vdeblur.restore.streams import frames_around
from vdeblur.run import auto
from vdeblur.run.context import Context, RunResult
from vdeblur.run.forecast import Forecast, forecast, input_bytes
from vdeblur.run.loading import Loaded, check_model, prepare_network, settled
from vdeblur.run.parts import Encoding
from vdeblur.run.reasons import reasons_of
from vdeblur.run.sinks import FileSink, PipeSink, Sink, Workload
from vdeblur.source import counting, deinterlace, video
from vdeblur.source.info import SourceInfo
from vdeblur.source.pictures import PictureSource
from vdeblur.source.video import Source, VideoSource

DAMAGE = {"W_INPUT_DAMAGED", "W_INPUT_TRUNCATED", "W_TIMESTAMPS"}  # warnings about a damaged input
ANIMATED_AVIF = "avis"  # the major brand of such files, AV1 Image File Format Sec. 6.3


def run_file(context: Context) -> RunResult:
    """Restore one file or folder of pictures to one output.

    Raises: VdeblurError. After a DamageError the output is complete; every other error leaves no output.
    """
    writes = processor.writing_nothing() if context.settings.dry_run else contextlib.nullcontext()
    with processor.with_threads(context.settings.threads), writes:
        return _run_file(context)


def _run_file(context: Context) -> RunResult:
    settings = context.settings
    check_model(settings)
    sink = PipeSink(context) if context.writes_pipe else FileSink(context)
    if settings.deterministic:
        device.make_deterministic()
    with context.profile.main.stage("start"):
        source = video.open_source(context.source_path, settings.cut, context.warn)
    try:
        _refuse_animated_avif(source)
        is_counted = counting.settle_frames(source)
        _notify_probe(context, source.info)
        frames, loaded = _restore(context, source, sink, is_counted)
    except torch.OutOfMemoryError as error:
        raise DeviceError("the device is out of memory", "use --tile 512, or --device cpu") from error
    finally:
        sink.close()
        source.close()
        gc.collect()  # PyAV's containers and streams refer to each other, and their encoders hold threads
    result = RunResult(
        context.output,
        frames,
        context.seconds(),
        tuple(code for code, _ in context.warnings),
        is_planned=settings.dry_run,
        frames_estimate=source.info.frames_estimate,
        model=loaded.model,
        weights_sha256=loaded.weights_sha256,
        device=str(loaded.device),
        precision=loaded.precision,
        change=context.changes.summary(),
        strengths=context.strengths,
    )
    if not settings.dry_run:
        _notify_done(context, result)
    _check_warnings(context, result)
    return result


def _refuse_animated_avif(source: Source) -> None:
    """Refuse an AVIF file whose first video is its still picture, and the animation another one.

    Raises: InputError.
    """
    if not isinstance(source, VideoSource) or source.container.metadata.get("major_brand") != ANIMATED_AVIF:
        return
    others = [stream for stream in source.container.streams.video if stream.index != source.video.index]
    longest = max(others, key=lambda stream: stream.frames, default=source.video)
    if longest.frames > source.video.frames:
        name, place = source.path.name, source.container.streams.video.index(longest)
        message = f"{source.path} is an animated AVIF: its first video is one picture, the animation is another video"
        copy = f"ffmpeg -i {shlex.quote(name)} -map 0:v:{place} -c copy {shlex.quote(f'{source.path.stem}.mp4')}"
        raise InputError(message, f"copy the animation first: {copy}")


def _restore(context: Context, source: Source, sink: Sink, is_counted: bool) -> tuple[int, Loaded]:
    """Run all steps between the opened input and the finished output; return the number of frames, and the network.

    is_counted: whether the number of the input's frames is no estimate.
    """
    encoding = sink.choose_encoding(source)
    with context.profile.main.stage("start"):
        stream_plans = _try_container(context, encoding, source)
        wanted = wanted_weights(context.settings, source.info)  # before weights may be downloaded
        asked = context.settings.model
        if asked == auto.AUTO:
            context.settings = auto.settled_settings(context, source.info)
        loaded = prepare_network(context, source.info)
    if wanted is not None:
        context.area = Area.of(wanted, loaded.network, plans.overlap_of(context.settings, loaded.network))
    context.settings = settled(context.settings, loaded)
    _warn_of_one_picture(context, source, loaded)
    workload = sink.prepare(source, loaded)
    expected = forecast(context, source, encoding, loaded, stream_plans) if context.settings.dry_run else Forecast()
    facts = _plan_facts(context, loaded, workload, source.info, stream_plans)
    facts |= _output_facts(context, encoding) | {"frames_counted": is_counted}
    facts |= {"seconds_estimate": expected.seconds, "bytes_estimate": expected.bytes}
    facts["restored_share"] = None if context.area is None else round(context.area.share, 4)
    facts["input_bytes"] = None if source.is_pipe else input_bytes(source)
    facts["reasons"] = reasons_of(replace(context.settings, model=asked), source.info, encoding, loaded, workload.tiles)
    context.notify("plan", facts)
    return 0 if context.settings.dry_run else sink.restore_and_write(), loaded


def _warn_of_one_picture(context: Context, source: Source, loaded: Loaded) -> None:
    """Warn where a network needs neighbouring frames, and the input is one picture."""
    if isinstance(source, PictureSource) and len(source.files) == 1 and any(frames_around(loaded.network)):
        message = f"{loaded.model} restores a frame with the help of its neighbours, and {source.path} is one picture"
        context.warn("W_ONE_PICTURE", f"{message}: it sees no motion, so it may change little")


def _try_container(context: Context, encoding: Encoding, source: Source) -> list[tracks.StreamPlan]:
    """Plan what becomes of the other streams, and warn of those that cannot stay as they are, before any work."""
    options = context.settings.encoding
    deinterlace.warn_of_interlacing(source.info, options.deinterlace, context.warn)
    if isinstance(encoding, VideoEncoding):
        stream_plans = encoding.try_container(source)
    else:
        stream_plans = carry.drop_all(source, "has no place in pictures")
    warn_of_plans(stream_plans, options, context.warn)
    return stream_plans


def _notify_probe(context: Context, info: SourceInfo) -> None:
    facts = {"input": str(context.source_path), "width": info.width, "height": info.height}
    duration = None if info.duration_seconds is None else float(info.duration_seconds)
    facts |= {"frames_estimate": info.frames_estimate, "duration": duration, "vfr": info.variable_rate}
    context.notify("probe", {**facts, "streams": info.streams, "color": info.color})


def _output_facts(context: Context, encoding: Encoding) -> dict[str, object]:
    """Return what is written, as keys of the event plan."""
    facts: dict[str, object] = {"output": str(context.output)}
    if isinstance(encoding, VideoEncoding):
        facts |= {"container": encoding.container_name, "encoder": encoding.coding.encoder.name}
        return facts | {"pixel_format": encoding.format, "quality": quality_in_words(encoding.coding)}
    facts |= {"container": "pictures", "encoder": encoding.codec}
    return facts | {"pixel_format": encoding.format, "quality": encoding.quality}


def _plan_facts(
    context: Context, loaded: Loaded, workload: Workload, info: SourceInfo, stream_plans: list[tracks.StreamPlan]
) -> dict[str, object]:
    facts: dict[str, object] = {"input": str(context.source_path), "model": loaded.model, "device": str(loaded.device)}
    facts |= {"precision": loaded.precision, "tile": workload.tiles.name}
    facts["only_blurred"] = bool(context.settings.only_blurred)
    facts["guard"] = bool(context.settings.guard)
    facts |= {"segments": workload.segments, "frames_done": workload.frames_done}
    facts["keep"] = [each.name for each in stream_plans if each.action != tracks.DROP]
    facts["convert"] = [f"{each.name} {each.reason}" for each in stream_plans if each.action == tracks.CONVERT]
    facts["drop"] = [each.name for each in stream_plans if each.action == tracks.DROP]
    facts["drop_reasons"] = [each.reason for each in stream_plans if each.action == tracks.DROP]
    facts |= {"frames_estimate": info.frames_estimate, "dry_run": context.settings.dry_run}
    return facts | {"download_megabytes": loaded.download_megabytes}


def _notify_done(context: Context, result: RunResult) -> None:
    if context.settings.share is None:
        facts: dict[str, object] = {"input": str(context.source_path), "output": str(context.output)}
        facts["frames"] = result.frames
        speed = {"seconds": round(result.seconds, 3), "fps": round(result.frames / result.seconds, 3)}
        change = None if result.change is None else result.change.facts()
        facts |= {**speed, "warnings": list(result.warnings), "status": "restored", "change": change}
        facts |= {"guarded": context.guarded}
        facts["only_blurred"] = None if result.strengths is None else result.strengths.facts()
        context.notify("file_done", facts)
    if context.settings.profile:
        context.notify("profile", {"input": str(context.source_path), **context.profile.facts()})


def _check_warnings(context: Context, result: RunResult) -> None:
    """Turn warnings into an error, as --strict and --on-damage fail ask.

    Raises: DamageError; the output is complete all the same.
    """
    settings = context.settings
    bad = [code for code in result.warnings if settings.strict or (settings.fail_on_damage and code in DAMAGE)]
    if bad:
        option = "--strict" if settings.strict else "--on-damage fail"
        raise DamageError(f"{context.output} is done, but with {', '.join(bad)}", f"{option} makes this an error")
