"""The conformance service: what the runner's own client calls when a server is under test."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any, TypeVar, cast

from connectrpc.conformance.v1.service_pb2 import (
    BidiStreamResponse,
    ClientStreamResponse,
    ConformancePayload,
    IdempotentUnaryResponse,
    ServerStreamResponse,
    StreamResponseDefinition,
    UnaryResponse,
    UnaryResponseDefinition,
)
from connectrpc.conformance.v1.service_pb2_connect import ConformanceServiceProtocol, wsgi_conformance_service
from connectrpc.errors import ConnectError, ConnectErrorCode
from connectrpc.server import ClientRequest, ClientStream, ServerResponse, ServerStream

from messages import error_from_proto, headers_from_proto, headers_to_proto

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from google.protobuf.message import Message

    from connectrpc.conformance.v1.service_pb2 import (
        BidiStreamRequest,
        ClientStreamRequest,
        IdempotentUnaryRequest,
        ServerStreamRequest,
        UnaryRequest,
    )
    from connectrpc.server import ServiceOptions, WSGIApplication

__all__ = ["READ_MAX_BYTES", "ConformanceService", "wsgi_app"]

READ_MAX_BYTES = "CONFORMANCE_READ_MAX_BYTES"
"""The environment variable with the limit of a request message's size; without it the runtime's own holds."""

SingleT = TypeVar("SingleT", UnaryResponse, IdempotentUnaryResponse, ClientStreamResponse)
StreamedT = TypeVar("StreamedT", ServerStreamResponse, BidiStreamResponse)


class ConformanceService:
    """Answers as each request tells it to, and echoes what it saw of the request.

    `Unimplemented` is left out, as the service's definition asks: the runtime answers it.
    """

    def unary(self, req: ClientRequest[UnaryRequest]) -> ServerResponse[UnaryResponse]:
        info = _request_info(req, [req.msg])
        return _single_response(UnaryResponse, req.msg.response_definition, info)

    def idempotent_unary(self, req: ClientRequest[IdempotentUnaryRequest]) -> ServerResponse[IdempotentUnaryResponse]:
        info = _request_info(req, [req.msg])
        return _single_response(IdempotentUnaryResponse, req.msg.response_definition, info)

    def client_stream(self, req: ClientStream[ClientStreamRequest]) -> ServerResponse[ClientStreamResponse]:
        messages = list(req)
        definition = messages[0].response_definition if messages else UnaryResponseDefinition()
        return _single_response(ClientStreamResponse, definition, _request_info(req, messages))

    def server_stream(self, req: ClientRequest[ServerStreamRequest]) -> ServerStream[ServerStreamResponse]:
        info = _request_info(req, [req.msg])
        return _stream_response(ServerStreamResponse, req.msg.response_definition, info)

    def bidi_stream(self, req: ClientStream[BidiStreamRequest]) -> ServerStream[BidiStreamResponse]:
        messages = list(req)
        if messages and messages[0].full_duplex:
            raise ConnectError(ConnectErrorCode.UNIMPLEMENTED, "half-duplex streams only")
        definition = messages[0].response_definition if messages else StreamResponseDefinition()
        return _stream_response(BidiStreamResponse, definition, _request_info(req, messages))


def _request_info(
    req: ClientRequest[Any] | ClientStream[Any], messages: Iterable[Message]
) -> ConformancePayload.RequestInfo:
    info = ConformancePayload.RequestInfo(
        request_headers=headers_to_proto(req.headers), timeout_ms=req.timeout.timeout_ms
    )
    for message in messages:
        info.requests.add().Pack(message)
    return info


def _single_response(
    response_type: type[SingleT], definition: UnaryResponseDefinition, info: ConformancePayload.RequestInfo
) -> ServerResponse[SingleT]:
    time.sleep(definition.response_delay_ms / 1000)
    payload: SingleT | ConnectError
    if definition.HasField("error"):
        payload = error_from_proto(definition.error, info)
    else:
        payload = response_type(payload=ConformancePayload(data=definition.response_data, request_info=info))
    return ServerResponse(
        payload,
        headers=headers_from_proto(definition.response_headers),
        trailers=headers_from_proto(definition.response_trailers),
    )


def _stream_response(
    response_type: type[StreamedT], definition: StreamResponseDefinition, info: ConformancePayload.RequestInfo
) -> ServerStream[StreamedT]:
    return ServerStream(
        _responses(response_type, definition, info),
        headers=headers_from_proto(definition.response_headers),
        trailers=headers_from_proto(definition.response_trailers),
    )


def _responses(
    response_type: type[StreamedT], definition: StreamResponseDefinition, info: ConformancePayload.RequestInfo
) -> Iterator[StreamedT]:
    for index, data in enumerate(definition.response_data):
        time.sleep(definition.response_delay_ms / 1000)
        # What was seen of the request goes out once: with the first response, or else with the error.
        yield response_type(payload=ConformancePayload(data=data, request_info=None if index else info))
    if definition.HasField("error"):
        raise error_from_proto(definition.error, *([] if definition.response_data else [info]))


def wsgi_app() -> WSGIApplication:
    """The service as an application, for servers that load one by its name."""
    # The cast hides the missing handler from type checkers, which would rightly refuse it.
    implementation = cast(ConformanceServiceProtocol, ConformanceService())
    options: ServiceOptions = {"compress_min_bytes": 0}  # the runner's messages are small
    if READ_MAX_BYTES in os.environ:
        options["read_max_bytes"] = int(os.environ[READ_MAX_BYTES])
    return wsgi_conformance_service(implementation, **options)
