"""Doubts about the records of earlier runs: their numbers of frames must fit the source."""

from collections import Counter
from collections.abc import Iterable

from vdeblur.run.segment_record import SegmentRecord
from vdeblur.run.segments import Division
from vdeblur.source import counting
from vdeblur.source.pictures import PICTURE_RATE, PictureSource
from vdeblur.source.video import Source

LEAST_SHARE = 0.9  # of the frames that the rate asks for; a video with some gaps still has more


def doubtful_segments(records: Iterable[SegmentRecord], source: Source, division: Division) -> list[int]:
    """Return the segments whose records have another number of frames than the source seems to have there.

    A record lies beside the output, where others can write. Pictures and packets are counted; of files too large to be
    read once more, the rate tells how many frames are too few. The last segment of a video is always doubtful, since
    only decoding shows that nothing follows.
    """
    if isinstance(source, PictureSource):
        places = range(source.first, source.first + len(source.files))
        counts = Counter(division.index_of(place / PICTURE_RATE) for place in places)
        return [record.index for record in records if record.frames != counts[record.index]]
    records = list(records)
    times = counting.frame_times(source) if records else None
    if times is not None:
        counts = Counter(map(division.index_of, times))
        return [record.index for record in records if record.last or record.frames != counts[record.index]]
    least = 0.0
    if division.length is not None and not source.info.variable_rate:
        least = LEAST_SHARE * float(division.length * source.info.rate) - 1
    return [record.index for record in records if record.last or record.frames < least]
