"""Several workers: a sandbox belongs to one, and what happens to a worker happens to its sandboxes alone (ADR 0008)."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from gateway_stage import until
from workers_rig import HOST, House, Lab, house

from ringfence.application.errors import Unavailable
from ringfence.daemon import workers

Scene = Callable[[House], Awaitable[None]]


def play(tmp_path: Path, scene: Scene, count: int = 2) -> None:
    async def staged() -> None:
        async with house(tmp_path, count) as found:
            await scene(found)

    asyncio.run(staged())


async def ask(lab: Lab, host: str) -> int:
    client = await lab.client()
    status, _, _ = await client.get(f"http://{host}/", host)
    client.close()
    return status


def test_sandboxes_are_spread_and_stay_where_they_are(tmp_path: Path) -> None:
    async def scene(house: House) -> None:
        assert len(house.gateway.begun) == 1, "the second worker waits for the second sandbox"
        labs = [await house.serve(number) for number in range(5)]
        assert [house.place(lab) for lab in labs] == [0, 1, 0, 1, 0]
        await house.gateway.release(labs[0].id)
        await house.gateway.release(labs[2].id)
        await house.admit(labs[3])
        assert house.place(labs[3]) == 1, "whoever is served stays"
        await house.admit(labs[0])
        assert house.place(labs[0]) == 0
        assert [await ask(lab, "a.test") for lab in (labs[0], labs[1], labs[3], labs[4])] == [403] * 4

    play(tmp_path, scene)


def test_a_spare_worker_is_begun_for_the_next_sandbox(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "SPARE", 0.0)

    async def scene(house: House) -> None:
        one = await house.serve(1)
        await until(lambda: len(house.gateway.begun) == 2)
        two = await house.serve(2)
        assert (house.place(one), house.place(two)) == (0, 1)

    play(tmp_path, scene, count=3)


def test_a_worker_that_dies_takes_nobody_elses_sandboxes_along(tmp_path: Path) -> None:
    async def scene(house: House) -> None:
        one, two = await house.serve(1), await house.serve(2)
        held = await two.client()
        assert (await held.get("http://a.test/", "a.test"))[0] == 403
        pid, other = house.worker(one).pid, house.worker(two).pid
        os.kill(pid, signal.SIGKILL)
        await until(lambda: house.introduced)
        assert (house.losses, house.introduced) == ([frozenset({one.id})], [frozenset({one.id})])
        assert house.worker(one).pid not in (pid, other)
        assert house.worker(two).pid == other
        assert (await held.get("http://b.test/", "b.test"))[0] == 403, "the same connection"
        held.close()
        assert await ask(one, "a.test") == 403

    play(tmp_path, scene)


def test_a_daemon_that_comes_back_finds_all_workers(tmp_path: Path) -> None:
    async def scene(house: House) -> None:
        labs = [await house.serve(number) for number in (1, 2, 3)]
        before = [(worker.pid, house.gateway.sandboxes(worker)) for worker in house.gateway.begun]
        await house.restart(2)
        assert [(worker.pid, house.gateway.sandboxes(worker)) for worker in house.gateway.begun] == before
        assert [await ask(lab, "a.test") for lab in labs] == [403] * 3
        await house.gateway.forget_others({labs[0].id, labs[1].id})
        assert [len(house.gateway.sandboxes(worker)) for worker in house.gateway.begun] == [1, 1]

    play(tmp_path, scene)


def test_workers_that_are_too_many_are_ended_and_their_last_records_kept(tmp_path: Path) -> None:
    async def scene(house: House) -> None:
        labs = [await house.serve(number) for number in (1, 2)]
        ended = house.worker(labs[1]).pid
        await house.gateway.leave(end=False)
        assert await ask(labs[1], "unheard.test") == 403
        await house.start(1)
        await until(lambda: not _runs(ended))
        assert [record["host"] for record in await house.recorded()] == ["unheard.test"]
        assert [path.name for path in tmp_path.glob("gateway*.sock")] == ["gateway-0.sock"]
        await house.admit(labs[1])
        assert house.place(labs[1]) == 0
        assert [await ask(lab, "a.test") for lab in labs] == [403, 403]

    play(tmp_path, scene)


def test_a_worker_that_speaks_of_anothers_sandbox_is_ended(tmp_path: Path) -> None:
    """What a worker says proves enclosures; one that was taken over must not prove somebody else's."""

    async def scene(house: House) -> None:
        one, two = await house.serve(1), await house.serve(2)
        worker = house.worker(one)
        honest = {"id": "x-1", "step": "opened", "time": 1.0, "sandbox": one.id, "verdict": "blocked"}
        assert worker._counts(honest)
        assert worker._counts({"dropped": 3})
        with pytest.raises(ValueError, match="another worker"):
            worker._counts({**honest, "sandbox": two.id})
        worker.served.add(two.id)  # it had this one once
        assert worker._counts({**honest, "sandbox": two.id})
        assert not worker._counts({**honest, "sandbox": two.id, "canary": True})

    play(tmp_path, scene)


def test_what_is_not_served_is_refused(tmp_path: Path) -> None:
    async def scene(house: House) -> None:
        for order in (
            house.gateway.bind("x", {}),
            house.gateway.cut("x", closed=True),
            house.gateway.arm("x", ()),
        ):
            with pytest.raises(Unavailable, match="does not serve"):
                await order
        await house.gateway.release("x")

    play(tmp_path, scene, count=1)


def test_a_worker_that_does_not_start_leaves_its_sandbox_to_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene(house: House) -> None:
        one = await house.serve(1)

        async def nothing(*_: object, **__: object) -> None:
            raise OSError(11, "no more processes")

        monkeypatch.setattr("ringfence.daemon.gateway.start_worker", nothing)
        two = await house.serve(2)
        assert (house.place(one), house.place(two)) == (0, 0)
        assert await ask(two, "a.test") == 403

    play(tmp_path, scene)


def test_decisions_of_two_workers_are_never_one(tmp_path: Path) -> None:
    async def scene(house: House) -> None:
        labs = [await house.serve(number) for number in (1, 2)]
        for lab in labs * 10:
            assert await ask(lab, HOST) == 403
        await until(lambda: len(house.acknowledged) == 20)
        assert len({record["id"] for record in await house.recorded()}) == 20

    play(tmp_path, scene)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
