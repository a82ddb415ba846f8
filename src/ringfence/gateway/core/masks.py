"""Masks: a credential that an origin echoes leaves the gateway as asterisks (GATEWAY.md section 6).

The agent never had the value, but an origin may be made to tell it: error pages quote requests, debug endpoints
return their headers. So what comes back from a host that was given a credential is searched for the value as it is
and in the forms that software gives it on the way: JSON and HTML escapes, percent-encoding, base64 (in all three
alignments, alone or inside a longer text) and hexadecimal. A form is replaced by as many asterisks, so every length
that was announced stays true.

Bytes come in pieces of the origin's choosing. A mask holds back only what could be the beginning of a form, at most
one byte less than the longest one, and gives it out as soon as it is none. A text that ends in a line end (an event of
a stream, a line of a log) is never delayed: no form contains one. The outcome does not depend on the pieces: every byte
that belongs to any occurrence of any form is masked, overlapping ones included.
"""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Iterable
from typing import Final

SHORTEST: Final = 8
"""Values with fewer bytes are not masked: every page would be full of asterisks, and they can be guessed anyway."""
_UNRESERVED: Final = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_URL_SAFE: Final = bytes.maketrans(b"+/", b"-_")


class Forms:
    """The forms of some values, ready to be searched for."""

    __slots__ = ("_inside", "forms")

    def __init__(self, values: Iterable[bytes]) -> None:
        found: set[bytes] = set()
        for value in values:
            if len(value) >= SHORTEST:
                found |= forms_of(value)
        self.forms = tuple(sorted(found, key=len, reverse=True))
        self._inside = frozenset(byte for form in self.forms for byte in form[:-1])

    def __bool__(self) -> bool:
        return bool(self.forms)

    def __repr__(self) -> str:
        return f"<{len(self.forms)} forms>"

    def spans(self, text: bytes) -> list[tuple[int, int]]:
        """Return where forms are."""
        found = []
        for form in self.forms:
            at = text.find(form)
            while at >= 0:
                found.append((at, at + len(form)))
                at = text.find(form, at + 1)
        return found

    def begun(self, text: bytes) -> int:
        """Return how many of the last bytes could be the beginning of a form."""
        if text[-1] not in self._inside:
            return 0
        longest = 0
        for form in self.forms:
            if len(form) - 1 <= longest:
                break  # they get shorter
            tail = text[1 - len(form) :]
            at = tail.find(form[:1])
            while 0 <= at < len(tail) - longest:
                if form.startswith(tail[at:]):
                    longest = len(tail) - at
                    break
                at = tail.find(form[:1], at + 1)
        return longest

    def mask(self, text: bytes) -> bytes:
        """Return a whole text with every form masked."""
        spans = self.spans(text)
        return _masked(bytearray(text), spans) if spans else text


class Mask:
    """One body on its way back."""

    __slots__ = ("_forms", "_held", "_shown")

    def __init__(self, forms: Forms) -> None:
        self._forms = forms
        self._held = b""
        """The last bytes as they came: perhaps the beginning of a form."""
        self._shown = b""
        """The same bytes as they leave if they are not; they may be masked as the end of another form already."""

    def feed(self, payload: bytes) -> bytes:
        """Take a piece, give out what is settled."""
        if not payload:
            return payload
        forms = self._forms
        text = self._held + payload if self._held else payload
        spans = forms.spans(text)
        held = forms.begun(text)
        if not spans and not held and not self._held:
            return payload
        shown = self._shown + payload
        if spans:
            shown = _masked(bytearray(shown), spans)
        settled = len(text) - held
        self._held, self._shown = text[settled:], shown[settled:]
        return shown[:settled]

    def finish(self) -> bytes:
        """Give out what was held back: nothing completes it any more."""
        rest, self._shown, self._held = self._shown, b"", b""
        return rest


def forms_of(value: bytes) -> set[bytes]:
    """Return every form of a value that is looked for."""
    text = value.decode("utf-8", "surrogateescape")
    quoted = json.dumps(text, ensure_ascii=False)[1:-1]
    escaped = json.dumps(text)[1:-1]
    written = {text, quoted, escaped, html.escape(text), html.escape(text).replace("&#x27;", "&#39;")}
    for each in (quoted, escaped):
        written.add(each.replace("/", "\\/"))
        # As encoders write it whose output may stand in HTML (Go's, Rails').
        unsafe = each.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
        written |= {unsafe, unsafe.replace("'", "\\u0027")}
    forms = {each.encode("utf-8", "surrogateescape") for each in written}
    forms |= percent_forms(value)
    forms |= {value.hex().encode(), value.hex().upper().encode()}
    return forms | base64_cores(value)


def percent_forms(value: bytes) -> set[bytes]:
    """Return the percent-encodings of a value: what must be encoded, or everything, in either case."""
    usual = b"".join(bytes((byte,)) if byte in _UNRESERVED else b"%%%02X" % byte for byte in value)
    everything = b"".join(b"%%%02X" % byte for byte in value)
    lower = re.compile(rb"%[0-9A-F]{2}")
    return {
        usual,
        everything,
        lower.sub(lambda found: found[0].lower(), usual),
        lower.sub(lambda found: found[0].lower(), everything),
    }


def base64_cores(value: bytes) -> set[bytes]:
    """Return what base64 makes of a value wherever it stands in a text: the characters that depend on it alone."""
    cores = set()
    for before in range(3):
        written = base64.b64encode(b"\0" * before + value)
        core = written[-(-before * 8 // 6) : (before + len(value)) * 8 // 6]
        cores |= {core, core.translate(_URL_SAFE)}
    return cores


def _masked(text: bytearray, spans: Iterable[tuple[int, int]]) -> bytes:
    for start, end in spans:
        text[start:end] = b"*" * (end - start)
    return bytes(text)
