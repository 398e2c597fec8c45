"""What the sync and the async service have in common: everything but the waiting."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, TypeVar

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
from connectrpc.errors import ConnectError, ConnectErrorCode
from connectrpc.server import ServerResponse, ServerStream

from messages import error_from_proto, headers_from_proto, headers_to_proto

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Iterator, Sequence

    from google.protobuf.message import Message

    from connectrpc.conformance.v1.service_pb2 import BidiStreamRequest, ClientStreamRequest
    from connectrpc.server import AsyncClientStream, ClientRequest, ClientStream, ServiceOptions

__all__ = [
    "READ_MAX_BYTES",
    "bidi_definition",
    "client_stream_definition",
    "request_info",
    "service_options",
    "single_response",
    "stream_messages",
    "stream_response",
]

READ_MAX_BYTES = "CONFORMANCE_READ_MAX_BYTES"
"""The environment variable with the limit of a request message's size; without it the runtime's own holds."""

SingleT = TypeVar("SingleT", UnaryResponse, IdempotentUnaryResponse, ClientStreamResponse)
StreamedT = TypeVar("StreamedT", ServerStreamResponse, BidiStreamResponse)


def service_options() -> ServiceOptions:
    options: ServiceOptions = {"compress_min_bytes": 0}  # the runner's messages are small
    if READ_MAX_BYTES in os.environ:
        options["read_max_bytes"] = int(os.environ[READ_MAX_BYTES])
    return options


def client_stream_definition(messages: Sequence[ClientStreamRequest]) -> UnaryResponseDefinition:
    """How to answer: the first message tells, if there is one."""
    return messages[0].response_definition if messages else UnaryResponseDefinition()


def bidi_definition(messages: Sequence[BidiStreamRequest]) -> StreamResponseDefinition:
    """How to answer: the first message tells, if there is one.

    Raises:
        ConnectError: ``unimplemented``: answers are wanted before the request has ended.
    """
    if messages and messages[0].full_duplex:
        raise ConnectError(ConnectErrorCode.UNIMPLEMENTED, "half-duplex streams only")
    return messages[0].response_definition if messages else StreamResponseDefinition()


def request_info(
    req: ClientRequest[Any] | ClientStream[Any] | AsyncClientStream[Any], messages: Iterable[Message]
) -> ConformancePayload.RequestInfo:
    """What was seen of a request."""
    info = ConformancePayload.RequestInfo(
        request_headers=headers_to_proto(req.headers), timeout_ms=req.timeout.timeout_ms
    )
    for message in messages:
        info.requests.add().Pack(message)
    if "content-type" not in req.headers:
        # Only a request without a body has none: a GET. Its being there says so; it may be empty.
        info.connect_get_info.SetInParent()
    return info


def single_response(
    response_type: type[SingleT], definition: UnaryResponseDefinition, info: ConformancePayload.RequestInfo
) -> ServerResponse[SingleT]:
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


def stream_messages(
    response_type: type[StreamedT], definition: StreamResponseDefinition, info: ConformancePayload.RequestInfo
) -> Iterator[StreamedT]:
    """The responses of a stream, without the delay before each.

    Raises:
        ConnectError: the one that is to end the stream.
    """
    for index, data in enumerate(definition.response_data):
        # What was seen of the request goes out once: with the first response, or else with the error.
        yield response_type(payload=ConformancePayload(data=data, request_info=None if index else info))
    if definition.HasField("error"):
        raise error_from_proto(definition.error, *([] if definition.response_data else [info]))


def stream_response(
    messages: Iterator[StreamedT] | AsyncIterator[StreamedT], definition: StreamResponseDefinition
) -> ServerStream[StreamedT]:
    return ServerStream(
        messages,
        headers=headers_from_proto(definition.response_headers),
        trailers=headers_from_proto(definition.response_trailers),
    )
