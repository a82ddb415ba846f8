"""The daemon comes when it is needed: once, detached, knowing nothing of its caller, or it says why not."""

from __future__ import annotations

import json
import os
import stat
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import fake_daemon
import pytest
from fake_daemon import FakeDaemon
from stage import OpenTerminal, Sbx

from ringfence import __version__
from ringfence.client import daemon as starting
from ringfence.client.api import Daemon
from ringfence.client.daemon import ensure_daemon
from ringfence.client.errors import RingfenceError, Unreachable
from ringfence.locations import Locations, locate

PROGRAM = (sys.executable, fake_daemon.__file__)


@pytest.fixture
def locations(home: Path) -> Iterator[Locations]:
    """Directories; a daemon that a test started there is stopped afterwards."""
    found = locate(os.environ, home=str(home))
    yield found
    try:
        Daemon(str(found.socket)).shut_down()
    except RingfenceError:
        return


def starts(home: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (home / "state" / "starts").read_text().splitlines()]


def test_whoever_comes_first_starts_it_and_the_rest_find_it(home: Path, locations: Locations) -> None:
    found: list[Daemon] = []

    def need() -> None:
        found.append(ensure_daemon(locations, os.environ, program=[*PROGRAM, "listen"]))

    threads = [threading.Thread(target=need) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len(starts(home)) == 1


def test_it_knows_nothing_of_its_caller(home: Path, locations: Locations) -> None:
    caller = {
        **{key: value for key, value in os.environ.items() if key.startswith("SBX_")},
        "PATH": os.environ["PATH"],
        "PYTHONPATH": os.path.relpath(Path(starting.__file__).parents[2]),
        "ANTHROPIC_API_KEY": "secret",
        "SSH_AUTH_SOCK": "/tmp/agent",
        "LD_PRELOAD": "/tmp/evil.so",
        "LC_ALL": "C.UTF-8",
        "https_proxy": "http://proxy:3128",
    }
    ensure_daemon(locations, caller, program=[*PROGRAM, "listen"])
    (start,) = starts(home)
    assert start["cwd"] == "/"
    given = start["environment"]
    assert isinstance(given, dict)
    assert given["https_proxy"] == "http://proxy:3128"
    assert os.path.isabs(given["PYTHONPATH"])
    assert not {"ANTHROPIC_API_KEY", "SSH_AUTH_SOCK", "LD_PRELOAD"} & set(given)
    assert os.getsid(int(str(start["pid"]))) == start["pid"]


def test_its_files_are_its_owners(home: Path, locations: Locations) -> None:
    ensure_daemon(locations, os.environ, program=[*PROGRAM, "listen"])
    assert stat.S_IMODE((home / "state" / "daemon.log").stat().st_mode) == 0o600
    assert stat.S_IMODE((home / "runtime" / "sbxd.start.lock").stat().st_mode) == 0o600


def test_one_that_ends_instead_of_starting_leaves_its_last_words(home: Path, locations: Locations) -> None:
    (home / "state" / "daemon.log").write_text("an older failure\n")
    with pytest.raises(Unreachable) as refused:
        ensure_daemon(locations, os.environ, program=[*PROGRAM, "crash"])
    assert refused.value.exit_code == 5
    assert str(refused.value) == (
        "the daemon ended with 3 instead of starting:\n"
        "  | reading the database\n"
        "  | the database is \x1b[31mdamaged"
    )
    assert refused.value.hint == f"its whole log is `{home}/state/daemon.log`"


def test_a_command_says_so_without_the_colours(sbx: Sbx, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ensure_daemon.__kwdefaults__, "program", [*PROGRAM, "crash"])
    ran = sbx("ls")
    assert (ran.code, ran.out) == (5, "")
    assert ran.err == (
        "Error: the daemon ended with 3 instead of starting:\n"
        "  | reading the database\n"
        "  | the database is \\x1b[31mdamaged\n"
        f"Hint: its whole log is `{home}/state/daemon.log`\n"
    )
    report = json.loads(sbx("doctor", "--json").out)
    assert report["summary"] == {"pass": 0, "warn": 0, "fail": 1, "skip": 0}
    assert json.loads(sbx("ls", "--json").out)["error"]["exit_code"] == 5


def test_a_socket_that_nobody_answers_is_no_daemon(home: Path, locations: Locations) -> None:
    with FakeDaemon(home / "runtime" / "sbxd.sock"):
        pass
    Path(locations.socket).touch()
    with pytest.raises(Unreachable):
        ensure_daemon(locations, os.environ, program=[*PROGRAM, "crash"])


@pytest.mark.parametrize("directory", ["state", "runtime"])
def test_a_directory_that_others_may_write_to_is_refused(
    home: Path, locations: Locations, directory: str
) -> None:
    (home / directory).chmod(0o777)
    with pytest.raises(Unreachable, match="can be written by others"):
        ensure_daemon(locations, os.environ, program=[*PROGRAM, "listen"])
    assert not (home / "state" / "starts").exists()


def test_a_path_that_no_socket_can_have_is_said(
    home: Path, sbx: Sbx, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SBX_RUNTIME_DIR", f"/tmp/{'x' * 120}")
    ran = sbx("ls")
    assert ran.code == 5
    assert "Hint: set `SBX_RUNTIME_DIR` to a shorter directory" in ran.err


def test_another_version_is_mentioned_to_people(sbx: Sbx, terminal: OpenTerminal, daemon: FakeDaemon) -> None:
    daemon.version = "0.0.9"
    screen = terminal("ls")
    screen.expect(
        f"Warning: the daemon is version 0.0.9, this sbx is {__version__}; "
        "`sbx daemon stop` lets the next command start the new one\n"
    )
    assert screen.end() == 0
    screen = terminal("ls", "--json")
    assert screen.end() == 0
    assert screen.screen.startswith("{")
    assert sbx("ls").err == ""


def test_another_api_is_refused(sbx: Sbx, daemon: FakeDaemon) -> None:
    daemon.api = 2
    ran = sbx("ls")
    assert ran.code == 5
    assert "the daemon speaks version 2 of the API" in ran.err
    assert sbx("daemon", "stop").code == 0


def test_daemon_commands(sbx: Sbx, daemon: FakeDaemon) -> None:
    assert sbx("daemon", "start").out.startswith(
        f"Daemon started (PID: 4711, socket: {daemon.socket_path})\nLogs: "
    )
    status = sbx("daemon", "status")
    assert status.code == 0
    assert status.out.startswith("Status: running\n")
    assert "Gateway:      pid 4712\n" in status.out
    assert json.loads(sbx("daemon", "status", "--json").out)["pid"] == 4711
    assert sbx("daemon", "stop", "--sandboxes", "stop").out == "Daemon stopped\n"
    assert daemon.asked("POST /v1/daemon/stop") == [{"sandboxes": "stop"}]


def test_looking_and_stopping_start_nothing(sbx: Sbx, home: Path) -> None:
    status = sbx("daemon", "status")
    assert (status.code, status.out) == (5, "Status: not running\n")
    assert json.loads(sbx("daemon", "status", "--json").out) == {"status": "not running"}
    assert sbx("daemon", "stop").out == "The daemon is not running.\n"
    assert sbx("version").out == f"Client Version:  v{__version__}\nServer Version:  (not running)\n"
    assert list((home / "state").iterdir()) == []


def test_version(sbx: Sbx, daemon: FakeDaemon) -> None:
    assert sbx("version").out == f"Client Version:  v{__version__}\nServer Version:  v0.1.0\n"
    assert sbx("--version").out == f"sbx {__version__}\n"
    found = json.loads(sbx("version", "--json").out)
    assert found == {"client": {"version": __version__}, "server": {"version": "0.1.0"}}


def test_doctor_says_what_fails_and_what_to_do(sbx: Sbx, daemon: FakeDaemon) -> None:
    daemon.doctor = {
        "version": "0.1.0",
        "checks": [
            {"name": "runtime gvisor", "status": "pass", "message": "runsc 20240729"},
            {"name": "runtime microvm", "status": "skip", "message": "no /dev/kvm"},
            {"name": "nft", "status": "fail", "message": "missing", "hint": "apt-get install nftables"},
        ],
        "summary": {"pass": 1, "warn": 0, "fail": 1, "skip": 1},
    }
    ran = sbx("doctor")
    assert ran.code == 1
    assert ran.out == (
        "✓ runtime gvisor: runsc 20240729\n"
        "- runtime microvm: no /dev/kvm\n"
        "✗ nft: missing\n"
        "    apt-get install nftables\n"
        "\n"
        "1 pass, 0 warn, 1 fail, 1 skip\n"
    )
    ran = sbx("doctor", "--json")
    assert (ran.code, json.loads(ran.out)) == (1, daemon.doctor)
