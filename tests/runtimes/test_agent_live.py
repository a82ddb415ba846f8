"""The agent as first process of real sandboxes: bubblewrap on this kernel, and gVisor on its own."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from agent_rig import PATIENCE, Link, agent, build_hook

from ringfence.sandbox.frames import WINDOW, Kind

pytestmark = pytest.mark.live

CAPABILITIES = ["CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_SETUID", "CAP_SETGID", "CAP_KILL"]
SHARED = ("/usr", "/bin", "/sbin", "/lib", "/lib64")
PASSWD = "root:x:0:0::/root:/bin/sh\nagent:x:1000:1000::/home/agent:/bin/bash\n"
GROUP = "root:x:0:\nagent:x:1000:\nextra:x:2000:agent\n"


def runsc() -> str | None:
    found = shutil.which("runsc")
    fallback = Path.home() / ".local/share/ringfence/bin/runsc"
    return found or (str(fallback) if fallback.exists() else None)


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    hook = build_hook()
    try:
        hook.compiler()
    except hook.BuildError as error:
        pytest.skip(str(error))
    built: Path = hook.build(tmp_path_factory.mktemp("agent") / "sbx-agent")
    return built


def tree(directory: Path, program: Path) -> Path:
    """A root file system: the host's programs are mounted into it, the rest is its own."""
    root = directory / "root"
    for name in ("proc", "dev", "tmp", "etc", "home/agent", "root", "run"):
        (root / name).mkdir(parents=True)
    for name in SHARED:
        if Path(name).is_symlink():
            (root / name[1:]).symlink_to(os.readlink(name))
        elif Path(name).is_dir():
            (root / name[1:]).mkdir()
    (root / "etc/passwd").write_text(PASSWD)
    (root / "etc/group").write_text(GROUP)
    os.chown(root / "home/agent", 1000, 1000)
    for name, mode in (("sbx-agent", 0o755), ("sudo", 0o4755)):
        shutil.copy(program, root / "run" / name)
        (root / "run" / name).chmod(mode)
    return root


@contextlib.contextmanager
def bubblewrap(root: Path) -> Iterator[Link]:
    shared = [word for name in SHARED if (root / name[1:]).is_dir() for word in ("--ro-bind", name, name)]
    command = [
        "bwrap",
        "--bind",
        str(root),
        "/",
        *shared,
        "--proc",
        "/proc",
        "--dev",
        "/dev",
        "--unshare-pid",
        "--unshare-net",  # as in a sandbox: the agent's abstract socket is its network namespace's alone
    ]
    capabilities = [word for name in CAPABILITIES for word in ("--cap-add", name)]
    with agent(Path("/run/sbx-agent"), *command, "--as-pid-1", *capabilities, "--") as link:
        yield link


@contextlib.contextmanager
def gvisor(root: Path) -> Iterator[Link]:
    bundle, name = root.parent / "bundle", f"agent-{uuid.uuid4().hex}"
    bundle.mkdir()
    kinds = ("bounding", "effective", "permitted")
    special = [("/proc", "proc"), ("/dev", "tmpfs"), ("/dev/pts", "devpts"), ("/tmp", "tmpfs")]
    mounts = [{"destination": d, "type": t, "source": t} for d, t in special]
    mounts += [
        {"destination": d, "type": "bind", "source": d, "options": ["rbind", "ro"]}
        for d in SHARED
        if (root / d[1:]).is_dir() and not (root / d[1:]).is_symlink()
    ]
    config = {
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": ["/run/sbx-agent", "agent"],
            "env": ["PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"],
            "cwd": "/",
            "capabilities": dict.fromkeys(kinds, CAPABILITIES),
        },
        "root": {"path": str(root), "readonly": False},
        "mounts": mounts,
        "linux": {"namespaces": [{"type": t} for t in ("pid", "ipc", "uts", "mount")]},
    }
    (bundle / "config.json").write_text(json.dumps(config))
    flags = ["--root", str(root.parent / "state"), "--platform=systrap", "--network=none", "--overlay2=none"]
    flags += ["--ignore-cgroups"]
    program = runsc()
    assert program is not None

    def call(*words: str, **options: object) -> None:
        subprocess.run([program, *flags, *words], timeout=PATIENCE, **options)  # type: ignore[call-overload]

    ours, theirs = socket.socketpair()
    reading, writing = os.pipe()
    try:
        call(
            "run",
            "-detach",
            "-bundle",
            str(bundle),
            name,
            stdin=theirs,
            stdout=writing,
            stderr=writing,
            check=True,
        )
        theirs.close()
        yield Link(ours).greet()
    finally:
        ours.close()
        call("kill", name, "KILL", capture_output=True)
        call("delete", "-force", name, capture_output=True)
        os.close(reading)
        os.close(writing)


RUNTIMES: dict[str, tuple[Callable[[Path], contextlib.AbstractContextManager[Link]], str]] = {
    "bubblewrap": (bubblewrap, "" if shutil.which("bwrap") else "bubblewrap is not installed"),
    "gvisor": (gvisor, "" if runsc() else "runsc is not installed"),
}


@pytest.fixture(scope="module", params=RUNTIMES)
def link(request: pytest.FixtureRequest, program: Path) -> Iterator[Link]:
    start, missing = RUNTIMES[request.param]
    if missing or os.geteuid() != 0:
        pytest.skip(missing or "needs root to make a sandbox this way")
    directory = Path(tempfile.mkdtemp(prefix="agent-live-"))
    directory.chmod(0o755)
    try:
        with start(tree(directory, program)) as link:
            yield link
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def test_it_is_the_first_process(link: Link) -> None:
    assert link.run("sh", "-c", "echo $PPID").stdout == b"1\n"


def test_it_becomes_the_user_of_the_sandbox_s_own_files(link: Link) -> None:
    script = 'echo "$(id -u) $(id -g) $(id -G) $HOME $USER $SHELL"; grep NoNewPrivs /proc/self/status || true'
    shown = link.run("sh", "-c", script, user="agent").stdout
    assert shown.splitlines()[0] == b"1000 1000 1000 2000 /home/agent agent /bin/bash"
    assert link.run("id", "-u", user="nobody").end == (
        "fail",
        126,
        "no user or group `nobody` in the sandbox",
    )


def test_exit_codes(link: Link) -> None:
    ends = [
        link.run(*argv, user="agent").end
        for argv in (("true",), ("sh", "-c", "exit 3"), ("nope",), ("/tmp",))
    ]
    assert ends[:2] == [("exit", 0), ("exit", 3)]
    assert [end[:2] for end in ends[2:] if end] == [("fail", 127), ("fail", 126)]


def test_a_terminal(link: Link) -> None:
    channel = link.open(
        "bash", "--norc", "-i", user="agent", terminal=(33, 99), environment=[("PS1", "in> ")]
    )

    def type_and_wait(typed: bytes, shown: bytes) -> None:
        """The prompt comes back when the line has been obeyed; gVisor lets bash see Ctrl-C, too: a bell."""
        before = len(link.commands[channel].stdout)
        link.feed(channel, typed, close=False)
        shell = b""
        while not (shown in shell and shell.endswith(b"in> ")):
            link.step()
            shell = bytes(link.commands[channel].stdout[before:]).rstrip(b"\a")

    type_and_wait(b"", b"in> ")
    type_and_wait(b"stty size; stat -c %u $(tty)\n", b"33 99\r\n1000\r\n")
    link.resize(channel, 44, 111)
    type_and_wait(b"stty size\n", b"44 111\r\n")
    link.feed(channel, b"sh -c 'echo sleep; exec sleep 1000'\n", close=False)
    link.until(channel, b"sleep\r\n")
    type_and_wait(b"\x03", b"")
    type_and_wait(b"echo $((40+2)) $?\n", b"42 130\r\n")
    link.feed(channel, b"exit 6\n", close=False)
    command = link.wait(channel)
    assert command.end == ("exit", 6)
    assert b"no job control" not in command.stdout


def test_keys_that_a_raw_terminal_reads_are_no_signals(link: Link) -> None:
    """gVisor would make signals of them (terminal.c), and Ctrl-C would kill what reads it as a key."""
    keys = b"\x03\x1c\x1a"
    script = "stty raw -echo; echo raw; head -c 3; stty sane; echo cooked; exec sleep 1000"
    channel = link.open("sh", "-c", script, terminal=(24, 80))
    link.until(channel, b"raw\n")
    link.feed(channel, keys, close=False)
    link.until(channel, keys + b"cooked\r\n")
    link.feed(channel, b"\x03", close=False)
    assert link.wait(channel).end == ("signal", signal.SIGINT)


def test_the_end_of_a_terminal_s_input(link: Link) -> None:
    channel = link.open("sh", "-c", "cat; echo end", terminal=(24, 80))
    link.feed(channel, b"line\n")
    assert link.wait(channel).stdout.endswith(b"line\r\nend\r\n")


def test_thirty_megabytes_each_way(link: Link) -> None:
    content = random.Random(4).randbytes(1 << 20) * 30
    command = link.run("cat", content=content)
    assert command.end == ("exit", 0)
    assert hashlib.sha256(command.stdout).digest() == hashlib.sha256(content).digest()


def test_bytes_through_a_raw_terminal(link: Link) -> None:
    content = bytes(range(255)) * 1000  # all but the one that is given up for gVisor's sake (terminal.c)
    channel = link.open("sh", "-c", f"stty raw -echo; echo ready; head -c {len(content)}", terminal=(24, 80))
    link.until(channel, b"ready\n")
    link.feed(channel, content, close=False)
    assert link.wait(channel).stdout == b"ready\n" + content


def test_back_pressure(link: Link) -> None:
    slow = link.open("sh", "-c", "head -c 3000000 /dev/zero", granting=False)
    command = link.commands[slow]
    while len(command.stdout) < WINDOW:
        link.step()
    assert link.run("echo", "others").stdout == b"others\n"
    assert len(command.stdout) == WINDOW
    command.granting, command.owed = True, 0
    link.grant(slow, WINDOW)
    assert len(link.wait(slow).stdout) == 3_000_000


@pytest.mark.parametrize("terminal", [None, (24, 80)], ids=["pipes", "terminal"])
def test_hang_up(link: Link, terminal: tuple[int, int] | None) -> None:
    channel = link.open("sh", "-c", "echo ready; sleep 1000", terminal=terminal)
    link.until(channel, b"ready")
    link.say(Kind.HANGUP, channel)
    assert link.wait(channel).end == ("signal", signal.SIGHUP)


def test_a_descendant_that_keeps_the_output_open(link: Link) -> None:
    command = link.run("sh", "-c", "sleep 1000 & echo started")
    assert (command.stdout, command.end) == (b"started\n", ("exit", 0))


def test_orphans_leave_no_zombies(link: Link) -> None:
    for _ in range(5):
        link.run("sh", "-c", "(sleep 0 &) ; exit 0")
    script = 'for s in /proc/[0-9]*/stat; do read -r _ _ state _ < "$s" && test "$state" = Z && exit 1; done; exit 0'
    while link.run("sh", "-c", script).end != ("exit", 0):
        pass


def test_hundreds_of_short_commands(link: Link) -> None:
    for n in range(100):
        assert link.run("echo", str(n), user="agent").stdout == b"%d\n" % n
    assert int(link.run("sh", "-c", "ls /proc/1/fd | wc -l").stdout) < 20


# -- sudo, where no set-user-id bit counts: bubblewrap forbids it, gVisor ignores it ---------------------


def test_sudo_becomes_anyone(link: Link) -> None:
    script = "echo $(id -u) $HOME $USER $SUDO_USER $KEPT $PWD"
    kept = [("KEPT", "1")]
    command = link.run(
        "/run/sudo", "-n", "sh", "-c", script, user="agent", cwd="/home/agent", environment=kept
    )
    assert command.stdout == b"0 /root root agent 1 /home/agent\n", command.stderr
    back = link.run(
        "/run/sudo", "/run/sudo", "-u", "agent", "GIVEN=x", "sh", "-c", "echo $(id -u) $GIVEN", user="agent"
    )
    assert back.stdout == b"1000 x\n"


def test_sudo_is_transparent(link: Link) -> None:
    content = random.Random(5).randbytes(3_000_000)
    assert link.run("/run/sudo", "cat", user="agent", content=content).stdout == content
    piped = link.run(
        "sh", "-c", "/run/sudo sh -c 'echo out; echo err >&2; exit 9' | cat; exit 3", user="agent"
    )
    assert (piped.stdout, piped.stderr, piped.end) == (b"out\n", b"err\n", ("exit", 3))
    ends = {
        ("sh", "-c", "exit 9"): ("exit", 9),
        ("sh", "-c", "kill -TERM $$"): ("signal", signal.SIGTERM),
        ("nope",): ("exit", 127),
        ("/etc/passwd",): ("exit", 126),
    }
    assert {argv: link.run("/run/sudo", *argv, user="agent").end for argv in ends} == ends
    assert link.run("/run/sudo", "nope", user="agent").stderr == b"sudo: command `nope` not found\n"
    assert link.run("/run/sudo", "-u", "nobody", "id", user="agent").stderr == b"sudo: no user `nobody`\n"


def test_sudo_passes_signals_on_and_takes_its_command_with_it(link: Link) -> None:
    trap = "trap 'echo caught; exit 4' INT; echo ready; while :; do sleep 0.05; done"
    channel = link.open("/run/sudo", "sh", "-c", trap, user="agent")
    link.until(channel, b"ready")
    link.say(Kind.SIGNAL, channel, bytes((signal.SIGINT,)))
    command = link.wait(channel)
    assert (command.stdout, command.end) == (b"ready\ncaught\n", ("exit", 4))
    channel = link.open("/run/sudo", "sh", "-c", "echo $$; exec sleep 1000", user="agent")
    pid = int(link.until(channel, b"\n").stdout)
    link.say(Kind.SIGNAL, channel, bytes((signal.SIGKILL,)))
    assert link.wait(channel).end == ("signal", signal.SIGKILL)
    while link.run("kill", "-0", str(pid)).end == ("exit", 0):
        pass


def test_sudo_at_a_terminal(link: Link) -> None:
    channel = link.open(
        "/run/sudo", "sh", "-c", "stty size; read x; echo got $x", user="agent", terminal=(24, 80)
    )
    link.until(channel, b"24 80")
    link.feed(channel, b"line\n", close=False)
    assert link.wait(channel).stdout.endswith(b"got line\r\n")


def test_round_trips_are_reported(link: Link, record_property: Callable[[str, object], None]) -> None:
    """Measured, printed by ``-rA``, never asserted."""
    channel = link.open("cat")
    link.feed(channel, b"x", close=False)
    link.until(channel, b"x")
    times = []
    for _ in range(200):
        start = time.perf_counter()
        before = len(link.commands[channel].stdout)
        link.feed(channel, b"y", close=False)
        while len(link.commands[channel].stdout) == before:
            link.step()
        times.append(time.perf_counter() - start)
    link.feed(channel)
    link.wait(channel)
    runs = []
    for _ in range(50):
        start = time.perf_counter()
        link.run("true")
        runs.append(time.perf_counter() - start)
    print(f"through cat: {sorted(times)[100] * 1e6:.0f} us; `true`: {sorted(runs)[25] * 1e3:.2f} ms")
    record_property("echo_us", sorted(times)[100] * 1e6)
