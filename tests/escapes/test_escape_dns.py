"""DNS-01 to DNS-07: questions leave nothing and bring nothing back.

An answer is not a decision (the refusal comes on connect, so that every client fails in one way), so a question has no
record; what counts here is that no question ever leaves, and that what is connected to afterwards is refused.
"""

from __future__ import annotations

import asyncio
import base64
import random
import socket

import dns.message
import dns.rcode
import dns.rdatatype
import pytest
from tests.escapes.escape_stage import (
    CLIENT4,
    PATIENCE,
    Lab,
    allowed,
    forward,
    get,
    inside,
    redirected,
    refused,
    rule,
    tunnel,
)

GROWTH = 28
HEARD = b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n"


class Resolver:
    """A client of the sandbox's resolver, over UDP."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sock.setblocking(False)
        self.sock.connect((CLIENT4, lab.stage.resolver["dns-udp4"]))

    async def answers(self, *queries: bytes) -> list[bytes]:
        """Everything that comes back, told by a last question whose answer ends the wait."""
        loop = asyncio.get_running_loop()
        last = dns.message.make_query("the-end.test", "A")
        got: list[bytes] = []
        async with asyncio.timeout(PATIENCE):
            for query in (*queries, last.to_wire()):
                await loop.sock_sendall(self.sock, query)
            while True:
                answer = await loop.sock_recv(self.sock, 65_536)
                if answer[:2] == last.id.to_bytes(2, "big") and b"\x07the-end" in answer:
                    return got
                got.append(answer)

    def ask(self, *queries: bytes) -> list[bytes]:
        return self.lab.run(self.answers(*queries))

    def question(self, name: str, kind: str) -> dns.message.Message:
        (answer,) = self.ask(dns.message.make_query(name, kind).to_wire())
        return dns.message.from_wire(answer)


@pytest.fixture
def resolver(lab: Lab):
    """``a.test`` and what is below is allowed, and is found and reached (the positive control)."""
    lab.bind(rule("allow", "**.a.test"))
    lab.serve("a.test", port=80, tls=False)
    made = Resolver(lab)
    assert made.question("a.test", "A").answer[0][0].to_text() == lab.stage.guest.names.address("a.test", 4)
    lab.expect(redirected("a.test", get("a.test")), allowed(HEARD, questions=("a.test",)))
    lab.forget()
    yield made
    assert (lab.stage.dialer.asked, lab.stage.dials, lab.stage.records) == ([], [], [])
    lab.sentinel()
    made.sock.close()


EMPTY = [
    "TXT", "NULL", "SVCB", "HTTPS", "MX", "CNAME", "NS", "SOA", "PTR", "SRV", "CAA", "DNSKEY", "DS", "RRSIG", "NAPTR",
    "TLSA", "URI", "ANY", "HINFO",
]  # fmt: skip
SECRET = base64.b32encode(b"a secret that wants to get out").decode().rstrip("=").lower()


@pytest.mark.parametrize("kind", EMPTY)
@pytest.mark.parametrize("zone", ["attacker.test", "a.test"])
def test_dns_01_a_question_carries_nothing_out(resolver: Resolver, kind: str, zone: str) -> None:
    answer = resolver.question(f"{SECRET}.{zone}", kind)
    assert (answer.rcode(), answer.answer) == (dns.rcode.NOERROR, [])


@pytest.mark.parametrize("kind", ["A", "AAAA"])
def test_dns_01_an_address_is_synthetic_and_nobody_was_asked_for_it(resolver: Resolver, kind: str) -> None:
    (record,) = resolver.question(f"{SECRET}.attacker.test", kind).answer[0]
    assert record.to_text().startswith(("198.18.", "fd72:696e:6766:"))


def test_dns_02_data_under_an_allowed_zone_is_answered_here(resolver: Resolver) -> None:
    for number in range(100):
        assert resolver.question(f"{SECRET[:20]}-{number}.a.test", "A").answer


def test_dns_02_a_name_that_policy_allows_is_looked_up_once_a_connection_is_made(lab: Lab) -> None:
    lab.bind(rule("allow", "**.a.test"))
    lab.serve("data.a.test", port=80, tls=False)
    heard = b"GET / HTTP/1.1\r\nHost: data.a.test\r\n\r\n"
    lab.expect(redirected("data.a.test", get("data.a.test")), allowed(heard, questions=("data.a.test",)))
    lab.bind(rule("allow", "a.test"))
    lab.expect(redirected("data.a.test", get("data.a.test")), refused())


def test_dns_03_over_tcp_the_same_resolver_answers(resolver: Resolver) -> None:
    async def over_tcp(name: str, kind: str) -> dns.message.Message:
        reader, writer = await asyncio.open_connection(CLIENT4, resolver.lab.stage.resolver["dns-tcp4"])
        wire = dns.message.make_query(name, kind).to_wire()
        writer.write(len(wire).to_bytes(2, "big") + wire)
        async with asyncio.timeout(PATIENCE):
            answer = await reader.readexactly(int.from_bytes(await reader.readexactly(2), "big"))
        writer.close()
        return dns.message.from_wire(answer)

    assert resolver.lab.run(over_tcp("a.test", "A")).answer
    assert resolver.lab.run(over_tcp(f"{SECRET}.attacker.test", "TXT")).answer == []


DOH = ["dns.google", "cloudflare-dns.com", "one.one.one.one", "dns.quad9.net", "doh.opendns.com"]


@pytest.mark.parametrize("host", DOH)
def test_dns_03_doh_and_dot_are_hosts_like_others(lab: Lab, host: str) -> None:
    lab.bind(rule("allow", "a.test"))
    lab.serve("a.test")
    query = get(host, "/dns-query?dns=AAABAAABAAAAAAAAA3d3dwdleGFtcGxlA2NvbQAAAQAB")
    lab.expect(inside("a.test", get("a.test")), allowed(HEARD))
    lab.expect(inside(host, query), refused())
    lab.expect(
        tunnel(host, dns.message.make_query("x.test", "TXT", id=0x8001).to_wire(), port=853),
        refused("default", "reset"),
    )
    lab.expect(redirected("8.8.8.8", get("8.8.8.8"), port=443), refused())
    lab.expect(redirected("8.8.8.8", b"\0\x1d\x12\x34\x01\0\0\1", port=853), refused("default", "reset"))


@pytest.mark.parametrize("name", ["denied.test", f"{SECRET}.denied.test", "deep.er.denied.test"])
def test_dns_04_a_denied_name_is_never_looked_up(lab: Lab, name: str) -> None:
    lab.bind(rule("allow", "**"), rule("deny", "**.denied.test"))
    lab.stage.addresses[name] = ["203.0.113.9"]
    for ask in (
        forward(get(name, f"http://{name}/")),
        inside(name, get(name)),
        redirected(name, get(name)),
        redirected(name, get(name), port=443, tls=name),
    ):
        lab.expect(ask, refused("rule", questions=()))
        assert lab.stage.dialer.asked == []
    lab.expect(tunnel(name, b"\0\0\0"), refused("rule", "reset"))
    lab.serve("other.test", port=80, tls=False)
    heard = b"GET / HTTP/1.1\r\nHost: other.test\r\n\r\n"
    lab.expect(forward(get("other.test", "http://other.test/")), allowed(heard, questions=("other.test",)))


# -- DNS-05 ---------------------------------------------------------------------------------------------------

A_TEST = dns.message.make_query("a.test", "A").to_wire()
HEAD = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00"
STRANGE: list[tuple[str, bytes, int | None]] = [
    # what, the packet, the response code (None: no answer at all)
    ("a pointer to itself", HEAD + b"\xc0\x0c\0\1\0\1", 1),
    ("pointers in a ring", HEAD + b"\1a\xc0\x10\1b\xc0\x0c\0\1\0\1", 1),
    ("two questions", HEAD[:5] + b"\2" + HEAD[6:] + A_TEST[12:] + A_TEST[12:], 1),
    ("no question", HEAD[:5] + b"\0" + HEAD[6:], 1),
    ("a question cut short", A_TEST[:-3], 1),
    ("bytes behind the question", A_TEST + b"x", 1),
    ("a label of 64", HEAD + b"\x40" + b"a" * 64 + b"\0\0\1\0\1", 1),
    ("a name of 300", HEAD + b"\x3f" + b"a" * 63 + (b"\x3f" + b"a" * 63) * 4 + b"\0\0\1\0\1", 1),
    ("class CHAOS", HEAD + b"\7version\4bind\0\0\x10\0\3", 4),
    ("class ANY", A_TEST[:-1] + b"\xff", 4),
    ("AXFR", A_TEST[:-4] + b"\0\xfc\0\1", 4),
    ("IXFR", A_TEST[:-4] + b"\0\xfb\0\1", 4),
    ("UPDATE", A_TEST[:2] + b"\x28\0" + A_TEST[4:], 4),
    ("NOTIFY", A_TEST[:2] + b"\x20\0" + A_TEST[4:], 4),
    ("STATUS", A_TEST[:2] + b"\x10\0" + A_TEST[4:], 4),
    ("an answer", A_TEST[:2] + b"\x81\x80" + A_TEST[4:], None),
    ("eleven bytes", A_TEST[:11], None),
    ("nothing", b"", None),
    ("a name with a NUL", HEAD + b"\6a\0test\0\0\1\0\1", 3),
    ("a name with a dot in a label", HEAD + b"\6a.test\0\0\1\0\1", 3),
    (
        "an unknown EDNS version",
        dns.message.make_query("a.test", "A", use_edns=0).to_wire()[:-5] + b"\1\0\0\0\0",
        0,
    ),
]


@pytest.mark.parametrize(("query", "code"), [each[1:] for each in STRANGE], ids=[each[0] for each in STRANGE])
def test_dns_05_what_is_not_one_plain_question_is_refused_or_dropped(
    resolver: Resolver, query: bytes, code: int | None
) -> None:
    answers = resolver.ask(query)
    assert [answer[3] & 15 for answer in answers] == ([] if code is None else [code])
    assert all(len(answer) <= len(query) + GROWTH for answer in answers)
    assert all(answer[6:8] == b"\0\0" for answer in answers)


def test_dns_05_options_are_not_sent_back(resolver: Resolver) -> None:
    cookie = dns.edns.GenericOption(10, b"canary-cookie")
    query = dns.message.make_query("a.test", "A", use_edns=0, payload=65_535, options=[cookie]).to_wire()
    (answer,) = resolver.ask(query)
    assert b"canary" not in answer
    assert len(answer) <= len(query) + GROWTH


def test_dns_05_twenty_thousand_packets_get_no_more_than_they_bring(resolver: Resolver) -> None:
    chance = random.Random(20_000)
    seeds = [each[1] for each in STRANGE if len(each[1]) > 11] + [A_TEST]
    for _ in range(20_000 // 40):
        batch = {}
        for _ in range(40):
            packet = bytearray(chance.choice(seeds))
            for _ in range(chance.randint(1, 6)):
                packet[chance.randrange(2, len(packet))] = chance.randrange(256)
            packet[:2] = len(batch).to_bytes(2, "big")
            batch[bytes(packet[:2])] = bytes(packet)
        for answer in resolver.ask(*batch.values()):
            assert len(answer) <= len(batch[answer[:2]]) + GROWTH
    assert resolver.question("a.test", "A").answer


# -- DNS-06, DNS-07 -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("final", ["10.0.0.5", "127.0.0.1", "169.254.169.254", "fd00:ec2::254"])
def test_dns_06_an_alias_is_decided_by_the_name_that_was_asked_and_judged_by_where_it_ends(
    lab: Lab, final: str
) -> None:
    """The lookup follows aliases; what comes back stands for the name that policy allowed, and passes the guards."""
    lab.bind(rule("allow", "alias.test"), rule("deny", "target.test"))
    lab.serve("alias.test", port=80, tls=False, address="203.0.113.7")
    ask = forward(get("alias.test", "http://alias.test/"))
    heard = b"GET / HTTP/1.1\r\nHost: alias.test\r\n\r\n"
    lab.expect(
        ask, allowed(heard, questions=("alias.test",))
    )  # also where an alias leads to a denied name's host
    lab.stage.script["alias.test"] = [[final]]
    lab.expect(ask, refused("guard", questions=("alias.test",)))


def test_dns_06_a_dangling_alias_leads_nowhere(lab: Lab) -> None:
    lab.bind(rule("allow", "alias.test"))
    ask = forward(get("alias.test", "http://alias.test/"))
    lab.expect(
        ask, allowed(b"", 502, dials=0, questions=("alias.test",), ended="upstream", text="no address")
    )


@pytest.mark.parametrize("kind", ["TXT", "HINFO", "NULL", "SPF", "URI"])
def test_dns_07_an_allowed_names_records_bring_nothing_in(resolver: Resolver, kind: str) -> None:
    assert resolver.question("a.test", kind).answer == []
