"""The agent, built with sanitizers, hears frames at random: it ends with 0 or 1 and never with a report."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
from pathlib import Path

import pytest
from agent_rig import PATIENCE, build_hook
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ringfence.sandbox.frames import HEADER, Kind
from ringfence.sandbox.opening import Opening

SANITIZED = ("-std=gnu11", "-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    hook = build_hook()
    try:
        built: Path = hook.build(tmp_path_factory.mktemp("sanitized") / "sbx-agent", flags=SANITIZED)
    except hook.BuildError as error:
        pytest.skip(f"no compiler with sanitizers: {error}")
    return built


def frame(kind: int, channel: int, payload: bytes) -> bytes:
    return HEADER.pack(kind, 0, 0, channel, len(payload)) + payload


channels = st.integers(1, 3)
numbers = st.integers(0, 0xFFFFFFFF).map(lambda number: number.to_bytes(4, "big"))
terminals = st.none() | st.tuples(st.integers(0, 65535), st.integers(0, 65535))
openings = st.builds(
    lambda argv, user, cwd, terminal, stdin: Opening(
        argv=argv, user=user, cwd=cwd, terminal=terminal, stdin=stdin
    ).encode(),
    st.sampled_from([("/bin/cat",), ("/bin/true",), ("/nonexistent/x",), ("/bin/echo", "x" * 5000), ("",)]),
    st.sampled_from(["", "root", "nobody", "nobody:nogroup", "12:34", ":", "9" * 300, "\u00e9:"]),
    st.sampled_from(["", "/", "/nonexistent", "x" * 5000]),
    terminals,
    st.booleans(),
)
mutated = st.builds(
    lambda payload, at, byte: (
        payload[: at % len(payload)] + bytes((byte,)) + payload[at % len(payload) + 1 :]
    ),
    openings,
    st.integers(0, 1 << 16),
    st.integers(0, 255),
)
said = st.one_of(
    st.builds(frame, st.just(Kind.OPEN), channels, openings | mutated | st.binary(max_size=40)),
    st.builds(frame, st.just(Kind.STDIN), channels, st.binary(max_size=100) | st.just(b"x" * 65536)),
    st.builds(frame, st.just(Kind.RESIZE), channels, numbers),
    st.builds(frame, st.just(Kind.SIGNAL), channels, st.binary(min_size=1, max_size=1)),
    st.builds(frame, st.just(Kind.HANGUP), channels, st.just(b"")),
    st.builds(frame, st.just(Kind.WINDOW), channels, st.just(b"\0\0\0\1") | numbers),
)
noise = said | st.builds(frame, st.integers(0, 40), channels, st.binary(max_size=8)) | st.binary(max_size=30)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(frames=st.lists(said, max_size=25), last=noise, cut=st.integers(1, 5000))
def test_whatever_a_host_says_the_agent_ends_in_order(
    sanitized: Path, frames: list[bytes], last: bytes, cut: int
) -> None:
    stream = b"".join(frames) + last
    ours, theirs = socket.socketpair()
    started = subprocess.Popen(
        [sanitized, "agent"],
        stdin=theirs,
        stderr=subprocess.PIPE,
        env={"PATH": "/nonexistent", "ASAN_OPTIONS": "detect_leaks=0"},
    )
    theirs.close()
    sender = threading.Thread(target=send, args=(ours, stream, cut))
    sender.start()
    try:
        while ours.recv(1 << 18):
            pass
    except ConnectionError:
        """It ended with something unread."""
    _, errors = started.communicate(timeout=PATIENCE)
    sender.join(PATIENCE)
    ours.close()
    assert started.returncode in (0, 1), errors.decode()
    assert not errors or errors.startswith(b"sbx-agent: the host broke the protocol"), errors.decode()


def send(connection: socket.socket, stream: bytes, cut: int) -> None:
    try:
        for start in range(0, len(stream), cut):
            connection.sendall(stream[start : start + cut])
        connection.shutdown(socket.SHUT_WR)
    except OSError:
        """It has stopped listening, as it should."""


def test_the_installed_program_is_missing_with_a_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    from ringfence.application.errors import Unavailable
    from ringfence.runtimes import agent

    monkeypatch.setattr(agent, "PROGRAM", "no-such-program")
    with pytest.raises(Unavailable, match="was not compiled") as raised:
        agent.agent_path()
    assert "apt-get install gcc libc6-dev" in raised.value.hint


def test_a_build_without_a_compiler_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hook = build_hook()
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(hook.BuildError, match="apt-get install gcc libc6-dev"):
        hook.build(tmp_path / "sbx-agent")
    assert os.listdir(tmp_path) == []


def test_a_build_that_fails_leaves_the_old_program(tmp_path: Path) -> None:
    hook = build_hook()
    old = tmp_path / "sbx-agent"
    old.write_text("old")
    with pytest.raises(hook.BuildError):
        hook.build(old, flags=("--no-such-flag",))
    assert old.read_text() == "old"
    assert os.listdir(tmp_path) == ["sbx-agent"]
