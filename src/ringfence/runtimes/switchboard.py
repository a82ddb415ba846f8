"""The supervisor's loop: connects sessions with channels of the agent's link, and believes neither side.

Theory of operation
-------------------
The agent is hostile: whoever is root in the sandbox can replace it. So nothing it says is passed on before it
was checked: the shape of a frame by the codec, its channel and its moment here (a channel that we opened and
that is not over; ``OPENED`` once and first; streams within the window that the client has granted; windows
never above what we were sent). The first thing that cannot be right ends the link, and with it every session:
exit code 125.

A session's client is its owner or root (``SO_PEERCRED``), trusted but not to be without mistakes: the same
checks, and the first mistake ends that session alone.

Windows are end to end: what a client grants is forwarded to the agent and the other way round, after
accounting. No window is ever above 256 KiB, so a session that does not read costs that much here and stalls
nobody else. Frames smaller than their headers could inflate that: above ``HELD_MAX`` in total the link is not
read, which the agent has then brought upon its own sandbox. In the other direction, sessions are not read
while the link's queue is above ``QUEUE_MAX``.

Connections are accepted once the agent has said ``HELLO``: an answered ``WATCH`` therefore means that the
sandbox can be spoken to. A lost client is a hang-up. Channels are numbered once and never again.

Every running sandbox keeps one of these in memory: it is a plain epoll loop, and imports as little as it can.
"""

from __future__ import annotations

import select
import socket
import time
from struct import Struct

from ringfence.sandbox.frames import (
    EXIT,
    FROM_AGENT,
    NUMBER,
    SESSION,
    SESSIONS,
    TO_SUPERVISOR,
    VERSION,
    WINDOW,
    Decoder,
    Frame,
    FrameError,
    Kind,
    encode,
)

CHANNELS_MAX = 64
"""Those of sessions, and those whose client is gone and whose command is being killed."""
CONNECTIONS_MAX = 96
"""Sessions, watchers, and connections that have not said yet what they are."""
HELD_MAX = 32 << 20
QUEUE_MAX = 1 << 20
CHUNK = 1 << 17
PATIENCE = 7.0
"""Seconds that ``SHUTDOWN`` waits for commands to end; the agent kills after five."""

FAILED = 125
_CODES = frozenset({FAILED, 126, 127})
_CREDENTIALS = Struct("iII")
_IN, _OUT = select.EPOLLIN, select.EPOLLOUT


class Stream:
    """A non-blocking socket, the decoder of what it says and the queue of what it is told."""

    __slots__ = ("decoder", "events", "queue", "socket")

    def __init__(self, connection: socket.socket, accepted: frozenset[Kind]) -> None:
        connection.setblocking(False)
        self.socket = connection
        self.decoder = Decoder(accepted)
        self.queue = bytearray()
        self.events = 0

    def receive(self) -> list[Frame]:
        """Read once. An end of file is a loss like any other."""
        try:
            received = self.socket.recv(CHUNK)
        except BlockingIOError:
            return []
        if not received:
            raise ConnectionResetError
        return self.decoder.feed(received)

    def tell(self, kind: Kind, channel: int, payload: bytes = b"") -> None:
        self.queue += encode(kind, channel, payload)

    def flush(self) -> None:
        while self.queue:
            try:
                with memoryview(self.queue) as waiting:
                    sent = self.socket.send(waiting[:CHUNK])
            except BlockingIOError:
                return
            del self.queue[:sent]


class Channel:
    """A command on the link. A credit is what the sender of that direction may still send."""

    __slots__ = ("hung", "input_ended", "number", "opened", "session", "to_agent", "to_client")

    def __init__(self, number: int, session: Session) -> None:
        self.number = number
        self.session: Session | None = session
        """None: the client is gone, and the command is told to go."""
        self.opened = False
        self.hung = False
        self.input_ended = False
        self.to_agent = WINDOW
        self.to_client = WINDOW


class Session(Stream):
    """A connection: a session's once it has opened a channel, a watcher's, or nobody knows yet whose."""

    __slots__ = ("channel", "over", "watches")

    def __init__(self, connection: socket.socket) -> None:
        super().__init__(connection, TO_SUPERVISOR)
        self.channel: Channel | None = None
        self.watches = False
        self.over = False
        """Nothing more is heard from it; it closes when its queue is empty."""


class Switchboard:
    """The loop itself. ``run`` returns why it ended."""

    def __init__(self, link: socket.socket, listener: socket.socket, *, owner_uid: int) -> None:
        listener.setblocking(False)
        self._link = Stream(link, FROM_AGENT)
        self._listener = listener
        self._listens = False
        self._peers = frozenset({0, owner_uid})
        self._connections: dict[int, Session] = {}
        self._channels: dict[int, Channel] = {}
        self._last = 0
        self._greeted = False
        self._open = 0
        self._clean = True
        self._deadline = 0.0
        """Of a shutdown; 0: none."""
        self._reason = ""
        self._epoll = select.epoll()

    def run(self) -> str:
        while not self._reason:
            self._arm()
            wait = max(0.0, self._deadline - time.monotonic()) if self._deadline else None
            self._turn({number for number, _ in self._epoll.poll(wait)})
        for session in self._connections.values():
            self._bid_farewell(session)
        return self._reason

    def _turn(self, ready: set[int]) -> None:
        if self._link.socket.fileno() in ready:
            try:
                for frame in self._link.receive():
                    self._hear(*frame)
            except FrameError as error:
                self._reason = f"the agent broke the protocol: {error}"
            except OSError:
                self._reason = "the agent is gone"
        if self._listener.fileno() in ready:
            self._accept()
        for number in ready & self._connections.keys():
            self._serve(self._connections[number])
        if self._deadline and not self._reason and (not self._channels or time.monotonic() >= self._deadline):
            self._reason = "asked to end"

    # -- sending, waiting, accepting ---------------------------------------------------------

    def _arm(self) -> None:
        """Send what can be sent, close what is over, and register for the rest."""
        held = 0
        for session in tuple(self._connections.values()):
            try:
                session.flush()
            except OSError:
                self._lose(session)
            else:
                held += len(session.queue)
                if session.over and not session.queue:
                    self._close(session)
        try:
            self._link.flush()
        except OSError:
            self._link.queue.clear()  # reading it says the same
        self._watch(self._link, reads=held < HELD_MAX)
        hears = len(self._link.queue) < QUEUE_MAX
        for session in self._connections.values():
            self._watch(session, reads=hears and not session.over)
        listens = self._greeted and not self._deadline and len(self._connections) < CONNECTIONS_MAX
        if listens != self._listens:
            self._listens = listens
            if listens:
                self._epoll.register(self._listener, _IN)
            else:
                self._epoll.unregister(self._listener)

    def _watch(self, stream: Stream, *, reads: bool) -> None:
        events = (_IN if reads else 0) | (_OUT if stream.queue else 0)
        if events == stream.events:
            return
        if not stream.events:
            self._epoll.register(stream.socket, events)
        elif events:
            self._epoll.modify(stream.socket, events)
        else:  # epoll would report a hang-up for ever
            self._epoll.unregister(stream.socket)
        stream.events = events

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:  # the client has already left
            return
        raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        _, uid, _ = _CREDENTIALS.unpack(raw)
        if uid not in self._peers:
            connection.close()
            return
        self._connections[connection.fileno()] = Session(connection)

    def _close(self, session: Session) -> None:
        del self._connections[session.socket.fileno()]
        session.socket.close()  # which takes it out of the epoll set

    # -- what the agent says -----------------------------------------------------------------

    def _hear(self, kind: Kind, number: int, payload: bytes) -> None:
        if kind is Kind.HELLO:
            if self._greeted or number or payload != NUMBER.pack(VERSION):
                raise FrameError("a greeting that is not version 1, or not the first")
            self._greeted = True
            return
        channel = self._channels.get(number)
        if channel is None:
            raise FrameError(f"{kind.name} on channel {number}, which is not open")
        if kind is Kind.OPENED or kind is Kind.EXIT:
            if channel.opened is (kind is Kind.OPENED):
                raise FrameError(f"{kind.name} at the wrong time")
            channel.opened = True
        elif kind is Kind.STDOUT or kind is Kind.STDERR:
            channel.to_client -= len(payload)
            if not channel.opened or channel.to_client < 0:
                raise FrameError(f"{kind.name} of {len(payload)} bytes beyond its window")
        elif kind is Kind.WINDOW:
            channel.to_agent = _granted(channel.to_agent, payload)
        if kind is Kind.EXIT:
            _check_exit(payload)
        elif kind is Kind.FAIL and payload[0] not in _CODES:
            raise FrameError(f"a failure with exit code {payload[0]}")
        if channel.session is not None:
            channel.session.tell(kind, SESSION, payload)
        if kind is Kind.EXIT or kind is Kind.FAIL:
            self._conclude(channel, clean=kind is Kind.EXIT or payload[0] != FAILED)

    def _conclude(self, channel: Channel, *, clean: bool) -> None:
        """The command is over; its client, if it is still there, has been told."""
        del self._channels[channel.number]
        session = channel.session
        if session is not None:
            session.channel, session.over = None, True
            self._count(-1, clean=clean and not channel.hung)

    # -- what clients say --------------------------------------------------------------------

    def _serve(self, session: Session) -> None:
        try:
            for frame in session.receive():
                if session.over:
                    break
                if session.channel is None:
                    self._begin(session, *frame)
                else:
                    self._forward(session.channel, *frame)
        except (OSError, FrameError):
            self._lose(session)

    def _begin(self, session: Session, kind: Kind, number: int, payload: bytes) -> None:
        if kind is Kind.WATCH and not session.watches:
            session.watches = True
            session.tell(Kind.SESSIONS, SESSION, SESSIONS.pack(self._open, self._clean))
        elif kind is Kind.SHUTDOWN:
            self._deadline = self._deadline or time.monotonic() + PATIENCE
            for channel in self._channels.values():
                self._hang_up(channel)
        elif kind is Kind.OPEN and number == SESSION and not session.watches:
            if len(self._channels) >= CHANNELS_MAX or self._deadline:
                text = "the sandbox is stopping" if self._deadline else "too many sessions in this sandbox"
                session.tell(Kind.FAIL, SESSION, bytes((FAILED,)) + text.encode())
                session.over = True
                return
            self._last += 1
            session.channel = self._channels[self._last] = Channel(self._last, session)
            self._link.tell(Kind.OPEN, self._last, payload)
            self._count(+1, clean=self._clean)
        else:
            raise FrameError

    def _forward(self, channel: Channel, kind: Kind, number: int, payload: bytes) -> None:
        if number != SESSION:
            raise FrameError
        if kind is Kind.STDIN:
            channel.to_agent -= len(payload)
            if channel.input_ended or channel.to_agent < 0:
                raise FrameError
            channel.input_ended = not payload
        elif kind is Kind.WINDOW:
            channel.to_client = _granted(channel.to_client, payload)
        elif kind is Kind.HANGUP:
            self._hang_up(channel)
            return
        elif kind is not Kind.RESIZE and kind is not Kind.SIGNAL:
            raise FrameError
        if not channel.hung:
            self._link.tell(kind, channel.number, payload)

    def _hang_up(self, channel: Channel) -> None:
        if not channel.hung:
            channel.hung = True
            self._link.tell(Kind.HANGUP, channel.number)

    def _lose(self, session: Session) -> None:
        """The client is gone or has made a mistake: so is its session."""
        channel = session.channel
        if channel is not None:
            channel.session = session.channel = None
            self._hang_up(channel)
            self._count(-1, clean=False)
        self._close(session)

    # -- endings -----------------------------------------------------------------------------

    def _count(self, change: int, *, clean: bool) -> None:
        self._open += change
        self._clean = clean
        for watcher in self._connections.values():
            if watcher.watches and len(watcher.queue) < QUEUE_MAX:
                watcher.tell(Kind.SESSIONS, SESSION, SESSIONS.pack(self._open, clean))

    def _bid_farewell(self, session: Session) -> None:
        """Say why, as far as the client's socket takes it at once."""
        if session.channel is not None:
            session.tell(Kind.FAIL, SESSION, bytes((FAILED,)) + self._reason.encode()[:1024])
        try:
            session.flush()
        except OSError:
            """It has gone before us."""
        session.socket.close()


def _granted(credit: int, payload: bytes) -> int:
    (granted,) = NUMBER.unpack(payload)
    if not 0 < granted <= WINDOW - credit:
        raise FrameError(f"a grant of {granted} bytes on top of {credit}")
    return int(credit + granted)


def _check_exit(payload: bytes) -> None:
    kind, number = EXIT.unpack(payload)
    if (kind, number) not in _EXITS:
        raise FrameError(f"an exit of kind {kind} and number {number}")


_EXITS = frozenset((0, code) for code in range(256)) | frozenset((1, number) for number in range(1, 65))
