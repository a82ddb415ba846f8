"""Which host directories may become workspaces: rules about paths, before anything is opened.

A workspace is what a sandbox may change on the host, so a directory from which the host configures or runs
itself, or which holds the sandbox's own walls, is none. The rules are about *canonical* paths (absolute, no
``.``, ``..`` or links); whether a path is what it says is the kernel's to tell, when it is opened as its
owner.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Final

SYSTEM: Final = (
    "/bin",
    "/boot",
    "/dev",
    "/etc",
    "/home/agent",
    "/lib",
    "/lib32",
    "/lib64",
    "/libx32",
    "/lost+found",
    "/proc",
    "/root",
    "/run",
    "/sbin",
    "/sys",
    "/usr",
    "/var",
)
"""The host's own, or the template's: refused with everything below, but for a person's home and
``/var/tmp``.
"""

SHARED: Final = ("/", "/home", "/media", "/mnt", "/opt", "/srv", "/tmp", "/var/tmp")  # noqa: S108
"""Refused themselves; what is below may be anybody's work."""

_OPEN_BELOW: Final = ("/var/tmp",)  # noqa: S108


class WorkspaceRefused(ValueError):
    """A directory that is no workspace. ``hint`` says which one would be."""

    def __init__(self, message: str, hint: str = "name a directory of your own with your work in it") -> None:
        super().__init__(message)
        self.hint = hint


def check(path: str, *, home: str, reserved: Iterable[str] = ()) -> None:
    """Raise :class:`WorkspaceRefused` unless a canonical path may be a workspace of the person with this
    home.

    ``reserved`` are the product's own directories: neither they, nor anything in them, nor what contains
    them.
    """
    if not path.startswith("/") or "\0" in path:
        raise WorkspaceRefused(f"workspace `{path!r}` is not an absolute path")
    if any(ord(character) < 0x20 or ord(character) == 0x7F for character in path):
        raise WorkspaceRefused(f"workspace {path!r} has control characters in its name")
    here = PurePosixPath(path)
    if str(here) != path or ".." in here.parts or path.startswith("//"):
        raise WorkspaceRefused(f"workspace `{path}` is not a canonical path")

    person = PurePosixPath(home)
    if here == person:
        raise WorkspaceRefused(
            f"workspace `{path}` is your home: the sandbox could read your keys and change what you run",
            "name a directory inside it",
        )
    if here in person.parents:
        raise WorkspaceRefused(f"workspace `{path}` contains your home")
    for own in map(PurePosixPath, reserved):
        if _touch(here, own):
            raise WorkspaceRefused(
                f"workspace `{path}` would show the sandbox ringfence's own directory `{own}`"
            )
    if path in SHARED:
        raise WorkspaceRefused(
            f"workspace `{path}` is a directory of the system", "name a directory below it"
        )
    if _within(here, person) and person != PurePosixPath("/"):
        return
    if any(_within(here, PurePosixPath(root)) for root in _OPEN_BELOW):
        return
    for root in map(PurePosixPath, SYSTEM):
        if _within(here, root):
            raise WorkspaceRefused(f"workspace `{path}` is a directory of the system (`{root}`)")


def _within(path: PurePosixPath, root: PurePosixPath) -> bool:
    return path == root or root in path.parents


def _touch(one: PurePosixPath, other: PurePosixPath) -> bool:
    return _within(one, other) or _within(other, one)
