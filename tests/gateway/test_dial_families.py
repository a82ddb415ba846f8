"""Which address family goes first, after one of them lost."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from typing import Any

import pytest

from ringfence.gateway import dial
from ringfence.gateway.dial import MEMORY, Dialer
from ringfence.policy.model import Decision, Verdict

SIX, FOUR = "2001:db8::1", "203.0.113.1"


class Network(Dialer):
    """A dialer on a network where some addresses are silent and some refuse. Its clock stands still."""

    def __init__(self, *, silent: Sequence[str] = (), refusing: Sequence[str] = ()) -> None:
        self.now = 100.0
        self.silent, self.refusing = set(silent), set(refusing)
        self.tried: list[str] = []
        super().__init__(self, resolve={}, lookup=self._answer)  # type: ignore[arg-type]
        self._real = asyncio.get_running_loop()
        self.far: list[socket.socket] = []

    def time(self) -> float:
        return self.now

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    async def _answer(self, name: str) -> tuple[Sequence[str], float]:
        return (FOUR, SIX), 60.0

    async def _attempt(self, address: tuple[str, int]) -> socket.socket:
        host = address[0]
        self.tried.append(host)
        if host in self.silent:
            await asyncio.Event().wait()
        if host in self.refusing:
            raise ConnectionRefusedError
        near, far = socket.socketpair()
        near.setblocking(False)
        self.far.append(far)
        return near

    async def order(self, name: str = "a.test") -> list[str]:
        """Who would be dialled, first first."""
        return [address for address, _ in await self.addresses(name, 443, _allow)]

    async def dial(self, name: str = "a.test") -> str:
        """Connect; return the address that won."""
        found = await self.addresses(name, 443, _allow)
        transport, _, (address, _) = await self.connect(found, asyncio.Protocol, timeout=10)
        transport.abort()
        for far in self.far:
            far.close()
        return address


def _allow(_: str) -> Decision:
    return Decision(verdict=Verdict.ALLOWED)


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dial, "STAGGER", 0.0)


def test_a_family_that_leads_nowhere_goes_second_for_every_name() -> None:
    async def dialogue() -> None:
        network = Network(silent=[SIX])
        assert await network.order() == [SIX, FOUR]
        assert await network.dial() == FOUR
        assert await network.order("other.test") == [FOUR, SIX]
        network.tried.clear()
        assert await network.dial("other.test") == FOUR
        assert network.tried[0] == FOUR

    asyncio.run(dialogue())


def test_after_a_while_it_gets_another_chance() -> None:
    async def dialogue() -> None:
        network = Network(silent=[SIX])
        await network.dial()
        network.now += MEMORY - 1
        assert await network.order() == [FOUR, SIX]
        network.now += 1
        assert await network.order() == [SIX, FOUR]

    asyncio.run(dialogue())


def test_the_other_family_can_lose_too() -> None:
    async def dialogue() -> None:
        network = Network(silent=[SIX])
        await network.dial()
        network.silent = {FOUR}
        assert await network.dial() == SIX
        assert await network.order() == [SIX, FOUR]

    asyncio.run(dialogue())


def test_a_server_that_refuses_says_nothing_about_the_network() -> None:
    async def dialogue() -> None:
        network = Network(refusing=[SIX])
        assert await network.dial() == FOUR
        assert await network.order() == [SIX, FOUR]

    asyncio.run(dialogue())


def test_loopback_says_nothing_and_is_not_reordered() -> None:
    async def dialogue() -> None:
        network = Network(silent=["127.0.0.1"])
        assert await network.dial("localhost") == "::1"
        assert await network.order() == [SIX, FOUR]
        network.silent = {SIX}
        await network.dial()
        assert await network.order() == [FOUR, SIX]
        assert await network.order("localhost") == ["127.0.0.1", "::1"]

    asyncio.run(dialogue())
