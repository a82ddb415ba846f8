"""What one sandbox may cost the gateway (GATEWAY.md section 8): every bound, with its value and its owner.

The hostile side chooses bytes, order and timing; it never chooses how much memory or time they take. A
field's docstring names the module that enforces it. Times are seconds, sizes bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The limits in force. The daemon may lower or raise them with ``configure``."""

    connections: int = 4096
    """Open client connections of one sandbox. ``listener``."""
    head_bytes: int = 65_536
    """A request's or response's head, and a trailer section. ``core.heads``, ``core.http1``,
    ``core.http2``.
    """
    fields: int = 200
    """Header fields in one head. ``core.heads``."""
    head_time: float = 30.0
    """From the first byte of a head (or the connection's start) to its end. ``core.http1``."""
    first_byte_time: float = 60.0
    """From the end of a request to the first byte of its response. ``core.exchange``."""
    idle_time: float = 600.0
    """Silence on an HTTP connection, between requests or inside a body. ``core.exchange``, ``core.http1``."""
    tunnel_time: float = 3600.0
    """Silence in an uninspected tunnel or an upgraded connection. ``core.tunnels``, ``core.exchange``."""
    hello_bytes: int = 65_536
    """A ClientHello. ``core.sniff``, ``core.connection``."""
    hello_time: float = 10.0
    """From the first byte of a ClientHello to the end of the handshake. ``core.connection``."""
    silence_time: float = 0.3
    """How long a client may stay silent before its connection is judged as one where the server speaks first.
    ``core.connection``."""
    patience_time: float = 3.0
    """How long a client may stay silent before its refused connection is reset. ``core.connection``."""
    dial_time: float = 15.0
    """To reach an upstream, TLS included. ``upstream``."""
    streams: int = 100
    """Concurrent HTTP/2 streams of one connection. ``core.http2``."""
    floods: int = 200
    """HTTP/2 resets, pings, settings and the like within ``flood_time`` before the connection is cut; what
    the peer is sent gives it credit. ``core.multiplex``."""
    flood_time: float = 10.0
    interim: int = 32
    """1xx responses to one request. ``core.exchange``."""
    pending_bytes: int = 65_536
    """Bytes held for a side that is not ready yet, before the other side is paused. ``core.exchange``."""
    unheard_bytes: int = 64 * 1_048_576
    """Of an HTTP/2 upload that was answered before its end: taken and thrown away before its stream is reset.
    ``core.http2``."""
    replaced_bytes: int = 1_048_576
    """A request's body in which a placeholder is replaced. ``core.treatment``."""
    signed_bytes: int = 16 * 1_048_576
    """A request's body that is hashed for a signature. ``core.treatment``."""
    held_bytes: int = 64 * 1_048_576
    """All such bodies of one sandbox. ``core.treatment``."""
    idle_upstreams: int = 128
    """Idle pooled connections to one origin of one sandbox. ``upstream``."""
    idle_upstream_time: float = 60.0
    """How long an idle pooled connection is kept. ``upstream``."""
    udp_flows: int = 512
    """UDP flows of one sandbox; the one that was silent longest goes. ``datagrams``."""
    udp_waiting: int = 64
    """UDP flows that have not reached their destination yet. ``datagrams``."""
    udp_held: int = 8
    """Datagrams held of one that has not. ``core.datagrams``."""
    udp_held_bytes: int = 131_072
    """Bytes of these. ``core.datagrams``."""
    udp_time: float = 60.0
    """Silence in a UDP flow. ``core.datagrams``."""
    udp_unanswered_time: float = 30.0
    """Silence in a UDP flow that was never answered. ``core.datagrams``."""
    splice_bytes: int = 1_048_576
    """After so many bytes in one direction a tunnel moves into the kernel. ``tunnel``."""
    record_bytes: int = 16 * 1_048_576
    """Audit records of allowed accesses that wait for the daemon; more are dropped and counted.
    ``outbox``.
    """

    @classmethod
    def from_wire(cls, wire: Mapping[str, Any]) -> Limits:
        """Return limits from the daemon's ``configure``; raises ``ValueError`` at what is not a limit."""
        known = {field.name: int if field.type == "int" else float for field in fields(cls)}
        for name, value in wire.items():
            if name not in known:
                raise ValueError(f"unknown limit `{name}`")
            if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
                raise ValueError(f"limit `{name}` must be a positive number")
        return cls(**{name: known[name](value) for name, value in wire.items()})  # type: ignore[arg-type]
