"""Time a whole run from file to file, and its decoder and encoder alone."""

import tempfile
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import av
import safetensors.torch
import torch

from vdeblur import settings
from vdeblur.bench.baselines import BASELINES
from vdeblur.bench.network_speed import WARM_UP, frames_of, load_network
from vdeblur.bench.speed_results import CodecSpeed, PipelineSpeed
from vdeblur.events import ignore
from vdeblur.frame import Frame
from vdeblur.models import registry
from vdeblur.output.encoding import VideoEncoding
from vdeblur.restore import device
from vdeblur.restore.memory import resident_peak
from vdeblur.run import pipeline
from vdeblur.settings import Settings
from vdeblur.source import video
from vdeblur.source.info import SourceInfo

INVISIBLE = 1e-6  # strength at which untrained networks change no sample, though all is computed


def time_pipeline(model: str, device_name: str, precision: str, clip: str, output: str) -> PipelineSpeed:
    """Time a whole run, from opening the clip to the finished file, after a run of WARM_UP frames."""
    network, trained = load_network(model)
    strength, checkpoint = 1.0, None
    if not trained:
        strength, checkpoint = INVISIBLE, Path(output).with_suffix(".safetensors")
        safetensors.torch.save_file(network.state_dict(), checkpoint)
        model = registry.find_entry(model).name
    del network

    def restore(cut: settings.Cut) -> pipeline.RunResult:
        options = Settings(
            model=model,
            checkpoint=checkpoint,
            offline=True,
            device=device_name,
            precision=precision,
            strength=strength,
            cut=cut,
            encoding=settings.EncodeOptions(overwrite=True),
        )
        return pipeline.restore_file(Path(clip), Path(output), options)

    restore(settings.Cut(frames=WARM_UP))
    begun = time.perf_counter()
    result = restore(settings.Cut())
    seconds = time.perf_counter() - begun
    on_device = torch.cuda.max_memory_allocated() if device.choose_device(device_name).type == "cuda" else None
    return PipelineSpeed(result.frames / seconds, resident_peak(), on_device)


def time_filtering(model: str, device_name: str, precision: str, clip: str, output: str) -> PipelineSpeed:
    """Time decoding, one of FFmpeg's filters and encoding, one after the other, with the options of a run."""

    def restore(cut: settings.Cut) -> tuple[int, float]:
        source = video.open_source(Path(clip), cut, ignore)
        waiting: deque[Frame] = deque()
        count = 0

        def pictures() -> Iterator[av.VideoFrame]:
            for frame in frames_of(source):
                waiting.append(frame)
                yield frame.picture

        def frames() -> Iterator[Frame]:
            nonlocal count
            for picture in BASELINES[model](pictures()):
                count += 1
                yield replace(waiting.popleft(), picture=picture)

        seconds = _encode(frames(), source.info, Path(output))
        return count, seconds

    restore(settings.Cut(frames=WARM_UP))
    count, seconds = restore(settings.Cut())
    return PipelineSpeed(count / seconds, resident_peak(), None)


def time_codecs(clip: str, restored: str) -> CodecSpeed:
    """Time decoding a clip, and encoding a run's output once more, each alone, with the options of a run."""
    deque(frames_of(video.open_source(Path(clip), settings.Cut(), ignore)), maxlen=0)  # warm-up
    source = video.open_source(Path(clip), settings.Cut(), ignore)
    begun = time.perf_counter()
    count = sum(1 for _ in frames_of(source))
    decoding = (time.perf_counter() - begun) / count
    source = video.open_source(Path(restored), settings.Cut(), ignore)
    pictures = list(frames_of(source))
    with tempfile.TemporaryDirectory() as folder:
        encoding = _encode(pictures, source.info, Path(folder) / "alone.mp4") / len(pictures)
    return CodecSpeed(decoder_fps=1 / decoding, encoder_fps=1 / encoding)


def _encode(frames: Iterable[Frame], info: SourceInfo, path: Path) -> float:
    """Encode frames to a file with the default options of a run; return the seconds, waiting for frames included."""
    encoding = VideoEncoding(info, path.suffix, settings.EncodeOptions(), ignore)
    encoder = encoding.open()
    with av.open(str(path), "w") as container:
        encoder.add_to(container)
        begun = time.perf_counter()
        for frame in frames:
            container.mux(encoder.encode(encoding.prepare(frame)))
        container.mux(encoder.encode(None))
        return time.perf_counter() - begun
