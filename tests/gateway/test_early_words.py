"""Servers that speak before anybody asked, in the moment between the connection and its owner.

A task dials, and the event loop may read from the new connection before that task has said whose it is. The
stage stretches that moment until the server's first word is there.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from gateway_stage import Stage, play, rule, until

ALLOW = rule("allow", "a.test")


def stretch(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nobody own a connection before its server has spoken."""
    dial = stage.dialer.connect

    async def late(*arguments: Any, **more: Any) -> Any:
        transport, link, place = await dial(*arguments, **more)
        await until(lambda: link.early)
        return transport, link, place

    monkeypatch.setattr(stage.dialer, "connect", late)


async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"SSH-2.0-origin\r\n")
    writer.write(await reader.readuntil(b"\n"))
    await writer.drain()


def test_a_greeting_reaches_the_client(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(stage: Stage) -> None:
        await stage.origin("a.test", greet, port=22, tls=False)
        stage.bind(ALLOW)
        stretch(stage, monkeypatch)
        client = await stage.reach("a.test", 22)
        client.send(b"SSH-2.0-client\n")
        assert await client.until(b"SSH-2.0-client\n") == b"SSH-2.0-origin\r\nSSH-2.0-client\n"
        (record,) = await stage.settle(1)
        assert (record["step"], record["verdict"]) == ("opened", "allowed")

    play(scene)


def test_an_http_answer_to_nothing_is_nobodys(monkeypatch: pytest.MonkeyPatch) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged")
        await reader.read()

    async def scene(stage: Stage) -> None:
        await stage.origin("a.test", answer, port=80, tls=False)
        stage.bind(ALLOW)
        stretch(stage, monkeypatch)
        client = await stage.reach("a.test", 80)
        status, _, body = await client.get("/", "a.test")
        assert (status, b"forged" in body) == (502, False)

    play(scene)
