"""Data sets: every layout, what belongs to the known sets, and getting them from servers that misbehave."""

import dataclasses
import hashlib
import io
import itertools
import random
import shutil
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers import Place, Server, lead_here, serving
from vdeblur import files
from vdeblur.datasets import layouts, obtain
from vdeblur.datasets.known import Archive, KnownSet, NumberSpan, Origin, known_sets, names
from vdeblur.datasets.layouts import DataSet
from vdeblur.errors import ExitStatus, InputError, InterruptedRunError, ModelError, OutputError, UsageError
from vdeblur.events import Talk
from vdeblur.fetch import http


def fill(folder: Path, *folders: str, frames: int = 3, suffix: str = ".png") -> Path:
    """Make folders with files that are called like pictures; nothing reads them here."""
    for name in folders:
        (folder / name).mkdir(parents=True)
        for index in range(frames):
            (folder / name / f"{index:06}{suffix}").touch()
    return folder


def found(wanted: object, **options) -> DataSet:
    options.setdefault("warn", lambda code, message: None)
    return layouts.open_dataset(str(wanted), talk=Talk(offline=True), **options)


LAYOUTS = {
    "GoPro": ("test/{0}/blur", "test/{0}/blur_gamma", "test/{0}/sharp"),
    "GoPro without splits": ("{0}/blur", "{0}/sharp"),
    "VRT": ("GoPro11/test_GT_blurred/{0}", "GoPro11/test_GT/{0}"),
    "DVD": (
        *(f"Dataset/Dataset/quantitative_datasets/{{0}}/{kind}" for kind in ("input", "GT")),
        "Dataset/Dataset/qualitative_datasets/other{0}/input",
    ),
    "CDVD-TSP": ("test/blur/{0}", "test/gt/{0}"),
    "STDAN": ("test/blur/{0}", "test/GT/{0}"),
    "REDS": ("val/val_blur/{0}", "val/val_sharp/{0}"),
    "BSD": ("BSD_1ms8ms/test/{0}/Blur/RGB", "BSD_1ms8ms/test/{0}/Sharp/RGB"),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_is_recognised(name: str, tmp_path: Path) -> None:
    for sequence in ("one", "ten", "two"):
        fill(tmp_path, *(folder.format(sequence) for folder in LAYOUTS[name]))
    opened = found(tmp_path)
    assert opened.layout.startswith(name.partition(" ")[0])
    assert [sequence.name for sequence in opened.sequences] == ["one", "ten", "two"]
    assert opened.frames == 9
    assert (opened.known, opened.complete, opened.blur) == ("", False, "blur")
    assert opened.split == ("val" if name == "REDS" else "test")
    pair = opened.sequences[1].pairs[2]
    assert pair.name == "000002"
    assert "ten" in pair.blurry.parts
    assert "ten" in pair.sharp.parts
    assert pair.blurry != pair.sharp


def test_one_sequence(tmp_path: Path) -> None:
    opened = found(fill(tmp_path / "walk", "blur", "sharp", suffix=".jpg"))
    assert [(sequence.name, len(sequence.pairs)) for sequence in opened.sequences] == [("walk", 3)]


def test_splits_are_kept_apart(tmp_path: Path) -> None:
    fill(tmp_path, *(f"{split}/{kind}" for split in ("test/a", "train/b") for kind in ("blur", "sharp")))
    assert found(tmp_path).sequences[0].name == "a"
    assert found(tmp_path, split="train").sequences[0].name == "b"
    with pytest.raises(InputError, match="with a split 'val'"):
        found(tmp_path, split="val")


def test_two_sets_in_one_folder_are_named(tmp_path: Path) -> None:
    for exposure in ("1ms8ms", "2ms16ms"):
        fill(tmp_path, *(f"BSD_{exposure}/test/000/{kind}/RGB" for kind in ("Blur", "Sharp")))
    with pytest.raises(UsageError, match=r"several data sets: BSD_1ms8ms.test, BSD_2ms16ms.test"):
        found("bsd", data=tmp_path)


def test_folders_without_a_data_set(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no pairs of blurry and sharp pictures"):
        found(fill(tmp_path, "frames"))
    with pytest.raises(InputError, match="no such folder"):
        found(tmp_path / "absent")
    with pytest.raises(UsageError, match="is not one of them"):
        found(tmp_path, data=tmp_path)


def test_what_belongs_to_the_known_sets() -> None:
    frames = {
        (name, split): (len(spans), sum(span.count for span in spans.values()))
        for name, known in known_sets().items()
        for split, spans in known.splits.items()
    }
    assert frames == {
        ("gopro", "test"): (11, 1111),
        ("gopro", "train"): (22, 2103),
        ("dvd", "test"): (10, 1000),
        ("dvd", "train"): (61, 5708),
        ("reds", "val"): (30, 3000),
        ("reds", "train"): (240, 24000),
        ("reds", "reds4"): (4, 400),
        **{(f"bsd-{exposure}", "test"): (20, 3000) for exposure in ("1ms8ms", "2ms16ms", "3ms24ms")},
        **{(f"bsd-{exposure}", "train"): (1, 100) for exposure in ("1ms8ms", "2ms16ms", "3ms24ms")},  # names unknown
        **{(f"bsd-{exposure}", "val"): (1, 100) for exposure in ("1ms8ms", "2ms16ms", "3ms24ms")},
    }
    assert known_sets()["gopro"].splits["test"]["GOPR0410_11_00"] == NumberSpan(134, "000101", "000234")
    assert names() == ["gopro", "dvd", "reds", "bsd"]


KNOWN_LAYOUTS = {
    "gopro": "test/{sequence}/{kind}",
    "bsd-2ms16ms": "BSD_2ms16ms/test/{sequence}/{kind}/RGB",
    "dvd": "quantitative_datasets/{sequence}/{kind}",
}
KINDS = {"gopro": ("blur", "sharp"), "bsd-2ms16ms": ("Blur", "Sharp"), "dvd": ("input", "GT")}


@pytest.fixture(params=KNOWN_LAYOUTS)
def copy(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path]:
    """A whole copy of a known set, as its name and folder."""
    name = request.param
    blurry, sharp = KINDS[name]
    for sequence, span in known_sets()[name].splits["test"].items():
        first = int(span.first or 0)
        for kind in (blurry, sharp):
            folder = tmp_path / KNOWN_LAYOUTS[name].format(sequence=sequence, kind=kind)
            folder.mkdir(parents=True)
            for number in range(first, first + span.count):
                (folder / f"{number:0{len(span.first)}}.png").touch()
    return name, tmp_path


def test_a_whole_copy_is_known_by_name_and_by_looking(copy: tuple[str, Path]) -> None:
    name, folder = copy
    title = known_sets()[name].title
    for opened in (found(name.partition("-")[0], data=folder), found(folder)):
        assert (opened.known, opened.title, opened.split, opened.complete) == (name, title, "test", True)
    assert not found(folder, limit=3).complete
    assert found(folder, limit=3).frames == 3 * len(known_sets()[name].splits["test"])


def test_a_copy_that_misses_frames_is_named_and_refused(copy: tuple[str, Path]) -> None:
    name, folder = copy
    opened = found(folder)
    pair = opened.sequences[3].pairs[7]
    pair.blurry.unlink()
    with pytest.raises(InputError, match=rf"{opened.sequences[3].name} has 1 picture without a partner"):
        found(folder)
    pair.sharp.unlink()
    with pytest.raises(
        InputError, match=rf"{opened.title} is not complete: {opened.sequences[3].name} has \d+ of \d+ frames"
    ):
        found(folder)
    warned: list[str] = []
    assert not found(folder, limit=500, warn=lambda code, message: warned.append(message)).complete
    assert "is not complete" in warned[0]
    for path in (pair.blurry.parent, pair.sharp.parent):
        shutil.rmtree(path)
    with pytest.raises(InputError, match=f"{opened.sequences[3].name} is missing"):
        found(name.partition("-")[0], data=folder)


def test_only_the_original_gopro_has_blur_gamma(tmp_path: Path) -> None:
    sequences = known_sets()["gopro"].splits["test"]
    fill(tmp_path / "a", *(f"{name}/{kind}" for name in sequences for kind in ("blur", "sharp")))
    with pytest.raises(UsageError, match="has no blur_gamma, only blur"):
        found("gopro", data=tmp_path / "a", blur="blur_gamma")
    fill(tmp_path / "b", *(f"one/{kind}" for kind in ("blur", "blur_gamma", "sharp")))
    opened = found(tmp_path / "b", blur="blur_gamma")
    assert opened.blur == "blur_gamma"
    assert opened.sequences[0].pairs[0].blurry.parent.name == "blur_gamma"
    assert found(fill(tmp_path / "c", "one/blur", "one/sharp"), blur="blur_gamma").blur == "blur"


# Fetching


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    from huggingface_hub import constants

    monkeypatch.setattr(http, "WAIT_SECONDS", 0.01)
    with serving() as running:
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        template = running.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield running


PICTURE = random.Random(0).randbytes(20_000)
HUB_PATH = "/datasets/some/films/resolve/abc/films.zip"


def members(split: str = "test") -> list[str]:
    return [f"{split}/{name}/{kind}/{i:06}.png" for name in "ab" for kind in ("blur", "sharp") for i in range(1, 3)]


def zipped() -> bytes:
    """An archive with a large split that nobody wants, and a small one."""
    stored = io.BytesIO()
    with zipfile.ZipFile(stored, "w") as made:
        for name in members("train"):
            made.writestr(name, random.Random(1).randbytes(3_000_000))
        for name in members():
            made.writestr(name, PICTURE + name.encode())
    return stored.getvalue()


def tarred(kinds: tuple[str, ...]) -> bytes:
    stored = io.BytesIO()
    with tarfile.open(fileobj=stored, mode="w:gz") as made:
        for name in members():
            if any(f"/{kind}/" in name for kind in kinds):
                info = tarfile.TarInfo(f"Films/{name}")
                info.size = len(PICTURE) + len(name)
                made.addfile(info, io.BytesIO(PICTURE + name.encode()))
    return stored.getvalue()


def films(*archives: Archive, splits: tuple[str, ...] = ("test",)) -> KnownSet:
    spans = {name: NumberSpan(2, "000001", "000002") for name in "ab"}
    origins = (Origin(splits, "*{split}/{sequence}/*", archives),) if archives else ()
    page = "https://films.example/page"
    return KnownSet("films", "Films", "a paper", "CC0", "test", page, {"test": spans, "val": spans}, origins)


ON_HUB = Archive(repo="some/films", revision="abc", file="films.zip")


def is_whole(folder: Path) -> bool:
    return all((folder / name).read_bytes() == PICTURE + name.encode() for name in members())


def test_only_what_is_wanted_is_read_out_of_a_zip_on_the_hub(server: Server) -> None:
    server.places[HUB_PATH] = Place(zipped(), drop_after=[])
    said: list[tuple[str, dict]] = []
    folder = obtain.obtain_split(films(ON_HUB), "test", "blur", Talk(notify=lambda *event: said.append(event)))
    assert is_whole(folder)
    assert not (folder / "train").exists()
    assert server.sent < 9_000_000 < len(server.places[HUB_PATH].data)
    assert [event for event, _ in said if event != "download_progress"] == ["dataset_download", "dataset_done"]
    assert said[0][1]["verification"] == "pinned"
    asked = server.asked.total()
    assert obtain.obtain_split(films(ON_HUB), "test", "blur", Talk(offline=True)) == folder
    assert server.asked.total() == asked, "it is there"


def test_broken_connections_and_wrong_bytes_on_the_way(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(obtain, "READ_BYTES", 50_000)
    data = zipped()
    server.places[HUB_PATH] = Place(data, drop_after=[10**9, 10**9, 10**9, 500, 10**9, 20_000])
    spoilt, calls = http.RangeFile.readinto, []

    def readinto(self: http.RangeFile, buffer) -> int:
        count = spoilt(self, buffer)
        calls.append(count)
        if len(calls) == 6:
            buffer[: count // 2] = bytes(count // 2)
        return count

    monkeypatch.setattr(http.RangeFile, "readinto", readinto)
    assert is_whole(obtain.obtain_split(films(ON_HUB), "test", "blur", Talk()))
    assert not server.places[HUB_PATH].drop_after, "every break was met"


def test_a_server_that_is_busy_at_first_is_asked_again(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.places[HUB_PATH] = place = Place(zipped(), status=503)
    waited: list[float] = []

    def wait(seconds: float, talk: Talk) -> None:
        waited.append(seconds)
        place.status = 200 if len(waited) == 2 else 503

    monkeypatch.setattr(http, "_wait", wait)
    assert is_whole(obtain.obtain_split(films(ON_HUB), "test", "blur", Talk()))
    assert waited == [0.01, 0.02]
    place.status = 404  # which will not change
    with pytest.raises(ModelError, match="404"):
        obtain.obtain_split(dataclasses.replace(films(ON_HUB), name="others"), "test", "blur", Talk())
    assert len(waited) == 2


def test_a_stopped_fetch_keeps_what_it_has(server: Server) -> None:
    server.places[HUB_PATH] = Place(zipped())
    progress: list[dict] = []

    def notify(event: str, facts: dict) -> None:
        progress.extend([facts] if event == "download_progress" else [])

    talk = Talk(notify=notify, stop=lambda: ExitStatus.INTERRUPTED if len(progress) >= 3 else None)
    with pytest.raises(InterruptedRunError):
        obtain.obtain_split(films(ON_HUB), "test", "blur", talk)
    unpacked = sorted((files.cache_folder() / "datasets" / "films").rglob("*.png"))
    assert len(unpacked) == 3
    stamps = [path.stat().st_mtime_ns for path in unpacked]
    assert is_whole(obtain.obtain_split(films(ON_HUB), "test", "blur", Talk()))
    assert [path.stat().st_mtime_ns for path in unpacked] == stamps


def test_a_server_without_ranges_gives_the_whole_pinned_archive(server: Server) -> None:
    data = zipped()
    server.places[HUB_PATH] = Place(data, ranges=False)
    pinned = dataclasses.replace(ON_HUB, sha256=hashlib.sha256(data).hexdigest(), megabytes=len(data) / 1e6)
    folder = obtain.obtain_split(films(pinned), "test", "blur", Talk())
    assert is_whole(folder)
    assert not list(folder.rglob("*.zip*")), "the archive is gone"
    wrong = dataclasses.replace(films(dataclasses.replace(pinned, sha256="0" * 64)), name="others")
    with pytest.raises(ModelError, match=r"is not the published file.*") as caught:
        obtain.obtain_split(wrong, "test", "blur", Talk())
    assert "--data FOLDER" in caught.value.hint


def test_tars_without_a_digest_are_asked_for(server: Server) -> None:
    archives = []
    for part, kind in enumerate(("blur", "sharp"), 1):
        drops = [10**9, 1000]  # the first answer is only asked for the size
        server.places[f"/part{part}.tar.gz"] = Place(tarred((kind,)), drop_after=drops, etag='"x"')
        archives.append(Archive(url=f"{server.url}/part{part}.tar.gz"))
    known = films(*archives)
    with pytest.raises(ModelError, match="published no digest") as caught:
        obtain.obtain_split(known, "test", "blur", Talk())
    assert caught.value.hint == "to accept it: --yes"
    assert not server.asked
    questions: list[str] = []

    def refuse(text: str) -> bool:
        questions.append(text)
        return False

    with pytest.raises(ModelError, match="was not downloaded"):
        obtain.obtain_split(known, "test", "blur", Talk(ask=refuse))
    assert len(questions) == 1, "once for both"
    assert "part1.tar.gz and " in questions[0]
    folder = obtain.obtain_split(known, "test", "blur", Talk(yes=True))
    assert is_whole(folder / "Films")
    assert not list(folder.rglob("*.gz"))
    assert not any(place.drop_after for place in server.places.values()), "every break was met"


@pytest.mark.parametrize("kind", ["404", "page", "no zip", "other members", "damaged"])
def test_an_archive_that_is_not_the_set(server: Server, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = zipped()
    stored = bytearray(data)
    stored[data.index(PICTURE)] ^= 1
    empty = io.BytesIO()
    with zipfile.ZipFile(empty, "w") as made:
        made.writestr("readme.txt", "nothing")
    place, words = {
        "404": (Place(status=404), "404 Not Found"),
        "page": (Place(b"<html>", kind="text/html"), "a web page instead of the file"),
        "no zip": (Place(data[:-40]), "not a usable zip"),
        "other members": (Place(empty.getvalue()), "holds none of the files needed"),
        "damaged": (Place(bytes(stored)), "Bad CRC-32"),
    }[kind]
    server.places[HUB_PATH] = place
    with pytest.raises(ModelError, match=words) as caught:
        obtain.obtain_split(films(ON_HUB), "test", "blur", Talk())
    assert "download it from https://films.example/page" in caught.value.hint


def test_the_next_origin_serves_instead_unless_it_lacks_the_blur(server: Server) -> None:
    server.places["/films.tar.gz"] = Place(tarred(("blur", "sharp")))
    origin = Origin(("test",), "*{split}/{sequence}/*", (Archive(url=f"{server.url}/films.tar.gz"),))
    known = films(ON_HUB)
    known = dataclasses.replace(known, sources=(*known.sources, origin))
    with pytest.raises(ModelError, match="404 Not Found"):
        obtain.obtain_split(known, "test", "blur_gamma", Talk(yes=True))
    assert is_whole(obtain.obtain_split(known, "test", "blur", Talk(yes=True)) / "Films")


def test_members_stay_in_their_folder(server: Server) -> None:
    stored = io.BytesIO()
    with zipfile.ZipFile(stored, "w") as made:
        made.writestr("../../test/a/blur/000001.png", PICTURE)
    server.places[HUB_PATH] = Place(stored.getvalue())
    with pytest.raises(ModelError, match=r"a member called \.\."):
        obtain.obtain_split(films(ON_HUB), "test", "blur", Talk())


def test_a_full_disk_is_seen_before(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.places[HUB_PATH] = Place(zipped())
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 100_000))
    with pytest.raises(OutputError, match=r"needs 0\.0 GB, and .* has 0\.0 GB free"):
        obtain.obtain_split(films(ON_HUB), "test", "blur", Talk())
    assert not list((files.cache_folder() / "datasets").rglob("*.png"))


def test_a_full_disk_is_seen_before_a_tar_of_unknown_size(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tarred(("blur", "sharp"))
    server.places["/films.tar.gz"] = Place(data)
    free = [int(1.5 * len(data))]  # for the archive, not for what is in it
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, free[0]))
    known = films(Archive(url=f"{server.url}/films.tar.gz"))
    with pytest.raises(OutputError, match=r"films\.tar\.gz needs"):
        obtain.obtain_split(known, "test", "blur", Talk(yes=True))
    assert server.sent < 1000
    free[0] = 3 * len(data)
    assert is_whole(obtain.obtain_split(known, "test", "blur", Talk(yes=True)) / "Films")


def test_an_address_that_ran_out_is_asked_for_again(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stores lead to signed addresses that hold for a while."""
    data = zipped()
    server.places[HUB_PATH] = server.places["/signed"] = Place(data)
    monkeypatch.setattr(obtain, "READ_BYTES", 50_000)
    opened = http.RangeFile.open_url

    def open_url(url: str, name: str, talk: Talk) -> http.RangeFile:
        remote = opened(url, name, talk)
        assert remote is not None
        remote.url = f"{server.url}/expired"
        return remote

    monkeypatch.setattr(http.RangeFile, "open_url", open_url)
    assert is_whole(obtain.obtain_split(films(ON_HUB), "test", "blur", Talk()))
    assert server.asked["GET /expired"] == 1


def bsd_zip(exposure: str) -> bytes:
    """The splits of BSD, with two frames of the first sequences, and RAW frames beside them."""
    stored = io.BytesIO()
    with zipfile.ZipFile(stored, "w") as made:
        sequences = {"test": known_sets()[f"bsd-{exposure}"].splits["test"], "train": ("005", "007"), "valid": ("001",)}
        for split, names in sequences.items():
            for name, kind, frame in itertools.product(list(names)[:2], ("Blur", "Sharp"), range(2)):
                folder = f"BSD_{exposure}/{split}/{name}/{kind}"
                made.writestr(f"{folder}/RGB/{frame:08}.png", PICTURE)
                made.writestr(f"{folder}/RAW/{frame:08}.tiff", b"raw")
    return stored.getvalue()


def test_bsd_comes_from_its_authors_folder_on_drive(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    lead_here(monkeypatch, server)
    known = known_sets()["bsd-3ms24ms"]
    folder = known.sources[0].archives[0].folder
    with pytest.raises(ModelError, match=f"BSD 3ms24ms from https://drive.google.com/drive/folders/{folder}, licence"):
        obtain.obtain_split(known, "test", "blur", Talk())
    number = "number-0123456789-0123456789"
    server.folder, server.drive = folder, {"BSD_3ms24ms.zip": number}
    server.places[number] = Place(bsd_zip("3ms24ms"))
    for split, expected in (("test", ["000", "002"]), ("train", ["005", "007"]), ("val", ["001"])):
        root = obtain.obtain_split(known, split, "blur", Talk(yes=True))
        dataset = found("bsd-3ms24ms", data=root, split=split, limit=2)
        assert [sequence.name for sequence in dataset.sequences] == expected
        assert (dataset.title, dataset.complete, dataset.frames) == ("BSD 3ms24ms", False, 2 * len(expected))
    assert not list(root.rglob("*.tiff"))
    assert not list(root.rglob("*.zip"))


def test_bsds_exposure_is_that_of_the_folder(tmp_path: Path) -> None:
    fill(tmp_path, *(f"BSD_2ms16ms/train/005/{kind}/RGB" for kind in ("Blur", "Sharp")))
    assert found("bsd", data=tmp_path, split="train", limit=1).title == "BSD 2ms16ms"


def test_what_only_a_person_can_fetch() -> None:
    with pytest.raises(ModelError, match="Films cannot be downloaded automatically") as caught:
        obtain.obtain_split(films(), "test", "blur", Talk())
    assert "download it from https://films.example/page" in caught.value.hint
    assert "--data FOLDER" in caught.value.hint
    with pytest.raises(ModelError, match="GoPro is not in the cache, and the network is off"):
        found("gopro")
    with pytest.raises(ModelError, match="has no split 'reds4'"):
        found("gopro", split="reds4")
