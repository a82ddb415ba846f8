"""Policy documents as YAML text: read with line numbers, written back with their comments, and the presets we ship.

What a document means is decided by :mod:`ringfence.policy.document`; here is only its text. YAML is read in the safe
subset of version 1.2, without tags, anchors that repeat themselves into the gigabytes, or doubled keys.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.constructor import RoundTripConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import AliasEvent
from ruamel.yaml.scalarstring import DoubleQuotedScalarString

from ringfence.policy.document import PolicyDocument, document_record, parse_document
from ringfence.policy.errors import InvalidPolicy
from ringfence.policy.patterns import PublicSuffix, bare_suffix
from ringfence.policy.report.differences import Difference, difference
from ringfence.policy.report.presets import PRESETS, find_preset
from ringfence.policy.report.schema import json_schema
from ringfence.policy.rule import Rule, warnings

DOCUMENT_BYTES = 32 * 1024 * 1024
DEPTH = 64
_WIDTH = 110
_ALIAS = re.compile(r"(?m)(?:^|[\s\[,{])\*\S")
"""Where an alias could be; only then are events looked through for one."""
_PECULIAR = re.compile(r"^[\[*&!|>%@`'\"{?:-]|: |:$| #|[*?\[\]]")


class InvalidDocument(InvalidPolicy):
    """A document that is not policy; ``line`` and ``column`` count from one, 0 where the place is unknown."""

    def __init__(
        self, message: str, hint: str = "", where: str = "", *, line: int = 0, column: int = 0
    ) -> None:
        super().__init__(message, hint, where)
        self.line = line
        self.column = column


def load(text: str) -> PolicyDocument:
    """Return the document that YAML text states, or raise ``InvalidDocument`` with the line."""
    return _parse(_structure(text))


def dump(document: PolicyDocument) -> str:
    """Return a document as canonical YAML."""
    return _write(_quoted(document_record(document)))


def format_text(text: str) -> str:
    """Return a document in canonical form: resources as they are stored, quotes where needed, comments where they were.

    What it says is the same before and after.
    """
    structure = _structure(text)
    document = _parse(structure)
    record = document_record(document)
    kept = _merge(structure, record)
    formatted = _write(kept)
    if load(formatted) != document:
        return dump(document)
    return formatted


def validate(text: str, *, is_public_suffix: PublicSuffix = bare_suffix) -> tuple[str, ...]:
    """Return what an administrator should know about a valid document; raise ``InvalidDocument`` for another."""
    return tuple(
        f"{rule.title}: {warning}"
        for rule in load(text).rules
        for warning in warnings(rule, is_public_suffix)
    )


def diff(old: str, new: str) -> Difference:
    """Return what changes between two texts."""
    return difference(load(old), load(new))


def schema_text() -> str:
    """Return the published JSON Schema of documents."""
    return json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"


@cache
def preset_document(value: str) -> PolicyDocument:
    """Return the document of a preset, by value or alias."""
    name = f"{find_preset(value).value}.yaml"
    return load(resources.files("ringfence").joinpath("presets", name).read_text(encoding="utf-8"))


class ShippedPresets:
    """The presets in the package, as the use cases ask for them."""

    def rules(self, preset: str) -> tuple[Rule, ...]:
        return preset_document(preset).rules

    def values(self) -> tuple[str, ...]:
        return tuple(preset.value for preset in PRESETS)


def line_of(structure: Any, where: str) -> tuple[int, int]:
    """Return line and column, from one, of the innermost part of a place that the text has."""
    place: tuple[int, int] | None = None
    for step in re.findall(r"[^.\[\]]+", where):
        if isinstance(structure, CommentedMap) and step in structure:
            found = structure.lc.value(step)
            structure = structure[step]
        elif isinstance(structure, CommentedSeq) and step.isdigit() and int(step) < len(structure):
            found = structure.lc.item(int(step))
            structure = structure[int(step)]
        else:
            break
        place = found or place
    return (place[0] + 1, place[1] + 1) if place else (0, 0)


class _Constructor(RoundTripConstructor):
    """Leaves times as they are written: they are read by the policy document, which asks for a time zone."""


_Constructor.add_constructor(
    "tag:yaml.org,2002:timestamp", lambda constructor, node: constructor.construct_scalar(node)
)


def _yaml() -> YAML:
    yaml = YAML(typ="rt", pure=True)
    yaml.Constructor = _Constructor
    yaml.width = _WIDTH
    yaml.preserve_quotes = True
    yaml.indent(mapping=2, sequence=4, offset=2)
    return yaml


def _structure(text: str) -> Any:
    if len(text.encode("utf-8", "surrogatepass")) > DOCUMENT_BYTES:
        raise InvalidDocument(f"a document of more than {DOCUMENT_BYTES // 1024 // 1024} MiB", "divide it")
    _refuse_depth(text)
    try:
        if _ALIAS.search(text):
            _refuse_aliases(text)
        return _yaml().load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        message = " ".join(str(error.problem or error.context or "the document is not YAML").split())
        line, column = (mark.line + 1, mark.column + 1) if mark else (0, 0)
        raise InvalidDocument(message, "is it valid YAML?", line=line, column=column) from error
    except (YAMLError, ValueError, RecursionError) as error:
        if isinstance(error, InvalidPolicy):
            raise
        raise InvalidDocument("the document is not YAML", "is it text, and not nested too deep?") from error


def _refuse_depth(text: str) -> None:
    """Refuse brackets in brackets before the parser sees them: its time grows with the square of their depth."""
    depth = 0
    for bracket in re.finditer(r"[\[\]{}]", text):
        depth = depth + 1 if bracket[0] in "[{" else max(depth - 1, 0)
        if depth > DEPTH:
            raise InvalidDocument("the document is nested too deep", "a policy document is not")


def _refuse_aliases(text: str) -> None:
    for event in _yaml().parse(text):
        if isinstance(event, AliasEvent):
            raise InvalidDocument(
                "a `*` that is not in quotes, which YAML reads as an alias",
                'write `- "*.example.com"`',
                line=event.start_mark.line + 1,
                column=event.start_mark.column + 1,
            )


def _parse(structure: Any) -> PolicyDocument:
    try:
        return parse_document({} if structure is None else structure)
    except InvalidPolicy as error:
        line, column = line_of(structure, error.where)
        raise InvalidDocument(error.message, error.hint, error.where, line=line, column=column) from error


def _write(structure: Any) -> str:
    out = io.StringIO()
    _yaml().dump(structure, out)
    return out.getvalue()


def _quoted(value: Any) -> Any:
    """Put in quotes what YAML would read as something else, and what looks like it: every wildcard and address."""
    if isinstance(value, str):
        return DoubleQuotedScalarString(value) if _PECULIAR.search(value) else value
    if isinstance(value, Mapping):
        return {key: _quoted(each) for key, each in value.items()}
    if isinstance(value, Sequence):
        return [_quoted(each) for each in value]
    return value


def _merge(kept: Any, canonical: Any) -> Any:
    """Return the structure that was read with the canonical values in it; comments hang on its places."""
    if isinstance(kept, CommentedMap) and isinstance(canonical, Mapping):
        for key in [key for key in kept if key not in canonical]:
            del kept[key]
        for key, value in canonical.items():
            kept[key] = _merge(kept.get(key), value)
        return kept
    if isinstance(kept, CommentedSeq) and isinstance(canonical, Sequence) and len(kept) == len(canonical):
        for position, value in enumerate(canonical):
            kept[position] = _merge(kept[position], value)
        return kept
    return kept if kept == canonical and isinstance(kept, str) else _quoted(canonical)
