"""Closed captions (ATSC A/53, CEA-608 and 708), which a video stream holds beside its samples."""

from fractions import Fraction

import av
import av.error
from av.filter import Graph


class CaptionDetector:
    """Recognises pictures with captions. Not thread-safe."""

    def __init__(self) -> None:
        self.kind: tuple[int, int, str] | None = None

    def finds(self, picture: av.VideoFrame) -> bool:
        """Return whether a picture has captions."""
        kind = (picture.width, picture.height, picture.format.name)
        if kind != self.kind:
            self.kind, self.graph = kind, Graph()
            source = self.graph.add_buffer(
                width=picture.width, height=picture.height, format=picture.format, time_base=Fraction(1, 1000)
            )
            # A filter looks, since PyAV's own side_data fails on kinds that it does not know.
            select = self.graph.add("sidedata", "mode=select:type=A53_CC")
            self.graph.link_nodes(source, select, self.graph.add("buffersink")).configure()
        pts, time_base = picture.pts, picture.time_base
        picture.pts, picture.time_base = 0, Fraction(1, 1000)
        try:
            self.graph.push(picture)
            self.graph.pull()
        except av.error.BlockingIOError:
            return False
        finally:
            picture.pts = pts
            if time_base is not None:
                picture.time_base = time_base
        return True
