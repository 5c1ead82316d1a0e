"""Copy or convert one of the input's other streams into a container."""

import contextlib
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Protocol, cast

import av
import av.error
from av.bitstream import BitStreamFilterContext
from av.container import OutputContainer
from av.stream import Stream
from av.subtitles.codeccontext import SubtitleCodecContext

from vdeblur.source.demux import is_cover
from vdeblur.source.video import VideoSource

KEEP, CONVERT, DROP = "keep", "convert", "drop"
MP4_LIKE = {"mp4", "mov", "ipod"}
MATROSKA_LIKE = {"matroska", "webm"}
# Codec to the formats in which it takes samples of up to 16 and up to 24 bits.
SOUND_CODECS = {
    "alac": ("s16p", "s32p"),
    "flac": ("s16", "s32"),
    "pcm_s16le": ("s16", "s16"),
    "pcm_s24le": ("s32", "s32"),
}
SHORT_SAMPLES = {"u8", "u8p", "s16", "s16p"}  # formats of decoded samples that 16 bits hold
USUAL_LAYOUTS = {1: "mono", 2: "stereo", 3: "2.1", 4: "4.0", 5: "5.0", 6: "5.1", 7: "6.1", 8: "7.1"}
STAND_IN = "aac"  # any codec of sound that Matroska holds
# FFmpeg's list of QuickTime's languages has these under their other code of ISO 639-2.
MOV_LANGUAGES = {"deu": "ger", "nld": "dut", "ell": "gre", "isl": "ice", "zho": "chi", "ces": "cze", "fas": "per"}
STAND_INS = ("mov_text", "subrip", "dvbsub", "webvtt")  # subtitles, of which every container with subtitles holds one
COVER_FILES = {"mjpeg": ("cover.jpg", "image/jpeg"), "png": ("cover.png", "image/png")}
COVERS = {"matroska": {"mjpeg", "png"}, "mp4": {"mjpeg", "png", "bmp"}, "ipod": {"mjpeg", "png", "bmp"}}


@dataclass(frozen=True)
class StreamPlan:
    """The decision for one of the input's streams.

    type: FFmpeg's, or `cover`. codec: FFmpeg's name, or `unknown codec`. action: `keep`, `convert` or `drop`. reason:
    why it is not kept unchanged, for messages. target: the codec to convert it to.
    """

    index: int
    type: str
    codec: str
    language: str | None
    action: str
    reason: str = ""
    target: str = ""

    @property
    def name(self) -> str:
        """The stream's name in messages."""
        return f"stream {self.index} ({self.type}, {self.codec})"


@dataclass(frozen=True)
class MuxOptions:
    """A user's options of the container.

    audio, subtitles: whether to keep such streams. deterministic: make the same bytes of the same streams; otherwise
    Matroska's identifiers are random. blu_ray: write MPEG-TS as Blu-ray discs hold it (.m2ts). suffix: the
    output's, in messages; "" if the container was chosen by its name.
    """

    audio: bool = True
    subtitles: bool = True
    deterministic: bool = False
    blu_ray: bool = False
    suffix: str = ""


class AddVideo(Protocol):
    """Adds the video stream to a container before its header is written; trials call it repeatedly."""

    def __call__(self, container: OutputContainer) -> av.VideoStream:
        """Add the stream."""
        ...


def copy_packet(packet: av.Packet, stream: Stream) -> av.Packet:
    """Copy a packet and assign it to a stream, since the container it was read from may be closed."""
    copy = av.Packet(bytes(packet))
    copy.pts, copy.dts, copy.duration = packet.pts, packet.dts, packet.duration
    copy.time_base, copy.is_keyframe = packet.time_base, packet.is_keyframe
    copy.stream = stream
    return copy


class Track(Protocol):
    """A stream of the output, made from one of the input's."""

    @property
    def stream(self) -> Stream:
        """The output's stream."""
        ...

    def packets(self, packet: av.Packet, offset: Fraction) -> list[av.Packet]:
        """Return the output's packets for a packet of the input. offset: seconds to subtract from its times."""
        ...

    def rest(self) -> list[av.Packet]:
        """Return the packets that are left at the end."""
        ...


def open_track(
    container: OutputContainer, source: VideoSource, plan: StreamPlan, first: dict[int, av.Packet]
) -> Track | None:
    """Add the stream of a plan to a container; return None where it needs no packets.

    Raises: ValueError or FFmpegError where the container refuses it.
    """
    template = source.container.streams[plan.index]
    container_name = container.format.name
    if plan.type == "attachment" and container_name != "matroska":
        raise ValueError(f"{container_name} holds no attached files")
    if is_chapter_track(template, source) or is_time_code(template, source):
        return None
    if plan.type == "cover":
        return _add_cover(container, template, container_name, first)
    if plan.action == KEEP:
        return CopiedTrack(container, template)
    if plan.type == "subtitle":
        return TextTrack(container, template, plan.target)
    return SoundTrack(container, template, plan.target)


def _add_cover(
    container: OutputContainer, template: Stream, container_name: str, first: dict[int, av.Packet]
) -> "CopiedTrack | None":
    codec = codec_name(template)
    if codec not in COVERS.get(container_name, set()) or template.index not in first:
        raise ValueError(f"{container_name} holds no cover of {codec}")
    if container_name != "matroska":
        return CopiedTrack(container, template)
    name, mime = COVER_FILES[codec]  # Matroska's covers are attached files
    attached = container.add_attachment(
        template.metadata.get("filename", name), template.metadata.get("mimetype", mime), bytes(first[template.index])
    )
    attached.metadata.update(without_tags(template.metadata, {"filename", "mimetype", "encoder"}))
    return None


class CopiedTrack:
    """A stream whose packets are copied."""

    def __init__(self, container: OutputContainer, template: Stream) -> None:
        self.stream = _copied_stream(container, template)
        _copy_description(self.stream, template, container.format.name)
        if codec_name(template) == "hevc" and container.format.name in MP4_LIKE:
            self.stream.codec_context.codec_tag = "hvc1"  # Apple's players refuse hev1
        self.sent = False

    def packets(self, packet: av.Packet, offset: Fraction) -> list[av.Packet]:
        """Shift the packet's times; of a cover, return only the first packet."""
        if is_cover(self.stream) and self.sent:
            return []
        self.sent = True
        packet.stream = self.stream
        if is_cover(self.stream):
            packet.pts = packet.dts = 0
            return [packet]
        shift = round(offset / packet.time_base) if packet.time_base else 0
        packet.pts = None if packet.pts is None else packet.pts - shift
        packet.dts = None if packet.dts is None else packet.dts - shift
        return [packet]

    def rest(self) -> list[av.Packet]:
        """Return nothing: no packet is held back."""
        return []


def _copied_stream(container: OutputContainer, template: Stream) -> Stream:
    """Add a stream for copied packets.

    Also of subtitles without a decoder, such as TTML and teletext, and of audio that FFmpeg's muxer takes but PyAV
    refuses: WMA in Matroska.

    Raises: ValueError or FFmpegError where the container refuses it; some only do when the header is written.
    """
    if template.type == "subtitle" and getattr(template, "codec_context", None) is None:
        for name in STAND_INS:
            with contextlib.suppress(ValueError):
                stream = container.add_mux_stream(name, time_base=template.time_base)
                BitStreamFilterContext("null", template, stream)  # replaces all parameters by the template's
                return stream
        raise ValueError(f"{container.format.name} holds no subtitles")
    try:
        stream = container.add_stream_from_template(template, opaque=True)
    except ValueError:
        if template.type != "audio" or container.format.name != "matroska":  # others write what players do not know
            raise
        stream = container.add_mux_stream(STAND_IN, time_base=template.time_base)
        BitStreamFilterContext("null", template, stream)  # replaces all parameters of the stand-in by the template's
        return stream
    if isinstance(template, av.AudioStream):
        layout = known_layout(template.codec_context)
        if layout != template.codec_context.layout.name:
            cast(av.AudioCodecContext, stream.codec_context).layout = layout
    return stream


def known_layout(context: av.AudioCodecContext) -> str:
    """Return the name of a codec's channel layout; where it has only a number of channels (AVI), the usual one."""
    name, channels = context.layout.name, context.layout.nb_channels
    return USUAL_LAYOUTS.get(channels, name) if name == f"{channels} channels" else name


class TextTrack:
    """Subtitles converted from one text format to another."""

    def __init__(self, container: OutputContainer, template: Stream, codec: str) -> None:
        decoder = cast(SubtitleCodecContext, template.codec_context)
        decoder.open(strict=False)  # reads its header
        self.stream: Any = container.add_stream(codec)
        context: Any = self.stream.codec_context
        context.subtitle_header = decoder.subtitle_header or b"[Script Info]\r\nScriptType: v4.00+\r\n"
        context.time_base = self.stream.time_base = Fraction(1, 1000)
        _copy_description(self.stream, template, container.format.name)

    def packets(self, packet: av.Packet, offset: Fraction) -> list[av.Packet]:
        """Convert the packet's text, and shift its time; its duration stays."""
        if packet.pts is None or packet.time_base is None:
            return []
        made: list[av.Packet] = []
        text = cast(SubtitleCodecContext, packet.stream.codec_context).decode2(packet)
        if text is not None:
            out = self.stream.codec_context.encode_subtitle(text)
            out.stream, out.time_base = self.stream, packet.time_base
            out.pts = out.dts = packet.pts - round(offset / packet.time_base)
            out.duration = packet.duration
            made.append(out)
        return made

    def rest(self) -> list[av.Packet]:
        """Return nothing: no packet is held back."""
        return []


class SoundTrack:
    """Audio converted to a lossless codec."""

    def __init__(self, container: OutputContainer, template: Stream, codec: str) -> None:
        assert isinstance(template, av.AudioStream)
        decoder = template.codec_context
        self.stream: Any = container.add_stream(codec, rate=decoder.sample_rate)
        context: Any = self.stream.codec_context
        context.layout = self.layout = known_layout(decoder)
        context.format = SOUND_CODECS[codec][decoder.format.name not in SHORT_SAMPLES]
        context.time_base = self.stream.time_base = Fraction(1, decoder.sample_rate)
        _copy_description(self.stream, template, container.format.name)

    def packets(self, packet: av.Packet, offset: Fraction) -> list[av.Packet]:
        """Decode and encode; the encoder's packets are longer than the input's."""
        made: list[av.Packet] = []
        decoder = cast(av.AudioCodecContext, packet.stream.codec_context)
        if not decoder.is_open and decoder.layout.name != self.layout:
            decoder.layout = self.layout
        for frame in cast(list[av.AudioFrame], packet.decode()):
            if frame.pts is not None and frame.time_base is not None:
                frame.pts -= round(offset / frame.time_base)
            made += self.stream.encode(frame)
        return made

    def rest(self) -> list[av.Packet]:
        """Return the last samples, which did not fill a packet."""
        return list(self.stream.encode(None))


def _copy_description(stream: Stream, template: Stream, container_name: str) -> None:
    """Copy a stream's metadata and disposition."""
    stream.metadata.update(template.metadata)
    if container_name == "mov" and template.metadata.get("language") in MOV_LANGUAGES:
        stream.metadata["language"] = MOV_LANGUAGES[template.metadata["language"]]
    stream.disposition = template.disposition


def codec_name(stream: Stream) -> str:
    """Return FFmpeg's name of a stream's codec, or an attachment's file name."""
    context = getattr(stream, "codec_context", None)
    name = getattr(context, "name", None) or getattr(stream, "name", None)
    return str(name) if name else "unknown codec"


def is_time_code(stream: Stream, source: VideoSource) -> bool:
    """Return whether a data stream is the video's time code, which its tags have, too."""
    return stream.type == "data" and "timecode" in stream.metadata and "timecode" in source.video.metadata


def is_chapter_track(stream: Stream, source: VideoSource) -> bool:
    """Return whether a stream is the text track of MP4's chapters, which FFmpeg reads as chapters already."""
    chapters = bool(source.container.chapters()) and source.container.format.name.startswith("mov")
    return chapters and stream.type == "data" and codec_name(stream) == "bin_data"


def without_tags(tags: dict[str, str], names: set[str]) -> dict[str, str]:
    """Return the tags without some, by their lower-case names."""
    return {key: value for key, value in tags.items() if key.lower() not in names}
