"""SOCKS5 from a client: total, stable under splitting, and never a name that is none."""

from __future__ import annotations

from ringfence.gateway.core.socks import Unserved, Wanted, read_greeting, read_request
from ringfence.policy.names import canonical_host


def one(data: bytes) -> None:
    greeting = read_greeting(data)
    if greeting is not None:
        assert greeting.size == 2 + len(greeting.methods) <= len(data)
        data = data[greeting.size :]
    whole = _read(data)
    if isinstance(whole, Wanted):
        assert 0 < whole.port < 65_536
        assert whole.size <= len(data)
        assert canonical_host(whole.host) == whole.host
        assert not set(whole.host) & set("\0\r\n %")
    # Whoever asks earlier is told to wait or told the same; what comes behind a request changes nothing.
    for end in {len(data) // 2, len(data) - 1, min(len(data), 5)}:
        if 0 <= end < len(data):
            assert _read(data[:end]) in (None, whole)
    if whole is not None:
        assert _read(data + b"more") == whole


def _read(data: bytes) -> Wanted | str | None:
    try:
        return read_request(data)
    except Unserved as flaw:
        return flaw.text
