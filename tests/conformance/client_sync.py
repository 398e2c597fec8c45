"""The sync client under test, over urllib3, httpx, pycurl or pyqwest."""

from __future__ import annotations

import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from google.protobuf.message import Message
from urllib3 import PoolManager

from connectrpc.client import CancelToken
from connectrpc.conformance.v1.client_compat_pb2 import ClientCompatRequest, ClientResponseResult
from connectrpc.conformance.v1.service_pb2 import (
    BidiStreamRequest,
    ClientStreamRequest,
    IdempotentUnaryRequest,
    ServerStreamRequest,
    UnaryRequest,
    UnimplementedRequest,
)
from connectrpc.conformance.v1.service_pb2_connect import ConformanceServiceClient

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
    from collections.abc import Callable, Iterator
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
    from connectrpc.streams import StreamOutput
    from connectrpc.transports.pycurl import PycurlTransport
    from connectrpc.unary import UnaryOutput

    _HTTPClient: TypeAlias = PoolManager | httpx.Client | pyqwest.SyncClient | PycurlTransport

__all__ = ["httpx_client", "pool_manager", "pycurl_transport", "pyqwest_client", "run"]

MessageT = TypeVar("MessageT", bound=Message)


def run(parallel: int, make: Callable[[ClientCompatRequest, int], _HTTPClient]) -> None:
    """Answer the requests on stdin until it ends, so many at a time.

    Args:
        parallel: how many.
        make: one of the functions below, which make HTTP clients.
    """
    http_clients = _HTTPClients(parallel, make)
    stdout_lock = threading.Lock()

    def handle(request: ClientCompatRequest) -> None:
        response = _response(request, http_clients.get(request))
        with stdout_lock:
            messages.write(sys.stdout.buffer, response)

    with ThreadPoolExecutor(parallel) as threads:
        while (request := messages.read(sys.stdin.buffer, ClientCompatRequest)) is not None:
            threads.submit(handle, request)


def pool_manager(request: ClientCompatRequest, parallel: int) -> PoolManager:
    return PoolManager(maxsize=parallel, ssl_context=tls_context(request))


def httpx_client(request: ClientCompatRequest, parallel: int) -> httpx.Client:
    import httpx

    return httpx.Client(**httpx_settings(request))


def pyqwest_client(request: ClientCompatRequest, parallel: int) -> pyqwest.SyncClient:
    import pyqwest

    return pyqwest.SyncClient(pyqwest.SyncHTTPTransport(**pyqwest_settings(request)))


def pycurl_transport(request: ClientCompatRequest, parallel: int) -> PycurlTransport:
    from connectrpc.transports.pycurl import PycurlTransport

    return PycurlTransport(idle_connections=parallel, **pycurl_settings(request))


class _HTTPClients:
    """The HTTP client for each HTTP version and TLS configuration, shared by all calls that need the same one."""

    def __init__(self, parallel: int, make: Callable[[ClientCompatRequest, int], _HTTPClient]) -> None:
        self._parallel = parallel
        self._make = make
        self._lock = threading.Lock()
        self._clients: dict[tuple[object, ...], _HTTPClient] = {}

    def get(self, request: ClientCompatRequest) -> _HTTPClient:
        key = (request.http_version, request.server_tls_cert, request.client_tls_creds.cert)
        with self._lock:
            if key not in self._clients:
                self._clients[key] = self._make(request, self._parallel)
            return self._clients[key]


def _response(request: ClientCompatRequest, http_client: _HTTPClient) -> ClientCompatResponse:
    try:
        with ConformanceServiceClient(base_url(request), http_client, **client_options(request)) as client:
            return answer(request, _Call(request, client).make())
    except Exception:
        return failure(request)


class _Call:
    """One call, and what became of it."""

    def __init__(self, request: ClientCompatRequest, client: ConformanceServiceClient) -> None:
        self._request = request
        self._client = client
        self._headers = messages.headers_from_proto(request.request_headers)
        self._timeout = timeout_seconds(request)
        self._cancel = CancelToken()
        self._cancellation = Cancellation(request, self._cancel.cancel, _call_later)
        self._result = ClientResponseResult()
        # In full duplex, a request goes out when the one before it was answered.
        self._full_duplex = is_full_duplex(request)
        self._turn = threading.Semaphore(1)

    def make(self) -> ClientResponseResult:
        match self._request.method:
            case "Unary":
                self._unary()
            case "IdempotentUnary":
                self._idempotent_unary()
            case "Unimplemented":
                self._unimplemented()
            case "ClientStream":
                self._client_stream()
            case "ServerStream":
                self._server_stream()
            case "BidiStream":
                self._bidi_stream()
            case unknown:
                raise ValueError(f"no such method: {unknown}")
        return self._result

    def _unary(self) -> None:
        message = only_message(self._request, UnaryRequest)
        self._cancellation.request_ends()
        self._receive_one(self._client.call_unary(message, self._headers, self._timeout, cancel=self._cancel))

    def _idempotent_unary(self) -> None:
        message = only_message(self._request, IdempotentUnaryRequest)
        self._cancellation.request_ends()
        self._receive_one(
            self._client.call_idempotent_unary(message, self._headers, self._timeout, cancel=self._cancel)
        )

    def _unimplemented(self) -> None:
        message = only_message(self._request, UnimplementedRequest)
        self._cancellation.request_ends()
        # Its response has no payload.
        record(
            self._result,
            self._client.call_unimplemented(message, self._headers, self._timeout, cancel=self._cancel),
        )

    def _client_stream(self) -> None:
        requests = self._requests(ClientStreamRequest)
        self._receive_one(self._client.call_client_stream(requests, self._headers, self._timeout, cancel=self._cancel))

    def _server_stream(self) -> None:
        message = only_message(self._request, ServerStreamRequest)
        self._cancellation.request_ends()
        self._receive_all(self._client.call_server_stream(message, self._headers, self._timeout, cancel=self._cancel))

    def _bidi_stream(self) -> None:
        requests = self._requests(BidiStreamRequest)
        self._receive_all(self._client.call_bidi_stream(requests, self._headers, self._timeout, cancel=self._cancel))

    def _requests(self, message_type: type[MessageT]) -> Iterator[MessageT]:
        self._result.num_unsent_requests = len(self._request.request_messages)
        for packed in self._request.request_messages:
            if self._full_duplex:
                self._turn.acquire()
            time.sleep(self._request.request_delay_ms / 1000)
            yield unpack(packed, message_type)
            self._result.num_unsent_requests -= 1
        if self._full_duplex:
            self._turn.acquire()
        if not self._cancellation.messages_sent():
            self._cancellation.request_ends()

    def _receive_one(
        self,
        output: UnaryOutput[UnaryResponse] | UnaryOutput[IdempotentUnaryResponse] | UnaryOutput[ClientStreamResponse],
    ) -> None:
        message = output.message()
        if message is not None:
            self._result.payloads.append(message.payload)
        record(self._result, output)

    def _receive_all(self, output: StreamOutput[ServerStreamResponse] | StreamOutput[BidiStreamResponse]) -> None:
        with output as responses:
            for message in responses:
                self._result.payloads.append(message.payload)
                self._cancellation.received(len(self._result.payloads))
                self._turn.release()
            record(self._result, responses)
        self._turn.release(len(self._request.request_messages) + 1)  # nobody is to wait for what will not come


def _call_later(delay: float, function: Callable[[], object]) -> None:
    threading.Timer(delay, function).start()
