"""Masks: every form of a value is found, in whatever pieces, and nothing else changes."""

from __future__ import annotations

import base64
import html
import json
import urllib.parse

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringfence.gateway.core.masks import Forms, Mask, forms_of

VALUE = 'sk-"ant"/<b>&+\\~0123456789'
FORMS = Forms([VALUE.encode()])

ECHOES = [
    ("as it is", VALUE),
    ("in a sentence", f"the key {VALUE} is wrong"),
    ("JSON", json.dumps({"key": VALUE})),
    ("JSON of Go", json.dumps(VALUE).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")),
    ("JSON of PHP", json.dumps(VALUE).replace("/", "\\/")),
    ("HTML", html.escape(VALUE)),
    ("percent-encoded", urllib.parse.quote(VALUE, safe="")),
    ("percent-encoded in lower case", urllib.parse.quote(VALUE, safe="").replace("%2F", "%2f").replace("%3C", "%3c")
     .replace("%3E", "%3e").replace("%2B", "%2b").replace("%5C", "%5c")),
    ("percent-encoded throughout", "".join(f"%{byte:02X}" for byte in VALUE.encode())),
    ("hexadecimal", VALUE.encode().hex()),
    ("hexadecimal in upper case", VALUE.encode().hex().upper()),
    ("base64", base64.b64encode(VALUE.encode()).decode()),
    ("base64 behind one byte", base64.b64encode(b"x" + VALUE.encode()).decode()),
    ("base64 behind two bytes", base64.b64encode(b"xy" + VALUE.encode()).decode()),
    ("base64 of Basic credentials", base64.b64encode(b"user:" + VALUE.encode() + b"\n").decode()),
    ("base64 for URLs", base64.urlsafe_b64encode(b"{" + VALUE.encode() + b"}").decode()),
]  # fmt: skip


def masked(forms: Forms, pieces: list[bytes]) -> bytes:
    mask = Mask(forms)
    return b"".join([mask.feed(piece) for piece in pieces] + [mask.finish()])


@pytest.mark.parametrize("echo", [row[1] for row in ECHOES], ids=[row[0] for row in ECHOES])
def test_every_form_is_masked_and_the_length_stays(echo: str) -> None:
    text = echo.encode()
    shown = masked(FORMS, [text])
    assert len(shown) == len(text)
    stars = shown.count(b"*")
    # What base64 shares with its neighbours stays: less than a byte at each end.
    assert stars >= len(VALUE) - 2
    assert not any(form in shown for form in forms_of(VALUE.encode()))
    for start in range(len(text)):
        assert masked(FORMS, [text[:start], text[start:]]) == shown


def test_other_text_is_the_very_same_object() -> None:
    text = b"nothing to see\n"
    assert Mask(FORMS).feed(text) is text


def test_a_line_is_never_delayed() -> None:
    mask = Mask(FORMS)
    assert mask.feed(b'data: {"delta": "sk-"}\n\n') == b'data: {"delta": "sk-"}\n\n'


def test_only_what_could_begin_a_form_is_held_back() -> None:
    mask = Mask(Forms([b"secret-value"]))
    assert mask.feed(b"tell me: secret") == b"tell me: "
    assert mask.feed(b"-agent ") == b"secret-agent "
    assert mask.feed(b"secret-valu") == b""
    assert mask.feed(b"e!") == b"************!"
    assert mask.feed(b"secret") == b""
    assert mask.finish() == b"secret"


def test_short_values_are_not_masked() -> None:
    assert not Forms([b"1234567"])
    assert Forms([b"12345678"])


@given(
    st.lists(st.text(alphabet="ab", min_size=8, max_size=10), min_size=1, max_size=2),
    st.lists(st.text(alphabet="ab*", max_size=12), max_size=12),
)
def test_the_outcome_does_not_depend_on_the_pieces(values: list[str], pieces: list[str]) -> None:
    """Values of two letters overlap with themselves and each other all the time."""
    forms = Forms([value.encode() for value in values])
    text = "".join(pieces).encode()
    wanted = bytearray(text)
    for form in forms.forms:
        for at in range(len(text)):
            if text.startswith(form, at):
                wanted[at : at + len(form)] = b"*" * len(form)
    assert masked(forms, [text]) == wanted
    assert masked(forms, [piece.encode() for piece in pieces]) == wanted
    assert masked(forms, [text[at : at + 1] for at in range(len(text))]) == wanted


@given(st.binary(min_size=8, max_size=40).filter(lambda value: b"\n" not in value), st.binary(max_size=80))
def test_any_value_is_masked_in_any_text(value: bytes, around: bytes) -> None:
    forms = Forms([value])
    text = around + value + around
    shown = masked(forms, [text])
    assert len(shown) == len(text)
    assert shown[len(around) : len(around) + len(value)] == b"*" * len(value)
