"""``policy log``: decisions as they are made, one line each.

A decision is recorded twice with one id: *opened* when it is made, *closed* with status and totals when the
exchange ends. A refusal has no second half and is shown at once. An allowed one is shown when it closes,
because its status is part of the line; one that does not close soon (a tunnel, a long download) is shown
without, and again only if policy revoked it. :class:`Pairing` does this without a clock or I/O.
"""

from __future__ import annotations

import sys
import time
from collections import OrderedDict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import click

from ringfence.cli import reach
from ringfence.cli.commands import command, json_option
from ringfence.cli.options import Duration, sandbox_argument
from ringfence.cli.terminal.screen import GREEN, RED, YELLOW, err, interactive, out, out_json, paint, plain

if TYPE_CHECKING:
    from ringfence.client.api import Daemon
    from ringfence.client.errors import RingfenceError
    from ringfence.client.shapes import Record

HOLD = 1.0
"""Seconds that an allowed decision may stay open before it is shown without its status."""
HELD_LIMIT, SHOWN_LIMIT = 4096, 16384
BACKLOG = 20
"""Decisions of the past that a live log begins with."""
BACKLOG_PAUSE = 0.25
"""Seconds of silence after which the backlog is over."""
PATH_COLUMNS = 120


@dataclass(slots=True, kw_only=True)
class Line:
    """One decision as it is shown."""

    record: Record
    status: str = "-"
    word: str = ""


@dataclass(slots=True, kw_only=True)
class Pairing:
    """Joins the halves of decisions. What is held is bounded: the sandbox chooses how much there is."""

    held: OrderedDict[str, tuple[float, Record]] = field(default_factory=OrderedDict)
    shown: OrderedDict[str, None] = field(default_factory=OrderedDict)

    def take(self, record: Record, now: float) -> list[Line]:
        """Return the lines that a record makes ready."""
        if record.get("canary"):
            return []
        if "dropped" in record:
            return [Line(record=record, status=str(record["dropped"]), word="DROPPED")]
        key, status = str(record.get("id", "")), str(record.get("status") or "-")
        if record.get("step") == "closed":
            _, opened = self.held.pop(key, (0.0, {}))
            if record.get("ended") == "revoked":
                return [Line(record=opened | record, status=status, word="REVOKED")]
            return [] if self.shown.pop(key, self) is None else [Line(record=record | opened, status=status)]
        if record.get("verdict") != "allowed":
            return [Line(record=record, status="-")]
        self.held[key] = (now, record)
        return self.overdue(now) if len(self.held) <= HELD_LIMIT else self._release(1)

    def overdue(self, now: float) -> list[Line]:
        """Return the lines of decisions that have been open for too long to wait for."""
        return self._release(sum(1 for since, _ in self.held.values() if now - since >= HOLD))

    def rest(self) -> list[Line]:
        return self._release(len(self.held))

    def _release(self, count: int) -> list[Line]:
        lines = []
        for _ in range(count):
            key, (_, record) = self.held.popitem(last=False)
            self.shown[key] = None
            lines.append(Line(record=record))
        while len(self.shown) > SHOWN_LIMIT:
            self.shown.popitem(last=False)
        return lines


def text(line: Line, *, today: str, sandbox: bool, path_columns: int | None) -> str:
    """``15:04:05  ALLOWED   pypi.org                 200  GET /simple/  shell  default-package-managers``."""
    record = line.record
    word = line.word or _word(record)
    when = time.localtime(float(record.get("time", 0.0)))
    clock = time.strftime("%H:%M:%S", when)
    if (day := time.strftime("%Y-%m-%d", when)) != today:
        clock = f"{day} {clock}"
    colour = {"ALLOWED": GREEN, "BLOCKED": RED}.get(word, YELLOW)
    head = f"{clock}  {paint(word, colour)}{' ' * max(10 - len(word), 1)}"
    if word == "DROPPED":
        return f"{head}{plain(line.status)} records that could not be kept"
    asked = " ".join(filter(None, (str(record.get("method", "")), str(record.get("path", "")))))
    if asked and path_columns and len(asked) > path_columns:
        asked = plain(asked, path_columns)
    agent = str(record.get("agent") or "-")
    if sandbox:
        agent = f"{agent}@{record.get('sandbox_name') or record.get('sandbox')}"
    tail = [asked or str(record.get("protocol") or record.get("transport") or "-"), agent, _rule(record)]
    if record.get("ended") == "mistrusted":
        tail.append(str(record.get("text", "")))  # the only one who can say why that client failed
    return f"{head}{plain(_host(record)):<22}   {plain(line.status):<3}  " + "  ".join(
        plain(part) for part in tail
    )


def _word(record: Record) -> str:
    return {"allowed": "ALLOWED", "approval": "APPROVAL"}.get(str(record.get("verdict")), "BLOCKED")


def _host(record: Record) -> str:
    """The host, with its port where it is not one that goes without saying."""
    host, port = str(record.get("host") or "-"), record.get("port", 0)
    if port in (0, 80, 443):
        return host
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _rule(record: Record) -> str:
    if record.get("rule") or record.get("rule_id"):
        return str(record.get("rule") or record.get("rule_id"))
    if str(record.get("text", "")).startswith("secret misuse"):
        return "secret misuse"
    return {"default": "default-deny", "guard": "guard", "failure": "failure"}.get(
        str(record.get("reason")), "-"
    )


@command(
    "log",
    examples=(
        "sbx policy log lab                       # live, until Ctrl-C",
        "sbx policy log lab --blocked --no-follow",
        "sbx policy log --since 1h --limit 50 | grep BLOCKED",
        "sbx policy log --json --follow           # the events themselves",
    ),
)
@json_option
@click.option("--limit", type=click.IntRange(min=0), metavar="N", help="The last N decisions; 0 is all.")
@click.option(
    "--follow/--no-follow", "-f", default=None, help="Go on with new decisions. Default: on a terminal."
)
@click.option("--since", type=Duration(), metavar="DURATION", help="Only the last 1h, 30m, 7d.")
@click.option("--blocked", is_flag=True, help="Only what was not allowed.")
@click.option(
    "--type", "kind", type=click.Choice(["all", "network", "filesystem"]), default="all", hidden=True
)
@click.option("-q", "--quiet", is_flag=True, help="Print log lines and nothing else.")
@sandbox_argument(required=False, default="", metavar="[SANDBOX]")
def log(
    sandbox: str,
    as_json: bool,
    limit: int | None,
    follow: bool | None,
    since: int | None,
    blocked: bool,
    kind: str,
    quiet: bool,
) -> None:
    """Watch what sandboxes reach and what they are refused: time, verdict, host, status, request, agent,
    rule.

    On a terminal the log is live. With --json it is a summary by host; with --json --follow the events.
    """
    now = time.time()
    daemon = reach.daemon()
    gone = _gone(daemon, sandbox)
    live = (follow if follow is not None else _watching() and not as_json) and gone is None
    if limit is None:
        limit = BACKLOG if live else 0
    asked_for = 0 if since or blocked else 2 * limit
    records = (
        record
        for record in daemon.log(sandbox=sandbox, limit=asked_for, follow=live)
        if kind != "filesystem"
        and (not since or float(record.get("time", 0.0)) >= now - since)
        and (not blocked or record.get("verdict") != "allowed" or record.get("ended") == "revoked")
    )
    if gone:
        first = next(records, None)
        if first is None:
            raise gone
        records = (record for record in (first, *records))
    if as_json and live:
        for record in records:
            out_json(record, indent=None)
            sys.stdout.flush()  # whoever reads a live log through a pipe wants it now, not by the block
    elif as_json:
        out_json(summary(records, limit))
    else:
        lines = _live(records, limit, now) if live else iter(_past(records, limit, now))
        columns = PATH_COLUMNS if _watching() else None
        if live and not quiet and interactive():
            err(f"Watching {plain(sandbox) if sandbox else 'all sandboxes'}; Ctrl-C ends.")
        _print(lines, sandbox=not sandbox, columns=columns, quiet=quiet)


def _gone(daemon: Daemon, sandbox: str) -> RingfenceError | None:
    """Why a sandbox cannot be watched. One that is no more may still have a past to show."""
    from ringfence.client.errors import NotFound

    try:
        if sandbox:
            daemon.sandbox(sandbox)
    except NotFound as error:
        return error
    return None


def _watching() -> bool:
    return sys.stdout.isatty()


def _print(lines: Iterator[Line], *, sandbox: bool, columns: int | None, quiet: bool) -> None:
    printed = False
    for line in lines:
        printed = True
        today = time.strftime("%Y-%m-%d")
        out(text(line, today=today, sandbox=sandbox, path_columns=columns))
        sys.stdout.flush()
    if not printed and not quiet:
        out("No policy log entries found")


def _past(records: Iterator[Record], limit: int, now: float) -> Iterator[Line]:
    pairing = Pairing()
    ready: deque[Line] = deque(maxlen=limit or None)
    for record in records:
        ready.extend(pairing.take(record, now))
    ready.extend(pairing.rest())
    yield from ready


def _live(records: Iterator[Record], limit: int, began: float) -> Iterator[Line]:
    """Lines as they become ready. A thread reads, so that open decisions are noticed in silence."""
    import queue
    import threading

    from ringfence.client.errors import RingfenceError, Unreachable

    arrived: queue.Queue[Record | RingfenceError | None] = queue.Queue(maxsize=1024)

    def read() -> None:
        end: RingfenceError | None = None
        try:
            for record in records:
                arrived.put(record)
        except RingfenceError as error:
            end = error
        arrived.put(end)

    threading.Thread(target=read, daemon=True).start()
    pairing = Pairing()
    backlog: deque[Line] | None = deque(maxlen=limit or None)
    while True:
        try:
            record: Any = arrived.get(timeout=BACKLOG_PAUSE)
        except queue.Empty:
            ready = [*(backlog or ()), *pairing.overdue(time.monotonic())]
            backlog = None
        else:
            if record is None or isinstance(record, RingfenceError):
                yield from [*(backlog or ()), *pairing.rest()]
                raise record or Unreachable(
                    "the log ended: the daemon was stopped", hint="run the command again"
                )
            ready = pairing.take(record, time.monotonic())
            if backlog is not None and float(record.get("time", 0.0)) < began:
                backlog.extend(ready)
                ready = []
            elif backlog is not None:
                ready, backlog = [*backlog, *ready], None
        yield from ready


def summary(records: Iterator[Record], limit: int) -> dict[str, Any]:
    """Decisions by sandbox, host and rule, with counts: the snapshot that clients of the field read."""
    blocked: dict[tuple[str, ...], dict[str, Any]] = {}
    allowed: dict[tuple[str, ...], dict[str, Any]] = {}
    for line in _past(records, limit, 0.0):
        record = line.record
        if line.word:
            continue
        port = record.get("port", 0)
        host = f"{record.get('host', '')}:{port}" if port else str(record.get("host", ""))
        name = str(record.get("sandbox_name") or record.get("sandbox") or "")
        proxy = _proxy_type(record)
        rows = allowed if record.get("verdict") == "allowed" else blocked
        at = _iso(float(record.get("time", 0.0)))
        row = rows.setdefault(
            (name, host, proxy, _rule(record)),
            {
                "host": host,
                "vm_name": name,
                "proxy_type": proxy,
                "rule": _rule(record),
                "reason": _reason(record),
                "last_seen": at,
                "since": at,
                "count_since": 0,
            },
        )
        row["count_since"] += int(record.get("count", 1))
        row["last_seen"], row["since"] = max(row["last_seen"], at), min(row["since"], at)
    return {"blocked_hosts": list(blocked.values()), "allowed_hosts": list(allowed.values())}


def _proxy_type(record: Record) -> str:
    via = str(record.get("via", ""))
    if via in ("connect", "forward", "socks5"):
        return (
            "forward-bypass"
            if record.get("protocol") == "tls" and record.get("verdict") == "allowed"
            else "forward"
        )
    return via


def _reason(record: Record) -> str:
    if record.get("reason") == "default":
        return "No matching allow rule (default deny)"
    return "" if record.get("verdict") == "allowed" else str(record.get("text") or record.get("reason") or "")


def _iso(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
