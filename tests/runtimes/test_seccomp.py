"""The filter of the ``namespaces`` runtime: a table of calls, judged by a small interpreter of its program."""

from __future__ import annotations

import asyncio
import struct
from pathlib import Path

import pytest
from platforms import each, running

from ringfence.application.errors import Unavailable
from ringfence.runtimes import seccomp

ALLOW, EPERM, ENOSYS, EAFNOSUPPORT, KILL = 0x7FFF0000, 0x50001, 0x50026, 0x50061, 0x80000000
ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}


def judge(machine: str, number: int, *arguments: int, architecture: int | None = None) -> int:
    """Run the program over one call, as seccomp(2) does."""
    packed = struct.pack(
        "<iIQ6Q",
        number,
        ARCH[machine] if architecture is None else architecture,
        0,
        *(*arguments, *[0] * 6)[:6],
    )
    program = seccomp.program(machine)
    accumulator, at = 0, 0
    while True:
        code, true, false, operand = struct.unpack_from("=HBBI", program, at * 8)
        at += 1
        if code == 0x20:
            (accumulator,) = struct.unpack_from("<I", packed, operand)
        elif code == 0x54:
            accumulator &= operand
        elif code == 0x06:
            return operand
        else:
            met = {
                0x15: accumulator == operand,
                0x35: accumulator >= operand,
                0x45: bool(accumulator & operand),
            }
            at += true if met[code] else false


X, A = "x86_64", "aarch64"
TABLE = [
    (X, 0, (), ALLOW),  # read
    (X, 101, (), ALLOW),  # ptrace: one's own processes
    (X, 165, (), EPERM),  # mount
    (A, 40, (), EPERM),
    (A, 165, (), ALLOW),  # getrusage there
    (X, 272, (0x10000000,), EPERM),  # unshare
    (X, 308, (), EPERM),  # setns
    (X, 56, (17,), ALLOW),  # fork
    (X, 56, (0x3D0F00,), ALLOW),  # a thread
    (X, 56, (0x10000011,), EPERM),  # clone(CLONE_NEWUSER)
    (A, 220, (0x10000011,), EPERM),
    (X, 56, (0x40000011,), EPERM),
    (X, 435, (), ENOSYS),  # clone3
    (A, 435, (), ENOSYS),
    (X, 250, (), EPERM),  # keyctl
    (X, 321, (), EPERM),  # bpf
    (X, 298, (), EPERM),  # perf_event_open
    (X, 323, (), EPERM),  # userfaultfd
    (X, 425, (), EPERM),  # io_uring_setup
    (X, 304, (), EPERM),  # open_by_handle_at
    (X, 438, (), EPERM),  # pidfd_getfd
    (X, 41, (2, 1, 0), ALLOW),  # socket(AF_INET)
    (X, 41, (10, 2, 0), ALLOW),
    (X, 41, (1, 1, 0), EAFNOSUPPORT),  # AF_UNIX, a stream
    (X, 41, (1, 2, 0), EAFNOSUPPORT),
    (X, 41, (1, 0x80801, 0), EAFNOSUPPORT),  # with SOCK_CLOEXEC and SOCK_NONBLOCK
    (X, 41, (1, 0x80805, 0), ALLOW),  # sequenced packets: how sudo asks the agent
    (X, 41, (16, 3, 0), ALLOW),  # netlink route
    (X, 41, (16, 3, 12), EAFNOSUPPORT),  # netlink netfilter
    (X, 41, (17, 3, 0), EAFNOSUPPORT),  # AF_PACKET
    (X, 41, (40, 1, 0), EAFNOSUPPORT),  # AF_VSOCK
    (X, 41, (38, 5, 0), EAFNOSUPPORT),  # AF_ALG
    (X, 41, (0x1_0000_0001, 1, 0), EAFNOSUPPORT),  # the kernel sees an int
    (X, 53, (1, 1, 0), ALLOW),  # socketpair
    (X, 16, (0, 0x5413), ALLOW),  # TIOCGWINSZ
    (X, 16, (0, 0x5412), EPERM),  # TIOCSTI
    (X, 16, (0, 0xFFFF_FFFF_0000_5412), EPERM),  # CVE-2019-10063
    (X, 0x40000000 | 165, (), KILL),  # x32
]


@pytest.mark.parametrize(("machine", "number", "arguments", "verdict"), TABLE)
def test_verdicts(machine: str, number: int, arguments: tuple[int, ...], verdict: int) -> None:
    assert judge(machine, number, *arguments) == verdict


def test_calls_of_another_architecture_end_the_process() -> None:
    assert judge(X, 21, architecture=0x40000003) == KILL  # i386's mount


def test_an_unknown_machine_is_refused() -> None:
    with pytest.raises(Unavailable, match="riscv64"):
        seccomp.program("riscv64")


INSIDE = """
import ctypes, os, socket, threading
libc = ctypes.CDLL(None, use_errno=True)
def name(code): return "ok" if code >= 0 else os.strerror(ctypes.get_errno())
print("keyctl", name(libc.syscall(250, 0, -3, 0)))
print("unshare", name(libc.unshare(0x10000000)))
print("io_uring", name(libc.syscall(425, 1, 0)))
for family in (socket.AF_UNIX, socket.AF_PACKET, 40):
    try: socket.socket(family); print(int(family), "ok")
    except OSError as error: print(int(family), error.strerror)
a, b = socket.socketpair(); a.send(b"pair"); print(b.recv(4).decode())
t = threading.Thread(target=lambda: print("thread")); t.start(); t.join()
print(os.waitstatus_to_exitcode(os.system("true")))
"""


@each("namespaces")
def test_inside(platform: str, tmp_path: Path) -> None:
    async def scene() -> None:
        async with running(platform, tmp_path) as (_, link):
            for user in ("agent", "root"):
                _, said = await link.run("/usr/bin/python3", "-c", INSIDE, user=user)
                assert said.splitlines() == [
                    "keyctl Operation not permitted",
                    "unshare Operation not permitted",
                    "io_uring Operation not permitted",
                    "1 Address family not supported by protocol",
                    "17 Address family not supported by protocol",
                    "40 Address family not supported by protocol",
                    "pair",
                    "thread",
                    "0",
                ]

    asyncio.run(scene())
