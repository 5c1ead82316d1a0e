"""Doubts about the records of earlier runs: their numbers of frames must fit the source."""

from collections import Counter
from collections.abc import Iterable

from vdeblur.run.segment_record import SegmentRecord
from vdeblur.run.segments import Division
from vdeblur.source.pictures import PICTURE_RATE, PictureSource
from vdeblur.source.video import Source

LEAST_SHARE = 0.9  # of the frames that the rate asks for; a video with some gaps still has more


def doubtful_segments(records: Iterable[SegmentRecord], source: Source, division: Division) -> list[int]:
    """Return the segments whose records have too few frames, or for pictures another number of them.

    A record lies beside the output, where others can write. A segment that is doubted wrongly, as one with large gaps,
    is only restored once more.
    """
    if isinstance(source, PictureSource):
        places = range(source.first, source.first + len(source.files))
        counts = Counter(division.index_of(place / PICTURE_RATE) for place in places)
        return [record.index for record in records if record.frames != counts[record.index]]
    if division.length is None or source.info.variable_rate:
        return []
    least = LEAST_SHARE * float(division.length * source.info.rate) - 1
    return [record.index for record in records if record.frames < least and not record.last]
