"""What is particular to gVisor: what it is never told, and how it ends."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest
from platforms import AGENT, FILES, each, ended, running, specify

from ringfence.application.errors import Unavailable
from ringfence.runtimes import gvisor, oci
from ringfence.runtimes.gvisor import GVisorDriver
from ringfence.runtimes.rootfs import AGENT_PATH, Mount, Staged
from ringfence.runtimes.templates import Templates
from ringfence.sandbox.model import Condition

only_gvisor = each("gvisor")
STAGED = Staged(
    root="/run/root",
    mounts=(
        Mount(source="/run/usr", target="/usr", layer=True),
        Mount(source="/run/workspace-0", target="/tmp/w"),
        Mount(source="/run/workspace-1", target="/tmp/w/.git/config", readonly=True),
    ),
)


def play(scene: Coroutine[Any, Any, None]) -> None:
    asyncio.run(scene)


def test_it_is_never_told_to_share_the_host_s_sockets_or_network() -> None:
    assert not [flag for flag in gvisor.FLAGS if "uds" in flag or "host" in flag or "rootless" in flag]
    assert "--network=sandbox" in gvisor.FLAGS


def test_the_configuration() -> None:
    config = oci.configuration(STAGED, name="n" * 100)
    assert config["process"]["args"] == [AGENT_PATH, "agent"]
    assert len(config["hostname"]) == 63
    order = [mount["destination"] for mount in config["mounts"]]
    assert (
        order.index("/usr") < order.index("/tmp") < order.index("/tmp/w") < order.index("/tmp/w/.git/config")
    )
    options = {mount["destination"]: mount["options"] for mount in config["mounts"]}
    assert options["/tmp/w"] == ["bind", "rw"]
    assert options["/tmp/w/.git/config"] == ["bind", "ro"]
    assert "ro" in options["/sys"]


@pytest.mark.parametrize(
    "power",
    ["SYS_ADMIN", "NET_ADMIN", "NET_RAW", "SYS_PTRACE", "SYS_MODULE", "MKNOD", "DAC_READ_SEARCH", "BPF"],
)
def test_root_inside_lacks(power: str) -> None:
    for capabilities in oci.configuration(STAGED, name="n")["process"]["capabilities"].values():
        assert f"CAP_{power}" not in capabilities


def test_without_runsc_it_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    driver = GVisorDriver(
        state=tmp_path, templates=Templates(tmp_path / "t"), agent=AGENT, runsc=[tmp_path / "runsc"]
    )
    verdict = asyncio.run(driver.probe())
    assert (verdict.usable, verdict.reason) == (False, "runsc (gVisor) is not installed")
    assert "apt-get install runsc" in verdict.hint
    with pytest.raises(Unavailable):
        asyncio.run(driver.create(specify("gvisor")))
    assert not (tmp_path / "sandboxes").exists()


@only_gvisor
def test_a_program_that_is_not_runsc_is_not_usable(
    platform: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    impostor = tmp_path / "bin" / "runsc"
    impostor.parent.mkdir()
    impostor.write_text("#!/bin/sh\necho runsc version 1; exit $(($1 != --version))\n")
    impostor.chmod(0o755)
    monkeypatch.setenv("PATH", f"{impostor.parent}:{os.environ['PATH']}")
    driver = GVisorDriver(state=tmp_path / "state", templates=Templates(tmp_path / "t"), agent=AGENT)
    verdict = asyncio.run(driver.probe())
    assert not verdict.usable
    assert "cannot start sandbox" in verdict.reason
    assert not list((tmp_path / "state").glob("probes/*"))


@only_gvisor
def test_a_runtime_that_is_killed_is_seen_and_leaves_nothing(platform: str, tmp_path: Path) -> None:
    async def scene() -> None:
        async with running(platform, tmp_path) as (stage, link):
            pid = (await stage.driver.observe(stage.spec)).pid
            os.kill(pid, signal.SIGKILL)
            assert await link.frame() is None
            await ended(stage)
            assert (await stage.driver.observe(stage.spec)).condition is Condition.EXITED
            again = await stage.start()
            assert await again.run("/bin/true") == (0, "")
            again.sock.close()

    play(scene())


@only_gvisor
def test_the_link_is_the_only_socket_it_inherits(platform: str, tmp_path: Path) -> None:
    async def scene() -> None:
        async with running(platform, tmp_path) as (_, link):
            said = await link.shell("ls -l /proc/1/fd", user="root")
            assert said.count("socket:") == 1, said

    play(scene())


@only_gvisor
def test_a_sandbox_whose_network_is_gone_does_not_start(platform: str, tmp_path: Path) -> None:
    async def scene() -> None:
        async with running(platform, tmp_path) as (stage, _):
            await stage.driver.stop(stage.spec, grace=0)
            assert stage.attachment is not None
            for netns in ("/nonexistent", "/etc/hostname"):
                with pytest.raises(Unavailable, match="cannot start sandbox"):
                    await stage.driver.start(
                        stage.spec, dataclasses.replace(stage.attachment, netns=netns), FILES
                    )
            assert (await stage.driver.observe(stage.spec)).condition is Condition.EXITED

    play(scene())
