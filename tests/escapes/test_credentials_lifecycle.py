"""CRD-07, 10, 11, 12 and REQ-12: credentials that are not there, signatures, redirects, and where no value may be.

CRD-09 (a refresh token that an agent gets hold of, two refreshes that race) cannot happen inside a sandbox: what mints
and refreshes runs on the host, and only the value that it yields reaches the gateway.
"""

from __future__ import annotations

import hashlib
import traceback
from collections.abc import Iterator

import pytest
from tests.escapes.credential_stage import AWS, KEY, MARK, SECRETS, TOKEN, arm, ask, custom, service
from tests.escapes.escape_stage import Lab, allowed, forward, get, inside, refused, rule, tunnel

from ringfence.gateway.core import sigv4
from ringfence.gateway.core.sigv4 import Keys

HOST = "api.anthropic.com"
STS = "sts.us-east-1.amazonaws.com"
EVIL = "evil.test"


@pytest.fixture(autouse=True)
def armed(lab: Lab) -> Iterator[None]:
    lab.bind(*(rule("allow", name) for name in (HOST, STS, EVIL, "api.test", "github.com")))
    yield
    arm(lab)


# -- CRD-07: where no value may be ------------------------------------------------------------------------------------


def test_crd_07_no_value_in_records_refusals_representations_and_errors(lab: Lab) -> None:
    bindings = (service("anthropic"), service("github", TOKEN), custom(), service("aws", values=AWS))
    arm(lab, *bindings)
    lab.serve(HOST, reply=b"HTTP/1.1 200 OK\r\nContent-Length: x\r\nX: %b\r\n\r\n" % KEY.encode())
    seen = [ask(lab, HOST, get(HOST)), ask(lab, EVIL, get(EVIL, "/", f"X: {MARK}"))]
    said = [str(seen), str(lab.stage.records), repr(bindings), repr(lab.stage.subject)]
    said.append(repr(Keys(key_id=b"a", secret=SECRETS[-1].encode(), token=SECRETS[-1].encode())))
    with pytest.raises(ValueError, match="name") as caught:
        arm(lab, custom("203.0.113.7"))
    said.append("".join(traceback.format_exception(caught.value)))
    text = "\n".join(said)
    assert not [value for value in SECRETS if value in text]


def test_crd_07_a_core_has_no_way_out(lab: Lab) -> None:
    """Values are in the worker's memory alone; it cannot be dumped or looked into (PR_SET_DUMPABLE, see worker.py)."""
    arm(lab, service("anthropic"))
    assert KEY not in str(lab.stage.guest.subject.credentials.lookout)
    assert KEY not in repr(lab.stage.guest.subject.credentials.towards(HOST, 443))


# -- CRD-10: minting failed -------------------------------------------------------------------------------------------


def test_crd_10_without_a_value_nothing_leaves_bare(lab: Lab) -> None:
    lab.serve(HOST)
    arm(lab, service("anthropic", "", unavailable="its command ended with 1"))
    status, _, body = ask(lab, HOST, get(HOST, "/", "X-Api-Key: proxy-managed"))
    assert status == 502
    assert b"the credential `anthropic` is not available: its command ended with 1" in body
    assert (lab.stage.dials, lab.upstream) == ([], b"")
    steps = [(each["step"], each["verdict"], each.get("status")) for each in lab.stage.records]
    assert steps == [("opened", "allowed", None), ("closed", "allowed", 502)]


def test_crd_10_a_custom_secret_is_missed_where_it_is_needed_alone(lab: Lab) -> None:
    lab.serve("api.test")
    arm(lab, custom(values=(), unavailable="locked"))
    assert ask(lab, "api.test", get("api.test", "/", f"Authorization: {MARK}"))[0] == 502
    assert lab.upstream == b""
    assert ask(lab, "api.test", get("api.test"))[0] == 200


# -- CRD-11: signed requests ------------------------------------------------------------------------------------------

FORM = b"Action=GetCallerIdentity&Version=2011-06-15"


def signed(*lines: str, body: bytes = FORM, names: str = "content-type;host;x-amz-date") -> bytes:
    scope = "proxy-managed/20260101/us-east-1/sts/aws4_request"
    authorization = f"AWS4-HMAC-SHA256 Credential={scope}, SignedHeaders={names}, Signature={'0' * 64}"
    fixed = ("Content-Type: application/x-www-form-urlencoded", "X-Amz-Date: 20260101T000000Z")
    length = f"Content-Length: {len(body)}"
    return get(STS, "/", *fixed, f"Authorization: {authorization}", *lines, length, method="POST", body=body)


def test_crd_11_a_signature_is_made_anew_over_what_leaves(lab: Lab) -> None:
    arm(lab, service("aws", values=AWS))
    lab.serve(STS)
    assert ask(lab, STS, signed())[0] == 200
    head, _, body = lab.upstream.partition(b"\r\n\r\n")
    assert body == FORM
    lines = head.split(b"\r\n")[2:]
    claim = sigv4.read(lines, b"/")
    assert claim is not None
    keys = Keys(key_id=AWS[0][1].encode(), secret=AWS[1][1].encode())
    digest = hashlib.sha256(FORM).hexdigest().encode()
    _, again = sigv4.sign(claim, keys, b"POST", b"/", STS.encode(), lines, digest, len(FORM))
    assert again[-1] in lines
    assert b"proxy-managed" not in head


@pytest.mark.parametrize(
    ("payload", "status", "text"),
    [
        (signed("X-Amz-Content-Sha256: STREAMING-AWS4-HMAC-SHA256-PAYLOAD"), 501, b"piece by piece"),
        (signed(names="host;x-gone"), 403, b"not sent on"),
        (signed().replace(b"/sts/", b"/s3/"), 403, b"not this host's"),
        (signed().replace(b"us-east-1/sts", b"eu-west-1/sts"), 403, b"not this host's"),
        (signed().replace(b"AWS4-HMAC-SHA256 ", b"AWS4-ECDSA-P256-SHA256 "), 501, b"SigV4A"),
    ],
)
def test_crd_11_what_cannot_be_signed_anew_is_refused_whole(
    lab: Lab, payload: bytes, status: int, text: bytes
) -> None:
    arm(lab, service("aws", values=AWS))
    lab.serve(STS)
    answer = ask(lab, STS, payload)
    assert answer[0] == status
    assert text in answer[2]
    assert (lab.stage.dials, lab.upstream) == ([], b"")


def test_crd_11_a_declared_payload_is_not_held(lab: Lab) -> None:
    """``UNSIGNED-PAYLOAD`` and a declared hash are signed as they are; the body streams."""
    arm(lab, service("aws", values=AWS))
    lab.serve(STS)
    assert ask(lab, STS, signed("X-Amz-Content-Sha256: UNSIGNED-PAYLOAD", body=b"x" * 200_000))[0] == 200
    assert lab.upstream.endswith(b"x" * 200_000)


# -- CRD-12: the gateway's own doors ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host", ["gateway.docker.internal:3128", "gateway.docker.internal:80", "127.0.0.1:3128"]
)
def test_crd_12_no_door_of_the_product_is_reached_through_it(lab: Lab, host: str) -> None:
    arm(lab, service("anthropic"))
    lab.bind(rule("allow", "**"))
    lab.expect(forward(get(host, f"http://{host}/policy")), refused("guard"))
    name, _, port = host.rpartition(":")
    lab.expect(tunnel(name, get(host), port=int(port)), refused("guard"))


# -- REQ-12: redirects ------------------------------------------------------------------------------------------------


def test_req_12_a_redirect_is_not_followed_and_carries_nothing(lab: Lab) -> None:
    arm(lab, service("anthropic"))
    moved = f"HTTP/1.1 307 Temporary Redirect\r\nLocation: https://{EVIL}/\r\nContent-Length: 0\r\n\r\n"
    lab.serve(HOST, reply=moved.encode())
    lab.serve(EVIL)
    sent = f"GET / HTTP/1.1\r\nHost: {HOST}\r\nx-api-key: {KEY}\r\naccept-encoding: identity\r\n\r\n"
    lab.expect(inside(HOST, get(HOST)), allowed(sent.encode(), 307))
    # The client's next request is one of its own: no value, and a placeholder is misuse.
    lab.expect(inside(EVIL, get(EVIL)), allowed(f"GET / HTTP/1.1\r\nHost: {EVIL}\r\n\r\n".encode()))
    lab.expect(inside(EVIL, get(EVIL, "/", "X-Api-Key: proxy-managed")), refused("guard"))
