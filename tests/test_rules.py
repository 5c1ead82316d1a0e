"""Who may import whom, and that what is documented is there."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from tests.conftest import ROOT
from vdeblur.cli.main import main

SOURCE = ROOT / "src" / "vdeblur"
# One idea a folder. A file imports only from folders before its own, or from its own; "" is the top level.
FOLDERS = ["", "networks", "measure", "source", "fetch", "output", "restore", "datasets", "models", "look", "train",
           "run", "synth", "bench", "ui", "cli"]  # fmt: skip
FACES = {"__init__", "__main__"}  # the public API, and what starts the command line
# Which folders, and by name which other files, may use a package.
OWNERS = {
    "av": {"frame", "source", "output", "restore.color", "run", "look", "bench", "synth", "datasets.pictures"},
    "click": {"cli"},
    "rich": {"cli"},
    "psutil": {"restore.memory"},
    "filelock": {"files", "run.store", "synth.make"},
    **{name: {"fetch"} for name in ("huggingface_hub", "gdown", "requests")},
}
MODULES = {".".join(path.relative_to(SOURCE).with_suffix("").parts): path for path in sorted(SOURCE.rglob("*.py"))}


def folder_of(module: str) -> str:
    return module.rpartition(".")[0].partition(".")[0]


def imports(path: Path) -> set[str]:
    """Return the modules a file imports, those under TYPE_CHECKING and in functions too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return found


def ours(module: str) -> set[str]:
    found = {name.removeprefix("vdeblur.") for name in imports(MODULES[module])}
    return {name for name in found if name in MODULES and name != module}


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_one_way(module: str) -> None:
    if module in FACES:
        return
    allowed = FOLDERS[: FOLDERS.index(folder_of(module)) + 1]
    assert [name for name in ours(module) if folder_of(name) not in allowed] == []
    for package, owners in OWNERS.items():
        if any(name.split(".")[0] == package for name in imports(MODULES[module])):
            assert {module, folder_of(module)} & owners, f"{package} belongs to {sorted(owners)}"


def test_no_circles() -> None:
    left = {module: ours(module) for module in MODULES}
    while free := [module for module, needs in left.items() if not needs & left.keys()]:
        for module in free:
            del left[module]
    assert left == {}, "these import each other"


def test_folders_hold_several_files_and_tests_mirror_them() -> None:
    tested = {path.name for path in (ROOT / "tests").iterdir() if (path / "__init__.py").is_file()}
    assert {folder_of(module) for module in MODULES} <= set(FOLDERS)
    assert tested <= set(FOLDERS)


def test_one_name_one_thing() -> None:
    """Public classes and functions never share a name; in networks each paper names its own parts."""
    places: dict[str, set[str]] = {}
    for module, path in MODULES.items():
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                places.setdefault(node.name, set()).add(module)
    shared = {name: places for name, places in places.items() if len(places) > 1}
    assert {name: at for name, at in shared.items() if {folder_of(each) for each in at} != {"networks"}} == {}


@pytest.mark.parametrize(
    "words",
    [["run"], ["models", "download"], ["bench"], ["compare"], ["probe"], ["doctor"], ["train"], ["synth"]],
    ids=" ".join,
)
def test_help_does_not_import_torch(words: list[str]) -> None:
    code = f"import sys; from vdeblur.cli.main import main; main({[*words, '--help']}, standalone_mode=False); "
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
    for path in MODULES.values():
        for line in path.read_text().splitlines():
            assert "pickle.load" not in line
            assert "torch.load(" not in line.replace("safetensors.torch", "") or "weights_only=True" in line
