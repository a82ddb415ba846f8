"""Clients for :mod:`raw_services`, run inside a sandbox: ``python3 raw_client.py PROTOCOL HOST PORT``.

Prints what came back; an error is printed by its name. The standard library alone.
"""

import errno
import socket
import struct
import sys

PATIENCE = 30


def tcp(host, port):
    connection = socket.create_connection((host, port), PATIENCE)
    connection.settimeout(PATIENCE)
    return connection


def everything(connection):
    return b"".join(iter(lambda: connection.recv(65536), b""))


def ssh(host, port):
    with tcp(host, port) as connection, connection.makefile("rb") as lines:
        greeting = lines.readline()
        connection.sendall(b"SSH-2.0-client\r\n")
        return greeting + lines.readline()


def git(host, port):
    with tcp(host, port) as connection:
        asked = b"git-upload-pack /project.git\0host=" + host.encode() + b"\0"
        connection.sendall(b"%04x" % (len(asked) + 4) + asked)
        return everything(connection)


def postgres(host, port):
    with tcp(host, port) as connection:
        connection.sendall(struct.pack("!II", 8, 80877103))
        assert connection.recv(1) == b"N"
        startup = b"\0\3\0\0user\0agent\0\0"
        connection.sendall(struct.pack("!I", len(startup) + 4) + startup)
        query = b"select 42\0"
        connection.sendall(b"Q" + struct.pack("!I", len(query) + 4) + query)
        connection.sendall(b"X" + struct.pack("!I", 4))
        return everything(connection)


def redis(host, port):
    with tcp(host, port) as connection, connection.makefile("rb") as lines:
        connection.sendall(b"*1\r\n$4\r\nPING\r\n")
        pong = lines.readline()
        connection.sendall(b"*2\r\n$4\r\nECHO\r\n$5\r\nhello\r\n")
        return pong + lines.readline() + lines.readline()


def count(host, port):
    """Close our half, and hear the answer on the other."""
    with tcp(host, port) as connection:
        connection.sendall(b"c" * 300_000)
        connection.shutdown(socket.SHUT_WR)
        return everything(connection)


def speech(host, port):
    """Hear the server's half end, and go on speaking on ours."""
    with tcp(host, port) as connection:
        said = everything(connection)
        connection.sendall(b"c" * 300_000)
        connection.shutdown(socket.SHUT_WR)
        return b"%d bytes\n" % len(said)


def report(host, port):
    with tcp(host, port) as connection:
        return everything(connection)


def silent(host, port):
    """Say nothing: perhaps the server speaks first."""
    with tcp(host, port) as connection:
        return everything(connection)


def udp(host, port, datagram):
    family, _, _, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.settimeout(PATIENCE)
        sock.connect(place)
        sock.send(datagram)
        return sock.recv(65536)


def ntp(host, port):
    answer = udp(host, port, b"\x23" + bytes(39) + b"whatsnow")
    assert answer[24:32] == b"whatsnow", answer
    return b"mode %d" % (answer[0] & 7)


def echo(host, port):
    large = bytes(number % 251 for number in range(20_000))
    assert udp(host, port, large) == large
    return b"20000 bytes"


if __name__ == "__main__":
    try:
        print(globals()[sys.argv[1]](sys.argv[2], int(sys.argv[3])).decode(errors="replace"))
    except OSError as error:
        # A stack that was reset while it still sent may say so only when it is asked to end its half.
        reset = isinstance(error, (ConnectionResetError, BrokenPipeError)) or error.errno == errno.ENOTCONN
        print("reset" if reset else type(error).__name__)
        sys.exit(1)
