"""A worker that is killed with SIGKILL while it works: nothing gets out until its successor is up, its sandboxes are
back without anybody's doing, and every event that was acknowledged is in the ledger, once.
"""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest
from gateway_stage import until
from workers_rig import HOST, House, Lab, house

pytestmark = pytest.mark.live


class Crowd:
    """Clients of one sandbox that ask without end. ``answered`` has the decision's id of every answer they read."""

    def __init__(self, lab: Lab, origin: int) -> None:
        self._lab = lab
        self._target = f"http://{HOST}:{origin}/"
        self._host = f"{HOST}:{origin}"
        self.answered: list[str] = []
        self.reached = 0
        self._on = True
        self._tasks = [asyncio.create_task(self._ask()) for _ in range(8)]

    async def _ask(self) -> None:
        """One refused, one allowed, on a new connection each; a connection that dies is nobody's answer."""
        while self._on:
            try:
                client = await self._lab.client()
                status, fields, _ = await client.get("http://refused.test/", "refused.test")
                assert status == 403
                self.answered.append(fields["x-sbx-decision"])
                client.close()
                client = await self._lab.client()
                assert (await client.get(self._target, self._host))[::2] == (200, b"reached\n")
                self.reached += 1
                client.close()
            except (OSError, asyncio.IncompleteReadError):
                continue

    async def end(self) -> None:
        self._on = False
        await asyncio.gather(*self._tasks)


def test_a_worker_killed_under_load(tmp_path: Path) -> None:
    async def scene(house: House) -> None:
        await house.open_origin()
        victim, other = await house.serve(1), await house.serve(2)
        killed = house.worker(victim).pid
        crowd, neighbours = Crowd(victim, house.origin), Crowd(other, house.origin)
        await until(lambda: len(crowd.answered) > 100 and crowd.reached > 100)

        house.door.clear()
        os.kill(killed, signal.SIGKILL)
        await until(lambda: house.losses)
        assert house.losses == [{victim.id}]
        of_victim = [record for record in house.acknowledged if record["sandbox"] == victim.id]
        before, reached = list(crowd.answered), crowd.reached
        await until(lambda: house.worker(victim).alive and house.worker(victim).pid != killed)
        since = neighbours.reached
        await until(lambda: neighbours.reached > since + 100)
        assert (crowd.answered, crowd.reached) == (before, reached), "nothing while it was down"

        house.door.set()
        await until(lambda: len(crowd.answered) > len(before) + 50 and crowd.reached > reached + 50)
        await asyncio.gather(crowd.end(), neighbours.end())
        after = {*crowd.answered[len(before) :], *neighbours.answered}
        await until(lambda: after <= {record.get("id") for record in house.acknowledged})

        written = await house.recorded()
        steps = [(record["id"], record["step"]) for record in written]
        assert len(steps) == len(set(steps)), "nothing is recorded twice"
        assert {(record["id"], record["step"]) for record in house.acknowledged} == set(steps)
        assert {(record["id"], record["step"]) for record in of_victim} <= set(steps)
        # What was in the killed worker's memory died with it: the last few of its decisions, and none between.
        kept = {record["id"] for record in written}
        numbers = sorted(before)
        lost = [number for number in numbers if number not in kept]
        assert lost == numbers[len(numbers) - len(lost) :]
        assert len(lost) < len(numbers)

    async def staged() -> None:
        async with house(tmp_path) as found:
            await scene(found)

    asyncio.run(staged())


def test_a_worker_killed_again_and_again(tmp_path: Path) -> None:
    async def scene(house: House) -> None:
        await house.open_origin()
        lab = await house.serve(1)
        crowd = Crowd(lab, house.origin)
        for round_ in range(1, 4):
            reached = crowd.reached
            await until(lambda reached=reached: crowd.reached > reached + 20)
            os.kill(house.worker(lab).pid, signal.SIGKILL)
            await until(lambda round_=round_: len(house.introduced) == round_)
        reached = crowd.reached
        await until(lambda: crowd.reached > reached + 20)
        await crowd.end()
        steps = [(record["id"], record["step"]) for record in await house.recorded()]
        assert len(steps) == len(set(steps))

    async def staged() -> None:
        async with house(tmp_path, 1) as found:
            await scene(found)

    asyncio.run(staged())
