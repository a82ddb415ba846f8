"""Writing to a person's terminal without letting the other side write to it as well.

A host name, a path or a rule's name may have been chosen by whoever is being confined. A terminal obeys
control sequences (CVE-2003-0063 and its many successors) and reorders text around bidirectional controls
(CVE-2021-42574), so nothing of the sort is printed: :func:`plain` makes every character that is not plainly
printable visible. Tables, key lists and errors pass everything through it; JSON is ASCII with its own
escapes.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import TextIO

RED, GREEN, YELLOW, BOLD, DIM = "31", "32", "33", "1", "2"


def plain(text: str, limit: int = 4096) -> str:
    """``text`` on one line, with all that a terminal could act on escaped, and at most ``limit`` long."""
    if not text.isprintable():
        text = "".join(char if char.isprintable() else _escaped(ord(char)) for char in text)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _escaped(point: int) -> str:
    if point < 0x100:
        return f"\\x{point:02x}"
    return f"\\u{point:04x}" if point < 0x10000 else f"\\U{point:08x}"


def paint(text: str, colour: str, stream: TextIO | None = None) -> str:
    """``text`` in a colour where colour is wanted: on a terminal, without ``NO_COLOR`` (no-color.org)."""
    return f"\x1b[{colour}m{text}\x1b[0m" if text and coloured(stream or sys.stdout) else text


def coloured(stream: TextIO) -> bool:
    return not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb" and stream.isatty()


def out(text: str = "") -> None:
    """One line, or several, of what was asked for."""
    sys.stdout.write(text + "\n")


def out_json(document: object, *, indent: int | None = 2) -> None:
    import json

    out(json.dumps(document, indent=indent))


def err(text: str = "") -> None:
    """One line, or several, that is not what was asked for: notices, questions, errors."""
    sys.stdout.flush()
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def progress(text: str) -> None:
    """A line for a person who waits; said to nobody else."""
    if sys.stderr.isatty():
        err(text)


def warn(text: str) -> None:
    err(f"{paint('Warning:', YELLOW, sys.stderr)} {plain(text)}")


def interactive() -> bool:
    """Whether a person is there to answer. Nothing is ever asked otherwise."""
    return sys.stdin is not None and sys.stdin.isatty() and sys.stderr.isatty()


def width() -> int | None:
    """Columns of the terminal, or ``None`` when what is printed goes elsewhere and is not to be wrapped."""
    if not sys.stdout.isatty():
        return None
    try:
        columns = os.get_terminal_size(sys.stdout.fileno()).columns
    except OSError:
        columns = 0
    return max(columns, 60) if columns else 100


def show_error(message: str, hint: str = "") -> None:
    """What is wrong, then what to do. Lines of a message stay lines (a log's tail)."""
    first, *rest = message.split("\n")
    err("\n".join([f"{paint('Error:', RED, sys.stderr)} {plain(first)}", *map(plain, rest)]))
    if hint:
        err(f"{paint('Hint:', DIM, sys.stderr)} {plain(hint)}")


def fields(pairs: Mapping[str, str], indent: str = "") -> str:
    """``Key: value`` lines, aligned; what is empty is left out."""
    said = {key: value for key, value in pairs.items() if value}
    span = max((len(key) for key in said), default=0) + 2
    return "\n".join(f"{indent}{key + ':':<{span}} {plain(value)}" for key, value in said.items())
