"""``sbx secret`` as it is typed: the value goes to the daemon, and is on no screen."""

from __future__ import annotations

import json
import sys
from io import BytesIO, TextIOWrapper

import pytest
from fake_daemon import FakeDaemon, sandbox
from stage import OpenTerminal, Ran, Sbx

CANARY = "sk-canary-5f2a7c"
HIDDEN = "****...****"


@pytest.fixture
def lab(daemon: FakeDaemon) -> FakeDaemon:
    daemon.sandboxes["lab"] = sandbox("lab")
    return daemon


@pytest.fixture
def pipe(sbx: Sbx, monkeypatch: pytest.MonkeyPatch) -> Sbx:
    """``echo VALUE | sbx …``: the first argument is what the pipe holds."""

    def run(content: str, *arguments: str) -> Ran:
        monkeypatch.setattr(sys, "stdin", TextIOWrapper(BytesIO(content.encode())))
        return sbx(*arguments)

    return run


def test_the_lab_s_first_step(pipe: Sbx, sbx: Sbx, daemon: FakeDaemon) -> None:
    assert sbx("secret", "ls").out == "No secrets found\n"
    ran = pipe(f"{CANARY}\n", "secret", "set", "-g", "openai")
    assert (ran.code, ran.out, ran.err) == (0, "Secret 'openai' stored (global)\n", "")
    assert daemon.asked("PUT /v1/secrets/service") == [
        {"service": "openai", "text": CANARY, "overwrite": True}
    ]
    assert sbx("secret", "ls").out == ("SCOPE      SERVICE   SECRET\n(global)   openai    ****...****\n")


def test_the_listing_has_services_and_custom_secrets(sbx: Sbx, lab: FakeDaemon) -> None:
    lab.secrets = [
        {
            "scope": "global",
            "type": "service",
            "name": "github",
            "secret": HIDDEN,
            "source": ["gh", "auth", "token"],
        },
        {
            "scope": "global",
            "type": "service",
            "name": "openai",
            "secret": HIDDEN,
            "unavailable": "`op` left with 1",
        },
        {"scope": "lab", "type": "service", "name": "anthropic", "secret": HIDDEN, "source": "op://x/y/z"},
        {"scope": "host only", "type": "registry", "name": "ghcr.io", "secret": HIDDEN},
        {
            "scope": "lab",
            "type": "custom",
            "name": "TOKEN",
            "env": "TOKEN",
            "targets": ["*.example.com", "example.org"],
            "placeholder": "sbx-cs-0000",
            "secret": HIDDEN,
        },
    ]
    assert sbx("secret", "ls").out.splitlines() == [
        "SCOPE         SERVICE     SECRET",
        "(global)      github      (gh auth token)",
        "(global)      openai      (unavailable: `op` left with 1)",
        "lab           anthropic   (op://x/y/z)",
        "(host only)   ghcr.io     ****...****",
        "",
        "CUSTOM SECRETS",
        "SCOPE   TARGETS                      ENV     PLACEHOLDER   SECRET",
        "lab     *.example.com, example.org   TOKEN   sbx-cs-0000   ****...****",
    ]
    assert sbx("secret", "ls", "-q").out.split() == ["github", "openai", "anthropic", "ghcr.io", "TOKEN"]
    assert sbx("secret", "ls", "-g", "-q").out.split() == ["github", "openai"]
    for spelling in (["lab"], ["--sandbox", "lab"]):
        assert sbx("secret", "ls", *spelling, "-q").out.split() == ["anthropic", "TOKEN"]
    assert sbx("secret", "ls", "--service", "github", "-q").out == "github\n"
    document = json.loads(sbx("secret", "ls", "lab", "--json").out)
    assert document.keys() == {"secrets", "custom_secrets", "shadowed_services", "env_only_count"}
    assert document["custom_secrets"][0]["env"] == "TOKEN"
    assert sbx("secret", "ls", "lab", "-g").code == 2


@pytest.mark.parametrize(
    ("arguments", "scope", "older"),
    [
        (["openai"], "", False),
        (["-g", "openai"], "", False),
        (["openai", "-g"], "", False),
        (["--sandbox", "lab", "openai"], "lab", False),
        (["lab", "openai"], "lab", True),
    ],
)
def test_every_spelling_of_a_scope(
    pipe: Sbx, lab: FakeDaemon, arguments: list[str], scope: str, older: bool
) -> None:
    ran = pipe(CANARY, "secret", "set", *arguments)
    assert ran.code == 0
    assert ("older spelling" in ran.err) is older
    (body,) = lab.asked("PUT /v1/secrets/service")
    assert body.get("sandbox", "") == scope


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["secret", "set", "nope"], "unknown service `nope`"),
        (["secret", "set", "a", "b", "c"], "name one service"),
        (["secret", "set", "-g", "lab", "openai"], "a sandbox and --global contradict each other"),
        (["secret", "set", "--sandbox", "x", "lab", "openai"], "name two sandboxes"),
        (["secret", "set", "openai", "--oauth"], "stores keys and tokens, not sign-ins"),
        (["secret", "set", "openai", "--refresh", "5m"], "--refresh needs --command or --ref"),
        (["secret", "set", "openai", "-t", "x", "--command", "y"], "a secret has one source"),
        (["secret", "set", "openai", "--command", "a 'b"], "--command cannot be read"),
        (["secret", "set", "openai", "--username", "x"], "--username belongs to --registry"),
        (["secret", "set", "openai", "--all-sandboxes"], "--all-sandboxes belongs to --registry"),
        (["secret", "set", "openai", "--registry", "ghcr.io"], "exclude each other"),
        (
            ["secret", "set", "--registry", "g.io", "--sandbox", "lab", "--all-sandboxes"],
            "contradict each other",
        ),
        (["secret", "set-custom", "--env", "X"], "missing option '--host'"),
        (["secret", "rm"], "name one secret, or say --all"),
        (["secret", "rm", "openai", "--all"], "name one secret, or say --all"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_meant_is_said_before_anything_is_asked_of_the_daemon(
    pipe: Sbx, lab: FakeDaemon, arguments: list[str], complaint: str
) -> None:
    ran = pipe(CANARY, *arguments)
    assert ran.code == 2
    assert complaint in ran.err
    assert not [call for call, _ in lab.calls if not call.startswith("GET")]


@pytest.mark.parametrize("content", ["", "\n", "\r\n"])
def test_without_a_value_it_says_so_and_waits_for_nobody(pipe: Sbx, lab: FakeDaemon, content: str) -> None:
    ran = pipe(content, "secret", "set", "openai")
    assert ran.code == 2
    assert ran.err.startswith("Error: there is no value on standard input\nHint: pipe the value in")
    assert pipe(content, "secret", "set").code == 2
    assert lab.asked("PUT /v1/secrets/service") == []


def test_no_standard_input_at_all_is_an_error_and_no_wait(
    sbx: Sbx, lab: FakeDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    ran = sbx("secret", "set", "openai")
    assert (ran.code, ran.err.splitlines()[0]) == (2, "Error: there is no value, and no terminal to ask on")


def test_a_value_that_is_not_text_or_endless_is_refused(
    sbx: Sbx, lab: FakeDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    for content, complaint in ((b"\xff\xfe", "not text"), (b"x" * 300_000, "longer than")):
        monkeypatch.setattr(sys, "stdin", TextIOWrapper(BytesIO(content)))
        ran = sbx("secret", "set", "openai")
        assert ran.code == 2
        assert complaint in ran.err


def test_a_value_on_the_command_line_is_warned_about_and_overwrites_only_by_force(
    sbx: Sbx, daemon: FakeDaemon
) -> None:
    ran = sbx("secret", "set", "openai", "-t", CANARY)
    assert (ran.code, ran.err) == (
        0,
        "Warning: --token shows the value to the shell's history and the process list; pipe it in instead\n",
    )
    again = sbx("secret", "set", "openai", "-t", CANARY)
    assert again.code == 1
    assert "Error: secret `openai` is stored already\nHint: `--force` overwrites it" in again.err
    assert sbx("secret", "set", "openai", "-t", CANARY, "-f").code == 0


def test_under_governance_no_value_is_taken_from_the_command_line(sbx: Sbx, daemon: FakeDaemon) -> None:
    daemon.governance = {"organization": "acme"}
    for arguments in (
        ["set", "openai", "-t", CANARY],
        ["set-custom", "--host", "a.org", "--env", "X", "--value", CANARY],
    ):
        ran = sbx("secret", *arguments)
        assert ran.code == 4
        assert "an organisation governs this machine" in ran.err
        assert CANARY not in ran.out + ran.err
    assert daemon.secrets == []


@pytest.mark.parametrize(
    ("arguments", "fields"),
    [
        (["--command", "gh auth token"], {"command": ["gh", "auth", "token"]}),
        (["--command", "sh -c 'a b'"], {"command": ["sh", "-c", "a b"]}),
        (["--ref", "op://v/i/f"], {"reference": "op://v/i/f"}),
        (["--command", "a", "--refresh", "1h30m"], {"command": ["a"], "refresh": 5400.0}),
        (["--command", "a", "--refresh", "on-demand"], {"command": ["a"], "on_demand": True}),
        (["--command", "a", "--exclusive"], {"command": ["a"], "exclusive": True}),
    ],
)
def test_commands_and_references_are_the_daemon_s_to_run(
    sbx: Sbx, daemon: FakeDaemon, arguments: list[str], fields: dict[str, object]
) -> None:
    assert sbx("secret", "set", "github", *arguments).code == 0
    assert daemon.asked("PUT /v1/secrets/service") == [{"service": "github", "overwrite": True} | fields]


def test_custom_secrets(pipe: Sbx, lab: FakeDaemon) -> None:
    ran = pipe(
        CANARY,
        *("secret", "set-custom", "--host", "*.example.com", "--host", "example.org", "--env", "TOKEN"),
        *("--placeholder", "ghp_{rand}", "--header", "x-key", "--in-query", "--in-body", "--sandbox", "lab"),
    )
    assert ran.out == "Custom secret 'TOKEN' stored (lab)\nPlaceholder: ghp_{rand}\n"
    assert lab.asked("PUT /v1/secrets/custom") == [
        {
            "env": "TOKEN",
            "hosts": ["*.example.com", "example.org"],
            "headers": ["x-key"],
            "placeholder": "ghp_{rand}",
            "in_query": True,
            "in_body": True,
            "sandbox": "lab",
            "text": CANARY,
        }
    ]


def test_registries(pipe: Sbx, lab: FakeDaemon) -> None:
    command = ("secret", "set", "--registry", "ghcr.io", "--username", "ada", "--password-stdin")
    assert pipe(CANARY, *command).out == "Registry credentials for 'ghcr.io' stored (host only)\n"
    assert pipe(CANARY, *command, "--all-sandboxes").out.endswith("(global)\n")
    assert pipe(CANARY, *command, "--sandbox", "lab", "--registry-auth-endpoint", "a.org").out.endswith(
        "(lab)\n"
    )
    assert lab.asked("PUT /v1/secrets/registry")[-1] == {
        "registry": "ghcr.io",
        "username": "ada",
        "auth_endpoint": "a.org",
        "sandbox": "lab",
        "overwrite": True,
        "text": CANARY,
    }


def test_removing_without_a_terminal_and_without_force_is_cancelled_and_no_failure(
    pipe: Sbx, lab: FakeDaemon
) -> None:
    pipe(CANARY, "secret", "set", "openai")
    ran = pipe("", "secret", "rm", "openai")
    assert (ran.code, ran.out) == (0, "Cancelled\n")
    assert lab.secrets
    ran = pipe("", "secret", "rm", "-f", "openai")
    assert (ran.code, ran.out) == (0, "Secret 'openai' removed (global)\n")
    ran = pipe("", "secret", "rm", "-f", "openai")
    assert (ran.code, ran.err) == (3, "Error: no such secret is stored\n")
    assert pipe("", "secret", "rm", "-f", "--all").out == "No secrets found\n"


@pytest.mark.parametrize(
    ("arguments", "body"),
    [
        (["lab", "openai"], {"sandbox": "lab", "name": "openai"}),
        (["--sandbox", "lab", "openai"], {"sandbox": "lab", "name": "openai"}),
        (["-g", "openai"], {"sandbox": "", "name": "openai"}),
        (["--registry", "ghcr.io"], {"sandbox": "", "registry": "ghcr.io"}),
        (["--placeholder", "sbx-cs-1"], {"sandbox": "", "placeholder": "sbx-cs-1"}),
        (["--all", "--sandbox", "lab"], {"sandbox": "lab", "everything": True}),
    ],
)
def test_what_is_removed(sbx: Sbx, lab: FakeDaemon, arguments: list[str], body: dict[str, object]) -> None:
    sbx("secret", "rm", "-f", *arguments)
    assert lab.asked("DELETE /v1/secrets") == [body]


def test_import_takes_nothing_silently(sbx: Sbx, daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "OPENAI_API_KEY": CANARY,
        "ANTHROPIC_API_KEY": "proxy-managed",
        "GITHUB_TOKEN": "ghp_x",
        "AWS_ACCESS_KEY_ID": "AKIA",
        "AWS_SECRET_ACCESS_KEY": "s",
    }.items():
        monkeypatch.setenv(name, value)
    for name in ("GH_TOKEN", "AWS_SESSION_TOKEN", "GEMINI_API_KEY", "GOOGLE_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    daemon.secrets = [{"scope": "global", "type": "service", "name": "github", "secret": HIDDEN}]
    ran = sbx("secret", "import")
    found = [
        "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY (aws)",
        "GITHUB_TOKEN (github, stored already: kept)",
        "OPENAI_API_KEY (openai)",
    ]
    assert (ran.code, ran.out.splitlines()) == (0, [*found, "Cancelled"])
    assert daemon.asked("PUT /v1/secrets/service") == []
    ran = sbx("secret", "import", "-f")
    assert ran.out.splitlines() == [*found, "Secret 'aws' stored (global)", "Secret 'openai' stored (global)"]
    assert daemon.asked("PUT /v1/secrets/service") == [
        {"service": "aws", "parts": {"access_key_id": "AKIA", "secret_access_key": "s"}},
        {"service": "openai", "parts": {"value": CANARY}},
    ]
    assert CANARY not in ran.out + ran.err


# A person at a terminal


def test_a_value_that_is_typed_is_not_shown(terminal: OpenTerminal, daemon: FakeDaemon) -> None:
    screen = terminal("secret", "set", "openai")
    screen.expect("OpenAI key: ")
    screen.type(f"{CANARY}\n")
    screen.expect("Secret 'openai' stored (global)")
    assert screen.end() == 0
    assert daemon.asked("PUT /v1/secrets/service")[0]["parts"] == {"value": CANARY}
    assert CANARY not in screen.screen


def test_without_a_service_there_is_a_menu(terminal: OpenTerminal, daemon: FakeDaemon) -> None:
    screen = terminal("secret", "set")
    screen.expect("Choose a service:")
    screen.expect("❯   1. anthropic")
    screen.expect("Use ↑/↓ to navigate, Enter to select.")
    screen.type("\x1b[B\n")
    screen.expect("Amazon Web Services (Bedrock) access key id: ")
    screen.type("AKIA\n")
    screen.expect("secret access key: ")
    screen.type(f"{CANARY}\n")
    screen.expect("session token (Enter for none): ")
    screen.type("\n")
    screen.expect("Secret 'aws' stored (global)")
    assert screen.end() == 0
    assert daemon.asked("PUT /v1/secrets/service")[0]["parts"] == {
        "access_key_id": "AKIA",
        "secret_access_key": CANARY,
    }
    assert CANARY not in screen.screen


@pytest.mark.parametrize(("keys", "code"), [("\n", 0), ("\x04", 0), ("\x03", 130)])
def test_who_types_nothing_changes_nothing(
    terminal: OpenTerminal, daemon: FakeDaemon, keys: str, code: int
) -> None:
    screen = terminal("secret", "set", "openai")
    screen.expect("OpenAI key: ")
    screen.type(keys)
    assert screen.end() == code
    assert daemon.asked("PUT /v1/secrets/service") == []


@pytest.mark.parametrize(("answer", "gone"), [("y\n", True), ("n\n", False), ("\n", False)])
def test_removing_asks_first(terminal: OpenTerminal, daemon: FakeDaemon, answer: str, gone: bool) -> None:
    daemon.secrets = [{"scope": "global", "type": "service", "name": "openai", "secret": HIDDEN}]
    screen = terminal("secret", "rm", "openai")
    screen.expect("Remove secret 'openai' (global)? [y/N]")
    screen.type(answer)
    screen.expect("Secret 'openai' removed (global)" if gone else "Cancelled")
    assert screen.end() == 0
    assert (daemon.secrets == []) is gone


def test_import_asks_first(terminal: OpenTerminal, daemon: FakeDaemon) -> None:
    screen = terminal("secret", "import", OPENAI_API_KEY=CANARY)
    screen.expect("OPENAI_API_KEY (openai)")
    screen.expect("Store 1 as secrets (global)? [y/N]")
    screen.type("y\n")
    screen.expect("Secret 'openai' stored (global)")
    assert screen.end() == 0
    assert CANARY not in screen.screen
