"""Sessions in a real sandbox: exit codes, streams of any size, terminals, signals, and what exit leaves
behind.
"""

from __future__ import annotations

import hashlib
import random
import signal
from collections.abc import Iterator

import pytest

from ringfence.demo.installation import SBX, Installation


@pytest.fixture(scope="module")
def box(lab: Installation) -> Iterator[str]:
    lab.sbx("create", "--name=box", "shell", ".")
    yield "box"
    lab.sbx("rm", "--force", "box", must=False)


def names(lab: Installation) -> dict[str, str]:
    return {each["name"]: each["status"] for each in lab.sbx_json("ls")["sandboxes"]}


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (("true",), 0),
        (("sh", "-c", "exit 7"), 7),
        (("sh", "-c", "kill -TERM $$"), 128 + signal.SIGTERM),
        (("/etc/hostname",), 126),
        (("no-such-command",), 127),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else str(value),
)
def test_exec_passes_the_exit_code_on(
    lab: Installation, box: str, command: tuple[str, ...], code: int
) -> None:
    assert lab.sbx("exec", box, *command, must=False).code == code


def test_exec_in_a_sandbox_that_does_not_exist_is_ours(lab: Installation) -> None:
    ran = lab.sbx("exec", "nobody", "true", must=False)
    assert ran.code == 125
    assert "nobody" in ran.err


def test_streams_stay_apart(lab: Installation, box: str) -> None:
    ran = lab.sbx("exec", box, "sh", "-c", "echo out; echo err >&2")
    assert (ran.out, ran.err) == ("out\n", "err\n")


def test_large_binary_input_and_output_come_through_unchanged(lab: Installation, box: str) -> None:
    sent = random.Random(7).randbytes(8_000_000)
    echoed = lab.world.run(
        [*SBX, "exec", "-i", box, "cat"], environment=lab.environment, cwd=str(lab.scratch), stdin=sent
    )
    assert echoed.returncode == 0, echoed.stderr
    assert hashlib.sha256(echoed.stdout).digest() == hashlib.sha256(sent).digest()


def test_output_that_nobody_reads_to_the_end_is_no_failure_of_ours(lab: Installation, box: str) -> None:
    ran = lab.host("sh", "-c", f"{' '.join(SBX)} exec {box} yes | head -1")
    assert ran.out == "y\n"


def test_exec_on_a_terminal(lab: Installation, box: str) -> None:
    with lab.terminal("exec", "-it", box, "bash") as terminal:
        terminal.await_shell()
        assert terminal.enter("test -t 0 && test -t 1 && echo terminal").output == "terminal\n"
        assert terminal.enter("stty size").output == "50 400\n"
        terminal.resize(20, 100)
        terminal.press(b"while [ \"$(stty size)\" != '20 100' ]; do :; done; echo resi''zed\r")
        terminal.wait_for(rb"resized\r\n")
        terminal.wait_for(rb"\x1e0\x1e[^\x1f]*\x1f")
        assert terminal.leave("exit 7") == 7


def test_control_c_reaches_the_command_and_not_us(lab: Installation, box: str) -> None:
    with lab.terminal("exec", "-it", box, "bash") as terminal:
        terminal.await_shell()
        terminal.press(b"sh -c 'echo go; exec sleep 600'\r")
        terminal.wait_for(rb"go\r\n")
        terminal.press(b"\x03")
        terminal.wait_for(rb"\x1e130\x1e[^\x1f]*\x1f")
        assert terminal.enter("echo still here").output == "still here\n"


def test_environment_user_and_directory(lab: Installation, box: str) -> None:
    ran = lab.sbx(
        "exec",
        "-e",
        "COLOUR=blue",
        "-w",
        "/tmp",
        box,
        "sh",
        "-c",
        'echo "$COLOUR $PWD $(id -un) $IS_SANDBOX"',
    )
    assert ran.out == "blue /tmp agent 1\n"
    assert lab.sbx("exec", "-u", "root", box, "id", "-u").out == "0\n"
    assert lab.sbx("exec", box, "pwd").out == f"{lab.scratch}\n"


def test_sudo_needs_no_password_and_root_inside_is_nobody_outside(lab: Installation, box: str) -> None:
    if lab.sbx("exec", box, "sh", "-c", "command -v sudo", must=False).code:
        pytest.skip("the host has no sudo to show inside (apt-get install sudo)")
    assert lab.sbx("exec", box, "sudo", "-n", "id", "-u").out == "0\n"
    assert lab.sbx("exec", box, "sudo", "-n", "mount", "-t", "tmpfs", "none", "/mnt", must=False).code != 0


def test_leaving_an_anonymous_sandbox_removes_it(lab: Installation) -> None:
    before = names(lab)
    ran = lab.sbx("run", "shell", ".", "--", "sh", "-c", "echo inside > left-behind; echo gone > ~/not-left")
    assert ran.code == 0
    assert names(lab) == before
    assert lab.host("cat", "left-behind").out == "inside\n"


def test_run_passes_the_exit_code_on(lab: Installation) -> None:
    assert lab.sbx("run", "shell", ".", "--", "sh", "-c", "exit 5", must=False).code == 5


def test_a_named_sandbox_keeps_its_state_over_stop_and_start(lab: Installation) -> None:
    lab.sbx("create", "--name=keeper", "shell", ".")
    try:
        lab.sbx("exec", "keeper", "sh", "-c", "echo kept > ~/note")
        lab.sbx("stop", "keeper")
        assert names(lab)["keeper"] == "stopped"
        assert lab.sbx("exec", "keeper", "sh", "-c", "cat ~/note").out == "kept\n"
        assert names(lab)["keeper"] == "running"
    finally:
        lab.sbx("rm", "--force", "keeper", must=False)
    assert "keeper" not in names(lab)


def test_a_lost_terminal_keeps_the_anonymous_sandbox(lab: Installation) -> None:
    before = set(names(lab))
    terminal = lab.terminal("run", "shell", ".")
    terminal.await_shell()
    (made,) = set(names(lab)) - before
    terminal.close()
    try:
        assert made in names(lab)
    finally:
        lab.sbx("rm", "--force", made, must=False)


def test_ls_says_which_isolation_is_in_use(lab: Installation, box: str) -> None:
    lab.sbx("exec", box, "true")
    (found,) = [each for each in lab.sbx_json("ls")["sandboxes"] if each["name"] == box]
    assert found["isolation"] in {"user-kernel", "hw-vm", "shared-kernel"}
    assert found["enforcement"] == "enforcing"
    assert found["workspaces"] == [str(lab.scratch)]
