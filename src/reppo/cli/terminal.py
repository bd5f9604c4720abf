"""The terminal, or whatever else stands at the other end of stdout and stderr, as all commands use it."""

from __future__ import annotations

import contextlib
import io
import sys
from typing import Any

from rich.console import Console


def make_console(stderr: bool = False) -> Console:
    return Console(highlight=False, markup=False, emoji=False, stderr=stderr)


def working(what: str) -> contextlib.AbstractContextManager[Any]:
    """A sign of life on a terminal's stderr, nothing elsewhere."""
    console = make_console(stderr=True)
    return console.status(what) if console.is_terminal and not console.is_dumb_terminal else contextlib.nullcontext()


def spell_what_cannot_be_written() -> None:
    """A character that a terminal's encoding lacks, as of a path, becomes a question mark rather than an exception."""
    for file in (sys.stdout, sys.stderr):
        if isinstance(file, io.TextIOWrapper) and not file.encoding.lower().startswith("utf"):
            file.reconfigure(errors="replace")
