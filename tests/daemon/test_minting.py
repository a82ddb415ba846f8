"""Commands that make secrets: bounded, alone, and silent about what they print."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest

from ringfence.application.errors import Unavailable
from ringfence.application.ports import MintFailed
from ringfence.daemon import system_key
from ringfence.daemon.minting import MOST, HostMint
from ringfence.daemon.system_key import SystemKey

CANARY = "sk-canary-5f2a7c"


def run(script: str, *arguments: str, patience: float = 30.0) -> str:
    mint = HostMint(patience=patience)
    return asyncio.run(mint.run((sys.executable, "-c", script, *arguments)))


def test_what_it_prints_is_the_value() -> None:
    assert run("import sys; print(sys.argv[1])", "a b; $(c)") == "a b; $(c)\n"


def test_it_runs_in_an_empty_directory_that_is_gone_afterwards() -> None:
    place = run("import os; assert not os.listdir(); open('left', 'w'); print(os.getcwd())").strip()
    assert place.rpartition("/")[2].startswith("sbx-mint-")
    assert not Path(place).exists()


def test_it_has_no_input_and_no_terminal() -> None:
    assert run("import os, sys; print(len(sys.stdin.read()), os.getsid(0) == os.getpid())") == "0 True\n"


@pytest.mark.parametrize(
    ("script", "complaint"),
    [
        (f"import sys; print('{CANARY}'); sys.exit('{CANARY}')", "left with 1"),
        ("pass", "printed nothing"),
        ("print('   ')", "printed nothing"),
        (f"print('{CANARY}' * {MOST})", "printed more than"),
        ("import sys; sys.stdout.buffer.write(b'\\xff\\xfe')", "printed what is not text"),
        ("import os; os.kill(os.getpid(), 9)", "left with -9"),
    ],
)
def test_what_can_go_wrong_is_said_without_what_it_printed(script: str, complaint: str) -> None:
    with pytest.raises(MintFailed, match=complaint) as failed:
        run(script)
    assert CANARY not in str(failed.value)


def test_it_ends_with_its_children_when_its_time_is_over(tmp_path: Path) -> None:
    fifo = tmp_path / "alive"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    script = "import os, sys, time\nos.open(sys.argv[1], os.O_WRONLY)\nos.fork()\ntime.sleep(600)\n"
    with pytest.raises(MintFailed, match="did not end within"):
        run(script, str(fifo), patience=2.0)
    os.set_blocking(reader, True)
    assert os.read(reader, 1) == b"", "nobody holds the other end any more"
    os.close(reader)


def test_a_program_that_is_not_there() -> None:
    mint = HostMint()
    assert not mint.finds("no-such-program-here")
    assert mint.finds(sys.executable)
    with pytest.raises(MintFailed, match="cannot be started"):
        asyncio.run(mint.run(("/no/such/program",)))


def test_a_key_goes_to_systemd_and_back_through_pipes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a program in its place that turns bytes over, for machines where systemd does not run."""
    program = tmp_path / "systemd-creds"
    program.write_text(
        f"#!{sys.executable}\nimport sys\n"
        "assert sys.argv[2:] == ['--name=ringfence', '-', '-'], sys.argv\n"
        "sys.stdout.buffer.write(bytes(b ^ 255 for b in sys.stdin.buffer.read()))\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    holder = SystemKey(tmp_path / "key.sealed")
    holder.keep(b"k" * 32)
    assert (tmp_path / "key.sealed").read_bytes() == bytes([ord("k") ^ 255]) * 32
    assert holder.fetch() == b"k" * 32
    monkeypatch.setattr(system_key, "_BOOTED", tmp_path)
    assert holder.why_not() == ("" if os.geteuid() == 0 else "the daemon is not root")
    program.write_text("#!/bin/sh\nexit 1\n")
    with pytest.raises(Unavailable, match="`systemd-creds decrypt` left with 1"):
        holder.fetch()


def test_a_key_that_systemd_holds_comes_back(tmp_path: Path) -> None:
    holder = SystemKey(tmp_path / "key.sealed")
    if lacking := holder.why_not():
        pytest.skip(lacking)
    holder.keep(b"k" * 32)
    assert holder.fetch() == b"k" * 32
    assert b"k" * 32 not in (tmp_path / "key.sealed").read_bytes()
