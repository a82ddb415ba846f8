"""HTTP/1 on both sides: bodies, endings, upgrades, pressure, time, and a policy that changes meanwhile."""

from __future__ import annotations

import pytest
from gateway_dialogue import Dialogue, policy, rule

from ringfence.gateway.core.bodies import Chunked
from ringfence.gateway.core.messages import Malformed
from ringfence.policy.model import NetworkAccess

ALLOW = rule("allow", "a.test")
GET = b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"


def opened(*rules: object, **more: object) -> Dialogue:
    return Dialogue(*(rules or (ALLOW,)), **more).secure("a.test:443")  # type: ignore[arg-type]


def ended(talk: Dialogue) -> list[tuple[object, ...]]:
    """How what was opened was closed."""
    return talk.audit("step", "status", "ended")[1:]


# -- responses --------------------------------------------------------------------------------------------------------

RESPONSES: list[tuple[str, bytes, list[bytes], bytes, str]] = [
    (
        "sized, in pieces",
        b"GET",
        [b"HTTP/1.1 200 OK\r\nContent-", b"Length: 4\r\n\r\nab", b"cd"],
        b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nabcd",
        "released",
    ),
    (
        "chunked, framed anew",
        b"GET",
        [
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"3;x=y\r\nabc\r\n",
            b"1\r\nd\r\n0",
            b"\r\n\r\n",
        ],
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n1\r\nd\r\n0\r\n\r\n",
        "released",
    ),
    (
        "chunked with trailers",
        b"GET",
        [
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX-Sum: 9\r\nHost: evil\r\n\r\n"
        ],
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX-Sum: 9\r\n\r\n",
        "released",
    ),
    (
        "chunked, but all at once",
        b"GET",
        [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"],
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc",
        "released",
    ),
    (
        "empty",
        b"GET",
        [b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"],
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        "released",
    ),
    (
        "HEAD",
        b"HEAD",
        [b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n"],
        b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n",
        "released",
    ),
    (
        "not modified",
        b"GET",
        [b"HTTP/1.1 304 Not Modified\r\nETag: x\r\n\r\n"],
        b"HTTP/1.1 304 Not Modified\r\nETag: x\r\n\r\n",
        "released",
    ),
    (
        "no content",
        b"GET",
        [b"HTTP/1.1 204 No Content\r\n\r\n"],
        b"HTTP/1.1 204 No Content\r\n\r\n",
        "released",
    ),
    (
        "interim first",
        b"GET",
        [b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n", OK],
        b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + OK,
        "released",
    ),
    (
        "the origin closes",
        b"GET",
        [b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nhi"],
        OK,
        "closed",
    ),
    ("bytes behind the end (queue poisoning)", b"GET", [OK + b"HTTP/1.1 200 OK\r\n"], OK, "closed"),
    ("HTTP/1.0", b"GET", [b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nhi"], OK, "closed"),
]


@pytest.mark.parametrize(
    ("method", "pieces", "seen", "state"), [row[1:] for row in RESPONSES], ids=[row[0] for row in RESPONSES]
)
def test_a_response_is_framed_anew(method: bytes, pieces: list[bytes], seen: bytes, state: str) -> None:
    talk = opened().receive(method + b" / HTTP/1.1\r\nHost: a.test\r\n\r\n")
    for piece in pieces:
        talk.answer(piece)
    assert talk.took() == seen
    assert talk.upstreams[0].state == state
    assert ended(talk)[0][2] == "done"
    talk.receive(GET)  # and the connection is fit for another request
    assert talk.dialled == 2


def test_a_body_without_length_ends_with_its_connection() -> None:
    talk = opened().receive(GET).answer(b"HTTP/1.1 200 OK\r\n\r\nab").answer(b"cd")
    talk.origin_ended()
    assert (
        talk.took() == b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n2\r\ncd\r\n0\r\n\r\n"
    )
    assert ended(talk) == [("closed", 200, "done")]


BROKEN: list[tuple[str, list[bytes], bool]] = [
    ("sized, cut short", [b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nab"], True),
    ("chunked, cut short", [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nab"], True),
    ("endless, cut by force", [b"HTTP/1.1 200 OK\r\n\r\nab"], False),
]


@pytest.mark.parametrize(("pieces", "clean"), [row[1:] for row in BROKEN], ids=[row[0] for row in BROKEN])
def test_a_truncated_body_never_looks_complete(pieces: list[bytes], clean: bool) -> None:
    """REQ-13."""
    talk = opened().receive(GET)
    for piece in pieces:
        talk.answer(piece)
    talk.origin_ended(clean=clean)
    assert talk.commands[-1] == "reset"
    assert not talk.took().endswith(b"0\r\n\r\n")
    assert ended(talk) == [("closed", 200, "upstream")]


BAD_ANSWERS: list[tuple[str, bytes]] = [
    ("not HTTP", b"SSH-2.0-x\r\n\r\n"),
    ("both framings", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n"),
    (
        "an unasked 101",
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
    ),
    ("a bare LF", b"HTTP/1.1 200 OK\nX: y\r\n"),
    ("a bad first chunk", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"),
    ("33 interim responses", b"HTTP/1.1 100 Continue\r\n\r\n" * 33),
    ("a head of 70 KB", b"HTTP/1.1 200 OK\r\nX: " + b"y" * 70_000),
]


@pytest.mark.parametrize("answer", [row[1] for row in BAD_ANSWERS], ids=[row[0] for row in BAD_ANSWERS])
def test_what_is_no_response_becomes_a_502_that_says_so(answer: bytes) -> None:
    talk = opened().receive(GET).answer(answer)
    final = talk.took().rpartition(b"HTTP/1.1 502 Bad Gateway\r\n")[2]
    assert b"The gateway cannot reach a.test:443: " in final
    assert talk.upstreams[0].state == "closed"
    assert ended(talk) == [("closed", 502, "upstream")]
    assert talk.records[-1]["text"]


def test_a_broken_chunk_in_the_middle_ends_the_connection() -> None:
    talk = opened().receive(GET).answer(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n")
    talk.answer(b"-1\r\n")
    assert talk.commands[-1] == "reset"
    assert ended(talk) == [("closed", 200, "upstream")]


# -- requests with bodies ---------------------------------------------------------------------------------------------


def test_an_upload_streams_before_and_after_the_connection_is_there() -> None:
    talk = opened(auto=False).receive(b"PUT /f HTTP/1.1\r\nHost: a.test\r\nContent-Length: 6\r\n\r\nab")
    talk.receive(b"cd")
    upstream = talk.connected()
    assert upstream.took() == b"PUT /f HTTP/1.1\r\nHost: a.test\r\nContent-Length: 6\r\n\r\nabcd"
    talk.receive(b"ef")
    assert upstream.took() == b"ef"
    talk.answer(OK)
    assert talk.took() == OK
    assert upstream.state == "released"


def test_a_chunked_upload_is_framed_anew() -> None:
    talk = opened().receive(b"POST / HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n")
    talk.receive(b"3;a=b\r\nabc\r\n0\r\nX-Sum: 1\r\nTransfer-Encoding: x\r\n\r\n", pieces=1)
    sent = talk.upstreams[0].took().partition(b"\r\n\r\n")[2]
    assert sent == b"1\r\na\r\n1\r\nb\r\n1\r\nc\r\n0\r\nX-Sum: 1\r\n\r\n"


def test_what_follows_a_body_is_the_next_request() -> None:
    """REQ-06: leftovers are never copied."""
    talk = opened().receive(
        b"POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 2\r\n\r\nhiGET /evil HTTP/1.1\r\n"
    )
    assert talk.upstreams[0].took().endswith(b"\r\n\r\nhi")
    talk.answer(OK)
    talk.receive(b"Host: evil.test\r\n\r\n")
    assert talk.took().startswith(OK + b"HTTP/1.1 421 ")


@pytest.mark.parametrize(
    "chunk",
    [
        b"zz\r\n",
        b"\r\n",
        b"1\nab",
        b"1\r\nab\r\n",
        b"ffffffffffffffff1\r\n",
        b"1;" + b"x" * 2000,
        b"0\r\nX\n\r\n\r\n",
    ],
)
def test_a_malformed_upload_is_answered_and_cut(chunk: bytes) -> None:
    talk = opened().receive(b"POST / HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk)
    assert talk.took().startswith(b"HTTP/1.1 400 ")
    assert talk.upstreams[0].state == "closed"
    assert "finish" in talk.commands
    assert ("closed", None, "client") in [
        (step, status or None, how) for step, status, how in talk.audit("step", "status", "ended")
    ]


def test_a_malformed_upload_under_a_response_is_cut_without_another_answer() -> None:
    talk = opened().receive(b"POST / HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n")
    talk.answer(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc")
    talk.took()
    talk.receive(b"zz\r\n")
    assert (talk.took(), talk.commands[-1]) == (b"", "reset")
    assert talk.audit("step", "verdict", "status")[-1] == ("opened", "blocked", 400)


def test_the_expected_100_comes_from_the_origin() -> None:
    talk = opened().receive(
        b"POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n"
    )
    assert b"Expect: 100-continue" in talk.upstreams[0].took()
    talk.answer(b"HTTP/1.1 100 Continue\r\n\r\n")
    assert talk.took() == b"HTTP/1.1 100 Continue\r\n\r\n"
    talk.receive(b"hi").answer(OK)
    assert talk.upstreams[0].took() == b"hi"
    assert talk.took() == OK


def test_a_refused_upload_is_not_read() -> None:
    talk = Dialogue(ALLOW).secure("b.test:443")
    talk.receive(
        b"POST / HTTP/1.1\r\nHost: b.test\r\nContent-Length: 10000000\r\nExpect: 100-continue\r\n\r\n"
    )
    assert b"\r\nConnection: close\r\n" in talk.took()
    talk.receive(b"x" * 1000)
    assert talk.took() == b""
    assert talk.commands[-1] == "finish"
    assert len(talk.records) == 1


def test_an_early_answer_to_an_upload_closes() -> None:
    talk = opened().receive(b"POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 10\r\n\r\nhi")
    talk.answer(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")
    assert b"Connection: close" in talk.took()
    assert talk.upstreams[0].state == "closed"
    assert talk.commands[-1] == "finish"


# -- connections ------------------------------------------------------------------------------------------------------


def test_a_client_that_wants_to_close_is_told_so() -> None:
    talk = opened().receive(b"GET / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n").answer(OK)
    assert talk.took() == b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi"
    assert talk.commands[-1] == "finish"
    assert talk.upstreams[0].state == "released"


def test_http_1_0_is_answered_without_chunks() -> None:
    talk = (
        opened()
        .receive(b"GET / HTTP/1.0\r\n\r\n")
        .answer(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n")
    )
    talk.answer(b"0\r\n\r\n")
    assert talk.took() == b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhi"
    assert talk.upstreams[0].took().startswith(b"GET / HTTP/1.1\r\nHost: a.test\r\n")
    assert talk.commands[-1] == "finish"


def test_a_dead_pooled_connection_is_replaced_once() -> None:
    talk = opened(auto=False).receive(GET)
    first = talk.connected(reused=True)
    talk.origin_ended(clean=True)
    assert talk.said[-1] == ("request", "a.test", 443, "a.test", True)
    assert first.took() == GET
    talk.connected()
    talk.answer(OK)
    assert talk.took() == OK
    assert [step for (step,) in talk.audit("step")] == ["opened", "closed"]


@pytest.mark.parametrize(
    ("request_", "reused"),
    [(b"POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 2\r\n\r\nhi", True), (GET, False)],
    ids=["not idempotent", "fresh"],
)
def test_what_may_have_had_an_effect_is_not_sent_again(request_: bytes, reused: bool) -> None:
    talk = opened(auto=False).receive(request_)
    talk.connected(reused=reused)
    talk.origin_ended(clean=False)
    assert talk.took().startswith(b"HTTP/1.1 502 ")
    assert talk.dialled == 1


def test_a_client_that_leaves_takes_its_request_with_it() -> None:
    talk = opened().receive(GET)
    talk.phase.lost(talk.now)
    assert talk.upstreams[0].state == "closed"
    assert ended(talk) == [("closed", 0, "client")]


def test_a_client_that_half_closes_still_gets_its_answer() -> None:
    talk = opened().receive(GET)
    talk.phase.eof(talk.now)
    talk.answer(OK)
    assert talk.took().endswith(b"\r\n\r\nhi")
    assert talk.commands[-1] == "finish"


# -- refusals on the way ----------------------------------------------------------------------------------------------


def test_an_address_that_a_guard_refuses_is_the_decision() -> None:
    """One record, blocked: nothing was opened."""
    talk = opened(auto=False).receive(GET)
    exchange, _ = talk.asked[0]
    guard = talk.subject.judge(NetworkAccess(host="a.test", port=443), "10.0.0.5", talk.now)
    exchange.failed(403, guard.text, talk.now, guard)
    assert talk.took().startswith(b"HTTP/1.1 403 ")
    assert talk.audit("step", "verdict", "reason") == [("opened", "blocked", "guard")]


def test_an_unreachable_origin_is_a_502_with_the_reason() -> None:
    talk = opened(auto=False).receive(GET)
    talk.asked[0][0].failed(502, "certificate verification failed: certificate has expired", talk.now)
    assert b"certificate has expired" in talk.took()
    assert talk.audit("step", "verdict", "status", "ended") == [
        ("opened", "allowed", None, None),
        ("closed", "allowed", 502, "upstream"),
    ]
    assert "expired" in talk.records[1]["text"]


# -- rules about requests ---------------------------------------------------------------------------------------------

READ_ONLY = rule("allow", "a.test", name="read", methods=["GET", "HEAD"], paths=["/repos/**"])


@pytest.mark.parametrize(
    ("line", "status"),
    [
        (b"GET /repos/x", b"200"),
        (b"POST /repos/x", b"403"),
        (b"GET /other", b"403"),
        (b"GET /repos/../other", b"403"),
        (b"GET /repos/%2e%2e/other", b"403"),
        (b"GET /repos/%2fx", b"403"),
        (b"GET //repos/x", b"403"),
        (b"GET /repos/x\\y", b"403"),
        (b"GET /repos/%zz", b"403"),
    ],
)
def test_where_requests_decide_every_request_is_decided(line: bytes, status: bytes) -> None:
    talk = opened(READ_ONLY).receive(line + b" HTTP/1.1\r\nHost: a.test\r\n\r\n")
    if talk.upstreams:
        talk.answer(OK)
    assert talk.took()[9:12] == status
    assert talk.dialled == (status == b"200")


def test_method_overrides_reach_no_origin_where_methods_matter() -> None:
    """REQ-08."""
    override = (
        b"GET /repos/x HTTP/1.1\r\nHost: a.test\r\nX-HTTP-Method-Override: DELETE\r\nX-Other: 1\r\n\r\n"
    )
    assert b"Override" not in opened(READ_ONLY).receive(override).upstreams[0].took()
    assert b"Override" in opened(ALLOW).receive(override).upstreams[0].took()


# -- upgrades ---------------------------------------------------------------------------------------------------------

UPGRADE = b"GET /ws HTTP/1.1\r\nHost: a.test\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\r\n"
SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"


def test_a_websocket_passes_after_a_checked_101() -> None:
    talk = opened().receive(UPGRADE)
    assert b"Connection: upgrade\r\nUpgrade: websocket\r\n" in talk.upstreams[0].took()
    talk.answer(SWITCH + b"\x81\x02hi")
    assert talk.took() == SWITCH + b"\x81\x02hi"
    talk.receive(b"\x81\x82....ok").answer(b"\x81\x01!")
    assert talk.upstreams[0].took() == b"\x81\x82....ok"
    assert talk.took() == b"\x81\x01!"
    talk.phase.lost(talk.now)
    assert ended(talk) == [("closed", 101, "client")]
    assert (talk.records[-1]["bytes_in"], talk.upstreams[0].state) == (7, "closed")


def test_an_upgrade_that_is_declined_is_an_ordinary_response() -> None:
    talk = opened().receive(UPGRADE).answer(OK)
    assert talk.took() == OK
    talk.receive(GET)
    assert talk.dialled == 2


def test_another_protocol_than_was_asked_for_is_refused() -> None:
    talk = opened().receive(UPGRADE).answer(SWITCH.replace(b"Upgrade: websocket", b"Upgrade: raw"))
    assert talk.took().startswith(b"HTTP/1.1 502 ")


# -- pressure ---------------------------------------------------------------------------------------------------------


def test_a_slow_client_stops_the_origin() -> None:
    talk = opened().receive(GET).answer(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nx")
    talk.phase.filled()
    talk.phase.drained(talk.now)
    assert talk.commands[-2:] == ["upstream.pause", "upstream.resume"]


def test_a_slow_origin_stops_the_client() -> None:
    talk = opened(pending_bytes=10, auto=False)
    talk.receive(b"PUT / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 100\r\n\r\n" + b"x" * 20)
    assert talk.commands[-1] == "pause"
    talk.connected()
    assert talk.commands[-1] == "resume"
    exchange, _ = talk.asked[0]
    exchange.hold(True)
    exchange.hold(False)
    assert talk.commands[-2:] == ["pause", "resume"]


def test_a_client_that_sends_far_ahead_is_paused() -> None:
    talk = opened(pending_bytes=100).receive(GET).receive(GET * 10)
    assert talk.commands[-1] == "pause"
    talk.answer(OK)
    assert talk.commands[-3:] == ["resume", "request", "pause"]


def test_refusals_wait_for_a_client_that_does_not_read() -> None:
    talk = Dialogue(ALLOW).secure("b.test:443")
    talk.phase.filled()
    talk.receive(b"GET / HTTP/1.1\r\nHost: b.test\r\n\r\n" * 3)
    assert (talk.took(), talk.records) == (b"", [])
    talk.phase.drained(talk.now)
    assert talk.took().count(b"HTTP/1.1 403 ") == 3


# -- time -------------------------------------------------------------------------------------------------------------


def test_a_head_that_trickles_is_answered_408() -> None:
    """DOS-01: slowloris."""
    talk = opened(head_time=30)
    for byte in b"GET / HTTP/1.1\r\nHost: a.test\r\n":
        talk.receive(bytes([byte]))
        talk.wait(1.01)
        if "finish" in talk.commands:
            break
    assert talk.took().startswith(b"HTTP/1.1 408 ")
    assert talk.audit("verdict", "status") == [("blocked", 408)]


def test_an_idle_connection_ends_without_a_word() -> None:
    talk = opened().receive(GET).answer(OK)
    talk.took()
    talk.wait(1)
    talk.wait(599)
    assert "finish" not in talk.commands
    talk.wait(2)
    assert (talk.commands[-1], talk.took()) == ("finish", b"")


def test_an_origin_that_does_not_answer_is_a_504() -> None:
    talk = opened().receive(GET)
    talk.wait(59)
    assert talk.took() == b""
    talk.wait(2)
    assert talk.took().startswith(b"HTTP/1.1 504 ")
    assert ended(talk) == [("closed", 504, "limit")]


def test_a_body_that_stops_is_cut() -> None:
    talk = opened().receive(GET).answer(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nx")
    talk.wait(1)
    talk.wait(601)
    assert talk.commands[-1] == "reset"
    assert ended(talk) == [("closed", 200, "limit")]


def test_a_request_head_that_is_too_long_is_a_431() -> None:
    talk = opened().receive(b"GET /" + b"x" * 70_000)
    assert talk.took().startswith(b"HTTP/1.1 431 ")
    assert talk.audit("verdict", "status") == [("blocked", 431)]


# -- a policy that changes --------------------------------------------------------------------------------------------


def test_a_response_in_flight_is_revoked() -> None:
    talk = opened().receive(GET).answer(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nx")
    talk.bind(rule("deny", "a.test"))
    assert talk.commands[-1] == "reset"
    assert talk.upstreams[0].state == "closed"
    assert ended(talk) == [("closed", 200, "revoked")]


def test_a_websocket_is_revoked() -> None:
    talk = opened().receive(UPGRADE).answer(SWITCH)
    talk.bind(rule("deny", "a.test"))
    assert talk.commands[-1] == "reset"
    assert ended(talk) == [("closed", 101, "revoked")]


def test_a_waiting_connection_is_revoked() -> None:
    talk = opened().receive(GET).answer(OK)
    talk.bind(rule("deny", "a.test", name="no"))
    assert talk.commands[-1] == "finish"
    assert talk.audit("step", "verdict", "rule", "ended")[-1] == ("opened", "blocked", "no", "revoked")


def test_an_address_that_a_new_policy_denies_is_revoked() -> None:
    talk = opened().receive(GET).answer(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nx")
    talk.bind(ALLOW, rule("deny", "203.0.113.0/24"))
    assert ended(talk) == [("closed", 200, "revoked")]


def test_a_policy_that_still_allows_disturbs_nobody() -> None:
    talk = opened().receive(GET).answer(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nh")
    talk.bind(rule("allow", "*.test", "a.test"), rule("deny", "b.test"))
    talk.answer(b"i")
    assert talk.took().endswith(b"\r\n\r\nhi")
    talk.receive(GET)
    assert talk.asked[-1][1].epoch == 2


def test_a_policy_that_changes_while_dialling_decides() -> None:
    """Nothing leaves under a policy that is gone."""
    talk = opened(auto=False).receive(GET)
    talk.bind(rule("deny", "a.test"))
    upstream = talk.connected()
    assert (upstream.sent, upstream.state) == (b"", "closed")
    assert talk.took().startswith(b"HTTP/1.1 403 ")
    assert talk.audit("step", "verdict", "revision") == [("opened", "blocked", 2)]


def test_a_blocked_connection_that_waits_is_let_through_when_policy_allows() -> None:
    talk = Dialogue(rule("deny", "a.test")).secure("a.test:443").receive(GET)
    assert talk.took().startswith(b"HTTP/1.1 403 ")
    talk.bind(ALLOW)
    assert "finish" not in talk.commands
    talk.receive(GET).answer(OK)
    assert talk.took() == OK


def test_a_tunnel_is_revoked() -> None:
    talk = Dialogue(ALLOW).redirected("a.test", 22).receive(b"SSH-2.0-x\r\n")
    talk.bind(rule("deny", "a.test"))
    assert talk.commands[-1] == "reset"
    assert ended(talk) == [("closed", 0, "revoked")]


def test_a_rule_that_expired_says_nothing_any_more() -> None:
    talk = Dialogue(auto=True)
    talk.subject.bind(policy(rule("allow", "a.test", expires_at="2023-11-14T22:14:00Z")))
    talk.secure("a.test:443").receive(GET).answer(OK)
    assert talk.took() == OK
    talk.now += 3600
    talk.subject.bind(talk.subject.policy)  # what a guest does when the time has come
    talk.phase.revise(talk.now)
    assert talk.audit("verdict", "ended")[-1] == ("blocked", "revoked")


# -- chunks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 3, 5, 100])
def test_chunks_in_pieces(size: int) -> None:
    raw = b'4\r\nwiki\r\nA; x="1"\r\npedia in c\r\n0\r\nX: 1\r\n\r\nrest'
    body, got, rest = Chunked(), b"", b""
    for piece in [raw[k : k + size] for k in range(0, len(raw), size)]:
        if body.done:
            rest += piece
            continue
        payload, behind = body.feed(piece)
        got, rest = got + payload, rest + behind
    assert (got, rest, body.trailers, body.done) == (b"wikipedia in c", b"rest", [b"X: 1"], True)


@pytest.mark.parametrize(
    "raw",
    [
        b"1\r\nabc",
        b"g\r\n",
        b"1 \r\na\r\n",
        b"0x1\r\n",
        b"-1\r\n",
        b"1\n",
        b";\r\n",
        b"1;\x00\r\n",
        b"0" * 2000,
    ],
)
def test_malformed_chunks(raw: bytes) -> None:
    with pytest.raises(Malformed):
        Chunked().feed(raw)
