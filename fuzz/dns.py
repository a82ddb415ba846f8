"""A message to the sandbox's name server: total, never answers an answer, amplifies nothing, echoes nothing."""

from __future__ import annotations

from ringfence.gateway.core.dns import GROWTH, answer

FIXED = {"host.docker.internal": ("10.255.255.3", "fd72:696e:6766::3")}


def _address(name: str, family: int) -> str:
    if name.startswith("full"):
        raise LookupError
    return "198.18.0.9" if family == 4 else "fd72:696e:6766:5359::9"


def one(data: bytes) -> None:
    given = answer(data, address=_address, fixed=FIXED)
    if given.reply is None:
        return
    reply = given.reply
    assert not data[2] & 0x80, "an answer was answered"
    assert len(reply) <= len(data) + GROWTH
    assert reply[:2] == data[:2]
    assert reply[2] & 0x80
    assert not reply[2] & 2, "truncated"
    assert given.name.isascii()
    assert given.name.isprintable()
