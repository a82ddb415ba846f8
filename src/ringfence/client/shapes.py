"""The shapes of the daemon's answers, for the type checker; at run time they are the JSON's dictionaries."""

from __future__ import annotations

from typing import Any, Literal, NotRequired, TypedDict

JsonObject = dict[str, Any]
Record = dict[str, Any]
"""One audit record; the fields of :class:`ringfence.audit.events.NetworkEvent` that are not empty."""


class DaemonState(TypedDict):
    version: str
    pid: int
    started: float
    api: int
    socket: str
    state_dir: str
    enforcement: str
    gateway: JsonObject


class Check(TypedDict):
    name: str
    status: Literal["pass", "warn", "fail", "skip"]
    message: str
    detail: NotRequired[str]
    hint: NotRequired[str]


class Doctor(TypedDict):
    version: str
    checks: list[Check]
    summary: dict[str, int]


class Sandbox(TypedDict):
    id: str
    name: str
    agent: str
    status: str
    isolation: str
    runtime: str
    enforcement: str
    anonymous: bool
    workspaces: list[str]
    ports: NotRequired[list[JsonObject]]
    created: float
    socket_path: str


class SandboxDetail(Sandbox):
    environment: NotRequired[dict[str, str]]
    limits: NotRequired[JsonObject]
    template: NotRequired[str]
    sessions: NotRequired[int]
    observed: NotRequired[JsonObject]
    policy: NotRequired[JsonObject]
    addresses: NotRequired[JsonObject]
    secrets: NotRequired[list[JsonObject]]


class Session(TypedDict):
    socket: str
    command: list[str]
    environment: dict[str, str]
    cwd: str
    user: str


class Started(TypedDict):
    sandbox: Sandbox
    session: Session


class Secret(TypedDict):
    scope: str
    type: Literal["service", "custom", "registry"]
    name: str
    secret: str
    created: float
    source: NotRequired[str | list[str]]
    refresh: NotRequired[float]
    unavailable: NotRequired[str]
    exclusive: NotRequired[bool]
    env: NotRequired[str]
    targets: NotRequired[list[str]]
    headers: NotRequired[list[str]]
    placeholder: NotRequired[str]
    in_query: NotRequired[bool]
    in_body: NotRequired[bool]
    username: NotRequired[str]


class Secrets(TypedDict):
    secrets: list[Secret]
    custom_secrets: list[Secret]
    shadowed_services: list[str]
    env_only_count: int


class SecretSet(TypedDict):
    secret: Secret
    warnings: list[str]


class Rule(TypedDict):
    id: str
    name: str
    policy_id: str
    scope: str
    applies_to: str
    resource_type: str
    decision: str
    resources: list[str]
    origin: str
    layer: str
    status: str
    active: bool
    editable: bool
    provenance: JsonObject
    actions: list[str]
    transports: list[str]
    mode: str
    sandbox_id: NotRequired[str]
    methods: NotRequired[list[str]]
    paths: NotRequired[list[str]]
    expires_at: NotRequired[float | None]
    inspect: NotRequired[str]
    warnings: NotRequired[list[str]]


class Policy(TypedDict):
    governance: JsonObject | None
    preset: str | None
    revision: int
    rules: list[Rule]


class Added(TypedDict):
    rules: list[Rule]
    warnings: list[str]


class Removed(TypedDict):
    removed: list[Rule]


class PresetLine(TypedDict):
    name: str
    value: str
    line: str


class Part(TypedDict):
    name: str
    enabled: bool
    resources: list[str]


class PresetGroup(Part):
    parts: list[Part]


class Presets(TypedDict):
    chosen: str | None
    presets: list[PresetLine]
    groups: list[PresetGroup]


class Reset(TypedDict):
    preset: str
    removed: int
    undo: str


class Checked(TypedDict):
    allowed: bool
    verdict: str
    reason: str
    text: str
    target: str
    host: str
    port: int
    rules: list[JsonObject]
    revision: int
    context: str
    deny_kind: NotRequired[str | None]
    would: NotRequired[list[JsonObject]]
    why_not: NotRequired[list[str]]


class Explained(TypedDict):
    records: list[Record]
    rule: NotRequired[Rule | None]
    advice: NotRequired[str]


class Change(TypedDict):
    added: list[JsonObject | str]
    removed: list[JsonObject | str]
    warnings: list[str]


class Validated(TypedDict):
    ok: bool
    errors: list[JsonObject]
    warnings: NotRequired[list[JsonObject | str]]
    tests: NotRequired[list[JsonObject]]


class Tested(TypedDict):
    passed: int
    failed: list[JsonObject]
