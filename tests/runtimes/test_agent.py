"""The agent as its host sees it: dialogues over the link, on this machine's own kernel."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from agent_rig import PATIENCE, Link, agent, build_hook

from ringfence.sandbox.frames import WINDOW, Kind, encode

MEGABYTE = 1 << 20


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The agent of the sources at hand, whatever is installed."""
    hook = build_hook()
    try:
        hook.compiler()
    except hook.BuildError as error:
        pytest.skip(str(error))
    return hook.build(tmp_path_factory.mktemp("agent") / "sbx-agent")


@pytest.fixture
def link(program: Path) -> Iterator[Link]:
    with agent(program) as link:
        yield link


# -- commands ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "end"),
    [
        (("true",), ("exit", 0)),
        (("/bin/sh", "-c", "exit 7"), ("exit", 7)),
        (("sh", "-c", "exit 255"), ("exit", 255)),
        (("sh", "-c", "kill -KILL $$"), ("signal", 9)),
        (("sh", "-c", "kill -PIPE $$"), ("signal", 13)),
        (("no-such-command",), ("fail", 127, "command `no-such-command` not found")),
        (("/no/such/file",), ("fail", 127, "command `/no/such/file` not found")),
        (("/etc/passwd/x",), ("fail", 127, "command `/etc/passwd/x` not found")),
        (("",), ("fail", 127, "command `` not found")),
        (("/etc/passwd",), ("fail", 126, "cannot execute `/etc/passwd`: permission denied")),
        (("/",), ("fail", 126, "cannot execute `/`: permission denied")),
    ],
)
def test_the_end_of_a_command(link: Link, argv: tuple[str, ...], end: tuple[object, ...]) -> None:
    assert link.run(*argv).end == end


def test_output_and_errors_are_kept_apart(link: Link) -> None:
    command = link.run("sh", "-c", "echo out; echo err >&2; cat", content=b"in\n")
    assert (command.stdout, command.stderr) == (b"out\nin\n", b"err\n")


def test_a_command_without_input_reads_its_end(link: Link) -> None:
    assert link.run("cat", stdin=False).end == ("exit", 0)


def test_a_script_without_an_interpreter_line_is_run_by_sh(link: Link, tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text('echo "ran with $1"\n')
    script.chmod(0o755)
    tmp_path.chmod(0o755)
    assert link.run(str(script), "words").stdout == b"ran with words\n"
    assert link.run("script", "words", environment=[("PATH", str(tmp_path))]).stdout == b"ran with words\n"


def test_the_path_is_the_commands_own_and_a_forbidden_file_is_passed_over(link: Link, tmp_path: Path) -> None:
    for name, mode in (("first", 0o644), ("second", 0o755)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "tool").write_text(f"#!/bin/sh\necho {name}\n")
        (tmp_path / name / "tool").chmod(mode)
    first, second = f"{tmp_path}/first", f"{tmp_path}/second"
    path = [("PATH", f"/nowhere:{first}:{second}:/bin:/usr/bin")]
    assert link.run("tool", environment=path).stdout == b"second\n"
    only = [("PATH", f"/nowhere:{first}:{tmp_path}/first/tool")]
    assert link.run("tool", environment=only).end == ("fail", 126, "cannot execute `tool`: permission denied")


def test_the_working_directory(link: Link, tmp_path: Path) -> None:
    assert link.run("pwd", cwd=str(tmp_path)).stdout.decode() == f"{tmp_path}\n"
    missing = link.run("pwd", cwd="/no/where")
    assert missing.end == ("fail", 126, "cannot enter `/no/where`: no such file or directory")


def test_environment_is_the_hosts_over_the_agents_without_the_agents_identity(program: Path) -> None:
    inherited = {"PATH": "/bin:/usr/bin", "KEPT": "1", "CHANGED": "old", "HOME": "/wrong", "USER": "wrong"}
    with agent(program, environment=inherited) as link:
        command = link.run("env", environment=[("CHANGED", "new"), ("EMPTY", ""), ("LOGNAME", "given")])
    seen = dict(line.split("=", 1) for line in command.stdout.decode().splitlines())
    expected = {"KEPT": "1", "CHANGED": "new", "EMPTY": "", "LOGNAME": "given", "PATH": "/bin:/usr/bin"}
    assert seen.items() >= expected.items()
    assert seen["HOME"] != "/wrong"
    assert seen.get("USER") != "wrong"


def test_a_path_is_there_when_nobody_gave_one(program: Path) -> None:
    with agent(program, environment={}) as link:
        assert (
            b"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n" in link.run("env").stdout
        )


def test_no_descriptor_is_inherited(link: Link) -> None:
    busy = [link.open("sleep", "1000") for _ in range(5)]
    listing = link.run("ls", "/proc/self/fd").stdout.split()
    assert listing == [b"0", b"1", b"2", b"3"]  # 3 is the directory that is being read
    for channel in busy:
        link.say(Kind.HANGUP, channel)
    link.wait(*busy)


def test_signals_are_as_at_a_process_s_birth(link: Link) -> None:
    status = link.run("grep", "-E", "Sig(Blk|Ign)", "/proc/self/status").stdout.split()
    assert status == [b"SigBlk:", b"0" * 16, b"SigIgn:", b"0" * 16]


# -- users ------------------------------------------------------------------------------------------

root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become someone else")


@root
@pytest.mark.parametrize(
    ("user", "printed"),
    [
        ("", "0 0 0 /root"),
        ("root", "0 0 0 /root"),
        ("0", "0 0 0 /root"),
        ("nobody", "65534 65534 65534 /nonexistent"),
        ("65534", "65534 65534 65534 /nonexistent"),
        ("nobody:daemon", "65534 1 1 /nonexistent"),
        ("4242", "4242 0 0 /"),
        ("4242:4343", "4242 4343 4343 /"),
    ],
)
def test_becoming_a_user(link: Link, user: str, printed: str) -> None:
    command = link.run("sh", "-c", 'echo "$(id -u) $(id -g) $(id -G) $HOME"', user=user)
    assert command.stdout.decode().strip() == printed


@root
@pytest.mark.parametrize(
    "user", ["no-such-user", "nobody:no-such-group", ":daemon", "4294967295", "-1", "x" * 300]
)
def test_nobody_becomes_a_user_that_is_not_there(link: Link, user: str) -> None:
    end = link.run("id", user=user).end
    assert end is not None
    assert end[:2] == ("fail", 126)
    assert f"no user or group `{user}` in the sandbox"[:500] == end[2]


@root
def test_a_user_without_rights_stays_without(link: Link) -> None:
    status = link.run(
        "grep", "-E", "^(Uid|Gid|Groups|CapEff|CapPrm|CapAmb)", "/proc/self/status", user="nobody"
    )
    lines = dict(line.split(":\t", 1) for line in status.stdout.decode().splitlines())
    assert lines["Uid"] == "65534\t65534\t65534\t65534"
    assert {lines["CapEff"], lines["CapPrm"], lines["CapAmb"]} == {"0" * 16}


@root
def test_supplementary_groups_come_from_the_sandbox_s_own_files(program: Path, tmp_path: Path) -> None:
    (tmp_path / "passwd").write_text("broken\nwho:x:1234:1300::/home/who:/bin/zsh\n")
    (tmp_path / "group").write_text(
        "broken\nwho:x:1300:\none:x:1301:a,who\ntwo:x:1302:who2\nthree:x:1303:who\n"
    )
    script = 'mount --bind "$0/passwd" /etc/passwd; mount --bind "$0/group" /etc/group; exec "$@"'
    with agent(program, "unshare", "-m", "sh", "-c", script, str(tmp_path)) as link:
        shown = link.run("sh", "-c", "echo $(id -G) $HOME $SHELL $USER", user="who").stdout
        assert shown == b"1300 1301 1303 /home/who /bin/zsh who\n"
        assert link.run("id", "-G", user="who:three").stdout == b"1303\n"


# -- terminals --------------------------------------------------------------------------------------


def test_a_terminal_has_a_size_and_changes_it(link: Link) -> None:
    script = "stty size; test -t 0 && test -t 1 && test -t 2 && echo all; read x; stty size"
    channel = link.open("sh", "-c", script, terminal=(30, 100))
    link.until(channel, b"30 100\r\nall\r\n")
    link.resize(channel, 50, 200)
    link.feed(channel, b"\n", close=False)
    assert link.wait(channel).stdout.endswith(b"50 200\r\n")


def test_control_c_at_a_terminal_interrupts_the_foreground(link: Link) -> None:
    channel = link.open(
        "sh",
        "-c",
        "trap 'echo caught; exit 3' INT; echo ready; while :; do sleep 0.1; done",
        terminal=(24, 80),
    )
    link.until(channel, b"ready")
    link.feed(channel, b"\x03", close=False)
    command = link.wait(channel)
    assert command.end == ("exit", 3)
    assert b"caught" in command.stdout


@pytest.mark.parametrize(
    ("typed", "read"),
    [(b"", b""), (b"line\n", b"line\n"), (b"no newline", b"no newline")],
    ids=["at once", "after a line", "within a line"],
)
def test_the_end_of_input_at_a_terminal_is_its_character(
    link: Link, typed: bytes, read: bytes, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    channel = link.open("sh", "-c", 'cat > "$1"', "sh", str(copy), terminal=(24, 80))
    link.feed(channel, typed)
    assert link.wait(channel).end == ("exit", 0)
    assert copy.read_bytes() == read


def test_an_interactive_shell(link: Link) -> None:
    channel = link.open("bash", "--norc", "-i", terminal=(24, 80), environment=[("PS1", "> ")])
    link.until(channel, b"> ")
    link.feed(channel, b"echo $((6*7)); tty; exit 5\n", close=False)
    command = link.wait(channel)
    assert command.end == ("exit", 5)
    assert b"42\r\n" in command.stdout
    assert b"/dev/pts/" in command.stdout
    assert b"no job control" not in command.stdout


@root
def test_a_terminal_belongs_to_its_user(link: Link) -> None:
    command = link.run(
        "sh", "-c", 'stat -c %u "$(tty)"; : > "$(tty)" && echo writable', terminal=(24, 80), user="nobody"
    )
    assert command.stdout == b"65534\r\nwritable\r\n"


# -- signals and endings ----------------------------------------------------------------------------


def test_a_signal_goes_to_the_process_group(link: Link) -> None:
    child = "trap 'echo child; exit' USR1; echo ready; while :; do sleep 0.05; done"
    channel = link.open("sh", "-c", "trap 'echo parent' USR1; sh -c \"$0\"; exit 4", child)
    link.until(channel, b"ready")
    link.say(Kind.SIGNAL, channel, bytes((signal.SIGUSR1,)))
    command = link.wait(channel)
    assert sorted(command.stdout.split()) == [b"child", b"parent", b"ready"]
    assert command.end == ("exit", 4)


@pytest.mark.parametrize("terminal", [None, (24, 80)], ids=["pipes", "terminal"])
def test_a_hang_up_ends_a_command(link: Link, terminal: tuple[int, int] | None) -> None:
    channel = link.open("sh", "-c", "echo ready; sleep 1000", terminal=terminal)
    link.until(channel, b"ready")
    link.say(Kind.HANGUP, channel)
    assert link.wait(channel).end == ("signal", signal.SIGHUP)


def test_a_hang_up_wakes_the_stopped(link: Link) -> None:
    channel = link.open("sh", "-c", "echo ready; kill -STOP $$")
    link.until(channel, b"ready")
    link.say(Kind.HANGUP, channel)
    assert link.wait(channel).end == ("signal", signal.SIGHUP)


def test_whoever_ignores_a_hang_up_is_killed_with_its_children(link: Link) -> None:
    channel = link.open("sh", "-c", "trap '' HUP; sleep 1000 & echo $! ready; wait; sleep 1000")
    child = int(link.until(channel, b"ready").stdout.split()[0])
    link.say(Kind.HANGUP, channel)
    assert link.wait(channel).end == ("signal", signal.SIGKILL)
    assert gone(child)


def test_output_that_a_descendant_holds_open_does_not_hold_the_end(link: Link) -> None:
    command = link.run("sh", "-c", "sleep 1000 & echo $!")
    os.kill(int(command.stdout), signal.SIGKILL)
    assert command.end == ("exit", 0)


def test_what_a_command_wrote_before_its_end_is_not_lost_to_a_slow_reader(link: Link) -> None:
    """A pipe's content stays unread while the window is closed, and a descendant keeps the pipe open."""
    channel = link.open("sh", "-c", "sleep 1000 & echo $! >&2; head -c 300000 /dev/zero", granting=False)
    command = link.commands[channel]
    while len(command.stdout) + len(command.stderr) < WINDOW:
        link.step()
    assert command.end is None
    link.grant(channel, WINDOW)
    command.owed = 0
    assert link.wait(channel).end == ("exit", 0)
    assert len(command.stdout) == 300000
    os.kill(int(command.stderr), signal.SIGKILL)


def test_a_link_that_ends_ends_everything(program: Path) -> None:
    with agent(program) as link:
        channels = [link.open("sh", "-c", "trap '' HUP TERM INT; echo ready; sleep 1000") for _ in range(3)]
        pids = [link.until(channel, b"ready").pid for channel in channels]
    assert all(gone(pid) for pid in pids)


def test_orphans_are_reaped_and_no_zombie_stays(link: Link, program: Path) -> None:
    for _ in range(20):
        link.run("sh", "-c", "(sleep 0 & sleep 0 &) ; exit 0")
    me = link.run("sh", "-c", "cut -d' ' -f4 /proc/$$/stat").stdout.strip().decode()
    link.run("sleep", "0.1")
    states = link.run("ps", "--ppid", me, "-o", "stat=").stdout.decode().split()
    assert not [state for state in states if state.startswith("Z")]


# -- streams ----------------------------------------------------------------------------------------


def test_a_hundred_megabytes_each_way_arrive_intact(link: Link) -> None:
    content = random.Random(1).randbytes(MEGABYTE) * 100
    command = link.run("cat", content=content)
    assert command.end == ("exit", 0)
    assert hashlib.sha256(command.stdout).digest() == hashlib.sha256(content).digest()


def test_a_raw_terminal_carries_every_byte(link: Link) -> None:
    content = bytes(range(256)) * 4000
    channel = link.open("sh", "-c", f"stty raw -echo; echo ready; head -c {len(content)}", terminal=(24, 80))
    link.until(channel, b"ready\n")
    link.feed(channel, content, close=False)
    assert link.wait(channel).stdout == b"ready\n" + content


def test_a_window_that_is_not_granted_stops_the_command_and_nobody_else(link: Link) -> None:
    slow = link.open("sh", "-c", "head -c 10000000 /dev/zero; echo written >&2", granting=False)
    command = link.commands[slow]
    while len(command.stdout) < WINDOW:
        link.step()
    assert link.run("echo", "others run").stdout == b"others run\n"
    assert len(command.stdout) == WINDOW
    assert command.stderr == b""
    command.granting, command.owed = True, 0
    link.grant(slow, WINDOW)
    assert len(link.wait(slow).stdout) == 10_000_000


def test_input_that_nobody_reads_is_not_granted(link: Link) -> None:
    channel = link.open("sh", "-c", "read x; echo $x; exec sleep 1000", terminal=None)
    link.feed(channel, b"first\n" + b"x" * (2 * WINDOW), close=False)
    link.until(channel, b"first")
    link.run("true")
    command = link.commands[channel]
    assert command.pending, "most of it waits at the host"
    link.say(Kind.HANGUP, channel)
    link.wait(channel)


def test_input_after_a_command_closed_its_own_is_taken_and_forgotten(link: Link) -> None:
    channel = link.open("sh", "-c", "exec <&-; echo closed; sleep 0.2; exit 6")
    link.until(channel, b"closed")
    link.feed(channel, b"x" * (4 * WINDOW))
    assert link.wait(channel).end == ("exit", 6)


def test_many_commands_at_once_share_the_link(link: Link) -> None:
    channels = [link.open("sh", "-c", f"cat; echo {n}") for n in range(60)]
    for channel in channels:
        link.feed(channel, b"x" * 100_000)
    link.wait(*channels)
    for n, channel in enumerate(channels):
        assert link.commands[channel].stdout == b"x" * 100_000 + f"{n}\n".encode()


def test_more_commands_than_there_is_room_for_fail_alone(link: Link) -> None:
    channels = [link.open("cat") for _ in range(256)]
    link.run("true")
    assert link.commands[257].end == ("fail", 125, "too many sessions")
    for channel in channels:
        link.feed(channel)
    link.wait(*channels)
    assert {link.commands[channel].end for channel in channels} == {("exit", 0)}


def test_thousands_of_short_commands_leak_nothing(link: Link) -> None:
    me = link.run("sh", "-c", "cut -d' ' -f4 /proc/$$/stat").stdout.strip().decode()

    def kept() -> tuple[int, int]:
        status = Path(f"/proc/{me}/status").read_text()
        memory = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
        return len(os.listdir(f"/proc/{me}/fd")), memory

    for argv in (("true",), ("no-such-command",)):
        link.run(*argv)
    before = kept()
    for n in range(2000):
        match n % 4:
            case 0:
                link.run("no-such-command")
            case 1:
                link.run("true", terminal=(24, 80))
            case _:
                link.run("true")
    after = kept()
    assert after[0] == before[0]
    assert after[1] - before[1] < 1024, "kibibytes"


# -- the process ------------------------------------------------------------------------------------


@root
def test_as_first_process_it_takes_the_namespace_with_it(program: Path) -> None:
    with agent(program, "unshare", "-p", "-f", "--mount-proc") as link:
        assert link.run("sh", "-c", "echo $PPID").stdout == b"1\n"
        link.run("setsid", "-f", "sleep", "1000")
        names = link.run("ps", "-e", "-o", "comm=").stdout.split()
        assert names[0] == b"sbx-agent"
        assert b"sleep" in names


def test_asked_to_stop_it_lets_commands_end_and_their_ends_be_told(program: Path) -> None:
    ours, theirs = socket.socketpair()
    with subprocess.Popen([program, "agent"], stdin=theirs) as started:
        theirs.close()
        link = Link(ours).greet()
        polite = link.open(
            "sh",
            "-c",
            "trap 'sleep 0.1; echo bye; exit 9' TERM; trap '' HUP; echo ready; while :; do sleep 0.05; done",
        )
        plain = link.open("sleep", "1000")
        link.until(polite, b"ready")
        started.terminate()
        late = link.open("true")
        link.wait(polite, plain, late)
        with pytest.raises((EOFError, ConnectionError)):
            link.step()
        ours.close()
    assert started.returncode == 0
    assert link.commands[polite].end == ("exit", 9)
    assert link.commands[polite].stdout.endswith(b"bye\n")
    assert link.commands[plain].end in {("signal", signal.SIGTERM), ("signal", signal.SIGHUP)}
    assert link.commands[late].end == ("fail", 125, "the sandbox is stopping")


def test_a_pair_of_pipes_is_a_link_too(program: Path) -> None:
    with subprocess.Popen([program, "agent"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as started:
        assert started.stdin is not None
        assert started.stdout is not None
        assert started.stdout.read(16) == encode(Kind.HELLO, 0, b"\0\0\0\1")
        started.stdin.close()
        assert started.stdout.read() == b""
    assert started.returncode == 0


@pytest.mark.parametrize(
    ("said", "complaint"),
    [
        (encode(Kind.OPENED, 1, b"1234"), "frame of kind 17"),
        (b"\x02\0\0\1" + b"\0" * 8, "header"),
        (b"\x02\0\0\0\0\0\0\1\0\1\0\1", "header"),
        (b"\x03\0\0\0\0\0\0\1\0\0\0\3abc", "kind 3 and 3 bytes"),
        (encode(Kind.OPEN, 0, b""), "opened twice"),
    ],
)
def test_a_host_that_makes_no_sense_is_not_obeyed(program: Path, said: bytes, complaint: str) -> None:
    ours, theirs = socket.socketpair()
    with subprocess.Popen([program, "agent"], stdin=theirs, stderr=subprocess.PIPE, text=True) as started:
        theirs.close()
        ours.sendall(said)
        _, errors = started.communicate(timeout=PATIENCE)
    assert started.returncode == 1
    assert complaint in errors
    ours.close()


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\1",
        b"\1\0\0\0\5abc",
        b"\1\0\0\0\3a\0c",
        b"\2\0\0\0\1A",
        b"\7\0\0\0\0",
        b"\1\0\0\0\1a\5\0\0\0\1a",
    ],
)
def test_a_malformed_request_fails_alone(link: Link, payload: bytes) -> None:
    link.open("true")
    link.commands[99] = type(link.commands[1])()
    link.say(Kind.OPEN, 99, payload)
    assert link.wait(99).end == ("fail", 125, "malformed request")
    assert link.run("true").end == ("exit", 0)


def gone(pid: int) -> bool:
    """Wait until a process is no more, or is but a zombie of somebody else's."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.01)
    return False
