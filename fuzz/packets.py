"""A copy of a refused packet: total, and everything that is told of it is printable and bounded."""

from __future__ import annotations

import ipaddress

from ringfence.gateway.packets import dissect


def one(data: bytes) -> None:
    packet = dissect(data)
    if packet is None:
        return
    ipaddress.ip_address(packet.destination)
    ipaddress.ip_address(packet.source)
    assert 0 <= packet.port <= 65_535
    assert packet.transport
    assert packet.transport != "tcp"
    assert packet.packets == 1
