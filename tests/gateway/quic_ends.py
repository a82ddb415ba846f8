"""Both ends of a real QUIC connection (aioquic): a server that echoes streams, and a client on a given socket."""

from __future__ import annotations

import asyncio
import datetime
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.asyncio.server import serve
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.events import ConnectionTerminated, QuicEvent, StreamDataReceived
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from gateway_stage import CLIENT4

PATIENCE = 20.0


def self_signed(name: str, path: Path) -> tuple[str, str]:
    """Files with a certificate and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    begin = datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(begin)
        .not_valid_after(begin + datetime.timedelta(days=20_000))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    encoding = serialization.Encoding.PEM
    (path / "cert.pem").write_bytes(certificate.public_bytes(encoding))
    (path / "key.pem").write_bytes(
        key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return str(path / "cert.pem"), str(path / "key.pem")


@asynccontextmanager
async def quic_server(certificate: str, key: str) -> AsyncIterator[int]:
    """Echo every stream; yield the port."""
    configuration = QuicConfiguration(is_client=False, alpn_protocols=["echo"])
    configuration.load_cert_chain(certificate, key)

    def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async def echo() -> None:
            writer.write(await reader.read())
            writer.write_eof()

        running.add(asyncio.get_running_loop().create_task(echo()))

    running: set[asyncio.Task[None]] = set()
    server = await serve(CLIENT4, 0, configuration=configuration, stream_handler=converse)
    try:
        yield server._transport.get_extra_info("sockname")[1]
    finally:
        server.close()
        await asyncio.gather(*running)


class _Client(QuicConnectionProtocol):
    def __init__(self, connection: QuicConnection, answer: asyncio.Future[bytes]) -> None:
        super().__init__(connection)
        self._answer = answer
        self._got = b""

    def quic_event_received(self, event: QuicEvent) -> None:
        if isinstance(event, StreamDataReceived):
            self._got += event.data
            if event.end_stream and not self._answer.done():
                self._answer.set_result(self._got)
        elif isinstance(event, ConnectionTerminated) and not self._answer.done():
            self._answer.set_exception(ConnectionError(event.reason_phrase))

    def error_received(self, exc: Exception) -> None:
        if not self._answer.done():
            self._answer.set_exception(exc)


async def quic_echo(sock: socket.socket, name: str, text: bytes) -> bytes:
    """Connect over a socket, send a stream, return what came back."""
    loop = asyncio.get_running_loop()
    configuration = QuicConfiguration(
        is_client=True, alpn_protocols=["echo"], server_name=name, verify_mode=0
    )
    answer: asyncio.Future[bytes] = loop.create_future()
    peer = sock.getpeername()
    transport, client = await loop.create_datagram_endpoint(
        lambda: _Client(QuicConnection(configuration=configuration), answer), sock=sock.dup()
    )
    sending: Any = transport
    original = sending.sendto
    client._transport = _Connected(original)  # type: ignore[assignment]
    try:
        client.connect(peer, transmit=True)
        stream = client._quic.get_next_available_stream_id()
        client._quic.send_stream_data(stream, text, end_stream=True)
        client.transmit()
        async with asyncio.timeout(PATIENCE):
            return await answer
    finally:
        client.close()
        transport.close()


class _Connected:
    """A transport whose socket is connected, and takes no address."""

    def __init__(self, send: Any) -> None:
        self._send = send

    def sendto(self, data: bytes, _: object = None) -> None:
        self._send(data)

    def close(self) -> None:
        """Closed by whoever made it."""
