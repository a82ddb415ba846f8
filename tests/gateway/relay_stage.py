"""A gateway with a real enclosure around its sandbox: clients live in there, UDP services on this machine."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Self

import pytest
import uvloop
from gateway_stage import CLIENT4, PATIENCE, Stage, until

from ringfence.application.ports import Addresses, Attachment
from ringfence.gateway.core.limits import Limits
from ringfence.runtimes import kernel
from ringfence.runtimes.enclosure import Enclosures


def _missing() -> str:
    if os.geteuid() != 0:
        return "needs root"
    return next((f"needs {tool}" for tool in ("ip", "nft") if shutil.which(tool) is None), "")


needs_enclosure = pytest.mark.skipif(bool(_missing()), reason=_missing() or "-")

A = Addresses()


class Inside:
    """A client's UDP socket in the sandbox."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock

    def send(self, datagram: bytes) -> Self:
        self.sock.send(datagram)
        return self

    async def receive(self) -> bytes | str:
        """The next datagram, or how the kernel says that there will be none."""
        async with asyncio.timeout(PATIENCE):
            try:
                return await asyncio.get_running_loop().sock_recv(self.sock, 65_536)
            except ConnectionRefusedError:
                return "refused"

    async def ask(self, datagram: bytes) -> bytes | str:
        return await self.send(datagram).receive()


class Service(asyncio.DatagramProtocol):
    """A UDP service. ``seen`` has what each client (by its port here) sent."""

    def __init__(self, respond: Callable[[bytes], Sequence[bytes]]) -> None:
        self.seen: list[bytes] = []
        self.peers: list[tuple[str, int]] = []
        self._respond = respond
        self.transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.seen.append(data)
        self.peers.append(addr)
        for answer in self._respond(data):
            self.transport.sendto(answer, addr)


class RelayStage(Stage):
    """``gateway_stage.Stage`` whose guest has the sockets of an enclosure."""

    attachment: Attachment

    async def begin(self, enclosures: Enclosures) -> None:
        self.attachment = await enclosures.open("one")
        await self.guest.serve({role: sock.dup() for role, sock in self.attachment.listeners.items()})

    async def service(
        self,
        name: str,
        port: int,
        respond: Callable[[bytes], Sequence[bytes]] = lambda data: (b"re: " + data,),
        *,
        address: str = "",
    ) -> Service:
        """Put a UDP service behind a name (and a public address)."""
        loop = asyncio.get_running_loop()
        address = address or f"203.0.113.{len(self.datagram_ports) + 1}"
        transport, service = await loop.create_datagram_endpoint(
            lambda: Service(respond), local_addr=(CLIENT4, 0)
        )
        self._services.append(transport)
        self.datagram_ports[address, port] = transport.get_extra_info("sockname")[1]
        if name:
            self.addresses.setdefault(name, []).append(address)
        return service

    async def inside(self, host: str, port: int, *, six: bool = False, local: int = 0) -> Inside:
        """A client that is connected to a name's synthetic address, or to an address."""
        address = host
        if not host.replace(".", "").isdigit() and ":" not in host:
            address = self.guest.names.address(host, 6 if six else 4)
        family = socket.AF_INET6 if ":" in address else socket.AF_INET

        def make() -> socket.socket:
            kernel.join_path(self.attachment.netns, kernel.CLONE_NEWNET)
            return socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)

        sock = await kernel.apart(make)
        self._sockets.append(sock)
        if local:
            sock.bind(("::" if family == socket.AF_INET6 else "0.0.0.0", local))
        sock.connect((address, port))
        return Inside(sock)

    def __init__(self, loop: asyncio.AbstractEventLoop, limits: Limits) -> None:
        super().__init__(loop, limits)
        self._services: list[asyncio.BaseTransport] = []
        self._sockets: list[socket.socket] = []

    def close(self) -> None:
        super().close()
        for transport in self._services:
            transport.close()
        for sock in self._sockets:
            sock.close()


Scene = Callable[[RelayStage], Awaitable[None]]


def play(path: Path, scene: Scene, **limits: float) -> None:
    """Play a scene on a stage of its own; the sweeps of a worker go on beside it."""

    async def staged() -> None:
        loop = asyncio.get_running_loop()
        stage = RelayStage(loop, Limits.from_wire(limits))
        enclosures = Enclosures(path)
        ticking = loop.create_task(_tick(stage))
        try:
            await stage.begin(enclosures)
            async with asyncio.timeout(PATIENCE * 3):
                await scene(stage)
        finally:
            ticking.cancel()
            stage.close()
            await enclosures.close("one")
            await until(lambda: len(asyncio.all_tasks()) == 1)

    uvloop.run(staged())


async def _tick(stage: Stage) -> None:
    while True:
        await asyncio.sleep(0.01)
        stage.guest.sweep(time.time())
