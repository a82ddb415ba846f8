"""The daemon's API, one method a route. Each blocks, and raises :class:`RingfenceError` or returns."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast
from urllib.parse import quote, urlencode

from ringfence.client import shapes
from ringfence.client.connection import LONG_PATIENCE, PATIENCE, Wire
from ringfence.client.errors import NotFound

API = 1
"""The version of the API that this client speaks."""


class Daemon:
    """A daemon that listens on ``socket_path``; see :func:`ringfence.client.daemon.ensure_daemon`."""

    def __init__(self, socket_path: str, *, patience: float = PATIENCE) -> None:
        self._wire = Wire(socket_path, patience=patience)

    # The daemon itself

    def state(self) -> shapes.DaemonState:
        return cast(shapes.DaemonState, self._wire.ask_json("GET", "/v1/daemon"))

    def shut_down(self, *, sandboxes: str = "keep") -> None:
        """End the daemon; with ``keep`` the sandboxes and their traffic go on under the policy in force."""
        patience = PATIENCE if sandboxes == "keep" else LONG_PATIENCE
        self._wire.ask("POST", "/v1/daemon/stop", body={"sandboxes": sandboxes}, patience=patience)

    def doctor(self) -> shapes.Doctor:
        return cast(shapes.Doctor, self._wire.ask_json("GET", "/v1/doctor", patience=4 * PATIENCE))

    # Sandboxes

    def sandboxes(self) -> list[shapes.Sandbox]:
        return cast(list[shapes.Sandbox], self._wire.ask_json("GET", "/v1/sandboxes").get("sandboxes") or [])

    def create(self, specification: Mapping[str, object]) -> shapes.Sandbox:
        """Create a stopped sandbox from ``name?, agent, workspaces, runtime?, template?, cpus?, …``."""
        answer = self._wire.ask_json(
            "POST", "/v1/sandboxes", body=dict(specification), patience=LONG_PATIENCE
        )
        return cast(shapes.Sandbox, answer)

    def sandbox(self, name: str) -> shapes.SandboxDetail:
        return cast(shapes.SandboxDetail, self._about(name, "GET"))

    def start(self, name: str) -> shapes.Started:
        """Start a sandbox, unless it runs, and say where its sessions are."""
        route = f"/v1/sandboxes/{_segment(name)}/start"
        answer = self._wire.ask_json("POST", route, patience=LONG_PATIENCE, sandbox=name)
        return cast(shapes.Started, answer)

    def stop(self, name: str) -> None:
        self._about(name, "POST", "/stop", patience=4 * PATIENCE)

    def remove(self, name: str) -> None:
        self._about(name, "DELETE", patience=4 * PATIENCE)

    def settle(self, name: str) -> None:
        """Wait until nothing is pending for a sandbox. One that is gone is settled."""
        try:
            self._about(name, "POST", "/settle")
        except NotFound:
            return

    def _about(self, name: str, method: str, verb: str = "", *, patience: float = 0.0) -> Any:
        route = f"/v1/sandboxes/{_segment(name)}{verb}"
        return self._wire.ask_json(method, route, patience=patience, sandbox=name)

    # Secrets: values go to the daemon in a request's body, and nowhere else

    def secrets(self, *, sandbox: str = "", only_global: bool = False, service: str = "") -> shapes.Secrets:
        chosen = {"sandbox": sandbox, "only_global": "1" if only_global else "", "service": service}
        answer = self._wire.ask_json("GET", "/v1/secrets" + _query(**chosen), sandbox=sandbox)
        return cast(shapes.Secrets, answer)

    def set_secret(self, kind: str, **fields: object) -> shapes.SecretSet:
        """Store a secret. ``kind`` is ``service``, ``custom`` or ``registry``; making a value may take a while."""
        answer = self._wire.ask_json(
            "PUT",
            f"/v1/secrets/{_segment(kind)}",
            body={key: value for key, value in fields.items() if value not in ("", None, False, [], {})},
            patience=2 * PATIENCE,
            sandbox=str(fields.get("sandbox") or ""),
        )
        return cast(shapes.SecretSet, answer)

    def remove_secrets(self, *, sandbox: str = "", **selection: object) -> list[shapes.Secret]:
        """Remove secrets by ``name``, ``registry`` or ``placeholder``, or ``everything`` of a scope."""
        body = {key: value for key, value in selection.items() if value} | {"sandbox": sandbox}
        answer = self._wire.ask_json("DELETE", "/v1/secrets", body=body, sandbox=sandbox)
        return cast(list[shapes.Secret], answer["removed"])

    # Policy: rules

    def policy(self, *, sandbox: str = "") -> shapes.Policy:
        route = "/v1/policy" + _query(sandbox=sandbox)
        return cast(shapes.Policy, self._wire.ask_json("GET", route, sandbox=sandbox))

    def add_rule(
        self, *, effect: str, resources: Sequence[str], sandbox: str = "", **fields: object
    ) -> shapes.Added:
        """Add one rule. ``fields`` are of ``name transports methods paths expires_in mode inspect``."""
        body = _given(effect=effect, resources=list(resources), sandbox=sandbox, **fields)
        body["resources"] = list(resources)
        answer = self._wire.ask_json("POST", "/v1/policy/rules", body=body, sandbox=sandbox)
        return cast(shapes.Added, answer)

    def remove_rules(
        self, *, rule: str = "", resources: Sequence[str] = (), sandbox: str = ""
    ) -> list[shapes.Rule]:
        body = _given(id=rule, resources=list(resources), sandbox=sandbox)
        answer = self._wire.ask_json("DELETE", "/v1/policy/rules", body=body, sandbox=sandbox)
        return cast(shapes.Removed, answer)["removed"]

    # Policy: presets

    def presets(self) -> shapes.Presets:
        return cast(shapes.Presets, self._wire.ask_json("GET", "/v1/policy/preset"))

    def choose_preset(self, preset: str, *, implicit: bool = False) -> shapes.Presets:
        body = {"preset": preset, "implicit": implicit}
        return cast(shapes.Presets, self._wire.ask_json("PUT", "/v1/policy/preset", body=body))

    def switch_group(self, name: str, *, enabled: bool) -> shapes.Presets:
        body = {"name": name, "enabled": enabled}
        return cast(shapes.Presets, self._wire.ask_json("POST", "/v1/policy/preset/groups", body=body))

    def what_reset_removes(self) -> tuple[int, int]:
        """Return how many local and how many sandbox rules a reset would remove."""
        answer = self._wire.ask_json("GET", "/v1/policy/reset")
        return int(answer.get("local", 0)), int(answer.get("sandbox", 0))

    def reset(self, preset: str) -> shapes.Reset:
        return cast(shapes.Reset, self._wire.ask_json("POST", "/v1/policy/reset", body={"preset": preset}))

    # Policy: decisions

    def check(
        self, target: str, *, sandbox: str = "", transport: str = "", method: str = "", path: str = ""
    ) -> shapes.Checked:
        body = _given(target=target, sandbox=sandbox, transport=transport, method=method, path=path)
        body["target"] = target
        return cast(
            shapes.Checked, self._wire.ask_json("POST", "/v1/policy/check", body=body, sandbox=sandbox)
        )

    def explain(self, decision: str) -> shapes.Explained:
        route = f"/v1/policy/decisions/{_segment(decision)}"
        return cast(shapes.Explained, self._wire.ask_json("GET", route))

    def log(self, *, sandbox: str = "", limit: int = 0, follow: bool = False) -> Iterator[shapes.Record]:
        """Yield audit records, oldest first; with ``follow`` the live ones after the backlog, without end."""
        route = "/v1/policy/log" + _query(sandbox=sandbox, limit=str(limit or ""), follow=str(int(follow)))
        for line in self._wire.lines(route, live=follow):
            if line.strip():
                record = json.loads(line)
                if isinstance(record, dict):
                    yield record

    # Policy: documents

    def export_document(self, *, sandbox: str = "") -> bytes:
        route = "/v1/policy/document" + _query(sandbox=sandbox)
        return self._wire.ask("GET", route, accept="text/yaml", sandbox=sandbox)

    def import_document(self, document: bytes, *, dry_run: bool) -> shapes.Change:
        route = f"/v1/policy/document?dry_run={int(dry_run)}"
        return cast(shapes.Change, self._wire.ask_json("PUT", route, body=document))

    def validate_document(self, document: bytes) -> shapes.Validated:
        answer = self._wire.ask_json("POST", "/v1/policy/document/validate", body=document)
        return cast(shapes.Validated, answer)

    def format_document(self, document: bytes) -> bytes:
        return self._wire.ask("POST", "/v1/policy/document/format", body=document, accept="text/yaml")

    def test_document(self, document: bytes) -> shapes.Tested:
        answer = self._wire.ask_json("POST", "/v1/policy/document/test", body=document)
        return cast(shapes.Tested, answer)


def _segment(text: str) -> str:
    """``text`` as one segment of a path; dots alone would be steps in it (RFC 3986, section 5.2.4)."""
    return quote(text, safe="") if text.strip(".") else quote(text, safe="").replace(".", "%2E")


def _query(**parameters: str) -> str:
    chosen = {key: value for key, value in parameters.items() if value}
    return f"?{urlencode(chosen)}" if chosen else ""


def _given(**fields: object) -> dict[str, object]:
    """The fields that say something; the daemon's defaults stand for the rest."""
    return {key: value for key, value in fields.items() if value not in ("", None, 0, [], (), {})}
