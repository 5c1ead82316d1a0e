"""`vdeblur compare --mode profile`: one row or column of pixels over time."""

from pathlib import Path

import av
import numpy

from tests import clips
from vdeblur.look import slices


def picture(path: Path) -> numpy.ndarray:
    with av.open(str(path)) as container:
        return next(container.decode(video=0)).to_ndarray(format="rgb24")


def clip_pair(tmp_path: Path) -> tuple[Path, Path]:
    a = clips.make(tmp_path / "a.mkv", pix_fmt="bgr0", frames=8)
    return a, clips.make(tmp_path / "b.mkv", pix_fmt="bgr0", frames=8, extra=("-vf", "negate"))


def contains(whole: numpy.ndarray, part: numpy.ndarray) -> bool:
    height, width = part.shape[:2]
    places = [whole.shape[0] - height + 1, whole.shape[1] - width + 1]
    possible = numpy.ones(places, bool)
    for y, x in ((0, 0), (height - 1, width - 1), (height // 2, width // 2), (height // 3, width // 4)):
        possible &= (whole[y : y + places[0], x : x + places[1]] == part[y, x]).all(-1)
    return any(numpy.array_equal(whole[y : y + height, x : x + width], part) for y, x in numpy.argwhere(possible))


def test_a_row_over_time(vdeblur, tmp_path: Path) -> None:
    a, b = clip_pair(tmp_path)
    output = tmp_path / "out.png"
    result = vdeblur("compare", a, b, "--mode", "profile", "--row", "5", "--truth", a, "-o", output)
    assert result.exit_code == 0, result.output
    shown = picture(output)
    repeats = slices.LEAST_LENGTH // 8
    for clip in (a, b):
        assert contains(shown, clips.rgb(clip)[:, 5].repeat(repeats, 0)), "time runs downwards"
    assert shown.shape[0] > 3 * slices.LEAST_LENGTH


def test_a_column_over_time(vdeblur, tmp_path: Path) -> None:
    a, b = clip_pair(tmp_path)
    assert vdeblur("compare", a, b, "--column", "63", "-o", tmp_path / "out.png").exit_code == 0
    shown = picture(tmp_path / "out.png")
    for clip in (a, b):
        column = clips.rgb(clip)[:, :, 63].repeat(slices.LEAST_LENGTH // 8, 0).transpose(1, 0, 2)
        assert contains(shown, column), "time runs to the right"


def test_profiles_that_cannot_be_written(vdeblur, tmp_path: Path) -> None:
    a, b = clip_pair(tmp_path)
    (tmp_path / "there.png").write_text("kept")
    cases = [
        (("--row", "48"), 2, "there is no row 48 in 64x48"),
        (("--column", "64"), 2, "use 0 to 63"),
        (("--row", "1", "--column", "1"), 2, "both given"),
        (("--mode", "side", "--row", "1"), 2, "belong to --mode profile"),
        (("--mode", "profile", "-o", tmp_path / "out.mkv"), 4, "name it *.png"),
        (("--mode", "profile", "-o", tmp_path / "there.png"), 4, "exists already"),
        (("--mode", "profile", "--truth", tmp_path / "none.mkv", "-o", tmp_path / "out.png"), 3, "no such file"),
    ]
    for options, status, message in cases:
        output = () if "-o" in options else ("-o", tmp_path / "out.png")
        result = vdeblur("compare", a, b, *options, *output)
        assert result.exit_code == status, (options, result.output)
        assert message in result.stderr, result.stderr
        assert result.stderr.strip().count("\n") == 0, "one line"
        assert not (tmp_path / "out.png").exists()
    assert (tmp_path / "there.png").read_text() == "kept"


def test_the_python_api_writes_a_profile(tmp_path: Path) -> None:
    import vdeblur

    a, b = clip_pair(tmp_path)
    assert vdeblur.compare(a, b, tmp_path / "out.png", "profile", column=3) == 8
