"""AWS Signature Version 4: a request that was signed with placeholder keys is signed anew with the real ones.

The client cannot be given the secret key, and a signature cannot be patched; so the gateway takes from the client's
signature what it decided (date, region, service, which headers), and computes the rest over the request as it leaves.
Both places of a signature are known: the ``Authorization`` field, and the query of a presigned URL.

A payload is signed as it was declared (``x-amz-content-sha256``), unsigned, or hashed here, for which the caller has
to hold the whole body. Signatures that go on inside of the body (``STREAMING-…``) and asymmetric ones (SigV4A) cannot
be made anew here and are refused: never is half of a request sent on under a signature that does not fit.

Reference: AWS General Reference, "Create a signed AWS API request".
"""

from __future__ import annotations

import hashlib
import hmac
import re
from dataclasses import dataclass, field
from typing import Final

ALGORITHM: Final = b"AWS4-HMAC-SHA256"
UNSIGNED: Final = b"UNSIGNED-PAYLOAD"
EMPTY: Final = hashlib.sha256(b"").hexdigest().encode()
_S3: Final = frozenset({b"s3", b"s3-outposts", b"s3express", b"s3-object-lambda"})
"""Services that take a path as it is; all others encode it once more."""
_HASH: Final = b"x-amz-content-sha256"
_TOKEN: Final = b"x-amz-security-token"
_HEADER: Final = re.compile(
    rb"AWS4-HMAC-SHA256 +Credential=([^\s,]+)\s*,\s*SignedHeaders=([a-z0-9;_-]+)\s*,\s*Signature=([0-9a-f]{64})"
).fullmatch
_SCOPE: Final = re.compile(rb"([^/]+(?:/[^/]+)*?)/(\d{8})/([a-z0-9-]+)/([a-z0-9-]+)/aws4_request").fullmatch
_DATE: Final = re.compile(rb"\d{8}T\d{6}Z").fullmatch
_HEX: Final = re.compile(rb"[0-9a-f]{64}").fullmatch
_ENCODED: Final = re.compile(rb"%([0-9A-Fa-f]{2})")
_SAFE: Final = bytes(byte for byte in b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")


class Unsignable(Exception):
    """A signature that cannot be made anew: the status to answer with, and why."""

    def __init__(self, text: str, status: int = 403) -> None:
        super().__init__(text)
        self.text = text
        self.status = status


@dataclass(frozen=True, slots=True, kw_only=True)
class Keys:
    """What is signed with."""

    key_id: bytes
    secret: bytes = field(repr=False)
    token: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What a client's signature says."""

    key_id: bytes
    date: bytes
    """``20150830T123600Z``."""
    day: bytes
    region: bytes
    service: bytes
    headers: tuple[bytes, ...]
    presigned: bool
    payload: bytes
    """The declared hash, ``UNSIGNED-PAYLOAD``, or nothing: then the body has to be hashed."""

    @property
    def scope(self) -> bytes:
        return b"/".join((self.day, self.region, self.service, b"aws4_request"))


def read(lines: list[bytes], path: bytes) -> Claim | None:
    """Return what a request's signature says, nothing if it has none. Raises ``Unsignable``."""
    fields = _fields(lines)
    query = _pairs(path.partition(b"?")[2])
    values = [value for name, value in fields if name == b"authorization" and value.startswith(b"AWS4-")]
    presigned = {
        _decode(name).lower(): _decode(value) for name, value in query if name[:6].lower() == b"x-amz-"
    }
    if not values and b"x-amz-signature" not in presigned and b"x-amz-credential" not in presigned:
        return None
    if len(values) + (b"x-amz-signature" in presigned) != 1:
        raise Unsignable("a request that is not signed exactly once")
    declared = [value for name, value in fields if name == _HASH]
    if values:
        match = _HEADER(values[0])
        if match is None:
            raise _other(values[0])
        credential, headers = match[1], match[2]
        dates = [value for name, value in fields if name == b"x-amz-date"]
        date = dates[0] if len(dates) == 1 else b""
    else:
        if presigned.get(b"x-amz-algorithm") != ALGORITHM:
            raise _other(presigned.get(b"x-amz-algorithm", b""))
        if len(presigned) != sum(name[:6].lower() == b"x-amz-" for name, _ in query):
            raise Unsignable("a presigned URL with a parameter twice")
        credential, headers = (
            presigned.get(b"x-amz-credential", b""),
            presigned.get(b"x-amz-signedheaders", b""),
        )
        date = presigned.get(b"x-amz-date", b"")
        if _HASH in presigned:
            declared.append(presigned[_HASH])
    scope = _SCOPE(credential)
    if scope is None or not _DATE(date) or date[:8] != scope[2]:
        raise Unsignable("a signature whose scope or date is malformed")
    if len(declared) > 1:
        raise Unsignable("two payload hashes")
    service = scope[4]
    payload = declared[0] if declared else UNSIGNED if not values and service in _S3 else b""
    if payload.startswith(b"STREAMING-"):
        raise Unsignable("a body that is signed piece by piece cannot be signed anew by the gateway", 501)
    if payload and payload != UNSIGNED and not _HEX(payload):
        raise Unsignable("a payload hash that is none")
    names = tuple(name.lower() for name in headers.split(b";") if name)
    if b"host" not in names:
        raise Unsignable("a signature that does not cover the host")
    return Claim(
        key_id=scope[1],
        date=date,
        day=scope[2],
        region=scope[3],
        service=service,
        headers=names,
        presigned=not values,
        payload=payload,
    )


def fits(claim: Claim, host: str) -> bool:
    """Whether a host (``bedrock-runtime.us-east-1.amazonaws.com``) is one that the claim's scope is about."""
    labels = host.encode().split(b".")
    named = any(label == claim.service or label.startswith(claim.service + b"-") for label in labels[:-2])
    regional = [label for label in labels if re.fullmatch(rb"[a-z]{2}(-[a-z]+)+-\d+", label)]
    return named and (not regional or claim.region in regional)


def sign(
    claim: Claim,
    keys: Keys,
    method: bytes,
    path: bytes,
    host: bytes,
    lines: list[bytes],
    payload: bytes,
    length: int,
) -> tuple[bytes, list[bytes]]:
    """Return the path and the lines with a signature of these keys. ``payload`` is the hash where the claim declares
    none; ``length`` is what ``Content-Length`` will say.
    """
    kept = [line for line in lines if not _replaced(line)]
    names = [name for name in claim.headers if name != _TOKEN]
    if claim.presigned:
        path = _without_signature(path)
        signed = {b"X-Amz-Credential": keys.key_id + b"/" + claim.scope}
        if keys.token:
            signed[b"X-Amz-Security-Token"] = keys.token
        path += b"".join(b"&%b=%b" % (name, encode(value)) for name, value in signed.items())
    elif keys.token:
        kept.append(b"x-amz-security-token: " + keys.token)
        names.append(_TOKEN)
    names = sorted(set(names))
    if claim.presigned:
        path = _with_parameter(path, b"X-Amz-SignedHeaders", b";".join(names))
    fields = [*_fields(kept), (b"host", host)]
    if length >= 0:
        fields.append((b"content-length", b"%d" % length))
    missing = [name for name in names if not any(name == each for each, _ in fields)]
    if missing:
        raise Unsignable(f"a signature over `{missing[0].decode('latin-1')}`, which is not sent on")
    where, _, query = path.partition(b"?")
    canonical = b"\n".join(
        (
            method,
            _canonical_path(where, claim.service),
            _canonical_query(query),
            *(name + b":" + _canonical_value(name, fields) for name in names),
            b"",
            b";".join(names),
            claim.payload or payload,
        )
    )
    signature = _signature(claim, keys, canonical)
    if claim.presigned:
        return path + b"&X-Amz-Signature=" + signature, kept
    value = b"authorization: %b Credential=%b/%b, SignedHeaders=%b, Signature=%b"
    return path, [*kept, value % (ALGORITHM, keys.key_id, claim.scope, b";".join(names), signature)]


def _signature(claim: Claim, keys: Keys, canonical: bytes) -> bytes:
    digest = hashlib.sha256(canonical).hexdigest().encode()
    text = b"\n".join((ALGORITHM, claim.date, claim.scope, digest))
    key = b"AWS4" + keys.secret
    for part in (claim.day, claim.region, claim.service, b"aws4_request", text):
        key = hmac.digest(key, part, "sha256")
    return key.hex().encode()


def _other(value: bytes) -> Unsignable:
    if value.startswith(b"AWS4-ECDSA"):
        return Unsignable("an asymmetric signature (SigV4A) cannot be made anew by the gateway", 501)
    return Unsignable("a malformed AWS signature")


def _replaced(line: bytes) -> bool:
    name, _, value = line.partition(b": ")
    name = name.lower()
    return name == _TOKEN or (name == b"authorization" and value.startswith(b"AWS4-"))


def _without_signature(path: bytes) -> bytes:
    where, _, query = path.partition(b"?")
    gone = (b"x-amz-signature", b"x-amz-credential", b"x-amz-security-token")
    kept = [pair for pair in query.split(b"&") if _decode(pair.partition(b"=")[0]).lower() not in gone]
    return where + b"?" + b"&".join(kept)


def _with_parameter(path: bytes, name: bytes, value: bytes) -> bytes:
    where, _, query = path.partition(b"?")
    lower = name.lower()
    kept = [pair for pair in query.split(b"&") if _decode(pair.partition(b"=")[0]).lower() != lower]
    return where + b"?" + b"&".join([*kept, b"%b=%b" % (name, encode(value))])


def _fields(lines: list[bytes]) -> list[tuple[bytes, bytes]]:
    split = (line.partition(b": ") for line in lines)
    return [(name.lower(), value) for name, _, value in split]


def _pairs(query: bytes) -> list[tuple[bytes, bytes]]:
    return [pair.partition(b"=")[::2] for pair in query.split(b"&") if pair]


def _decode(text: bytes) -> bytes:
    return _ENCODED.sub(lambda found: bytes((int(found[1], 16),)), text)


def encode(text: bytes, safe: bytes = _SAFE) -> bytes:
    """Percent-encode as AWS wants it: everything but the unreserved characters, hexadecimal in upper case."""
    if not text.translate(None, safe):
        return text
    return b"".join(bytes((byte,)) if byte in safe else b"%%%02X" % byte for byte in text)


def _canonical_path(path: bytes, service: bytes) -> bytes:
    if service in _S3:
        return encode(_decode(path), _SAFE + b"/")
    parts: list[bytes] = []
    for part in path.split(b"/"):
        if part == b"..":
            del parts[-1:]
        elif part not in (b"", b"."):
            parts.append(part)
    end = b"/" if parts and path.endswith((b"/", b"/.", b"/..")) else b""
    return encode(b"/" + b"/".join(parts) + end, _SAFE + b"/")


def _canonical_query(query: bytes) -> bytes:
    pairs = sorted((encode(_decode(name)), encode(_decode(value))) for name, value in _pairs(query))
    return b"&".join(b"%b=%b" % pair for pair in pairs)


def _canonical_value(name: bytes, fields: list[tuple[bytes, bytes]]) -> bytes:
    values = (b" ".join(value.split()) for each, value in fields if each == name)
    return b",".join(values)
