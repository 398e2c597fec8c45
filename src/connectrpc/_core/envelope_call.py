"""Calls whose messages travel in envelopes: what is the same in all protocols that have them."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

from connectrpc._core.call import ServerCall, exactly_one
from connectrpc._core.envelope import COMPRESSED, HEADER_SIZE, EnvelopeReader, envelope
from connectrpc._core.http import Response
from connectrpc._core.message import MessageReader, MessageWriter, choose_compression
from connectrpc.errors import ConnectError, ConnectErrorCode

if TYPE_CHECKING:
    from collections.abc import Iterator

    from connectrpc._core.call import ServerMethod
    from connectrpc._core.http import RequestHead
    from connectrpc.headers import HeaderInput

__all__ = ["EnvelopeServerCall"]


class EnvelopeServerCall(ServerCall):
    """A call whose messages travel in envelopes. What a protocol adds is ``open``, ``start`` and ``finish``."""

    __slots__ = ("_compression", "_envelopes", "_reader", "_server", "_taken", "_writer")

    def __init__(self, server: ServerMethod, head: RequestHead) -> None:
        super().__init__(server.method, head)
        self._server = server
        self._compression: str | None = None
        self._writer = MessageWriter(server.codec, None, 0, server.settings.send_max_bytes)
        self._envelopes = EnvelopeReader(server.settings.read_max_bytes)
        self._taken: list[Any] = []

    def _choose_compression(self, accepted: str | None, sent: str | None) -> None:
        """Compress the answer as the client likes it."""
        settings = self._server.settings
        self._compression = choose_compression(accepted, sent, settings.compressions)
        if self._compression is not None:
            self._writer = MessageWriter(
                self._server.codec,
                settings.compressions[self._compression],
                settings.compress_min_bytes,
                settings.send_max_bytes,
            )

    def _open_request(self, encoding: str | None) -> None:
        """Read the request's messages with the compression that it declares.

        Raises:
            ConnectError: ``unimplemented``: there is no such compression.
        """
        settings = self._server.settings
        self._reader = MessageReader(
            self._server.codec,
            self.method.input,
            settings.find_compression(encoding),
            settings.read_max_bytes,
            ConnectErrorCode.INVALID_ARGUMENT,
        )

    def feed(self, chunk: bytes) -> Iterator[Any]:
        return itertools.starmap(self._message, self._envelopes.feed(chunk))

    def _message(self, flags: int, payload: bytes) -> Any:
        if flags & ~COMPRESSED:
            raise ConnectError(ConnectErrorCode.INVALID_ARGUMENT, f"a message with the unknown flags {flags:#04x}")
        return self._reader.read(payload, bool(flags))

    def feed_end(self) -> None:
        if not self._envelopes.at_boundary:
            raise ConnectError(ConnectErrorCode.INVALID_ARGUMENT, "the request ended in the middle of a message")

    @property
    def wanted(self) -> int:
        return self._envelopes.missing

    def receive(self, body: bytes) -> Any:
        self.take(body)
        return self.taken()

    def take(self, chunk: bytes) -> None:
        for message in self.feed(chunk):
            self._taken.append(message)
            if len(self._taken) > 1:
                break
        if len(self._taken) > 1:
            exactly_one(self._taken, "request")

    def taken(self) -> Any:
        self.feed_end()
        return exactly_one(self._taken, "request")

    def whole_body_limit(self) -> int | None:
        limit = self._server.settings.read_max_bytes
        return None if limit is None else limit + HEADER_SIZE

    def send(self, message: Any) -> bytes:
        if not isinstance(message, self.method.output):
            raise TypeError(
                f"{self.method.python_name}() gave {type(message).__name__}: expected "
                f"{self.method.output.DESCRIPTOR.full_name} or a ConnectError"
            )
        payload, compressed = self._writer.write(message)
        return envelope(COMPRESSED if compressed else 0, payload)

    def respond(self, message: Any, headers: HeaderInput | None, trailers: HeaderInput | None) -> Response:
        return self._whole(headers, self.send(message) + self.finish(None, trailers))

    def respond_with(self, payload: bytes, headers: HeaderInput | None, trailers: HeaderInput | None) -> Response:
        payload, compressed = self._writer.finish(payload)
        return self._whole(headers, envelope(COMPRESSED if compressed else 0, payload) + self.finish(None, trailers))

    def fail(
        self, error: ConnectError, headers: HeaderInput | None = None, trailers: HeaderInput | None = None
    ) -> Response:
        return self._whole(headers, self.finish(error, trailers))

    def _whole(self, headers: HeaderInput | None, body: bytes) -> Response:
        head = self.start(headers)
        head.headers.append(("content-length", str(len(body))))
        return Response(head.status, head.headers, body)
