"""The control protocol between the daemon and a gateway worker, both ends (ARCHITECTURE.md, "Control").

A Unix stream; a message is a length and a JSON object; descriptors travel with the message that names them.
The worker owns the listening socket, so a daemon that went away and came back finds its worker, and its
sandboxes' traffic, as they were. Every message of the daemon is answered; the worker's own messages are
batches of audit records, which stay with the worker until they are acknowledged.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import json
import os
import socket
import struct
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from ringfence.application.errors import Unavailable
from ringfence.application.ports import Attachment
from ringfence.sandbox.credentials import Binding
from ringfence.sandbox.model import SandboxSpec

_LENGTH: Final = struct.Struct("!I")
_LIMIT: Final = 64 * 1_048_576
"""Of one message: a policy of 100,000 rules is 20 MB."""
_DESCRIPTORS: Final = 32
"""Descriptors with one message."""
_READ: Final = 262_144


class Channel:
    """One end of a connection: messages in, messages out, descriptors with either. Not a transport: asyncio's
    cannot carry descriptors.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        received: Callable[[dict[str, Any], list[int]], None],
        lost: Callable[[], None],
    ) -> None:
        sock.setblocking(False)
        self._loop = loop
        self._socket = sock
        self._received = received
        self._lost = lost
        self._in = bytearray()
        self._descriptors: deque[int] = deque()
        self._out: deque[tuple[memoryview, tuple[int, ...]]] = deque()
        self._writing = False
        self.closed = False
        loop.add_reader(sock, self._readable)

    def send(self, message: Mapping[str, Any], descriptors: Sequence[int] = ()) -> None:
        self.send_encoded(json.dumps(message, separators=(",", ":")).encode(), descriptors)

    def send_encoded(self, body: bytes, descriptors: Sequence[int] = ()) -> None:
        """Send a message. Its descriptors are duplicated here, so the caller may close its own."""
        if self.closed:
            return
        copies = tuple(os.dup(descriptor) for descriptor in descriptors)
        self._out.append((memoryview(_LENGTH.pack(len(body)) + body), copies))
        if not self._writing:
            self._writable()

    def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        self._loop.remove_reader(self._socket)
        self._loop.remove_writer(self._socket)
        self._socket.close()
        for descriptor in (*self._descriptors, *(each for _, copies in self._out for each in copies)):
            os.close(descriptor)
        self._descriptors.clear()
        self._out.clear()
        self._lost()

    def _writable(self) -> None:
        while self._out:
            body, descriptors = self._out[0]
            try:
                if descriptors:
                    sent = socket.send_fds(self._socket, [body], list(descriptors))
                else:
                    sent = self._socket.send(body)
            except BlockingIOError:
                if not self._writing:
                    self._writing = True
                    self._loop.add_writer(self._socket, self._writable)
                return
            except OSError:
                self.close()
                return
            for descriptor in descriptors:
                os.close(descriptor)
            if sent == len(body):
                self._out.popleft()
            else:
                self._out[0] = (body[sent:], ())
        if self._writing:
            self._writing = False
            self._loop.remove_writer(self._socket)

    def _readable(self) -> None:
        try:
            data, told, flags, _ = self._socket.recvmsg(
                _READ, socket.CMSG_SPACE(_DESCRIPTORS * array.array("i").itemsize), socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            return
        except OSError:
            data, told, flags = b"", [], 0
        for level, kind, raw in told:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                arrived = array.array("i")
                arrived.frombytes(raw[: len(raw) - len(raw) % arrived.itemsize])
                self._descriptors.extend(arrived)
        if not data or flags & socket.MSG_CTRUNC:
            self.close()
            return
        self._in += data
        while not self.closed and len(self._in) >= _LENGTH.size:
            (size,) = _LENGTH.unpack_from(self._in)
            if size > _LIMIT:
                self.close()
                return
            end = _LENGTH.size + size
            if len(self._in) < end:
                return
            body = bytes(self._in[_LENGTH.size : end])
            del self._in[:end]
            self._take(body)

    def _take(self, body: bytes) -> None:
        try:
            message = json.loads(body)
            count = len(message.get("roles", ()))
        except (ValueError, AttributeError, TypeError, RecursionError):
            self.close()
            return
        if count > len(self._descriptors):
            self.close()
            return
        self._received(message, [self._descriptors.popleft() for _ in range(count)])


class GatewayLink:
    """The daemon's end: ``application.ports.Turnstile`` over a channel. Made by ``connect``.

    A lost connection fails what was waiting with ``Unavailable`` and ends ``events``; connect again (the
    worker may still be there) or start another worker.
    """

    def __init__(self, sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._number = 0
        self._batches: asyncio.Queue[tuple[int, list[dict[str, Any]]] | None] = asyncio.Queue()
        self._channel = Channel(loop, sock, self._received, self._lost)

    @classmethod
    async def connect(cls, path: Path) -> GatewayLink:
        """Connect to a worker's control socket."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            await asyncio.get_running_loop().sock_connect(sock, str(path))
        except OSError as flaw:
            sock.close()
            raise Unavailable(f"the gateway worker does not answer: {flaw.strerror}") from flaw
        return cls(sock)

    async def hello(self) -> dict[str, Any]:
        """Greet; learn which sandboxes the worker serves (``sandboxes``: id to policy revision) and its
        ``pid``.
        """
        return await self._ask({"do": "hello"})

    async def configure(
        self,
        *,
        resolve: Mapping[str, str] | None = None,
        extra_ca: str = "",
        upstream_proxy: Mapping[str, Any] | None = None,
        support: str = "",
        limits: Mapping[str, float] | None = None,
        tls: str = "auto",
    ) -> None:
        """Set what holds for all sandboxes: static names (``name: address[:port]``), more upstream roots
        (PEM), ``Chain.to_wire()``, the TLS backend.
        """
        await self._ask(
            {
                "do": "configure",
                "resolve": dict(resolve or {}),
                "extra_ca": extra_ca,
                "upstream_proxy": upstream_proxy and dict(upstream_proxy),
                "support": support,
                "limits": dict(limits or {}),
                "tls": tls,
            }
        )

    async def authority(self, key: bytes, certificate: bytes) -> None:
        """Give the worker this installation's certificate authority (PEM)."""
        await self._ask({"do": "authority", "key": key.decode(), "certificate": certificate.decode()})

    async def admit(
        self,
        spec: SandboxSpec,
        attachment: Attachment,
        policy: Mapping[str, Any],
        credentials: Sequence[Binding] = (),
        spent: Mapping[str, tuple[int, int, int]] | None = None,
    ) -> None:
        """Serve a sandbox on its enclosure's sockets. Admitting it again replaces the sockets."""
        roles = list(attachment.listeners)
        await self._ask(
            {
                "do": "admit",
                "sandbox": spec.id,
                "name": spec.name,
                "agent": spec.agent,
                "user": spec.owner.name,
                "addresses": asdict(attachment.addresses),
                "policy": dict(policy),
                "credentials": [binding.to_wire() for binding in credentials],
                "spent": {rule: list(sums) for rule, sums in (spent or {}).items()},
                "roles": roles,
            },
            [attachment.listeners[role].fileno() for role in roles],
        )

    async def bind(self, sandbox: str, policy: Mapping[str, Any]) -> None:
        await self._ask({"do": "bind", "sandbox": sandbox, "policy": dict(policy)})

    async def arm(self, sandbox: str, credentials: Sequence[Binding]) -> None:
        """Replace the credentials of a sandbox. Returns when new requests see them."""
        await self._ask(
            {
                "do": "arm",
                "sandbox": sandbox,
                "credentials": [binding.to_wire() for binding in credentials],
            }
        )

    async def cut(self, sandbox: str, *, closed: bool) -> None:
        await self._ask({"do": "cut", "sandbox": sandbox, "closed": closed})

    async def release(self, sandbox: str) -> None:
        await self._ask({"do": "release", "sandbox": sandbox})

    async def stats(self) -> dict[str, Any]:
        return await self._ask({"do": "stats"})

    async def batches(self) -> AsyncIterator[Sequence[object]]:
        """Yield batches of records. One is acknowledged when the next is asked for, so each comes at least once."""
        while (batch := await self._batches.get()) is not None:
            sequence, records = batch
            yield records
            self._channel.send({"do": "ack", "sequence": sequence})

    def close(self) -> None:
        self._channel.close()

    @property
    def closed(self) -> bool:
        return self._channel.closed

    async def _ask(self, message: dict[str, Any], descriptors: Sequence[int] = ()) -> dict[str, Any]:
        if self._channel.closed:
            raise Unavailable("the gateway worker is gone")
        self._number += 1
        number = self._number
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        self._channel.send({**message, "n": number}, descriptors)
        try:
            told: dict[str, Any] = await answer
        finally:
            self._answers.pop(number, None)
        if "error" in told:
            raise Unavailable(f"the gateway worker refused `{message['do']}`: {told['error']}")
        return told

    def _received(self, message: dict[str, Any], descriptors: list[int]) -> None:
        for descriptor in descriptors:
            os.close(descriptor)
        if "events" in message:
            self._batches.put_nowait((message["sequence"], message["events"]))
            return
        answer = self._answers.get(message.get("re", 0))
        if answer is not None and not answer.done():
            answer.set_result(message)

    def _lost(self) -> None:
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(Unavailable("the gateway worker is gone"))
        self._batches.put_nowait(None)


async def start_worker(path: Path, *, log: int = asyncio.subprocess.DEVNULL) -> asyncio.subprocess.Process:
    """Start a worker that listens on ``path`` (0600), in a session of its own so that it outlives the daemon.

    ``log`` is a descriptor for what it writes to standard error."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        before = os.umask(0o177)
        try:
            listening.bind(str(path))
        finally:
            os.umask(before)
        listening.listen(4)
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "ringfence.gateway.worker",
            "--control-fd",
            str(listening.fileno()),
            pass_fds=(listening.fileno(),),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=log,
            start_new_session=True,
        )
