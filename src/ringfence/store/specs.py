"""A sandbox's specification as JSON and back. The database is ours, but a damaged row must not become a sandbox."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from ringfence.application.errors import Unavailable
from ringfence.sandbox.model import Limits, Owner, SandboxSpec, Workspace


def spec_to_json(spec: SandboxSpec) -> dict[str, Any]:
    return asdict(spec)


def spec_from_json(stored: Mapping[str, Any]) -> SandboxSpec:
    try:
        fields = dict(stored)
        fields["owner"] = Owner(**fields["owner"])
        fields["limits"] = Limits(**fields["limits"])
        fields["workspaces"] = tuple(Workspace(**workspace) for workspace in fields["workspaces"])
        fields["environment"] = tuple((str(name), str(value)) for name, value in fields["environment"])
        return SandboxSpec(**fields)
    except (KeyError, TypeError, ValueError) as error:
        raise Unavailable(
            f"a stored sandbox cannot be read: {error!r}",
            hint="restore the database from a backup, or move it away to begin anew",
            code="store",
        ) from error
