"""REQ-03, REQ-04, REQ-08 to REQ-12, REQ-16: what a request says about itself, and who believes it."""

from __future__ import annotations

import pytest
from tests.escapes.escape_stage import (
    Lab,
    Outcome,
    allowed,
    connect,
    forward,
    get,
    inside,
    redirected,
    refused,
    rule,
    tunnel,
)

HEARD = b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n"


@pytest.fixture
def world(lab: Lab) -> Lab:
    """``a.test`` is allowed and works, in the clear and under TLS; ``b.test`` is there and is not allowed."""
    lab.bind(rule("allow", "a.test"))
    for name in ("a.test", "b.test"):
        lab.serve(name)
        lab.serve(name, port=80, tls=False)
    lab.expect(forward(get("a.test", "http://a.test/")), allowed(HEARD))
    lab.expect(inside("a.test", get("a.test")), allowed(HEARD))
    return lab


# -- REQ-03 ---------------------------------------------------------------------------------------------------

AT_PROXY: list[tuple[str, bytes, Outcome]] = [
    ("the Host of another site", get("b.test", "http://a.test/"), refused("failure", 400)),
    ("the URL of another site", get("a.test", "http://b.test/"), refused("failure", 400)),
    ("another port in Host", get("a.test:8080", "http://a.test/"), refused("failure", 400)),
    ("the default port in Host", get("a.test:80", "http://a.test/"), allowed(HEARD)),
    ("the default port in the URL", get("a.test", "http://a.test:80/"), allowed(HEARD)),
    ("origin form", get("a.test", "/"), refused("failure", 400)),
    ("asterisk", get("a.test", "*", method="OPTIONS"), refused("failure", 400)),
    ("https", get("a.test", "https://a.test/"), refused("failure", 400)),
    ("ftp", get("a.test", "ftp://a.test/"), refused("failure", 400)),
    ("no slashes", get("a.test", "http:a.test/"), refused("failure", 400)),
    ("one slash", get("a.test", "http:/a.test/"), refused("failure", 400)),
    ("three slashes", get("a.test", "http:///a.test/"), refused("failure", 400)),
    ("no authority", get("a.test", "http:///"), refused("failure", 400)),
    ("network path", get("a.test", "//b.test/"), refused("failure", 400)),
    ("an opaque target", get("a.test", "a.test:80"), refused("failure", 400)),
    ("HTTP in capitals", get("a.test", "HTTP://A.TEST/"), allowed(HEARD)),
    ("no path", get("a.test", "http://a.test"), allowed(HEARD)),
    ("a query without a path", get("a.test", "http://a.test?x=/y"), allowed(HEARD.replace(b"/ ", b"/?x=/y "))),
    ("another site in a query", get("a.test", "http://a.test?@b.test/"), allowed(HEARD.replace(b"/ ", b"/?@b.test/ "))),
    ("a fragment", get("a.test", "http://a.test/#b.test"), refused("failure", 400)),
    ("a backslash", get("a.test", "http://a.test\\@b.test/"), refused("failure", 400)),
]  # fmt: skip


@pytest.mark.parametrize(
    ("payload", "outcome"), [each[1:] for each in AT_PROXY], ids=[each[0] for each in AT_PROXY]
)
def test_req_03_a_request_to_the_proxy_has_one_destination(
    world: Lab, payload: bytes, outcome: Outcome
) -> None:
    world.expect(forward(payload), outcome)


INSIDE: list[tuple[str, bytes, Outcome]] = [
    ("asterisk", get("a.test", "*", method="OPTIONS"), refused("failure", 400)),
    ("absolute form of this site", get("a.test", "https://a.test/"), allowed(HEARD)),
    ("absolute form of another", get("b.test", "https://b.test/"), refused("guard", 421)),
    ("absolute form, another Host", get("b.test", "https://a.test/"), refused("failure", 400)),
    ("absolute form in the clear", get("a.test", "http://a.test/"), refused("guard", 421)),
    ("network path", get("a.test", "//b.test/"), allowed(HEARD.replace(b"/ ", b"//b.test/ "))),
    ("an opaque target", get("a.test", "b.test:443"), refused("failure", 400)),
]


@pytest.mark.parametrize(
    ("payload", "outcome"), [each[1:] for each in INSIDE], ids=[each[0] for each in INSIDE]
)
def test_req_03_a_request_inside_a_connection_is_for_its_site(
    world: Lab, payload: bytes, outcome: Outcome
) -> None:
    world.expect(inside("a.test", payload), outcome)


# -- REQ-04 ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inner", ["a.test:443", "b.test:443", "a.test:3128"])
def test_req_04_there_is_no_connect_inside_a_connect(world: Lab, inner: str) -> None:
    no = refused("failure", 405)
    world.expect(inside("a.test", connect(inner)), no)
    world.expect(tunnel("a.test", connect(inner)), no)
    world.expect(redirected("a.test", connect(inner)), no)


def test_req_04_an_allowed_host_on_a_proxys_port_is_another_access(world: Lab) -> None:
    world.bind(rule("allow", "a.test:443"))
    world.expect(inside("a.test", get("a.test")), allowed(HEARD))
    world.expect(tunnel("a.test", connect("b.test:443"), port=3128), refused("failure", 405))
    world.expect(tunnel("a.test", get("a.test:3128"), port=3128), refused())


@pytest.mark.parametrize(
    "line",
    [
        "Proxy-Connection: keep-alive",
        "Proxy-Authorization: Basic eDp5",
        "PROXY-ANYTHING: x",
        "Proxy-Status: y",
    ],
)
def test_req_04_what_is_for_a_proxy_goes_no_further(world: Lab, line: str) -> None:
    world.expect(forward(get("a.test", "http://a.test/", line)), allowed(HEARD))
    world.expect(inside("a.test", get("a.test", "/", line)), allowed(HEARD))


@pytest.mark.parametrize("body", [b"", b"hello"])
def test_req_04_a_connect_has_no_body_and_no_other_host(world: Lab, body: bytes) -> None:
    no = refused("failure", 400)
    world.expect(forward(connect("a.test:443", host="b.test:443")), no)
    long = b"CONNECT a.test:443 HTTP/1.1\r\nHost: a.test:443\r\nContent-Length: 5\r\n\r\n" + body
    world.expect(forward(long), no)


# -- REQ-08 ---------------------------------------------------------------------------------------------------

METHODS: list[tuple[str, Outcome]] = [
    ("GET", allowed(HEARD)),
    ("get", refused("failure", 501)),
    ("Get", refused("failure", 501)),
    ("POST", refused()),
    ("DELETE", refused()),
    ("TRACE", refused()),
    ("TRACK", refused()),
    ("GETX", refused()),
    ("XGET", refused()),
    ("GET,POST", refused("failure", 400)),
    ("PROPFIND", refused()),
    ("QUERY", refused()),
    ("G-T", refused()),
    ("GET\t", refused("failure", 400)),
    ("GE\0T", refused("failure", 400)),
    ("GËT", refused("failure", 400)),
    ("", refused("failure", 400)),
]


@pytest.mark.parametrize(("method", "outcome"), METHODS, ids=[repr(each[0]) for each in METHODS])
def test_req_08_a_method_is_the_token_that_a_rule_names(world: Lab, method: str, outcome: Outcome) -> None:
    world.bind(rule("allow", "a.test", methods=["GET"]))
    world.expect(inside("a.test", get("a.test", method=method)), outcome)


OVERRIDES = ["X-HTTP-Method-Override: DELETE", "x-http-method: DELETE", "X-METHOD-OVERRIDE: DELETE"]


@pytest.mark.parametrize("line", OVERRIDES)
def test_req_08_an_override_reaches_nobody_where_methods_matter(world: Lab, line: str) -> None:
    payload = get("a.test", "/", line)
    unchanged = b"GET / HTTP/1.1\r\nHost: a.test\r\n%b\r\n\r\n" % line.encode()
    world.expect(inside("a.test", payload), allowed(unchanged))
    world.bind(rule("allow", "a.test", methods=["GET"]))
    world.expect(inside("a.test", payload), allowed(HEARD))
    world.expect(forward(get("a.test", "http://a.test/", line)), allowed(HEARD))


# -- REQ-09 ---------------------------------------------------------------------------------------------------

FIELDS: list[tuple[str, str, int]] = [
    ("a space before the colon", "Authorization : x", 400),
    ("a space in the name", "Author ization: x", 400),
    ("a tab in front", "\tAuthorization: x", 400),
    ("a control character", "X\x01: y", 400),
    ("a name that is not ASCII", "X\xe4: y", 400),
    ("brackets in a name", "X(y): z", 400),
    ("a slash in a name", "X/y: z", 400),
    ("Connection names Host", "Connection: host", 400),
    ("Connection names Authorization", "Connection: close, Authorization", 400),
    ("Connection names Cookie", "Connection: cookie", 400),
    ("Connection names Proxy-Authorization", "Connection: proxy-authorization", 400),
    ("Connection names Content-Type", "Connection: content-type", 400),
    ("Connection is no list of tokens", "Connection: a b", 400),
]


@pytest.mark.parametrize(("line", "status"), [each[1:] for each in FIELDS], ids=[each[0] for each in FIELDS])
def test_req_09_a_field_has_a_name_that_is_one(world: Lab, line: str, status: int) -> None:
    world.expect(inside("a.test", get("a.test", "/", line)), refused("failure", status))
    world.expect(forward(get("a.test", "http://a.test/", line)), refused("failure", status))


def test_req_09_what_connection_names_goes_with_it(world: Lab) -> None:
    payload = get("a.test", "/", "Connection: keep-alive, X-Hop", "X-Hop: 1", "x-hop: 2", "X-End: 3")
    world.expect(inside("a.test", payload), allowed(HEARD.replace(b"\r\n\r\n", b"\r\nX-End: 3\r\n\r\n")))


def test_req_09_a_field_that_comes_twice_is_sent_twice_as_it_came(world: Lab) -> None:
    """Only fields that steer the message must be single; the rest is between the client and its site."""
    payload = get("a.test", "/", "X-A: 1", "x-a: 2", "X_A: 3")
    world.expect(
        inside("a.test", payload),
        allowed(HEARD.replace(b"\r\n\r\n", b"\r\nX-A: 1\r\nx-a: 2\r\nX_A: 3\r\n\r\n")),
    )


# -- REQ-10 ---------------------------------------------------------------------------------------------------

UPGRADE = (
    "Connection: Upgrade",
    "Upgrade: websocket",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: eA==",
)
SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"


def test_req_10_an_upgrade_is_a_request_like_others(lab: Lab) -> None:
    lab.bind(rule("allow", "a.test", methods=["GET"], paths=["/ws"]))
    lab.serve("a.test", reply=SWITCH + b"hello", hang_up=True)
    heard = (
        b"GET /ws HTTP/1.1\r\nHost: a.test\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: eA==\r\n"
        b"Connection: upgrade\r\nUpgrade: websocket\r\n\r\n"
    )
    told = lab.expect(inside("a.test", get("a.test", "/ws", *UPGRADE)), allowed(heard, 101, b"hello"))
    assert told[-1]["bytes_in"] == 5  # its frames are counted
    lab.expect(inside("a.test", get("a.test", "/other", *UPGRADE)), refused())
    lab.expect(inside("b.test", get("b.test", "/ws", *UPGRADE)), refused())


ANSWERS: list[tuple[str, tuple[str, ...], bytes]] = [
    ("a 101 that nobody asked for", (), SWITCH),
    ("a 101 for another protocol", UPGRADE, SWITCH.replace(b"websocket", b"raw")),
    ("a 101 without Connection", UPGRADE, SWITCH.replace(b"Connection: upgrade\r\n", b"")),
    ("a 101 without Upgrade", UPGRADE, SWITCH.replace(b"Upgrade: websocket\r\n", b"")),
    ("Upgrade that Connection does not name", ("Upgrade: websocket",), SWITCH),
]


@pytest.mark.parametrize(
    ("lines", "reply"), [each[1:] for each in ANSWERS], ids=[each[0] for each in ANSWERS]
)
def test_req_10_nobody_changes_the_protocol_alone(lab: Lab, lines: tuple[str, ...], reply: bytes) -> None:
    lab.bind(rule("allow", "a.test"))
    lab.serve("a.test", reply=reply + b"raw bytes")
    kept = "".join(f"{line}\r\n" for line in lines if line.startswith("Sec-"))
    asked = "Connection: upgrade\r\nUpgrade: websocket\r\n" if "Connection: Upgrade" in lines else ""
    heard = f"GET / HTTP/1.1\r\nHost: a.test\r\n{kept}{asked}\r\n".encode()
    lab.expect(inside("a.test", get("a.test", "/", *lines)), allowed(heard, 502, ended="upstream"))


# -- REQ-12 ---------------------------------------------------------------------------------------------------

LOCATIONS = [
    "http://169.254.169.254/latest/",
    "https://b.test/",
    "//b.test/",
    "file:///etc/passwd",
    "/elsewhere",
]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("location", LOCATIONS)
def test_req_12_a_redirect_is_the_clients_to_follow(lab: Lab, status: int, location: str) -> None:
    lab.bind(rule("allow", "a.test"))
    lab.serve("b.test")
    lab.serve(
        "a.test",
        reply=f"HTTP/1.1 {status} Moved\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n".encode(),
    )
    heard = b"GET / HTTP/1.1\r\nHost: a.test\r\nAuthorization: mine\r\n\r\n"
    payload = get("a.test", "/", "Authorization: mine")
    lab.expect(inside("a.test", payload), allowed(heard, status, questions=("a.test",)))
    lab.expect(inside("b.test", get("b.test", "/", "Authorization: mine")), refused())
    ask = forward(get("169.254.169.254", "http://169.254.169.254/latest/"))
    lab.expect(ask, refused("guard"))


# -- REQ-16 ---------------------------------------------------------------------------------------------------


def test_req_16_a_request_goes_where_the_decision_was_about(lab: Lab) -> None:
    """A proxy-form request to an allowed address and port is not forwarded to its payload's Host."""
    lab.bind(rule("allow", "203.0.113.5:8080", "a.test"))
    lab.serve("five", port=8080, tls=False, address="203.0.113.5")
    lab.serve("b.test", port=80, tls=False)
    heard = b"GET / HTTP/1.1\r\nHost: 203.0.113.5:8080\r\n\r\n"
    named = "203.0.113.5:8080"
    lab.expect(redirected("203.0.113.5", get(named), port=8080), allowed(heard))
    lab.expect(redirected("203.0.113.5", get(named, f"http://{named}/"), port=8080), allowed(heard))
    lab.bind(rule("allow", "203.0.113.5:8080"))
    for payload in (get("b.test:8080"), get("b.test:8080", "http://b.test:8080/")):
        # Whatever a request calls the address, it goes there and nowhere else, and no name is looked up.
        ask = redirected("203.0.113.5", payload, port=8080)
        (opened, *_) = lab.expect(ask, allowed(heard.replace(named.encode(), b"b.test:8080")))
        assert (opened["host"], opened["dialled"], lab.stage.dialer.asked) == (
            "203.0.113.5",
            "203.0.113.5",
            [],
        )
    lab.expect(redirected("203.0.113.5", get("b.test:80"), port=8080), refused("guard", 421))
