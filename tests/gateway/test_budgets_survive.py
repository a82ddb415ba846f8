"""A budget is spent for the day, whatever happens to the worker that counts it or the daemon that keeps the records."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from gateway_dialogue import policy, rule
from gateway_stage import until
from workers_rig import House, Lab, house

from ringfence.application.ports import Attachment
from ringfence.daemon.gateway import Records
from ringfence.daemon.spending import Spending


async def ask(lab: Lab, port: int) -> int:
    client = await lab.client()
    host = f"host.docker.internal:{port}"
    status, _, _ = await client.get(f"http://{host}/", host)
    client.close()
    return status


class Treasury:
    """A house whose daemon keeps account, with one sandbox that may move 300 bytes a day."""

    def __init__(self, house: House) -> None:
        self.house = house
        self.lab = Lab(1)
        house.labs[self.lab.id] = self.lab
        self.spending = Spending(clock=time.time)
        house.record = self.record  # type: ignore[method-assign]
        house.admit = self.admit  # type: ignore[method-assign]
        house._settings = replace(house._settings, spent=self.spent_of)

    def spent_of(self, sandbox: str) -> Mapping[str, tuple[int, int, int]]:
        return self.spending.of(sandbox)

    async def open(self) -> None:
        await self.house.restart(1)
        await self.house.open_origin()
        port = self.house.origin
        self.policy = policy(rule("allow", f"localhost:{port}", budget={"bytes_per_day": 300})).to_wire()
        await self.admit(self.lab)

    async def record(self, batch: Records) -> None:
        for each in await self.house.journal.decided(batch):
            self.spending.heed(each)

    async def admit(self, lab: Lab) -> None:
        attachment = Attachment(sandbox=lab.id, netns="", listeners={"proxy4": lab.listening})
        await self.house.gateway.admit(lab.spec, attachment, self.policy)

    async def spend(self) -> None:
        """Ask until nothing is left, and wait until that is on record."""
        answers = [await ask(self.lab, self.house.origin) for _ in range(12)]
        assert answers[0] == 200
        assert answers[-1] == 403
        moved: Mapping[str, Any] = {}

        def all_of_it() -> bool:
            nonlocal moved
            moved = self.spending.of(self.lab.id)
            return any(size >= 300 for _, _, size in moved.values())

        await until(all_of_it)

    async def spent(self) -> bool:
        reached = self.house.reached
        return await ask(self.lab, self.house.origin) == 403 and self.house.reached == reached


@pytest.mark.parametrize("fate", ["the worker dies", "the sandbox starts again", "the daemon starts again"])
def test_a_budget_that_is_spent_stays_spent(tmp_path: Path, fate: str) -> None:
    async def scene(house: House) -> None:
        treasury = Treasury(house)
        await treasury.open()
        await treasury.spend()
        assert await treasury.spent()
        if fate == "the worker dies":
            os.kill(house.worker(treasury.lab).pid, signal.SIGKILL)
            await until(lambda: house.introduced)
        elif fate == "the sandbox starts again":
            await house.gateway.release(treasury.lab.id)
            await treasury.admit(treasury.lab)
        else:
            treasury.spending = Spending(clock=time.time)
            await treasury.spending.load(house.ledger)
            os.kill(house.worker(treasury.lab).pid, signal.SIGKILL)
            await until(lambda: house.introduced)
        assert await treasury.spent()
        # Positive control: without what was spent it is a new day.
        treasury.spending = Spending(clock=time.time)
        await house.gateway.release(treasury.lab.id)
        await treasury.admit(treasury.lab)
        assert await ask(treasury.lab, house.origin) == 200

    async def staged() -> None:
        async with house(tmp_path, 1) as found:
            await scene(found)

    asyncio.run(staged())
