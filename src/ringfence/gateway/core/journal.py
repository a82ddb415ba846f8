"""Audit records as bytes, cheap enough to write two for every request.

A record is what ``NetworkEvent.record()`` says, as one JSON object. All that stays the same between the
requests of a connection (who, where to, which rule) is encoded once per decision by ``constant``; ``opened``
and ``closed`` put the few changing fields around it. ``tests/gateway/test_journal.py`` holds the bytes
against the dataclass, so that there is one schema however it is written.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Final

from ringfence.audit.events import TEXT_LIMIT
from ringfence.policy.model import Decision

_PLAIN: Final = bytes(each for each in range(32, 127) if chr(each) not in '"\\')
"""What stands for itself in a JSON string."""
_NAMED: Final = 8
"""Rules in evaluate mode that a record names."""
_dump: Final = json.JSONEncoder(separators=(",", ":")).encode


def encode(fields: Mapping[str, object]) -> bytes:
    """Encode fields as the inside of an object; what is empty is left out, as ``NetworkEvent.record``
    does.
    """
    kept = {name: value for name, value in fields.items() if value or name in ("verdict", "sandbox")}
    return _dump(kept)[1:-1].encode()


def decided(decision: Decision) -> dict[str, object]:
    """Return the fields that a decision fills in."""
    rule = decision.rules[0] if decision.rules else None
    return {
        "verdict": decision.verdict.value,
        "reason": decision.reason.value,
        "rule": rule.name if rule else "",
        "rule_id": rule.id if rule else "",
        "origin": rule.origin if rule else "",
        "text": bounded(decision.text),
        "revision": decision.revision,
        "would": ", ".join(f"{each.effect.value} {each.name or each.id}" for each in decision.would[:_NAMED]),
    }


def bounded(text: str) -> str:
    return text if len(text) <= TEXT_LIMIT else text[: TEXT_LIMIT - 1] + "…"


def asking(shared: bytes, method: bytes, path: bytes, dialled: str = "") -> bytes:
    """Return the fields of a request: what it shares with others, its method (a token, checked), its path
    without the query, and the address that it goes to.
    """
    cut = path.find(b"?")
    if cut >= 0:
        path = path[:cut]
    if len(path) >= TEXT_LIMIT or path.translate(None, _PLAIN):
        path = _dump(bounded(path.decode("latin-1")))[1:-1].encode()
    if dialled:
        return b'%b,"method":"%b","path":"%b","dialled":"%b"' % (shared, method, path, dialled.encode())
    return b'%b,"method":"%b","path":"%b"' % (shared, method, path)


def opened(number: bytes, now: float, fields: bytes) -> bytes:
    return b'{"id":"%b","step":"opened","time":%.6f,%b}' % (number, now, fields)


def closed(
    number: bytes,
    now: float,
    fields: bytes,
    status: int,
    ended: bytes,
    started: float,
    first: float,
    sent: int,
    received: int,
) -> bytes:
    """Encode the end of something, with its totals. ``first`` is when the first byte came back, 0 if none
    did.
    """
    return (
        b'{"id":"%b","step":"closed","time":%.6f,%b,"status":%d,"bytes_out":%d,"bytes_in":%d,'
        b'"duration":%.6f,"ttfb":%.6f,"ended":"%b"}'
        % (
            number,
            now,
            fields,
            status,
            sent,
            received,
            max(now - started, 0.0),
            max(first - started, 0.0) if first else 0.0,
            ended,
        )
    )
