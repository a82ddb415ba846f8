"""Sandbox start-up and size (SANDBOX section 5 of the design), as whole commands of a person.

An installation of its own in a temporary directory, the daemon running, the template prepared.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bench.figures import pss_kib

SBX = str(Path(sys.executable).with_name("sbx"))


def table(repetitions: int) -> list[str]:
    """Markdown rows; medians in seconds."""
    with tempfile.TemporaryDirectory(prefix="ringfence-bench-") as home:
        base = Path(home)
        work = base / "work"
        work.mkdir()
        env = {**os.environ, "SBX_STATE_DIR": f"{home}/state", "SBX_CONFIG_DIR": f"{home}/config"}
        env |= {"SBX_RUNTIME_DIR": f"{home}/run", "NO_COLOR": "1"}

        def sbx(*argv: str) -> None:
            done = subprocess.run(
                [SBX, *argv],
                cwd=work,
                env=env,
                capture_output=True,
                text=True,
                timeout=120,
                stdin=subprocess.DEVNULL,
                check=False,
            )
            if done.returncode:
                raise RuntimeError(f"sbx {' '.join(argv)}: exit {done.returncode}: {done.stderr.strip()}")

        def timed(call: Callable[[], object]) -> float:
            began = time.perf_counter()
            call()
            return time.perf_counter() - began

        rows: list[tuple[str, str, float, str]] = []
        try:
            sbx("policy", "init", "balanced")
            sbx("run", "shell", ".", "--", "-c", "true")
            once = [
                timed(lambda: sbx("run", "shell", ".", "--", "-c", "true"))
                for _ in range(repetitions * 2 + 1)
            ]
            rows.append(("`sbx run shell . -- -c true`, end to end", "s", statistics.median(once), "≤ 0.5"))
            sbx("create", "--name=one", "shell", ".")
            sbx("exec", "one", "true")
            calls = [timed(lambda: sbx("exec", "one", "true")) for _ in range(repetitions * 5)]
            rows.append(("`sbx exec X true`, whole process", "s", statistics.median(calls), "≤ 0.2"))
            lists = [timed(lambda: sbx("ls")) for _ in range(repetitions * 5)]
            rows.append(("`sbx ls`, whole process", "s", statistics.median(lists), "≤ 0.2"))
            helps = [timed(lambda: sbx("--help")) for _ in range(repetitions * 5)]
            rows.append(("`sbx --help`, whole process", "s", statistics.median(helps), "≤ 0.12"))
            rows.append(("stop and remove one", "s", timed(lambda: sbx("rm", "-f", "one")), "≤ 0.5"))

            def bring_up(i: int) -> None:
                sbx("create", f"--name=p{i}", "shell", ".")
                sbx("exec", "-d", f"p{i}", "sleep", "60")

            def ten() -> None:
                with ThreadPoolExecutor(10) as pool:
                    list(pool.map(bring_up, range(10)))

            rows.append(("ten created and started at once", "s", timed(ten), "≤ 3"))
            rows.append(("memory of ten, daemon and gateway included, each", "MiB", _memory(base) / 10, ""))
        finally:
            subprocess.run(
                [SBX, "rm", "--all", "-f"], cwd=work, env=env, capture_output=True, timeout=120, check=False
            )
            subprocess.run(
                [SBX, "daemon", "stop"], cwd=work, env=env, capture_output=True, timeout=60, check=False
            )
    return ["| what | unit | measured | aim |", "| --- | --- | --- | --- |"] + [
        f"| {what} | {unit} | {value:.2f} | {aim} |" for what, unit, value, aim in rows
    ]


def _memory(home: Path) -> float:
    """MiB (PSS) of every process of this installation: those that name its directories or its sandboxes."""
    total = 0.0
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            line = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
        except OSError:
            continue
        if str(home).encode() in line and int(entry.name) != os.getpid():
            total += pss_kib(int(entry.name)) / 1024 if not _has_parent_inside(entry, home) else 0.0
    return total


def _has_parent_inside(entry: Path, home: Path) -> bool:
    """Whether the parent is counted already (``pss_kib`` counts whole trees)."""
    parent = next(
        ln.split()[1] for ln in (entry / "status").read_text().splitlines() if ln.startswith("PPid:")
    )
    try:
        line = Path(f"/proc/{parent}/cmdline").read_bytes() + Path(f"/proc/{parent}/environ").read_bytes()
    except OSError:
        return False
    return str(home).encode() in line and int(parent) != os.getpid()
