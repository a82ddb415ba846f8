"""One sandbox that moves much leaves its neighbours their turn (GATEWAY.md section 8)."""

from __future__ import annotations

import asyncio

from gateway_stage import Stage, echo, play, rule

from ringfence.gateway.turns import QUANTUM, SAMPLE, Round, Turns


class Loud:
    """A reader that always has more."""

    def __init__(self, turns: Turns, log: list[str]) -> None:
        self.turns, self.log = turns, log
        self.stalled = False

    def stall(self, stalled: bool) -> None:
        self.stalled = stalled

    def read(self, size: int) -> None:
        if self.stalled:
            return
        self.log.append("loud")
        self.turns.spent += size
        if self.turns.spent > QUANTUM:
            self.turns.give_way(self)


def test_beyond_its_quantum_every_reader_waits_a_round() -> None:
    async def scene() -> None:
        loop = asyncio.get_running_loop()
        log: list[str] = []
        turns = Turns(loop)
        readers = [Loud(turns, log) for _ in range(3)]
        for _ in range(10):
            for reader in readers:
                reader.read(QUANTUM // 2)
        assert len(log) == 5  # two within the quantum, then one each
        assert all(reader.stalled for reader in readers)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not any(reader.stalled for reader in readers)
        assert turns.spent == 0

    asyncio.run(scene())


def test_bulk_still_arrives_whole_when_it_gives_way() -> None:
    async def scene(stage: Stage) -> None:
        size = 6 * QUANTUM
        await stage.origin("a.test", echo(b"x" * size))
        stage.bind(rule("allow", "a.test"))
        clients = [await stage.secure("a.test") for _ in range(3)]
        for client in clients:
            client.send(b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n")
        for _, _, body in await asyncio.gather(*(client.response() for client in clients)):
            assert len(body) == size

    play(scene)


def test_the_workers_descriptors_bound_all_sandboxes_together() -> None:
    async def scene(stage: Stage) -> None:
        stage.bind(rule("allow", "a.test"))
        stage.services.capacity = 2
        kept = [await stage.connect("b.test") for _ in range(2)]
        refused = await stage.dial()
        assert await refused.end() == b"<reset>"
        kept.pop().close()
        await stage.settle(1)
        assert stage.services.connections == 1

    play(scene)


class Scribbler:
    """A writer that says when it was flushed."""

    def __init__(self, round_: Round, log: list[str], name: str) -> None:
        self.round, self.log, self.name = round_, log, name

    def write(self) -> None:
        if self.round.is_lonely():
            self.log.append(f"{self.name} at once")
        else:
            self.round.add(self)

    def flush(self) -> None:
        self.log.append(self.name)


def test_what_is_sent_in_a_round_leaves_together_at_its_end() -> None:
    async def scene() -> None:
        log: list[str] = []
        round_ = Round(asyncio.get_running_loop())
        one, two = Scribbler(round_, log, "one"), Scribbler(round_, log, "two")
        one.write()
        two.write()
        assert log == []
        await asyncio.sleep(0)
        assert log == ["one", "two"]

    asyncio.run(scene())


def test_a_lonely_writer_waits_now_and_then_for_company() -> None:
    async def scene() -> None:
        log: list[str] = []
        round_ = Round(asyncio.get_running_loop())
        one, two = Scribbler(round_, log, "one"), Scribbler(round_, log, "two")
        for _ in range(SAMPLE + 2):
            one.write()
            await asyncio.sleep(0)
        assert log == ["one", *["one at once"] * SAMPLE, "one"]
        for _ in range(SAMPLE):
            one.write()
        log.clear()
        for _ in range(3):
            one.write()
            two.write()
            await asyncio.sleep(0)
        assert log == ["one", "two"] * 3

    asyncio.run(scene())
