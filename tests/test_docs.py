"""The README and docs/: tables of options, links, names of files and commands, and the examples in Python."""

import ast
import re
import shlex
from itertools import pairwise
from pathlib import Path

import click
import pytest
from benchmarks import kept
from docs import options

import vdeblur
from tests import clips
from tests.conftest import ROOT
from vdeblur.cli.main import main
from vdeblur.errors import ExitStatus

PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "MODEL_CARD.md", "CHANGELOG.md")),
    *sorted(ROOT.glob("docs/*.md")),
    *(ROOT / name for name in ("examples/README.md", "benchmarks/README.md")),
]
README_BYTES = 9000  # what a new user needs in the first ten minutes
FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\[[^\]]*\]\(([^()\s]+)\)")
FILE = re.compile(r"`((?:src/vdeblur|docs|tests|examples|benchmarks)/[\w./-]*)`")
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def fences(page: Path, language: str) -> list[str]:
    return [body for found, body in FENCE.findall(page.read_text("utf-8")) if found == language]


def prose(page: Path) -> str:
    return FENCE.sub("", page.read_text("utf-8"))


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    found: list[str] = []
    for heading in re.findall(r"^#+ +(.*?) *$", prose(page), re.MULTILINE):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        found.append(re.sub(r"[^\w\- ]", "", text).replace(" ", "-"))
    return {name if name not in found[:place] else f"{name}-{found[:place].count(name)}"
            for place, name in enumerate(found)}  # fmt: skip


def test_the_tables_of_what_is_kept_have_the_columns_of_their_script() -> None:
    lines = (ROOT / "docs" / "kept.md").read_text("utf-8").splitlines()
    heads = [line for line, rule in pairwise(lines) if rule.startswith("| ---")]
    assert heads == [f"| {' | '.join(kept.HEADS)} |"] * 2


# Options


@pytest.mark.parametrize("words", [words for words, _ in options.commands()])
def test_a_page_has_the_table_of_every_command(words: str) -> None:
    texts = [page.read_text("utf-8") for page in PAGES]
    assert sum(text.count(f"<!-- options: {words} -->\n") for text in texts) == 1


@every_page
def test_tables_of_options_are_those_of_the_commands(page: Path) -> None:
    text = page.read_text("utf-8")
    assert text.count("<!-- options: ") == text.count("<!-- /options -->") == len(options.BLOCK.findall(text))
    assert options.updated(text) == text, "python -m docs.options writes them anew"


def test_a_table_has_every_name_of_every_option() -> None:
    for words, command in options.commands():
        table = options.table(words, command)
        for parameter in command.params:
            if isinstance(parameter, click.Option) and not parameter.hidden:
                names = {*parameter.opts, *parameter.secondary_opts}
                rows = [set(re.split(r"[ ,/`]+", line.split(" | ")[0])) for line in table.splitlines()]
                assert sum(names <= row for row in rows) == 1, f"{words}: {names}"


def test_a_table_that_lacks_a_row_is_noticed() -> None:
    for words, command in options.commands():
        begin, *lines, end = f"<!-- options: {words} -->\n{options.table(words, command)}<!-- /options -->".split("\n")
        whole = "\n".join([begin, *lines, end])
        assert options.updated(whole) == whole
        for number in range(len(lines)):
            lacking = "\n".join([begin, *lines[:number], *lines[number + 1 :], end])
            assert options.updated(lacking) == whole != lacking


def test_defaults_and_limits_have_their_places() -> None:
    @click.command
    @click.option("-s", "--strength", type=click.FloatRange(0, 1), default=0.5, help="Share.")
    @click.option("--tile-overlap", type=click.IntRange(0), help="Pixels.  [default: the model's; or none]")
    @click.option("--cut/--no-cut", default=True, help="Cut.")
    @click.option("--loud", is_flag=True, help="Say a|b.")
    @click.option("--name", required=True, help="NAME[@WEIGHTS]")
    def command() -> None: ...

    assert options.table("test", command).splitlines()[4:-1] == [
        "| `-s, --strength FLOAT` | 0.5 | Share. (0<=x<=1) |",
        "| `--tile-overlap INTEGER` | the model's; or none | Pixels. (x>=0) |",
        "| `--cut / --no-cut` | on | Cut. |",
        r"| `--loud` | off | Say a\|b. |",
        "| `--name TEXT` | required | NAME[@WEIGHTS] |",
    ]


# Links, files, commands


@every_page
def test_links_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(prose(page)):
        if not re.match(r"[a-z]+:", target):
            name, _, anchor = target.partition("#")
            path = (page.parent / name).resolve() if name else page
            assert path.exists(), target
            assert not anchor or anchor in anchors(path), target


@every_page
def test_files_that_are_named_exist(page: Path) -> None:
    for name in FILE.findall(prose(page)):
        assert (ROOT / name).exists(), name


@every_page
def test_commands_have_the_options_that_examples_use(page: Path) -> None:
    for line in "\n".join(fences(page, "sh")).replace("\\\n", " ").splitlines():
        for part in re.split(r" [|&]+ ", line.partition("  #")[0]):
            words = shlex.split(part)
            if "vdeblur" in words[:1]:
                check_call(words[1:])


def check_call(words: list[str]) -> None:
    command: click.Command = main
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        command, words = command.commands[words[0]], words[1:]
    known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    for word in words:
        if word.startswith("-") and word != "-":
            assert word.partition("=")[0] in known | {"-h", "--help"}, f"{command.name} has no option {word}"


def test_every_folder_of_the_code_has_its_row() -> None:
    """The table in CONTRIBUTING.md: a row per folder, and only files that exist."""
    rows = re.findall(r"^\| `(\w+)/` \|.*\| (.*) \|$", (ROOT / "CONTRIBUTING.md").read_text("utf-8"), re.MULTILINE)
    source = ROOT / "src" / "vdeblur"
    assert {path.parent.name for path in source.glob("*/__init__.py")} <= {folder for folder, _ in rows}
    for folder, content in rows:
        for name in re.findall(r"`([\w./]+)`", content):
            path = source / folder / name
            assert path.exists() or path.with_name(f"{path.name}.py").exists(), f"{folder}/{name}"


def test_names_in_the_tables_are_defined_in_the_files_of_their_rows() -> None:
    """The tables in CONTRIBUTING.md: `CamelCase`, `ALL_CAPS`, `snake_case` and `call()`, with dots or without."""
    name = re.compile(r"`((?:[A-Z]\w+|\w*_\w+)(?:\.\w+)*|\w+(?=\(\)))(?:\(\))?`")
    for row in re.findall(r"^\| .* \|$", (ROOT / "CONTRIBUTING.md").read_text("utf-8"), re.MULTILINE):
        paths = [ROOT / "src" / "vdeblur" / file for file in re.findall(r"`([\w/]+\.py)`", row)]
        code = "\n".join(path.read_text("utf-8") for path in paths)
        names = [found for found in name.findall(row) if paths and not found.endswith(".py")]
        for part in ".".join(names).split(".") if names else []:
            assert re.search(rf"^ *(?:class |(?:async )?def )?{part}\b *[:=(\[]", code, re.MULTILINE), f"{part}: {row}"


def test_warnings_and_exit_codes_are_explained() -> None:
    text = (ROOT / "docs" / "troubleshooting.md").read_text("utf-8")
    sources = (path.read_text("utf-8") for path in (ROOT / "src").rglob("*.py"))
    raised = {code for source in sources for code in re.findall(r'"(W_[A-Z_]+)"', source)}
    assert set(re.findall(r"`(W_[A-Z_]+)`", text)) == raised
    rows = re.findall(r"^\| ([\d, ]+) \|", text, re.MULTILINE)
    assert [int(code) for row in rows for code in row.split(", ")] == [int(status) for status in ExitStatus]


# The README, and Python


def test_the_readme_is_short_and_has_the_commands_that_ci_reads() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    assert len(text.encode()) < README_BYTES
    run, test = (re.findall(rf"<!-- {name} -->\n```sh\n(.*?)\n```\n<!-- /{name} -->", text) for name in ("run", "test"))
    assert run == ["pip install . -c constraints.txt && vdeblur run examples/square.mp4 sharp.mp4"]
    assert test == ["pip install -e '.[test]' -c constraints.txt && pytest"]


def test_pages_are_linked_from_the_readme() -> None:
    targets = LINK.findall(prose(ROOT / "README.md"))
    for page in ROOT.glob("docs/*.md"):
        assert any(target.partition("#")[0] == f"docs/{page.name}" for target in targets), page.name


@every_page
def test_names_of_the_public_api_exist(page: Path) -> None:
    imported = [
        alias.name
        for code in fences(page, "python")
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.ImportFrom) and node.module == "vdeblur"
        for alias in node.names
    ]
    for name in imported + re.findall(r"\bvdeblur\.(\w+)\(", page.read_text("utf-8")):
        assert hasattr(vdeblur, name), f"vdeblur.{name}"


def test_the_python_example_of_the_readme_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "examples").mkdir()
    clips.make(tmp_path / "examples" / "square.mp4", frames=5)
    monkeypatch.chdir(tmp_path)
    (code,) = fences(ROOT / "README.md", "python")
    exec(compile(code, "README.md", "exec"), {})
    assert (tmp_path / "sharp.mp4").stat().st_size
    assert "5 frames" in capsys.readouterr().out


def test_headings_go_down_one_level_at_a_time() -> None:
    for page in PAGES:
        levels = [len(marks) for marks in re.findall(r"^(#+) ", prose(page), re.MULTILINE)]
        assert levels[:1] == [1], page
        assert all(after <= before + 1 for before, after in pairwise(levels)), page
