"""HTTP/2 frames that nobody sane sends, from both sides: never an exception, never a connection without a decision.

What must hold for any bytes is said in ``fuzz/http2.py``, which a coverage-guided fuzzer runs too; here the frames
are well-formed often enough to get somewhere. ``RINGFENCE_FUZZ_EXAMPLES`` turns the number of examples up.
"""

from __future__ import annotations

import os
from pathlib import Path
from runpy import run_path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

EXAMPLES = int(os.environ.get("RINGFENCE_FUZZ_EXAMPLES", "1500"))
one = run_path(str(Path(__file__).parents[2] / "fuzz" / "http2.py"))["one"]

BLOCKS = [
    b"\x82\x87\x84\x41\x06a.test",  # GET https://a.test/
    b"\x82\x87\x84\x41\x06b.test",
    b"\x83\x87\x84\x41\x06a.test\x5c\x013",  # POST, three bytes
    b"\x83\x87\x84\x41\x06a.test\x40\x02te\x08trailers",
    b"\x88",  # 200
    b"\x88\x5c\x013",
    b"\x48\x03103",
    b"\x8b",  # 304
    b"\x40\x0bgrpc-status\x010",
    b"\x40\x0aconnection\x05close",
    b"\x3f\xe1\xff\x03",  # a table of 64 KB
    b"\xff\xff\x7f",
]
FRAME = st.builds(
    lambda kind, flags, stream, body: (
        len(body).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + body
    ),
    st.sampled_from([0, 0, 1, 1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0xA, 0xFE]),
    st.sampled_from([0, 1, 4, 5, 5, 8, 0x20, 0xFF]),
    st.sampled_from([0, 1, 1, 1, 2, 3, 3, 5, 99]),
    st.one_of(
        st.sampled_from(BLOCKS),
        st.lists(st.sampled_from(BLOCKS), max_size=3).map(b"".join),
        st.sampled_from([b"", b"abc", b"\0\0\0\x08", b"\0\0\0\x07", b"\x7f\xff\xff\xff", b"12345678"]),
        st.sampled_from([b"\0\x04\0\0\0\0", b"\0\x03\0\0\0\0", b"\0\x05\0\0\x40\0", b"\0\0\0\x01\0\0\0\0"]),
        st.binary(max_size=20),
    ),
)


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.integers(0, 7),
    st.sampled_from([0, 0, 0, 1, 9, 13]),
    st.lists(st.one_of(FRAME, FRAME, FRAME, st.binary(max_size=12)), max_size=16).map(b"".join),
    st.lists(st.tuples(st.integers(0, 600), st.integers(0, 255)), max_size=2),
)
def test_no_frames_of_either_side_break_anything(
    who: int, step: int, frames: bytes, flips: list[tuple[int, int]]
) -> None:
    mutated = bytearray(frames)
    for at, value in flips:
        if at < len(mutated):
            mutated[at] = value
    one(bytes([who, step]) + mutated)
