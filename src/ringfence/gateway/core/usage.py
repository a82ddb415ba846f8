"""What a language model's answer cost: tokens, read from the answer while it passes.

Every provider says it in an object under one of few keys (``usage``, ``usageMetadata``), at the end of a JSON body or
in events of a stream. Neither is parsed: in JSON, ``"usage":{`` can only be a key, because a quote inside of a
string is escaped. So the bytes are searched for the key, and what follows is read as one object of bounded size. That
holds for bodies of any length, in any pieces, streamed or not, and never delays a byte.

Streams repeat themselves (Anthropic counts up, Gemini says it in every event), so of one answer the largest number of
each kind counts; on a connection that carries many answers (a WebSocket) they are added up. What an agent made the
model write may hold a ``usage`` of its own, in the arguments of a tool; it can make the count larger, never smaller.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from ringfence.policy.index import Clause, NetworkIndex
from ringfence.policy.model import Effect, RuleRef, Transport
from ringfence.policy.names import LOCALHOST
from ringfence.policy.patterns import parse_resource
from ringfence.policy.rule import Rule

_KEY: Final = re.compile(rb'"usage(?:Metadata|_metadata)?"[ \t\r\n]{0,64}:[ \t\r\n]{0,64}(?=\{)')
_BEGUN: Final = re.compile(rb'"usage[A-Za-z_]{0,9}(?:"[ \t\r\n]{0,64}(?::[ \t\r\n]{0,64})?)?').fullmatch
"""What may still become a key with an object behind it."""
_HINT: Final = b'"usage'
_OBJECT_LIMIT: Final = 4096
"""Bytes of a usage object."""
_MODEL: Final = re.compile(rb'"model(?:Version)?"[ \t\r\n]{0,16}:[ \t\r\n]{0,16}"([!#-\[\]-~]{1,128})"')
_NAME_LIMIT: Final = 256
"""Bytes that such a key and its value may take."""
_MODEL_WITHIN: Final = 16_384
"""Bytes of an answer in which its model is named."""
_IN_A_PATH: Final = re.compile(rb"/models?/(?:[^/?]*/)*?([^/?:]{1,128})(?::|/(?:invoke|converse))").search
_LARGEST: Final = 2**31

_IN: Final = ("input_tokens", "prompt_tokens", "promptTokenCount", "inputTokens")
_BESIDE: Final = (
    # Prompt tokens that the field above leaves out: Anthropic's cache, Bedrock's, Gemini's tools.
    "cache_creation_input_tokens",
    "cache_read_input_tokens",
    "cacheWriteInputTokens",
    "cacheReadInputTokens",
    "toolUsePromptTokenCount",
)
_OUT: Final = ("output_tokens", "completion_tokens", "candidatesTokenCount", "outputTokens")
_THOUGHT: Final = ("thoughtsTokenCount",)
_TOTAL: Final = ("total_tokens", "totalTokenCount", "totalTokens")
_CACHED: Final = ("cache_read_input_tokens", "cacheReadInputTokens", "cachedContentTokenCount")
_DETAILS: Final = ("prompt_tokens_details", "input_tokens_details")

MODEL_HOSTS: Final = (
    "api.anthropic.com",
    "api.openai.com",
    "chatgpt.com",
    "generativelanguage.googleapis.com",
    "aiplatform.googleapis.com",
    "*-aiplatform.googleapis.com",
    "api.groq.com",
    "api.mistral.ai",
    "api.x.ai",
    "openrouter.ai",
    "api.studio.nebius.com",
    "api.studio.nebius.ai",
    "api.tokenfactory.nebius.com",
    "bedrock-runtime.?*.amazonaws.com",
    "api.githubcopilot.com",
    "api.deepseek.com",
    "api.together.xyz",
    "api.fireworks.ai",
    "api.cohere.com",
)
"""Hosts whose answers are counted whatever the rules say, in the language of rules, and ``localhost``, which is a model
on the host. Others are counted where a rule has a budget of tokens.
"""


_index: Final = NetworkIndex(
    Clause(
        rule=Rule(id=host, effect=Effect.ALLOW, resources=(parse_resource(host),)),
        ref=RuleRef(id=host, name=host, origin="", effect=Effect.ALLOW),
        order=0,
    )
    for host in MODEL_HOSTS
)


def counts(host: str) -> bool:
    """Whether answers of this host are counted in any case."""
    return host == LOCALHOST or bool(_index.name(host, 443, Transport.TCP).network)


class Usage(NamedTuple):
    """Tokens of one answer. ``tokens_in`` holds the cached ones, whatever the provider says."""

    tokens_in: int = 0
    tokens_out: int = 0
    tokens_cached: int = 0


class Meter:
    """One answer. ``additive`` is for a connection that carries many."""

    __slots__ = ("_additive", "_carry", "_head", "_looked", "model", "usage")

    def __init__(self, path: bytes, *, additive: bool = False) -> None:
        named = _IN_A_PATH(path)
        self.model = named[1].decode("latin-1") if named else ""
        self.usage = Usage()
        self._additive = additive
        self._carry = b""
        """The end of what was seen, if a key or an object may have begun in it."""
        self._head = b""
        self._looked = bool(named)

    def feed(self, payload: bytes) -> None:
        """Look at a piece of the body."""
        if not self._looked:
            self._look(payload)
        text = self._carry + payload if self._carry else payload
        at = text.find(_HINT)
        while at >= 0:
            key = _KEY.match(text, at)
            if key is None:
                if _BEGUN(text, at):
                    break
                at = text.find(_HINT, at + 1)
                continue
            told = _object(text[key.end() : key.end() + _OBJECT_LIMIT])
            if told is None and len(text) - key.end() < _OBJECT_LIMIT:
                break
            if told is not None:
                self._add(read(told))
            at = text.find(_HINT, key.end())
        self._carry = text[at:] if at >= 0 else text[1 - len(_HINT) :]

    def _look(self, payload: bytes) -> None:
        """Look for the model's name, as long as it may still come."""
        before = len(self._head)
        self._head += payload[: _MODEL_WITHIN - before]
        named = _MODEL.search(self._head, max(before - _NAME_LIMIT, 0))
        if named:
            self.model = named[1].decode("latin-1")
        if named or len(self._head) >= _MODEL_WITHIN:
            self._head, self._looked = b"", True

    def _add(self, more: Usage) -> None:
        known = self.usage
        pairs = zip(known, more, strict=True)
        self.usage = Usage(*(one + other if self._additive else max(one, other) for one, other in pairs))


def read(told: Mapping[str, Any]) -> Usage:
    """Return what a usage object says, in one provider's words or another's."""
    into = _first(told, _IN)
    out = _first(told, _OUT) + _first(told, _THOUGHT)
    beside = sum(_count(told.get(name)) for name in _BESIDE)
    cached = _first(told, _CACHED)
    for name in _DETAILS:
        details = told.get(name)
        if isinstance(details, dict):
            cached = max(cached, _count(details.get("cached_tokens")))
    total = _first(told, _TOTAL)
    # Some leave reasoning out of what came out, and none out of the total.
    return Usage(into + beside, max(out, total - into - beside), cached)


def _object(text: bytes) -> Mapping[str, Any] | None:
    """Return the object that a text begins with, nothing if it does not end there."""
    if b"}" not in text:
        return None
    try:
        told, _ = _DECODER.raw_decode(text.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return None
    return told if isinstance(told, dict) else None


def _short(digits: str) -> int:
    """Read a number of the far side's: none is long."""
    return int(digits) if len(digits) <= len(str(_LARGEST)) else 0


_DECODER: Final = json.JSONDecoder(parse_int=_short)


def _first(told: Mapping[str, Any], names: tuple[str, ...]) -> int:
    return next((_count(told[name]) for name in names if told.get(name) is not None), 0)


def _count(value: object) -> int:
    return value if type(value) is int and 0 < value < _LARGEST else 0
