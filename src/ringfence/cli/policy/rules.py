"""Adding and removing rules. Resources go to the policy engine as they were typed or pasted."""

from __future__ import annotations

from typing import Any

import click

from ringfence.cli import reach
from ringfence.cli.commands import Command, command
from ringfence.cli.options import Duration, rule_id_option, sandbox_option, words
from ringfence.cli.policy.listing import bare_id, extras
from ringfence.cli.terminal.screen import out, plain, warn


def _adding(effect: str, examples: tuple[str, ...], text: str) -> Command:
    """``allow`` and ``deny`` are one command with another effect."""

    @command("network", examples=examples, help=text)
    @sandbox_option
    @click.option("-g", "--global", "everywhere", is_flag=True, help="For all sandboxes (the default).")
    @click.option("--name", default="", metavar="NAME", help="Name of the rule. Default: local:<id>.")
    @click.option(
        "--protocol", multiple=True, metavar="tcp|udp", help="Only this transport; may be repeated."
    )
    @click.option(
        "--method", multiple=True, metavar="METHOD[,METHOD]", help="Only HTTP requests with these methods."
    )
    @click.option(
        "--path", multiple=True, metavar="PATTERN", help="Only HTTP requests with these paths: /repos/**."
    )
    @click.option(
        "--for", "expires_in", type=Duration(), metavar="DURATION", help="For so long: 30m, 2h, 7d."
    )
    @click.option(
        "--mode",
        type=click.Choice(["enforce", "evaluate"]),
        default="enforce",
        help="evaluate: only record what the rule would have done.",
    )
    @click.option(
        "--inspect",
        type=click.Choice(["always", "auto", "never"]),
        help="Whether the gateway reads TLS towards these hosts; never means a tunnel.",
    )
    @click.option("--resource", multiple=True, metavar="RESOURCES", help="Same as the argument.")
    @click.argument("texts", metavar="RESOURCES...", nargs=-1)
    @click.pass_context
    def add(
        ctx: click.Context,
        sandbox: str,
        everywhere: bool,
        name: str,
        protocol: tuple[str, ...],
        method: tuple[str, ...],
        path: tuple[str, ...],
        expires_in: int | None,
        mode: str,
        inspect: str | None,
        resource: tuple[str, ...],
        texts: tuple[str, ...],
    ) -> None:
        if sandbox and everywhere:
            raise click.UsageError("--sandbox and --global contradict each other", ctx)
        if not texts and not resource:
            raise click.UsageError("name what the rule is about: a host, a pattern, an address", ctx)
        from ringfence.cli.policy.presets import with_policy

        daemon = reach.daemon()
        fields: dict[str, Any] = {
            "name": name,
            "transports": words(protocol),
            "methods": words(method),
            "paths": list(path),
            "expires_in": expires_in,
            "mode": "" if mode == "enforce" else mode,
            "inspect": inspect,
        }
        entries = [*texts, *resource]
        added = with_policy(
            daemon, lambda: daemon.add_rule(effect=effect, resources=entries, sandbox=sandbox, **fields)
        )
        for rule in added["rules"]:
            scope = rule["applies_to"] if rule["applies_to"].startswith("sandbox:") else "global"
            details = [",".join(rule["transports"])] if rule["transports"] else []
            details += [word for word in extras(rule) if not word.startswith(("sandbox ", "tcp", "udp"))]
            shown = f"{', '.join(rule['resources'])} [{'; '.join(details)}]"
            out(
                f"Rule added to policy local (scope: {plain(scope)}): {plain(bare_id(rule))} ({plain(shown)})"
            )
            if not rule["active"]:
                warn(f"the rule has no effect: {rule['status']}")
        theirs = [text for rule in added["rules"] for text in rule.get("warnings") or ()]
        for text in dict.fromkeys([*added["warnings"], *theirs]):
            warn(text)

    return add


allow_network = _adding(
    "allow",
    (
        "sbx policy allow network pypi.org files.pythonhosted.org",
        'sbx policy allow network "**.example.com:443"       # the name and everything below it',
        "sbx policy allow network localhost:11434             # a service on this machine",
        "sbx policy allow network api.github.com --method GET --path '/repos/**'",
        "sbx policy allow network build.example.com --sandbox lab --for 2h",
    ),
    "Allow sandboxes to reach RESOURCES: hosts, patterns, addresses and ranges, each with an optional port. "
    "It takes effect at once, also in running sandboxes. A deny that matches always wins.",
)
deny_network = _adding(
    "deny",
    (
        "sbx policy deny network pypi.org",
        "sbx policy deny network paste.ee,pastebin.com,hooks.slack.com --name 'deny exfiltration'",
        'sbx policy deny network "**" --protocol udp --sandbox lab',
    ),
    "Deny sandboxes RESOURCES, whatever allows them. It takes effect at once: open connections that it "
    "covers are closed.",
)


@command(
    "network",
    examples=(
        "sbx policy rm network --id 9701dc6e-2f4b-4c6e-9d5e-0f6a7c1b2d3e",
        "sbx policy rm network --resource pypi.org",
    ),
)
@rule_id_option
@click.option("--resource", multiple=True, metavar="RESOURCES", help="Rules that are about exactly these.")
@sandbox_option
@click.option("-f", "--force", is_flag=True, help="No such rule is no failure.")
@click.pass_context
def rm_network(ctx: click.Context, rule: str, resource: tuple[str, ...], sandbox: str, force: bool) -> None:
    """Remove a rule that you added. Rules of a preset are switched off with `sbx policy preset disable`."""
    from ringfence.client.errors import SANDBOX_NOT_FOUND, NotFound

    if not rule and not resource:
        raise click.UsageError("say which rule with --id or --resource; `sbx policy ls` shows them", ctx)
    try:
        removed = reach.daemon().remove_rules(rule=rule, resources=resource, sandbox=sandbox)
    except NotFound as error:
        if force and error.code != SANDBOX_NOT_FOUND:
            return
        raise
    for gone in removed:
        out(f"Rule removed from policy local: {plain(bare_id(gone))} ({plain(', '.join(gone['resources']))})")
