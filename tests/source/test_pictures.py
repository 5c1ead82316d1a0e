"""Pictures as people have them: photographs with EXIF, mixed folders, single files."""

import json
import os
import struct
import zlib
from pathlib import Path

import av
import numpy
import pytest

from tests import clips
from vdeblur.errors import ExitStatus
from vdeblur.source.picture_header import read_header
from vdeblur.source.pictures import natural_key, read_picture
from vdeblur.source.video import open_source

ORIENTATIONS = range(1, 9)
IDENTITY = ("-m", "identity")


def exif(orientation: int, order: str = "<") -> bytes:
    """Return EXIF data with one tag, its orientation, as cameras write them."""
    mark = b"II*\0" if order == "<" else b"MM\0*"
    return mark + struct.pack(f"{order}IHHHIHHI", 8, 1, 0x112, 3, 1, orientation, 0, 0)


def still(path: Path, number: int = 0, size: str = "64x48", pix_fmt: str = "", **extra: object) -> Path:
    """Write one picture of ffmpeg's test clip."""
    drawing = f"testsrc2=size={size}:rate=25,trim=start_frame={number}"
    form = ("-pix_fmt", pix_fmt) if pix_fmt else ()
    more = [part for key, value in extra.items() for part in (f"-{key}", value)]
    clips.ffmpeg("-f", "lavfi", "-i", drawing, "-frames:v", 1, "-update", 1, *form, *more, path)
    return path


def tag_jpeg(path: Path, orientation: int, order: str = "<") -> Path:
    """Insert EXIF into a JPEG, behind its first marker."""
    data, tag = path.read_bytes(), b"Exif\0\0" + exif(orientation, order)
    path.write_bytes(data[:2] + b"\xff\xe1" + struct.pack(">H", len(tag) + 2) + tag + data[2:])
    return path


def tag_png(path: Path, name: bytes, content: bytes) -> Path:
    """Insert a chunk into a PNG, behind its header."""
    data = path.read_bytes()
    chunk = struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
    path.write_bytes(data[:33] + chunk + data[33:])
    return path


def photo(path: Path, orientation: int, number: int = 0, size: str = "64x48", pix_fmt: str = "yuvj444p") -> Path:
    """Write a photograph: JPEG or PNG with an EXIF orientation."""
    if path.suffix == ".png":
        return tag_png(still(path, number, size), b"eXIf", exif(orientation, ">"))
    return tag_jpeg(still(path, number, size, pix_fmt, **{"q:v": 2}), orientation)


def icc_profile() -> bytes:
    """Return the header of an ICC profile without tags; decoders hand it on unread."""
    header = bytearray(132)
    header[:4], header[8:12], header[12:24], header[36:40] = (
        struct.pack(">I", 132),
        b"\4\0\0\0",
        b"mntrRGB XYZ ",
        b"acsp",
    )
    return bytes(header)


def near(a: numpy.ndarray, b: numpy.ndarray) -> bool:
    """Check that two pictures are equal up to the rounding of different colour converters."""
    return a.shape == b.shape and int(abs(a.astype(int) - b).max()) <= 3


def sizes(folder: Path) -> set[tuple[int, int]]:
    return {clips.facts(path).size for path in folder.iterdir()}


def one_line(result: object, status: ExitStatus) -> str:
    assert result.exit_code == status, result.output  # type: ignore[attr-defined]
    lines = [line for line in result.stderr.splitlines() if line]  # type: ignore[attr-defined]
    assert "Traceback" not in result.output  # type: ignore[attr-defined]
    return " ".join(lines)


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_photographs_with_exif_come_out_upright(vdeblur, tmp_path: Path, suffix: str, orientation: int) -> None:
    """A1: every JPEG and PNG with EXIF ended a run with an internal error."""
    folder, output = tmp_path / "photos", tmp_path / "out"
    folder.mkdir()
    for number in range(2):
        photo(folder / f"IMG_{number:04}{suffix}", orientation, number)
    result = vdeblur("run", folder, output, *IDENTITY)
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in output.iterdir()) == ["IMG_0000.png", "IMG_0001.png"]
    for path in output.iterdir():
        assert near(clips.ffmpeg_rgb(path), clips.ffmpeg_rgb(folder / f"{path.stem}{suffix}")), "as ffmpeg turns it"
        header = read_header(path)
        assert header is not None
        assert header.orientation == 1, "viewers must not turn it again"


def test_each_picture_has_its_own_orientation(vdeblur, tmp_path: Path) -> None:
    """A1: the first picture's orientation counted for all."""
    folder, output = tmp_path / "photos", tmp_path / "out.mkv"
    folder.mkdir()
    for number, orientation in enumerate((1, 3, 4)):
        photo(folder / f"{number}.jpg", orientation, number)
    assert vdeblur("run", folder, output, *IDENTITY, "--lossless").exit_code == 0
    shown = clips.rgb(output)
    for number in range(3):
        assert near(shown[number], clips.ffmpeg_rgb(folder / f"{number}.jpg"))


@pytest.mark.parametrize(("pix_fmt", "size"), [("yuvj422p", "64x48"), ("yuvj420p", "62x46"), ("yuvj420p", "64x48")])
def test_subsampled_chroma_stays_in_place_when_turned(tmp_path: Path, pix_fmt: str, size: str) -> None:
    """A1: cameras store 4:2:2, which FFmpeg's filters do not turn."""
    for orientation in ORIENTATIONS:
        path = photo(tmp_path / f"{orientation}.jpg", orientation, size=size, pix_fmt=pix_fmt)
        picture, _ = read_picture(path)
        plain, _ = read_picture(photo(tmp_path / "plain.jpg", 1, size=size, pix_fmt=pix_fmt))
        turned = {1: lambda p: p, 2: numpy.fliplr, 3: lambda p: numpy.rot90(p, 2), 4: numpy.flipud,
                  5: lambda p: p.swapaxes(0, 1), 6: lambda p: numpy.rot90(p, 3),
                  7: lambda p: numpy.rot90(p, 2).swapaxes(0, 1), 8: numpy.rot90}[orientation]  # fmt: skip
        expected = turned(plain.reformat(format="yuv444p").to_ndarray().transpose(1, 2, 0))
        found = picture.reformat(format="yuv444p").to_ndarray().transpose(1, 2, 0)
        assert found.shape == expected.shape
        assert abs(found.astype(int) - expected).mean() < 3, (orientation, pix_fmt)


def test_odd_sizes_are_turned_too(vdeblur, tmp_path: Path) -> None:
    """A1: at odd sizes, the last chroma samples cover half a block, which is the first one after a turn."""
    folder = tmp_path / "photos"
    folder.mkdir()
    clips.make(tmp_path / "odd.mkv", size="61x47", frames=1, pix_fmt="yuv444p")
    clips.ffmpeg("-i", tmp_path / "odd.mkv", "-pix_fmt", "yuvj420p", "-q:v", 2, "-update", 1, folder / "a.jpg")
    tag_jpeg(folder / "a.jpg", 6)
    assert vdeblur("run", folder, tmp_path / "out", *IDENTITY).exit_code == 0
    assert sizes(tmp_path / "out") == {(47, 61)}


@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
def test_icc_profiles_are_kept(vdeblur, tmp_path: Path, name: str) -> None:
    """A1: a PNG with an ICC profile ended the process with SIGSEGV."""
    folder = tmp_path / "photos"
    folder.mkdir()
    path, profile = still(folder / name), icc_profile()
    if name.endswith(".png"):
        tag_png(path, b"iCCP", b"display p3\0\0" + zlib.compress(profile))
    else:
        data, segment = path.read_bytes(), b"ICC_PROFILE\0\1\1" + profile
        path.write_bytes(data[:2] + b"\xff\xe2" + struct.pack(">H", len(segment) + 2) + segment + data[2:])
    for arguments in (("run", folder, tmp_path / "out", *IDENTITY), ("probe", folder), ("probe", path)):
        result = vdeblur(*arguments)
        assert result.exit_code == 0, result.output
    data = (tmp_path / "out" / "a.png").read_bytes()
    place = data.index(b"iCCP")
    (length,) = struct.unpack(">I", data[place - 4 : place])
    content = data[place + 4 : place + 4 + length]
    assert zlib.decompress(content[content.index(b"\0") + 2 :]) == profile


def test_video_with_unknown_side_data_is_read(vdeblur, tmp_path: Path) -> None:
    """A1: MJPEG with EXIF in every frame, and PNG with ICC profiles in Matroska, ended with internal errors."""
    for number in range(3):
        photo(tmp_path / f"IMG_{number:04}.jpg", 6, number)
        tag_png(still(tmp_path / f"f{number:04}.png", number), b"iCCP", b"p\0\0" + zlib.compress(icc_profile()))
    mjpeg, png = tmp_path / "exif.mov", tmp_path / "icc.mkv"
    clips.ffmpeg("-framerate", 25, "-i", tmp_path / "IMG_%04d.jpg", "-c", "copy", mjpeg)
    clips.ffmpeg("-framerate", 25, "-i", tmp_path / "f%04d.png", "-c", "copy", png)
    for source in (mjpeg, png):
        output = tmp_path / f"{source.stem}.mp4"
        for arguments in (
            ("run", source, output, *IDENTITY),
            ("probe", source),
            ("compare", source, output, "--metrics"),
        ):
            result = vdeblur(*arguments)
            assert result.exit_code == 0, result.output
        assert len(clips.facts(output).seconds) == 3


@pytest.mark.parametrize(("degrees", "mirrored"), [(90, False), (180, False), (270, False), (90, True), (0, True)])
def test_a_rotated_video_becomes_upright_pictures(vdeblur, tmp_path: Path, degrees: int, mirrored: bool) -> None:
    """A1: pictures out of a rotated video lay on their side."""
    plain = clips.make(tmp_path / "plain.mp4", frames=2, codec=("-c:v", "libx264", "-qp", "0"), pix_fmt="yuv444p")
    source, output = tmp_path / "turned.mp4", tmp_path / "out"
    flip = ("-display_hflip",) if mirrored else ()
    clips.ffmpeg("-display_rotation", degrees, *flip, "-i", plain, "-c", "copy", source)
    assert vdeblur("run", source, output, "--pictures", *IDENTITY).exit_code == 0
    assert near(clips.ffmpeg_rgb(output / "000001.png"), clips.ffmpeg_rgb(source))


def test_different_sizes_end_before_the_work(vdeblur, tmp_path: Path) -> None:
    """A1: a deviating size was found only when its turn came, and what was finished was lost."""
    for name, sizes_and_turns in {"size": (("64x48", 1), ("62x48", 1)), "turn": (("64x48", 1), ("64x48", 6))}.items():
        folder, output = tmp_path / name, tmp_path / f"{name}.out"
        folder.mkdir()
        for number, (size, orientation) in enumerate(sizes_and_turns):
            photo(folder / f"{number}.jpg", orientation, size=size)
        line = one_line(vdeblur("run", folder, output, *IDENTITY), ExitStatus.INPUT)
        assert "1.jpg" in line
        assert "the first picture 64x48" in line
        assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith((".", name))) == [name]


def test_other_kinds_of_files_are_named(vdeblur, tmp_path: Path) -> None:
    """R22: files of other kinds were left out without a word, and a folder of them was "no pictures"."""
    folder = tmp_path / "mix"
    folder.mkdir()
    for name in ("a1.png", "a2.png", "a3.bmp"):
        still(folder / name)
    (folder / "a4.heic").write_bytes(b"\0" * 40)
    (folder / "notes.txt").write_text("hello")
    (folder / "Thumbs.db").write_text("")
    result = vdeblur("run", folder, tmp_path / "out", *IDENTITY)
    assert result.exit_code == 0, result.output
    assert "2 other files are skipped: a4.heic, notes.txt" in " ".join(result.stderr.split())
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a1.png", "a2.png", "a3.png"]
    (tmp_path / "heic").mkdir()
    (folder / "a4.heic").rename(tmp_path / "heic" / "a4.heic")
    line = one_line(vdeblur("run", tmp_path / "heic", tmp_path / "out2", *IDENTITY), ExitStatus.INPUT)
    assert "only .heic" in line
    assert "convert" in line


def test_pictures_of_several_formats_share_one(vdeblur, tmp_path: Path) -> None:
    """A1: a folder with 4:2:0, 4:4:4 and grey JPEGs, or with RGB and RGBA PNGs, ended at the first that differed."""
    jpegs, pngs = tmp_path / "jpegs", tmp_path / "pngs"
    for folder in (jpegs, pngs):
        folder.mkdir()
    for number, pix_fmt in enumerate(("yuvj420p", "yuvj444p", "gray")):
        still(jpegs / f"{number}.jpg", number, pix_fmt="yuvj444p" if pix_fmt == "gray" else pix_fmt, **{"q:v": 2})
    for number, pix_fmt in enumerate(("rgb24", "gray", "rgb48be", "rgba")):
        still(pngs / f"{number}.png", number, pix_fmt=pix_fmt)
    for folder in (jpegs, pngs):
        output = tmp_path / f"{folder.name}.out"
        result = vdeblur("run", folder, f"{output}/", *IDENTITY)
        assert result.exit_code == 0, result.output
        for path in folder.iterdir():
            written = clips.ffmpeg_rgb(output / f"{path.stem}.png")
            bound = 10 if path.name == "0.jpg" else 2  # chroma of 4:2:0 is interpolated by another filter
            assert abs(written.astype(int) - clips.ffmpeg_rgb(path)).mean() < bound, path.name


@pytest.mark.parametrize(
    "name", ["sharp.png", "sharp.jpg", "sharp.tiff", "sharp.webp", "sharp.bmp", "folder/", "folder"]
)
def test_one_picture_as_input(vdeblur, tmp_path: Path, name: str) -> None:
    """A1: one picture as INPUT gave a video, or an error of FFmpeg's."""
    source = photo(tmp_path / "photo.jpg", 6)
    result = vdeblur("run", source, f"{tmp_path}/{name}", *IDENTITY)
    assert result.exit_code == 0, result.output
    output = tmp_path / "folder" if name.startswith("folder") else tmp_path / name
    written = next(output.iterdir()) if output.is_dir() else output
    assert written.stem == ("photo" if output.is_dir() else "sharp")
    header = read_header(written)
    assert header is not None
    assert (header.width, header.height, header.orientation) == (48, 64, 1)
    assert abs(clips.ffmpeg_rgb(written).astype(int) - clips.ffmpeg_rgb(source)).mean() < 2


def test_one_picture_beside_its_input_and_refusals(vdeblur, tmp_path: Path) -> None:
    """A1: the result of one picture stands beside it; a video does not fit into one picture."""
    source = photo(tmp_path / "photo.jpg", 1)
    assert vdeblur("run", source, "--suffix", "_sharp", *IDENTITY).exit_code == 0
    assert clips.facts(tmp_path / "photo_sharp.jpg").size == (64, 48)
    line = one_line(vdeblur("run", source, tmp_path / "photo_sharp.jpg", *IDENTITY), ExitStatus.OUTPUT)
    assert "exists already" in line
    video = clips.make(tmp_path / "clip.mkv", frames=2)
    line = one_line(vdeblur("run", video, tmp_path / "one.png", *IDENTITY), ExitStatus.OUTPUT)
    assert "more than one frame" in line
    assert not (tmp_path / "one.png").exists()


def test_two_names_that_become_one_end_before_the_work(vdeblur, tmp_path: Path) -> None:
    """A1: a.jpg beside a.png was found only when its turn came."""
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a.jpg", "a.png", "b.png"):
        still(folder / name)
    line = one_line(vdeblur("run", folder, tmp_path / "out", *IDENTITY), ExitStatus.OUTPUT)
    assert "a.jpg and a.png would both be written as a.png" in line
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
    assert vdeblur("run", folder, tmp_path / "out.mkv", *IDENTITY).exit_code == 0


@pytest.mark.parametrize("mode", ["html", "side"])
def test_one_picture_is_compared(vdeblur, tmp_path: Path, mode: str) -> None:
    """A1: --compare with one picture."""
    source = photo(tmp_path / "photo.jpg", 6)
    result = vdeblur("run", source, tmp_path / "out.png", *IDENTITY, "--compare", mode)
    assert result.exit_code == 0, result.output
    name = "out_html.html" if mode == "html" else "out_side.mp4"
    assert (tmp_path / name).exists()
    if mode == "side":
        assert clips.facts(tmp_path / name).size == (96, 64)


def test_exif_video_keeps_its_rotation(vdeblur, tmp_path: Path) -> None:
    """A1: MJPEG whose orientation is in EXIF alone is upright in players, and so is the output."""
    for number in range(2):
        photo(tmp_path / f"IMG_{number:04}.jpg", 6, number)
    source = tmp_path / "exif.mov"
    clips.ffmpeg("-framerate", 25, "-i", tmp_path / "IMG_%04d.jpg", "-c", "copy", source)
    for output in (tmp_path / "out.mp4", tmp_path / "pictures"):
        pictures = () if output.suffix else ("--pictures",)
        assert vdeblur("run", source, output, *pictures, *IDENTITY, "--crf", 4).exit_code == 0
    for path in (tmp_path / "out.mp4", tmp_path / "pictures" / "000001.png"):
        shown, expected = clips.ffmpeg_rgb(path), clips.ffmpeg_rgb(tmp_path / "IMG_0000.jpg")
        assert shown.shape == expected.shape
        assert abs(shown.astype(int) - expected).mean() < 6, path.name


def test_one_picture_into_a_folder_that_exists(vdeblur, tmp_path: Path) -> None:
    """A1: it stands there under its own name, beside what is there."""
    source, folder = photo(tmp_path / "photo.jpg", 6), tmp_path / "out"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    assert vdeblur("run", source, folder, *IDENTITY).exit_code == 0
    assert sorted(path.name for path in folder.iterdir()) == ["notes.txt", "photo.png"]
    line = one_line(vdeblur("run", source, folder, *IDENTITY), ExitStatus.OUTPUT)
    assert "exists already" in line
    assert vdeblur("run", still(tmp_path / "scan.tiff"), folder, *IDENTITY).exit_code == 0
    assert (folder / "scan.tiff").exists()


def test_an_animation_in_a_list_is_a_video(vdeblur, tmp_path: Path) -> None:
    """A1: only one picture keeps a picture's suffix."""
    source, other = tmp_path / "anim.png", clips.make(tmp_path / "in.mp4", frames=2)
    clips.ffmpeg("-f", "lavfi", "-i", "testsrc2=s=64x48:r=10", "-frames:v", 4, "-f", "apng", source)
    assert vdeblur("run", source, other, f"{tmp_path}/out/", *IDENTITY).exit_code == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["anim.mkv", "in.mp4"]


def test_a_network_with_neighbours_says_what_one_picture_means(vdeblur, tmp_path: Path) -> None:
    """A1: a network that needs neighbours says what it can do with one frame."""
    source = still(tmp_path / "photo.png")
    result = vdeblur("run", source, tmp_path / "out.png", "-m", "lite")
    assert result.exit_code == 0, result.output
    assert "help of its neighbours" in " ".join(result.stderr.split())
    assert "help of its" not in vdeblur("run", source, tmp_path / "same.png", *IDENTITY).stderr


def test_animated_png_stays_a_video(vdeblur, tmp_path: Path) -> None:
    """A1: one picture as INPUT must not turn an animation into its first frame."""
    source = tmp_path / "anim.png"
    clips.ffmpeg("-f", "lavfi", "-i", "testsrc2=s=64x48:r=10", "-frames:v", 4, "-f", "apng", source)
    assert vdeblur("run", source, tmp_path / "out.mkv", *IDENTITY).exit_code == 0
    assert len(clips.facts(tmp_path / "out.mkv").seconds) == 4


def test_a_video_is_not_one_picture(vdeblur, tmp_path: Path) -> None:
    """A1: the hint names what works."""
    source = clips.make(tmp_path / "in.mp4", frames=2)
    line = one_line(vdeblur("run", source, tmp_path / "out.jpg", *IDENTITY), ExitStatus.OUTPUT)
    pattern = line.partition("name a pattern: ")[2].rstrip(")")
    assert vdeblur("run", source, pattern, *IDENTITY).exit_code == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["000001.png", "000002.png"]


def test_several_pictures_go_into_a_folder(vdeblur, tmp_path: Path) -> None:
    """A1: each picture of a list keeps its name and kind."""
    for name in ("a.jpg", "b.png"):
        photo(tmp_path / name, 6)
    assert vdeblur("run", tmp_path / "a.jpg", tmp_path / "b.png", f"{tmp_path}/out/", *IDENTITY).exit_code == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.jpg", "b.png"]
    assert sizes(tmp_path / "out") == {(48, 64)}
    facts = json.loads(vdeblur("probe", tmp_path / "a.jpg", "--json").stdout)
    assert (facts["width"], facts["height"], facts["rotation"]) == (48, 64, 0)
    assert facts["output"]["file"].endswith("a_sharp.jpg")


def test_upright_pictures_are_compared_with_their_video(vdeblur, tmp_path: Path) -> None:
    """A1: the input is turned, and its upright pictures are not."""
    plain = clips.make(tmp_path / "plain.mp4", frames=2, codec=("-c:v", "libx264", "-qp", "0"), pix_fmt="yuv444p")
    source = tmp_path / "turned.mp4"
    clips.ffmpeg("-display_rotation", 90, "-i", plain, "-c", "copy", source)
    assert vdeblur("run", source, tmp_path / "out", "--pictures", *IDENTITY, "--compare", "html").exit_code == 0
    result = vdeblur("compare", source, tmp_path / "out", "--metrics")
    psnr = [float(line.split()[2]) for line in result.stdout.splitlines()[1:3]]
    assert min(psnr) > 40, result.stdout


def test_a_second_run_leaves_no_stale_pictures(vdeblur, tmp_path: Path) -> None:
    """B: -y onto a folder of pictures left those of the longer earlier run."""
    source, output = clips.make(tmp_path / "in.mkv", frames=6), tmp_path / "out"
    run = ("run", source, output, "--pictures", *IDENTITY)
    assert vdeblur(*run).exit_code == 0
    result = vdeblur(*run, "--frames", 3, "-y")
    assert result.exit_code == 0
    assert "keeps" not in result.stderr
    assert sorted(path.name for path in output.iterdir()) == [f"{number:06}.png" for number in (1, 2, 3)]
    (output / "notes.txt").write_text("mine")
    still(output / "holiday.png")
    assert vdeblur(*run, "--frames", 2, "-y").exit_code == 0
    kept = ["000001.png", "000002.png", "holiday.png", "notes.txt"]
    assert sorted(path.name for path in output.iterdir()) == kept, "only the sequence is replaced"
    tiffs = tmp_path / "tiffs"
    tiffs.mkdir()
    still(tiffs / "000007.tiff")
    assert vdeblur("run", tiffs, output, *IDENTITY, "-y").exit_code == 0
    assert sorted(path.name for path in output.iterdir()) == ["000007.tiff", "holiday.png", "notes.txt"]


def test_pictures_of_others_stay(vdeblur, tmp_path: Path) -> None:
    """B: -y replaced a folder of nothing but PNG and TIFF whole, and with it the user's own pictures."""
    source, output = clips.make(tmp_path / "in.mkv", frames=2), tmp_path / "out"
    output.mkdir()
    others = ["12.png", "0000003.png", "IMG_000004.png", "holiday.tiff", "000005.jpg"]
    for name in [*others, "000001.png", "000009.png", "1000000.tiff"]:
        still(output / name)
    before = {name: (output / name).read_bytes() for name in others}
    events = vdeblur("run", source, output, "--pictures", *IDENTITY, "-y", "--json").stdout
    assert {path.name for path in output.iterdir()} == {*others, "000001.png", "000002.png"}
    assert {name: (output / name).read_bytes() for name in others} == before
    warnings = [json.loads(line) for line in events.splitlines() if '"W_KEPT"' in line and '"warning"' in line]
    assert len(warnings) == 1
    assert "keeps 5 pictures" in warnings[0]["message"]


def test_a_pattern_replaces_its_own_pictures(vdeblur, tmp_path: Path) -> None:
    """B: so do names by a pattern."""
    source, output = clips.make(tmp_path / "in.mkv", frames=2), tmp_path / "out"
    output.mkdir()
    for name in ("a_007.png", "b_007.png", "007.png", "a_7.png"):
        still(output / name)
    assert vdeblur("run", source, output / "a_%03d.png", *IDENTITY, "-y").exit_code == 0
    assert sorted(path.name for path in output.iterdir()) == [
        "007.png",
        "a_001.png",
        "a_002.png",
        "a_7.png",
        "b_007.png",
    ]


def test_pictures_of_the_input_are_replaced_by_name(vdeblur, tmp_path: Path) -> None:
    """B: of a folder of pictures, the names of all its pictures count, those outside the part asked for, too."""
    folder, output = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for name in ("dawn.png", "dusk.png"):
        still(folder / name)
    assert vdeblur("run", folder, output, *IDENTITY).exit_code == 0
    still(output / "mine.png")
    assert vdeblur("run", folder, output, *IDENTITY, "--frames", 1, "-y").exit_code == 0
    assert sorted(path.name for path in output.iterdir()) == ["dawn.png", "mine.png"]


def test_an_output_inside_the_inputs_folder_resumes(vdeblur, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """B: the output's own folder of segments changed the identity of the input's folder."""
    from vdeblur.run import store

    for number in range(3):
        still(tmp_path / f"{number}.png", number)
    before = store.identity_of(tmp_path)
    (tmp_path / ".vdeblur-out").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out.mp4").write_bytes(b"x")
    assert store.identity_of(tmp_path) == before
    still(tmp_path / "3.png", 3)
    assert store.identity_of(tmp_path) != before


def test_headers_agree_with_ffmpeg(tmp_path: Path) -> None:
    """A1: sizes are read from headers, without decoding."""
    forms = {"a.png": "rgb48be", "b.png": "gray", "c.jpg": "yuvj422p", "d.tiff": "rgb24", "e.bmp": "bgr24",
             "f.webp": "yuv420p", "g.webp": "bgra"}  # fmt: skip
    for name, pix_fmt in forms.items():
        path = still(tmp_path / name, size="70x50", pix_fmt=pix_fmt, **({"lossless": 1} if name == "g.webp" else {}))
        header = read_header(path)
        assert header is not None, name
        assert header.upright_size == (70, 50), name
    assert read_header(Path(__file__)) is None
    cut = tmp_path / "cut.jpg"
    cut.write_bytes((tmp_path / "c.jpg").read_bytes()[:100])
    assert read_header(cut) is None


def test_names_with_superscript_digits(tmp_path: Path) -> None:
    """B: "²" is a digit to str.isdigit, but no number to int."""
    names = ["1²2.png", "².png", "a10.png", "a2.png"]
    ordered = [path.name for path in sorted(map(Path, names), key=natural_key)]
    assert ordered.index("a2.png") < ordered.index("a10.png")


def test_the_shared_photographs(vdeblur, shared: Path, tmp_path: Path) -> None:
    """A1: the inputs that were found to fail."""
    if not (shared / "faults").is_dir():
        pytest.skip("needs the folder shared/faults beside this checkout")
    faults = shared / "faults"
    result = vdeblur("run", faults / "photos_exif", tmp_path / "photos", *IDENTITY)
    assert result.exit_code == 0, result.output
    assert sizes(tmp_path / "photos") == {(120, 160)}
    assert vdeblur("run", faults / "mjpeg_exif.mov", tmp_path / "mjpeg.mp4", *IDENTITY).exit_code == 0
    result = vdeblur("run", faults / "mixkinds", tmp_path / "mix", *IDENTITY)
    assert result.exit_code == 0, result.output
    assert "f0004.heic, f0005.jxl, f0006.exr" in " ".join(result.stderr.split())
    assert len(list((tmp_path / "mix").iterdir())) == 3


def test_a_source_of_one_picture(tmp_path: Path) -> None:
    """A1: the Python API opens one picture, too."""
    from vdeblur.settings import Cut

    source = open_source(photo(tmp_path / "a.png", 6), Cut(), lambda code, message: None)
    assert source.pictures
    (frame,) = list(source.items())
    assert not isinstance(frame, av.Packet)
    assert (frame.picture.width, frame.picture.height) == (48, 64)


def _told(result) -> dict[str, str]:
    """Return code and message of the warnings of a run with --json."""
    events = [json.loads(line) for line in result.stdout.splitlines()]
    return {event["code"]: event["message"] for event in events if event["event"] == "warning"}


@pytest.mark.parametrize("left", [0.9, 0.4])
def test_photographs_that_are_cut_off_are_named(vdeblur, tmp_path: Path, left: float) -> None:
    """A1: half a JPEG came out with a grey rest, and nothing was said."""
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(3):
        still(folder / f"{number}.jpg", number, "160x120", "yuvj420p", **{"q:v": 2})
    assert _told(vdeblur("run", folder, tmp_path / "whole", *IDENTITY, "--json")) == {}
    tag_jpeg(folder / "1.jpg", 1)  # an end of image inside EXIF, as of a thumbnail, is none of the picture's
    data = (folder / "1.jpg").read_bytes()
    (folder / "1.jpg").write_bytes(data[: round(left * len(data))])
    with (folder / "2.jpg").open("ab") as file:
        file.write(bytes(100_000))  # what phones append, such as a short video
    result = vdeblur("run", folder, tmp_path / "out", *IDENTITY, "--json")
    assert result.exit_code == 0, result.output
    told = _told(result)
    assert set(told) == {"W_INPUT_DAMAGED"}
    assert f"{folder / '1.jpg'} is cut off" in told["W_INPUT_DAMAGED"]
    assert vdeblur("run", folder, tmp_path / "x", *IDENTITY, "--on-damage", "fail").exit_code == ExitStatus.DAMAGE


@pytest.mark.parametrize("suffix", [".png", ".webp", ".bmp"])
def test_pictures_that_cannot_be_decoded_end_before_the_work(vdeblur, tmp_path: Path, suffix: str) -> None:
    """A1: half a PNG was found only when its turn came."""
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(3):
        still(folder / f"{number}{suffix}", number, "160x120")
    data = (folder / f"2{suffix}").read_bytes()
    (folder / f"2{suffix}").write_bytes(data[: len(data) // 2])
    result = vdeblur("run", folder, tmp_path / "out", *IDENTITY, "--json")
    events = [json.loads(line) for line in result.stdout.splitlines()]
    assert result.exit_code == ExitStatus.INPUT
    assert not {"plan", "progress"} & {event["event"] for event in events}
    [error] = [event for event in events if event["event"] == "error"]
    assert f"2{suffix} cannot be read as a picture: it is cut off" in error["message"]


def test_animations_among_pictures_are_named(vdeblur, tmp_path: Path) -> None:
    """A1: of an animated PNG among pictures only the first one was read, without a word; WebP's is refused by name."""
    folder = tmp_path / "in"
    folder.mkdir()
    still(folder / "0.png", 0, pix_fmt="rgb24")
    clips.make(folder / "1.png", frames=4, codec=("-c:v", "apng", "-f", "apng"), pix_fmt="rgb24")
    result = vdeblur("run", folder, tmp_path / "out", *IDENTITY, "--json")
    assert result.exit_code == 0, result.output
    assert "1.png is an animation; only its first picture is read" in _told(result)["W_SKIPPED"]
    (folder / "1.png").unlink()
    clips.make(folder / "1.webp", frames=4, codec=("-c:v", "libwebp_anim"))
    result = vdeblur("run", folder, tmp_path / "out2", *IDENTITY)
    assert result.exit_code == ExitStatus.INPUT
    assert "1.webp cannot be read as a picture: it is an animation" in result.stderr


@pytest.mark.parametrize(("begin", "first"), [("0.05", "1"), ("0.041", "1"), ("0.079", "2"), ("0.1", "2"), ("0", "0")])
def test_a_part_of_pictures_begins_at_the_nearest_frame(vdeblur, tmp_path: Path, begin: str, first: str) -> None:
    """D1: -ss on a folder began up to a frame late; in a video it is the nearest time that a frame can have."""
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(5):
        still(folder / f"{number}.png", number)
    assert vdeblur("run", folder, tmp_path / "out", *IDENTITY, "-ss", begin).exit_code == 0
    assert sorted(path.stem for path in (tmp_path / "out").iterdir())[0] == first
    video = tmp_path / "in.mkv"
    clips.ffmpeg("-framerate", 25, "-i", folder / "%d.png", "-c:v", "ffv1", video)
    clips.ffmpeg("-i", video, "-c", "copy", "-video_track_timescale", 25, tmp_path / "in.mov")
    assert vdeblur("run", tmp_path / "in.mov", tmp_path / "v.mov", *IDENTITY, "-c", "png", "-ss", begin).exit_code == 0
    assert (clips.rgb(tmp_path / "v.mov")[0] == clips.rgb(tmp_path / "in.mov")[int(first)]).all()


def test_a_pipe_by_its_path_is_no_file(vdeblur, tmp_path: Path) -> None:
    """R24: `run <(command) OUT` said that the input is empty; a FIFO without a writer hung."""
    os.mkfifo(tmp_path / "fifo")
    for command in ("run", "probe"):
        result = vdeblur(command, tmp_path / "fifo", *([tmp_path / "out.mkv"] if command == "run" else []))
        assert result.exit_code == ExitStatus.INPUT, result.output
        assert "fifo is a pipe or a device, not a file" in result.stderr
        assert "vdeblur run - OUTPUT" in result.stderr
