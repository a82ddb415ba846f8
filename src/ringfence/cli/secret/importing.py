"""Taking over what a shell has in well-known variables. Nothing is taken without having been asked about."""

from __future__ import annotations

import os
from collections.abc import Mapping

import click

from ringfence.cli import reach
from ringfence.cli.commands import command
from ringfence.cli.options import sandbox_option
from ringfence.cli.terminal.screen import interactive, out, plain, warn
from ringfence.sandbox.credentials import SERVICES, Service

_AWS = {
    "access_key_id": "AWS_ACCESS_KEY_ID",
    "secret_access_key": "AWS_SECRET_ACCESS_KEY",
    "session_token": "AWS_SESSION_TOKEN",
}


@command("import", examples=("sbx secret import", "sbx secret import -f --sandbox lab"))
@sandbox_option
@click.option("-f", "--force", is_flag=True, help="Do not ask.")
@click.option("--overwrite", is_flag=True, help="Also take what is stored already.")
def import_(sandbox: str, force: bool, overwrite: bool) -> None:
    """Store what well-known variables of this shell hold (ANTHROPIC_API_KEY, GH_TOKEN, AWS_ACCESS_KEY_ID, …).

    The daemon never reads your shell's variables by itself. What is stored already is kept, unless --overwrite.
    """
    from ringfence.cli.terminal.prompt import confirm

    found = {name: taken for name, service in SERVICES.items() if (taken := _taken(service, os.environ))}
    if not found:
        out("No secrets found in this shell's environment")
        return
    daemon = reach.daemon()
    listed = daemon.secrets(sandbox=sandbox, only_global=not sandbox)["secrets"]
    stored = {secret["name"] for secret in listed if secret["type"] == "service"}
    wanted = {name: taken for name, taken in found.items() if overwrite or name not in stored}
    for name, (variables, _) in found.items():
        note = "" if name in wanted else ", stored already: kept"
        out(f"{', '.join(variables)} ({name}{note})")
    if not wanted:
        return
    where = f"of sandbox '{plain(sandbox)}'" if sandbox else "(global)"
    if not force and not (interactive() and confirm(f"Store {len(wanted)} as secrets {where}?")):
        out("Cancelled")
        return
    for name, (_, parts) in wanted.items():
        made = daemon.set_secret("service", service=name, sandbox=sandbox, parts=parts, overwrite=overwrite)
        out(f"Secret '{name}' stored ({plain(made['secret']['scope'])})")
        for text in made["warnings"]:
            warn(text)


def _taken(service: Service, environ: Mapping[str, str]) -> tuple[list[str], dict[str, str]] | None:
    """The variables that hold a service's credential, and its parts; nothing if they hold none, or a placeholder."""
    if service.name == "aws":
        parts = {part: environ[name] for part, name in _AWS.items() if environ.get(name)}
        whole = {"access_key_id", "secret_access_key"} <= parts.keys()
        return ([_AWS[part] for part in parts], parts) if whole and not _stands_in(service, parts) else None
    for name, _ in service.variables:
        if (value := environ.get(name, "").strip()) and not _stands_in(service, {"value": value}):
            return [name], {"value": value}
    return None


def _stands_in(service: Service, parts: Mapping[str, str]) -> bool:
    return not {placeholder for _, placeholder in service.variables}.isdisjoint(parts.values())
