"""``config.toml``: read once at start, refused whole if anything in it is not understood.

A misspelt key must not be a missing one, so an unknown key is an error that names the line. Pydantic reads the shape;
what the values mean (addresses, host names, certificates) is checked here too, so that the daemon either starts with
what was written or says why not.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import fields
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from ringfence.application.errors import InvalidInput
from ringfence.policy.errors import InvalidPolicy
from ringfence.policy.names import canonical_name, split_authority

SIZE = 1024 * 1024


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class PolicySettings(_Section):
    require_init: bool = False
    """Refuse to start anything before a person has chosen a preset."""


class TlsSettings(_Section):
    extra_ca: tuple[str, ...] = ()
    """Files with further trust roots for the upstream side."""
    backend: Literal["auto", "ssl", "rtls"] = "auto"
    """Who makes the gateway's TLS; ``auto``: rtls towards sandboxes where it is installed and passes its checks."""


class SecretsSettings(_Section):
    backend: Literal["auto", "keyring", "file", "none"] = "auto"
    """Who keeps secrets; ``auto``: the desktop's keyring if one answers, a sealed file otherwise."""


class WorkerSettings(_Section):
    count: Annotated[int, Field(ge=0, le=64)] = 0
    """Gateway workers that may run; 0 is one per core, and no more than four."""


class ProxySettings(_Section):
    upstream: str = Field(default="", repr=False)
    """The upstream proxy's URL, or ``direct``; empty: what the daemon's environment says."""
    no_proxy: tuple[str, ...] | None = None
    """Who goes past it: names, ``.suffix``, addresses, ranges, ``*``. In place of the environment's ``NO_PROXY``."""
    resolve: Literal["local", "remote"] | None = None
    """Whether it is asked for the address that was judged, or (``remote``, and always ``socks5h``) for the name."""

    @field_validator("upstream")
    @classmethod
    def _url(cls, value: str) -> str:
        from ringfence.gateway.core.chain import parse_proxy

        if value not in ("", "direct"):
            parse_proxy(value)
        return value

    @field_validator("no_proxy")
    @classmethod
    def _exemptions(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        from ringfence.gateway.core.chain import parse_exemption

        for entry in value or ():
            try:
                parse_exemption(entry)
            except ValueError as error:
                raise ValueError(
                    f"`{entry}` is neither a name, a `.suffix`, an address, a range nor `*`"
                ) from error
        return value


class LifecycleSettings(_Section):
    grace: Annotated[float, Field(ge=0, le=86_400)] = 30.0
    """Seconds that a named sandbox runs on after its last session."""


class Configuration(_Section):
    """Everything that can be set, with what holds when it is not."""

    runtime: Literal["auto", "gvisor", "namespaces", "fake"] = "auto"
    policy: PolicySettings = PolicySettings()
    tls: TlsSettings = TlsSettings()
    proxy: ProxySettings = ProxySettings()
    workers: WorkerSettings = WorkerSettings()
    lifecycle: LifecycleSettings = LifecycleSettings()
    secrets: SecretsSettings = SecretsSettings()
    resolve: dict[str, str] = {}
    """Static names: ``name = "address"`` or ``"address:port"``. They pass every guard like any other answer."""
    gateway: dict[str, float] = {}
    """Limits of the gateway, by name."""

    @field_validator("resolve")
    @classmethod
    def _names(cls, value: dict[str, str]) -> dict[str, str]:
        names: dict[str, str] = {}
        for name, target in value.items():
            try:
                host, port = (target, 0) if _is_address(target) else split_authority(target)
                ip_address(host.strip("[]"))
                names[canonical_name(name)] = f"[{host}]:{port}" if ":" in host and port else target
            except (InvalidPolicy, ValueError) as error:
                raise ValueError(f"`{name} = {target}` is not a name and an address") from error
        return names

    @field_validator("gateway")
    @classmethod
    def _limits(cls, value: dict[str, float]) -> dict[str, float]:
        from ringfence.gateway.core.limits import Limits

        known = {each.name for each in fields(Limits)}
        for name, limit in value.items():
            if name not in known:
                raise ValueError(f"unknown limit `{name}`; limits are {', '.join(sorted(known))}")
            if limit <= 0:
                raise ValueError(f"`{name} = {limit:g}` is no limit")
        return value


def load(path: Path) -> Configuration:
    """Return the configuration; a file that is not there is the default one."""
    try:
        raw = path.read_bytes()[: SIZE + 1]
    except FileNotFoundError:
        return Configuration()
    except OSError as error:
        raise InvalidInput(f"`{path}` cannot be read: {error.strerror}") from error
    if len(raw) > SIZE:
        raise InvalidInput(f"`{path}` is larger than {SIZE} bytes")
    try:
        text = raw.decode()
        return Configuration.model_validate(tomllib.loads(text))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InvalidInput(f"`{path}` is not TOML: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        keys = [str(step) for step in first["loc"]]
        where = f"line {_line(text, keys)} of `{path}`"
        if first["type"] == "extra_forbidden":
            raise InvalidInput(
                f"unknown setting `{'.'.join(keys)}` in {where}", hint="correct it, or take the line out"
            ) from error
        message = first["msg"].removeprefix("Value error, ")
        raise InvalidInput(f"`{'.'.join(keys)}` in {where}: {message[:1].lower()}{message[1:]}") from error


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def _line(text: str, keys: list[str]) -> int:
    """Return the line that a key is written in. The parser keeps no places, so it is looked for: under its table's
    header if there is one, dotted otherwise; the first line if it is written in another way still."""
    *tables, last = keys
    spelled = rf"[\"']?{re.escape(last)}[\"']?\s*="
    dotted = r"\s*\.\s*".join(re.escape(key) for key in keys)
    within = ""
    for number, line in enumerate(text.splitlines(), 1):
        if header := re.match(r"\s*\[+\s*([^\]]+?)\s*\]", line):
            within = header[1]
            if within == ".".join(keys):
                return number
            continue
        here = re.match(rf"\s*{spelled}", line) and within == ".".join(tables)
        if here or (not within and re.match(rf"\s*{dotted}\s*=", line)):
            return number
    return 1
