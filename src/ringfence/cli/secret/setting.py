"""Storing secrets: of services, of registries, and of hosts that a person names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import click

from ringfence.cli import reach
from ringfence.cli.commands import command
from ringfence.cli.completion import sandbox_names
from ringfence.cli.options import sandbox_option
from ringfence.cli.secret.values import asked, cancelled, given, source_options, warn_of_argument
from ringfence.cli.terminal.screen import interactive, out, plain, warn
from ringfence.sandbox.credentials import SERVICES

OAUTH = "this version stores keys and tokens, not sign-ins: --oauth does not exist here"


def service_names(_ctx: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    return [name for name in SERVICES if name.startswith(incomplete)]


def _words(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    return [*service_names(ctx, parameter, incomplete), *sandbox_names(ctx, parameter, incomplete)]


everywhere_option = click.option(
    "-g", "--global", "everywhere", is_flag=True, help="For all sandboxes (the default)."
)
exclusive_option = click.option(
    "--exclusive", is_flag=True, help="Refuse anybody else's credential towards the same hosts."
)


def scoped(ctx: click.Context, sandbox: str, everywhere: bool, word: str = "") -> str:
    """The sandbox that is meant, if one is. As a first word it is the older spelling."""
    if word:
        if sandbox and sandbox != word:
            raise click.UsageError(f"`{word}` and --sandbox {sandbox} name two sandboxes", ctx)
        warn(f"write --sandbox {word}: a sandbox as the first word is the older spelling")
    sandbox = sandbox or word
    if sandbox and everywhere:
        raise click.UsageError("a sandbox and --global contradict each other", ctx)
    return sandbox


@command(
    "set",
    examples=(
        "sbx secret set -g openai                               # asks, without showing it",
        'printf %s "$ANTHROPIC_API_KEY" | sbx secret set anthropic',
        "sbx secret set github --sandbox lab --command 'gh auth token'",
        "sbx secret set anthropic --ref op://Private/Anthropic/key --refresh 8h",
        "aws configure export-credentials | sbx secret set aws",
        "gh auth token | sbx secret set --registry ghcr.io --username ada --password-stdin --all-sandboxes",
    ),
)
@everywhere_option
@sandbox_option
@click.option("-t", "--token", default="", metavar="VALUE", help="The value, where everybody can see it.")
@click.option("-f", "--force", is_flag=True, help="Overwrite what --token would meet.")
@source_options
@exclusive_option
@click.option("--oauth", is_flag=True, hidden=True)
@click.option("--registry", default="", metavar="HOST", help="Store a container registry's password instead.")
@click.option("--username", default="", metavar="NAME", help="The registry's user.")
@click.option("--password-stdin", is_flag=True, help="Read the registry's password from standard input.")
@click.option(
    "--registry-auth-endpoint",
    "auth_endpoint",
    default="",
    metavar="HOST",
    help="Where the registry gives tokens.",
)
@click.option("--all-sandboxes", is_flag=True, help="Give the registry's password to all sandboxes.")
@click.argument("words", metavar="[SERVICE]", nargs=-1, shell_complete=_words)
@click.pass_context
def set_(ctx: click.Context, /, words: tuple[str, ...], **options: Any) -> None:
    """Store the credential of SERVICE. Without SERVICE it asks which.

    Programs inside find a placeholder in the usual variable (ANTHROPIC_API_KEY=proxy-managed); the gateway puts the
    value into requests to the service's own hosts. It takes effect at once, also in running sandboxes. A sandbox's
    own secret (--sandbox) wins over a global one.

    With --registry the password is this machine's alone, unless --sandbox or --all-sandboxes give it away.
    """
    if options["oauth"]:
        raise click.UsageError(OAUTH, ctx)
    registry = options["registry"]
    if len(words) > (0 if registry else 2):
        raise click.UsageError(
            "name one service" if not registry else "--registry and a service exclude each other", ctx
        )
    if not registry:
        misplaced = [
            name for name in ("username", "password_stdin", "auth_endpoint", "all_sandboxes") if options[name]
        ]
        if misplaced:
            raise click.UsageError(f"--{misplaced[0].replace('_', '-')} belongs to --registry", ctx)
    sandbox = scoped(ctx, options["sandbox"], options["everywhere"], words[0] if len(words) == 2 else "")
    if registry:
        _set_registry(ctx, registry, sandbox, options)
    else:
        _set_service(ctx, words[-1] if words else _asked_service(ctx), sandbox, options)


def _asked_service(ctx: click.Context) -> str:
    from ringfence.cli.terminal.prompt import choose

    if not interactive():
        raise click.UsageError(f"name a service: {', '.join(SERVICES)}", ctx)
    services = list(SERVICES.values())
    lines = [(service.name, service.title) for service in services]
    chosen = choose("Choose a service:", lines, default=0)
    return cancelled() if chosen is None else services[chosen].name


def _set_service(ctx: click.Context, service: str, sandbox: str, options: dict[str, Any]) -> None:
    if service not in SERVICES:
        error = click.UsageError(f"unknown service `{service}`", ctx)
        error.hint = f"services are {', '.join(SERVICES)}; `sbx secret set-custom` takes any other"  # type: ignore[attr-defined]
        raise error
    fields = given(ctx, **_source(options), ask=_question(service))
    daemon = reach.daemon()
    if options["token"]:
        warn_of_argument(daemon, "--token")
    made = daemon.set_secret(
        "service",
        service=service,
        sandbox=sandbox,
        exclusive=options["exclusive"],
        overwrite=options["force"] or not options["token"],
        **fields,
    )
    out(f"Secret '{service}' stored ({plain(made['secret']['scope'])})")
    for text in made["warnings"]:
        warn(text)


def _question(service: str) -> Callable[[], dict[str, object]]:
    """Ask for every part of a service's credential."""
    row = SERVICES[service]

    def ask() -> dict[str, object]:
        from ringfence.cli.terminal.prompt import hidden

        parts = {}
        for part in row.parts:
            name = part.rstrip("?")
            called = "key" if name == "value" else name.replace("_", " ")
            optional = " (Enter for none)" if part.endswith("?") else ""
            typed = hidden(f"{row.title} {called}{optional}")
            if typed or optional:
                parts[name] = typed
            else:
                cancelled()
        return {"parts": {name: value for name, value in parts.items() if value}}

    return ask


def _set_registry(ctx: click.Context, registry: str, sandbox: str, options: dict[str, Any]) -> None:
    if sandbox and options["all_sandboxes"]:
        raise click.UsageError("--sandbox and --all-sandboxes contradict each other", ctx)
    if options["exclusive"]:
        raise click.UsageError("--exclusive is about services", ctx)
    ask = asked(f"Password for {registry}")
    fields = given(ctx, **_source(options), piped=options["password_stdin"], ask=ask)
    daemon = reach.daemon()
    if options["token"]:
        warn_of_argument(daemon, "--token")
    made = daemon.set_secret(
        "registry",
        registry=registry,
        username=options["username"],
        auth_endpoint=options["auth_endpoint"],
        sandbox=sandbox,
        all_sandboxes=options["all_sandboxes"] or options["everywhere"],
        overwrite=options["force"] or not options["token"],
        **fields,
    )
    out(
        f"Registry credentials for '{plain(made['secret']['name'])}' stored ({plain(made['secret']['scope'])})"
    )


def _source(options: dict[str, Any]) -> dict[str, Any]:
    return {name: options[name] for name in ("token", "program", "reference", "refresh")}


@command(
    "set-custom",
    examples=(
        "sbx secret set-custom --host api.example.com --env EXAMPLE_TOKEN      # asks for the value",
        'printf %s "$KEY" | sbx secret set-custom --host "*.example.com" --env KEY --header x-api-key',
        "sbx secret set-custom --host git.example.com --env GIT_TOKEN --placeholder 'glpat-{rand}'",
    ),
)
@everywhere_option
@sandbox_option
@click.option(
    "--host",
    "hosts",
    multiple=True,
    required=True,
    metavar="HOST",
    help="Who may see the value; `*.` and `**.` in front of a name; may be repeated.",
)
@click.option("--env", required=True, metavar="NAME", help="The variable that holds the placeholder inside.")
@click.option(
    "-t",
    "--value",
    "--token",
    "token",
    default="",
    metavar="VALUE",
    help="The value, where everybody can see it.",
)
@source_options
@click.option(
    "--placeholder", default="", metavar="TEXT", help="What stands for the value; {rand} becomes 16 letters."
)
@click.option(
    "--header",
    "headers",
    multiple=True,
    metavar="NAME",
    help="Header in which the placeholder is replaced; may be repeated. Default: authorization.",
)
@click.option("-f", "--force", is_flag=True, help="Overwrite one that is stored; it keeps its placeholder.")
@click.option("--in-query", is_flag=True, help="Replace it in the query as well.")
@click.option("--in-body", is_flag=True, help="Replace it in bodies as well.")
@exclusive_option
@click.pass_context
def set_custom(
    ctx: click.Context,
    /,
    sandbox: str,
    everywhere: bool,
    hosts: Sequence[str],
    env: str,
    headers: Sequence[str],
    placeholder: str,
    in_query: bool,
    in_body: bool,
    exclusive: bool,
    force: bool,
    **options: Any,
) -> None:
    """Store a credential for hosts that you name.

    Programs inside find a placeholder in the variable; where it stands in a request to one of the hosts, over
    verified TLS, the gateway puts the value in its place. Sent anywhere else it is refused, and recorded as misuse.
    """
    scope = scoped(ctx, sandbox, everywhere)
    fields = given(ctx, **_source(options), ask=asked(f"Value of {env}"))
    daemon = reach.daemon()
    if options["token"]:
        warn_of_argument(daemon, "--value")
    made = daemon.set_secret(
        "custom",
        env=env,
        hosts=list(hosts),
        headers=list(headers),
        placeholder=placeholder,
        in_query=in_query,
        in_body=in_body,
        exclusive=exclusive,
        overwrite=force,
        sandbox=scope,
        **fields,
    )
    secret = made["secret"]
    out(f"Custom secret '{plain(env)}' stored ({plain(secret['scope'])})")
    out(f"Placeholder: {plain(secret.get('placeholder', ''))}")
    for text in made["warnings"]:
        warn(text)
