"""HTTP/2 towards the origin: one connection for many exchanges, the same strictness, back-pressure, resets with their
codes, and hostile origins."""

from __future__ import annotations

from typing import Any

import h2.errors
import h2.events
import h2.settings
import pytest
from gateway_dialogue import Dialogue, Upstream, rule
from gateway_multiplexed import ALLOW, Talk, peer
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    Frame,
    HeadersFrame,
    PingFrame,
    PushPromiseFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from ringfence.gateway.core.heads2 import parse_response
from ringfence.gateway.core.messages import Malformed, Route
from ringfence.gateway.core.multiplex import WINDOW
from ringfence.gateway.core.origin2 import Origin2

CANCEL, REFUSED, INTERNAL, CALM = (
    int(code)
    for code in (
        h2.errors.ErrorCodes.CANCEL,
        h2.errors.ErrorCodes.REFUSED_STREAM,
        h2.errors.ErrorCodes.INTERNAL_ERROR,
        h2.errors.ErrorCodes.ENHANCE_YOUR_CALM,
    )
)


def ended(talk: Dialogue) -> list[tuple[Any, ...]]:
    """How what was opened was closed."""
    return [row[1:] for row in talk.audit("step", "status", "ended") if row[0] == "closed"]


# -- messages ---------------------------------------------------------------------------------------------------------


def test_a_request_and_its_response() -> None:
    talk = Talk()
    stream = talk.ask(("user-agent", "t"), ("te", "trailers"), ("x-a", "b"), path="/x?q=1")
    (origin,) = talk.origins
    assert list(origin.request().items()) == [
        (":method", "GET"),
        (":scheme", "https"),
        (":authority", "a.test"),
        (":path", "/x?q=1"),
        ("user-agent", "t"),
        ("x-a", "b"),
        ("te", "trailers"),
    ]
    origin.answer(1, 200, ("x-b", "c"), ("alt-svc", "h3"), ("content-length", "2"), body=b"hi")
    assert talk.heard(h2.events.ResponseReceived)[0].headers == [
        (":status", "200"),
        ("x-b", "c"),
        ("content-length", "2"),
    ]
    assert (talk.body(stream), talk.ended(stream)) == (b"hi", True)
    assert talk.audit("step", "protocol", "path", "status", "ended", "dialled", "bytes_in") == [
        ("opened", "h2", "/x", None, None, "203.0.113.9", None),
        ("closed", "h2", "/x", 200, "done", "203.0.113.9", 2),
    ]


def test_streams_of_one_client_share_a_connection() -> None:
    talk = Talk()
    streams = [talk.ask(path=f"/{number}") for number in range(3)]
    (origin,) = talk.origins
    for number in (5, 1, 3):
        origin.answer(number, body=origin.request(number)[":path"].encode())
    assert [talk.body(stream) for stream in streams] == [b"/0", b"/1", b"/2"]
    assert talk.upstreams[0].idle == 1  # once, when nothing was under way any more
    talk.ask()
    assert len(talk.upstreams) == 1


def test_another_connection_is_made_when_the_origin_takes_no_more() -> None:
    talk = Talk()
    talk.ask()
    talk.origins[0].h2.update_settings({h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS: 2})
    talk.exchange()
    talk.ask()
    assert len(talk.upstreams) == 1
    talk.ask()
    assert len(talk.upstreams) == 2
    talk.origins[0].answer(1)
    talk.ask()
    assert len(talk.upstreams) == 2


def test_an_origin_that_chooses_http_1_gets_http_1() -> None:
    talk = Talk(shared=False)
    stream = talk.ask()
    assert talk.asked[0][1].protocol == "h2"
    assert talk.upstreams[0].took() == b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n"
    talk.answer(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")
    talk.exchange()
    assert talk.body(stream) == b"hi"


def test_a_client_of_http_1_is_taken_to_http_1() -> None:
    talk = Dialogue(ALLOW).secure("a.test:443").receive(b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n")
    assert talk.asked[0][1].protocol == "http/1.1"


@pytest.mark.parametrize(
    ("method", "status", "length"),
    [("HEAD", 200, "5"), ("GET", 304, "5"), ("GET", 204, None), ("GET", 200, "0")],
)
@pytest.mark.parametrize("late", [False, True], ids=["at once", "its end comes later"])
def test_responses_without_a_body(method: str, status: int, length: str | None, late: bool) -> None:
    talk = Talk()
    stream = talk.ask(method=method)
    fields = [("content-length", length)] if length is not None else []
    talk.origins[0].answer(1, status, *fields, end=not late)
    if late:
        talk.origins[0].data(1, b"", end=True)
    response = talk.heard(h2.events.ResponseReceived, stream)[0]
    assert dict(response.headers).get("content-length") in (length, None)
    assert (talk.status(stream), talk.body(stream), talk.ended(stream)) == (str(status), b"", True)
    assert ended(talk) == [(status, "done")]
    assert not talk.heard(h2.events.StreamReset)


def test_uploads_with_and_without_length_and_trailers_both_ways() -> None:
    talk = Talk()
    first = talk.ask(("content-length", "3"), method="PUT", body=b"abc")
    second = talk.ask(method="POST", body=b"abc", end=False)
    talk.client.send_headers(second, [("x-sum", "1"), ("content-length", "9")], end_stream=True)
    talk.exchange()
    (origin,) = talk.origins
    assert (origin.request(1)["content-length"], origin.body(1)) == ("3", b"abc")
    assert "content-length" not in origin.request(3)
    assert origin.heard(h2.events.TrailersReceived, 3)[0].headers == [("x-sum", "1")]
    origin.answer(1, body=b"", trailers=(("grpc-status", "0"), ("set-cookie", "no")))
    assert talk.heard(h2.events.TrailersReceived, first)[0].headers == [("grpc-status", "0")]
    origin.answer(3, 200, ("grpc-status", "5"))  # "trailers only" is a head that ends its stream
    assert dict(talk.heard(h2.events.ResponseReceived, second)[0].headers)["grpc-status"] == "5"


def test_an_empty_upload_says_so() -> None:
    talk = Talk()
    talk.ask(method="POST")
    assert talk.origins[0].request()["content-length"] == "0"


def test_interim_responses_and_what_is_expected() -> None:
    talk = Talk()
    stream = talk.ask(("expect", "100-continue"), ("content-length", "2"), method="PUT", end=False)
    (origin,) = talk.origins
    assert origin.request()["expect"] == "100-continue"
    origin.answer(1, 100, end=False)
    origin.answer(1, 103, ("link", "x"), end=False)
    informed = talk.heard(h2.events.InformationalResponseReceived, stream)
    assert [dict(event.headers)[":status"] for event in informed] == ["100", "103"]
    talk.upload(stream, b"hi", end=True)
    assert origin.body() == b"hi"
    origin.answer()
    assert talk.status(stream) == "200"


def test_an_origin_that_answers_instead_of_100() -> None:
    talk = Talk()
    stream = talk.ask(("expect", "100-continue"), ("content-length", "2"), method="PUT", end=False)
    talk.origins[0].answer(1, 417)
    assert (talk.status(stream), talk.ended(stream)) == ("417", True)
    assert talk.origins[0].reset() == 0
    assert ended(talk) == [(417, "done")]


@pytest.mark.parametrize("shared", [True, False], ids=["h2 origin", "http/1.1 origin"])
def test_both_directions_stream_at_once(shared: bool) -> None:
    """gRPC's bidirectional streams: the head comes before the request ends, then they take turns."""
    talk = Talk(shared=shared)
    stream = talk.ask(method="POST", end=False)
    if shared:
        talk.origins[0].answer(1, end=False)
    else:
        talk.answer(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        talk.exchange()
    assert talk.status(stream) == "200"
    for word in (b"one", b"two"):
        talk.upload(stream, word)
        if shared:
            assert talk.origins[0].body().endswith(word)
            talk.origins[0].data(1, word.upper())
        else:
            assert talk.upstreams[0].sent.endswith(b"3\r\n" + word + b"\r\n")
            talk.answer(b"3\r\n" + word.upper() + b"\r\n")
            talk.exchange()
        assert talk.body(stream).endswith(word.upper())
    talk.upload(stream, b"", end=True)
    if shared:
        assert talk.origins[0].heard(h2.events.StreamEnded)
        talk.origins[0].data(1, b"", end=True)
    else:
        assert talk.upstreams[0].sent.endswith(b"0\r\n\r\n")
        talk.answer(b"0\r\n\r\n")
        talk.exchange()
    assert talk.ended(stream)
    assert ended(talk) == [(200, "done")]


def test_a_response_that_is_complete_before_the_upload() -> None:
    talk = Talk()
    stream = talk.ask(method="POST", body=b"begin", end=False)
    talk.origins[0].answer(1, 200, body=b"enough")
    assert (talk.body(stream), talk.ended(stream)) == (b"enough", True)
    assert talk.origins[0].reset() == 0
    talk.upload(stream, b"and so on", end=True)
    assert not talk.heard(h2.events.StreamReset, stream), "it may say all of it, to nobody"
    assert talk.upstreams[0].sent.count(b"and so on") == 0
    talk.ask()
    assert len(talk.upstreams) == 1


def test_a_body_that_trailers_follow_is_given_no_length() -> None:
    """curl, told a length, is content with so many bytes and does not wait for what comes behind them."""
    talk = Talk()
    stream = talk.ask()
    talk.origins[0].answer(1, body=b"a body", trailers=(("x-sum", "1"),))
    (head,) = talk.heard(h2.events.ResponseReceived, stream)
    assert "content-length" not in dict(head.headers)
    (tail,) = talk.heard(h2.events.TrailersReceived, stream)
    assert dict(tail.headers) == {"x-sum": "1"}


def test_an_upload_goes_on_for_so_long_after_its_answer() -> None:
    """A client that reads nothing before it has sent everything still learns that it was refused; for ever it may
    not send.
    """
    talk = Talk(rule("deny", "a.test"), unheard_bytes=40_000)
    stream = talk.ask(method="POST", body=b"begin", end=False)
    assert (talk.status(stream), talk.ended(stream)) == ("403", True)
    for _ in range(2):
        talk.upload(stream, b"x" * 16_000)
    assert not talk.heard(h2.events.StreamReset, stream)
    talk.upload(stream, b"x" * 16_000)
    assert talk.reset(stream) == 0
    assert talk.status(talk.ask()) == "403", "the connection is none the worse"
    assert talk.audit("verdict") == [("blocked",), ("blocked",)]


def test_an_event_is_sent_on_before_the_next_one_arrives() -> None:
    """Server-sent events: what comes in goes out in the same call, whatever speaks on either side."""
    for talk, spoken in ((Talk(), True), (Talk(shared=False), False)):
        stream = talk.ask()
        if spoken:
            talk.origins[0].answer(1, 200, ("content-type", "text/event-stream"), end=False)
        else:
            talk.answer(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
        talk.exchange()
        for word in (b"data: one\n\n", b"data: two\n\n"):
            if spoken:
                frame = DataFrame(1)
                frame.data = word
                talk.origins[0].send(frame.serialize())
            else:
                talk.answer(word)
            assert word in talk.sent, "nothing but the bytes' arrival was needed"
            talk.exchange()
        assert talk.body(stream) == b"data: one\n\ndata: two\n\n"


# -- pressure ---------------------------------------------------------------------------------------------------------


def flood_of_data(talk: Talk, number: int, size: int) -> int:
    """Let the origin send as much as its windows allow; return how much that was."""
    origin, sent = talk.origins[0], 0
    while sent < size:
        room = min(origin.h2.local_flow_control_window(number), 16_384, size - sent)
        if room <= 0:
            break
        origin.h2.send_data(number, b"x" * room)
        sent += room
        talk.exchange()
    return sent


def test_a_client_that_does_not_take_it_stops_the_origin() -> None:
    talk = Talk()
    talk.client.increment_flow_control_window(1 << 20)
    slow, quick = talk.ask(path="/slow"), talk.ask(path="/quick")
    (origin,) = talk.origins
    origin.answer(1, end=False)
    sent = flood_of_data(talk, 1, 10_000_000)
    assert sent <= 65_535 + WINDOW + 16_384  # the client's window, ours, and the read in between
    assert len(talk.body(slow)) == 65_535
    origin.answer(3, body=b"still")  # nobody else waits
    assert talk.body(quick) == b"still"
    for _ in range(60):
        talk.client.increment_flow_control_window(1 << 16, slow)
        talk.exchange()
        sent += flood_of_data(talk, 1, 1_000_000 - sent)
    assert (sent, len(talk.body(slow))) == (1_000_000, 1_000_000)


def test_an_origin_without_a_window_stops_the_client() -> None:
    talk = Talk()
    stream = talk.ask(method="POST", end=False)
    sent = 0
    while (room := min(talk.client.local_flow_control_window(stream), 16_384)) > 0:
        talk.upload(stream, b"x" * room)
        sent += room
    assert sent <= 65_535 + WINDOW + 16_384
    (origin,) = talk.origins
    assert len(origin.body()) == 65_535
    origin.h2.increment_flow_control_window(1 << 20)
    origin.h2.increment_flow_control_window(1 << 20, 1)
    talk.exchange()
    assert len(origin.body()) == sent
    assert talk.client.local_flow_control_window(stream) > 0
    talk.upload(stream, b"y", end=True)
    assert origin.heard(h2.events.StreamEnded)


def test_a_connection_that_is_full_holds_every_stream() -> None:
    talk = Talk()
    talk.ask(method="POST", end=False)
    codec = talk.upstreams[0].codec
    assert codec is not None
    codec.hold(True)
    late = talk.ask(method="POST", end=False)
    talk.origins[0].h2.increment_flow_control_window(1 << 20)
    talk.origins[0].h2.increment_flow_control_window(1 << 20, 3)
    talk.exchange()
    sent = 0
    while (room := min(talk.client.local_flow_control_window(late), 16_384)) > 0:
        talk.upload(late, b"x" * room)
        sent += room
    assert sent == WINDOW
    codec.hold(False)
    talk.exchange()
    assert talk.client.local_flow_control_window(late) > 0


@pytest.mark.parametrize("windows", [1, 16])
def test_what_a_connection_may_hold_is_bounded(windows: int) -> None:
    talk = Dialogue(ALLOW)
    wire = Upstream(talk, Route("a.test", 443, "a.test", 1, "h2"), "203.0.113.9", reused=False)
    Origin2(wire, talk.subject.limits, talk.now, windows=windows)
    origin = peer(client=False)
    origin.receive_data(wire.took())
    assert origin.outbound_flow_control_window == 65_535 + windows * WINDOW
    assert origin.remote_settings.initial_window_size == WINDOW
    assert not origin.remote_settings.enable_push


def test_bytes_that_nobody_took_go_back_to_the_connection() -> None:
    """A hundred abandoned downloads do not starve the next one."""
    talk = Talk()
    for _ in range(100):
        stream = talk.ask()
        number = max(event.stream_id for event in talk.origins[0].heard(h2.events.RequestReceived))
        talk.origins[0].answer(number, end=False)
        assert flood_of_data(talk, number, 100_000) == 100_000
        talk.client.reset_stream(stream, CANCEL)
        talk.exchange()
        talk.client.increment_flow_control_window(65_535)
        talk.exchange()
    assert len(talk.upstreams) == 1


# -- resets and endings -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [CANCEL, INTERNAL, 0xABC])
def test_a_client_that_gives_up_is_heard_by_the_origin(code: int) -> None:
    talk = Talk()
    gone, kept = talk.ask(path="/gone"), talk.ask(path="/kept")
    talk.client.reset_stream(gone, code)
    talk.exchange()
    assert talk.origins[0].reset(1) == code
    talk.origins[0].answer(3, body=b"kept")
    assert talk.body(kept) == b"kept"
    assert ended(talk) == [(0, "client"), (200, "done")]


@pytest.mark.parametrize("begun", [False, True], ids=["before its head", "within its body"])
@pytest.mark.parametrize("code", [CANCEL, INTERNAL, 0xABC])
def test_an_origin_that_gives_up_is_heard_by_the_client(code: int, begun: bool) -> None:
    talk = Talk()
    gone, kept = talk.ask(path="/gone"), talk.ask(path="/kept")
    if begun:
        talk.origins[0].answer(1, body=b"part", end=False)
    talk.origins[0].h2.reset_stream(1, code)
    talk.exchange()
    assert talk.reset(gone) == code
    talk.origins[0].answer(3, body=b"kept")
    assert talk.body(kept) == b"kept"
    assert ended(talk) == [(200 if begun else 0, "upstream"), (200, "done")]
    assert "the origin reset the stream" in next(
        r["text"] for r in talk.records if r.get("ended") == "upstream"
    )


def test_a_reset_behind_the_last_bytes_comes_after_them() -> None:
    talk = Talk()
    stream = talk.ask()
    origin = talk.origins[0]
    origin.h2.send_headers(1, [(":status", "200")])
    origin.h2.send_data(1, b"part")
    origin.h2.reset_stream(1, CANCEL)
    talk.exchange()  # all in one read
    assert (talk.body(stream), talk.reset(stream)) == (b"part", CANCEL)


@pytest.mark.parametrize("body", [None, b"short"], ids=["no body", "a short body"])
def test_a_refused_stream_is_asked_again_once(body: bytes | None) -> None:
    talk = Talk()
    stream = talk.ask(method="POST", body=body)
    talk.origins[0].h2.reset_stream(1, REFUSED)
    talk.exchange()
    assert (talk.commands[-1], talk.said[-1][-1]) == ("request", True)
    assert talk.origins[1].body() == (body or b"")
    assert talk.origins[1].heard(h2.events.StreamEnded)
    talk.origins[1].answer()
    assert talk.status(stream) == "200"
    assert [step for (step,) in talk.audit("step")] == ["opened", "closed"]


def test_a_stream_that_is_refused_twice_is_refused() -> None:
    talk = Talk()
    stream = talk.ask()
    for number in (0, 1):
        talk.origins[number].h2.reset_stream(1, REFUSED)
        talk.exchange()
    assert talk.reset(stream) == REFUSED
    assert len(talk.upstreams) == 2


def test_a_long_upload_is_not_asked_again() -> None:
    talk = Talk(pending_bytes=1000)
    stream = talk.ask(method="POST", body=b"x" * 2000, end=False)
    talk.origins[0].h2.reset_stream(1, REFUSED)
    talk.exchange()
    assert talk.reset(stream) == REFUSED


def test_an_upload_that_waits_for_a_window_goes_on_when_it_is_asked_again() -> None:
    talk = Talk()
    talk.ask(path="/other", method="POST", body=b"x" * 16_384, end=False)
    stream = talk.ask(method="POST", body=b"y" * 16_384, end=False)
    for _ in range(2):
        talk.upload(stream, b"y" * 16_384)
    talk.upload(1, b"x" * 16_384)
    talk.origins[0].h2.reset_stream(3, REFUSED)
    talk.exchange()
    talk.upload(stream, b"end", end=True)
    assert talk.origins[1].body() == b"y" * 49_152 + b"end"


def test_a_goaway_lets_streams_finish_and_asks_the_others_again() -> None:
    talk = Talk()
    first, second = talk.ask(path="/1"), talk.ask(path="/2")
    origin = talk.origins[0]
    origin.h2.send_headers(1, [(":status", "200")])
    origin.send(origin.h2.data_to_send() + b"\0\0\x08\x07\0\0\0\0\0" + (1).to_bytes(4, "big") + bytes(4))
    talk.exchange()
    third = talk.ask(path="/3")
    assert [talk.origins[1].request(number)[":path"] for number in (1, 3)] == ["/2", "/3"]
    origin.h2.send_data(1, b"finished", end_stream=True)
    talk.exchange()
    talk.origins[1].answer(1)
    talk.origins[1].answer(3)
    assert talk.body(first) == b"finished"
    assert (talk.status(second), talk.status(third)) == ("200", "200")
    assert (talk.upstreams[0].state, talk.upstreams[1].state) == ("closed", "open")
    assert [status for status, _ in ended(talk)] == [200, 200, 200]


def test_a_connection_that_breaks_takes_its_streams_along() -> None:
    talk = Talk()
    begun, post = talk.ask(), talk.ask(method="POST", body=b"x")
    talk.origins[0].answer(1, body=b"part", end=False)
    talk.origin_ended(clean=True)
    talk.exchange()
    assert talk.reset(begun) == INTERNAL
    assert talk.status(post) == "502"
    assert ended(talk) == [(200, "upstream"), (502, "upstream")]


def test_a_dead_connection_is_replaced_once_for_what_may_be_asked_again() -> None:
    talk = Talk()
    talk.ask()
    talk.origins[0].answer()
    stream = talk.ask(path="/again")
    talk.origin_ended(clean=False)
    talk.exchange()
    talk.origins[1].answer()
    assert talk.status(stream) == "200"


def test_a_client_that_goes_away_still_gets_what_it_asked_for() -> None:
    """GOAWAY from the client: no new streams, but those that are open."""
    talk = Talk()
    stream = talk.ask()
    talk.receive(b"\0\0\x08\x07\0\0\0\0\0" + bytes(8))
    assert "finish" not in talk.commands
    talk.origins[0].answer(1, body=b"hi")
    assert (talk.body(stream), talk.commands[-1]) == (b"hi", "finish")


# -- policy and time --------------------------------------------------------------------------------------------------


def test_a_policy_that_changes_ends_only_what_it_refuses() -> None:
    talk = Talk()
    kept, gone = talk.ask(path="/kept"), talk.ask(path="/gone")
    talk.bind(ALLOW, rule("deny", "a.test", methods=["ANY"], paths=["/gone"]))
    talk.exchange()
    assert talk.origins[0].reset(3) == CANCEL
    talk.origins[0].answer(1, body=b"kept")
    assert (talk.body(kept), bool(talk.heard(h2.events.StreamReset, gone))) == (b"kept", True)
    assert ended(talk) == [(0, "revoked"), (200, "done")]
    talk.ask(path="/new")
    assert len(talk.upstreams) == 2, "a connection made under another policy carries nothing new"


def test_an_origin_that_does_not_answer_is_a_504_on_its_stream() -> None:
    talk = Talk()
    slow = talk.ask()
    talk.wait(30)
    other = talk.ask()
    talk.wait(31)
    assert talk.phase.deadline == 0.0
    talk.exchange()
    assert talk.status(slow) == "504"
    assert talk.origins[0].reset(1) == CANCEL
    talk.origins[0].answer(3)
    assert talk.status(other) == "200"


def test_an_upload_may_pause_longer_than_a_response() -> None:
    """A stream of messages from the client: the origin owes nothing before its end."""
    talk = Talk()
    stream = talk.ask(method="POST", body=b"one", end=False)
    talk.wait(300)
    talk.upload(stream, b"two", end=True)
    talk.origins[0].answer()
    assert talk.status(stream) == "200"


# -- malformed --------------------------------------------------------------------------------------------------------

BAD_HEADS: list[tuple[str, list[tuple[bytes, bytes]]]] = [
    ("no status", []),
    ("a field first", [(b"x", b"y"), (b":status", b"200")]),
    ("two statuses", [(b":status", b"200"), (b":status", b"200")]),
    ("another pseudo-field", [(b":status", b"200"), (b":path", b"/")]),
    ("a status of words", [(b":status", b"ok!")]),
    ("a status of four digits", [(b":status", b"2000")]),
    ("101", [(b":status", b"101")]),
    ("a capital", [(b":status", b"200"), (b"X-A", b"b")]),
    ("a line break", [(b":status", b"200"), (b"x", b"a\r\nset-cookie: evil")]),
    ("a NUL", [(b":status", b"200"), (b"x", b"a\0")]),
    ("a space in front", [(b":status", b"200"), (b"x", b" a")]),
    ("a space in a name", [(b":status", b"200"), (b"x y", b"a")]),
    ("a field of a connection", [(b":status", b"200"), (b"connection", b"close")]),
    ("a transfer coding", [(b":status", b"200"), (b"transfer-encoding", b"chunked")]),
    ("framing in disguise", [(b":status", b"200"), (b"content_length", b"3")]),
    ("two lengths", [(b":status", b"200"), (b"content-length", b"3"), (b"content-length", b"3")]),
    ("a signed length", [(b":status", b"200"), (b"content-length", b"+3")]),
    ("a length that nobody can count", [(b":status", b"200"), (b"content-length", b"9" * 19)]),
    ("a body where none may be", [(b":status", b"204"), (b"content-length", b"3")]),
    ("201 fields", [(b":status", b"200"), *[(b"x", b"y")] * 201]),
]


@pytest.mark.parametrize("fields", [row[1] for row in BAD_HEADS], ids=[row[0] for row in BAD_HEADS])
def test_heads_refused_rather_than_repaired(fields: list[tuple[bytes, bytes]]) -> None:
    with pytest.raises(Malformed) as refused:
        parse_response(fields, b"GET", False, 200)
    assert refused.value.status == 502


BAD_STREAMS: list[tuple[str, Any]] = [
    ("a malformed head", lambda o: o.answer(1, 200, ("connection", "close"), body=b"x")),
    ("a body that is too long", lambda o: o.answer(1, 200, ("content-length", "1"), body=b"xx")),
    ("a body that is too short", lambda o: o.answer(1, 200, ("content-length", "3"), body=b"xx")),
    (
        "a body that is too short, with trailers",
        lambda o: o.answer(1, 200, ("content-length", "3"), body=b"xx", trailers=(("a", "b"),)),
    ),
    ("a length without a body", lambda o: o.answer(1, 200, ("content-length", "3"))),
    ("malformed trailers", lambda o: o.answer(1, body=b"x", trailers=((":status", "200"),))),
    ("33 interim responses", lambda o: [o.answer(1, 103, end=False) for _ in range(33)]),
]


@pytest.mark.parametrize("say", [row[1] for row in BAD_STREAMS], ids=[row[0] for row in BAD_STREAMS])
def test_what_is_no_response_ends_its_stream_alone(say: Any) -> None:
    talk = Talk()
    bad, good = talk.ask(path="/bad"), talk.ask(path="/good")
    say(talk.origins[0])
    talk.origins[0].answer(3, body=b"good")
    assert talk.body(good) == b"good"
    if talk.heard(h2.events.ResponseReceived, bad):
        assert talk.status(bad) == "502" or talk.heard(h2.events.StreamReset, bad)
    else:
        assert talk.heard(h2.events.StreamReset, bad)
    assert not (talk.ended(bad) and talk.status(bad) == "200")
    assert sorted(how for _, how in ended(talk)) == ["done", "upstream"]


def test_a_body_that_runs_over_is_stopped() -> None:
    talk = Talk()
    stream = talk.ask()
    talk.origins[0].answer(1, 200, ("content-length", "3"), body=b"abc", end=False)
    assert talk.body(stream) == b"abc"
    talk.origins[0].data(1, b"d")
    assert (talk.body(stream), talk.reset(stream)) == (b"abc", INTERNAL)
    assert talk.origins[0].reset(1) == int(h2.errors.ErrorCodes.PROTOCOL_ERROR)


def frame(kind: type[Frame], number: int, *flags: str, **more: Any) -> bytes:
    made = kind(number)
    for flag in flags:
        made.flags.add(flag)
    for name, value in more.items():
        setattr(made, name, value)
    return made.serialize()


HEAD = peer(client=False).encoder.encode([(":status", "200")])

VIOLATIONS: list[tuple[str, bytes]] = [
    ("not HTTP/2", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"),
    ("a push", frame(PushPromiseFrame, 1, "END_HEADERS", promised_stream_id=2, data=HEAD)),
    ("data for a stream that nobody opened", frame(DataFrame, 99, data=b"x")),
    ("data before a head", frame(DataFrame, 1, data=b"x")),
    ("a head for a stream that nobody opened", frame(HeadersFrame, 99, "END_HEADERS", data=HEAD)),
    ("a stream of the origin's own", frame(HeadersFrame, 2, "END_HEADERS", data=HEAD)),
    ("trailers that end nothing", frame(HeadersFrame, 1, "END_HEADERS", data=HEAD) * 2),
    (
        "half a head, then something else",
        frame(HeadersFrame, 1, data=HEAD) + frame(PingFrame, 0, opaque_data=b"x" * 8),
    ),
    ("a CONTINUATION of nothing", frame(ContinuationFrame, 1, "END_HEADERS", data=HEAD)),
    (
        "a flood of CONTINUATIONs (CVE-2024-27316)",
        frame(HeadersFrame, 1, data=b"") + frame(ContinuationFrame, 1, data=b"") * 70,
    ),
    ("an index that does not exist", frame(HeadersFrame, 1, "END_HEADERS", data=b"\xff\xff\x7f")),
    (
        "a list of fields that is too large",
        frame(
            HeadersFrame,
            1,
            "END_HEADERS",
            data=HEAD + (b"\x40\x01x\x7f\x81\x7e" + b"y" * 16_000 + b"\xbe" * 200),
        ),
    ),
    ("a frame that is too large", b"\0\x40\x01\0\0\0\0\0\x01" + bytes(16_385)),
    ("a window beyond all bounds", frame(WindowUpdateFrame, 0, window_increment=(1 << 31) - 1)),
    ("settings that mean nothing", frame(SettingsFrame, 0, settings={4: 1 << 31})),
    ("a flood of pings", frame(PingFrame, 0, opaque_data=b"x" * 8) * 300),
    ("a flood of settings", frame(SettingsFrame, 0) * 300),
    ("a flood of windows", frame(WindowUpdateFrame, 0, window_increment=1) * 300),
    ("a flood of resets", frame(RstStreamFrame, 3, error_code=8) * 300),
    ("a flood of empty data", frame(HeadersFrame, 1, "END_HEADERS", data=HEAD) + frame(DataFrame, 1) * 300),
    ("a flood of unknown frames", b"\0\0\0\xee\0\0\0\0\0" * 300),
]


@pytest.mark.parametrize("raw", [row[1] for row in VIOLATIONS], ids=[row[0] for row in VIOLATIONS])
@pytest.mark.parametrize("pieces", [0, 7])
def test_a_violation_ends_the_connection_and_what_it_carries(raw: bytes, pieces: int) -> None:
    talk = Talk()
    talk.ask()
    talk.ask()
    talk.upstreams[0].took()
    for start in range(0, len(raw), pieces or len(raw)):
        if talk.upstreams[0].state == "open":
            talk.origins[0].send(raw[start : start + (pieces or len(raw))])
    assert talk.upstreams[0].state == "closed"
    talk.exchange()
    assert len(ended(talk)) == 2
    assert {how for _, how in ended(talk)} == {"upstream"}
    assert len(talk.upstreams) == 1
    talk.ask()
    assert len(talk.upstreams) == 2


def test_an_origin_that_is_cut_for_a_flood_is_told_so() -> None:
    talk = Talk()
    stream = talk.ask()
    talk.upstreams[0].took()
    talk.origins[0].send(frame(PingFrame, 0, opaque_data=b"x" * 8) * 300)
    goaway = talk.upstreams[0].sent
    assert goaway.endswith(CALM.to_bytes(4, "big"))
    talk.exchange()
    assert b"a flood of HTTP/2 frames" in talk.body(stream)


def test_pings_of_an_origin_that_is_sent_much_are_answered() -> None:
    """Peers measure their bandwidth with a ping for every burst that they get."""
    talk = Talk()
    stream = talk.ask(method="POST", end=False)
    origin = talk.origins[0]
    for _ in range(400):
        talk.upload(stream, b"x")
        origin.h2.ping(b"12345678")
        talk.exchange()
    assert len(origin.heard(h2.events.PingAckReceived)) == 400


def test_windows_that_change_while_data_waits() -> None:
    """A settings frame moves the windows of all streams, below nothing if need be (section 6.9.2)."""
    talk = Talk()
    stream = talk.ask(method="POST", body=b"x" * 1000, end=False)
    origin = talk.origins[0]
    origin.h2.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 0})
    talk.exchange()
    talk.upload(stream, b"y" * 1000)
    assert len(origin.body()) == 1000
    origin.h2.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 65_535})
    talk.exchange()
    assert origin.body().endswith(b"y" * 1000)
