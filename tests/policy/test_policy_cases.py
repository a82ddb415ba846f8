"""Every line of the corpus, asked of the policy as composed, as the gateway rebuilds it, and with every order
turned."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from functools import cache

import pytest
from policy_corpus import SUFFIXES, Scenario, scenarios

from ringfence.policy import Decision, EffectivePolicy, compose

SCENARIOS = scenarios()
LINES = [
    pytest.param(scenario, line, id=f"{scenario.name}-{line[0]}")
    for scenario in SCENARIOS
    for line in scenario.lines
]
STANDINGS = [
    pytest.param(scenario, line, id=f"{scenario.name}-{line[0]}")
    for scenario in SCENARIOS
    for line in scenario.standings
]


@cache
def composed(name: str) -> EffectivePolicy:
    return next(scenario for scenario in SCENARIOS if scenario.name == name).policy()


@cache
def shipped(name: str) -> EffectivePolicy:
    return EffectivePolicy.from_wire(json.loads(json.dumps(composed(name).to_wire())))


@cache
def shuffled(name: str) -> EffectivePolicy:
    """The same sources with rules and resources in another order, and rules doubled under other ids."""
    scenario = next(scenario for scenario in SCENARIOS if scenario.name == name)
    draw, sources = random.Random(name), scenario.sources()
    turned = {
        key: tuple(
            replace(rule, resources=turn(draw, rule.resources)) for rule in turn(draw, getattr(sources, key))
        )
        for key in ("preset", "local", "sandbox_rules", "template_rules", "signed_out_ceiling")
    }
    if sources.statement:
        turned["statement"] = replace(sources.statement, rules=turn(draw, sources.statement.rules))
    return compose(
        replace(sources, **turned), revision=7, now=scenario.now, is_public_suffix=SUFFIXES.__contains__
    )


def turn(draw: random.Random, values: tuple) -> tuple:
    return tuple(draw.sample(values, len(values)))


@pytest.mark.parametrize("make", [composed, shipped, shuffled])
@pytest.mark.parametrize(("scenario", "line"), LINES)
def test_asked_and_answered(scenario: Scenario, line: list[str], make) -> None:
    asked, verdict, reason, by, *rest = line
    decision = scenario.ask(make(scenario.name), asked)
    assert told(decision) == (verdict, reason, names(by)), decision.text
    assert decision.revision == 7
    assert decision.text
    if scenario.facts.get("would"):
        assert {rule.name for rule in decision.would} == (names(rest[0]) if rest else set())
    if scenario.facts.get("inspect"):
        assert decision.inspect == rest[0]


@pytest.mark.parametrize(("scenario", "line"), STANDINGS)
def test_what_becomes_of_a_rule(scenario: Scenario, line: list[str]) -> None:
    name, origin, status = line
    found = {(entry.rule.name, entry.origin): entry.status for entry in composed(scenario.name).entries}
    assert found[name, origin] == status


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_the_answer_is_the_same_twice(scenario: Scenario) -> None:
    policy = composed(scenario.name)
    first = [scenario.ask(policy, line[0]) for line in scenario.lines]
    assert first == [scenario.ask(policy, line[0]) for line in scenario.lines]


def test_the_corpus_is_a_corpus() -> None:
    assert len(LINES) > 500


def told(decision: Decision) -> tuple[str, str, set[str]]:
    return str(decision.verdict), str(decision.reason), {rule.name for rule in decision.rules}


def names(by: str) -> set[str]:
    return set() if by == "-" else set(by.split(", "))
