"""What the gateway's state machines say to each other and to the shell around them.

The core is sans-I/O: bytes, times and answers come in as method calls (events), and everything that it wants
done goes out as calls on the two wires below (commands). The shell implements the wires with sockets and TLS
buffers, a test implements them with a list. A command returns at once and never raises; its outcome is a
later event.

Messages are plain slotted values. They were checked when they were parsed, so whoever holds one need not look
again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

if TYPE_CHECKING:
    from ringfence.gateway.core.connection import Phase
    from ringfence.gateway.core.exchange import Exchange
    from ringfence.gateway.core.tunnels import Tunnel
    from ringfence.policy.model import Decision

CHUNKED: Final = -1
"""A body's length: not known before its last chunk."""
UNTIL_CLOSE: Final = -2
"""A response's length: until its connection ends."""
UPGRADED: Final = -3
"""A response's length: a 101; what follows belongs to another protocol."""

NO_ERROR: Final = 0
INTERNAL_ERROR: Final = 2
CANCEL: Final = 8
"""Why a stream ends (RFC 9113 section 7); what neither side said is ``INTERNAL_ERROR`` towards a client and
``CANCEL`` towards an origin."""


class Malformed(Exception):
    """Bytes that are refused rather than repaired: the status to answer with, and what is wrong with them."""

    def __init__(self, text: str, status: int = 400) -> None:
        super().__init__(text)
        self.text = text
        self.status = status


class Request:
    """One request head, checked. ``lines`` are its end-to-end fields as they are sent on, without framing
    fields.
    """

    # No defaults of the class: to write all of them once is cheaper than to look for a few there.
    lines: list[bytes]

    def __init__(self, method: bytes, target: bytes) -> None:
        self.method = method
        self.target = target
        """As it was sent; ``path`` is its origin form."""
        self.path = target
        self.scheme = b""
        """Of an absolute form, or ``:scheme``."""
        self.origin = b""
        """What an absolute form has in front of its path."""
        self.authority = b""
        """Host, or the authority that an absolute form and its Host agree on."""
        self.version = 1
        """The minor version of HTTP/1; 2 for HTTP/2."""
        self.overrides: Sequence[bytes] = ()
        """Fields that some servers take for another method; not sent where policy looks at methods."""
        self.length = 0
        self.close = self.expect = False
        self.upgrade = b""
        self.trailers = False
        """The client takes trailers, and said so (``TE``)."""
        self.sealed: Sequence[bytes] = ()
        """Fields that hold a credential, in lower case: no table of an HTTP/2 connection remembers them."""
        self.tail = b""
        """The head as it goes upstream, from the end of the path on, once it was rendered."""


class Response:
    """One response head, checked. ``lines`` are its end-to-end fields as they are sent on."""

    lines: list[bytes]

    def __init__(self, status: int, reason: bytes = b"") -> None:
        self.status = status
        self.reason = reason
        self.version = 1
        self.length = 0
        self.close = False
        self.upgrade = b""


CONTINUE: Final = Response(100, b"Continue")
CONTINUE.lines = []


class Route(NamedTuple):
    """Where an upstream connection goes. Equal routes of one sandbox may share connections."""

    host: str
    """What is resolved and judged: a name, an address, or ``localhost`` for the host's loopback."""
    port: int
    server_name: str
    """What the upstream's certificate must prove; empty for no TLS."""
    epoch: int
    """Under what its addresses were judged: the sandbox's epoch, which changes with every policy."""
    protocol: str = "http/1.1"
    """What ALPN offers: what the client speaks. ``h2`` leaves the choice to the origin."""


class UpstreamWire(Protocol):
    """Commands towards one upstream connection."""

    address: str
    """The address that was dialled."""
    reused: bool
    """It has carried an exchange before, so the far side may have closed it meanwhile."""

    def send(self, payload: bytes) -> None: ...
    def pause(self) -> None:
        """Read no more for now."""

    def resume(self) -> None: ...
    def release(self) -> None:
        """The exchange is over and the connection is fit for another one."""

    def close(self) -> None: ...


class Carrier(Protocol):
    """Commands of one exchange towards its destination: an HTTP/1 connection (``origin1``), or one stream of an
    HTTP/2 connection (``origin2``).

    Its events are the exchange's methods under "the upstream's side". Nothing comes before ``ask`` or after
    ``close``; a carrier whose response is complete takes care of its connection itself.
    """

    address: str
    """The address that was dialled."""

    @property
    def reused(self) -> bool:
        """The connection has carried an exchange before, so the far side may have closed it meanwhile."""

    def ask(
        self,
        exchange: Exchange,
        request: Request,
        authority: bytes,
        payload: bytes,
        trailers: Sequence[bytes] | None,
    ) -> int:
        """Send the request's head and what is there of its body; ``trailers`` unless more follows. Returns how
        many bytes that is, as ``send`` and ``conclude`` do."""

    def send(self, payload: bytes) -> int:
        """Send more of the request's body, or of an upgraded connection."""

    def conclude(self, trailers: Sequence[bytes]) -> int:
        """The request's body is complete."""

    def pause(self) -> None:
        """Bring no more of the response for now."""

    def resume(self) -> None: ...
    def close(self, code: int = CANCEL) -> None:
        """The exchange ends before its end."""


class ClientWire(Protocol):
    """Commands towards one client connection and on its behalf."""

    phase: Phase
    """What the connection is at the moment: where its events go."""

    def send(self, payload: bytes) -> None: ...
    def pause(self) -> None: ...
    def resume(self) -> None: ...
    def finish(self) -> None:
        """Close once everything sent has left."""

    def reset(self) -> None:
        """Abort at once, with a RST where the kernel still can."""

    def terminate(self, host: str, hello: bytes) -> None:
        """Terminate TLS with this installation's certificate for ``host``; ``hello`` is what the client sent
        so far.

        Answered by ``secured`` or ``insecure``; after ``secured`` bytes in and out are plaintext.
        """

    def request(self, exchange: Exchange, route: Route, *, fresh: bool) -> None:
        """Find or make an upstream connection (``fresh``: make one). Answered by ``exchange.connected`` or
        ``exchange.failed``, possibly before this returns."""

    def open(self, tunnel: Tunnel, route: Route) -> None:
        """Dial for an uninspected relay. Answered by ``tunnel.connected`` or ``tunnel.failed``."""

    def relay(self, tunnel: Tunnel, upstream: UpstreamWire) -> None:
        """From now on move bytes both ways; report to the tunnel with ``moved``, ``finished``."""


class Conversation(Protocol):
    """The client's side of exchanges."""

    wire: ClientWire

    def inform(self, exchange: Exchange, response: Response) -> None:
        """Send an interim response."""

    def respond(self, exchange: Exchange, response: Response, payload: bytes) -> None:
        """Send the response's head and what is there of its body; more follows."""

    def complete(
        self, exchange: Exchange, response: Response, payload: bytes, trailers: Sequence[bytes]
    ) -> None:
        """Send a whole response. The exchange is over."""

    def extend(self, exchange: Exchange, payload: bytes) -> None:
        """Send more of the body."""

    def conclude(self, exchange: Exchange, payload: bytes, trailers: Sequence[bytes]) -> None:
        """Send the rest of the body and end it. The exchange is over."""

    def refuse(self, exchange: Exchange, decision: Decision) -> None:
        """Answer with a refusal. The exchange is over."""

    def trouble(self, exchange: Exchange, text: str, status: int) -> None:
        """Answer that it cannot be served. The exchange is over."""

    def abort(self, exchange: Exchange, code: int) -> None:
        """The response cannot be completed; make that visible, with a ``code`` where the client knows such. The
        exchange is over."""

    def hold(self, exchange: Exchange, held: bool) -> None:
        """Send no more (or again) of the request's body."""
