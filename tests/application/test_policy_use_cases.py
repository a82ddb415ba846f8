"""Policy as a person changes it: live at once, undoable, explained; and refused whole when anything of it is wrong."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from application_rig import OWNER, Inhabitant, Universe

from ringfence.application.creation import Creation
from ringfence.application.errors import Conflict, InvalidInput, NotFound, RingfenceError, Unavailable
from ringfence.application.rules import RuleRequest
from ringfence.policy.errors import InvalidPolicy
from ringfence.policy.governance import Base
from ringfence.policy.model import Effect, NetworkAccess

Story = Callable[[Inhabitant], Awaitable[None]]


def tell(directory: Path, story: Story, preset: str = "balanced") -> None:
    """Tell a story to a daemon in which the sandbox ``lab`` runs."""

    async def whole() -> None:
        daemon = Inhabitant(Universe(directory))
        await daemon.wake()
        if preset:
            await daemon.presets.choose(preset)
            await daemon.sandboxes.create(Creation(agent="shell", owner=OWNER, name="lab"))
            await daemon.sandboxes.start("lab")
        try:
            await story(daemon)
        finally:
            await daemon.leave()

    asyncio.run(whole())


def deny(*resources: str, **fields: object) -> RuleRequest:
    return RuleRequest(effect=Effect.DENY, resources=resources, **fields)  # type: ignore[arg-type]


def allow(*resources: str, **fields: object) -> RuleRequest:
    return RuleRequest(effect=Effect.ALLOW, resources=resources, **fields)  # type: ignore[arg-type]


def test_a_deny_is_in_force_when_the_call_returns_and_so_is_its_removal(tmp_path: Path) -> None:
    async def story(daemon: Inhabitant) -> None:
        assert await daemon.reach("lab", "pypi.org")
        shown = await daemon.rules.add(deny("pypi.org"))
        assert shown["name"] == f"local:{shown['id']}"
        assert not await daemon.reach("lab", "pypi.org")
        assert daemon.rules.listing().rules[-1] == shown, "at the bottom"
        await daemon.rules.remove(identifier=shown["id"])
        assert await daemon.reach("lab", "pypi.org")

    tell(tmp_path, story)


@pytest.mark.parametrize("form", ["{}", "local:{}"])
def test_an_id_is_taken_with_and_without_its_prefix(tmp_path: Path, form: str) -> None:
    async def story(daemon: Inhabitant) -> None:
        shown = await daemon.rules.add(deny("pypi.org"))
        removed = await daemon.rules.remove(identifier=form.format(shown["id"]))
        assert [rule["id"] for rule in removed] == [shown["id"]]
        with pytest.raises(NotFound, match="rule not found"):
            await daemon.rules.remove(identifier=form.format(shown["id"]))

    tell(tmp_path, story)


def test_a_rule_of_one_sandbox_is_no_rule_of_another(tmp_path: Path) -> None:
    async def story(daemon: Inhabitant) -> None:
        await daemon.sandboxes.create(Creation(agent="shell", owner=OWNER, name="other"))
        await daemon.sandboxes.start("other")
        await daemon.rules.add(allow("paste.ee", sandbox="lab"))
        assert await daemon.reach("lab", "paste.ee")
        assert not await daemon.reach("other", "paste.ee")
        assert daemon.decisions.check("paste.ee", sandbox="lab").decision.allowed
        assert not daemon.decisions.check("paste.ee").decision.allowed
        assert [r["scope"] for r in daemon.rules.listing().rules if r["editable"]] == ["sandbox:lab"]
        assert [r for r in daemon.rules.listing("other").rules if r["editable"]] == []
        with pytest.raises(NotFound):
            await daemon.rules.remove(resources=["paste.ee"])
        await daemon.rules.remove(resources=["paste.ee"], sandbox="lab")
        assert not await daemon.reach("lab", "paste.ee")

    tell(tmp_path, story)


def test_rules_survive_a_stop_and_another_daemon(tmp_path: Path) -> None:
    async def whole() -> None:
        universe = Universe(tmp_path)
        daemon = Inhabitant(universe)
        await daemon.wake()
        await daemon.presets.choose("balanced")
        await daemon.sandboxes.create(Creation(agent="shell", owner=OWNER, name="lab"))
        await daemon.rules.add(allow("paste.ee", sandbox="lab"))
        await daemon.rules.add(deny("pypi.org"))
        await daemon.leave()
        again = Inhabitant(universe)
        await again.wake()
        await again.sandboxes.start("lab")
        assert await again.reach("lab", "paste.ee")
        assert not await again.reach("lab", "pypi.org")
        await again.sandboxes.stop("lab")
        await again.sandboxes.start("lab")
        assert await again.reach("lab", "paste.ee")
        await again.leave()

    asyncio.run(whole())


def test_a_sandbox_with_a_base_of_its_own_has_its_own_rules_alone(tmp_path: Path) -> None:
    async def story(daemon: Inhabitant) -> None:
        wish = Creation(agent="shell", owner=OWNER, name="own", base=Base.OWN)
        await daemon.sandboxes.create(wish)
        await daemon.sandboxes.start("own")
        assert not await daemon.reach("own", "pypi.org")
        await daemon.rules.add(allow("paste.ee"))
        assert not await daemon.reach("own", "paste.ee")
        await daemon.rules.add(allow("paste.ee", sandbox="own"))
        assert await daemon.reach("own", "paste.ee")

    tell(tmp_path, story)


def test_deny_network_at_creation_is_there_from_the_first_packet_and_goes_with_the_sandbox(
    tmp_path: Path,
) -> None:
    async def story(daemon: Inhabitant) -> None:
        wish = Creation(agent="shell", owner=OWNER, name="shut", deny_network=("**",))
        await daemon.sandboxes.create(wish)
        await daemon.sandboxes.start("shut")
        assert not await daemon.reach("shut", "pypi.org")
        await daemon.sandboxes.remove("shut")
        assert daemon.policy.record.rules == ()

    tell(tmp_path, story)


def test_a_rule_with_an_end_ends_and_running_sandboxes_hear_of_it(tmp_path: Path) -> None:
    async def story(daemon: Inhabitant) -> None:
        shown = await daemon.rules.add(allow("paste.ee", expires_in=0.02))
        before = daemon.policy.record.revision
        assert shown["expires_at"] == daemon.universe.now + 0.02
        assert await daemon.reach("lab", "paste.ee")
        daemon.universe.now += 1
        async with asyncio.timeout(20):
            while daemon.policy.record.revision == before:  # noqa: ASYNC110  # nobody is told
                await asyncio.sleep(0)
        assert not await daemon.reach("lab", "paste.ee")
        (listed,) = [rule for rule in daemon.rules.listing().rules if rule["editable"]]
        assert (listed["active"], listed["status"]) == (False, "inactive — expired.")

    tell(tmp_path, story)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "*",
        "http://x/",
        "a b",
        "10.0.0.1/33",
        "example.com:0",
        "example.com:99999",
        "exa mple.com",
        "a" * 300,
        "*.*.com",
        "127.0.0.1:80",
        "xn--zzzzzzzz--.com",
    ],
)
def test_bad_resources_are_refused_and_change_nothing(tmp_path: Path, text: str) -> None:
    async def story(daemon: Inhabitant) -> None:
        before = daemon.policy.record
        for request in (allow(text), allow("fine.example", text)):
            with pytest.raises(InvalidPolicy):
                await daemon.rules.add(request)
        assert daemon.policy.record == before

    tell(tmp_path, story, preset="")


def test_people_paste_lists(tmp_path: Path) -> None:
    async def story(daemon: Inhabitant) -> None:
        shown = await daemon.rules.add(allow("a.example, b.example\nc.example:443 d.example"))
        assert shown["resources"] == ["a.example", "b.example", "c.example:443", "d.example"]

    tell(tmp_path, story, preset="")


@pytest.mark.parametrize(
    ("identifier", "resources", "code", "hint"),
    [
        ("default-package-managers", [], "preset-rule", "preset disable default-package-managers"),
        ("default-cloud-infrastructure/storage", [], "preset-rule", "preset disable"),
        ("", ["pypi.org:443"], "preset-rule", "preset disable default-package-managers"),
        ("", ["two.example"], "rule-wider", "--id"),
        ("no-such-id", [], "rule-not-found", "policy ls"),
        ("", ["nobody.example"], "rule-not-found", "policy ls"),
        ("", [], "invalid", "--id"),
    ],
)
def test_what_cannot_be_removed_says_what_can_be_done(
    tmp_path: Path, identifier: str, resources: list[str], code: str, hint: str
) -> None:
    async def story(daemon: Inhabitant) -> None:
        await daemon.rules.add(allow("one.example", "two.example"))
        before = daemon.policy.record
        with pytest.raises(RingfenceError) as refused:
            await daemon.rules.remove(identifier=identifier, resources=resources)
        assert refused.value.code == code
        assert hint in refused.value.hint
        assert daemon.policy.record == before

    tell(tmp_path, story)


def test_balanced_has_five_groups_and_each_switches_off_and_on(tmp_path: Path) -> None:
    async def story(daemon: Inhabitant) -> None:
        names = [group.name for group in daemon.presets.choice().groups]
        assert names == [
            "default-ai-services",
            "default-package-managers",
            "default-code-and-containers",
            "default-cloud-infrastructure",
            "default-os-packages",
        ]
        await daemon.presets.switch("default-package-managers", enabled=False)
        assert not await daemon.reach("lab", "pypi.org")
        await daemon.presets.switch("default-package-managers", enabled=True)
        assert await daemon.reach("lab", "pypi.org")
        assert await daemon.reach("lab", "bucket.s3.amazonaws.com")
        await daemon.presets.switch("default-cloud-infrastructure/storage", enabled=False)
        assert not await daemon.reach("lab", "bucket.s3.amazonaws.com")
        with pytest.raises(InvalidPolicy):
            await daemon.presets.switch("default-nothing", enabled=False)

    tell(tmp_path, story)


def test_the_first_choice_is_made_once(tmp_path: Path) -> None:
    async def story(daemon: Inhabitant) -> None:
        await daemon.presets.choose("locked-down")
        await daemon.presets.choose("deny-all")
        with pytest.raises(Conflict, match="initialized already") as refused:
            await daemon.presets.choose("balanced")
        assert "policy reset" in refused.value.hint
        with pytest.raises(InvalidPolicy):
            await daemon.presets.choose("nonsense")

    tell(tmp_path, story, preset="")


def test_a_reset_takes_the_rules_keeps_an_undo_and_is_live(tmp_path: Path) -> None:
    async def story(daemon: Inhabitant) -> None:
        await daemon.rules.add(allow("paste.ee"))
        await daemon.rules.add(allow("pastebin.com", sandbox="lab"))
        await daemon.presets.switch("default-package-managers", enabled=False)
        assert daemon.presets.what_reset_removes() == (1, 1)
        preset, removed, undo = await daemon.presets.reset("balanced")
        assert (preset, removed, undo) == ("balanced", 2, "/undo/1")
        assert not await daemon.reach("lab", "paste.ee")
        assert not await daemon.reach("lab", "pastebin.com")
        assert await daemon.reach("lab", "pypi.org")
        await daemon.exchange.put(daemon.undone[0])
        assert await daemon.reach("lab", "paste.ee")

    tell(tmp_path, story)


def test_what_cannot_be_bound_is_cut(tmp_path: Path) -> None:
    async def story(daemon: Inhabitant) -> None:
        async def refuse(*_arguments: object) -> None:
            raise Unavailable("the gateway refuses the snapshot")

        daemon.universe.gateway.bind = refuse  # type: ignore[method-assign]
        with pytest.raises(Unavailable, match="egress is cut"):
            await daemon.rules.add(deny("paste.ee"))
        assert not await daemon.reach("lab", "pypi.org")

    tell(tmp_path, story)


def test_checks_are_decisions_with_reasons_and_advice(tmp_path: Path) -> None:
    async def story(daemon: Inhabitant) -> None:
        allowed = daemon.decisions.check("pypi.org")
        assert allowed.decision.allowed
        assert allowed.target == "pypi.org:443"
        blocked = daemon.decisions.check("https://paste.ee/x")
        assert (blocked.deny_kind, blocked.advice) == ("implicit", "sbx policy allow network paste.ee:443")
        near = daemon.decisions.check("pypi.org:8443")
        assert any("port 8443" in line for line in near.why_not)
        shown = await daemon.rules.add(deny("pypi.org"))
        explicit = daemon.decisions.check("pypi.org", sandbox="lab")
        assert (explicit.deny_kind, explicit.context) == ("explicit", "sandbox:lab")
        assert shown["id"] in explicit.advice

    tell(tmp_path, story)


def test_a_decision_is_explained_by_its_id_from_memory_and_from_the_ledger(tmp_path: Path) -> None:
    async def story(daemon: Inhabitant) -> None:
        await daemon.reach("lab", "paste.ee")
        (record,) = [each async for each in daemon.decisions.log(sandbox="lab", newest=1)]
        for _ in range(2):
            explained = await daemon.decisions.explain(record["id"])
            assert explained.records[0]["host"] == "paste.ee"
            assert explained.advice == "sbx policy allow network paste.ee:443"
            daemon.journal._recent.clear()
        await daemon.rules.add(allow("paste.ee"))
        assert "allowed now" in (await daemon.decisions.explain(record["id"])).advice
        with pytest.raises(NotFound):
            await daemon.decisions.explain("no-such-decision")

    tell(tmp_path, story)


def test_a_log_shows_the_newest_then_what_comes_and_nothing_twice(tmp_path: Path) -> None:
    async def story(daemon: Inhabitant) -> None:
        for host in ("a.example", "b.example", "c.example"):
            await daemon.reach("lab", host)
        seen: list[str] = []
        stream = daemon.decisions.log(sandbox="lab", newest=2, follow=True)
        async with asyncio.timeout(20):
            async for record in stream:
                seen.append(record["host"])
                if len(seen) < 5:
                    await daemon.reach("lab", f"live-{len(seen)}.example")
                if len(seen) == 6:
                    break
        assert seen[:2] == ["b.example", "c.example"]
        assert len(set(seen)) == 6
        await stream.aclose()  # type: ignore[attr-defined]
        assert daemon.journal._watchers == set()

    tell(tmp_path, story)


def test_what_a_gateway_repeats_is_recorded_once_even_by_another_daemon(tmp_path: Path) -> None:
    record = {
        "id": "d-1",
        "step": "opened",
        "time": 1.0,
        "sandbox": "s",
        "verdict": "blocked",
        "host": "x.org",
    }

    async def whole() -> None:
        for _ in range(2):
            daemon = Inhabitant(Universe(tmp_path))
            await daemon.wake()
            await daemon.journal.load()
            await daemon.journal.decided([record])
            await daemon.journal.decided([record, {**record, "step": "closed"}, {"dropped": 3}])
            await daemon.leave()
        records = [each async for each in daemon.ledger.read(newest=0, matching=())]
        assert [each.get("step", "gap") for each in records] == ["opened", "closed", "gap", "gap"]

    asyncio.run(whole())


def test_a_watcher_that_is_slow_is_told_what_it_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ringfence.application.journal.QUEUE", 3)

    async def story(daemon: Inhabitant) -> None:
        stream = daemon.decisions.log(follow=True)
        await daemon.reach("lab", "first.example")
        assert (await anext(stream))["host"] == "first.example"
        for number in range(10):
            await daemon.reach("lab", f"{number}.example")
        seen = [await anext(stream) for _ in range(4)]
        assert [record.get("host") for record in seen] == ["0.example", "1.example", "2.example", None]
        assert seen[-1]["dropped"] == 7
        await stream.aclose()  # type: ignore[attr-defined]

    tell(tmp_path, story)


DOCUMENT = """\
version: 1
name: ours
rules:
  - name: the index
    effect: allow
    resources: [index.example]
  - name: no pastes
    effect: deny
    resources: [paste.ee]
tests:
  must_allow: [index.example]
  must_block: [paste.ee]
"""


def test_a_document_replaces_the_rules_and_importing_it_again_changes_nothing(tmp_path: Path) -> None:
    async def story(daemon: Inhabitant) -> None:
        await daemon.rules.add(allow("old.example"))
        would = await daemon.exchange.put(DOCUMENT, dry_run=True)
        assert (len(would.added), len(would.removed)) == (2, 1)
        assert await daemon.reach("lab", "old.example")
        await daemon.exchange.put(DOCUMENT)
        assert await daemon.reach("lab", "index.example")
        assert not await daemon.reach("lab", "old.example")
        revision = daemon.policy.record.revision
        for text in (DOCUMENT, daemon.exchange.export()):
            again = await daemon.exchange.put(text)
            assert (again.added, again.removed) == ((), ())
        assert daemon.policy.record.revision == revision

    tell(tmp_path, story)


def test_a_document_whose_tests_fail_is_refused_whole(tmp_path: Path) -> None:
    async def story(daemon: Inhabitant) -> None:
        before = daemon.policy.record
        wrong = DOCUMENT.replace("must_block: [paste.ee]", "must_block: [pypi.org]")
        with pytest.raises(InvalidInput, match="expected blocked, got allowed") as refused:
            await daemon.exchange.put(wrong)
        assert refused.value.code == "policy-tests"
        assert daemon.policy.record == before
        assert len(daemon.exchange.validate(wrong).failures) == 1
        assert daemon.exchange.test(wrong).passed == 1
        only_tests = "version: 1\ntests:\n  must_allow: [pypi.org]\n  must_block: [paste.ee]\n"
        assert daemon.exchange.test(only_tests).failed == ()

    tell(tmp_path, story)


def test_a_document_with_a_mistake_names_its_line(tmp_path: Path) -> None:
    async def story(daemon: Inhabitant) -> None:
        text = DOCUMENT.replace("resources: [paste.ee]", "resources: ['a b']")
        error = daemon.exchange.validate(text).error
        assert error is not None
        assert getattr(error, "line", 0) == 9
        with pytest.raises(InvalidPolicy):
            await daemon.exchange.put(text)

    tell(tmp_path, story)


def test_two_changes_at_once_are_both_in_force(tmp_path: Path) -> None:
    async def story(daemon: Inhabitant) -> None:
        hosts = [f"h{number}.example" for number in range(20)]
        await asyncio.gather(*(daemon.rules.add(allow(host)) for host in hosts))
        assert all([await daemon.reach("lab", host) for host in hosts])
        _, policy = daemon.universe.gateway._policies[daemon.lives.find("lab").id]
        assert policy.revision == daemon.policy.record.revision == 21

    tell(tmp_path, story)


def test_acts_are_recorded_with_the_revision_they_made(tmp_path: Path) -> None:
    async def story(daemon: Inhabitant) -> None:
        await daemon.rules.add(deny("pypi.org"))
        await daemon.sandboxes.stop("lab")
        kinds = [record["kind"] async for record in daemon.ledger.read(newest=0, matching=())]
        assert kinds == [
            "preset chosen",
            "sandbox created",
            "enforcement changed",
            "sandbox started",
            "rule added",
            "sandbox stopped",
        ]
        (added,) = [r async for r in daemon.ledger.read(newest=1, matching=(b'"rule added"',))]
        assert added["revision"] == daemon.policy.record.revision
        assert added["rule"]["resources"] == ["pypi.org"]

    tell(tmp_path, story)


def test_what_cannot_be_recorded_is_not_done(tmp_path: Path) -> None:
    async def story(daemon: Inhabitant) -> None:
        before = daemon.policy.record

        async def full(*_: object) -> None:
            raise Unavailable("the ledger cannot be written")

        daemon.ledger.append = full  # type: ignore[method-assign, assignment]
        with pytest.raises(Unavailable, match="ledger"):
            await daemon.rules.add(deny("pypi.org"))
        with pytest.raises(Unavailable, match="ledger"):
            await daemon.sandboxes.create(Creation(agent="shell", owner=OWNER, name="other"))
        assert await daemon.store.policy() == before
        assert [life.name for life in daemon.lives] == ["lab"]
        daemon.store.desire = full  # type: ignore[method-assign, assignment]
        await daemon.sandboxes.stop("lab")
        assert daemon.lives.find("lab").status == "stopped", "what ends need not be recorded to end"
        with pytest.raises(Unavailable):
            await daemon.sandboxes.start("lab")
        assert daemon.lives.find("lab").status == "stopped"
        await daemon.sandboxes.remove("lab")
        assert list(daemon.lives) == []
        assert daemon.universe.driver._sandboxes == {}

    tell(tmp_path, story)


def test_what_was_announced_and_failed_is_recorded_as_failed(tmp_path: Path) -> None:
    async def story(daemon: Inhabitant) -> None:
        async def full(_change: object) -> None:
            raise Unavailable("the disk is full")

        daemon.store.change = full  # type: ignore[method-assign, assignment]
        with pytest.raises(Unavailable, match="disk is full"):
            await daemon.rules.add(deny("pypi.org"))
        kinds = [record["kind"] async for record in daemon.ledger.read(newest=2, matching=())]
        assert kinds == ["rule added", "rule added: failed"]

    tell(tmp_path, story)


def test_the_gateways_own_decision_is_what_is_recorded(tmp_path: Path) -> None:
    async def story(daemon: Inhabitant) -> None:
        life = daemon.lives.find("lab")
        await daemon.universe.gateway.meet(life.id, NetworkAccess(host="pypi.org", port=443))
        (record,) = [r async for r in daemon.decisions.log(sandbox="lab")]
        assert (record["verdict"], record["rule"], record["agent"], record["user"]) == (
            "allowed",
            "default-package-managers",
            "shell",
            "dev",
        )

    tell(tmp_path, story)
