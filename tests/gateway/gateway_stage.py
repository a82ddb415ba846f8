"""A small world around a real gateway, on loopback: origins with a certificate authority of their own, one guest.

A test plays a scene: ``play(scene)`` runs it on uvloop with a fresh ``Stage``. Origins have public-looking addresses,
which the guards judge; only the last step, the connection itself, is turned to a port on loopback.
"""

from __future__ import annotations

import asyncio
import datetime
import itertools
import json
import socket
import ssl
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from ringfence.application.ports import Addresses
from ringfence.gateway import listener
from ringfence.gateway.authority import Authority, create_authority
from ringfence.gateway.backends import choose
from ringfence.gateway.core.limits import Limits
from ringfence.gateway.core.subject import Subject
from ringfence.gateway.dial import Dialer
from ringfence.gateway.guest import Guest, Services
from ringfence.gateway.outbox import Outbox
from ringfence.gateway.tls import upstream_contexts
from ringfence.gateway.turns import Round
from ringfence.policy.document import parse_rule
from ringfence.policy.effective import EffectivePolicy, Entry
from ringfence.policy.rule import Rule

CLIENT4 = "127.0.0.1"
PATIENCE = 20.0
TLS = "ssl"
"""The TLS backend of every stage; tests that run scenes over another one set it."""
_numbers = itertools.count(1)


def rule(effect: str, *resources: str, **more: Any) -> Rule:
    """Return a network rule, named after what it says unless it has a name."""
    name = more.pop("name", f"{effect} {resources[0]}")
    return parse_rule(
        {"id": f"r{next(_numbers)}", "name": name, "effect": effect, "resources": list(resources), **more}
    )


def policy(*rules: Rule, revision: int = 1, origin: str = "local", **more: Any) -> EffectivePolicy:
    entries = tuple(Entry(rule=each, origin=origin) for each in rules)
    return EffectivePolicy(revision=revision, entries=entries, **more)


@lru_cache(maxsize=1)
def origin_authority() -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    """The authority that the stage's origins have their certificates from."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "stage roots")])
    begin = datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC)
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(begin)
        .not_valid_after(begin + datetime.timedelta(days=20_000))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(identifier, critical=False)
        .sign(key, hashes.SHA256())
    )
    return key, certificate


@lru_cache(maxsize=1)
def origin_roots() -> str:
    return origin_authority()[1].public_bytes(serialization.Encoding.PEM).decode()


@lru_cache(maxsize=64)
def origin_context(
    name: str, *, expired: bool = False, protocols: tuple[str, ...] = ("http/1.1",)
) -> ssl.SSLContext:
    """Return a server context with a certificate for ``name``."""
    key, authority = origin_authority()
    leaf = ec.generate_private_key(ec.SECP256R1())
    begin = datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]))
        .issuer_name(authority.subject)
        .public_key(leaf.public_key())
        .serial_number(next(_numbers) + 1)
        .not_valid_before(begin)
        .not_valid_after(begin + datetime.timedelta(days=1 if expired else 20_000))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(key, hashes.SHA256())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_alpn_protocols(list(protocols))
    with tempfile.NamedTemporaryFile() as pem:
        pem.write(certificate.public_bytes(serialization.Encoding.PEM))
        pem.write(
            leaf.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        pem.flush()
        context.load_cert_chain(pem.name)
    return context


@lru_cache(maxsize=1)
def installation() -> tuple[bytes, bytes]:
    return create_authority(now=time.time())


Behaviour = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Origin:
    """A server behind a name. ``seen`` has what each of its connections received."""

    def __init__(self, name: str, address: str) -> None:
        self.name = name
        self.address = address
        self.seen: list[bytes] = []
        self.connections = 0
        self.port = 0
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    async def start(self, behaviour: Behaviour, context: ssl.SSLContext | None) -> None:
        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self.connections += 1
            self._writers.add(writer)
            try:
                await behaviour(reader, writer)
            except (ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
                return
            finally:
                writer.close()
                self._writers.discard(writer)

        self._server = await asyncio.start_server(connected, CLIENT4, 0, ssl=context)
        self.port = self._server.sockets[0].getsockname()[1]

    def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for writer in self._writers:
            writer.transport.abort()


class StageDialer(Dialer):
    """A dialer whose last step leads to the stage."""

    def __init__(self, loop: asyncio.AbstractEventLoop, stage: Stage) -> None:
        self.asked: list[str] = []
        super().__init__(loop, resolve={}, lookup=self._answer)
        self._stage = stage

    async def _answer(self, name: str) -> tuple[Sequence[str], float]:
        self.asked.append(name)
        return self._stage.addresses.get(name, ()), 60.0

    async def connect(self, addresses: Any, factory: Any, *, timeout: float) -> Any:  # noqa: ASYNC109
        address, port = next((each for each in addresses if each in self._stage.origins), addresses[0])
        origin = self._stage.origins.get((address, port))
        target = (CLIENT4, origin.port if origin is not None else 1)
        transport, protocol, _ = await super().connect([target], factory, timeout=timeout)
        return transport, protocol, (address, port)

    def reach(self, address: tuple[str, int], factory: Any) -> Any:
        origin = self._stage.origins.get(address)
        there = origin.port if origin is not None else address[1] if address[0] == CLIENT4 else 1
        return super().reach((CLIENT4, there), factory)

    def associate(self, addresses: Sequence[tuple[str, int]]) -> tuple[socket.socket, str]:
        address, port = next((each for each in addresses if each in self._stage.datagram_ports), addresses[0])
        sock, _ = super().associate([(CLIENT4, self._stage.datagram_ports.get((address, port), 1))])
        return sock, address


class Stage:
    """One guest of one gateway, its origins, and what was recorded."""

    def __init__(self, loop: asyncio.AbstractEventLoop, limits: Limits) -> None:
        self.origins: dict[tuple[str, int], Origin] = {}
        self.datagram_ports: dict[tuple[str, int], int] = {}
        """Where UDP services really are: the port on this machine."""
        self.addresses: dict[str, list[str]] = {}
        self.records: list[dict[str, Any]] = []
        key, certificate = installation()
        self.certificate = certificate.decode()
        self.dialer = StageDialer(loop, self)
        ids = itertools.count(1)
        self.subject = Subject(
            id="sandbox-1",
            name="lab",
            agent="shell",
            user="ada",
            limits=limits,
            own=frozenset({Addresses().gateway4, Addresses().gateway6}),
            ids=lambda: b"00000000-%08x" % next(ids),
            sink=lambda record, _: self.records.append(json.loads(record)),
        )
        backends = choose(TLS)
        assert backends.server.name == TLS, backends.reason
        self.services = Services(
            loop=loop,
            dialer=self.dialer,
            outbox=Outbox(1 << 20, lambda: None),
            upstream_contexts=upstream_contexts(origin_roots(), backends.client),
            round=Round(loop),
            authority=Authority(key, certificate, backend=backends.server),
        )
        self.guest = Guest(self.services, self.subject, Addresses())
        self.destination: tuple[str, int] = ("", 0)
        self.proxy = self.transparent = 0
        self._clients: list[Client] = []

    async def open(self) -> None:
        sockets: dict[str, socket.socket] = {}
        for role in ("proxy4", "transparent4"):
            sock = sockets[role] = socket.socket()
            sock.bind((CLIENT4, 0))
        await self.guest.serve(sockets)
        self.proxy, self.transparent = (sockets[role].getsockname()[1] for role in ("proxy4", "transparent4"))

    def close(self) -> None:
        self.guest.release()
        self.dialer.close()
        for origin in self.origins.values():
            origin.close()
        for client in self._clients:
            client.writer.transport.abort()

    def bind(self, *rules: Rule, revision: int = 1, **more: Any) -> None:
        self.guest.bind(policy(*rules, revision=revision, **more), time.time())

    async def origin(
        self,
        name: str,
        behaviour: Behaviour,
        *,
        port: int = 443,
        tls: bool | ssl.SSLContext = True,
        address: str = "",
    ) -> Origin:
        """Put a server behind a name (and a public address)."""
        address = address or f"203.0.113.{len(self.origins) + 1}"
        origin = Origin(name, address)
        context = origin_context(name) if tls is True else tls or None
        await origin.start(behaviour, context)
        self.origins[(address, port)] = origin
        self.addresses.setdefault(name, []).append(address)
        return origin

    # -- clients ----------------------------------------------------------------------------------------------

    async def dial(self) -> Client:
        """A client of the explicit proxy."""
        return await self._client(self.proxy)

    async def _client(self, port: int) -> Client:
        client = Client(*await asyncio.open_connection(CLIENT4, port))
        self._clients.append(client)
        return client

    async def reach(self, host: str, port: int) -> Client:
        """A client that was redirected on its way to an address, or to the synthetic address of a name."""
        address = host
        if not host.replace(".", "").isdigit() and ":" not in host:
            address = self.guest.names.address(host, 4)
        self.destination = (address, port)
        return await self._client(self.transparent)

    async def connect(self, host: str, port: int = 443) -> Client:
        """A client with an open CONNECT tunnel."""
        client = await self.dial()
        client.send(f"CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode())
        head = await client.until(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 "), head
        return client

    async def secure(
        self, host: str, port: int = 443, *, name: str | None = None, protocols: Sequence[str] = ("http/1.1",)
    ) -> Client:
        """A client that speaks TLS inside of a CONNECT tunnel and trusts this installation."""
        client = await self.connect(host, port)
        await client.start_tls(name or host, self.certificate, protocols)
        return client

    # -- records ----------------------------------------------------------------------------------------------

    async def settle(self, count: int, *, step: str = "") -> list[dict[str, Any]]:
        """Wait for so many records (of a step) and return them."""
        await until(lambda: len(self.recorded(step)) >= count)
        return self.recorded(step)

    def recorded(self, step: str = "") -> list[dict[str, Any]]:
        return [record for record in self.records if step in ("", record["step"])]


class Client:
    """A client's end. Every wait is bounded."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, payload: bytes) -> None:
        self.writer.write(payload)

    async def start_tls(self, name: str, roots: str, protocols: Sequence[str] = ("http/1.1",)) -> None:
        context = ssl.create_default_context(cadata=roots)
        context.set_alpn_protocols(list(protocols))
        async with asyncio.timeout(PATIENCE):
            await self.writer.start_tls(context, server_hostname=name)

    @property
    def tls(self) -> ssl.SSLObject:
        found = self.writer.get_extra_info("ssl_object")
        assert found is not None
        return found  # type: ignore[no-any-return]

    @property
    def subject(self) -> dict[str, str]:
        """The subject of the certificate that the client was shown."""
        shown: Any = self.tls.getpeercert() or {}
        return {key: value for part in shown["subject"] for key, value in part}

    async def until(self, mark: bytes) -> bytes:
        async with asyncio.timeout(PATIENCE):
            return await self.reader.readuntil(mark)

    async def exactly(self, size: int) -> bytes:
        async with asyncio.timeout(PATIENCE):
            return await self.reader.readexactly(size)

    async def end(self) -> bytes:
        """Everything until the connection ends, by a close or a reset."""
        got = b""
        async with asyncio.timeout(PATIENCE):
            while True:
                try:
                    piece = await self.reader.read(65_536)
                except (ConnectionError, ssl.SSLError):
                    return got + b"<reset>"
                if not piece:
                    return got
                got += piece

    async def response(self, *, headless: bool = False) -> tuple[int, dict[str, str], bytes]:
        """Read one HTTP/1 response (``headless``: to a HEAD)."""
        head = (await self.until(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        status = int(head[0].split(" ")[1])
        fields = {k.lower(): v for k, _, v in (line.partition(": ") for line in head[1:] if line)}
        if headless:
            return status, fields, b""
        if "content-length" in fields:
            return status, fields, await self.exactly(int(fields["content-length"]))
        if fields.get("transfer-encoding") == "chunked":
            body = b""
            while True:
                size = int(await self.until(b"\r\n"), 16)
                piece = await self.exactly(size + 2)
                body += piece[:-2]
                if not size:
                    return status, fields, body
        if status in (204, 304) or 100 <= status < 200:
            return status, fields, b""
        return status, fields, await self.end()

    async def get(
        self, target: str, host: str, method: str = "GET", **fields: str
    ) -> tuple[int, dict[str, str], bytes]:
        lines = [f"{method} {target} HTTP/1.1", f"Host: {host}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in fields.items()]
        self.send("\r\n".join([*lines, "", ""]).encode())
        return await self.response(headless=method == "HEAD")

    def close(self) -> None:
        self.writer.close()


async def until(condition: Callable[[], object]) -> None:
    """Wait for something that no event tells of."""
    async with asyncio.timeout(PATIENCE):
        while True:
            await asyncio.sleep(0.002)
            if condition():
                return


Scene = Callable[[Stage], Awaitable[None]]


def play(scene: Scene, **limits: float) -> None:
    """Play a scene on a stage of its own."""

    async def staged() -> None:
        loop = asyncio.get_running_loop()
        stage = Stage(loop, Limits.from_wire(limits))
        whither = listener.original_destination
        listener.original_destination = lambda _: stage.destination
        ticking = loop.create_task(_tick(stage))
        try:
            await stage.open()
            async with asyncio.timeout(PATIENCE * 2):
                await scene(stage)
        finally:
            ticking.cancel()
            listener.original_destination = whither
            stage.close()
            await until(lambda: len(asyncio.all_tasks()) == 1)  # closed transports are gone a turn later

    uvloop.run(staged())


async def _tick(stage: Stage) -> None:
    while True:
        await asyncio.sleep(0.01)
        stage.guest.sweep(time.time())


def echo(body: bytes = b"hello\n", *, fields: Mapping[str, str] | None = None) -> Behaviour:
    """An origin that answers every request with the same body."""
    head = "".join(f"{name}: {value}\r\n" for name, value in (fields or {}).items())

    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            request = await reader.readuntil(b"\r\n\r\n")
            length = 0
            for line in request.split(b"\r\n"):
                if line.lower().startswith(b"content-length:"):
                    length = int(line.split(b":")[1])
            await reader.readexactly(length)
            answer = b"" if request.startswith(b"HEAD") else body
            writer.write(f"HTTP/1.1 200 OK\r\n{head}Content-Length: {len(body)}\r\n\r\n".encode() + answer)
            await writer.drain()

    return behave
