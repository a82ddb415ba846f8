"""An HTTP/1 head: parsed or refused; nothing that is forwarded can end a line early."""

from __future__ import annotations

from ringfence.gateway.core.heads import parse_request
from ringfence.gateway.core.messages import Malformed


def one(data: bytes) -> None:
    head = data.partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
    try:
        request = parse_request(head)
    except Malformed:
        return
    assert b"\r" not in request.target
    assert b"\n" not in request.target
    for line in request.lines:
        assert b"\r" not in line
        assert b"\n" not in line
        assert b"\0" not in line
