"""The first bytes of a connection: total, bounded, stable under splitting, and never a name that is none."""

from __future__ import annotations

from ringfence.gateway.core.sniff import LIMIT, SniffKind, hostname, sniff


def one(data: bytes) -> None:
    whole = sniff(data)
    assert (whole.hello is not None) == (whole.kind is SniffKind.TLS)
    if whole.kind is SniffKind.MORE:
        assert len(data) < whole.need
        assert len(data) < LIMIT
    if whole.hello is not None and whole.hello.server_name is not None:
        assert hostname(whole.hello.server_name.encode()) is not None
    # Whoever asks earlier is told to wait or told the same.
    for end in {len(data) // 2, len(data) - 1, min(len(data), 6)}:
        if 0 <= end < len(data):
            earlier = sniff(data[:end])
            assert earlier.kind is SniffKind.MORE or earlier == whole
