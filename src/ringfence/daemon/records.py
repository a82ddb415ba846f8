"""The worker's records, read strictly: it touches hostile bytes all day, and what it says goes into the ledger.

A record has the fields of :class:`ringfence.audit.events.NetworkEvent` and no others, of their types and bounded, or it
is a gap (``{"dropped": n}``). A worker that says anything else is not the worker that was started.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from math import isfinite
from typing import Any, Final

from ringfence.audit.events import TEXT_LIMIT, NetworkEvent

_KINDS: Final = {"str": (str,), "int": (int,), "float": (float, int), "bool": (bool,)}
_FIELDS: Final = {each.name: _KINDS[str(each.type)] for each in fields(NetworkEvent)}
_REQUIRED: Final = {"id", "step", "time", "sandbox", "verdict"}
_STEPS: Final = {"opened", "closed"}
_VERDICTS: Final = {"allowed", "blocked", "approval", "undetermined"}
_TEXT: Final = 2 * TEXT_LIMIT
_NUMBER: Final = 2**63


def read_record(raw: object) -> Mapping[str, Any]:
    """Return a record. Raises ``ValueError`` for what is none."""
    if not isinstance(raw, dict):
        raise ValueError("a record is no object")
    if raw.keys() == {"dropped"}:
        _check("dropped", raw["dropped"], (int,))
        return raw
    if not raw.keys() >= _REQUIRED:
        raise ValueError(f"a record without {', '.join(sorted(_REQUIRED - raw.keys()))}")
    for name, value in raw.items():
        if name not in _FIELDS:
            raise ValueError(f"a record with the unknown field {name[:40]!r}")
        _check(name, value, _FIELDS[name])
    if raw["step"] not in _STEPS or raw["verdict"] not in _VERDICTS:
        raise ValueError("a record with an unknown step or verdict")
    return raw


def _check(name: str, value: object, kinds: tuple[type, ...]) -> None:
    if isinstance(value, bool) != (kinds == (bool,)) or not isinstance(value, kinds):
        raise ValueError(f"a record whose {name} is a {type(value).__name__}")
    if isinstance(value, str) and len(value) > _TEXT:
        raise ValueError(f"a record whose {name} has {len(value)} characters")
    if isinstance(value, int | float) and not (isfinite(value) and abs(value) < _NUMBER):
        raise ValueError(f"a record whose {name} is no number of this world")
