"""Audit events: what an auditor may ask about, one frozen record each (GATEWAY.md section 7).

A decision is recorded once, in two steps with one ``id``: ``opened`` before the first byte goes upstream (a
refusal has only this step), ``closed`` with totals when the exchange or tunnel ends or is revoked. Records are
bounded and carry no header value and no body; a path is kept without its query.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

TEXT_LIMIT = 2048
"""Characters kept of any text that the sandbox chose (a name, a path)."""


@dataclass(slots=True, kw_only=True)
class NetworkEvent:
    """One decision about network access. Times are seconds since the epoch, durations seconds, sizes bytes."""

    id: str
    step: str
    """``opened`` or ``closed``."""
    time: float
    sandbox: str
    """The sandbox's id; ``sandbox_name`` is for people."""
    sandbox_name: str = ""
    agent: str = ""
    user: str = ""
    organisation: str = ""
    via: str = ""
    """How it arrived: ``connect``, ``forward``, ``socks5``, ``transparent``, ``dns``, ``udp``, ``icmp``."""
    transport: str = "tcp"
    host: str = ""
    port: int = 0
    dialled: str = ""
    method: str = ""
    path: str = ""
    protocol: str = ""
    """``http/1.1``, ``h2``, ``tls`` (uninspected), ``tcp``, ``udp``, ``icmp``."""
    verdict: str = "blocked"
    reason: str = "failure"
    rule: str = ""
    rule_id: str = ""
    origin: str = ""
    text: str = ""
    revision: int = 0
    would: str = ""
    status: int = 0
    """The status the client saw; 0 where there is none."""
    bytes_out: int = 0
    bytes_in: int = 0
    duration: float = 0.0
    ttfb: float = 0.0
    inspected: bool = False
    ended: str = ""
    """Why it closed: ``done``, ``revoked``, ``client``, ``upstream``, ``limit``, ``failed``, ``mistrusted`` (the client
    refused the certificate that it was shown)."""
    credential: str = ""
    """The secrets that were put into the request, by name. Never a value."""
    model: str = ""
    """The language model that answered, as the answer or the request's path names it."""
    tokens_in: int = 0
    """Tokens of the prompt, cached ones among them."""
    tokens_out: int = 0
    tokens_cached: int = 0
    charged: str = ""
    """Ids of the rules whose budgets pay, separated by commas."""
    canary: bool = False
    count: int = 1
    """How many packets a coalesced UDP or ICMP refusal stands for."""

    def record(self) -> dict[str, Any]:
        """The record as it is written; empty fields are left out, ``id``, ``step``, ``time``, ``verdict`` never."""
        keep = {"id", "step", "time", "sandbox", "verdict"}
        return {k: v for k, v in asdict(self).items() if k in keep or v not in ("", 0, 0.0, False)}
