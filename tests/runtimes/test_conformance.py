"""What every runtime does, whichever it is: the driver protocol of ``application.ports``, tried on each."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest
from link import Link
from platforms import FILES, Stage, each, ended, make_driver, running, specify, staged

from ringfence.application.errors import Conflict, NotFound, Unavailable
from ringfence.application.ports import Attachment, RuntimeDriver
from ringfence.sandbox.frames import Kind
from ringfence.sandbox.model import Condition, Isolation

all_platforms = each("fake", "gvisor", "namespaces")


def play(scene: Coroutine[Any, Any, None]) -> None:
    asyncio.run(scene)


async def condition(stage: Stage) -> Condition:
    return (await stage.driver.observe(stage.spec)).condition


@all_platforms
def test_its_word_for_isolation_is_its_own(platform: str, tmp_path: Path) -> None:
    driver: RuntimeDriver = make_driver(platform, tmp_path)
    assert driver.name == platform
    assert (
        driver.isolation
        is {
            "fake": Isolation.NONE,
            "gvisor": Isolation.USER_KERNEL,
            "namespaces": Isolation.SHARED_KERNEL,
        }[platform]
    )


@all_platforms
def test_it_proves_that_it_works(platform: str, tmp_path: Path) -> None:
    async def scene() -> None:
        driver = make_driver(platform, tmp_path)
        first, second = await driver.probe(), await driver.probe()
        assert first == second
        assert first.usable, first.reason
        assert first.isolation is driver.isolation
        assert {"tty", "persistent-root"} <= first.capabilities
        assert await driver.orphans(frozenset()) == ()

    play(scene())


@all_platforms
def test_a_life(platform: str, tmp_path: Path) -> None:
    async def scene() -> None:
        async with staged(platform, tmp_path) as stage:
            assert await condition(stage) is Condition.CREATED
            link = await stage.start()
            assert await condition(stage) is Condition.RUNNING
            assert await link.run("/bin/true") == (0, "")
            assert await link.run("/bin/false") == (1, "")
            assert await link.run("/bin/echo", "a", "b c") == (0, "a b c\n")
            assert await link.run("/bin/cat", stdin=b"x" * 1000) == (0, "x" * 1000)
            assert await link.run("/nonexistent/program") == (127, "command `/nonexistent/program` not found")
            await stage.driver.stop(stage.spec, grace=5)
            assert await condition(stage) is Condition.EXITED
            assert await link.frame() is None
            link.sock.close()
            again = await stage.start()
            assert await again.run("/bin/true") == (0, "")
            again.sock.close()
            await stage.driver.remove(stage.spec)
            assert await condition(stage) is Condition.ABSENT

    play(scene())


@all_platforms
def test_every_call_may_be_repeated(platform: str, tmp_path: Path) -> None:
    async def scene() -> None:
        async with staged(platform, tmp_path) as stage:
            driver, spec = stage.driver, stage.spec
            await driver.prepare(spec.template)
            await driver.create(spec)
            await driver.stop(spec, grace=0)
            assert await condition(stage) is Condition.CREATED
            link = await stage.start()
            await driver.create(spec)
            assert await condition(stage) is Condition.RUNNING
            link.sock.close()
            for _ in range(2):
                await driver.stop(spec, grace=0)
            for _ in range(2):
                await driver.remove(spec)
                await driver.sweep(spec.id)
            await driver.stop(spec, grace=0)
            assert await condition(stage) is Condition.ABSENT

    play(scene())


@all_platforms
def test_what_cannot_be_is_said(platform: str, tmp_path: Path) -> None:
    async def scene() -> None:
        driver = make_driver(platform, tmp_path)
        with pytest.raises(NotFound, match="no template `nonsense`"):
            await driver.prepare("nonsense")
        with pytest.raises(NotFound, match="was not created"):
            await driver.start(specify(platform), Attachment(sandbox="x", netns="/nonexistent"), FILES)
        async with running(platform, tmp_path) as (stage, link):
            assert stage.attachment is not None
            with pytest.raises(Conflict, match="runs already"):
                await stage.driver.start(stage.spec, stage.attachment, FILES)
            assert await link.run("/bin/true") == (0, "")

    play(scene())


@all_platforms
def test_files_are_where_they_were_placed(platform: str, tmp_path: Path) -> None:
    async def scene() -> None:
        async with staged(platform, tmp_path) as stage:
            for number in range(2):
                content = f"10.0.0.{number} somewhere\n"
                link = await stage.start({"/etc/hosts": content.encode()})
                assert await link.run("/bin/cat", "/etc/hosts") == (0, content)
                await stage.driver.stop(stage.spec, grace=0)
                link.sock.close()

    play(scene())


@all_platforms
def test_a_sandbox_ends_with_its_link(platform: str, tmp_path: Path) -> None:
    async def scene() -> None:
        async with running(platform, tmp_path) as (stage, link):
            link.sock.close()
            await ended(stage)
            assert await condition(stage) is Condition.EXITED

    play(scene())


@all_platforms
def test_signals_reach_a_command(platform: str, tmp_path: Path) -> None:
    async def scene() -> None:
        async with running(platform, tmp_path) as (_, link):
            sleeping = asyncio.create_task(link.run("/bin/sleep", "1000"))
            while link.channel == 0:  # noqa: ASYNC110 - until the task has its first turn
                await asyncio.sleep(0)
            await link.say(Kind.SIGNAL, b"\x0f")
            assert (await sleeping)[0] == 128 + 15

    play(scene())


@all_platforms
def test_orphans_are_found_and_swept(platform: str, tmp_path: Path) -> None:
    async def scene() -> None:
        async with running(platform, tmp_path) as (stage, _):
            driver, sandbox = stage.driver, stage.spec.id
            assert await driver.orphans(frozenset({sandbox})) == ()
            assert await driver.orphans(frozenset()) == (sandbox,)
            await driver.sweep(sandbox)
            assert await driver.orphans(frozenset()) == ()
            assert await condition(stage) is Condition.ABSENT

    play(scene())


@each("gvisor", "namespaces")
def test_a_restarted_daemon_finds_its_sandboxes(platform: str, tmp_path: Path) -> None:
    async def scene() -> None:
        async with running(platform, tmp_path) as (stage, link):
            before = await stage.driver.observe(stage.spec)
            later = make_driver(platform, tmp_path)
            after = await later.observe(stage.spec)
            assert (after.condition, after.pid) == (Condition.RUNNING, before.pid)
            assert await later.orphans(frozenset()) == (stage.spec.id,)
            assert await link.run("/bin/true") == (0, "")
            await later.stop(stage.spec, grace=5)
            assert await condition(stage) is Condition.EXITED

    play(scene())


@each("gvisor", "namespaces")
def test_writes_stay_until_it_is_removed(platform: str, tmp_path: Path) -> None:
    async def scene() -> None:
        async with staged(platform, tmp_path) as stage:
            link = await stage.start()
            await link.shell("echo kept > /home/agent/note")
            await link.shell(
                "echo kept > /usr/local/share/note; rm /usr/bin/env; echo gone > /tmp/note", user="root"
            )
            await stage.driver.stop(stage.spec, grace=5)
            link.sock.close()
            link = await stage.start()
            assert await link.shell("cat /home/agent/note /usr/local/share/note") == "kept\nkept"
            assert await link.shell("test -e /usr/bin/env || test -e /tmp/note || echo gone") == "gone"
            link.sock.close()
            await stage.driver.remove(stage.spec)
            await stage.driver.create(stage.spec)
            link = await stage.start()
            assert (
                await link.shell("cat /home/agent/note 2>/dev/null; test -e /usr/bin/env && echo new")
                == "new"
            )
            link.sock.close()

    play(scene())


@each("gvisor", "namespaces")
def test_many_at_once(platform: str, tmp_path: Path) -> None:
    async def one(number: int) -> str:
        async with running(platform, tmp_path) as (_, link):
            return await link.shell(f"echo {number} > /tmp/own; cat /tmp/own; hostname > /dev/null")

    async def scene() -> None:
        assert await asyncio.gather(*map(one, range(4))) == list("0123")

    play(scene())


@each("gvisor", "namespaces")
def test_a_failed_start_leaves_nothing_running(platform: str, tmp_path: Path) -> None:
    async def scene() -> None:
        async with staged(platform, tmp_path) as stage:
            driver = stage.driver
            broken = tmp_path / "agent"
            broken.write_bytes(b"\x7fELF nonsense")
            driver._agent, intact = broken, driver._agent  # type: ignore[attr-defined]
            attachment = await stage.enclosures.open(stage.spec.id)
            with contextlib.suppress(Unavailable):  # a runtime may notice at once, or end
                link = Link(await driver.start(stage.spec, attachment, FILES))
                assert await link.frame() is None
                link.sock.close()
            await ended(stage)
            driver._agent = intact  # type: ignore[attr-defined]
            link2 = await stage.start()
            assert await link2.run("/bin/true") == (0, "")
            link2.sock.close()

    play(scene())


@each("gvisor", "namespaces")
def test_an_unknown_template_or_runtime_program_changes_nothing(platform: str, tmp_path: Path) -> None:
    async def scene() -> None:
        driver = make_driver(platform, tmp_path)
        with pytest.raises(NotFound):
            await driver.create(dataclasses.replace(specify(platform), template="nonsense"))
        assert await driver.orphans(frozenset()) == ()

    play(scene())
