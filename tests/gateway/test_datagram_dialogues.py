"""UDP flows in the core: dialogues of datagrams and commands, the audit always included. No socket, no clock."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from gateway_dialogue import NOON, policy, rule
from quic_flight import OTHER_VERSION, crypto, flight, hello, initial, pieces

from ringfence.gateway.core.datagrams import Association, relays
from ringfence.gateway.core.flow import Flow
from ringfence.gateway.core.limits import Limits
from ringfence.gateway.core.subject import Subject
from ringfence.gateway.quic import CIPHERS
from ringfence.policy.model import Decision, Reason, Transport, Verdict
from ringfence.policy.rule import Rule
from ringfence.sandbox.credentials import Binding, Form, Target

UDP = ["udp"]
PLAIN = rule("allow", "a.test", transports=UDP, name="allow a")
NEVER = rule("allow", "quic.test", transports=UDP, inspect="never", name="allow quic")


class Talk:
    """One flow: what it commanded is in ``said``, what it recorded in ``records``."""

    def __init__(self, *rules: Rule, host: str = "a.test", port: int = 443, **limits: float) -> None:
        ids = itertools.count(1)
        self.records: list[dict[str, Any]] = []
        self.subject = Subject(
            id="sandbox-1",
            limits=Limits.from_wire(limits),
            ids=lambda: b"00000000-%08x" % next(ids),
            sink=lambda record, _: self.records.append(json.loads(record)),
        )
        self.subject.bind(policy(*rules))
        self.said: list[Any] = []
        self.now = NOON
        flow = Flow(self.subject, host, port, "udp", transport=Transport.UDP)
        self.flow = Association(self, flow, CIPHERS, self.now)

    # -- the wire -----------------------------------------------------------------------------------------

    def open(self) -> None:
        self.said.append("open")

    def send(self, datagram: bytes) -> None:
        self.said.append(datagram)

    def unreachable(self) -> None:
        self.said.append("unreachable")

    def refuse(self, decision: Decision) -> None:
        self.said.append(("refuse", decision.reason.value, decision.text))

    def close(self) -> None:
        self.said.append("close")

    # -- events -------------------------------------------------------------------------------------------

    def receive(self, *datagrams: bytes) -> Talk:
        for datagram in datagrams:
            self.flow.received(datagram, self.now)
        return self

    def connected(self, address: str = "203.0.113.9") -> Talk:
        self.flow.connected(address, self.now)
        return self

    def bind(self, *rules: Rule) -> Talk:
        self.subject.bind(policy(*rules, revision=2))
        self.flow.revise(self.now)
        return self

    def later(self, seconds: float) -> Talk:
        """Time passes; the sweep comes by."""
        self.now += seconds
        if self.now > self.flow.deadline:
            self.flow.expire(self.now)
        return self

    def audit(self, *fields: str) -> list[tuple[Any, ...]]:
        return [tuple(record.get(field) for field in fields) for record in self.records]


def refused(reason: str, text: str) -> list[Any]:
    return [("refuse", reason, text), "close"]


def test_an_allowed_flow() -> None:
    talk = Talk(PLAIN).receive(b"1", b"2")
    assert talk.said == ["open"]
    talk.connected().receive(b"3")
    talk.flow.answered(100, talk.now + 1)
    assert talk.said == ["open", b"1", b"2", b"3"]
    talk.later(59)
    assert talk.said[-1] == b"3"
    talk.later(3)
    assert talk.said[-1] == "close"
    assert talk.audit(
        "step", "verdict", "rule", "via", "transport", "protocol", "dialled", "bytes_out", "ended"
    ) == [
        ("opened", "allowed", "allow a", "udp", "udp", "udp", "203.0.113.9", None, None),
        ("closed", "allowed", "allow a", "udp", "udp", "udp", "203.0.113.9", 3, "done"),
    ]
    assert (talk.records[1]["bytes_in"], talk.records[1]["ttfb"]) == (100, 1.0)


def test_a_flow_without_an_answer_ends_earlier() -> None:
    assert Talk(PLAIN).receive(b"1").connected().later(31).said[-1] == "close"


DECIDED = [
    # rules, what is said; nothing is resolved and nothing dialled
    ((), "default", "no matching allow rule — default deny"),
    ((rule("allow", "a.test"),), "default", "no matching allow rule — default deny"),  # TCP's alone
    ((PLAIN, rule("deny", "a.test", name="no")), "rule", ""),
    ((PLAIN, rule("deny", "a.test", transports=["tcp"])), None, ""),
    (
        (rule("allow", "a.test", transports=UDP, methods=["GET"]),),
        "failure",
        "rules about requests apply here, and this cannot be inspected",
    ),
]


@pytest.mark.parametrize(("rules", "reason", "text"), DECIDED)
def test_policy_decides_about_udp_by_itself(rules: tuple[Rule, ...], reason: str | None, text: str) -> None:
    talk = Talk(*rules).receive(b"hello")
    if reason is None:
        assert talk.said == ["open"]
    else:
        ((command, why, said), close) = talk.said
        assert (command, why, close) == ("refuse", reason, "close")
        assert not text or said == text
    assert talk.records == []


def test_the_address_decides_last_and_a_policy_of_the_meantime_too() -> None:
    talk = Talk(PLAIN).receive(b"1")
    guarded = Decision(reason=Reason.GUARD, text="private")
    talk.flow.failed("private", talk.now, guarded)
    assert talk.said == ["open", *refused("guard", "private")]

    talk = Talk(PLAIN).receive(b"1")
    talk.subject.bind(policy(revision=2))
    talk.connected()
    assert talk.said[1:] == refused("default", "no matching allow rule — default deny")
    assert talk.records == []


def test_a_revoked_flow_says_so_once() -> None:
    talk = Talk(PLAIN).receive(b"1").connected().bind(PLAIN)
    assert talk.said == ["open", b"1"]
    talk.bind(rule("deny", "203.0.113.0/24"), PLAIN)
    assert talk.said[2:] == ["unreachable", "close"]
    assert talk.audit("step", "ended") == [("opened", None), ("closed", "revoked")]


def test_a_destination_that_is_not_there() -> None:
    talk = Talk(PLAIN).receive(b"1")
    talk.flow.failed("`a.test` has no address", talk.now)
    talk.receive(b"2")
    assert talk.said == ["open", "unreachable", "unreachable"]
    talk.later(6)
    assert talk.said[-1] == "close"
    assert talk.audit("step", "verdict", "ended", "text") == [
        ("opened", "allowed", None, "502: `a.test` has no address"),
        ("closed", "allowed", "upstream", "502: `a.test` has no address"),
    ]


def test_nobody_at_the_port() -> None:
    talk = Talk(PLAIN).receive(b"1").connected()
    talk.flow.lost(talk.now)
    assert talk.said[2:] == ["unreachable", "close"]
    assert talk.audit("step", "ended") == [("opened", None), ("closed", "upstream")]


def test_what_waits_is_bounded() -> None:
    talk = Talk(PLAIN).receive(*(b"%d" % number for number in range(20))).connected()
    assert talk.said == ["open", *(b"%d" % number for number in range(8))]
    talk = Talk(PLAIN, udp_held_bytes=100).receive(b"x" * 60, b"y" * 60, b"z" * 40).connected()
    assert talk.said == ["open", b"x" * 60, b"z" * 40]


def test_a_destination_that_never_turns_up() -> None:
    talk = Talk(PLAIN).receive(b"1").later(16)
    assert talk.said[-1] == "unreachable"
    assert talk.audit("ended", "text")[-1] == ("upstream", "502: it could not be found in time")


def test_bytes_are_charged_to_the_rule_and_end_with_its_budget() -> None:
    talk = (
        Talk(rule("allow", "a.test", transports=UDP, budget={"bytes_per_day": 100}))
        .receive(b"x" * 60)
        .connected()
    )
    talk.flow.answered(39, talk.now)
    assert talk.said == ["open", b"x" * 60]
    talk.flow.answered(1, talk.now)
    assert talk.said[2:] == ["unreachable", "close"]
    assert talk.audit("ended", "bytes_in", "charged")[-1] == (
        "revoked",
        40,
        talk.subject.policy.entries[0].rule.id,
    )


# -- QUIC ----------------------------------------------------------------------------------------------------

INITIAL = flight("quic.test")
NOWHERE_TO_LOOK = "QUIC cannot be inspected: it passes only where the rule says `inspect: never`"
NOT_NAMED = "a host that is not inspected must be named in the ClientHello"
HIDDEN = "an encrypted ClientHello may hide another name, and this host is not inspected"
KEY = Binding(
    name="custom",
    targets=(Target(hosts=("*.test",), form=Form.BEARER),),
    placeholders=("proxy-managed",),
    values=(("value", "s3cr3t-s3cr3t"),),
)


def quic(*rules: Rule, **more: Any) -> Talk:
    return Talk(*(rules or (NEVER,)), host=more.pop("host", "quic.test"), **more)


def test_quic_to_a_host_that_is_not_inspected() -> None:
    talk = quic().receive(INITIAL)
    assert talk.said == ["open"]
    talk.connected().receive(b"\x40short")
    assert talk.said == ["open", INITIAL, b"\x40short"]
    assert talk.audit("step", "verdict", "protocol", "host") == [("opened", "allowed", "quic", "quic.test")]


def test_nothing_passes_before_the_name_is_known() -> None:
    message = hello("quic.test", size=3_000)
    first, second, third = (
        initial(crypto(piece, at), number) for number, (at, piece) in enumerate(pieces(message, 1_000, 2_000))
    )
    talk = quic().receive(third, first)
    assert talk.said == []
    talk.receive(second)
    assert talk.said == ["open"]
    assert talk.connected().said == ["open", third, first, second]


QUIC_REFUSED: list[tuple[str, tuple[Rule, ...], bytes, str]] = [
    (
        "the rule lets the gateway inspect",
        (rule("allow", "quic.test", transports=UDP),),
        INITIAL,
        NOWHERE_TO_LOOK,
    ),
    (
        "one rule of two says never",
        (NEVER, rule("allow", "*.test", transports=UDP, inspect="always")),
        INITIAL,
        NOWHERE_TO_LOOK,
    ),
    (
        "requests are decided one by one over TCP",
        (NEVER, rule("deny", "quic.test", transports=["tcp"], methods=["POST"]), rule("allow", "quic.test")),
        INITIAL,
        "rules about requests apply here, and QUIC cannot be inspected",
    ),
    (
        "it names another host",
        (NEVER,),
        flight("evil.test"),
        "the client names evil.test inside its connection to quic.test",
    ),
    ("it names no host", (NEVER,), flight(None), NOT_NAMED),
    (
        "it hides a name",
        (NEVER,),
        initial(crypto(hello("quic.test", (0xFE0D, b"\0" * 20)))),
        HIDDEN,
    ),
    (
        "it cannot be read",
        (NEVER,),
        flight("quic.test", keys=b"else"),
        "QUIC that cannot be read: an Initial that no key opens",
    ),
    ("its version cannot be read", (NEVER,), OTHER_VERSION, "QUIC of a version that cannot be read"),
    (
        "it comes in the middle",
        (NEVER,),
        initial(b"\x01", kind=2),
        "QUIC that cannot be read: it comes in the middle of a connection that was not seen to begin",
    ),
]


@pytest.mark.parametrize(
    ("what", "rules", "datagram", "text"), QUIC_REFUSED, ids=[each[0] for each in QUIC_REFUSED]
)
def test_quic_that_is_refused(what: str, rules: tuple[Rule, ...], datagram: bytes, text: str) -> None:
    talk = quic(*rules).receive(datagram)
    assert talk.said == refused("guard", text)
    assert talk.records == []


@pytest.mark.parametrize(
    ("what", "rules", "datagram", "text"), QUIC_REFUSED, ids=[each[0] for each in QUIC_REFUSED]
)
def test_it_is_refused_behind_something_harmless_too(
    what: str, rules: tuple[Rule, ...], datagram: bytes, text: str
) -> None:
    talk = quic(*rules).receive(b"harmless")
    if talk.said != ["open"]:
        return  # nothing of this flow passes at all
    talk.connected().receive(datagram)
    assert talk.said[2:] == refused("guard", text)
    assert talk.audit("step", "ended") == [("opened", None), ("closed", "failed")]


def test_a_second_connection_on_the_same_ports_must_agree_as_well() -> None:
    talk = quic().receive(INITIAL).connected().receive(flight("evil.test", connection=b"another!"))
    text = "the client names evil.test inside its connection to quic.test"
    assert talk.said[2:] == refused("guard", text)


def test_a_credentialed_host_is_spoken_with_where_credentials_can_be_put() -> None:
    text = "a credential is bound to this host, and QUIC cannot be inspected"
    talk = quic()
    talk.subject.arm((KEY,))
    assert talk.receive(INITIAL).said == refused("guard", text)

    talk = quic().receive(INITIAL).connected()
    talk.subject.arm((KEY,))
    talk.flow.revise(talk.now)
    assert talk.said[2:] == ["unreachable", "close"]
    assert talk.audit("ended")[-1] == ("revoked",)


def test_a_rule_that_begins_to_inspect_ends_quic_and_nothing_else() -> None:
    inspected = rule("allow", "*.test", transports=UDP, inspect="always")
    assert quic().receive(INITIAL).connected().bind(NEVER, inspected).said[2:] == ["unreachable", "close"]
    assert quic().receive(b"plain").connected().bind(NEVER, inspected).said[2:] == []


def test_a_hello_that_does_not_end() -> None:
    message = hello("quic.test", size=15_000)
    crumbs = [initial(crypto(message[at : at + 100], at), at // 100) for at in range(0, 1_000, 100)]
    late = refused("failure", "a ClientHello that was not complete in time")
    assert quic().receive(*crumbs[:9]).said == late
    assert quic().receive(crumbs[0]).later(4).said == late


def test_versions_nobody_knows_are_plain_where_http_is_not() -> None:
    assert quic(port=784).receive(OTHER_VERSION).said == ["open"]


def test_an_address_may_be_named_by_its_client() -> None:
    address = rule("allow", "203.0.113.0/24", transports=UDP, inspect="never")
    assert quic(address, host="203.0.113.9").receive(flight(None)).said == ["open"]
    assert quic(address, host="203.0.113.9").receive(flight("quic.test")).said == ["open"]


# -- the switch ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rules", "relayed"),
    [
        ((), False),
        ((rule("allow", "**"),), False),
        ((rule("deny", "**", transports=UDP),), False),
        ((rule("approval", "a.test", transports=UDP),), False),
        ((rule("allow", "a.test", transports=UDP, mode="evaluate"),), False),
        ((rule("allow", "**"), PLAIN), True),
    ],
)
def test_only_a_rule_that_lets_datagrams_out_switches_the_relay_on(
    rules: tuple[Rule, ...], relayed: bool
) -> None:
    assert relays(policy(*rules)) is relayed


def test_judgements_about_addresses_are_kept_by_transport() -> None:
    talk = Talk(PLAIN, rule("allow", "a.test"), rule("deny", "203.0.113.0/24", transports=UDP))
    over_tcp = Flow(talk.subject, "a.test", 443, "connect")
    assert over_tcp.judge_address("203.0.113.9", NOON).verdict is Verdict.ALLOWED
    assert talk.flow.flow.judge_address("203.0.113.9", NOON).verdict is Verdict.BLOCKED
