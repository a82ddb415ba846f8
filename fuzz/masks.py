"""An answer that may echo a credential: its length stays, no form of it leaves, and pieces do not matter."""

from __future__ import annotations

from ringfence.gateway.core.masks import Forms, Mask

_FORMS = Forms([b"abababab", b'sk-"x"/<&+0123', b"aabaabaabaab"])


def one(data: bytes) -> None:
    size, data = (data[0] % 16 + 1, data[1:]) if data else (1, data)
    whole, split = Mask(_FORMS), Mask(_FORMS)
    shown = whole.feed(data) + whole.finish()
    pieces = [split.feed(data[at : at + size]) for at in range(0, len(data), size)]
    assert b"".join([*pieces, split.finish()]) == shown
    assert len(shown) == len(data)
    assert all(one == other or one == 42 for one, other in zip(shown, data, strict=True))
    assert not any(form in shown for form in _FORMS.forms)
