"""Do two workers carry twice as much? Each is a process with its own sandboxes, and shares nothing with the other.

Two cores are not enough to see it as a rate: load generator and origin need more of them than the workers do. So the
figure is capacity, from CPU per operation: what a worker spends on one while the second works too, against what it spends
while the second is left out and its load goes straight to the origin. Either way two generators and the origin keep both
cores busy, since a worker that is interrupted finds more to do at a time and spends less on each. What two workers cost
each other (caches, memory, the kernel's locks) is in it; if they cost each other nothing they would come to 2.
"""

from __future__ import annotations

import statistics
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from bench.candidates import PORT, ringfence, started
from bench.figures import Load, Run

APART = 10
"""Between the ports of two workers."""
STRAIGHT = 0
"""The port that means the origin itself."""


def scale(
    work: Path, origin: str, loads: dict[str, Load], seconds: float, repetitions: int
) -> dict[str, list[float]]:
    """How much two workers carry of each load, in workers."""
    figures: dict[str, list[float]] = {}
    with ExitStack() as stack:
        ports = [PORT, PORT + APART]
        pids = [
            stack.enter_context(started(ringfence(work, origin, port=port), work, core=1 - at, port=port))
            for at, port in enumerate(ports)
        ]
        tool = work / "load"

        def together(load: Load, taken: list[int]) -> list[Run]:
            """Two generators at once, each on the core that its worker is not on."""

            def one(at: int) -> Run:
                pid = pids[at] if taken[at] else 0
                return replace(load, core=at).run(
                    tool, port=taken[at], origin=origin, seconds=seconds, pid=pid
                )

            with ThreadPoolExecutor(2) as pool:
                return list(pool.map(one, range(2)))

        for key, load in loads.items():
            alone: list[float] = []
            both: list[float] = []
            for _ in range(repetitions):
                both += [run.cpu / run.operations for run in together(load, ports)]
                alone.append(together(load, [ports[0], STRAIGHT])[0].cpu_us / 1e6)
                alone.append(together(load, [STRAIGHT, ports[1]])[1].cpu_us / 1e6)
            figures[key] = [2 * statistics.median(alone) / statistics.median(both)]
    return figures
