"""Credentials as the host keeps them and as the gateway applies them: the table of services, and bindings.

A *secret* stays on the host. A *binding* is what the gateway gets of it for one sandbox: the value, the hosts that
may see it (over verified TLS only) and how it is put into a request. Inside the sandbox there is a *placeholder* in
the usual variable, worth nothing anywhere else (GATEWAY.md section 6).

A service's binding overwrites: whatever the client sent under that header is deleted and one value is set. A custom
secret's binding replaces: the placeholder gives way to the value where it stands, in the declared header.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

PROXY_MANAGED: Final = "proxy-managed"
"""What an agent sees where its key would be."""
GITHUB_PLACEHOLDER: Final = "gho_sbxproxymanaged000000000000000000000"
"""Tools look at a GitHub token's prefix and length before they use it."""


class Form(StrEnum):
    """How a value is put into a request."""

    PLAIN = "plain"
    """``header: VALUE``."""
    BEARER = "bearer"
    """``header: Bearer VALUE`` (RFC 6750)."""
    BASIC = "basic"
    """``header: Basic base64(user:VALUE)`` (RFC 7617)."""
    SIGV4 = "sigv4"
    """The request is signed anew (AWS Signature Version 4); values are ``access_key_id``, ``secret_access_key`` and
    perhaps ``session_token``."""
    REPLACE = "replace"
    """The placeholder gives way to the value where it stands in the header, also inside Basic's base64."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where a credential goes. ``hosts`` are network resources in the language of rules; without a port, 443."""

    hosts: tuple[str, ...]
    form: Form
    header: str = "authorization"
    """Lower case."""
    user: str = ""
    """Of ``BASIC``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """One row of the table: what a provider's clients read, and where its credential goes."""

    name: str
    title: str
    variables: tuple[tuple[str, str], ...]
    """Environment variable inside, and the placeholder that it holds."""
    targets: tuple[Target, ...]
    parts: tuple[str, ...] = ("value",)
    """What has to be stored; the last may be absent if it ends in ``?``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """One credential of one sandbox, as the gateway worker gets it."""

    name: str
    """The service, or the variable of a custom secret: what the audit calls it. Never the value."""
    targets: tuple[Target, ...]
    placeholders: tuple[str, ...] = ()
    """What stands for it inside; anywhere else on the wire it is misuse."""
    values: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    """Parts by name; one part is called ``value``."""
    unavailable: str = ""
    """Why there is no value (minting failed): requests that need it are answered 502, never sent bare."""
    exclusive: bool = False
    """A credential of somebody else's towards these hosts is refused."""
    in_query: bool = False
    in_body: bool = False
    """Where a placeholder is replaced besides the header (``REPLACE``, by explicit choice)."""

    def to_wire(self) -> dict[str, Any]:
        """Return the binding for the control socket. Holds the value: never log it."""
        return {
            "name": self.name,
            "targets": [
                {"hosts": list(each.hosts), "form": each.form.value, "header": each.header, "user": each.user}
                for each in self.targets
            ],
            "placeholders": list(self.placeholders),
            "values": dict(self.values),
            "unavailable": self.unavailable,
            "exclusive": self.exclusive,
            "in_query": self.in_query,
            "in_body": self.in_body,
        }

    @classmethod
    def from_wire(cls, wire: Mapping[str, Any]) -> Binding:
        """Read a binding from the control socket; raises ``KeyError``, ``TypeError`` or ``ValueError``."""
        return cls(
            name=str(wire["name"]),
            targets=tuple(
                Target(
                    hosts=tuple(map(str, each["hosts"])),
                    form=Form(each["form"]),
                    header=str(each["header"]).lower(),
                    user=str(each["user"]),
                )
                for each in wire["targets"]
            ),
            placeholders=tuple(map(str, wire["placeholders"])),
            values=tuple((str(part), str(value)) for part, value in wire["values"].items()),
            unavailable=str(wire["unavailable"]),
            exclusive=wire["exclusive"] is True,
            in_query=wire["in_query"] is True,
            in_body=wire["in_body"] is True,
        )


def _bearer(name: str, title: str, variable: str, *hosts: str) -> Service:
    return Service(
        name=name,
        title=title,
        variables=((variable, PROXY_MANAGED),),
        targets=(Target(hosts=hosts, form=Form.BEARER),),
    )


_TABLE: Final = (
    Service(
        name="anthropic",
        title="Anthropic",
        variables=(("ANTHROPIC_API_KEY", PROXY_MANAGED),),
        targets=(
            Target(
                hosts=(
                    "api.anthropic.com",
                    "console.anthropic.com",
                    "claude.ai",
                    "mcp-proxy.anthropic.com",
                ),
                form=Form.PLAIN,
                header="x-api-key",
            ),
        ),
    ),
    Service(
        name="aws",
        title="Amazon Web Services (Bedrock)",
        variables=(("AWS_ACCESS_KEY_ID", PROXY_MANAGED), ("AWS_SECRET_ACCESS_KEY", PROXY_MANAGED)),
        targets=(
            Target(
                hosts=(
                    "bedrock.?*.amazonaws.com",
                    "bedrock-runtime.?*.amazonaws.com",
                    "sts.?*.amazonaws.com",
                ),
                form=Form.SIGV4,
            ),
        ),
        parts=("access_key_id", "secret_access_key", "session_token?"),
    ),
    _bearer(
        "cursor",
        "Cursor",
        "CURSOR_API_KEY",
        "api2.cursor.sh",
        "api3.cursor.sh",
        "repo42.cursor.sh",
        "cursor.com",
    ),
    _bearer(
        "droid",
        "Factory Droid",
        "FACTORY_API_KEY",
        "api.factory.ai",
        "app.factory.ai",
        "relay.factory.ai",
    ),
    Service(
        name="github",
        title="GitHub",
        variables=(("GH_TOKEN", GITHUB_PLACEHOLDER), ("GITHUB_TOKEN", GITHUB_PLACEHOLDER)),
        targets=(
            Target(
                hosts=(
                    "api.github.com",
                    "raw.githubusercontent.com",
                    "copilot.github.com",
                    "api.githubcopilot.com",
                ),
                form=Form.BEARER,
            ),
            # git over https knows Basic only; the user's name is what GitHub documents for tokens.
            Target(hosts=("github.com", "gist.github.com"), form=Form.BASIC, user="x-access-token"),
        ),
    ),
    Service(
        name="google",
        title="Google Gemini",
        variables=(("GEMINI_API_KEY", PROXY_MANAGED), ("GOOGLE_API_KEY", PROXY_MANAGED)),
        targets=(
            Target(
                hosts=(
                    "generativelanguage.googleapis.com",
                    "aiplatform.googleapis.com",
                    "vertexai.googleapis.com",
                    "oauth2.googleapis.com",
                ),
                form=Form.PLAIN,
                header="x-goog-api-key",
            ),
        ),
    ),
    _bearer("groq", "Groq", "GROQ_API_KEY", "api.groq.com"),
    _bearer("mistral", "Mistral", "MISTRAL_API_KEY", "api.mistral.ai"),
    _bearer(
        "nebius",
        "Nebius",
        "NEBIUS_API_KEY",
        "api.studio.nebius.com",
        "api.tokenfactory.nebius.com",
        "api.studio.nebius.ai",
    ),
    _bearer(
        "openai",
        "OpenAI",
        "OPENAI_API_KEY",
        "api.openai.com",
        "openai.com",
        "chatgpt.com",
        "www.chatgpt.com",
    ),
    _bearer("openrouter", "OpenRouter", "OPENROUTER_API_KEY", "openrouter.ai"),
    _bearer("xai", "xAI", "XAI_API_KEY", "api.x.ai"),
)

SERVICES: Final[Mapping[str, Service]] = {service.name: service for service in _TABLE}
