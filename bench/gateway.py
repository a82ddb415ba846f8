"""The gateway's table (GATEWAY section 9 of the design): each row for us and for each peer, in one run.

Origin and load generator share core 0, the candidate has core 1. Latency rows put everything on core 0: closed loop,
one connection, so the difference to the direct run is what the proxy adds. Every figure is the median of the
repetitions. Absolute numbers are this machine's; the ratios carry over.
"""

from __future__ import annotations

import json
import math
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from bench.candidates import PORT, Candidate, envoy, mitmproxy, ringfence, squid, started
from bench.figures import Load, Run, pss_kib
from bench.wire.build import build, certificates
from bench.workers import scale

ORIGIN = "203.0.113.10"
HOSTS = 4000
ENVOY = (
    Path("lib")
    / f"python{sys.version_info[0]}.{sys.version_info[1]}"
    / "site-packages"
    / "envoy"
    / "_bin"
    / "envoy"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    key: str
    title: str
    unit: str
    load: Load
    value: str
    """Which figure of a run: ``cpu_us``, ``cpu_per_gb``, ``p50``, ``p99``."""
    must: str = ""
    """The design's *must* figure, for people to compare with."""
    direct: bool = False
    """Whether the share of the direct rate is shown too."""


BULK = "/bytes/4000000"
ROWS = (
    Row(key="keep", title="intercepted request, keep-alive, 64 connections", unit="µs CPU", value="cpu_us", must="≤ 36", direct=True,
        load=Load(mode="tls", host="a.bench.test", connections=64)),
    Row(key="p50", title="added latency, intercepted, one connection, p50", unit="µs", value="p50", must="≤ 41",
        load=Load(mode="tls", host="a.bench.test", connections=1)),
    Row(key="p99", title="added latency, intercepted, one connection, p99", unit="µs", value="p99",
        load=Load(mode="tls", host="a.bench.test", connections=1)),
    Row(key="new", title="new intercepted connection, certificate known", unit="µs CPU", value="cpu_us", must="≤ 450",
        load=Load(mode="once", host="a.bench.test", connections=16)),
    Row(key="cold", title="never-seen host, verified upstream handshake", unit="µs CPU", value="cpu_us", must="≤ 3,000",
        load=Load(mode="once", host="h%d.bench.test", connections=8)),
    Row(key="bulk1", title="intercepted bulk, 1 stream", unit="s CPU/GB", value="cpu_per_gb", must="≤ 1.2", direct=True,
        load=Load(mode="tls", host="a.bench.test", connections=1, path=BULK)),
    Row(key="bulk16", title="intercepted bulk, 16 streams", unit="s CPU/GB", value="cpu_per_gb", must="≤ 1.2", direct=True,
        load=Load(mode="tls", host="a.bench.test", connections=16, path=BULK)),
    Row(key="tls403", title="403 inside a tunnel", unit="µs CPU", value="cpu_us", must="≤ 19",
        load=Load(mode="tls", host="a.denied.test", connections=16, status=403)),
    Row(key="plain403", title="403, plain HTTP", unit="µs CPU", value="cpu_us", must="≤ 15",
        load=Load(mode="plain", host="a.denied.test", connections=16, status=403)),
    Row(key="new403", title="403 on a new connection, one exchange", unit="µs CPU", value="cpu_us", must="≤ 45",
        load=Load(mode="fresh", host="a.denied.test", connections=16, status=403)),
    Row(key="open403", title="403 on a new CONNECT (ours: two exchanges)", unit="µs CPU", value="cpu_us", must="",
        load=Load(mode="open", host="a.denied.test", connections=16, status=403)),
    Row(key="plain", title="plain HTTP forward", unit="µs CPU", value="cpu_us", must="≤ 27", direct=True,
        load=Load(mode="plain", host="a.bench.test", connections=64)),
    Row(key="tunbulk", title="uninspected tunnel, bulk", unit="s CPU/GB", value="cpu_per_gb", must="≤ 0.32", direct=True,
        load=Load(mode="tls", host="a.bypass.test", connections=4, path=BULK)),
    Row(key="tunnew", title="uninspected tunnel, new connection", unit="µs CPU", value="cpu_us", must="≤ 108",
        load=Load(mode="once", host="a.bypass.test", connections=16)),
    Row(key="tunmsg", title="uninspected tunnel, message", unit="µs CPU", value="cpu_us", must="≤ 16",
        load=Load(mode="tls", host="a.bypass.test", connections=64)),
    Row(key="event", title="streamed event, sent to seen, added p50", unit="µs", value="p50", must="≤ 1,000",
        load=Load(mode="events", host="a.bench.test", connections=1, path="/events")),
    Row(key="event99", title="streamed event, sent to seen, added p99", unit="µs", value="p99",
        load=Load(mode="events", host="a.bench.test", connections=1, path="/events")),
    Row(key="h2", title="HTTP/2 request, 64 streams on 4 connections", unit="µs CPU", value="cpu_us", must="mitmproxy / 5",
        load=Load(mode="h2", host="a.bench.test", connections=4)),
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Idle:
    """A row about memory: so many connections that wait."""

    key: str
    title: str
    host: str
    count: int
    must: str


MEMORY = (
    Idle(key="idle-tunnel", title="idle tunnel, of 1,000", host="a.bypass.test", count=1_000, must="≤ 8"),
    Idle(key="idle-tunnels", title="idle tunnel, of 9,000", host="a.bypass.test", count=9_000, must="≤ 8"),
    Idle(key="idle-intercepted", title="idle intercepted connection, of 1,000", host="a.bench.test", count=1_000, must="≤ 40"),
    Idle(key="idle-intercepteds", title="idle intercepted connection, of 10,000", host="a.bench.test", count=10_000, must="≤ 40"),
)  # fmt: skip
"""A tunnel takes two descriptors, and a process here has 20,000: 9,000 stand for 10,000."""


def inside(
    seconds: float, repetitions: int, only: frozenset[str], peers: Path
) -> dict[str, dict[str, float]]:
    """Measure everything; runs in a network and mount namespace of its own."""
    results: dict[str, dict[str, list[float]]] = {}
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ringfence-bench-")))
        work.chmod(0o755)
        build(work)
        certificates(work)
        stack.callback(_internet(work))
        _run_direct(work, seconds, repetitions, only, results)
        found = [
            ringfence(work, ORIGIN),
            *([ringfence(work, ORIGIN, tls="auto")] if find_spec("rtls") else []),
            envoy(work, peers / ENVOY),
            squid(work),
            mitmproxy(work, peers / "bin" / "mitmdump"),
        ]
        if not only or "workers" in only:
            tunnels = {f"workers:{row.key}": row.load for row in ROWS if row.key in ("tunbulk", "tunmsg")}
            results.setdefault("ringfence", {}).update(scale(work, ORIGIN, tunnels, seconds, repetitions))
        for candidate in [c for c in found if c]:
            _run_candidate(candidate, work, seconds, repetitions, only, results)
            if candidate.name == "ringfence" and (not only or "neighbour" in only):
                _neighbour(candidate, work, seconds, repetitions, results)
            if not only or "memory" in only:
                _memory(candidate, work, results)
    return {name: {k: statistics.median(v) for k, v in rows.items()} for name, rows in results.items()}


def _internet(work: Path):  # type: ignore[no-untyped-def] # a callback for ExitStack
    """The origin in a namespace of its own behind a veth pair, so that its address is a public-looking one."""
    names = " ".join(["a.bench.test", "a.denied.test", "a.bypass.test"])
    hosts = work / "hosts"
    hosts.write_text(
        f"127.0.0.1 localhost\n{ORIGIN} {names}\n"
        + "".join(f"{ORIGIN} h{i}.bench.test\n" for i in range(HOSTS))
    )
    subprocess.run(["mount", "--bind", str(hosts), "/etc/hosts"], check=True)
    holder = subprocess.Popen(["unshare", "-n", "sleep", "infinity"])
    for _ in range(100):
        time.sleep(0.05)
        if Path(f"/proc/{holder.pid}/ns/net").readlink() != Path("/proc/self/ns/net").readlink():
            break
    enter = ["nsenter", f"--net=/proc/{holder.pid}/ns/net"]
    for argv in (
        ["ip", "link", "set", "lo", "up"],
        ["ip", "link", "add", "out", "type", "veth", "peer", "name", "in", "netns", str(holder.pid)],
        ["ip", "addr", "add", "203.0.113.1/24", "dev", "out"],
        ["ip", "link", "set", "out", "up"],
        [*enter, "ip", "link", "set", "lo", "up"],
        [*enter, "ip", "addr", "add", f"{ORIGIN}/24", "dev", "in"],
        [*enter, "ip", "link", "set", "in", "up"],
        ["sysctl", "-qw", "net.ipv4.ip_local_port_range=16000 65535", "net.ipv4.tcp_tw_reuse=1"],
    ):
        subprocess.run(argv, check=True)
    argv = [
        *enter,
        "taskset",
        "-c",
        "0",
        str(work / "origin"),
        str(work / "chain.pem"),
        str(work / "key.pem"),
        "80",
        "443",
    ]
    origin = subprocess.Popen(argv)
    for _ in range(100):
        with socket.socket() as probe:
            if probe.connect_ex((ORIGIN, 443)) == 0:
                break
        time.sleep(0.05)

    def end() -> None:
        for child in (origin, holder):
            child.terminate()
            child.wait(10)
        subprocess.run(["umount", "/etc/hosts"], check=False)

    return end


def _run_direct(
    work: Path,
    seconds: float,
    repetitions: int,
    only: frozenset[str],
    results: dict[str, dict[str, list[float]]],
) -> None:
    for row in ROWS:
        if (only and row.key not in only) or row.load.status != 200 or row.key in {"h2", "cold"}:
            continue
        for _ in range(repetitions):
            run = row.load.run(work / "load", port=0, origin=ORIGIN, seconds=seconds)
            _keep(results, "direct", row, run)


def _run_candidate(
    candidate: Candidate,
    work: Path,
    seconds: float,
    repetitions: int,
    only: frozenset[str],
    results: dict[str, dict[str, list[float]]],
) -> None:
    for core, rows in (
        (1, [r for r in ROWS if r.value[0] != "p"]),
        (0, [r for r in ROWS if r.value[0] == "p"]),
    ):
        wanted = [r for r in rows if (not only or r.key in only) and r.key not in candidate.skip]
        if not wanted:
            continue
        with started(candidate, work, core=core) as pid:
            for row in wanted:
                for repetition in range(repetitions):
                    load = row.load
                    if row.key == "cold" and repetition:
                        break  # a host is never seen only once
                    try:
                        if repetition == 0 and row.key != "cold":  # warm: certificate, contexts, pools
                            load.run(work / "load", port=PORT, origin=ORIGIN, seconds=0.3)
                        run = load.run(work / "load", port=PORT, origin=ORIGIN, seconds=seconds, pid=pid)
                    except (RuntimeError, subprocess.TimeoutExpired) as error:
                        print(f"  {candidate.name}, {row.title}: {error}", file=sys.stderr)
                        break
                    _keep(results, candidate.name, row, run)


NEIGHBOURS = 5_000


def _neighbour(
    candidate: Candidate,
    work: Path,
    seconds: float,
    repetitions: int,
    results: dict[str, dict[str, list[float]]],
) -> None:
    """The latency of one sandbox, alone and while another holds thousands of connections that never get to a point."""
    load = Load(mode="tls", host="a.bench.test", connections=4)
    rows = results.setdefault(candidate.name, {})
    with started(candidate, work, core=1) as pid:
        load.run(work / "load", port=PORT, origin=ORIGIN, seconds=0.5, pid=pid)
        for _ in range(repetitions):
            quiet = load.run(work / "load", port=PORT, origin=ORIGIN, seconds=seconds)
            rows.setdefault("alone", []).append(quiet.p99)
        argv = [
            "taskset",
            "-c",
            "0",
            str(work / "load"),
            str(PORT + 1),
            "trickle",
            "x",
            "0",
            str(NEIGHBOURS),
            "0",
            "/",
        ]
        crowd = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert crowd.stdin and crowd.stdout
        crowd.stdout.readline()
        crowd.stdout.readline()  # two rounds: all are connected, or were refused and have come back
        for _ in range(repetitions):
            beside = load.run(work / "load", port=PORT, origin=ORIGIN, seconds=seconds)
            rows.setdefault("beside", []).append(beside.p99)
        crowd.stdin.close()
        crowd.wait(20)


def _memory(candidate: Candidate, work: Path, results: dict[str, dict[str, list[float]]]) -> None:
    """KiB for each idle connection beside what a fresh process, warmed by a few, had before."""
    for row in MEMORY:
        if row.count > 1000 and candidate.few:
            continue
        with started(candidate, work, core=1) as pid:
            rows = results.setdefault(candidate.name, {})
            rows.setdefault("idle", []).append(pss_kib(pid) / 1024)
            Load(mode="once", host=row.host, connections=2).run(
                work / "load", port=PORT, origin=ORIGIN, seconds=0.2
            )
            try:
                rows[row.key] = [_each(work, pid, row.host, row.count)]
            except RuntimeError as error:
                print(f"  {candidate.name}, {row.title}: {error}", file=sys.stderr)


def _each(work: Path, pid: int, host: str, count: int) -> float:
    before = pss_kib(pid)
    argv = [str(work / "load"), str(PORT), "idle", host, "0", str(count), "20", "/x"]
    child = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdin and child.stdout
    line = child.stdout.readline()
    if not line.startswith("{") or json.loads(line)["parked"] != count:
        raise RuntimeError(f"only {line.strip() or 'none'} of {count} connections stand idle")
    grown = pss_kib(pid) - before
    child.stdin.close()
    child.wait(20)
    return grown / count


def _keep(results: dict[str, dict[str, list[float]]], name: str, row: Row, run: Run) -> None:
    rows = results.setdefault(name, {})
    rows.setdefault(row.key, []).append(
        getattr(run, row.value) if name != "direct" or row.value[0] == "p" else run.rate
    )
    if row.direct:
        rows.setdefault(f"{row.key}:rate", []).append(run.rate)


def table(results: dict[str, dict[str, float]]) -> list[str]:
    """Markdown rows: figures, our ratio to each peer, our share of the direct rate."""
    peers = [n for n in results if n not in {"direct", "ringfence"}]
    ours, direct = results.get("ringfence", {}), results.get("direct", {})
    head = ["what", "unit", "ringfence", "share of direct", *(f"{p} (ours ÷ theirs)" for p in peers), "must"]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for row in ROWS:
        if row.key not in ours:
            continue
        base = direct.get(row.key, 0.0) if row.value[0] == "p" else 0.0
        mine = ours[row.key] - base
        rate = direct.get(f"{row.key}:rate", math.nan)
        share = f"{ours[f'{row.key}:rate'] / rate:.2f}" if row.direct and rate > 0 else ""
        cells = [row.title, row.unit, _short(mine), share]
        for peer in peers:
            theirs = results[peer].get(row.key, math.nan) - base
            cells.append(
                f"{_short(theirs)} ({mine / theirs:.2f})" if theirs == theirs and theirs > 0 else "—"
            )
        lines.append("| " + " | ".join([*cells, row.must]) + " |")
    for key, title, unit, must in (
        ("idle", "memory: idle process", "MiB", "≤ 60"),
        *((row.key, f"memory: {row.title}", "KiB", row.must) for row in MEMORY),
    ):
        if key in ours:
            theirs_cells = [
                f"{results[p][key]:.1f} ({ours[key] / results[p][key]:.2f})"
                if results[p].get(key, 0) > 0
                else "—"
                for p in peers
            ]
            lines.append("| " + " | ".join([title, unit, f"{ours[key]:.1f}", "", *theirs_cells, must]) + " |")
    if "workers:tunbulk" in ours:
        lines += [
            "",
            f"Two workers carry {ours['workers:tunbulk']:.2f} times one worker's uninspected bulk and "
            f"{ours['workers:tunmsg']:.2f} times its messages (must ≥ 1.7; capacity from CPU per operation while both work, "
            "see `bench/workers.py`).",
        ]
    if "beside" in ours:
        lines += [
            "",
            f"Beside a sandbox that holds {NEIGHBOURS:,} connections open with a byte a second on each, another one's p99 is "
            f"{ours['beside']:,.0f} µs; alone it is {ours['alone']:,.0f} µs (ratio {ours['beside'] / ours['alone']:.2f}, must ≤ 2).",
        ]
    return lines


def _short(value: float) -> str:
    return (
        "—"
        if value != value
        else f"{value:,.0f}"
        if value >= 100
        else f"{value:.1f}"
        if value >= 10
        else f"{value:.2f}"
    )
