"""The in-memory runtime beyond the conformance suite: it keeps the protocol's manners."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from link import Link
from platforms import running

from ringfence.sandbox import frames
from ringfence.sandbox.frames import Kind
from ringfence.sandbox.opening import Opening


def opened(*argv: str) -> bytes:
    return Opening(argv=argv, environment=(("GREETING", "hello"),)).encode()


@pytest.mark.parametrize(
    ("argv", "outcome"),
    [
        (("true",), (0, "")),
        (("/usr/bin/false",), (1, "")),
        (("exit", "7"), (7, "")),
        (("exit", "nonsense"), (0, "")),
        (("echo",), (0, "\n")),
        (("cat", "/etc/hosts"), (0, "127.0.0.1 localhost\n")),
        (("cat", "/etc/shadow"), (1, "")),
        (("printenv", "LC_ALL"), (0, "C\n")),
        (("printenv", "NOTHING"), (1, "")),
        (("python3",), (127, "command `python3` not found")),
    ],
)
def test_commands(tmp_path: Path, argv: tuple[str, ...], outcome: tuple[int, str]) -> None:
    async def scene() -> None:
        async with running("fake", tmp_path) as (_, link):
            assert await link.run(*argv) == outcome

    asyncio.run(scene())


def test_it_sends_no_more_than_its_window(tmp_path: Path) -> None:
    async def scene() -> None:
        async with running("fake", tmp_path) as (_, link):
            link.channel = 1
            await link.say(Kind.OPEN, opened("cat"))
            for _ in range(6):
                await link.say(Kind.STDIN, b"x" * 65536)
            received = 0
            while received < frames.WINDOW:
                frame = await link.frame()
                assert frame is not None
                received += len(frame[2]) * (frame[0] is Kind.STDOUT)
            assert received == frames.WINDOW
            await link.say(Kind.WINDOW, frames.NUMBER.pack(10))
            while (frame := await link.frame()) and frame[0] is not Kind.STDOUT:
                pass
            assert frame is not None
            assert len(frame[2]) == 10

    asyncio.run(scene())


def test_two_commands_at_once_and_a_signal_before_the_start(tmp_path: Path) -> None:
    async def scene() -> None:
        async with running("fake", tmp_path) as (_, link):
            for link.channel in (1, 2):
                await link.say(Kind.OPEN, opened("sleep"))
            await link.say(Kind.SIGNAL, b"\x0f")
            link.channel = 1
            await link.say(Kind.HANGUP)
            ends = {}
            while len(ends) < 2:
                frame = await link.frame()
                assert frame is not None
                if frame[0] is Kind.EXIT:
                    ends[frame[1]] = frames.EXIT.unpack(frame[2])
            assert ends == {1: (1, 1), 2: (1, 15)}

    asyncio.run(scene())


def test_nonsense_ends_it(tmp_path: Path) -> None:
    async def scene() -> None:
        async with running("fake", tmp_path) as (_, link):
            link.sock.send(b"\xff" * 64)
            assert await link.frame() is None

    asyncio.run(scene())


def test_an_opening_that_is_none_fails_alone(tmp_path: Path) -> None:
    async def scene() -> None:
        async with running("fake", tmp_path) as (_, link):
            link.channel = 1
            await link.say(Kind.OPEN, b"")
            frame = await link.frame()
            assert frame is not None
            assert (frame[0], frame[2][0]) == (Kind.FAIL, 125)
            assert await link.run("true") == (0, "")

    asyncio.run(scene())


def test_links_are_apart(tmp_path: Path) -> None:
    async def scene() -> None:
        async with running("fake", tmp_path) as (_, one), running("fake", tmp_path) as (_, two):
            assert isinstance(one, Link)
            assert await one.run("echo", "1") == (0, "1\n")
            assert await two.run("echo", "2") == (0, "2\n")

    asyncio.run(scene())
