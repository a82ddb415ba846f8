"""What may be asked for when a secret is stored, parsed once into a :class:`Secret`. Nothing of a value is ever said.

A value goes into a header, so it is printable ASCII without a line break: RFC 9110, section 5.5, allows more and every
server disagrees about it. A custom secret is for hosts that a person can name, so neither a catch-all nor a public
suffix: whoever registers a name below one would be sent the value.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Final

from ringfence.application.errors import InvalidInput
from ringfence.policy.errors import InvalidPolicy
from ringfence.policy.patterns import PublicSuffix, Resource, Shape, parse_resource
from ringfence.sandbox.credentials import SERVICES
from ringfence.sandbox.environment import OWN_VARIABLES
from ringfence.sandbox.secrets import DOCKER_HUB, ONLY, STANDING_IN, Kind, Parts, Secret

VALUE_BYTES: Final = 64 * 1024
COMMAND_WORDS: Final = 64
COMMAND_BYTES: Final = 8 * 1024
HOSTS: Final = 64
HEADERS: Final = 8
SHORTEST_PLACEHOLDER: Final = 8
"""A shorter one would be met, and replaced, by chance."""
LONGEST_PLACEHOLDER: Final = 128
RANDOM: Final = "{rand}"
PLACEHOLDER: Final = f"sbx-cs-{RANDOM}"
REFRESH: Final = 55 * 60.0
"""Most tokens live for an hour."""
ON_DEMAND: Final = 60.0
"""The age that a value made on demand never reaches while a sandbox can use it."""
LONGEST_REFRESH: Final = 30 * 86_400.0

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}", re.ASCII)
_HEADER = re.compile(r"[a-z0-9!#$%&'*+.^_`|~-]{1,64}")
_VISIBLE = re.compile(r"[!-~]+")
_PLAIN = re.compile(r"[ -~]+")
_AWS_NAMES: Final = {
    "AccessKeyId": "access_key_id",
    "SecretAccessKey": "secret_access_key",
    "SessionToken": "session_token",
}
_CONNECTION_FIELDS = frozenset(
    {"connection", "content-length", "host", "te", "trailer", "transfer-encoding", "upgrade"}
)
_PROGRAMS: Final[Mapping[str, tuple[str, ...]]] = {
    "op://": ("op", "read", "--no-newline"),
    "arn:aws:secretsmanager:": (
        *("aws", "secretsmanager", "get-secret-value", "--query", "SecretString", "--output", "text"),
        "--secret-id",
    ),
}
"""Who resolves a reference; it goes last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """Where a value comes from: it is here, a command prints it, or a reference names it. Exactly one is given."""

    parts: Mapping[str, str] = field(default_factory=dict, repr=False)
    text: str = field(default="", repr=False)
    """A value as it was read from somewhere, whole."""
    command: tuple[str, ...] = ()
    reference: str = ""
    refresh: float | None = None
    """Seconds; 0 is on demand."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CustomWish:
    """A custom secret as it was asked for."""

    env: str
    hosts: tuple[str, ...]
    placeholder: str = ""
    headers: tuple[str, ...] = ()
    in_query: bool = False
    in_body: bool = False
    exclusive: bool = False


def service_secret(name: str, given: Given, *, scope: str, exclusive: bool) -> Secret:
    if name not in SERVICES:
        raise InvalidInput(
            f"unknown service `{name[:80]}`",
            hint=f"services are {', '.join(SERVICES)}; `sbx secret set-custom` takes any other",
            code="service",
        )
    bare = Secret(kind=Kind.SERVICE, name=name, scope=scope, exclusive=exclusive)
    return _with_value(bare, given)


def custom_secret(
    wish: CustomWish,
    given: Given,
    *,
    scope: str,
    token: Callable[[], str],
    is_public_suffix: PublicSuffix,
) -> Secret:
    if not _VARIABLE.fullmatch(wish.env):
        raise InvalidInput(
            f"`{wish.env[:80]}` is not an environment variable", hint="letters, digits and `_`"
        )
    if wish.env in OWN_VARIABLES or wish.env.startswith("SBX_"):
        raise InvalidInput(f"`{wish.env}` is set by the sandbox itself", hint="choose another variable")
    if not wish.hosts:
        raise InvalidInput("a custom secret needs a host that may see it", hint="`--host api.example.com`")
    if len(wish.hosts) > HOSTS or len(wish.headers) > HEADERS:
        raise InvalidInput(f"at most {HOSTS} hosts and {HEADERS} headers for one secret")
    bare = Secret(
        kind=Kind.CUSTOM,
        name=wish.env,
        scope=scope,
        exclusive=wish.exclusive,
        placeholder=_placeholder(wish.placeholder or PLACEHOLDER, token),
        hosts=tuple(dict.fromkeys(_host(text, is_public_suffix).text for text in wish.hosts)),
        headers=tuple(dict.fromkeys(map(_header, wish.headers or ("authorization",)))),
        in_query=wish.in_query,
        in_body=wish.in_body,
    )
    secret = _with_value(bare, given)
    if any(secret.placeholder in value or value in secret.placeholder for _, value in secret.parts):
        raise InvalidInput("the placeholder and the value hold one another", hint="leave `--placeholder` out")
    return secret


def registry_secret(
    registry: str,
    given: Given,
    *,
    username: str,
    auth_endpoint: str,
    scope: str,
    token: Callable[[], str],
) -> Secret:
    if ":" in username or not _VISIBLE.fullmatch(username or "token"):
        raise InvalidInput("a user's name has no spaces and no `:`", hint="`--username NAME`")
    bare = Secret(
        kind=Kind.REGISTRY,
        name=_exact(registry).text,
        scope=scope,
        username=username or "token",
        auth_endpoint=_exact(auth_endpoint).text if auth_endpoint else "",
        placeholder=_placeholder(PLACEHOLDER, token),
    )
    if bare.name in ("index.docker.io", "registry-1.docker.io"):
        raise InvalidInput(f"`{bare.name}` is part of Docker Hub", hint=f"write `--registry {DOCKER_HUB}`")
    return _with_value(bare, given)


# Values and where they come from


def _with_value(bare: Secret, given: Given) -> Secret:
    sources = [bool(given.parts), bool(given.text), bool(given.command), bool(given.reference)]
    if sum(sources) != 1:
        raise InvalidInput(
            "a secret has one source: a value, a command or a reference",
            hint="give the value on standard input, or `--command`, or `--ref`",
        )
    if given.text or given.parts:
        if given.refresh is not None:
            raise InvalidInput("only what a command or a reference makes can be refreshed")
        parts = dict(read_parts(bare, given.text)) if given.text else given.parts
        return replace(bare, parts=checked_parts(bare, parts))
    command = _resolver(given.reference) if given.reference else _command(given.command)
    return replace(bare, command=command, reference=given.reference, refresh=_refresh(given.refresh))


def read_parts(secret: Secret, text: str) -> Parts:
    """Read a value from the text that somebody typed or a command printed. Raises ``InvalidInput``."""
    text = text.strip("\r\n")
    if secret.wanted == (ONLY,):
        return checked_parts(secret, {ONLY: text})
    if text.lstrip().startswith("{"):
        return checked_parts(
            secret, {_AWS_NAMES[k]: str(v) for k, v in _aws(text).items() if k in _AWS_NAMES and v}
        )
    names = [name.rstrip("?") for name in secret.wanted]
    return checked_parts(secret, dict(zip(names, text.split(":", len(names) - 1), strict=False)))


def expiry(text: str) -> float | None:
    """Return the time at which a value says that it ends, if it says so (AWS's process credentials)."""
    try:
        found = _aws(text).get("Expiration") if text.lstrip().startswith("{") else None
        return datetime.fromisoformat(str(found)).timestamp() if found else None
    except (InvalidInput, ValueError):
        return None


def _aws(text: str) -> Mapping[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if isinstance(found, dict) and isinstance(found.get("Credentials"), dict):
        found = found["Credentials"]  # what `aws sts assume-role` prints
    if not isinstance(found, dict):
        raise InvalidInput(
            "the value is not JSON", hint="`aws configure export-credentials` prints what is read"
        )
    return found


def checked_parts(secret: Secret, parts: Mapping[str, str]) -> Parts:
    """Return the parts in order. Every failure names the part and never quotes it."""
    known = {name.rstrip("?"): not name.endswith("?") for name in secret.wanted}
    for name in parts:
        if name not in known:
            raise InvalidInput(
                f"`{secret.name}` has no part `{name[:40]}`", hint=f"parts: {', '.join(known)}"
            )
    checked = []
    for name, required in known.items():
        value = parts.get(name, "")
        called = "the value" if name == ONLY else f"`{name}`"
        if not value:
            if required:
                raise InvalidInput(f"{called} of `{secret.name}` is missing", hint=_HOW.get(secret.name, ""))
            continue
        if len(value.encode(errors="surrogatepass")) > VALUE_BYTES:
            raise InvalidInput(f"{called} of `{secret.name}` is longer than {VALUE_BYTES} bytes")
        if not _PLAIN.fullmatch(value) or value != value.strip():
            raise InvalidInput(
                f"{called} of `{secret.name}` cannot be sent in a header",
                hint="it has a line break, a control character, a letter outside ASCII or a space at an end",
                code="secret-value",
            )
        if value in STANDING_IN:
            raise InvalidInput(f"{called} of `{secret.name}` is a placeholder, not a key")
        checked.append((name, value))
    return tuple(checked)


_HOW: Final = {"aws": "write `KEY:SECRET[:TOKEN]`, or what `aws configure export-credentials` prints"}


def _command(argv: Sequence[str]) -> tuple[str, ...]:
    if len(argv) > COMMAND_WORDS or sum(len(word.encode(errors="replace")) for word in argv) > COMMAND_BYTES:
        raise InvalidInput(f"a command of more than {COMMAND_WORDS} words or {COMMAND_BYTES} bytes")
    if not argv[0] or any("\0" in word for word in argv):
        raise InvalidInput("the command names no program")
    return tuple(argv)


def _resolver(reference: str) -> tuple[str, ...]:
    for prefix, command in _PROGRAMS.items():
        if reference.startswith(prefix) and len(reference) <= 1024 and _PLAIN.fullmatch(reference):
            return (*command, reference)
    raise InvalidInput(
        f"`{reference[:80]}` is no reference that is known here",
        hint="write `op://VAULT/ITEM/FIELD` or `arn:aws:secretsmanager:…`; `--command` takes any other source",
    )


def _refresh(asked: float | None) -> float:
    if asked is None:
        return REFRESH
    if not 0 <= asked <= LONGEST_REFRESH:
        raise InvalidInput(f"`{asked:g}` is not a time between refreshes", hint="write for example 55m")
    return max(asked, ON_DEMAND)


# Names


def _host(text: str, is_public_suffix: PublicSuffix) -> Resource:
    resource = _parsed(text)
    if resource.broad or resource.shape in (Shape.NETWORK, Shape.LOCAL):
        raise InvalidInput(
            f"`{text[:80]}` does not say who may see the secret", hint="name hosts: `api.example.com`"
        )
    suffix = resource.wild_over(is_public_suffix)
    if not suffix and resource.shape is Shape.EXACT and is_public_suffix(resource.host):
        suffix = resource.host
    if suffix:
        raise InvalidInput(
            f"`{text[:80]}`: anybody can have a name below `{suffix}`, and would be sent the secret",
            hint=f"name the host: `api.example.{suffix}`",
            code="secret-host",
        )
    return resource


def _exact(text: str) -> Resource:
    resource = _parsed(text)
    if resource.shape is not Shape.EXACT:
        raise InvalidInput(f"`{text[:80]}` is not the name of a host", hint="for example `ghcr.io`")
    return resource


def _parsed(text: str) -> Resource:
    try:
        return parse_resource(text)
    except InvalidPolicy as error:
        raise InvalidInput(error.message, hint=error.hint, code="secret-host") from error


def _header(text: str) -> str:
    name = text.strip().lower()
    if not _HEADER.fullmatch(name) or name in _CONNECTION_FIELDS:
        raise InvalidInput(f"`{text[:80]}` is not a header that can carry a secret")
    return name


def _placeholder(text: str, token: Callable[[], str]) -> str:
    placeholder = text.replace(RANDOM, token())
    if not _VISIBLE.fullmatch(placeholder) or placeholder in STANDING_IN:
        raise InvalidInput(f"`{text[:80]}` cannot stand for a secret", hint=f"for example `ghp_{RANDOM}`")
    if not SHORTEST_PLACEHOLDER <= len(placeholder) <= LONGEST_PLACEHOLDER:
        raise InvalidInput(
            f"a placeholder has {SHORTEST_PLACEHOLDER} to {LONGEST_PLACEHOLDER} characters",
            hint=f"`{RANDOM}` in it becomes 16 that nobody guesses",
        )
    return placeholder
