"""One attempt to get out: ``python3 attempt.py KIND ADDRESS [PORT] [TEXT]``. The standard library alone.

The demo copies this file into the workspace and runs it twice: on its host, where the channel must work, and
inside the sandbox, where it must not. What comes back is printed as ``answered: …`` (exit 0) or ``nothing:
…`` (exit 1).
"""

import ipaddress
import os
import socket
import struct
import sys

TIMEOUT = 2.0


class NoAnswerError(ConnectionError):
    """No answer came, and why."""


def _open(address: str, kind: int, port: int, protocol: int = 0) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    connection = socket.socket(family, kind, protocol)
    connection.settimeout(TIMEOUT)
    connection.connect((address, port))
    return connection


def udp(address: str, port: str, text: str) -> str:
    """A datagram, and whatever comes back."""
    with _open(address, socket.SOCK_DGRAM, int(port)) as connection:
        connection.send(text.encode())
        return repr(connection.recv(2048).decode(errors="replace"))


def quic(address: str, port: str, text: str) -> str:
    """What looks from outside like the first packet of a QUIC connection, and whatever comes back."""
    body = text.encode().ljust(1182, b"\0")
    packet = b"\xc3\0\0\0\1\x08" + os.urandom(8) + b"\0\0" + struct.pack("!H", 0x4000 | len(body)) + body
    with _open(address, socket.SOCK_DGRAM, int(port)) as connection:
        connection.send(packet)
        return repr(connection.recv(2048)[18 : 18 + len(text)].decode(errors="replace"))


def tcp(address: str, port: str, text: str) -> str:
    """Bytes that are neither TLS nor HTTP, and whatever comes back."""
    with _open(address, socket.SOCK_STREAM, int(port)) as connection:
        connection.sendall(text.encode() + b"\n")
        piece = connection.recv(2048)
        if not piece:
            raise NoAnswerError("the connection was closed")
        return repr(piece.decode(errors="replace"))


def icmp(address: str, _port: str, _text: str) -> str:
    """An ICMP echo request, through whichever kind of socket this user may open."""
    six = ":" in address
    protocol = socket.getprotobyname("ipv6-icmp") if six else socket.IPPROTO_ICMP
    request = struct.pack("!BBHHH", 128 if six else 8, 0, 0, 7, 1) + b"ringfence"
    if not six:
        total = sum(
            struct.unpack(
                f"!{len(request + b'0') // 2}H", request.ljust(len(request) + len(request) % 2, b"\0")
            )
        )
        total = (total & 0xFFFF) + (total >> 16)
        request = request[:2] + struct.pack("!H", ~total & 0xFFFF) + request[4:]
    refused = PermissionError("no such socket")
    for kind in (socket.SOCK_DGRAM, socket.SOCK_RAW):
        try:
            with _open(address, kind, 0, protocol) as connection:
                connection.send(request)
                connection.recv(2048)
                return "an echo reply"
        except PermissionError as error:
            refused = error
    raise refused


def _question(name: str, kind: int) -> bytes:
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    return (
        os.urandom(2)
        + struct.pack("!HHHHH", 0x0100, 1, 0, 0, 0)
        + labels
        + b"\0"
        + struct.pack("!HH", kind, 1)
    )


def _skip_name(message: bytes, at: int) -> int:
    while message[at]:
        if message[at] >= 0xC0:
            return at + 2
        at += message[at] + 1
    return at + 1


def _answers(message: bytes) -> str:
    found, at = [], _skip_name(message, 12) + 4
    for _ in range(struct.unpack_from("!H", message, 6)[0]):
        at = _skip_name(message, at)
        kind, _, _, length = struct.unpack_from("!HHIH", message, at)
        at += 10
        value = message[at : at + length]
        at += length
        found.append(
            str(ipaddress.ip_address(value)) if kind in (1, 28) else repr(value[1:].decode(errors="replace"))
        )
    if not found:
        raise NoAnswerError(f"an empty DNS answer, code {message[3] & 15}")
    return " ".join(found)


def dns(address: str, kind: str, name: str) -> str:
    """A DNS question over UDP to a server of one's own choosing."""
    with _open(address, socket.SOCK_DGRAM, 53) as connection:
        connection.send(_question(name, {"A": 1, "TXT": 16}[kind]))
        return _answers(connection.recv(4096))


def dns_tcp(address: str, kind: str, name: str) -> str:
    """The same over TCP."""
    with _open(address, socket.SOCK_STREAM, 53) as connection:
        question = _question(name, {"A": 1, "TXT": 16}[kind])
        connection.sendall(struct.pack("!H", len(question)) + question)
        with connection.makefile("rb") as stream:
            length = stream.read(2)
            if len(length) < 2:
                raise NoAnswerError("the connection was closed")
            return _answers(stream.read(struct.unpack("!H", length)[0]))


def main() -> None:
    kinds = {"udp": udp, "quic": quic, "tcp": tcp, "icmp": icmp, "dns": dns, "dns-tcp": dns_tcp}
    kind, address, port, text = [*sys.argv[1:], "", ""][:4]
    try:
        print("answered:", kinds[kind](address, port, text))
    except OSError as error:
        print("nothing:", str(error) or type(error).__name__)
        sys.exit(1)


if __name__ == "__main__":
    main()
