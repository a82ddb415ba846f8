"""Token accounting: answers as the providers write them, whole and streamed, in any pieces."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringfence.gateway.core.usage import Meter, Usage, counts


def events(*payloads: object) -> bytes:
    return b"".join(b"data: " + json.dumps(each).encode() + b"\n\n" for each in payloads)


ANTHROPIC = json.dumps(
    {
        "id": "msg_01",
        "type": "message",
        "role": "assistant",
        "model": "claude-sonnet-4-5",
        "content": [{"type": "text", "text": 'say "usage": {"input_tokens": 9999}'}],
        "usage": {
            "input_tokens": 10,
            "cache_creation_input_tokens": 3,
            "cache_read_input_tokens": 2000,
            "output_tokens": 25,
            "service_tier": "standard",
        },
    }
).encode()
ANTHROPIC_STREAM = b"event: message_start\n" + events(
    {
        "type": "message_start",
        "message": {
            "id": "msg_01",
            "model": "claude-opus-4-1",
            "usage": {"input_tokens": 25, "output_tokens": 1},
        },
    },
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "hello"}},
    {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 15}},
    {"type": "message_stop"},
)
OPENAI = b"""{
  "id": "chatcmpl-1", "object": "chat.completion", "model": "gpt-4o-mini-2024-07-18",
  "choices": [{"index": 0, "message": {"role": "assistant", "content": "hi"}}],
  "usage": {"prompt_tokens": 19, "completion_tokens": 10, "total_tokens": 29,
            "prompt_tokens_details": {"cached_tokens": 16}, "completion_tokens_details": {"reasoning_tokens": 4}}
}"""
OPENAI_STREAM = (
    events(
        {"model": "gpt-4o", "choices": [{"delta": {"content": "h"}}], "usage": None},
        {
            "model": "gpt-4o",
            "choices": [],
            "usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10},
        },
    )
    + b"data: [DONE]\n\n"
)
RESPONSES_STREAM = events(
    {"type": "response.created", "response": {"model": "gpt-5", "usage": None}},
    {"type": "response.output_text.delta", "delta": "x" * 200},
    {
        "type": "response.completed",
        "response": {
            "model": "gpt-5",
            "output": [],
            "usage": {
                "input_tokens": 37,
                "input_tokens_details": {"cached_tokens": 5},
                "output_tokens": 11,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": 48,
            },
        },
    },
)
GEMINI = json.dumps(
    {
        "candidates": [{"content": {"parts": [{"text": "hi"}]}}],
        "usageMetadata": {
            "promptTokenCount": 8,
            "candidatesTokenCount": 5,
            "thoughtsTokenCount": 40,
            "cachedContentTokenCount": 2,
            "totalTokenCount": 53,
        },
        "modelVersion": "gemini-2.5-pro",
    },
    indent=2,
).encode()
GEMINI_STREAM = b"[" + b",\r\n".join(
    json.dumps({"candidates": [], "usageMetadata": {"promptTokenCount": 8, "candidatesTokenCount": count}}).encode()
    for count in (1, 5, 9)
) + b"]"  # fmt: skip
XAI = b'{"model":"grok-4","usage":{"prompt_tokens":10,"completion_tokens":3,"total_tokens":113}}'
CONVERSE = (
    b'{"output":{},"usage":{"inputTokens":30,"outputTokens":4,"cacheReadInputTokens":100,"totalTokens":134}}'
)

ANSWERS: list[tuple[str, bytes, bytes, str, tuple[int, int, int]]] = [
    ("Anthropic", b"/v1/messages", ANTHROPIC, "claude-sonnet-4-5", (2013, 25, 2000)),
    ("Anthropic, streamed", b"/v1/messages", ANTHROPIC_STREAM, "claude-opus-4-1", (25, 15, 0)),
    ("OpenAI", b"/v1/chat/completions", OPENAI, "gpt-4o-mini-2024-07-18", (19, 10, 16)),
    ("OpenAI, streamed", b"/v1/chat/completions", OPENAI_STREAM, "gpt-4o", (7, 3, 0)),
    ("OpenAI's responses, streamed", b"/v1/responses", RESPONSES_STREAM, "gpt-5", (37, 11, 5)),
    ("Gemini", b"/v1beta/models/gemini-2.5-pro:generateContent", GEMINI, "gemini-2.5-pro", (8, 45, 2)),
    ("Gemini, a streamed array", b"/v1beta/models/gemini-2.0-flash:streamGenerateContent?alt=json", GEMINI_STREAM,
     "gemini-2.0-flash", (8, 9, 0)),
    ("xAI leaves reasoning out", b"/v1/chat/completions", XAI, "grok-4", (10, 103, 0)),
    ("Bedrock", b"/model/anthropic.claude-v2%3A1/converse", CONVERSE, "anthropic.claude-v2%3A1", (130, 4, 100)),
]  # fmt: skip


@pytest.mark.parametrize(
    ("path", "answer", "model", "usage"), [row[1:] for row in ANSWERS], ids=[row[0] for row in ANSWERS]
)
def test_an_answer_says_its_model_and_its_tokens(
    path: bytes, answer: bytes, model: str, usage: tuple[int, int, int]
) -> None:
    for size in (1, 7, 100, len(answer)):
        meter = Meter(path)
        for at in range(0, len(answer), size):
            meter.feed(answer[at : at + size])
        assert (meter.model, meter.usage) == (model, usage)


NOTHING = [
    b"",
    b"usage",
    b'{"usage":',
    b'{"usage": 5}',
    b'{"usage": {"input_tokens": -5, "output_tokens": true}}',
    b'{"usage": {"input_tokens": 1e9, "output_tokens": "7"}}',
    b'{"usage": {"input_tokens": 99999999999999999999999}}',
    b'{"usage": {"input_tokens": ' + b"9" * 5000 + b"}}",
    b'{"usage": ' + b'{"a":' * 2000 + b"1" + b"}" * 2000,
    b'{"usage": {"a": ' + b"[" * 4000 + b"]" * 4000 + b"}}",
    b'{"text": "\\"usage\\": {\\"input_tokens\\": 5}"}',
    b'"usage"' + b" " * 500 + b':{"input_tokens":5}',
]


@pytest.mark.parametrize("answer", NOTHING)
def test_what_is_no_usage_counts_nothing(answer: bytes) -> None:
    meter = Meter(b"/v1/messages")
    meter.feed(answer)
    assert meter.usage == Usage()


def test_a_hostile_answer_costs_bounded_memory() -> None:
    meter = Meter(b"/v1/messages")
    for _ in range(200):
        meter.feed(b'"usage":{' + b'"a":1,' * 2000)
        assert len(meter._carry) + len(meter._head) < 40_000
    meter.feed(b'}"usage":{"input_tokens":5}')
    assert meter.usage.tokens_in == 5


def test_what_a_model_was_made_to_write_never_makes_it_less() -> None:
    """The arguments of a tool are JSON of the agent's choosing, before or behind the true usage."""
    forged = b'{"content":[{"type":"tool_use","input":{"usage":{"input_tokens":1}}}],'
    meter = Meter(b"/v1/messages")
    meter.feed(forged + b'"usage":{"input_tokens":50,"output_tokens":6},"x":{"usage":{"output_tokens":1}}}')
    assert meter.usage == Usage(50, 6, 0)


def test_on_a_connection_with_many_answers_they_add_up() -> None:
    meter = Meter(b"/v1/realtime", additive=True)
    for _ in range(3):
        meter.feed(
            b'\x81\x7e..{"type":"response.done","response":{"usage":{"input_tokens":5,"output_tokens":2}}}'
        )
    assert meter.usage == Usage(15, 6, 0)


@given(st.sampled_from([row[1:] for row in ANSWERS]), st.lists(st.integers(1, 400), max_size=40))
def test_pieces_do_not_matter(row: tuple[bytes, bytes, str, tuple[int, int, int]], sizes: list[int]) -> None:
    path, answer, model, usage = row
    meter = Meter(path)
    for size in [*sizes, len(answer)]:
        meter.feed(answer[:size])
        answer = answer[size:]
    assert (meter.model, meter.usage) == (model, usage)


@given(st.lists(st.binary(max_size=60), max_size=10))
def test_any_bytes_are_taken(pieces: list[bytes]) -> None:
    meter = Meter(b"/")
    for piece in pieces:
        meter.feed(piece)


HOSTS = [
    ("api.anthropic.com", True),
    ("bedrock-runtime.eu-west-1.amazonaws.com", True),
    ("europe-west4-aiplatform.googleapis.com", True),
    ("localhost", True),
    ("api.anthropic.com.evil.test", False),
    ("pypi.org", False),
]


@pytest.mark.parametrize(("host", "counted"), HOSTS)
def test_whose_answers_are_counted(host: str, counted: bool) -> None:
    assert counts(host) is counted
