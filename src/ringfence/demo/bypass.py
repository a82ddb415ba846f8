"""Attempts to get around the gateway: proof that each channel exists, and proof that nothing got out.

Every attempt is a command. It runs first on the demo's host, where it must succeed (else a refusal would
prove nothing), and then inside the sandbox. It counts as refused only if three witnesses agree: the client
got no answer from outside, the site that was meant saw no packet, and no server was asked about the name.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ringfence.demo.checks import Check
from ringfence.demo.installation import PYTHON, Installation, Ran
from ringfence.demo.internet.places import (
    BY_NAME,
    ECHO,
    ECHO_PORT,
    FOREIGN_DNS,
    METADATA,
    QUIC,
    TUNNEL_ZONE,
)
from ringfence.demo.internet.witness import Sightings
from ringfence.demo.loopback import GREETING
from ringfence.demo.narration import Narrator
from ringfence.demo.world import end_session

LOOPBACK_PORT: Final = 11434
_PASTE: Final = BY_NAME["paste.ee"]
_ALLOWED: Final = BY_NAME["api.anthropic.com"]
_CURL: Final = ("curl", "-sS", "-m", "10", "-w", "\n%{http_code}\n")
_DIRECT: Final = (*_CURL, "--noproxy", "*")
_ATTEMPT: Final = ("python3", "attempt.py")
_SYNTHETIC: Final = re.compile(r"^answered: 198\.1[89]\.\d+\.\d+$")
_PROXY_VARIABLES: Final = ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "ALL_PROXY", "all_proxy")


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One way out that somebody might try."""

    title: str
    inside: tuple[str, ...]
    control: tuple[str, ...] = ()
    """What runs on the host, where ``inside`` would mean something else there."""
    target: str = _PASTE.name
    """The place that must hear nothing."""
    refused: Callable[[Ran], bool]
    """Whether what the client saw inside is a refusal."""
    name: str = ""
    """A name that no DNS server and no site may have been asked for."""


def _status(ran: Ran) -> str:
    return ran.out.strip().rpartition("\n")[2]


def _is_403(ran: Ran) -> bool:
    return ran.code == 0 and _status(ran) == "403"


def _is_403_or_421(ran: Ran) -> bool:
    return ran.code == 0 and _status(ran) in {"403", "421"}


def _got_no_page(ran: Ran) -> bool:
    """A 403 or 421 of ours, or no HTTP at all: a reset connection, a refused handshake."""
    return _is_403_or_421(ran) or (ran.code not in (0, 28, 124) and _status(ran) == "000")


def _got_nothing(ran: Ran) -> bool:
    """Refused at once; ``timed out`` would be a silence, not a refusal."""
    return ran.code == 1 and ran.out.startswith("nothing:") and "timed out" not in ran.out


def _got_no_reply(ran: Ran) -> bool:
    """A refusal, or silence: gVisor tells an ICMP socket of no refusal, so a ping inside just gets no reply."""
    return ran.code == 1 and ran.out.startswith("nothing:")


def _got_our_answer(ran: Ran) -> bool:
    return _SYNTHETIC.fullmatch(ran.out.strip()) is not None


ATTEMPTS: Final = (
    Attempt(
        title="unset the proxy variables",
        inside=("env", *(f"-u{name}" for name in _PROXY_VARIABLES), *_CURL, "https://paste.ee"),
        refused=_is_403,
        name="paste.ee",
    ),
    Attempt(
        title="unset them, plain HTTP",
        inside=(*_DIRECT, "http://paste.ee"),
        refused=_is_403,
        name="paste.ee",
    ),
    Attempt(
        title="raw IPv4 address",
        inside=(*_DIRECT, "-k", f"https://{_PASTE.v4}"),
        refused=_got_no_page,
    ),
    Attempt(
        title="raw IPv6 address",
        inside=(*_DIRECT, "-k", "-g", f"https://[{_PASTE.v6}]"),
        refused=_got_no_page,
    ),
    Attempt(
        title="CONNECT to an allowed host's raw address",
        inside=(
            *_CURL,
            "-k",
            "--connect-to",
            f"{_ALLOWED.name}:443:{_ALLOWED.v4}:443",
            f"https://{_ALLOWED.name}",
        ),
        target=_ALLOWED.name,
        refused=_got_no_page,
    ),
    Attempt(
        title="wrong SNI: tunnel to an allowed host, TLS for another",
        inside=(*_CURL, "-k", "--connect-to", f"paste.ee:443:{_ALLOWED.name}:443", "https://paste.ee"),
        refused=_got_no_page,
        name="paste.ee",
    ),
    Attempt(
        title="wrong Host: allowed SNI, another site in the request",
        inside=(*_CURL, "-H", "Host: paste.ee", f"https://{_ALLOWED.name}"),
        refused=_is_403_or_421,
        name="paste.ee",
    ),
    Attempt(
        title="another DNS server",
        inside=(*_ATTEMPT, "dns", FOREIGN_DNS.v4, "A", "paste.ee"),
        target=FOREIGN_DNS.name,
        refused=_got_our_answer,
        name="paste.ee",
    ),
    Attempt(
        title="another DNS server, over TCP",
        inside=(*_ATTEMPT, "dns-tcp", FOREIGN_DNS.v4, "A", "paste.ee"),
        target=FOREIGN_DNS.name,
        refused=_got_our_answer,
        name="paste.ee",
    ),
    Attempt(
        title="DNS tunnel: a secret in a TXT question",
        inside=(*_ATTEMPT, "dns", FOREIGN_DNS.v4, "TXT", f"c2VjcmV0.{TUNNEL_ZONE}"),
        target=FOREIGN_DNS.name,
        refused=_got_nothing,
        name=TUNNEL_ZONE,
    ),
    Attempt(
        title="raw TCP that is neither TLS nor HTTP",
        inside=(*_ATTEMPT, "tcp", ECHO.v4, str(ECHO_PORT), "secret"),
        target=ECHO.name,
        refused=_got_nothing,
    ),
    Attempt(
        title="UDP",
        inside=(*_ATTEMPT, "udp", ECHO.v4, str(ECHO_PORT), "secret"),
        target=ECHO.name,
        refused=_got_nothing,
    ),
    Attempt(
        title="UDP over IPv6",
        inside=(*_ATTEMPT, "udp", ECHO.v6, str(ECHO_PORT), "secret"),
        target=ECHO.name,
        refused=_got_nothing,
    ),
    Attempt(
        title="QUIC to an allowed host, whose rule covers UDP",
        inside=(*_ATTEMPT, "quic", QUIC.name, "443", "secret"),
        target=QUIC.name,
        refused=_got_nothing,
    ),
    Attempt(
        title="ICMP echo",
        inside=(*_ATTEMPT, "icmp", ECHO.v4),
        target=ECHO.name,
        refused=_got_no_reply,
    ),
    Attempt(
        title="the cloud's metadata service",
        inside=(*_DIRECT, f"http://{METADATA.v4}/latest/meta-data/"),
        target=METADATA.name,
        refused=_is_403,
    ),
    Attempt(
        title="another port of the gateway itself",
        inside=(*_DIRECT, "http://gateway.docker.internal:8080/"),
        control=(*_CURL, "http://paste.ee/"),
        refused=_got_no_page,
    ),
    Attempt(
        title="a service on the host's loopback, without a rule",
        inside=(*_CURL, f"http://host.docker.internal:{LOOPBACK_PORT}/"),
        control=(*_CURL, f"http://127.0.0.1:{LOOPBACK_PORT}/"),
        refused=lambda ran: _is_403(ran) and GREETING.strip() not in ran.out,
    ),
)


def judge(attempt: Attempt, control: Ran, inside: Ran, sightings: Sightings) -> Check:
    """Say whether an attempt was refused, from what the host got, the sandbox got, and the internet saw."""
    packets = sightings.packets_to(attempt.target)
    questions = sightings.questions_about(attempt.name) if attempt.name else 0
    requests = sightings.requests_for(attempt.name) if attempt.name else 0
    works = control.code == 0 and (control.out.startswith("answered:") or _status(control) == "200")
    problems = [
        *([] if works else [f"the channel does not work from the host either ({control.said})"]),
        *([] if attempt.refused(inside) else [f"inside: exit {inside.code}, {inside.said or 'no output'}"]),
        *([f"{attempt.target} saw {packets} packets"] if packets else []),
        *([f"{requests} requests for {attempt.name} were served"] if requests else []),
        *([f"{questions} DNS questions about {attempt.name}"] if questions else []),
        *([f"the packet counter missed {sightings.lost}"] if sightings.lost else []),
    ]
    ending = "NOT refused" if problems else f"refused; {attempt.target} saw nothing"
    said = _status(inside) if _status(inside).isdigit() else inside.said
    return Check(
        name=f"{attempt.title} → {_in_words(said)} → {ending}",
        expected="refused, and nobody outside heard of it",
        got="; ".join(problems) or "refused",
        passed=not problems,
    )


_WORDS: Final = {
    "000": "no connection",
    "403": "403 from the gateway",
    "421": "421 from the gateway: the names disagree",
    "timed out": "no reply",
}


def _in_words(said: str) -> str:
    last = re.sub(r"^nothing: (?:\[Errno \d+\] )?", "", said.strip().rpartition("\n")[2]) or "nothing"
    if _SYNTHETIC.fullmatch(last):
        return f"our own resolver {last}"
    return _WORDS.get(last, last)


@contextmanager
def loopback_service(installation: Installation, port: int = LOOPBACK_PORT) -> Iterator[None]:
    """A service on the loopback of the world's host, for as long as the context lasts."""
    service = installation.world.start(
        (*PYTHON, "-m", "ringfence.demo.loopback", str(port)),
        environment=installation.environment,
        stderr=subprocess.DEVNULL,
    )
    try:
        assert service.stdout is not None
        service.stdout.readline()
        yield
    finally:
        end_session(service)
        service.wait()
        if service.stdout is not None:
            service.stdout.close()


def try_to_get_out(installation: Installation, sandbox: str, narrator: Narrator) -> None:
    """Make every attempt, on the host and then in the sandbox, and check it."""
    world = installation.world
    script = Path(__file__).with_name("attempt.py").read_text()
    installation.write(installation.scratch / "attempt.py", script)
    with loopback_service(installation):
        for attempt in ATTEMPTS:
            control = installation.host(*(attempt.control or attempt.inside), must=False)
            world.forget()
            inside = installation.sbx("exec", sandbox, *attempt.inside, timeout=30.0, must=False)
            narrator.check(judge(attempt, control, inside, world.sightings()))
