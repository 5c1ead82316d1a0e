"""Who may import whom, and that what is documented is there."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from tests.conftest import ROOT
from vdeblur.cli import main

SOURCE = ROOT / "src" / "vdeblur"
FILES = sorted(SOURCE.rglob("*.py"))
STAGES = {"decode", "deinterlace", "color", "scenes", "tiles", "streams", "codecs", "external", "mux", "encode"}
BESIDE = {
    "decode": {"hdr"},
    "deinterlace": {"decode"},
    "streams": {"networks", "tiles"},
    "external": {"decode"},
    "codecs": {"decode", "external", "hdr"},
    "mux": {"decode"},
    "encode": {"decode", "codecs", "mux"},
}
CLI = {
    "cli",
    "cli_bench",
    "cli_bench_speed",
    "cli_compare",
    "cli_doctor",
    "cli_models",
    "cli_options",
    "cli_probe",
    "cli_report",
    "cli_train",
    "cli_synth",
}
OWNERS = {"av": {"decode", "deinterlace", "hdr", "codecs", "external", "mux", "encode", "parts", "frame", "color",
                 "maker", "pipeline", "train.synth", "train.footage", "page", "packet_times",
                 "probe", "sample_frames", "compare", "compare_video", "doctor",
                 "bench.baselines", "bench.contenders", "bench.parts", "bench.pictures"},
          "psutil": {"memory"}, "rich": CLI, "click": CLI,
          "filelock": {"download", "segments", "train.synthesize"},
          **{name: {"download"} for name in ("huggingface_hub", "gdown", "requests")}}  # fmt: skip


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_go_one_way(path: Path) -> None:
    name = ".".join(path.relative_to(SOURCE).with_suffix("").parts)
    ours = {module.removeprefix("vdeblur.") for module in imports(path) if module.startswith("vdeblur.")}
    if not name.startswith("cli") and name != "__main__":
        assert not any(module.startswith("cli") for module in ours), "nothing below imports the command line"
    if name.startswith("networks."):
        assert all(module.startswith("networks") for module in ours)
    if name in STAGES:
        allowed = {"frame", "errors"} | BESIDE.get(name, set())
        assert {module.split(".")[0] for module in ours} <= allowed
    for package, owners in OWNERS.items():
        if any(module.split(".")[0] == package for module in imports(path)):
            assert name in owners, f"{package} belongs to {owners}"


@pytest.mark.parametrize(
    "words",
    [["run"], ["models", "download"], ["bench"], ["compare"], ["probe"], ["doctor"], ["train"], ["synth"]],
    ids=" ".join,
)
def test_help_does_not_import_torch(words: list[str]) -> None:
    code = f"import sys; from vdeblur.cli import main; main({[*words, '--help']}, standalone_mode=False); "
    code += "assert not {'torch', 'av', 'numpy', 'rich', 'requests', 'huggingface_hub'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def commands(group: click.Group = main, above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Give every command with the words that call it, those of groups and the groups too."""
    yield above, group
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, (*above, name))
        else:
            yield (*above, name), command


@pytest.mark.parametrize(
    ("words", "command"), list(commands()), ids=lambda value: " ".join(value) if isinstance(value, tuple) else ""
)
def test_every_command_has_help_with_two_examples(vdeblur, words: tuple[str, ...], command: click.Command) -> None:
    text = vdeblur(*words, "-h").output
    assert text.split("Examples:")[1].count("\n  vdeblur ") + text.split("Examples:")[1].count("\n    vdeblur ") >= 2
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{parameter.name} has no help"


def test_no_unsafe_loading() -> None:
    for path in FILES:
        for line in path.read_text().splitlines():
            assert "pickle.load" not in line
            assert "torch.load(" not in line.replace("safetensors.torch", "") or "weights_only=True" in line
