"""The JSON Schema of policy documents, read off the same table as their parser. Published as
docs/policy.schema.json."""

from __future__ import annotations

from typing import Any

from ringfence.policy.document import CHECKS, FIELDS, RULES, VERSION
from ringfence.policy.model import FileAction, Transport

_TEXT = {"type": "string"}


def json_schema() -> dict[str, Any]:
    """Return the schema. What it cannot express (what a resource may be) the parser refuses with a place and
    a hint."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Ringfence policy document",
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "version": {"const": VERSION},
            "name": _TEXT,
            "description": _TEXT,
            "rules": {
                "type": "array",
                "maxItems": RULES,
                "items": {
                    "type": "object",
                    "additionalProperties": False,
                    "required": ["effect", "resources"],
                    "properties": {key: dict(field.schema) for key, field in FIELDS.items()},
                },
            },
            "tests": {
                "type": "object",
                "additionalProperties": False,
                "description": "Checked whenever a person writes policy; a failure refuses the write.",
                "properties": {"must_allow": _checks(), "must_block": _checks()},
            },
        },
    }


def _checks() -> dict[str, Any]:
    return {
        "type": "array",
        "minItems": 1,
        "maxItems": CHECKS,
        "items": {
            "anyOf": [
                {"type": "string", "description": "`example.com`, `example.com:8443` or a URL."},
                _mapping("target", method=_TEXT, transport={"enum": [str(t) for t in Transport]}, rule=_TEXT),
                _mapping("path", action={"enum": [str(a) for a in FileAction]}, rule=_TEXT),
            ]
        },
    }


def _mapping(required: str, **optional: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "additionalProperties": False,
        "required": [required],
        "properties": {required: _TEXT, **optional},
    }
