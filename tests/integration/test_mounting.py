"""Services that are not at a server's root: mounted by frameworks, by the server itself, or told of a prefix.

Where an application is mounted, ASGI servers and frameworks tell in ``root_path``, but differ in whether ``path`` holds
it; WSGI has ``SCRIPT_NAME`` and ``PATH_INFO``, which do not overlap.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
from typing import TYPE_CHECKING, NamedTuple

import pytest

from connectrpc.errors import ConnectError, ConnectErrorCode

from helpers import settles
from integration_pb2 import ChatRequest, CountRequest, EchoRequest, NotesRequest, PingRequest, SumRequest
from integration_pb2_connect import AsyncProbeServiceClient, OtherServiceClient, ProbeServiceClient
from rawhttp import Connection
from servers import Server, run_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("limit")

PROBE = "/integration.v1.ProbeService/Echo"
LOOK = "/integration.v1.ProbeService/Look?encoding=json&message=%7B%7D"


NOWHERE = ("/x", "/apix", "/ap", "/API", "/x/api", "/api/x")


class Mounting(NamedTuple):
    """A server with an application of ``service_mounted``, and where the services of that are."""

    kind: str
    app: str
    options: tuple[str, ...]
    served: tuple[str, ...]
    """Where both services are, or at least the first."""
    refused: tuple[str, ...]
    """Where they are not."""
    hello: str = "/hello"


def asgi(kind: str, option: str, served: tuple[str, ...]) -> Mounting:
    refused = tuple(prefix for prefix in ("/api", *NOWHERE, "/api/api") if prefix not in served)
    return Mounting(kind, "asgi", (option, "/api"), served, refused)


def starlette(kind: str, *options: str, before: str = "") -> Mounting:
    served = ("/api", "/wrapped", "/one/two/three", "/tenants/a", "/tenants/b%20c", "/tenants/%C3%A4", "/below/v1")
    refused = (*NOWHERE, "/one/two", "/one/two/three/four", "/tenants", "/tenants/a/b", "/below", "/v1")
    return Mounting(
        kind,
        "starlette_app",
        options,
        tuple(before + prefix for prefix in served),
        tuple(before + prefix for prefix in refused),
    )


def wsgi(kind: str, *options: str, before: str = "") -> Mounting:
    served = ("/api", "/api/v2", "/below/v1", "")
    refused = (*NOWHERE, "/api/api", "/api/v2/v2", "/api/v2x", "/below", "/v1", "/one/two", "/one/two/three/four")
    return Mounting(
        kind,
        "wsgi",
        options,
        tuple(before + prefix for prefix in served),
        tuple(before + prefix for prefix in refused),
        before + "/hello",
    )


MOUNTINGS = {
    # The server puts its root path before whatever comes: a proxy has taken it away.
    "uvicorn with httptools and a root path": asgi("uvicorn-httptools", "--root-path", ("",)),
    "uvicorn with h11 and a root path": asgi("uvicorn-h11", "--root-path", ("",)),
    # The server leaves the path as it comes: a proxy may have taken its root path away, or not.
    "hypercorn with a root path": asgi("hypercorn", "--root-path", ("", "/api")),
    "gunicorn's ASGI worker with a root path": asgi("gunicorn-asgi", "--root-path", ("", "/api")),
    "granian with a path prefix": asgi("granian-asgi", "--url-path-prefix", ("", "/api")),
    "Starlette on uvicorn": starlette("uvicorn-httptools"),
    "Starlette on granian": starlette("granian-asgi"),
    "Starlette on uvicorn with a root path": starlette("uvicorn-httptools", "--root-path", "/edge"),
    # Here Starlette needs a proxy that leaves the root path where it is.
    "Starlette on hypercorn with a root path": starlette("hypercorn", "--root-path", "/edge", before="/edge"),
    "a dispatcher on gunicorn": wsgi("gunicorn-gthread"),
    "a dispatcher on granian": wsgi("granian"),
    "a dispatcher on wsgiref": wsgi("wsgiref"),
    # The server's SCRIPT_NAME stands before those of the dispatcher.
    "a dispatcher on gunicorn with a script name": wsgi(
        "gunicorn-gthread", "--env", "SCRIPT_NAME=/edge", before="/edge"
    ),
    "granian for WSGI with a path prefix": wsgi("granian", "--url-path-prefix", "/edge", before="/edge"),
}


@pytest.fixture(scope="module", params=MOUNTINGS.values(), ids=list(MOUNTINGS))
def mounting(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Server, Mounting]]:
    found: Mounting = request.param
    if found.app == "starlette_app" and importlib.util.find_spec("starlette") is None:
        pytest.skip("Starlette is not installed")
    directory = tmp_path_factory.mktemp(found.kind)
    app = f"service_mounted:{found.app}"
    with run_server(found.kind, directory, app=app, options=found.options, hello=found.hello) as server:
        yield server, found


def status(server: Server, path: str, method: str = "POST") -> int:
    """What becomes of a call at a path."""
    body = b"{}" if method == "POST" else b""
    with Connection(server.port) as connection:
        lines = f"{method} {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        connection.send(f"{lines}content-length: {len(body)}\r\n\r\n".encode() + body)
        answer = connection.answer()
    assert answer is not None
    if answer.status == 200:
        assert isinstance(json.loads(answer.body), dict)
    return answer.status


def test_services_are_where_they_are_mounted(mounting: tuple[Server, Mounting]) -> None:
    server, mounted = mounting
    for prefix in mounted.served:
        assert status(server, prefix + PROBE) == 200, prefix
        assert status(server, prefix + LOOK, "GET") == 200, prefix


def test_services_are_nowhere_else(mounting: tuple[Server, Mounting]) -> None:
    server, mounted = mounting
    refused = [prefix + PROBE for prefix in mounted.refused]
    for prefix in mounted.served:
        refused += [
            prefix + PROBE[1:],  # the mount does not end where a segment does
            prefix + "//" + PROBE[1:],
            prefix + PROBE + "/",
            prefix * 2 + PROBE,
            prefix + "/",
            prefix + "/integration.v1.ProbeService",
            prefix + "/integration.v1.ProbeService/Nothing",
        ]
        if "/tenants/" not in prefix:
            refused.append(prefix + "x" + PROBE)
    for path in refused:
        if "//" in path and mounted.kind == "wsgiref":
            continue  # it takes several slashes for one
        if path.startswith("/") and path != PROBE:
            assert status(server, path) == 404, path


def test_all_kinds_of_calls_where_services_are_mounted(mounting: tuple[Server, Mounting]) -> None:
    server, mounted = mounting
    for prefix in mounted.served:
        with ProbeServiceClient(server.url + prefix) as client:
            assert client.echo(EchoRequest(text="hi")).request.text == "hi"
            assert [message.number for message in client.count(CountRequest(up_to=3))] == [1, 2, 3]
            with pytest.raises(ConnectError) as raised:
                client.missing(EchoRequest())
            assert raised.value.code is ConnectErrorCode.UNIMPLEMENTED
            if mounted.kind != "wsgiref":  # it does not decode chunks
                assert client.sum([SumRequest(number=2)] * 3).sum == 6
                messages = client.chat([ChatRequest(text="a"), ChatRequest(text="b")])
                assert [message.text for message in messages] == ["a", "b"]


def test_several_services_at_one_place(mounting: tuple[Server, Mounting]) -> None:
    server, mounted = mounting
    with OtherServiceClient(server.url + mounted.served[0]) as client:
        assert client.ping(PingRequest(text="ho")).text == "ho"
    if mounted.app == "starlette_app":
        before = mounted.served[0].removesuffix("/api")
        with OtherServiceClient(server.url + before) as client:  # mounted at the root, alone
            assert client.ping(PingRequest(text="ho")).text == "ho"
        assert status(server, before + PROBE) == 404


def test_a_client_that_leaves_a_mounted_service(mounting: tuple[Server, Mounting]) -> None:
    """What is between the server and us lets us know."""
    server, mounted = mounting

    def ended() -> bool:
        with ProbeServiceClient(server.url + mounted.served[0]) as client:
            found.extend(client.notes(NotesRequest()).notes)
        return name + ": end" in found

    for prefix in mounted.served:
        name = f"left {prefix}"
        found: list[str] = []
        with (
            ProbeServiceClient(server.url + prefix) as client,
            client.call_count(CountRequest(up_to=500, delay_ms=20, name=name)) as stream,
        ):
            next(stream)
        assert settles(ended), prefix


def test_full_duplex_where_services_are_mounted(mounting: tuple[Server, Mounting]) -> None:
    server, mounted = mounting
    if mounted.kind == "wsgiref":
        pytest.skip("it does not decode chunks")

    async def talk(prefix: str) -> list[str]:
        answers: asyncio.Queue[str] = asyncio.Queue()

        async def requests() -> AsyncIterator[ChatRequest]:
            text = "x"
            while len(text) < 4:
                yield ChatRequest(text=text)
                text = await answers.get() + "x"

        found = []
        async with AsyncProbeServiceClient(server.url + prefix) as client:
            async for message in client.chat(requests(), timeout_seconds=5):
                found.append(message.text)
                answers.put_nowait(message.text)
        return found

    for prefix in mounted.served:
        assert asyncio.run(talk(prefix)) == ["x", "xx", "xxx"], prefix


@pytest.mark.parametrize("kind", ["uvicorn-httptools", "uvicorn-h11", "hypercorn", "gunicorn-asgi", "granian-asgi"])
def test_a_root_path_with_a_slash_at_its_end(kind: str, tmp_path: Path) -> None:
    option = "--url-path-prefix" if kind == "granian-asgi" else "--root-path"
    with run_server(kind, tmp_path, app="service_mounted:asgi", options=[option, "/api/"]) as server:
        assert status(server, PROBE) == 200
        assert status(server, "/x" + PROBE) == 404
