"""The three network namespaces of an enclosure, their links, addresses and listening sockets.

```
probe (canary)  ──macvlan──┐
sandbox (eth0)  ───────────┴──veth──► gate (gw0): nftables, the gateway's listeners.  No other link, no route.
```

The *sandbox* namespace is what a runtime joins; it belongs to the sandbox's own user namespace, so that a
runtime that is root only in there may arrange its interface. The *gate* and the *probe* belong to the daemon.
A canary leaves by the same wire as the sandbox's packets, also while a runtime with a network stack of its
own (gVisor) has taken the addresses off ``eth0``.

Namespaces are kept by binding them to files, as ``ip netns`` does, so they outlive the daemon. Everything
here is blocking and changes the calling thread; it runs inside :func:`ringfence.runtimes.kernel.apart`.
Neighbours are written down rather than discovered and addresses skip duplicate detection: nothing waits.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ringfence.application.errors import Unavailable
from ringfence.application.ports import Addresses
from ringfence.runtimes import firewall, kernel
from ringfence.runtimes.identity import identity_of, paused_namespaces

_SO_ATTACH_FILTER: Final = 26
_ETH_P_ALL: Final = 3
_IP_TRANSPARENT: Final = 19
_IP_RECVORIGDSTADDR: Final = 20
_IPV6_RECVORIGDSTADDR: Final = 74
_IPV6_TRANSPARENT: Final = 75
_UDP_CHECKSUM_AT: Final = 6
_PACKET_IGNORE_OUTGOING: Final = 23
_SOL_PACKET: Final = 263
_BACKLOG: Final = 4096
_TIMEOUT: Final = 10.0


@dataclass(frozen=True, slots=True)
class Names:
    """Where an enclosure's namespaces are kept."""

    directory: Path

    @property
    def gate(self) -> str:
        return str(self.directory / "gate.ns")

    @property
    def net(self) -> str:
        return str(self.directory / "net.ns")

    @property
    def probe(self) -> str:
        return str(self.directory / "probe.ns")

    def all(self) -> tuple[str, str, str]:
        return self.gate, self.net, self.probe

    def whole(self) -> bool:
        return all(map(kernel.is_namespace, self.all()))


def build(names: Names, sandbox: str, addresses: Addresses) -> None:
    """Make the namespaces and everything in them. On failure nothing is left."""
    names.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        lines = identity_of(sandbox).lines()
        with paused_namespaces(lines, lines, also=kernel.CLONE_NEWNET) as pid:
            _bind(f"/proc/{pid}/ns/net", names.net)
        for path in (names.probe, names.gate):
            kernel.unshare(kernel.CLONE_NEWNET)
            _bind("/proc/thread-self/ns/net", path)
        _write_settings(firewall.SETTINGS)
        batch(_gate_links(names.net, addresses))
        run(("ip", "-6", "-batch", "-"), _relay_rule())
        enforce(addresses)
        kernel.join_path(names.net, kernel.CLONE_NEWNET)
        _write_settings(firewall.SETTINGS)
        batch(_sandbox_links(names.probe, addresses))
        kernel.join_path(names.probe, kernel.CLONE_NEWNET)
        _write_settings(firewall.SETTINGS)
        batch(_probe_links(addresses))
    except BaseException:
        demolish(names)
        raise


def demolish(names: Names) -> None:
    """Take the namespaces' names away. They end with the last socket or program in them."""
    for path in names.all():
        if kernel.is_namespace(path):
            kernel.unmount(path)
        with suppress(FileNotFoundError):
            os.unlink(path)
    with suppress(FileNotFoundError, OSError):  # other files of the sandbox may be there
        names.directory.rmdir()


def enforce(addresses: Addresses) -> None:
    """Put the gate's rules in force, all at once. The thread is in the gate."""
    run(("nft", "-f", "-"), firewall.rules(addresses))
    for setting in firewall.GATE_SETTINGS:
        with suppress(
            FileNotFoundError, PermissionError
        ):  # an ordinary user's namespace does not have them all
            _write_settings([setting])


def dress(netns: str, addresses: Addresses) -> None:
    """Give the sandbox's interface its addresses and routes (again): gVisor takes them into its own stack."""
    kernel.join_path(netns, kernel.CLONE_NEWNET)
    batch(_sandbox_addresses(addresses))


def has_link(name: str) -> bool:
    """Whether the thread's namespace has this interface."""
    try:
        socket.if_nametoindex(name)
    except OSError:
        return False
    return True


def listen(addresses: Addresses) -> dict[str, socket.socket]:
    """Open the gateway's sockets in the gate, where the thread is: role to socket (``ports.Attachment``).

    ``SO_REUSEPORT`` lets a restarted daemon open them beside those that the gateway still holds.
    """
    opened: dict[str, socket.socket] = {}
    try:
        for role, kind, port in (
            ("proxy", socket.SOCK_STREAM, firewall.PROXY_PORT),
            ("transparent", socket.SOCK_STREAM, firewall.TRANSPARENT_PORT),
            ("dns-udp", socket.SOCK_DGRAM, firewall.DNS_PORT),
            ("dns-tcp", socket.SOCK_STREAM, firewall.DNS_PORT),
        ):
            for suffix, family, host in (
                ("4", socket.AF_INET, addresses.gateway4),
                ("6", socket.AF_INET6, addresses.gateway6),
            ):
                sock = opened[role + suffix] = socket.socket(family, kind | socket.SOCK_NONBLOCK)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                if family == socket.AF_INET6:
                    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                sock.bind((host, port))
                if kind == socket.SOCK_STREAM:
                    sock.listen(_BACKLOG)
        _prepare_relay(opened, addresses)
        opened["packets"] = _witness(firewall.witness_program(addresses, relayable=False))
    except BaseException:
        for sock in opened.values():
            sock.close()
        raise
    return opened


def _prepare_relay(opened: dict[str, socket.socket], addresses: Addresses) -> None:
    """Open what a relay of datagrams needs. Nobody is asked for his privileges later, so each socket has its own."""
    for suffix, family, level, transparent, told, icmp in (
        ("4", socket.AF_INET, socket.IPPROTO_IP, _IP_TRANSPARENT, _IP_RECVORIGDSTADDR, socket.IPPROTO_ICMP),
        (
            "6",
            socket.AF_INET6,
            socket.IPPROTO_IPV6,
            _IPV6_TRANSPARENT,
            _IPV6_RECVORIGDSTADDR,
            socket.IPPROTO_ICMPV6,
        ),
    ):
        receive = opened["udp" + suffix] = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        receive.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        receive.setsockopt(level, transparent, 1)
        receive.setsockopt(level, told, 1)
        reply = opened["reply" + suffix] = _sender(family, socket.IPPROTO_UDP)
        reply.setsockopt(level, transparent, 1)
        opened["icmp" + suffix] = _sender(family, icmp)
    opened["udp6"].setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    opened["reply6"].setsockopt(socket.IPPROTO_IPV6, socket.IPV6_CHECKSUM, _UDP_CHECKSUM_AT)
    opened["packets-udp"] = _witness(firewall.witness_program(addresses, relayable=True))


def _sender(family: int, protocol: int) -> socket.socket:
    """A raw socket that hears nothing."""
    sock = socket.socket(family, socket.SOCK_RAW | socket.SOCK_NONBLOCK, protocol)
    _attach(sock, firewall.DEAF_PROGRAM)
    return sock


def _attach(sock: socket.socket, program: bytes) -> None:
    text = ctypes.create_string_buffer(program, len(program))
    told = struct.pack("HL", len(program) // 8, ctypes.addressof(text))
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, told)


def _witness(program: bytes) -> socket.socket:
    """A packet socket on the gate's interface that sees what is refused. Filtered before it is bound."""
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK, 0)
    try:
        _attach(sock, program)
        sock.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
        sock.bind((firewall.INTERFACE, _ETH_P_ALL))
    except BaseException:
        sock.close()
        raise
    return sock


@contextmanager
def _quiet(path: str) -> Iterator[int]:
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _write_settings(settings: Iterable[tuple[str, str]]) -> None:
    """Write the thread's network settings; a value that is already there may be read-only."""
    for name, value in settings:
        path = f"/proc/sys/{name}"
        with open(path, encoding="ascii") as file:
            if file.read().strip() == value:
                continue
        with _quiet(path) as descriptor:
            os.write(descriptor, value.encode())


def _bind(namespace: str, path: str) -> None:
    """Keep a namespace under a name. What an earlier boot or a crash left there is replaced."""
    if kernel.is_namespace(path):
        kernel.unmount(path)
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
    kernel.mount(namespace, path, flags=kernel.MS_BIND)


def run(command: Sequence[str], text: str) -> None:
    """Run a network tool on its standard input, in the thread's namespace."""
    try:
        done = subprocess.run(
            list(command), input=text, capture_output=True, text=True, timeout=_TIMEOUT, check=False
        )
    except FileNotFoundError as error:
        package = {"ip": "iproute2", "nft": "nftables"}.get(command[0], command[0])
        raise Unavailable(
            f"`{command[0]}` is not installed", hint=f"install it: apt-get install {package}"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise Unavailable(f"`{command[0]}` did not finish in {_TIMEOUT:.0f} s") from error
    if done.returncode:
        reason = done.stderr.strip().splitlines()
        raise Unavailable(f"`{command[0]}` failed: {reason[0] if reason else 'no reason given'}")


def batch(lines: Iterable[str]) -> None:
    run(("ip", "-batch", "-"), "".join(f"{line}\n" for line in lines))


def _gate_links(sandbox: str, a: Addresses) -> Iterator[str]:
    gw = firewall.INTERFACE
    yield (
        f"link add {gw} address {firewall.GATE_MAC} type veth "
        f"peer name eth0 address {firewall.SANDBOX_MAC} netns {sandbox}"
    )
    yield f"link set dev {gw} addrgenmode none"
    yield f"link set dev {gw} up"
    for address in (a.gateway4, a.host4):
        yield f"addr add {address}/{a.prefix4} dev {gw}"
    for address in (a.gateway6, a.host6):
        yield f"addr add {address}/{a.prefix6} dev {gw} nodad"
    for address, mac in (
        (a.sandbox4, firewall.SANDBOX_MAC),
        (a.sandbox6, firewall.SANDBOX_MAC),
        (a.canary4, firewall.CANARY_MAC),
        (a.canary6, firewall.CANARY_MAC),
    ):
        yield f"neigh replace {address} lladdr {mac} dev {gw} nud permanent"
    yield "link set dev lo up"
    yield f"route add local 0.0.0.0/0 dev lo table {firewall.RELAYED}"
    yield f"route add local ::/0 dev lo table {firewall.RELAYED}"
    yield _relay_rule()


def _relay_rule() -> str:
    """Marked packets are for this host, whatever their destination. Said once for each family."""
    return f"rule add fwmark {firewall.RELAYED} lookup {firewall.RELAYED}"


def _sandbox_links(probe: str, a: Addresses) -> Iterator[str]:
    yield "link set dev lo up"
    yield "link set dev eth0 addrgenmode none"
    yield from _sandbox_addresses(a)
    yield f"link add link eth0 name probe0 address {firewall.CANARY_MAC} netns {probe} type macvlan mode bridge"


def _sandbox_addresses(a: Addresses) -> Iterator[str]:
    yield "link set dev eth0 up"
    yield from _reach("eth0", (a.sandbox4, a.prefix4), (a.sandbox6, a.prefix6), a)


def _probe_links(a: Addresses) -> Iterator[str]:
    yield "link set dev probe0 addrgenmode none"
    yield "link set dev probe0 up"
    yield from _reach("probe0", (a.canary4, a.prefix4), (a.canary6, a.prefix6), a)


def _reach(device: str, four: tuple[str, int], six: tuple[str, int], a: Addresses) -> Iterator[str]:
    """An address of each family, and the gateway as the way to everywhere."""
    yield f"addr replace {four[0]}/{four[1]} dev {device}"
    yield f"addr replace {six[0]}/{six[1]} dev {device} nodad"
    for address in (a.gateway4, a.host4, a.gateway6, a.host6):
        yield f"neigh replace {address} lladdr {firewall.GATE_MAC} dev {device} nud permanent"
    yield f"route replace default via {a.gateway4} dev {device}"
    yield f"route replace default via {a.gateway6} dev {device}"
