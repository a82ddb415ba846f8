"""An hour of everything, shortened: the worker's memory and descriptors stay where they are.

``RINGFENCE_SOAK_ROUNDS`` makes it longer. A round is a hundred connections that end well, badly or not at all. What a
worker may keep (certificates, pools, encodings, the interpreter's free lists) it has after the first rounds.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
from pathlib import Path
from typing import Final

from gateway_dialogue import policy, rule
from gateway_stage import CLIENT4, Client, installation, origin_context, origin_roots, until
from worker_rig import Bench, bench, spec

from ringfence.application.ports import Attachment

ROUNDS: Final = int(os.environ.get("RINGFENCE_SOAK_ROUNDS", "30"))
WARM: Final = 30
GROWTH: Final = 768
"""KiB that the worker may have grown by between the first rounds after it is warm and the last ones."""
HOST: Final = "host.docker.internal"


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """An origin that answers every request, and echoes what is none."""
    with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
        while data := await reader.read(65_536):
            if b"\r\n\r\n" in data:
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2000\r\n\r\n" + bytes(2000))
            else:
                writer.write(data)
    writer.close()


class Scene:
    """One sandbox, two origins, and the kinds of connections that a round is made of."""

    def __init__(self, bench: Bench, proxy: int, plain: int, secure: int) -> None:
        self._bench, self._proxy, self._plain, self._secure = bench, proxy, plain, secure
        self._roots = installation()[1].decode()

    async def _dial(self, text: str) -> Client:
        client = Client(*await asyncio.open_connection(CLIENT4, self._proxy))
        client.send(text.encode())
        return client

    async def _tunnel(self, host: str, port: int) -> Client:
        client = await self._dial(f"CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n")
        assert b" 200 " in await client.until(b"\r\n\r\n")
        return client

    async def forwarded(self) -> None:
        url, host = f"http://{HOST}:{self._plain}/x", f"{HOST}:{self._plain}"
        client = await self._dial("")
        for _ in range(5):
            assert (await client.get(url, host))[0] == 200
        client.close()

    async def intercepted(self) -> None:
        client = await self._tunnel(HOST, self._secure)
        await client.start_tls(HOST, self._roots)
        for _ in range(3):
            assert (await client.get("/x", f"{HOST}:{self._secure}"))[0] == 200
        client.close()

    async def refused(self) -> None:
        client = await self._tunnel("blocked.test", 443)
        await client.start_tls("blocked.test", self._roots)
        assert (await client.get("/x", "blocked.test"))[0] == 403
        client.close()

    async def opaque(self) -> None:
        client = await self._tunnel(HOST, self._plain)
        client.send(b"\x00binary\x00")
        assert await client.exactly(8) == b"\x00binary\x00"
        client.close()

    async def malformed(self) -> None:
        client = await self._dial("GET / HTTP/1.1\r\nBroken\r\n\r\n")
        assert b" 400 " in await client.end()
        client.close()

    async def left_in_the_middle(self) -> None:
        host = f"{HOST}:{self._plain}"
        client = await self._dial(
            f"POST http://{host}/x HTTP/1.1\r\nHost: {host}\r\nContent-Length: 90000\r\n\r\nhalf"
        )
        client.writer.transport.abort()

    async def left_in_the_handshake(self) -> None:
        client = await self._tunnel(HOST, self._secure)
        client.send(b"\x16\x03\x01\x02\x00\x01")
        client.writer.transport.abort()

    async def round(self) -> None:
        kinds = (
            (self.forwarded, 20),
            (self.intercepted, 16),
            (self.refused, 12),
            (self.opaque, 12),
            (self.malformed, 12),
            (self.left_in_the_middle, 12),
            (self.left_in_the_handshake, 12),
        )
        await asyncio.gather(*(kind() for kind, count in kinds for _ in range(count)))


def resident(pid: int) -> int:
    """KiB of memory."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))


def test_memory_and_descriptors_stay_flat(tmp_path: Path) -> None:
    async def scene(found: Bench) -> None:
        plain = await asyncio.start_server(answer, CLIENT4, 0)
        secure = await asyncio.start_server(answer, CLIENT4, 0, ssl=origin_context("localhost"))
        ports = [server.sockets[0].getsockname()[1] for server in (plain, secure)]
        await found.link.configure(extra_ca=origin_roots())
        await found.link.authority(*installation())
        with socket.socket() as listening:
            listening.bind((CLIENT4, 0))
            listening.listen(512)
            allowed = policy(rule("allow", *(f"localhost:{port}" for port in ports)))
            attachment = Attachment(sandbox="sandbox-1", netns="", listeners={"proxy4": listening})
            await found.link.admit(spec(), attachment, allowed.to_wire())
            there = Scene(found, int(listening.getsockname()[1]), *ports)
        pid = found.process.pid

        async def rest() -> None:
            while (await found.link.stats())["sandboxes"]["sandbox-1"]["connections"]:  # noqa: ASYNC110
                await asyncio.sleep(0.02)

        memory: list[int] = []
        descriptors: list[int] = []
        for _ in range(WARM + ROUNDS):
            await there.round()
            await rest()
            memory.append(resident(pid))
            descriptors.append(len(os.listdir(f"/proc/{pid}/fd")))
        third = max(ROUNDS // 3, 1)
        first, last = memory[WARM : WARM + third], memory[-third:]
        assert min(last) - max(first) < GROWTH, memory
        assert max(descriptors[-third:]) <= max(descriptors[: WARM + third]), descriptors
        opened = {r["id"] for r in found.records if r["step"] == "opened" and r["verdict"] == "allowed"}
        await until(lambda: opened <= {r["id"] for r in found.records if r["step"] == "closed"})
        plain.close()
        secure.close()

    async def staged() -> None:
        async with bench(tmp_path, patience=240) as found:
            await scene(found)

    asyncio.run(staged())
