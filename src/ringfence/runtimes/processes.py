"""Processes by name: pid and start time together name one for ever, also after the pid was given to another.

Nothing here waits by a clock or takes anybody else's child: the kernel says when a process has ended
(pidfd_open(2)), and each is reaped by its own number.
"""

from __future__ import annotations

import asyncio
import os
import select
import signal
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_KILL_PATIENCE: Final = 5.0


@dataclass(frozen=True, slots=True)
class Process:
    """A process by pid and start time (clock ticks after boot, proc(5))."""

    pid: int
    started: int

    @classmethod
    def of(cls, pid: int) -> Process | None:
        """The process that has this pid now; ``None`` when there is none, or only its remains."""
        fields = _stat(pid)
        return None if fields is None else cls(pid, int(fields[19]))

    @property
    def alive(self) -> bool:
        return Process.of(self.pid) == self

    @property
    def parent(self) -> int:
        fields = _stat(self.pid)
        return 0 if fields is None else int(fields[1])

    def signal(self, number: int) -> None:
        """Send a signal, to this process and to no later one of the same number."""
        with suppress(ProcessLookupError):
            descriptor = os.pidfd_open(self.pid)
            try:
                if self.alive:
                    signal.pidfd_send_signal(descriptor, number)
            finally:
                os.close(descriptor)

    async def ended(self, patience: float) -> bool:
        """Wait for the end, without a clock of our own: the kernel says when (pidfd_open(2))."""
        try:
            descriptor = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return True
        try:
            if not self.alive:
                return True
            poll = select.poll()
            poll.register(descriptor, select.POLLIN)
            return bool(await asyncio.to_thread(poll.poll, patience * 1000))
        finally:
            os.close(descriptor)
            self.reap()

    def end(self) -> None:
        """Kill it and wait for its end, blocking: for starts that failed, in a thread of their own."""
        self.signal(signal.SIGKILL)
        with suppress(ProcessLookupError):
            descriptor = os.pidfd_open(self.pid)
            try:
                poll = select.poll()
                poll.register(descriptor, select.POLLIN)
                if self.alive:
                    poll.poll(_KILL_PATIENCE * 1000)
            finally:
                os.close(descriptor)
        self.reap()

    def reap(self) -> None:
        """Collect the remains when it was our child or was left to us; another's are another's."""
        with suppress(ChildProcessError):
            os.waitpid(self.pid, os.WNOHANG)


def _stat(pid: int) -> list[str] | None:
    """The fields of ``/proc/<pid>/stat`` after the name, which may contain anything."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else fields


@dataclass(frozen=True, slots=True)
class Running:
    """The record of a start: the runtime's main process, and others that have to end with it."""

    main: Process
    others: tuple[Process, ...] = ()
    detail: str = ""

    @property
    def all(self) -> tuple[Process, ...]:
        return self.main, *self.others

    async def end(self, grace: float) -> None:
        """Ask the main process to end, then insist; nobody is left."""
        if grace > 0 and self.main.alive:
            self.main.signal(signal.SIGTERM)
            await self.main.ended(grace)
        for process in self.all:
            process.signal(signal.SIGKILL)
        for process in self.all:
            await process.ended(_KILL_PATIENCE)
