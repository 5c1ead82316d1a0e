"""Streams other than the video on their way into a container: copied, or converted."""

from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Protocol, cast

import av
import av.error
from av.container import OutputContainer
from av.stream import Stream
from av.subtitles.codeccontext import SubtitleCodecContext

from vdeblur.source.demux import is_cover
from vdeblur.source.video import VideoSource

KEEP, CONVERT, DROP = "keep", "convert", "drop"
MP4_LIKE = {"mp4", "mov", "ipod"}
MATROSKA_LIKE = {"matroska", "webm"}
# Samples that ALAC holds bit for bit, up to 24 bits of them, by the samples that they are decoded to.
ALAC_SAMPLES = {"u8": "s16p", "u8p": "s16p", "s16": "s16p", "s16p": "s16p", "s32": "s32p", "s32p": "s32p"}
# QuickTime's own list of languages, as FFmpeg reads it, knows these by their other name of ISO 639-2.
MOV_LANGUAGES = {"deu": "ger", "nld": "dut", "ell": "gre", "isl": "ice", "zho": "chi", "ces": "cze", "fas": "per"}
COVER_FILES = {"mjpeg": ("cover.jpg", "image/jpeg"), "png": ("cover.png", "image/png")}
COVERS = {"matroska": {"mjpeg", "png"}, "mp4": {"mjpeg", "png", "bmp"}, "ipod": {"mjpeg", "png", "bmp"}}


@dataclass(frozen=True)
class StreamPlan:
    """What becomes of one of the input's streams.

    type: FFmpeg's, or `cover`. codec: FFmpeg's name, `unknown codec` where it has none. action: `keep`, `convert` or
    `drop`. target: the codec it is converted to. reason: why it is not kept as it is; for people.
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
        """Name the stream for people."""
        return f"stream {self.index} ({self.type}, {self.codec})"


@dataclass(frozen=True)
class MuxOptions:
    """What a user may ask of the container.

    audio, subtitles: whether such streams are wanted. deterministic: the same streams make the same bytes; Matroska's
    identifiers are random otherwise.
    """

    audio: bool = True
    subtitles: bool = True
    deterministic: bool = False


class AddVideo(Protocol):
    """Adds the video stream to a container that is being set up; called more than once, for trials."""

    def __call__(self, container: OutputContainer) -> av.VideoStream:
        """Add the stream."""
        ...


def copy_packet(packet: av.Packet, stream: Stream) -> av.Packet:
    """Copy a packet and say of which stream it is, since the one it was read from may be closed."""
    copy = av.Packet(bytes(packet))
    copy.pts, copy.dts, copy.duration = packet.pts, packet.dts, packet.duration
    copy.time_base, copy.is_keyframe = packet.time_base, packet.is_keyframe
    copy.stream = stream
    return copy


class Track(Protocol):
    """A stream of the output that is made from one of the input's."""

    @property
    def stream(self) -> Stream:
        """The output's."""
        ...

    def packets(self, packet: av.Packet, offset: Fraction) -> list[av.Packet]:
        """Make the output's packets of one of the input's, `offset` seconds earlier."""
        ...

    def rest(self) -> list[av.Packet]:
        """Give what is still to come at the end."""
        ...


def open_track(
    container: OutputContainer, source: VideoSource, plan: StreamPlan, first: dict[int, av.Packet]
) -> Track | None:
    """Add what the plan asks for to a container; None where it needs no packets."""
    template = source.container.streams[plan.index]
    form = container.format.name
    if plan.type == "attachment" and form != "matroska":
        raise ValueError(f"{form} holds no attached files")
    if is_chapter_track(template, source) or is_time_code(template, source):
        return None
    if plan.type == "cover":
        return _add_cover(container, template, form, first)
    if plan.action == KEEP:
        return CopiedTrack(container, template)
    if plan.type == "subtitle":
        return TextTrack(container, template, plan.target)
    return SoundTrack(container, template, plan.target)


def _add_cover(
    container: OutputContainer, template: Stream, form: str, first: dict[int, av.Packet]
) -> "CopiedTrack | None":
    codec = codec_name(template)
    if codec not in COVERS.get(form, set()) or template.index not in first:
        raise ValueError(f"{form} holds no cover of {codec}")
    if form != "matroska":
        return CopiedTrack(container, template)
    name, mime = COVER_FILES[codec]  # Matroska's covers are attached files
    attached = container.add_attachment(
        template.metadata.get("filename", name), template.metadata.get("mimetype", mime), bytes(first[template.index])
    )
    attached.metadata.update(without_tags(template.metadata, {"filename", "mimetype", "encoder"}))
    return None


class CopiedTrack:
    """A stream as it is."""

    def __init__(self, container: OutputContainer, template: Stream) -> None:
        self.stream = container.add_stream_from_template(template, opaque=True)
        _dress(self.stream, template, container.format.name)
        if codec_name(template) == "hevc" and container.format.name in MP4_LIKE:
            self.stream.codec_context.codec_tag = "hvc1"  # Apple's players know no other name
        self.sent = False

    def packets(self, packet: av.Packet, offset: Fraction) -> list[av.Packet]:
        """Move the packet in time; of a cover, give only one."""
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
        """Nothing is held back."""
        return []


class TextTrack:
    """Subtitles from one kind of text to another."""

    def __init__(self, container: OutputContainer, template: Stream, codec: str) -> None:
        decoder = cast(SubtitleCodecContext, template.codec_context)
        decoder.open(strict=False)  # only then is its header there
        self.stream: Any = container.add_stream(codec)
        context: Any = self.stream.codec_context
        context.subtitle_header = decoder.subtitle_header or b"[Script Info]\r\nScriptType: v4.00+\r\n"
        context.time_base = self.stream.time_base = Fraction(1, 1000)
        _dress(self.stream, template, container.format.name)

    def packets(self, packet: av.Packet, offset: Fraction) -> list[av.Packet]:
        """Translate a text; its time is the packet's own."""
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
        """Nothing is held back."""
        return []


class SoundTrack:
    """Sound from one code without loss to another."""

    def __init__(self, container: OutputContainer, template: Stream, codec: str) -> None:
        assert isinstance(template, av.AudioStream)
        decoder = template.codec_context
        self.stream: Any = container.add_stream(codec, rate=decoder.sample_rate)
        context: Any = self.stream.codec_context
        context.layout = decoder.layout.name
        context.format = ALAC_SAMPLES[decoder.format.name]
        context.time_base = self.stream.time_base = Fraction(1, decoder.sample_rate)
        _dress(self.stream, template, container.format.name)

    def packets(self, packet: av.Packet, offset: Fraction) -> list[av.Packet]:
        """Decode and encode; the encoder's packets are longer than the input's."""
        made: list[av.Packet] = []
        for frame in cast(list[av.AudioFrame], packet.decode()):
            if frame.pts is not None and frame.time_base is not None:
                frame.pts -= round(offset / frame.time_base)
            made += self.stream.encode(frame)
        return made

    def rest(self) -> list[av.Packet]:
        """Give the samples that did not fill a packet."""
        return list(self.stream.encode(None))


def _dress(stream: Stream, template: Stream, form: str) -> None:
    """Copy what a stream says of itself."""
    stream.metadata.update(template.metadata)
    if form == "mov" and template.metadata.get("language") in MOV_LANGUAGES:
        stream.metadata["language"] = MOV_LANGUAGES[template.metadata["language"]]
    stream.disposition = template.disposition


def codec_name(stream: Stream) -> str:
    """Give FFmpeg's name of a stream's codec; of an attachment its file's name."""
    context = getattr(stream, "codec_context", None)
    name = getattr(context, "name", None) or getattr(stream, "name", None)
    return str(name) if name else "unknown codec"


def is_time_code(stream: Stream, source: VideoSource) -> bool:
    """Return whether a data stream is the time code of the video, which its tags hold too."""
    return stream.type == "data" and "timecode" in stream.metadata and "timecode" in source.video.metadata


def is_chapter_track(stream: Stream, source: VideoSource) -> bool:
    """Whether it is the text track in which MP4 keeps chapters, which are read as such already."""
    chapters = bool(source.container.chapters()) and source.container.format.name.startswith("mov")
    return chapters and stream.type == "data" and codec_name(stream) == "bin_data"


def without_tags(tags: dict[str, str], names: set[str]) -> dict[str, str]:
    """Return the tags without those of these names (lower case)."""
    return {key: value for key, value in tags.items() if key.lower() not in names}
