"""Templates and what is made of them: an allow-list of the host, and layers that a hostile root inside prepared."""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest
from platforms import FILES, TEMPLATES, each, running, staged
from runtime_needs import needs_namespaces

from ringfence.application.errors import NotFound, RingfenceError, Unavailable
from ringfence.runtimes import hostroot, kernel
from ringfence.runtimes.identity import AGENT, COUNT, Identity, identity_of
from ringfence.runtimes.templates import Templates

isolating = each("gvisor", "namespaces")


def play(scene: Coroutine[Any, Any, None]) -> None:
    asyncio.run(scene)


def build(place: Path, known: hostroot.HostRoot | None = None) -> hostroot.HostRoot:
    async def scene() -> hostroot.HostRoot:
        return await kernel.apart(lambda: hostroot.build(place, known))

    return asyncio.run(scene())


@needs_namespaces
@pytest.mark.live
class TestHostTemplate:
    def test_everybody_inside_may_read_it_whoever_started_the_daemon(self, tmp_path: Path) -> None:
        before = os.umask(0o077)
        try:
            built = build(tmp_path)
            assert os.umask(0o077) == 0o077
        finally:
            os.umask(before)
        root = Path(dict(built.layers)["/"][0])
        for path in ("", "etc", "etc/passwd", "etc/nsswitch.conf", "etc/machine-id", "home/agent", "var/lib"):
            assert (root / path).stat().st_mode & 0o004, path

    def test_only_what_is_on_the_list(self, tmp_path: Path) -> None:
        built = build(tmp_path)
        root = Path(dict(built.layers)["/"][0])
        assert {entry.name for entry in root.iterdir()} <= {
            *hostroot.PROGRAMS,
            *("dev", "etc", "home", "media", "mnt", "opt", "proc", "root", "run", "srv", "sys", "tmp", "var"),
        }
        assert [entry.name for entry in (root / "home").iterdir()] == ["agent"]
        for place in ("root", "srv", "opt", "run", "var/lib", "var/log"):
            assert not list((root / place).iterdir()), place
        for absent in (
            "ssh",
            "ssl/private",
            "sudoers",
            "apt",
            "environment.d",
            "hostname",
            "hosts",
            "resolv.conf",
        ):
            assert not (root / "etc" / absent).exists(), absent

    def test_what_not_everybody_may_read_is_not_copied(self, tmp_path: Path) -> None:
        source = tmp_path / "source"
        source.mkdir()
        for name, mode in (("open", 0o644), ("program", 0o755), ("secret", 0o640), ("mine", 0o600)):
            (source / name).write_text(name)
            (source / name).chmod(mode)
        (source / "closed").mkdir(mode=0o700)
        (source / "closed" / "open").write_text("x")
        (source / "large").write_bytes(bytes(2 << 20))
        (source / "link").symlink_to("/root/.ssh")
        os.mkfifo(source / "fifo")
        hostroot._copy(source, tmp_path / "target")
        copied = {entry.name: entry for entry in (tmp_path / "target").iterdir()}
        assert set(copied) == {"open", "program", "link"}
        assert copied["link"].readlink() == Path("/root/.ssh")
        assert stat.S_IMODE(copied["program"].stat().st_mode) == 0o755

    def test_the_same_host_has_the_same_template(self, tmp_path: Path) -> None:
        first = build(tmp_path)
        assert build(tmp_path, first) is first
        assert build(tmp_path) == first
        assert len(list(tmp_path.iterdir())) == 1

    def test_templates_of_other_boots_are_forgotten(self, tmp_path: Path) -> None:
        (tmp_path / "00000000-old-1" / "root").mkdir(parents=True)
        build(tmp_path)
        assert not (tmp_path / "00000000-old-1").exists()

    def test_private_files_of_program_directories_are_hidden(self, tmp_path: Path) -> None:
        hidden = Path("/usr/local/share/ringfence-test-secret")
        shown = Path("/usr/local/share/ringfence-test-public")
        hidden.write_text("secret")
        hidden.chmod(0o600)
        shown.write_text("public")
        shown.chmod(0o644)
        try:
            built = build(tmp_path)
            mask = Path(dict(built.layers)["/usr"][0])
            whiteout = (mask / hidden.relative_to("/usr")).stat()
            assert (stat.S_ISCHR(whiteout.st_mode), whiteout.st_rdev) == (True, 0)
            assert not (mask / shown.relative_to("/usr")).exists()
        finally:
            hidden.unlink()
            shown.unlink()

    def test_an_interpreter_in_a_home_is_named_as_missing(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        shims = tmp_path / "shims"
        shims.mkdir()
        (shims / "sbx-no-such-tool").write_text("#!/bin/sh\n")
        (shims / "sbx-no-such-tool").chmod(0o755)
        monkeypatch.setenv("PATH", f"{shims}:/usr/bin")
        monkeypatch.setattr(hostroot, "_WANTED", ("sbx-no-such-tool", "ls"))
        (note,) = hostroot._notes()
        assert f"yours is {shims}/sbx-no-such-tool" in note


def test_a_template_that_is_not_prepared_has_no_layers(tmp_path: Path) -> None:
    for name in ("host", "debian", "nonsense"):
        with pytest.raises(NotFound):
            Templates(tmp_path).layers(name)


def test_a_template_that_cannot_be_built_is_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Unavailable, match="mmdebstrap is not installed") as missing:
        asyncio.run(Templates(tmp_path / "t").prepare("debian"))
    assert missing.value.hint == "install it: apt-get install mmdebstrap"
    assert not (tmp_path / "t").exists()


@each("gvisor", "namespaces")
def test_debian(platform: str, tmp_path: Path) -> None:
    async def scene() -> None:
        try:
            await Templates(TEMPLATES).prepare("debian")
        except RingfenceError as error:
            pytest.skip(str(error))
        async with running(platform, tmp_path, template="debian") as (_, link):
            said = await link.shell("python3 -m pip --version && curl --version && git --version && id -un")
            assert said.startswith("pip "), said
            assert said.endswith("\nagent"), said
            assert await link.shell("apt-get --version | head -c 3; dpkg -s bash | head -1", user="root") == (
                "aptPackage: bash"
            )
            assert await link.shell("ls /usr/lib/python3*/EXTERNALLY-MANAGED 2>/dev/null") == ""

    play(scene())


@isolating
@pytest.mark.parametrize("where", ["root", "usr"])
def test_links_that_root_inside_left_lead_nowhere_on_the_host(
    platform: str, where: str, tmp_path: Path
) -> None:
    """The next start makes mount points in a tree that the sandbox prepared: CVE-2019-5736's and -2021-30465's kin."""
    victim = tmp_path / "victim"
    victim.mkdir()
    scripts = {
        "root": f"mv /home /h; ln -s {victim} /home; ln -s {victim} /root/w; mv /etc /e; ln -s {victim} /etc",
        "usr": f"rm -rf /usr/libexec/*; mv /usr/libexec /usr/l; ln -s {victim} /usr/libexec",
    }

    async def scene() -> None:
        async with staged(platform, tmp_path) as stage:
            link = await stage.start()
            await link.shell(scripts[where], user="root")
            await stage.driver.stop(stage.spec, grace=0)
            link.sock.close()
            attachment = await stage.enclosures.open(stage.spec.id)
            with contextlib.suppress(Unavailable):
                (await stage.driver.start(stage.spec, attachment, FILES)).close()
        assert not list(victim.iterdir())

    play(scene())


@isolating
def test_layers_belong_to_nobody_on_the_host(platform: str, tmp_path: Path) -> None:
    async def scene() -> None:
        async with running(platform, tmp_path) as (stage, link):
            await link.shell("cp /bin/true /usr/local/bin/su2; chmod 6755 /usr/local/bin/su2", user="root")
            upper = tmp_path / "state/sandboxes" / stage.spec.id / platform / "layers"
            (program,) = upper.rglob("su2")
            assert program.stat().st_uid == identity_of(stage.spec.id).outside(0) >= 0x5000_0000
            assert upper.parent.stat().st_mode & 0o077 == 0

    play(scene())


@isolating
def test_nothing_is_mounted_on_the_host(platform: str, tmp_path: Path) -> None:
    async def scene() -> None:
        async with running(platform, tmp_path) as (stage, _):
            mounts = Path("/proc/self/mountinfo").read_text()
            assert f"{stage.spec.id}/{platform}" not in mounts

    play(scene())


@pytest.mark.parametrize(
    "identity", [Identity(base=0x5000_0000, translated=True), Identity(base=1, translated=False)]
)
def test_every_id_inside_is_one_id_outside(identity: Identity) -> None:
    rows = [tuple(map(int, line.split())) for line in identity.lines().splitlines()]
    mapped = {}
    for inside, outside, count in rows:
        mapped.update(zip(range(inside, inside + count), range(outside, outside + count), strict=True))
    assert sorted(mapped) == list(range(COUNT))
    assert len(set(mapped.values())) == COUNT
    assert all(mapped[inside] == identity.outside(inside) for inside in (0, 1, 999, AGENT, 1001, COUNT - 1))


def test_sandboxes_do_not_share_ids() -> None:
    bases = {identity_of(f"sandbox-{number}").base for number in range(20)}
    assert len(bases) == 20
    assert all(base % COUNT == 0 for base in bases) or os.geteuid() != 0
