"""What ``test_rootless`` runs as an ordinary user: enter a user namespace, start a sandbox, say what is seen.

Usage: ``python rootless_scene.py PLATFORM DIRECTORY AGENT RUNSC``; prints one JSON object.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import socket
import struct
import sys
from pathlib import Path

from link import Link
from outlet import Outlet

from ringfence.application.ports import RELAY_PORT, Attachment
from ringfence.runtimes import kernel, rootless
from ringfence.runtimes.enclosure import Enclosures
from ringfence.runtimes.gvisor import GVisorDriver
from ringfence.runtimes.local import LocalDriver
from ringfence.runtimes.namespaces import NamespacesDriver
from ringfence.runtimes.templates import Templates
from ringfence.sandbox.model import Owner, SandboxSpec, Workspace


async def relayed(link: Link, attachment: Attachment) -> str:
    """A datagram to an address of nobody, answered in its name; and one that is refused."""
    receive = attachment.listeners["udp4"]
    receive.bind(("0.0.0.0", RELAY_PORT))
    program = (
        "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(20); "
        "s.connect(('203.0.113.9', 123)); s.send(b'time'); print(s.recv(99))"
    )
    asked = asyncio.create_task(link.shell(f'python3 -c "{program}"'))
    arrived = asyncio.Event()
    asyncio.get_running_loop().add_reader(receive, arrived.set)
    await arrived.wait()
    asyncio.get_running_loop().remove_reader(receive)
    data, told, _, peer = receive.recvmsg(99, 64)
    answer = struct.pack("!HHHH", 123, peer[1], 8 + len(data), 0) + data
    source = struct.pack("=I4s4x", 0, told[0][2][4:8])
    attachment.listeners["reply4"].sendmsg([answer], [(socket.IPPROTO_IP, 8, source)], 0, (peer[0], 0))
    return await asked


async def scene(platform: str, path: Path, agent: str, runsc: str) -> dict[str, object]:
    ctypes.CDLL(None).prctl(
        36, 1, 0, 0, 0
    )  # PR_SET_CHILD_SUBREAPER: what a runtime leaves behind is reaped here
    templates = Templates(path / "templates")
    driver: LocalDriver = (
        GVisorDriver(state=path / "state", templates=templates, agent=agent, runsc=[runsc])
        if platform == "gvisor"
        else NamespacesDriver(state=path / "state", templates=templates, agent=agent)
    )
    enclosures = Enclosures(path / "run")
    work = path / "work"
    spec = SandboxSpec(
        id="rootless",
        name="rootless",
        agent="shell",
        owner=Owner(uid=0, gid=0),
        runtime=platform,
        workspaces=(Workspace(path=str(work)),),
    )
    verdict = await driver.probe()
    seen: dict[str, object] = {"usable": verdict.usable, "reason": verdict.reason, "home": rootless.home()}
    try:
        await driver.prepare("host")
        await driver.create(spec)
        attachment = await enclosures.open(spec.id)
        link = Link(await driver.start(spec, attachment, {"/etc/hosts": b"127.0.0.1 localhost\n"}))
        async with Outlet(attachment) as outlet:
            await link.greeting()
            seen["agent"] = await link.shell("id -un; touch made; stat -c %U . made", cwd=str(work))
            seen["root"] = await link.shell(
                "sudo id -un; sudo touch byroot /usr/bin/x && echo done", cwd=str(work)
            )
            seen["curl"] = await link.shell("curl -s -o /dev/null -w '%{http_code}' http://203.0.113.9/")
            seen["secret"] = await link.shell(f"cat {path}/secret 2>&1 | grep -c theirs", user="root")
            seen["relayed"] = await relayed(link, attachment)
            await enclosures.canaries(attachment, "n")
            seen["connections"] = len(outlet.connections)
        await driver.stop(spec, grace=5)
        link.sock.close()
    finally:
        await driver.remove(spec)
        await enclosures.close(spec.id)
    return seen


def main() -> None:
    platform, directory, agent, runsc = sys.argv[1:]
    path = Path(directory)
    if not rootless.is_inside():
        rootless.enter(path / "run", [sys.executable, *sys.argv])
    result = asyncio.run(scene(platform, path, agent, runsc))
    result["namespace"] = os.readlink("/proc/self/ns/user")
    assert kernel.is_namespace("/proc/self/ns/net")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
