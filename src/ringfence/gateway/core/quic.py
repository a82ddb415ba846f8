"""QUIC's first flight: who a client says it wants to speak with, read out of its Initial packets.

A server's name is in the ClientHello, the ClientHello is in CRYPTO frames, and those are in Initial packets whose
keys anybody can derive from the packet itself (RFC 9001 section 5.2, RFC 9369 for version 2). Frames come in any
order, repeat, and spread over several packets and datagrams; :class:`Handshakes` puts them together for one flow
and says of every datagram what it is (:class:`Reading`). It reads *every* Initial that passes, not only the first:
a second connection on the same ports, or a second ClientHello after a retry, could name somebody else.

What a server might read differently is refused rather than guessed:

* A packet that the keys of two connections open. AES-GCM does not commit to its key (RFC 9771), so such packets can
  be made.
* A packet number beyond 126. Below, a truncated number means the same to everybody (RFC 9000 appendix A.3), so nobody
  can make us count differently from a server. No handshake has as many Initials.
* CRYPTO data that says two things about one offset, and anything in an Initial but what belongs there.

The cipher itself comes in from outside (:class:`Ciphers`); the rest is arithmetic. Total: bytes never raise. Fuzzed by
``python -m fuzz quic`` (corpus: ``fuzz/corpus/quic``).
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Final, NamedTuple, Protocol

from ringfence.gateway.core.sniff import ClientHello, SniffKind, read_hello

V1: Final = 0x0000_0001
V2: Final = 0x6B33_43CF

HELLO_LIMIT: Final = 16_384
"""Bytes of CRYPTO data of one connection. A ClientHello with post-quantum keys takes 1,800."""
CONNECTIONS: Final = 4
"""Connections of one flow that are told apart; the oldest is forgotten."""
PACKETS: Final = 8
"""Packets in one datagram."""
SPANS: Final = 64
"""Separate pieces of CRYPTO data."""
_ID_LIMIT: Final = 20
_NUMBER_LIMIT: Final = 127
_SAMPLE: Final = 16
_TAG: Final = 16


class Ciphers(Protocol):
    """What of AES is needed (RFC 9001 sections 5.3 and 5.4.3)."""

    def mask(self, key: bytes, sample: bytes, /) -> bytes:
        """Return at least 5 bytes of the sample, encrypted with AES-128 in ECB mode."""

    def open(self, key: bytes, nonce: bytes, sealed: bytes, associated: bytes, /) -> bytes | None:
        """Decrypt with AEAD_AES_128_GCM; nothing if the tag is not right."""


class Kind(StrEnum):
    """What a datagram from a client is."""

    PLAIN = "plain"
    """Nothing of QUIC that can be seen from outside: something else, or a connection that is under way."""
    QUIC = "quic"
    """Every ClientHello that was begun is complete."""
    MORE = "more"
    """A ClientHello is not complete, or has not come yet: nothing may pass."""
    FOREIGN = "foreign"
    """It looks like QUIC, of a version that cannot be read."""
    MALFORMED = "malformed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    kind: Kind
    hellos: tuple[ClientHello, ...] = ()
    """Those that this datagram completed."""
    text: str = ""


_PLAIN: Final = Reading(kind=Kind.PLAIN)
_FOREIGN: Final = Reading(kind=Kind.FOREIGN)


class Keys(NamedTuple):
    """What protects a client's Initial packets."""

    key: bytes
    iv: bytes
    header: bytes


class _Version(NamedTuple):
    salt: bytes
    labels: tuple[bytes, bytes, bytes]
    initial: int
    early: int
    handshake: int


_VERSIONS: Final = {
    V1: _Version(
        bytes.fromhex("38762cf7f55934b34d179ae6a4c80cadccbb7f0a"),
        (b"quic key", b"quic iv", b"quic hp"),
        0,
        1,
        2,
    ),
    V2: _Version(
        bytes.fromhex("0dede3def700a6db819381be6e269dcbf9bd2ed9"),
        (b"quicv2 key", b"quicv2 iv", b"quicv2 hp"),
        1,
        2,
        3,
    ),
}
"""RFC 9001 sections 5.1 and 5.2 with RFC 9000 section 17.2; RFC 9369 sections 3.2 and 3.3."""


@lru_cache(maxsize=256)
def client_keys(version: int, connection: bytes) -> Keys:
    """Derive the keys of a client's Initials from the connection id that it chose for its server."""
    known = _VERSIONS[version]
    secret = hmac.digest(known.salt, connection, hashlib.sha256)
    client = _expand(secret, b"client in", 32)
    key, iv, header = known.labels
    return Keys(_expand(client, key, 16), _expand(client, iv, 12), _expand(client, header, 16))


def _expand(secret: bytes, label: bytes, size: int) -> bytes:
    """HKDF-Expand-Label (RFC 8446 section 7.1), never more than one block."""
    label = b"tls13 " + label
    told = size.to_bytes(2, "big") + bytes((len(label),)) + label + b"\0"
    return hmac.digest(secret, told + b"\x01", hashlib.sha256)[:size]


class _Malformed(Exception):
    """Inside this module only: a packet that must not pass."""


class Handshakes:
    """The QUIC connections that a client begins on one flow."""

    __slots__ = ("_ciphers", "_connections", "begun")

    def __init__(self, ciphers: Ciphers) -> None:
        self._ciphers = ciphers
        self._connections: dict[bytes, _Hello] = {}
        self.begun = False
        """A ClientHello was complete."""

    def read(self, datagram: bytes) -> Reading:
        """Say what a datagram is. Cheap for one that begins no connection."""
        if len(datagram) < 7 or datagram[0] < 0x80:
            return _PLAIN
        version = int.from_bytes(datagram[1:5], "big")
        if version not in _VERSIONS:
            return _FOREIGN if datagram[0] & 0x40 else _PLAIN
        try:
            return self._read(datagram)
        except _Malformed as flaw:
            return Reading(kind=Kind.MALFORMED, text=str(flaw))

    def _read(self, datagram: bytes) -> Reading:
        hellos: list[ClientHello] = []
        at = count = 0
        while at < len(datagram) and datagram[at] >= 0x80:
            count += 1
            if count > PACKETS:
                raise _Malformed(f"more than {PACKETS} packets in one datagram")
            packet = _packet(datagram, at)
            if packet.initial:
                hellos += self._initial(packet)
            elif not self.begun and not (packet.early or self._connections):
                raise _Malformed("it comes in the middle of a connection that was not seen to begin")
            at = packet.end
        if hellos:
            self.begun = True
        waiting = not self.begun or not all(each.settled for each in self._connections.values())
        return Reading(kind=Kind.MORE if waiting else Kind.QUIC, hellos=tuple(hellos))

    def _initial(self, packet: _Packet) -> list[ClientHello]:
        """Open an Initial with the one connection's keys that fit, and read it."""
        opened: list[tuple[bytes, bytes]] = []
        for connection in {**self._connections, packet.connection: None}:
            plain = self._open(packet, client_keys(packet.version, connection))
            if plain is not None:
                opened.append((connection, plain))
        if len(opened) != 1:
            raise _Malformed(
                "an Initial that several keys open" if opened else "an Initial that no key opens"
            )
        connection, plain = opened[0]
        hello = self._connections.get(connection)
        if hello is None:
            if len(self._connections) >= CONNECTIONS:
                oldest = next(iter(self._connections))
                if not self._connections.pop(oldest).settled:
                    raise _Malformed("too many connections begin at once")
            hello = self._connections[connection] = _Hello()
        for offset, piece in _crypto(plain):
            hello.add(offset, piece)
        return hello.take()

    def _open(self, packet: _Packet, keys: Keys) -> bytes | None:
        """Take the protection off (RFC 9001 section 5.4.1), or find that these are not the keys."""
        start, datagram = packet.number_at, packet.datagram
        mask = self._ciphers.mask(keys.header, datagram[start + 4 : start + 4 + _SAMPLE])
        first = datagram[packet.at] ^ mask[0] & 0x0F
        size = (first & 3) + 1
        number = int.from_bytes(datagram[start : start + size], "big") ^ int.from_bytes(
            mask[1 : 1 + size], "big"
        )
        if number >= _NUMBER_LIMIT or packet.end - start - size < _TAG:
            return None
        nonce = (int.from_bytes(keys.iv, "big") ^ number).to_bytes(12, "big")
        header = bytes((first,)) + datagram[packet.at + 1 : start] + number.to_bytes(size, "big")
        plain = self._ciphers.open(keys.key, nonce, datagram[start + size : packet.end], header)
        if plain is not None and first & 0x0C:
            raise _Malformed("reserved bits of an Initial are set")
        return plain


# -- packets -------------------------------------------------------------------------------------------------


class _Packet(NamedTuple):
    """A packet with a long header (RFC 9000 section 17.2)."""

    datagram: bytes
    at: int
    number_at: int
    end: int
    version: int
    connection: bytes
    initial: bool
    early: bool


def _packet(datagram: bytes, at: int) -> _Packet:
    version = int.from_bytes(datagram[at + 1 : at + 5], "big")
    known = _VERSIONS.get(version)
    if known is None:
        raise _Malformed("packets of several versions in one datagram")
    connection, here = _id(datagram, at + 5)
    _, here = _id(datagram, here)
    kind = datagram[at] >> 4 & 3
    if kind == known.initial:
        size, here = _integer(datagram, here)
        here += size
    elif kind not in (known.early, known.handshake):
        raise _Malformed("a client does not send Retry")
    size, here = _integer(datagram, here)
    if size < 4 + _SAMPLE or here + size > len(datagram):
        raise _Malformed("the length of a packet is wrong")
    return _Packet(
        datagram, at, here, here + size, version, connection, kind == known.initial, kind == known.early
    )


def _id(datagram: bytes, at: int) -> tuple[bytes, int]:
    size = datagram[at] if at < len(datagram) else _ID_LIMIT + 1
    if size > _ID_LIMIT or at + 1 + size > len(datagram):
        raise _Malformed("a connection id is cut short or too long")
    return datagram[at + 1 : at + 1 + size], at + 1 + size


def _integer(octets: bytes, at: int) -> tuple[int, int]:
    """Read a variable-length integer (RFC 9000 section 16); return it and where it ends."""
    if at >= len(octets):
        raise _Malformed("a packet is cut short")
    after = at + (1 << (octets[at] >> 6))
    if after > len(octets):
        raise _Malformed("a packet is cut short")
    return int.from_bytes(octets[at:after], "big") & (1 << 8 * (after - at) - 2) - 1, after


def _crypto(plain: bytes) -> list[tuple[int, bytes]]:
    """Return the CRYPTO frames of an Initial; a frame that does not belong there is an error (section 12.4)."""
    found: list[tuple[int, bytes]] = []
    at = 0
    while True:
        at = len(plain) - len(plain[at:].lstrip(b"\0"))  # PADDING
        if at >= len(plain):
            return found
        kind, at = plain[at], at + 1
        if kind == 0x06:  # CRYPTO
            offset, at = _integer(plain, at)
            size, at = _integer(plain, at)
            if at + size > len(plain):
                raise _Malformed("a CRYPTO frame is cut short")
            found.append((offset, plain[at : at + size]))
            at += size
        elif kind in (0x02, 0x03):  # ACK
            _, at = _integer(plain, at)
            _, at = _integer(plain, at)
            ranges, at = _integer(plain, at)
            for _ in range(min(2 * ranges + 1, len(plain)) + (3 if kind == 0x03 else 0)):
                _, at = _integer(plain, at)
        elif kind == 0x1C:  # CONNECTION_CLOSE
            _, at = _integer(plain, at)
            _, at = _integer(plain, at)
            size, at = _integer(plain, at)
            at += size
            if at > len(plain):
                raise _Malformed("a CONNECTION_CLOSE frame is cut short")
        elif kind != 0x01:  # PING
            raise _Malformed("an Initial holds a frame that does not belong there")


# -- the ClientHello -----------------------------------------------------------------------------------------


class _Hello:
    """The CRYPTO data of one connection, and the ClientHellos in it: one, or two after a HelloRetryRequest."""

    __slots__ = ("_octets", "_read", "_spans")

    def __init__(self) -> None:
        self._octets = bytearray()
        self._spans: list[tuple[int, int]] = []
        self._read = 0

    @property
    def settled(self) -> bool:
        """Whether all that has come was read."""
        return self._read == len(self._octets)

    def add(self, offset: int, piece: bytes) -> None:
        """Put a piece where it belongs. A second opinion about the same bytes is an error."""
        end = offset + len(piece)
        if end > HELLO_LIMIT:
            raise _Malformed(f"a ClientHello of more than {HELLO_LIMIT} bytes")
        if not piece:
            return
        for low, high in self._spans:
            start, stop = max(low, offset), min(high, end)
            if start < stop and self._octets[start:stop] != piece[start - offset : stop - offset]:
                raise _Malformed("CRYPTO data that contradicts itself")
        if end > len(self._octets):
            self._octets += bytes(end - len(self._octets))
        self._octets[offset:end] = piece
        apart = [span for span in self._spans if span[1] < offset or span[0] > end]
        touching = [span for span in self._spans if span[1] >= offset and span[0] <= end]
        self._spans = sorted(
            (*apart, (min((offset, *(s[0] for s in touching))), max((end, *(s[1] for s in touching)))))
        )
        if len(self._spans) > SPANS:
            raise _Malformed("a ClientHello in too many pieces")

    def take(self) -> list[ClientHello]:
        """Return the ClientHellos that are complete now."""
        hellos: list[ClientHello] = []
        ready = self._spans[0][1] if self._spans and not self._spans[0][0] else 0
        while ready >= self._read + 4:
            head = self._octets[self._read : self._read + 4]
            after = self._read + 4 + int.from_bytes(head[1:], "big")
            if head[0] != 1 or after > HELLO_LIMIT:
                raise _Malformed("an Initial says something else than a ClientHello")
            if ready < after:
                break
            sniffed = read_hello(bytes(self._octets[self._read + 4 : after]))
            if sniffed.kind is not SniffKind.TLS or sniffed.hello is None:
                raise _Malformed(f"a malformed ClientHello: {sniffed.text}")
            hellos.append(sniffed.hello)
            self._read = after
        return hellos
