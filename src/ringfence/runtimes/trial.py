"""Whether a runtime works here, found out by running the smallest sandbox there is: the agent and nothing else.

A device node, a version or a flag promises nothing (``/dev/kvm`` may open and boot no guest). The outcome is
remembered with what it depended on: this boot, the runtime's program, the agent. A failure is not remembered.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets
import shutil
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from ringfence.application.errors import RingfenceError, Unavailable
from ringfence.application.ports import Addresses, Attachment
from ringfence.runtimes import kernel, netns, rootfs
from ringfence.runtimes.identity import identity_of
from ringfence.runtimes.processes import Running
from ringfence.runtimes.templates import Layer
from ringfence.sandbox import frames
from ringfence.sandbox.model import Owner, SandboxSpec

Start = Callable[
    [SandboxSpec, Attachment, Mapping[str, bytes], Sequence[Layer], Path],
    Awaitable[tuple[socket.socket, Running]],
]
_PATIENCE: Final = 20.0


def require_agent(agent: Path) -> None:
    if not agent.is_file():
        raise Unavailable(f"the agent `{agent}` is missing", hint="build it: python hatch_build.py")


def mark(*programs: Path) -> str:
    """What an outcome depends on."""
    digest = hashlib.sha256(Path("/proc/sys/kernel/random/boot_id").read_bytes())
    for path in programs:
        status = path.stat() if path.exists() else None
        digest.update(f"{path}\0{status and (status.st_size, status.st_mtime_ns)}\0{os.geteuid()}".encode())
    return digest.hexdigest()


async def remembered(place: Path, key: str, attempt: Callable[[], Awaitable[str]]) -> str:
    """The reason why it does not work; empty when it does, or did under the same key."""
    if place.is_file() and place.read_text() == key:
        return ""
    reason = await attempt()
    if not reason:
        place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        place.write_text(key)
    return reason


async def run(place: Path, start: Start, agent: Path, clear: Callable[[str], Awaitable[None]]) -> str:
    """Start a sandbox in a network of its own and wait for its agent's greeting; say what went wrong."""
    sandbox = f"trial-{secrets.token_hex(8)}"
    scratch = place / sandbox
    scratch.mkdir(mode=0o700, parents=True)
    names = netns.Names(scratch / "net")
    try:
        require_agent(agent)
        addresses = Addresses()
        await kernel.apart(lambda: netns.build(names, sandbox, addresses), name="trial")
        attachment = Attachment(sandbox=sandbox, netns=names.net, addresses=addresses)
        spec = SandboxSpec(
            id=sandbox,
            name="trial",
            agent="shell",
            owner=Owner(uid=os.geteuid(), gid=os.getegid()),
            runtime="",
        )
        template = scratch / "template"
        template.mkdir(mode=0o755)
        layers = (Layer(target="/", lowers=(str(template),)),)
        rootfs.create(scratch / "sandbox", layers, identity_of(sandbox), 0)
        link, running = await start(spec, attachment, {}, layers, scratch / "sandbox")
        try:
            greeting = await _greeting(link)
        finally:
            link.close()
            await running.end(0.0)
        return "" if greeting else "the agent inside did not answer"
    except (RingfenceError, OSError) as error:
        return str(error)
    finally:
        await clear(sandbox)
        await kernel.apart(lambda: netns.demolish(names), name="trial")
        await asyncio.to_thread(shutil.rmtree, scratch, ignore_errors=True)


async def _greeting(link: socket.socket) -> bool:
    decoder = frames.Decoder(frames.FROM_AGENT)
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(_PATIENCE):
            while received := await loop.sock_recv(link, 4096):
                if decoder.feed(received):
                    return True
    except (OSError, TimeoutError, frames.FrameError):
        return False
    return False
