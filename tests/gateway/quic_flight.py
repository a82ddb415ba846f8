"""A client's first QUIC flight, made by the RFCs' formulas: an implementation apart from the product's."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from aioquic.quic.crypto import CryptoPair

V1, V2 = 0x00000001, 0x6B3343CF
RFC_ID = bytes.fromhex("8394c8f03e515708")
RFC_HELLO = bytes.fromhex(
    "010000ed0303ebf8fa56f12939b9584a3896472ec40bb863cfd3e86804fe3a47f06a2b69484c00000413011302010000c0"
    "00000010000e00000b6578616d706c652e636f6dff01000100000a00080006001d0017001800100007000504616c706e00"
    "0500050100000000003300260024001d00209370b2c9caa47fbabaf4559fedba753de171fa71f50f1ce15d43e994ec74d7"
    "48002b0003020304000d0010000e0403050306030203080408050806002d00020101001c00024001003900320408ffffff"
    "ffffffffff05048000ffff07048000ffff0801100104800075300901100f088394c8f03e51570806048000ffff"
)
"""RFC 9001 appendix A.2: a ClientHello for example.com."""


def integer(value: int) -> bytes:
    for size, mark in ((1, 0), (2, 1), (4, 2), (8, 3)):
        if value < 1 << 8 * size - 2:
            return (value | mark << 8 * size - 2).to_bytes(size, "big")
    raise ValueError(value)


def crypto(piece: bytes, offset: int = 0) -> bytes:
    """A CRYPTO frame."""
    return b"\x06" + integer(offset) + integer(len(piece)) + piece


def hello(name: str | None, *extensions: tuple[int, bytes], size: int = 0) -> bytes:
    """A ClientHello as a handshake message, padded to ``size`` bytes with an extension that nobody knows."""
    listed = list(extensions)
    if name is not None:
        told = name.encode()
        listed.insert(
            0,
            (
                0,
                (len(told) + 3).to_bytes(2, "big") + b"\0" + len(told).to_bytes(2, "big") + told,
            ),
        )
    listed.append((43, b"\x02\x03\x04"))

    def body() -> bytes:
        block = b"".join(
            kind.to_bytes(2, "big") + len(text).to_bytes(2, "big") + text for kind, text in listed
        )
        return b"\x03\x03" + bytes(32) + b"\0\0\2\x13\x01\1\0" + len(block).to_bytes(2, "big") + block

    if (lacking := size - len(body()) - 8) > 0:
        listed.append((0x7A7A, bytes(lacking)))
    return b"\x01" + len(body()).to_bytes(3, "big") + body()


def initial(
    frames: bytes,
    number: int = 0,
    *,
    connection: bytes = RFC_ID,
    keys: bytes | None = None,
    version: int = V1,
    kind: int | None = None,
    token: bytes = b"",
    width: int = 4,
    pad: int = 1_162,
    first: int = 0,
) -> bytes:
    """An Initial packet. ``keys`` is the connection id that they are made of, if it is not the packet's own."""
    pair = CryptoPair()
    pair.setup_initial(cid=connection if keys is None else keys, is_client=True, version=version)
    frames = frames.ljust(pad, b"\0")
    kind = (0 if version == V1 else 1) if kind is None else kind
    header = bytes((first or 0xC0 | kind << 4 | width - 1,)) + version.to_bytes(4, "big")
    header += bytes((len(connection),)) + connection + b"\0"
    header += integer(len(token)) + token if kind == (0 if version == V1 else 1) else b""
    header += (0x4000 | width + len(frames) + 16).to_bytes(2, "big")
    header += number.to_bytes(width, "big")
    return pair.encrypt_packet(header, frames, number)


def flight(name: str | None = "quic.test", **more: object) -> bytes:
    """One datagram with a whole ClientHello."""
    return initial(crypto(hello(name)), **more)  # type: ignore[arg-type]


def pieces(message: bytes, *cuts: int) -> Sequence[tuple[int, bytes]]:
    """The message cut at these places, with offsets."""
    edges = (0, *cuts, len(message))
    return [(low, message[low:high]) for low, high in itertools.pairwise(edges)]


OTHER_VERSION = b"\xc0\x1a\x2a\x3a\x4a" + flight()[5:]
"""A version that is reserved so that servers have to negotiate (RFC 9000 section 15)."""
