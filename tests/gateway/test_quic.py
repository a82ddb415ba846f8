"""QUIC's first flight: RFC vectors, every order of its pieces, and what is refused because it has two readings."""

from __future__ import annotations

import itertools
import random
from pathlib import Path
from runpy import run_path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from quic_flight import RFC_HELLO, RFC_ID, V1, V2, crypto, flight, hello, initial, pieces

from ringfence.gateway.core.quic import (
    CONNECTIONS,
    HELLO_LIMIT,
    PACKETS,
    SPANS,
    Handshakes,
    Kind,
    Reading,
    client_keys,
)
from ringfence.gateway.quic import CIPHERS

FUZZ = Path(__file__).parents[2] / "fuzz"
fuzz_one = run_path(str(FUZZ / "quic.py"))["one"]
OTHER_ID = b"\x01\x02\x03\x04\x05\x06\x07\x08"


def read(*datagrams: bytes) -> list[Reading]:
    handshakes = Handshakes(CIPHERS)
    return [handshakes.read(datagram) for datagram in datagrams]


def last(*datagrams: bytes) -> Reading:
    return read(*datagrams)[-1]


def names(readings: list[Reading]) -> list[str | None]:
    return [each.server_name for reading in readings for each in reading.hellos]


# -- the RFCs' own examples ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "key", "iv", "header"),
    [
        (
            V1,
            "1f369613dd76d5467730efcbe3b1a22d",
            "fa044b2f42a3fd3b46fb255c",
            "9f50449e04a0e810283a1e9933adedd2",
        ),
        (
            V2,
            "8b1a0bc121284290a29e0971b5cd045d",
            "91f73e2351d8fa91660e909f",
            "45b95e15235d6f45a6b19cbcb0294ba9",
        ),
    ],
    ids=["RFC 9001 A.1", "RFC 9369 A.1"],
)
def test_keys_of_the_rfcs(version: int, key: str, iv: str, header: str) -> None:
    assert [part.hex() for part in client_keys(version, RFC_ID)] == [key, iv, header]


@pytest.mark.parametrize(
    ("version", "begins", "ends"),
    [
        (
            V1,
            "c000000001088394c8f03e5157080000449e7b9aec34d1b1c98dd7689fb8ec11d242b123dc9bd8bab936b47d92ec356c",
            "e221af44860018ab0856972e194cd934",
        ),
        (
            V2,
            "d76b3343cf088394c8f03e5157080000449ea0c95e82ffe67b6abcdb4298b485dd04de806071bf03dceebfa162e75d6c",
            "",
        ),
    ],
    ids=["RFC 9001 A.2", "RFC 9369 A.2"],
)
def test_initials_of_the_rfcs(version: int, begins: str, ends: str) -> None:
    datagram = initial(crypto(RFC_HELLO), 2, version=version)
    assert (datagram[:48].hex(), len(datagram)) == (begins, 1_200)
    assert datagram.hex().endswith(ends)
    (reading,) = read(datagram)
    assert reading.kind is Kind.QUIC
    assert [(each.server_name, each.alpn, each.ech) for each in reading.hellos] == [
        ("example.com", (b"alpn",), False)
    ]


# -- pieces --------------------------------------------------------------------------------------------------

MESSAGE = hello("quic.test", size=2_000)


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
def test_pieces_in_any_order_in_one_packet(order: tuple[int, ...]) -> None:
    parts = pieces(MESSAGE, 2, 5, 1_000)
    frames = b"\x01".join(crypto(parts[at][1], parts[at][0]) for at in order)
    assert names(read(initial(frames, pad=2_100))) == ["quic.test"]


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
def test_pieces_in_any_order_over_datagrams(order: tuple[int, ...]) -> None:
    parts = pieces(MESSAGE, 2, 700, 1_400)
    readings = read(*(initial(crypto(parts[at][1], parts[at][0]), number) for number, at in enumerate(order)))
    assert [reading.kind for reading in readings] == [Kind.MORE, Kind.MORE, Kind.MORE, Kind.QUIC]
    assert names(readings) == ["quic.test"]


@pytest.mark.parametrize("cut", range(1, len(hello("quic.test"))))
def test_a_hello_cut_anywhere_is_the_same_hello(cut: int) -> None:
    (low, first), (high, second) = pieces(hello("quic.test"), cut)
    readings = read(initial(crypto(first, low), 0), initial(crypto(second, high), 1))
    assert ([reading.kind for reading in readings], names(readings)) == (
        [Kind.MORE, Kind.QUIC],
        ["quic.test"],
    )


def test_repeated_and_overlapping_pieces() -> None:
    message = hello("quic.test", size=200)
    readings = read(
        initial(crypto(message[:80]), 0),
        initial(crypto(message[20:60], 20), 1),
        initial(crypto(message[40:], 40), 2),
        initial(crypto(message), 3),
    )
    assert [reading.kind for reading in readings] == [Kind.MORE, Kind.MORE, Kind.QUIC, Kind.QUIC]
    assert names(readings) == ["quic.test"]


def test_coalesced_packets_are_all_read() -> None:
    (low, first), (high, second) = pieces(hello("quic.test"), 50)
    datagram = initial(crypto(first, low), 0, pad=200) + initial(crypto(second, high), 1, pad=900)
    assert names(read(datagram)) == ["quic.test"]
    early = initial(b"\x01", 0, kind=1, pad=50)  # 0-RTT, as far as anybody can tell
    assert (
        last(flight(), early + flight("b.test", number=5, connection=OTHER_ID)).hellos[0].server_name
        == "b.test"
    )


# -- after the first datagram --------------------------------------------------------------------------------


def test_a_handshake_goes_on() -> None:
    acknowledgement = initial(b"\x02\0\0\0\0", 1, connection=b"server", keys=RFC_ID)
    handshake = initial(b"\x01", 0, kind=2, connection=b"server", keys=RFC_ID)
    closing = initial(b"\x1c\x40\x02\x06\x05sorry", 2, connection=b"server", keys=RFC_ID)
    counted = initial(b"\x03\0\0\1\0\0\0\1\2\3", 3, connection=b"server", keys=RFC_ID)
    kinds = [
        reading.kind for reading in read(flight(), acknowledgement, handshake, b"\x40short", closing, counted)
    ]
    assert kinds == [Kind.QUIC, Kind.QUIC, Kind.QUIC, Kind.PLAIN, Kind.QUIC, Kind.QUIC]


def test_a_retry_and_version_negotiation_begin_again() -> None:
    after_retry = flight(number=1, connection=b"retried!", token=b"t" * 40)
    assert names(read(flight(), after_retry)) == ["quic.test", "quic.test"]
    assert names(read(flight(version=V2), flight(number=1))) == ["quic.test"] * 1  # the same CRYPTO data
    compatible = initial(b"\x02\0\0\0\0", 1, version=V2, connection=b"server", keys=RFC_ID)
    assert last(flight(), compatible).kind is Kind.QUIC


def test_a_second_hello_after_a_retry_request_is_read_too() -> None:
    first, second = hello("quic.test"), hello("evil.test")
    more = initial(crypto(second[:30], len(first)), 1, connection=b"server", keys=RFC_ID)
    rest = initial(crypto(second[30:], len(first) + 30), 2, connection=b"server", keys=RFC_ID)
    readings = read(flight(), more, rest)
    assert [reading.kind for reading in readings] == [Kind.QUIC, Kind.MORE, Kind.QUIC]
    assert names(readings) == ["quic.test", "evil.test"]


def test_zero_rtt_waits_for_its_initial() -> None:
    early = initial(b"\x01", 0, kind=1)
    assert [reading.kind for reading in read(early, flight())] == [Kind.MORE, Kind.QUIC]


def test_the_oldest_connection_is_forgotten_and_only_a_settled_one() -> None:
    ids = [bytes([number]) * 8 for number in range(CONNECTIONS + 1)]
    assert all(reading.kind is Kind.QUIC for reading in read(*(flight(connection=each) for each in ids)))
    begun = [initial(crypto(MESSAGE[:50]), connection=each) for each in ids]
    assert last(*begun).text == "too many connections begin at once"


# -- what it is not ------------------------------------------------------------------------------------------

NOT_QUIC = {
    "nothing": b"",
    "DNS": b"\x12\x34\x01\0\0\1\0\0\0\0\0\0\7example\3com\0\0\1\0\1",
    "NTP": b"\x23" + bytes(47),
    "WireGuard": b"\x01\0\0\0" + bytes(144),
    "DTLS": b"\x16\xfe\xfd" + bytes(60),
    "STUN": b"\x00\x01\0\0\x21\x12\xa4\x42" + bytes(12),
    "RTP": b"\x80\x60\x12\x34" + bytes(168),
    "a short header": b"\x40" + bytes(40),
    "text": b"hello",
    "too short for a version": b"\xc0\0\0\0\1",
}


@pytest.mark.parametrize("datagram", NOT_QUIC.values(), ids=NOT_QUIC.keys())
def test_other_protocols(datagram: bytes) -> None:
    assert last(datagram) == Reading(kind=Kind.PLAIN)


@pytest.mark.parametrize("version", [0, 2, 0xFF00001D, 0x1A2A3A4A, 0x51303530])
def test_versions_that_cannot_be_read(version: int) -> None:
    datagram = bytearray(flight())
    datagram[1:5] = version.to_bytes(4, "big")
    assert last(bytes(datagram)).kind is Kind.FOREIGN


# -- what is refused -----------------------------------------------------------------------------------------


def _changed(datagram: bytes, at: int, octet: int) -> bytes:
    return datagram[:at] + bytes((octet,)) + datagram[at + 1 :]


GOOD = flight()
MALFORMED = {
    "a changed byte": ((_changed(GOOD, 100, GOOD[100] ^ 1),), "an Initial that no key opens"),
    "another connection's keys": ((flight(keys=OTHER_ID),), "an Initial that no key opens"),
    "a packet number that could be truncated": ((flight(number=127),), "an Initial that no key opens"),
    "reserved bits": ((flight(first=0xCF),), "reserved bits of an Initial are set"),
    "Retry from a client": ((_changed(GOOD, 0, 0xF0),), "a client does not send Retry"),
    "a connection id of 21 bytes": (
        (GOOD[:5] + b"\x15" + bytes(1_190),),
        "a connection id is cut short or too long",
    ),
    "a token beyond the end": ((GOOD[:15] + b"\x7f\xff" + GOOD[17:],), "a packet is cut short"),
    "a length beyond the end": ((GOOD[:16] + b"\x7f\xff" + GOOD[18:],), "the length of a packet is wrong"),
    "no payload": ((GOOD[:16] + b"\0" + bytes(30),), "the length of a packet is wrong"),
    "half a datagram": ((GOOD[:600],), "the length of a packet is wrong"),
    "a Handshake packet first": (
        (initial(b"\x01", kind=2),),
        "it comes in the middle of a connection that was not seen to begin",
    ),
    "many packets": (
        (b"".join(initial(b"\x01", number, pad=30) for number in range(PACKETS + 1)),),
        "more than 8 packets in one datagram",
    ),
    "an unknown version behind a known": (
        (initial(b"\x01", pad=30) + b"\xc0\x1a\x2a\x3a\x4a" + bytes(60),),
        "packets of several versions in one datagram",
    ),
    "a STREAM frame": ((initial(b"\x08\0hi"),), "an Initial holds a frame that does not belong there"),
    "a longer spelling of CRYPTO": (
        (initial(b"\x40\x06\0\0"),),
        "an Initial holds a frame that does not belong there",
    ),
    "CRYPTO cut short": ((initial(b"\x06\0\x7f\xff"),), "a CRYPTO frame is cut short"),
    "ACK ranges without end": ((initial(b"\x02\0\0" + b"\xff" * 8, pad=30),), "a packet is cut short"),
    "a reason without end": ((initial(b"\x1c\0\0\x7f\xff"),), "a CONNECTION_CLOSE frame is cut short"),
    "a ServerHello": (
        (initial(crypto(b"\x02\0\0\x02hi")),),
        "an Initial says something else than a ClientHello",
    ),
    "a ClientHello without end": (
        (initial(crypto(b"\x01\xff\xff\xff")),),
        "an Initial says something else than a ClientHello",
    ),
    "far away": (
        (initial(crypto(b"x", HELLO_LIMIT)),),
        "a ClientHello of more than 16384 bytes",
    ),
    "crumbs": (
        (initial(b"".join(crypto(b"x", 2 * at + 1) for at in range(SPANS + 1))),),
        "a ClientHello in too many pieces",
    ),
    "two opinions": (
        (initial(crypto(MESSAGE[:100])), initial(crypto(b"x" + MESSAGE[1:100]), 1)),
        "CRYPTO data that contradicts itself",
    ),
    "two opinions when all is read": (
        (GOOD, initial(crypto(hello("evil.test")), 1)),
        "CRYPTO data that contradicts itself",
    ),
    "two names": (
        (initial(crypto(hello(None, (0, b"\0\x10\0\0\5a.tes\0\0\5b.tes")))),),
        "a malformed ClientHello: there is more than one server name",
    ),
}


@pytest.mark.parametrize(("datagrams", "text"), MALFORMED.values(), ids=MALFORMED.keys())
def test_what_must_not_pass(datagrams: tuple[bytes, ...], text: str) -> None:
    reading = last(*datagrams)
    assert (reading.kind, reading.text) == (Kind.MALFORMED, text)


def test_a_packet_that_two_keys_open_is_refused() -> None:
    """A cipher that commits to nothing shows what AES-GCM permits: one packet, two plaintexts."""

    class Uncommitted:
        def mask(self, key: bytes, sample: bytes) -> bytes:
            return bytes(5)

        def open(self, key: bytes, nonce: bytes, sealed: bytes, associated: bytes) -> bytes | None:
            return crypto(hello("quic.test" if key == client_keys(V1, RFC_ID).key else "evil.test"))

    handshakes = Handshakes(Uncommitted())
    plain = b"\xc0\0\0\0\1\x08" + RFC_ID + b"\0\0\x40\x40" + bytes(64)
    assert names([handshakes.read(plain)]) == ["quic.test"]
    other = plain.replace(RFC_ID, OTHER_ID)
    assert handshakes.read(other).text == "an Initial that several keys open"


# -- hostile bytes -------------------------------------------------------------------------------------------


@given(st.binary(max_size=1_500))
def test_any_bytes_are_survived(data: bytes) -> None:
    fuzz_one(data)
    fuzz_one(b"\xc0\0\0\0\1" + data)


@settings(max_examples=200)
@given(st.binary(max_size=600), st.integers(0, 126))
def test_any_plaintext_is_survived(frames: bytes, number: int) -> None:
    reading = last(initial(frames, number, pad=40))
    assert reading.kind in (Kind.QUIC, Kind.MORE, Kind.MALFORMED)


def test_mutated_flights_are_survived_and_never_name_somebody_else() -> None:
    chosen = random.Random(9001)
    for _ in range(3_000):
        data = bytearray(GOOD)
        for _ in range(chosen.randint(1, 4)):
            data[chosen.randrange(len(data))] = chosen.randrange(256)
        assert names(read(bytes(data))) in ([], ["quic.test"])
