"""The stage on which published attacks are played: a real guest of the gateway, real sockets, real TLS.

A case says what is asked (an ``Ask``: bytes for one of the gateway's doors) and what must come of it (an
``Outcome``: what the client sees, what the one record says, every byte that an origin hears, how many names were
looked up and how many addresses dialled). ``Lab.expect`` plays it and compares all of it, and then sends a *sentinel*:
a request that no rule allows, which must still be refused. So an attack that leaves the gateway in a bad mood fails
here and not in somebody's sandbox.

    lab.bind(rule("allow", "a.test"))
    lab.serve("a.test")
    lab.expect(inside("a.test", get("a.test")), allowed(b"GET / HTTP/1.1\\r\\nHost: a.test\\r\\n\\r\\n"))
    lab.expect(inside("b.test", get("b.test")), refused("default"))

One stage serves a module; every case begins with an empty cache, an empty pool and no records.
"""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import uvloop
from tests.gateway.gateway_stage import (
    CLIENT4,
    PATIENCE,
    Client,
    Origin,
    Stage,
    origin_context,
    origin_roots,
    policy,
    rule,
)

from ringfence.gateway import listener
from ringfence.gateway.core.limits import Limits
from ringfence.policy.rule import Rule

__all__ = [
    "CLIENT4", "OK", "PATIENCE", "SENTINEL", "Ask", "Client", "Lab", "Outcome", "Reply", "allowed", "connect",
    "forward", "get", "inside", "origin_context", "origin_roots", "policy", "redirected", "refused", "rule", "tunnel",
    "until", "untouched",
]  # fmt: skip

T = TypeVar("T")
SENTINEL = "sentinel.invalid"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
Reply = bytes | Callable[[bytes], bytes]
Seen = int | str | bytes
"""A response's status, bytes that are no response, or how the connection ended: ``closed``, ``reset``, or ``cut`` where
a response was not complete."""

# -- what is asked --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """How a client gets to a door of the gateway (``open``) and the bytes that it sends there."""

    open: Callable[[Lab], Awaitable[Client]]
    payload: bytes = b""
    pieces: int = 0
    """Send so many bytes at a time."""


def forward(payload: bytes, *, pieces: int = 0) -> Ask:
    """Bytes for the explicit proxy: an absolute-form request, a CONNECT, or what pretends to be one."""
    return Ask(open=lambda lab: lab.stage.dial(), payload=payload, pieces=pieces)


def inside(host: str, payload: bytes, *, port: int = 443, name: str | None = None, pieces: int = 0) -> Ask:
    """Bytes inside TLS inside a CONNECT tunnel. ``name`` is the SNI where it differs from the CONNECT."""
    return Ask(open=lambda lab: lab.stage.secure(host, port, name=name), payload=payload, pieces=pieces)


def tunnel(host: str, payload: bytes, *, port: int = 443, pieces: int = 0) -> Ask:
    """Bytes in a CONNECT tunnel, whatever they are."""
    return Ask(open=lambda lab: lab.stage.connect(host, port), payload=payload, pieces=pieces)


def redirected(host: str, payload: bytes, *, port: int = 80, tls: str = "", pieces: int = 0) -> Ask:
    """Bytes of a client that dialled a name's synthetic address, or a raw one, and was redirected. ``tls``: its SNI."""

    async def reach(lab: Lab) -> Client:
        client = await lab.stage.reach(host, port)
        if tls:
            await client.start_tls(tls, lab.stage.certificate)
        return client

    return Ask(open=reach, payload=payload, pieces=pieces)


def untouched(host: str, payload: bytes, *, name: str | None = None, port: int = 443) -> Ask:
    """Bytes inside the origin's own TLS, through a tunnel that nobody looks into."""

    async def opened(lab: Lab) -> Client:
        client = await lab.stage.connect(host, port)
        await client.start_tls(name or host, origin_roots())
        return client

    return Ask(open=opened, payload=payload)


def get(host: str, target: str = "/", *lines: str, method: str = "GET", body: bytes = b"") -> bytes:
    """A request, written as it is told."""
    return (
        "\r\n".join([f"{method} {target} HTTP/1.1", f"Host: {host}", *lines, "", ""]).encode("latin-1") + body
    )


def connect(authority: str | bytes, *, host: str | bytes | None = None) -> bytes:
    """A CONNECT for whatever the bytes say."""
    target = authority if isinstance(authority, bytes) else authority.encode("latin-1")
    named = target if host is None else host if isinstance(host, bytes) else host.encode("latin-1")
    return b"CONNECT %b HTTP/1.1\r\nHost: %b\r\n\r\n" % (target, named)


# -- what comes of it -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Everything that anybody can see of an attempt. What is not said must not have happened."""

    seen: tuple[Seen, ...]
    verdict: str = ""
    reason: str = ""
    upstream: bytes = b""
    """Every byte that any origin heard (decrypted), in the order of its connections."""
    questions: tuple[str, ...] = ()
    """Names that were looked up; where something was dialled, only compared if it says so."""
    dials: int = 0
    """Addresses that a connection was tried to."""
    records: int = 1
    """Decisions on record."""
    text: str = ""
    """A part of the last record's text."""
    ended: str = ""
    """How what was allowed ended, where that is the point."""


def allowed(upstream: bytes, *seen: Seen, **more: Any) -> Outcome:
    """One decision, one connection, and exactly these bytes."""
    more = {"questions": (), "dials": 1, "reason": "rule", **more}
    return Outcome(seen=seen or (200,), verdict="allowed", upstream=upstream, **more)


def refused(reason: str = "default", *seen: Seen, **more: Any) -> Outcome:
    """One decision, no question, no connection."""
    return Outcome(seen=seen or (403,), verdict="blocked", reason=reason, **more)


# -- the stage ------------------------------------------------------------------------------------------------


class EscapeStage(Stage):
    """A stage with a resolver, whose lookups follow a script and whose dials are counted."""

    def __init__(self, loop: asyncio.AbstractEventLoop, limits: Limits) -> None:
        super().__init__(loop, limits)
        self.dials: list[tuple[str, int]] = []
        """What each connection was tried to, in order."""
        self.script: dict[str, list[Sequence[str]]] = {}
        """Answers that a name gives one after the other, with no time to live."""
        connect = self.dialer.connect

        async def counted(addresses: Any, factory: Any, *, timeout: float) -> Any:  # noqa: ASYNC109
            self.dials += addresses[:1]
            return await connect(addresses, factory, timeout=timeout)

        reach = self.dialer.reach

        def reached(address: tuple[str, int], factory: Any) -> Any:
            if address[0] != CLIENT4:  # else `counted` has it
                self.dials.append(address)
            return reach(address, factory)

        self.dialer.connect = counted  # type: ignore[method-assign]
        self.dialer.reach = reached  # type: ignore[method-assign]
        self.dialer._lookup = self._scripted

    async def _scripted(self, name: str) -> tuple[Sequence[str], float]:
        self.dialer.asked.append(name)
        lines = self.script.get(name)
        if lines is None:
            return self.addresses.get(name, ()), 60.0
        return lines.pop(0) if len(lines) > 1 else lines[0], 0.0

    async def open(self) -> None:
        await super().open()
        sockets = {}
        for role, kind in (("dns-udp4", socket.SOCK_DGRAM), ("dns-tcp4", socket.SOCK_STREAM)):
            sock = sockets[role] = socket.socket(socket.AF_INET, kind)
            sock.bind((CLIENT4, 0))
            if kind == socket.SOCK_STREAM:
                sock.listen(64)
        self.resolver = {role: sock.getsockname()[1] for role, sock in sockets.items()}
        await self.guest.serve(sockets)


@dataclass(eq=False)
class Heard:
    """What one connection to an origin brought."""

    name: str
    payload: bytearray = field(default_factory=bytearray)
    over: bool = False


class Lab:
    """A stage between two cases of a module, and the loop it lives on."""

    def __init__(self, **limits: float) -> None:
        self.loop = uvloop.new_event_loop()
        asyncio.set_event_loop(self.loop)
        self.stage = EscapeStage(self.loop, Limits.from_wire(limits))
        self.heard: list[Heard] = []
        self._revision = 0
        self._whither = listener.original_destination
        listener.original_destination = lambda _: self.stage.destination
        self._ticking = self.loop.create_task(self._tick())
        self.run(self.stage.open())

    def close(self) -> None:
        self._ticking.cancel()
        listener.original_destination = self._whither
        self.stage.close()
        self.run(until(lambda: len(asyncio.all_tasks()) == 1))
        asyncio.set_event_loop(None)
        self.loop.close()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(0.01)
            self.stage.guest.sweep(time.time())

    def run(self, scene: Coroutine[Any, Any, T]) -> T:
        async def bounded() -> T:
            async with asyncio.timeout(PATIENCE * 2):
                return await scene

        return self.loop.run_until_complete(bounded())

    # -- before a case ----------------------------------------------------------------------------------------

    def reset(self) -> None:
        """No origins, no names, no policy, no connections."""
        stage = self.stage
        for origin in stage.origins.values():
            origin.close()
        for client in stage._clients:
            client.writer.transport.abort()
        stage.origins.clear()
        stage._clients.clear()
        stage.addresses.clear()
        stage.script.clear()
        stage.guest.cut(False, time.time())
        self.bind()
        self.run(self._quiet())
        self.forget()

    def forget(self) -> None:
        """Empty cache, empty pool, nothing on record."""
        stage = self.stage
        stage.guest.upstreams.drop()
        stage.dialer._known.clear()
        stage.dialer.asked.clear()
        stage.dials.clear()
        stage.records.clear()
        self.heard.clear()

    def bind(self, *rules: Rule, **more: Any) -> None:
        """Put rules in force. Under a catch-all the sentinel has a deny of its own."""
        self._revision += 1
        if any(resource.catch_all for each in rules for resource in each.resources):
            rules = (*rules, rule("deny", SENTINEL, name="sentinel"))
        self.stage.bind(*rules, revision=self._revision, **more)

    def serve(
        self,
        name: str,
        *,
        port: int = 443,
        tls: bool | ssl.SSLContext = True,
        address: str = "",
        reply: Reply = OK,
        greeting: bytes = b"",
        hang_up: bool = False,
    ) -> Origin:
        """Put an origin behind a name. It answers every complete message with ``reply`` and keeps all it hears."""

        async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            heard = Heard(name)
            self.heard.append(heard)
            buffer = b""
            try:
                writer.write(greeting)
                while piece := await reader.read(65_536):
                    heard.payload += piece
                    buffer += piece
                    while end := _end_of_message(buffer):
                        message, buffer = buffer[:end], buffer[end:]
                        writer.write(reply(message) if callable(reply) else reply)
                        if hang_up:
                            await writer.drain()
                            return
            finally:
                heard.over = True

        context = origin_context(name) if tls is True else tls
        return self.run(self.stage.origin(name, behave, port=port, tls=context, address=address))

    # -- a case -----------------------------------------------------------------------------------------------

    def expect(self, ask: Ask, outcome: Outcome) -> list[dict[str, Any]]:
        """Play an attempt and then the sentinel, compare everything, and return the records of the attempt."""
        records = self.run(self._attempt(ask, outcome))
        self.sentinel()
        return records

    def sentinel(self) -> None:
        """Nothing has become possible that was not."""
        ask = forward(get(SENTINEL, f"http://{SENTINEL}/"))
        self.run(self._attempt(ask, Outcome(seen=(403,), verdict="blocked"), reasons=False))

    async def _attempt(self, ask: Ask, outcome: Outcome, *, reasons: bool = True) -> list[dict[str, Any]]:
        self.forget()
        client = await ask.open(self)
        seen = await self.talk(client, ask, outcome.seen)
        client.close()
        await self._quiet()
        stage = self.stage
        wanted = len(outcome.upstream)
        if wanted:
            await until(lambda: len(self.upstream) >= wanted or all(each.over for each in self.heard))
        elif outcome.dials:
            await until(lambda: all(each.over for each in self.heard) or self.upstream)
        opened = [record for record in stage.records if record["step"] == "opened"]
        told = {
            "seen": tuple(seen),
            "upstream": self.upstream,
            "dials": len(stage.dials),
            "records": len(opened),
            "questions": tuple(stage.dialer.asked) if outcome.questions or not outcome.dials else (),
        }
        assert told == {name: getattr(outcome, name) for name in told}
        if opened and reasons:
            last = opened[-1]
            assert (last["verdict"], last["reason"]) == (outcome.verdict, outcome.reason), last
            closed = [record for record in stage.records if record["step"] == "closed"]
            assert {each["id"] for each in closed} <= {each["id"] for each in opened}
            said = " ".join(str(each.get("text", "")) for each in (last, *closed))
            assert outcome.text in said, said
            if outcome.ended:
                assert [each["ended"] for each in closed][-1:] == [outcome.ended], closed
        return list(stage.records)

    async def talk(self, client: Client, ask: Ask, wanted: Sequence[Seen]) -> list[Any]:
        """Send, and read as many answers as are expected."""
        payload, size = ask.payload, ask.pieces or len(ask.payload) or 1
        seen: list[Any] = []
        try:
            for at in range(0, len(payload), size):
                client.send(payload[at : at + size])
                if ask.pieces:
                    await asyncio.sleep(0)
            for each in wanted:
                if isinstance(each, int) or each == "cut":
                    status, _, _ = await client.response(headless=payload.startswith(b"HEAD "))
                    seen.append(status)
                elif isinstance(each, bytes):
                    seen.append(await client.exactly(len(each)))
                else:
                    rest = await client.end()
                    seen.append("reset" if rest.endswith(b"<reset>") else "closed")
                    if rest.removesuffix(b"<reset>"):
                        seen.append(rest)
        except (asyncio.IncompleteReadError, ConnectionError):
            seen.append("cut")
        return seen

    async def _quiet(self) -> None:
        """Until every connection of the guest is gone: then all that will be recorded is."""
        await until(lambda: not self.stage.guest.links)

    @property
    def upstream(self) -> bytes:
        return b"".join(bytes(each.payload) for each in self.heard)


async def until(condition: Callable[[], object]) -> None:
    """Wait, in turns of the loop at first, for something that no event tells of."""
    turns = 0
    async with asyncio.timeout(PATIENCE):
        while not condition():
            turns += 1
            await asyncio.sleep(0 if turns < 200 else 0.001)


_LAST_CHUNK = re.compile(rb"\r\n0\r\n(?:[^\r\n]+\r\n)*\r\n")
_LENGTH = re.compile(rb"\r\ncontent-length: *([0-9]+)", re.IGNORECASE)


def _end_of_message(buffer: bytes) -> int:
    """Where the first message in a buffer ends, as an honest origin reads it; 0 if it is not complete."""
    head = buffer.find(b"\r\n\r\n") + 4
    if head < 4:
        return 0
    if b"\r\ntransfer-encoding: chunked" in buffer[:head].lower():
        last = _LAST_CHUNK.search(buffer, head - 2)
        return last.end() if last else 0
    length = _LENGTH.search(buffer, 0, head)
    size = head + int(length[1]) if length else head
    return size if size <= len(buffer) else 0
