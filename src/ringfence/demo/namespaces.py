"""The demo's machine: one host and one internet, in namespaces of their own. No other file here makes any.

``python -m ringfence.demo.namespaces ROOT CONTROL-FD`` is a child of the demo and becomes three processes:

* the *launcher* leaves the caller's namespaces (also the user's, when the caller is not root) and waits;
* the *host*, first process of a new pid namespace, mounts what is private, wires the link, and then only
  waits for the end of its standard input. When it ends, for whatever reason, the kernel kills every process
  of the demo, and with the last of them the namespaces, the interfaces and the mounts are gone. Nothing has
  to be put away, so nothing can be forgotten: not after Ctrl-C, not after SIGKILL.
* the *internet*, in a network namespace of its own at the other end of one veth, serves
  :mod:`ringfence.demo.internet.server`.

The caller's own interfaces, routes, mounts and processes are never touched.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final, NoReturn

from ringfence.demo.internet.places import ECHO, FOREIGN_DNS, HOST, HOST_DNS, ROUTER, SITES, hosts_file

HOST_LINK: Final = "wan0"
INTERNET_LINK: Final = "host0"

_CLONE_NEWNS: Final = 0x00020000
_CLONE_NEWUSER: Final = 0x10000000
_CLONE_NEWPID: Final = 0x20000000
_CLONE_NEWNET: Final = 0x40000000
_MS_NOSUID: Final = 2
_MS_NODEV: Final = 4
_MS_NOEXEC: Final = 8
_MS_BIND: Final = 4096
_MS_REC: Final = 16384
_MS_PRIVATE: Final = 1 << 18
_MNT_DETACH: Final = 2
_IP_TIMEOUT: Final = 20.0

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def _unshare(flags: int) -> None:
    _check(_libc.unshare(flags), "unshare")


def _mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    arguments = (
        os.fsencode(source),
        os.fsencode(target),
        kind.encode(),
        ctypes.c_ulong(flags),
        options.encode(),
    )
    _check(_libc.mount(*arguments), f"mount {target}")


def _become_root_of_a_user_namespace() -> None:
    """Enter a user namespace with the ids that a rootless daemon has: this person's, and their subordinate ones.

    Only ``newuidmap`` may give those, and only from outside; so a child stays outside and asks it.
    """
    from ringfence.runtimes.identity import COUNT
    from ringfence.runtimes.rootless import subordinate

    maps = (("newuidmap", os.getuid(), "/etc/subuid"), ("newgidmap", os.getgid(), "/etc/subgid"))
    commands = [
        [name, str(os.getpid()), "0", str(own), "1", "1", str(subordinate(place)), str(COUNT)]
        for name, own, place in maps
    ]
    entered_read, entered_write = os.pipe()
    outside = os.fork()
    if outside == 0:
        os.read(entered_read, 1)
        _run_or_report(lambda: os._exit(max(subprocess.call(command) for command in commands)))
    _unshare(_CLONE_NEWUSER)
    os.write(entered_write, b"1")
    if os.waitpid(outside, 0)[1] != 0:
        raise OSError("newuidmap refused to give a user namespace its ids")


def _ip(lines: list[str]) -> None:
    """Run one ``ip`` batch."""
    finished = subprocess.run(
        ["ip", "-batch", "-"],
        input="\n".join([*lines, ""]),
        text=True,
        capture_output=True,
        timeout=_IP_TIMEOUT,
        check=False,
    )
    if finished.returncode:
        raise OSError(f"ip: {finished.stderr.strip() or finished.returncode}")


def _address(address: str, link: str, prefix4: int, prefix6: int) -> str:
    if ":" in address:
        return f"addr add {address}/{prefix6} dev {link} nodad"
    return f"addr add {address}/{prefix4} dev {link}"


def host_link() -> list[str]:
    """The host's end of the link and its only route, as an ``ip`` batch."""
    return [
        _address(HOST.v4, HOST_LINK, 24, 64),
        _address(HOST.v6, HOST_LINK, 24, 64),
        f"link set {HOST_LINK} up",
        f"route add default via {ROUTER.v4}",
        f"route add ::/0 via {ROUTER.v6}",
    ]


def internet_link() -> list[str]:
    """The internet's end: every place's address, and a clear answer for addresses that nobody has."""
    residents = (*SITES, ECHO, FOREIGN_DNS)
    return [
        "link set lo up",
        *(
            _address(address, INTERNET_LINK, 24, 64)
            for place in (ROUTER, HOST_DNS)
            for address in (place.v4, place.v6)
        ),
        f"link set {INTERNET_LINK} up",
        *(_address(address, "lo", 32, 128) for place in residents for address in (place.v4, place.v6)),
        "route add unreachable default",
        "route add unreachable ::/0",
    ]


def _live_in_the_internet(root: Path, control: int, wired: int, made: int) -> NoReturn:
    """The internet's process: a namespace, addresses (once the link is there), servers until the end."""
    _unshare(_CLONE_NEWNET)
    os.write(made, b"1")
    if os.read(wired, 1) != b"1":
        os._exit(1)
    for family in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
        Path("/proc/sys/net", family).write_text("1")
    _ip(internet_link())
    # Imported here: it costs more than all of the above, and nobody else needs it.
    from ringfence.demo.internet.server import serve

    serve(socket.socket(fileno=control), INTERNET_LINK, root / "world-ca.pem")
    os._exit(0)


def _make_private(root: Path) -> None:
    """Mounts that only the demo sees: its directory, the names of its world, and its own ``/proc``."""
    _mount("none", "/", "", _MS_REC | _MS_PRIVATE)
    _mount("proc", "/proc", "proc", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC)
    _mount("ringfence-demo", str(root), "tmpfs", _MS_NODEV, "mode=0755")
    for name, text in (("hosts", hosts_file()), ("resolv.conf", f"nameserver {HOST_DNS.v4}\n")):
        ours, theirs = root / name, Path("/etc", name).resolve()
        ours.write_text(text)
        if theirs.exists():
            _mount(str(ours), str(theirs), "", _MS_BIND)


def _be_the_host(root: Path, control: int) -> NoReturn:
    """First process of the pid namespace: set up, then wait for the end of standard input."""
    _make_private(root)
    wired_read, wired_write = os.pipe()
    made_read, made_write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(0)
        os.close(wired_write)
        _run_or_report(lambda: _live_in_the_internet(root, control, wired_read, made_write))
    os.close(control)
    os.close(made_write)
    if os.read(made_read, 1) != b"1":
        raise OSError("the demo's internet could not get a network namespace")
    _ip(
        [
            "link set lo up",
            f"link add {HOST_LINK} type veth peer name {INTERNET_LINK} netns {child}",
            *host_link(),
        ]
    )
    os.write(wired_write, b"1")
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # orphans come to this process and are reaped by the kernel
    while os.read(0, 1):
        pass
    _check(_libc.umount2(os.fsencode(root), _MNT_DETACH), f"umount {root}")
    root.rmdir()
    os._exit(0)


def _run_or_report(work: Callable[[], NoReturn]) -> NoReturn:
    """Run one process's whole life and leave; never return into the parent's frames."""
    try:
        work()
    except BaseException as error:  # noqa: BLE001 - the last frame of a forked process
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
    os._exit(1)


def main(arguments: list[str]) -> int:
    root, control = Path(arguments[0]), int(arguments[1])
    if os.geteuid() != 0:
        _become_root_of_a_user_namespace()
    _unshare(_CLONE_NEWNS | _CLONE_NEWNET | _CLONE_NEWPID)
    host = os.fork()
    if host == 0:
        _run_or_report(lambda: _be_the_host(root, control))
    os.write(1, b"%d\n" % host)
    os.close(control)
    os.close(0)
    _, status = os.waitpid(host, 0)
    return os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
