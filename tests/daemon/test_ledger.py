"""The ledger: what was answered is on disk, in order, whole; what was not is not there."""

from __future__ import annotations

import asyncio
import errno
import json
import os
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from ringfence.application.errors import Unavailable
from ringfence.daemon import ledger as module
from ringfence.daemon.ledger import SegmentedLedger


def use(directory: Path, work: Callable[[SegmentedLedger], Awaitable[None]]) -> None:
    async def whole() -> None:
        ledger = SegmentedLedger(directory)
        try:
            await work(ledger)
        finally:
            await asyncio.to_thread(ledger.close)

    asyncio.run(whole())


async def read(ledger: SegmentedLedger, newest: int = 0, *matching: bytes) -> list[Mapping[str, Any]]:
    return [record async for record in ledger.read(newest=newest, matching=matching)]


def records(*numbers: int) -> list[dict[str, Any]]:
    return [{"kind": "network", "id": f"d-{number}", "host": "ä.example"} for number in numbers]


def test_records_are_numbered_and_come_back_in_order_after_a_restart(tmp_path: Path) -> None:
    async def first(ledger: SegmentedLedger) -> None:
        written = await ledger.append(records(1, 2))
        assert [each["sequence"] for each in written] == [1, 2]

    async def second(ledger: SegmentedLedger) -> None:
        await ledger.append(records(3))
        assert [each["id"] for each in await read(ledger)] == ["d-1", "d-2", "d-3"]
        assert [each["sequence"] for each in await read(ledger, 2)] == [2, 3]
        assert [each["id"] for each in await read(ledger, 5, b'"id":"d-2"')] == ["d-2"]

    use(tmp_path, first)
    use(tmp_path, second)


def test_many_writers_share_the_disk_and_each_is_answered_when_it_is_written(tmp_path: Path) -> None:
    async def work(ledger: SegmentedLedger) -> None:
        answers = await asyncio.gather(*(ledger.append(records(n)) for n in range(500)))
        assert sorted(each["sequence"] for answer in answers for each in answer) == list(range(1, 501))
        lines = (tmp_path / "00000001.jsonl").read_bytes().splitlines()
        assert [json.loads(line)["sequence"] for line in lines] == list(range(1, 501))

    use(tmp_path, work)


@pytest.mark.parametrize("torn", [b'{"seq', b'{"sequence":3,"kind":"x"}', b"\xff" * 3_000_000])
def test_what_a_crash_left_half_written_is_cut_off(tmp_path: Path, torn: bytes) -> None:
    use(tmp_path, lambda ledger: ledger.append(records(1, 2)))  # type: ignore[arg-type]
    with open(tmp_path / "00000001.jsonl", "ab") as file:
        file.write(torn)

    async def work(ledger: SegmentedLedger) -> None:
        await ledger.append(records(9))
        assert [(each["sequence"], each["id"]) for each in await read(ledger)] == [
            (1, "d-1"),
            (2, "d-2"),
            (3, "d-9"),
        ]

    use(tmp_path, work)


def test_segments_follow_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SEGMENT", 200)
    monkeypatch.setattr(module, "CHUNK", 64)

    async def work(ledger: SegmentedLedger) -> None:
        for number in range(20):
            await ledger.append(records(number))
        assert len(list(tmp_path.glob("*.jsonl"))) > 3
        assert [each["id"] for each in await read(ledger)] == [f"d-{number}" for number in range(20)]
        assert [each["id"] for each in await read(ledger, 7)] == [f"d-{number}" for number in range(13, 20)]

    use(tmp_path, work)


def test_a_full_disk_is_told_to_every_writer_and_leaves_no_half_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.write

    def full(file: int, content: memoryview) -> int:
        if len(content) > 20:
            return real(file, content[:20])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    async def work(ledger: SegmentedLedger) -> None:
        await ledger.append(records(1))
        monkeypatch.setattr(module.os, "write", full)
        answers = await asyncio.gather(*(ledger.append(records(n)) for n in (2, 3)), return_exceptions=True)
        assert all(isinstance(answer, Unavailable) for answer in answers)
        assert "No space left" in ledger.failure
        monkeypatch.setattr(module.os, "write", real)
        (written,) = await ledger.append(records(4))
        assert written["sequence"] == 2
        assert ledger.failure == ""
        assert [each["id"] for each in await read(ledger)] == ["d-1", "d-4"]

    use(tmp_path, work)


def test_a_reader_of_another_sandbox_is_not_deceived_by_what_a_name_says(tmp_path: Path) -> None:
    async def work(ledger: SegmentedLedger) -> None:
        await ledger.append([{"kind": "network", "sandbox": "one", "path": '/","sandbox":"two"'}])
        assert await read(ledger, 0, b'"sandbox":"two"') == []
        assert await read(ledger, 9, b'"sandbox":"two"') == []

    use(tmp_path, work)


def test_a_directory_that_cannot_be_written_is_told_at_start(tmp_path: Path) -> None:
    (tmp_path / "ledger").write_text("a file")
    with pytest.raises(Unavailable, match="cannot be written"):
        SegmentedLedger(tmp_path / "ledger")
