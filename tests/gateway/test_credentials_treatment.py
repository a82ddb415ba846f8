"""What becomes of a request for a host with credentials: tables of heads as they come and as they leave."""

from __future__ import annotations

import base64
from collections.abc import Sequence

import pytest
from gateway_dialogue import Dialogue, rule

from ringfence.gateway.core.bound import Withheld
from ringfence.gateway.core.credentials import Credentials
from ringfence.gateway.core.heads2 import render_fields
from ringfence.gateway.core.lookout import Lookout, Search
from ringfence.gateway.core.messages import Request
from ringfence.sandbox.credentials import GITHUB_PLACEHOLDER, SERVICES, Binding, Form, Target

KEY = "sk-ant-REAL-0123456789"
TOKEN = "ghp_REAL0123456789abcdef"
MARK = "sbx-cs-4f9a7c21d0"
VALUE = "v/al+ue&0123456789"
GITHUB = GITHUB_PLACEHOLDER.encode()


def service(name: str, value: str = KEY, **more: object) -> Binding:
    row = SERVICES[name]
    values = (("value", value),) if value else ()
    placeholders = tuple(dict.fromkeys(each for _, each in row.variables))
    given = {"values": values, "placeholders": placeholders, **more}
    return Binding(name=name, targets=row.targets, **given)  # type: ignore[arg-type]


def custom(*hosts: str, header: str = "authorization", value: str = VALUE, **more: object) -> Binding:
    target = Target(hosts=hosts or ("api.test",), form=Form.REPLACE, header=header)
    given = {"values": (("value", value),) if value else (), "placeholders": (MARK,), **more}
    return Binding(name="MY_KEY", targets=(target,), **given)  # type: ignore[arg-type]


def basic(text: str) -> bytes:
    return b"Basic " + base64.b64encode(text.encode())


def dressed(
    bindings: Sequence[Binding], host: str, *lines: bytes, path: bytes = b"/"
) -> tuple[bytes, list[bytes]]:
    """The path and the lines that leave, without what every one of these requests gets."""
    request = Request(b"GET", path)
    request.lines = list(lines)
    credentials = Credentials(bindings)
    bound = credentials.towards(host, 443)
    assert bound is not None
    out = bound.dress(request)
    credentials.screen(out.path, out.lines)
    assert request.lines == list(lines), "the client's own head is shared by the requests after it"
    assert out.lines[-1] == b"accept-encoding: identity"
    return out.path, out.lines[:-1]


# -- which host has which ---------------------------------------------------------------------------------------------

PLACES = [
    ("api.anthropic.com", 443, "anthropic"),
    ("api.anthropic.com", 8443, ""),
    ("x.api.anthropic.com", 443, ""),
    ("api.anthropic.com.evil.test", 443, ""),
    ("github.com", 443, "github"),
    ("sub.wild.test", 8443, "MY_KEY"),
    ("sub.wild.test", 443, ""),
    ("wild.test", 8443, ""),
    ("sts.eu-west-1.amazonaws.com", 443, "aws"),
]


@pytest.mark.parametrize(("host", "port", "name"), PLACES)
def test_a_target_is_a_name_and_a_port(host: str, port: int, name: str) -> None:
    aws = service("aws", values=AWS)
    credentials = Credentials([service("anthropic"), service("github"), custom("*.wild.test:8443"), aws])
    bound = credentials.towards(host, port)
    assert (bound.name if bound else "") == name


@pytest.mark.parametrize(
    "host", ["203.0.113.7", "**", "0.0.0.0/0", "localhost:80", "[2001:db8::1]:443", "a b"]
)
def test_a_target_that_is_no_name_is_refused(host: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        Credentials([custom(host)])


# -- services: delete and set one -------------------------------------------------------------------------------------

SET = b"x-api-key: " + KEY.encode()
SERVICE: list[tuple[str, str, str, list[bytes], list[bytes]]] = [
    ("set, though nothing was sent", "anthropic", "api.anthropic.com", [], [SET]),
    ("the placeholder is overwritten", "anthropic", "api.anthropic.com", [b"X-Api-Key: proxy-managed"], [SET]),
    ("another key too", "anthropic", "api.anthropic.com", [b"x-api-key: sk-ant-mine"], [SET]),
    ("all of them, however they are spelt", "anthropic", "api.anthropic.com",
     [b"X-API-KEY: a", b"x-api-key: b", b"X_Api-Key: c", b"Accept: */*"], [b"Accept: */*", SET]),
    ("the placeholder in another credential field", "anthropic", "api.anthropic.com",
     [b"Authorization: Bearer proxy-managed", b"x-goog-api-key: proxy-managed"], [SET]),
    ("also in Basic", "anthropic", "api.anthropic.com", [b"Authorization: " + basic("u:proxy-managed")], [SET]),
    ("another credential stays where it is not exclusive", "anthropic", "api.anthropic.com",
     [b"Authorization: Bearer mine"], [b"Authorization: Bearer mine", SET]),
    ("an answer that can be read", "anthropic", "api.anthropic.com",
     [b"Accept-Encoding: br", b"Range: bytes=0-3", b"If-Range: x", b"Sec-WebSocket-Extensions: permessage-deflate"],
     [SET]),
    ("bearer", "openai", "api.openai.com", [b"Authorization: Bearer proxy-managed"],
     [b"authorization: Bearer " + KEY.encode()]),
    ("bearer for GitHub's API", "github", "api.github.com", [b"Authorization: token " + GITHUB],
     [b"authorization: Bearer " + KEY.encode()]),
    ("Basic for git", "github", "github.com", [b"Authorization: " + basic("me:" + GITHUB_PLACEHOLDER)],
     [b"authorization: " + basic("x-access-token:" + KEY)]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "host", "lines", "leaves"), [row[1:] for row in SERVICE], ids=[row[0] for row in SERVICE]
)
def test_a_services_header_is_deleted_and_set_once(
    name: str, host: str, lines: list[bytes], leaves: list[bytes]
) -> None:
    assert dressed([service(name)], host, *lines) == (b"/", leaves)


@pytest.mark.parametrize(
    ("path", "leaves"),
    [
        (b"/v1beta/models?key=proxy-managed&alt=sse", b"/v1beta/models?alt=sse"),
        (b"/v1beta/models?key=proxy%2Dmanaged", b"/v1beta/models"),
        (b"/v1beta/models?key=mine", b"/v1beta/models?key=mine"),
        (b"/v1beta/models?q=proxy-managed", b"/v1beta/models?q=proxy-managed"),
        (b"/v1beta/models?", b"/v1beta/models?"),
    ],
)
def test_the_placeholder_leaves_the_query(path: bytes, leaves: bytes) -> None:
    assert dressed([service("google")], "generativelanguage.googleapis.com", path=path)[0] == leaves


# -- custom secrets: replace where it stands --------------------------------------------------------------------------

REAL = VALUE.encode()
REPLACED: list[tuple[str, str, list[bytes], list[bytes]]] = [
    ("alone", "x-key", [b"X-Key: " + MARK.encode()], [b"X-Key: " + REAL]),
    ("behind a scheme", "authorization", [b"Authorization: Bearer " + MARK.encode()],
     [b"Authorization: Bearer " + REAL]),
    ("inside of Basic", "authorization", [b"authorization: " + basic(f"me:{MARK}")],
     [b"authorization: " + basic(f"me:{VALUE}")]),
    ("nothing to replace", "x-key", [b"X-Key: mine", b"Accept: */*"], [b"X-Key: mine", b"Accept: */*"]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("header", "lines", "leaves"), [row[1:] for row in REPLACED], ids=[row[0] for row in REPLACED]
)
def test_a_placeholder_gives_way_where_it_stands(
    header: str, lines: list[bytes], leaves: list[bytes]
) -> None:
    assert dressed([custom(header=header)], "api.test", *lines) == (b"/", leaves)


def test_the_query_by_explicit_choice() -> None:
    path = b"/search?token=" + MARK.encode() + b"&q=1"
    assert (
        dressed([custom(in_query=True)], "api.test", path=path)[0]
        == b"/search?token=v%2Fal%2Bue%260123456789&q=1"
    )
    with pytest.raises(Withheld, match="secret misuse"):
        dressed([custom()], "api.test", path=path)


# -- refused ----------------------------------------------------------------------------------------------------------

AWS = (("access_key_id", "AKID"), ("secret_access_key", "s"))
ANTHROPIC = "api.anthropic.com"
BEDROCK = "bedrock-runtime.us-east-1.amazonaws.com"
WITHHELD: list[tuple[str, Binding, str, list[bytes], bytes, int, str]] = [
    ("no value", service("anthropic", "", unavailable="its command failed"), ANTHROPIC, [], b"/", 502,
     "`anthropic` is not available: its command failed"),
    ("no value and no reason", service("anthropic", ""), ANTHROPIC, [], b"/", 502, "no value"),
    ("a value that would end the line", service("anthropic", "a\r\nX: y"), ANTHROPIC, [], b"/", 502, "no value"),
    ("no value to replace with", custom(value="", unavailable="x"), "api.test",
     [b"Authorization: " + MARK.encode()], b"/", 502, "`MY_KEY` is not available"),
    ("two fields, one of them a credential", custom(), "api.test",
     [b"Authorization: " + MARK.encode(), b"authorization: mine"], b"/", 0, "two `authorization` fields"),
    ("the placeholder in another field", custom(), "api.test", [b"User-Agent: " + MARK.encode()], b"/", 0, "MY_KEY"),
    ("in the path", service("github"), "api.github.com", [], b"/" + GITHUB, 0, "secret misuse"),
    ("percent-encoded", service("github"), "api.github.com", [], b"/?a=%67" + GITHUB[1:], 0, "secret misuse"),
    ("percent-encoded twice", service("github"), "api.github.com", [], b"/?a=%2567" + GITHUB[1:], 0, "misuse"),
    ("base64", service("github"), "api.github.com", [b"X: " + base64.b64encode(b"ab" + GITHUB)], b"/", 0, "misuse"),
    ("base64 for URLs", service("github"), "api.github.com", [b"X: " + base64.urlsafe_b64encode(b"{" + GITHUB)],
     b"/", 0, "misuse"),
    ("exclusive: another key", service("anthropic", exclusive=True), ANTHROPIC, [b"X-Api-Key: mine"], b"/", 0,
     "`x-api-key` holds a credential that is not `anthropic`"),
    ("exclusive: another field", service("anthropic", exclusive=True), ANTHROPIC, [b"Authorization: Bearer mine"],
     b"/", 0, "`authorization` holds"),
    ("exclusive: an underscore", service("anthropic", exclusive=True), ANTHROPIC, [b"api_key: mine"], b"/", 0,
     "`api-key` holds"),
    ("exclusive: a cookie", service("anthropic", exclusive=True), "claude.ai", [b"Cookie: __cf_bm=1; sessionKey=x"],
     b"/", 0, "a cookie"),
    ("exclusive: the query", service("google", exclusive=True), "generativelanguage.googleapis.com", [],
     b"/v1beta/models?key=mine", 0, "parameter `key`"),
    ("exclusive: the query, encoded", service("google", exclusive=True), "generativelanguage.googleapis.com", [],
     b"/v1beta/models?%6bey=mine", 0, "parameter `key`"),
    ("exclusive: a subprotocol", service("openai", exclusive=True), "api.openai.com",
     [b"Sec-WebSocket-Protocol: realtime, openai-insecure-api-key.sk-mine"], b"/", 0, "subprotocol"),
    ("exclusive: beside a replaced one", custom(exclusive=True), "api.test",
     [b"Authorization: " + MARK.encode(), b"X-Api-Key: mine"], b"/", 0, "`x-api-key`"),
    ("exclusive: an AWS key", service("aws", exclusive=True, values=AWS), BEDROCK,
     [b"Authorization: AWS4-HMAC-SHA256 Credential=AKIAMINE/20260101/us-east-1/bedrock/aws4_request"], b"/", 0,
     "`authorization` holds"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("binding", "host", "lines", "path", "status", "text"),
    [row[1:] for row in WITHHELD],
    ids=[row[0] for row in WITHHELD],
)
def test_what_is_withheld(
    binding: Binding, host: str, lines: list[bytes], path: bytes, status: int, text: str
) -> None:
    with pytest.raises(Withheld) as caught:
        dressed([binding], host, *lines, path=path)
    assert text in caught.value.text
    assert caught.value.status == status
    assert KEY not in caught.value.text


def test_a_content_delivery_networks_cookies_pass() -> None:
    line = b"Cookie: __cf_bm=1; _cfuvid=2"
    assert line in dressed([service("anthropic", exclusive=True)], ANTHROPIC, line)[1]


def test_two_services_that_claim_one_header() -> None:
    other = Binding(
        name="other",
        targets=(Target(hosts=(ANTHROPIC,), form=Form.PLAIN, header="x-api-key"),),
        values=(("value", "another-value"),),
    )
    with pytest.raises(Withheld, match="claim the header `x-api-key`"):
        dressed([service("anthropic"), other], ANTHROPIC)


def test_no_table_of_http_2_remembers_a_credential() -> None:
    """RFC 7541 section 7.1.3: a field that is never indexed cannot be guessed from the size of another."""
    request = Request(b"GET", b"/")
    request.lines = [b"X-Key: " + MARK.encode(), b"Accept: */*"]
    bound = Credentials([custom(header="x-key")]).towards("api.test", 443)
    assert bound is not None
    fields = render_fields(bound.dress(request), b"api.test")
    sealed = {field[0]: getattr(field, "indexable", True) for field in fields}
    assert (sealed[b"x-key"], sealed[b"accept"]) == (False, True)


# -- where the generic placeholder is misuse, and where it is a word --------------------------------------------------

GENERIC = [
    (b"x-api-key: proxy-managed", "anthropic"),
    (b"Authorization: Bearer proxy-managed", "openai"),
    (b"Authorization: " + basic("proxy-managed:"), "openai"),
    (b"api-key: proxy-managed", "anthropic, openai"),
    (b"User-Agent: proxy-managed", ""),
    (b"X-Api-Key: mine", ""),
]


@pytest.mark.parametrize(("line", "names"), GENERIC)
def test_proxy_managed_is_misuse_in_a_credential_field(line: bytes, names: str) -> None:
    credentials = Credentials([service("anthropic"), service("openai")])
    if not names:
        credentials.screen(b"/proxy-managed", [line])
        return
    with pytest.raises(Withheld, match=f"`{names}`"):
        credentials.screen(b"/", [line])


# -- bodies -----------------------------------------------------------------------------------------------------------

SPELLINGS = [
    GITHUB,
    base64.b64encode(GITHUB),
    base64.b64encode(b"x" + GITHUB + b"yz"),
    b"".join(b"%%%02x" % byte for byte in GITHUB),
    b"".join(b"\\u00%02X" % byte for byte in GITHUB),
]


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_placeholder_is_found_in_a_body_however_it_is_split(spelling: bytes) -> None:
    lookout = Lookout({GITHUB_PLACEHOLDER: "github"})
    text = b'{"a": "' + b"x" * 50 + spelling + b'"}'
    end = text.index(spelling) + len(spelling)
    for size in (1, 3, 50, 1000):
        search = Search(lookout)
        sent = 0
        for at in range(0, len(text), size):
            if search.find(text[at : at + size]):
                break
            sent += len(text[at : at + size])
        else:
            pytest.fail("it was not found")
        # What base64 shares with its neighbours is not waited for.
        assert sent < end


def test_only_the_beginning_of_a_long_body_is_searched() -> None:
    search = Search(Lookout({GITHUB_PLACEHOLDER: "github"}))
    for _ in range(17):
        assert not search.find(b"x" * 65_536)
    assert not search.find(GITHUB)


# -- through a conversation -------------------------------------------------------------------------------------------

HEAD = b"POST /x HTTP/1.1\r\nHost: api.test\r\nContent-Type: %b\r\nContent-Length: %d\r\n\r\n%b"


def talking(
    *bindings: Binding, host: str = "api.test", protocol: str = "http/1.1", **limits: float
) -> Dialogue:
    talk = Dialogue(rule("allow", host), **limits)  # type: ignore[arg-type]
    talk.subject.arm(bindings)
    return talk.secure(f"{host}:443", protocol=protocol)


BODIES = [
    (b"application/json", f'{{"k":"{MARK}"}}'.encode(), b'{"k":"v/al+ue&0123456789"}'),
    (b"application/x-www-form-urlencoded", f"k={MARK}&a=b".encode(), b"k=v%2Fal%2Bue%260123456789&a=b"),
    (b"text/plain", MARK.encode() * 2, REAL * 2),
    (b"text/plain", b"nothing", b"nothing"),
]


@pytest.mark.parametrize(("kind", "body", "leaves"), BODIES)
def test_a_body_by_explicit_choice(kind: bytes, body: bytes, leaves: bytes) -> None:
    talk = talking(custom(in_body=True))
    request = HEAD % (kind, len(body), body)
    talk.receive(request[:-3])
    assert talk.dialled == 0, "nothing leaves before the body is whole"
    talk.receive(request[-3:])
    sent = talk.upstreams[0].took()
    assert sent.endswith(b"Content-Length: %d\r\n\r\n%b" % (len(leaves), leaves))


def test_a_client_that_waits_for_100_is_told_to_go_on() -> None:
    talk = talking(custom(in_body=True))
    talk.receive(b"POST / HTTP/1.1\r\nHost: api.test\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n")
    assert talk.took() == b"HTTP/1.1 100 Continue\r\n\r\n"
    talk.receive(b"hi")
    assert b"Expect" not in talk.upstreams[0].took()


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"POST / HTTP/1.1\r\nHost: api.test\r\nContent-Length: 1001\r\n\r\n", b"413"),
        (
            b"POST / HTTP/1.1\r\nHost: api.test\r\nTransfer-Encoding: chunked\r\n\r\n3e9\r\n" + b"x" * 1001,
            b"413",
        ),
        (b"POST / HTTP/1.1\r\nHost: api.test\r\nContent-Encoding: gzip\r\nContent-Length: 1\r\n\r\n", b"415"),
    ],
)
def test_a_body_that_cannot_be_replaced_in_is_refused(head: bytes, status: bytes) -> None:
    talk = talking(custom(in_body=True), replaced_bytes=1000)
    talk.receive(head)
    assert talk.took().split()[1] == status
    assert talk.dialled == 0
    assert talk.audit("step", "verdict", "ended")[-1] == ("closed", "allowed", "failed")


def test_held_bodies_share_one_room_and_give_it_back() -> None:
    talk = talking(custom(in_body=True), held_bytes=1000)
    talk.receive(b"POST / HTTP/1.1\r\nHost: api.test\r\nContent-Length: 700\r\n\r\n" + b"x" * 600)
    first = talk.phase
    assert talk.subject.room.left == 400
    talk.secure("api.test:443").receive(
        b"POST / HTTP/1.1\r\nHost: api.test\r\nContent-Length: 700\r\n\r\n" + b"x" * 600
    )
    assert talk.took().split()[1] == b"503"
    first.lost(talk.now)
    assert talk.subject.room.left == 1000


def test_credentials_that_change_are_seen_by_the_next_request() -> None:
    talk = talking(service("anthropic"), host=ANTHROPIC)
    get = b"GET / HTTP/1.1\r\nHost: api.anthropic.com\r\n\r\n"
    ok = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
    talk.receive(get).answer(ok)
    assert KEY.encode() in talk.upstreams[-1].took()
    talk.subject.arm([service("anthropic", "sk-ant-ANOTHER-987654")])
    talk.receive(get).answer(ok)
    assert b"sk-ant-ANOTHER-987654" in talk.upstreams[-1].took()
    talk.subject.arm([])
    talk.receive(get).answer(ok)
    assert b"x-api-key" not in talk.upstreams[-1].took()


def test_a_sandbox_without_bindings_has_no_plan() -> None:
    talk = talking(host="pypi.org")
    talk.receive(b"GET / HTTP/1.1\r\nHost: pypi.org\r\n\r\n")
    exchange = talk.asked[0][0]
    assert exchange.flow.plan is None
    assert exchange.treatment is None  # type: ignore[union-attr]
