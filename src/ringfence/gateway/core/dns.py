"""The sandbox's name server as a function from a question to an answer.

Nothing is ever forwarded, so a question cannot carry anything out (DNS tunnels are CVE-2025-55284's way) and
an answer cannot carry anything in. A and AAAA are answered with the address that stands for the name in this
sandbox, whether policy allows the name or not: the refusal comes on connect, so that every client fails in
one way. Every other type is answered with nothing. Whatever is not one plain question of class IN is refused
or dropped (RFC 1035 section 4, with RFC 6891 for EDNS and RFC 8482 for ANY). An answer is at most
:data:`GROWTH` bytes longer than its question, so the server amplifies nothing, and it says nothing that the
question did not say but for one record.

:func:`answer` is total: it returns for any bytes. Fuzzed by ``python -m fuzz dns`` (corpus:
``fuzz/corpus/dns``).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ringfence.gateway.core.sniff import hostname
from ringfence.policy.names import LOCALHOST

QUERY_LIMIT = 1_232
"""Bytes of a query; one question and one OPT record never need more."""

GROWTH = 28
"""How many bytes longer than its question an answer can be: one AAAA record."""

TTL = 60
"""Seconds that a client may keep an address. Short, because a name that nobody uses may lose its address."""

A, AAAA, OPT, IXFR, AXFR = 1, 28, 41, 251, 252
_IN = 1
_NOERROR, _FORMERR, _SERVFAIL, _NXDOMAIN, _NOTIMP = range(5)
_BADVERS = 16
_LOCALHOST = ("127.0.0.1", "::1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What to send back, and what was asked."""

    reply: bytes | None = None
    """``None``: say nothing."""
    name: str = ""
    """Canonical if the name is one, else escaped for people; empty if no question could be read."""
    qtype: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Question:
    labels: tuple[bytes, ...]
    qtype: int
    qclass: int
    end: int


class _Broken(Exception):
    """Inside this module only: the message is not one question and at most one OPT record."""


def answer(
    query: bytes, *, address: Callable[[str, int], str], fixed: Mapping[str, tuple[str, str]]
) -> Answer:
    """Answer one message.

    ``address`` gives the synthetic address of a name in a family (4 or 6) and may raise ``LookupError`` when
    it has none; ``fixed`` names the few hosts that have addresses of their own, IPv4 and IPv6.
    """
    if not 12 <= len(query) <= QUERY_LIMIT or query[2] & 0x80:  # answers are never answered: no loops
        return Answer()
    if query[2] >> 3 & 15:  # UPDATE, NOTIFY, STATUS and what may come
        return Answer(reply=_header(query, _NOTIMP))
    try:
        question = _question(query)
        version = _edns(query, question.end)
    except _Broken:
        return Answer(reply=_header(query, _FORMERR))
    name = _name(question.labels)
    shown = name or _escaped(question.labels)
    rcode, record = _NOERROR, b""
    if version:
        rcode = _BADVERS
    elif question.qclass != _IN or question.qtype in (IXFR, AXFR, OPT):
        rcode = _NOTIMP
    elif name is None:
        rcode = _NXDOMAIN if question.labels else _NOERROR  # the root exists
    elif question.qtype in (A, AAAA):
        family = 4 if question.qtype == A else 6
        try:
            record = _record(question.qtype, _lookup(name, family, address, fixed))
        except LookupError:
            rcode = _SERVFAIL
    edns = (
        b""
        if version is None
        else b"\0\0\x29" + QUERY_LIMIT.to_bytes(2, "big") + bytes((rcode >> 4, 0, 0, 0, 0, 0))
    )
    reply = _header(query, rcode & 15, questions=1, answers=bool(record), additional=bool(edns))
    return Answer(reply=reply + query[12 : question.end] + record + edns, name=shown, qtype=question.qtype)


def _name(labels: tuple[bytes, ...]) -> str | None:
    """Return a name in lower case, as it was asked: ``host.docker.internal`` is not ``localhost`` to a resolver."""
    if any(b"." in label for label in labels):
        return None
    raw = b".".join(labels)
    return raw.decode("ascii").lower() if hostname(raw) else None


def _lookup(
    name: str, family: int, address: Callable[[str, int], str], fixed: Mapping[str, tuple[str, str]]
) -> str:
    if name == LOCALHOST or name.endswith(f".{LOCALHOST}"):  # RFC 6761 section 6.3: never leaves the machine
        return _LOCALHOST[family == 6]
    own = fixed.get(name)
    return address(name, family) if own is None else own[family == 6]


def _record(qtype: int, address: str) -> bytes:
    """One record; its name is a pointer to the question's (RFC 1035 section 4.1.4)."""
    packed = ipaddress.ip_address(address).packed
    return (
        b"\xc0\x0c"
        + qtype.to_bytes(2, "big")
        + b"\0\x01"
        + TTL.to_bytes(4, "big")
        + bytes((0, len(packed)))
        + packed
    )


def _header(query: bytes, rcode: int, *, questions: int = 0, answers: int = 0, additional: int = 0) -> bytes:
    """Identifier, opcode and RD as asked; an answer, recursion available; never truncated."""
    flags = bytes((0x80 | query[2] & 0x79, 0x80 | rcode))
    return query[:2] + flags + bytes((0, questions, 0, answers, 0, 0, 0, additional))


def _question(query: bytes) -> _Question:
    """Read the one question. A compression pointer has nothing to point to yet, so it is broken, and nothing loops."""
    if query[4:6] != b"\0\x01" or query[6:10] != b"\0\0\0\0":
        raise _Broken
    labels: list[bytes] = []
    at = 12
    while True:
        if at >= len(query):
            raise _Broken
        size = query[at]
        if size == 0:
            break
        after = at + 1 + size
        if size > 63 or after - 12 > 254:  # RFC 1035 section 2.3.4: 255 bytes with the root
            raise _Broken
        labels.append(query[at + 1 : after])
        at = after
    end = at + 5
    if end > len(query):
        raise _Broken
    return _Question(
        labels=tuple(labels),
        qtype=query[at + 1] << 8 | query[at + 2],
        qclass=query[at + 3] << 8 | query[at + 4],
        end=end,
    )


def _edns(query: bytes, at: int) -> int | None:
    """Return the EDNS version, ``None`` without EDNS. Its options are stepped over and never sent back."""
    if query[10:12] == b"\0\0" and at == len(query):
        return None
    if query[10:12] != b"\0\x01" or query[at : at + 3] != b"\0\0\x29" or len(query) < at + 11:
        raise _Broken
    if at + 11 + (query[at + 9] << 8 | query[at + 10]) != len(query):
        raise _Broken
    return query[at + 6]


def _escaped(labels: tuple[bytes, ...]) -> str:
    """A name that is none, for the audit: bytes that are not plain are written as in RFC 1035 section 5.1."""
    return ".".join(
        "".join(chr(b) if 0x21 <= b <= 0x7E and b not in b'.\\"' else f"\\{b:03d}" for b in label)
        for label in labels
    )
