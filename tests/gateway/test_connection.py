"""From the first byte to a conversation: proxy and redirected clients, TLS chosen, names that must agree."""

from __future__ import annotations

from typing import Any

import pytest
from gateway_dialogue import Dialogue, hello, policy, rule

from ringfence.gateway.core.connection import ESTABLISHED
from ringfence.gateway.core.refusal import UNTRUSTED
from ringfence.policy.model import Kind

ALLOW = rule("allow", "a.test", name="allow a")
GET = b"GET /x?secret=1 HTTP/1.1\r\nHost: a.test\r\nUser-Agent: t\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"


def test_an_allowed_request_through_an_intercepted_tunnel() -> None:
    talk = Dialogue(ALLOW).secure("a.test:443").receive(GET)
    assert talk.said[-1] == ("request", "a.test", 443, "a.test", False)
    assert talk.upstreams[0].took() == b"GET /x?secret=1 HTTP/1.1\r\nHost: a.test\r\nUser-Agent: t\r\n\r\n"
    talk.answer(OK)
    assert talk.took() == OK
    assert talk.upstreams[0].state == "released"
    assert talk.audit("id", "step", "verdict", "host", "method", "path", "status", "ended", "dialled") == [
        ("00000000-00000001", "opened", "allowed", "a.test", "GET", "/x", None, None, "203.0.113.9"),
        ("00000000-00000001", "closed", "allowed", "a.test", "GET", "/x", 200, "done", "203.0.113.9"),
    ]
    record = talk.records[1]
    assert (record["sandbox"], record["sandbox_name"], record["agent"], record["user"]) == (
        "sandbox-1",
        "lab",
        "shell",
        "ada",
    )
    assert (record["rule"], record["origin"], record["reason"], record["revision"]) == (
        "allow a",
        "local",
        "rule",
        1,
    )
    assert (record["via"], record["protocol"], record["inspected"]) == ("connect", "http/1.1", True)
    assert (record["bytes_in"], record["bytes_out"]) == (2, 57)


def test_a_blocked_host_is_refused_inside_its_own_tunnel_and_nobody_hears_of_it() -> None:
    talk = Dialogue(rule("deny", "paste.test", name="deny exfiltration"), ALLOW).secure("paste.test:443")
    talk.receive(b"GET /up HTTP/1.1\r\nHost: paste.test\r\n\r\n")
    head, _, body = talk.took().partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 403 Forbidden\r\n")
    assert b"\r\nX-Sbx-Decision: 00000000-00000001" in head
    assert body.decode().splitlines()[:2] == [
        "Blocked by network policy: domain paste.test:443",
        "rule `deny exfiltration`, origin local",
    ]
    assert talk.dialled == 0
    assert talk.audit("step", "verdict", "reason", "rule", "host", "path", "status") == [
        ("opened", "blocked", "rule", "deny exfiltration", "paste.test", "/up", 403)
    ]
    assert talk.droppable == [False]


def test_without_a_policy_everything_is_blocked_as_a_failure() -> None:
    talk = Dialogue().secure("a.test:443").receive(GET)
    assert talk.took().startswith(b"HTTP/1.1 403 ")
    assert talk.audit("verdict", "reason", "revision") == [("blocked", "failure", None)]
    assert talk.dialled == 0


def test_a_cut_blocks_everything_and_its_end_restores_policy() -> None:
    talk = Dialogue(ALLOW).secure("a.test:443")
    talk.subject.close(True)
    talk.receive(GET)
    assert talk.took().startswith(b"HTTP/1.1 403 ")
    assert talk.audit("verdict", "reason") == [("blocked", "failure")]
    talk.subject.close(False)
    talk.receive(GET).answer(OK)
    assert talk.took() == OK


NAMES_THAT_DISAGREE: list[tuple[str, str, str | None, bytes]] = [
    ("the ClientHello names another host (TLS-01)", "a.test:443", "b.test", b"Host: a.test"),
    ("Host names another host (TLS-02, domain fronting)", "a.test:443", "a.test", b"Host: b.test"),
    ("Host names another port", "a.test:443", "a.test", b"Host: a.test:8443"),
    ("Host names a subdomain", "a.test:443", "a.test", b"Host: www.a.test"),
    ("Host is an address", "a.test:443", "a.test", b"Host: 203.0.113.9"),
]


@pytest.mark.parametrize(
    ("authority", "name", "host"),
    [row[1:] for row in NAMES_THAT_DISAGREE],
    ids=[row[0] for row in NAMES_THAT_DISAGREE],
)
def test_names_that_disagree_are_misdirected(authority: str, name: str, host: bytes) -> None:
    allow = rule("allow", "a.test", "b.test", "**.a.test", "203.0.113.9")
    talk = Dialogue(allow).secure(authority, name=name).receive(b"GET / HTTP/1.1\r\n" + host + b"\r\n\r\n")
    assert talk.took().startswith(b"HTTP/1.1 421 Misdirected Request\r\n")
    assert talk.dialled == 0
    assert talk.audit("verdict", "reason", "status") == [("blocked", "guard", 421)]


def test_every_request_of_a_connection_is_held_to_its_name() -> None:
    talk = Dialogue(rule("allow", "a.test", "b.test")).secure("a.test:443")
    talk.receive(GET).answer(OK)
    talk.took()
    talk.receive(b"GET / HTTP/1.1\r\nHost: b.test\r\n\r\n")
    assert talk.took().startswith(b"HTTP/1.1 421 ")
    assert talk.dialled == 1
    assert "finish" in talk.commands


AGREEING_HOSTS = [b"a.test", b"A.Test", b"a.test.", b"a.test:443", b"A.TEST:443"]


@pytest.mark.parametrize("host", AGREEING_HOSTS)
def test_one_name_in_several_spellings_agrees_and_goes_on_in_one(host: bytes) -> None:
    talk = Dialogue(ALLOW).secure("a.test:443").receive(b"GET / HTTP/1.1\r\nHost: " + host + b"\r\n\r\n")
    assert talk.upstreams[0].took() == b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n"


BAD_AUTHORITIES = [
    b"[a.test]:443", b"a.test:443:443", b"a.test:0443", b"a.test:65537", b"a.test:0", b"u@a.test:443", b"a..test:443",
    b"a.test:+443", b"0x7f.1:443", b"2130706433:443", b"0177.0.0.1:443", b"127.1:443", b"a%2etest:443", b"a_b-:443",
    b"evil\\@a.test:443", b"[::1%25lo]:443", b"a.test:", b":443", b"a.test", b"xn--a:443",
]  # fmt: skip


@pytest.mark.parametrize("authority", BAD_AUTHORITIES)
def test_an_authority_that_could_be_read_in_two_ways_is_refused(authority: bytes) -> None:
    """NAM-01, -03, -04, -08: nothing is looked up, nothing is dialled, one record."""
    talk = Dialogue(rule("allow", "**"), auto=True).proxy()
    talk.receive(b"CONNECT " + authority + b" HTTP/1.1\r\nHost: " + authority + b"\r\n\r\n")
    assert talk.took().startswith(b"HTTP/1.1 400 ")
    assert talk.dialled == 0
    assert talk.audit("verdict", "reason", "status") == [("blocked", "failure", 400)]


@pytest.mark.parametrize("size", [1, 2, 7])
@pytest.mark.parametrize("host", ["a.test", "b.test"])
def test_a_fragmented_hello_gets_the_same_decision(host: str, size: int) -> None:
    """TLS-04."""
    talk = Dialogue(ALLOW).tunnel(f"{host}:443").receive(hello(host), pieces=size)
    assert talk.said == [("terminate", host)]
    talk.secured("http/1.1")
    talk.receive(b"GET / HTTP/1.1\r\nHost: " + host.encode() + b"\r\n\r\n")
    assert talk.dialled == (host == "a.test")


def test_a_hello_behind_connect_in_one_segment() -> None:
    talk = Dialogue(ALLOW).proxy()
    talk.receive(b"CONNECT a.test:443 HTTP/1.1\r\nHost: a.test\r\n\r\n" + hello("a.test"))
    assert talk.took() == ESTABLISHED
    assert talk.said == [("terminate", "a.test")]


def test_connect_inside_connect_is_refused() -> None:
    """REQ-04."""
    talk = Dialogue(rule("allow", "**")).secure("a.test:443")
    talk.receive(b"CONNECT b.test:443 HTTP/1.1\r\nHost: b.test:443\r\n\r\n")
    assert talk.took().startswith(b"HTTP/1.1 405 ")
    assert talk.dialled == 0
    assert talk.audit("verdict", "reason") == [("blocked", "failure")]


# -- plain HTTP -------------------------------------------------------------------------------------------------------


def test_the_proxy_forwards_plain_http_and_decides_every_request() -> None:
    talk = Dialogue(ALLOW).proxy()
    talk.receive(b"GET http://a.test/x HTTP/1.1\r\nHost: a.test\r\nProxy-Connection: keep-alive\r\n\r\n")
    assert talk.said == [("request", "a.test", 80, "", False)]
    assert talk.upstreams[0].took() == b"GET /x HTTP/1.1\r\nHost: a.test\r\n\r\n"
    talk.answer(OK)
    assert talk.took() == OK
    talk.receive(b"GET http://b.test/y HTTP/1.1\r\nHost: b.test\r\n\r\n")
    assert talk.took().startswith(b"HTTP/1.1 403 ")
    assert talk.audit("step", "host", "port", "via", "verdict") == [
        ("opened", "a.test", 80, "forward", "allowed"),
        ("closed", "a.test", 80, "forward", "allowed"),
        ("opened", "b.test", 80, "forward", "blocked"),
    ]


def test_the_second_request_of_one_write_is_decided_too() -> None:
    """REQ-06: a pipelined request that nobody looked at is the oldest hole of such proxies."""
    talk = Dialogue(ALLOW).proxy()
    talk.receive(
        b"GET http://a.test/ HTTP/1.1\r\nHost: a.test\r\n\r\nGET http://evil.test/ HTTP/1.1\r\nHost: evil.test\r\n\r\n"
    )
    assert talk.upstreams[0].took() == b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n"
    talk.answer(OK)
    assert talk.took().startswith(OK + b"HTTP/1.1 403 ")
    assert talk.dialled == 1


@pytest.mark.parametrize("target", [b"/x", b"https://a.test/x"])
def test_a_proxy_is_asked_for_http_with_a_whole_url(target: bytes) -> None:
    talk = Dialogue(ALLOW).proxy().receive(b"GET " + target + b" HTTP/1.1\r\nHost: a.test\r\n\r\n")
    assert talk.took().startswith(b"HTTP/1.1 400 ")
    assert talk.dialled == 0
    assert len(talk.records) == 1


@pytest.mark.parametrize(
    "target", [b"/x", b"https://a.test/x", b"http://a.test@b.test/x", b"http://a.test.b.test/x"]
)
def test_a_request_after_another_is_read_as_strictly_as_the_first(target: bytes) -> None:
    """What is remembered of one request never vouches for another."""
    talk = Dialogue(ALLOW).proxy()
    for path in (b"/1", b"/2"):
        talk.receive(b"GET http://a.test" + path + b" HTTP/1.1\r\nHost: a.test\r\n\r\n").answer(OK)
        assert talk.took() == OK
    talk.receive(b"GET " + target + b" HTTP/1.1\r\nHost: a.test\r\n\r\n")
    assert talk.took().startswith(b"HTTP/1.1 400 ")
    assert talk.dialled == 2


def test_plain_http_in_a_tunnel_and_in_a_redirected_connection_is_inspected() -> None:
    for talk, via in (
        (Dialogue(ALLOW).tunnel("a.test:80"), "connect"),
        (Dialogue(ALLOW).redirected("a.test", 80), "transparent"),
    ):
        talk.receive(b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").answer(OK)
        assert talk.took() == OK
        assert talk.audit("step", "via", "protocol", "inspected") == [
            ("opened", via, "http/1.1", True),
            ("closed", via, "http/1.1", True),
        ]


# -- redirected connections -------------------------------------------------------------------------------------------


def test_a_blocked_protocol_that_nobody_knows_is_reset_at_once() -> None:
    talk = Dialogue(ALLOW).redirected("b.test", 5432).receive(b"\x00\x00\x00\x08\x04\xd2\x16\x2f")
    assert talk.commands == ["reset"]
    assert talk.audit("step", "verdict", "host", "port", "via", "protocol") == [
        ("opened", "blocked", "b.test", 5432, "transparent", "tcp")
    ]


def test_an_allowed_protocol_that_nobody_knows_is_relayed() -> None:
    talk = Dialogue(ALLOW).redirected("a.test", 5432).receive(b"\x00\x00\x00\x08\x04\xd2\x16\x2f")
    assert talk.said == [("open", "a.test", 5432), ("relay",)]
    assert talk.upstreams[0].took() == b"\x00\x00\x00\x08\x04\xd2\x16\x2f"
    talk.phase.lost(talk.now)
    assert talk.audit("step", "verdict", "protocol", "bytes_out", "ended", "inspected") == [
        ("opened", "allowed", "tcp", None, None, None),
        ("closed", "allowed", "tcp", 8, "client", None),
    ]
    assert talk.upstreams[0].state == "closed"


def test_where_requests_decide_what_cannot_be_inspected_is_blocked() -> None:
    deny = rule("deny", "a.test", methods=["POST"], paths=["/**"])
    talk = Dialogue(ALLOW, deny).redirected("a.test", 22).receive(b"SSH-2.0-x\r\n")
    assert talk.commands == ["reset"]
    assert talk.audit("verdict", "reason") == [("blocked", "failure")]


def test_a_raw_address_is_decided_as_an_address_whatever_it_calls_itself() -> None:
    """NAM-09, NAM-14: an allowed name in SNI and Host does not open an address."""
    talk = Dialogue(ALLOW).redirected("203.0.113.66", 443).receive(hello("a.test"))
    assert talk.said == [("terminate", "a.test")]
    talk.secured("http/1.1")
    talk.receive(b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n")
    assert talk.took().startswith(b"HTTP/1.1 403 ")
    assert talk.took() == b""
    assert talk.audit("host", "verdict", "reason") == [("203.0.113.66", "blocked", "default")]
    assert talk.dialled == 0


def test_an_allowed_address_is_dialled_as_it_is_and_proves_the_name_the_client_asked_for() -> None:
    talk = Dialogue(rule("allow", "203.0.113.0/24"), address="203.0.113.66").redirected("203.0.113.66", 443)
    talk.receive(hello("a.test"))
    talk.secured("http/1.1")
    talk.receive(b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n")
    assert talk.said[-1] == ("request", "203.0.113.66", 443, "a.test", False)
    talk.answer(OK)
    talk.took()
    talk.receive(b"GET / HTTP/1.1\r\nHost: other.test\r\n\r\n")
    assert talk.took().startswith(b"HTTP/1.1 421 ")


def test_the_gateways_own_endpoints_are_no_destination() -> None:
    for talk in (Dialogue(rule("allow", "**", "10.0.0.0/8")), Dialogue(rule("allow", "**", "10.0.0.0/8"))):
        talk.redirected("10.255.255.1", 80).receive(b"GET / HTTP/1.1\r\nHost: 10.255.255.1\r\n\r\n")
        assert talk.took().startswith(b"HTTP/1.1 403 ")
        assert talk.audit("verdict", "reason") == [("blocked", "guard")]
    talk = Dialogue(rule("allow", "**")).secure("gateway.docker.internal:443")
    talk.receive(b"GET / HTTP/1.1\r\nHost: gateway.docker.internal\r\n\r\n")
    assert talk.took().startswith(b"HTTP/1.1 403 ")
    assert talk.audit("verdict", "reason") == [("blocked", "guard")]


def test_the_hosts_service_is_asked_for_as_localhost() -> None:
    talk = Dialogue(rule("allow", "localhost:11434"), address="127.0.0.1").proxy()
    host = b"host.docker.internal:11434"
    talk.receive(b"GET http://" + host + b"/api HTTP/1.1\r\nHost: " + host + b"\r\n\r\n")
    assert talk.said == [("request", "localhost", 11434, "", False)]
    assert talk.upstreams[0].took() == b"GET /api HTTP/1.1\r\nHost: localhost:11434\r\n\r\n"
    assert talk.audit("host", "port", "verdict") == [("localhost", 11434, "allowed")]
    talk = Dialogue(rule("allow", "**")).proxy()
    talk.receive(b"GET http://" + host + b"/api HTTP/1.1\r\nHost: " + host + b"\r\n\r\n")
    assert talk.took().startswith(b"HTTP/1.1 403 ")


def test_a_service_of_the_host_over_tls_has_the_name_that_the_client_used() -> None:
    talk = Dialogue(rule("allow", "localhost:8443"), address="127.0.0.1").tunnel("host.docker.internal:8443")
    talk.receive(hello("host.docker.internal"))
    assert talk.said == [("terminate", "host.docker.internal")]


# -- uninspected ------------------------------------------------------------------------------------------------------

BYPASS = rule("allow", "pinned.test", inspect="never")


def test_a_bypassed_host_keeps_its_own_certificate() -> None:
    greeting = hello("pinned.test")
    talk = Dialogue(BYPASS).tunnel("pinned.test:443").receive(greeting)
    assert talk.said == [("open", "pinned.test", 443), ("relay",)]
    assert talk.upstreams[0].took() == greeting
    assert talk.audit("step", "verdict", "protocol", "inspected") == [("opened", "allowed", "tls", None)]


@pytest.mark.parametrize(
    ("greeting", "status"),
    [(hello("evil.test"), b"421"), (hello(None), b"403"), (hello("pinned.test", ech=True), b"403")],
    ids=["another name", "no name", "encrypted hello"],
)
def test_a_bypass_is_for_the_name_in_the_hello(greeting: bytes, status: bytes) -> None:
    """TLS-01, TLS-03, TLS-05."""
    talk = Dialogue(BYPASS, rule("allow", "evil.test")).tunnel("pinned.test:443").receive(greeting)
    assert talk.commands == ["terminate"]
    talk.secured("http/1.1")
    talk.receive(b"GET / HTTP/1.1\r\nHost: pinned.test\r\n\r\n")
    assert talk.took()[9:12] == status
    assert talk.audit("verdict", "reason") == [("blocked", "guard")]
    assert talk.dialled == 0


def test_grease_is_ignored_where_we_terminate() -> None:
    talk = Dialogue(ALLOW).tunnel("a.test:443").receive(hello("a.test", ech=True))
    assert talk.said == [("terminate", "a.test")]


# -- silence, canaries, endings ---------------------------------------------------------------------------------------


def test_a_server_that_speaks_first_gets_its_tunnel() -> None:
    talk = Dialogue(ALLOW).redirected("a.test", 25)
    talk.wait(1)
    assert talk.said == [("open", "a.test", 25)]
    assert talk.records == []
    talk.answer(b"220 a.test ESMTP\r\n")
    assert talk.took() == b"220 a.test ESMTP\r\n"
    assert talk.said[-1] == ("relay",)
    assert talk.audit("step", "verdict", "protocol") == [("opened", "allowed", "tcp")]


def test_a_client_that_was_only_slow_is_inspected_all_the_same() -> None:
    """Silence is no way around inspection."""
    talk = Dialogue(ALLOW).redirected("a.test", 443)
    talk.wait(1)
    talk.receive(hello("a.test"), pieces=11)
    assert talk.said[-1] == ("terminate", "a.test")
    assert talk.upstreams[0].state == "closed"
    talk.secured("http/1.1")
    talk.receive(b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").answer(OK)
    assert talk.took() == OK
    assert talk.audit("step", "protocol") == [("opened", "http/1.1"), ("closed", "http/1.1")]


def test_a_slow_client_with_a_protocol_of_its_own_gets_its_tunnel() -> None:
    talk = Dialogue(ALLOW).redirected("a.test", 5432)
    talk.wait(1)
    talk.receive(b"\x00\x00\x00\x08")
    assert talk.commands == ["open", "relay"]
    assert talk.upstreams[0].took() == b"\x00\x00\x00\x08"


def test_a_refused_silent_client_does_not_hang() -> None:
    talk = Dialogue(ALLOW).redirected("b.test", 25)
    talk.wait(1)
    assert talk.said == []
    talk.wait(3)
    assert talk.commands == ["reset"]
    assert talk.audit("verdict", "host", "port") == [("blocked", "b.test", 25)]


@pytest.mark.parametrize("greeting", [b"", hello("a.test"), b"GET / HTTP/1.1\r\n"])
def test_a_canary_is_refused_before_it_speaks(greeting: bytes) -> None:
    talk = Dialogue(rule("allow", "**")).redirected("192.0.2.77", 4242, canary=True)
    if greeting:
        talk.receive(greeting)
    assert talk.commands == ["reset"]
    assert talk.audit("host", "port", "verdict", "reason", "canary") == [
        ("192.0.2.77", 4242, "blocked", "guard", True)
    ]


def test_a_canary_at_the_proxy_is_refused_by_name() -> None:
    talk = Dialogue(rule("allow", "**")).proxy(canary=True)
    talk.receive(b"CONNECT a.test:443 HTTP/1.1\r\nHost: a.test\r\n\r\n")
    assert talk.commands == ["reset"]
    talk = Dialogue(rule("allow", "**")).proxy(canary=True)
    talk.receive(b"GET http://a.test/ HTTP/1.1\r\nHost: a.test\r\n\r\n")
    assert talk.took().startswith(b"HTTP/1.1 403 ")
    assert talk.audit("host", "canary", "verdict") == [("a.test", True, "blocked")]


def test_tls_that_fails_is_on_record() -> None:
    talk = Dialogue(ALLOW).tunnel("a.test:443").receive(hello("a.test"))
    talk.phase.insecure("the client does not trust this installation's certificate authority", talk.now)  # type: ignore[attr-defined]
    assert talk.audit("step", "verdict", "protocol", "ended") == [
        ("opened", "allowed", "tls", None),
        ("closed", "allowed", "tls", "mistrusted"),
    ]
    assert talk.records[0]["text"] == (
        "the client does not trust this installation's certificate authority; on the host, `sbx policy allow "
        "network --inspect never a.test:443` passes it through unread"
    )
    assert talk.commands[-1] == "reset"


@pytest.mark.parametrize(
    ("inspect", "more", "advice"),
    [
        (None, {}, "`sbx policy allow network --inspect never a.test:443`"),
        ("auto", {}, "`sbx policy allow network --inspect never a.test:443`"),
        ("always", {}, "a rule says that it is always inspected"),
        ("auto", {"methods": ["GET"]}, "rules about its requests need it inspected"),
    ],
)
def test_what_helps_a_client_that_refuses_the_authority_depends_on_the_rules(
    inspect: str | None, more: dict[str, Any], advice: str
) -> None:
    """Nothing is bypassed by itself: the next connection is intercepted again."""
    wish = {"inspect": inspect} if inspect else {}
    talk = Dialogue(rule("allow", "a.test", **wish, **more))
    for _ in range(2):
        talk.tunnel("a.test:443").receive(hello("a.test"))
        talk.phase.insecure(UNTRUSTED, talk.now)  # type: ignore[attr-defined]
    assert talk.audit("ended", "protocol") == [(None, "tls"), ("mistrusted", "tls")] * 2
    assert all(advice in record["text"] for record in talk.records)
    assert talk.dialled == 0


def test_the_advice_works_whatever_rule_allows_the_host() -> None:
    bypass = rule("allow", "a.test:443", inspect="never")
    for wish in ({}, {"inspect": "auto"}):
        talk = Dialogue(rule("allow", "a.test", **wish), bypass).tunnel("a.test:443").receive(hello("a.test"))
        assert talk.commands == ["open", "relay"]


def test_under_an_organisation_the_advice_is_whom_to_ask() -> None:
    talk = Dialogue(ALLOW)
    talk.subject.bind(policy(ALLOW, organisation="acme", governs=frozenset({Kind.NETWORK})))
    talk.tunnel("a.test:443").receive(hello("a.test"))
    talk.phase.insecure(UNTRUSTED, talk.now)  # type: ignore[attr-defined]
    assert talk.records[0]["text"].endswith("; ask an administrator of acme")


def test_a_refused_host_whose_client_refuses_us_is_a_refusal_and_no_more() -> None:
    talk = Dialogue(ALLOW).tunnel("b.test:443").receive(hello("b.test"))
    talk.phase.insecure(UNTRUSTED, talk.now)  # type: ignore[attr-defined]
    assert talk.audit("step", "verdict", "text", "ended") == [("opened", "blocked", UNTRUSTED, None)]


def test_a_blocked_attempt_that_leaves_without_a_request_is_on_record() -> None:
    for talk in (
        Dialogue(ALLOW).secure("b.test:443"),
        Dialogue(ALLOW).tunnel("b.test:443"),
        Dialogue(ALLOW).redirected("b.test", 443),
    ):
        talk.phase.lost(talk.now)
        assert talk.audit("verdict", "host", "reason") == [("blocked", "b.test", "default")]
    talk = Dialogue(ALLOW).secure("a.test:443")
    talk.phase.lost(talk.now)
    assert talk.records == []


SLOW: list[tuple[str, bytes]] = [
    ("a hello that never ends", hello("a.test")[:40]),
    ("half a method", b"GE"),
]


@pytest.mark.parametrize("start", [row[1] for row in SLOW], ids=[row[0] for row in SLOW])
def test_half_a_greeting_is_refused_in_time(start: bytes) -> None:
    talk = Dialogue(ALLOW).redirected("a.test", 443).receive(start)
    talk.wait(9)
    assert talk.said == []
    talk.wait(2)
    assert talk.commands == ["reset"]
    assert talk.audit("verdict", "reason") == [("blocked", "failure")]
    assert talk.dialled == 0


def test_a_malformed_hello_is_refused() -> None:
    """TLS-03: two names in one hello."""
    name = b"\0" + (6).to_bytes(2, "big") + b"a.test"
    names = name + name
    extension = b"\0\0" + (len(names) + 2).to_bytes(2, "big") + len(names).to_bytes(2, "big") + names
    body = (
        b"\x03\x03"
        + bytes(32)
        + b"\0"
        + b"\0\x02\x13\x01"
        + b"\x01\0"
        + len(extension).to_bytes(2, "big")
        + extension
    )
    message = b"\x01" + len(body).to_bytes(3, "big") + body
    talk = Dialogue(ALLOW).redirected("a.test", 443)
    talk.receive(b"\x16\x03\x01" + len(message).to_bytes(2, "big") + message)
    assert talk.commands == ["reset"]
    assert talk.audit("verdict", "reason") == [("blocked", "failure")]
