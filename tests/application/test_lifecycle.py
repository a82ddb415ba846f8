"""Sandboxes from create to rm, one story a test; and the same stories with the daemon dying at every step of them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from application_rig import OWNER, Crash, Inhabitant, Universe

from ringfence.application.creation import Creation
from ringfence.application.errors import Conflict, InvalidInput, NotFound, RingfenceError, Unavailable
from ringfence.application.rules import RuleRequest
from ringfence.policy.model import Effect
from ringfence.sandbox.model import Desired, Enforcement

Story = Callable[[Inhabitant], Awaitable[None]]


def tell(directory: Path, story: Story, **options: float) -> None:
    """Tell a story to a fresh daemon that has Balanced."""

    async def whole() -> None:
        daemon = Inhabitant(Universe(directory), **options)
        await daemon.wake()
        await daemon.presets.choose("balanced")
        try:
            await story(daemon)
        finally:
            await daemon.leave()

    asyncio.run(whole())


def wish(name: str = "lab", **fields: object) -> Creation:
    return Creation(agent="shell", owner=OWNER, name=name, workspaces=("/w",), **fields)  # type: ignore[arg-type]


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that other tasks bring about."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110  # of things that tell nobody when they change
            await asyncio.sleep(0)


def test_a_sandbox_is_created_stopped_and_runs_only_when_it_is_proven_to_be_enclosed(tmp_path: Path) -> None:
    async def story(daemon: Inhabitant) -> None:
        life = await daemon.sandboxes.create(wish())
        assert (life.status, life.enforcement) == ("stopped", Enforcement.OFF)
        life, entrance = await daemon.sandboxes.start("lab")
        assert (life.status, life.enforcement) == ("running", Enforcement.ENFORCING)
        assert entrance.cwd == "/w"
        assert entrance.command == ("bash",)
        assert entrance.environment["https_proxy"] == "http://gateway.docker.internal:3128"
        assert daemon.universe.admitted == {life.id}
        await daemon.sandboxes.start("LAB")  # idempotent, and names have no case
        await daemon.sandboxes.stop("lab")
        assert (life.status, life.enforcement) == ("stopped", Enforcement.OFF)
        assert daemon.universe.admitted == set()
        assert await daemon.universe.enclosure.known() == ()
        await daemon.sandboxes.remove("lab")
        with pytest.raises(NotFound):
            daemon.sandboxes.find("lab")

    tell(tmp_path, story)


def test_nothing_starts_where_canaries_are_not_refused(tmp_path: Path) -> None:
    async def story(daemon: Inhabitant) -> None:
        life = await daemon.sandboxes.create(wish())
        daemon.universe.enclosure.lost = 100
        with pytest.raises(Unavailable, match="did not confirm") as refused:
            await daemon.sandboxes.start("lab")
        assert refused.value.code == "not-enforcing"
        assert life.status == "stopped"
        assert daemon.universe.admitted == set()
        assert await daemon.universe.enclosure.known() == ()
        daemon.universe.enclosure.lost = 0
        life, _ = await daemon.sandboxes.start("lab")
        assert life.status == "running"

    tell(tmp_path, story, patience=0.01)


def test_a_canary_that_is_lost_twice_cuts_egress_until_one_is_refused_again(tmp_path: Path) -> None:
    async def story(daemon: Inhabitant) -> None:
        await daemon.sandboxes.create(wish())
        life, _ = await daemon.sandboxes.start("lab")
        assert await daemon.reach("lab", "pypi.org")
        daemon.universe.enclosure.lost = 1
        await until(lambda: daemon.universe.enclosure.lost == 0)
        assert life.enforcement is Enforcement.ENFORCING
        daemon.universe.enclosure.lost = 2
        await until(lambda: life.enforcement is Enforcement.DEGRADED)
        assert not await daemon.reach("lab", "pypi.org")
        await until(lambda: life.enforcement is Enforcement.ENFORCING)
        assert await daemon.reach("lab", "pypi.org")

    tell(tmp_path, story, patience=0.02, interval=0.0, recovery=0.05)


def test_an_answer_from_outside_cuts_egress_at_once(tmp_path: Path) -> None:
    async def story(daemon: Inhabitant) -> None:
        await daemon.sandboxes.create(wish())
        life, _ = await daemon.sandboxes.start("lab")
        daemon.universe.enclosure.breach = True
        await until(lambda: life.enforcement is Enforcement.DEGRADED)
        assert not await daemon.reach("lab", "pypi.org")

    tell(tmp_path, story, interval=0.0)


def test_canaries_are_in_no_log(tmp_path: Path) -> None:
    async def story(daemon: Inhabitant) -> None:
        await daemon.sandboxes.create(wish())
        await daemon.sandboxes.start("lab")
        await daemon.reach("lab", "pypi.org")
        records = [record async for record in daemon.decisions.log(sandbox="lab")]
        assert [record["host"] for record in records] == ["pypi.org"]

    tell(tmp_path, story)


def test_an_anonymous_sandbox_is_gone_after_a_clean_end_of_its_last_session(tmp_path: Path) -> None:
    async def story(daemon: Inhabitant) -> None:
        await daemon.sandboxes.create(wish("tmp", anonymous=True))
        life, _ = await daemon.sandboxes.start("tmp")
        daemon.universe.supervisors.attend(life.id, 2)
        daemon.universe.supervisors.attend(life.id, 1)
        await daemon.sandboxes.settle("tmp")
        assert life.status == "running"
        daemon.universe.supervisors.attend(life.id, 0, clean=True)
        await daemon.sandboxes.settle("tmp")
        assert list(daemon.lives) == []

    tell(tmp_path, story)


@pytest.mark.parametrize("anonymous", [False, True])
def test_a_lost_client_stops_and_keeps(tmp_path: Path, anonymous: bool) -> None:
    async def story(daemon: Inhabitant) -> None:
        await daemon.sandboxes.create(wish(anonymous=anonymous))
        life, _ = await daemon.sandboxes.start("lab")
        daemon.universe.supervisors.attend(life.id, 1)
        daemon.universe.supervisors.attend(life.id, 0, clean=False)
        await until(lambda: life.status == "stopped")
        assert daemon.sandboxes.find("lab") is life

    tell(tmp_path, story, grace=0.0)


def test_a_named_sandbox_is_stopped_after_its_grace_and_a_new_session_holds_it(tmp_path: Path) -> None:
    async def story(daemon: Inhabitant) -> None:
        await daemon.sandboxes.create(wish())
        life, _ = await daemon.sandboxes.start("lab")
        assert life.deadline is not None, "it waits for its first session, not for ever"
        daemon.universe.supervisors.attend(life.id, 1)
        await until(lambda: life.deadline is None)
        daemon.universe.supervisors.attend(life.id, 0)
        await until(lambda: life.deadline is not None)
        await daemon.sandboxes.settle("lab")
        assert life.status == "running"
        daemon.universe.supervisors.attend(life.id, 1)
        await until(lambda: life.deadline is None)

    tell(tmp_path, story)


def test_a_sandbox_that_ends_by_itself_is_stopped_whole(tmp_path: Path) -> None:
    async def story(daemon: Inhabitant) -> None:
        await daemon.sandboxes.create(wish())
        life, _ = await daemon.sandboxes.start("lab")
        await daemon.universe.driver.stop(life.record.spec, grace=0)
        daemon.universe.supervisors.end(life.id)
        await until(lambda: life.record.desired is Desired.STOPPED and not life.lock.locked())
        assert daemon.universe.admitted == set()
        life, _ = await daemon.sandboxes.start("lab")
        assert life.status == "running"

    tell(tmp_path, story)


@pytest.mark.parametrize(
    ("request_", "error", "text"),
    [
        (wish("shell"), InvalidInput, "reserved"),
        (wish("default"), InvalidInput, "reserved"),
        (wish("a b"), InvalidInput, "invalid sandbox name"),
        (wish("-x"), InvalidInput, "invalid sandbox name"),
        (wish("x" * 64), InvalidInput, "2 to 63"),
        (wish("lab"), Conflict, "already exists"),
        (wish("LAB"), Conflict, "already exists"),
        (
            Creation(agent="shell", owner=OWNER, name="n1", workspaces=("/nowhere",)),
            InvalidInput,
            "does not exist",
        ),
        (Creation(agent="shell", owner=OWNER, name="n1", workspaces=("/w:ro",)), InvalidInput, "read/write"),
        (Creation(agent="claude", owner=OWNER, name="n1"), Unavailable, "cannot be installed yet"),
        (Creation(agent="nobody", owner=OWNER, name="n1"), InvalidInput, "unknown agent"),
        (wish("n1", runtime="vmware"), InvalidInput, "unknown runtime"),
        (wish("n1", template="nothing"), NotFound, "no template"),
        (wish("n1", cpus=-1.0), InvalidInput, "number of CPUs"),
        (wish("n1", memory=4096), InvalidInput, "too few"),
        (wish("n1", environment={"A B": "x"}), InvalidInput, "not an environment variable"),
        (wish("n1", environment={"SANDBOX_ID": "x"}), InvalidInput, "set by the sandbox itself"),
        (wish("n1", deny_network=("a b",)), ValueError, "space"),
    ],
)
def test_a_wish_that_cannot_be_granted_changes_nothing(
    tmp_path: Path, request_: Creation, error: type[Exception], text: str
) -> None:
    async def story(daemon: Inhabitant) -> None:
        await daemon.sandboxes.create(wish("lab"))
        before = (daemon.universe.driver._sandboxes.keys(), daemon.policy.record)
        with pytest.raises(error, match=text):
            await daemon.sandboxes.create(request_)
        assert [life.name for life in daemon.sandboxes.list()] == ["lab"]
        assert (daemon.universe.driver._sandboxes.keys(), daemon.policy.record) == before

    tell(tmp_path, story)


def test_names_are_derived_from_agent_and_directory_and_numbered(tmp_path: Path) -> None:
    async def story(daemon: Inhabitant) -> None:
        names = [(await daemon.sandboxes.create(wish(""))).name for _ in range(3)]
        assert names == ["shell-w", "shell-w-2", "shell-w-3"]
        bare = await daemon.sandboxes.create(Creation(agent="shell", owner=OWNER))
        assert bare.name == "shell-sandbox"

    tell(tmp_path, story)


def test_twenty_creations_at_once_are_serialised_and_all_correct(tmp_path: Path) -> None:
    async def story(daemon: Inhabitant) -> None:
        made = await asyncio.gather(
            *(daemon.sandboxes.create(wish("")) for _ in range(10)),
            *(daemon.sandboxes.create(wish("same")) for _ in range(10)),
            return_exceptions=True,
        )
        refused = [each for each in made if isinstance(each, Conflict)]
        assert len(refused) == 9
        assert len({life.name for life in daemon.sandboxes.list()}) == 11
        await asyncio.gather(*(daemon.sandboxes.start(life.name) for life in daemon.sandboxes.list()))
        assert daemon.universe.admitted == {life.id for life in daemon.lives}
        await daemon.sandboxes.stop_all()
        assert daemon.universe.admitted == set()

    tell(tmp_path, story)


def test_before_a_preset_is_chosen_nothing_is_created_or_started(tmp_path: Path) -> None:
    async def whole() -> None:
        daemon = Inhabitant(Universe(tmp_path))
        await daemon.wake()
        for attempt in (daemon.sandboxes.create(wish()), daemon.sandboxes.start("lab")):
            with pytest.raises(Conflict, match="has not been initialized") as refused:
                await attempt
            assert refused.value.code == "policy-not-initialised"
        await daemon.leave()

    asyncio.run(whole())


# The daemon dies


async def one_life(daemon: Inhabitant) -> None:
    """Everything that a sandbox goes through."""
    await daemon.presets.choose("balanced")
    await daemon.sandboxes.create(wish("lab", deny_network=("paste.ee",)))
    await daemon.sandboxes.start("lab")
    await daemon.rules.add(RuleRequest(effect=Effect.DENY, resources=("pypi.org",)))
    await daemon.sandboxes.create(wish("other"))
    await daemon.sandboxes.stop("lab")
    await daemon.sandboxes.start("lab")
    await daemon.sandboxes.start("other")
    await daemon.sandboxes.remove("lab")


async def whole_and_nothing_else(daemon: Inhabitant) -> None:
    """What must be true of every world that a daemon has woken up in."""
    universe = daemon.universe
    running = {life.id for life in daemon.lives if life.running}
    assert all(life.record.desired is not Desired.REMOVED for life in daemon.lives)
    assert universe.driver._sandboxes.keys() == {life.id for life in daemon.lives}
    assert universe.admitted == running
    assert set(await universe.enclosure.known()) == running
    assert universe.supervisors.links.keys() == running
    assert {life.id for life in daemon.lives if life.enforcement is Enforcement.ENFORCING} == running
    observed = {i for i, kept in universe.driver._sandboxes.items() if kept.running}
    assert observed == running
    owners = {rule.sandbox for rule in daemon.policy.record.rules if rule.sandbox}
    assert owners <= {life.id for life in daemon.lives}
    denied = any(not rule.sandbox for rule in daemon.policy.record.rules)
    for life in daemon.lives:
        if life.running:
            assert await daemon.reach(life.name, "pypi.org") is not denied
            assert await daemon.reach(life.name, "files.pythonhosted.org")


async def die_and_wake(directory: Path, fatal: int) -> bool:
    """Live once, dying at a step; wake up again, twice, and see what is there. Whether there was such a step."""
    directory.mkdir()
    universe = Universe(directory)
    first = Inhabitant(universe, fatal=fatal)
    died = False
    try:
        await first.wake()
        await one_life(first)
    except Crash:
        died = True
    await first.leave()
    for _ in range(2):
        daemon = Inhabitant(universe)
        await daemon.wake()
        await whole_and_nothing_else(daemon)
        await daemon.leave()
    last = Inhabitant(universe)
    await last.wake()
    for life in list(last.lives):
        await last.sandboxes.remove(life.name)
    if last.policy.chosen:
        await last.sandboxes.create(wish("lab"))
        await last.sandboxes.start("lab")
        await whole_and_nothing_else(last)
    await last.leave()
    return died


@pytest.mark.parametrize("residue", range(4))
def test_a_daemon_that_dies_at_any_step_leaves_something_that_the_next_one_repairs(
    tmp_path: Path, residue: int
) -> None:
    fatal = residue + 1
    while asyncio.run(die_and_wake(tmp_path / str(fatal), fatal)):
        fatal += 4
    assert fatal > 60, "a life has many steps"


def test_what_nobody_knows_is_swept(tmp_path: Path) -> None:
    async def whole() -> None:
        universe = Universe(tmp_path)
        daemon = Inhabitant(universe)
        await daemon.wake()
        await daemon.presets.choose("balanced")
        life = await daemon.sandboxes.create(wish())
        await daemon.leave()
        await universe.driver.create(
            life.record.spec.__class__(id="x", name="x", agent="shell", owner=OWNER, runtime="fake")
        )
        await universe.enclosure.open("y")
        again = Inhabitant(universe)
        await again.wake()
        await whole_and_nothing_else(again)
        await again.leave()

    asyncio.run(whole())


def test_a_sandbox_whose_supervisor_died_with_the_daemon_is_stopped(tmp_path: Path) -> None:
    async def whole() -> None:
        universe = Universe(tmp_path)
        daemon = Inhabitant(universe)
        await daemon.wake()
        await daemon.presets.choose("balanced")
        life = await daemon.sandboxes.create(wish())
        await daemon.sandboxes.start("lab")
        await daemon.leave()
        universe.supervisors.end(life.id)
        again = Inhabitant(universe)
        await again.wake()
        assert again.sandboxes.find("lab").status == "stopped"
        await whole_and_nothing_else(again)
        await again.leave()

    asyncio.run(whole())


def test_a_gateway_that_is_new_is_told_of_every_running_sandbox(tmp_path: Path) -> None:
    async def story(daemon: Inhabitant) -> None:
        for name in ("one", "two", "three"):
            await daemon.sandboxes.create(wish(name))
        for name in ("one", "two"):
            await daemon.sandboxes.start(name)
        daemon.universe.gateway._policies.clear()
        served = frozenset(life.id for life in daemon.lives)
        await daemon.sandboxes.lose_gateway("the gateway ended", served)
        assert {life.enforcement for life in daemon.lives if life.running} == {Enforcement.DEGRADED}
        await daemon.sandboxes.readmit(served)
        await whole_and_nothing_else(daemon)
        notes = [r async for r in daemon.ledger.read(newest=0, matching=(b"enforcement changed",))]
        assert [note["text"] for note in notes if note["enforcement"] == "degraded"] == [
            "the gateway ended"
        ] * 2

    tell(tmp_path, story)


def test_failures_of_the_runtime_are_told_and_taken_back(tmp_path: Path) -> None:
    async def story(daemon: Inhabitant) -> None:
        life = await daemon.sandboxes.create(wish())

        async def broken(*_arguments: object, **_options: object) -> None:
            raise Unavailable("the runtime is broken")

        launch, daemon.universe.supervisors.launch = daemon.universe.supervisors.launch, broken  # type: ignore[method-assign]
        with pytest.raises(RingfenceError, match="runtime is broken"):
            await daemon.sandboxes.start("lab")
        assert life.status == "stopped"
        await whole_and_nothing_else(daemon)
        daemon.universe.supervisors.launch = launch  # type: ignore[method-assign]
        await daemon.sandboxes.start("lab")
        await whole_and_nothing_else(daemon)

    tell(tmp_path, story)
