"""The sync conformance service: what the runner's own client calls when a WSGI server is under test."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TypeVar, cast

from connectrpc.conformance.v1.service_pb2 import (
    BidiStreamResponse,
    ClientStreamResponse,
    IdempotentUnaryResponse,
    ServerStreamResponse,
    UnaryResponse,
)
from connectrpc.conformance.v1.service_pb2_connect import ConformanceServiceProtocol, wsgi_conformance_service

from service_answers import (
    bidi_definition,
    client_stream_definition,
    request_info,
    service_options,
    single_response,
    stream_messages,
    stream_response,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from connectrpc.conformance.v1.service_pb2 import (
        BidiStreamRequest,
        ClientStreamRequest,
        IdempotentUnaryRequest,
        ServerStreamRequest,
        StreamResponseDefinition,
        UnaryRequest,
        UnaryResponseDefinition,
    )
    from connectrpc.server import ClientRequest, ClientStream, ServerResponse, ServerStream

__all__ = ["ConformanceService", "app"]

StreamedT = TypeVar("StreamedT", ServerStreamResponse, BidiStreamResponse)


class ConformanceService:
    """Answers as each request tells it to, and echoes what it saw of the request.

    `Unimplemented` is left out, as the service's definition asks: the runtime answers it.
    """

    def unary(self, req: ClientRequest[UnaryRequest]) -> ServerResponse[UnaryResponse]:
        definition = req.msg.response_definition
        _delay(definition)
        return single_response(UnaryResponse, definition, request_info(req, [req.msg]))

    def idempotent_unary(self, req: ClientRequest[IdempotentUnaryRequest]) -> ServerResponse[IdempotentUnaryResponse]:
        definition = req.msg.response_definition
        _delay(definition)
        return single_response(IdempotentUnaryResponse, definition, request_info(req, [req.msg]))

    def client_stream(self, req: ClientStream[ClientStreamRequest]) -> ServerResponse[ClientStreamResponse]:
        messages = list(req)
        definition = client_stream_definition(messages)
        _delay(definition)
        return single_response(ClientStreamResponse, definition, request_info(req, messages))

    def server_stream(self, req: ClientRequest[ServerStreamRequest]) -> ServerStream[ServerStreamResponse]:
        definition = req.msg.response_definition
        responses = stream_messages(ServerStreamResponse, definition, request_info(req, [req.msg]))
        return stream_response(_delayed(responses, definition), definition)

    def bidi_stream(self, req: ClientStream[BidiStreamRequest]) -> ServerStream[BidiStreamResponse]:
        messages = []
        for message in req:
            if message.full_duplex:
                return stream_response(_answered_in_turn(req, message), message.response_definition)
            messages.append(message)
        definition = bidi_definition(messages)
        responses = stream_messages(BidiStreamResponse, definition, request_info(req, messages))
        return stream_response(_delayed(responses, definition), definition)


def _answered_in_turn(req: ClientStream[BidiStreamRequest], first: BidiStreamRequest) -> Iterator[BidiStreamResponse]:
    """A response for each request as it comes, then the other responses that are asked for."""
    definition = first.response_definition
    responses = stream_messages(BidiStreamResponse, definition, request_info(req, [first]))
    requests = iter(req)
    request: BidiStreamRequest | None = first
    for response in responses:
        if request is not None and request is not first:
            response.payload.request_info.requests.add().Pack(request)
        _delay(definition)
        yield response
        if request is not None:
            request = next(requests, None)


def _delayed(responses: Iterator[StreamedT], definition: StreamResponseDefinition) -> Iterator[StreamedT]:
    for response in responses:
        _delay(definition)
        yield response


def _delay(definition: UnaryResponseDefinition | StreamResponseDefinition) -> None:
    time.sleep(definition.response_delay_ms / 1000)


# The cast hides the missing handler from type checkers, which would rightly refuse it.
app = wsgi_conformance_service(cast(ConformanceServiceProtocol, ConformanceService()), **service_options())
