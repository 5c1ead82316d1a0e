"""Cut off the columns and lines that a container hides: MP4's clean aperture, Matroska's PixelCrop."""

from fractions import Fraction

import av
from av.filter import Graph

from vdeblur.frame import layout_of, planar_name


class Cropper:
    """Crops pictures of one size and format.

    cropping: columns at the left and right, lines at the top and bottom that are really cut off. As in ffmpeg, the left
    and the top one are rounded down to whole samples of chroma, and the size stays that of the container.
    """

    def __init__(self, first: av.VideoFrame, cropping: tuple[int, int, int, int]) -> None:
        """Prepare to crop pictures like the first one; cropping that leaves nothing of it counts as none."""
        left, right, top, bottom = cropping
        width, height = first.width - left - right, first.height - top - bottom
        self.like = (first.width, first.height, first.format.name)
        self.cropping = (0, 0, 0, 0)
        self.graph: Graph | None = None
        if not any(cropping) or width < 1 or height < 1:
            return
        layout = layout_of(planar_name(first.format.name))
        if layout is not None:
            left -= left % (1 << layout.log2_width)
            # The lines of both fields begin with the same samples of chroma.
            top -= top % (1 << layout.log2_height + first.interlaced_frame)
        self.cropping = (left, first.width - width - left, top, first.height - height - top)
        self.graph = Graph()
        source = self.graph.add_buffer(
            width=first.width, height=first.height, format=first.format, time_base=Fraction(1, 1000)
        )
        crop = self.graph.add("crop", f"{width}:{height}:{left}:{top}:exact=1")
        self.graph.link_nodes(source, crop, self.graph.add("buffersink")).configure()

    def crop(self, picture: av.VideoFrame) -> av.VideoFrame:
        """Return a picture without what is hidden; its samples are shared, its tags and time stay.

        Pictures of another size or format stay as they are.
        """
        if self.graph is None or (picture.width, picture.height, picture.format.name) != self.like:
            return picture
        pts, time_base = picture.pts, picture.time_base
        picture.pts, picture.time_base = 0, Fraction(1, 1000)
        self.graph.push(picture)
        cropped = self.graph.pull()
        assert isinstance(cropped, av.VideoFrame)
        cropped.pts = pts
        if time_base is not None:
            cropped.time_base = time_base
        return cropped
