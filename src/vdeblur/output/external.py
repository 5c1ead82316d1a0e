"""Run encoders that PyAV's libraries lack in imageio-ffmpeg's ffmpeg: raw pictures in, packets out.

Both directions use NUT, which keeps every timestamp. The output's container needs the stream's header and parameters
before the first picture; they come from a trial with one picture.
"""

import functools
import io
import queue
import re
import subprocess
import threading
from fractions import Fraction
from typing import IO, Any

import av
import av.error
import imageio_ffmpeg
from av.container import InputContainer, OutputContainer

from vdeblur.errors import OutputError
from vdeblur.source.info import SourceInfo

# Silence of ffmpeg after the last picture that ends the run. Slow encoders hold dozens of pictures back, and may work
# for minutes until the first of them is ready.
WAIT_SECONDS = 600
# Theora writes no packet for a repeated frame, but every frame needs one. NUT has no tag for VVC, and other containers
# that can be piped lose the times of its reordered frames.
UNUSABLE = {"libtheora", "libvvenc"}
LARGEST_TERM = 65535  # of the shape of pixels; setsar rounds it to terms of at most 100 otherwise
COLOR_OPTIONS = {
    "primaries": "color_primaries",
    "transfer": "color_trc",
    "matrix": "colorspace",
    "range": "color_range",
}


def clock_of(container: OutputContainer, info: SourceInfo) -> Fraction:
    """Return the time base that a container's header needs: its frame rate, where frames have a number and no time.

    AVI takes uneven times, too, in units of at most 1/600 s.
    """
    name = container.format.name
    return 1 / info.rate if name == "yuv4mpegpipe" or (name == "avi" and not info.variable_rate) else info.time_base


@functools.cache
def external_formats(name: str) -> list[str]:
    """Return the pixel formats of an encoder of imageio-ffmpeg's ffmpeg; empty where it has no such encoder."""
    output = _help(name)
    found = re.search(r"Supported pixel formats: (.*)", output)
    return found[1].split() if found and f"Encoder {name} " in output else []


def external_options(name: str) -> list[str]:
    """Return the names of the options of an encoder of imageio-ffmpeg's ffmpeg, without those that all have."""
    return re.findall(r"^ +-([\w-]+) +<", _help(name), re.MULTILINE)


@functools.cache
def _help(name: str) -> str:
    """Return what ffmpeg prints about an encoder; empty if vdeblur cannot use it."""
    if name in UNUSABLE or not re.fullmatch(r"[\w-]+", name):
        return ""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-h", f"encoder={name}"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout  # noqa: S603


class ExternalEncoder:
    """An encoder in a process of ffmpeg; see VideoEncoder."""

    def __init__(self, info: SourceInfo, name: str, pixel_format: str, options: dict[str, str]) -> None:
        """Try the encoder with one picture. pixel_format: the pixel format.

        Raises: OutputError with ffmpeg's message where it refuses.
        """
        self.info, self.name, self.pixel_format, self.options = info, name, pixel_format, options
        self.template = self._try()
        self.stream: av.VideoStream | None = None
        self.process: subprocess.Popen[bytes] | None = None
        self.pending = 0  # pictures whose packets have not come back

    def _command(self) -> list[str]:
        command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-f", "nut", "-i", "pipe:0", "-map", "0:v"]
        command += ["-c:v", self.name, "-pix_fmt", self.pixel_format]
        for key, value in self.options.items():
            command += [f"-{key}", value]
        if aspect := self.info.sample_aspect_ratio:  # PyAV's NUT has none
            command += ["-vf", f"setsar={aspect.numerator}/{aspect.denominator}:max={LARGEST_TERM}"]
        for key, option in COLOR_OPTIONS.items():
            if self.info.color[key] not in (0, 2) or key == "range":
                command += [f"-{option}", str(self.info.color[key])]
        return [*command, "-fps_mode", "passthrough", "-enc_time_base", "demux", "-copyts", "-f", "nut", "pipe:1"]

    def _try(self) -> InputContainer:
        """Encode one black picture; return the opened result."""
        raw = io.BytesIO()
        with _RawWriter(raw, self.info, self.pixel_format) as writer:
            black = av.VideoFrame(self.info.width, self.info.height, self.pixel_format)
            for plane in black.planes:
                plane.update(bytes(plane.buffer_size))  # the memory is uninitialised
            writer.write(black, 0)
        done = subprocess.run(self._command(), input=raw.getvalue(), capture_output=True, check=False)  # noqa: S603
        if done.returncode:
            lines = done.stderr.decode(errors="replace").strip().splitlines() or ["no reason given"]
            unknown = re.search(r"Unrecognized option '(?:[^']*?)([\w-]+)'", "\n".join(lines))
            if unknown:
                raise OutputError(f"{self.name} has no option {unknown[1]!r}", f"ffmpeg -h encoder={self.name}")
            reason = _without_address(lines[0])
            raise OutputError(f"{self.name} refused: {reason}", "see its options, or choose another --codec")
        return av.open(io.BytesIO(done.stdout), "r", format="nut")

    def add_to(self, container: OutputContainer) -> av.VideoStream:
        """Add a stream with the trial's parameters; see VideoEncoder."""
        stream = container.add_stream_from_template(self.template.streams.video[0], opaque=True)
        assert isinstance(stream, av.VideoStream)
        stream.time_base = clock_of(container, self.info)
        stream.codec_context.framerate = self.info.rate
        stream.metadata.clear()
        if self.info.sample_aspect_ratio:
            stream.codec_context.sample_aspect_ratio = self.info.sample_aspect_ratio
        if self.info.display_matrix:
            stream.set_display_matrix(self.info.display_matrix)
        self.stream = stream
        return stream

    def stand_alone(self, container_name: str) -> None:
        """Encode with a container in memory that is never written; see VideoEncoder."""
        self.add_to(av.open(io.BytesIO(), "w", format=container_name))

    def check_options(self) -> None:
        """Do nothing: the trial has refused unknown options."""

    def _start(self) -> subprocess.Popen[bytes]:
        pipe = subprocess.PIPE
        process = subprocess.Popen(self._command(), stdin=pipe, stdout=pipe, stderr=pipe)  # noqa: S603
        assert process.stdin is not None
        self.packets: queue.SimpleQueue[av.Packet | BaseException | None] = queue.SimpleQueue()
        self.errors: list[bytes] = []
        self.threads = [threading.Thread(target=work, daemon=True) for work in (self._read_packets, self._read_errors)]
        self.process = process
        for thread in self.threads:
            thread.start()
        self.writer = _RawWriter(process.stdin, self.info, self.pixel_format)
        return process

    def _read_packets(self) -> None:
        assert self.process is not None
        try:
            with av.open(self.process.stdout, "r", format="nut") as container:
                for packet in container.demux(video=0):
                    if packet.size:
                        self.packets.put(_detached(packet))
        except (av.error.FFmpegError, OSError) as error:
            self.packets.put(error)
        self.packets.put(None)

    def _read_errors(self) -> None:
        assert self.process is not None
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.errors.append(line)
            del self.errors[:-20]

    def encode(self, picture: av.VideoFrame | None) -> list[av.Packet]:
        """Send a picture, and return the packets that are ready; see VideoEncoder.

        Raises: OutputError where ffmpeg fails.
        """
        process = self.process or self._start()
        try:
            if picture is not None:
                assert picture.pts is not None
                self.writer.write(picture, picture.pts)
                self.pending += 1
            else:
                self.writer.__exit__(None, None, None)
                assert process.stdin is not None
                process.stdin.close()
        except (av.error.FFmpegError, OSError) as error:
            raise self._failure() from error
        return self._ready(wait=picture is None)

    def _ready(self, wait: bool) -> list[av.Packet]:
        """Return the packets that are ready; wait: all that are left, until ffmpeg ends.

        Raises: OutputError where ffmpeg fails, is silent for WAIT_SECONDS, or ends without a packet for each picture.
        """
        ready = []
        try:
            while (packet := self.packets.get(wait, WAIT_SECONDS if wait else None)) is not None:
                if isinstance(packet, BaseException):
                    raise self._failure() from packet
                packet.stream = self.stream
                ready.append(packet)
            if self.process is not None and self.process.wait(WAIT_SECONDS):
                raise self._failure()
        except (queue.Empty, subprocess.TimeoutExpired) as error:
            if wait:
                message = f"{self.name} has written nothing for {WAIT_SECONDS} seconds"
                raise OutputError(message, "choose another --codec or a faster --preset") from error
        self.pending -= len(ready)
        if wait and self.pending:
            raise OutputError(f"{self.name} ended with {self.pending} pictures missing", "choose another --codec")
        return ready

    def _failure(self) -> OutputError:
        lines = b"".join(self.errors).decode(errors="replace").strip().splitlines()
        reason = _without_address(lines[0]) if lines else "its ffmpeg ended early"
        return OutputError(f"{self.name} failed: {reason}", "choose another --codec")

    def close(self) -> None:
        """Kill the process."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            for thread in self.threads:
                thread.join(WAIT_SECONDS)
            for pipe in (self.process.stdout, self.process.stderr):
                if pipe is not None:
                    pipe.close()


class _RawWriter:
    """Writes raw pictures with their times as NUT."""

    def __init__(self, file: IO[bytes], info: SourceInfo, pixel_format: str) -> None:
        self.info = info
        self.container = av.open(_Unseekable(file), "w", format="nut")
        stream = self.container.add_stream("rawvideo", rate=info.rate)
        context: Any = stream.codec_context
        context.width, context.height, context.pix_fmt = info.width, info.height, pixel_format
        context.time_base = stream.time_base = info.time_base
        context.color_range, context.colorspace = info.color["range"], info.color["matrix"]
        context.color_primaries, context.color_trc = info.color["primaries"], info.color["transfer"]
        self.stream: Any = stream

    def __enter__(self) -> "_RawWriter":
        return self

    def __exit__(self, *ignored: object) -> None:
        self.container.close()

    def write(self, picture: av.VideoFrame, pts: int) -> None:
        picture.pts, picture.time_base = pts, self.info.time_base
        self.container.mux(self.stream.encode(picture))


class _Unseekable:
    """A file with `write` alone, so that PyAV does not seek."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file

    def write(self, data: bytes) -> int:
        return self.file.write(data)


def _without_address(line: str) -> str:
    """Return a line of ffmpeg's without "[encoder @ 0x55c8] "."""
    return re.sub(r"^(\[[^]]*\] )+", "", line)


def _detached(packet: av.Packet) -> av.Packet:
    """Return a copy of a packet that outlives its container."""
    copy = av.Packet(bytes(packet))
    copy.pts, copy.duration, copy.is_keyframe = packet.pts, packet.duration, packet.is_keyframe
    copy.dts = packet.dts if packet.dts is not None else packet.pts
    copy.time_base = packet.time_base or Fraction(1, 1)
    return copy
