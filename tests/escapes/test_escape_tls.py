"""TLS-01 to TLS-08: what a client says before, around and inside of its handshake."""

from __future__ import annotations

import asyncio
import ssl

import pytest
from tests.escapes.escape_stage import (
    PATIENCE,
    Ask,
    Client,
    Lab,
    Outcome,
    allowed,
    forward,
    get,
    inside,
    redirected,
    refused,
    rule,
    tunnel,
    untouched,
)

HEARD = b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n"
FINE = allowed(HEARD, questions=("a.test",))


@pytest.fixture
def world(lab: Lab) -> Lab:
    """``a.test`` and ``other.test`` are allowed and work, behind one address; ``b.test`` is there and not allowed."""
    lab.bind(rule("allow", "a.test", "other.test", "*.c.test"))
    for name in ("a.test", "other.test", "b.test"):
        lab.serve(name)
    lab.expect(inside("a.test", get("a.test")), FINE)
    return lab


# -- TLS-01 ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["b.test", "other.test", "a.test.evil", "xa.test"])
def test_tls_01_the_sni_is_the_name_of_the_connect(world: Lab, name: str) -> None:
    no = refused("guard", 421)
    world.expect(inside("a.test", get(name), name=name), no)
    world.expect(inside("a.test", get("a.test"), name=name), no)
    world.expect(redirected("a.test", get("a.test"), port=443, tls=name), no)


def test_tls_01_a_blocked_connect_is_not_opened_by_an_allowed_sni(world: Lab) -> None:
    world.expect(inside("b.test", get("a.test"), name="a.test"), refused("guard", 421))


def test_tls_01_a_bypassed_connect_is_not_opened_for_another_sni(world: Lab) -> None:
    world.bind(rule("allow", "a.test", inspect="never"))
    world.expect(untouched("a.test", get("a.test")), allowed(HEARD, questions=("a.test",)))
    world.expect(inside("a.test", get("b.test"), name="b.test"), refused("guard", 421))


# -- TLS-02 ---------------------------------------------------------------------------------------------------

FRONTED = {
    "the Host of a blocked site": get("b.test"),
    "the Host of another allowed site": get("other.test"),
    "absolute form": get("b.test", "https://b.test/"),
    "absolute form, another Host": get("a.test", "https://b.test/"),
    "absolute form, the scheme of another connection": get("a.test", "http://a.test/"),
    "another port": get("a.test:8443"),
    "a trailing label": get("a.test.b.test"),
}


@pytest.mark.parametrize("payload", FRONTED.values(), ids=FRONTED.keys())
def test_tls_02_the_request_inside_names_the_site_outside(world: Lab, payload: bytes) -> None:
    status = 400 if payload == FRONTED["absolute form, another Host"] else 421
    world.expect(inside("a.test", payload), refused("failure" if status == 400 else "guard", status))


def test_tls_02_the_second_request_of_a_connection_is_held_to_the_name_too(world: Lab) -> None:
    ask = inside("a.test", get("a.test") + get("b.test"))
    outcome = Outcome(seen=(200, 421), verdict="blocked", reason="guard", upstream=HEARD, dials=1, records=2)
    world.expect(ask, outcome)


@pytest.mark.parametrize("override", ["X-Forwarded-Host: b.test", "X-Host: b.test", "Forwarded: host=b.test"])
def test_tls_02_other_headers_name_nobody(world: Lab, override: str) -> None:
    heard = f"GET / HTTP/1.1\r\nHost: a.test\r\n{override}\r\n\r\n".encode()
    world.expect(inside("a.test", get("a.test", "/", override)), allowed(heard))


# -- TLS-03 ---------------------------------------------------------------------------------------------------


def vector(width: int, body: bytes) -> bytes:
    return len(body).to_bytes(width, "big") + body


def hello(*extensions: tuple[int, bytes]) -> bytes:
    """A ClientHello with these extensions, in one record."""
    packed = b"".join(kind.to_bytes(2, "big") + vector(2, body) for kind, body in extensions)
    body = b"\x03\x03" + bytes(32) + b"\0" + vector(2, b"\x13\x01\xc0\x2b") + b"\x01\0" + vector(2, packed)
    return b"\x16\x03\x01" + vector(2, b"\x01" + vector(3, body))


def names(*hosts: bytes, kind: bytes = b"\0") -> tuple[int, bytes]:
    return 0, vector(2, b"".join(kind + vector(2, host) for host in hosts))


HELLOS = {
    "two names": hello(names(b"a.test", b"b.test")),
    "two names, one of them twice": hello(names(b"a.test", b"a.test")),
    "two server_name extensions": hello(names(b"a.test"), names(b"b.test")),
    "an address": hello(names(b"203.0.113.1")),
    "an IPv6 address": hello(names(b"2001:db8::1")),
    "an octal address": hello(names(b"0177.0.0.1")),
    "an empty name": hello(names(b"")),
    "no name in the list": hello((0, vector(2, b""))),
    "256 bytes": hello(names(b".".join([b"a" * 62] * 4) + b".test")),
    "300 bytes": hello(names(b"a." * 147 + b"a.test")),
    "a label of 64 bytes": hello(names(b"a" * 64 + b".test")),
    "a NUL": hello(names(b"b.test\0.a.test")),
    "a space": hello(names(b"b.test .a.test")),
    "a slash": hello(names(b"b.test/.a.test")),
    "a line break": hello(names(b"b.test\r\n.a.test")),
    "a star": hello(names(b"*.a.test")),
    "letters that are not ASCII": hello(names("ä.test".encode())),
    "a port": hello(names(b"a.test:443")),
    "an empty label": hello(names(b"a..test")),
    "another type of name": hello(names(b"a.test", kind=b"\1")),
    "a length that lies": hello((0, vector(2, b"\0\0\xffa.test"))),
    "bytes behind the list": hello((0, vector(2, b"\0" + vector(2, b"a.test")) + b"x")),
}


@pytest.mark.parametrize("payload", HELLOS.values(), ids=HELLOS.keys())
@pytest.mark.parametrize("bypassed", [False, True], ids=["intercepted", "bypassed"])
def test_tls_03_a_hello_that_names_nobody_in_one_way_is_terminated(
    world: Lab, payload: bytes, bypassed: bool
) -> None:
    world.bind(rule("allow", "a.test", **({"inspect": "never"} if bypassed else {})))
    no = refused("failure", "reset", text="a malformed ClientHello")
    world.expect(tunnel("a.test", payload), no)
    world.expect(redirected("a.test", payload, port=443), no)


def anonymous(host: str, payload: bytes, *, address: str = "") -> Ask:
    """A client that sends no SNI at all."""

    async def opened(lab: Lab) -> Client:
        client = await (lab.stage.reach(address, 443) if address else lab.stage.connect(host))
        context = ssl.create_default_context(cadata=lab.stage.certificate)
        context.check_hostname = False
        async with asyncio.timeout(PATIENCE):
            await client.writer.start_tls(context)
        return client

    return Ask(open=opened, payload=payload)


def test_tls_03_without_sni_the_connect_names_the_site(world: Lab) -> None:
    world.expect(anonymous("a.test", get("a.test")), FINE)
    world.expect(anonymous("a.test", get("b.test")), refused("guard", 421))
    world.expect(anonymous("b.test", get("b.test")), refused())


def test_tls_03_without_sni_an_address_is_an_address(world: Lab) -> None:
    world.expect(anonymous("", get("a.test"), address="203.0.113.1"), refused())


def test_tls_03_without_sni_nobody_is_bypassed(world: Lab) -> None:
    world.bind(rule("allow", "a.test", inspect="never"))
    world.expect(anonymous("a.test", get("a.test")), refused("guard", text="must be named"))


# -- TLS-04 ---------------------------------------------------------------------------------------------------


def records(message: bytes, size: int) -> bytes:
    """The handshake message of a hello in records of another size."""
    body = message[5:]
    return b"".join(b"\x16\x03\x01" + vector(2, body[at : at + size]) for at in range(0, len(body), size))


HELLO = {name: hello(names(name.encode()), (43, b"\x02\x03\x04")) for name in ("a.test", "b.test")}
LENGTH = len(HELLO["a.test"])


async def shown(lab: Lab, pieces: list[bytes], host: str) -> tuple[str, str]:
    """How a hello in pieces was decided, and what it was taken for."""
    lab.forget()
    client = await lab.stage.connect(host)
    for piece in pieces:
        client.send(piece)
        await asyncio.sleep(0)
    client.send(b"\x15\x03\x01\x00\x02\x02\x28")  # a fatal alert: that was all
    await client.end()
    client.close()
    await lab._quiet()
    (record,) = [each for each in lab.stage.records if each["step"] == "opened"]
    assert (lab.stage.dials, lab.stage.dialer.asked) == ([], [])
    return record["verdict"], record["protocol"]


@pytest.mark.parametrize(("host", "verdict"), [("a.test", "allowed"), ("b.test", "blocked")])
def test_tls_04_a_hello_cut_anywhere_is_the_same_hello(world: Lab, host: str, verdict: str) -> None:
    whole = HELLO[host]
    expected = (verdict, "tls")
    assert world.run(shown(world, [whole], host)) == expected
    for cut in range(1, len(whole)):
        assert world.run(shown(world, [whole[:cut], whole[cut:]], host)) == expected, cut
    world.sentinel()


@pytest.mark.parametrize(("host", "verdict"), [("a.test", "allowed"), ("b.test", "blocked")])
@pytest.mark.parametrize("size", [1, 2, 3, 5, 16, 64, LENGTH - 6])
def test_tls_04_records_of_any_size_are_the_same_hello(
    world: Lab, host: str, verdict: str, size: int
) -> None:
    message = records(HELLO[host], size)
    assert world.run(shown(world, [message], host)) == (verdict, "tls")
    assert world.run(shown(world, [message[at : at + 1] for at in range(len(message))], host)) == (
        verdict,
        "tls",
    )
    world.sentinel()


@pytest.mark.parametrize("name", ["b.test", "other.test"])
@pytest.mark.parametrize("size", [1, 7])
def test_tls_04_a_fragmented_hello_hides_no_name(world: Lab, name: str, size: int) -> None:
    """A hello for another name in one-byte records is still for another name (421 if it could go on)."""
    hidden = records(hello(names(name.encode()), (43, b"\x02\x03\x04")), size)
    assert world.run(shown(world, [hidden], "a.test")) == ("blocked", "tls")
    (record,) = [each for each in world.stage.records if each["step"] == "opened"]
    assert record["reason"] == "guard"
    world.sentinel()


def test_tls_04_a_hello_is_bounded(world: Lab) -> None:
    big = hello(names(b"a.test"), (21, bytes(60_000)))[5:]
    endless = b"\x16\x03\x01" + vector(2, b"\x01\xff\xff\xff" + bytes(16_000))
    world.expect(tunnel("a.test", endless + endless * 4), refused("failure", "reset"))
    spread = b"".join(b"\x16\x03\x01\0\1" + big[at : at + 1] for at in range(20_000))
    world.expect(tunnel("a.test", spread), refused("failure", "reset"))
    empty = b"\x16\x03\x01\0\0"
    world.expect(tunnel("a.test", empty * 10 + HELLO["a.test"]), refused("failure", "reset"))


# -- TLS-05 ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [0xFE0D, 0xFE08, 0xFFCE], ids=hex)
def test_tls_05_an_encrypted_hello_is_refused_where_nobody_looks_inside(world: Lab, kind: int) -> None:
    world.bind(rule("allow", "a.test", inspect="never"))
    world.expect(untouched("a.test", get("a.test")), FINE)
    message = hello(names(b"a.test"), (kind, bytes(40)), (43, b"\x02\x03\x04"))
    assert world.run(shown(world, [message], "a.test")) == ("blocked", "tls")
    (record,) = world.stage.records
    assert record["reason"] == "guard"
    world.sentinel()


def test_tls_05_grease_is_nothing_where_we_terminate(world: Lab) -> None:
    message = hello(names(b"a.test"), (0xFE0D, bytes(40)), (43, b"\x02\x03\x04"))
    assert world.run(shown(world, [message], "a.test")) == ("allowed", "tls")
    world.sentinel()


# -- TLS-06 ---------------------------------------------------------------------------------------------------


def test_tls_06_a_session_of_one_name_is_no_session_of_another(world: Lab) -> None:
    async def handshake(
        host: str, session: ssl.SSLSession | None
    ) -> tuple[bool, ssl.SSLSession | None, bytes]:
        context = ssl.create_default_context(cadata=world.stage.certificate)
        client = await world.stage.connect(host)
        inbound, outbound = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = shared.setdefault("context", context).wrap_bio(
            inbound, outbound, server_hostname=host, session=session
        )
        answer = b""
        asked = False
        async with asyncio.timeout(PATIENCE):
            while not answer:
                try:
                    if not asked:
                        tls.do_handshake()
                        tls.write(get(host))
                        asked = True
                    answer = tls.read(100)
                except ssl.SSLWantReadError:
                    client.send(outbound.read())
                    inbound.write(await client.reader.read(65_536))
        client.close()
        return bool(tls.session_reused), tls.session, answer.split(b"\r\n")[0]

    shared: dict[str, ssl.SSLContext] = {}
    reused, session, first = world.run(handshake("a.test", None))
    assert (reused, first) == (False, b"HTTP/1.1 200 OK")
    reused, _, _ = world.run(handshake("a.test", session))
    assert reused  # the positive control: tickets work, for their own name
    reused, _, first = world.run(handshake("b.test", session))
    assert (reused, first) == (False, b"HTTP/1.1 403 Forbidden")
    world.sentinel()


# -- TLS-07 ---------------------------------------------------------------------------------------------------

NOT_TLS = {
    "SSH": b"SSH-2.0-OpenSSH_9.6\r\n",
    "random": bytes(range(200, 256)) * 4,
    "NUL": b"\0\0\0\0",
    "a TLS record of another kind": b"\x17\x03\x03\0\x05hello",
    "SSL 2": b"\x80\x2e\x01\0\x02" + bytes(44),
}


@pytest.mark.parametrize("payload", NOT_TLS.values(), ids=NOT_TLS.keys())
def test_tls_07_bytes_that_are_not_tls_are_reset_where_requests_are_decided(
    world: Lab, payload: bytes
) -> None:
    world.bind(rule("allow", "a.test", methods=["GET"]))
    world.expect(inside("a.test", get("a.test")), FINE)
    world.expect(tunnel("a.test", payload), refused("failure", "reset"))
    world.expect(tunnel("b.test", payload), refused("default", "reset"))
    world.expect(
        tunnel("a.test", b"EHLO me\r\n\r\n"), refused("failure", 400)
    )  # looks like HTTP, and is none


@pytest.mark.parametrize("payload", [NOT_TLS["SSH"], NOT_TLS["random"]], ids=["SSH", "random"])
def test_tls_07_a_tunnel_of_another_protocol_says_on_record_that_it_was_not_inspected(
    world: Lab, payload: bytes
) -> None:
    """A rule without HTTP words is about the host and port: whatever is spoken there is allowed, and told."""
    world.serve("a.test", port=2222, tls=False, greeting=b"ready")
    told = world.expect(tunnel("a.test", payload, port=2222), allowed(payload, b"ready"))
    assert {(each["protocol"], each.get("inspected")) for each in told} == {("tcp", None)}


# -- TLS-08 ---------------------------------------------------------------------------------------------------

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def test_tls_08_http_2_is_not_spoken_without_having_been_negotiated(world: Lab) -> None:
    no = refused("failure", 505)
    world.expect(inside("a.test", PREFACE), no)
    world.expect(forward(PREFACE), no)
    world.expect(redirected("a.test", PREFACE), no)


@pytest.mark.parametrize("token", ["h2c", "H2C", "h2", "websocket, h2c", "TLS/1.0"])
def test_tls_08_an_upgrade_to_http_2_is_refused(world: Lab, token: str) -> None:
    world.serve("a.test", port=80, tls=False)
    lines = ("Connection: Upgrade, HTTP2-Settings", f"Upgrade: {token}", "HTTP2-Settings: AAMAAABkAAQAAP__")
    world.expect(redirected("a.test", get("a.test")), FINE)
    world.expect(redirected("a.test", get("a.test", "/", *lines)), refused("failure", 400))
    world.expect(inside("a.test", get("a.test", "/", *lines)), refused("failure", 400))
