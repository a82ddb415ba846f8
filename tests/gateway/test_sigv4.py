"""AWS Signature Version 4: published examples, botocore as an oracle, and what cannot be signed anew."""

from __future__ import annotations

import hashlib
import importlib.util
from typing import Any

import pytest

from ringfence.gateway.core import sigv4
from ringfence.gateway.core.sigv4 import Keys, Unsignable

SUITE = Keys(key_id=b"AKIDEXAMPLE", secret=b"wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY")
S3 = Keys(key_id=b"AKIAIOSFODNN7EXAMPLE", secret=b"wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY")
DATE = b"x-amz-date: 20150830T123600Z"
ANY = b"0" * 64


def signed(
    names: bytes, scope: bytes = b"20150830/us-east-1/service", key: bytes = b"proxy-managed"
) -> bytes:
    """What a client with a placeholder key writes."""
    return (
        b"authorization: AWS4-HMAC-SHA256 Credential=%b/%b/aws4_request, SignedHeaders=%b, Signature=%b"
        % (
            key,
            scope,
            names,
            ANY,
        )
    )


# Title, method, path, host, lines, payload, keys, signature. The first is the example of the General Reference, those
# with `service` are of AWS's test suite (aws-sig-v4-test-suite), the last two of the documentation of S3.
EXAMPLES: list[tuple[str, bytes, bytes, bytes, list[bytes], bytes, Keys, str]] = [
    (
        "IAM ListUsers",
        b"GET",
        b"/?Action=ListUsers&Version=2010-05-08",
        b"iam.amazonaws.com",
        [
            b"content-type: application/x-www-form-urlencoded; charset=utf-8",
            DATE,
            signed(b"content-type;host;x-amz-date", b"20150830/us-east-1/iam"),
        ],
        b"",
        SUITE,
        "5d672d79c15b13162d9279b0855cfba6789a8edb4c82c400e06b5924a6f2b5d7",
    ),
    (
        "get-vanilla",
        b"GET",
        b"/",
        b"example.amazonaws.com",
        [DATE, signed(b"host;x-amz-date")],
        b"",
        SUITE,
        "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31",
    ),
    (
        "post-vanilla",
        b"POST",
        b"/",
        b"example.amazonaws.com",
        [DATE, signed(b"host;x-amz-date")],
        b"",
        SUITE,
        "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b",
    ),
    (
        "get-vanilla-query-order-key-case",
        b"GET",
        b"/?Param2=value2&Param1=value1",
        b"example.amazonaws.com",
        [DATE, signed(b"host;x-amz-date")],
        b"",
        SUITE,
        "b97d918cfa904a5beff61c982a1b6f458b799221646efd99d3219ec94cdf2500",
    ),
    (
        "S3, an object's range",
        b"GET",
        b"/test.txt",
        b"examplebucket.s3.amazonaws.com",
        [
            b"Range: bytes=0-9",
            b"x-amz-content-sha256: " + sigv4.EMPTY,
            b"x-amz-date: 20130524T000000Z",
            signed(b"host;range;x-amz-content-sha256;x-amz-date", b"20130524/us-east-1/s3"),
        ],
        b"",
        S3,
        "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41",
    ),
    (
        "S3, a presigned URL",
        b"GET",
        b"/test.txt?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=proxy-managed%2F20130524%2Fus-east-1%2Fs3%2Faws4_"
        b"request&X-Amz-Date=20130524T000000Z&X-Amz-Expires=86400&X-Amz-SignedHeaders=host&X-Amz-Signature="
        + ANY,
        b"examplebucket.s3.amazonaws.com",
        [],
        b"",
        S3,
        "aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404",
    ),
]


@pytest.mark.parametrize(
    ("method", "path", "host", "lines", "payload", "keys", "signature"),
    [row[1:] for row in EXAMPLES],
    ids=[row[0] for row in EXAMPLES],
)
def test_published_examples(
    method: bytes, path: bytes, host: bytes, lines: list[bytes], payload: bytes, keys: Keys, signature: str
) -> None:
    claim = sigv4.read(lines, path)
    assert claim is not None
    assert claim.key_id == b"proxy-managed"
    digest = hashlib.sha256(payload).hexdigest().encode()
    where, out = sigv4.sign(claim, keys, method, path, host, lines, digest, -1)
    found = where if claim.presigned else next(line for line in out if line.startswith(b"authorization"))
    assert found.endswith(b"Signature=" + signature.encode())
    assert b"proxy-managed" not in where + b"".join(out)


def test_a_session_token_is_signed_and_the_clients_own_is_gone() -> None:
    lines = [DATE, b"X-Amz-Security-Token: forged", signed(b"host;x-amz-date;x-amz-security-token")]
    claim = sigv4.read(lines, b"/")
    assert claim is not None
    keys = Keys(key_id=b"AKID", secret=b"s", token=b"real-token")
    _, out = sigv4.sign(claim, keys, b"GET", b"/", b"sts.amazonaws.com", lines, sigv4.EMPTY, -1)
    assert [line for line in out if b"oken: " in line] == [b"x-amz-security-token: real-token"]
    assert b"SignedHeaders=host;x-amz-date;x-amz-security-token," in out[-1]
    _, out = sigv4.sign(claim, SUITE, b"GET", b"/", b"sts.amazonaws.com", lines, sigv4.EMPTY, -1)
    assert b"oken" not in b"".join(out)


SCOPE = b"20150830/us-east-1/service"
BAD: list[tuple[str, list[bytes], bytes, int, str]] = [
    ("two signatures", [DATE, signed(b"host"), signed(b"host")], b"/", 403, "exactly once"),
    ("no date", [signed(b"host")], b"/", 403, "date is malformed"),
    ("another day", [b"x-amz-date: 20160830T123600Z", signed(b"host")], b"/", 403, "date is malformed"),
    ("the host not covered", [DATE, signed(b"x-amz-date")], b"/", 403, "does not cover the host"),
    ("not a scope", [DATE, signed(b"host", b"20150830/us-east-1")], b"/", 403, "scope"),
    ("not a signature", [DATE, b"authorization: AWS4-HMAC-SHA256 Credential=x"], b"/", 403, "malformed"),
    ("asymmetric", [b"authorization: AWS4-ECDSA-P256-SHA256 Credential=x"], b"/", 501, "SigV4A"),
    (
        "signed piece by piece",
        [DATE, b"x-amz-content-sha256: STREAMING-AWS4-HMAC-SHA256-PAYLOAD", signed(b"host")],
        b"/",
        501,
        "piece by piece",
    ),
    ("two hashes", [DATE, *[b"x-amz-content-sha256: " + ANY] * 2, signed(b"host")], b"/", 403, "two"),
    ("not a hash", [DATE, b"x-amz-content-sha256: abc", signed(b"host")], b"/", 403, "payload hash"),
    ("half of a presigned URL", [], b"/?X-Amz-Credential=a", 403, "exactly once"),
    ("another algorithm", [], b"/?X-Amz-Signature=a&X-Amz-Algorithm=none", 403, "malformed"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("lines", "path", "status", "text"), [row[1:] for row in BAD], ids=[row[0] for row in BAD]
)
def test_what_cannot_be_signed_anew_is_refused(
    lines: list[bytes], path: bytes, status: int, text: str
) -> None:
    with pytest.raises(Unsignable, match=text) as caught:
        sigv4.read(lines, path)
    assert caught.value.status == status


def test_a_signature_over_a_field_that_is_not_sent_on_is_refused() -> None:
    lines = [DATE, signed(b"connection;host")]
    claim = sigv4.read(lines, b"/")
    assert claim is not None
    with pytest.raises(Unsignable, match="`connection`, which is not sent on"):
        sigv4.sign(claim, SUITE, b"GET", b"/", b"a.test", lines, sigv4.EMPTY, -1)


@pytest.mark.parametrize("line", [b"authorization: Bearer x", b"x-amz-date: 20150830T123600Z"])
def test_a_request_that_is_not_signed_has_no_claim(line: bytes) -> None:
    assert sigv4.read([line], b"/?a=b") is None


FITTING = [
    ("bedrock-runtime.us-east-1.amazonaws.com", b"bedrock", b"us-east-1", True),
    ("bedrock-runtime.us-east-1.amazonaws.com", b"bedrock", b"eu-west-1", False),
    ("bedrock-runtime.us-east-1.amazonaws.com", b"s3", b"us-east-1", False),
    ("sts.amazonaws.com", b"sts", b"us-east-1", True),
    ("sts.us-gov-west-1.amazonaws.com", b"sts", b"us-gov-west-1", True),
]


@pytest.mark.parametrize(("host", "service", "region", "fits"), FITTING)
def test_a_scope_is_about_its_host(host: str, service: bytes, region: bytes, fits: bool) -> None:
    claim = sigv4.read([DATE, signed(b"host", b"20150830/%b/%b" % (region, service))], b"/")
    assert claim is not None
    assert sigv4.fits(claim, host) is fits


REQUESTS = [
    (
        "GET",
        "https://sts.us-east-1.amazonaws.com/?Action=GetCallerIdentity&Version=2011-06-15",
        b"",
        "sts",
        "",
    ),
    (
        "POST",
        "https://sts.us-east-1.amazonaws.com/",
        b"Action=GetCallerIdentity&Version=2011-06-15",
        "sts",
        "token",
    ),
    (
        "POST",
        "https://bedrock-runtime.us-east-1.amazonaws.com/model/a.b%3A0/invoke",
        b'{"a":1}',
        "bedrock",
        "",
    ),
    (
        "POST",
        "https://bedrock-runtime.us-east-1.amazonaws.com/model/a%20b/../c//d/",
        b"{}",
        "bedrock",
        "t/o+k==",
    ),
    ("GET", "https://x.amazonaws.com/a?b=%C3%A9&b=&c=d%2Fe&B=1", b"", "service", ""),
]


@pytest.mark.skipif(importlib.util.find_spec("botocore") is None, reason="botocore is not installed")
@pytest.mark.parametrize(
    ("presigned", "method", "url", "body", "service", "token"),
    [(False, *row) for row in REQUESTS] + [(True, *row) for row in REQUESTS if not row[2]],
)
def test_botocore_signs_the_same(
    presigned: bool, method: str, url: str, body: bytes, service: str, token: str
) -> None:
    """A client signs with a placeholder; ours, made anew, is what it would have signed with the real keys."""
    auth: Any = pytest.importorskip("botocore.auth")
    request: Any = pytest.importorskip("botocore.awsrequest").AWSRequest
    credentials: Any = pytest.importorskip("botocore.credentials").Credentials
    signer = auth.SigV4QueryAuth if presigned else auth.SigV4Auth

    def prepared(key: str, secret: str, session: str | None) -> tuple[bytes, list[bytes]]:
        asked = request(method=method, url=url, data=body, headers={"Content-Type": "application/json"})
        signer(credentials(key, secret, session), service, "us-east-1").add_auth(asked)
        path = asked.url.partition("amazonaws.com")[2].encode()
        return path, [f"{name}: {value}".encode() for name, value in asked.headers.items()]

    path, lines = prepared("proxy-managed", "proxy-managed", "proxy-managed" if token else None)
    claim = sigv4.read(lines, path)
    assert claim is not None
    keys = Keys(key_id=b"AKIDREAL", secret=b"real/secret+key", token=token.encode())
    host = url.split("/")[2].encode()
    digest = hashlib.sha256(body).hexdigest().encode()
    where, out = sigv4.sign(claim, keys, method.encode(), path, host, lines, digest, len(body) or -1)
    wanted = _signature_of(*prepared("AKIDREAL", "real/secret+key", token or None))
    theirs = claim.date
    if wanted[0] == theirs:  # unless a second went by between the two
        assert _signature_of(where, out)[1] == wanted[1]


def _signature_of(path: bytes, lines: list[bytes]) -> tuple[bytes, bytes]:
    claim = sigv4.read(lines, path)
    assert claim is not None
    text = (
        path if claim.presigned else next(line for line in lines if line.lower().startswith(b"authorization"))
    )
    return claim.date, text.rpartition(b"Signature=")[2][:64]
