"""The host's end of a session: a person's terminal, or pipes, joined with a command in a sandbox.

Theory of operation
-------------------
One thread waits with ``poll`` for the connection, standard input, standard output, standard error and
signals (which a wake-up descriptor turns into input like any other). ``poll`` rather than ``epoll``, because
standard input may be a file. The standard streams are never made non-blocking: that flag belongs to the open
file, which the caller's shell shares. Instead a stream that ``poll`` calls writable is given no more than a
pipe takes at once.

Nothing is buffered without a bound: standard input is read while the command takes it, output is granted to
the sandbox as it is written here. With a terminal, the local one is raw and everything, Ctrl-C included,
travels as bytes; whatever way the session ends, and whenever it is suspended, the terminal gets its mode
back. Without one, Ctrl-C is a signal to the command, the second one hangs up, and the third one leaves.

What cannot be started or goes away is said on standard error and is exit code 125, 126 or 127; a command's
own exit code, or 128 and its signal, is passed through. The text of a failure comes out of the sandbox and is
printed without what could steer a terminal.

This module is imported at the start of every ``exec``: it takes small parts of the standard library alone.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import termios
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from ringfence.sandbox.frames import (
    EXIT,
    FROM_SUPERVISOR,
    GRANT,
    NUMBER,
    PAYLOAD_MAX,
    SESSION,
    SIZE,
    WINDOW,
    Decoder,
    FrameError,
    Kind,
    encode,
)
from ringfence.sandbox.opening import Opening, OpeningError

FAILED = 125
_AT_ONCE = 4096
"""A pipe that is writable takes this much (PIPE_BUF) without blocking."""
_QUEUE_MAX = 2 * PAYLOAD_MAX
_FORWARDED = frozenset({signal.SIGINT, signal.SIGTERM, signal.SIGQUIT})
"""Without a terminal: to the command at first, a hang-up the second time, and then we leave."""
_WATCHED = _FORWARDED | {signal.SIGHUP, signal.SIGWINCH, signal.SIGTSTP, signal.SIGCONT}


def attach(
    socket_path: str,
    *,
    argv: Sequence[str],
    environment: Mapping[str, str],
    cwd: str,
    user: str,
    tty: bool,
    stdin: bool,
    report: Callable[[str], None] | None = None,
) -> int:
    """Run a command in a sandbox on our standard streams and return the exit code to leave with.

    ``tty`` gives the command a terminal; ours is made raw if standard input is one and is attached. Without
    ``stdin`` the command has no input. ``report`` is told why a command could not be run, in one line.
    """
    say = report or _say
    raw = tty and stdin and os.isatty(0)
    try:
        opening = Opening(
            argv=tuple(argv),
            environment=tuple(environment.items()),
            cwd=cwd,
            user=user,
            terminal=_size() if tty else None,
            stdin=stdin,
        ).encode()
    except OpeningError as error:
        say(str(error))
        return 126
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    with connection:
        try:
            connection.connect(socket_path)
        except OSError as error:
            say(f"the sandbox cannot be reached: {error.strerror or error}")
            return FAILED
        connection.setblocking(False)
        screen = _Screen(raw=raw)
        with _signals() as alarm:
            session = _Session(connection, opening, screen, alarm, tty=tty, stdin=stdin)
            try:
                screen.enter()
                code = session.run()
            finally:
                screen.leave()
    if session.failure:
        say(session.failure)
    return code


class _Screen:
    """Our terminal's mode. What is not a terminal is left alone."""

    def __init__(self, *, raw: bool) -> None:
        self._wanted = raw
        self._before: list[int | list[bytes | int]] | None = None

    def enter(self) -> None:
        if not self._wanted or self._before is not None:
            return
        before = termios.tcgetattr(0)
        mode = termios.tcgetattr(0)
        flags = [flag for flag in mode[:4] if isinstance(flag, int)]
        flags[0] &= ~_RAW_INPUT
        flags[1] &= ~termios.OPOST
        flags[2] = flags[2] & ~(termios.CSIZE | termios.PARENB) | termios.CS8
        flags[3] &= ~_RAW_LOCAL
        mode[:4] = flags
        characters = mode[6]
        assert isinstance(characters, list)
        characters[termios.VMIN], characters[termios.VTIME] = 1, 0
        self._before = before
        termios.tcsetattr(0, termios.TCSADRAIN, mode)

    def leave(self) -> None:
        before, self._before = self._before, None
        if before is not None:
            try:
                termios.tcsetattr(0, termios.TCSADRAIN, before)
            except termios.error:
                """The terminal is gone, and its mode with it."""


_RAW_INPUT = (
    termios.IGNBRK
    | termios.BRKINT
    | termios.PARMRK
    | termios.ISTRIP
    | termios.INLCR
    | termios.IGNCR
    | termios.ICRNL
    | termios.IXON
)
_RAW_LOCAL = termios.ECHO | termios.ECHONL | termios.ICANON | termios.ISIG | termios.IEXTEN


class _Output:
    """One of our output streams and what still has to be written to it."""

    __slots__ = ("descriptor", "waiting")

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.waiting = bytearray()

    def write(self) -> int:
        with memoryview(self.waiting) as waiting:
            written = os.write(self.descriptor, waiting[:_AT_ONCE])
        del self.waiting[:written]
        return written


class _Session:
    """The conversation. ``run`` returns the exit code; ``failure`` is then what to tell the person."""

    def __init__(
        self,
        connection: socket.socket,
        opening: bytes,
        screen: _Screen,
        alarm: socket.socket,
        *,
        tty: bool,
        stdin: bool,
    ) -> None:
        self.failure = ""
        self._connection = connection
        self._decoder = Decoder(FROM_SUPERVISOR)
        self._queue = bytearray(encode(Kind.OPEN, SESSION, opening))
        self._screen = screen
        self._alarm = alarm
        self._tty = tty
        self._input = stdin
        self._credit = WINDOW
        """What may still be sent of standard input."""
        self._owed = 0
        """What has been written and not been granted yet."""
        self._outputs = (_Output(1), _Output(2))
        self._signalled = 0
        self._code: int | None = None
        """Of the command, once it is over; what is left then is to write its output."""
        self._leaving: int | None = None
        """The code to leave with at once."""

    def run(self) -> int:
        while (code := self._verdict()) is None:
            for descriptor, event in self._poll():
                self._turn(descriptor, event)
        return code

    def _verdict(self) -> int | None:
        if self._leaving is not None:
            return self._leaving
        return None if any(output.waiting for output in self._outputs) else self._code

    def _poll(self) -> list[tuple[int, int]]:
        poll = select.poll()
        poll.register(self._alarm, select.POLLIN)
        if self._code is None:
            hears = sum(len(output.waiting) for output in self._outputs) < 2 * WINDOW
            events = (select.POLLIN if hears else 0) | (select.POLLOUT if self._queue else 0)
            poll.register(self._connection, events)
            if self._input and self._credit and len(self._queue) < _QUEUE_MAX:
                poll.register(0, select.POLLIN)
        for output in self._outputs:
            if output.waiting:
                poll.register(output.descriptor, select.POLLOUT)
        return poll.poll()

    def _turn(self, descriptor: int, event: int) -> None:
        if descriptor == self._alarm.fileno():
            for number in self._alarm.recv(64):
                self._signal(number)
        elif descriptor == self._connection.fileno():
            self._converse(event)
        elif descriptor == 0:
            self._read()
        else:
            self._write(self._outputs[descriptor - 1])

    # -- the connection ----------------------------------------------------------------------

    def _tell(self, kind: Kind, payload: bytes = b"") -> None:
        if self._code is None:
            self._queue += encode(kind, SESSION, payload)

    def _converse(self, event: int) -> None:
        try:
            if self._queue:
                with memoryview(self._queue) as waiting:
                    sent = self._connection.send(waiting)
                del self._queue[:sent]
        except BlockingIOError:
            pass
        except OSError:
            """Whoever closed it may have said why: what is still to be read decides."""
            self._queue.clear()
            event |= select.POLLIN
        if not event & ~select.POLLOUT:
            return
        try:
            received = self._connection.recv(4 * PAYLOAD_MAX)
            frames = self._decoder.feed(received)
        except BlockingIOError:
            return
        except (OSError, FrameError):
            received, frames = b"", []
        if not received:
            self._fail(FAILED, "the connection to the sandbox was lost")
        for kind, _, payload in frames:
            self._hear(kind, payload)

    def _hear(self, kind: Kind, payload: bytes) -> None:
        if kind is Kind.STDOUT or kind is Kind.STDERR:
            self._outputs[kind is Kind.STDERR].waiting += payload
        elif kind is Kind.WINDOW:
            self._credit += NUMBER.unpack(payload)[0]
        elif kind is Kind.EXIT:
            signalled, number = EXIT.unpack(payload)
            self._code = 128 + number if signalled else number
        elif kind is Kind.FAIL:
            self._fail(payload[0], printable(payload[1:]))

    def _fail(self, code: int, text: str) -> None:
        if self._code is None:
            self._code, self.failure = code, text

    # -- our standard streams ----------------------------------------------------------------

    def _read(self) -> None:
        try:
            received = os.read(0, min(self._credit, PAYLOAD_MAX))
        except BlockingIOError:  # someone else has made it non-blocking, and was faster
            return
        except OSError:
            received = b""
        if received or not self._tty:
            self._tell(Kind.STDIN, received)
            self._credit -= len(received)
            self._input = bool(received)
        else:  # a terminal does not end but go away
            self._leaving = 128 + signal.SIGHUP

    def _write(self, output: _Output) -> None:
        try:
            written = output.write()
        except BrokenPipeError:
            self._leaving = 128 + signal.SIGPIPE
            return
        except BlockingIOError:
            return
        except OSError as error:
            self._leaving = FAILED
            self.failure = f"cannot write the command's output: {error.strerror or error}"
            return
        self._owed += written
        if self._owed >= GRANT:
            self._tell(Kind.WINDOW, NUMBER.pack(self._owed))
            self._owed = 0

    # -- signals -----------------------------------------------------------------------------

    def _signal(self, number: int) -> None:
        if number == signal.SIGWINCH:
            self._resize()
        elif number == signal.SIGTSTP:
            self._screen.leave()
            os.kill(os.getpid(), signal.SIGSTOP)
        elif number == signal.SIGCONT:
            self._screen.enter()
            self._resize()
        elif number == signal.SIGHUP or self._tty or self._code is not None or self._signalled > 1:
            self._leaving = 128 + number  # the supervisor hangs up for a client that is gone
        elif number in _FORWARDED:
            self._signalled += 1
            if self._signalled == 1:
                self._tell(Kind.SIGNAL, bytes((number,)))
            else:
                self._tell(Kind.HANGUP)

    def _resize(self) -> None:
        if self._tty:
            self._tell(Kind.RESIZE, SIZE.pack(*_size()))


@contextmanager
def _signals() -> Iterator[socket.socket]:
    """Turn signals into bytes of a socket while the session lasts. Those that are ignored (nohup) stay so."""
    hear, tell = socket.socketpair()
    with hear, tell:
        tell.setblocking(False)
        watched = [number for number in _WATCHED if signal.getsignal(number) != signal.SIG_IGN]
        before = {number: signal.signal(number, _noted) for number in watched}
        wakeup = signal.set_wakeup_fd(tell.fileno(), warn_on_full_buffer=False)
        try:
            yield hear
        finally:
            signal.set_wakeup_fd(wakeup)
            for number, disposition in before.items():
                signal.signal(number, disposition)


def _noted(_number: int, _frame: object) -> None:
    """A signal without a Python handler does not reach the wake-up descriptor."""


def _size() -> tuple[int, int]:
    for descriptor in (0, 1, 2):
        try:
            columns, rows = os.get_terminal_size(descriptor)
        except OSError:
            continue
        if rows and columns:
            return rows, columns
    return 24, 80


def printable(text: bytes) -> str:
    """Return a text from the sandbox as one line without control characters."""
    return "".join(c if c.isprintable() else "�" for c in text.decode("utf-8", "replace"))


def _say(text: str) -> None:
    print(f"sbx: {text}", file=sys.stderr, flush=True)
