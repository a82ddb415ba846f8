"""What scripts may rely on: JSON and nothing but JSON, completions, closed pipes, and little to load."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from fake_daemon import CREATED, FakeDaemon, rule, sandbox
from stage import Sbx

from ringfence.cli import main as cli

SOURCES = Path(cli.__file__).parents[2]


def sbx_process(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ringfence", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(SOURCES), **environment},
        timeout=60,
    )


@pytest.fixture
def full(daemon: FakeDaemon, tmp_path: Path) -> FakeDaemon:
    daemon.version = "9.9.9"
    daemon.sandboxes["lab"] = sandbox("lab", workspaces=["/home/\x1b/é"])
    daemon.rules = [rule("1", "**"), rule("default-x", "x.org", origin="preset", warnings=["wide"])]
    daemon.records = [
        {"id": "1", "step": "opened", "time": CREATED, "verdict": "blocked", "sandbox_name": "lab"}
    ]
    daemon.checked = {"allowed": True, "verdict": "allowed", "reason": "rule", "text": "", "target": "x"}
    daemon.checked |= {"host": "x", "port": 443, "rules": [], "revision": 1, "context": "global"}
    daemon.explained["1"] = {"records": daemon.records}
    daemon.documents = {
        "import": {"added": [], "removed": [], "warnings": ["w"]},
        "validate": {"ok": True, "errors": [], "warnings": ["w"]},
        "test": {"passed": 1, "failed": []},
    }
    (tmp_path / "policy.yaml").write_text("rules: []\n")
    return daemon


READS = [
    ["ls"],
    ["inspect", "lab"],
    ["policy", "ls"],
    ["policy", "ls", "lab", "--wide"],
    ["policy", "log"],
    ["policy", "log", "lab"],
    ["policy", "check", "network", "x"],
    ["policy", "explain", "1"],
    ["policy", "preset", "ls"],
    ["policy", "import", "policy.yaml", "--dry-run"],
    ["policy", "validate", "policy.yaml"],
    ["policy", "test", "policy.yaml"],
    ["secret", "ls"],
    ["daemon", "status"],
    ["doctor"],
    ["version"],
]
FAILURES = [
    ["inspect", "gone"],
    ["policy", "explain", "gone"],
    ["policy", "log", "gone"],
    ["policy", "ls", "gone"],
    ["secret", "ls", "gone"],
]


@pytest.mark.parametrize("arguments", READS, ids=" ".join)
def test_json_is_all_there_is(
    sbx: Sbx, full: FakeDaemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    ran = sbx(*arguments, "--json")
    assert ran.code == 0
    assert ran.err == ""
    assert isinstance(json.loads(ran.out), dict)
    assert ran.out.isascii()


@pytest.mark.parametrize("arguments", FAILURES, ids=" ".join)
def test_failures_in_json_are_json(sbx: Sbx, full: FakeDaemon, arguments: list[str]) -> None:
    ran = sbx(*arguments, "--json")
    assert ran.code == 3
    assert ran.err == ""
    assert json.loads(ran.out)["error"]["exit_code"] == 3


def test_both_streams_together_are_still_json(full: FakeDaemon) -> None:
    ran = sbx_process("ls", "--json")
    assert json.loads(ran.stdout + ran.stderr)["sandboxes"][0]["name"] == "lab"


def test_a_reader_that_leaves_is_no_failure(full: FakeDaemon) -> None:
    full.sandboxes = {f"sandbox-{n:05}": sandbox(f"sandbox-{n:05}") for n in range(3000)}
    child = subprocess.Popen(
        [sys.executable, "-m", "ringfence", "ls"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(SOURCES)},
    )
    assert child.stdout is not None
    child.stdout.readline()
    child.stdout.close()
    assert child.stderr is not None
    assert child.stderr.read() == b""
    child.stderr.close()
    assert child.wait(60) == 0


def test_a_defect_is_an_error_and_no_trace(sbx: Sbx, full: FakeDaemon) -> None:
    del full.sandboxes["lab"]["agent"]
    ran = sbx("ls")
    assert ran.code == 1
    assert ran.err.startswith("Error: this is a defect of sbx: KeyError")
    assert "Traceback" not in ran.err
    with pytest.raises(KeyError):
        sbx("--debug", "ls")


def complete(*words: str) -> list[str]:
    line = ["sbx", *words]
    ran = sbx_process(_SBX_COMPLETE="bash_complete", COMP_WORDS=" ".join(line), COMP_CWORD=str(len(line) - 1))
    assert ran.stderr == ""
    return [answer.partition(",")[2] for answer in ran.stdout.splitlines() if answer]


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["pol"], ["policy"]),
        (["policy", "r"], ["rm", "reset"]),
        (["policy", "set"], []),
        (["policy", "allow", ""], ["network"]),
        (["stop", ""], ["lab"]),
        (["run", "l"], ["lab"]),
        (["exec", "-it", "l"], ["lab"]),
        (["policy", "log", ""], ["lab"]),
        (["policy", "rm", "network", "--id", ""], ["1"]),
        (["policy", "allow", "network", "--sandbox", ""], ["lab"]),
        (["secret", "set", "mis"], ["mistral"]),
        (["secret", "set", "l"], ["lab"]),
        (["secret", "rm", "--sandbox", ""], ["lab"]),
        (["create", "sh"], ["shell"]),
        (["policy", "reset", "--pre"], ["--preset"]),
    ],
)
def test_shells_are_offered_what_there_is(full: FakeDaemon, words: list[str], offered: list[str]) -> None:
    assert complete(*words) == offered


def test_a_completion_starts_no_daemon(home: Path) -> None:
    assert complete("stop", "") == []
    assert list((home / "state").iterdir()) == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_are_understood_by_their_shells(sbx: Sbx, home: Path, shell: str) -> None:
    ran = sbx("completion", shell)
    assert ran.code == 0
    assert f"_SBX_COMPLETE={shell}_complete" in ran.out
    if program := shutil.which(shell):
        assert subprocess.run([program, "-n"], input=ran.out, text=True, timeout=60).returncode == 0


HEAVY = {
    *(
        "asyncio",
        "alembic",
        "cryptography",
        "dns",
        "fastapi",
        "h2",
        "httpx",
        "httpx2",
        "idna",
        "keyring",
        "multiprocessing",
    ),
    *("publicsuffixlist", "pydantic", "rich", "rich_click", "ruamel", "sqlalchemy", "starlette", "structlog"),
    *("subprocess", "uvicorn", "uvloop"),
    *(f"ringfence.{room}" for room in ("api", "daemon", "demo", "gateway", "policy", "runtimes", "store")),
}
"""What no everyday command may load: `--help` has 120 ms, `ls` has 200 ms, and these would eat them."""


def loaded(*arguments: str) -> set[str]:
    program = (
        "import sys; from ringfence.cli.main import run; code = run(sys.argv[1:]); "
        "sys.stderr.write('\\n'.join(sys.modules)); sys.exit(code)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(SOURCES)},
        timeout=60,
    )
    assert ran.returncode == 0
    return set(ran.stderr.split())


@pytest.mark.parametrize(
    "arguments",
    [["ls"], ["ls", "--json"], ["secret", "ls"], ["policy", "ls", "--json"], ["policy", "log", "--json"]],
    ids=" ".join,
)
def test_everyday_commands_load_nothing_heavy(full: FakeDaemon, arguments: list[str]) -> None:
    assert not loaded(*arguments) & HEAVY


@pytest.mark.parametrize(
    "arguments", [["--help"], ["policy", "--help"], ["policy", "allow", "--help"]], ids=" ".join
)
def test_help_loads_no_command_and_no_client(home: Path, arguments: list[str]) -> None:
    modules = loaded(*arguments)
    assert not modules & (HEAVY | {"http.client", "json", "socket", "ssl"})
    assert not {name for name in modules if name.startswith("ringfence.client")}
    if "allow" not in arguments:
        assert "ringfence.cli.options" not in modules
