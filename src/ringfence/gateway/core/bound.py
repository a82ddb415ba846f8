"""The credentials of one host, and what becomes of a request for it.

    form              the declared header                           elsewhere
    plain, bearer,    every field of that name is deleted, however  a credential field that holds the placeholder is
    basic             it is spelt (``X_API_Key``), one is set       deleted, a query parameter too
    replace           the placeholder gives way to the value, also  the query and the body by explicit choice
                      inside Basic; two such fields are refused
    sigv4             a signature under the placeholder key is      the body is hashed where the client declared no
                      made anew                                     hash

No value (minting failed): 502, never sent bare. Two services that claim one header of one host: 502.

``exclusive`` refuses somebody else's credential: any other value in a field of ``CREDENTIAL_FIELDS`` or a parameter of
``CREDENTIAL_PARAMETERS``, a key in a WebSocket's subprotocols, an AWS signature under another key, and cookies but
those of content delivery networks (``PLAIN_COOKIES``).

So that an echo can be found on the way back (:mod:`ringfence.gateway.core.masks`), a host with credentials is asked for
whole, unencoded answers: no ranges (three requests for three thirds of an echo would tell it), no compression.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Sequence
from typing import Final

from ringfence.gateway.core import sigv4
from ringfence.gateway.core.fields import VISIBLE
from ringfence.gateway.core.lookout import decoded
from ringfence.gateway.core.masks import Forms
from ringfence.gateway.core.messages import Request
from ringfence.sandbox.credentials import Binding, Form, Target

CREDENTIAL_FIELDS: Final = frozenset(
    {
        b"authorization",
        b"x-api-key",
        b"api-key",
        b"x-goog-api-key",
        b"x-auth-token",
        b"x-access-token",
        b"x-amz-security-token",
        b"private-token",
        b"job-token",
    }
)
CREDENTIAL_PARAMETERS: Final = frozenset(
    {b"key", b"api_key", b"api-key", b"apikey", b"access_token", b"auth_token", b"x-amz-credential"}
)
PLAIN_COOKIES: Final = frozenset(
    {b"__cf_bm", b"_cfuvid", b"__cflb", b"cf_clearance", b"awsalb", b"awsalbcors"}
)
"""Cookies that content delivery networks and load balancers set, and clients with a jar send back."""
ASKED_PLAINLY: Final = frozenset({b"accept-encoding", b"range", b"if-range", b"sec-websocket-extensions"})
"""Fields with which a client could make an answer one that cannot be searched."""
_CODINGS: Final = frozenset({b"accept-encoding", b"sec-websocket-extensions"})
IDENTITY: Final = b"accept-encoding: identity"

_BASIC: Final = re.compile(rb"[Bb][Aa][Ss][Ii][Cc] +(\S+)").fullmatch
_KEY_PROTOCOL: Final = b"openai-insecure-api-key."
"""How a browser gives a key to a WebSocket: as a subprotocol."""


class Withheld(Exception):
    """A request that does not leave: the status to answer with, and why. Without a status of its own it is a refusal,
    by the guard; with one, something that cannot be served.
    """

    def __init__(self, text: str, status: int = 0) -> None:
        super().__init__(text)
        self.text = text
        self.status = status


class Bound:
    """The credentials of one destination."""

    __slots__ = (
        "_deleted",
        "_fields",
        "_placeholders",
        "_set",
        "_signers",
        "_swaps",
        "exclusive",
        "fault",
        "forms",
        "name",
    )

    def __init__(self, reached: Sequence[tuple[Binding, Target]]) -> None:
        self.name = ", ".join(dict.fromkeys(binding.name for binding, _ in reached))
        self.exclusive = any(binding.exclusive for binding, _ in reached)
        self.fault = ""
        """Why no request gets out at all."""
        values = [value.encode() for binding, _ in reached for _, value in binding.values]
        self._set: dict[bytes, bytes] = {}
        self._deleted: tuple[bytes, ...] = ()
        self._swaps: list[_Swap] = []
        self._signers: list[_Signer] = []
        for binding, target in reached:
            parts = dict(binding.values)
            placeholders = tuple(each.encode() for each in binding.placeholders)
            why = binding.unavailable or ("" if parts and all(map(_writable, parts.values())) else "no value")
            if target.form is Form.REPLACE:
                value = parts.get("value", "").encode()
                self._swaps.append(_Swap(binding, target.header.encode(), placeholders, value, why))
            elif why:
                self.fault = self.fault or _unavailable(binding.name, why)
            elif target.form is Form.SIGV4:
                self._signers.append(_Signer(placeholders, _keys(parts)))
            else:
                header = target.header.encode()
                if header in self._set:
                    self.fault = f"two credentials ({self.name}) claim the header `{target.header}`"
                line, basic = _line(target, parts["value"].encode())
                self._set[header] = line
                self._deleted += placeholders
                values += basic
        self._fields = CREDENTIAL_FIELDS.union(self._set, (swap.header for swap in self._swaps))
        self._placeholders = tuple(each.encode() for binding, _ in reached for each in binding.placeholders)
        self.forms = Forms(values)

    @property
    def in_body(self) -> bool:
        """Whether a whole body is needed to replace placeholders in it."""
        return any(swap.binding.in_body for swap in self._swaps)

    def signed(self, request: Request, host: str) -> sigv4.Claim | None:
        """Return the signature that has to be made anew, if there is one. Raises ``Withheld``."""
        if not self._signers:
            return None
        try:
            claim = sigv4.read(request.lines, request.path)
        except sigv4.Unsignable as flaw:
            raise Withheld(flaw.text, flaw.status if flaw.status != 403 else 0) from None
        if claim is not None and any(claim.key_id in signer.placeholders for signer in self._signers):
            if not sigv4.fits(claim, host):
                scope = claim.scope.decode("latin-1")
                raise Withheld(f"a signature for `{scope}`, which is not this host's")
            return claim
        if claim is not None and self.exclusive:
            raise _foreign("an AWS signature", self.name)
        return None

    def dress(self, request: Request) -> Request:
        """Return the request as it leaves, but for its body and a signature. Raises ``Withheld``."""
        if self.fault:
            raise Withheld(self.fault, 502)
        lines = self._lines(request.lines)
        path = self._path(request.path) if b"?" in request.path else request.path
        dressed = copied(request, path, lines)
        dressed.sealed = (*self._set, *(swap.header for swap in self._swaps), b"x-amz-security-token")
        return dressed

    def _lines(self, lines: Sequence[bytes]) -> list[bytes]:
        kept: list[bytes] = []
        swapped: set[bytes] = set()
        for line in lines:
            written, _, value = line.partition(b": ")
            name = normal(written)
            if name in ASKED_PLAINLY:
                continue
            credential = name in self._fields
            if self.exclusive:
                self._refuse_foreign(name, value, credential=credential)
            if name in self._set or (credential and holds(value, self._deleted)):
                continue
            new = value
            for swap in self._swaps:
                if name == swap.header:
                    new = swap.replaced(new)
            if new != value:
                swapped.add(name)
            kept.append(line if new == value else written + b": " + new)
        for name in swapped:
            if sum(normal(line.partition(b":")[0]) == name for line in kept) > 1:
                raise Withheld(f"two `{name.decode()}` fields, and a credential in one of them")
        kept += self._set.values()
        kept.append(IDENTITY)
        return kept

    def _refuse_foreign(self, name: bytes, value: bytes, *, credential: bool) -> None:
        if credential:
            if value and not holds(value, self._placeholders):
                raise _foreign(f"the header `{name.decode('latin-1')}`", self.name)
        elif name == b"cookie":
            for pair in value.split(b";"):
                cookie = pair.partition(b"=")[0].strip().lower()
                if cookie and cookie not in PLAIN_COOKIES:
                    raise _foreign("a cookie", self.name)
        elif name == b"sec-websocket-protocol":
            for each in value.split(b","):
                key = each.strip()
                if key.lower().startswith(_KEY_PROTOCOL) and not holds(key, self._placeholders):
                    raise _foreign("a subprotocol", self.name)

    def _path(self, path: bytes) -> bytes:
        where, _, query = path.partition(b"?")
        kept = []
        for pair in query.split(b"&"):
            written, _, value = pair.partition(b"=")
            if decoded(written).lower() in CREDENTIAL_PARAMETERS and value:
                own = holds(decoded(value), self._placeholders)
                if self.exclusive and not own:
                    raise _foreign(f"the parameter `{decoded(written).decode('latin-1')}`", self.name)
                if decoded(value) in self._deleted:
                    continue
            kept.append(pair)
        query = b"&".join(kept)
        for swap in self._swaps:
            if swap.binding.in_query:
                query = swap.in_text(query, sigv4.encode(swap.value))
        return where + b"?" + query if kept else where

    def replace_in(self, body: bytes, kind: bytes) -> bytes:
        """Return a whole body with placeholders replaced, written as its media type wants it."""
        for swap in self._swaps:
            if swap.binding.in_body:
                body = swap.in_text(body, _written(swap.value, kind))
        return body

    def sign(self, claim: sigv4.Claim, request: Request, authority: bytes, payload: bytes) -> Request:
        """Return a dressed request with its signature made anew; ``payload`` is the hash of its body."""
        signer = next(each for each in self._signers if claim.key_id in each.placeholders)
        length = request.length if request.length > 0 or request.method in (b"POST", b"PUT", b"PATCH") else -1
        try:
            path, lines = sigv4.sign(
                claim, signer.keys, request.method, request.path, authority, request.lines, payload, length
            )
        except sigv4.Unsignable as flaw:
            raise Withheld(flaw.text) from None
        signed = copied(request, path, lines)
        signed.sealed = request.sealed
        return signed


class _Swap:
    """A placeholder that gives way to its value where it stands."""

    __slots__ = ("_placeholders", "_why", "binding", "header", "value")

    def __init__(
        self, binding: Binding, header: bytes, placeholders: tuple[bytes, ...], value: bytes, why: str
    ) -> None:
        self.binding = binding
        self.header = header
        self.value = value
        self._placeholders = tuple(sorted(filter(None, placeholders), key=len, reverse=True))
        self._why = why

    def in_text(self, text: bytes, value: bytes) -> bytes:
        for placeholder in self._placeholders:
            if placeholder in text:
                if self._why:
                    raise Withheld(_unavailable(self.binding.name, self._why), 502)
                text = text.replace(placeholder, value)
        return text

    def replaced(self, field: bytes) -> bytes:
        """Return a field's value with the placeholder replaced."""
        plain = _basic(field)
        if plain is None:
            return self.in_text(field, self.value)
        new = self.in_text(plain, self.value)
        return field if new == plain else field[:6] + base64.b64encode(new)


class _Signer:
    __slots__ = ("keys", "placeholders")

    def __init__(self, placeholders: tuple[bytes, ...], keys: sigv4.Keys) -> None:
        self.placeholders = placeholders
        self.keys = keys


def misused(name: str) -> Withheld:
    """Return what becomes of a request with a placeholder where nothing replaces it."""
    return Withheld(f"secret misuse: the placeholder of `{name}` was sent where nothing replaces it")


def copied(request: Request, path: bytes, lines: list[bytes]) -> Request:
    """Return a request like another with its own head. The first one's is shared by those that were read after it."""
    copy = Request(request.method, request.target)
    copy.path = path
    copy.lines = lines
    copy.version, copy.length, copy.upgrade = request.version, request.length, request.upgrade
    copy.expect, copy.close = request.expect, request.close
    copy.authority, copy.scheme, copy.trailers = request.authority, request.scheme, request.trailers
    return copy


def plainly(lines: Sequence[bytes]) -> list[bytes]:
    """Return a head's lines that ask for an answer which can be read."""
    return [*(line for line in lines if normal(line.partition(b":")[0]) not in _CODINGS), IDENTITY]


def without_credentials(trailers: Sequence[bytes]) -> list[bytes]:
    """Return the trailers that a host with credentials gets: a credential has its place in the head."""
    return [line for line in trailers if normal(line.partition(b":")[0]) not in CREDENTIAL_FIELDS]


def _line(target: Target, value: bytes) -> tuple[bytes, list[bytes]]:
    """Return the line that a credential is, and what it holds beside the value that nobody may see."""
    name = target.header.encode()
    if target.form is Form.BASIC:
        secret = base64.b64encode(target.user.encode() + b":" + value)
        return name + b": Basic " + secret, [secret]
    return name + (b": Bearer " if target.form is Form.BEARER else b": ") + value, []


def _keys(parts: dict[str, str]) -> sigv4.Keys:
    return sigv4.Keys(
        key_id=parts.get("access_key_id", "").encode(),
        secret=parts.get("secret_access_key", "").encode(),
        token=parts.get("session_token", "").encode(),
    )


def _writable(value: str) -> bool:
    """Whether a value can stand in a header: one that cannot would end it early."""
    return bool(value) and not value.encode().translate(None, VISIBLE) and value == value.strip(" \t")


def _unavailable(name: str, why: str) -> str:
    return f"the credential `{name}` is not available: {why}"


def _foreign(where: str, name: str) -> Withheld:
    return Withheld(f"{where} holds a credential that is not `{name}`, which is exclusive to this host")


def normal(name: bytes) -> bytes:
    """Return a field's name as servers know it: gateways and CGI read ``_`` as ``-``."""
    return name.lower().replace(b"_", b"-")


def holds(value: bytes, placeholders: Sequence[bytes]) -> bool:
    plain = _basic(value)
    return any(each and (each in value or (plain is not None and each in plain)) for each in placeholders)


def _basic(field: bytes) -> bytes | None:
    """Return ``user:password`` of Basic credentials, nothing for any other value."""
    found = _BASIC(field)
    if found is None:
        return None
    try:
        return base64.b64decode(found[1], validate=True)
    except binascii.Error:
        return None


def _written(value: bytes, kind: bytes) -> bytes:
    """Return a value as a body of a media type holds it."""
    if b"json" in kind:
        return value.replace(b"\\", b"\\\\").replace(b'"', b'\\"')
    return sigv4.encode(value) if kind.startswith(b"application/x-www-form-urlencoded") else value
