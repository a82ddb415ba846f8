"""Names of sandboxes: parsed once, then safe in paths, host names, policy scopes and terminals.

A name is a host-name-like word: two to 63 ASCII letters, digits, hyphens and periods, beginning with a
letter or digit and not ending in a hyphen or period. Names of agents and ``default`` are reserved, so
that ``run X`` never has two meanings. Names that differ only in case are the same name: host names inside
are.
"""

from __future__ import annotations

import re
from collections.abc import Container
from pathlib import PurePosixPath

from ringfence.sandbox.agents import RESERVED as AGENT_NAMES

MAXIMUM = 63
RESERVED = frozenset({"default", "all", "global"}) | AGENT_NAMES
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]*[A-Za-z0-9]", re.ASCII)
_FOREIGN = re.compile(r"[^a-z0-9.-]+", re.ASCII)


class SandboxNameError(ValueError):
    """A text that is no sandbox name; ``str`` says why, ``hint`` what to write."""

    hint = "letters, digits, hyphens and periods; 2 to 63 characters; begins and ends with a letter or digit"


def parse_name(text: str) -> str:
    """Return the name, or say why the text is none."""
    shown = text if len(text) <= 80 else f"{text[:77]}..."
    if not 2 <= len(text) <= MAXIMUM:
        raise SandboxNameError(f"sandbox name `{shown}` must have 2 to {MAXIMUM} characters")
    if not _NAME.fullmatch(text):
        raise SandboxNameError(f"invalid sandbox name `{shown}`")
    if text.lower() in RESERVED:
        raise SandboxNameError(f"sandbox name `{shown}` is reserved")
    return text


def derive_name(agent: str, workspace: str, taken: Container[str]) -> str:
    """Return ``<agent>-<directory>``, numbered from 2 if that is taken. ``taken`` holds lower-case names."""
    directory = PurePosixPath(workspace).name.lower() if workspace else ""
    stem = f"{agent}-{_FOREIGN.sub('-', directory)}".rstrip("-.")
    if stem.lower() in RESERVED:
        stem = f"{stem}-sandbox"
    number = 1
    while True:
        suffix = "" if number == 1 else f"-{number}"
        name = stem[: MAXIMUM - len(suffix)].rstrip("-.") + suffix
        if name not in taken:
            return parse_name(name)
        number += 1
