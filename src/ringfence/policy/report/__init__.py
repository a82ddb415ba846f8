"""What people are told about policy: listings, explanations, checks, differences, the schema of documents."""

from ringfence.policy.report.checks import Failure, run_checks
from ringfence.policy.report.differences import Difference, difference
from ringfence.policy.report.explain import Considered, advice, consider, why_not
from ringfence.policy.report.listing import Row, rows, totals
from ringfence.policy.report.presets import (
    DEFAULT_PRESET,
    PRESETS,
    Group,
    Preset,
    find_preset,
    groups,
    switch,
)
from ringfence.policy.report.schema import json_schema

__all__ = [
    "DEFAULT_PRESET",
    "PRESETS",
    "Considered",
    "Difference",
    "Failure",
    "Group",
    "Preset",
    "Row",
    "advice",
    "consider",
    "difference",
    "find_preset",
    "groups",
    "json_schema",
    "rows",
    "run_checks",
    "switch",
    "totals",
    "why_not",
]
