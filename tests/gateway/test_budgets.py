"""Budgets of rules: requests a minute, tokens and bytes a day; what they refuse, when they renew, what survives."""

from __future__ import annotations

import json

import pytest
from gateway_dialogue import NOON, Dialogue, policy, rule
from h2.connection import H2Connection

from ringfence.gateway.core.budgets import DAY, Budgets
from ringfence.policy.model import Budget, Spent

GET = b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n"
POST = b"POST /v1/messages HTTP/1.1\r\nHost: a.test\r\nAccept-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"
MIDNIGHT = (NOON // DAY + 1) * DAY


def budgeted(**budget: int) -> Dialogue:
    return Dialogue(rule("allow", "a.test", name="models", budget=budget)).secure("a.test:443")


def asked(talk: Dialogue, request: bytes = GET, answer: bytes = OK) -> bytes:
    """Ask once more and return what the client gets."""
    before = talk.dialled
    talk.receive(request)
    if talk.dialled > before:
        talk.answer(answer)
    return talk.took()


def answer(tokens_in: int, tokens_out: int) -> bytes:
    usage = {"input_tokens": tokens_in, "output_tokens": tokens_out}
    body = json.dumps({"model": "m", "usage": usage}).encode()
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (
        len(body),
        body,
    )


# -- requests a minute ------------------------------------------------------------------------------------------------


def test_requests_are_counted_over_a_sliding_minute() -> None:
    talk = budgeted(requests_per_minute=2)
    assert asked(talk).startswith(b"HTTP/1.1 200")
    talk.now += 40
    assert asked(talk).startswith(b"HTTP/1.1 200")
    refused = asked(talk)
    assert refused.startswith(b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 20\r\n")
    assert b"the budget of rule `models` (local) is spent: 2 requests a minute" in refused
    assert b"To change this" not in refused
    talk.now += 19
    assert asked(talk).startswith(b"HTTP/1.1 429")
    talk.now += 1.5
    assert asked(talk).startswith(b"HTTP/1.1 200")
    assert asked(talk).startswith(b"HTTP/1.1 429")
    opened = [record for record in talk.records if record["step"] == "opened"]
    assert [record.get("status") for record in opened] == [None, None, 429, 429, None, 429]
    assert {record["rule"] for record in opened} == {"models"}
    assert [record["verdict"] for record in opened].count("blocked") == 3


def test_a_refused_request_reaches_nobody() -> None:
    talk = budgeted(requests_per_minute=1)
    asked(talk)
    talk.upstreams[0].took()
    asked(talk)
    assert talk.dialled == 1


def test_over_http_2_it_is_a_429_too() -> None:
    talk = Dialogue(rule("allow", "a.test", budget={"requests_per_minute": 1})).secure(
        "a.test:443", protocol="h2"
    )
    client = H2Connection()
    client.initiate_connection()
    seen = []
    for number in (1, 3):
        head = [(":method", "GET"), (":path", "/"), (":scheme", "https"), (":authority", "a.test")]
        client.send_headers(number, head, end_stream=True)
        before = talk.dialled
        talk.receive(client.data_to_send())
        if talk.dialled > before:
            talk.answer(OK)
        for event in client.receive_data(talk.took()):
            seen += [dict(event.headers)] if hasattr(event, "headers") else []
    assert [head[b":status"] for head in seen] == [b"200", b"429"]
    assert seen[1][b"retry-after"] == b"60"


# -- tokens a day -----------------------------------------------------------------------------------------------------


def test_tokens_block_from_the_next_request_on_until_midnight() -> None:
    talk = budgeted(tokens_per_day=100)
    assert asked(talk, POST, answer(60, 39)).startswith(b"HTTP/1.1 200")
    assert b"accept-encoding: identity" in talk.upstreams[0].took()
    assert asked(talk, POST, answer(1, 0)).startswith(b"HTTP/1.1 200")
    refused = asked(talk, POST)
    assert refused.startswith(b"HTTP/1.1 403")
    assert b"is spent: 100 tokens a day, which begins at midnight UTC" in refused
    assert b"Retry-After" not in refused
    closed = [record for record in talk.records if record["step"] == "closed"]
    told = [(each["model"], each["tokens_in"], each.get("tokens_out", 0), each["charged"]) for each in closed]
    assert told == [("m", 60, 39, closed[0]["rule_id"]), ("m", 1, 0, closed[0]["rule_id"])]
    talk = budgeted_again(talk)
    assert asked(talk, POST, answer(1, 1)).startswith(b"HTTP/1.1 200")


def budgeted_again(talk: Dialogue) -> Dialogue:
    """The same sandbox's next connection, after midnight."""
    talk.now = MIDNIGHT + 1
    return talk.secure("a.test:443")


def test_an_answer_that_cannot_be_counted_does_not_pass() -> None:
    talk = budgeted(tokens_per_day=100)
    packed = OK.replace(b"OK\r\n", b"OK\r\nContent-Type: text/event-stream\r\nContent-Encoding: gzip\r\n")
    assert asked(talk, POST, packed).startswith(b"HTTP/1.1 502")
    assert "encoded" in talk.records[-1]["text"]


# -- bytes a day ------------------------------------------------------------------------------------------------------


def test_bytes_end_a_running_stream_and_refuse_the_next() -> None:
    talk = budgeted(bytes_per_day=1000)
    talk.receive(GET).answer(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + b"x" * 500)
    assert talk.took().endswith(b"x" * 500)
    talk.answer(b"x" * 600)
    assert talk.took() == b""
    assert "reset" in talk.commands
    assert (talk.records[-1]["ended"], talk.records[-1]["status"]) == ("limit", 200)
    talk.secure("a.test:443")
    refused = asked(talk)
    assert refused.startswith(b"HTTP/1.1 403")
    assert b"is spent: 1000 bytes a day" in refused


def test_bytes_renew_at_midnight_on_a_connection_that_is_open() -> None:
    talk = budgeted(bytes_per_day=100)
    answered = b"HTTP/1.1 200 OK\r\nContent-Length: 200\r\n\r\n" + b"x" * 200
    assert asked(talk, GET, answered).startswith(b"HTTP/1.1 200")
    assert asked(talk).startswith(b"HTTP/1.1 403")
    talk.now = MIDNIGHT + 1
    assert talk.subject.budgets.renewed(talk.now)
    talk.subject.drain()
    assert asked(talk).startswith(b"HTTP/1.1 200")


def test_uploads_count_as_well() -> None:
    talk = budgeted(bytes_per_day=1000)
    talk.receive(b"PUT / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 5000\r\n\r\n")
    talk.receive(b"x" * 600)
    talk.receive(b"x" * 600)
    assert talk.records[-1]["ended"] == "limit"
    assert talk.upstreams[0].state == "closed"


def test_bytes_end_a_tunnel() -> None:
    talk = Dialogue(rule("allow", "a.test", budget={"bytes_per_day": 100})).redirected("a.test", 5432)
    talk.receive(b"\0\0\0\x08\x04\xd2\x16\x2f")
    tunnel = talk.asked[0][0]
    tunnel.moved(50, 60, talk.now)  # type: ignore[union-attr]
    assert (talk.records[-1]["ended"], talk.records[-1]["charged"]) == ("limit", talk.records[-1]["rule_id"])
    talk.redirected("a.test", 5432).receive(b"\0\0\0\x08\x04\xd2\x16\x2f")
    assert talk.records[-1]["verdict"] == "blocked"


# -- who pays ---------------------------------------------------------------------------------------------------------


def test_a_spent_rule_does_not_take_away_what_another_allows() -> None:
    talk = Dialogue(
        rule("allow", "a.test", budget={"requests_per_minute": 1, "bytes_per_day": 10}),
        rule("allow", "*.test"),
    ).secure("a.test:443")
    for _ in range(3):
        assert asked(talk).startswith(b"HTTP/1.1 200")


def test_a_budget_is_one_sandboxs_and_one_rules() -> None:
    talk = Dialogue(
        rule("allow", "a.test", budget={"requests_per_minute": 1}),
        rule("allow", "b.test", budget={"requests_per_minute": 1}),
    ).secure("a.test:443")
    asked(talk)
    talk.secure("b.test:443")
    assert asked(talk, GET.replace(b"a.test", b"b.test")).startswith(b"HTTP/1.1 200")


def test_a_policy_that_changes_meanwhile_ends_nothing_for_its_budgets() -> None:
    """The request that is the last of its minute is under way when another policy comes into force."""
    models = rule("allow", "a.test", budget={"requests_per_minute": 1, "tokens_per_day": 1})
    talk = Dialogue(models).secure("a.test:443")
    talk.receive(GET).answer(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nab")
    talk.bind(models, rule("allow", "b.test"))
    talk.answer(b"cd")
    assert talk.took().endswith(b"abcd")


# -- what survives ----------------------------------------------------------------------------------------------------

RULE = rule("allow", "a.test", budget={"tokens_per_day": 100, "bytes_per_day": 1000})
TODAY = int(NOON // DAY)


def bound(*, before: dict[str, tuple[int, int, int]], now: float = NOON) -> Budgets:
    budgets = Budgets()
    budgets.restore(before, now)
    budgets.bind(policy(RULE), now)
    return budgets


def test_a_new_worker_goes_on_where_the_one_before_ended() -> None:
    budgets = bound(before={RULE.id: (TODAY, 70, 500), "another": (TODAY, 1, 1)})
    assert budgets.at(NOON, counted=True)[RULE.id] == Spent(tokens=70, bytes=500)
    assert budgets.sums()[RULE.id] == (TODAY, 70, 500)
    assert budgets.sums()["another"] == (TODAY, 1, 1)


def test_yesterday_is_over() -> None:
    budgets = bound(before={RULE.id: (TODAY - 1, 70, 500)})
    assert budgets.at(NOON, counted=True)[RULE.id] == Spent()
    budgets = bound(before={RULE.id: (TODAY, 70, 500)})
    assert budgets.at(MIDNIGHT, counted=True)[RULE.id] == Spent()


def test_what_is_restored_never_makes_it_less() -> None:
    budgets = bound(before={RULE.id: (TODAY, 70, 500)})
    budgets.restore({RULE.id: (TODAY, 60, 600)}, NOON)
    assert budgets.at(NOON, counted=True)[RULE.id] == Spent(tokens=70, bytes=600)


def test_a_rule_that_comes_back_has_not_forgotten() -> None:
    budgets = bound(before={RULE.id: (TODAY, 70, 500)})
    budgets.bind(policy(rule("allow", "b.test")), NOON)
    assert not budgets
    budgets.bind(policy(RULE), NOON)
    assert budgets.at(NOON, counted=True)[RULE.id].tokens == 70


EXHAUSTED = [
    (Budget(tokens_per_day=5), Spent(tokens=5), "5 tokens a day"),
    (Budget(tokens_per_day=5), Spent(tokens=4, bytes=9, requests=9), ""),
    (Budget(requests_per_minute=0), Spent(), "0 requests a minute"),
    (Budget(bytes_per_day=7, requests_per_minute=1), Spent(bytes=8, requests=1), "7 bytes a day"),
]


@pytest.mark.parametrize(("budget", "spent", "text"), EXHAUSTED)
def test_a_budget_says_what_is_spent(budget: Budget, spent: Spent, text: str) -> None:
    said = budget.exhausted(spent)
    assert said.startswith(text)
    assert bool(said) is bool(text)
