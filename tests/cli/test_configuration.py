"""vdeblur.toml: what the file in the working folder may set, and values of the wrong kind."""

import subprocess
import sys
from pathlib import Path

import click
import pytest

from tests import clips
from tests.conftest import ROOT
from tests.test_rules import commands
from vdeblur.cli.configuration import HARMLESS
from vdeblur.errors import OutputError
from vdeblur.output.user_options import check_encoder_options

H264 = ("-c:v", "libx264", "-preset", "ultrafast")
# Options that ./vdeblur.toml may not set, by the reason.
HARMFUL = {
    "name files": "weights suffix ray_address restored save report reference data dataset validation out init config "
    "cache preview output values files_from log mask tensorboard name only truth",
    "replace outputs": "overwrite",
    "run programs": "model engine reference e vmaf",
    "reach the network": "yes forget offline engine model dataset",
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    clips.make(Path("in.mp4"), frames=3, codec=H264)
    return tmp_path


def test_what_the_working_folder_sets_is_named(vdeblur, here: Path) -> None:
    """C high 2: ./vdeblur.toml was read without a word."""
    (here / "vdeblur.toml").write_text('[run]\ncrf = 30\npreset = "ultrafast"\n')
    result = vdeblur("run", "in.mp4", "out.mp4", "-m", "identity", "--json")
    assert result.exit_code == 0
    assert "./vdeblur.toml sets run: crf = '30', preset = 'ultrafast'" in result.stderr
    assert all(line.startswith("{") for line in result.stdout.splitlines())
    assert "vdeblur.toml" not in vdeblur("probe", "in.mp4").output, "it sets nothing for this command"


@pytest.mark.parametrize(
    "table",
    ['[run]\noverwrite = true', '[run]\nengine = "ray"', '[run]\nray_address = "10.0.0.1:6379"', '[run]\ne = ["g=1"]',
     '[run]\nmodel = "evil.py:Net"', '[run]\nweights = "x.pth"', '[run]\nyes = true', '[run]\nsuffix = "/../x"',
     '[bench]\nreference = ["evil.py"]', '[bench]\nreport = "x.html"', '[bench]\nsave = "x"', '[train]\nout = "x"',
     '[train]\ninit = "x"', '[synth]\npreview = "x.png"', '[compare]\noverwrite = true', '[compare]\noutput = "x"',
     '[models.download]\nyes = true'],
)  # fmt: skip
def test_what_the_working_folder_may_not_set(vdeblur, here: Path, table: str) -> None:
    """C high 2: it could replace outputs, run scripts, write files and join a cluster."""
    (here / "vdeblur.toml").write_text(table)
    (here / "out.mp4").write_bytes(b"precious")
    result = vdeblur("run", "in.mp4", "out.mp4", "-m", "identity")
    assert result.exit_code == 2
    assert "./vdeblur.toml may not set" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert (here / "out.mp4").read_bytes() == b"precious"


def test_a_file_that_is_named_may_set_everything(vdeblur, here: Path) -> None:
    """C high 2: with --config, and in the user's own folder, every option counts."""
    (here / "vdeblur.toml").write_text('[run]\noverwrite = true\nmodel = "identity"\n')
    (here / "out.mp4").write_bytes(b"old")
    assert vdeblur("--config", "vdeblur.toml", "run", "in.mp4", "out.mp4").exit_code == 0
    own = here / "no-config" / "vdeblur"  # XDG_CONFIG_HOME is set for all tests
    own.mkdir(parents=True)
    (here / "vdeblur.toml").rename(own / "vdeblur.toml")
    result = vdeblur("run", "in.mp4", "out.mp4")
    assert result.exit_code == 0
    assert "sets run" not in result.stderr


def test_every_option_is_either_harmless_or_not() -> None:
    """C high 2: whoever adds an option decides whether ./vdeblur.toml may set it."""
    harmful = set(" ".join(HARMFUL.values()).split())
    assert not harmful & HARMLESS
    for words, command in commands():
        for param in command.params if words else ():
            if isinstance(param, click.Option):
                assert param.name in harmful | HARMLESS, f"{' '.join(words)} --{param.name}"
            if isinstance(param, click.Option) and isinstance(param.type, click.Path):
                assert param.name in harmful, f"{param.name} names a file"


@pytest.mark.parametrize(
    "text",
    ["run = 3", "run = [1]", "[run]\ncrf = [1, 2]", "[run]\ncrf = {a = 1}", "[run]\ncrf = 2020-01-01",
     "[run]\ncrf = true",
     "[run]\nframes = 1.5", "[run]\ndeinterlace = false", "[run]\nlossless = 1", "[run]\nlossless = 'yes'",
     "[run]\nstart = 2020-01-01T00:00:00", "[run.crf]\nx = 1", "[run]\ntile = [64]", "[nothing]\na = 1", "[run]\nx = 1",
     "[models]\ndownload = 3", "[models.list]\nx = 1", "a = " + "[" * 5000 + "]" * 5000, "crf = ", "\x00",
     "[run]\ncrf='\\ud800'",
     "#" * (2 << 20), "[bench]\nprecisions = 3.5"],
    ids=range(23),
)  # fmt: skip
def test_odd_values(vdeblur, here: Path, text: str) -> None:
    """C low: odd TOML values ended with a traceback or an odd answer."""
    (here / "vdeblur.toml").write_text(text)
    result = vdeblur("run", "in.mp4", "out.mp4", "-m", "identity")
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    assert [line[:9] for line in result.stderr.splitlines() if " sets run: " not in line] == ["vdeblur: "]


def test_a_command_that_is_no_table(vdeblur, here: Path) -> None:
    """B: `run = 3` was answered with a list of commands that has run."""
    (here / "vdeblur.toml").write_text("run = 3")
    assert "run is 3, and must be a table: [run]" in vdeblur("run", "in.mp4", "out.mp4").stderr


# Options of encoders -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("codec", "option"),
    [("h264", "stats=victim"), ("h264", "passlogfile=victim"), ("h264", "x264-params=pass=1:stats=victim"),
     ("h264", "x264opts=stats=victim"), ("h264", "x264-params=dump-yuv=victim"),
     ("h264", "x264-params=dump_yuv=victim"),
     ("h264", "x264-params=cqm=victim"), ("h264", "x264-params=st\\ats=victim"), ("h264", "x264-params='stats'=victim"),
     ("h264", "x264-params=ref=1: stats=victim"), ("h264", "flags=512"), ("h264", "flags=+pass1"),
     ("hevc", "x265-params=csv=victim"), ("hevc", "x265-params=analysis-save=victim"), ("hevc", "x265-stats=victim"),
     ("hevc", "x265-params=qpfile=victim"), ("hevc", "x265-params=scaling-list=victim"),
     ("av1", "svtav1-params=fgs-table=victim"), ("av1", "svtav1-params=stats=victim"),
     ("librav1e", "y=victim"), ("librav1e", "an=victim"), ("librav1e", "i=victim"), ("librav1e", "progress=victim"),
     ("librav1e", "report=1"), ("librav1e", "f=null"), ("librav1e", "/rav1e-params=victim"), ("librav1e", "map=0"),
     ("libaom-av1", "vstats_file=victim"), ("libaom-av1", "aom-params=film-grain-table=victim"),
     ("libaom-av1", "filter_complex=movie=victim")],
)  # fmt: skip
def test_options_of_encoders_name_no_files(vdeblur, here: Path, codec: str, option: str) -> None:
    """C high 2: -e wrote chosen bytes over any file, and gave the ffmpeg program options of its own."""
    victim = here / "victim"
    victim.write_bytes(b"precious")
    result = vdeblur("run", "in.mp4", "out.mkv", "-m", "identity", "-c", codec, "-e", option)
    assert result.exit_code == 4, result.output
    assert option.partition("=")[0] in result.stderr
    assert victim.read_bytes() == b"precious"
    assert sorted(path.name for path in here.iterdir() if path.name != "cache") == ["in.mp4", "victim"]


@pytest.mark.parametrize(
    ("codec", "options"),
    [("h264", ["g=2", "bf=0", "x264-params=ref=1:no-cabac=1", "tune=film", "x264-params=cqm=jvt", "flags=+cgop"]),
     ("hevc", ["x265-params=no-info=1:log-level=error", "x265-params=scaling-list=default"]),
     ("librav1e", ["rav1e-params=speed=10", "g=2"]), ("av1", ["svtav1-params=film-grain=8:tune=0"])],
)  # fmt: skip
def test_options_of_encoders_that_name_no_files(vdeblur, here: Path, codec: str, options: list[str]) -> None:
    """C high 2: all others still reach the encoder."""
    given = [word for option in options for word in ("-e", option)]
    result = vdeblur("run", "in.mp4", "out.mkv", "-m", "identity", "-c", codec, "--preset", "ultrafast", *given)
    assert result.exit_code == 0, result.output


def test_options_are_checked_for_the_ffmpeg_program_by_its_list() -> None:
    """C high 2: an external encoder takes what `ffmpeg -h encoder=` lists, and what every encoder takes."""
    check_encoder_options("librav1e", [("qp", "80"), ("b", "2M"), ("tiles", "2")], external=True)
    with pytest.raises(OutputError, match="has no option 'crf_max'"):
        check_encoder_options("librav1e", [("crf_max", "3")], external=True)


# Modules of the working folder ---------------------------------------------------------------------------------------


def _in_hostile_folder(folder: Path, modules: tuple[str, ...], *arguments: object) -> Path:
    """Run vdeblur in a folder with modules that leave a proof; return the proof's path."""
    proof = folder / "proof"
    for name in modules:
        (folder / f"{name}.py").write_text(f"open({str(proof)!r}, 'a').write({name!r})\nraise SystemExit(9)\n")
    start = folder.parent / f"start-{folder.name}" / "start.py"  # as the installed command: not in the working folder
    start.parent.mkdir()
    start.write_text("from vdeblur.cli.main import main\nif __name__ == '__main__':\n    main()\n")
    command = [sys.executable, str(start), *map(str, arguments)]
    environment = {"PYTHONPATH": f"{ROOT}/src", "PATH": "/usr/bin:/bin", "HOME": str(folder), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return proof


def test_synth_imports_nothing_from_the_working_folder(here: Path) -> None:
    """C high 3: the worker processes of synth imported multiprocessing from the working folder."""
    for number in range(2):
        clips.make(
            here / f"sharp{number}.mp4", frames=12, size="96x96", codec=("-c:v", "libx264", "-preset", "ultrafast")
        )
    modules = ("multiprocessing", "vdeblur", "torch", "queue")
    words = ("synth", "sharp0.mp4", "sharp1.mp4", "out", "--average", "3", "--frames", "2", "-j", "2")
    assert not _in_hostile_folder(here, modules, *words).exists()


def test_speed_imports_nothing_from_the_working_folder(here: Path) -> None:
    """C high 3: `bench --speed` started `python -m`, which imports from the working folder first."""
    words = ("bench", "--speed", "--size", "64x48", "--frames", "2", "--repeats", "1", "-m", "identity", "-d", "cpu")
    assert not _in_hostile_folder(here, ("vdeblur", "torch", "json"), *words).exists()


@pytest.mark.slow
def test_workers_of_ray_import_nothing_from_the_working_folder(here: Path) -> None:
    """C high 3: Ray's workers imported vdeblur, and all that it needs, from the working folder."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'vdeblur[ray]'")
    words = ("run", "in.mp4", "out.mp4", "-m", "identity", "--engine", "ray", "-j", "1")
    assert not _in_hostile_folder(here, ("vdeblur", "torch", "av"), *words).exists()
    assert (here / "out.mp4").exists()
