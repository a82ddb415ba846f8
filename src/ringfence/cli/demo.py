"""``sbx demo``: worlds in which the product proves itself. They live beside an installation, never in it."""

from __future__ import annotations

import click

from ringfence.cli.commands import Entry, Group, command, json_option

demo = Group(
    "demo",
    sections={
        "Demos": {
            "network": Entry(module=__name__, attribute="network", line="Three requests, and who decides.")
        }
    },
    help="Watch policy decide, in a small world of its own.",
)


@command(
    "network",
    examples=(
        "sbx demo network",
        "sbx demo network --bypass-attempts",
        "sbx demo network --runtime namespaces",
    ),
)
@click.option(
    "--bypass-attempts", is_flag=True, help="Also try every known way around the gateway; each must fail."
)
@click.option(
    "--runtime",
    default="",
    metavar="RUNTIME",
    help="Isolation: gvisor or namespaces. Default: the strongest that works.",
)
@json_option
def network(bypass_attempts: bool, runtime: str, as_json: bool) -> int:
    """Start a real sandbox, let three requests leave it, and see policy decide.

    Nothing of your own installation is touched: directory, daemon, certificates and network are made for the
    demo, and no internet is needed.
    """
    from ringfence.demo.network import Options, main

    return main(Options(bypass_attempts=bypass_attempts, runtime=runtime, json=as_json))
