"""Records written as bytes are the records of the dataclass; refusals say what GATEWAY.md section 2 promises."""

from __future__ import annotations

import json

import pytest
from gateway_dialogue import NOON, Dialogue, policy, rule
from hypothesis import given
from hypothesis import strategies as st

from ringfence.audit.events import TEXT_LIMIT, NetworkEvent
from ringfence.gateway.core import journal, refusal
from ringfence.gateway.core.flow import Flow
from ringfence.gateway.core.refusal import Contact, Place, Template
from ringfence.policy.model import Decision, Effect, Kind, Reason, RuleRef, Verdict

NUMBER = b"00000000-00000001"


def event(**fields: object) -> NetworkEvent:
    return NetworkEvent(
        id="00000000-00000001",
        step="closed",
        time=NOON + 0.25,
        sandbox="s",
        sandbox_name='l"ab',
        host="a.test",
        port=443,
        verdict="allowed",
        reason="rule",
        text="ü",
        **fields,  # type: ignore[arg-type]
    )


def constant(given: NetworkEvent) -> bytes:
    record = given.record()
    return journal.encode(
        {name: value for name, value in record.items() if name not in ("id", "step", "time")}
    )


@given(
    st.sampled_from([b"GET", b"M-SEARCH", b"X!#$%&'*+.^_`|~"]),
    st.text(max_size=3000).map(lambda t: ("/" + t).encode()),
    st.integers(0, 599),
    st.integers(0, 2**62),
    st.floats(0, 1e5),
)
def test_bytes_and_dataclass_are_one_schema(
    method: bytes, path: bytes, status: int, size: int, took: float
) -> None:
    shared = constant(event())
    now = NOON + 0.25
    record = json.loads(
        journal.closed(
            NUMBER, now, journal.asking(shared, method, path), status, b"done", now - took, 0.0, size, size
        )
    )
    expected = event(
        method=journal.bounded(method.decode("latin-1")),
        path=journal.bounded(path.partition(b"?")[0].decode("latin-1")),
        status=status,
        bytes_out=size,
        bytes_in=size,
        ended="done",
    ).record()
    assert {key: value for key, value in record.items() if key in expected and key != "duration"} == expected
    assert set(NetworkEvent.__slots__) >= set(record)  # type: ignore[attr-defined]
    assert abs(record["duration"] - took) < 2e-6 * max(1, took)
    assert len(record["path"]) <= TEXT_LIMIT


def test_an_opened_record_is_the_dataclass_too() -> None:
    record = json.loads(journal.opened(NUMBER, NOON, constant(event())))
    assert record == event().record() | {"step": "opened", "time": NOON}


def test_what_a_dialogue_records_is_the_dataclass_too() -> None:
    talk = Dialogue(rule("allow", "a.test", name="yes"))
    talk.secure("a.test:443").receive(b"GET /x HTTP/1.1\r\nHost: a.test\r\n\r\n")
    record = talk.records[0]
    assert NetworkEvent(**record).record() == record | {"count": 1}


def test_a_query_is_no_ones_business() -> None:
    assert b"secret" not in journal.asking(b"", b"GET", b"/x?secret=1")


# -- refusals ---------------------------------------------------------------------------------------------------------


def ref(effect: Effect = Effect.DENY, name: str = "deny exfiltration", origin: str = "local") -> RuleRef:
    return RuleRef(id="1f3a", name=name, origin=origin, effect=effect)


def blocked(reason: Reason = Reason.RULE, *rules: RuleRef, text: str = "x") -> Decision:
    return Decision(verdict=Verdict.BLOCKED, reason=reason, rules=rules, text=text)


NOTICES: list[tuple[Decision, Contact, list[str]]] = [
    (
        blocked(Reason.DEFAULT),
        Contact(),
        [
            "Blocked by network policy: domain paste.ee:443",
            "no matching allow rule — default deny",
            "To change this: on the host, `sbx policy allow network paste.ee:443`",
        ],
    ),
    (
        blocked(Reason.RULE, ref()),
        Contact(),
        [
            "Blocked by network policy: domain paste.ee:443",
            "rule `deny exfiltration`, origin local",
            "To change this: on the host, `sbx policy rm network --id 1f3a`",
        ],
    ),
    (
        blocked(Reason.RULE, ref(name="default-x", origin="preset")),
        Contact(),
        [
            "Blocked by network policy: domain paste.ee:443",
            "rule `default-x`, origin preset",
            "To change this: on the host, `sbx policy preset disable default-x`",
        ],
    ),
    (
        blocked(Reason.RULE, ref(origin="remote")),
        Contact(organisation="acme", support="Write to security@acme.test"),
        [
            "Blocked by network policy: domain paste.ee:443",
            "rule `deny exfiltration`, origin remote",
            "To change this: ask an administrator of acme",
            "Write to security@acme.test",
        ],
    ),
    (
        blocked(Reason.GUARD, text="cloud metadata address 169.254.169.254 is never reachable"),
        Contact(),
        [
            "Blocked by network policy: domain paste.ee:443",
            "cloud metadata address 169.254.169.254 is never reachable",
        ],
    ),
]


@pytest.mark.parametrize(("decision", "contact", "lines"), NOTICES)
def test_what_a_refusal_says(decision: Decision, contact: Contact, lines: list[str]) -> None:
    place = Place(host="paste.ee", port=443)
    notice = refusal.refused(decision, place, NUMBER, status=403, contact=contact, wants_json=False)
    said = notice.body.decode().splitlines()
    assert said[:-1] == lines
    assert said[-1] == (
        "Decision 00000000-00000001; on the host, `sbx policy explain 00000000-00000001` tells more"
    )
    problem = json.loads(
        refusal.refused(decision, place, NUMBER, status=403, contact=contact, wants_json=True).body
    )
    assert problem["detail"] == lines[0]
    assert (problem["status"], problem["title"], problem["decision"]) == (403, "Forbidden", NUMBER.decode())
    for close in (False, True):
        template = Template(decision, place, status=403, contact=contact, wants_json=False, close=close)
        assert template.fill(NUMBER) == refusal.http1(notice, close=close, headless=False)


@pytest.mark.parametrize(
    ("host", "shown"),
    [("203.0.113.7", "address 203.0.113.7:443"), ("2001:db8::1", "address [2001:db8::1]:443")],
)
def test_an_address_is_called_one(host: str, shown: str) -> None:
    place = Place(host=host, port=443)
    notice = refusal.refused(blocked(), place, NUMBER, status=403, contact=Contact(), wants_json=False)
    assert notice.body.decode().startswith(f"Blocked by network policy: {shown}\n")


@pytest.mark.parametrize(
    ("accept", "json_"),
    [
        (b"*/*", False),
        (b"text/html, */*", False),
        (b"application/json", True),
        (b"application/problem+json;q=0.9", True),
    ],
)
def test_json_is_for_those_who_ask_for_it(accept: bytes, json_: bool) -> None:
    assert refusal.wants_json([b"X: application/json", b"accept: " + accept]) is json_


def test_a_governed_policy_names_the_organisation() -> None:
    talk = Dialogue()
    talk.subject.bind(policy(organisation="acme", support="ask Ada", governs=frozenset({Kind.NETWORK})))
    talk.secure("a.test:443").receive(b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n")
    said = talk.took().decode()
    assert "ask an administrator of acme\nask Ada\n" in said
    assert talk.records[0]["organisation"] == "acme"


def test_a_sandbox_keeps_few_encodings() -> None:
    talk = Dialogue(rule("allow", "a.test", methods=["GET"], paths=["/**"]))
    flow = Flow(talk.subject, "a.test", 443, "connect")
    for number in range(900):
        flow.shared(Decision(text=str(number)))
        flow.refusal(Decision(text=str(number)), NUMBER, wants_json=False, close=False)
    assert len(talk.subject._encoded) <= 256
    assert len(talk.subject._refusals) <= 256
