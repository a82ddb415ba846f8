"""A person at a terminal: what is typed is what runs, and what it shows is told apart from the typing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import pytest

from ringfence.demo.terminal import SilenceError, Terminal, plain

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")


@pytest.fixture
def shell(tmp_path) -> Iterator[Terminal]:
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "TERM": "xterm-256color"}
    with Terminal(["bash", "--norc", "-i"], environment=environment) as terminal:
        terminal.await_shell()
        yield terminal


def test_output_and_exit_code_of_a_line(shell: Terminal) -> None:
    typed = shell.enter(r"""printf "%s: %d\n" answer 42; (exit 3)""")
    assert (typed.output, typed.code) == ("answer: 42\n", 3)


def test_lines_follow_each_other(shell: Terminal) -> None:
    assert [shell.enter(f"echo {number}").output for number in range(3)] == ["0\n", "1\n", "2\n"]


def test_a_long_line_is_not_wrapped(shell: Terminal) -> None:
    text = "x" * 300
    assert shell.enter(f"echo {text}").output == f"{text}\n"


def test_it_is_a_real_terminal_of_the_size_it_says(shell: Terminal) -> None:
    assert shell.enter("stty size").output == "50 400\n"
    shell.resize(20, 100)
    assert shell.enter("stty size").output == "20 100\n"
    assert shell.enter("test -t 0 && test -t 1 && test -t 2").code == 0


def test_keys_reach_the_program(shell: Terminal) -> None:
    shell.press(b"sh -c 'echo go; exec sleep 600'\r")
    shell.wait_for(rb"go\r\n")
    shell.press(b"\x03")
    shell.wait_for(rb"\x1e130\x1e[^\x1f]*\x1f")


def test_leaving_passes_the_exit_code_on(shell: Terminal) -> None:
    assert shell.leave("exit 7") == 7


def test_silence_says_what_was_seen_instead(shell: Terminal) -> None:
    shell.press(b"echo something\r")
    with pytest.raises(SilenceError, match="something"):
        shell.wait_for(b"never shown", timeout=0.3)


def test_a_program_that_leaves_at_once_is_no_shell() -> None:
    with Terminal(["true"], environment={}) as terminal, pytest.raises(SilenceError):
        terminal.await_shell(timeout=5)


def test_plain_text_has_no_escape_sequences() -> None:
    assert plain(b"\x1b[?2004h\x1b]0;title\x07\x1b[1;32mok\x1b[0m\r\n") == "ok\n"
