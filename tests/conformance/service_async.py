"""The async conformance service: what the runner's own client calls when an ASGI server is under test."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar, cast

from connectrpc.conformance.v1.service_pb2 import (
    BidiStreamResponse,
    ClientStreamResponse,
    IdempotentUnaryResponse,
    ServerStreamResponse,
    UnaryResponse,
)
from connectrpc.conformance.v1.service_pb2_connect import AsyncConformanceServiceProtocol, asgi_conformance_service

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
    from collections.abc import AsyncIterator, Iterator

    from connectrpc.conformance.v1.service_pb2 import (
        BidiStreamRequest,
        ClientStreamRequest,
        IdempotentUnaryRequest,
        ServerStreamRequest,
        StreamResponseDefinition,
        UnaryRequest,
        UnaryResponseDefinition,
    )
    from connectrpc.server import AsyncClientStream, ClientRequest, ServerResponse, ServerStream

__all__ = ["AsyncConformanceService", "app"]

StreamedT = TypeVar("StreamedT", ServerStreamResponse, BidiStreamResponse)


class AsyncConformanceService:
    """Answers as each request tells it to, and echoes what it saw of the request.

    `Unimplemented` is left out, as the service's definition asks: the runtime answers it.
    """

    async def unary(self, req: ClientRequest[UnaryRequest]) -> ServerResponse[UnaryResponse]:
        definition = req.msg.response_definition
        await _delay(definition)
        return single_response(UnaryResponse, definition, request_info(req, [req.msg]))

    async def idempotent_unary(
        self, req: ClientRequest[IdempotentUnaryRequest]
    ) -> ServerResponse[IdempotentUnaryResponse]:
        definition = req.msg.response_definition
        await _delay(definition)
        return single_response(IdempotentUnaryResponse, definition, request_info(req, [req.msg]))

    async def client_stream(self, req: AsyncClientStream[ClientStreamRequest]) -> ServerResponse[ClientStreamResponse]:
        messages = [message async for message in req]
        definition = client_stream_definition(messages)
        await _delay(definition)
        return single_response(ClientStreamResponse, definition, request_info(req, messages))

    async def server_stream(self, req: ClientRequest[ServerStreamRequest]) -> ServerStream[ServerStreamResponse]:
        definition = req.msg.response_definition
        responses = stream_messages(ServerStreamResponse, definition, request_info(req, [req.msg]))
        return stream_response(_delayed(responses, definition), definition)

    async def bidi_stream(self, req: AsyncClientStream[BidiStreamRequest]) -> ServerStream[BidiStreamResponse]:
        messages = []
        async for message in req:
            if message.full_duplex:
                return stream_response(_answered_in_turn(req, message), message.response_definition)
            messages.append(message)
        definition = bidi_definition(messages)
        responses = stream_messages(BidiStreamResponse, definition, request_info(req, messages))
        return stream_response(_delayed(responses, definition), definition)


async def _answered_in_turn(
    req: AsyncClientStream[BidiStreamRequest], first: BidiStreamRequest
) -> AsyncIterator[BidiStreamResponse]:
    """A response for each request as it comes, then the other responses that are asked for."""
    definition = first.response_definition
    responses = stream_messages(BidiStreamResponse, definition, request_info(req, [first]))
    requests = req.__aiter__()
    request: BidiStreamRequest | None = first
    for response in responses:
        if request is not None and request is not first:
            response.payload.request_info.requests.add().Pack(request)
        await _delay(definition)
        yield response
        if request is not None:
            request = await anext(requests, None)


async def _delayed(responses: Iterator[StreamedT], definition: StreamResponseDefinition) -> AsyncIterator[StreamedT]:
    for response in responses:
        await _delay(definition)
        yield response


async def _delay(definition: UnaryResponseDefinition | StreamResponseDefinition) -> None:
    # Only where there is one: the runtime treats a handler that never waits differently, and both are to be judged.
    if definition.response_delay_ms:
        await asyncio.sleep(definition.response_delay_ms / 1000)


# The cast hides the missing handler from type checkers, which would rightly refuse it.
app = asgi_conformance_service(cast(AsyncConformanceServiceProtocol, AsyncConformanceService()), **service_options())
