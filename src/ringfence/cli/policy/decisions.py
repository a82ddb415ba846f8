"""Asking policy, and explaining what it said. Both render the daemon's decision; nothing is derived here."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from ringfence.cli import reach
from ringfence.cli.commands import command, json_option
from ringfence.cli.options import sandbox_option
from ringfence.cli.terminal.screen import GREEN, RED, YELLOW, fields, out, out_json, paint, plain

if TYPE_CHECKING:
    from ringfence.client.shapes import Checked, Explained, Policy, Record

DENIED = 4
_VERDICTS = {"allowed": ("Allowed", GREEN), "blocked": ("Denied", RED)}
_OTHER = {"approval": ("Approval required", YELLOW), "undetermined": ("Depends on the request", YELLOW)}


@command(
    "network",
    examples=(
        "sbx policy check network api.anthropic.com",
        "sbx policy check network https://api.github.com/repos/x/y --method GET",
        "sbx policy check network 10.0.0.5:5432 --sandbox lab --json",
    ),
)
@json_option
@sandbox_option
@click.option("--method", default="", metavar="METHOD", help="An HTTP request with this method.")
@click.option("--path", default="", metavar="PATH", help="An HTTP request for this path.")
@click.option(
    "--protocol", type=click.Choice(["tcp", "udp"]), default="tcp", show_default=True, help="Transport."
)
@click.option("--verbose", is_flag=True, hidden=True)
@click.argument("target", metavar="TARGET")
def check_network(
    target: str, sandbox: str, method: str, path: str, protocol: str, as_json: bool, verbose: bool
) -> int:
    """Ask whether TARGET (a host, host:port or URL; port 443 if none is named) may be reached, and why.

    Leaves with 0 if it may and with 4 if not. The answer is the gateway's own: there is one engine.
    """
    del verbose  # everything there is to say is said
    daemon = reach.daemon()
    checked = daemon.check(target, sandbox=sandbox, transport=protocol, method=method, path=path)
    if as_json:
        out_json(check_document(checked, daemon.policy(sandbox=sandbox), protocol))
    else:
        out(check_text(checked))
    return 0 if checked["allowed"] else DENIED


def check_text(checked: Checked) -> str:
    word, colour = (_VERDICTS | _OTHER).get(checked["verdict"], ("Denied", RED))
    rules = checked["rules"]
    would = checked.get("would") or []
    pairs = {
        "Reason": checked["text"],
        "Rule": ", ".join(_rule(rule) for rule in rules),
        "Scope": checked["context"],
        "Revision": str(checked["revision"]),
        "Would have": ", ".join(f"{rule.get('effect')} by {_rule(rule)}" for rule in would),
    }
    lines = [f"{paint(word, colour)}: {plain(checked['host'])}:{checked['port']}", fields(pairs, indent="  ")]
    lines += [f"  - {plain(text)}" for text in checked.get("why_not") or ()]
    return "\n".join(lines)


def _rule(rule: dict[str, Any]) -> str:
    return f"{rule.get('name') or rule.get('id')} ({rule.get('origin')})"


def check_document(checked: Checked, policy: Policy, protocol: str) -> dict[str, Any]:
    """The decision under the names that clients of the field read, and all of our own."""
    governance = policy["governance"] or {}
    first = checked["rules"][0] if checked["rules"] else {}
    return {
        **checked,
        "type": "network",
        "action": f"net:connect:{protocol}",
        "resource_type": "net:domain",
        "resource_value": f"{checked['host']}:{checked['port']}",
        "origin": first.get("origin", ""),
        "rule": first.get("id", ""),
        "governance": {
            "active": bool(governance),
            "organization": governance.get("organization", ""),
            "organization_unavailable": governance.get("state", "managed") != "managed",
            "last_synced": governance.get("last_synced"),
        },
    }


@command(
    "explain", examples=("sbx policy explain 01JT3Y5V8K           # the id in a refusal's X-Sbx-Decision",)
)
@json_option
@click.argument("decision", metavar="ID")
def explain(decision: str, as_json: bool) -> None:
    """Explain a decision: what was asked, what was answered, by which rule, and what would change it."""
    explained = reach.daemon().explain(decision)
    if as_json:
        out_json(explained)
    else:
        out(explanation(explained))


def explanation(explained: Explained) -> str:
    opened: Record = {}
    for record in explained["records"]:
        opened |= record
    word, colour = (_VERDICTS | _OTHER).get(str(opened.get("verdict")), ("Denied", RED))
    asked = " ".join(str(opened[key]) for key in ("method", "path") if opened.get(key))
    times = [float(record["time"]) for record in explained["records"]]
    pairs = {
        "Decision": str(opened.get("id", "")),
        "Time": time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(min(times))) if times else "",
        "Sandbox": str(opened.get("sandbox_name") or opened.get("sandbox") or ""),
        "Agent": str(opened.get("agent", "")),
        "Request": asked,
        "Arrived by": str(opened.get("via", "")),
        "Protocol": str(opened.get("protocol") or opened.get("transport") or ""),
        "Dialled": str(opened.get("dialled", "")),
        "Reason": str(opened.get("text") or opened.get("reason") or ""),
        "Rule": f"{opened['rule']} ({opened.get('origin', '')})" if opened.get("rule") else "",
        "Rule id": str(opened.get("rule_id", "")),
        "Revision": str(opened.get("revision", "")),
        "Would have": str(opened.get("would", "")),
        "Status": str(opened.get("status", "")),
        "Bytes": f"{opened.get('bytes_out', 0)} out, {opened.get('bytes_in', 0)} in"
        if len(times) > 1
        else "",
        "Ended": str(opened.get("ended", "")),
    }
    head = f"{paint(word, colour)}: {plain(str(opened.get('host', '')))}:{opened.get('port', '')}"
    advice = explained.get("advice")
    return "\n".join([head, fields(pairs, indent="  "), *([f"\n{plain(advice)}"] if advice else [])])
