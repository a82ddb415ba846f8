"""Who the sandbox's users are on the host: nobody.

Every sandbox lives in a user namespace of its own, whatever runtime it has. Inside are the ids 0 to 65535; on
the host they are 65,536 ids that belong to no account and to no other sandbox. So root inside, or whoever
breaks out of a runtime, is a stranger to every file of the host and to every other sandbox. One id is
somebody: in the *workspace*, and only there, ``agent`` (1000) is the person who asked for the sandbox; the
workspace's mount translates that (``mount_setattr(2)``, id-mapped mounts), so files are owned by their owner
on both sides.

Started by root, the daemon takes the ids from 0x50000000 upwards, a range that the distributions give to
containers and to nobody else. Started rootless (see :mod:`ringfence.runtimes.rootless`), it already lives in
a user namespace in which 0 is the person and the rest are the person's subordinate ids: then ``agent`` simply
*is* 0 out there, and no mount needs translating.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from ringfence.runtimes import kernel

AGENT: Final = 1000
"""The user of the sandbox, in every template."""
COUNT: Final = 65536
"""Ids in a sandbox."""

_FIRST: Final = 0x5000_0000
_SLOTS: Final = 8192
_WHOLE: Final = 0xFFFF_FFFF


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """The ids of one sandbox. ``base`` is what root inside is outside."""

    base: int
    translated: bool
    """Whether workspaces need an id-mapped mount; not where the daemon is the person already."""

    def outside(self, inside: int) -> int:
        """The host's id (as the daemon sees it) of an id inside."""
        if self.translated:
            return self.base + inside
        if inside == AGENT:
            return 0
        return inside + 1 if inside < AGENT else inside

    def shift(self, root: str) -> None:
        """Give a tree that was written with the ids of inside to those of outside, where the daemon is not the host.

        Where it is, mounts translate and nothing needs to be done.
        """
        if self.translated:
            return
        for directory, directories, files in os.walk(root, topdown=False):
            for name in (*directories, *files):
                self._shift(os.path.join(directory, name))
        self._shift(root)

    def _shift(self, path: str) -> None:
        status = os.lstat(path)
        os.chown(path, self.outside(status.st_uid), self.outside(status.st_gid), follow_symlinks=False)
        if not stat.S_ISLNK(status.st_mode):
            os.chmod(path, stat.S_IMODE(status.st_mode))  # the change of owner took the set-user-id bit

    def lines(self) -> str:
        """The sandbox's ``uid_map`` and ``gid_map`` (user_namespaces(7))."""
        if self.translated:
            return f"0 {self.base} {COUNT}\n"
        return f"0 1 {AGENT}\n{AGENT} 0 1\n{AGENT + 1} {AGENT + 1} {COUNT - AGENT - 1}\n"

    def workspace_lines(self, owner: int) -> str:
        """The map of a workspace's mount: on disk ``owner``, inside ``agent``; everybody else is who they are."""
        after = self.base + AGENT + 1
        return (
            f"{owner} {self.base + AGENT} 1\n"
            f"{self.base} {self.base} {AGENT}\n"
            f"{after} {after} {COUNT - AGENT - 1}\n"
        )


def identity_of(sandbox: str) -> Identity:
    """Return a sandbox's ids: a function of its own id, so that they are the same after a restart."""
    if not is_initial():
        return Identity(base=1, translated=False)
    digest = hashlib.sha256(sandbox.encode()).digest()
    return Identity(base=_FIRST + (int.from_bytes(digest[:4]) % _SLOTS) * COUNT, translated=True)


def is_initial() -> bool:
    """Whether this process sees all ids, as only the host's own user namespace does."""
    with open("/proc/self/uid_map", encoding="ascii") as file:
        return file.read().split() == ["0", "0", str(_WHOLE)]


def mapped_ids() -> int:
    """How many consecutive ids from 0 this process has."""
    with open("/proc/self/uid_map", encoding="ascii") as file:
        rows = sorted(tuple(map(int, line.split())) for line in file)
    reached = 0
    for first, _, count in rows:
        if first != reached:
            break
        reached += count
    return reached


@contextmanager
def paused_namespaces(uids: str, gids: str, *, also: int = 0) -> Iterator[int]:
    """A waiting child in a new user namespace with these maps, and in what else ``also`` asks for; its pid."""
    pid = kernel.spawn_paused(kernel.CLONE_NEWUSER | also)
    try:
        for name, content in (("uid_map", uids), ("gid_map", gids)):
            descriptor = os.open(f"/proc/{pid}/{name}", os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(descriptor, content.encode())
            finally:
                os.close(descriptor)
        yield pid
    finally:
        kernel.end(pid)


def workspace_translation(identity: Identity, uid: int, gid: int) -> int:
    """Return a descriptor of the user namespace through which an owner's workspace is mounted."""
    with paused_namespaces(identity.workspace_lines(uid), identity.workspace_lines(gid)) as pid:
        return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
