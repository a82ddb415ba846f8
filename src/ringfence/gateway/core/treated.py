"""The part of an exchange that deals with its treatment: what is withheld, held until it is whole, or overspent.

An :class:`ringfence.gateway.core.exchange.Exchange` is one of these. What is here runs only for the few requests that
have a :class:`ringfence.gateway.core.treatment.Treatment`; all others never get past the test for it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from ringfence.gateway.core.bound import Withheld
from ringfence.gateway.core.flow import Flow
from ringfence.gateway.core.limits import Limits
from ringfence.gateway.core.messages import CONTINUE, Conversation, Request, Response
from ringfence.gateway.core.treatment import Treatment
from ringfence.policy.model import Decision, Reason


class Treated(ABC):
    """See the module. What an exchange brings along is declared here, and defined there."""

    conversation: Conversation
    flow: Flow
    request: Request
    response: Response | None
    decision: Decision
    deadline: float
    treatment: Treatment | None
    """What it gets beside being decided: nothing, for nearly all."""
    _limits: Limits
    _pending: list[bytes]
    _trailers: Sequence[bytes]
    _sent: int
    _received: int

    @abstractmethod
    def _dial(self, now: float) -> None: ...
    @abstractmethod
    def _refuse(self, decision: Decision, now: float) -> None: ...
    @abstractmethod
    def _trouble(self, status: int, text: str, now: float, ended: bytes) -> None: ...
    @abstractmethod
    def _break(self, ended: bytes, now: float) -> None: ...

    def _treat(self, now: float) -> bool:
        """Prepare what the request gets; return whether it can leave now."""
        try:
            treatment = self.treatment = self.flow.treat(self.request, self.decision, now)
        except Withheld as reason:
            self._withhold(reason, now)
            return False
        if treatment is None or not treatment.holding:
            return True
        self.deadline = now + self._limits.idle_time
        if self.request.expect:
            self.conversation.inform(self, CONTINUE)  # type: ignore[arg-type]  # every one of these is an exchange
        return False

    def _taken(self, treatment: Treatment, payload: bytes, now: float) -> bytes | None:
        """Give more of the request's body to the treatment; return what leaves, nothing if that is not to be sent."""
        try:
            payload = treatment.upload(payload)
        except Withheld as reason:
            self._withhold(reason, now)
            return None
        if treatment.holding:
            self.deadline = now + self._limits.idle_time
            return None
        return payload

    def _concluded(self, treatment: Treatment, now: float) -> bool:
        """The treatment has the whole body; return whether its end can be sent, to a request that left already."""
        held = treatment.holding
        try:
            body, self._trailers = treatment.conclude(self._trailers)
        except Withheld as reason:
            self._withhold(reason, now)
            return False
        if held:
            self._pending.append(body)
            self._dial(now)
        return not held

    def _overspent(self, treatment: Treatment, now: float) -> bool:
        """Book what moved; return whether that ended the exchange, because no rule allows a byte more."""
        if not self.flow.overspent(self.request, treatment, self._sent + self._received, now):
            return False
        self._break(b"limit", now)
        return True

    def _withhold(self, reason: Withheld, now: float) -> None:
        """What was sent must not leave, or cannot."""
        if self.response is not None:
            self._break(b"failed", now)
        elif reason.status:
            self._trouble(reason.status, reason.text, now, b"failed")
        else:
            revision = self.flow.subject.revision
            self._refuse(Decision(reason=Reason.GUARD, text=reason.text, revision=revision), now)
