"""The lookout for misused placeholders: a sandbox's stand-ins for credentials, where nobody replaces them.

A placeholder is worth nothing, but one that travels to another host, or to a place where it can be read back, says
that something in the sandbox tries to send a key away. So what leaves is searched: the head as it goes upstream, and
the beginning of the body. Found are placeholders as they are, in base64 (Basic credentials, the claims of a JWT, in
any alignment), percent-encoded, JSON-escaped, and split across pieces.

Nothing needs to be held back for that. A placeholder that is found is refused before its last byte has left.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from ringfence.gateway.core.masks import base64_cores

WINDOW: Final = 1_048_576
"""Bytes of a body that are searched."""
_LAYERS: Final = 3
"""Encodings on top of each other that are taken off."""
_PERCENT: Final = re.compile(rb"%([0-9A-Fa-f]{2})")
_ESCAPE: Final = re.compile(rb"\\u00([0-9A-Fa-f]{2})")


class Lookout:
    """Some placeholders, by what they look like on the wire, with the names of their secrets."""

    __slots__ = ("_forms", "reach")

    def __init__(self, placeholders: Mapping[str, str]) -> None:
        self._forms: tuple[tuple[bytes, str], ...] = tuple(
            (form, name)
            for placeholder, name in placeholders.items()
            for form in sorted({placeholder.encode(), *base64_cores(placeholder.encode())})
        )
        self.reach = max((len(form) for form, _ in self._forms), default=0) * 6
        """How far back the beginning of a placeholder can be, in its longest spelling."""

    def __bool__(self) -> bool:
        return bool(self._forms)

    def find(self, text: bytes) -> str:
        """Return the name of the first secret whose placeholder is in a text, or nothing."""
        forms = self._forms
        for _ in range(_LAYERS):
            for form, name in forms:
                if form in text:
                    return name
            plain = decoded(text)
            if plain is text:
                break
            text = plain
        return ""


class Search:
    """One body on its way out."""

    __slots__ = ("_left", "_lookout", "_tail")

    def __init__(self, lookout: Lookout) -> None:
        self._lookout = lookout
        self._left = WINDOW
        self._tail = b""

    def find(self, payload: bytes) -> str:
        """Return the name of a secret whose placeholder ends in this piece, or nothing."""
        if self._left <= 0:
            return ""
        text = self._tail + payload[: self._left]
        self._left -= len(payload)
        found = self._lookout.find(text)
        self._tail = text[-self._lookout.reach :]
        return found


def decoded(text: bytes) -> bytes:
    """Return a text with one layer of percent-encoding and JSON escapes taken off; the very same text if there is
    none.
    """
    if b"%" not in text and b"\\u00" not in text:
        return text
    plain = _PERCENT.sub(_character, text)
    plain = _ESCAPE.sub(_character, plain)
    return text if plain == text else plain


def _character(found: re.Match[bytes]) -> bytes:
    return bytes((int(found[1], 16),))
