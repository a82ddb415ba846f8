"""An HTTP/2 connection as the ``h2`` library speaks it, with what a connection between strangers needs besides.

*Floods.* Frames that cost us more than their sender are counted as they arrive, before anything acts on them, and
a sender of too many is cut (CVE-2019-9511 to 9518, CVE-2023-44487, CVE-2025-8671). What a peer is sent gives it
credit: it opens windows for that, and measures its bandwidth with pings.

*Going away.* RFC 9113 section 6.8 lets streams finish after a GOAWAY; ``h2`` would end the connection at once.

*Lengths.* ``h2`` ends the connection over a body that is not as long as its head says, and overlooks one that ends
with trailers; both sides of the gateway count for themselves and end the stream (section 8.1.1).

``h2`` also writes every frame down for a log that nobody keeps, bodies included. Not doing that is a fifth of
a request.
"""

from __future__ import annotations

import contextlib
from typing import Final

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import ConnectionTerminated, Event
from h2.exceptions import FrameTooLargeError, ProtocolError, StreamClosedError, StreamIDTooLowError
from h2.settings import SettingCodes, Settings
from hyperframe.frame import DataFrame, Frame, GoAwayFrame, HeadersFrame, RstStreamFrame

from ringfence.gateway.core.limits import Limits

WINDOW: Final = 262_144
"""What one stream may send before we have passed it on."""
_CREDIT: Final = 1024
"""Bytes sent that excuse one frame, besides two for every frame of them."""

_CONFIG: Final = {
    client_side: H2Configuration(
        client_side=client_side,
        header_encoding=None,
        validate_outbound_headers=False,
        normalize_outbound_headers=False,
        validate_inbound_headers=False,
        normalize_inbound_headers=False,
    )
    for client_side in (False, True)
}
"""Heads are checked in ``heads2``, where a bad one ends its stream alone; what goes out is written there, too."""


class Flood(ProtocolError):
    """Too many frames that nobody needs."""

    error_code = ErrorCodes.ENHANCE_YOUR_CALM


def explain(flaw: ProtocolError) -> str:
    """Say what was wrong with a peer's frames."""
    if isinstance(flaw, Flood):
        return "a flood of HTTP/2 frames"
    return f"HTTP/2 protocol: {type(flaw).__name__}: {flaw}"


class Multiplex(H2Connection):
    """See the module. It has said its settings when it is made."""

    def __init__(self, limits: Limits, now: float, *, client_side: bool, windows: int) -> None:
        """``windows``: how many streams may be stuck before the others wait for them, which bounds what a connection
        holds."""
        super().__init__(_CONFIG[client_side])
        settings = {
            SettingCodes.MAX_CONCURRENT_STREAMS: limits.streams,
            SettingCodes.INITIAL_WINDOW_SIZE: WINDOW,
            SettingCodes.MAX_HEADER_LIST_SIZE: limits.head_bytes,
        }
        if client_side:
            settings[SettingCodes.ENABLE_PUSH] = 0
        self.local_settings = Settings(client=client_side, initial_values=settings)
        self.decoder.max_header_list_size = limits.head_bytes
        self._floods = 0
        self._flood_limit = limits.floods
        self._flood_time = limits.flood_time
        self._flood_start = now
        self.initiate_connection()
        self.increment_flow_control_window(WINDOW * windows)

    def take(self, data: bytes, now: float) -> list[Event]:
        """Return what a peer's bytes mean; raises ``ProtocolError``, after which nothing means anything."""
        if now - self._flood_start > self._flood_time:
            self._flood_start, self._floods = now, 0
        events = self.receive_data(data)
        begun = self.incoming_buffer._data
        if len(begun) > 3 and int.from_bytes(begun[:3], "big") > self.max_inbound_frame_size:
            raise FrameTooLargeError  # `h2` would wait for all of it
        return events

    # -- what a peer sends --------------------------------------------------------------------------------

    def _count(self) -> None:
        self._floods += 1
        if self._floods > self._flood_limit:
            raise Flood

    def _receive_frame(self, frame: Frame) -> list[Event]:
        kind = type(frame)
        if kind is DataFrame:
            if not frame.data and "END_STREAM" not in frame.flags:  # type: ignore[attr-defined]
                self._count()
        elif kind is not HeadersFrame:
            self._count()
        try:
            frames, events = self._frame_dispatch_table[kind](frame)
        except StreamClosedError as flaw:
            if not self._stream_is_closed_by_reset(flaw.stream_id):
                raise
            self._answer_reset(flaw.stream_id, flaw.error_code)
            return flaw._events
        except StreamIDTooLowError as flaw:
            if not self._stream_is_closed_by_reset(flaw.stream_id):
                if self._stream_is_closed_by_end(flaw.stream_id):
                    raise StreamClosedError(flaw.stream_id) from flaw
                raise
            self._answer_reset(flaw.stream_id, ErrorCodes.STREAM_CLOSED)
            return []
        if frames:
            self._prepare_for_sending(frames)
        return events  # type: ignore[no-any-return]

    def _answer_reset(self, number: int, code: ErrorCodes) -> None:
        """A frame for a stream that was reset: perhaps it was under way then, but not a hundred times."""
        self._count()
        frame = RstStreamFrame(number)
        frame.error_code = code
        self._prepare_for_sending([frame])

    def _handle_data_on_closed_stream(
        self, events: list[Event], exc: StreamClosedError, frame: DataFrame
    ) -> tuple[list[Frame], list[Event]]:
        self._count()
        return super()._handle_data_on_closed_stream(events, exc, frame)

    def _receive_headers_frame(self, frame: HeadersFrame) -> tuple[list[Frame], list[Event]]:
        if self.config.client_side and not frame.stream_id & 1:
            raise ProtocolError("a stream that was not asked for")
        taken = super()._receive_headers_frame(frame)
        self.streams[frame.stream_id]._expected_content_length = None
        return taken

    def _receive_goaway_frame(self, frame: GoAwayFrame) -> tuple[list[Frame], list[Event]]:
        event = ConnectionTerminated()
        event.error_code = frame.error_code
        event.last_stream_id = frame.last_stream_id
        return [], [event]

    # -- what it is sent ----------------------------------------------------------------------------------

    def open_head(self, number: int, fields: list[tuple[bytes, bytes]], *, end: bool) -> None:
        """Send a head, unless the peer has reset its stream in the bytes that are just being dealt with."""
        with contextlib.suppress(StreamClosedError):
            self.send_headers(number, fields, end_stream=end)

    def reset(self, number: int, code: int) -> None:
        """Reset a stream, if it is there."""
        with contextlib.suppress(StreamClosedError):
            self.reset_stream(number, code)

    def pass_data(self, number: int, payload: bytes, *, end: bool) -> None:
        """Send what the windows have room for."""
        self._floods = max(self._floods - 2 - len(payload) // _CREDIT, 0)
        self.send_data(number, payload, end_stream=end)

    def room(self, number: int) -> int:
        """How much of a body may be sent at once."""
        stream = self.streams[number]
        return min(
            self.outbound_flow_control_window,
            stream.outbound_flow_control_window,
            self.max_outbound_frame_size,
        )
