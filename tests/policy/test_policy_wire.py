"""The snapshot on its way to the gateway, and what hostile or broken input does to anything that reads: it is
refused."""

from __future__ import annotations

import copy
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from policy_worlds import accesses, policies

from ringfence.documents import preset_document
from ringfence.policy import (
    Base,
    Delegation,
    EffectivePolicy,
    FileAction,
    FilesystemAccess,
    Guards,
    InvalidPolicy,
    Kind,
    NetworkAccess,
    Reason,
    Rule,
    Sources,
    Statement,
    Transport,
    Verdict,
    canonical_host,
    compose,
    decide,
    decide_file,
    judge_address,
    parse_resource,
    parse_rule,
    parse_target,
    split_authority,
    split_resources,
)
from ringfence.policy.paths import UnclearPathError, canonical_path, parse_path_pattern

hostile = st.one_of(
    st.text(max_size=400),
    st.text(alphabet="a.b-*[]:/@%?!0123456789xn\\ \t\u3002\u2460ü", max_size=80),
)


def everything() -> EffectivePolicy:
    """A snapshot that uses every field."""
    statement = Statement(
        organisation="acme",
        delegation={Kind.NETWORK: Delegation.EXTEND, Kind.FILESYSTEM: Delegation.NONE},
        rules=(
            parse_rule(
                {"id": "o1", "name": "org", "effect": "allow", "resources": ["**.a.test", "10.0.0.0/8:22"]}
            ),
            parse_rule(
                {"id": "o2", "effect": "deny", "resources": ["b.a.test"], "teams": ["x"], "expires_at": 50}
            ),
            parse_rule({"id": "o3", "effect": "allow", "kind": "filesystem", "resources": ["~/work/**"]}),
        ),
        expires_at=1e9,
        support="call 1234",
    )
    own = (
        parse_rule({"id": "s1", "effect": "allow", "resources": ["**"], "inspect": "auto"}),
        parse_rule(
            {"id": "s2", "effect": "deny", "resources": ["**"], "methods": ["GET"], "paths": ["/x/*"]}
        ),
        parse_rule({"id": "s3", "effect": "allow", "resources": ["c.test"], "budget": {"bytes_per_day": 3}}),
    )
    return compose(
        Sources(
            preset=preset_document("balanced").rules,
            statement=statement,
            sandbox="box",
            sandbox_rules=own,
            base=Base.OWN,
            guards=Guards(host=("192.0.2.1",), product=("192.0.2.128/25",)),
            protected=("/var/lib/ringfence",),
            home="/home/dev",
        ),
        revision=12,
        now=0.0,
    )


def shipped(policy: EffectivePolicy) -> EffectivePolicy:
    return EffectivePolicy.from_wire(json.loads(json.dumps(policy.to_wire())))


def attempt(read, written) -> tuple:
    """Return what was read, or nothing and the complaint."""
    try:
        return read(written), ""
    except InvalidPolicy as error:
        return None, error.message


def test_a_snapshot_arrives_whole() -> None:
    policy = everything()
    rebuilt = shipped(policy)
    for field in (
        "revision",
        "organisation",
        "support",
        "governs",
        "bundle_expires_at",
        "guards",
        "protected",
        "home",
    ):
        assert getattr(rebuilt, field) == getattr(policy, field)
    assert rebuilt.to_wire() == policy.to_wire()
    assert all(entry.active for entry in rebuilt.entries)
    assert [len(group) for group in rebuilt.ceiling_entries] == [3]
    access = FilesystemAccess(path="/home/dev/work/x", action=FileAction.READ)
    assert decide_file(rebuilt, access, now=0.0) == decide_file(policy, access, now=0.0)
    assert decide_file(rebuilt, access, now=0.0).allowed


@given(policies, policies, accesses())
@settings(deadline=None, max_examples=60)
def test_both_ends_decide_alike_under_a_ceiling(
    org: list[Rule], own: list[Rule], access: NetworkAccess
) -> None:
    statement = Statement(organisation="acme", delegation={Kind.NETWORK: Delegation.NONE}, rules=tuple(org))
    sources = Sources(statement=statement, sandbox="b", sandbox_rules=tuple(own), base=Base.OWN)
    policy = compose(sources, revision=1, now=0.0)
    assert decide(shipped(policy), access, now=0.0) == decide(policy, access, now=0.0)


def test_only_what_counts_is_shipped() -> None:
    ids = [rule["id"] for rule in everything().to_wire()["rules"]]
    assert sorted(ids) == ["o1", "o2", "o3"]


BROKEN = [
    *(({key: None}, key) for key in everything().to_wire() if key not in ("bundle_expires_at",)),
    ({"version": 2}, "another version"),
    ({"revision": "x"}, "revision"),
    ({"governs": ["everything"]}, "unknown kind"),
    ({"guards": {"host": ["127.1"], "product": []}}, "host address"),
    ({"guards": {"host": []}}, "guards without product"),
    ({"rules": [{}]}, "empty rule"),
    ({"rules": [{"effect": "allow", "resources": ["a.test"], "id": "x"}]}, "no origin"),
    ({"rules": [{"effect": "allow", "resources": ["a.test"], "id": "x", "origin": "nowhere"}]}, "origin"),
    ({"rules": [{"effect": "allow", "resources": ["*"], "id": "x", "origin": "local"}]}, "resource"),
    ({"rules": [{"effect": "permit", "resources": ["a.test"], "id": "x", "origin": "local"}]}, "effect"),
    ({"rules": [3]}, "a number"),
    ({"ceilings": [3]}, "a number for a ceiling"),
    ({"bundle_expires_at": "never"}, "time"),
]


@pytest.mark.parametrize("change", [change for change, _ in BROKEN], ids=[name for _, name in BROKEN])
def test_a_broken_snapshot_is_refused_whole(change: dict) -> None:
    with pytest.raises(InvalidPolicy):
        EffectivePolicy.from_wire({**everything().to_wire(), **change})


@pytest.mark.parametrize("key", everything().to_wire())
def test_a_snapshot_that_lacks_something_is_refused(key: str) -> None:
    record = everything().to_wire()
    del record[key]
    with pytest.raises(InvalidPolicy):
        EffectivePolicy.from_wire(record)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_mutated_snapshot_is_refused_or_is_a_policy(data: st.DataObject) -> None:
    record = copy.deepcopy(everything().to_wire())
    place = record
    for _ in range(data.draw(st.integers(1, 4))):
        if isinstance(place, dict) and place:
            key = data.draw(st.sampled_from(sorted(place)))
        elif isinstance(place, list) and place:
            key = data.draw(st.integers(0, len(place) - 1))
        else:
            break
        if data.draw(st.booleans()) and isinstance(place[key], dict | list):
            place = place[key]
            continue
        place[key] = data.draw(
            st.sampled_from([None, "", "x", 0, -1, [], {}, [None], True, 1e300, float("nan")])
        )
        break
    try:
        policy = EffectivePolicy.from_wire(record)
    except InvalidPolicy:
        return
    assert decide(policy, parse_target("evil.test"), now=0.0).verdict is not Verdict.ALLOWED


@settings(max_examples=400, deadline=None)
@given(hostile)
def test_reading_a_resource_never_fails_otherwise(text: str) -> None:
    resource, said = attempt(parse_resource, text)
    assert len(said) < 600
    assert "\n" not in said
    if resource is not None:
        assert parse_resource(resource.text) == resource


@settings(max_examples=200, deadline=None)
@given(hostile)
def test_reading_a_list_a_target_or_a_rule_never_fails_otherwise(text: str) -> None:
    for read in (
        split_resources,
        parse_target,
        parse_path_pattern,
        lambda t: parse_rule({"effect": "deny", "resources": [t]}),
    ):
        try:
            read(text)
        except InvalidPolicy:
            continue


@settings(max_examples=400, deadline=None)
@given(hostile | st.binary(max_size=300))
def test_reading_a_host_from_the_wire_never_fails_otherwise(wire: str | bytes) -> None:
    for read in (canonical_host, lambda wire: split_authority(wire, 443)[0]):
        host, said = attempt(read, wire)
        assert len(said) < 1000
        if host is not None:
            assert canonical_host(host) == host
            assert host.isascii()
            assert len(host) <= 253


@settings(max_examples=300, deadline=None)
@given(hostile | st.text(alphabet="/.%2fFeE;\\ab", max_size=40).map("/".__add__))
def test_reading_a_path_never_fails_otherwise(text: str) -> None:
    try:
        path = canonical_path(text)
    except UnclearPathError:
        return
    assert not {"", ".", ".."} & set(path.split("/")[1:])


@settings(max_examples=200, deadline=None)
@given(hostile, st.integers(-5, 70_000), hostile, hostile)
def test_any_access_has_a_decision_and_nothing_unreadable_passes(
    host: str, port: int, method: str, path: str
) -> None:
    policy = compose(
        Sources(
            preset=preset_document("open").rules,
            local=(parse_rule({"effect": "deny", "name": "d", "resources": ["**"], "paths": ["/admin/**"]}),),
        ),
        revision=1,
        now=0.0,
    )
    access = NetworkAccess(host=host, port=port, method=method, path=path)
    decision = decide(policy, access, now=0.0)
    if decision.allowed:
        assert canonical_host(host) == host
        assert 0 < port < 65_536
        assert not canonical_path(path).startswith("/admin")
    judged = judge_address(policy, access, host, now=0.0)
    assert not judged.allowed or decision.allowed


def test_an_unknown_transport_is_refused() -> None:
    access = NetworkAccess(host="example.com", port=443, transport="sctp")  # type: ignore[arg-type]
    policy = compose(Sources(preset=preset_document("open").rules), revision=1, now=0.0)
    decision = decide(policy, access, now=0.0)
    assert (decision.verdict, decision.reason) == (Verdict.BLOCKED, Reason.FAILURE)


def test_udp_has_a_table_of_its_own_when_asked() -> None:
    policy = shipped(everything())
    assert (
        decide(policy, parse_target("x.a.test", transport=Transport.UDP), now=0.0).verdict is Verdict.BLOCKED
    )


@pytest.mark.parametrize(
    "pattern",
    ["a*" * 15 + "b.test", "a?*" * 10 + "z.test", "[ab]*" * 10 + "c.test", "**." + "a*" * 15 + "b.test"],
)
def test_no_pattern_takes_exponential_time(pattern: str) -> None:
    """Would not end in a lifetime if pieces could be tried in every place."""
    policy = compose(
        Sources(local=(parse_rule({"id": "r", "effect": "allow", "resources": [pattern]}),)),
        revision=1,
        now=0.0,
    )
    assert not decide(policy, parse_target("a" * 63 + ".test"), now=0.0).allowed
    assert not decide(policy, parse_target(".".join(["a" * 60] * 3) + ".test"), now=0.0).allowed


def test_no_path_pattern_takes_exponential_time() -> None:
    rule = {
        "id": "r",
        "effect": "allow",
        "resources": ["a.test"],
        "paths": ["/**/a*a*a*a*b/**/c*/**/d*/**/e/**/f"],
    }
    policy = compose(Sources(local=(parse_rule(rule),)), revision=1, now=0.0)
    path = "/" + "/".join(["aaaaaaaaac"] * 350)
    access = NetworkAccess(host="a.test", port=443, method="GET", path=path)
    assert decide(policy, access, now=0.0).verdict is Verdict.BLOCKED
