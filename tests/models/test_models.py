"""`vdeblur models`, and `run` with a model whose weights are not cached."""

import contextlib
import hashlib
import io
import json
import multiprocessing
import os
import pty
import queue
import re
import signal
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar
from urllib.parse import urlsplit

import click
import pytest
import safetensors
import torch
from torch import Tensor, nn

from tests import clips
from tests.conftest import ROOT
from tests.servers import Place, Server, lead_here, serving
from vdeblur import networks
from vdeblur.cli import terminal
from vdeblur.errors import ExitStatus, ModelError
from vdeblur.events import Talk
from vdeblur.fetch import http
from vdeblur.models import cache, checkpoint, registry, weights
from vdeblur.networks.bimnet import BIMNet
from vdeblur.networks.layers import Network


class Toy(Network):
    """Adds a convolution; its authors' checkpoints have other names and shapes."""

    feeding = "frame"
    constant_buffers: ClassVar[tuple[str, ...]] = ("mean",)

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.body = nn.Conv2d(channels, 3, 3, padding=1)
        self.register_buffer("mean", torch.tensor([0.4, 0.5, 0.6]))

    @staticmethod
    def official_name(name: str) -> str:
        return name.replace("body.", "net.0.")

    def forward(self, frames: Tensor) -> Tensor:
        return frames + self.body(frames)


def official(network: Toy) -> dict[str, Tensor]:
    """Return a toy's tensors as its authors' checkpoints have them: other names, and an axis of one frame."""
    state = {Toy.official_name(name): value for name, value in network.state_dict().items()}
    return {**state, "net.0.weight": state["net.0.weight"][:, :, None]}


def saved(content: object) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


torch.manual_seed(0)
TOY = Toy()
FILE = saved(official(TOY))
SHA256 = hashlib.sha256(FILE).hexdigest()
REGISTRY = """
[toy]
network = "toy"
description = "a toy"
license = "MIT"
notice = "for tests only"
default = "pinned"
[toy.weights.pinned]
file = "pinned.pth"
sources = [
    {{ kind = "https", url = "{url}/pinned.pth" }},
    {{ kind = "manual", page = "https://toys.example/page", text = "press the button" }},
]
sha256 = "{sha256}"
scores = [{{ data = "GoPro", psnr = 30.0, ssim = 0.9, ssim_kind = "2D", protocol = "all frames" }}]
[toy.weights.partly]
file = "partly.pth"
sources = [{{ kind = "https", url = "{url}/pinned.pth" }}]
sha256_prefix = "{prefix}"
[toy.weights.unpinned]
file = "unpinned.pth"
megabytes = 0.1
sources = [{{ kind = "https", url = "{url}/unpinned.pth" }}, {{ kind = "manual", page = "https://toys.example/page" }}]
[toy.weights.by-hand]
file = "by-hand.pth"
sources = [{{ kind = "manual", page = "https://toys.example/page" }}]
[large-toy]
network = "toy"
arguments = {{ channels = 3 }}
description = "no weights of it"
license = "MIT"
no_weights = "nobody published any"
[wide-toy]
network = "toy"
arguments = {{ channels = 4 }}
description = "a wider one"
license = "MIT"
no_weights = "nobody published any"
[toy-start]
start_of = "toy"
part = "toy-part"
description = "half a toy"
license = "MIT"
[toy-start.weights.only]
file = "start.pth"
sources = [{{ kind = "https", url = "{url}/start.pth" }}]
git_blob_sha1 = "{blob}"
[unborn]
network = "unborn"
description = "its network is not written yet"
license = "MIT"
"""


class ToyPart(nn.Module):
    """A part that has start weights."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2, 3))

    @staticmethod
    def official_name(name: str) -> str:
        return f"part.{name}"


START = saved({"part.weight": torch.ones(2, 3)})


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    monkeypatch.setattr(http, "WAIT_SECONDS", 0.01)
    few = {name: networks.NETWORKS[name] for name in ("identity", "lite")}
    monkeypatch.setattr(registry, "NETWORKS", {**few, "toy": Toy})
    monkeypatch.setattr(checkpoint, "PARTS", {**networks.PARTS, "toy-part": ToyPart})
    with serving() as running:
        running.places = {"/pinned.pth": Place(FILE), "/unpinned.pth": Place(FILE), "/start.pth": Place(START)}
        blob = hashlib.sha1(b"blob %d\0" % len(START) + START).hexdigest()
        text = REGISTRY.format(url=running.url, sha256=SHA256, prefix=SHA256[:8], blob=blob)
        (tmp_path / "registry.toml").write_text(text)
        monkeypatch.setenv("VDEBLUR_REGISTRY", str(tmp_path / "registry.toml"))
        yield running


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return clips.make(tmp_path / "in.mkv", frames=2)


def last_line(result) -> str:
    lines = [line for line in result.stderr.splitlines() if line.startswith("vdeblur: ")]
    assert len(lines) == 1, result.output
    assert "Traceback" not in result.output
    return lines[0]


def is_toy(network: Network) -> bool:
    return torch.equal(network.body.weight, TOY.body.weight)


def test_run_fetches_pinned_weights_by_itself_once(vdeblur, server: Server, clip: Path, tmp_path: Path) -> None:
    result = vdeblur("run", clip, tmp_path / "out.mkv", "-m", "toy")
    assert result.exit_code == 0, result.output
    assert "licence: MIT; note: for tests only" in result.stderr
    assert f"verified; SHA-256 {SHA256}" in result.stderr
    again = vdeblur("run", clip, tmp_path / "out2.mkv", "-m", "toy@pinned", "--offline")
    assert again.exit_code == 0, again.output
    assert "licence" not in again.stderr
    assert server.asked["GET /pinned.pth"] == 1
    cached = tmp_path / "cache" / "models" / "toy" / "pinned.safetensors"
    with safetensors.safe_open(cached, "pt") as file:
        assert file.metadata()["sha256"] == SHA256
        assert file.metadata()["model"] == "toy"
        assert set(file.keys()) == {"body.weight", "body.bias", "mean"}
    assert is_toy(weights.load_model("toy"))
    assert not list((tmp_path / "cache" / "downloads").glob("*")), "the original is not kept twice"


def test_events_of_a_download(vdeblur, server: Server, clip: Path, tmp_path: Path) -> None:
    result = vdeblur("run", clip, tmp_path / "out.mkv", "-m", "toy@partly", "--json")
    events = {event["event"]: event for event in map(json.loads, result.stdout.splitlines())}
    assert events["download"]["verification"] == "partly"
    assert events["download"]["license"] == "MIT"
    assert events["download_done"]["sha256"] == SHA256


def test_unpinned_weights_need_a_yes(vdeblur, server: Server, clip: Path, tmp_path: Path) -> None:
    result = vdeblur("run", clip, tmp_path / "out.mkv", "-m", "toy@unpinned")
    assert result.exit_code == ExitStatus.MODEL
    line = last_line(result)
    assert "no digest" in line
    assert f"unpinned.pth (about 0.1 MB, licence MIT) from {server.url}/unpinned.pth, unencrypted" in line
    assert "vdeblur models download toy@unpinned --yes" in line
    assert "without a download: -m lite" in line
    assert not server.asked
    assert not (tmp_path / "out.mkv").exists()
    result = vdeblur("run", clip, tmp_path / "out.mkv", "-m", "toy@unpinned", "--yes")
    assert result.exit_code == 0, result.output
    assert (
        "not verified: its authors published no digest; vdeblur will notice if the file changes later; "
        f"SHA-256 {SHA256}" in " ".join(result.stderr.split())
    )


@pytest.mark.parametrize("answer", [True, False])
@pytest.mark.parametrize("at_once", [1, 2])
def test_a_batch_asks_once_where_ctrl_c_works(
    vdeblur, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: bool, at_once: int
) -> None:
    """B: the question for unpinned weights failed in batches, in a thread that may not handle signals."""
    inputs = [clips.make(tmp_path / f"{name}.mkv", frames=2) for name in "abc"]
    (tmp_path / "out").mkdir()
    asked: list[str] = []

    def confirm(text: str, err: bool) -> bool:
        assert threading.current_thread() is threading.main_thread()
        asked.append(text)
        return answer

    monkeypatch.setattr(terminal, "is_terminal", lambda stream: True)
    monkeypatch.setattr(terminal, "draws_bars", lambda: False)
    monkeypatch.setattr(click, "confirm", confirm)
    vdeblur("run", *inputs, tmp_path / "out", "-m", "toy@unpinned", "-j", at_once, "--dry-run")
    assert not asked, "a dry run downloads nothing"
    result = vdeblur("run", *inputs, tmp_path / "out", "-m", "toy@unpinned", "-j", at_once)
    assert len(asked) == 1
    assert result.exit_code == (ExitStatus.DONE if answer else ExitStatus.MODEL), result.output
    assert len(list((tmp_path / "out").iterdir())) == (3 if answer else 0)
    if answer:
        vdeblur("models", "remove", "toy@unpinned")
        assert vdeblur("run", *inputs, tmp_path / "out", "-m", "toy@unpinned", "--skip-existing").exit_code == 0
        assert len(asked) == 1, "nothing is left to restore"


@pytest.mark.parametrize("answer", ["y", "n"])
def test_a_person_at_a_terminal_is_asked_once(server: Server, answer: str) -> None:
    asked = []

    def ask(text: str) -> bool:
        asked.append(text)
        return answer == "y"

    for _ in range(2):
        if answer == "y":
            assert is_toy(weights.load_model("toy@unpinned", talk=Talk(ask=ask)))
        else:
            with pytest.raises(ModelError, match="was not downloaded"):
                weights.load_model("toy@unpinned", talk=Talk(ask=ask))
    assert len(asked) == (1 if answer == "y" else 2)
    assert "Note: for tests only. Download it?" in asked[0]


def test_the_question_on_a_real_terminal() -> None:
    code = "from vdeblur.cli.terminal import question; print('answer', question()('Download it?'))"
    leader, follower = pty.openpty()
    process = subprocess.Popen([sys.executable, "-c", code], stdin=follower, stderr=follower, stdout=subprocess.PIPE)
    os.close(follower)
    os.write(leader, b"y\n")
    output, _ = process.communicate()
    shown = os.read(leader, 1000)
    os.close(leader)
    assert output == b"answer True\n"
    assert b"Download it? [y/N]" in shown


def test_an_unpinned_file_that_changed_is_refused(vdeblur, server: Server) -> None:
    assert vdeblur("models", "download", "toy@unpinned", "--yes").exit_code == 0
    assert vdeblur("models", "remove", "toy@unpinned").exit_code == 0
    assert vdeblur("models", "download", "toy@unpinned").exit_code == 0, "the digest is known now: nothing to ask"
    assert vdeblur("models", "remove", "toy@unpinned").exit_code == 0
    server.places["/unpinned.pth"] = Place(saved(official(Toy())))
    result = vdeblur("models", "download", "toy@unpinned", "--yes")
    assert result.exit_code == ExitStatus.MODEL
    assert "unpinned.pth has changed since it was first fetched: its sha256 is" in last_line(result)
    assert "vdeblur models remove toy@unpinned --forget" in last_line(result)
    assert vdeblur("models", "remove", "toy@unpinned", "--forget").exit_code == 0
    assert vdeblur("models", "download", "toy@unpinned", "--yes").exit_code == 0


@pytest.mark.parametrize(
    ("place", "words"),
    [
        (Place(status=404), "404 Not Found"),
        (Place(b"<html>Quota exceeded</html>", kind="text/html"), "over its quota"),
        (Place(FILE[::-1]), "is not the published file: its sha256 is"),
    ],
)
def test_a_dead_source_says_what_to_do(
    vdeblur, server: Server, clip: Path, tmp_path: Path, place: Place, words: str
) -> None:
    server.places["/pinned.pth"] = place
    result = vdeblur("run", clip, tmp_path / "out.mkv", "-m", "toy")
    assert result.exit_code == ExitStatus.MODEL
    line = last_line(result)
    assert words in line
    assert "get pinned.pth from https://toys.example/page (press the button)" in line
    assert "then: vdeblur models import pinned.pth --as toy@pinned" in line
    assert "without a download: -m lite" in line
    file = tmp_path / "pinned.pth"
    file.write_bytes(FILE)
    assert vdeblur("models", "import", file, "--as", "toy@pinned").exit_code == 0
    assert vdeblur("run", clip, tmp_path / "out.mkv", "-m", "toy").exit_code == 0


@pytest.mark.parametrize("by", ["option", "variable"])
def test_offline(vdeblur, server: Server, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str) -> None:
    if by == "variable":
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    option = ["--offline"] if by == "option" else []
    for name in ("toy", "toy@unpinned"):
        result = vdeblur("run", clip, tmp_path / "out.mkv", "-m", name, *option)
        assert result.exit_code == ExitStatus.MODEL
        assert "is not in the cache, and the network is off" in last_line(result)
        assert "with a network: vdeblur models download toy@" in last_line(result)
    assert not server.asked
    assert vdeblur("run", clip, tmp_path / "out.mkv", *option).exit_code == 0, "lite needs no network"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"PK\x03\x04" + b"x" * 500, "is not a complete PyTorch checkpoint"),
        (saved({"net.0.weight": torch.zeros(3, 3, 3, 3)}), "1 tensors missing, net.0.bias first"),
        (saved({**official(TOY), "extra": torch.zeros(1)}), "1 unknown, extra first"),
        (
            saved({**official(TOY), "net.0.bias": torch.full((3,), torch.nan)}),
            "net.0.bias holds NaN",
        ),
        (saved({**official(TOY), "mean": torch.zeros(3)}), "mean differs from the network's"),
        (saved(official(Toy(4))), "unpinned.pth holds the weights of wide-toy, not of toy"),
    ],
)
def test_a_fetched_file_that_does_not_fit_is_not_kept(
    vdeblur, server: Server, tmp_path: Path, content: bytes, words: str
) -> None:
    server.places["/unpinned.pth"] = Place(content)
    result = vdeblur("models", "download", "toy@unpinned", "--yes")
    assert result.exit_code == ExitStatus.MODEL
    assert words in last_line(result)
    assert not list((tmp_path / "cache").rglob("*unpinned*.safetensors"))
    server.places["/unpinned.pth"] = Place(FILE)
    assert vdeblur("models", "download", "toy@unpinned", "--yes").exit_code == 0, "and nothing of it is remembered"


def test_a_damaged_cache_is_fetched_again(vdeblur, server: Server, tmp_path: Path) -> None:
    path = Path(vdeblur("models", "download", "toy").stdout.strip())
    path.write_bytes(path.read_bytes()[:-4] + b"evil")
    result = vdeblur("models", "verify")
    assert result.exit_code == ExitStatus.MODEL
    assert "toy@pinned: damaged" in result.stdout
    assert "vdeblur models download toy@pinned" in last_line(result)
    assert is_toy(weights.load_model("toy"))
    assert server.asked["GET /pinned.pth"] == 2
    result = vdeblur("models", "verify")
    assert result.exit_code == 0
    assert result.stdout.splitlines() == ["lite@package: whole", "toy@pinned: whole"]


def _load_as_well(results) -> None:
    waits = Talk(notify=lambda event, facts: results.put(event) if event == "warning" else None)
    results.put(is_toy(weights.load_model("toy", talk=waits)))


def _next(results, processes) -> object:
    """Return the next result; fail if one of the processes has failed, as no result may ever come then."""
    while True:
        with contextlib.suppress(queue.Empty):
            return results.get(timeout=0.1)
        assert not any(process.exitcode for process in processes)


def test_two_processes_fetch_once(server: Server) -> None:
    """The server sends the file only after the second process has said that it waits."""
    server.places["/pinned.pth"].until = threading.Event()
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    processes = [context.Process(target=_load_as_well, args=(results,), daemon=True) for _ in range(2)]
    for process in processes:
        process.start()
    assert _next(results, processes) == "warning"
    server.places["/pinned.pth"].until.set()
    assert [_next(results, processes), _next(results, processes)] == [True, True]
    for process in processes:
        process.join()
    assert server.asked["GET /pinned.pth"] == 1


def test_ctrl_c_and_resuming(vdeblur, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = saved({BIMNet.official_name(name): value for name, value in BIMNet().state_dict().items()})
    server.places["/start.pth"] = Place(content, etag='"one"')
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    (tmp_path / "registry.toml").write_text(
        '[lite-start]\nstart_of = "lite"\npart = "bimnet"\ndescription = "half of it"\nlicense = "MIT"\n'
        "[lite-start.weights.only]\n"
        f'sources = [{{ kind = "https", url = "{server.url}/start.pth" }}]\n'
        f'file = "start.pth"\ngit_blob_sha1 = "{blob}"\n'
    )
    signalled = [sys.executable, "-m", "tests.signalled", str(int(signal.SIGINT)), "download_progress", "1"]
    command = [*signalled, "models", "download", "lite-start"]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, cwd=ROOT, check=False)
    assert done.returncode == ExitStatus.INTERRUPTED, done.stderr
    part = tmp_path / "cache" / "downloads" / "lite-start@only" / "start.pth.part"
    assert done.stderr.splitlines()[-1].startswith("vdeblur: stopped")
    have = part.stat().st_size
    assert 0 < have < len(content)
    assert vdeblur("models", "download", "lite-start").exit_code == 0
    assert server.ranges == [f"bytes={have}-"]


@pytest.mark.parametrize("name", ["cdvd-tsp", "pvdnet"])
def test_files_in_the_authors_cloud_folders_download_automatically(
    vdeblur, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Google Drive and Dropbox, simulated, with files as the authors save them."""
    lead_here(monkeypatch, server)
    monkeypatch.setattr(registry, "NETWORKS", networks.NETWORKS)
    monkeypatch.delenv("VDEBLUR_REGISTRY")
    entry, chosen = registry.choose_weights(name)
    network = networks.NETWORKS[entry.network](**entry.arguments)
    prefix = "module." if name == "pvdnet" else ""
    content = saved({prefix + network.official_name(key): value for key, value in network.state_dict().items()})
    source = chosen.remote.sources[0]
    if source.kind == "drive":
        number = "number-0123456789-0123456789"
        server.folder, server.drive, server.places[number] = (
            source.facts["folder"],
            {chosen.remote.name: number},
            Place(content),
        )
    else:
        archive = io.BytesIO()
        with zipfile.ZipFile(archive, "w") as made:
            made.writestr(f"checkpoints/{chosen.remote.name}", content)
        path = "/dropbox" + urlsplit(source.facts["url"]).path
        server.places[path] = Place(archive.getvalue(), ranges=False)  # Dropbox zips the folder while it sends it
    result = vdeblur("models", "download", name, "--yes")
    assert result.exit_code == 0, result.output
    assert f"downloading {chosen.remote.name}, about {chosen.megabytes:g} MB from {source.place}" in result.stderr
    assert "note: the" in result.stderr
    loaded = weights.load_model(name, talk=Talk(offline=True)).state_dict()
    assert all(torch.equal(value, loaded[key]) for key, value in network.state_dict().items())


def test_a_zip_on_drive_is_downloaded_once_for_all_weights_in_it(
    vdeblur, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lead_here(monkeypatch, server)
    monkeypatch.setattr(registry, "NETWORKS", networks.NETWORKS)
    monkeypatch.delenv("VDEBLUR_REGISTRY")
    entry = registry.find_entry("estrnn")
    network = entry.build()
    tensors = {f"module.model.{network.official_name(name)}": value for name, value in network.state_dict().items()}
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as made:
        for exposure in ("1ms8ms", "2ms16ms"):
            content = saved({"epoch": 500, "model": "ESTRNN", "state_dict": tensors, "optimizer": {"state": {}}})
            made.writestr(f"checkpoints/ESTRNN_C80B15_BSD_{exposure}.tar", content)
    number = entry.weights["bsd-2ms16ms"].remote.sources[0].facts["id"]
    server.places[number] = Place(packed.getvalue())

    refused = vdeblur("models", "download", "estrnn")  # nobody to ask, and no published digest
    assert refused.exit_code == ExitStatus.MODEL
    assert "estrnn@bsd-2ms16ms has no digest from its authors" in last_line(refused)
    for name in ("estrnn", "estrnn@bsd-1ms8ms"):
        result = vdeblur("models", "download", name, "--yes")
        assert result.exit_code == 0, result.output
        loaded = weights.load_model(name, talk=Talk(offline=True)).state_dict()
        assert all(torch.equal(value, loaded[key]) for key, value in network.state_dict().items())
    assert sum(count for path, count in server.asked.items() if path.startswith("GET /drive/")) == 1
    absent = vdeblur("models", "download", "estrnn@bsd-3ms24ms", "--yes")
    assert absent.exit_code == ExitStatus.MODEL
    assert "the archive holds no files called ESTRNN_C80B15_BSD_3ms24ms.tar" in last_line(absent)
    assert "take the file out of its folder checkpoints" in last_line(absent)

    [kept] = (tmp_path / "cache" / "downloads" / "archives").rglob("*.lock")
    kept.with_suffix(".zip").write_bytes(packed.getvalue()[:1000])  # damaged
    assert vdeblur("models", "remove", "estrnn@bsd-2ms16ms").exit_code == 0
    assert not kept.with_suffix(".zip").exists()
    kept.with_suffix(".zip").write_bytes(packed.getvalue()[:1000])
    result = vdeblur("models", "download", "estrnn", "--yes")
    assert result.exit_code == 0, result.output
    assert kept.with_suffix(".zip").read_bytes() == packed.getvalue()


def test_a_model_without_published_weights(vdeblur, server: Server, clip: Path, tmp_path: Path) -> None:
    result = vdeblur("run", clip, tmp_path / "out.mkv", "-m", "large-toy")
    assert result.exit_code == ExitStatus.MODEL
    assert "large-toy has no published weights: nobody published any" in last_line(result)
    assert "vdeblur run --weights FILE -m large-toy; without a download: -m lite" in last_line(result)
    (tmp_path / "own.pth").write_bytes(FILE)
    own = ("-m", "large-toy", "--weights", tmp_path / "own.pth")
    assert vdeblur("run", clip, tmp_path / "out.mkv", *own).exit_code == 0
    result = vdeblur("run", clip, tmp_path / "x.mkv", "-m", "toy@pinned", "--weights", tmp_path / "own.pth")
    assert result.exit_code == ExitStatus.USAGE
    result = vdeblur("models", "download", "large-toy")
    assert result.exit_code == ExitStatus.MODEL
    assert "nobody published any" in last_line(result)


def test_weights_to_download_by_hand(vdeblur, server: Server) -> None:
    result = vdeblur("models", "download", "toy@by-hand")
    assert result.exit_code == ExitStatus.MODEL
    assert "get by-hand.pth from https://toys.example/page" in last_line(result)


def test_start_weights_are_fetched_but_not_run(vdeblur, server: Server, clip: Path, tmp_path: Path) -> None:
    assert torch.equal(weights.load_start("toy-start")["part.weight"], torch.ones(2, 3))
    result = vdeblur("run", clip, tmp_path / "out.mkv", "-m", "toy-start")
    assert result.exit_code == ExitStatus.MODEL
    assert "toy-start restores nothing: half a toy" in last_line(result)


def test_importing_the_users_own_file(vdeblur, server: Server, clip: Path, tmp_path: Path) -> None:
    tuned = Toy()
    (tmp_path / "tuned.pth").write_bytes(
        saved({"state_dict": {f"module.{key}": value for key, value in tuned.state_dict().items()}})
    )
    result = vdeblur("models", "import", tmp_path / "tuned.pth", "--as", "toy@mine")
    assert result.exit_code == 0, result.output
    assert "run with -m toy@mine" in result.stderr
    assert torch.equal(weights.load_model("toy@mine").body.weight, tuned.body.weight)
    assert vdeblur("run", clip, tmp_path / "out.mkv", "-m", "toy@mine").exit_code == 0
    assert "toy@mine" in vdeblur("models", "list").stdout
    assert vdeblur("models", "import", tmp_path / "tuned.pth", "--as", "large-toy@mine").exit_code == 0
    assert vdeblur("models", "remove", "toy@mine").exit_code == 0
    assert "toy@mine" not in vdeblur("models", "list").stdout.replace("large-toy@mine", "")
    Path(cache.path_of("large-toy@mine")).write_bytes(b"damaged")
    with pytest.raises(ModelError, match="the imported file of large-toy@mine is damaged"):
        weights.load_model("large-toy@mine")


def test_importing_a_file_under_the_wrong_name(vdeblur, server: Server, tmp_path: Path) -> None:
    file = tmp_path / "file.pth"
    file.write_bytes(saved(official(Toy())))

    def refused(name: str) -> str:
        result = vdeblur("models", "import", file, "--as", name)
        assert result.exit_code == ExitStatus.MODEL, result.output
        return last_line(result)

    assert "is not the published file" in refused("toy")
    assert "if it is your own file: --as toy@mine" in refused("toy")
    assert "identity has no weights (it needs none)" in refused("identity")
    assert "identity has no weights (it needs none)" in refused("identity@mine")
    assert "large-toy has no published weights (name the file's weights: --as large-toy@mine)" in refused("large-toy")
    assert "is not a valid name" in refused("toy@../evil")
    assert "unknown model 'nothing'" in refused("nothing")
    assert "is in the package" in refused("lite")
    file.write_bytes(START)
    assert "tensors missing" in refused("toy@mine")
    assert "takes no weights of your own" in refused("toy-start@mine")
    file.unlink()
    assert "no such file" in refused("toy")


def test_listing_and_showing(vdeblur, server: Server) -> None:
    lines = vdeblur("models", "list").stdout.splitlines()
    states = {line.split()[0]: line for line in lines}
    assert "in the package" in states["lite"]
    assert "downloads itself" in states["toy"]
    assert "asks, then downloads" in states["toy@unpinned"]
    assert "by hand" in states["toy@by-hand"]
    assert "none to be had" in states["large-toy"]
    assert "unborn" not in states, "its network is not there"
    assert not any(len(line) != len(line.rstrip()) for line in lines)
    listed = json.loads(vdeblur("models", "list", "--json").stdout)
    assert {"model": "toy", "weights": "pinned", "pins": {"sha256": SHA256}}.items() <= next(
        facts for facts in listed if facts["model"] == "toy"
    ).items()
    shown = vdeblur("models", "show", "toy").stdout
    assert "GoPro 30 dB, SSIM 0.9 (2D); all frames" in shown
    assert "https://toys.example/page" in shown
    assert "toy@unpinned" not in vdeblur("models", "show", "toy@pinned").stdout
    facts = json.loads(vdeblur("models", "show", "toy", "--json").stdout)
    assert [row["weights"] for row in facts["weights"]] == ["pinned", "partly", "unpinned", "by-hand"]


@pytest.mark.parametrize("name", [entry.name for entry in registry.known_models().values() if entry.paper])
def test_models_show_ends_with_the_bibtex_entry_of_the_paper(vdeblur, name: str) -> None:
    shown = vdeblur("models", "show", name).stdout
    bibtex = json.loads(vdeblur("models", "show", name, "--json").stdout)["bibtex"]
    assert shown.endswith(f"\n\n{bibtex}\n")
    match = re.fullmatch(r"@(article|inproceedings|misc)\{(\w+),\n(.*)\n\}", bibtex, re.DOTALL)
    assert match
    fields = dict(re.findall(r"^  (\w+) += \{(.+?)\},$", match[3], re.DOTALL | re.MULTILINE))
    venue = {"article": "journal", "inproceedings": "booktitle", "misc": "eprint"}[match[1]]
    assert {"title", "author", "year", venue} <= fields.keys()
    assert bibtex.count("{") == bibtex.count("}")
    surnames = [author.partition(",")[0] for author in re.split(r"\s+and\s+", fields["author"])]
    title = fields["title"].replace("{", "").replace("}", "").lower()
    paper = registry.find_entry(name).paper.lower()
    assert title in paper
    assert ":" not in paper or paper.startswith(", ".join(surnames).lower() + ": ")


def test_paths(vdeblur, server: Server, tmp_path: Path) -> None:
    assert vdeblur("models", "path").stdout.strip() == str(tmp_path / "cache")
    assert vdeblur("models", "path", "lite").stdout.strip().endswith("lite.safetensors")
    result = vdeblur("models", "path", "toy")
    assert result.exit_code == ExitStatus.MODEL
    assert "vdeblur models download toy" in last_line(result)
    fetched = vdeblur("models", "download", "toy").stdout
    assert vdeblur("models", "path", "toy").stdout == fetched
    assert vdeblur("models", "remove", "lite").exit_code == ExitStatus.MODEL
    assert "nothing in the cache" in vdeblur("models", "remove", "toy@unpinned").stderr


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[toy\n", "cannot be read as TOML"),
        ('[lite]\nnetwork = "lite"\ndescription = ""\nlicense = ""', "there is already a model 'lite'"),
        ('[mine]\nnetwork = "lite"\ndescription = ""', "license is missing"),
        ('[mine]\nnetwork = "lite"\ndescription = ""\nlicense = ""\ncolour = 1', "unknown key 'colour'"),
        ("mine = 3", "[mine] is not valid"),
    ],
)
def test_a_faulty_registry(vdeblur, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "registry.toml").write_text(text)
    monkeypatch.setenv("VDEBLUR_REGISTRY", str(tmp_path / "registry.toml"))
    result = vdeblur("models", "list")
    assert result.exit_code == ExitStatus.MODEL
    assert words in last_line(result)
    monkeypatch.setenv("VDEBLUR_REGISTRY", str(tmp_path / "none.toml"))
    assert "cannot be read: No such file" in last_line(vdeblur("models", "list"))


def test_options_of_a_subcommand_can_stand_in_the_file(vdeblur, server: Server, tmp_path: Path) -> None:
    config = tmp_path / "options.toml"
    config.write_text("[models.download]\nyes = true\n")
    assert vdeblur("--config", config, "models", "download", "toy@unpinned").exit_code == 0
    config.write_text("[models.download]\nmaybe = true\n")
    assert vdeblur("--config", config, "models", "list").exit_code == ExitStatus.USAGE


def test_prefixes_and_ignored_tensors() -> None:
    state = {f"generator.{key}": value for key, value in official(TOY).items()}
    fitted, faults = checkpoint.fit({**state, "step": torch.zeros(1)}, Toy(), "generator.", ("step",))
    assert not faults
    assert fitted.keys() == TOY.state_dict().keys()
    assert torch.equal(fitted["body.weight"], TOY.body.weight)
    fitted, faults = checkpoint.fit({**TOY.state_dict(), "step": torch.zeros(1)}, Toy(), "generator.", ("step",))
    assert not faults
    without = {key: value for key, value in official(TOY).items() if key != "mean"}
    assert not checkpoint.fit(without, Toy())[1], "a constant may be missing"


def test_start_weights_that_do_not_fit_are_refused(vdeblur, server: Server, tmp_path: Path) -> None:
    file = tmp_path / "start.pth"
    server.places["/start.pth"] = Place(saved({"part.weight": torch.ones(3, 2)}))
    text = (tmp_path / "registry.toml").read_text()
    (tmp_path / "registry.toml").write_text("\n".join(line for line in text.splitlines() if "git_blob" not in line))
    for content, words in [
        ({"part.weight": torch.ones(3, 2)}, "1 of another shape, part.weight"),
        ({"body.weight": torch.ones(2, 3)}, "1 tensors missing, part.weight first"),
        ({"part.weight": torch.full((2, 3), torch.nan)}, "holds NaN"),
    ]:
        file.write_bytes(saved(content))
        server.places["/start.pth"] = Place(saved(content))
        for command in (("import", file, "--as", "toy-start"), ("download", "toy-start", "--yes")):
            result = vdeblur("models", *command)
            assert result.exit_code == ExitStatus.MODEL
            assert words in last_line(result)
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


@pytest.mark.parametrize("word", ["module", "net"])
@pytest.mark.parametrize(("name", "part"), [("bimnet", "bimnet"), ("pwc-net", "pwcnet")])
def test_start_weights_under_both_of_their_names(tmp_path: Path, name: str, part: str, word: str) -> None:
    network = networks.PARTS[part]()
    theirs = {network.official_name(key): value for key, value in network.state_dict().items()}
    entry = registry.find_entry(name)
    given = {f"{key.replace('module', word)}": value for key, value in theirs.items()}
    assert all(key.startswith(word) for key in given)
    fitted = checkpoint.fit_start(given, entry, "file")
    assert fitted.keys() == theirs.keys()
    assert all(torch.equal(fitted[key], value) for key, value in theirs.items())


def test_a_file_without_a_published_digest_is_not_called_verified(vdeblur, server: Server, tmp_path: Path) -> None:
    file = tmp_path / "other-name.pth"
    file.write_bytes(FILE)
    result = vdeblur("models", "import", file, "--as", "toy@unpinned")
    assert result.exit_code == 0
    said = [line for line in result.stderr.splitlines() if line.startswith("warning")]
    assert said == [
        "warning: other-name.pth fits toy, but is not verified: its authors published no digest, "
        "and its name is not theirs, unpinned.pth"
    ]
    assert vdeblur("models", "import", file, "--as", "toy@mine").stderr.count("warning") == 0
    assert vdeblur("models", "download", "toy", "toy@partly").exit_code == 0
    assert vdeblur("models", "verify").stdout.splitlines() == [
        "lite@package: whole",
        "toy@pinned: whole",
        "toy@partly: whole, partly verified: by 8 digits of its SHA-256",
        "toy@unpinned: whole, not verified: no published digest",
        "toy@mine: whole, imported by you",
    ]
    file.write_bytes(saved(official(Toy())))
    line = last_line(vdeblur("models", "import", file, "--as", "toy@unpinned"))
    assert "has changed since it was first fetched" in line
    assert "vdeblur models remove toy@unpinned --forget" in line


def test_a_cache_filled_by_one_user_serves_another(vdeblur, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    before = os.umask(0o022)
    try:
        path = Path(vdeblur("models", "download", "toy").stdout.strip())
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o644
    real = Path.open

    def refused(self: Path, *arguments, **options):
        if self == path:
            raise PermissionError(13, "Permission denied")
        return real(self, *arguments, **options)

    monkeypatch.setattr(Path, "open", refused)
    assert "cannot be read: permission denied" in last_line(vdeblur("models", "download", "toy"))
    result = vdeblur("models", "verify")
    assert result.exit_code == ExitStatus.MODEL
    assert "toy@pinned: not readable by you" in result.stdout


def test_removing_a_model_keeps_what_the_user_imported(vdeblur, server: Server, tmp_path: Path) -> None:
    (tmp_path / "own.pth").write_bytes(FILE)
    assert vdeblur("models", "import", tmp_path / "own.pth", "--as", "toy@mine").exit_code == 0
    assert vdeblur("models", "download", "toy").exit_code == 0
    result = vdeblur("models", "remove", "toy", "--forget")
    assert "removed toy@pinned\n" in result.stderr
    assert "kept toy@mine, which you imported" in result.stderr
    assert is_toy(weights.load_model("toy@mine"))
    assert "removed toy@mine" in vdeblur("models", "remove", "toy@mine").stderr


def test_a_refusal_shows_the_licence_note_and_a_hint_lists_models_that_run(vdeblur, server: Server) -> None:
    assert "Note: for tests only" in last_line(vdeblur("models", "download", "toy@unpinned"))
    line = last_line(vdeblur("models", "show", "nothing"))
    assert "or best" in line
    assert "toy-start" not in line


def test_the_source_that_is_tried_is_the_one_named(vdeblur, server: Server, tmp_path: Path) -> None:
    registry = tmp_path / "registry.toml"
    first = f'sources = [{{ kind = "https", url = "{server.url}/gone.pth" }}, {{ kind = "https"'
    registry.write_text(registry.read_text().replace('sources = [{ kind = "https"', first))
    result = vdeblur("models", "download", "toy@unpinned")
    assert f"/gone.pth, unencrypted or else {server.url}/unpinned.pth" in last_line(result)
    result = vdeblur("models", "download", "toy@unpinned", "--yes")
    assert result.exit_code == 0
    assert f"from {server.url}/gone.pth" in result.stderr
    assert f"from {server.url}/unpinned.pth" in result.stderr


def test_a_closed_pipe_is_not_an_internal_error() -> None:
    """`vdeblur models list | head -1` once ended in an internal error."""
    command = [sys.executable, "-m", "vdeblur", "models", "list"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    complaints = process.stderr.read()
    process.stderr.close()
    assert process.wait() == ExitStatus.OUTPUT
    assert not complaints
