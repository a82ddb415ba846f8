"""A request for a host with credentials: dressed or withheld; one header of ours, no placeholder, no line of its own."""

from __future__ import annotations

from ringfence.gateway.core.bound import Withheld
from ringfence.gateway.core.credentials import Credentials
from ringfence.gateway.core.heads import parse_request
from ringfence.gateway.core.messages import Malformed
from ringfence.gateway.core.sigv4 import EMPTY
from ringfence.sandbox.credentials import Binding, Form, Target

_KEY, _MARK = "REAL-key-0123456789", "sbx-cs-0123456789"
_CREDENTIALS = Credentials(
    [
        Binding(
            name="service",
            targets=(Target(hosts=("a.test",), form=Form.PLAIN, header="x-api-key"),),
            placeholders=("proxy-managed",),
            values=(("value", _KEY),),
            exclusive=True,
        ),
        Binding(
            name="custom",
            targets=(Target(hosts=("a.test",), form=Form.REPLACE, header="authorization"),),
            placeholders=(_MARK,),
            values=(("value", _KEY),),
            in_query=True,
        ),
        Binding(
            name="aws",
            targets=(Target(hosts=("a.test",), form=Form.SIGV4),),
            placeholders=("proxy-managed",),
            values=(("access_key_id", "AKIDREAL"), ("secret_access_key", "secret")),
        ),
    ]
)


def one(data: bytes) -> None:
    head = data.partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
    try:
        request = parse_request(head)
    except Malformed:
        return
    bound = _CREDENTIALS.towards("a.test", 443)
    assert bound is not None
    try:
        claim = bound.signed(request, "a.test")
        dressed = bound.dress(request)
        if claim is not None:
            dressed = bound.sign(claim, dressed, b"a.test", EMPTY)
        _CREDENTIALS.screen(dressed.path, dressed.lines)
    except Withheld:
        return
    assert sum(line.lower().replace(b"_", b"-").startswith(b"x-api-key:") for line in dressed.lines) == 1
    assert _MARK.encode() not in b"\n".join([dressed.path, *dressed.lines])
    assert not any(b"\r" in line or b"\n" in line or b"\0" in line for line in [dressed.path, *dressed.lines])
