"""The demo's web sites and services, without a socket."""

from __future__ import annotations

import contextlib

import dns.message
import dns.rcode
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringfence.demo.internet.services import answer
from ringfence.demo.internet.sites import MalformedRequestError, page_for, parse_head
from ringfence.demo.internet.witness import Notebook


def test_a_request_head_is_parsed() -> None:
    request = parse_head(b"GET /simple/?q=1 HTTP/1.1\r\nHost: PyPI.org:443\r\nConnection: close\r\n\r\n")
    assert (request.method, request.path, request.host) == ("GET", "/simple/?q=1", "pypi.org")
    assert not request.keep_alive


@pytest.mark.parametrize(
    "head", [b"\r\n\r\n", b"GET /\r\n\r\n", b"GET / HTTP/2\r\n\r\n", b"GET / HTTP/1.1\r\nx\r\n\r\n"]
)
def test_what_is_no_request_is_refused(head: bytes) -> None:
    with pytest.raises(MalformedRequestError):
        parse_head(head)


@given(st.binary(max_size=400))
def test_no_head_does_anything_worse(head: bytes) -> None:
    with contextlib.suppress(MalformedRequestError):
        parse_head(head + b"\r\n\r\n")


def test_a_site_says_who_it_is() -> None:
    request = parse_head(b"GET / HTTP/1.1\r\nHost: paste.ee\r\n\r\n")
    page = page_for("paste.ee", request)
    assert page.status == 200
    assert page.body.startswith(b"Hello from paste.ee.")


def test_a_dns_server_answers_and_remembers() -> None:
    notebook = Notebook()
    reply = answer("dns.google", dns.message.make_query("paste.ee", "A").to_wire(), notebook)
    assert reply is not None
    assert dns.message.from_wire(reply).answer[0][0].to_text() == "203.0.113.18"
    assert list(notebook.questions) == [{"server": "dns.google", "name": "paste.ee", "type": "A"}]


def test_the_accomplice_answers_whatever_it_is_told() -> None:
    reply = answer(
        "dns.google", dns.message.make_query("c2VjcmV0.tunnel.example", "TXT").to_wire(), Notebook()
    )
    assert reply is not None
    assert "received" in dns.message.from_wire(reply).answer[0].to_text()


def test_an_unknown_name_does_not_exist() -> None:
    reply = answer("dns.google", dns.message.make_query("nobody.example", "A").to_wire(), Notebook())
    assert reply is not None
    assert dns.message.from_wire(reply).rcode() == dns.rcode.NXDOMAIN


@given(st.binary(max_size=300))
def test_what_is_no_question_gets_no_answer(wire: bytes) -> None:
    answer("dns.google", wire, Notebook())
