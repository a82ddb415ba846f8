"""A runtime that isolates nothing because it runs nothing: the reference implementation of the driver protocol.

Sandboxes are entries of a table, and the agent inside is a task of this process that speaks the real frames
over a real socket pair. It knows a handful of commands (:data:`COMMANDS`) that need no operating system, so
everything above a driver can be tested without root. It passes the same conformance suite as the drivers that
isolate.
"""

from __future__ import annotations

import asyncio
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from ringfence.application.errors import Conflict, NotFound
from ringfence.application.ports import Attachment, Probe
from ringfence.sandbox import frames
from ringfence.sandbox.frames import Kind
from ringfence.sandbox.model import Condition, Isolation, Observation, SandboxSpec
from ringfence.sandbox.opening import Opening, OpeningError, parse

TEMPLATES: Final = frozenset({"host", "debian"})
_PORTION: Final = 16384


@dataclass(slots=True, eq=False)
class _Command:
    """One channel: what came in and was not read, what may still go out."""

    opening: Opening
    files: Mapping[str, bytes]
    incoming: asyncio.Queue[bytes] = field(default_factory=asyncio.Queue)
    credit: int = frames.WINDOW
    more: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None
    body: asyncio.Future[int] | None = None
    signalled: int = 0


class _Agent:
    """The first process of a sandbox, as far as anybody outside can tell."""

    def __init__(self, link: socket.socket, files: Mapping[str, bytes]) -> None:
        self._link = link
        self._files = files
        self._commands: dict[int, _Command] = {}
        self._writing = asyncio.Lock()

    async def serve(self) -> None:
        loop = asyncio.get_running_loop()
        decoder = frames.Decoder(frames.TO_AGENT)
        try:
            await self._send(Kind.HELLO, 0, frames.NUMBER.pack(frames.VERSION))
            while received := await loop.sock_recv(self._link, 65536):
                for frame in decoder.feed(received):
                    await self._take(*frame)
        except (OSError, frames.FrameError):
            pass  # as the real agent: a link that is gone or talks nonsense ends the sandbox
        finally:
            for command in self._commands.values():
                if command.task:
                    command.task.cancel()

    async def _take(self, kind: Kind, channel: int, payload: bytes) -> None:
        command = self._commands.get(channel)
        if kind is Kind.OPEN and command is None:
            try:
                command = _Command(parse(payload), self._files)
            except OpeningError as error:
                await self._send(Kind.FAIL, channel, bytes([125]) + str(error).encode())
                return
            self._commands[channel] = command
            command.task = asyncio.create_task(self._run(channel, command))
        elif command is None:
            return  # the command ended while this was under way
        elif kind is Kind.STDIN:
            command.incoming.put_nowait(payload)
        elif kind is Kind.WINDOW:
            command.credit += frames.NUMBER.unpack(payload)[0]
            command.more.set()
        elif kind in (Kind.SIGNAL, Kind.HANGUP):
            command.signalled = payload[0] if payload else signal.SIGHUP
            if command.body:
                command.body.cancel()

    async def _run(self, channel: int, command: _Command) -> None:
        name = command.opening.argv[0].rpartition("/")[2]
        body = COMMANDS.get(name)
        if body is None:
            self._commands.pop(channel, None)
            text = f"command `{command.opening.argv[0]}` not found"[:1024]
            await self._send(Kind.FAIL, channel, bytes([127]) + text.encode())
            return
        await self._send(Kind.OPENED, channel, frames.NUMBER.pack(1000 + channel % 1000))
        command.body = asyncio.ensure_future(body(_Streams(self, channel, command)))
        if command.signalled:  # it came before there was anything to end
            command.body.cancel()
        try:
            await asyncio.wait({command.body})
        finally:
            command.body.cancel()
        status = (1, command.signalled) if command.body.cancelled() else (0, command.body.result())
        self._commands.pop(channel, None)
        with suppress(OSError):
            await self._send(Kind.EXIT, channel, frames.EXIT.pack(*status))

    async def _send(self, kind: Kind, channel: int, payload: bytes) -> None:
        async with self._writing:
            await asyncio.get_running_loop().sock_sendall(self._link, frames.encode(kind, channel, payload))

    async def write(self, channel: int, command: _Command, content: bytes) -> None:
        """Send standard output within what the other side can take."""
        while content:
            while command.credit <= 0:
                command.more.clear()
                await command.more.wait()
            portion = content[: min(_PORTION, command.credit)]
            content = content[len(portion) :]
            command.credit -= len(portion)
            await self._send(Kind.STDOUT, channel, portion)

    async def read(self, channel: int, command: _Command) -> bytes:
        content = await command.incoming.get()
        if content:
            await self._send(Kind.WINDOW, channel, frames.NUMBER.pack(len(content)))
        return content


@dataclass(frozen=True, slots=True)
class _Streams:
    """What a command of the fake sees of the world."""

    agent: _Agent
    channel: int
    command: _Command

    @property
    def opening(self) -> Opening:
        return self.command.opening

    async def read(self) -> bytes:
        return await self.agent.read(self.channel, self.command)

    async def write(self, content: bytes) -> None:
        await self.agent.write(self.channel, self.command, content)


async def _true(_: _Streams) -> int:
    return 0


async def _false(_: _Streams) -> int:
    return 1


async def _exit(streams: _Streams) -> int:
    arguments = streams.opening.argv[1:]
    return int(arguments[0]) & 0xFF if arguments and arguments[0].isdigit() else 0


async def _echo(streams: _Streams) -> int:
    await streams.write(" ".join(streams.opening.argv[1:]).encode("utf-8", "surrogateescape") + b"\n")
    return 0


async def _cat(streams: _Streams) -> int:
    """Standard input, or the files that were placed inside."""
    if names := streams.opening.argv[1:]:
        contents = [streams.command.files.get(name) for name in names]
        for content in contents:
            await streams.write(content or b"")
        return int(None in contents)
    if streams.opening.stdin:
        while content := await streams.read():
            await streams.write(content)
    return 0


async def _printenv(streams: _Streams) -> int:
    wanted = streams.opening.argv[1:]
    found = [(name, value) for name, value in streams.opening.environment if name in wanted or not wanted]
    for name, value in found:
        await streams.write((value if wanted else f"{name}={value}").encode() + b"\n")
    return int(not found)


async def _sleep(_: _Streams) -> int:
    """Until a signal: nobody waits for a clock."""
    await asyncio.Event().wait()
    return 0


COMMANDS: Final[Mapping[str, Callable[[_Streams], Awaitable[int]]]] = {
    "true": _true,
    "false": _false,
    "exit": _exit,
    "echo": _echo,
    "cat": _cat,
    "printenv": _printenv,
    "sleep": _sleep,
}


@dataclass(slots=True, eq=False)
class _Sandbox:
    """``agent`` is there from the first start; done when the sandbox ended."""

    agent: asyncio.Task[None] | None = None

    @property
    def running(self) -> bool:
        return self.agent is not None and not self.agent.done()


class FakeDriver:
    """Sandboxes in memory. They end with the process that holds them."""

    name = "fake"
    isolation = Isolation.NONE

    def __init__(self) -> None:
        self._sandboxes: dict[str, _Sandbox] = {}

    async def probe(self) -> Probe:
        return Probe(
            usable=True,
            isolation=self.isolation,
            reason="nothing is run and nothing is isolated",
            capabilities=frozenset({"tty", "persistent-root", "rootless"}),
        )

    async def prepare(self, template: str) -> None:
        if template not in TEMPLATES:
            raise NotFound(f"no template `{template}`", hint=f"there are {', '.join(sorted(TEMPLATES))}")

    async def create(self, spec: SandboxSpec) -> None:
        self._sandboxes.setdefault(spec.id, _Sandbox())

    async def start(
        self,
        spec: SandboxSpec,
        attachment: Attachment,  # noqa: ARG002 - it has no network
        files: Mapping[str, bytes],
    ) -> socket.socket:
        sandbox = self._sandboxes.get(spec.id)
        if sandbox is None:
            raise NotFound(f"sandbox `{spec.name}` was not created")
        if sandbox.running:
            raise Conflict(f"sandbox `{spec.name}` runs already")
        ours, theirs = socket.socketpair()
        for end in (ours, theirs):
            end.setblocking(False)
        sandbox.agent = asyncio.create_task(_Agent(theirs, dict(files)).serve())
        sandbox.agent.add_done_callback(
            lambda _: theirs.close()
        )  # also when it was cancelled before it began
        return ours

    async def stop(self, spec: SandboxSpec, *, grace: float) -> None:  # noqa: ARG002 - nothing in here needs grace
        sandbox = self._sandboxes.get(spec.id)
        if sandbox is not None:
            await _ended(sandbox)

    async def remove(self, spec: SandboxSpec) -> None:
        await self.sweep(spec.id)

    async def observe(self, spec: SandboxSpec) -> Observation:
        sandbox = self._sandboxes.get(spec.id)
        if sandbox is None:
            condition = Condition.ABSENT
        elif sandbox.agent is None:
            condition = Condition.CREATED
        else:
            condition = Condition.RUNNING if sandbox.running else Condition.EXITED
        return Observation(condition=condition, time=time.time())

    async def orphans(self, known: frozenset[str]) -> Sequence[str]:
        return tuple(sorted(self._sandboxes.keys() - known))

    async def sweep(self, sandbox: str) -> None:
        kept = self._sandboxes.pop(sandbox, None)
        if kept is not None:
            await _ended(kept)


async def _ended(sandbox: _Sandbox) -> None:
    if sandbox.agent is not None and not sandbox.agent.done():
        sandbox.agent.cancel()
        await asyncio.wait({sandbox.agent})
