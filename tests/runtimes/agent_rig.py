"""The host's side of an agent's link for tests: opens channels and collects what becomes of them."""

from __future__ import annotations

import importlib.util
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

from ringfence.sandbox.frames import (
    EXIT,
    FROM_AGENT,
    GRANT,
    NUMBER,
    PAYLOAD_MAX,
    SIZE,
    WINDOW,
    Decoder,
    Kind,
    encode,
)
from ringfence.sandbox.opening import Opening

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 60.0


def build_hook() -> ModuleType:
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@dataclass(kw_only=True)
class Command:
    """What is known of a channel; ``end`` is ``("exit", 0)``, ``("signal", 9)``, ``("fail", 127, text)``."""

    pid: int = 0
    stdout: bytearray = field(default_factory=bytearray)
    stderr: bytearray = field(default_factory=bytearray)
    end: tuple[object, ...] | None = None
    credit: int = WINDOW
    owed: int = 0
    pending: bytearray = field(default_factory=bytearray)
    closing: bool = False
    granting: bool = True


class Link:
    """Our end of the link. Everything is blocking, with a timeout that only a broken agent meets."""

    def __init__(self, connection: socket.socket) -> None:
        connection.settimeout(PATIENCE)
        self.socket = connection
        self.decoder = Decoder(FROM_AGENT)
        self.commands: dict[int, Command] = {}
        self.greeted = False
        self._last = 0

    def greet(self) -> Link:
        while not self.greeted:
            self.step()
        return self

    def say(self, kind: Kind, channel: int, payload: bytes = b"") -> None:
        self.socket.sendall(encode(kind, channel, payload))

    def open(
        self,
        *argv: str,
        environment: Sequence[tuple[str, str]] = (),
        cwd: str = "/",
        user: str = "",
        terminal: tuple[int, int] | None = None,
        stdin: bool = True,
        granting: bool = True,
    ) -> int:
        self._last += 1
        self.commands[self._last] = Command(granting=granting)
        opening = Opening(
            argv=argv,
            environment=tuple(environment),
            cwd=cwd,
            user=user,
            terminal=terminal,
            stdin=stdin,
        )
        self.say(Kind.OPEN, self._last, opening.encode())
        return self._last

    def feed(self, channel: int, content: bytes = b"", *, close: bool = True) -> None:
        """Queue standard input; it is sent as the agent grants."""
        command = self.commands[channel]
        command.pending += content
        command.closing |= close
        self._push(channel)

    def _push(self, channel: int) -> None:
        command = self.commands[channel]
        while command.pending and command.credit and command.end is None:
            part = bytes(command.pending[: min(PAYLOAD_MAX, command.credit)])
            del command.pending[: len(part)]
            command.credit -= len(part)
            self.say(Kind.STDIN, channel, part)
        if command.closing and not command.pending and command.end is None:
            command.closing = False
            self.say(Kind.STDIN, channel)

    def resize(self, channel: int, rows: int, columns: int) -> None:
        self.say(Kind.RESIZE, channel, SIZE.pack(rows, columns))

    def grant(self, channel: int, size: int) -> None:
        self.say(Kind.WINDOW, channel, NUMBER.pack(size))

    def step(self) -> list[Kind]:
        """Hear the agent once."""
        received = self.socket.recv(1 << 18)
        if not received:
            raise EOFError
        kinds = []
        for kind, channel, payload in self.decoder.feed(received):
            kinds.append(kind)
            if kind is Kind.HELLO:
                self.greeted = True
                continue
            command = self.commands[channel]
            assert command.end is None, "nothing follows the end"
            match kind:
                case Kind.OPENED:
                    command.pid = NUMBER.unpack(payload)[0]
                case Kind.STDOUT | Kind.STDERR:
                    stream = command.stdout if kind is Kind.STDOUT else command.stderr
                    stream += payload
                    command.owed += len(payload)
                    assert command.owed <= WINDOW, "the agent respects the window"
                    if command.granting and command.owed >= GRANT:
                        self.grant(channel, command.owed)
                        command.owed = 0
                case Kind.WINDOW:
                    command.credit += NUMBER.unpack(payload)[0]
                    assert command.credit <= WINDOW, "the agent does not grant what it has not taken"
                    self._push(channel)
                case Kind.EXIT:
                    signalled, number = EXIT.unpack(payload)
                    command.end = ("signal" if signalled else "exit", number)
                case Kind.FAIL:
                    command.end = ("fail", payload[0], payload[1:].decode())
        return kinds

    def until(self, channel: int, text: bytes) -> Command:
        """Hear the agent until a command's output contains a text."""
        command = self.commands[channel]
        while text not in command.stdout:
            assert command.end is None, (bytes(command.stdout), bytes(command.stderr), command.end)
            self.step()
        return command

    def wait(self, *channels: int) -> Command:
        for channel in channels:
            while self.commands[channel].end is None:
                self.step()
        return self.commands[channels[-1]]

    def run(self, *argv: str, content: bytes = b"", **options: object) -> Command:
        channel = self.open(*argv, **options)  # type: ignore[arg-type]
        if options.get("stdin", True) and not options.get("terminal"):
            self.feed(channel, content)
        return self.wait(channel)


@contextmanager
def agent(program: Path, *prefix: str, environment: dict[str, str] | None = None) -> Iterator[Link]:
    """Run the agent as a plain process, or as ``prefix`` runs it."""
    ours, theirs = socket.socketpair()
    started = subprocess.Popen(
        [*prefix, str(program), "agent"],
        stdin=theirs,
        stdout=subprocess.DEVNULL,
        env={"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"} if environment is None else environment,
    )
    theirs.close()
    try:
        yield Link(ours).greet()
    finally:
        ours.close()
        started.wait(PATIENCE)
