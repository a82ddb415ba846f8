"""A sandbox's link as a test uses it: run a command inside, see what it printed and how it ended."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import dataclass, field

from ringfence.sandbox import frames
from ringfence.sandbox.frames import Kind
from ringfence.sandbox.opening import Opening

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Gone(Exception):
    """The agent ended before the command did."""


@dataclass
class Link:
    """Speaks to the agent of one sandbox. One command at a time."""

    sock: socket.socket
    decoder: frames.Decoder = field(default_factory=lambda: frames.Decoder(frames.FROM_AGENT))
    waiting: list[frames.Frame] = field(default_factory=list)
    channel: int = 0

    async def frame(self) -> frames.Frame | None:
        """The next frame; ``None`` when the agent is gone."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(60):
            while not self.waiting:
                try:
                    received = await loop.sock_recv(self.sock, 65536)
                except ConnectionResetError:
                    received = b""
                if not received:
                    return None
                self.waiting += self.decoder.feed(received)
        return self.waiting.pop(0)

    async def say(self, kind: Kind, payload: bytes = b"") -> None:
        await asyncio.get_running_loop().sock_sendall(self.sock, frames.encode(kind, self.channel, payload))

    async def greeting(self) -> None:
        assert await self.frame() == (Kind.HELLO, 0, frames.NUMBER.pack(frames.VERSION))

    async def run(
        self, *argv: str, user: str = "", cwd: str = "", stdin: bytes | None = None
    ) -> tuple[int, str]:
        """Run a command to its end: exit code (128 + signal), and both streams as one text."""
        self.channel += 1
        opening = Opening(
            argv=argv,
            user=user,
            cwd=cwd,
            environment=(("PATH", PATH), ("LC_ALL", "C"), ("HOME", "/home/agent")),
            stdin=stdin is not None,
        )
        await self.say(Kind.OPEN, opening.encode())
        if stdin is not None:
            await self.say(Kind.STDIN, stdin)
            await self.say(Kind.STDIN)
        output = b""
        while True:
            frame = await self.frame()
            if frame is None:
                raise Gone(output)
            kind, channel, payload = frame
            if channel != self.channel:
                continue
            if kind in (Kind.STDOUT, Kind.STDERR):
                output += payload
                await self.say(Kind.WINDOW, frames.NUMBER.pack(len(payload)))
            elif kind is Kind.EXIT:
                signalled, number = frames.EXIT.unpack(payload)
                return number + 128 * signalled, output.decode(errors="replace")
            elif kind is Kind.FAIL:
                return payload[0], payload[1:].decode(errors="replace")

    async def shell(self, script: str, *, user: str = "agent", cwd: str = "") -> str:
        """Run a script; what it printed, without the last line's end."""
        _, output = await self.run("/bin/sh", "-c", script, user=user, cwd=cwd)
        return output.rstrip("\n")
