"""Text from files, servers and other people, shown without what would control the terminal.

The name of a file, stream, tensor or sequence, or a server's reply, can hold escape sequences. On a terminal they move
the cursor, change the title or the clipboard, or pose as lines of vdeblur's own.
"""

import re

import click

# C0 and C1 controls, line separators, and the marks that turn the direction of writing.
CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def printable(text: object) -> str:
    """Return a text as one line, with escapes such as \\x1b in place of controls."""
    return CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), str(text))


def echo_line(line: object, *, err: bool = False) -> None:
    """Write a line that may hold text of others to stdout, or to stderr."""
    click.echo(printable(line), err=err)
