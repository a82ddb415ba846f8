"""The host's end of a session, a real supervisor and a real agent behind it: pipes, then terminals."""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import json
import os
import pty
import random
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ringfence.client.session import attach, printable
from ringfence.runtimes.supervisor import launch

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 60.0
CLIENT = """
import json, sys
from ringfence.client.session import attach
sys.exit(attach(**json.loads(sys.argv[1])))
"""


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    assert spec is not None
    assert spec.loader is not None
    hook = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hook)
    try:
        hook.compiler()
    except hook.BuildError as error:
        pytest.skip(str(error))
    built: Path = hook.build(tmp_path_factory.mktemp("agent") / "sbx-agent")
    return built


class Sandbox:
    """An agent and its supervisor, as a driver and the daemon start them; its inside is this machine."""

    def __init__(self, program: Path, directory: Path) -> None:
        self.path = str(directory / "sessions.sock")
        ours, theirs = socket.socketpair()
        self.agent = subprocess.Popen([program, "agent"], stdin=theirs, stdout=subprocess.DEVNULL)
        theirs.close()
        with ours, socket.socket(socket.AF_UNIX) as listener:
            listener.bind(self.path)
            listener.listen(64)
            me = os.geteuid()
            launch(link=ours, sessions=listener, owner_uid=me, uid=me or 65534, gid=os.getegid() or 65534)

    def request(self, *argv: str, **options: object) -> list[str]:
        asked = {
            "socket_path": self.path,
            "argv": argv,
            "environment": {"PATH": os.environ["PATH"]},
            "cwd": "/",
            "user": "",
            "tty": False,
            "stdin": True,
            **options,
        }
        return [sys.executable, "-c", CLIENT, json.dumps(asked)]

    def run(self, *argv: str, content: bytes = b"", **options: object) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            self.request(*argv, **options),
            input=content,
            capture_output=True,
            timeout=PATIENCE,
            env=ENVIRONMENT,
        )

    def start(self, *argv: str, **options: object) -> subprocess.Popen[bytes]:
        pipe = subprocess.PIPE
        return subprocess.Popen(
            self.request(*argv, **options), stdin=pipe, stdout=pipe, stderr=pipe, env=ENVIRONMENT
        )

    def end(self) -> None:
        self.agent.kill()
        self.agent.wait()


ENVIRONMENT = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT / "src"), "TERM": "vt100"}


@pytest.fixture(scope="module")
def sandbox(program: Path) -> Iterator[Sandbox]:
    directory = Path(tempfile.mkdtemp(prefix="session-"))
    sandbox = Sandbox(program, directory)
    yield sandbox
    sandbox.end()
    shutil.rmtree(directory)


@pytest.fixture
def short_lived(program: Path) -> Iterator[Sandbox]:
    directory = Path(tempfile.mkdtemp(prefix="session-"))
    sandbox = Sandbox(program, directory)
    yield sandbox
    sandbox.end()
    shutil.rmtree(directory)


# -- pipes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "code", "said"),
    [
        (["true"], 0, ""),
        (["sh", "-c", "exit 42"], 42, ""),
        (["sh", "-c", "kill -KILL $$"], 137, ""),
        (["sh", "-c", "kill -TERM $$"], 143, ""),
        (["no-such-command"], 127, "sbx: command `no-such-command` not found\n"),
        (["no-such-\x1b[2Jcommand"], 127, "sbx: command `no-such-�[2Jcommand` not found\n"),
        (["/etc/passwd"], 126, "sbx: cannot execute `/etc/passwd`: permission denied\n"),
        (
            ["echo", "x" * 70000],
            126,
            "sbx: the arguments and the environment are longer than 64 KiB together\n",
        ),
        (["a\0b"], 126, "sbx: `'a\\x00b'` has a zero byte\n"),
        ([], 125, "sbx: malformed request\n"),
    ],
)
def test_exit_codes_are_passed_through_and_failures_are_ours(
    sandbox: Sandbox, argv: list[str], code: int, said: str
) -> None:
    done = sandbox.run(*argv)
    assert (done.returncode, done.stderr.decode(), done.stdout) == (code, said, b"")


def test_a_sandbox_that_does_not_run_is_a_failure_of_ours(tmp_path: Path) -> None:
    said: list[str] = []
    code = attach(
        str(tmp_path / "sessions.sock"),
        argv=["true"],
        environment={},
        cwd="/",
        user="",
        tty=False,
        stdin=False,
        report=said.append,
    )
    assert (code, said) == (125, ["the sandbox cannot be reached: No such file or directory"])


def test_output_and_errors_are_kept_apart_without_a_terminal(sandbox: Sandbox) -> None:
    done = sandbox.run("sh", "-c", "cat; echo err >&2", content=b"\x00\xff\r\n")
    assert (done.stdout, done.stderr) == (b"\x00\xff\r\n", b"err\n")


def test_directory_and_environment_are_the_callers(sandbox: Sandbox) -> None:
    done = sandbox.run(
        "sh", "-c", "pwd; echo $GIVEN", cwd="/usr", environment={"GIVEN": "a=b", "PATH": "/bin:/usr/bin"}
    )
    assert done.stdout == b"/usr\na=b\n"


def test_input_that_is_not_attached_is_left_alone(sandbox: Sandbox) -> None:
    done = sandbox.run("cat", content=b"for the caller's next command", stdin=False)
    assert (done.returncode, done.stdout) == (0, b"")


def test_a_hundred_megabytes_each_way_arrive_intact(sandbox: Sandbox) -> None:
    content = random.Random(2).randbytes(1 << 20) * 100
    done = sandbox.run("cat", content=content)
    assert done.returncode == 0
    assert hashlib.sha256(done.stdout).digest() == hashlib.sha256(content).digest()


def test_files_are_streams_too(sandbox: Sandbox, tmp_path: Path) -> None:
    content = random.Random(3).randbytes(3_000_000)
    (tmp_path / "in").write_bytes(content)
    with (tmp_path / "in").open("rb") as source, (tmp_path / "out").open("wb") as target:
        subprocess.run(
            sandbox.request("cat"), stdin=source, stdout=target, timeout=PATIENCE, env=ENVIRONMENT, check=True
        )
    assert (tmp_path / "out").read_bytes() == content


def test_a_reader_that_leaves_ends_the_command(sandbox: Sandbox) -> None:
    with sandbox.start("sh", "-c", "echo $$; exec cat /dev/zero") as client:
        assert client.stdout is not None
        pid = int(client.stdout.readline())
        client.stdout.close()
        assert client.wait(PATIENCE) == 128 + signal.SIGPIPE
    assert gone(pid)


def test_a_slow_reader_loses_nothing_of_a_command_that_has_ended(sandbox: Sandbox) -> None:
    with sandbox.start("sh", "-c", "head -c 200000 /dev/zero; echo done >&2; exit 3") as client:
        assert client.stdout is not None
        assert client.stderr is not None
        assert client.stderr.readline() == b"done\n"
        assert len(client.stdout.read()) == 200000
        assert client.wait(PATIENCE) == 3


def test_a_client_that_is_killed_takes_its_command_with_it(sandbox: Sandbox) -> None:
    with sandbox.start("sh", "-c", "echo $$; exec sleep 1000") as client:
        assert client.stdout is not None
        pid = int(client.stdout.readline())
        client.kill()
    assert gone(pid)


def test_the_flags_of_the_callers_streams_are_not_touched(sandbox: Sandbox) -> None:
    reading, writing = os.pipe()
    with subprocess.Popen(
        sandbox.request("sh", "-c", "echo ready; cat"), stdin=subprocess.PIPE, stdout=writing, env=ENVIRONMENT
    ) as client:
        assert os.read(reading, 100) == b"ready\n"
        assert client.stdin is not None
        for descriptor in (writing, client.stdin.fileno()):
            assert not fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_NONBLOCK
        client.stdin.close()
    os.close(reading)
    os.close(writing)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGQUIT])
def test_without_a_terminal_a_signal_goes_to_the_command(sandbox: Sandbox, number: signal.Signals) -> None:
    trap = f"trap 'echo caught; exit 9' {number.value}; echo ready; while :; do sleep 0.05; done"
    with sandbox.start("sh", "-c", trap) as client:
        assert client.stdout is not None
        assert client.stdout.readline() == b"ready\n"
        client.send_signal(number)
        assert client.stdout.readline() == b"caught\n"
        assert client.wait(PATIENCE) == 9


def test_the_second_interrupt_hangs_up_and_the_third_leaves(sandbox: Sandbox, tmp_path: Path) -> None:
    loop = "exec 2>/dev/null; echo $$; while :; do sleep 0.05; done"  # dash tells of a child's hang-up
    script = f"trap 'echo interrupted' INT; trap ': > \"$0\"' HUP; {loop}"
    hung_up = tmp_path / "hung up"
    with sandbox.start("sh", "-c", script, str(hung_up)) as client:
        assert client.stdout is not None
        pid = int(client.stdout.readline())
        client.send_signal(signal.SIGINT)
        assert client.stdout.readline() == b"interrupted\n"
        client.send_signal(signal.SIGINT)
        while not hung_up.exists():
            assert client.poll() is None
        client.send_signal(signal.SIGINT)
        assert client.wait(PATIENCE) == 130
    assert gone(pid)


def test_a_hang_up_is_waited_for(sandbox: Sandbox) -> None:
    with sandbox.start(
        "sh", "-c", "trap 'echo interrupted' INT; echo ready; while :; do sleep 0.05; done"
    ) as client:
        assert client.stdout is not None
        assert client.stdout.readline() == b"ready\n"
        client.send_signal(signal.SIGINT)
        assert client.stdout.readline() == b"interrupted\n"
        client.send_signal(signal.SIGINT)
        assert client.wait(PATIENCE) == 128 + signal.SIGHUP


def test_a_lost_terminal_leaves_at_once_unless_it_is_ignored(sandbox: Sandbox) -> None:
    with sandbox.start("sh", "-c", "echo ready; cat") as client:
        assert client.stdout is not None
        client.stdout.readline()
        client.send_signal(signal.SIGHUP)
        assert client.wait(PATIENCE) == 129
    with subprocess.Popen(
        ["nohup", *sandbox.request("sh", "-c", "echo ready; cat")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=ENVIRONMENT,
    ) as client:
        assert client.stdout is not None
        assert client.stdin is not None
        client.stdout.readline()
        client.send_signal(signal.SIGHUP)
        client.stdin.write(b"still here\n")
        client.stdin.close()
        assert client.stdout.read() == b"still here\n"
        assert client.wait(PATIENCE) == 0


def test_a_sandbox_that_ends_under_a_session_is_a_failure_of_ours(short_lived: Sandbox) -> None:
    with short_lived.start("sh", "-c", "echo ready; sleep 1000") as client:
        assert client.stdout is not None
        assert client.stderr is not None
        client.stdout.readline()
        short_lived.end()
        assert client.stderr.read() == b"sbx: the agent is gone\n"
        assert client.wait(PATIENCE) == 125


def test_what_a_sandbox_says_of_a_failure_cannot_steer_a_terminal() -> None:
    assert printable(b"a\x1b]0;title\x07b\r\n\xff\xe2\x80\xaec") == "a�]0;title�b����c"


def test_attaching_loads_nothing_heavy() -> None:
    script = "import sys; import ringfence.client.session; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=ENVIRONMENT, check=True
    )
    loaded = set(done.stdout.split())
    assert not loaded & {"asyncio", "subprocess", "ssl", "logging", "pydantic", "click", "json", "threading"}


# -- terminals ---------------------------------------------------------------------------------------------


class Terminal:
    """A person at a terminal: types, reads, and resizes the window."""

    def __init__(self, argv: list[str], *, rows: int = 24, columns: int = 80) -> None:
        self.master, self.slave = pty.openpty()
        termios.tcsetwinsize(self.slave, (rows, columns))
        self.before = termios.tcgetattr(self.slave)
        self.seen = b""
        self.client = subprocess.Popen(
            argv,
            stdin=self.slave,
            stdout=self.slave,
            stderr=self.slave,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509 - no threads here
            env=ENVIRONMENT,
        )

    def type(self, text: bytes) -> None:
        os.write(self.master, text)

    def read(self, text: bytes) -> bytes:
        """Read until a text has come; what followed it stays for the next time."""
        while text not in self.seen:
            assert select.select([self.master], [], [], PATIENCE)[0], self.seen
            self.seen += os.read(self.master, 65536)
        end = self.seen.index(text) + len(text)
        read, self.seen = self.seen[:end], self.seen[end:]
        return read

    @property
    def raw(self) -> bool:
        local = termios.tcgetattr(self.slave)[3]
        assert isinstance(local, int)
        return not local & (termios.ICANON | termios.ECHO | termios.ISIG)

    @property
    def restored(self) -> bool:
        return termios.tcgetattr(self.slave) == self.before

    def close(self) -> None:
        self.client.kill()
        self.client.wait()
        for descriptor in (self.master, self.slave):
            os.close(descriptor)


@pytest.fixture
def at_terminal(sandbox: Sandbox) -> Iterator[object]:
    opened: list[Terminal] = []

    def open_(*argv: str, inside: Sandbox = sandbox, **options: object) -> Terminal:
        opened.append(Terminal(inside.request(*argv, tty=True, **options)))
        return opened[-1]

    yield open_
    for terminal in opened:
        terminal.close()


def test_a_shell_at_a_terminal(at_terminal) -> None:
    terminal = at_terminal("bash", "--norc", "-i", environment={"PATH": os.environ["PATH"], "PS1": "in> "})
    terminal.read(b"in> ")
    assert terminal.raw
    terminal.type(b"stty size; echo $((6*7)) $TERM\n")
    terminal.read(b"24 80\r\n42 xterm\r\n")
    terminal.type(b"exit 7\n")
    assert terminal.client.wait(PATIENCE) == 7
    assert terminal.restored


def test_the_window_size_follows(at_terminal) -> None:
    terminal = at_terminal("sh", "-c", "trap 'stty size' WINCH; stty size; while :; do sleep 0.05; done")
    terminal.read(b"24 80\r\n")
    termios.tcsetwinsize(terminal.slave, (50, 132))
    terminal.read(b"50 132\r\n")


def test_control_c_at_a_terminal_is_the_command_s(at_terminal) -> None:
    terminal = at_terminal(
        "sh", "-c", "trap 'echo caught; exit 4' INT; echo ready; while :; do sleep 0.05; done"
    )
    terminal.read(b"ready\r\n")
    terminal.type(b"\x03")
    terminal.read(b"caught\r\n")
    assert terminal.client.wait(PATIENCE) == 4
    assert terminal.restored


def test_control_d_ends_the_input_at_a_terminal(at_terminal) -> None:
    terminal = at_terminal("sh", "-c", "echo ready; cat; exit 8")
    terminal.read(b"ready\r\n")
    terminal.type(b"line\n\x04")
    assert terminal.client.wait(PATIENCE) == 8
    assert terminal.restored


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130), (signal.SIGQUIT, 131)],
)
def test_a_signal_to_the_client_leaves_with_the_terminal_restored(
    at_terminal, number: signal.Signals, code: int
) -> None:
    terminal = at_terminal("sh", "-c", "trap '' INT TERM QUIT; echo $$ ready; while :; do sleep 0.05; done")
    pid = int(terminal.read(b"ready").split()[0])
    assert terminal.raw
    terminal.client.send_signal(number)
    assert terminal.client.wait(PATIENCE) == code
    assert terminal.restored
    assert gone(pid)


@pytest.mark.parametrize(
    "argv", [["no-such-command"], ["sh", "-c", "kill -KILL $$"], ["sh", "-c", "stty -echo raw"]]
)
def test_the_terminal_is_restored_however_a_command_ends(at_terminal, argv: list[str]) -> None:
    terminal = at_terminal(*argv)
    terminal.client.wait(PATIENCE)
    assert terminal.restored


def test_the_terminal_is_restored_when_the_sandbox_ends(at_terminal, short_lived: Sandbox) -> None:
    terminal = at_terminal("sh", "-c", "echo ready; sleep 1000", inside=short_lived)
    terminal.read(b"ready")
    short_lived.end()
    terminal.read(b"sbx: the agent is gone\r\n")
    assert terminal.client.wait(PATIENCE) == 125
    assert terminal.restored


def test_a_suspended_client_gives_the_terminal_back_meanwhile(at_terminal) -> None:
    terminal = at_terminal("sh", "-c", "echo ready; read x; echo got $x")
    terminal.read(b"ready\r\n")
    terminal.client.send_signal(signal.SIGTSTP)
    _, status = os.waitpid(terminal.client.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    assert terminal.restored
    terminal.client.send_signal(signal.SIGCONT)
    terminal.type(b"input\n")
    terminal.read(b"got input\r\n")
    assert terminal.client.wait(PATIENCE) == 0
    assert terminal.restored


def test_a_terminal_that_goes_away_hangs_up(sandbox: Sandbox) -> None:
    terminal = Terminal(sandbox.request("sh", "-c", "echo $$ ready; cat", tty=True))
    pid = int(terminal.read(b"ready").split()[0])
    os.close(terminal.slave)
    os.close(terminal.master)
    assert terminal.client.wait(PATIENCE) == 129
    assert gone(pid)


def test_a_terminal_without_input_keeps_its_mode(at_terminal) -> None:
    terminal = at_terminal("sh", "-c", "test -t 1 && echo terminal; sleep 1000", stdin=False)
    terminal.read(b"terminal")
    assert terminal.restored
    terminal.type(b"\x03")
    assert terminal.client.wait(PATIENCE) == 130


def test_a_flood_at_a_terminal_arrives_whole(at_terminal) -> None:
    terminal = at_terminal("sh", "-c", "stty raw; seq 1 200000; echo over")
    seen = terminal.read(b"over\n")
    assert seen.split()[:-1] == [str(n).encode() for n in range(1, 200001)]


def gone(pid: int) -> bool:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.01)
    return False
