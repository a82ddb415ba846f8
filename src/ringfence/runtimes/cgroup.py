"""Limits of a sandbox, enforced by control groups of our own: version 2, or version 1 where that is what there is.

The drivers do not delegate this: every process of a sandbox, the runtime's own included, is in its group, and
a start that could not put it there is no start. Where groups cannot be made, :attr:`Cgroups.reason` says why;
a sandbox that asks for a limit is then refused, and one that does not runs unlimited and is shown so.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
from contextlib import suppress
from pathlib import Path
from typing import Final

from ringfence.application.errors import Unavailable
from ringfence.runtimes.processes import Process
from ringfence.sandbox.model import Limits

_ROOT: Final = Path("/sys/fs/cgroup")
_PERIOD: Final = 100_000
_PATIENCE: Final = 10.0
_PAUSE: Final = 0.002
_OWN_TASKS: Final = 256
"""Threads of the runtime itself, which the sandbox's own limit of processes does not pay for."""
_CONTROLLERS: Final = ("cpu", "memory", "pids")


class Cgroups:
    """The groups of one installation, all below one."""

    def __init__(self, name: str = "ringfence", root: Path = _ROOT) -> None:
        self._unified = (root / "cgroup.controllers").exists()
        self._parents = (
            (root / name,) if self._unified else tuple(root / each / name for each in _CONTROLLERS)
        )
        self._why: str | None = None

    @property
    def reason(self) -> str:
        """Why limits cannot be enforced here; empty when they can. Found out by doing, once."""
        if self._why is None:
            try:
                self._make_parents()
                self._why = ""
            except OSError as error:
                self._why = f"control groups cannot be made here: {error.strerror or error}"
        return self._why

    def _make_parents(self) -> None:
        for parent in self._parents:
            if self._unified:
                wanted = " ".join(f"+{each}" for each in _CONTROLLERS)
                _write(parent.parent / "cgroup.subtree_control", wanted)
                parent.mkdir(exist_ok=True)
                _write(parent / "cgroup.subtree_control", wanted)
            else:
                if not parent.parent.is_dir():
                    raise FileNotFoundError(2, f"no {parent.parent.name} controller")
                parent.mkdir(exist_ok=True)
            attempt = parent / f"attempt-{secrets.token_hex(4)}"
            attempt.mkdir()
            attempt.rmdir()

    def make(self, sandbox: str, limits: Limits) -> bool:
        """Make a sandbox's group; ``False`` when there are none here and none is asked for."""
        if self.reason:
            if limits != Limits():
                raise Unavailable(
                    f"the sandbox's limits cannot be enforced: {self.reason}", hint="create it without limits"
                )
            return False
        for parent in self._parents:
            group = parent / sandbox
            group.mkdir(exist_ok=True)
            for name, value in self._settings(limits):
                if self._unified or (group / name).exists():
                    _write(group / name, value)
        return True

    def _settings(self, limits: Limits) -> tuple[tuple[str, str], ...]:
        cpus = limits.cpus or max(1, (os.cpu_count() or 2) - 1)
        memory = str(limits.memory or _host_memory() // 2)
        pids = str(limits.pids + _OWN_TASKS)
        quota = str(max(1000, int(cpus * _PERIOD)))
        if self._unified:
            return (("cpu.max", f"{quota} {_PERIOD}"), ("memory.max", memory), ("pids.max", pids))
        return (
            ("cpu.cfs_period_us", str(_PERIOD)),
            ("cpu.cfs_quota_us", quota),
            ("memory.limit_in_bytes", memory),
            ("pids.max", pids),
        )

    def place(self, sandbox: str, pid: int) -> None:
        """Put a process into its sandbox's group; what it starts from then on is in it too."""
        for parent in self._parents:
            _write(parent / sandbox / "cgroup.procs", str(pid))

    def holds(self, sandbox: str, pid: int) -> bool:
        """Whether a process is in its sandbox's group in every hierarchy that limits."""
        try:
            lines = Path(f"/proc/{pid}/cgroup").read_text(encoding="utf-8").splitlines()
        except OSError:
            return False
        name = self._parents[0].name
        held = sum(line.endswith(f"/{name}/{sandbox}") for line in lines)
        return held >= len(self._parents)

    def members(self, sandbox: str) -> frozenset[int]:
        found: set[int] = set()
        for parent in self._parents:
            with suppress(OSError):
                found.update(map(int, (parent / sandbox / "cgroup.procs").read_text().split()))
        return frozenset(found)

    async def clear(self, sandbox: str) -> None:
        """End whatever is left in a group, and remove it. Nobody can leave one, so this comes to an end."""
        if self.reason:
            return
        async with asyncio.timeout(_PATIENCE):
            while any((parent / sandbox).is_dir() for parent in self._parents):
                for pid in self.members(sandbox):
                    process = Process.of(pid)
                    if process is not None and self.holds(sandbox, pid):
                        process.signal(signal.SIGKILL)
                        await process.ended(_PATIENCE)
                for parent in self._parents:
                    with suppress(OSError):  # a task that has not wholly ended keeps it for a moment
                        (parent / sandbox).rmdir()
                await asyncio.sleep(_PAUSE)


def _host_memory() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _write(path: Path, value: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, value.encode())
    finally:
        os.close(descriptor)
