"""The process: listen, say that it is ready, serve until standard input ends."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import ssl
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from tests.live.origins import git, http1, http2, web
from tests.live.origins.exchange import Exchange
from tests.live.origins.places import (
    ADDRESS,
    GIT_HOST,
    GRPC_HOST,
    GRPC_PORT,
    PLAIN_PORT,
    SECURE_PORT,
    TLS_NAMES,
)
from tests.live.origins.registries import REGISTRIES

from ringfence.demo.internet.authority import WorldAuthority
from ringfence.demo.internet.places import Place


class Origins:
    """Everything that answers at :data:`ADDRESS`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        authority = WorldAuthority(datetime.fromtimestamp(int(time.time()), UTC))
        self.contexts = {name: authority.context(Place(name=name, v4="", v6="")) for name in TLS_NAMES}
        for context in self.contexts.values():
            context.set_alpn_protocols(["h2", "http/1.1"])
        (directory / "origins-ca.pem").write_bytes(authority.root_pem)
        self.sites = {**REGISTRIES}
        if shutil.which("git"):
            git.prepare(directory / "git")
            self.sites[GIT_HOST] = git.serve(directory / "git")

    async def site(self, exchange: Exchange) -> None:
        await self.sites.get(exchange.host, web.site)(exchange)

    async def converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        secure = writer.get_extra_info("ssl_object")
        if secure is not None and secure.context is self.contexts[GRPC_HOST]:
            await _splice(reader, writer, await asyncio.open_connection("127.0.0.1", GRPC_PORT))
            return
        over = http2 if secure is not None and secure.selected_alpn_protocol() == "h2" else http1
        await over.serve(reader, writer, self.site)

    async def serve(self) -> None:
        front = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)

        def choose(connection: ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> int | None:
            if name not in self.contexts:
                return ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME
            connection.context = self.contexts[name]
            return None

        front.sni_callback = choose  # type: ignore[assignment]  # typeshed gives the callback an SSLSocket
        front.set_alpn_protocols(["h2", "http/1.1"])
        await asyncio.start_server(self.converse, ADDRESS, PLAIN_PORT)
        await asyncio.start_server(self.converse, ADDRESS, SECURE_PORT, ssl=front)
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


async def _splice(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    far: tuple[asyncio.StreamReader, asyncio.StreamWriter],
) -> None:
    """Pass the bytes of a connection on, both ways, until either side ends."""

    async def pump(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while piece := await source.read(1 << 16):
                target.write(piece)
                await target.drain()
        target.close()

    await asyncio.gather(pump(reader, far[1]), pump(far[0], writer))


if __name__ == "__main__":
    asyncio.run(Origins(Path(sys.argv[1])).serve())
    sys.exit(0)
