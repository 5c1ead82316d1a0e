"""The output's container, but for encoding its video: which of the input's other streams it takes, and how.

`plan_streams` says beforehand what becomes of each stream: kept (its packets are copied), converted without losing what
it says, or dropped, with the reason. Nothing is believed that was not tried: the header is written to memory, first
with each stream alone, then with all of them and the video together. `Muxer` does what the plan says.
"""

import io
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol, cast

import av
import av.error
from av.container import InputContainer, OutputContainer
from av.stream import Stream
from av.subtitles.codeccontext import SubtitleCodecContext

from vdeblur.errors import OutputError
from vdeblur.source.demux import SECONDS_BEYOND, Rebase, is_cover, open_container, packet_seconds
from vdeblur.source.pictures import PictureSource
from vdeblur.source.video import VideoSource

KEEP, CONVERT, DROP = "keep", "convert", "drop"
MP4_LIKE = {"mp4", "mov", "ipod"}
MATROSKA_LIKE = {"matroska", "webm"}
SUFFIXES = {"matroska": ".mkv", "webm": ".webm", "mp4": ".mp4", "mov": ".mov", "ipod": ".m4v", "mpegts": ".ts"}
TEXT = {"subrip", "srt", "ass", "ssa", "mov_text", "webvtt", "text", "stl", "sami", "subviewer", "microdvd", "mpl2"}
STYLED = {"ass", "ssa"}  # say where text stands and in which font, which the others cannot
TEXT_CODECS = {"mp4": "mov_text", "mov": "mov_text", "ipod": "mov_text", "matroska": "subrip", "webm": "webvtt"}
# Samples that ALAC holds bit for bit, up to 24 bits of them, by the samples that they are decoded to.
ALAC_SAMPLES = {"u8": "s16p", "u8p": "s16p", "s16": "s16p", "s16p": "s16p", "s32": "s32p", "s32p": "s32p"}
EXACT_PCM = {"pcm_u8", "pcm_s8", "pcm_s16le", "pcm_s16be", "pcm_s24le", "pcm_s24be", "pcm_dvd", "pcm_bluray"}
# Decoders that share a codec, by the name of one of them.
SAME_CODEC = {"srt": "subrip", "ssa": "ass", "libvorbis": "vorbis", "libopus": "opus", "libdav1d": "av1"}
SAME_CODEC |= dict.fromkeys(("mp1", "mp2", "mp2float", "mp3float", "mp3adu"), "mp3")  # MPEG-TS tells them not apart
# QuickTime's own list of languages, as FFmpeg reads it, knows these by their other name of ISO 639-2.
MOV_LANGUAGES = {"deu": "ger", "nld": "dut", "ell": "gre", "isl": "ice", "zho": "chi", "ces": "cze", "fas": "per"}
COVER_FILES = {"mjpeg": ("cover.jpg", "image/jpeg"), "png": ("cover.png", "image/png")}
COVERS = {"matroska": {"mjpeg", "png"}, "mp4": {"mjpeg", "png", "bmp"}, "ipod": {"mjpeg", "png", "bmp"}}
CONTAINER_TAGS = {"major_brand", "minor_version", "compatible_brands", "encoder"}  # say how the input was written
# Of the video: no longer true once it is encoded anew (mkvmerge's statistics), or written by the muxer itself.
VIDEO_TAGS = {"encoder", "alpha_mode", "duration", "bps", "number_of_frames", "number_of_bytes"}
FIRST_PACKETS_BYTES = 8_000_000  # how far a first packet of each stream is looked for
DAMAGED_PACKET = (av.error.InvalidDataError, av.error.ArgumentError)  # what muxers say of a packet, not of the disk


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


Source = VideoSource | PictureSource


def container_format(path: Path) -> str:
    """Give FFmpeg's name of the container that a file's name asks for.

    Raises: OutputError where its suffix is not known.
    """
    try:
        with av.open(f"x{path.suffix}", "w") as container:  # nothing is written before the header is
            return container.format.name
    except (ValueError, av.error.FFmpegError) as error:
        hint = "name it *.mp4, *.mkv, *.mov or *.webm"
        raise OutputError(f"a video cannot be written as {path.suffix or 'a file without a suffix'}", hint) from error


def plan_streams(source: Source, form: str, options: MuxOptions, add_video: AddVideo | None = None) -> list[StreamPlan]:
    """Plan what becomes of every stream of a source but the video that is encoded; writes nothing.

    form: FFmpeg's name of the container. add_video: makes the last trial one of everything together.
    """
    if isinstance(source, PictureSource):
        return []
    first = _first_packets(source)
    plans = [_plan(stream, source, form, options, first) for stream in source.extras]
    if add_video is not None and not _fits(source, form, plans, first, add_video):
        plans = _fitting(source, form, plans, first, add_video)
    return plans


def drop_all(source: Source, reason: str) -> list[StreamPlan]:
    """Plan to drop every stream but the video."""
    names = [(stream.index, stream.type, codec_name(stream)) for stream in source.extras]
    return [StreamPlan(index, kind, codec, None, DROP, reason) for index, kind, codec in names]


def _plan(
    stream: Stream, source: VideoSource, form: str, options: MuxOptions, first: dict[int, av.Packet]
) -> StreamPlan:
    kind = "cover" if is_cover(stream) else stream.type
    plan = StreamPlan(stream.index, kind, codec_name(stream), stream.metadata.get("language"), KEEP)
    if (kind == "audio" and not options.audio) or (kind == "subtitle" and not options.subtitles):
        return replace(plan, action=DROP, reason="left out as asked")
    if _is_time_code(stream, source):
        return _plan_time_code(plan, form)
    if _is_chapter_track(stream, source):
        return (
            plan
            if form in MP4_LIKE | {"matroska"}
            else replace(plan, action=DROP, reason=f"holds chapters, which {SUFFIXES.get(form, form)} does not")
        )
    if _fits(source, form, [plan], first):
        return plan
    converted = _conversion(plan, stream, form)
    if converted is not None and _fits(source, form, [converted], first):
        return converted
    reason = f"cannot be held by {SUFFIXES.get(form, form)}"
    if form != "matroska" and _fits(source, "matroska", [plan], first):
        reason += "; .mkv can"
    return replace(plan, action=DROP, reason=reason)


def _plan_time_code(plan: StreamPlan, form: str) -> StreamPlan:
    """Plan what becomes of a track that only repeats the video's tag `timecode`, which is copied."""
    if form in MP4_LIKE:
        return replace(plan, codec="tmcd")  # these containers write the track anew from the tag
    if form == "matroska":
        return replace(plan, codec="tmcd", action=CONVERT, target="tag", reason="becomes a tag of the video")
    return replace(plan, codec="tmcd", action=DROP, reason=f"cannot be held by {SUFFIXES.get(form, form)}; .mkv can")


def _conversion(plan: StreamPlan, stream: Stream, form: str) -> StreamPlan | None:
    """Give a plan that converts a stream without losing what it says; None where there is none."""
    if plan.type == "subtitle" and plan.codec in TEXT and form in TEXT_CODECS:
        lost = ", without its places and fonts (.mkv keeps them)" if plan.codec in STYLED else ""
        target = TEXT_CODECS[form]
        return replace(plan, action=CONVERT, target=target, reason=f"becomes {target}{lost}")
    if plan.type == "audio" and _is_exact(stream) and form in MP4_LIKE:
        return replace(plan, action=CONVERT, target="alac", reason="becomes alac, which is without loss, too")
    return None


def _is_exact(stream: Stream) -> bool:
    """Whether sound has no loss, and at most 24 bits."""
    name = codec_name(stream)
    if name == "flac":
        header = cast(av.AudioCodecContext, stream.codec_context).extradata or bytes(34)
        return ((header[12] & 1) << 4 | header[13] >> 4) + 1 <= 24  # STREAMINFO, RFC 9639 Sec. 8.2
    return name in EXACT_PCM


def _fitting(
    source: VideoSource, form: str, plans: list[StreamPlan], first: dict[int, av.Packet], add_video: AddVideo
) -> list[StreamPlan]:
    """Find those that fit together, in their order.

    Raises: OutputError where not even the video alone does.
    """
    _try(source, form, [], first, add_video)
    fitting: list[StreamPlan] = []
    for plan in plans:
        if plan.action != DROP and not _fits(source, form, [*fitting, plan], first, add_video):
            plan = replace(plan, action=DROP, reason=f"does not fit into {SUFFIXES.get(form, form)} beside the others")
        fitting.append(plan)
    return fitting


def _fits(
    source: VideoSource,
    form: str,
    plans: list[StreamPlan],
    first: dict[int, av.Packet],
    add_video: AddVideo | None = None,
) -> bool:
    try:
        _try(source, form, plans, first, add_video)
    except (ValueError, av.error.FFmpegError, OSError):
        return False
    return True


def _try(
    source: VideoSource,
    form: str,
    plans: list[StreamPlan],
    first: dict[int, av.Packet],
    add_video: AddVideo | None = None,
) -> None:
    """Write a file with these streams, and the first packet of each, to memory.

    Without add_video it is read, too: MPEG-TS takes what it does not know, and nobody knows it afterwards.
    """
    file = io.BytesIO()
    with av.open(file, "w", format=form, container_options=container_options(form, MuxOptions())) as trial:
        if add_video is not None:
            add_video(trial)
        tracks = {plan.index: _track(trial, source, plan, first) for plan in plans if plan.action != DROP}
        trial.start_encoding()
        if add_video is not None:
            return
        written = 0
        for index, track in tracks.items():
            packet = first.get(index)
            if track is not None and packet is not None:
                made = [*track.packets(_copy_packet(packet, packet.stream), Fraction(0)), *track.rest()]
                written += bool(made)
                trial.mux(made)
    if written == len(plans) == 1:
        _read_back(file, form, plans[0])
    elif len(plans) == 1 and plans[0].type == "data":
        raise ValueError("nobody knows whether a data stream without a packet survives")


def _read_back(file: io.BytesIO, form: str, plan: StreamPlan) -> None:
    with av.open(io.BytesIO(file.getvalue()), format=form) as result:
        found = [codec_name(stream) for stream in result.streams]
    expected = plan.target or plan.codec
    if not any(SAME_CODEC.get(name, name) == SAME_CODEC.get(expected, expected) for name in found):
        raise ValueError(f"{form} gives {found} back for {expected}")


def _copy_packet(packet: av.Packet, stream: Stream) -> av.Packet:
    """Copy a packet and say of which stream it is, since the one it was read from may be closed."""
    copy = av.Packet(bytes(packet))
    copy.pts, copy.dts, copy.duration = packet.pts, packet.dts, packet.duration
    copy.time_base, copy.is_keyframe = packet.time_base, packet.is_keyframe
    copy.stream = stream
    return copy


def container_options(form: str, options: MuxOptions, clocks: Sequence[Fraction] = ()) -> dict[str, str]:
    """Give FFmpeg's options of a container; clocks: time bases of its streams."""
    chosen = {}
    if form in MP4_LIKE:
        # When each stream begins is written in this unit, a millisecond by itself; then all that follows would be off.
        common = math.lcm(1000, *(clock.denominator for clock in clocks))
        chosen["movie_timescale"] = str(common if common < 1 << 31 else clocks[0].denominator)
    if form == "yuv4mpegpipe":
        chosen["strict"] = "unofficial"  # more than 8 bits
    if form in MATROSKA_LIKE:
        # Matroska needs no decoding times; let FFmpeg not move late streams because of negative ones.
        chosen["avoid_negative_ts"] = "disabled"
    if options.deterministic:
        chosen["fflags"] = "+bitexact"
    return chosen


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


def _track(
    container: OutputContainer, source: VideoSource, plan: StreamPlan, first: dict[int, av.Packet]
) -> Track | None:
    """Add what the plan asks for to a container; None where it needs no packets."""
    template = source.container.streams[plan.index]
    form = container.format.name
    if plan.type == "attachment" and form != "matroska":
        raise ValueError(f"{form} holds no attached files")
    if _is_chapter_track(template, source) or _is_time_code(template, source):
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
    attached.metadata.update(_without(template.metadata, {"filename", "mimetype", "encoder"}))
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


class Muxer:
    """An output container: its video stream, and the input's other streams as planned.

    plans: what becomes of them. misplaced: how many packets of them no container takes. Nothing of the target is
    touched before everything together was tried in memory.
    """

    def __init__(
        self,
        target: str,
        form: str,
        source: Source,
        add_video: AddVideo,
        options: MuxOptions,
        *,
        offset: Fraction = Fraction(0),
        end: Fraction | None = None,
    ) -> None:
        """Open the target and write its header.

        form: FFmpeg's name of the container. offset: seconds on the input's clock that become zero, for parts that
        are cut out; end: the same clock's at which they end.

        Raises: OutputError, and whatever av says where the video alone is refused.
        """
        self.offset, self.misplaced = offset, 0
        self.counted, self.frames = form == "yuv4mpegpipe", 0  # y4m knows no times, only how many frames there are
        self.others: Iterator[av.Packet] = iter(())
        self.next: av.Packet | None = None
        self.last_dts: dict[int, int] = {}
        self.covers: list[av.Packet] = []
        self.plans = plan_streams(source, form, options, add_video)
        if isinstance(source, PictureSource):
            _try_video(form, add_video)
        clocks = [source.info.time_base, *(stream.time_base or Fraction(1, 1000) for stream in source.extras)]
        self.container = av.open(target, "w", format=form, container_options=container_options(form, options, clocks))
        try:
            self.video = add_video(self.container)
            self.tracks = self._add_tracks(source)
            self._copy_tags(source, end)
            self.container.start_encoding()
            for cover in self.covers:
                self.copy(cover)
        except BaseException:
            self.container.close()
            raise

    def _add_tracks(self, source: Source) -> dict[int, Track]:
        if isinstance(source, PictureSource):
            return {}
        first = _first_packets(source)
        tracks = {}
        for plan in self.plans:
            track = None if plan.action == DROP else _track(self.container, source, plan, first)
            if track is not None:
                tracks[plan.index] = track
                if is_cover(track.stream):
                    self.covers.append(first[plan.index])
        return tracks

    def _copy_tags(self, source: Source, end: Fraction | None) -> None:
        if isinstance(source, PictureSource):
            return
        self.container.metadata.update(_without(source.container.metadata, CONTAINER_TAGS))
        kept = _without(source.video.metadata, VIDEO_TAGS)
        self.video.metadata.update({key: value for key, value in kept.items() if not key.startswith("_STATISTICS")})
        self.video.disposition = source.video.disposition
        chapters = _cut_chapters(source.container.chapters(), self.offset, end)
        if chapters:
            self.container.set_chapters(chapters)

    def take_others(self, packets: Iterable[av.Packet]) -> None:
        """Copy these packets, in their order, between those of the video that are muxed from now on."""
        self.others = iter(packets)
        self.next = next(self.others, None)

    def mux_video(self, packets: Iterable[av.Packet]) -> None:
        """Add encoded video, and before each packet what is due of the others."""
        for packet in packets:
            packet.stream = self.video
            if self.counted:
                packet.pts = packet.dts = self.frames
                packet.time_base = self.video.time_base or Fraction(1)
                self.frames += 1
            due = packet.dts if packet.dts is not None else packet.pts
            if due is not None and packet.time_base is not None:
                self._copy_until(due * packet.time_base + self.offset)
            self.container.mux(packet)

    def _copy_until(self, seconds: Fraction | None) -> None:
        while self.next is not None:
            time = packet_seconds(self.next)
            if seconds is not None and time is not None and time > seconds:
                return
            self.copy(self.next)
            self.next = next(self.others, None)

    def copy(self, packet: av.Packet) -> None:
        """Add a packet of one of the input's other streams; of those that are dropped nothing is added."""
        if packet.stream.index in self.tracks:
            track = self.tracks[packet.stream.index]
            try:
                made = track.packets(packet, self.offset)
            except DAMAGED_PACKET:
                self.misplaced += 1
                return
            self._mux(track, made)

    def _mux(self, track: Track, packets: list[av.Packet]) -> None:
        # Two texts may begin at one time; two pieces of sound cannot, unless Matroska's millisecond makes it one.
        equal = track.stream.type in ("subtitle", "data") or self.container.format.name in MATROSKA_LIKE
        step = 0 if equal else 1
        for packet in packets:
            if packet.dts is not None:
                if packet.dts < self.last_dts.get(track.stream.index, packet.dts - step) + step:
                    self.misplaced += 1  # a jump back, as where two files were joined: no container takes it
                    continue
                self.last_dts[track.stream.index] = packet.dts
            try:
                self.container.mux(packet)
            except DAMAGED_PACKET:
                self.misplaced += 1

    def close(self) -> None:
        """Add what is left of the other streams, and finish the file."""
        self._copy_until(None)
        for track in self.tracks.values():
            self._mux(track, track.rest())
        self.container.close()

    def abort(self) -> None:
        """Close the file as it is."""
        self.container.close()


def _try_video(form: str, add_video: AddVideo) -> None:
    with av.open(io.BytesIO(), "w", format=form) as trial:
        add_video(trial)
        trial.start_encoding()


def other_packets(source: VideoSource, begin: Fraction | None, end: Fraction | None) -> Iterator[av.Packet]:
    """Read a source's file once more, for the packets of all streams but its video, in the order of the file.

    begin, end: seconds on the file's clock; packets that begin there are given, None for no bound. Times that jump
    back, where files were joined, are moved on as VideoSource does.
    """
    with open_container(source.path) as container:
        if begin is not None and source.seekable:
            container.seek(int(begin * av.time_base))
        rebase = Rebase()
        for packet in _readable(container):
            if packet.dts is None:
                continue
            rebase.move(packet)
            if packet.stream.index == source.video.index:
                continue
            seconds = packet_seconds(packet)
            if seconds is not None and end is not None and seconds > end + SECONDS_BEYOND:
                return
            if seconds is None or ((begin is None or seconds >= begin) and (end is None or seconds < end)):
                yield packet


def _readable(container: InputContainer) -> Iterator[av.Packet]:
    """Give packets as far as the file can be read."""
    packets = container.demux()
    while True:
        try:
            yield next(packets)
        except (StopIteration, av.error.FFmpegError):
            return


def _first_packets(source: VideoSource) -> dict[int, av.Packet]:
    """Read the first packet of each stream but the video, as far as they stand near the beginning."""
    wanted = {stream.index for stream in source.extras}
    found: dict[int, av.Packet] = {}
    if not wanted or source.is_pipe:  # which can be read once only
        return found
    size = 0
    with open_container(source.path) as container:
        for packet in _readable(container):
            size += packet.size
            if packet.size and packet.stream.index in wanted:
                stream = source.container.streams[packet.stream.index]
                found.setdefault(stream.index, _copy_packet(packet, stream))
            if len(found) == len(wanted) or size > FIRST_PACKETS_BYTES:
                break
    return found


def codec_name(stream: Stream) -> str:
    """Give FFmpeg's name of a stream's codec; of an attachment its file's name."""
    context = getattr(stream, "codec_context", None)
    name = getattr(context, "name", None) or getattr(stream, "name", None)
    return str(name) if name else "unknown codec"


def _is_time_code(stream: Stream, source: VideoSource) -> bool:
    return stream.type == "data" and "timecode" in stream.metadata and "timecode" in source.video.metadata


def _is_chapter_track(stream: Stream, source: VideoSource) -> bool:
    """Whether it is the text track in which MP4 keeps chapters, which are read as such already."""
    chapters = bool(source.container.chapters()) and source.container.format.name.startswith("mov")
    return chapters and stream.type == "data" and codec_name(stream) == "bin_data"


def _cut_chapters(chapters: list[Any], offset: Fraction, end: Fraction | None) -> list[Any]:
    """Give the chapters of a part, in its own time; offset and end in seconds on the input's clock."""
    cut = []
    for chapter in chapters:
        base = Fraction(chapter["time_base"])
        shift = round(offset / base)
        last = chapter["end"] if end is None else min(chapter["end"], round(end / base))
        if last > max(chapter["start"], shift):  # it begins within the part
            cut.append({**chapter, "start": max(chapter["start"] - shift, 0), "end": last - shift})
    return cut


def _without(tags: dict[str, str], names: set[str]) -> dict[str, str]:
    return {key: value for key, value in tags.items() if key.lower() not in names}
