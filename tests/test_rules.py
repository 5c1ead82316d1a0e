"""Who may import whom, what names may repeat, and that commands, docstrings and network files say what they must."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator

import click
import pytest

from tests.conftest import ROOT
from vdeblur.cli.main import main

SOURCE = ROOT / "src" / "vdeblur"
# One idea a folder. A file imports only from folders before its own, or from its own; "" is the top level.
FOLDERS = ["", "networks", "measure", "source", "fetch", "output", "restore", "datasets", "models", "look", "train",
           "run", "synth", "bench", "ui", "cli"]  # fmt: skip
FACES = {"__init__", "__main__"}  # the public API, and the file that starts the command line
# The folders, and the single files elsewhere, that may use a package.
OWNERS = {
    "av": {
        "frame",
        "source",
        "output",
        "restore.color",
        "datasets.pictures",
        "look.compose",
        "look.frames",
        "look.page",
        "run.assemble",
        "run.doctor",
        "run.forecast",
        "run.parts",
        "run.sinks",
        "run.reading",
        "run.spool",
        "train.coder",
        "synth.footage",
        "bench.baselines",
        "bench.contenders",
        "bench.moving_clip",
        "bench.run_speed",
    },
    "click": {"cli"},
    "rich": {"cli"},
    "psutil": {"files", "restore.memory", "run.leftovers"},
    "filelock": {"files", "run.store", "run.leftovers", "synth.make"},
    **{name: {"fetch"} for name in ("huggingface_hub", "gdown", "requests")},
}
# Files of one name do one job for their folders; those in cli/ and train/objectives/ serve the file that they name.
REPEATED_FILES = {"__init__", "pictures", "memory", "clips"}
# A docstring begins with what the function does: Return, Compute, Read, Write, Raise, Yield and their like.
RIDDLES = re.compile(r"(Give|Tell|Say|Take|Put|Whether|Find out|See that|What|How|Where)\b")
MODULES = {".".join(path.relative_to(SOURCE).with_suffix("").parts): path for path in sorted(SOURCE.rglob("*.py"))}
TREES = {module: ast.parse(path.read_text()) for module, path in MODULES.items()}


def folder_of(module: str) -> str:
    return module.rpartition(".")[0].partition(".")[0]


def imports(module: str) -> set[str]:
    """Return the modules that a file imports, those under TYPE_CHECKING and in functions too."""
    found: set[str] = set()
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module} has a relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return found


def ours(module: str) -> set[str]:
    found = {name.removeprefix("vdeblur.") for name in imports(module)}
    return {name for name in found if name in MODULES and name != module}


@pytest.mark.parametrize("module", sorted(MODULES.keys() - FACES))
def test_imports_go_one_way(module: str) -> None:
    allowed = FOLDERS[: FOLDERS.index(folder_of(module)) + 1]
    assert [name for name in ours(module) if folder_of(name) not in allowed] == []


@pytest.mark.parametrize("package", OWNERS)
def test_packages_have_owners(package: str) -> None:
    users = {module for module in MODULES if any(name.split(".")[0] == package for name in imports(module))}
    assert [module for module in users if not {module, folder_of(module)} & OWNERS[package]] == []


def test_no_circles() -> None:
    left = {module: ours(module) for module in MODULES}
    while free := [module for module, needs in left.items() if not needs & left.keys()]:
        for module in free:
            del left[module]
    assert left == {}, "these import each other"


def test_tests_mirror_the_folders() -> None:
    folders = {folder_of(module) for module in MODULES}
    tested = {path.parent.name for path in (ROOT / "tests").glob("*/test_*.py")}
    assert folders <= set(FOLDERS)
    assert tested == folders - {""}


def test_files_repeat_a_name_only_where_they_do_the_same_job() -> None:
    places: dict[str, list[str]] = {}
    for module in MODULES:
        parent, _, name = module.rpartition(".")
        if parent not in ("cli", "train.objectives") and name not in REPEATED_FILES:
            places.setdefault(name, []).append(module)
    assert [modules for modules in places.values() if len(modules) > 1] == []


def test_public_names_are_unique() -> None:
    """Classes and functions of different files never share a name; in networks each paper names its own parts."""
    places: dict[str, set[str]] = {}
    for module, tree in TREES.items():
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                places.setdefault(node.name, set()).add(module)
    repeated = {name: modules for name, modules in places.items() if len(modules) > 1}
    assert {name: modules for name, modules in repeated.items() if set(map(folder_of, modules)) != {"networks"}} == {}


@pytest.mark.parametrize("module", MODULES)
def test_docstrings_begin_with_what_is_done(module: str) -> None:
    kinds = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    nodes = [node for node in ast.walk(TREES[module]) if isinstance(node, kinds)]
    assert [text for node in nodes if RIDDLES.match(text := ast.get_docstring(node) or "")] == []


@pytest.mark.parametrize("module", [name for name in MODULES if folder_of(name) == "networks"])
def test_network_files_need_torch_alone_and_name_their_paper(module: str) -> None:
    packages = {name.split(".")[0] for name in imports(module)} - sys.stdlib_module_names
    assert packages <= {"torch", "vdeblur"}
    if module not in {f"networks.{name}" for name in ("__init__", "layers", "identity")}:
        assert re.search(r"\b(19|20)\d\d\b", ast.get_docstring(TREES[module]) or ""), "no year, so no paper"


def test_no_unsafe_loading() -> None:
    for path in MODULES.values():
        for line in path.read_text().splitlines():
            assert "pickle.load" not in line
            assert "torch.load(" not in line.replace("safetensors.torch", "") or "weights_only=True" in line


@pytest.mark.parametrize(
    "words",
    [
        ["run"],
        ["models", "download"],
        ["bench"],
        ["compare"],
        ["probe"],
        ["inspect"],
        ["still"],
        ["clean"],
        ["doctor"],
        ["train"],
        ["synth"],
    ],
    ids=" ".join,
)
def test_help_does_not_import_torch(words: list[str]) -> None:
    code = f"import sys; from vdeblur.cli.main import main; main({[*words, '--help']}, standalone_mode=False); "
    code += "assert not {'torch', 'av', 'numpy', 'rich', 'requests', 'huggingface_hub'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def commands(group: click.Group = main, above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Yield every command and every group with the words that call it."""
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
