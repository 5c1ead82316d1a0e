"""Clean decoded pictures of what their container says: cut off hidden borders, remove the mark of 3D.

Borders are MP4's clean aperture and Matroska's PixelCrop. FFmpeg's decoders attach the container's 3D mark to each
picture, and encoders write it into the stream. The output's container has the mark, too; ffmpeg 9 cannot decode both.
"""

from fractions import Fraction

import av
from av.filter import Graph

from vdeblur.frame import layout_of, planar_name
from vdeblur.source.side_data import run_filter


class Cropper:
    """Crops pictures of one size and format, and removes the mark of 3D.

    cropping: columns at the left and right, lines at the top and bottom that are really cut off. As in ffmpeg, the left
    and the top one are rounded down to whole samples of chroma, and the size stays that of the container.
    """

    def __init__(self, first: av.VideoFrame, cropping: tuple[int, int, int, int], *, is_3d: bool) -> None:
        """Prepare to crop pictures like the first one; cropping that leaves nothing of it counts as none.

        is_3d: whether the container marks them as 3D.
        """
        self.like = (first.width, first.height, first.format.name)
        self.cropping = _aligned(first, cropping)
        self.graph: Graph | None = None
        if not any(self.cropping) and not is_3d:
            return
        self.graph = Graph()
        nodes = [
            self.graph.add_buffer(
                width=first.width, height=first.height, format=first.format, time_base=Fraction(1, 1000)
            )
        ]
        if any(self.cropping):
            left, right, top, bottom = self.cropping
            size = f"{first.width - left - right}:{first.height - top - bottom}"
            nodes.append(self.graph.add("crop", f"{size}:{left}:{top}:exact=1"))
        if is_3d:
            nodes.append(self.graph.add("sidedata", "mode=delete:type=STEREO3D"))
        self.graph.link_nodes(*nodes, self.graph.add("buffersink")).configure()

    def crop(self, picture: av.VideoFrame) -> av.VideoFrame:
        """Return a picture without its hidden borders; samples are shared, tags and time stay.

        Pictures of another size or format stay as they are.
        """
        if self.graph is None or (picture.width, picture.height, picture.format.name) != self.like:
            return picture
        return run_filter(self.graph, picture)


def _aligned(first: av.VideoFrame, cropping: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    """Return the cropping that whole samples of chroma allow; none where it leaves nothing of the picture."""
    left, right, top, bottom = cropping
    width, height = first.width - left - right, first.height - top - bottom
    if width < 1 or height < 1:
        return (0, 0, 0, 0)
    layout = layout_of(planar_name(first.format.name))
    if layout is not None:
        left -= left % (1 << layout.log2_width)
        top -= top % (1 << layout.log2_height + first.interlaced_frame)  # so that the first field stays the first
    return (left, first.width - width - left, top, first.height - height - top)
