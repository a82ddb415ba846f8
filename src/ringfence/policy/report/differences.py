"""What changes between two documents: rules that come, go, and say something else under the same identity."""

from __future__ import annotations

from dataclasses import dataclass

from ringfence.policy.document import PolicyDocument, rule_record
from ringfence.policy.rule import Rule


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """From one document to another. Order and comments are no difference."""

    added: tuple[Rule, ...] = ()
    removed: tuple[Rule, ...] = ()
    changed: tuple[tuple[Rule, Rule], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.changed)

    def lines(self) -> tuple[str, ...]:
        """Return the difference as text, one statement a line."""
        said = [f"- {_sentence(rule)}" for rule in self.removed]
        for old, new in self.changed:
            said += [f"~ {new.title}: {line}" for line in _changes(old, new)]
        return (*said, *(f"+ {_sentence(rule)}" for rule in self.added))


def difference(old: PolicyDocument, new: PolicyDocument) -> Difference:
    """Compare by the rules' ids."""
    before = {rule.id: rule for rule in old.rules}
    after = {rule.id: rule for rule in new.rules}
    return Difference(
        added=tuple(rule for key, rule in after.items() if key not in before),
        removed=tuple(rule for key, rule in before.items() if key not in after),
        changed=tuple(
            (before[key], rule) for key, rule in after.items() if key in before and before[key] != rule
        ),
    )


def _sentence(rule: Rule) -> str:
    requests = f" {','.join(rule.methods)} {','.join(path.text for path in rule.paths)}" if rule.http else ""
    return f"{rule.title}: {rule.effect} {', '.join(rule.texts)}{requests}"


def _changes(old: Rule, new: Rule) -> list[str]:
    before, after = rule_record(old), rule_record(new)
    lines = []
    for key in [key for key in {**before, **after} if before.get(key) != after.get(key)]:
        was, now = before.get(key), after.get(key)
        if isinstance(was, list) and isinstance(now, list):
            lines += [f"{key} without {text}" for text in was if text not in now]
            lines += [f"{key} with {text}" for text in now if text not in was]
        else:
            lines.append(f"{key} {_shown(was)} → {_shown(now)}")
    return lines


def _shown(value: object) -> str:
    return "unset" if value is None else f"`{value}`"
