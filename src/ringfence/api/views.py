"""What the API answers: values of the application as JSON objects. Optional keys are left out, not null."""

from __future__ import annotations

from typing import Any

from ringfence.application.decisions import Checked
from ringfence.application.doctor import Check, Status
from ringfence.application.exchange import Imported, Tested, Validated
from ringfence.application.lives import Life
from ringfence.application.presets import Choice
from ringfence.application.rules import Listing
from ringfence.application.sandboxes import Entrance
from ringfence.policy.document import rule_record
from ringfence.policy.governance import SANDBOX
from ringfence.policy.model import RuleRef
from ringfence.policy.report.checks import Failure
from ringfence.policy.report.presets import PRESETS, Group
from ringfence.sandbox.model import Isolation

Json = dict[str, Any]


def sandbox_view(life: Life, isolation: Isolation, socket_path: str) -> Json:
    spec = life.record.spec
    return {
        "id": spec.id,
        "name": spec.name,
        "agent": spec.agent,
        "status": life.status,
        "isolation": isolation.value,
        "runtime": spec.runtime,
        "enforcement": life.enforcement.value,
        "anonymous": spec.anonymous,
        "workspaces": [f"{w.path}:ro" if w.readonly else w.path for w in spec.workspaces],
        "created": life.record.created,
        "socket_path": socket_path,
    }


def sandbox_detail(life: Life, summary: Json, own_rules: int, revision: int) -> Json:
    spec = life.record.spec
    addresses = life.attachment.addresses if life.attachment else None
    return {
        **summary,
        "template": spec.template,
        "limits": {
            "cpus": spec.limits.cpus,
            "memory": spec.limits.memory,
            "pids": spec.limits.pids,
            "disk": spec.limits.disk,
        },
        "sessions": life.attendance.open if life.running else 0,
        "observed": {
            "condition": life.observed.condition.value,
            "time": life.observed.time,
            "pid": life.observed.pid,
            "detail": life.observed.detail,
        },
        "policy": {
            "scope": f"{SANDBOX}{spec.name}",
            "base": life.record.base.value,
            "rules": own_rules,
            "revision": revision,
        },
        "addresses": {
            "gateway4": addresses.gateway4,
            "sandbox4": addresses.sandbox4,
            "gateway6": addresses.gateway6,
            "sandbox6": addresses.sandbox6,
        }
        if addresses
        else {},
    }


def entrance_view(entrance: Entrance) -> Json:
    return {
        "socket": entrance.socket,
        "command": list(entrance.command),
        "environment": entrance.environment,
        "cwd": entrance.cwd,
        "user": entrance.user,
    }


def listing_view(listing: Listing) -> Json:
    return {
        "governance": None,
        "preset": listing.preset or None,
        "revision": listing.revision,
        "rules": list(listing.rules),
    }


def choice_view(choice: Choice) -> Json:
    return {
        "chosen": choice.chosen or None,
        "presets": [{"name": p.name, "value": p.value, "line": p.line} for p in PRESETS],
        "groups": [
            _part(group) | {"parts": [_part(part) for part in group.parts]} for group in choice.groups
        ],
    }


def _part(part: Group) -> Json:
    return {"name": part.name, "enabled": part.enabled, "resources": list(part.resources)}


def checked_view(checked: Checked) -> Json:
    decision = checked.decision
    return {
        "allowed": decision.allowed,
        "verdict": decision.verdict.value,
        "reason": decision.reason.value,
        "text": decision.text,
        "target": checked.target,
        "host": checked.access.host,
        "port": checked.access.port,
        "rules": [_ref(rule) for rule in decision.rules],
        "revision": decision.revision,
        "context": checked.context,
        "deny_kind": checked.deny_kind,
        "would": [_ref(rule) for rule in decision.would],
        "why_not": list(checked.why_not),
        "advice": checked.advice,
    }


def _ref(rule: RuleRef) -> Json:
    return {"id": rule.id, "name": rule.name, "origin": rule.origin, "effect": rule.effect.value}


def check_view(check: Check) -> Json:
    return {
        "name": check.name,
        "status": check.status.value,
        "message": check.message,
        "detail": check.detail,
        "hint": check.hint,
    }


def doctor_view(version: str, checks: list[Check]) -> Json:
    counts = {status.value: sum(1 for check in checks if check.status is status) for status in Status}
    return {"version": version, "checks": [check_view(check) for check in checks], "summary": counts}


def imported_view(imported: Imported) -> Json:
    return {
        "added": [rule_record(rule) for rule in imported.added],
        "removed": [rule_record(rule) for rule in imported.removed],
        "warnings": list(imported.warnings),
    }


def validated_view(validated: Validated) -> Json:
    error = validated.error
    errors = (
        [
            {
                "line": getattr(error, "line", 0),
                "column": getattr(error, "column", 0),
                "message": f"{error.where}: {error.message}" if error.where else error.message,
                "hint": error.hint,
            }
        ]
        if error
        else []
    )
    return {
        "ok": not errors and not validated.failures,
        "errors": errors,
        "warnings": list(validated.warnings),
        "tests": [failure_view(failure) for failure in validated.failures],
    }


def tested_view(tested: Tested) -> Json:
    return {"passed": tested.passed, "failed": [failure_view(failure) for failure in tested.failed]}


def failure_view(failure: Failure) -> Json:
    return {"asked": failure.asked, "expected": failure.expected, "got": failure.got}
