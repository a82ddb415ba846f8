"""What a figure is: CPU of a process tree per operation, from the scheduler's own account.

Rates of fast proxies are bounded by what load generator and origin can do on their core, so the honest figure is the
proxy's CPU per operation: ``/proc/<pid>/task/*/schedstat`` has nanoseconds on a CPU for every thread.
"""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path


def tree(pid: int) -> list[int]:
    """Return ``pid`` and all its descendants."""
    found = [pid]
    for parent in found:
        for task in Path(f"/proc/{parent}/task").glob("*"):
            try:
                found += [int(child) for child in (task / "children").read_text().split()]
            except OSError:
                continue
    return found


def cpu_seconds(pid: int) -> float:
    """CPU seconds that the process tree has used so far."""
    total = 0
    for each in tree(pid):
        for stat in Path(f"/proc/{each}/task").glob("*/schedstat"):
            try:
                total += int(stat.read_text().split()[0])
            except (OSError, IndexError):
                continue
    return total / 1e9


def pss_kib(pid: int) -> int:
    """Proportional set size of the process tree, KiB."""
    total = 0
    for each in tree(pid):
        try:
            rollup = Path(f"/proc/{each}/smaps_rollup").read_text()
        except OSError:
            continue
        total += next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
    return total


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One measured load: what the generator saw, and what the proxy spent."""

    operations: int
    seconds: float
    size: int
    """Bytes of bodies."""
    p50: float
    """Microseconds."""
    p99: float
    failures: int
    cpu: float
    """CPU seconds of the proxy in that time; 0 for a direct run."""

    @property
    def rate(self) -> float:
        return self.operations / self.seconds

    @property
    def cpu_us(self) -> float:
        """CPU microseconds per operation."""
        return self.cpu / self.operations * 1e6 if self.operations else float("nan")

    @property
    def cpu_per_gb(self) -> float:
        return self.cpu / (self.size / 1e9) if self.size else float("nan")


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """How to call the load generator (see ``wire/load.c``)."""

    mode: str
    host: str
    connections: int
    path: str = "/x"
    status: int = 200
    hosts: int = 0
    core: int = 0

    def run(self, tool: Path, *, port: int, origin: str, seconds: float, pid: int = 0) -> Run:
        argv = ["taskset", "-c", str(self.core), str(tool), str(port), self.mode, self.host, str(self.hosts)]
        argv += [str(self.connections), str(seconds), self.path, str(self.status)]
        before = cpu_seconds(pid) if pid else 0.0
        done = subprocess.run(
            argv,
            capture_output=True,
            text=True,
            timeout=seconds + 90,
            env={**os.environ, "ORIGIN": origin},
            check=False,
        )
        spent = cpu_seconds(pid) - before if pid else 0.0
        if not done.stdout.startswith("{"):
            raise RuntimeError(
                f"load {self.mode} {self.host}: exit {done.returncode}: {done.stderr.strip()[-400:]}"
            )
        seen = json.loads(done.stdout)
        return Run(
            operations=seen["operations"],
            seconds=seen["seconds"],
            size=seen["bytes"],
            p50=seen["p50"],
            p99=seen["p99"],
            failures=seen["failures"],
            cpu=spent,
        )
