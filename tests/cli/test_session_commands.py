"""``run`` and ``exec`` against sessions that keep what they were asked: argv, environment, terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import pytest
from fake_daemon import FakeDaemon, Problem, sandbox
from stage import Sbx


@dataclass(slots=True)
class Sessions:
    """Every session that was attached to; ``code`` is what the command inside leaves with."""

    code: int = 0
    asked: list[dict[str, Any]] = field(default_factory=list)
    meanwhile: Callable[[], None] = lambda: None

    def attach(self, socket_path: str, **asked: Any) -> int:
        self.asked.append({"socket": socket_path, **asked})
        self.meanwhile()
        return self.code


@pytest.fixture
def sessions(monkeypatch: pytest.MonkeyPatch) -> Sessions:
    found = Sessions()
    module = ModuleType("ringfence.client.session")
    module.attach = found.attach  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ringfence.client.session", module)
    return found


@pytest.fixture
def lab(daemon: FakeDaemon) -> dict[str, Any]:
    daemon.sandboxes["lab"] = sandbox("lab")
    return daemon.sandboxes["lab"]


def test_run_attaches_to_a_sandbox_that_exists(
    sbx: Sbx, daemon: FakeDaemon, lab: dict[str, Any], sessions: Sessions
) -> None:
    sessions.code = 42
    ran = sbx("run", "lab")
    assert (ran.code, ran.out, ran.err) == (42, "", "")
    (session,) = sessions.asked
    assert session["socket"] == "/run/sbx/lab/sessions.sock"
    assert session["argv"] == ["/bin/bash", "-l"]
    assert session["cwd"] == "/home/ada/proj"
    assert session["user"] == "agent"
    assert session["environment"]["SANDBOX_NAME"] == "lab"
    assert session["tty"] is False
    assert session["stdin"] is True
    assert lab["status"] == "running"


@pytest.mark.parametrize("arguments", [["run", "lab"], ["run", "--name=lab"], ["run", "--name", "lab"]])
def test_run_finds_a_sandbox_by_every_historic_spelling(
    sbx: Sbx, lab: dict[str, Any], sessions: Sessions, arguments: list[str]
) -> None:
    assert sbx(*arguments).code == 0
    assert sessions.asked[0]["environment"]["SANDBOX_NAME"] == "lab"


def test_run_agent_makes_an_anonymous_sandbox_that_is_gone_afterwards(
    sbx: Sbx, daemon: FakeDaemon, sessions: Sessions, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    sessions.meanwhile = lambda: daemon.calls.append(("session", None))
    assert sbx("run", "shell", ".").code == 0
    (asked,) = daemon.asked("POST /v1/sandboxes")
    assert asked == {"agent": "shell", "workspaces": [str(tmp_path)], "anonymous": True}
    calls = [call for call, _ in daemon.calls]
    assert calls[-2:] == ["session", "POST /v1/sandboxes/shell-1/settle"]
    assert daemon.sandboxes == {}


@pytest.mark.parametrize(
    ("arguments", "anonymous"),
    [
        (["run", "shell"], True),
        (["run", "--keep", "shell", "."], False),
        (["run", "--name", "x", "shell", "."], False),
        (["run", "shell", ".", "--name=x", "--rm"], True),
    ],
)
def test_what_is_kept_after_run(
    sbx: Sbx, daemon: FakeDaemon, sessions: Sessions, arguments: list[str], anonymous: bool
) -> None:
    assert sbx(*arguments).code == 0
    assert daemon.asked("POST /v1/sandboxes")[0]["anonymous"] is anonymous


def test_a_second_anonymous_sandbox_for_a_directory_is_said(
    sbx: Sbx, daemon: FakeDaemon, sessions: Sessions, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    daemon.sandboxes["shell-1"] = sandbox("shell-1", anonymous=True, workspaces=[str(tmp_path)])
    ran = sbx("run", "shell")
    assert (
        ran.err == 'Note: sandbox "shell-1" already exists for this workspace. Creating "shell-2" instead.\n'
    )
    assert ran.out == ""


def test_run_rm_removes_an_existing_sandbox_unless_somebody_else_is_in_it(
    sbx: Sbx, daemon: FakeDaemon, lab: dict[str, Any], sessions: Sessions
) -> None:
    assert sbx("run", "--rm", "lab").code == 0
    assert daemon.sandboxes == {}


@pytest.mark.parametrize(
    ("arguments", "argv"),
    [
        (["run", "lab"], ["/bin/bash", "-l"]),
        (["run", "lab", "--", "true"], ["true"]),
        (["run", "lab", "--", "make", "-j2", "--", "x"], ["make", "-j2", "--", "x"]),
        (["run", "lab", "--", "-c", "echo hi"], ["/bin/bash", "-l", "-c", "echo hi"]),
        (["run", "--keep", "claude", ".", "--", "--resume"], ["/bin/bash", "-l", "--resume"]),
        (["run", "--keep", "claude", ".", "--", "fix it"], ["/bin/bash", "-l", "fix it"]),
    ],
)
def test_arguments_after_the_dashes_go_to_the_agent(
    sbx: Sbx, lab: dict[str, Any], sessions: Sessions, arguments: list[str], argv: list[str]
) -> None:
    assert sbx(*arguments).code == 0
    assert sessions.asked[0]["argv"] == argv


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["run"], "name a sandbox to attach to, or an agent"),
        (["run", "lab", "."], "a PATH can only be used when creating a new sandbox"),
        (["run", "lab", "--cpus", "2"], "--cpus can only be used when creating a new sandbox"),
        (
            ["run", "lab", "--deny-network", "x"],
            "--deny-network can only be used when creating a new sandbox",
        ),
        (["run", "lab", "--name", "other"], "`lab` is not an agent, and --name names another sandbox"),
        (["run", "--rm", "--keep", "shell"], "--rm and --keep contradict each other"),
        (["exec", "lab"], "missing argument 'COMMAND [ARG]...'"),
        (["exec"], "missing argument 'SANDBOX'"),
        (["exec", "-t", "lab", "bash"], "-t needs a terminal"),
        (["exec", "-dt", "lab", "bash"], "-t and -d contradict each other"),
        (["exec", "--privileged", "lab", "bash"], "--privileged does not exist here"),
        (["exec", "-z", "lab", "bash"], "no such option '-z'"),
    ],
)
def test_what_makes_no_sense_is_refused_and_nothing_runs(
    sbx: Sbx, lab: dict[str, Any], sessions: Sessions, arguments: list[str], says: str
) -> None:
    ran = sbx(*arguments)
    assert ran.code == 2
    assert says in ran.err
    assert sessions.asked == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["exec", "-i", "-e", "A=1", "-w", "/tmp", "-u", "root", "lab", "ls", "-it", "--json"],
        ["exec", "lab", "-i", "-e", "A=1", "-w", "/tmp", "-u", "root", "ls", "-it", "--json"],
        ["exec", "-i", "lab", "-eA=1", "--workdir=/tmp", "--user=root", "--", "ls", "-it", "--json"],
        ["exec", "-i", "-e", "A=1", "-w", "/tmp", "-u", "root", "--", "lab", "ls", "-it", "--json"],
        ["exec", "-ieA=1", "-w/tmp", "-uroot", "lab", "--", "ls", "-it", "--json"],
    ],
)
def test_exec_takes_its_options_around_the_name_and_leaves_the_commands_alone(
    sbx: Sbx, lab: dict[str, Any], sessions: Sessions, arguments: list[str]
) -> None:
    assert sbx(*arguments).code == 0
    (session,) = sessions.asked
    assert session["argv"] == ["ls", "-it", "--json"]
    assert session["environment"]["A"] == "1"
    assert (session["cwd"], session["user"], session["stdin"], session["tty"]) == (
        "/tmp",
        "root",
        True,
        False,
    )


def test_exec_starts_a_stopped_sandbox_and_passes_the_code_through(
    sbx: Sbx, lab: dict[str, Any], sessions: Sessions
) -> None:
    sessions.code = 124
    ran = sbx("exec", "lab", "timeout", "-k", "5s", "120s", "sh", "-c", "sleep 999")
    assert (ran.code, ran.out, ran.err) == (124, "", "")
    assert lab["status"] == "running"
    assert sessions.asked[0]["argv"] == ["timeout", "-k", "5s", "120s", "sh", "-c", "sleep 999"]
    assert sessions.asked[0]["stdin"] is False


def test_exec_passes_an_empty_argument(sbx: Sbx, lab: dict[str, Any], sessions: Sessions) -> None:
    assert sbx("exec", "lab", "printf", "%s", "").code == 0
    assert sessions.asked[0]["argv"] == ["printf", "%s", ""]


@pytest.mark.parametrize("arguments", [["exec", "lab", "true"], ["run", "lab"]])
def test_a_failure_of_ours_is_125(
    sbx: Sbx, daemon: FakeDaemon, lab: dict[str, Any], sessions: Sessions, arguments: list[str]
) -> None:
    daemon.refusal = Problem(503, "unavailable", "the enclosure cannot be proven", "look at `sbx doctor`")
    ran = sbx(*arguments)
    assert ran.code == 125
    assert ran.err == "Error: the enclosure cannot be proven\nHint: look at `sbx doctor`\n"
    assert sessions.asked == []


def test_a_refusal_to_create_keeps_its_own_code(sbx: Sbx, daemon: FakeDaemon, sessions: Sessions) -> None:
    daemon.refusal = Problem(
        403, "denied", "mount policy denied: /p: fs:mount:read denied: default", exit_code=4
    )
    assert sbx("run", "shell", "/p").code == 4
    daemon.refusal = Problem(400, "invalid", "`/` cannot be a workspace", exit_code=2)
    assert sbx("run", "shell", "/").code == 2
