"""Questions to answers. dnspython writes the questions and reads the answers; it shares no code with ours."""

from __future__ import annotations

import random
from pathlib import Path
from runpy import run_path

import dns.edns
import dns.flags
import dns.message
import dns.opcode
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.update
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringfence.gateway.core.dns import GROWTH, QUERY_LIMIT, TTL, Answer, answer

FUZZ = Path(__file__).parents[2] / "fuzz"
fuzz_one = run_path(str(FUZZ / "dns.py"))["one"]

FIXED = {
    "gateway.docker.internal": ("10.255.255.1", "fd72:696e:6766::1"),
    "host.docker.internal": ("10.255.255.3", "fd72:696e:6766::3"),
}


def synthetic(name: str, family: int) -> str:
    if name == "full.test":
        raise LookupError
    return "198.18.0.7" if family == 4 else "fd72:696e:6766:5359::7"


def ask(wire: bytes) -> Answer:
    return answer(wire, address=synthetic, fixed=FIXED)


def asked(query: dns.message.Message) -> dns.message.Message:
    wire = query.to_wire()
    reply = ask(wire).reply
    assert reply is not None
    assert len(reply) <= len(wire) + GROWTH
    response = dns.message.from_wire(reply)
    assert response.id == query.id
    assert response.flags & dns.flags.QR
    return response


ANSWERS = [
    # asked, type, answered
    ("example.com", "A", "198.18.0.7"),
    ("example.com", "AAAA", "fd72:696e:6766:5359::7"),
    ("ExAmPlE.CoM", "A", "198.18.0.7"),
    ("evil.example", "A", "198.18.0.7"),  # also what policy refuses: the refusal comes on connect
    ("db", "A", "198.18.0.7"),
    ("_srv.example.com", "A", "198.18.0.7"),
    ("host.docker.internal", "A", "10.255.255.3"),
    ("HOST.docker.internal", "AAAA", "fd72:696e:6766::3"),
    ("gateway.docker.internal", "A", "10.255.255.1"),
    ("localhost", "A", "127.0.0.1"),
    ("localhost", "AAAA", "::1"),
    ("app.localhost", "A", "127.0.0.1"),
]


@pytest.mark.parametrize(("name", "kind", "address"), ANSWERS)
def test_an_address_is_answered(name: str, kind: str, address: str) -> None:
    query = dns.message.make_query(name, kind)
    response = asked(query)
    assert query.is_response(response)
    assert response.rcode() == dns.rcode.NOERROR
    [rrset] = response.answer
    assert [record.to_text() for record in rrset] == [address]
    assert rrset.ttl == TTL
    assert rrset.name == query.question[0].name
    assert response.question == query.question


@pytest.mark.parametrize(
    "kind", ["TXT", "MX", "NS", "SOA", "SRV", "HTTPS", "SVCB", "NULL", "CNAME", "PTR", "ANY", "CAA", "DNSKEY"]
)
def test_every_other_type_is_empty(kind: str) -> None:
    response = asked(dns.message.make_query("example.com", kind))
    assert response.rcode() == dns.rcode.NOERROR
    assert not response.answer
    assert not response.authority


@pytest.mark.parametrize(
    "name",
    [
        "1.2.3.4",
        "127.1",
        "2130706433",
        "0x7f.1",
        r"a\.b.test",
        r"a\032b.test",
        r"a\000.test",
        "-a.test",
        "a*.test",
    ],
)
def test_a_name_that_is_none_does_not_exist(name: str) -> None:
    response = asked(dns.message.make_query(name, "A"))
    assert response.rcode() == dns.rcode.NXDOMAIN
    assert not response.answer


def test_the_root_exists_and_has_nothing() -> None:
    response = asked(dns.message.make_query(".", "A"))
    assert response.rcode() == dns.rcode.NOERROR
    assert not response.answer


def test_without_an_address_left_the_answer_is_a_failure() -> None:
    assert asked(dns.message.make_query("full.test", "A")).rcode() == dns.rcode.SERVFAIL


def test_the_answer_tells_what_was_asked() -> None:
    given = ask(dns.message.make_query("Data.Evil.Example", "TXT").to_wire())
    assert (given.name, given.qtype) == ("data.evil.example", dns.rdatatype.TXT)
    strange = ask(dns.message.make_query(r"a\.b\000\255.test", "A").to_wire())
    assert strange.name == r"a\046b\000\255.test"


def edns(version: int = 0) -> dns.message.Message:
    return dns.message.make_query("example.com", "AAAA", use_edns=version, payload=4096)


def test_edns_is_answered_and_its_options_are_not_sent_back() -> None:
    query = dns.message.make_query(
        "example.com", "A", use_edns=0, options=[dns.edns.GenericOption(65_001, b"payload" * 10)]
    )
    response = asked(query)
    assert response.edns == 0
    assert not response.options
    assert len(response.answer) == 1
    assert asked(dns.message.make_query("example.com", "A")).edns == -1
    assert asked(edns(1)).rcode() == dns.rcode.BADVERS


def test_the_do_bit_is_not_ours_to_set() -> None:
    response = asked(dns.message.make_query("example.com", "A", want_dnssec=True))
    assert not response.ednsflags & dns.flags.DO
    assert not response.flags & dns.flags.AD


def question(name: bytes = b"\1a\4test\0", kind: int = 1, qclass: int = 1) -> bytes:
    return name + kind.to_bytes(2, "big") + qclass.to_bytes(2, "big")


def header(flags: int = 0x0100, *counts: int) -> bytes:
    return (
        b"\xab\xcd"
        + flags.to_bytes(2, "big")
        + b"".join(n.to_bytes(2, "big") for n in (counts or (1, 0, 0, 0)))
    )


REFUSED = {
    "CHAOS": (header() + question(b"\7version\4bind\0", 16, 3), dns.rcode.NOTIMP),
    "class ANY": (header() + question(qclass=255), dns.rcode.NOTIMP),
    "AXFR": (header() + question(kind=252), dns.rcode.NOTIMP),
    "IXFR": (header() + question(kind=251), dns.rcode.NOTIMP),
    "OPT as a question": (header() + question(kind=41), dns.rcode.NOTIMP),
    "UPDATE": (dns.update.UpdateMessage("example.com").to_wire(), dns.rcode.NOTIMP),
    "NOTIFY": (header(0x2000) + question(), dns.rcode.NOTIMP),
    "STATUS": (header(0x1000) + question(), dns.rcode.NOTIMP),
    "two questions": (header(0x100, 2, 0, 0, 0) + question() * 2, dns.rcode.FORMERR),
    "no question": (header(0x100, 0, 0, 0, 0), dns.rcode.FORMERR),
    "an answer in the question": (header(0x100, 1, 1, 0, 0) + question(), dns.rcode.FORMERR),
    "an authority in the question": (header(0x100, 1, 0, 1, 0) + question(), dns.rcode.FORMERR),
    "a pointer to itself": (header() + question(b"\xc0\x0c"), dns.rcode.FORMERR),
    "a pointer into the header": (header() + question(b"\1a\xc0\0"), dns.rcode.FORMERR),
    "an extended label": (header() + question(b"\x41a\0"), dns.rcode.FORMERR),
    "a name of 256 bytes": (
        header() + question((b"\x3f" + b"a" * 63) * 3 + b"\x3f" + b"a" * 63 + b"\0"),
        dns.rcode.FORMERR,
    ),
    "a name without an end": (header() + b"\4test", dns.rcode.FORMERR),
    "a question without a class": (header() + question()[:-1], dns.rcode.FORMERR),
    "bytes behind the question": (header() + question() + b"tunnel", dns.rcode.FORMERR),
    "an announced OPT that is not there": (header(0x100, 1, 0, 0, 1) + question(), dns.rcode.FORMERR),
    "an OPT longer than the message": (
        header(0x100, 1, 0, 0, 1) + question() + b"\0\0\x29\x04\xd0\0\0\0\0\0\x09",
        dns.rcode.FORMERR,
    ),
    "bytes behind the OPT": (
        header(0x100, 1, 0, 0, 1) + question() + b"\0\0\x29\x04\xd0\0\0\0\0\0\0x",
        dns.rcode.FORMERR,
    ),
    "a record that is no OPT": (
        header(0x100, 1, 0, 0, 1) + question() + b"\0\0\x01\0\x01\0\0\0\0\0\4aaaa",
        dns.rcode.FORMERR,
    ),
    "two OPTs": (
        header(0x100, 1, 0, 0, 2) + question() + b"\0\0\x29\x04\xd0\0\0\0\0\0\0" * 2,
        dns.rcode.FORMERR,
    ),
}


@pytest.mark.parametrize(("wire", "rcode"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_not_one_plain_question_is_refused(wire: bytes, rcode: dns.rcode.Rcode) -> None:
    reply = ask(wire).reply
    assert reply is not None
    assert reply[:2] == wire[:2]
    assert reply[3] & 15 == rcode
    assert reply[6:8] == b"\0\0"
    assert len(reply) <= len(wire)


@pytest.mark.parametrize(
    "wire",
    [
        b"",
        b"\0" * 11,
        header(0x8180) + question(),
        header(0xFFFF) + question(),
        header() + bytes(QUERY_LIMIT),
    ],
    ids=["nothing", "half a header", "an answer", "an answer with every flag", "more than we read"],
)
def test_what_must_not_be_answered_is_not(wire: bytes) -> None:
    assert ask(wire) == Answer()


def test_the_longest_name_is_answered() -> None:
    name = ".".join(["a" * 63] * 3 + ["b" * 61])
    response = asked(dns.message.make_query(name, "AAAA", use_edns=0))
    assert len(response.answer) == 1


def test_nothing_is_answered_that_was_not_asked() -> None:
    """Whatever the name carries, only the function for addresses hears of it: there is no one else to ask."""
    heard: list[tuple[str, int]] = []

    def listen(name: str, family: int) -> str:
        heard.append((name, family))
        return "198.18.0.1" if family == 4 else "fd72::1"

    for kind in ("A", "AAAA", "TXT", "ANY"):
        answer(dns.message.make_query("c2VjcmV0.evil.test", kind).to_wire(), address=listen, fixed={})
    assert heard == [("c2vjcmv0.evil.test", 4), ("c2vjcmv0.evil.test", 6)]


@given(st.binary(max_size=QUERY_LIMIT + 10))
def test_any_bytes_are_survived(data: bytes) -> None:
    fuzz_one(data)
    fuzz_one(header() + data)


def test_twenty_thousand_mutated_packets() -> None:
    chosen = random.Random(1035)
    seeds = [dns.message.make_query(name, kind).to_wire() for name, kind, _ in ANSWERS]
    seeds += [edns().to_wire(), *(wire for wire, _ in REFUSED.values())]
    for _ in range(20_000):
        data = bytearray(chosen.choice(seeds))
        for _ in range(chosen.randint(1, 5)):
            at = chosen.randrange(len(data) + 1)
            match chosen.randrange(3):
                case 0 if at < len(data):
                    data[at] = chosen.choice((0, 1, 0x3F, 0x40, 0xC0, 0xFF, chosen.randrange(256)))
                case 1:
                    data[at:at] = chosen.randbytes(chosen.randint(1, 8))
                case _:
                    del data[at : at + chosen.randint(1, 8)]
        fuzz_one(bytes(data))
