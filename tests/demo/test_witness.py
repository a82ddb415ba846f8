"""What the demo's internet saw: packets are read without trusting them, a snapshot answers questions."""

from __future__ import annotations

import struct
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringfence.demo.internet.places import BY_NAME
from ringfence.demo.internet.witness import Flow, Notebook, Sightings, read_flow

PASTE = BY_NAME["paste.ee"]


def v4(protocol: int, payload: bytes = b"", options: int = 0) -> bytes:
    head = bytes([0x45 + options]) + bytes(8) + bytes([protocol]) + bytes(6) + ip_address(PASTE.v4).packed
    return head + bytes(4 * options) + payload


def v6(protocol: int, payload: bytes = b"") -> bytes:
    return b"\x60" + bytes(5) + bytes([protocol]) + bytes(17) + ip_address(PASTE.v6).packed + payload


PORTS = struct.pack("!HH", 40000, 443)


@pytest.mark.parametrize(
    ("family", "packet", "flow"),
    [
        (4, v4(6, PORTS), Flow(address=PASTE.v4, protocol="tcp", port=443)),
        (4, v4(17, PORTS), Flow(address=PASTE.v4, protocol="udp", port=443)),
        (4, v4(6, PORTS, options=2), Flow(address=PASTE.v4, protocol="tcp", port=443)),
        (4, v4(1, b"\x08\x00"), Flow(address=PASTE.v4, protocol="icmp")),
        (4, v4(47), Flow(address=PASTE.v4, protocol="protocol 47")),
        (6, v6(6, PORTS), Flow(address=PASTE.v6, protocol="tcp", port=443)),
        (6, v6(58, b"\x80\x00"), Flow(address=PASTE.v6, protocol="icmp")),
        (6, v6(58, b"\x87\x00"), None),  # neighbour solicitation: the link itself
        (4, v4(6, b"\x00"), None),
        (4, b"", None),
        (5, v4(6, PORTS), None),
    ],
)
def test_reading_a_packets_head(family: int, packet: bytes, flow: Flow | None) -> None:
    assert read_flow(family, packet) == flow


@given(st.sampled_from([4, 6]), st.binary(max_size=96))
def test_no_packet_can_upset_the_counter(family: int, packet: bytes) -> None:
    read_flow(family, packet)


def filled() -> Notebook:
    notebook = Notebook()
    notebook.packet(Flow(address=PASTE.v4, protocol="tcp", port=443))
    notebook.packet(Flow(address=PASTE.v6, protocol="udp", port=443))
    notebook.connections["example.com"] += 1
    notebook.requests.append({"origin": "example.com", "host": "pastebin.com", "path": "/"})
    notebook.questions.append({"server": "dns.google", "name": "a.tunnel.example", "type": "TXT"})
    return notebook


def test_a_snapshot_travels_and_answers_questions() -> None:
    sightings = Sightings.parse(filled().snapshot())
    assert sightings.packets_to("paste.ee") == 2
    assert sightings.packets_to("paste.ee", "udp") == 1
    assert sightings.connections_to("example.com") == 1
    assert sightings.requests_for("pastebin.com") == 1
    assert sightings.requests_for("example.com") == 1
    assert sightings.questions_about("tunnel.example") == 1
    assert sightings.questions_about("tunnel.example", "dns.isp.example") == 0
    assert sightings.questions_about("nel.example") == 0
    assert [sightings.heard_of(name) for name in ("paste.ee", "pastebin.com", "github.com")] == [2, 1, 0]


def test_forgetting_starts_a_new_page() -> None:
    notebook = filled()
    notebook.forget()
    assert notebook.snapshot() == Notebook().snapshot()


def test_what_is_beyond_the_bound_is_counted_as_lost() -> None:
    notebook = Notebook()
    for port in range(5000):
        notebook.packet(Flow(address=PASTE.v4, protocol="tcp", port=port))
    assert notebook.lost == 5000 - len(notebook.packets) > 0
