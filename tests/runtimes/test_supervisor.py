"""The supervisor between a hostile agent and mistaken clients: dialogues, then the process."""

from __future__ import annotations

import os
import re
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from agent_rig import PATIENCE
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ringfence.application.errors import Unavailable
from ringfence.runtimes import switchboard
from ringfence.runtimes.supervisor import launch
from ringfence.runtimes.switchboard import CHANNELS_MAX, Switchboard
from ringfence.sandbox.frames import (
    EXIT,
    FROM_SUPERVISOR,
    HEADER,
    NUMBER,
    SESSION,
    SESSIONS,
    SIZE,
    TO_AGENT,
    WINDOW,
    Decoder,
    Frame,
    Kind,
    encode,
)

HELLO = encode(Kind.HELLO, 0, NUMBER.pack(1))
OPENED = NUMBER.pack(77)


class Peer:
    """One end of a conversation with the supervisor; ``hear`` returns the next frame, or None at the end."""

    def __init__(self, connection: socket.socket, accepted: frozenset[Kind]) -> None:
        connection.settimeout(PATIENCE)
        self.socket = connection
        self._decoder = Decoder(accepted)
        self._frames: list[Frame] = []

    def say(self, kind: Kind, channel: int = SESSION, payload: bytes = b"") -> None:
        self.socket.sendall(encode(kind, channel, payload))

    def hear(self) -> Frame | None:
        while not self._frames:
            try:
                received = self.socket.recv(1 << 18)
            except ConnectionResetError:
                return None
            if not received:
                return None
            self._frames += self._decoder.feed(received)
        return self._frames.pop(0)

    def rest(self) -> list[Frame]:
        frames = []
        while frame := self.hear():
            frames.append(frame)
        return frames

    def close(self) -> None:
        self.socket.close()


class Board:
    """A switchboard in a thread, with us as its agent and its clients."""

    def __init__(self, directory: Path) -> None:
        ours, theirs = socket.socketpair()
        self.path = str(directory / "sessions.sock")
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.path)
        self._listener.listen(128)
        self.agent = Peer(ours, TO_AGENT)
        self.switchboard = Switchboard(theirs, self._listener, owner_uid=os.geteuid())
        self.clients: list[Peer] = []
        self._theirs = theirs
        self._reason: str | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._reason = self.switchboard.run()
        finally:  # as when the process ends
            self._theirs.close()
            self._listener.close()

    def connect(self) -> Peer:
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(self.path)
        self.clients.append(Peer(connection, FROM_SUPERVISOR))
        return self.clients[-1]

    def session(self) -> tuple[Peer, int]:
        """Open a session; the agent has heard of it under the number returned."""
        client = self.connect()
        client.say(Kind.OPEN, payload=b"anything")
        frame = self.agent.hear()
        assert frame is not None
        assert (frame[0], frame[2]) == (Kind.OPEN, b"anything")
        return client, frame[1]

    def running(self) -> tuple[Peer, int]:
        client, number = self.session()
        self.agent.say(Kind.OPENED, number, OPENED)
        assert client.hear() == (Kind.OPENED, SESSION, OPENED)
        return client, number

    def watcher(self) -> Peer:
        watcher = self.connect()
        watcher.say(Kind.WATCH)
        return watcher

    def reason(self) -> str:
        self._thread.join(PATIENCE)
        assert self._reason is not None, "the loop has ended, and not by an exception"
        return self._reason

    def close(self) -> None:
        for peer in (self.agent, *self.clients):
            peer.close()
        self.reason()


@pytest.fixture
def board(tmp_path: Path) -> Iterator[Board]:
    board = Board(tmp_path)
    yield board
    board.close()


@pytest.fixture
def greeted(board: Board) -> Board:
    board.agent.socket.sendall(HELLO)
    return board


def sessions(number: int, *, clean: bool) -> Frame:
    return Kind.SESSIONS, SESSION, SESSIONS.pack(number, clean)


def failure(text: str) -> Frame:
    return Kind.FAIL, SESSION, b"\x7d" + text.encode()


# -- dialogues --------------------------------------------------------------------------------------


def test_a_watcher_is_answered_once_the_agent_has_greeted(board: Board) -> None:
    watcher = board.watcher()
    watcher.socket.setblocking(False)
    with pytest.raises(BlockingIOError):
        watcher.socket.recv(1)
    watcher.socket.settimeout(PATIENCE)
    board.agent.socket.sendall(HELLO)
    assert watcher.hear() == sessions(0, clean=True)


def test_frames_pass_both_ways_under_the_number_of_either_side(greeted: Board) -> None:
    (one, first), (two, second) = greeted.running(), greeted.running()
    assert first != second
    to_agent = [
        (Kind.STDIN, b"input"),
        (Kind.RESIZE, SIZE.pack(24, 80)),
        (Kind.SIGNAL, b"\2"),
        (Kind.STDIN, b""),
    ]
    for client, number in ((two, second), (one, first)):
        for kind, payload in to_agent:
            client.say(kind, payload=payload)
        assert [greeted.agent.hear() for _ in to_agent] == [(k, number, p) for k, p in to_agent]
    to_client = [
        (Kind.WINDOW, NUMBER.pack(5)),
        (Kind.STDOUT, b"\0\xff" * 1000),
        (Kind.STDERR, b"errors"),
        (Kind.EXIT, EXIT.pack(1, 9)),
    ]
    for client, number in ((one, first), (two, second)):
        for kind, payload in to_client:
            greeted.agent.say(kind, number, payload)
        assert client.rest() == [(kind, SESSION, payload) for kind, payload in to_client]


def test_watchers_hear_of_every_change_and_how_the_last_session_ended(greeted: Board) -> None:
    watcher = greeted.watcher()
    assert watcher.hear() == sessions(0, clean=True)
    one, first = greeted.running()
    two, second = greeted.running()
    assert [watcher.hear(), watcher.hear()] == [sessions(1, clean=True), sessions(2, clean=True)]
    one.close()
    assert watcher.hear() == sessions(1, clean=False)
    greeted.agent.say(Kind.EXIT, second, EXIT.pack(0, 3))
    assert watcher.hear() == sessions(0, clean=True)
    assert two.rest() == [(Kind.EXIT, SESSION, EXIT.pack(0, 3))]
    assert greeted.agent.hear() == (Kind.HANGUP, first, b"")
    greeted.agent.say(Kind.EXIT, first, EXIT.pack(1, 1))
    late = greeted.watcher()
    assert late.hear() == sessions(0, clean=True)


@pytest.mark.parametrize(
    ("payload", "clean"), [(b"\x7fnot found", True), (b"\x7ecannot", True), (b"\x7dbroken", False)]
)
def test_a_command_that_could_not_be_run_is_a_clean_end_unless_the_sandbox_failed(
    greeted: Board, payload: bytes, clean: bool
) -> None:
    watcher = greeted.watcher()
    client, number = greeted.session()
    greeted.agent.say(Kind.FAIL, number, payload)
    assert client.rest() == [(Kind.FAIL, SESSION, payload)]
    assert [watcher.hear() for _ in range(3)][-1] == sessions(0, clean=clean)


def test_a_client_that_hangs_up_itself_still_hears_the_end_which_is_not_clean(greeted: Board) -> None:
    watcher = greeted.watcher()
    client, number = greeted.running()
    client.say(Kind.HANGUP)
    client.say(Kind.STDIN, payload=b"nobody wants this")
    assert greeted.agent.hear() == (Kind.HANGUP, number, b"")
    greeted.agent.say(Kind.EXIT, number, EXIT.pack(1, 1))
    assert client.rest() == [(Kind.EXIT, SESSION, EXIT.pack(1, 1))]
    assert [watcher.hear() for _ in range(3)][-1] == sessions(0, clean=False)


def test_what_a_lost_client_s_command_still_says_is_swallowed(greeted: Board) -> None:
    client, number = greeted.running()
    client.close()
    assert greeted.agent.hear() == (Kind.HANGUP, number, b"")
    greeted.agent.say(Kind.STDOUT, number, b"x" * 1000)
    greeted.agent.say(Kind.EXIT, number, EXIT.pack(1, 1))
    greeted.running()


def test_there_is_a_most_of_sessions_and_those_that_are_dying_count(greeted: Board) -> None:
    opened = [greeted.session() for _ in range(CHANNELS_MAX)]
    opened[0][0].close()
    assert greeted.agent.hear() == (Kind.HANGUP, opened[0][1], b"")
    refused = greeted.connect()
    refused.say(Kind.OPEN)
    assert refused.rest() == [failure("too many sessions in this sandbox")]
    greeted.agent.say(Kind.FAIL, opened[0][1], b"\x7dgone")
    greeted.agent.say(Kind.FAIL, opened[1][1], b"\x7dgone")
    assert opened[1][0].rest() == [failure("gone")]
    greeted.session()


def test_a_shutdown_hangs_up_and_ends_when_all_commands_have(greeted: Board) -> None:
    client, number = greeted.running()
    greeted.watcher().say(Kind.SHUTDOWN)
    assert greeted.agent.hear() == (Kind.HANGUP, number, b"")
    greeted.agent.say(Kind.EXIT, number, EXIT.pack(1, 1))
    assert client.rest() == [(Kind.EXIT, SESSION, EXIT.pack(1, 1))]
    assert greeted.reason() == "asked to end"


def test_a_shutdown_does_not_wait_for_ever(greeted: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(switchboard, "PATIENCE", 0.05)
    client, _ = greeted.running()
    greeted.connect().say(Kind.SHUTDOWN)
    assert client.rest() == [failure("asked to end")]
    assert greeted.reason() == "asked to end"


def test_an_agent_that_is_gone_takes_every_session_with_it(greeted: Board) -> None:
    clients = [greeted.session()[0], greeted.running()[0]]
    watcher = greeted.watcher()
    watcher.hear()
    greeted.agent.close()
    for client in clients:
        assert client.rest() == [failure("the agent is gone")]
    assert watcher.rest() == []
    assert greeted.reason() == "the agent is gone"


# -- neither side is believed -----------------------------------------------------------------------

FULL = b"x" * 65536


@pytest.mark.parametrize(
    "said",
    [
        [(Kind.HELLO, 0, NUMBER.pack(1))],
        [(Kind.OPENED, 1, OPENED)],
        [(Kind.OPENED, 2, OPENED)] * 2,
        [(Kind.STDOUT, 0, b"x")],
        [(Kind.STDOUT, 3, b"x")],
        [(Kind.STDOUT, 2, b"before it was opened")],
        [(Kind.EXIT, 2, EXIT.pack(0, 0))],
        [(Kind.EXIT, 1, EXIT.pack(0, 256))],
        [(Kind.EXIT, 1, EXIT.pack(1, 0))],
        [(Kind.EXIT, 1, EXIT.pack(1, 65))],
        [(Kind.EXIT, 1, EXIT.pack(2, 1))],
        [(Kind.EXIT, 1, EXIT.pack(0, 0)), (Kind.STDOUT, 1, b"after the end")],
        [(Kind.FAIL, 1, b"\x01text")],
        [(Kind.FAIL, 1, b"\x00")],
        [(Kind.STDOUT, 1, FULL)] * 4 + [(Kind.STDERR, 1, b"x")],
        [(Kind.WINDOW, 1, NUMBER.pack(1))],
        [(Kind.WINDOW, 1, NUMBER.pack(0))],
        [(Kind.WINDOW, 1, NUMBER.pack(0xFFFFFFFF))],
    ],
)
def test_an_agent_that_says_what_cannot_be_is_cut_off(greeted: Board, said: list[Frame]) -> None:
    running, _ = greeted.running()
    opened, _ = greeted.session()
    for frame in said:
        greeted.agent.say(*frame)
    assert greeted.reason().startswith("the agent broke the protocol: ")
    last = opened.rest()[-1]
    assert last[:2] == (Kind.FAIL, SESSION)
    assert last[2].startswith(b"\x7dthe agent broke the protocol")
    assert greeted.agent.rest() == []
    assert all(frame in [(k, SESSION, p) for k, _, p in said] for frame in running.rest()[:-1])


@pytest.mark.parametrize(
    "said",
    [
        b"GET / HTTP/1.1\r\n",
        encode(Kind.HELLO, 1, NUMBER.pack(1)),
        encode(Kind.HELLO, 0, NUMBER.pack(2)),
        encode(Kind.OPENED, 1, OPENED),
        HEADER.pack(Kind.HELLO, 0, 0, 0, 5) + b"12345",
        HEADER.pack(Kind.STDIN, 0, 0, 1, 1) + b"x",
        HEADER.pack(Kind.STDOUT, 0, 0, 1, 65537),
        HEADER.pack(Kind.STDOUT, 1, 0, 1, 1) + b"x",
    ],
)
def test_an_agent_that_does_not_greet_is_cut_off(board: Board, said: bytes) -> None:
    board.agent.socket.sendall(said)
    assert board.reason().startswith("the agent broke the protocol: ")


@pytest.mark.parametrize(
    "said",
    [
        b"GET / HTTP/1.1\r\n",
        encode(Kind.OPEN, SESSION, b"again"),
        encode(Kind.STDIN, 2, b"x"),
        encode(Kind.STDIN, SESSION, FULL) * 5,
        encode(Kind.STDIN, SESSION) + encode(Kind.STDIN, SESSION, b"after the end"),
        encode(Kind.WINDOW, SESSION, NUMBER.pack(1)),
        encode(Kind.WINDOW, SESSION, NUMBER.pack(0)),
        encode(Kind.WATCH, SESSION),
        encode(Kind.SHUTDOWN, SESSION),
        encode(Kind.STDOUT, SESSION, b"x"),
        HEADER.pack(Kind.STDIN, 0, 0, SESSION, 1 << 31),
    ],
)
def test_a_client_s_mistake_ends_its_own_session(greeted: Board, said: bytes) -> None:
    other, _ = greeted.running()
    client, number = greeted.running()
    client.socket.sendall(said)
    heard = []
    while not heard or heard[-1][0] is not Kind.HANGUP:
        frame = greeted.agent.hear()
        assert frame is not None
        heard.append(frame)
    assert {frame[1] for frame in heard} == {number}
    assert sum(len(payload) for _, _, payload in heard) <= WINDOW
    assert client.rest() == []
    other.say(Kind.STDIN, payload=b"still here")
    frame = greeted.agent.hear()
    assert frame is not None
    assert frame[2] == b"still here"


@pytest.mark.parametrize(
    "said",
    [
        encode(Kind.STDIN, SESSION, b"x"),
        encode(Kind.HANGUP, SESSION),
        encode(Kind.RESIZE, SESSION, SIZE.pack(24, 80)),
        encode(Kind.SIGNAL, SESSION, b"\2"),
        encode(Kind.WINDOW, SESSION, NUMBER.pack(1)),
        encode(Kind.OPEN, 2),
        encode(Kind.WATCH, SESSION) * 2,
        encode(Kind.WATCH, SESSION) + encode(Kind.OPEN, SESSION),
    ],
)
def test_a_conversation_opens_with_open_or_watch(greeted: Board, said: bytes) -> None:
    client = greeted.connect()
    client.socket.sendall(said)
    assert [frame for frame in client.rest() if frame[0] is not Kind.SESSIONS] == []


# -- back-pressure and bounds -----------------------------------------------------------------------


def test_a_session_that_does_not_read_stalls_nobody(greeted: Board) -> None:
    stalled = [greeted.running() for _ in range(8)]
    other, number = greeted.running()
    for _, channel in stalled:
        for _ in range(4):
            greeted.agent.say(Kind.STDOUT, channel, FULL)
    greeted.agent.say(Kind.STDOUT, number, b"through")
    assert other.hear() == (Kind.STDOUT, SESSION, b"through")
    for client, channel in stalled:
        greeted.agent.say(Kind.EXIT, channel, EXIT.pack(0, 0))
        frames = client.rest()
        assert sum(len(payload) for kind, _, payload in frames if kind is Kind.STDOUT) == WINDOW
        assert frames[-1][0] is Kind.EXIT


def test_small_frames_that_nobody_reads_are_left_in_the_link(
    greeted: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(switchboard, "HELD_MAX", 1 << 20)
    opened = [greeted.running() for _ in range(4)]
    frames = memoryview(b"".join(encode(Kind.STDOUT, number, b"x") * WINDOW for _, number in opened))
    greeted.agent.socket.setblocking(False)
    board = greeted.switchboard
    while board._link.events & select.EPOLLIN:
        try:
            frames = frames[greeted.agent.socket.send(frames[:65536]) :]
        except BlockingIOError:
            continue
    held = sum(len(client.queue) for client in board._connections.values())
    assert held < switchboard.HELD_MAX + 2 * switchboard.CHUNK
    for client, _ in opened:
        client.close()
    greeted.agent.socket.settimeout(PATIENCE)
    greeted.agent.socket.sendall(frames)


def test_an_agent_that_does_not_read_stalls_the_clients_not_the_memory(greeted: Board) -> None:
    waiting = {
        greeted.running()[0].socket: memoryview(encode(Kind.STDIN, SESSION, FULL) * 4) for _ in range(60)
    }
    queue = greeted.switchboard._link.queue
    for connection in waiting:
        connection.setblocking(False)
    while len(queue) < switchboard.QUEUE_MAX:
        for connection, rest in waiting.items():
            try:
                waiting[connection] = rest[connection.send(rest) :]
            except BlockingIOError:
                continue
    assert sum(len(rest) for rest in waiting.values()) > 0, "clients had to wait"
    assert len(queue) < switchboard.QUEUE_MAX + (len(waiting) + 1) * switchboard.CHUNK


def test_grants_travel_end_to_end(greeted: Board) -> None:
    client, number = greeted.running()
    for _ in range(4):
        greeted.agent.say(Kind.STDOUT, number, FULL)
    for _ in range(4):
        client.hear()
    client.say(Kind.WINDOW, payload=NUMBER.pack(WINDOW))
    assert greeted.agent.hear() == (Kind.WINDOW, number, NUMBER.pack(WINDOW))
    greeted.agent.say(Kind.STDERR, number, FULL)
    assert client.hear() == (Kind.STDERR, SESSION, FULL)


# -- hostile agents, at random ----------------------------------------------------------------------

channels = st.integers(1, 2)
frames = st.one_of(
    st.builds(
        lambda kind, channel, length: HEADER.pack(kind, 0, 0, channel, length) + b"\0" * length,
        st.sampled_from([int(kind) for kind in Kind]),
        st.integers(0, 3),
        st.sampled_from([0, 1, 4, 5, 100]),
    ),
    st.builds(lambda channel: encode(Kind.OPENED, channel, OPENED), channels),
    st.builds(
        lambda channel, size: encode(Kind.STDOUT, channel, b"x" * size), channels, st.integers(1, 65536)
    ),
    st.builds(
        lambda channel, code: encode(Kind.EXIT, channel, EXIT.pack(0, code)), channels, st.integers(0, 300)
    ),
    st.builds(
        lambda channel, text: encode(Kind.FAIL, channel, b"\x7f" + text), channels, st.binary(max_size=50)
    ),
)
noise = st.one_of(st.binary(max_size=200), st.lists(frames, max_size=12).map(b"".join))


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(said=noise)
def test_whatever_an_agent_says_a_client_hears_a_well_formed_session(said: bytes) -> None:
    with tempfile.TemporaryDirectory() as directory:
        board = Board(Path(directory))
        try:
            board.agent.socket.sendall(HELLO)
            clients = [board.session()[0], board.session()[0]]
            try:
                board.agent.socket.sendall(said)
                board.agent.socket.shutdown(socket.SHUT_WR)
            except OSError:
                """It has been cut off already."""
            for client in clients:
                frames = client.rest()
                kinds = [kind for kind, _, _ in frames]
                assert {channel for _, channel, _ in frames} == {SESSION}
                assert kinds.count(Kind.OPENED) <= 1
                assert all(kind not in (Kind.EXIT, Kind.FAIL) for kind in kinds[:-1])
                assert kinds[-1] in (Kind.EXIT, Kind.FAIL)
                streams = sum(
                    len(payload) for kind, _, payload in frames if kind in (Kind.STDOUT, Kind.STDERR)
                )
                assert streams <= WINDOW
        finally:
            board.close()


# -- the process ------------------------------------------------------------------------------------


@pytest.fixture
def public() -> Iterator[Path]:
    """A directory that other users may enter; pytest's own are private."""
    directory = Path(tempfile.mkdtemp(prefix="supervisor-"))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


class Supervised:
    def __init__(self, directory: Path, *, uid: int, owner_uid: int) -> None:
        self.path = str(directory / "sessions.sock")
        ours, theirs = socket.socketpair()
        with socket.socket(socket.AF_UNIX) as listener, theirs, (directory / "log").open("wb") as log:
            listener.bind(self.path)
            os.chmod(self.path, 0o777)
            listener.listen()
            self.pid = launch(
                link=theirs, sessions=listener, owner_uid=owner_uid, uid=uid, gid=uid, log=log.fileno()
            )
        self.log = directory / "log"
        self.agent = Peer(ours, TO_AGENT)
        self.agent.socket.sendall(HELLO)

    def connect(self) -> Peer:
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(self.path)
        return Peer(connection, FROM_SUPERVISOR)

    def watch(self) -> Peer:
        watcher = self.connect()
        watcher.say(Kind.WATCH)
        assert watcher.hear() is not None
        return watcher

    def end(self) -> None:
        watcher = self.watch()
        self.agent.close()
        assert watcher.rest() == []


root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to drop it")


@root
def test_the_process_has_given_everything_up(public: Path) -> None:
    supervised = Supervised(public, uid=65534, owner_uid=0)
    supervised.watch()
    proc = Path(f"/proc/{supervised.pid}")
    status = dict(line.split(":\t", 1) for line in (proc / "status").read_text().splitlines())
    assert status["Uid"] == status["Gid"] == "\t".join(["65534"] * 4)
    assert status["Groups"].strip() == ""
    assert {status[f"Cap{kind}"] for kind in ("Eff", "Prm", "Inh", "Amb")} == {"0" * 16}
    assert status["NoNewPrivs"] == "1"
    assert os.readlink(proc / "cwd") == "/"
    assert [
        v for v in (proc / "environ").read_bytes().split(b"\0") if v and not v.startswith(b"PYTHONPATH=")
    ] == []
    limits = (proc / "limits").read_text()
    assert re.search(r"Max processes +0 +0 ", limits)
    assert re.search(r"Max core file size +0 +0 ", limits)
    kept = {os.readlink(proc / "fd" / name).split(":")[0] for name in os.listdir(proc / "fd")}
    assert kept == {"/dev/null", "socket", "anon_inode", str(supervised.log)}
    assert int(status["PPid"]) != os.getpid(), "it is nobody's child who started it"
    supervised.end()


@root
def test_it_does_not_run_as_root(public: Path) -> None:
    with pytest.raises(Unavailable, match="does not start"):
        Supervised(public, uid=0, owner_uid=0)


@root
@pytest.mark.parametrize(
    ("owner", "caller", "served"), [(4242, 4242, True), (4242, 0, True), (4242, 65534, False)]
)
def test_only_its_owner_and_root_are_served(public: Path, owner: int, caller: int, served: bool) -> None:
    supervised = Supervised(public, uid=65534, owner_uid=owner)
    script = (
        "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]);"
        f"s.settimeout({PATIENCE}); s.sendall(bytes.fromhex(sys.argv[2])); print(len(s.recv(64)))"
    )
    watch = encode(Kind.WATCH, SESSION).hex()
    ran = subprocess.run(
        ["/usr/bin/python3" if caller else sys.executable, "-I", "-c", script, supervised.path, watch],
        capture_output=True,
        user=caller,
        text=True,
        timeout=PATIENCE,
        cwd="/",
    )
    assert (ran.stdout.strip() == "17") is served, ran.stderr
    supervised.end()


def test_its_last_words_go_to_the_log(public: Path) -> None:
    uid = os.geteuid() or 65534
    supervised = Supervised(public, uid=uid, owner_uid=os.geteuid())
    watcher = supervised.watch()
    supervised.agent.socket.sendall(b"nonsense" * 4)
    assert watcher.rest() == []
    while not supervised.log.read_text():
        pass
    said = "supervisor: the agent broke the protocol: kind 110 is not for this direction\n"
    assert supervised.log.read_text() == said
