"""What a person reads after ``create``, ``ls``, ``inspect``, ``stop``, ``rm``, and what they are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fake_daemon import FakeDaemon, Problem, sandbox
from stage import OpenTerminal, Sbx


def test_create_says_what_was_made_and_how_to_get_in(sbx: Sbx, daemon: FakeDaemon, tmp_path: Path) -> None:
    ran = sbx("create", "--name=sbxlab", "shell", str(tmp_path), "/docs:ro")
    assert ran.code == 0
    assert ran.out == (
        "✓ Created sandbox 'sbxlab'\n"
        f"  Workspace: {tmp_path} (direct mount)\n"
        "  Additional Workspaces: /docs:ro\n"
        "  Agent: shell\n"
        "  Isolation: user-kernel (gvisor)\n"
        "\n"
        "To connect to this sandbox, run:\n"
        "  sbx run sbxlab\n"
    )
    assert ran.err == ""


def test_create_without_a_path_has_no_workspace(sbx: Sbx, daemon: FakeDaemon) -> None:
    ran = sbx("create", "--name", "bare", "shell")
    assert "  Workspace: none (no workspace bind mount)\n" in ran.out
    assert daemon.asked("POST /v1/sandboxes") == [
        {"agent": "shell", "workspaces": [], "anonymous": False, "name": "bare"}
    ]


@pytest.mark.parametrize(
    "arguments",
    [
        ["create", "--name", "x", "--memory", "4g", "--cpus", "2", "shell", "/w"],
        ["create", "--name=x", "--memory=4g", "--cpus=2", "shell", "/w"],
        ["create", "shell", "/w", "--name=x", "-m", "4096m", "--cpus", "2"],
        ["create", "shell", "--name", "x", "/w", "-m4GiB", "--cpus=2.0"],
    ],
)
def test_create_takes_options_before_and_after_what_they_are_about(
    sbx: Sbx, daemon: FakeDaemon, arguments: list[str]
) -> None:
    assert sbx(*arguments).code == 0
    assert daemon.asked("POST /v1/sandboxes") == [
        {
            "agent": "shell",
            "workspaces": ["/w"],
            "anonymous": False,
            "name": "x",
            "cpus": 2.0,
            "memory": 4 << 30,
        }
    ]


def test_create_sends_environment_and_scoped_denies(
    sbx: Sbx, daemon: FakeDaemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FROM_HERE", "here")
    monkeypatch.delenv("NOT_HERE", raising=False)
    file = tmp_path / "env"
    file.write_text("# comment\nFROM_FILE=a=b\n\nOVERRIDDEN=file\n")
    ran = sbx(
        *("create", "--name=x", "--env-file", str(file), "-e", "OVERRIDDEN=option", "-e", "FROM_HERE"),
        *("--env=NOT_HERE", "--deny-network", "**", "--runtime", "namespaces", "shell"),
    )
    assert ran.code == 0
    (asked,) = daemon.asked("POST /v1/sandboxes")
    assert asked["environment"] == {"FROM_FILE": "a=b", "OVERRIDDEN": "option", "FROM_HERE": "here"}
    assert asked["deny_network"] == ["**"]
    assert "Isolation: shared-kernel (namespaces)" in ran.out


def test_create_quietly_prints_the_name_alone(sbx: Sbx, daemon: FakeDaemon) -> None:
    assert sbx("create", "-q", "--name=x", "shell").out == "x\n"


def test_ls_shows_isolation_and_whether_it_is_proven(sbx: Sbx, daemon: FakeDaemon) -> None:
    port = {"host_ip": "127.0.0.1", "host_port": 8080, "sandbox_port": 3000, "protocol": "tcp"}
    daemon.sandboxes = {
        "lab": sandbox("lab", status="running", enforcement="enforcing", ports=[port]),
        "broken": sandbox("broken", status="running", enforcement="degraded", workspaces=[]),
        "other": sandbox("other", agent="claude", workspaces=["/p", "/q:ro"]),
    }
    assert sbx("ls").out == (
        "SANDBOX   AGENT    STATUS    ISOLATION                 PORTS                      WORKSPACE\n"
        "lab       shell    running   user-kernel (enforcing)   127.0.0.1:8080->3000/tcp   /home/ada/proj\n"
        "broken    shell    running   user-kernel (degraded)\n"
        "other     claude   stopped   user-kernel                                          /p, /q:ro\n"
    )
    assert sbx("ls", "-q").out == "lab\nbroken\nother\n"


def test_ls_of_nothing(sbx: Sbx, daemon: FakeDaemon) -> None:
    assert sbx("ls").out == "No sandboxes found.\n"
    assert json.loads(sbx("ls", "--json").out) == {"sandboxes": []}
    assert sbx("ls", "-q").out == ""


def test_inspect_names_variables_but_shows_no_values(sbx: Sbx, daemon: FakeDaemon) -> None:
    daemon.sandboxes = {"lab": sandbox("lab", status="running", enforcement="enforcing")}
    text = sbx("inspect", "lab").out
    assert "Isolation:    user-kernel (gvisor)\n" in text
    assert "Enforcement:  enforcing\n" in text
    assert "Created:      2026-04-30 13:04:05\n" in text
    assert "TOKEN" in text
    assert "secret" not in text


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["inspect", "X"], 3),
        (["stop", "X"], 3),
        (["rm", "X"], 3),
        (["rm", "-f", "X"], 3),
        (["policy", "ls", "X"], 3),
        (["policy", "log", "X"], 3),
        (["run", "X"], 125),
        (["exec", "X", "true"], 125),
    ],
)
def test_an_unknown_sandbox_is_said_in_the_words_that_clients_look_for(
    sbx: Sbx, daemon: FakeDaemon, arguments: list[str], code: int
) -> None:
    ran = sbx(*arguments)
    assert ran.code == code
    assert ran.out == ""
    assert "sandbox 'X' not found" in ran.err
    assert "no such sandbox" in ran.err


def test_an_unknown_sandbox_in_json_is_json(sbx: Sbx, daemon: FakeDaemon) -> None:
    ran = sbx("inspect", "X", "--json")
    assert ran.code == 3
    assert ran.err == ""
    assert json.loads(ran.out)["error"] == {
        "code": "sandbox-not-found",
        "message": "sandbox 'X' not found: no such sandbox",
        "hint": "`sbx ls` lists the sandboxes that there are",
        "exit_code": 3,
    }


def test_stop_and_rm_do_all_that_they_can_and_report_the_rest(sbx: Sbx, daemon: FakeDaemon) -> None:
    daemon.sandboxes = {name: sandbox(name, status="running") for name in ("a", "b")}
    ran = sbx("stop", "a", "gone", "b")
    assert ran.code == 3
    assert ran.out == "Sandbox 'a' stopped\nSandbox 'b' stopped\n"
    assert "sandbox 'gone' not found" in ran.err
    ran = sbx("rm", "a", "gone", "b")
    assert ran.code == 3
    assert ran.out == "Sandbox 'a' removed\nSandbox 'b' removed\n"
    assert daemon.sandboxes == {}


def test_rm_all_is_never_taken_for_granted(sbx: Sbx, daemon: FakeDaemon) -> None:
    daemon.sandboxes = {name: sandbox(name) for name in ("a", "b")}
    assert sbx("rm", "--all").code == 2
    assert sbx("rm", "--all", "a").code == 2
    assert sbx("rm").code == 2
    assert set(daemon.sandboxes) == {"a", "b"}
    assert sbx("rm", "--all", "--force").code == 0
    assert daemon.sandboxes == {}
    assert sbx("rm", "--all", "--force").out == "No sandboxes found.\n"


@pytest.mark.parametrize(("answer", "left"), [("n\n", {"a"}), ("\n", {"a"}), ("\x04", {"a"}), ("y\n", set())])
def test_on_a_terminal_rm_asks(
    terminal: OpenTerminal, daemon: FakeDaemon, answer: str, left: set[str]
) -> None:
    daemon.sandboxes = {"a": sandbox("a", status="running")}
    screen = terminal("rm", "a")
    screen.expect("Warning: sandbox 'a' is running\n")
    screen.expect("Remove sandbox 'a' and everything outside the workspace? [y/N] ")
    screen.type(answer)
    assert screen.end() == (1 if left else 0)
    assert set(daemon.sandboxes) == left
    assert ("Sandbox 'a' removed" if not left else "Cancelled") in screen.screen


def test_on_a_terminal_a_name_is_no_escape_sequence(terminal: OpenTerminal, daemon: FakeDaemon) -> None:
    daemon.sandboxes = {"a": sandbox("a", workspaces=["/home/\x1b]0;owned\x07/\u202etxt"])}
    screen = terminal("ls")
    assert screen.end() == 0
    assert "/home/\\x1b]0;owned\\x07/\\u202etxt" in screen.screen
    assert "\x1b" not in screen.screen


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["create"], "missing argument 'AGENT'"),
        (["create", "bash"], "unknown agent `bash`"),
        (["create", "shell", ""], "`` names no directory"),
        (["create", "shell", ":ro"], "`:ro` names no directory"),
        (["create", "--memory", "lots", "shell"], "`lots` is no size; write for example 1024m or 8g"),
        (["create", "--memory", "0", "shell"], "`0` is no size"),
        (["create", "--memory", "9" * 400, "shell"], "is no size"),
        (["create", "--cpus", "-1", "shell"], "-1"),
        (["create", "-e", "=x", "shell"], "`=x` is no variable"),
        (["create", "-e", "A B=x", "shell"], "`A B=x` is no variable"),
        (["create", "--env-file", "/nowhere", "shell"], "the environment file `/nowhere` cannot be read"),
        (["create", "--nmae", "x", "shell"], "no such option '--nmae'"),
        (["ls", "x"], "unexpected extra argument"),
        (["inspect"], "missing argument 'SANDBOX'"),
        (["stop"], "missing argument 'SANDBOX...'"),
    ],
)
def test_bad_input_changes_nothing(sbx: Sbx, daemon: FakeDaemon, arguments: list[str], says: str) -> None:
    ran = sbx(*arguments)
    assert ran.code == 2
    assert ran.out == ""
    assert says in ran.err
    assert ran.err.startswith("Error: ")
    assert daemon.sandboxes == {}


@pytest.mark.parametrize(
    ("problem", "code", "text"),
    [
        (
            Problem(
                400, "invalid", "`/` cannot be a workspace", "name a directory below your home", exit_code=2
            ),
            2,
            "Error: `/` cannot be a workspace\nHint: name a directory below your home\n",
        ),
        (
            Problem(403, "denied", "mount policy denied: /p: fs:mount:write denied: default", exit_code=4),
            4,
            "Error: mount policy denied: /p: fs:mount:write denied: default\n",
        ),
        (Problem(409, "exists", "sandbox `x` already exists"), 1, "Error: sandbox `x` already exists\n"),
        (
            Problem(401, "sign-in-needed", "you are not signed in", exit_code=6),
            6,
            "Error: you are not signed in\n",
        ),
        (
            Problem(503, "unavailable", "runsc is missing", "apt-get install runsc"),
            1,
            "Error: runsc is missing\nHint: apt-get install runsc\n",
        ),
        (Problem(500, "failure", "\x1b[2Jdisk\nfull"), 1, "Error: \\x1b[2Jdisk\nfull\n"),
    ],
)
def test_the_daemons_problems_keep_their_words_and_codes(
    sbx: Sbx, daemon: FakeDaemon, problem: Problem, code: int, text: str
) -> None:
    daemon.refusal = problem
    ran = sbx("create", "--name=x", "shell", ".")
    assert (ran.code, ran.out, ran.err) == (code, "", text)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        (["lst"], "sbx ls"),
        (["list"], "sbx ls"),
        (["delete", "x"], "sbx rm"),
        (["craete", "shell"], "sbx create"),
        (["policy", "alow", "network", "x"], "sbx policy allow"),
        (["policy", "preset", "list"], "sbx policy preset ls"),
    ],
)
def test_a_command_that_does_not_exist_is_met_with_the_nearest(
    sbx: Sbx, home: Path, typed: list[str], meant: str
) -> None:
    ran = sbx(*typed)
    assert ran.code == 2
    assert f"Hint: did you mean `{meant}`?\n" in ran.err


def test_every_command_has_help_with_an_example(sbx: Sbx, home: Path) -> None:
    import click

    from ringfence.cli.commands import Group
    from ringfence.cli.main import root

    def leaves(group: Group, words: list[str]) -> list[list[str]]:
        found = []
        for name in group.entries:
            inner = group.get_command(click.Context(group), name)
            found += leaves(inner, [*words, name]) if isinstance(inner, Group) else [[*words, name]]
        return found

    assert isinstance(root, Group)
    for words in leaves(root, []):
        ran = sbx(*words, "--help")
        assert ran.code == 0
        assert ran.out.startswith(f"Usage: sbx {' '.join(words)}")
        if words != ["help"]:
            assert "\nExamples:\n  " in ran.out, words
        assert sbx("help", *words).out == ran.out
