"""The answer of a model: total, bounded, the same in any pieces, and never a number that is none."""

from __future__ import annotations

from ringfence.gateway.core.usage import Meter


def one(data: bytes) -> None:
    size, data = (data[0] % 64 + 1, data[1:]) if data else (1, data)
    whole, split = Meter(b"/v1/messages"), Meter(b"/v1/messages")
    whole.feed(data)
    for at in range(0, len(data), size):
        split.feed(data[at : at + size])
        assert len(split._carry) <= 4096 + 160 + size
    assert all(0 <= each < 2**34 for each in whole.usage)
    assert (split.usage, split.model) == (whole.usage, whole.model)
    assert len(whole.model) <= 128
