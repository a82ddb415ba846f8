"""Datagrams that may begin QUIC: total, bounded, and what passes has said all its names.

The first byte says how many datagrams follow and where they are cut; ciphers are taken out of the way (what is sealed
is its own plaintext), so that frames are reached without a key.
"""

from __future__ import annotations

from ringfence.gateway.core.quic import CONNECTIONS, Handshakes, Kind, client_keys
from ringfence.gateway.core.sniff import hostname


class _Open:
    """Every packet is its own plaintext, under the keys of its own connection id."""

    def mask(self, *_: bytes) -> bytes:
        return bytes(5)

    def open(self, key: bytes, _: bytes, sealed: bytes, header: bytes) -> bytes | None:
        own = client_keys(int.from_bytes(header[1:5], "big"), header[6 : 6 + header[5]])
        return sealed[:-16] if key == own.key else None


def one(data: bytes) -> None:
    handshakes = Handshakes(_Open())
    count = data[0] % 4 + 1 if data else 1
    size = max(len(data) // count, 1)
    for at in range(1, len(data), size):
        reading = handshakes.read(data[at : at + size])
        assert (reading.kind is Kind.MALFORMED) == bool(reading.text)
        assert len(handshakes._connections) <= CONNECTIONS
        if reading.kind is Kind.QUIC:
            assert handshakes.begun
        for hello in reading.hellos:
            assert hello.server_name is None or hostname(hello.server_name.encode()) is not None
