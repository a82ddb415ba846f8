"""The drivers that the conformance suite runs over, each with an enclosure of its own kind."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from link import Link
from runtime_needs import lacking

from ringfence.application.ports import Attachment, RuntimeDriver
from ringfence.locations import locate
from ringfence.runtimes import kernel
from ringfence.runtimes.agent import PROGRAM
from ringfence.runtimes.enclosure import Enclosures
from ringfence.runtimes.fake import FakeDriver
from ringfence.runtimes.gvisor import GVisorDriver
from ringfence.runtimes.namespaces import NamespacesDriver
from ringfence.runtimes.processes import Process
from ringfence.runtimes.templates import Templates
from ringfence.sandbox.model import Condition, Limits, Owner, SandboxSpec, Workspace

AGENT = Path(kernel.__file__).with_name("agent") / PROGRAM
RUNSC = str(locate({}, home=os.path.expanduser("~")).data / "bin" / "runsc")
FILES = {"/etc/hosts": b"127.0.0.1 localhost\n", "/etc/resolv.conf": b"nameserver 10.255.255.1\n"}
TEMPLATES = Path(os.environ.get("RINGFENCE_TEST_TEMPLATES", "/var/tmp/ringfence-test-templates"))
"""Shared by all tests and runs: what is in there is only read."""


def missing(platform: str) -> str:
    """Why a platform's tests cannot run here; empty if they can."""
    if platform == "fake":
        return ""
    if reason := lacking():
        return reason
    if not AGENT.is_file():
        return "needs the compiled agent"
    if platform == "gvisor" and not (shutil.which("runsc") or os.access(RUNSC, os.X_OK)):
        return "needs runsc"
    if platform == "namespaces" and shutil.which("bwrap") is None:
        return "needs bwrap"
    return ""


def each(*platforms: str) -> Any:
    """Run a test over platforms; one that cannot run here is skipped with the reason."""
    return pytest.mark.parametrize(
        "platform",
        [
            pytest.param(
                platform,
                marks=[
                    pytest.mark.skipif(bool(missing(platform)), reason=missing(platform) or "-"),
                    *([] if platform == "fake" else [pytest.mark.live]),
                ],
            )
            for platform in platforms
        ],
    )


def make_driver(platform: str, path: Path) -> RuntimeDriver:
    makers: Mapping[str, Callable[[], RuntimeDriver]] = {
        "fake": FakeDriver,
        "gvisor": lambda: GVisorDriver(
            state=path / "state",
            templates=Templates(TEMPLATES),
            agent=AGENT,
            runsc=[RUNSC],
            reserved=[str(path / "state"), str(path / "run")],
        ),
        "namespaces": lambda: NamespacesDriver(
            state=path / "state",
            templates=Templates(TEMPLATES),
            agent=AGENT,
            reserved=[str(path / "state"), str(path / "run")],
        ),
    }
    return makers[platform]()


def specify(platform: str, *workspaces: Path | Workspace, **fields: Any) -> SandboxSpec:
    """A sandbox of a name of its own; workspaces by path are writable."""
    name = f"t-{secrets.token_hex(6)}"
    values: dict[str, Any] = {
        "id": name,
        "name": name,
        "agent": "shell",
        "owner": Owner(uid=os.geteuid(), gid=os.getegid()),
        "runtime": platform,
        "limits": Limits(),
        "workspaces": tuple(
            each if isinstance(each, Workspace) else Workspace(path=str(each)) for each in workspaces
        ),
    }
    return SandboxSpec(**(values | fields))


@dataclass
class Stage:
    """One sandbox of one platform; whatever happens, nothing of it is left."""

    platform: str
    path: Path
    spec: SandboxSpec
    driver: RuntimeDriver
    enclosures: Enclosures
    attachment: Attachment | None = None

    async def start(self, files: Mapping[str, bytes] = FILES) -> Link:
        """Start it and wait for its agent."""
        if self.platform == "fake":
            self.attachment = Attachment(sandbox=self.spec.id, netns="")
        else:
            self.attachment = await self.enclosures.open(self.spec.id)
        link = Link(await self.driver.start(self.spec, self.attachment, files))
        await link.greeting()
        return link


async def ended(stage: Stage) -> None:
    """Wait until the sandbox's own process is no more."""
    process = Process.of((await stage.driver.observe(stage.spec)).pid)
    if process is not None and stage.platform != "fake":
        assert await process.ended(30)
    while (await stage.driver.observe(stage.spec)).condition is Condition.RUNNING:  # noqa: ASYNC110
        await asyncio.sleep(0)  # an agent that is a task of this process


@asynccontextmanager
async def staged(
    platform: str, path: Path, *workspaces: Path | Workspace, **fields: Any
) -> AsyncIterator[Stage]:
    """A created sandbox, not started."""
    driver = make_driver(platform, path)
    spec = specify(platform, *workspaces, **fields)
    stage = Stage(platform, path, spec, driver, Enclosures(path / "run"))
    try:
        await driver.prepare(spec.template)
        await driver.create(spec)
        yield stage
    finally:
        await driver.remove(spec)
        if platform != "fake":
            await stage.enclosures.close(spec.id)


@asynccontextmanager
async def running(
    platform: str, path: Path, *workspaces: Path | Workspace, **fields: Any
) -> AsyncIterator[tuple[Stage, Link]]:
    async with staged(platform, path, *workspaces, **fields) as stage:
        link = await stage.start()
        try:
            yield stage, link
        finally:
            link.sock.close()
