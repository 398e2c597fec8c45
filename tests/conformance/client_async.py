"""The async client under test, over aiohttp, httpx, pycurl or pyqwest."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from typing import TYPE_CHECKING, TypeVar

from aiohttp import ClientSession, TCPConnector
from google.protobuf.message import Message

from connectrpc.conformance.v1.client_compat_pb2 import ClientCompatRequest, ClientResponseResult
from connectrpc.conformance.v1.config_pb2 import CODE_CANCELED
from connectrpc.conformance.v1.service_pb2 import (
    BidiStreamRequest,
    ClientStreamRequest,
    IdempotentUnaryRequest,
    ServerStreamRequest,
    UnaryRequest,
    UnimplementedRequest,
)
from connectrpc.conformance.v1.service_pb2_connect import AsyncConformanceServiceClient

import messages
from client_calls import (
    Cancellation,
    answer,
    base_url,
    client_options,
    failure,
    httpx_settings,
    is_full_duplex,
    only_message,
    pycurl_settings,
    pyqwest_settings,
    record,
    timeout_seconds,
    tls_context,
    unpack,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from typing import TypeAlias

    import httpx
    import pyqwest

    from connectrpc.conformance.v1.client_compat_pb2 import ClientCompatResponse
    from connectrpc.conformance.v1.service_pb2 import (
        BidiStreamResponse,
        ClientStreamResponse,
        IdempotentUnaryResponse,
        ServerStreamResponse,
        UnaryResponse,
    )
    from connectrpc.streams import AsyncStreamCall
    from connectrpc.transports.pycurl import AsyncPycurlTransport
    from connectrpc.unary import UnaryOutput

    _HTTPClient: TypeAlias = ClientSession | httpx.AsyncClient | AsyncPycurlTransport | pyqwest.Client

__all__ = ["client_session", "httpx_client", "pycurl_transport", "pyqwest_client", "run"]

MessageT = TypeVar("MessageT", bound=Message)


async def run(parallel: int, make: Callable[[ClientCompatRequest], _HTTPClient]) -> None:
    """Answer the requests on stdin until it ends, so many at a time.

    Args:
        parallel: how many.
        make: one of the functions below, which make HTTP clients.
    """
    slots = asyncio.Semaphore(parallel)
    tasks: set[asyncio.Task[None]] = set()

    async def handle(request: ClientCompatRequest) -> None:
        try:
            response = await _response(request, http_clients.get(request))
            messages.write(sys.stdout.buffer, response)
        finally:
            slots.release()

    async with _HTTPClients(make) as http_clients:
        while True:
            await slots.acquire()
            request = await asyncio.to_thread(messages.read, sys.stdin.buffer, ClientCompatRequest)
            if request is None:
                break
            task = asyncio.create_task(handle(request))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        await asyncio.gather(*tasks)


def client_session(request: ClientCompatRequest) -> ClientSession:
    return ClientSession(connector=TCPConnector(ssl=tls_context(request) or True))


def httpx_client(request: ClientCompatRequest) -> httpx.AsyncClient:
    import httpx

    return httpx.AsyncClient(**httpx_settings(request))


def pycurl_transport(request: ClientCompatRequest) -> AsyncPycurlTransport:
    from connectrpc.transports.pycurl import AsyncPycurlTransport

    return AsyncPycurlTransport(**pycurl_settings(request))


def pyqwest_client(request: ClientCompatRequest) -> pyqwest.Client:
    import pyqwest

    return pyqwest.Client(pyqwest.HTTPTransport(**pyqwest_settings(request)))


class _HTTPClients(contextlib.AsyncExitStack):
    """The HTTP client for each HTTP version and TLS configuration, shared by all calls that need the same one."""

    def __init__(self, make: Callable[[ClientCompatRequest], _HTTPClient]) -> None:
        super().__init__()
        self._make = make
        self._clients: dict[tuple[object, ...], _HTTPClient] = {}

    def get(self, request: ClientCompatRequest) -> _HTTPClient:
        key = (request.http_version, request.server_tls_cert, request.client_tls_creds.cert)
        if key not in self._clients:
            http_client = self._make(request)
            if isinstance(http_client, ClientSession):
                self.push_async_callback(http_client.close)
            self._clients[key] = http_client
        return self._clients[key]


async def _response(request: ClientCompatRequest, http_client: _HTTPClient) -> ClientCompatResponse:
    try:
        async with AsyncConformanceServiceClient(base_url(request), http_client, **client_options(request)) as client:
            return answer(request, await _Call(request, client).make())
    except Exception:
        return failure(request)


class _Call:
    """One call, and what became of it."""

    def __init__(self, request: ClientCompatRequest, client: AsyncConformanceServiceClient) -> None:
        self._request = request
        self._client = client
        self._headers = messages.headers_from_proto(request.request_headers)
        self._timeout = timeout_seconds(request)
        self._result = ClientResponseResult()
        # In full duplex, a request goes out when the one before it was answered.
        self._full_duplex = is_full_duplex(request)
        self._turn = asyncio.Semaphore(1)

    async def make(self) -> ClientResponseResult:
        # A task of its own, for cancelling it is how asyncio cancels a call.
        task = asyncio.create_task(self._make())
        call_later = asyncio.get_running_loop().call_later
        self._cancellation = Cancellation(self._request, task.cancel, call_later)
        try:
            await task
        except asyncio.CancelledError:
            if not task.cancelled():
                raise
            self._result.error.code = CODE_CANCELED
        return self._result

    async def _make(self) -> None:
        match self._request.method:
            case "Unary":
                await self._unary()
            case "IdempotentUnary":
                await self._idempotent_unary()
            case "Unimplemented":
                await self._unimplemented()
            case "ClientStream":
                await self._client_stream()
            case "ServerStream":
                await self._server_stream()
            case "BidiStream":
                await self._bidi_stream()
            case unknown:
                raise ValueError(f"no such method: {unknown}")

    async def _unary(self) -> None:
        message = only_message(self._request, UnaryRequest)
        self._cancellation.request_ends()
        self._receive_one(await self._client.call_unary(message, self._headers, self._timeout))

    async def _idempotent_unary(self) -> None:
        message = only_message(self._request, IdempotentUnaryRequest)
        self._cancellation.request_ends()
        self._receive_one(await self._client.call_idempotent_unary(message, self._headers, self._timeout))

    async def _unimplemented(self) -> None:
        message = only_message(self._request, UnimplementedRequest)
        self._cancellation.request_ends()
        # Its response has no payload.
        record(self._result, await self._client.call_unimplemented(message, self._headers, self._timeout))

    async def _client_stream(self) -> None:
        requests = self._requests(ClientStreamRequest)
        self._receive_one(await self._client.call_client_stream(requests, self._headers, self._timeout))

    async def _server_stream(self) -> None:
        message = only_message(self._request, ServerStreamRequest)
        self._cancellation.request_ends()
        await self._receive_all(self._client.call_server_stream(message, self._headers, self._timeout))

    async def _bidi_stream(self) -> None:
        requests = self._requests(BidiStreamRequest)
        await self._receive_all(self._client.call_bidi_stream(requests, self._headers, self._timeout))

    async def _requests(self, message_type: type[MessageT]) -> AsyncIterator[MessageT]:
        self._result.num_unsent_requests = len(self._request.request_messages)
        for packed in self._request.request_messages:
            if self._full_duplex:
                await self._turn.acquire()
            await asyncio.sleep(self._request.request_delay_ms / 1000)
            yield unpack(packed, message_type)
            self._result.num_unsent_requests -= 1
        if self._full_duplex:
            await self._turn.acquire()
        if self._cancellation.messages_sent():
            # The request must not end before the cancellation comes.
            await asyncio.Event().wait()
        self._cancellation.request_ends()

    def _receive_one(
        self,
        output: UnaryOutput[UnaryResponse] | UnaryOutput[IdempotentUnaryResponse] | UnaryOutput[ClientStreamResponse],
    ) -> None:
        message = output.message()
        if message is not None:
            self._result.payloads.append(message.payload)
        record(self._result, output)

    async def _receive_all(
        self, call: AsyncStreamCall[ServerStreamResponse] | AsyncStreamCall[BidiStreamResponse]
    ) -> None:
        async with call as responses:
            async for message in responses:
                self._result.payloads.append(message.payload)
                if self._cancellation.received(len(self._result.payloads)):
                    # A cancellation comes when something is awaited; the next message may be there without that.
                    await asyncio.sleep(0)
                self._turn.release()
            record(self._result, responses)
