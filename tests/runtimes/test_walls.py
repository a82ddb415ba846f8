"""What a sandbox shows of the host, and what root inside can do: tried from inside, in every runtime that isolates."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest
from link import Gone
from outlet import Outlet
from platforms import each, running, staged

from ringfence.runtimes.cgroup import Cgroups
from ringfence.sandbox.model import Condition, Limits, Workspace

isolating = each("gvisor", "namespaces")


def play(scene: Coroutine[Any, Any, None]) -> None:
    asyncio.run(scene)


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    path = tmp_path / "work"
    path.mkdir()
    return path


@isolating
def test_the_host_s_secrets_are_not_there(platform: str, workspace: Path, tmp_path: Path) -> None:
    async def scene() -> None:
        async with running(platform, tmp_path, workspace) as (_, link):
            home = os.path.expanduser("~")
            for path in (
                f"{home}/.ssh",
                f"{home}/.aws",
                f"{home}/.config",
                "/etc/ssh",
                "/etc/ssl/private",
                "/boot/*",
            ):
                assert await link.shell(f"ls -d {path} 2>/dev/null", user="root") == "", path
            hashes = await link.shell("cut -d: -f2 /etc/shadow | sort -u", user="root")
            assert hashes == "*"
            host_users = {line.split(":")[0] for line in Path("/etc/passwd").read_text().splitlines()}
            own = set((await link.shell("cut -d: -f1 /etc/passwd")).split())
            assert own - host_users <= {
                "agent",
                "irc",
                "list",
                "_apt",
                "backup",
                "proxy",
                "uucp",
                "news",
                "games",
            }
            assert await link.shell("ls /home") == "agent"

    play(scene())


@isolating
def test_nothing_of_the_host_s_file_systems_is_reachable(
    platform: str, workspace: Path, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_text("host")
    (workspace / "out").symlink_to(tmp_path / "secret")
    (workspace / "up").symlink_to("../secret")
    (workspace / "root").symlink_to("/etc/hostname")

    async def scene() -> None:
        async with running(platform, tmp_path, workspace) as (_, link):
            for attempt in (
                "cat out",
                "cat up",
                f"cat {tmp_path}/secret",
                f"cat /proc/1/root{tmp_path}/secret",
            ):
                for user in ("agent", "root"):
                    said = await link.shell(attempt, user=user, cwd=str(workspace))
                    assert "host" not in said.replace(str(tmp_path), ""), attempt
            assert await link.shell(f"ls {tmp_path}") == "work"
            assert await link.shell("ls -A /run /mnt /media /opt | grep -v :", user="root") == ""

    play(scene())


@isolating
def test_the_workspace_is_the_owner_s_on_both_sides(platform: str, workspace: Path, tmp_path: Path) -> None:
    (workspace / "mine").write_text("from the host")

    async def scene() -> None:
        async with running(platform, tmp_path, workspace) as (_, link):
            assert await link.shell("id -u; pwd; stat -c %U:%G . mine", cwd=str(workspace)) == (
                f"1000\n{workspace}\nagent:agent\nagent:agent"
            )
            await link.shell(
                "echo changed > mine; mkdir -p a/b; echo new > a/b/c; ln -s mine link", cwd=str(workspace)
            )
            for path in ("mine", "a", "a/b/c", "link"):
                status = (workspace / path).lstat()
                assert (status.st_uid, status.st_gid) == (os.geteuid(), os.getegid()), path
            assert (workspace / "mine").read_text() == "changed\n"
            (workspace / "later").write_text("seen at once")
            assert await link.shell("cat later", cwd=str(workspace)) == "seen at once"

    play(scene())


@isolating
def test_root_inside_is_nobody_on_the_host(platform: str, workspace: Path, tmp_path: Path) -> None:
    theirs = workspace / "theirs"
    theirs.write_text("of another user")
    os.chown(theirs, 12345, 12345)
    theirs.chmod(0o600)

    async def scene() -> None:
        async with running(platform, tmp_path, workspace) as (stage, link):
            await link.shell(
                "touch byroot; cp /bin/true shell; chmod 6755 shell", user="root", cwd=str(workspace)
            )
            for name in ("byroot", "shell"):
                assert (workspace / name).stat().st_uid >= 0x5000_0000
            assert "Permission denied" in await link.shell("cat theirs", user="root", cwd=str(workspace))
            await link.shell("mknod device c 1 3", user="root", cwd=str(workspace))
            assert not (workspace / "device").exists()
            pid = (await stage.driver.observe(stage.spec)).pid
            uids = next(
                line
                for line in Path(f"/proc/{pid}/status").read_text().splitlines()
                if line.startswith("Uid")
            )
            assert all(int(uid) >= 0x5000_0000 for uid in uids.split()[1:])

    play(scene())


@isolating
def test_a_read_only_workspace_is_read_only_for_root_too(
    platform: str, workspace: Path, tmp_path: Path
) -> None:
    (workspace / "file").write_text("x")

    async def scene() -> None:
        async with running(platform, tmp_path, Workspace(path=str(workspace), readonly=True)) as (_, link):
            for attempt in ("echo y > file", "touch new", "rm file", "mv file other", "chmod 777 file"):
                said = await link.shell(attempt, user="root", cwd=str(workspace))
                assert "Read-only file system" in said, attempt
        assert (workspace / "file").read_text() == "x"
        assert [entry.name for entry in workspace.iterdir()] == ["file"]

    play(scene())


@isolating
def test_several_workspaces_also_one_in_another(platform: str, workspace: Path, tmp_path: Path) -> None:
    inner, other = workspace / "inner", tmp_path / "other"
    inner.mkdir()
    other.mkdir()

    async def scene() -> None:
        places = (workspace, Workspace(path=str(inner), readonly=True), other)
        async with running(platform, tmp_path, *places) as (_, link):
            assert await link.shell(f"touch {workspace}/a {other}/b && echo done") == "done"
            assert "Read-only" in await link.shell(f"touch {inner}/c", user="root")
        assert sorted(entry.name for entry in workspace.iterdir()) == ["a", "inner"]

    play(scene())


@isolating
def test_sockets_of_the_host_in_a_workspace_cannot_be_spoken_to(
    platform: str, workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workspace)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("host.sock")
        (workspace / "host.sock").chmod(0o777)
        listener.listen()
        listener.settimeout(0)

        async def scene() -> None:
            async with running(platform, tmp_path, workspace) as (_, link):
                for user in ("agent", "root"):
                    said = await link.shell(
                        "/usr/bin/python3 -c 'import socket; socket.socket(socket.AF_UNIX).connect(\"host.sock\")'",
                        user=user,
                        cwd=str(workspace),
                    )
                    assert "Error" in said
            with pytest.raises(BlockingIOError):
                listener.accept()

        play(scene())


@isolating
def test_root_inside_has_no_power_over_its_walls(platform: str, workspace: Path, tmp_path: Path) -> None:
    async def scene() -> None:
        async with running(platform, tmp_path, workspace) as (stage, link):
            assert stage.attachment is not None
            for attempt in (
                "mount -t tmpfs none /mnt",
                f"mount -o remount,rw {workspace}",
                "umount /etc/hosts",
                "ip link set eth0 down",
                "ip addr add 10.255.255.6/29 dev eth0",
                "ip route replace default via 10.255.255.6",
                "nft list ruleset && nft flush ruleset",
                "echo b > /proc/sysrq-trigger",
                "echo x > /proc/sys/kernel/core_pattern",
                "mknod /tmp/disk b 254 0 && head -c 1 /tmp/disk",
                "chroot /proc/1/root/.. sh -c 'ls /work /old_root /boot/grub 2>&1 && echo escaped'",
                "/usr/bin/python3 -c 'import socket; socket.socket(socket.AF_PACKET, socket.SOCK_RAW)'",
                "/usr/bin/python3 -c 'import socket; socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)'",
                "/usr/bin/python3 -c 'import socket; socket.socket(40, socket.SOCK_STREAM)'",  # vsock
                "date -s 2001-01-01",
                "hostname owned && mount --bind /etc /mnt",
            ):
                code, said = await link.run("/bin/sh", "-c", attempt, user="root")
                assert code != 0, (attempt, said)
            async with Outlet(stage.attachment) as outlet:
                await stage.enclosures.canaries(stage.attachment, "after")
                assert len(outlet.connections) == 4

    play(scene())


@isolating
def test_files_that_were_placed_cannot_be_changed(platform: str, workspace: Path, tmp_path: Path) -> None:
    async def scene() -> None:
        async with running(platform, tmp_path, workspace) as (_, link):
            for attempt in (
                "echo x > /etc/hosts",
                "rm -f /etc/hosts",
                "mv /etc/hosts /etc/h2",
                "chmod 777 /etc/hosts",
                "rm -f /usr/libexec/ringfence/sbx-agent",
                "cp /bin/true /usr/bin/sudo",
            ):
                code, _ = await link.run("/bin/sh", "-c", attempt, user="root")
                assert code != 0, attempt
            assert await link.shell("cat /etc/hosts") == "127.0.0.1 localhost"

    play(scene())


@isolating
def test_one_s_own_processes_only(platform: str, workspace: Path, tmp_path: Path) -> None:
    async def scene() -> None:
        async with running(platform, tmp_path, workspace) as (stage, link):
            names = (
                await link.shell("for p in /proc/[0-9]*; do cat $p/comm; done 2>/dev/null", user="root")
            ).split()
            assert "sbx-agent" in names
            assert set(names) <= {"sbx-agent", "sh", "cat"}
            pid = (await stage.driver.observe(stage.spec)).pid
            code, _ = await link.run("/bin/sh", "-c", f"kill -9 {pid}", user="root")
            assert code != 0
            assert (await stage.driver.observe(stage.spec)).condition is Condition.RUNNING
            assert (await link.shell("hostname")) == stage.spec.name

    play(scene())


@isolating
def test_its_only_network_is_the_enclosure(platform: str, workspace: Path, tmp_path: Path) -> None:
    async def scene() -> None:
        async with running(platform, tmp_path, workspace) as (stage, link):
            assert stage.attachment is not None
            async with Outlet(stage.attachment) as outlet:
                for address in ("203.0.113.9", "[2001:db8::9]"):
                    said = await link.shell(
                        f"curl -s -o /dev/null -w '%{{http_code}}' --noproxy '*' http://{address}/"
                    )
                    assert said == "403"
                assert sorted(outlet.connections) == [
                    ("transparent4", "203.0.113.9", 80),
                    ("transparent6", "2001:db8::9", 80),
                ]
                said = await link.shell("curl -s -m 10 -o /dev/null -w '%{http_code}' http://example.com/")
                assert (said, outlet.questions[0]) == ("403", "example.com")

    play(scene())


@isolating
def test_limits_are_in_force(platform: str, workspace: Path, tmp_path: Path) -> None:
    limits = Limits(cpus=0.5, memory=400 << 20, pids=100, disk=64 << 20)

    async def scene() -> None:
        async with running(platform, tmp_path, workspace, limits=limits) as (stage, link):
            assert "limits" in (await stage.driver.probe()).capabilities
            assert (await stage.driver.observe(stage.spec)).detail == ""
            code, said = await link.run(
                "/bin/sh", "-c", "dd if=/dev/zero of=/home/agent/big bs=1M count=100", user="agent"
            )
            assert (code, "No space left" in said) == (1, True)
            pid = (await stage.driver.observe(stage.spec)).pid
            assert Cgroups().holds(stage.spec.id, pid)
            assert not Cgroups().holds(stage.spec.id, os.getpid())

    play(scene())


@isolating
def test_a_fork_bomb_meets_the_limit_and_can_be_stopped(platform: str, tmp_path: Path) -> None:
    """What it does to its own sandbox is its own affair: gVisor ends or hangs when it gets no more threads."""
    bomb = "import os, signal\nfor _ in range(2000):\n  os.fork() or signal.pause()"

    def met(sandbox: str) -> bool:
        events = [*Path("/sys/fs/cgroup").glob(f"*/ringfence/{sandbox}/pids.events")]
        events += Path("/sys/fs/cgroup").glob(f"ringfence/{sandbox}/pids.events")
        return any("max 0" not in event.read_text() for event in events)

    async def scene() -> None:
        async with staged(platform, tmp_path, limits=Limits(pids=16)) as stage:
            link = await stage.start()
            bombing = asyncio.create_task(link.run("/usr/bin/python3", "-c", bomb))
            while not met(stage.spec.id):
                assert not bombing.done() or bombing.exception() or "BlockingIOError" in bombing.result()[1]
                await asyncio.sleep(0.01)
            await stage.driver.stop(stage.spec, grace=0)
            with contextlib.suppress(Gone):
                await bombing
            assert (await stage.driver.observe(stage.spec)).condition is Condition.EXITED
            assert Cgroups().members(stage.spec.id) == frozenset()
            link.sock.close()

    play(scene())


@isolating
def test_memory_beyond_the_limit_ends_somebody_inside(platform: str, workspace: Path, tmp_path: Path) -> None:
    async def scene() -> None:
        async with staged(platform, tmp_path, workspace, limits=Limits(memory=300 << 20)) as stage:
            link = await stage.start()
            with contextlib.suppress(Gone):
                code, said = await link.run("/usr/bin/python3", "-c", "x = b'x' * (1 << 30); print('had it')")
                assert (code != 0, "had it" in said) == (True, False)
            link.sock.close()

    play(scene())


@isolating
def test_a_workspace_below_root_s_home_can_be_entered(platform: str, tmp_path: Path) -> None:
    home = Path(os.path.expanduser("~"))
    workspace = home / f"ringfence-test-{os.getpid()}-{platform}"
    workspace.mkdir()

    async def scene() -> None:
        async with running(platform, tmp_path, workspace) as (_, link):
            assert await link.shell("touch here && ls", cwd=str(workspace)) == "here"
            assert await link.shell(f"ls -A {home}", user="root") == workspace.name

    try:
        play(scene())
    finally:
        subprocess.run(["rm", "-rf", str(workspace)], check=True)


@isolating
def test_without_a_workspace_there_is_a_directory_of_one_s_own(platform: str, tmp_path: Path) -> None:
    async def scene() -> None:
        async with running(platform, tmp_path) as (_, link):
            assert await link.shell("touch x && pwd && stat -c %U .", cwd="/home/agent/workspace") == (
                "/home/agent/workspace\nagent"
            )

    play(scene())


@isolating
def test_agent_becomes_anybody_without_a_password(platform: str, workspace: Path, tmp_path: Path) -> None:
    async def scene() -> None:
        async with running(platform, tmp_path, workspace) as (_, link):
            for script, said in (
                ("sudo id -u", "0"),
                ("sudo -u nobody id -un", "nobody"),
                ("sudo sh -c 'exit 7'; echo $?", "7"),
                ("echo piped | sudo cat", "piped"),
                ("sudo touch /usr/local/bin/x && stat -c %U /usr/local/bin/x", "root"),
                ("sudo mount -t tmpfs none /mnt 2>/dev/null; echo $?", "32"),
            ):
                assert await link.shell(script, cwd=str(workspace)) == said, script

    play(scene())


@isolating
def test_a_terminal_and_common_tools_work(platform: str, workspace: Path, tmp_path: Path) -> None:
    async def scene() -> None:
        async with running(platform, tmp_path, workspace) as (_, link):
            for script, expected in (
                ("/usr/bin/python3 -c 'import ssl, sqlite3, pip; print(1)'", "1"),
                (
                    "git init -q r && cd r && git config user.name a && git config user.email a && "
                    "git commit -q --allow-empty -m x && git log --format=%s",
                    "x",
                ),
                ("script -qc 'tty' /dev/null | tr -d '\\r'", "/dev/pts/"),
                ("cd /tmp && mkfifo f && (echo through > f &) && cat f", "through"),
                ("ls -la / >/dev/null 2>&1; echo $?", "0"),
            ):
                said = await link.shell(script, cwd=str(workspace))
                assert said.startswith(expected), (script, said)

    play(scene())
