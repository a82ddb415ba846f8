"""SOCKS5 towards a client: one greeting, one request, one reply (RFC 1928, CONNECT only).

SOCKS answers before anybody knows what the client will speak. So a destination that policy refuses whatever is spoken
there gets reply 2 and one record at once; any other gets reply 0, and what comes next is told apart like the inside
of every CONNECT, refusals inside of HTTP included. Nothing is resolved and nothing dialled for a reply.

A name is bytes with a length in front, and may hold what no line of text could: NUL, CR, LF, spaces, ``%``. A filter
that compared such a name and a resolver that cut it short have disagreed before (``evil.test\\0.allowed.test``), so a
name is read strictly before anything is compared with it.

There is no authentication: the listener is the sandbox's identity. Who offers nothing but passwords (RFC 1929) is told
that no method is acceptable; SOCKS4 is told in its own words.

Fuzzed by ``python -m fuzz socks`` (corpus: ``fuzz/corpus/socks``).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from typing import Final, NamedTuple

from ringfence.gateway.core.flow import Flow
from ringfence.gateway.core.messages import ClientWire
from ringfence.gateway.core.subject import Subject
from ringfence.policy.errors import InvalidPolicy
from ringfence.policy.model import Decision, Reason, Verdict
from ringfence.policy.names import canonical_host, canonical_name

VERSION4: Final = 4
VERSION5: Final = 5
CONNECT: Final = 1
SUCCEEDED, FAILED, NOT_ALLOWED, NO_COMMAND, NO_ADDRESS_TYPE = 0, 1, 2, 7, 8
"""Replies of RFC 1928 section 6, those that we give."""

_NO_AUTHENTICATION: Final = 0
_METHOD: Final = b"\x05\x00"
_NO_METHOD: Final = b"\x05\xff"
_REJECTED4: Final = b"\x00\x5b" + bytes(6)
"""SOCKS4's "request rejected or failed"."""
_IPV4, _NAME, _IPV6 = 1, 3, 4
_WIDTHS: Final = {_IPV4: 4, _IPV6: 16}
_OPEN: Final = (Verdict.ALLOWED, Verdict.UNDETERMINED)


class Unserved(Exception):
    """A request that is answered with a refusal of the protocol's own."""

    def __init__(self, reply: int, text: str) -> None:
        super().__init__(text)
        self.reply = reply
        self.text = text


class Greeting(NamedTuple):
    """The methods that a client offers, and the bytes that its greeting took."""

    methods: bytes
    size: int


class Wanted(NamedTuple):
    """A request: where to, canonical, and the bytes that it took."""

    command: int
    host: str
    port: int
    size: int


def read_greeting(data: bytes) -> Greeting | None:
    """Read the method selection; nothing while bytes are missing. The first one has been looked at."""
    if len(data) < 2 or len(data) < 2 + data[1]:
        return None
    return Greeting(data[2 : 2 + data[1]], 2 + data[1])


def read_request(data: bytes) -> Wanted | None:
    """Read the request; nothing while bytes are missing. Raises :class:`Unserved`."""
    if len(data) < 5:  # the fifth is an address's first, or how long a name is
        return None
    version, command, reserved, kind = data[:4]
    if version != VERSION5 or reserved:
        raise Unserved(FAILED, "a SOCKS request that is none")
    if kind == _NAME:
        start, width = 5, data[4]
    elif kind in _WIDTHS:
        start, width = 4, _WIDTHS[kind]
    else:
        raise Unserved(NO_ADDRESS_TYPE, f"SOCKS address type {kind} is not served")
    end = start + width
    if len(data) < end + 2:
        return None
    port = data[end] << 8 | data[end + 1]
    if not port:
        raise Unserved(FAILED, "a SOCKS request for port 0")
    return Wanted(command, _host(kind, data[start:end]), port, end + 2)


def reply(code: int) -> bytes:
    """Return a reply. Our address is nobody's business: the unspecified one stands for it."""
    return b"\x05%c\x00\x01" % code + bytes(6)


def _host(kind: int, raw: bytes) -> str:
    if kind != _NAME:
        return canonical_host(str(ipaddress.ip_address(raw)))
    try:
        return canonical_name(raw)
    except InvalidPolicy as flaw:
        raise Unserved(FAILED, f"a SOCKS name that is none: {flaw.message}") from None


class Socks:
    """A phase: the negotiation with one client. ``destined`` makes the flow to a host and port; ``established`` takes
    the connection over, with what the client sent ahead.
    """

    def __init__(
        self,
        wire: ClientWire,
        subject: Subject,
        now: float,
        *,
        destined: Callable[[str, int, str], Flow],
        established: Callable[[Flow, bytes, bytes, float], None],
    ) -> None:
        self.wire = wire
        self.deadline = now + subject.limits.hello_time
        self._subject = subject
        self._destined = destined
        self._established = established
        self._buffer = b""
        self._greeted = False
        self._over = False

    def received(self, data: bytes, now: float) -> None:
        if self._over:
            return
        buffer = self._buffer + data if self._buffer else data
        if buffer[0] == VERSION4 and not self._greeted:
            self._fail(_REJECTED4, "SOCKS4 is not served", now)
            return
        if not self._greeted:
            greeting = read_greeting(buffer)
            if greeting is None:
                self._buffer = buffer
                return
            if _NO_AUTHENTICATION not in greeting.methods:
                self._fail(_NO_METHOD, "a SOCKS client that wants to authenticate", now)
                return
            self._greeted = True
            self.wire.send(_METHOD)
            buffer = buffer[greeting.size :]
        self._buffer = buffer
        try:
            wanted = read_request(buffer)
        except Unserved as flaw:
            self._fail(reply(flaw.reply), flaw.text, now)
            return
        if wanted is not None:
            self._serve(wanted, buffer[wanted.size :], now)

    def _serve(self, wanted: Wanted, rest: bytes, now: float) -> None:
        flow = self._destined(wanted.host, wanted.port, "socks5")
        if wanted.command != CONNECT:
            self._fail(reply(NO_COMMAND), f"SOCKS command {wanted.command} is not served", now, flow)
            return
        decision = flow.decision(now)
        self._over = True
        if decision.verdict in _OPEN:
            self._established(flow, reply(SUCCEEDED), rest, now)
            return
        flow.record(decision, now)
        self._say_last(reply(NOT_ALLOWED))

    def _fail(self, answer: bytes, text: str, now: float, flow: Flow | None = None) -> None:
        """Refuse what is no request that we serve: one answer, one record."""
        self._over = True
        flow = flow or self._destined("", 0, "socks5")
        decision = Decision(reason=Reason.FAILURE, text=text, revision=self._subject.revision)
        flow.record(decision, now)
        self._say_last(answer)

    def _say_last(self, answer: bytes) -> None:
        self.wire.send(answer)
        self.wire.finish()

    def eof(self, now: float) -> None:  # noqa: ARG002  # nothing was asked for
        self._over = True
        self.wire.finish()

    def lost(self, now: float) -> None:  # noqa: ARG002  # nothing was asked for
        self._over = True

    def filled(self) -> None:
        """Replies are small."""

    def drained(self, now: float) -> None:
        """Replies are small."""

    def expire(self, now: float) -> None:
        """Half a negotiation that nobody completes."""
        if not self._over:
            answer = reply(FAILED) if self._greeted else _NO_METHOD
            self._fail(answer, "a SOCKS request that did not come in time", now)

    def revise(self, now: float) -> None:
        """Nothing has been decided yet."""
