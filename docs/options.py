"""Write the tables of options in docs/*.md from the definitions of the commands.

    python -m docs.options

A table stands between `<!-- options: run -->` (the words after `vdeblur`; `vdeblur` itself for its own options) and
`<!-- /options -->`. Everything between the two markers is replaced; tests/test_docs.py fails while a table is stale.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import click

from vdeblur.cli.main import main

FOLDER = Path(__file__).parent
BLOCK = re.compile(r"(<!-- options: (?P<words>[\w -]+) -->\n).*?(<!-- /options -->)", re.DOTALL)
BRACKETS = re.compile(r"  \[([^\[\]]*)\]$")  # what click, or a help text itself, appends: [default: 1; x>=0]
HELP = ["-h", "--help"]  # as main has them; click keeps the first that it sees
BAR = "\\|"  # a bar within a cell
RANGE = re.compile(r"(-?[\d.]+|x)(<|>)=?")


def commands(group: click.Group = main, above: str = "") -> Iterator[tuple[str, click.Command]]:
    """Yield every command with the words that call it, "vdeblur" for the program itself; groups come first."""
    yield above or "vdeblur", group
    for name, command in group.commands.items():
        words = f"{above} {name}".strip()
        if isinstance(command, click.Group):
            yield from commands(command, words)
        else:
            yield words, command


def table(words: str, command: click.Command) -> str:
    """Return a command's usage line and its options, as Markdown that ends in an empty line."""
    called = "vdeblur" if words == "vdeblur" else f"vdeblur {words}"
    context = click.Context(command, info_name=called, show_default=True, help_option_names=HELP)
    usage = " ".join([called, *command.collect_usage_pieces(context)])
    options = [parameter for parameter in command.params if isinstance(parameter, click.Option)]
    rows = [row(option, context) for option in options if not option.hidden]
    head = ["| option | default | meaning |", "| --- | --- | --- |"] if rows else []
    return "".join(f"{line}\n" for line in [f"`{usage}`", "", *head, *rows, *([""] if rows else [])])


def row(option: click.Option, context: click.Context) -> str:
    """Return an option's row: all its names and its metavar, its default, its help."""
    record = option.get_help_record(context)
    assert record is not None, "hidden options have no row"
    names, text = record
    default, limits = "off" if option.is_flag else "", ""
    while match := BRACKETS.search(text):
        text = text[: match.start()]
        facts = match[1].split("; ")
        limits += "".join(f" ({fact})" for fact in facts if RANGE.match(fact))
        default = "; ".join(fact for fact in facts if not RANGE.match(fact)).removeprefix("default: ") or default
    if option.secondary_opts and option.default is not None:
        default = "on" if option.default else "off"
    cells = [f"`{names.replace(' RANGE', '')}`", default, text + limits]
    return f"| {' | '.join(' '.join(cell.split()).replace('|', BAR) for cell in cells)} |"


def updated(text: str) -> str:
    """Return a page with all its tables as they should be.

    Raises: KeyError where a marker names no command.
    """
    known = dict(commands())
    return BLOCK.sub(lambda block: f"{block[1]}{table(block['words'], known[block['words']])}{block[3]}", text)


def write() -> None:
    """Update the tables of all pages."""
    for page in sorted(FOLDER.glob("*.md")):
        text = page.read_text("utf-8")
        if (new := updated(text)) != text:
            page.write_text(new, "utf-8")


if __name__ == "__main__":
    write()
