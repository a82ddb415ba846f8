"""One HTTP/2 stream on its way out: what flow control does not let go yet (RFC 9113 section 5.2)."""

from __future__ import annotations

from h2.connection import H2Connection

from ringfence.gateway.core.exchange import Exchange


class Stream:
    """An exchange and the part of its response that the client's windows have no room for."""

    __slots__ = ("blocked", "end", "exchange", "held", "pending", "size", "unacknowledged")

    def __init__(self, exchange: Exchange) -> None:
        self.exchange = exchange
        self.pending: list[bytes] = []
        self.size = 0
        self.end: list[bytes] | None = None
        """Trailers, once the body is complete."""
        self.blocked = False
        """The upstream was paused because of us."""
        self.held = False
        """The upstream is full: nothing of the request is acknowledged."""
        self.unacknowledged = 0

    def pump(self, h2: H2Connection) -> bool:
        """Send what both windows allow; return whether the response is out."""
        number = self.exchange.number
        while self.pending:
            room = min(h2.local_flow_control_window(number), h2.max_outbound_frame_size)
            if room <= 0:
                return False
            payload = self.pending[0]
            if len(payload) > room:
                h2.send_data(number, payload[:room])
                self.pending[0] = payload[room:]
                self.size -= room
                continue
            del self.pending[0]
            self.size -= len(payload)
            last = self.end is not None and not self.end and not self.pending
            h2.send_data(number, payload, end_stream=last)
            if last:
                return True
        if self.end is None:
            return False
        if self.end:
            h2.send_headers(number, lower_fields(self.end), end_stream=True)
        else:
            h2.send_data(number, b"", end_stream=True)
        return True


def lower_fields(lines: list[bytes]) -> list[tuple[bytes, bytes]]:
    """Return HTTP/1 lines as HTTP/2 fields: names in lower case (section 8.2)."""
    split = (line.partition(b": ") for line in lines)
    return [(name.lower(), value) for name, _, value in split]
