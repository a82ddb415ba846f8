"""Dialogues where HTTP/2 is spoken: a client that checks nothing of what it sends, and origins that check nothing.

``h2`` plays both. ``Talk`` is a dialogue whose client speaks HTTP/2 and whose origins do too, unless ``origins`` says
otherwise; ``exchange`` carries bytes both ways until everybody is quiet.
"""

from __future__ import annotations

from typing import Any

import h2.config
import h2.connection
import h2.events
from gateway_dialogue import Dialogue, Upstream, rule

ALLOW = rule("allow", "a.test")
HEAD = {":method": "GET", ":authority": "a.test", ":scheme": "https", ":path": "/"}


def peer(*, client: bool) -> h2.connection.H2Connection:
    """A connection that lets everything out."""
    config = h2.config.H2Configuration(
        client_side=client,
        header_encoding="utf-8",
        validate_outbound_headers=False,
        normalize_outbound_headers=False,
    )
    talk = h2.connection.H2Connection(config=config)
    talk.initiate_connection()
    return talk


class Origin:
    """The far end of one upstream connection."""

    def __init__(self, talk: Talk, wire: Upstream) -> None:
        self.h2 = peer(client=False)
        self.events: list[h2.events.Event] = []
        self._talk = talk
        self.wire = wire

    def exchange(self) -> bool:
        """Read what was sent and send what there is; return whether there was anything."""
        taken = self.wire.took()
        if taken:
            self.events += self.h2.receive_data(taken)
        out = self.h2.data_to_send()
        if out and self.wire.state == "open":
            self.send(out)
        return bool(taken or out)

    def send(self, raw: bytes) -> None:
        """Bytes, whatever they are."""
        assert self.wire.codec is not None
        self.wire.codec.received(raw, self._talk.now)

    def heard(self, kind: type[h2.events.Event], stream: int | None = None) -> list[Any]:
        return [
            event
            for event in self.events
            if isinstance(event, kind) and (stream is None or event.stream_id == stream)  # type: ignore[attr-defined]
        ]

    def request(self, stream: int = 1) -> dict[str, str]:
        return dict(self.heard(h2.events.RequestReceived, stream)[0].headers)

    def body(self, stream: int = 1) -> bytes:
        return b"".join(event.data for event in self.heard(h2.events.DataReceived, stream))

    def reset(self, stream: int = 1) -> int:
        return int(self.heard(h2.events.StreamReset, stream)[0].error_code)

    def answer(
        self,
        stream: int = 1,
        status: int | str = 200,
        *more: tuple[str, str],
        body: bytes | None = None,
        end: bool = True,
        trailers: tuple[tuple[str, str], ...] = (),
    ) -> None:
        """Send a response, or its beginning, and let everybody react."""
        self.h2.send_headers(stream, [(":status", str(status)), *more], end_stream=end and body is None)
        if body is not None:
            self.h2.send_data(stream, body, end_stream=end and not trailers)
            if trailers:
                self.h2.send_headers(stream, list(trailers), end_stream=True)
        self._talk.exchange()

    def data(self, stream: int, payload: bytes, *, end: bool = False) -> None:
        self.h2.send_data(stream, payload, end_stream=end)
        self._talk.exchange()


class Talk(Dialogue):
    """See the module."""

    def __init__(
        self, *rules: Any, host: str = "a.test", shared: bool = True, auto: bool = True, **limits: float
    ) -> None:
        super().__init__(*(rules or (ALLOW,)), **limits)
        self.shared = shared
        self.auto = auto
        self.secure(f"{host}:443", protocol="h2")
        self.client = peer(client=True)
        self.events: list[h2.events.Event] = []
        self.origins: list[Origin] = []
        self.exchange()

    def exchange(self) -> None:
        """Carry bytes until everybody is quiet."""
        moved = True
        while moved:
            out = self.client.data_to_send()
            if out:
                self.receive(out)
            moved = bool(out)
            for upstream in self.upstreams[len(self.origins) :]:
                self.origins.append(Origin(self, upstream))
            if self.shared:
                for origin in self.origins:
                    moved |= origin.exchange()
            back = self.took()
            if back:
                self.events += self.client.receive_data(back)
                moved = True

    def ask(self, *more: tuple[str, str], body: bytes | None = None, end: bool = True, **pseudo: str) -> int:
        """Send a request, or its beginning; return its stream."""
        stream = self.client.get_next_available_stream_id()
        head = {**HEAD, **{f":{name}": value for name, value in pseudo.items()}}
        self.client.send_headers(stream, [*head.items(), *more], end_stream=end and body is None)
        if body is not None:
            self.client.send_data(stream, body, end_stream=end)
        self.exchange()
        return stream

    def upload(self, stream: int, payload: bytes, *, end: bool = False) -> None:
        self.client.send_data(stream, payload, end_stream=end)
        self.exchange()

    def heard(self, kind: type[h2.events.Event], stream: int | None = None) -> list[Any]:
        return [
            event
            for event in self.events
            if isinstance(event, kind) and (stream is None or event.stream_id == stream)  # type: ignore[attr-defined]
        ]

    def status(self, stream: int) -> str:
        return str(dict(self.heard(h2.events.ResponseReceived, stream)[0].headers)[":status"])

    def body(self, stream: int) -> bytes:
        return b"".join(event.data for event in self.heard(h2.events.DataReceived, stream))

    def reset(self, stream: int) -> int:
        """The code that a stream was reset with."""
        return int(self.heard(h2.events.StreamReset, stream)[0].error_code)

    def ended(self, stream: int) -> bool:
        return bool(self.heard(h2.events.StreamEnded, stream))
