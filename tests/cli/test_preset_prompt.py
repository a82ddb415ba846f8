"""The question before the first sandbox, and starting over: asked of a person, never of a pipe."""

from __future__ import annotations

import pytest
from fake_daemon import FakeDaemon, rule, sandbox
from stage import OpenTerminal, Sbx

PROMPT = """\
Choose a default network policy:

     1. Open        — All network traffic allowed, no restrictions.
  ❯  2. Balanced    — Default deny, with common dev sites allowed.
     3. Locked Down — All network traffic blocked unless you allow it.

  Use ↑/↓ to navigate, Enter to select, or press 1–3."""
UP, DOWN = "\x1b[A", "\x1b[B"


@pytest.mark.parametrize(
    ("keys", "preset"),
    [
        ("2\n", "balanced"),
        ("\n", "balanced"),
        ("\r", "balanced"),
        ("1\n", "allow-all"),
        ("3\n", "deny-all"),
        ("31\n", "allow-all"),
        ("9x2\n", "balanced"),
        (DOWN + "\n", "deny-all"),
        (UP + "\n", "allow-all"),
        (DOWN + DOWN + "\n", "allow-all"),
        ("\x1bOB\n", "deny-all"),
        ("j\n", "deny-all"),
    ],
)
def test_reset_asks_and_a_digit_and_enter_answer(
    terminal: OpenTerminal, daemon: FakeDaemon, keys: str, preset: str
) -> None:
    screen = terminal("policy", "reset")
    screen.expect(PROMPT)
    screen.type(keys)
    assert screen.end() == 0
    assert daemon.asked("POST /v1/policy/reset") == [{"preset": preset}]
    assert "will be removed" not in screen.screen


def test_reset_says_what_is_now_in_force(terminal: OpenTerminal, daemon: FakeDaemon) -> None:
    screen = terminal("policy", "reset")
    screen.expect("press 1–3.")
    screen.type("2\n")
    screen.expect('Network policy set to "Balanced". Default deny, with common dev sites allowed.\n')
    assert screen.end() == 0


@pytest.mark.parametrize("key", ["\x03", "\x04", "\x1b"])
def test_a_person_who_changes_their_mind_changes_nothing(
    terminal: OpenTerminal, daemon: FakeDaemon, key: str
) -> None:
    daemon.rules = [rule("1", "a.org")]
    screen = terminal("policy", "reset")
    screen.expect("press 1–3.")
    screen.type(key)
    assert screen.end() == (130 if key == "\x03" else 1)
    assert daemon.asked("POST /v1/policy/reset") == []


@pytest.mark.parametrize(
    ("answer", "goes"), [("y\n", True), ("yes\n", True), ("n\n", False), ("\n", False), ("\x04", False)]
)
def test_reset_counts_what_goes_and_asks_again(
    terminal: OpenTerminal, daemon: FakeDaemon, answer: str, goes: bool
) -> None:
    daemon.rules = [rule("1", "a.org"), rule("2", "b.org"), rule("3", "c.org", origin="sandbox:lab")]
    screen = terminal("policy", "reset")
    screen.expect("press 1–3.")
    screen.type("2\n")
    screen.expect("2 local rules and 1 sandbox rule will be removed.\nContinue? [y/N] ")
    screen.type(answer)
    assert screen.end() == (0 if goes else 1)
    assert len(daemon.rules) == (0 if goes else 3)
    if goes:
        assert "Removed 3 rules. Undo: sbx policy import /home/ada/undo.yaml\n" in screen.screen
    else:
        assert "Cancelled: nothing was changed\n" in screen.screen


def test_what_is_typed_ahead_answers_both_questions(terminal: OpenTerminal, daemon: FakeDaemon) -> None:
    daemon.rules = [rule("1", "a.org")]
    screen = terminal("policy", "reset")
    screen.expect("press 1–3.")
    screen.type("3\ny\n")
    assert screen.end() == 0
    assert (daemon.preset, daemon.rules) == ("deny-all", [])


def test_reset_without_a_terminal_needs_a_preset(sbx: Sbx, daemon: FakeDaemon) -> None:
    ran = sbx("policy", "reset")
    assert ran.code == 2
    assert "say --preset balanced" in ran.err
    daemon.rules = [rule("1", "a.org")]
    ran = sbx("policy", "reset", "--preset", "locked-down")
    assert ran.code == 0
    assert ran.err == "1 local rule and 0 sandbox rules will be removed.\n"
    assert ran.out == (
        'Network policy set to "Locked Down". All network traffic blocked unless you allow it.\n'
        "Removed 1 rule. Undo: sbx policy import /home/ada/undo.yaml\n"
    )


def test_force_skips_the_second_question_alone(terminal: OpenTerminal, daemon: FakeDaemon) -> None:
    daemon.rules = [rule("1", "a.org")]
    screen = terminal("policy", "reset", "-f")
    screen.expect("press 1–3.")
    screen.type("\n")
    assert screen.end() == 0
    assert daemon.rules == []


@pytest.mark.parametrize("arguments", [["create", "--name=x", "shell"], ["policy", "init"]])
def test_the_first_sandbox_waits_for_a_choice(
    terminal: OpenTerminal, daemon: FakeDaemon, arguments: list[str]
) -> None:
    daemon.preset = None
    screen = terminal(*arguments)
    screen.expect(PROMPT)
    screen.type("3\n")
    assert screen.end() == 0
    assert daemon.preset == "deny-all"
    assert 'Network policy set to "Locked Down".' in screen.screen


def test_no_choice_no_sandbox(terminal: OpenTerminal, daemon: FakeDaemon) -> None:
    daemon.preset = None
    screen = terminal("create", "--name=x", "shell")
    screen.expect("press 1–3.")
    screen.type("\x1b")
    assert screen.end() == 1
    assert "Error: global network policy has not been initialized\n" in screen.screen
    assert (daemon.preset, daemon.sandboxes) == (None, {})


def test_without_a_terminal_balanced_comes_with_one_notice(sbx: Sbx, daemon: FakeDaemon) -> None:
    daemon.preset = None
    ran = sbx("create", "-q", "--name=x", "shell")
    assert (ran.code, ran.out) == (0, "x\n")
    assert ran.err == (
        "Notice: no network policy was chosen, so Balanced is in force now; `sbx policy reset` changes it\n"
    )
    assert daemon.asked("PUT /v1/policy/preset") == [{"preset": "balanced", "implicit": True}]
    assert sbx("create", "-q", "--name=y", "shell").err == ""


def test_an_installation_can_demand_that_a_person_chooses(sbx: Sbx, daemon: FakeDaemon) -> None:
    daemon.preset, daemon.require_init = None, True
    daemon.sandboxes["x"] = sandbox("x")
    for arguments, code in ((["create", "shell"], 1), (["run", "shell"], 1), (["exec", "x", "true"], 125)):
        ran = sbx(*arguments)
        assert ran.code == code
        assert ran.err == (
            "Error: global network policy has not been initialized\nHint: run `sbx policy init balanced`\n"
        )
    assert daemon.preset is None


@pytest.mark.parametrize("verb", ["init", "set-default"])
def test_init_names_the_preset(sbx: Sbx, daemon: FakeDaemon, verb: str) -> None:
    daemon.preset = None
    assert sbx("policy", verb).code == 2
    assert sbx("policy", verb, "allow-all").out == (
        'Network policy set to "Open". All network traffic allowed, no restrictions.\n'
    )
    assert sbx("policy", verb, "open").code == 0
    assert sbx("policy", verb, "balanced").err.startswith("Error: a preset was chosen before\n")


def test_read_commands_never_ask(terminal: OpenTerminal, daemon: FakeDaemon) -> None:
    daemon.preset = None
    for arguments in (["ls"], ["policy", "ls"], ["policy", "preset", "ls"], ["daemon", "status"]):
        assert terminal(*arguments).end() == 0
    assert daemon.preset is None


def test_preset_ls_shows_groups_and_parts(sbx: Sbx, daemon: FakeDaemon) -> None:
    assert sbx("policy", "preset", "ls").out == (
        "PRESET      NAME          STATE      MEANING\n"
        "allow-all   Open                     All network traffic allowed, no restrictions.\n"
        "balanced    Balanced      in force   Default deny, with common dev sites allowed.\n"
        "deny-all    Locked Down              All network traffic blocked unless you allow it.\n"
        "\n"
        "GROUP                                    STATE   RESOURCES\n"
        "default-cloud-infrastructure             on      2\n"
        "  default-cloud-infrastructure/storage   off     1\n"
    )


def test_groups_and_parts_are_switched(sbx: Sbx, daemon: FakeDaemon) -> None:
    part = "default-cloud-infrastructure/storage"
    assert sbx("policy", "preset", "disable", part).out == f"{part} is off\n"
    assert sbx("policy", "preset", "enable", part).out == f"{part} is on\n"
    assert daemon.asked("POST /v1/policy/preset/groups") == [
        {"name": part, "enabled": False},
        {"name": part, "enabled": True},
    ]
    assert sbx("policy", "preset", "disable", "pypi.org").code == 3
