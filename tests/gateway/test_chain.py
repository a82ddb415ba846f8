"""The upstream proxy as a value: how it is written, who goes past it, and that its password is nowhere."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringfence.gateway.core.chain import (
    Chain,
    Dialogue,
    Scheme,
    Unwilling,
    dialogue,
    parse_exemption,
    parse_proxy,
)

CANARY = "s3cret-canary"
SECRET = parse_proxy(f"http://ada:{CANARY}@proxy.test:3128")


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("http://proxy.test:3128", "http://proxy.test:3128"),
        ("http://proxy.test", "http://proxy.test:80"),
        ("https://proxy.test/", "https://proxy.test:443"),
        ("HTTP://Proxy.Test:3128/", "http://proxy.test:3128"),
        ("socks5://203.0.113.7", "socks5://203.0.113.7:1080"),
        ("socks5h://[2001:DB8::1]:9", "socks5h://[2001:db8::1]:9"),
        ("http://ada:pw@proxy.test:3128", "http://proxy.test:3128"),
        ("http://ada:p@w@proxy.test:3128", "http://proxy.test:3128"),
        ("http://localhost:3128", "http://localhost:3128"),
    ],
)
def test_a_proxy_is_named_without_who_asks(url: str, name: str) -> None:
    assert str(parse_proxy(url)) == name


def test_escapes_in_a_password_are_read_and_utf8_is_bytes() -> None:
    proxy = parse_proxy("http://a%40b:p%25%2Fé@proxy.test:1")
    assert (proxy.user, proxy.password) == (b"a@b", "p%/é".encode())


@pytest.mark.parametrize(
    "url",
    [
        "proxy.test:3128",
        "ftp://u:{}@proxy.test",
        "http://u:{}@",
        "http://u:{}@proxy.test:0",
        "http://u:{}@proxy.test:65536",
        "http://u:{}@proxy test",
        "http://u:{}@0177.0.0.1:80",
        "http://u:{}@proxy.test:80/path",
        "http://u:{}%0a@proxy.test:80",
        "http://u:{}%zz@proxy.test:80",
        "http://:{}@proxy.test:80",
        "http://u%3Av:{}@proxy.test:80",
        "socks5://" + "u" * 256 + ":{}@proxy.test",
    ],
)
def test_what_is_no_proxy_is_refused_without_quoting_the_password(url: str) -> None:
    with pytest.raises(ValueError) as refused:
        parse_proxy(url.format(CANARY))
    assert CANARY not in str(refused.value)
    assert refused.value.__cause__ is None


def test_the_password_is_in_no_representation() -> None:
    chain = Chain(plain=SECRET, tunnels=SECRET)
    for shown in (repr(chain), str(SECRET), repr(SECRET), SECRET.masked, f"{chain}"):
        assert CANARY not in shown
    assert SECRET.masked == "http://***:***@proxy.test:3128"


def test_a_chain_on_the_wire_is_the_same_chain() -> None:
    chain = Chain(plain=SECRET, exemptions=("a.test", "10.0.0.0/8"), remote=True)
    assert Chain.from_wire(json.loads(json.dumps(chain.to_wire()))) == chain


@pytest.mark.parametrize(
    "change",
    [
        {"plain": {"password": CANARY}},
        {"plain": CANARY},
        {"exemptions": [f"{CANARY} b"]},
        {"tunnels": {**SECRET.to_wire(), "scheme": CANARY}},
        {"tunnels": {**SECRET.to_wire(), "port": 0}},
        {"tunnels": {**SECRET.to_wire(), "user": "\u2603"}},
    ],
)
def test_a_chain_that_is_none_is_refused_without_a_word_of_it(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="is not understood") as refused:
        Chain.from_wire(Chain(tunnels=SECRET).to_wire() | change)
    assert CANARY not in str(refused.value)


# -- who goes past it ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entry", "past", "through"),
    [
        ("*", ["a.test:443", "203.0.113.7:22"], []),
        ("a.test", ["a.test:443", "b.a.test:80"], ["ba.test:443", "a.test.b:443"]),
        ("A.Test.", ["a.test:443"], []),
        (".a.test", ["b.a.test:443", "c.b.a.test:443"], ["a.test:443", "xa.test:443"]),
        ("*.a.test", ["b.a.test:443"], ["a.test:443"]),
        ("a.test:8080", ["a.test:8080"], ["a.test:443"]),
        ("10.0.0.0/8", ["10.1.2.3:443"], ["11.1.2.3:443", "a.test:443"]),
        ("10.1.2.3/8", ["10.9.9.9:443"], ["11.1.2.3:443"]),
        ("10.1.2.3:80", ["10.1.2.3:80"], ["10.1.2.3:443"]),
        ("2001:db8::/32", ["2001:db8::1:443"], ["2001:db9::1:443"]),
        ("[2001:db8::1]:80", ["2001:db8::1:80"], ["2001:db8::1:443"]),
        ("2001:db8::1", ["2001:db8::1:443"], ["203.0.113.7:443"]),
    ],
)
def test_exemptions(entry: str, past: list[str], through: list[str]) -> None:
    chain = Chain(plain=SECRET, tunnels=SECRET, exemptions=(entry,))
    for places, proxy in ((past, None), (through, SECRET)):
        for place in places:
            host, _, port = place.rpartition(":")
            for plain in (False, True):
                assert chain.proxy_for(host, int(port), plain=plain) is proxy, place


@pytest.mark.parametrize(
    "entry", ["", "a b", "/var/run/x.sock", "10.0.0.0/33", "http://a.test", "a.test:0", "010.1.1.1"]
)
def test_what_exempts_nobody_is_refused(entry: str) -> None:
    with pytest.raises(ValueError):
        parse_exemption(entry)


def test_no_proxy_is_no_chain() -> None:
    assert Chain().proxy_for("a.test", 443, plain=False) is None
    assert Chain().proxies == ()


# -- dialogues -----------------------------------------------------------------------------------------------


@given(
    st.sampled_from(list(Scheme)), st.booleans(), st.lists(st.binary(min_size=1, max_size=60), max_size=12)
)
def test_whatever_a_proxy_answers_is_an_end_or_an_error_of_one_line(
    scheme: Scheme, known: bool, answers: list[bytes]
) -> None:
    who = f"ada:{CANARY}@" if known else ""
    how, what = held(dialogue(parse_proxy(f"{scheme}://{who}proxy.test:1"), "a.test", 443), answers)
    if how == "refused":
        assert what.decode().isprintable()
        assert CANARY.encode() not in what
    elif how == "open":
        assert b"".join(answers).endswith(what)


def held(talk: Dialogue, answers: list[bytes]) -> tuple[str, bytes]:
    """Play the proxy; return how it ended, and with what."""
    waiting = list(answers)
    try:
        said = next(talk)
        while said or waiting:
            said = talk.send(b"" if said else waiting.pop(0))
    except StopIteration as end:
        return "open", end.value + b"".join(waiting)
    except Unwilling as flaw:
        return "refused", flaw.text.encode()
    return "waiting", b""
