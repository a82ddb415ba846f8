"""What ``test_rootless`` runs as an ordinary user: enter a user namespace, start a sandbox, say what is seen.

Usage: ``python rootless_scene.py PLATFORM DIRECTORY AGENT RUNSC``; prints one JSON object.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

from link import Link
from outlet import Outlet

from ringfence.runtimes import kernel, processes, rootless
from ringfence.runtimes.enclosure import Enclosures
from ringfence.runtimes.gvisor import GVisorDriver
from ringfence.runtimes.local import LocalDriver
from ringfence.runtimes.namespaces import NamespacesDriver
from ringfence.runtimes.templates import Templates
from ringfence.sandbox.model import Owner, SandboxSpec, Workspace


async def scene(platform: str, path: Path, agent: str, runsc: str) -> dict[str, object]:
    processes.adopt_children()
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
