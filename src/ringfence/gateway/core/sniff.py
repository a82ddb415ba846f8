"""What a client is about to speak, told from its first bytes.

A redirected connection says nothing about itself and a CONNECT only names a destination; what comes next may
be TLS, HTTP, or anything. :func:`sniff` looks at everything that has arrived so far and answers with one of
five kinds. It keeps no state, never raises and never waits: as long as the bytes could still become more than
one thing the answer is ``MORE``, with the number of bytes below which asking again is pointless. A caller
that honours :attr:`Sniffed.need` asks a logarithmic number of times, also of a peer that sends every byte of
its hello in a record of its own (RFC 8446 section 5.1 permits that, and firewalls that looked at one record
only were walked around by it).

A ClientHello is read whole and strictly, because the name in it chooses the policy: no length may be wrong on
the way to it, and a name that could be read in two ways (two names, an address, bytes outside of letters,
digits, hyphen and underscore) is ``MALFORMED``, never "no name". What is in the extensions that policy does not
need, and the bytes behind the hello, are not looked at.

Fuzzed by ``python -m fuzz sniff`` (corpus: ``fuzz/corpus/sniff``).
"""

from __future__ import annotations

import re
import struct
from enum import StrEnum
from functools import lru_cache
from typing import NamedTuple

from ringfence.policy.errors import InvalidPolicy
from ringfence.policy.names import NAME_BYTES, canonical_name

LIMIT = 65_536
"""Bytes a ClientHello may take with its record headers; who needs more is not a TLS client that we serve."""

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
"""The HTTP/2 connection preface (RFC 9113 section 3.4)."""

_METHOD_LIMIT = 64
_LINE_LIMIT = 1_024
_RECORD_LIMIT = 16_384
_NAME_LIMIT = NAME_BYTES + 1
_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]*")
_USUAL_METHOD = re.compile(rb"[A-Z][A-Z_-]*\Z")
_VERSIONED_LINE = re.compile(rb"[\x20-\x7e]* HTTP/[0-9.]+\r?\n")
_BROKEN_LINE = re.compile(rb"[\x20-\x7e]*(?:\r?\n|\r(?!\n|\Z)|[^\r\n\x20-\x7e])")
_ADDRESS = re.compile(r"[0-9.]+\Z")

_SERVER_NAME, _ALPN = 0, 16
_EXTENSION = struct.Struct("!HH").unpack_from
_ENCRYPTED_HELLO = frozenset((*range(0xFE08, 0xFE0E), 0xFFCE))
"""Encrypted ClientHello (RFC 9849, and the drafts that were deployed), and its forerunner ESNI."""


class SniffKind(StrEnum):
    MORE = "more"
    TLS = "tls"
    HTTP = "http"
    OTHER = "other"
    MALFORMED = "malformed"
    """TLS, or meant to look like it, and not to be served."""


class ClientHello(NamedTuple):
    """What policy needs of a ClientHello."""

    server_name: str | None = None
    """Canonical, as policy compares names; ``None`` if the client named nobody."""
    alpn: tuple[bytes, ...] = ()
    ech: bool = False
    """An encrypted hello is offered. Most often it is GREASE; where we do not terminate it may hide another name."""


class Sniffed(NamedTuple):
    """An answer. ``hello`` is there exactly when the kind is ``TLS``."""

    kind: SniffKind
    hello: ClientHello | None = None
    preface: bool = False
    """HTTP that begins with the HTTP/2 connection preface."""
    need: int = 0
    """For ``MORE``: with fewer bytes in all there is nothing new to say."""
    text: str = ""
    """For ``MALFORMED``: why."""


def sniff(data: bytes) -> Sniffed:
    """Tell what ``data``, everything that a client has sent so far, begins."""
    if not data:
        return _AT_ONCE
    if data[0] == 0x16:
        if len(data) < 2:
            return Sniffed(kind=SniffKind.MORE, need=2)
        return _tls(data) if data[1] == 3 else _OTHER
    return _text(data)


@lru_cache(maxsize=4096)
def read_hello(body: bytes) -> Sniffed:
    """Read a ClientHello's body that came without records, as in QUIC (RFC 9001 section 4.1.3)."""
    try:
        return Sniffed(kind=SniffKind.TLS, hello=_hello(body))
    except _Malformed as error:
        return Sniffed(kind=SniffKind.MALFORMED, text=str(error))


def hostname(raw: bytes) -> str | None:
    """Return the canonical form of a name as it came over the wire; ``None`` if it is no name."""
    return _hostname(raw) if len(raw) <= _NAME_LIMIT else None


@lru_cache(maxsize=4096)
def _hostname(raw: bytes) -> str | None:
    try:
        name = canonical_name(raw)
    except InvalidPolicy:
        return None
    return None if _ADDRESS.match(name) else name


_AT_ONCE = Sniffed(kind=SniffKind.MORE, need=1)
_OTHER = Sniffed(kind=SniffKind.OTHER)
_HTTP = Sniffed(kind=SniffKind.HTTP)
_HTTP2 = Sniffed(kind=SniffKind.HTTP, preface=True)


# -- text ----------------------------------------------------------------------------------------------------


def _text(data: bytes) -> Sniffed:
    """HTTP is a token and a space. Usual methods are capitals; what is written otherwise must name its version.

    The second rule keeps memcached's ``get key`` and git's ``003egit-upload-pack /x`` from being taken for
    requests, the first keeps ``GET /`` without a version (HTTP/0.9 lives in nginx) from being taken for
    anything else. Leading line ends are HTTP too: servers skip them (RFC 9112 section 2.2), our parser
    refuses them.
    """
    if data[0] in b"\r\n":
        return _HTTP
    end = _TOKEN.match(data, 0, _METHOD_LIMIT + 1).end()  # type: ignore[union-attr]  # the pattern matches emptiness
    if end == len(data) <= _METHOD_LIMIT:
        return Sniffed(kind=SniffKind.MORE, need=end + 1)
    if not 0 < end <= _METHOD_LIMIT or data[end] != 0x20:
        return _OTHER
    method = data[:end]
    if method == b"PRI":
        start = data[: len(PREFACE)]
        if start == PREFACE:
            return _HTTP2
        return Sniffed(kind=SniffKind.MORE, need=len(data) + 1) if PREFACE.startswith(start) else _HTTP
    if method.startswith(b"SSH-"):  # RFC 4253 section 4.2: a comment may follow the version after a space
        return _OTHER
    if _USUAL_METHOD.match(method):
        return _HTTP
    if _VERSIONED_LINE.match(data, 0, _LINE_LIMIT):
        return _HTTP
    if _BROKEN_LINE.match(data, 0, _LINE_LIMIT):
        return _OTHER
    return Sniffed(kind=SniffKind.MORE, need=len(data) + 1) if len(data) < _LINE_LIMIT else _HTTP


# -- TLS -----------------------------------------------------------------------------------------------------


class _Malformed(Exception):
    """Inside this module only: the hello cannot be served."""


def _tls(data: bytes) -> Sniffed:
    try:
        body, need = _handshake(data)
        if body is None:
            return Sniffed(kind=SniffKind.MORE, need=need)
        return Sniffed(SniffKind.TLS, _hello(body))
    except _Malformed as error:
        return Sniffed(kind=SniffKind.MALFORMED, text=str(error))


def _handshake(data: bytes) -> tuple[bytes | None, int]:
    """Take the body of the first handshake message out of its records, or say how many bytes that needs."""
    have = len(data)
    at, length, size = 0, 0, -1
    parts: list[bytes] = []
    while True:
        if at > LIMIT - 5:
            raise _Malformed("the client hello is spread too thin")
        if have < at + 5:
            rest = size - length if size >= 0 else 4 - length
            return None, at + 5 + max(rest, 1)
        if data[at] != 0x16 or data[at + 1] != 3:
            raise _Malformed("something else comes between the records of the client hello")
        fragment = data[at + 3] << 8 | data[at + 4]
        if not 0 < fragment <= _RECORD_LIMIT:
            raise _Malformed(f"a handshake record of {fragment} bytes")
        part = data[at + 5 : at + 5 + fragment]
        parts.append(part)
        length += len(part)
        if size < 0 and length >= 1:
            head = part if len(parts) == 1 else b"".join(parts)
            if head[0] != 1:
                raise _Malformed("the first handshake message is not a client hello")
            if length >= 4:
                size = 4 + int.from_bytes(head[1:4], "big")
                if size + 5 > LIMIT:
                    raise _Malformed(f"a client hello of {size} bytes")
        if 0 <= size <= length:
            message = parts[0] if len(parts) == 1 else b"".join(parts)
            return message[4:size], 0
        at += 5 + fragment
        if have < at:
            rest = size - length if size >= 0 else 4 - length
            return None, min(at, have + max(rest, 1))


def _hello(body: bytes) -> ClientHello:
    """Read a ClientHello (RFC 8446 section 4.1.2). Every length must fill its container exactly."""
    end = len(body)
    if end < 38:
        raise _Malformed("the client hello is cut short")
    if body[34] > 32:
        raise _Malformed("the session id is too long")
    at = _skip(body, 35 + body[34], 2, even=True)
    at = _skip(body, at, 1)
    if at == end:
        return ClientHello()
    if end < at + 2 or (body[at] << 8 | body[at + 1]) != end - at - 2:
        raise _Malformed("the extensions do not fill the client hello")
    at += 2
    seen: set[int] = set()
    server_name: str | None = None
    alpn: tuple[bytes, ...] = ()
    last = end - 4
    while at < end:  # a dozen times for every connection
        if at > last:
            raise _Malformed("an extension is cut short")
        kind, size = _EXTENSION(body, at)
        start = at + 4
        at = start + size
        if at > end:
            raise _Malformed("an extension is cut short")
        if kind in seen:
            raise _Malformed(f"extension {kind} comes twice")
        seen.add(kind)
        if kind == _SERVER_NAME:
            server_name = _server_name(body[start:at])
        elif kind == _ALPN:
            alpn = _protocols(body[start:at])
    return ClientHello(server_name, alpn, not seen.isdisjoint(_ENCRYPTED_HELLO))


def _skip(body: bytes, at: int, width: int, *, even: bool = False) -> int:
    """Step over a vector that must not be empty."""
    size = int.from_bytes(body[at : at + width], "big")
    after = at + width + size
    if not size or after > len(body) or (even and size % 2):
        raise _Malformed("a vector of the client hello is cut short")
    return after


def _server_name(body: bytes) -> str:
    """Exactly one ``host_name`` that is a name (RFC 6066 section 3: no address, no second of its type)."""
    if len(body) < 5 or body[0] << 8 | body[1] != len(body) - 2 or body[2] != 0:
        raise _Malformed("the server name list is malformed")
    if body[3] << 8 | body[4] != len(body) - 5:
        raise _Malformed("there is more than one server name")
    name = hostname(body[5:])
    if name is None:
        raise _Malformed("the server name is not a host name")
    return name


def _protocols(body: bytes) -> tuple[bytes, ...]:
    if len(body) < 4 or body[0] << 8 | body[1] != len(body) - 2:
        raise _Malformed("the protocol list is malformed")
    names: list[bytes] = []
    at = 2
    while at < len(body):
        after = at + 1 + body[at]
        if not body[at] or after > len(body):
            raise _Malformed("the protocol list is malformed")
        names.append(body[at + 1 : after])
        at = after
    return tuple(names)
