"""Secrets as a person handles them, and what the gateway of every sandbox knows of them at each moment."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from application_rig import OWNER, Inhabitant, Universe

from ringfence.application.creation import Creation
from ringfence.application.doctor import Status
from ringfence.application.errors import Conflict, InvalidInput, NotFound, Unavailable
from ringfence.application.ports import MintFailed
from ringfence.application.secret_requests import CustomWish, Given
from ringfence.application.secrets import Selection, Shown
from ringfence.sandbox.credentials import Binding

CANARY = "sk-canary-5f2a7c"
Story = Callable[[Inhabitant], Awaitable[None]]


def tell(directory: Path, story: Story, *sandboxes: str) -> None:
    """Tell a story to a daemon in which these sandboxes run (``lab`` if none is named)."""

    async def begun(daemon: Inhabitant) -> None:
        await daemon.presets.choose("balanced")
        for name in sandboxes or ("lab",):
            await daemon.sandboxes.create(Creation(agent="shell", owner=OWNER, name=name))
            await daemon.sandboxes.start(name)
        await story(daemon)

    generations(Universe(directory), begun)


def generations(universe: Universe, *stories: Story) -> None:
    """Tell one story after the other, each to a daemon of its own in the same universe."""

    async def whole() -> None:
        for story in stories:
            daemon = Inhabitant(universe)
            await daemon.wake()
            try:
                await story(daemon)
            finally:
                await daemon.leave()

    asyncio.run(whole())


async def begin(daemon: Inhabitant) -> None:
    """Have ``lab`` running."""
    await daemon.presets.choose("balanced")
    await daemon.sandboxes.create(Creation(agent="shell", owner=OWNER, name="lab"))
    await daemon.sandboxes.start("lab")


async def put(daemon: Inhabitant, service: str, value: str = CANARY, **options: object) -> Shown:
    chosen = {"sandbox": "", "exclusive": False, "overwrite": True} | options
    shown, _ = await daemon.secrets.set_service(service, Given(text=value), **chosen)  # type: ignore[arg-type]
    return shown


async def put_command(daemon: Inhabitant, service: str = "openai", **given: object) -> Shown:
    shown, _ = await daemon.secrets.set_service(
        service,
        Given(command=("mint", "x"), **given),  # type: ignore[arg-type]
        sandbox="",
        exclusive=False,
        overwrite=True,
    )
    return shown


async def put_custom(daemon: Inhabitant, env: str = "TOKEN", *hosts: str, **fields: object) -> Shown:
    sandbox, overwrite = str(fields.pop("sandbox", "")), bool(fields.pop("overwrite", False))
    wish = CustomWish(env=env, hosts=hosts or ("api.example.com",), **fields)  # type: ignore[arg-type]
    shown, _ = await daemon.secrets.set_custom(wish, Given(text=CANARY), sandbox=sandbox, overwrite=overwrite)
    return shown


def armed(daemon: Inhabitant, sandbox: str = "lab") -> dict[str, Binding]:
    """What the gateway knows for a sandbox at this moment."""
    return {each.name: each for each in daemon.universe.gateway.credentials[daemon.lives.find(sandbox).id]}


def value(daemon: Inhabitant, name: str, sandbox: str = "lab") -> str:
    return dict(armed(daemon, sandbox)[name].values)["value"]


async def ledger(daemon: Inhabitant) -> list[dict[str, object]]:
    return [dict(record) async for record in daemon.ledger.read(newest=0, matching=(b'"secret',))]


def test_a_secret_is_with_the_gateway_of_running_sandboxes_when_the_call_returns(tmp_path: Path) -> None:
    async def story(daemon: Inhabitant) -> None:
        assert armed(daemon) == {}
        await put(daemon, "openai")
        assert value(daemon, "openai") == value(daemon, "openai", "other") == CANARY
        await put(daemon, "openai", "sk-second")
        assert value(daemon, "openai") == "sk-second"
        await daemon.secrets.remove(Selection(name="openai"))
        assert armed(daemon) == {}

    tell(tmp_path, story, "lab", "other")


def test_a_sandbox_is_admitted_with_its_secrets_and_never_before_them(tmp_path: Path) -> None:
    async def story(daemon: Inhabitant) -> None:
        await put(daemon, "anthropic")
        await daemon.sandboxes.create(Creation(agent="shell", owner=OWNER, name="late"))
        seen: list[object] = []
        admit = daemon.universe.gateway.admit

        async def watched(spec: object, attachment: object, policy: object, credentials: object = ()) -> None:
            seen.append(credentials)
            await admit(spec, attachment, policy, credentials)  # type: ignore[arg-type]

        daemon.universe.gateway.admit = watched  # type: ignore[assignment]
        await daemon.sandboxes.start("late")
        await daemon.sandboxes.readmit({life.id for life in daemon.lives})
        assert len(seen) == 3
        assert all([binding.name for binding in each] == ["anthropic"] for each in seen)  # type: ignore[attr-defined]

    tell(tmp_path, story)


def test_a_sandbox_s_own_secret_beats_the_global_one_there_and_only_there(tmp_path: Path) -> None:
    async def story(daemon: Inhabitant) -> None:
        await put(daemon, "github", "ghp_everybody")
        shown = await put(daemon, "github", "ghp_lab", sandbox="lab")
        assert (shown.scope, shown.shadows) == ("lab", True)
        assert value(daemon, "github", "lab") == "ghp_lab"
        assert value(daemon, "github", "other") == "ghp_everybody"
        await daemon.secrets.remove(Selection(name="github", sandbox="lab"))
        assert value(daemon, "github", "lab") == "ghp_everybody"

    tell(tmp_path, story, "lab", "other")


def test_new_sessions_see_placeholders_of_what_is_set_later_and_never_a_value(tmp_path: Path) -> None:
    async def story(daemon: Inhabitant) -> None:
        life, entrance = await daemon.sandboxes.start("lab")
        assert "ANTHROPIC_API_KEY" not in entrance.environment
        assert entrance.environment["SBX_CRED_ANTHROPIC_MODE"] == "none"
        await put(daemon, "anthropic")
        await put(daemon, "github", sandbox="lab")
        custom = await put_custom(daemon, "MY_TOKEN")
        environment = daemon.sandboxes.entrance(life).environment
        assert environment["ANTHROPIC_API_KEY"] == "proxy-managed"
        assert environment["GH_TOKEN"] == environment["GITHUB_TOKEN"]
        assert environment["GH_TOKEN"] == "gho_sbxproxymanaged000000000000000000000"
        assert environment["SBX_CRED_ANTHROPIC_MODE"] == environment["SBX_CRED_GITHUB_MODE"] == "apikey"
        assert environment["MY_TOKEN"] == custom.secret.placeholder
        assert CANARY not in json.dumps(environment)

    tell(tmp_path, story)


def test_a_person_s_own_variable_wins_inside_and_is_warned_about(tmp_path: Path) -> None:
    async def story(daemon: Inhabitant) -> None:
        wish = Creation(agent="shell", owner=OWNER, name="own", environment={"OPENAI_API_KEY": "mine"})
        life = await daemon.sandboxes.create(wish)
        _, warnings = await daemon.secrets.set_service(
            "openai", Given(text=CANARY), sandbox="", exclusive=False, overwrite=True
        )
        assert warnings == ["sandbox `own` sets `OPENAI_API_KEY` itself, and that is what programs there see"]
        assert daemon.sandboxes.entrance(life).environment["OPENAI_API_KEY"] == "mine"

    tell(tmp_path, story)


def test_a_registry_is_the_host_s_alone_unless_it_is_given_away(tmp_path: Path) -> None:
    async def register(daemon: Inhabitant, **options: object) -> Shown:
        chosen = {"sandbox": "", "all_sandboxes": False, "username": "ada", "auth_endpoint": ""} | options
        return await daemon.secrets.set_registry(
            "GHCR.io",
            Given(text=CANARY),
            overwrite=True,
            **chosen,  # type: ignore[arg-type]
        )

    async def story(daemon: Inhabitant) -> None:
        record = daemon.lives.find("lab").record
        assert (await register(daemon)).scope == "host only"
        assert armed(daemon) == {}
        assert daemon.secrets.files(record) == {}
        shown = await register(daemon, all_sandboxes=True, auth_endpoint="auth.ghcr.io")
        (target,) = armed(daemon)["ghcr.io"].targets
        assert target.hosts == ("ghcr.io", "auth.ghcr.io")
        (content,) = daemon.secrets.files(record).values()
        auths = json.loads(content)["auths"]
        assert base64.b64decode(auths["ghcr.io"]["auth"]).decode() == f"ada:{shown.secret.placeholder}"
        assert CANARY.encode() not in content
        await daemon.secrets.remove(Selection(registry="ghcr.io"))
        assert armed(daemon) == {}
        assert await daemon.secrets.listing() == []

    tell(tmp_path, story)


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        "a\nb",
        "a\rb",
        "a\0b",
        f" {CANARY}",
        f"{CANARY} ",
        "schlüssel",
        "x" * (64 * 1024 + 1),
        "proxy-managed",
    ],
    ids=["empty", "lf", "cr", "nul", "space before", "space behind", "non-ascii", "too long", "placeholder"],
)
def test_what_no_header_carries_is_refused_and_never_quoted(tmp_path: Path, wrong: str) -> None:
    async def story(daemon: Inhabitant) -> None:
        with pytest.raises(InvalidInput) as refused:
            await daemon.secrets.set_service(
                "openai", Given(parts={"value": wrong}), sandbox="", exclusive=False, overwrite=True
            )
        assert not wrong or wrong not in str(refused.value) + refused.value.hint
        assert armed(daemon) == {}

    tell(tmp_path, story)


@pytest.mark.parametrize(
    ("host", "complaint"),
    [
        ("**", "does not say who"),
        ("0.0.0.0/0", "does not say who"),
        ("10.0.0.0/8", "does not say who"),
        ("localhost:8080", "does not say who"),
        ("com", "anybody can have a name"),
        ("*.com", "anybody can have a name"),
        ("**.co.uk", "anybody can have a name"),
        ("a b", "space"),
    ],
)
def test_a_custom_secret_is_for_hosts_that_a_person_can_name(
    tmp_path: Path, host: str, complaint: str
) -> None:
    async def story(daemon: Inhabitant) -> None:
        with pytest.raises(InvalidInput, match=complaint):
            await put_custom(daemon, "TOKEN", host)

    tell(tmp_path, story)


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"env": "1X"}, "is not an environment variable"),
        ({"env": "PATH"}, "set by the sandbox itself"),
        ({"env": "HTTPS_PROXY"}, "set by the sandbox itself"),
        ({"env": "SBX_CRED_X_MODE"}, "set by the sandbox itself"),
        ({"placeholder": "short"}, "8 to 128 characters"),
        ({"placeholder": "has a space"}, "cannot stand for"),
        ({"placeholder": "proxy-managed"}, "cannot stand for"),
        ({"placeholder": f"x{CANARY}x"}, "hold one another"),
        ({"headers": ("content-length",)}, "is not a header"),
        ({"headers": ("x y",)}, "is not a header"),
    ],
)
def test_a_custom_secret_that_cannot_be(tmp_path: Path, fields: dict[str, object], complaint: str) -> None:
    async def story(daemon: Inhabitant) -> None:
        with pytest.raises(InvalidInput, match=complaint):
            await put_custom(daemon, str(fields.pop("env", "TOKEN")), **fields)

    tell(tmp_path, story)


def test_custom_secrets_are_one_of_a_name_and_their_placeholders_apart(tmp_path: Path) -> None:
    async def story(daemon: Inhabitant) -> None:
        shown = await put_custom(
            daemon, "TOKEN", "*.example.com", placeholder="ghp_{rand}", headers=("X-Key",)
        )
        assert shown.secret.placeholder.startswith("ghp_00000")
        (target,) = armed(daemon)["TOKEN"].targets
        assert (target.hosts, target.header, target.form) == (("*.example.com",), "x-key", "replace")
        with pytest.raises(Conflict) as refused:
            await put_custom(daemon, "TOKEN")
        assert str(refused.value) == (
            'custom secret env "TOKEN" already exists in scope (global) '
            f"with placeholder {shown.secret.placeholder}"
        )
        await put_custom(daemon, "TOKEN", sandbox="lab")
        with pytest.raises(Conflict, match="in scope lab with placeholder"):
            await put_custom(daemon, "TOKEN", sandbox="lab")
        with pytest.raises(InvalidInput, match="part of another one"):
            await put_custom(daemon, "OTHER", placeholder=f"{shown.secret.placeholder}-more")

    tell(tmp_path, story)


def test_what_is_overwritten_keeps_the_placeholder_that_running_sessions_have(tmp_path: Path) -> None:
    async def story(daemon: Inhabitant) -> None:
        first = await put_custom(daemon, "TOKEN", "a.example.com")
        second = await put_custom(daemon, "TOKEN", "b.example.com", overwrite=True)
        assert second.secret.placeholder == first.secret.placeholder
        assert armed(daemon)["TOKEN"].targets[0].hosts == ("b.example.com",)
        third = await put_custom(daemon, "TOKEN", overwrite=True, placeholder="another-{rand}")
        assert third.secret.placeholder.startswith("another-")
        registries = [
            await daemon.secrets.set_registry(
                "ghcr.io",
                Given(text=f"password-{number}"),
                username="ada",
                auth_endpoint="",
                sandbox="lab",
                all_sandboxes=False,
                overwrite=True,
            )
            for number in range(2)
        ]
        assert registries[0].secret.placeholder == registries[1].secret.placeholder
        assert value(daemon, "ghcr.io") == "password-1"

    tell(tmp_path, story)


def test_a_short_value_is_warned_about(tmp_path: Path) -> None:
    async def story(daemon: Inhabitant) -> None:
        _, warnings = await daemon.secrets.set_service(
            "openai", Given(text="short"), sandbox="", exclusive=False, overwrite=True
        )
        assert warnings == ["a value of less than 8 characters is not hidden in answers that repeat it"]

    tell(tmp_path, story)


def test_aws_takes_parts_a_line_and_what_its_own_tool_prints(tmp_path: Path) -> None:
    printed = {"Version": 1, "AccessKeyId": "AKIA", "SecretAccessKey": "s/ecret", "SessionToken": "tok"}

    async def story(daemon: Inhabitant) -> None:
        for text, parts in {
            "AKIA:s/ecret": {"access_key_id": "AKIA", "secret_access_key": "s/ecret"},
            "AKIA:s/ecret:tok:en": {
                "access_key_id": "AKIA",
                "secret_access_key": "s/ecret",
                "session_token": "tok:en",
            },
            json.dumps(printed): {
                "access_key_id": "AKIA",
                "secret_access_key": "s/ecret",
                "session_token": "tok",
            },
            json.dumps({"Credentials": printed}): {
                "access_key_id": "AKIA",
                "secret_access_key": "s/ecret",
                "session_token": "tok",
            },
        }.items():
            await put(daemon, "aws", text)
            assert dict(armed(daemon)["aws"].values) == parts
        for text, complaint in {
            "AKIA": "`secret_access_key` of `aws` is missing",
            "{not json": "not JSON",
            "{}": "`access_key_id` of `aws` is missing",
        }.items():
            with pytest.raises(InvalidInput, match=complaint):
                await put(daemon, "aws", text)

    tell(tmp_path, story)


def test_the_ledger_says_what_was_done_and_nothing_of_a_value(tmp_path: Path) -> None:
    async def story(daemon: Inhabitant) -> None:
        await put(daemon, "openai")
        await put(daemon, "github", sandbox="lab")
        await put_custom(daemon)
        await daemon.secrets.remove(Selection(name="openai"))
        records = await ledger(daemon)
        assert [(each["kind"], each["secret"], each["scope"]) for each in records] == [
            ("secret set", "openai", "global"),
            ("secret set", "github", "lab"),
            ("secret set", "TOKEN", "global"),
            ("secret removed", "openai", "global"),
        ]
        for path in tmp_path.rglob("*"):
            assert path.is_dir() or CANARY.encode() not in path.read_bytes(), path
        assert CANARY not in repr(daemon.secrets._secrets) + repr(armed(daemon))
        assert CANARY not in repr(Given(text=CANARY, parts={"value": CANARY}))

    tell(tmp_path, story)


def test_a_restart_finds_everything_again_and_policy_reset_takes_nothing(tmp_path: Path) -> None:
    universe = Universe(tmp_path)

    async def first(daemon: Inhabitant) -> None:
        await begin(daemon)
        await put(daemon, "openai")
        await put_custom(daemon, sandbox="lab")
        await daemon.presets.reset("balanced")

        universe.gateway.credentials.clear()

    async def second(daemon: Inhabitant) -> None:
        assert set(armed(daemon)) == {"openai", "TOKEN"}
        assert [shown.scope for shown in await daemon.secrets.listing()] == ["global", "lab"]

    generations(universe, first, second)


def test_a_sandbox_takes_its_secrets_with_it(tmp_path: Path) -> None:
    async def story(daemon: Inhabitant) -> None:
        await put(daemon, "openai", sandbox="lab")
        await put(daemon, "groq", sandbox="other")
        await daemon.sandboxes.remove("lab")
        assert [shown.secret.name for shown in await daemon.secrets.listing()] == ["groq"]

    tell(tmp_path, story, "lab", "other")


def test_secrets_of_a_sandbox_that_a_dead_daemon_removed_are_dropped_at_the_next_start(
    tmp_path: Path,
) -> None:
    universe = Universe(tmp_path)

    async def first(daemon: Inhabitant) -> None:
        await daemon.presets.choose("balanced")
        life = await daemon.sandboxes.create(Creation(agent="shell", owner=OWNER, name="lab"))
        await put(daemon, "openai", sandbox="lab")
        await daemon.store.forget(life.id)

    async def second(daemon: Inhabitant) -> None:
        assert await daemon.secrets.listing() == []

    generations(universe, first, second)


def test_nothing_is_let_out_when_nobody_knows_what_is_bound(tmp_path: Path) -> None:
    universe = Universe(tmp_path)
    sealed = tmp_path / "secrets" / "sealed"

    def turn_a_bit() -> None:
        content = bytearray(sealed.read_bytes())
        content[-1] ^= 1
        sealed.write_bytes(content)

    async def first(daemon: Inhabitant) -> None:
        await begin(daemon)
        await put(daemon, "openai")
        turn_a_bit()

    async def second(daemon: Inhabitant) -> None:
        assert universe.admitted == set(), "also a sandbox that ran before"
        with pytest.raises(Unavailable, match="cannot be opened: it was changed"):
            await daemon.sandboxes.start("lab")
        assert universe.admitted == set()
        with pytest.raises(Unavailable):
            await daemon.secrets.listing()
        with pytest.raises(Unavailable):
            await put(daemon, "groq")
        (check,) = await daemon.secrets.examine()
        assert check.status is Status.FAIL
        assert daemon.sandboxes.list(), "everything else works"
        turn_a_bit()
        await daemon.sandboxes.start("lab")
        assert value(daemon, "openai") == CANARY

    generations(universe, first, second)


def test_a_gateway_that_does_not_take_a_secret_is_cut_off(tmp_path: Path) -> None:
    async def story(daemon: Inhabitant) -> None:
        async def refuse(*_arguments: object) -> None:
            raise Unavailable("it is out of its mind")

        daemon.universe.gateway.arm = refuse  # type: ignore[method-assign]
        with pytest.raises(Unavailable, match="whose egress is cut"):
            await put(daemon, "openai")
        assert not await daemon.reach("lab", "pypi.org")

    tell(tmp_path, story)


def test_what_is_not_there_is_not_found_and_nothing_named_is_a_mistake(tmp_path: Path) -> None:
    async def story(daemon: Inhabitant) -> None:
        with pytest.raises(NotFound, match="no secret `openai` is stored globally"):
            await daemon.secrets.remove(Selection(name="openai"))
        with pytest.raises(InvalidInput, match="no secret is named"):
            await daemon.secrets.remove(Selection())
        with pytest.raises(NotFound):
            await put(daemon, "openai", sandbox="nobody")
        assert await daemon.secrets.remove(Selection(everything=True)) == []
        await put(daemon, "openai")
        with pytest.raises(Conflict, match="stored already"):
            await put(daemon, "openai", overwrite=False)
        for given in (Given(), Given(text="a", command=("b",)), Given(text="a", refresh=60.0)):
            with pytest.raises(InvalidInput):
                await daemon.secrets.set_service("groq", given, sandbox="", exclusive=False, overwrite=True)

    tell(tmp_path, story)


# Values that a command makes


async def later(daemon: Inhabitant, seconds: float) -> None:
    """Let time pass, and whoever waited for it act."""
    daemon.universe.now += seconds
    daemon.universe.slept.set()
    for _ in range(200):
        await asyncio.sleep(0)


def test_a_command_is_tried_before_it_is_stored(tmp_path: Path) -> None:
    async def story(daemon: Inhabitant) -> None:
        with pytest.raises(Unavailable, match="not on the daemon's PATH"):
            await put_command(daemon)
        daemon.universe.mint.prints["mint"] = MintFailed("`mint` left with 1")
        with pytest.raises(Unavailable, match="`mint` left with 1; nothing was stored"):
            await put_command(daemon)
        daemon.universe.mint.prints["mint"] = "two\nlines"
        with pytest.raises(Unavailable, match="cannot be sent in a header"):
            await put_command(daemon)
        assert await daemon.secrets.listing() == []
        daemon.universe.mint.prints["mint"] = "made-1\n"
        await put_command(daemon)
        assert value(daemon, "openai") == "made-1"

    tell(tmp_path, story)


def test_a_made_value_is_made_again_before_it_ends(tmp_path: Path) -> None:
    async def story(daemon: Inhabitant) -> None:
        mint = daemon.universe.mint
        mint.prints["mint"] = "made-1"
        await put_command(daemon, refresh=1000.0)
        mint.prints["mint"] = "made-2"
        await later(daemon, 899.0)
        assert value(daemon, "openai") == "made-1"
        await later(daemon, 2.0)
        assert value(daemon, "openai") == "made-2"
        assert len(mint.runs) == 2

    tell(tmp_path, story, "lab", "other")


def test_a_command_that_fails_keeps_the_old_value_for_its_time_and_then_there_is_none(tmp_path: Path) -> None:
    async def story(daemon: Inhabitant) -> None:
        mint = daemon.universe.mint
        mint.prints["mint"] = "made-1"
        await put_command(daemon, refresh=1000.0)
        mint.prints["mint"] = MintFailed("`mint` left with 7")
        await later(daemon, 901.0)
        assert value(daemon, "openai") == "made-1"
        await later(daemon, 99.5)
        binding = armed(daemon)["openai"]
        assert (binding.values, binding.unavailable) == ((), "`mint` left with 7")
        (shown,) = await daemon.secrets.listing()
        assert shown.unavailable == "`mint` left with 7"
        checks = {check.name: check for check in await daemon.secrets.examine()}
        assert checks["secret openai"].status is Status.WARN
        mint.prints["mint"] = "made-3"
        await later(daemon, 400.0)
        assert value(daemon, "openai") == "made-3"
        assert "secret openai" not in {check.name for check in await daemon.secrets.examine()}

    tell(tmp_path, story)


def test_a_restarted_daemon_holds_requests_back_until_the_value_is_made(tmp_path: Path) -> None:
    universe = Universe(tmp_path)

    async def first(daemon: Inhabitant) -> None:
        await begin(daemon)
        universe.mint.prints["mint"] = "made-1"
        await put_command(daemon)
        universe.mint.gate = asyncio.Event()

    async def second(daemon: Inhabitant) -> None:
        binding = armed(daemon)["openai"]
        assert (binding.values, binding.unavailable) == ((), "it has not been made yet")
        assert universe.mint.gate is not None
        universe.mint.gate.set()
        await later(daemon, 0.0)
        assert value(daemon, "openai") == "made-1"
        assert len(universe.mint.runs) == 2, "one run however many asked"

    generations(universe, first, second)


def test_what_nobody_uses_is_not_made_again(tmp_path: Path) -> None:
    async def story(daemon: Inhabitant) -> None:
        mint = daemon.universe.mint
        mint.prints["mint"] = "made-1"
        await put_command(daemon, refresh=0.0)
        await daemon.sandboxes.stop("lab")
        await later(daemon, 60.0)
        await later(daemon, 600.0)
        assert len(mint.runs) == 1
        mint.prints["mint"] = "made-2"
        await daemon.sandboxes.start("lab")
        assert value(daemon, "openai") == "made-2"

    tell(tmp_path, story)


def test_a_value_s_own_end_counts_when_it_comes_first(tmp_path: Path) -> None:
    async def story(daemon: Inhabitant) -> None:
        mint = daemon.universe.mint
        printed = {"AccessKeyId": "A1", "SecretAccessKey": "s", "Expiration": "1970-01-12T13:48:20Z"}
        mint.prints["mint"] = json.dumps(printed)  # 1,000,100: the clock is at 1,000,000
        await put_command(daemon, "aws")
        mint.prints["mint"] = json.dumps({**printed, "AccessKeyId": "A2", "Expiration": None})
        await later(daemon, 91.0)
        assert dict(armed(daemon)["aws"].values)["access_key_id"] == "A2"

    tell(tmp_path, story)


def test_references_are_resolved_by_their_tool_and_by_nothing_else(tmp_path: Path) -> None:
    async def refer(daemon: Inhabitant, reference: str) -> Shown:
        shown, _ = await daemon.secrets.set_service(
            "openai", Given(reference=reference), sandbox="", exclusive=False, overwrite=True
        )
        return shown

    async def story(daemon: Inhabitant) -> None:
        with pytest.raises(Unavailable, match="`op` is not on"):
            await refer(daemon, "op://Private/OpenAI/key")
        with pytest.raises(InvalidInput, match="no reference that is known"):
            await refer(daemon, "vault://x")
        daemon.universe.mint.prints |= {"op": "made-by-op", "aws": "made-by-aws"}
        await refer(daemon, "op://Private/OpenAI/key")
        assert daemon.universe.mint.runs[-1] == ("op", "read", "--no-newline", "op://Private/OpenAI/key")
        arn = "arn:aws:secretsmanager:eu-west-1:123456789012:secret:openai"
        await refer(daemon, arn)
        assert daemon.universe.mint.runs[-1][-2:] == ("--secret-id", arn)
        assert value(daemon, "openai") == "made-by-aws"

    tell(tmp_path, story)
