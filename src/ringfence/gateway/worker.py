"""The gateway worker: the process that terminates everything that leaves a sandbox.

It holds the listeners inside enclosures, a policy snapshot per sandbox and the certificate authority, and
touches hostile bytes all day; so it runs without privileges, cannot gain any, and cannot be looked into. It
obeys one daemon at a time over its control socket and outlives it: without a daemon, traffic goes on under
the last snapshots.

Nothing here decides. What is not understood is answered with an error and changes nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import gc
import itertools
import os
import pwd
import resource
import secrets
import signal
import socket
import ssl
import struct
from collections.abc import Callable, Mapping, Sequence
from time import time
from typing import Any, Final

import uvloop

from ringfence.application.ports import Addresses
from ringfence.gateway.authority import Authority
from ringfence.gateway.backends import choose
from ringfence.gateway.control import Channel
from ringfence.gateway.core.chain import Chain
from ringfence.gateway.core.limits import Limits
from ringfence.gateway.core.subject import Subject
from ringfence.gateway.dial import Dialer
from ringfence.gateway.guest import Guest, Services
from ringfence.gateway.outbox import Outbox
from ringfence.gateway.proxies import Proxies
from ringfence.gateway.tls import upstream_contexts
from ringfence.gateway.turns import Round
from ringfence.policy.effective import EffectivePolicy
from ringfence.sandbox.credentials import Binding

SWEEP: Final = 0.5
"""Seconds between two looks at deadlines: the precision of every time limit."""
_GATHER: Final = 0.02
"""Seconds that records wait for company."""
_RESERVED: Final = 256
"""Descriptors that are nobody's connection; each connection needs two."""
_PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 4, 38


class Worker:
    """All guests, and the control connection of the daemon that is there at the moment."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._limits = Limits()
        self._support = ""
        self._wish = ""
        self._backends = choose("ssl")
        self._channel: Channel | None = None
        self._queue: asyncio.Queue[tuple[Channel, dict[str, Any], list[int]]] = asyncio.Queue()
        self._congested = False
        self.guests: dict[str, Guest] = {}
        self.outbox = Outbox(self._limits.record_bytes, self._ring)
        self.services = Services(
            loop=loop,
            dialer=Dialer(loop, resolve={}),
            outbox=self.outbox,
            upstream_contexts=upstream_contexts(),
            round=Round(loop),
            capacity=max((resource.getrlimit(resource.RLIMIT_NOFILE)[0] - _RESERVED) // 2, 1),
        )
        self._ids = decision_numbers(secrets.token_hex(4).encode())

    def _ring(self) -> None:
        self._loop.call_later(_GATHER, self.flush)

    # -- the daemon ---------------------------------------------------------------------------------------

    def attach(self, sock: socket.socket) -> None:
        """A daemon connected. The one before is gone, or will wish it were: there is one writer."""
        if self._channel is not None:
            self._channel.close()
        channel = Channel(
            self._loop,
            sock,
            lambda message, descriptors: self._queue.put_nowait((channel, message, descriptors)),
            lambda: self._detached(channel),
        )
        self._channel = channel
        self.outbox.reconnect()

    def _detached(self, channel: Channel) -> None:
        if self._channel is channel:
            self._channel = None

    async def obey(self) -> None:
        """Do what is asked, one message after another."""
        while True:
            channel, message, descriptors = await self._queue.get()
            answer: dict[str, Any] = {"re": message.get("n", 0), "ok": True}
            try:
                answer |= await self._do(message, descriptors)
            except Exception as flaw:  # noqa: BLE001  # whatever it is, it changes nothing and the next order is heard
                answer = {"re": message.get("n", 0), "error": str(flaw) or type(flaw).__name__}
            finally:
                for descriptor in descriptors:  # what nobody took
                    os.close(descriptor)
            if message.get("do") != "ack":
                channel.send(answer)

    async def _do(self, message: Mapping[str, Any], descriptors: list[int]) -> dict[str, Any]:
        what = message["do"]
        if what == "hello":
            return {
                "pid": os.getpid(),
                "sandboxes": {id_: guest.subject.revision for id_, guest in self.guests.items()},
                "authority": self.services.authority is not None,
                "tls": self._wish,
            }
        if what == "stats":
            return self.stats()
        if what == "ack":
            self.outbox.acknowledge(int(message["sequence"]))
            self.flush()
        elif what == "configure":
            self.configure(message)
        elif what == "authority":
            self.trust(message["key"].encode(), message["certificate"].encode())
        elif what == "admit":
            await self.admit(message, descriptors)
        elif what == "release":
            guest = self.guests.pop(message["sandbox"], None)
            if guest is not None:
                guest.release()
        elif what == "bind":
            self._guest(message).bind(EffectivePolicy.from_wire(message["policy"]), time())
        elif what == "arm":
            self._guest(message).arm(_credentials(message))
        elif what == "cut":
            self._guest(message).cut(bool(message["closed"]), time())
        else:
            raise ValueError(f"`{what}` is not understood")
        return {}

    def _guest(self, message: Mapping[str, Any]) -> Guest:
        guest = self.guests.get(message["sandbox"])
        if guest is None:
            raise ValueError(f"sandbox `{message['sandbox']}` was not admitted")
        return guest

    def configure(self, message: Mapping[str, Any]) -> None:
        """Set what holds for all sandboxes; sandboxes admitted before keep their limits."""
        chain = Chain.from_wire(message["upstream_proxy"]) if message.get("upstream_proxy") else None
        limits = Limits.from_wire(message.get("limits", {}))
        dialer = Dialer(self._loop, resolve=static_names(message.get("resolve", {})))
        wish = str(message.get("tls", "auto"))
        backends = choose(wish)
        contexts = upstream_contexts(message.get("extra_ca", ""), backends.client)
        proxies = Proxies(self._loop, dialer, chain, message.get("extra_ca", "")) if chain else None
        before, self.services.dialer = self.services.dialer, dialer
        before.close()
        self.services.proxies = proxies
        self.services.upstream_contexts = contexts
        self._wish, self._backends = wish, backends
        self._limits = limits
        self._support = str(message.get("support", ""))
        for guest in self.guests.values():
            guest.subject.support = self._support
            guest.upstreams.drop()

    def trust(self, key: bytes, certificate: bytes) -> None:
        """Take the certificate authority."""
        self.services.authority = Authority(key, certificate, now=time, backend=self._backends.server)

    async def admit(self, message: Mapping[str, Any], descriptors: list[int]) -> None:
        """Serve a sandbox, or serve it on new sockets."""
        policy = EffectivePolicy.from_wire(message["policy"])
        credentials = _credentials(message)
        addresses = Addresses(**message["addresses"])
        roles = [str(role) for role in message["roles"]]
        subject = Subject(
            id=str(message["sandbox"]),
            name=str(message.get("name", "")),
            agent=str(message.get("agent", "")),
            user=str(message.get("user", "")),
            support=self._support,
            limits=self._limits,
            own=frozenset({addresses.gateway4, addresses.gateway6}),
            ids=self._ids,
            sink=self.outbox.add,
        )
        guest = Guest(self.services, subject, addresses)
        before = self.guests.pop(subject.id, None)
        if before is not None:
            before.release()
            subject.budgets.restore(before.subject.budgets.sums(), time())
        spent = message.get("spent", {})
        subject.budgets.restore({str(rule): _sums(sums) for rule, sums in spent.items()}, time())
        sockets = {role: socket.socket(fileno=descriptors.pop(0)) for role in roles}
        guest.arm(credentials)
        guest.bind(policy, time())
        try:
            await guest.serve(sockets)
        except BaseException:
            guest.release()
            for sock in sockets.values():
                sock.close()
            raise
        self.guests[subject.id] = guest

    def stats(self) -> dict[str, Any]:
        return {
            "sandboxes": {
                id_: {"connections": len(guest.links), "upstreams": guest.upstreams.open_count}
                for id_, guest in self.guests.items()
            },
            "dropped": self.outbox.dropped,
            "waiting": self.outbox.waiting,
            "connections": self.services.connections,
            "capacity": self.services.capacity,
            "tls": {
                "server": self._backends.server.name,
                "client": self._backends.client.name,
                "reason": self._backends.reason,
            },
            "descriptors": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        }

    # -- records, time ------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Send what waits, as far as the daemon keeps up."""
        channel = self._channel
        while channel is not None and not channel.closed:
            batch = self.outbox.take()
            if batch is None:
                break
            channel.send_encoded(b'{"events":[%b],"sequence":%d}' % (batch[1], batch[0]))

    def sweep(self) -> None:
        """Look at every deadline, and do it again soon."""
        now = time()
        for guest in list(self.guests.values()):
            guest.sweep(now)
        outbox = self.outbox
        if outbox.congested if not self._congested else outbox.relieved:
            self._congested = not self._congested
            for guest in self.guests.values():
                guest.hush(self._congested)
        self._loop.call_later(SWEEP, self.sweep)


def _credentials(message: Mapping[str, Any]) -> tuple[Binding, ...]:
    """Read bindings. What is wrong with them is not said: an error's text must never hold a value."""
    try:
        return tuple(map(Binding.from_wire, message["credentials"]))
    except (KeyError, TypeError, ValueError, AttributeError):
        raise ValueError("the credentials are not understood") from None


def _sums(sums: Sequence[int]) -> tuple[int, int, int]:
    day, tokens, size = map(int, sums)
    return day, tokens, size


def decision_numbers(prefix: bytes) -> Callable[[], bytes]:
    """Return a source of decision ids that no other run of a worker gives out: 17 bytes, counted within
    the run.
    """
    return map((prefix + b"-%08x").__mod__, itertools.count(1)).__next__


def settle_memory() -> None:
    """What is here stays: looking through it for garbage again and again finds nothing."""
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)


def static_names(resolve: Mapping[str, str]) -> dict[str, tuple[str, int | None]]:
    """Parse static names as they are configured: ``address``, ``address:port`` or ``[address]:port``."""
    parsed: dict[str, tuple[str, int | None]] = {}
    for name, target in resolve.items():
        address, colon, port = target.rpartition(":")
        if target.count(":") > 1 and not target.startswith("["):
            address, colon, port = target, "", ""
        if not colon or target.endswith("]"):
            address, port = target, ""
        parsed[name] = (address.strip("[]"), int(port) if port else None)
    return parsed


def renounce(user: str) -> None:
    """Give up what a process that reads hostile bytes must not have: root, the way back to it, being
    debugged.
    """
    if os.geteuid() == 0:
        entry = pwd.getpwnam(user)
        os.setgroups([])
        os.setresgid(entry.pw_gid, entry.pw_gid, entry.pw_gid)
        os.setresuid(entry.pw_uid, entry.pw_uid, entry.pw_uid)
    libc = ctypes.CDLL(None, use_errno=True)
    for option, value in ((_PR_SET_NO_NEW_PRIVS, 1), (_PR_SET_DUMPABLE, 0)):
        if libc.prctl(option, value, 0, 0, 0):
            raise OSError(ctypes.get_errno(), "cannot renounce privileges")


async def serve(listening: socket.socket, owner: int) -> None:
    """Run a worker on its control socket until it is told to end. Only ``owner`` (and root) may give
    orders.
    """
    loop = asyncio.get_running_loop()
    worker = Worker(loop)
    done = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, done.set)

    def accept() -> None:
        try:
            sock, _ = listening.accept()
        except (BlockingIOError, ConnectionError):
            return
        _, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if uid in (owner, 0):
            worker.attach(sock)
        else:
            sock.close()

    listening.setblocking(False)
    loop.add_reader(listening, accept)
    worker.sweep()
    obeying = loop.create_task(worker.obey())
    await done.wait()
    obeying.cancel()
    for guest in worker.guests.values():
        guest.release()
    worker.flush()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m ringfence.gateway.worker", description="gateway worker")
    parser.add_argument("--control-fd", type=int, required=True, help="a listening Unix socket, inherited")
    parser.add_argument("--user", default="nobody", help="who to be when started as root")
    arguments = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    settle_memory()
    ssl.create_default_context()  # loads what an unprivileged process may not be able to load later
    choose("auto")  # the same, and the checks of what is not the standard library's
    owner = os.geteuid()
    renounce(arguments.user)
    uvloop.run(serve(socket.socket(fileno=arguments.control_fd), owner))


if __name__ == "__main__":
    main()
