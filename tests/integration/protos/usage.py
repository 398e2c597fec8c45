"""What users write against generated code, for the type checkers: it is checked beside that code, and never run.

Each ``ignore`` stands for an error that has to be there; one that is not needed is an error itself.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator

import aiohttp
import httpx
import pyqwest
import urllib3
from corpus import deprecated_pb2_connect, rpc_names_pb2_connect
from corpus.deprecated_pb2 import Message
from corpus.kinds.v1.kinds_pb2 import (
    ConverseRequest,
    ConverseResponse,
    IntroduceRequest,
    IntroduceResponse,
    PontificateRequest,
    PontificateResponse,
    SayRequest,
    SayResponse,
)
from corpus.kinds.v1.kinds_pb2_connect import (
    AsyncElizaServiceClient,
    AsyncElizaServiceProtocol,
    ElizaServiceClient,
    ElizaServiceProtocol,
    asgi_eliza_service,
    wsgi_eliza_service,
)
from corpus.rpc_names_pb2 import Request, Response
from google.protobuf.empty_pb2 import Empty
from multidict import CIMultiDict, MultiDict
from starlette.applications import Starlette
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Mount
from typing_extensions import assert_type

from connectrpc import cors
from connectrpc.errors import ConnectError, ConnectErrorCode
from connectrpc.reflection import with_reflection
from connectrpc.server import (
    ASGIApplication,
    AsyncClientStream,
    ClientRequest,
    ClientStream,
    ServerResponse,
    ServerStream,
    WSGIApplication,
)
from connectrpc.streams import AsyncStreamOutput, StreamOutput
from connectrpc.testing import ASGITransport, WSGITransport
from connectrpc.transports.pycurl import AsyncPycurlTransport, PycurlTransport
from connectrpc.unary import UnaryOutput

# --- implementations


class Plain:
    """Messages, lists and generators."""

    def say(self, req: ClientRequest[SayRequest]) -> SayResponse:
        return SayResponse(sentence=req.msg.sentence)

    def introduce(self, req: ClientRequest[IntroduceRequest]) -> Iterator[IntroduceResponse]:
        yield IntroduceResponse(sentence=req.msg.name)

    def pontificate(self, req: ClientStream[PontificateRequest]) -> PontificateResponse:
        return PontificateResponse(count=sum(1 for _ in req))

    def converse(self, req: ClientStream[ConverseRequest]) -> Generator[ConverseResponse | ConnectError]:
        for message in req:
            yield ConverseResponse(sentence=message.sentence)
        yield ConnectError(ConnectErrorCode.ABORTED, "enough")

    def forget(self, _: ClientRequest[Empty]) -> Empty:
        return Empty()


class WithMetadata:
    """The same with headers and trailers."""

    def say(self, req: ClientRequest[SayRequest], /) -> ServerResponse[SayResponse]:
        return ServerResponse(SayResponse(), headers={"a": "b"}, trailers={"c": ["d", "e"]})

    def introduce(self, req: ClientRequest[IntroduceRequest], /) -> ServerStream[IntroduceResponse]:
        return ServerStream([IntroduceResponse()], headers={"a": "b"})

    def pontificate(self, req: ClientStream[PontificateRequest], /) -> ServerResponse[PontificateResponse]:
        return ServerResponse(ConnectError(ConnectErrorCode.NOT_FOUND, "nobody listens"))

    def converse(self, req: ClientStream[ConverseRequest], /) -> ServerStream[ConverseResponse]:
        return ServerStream(ConverseResponse() for _ in req)

    def forget(self, req: ClientRequest[Empty], /) -> ServerResponse[Empty]:
        return ServerResponse(Empty())


class Derived(ElizaServiceProtocol):
    """Deriving from the protocol is allowed, not needed."""

    def say(self, req: ClientRequest[SayRequest]) -> ServerResponse[SayResponse]:
        return ServerResponse(SayResponse())

    def introduce(self, req: ClientRequest[IntroduceRequest]) -> Iterator[IntroduceResponse]:
        yield IntroduceResponse()

    def pontificate(self, req: ClientStream[PontificateRequest]) -> PontificateResponse:
        return PontificateResponse()

    def converse(self, req: ClientStream[ConverseRequest]) -> ServerStream[ConverseResponse]:
        return ServerStream([])

    def forget(self, req: ClientRequest[Empty]) -> Empty:
        return Empty()


class DerivedWrong(Derived):
    """Type checkers then point at the method that does not fit."""

    def say(self, req: ClientRequest[SayRequest]) -> Empty:  # type: ignore[override] # pyright: ignore[reportIncompatibleMethodOverride]
        return Empty()


class DerivedIncomplete(ElizaServiceProtocol):
    """And name those that are missing."""

    def say(self, req: ClientRequest[SayRequest]) -> SayResponse:
        return SayResponse()


class AsyncPlain:
    """Messages and generators."""

    async def say(self, req: ClientRequest[SayRequest]) -> SayResponse:
        return SayResponse(sentence=req.msg.sentence)

    async def introduce(self, req: ClientRequest[IntroduceRequest]) -> AsyncIterator[IntroduceResponse]:
        yield IntroduceResponse(sentence=req.msg.name)

    async def pontificate(self, req: AsyncClientStream[PontificateRequest]) -> PontificateResponse:
        return PontificateResponse(count=len([message async for message in req]))

    async def converse(
        self, req: AsyncClientStream[ConverseRequest]
    ) -> AsyncGenerator[ConverseResponse | ConnectError, None]:
        async for message in req:
            yield ConverseResponse(sentence=message.sentence)
        yield ConnectError(ConnectErrorCode.ABORTED, "enough")

    async def forget(self, _: ClientRequest[Empty]) -> Empty:
        return Empty()


class AsyncWithMetadata:
    """The same with headers and trailers."""

    async def say(self, req: ClientRequest[SayRequest], /) -> ServerResponse[SayResponse]:
        return ServerResponse(SayResponse(), headers={"a": "b"}, trailers={"c": ["d", "e"]})

    async def introduce(self, req: ClientRequest[IntroduceRequest], /) -> ServerStream[IntroduceResponse]:
        return ServerStream([IntroduceResponse()], headers={"a": "b"})

    async def pontificate(self, req: AsyncClientStream[PontificateRequest], /) -> ServerResponse[PontificateResponse]:
        return ServerResponse(ConnectError(ConnectErrorCode.NOT_FOUND, "nobody listens"))

    async def converse(self, req: AsyncClientStream[ConverseRequest], /) -> ServerStream[ConverseResponse]:
        return ServerStream([ConverseResponse() async for _ in req])

    async def forget(self, req: ClientRequest[Empty], /) -> ServerResponse[Empty]:
        return ServerResponse(Empty())


class AsyncDerived(AsyncElizaServiceProtocol):
    """The same, where generators stand for what the protocol declares without ``async``."""

    async def say(self, req: ClientRequest[SayRequest]) -> ServerResponse[SayResponse]:
        return ServerResponse(SayResponse())

    async def introduce(self, req: ClientRequest[IntroduceRequest]) -> AsyncIterator[IntroduceResponse]:
        yield IntroduceResponse()

    async def pontificate(self, req: AsyncClientStream[PontificateRequest]) -> PontificateResponse:
        return PontificateResponse()

    async def converse(self, req: AsyncClientStream[ConverseRequest]) -> ServerStream[ConverseResponse]:
        return ServerStream([])

    async def forget(self, req: ClientRequest[Empty]) -> Empty:
        return Empty()


class WrongMessage(Plain):
    def forget(self, _: ClientRequest[Empty]) -> SayResponse:  # type: ignore[override] # pyright: ignore[reportIncompatibleMethodOverride]
        return SayResponse()


class Incomplete:
    def say(self, req: ClientRequest[SayRequest]) -> SayResponse:
        return SayResponse()


def serve() -> None:
    assert_type(wsgi_eliza_service(Plain()), WSGIApplication)
    assert_type(asgi_eliza_service(AsyncPlain()), ASGIApplication)
    wsgi_eliza_service(Derived())
    asgi_eliza_service(AsyncDerived())
    wsgi_eliza_service(WithMetadata(), read_max_bytes=1000, prefix="/api")
    asgi_eliza_service(AsyncWithMetadata(), max_timeout_seconds=1.5)

    wsgi_eliza_service(Plain(), unknown=1)  # type: ignore[call-arg] # pyright: ignore[reportCallIssue]
    wsgi_eliza_service(Plain(), read_max_bytes="1")  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    wsgi_eliza_service(AsyncPlain())  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    asgi_eliza_service(Plain())  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    wsgi_eliza_service(WrongMessage())  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    wsgi_eliza_service(Incomplete())  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    wsgi_eliza_service(DerivedIncomplete())  # type: ignore[abstract] # pyright: ignore[reportAbstractUsage]


def mount() -> None:
    app = asgi_eliza_service(AsyncPlain())
    Starlette(routes=[Mount("/api", app), Mount("/all", with_reflection(app))])
    CORSMiddleware(app, allow_methods=cors.ALLOW_METHODS, allow_headers=[*cors.ALLOW_HEADERS, "authorization"])
    httpx.ASGITransport(app)
    httpx.WSGITransport(wsgi_eliza_service(Plain()))


def narrow(implementation: object) -> None:
    if isinstance(implementation, ElizaServiceProtocol):
        wsgi_eliza_service(implementation)


def narrow_async(implementation: object) -> None:
    if isinstance(implementation, AsyncElizaServiceProtocol):
        asgi_eliza_service(implementation)


# --- clients


def call(client: ElizaServiceClient) -> None:
    assert_type(client.base_url, str)
    assert_type(client.say(SayRequest()), SayResponse)
    assert_type(client.call_say(SayRequest()), UnaryOutput[SayResponse])
    assert_type(client.introduce(IntroduceRequest()), Generator[IntroduceResponse, None, None])
    assert_type(client.call_introduce(IntroduceRequest()), StreamOutput[IntroduceResponse])
    assert_type(client.pontificate([PontificateRequest()]), PontificateResponse)
    assert_type(client.call_pontificate(PontificateRequest() for _ in "ab"), UnaryOutput[PontificateResponse])
    assert_type(client.converse(iter(())), Generator[ConverseResponse, None, None])
    assert_type(client.call_converse([]), StreamOutput[ConverseResponse])

    client.say(SayRequest(), {"x-name": "value"}, 1)
    client.say(SayRequest(), extra_headers={"x-name": ["a", "b"]}, timeout_seconds=0.5, cancel=None)
    client.say(SayRequest(), {"x-one": "a", "x-two": ["b", "c"], "x-three": ("d", "e")})
    client.say(SayRequest(), MultiDict({"x-name": "a"}))
    client.say(SayRequest(), CIMultiDict({"x-name": "a"}))
    client.say(SayRequest(), urllib3.HTTPHeaderDict({"x-name": "a"}))
    client.say(SayRequest(), {"x-name": 1})  # type: ignore[dict-item] # pyright: ignore[reportArgumentType]
    client.say(IntroduceRequest())  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    client.pontificate(PontificateRequest())  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    client.say(SayRequest(), None, None, None)  # type: ignore[call-arg] # pyright: ignore[reportCallIssue]

    with ElizaServiceClient("http://localhost", codec="json") as own:
        assert_type(own, ElizaServiceClient)
    ElizaServiceClient("http://localhost", unknown=1)  # type: ignore[call-arg] # pyright: ignore[reportCallIssue]


async def call_async(client: AsyncElizaServiceClient) -> None:
    async def requests() -> AsyncIterator[PontificateRequest]:
        yield PontificateRequest()

    assert_type(await client.say(SayRequest()), SayResponse)
    assert_type(await client.call_say(SayRequest()), UnaryOutput[SayResponse])
    assert_type(client.introduce(IntroduceRequest()), AsyncGenerator[IntroduceResponse, None])
    assert_type(await client.call_introduce(IntroduceRequest()), AsyncStreamOutput[IntroduceResponse])
    async with client.call_introduce(IntroduceRequest()) as stream:
        assert_type(stream, AsyncStreamOutput[IntroduceResponse])
    assert_type(await client.pontificate(requests()), PontificateResponse)
    assert_type(await client.call_pontificate([PontificateRequest()]), UnaryOutput[PontificateResponse])
    assert_type(client.converse([]), AsyncGenerator[ConverseResponse, None])
    assert_type(await client.call_converse([]), AsyncStreamOutput[ConverseResponse])

    await client.say(SayRequest(), cancel=None)  # type: ignore[call-arg] # pyright: ignore[reportCallIssue]
    async with AsyncElizaServiceClient("http://localhost", timeout_seconds=1.5) as own:
        assert_type(own, AsyncElizaServiceClient)


async def over_http_clients() -> None:
    pool, httpx_client, session = urllib3.PoolManager(), httpx.Client(), aiohttp.ClientSession()
    ElizaServiceClient("http://localhost", pool)
    ElizaServiceClient("http://localhost", httpx_client)
    AsyncElizaServiceClient("http://localhost", session)
    AsyncElizaServiceClient("http://localhost", httpx.AsyncClient())
    ElizaServiceClient("http://localhost", pyqwest.SyncClient(), protocol="grpc")
    AsyncElizaServiceClient("http://localhost", pyqwest.Client(), protocol="grpc")
    with PycurlTransport(http_version="2") as pycurl_transport:
        ElizaServiceClient("http://localhost", pycurl_transport, protocol="grpc")
    async with AsyncPycurlTransport(http_version="2") as async_pycurl_transport:
        AsyncElizaServiceClient("http://localhost", async_pycurl_transport, protocol="grpc")
    wsgi_transport = WSGITransport(wsgi_eliza_service(Plain()))
    ElizaServiceClient("http://test", wsgi_transport)
    AsyncElizaServiceClient("http://test", wsgi_transport)
    async with ASGITransport(asgi_eliza_service(AsyncPlain())) as asgi_transport:
        ElizaServiceClient("http://test", asgi_transport)
        AsyncElizaServiceClient("http://test", asgi_transport)

    ElizaServiceClient("http://localhost", session)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    ElizaServiceClient("", httpx.AsyncClient())  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    AsyncElizaServiceClient("http://localhost", pool)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    AsyncElizaServiceClient("", httpx_client)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]


def call_awkward(client: rpc_names_pb2_connect.PythonNamesClient) -> None:
    assert_type(client.import_(Request(), timeout_seconds=1.5), Response)
    assert_type(client.float(Request(), timeout_seconds=1.5), Response)
    assert_type(client.str(Request()), Response)


def call_deprecated(client: deprecated_pb2_connect.PartlyDeprecatedClient) -> None:
    client.current(Message())
    client.old(Message())  # type: ignore[deprecated] # pyright: ignore[reportDeprecated]
    client.call_old(Message())  # type: ignore[deprecated] # pyright: ignore[reportDeprecated]
    deprecated_pb2_connect.WhollyDeprecatedClient("")  # type: ignore[deprecated] # pyright: ignore[reportDeprecated]
