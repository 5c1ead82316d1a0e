"""The scripts in examples/, run unchanged, with small stand-ins for GNU parallel and sbatch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import clips
from tests.conftest import ROOT

H264 = ("-c:v", "libx264", "-preset", "ultrafast", "-g", "25")
OPTIONS = ("-m", "identity", "--deterministic", "--segment", "0.5")

# Does what GNU parallel does with the options used, one after the other, and notes that it was called.
PARALLEL = """#!{python}
import subprocess, sys
if sys.argv[1:] == ["--version"]:
    sys.exit(print("GNU parallel 20240222"))
assert sys.argv[1:4] == ["--quote", "--null", "--max-procs"], sys.argv
open("{notes}", "a").write(sys.argv[4])
items = sys.stdin.read().split("\\0")[:-1]
failed = [item for item in items if subprocess.run([word.replace("{{}}", item) for word in sys.argv[5:]]).returncode]
sys.exit(len(failed))
"""
ABSENT = "#!/bin/sh\nexit 127\n"
# Runs the script on standard input at once, for each number of an array.
SBATCH = """#!{python}
import os, subprocess, sys
script = sys.stdin.read()
options = dict(word.removeprefix("--").split("=", 1) for word in sys.argv[1:] if "=" in word)
assert "--parsable" in sys.argv and script.startswith("#!")
open("{notes}", "a").write(f"{{options}}\\n")
first, _, last = options.get("array", "0-0").partition("-")
for number in range(int(first), int(last) + 1):
    here = os.environ | {{"SLURM_ARRAY_TASK_ID": str(number)}}
    subprocess.run(["bash", "-c", script], env=here, stdout=2, check=True)
print("4711;cluster" if "array" in options else "4712")
"""


@pytest.fixture
def place(tmp_path: Path) -> dict[str, str]:
    """Return an environment with `vdeblur` on its PATH, and without GNU parallel."""
    (tmp_path / "bin").mkdir()
    put(tmp_path, "vdeblur", f'#!/bin/sh\nexec "{sys.executable}" -m vdeblur "$@"\n')
    put(tmp_path, "parallel", ABSENT)
    return {**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}


def put(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / "bin" / name
    path.write_text(text)
    path.chmod(0o755)


def run(place: dict[str, str], name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [str(ROOT / "examples" / name), *(str(argument) for argument in arguments)]
    return subprocess.run(command, env=place, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("by", [pytest.param("parallel", marks=pytest.mark.slow), "xargs"])
def test_shares_of_a_file_at_once(vdeblur, place: dict[str, str], tmp_path: Path, by: str) -> None:
    if by == "parallel":
        put(tmp_path, "parallel", PARALLEL.format(python=sys.executable, notes=tmp_path / "notes"))
    source = clips.make(tmp_path / "a 'file'.mp4", frames=40, codec=H264, audio=("-c:a", "aac"))
    assert vdeblur("run", source, tmp_path / "alone.mp4", *OPTIONS).exit_code == 0
    done = run(place, "parallel.sh", source, tmp_path / "made of shares.mp4", 2, *OPTIONS)
    assert done.returncode == 0, done.stderr
    assert "40 frames done already" in done.stderr, "the shares have made them"
    assert (tmp_path / "made of shares.mp4").read_bytes() == (tmp_path / "alone.mp4").read_bytes()
    assert (tmp_path / "notes").exists() == (by == "parallel")


def test_the_files_of_a_folder_at_once(place: dict[str, str], tmp_path: Path) -> None:
    folder, output = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    clips.make(folder / "one of two.mp4", frames=3, codec=H264)
    clips.make(folder / "TWO.MKV", frames=3, codec=H264)
    (folder / "bad.mov").write_bytes(b"no video")
    (folder / "notes.txt").touch()
    done = run(place, "parallel.sh", folder, output, 2, "-m", "identity")
    assert done.returncode != 0
    assert "bad.mov cannot be read as video" in done.stderr
    assert {path.name for path in output.iterdir()} == {"one of two.mp4", "TWO.MKV"}


@pytest.mark.slow
def test_a_slurm_array_and_the_job_that_joins(vdeblur, place: dict[str, str], tmp_path: Path) -> None:
    put(tmp_path, "sbatch", SBATCH.format(python=sys.executable, notes=tmp_path / "notes"))
    source = clips.make(tmp_path / "größe $HOME.mp4", frames=40, codec=H264)
    assert vdeblur("run", source, tmp_path / "alone.mp4", *OPTIONS).exit_code == 0
    done = run(place, "slurm_array.sh", source, tmp_path / "made of shares.mp4", 2, *OPTIONS)
    assert (done.returncode, done.stdout) == (0, "4712\n"), done.stderr
    array, join = (tmp_path / "notes").read_text().splitlines()
    assert "'array': '1-2'" in array
    assert "'dependency': 'afterany:4711'" in join
    assert "40 frames done already" in done.stderr
    assert (tmp_path / "made of shares.mp4").read_bytes() == (tmp_path / "alone.mp4").read_bytes()
