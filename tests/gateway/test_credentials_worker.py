"""Credentials on their way into a real worker process: with `admit`, with `arm`, and never back out in an error."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest
from gateway_dialogue import policy, rule
from gateway_stage import CLIENT4, Client
from worker_rig import Bench, run, spec

from ringfence.application.errors import Unavailable
from ringfence.application.ports import Attachment
from ringfence.sandbox.credentials import Binding, Form, Target

VALUE, MARK = "real-value-0123456789", "sbx-cs-0123456789"


def binding(host: str = "api.test") -> Binding:
    target = Target(hosts=(host,), form=Form.REPLACE)
    return Binding(name="MY_KEY", targets=(target,), values=(("value", VALUE),), placeholders=(MARK,))


async def misuse(port: int) -> tuple[int, bytes]:
    """Ask an allowed host over plain HTTP, where no credential ever goes, with the placeholder."""
    client = Client(*await asyncio.open_connection(CLIENT4, port))
    status, _, body = await client.get("http://a.test/", "a.test", Authorization=f"Bearer {MARK}")
    client.close()
    return status, body


def test_a_worker_is_armed_and_disarmed(tmp_path: Path) -> None:
    async def scene(bench: Bench) -> None:
        await bench.link.configure(resolve={"a.test": "169.254.169.254"})
        with socket.socket() as listening:
            listening.bind((CLIENT4, 0))
            attachment = Attachment(sandbox="sandbox-1", netns="", listeners={"proxy4": listening})
            allowed = policy(rule("allow", "a.test")).to_wire()
            await bench.link.admit(spec(1), attachment, allowed, [binding()])
            port = int(listening.getsockname()[1])
        status, body = await misuse(port)
        assert (status, b"secret misuse: the placeholder of `MY_KEY`" in body) == (403, True)
        await bench.link.arm("sandbox-1", [])
        assert b"misuse" not in (await misuse(port))[1], "the placeholder of nobody is a word like any other"
        await bench.link.arm("sandbox-1", [binding()])
        assert b"misuse" in (await misuse(port))[1]
        with pytest.raises(Unavailable) as caught:
            await bench.link.arm("sandbox-1", [binding("203.0.113.7")])
        assert VALUE not in str(caught.value)
        assert b"misuse" in (await misuse(port))[1], "what cannot be put in force changes nothing"
        assert VALUE not in str(bench.records)

    run(tmp_path, scene)
