"""Recognise URLs where files are expected: vdeblur reads and writes files."""

import os
import re
from pathlib import Path

from vdeblur.errors import InputError, OutputError

URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/{1,2}[^/\\]")  # also after Path has joined the two slashes


def check_no_url(name: str) -> None:
    """Refuse a URL as an input.

    Raises: InputError.
    """
    if URL.match(name) and not os.path.exists(name):
        raise InputError(f"{name} is a URL, and vdeblur reads files", "download it first, and name the file")


def check_output_is_no_url(name: str) -> None:
    """Refuse a URL as an output.

    Raises: OutputError.
    """
    if URL.match(name) and not os.path.exists(Path(name).parent):
        raise OutputError(f"{name} is a URL, and vdeblur writes files", "name a file, and send it afterwards")
