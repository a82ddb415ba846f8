"""What was spent today: summed from records, read again from the ledger, handed to a worker that is new."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest

from ringfence.daemon.ledger import SegmentedLedger
from ringfence.daemon.spending import DAY, Spending

NOON = 20_000 * DAY + 43_200.0
MIDNIGHT = 20_001.0 * DAY


def closed(sandbox: str = "s1", charged: str = "r1", time: float = NOON, **more: int) -> dict[str, Any]:
    return {"kind": "network", "step": "closed", "sandbox": sandbox, "time": time, "charged": charged, **more}


class Clock:
    now = NOON

    def __call__(self) -> float:
        return self.now


RECORDS: list[tuple[str, dict[str, Any], dict[str, tuple[int, int, int]]]] = [
    ("bytes both ways", closed(bytes_in=5, bytes_out=7), {"r1": (20_000, 0, 12)}),
    (
        "tokens, the cached ones once",
        closed(tokens_in=5, tokens_out=7, tokens_cached=4),
        {"r1": (20_000, 12, 0)},
    ),
    (
        "every rule that pays",
        closed(charged="r1,r2", bytes_in=1),
        {"r1": (20_000, 0, 1), "r2": (20_000, 0, 1)},
    ),
    ("nobody pays", {**closed(bytes_in=1), "charged": ""}, {}),
    ("only what is over", {**closed(bytes_in=1), "step": "opened"}, {}),
    ("another sandbox's", closed("s2", bytes_in=1), {}),
    ("yesterday's", closed(time=NOON - DAY, bytes_in=1), {}),
]


@pytest.mark.parametrize(("record", "sums"), [row[1:] for row in RECORDS], ids=[row[0] for row in RECORDS])
def test_a_record_is_booked(record: dict[str, Any], sums: dict[str, tuple[int, int, int]]) -> None:
    spending = Spending(clock=Clock())
    spending.heed(closed("s3"))  # today has begun
    spending.heed(record)
    assert spending.of("s1") == sums


def test_records_add_up_until_midnight() -> None:
    clock = Clock()
    spending = Spending(clock=clock)
    for _ in range(3):
        spending.heed(closed(bytes_in=5, tokens_out=2))
    assert spending.of("s1") == {"r1": (20_000, 6, 15)}
    clock.now = MIDNIGHT
    assert spending.of("s1") == {}


def test_a_daemon_learns_it_from_the_ledger(tmp_path: Path) -> None:
    async def work() -> None:
        ledger = SegmentedLedger(tmp_path)
        try:
            await ledger.append(
                [closed(time=NOON - DAY, bytes_in=9), closed(bytes_in=5), {"kind": "sandbox started"}]
            )
            os.utime(tmp_path / "00000001.jsonl", (NOON, NOON))
            spending = Spending(clock=Clock())
            await spending.load(ledger)
            assert spending.of("s1") == {"r1": (20_000, 0, 5)}
            # A segment that was not written to today is not read.
            os.utime(tmp_path / "00000001.jsonl", (NOON - DAY, NOON - DAY))
            spending = Spending(clock=Clock())
            await spending.load(ledger)
            assert spending.of("s1") == {}
        finally:
            await asyncio.to_thread(ledger.close)

    asyncio.run(work())
