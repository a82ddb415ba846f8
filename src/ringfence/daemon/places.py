"""The daemon's directories and its lock: who may be the one daemon of an installation."""

from __future__ import annotations

import asyncio
import fcntl
import os
import socket
import stat
from collections.abc import Sequence
from pathlib import Path

from ringfence.application.errors import InvalidInput, Unavailable
from ringfence.locations import Locations
from ringfence.sandbox.model import Owner, SandboxSpec, Workspace

BACKLOG = 256
"""Requests that wait for a daemon that is still looking at what it left."""


def own_directories(locations: Locations) -> None:
    """Make the directories that are the daemon's alone; refuse ones that somebody else could write to."""
    for directory in (locations.state, locations.runtime):
        path = Path(directory)
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = path.stat()
        except OSError as error:
            raise Unavailable(f"`{path}` cannot be made: {error.strerror}") from error
        if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o022:
            raise Unavailable(
                f"`{path}` belongs to another user or can be written by others",
                hint="set `SBX_STATE_DIR` and `SBX_RUNTIME_DIR` to directories of your own",
            )


def lock(state: Path) -> int | None:
    """Return the descriptor that makes this process the daemon of a state directory; none if another one is."""
    descriptor = os.open(state / "daemon.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def listen(path: Path) -> socket.socket:
    """Make the API's socket. The caller holds the daemon's lock, so one that is there is left over."""
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    mask = os.umask(0o177)
    try:
        listener.bind(str(path))
    except BaseException:
        listener.close()
        raise
    finally:
        os.umask(mask)
    listener.listen(BACKLOG)
    return listener


class HostWorkspaces:
    """Implements :class:`ringfence.application.ports.Workspaces`."""

    def __init__(self, reserved: Sequence[str]) -> None:
        """``reserved``: the product's own directories, which no sandbox sees."""
        self._reserved = tuple(reserved)

    async def admit(self, workspaces: Sequence[Workspace], owner: Owner) -> tuple[Workspace, ...]:
        from ringfence.runtimes import kernel, workspace  # not what a daemon needs to become the one there is

        for each in workspaces:
            if not each.path.startswith("/") or "\0" in each.path:
                raise InvalidInput(
                    f"workspace `{each.path[:200]}` is not an absolute path",
                    hint="name an existing directory",
                )
        asked = tuple(
            Workspace(path=os.path.realpath(each.path), readonly=each.readonly) for each in workspaces
        )
        # Opened as its owner in a process of its own: what a person may not read, the sandbox must not see.
        probe = SandboxSpec(id="-", name="-", agent="-", owner=owner, runtime="-", workspaces=asked)
        await asyncio.shield(kernel.apart(lambda: workspace.admit(probe, self._reserved), name="workspace"))
        return asked
