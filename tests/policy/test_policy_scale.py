"""A decision looks at what matches and at nothing else, however many rules there are.

Counted, not timed: the lines of the engine that run for a question are the same under a hundred rules and under
thousands, and so are the clauses that are looked at. Figures are the business of ``bench/policy.py``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache
from types import FrameType

import pytest

from ringfence.policy import (
    EffectivePolicy,
    NetworkAccess,
    Sources,
    compose,
    decide,
    judge_address,
    parse_rule,
)
from ringfence.policy.model import Transport

KINDS: dict[str, Callable[[int], str]] = {
    "exact": lambda n: f"h{n}.example.com",
    "one": lambda n: f"*.h{n}.example.com",
    "deep": lambda n: f"**.h{n}.example.com",
    "glob by suffix": lambda n: f"api*.h{n}.example.com",
    "glob by head": lambda n: f"h{n:05}x*.example.com",
    "glob by tail": lambda n: f"*x{n:05}.example.com",
    "address": lambda n: f"21.{n // 65536}.{n // 256 % 256}.{n % 256}",
    "network": lambda n: f"{20 + n // 65536}.{n // 256 % 256}.{n % 256}.0/24",
    "port": lambda n: f"one.example.com:{1024 + n}",
    "range": lambda n: f"one.example.com:{1024 + n}-{1025 + n}",
    "everything on a port": lambda n: f"**:{1024 + n}",
}

QUESTIONS = [
    NetworkAccess(host="h7.example.com", port=443),
    NetworkAccess(host="x.h7.example.com", port=443),
    NetworkAccess(host="apis.h7.example.com", port=443),
    NetworkAccess(host="h00007xyz.example.com", port=443),
    NetworkAccess(host="one.example.com", port=1031),
    NetworkAccess(host="nowhere.test", port=443),
    NetworkAccess(host="21.0.0.7", port=443),
    NetworkAccess(host="20.0.7.9", port=443),
]
SMALL, LARGE = 100, 3000


@cache
def policy(kind: str, count: int) -> EffectivePolicy:
    found = (
        parse_rule({"id": f"r{n}", "effect": "allow", "resources": [KINDS[kind](n)]}) for n in range(count)
    )
    return compose(Sources(local=tuple(found)), revision=1, now=0.0)


@pytest.mark.parametrize("kind", KINDS)
def test_as_many_lines_run_under_thousands_of_rules_as_under_a_hundred(kind: str) -> None:
    for access in QUESTIONS:
        assert effort(policy(kind, LARGE), access) == effort(policy(kind, SMALL), access), access


@pytest.mark.parametrize("kind", KINDS)
def test_an_address_is_judged_as_cheaply(kind: str) -> None:
    def ask(count: int) -> int:
        judged = policy(kind, count)
        access = NetworkAccess(host="h7.example.com", port=443)
        judge_address(judged, access, "21.0.0.7", now=0.0)
        return lines(lambda: judge_address(judged, access, "21.0.0.7", now=0.0))

    assert ask(LARGE) == ask(SMALL)


@pytest.mark.parametrize("kind", KINDS)
def test_only_what_matches_is_looked_at(kind: str) -> None:
    table = policy(kind, LARGE).index.table(Transport.TCP)
    for access in QUESTIONS[:6]:
        hits = table.name(access.host, access.port)
        assert sum(len(bucket.clauses) for bucket in hits) <= 2


def test_requests_of_one_host_are_found_by_path() -> None:
    def ask(count: int) -> int:
        rules = (
            parse_rule({"id": f"r{n}", "effect": "allow", "resources": ["a.test"], "paths": [f"/p{n:05}/**"]})
            for n in range(count)
        )
        made = compose(Sources(local=tuple(rules)), revision=1, now=0.0)
        access = NetworkAccess(host="a.test", port=443, method="GET", path="/p00007/x/y")
        assert decide(made, access, now=0.0).allowed
        return lines(lambda: decide(made, access, now=0.0))

    assert ask(2000) == ask(SMALL)


def test_what_is_remembered_is_bounded() -> None:
    from ringfence.policy.index import NAMES

    made = policy("deep", SMALL)
    for number in range(NAMES + 10):
        decide(made, NetworkAccess(host=f"n{number}.h7.example.com", port=443), now=0.0)
    assert len(made.index.known) <= NAMES


def effort(made: EffectivePolicy, access: NetworkAccess) -> tuple[int, int]:
    """Lines of the engine that run the first time and the second time a question is asked."""
    decide(made, NetworkAccess(host="warm.test", port=1), now=0.0)
    decide(made, access, now=0.0)
    made.index.known.clear()
    return lines(lambda: decide(made, access, now=0.0)), lines(lambda: decide(made, access, now=0.0))


def lines(ask: Callable[[], object]) -> int:
    count = 0

    def trace(frame: FrameType, event: str, _: object):
        nonlocal count
        count += event == "line" and "ringfence/policy" in frame.f_code.co_filename
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        ask()
    finally:
        sys.settrace(before)
    return count
