"""What a gateway worker may say, and everything else that it might."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringfence.audit.events import NetworkEvent
from ringfence.daemon.records import read_record

PLAIN = {"id": "d-1", "step": "opened", "time": 1.5, "sandbox": "s", "verdict": "blocked"}

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


@given(
    st.builds(
        NetworkEvent,
        id=st.text(min_size=1, max_size=40),
        step=st.sampled_from(["opened", "closed"]),
        time=st.floats(0, 1e10),
        sandbox=st.text(max_size=40),
        host=st.text(max_size=2048),
        port=st.integers(0, 65535),
        bytes_in=st.integers(0, 2**60),
        verdict=st.sampled_from(["allowed", "blocked"]),
        inspected=st.booleans(),
    )
)
def test_every_event_is_a_record(event: NetworkEvent) -> None:
    assert read_record(json.loads(json.dumps(event.record()))) == event.record()


def test_a_gap_is_a_record() -> None:
    assert read_record({"dropped": 7}) == {"dropped": 7}


@pytest.mark.parametrize(
    "raw",
    [
        None,
        [],
        "text",
        {},
        {"dropped": "7"},
        {"dropped": True},
        {key: value for key, value in PLAIN.items() if key != "sandbox"},
        PLAIN | {"kind": "rule added"},
        PLAIN | {"sequence": 1},
        PLAIN | {"step": "denied"},
        PLAIN | {"verdict": "yes"},
        PLAIN | {"time": float("nan")},
        PLAIN | {"time": "now"},
        PLAIN | {"port": True},
        PLAIN | {"port": 1.5},
        PLAIN | {"bytes_in": 2**70},
        PLAIN | {"host": "x" * 5000},
        PLAIN | {"canary": 1},
    ],
)
def test_what_is_no_record_is_refused(raw: object) -> None:
    with pytest.raises(ValueError, match="record"):
        read_record(raw)


@given(
    anything
    | st.dictionaries(st.sampled_from([*PLAIN, "host", "port", "canary", "dropped"]), anything).map(
        lambda d: PLAIN | d
    )
)
def test_whatever_is_said_is_refused_or_can_be_written(raw: object) -> None:
    try:
        record = read_record(raw)
    except ValueError:
        return
    json.dumps(record, allow_nan=False)
