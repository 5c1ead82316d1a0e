"""Store packets that can be read only once, such as those of a pipe."""

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av

from vdeblur.files import fresh_file


class Spool:
    """Packets in a file, to be read again later.

    facts: of each packet its size, pts, dts, duration, whether it is a key frame, its stream and time base.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = fresh_file(path)
        self.facts: list[tuple[int, int | None, int | None, int | None, bool, av.stream.Stream, Fraction | None]] = []

    def keep(self, packet: av.Packet) -> None:
        """Store a packet."""
        self.file.write(packet)
        self.facts.append(
            (packet.size, packet.pts, packet.dts, packet.duration, packet.is_keyframe, packet.stream, packet.time_base)
        )

    def packets(self) -> Iterator[av.Packet]:
        """Yield the packets in the order in which they were stored."""
        self.file.close()
        with self.path.open("rb") as file:
            for size, pts, dts, duration, key, stream, base in self.facts:
                packet = av.Packet(file.read(size))
                packet.pts, packet.dts, packet.duration, packet.is_keyframe = pts, dts, duration, key
                packet.stream = stream
                if base is not None:
                    packet.time_base = base
                yield packet
