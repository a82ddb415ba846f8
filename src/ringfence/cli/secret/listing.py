"""Listing and removing secrets. A value is never shown, nor any part of one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ringfence.cli import reach
from ringfence.cli.commands import command, json_option
from ringfence.cli.options import sandbox_argument, sandbox_option
from ringfence.cli.secret.setting import everywhere_option, scoped, service_names
from ringfence.cli.terminal.screen import interactive, out, out_json, plain

if TYPE_CHECKING:
    from ringfence.client.shapes import Secret

_SCOPES = {"global": "(global)", "host only": "(host only)"}


@command("ls", examples=("sbx secret ls", "sbx secret ls --sandbox lab", "sbx secret ls -g --json"))
@everywhere_option
@sandbox_option
@click.option(
    "--service", default="", metavar="SERVICE", shell_complete=service_names, help="Only this service."
)
@json_option
@click.option("-q", "--quiet", is_flag=True, help="Print names and nothing else.")
@sandbox_argument("word", metavar="[SANDBOX]", required=False)
@click.pass_context
def ls(
    ctx: click.Context,
    sandbox: str,
    everywhere: bool,
    service: str,
    as_json: bool,
    quiet: bool,
    word: str | None,
) -> None:
    """List secrets. What is in a sandbox's own row counts there instead of a global one."""
    if sandbox and word and sandbox != word:
        raise click.UsageError(f"`{word}` and --sandbox {sandbox} name two sandboxes", ctx)
    if everywhere and (sandbox or word):
        raise click.UsageError("a sandbox and --global contradict each other", ctx)
    found = reach.daemon().secrets(sandbox=sandbox or word or "", only_global=everywhere, service=service)
    if as_json:
        out_json(found)
        return
    secrets, custom = found["secrets"], found["custom_secrets"]
    if quiet:
        for secret in (*secrets, *custom):
            out(plain(secret["name"]))
    elif not secrets and not custom:
        out("No secrets found")
    else:
        out("\n\n".join(filter(None, (_services(secrets), _custom(custom)))))


def _services(secrets: list[Secret]) -> str:
    from ringfence.cli.terminal.table import table

    rows = [(_scope(secret), secret["name"], _value(secret)) for secret in secrets]
    return table(("SCOPE", "SERVICE", "SECRET"), rows) if rows else ""


def _custom(secrets: list[Secret]) -> str:
    from ringfence.cli.terminal.table import table

    rows = [
        (
            _scope(secret),
            ", ".join(secret.get("targets") or ()),
            secret["name"],
            secret.get("placeholder", ""),
            _value(secret),
        )
        for secret in secrets
    ]
    headers = ("SCOPE", "TARGETS", "ENV", "PLACEHOLDER", "SECRET")
    return f"CUSTOM SECRETS\n{table(headers, rows)}" if rows else ""


def _scope(secret: Secret) -> str:
    return _SCOPES.get(secret["scope"], secret["scope"])


def _value(secret: Secret) -> str:
    if "unavailable" in secret:
        return f"(unavailable: {secret['unavailable']})"
    source = secret.get("source")
    if not source:
        return secret["secret"]
    return f"({source if isinstance(source, str) else ' '.join(source)})"


@command(
    "rm",
    examples=(
        "sbx secret rm openai",
        "sbx secret rm -f github --sandbox lab",
        "sbx secret rm --registry ghcr.io",
        "sbx secret rm --all -f                      # everything that is global or the host's",
    ),
)
@everywhere_option
@sandbox_option
@click.option("--all", "everything", is_flag=True, help="Everything of the scope.")
@click.option("--registry", default="", metavar="HOST", help="A registry's credentials.")
@click.option("--placeholder", default="", metavar="TEXT", help="The custom secret that this stands for.")
@click.option("-f", "--force", is_flag=True, help="Do not ask.")
@click.argument("words", metavar="[SERVICE | VARIABLE]", nargs=-1, shell_complete=service_names)
@click.pass_context
def rm(
    ctx: click.Context,
    words: tuple[str, ...],
    sandbox: str,
    everywhere: bool,
    everything: bool,
    registry: str,
    placeholder: str,
    force: bool,
) -> None:
    """Remove a secret. Running sandboxes lose it at once. Without a terminal it needs --force."""
    if len(words) > 2 or sum((bool(words), everything, bool(registry), bool(placeholder))) != 1:
        raise click.UsageError("name one secret, or say --all", ctx)
    scope = scoped(ctx, sandbox, everywhere, words[0] if len(words) == 2 else "")
    name = words[-1] if words else ""
    if not force and not _agreed(name or registry or placeholder, scope):
        out("Cancelled")
        return
    removed = reach.daemon().remove_secrets(
        sandbox=scope, name=name, registry=registry, placeholder=placeholder, everything=everything
    )
    for secret in removed:
        out(f"Secret '{plain(secret['name'])}' removed ({plain(secret['scope'])})")
    if not removed:
        out("No secrets found")


def _agreed(name: str, scope: str) -> bool:
    from ringfence.cli.terminal.prompt import confirm

    what = f"secret '{plain(name)}'" if name else "all secrets"
    where = f"of sandbox '{plain(scope)}'" if scope else "(global)"
    return interactive() and confirm(f"Remove {what} {where}?")
