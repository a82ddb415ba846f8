"""The corpus: scenarios under ``cases/``, each a policy by origin and a table of what is asked and what must come.

A line of ``asked`` has columns, two spaces or more apart: what is asked, verdict, reason, the determining rules (`-`
for none), a remark. What is asked is a target as in ``sbx policy check``, with a method or ``udp`` before it;
``dial TARGET -> ADDRESS``; ``read PATH`` or ``write PATH``; ``raw HOST PORT``. With ``would`` or ``inspect`` in the
file the fifth column is what they must be. ``standings`` has a rule's name, its origin and its status.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from ringfence.documents import preset_document
from ringfence.policy import (
    Base,
    Decision,
    Delegation,
    EffectivePolicy,
    FileAction,
    FilesystemAccess,
    Guards,
    Kind,
    NetworkAccess,
    Rule,
    Sources,
    Spent,
    Standing,
    Statement,
    Transport,
    compose,
    decide,
    decide_file,
    judge_address,
    parse_rule,
    parse_target,
)

CASES = Path(__file__).parent / "cases"
SUFFIXES = {"com", "org", "net", "test", "co.uk", "io", "internal"}


@dataclass(frozen=True)
class Scenario:
    name: str
    facts: dict[str, Any]

    @property
    def now(self) -> float:
        return float(self.facts.get("now", 0))

    @property
    def lines(self) -> list[list[str]]:
        return table(self.facts["asked"])

    @property
    def standings(self) -> list[list[str]]:
        return table(self.facts.get("standings", ""))

    def policy(self) -> EffectivePolicy:
        return compose(self.sources(), revision=7, now=self.now, is_public_suffix=SUFFIXES.__contains__)

    def sources(self) -> Sources:
        facts = self.facts
        sandbox, template = facts.get("sandbox", {}), facts.get("template", {})
        return Sources(
            preset=preset_document(facts["preset"]).rules if "preset" in facts else (),
            disabled=frozenset(facts.get("disabled", ())),
            local=rules(facts.get("local", ())),
            sandbox=sandbox.get("name", ""),
            sandbox_rules=rules(sandbox.get("rules", ())),
            base=Base(sandbox.get("base", "inherit")),
            template=template.get("name", ""),
            template_rules=rules(template.get("rules", ())),
            template_accepted=template.get("accepted", False),
            statement=self.statement(),
            signed_out_ceiling=(
                preset_document(facts["signed_out_ceiling"]).rules if "signed_out_ceiling" in facts else ()
            ),
            guards=Guards(host=tuple(facts.get("host", ())), product=tuple(facts.get("product", ()))),
            protected=tuple(facts.get("protected", ())),
            home=facts.get("home", ""),
        )

    def statement(self) -> Statement | None:
        organisation = self.facts.get("organisation")
        if organisation is None:
            return None
        return Statement(
            organisation=organisation["name"],
            delegation={Kind(k): Delegation(d) for k, d in organisation.get("delegation", {}).items()},
            rules=rules(organisation.get("rules", ())),
            expires_at=float(organisation.get("expires_at", "inf")),
            standing=Standing(organisation.get("standing", "enrolled")),
        )

    def ask(self, policy: EffectivePolicy, asked: str) -> Decision:
        """Ask a policy what a line of the table asks."""
        now, first, rest = self.now, *asked.partition(" ")[::2]
        known = {"teams": frozenset(self.facts["teams"])} if "teams" in self.facts else {}
        spent = {key: Spent(**value) for key, value in self.facts.get("spent", {}).items()}
        if first in ("read", "write"):
            return decide_file(
                policy, FilesystemAccess(path=rest, action=FileAction(first)), now=now, **known
            )
        if first == "dial":
            target, _, address = rest.partition(" -> ")
            return judge_address(policy, parse_target(target), address, now=now, spent=spent, **known)
        return decide(policy, network_access(asked), now=now, spent=spent, **known)


def network_access(asked: str) -> NetworkAccess:
    first, rest = asked.partition(" ")[::2]
    if first == "raw":
        host, _, port = rest.rpartition(" ")
        return NetworkAccess(host=host, port=int(port))
    if first == "udp":
        return parse_target(rest, transport=Transport.UDP)
    return parse_target(rest, method=first) if rest else parse_target(first)


def rules(records: Any) -> tuple[Rule, ...]:
    return tuple(parse_rule(record, default_id=f"rule-{number}") for number, record in enumerate(records))


def table(text: str) -> list[list[str]]:
    return [re.split(r" {2,}", line.strip()) for line in text.splitlines() if line.strip()]


def scenarios() -> list[Scenario]:
    yaml = YAML(typ="safe")
    return [Scenario(path.stem, yaml.load(path)) for path in sorted(CASES.glob("*.yaml"))]
