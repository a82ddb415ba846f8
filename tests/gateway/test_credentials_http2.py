"""Credentials where HTTP/2 is spoken, on both sides or on the client's alone: the same treatment, stream by stream."""

from __future__ import annotations

from collections.abc import Sequence

import h2.events
import pytest
from gateway_dialogue import rule
from gateway_multiplexed import Talk

from ringfence.sandbox.credentials import GITHUB_PLACEHOLDER, SERVICES, Binding

KEY = "sk-ant-REAL-0123456789"
HOST = "api.anthropic.com"


def bindings() -> Sequence[Binding]:
    return [
        Binding(
            name=name,
            targets=SERVICES[name].targets,
            placeholders=tuple({each for _, each in SERVICES[name].variables}),
            values=(("value", value),),
        )
        for name, value in (("anthropic", KEY), ("github", "ghp_REAL0123456789"))
    ]


def talking(*, shared: bool = True) -> Talk:
    talk = Talk(rule("allow", HOST), rule("allow", "evil.test"), host=HOST, shared=shared)
    talk.subject.arm(bindings())
    return talk


def test_a_credential_is_set_on_every_stream_and_never_indexed() -> None:
    talk = talking()
    for _ in range(2):
        stream = talk.ask(("x-api-key", "proxy-managed"), ("x_api_key", "mine"), authority=HOST)
        request = talk.origins[0].heard(h2.events.RequestReceived, stream)[0]
        keys = [field for field in request.headers if field[0].replace("_", "-") == "x-api-key"]
        assert [tuple(field) for field in keys] == [("x-api-key", KEY)]
        assert not getattr(keys[0], "indexable", True), "a table of the connection remembers it"
        talk.origins[0].answer(stream, 200, ("content-type", "text/plain"), body=f"you said {KEY}".encode())
        assert talk.body(stream) == b"you said " + b"*" * len(KEY)
    assert [record["credential"] for record in talk.records] == ["anthropic"] * 4


@pytest.mark.parametrize("size", [1, 3, 100])
def test_an_echo_split_between_frames(size: int) -> None:
    talk = talking()
    stream = talk.ask(authority=HOST)
    origin = talk.origins[0]
    origin.answer(stream, 200, ("content-type", "text/event-stream"), end=False)
    text = f"data: {KEY}\n\n".encode()
    for at in range(0, len(text), size):
        origin.data(stream, text[at : at + size])
    origin.data(stream, b"", end=True)
    assert talk.body(stream) == b"data: " + b"*" * len(KEY) + b"\n\n"
    assert talk.ended(stream)


def test_heads_and_trailers_that_echo() -> None:
    talk = talking()
    stream = talk.ask(authority=HOST)
    talk.origins[0].answer(stream, 200, ("x-echo", KEY), body=b"x\n", trailers=(("x-sum", KEY),))
    head = dict(talk.heard(h2.events.ResponseReceived, stream)[0].headers)
    trailers = dict(talk.heard(h2.events.TrailersReceived, stream)[0].headers)
    assert (head["x-echo"], trailers["x-sum"]) == ("*" * len(KEY), "*" * len(KEY))


def test_misuse_refuses_one_stream_and_no_other() -> None:
    talk = talking()
    good = talk.ask(authority=HOST)
    bad = talk.ask(("x-token", GITHUB_PLACEHOLDER), authority=HOST)
    assert talk.status(bad) == "403"
    talk.origins[0].answer(good, 200, body=b"hi")
    assert talk.status(good) == "200"
    assert len(talk.origins[0].heard(h2.events.RequestReceived)) == 1


def test_misuse_in_a_body_ends_the_request_before_it_is_one() -> None:
    talk = talking()
    stream = talk.ask(method="POST", authority=HOST, end=False)
    half = len(GITHUB_PLACEHOLDER) // 2
    talk.upload(stream, GITHUB_PLACEHOLDER[:half].encode())
    talk.upload(stream, GITHUB_PLACEHOLDER[half:].encode())
    assert talk.status(stream) == "403"
    assert talk.origins[0].body(stream) == GITHUB_PLACEHOLDER[:half].encode()
    assert not talk.origins[0].heard(h2.events.StreamEnded)
    assert talk.audit("step", "verdict", "reason")[-1] == ("closed", "blocked", "guard")


def test_an_origin_that_speaks_http_1_gets_the_same() -> None:
    talk = talking(shared=False)
    talk.ask(("x-api-key", "proxy-managed"), authority=HOST)
    assert f"\r\nx-api-key: {KEY}\r\n".encode() in talk.upstreams[0].took()


def test_tokens_of_a_streamed_answer() -> None:
    talk = talking()
    stream = talk.ask(method="POST", authority=HOST, path="/v1/messages", body=b"{}")
    origin = talk.origins[0]
    assert origin.request(stream)["accept-encoding"] == "identity"
    origin.answer(stream, 200, ("content-type", "text/event-stream"), end=False)
    start = b'data: {"message":{"model":"claude-x","usage":{"input_tokens":25,"output_tokens":1}}}\n\n'
    origin.data(stream, start)
    assert talk.body(stream) == start, "an event is not delayed"
    origin.data(stream, b'data: {"usage":{"output_tokens":15}}\n\n', end=True)
    assert talk.audit("model", "tokens_in", "tokens_out")[-1] == ("claude-x", 25, 15)
