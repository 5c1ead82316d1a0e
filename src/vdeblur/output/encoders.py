"""Open an encoder, of PyAV's libraries or an external one, behind one interface."""

from typing import Protocol

import av
from av.container import OutputContainer

from vdeblur.errors import OutputError
from vdeblur.events import Warn
from vdeblur.frame import has_alpha
from vdeblur.output.codecs import HDR_ENCODERS, Coding, carries_captions, encoder_options
from vdeblur.output.external import ExternalEncoder, clock_of
from vdeblur.source.hdr import HLG, PQ
from vdeblur.source.info import SourceInfo

GLOBAL_HEADER = 0x40  # FFmpeg's AVFMT_GLOBALHEADER: the container stores the encoder's headers once, not in packets


class VideoEncoder(Protocol):
    """Encodes pictures to packets."""

    def add_to(self, container: OutputContainer) -> av.VideoStream:
        """Add the stream to a container; trials call it repeatedly, and the last call counts."""
        ...

    def stand_alone(self, container_name: str) -> None:
        """Encode as for this container (FFmpeg's name), but without one."""
        ...

    def encode(self, picture: av.VideoFrame | None) -> list[av.Packet]:
        """Encode a picture, None at the end; return the packets that are ready, with their time base."""
        ...

    def check_options(self) -> None:
        """Refuse options that the encoder did not take; call this after the container's header is written.

        Raises: OutputError.
        """
        ...

    def close(self) -> None:
        """Free the encoder's resources."""
        ...


def open_encoder(info: SourceInfo, coding: Coding, warn: Warn) -> VideoEncoder:
    """Open an encoder, and warn of properties of the input that it loses.

    Raises: OutputError where an option is unknown.
    """
    name = coding.encoder.name
    lost = list(info.hdr.dynamic) if name in HDR_ENCODERS and not coding.encoder.external else info.hdr.names
    if lost:
        kind = {PQ: "PQ", HLG: "HLG"}.get(info.color["transfer"], "colour")
        message = f"{name} does not carry {' and '.join(lost)}; the {kind} tags stay (hevc and av1 carry static data)"
        warn("W_HDR", message)
    if info.captions and not carries_captions(coding.encoder):
        warn_of_captions(name, warn)
    if coding.keep_fields and not coding.encoder.interlaced:
        warn("W_INTERLACED", f"{name} does not code fields; the lines stay interlaced, but are not flagged so")
    options = encoder_options(info, coding)
    if coding.encoder.external:
        return ExternalEncoder(info, name, coding.format, options)
    return InternalEncoder(info, coding, options)


def warn_of_captions(name: str, warn: Warn) -> None:
    """Warn that an encoder loses the closed captions of its pictures."""
    warn("W_CAPTIONS", f"{name} does not carry closed captions, so they are lost (h264 and hevc carry them)")


class InternalEncoder:
    """An encoder of PyAV's libraries."""

    def __init__(self, info: SourceInfo, coding: Coding, options: dict[str, str]) -> None:
        self.info, self.coding, self.options = info, coding, options
        self.context: av.VideoCodecContext | None = None
        self.times: list[int] = []  # pts of the frames, for encoders that only count them

    def add_to(self, container: OutputContainer) -> av.VideoStream:
        """Add the stream to a container; see VideoEncoder."""
        info, coding = self.info, self.coding
        stream = container.add_stream(coding.encoder.name, rate=info.rate, options=dict(self.options))
        assert isinstance(stream, av.VideoStream)
        self._set_up(stream.codec_context, container.format)
        stream.time_base = clock_of(container, info)
        if info.display_matrix:
            stream.set_display_matrix(info.display_matrix)
        if has_alpha(coding.format) and coding.encoder.name.startswith("libvpx"):
            stream.metadata["alpha_mode"] = "1"
        return stream

    def stand_alone(self, container_name: str) -> None:
        """Encode without a container; see VideoEncoder.

        A container and its streams refer to each other, so an encoder's memory, some 15 MB at 640x360, would stay until
        Python's garbage collector finds the cycle. An encoder without a container is freed at once.
        """
        context = av.CodecContext.create(self.coding.encoder.name, "w")
        assert isinstance(context, av.VideoCodecContext)
        context.framerate, context.bit_rate, context.options = self.info.rate, 0, dict(self.options)
        self._set_up(context, av.ContainerFormat(container_name, "w"))

    def _set_up(self, context: av.VideoCodecContext, container: av.ContainerFormat) -> None:
        info, coding = self.info, self.coding
        context.width, context.height, context.pix_fmt = info.width, info.height, coding.format
        context.time_base = 1 / info.rate if coding.encoder.counted else info.time_base
        context.thread_type = "AUTO"
        if container.flags & GLOBAL_HEADER:
            context.flags |= av.codec.context.Flags.global_header
        if info.sample_aspect_ratio:
            context.sample_aspect_ratio = info.sample_aspect_ratio
        context.color_primaries, context.color_trc = info.color["primaries"], info.color["transfer"]
        context.colorspace, context.color_range = info.color["matrix"], info.color["range"]
        if coding.keep_fields and coding.encoder.interlaced:
            context.field_order = info.field_order
            if coding.encoder.name != "ffv1":
                context.flags |= av.codec.context.Flags.interlaced_dct | av.codec.context.Flags.interlaced_me
        if coding.encoder.name == "libx265" and container.name in ("mp4", "mov", "ipod"):
            context.codec_tag = "hvc1"  # Apple's players refuse hev1
        self.context = context

    def encode(self, picture: av.VideoFrame | None) -> list[av.Packet]:
        """Encode a picture; see VideoEncoder."""
        assert self.context is not None
        if not self.coding.encoder.counted:
            return list(self.context.encode(picture))
        if picture is not None:
            assert picture.pts is not None
            self.times.append(picture.pts)
            picture.pts, picture.time_base = len(self.times) - 1, 1 / self.info.rate
        packets = list(self.context.encode(picture))
        for packet in packets:
            packet.pts, packet.dts = self._time(packet.pts), self._time(packet.dts)
            packet.time_base = self.info.time_base
        return packets

    def _time(self, number: int | None) -> int | None:
        """Return the pts of a frame by its number; negative numbers are spaced at the nominal rate."""
        if number is None or number >= 0:
            return None if number is None else self.times[number]
        return self.times[0] + round(number / self.info.rate / self.info.time_base)

    def close(self) -> None:
        """Do nothing: the context is freed with its last user."""

    def check_options(self) -> None:
        """Refuse options that the encoder did not take, since FFmpeg reports nothing.

        Raises: OutputError.
        """
        assert self.context is not None
        left = self.context.options
        unknown = [key for key, _ in self.coding.options if key in left]
        if unknown:
            name = self.coding.encoder.name
            raise OutputError(f"{name} has no option {unknown[0]!r}", f"ffmpeg -h encoder={name} lists them")
