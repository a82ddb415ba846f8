"""A gateway of several real workers on loopback, its ledger, and sandboxes that are sockets."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Collection, Mapping
from pathlib import Path
from typing import Any

from gateway_dialogue import policy, rule
from gateway_stage import CLIENT4, PATIENCE, Client, echo, installation

from ringfence.application.journal import Journal
from ringfence.application.ports import Attachment
from ringfence.daemon.egress import Egress
from ringfence.daemon.gateway import GatewaySettings, Records, StandingWorker
from ringfence.daemon.ledger import SegmentedLedger
from ringfence.daemon.workers import StandingGateway
from ringfence.policy.rule import Rule
from ringfence.sandbox.model import Owner, SandboxSpec

HOST = "host.docker.internal"


class Lab:
    """One sandbox as the daemon keeps it: its listening socket is held here too, whoever answers on it."""

    def __init__(self, number: int) -> None:
        owner = Owner(uid=1000, gid=1000, name="ada")
        self.id = f"sandbox-{number}"
        self.spec = SandboxSpec(id=self.id, name=f"lab{number}", agent="shell", owner=owner, runtime="fake")
        self.listening = socket.socket()
        self.listening.bind((CLIENT4, 0))
        self.listening.listen(1024)
        self.port = int(self.listening.getsockname()[1])

    async def client(self) -> Client:
        return Client(*await asyncio.open_connection(CLIENT4, self.port))


class House:
    """What a daemon is to its gateway."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.ledger = SegmentedLedger(directory / "ledger")
        self.journal = Journal(self.ledger, clock=time.time)
        key, certificate = installation()
        self._settings = GatewaySettings(
            key=key, certificate=certificate, egress=Egress, spent=lambda _: {}, limits={}
        )
        self.gateways: list[StandingGateway] = []
        self.labs: dict[str, Lab] = {}
        self.acknowledged: list[Mapping[str, Any]] = []
        self.losses: list[frozenset[str]] = []
        self.introduced: list[frozenset[str]] = []
        self.door = asyncio.Event()
        """Open when a new worker may be given its sandboxes."""
        self.door.set()
        self.origin = 0
        self.reached = 0

    async def start(self, count: int) -> None:
        """Start a daemon's part of the gateway."""
        self.gateway = StandingGateway(
            self.directory,
            self._settings,
            count=count,
            log=self.directory / "log",
            record=self.record,
            lost=self.lost,
            introduce=self.introduce,
        )
        self.gateways.append(self.gateway)
        await self.gateway.start()

    async def restart(self, count: int) -> None:
        """Leave, as a daemon that ends, and come back."""
        await self.gateway.leave(end=False)
        await self.start(count)

    async def record(self, batch: Records) -> None:
        await self.journal.decided(batch)
        self.acknowledged += batch

    async def lost(self, _reason: str, served: Collection[str]) -> None:
        self.losses.append(frozenset(served))

    async def introduce(self, served: Collection[str]) -> None:
        await self.door.wait()
        for sandbox in served:
            await self.admit(self.labs[sandbox])
        self.introduced.append(frozenset(served))

    async def admit(self, lab: Lab) -> None:
        self.labs[lab.id] = lab
        attachment = Attachment(sandbox=lab.id, netns="", listeners={"proxy4": lab.listening})
        rules: tuple[Rule, ...] = (rule("allow", f"localhost:{self.origin or 1}"),)
        await self.gateway.admit(lab.spec, attachment, policy(*rules).to_wire())

    async def serve(self, number: int) -> Lab:
        lab = Lab(number)
        await self.admit(lab)
        return lab

    def worker(self, lab: Lab) -> StandingWorker:
        return next(each for each in self.gateway.begun if lab.id in self.gateway.sandboxes(each))

    def place(self, lab: Lab) -> int:
        return self.gateway.workers.index(self.worker(lab))

    async def open_origin(self) -> None:
        """A server on the host, which the rule of every sandbox allows."""
        answer = echo(b"reached\n")

        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self.reached += 1
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                await answer(reader, writer)
            writer.close()

        server = await asyncio.start_server(connected, CLIENT4, 0)
        self.origin = int(server.sockets[0].getsockname()[1])

    async def recorded(self) -> list[Mapping[str, Any]]:
        return [record async for record in self.ledger.read(newest=0, matching=())]

    async def close(self) -> None:
        """End every worker that was started."""
        await self.gateway.leave(end=True)
        for gateway in self.gateways:
            for worker in gateway.workers:
                if worker._process is not None:
                    with contextlib.suppress(ProcessLookupError):
                        worker._process.kill()
                    await worker._process.wait()
        for lab in self.labs.values():
            lab.listening.close()
        self.ledger.close()


@contextlib.asynccontextmanager
async def house(directory: Path, count: int = 2) -> AsyncIterator[House]:
    """A gateway that has started; nothing of it is left afterwards."""
    made = House(directory)
    await made.start(count)
    try:
        async with asyncio.timeout(PATIENCE * 3):
            yield made
    finally:
        await made.close()
