"""The one way in which text fails to become policy.

A message says what is wrong, lower case, with what was written in backticks; the hint says what to write instead.
What was written may come from a hostile place, so it is cut and escaped before it is quoted.
"""

from __future__ import annotations

_QUOTED = 80


class InvalidPolicy(ValueError):
    """Input that is not policy. ``where`` is a place in a document (``rules[2].resources[0]``), empty elsewhere."""

    def __init__(self, message: str, hint: str = "", where: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.where = where

    def at(self, where: str) -> InvalidPolicy:
        """Return the same complaint, placed: ``where`` comes in front of what is known already."""
        inner = self.where
        joined = f"{where}{inner}" if inner.startswith("[") else f"{where}.{inner}" if inner else where
        return type(self)(self.message, self.hint, joined)


def quote(text: str | bytes) -> str:
    """Return what was written between backticks: printable ASCII or letters, and never long."""
    shown = text.decode("latin-1") if isinstance(text, bytes) else text
    cut = shown[:_QUOTED]
    safe = "".join(c if c.isprintable() and c != "`" else c.encode("unicode_escape").decode() for c in cut)
    return f"`{safe}…`" if len(shown) > _QUOTED else f"`{safe}`"
