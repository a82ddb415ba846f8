"""An attempt is refused only if the client got nothing, nobody outside heard of it, and the channel works."""

from __future__ import annotations

import pytest

from ringfence.demo.attempt import NoAnswerError, _answers, _question
from ringfence.demo.bypass import ATTEMPTS, Attempt, judge
from ringfence.demo.installation import Ran
from ringfence.demo.internet.witness import Flow, Notebook, Sightings

BY_TITLE = {attempt.title: attempt for attempt in ATTEMPTS}
NOTHING = Sightings.parse(Notebook().snapshot())


def ran(out: str = "", code: int = 0, err: str = "") -> Ran:
    return Ran(command="x", code=code, out=out, err=err)


PAGE = ran("Hello from somewhere.\n200\n")
REFUSED_PAGE = ran("Blocked by network policy\n403\n")
ANSWERED = ran("answered: 'secret'\n")
UNREACHABLE = ran("nothing: [Errno 111] Connection refused\n", code=1)


def control(attempt: Attempt) -> Ran:
    return PAGE if "curl" in attempt.inside else ANSWERED


def refusal(attempt: Attempt) -> Ran:
    if "curl" in attempt.inside:
        return REFUSED_PAGE
    asks_for_an_address = attempt.inside[2].startswith("dns") and "A" in attempt.inside
    return ran("answered: 198.18.0.9\n") if asks_for_an_address else UNREACHABLE


@pytest.mark.parametrize("title", BY_TITLE)
def test_a_refusal_that_nobody_heard_of_passes(title: str) -> None:
    attempt = BY_TITLE[title]
    assert judge(attempt, control(attempt), refusal(attempt), NOTHING).passed


@pytest.mark.parametrize("title", BY_TITLE)
def test_an_answer_from_outside_fails(title: str) -> None:
    attempt = BY_TITLE[title]
    assert not judge(attempt, control(attempt), control(attempt), NOTHING).passed


@pytest.mark.parametrize("title", [title for title in BY_TITLE if title != "ICMP echo"])
def test_silence_is_not_a_refusal(title: str) -> None:
    attempt = BY_TITLE[title]
    silence = ran("\n000\n", code=28) if "curl" in attempt.inside else ran("nothing: timed out\n", code=1)
    assert not judge(attempt, control(attempt), silence, NOTHING).passed


@pytest.mark.parametrize("title", BY_TITLE)
def test_a_channel_that_does_not_exist_proves_nothing(title: str) -> None:
    attempt = BY_TITLE[title]
    check = judge(attempt, ran("", code=7), refusal(attempt), NOTHING)
    assert not check.passed
    assert "from the host" in check.got


@pytest.mark.parametrize("title", BY_TITLE)
def test_one_packet_outside_fails_it(title: str) -> None:
    from ringfence.demo.internet.places import BY_NAME

    attempt = BY_TITLE[title]
    notebook = Notebook()
    notebook.packet(Flow(address=BY_NAME[attempt.target].v4, protocol="udp", port=9))
    check = judge(attempt, control(attempt), refusal(attempt), Sightings.parse(notebook.snapshot()))
    assert not check.passed
    assert "saw 1 packets" in check.got


def test_a_question_about_the_name_fails_it() -> None:
    attempt = BY_TITLE["DNS tunnel: a secret in a TXT question"]
    notebook = Notebook()
    notebook.questions.append({"server": "dns.isp.example", "name": "c2VjcmV0.tunnel.example", "type": "TXT"})
    assert not judge(attempt, ANSWERED, UNREACHABLE, Sightings.parse(notebook.snapshot())).passed


def test_a_front_that_served_the_other_site_fails_it() -> None:
    attempt = BY_TITLE["wrong Host: allowed SNI, another site in the request"]
    notebook = Notebook()
    notebook.requests.append({"origin": "api.anthropic.com", "host": "paste.ee"})
    assert not judge(attempt, PAGE, REFUSED_PAGE, Sightings.parse(notebook.snapshot())).passed


def test_the_attempts_dns_reads_what_the_worlds_dns_writes() -> None:
    from ringfence.demo.internet.services import answer

    reply = answer("dns.google", _question("paste.ee", 1), Notebook())
    assert reply is not None
    assert _answers(reply) == "203.0.113.18"
    reply = answer("dns.google", _question("nobody.example", 1), Notebook())
    assert reply is not None
    with pytest.raises(NoAnswerError, match="empty DNS answer, code 3"):
        _answers(reply)
