"""What a driver remembers of its sandboxes, so that any later daemon finds, watches and ends them.

Everything that a driver may conclude comes from a sandbox's directory, the record of its last start in there, and
``/proc``; nothing is kept in memory that a restart would lose.
"""

from __future__ import annotations

import errno
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from ringfence.runtimes import rootfs
from ringfence.runtimes.processes import Process, Running
from ringfence.sandbox.model import Condition, Observation

_RECORD: Final = "running.json"


class Sandboxes:
    """The directories of one driver: ``<root>/<sandbox>/<driver>/``."""

    def __init__(self, root: Path, driver: str) -> None:
        self.root = root
        self._driver = driver

    def directory(self, sandbox: str) -> Path:
        assert sandbox
        assert "/" not in sandbox
        return self.root / sandbox / self._driver

    def ids(self) -> frozenset[str]:
        if not self.root.is_dir():
            return frozenset()
        return frozenset(entry.name for entry in self.root.iterdir() if (entry / self._driver).is_dir())

    def record(self, sandbox: str, running: Running) -> None:
        """Write the record whole or not at all."""
        path = self.directory(sandbox) / _RECORD
        processes = [[process.pid, process.started] for process in running.all]
        scratch = path.with_suffix(".new")
        scratch.write_text(json.dumps({"boot": _boot(), "processes": processes, "detail": running.detail}))
        scratch.rename(path)

    def running(self, sandbox: str) -> Running | None:
        """The last start's record; ``None`` before the first and after an orderly end."""
        try:
            content = json.loads((self.directory(sandbox) / _RECORD).read_text())
            main, *others = (Process(int(pid), int(started)) for pid, started in content["processes"])
            if content["boot"] != _boot():  # numbers of processes begin anew
                main, others = Process(0, -1), []
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None
        return Running(main, tuple(others), str(content.get("detail", "")))

    def observe(self, sandbox: str) -> Observation:
        now = time.time()
        if not self.directory(sandbox).is_dir():
            return Observation(condition=Condition.ABSENT, time=now)
        running = self.running(sandbox)
        if running is None:
            return Observation(condition=Condition.CREATED, time=now)
        if running.main.alive:
            return Observation(
                condition=Condition.RUNNING, time=now, pid=running.main.pid, detail=running.detail
            )
        for process in running.all:
            process.reap()
        return Observation(condition=Condition.EXITED, time=now, detail=running.detail)

    def orphans(self, known: frozenset[str]) -> Sequence[str]:
        return tuple(sorted(self.ids() - known))

    def remove(self, sandbox: str) -> None:
        directory = self.directory(sandbox)
        rootfs.remove(directory)
        try:
            directory.parent.rmdir()
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTEMPTY):
                raise


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
