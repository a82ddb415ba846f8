"""Microseconds per decision, at a hundred rules and at a hundred thousand. A figure, never a test.

    python bench/policy.py            # the table of docs/performance.md
    python bench/policy.py --json

``first`` is a name that was not asked for lately, ``again`` one that was, ``address`` a literal, ``dial`` the judgement
of an address that an allowed name was resolved to.

Rules are as people write them: 60 % exact names, 30 % wildcards, 5 % globs, 5 % networks, one in ten a deny, half of
them with a port. Half of the queries hit. Both policies are asked the same questions, turn by turn, so that a busy
machine slows both; the best of many rounds is the figure.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from ringfence.policy import (
    EffectivePolicy,
    NetworkAccess,
    Rule,
    Sources,
    Transport,
    compose,
    decide,
    judge_address,
    parse_rule,
)

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
SUFFIXES = ("com", "org", "net", "io", "dev", "ai", "co.uk")
QUESTIONS = 20_000
"""More than the engine remembers, so that every one is looked up; a tenth of them asked again and again is not."""


def word(draw: random.Random) -> str:
    return "x" + "".join(draw.choice(LETTERS) for _ in range(draw.randint(4, 10)))


def make_rules(count: int, seed: int = 7) -> list[Rule]:
    draw = random.Random(seed)
    rules = []
    for number in range(count):
        name = f"{word(draw)}.{draw.choice(SUFFIXES)}"
        kind = draw.random()
        if kind < 0.6:
            resource = f"{word(draw)}.{name}"
        elif kind < 0.9:
            resource = f"{draw.choice(('*', '**'))}.{name}"
        elif kind < 0.95:
            resource = f"{word(draw)}*.{name}"
        else:
            resource = f"{draw.randint(11, 99)}.{draw.randint(0, 255)}.{draw.randint(0, 255)}.0/24"
        port = ":443" if draw.random() < 0.5 else ""
        effect = "deny" if draw.random() < 0.1 else "allow"
        rules.append(parse_rule({"id": f"r{number}", "effect": effect, "resources": [resource + port]}))
    return rules


def make_questions(rules: Sequence[Rule], seed: int = 11) -> list[NetworkAccess]:
    draw = random.Random(seed)
    questions = []
    named = [rule.resources[0] for rule in rules if rule.resources[0].host]
    for _ in range(QUESTIONS):
        resource = draw.choice(named)
        host = f"{word(draw)}.{word(draw)}.{draw.choice(SUFFIXES)}"
        if draw.random() < 0.5:
            host = resource.host.replace("*", "q") if resource.shape != "one" else f"q.{resource.host}"
        questions.append(NetworkAccess(host=host, port=443))
    return questions


def decide_all(policy: EffectivePolicy, questions: Sequence[NetworkAccess]) -> None:
    for access in questions:
        decide(policy, access, now=0.0)


def judge_all(policy: EffectivePolicy, questions: Sequence[NetworkAccess]) -> None:
    for access in questions:
        judge_address(policy, access, "93.184.216.34", now=0.0)


def measure(small: int, large: int, rounds: int) -> dict[str, float]:
    rules = make_rules(large)
    figures: dict[str, float] = {}
    policies = {}
    for count in (small, large):
        gc.collect()
        start = time.perf_counter()
        policies[count] = compose(Sources(local=tuple(rules[:count])), revision=1, now=0.0)
        policies[count].index.table(Transport.TCP)
        figures[f"build_ms_{count}"] = (time.perf_counter() - start) * 1e3
        wire = json.dumps(policies[count].to_wire())
        start = time.perf_counter()
        EffectivePolicy.from_wire(json.loads(wire))
        figures[f"from_wire_ms_{count}"] = (time.perf_counter() - start) * 1e3
    gc.freeze()
    first = make_questions(rules)
    draw = random.Random(3)
    literal = [NetworkAccess(host=f"{draw.randint(11, 99)}.7.{n % 256}.9", port=443) for n in range(2000)]
    asked = {
        "first": (decide_all, first),
        "again": (decide_all, first[: len(first) // 10]),
        "address": (decide_all, literal),
        "dial": (judge_all, make_questions(rules[:small])[:2000]),
    }
    for what, (ask, questions) in asked.items():
        times = dict.fromkeys(policies, float("inf"))
        for _ in range(rounds):
            for count, policy in policies.items():
                start = time.perf_counter()
                ask(policy, questions)
                elapsed = time.perf_counter() - start
                times[count] = min(times[count], elapsed / len(questions) * 1e6)
        for count, figure in times.items():
            figures[f"{what}_us_{count}"] = figure
        figures[f"{what}_ratio"] = times[large] / times[small]
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", type=int, default=100)
    parser.add_argument("--large", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    figures = measure(options.small, options.large, options.rounds)
    if options.json:
        print(json.dumps(figures))
        return
    for name, figure in figures.items():
        print(f"{name:28} {figure:10.2f}")


if __name__ == "__main__":
    main()
