"""curl, wget, openssl, node and Java through interception: what passes, what a refusal looks like, what the log says.

Each test has both halves: an allowed host, whose origin says what reached it, and a blocked one, which hears
nothing. The clients run as they are: no option says that there is a gateway.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator

import pytest
from tests.live.clients import Clients
from tests.live.origins.web import BLOCK

WEB, PLAIN, BLOCKED = "https://web.clients.example", "http://plain.clients.example", "https://paste.ee"
CODE = ("-w", "%{stderr}%{http_code} %{http_version}")
REFUSAL = "Blocked by network policy: domain paste.ee:443"


def contents(size: int) -> bytes:
    """What the origin serves as ``/bytes/<size>``."""
    return (BLOCK * (size // len(BLOCK) + 1))[:size]


@pytest.fixture(autouse=True)
def silence(clients: Clients) -> Iterator[None]:
    """Blocked is blocked: whatever a test did, nobody at paste.ee heard of it."""
    clients.world.forget()
    yield
    seen = clients.world.sightings()
    assert (seen.heard_of("paste.ee"), seen.lost) == (0, 0)


def allowed(what: str, host: str = "web.clients.example", status: int = 200) -> tuple[str, str, str, str]:
    return "ALLOWED", host, str(status), what


def blocked(what: str) -> tuple[str, str, str, str]:
    return "BLOCKED", "paste.ee", "-", what


@pytest.mark.parametrize(("option", "version"), [("--http1.1", "1.1"), ("--http2", "2")])
def test_curl_over_either_http(clients: Clients, option: str, version: str) -> None:
    got = clients.run("curl", "-sS", option, *CODE, f"{WEB}/")
    assert (got.out, got.err) == ("hello from web.clients.example\n", f"200 {version}")
    refused = clients.run("curl", "-sS", option, *CODE, BLOCKED)
    assert refused.out.splitlines()[0] == REFUSAL
    assert (refused.code, refused.err) == (0, f"403 {version}")
    assert clients.log.take(2) == [allowed("GET /"), blocked("GET /")]


def test_curl_fails_where_it_is_told_to(clients: Clients) -> None:
    refused = clients.run("curl", "-sSf", BLOCKED)
    assert (refused.code, refused.out) == (22, "")
    assert refused.err == "curl: (22) The requested URL returned error: 403\n"
    assert clients.log.take(1) == [blocked("GET /")]


def test_curl_that_knows_http2_beforehand_is_refused_without_tls(clients: Clients) -> None:
    got = clients.run("curl", "-sS", *CODE, "--http2-prior-knowledge", f"{WEB}/")
    assert got.err == "200 2", "with TLS it is what was negotiated"
    got = clients.run("curl", "-sS", *CODE, "--http2", f"{PLAIN}/")
    assert got.err == "400 1.1", "an upgrade to HTTP/2 would leave what is inspected"
    got = clients.run("curl", "-sS", "--noproxy", "*", "--http2-prior-knowledge", f"{PLAIN}/")
    assert got.code != 0
    rows = clients.log.take(3)
    assert rows[0] == allowed("GET /")
    assert [row[0] for row in rows[1:]] == ["BLOCKED", "BLOCKED"]


@pytest.mark.parametrize("option", ["--http1.1", "--http2"])
def test_curl_uploads(clients: Clients, option: str) -> None:
    body = contents(3_000_001)
    sized = clients.run("sh", "-c", f"cat >up && curl -sS {option} -T up {WEB}/echo", stdin=body)
    chunked = clients.run("sh", "-c", f"cat up | curl -sS {option} -T - {WEB}/echo")
    for ran, length in ((sized, "3000001"), (chunked, None)):
        seen = json.loads(ran.out)
        assert (seen["method"], seen["length"]) == ("PUT", len(body))
        assert seen["sha256"] == hashlib.sha256(body).hexdigest()
        assert seen["headers"].get("content-length") == length
    assert clients.log.take(2) == [allowed("PUT /echo"), allowed("PUT /echo")]


def test_curl_waits_to_be_asked_for_a_body(clients: Clients) -> None:
    send = ("curl", "-sS", "--http1.1", "-H", "Expect: 100-continue", "-T", "small")
    clients.write("small", "a body\n")
    taken = json.loads(clients.run(*send, f"{WEB}/echo").out)
    assert (taken["length"], taken["headers"]["expect"]) == (7, "100-continue")
    sizes = ("-w", "%{stderr}%{http_code} %{size_upload}")
    assert clients.run(*send, *sizes, f"{WEB}/refuse").err == "413 0", (
        "the origin's word, before a byte of it"
    )
    assert clients.run(*send, *sizes, f"{BLOCKED}/up").err == "403 0"
    assert clients.log.take(3) == [
        allowed("PUT /echo"),
        allowed("PUT /refuse", status=413),
        blocked("PUT /up"),
    ]


@pytest.mark.parametrize("option", ["--http1.1", "--http2"])
def test_curl_sees_why_a_large_upload_is_blocked(clients: Clients, option: str) -> None:
    up = f"head -c 3000000 /dev/zero | curl -sS {option} -H Expect: -T - {BLOCKED}/up"
    ran = clients.run("sh", "-c", up)
    assert ran.out.splitlines()[:1] == [REFUSAL], ran.said
    assert clients.log.take(1) == [blocked("PUT /up")]


def test_curl_downloads(clients: Clients) -> None:
    size = 20_000_000
    whole = clients.run("sh", "-c", f"curl -sS {WEB}/bytes/{size} | sha256sum")
    assert whole.out.split()[0] == hashlib.sha256(contents(size)).hexdigest()
    slow = clients.run("sh", "-c", f"curl -sS --limit-rate 8M {WEB}/bytes/4000000 | sha256sum")
    assert slow.out.split()[0] == hashlib.sha256(contents(4_000_000)).hexdigest()
    part = clients.run("sh", "-c", f"curl -sS -r 1000-1999 {WEB}/bytes/{size} | sha256sum")
    assert part.out.split()[0] == hashlib.sha256(contents(2000)[1000:]).hexdigest()
    head = clients.run("curl", "-sS", "-I", f"{WEB}/bytes/{size}")
    assert f"content-length: {size}" in head.out.lower()
    packed = clients.run("curl", "-sS", "--compressed", f"{WEB}/gzip")
    assert packed.out == "much " * 1000
    path = f"/bytes/{size}"
    assert clients.log.take(5) == [
        allowed(f"GET {path}"),
        allowed("GET /bytes/4000000"),
        allowed(f"GET {path}", status=206),
        allowed(f"HEAD {path}"),
        allowed("GET /gzip"),
    ]


@pytest.mark.parametrize("option", ["--http1.1", "--http2"])
def test_curl_sees_trailers(clients: Clients, option: str) -> None:
    ran = clients.run("curl", "-sS", "-v", option, "--raw", f"{WEB}/trailers")
    checksum = hashlib.sha256(b"a body\n").hexdigest()
    assert f"x-checksum: {checksum}" in ran.out + ran.err
    assert clients.log.take(1) == [allowed("GET /trailers")]


def test_curl_without_the_proxy_variables(clients: Clients) -> None:
    got = clients.run("curl", "-sS", "--noproxy", "*", *CODE, f"{WEB}/")
    refused = clients.run("curl", "-sS", "--noproxy", "*", *CODE, BLOCKED)
    assert (got.err, refused.err) == ("200 2", "403 2")
    assert clients.log.take(2) == [allowed("GET /"), blocked("GET /")]


def test_wget(clients: Clients) -> None:
    if not clients.has("wget"):
        pytest.skip("wget is not installed")
    assert clients.run("wget", "-qO-", f"{WEB}/").out == "hello from web.clients.example\n"
    refused = clients.run("wget", "-nv", "-O", "/dev/null", BLOCKED)
    assert refused.code == 8
    assert refused.err.endswith("ERROR 403: Forbidden.\n")
    assert clients.log.take(2) == [allowed("GET /"), blocked("GET /")]


@pytest.mark.parametrize("proxy", [(), ("-proxy", "gateway.docker.internal:3128")], ids=["direct", "proxy"])
def test_openssl_verifies_what_it_is_shown(clients: Clients, proxy: tuple[str, ...]) -> None:
    def ask(host: str) -> str:
        request = f"GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode()
        client = ("openssl", "s_client", "-quiet", "-verify_return_error", *proxy, "-connect", f"{host}:443")
        ran = clients.run(*client, "-servername", host, stdin=request)
        assert f"CN = {host}" in ran.err, ran.said
        return ran.out

    assert ask("web.clients.example").startswith("HTTP/1.1 200 OK")
    assert ask("paste.ee").startswith("HTTP/1.1 403 Forbidden")
    assert clients.log.take(2) == [allowed("GET /"), blocked("GET /")]


NODE = """
import http2 from 'node:http2'
import https from 'node:https'

const line = async stream => {
  let all = ''
  for await (const piece of stream.setEncoding('utf8')) all += piece
  return all.split('\\n')[0]
}
const fetched = async url => {
  const answer = await fetch(url)
  return [answer.status, (await answer.text()).split('\\n')[0]]
}
const got = async url => {
  const answer = await new Promise((done, fail) => https.get(url, done).on('error', fail))
  return [answer.statusCode, await line(answer)]
}
const streamed = async url => {
  const session = http2.connect(url), stream = session.request({':path': '/', ':method': 'POST'})
  stream.end('a body')
  const head = await new Promise((done, fail) => stream.on('response', done).on('error', fail))
  const first = await line(stream)
  session.close()
  return [head[':status'], first]
}
for (const ask of [fetched, got, streamed])
  for (const url of process.argv.slice(2)) console.log(ask.name, ...await ask(url))
"""


def test_node(clients: Clients) -> None:
    if not clients.has("node"):
        pytest.skip("node is not installed")
    ran = clients.run("node", clients.write("client.mjs", NODE), WEB, BLOCKED)
    assert ran.out.splitlines() == [
        "fetched 200 hello from web.clients.example",
        f"fetched 403 {REFUSAL}",
        "got 200 hello from web.clients.example",
        f"got 403 {REFUSAL}",
        "streamed 200 hello from web.clients.example",
        f"streamed 403 {REFUSAL}",
    ], ran.said
    once = [allowed("GET /"), blocked("GET /")]
    assert clients.log.take(6) == [*once, *once, allowed("POST /"), blocked("POST /")]


JAVA = """
import java.net.*;
import java.net.http.*;

public class Client {
  public static void main(String[] urls) throws Exception {
    HttpClient client = HttpClient.newHttpClient();
    for (String url : urls) {
      HttpRequest request = HttpRequest.newBuilder(URI.create(url)).build();
      HttpResponse<String> answer = client.send(request, HttpResponse.BodyHandlers.ofString());
      System.out.println(answer.statusCode() + " " + answer.version() + " " + answer.body().lines().findFirst().get());
    }
    for (String url : urls)
      System.out.println(((HttpURLConnection) new URL(url).openConnection()).getResponseCode());
  }
}
"""


def test_java(clients: Clients) -> None:
    """A JVM reads no proxy variable and no bundle: transparent interception, and the store at its default place."""
    if not clients.has("javac"):
        pytest.skip("no JDK is installed (apt-get install default-jdk-headless)")
    ran = clients.run("java", clients.write("Client.java", JAVA), f"{WEB}/", f"{BLOCKED}/")
    assert ran.out.splitlines() == [
        "200 HTTP_2 hello from web.clients.example",
        f"403 HTTP_2 {REFUSAL}",
        "200",
        "403",
    ], ran.said
    once = [allowed("GET /"), blocked("GET /")]
    assert clients.log.take(4) == [*once, *once]
