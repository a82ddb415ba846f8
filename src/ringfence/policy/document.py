"""Policy documents as plain structures: lists and mappings in, rules and checks out, and back.

One table, :data:`FIELDS`, says what a rule may hold; parser, printer and the published JSON Schema are read off it. A
complaint names its place (``rules[2].resources[0]``). Parsing what was printed gives back the same values. YAML, with
comments and line numbers, is the business of :mod:`ringfence.documents`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from functools import partial
from typing import Any, TypeVar

from ringfence.policy.errors import InvalidPolicy, quote
from ringfence.policy.model import (
    Budget,
    Effect,
    FileAction,
    FilesystemAccess,
    Inspect,
    Kind,
    Mode,
    NetworkAccess,
    Transport,
)
from ringfence.policy.paths import parse_file_pattern, parse_path_pattern
from ringfence.policy.patterns import RESOURCES, parse_resource
from ringfence.policy.rule import ANY_METHOD, DEFAULT_TRANSPORTS, NAME_LENGTH, Rule
from ringfence.policy.targets import parse_target, target_text

VERSION = 1
RULES = 200_000
CHECKS = 10_000
_Word = TypeVar("_Word", bound=StrEnum)
_BUDGET = ("tokens_per_day", "requests_per_minute", "bytes_per_day")


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One line of a document's ``tests``: what must or must not pass, and perhaps by which rule."""

    allow: bool
    access: NetworkAccess | FilesystemAccess
    rule: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyDocument:
    """A document, parsed."""

    name: str = ""
    description: str = ""
    rules: tuple[Rule, ...] = ()
    checks: tuple[Check, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """One key of a rule: how it is read, how it is written, what the schema says."""

    read: Callable[[Any], Any]
    write: Callable[[Rule], Any]
    """What is left out of a document is ``None`` here."""
    schema: Mapping[str, Any]
    attribute: str = ""


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise InvalidPolicy(f"{quote(str(value))} is not text", "put it in quotes")
    return str(value)


def _word(members: type[_Word]) -> Callable[[Any], _Word]:
    def read(value: Any) -> _Word:
        try:
            return members(_text(value))
        except ValueError as error:
            if isinstance(error, InvalidPolicy):
                raise
            choices = ", ".join(f"`{member}`" for member in members)
            raise InvalidPolicy(f"{quote(value)} is not one of {choices}") from error

    return read


def _list(read: Callable[[Any], Any], limit: int = RESOURCES) -> Callable[[Any], tuple[Any, ...]]:
    def read_all(value: Any) -> tuple[Any, ...]:
        if not isinstance(value, Sequence) or isinstance(value, str | bytes):
            raise InvalidPolicy(
                f"{quote(str(value))} is not a list", "write one entry a line, each behind `- `"
            )
        if len(value) > limit:
            raise InvalidPolicy(f"more than {limit} entries", "divide them")
        if not value:
            raise InvalidPolicy("an empty list", "leave the key out, or write an entry")
        return tuple(dict.fromkeys(_read_each(read, value)))

    return read_all


def _read_each(read: Callable[[Any], Any], values: Iterable[Any], where: str = "") -> list[Any]:
    found: list[Any] = []
    try:
        found.extend(map(read, values))
    except InvalidPolicy as error:
        raise error.at(f"{where}[{len(found)}]") from error  # what was read before it is in the list
    return found


def _located(where: str, read: Callable[[Any], Any], value: Any) -> Any:
    try:
        return read(value)
    except InvalidPolicy as error:
        raise error.at(where) from error


def _time(value: Any) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    try:
        moment = value if isinstance(value, datetime) else datetime.fromisoformat(_text(value))
    except ValueError as error:
        if isinstance(error, InvalidPolicy):
            raise
        raise InvalidPolicy(f"{quote(str(value))} is not a time", "write `2026-01-31T12:00:00Z`") from error
    if moment.tzinfo is None:
        raise InvalidPolicy(f"{quote(str(value))} has no time zone", "write `2026-01-31T12:00:00Z`")
    return moment.timestamp()


def _show_time(value: float | None) -> str | float | None:
    if value is None or value != int(value):
        return value
    return datetime.fromtimestamp(value, UTC).isoformat().replace("+00:00", "Z")


def _budget(value: Any) -> Budget:
    fields = _mapping(value, _BUDGET)
    for key, limit in fields.items():
        if not isinstance(limit, int) or isinstance(limit, bool) or limit < 0:
            raise InvalidPolicy(f"{quote(str(limit))} is not a count", where=key)
    return Budget(**fields)


def _mapping(value: Any, known: Iterable[str]) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise InvalidPolicy(f"{quote(str(value))} is not a mapping", "write `key: value`")
    for key in value:
        if key not in known:
            raise InvalidPolicy(
                f"unknown key {quote(str(key))}", f"known are {', '.join(f'`{k}`' for k in known)}"
            )
    return dict(value)


def _words(values: Sequence[StrEnum], unless: Sequence[StrEnum]) -> list[str] | None:
    return None if tuple(values) == tuple(unless) else [str(value) for value in values]


def _enumeration(members: type[StrEnum]) -> dict[str, Any]:
    return {"enum": [str(member) for member in members]}


_LINE = {"type": "string", "maxLength": NAME_LENGTH}
_COUNT = {"type": "integer", "minimum": 0}


def _several(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "array", "minItems": 1, "maxItems": RESOURCES, "items": dict(schema)}


FIELDS: dict[str, Field] = {
    "id": Field(
        read=_text,
        write=lambda rule: rule.id,
        schema=_LINE | {"description": "Stable identity; given by the product when left out."},
    ),
    "name": Field(
        read=_text,
        write=lambda rule: rule.name or None,
        schema=_LINE | {"description": "What people call it."},
    ),
    "description": Field(
        read=_text,
        write=lambda rule: rule.description or None,
        schema={"type": "string", "maxLength": 10 * NAME_LENGTH},
    ),
    "kind": Field(
        read=_word(Kind),
        write=lambda rule: None if rule.kind is Kind.NETWORK else str(rule.kind),
        schema=_enumeration(Kind) | {"default": "network"},
    ),
    "effect": Field(read=_word(Effect), write=lambda rule: str(rule.effect), schema=_enumeration(Effect)),
    "resources": Field(
        read=_list(_text),
        write=lambda rule: list(rule.texts),
        schema=_several({"type": "string", "minLength": 1})
        | {"description": "Hosts (`*.example.com:443`, `203.0.113.0/24`), or paths of a filesystem rule."},
    ),
    "actions": Field(
        read=_list(_word(FileAction)),
        write=lambda rule: _words(rule.actions, tuple(FileAction)) if rule.files else None,
        schema=_several(_enumeration(FileAction)) | {"description": "Filesystem rules; both when left out."},
    ),
    "transports": Field(
        read=_list(_word(Transport)),
        write=lambda rule: (
            _words(rule.transports, DEFAULT_TRANSPORTS[rule.effect]) if rule.resources else None
        ),
        schema=_several(_enumeration(Transport))
        | {"description": "tcp for an allow, both for a deny when left out."},
    ),
    "methods": Field(
        read=_list(_text),
        write=lambda rule: list(rule.methods) or None,
        schema=_several({"type": "string", "pattern": "^[A-Z][A-Z0-9_-]{0,31}$"})
        | {"description": f"HTTP rules; `{ANY_METHOD}` stands alone for every method."},
    ),
    "paths": Field(
        read=_list(lambda value: parse_path_pattern(_text(value))),
        write=lambda rule: [path.text for path in rule.paths] or None,
        schema=_several({"type": "string", "pattern": "^/"})
        | {"description": "HTTP rules; `*` is one segment, `**` any depth."},
    ),
    "inspect": Field(
        read=_word(Inspect),
        write=lambda rule: rule.inspect and str(rule.inspect),
        schema=_enumeration(Inspect),
    ),
    "budget": Field(
        read=_budget,
        write=lambda rule: (
            rule.budget
            and {key: limit for key in _BUDGET if (limit := getattr(rule.budget, key)) is not None}
        ),
        schema={
            "type": "object",
            "additionalProperties": False,
            "minProperties": 1,
            "properties": dict.fromkeys(_BUDGET, _COUNT),
        },
    ),
    "teams": Field(read=_list(_text), write=lambda rule: list(rule.teams) or None, schema=_several(_LINE)),
    "expires_at": Field(
        read=_time,
        write=lambda rule: _show_time(rule.expires_at),
        schema={
            "anyOf": [{"type": "string", "format": "date-time"}, {"type": "number", "exclusiveMinimum": 0}]
        },
    ),
    "mode": Field(
        read=_word(Mode),
        write=lambda rule: None if rule.mode is Mode.ENFORCE else str(rule.mode),
        schema=_enumeration(Mode) | {"default": "enforce"},
    ),
}


def parse_rule(record: Any, *, default_id: str = "") -> Rule:
    """Return the rule that a mapping states. Without an id it gets its name, or ``default_id``."""
    values: dict[str, Any] = {}
    for key, value in _mapping(record, FIELDS).items():
        try:
            values[key] = FIELDS[key].read(value)
        except InvalidPolicy as error:
            raise error.at(key) from error
    if "effect" not in values:
        raise InvalidPolicy("a rule without an effect", "write `effect: allow` or `effect: deny`", "effect")
    files = values.get("kind") is Kind.FILESYSTEM
    parse: Callable[[str], Any] = parse_file_pattern if files else parse_resource
    texts = values.pop("resources", ())
    parsed = tuple(dict.fromkeys(_read_each(parse, texts, "resources")))
    values["files" if files else "resources"] = parsed
    values["id"] = values.get("id") or values.get("name") or default_id
    return Rule(**values)


def rule_record(rule: Rule) -> dict[str, Any]:
    """Return a rule as a mapping that :func:`parse_rule` reads back; what is understood is left out."""
    written = {key: spec.write(rule) for key, spec in FIELDS.items()}
    return {key: value for key, value in written.items() if value is not None}


def parse_document(structure: Any) -> PolicyDocument:
    """Return the document that a structure states, or raise the first complaint with its place."""
    written = _mapping(structure, ("version", "name", "description", "rules", "tests"))
    if written.get("version", VERSION) != VERSION or isinstance(written.get("version"), bool):
        raise InvalidPolicy(
            f"version {quote(str(written['version']))} is not known", f"write `version: {VERSION}`", "version"
        )
    rules = _rules(written.get("rules") or ())
    return PolicyDocument(
        name=_located("name", _text, written.get("name", "")),
        description=_located("description", _text, written.get("description", "")),
        rules=rules,
        checks=_located("tests", _checks, written.get("tests") or {}),
    )


def document_record(document: PolicyDocument) -> dict[str, Any]:
    """Return a document as a structure that :func:`parse_document` reads back."""
    record: dict[str, Any] = {"version": VERSION}
    for key in ("name", "description"):
        if value := getattr(document, key):
            record[key] = value
    record["rules"] = [_without_default_id(rule, number) for number, rule in enumerate(document.rules)]
    tests = {
        key: [_check_record(check) for check in document.checks if check.allow is allow]
        for key, allow in _EXPECTATIONS.items()
    }
    if document.checks:
        record["tests"] = {key: checks for key, checks in tests.items() if checks}
    return record


def _rules(written: Any) -> tuple[Rule, ...]:
    if not isinstance(written, Sequence) or isinstance(written, str | bytes):
        raise InvalidPolicy("`rules` is not a list", "write one rule behind each `- `", "rules")
    if len(written) > RULES:
        raise InvalidPolicy(f"more than {RULES} rules", where="rules")
    rules: dict[str, Rule] = {}
    for number, record in enumerate(written):
        where = f"rules[{number}]"
        rule: Rule = _located(where, partial(parse_rule, default_id=_default_id(number)), record)
        if rule.id in rules:
            raise InvalidPolicy(f"a second rule {quote(rule.id)}", "give every rule a name of its own", where)
        rules[rule.id] = rule
    return tuple(rules.values())


def _default_id(number: int) -> str:
    return f"rule-{number + 1}"


def _without_default_id(rule: Rule, number: int) -> dict[str, Any]:
    record = rule_record(rule)
    if rule.id == (rule.name or _default_id(number)):
        del record["id"]
    return record


_EXPECTATIONS = {"must_allow": True, "must_block": False}
_CHECK_KEYS = ("target", "method", "transport", "path", "action", "rule")


def _checks(written: Any) -> tuple[Check, ...]:
    found: list[Check] = []
    for key, checks in _mapping(written, _EXPECTATIONS).items():
        found += _located(key, _list(_reader(_EXPECTATIONS[key]), CHECKS), checks)
    return tuple(found)


def _reader(allow: bool) -> Callable[[Any], Check]:
    def read(value: Any) -> Check:
        keys = {"target": value} if isinstance(value, str) else _mapping(value, _CHECK_KEYS)
        texts = {key: _located(key, _text, text) for key, text in keys.items()}
        rule = texts.pop("rule", "")
        if "path" in texts and texts.keys() <= {"path", "action"}:
            action = _located("action", _word(FileAction), texts.get("action", "read"))
            return Check(allow=allow, access=FilesystemAccess(path=texts["path"], action=action), rule=rule)
        if "target" not in texts or {"path", "action"} & texts.keys():
            raise InvalidPolicy("a check of neither a target nor a path", "write `example.com:443`")
        transport = _located("transport", _word(Transport), texts.get("transport", "tcp"))
        access = parse_target(texts["target"], method=texts.get("method", ""), transport=transport)
        return Check(allow=allow, access=access, rule=rule)

    return read


def _check_record(check: Check) -> str | dict[str, str]:
    access, rule = check.access, {"rule": check.rule} if check.rule else {}
    if isinstance(access, FilesystemAccess):
        return {"path": access.path, "action": str(access.action)} | rule
    extra = {"method": access.method} if access.method else {}
    if access.transport is not Transport.TCP:
        extra["transport"] = str(access.transport)
    target = target_text(access)
    return {"target": target} | extra | rule if extra or rule else target
