"""The system calls that a sandbox on the host's own kernel must not make: a classic BPF program (seccomp(2)).

It is a list of what is denied: doors to kernel code that a coding agent has no use for and that most container
escapes went through (new namespaces and mounts, key rings, BPF, io_uring, perf, userfaultfd, modules, file
handles, clocks, terminals' input queues), and address families beyond the Internet's. ``clone3`` does not exist,
so that libraries fall back to ``clone``, whose flags can be seen.

Local sockets (``AF_UNIX``) can only be made in pairs: one of the host that lies in a workspace would otherwise be
a way to talk to the host, and no other wall of this runtime stands before it. The exception is the type that
``sudo`` asks the agent with, sequenced packets: sockets connect to their own type alone, and those that lie about
in directories are streams and datagrams.
"""

from __future__ import annotations

import errno
import os
import platform
import struct
from typing import Final

from ringfence.application.errors import Unavailable

# name: number on x86-64, number on AArch64; -1 where there is none. From 424 on the tables agree.
_DENIED: Final[dict[str, tuple[int, int]]] = {
    "acct": (163, 89),
    "add_key": (248, 217),
    "adjtimex": (159, 171),
    "bpf": (321, 280),
    "clock_adjtime": (305, 266),
    "clock_settime": (227, 112),
    "delete_module": (176, 106),
    "fanotify_init": (300, 262),
    "finit_module": (313, 273),
    "init_module": (175, 105),
    "ioperm": (173, -1),
    "iopl": (172, -1),
    "kcmp": (312, 272),
    "kexec_file_load": (320, 294),
    "kexec_load": (246, 104),
    "keyctl": (250, 219),
    "lookup_dcookie": (212, 18),
    "migrate_pages": (256, 238),
    "modify_ldt": (154, -1),
    "mount": (165, 40),
    "move_pages": (279, 239),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "perf_event_open": (298, 241),
    "pivot_root": (155, 41),
    "quotactl": (179, 60),
    "reboot": (169, 142),
    "request_key": (249, 218),
    "setns": (308, 268),
    "settimeofday": (164, 170),
    "swapoff": (168, 225),
    "swapon": (167, 224),
    "syslog": (103, 116),
    "umount2": (166, 39),
    "unshare": (272, 97),
    "userfaultfd": (323, 282),
    "uselib": (134, -1),
    "vhangup": (153, 58),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "pidfd_getfd": (438, 438),
    "mount_setattr": (442, 442),
    "quotactl_fd": (443, 443),
    "open_tree_attr": (467, 467),
}
_CLONE: Final = (56, 220)
_CLONE3: Final = 435
_SOCKET: Final = (41, 198)
_IOCTL: Final = (16, 29)
_ARCHITECTURES: Final = {"x86_64": (0, 0xC000_003E), "aarch64": (1, 0xC000_00B7)}

_NEW_NAMESPACES: Final = 0x7E02_0000
"""Every ``CLONE_NEW…`` flag that ``clone`` has."""
_FAMILIES: Final = (2, 10)
"""``AF_INET``, ``AF_INET6``: anything may be asked of these; the network is the wall."""
_UNIX: Final = 1
_TYPE_MASK, _SEQUENCED = 0xF, 5
_NETLINK: Final = 16
_PUSH_INPUT: Final = (0x5412, 0x541C)
"""``TIOCSTI``, ``TIOCLINUX``: put characters into somebody's terminal."""
_X32: Final = 0x4000_0000

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _AND, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06
_ALLOW: Final = 0x7FFF_0000
_KILL: Final = 0x8000_0000
_ERRNO: Final = 0x0005_0000
_NUMBER, _ARCHITECTURE, _FIRST, _SECOND, _THIRD = 0, 4, 16, 24, 32


def program(machine: str = "") -> bytes:
    """The filter for this machine's architecture; another architecture's calls end the process."""
    found = _ARCHITECTURES.get(machine or platform.machine())
    if found is None:
        raise Unavailable(f"no system call table for {machine or platform.machine()}")
    column, architecture = found
    lines: list[tuple[str, int, int, str, str]] = [
        ("", _LOAD, _ARCHITECTURE, "", ""),
        ("", _EQUAL, architecture, "", "kill"),
        ("", _LOAD, _NUMBER, "", ""),
        ("", _AT_LEAST, _X32, "kill", ""),
        ("", _EQUAL, _CLONE3, "absent", ""),
        ("", _EQUAL, _CLONE[column], "clone", ""),
        ("", _EQUAL, _SOCKET[column], "socket", ""),
        ("", _EQUAL, _IOCTL[column], "ioctl", ""),
    ]
    lines += [
        ("", _EQUAL, numbers[column], "deny", "") for numbers in _DENIED.values() if numbers[column] >= 0
    ]
    lines += [("", _RETURN, _ALLOW, "", "")]
    lines += [
        ("clone", _LOAD, _FIRST, "", ""),
        ("", _ANY_BIT, _NEW_NAMESPACES, "deny", "allow"),
        ("socket", _LOAD, _FIRST, "", ""),
        *(("", _EQUAL, family, "allow", "") for family in _FAMILIES),
        ("", _EQUAL, _UNIX, "type", ""),
        ("", _EQUAL, _NETLINK, "", "family"),
        ("", _LOAD, _THIRD, "", ""),
        ("", _EQUAL, 0, "allow", "family"),  # NETLINK_ROUTE: programs ask for their addresses there
        ("type", _LOAD, _SECOND, "", ""),
        ("", _AND, _TYPE_MASK, "", ""),
        ("", _EQUAL, _SEQUENCED, "allow", "family"),
        ("ioctl", _LOAD, _SECOND, "", ""),
        *(("", _EQUAL, request, "deny", "") for request in _PUSH_INPUT),
        ("allow", _RETURN, _ALLOW, "", ""),
        ("deny", _RETURN, _ERRNO | errno.EPERM, "", ""),
        ("absent", _RETURN, _ERRNO | errno.ENOSYS, "", ""),
        ("family", _RETURN, _ERRNO | errno.EAFNOSUPPORT, "", ""),
        ("kill", _RETURN, _KILL, "", ""),
    ]
    place = {label: index for index, (label, *_) in enumerate(lines) if label}
    return b"".join(
        struct.pack(
            "=HBBI",
            code,
            place[true] - index - 1 if true else 0,
            place[false] - index - 1 if false else 0,
            operand,
        )
        for index, (_, code, operand, true, false) in enumerate(lines)
    )


def descriptor() -> int:
    """The program in an anonymous file, ready to be read from its start."""
    memory = os.memfd_create("seccomp", os.MFD_CLOEXEC)
    os.write(memory, program())
    os.lseek(memory, 0, os.SEEK_SET)
    return memory
