"""First bytes to kinds: tables, every way of splitting, and OpenSSL as the second opinion on names."""

from __future__ import annotations

import random
import ssl
from contextlib import suppress
from pathlib import Path
from runpy import run_path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringfence.gateway.core.sniff import LIMIT, PREFACE, ClientHello, SniffKind, hostname, sniff

FUZZ = Path(__file__).parents[2] / "fuzz"
fuzz_one = run_path(str(FUZZ / "sniff.py"))["one"]


# -- building blocks -----------------------------------------------------------------------------------------


def vector(width: int, *parts: bytes) -> bytes:
    body = b"".join(parts)
    return len(body).to_bytes(width, "big") + body


def extension(kind: int, body: bytes) -> bytes:
    return kind.to_bytes(2, "big") + vector(2, body)


def named(*names: bytes, kind: int = 0) -> bytes:
    return extension(0, vector(2, *(bytes([kind]) + vector(2, name) for name in names)))


def alpn(*protocols: bytes) -> bytes:
    return extension(16, vector(2, *(vector(1, protocol) for protocol in protocols)))


def message(
    *extensions: bytes, session: bytes = b"", ciphers: bytes = b"\x13\x01", nulls: bytes = b"\0"
) -> bytes:
    body = b"\x03\x03" + bytes(32) + vector(1, session) + vector(2, ciphers) + vector(1, nulls)
    return b"\x01" + vector(3, body + (vector(2, *extensions) if extensions else b""))


def records(handshake: bytes, size: int = 16_384) -> bytes:
    pieces = [handshake[at : at + size] for at in range(0, len(handshake), size)]
    return b"".join(b"\x16\x03\x01" + vector(2, piece) for piece in pieces)


def hello(*extensions: bytes) -> bytes:
    return records(message(*extensions))


def real_hello(name: str | None, *, protocols: list[str] | None = None) -> bytes:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    if protocols:
        context.set_alpn_protocols(protocols)
    out = ssl.MemoryBIO()
    with suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), out, server_hostname=name).do_handshake()
    return out.read()


# -- what begins how -----------------------------------------------------------------------------------------

GREETINGS = [
    (b"", SniffKind.MORE),
    (b"G", SniffKind.MORE),
    (b"GET", SniffKind.MORE),
    (b"GET ", SniffKind.HTTP),
    (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", SniffKind.HTTP),
    (b"GET /\r\n", SniffKind.HTTP),  # HTTP/0.9
    (b"VERSION-CONTROL /x HTTP/1.1\r\n", SniffKind.HTTP),
    (b"PROPFIND http://a/ HTTP/1.1\r\n", SniffKind.HTTP),
    (b"\r\nGET / HTTP/1.1\r\n", SniffKind.HTTP),
    (b"\n", SniffKind.HTTP),
    (b"get / HTTP/1.1\r\n", SniffKind.HTTP),
    (b"get / HT", SniffKind.MORE),
    (b"Get /" + b"x" * 2_000, SniffKind.HTTP),
    (b"get key\r\n", SniffKind.OTHER),  # memcached
    (b"003egit-upload-pack /project.git\0host=example.com\0", SniffKind.OTHER),
    (b"SSH-2.0-OpenSSH_9.2p1 Debian-2+deb12u3\r\n", SniffKind.OTHER),
    (b"SSH-2.0-Go\r\n", SniffKind.OTHER),
    (b"*1\r\n$4\r\nPING\r\n", SniffKind.OTHER),  # redis
    (b"<stream:stream>", SniffKind.OTHER),
    (b"\0\0\0\x08\x04\xd2\x16\x2f", SniffKind.OTHER),  # PostgreSQL asks for TLS
    (b"\x13BitTorrent protocol", SniffKind.OTHER),
    (b" GET / HTTP/1.1", SniffKind.OTHER),
    (b"\xc3\x9c / HTTP/1.1", SniffKind.OTHER),
    (b"M" * 64, SniffKind.MORE),
    (b"M" * 65, SniffKind.OTHER),
    (b"M" * 64 + b" ", SniffKind.HTTP),
    (PREFACE, SniffKind.HTTP),
    (PREFACE[:10], SniffKind.MORE),
    (b"PRI * HTTP/1.1\r\n", SniffKind.HTTP),
    (b"\x16", SniffKind.MORE),
    (b"\x16\x03", SniffKind.MORE),
    (b"\x16\x03\x01", SniffKind.MORE),
    (b"\x16\x02", SniffKind.OTHER),
    (b"\x15\x03\x01\0\x02\x02\x28", SniffKind.OTHER),  # an alert greets nobody
    (b"\x80\x2e\x01\x03\x01", SniffKind.OTHER),  # SSL 2
]


@pytest.mark.parametrize(("greeting", "kind"), GREETINGS)
def test_a_greeting_has_a_kind(greeting: bytes, kind: SniffKind) -> None:
    assert sniff(greeting).kind is kind


def test_the_http2_preface_is_told_apart() -> None:
    assert sniff(PREFACE + b"\0\0\0\4\0").preface
    assert not sniff(b"PRI * HTTP/1.1\r\n\r\nSM\r\n\r\n").preface
    assert not sniff(b"GET / HTTP/1.1\r\n").preface


# -- hellos --------------------------------------------------------------------------------------------------


def read(data: bytes) -> ClientHello:
    sniffed = sniff(data)
    assert sniffed.kind is SniffKind.TLS, sniffed
    assert sniffed.hello is not None
    return sniffed.hello


def test_a_real_hello_is_read() -> None:
    found = read(real_hello("Example.COM", protocols=["h2", "http/1.1"]))
    assert found.server_name == "example.com"
    assert found.alpn == (b"h2", b"http/1.1")
    assert not found.ech


def test_a_real_hello_without_a_name_names_nobody() -> None:
    assert read(real_hello(None)).server_name is None


HELLOS = [
    (hello(), ClientHello()),
    (hello(extension(0xFE0D, b"\0")), ClientHello(ech=True)),
    (hello(extension(0xFFCE, b"")), ClientHello(ech=True)),
    (hello(extension(43, b"\4\3\4\3\3"), alpn(b"h2")), ClientHello(alpn=(b"h2",))),
    (hello(named(b"a.test"), extension(0x0A0A, b"")), ClientHello(server_name="a.test")),
    (hello(named(b"a.test")) + b"what follows", ClientHello(server_name="a.test")),
]


@pytest.mark.parametrize(("data", "expected"), HELLOS)
def test_a_hello_is_read(data: bytes, expected: ClientHello) -> None:
    assert read(data) == expected


NAMES = [
    (b"example.com", "example.com"),
    (b"EXAMPLE.com", "example.com"),
    (b"example.com.", "example.com"),
    (b"_dmarc.example.com", "_dmarc.example.com"),
    (b"xn--bcher-kva.example", "xn--bcher-kva.example"),
    (b"localhost", "localhost"),
    (b"a" * 63 + b".test", "a" * 63 + ".test"),
    (b".".join([b"a" * 49] * 5 + [b"tes"]), ".".join(["a" * 49] * 5 + ["tes"])),  # 253 bytes
    (b".".join([b"a" * 49] * 5 + [b"test"]), None),
    (b"a" * 64 + b".test", None),
    (b"a" * 256, None),
    (b"", None),
    (b".", None),
    (b"..", None),
    (b"a..test", None),
    (b".a.test", None),
    (b"a.test..", None),
    (b"a b.test", None),
    (b"evil.test\0.allowed.test", None),
    (b"a.test\r\n", None),
    (b"a.test\n", None),
    (b"a%2etest", None),
    (b"a/b.test", None),
    (b"user@a.test", None),
    (b"a.test:443", None),
    (b"[::1]", None),
    (b"::1", None),
    (b"*.a.test", None),
    (b"-a.test", None),
    (b"a-.test", None),
    (b"b\xc3\xbccher.example", None),
    ("bücher。example".encode(), None),
    (b"127.0.0.1", None),
    (b"127.1", None),
    (b"2130706433", None),
    (b"0x7f.1", None),
    (b"0x7f000001", None),
    (b"0177.0.0.1", None),
    (b"1.2.3.4.", None),
    (b"a.test.1", None),
]


@pytest.mark.parametrize(("raw", "name"), NAMES)
def test_a_name_is_canonical_or_none(raw: bytes, name: str | None) -> None:
    assert hostname(raw) == name
    sniffed = sniff(hello(named(raw)))
    if name is None:
        assert sniffed.kind is SniffKind.MALFORMED
    else:
        assert sniffed.hello is not None
        assert sniffed.hello.server_name == name


BROKEN = {
    "two names": hello(named(b"a.test", b"b.test")),
    "the same name twice": hello(named(b"a.test", b"a.test")),
    "two server name extensions": hello(named(b"a.test"), named(b"b.test")),
    "no name in the list": hello(named()),
    "a name of another type": hello(named(b"a.test", kind=1)),
    "a list longer than its extension": hello(extension(0, b"\0\x10" + b"\0\0\6a.test")),
    "an empty server name extension": hello(extension(0, b"")),
    "two protocol lists": hello(alpn(b"h2"), alpn(b"h2")),
    "an empty protocol": hello(alpn(b"h2", b"")),
    "no protocol": hello(alpn()),
    "a protocol that is cut": hello(extension(16, b"\0\3\4h2")),
    "unknown extensions twice": hello(extension(0x0A0A, b""), extension(0x0A0A, b"")),
    "a session id of 33 bytes": records(message(session=bytes(33))),
    "no ciphers": records(message(ciphers=b"")),
    "half a cipher": records(message(ciphers=b"\x13\x01\x13")),
    "no compression": records(message(nulls=b"")),
    "bytes behind the extensions": records(b"\x01" + vector(3, message(named(b"a.test"))[4:] + b"x")),
    "extensions longer than the hello": records(b"\x01" + vector(3, message()[4:] + b"\0\x20")),
    "a hello of nothing": records(b"\x01\0\0\0"),
    "another message first": records(b"\x02" + message()[1:]),
    "an empty record": b"\x16\x03\x01\0\0" + hello(),
    "a record of more than 16 KiB": b"\x16\x03\x01\x40\x01" + bytes(0x4001),
    "a hello of 64 KiB": records(b"\x01\x00\xff\xfe" + bytes(20)),
    "a hello of 16 MiB": records(b"\x01\xff\xff\xff" + bytes(20)),
    "an alert between the records": records(message(named(b"a.test")), 30).replace(
        b"\x16\x03\x01\0\x1e", b"\x15\x03\x01\0\x1e"
    ),
    "another version between the records": records(message(named(b"a.test"))[:40]) + b"\x16\x02\x01\0\x01a",
}


@pytest.mark.parametrize("data", BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_hello_is_malformed(data: bytes) -> None:
    if data[:1] == b"\x15":
        data = b"\x16" + data[1:]
    sniffed = sniff(data)
    assert sniffed.kind is SniffKind.MALFORMED
    assert sniffed.text
    assert sniffed.hello is None


# -- splitting -----------------------------------------------------------------------------------------------

SPLIT = message(named(b"a.test"), alpn(b"h2", b"http/1.1"), extension(0xFE0D, bytes(40)))


@pytest.mark.parametrize("size", range(1, len(SPLIT) + 1))
def test_records_of_any_size_say_the_same(size: int) -> None:
    data = records(SPLIT, size)
    assert read(data) == read(records(SPLIT))
    for end in range(len(data)):
        assert sniff(data[:end]).kind is SniffKind.MORE


@pytest.mark.parametrize(
    "data", [records(SPLIT), records(SPLIT, 1), records(SPLIT, 7), PREFACE, b"get / HTTP/1.1\r\n"]
)
def test_need_never_sleeps_through_the_answer_and_asks_rarely(data: bytes) -> None:
    asked, need = 0, 1
    for end in range(len(data) + 1):
        if end < need:
            assert sniff(data[:end]).kind is SniffKind.MORE
            continue
        asked += 1
        sniffed = sniff(data[:end])
        if sniffed.kind is not SniffKind.MORE:
            assert sniffed == sniff(data)
            break
        need = sniffed.need
    else:
        pytest.fail("no answer")
    assert asked <= 60


def test_a_hello_that_is_spread_thin_is_bounded() -> None:
    """Records of one byte are legal; 64 KiB of them are not."""
    data = records(b"\x01\x00\xf0\x00" + bytes(0xF000), 1)
    assert sniff(data[: LIMIT - 6]).kind is SniffKind.MORE
    assert sniff(data[:LIMIT]).kind is SniffKind.MALFORMED
    asked, need = 0, 1
    while sniff(data[:need]).kind is SniffKind.MORE:
        asked, need = asked + 1, sniff(data[:need]).need
    assert asked <= 120


def test_the_largest_hello_is_read_in_any_records() -> None:
    padded = message(named(b"a.test"), extension(21, bytes(60_000)))
    for size in (16_384, 5_000, 512):
        assert read(records(padded, size)).server_name == "a.test"


# -- hostile bytes -------------------------------------------------------------------------------------------


@given(st.binary(max_size=300))
def test_any_bytes_have_a_kind(data: bytes) -> None:
    fuzz_one(data)
    fuzz_one(b"\x16\x03\x01" + data)
    fuzz_one(records(b"\x01" + vector(3, data)))


def openssl_name(data: bytes) -> str | type[Exception] | None:
    """What OpenSSL believes the name is, asked with the whole hello."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    seen: list[str | None] = []
    context.sni_callback = lambda _object, name, _context: seen.append(name)
    incoming = ssl.MemoryBIO()
    incoming.write(data)
    with suppress(ssl.SSLError):
        context.wrap_bio(incoming, ssl.MemoryBIO(), server_side=True).do_handshake()
    return seen[0] if seen else ssl.SSLError


def test_openssl_never_sees_another_name() -> None:
    """The name that chooses the policy is the name that OpenSSL takes from the same bytes."""
    chosen = random.Random(6066)
    base = real_hello("allowed.test", protocols=["h2"])
    agreed = 0
    for _ in range(3_000):
        data = bytearray(base)
        for _ in range(chosen.randint(1, 3)):
            data[chosen.randrange(len(data))] = chosen.choice((0, 1, 0x2E, 0x61, 0xFF, chosen.randrange(256)))
        theirs = openssl_name(bytes(data))
        ours = sniff(bytes(data))
        if ours.kind is SniffKind.TLS and theirs is not ssl.SSLError:
            assert ours.hello is not None
            assert ours.hello.server_name == (hostname(theirs.encode()) if isinstance(theirs, str) else None)
            agreed += 1
    assert agreed > 300


def test_mutated_hellos_are_answered() -> None:
    chosen = random.Random(8446)
    seeds = [real_hello("a.test"), records(SPLIT), records(SPLIT, 3), *BROKEN.values()]
    seeds = [seed for seed in seeds if len(seed) < 4_000]
    for _ in range(20_000):
        data = bytearray(chosen.choice(seeds))
        for _ in range(chosen.randint(1, 6)):
            at = chosen.randrange(len(data) + 1)
            match chosen.randrange(3):
                case 0 if at < len(data):
                    data[at] = chosen.randrange(256)
                case 1:
                    data[at:at] = chosen.randbytes(chosen.randint(1, 4))
                case _:
                    del data[at : at + chosen.randint(1, 4)]
        sniff(bytes(data))
