"""What an upstream proxy answers: total, bounded, stable under splitting, and never more than a line in an error.

The first byte picks the dialogue.
"""

from __future__ import annotations

from ringfence.gateway.core.chain import HEAD, Dialogue, Unwilling, dialogue, parse_proxy

PROXIES = tuple(
    parse_proxy(f"{scheme}://{who}proxy.test:1")
    for scheme in ("http", "socks5h")
    for who in ("", "ada:secret@")
)
LONGEST = 300


def one(data: bytes) -> None:
    if not data:
        return
    proxy, data = PROXIES[data[0] % len(PROXIES)], data[1:]
    whole = held(dialogue(proxy, "a.test", 443), [data])
    cut = len(data) // 2
    assert held(dialogue(proxy, "a.test", 443), [data[:cut], data[cut:]]) == whole
    if whole is None:
        return
    how, what = whole
    if how == "refused":
        assert isinstance(what, str)
        assert what.isprintable()
        assert len(what) < LONGEST
        assert "secret" not in what
    else:
        assert isinstance(what, bytes)
        assert data.endswith(what)


def held(talk: Dialogue, pieces: list[bytes]) -> tuple[str, bytes | str] | None:
    """Play the proxy; return how it ended, or nothing if it wants more."""
    waiting = [piece for piece in pieces if piece]
    try:
        said = next(talk)
        while said or waiting:
            said = talk.send(b"" if said else waiting.pop(0))
    except StopIteration as end:
        return "open", bytes(end.value) + b"".join(waiting)
    except Unwilling as flaw:
        return "refused", flaw.text
    assert sum(map(len, pieces)) <= HEAD
    return None
