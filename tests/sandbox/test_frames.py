"""The frame codec: whatever the chunks, the same frames; whatever the bytes, frames or one error."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringfence.sandbox.frames import (
    FROM_AGENT,
    FROM_SUPERVISOR,
    PAYLOAD_MAX,
    TO_AGENT,
    TO_SUPERVISOR,
    Decoder,
    Frame,
    FrameError,
    Kind,
    encode,
)
from ringfence.sandbox.opening import Opening, OpeningError, parse

ALL = frozenset(Kind)
FIXED = {
    Kind.RESIZE: 4,
    Kind.SIGNAL: 1,
    Kind.HANGUP: 0,
    Kind.WINDOW: 4,
    Kind.HELLO: 4,
    Kind.OPENED: 4,
    Kind.EXIT: 5,
    Kind.WATCH: 0,
    Kind.SESSIONS: 5,
    Kind.SHUTDOWN: 0,
}


def payloads(kind: Kind) -> st.SearchStrategy[bytes]:
    if kind in FIXED:
        return st.binary(min_size=FIXED[kind], max_size=FIXED[kind])
    return st.binary(min_size=1, max_size=300)


frames = st.sampled_from(sorted(Kind)).flatmap(
    lambda kind: st.tuples(st.just(kind), st.integers(0, 0xFFFFFFFF), payloads(kind))
)


@given(said=st.lists(frames), data=st.data())
def test_frames_survive_any_chunking(said: list[Frame], data: st.DataObject) -> None:
    stream = b"".join(encode(*frame) for frame in said)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=20)))
    decoder, heard = Decoder(ALL), []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        heard += decoder.feed(stream[start:end])
    assert heard == said


@given(chunks=st.lists(st.binary(max_size=400), max_size=20))
def test_noise_is_frames_or_one_error_and_never_much_memory(chunks: list[bytes]) -> None:
    decoder = Decoder(ALL)
    broken = False
    for chunk in chunks:
        try:
            for kind, channel, payload in decoder.feed(chunk):
                assert not broken
                assert encode(kind, channel, payload)
        except FrameError:
            broken = True
        assert len(decoder._rest) < 12 + PAYLOAD_MAX
        assert not broken or not decoder._rest


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ((18, 1, 0, 1, 1), "reserved"),
        ((18, 0, 1, 1, 1), "reserved"),
        ((18, 0, 0, 1, 65537), "STDOUT of 65537 bytes"),
        ((18, 0, 0, 1, 0xFFFFFFFF), "STDOUT of 4294967295 bytes"),
        ((18, 0, 0, 1, 0), "STDOUT of 0 bytes"),
        ((20, 0, 0, 1, 4), "EXIT of 4 bytes"),
        ((21, 0, 0, 1, 1026), "FAIL of 1026 bytes"),
        ((16, 0, 0, 0, 5), "HELLO of 5 bytes"),
        ((0, 0, 0, 1, 0), "kind 0"),
        ((22, 0, 0, 1, 0), "kind 22"),
        ((255, 0, 0, 1, 0), "kind 255"),
        ((2, 0, 0, 1, 1), "kind 2 is not for this direction"),
        ((33, 0, 0, 1, 5), "kind 33 is not for this direction"),
    ],
)
def test_a_wrong_header_is_refused_before_its_payload_comes(header: tuple[int, ...], reason: str) -> None:
    decoder = Decoder(FROM_AGENT)
    with pytest.raises(FrameError, match=reason):
        decoder.feed(struct.pack("!BBHII", *header))
    with pytest.raises(FrameError, match="broken"):
        decoder.feed(encode(Kind.HELLO, 0, b"\0\0\0\1"))


def test_who_may_say_what() -> None:
    assert {Kind.WINDOW} == TO_AGENT & FROM_AGENT
    assert {Kind.WATCH, Kind.SHUTDOWN} == TO_SUPERVISOR - TO_AGENT
    assert {Kind.SESSIONS} == FROM_SUPERVISOR - FROM_AGENT
    assert {Kind.HELLO} == FROM_AGENT - FROM_SUPERVISOR


def test_the_numbers_are_those_of_the_contract() -> None:
    """They are spelled a second time in agent.c."""
    assert encode(Kind.STDIN, 0x01020304, b"ab") == b"\x02\0\0\0\x01\x02\x03\x04\0\0\0\x02ab"
    assert {kind.name: int(kind) for kind in Kind} == {
        "OPEN": 1,
        "STDIN": 2,
        "RESIZE": 3,
        "SIGNAL": 4,
        "HANGUP": 5,
        "WINDOW": 6,
        "HELLO": 16,
        "OPENED": 17,
        "STDOUT": 18,
        "STDERR": 19,
        "EXIT": 20,
        "FAIL": 21,
        "WATCH": 32,
        "SESSIONS": 33,
        "SHUTDOWN": 34,
    }


text = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)


@given(
    opening=st.builds(
        Opening,
        argv=st.lists(text, min_size=1, max_size=5).map(tuple),
        environment=st.lists(st.tuples(st.from_regex(r"[A-Z_]{1,8}", fullmatch=True), text), max_size=5).map(
            tuple
        ),
        cwd=text,
        user=text,
        terminal=st.none() | st.tuples(st.integers(0, 65535), st.integers(0, 65535)),
        stdin=st.booleans(),
    )
)
def test_an_opening_is_what_it_was(opening: Opening) -> None:
    assert parse(opening.encode()) == opening


@given(payload=st.binary(max_size=100))
def test_any_other_payload_is_an_opening_or_an_error(payload: bytes) -> None:
    try:
        opening = parse(payload)
    except OpeningError:
        return
    assert opening.argv


def test_arguments_are_bytes() -> None:
    argv = (b"caf\xe9".decode("utf-8", "surrogateescape"),)
    assert b"caf\xe9" in Opening(argv=argv).encode()
    assert parse(Opening(argv=argv).encode()).argv == argv


@pytest.mark.parametrize(
    ("opening", "reason"),
    [
        (Opening(argv=("a\0b",)), "zero byte"),
        (Opening(argv=("a",), environment=(("A", "\0"),)), "zero byte"),
        (Opening(argv=("a" * PAYLOAD_MAX,)), "longer than 64 KiB"),
    ],
)
def test_what_cannot_be_said_is_refused(opening: Opening, reason: str) -> None:
    with pytest.raises(OpeningError, match=reason):
        opening.encode()
