"""Shell completion, with the names of live sandboxes and the ids of rules.

A completion never starts the daemon, never waits for long and never prints an error: where nothing is known,
nothing is offered.
"""

from __future__ import annotations

import click

from ringfence.cli.commands import command
from ringfence.cli.terminal.screen import out

PATIENCE = 1.0
"""Seconds that a person who pressed Tab waits for the daemon."""


def sandbox_names(_ctx: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    from ringfence.cli import reach
    from ringfence.client.api import Daemon
    from ringfence.client.errors import RingfenceError

    try:
        names = [found["name"] for found in Daemon(str(reach.here().socket), patience=PATIENCE).sandboxes()]
    except RingfenceError:
        return []
    return [name for name in names if name.startswith(incomplete)]


def rule_ids(_ctx: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """Ids that ``policy rm`` takes, bare: a colon is a word break to a shell."""
    from ringfence.cli import reach
    from ringfence.client.api import Daemon
    from ringfence.client.errors import RingfenceError

    try:
        rules = Daemon(str(reach.here().socket), patience=PATIENCE).policy()["rules"]
    except RingfenceError:
        return []
    ids = [rule["id"].removeprefix("local:") for rule in rules if rule["editable"]]
    return [found for found in ids if found.startswith(incomplete)]


@command(
    "completion",
    examples=(
        'eval "$(sbx completion bash)"                                   # in ~/.bashrc',
        'eval "$(sbx completion zsh)"                                    # in ~/.zshrc',
        "sbx completion fish > ~/.config/fish/completions/sbx.fish",
    ),
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script of a shell."""
    from click.shell_completion import ShellComplete, get_completion_class

    from ringfence.cli.main import COMPLETE, root

    kind = get_completion_class(shell)
    assert kind is not None
    # the base's source: bash's own starts a bash to see its version, and not the one that will read this
    out(ShellComplete.source(kind(root, {}, "sbx", COMPLETE)))
