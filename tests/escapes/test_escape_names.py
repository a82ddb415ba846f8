"""NAM-01 to NAM-05, NAM-07: one name, one spelling; what could be read in two ways is not read at all."""

from __future__ import annotations

import pytest
from tests.escapes.escape_stage import (
    Lab,
    allowed,
    connect,
    forward,
    get,
    inside,
    redirected,
    refused,
    rule,
    tunnel,
    untouched,
)

PLAIN = b"GET / HTTP/1.1\r\nHost: allowed.test\r\n\r\n"
FINE = allowed(PLAIN, questions=("allowed.test",))
NO_NAME = refused("failure", 400)


@pytest.fixture
def world(lab: Lab) -> Lab:
    """``allowed.test`` and its subdomains are allowed, in the clear and under TLS, and work (the positive control)."""
    lab.bind(rule("allow", "allowed.test", "*.allowed.test"))
    lab.serve("allowed.test")
    lab.serve("allowed.test", port=80, tls=False)
    lab.expect(forward(get("allowed.test", "http://allowed.test/")), FINE)
    lab.expect(inside("allowed.test", get("allowed.test")), FINE)
    lab.expect(redirected("allowed.test", get("allowed.test")), FINE)
    return lab


# -- NAM-01 ---------------------------------------------------------------------------------------------------

HOSTILE = [
    b"evil.test\x00.allowed.test",
    b"evil.test\x00allowed.test",
    b"evil.test\r.allowed.test",
    b"evil.test\n.allowed.test",
    b"evil.test\r\n.allowed.test",
    b"evil.test\r\nX: .allowed.test",
    b"evil.test .allowed.test",
    b"evil.test\t.allowed.test",
    b"evil.test%00.allowed.test",
    b"evil.test%0d%0a.allowed.test",
    b"evil.test%20.allowed.test",
    b"evil.test%2f.allowed.test",
    b"evil.test\x7f.allowed.test",
    b"evil.test\x80.allowed.test",
    b"evil.test\xff.allowed.test",
    b"evil.test/.allowed.test",
    b"evil.test?.allowed.test",
    b"evil.test#.allowed.test",
    b"evil.test,.allowed.test",
    b"evil.test;.allowed.test",
    b'evil.test".allowed.test',
    b"evil.test*.allowed.test",
    b"",
    b".",
]


@pytest.mark.parametrize("name", HOSTILE, ids=repr)
def test_nam_01_strange_bytes_in_the_name_of_a_connect(world: Lab, name: bytes) -> None:
    world.expect(forward(connect(name + b":443")), NO_NAME)


@pytest.mark.parametrize("name", [each for each in HOSTILE if each[9:10] not in b"/?"], ids=repr)
def test_nam_01_strange_bytes_in_the_name_of_a_url(world: Lab, name: bytes) -> None:
    world.expect(forward(b"GET http://%b/ HTTP/1.1\r\nHost: %b\r\n\r\n" % (name, name)), NO_NAME)


@pytest.mark.parametrize("name", [each for each in HOSTILE if each and b"\r\n" not in each[:11]], ids=repr)
@pytest.mark.parametrize("door", ["redirected", "intercepted"])
def test_nam_01_strange_bytes_in_a_host_field(world: Lab, name: bytes, door: str) -> None:
    payload = b"GET / HTTP/1.1\r\nHost: %b\r\n\r\n" % name
    ask = redirected("allowed.test", payload) if door == "redirected" else inside("allowed.test", payload)
    world.expect(ask, NO_NAME)


@pytest.mark.parametrize("door", ["redirected", "intercepted"])
def test_nam_01_a_host_field_that_ends_early_names_what_it_says(world: Lab, door: str) -> None:
    payload = b"GET / HTTP/1.1\r\nHost: evil.test\r\nX: .allowed.test\r\n\r\n"
    ask = redirected("allowed.test", payload) if door == "redirected" else inside("allowed.test", payload)
    world.expect(ask, refused("guard", 421))
    silent = b"GET / HTTP/1.1\r\nHost:\r\n\r\n"  # names nobody, so the connection's name goes upstream
    ask = redirected("allowed.test", silent) if door == "redirected" else inside("allowed.test", silent)
    world.expect(ask, FINE)


# -- NAM-02 ---------------------------------------------------------------------------------------------------

SPELLINGS = ["ALLOWED.TEST", "Allowed.Test.", "allowed.test."]


@pytest.mark.parametrize("name", SPELLINGS)
def test_nam_02_case_and_a_trailing_dot_are_one_name_upstream_too(world: Lab, name: str) -> None:
    world.expect(forward(get(name, f"http://{name}/")), FINE)
    world.expect(inside(name, get(name), name="allowed.test"), FINE)
    world.expect(redirected("allowed.test", get(name)), FINE)


@pytest.mark.parametrize("name", ["EVIL.ALLOWED.TEST", "evil.allowed.test.", "Evil.Allowed.Test."])
def test_nam_02_a_deny_is_not_dodged_by_spelling(world: Lab, name: str) -> None:
    world.serve("evil.allowed.test", port=80, tls=False)
    world.bind(rule("allow", "*.allowed.test"), rule("deny", "evil.allowed.test"))
    world.expect(forward(get(name, f"http://{name}/")), refused("rule"))
    world.expect(inside(name, get(name), name="evil.allowed.test"), refused("rule"))


@pytest.mark.parametrize("name", SPELLINGS)
def test_nam_02_a_bypass_is_not_reached_by_another_spelling_than_an_interception(
    world: Lab, name: str
) -> None:
    """What is tunnelled and what is intercepted is decided on the canonical name (the MITM route)."""
    world.bind(rule("allow", "allowed.test", inspect="never"))
    ask = untouched(name, get("allowed.test"), name="allowed.test")
    records = world.expect(ask, allowed(PLAIN, questions=("allowed.test",), ended="done"))
    assert {record["protocol"] for record in records} == {"tls"}


@pytest.mark.parametrize(
    "name", ["allowed..test", ".allowed.test", "allowed.test..", "evil.test..allowed.test", "-.allowed.test"]
)
def test_nam_02_empty_labels_are_no_name(world: Lab, name: str) -> None:
    world.expect(forward(get(name, f"http://{name}/")), NO_NAME)
    world.expect(forward(connect(f"{name}:443")), NO_NAME)
    world.expect(inside("allowed.test", get(name)), NO_NAME)


# -- NAM-03 ---------------------------------------------------------------------------------------------------

JUNK = [
    "[evil.test]:443",
    "[allowed.test]:443",
    "allowed.test]:443",
    "[allowed.test:443",
    "allowed.test:443:443",
    "allowed.test:0443",
    "allowed.test:65536",
    "allowed.test:65537",
    "allowed.test:65979",  # 443 + 65536
    "allowed.test:0",
    "allowed.test:-443",
    "allowed.test:+443",
    "allowed.test:443x",
    "allowed.test:4 43",
    "allowed.test:0x1bb",
    "allowed.test:",
    "allowed.test",
    ":443",
    "allowed.test:443/",
    "allowed.test:443?",
    "allowed.test:١٢٣".encode().decode("latin-1"),
    "https://allowed.test:443",
    "/",
    "*",
]


@pytest.mark.parametrize("authority", JUNK)
def test_nam_03_brackets_and_junk_in_the_port_of_a_connect(world: Lab, authority: str) -> None:
    world.expect(forward(connect(authority)), NO_NAME)


@pytest.mark.parametrize("authority", [each for each in JUNK if each not in ("allowed.test", "/", "*")])
def test_nam_03_brackets_and_junk_in_the_port_of_a_url(world: Lab, authority: str) -> None:
    world.expect(forward(get(authority, f"http://{authority}/")), NO_NAME)


# -- NAM-04 ---------------------------------------------------------------------------------------------------

AUTHORITIES = [
    "allowed.test@evil.test",
    "allowed.test:80@evil.test",
    "evil.test@allowed.test",
    "@allowed.test",
    "allowed.test%40evil.test",
    "evil.test\\@allowed.test",
    "evil.test\\.allowed.test",
    "allowed.test\\evil.test",
    "evil.test#@allowed.test",
    "allowed.test#evil.test",
    "evil.test;@allowed.test",
    "evil.test&@allowed.test",
]


@pytest.mark.parametrize("authority", AUTHORITIES)
def test_nam_04_userinfo_backslash_and_fragment(world: Lab, authority: str) -> None:
    for named in (authority, "allowed.test", "evil.test"):
        world.expect(forward(get(named, f"http://{authority}/")), NO_NAME)
    world.expect(forward(connect(f"{authority}:443")), NO_NAME)
    world.expect(redirected("allowed.test", get(authority)), NO_NAME)


# -- NAM-05 ---------------------------------------------------------------------------------------------------

LOOKALIKES = [
    "аllowed.test",  # Cyrillic a
    "allowed。test",
    "allowed．test",
    "ａllowed.test",
    "al\u00adlowed.test",
    "al\u200blowed.test",
    "allowed.tеst",
]


@pytest.mark.parametrize("name", LOOKALIKES, ids=ascii)
def test_nam_05_letters_that_look_alike(world: Lab, name: str) -> None:
    raw = name.encode()
    world.expect(forward(b"GET http://%b/ HTTP/1.1\r\nHost: %b\r\n\r\n" % (raw, raw)), NO_NAME)
    world.expect(forward(connect(raw + b":443")), NO_NAME)
    world.expect(redirected("allowed.test", b"GET / HTTP/1.1\r\nHost: %b\r\n\r\n" % raw), NO_NAME)


ENCODED = ["allowed%2etest", "%61llowed.test", "allowed.test%2e", "xn--.allowed.test", "xn--zz.allowed.test"]


@pytest.mark.parametrize("name", ENCODED)
def test_nam_05_percent_encoding_and_punycode_that_no_name_has(world: Lab, name: str) -> None:
    world.expect(forward(get(name, f"http://{name}/")), NO_NAME)
    world.expect(forward(connect(f"{name}:443")), NO_NAME)


def test_nam_05_an_a_label_is_allowed_where_it_equals_a_rule_and_its_homograph_is_another_name(
    lab: Lab,
) -> None:
    lab.bind(rule("allow", "bücher.test"))
    lab.serve("xn--bcher-kva.test", port=80, tls=False)
    ask = forward(get("xn--bcher-kva.test", "http://xn--bcher-kva.test/"))
    heard = b"GET / HTTP/1.1\r\nHost: xn--bcher-kva.test\r\n\r\n"
    lab.expect(ask, allowed(heard, questions=("xn--bcher-kva.test",)))
    homograph = "büche\u0433.test".encode("idna").decode()
    lab.expect(forward(get(homograph, f"http://{homograph}/")), refused())


# -- NAM-07 ---------------------------------------------------------------------------------------------------

ZONES = [
    "::ffff:1.2.3.4%x.allowed.test",
    "[::ffff:1.2.3.4%x.allowed.test]",
    "[::ffff:1.2.3.4%25x.allowed.test]",
    "[fe80::1%eth0.allowed.test]",
    "[::1].allowed.test",
    "[::1%.allowed.test]",
]


@pytest.mark.parametrize("host", ZONES)
def test_nam_07_an_address_with_a_zone_is_no_name_under_a_wildcard(world: Lab, host: str) -> None:
    world.expect(forward(connect(f"{host}:443")), NO_NAME)
    world.expect(forward(get(host, f"http://{host}/")), NO_NAME)
    world.expect(redirected("allowed.test", get(host)), NO_NAME)


def test_nam_07_an_address_is_never_under_a_suffix(world: Lab) -> None:
    ask = tunnel("203.0.113.99", get("203.0.113.99"), port=80)
    world.bind(rule("allow", "*.allowed.test", "**.test"))
    world.expect(ask, refused())
    world.serve("203.0.113.99", port=80, tls=False, address="203.0.113.99")
    world.bind(rule("allow", "203.0.113.99"))
    world.expect(ask, allowed(b"GET / HTTP/1.1\r\nHost: 203.0.113.99\r\n\r\n"))
