"""The theorems of evaluation, each under its name, and agreement with the naive reference."""

from __future__ import annotations

import json
from dataclasses import replace

import naive
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from policy_worlds import ADDRESSES, PATHS, accesses, names, policies, rules

from ringfence.policy import (
    Base,
    Decision,
    Delegation,
    Effect,
    EffectivePolicy,
    Kind,
    Mode,
    NetworkAccess,
    Reason,
    Rule,
    Sources,
    Statement,
    Verdict,
    canonical_host,
    compose,
    decide,
    judge_address,
    parse_resource,
    parse_rule,
    rule_record,
)

quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
thorough = settings(quick, max_examples=250)

RANK = {Verdict.BLOCKED: 0, Verdict.APPROVAL: 1, Verdict.UNDETERMINED: 2, Verdict.ALLOWED: 3}
dialled = st.sampled_from(ADDRESSES).map(canonical_host)


def made_of(*found: Rule) -> EffectivePolicy:
    return compose(Sources(local=tuple(found)), revision=1, now=0.0)


def ask(found: list[Rule], access: NetworkAccess) -> Decision:
    return decide(made_of(*found), access, now=0.0)


def by(decision: Decision) -> frozenset[str]:
    return frozenset(rule.id for rule in decision.rules)


@thorough
@given(policies, accesses())
def test_decide_agrees_with_the_naive_reference(found: list[Rule], access: NetworkAccess) -> None:
    decision, expected = ask(found, access), naive.decide(found, access)
    assert (decision.verdict, str(decision.reason), by(decision)) == (
        expected.verdict,
        expected.reason,
        expected.rules,
    )


@thorough
@given(policies, accesses(names), dialled)
def test_judging_an_address_agrees_with_the_naive_reference(
    found: list[Rule], access: NetworkAccess, address: str
) -> None:
    decision = judge_address(made_of(*found), access, address, now=0.0)
    expected = naive.judge(found, access, address)
    assert (decision.verdict, str(decision.reason), by(decision)) == (
        expected.verdict,
        expected.reason,
        expected.rules,
    )


@quick
@given(policies, accesses(), st.booleans())
def test_deny_trumps_allow(found: list[Rule], access: NetworkAccess, exact: bool) -> None:
    local = access.host == "localhost"
    named = exact and not access.host[-1].isdigit() and ":" not in access.host
    deny = Rule(
        id="deny", effect=Effect.DENY, resources=(parse_resource(access.host if named or local else "**"),)
    )
    decision = ask([*found, deny], access)
    assert decision.verdict is Verdict.BLOCKED
    assert decision.reason is Reason.GUARD or "deny" in by(decision)


@quick
@given(policies, accesses())
def test_allowed_only_if_an_active_allow_matches(found: list[Rule], access: NetworkAccess) -> None:
    decision = ask(found, access)
    if decision.verdict is Verdict.ALLOWED:
        allows = {rule.id for rule in found if rule.effect is Effect.ALLOW and rule.mode is Mode.ENFORCE}
        assert decision.rules
        assert by(decision) <= allows


@quick
@given(accesses())
def test_default_deny(access: NetworkAccess) -> None:
    assert ask([], access).verdict is Verdict.BLOCKED


@quick
@given(policies, accesses(), st.data())
def test_adding_an_allow_never_blocks_what_was_allowed(
    found: list[Rule], access: NetworkAccess, data: st.DataObject
) -> None:
    more = data.draw(rules(effect=Effect.ALLOW, id="more"))
    before, after = ask(found, access), ask([*found, more], access)
    if before.verdict is Verdict.ALLOWED:
        assert after.verdict is Verdict.ALLOWED
        assert by(before) <= by(after)
    assert RANK[after.verdict] >= RANK[before.verdict]


@quick
@given(policies, accesses(), st.data())
def test_adding_a_deny_never_allows_what_was_blocked(
    found: list[Rule], access: NetworkAccess, data: st.DataObject
) -> None:
    more = data.draw(rules(effect=Effect.DENY, id="more"))
    before, after = ask(found, access), ask([*found, more], access)
    if before.verdict in (Verdict.BLOCKED, Verdict.APPROVAL):
        assert after.verdict in (Verdict.BLOCKED, Verdict.APPROVAL, Verdict.UNDETERMINED)
        assert after.verdict is not Verdict.ALLOWED
    if before.verdict is Verdict.BLOCKED:
        assert after.verdict is Verdict.BLOCKED


@quick
@given(policies, accesses(names), dialled, st.data())
def test_no_deny_opens_an_address_and_no_allow_shuts_one(
    found: list[Rule], access: NetworkAccess, address: str, data: st.DataObject
) -> None:
    def may_dial(rules: list[Rule]) -> bool:
        decision = judge_address(made_of(*rules), access, address, now=0.0)
        return decision.verdict in (Verdict.ALLOWED, Verdict.UNDETERMINED)

    before = may_dial(found)
    if before:
        assert may_dial([*found, data.draw(rules(effect=Effect.ALLOW, id="more"))])
    else:
        assert not may_dial([*found, data.draw(rules(effect=Effect.DENY, id="more"))])


@quick
@given(policies, accesses(), st.randoms(use_true_random=False))
def test_order_and_duplicates_never_matter(found: list[Rule], access: NetworkAccess, draw) -> None:
    turned = draw.sample(found, len(found))
    twice = [replace(rule, resources=rule.resources[::-1] + rule.resources[:1]) for rule in turned]
    assert ask(turned, access) == ask(found, access) == ask(twice, access)


@quick
@given(policies, accesses())
def test_determining_rules_are_exactly_the_active_matches_of_the_winning_effect(
    found: list[Rule], access: NetworkAccess
) -> None:
    decision = ask(found, access)
    if decision.reason is not Reason.RULE or decision.verdict is Verdict.UNDETERMINED:
        return
    effect = {Verdict.BLOCKED: Effect.DENY, Verdict.ALLOWED: Effect.ALLOW, Verdict.APPROVAL: Effect.APPROVAL}
    assert {rule.effect for rule in decision.rules} == {effect[decision.verdict]}
    for rule in found:
        alone = ask([rule], access)
        if rule.effect is effect[decision.verdict] and rule.id in by(alone):
            assert rule.id in by(decision)


@quick
@given(policies, accesses(names))
def test_a_bare_allowed_holds_for_every_request(found: list[Rule], access: NetworkAccess) -> None:
    bare = ask(found, replace(access, method="", path=""))
    requests = [
        ask(found, replace(access, method=method, path=path))
        for method in ("GET", "POST", "BREW")
        for path in (*PATHS, "/../x", "/%zz", "//")
    ]
    if bare.verdict is Verdict.ALLOWED:
        assert {decision.verdict for decision in requests} == {Verdict.ALLOWED}
    elif bare.verdict is Verdict.BLOCKED:
        assert {decision.verdict for decision in requests} == {Verdict.BLOCKED}
    assert Verdict.UNDETERMINED not in {decision.verdict for decision in requests}


@quick
@given(policies, accesses())
def test_an_evaluated_rule_never_changes_a_verdict(found: list[Rule], access: NetworkAccess) -> None:
    enforced = [rule for rule in found if rule.mode is Mode.ENFORCE]
    decision = ask(found, access)
    assert replace(decision, would=()) == ask(enforced, access)
    assert {rule.id for rule in decision.would} <= {rule.id for rule in found} - {
        rule.id for rule in enforced
    }


@quick
@given(policies, policies, policies, policies, accesses(), st.sampled_from(Base))
def test_no_developer_override(org, preset, local, more, access: NetworkAccess, base: Base) -> None:
    """Where nothing is delegated the decision is the same whatever local, preset and template rules are."""
    statement = Statement(organisation="acme", delegation={Kind.NETWORK: Delegation.NONE}, rules=tuple(org))

    def under(*developers: tuple[Rule, ...]) -> Decision:
        preset, local, template = developers
        sources = Sources(
            statement=statement, preset=preset, local=local, template_rules=template, template_accepted=True
        )
        return decide(compose(sources, revision=1, now=0.0), access, now=0.0)

    alone = under((), (), ())
    assert under(tuple(preset), tuple(local), tuple(more)) == alone
    if base is Base.OWN:
        own = Sources(statement=statement, sandbox_rules=tuple(local), base=base)
        ceiled = decide(compose(own, revision=1, now=0.0), access, now=0.0)
        assert ceiled.verdict is not Verdict.ALLOWED or alone.verdict is Verdict.ALLOWED


@quick
@given(policies, policies, accesses(), st.sampled_from(Delegation))
def test_an_organisations_deny_always_wins(org, local, access: NetworkAccess, delegation: Delegation) -> None:
    statement = Statement(organisation="acme", delegation={Kind.NETWORK: delegation}, rules=tuple(org))
    decision = decide(
        compose(Sources(statement=statement, local=tuple(local)), revision=1, now=0.0), access, now=0.0
    )
    alone = ask(org, access)
    if alone.verdict is Verdict.BLOCKED and alone.reason is Reason.RULE:
        assert decision.verdict is Verdict.BLOCKED


@quick
@given(policies, policies, accesses())
def test_a_ceiling_allows_what_both_allow(org, own, access: NetworkAccess) -> None:
    statement = Statement(organisation="acme", delegation={Kind.NETWORK: Delegation.NONE}, rules=tuple(org))
    sources = Sources(statement=statement, sandbox="box", sandbox_rules=tuple(own), base=Base.OWN)
    decision = decide(compose(sources, revision=1, now=0.0), access, now=0.0)
    both = {ask(org, access).verdict, ask(own, access).verdict}
    if decision.verdict is Verdict.ALLOWED:
        assert both == {Verdict.ALLOWED}
    if both == {Verdict.ALLOWED}:
        assert decision.verdict is Verdict.ALLOWED


@quick
@given(policies, accesses())
def test_the_gateway_decides_what_the_daemon_decides(found: list[Rule], access: NetworkAccess) -> None:
    policy = made_of(*found)
    rebuilt = EffectivePolicy.from_wire(json.loads(json.dumps(policy.to_wire())))
    assert decide(rebuilt, access, now=0.0) == decide(policy, access, now=0.0)
    assert rebuilt.to_wire() == policy.to_wire()


@quick
@given(rules())
def test_print_then_parse_is_the_identity(rule: Rule) -> None:
    assert parse_rule(json.loads(json.dumps(rule_record(rule)))) == rule


@quick
@given(rules())
def test_normalisation_is_idempotent(rule: Rule) -> None:
    for resource in rule.resources:
        assert parse_resource(resource.text) == resource
        assert parse_resource(resource.text).text == resource.text
