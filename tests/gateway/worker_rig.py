"""A real worker process and its daemon's end of the control socket."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from gateway_dialogue import policy, rule
from gateway_stage import CLIENT4, PATIENCE, Client, until

from ringfence.application.ports import Attachment
from ringfence.gateway.control import GatewayLink, start_worker
from ringfence.sandbox.model import Owner, SandboxSpec

GET = b"GET http://%b/x HTTP/1.1\r\nHost: %b\r\n\r\n"


def spec(number: int = 1) -> SandboxSpec:
    owner = Owner(uid=1000, gid=1000, name="ada")
    return SandboxSpec(
        id=f"sandbox-{number}", name=f"lab{number}", agent="shell", owner=owner, runtime="fake"
    )


class Bench:
    """A worker process and its daemon."""

    def __init__(self, path: Path, link: GatewayLink, process: asyncio.subprocess.Process) -> None:
        self.path, self.link, self.process = path, link, process
        self.records: list[Mapping[str, Any]] = []
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for batch in self.link.batches():
            self.records += batch

    async def reconnect(self) -> None:
        self.link.close()
        await self._reading
        self.link = await GatewayLink.connect(self.path)
        self._reading = asyncio.create_task(self._read())

    async def admit(self, number: int = 1, *hosts: str) -> int:
        with socket.socket() as listening:
            listening.bind((CLIENT4, 0))
            attachment = Attachment(sandbox=f"sandbox-{number}", netns="", listeners={"proxy4": listening})
            await self.link.admit(
                spec(number), attachment, policy(rule("allow", *(hosts or ("a.test",)))).to_wire()
            )
            return int(listening.getsockname()[1])

    async def ask(self, port: int, host: bytes) -> int:
        client = Client(*await asyncio.open_connection(CLIENT4, port))
        client.send(GET % (host, host))
        status, _, _ = await client.response()
        client.close()
        return status

    async def settle(self, count: int) -> list[Mapping[str, Any]]:
        await until(lambda: len(self.records) >= count)
        return self.records


@contextlib.asynccontextmanager
async def bench(tmp_path: Path, *, patience: float = PATIENCE * 2) -> AsyncIterator[Bench]:
    path = tmp_path / "gateway.sock"
    process = await start_worker(path, log=2)
    link = await GatewayLink.connect(path)
    found = Bench(path, link, process)
    try:
        async with asyncio.timeout(patience):
            yield found
    finally:
        found.link.close()
        await found._reading
        if process.returncode is None:
            process.terminate()
        await process.wait()


def run(tmp_path: Path, scene: Callable[[Bench], Awaitable[None]]) -> None:
    async def staged() -> None:
        async with bench(tmp_path) as found:
            await scene(found)

    asyncio.run(staged())
