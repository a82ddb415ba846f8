"""``policy ls``: every rule that can change a verdict. Nothing is reachable that it does not show.

Ungoverned it is the four columns that people know, presets first and one's own rules at the bottom; under an
organisation it says where each rule comes from and whether it counts, with one resource a line.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from ringfence.cli import reach
from ringfence.cli.commands import command, json_option
from ringfence.cli.options import sandbox_argument
from ringfence.cli.terminal.screen import DIM, GREEN, RED, out, out_json, paint, plain, warn, width
from ringfence.cli.terminal.table import table, wrapped

if TYPE_CHECKING:
    from ringfence.client.shapes import Policy, Rule

CATCH_ALL = frozenset({"**", "0.0.0.0/0", "::/0"})
STATUS_COLUMNS = 55
WIDE = (
    *("SOURCE", "APPLIES TO", "RULE", "RULE_ID", "TYPE", "DECISION"),
    *("STATUS", "PROTOCOL", "METHOD", "PATH", "RESOURCES"),
)
_SOURCES = {"org": "remote", "kit": "template"}
_RANK = {"remote": 0, "preset": 1, "template": 2, "sandbox": 3, "local": 4}


@command(
    "ls",
    examples=(
        "sbx policy ls",
        "sbx policy ls lab                        # with the rules of sandbox lab",
        "sbx policy ls --source local --wide",
        "sbx policy ls --json | jq '.rules[] | select(.decision == \"deny\")'",
    ),
)
@json_option
@click.option(
    "--type", "kind", type=click.Choice(["all", "network", "filesystem"]), default="all", help="Kind of rule."
)
@click.option(
    "--decision", type=click.Choice(["allow", "deny", "approval"]), help="Only rules that say this."
)
@click.option(
    "--source",
    type=click.Choice(["preset", "local", "sandbox", "template", "remote", "org", "kit"]),
    help="Only rules that come from there.",
)
@click.option("--include-inactive", is_flag=True, help="Also rules that do not count, with the reason.")
@click.option("--wide", is_flag=True, help="All columns, one resource a line.")
@sandbox_argument(required=False, default="", metavar="[SANDBOX]")
def ls(
    sandbox: str,
    as_json: bool,
    kind: str,
    decision: str | None,
    source: str | None,
    include_inactive: bool,
    wide: bool,
) -> None:
    """List the rules in force and where they come from; your own are at the bottom."""
    policy = reach.daemon().policy(sandbox=sandbox)
    rules = [
        rule
        for rule in sorted(policy["rules"], key=lambda rule: _RANK.get(_source(rule), 4))
        if kind in ("all", rule["resource_type"])
        and decision in (None, rule["decision"])
        and (source is None or _SOURCES.get(source, source) == _source(rule))
    ]
    governed = policy["governance"] is not None
    if as_json:
        out_json({**policy, "rules": rules})
        return
    if not (include_inactive or governed):
        rules = [rule for rule in rules if rule["active"]]
    if governed:
        out(governance_header(policy["governance"] or {}))
    if not rules:
        out("No policies match the selected filters." if policy["rules"] else _nothing(policy))
    elif wide:
        out(wide_table(rules))
    elif governed:
        out(governed_table(folded(rules)))
    else:
        out(plain_table(folded(rules), status=include_inactive))
    for text in notes(rules):
        warn(text)


def _nothing(policy: Policy) -> str:
    if policy["preset"] is None and policy["governance"] is None:
        return "No policy has been chosen yet: nothing is allowed. Choose one with `sbx policy init`."
    return "No policies found: nothing is allowed."


def rule_name(rule: Rule) -> str:
    """The rule's name, or what `policy rm network --id` takes."""
    return rule["name"] or f"local:{bare_id(rule)}"


def bare_id(rule: Rule) -> str:
    return rule["id"].removeprefix("local:")


def _source(rule: Rule) -> str:
    return rule["origin"].partition(":")[0]


def extras(rule: Rule) -> list[str]:
    """What a rule says beyond effect and resources, in a few words each."""
    transports = ",".join(rule.get("transports") or ())
    usual = {"allow": ("tcp",), "deny": ("tcp,udp", "udp,tcp")}.get(rule["decision"], ())
    methods, paths = ",".join(rule.get("methods") or ()), " ".join(rule.get("paths") or ())
    expires = rule.get("expires_at")
    scope = rule["origin"].startswith("sandbox:") or rule["applies_to"].startswith("sandbox:")
    return [
        words
        for words in (
            " ".join(filter(None, (methods, paths))),
            transports if transports not in ("", *usual) else "",
            f"until {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(expires))}" if expires else "",
            "evaluate only" if rule.get("mode") == "evaluate" else "",
            f"inspect {rule['inspect']}" if rule.get("inspect") not in (None, "", "auto", "always") else "",
            rule["applies_to"].replace("sandbox:", "sandbox ") if scope else "",
        )
        if words
    ]


def _resources(rule: Rule, *, scope: bool = True) -> list[str]:
    said = extras(rule)
    if not scope:
        said = [words for words in said if not words.startswith("sandbox ")]
    return [*rule["resources"], *([f"({'; '.join(said)})"] if said else [])]


def _decision_paint(decision: str) -> str:
    return (
        paint(decision, {"allow": GREEN, "deny": RED}.get(decision, ""))
        if decision in ("allow", "deny")
        else decision
    )


def plain_table(rules: Sequence[Rule], *, status: bool) -> str:
    """``NAME TYPE DECISION RESOURCES``; a terminal wraps the resources, elsewhere a rule is one line."""
    headers = ["NAME", "TYPE", "DECISION", *(["STATUS"] if status else []), "RESOURCES"]
    heads = [
        [rule_name(rule), rule["resource_type"], rule["decision"], *([rule["status"]] if status else [])]
        for rule in rules
    ]
    taken = sum(
        max(len(header), *(len(plain(row[at])) for row in heads)) + 3
        for at, header in enumerate(headers[:-1])
    )
    columns = width()
    rows = [
        [*head, wrapped(_joined(rule), columns and columns - taken)]
        for head, rule in zip(heads, rules, strict=True)
    ]
    return table(headers, rows, paints={2: _decision_paint})


def folded(rules: Sequence[Rule]) -> list[Rule]:
    """The rules with the parts of a preset's group in the row of their group, where they say the same."""
    rows: dict[tuple[str, ...], Rule] = {}
    for rule in rules:
        preset = _source(rule) == "preset"
        name = rule["name"].partition("/")[0] if preset else rule["id"]
        key = (rule["origin"], name, rule["decision"], rule["status"], *extras(rule))
        if key in rows and preset:
            rows[key] = {**rows[key], "resources": [*rows[key]["resources"], *rule["resources"]]}
        else:
            rows[key] = rule
    return list(rows.values())


def _joined(rule: Rule) -> str:
    said = extras(rule)
    return ", ".join(rule["resources"]) + (f" ({'; '.join(said)})" if said else "")


def governed_table(rules: Sequence[Rule]) -> str:
    columns = STATUS_COLUMNS if width() is not None else None
    rows = [
        (
            rule_name(rule),
            rule["resource_type"],
            rule["origin"],
            rule["decision"],
            wrapped(rule["status"], columns),
            _resources(rule, scope=False),
        )
        for rule in rules
    ]
    headers = ("NAME", "TYPE", "ORIGIN", "DECISION", "STATUS", "RESOURCES")
    return table(headers, rows, paints={3: _decision_paint, 4: _status_paint})


def _status_paint(status: str) -> str:
    return status if status == "active" else paint(status, DIM)


def wide_table(rules: Sequence[Rule]) -> str:
    rows = [
        (
            rule["origin"],
            rule["applies_to"],
            rule["name"] or "-",
            bare_id(rule),
            rule["resource_type"],
            rule["decision"],
            rule["status"],
            ",".join(rule.get("transports") or ()) or "-",
            ",".join(rule.get("methods") or ()) or "-",
            " ".join(rule.get("paths") or ()) or "-",
            rule["resources"],
        )
        for rule in rules
    ]
    return table(WIDE, rows, paints={5: _decision_paint, 6: _status_paint})


def governance_header(governance: dict[str, Any]) -> str:
    """Who governs, how fresh what they said is, and whether this machine can be held to it."""
    state = governance.get("state") or "managed"
    organisation = plain(str(governance.get("organization") or "an unknown organisation"))
    synced = governance.get("last_synced")
    when = str(synced or "")
    if synced and isinstance(synced, int | float):
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(synced))
    lines = [
        f"Governance: managed by {organisation}"
        if state == "managed"
        else f"Governance: {plain(state)} ({organisation})",
        f"last synced {plain(when)}" if when else "never synced",
    ]
    if governance.get("enforcement") == "advisory":
        lines.append("enforcement: advisory")
    return "\n".join(lines)


def notes(rules: Sequence[Rule]) -> list[str]:
    """What a person should know about rules that count: catch-alls, rented stores, the daemon's warnings."""
    texts = [
        f"`{resource}` in rule `{rule_name(rule)}` switches default deny off: "
        "everything it covers is allowed but for denies"
        for rule in rules
        for resource in rule["resources"]
        if rule["active"]
        and rule["decision"] == "allow"
        and resource in CATCH_ALL
        and rule.get("mode") != "evaluate"
    ]
    texts += [
        f"data can leave through `{rule['name']}`, where anybody can own a bucket; "
        f"switch it off with `sbx policy preset disable {rule['name']}`"
        for rule in rules
        if rule["active"] and _source(rule) == "preset" and rule["name"].endswith("/storage")
    ]
    texts += [text for rule in rules if rule["active"] for text in rule.get("warnings") or ()]
    return list(dict.fromkeys(texts))
