"""The catalogue of attacks (``catalogue.toml``); ``python -m tests.escapes.catalogue`` writes README.md from it."""

from __future__ import annotations

import ast
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
README = HERE / "README.md"
_TEST = re.compile(r"test_([a-z]+[0-9]*)_([0-9]{2})_")

HEAD = """# Escapes

Published ways out of sandboxes for coding agents, and out of the proxies in front of them, each as a test
against the real gateway (real sockets, real TLS: `escape_stage.py`) or against a real sandbox in a world
without internet (`test_escape_sandbox.py`, marked `live`).

A test says what is asked and everything that may come of it: what the client sees, every byte that an origin
hears, the names that are looked up, the addresses that are dialled, and the decision on record. Each has a
positive control (the same thing, allowed, works) and ends with a *sentinel*: a request that no rule allows,
and that must still be refused.

Three kinds of attempts have another number of records than one. A DNS question has none: it decides nothing,
the refusal comes on connect. A request whose head was allowed and whose body turns out to be malformed has
two: what was let through, and what was not. Refused packets of one flow are counted in one record.

Of every row it is said which files try it, what a test here does not reach (*but*), or why there is none.
This page is written by `python -m tests.escapes.catalogue` from `catalogue.toml`.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One attack."""

    id: str
    group: str
    attack: str
    because: str = ""
    gap: str = ""
    also: tuple[str, ...] = ()


def rows() -> list[Row]:
    """Return the catalogue, in its order."""
    found = []
    for group in tomllib.loads((HERE / "catalogue.toml").read_text()).values():
        for number, fields in group["rows"].items():
            also = tuple(fields.pop("also", ()))
            found.append(Row(id=number, group=group["title"], also=also, **fields))
    return found


def tried() -> dict[str, list[str]]:
    """Return the files that try each row, by the names of their tests."""
    found: dict[str, list[str]] = {}
    for file in sorted(HERE.glob("test_*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            name = _TEST.match(node.name) if isinstance(node, ast.FunctionDef) else None
            if name:
                files = found.setdefault(f"{name[1].upper()}-{name[2]}", [])
                if file.name not in files:
                    files.append(file.name)
    return found


def page() -> str:
    """Return README.md as the catalogue and the tests would have it."""
    found, lines, group = tried(), [HEAD], ""
    for row in rows():
        if row.group != group:
            group = row.group
            lines.append(f"\n## {group}\n\n| Row | Attack | Where, or why not |\n|---|---|---|")
        parts = [", ".join(f"`{file}`" for file in found.get(row.id, ()))]
        parts += [f"also {', '.join(f'`{each}`' for each in row.also)}"] if row.also else []
        parts += [f"*but* {row.gap}"] if row.gap else []
        parts += [row.because] if row.because else []
        lines.append(f"| {row.id} | {row.attack} | {'; '.join(filter(None, parts))} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    README.write_text(page())
