"""The part of a video: which frames and packets it takes, and when it is over."""

from fractions import Fraction

import av
import pytest

from vdeblur.frame import Frame
from vdeblur.source.excerpt import SECONDS_BEYOND, Excerpt


def frame(hundredths: int) -> Frame:
    return Frame(av.VideoFrame(16, 16, "yuv420p"), hundredths, Fraction(1, 100))


def packet(hundredths: int) -> av.Packet:
    made = av.Packet(b"x")
    made.pts = made.dts = hundredths
    made.time_base = Fraction(1, 100)
    return made


def test_begin_is_inside_and_end_is_outside() -> None:
    part = Excerpt(Fraction(1), Fraction(2), None)
    assert [part.takes(frame(time)) for time in (96, 100, 196, 200)] == [False, True, True, False]
    assert part.is_over
    assert [list(part.packets(packet(time))) != [] for time in (96, 100, 199, 200)] == [False, True, True, False]


def test_reading_goes_on_for_late_packets_and_stops_well_past_the_end() -> None:
    part = Excerpt(None, Fraction(2), None)
    assert not part.is_beyond(Fraction(1000)), "frames may still come"
    part.takes(frame(200))
    assert not part.is_beyond(Fraction(2 + SECONDS_BEYOND))
    assert part.is_beyond(Fraction(2 + SECONDS_BEYOND) + 1)
    assert part.is_beyond(None)


@pytest.mark.parametrize("ends_early", [False, True])
def test_with_a_number_of_frames_packets_wait_for_them(ends_early: bool) -> None:
    part = Excerpt(None, None, 2)
    assert not [*part.packets(packet(10)), *part.packets(packet(30)), *part.packets(packet(50))]
    assert part.takes(frame(0))
    assert list(part.passed(frame(0))) == []
    assert part.takes(frame(20))
    assert [each.pts for each in part.passed(frame(20))] == [10]
    if ends_early:
        assert not part.takes(frame(40)), "two frames were asked for"
    assert [each.pts for each in part.rest()] == ([30] if ends_early else [30, 50])
