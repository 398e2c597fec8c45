"""What no codec can write, such as a number that JSON has not: a fault of who gave it, handler or caller."""

from __future__ import annotations

import asyncio
import math
import types
from typing import TYPE_CHECKING, Any

import pytest
from google.protobuf.struct_pb2 import Struct

from connectrpc.client import AsyncClient, SyncClient
from connectrpc.errors import ConnectError
from connectrpc.method import IdempotencyLevel, Method, MethodKind, Service
from connectrpc.server import ServerResponse, asgi_service, wsgi_service
from connectrpc.testing import ASGITransport, WSGITransport
from harness import code_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

METHODS = {
    kind.name.lower(): Method("test.v1.Structs", kind.name.title(), kind, Struct, Struct, python_name=kind.name.lower())
    for kind in MethodKind
}
SERVICE = Service("test.v1.Structs", tuple(METHODS.values()))


def struct(number: float) -> Struct:
    made = Struct()
    made["secret"] = number
    return made


def one(_: object) -> Struct:
    return struct(math.nan)


def wrapped(_: object) -> ServerResponse[Struct]:
    return ServerResponse(struct(math.nan), headers={"x-h": "1"})


def many(_: object) -> Iterator[Struct]:
    yield struct(1)
    yield struct(math.inf)


def awaited(handler: Any) -> Any:
    async def give(request: object) -> Any:
        return handler(request)

    return give


async def many_awaited(_: object) -> AsyncIterator[Struct]:
    for made in many(None):
        yield made


@pytest.mark.parametrize("timeout", [None, 60])
@pytest.mark.parametrize("single", [one, wrapped])
@pytest.mark.parametrize("protocol", ["connect", "grpc-web", "grpc"])
@pytest.mark.parametrize("kind", METHODS)
@pytest.mark.parametrize("asynchronous", [False, True])
def test_it_is_an_internal_error(
    asynchronous: bool, kind: str, protocol: Any, single: Any, timeout: float | None, caplog: pytest.LogCaptureFixture
) -> None:
    transport: Any
    method = METHODS[kind]
    if asynchronous:
        plain, streamed = awaited(single), many_awaited
        implementation = types.SimpleNamespace(
            unary=plain, client_stream=plain, server_stream=streamed, bidi_stream=streamed
        )
        transport = ASGITransport(asgi_service(SERVICE, implementation))
    else:
        implementation = types.SimpleNamespace(unary=single, client_stream=single, server_stream=many, bidi_stream=many)
        transport = WSGITransport(wsgi_service(SERVICE, implementation))
    received = []
    with SyncClient("http://test", transport, codec="json", protocol=protocol) as client:
        caller = client._caller
        requests: Any = [Struct()] if method.kind.client_streams else Struct()
        with pytest.raises(ConnectError) as caught:
            if method.kind.server_streams:
                stream: Any = caller.bidi_stream if method.kind.client_streams else caller.server_stream
                received.extend(stream(method, requests, None, timeout))
            else:
                call: Any = caller.client_stream if method.kind.client_streams else caller.unary
                call(method, requests, None, timeout)
    assert code_of(caught.value) == "internal"
    assert "secret" not in caught.value.message
    assert "NaN" not in caught.value.message
    assert received == ([struct(1)] if method.kind.server_streams else [])
    (record,) = (record for record in caplog.records if record.name == "connectrpc.server")
    assert method.path in record.getMessage()
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], ValueError), "what the codec raised"


@pytest.mark.parametrize(
    ("protocol", "use_get"), [("connect", False), ("connect", True), ("grpc-web", False), ("grpc", False)]
)
@pytest.mark.parametrize("kind", METHODS)
@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_request_is_an_internal_error_too(asynchronous: bool, kind: str, protocol: Any, use_get: bool) -> None:
    """Of the call, like all others: what does not raise for these does not raise for it."""
    method = METHODS[kind]
    if use_get:
        level = IdempotencyLevel.NO_SIDE_EFFECTS
        method = Method(
            "test.v1.Structs", method.name, method.kind, Struct, Struct, python_name=kind, idempotency_level=level
        )
    requests: Any = struct(math.nan)
    if method.kind.client_streams:
        requests = [Struct(), requests]
    implementation = types.SimpleNamespace(
        unary=lambda _: Struct(),
        client_stream=lambda requests: Struct() if list(requests) else None,
        server_stream=lambda _: [],
        bidi_stream=lambda requests: requests,
    )
    transport = WSGITransport(wsgi_service(SERVICE, implementation))
    options: Any = {"codec": "json", "protocol": protocol, "use_get": use_get}

    def output_of(caller: Any) -> Any:
        return getattr(caller, f"{kind}_output")(method, requests, None, None)

    async def call() -> tuple[Any, list[Any]]:
        async with AsyncClient("http://test", transport, **options) as client:
            output = await output_of(client._caller)
            return output, [message async for message in output] if method.kind.server_streams else []

    if asynchronous:
        output, messages = asyncio.run(call())
    else:
        with SyncClient("http://test", transport, **options) as client:
            output = output_of(client._caller)
            messages = list(output) if method.kind.server_streams else []
    error = output.error()
    assert messages == [Struct()] * len(messages), "what was sent before, if anything"
    assert code_of(error) == "internal"
    assert error.message == "the request cannot be encoded"
    assert isinstance(error.__cause__, ValueError), "what the codec raised"
