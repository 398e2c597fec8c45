"""What users have in their code: every name of it is there, and behaves as it always did.

The names and members are those of the table "Public surface" of the design: more may be added, none of these goes.
"""

from __future__ import annotations

import ast
import asyncio
import importlib
import inspect
import sys
import types
import typing
import warnings
from importlib.metadata import entry_points, metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from google.protobuf.duration_pb2 import Duration
from multidict import CIMultiDict, MultiDict
from urllib3 import HTTPHeaderDict

import connectrpc
from connectrpc.client import AsyncClient, CancelToken, SyncClient
from connectrpc.errors import ConnectError, ConnectErrorCode
from connectrpc.server import (
    ASGIApplication,
    ClientRequest,
    ClientStream,
    ServerResponse,
    ServerStream,
    WSGIApplication,
)
from connectrpc.streams import AsyncStreamCall, AsyncStreamOutput, StreamOutput
from connectrpc.unary import UnaryOutput
from harness import (
    AsyncMemoryTransport,
    MemoryTransport,
    call_asgi,
    call_wsgi,
    environ,
    scope,
    through_asgi,
    through_wsgi,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

ROOT = Path(connectrpc.__file__).parent

# __all__


def public_modules() -> list[str]:
    paths = [path.relative_to(ROOT.parent).with_suffix("").parts for path in sorted(ROOT.rglob("*.py"))]
    names = [".".join(parts).removesuffix(".__init__") for parts in paths]
    optional = ("httpx", "pycurl", "pyqwest")  # not every environment has them
    absent = {f"connectrpc.transports.{library}" for library in optional if find_spec(library) is None}
    return [name for name in names if "._" not in name and name not in absent]


def defined_in(module: types.ModuleType) -> set[str]:
    """The names that a module makes itself: no imports, nothing for type checkers alone, no type variables."""
    names: set[str] = set()
    for node in ast.parse(Path(str(module.__file__)).read_text("utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return {name for name in names if not isinstance(getattr(module, name, None), typing.TypeVar)}


@pytest.mark.parametrize("name", public_modules())
def test_all(name: str) -> None:
    module = importlib.import_module(name)
    exported: list[str] = module.__all__
    assert isinstance(exported, list)
    assert len(exported) == len(set(exported))
    for entry in exported:
        assert hasattr(module, entry), f"{entry} does not exist"
        assert not entry.startswith("_") or entry == "__version__"
    missing = {entry for entry in defined_in(module) if not entry.startswith("_")} - set(exported)
    assert not missing, "public by name, but not exported"


@pytest.mark.parametrize("name", ["connectrpc.server"])
def test_lazy_names(name: str) -> None:
    """They are there for ``from ... import`` and for typing; others are refused as usual."""
    module = importlib.import_module(name)
    for entry in module.__all__:
        assert getattr(module, entry) is getattr(module, entry)
    with pytest.raises(AttributeError, match="nonsense"):
        _ = module.nonsense


@pytest.mark.parametrize("name", public_modules())
def test_docstrings(name: str) -> None:
    """Everything that is exported says what it is."""
    module = importlib.import_module(name)
    assert module.__doc__
    for entry in module.__all__:
        exported = getattr(module, entry)
        if typing.get_origin(exported) is None and (inspect.isclass(exported) or inspect.isfunction(exported)):
            assert exported.__doc__, entry


@pytest.mark.parametrize(
    "name",
    [
        "cancel",
        "client",
        "deadline",
        "errors",
        "health",
        "interceptors",
        "request",
        "server",
        "streams",
        "testing",
        "unary",
    ],
)
def test_docstrings_of_methods(name: str) -> None:
    module = importlib.import_module(f"connectrpc.{name}")
    for entry in module.__all__:
        for member, function in getattr(getattr(module, entry), "__dict__", {}).items():
            if not member.startswith("_") and isinstance(function, types.FunctionType | property | classmethod):
                assert inspect.getdoc(getattr(getattr(module, entry), member)), f"{entry}.{member}"


def test_names_of_the_distribution() -> None:
    found = metadata("connect-python")
    assert found["Name"] == "connect-python"
    assert {"compiler", "br", "zstd"} <= set(found.get_all("Provides-Extra") or ())
    scripts = {script.name: script.value for script in entry_points(group="console_scripts")}
    plugin = "protoc_gen_connect_python.main:main"
    assert scripts["protoc-gen-connect_python"] == scripts["protoc-gen-connect-python"] == plugin


# Members


def test_connect_error() -> None:
    error = ConnectError(ConnectErrorCode.INVALID_ARGUMENT, "m", [Duration(seconds=5)])
    assert list(inspect.signature(ConnectError).parameters) == ["code", "message", "details"]
    assert (error.code, error.message) == (ConnectErrorCode.INVALID_ARGUMENT, "m")
    (detail,) = error.details
    assert (detail.type, detail.value, detail.message()) == (
        "google.protobuf.Duration",
        b"\x08\x05",
        Duration(seconds=5),
    )
    error.add_detail(Duration(seconds=6))
    error.add_detail(Duration(seconds=7), include_debug=True)
    error.add_detail(Duration(seconds=8), True)
    assert [bool(detail.debug) for detail in error.details] == [False, False, True, True]
    assert "invalid_argument" in str(error)
    assert "m" in str(error)


def test_connect_error_code() -> None:
    import connectrpc.errors

    assert connectrpc.errors.ConnectErrorCode is ConnectErrorCode
    assert len(ConnectErrorCode) == 16
    code = ConnectErrorCode.INVALID_ARGUMENT
    assert (code.code_name, code.http_status, code.grpc_number) == ("invalid_argument", 400, 3)


def header_inputs() -> list[Any]:
    of_urllib3 = HTTPHeaderDict()
    of_urllib3.add("X-A", "1")
    of_urllib3.add("X-A", "2")
    pairs = [("X-A", "1"), ("X-A", "2")]
    return [{"X-A": "1"}, {"X-A": ["1", "2"]}, MultiDict(pairs), CIMultiDict(pairs), of_urllib3]


def test_server_response() -> None:
    assert list(inspect.signature(ServerResponse).parameters) == ["payload", "headers", "trailers"]
    for given in header_inputs():
        response = ServerResponse("m", given, given)
        assert (response.msg, response.error) == ("m", None)
        assert isinstance(response.headers, CIMultiDict)
        assert response.headers.getall("x-a") == response.trailers.getall("x-a")
        assert response.headers.getall("x-a")[0] == "1"
    error = ConnectError(ConnectErrorCode.INTERNAL, "m")
    assert (ServerResponse(error).msg, ServerResponse(error).error) == (None, error)


def test_server_stream() -> None:
    assert list(inspect.signature(ServerStream).parameters) == ["msgs", "headers", "trailers"]
    stream = ServerStream(["m"], {"X-A": "1"}, {"X-B": "2"})
    assert stream.msgs == ["m"]
    assert (stream.headers["x-a"], stream.trailers["x-b"]) == ("1", "2")


# Generated code


@pytest.fixture(scope="module")
def generated(surface: Path) -> Iterator[Any]:
    """The generated module, with the module of its messages as ``messages``."""
    sys.path.insert(0, str(surface))
    try:
        module: Any = importlib.import_module("surface_pb2_connect")
        module.messages = importlib.import_module("surface_pb2")
        yield module
    finally:
        sys.path.remove(str(surface))


class Service:
    """All kinds of handlers."""

    def __init__(self, messages: Any) -> None:
        self._messages = messages

    def _reply(self, text: str) -> Any:
        return self._messages.SayResponse(text=text)

    def say(self, req: ClientRequest[Any]) -> Any:
        assert req.timeout.timeout_ms is None or req.timeout.timeout_ms > 0
        if req.msg.text == "fail":
            raise ConnectError(ConnectErrorCode.NOT_FOUND, "m", [Duration(seconds=5)])
        return ServerResponse(self._reply(req.msg.text + req.headers.get("x-a", "")), {"X-H": "1"}, {"X-T": "2"})

    def introduce(self, req: ClientRequest[Any]) -> Any:
        def messages() -> Iterator[Any]:
            yield self._reply("a")
            yield self._reply("b")
            if req.msg.text == "fail":
                yield ConnectError(ConnectErrorCode.NOT_FOUND, "m")

        return ServerStream(messages(), {"X-H": "1"}, {"X-T": "2"})

    def pontificate(self, req: ClientStream[Any]) -> Any:
        return self._reply(",".join(message.text for message in req))

    def converse(self, req: ClientStream[Any]) -> Any:
        for message in req:
            yield self._reply(message.text)

    def greet(self, req: ClientRequest[Any]) -> Any:
        return self._reply("hello")


class AsyncService(Service):
    async def pontificate(self, req: Any) -> Any:
        return self._reply(",".join([message.text async for message in req]))

    async def converse(self, req: Any) -> AsyncIterator[Any]:
        async for message in req:
            yield self._reply(message.text)


@pytest.fixture(params=["wsgi", "asgi"])
def serve(request: pytest.FixtureRequest, generated: Any) -> Any:
    if request.param == "wsgi":
        return through_wsgi(generated.wsgi_surface_service(Service(generated.messages)))
    return through_asgi(generated.asgi_surface_service(AsyncService(generated.messages)))


@pytest.fixture
def client(generated: Any, serve: Any) -> Any:
    return generated.SurfaceServiceClient("http://h/", MemoryTransport(serve))


def say(generated: Any, text: str = "x") -> Any:
    return generated.messages.SayRequest(text=text)


def test_names(generated: Any) -> None:
    assert issubclass(generated.SurfaceServiceClient, SyncClient)
    assert issubclass(generated.AsyncSurfaceServiceClient, AsyncClient)
    assert generated.SURFACE_SERVICE_PATH_PREFIX == "/unit.surface.v1.SurfaceService"
    assert isinstance(generated.wsgi_surface_service(Service(generated.messages)), WSGIApplication)
    assert isinstance(generated.asgi_surface_service(AsyncService(generated.messages)), ASGIApplication)
    assert isinstance(Service(generated.messages), generated.SurfaceServiceProtocol)
    assert isinstance(Service(generated.messages), generated.AsyncSurfaceServiceProtocol)
    assert not isinstance(object(), generated.SurfaceServiceProtocol)


@pytest.mark.parametrize("name", ["say", "introduce", "pontificate", "converse", "greet"])
@pytest.mark.parametrize("colour", ["", "Async"])
@pytest.mark.parametrize("form", ["", "call_"])
def test_signatures(generated: Any, colour: str, name: str, form: str) -> None:
    method = getattr(getattr(generated, f"{colour}SurfaceServiceClient"), form + name)
    parameters = inspect.signature(method).parameters
    first = "reqs" if name in ("pontificate", "converse") else "req"
    expected = ["self", first, "extra_headers", "timeout_seconds"]
    assert list(parameters) == (expected if colour else [*expected, "cancel"])
    assert parameters["extra_headers"].default is None
    assert parameters["timeout_seconds"].default is None
    if not colour:
        assert parameters["cancel"].kind is inspect.Parameter.KEYWORD_ONLY


def test_clients(generated: Any, client: Any) -> None:
    assert client.base_url == "http://h"
    with client as entered:
        assert entered is client
    client.close()
    client.close()


def test_say(generated: Any, client: Any) -> None:
    assert client.say(say(generated)).text == "x"
    for given in header_inputs():
        assert client.say(say(generated), given, 5).text.startswith("x1")
    assert (
        client.say(req=say(generated), extra_headers={"X-A": "y"}, timeout_seconds=5, cancel=CancelToken()).text == "xy"
    )
    with pytest.raises(ConnectError) as caught:
        client.say(say(generated, "fail"))
    error = caught.value
    assert (error.code, error.message) == (ConnectErrorCode.NOT_FOUND, "m")
    assert error.details[0].message() == Duration(seconds=5)


def test_call_say(generated: Any, client: Any) -> None:
    output = client.call_say(say(generated))
    assert isinstance(output, typing.cast("type[Any]", UnaryOutput))
    assert output.message().text == "x"
    assert output.error() is None
    assert output.response_headers()["x-h"] == "1"
    assert output.response_trailers()["x-t"] == "2"
    assert isinstance(output.response_headers(), CIMultiDict)
    output = client.call_say(say(generated, "fail"))
    assert output.message() is None
    assert output.error().code is ConnectErrorCode.NOT_FOUND


def test_introduce(generated: Any, client: Any) -> None:
    messages = client.introduce(say(generated))
    assert messages.gi_frame is not None, "it is a generator"
    assert [message.text for message in messages] == ["a", "b"]
    messages = client.introduce(say(generated, "fail"))
    assert [next(messages).text, next(messages).text] == ["a", "b"]
    with pytest.raises(ConnectError, match="not_found"):
        next(messages)
    messages = client.introduce(say(generated))
    next(messages)
    messages.close()
    assert list(messages) == []


def test_call_introduce(generated: Any, client: Any) -> None:
    with client.call_introduce(say(generated)) as stream:
        assert isinstance(stream, StreamOutput)
        assert next(stream).text == "a"
        with pytest.raises(RuntimeError):
            stream.response_trailers()
        assert stream.response_headers()["x-h"] == "1"
        assert (stream.done(), stream.error()) == (False, None)
        assert [message.text for message in stream] == ["b"]
        assert (stream.done(), stream.error()) == (True, None)
        assert stream.response_trailers()["x-t"] == "2"
        stream.close()
        stream.close()
    stream = client.call_introduce(say(generated, "fail"))
    assert [message.text for message in stream] == ["a", "b"], "it ends quietly"
    assert stream.done()
    assert stream.error().code is ConnectErrorCode.NOT_FOUND


def test_streams_in(generated: Any, client: Any) -> None:
    requests: Any = [say(generated, "x"), say(generated, "y")]
    assert client.pontificate(requests).text == "x,y"
    assert client.pontificate(iter(requests)).text == "x,y"
    assert client.call_pontificate(request for request in requests).message().text == "x,y"
    assert [message.text for message in client.converse(requests)] == ["x", "y"]
    with client.call_converse(tuple(requests)) as stream:
        assert [message.text for message in stream] == ["x", "y"]


def test_deprecated_methods(generated: Any, client: Any) -> None:
    with pytest.warns(DeprecationWarning, match="deprecated") as caught:
        assert client.greet(say(generated)).text == "hello"
    assert [warning.filename for warning in caught] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        client.say(say(generated))


def test_async_client(generated: Any, serve: Any) -> None:
    def serve_in_thread(request: Any, body: bytes) -> Any:
        # an ASGI app needs an event loop of its own there, and this thread has one running
        import concurrent.futures

        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            return pool.submit(serve, request, body).result()

    async def async_requests() -> AsyncIterator[Any]:
        for text in "xy":
            yield say(generated, text)

    async def main() -> None:
        async with generated.AsyncSurfaceServiceClient("http://h/", AsyncMemoryTransport(serve_in_thread)) as client:
            assert client.base_url == "http://h"
            assert (await client.say(say(generated), {"X-A": "y"}, 5)).text == "xy"
            with pytest.raises(ConnectError):
                await client.say(say(generated, "fail"))
            output = await client.call_say(say(generated, "fail"))
            assert output.error().code is ConnectErrorCode.NOT_FOUND
            messages = client.introduce(say(generated))
            assert messages.ag_frame is not None, "it is a generator"
            assert [message.text async for message in messages] == ["a", "b"]
            call = client.call_introduce(say(generated))
            assert isinstance(call, AsyncStreamCall)
            async with call as stream:
                assert isinstance(stream, AsyncStreamOutput)
                assert [message.text async for message in stream] == ["a", "b"]
            stream = await client.call_introduce(say(generated, "fail"))
            async with stream:
                assert [message.text async for message in stream] == ["a", "b"]
            assert stream.done()
            assert stream.error().code is ConnectErrorCode.NOT_FOUND
            assert stream.response_trailers()["x-t"] == "2"
            await stream.close()
            await stream.close()
            for requests in (async_requests, lambda: [say(generated, "x"), say(generated, "y")]):
                assert (await client.pontificate(requests())).text == "x,y"
                assert (await client.call_pontificate(requests())).message().text == "x,y"
                assert [message.text async for message in client.converse(requests())] == ["x", "y"]
                async with client.call_converse(requests()) as stream:
                    assert [message.text async for message in stream] == ["x", "y"]
            with pytest.warns(DeprecationWarning, match="deprecated"):
                assert (await client.greet(say(generated))).text == "hello"
        await client.aclose()

    asyncio.run(main())


def test_an_implementation_that_lacks_what_the_proto_has_got_since(generated: Any) -> None:
    class Old:
        def say(self, req: ClientRequest[Any]) -> Any:
            return generated.messages.SayResponse(text="old")

    class Inheriting(generated.SurfaceServiceProtocol):  # type: ignore[misc]
        def say(self, req: ClientRequest[Any]) -> Any:
            return generated.messages.SayResponse(text="old")

    class AsyncInheriting(generated.AsyncSurfaceServiceProtocol):  # type: ignore[misc]
        async def say(self, req: ClientRequest[Any]) -> Any:
            return generated.messages.SayResponse(text="old")

    prefix = generated.SURFACE_SERVICE_PATH_PREFIX
    for implementation in (Old(), Inheriting()):
        app = generated.wsgi_surface_service(implementation)
        assert call_wsgi(app, environ(prefix + "/Say")).status == 200
        assert call_wsgi(app, environ(prefix + "/Greet")).status == 501
        assert (
            call_wsgi(app, environ(prefix + "/Pontificate", b"", "application/connect+proto")).failure()
            == "unimplemented"
        )
    for implementation in (Old(), AsyncInheriting()):
        app = generated.asgi_surface_service(implementation)
        assert call_asgi(app, scope(prefix + "/Say")).status == 200
        assert call_asgi(app, scope(prefix + "/Greet")).status == 501
        assert call_asgi(app, scope(prefix + "/Converse", "application/connect+proto")).failure() == "unimplemented"


def test_options_reach_the_runtime(generated: Any) -> None:
    service = Service(generated.messages)
    app = generated.wsgi_surface_service(service, prefix="/api")
    assert call_wsgi(app, environ("/api" + generated.SURFACE_SERVICE_PATH_PREFIX + "/Say")).status == 200
    with pytest.raises(TypeError, match="prefixx"):
        generated.wsgi_surface_service(service, prefixx="/api")
    with pytest.raises(TypeError, match="prefixx"):
        generated.asgi_surface_service(service, prefixx="/api")
    with pytest.raises(TypeError, match="codecc"):
        generated.SurfaceServiceClient("http://h", codecc="json")
    assert generated.SurfaceServiceClient("http://h", codec="json").base_url == "http://h"
    with pytest.raises(TypeError, match="async"):
        generated.wsgi_surface_service(AsyncService(generated.messages))
