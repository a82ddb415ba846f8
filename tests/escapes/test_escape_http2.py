"""TLS-08 and TLS-09 inside HTTP/2: every stream is decided by its own head, and by the name of its connection."""

from __future__ import annotations

import asyncio

import h2.config
import h2.connection
import h2.events
import pytest
from tests.escapes.escape_stage import PATIENCE, Lab, allowed, get, inside, origin_context, rule

HEARD = b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n"


@pytest.fixture
def world(lab: Lab) -> Lab:
    """``a.test`` and ``other.test`` are allowed, behind one address; ``b.test`` is there and not allowed."""
    lab.bind(rule("allow", "a.test", "other.test"))
    for name in ("a.test", "other.test", "b.test"):
        lab.serve(name)
    return lab


def head(**changes: str | None) -> list[tuple[str, str]]:
    fields = {":method": "GET", ":scheme": "https", ":authority": "a.test", ":path": "/"}
    for name, value in changes.items():
        fields[{"host": "host"}.get(name, f":{name}")] = value  # type: ignore[assignment]
    return [(name, value) for name, value in fields.items() if value is not None]


async def spoken(lab: Lab, heads: list[list[tuple[str, str]]]) -> list[str]:
    """Ask on one connection, one stream after the other; what each was answered, or ``closed``."""
    config = h2.config.H2Configuration(
        header_encoding="utf-8", validate_outbound_headers=False, normalize_outbound_headers=False
    )
    talk = h2.connection.H2Connection(config)
    client = await lab.stage.secure("a.test", protocols=("h2",))
    talk.initiate_connection()
    seen: list[str] = []
    async with asyncio.timeout(PATIENCE):
        for fields in heads:
            number = talk.get_next_available_stream_id()
            talk.send_headers(number, fields, end_stream=True)
            client.send(talk.data_to_send())
            answer = ""
            while not answer:
                try:
                    data = await client.reader.read(65_536)
                except ConnectionError:
                    data = b""
                for event in talk.receive_data(data):
                    if isinstance(event, h2.events.ResponseReceived):
                        answer = dict(event.headers)[":status"]
                    elif isinstance(event, h2.events.StreamReset):
                        answer = "reset"
                    elif isinstance(event, h2.events.ConnectionTerminated):
                        answer = "closed"
                answer = answer or ("" if data else "closed")
                client.send(talk.data_to_send())
            seen.append(answer)
            if answer == "closed":
                break
    client.close()
    await lab._quiet()
    return seen


COALESCED: list[tuple[str, list[tuple[str, str]], str]] = [
    ("another allowed authority", head(authority="other.test"), "421"),
    ("a blocked authority", head(authority="b.test"), "421"),
    ("another port", head(authority="a.test:8443"), "421"),
    ("userinfo", head(authority="b.test@a.test"), "400"),
    ("a Host that differs", head(host="b.test"), "400"),
    ("the scheme of another connection", head(scheme="http"), "421"),
    ("a scheme that is none", head(scheme="https://b.test/?"), "421"),
    ("a path that is none", head(path="b.test/"), "400"),
    ("a path with a space", head(path="/ HTTP/1.1"), "400"),
    ("a path with a line break", head(path="/\r\nHost: b.test"), "400"),
    ("an absolute path", head(path="https://b.test/"), "400"),
    ("a method with a space", head(method="GET / HTTP/1.1"), "501"),
    ("a method in lower case", head(method="get"), "501"),
    ("CONNECT", [(":method", "CONNECT"), (":authority", "b.test:443")], "405"),
]


@pytest.mark.parametrize(
    ("fields", "status"), [each[1:] for each in COALESCED], ids=[each[0] for each in COALESCED]
)
def test_tls_09_every_stream_is_decided_by_its_own_head(
    world: Lab, fields: list[tuple[str, str]], status: str
) -> None:
    world.forget()
    seen = world.run(spoken(world, [head(), fields, head()]))
    assert seen in (["200", status, "200"], ["200", "closed"]), seen
    opened = [each for each in world.stage.records if each["step"] == "opened"]
    assert [each["verdict"] for each in opened][:2] == ["allowed", "blocked"]
    assert len(opened) == len(seen)
    assert world.upstream == HEARD * seen.count("200")
    world.sentinel()


MISSING: list[tuple[str, list[tuple[str, str]]]] = [
    ("no authority", head(authority=None)),
    ("no path", head(path=None)),
    ("no method", head(method=None)),
    ("two authorities", [*head(), (":authority", "b.test")]),
    ("a pseudo-field behind a field", [*head(), ("x", "y"), (":path", "/b")]),
    ("an unknown pseudo-field", [*head(), (":protocol", "websocket")]),
    ("extended CONNECT", [*head(method="CONNECT"), (":protocol", "websocket")]),
    ("a field of a connection", [*head(), ("transfer-encoding", "chunked")]),
    ("Connection", [*head(), ("connection", "keep-alive")]),
    ("a field in upper case", [*head(), ("X-Upper", "y")]),
    ("a line break in a value", [*head(), ("x", "y\r\nhost: b.test")]),
    ("a NUL in a value", [*head(), ("x", "y\0")]),
]


@pytest.mark.parametrize("fields", [each[1] for each in MISSING], ids=[each[0] for each in MISSING])
def test_tls_09_a_head_that_http_2_does_not_have_is_refused(
    world: Lab, fields: list[tuple[str, str]]
) -> None:
    world.forget()
    seen = world.run(spoken(world, [head(), fields]))
    assert seen[0] == "200"
    assert seen[1] in ("400", "405", "reset", "closed")
    opened = [each for each in world.stage.records if each["step"] == "opened"]
    assert [each["verdict"] for each in opened] == ["allowed", "blocked"]
    assert world.upstream == HEARD
    world.sentinel()


# -- TLS-14 ---------------------------------------------------------------------------------------------------


def test_tls_14_an_origin_that_wants_http_2_gets_it_or_a_diagnosis(lab: Lab) -> None:
    """ALPN upstream is the client's: a client of HTTP/2 reaches an origin that hangs up on everybody else."""
    asked: list[dict[str, str]] = []

    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if writer.get_extra_info("ssl_object").selected_alpn_protocol() != "h2":
            return
        config = h2.config.H2Configuration(client_side=False, header_encoding="utf-8")
        talk = h2.connection.H2Connection(config)
        talk.initiate_connection()
        writer.write(talk.data_to_send())
        while data := await reader.read(65_536):
            for event in talk.receive_data(data):
                if isinstance(event, h2.events.RequestReceived):
                    asked.append(dict(event.headers))
                    talk.send_headers(event.stream_id, [(":status", "200")], end_stream=True)
            writer.write(talk.data_to_send())

    lab.bind(rule("allow", "a.test"))
    lab.run(lab.stage.origin("a.test", behave, tls=origin_context("a.test", protocols=("h2",))))
    lab.forget()
    assert lab.run(spoken(lab, [head()])) == ["200"]
    assert [(each[":authority"], each[":path"]) for each in asked] == [("a.test", "/")]
    assert len(lab.stage.recorded("opened")) == 1
    lab.sentinel()
    lab.expect(inside("a.test", get("a.test")), allowed(b"", 502, ended="upstream"))
