"""Clients that refuse the certificate authority: which sandboxes, which hosts, and what would help.

A client with roots or pins of its own fails in a way that says nothing to its user. The gateway's record says it; here
it is remembered for ``doctor``, bounded, until a connection to that host has passed uninspected. Nothing is ever
bypassed by itself: a rule with ``inspect: never`` is a person's decision.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ringfence.application.doctor import Check, Status

HOSTS = 512
"""Hosts remembered, of all sandboxes together, and of each one an eighth."""
SHOWN = 20
_FAILED = ("mistrusted", "failed")


@dataclass(slots=True)
class _Mistrusted:
    """What is known of one host as one sandbox sees it."""

    name: str
    text: str
    times: int = 0


class Mistrust:
    """Fed with every record; see the module."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[str, str, int], _Mistrusted] = OrderedDict()

    def heed(self, record: Mapping[str, Any]) -> None:
        """Learn from a record of a decision about network access."""
        if record.get("protocol") != "tls" or record.get("step") != "closed":
            return
        key = (str(record["sandbox"]), str(record.get("host", "")), int(record.get("port", 0)))
        if record.get("ended") == "mistrusted":
            self._remember(key, record)
        elif record.get("ended") not in _FAILED:
            self._known.pop(key, None)  # it is passed through now

    def _remember(self, key: tuple[str, str, int], record: Mapping[str, Any]) -> None:
        name = str(record.get("sandbox_name") or key[0])
        known = self._known.setdefault(key, _Mistrusted(name, ""))
        known.text = str(record.get("text", ""))
        known.times += 1
        self._known.move_to_end(key)
        same = [each for each in self._known if each[0] == key[0]]
        if len(same) > HOSTS // 8:
            del self._known[same[0]]
        if len(self._known) > HOSTS:
            self._known.popitem(last=False)

    async def examine(self) -> Sequence[Check]:
        """Report what was met last, first."""
        checks = []
        for (_, host, port), known in list(reversed(self._known.items()))[:SHOWN]:
            what, _, hint = known.text.partition("; ")
            place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
            checks.append(
                Check(
                    name="certificate",
                    status=Status.WARN,
                    message=f"is refused in `{known.name}` for `{place}` ({known.times} times): {what}",
                    hint=hint,
                )
            )
        return checks
