"""A forward proxy as companies have them: ``python forward_proxy.py PORT LOG``; writes the heads that it hears."""

from __future__ import annotations

import asyncio
import sys


async def main(port: int, log: str) -> None:
    with open(log, "a", encoding="latin-1") as heard:  # noqa: ASYNC230  # once, before anybody is served

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                head = await reader.readuntil(b"\r\n\r\n")
                heard.write(head.decode("latin-1").replace("\r\n", "|") + "\n")
                heard.flush()
                method, target, rest = head.split(b" ", 2)
                if b"\r\nProxy-Authorization: Basic YWRhOnMzY3JldA==\r\n" not in head:
                    writer.write(b"HTTP/1.1 407 Who are you\r\nContent-Length: 0\r\n\r\n")
                    return
                place, slash, path = target.removeprefix(b"http://").partition(b"/")
                host, _, to = place.decode().partition(":")
                theirs, ours = await asyncio.open_connection(host, int(to or 80))
                if method == b"CONNECT":
                    writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
                else:
                    ours.write(b"%b %b%b %b" % (method, slash, path, rest))
                await asyncio.gather(copy(reader, ours), copy(theirs, writer))
            except (OSError, ValueError, asyncio.IncompleteReadError):
                return
            finally:
                writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", port)
        print("ready", flush=True)
        await server.serve_forever()


async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while piece := await reader.read(65_536):
        writer.write(piece)
        await writer.drain()
    if writer.can_write_eof():
        writer.write_eof()


asyncio.run(main(int(sys.argv[1]), sys.argv[2]))
