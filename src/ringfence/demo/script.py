"""What is done in the network demo, word for word: three rules, the commands typed, what results mean.

The commands are those of the network enforcement demo, unchanged. Nothing here is computed, so that a reader
can hold this page against what the terminal shows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True, kw_only=True)
class ScriptRule:
    """A rule as a person adds it."""

    effect: str
    name: str
    resources: tuple[str, ...]


RULES: Final = (
    ScriptRule(
        effect="allow",
        name="allow AI services",
        resources=(
            "api.anthropic.com:443",
            "api.openai.com:443",
            "platform.claude.com:443",
            "*.googleapis.com:443",
            "statsig.anthropic.com:443",
        ),
    ),
    ScriptRule(
        effect="allow",
        name="allow Docker services",
        resources=("*.docker.com:443", "*.docker.io:443", "dhi.io:443"),
    ),
    ScriptRule(
        effect="deny", name="deny exfiltration", resources=("paste.ee", "pastebin.com", "hooks.slack.com")
    ),
)

PROTOCOLS: Final = ("--protocol", "tcp", "--protocol", "udp")
"""Of each of them. A QUIC connection of an allowed host is refused all the same: nobody could look inside."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScriptRequest:
    """One of the three requests: what is typed, what must come back, and what that proves."""

    host: str
    line: str
    label: str
    code: str
    meaning: str

    @property
    def expected(self) -> str:
        return f"{self.label}: {self.code}"


REQUESTS: Final = (
    ScriptRequest(
        host="api.anthropic.com",
        line=r'curl -sS https://api.anthropic.com -o /dev/null -w "anthropic: %{http_code}\n"',
        label="anthropic",
        code="200",
        meaning="The connection reached the site: the gateway let it through, `allow AI services` covers it.",
    ),
    ScriptRequest(
        host="paste.ee",
        line=r'curl -sS https://paste.ee -o /dev/null -w "paste.ee: %{http_code}\n"',
        label="paste.ee",
        code="403",
        meaning="The gateway refused. paste.ee never received a connection: `deny exfiltration` blocked it.",
    ),
    ScriptRequest(
        host="example.com",
        line=r'curl -sS https://example.com -o /dev/null -w "example.com: %{http_code}\n"',
        label="example.com",
        code="403",
        meaning="The gateway refused. No allow rule covers it, so default deny catches it.",
    ),
)

VERBOSE: Final = "curl -v https://paste.ee 2>&1 | head -50"
VERBOSE_END: Final = "curl -v https://paste.ee 2>&1 | head -80 | tail -30"
VERBOSE_HTTP11: Final = "curl -v --http1.1 https://paste.ee 2>&1 | head -80 | tail -30"
HOST_VERBOSE: Final = ("curl", "-v", "https://paste.ee")
BLOCKED_BODY: Final = "curl -sS https://paste.ee"
