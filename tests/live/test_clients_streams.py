"""What stays open: event streams, WebSockets, gRPC, and the Python libraries that speak them.

That nothing is buffered is shown by structure, not by time: the far side goes on only when the near side has said,
through another request or on the same stream, that it has what came first.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from tests.live.clients import Clients, git_daemon, git_over_ssh, grpc_service

from ringfence.demo.installation import Ran

WEB = "https://web.clients.example"


@pytest.fixture(scope="module")
def libraries(clients: Clients, python_libraries: Path) -> Iterator[Path]:
    """Python's HTTP libraries, also where the sandbox sees them; and the services that are built with them."""
    clients.lab.host("cp", "-r", str(python_libraries), str(clients.lab.scratch / "site"))
    with ExitStack() as services:
        services.enter_context(git_over_ssh(clients.world, python_libraries))
        services.enter_context(grpc_service(clients.world, python_libraries))
        yield python_libraries


def python(clients: Clients, program: str, *arguments: str) -> Ran:
    path = clients.write("program.py", program)
    site = f"PYTHONPATH={clients.lab.scratch / 'site'}"
    ran = clients.run("env", site, "python3", path, *arguments)
    assert ran.code == 0, ran.said
    return ran


def allowed(what: str, host: str = "web.clients.example", status: int = 200) -> tuple[str, str, str, str]:
    return "ALLOWED", host, str(status), what


def blocked(what: str) -> tuple[str, str, str, str]:
    return "BLOCKED", "paste.ee", "-", what


# -- event streams --------------------------------------------------------------------------------------------

EVENTS = """
curl -sSN $1 $2/events/$3 | {
  read first; echo "$first"
  curl -sS -X POST $2/confirm/$3
  cat
}
"""


@pytest.mark.parametrize("option", ["--http1.1", "--http2"])
def test_an_event_is_there_before_the_next_is_sent(clients: Clients, option: str) -> None:
    ran = clients.run("sh", "-c", EVENTS, "events", option, WEB, f"curl{option}")
    assert ran.out.split("\n") == ["data: one", "thank you", "", "data: two", "", ""], ran.said
    assert clients.log.take(2) == [
        allowed(f"POST /confirm/curl{option}"),
        allowed(f"GET /events/curl{option}"),
    ]


def test_an_event_stream_that_is_blocked_says_so(clients: Clients) -> None:
    ran = clients.run("curl", "-sSN", "-H", "Accept: text/event-stream", "https://paste.ee/events/x")
    assert ran.out.splitlines()[0] == "Blocked by network policy: domain paste.ee:443"
    assert clients.log.take(1) == [blocked("GET /events/x")]


# -- Python ---------------------------------------------------------------------------------------------------

REQUESTS = """
import requests

print(requests.post("https://web.clients.example/echo", data=b"x" * 300_000).json()["length"])
with requests.get("https://web.clients.example/events/requests", stream=True) as answer:
    lines = answer.iter_lines()
    print(next(lines))
    print(requests.post("https://web.clients.example/confirm/requests").status_code)
    print([line for line in lines if line])
answer = requests.post("https://paste.ee/", data=b"x" * 300_000)
print(answer.status_code, answer.text.splitlines()[0])
print(requests.get("https://paste.ee/", headers={"Accept": "application/json"}).json()["status"])
"""


def test_python_requests(clients: Clients, libraries: Path) -> None:
    assert python(clients, REQUESTS).out.splitlines() == [
        "300000",
        "b'data: one'",
        "200",
        "[b'data: two']",
        "403 Blocked by network policy: domain paste.ee:443",
        "403",
    ]
    assert clients.log.take(5) == [
        allowed("POST /echo"),
        allowed("POST /confirm/requests"),
        allowed("GET /events/requests"),
        blocked("POST /"),
        blocked("GET /"),
    ]


HTTPX = """
import httpx

with httpx.Client(http2=True) as client:
    answer = client.post("https://web.clients.example/echo", content=b"x" * 300_000)
    print(answer.http_version, answer.status_code, answer.json()["length"])
    answer = client.post("https://paste.ee/", content=b"x" * 300_000)
    print(answer.http_version, answer.status_code, answer.text.splitlines()[0])
"""


def test_python_httpx_over_http2(clients: Clients, libraries: Path) -> None:
    assert python(clients, HTTPX).out.splitlines() == [
        "HTTP/2 200 300000",
        "HTTP/2 403 Blocked by network policy: domain paste.ee:443",
    ]
    assert clients.log.take(2) == [allowed("POST /echo"), blocked("POST /")]


AIOHTTP = """
import asyncio, sys
import aiohttp

async def main(from_environment):
    async with aiohttp.ClientSession(trust_env=from_environment) as session:
        async with session.get("https://web.clients.example/") as answer:
            print(answer.status, (await answer.text()).strip())
        async with session.get("https://paste.ee/") as answer:
            print(answer.status)
        async with session.ws_connect("https://web.clients.example/ws") as socket:
            await socket.send_str("hello")
            print((await socket.receive()).data)
            await socket.send_bytes(b"x" * 100_000)
            print(len((await socket.receive()).data))
        try:
            await session.ws_connect("https://paste.ee/ws")
        except aiohttp.WSServerHandshakeError as refused:
            print(refused.status)

asyncio.run(main(sys.argv[1] == "proxied"))
"""


@pytest.mark.parametrize("way", ["proxied", "direct"])
def test_python_aiohttp(clients: Clients, libraries: Path, way: str) -> None:
    lines = ["200 hello from web.clients.example", "403", "hello", "100000", "403"]
    assert python(clients, AIOHTTP, way).out.splitlines() == lines
    assert clients.log.take(4) == [
        allowed("GET /"),
        blocked("GET /"),
        allowed("GET /ws", status=101),
        blocked("GET /ws"),
    ]


# -- WebSocket ------------------------------------------------------------------------------------------------

WEBSOCKETS = """
import asyncio
import websockets

async def main():
    for url in ("wss://web.clients.example/ws", "ws://plain.clients.example/ws"):
        async with websockets.connect(url) as socket:
            for message in ("hello", b"y" * 70_000):
                await socket.send(message)
                print(await socket.recv() == message)
            await (await socket.ping())
    try:
        await websockets.connect("wss://paste.ee/ws")
    except websockets.InvalidStatus as refused:
        print(refused.response.status_code, refused.response.body.decode().splitlines()[0])

asyncio.run(main())
"""


def test_websockets(clients: Clients, libraries: Path) -> None:
    assert python(clients, WEBSOCKETS).out.splitlines() == [
        *["True"] * 4,
        "403 Blocked by network policy: domain paste.ee:443",
    ]
    assert clients.log.take(3) == [
        allowed("GET /ws", status=101),
        allowed("GET /ws", "plain.clients.example", 101),
        blocked("GET /ws"),
    ]


# -- gRPC -----------------------------------------------------------------------------------------------------

GRPC = """
import queue
import grpc

roots = open("/etc/ssl/certs/ca-certificates.crt", "rb").read()

def calls(target):
    channel = grpc.secure_channel(target, grpc.ssl_channel_credentials(roots))
    return {name: kind("/clients.Echo/" + name) for name, kind in (
        ("Unary", channel.unary_unary), ("Many", channel.unary_stream),
        ("Collect", channel.stream_unary), ("Talk", channel.stream_stream),
    )}

def failed(call, *arguments):
    try:
        call(*arguments, timeout=20)
    except grpc.RpcError as error:
        return f"{error.code().name} {error.details()}"

echo = calls("grpc.clients.example:443")
answer, call = echo["Unary"].with_call(b"hello", timeout=20)
print(answer, dict(call.trailing_metadata())["x-kind"])
print(failed(echo["Unary"], b"fail"))
print([int(each) for each in echo["Many"](b"5", timeout=20)])
print(echo["Collect"](iter([b"a", b"b", b"c"]), timeout=20))

said = queue.SimpleQueue()
answers = echo["Talk"](iter(said.get, None), timeout=20)
for word in (b"one", b"two"):
    said.put(word)
    print(next(answers))
said.put(None)
print(list(answers))
print(failed(calls("paste.ee:443")["Unary"], b"hello"))
"""


def test_grpc_streams_of_all_four_kinds(clients: Clients, libraries: Path) -> None:
    """In ``Talk`` the second word is said only after the first was answered."""
    assert python(clients, GRPC).out.splitlines() == [
        "b'HELLO' unary",
        "FAILED_PRECONDITION as you wished",
        "[0, 1, 2, 3, 4]",
        "b'a+b+c'",
        "b'ONE'",
        "b'TWO'",
        "[]",
        "PERMISSION_DENIED Received http2 header with status: 403",
    ]
    calls = ("Unary", "Unary", "Many", "Collect", "Talk")
    assert clients.log.take(6) == [
        *(allowed(f"POST /clients.Echo/{call}", "grpc.clients.example") for call in calls),
        blocked("POST /clients.Echo/Unary"),
    ]


# -- neither TLS nor HTTP -------------------------------------------------------------------------------------


def test_git_over_ssh(clients: Clients, libraries: Path) -> None:
    if not clients.has("ssh"):
        pytest.skip("ssh is not installed (apt-get install openssh-client)")
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    key = clients.lab.host("cat", f"{clients.world.root}/client_key").out
    clients.lab.write(clients.lab.scratch / "key", key, mode="600")
    ssh = "ssh -i key -o StrictHostKeyChecking=accept-new -o UserKnownHostsFile=known -o ControlMaster=no"
    git = ("env", f"GIT_SSH_COMMAND={ssh}", "git")
    cloned = clients.run(*git, "clone", "-q", "git@raw.clients.example:team/project.git", "over-ssh")
    assert cloned.code == 0, cloned.said
    assert clients.run("git", "-C", "over-ssh", "log", "--format=%s").out.endswith("first\n")
    known = clients.run("cat", "known").out
    theirs = clients.lab.host("cat", f"{clients.world.root}/host_key.pub").out
    assert theirs.split()[1] in known, "the key is the server's own: nobody stands between"
    refused = clients.run(*git, "clone", "-q", "git@paste.ee:team/project.git", "nothing")
    assert refused.code == 128
    assert "Connection reset by" in refused.err
    assert clients.log.take(2) == [
        ("ALLOWED", "raw.clients.example:22", "-", "tcp"),
        ("BLOCKED", "paste.ee:22", "-", "tcp"),
    ]


def test_git_over_its_own_protocol(clients: Clients) -> None:
    if shutil.which("git") is None or shutil.which("nc") is None:
        pytest.skip("git or nc is not installed")
    with git_daemon(clients.world):
        cloned = clients.run("git", "clone", "-q", "git://raw.clients.example/team/project.git", "over-git")
    assert cloned.code == 0, cloned.said
    refused = clients.run("git", "clone", "git://paste.ee/team/project.git", "nothing")
    assert refused.code == 128
    assert "Connection reset by peer" in refused.err
    assert clients.log.take(2) == [
        ("ALLOWED", "raw.clients.example:9418", "-", "tcp"),
        ("BLOCKED", "paste.ee:9418", "-", "tcp"),
    ]


def test_a_conversation_in_both_directions_at_once(clients: Clients) -> None:
    """A request whose body goes on while its answer comes: each half waits for the other's last piece."""
    talk = """
import http2 from 'node:http2'
const session = http2.connect('https://web.clients.example')
const stream = session.request({':path': '/talk', ':method': 'POST'}).setEncoding('utf8')
const words = ['two', 'three']
stream.write('one')
stream.on('data', answer => {
  console.log(answer)
  words.length ? stream.write(words.shift()) : stream.end()
})
stream.on('end', () => session.close())
"""
    if not clients.has("node"):
        pytest.skip("node is not installed")
    ran = clients.run("node", clients.write("talk.mjs", talk))
    assert ran.out.split() == ["ONE", "TWO", "THREE"], ran.said
    assert clients.log.take(1) == [allowed("POST /talk")]
