"""HTTP/2 towards the client: streams become exchanges under the same rules, floods are cut, pressure is passed on."""

from __future__ import annotations

from typing import Any

import h2.config
import h2.connection
import h2.events
import h2.settings
import pytest
from gateway_dialogue import Dialogue, rule

from ringfence.gateway.core.heads2 import parse_head, parse_response
from ringfence.gateway.core.messages import Malformed

ALLOW = rule("allow", "a.test")
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-A: b\r\n\r\nhi"


class H2Talk(Dialogue):
    """A dialogue whose client speaks HTTP/2; ``client`` checks nothing that it sends."""

    def __init__(self, *rules: Any, host: str = "a.test", **limits: float) -> None:
        super().__init__(*(rules or (ALLOW,)), **limits)
        self.secure(f"{host}:443", protocol="h2")
        config = h2.config.H2Configuration(
            client_side=True,
            header_encoding="utf-8",
            validate_outbound_headers=False,
            normalize_outbound_headers=False,
        )
        self.client = h2.connection.H2Connection(config=config)
        self.client.initiate_connection()
        self.events: list[h2.events.Event] = []
        self.flush()

    def flush(self) -> list[h2.events.Event]:
        """Exchange bytes until both sides are quiet; return what the client heard."""
        heard: list[h2.events.Event] = []
        while True:
            out = self.client.data_to_send()
            if out:
                self.receive(out)
            back = self.took()
            if back:
                heard += self.client.receive_data(back)
            if not out and not back:
                break
        self.events += heard
        return heard

    def ask(self, *more: tuple[str, str], body: bytes | None = None, **pseudo: str) -> int:
        """Send a request; return its stream."""
        stream = self.client.get_next_available_stream_id()
        head = {"method": "GET", "authority": "a.test", "scheme": "https", "path": "/", **pseudo}
        fields = [(f":{name}", value) for name, value in head.items()] + list(more)
        self.client.send_headers(stream, fields, end_stream=body is None)
        if body is not None:
            self.client.send_data(stream, body, end_stream=True)
        self.flush()
        return stream

    def status(self, stream: int) -> str:
        return next(
            dict(event.headers)[":status"]
            for event in self.events
            if isinstance(event, h2.events.ResponseReceived) and event.stream_id == stream
        )

    def body(self, stream: int) -> bytes:
        return b"".join(
            e.data for e in self.events if isinstance(e, h2.events.DataReceived) and e.stream_id == stream
        )

    def heard(self, kind: type[h2.events.Event]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]


def test_a_request_and_its_response() -> None:
    talk = H2Talk()
    stream = talk.ask(("user-agent", "t"), ("cookie", "a=1"), ("cookie", "b=2"), path="/x?q=1")
    assert talk.upstreams[0].took() == (
        b"GET /x?q=1 HTTP/1.1\r\nHost: a.test\r\nuser-agent: t\r\ncookie: a=1; b=2\r\n\r\n"
    )
    talk.answer(OK)
    talk.flush()
    response = talk.heard(h2.events.ResponseReceived)[0]
    assert response.headers == [(":status", "200"), ("x-a", "b"), ("content-length", "2")]
    assert (talk.body(stream), talk.upstreams[0].state) == (b"hi", "released")
    assert talk.audit("step", "protocol", "method", "path", "status", "ended", "inspected") == [
        ("opened", "h2", "GET", "/x", None, None, True),
        ("closed", "h2", "GET", "/x", 200, "done", True),
    ]


def test_a_blocked_host_answers_403_on_every_stream() -> None:
    talk = H2Talk(ALLOW, host="b.test")
    streams = [talk.ask(authority="b.test", method=method) for method in ("GET", "HEAD", "POST")]
    assert [talk.status(stream) for stream in streams] == ["403", "403", "403"]
    assert talk.body(streams[0]).startswith(b"Blocked by network policy: domain b.test:443\n")
    assert talk.body(streams[1]) == b""
    assert talk.dialled == 0
    assert talk.audit("verdict", "status", "protocol") == [("blocked", 403, "h2")] * 3


def test_a_client_that_accepts_json_gets_a_problem() -> None:
    talk = H2Talk(ALLOW, host="b.test")
    stream = talk.ask(("accept", "application/json"), authority="b.test")
    assert b'"decision": "00000000-00000001"' in talk.body(stream)
    assert b'"detail": "Blocked by network policy: domain b.test:443"' in talk.body(stream)


def test_streams_are_independent() -> None:
    talk = H2Talk()
    first, second = talk.ask(path="/1"), talk.ask(path="/2")
    talk.answer(OK.replace(b"hi", b"22"), upstream=1)
    talk.answer(OK.replace(b"hi", b"11"), upstream=0)
    talk.flush()
    assert (talk.body(first), talk.body(second)) == (b"11", b"22")


MISDIRECTED: list[tuple[str, dict[str, str], list[tuple[str, str]]]] = [
    ("another authority (TLS-09, coalescing)", {"authority": "b.test"}, []),
    ("another port", {"authority": "a.test:8443"}, []),
    ("another scheme", {"scheme": "http"}, []),
]


@pytest.mark.parametrize(
    ("pseudo", "more"), [row[1:] for row in MISDIRECTED], ids=[row[0] for row in MISDIRECTED]
)
def test_a_stream_that_names_something_else_is_misdirected_alone(
    pseudo: dict[str, str], more: list[tuple[str, str]]
) -> None:
    talk = H2Talk(rule("allow", "a.test", "b.test"))
    good, bad = talk.ask(), talk.ask(*more, **pseudo)
    talk.answer(OK)
    talk.flush()
    assert (talk.status(good), talk.status(bad)) == ("200", "421")
    assert talk.dialled == 1
    assert ("blocked", "guard", 421) in talk.audit("verdict", "reason", "status")


REFUSED_HEADS: list[tuple[str, list[tuple[bytes, bytes]], int]] = [
    ("a line break in a value", [(b"x", b"a\r\nHost: evil")], 400),
    ("a NUL", [(b"x", b"a\0")], 400),
    ("a space before the value", [(b"x", b" a")], 400),
    ("a capital in a name", [(b"X", b"a")], 400),
    ("a space in a name", [(b"x y", b"a")], 400),
    ("a colon in a name", [(b"x:", b"a")], 400),
    ("two lengths", [(b"content-length", b"0"), (b"content-length", b"0")], 400),
    ("a signed length", [(b"content-length", b"+0")], 400),
    ("a length without a body", [(b"content-length", b"3")], 400),
    ("another Host", [(b"host", b"b.test")], 400),
    ("a framing field in disguise", [(b"transfer_encoding", b"chunked")], 400),
    ("CONNECT", [(b":method", b"CONNECT")], 405),
    ("a lower-case method", [(b":method", b"get")], 501),
    ("a space in the path", [(b":path", b"/a b")], 400),
    ("a line break in the path", [(b":path", b"/a HTTP/1.1\r\nHost: evil\r\n")], 400),
    ("a fragment", [(b":path", b"/a#b")], 400),
    ("an absolute path", [(b":path", b"https://a.test/")], 400),
    ("no path", [(b":path", b"")], 400),
    ("201 fields", [(b"x", b"y")] * 201, 431),
]


@pytest.mark.parametrize(
    ("fields", "status"), [row[1:] for row in REFUSED_HEADS], ids=[row[0] for row in REFUSED_HEADS]
)
def test_heads_refused_rather_than_repaired(fields: list[tuple[bytes, bytes]], status: int) -> None:
    head = {b":method": b"GET", b":authority": b"a.test", b":scheme": b"https", b":path": b"/"}
    head.update({name: value for name, value in fields if name.startswith(b":")})
    with pytest.raises(Malformed) as refused:
        parse_head([*head.items(), *[pair for pair in fields if pair[0][:1] != b":"]], True, 200)
    assert refused.value.status == status


MALFORMED: list[tuple[str, list[tuple[str, str]]]] = [
    ("two paths", [(":path", "/evil")]),
    ("a pseudo-field behind others", [("x", "y"), (":authority", "a.test")]),
    ("a field of a connection", [("connection", "close")]),
    ("a transfer coding", [("transfer-encoding", "chunked")]),
    ("an unknown pseudo-field", [(":evil", "x")]),
    ("extended CONNECT (RFC 8441)", [(":protocol", "websocket")]),
    ("a TE of transfer codings", [("te", "gzip")]),
]


@pytest.mark.parametrize("more", [row[1] for row in MALFORMED], ids=[row[0] for row in MALFORMED])
def test_a_malformed_head_ends_its_stream_alone_and_is_on_record(more: list[tuple[str, str]]) -> None:
    talk = H2Talk()
    good = talk.ask()
    bad = talk.ask(*more)
    talk.answer(OK)
    talk.flush()
    assert (talk.status(good), talk.status(bad)) == ("200", "400")
    assert talk.audit("step", "verdict", "reason", "status")[1] == ("opened", "blocked", "failure", 400)
    assert talk.dialled == 1


def test_what_is_plain_in_a_response_is_not_plain_in_a_request() -> None:
    """Both remember what they have seen, and neither believes the other."""
    said = [(b":status", b"200"), (b"host", b"evil.test"), (b"x-http-method-override", b"DELETE")]
    for _ in range(2):
        assert len(parse_response(said, b"GET", True, 200).lines) == 2
    head = [(b":method", b"GET"), (b":authority", b"a.test"), (b":scheme", b"https"), (b":path", b"/")]
    for _ in range(2):
        assert parse_head([*head, (b"alt-svc", b"h3"), (b"x", b"y")], True, 200).lines == [
            b"alt-svc: h3",
            b"x: y",
        ]
        with pytest.raises(Malformed):
            parse_head([*head, (b"host", b"evil.test")], True, 200)
        assert parse_head([*head, said[2]], True, 200).overrides == [b"x-http-method-override: DELETE"]
    said.append((b"alt-svc", b"h3"))
    assert b"alt-svc: h3" not in parse_response(said, b"GET", True, 200).lines


WRONG_LENGTHS: list[tuple[str, bytes, list[tuple[str, str]]]] = [
    ("too short", b"ab", []),
    ("too short, with trailers", b"ab", [("x-sum", "1")]),
    ("too long", b"abcd", []),
    ("too long, with trailers", b"abcd", [("x-sum", "1")]),
]


@pytest.mark.parametrize(
    ("body", "trailers"), [row[1:] for row in WRONG_LENGTHS], ids=[row[0] for row in WRONG_LENGTHS]
)
def test_an_upload_that_is_not_as_long_as_it_says_poisons_no_connection(
    body: bytes, trailers: list[tuple[str, str]]
) -> None:
    """A pooled HTTP/1 connection that still waits for the rest would take the next request's head for it."""
    talk = H2Talk()
    stream = talk.client.get_next_available_stream_id()
    head = [(":method", "POST"), (":authority", "a.test"), (":scheme", "https"), (":path", "/")]
    talk.client.send_headers(stream, [*head, ("content-length", "3")])
    talk.client.send_data(stream, body, end_stream=not trailers)
    if trailers:
        talk.client.send_headers(stream, trailers, end_stream=True)
    talk.flush()
    assert talk.upstreams[0].state == "closed"
    assert not talk.upstreams[0].took().endswith(b"abcd")
    assert talk.audit("step", "ended")[-1] == ("closed", "client")
    assert talk.ask() == stream + 2
    assert "finish" not in talk.commands


def test_a_request_that_is_reset_in_the_same_breath() -> None:
    """Its stream is gone when it is looked at: it is decided and recorded, and disturbs nobody."""
    for host in ("a.test", "b.test"):
        talk = H2Talk(ALLOW, host=host)
        stream = talk.client.get_next_available_stream_id()
        head = [(":method", "GET"), (":authority", host), (":scheme", "https"), (":path", "/")]
        talk.client.send_headers(stream, head, end_stream=True)
        talk.client.reset_stream(stream)
        talk.flush()
        assert len([record for record in talk.records if record["step"] == "opened"]) == 1
        assert talk.ask(authority=host) == stream + 2
        assert "finish" not in talk.commands


def test_a_frame_that_would_be_too_large_is_not_waited_for() -> None:
    talk = H2Talk()
    talk.receive(b"\xff\xff\xff\x00\x00\x00\x00\x00\x01")
    assert talk.commands[-1] == "finish"
    assert "FrameTooLargeError" in talk.records[-1]["text"]


def test_an_upload_with_and_without_a_length() -> None:
    talk = H2Talk()
    talk.ask(("content-length", "3"), body=b"abc", method="PUT")
    assert talk.upstreams[0].took() == b"PUT / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 3\r\n\r\nabc"
    talk.ask(body=b"abc", method="PUT")
    assert talk.upstreams[1].took() == (
        b"PUT / HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
    )


def test_trailers_pass_both_ways() -> None:
    talk = H2Talk()
    stream = talk.client.get_next_available_stream_id()
    head = [
        (":method", "POST"),
        (":authority", "a.test"),
        (":scheme", "https"),
        (":path", "/"),
        ("te", "trailers"),
    ]
    talk.client.send_headers(stream, head)
    talk.client.send_data(stream, b"x")
    talk.client.send_headers(stream, [("x-sum", "1"), ("content-length", "9")], end_stream=True)
    talk.flush()
    assert talk.upstreams[0].took().endswith(b"1\r\nx\r\n0\r\nx-sum: 1\r\n\r\n")
    talk.answer(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nGrpc-Status: 0\r\n\r\n"
    )
    talk.flush()
    assert talk.body(stream) == b"hi"
    assert talk.heard(h2.events.TrailersReceived)[0].headers == [("grpc-status", "0")]


def test_interim_responses_and_streamed_bodies() -> None:
    talk = H2Talk()
    stream = talk.ask()
    talk.answer(
        b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    talk.flush()
    assert len(talk.heard(h2.events.InformationalResponseReceived)) == 1
    talk.answer(b"3\r\nabc\r\n")
    talk.flush()
    assert talk.body(stream) == b"abc"
    talk.answer(b"0\r\n\r\n")
    talk.flush()
    assert len(talk.heard(h2.events.StreamEnded)) == 1


def test_a_large_body_waits_for_the_clients_window() -> None:
    talk = H2Talk()
    stream = talk.ask()
    talk.answer(b"HTTP/1.1 200 OK\r\nContent-Length: 200000\r\n\r\n" + b"x" * 100_000)
    talk.flush()
    assert len(talk.body(stream)) == 65_535
    assert "upstream.pause" in talk.commands
    talk.client.increment_flow_control_window(1 << 20)
    talk.client.increment_flow_control_window(1 << 20, stream)
    talk.flush()
    assert talk.commands[-1] == "upstream.resume"
    talk.answer(b"x" * 100_000)
    talk.flush()
    assert len(talk.body(stream)) == 200_000
    assert len(talk.heard(h2.events.StreamEnded)) == 1


def test_an_upload_that_the_origin_does_not_take_is_not_acknowledged() -> None:
    talk = H2Talk()
    stream = talk.client.get_next_available_stream_id()
    head = [(":method", "POST"), (":authority", "a.test"), (":scheme", "https"), (":path", "/")]
    talk.client.send_headers(stream, head)
    talk.flush()
    exchange, _ = talk.asked[0]
    exchange.hold(True)
    sent = 0
    while (room := min(talk.client.local_flow_control_window(stream), 16_384)) > 0:
        talk.client.send_data(stream, b"x" * room)
        sent += room
        talk.flush()
    assert sent == 262_144
    exchange.hold(False)
    talk.flush()
    assert talk.client.local_flow_control_window(stream) > 0


def test_a_truncated_body_is_a_reset_stream() -> None:
    talk = H2Talk()
    talk.ask()
    talk.answer(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nx")
    talk.origin_ended(clean=False)
    talk.flush()
    assert len(talk.heard(h2.events.StreamReset)) == 1
    assert talk.audit("step", "ended")[-1] == ("closed", "upstream")
    talk.ask(path="/again")
    assert talk.dialled == 2


def test_a_stream_that_the_client_resets_takes_its_request_with_it() -> None:
    talk = H2Talk()
    stream = talk.ask()
    talk.client.reset_stream(stream)
    talk.flush()
    assert talk.upstreams[0].state == "closed"
    assert talk.audit("step", "ended")[-1] == ("closed", "client")


FLOODS: list[tuple[str, Any]] = [
    ("pings", lambda talk: talk.client.ping(b"12345678")),
    (
        "settings",
        lambda talk: talk.client.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 70_000}),
    ),
    ("rapid resets (CVE-2023-44487)", lambda talk: talk.client.reset_stream(talk.ask())),
]


@pytest.mark.parametrize("flood", [row[1] for row in FLOODS], ids=[row[0] for row in FLOODS])
def test_a_flood_is_cut(flood: Any) -> None:
    talk = H2Talk(floods=20)
    for _ in range(40):
        if "finish" in talk.commands:
            break
        flood(talk)
        talk.flush()
    assert talk.commands[-1] == "finish"
    assert talk.records[-1]["text"] == "a flood of HTTP/2 frames"
    assert all(upstream.state == "closed" for upstream in talk.upstreams)
    assert sum(record["step"] == "opened" for record in talk.records) <= 22


def test_more_streams_than_allowed_are_a_violation() -> None:
    talk = H2Talk(streams=3)
    talk.client.remote_settings.update({h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS: 100})
    talk.client.remote_settings.acknowledge()
    for _ in range(4):
        talk.ask()
    assert talk.dialled == 3
    assert talk.commands[-1] == "finish"


def test_a_policy_that_changes_ends_streams_and_the_connection() -> None:
    talk = H2Talk()
    talk.ask()
    talk.answer(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nx")
    talk.bind(rule("deny", "a.test"))
    talk.flush()
    assert talk.audit("step", "ended")[-1] == ("closed", "revoked")
    assert talk.commands[-1] == "finish"
    assert talk.upstreams[0].state == "closed"


def test_a_waiting_connection_is_revoked() -> None:
    talk = H2Talk()
    talk.ask()
    talk.answer(OK)
    talk.bind(rule("deny", "a.test"))
    assert talk.audit("step", "verdict", "ended")[-1] == ("opened", "blocked", "revoked")
    assert talk.commands[-1] == "finish"


def test_requests_that_a_new_policy_refuses_end_alone() -> None:
    talk = H2Talk()
    kept, gone = talk.ask(path="/kept"), talk.ask(path="/gone")
    talk.bind(ALLOW, rule("deny", "a.test", methods=["ANY"], paths=["/gone"]))
    talk.answer(OK, upstream=0)
    talk.flush()
    assert talk.status(kept) == "200"
    assert [event.stream_id for event in talk.heard(h2.events.StreamReset)] == [gone]


def test_an_idle_connection_says_goodbye() -> None:
    talk = H2Talk()
    talk.ask()
    talk.answer(OK)
    talk.flush()
    talk.wait(1)
    talk.wait(601)
    talk.flush()
    assert talk.heard(h2.events.ConnectionTerminated)
    assert talk.commands[-1] == "finish"


def test_a_client_that_does_not_take_a_whole_response_is_reset() -> None:
    talk = H2Talk()
    talk.ask()
    talk.answer(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + b"x" * 100_000)
    talk.flush()
    talk.wait(1)
    talk.wait(601)
    assert talk.phase.deadline > 0
    talk.flush()
    assert len(talk.heard(h2.events.StreamReset)) == 1


def test_a_slow_client_stops_everything() -> None:
    talk = H2Talk()
    talk.ask()
    talk.phase.filled()
    talk.phase.drained(talk.now)
    assert talk.commands[-4:] == ["pause", "upstream.pause", "resume", "upstream.resume"]


def test_a_client_that_never_asks_is_on_record_if_it_was_blocked() -> None:
    talk = H2Talk(ALLOW, host="b.test")
    talk.phase.lost(talk.now)
    assert talk.audit("verdict", "host") == [("blocked", "b.test")]
