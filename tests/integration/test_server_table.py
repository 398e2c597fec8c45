"""The table of docs/servers.md, cell by cell."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

import pyqwest
import pytest

from connectrpc.errors import ConnectError, ConnectErrorCode

from certificates import Authority
from integration_pb2 import ChatRequest, CountRequest, EchoRequest, SumRequest
from integration_pb2_connect import AsyncProbeServiceClient
from servers import run_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence
    from typing import Literal

    from servers import Server

    Protocol = Literal["connect", "grpc-web", "grpc"]

pytestmark = pytest.mark.usefixtures("limit")

KINDS = {
    "gunicorn, WSGI": "gunicorn-gthread",
    "granian, WSGI": "granian-http2",
    "pyvoy, WSGI": "pyvoy",
    "uvicorn": "uvicorn-httptools",
    "uvicorn with zttp": "uvicorn-http2",
    "gunicorn, ASGI": "gunicorn-asgi",
    "gunicorn, ASGI, HTTP/2": "gunicorn-asgi-http2",
    "hypercorn": "hypercorn",
    "granian, ASGI": "granian-asgi-http2",
    "pyvoy, ASGI": "pyvoy-asgi",
}
"""The servers of the table, by their names in ``servers.SERVERS``."""

PROTOCOLS: dict[str, Sequence[Protocol]] = {
    "Connect, gRPC-Web": ("connect", "grpc-web"),
    "all three": ("connect", "grpc-web", "grpc"),
}

VERSIONS = {
    "HTTP/1.1": pyqwest.HTTPVersion.HTTP1,
    "HTTP/2": pyqwest.HTTPVersion.HTTP2,
    "HTTP/3": pyqwest.HTTPVersion.HTTP3,
}


def read_table() -> dict[str, dict[str, str]]:
    """Its cells, by server and column."""
    page = (Path(__file__).parents[2] / "docs" / "servers.md").read_text("utf-8")
    lines = [line for line in page.splitlines() if line.startswith("|")]
    heads, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    return {row[0]: dict(zip(heads[1:], row[1:], strict=True)) for row in rows}


TABLE = read_table()


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls"), "authority")


@pytest.fixture(scope="module", params=[*KINDS])
def row(
    request: pytest.FixtureRequest, authority: Authority, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Server]]:
    """A server of the table. Where it has HTTP/3, with TLS, which that is never without."""
    kind = KINDS[request.param]
    with contextlib.ExitStack() as stack:
        options: list[str] = []
        if TABLE[request.param]["HTTP/3"]:
            certificate = str(authority.issue(kind))
            options = ["--tls-cert", certificate, "--tls-key", certificate]
        directory = tmp_path_factory.mktemp(kind)
        yield request.param, stack.enter_context(run_server(kind, directory, options=options, tls=bool(options)))


def test_the_table_names_the_servers_of_this_test() -> None:
    assert [*TABLE] == [*KINDS]
    assert {cell for row in TABLE.values() for version, cell in row.items() if version in VERSIONS} == {*PROTOCOLS, ""}


@pytest.mark.parametrize("version", VERSIONS)
def test_a_cell(row: tuple[str, Server], version: str, authority: Authority) -> None:
    name, server = row
    cell = TABLE[name][version]
    if cell:
        asyncio.run(_try(server, version, PROTOCOLS[cell], authority.file.read_bytes()))
    elif version != "HTTP/3":  # where silence tells nothing
        with pytest.raises(ConnectError) as caught:
            asyncio.run(_echo(server, version))
        assert caught.value.code in (ConnectErrorCode.UNAVAILABLE, ConnectErrorCode.INTERNAL)


def _http_client(server: Server, version: str, authority: bytes | None) -> pyqwest.Client:
    return pyqwest.Client(
        pyqwest.HTTPTransport(
            http_version=VERSIONS[version],
            tls_ca_cert=authority if server.url.startswith("https") else None,
            follow_redirects=False,
            enable_gzip=False,
            enable_brotli=False,
            enable_zstd=False,
        )
    )


async def _echo(server: Server, version: str) -> None:
    client = AsyncProbeServiceClient(server.url, _http_client(server, version, None))
    await client.echo(EchoRequest(text="a"), timeout_seconds=5)


async def _try(server: Server, version: str, protocols: Sequence[Protocol], authority: bytes) -> None:
    http_client = _http_client(server, version, authority)
    tried: Sequence[Protocol] = ("connect", "grpc-web", "grpc") if version != "HTTP/3" else protocols
    for protocol in tried:
        client = AsyncProbeServiceClient(server.url, http_client, protocol=protocol, timeout_seconds=20)
        if protocol in protocols:
            await _call_all(client, full_duplex=version != "HTTP/1.1")
        else:
            with pytest.raises(ConnectError, match="needs HTTP/2") as caught:
                await client.echo(EchoRequest(text="a"))
            assert caught.value.code is ConnectErrorCode.UNIMPLEMENTED


async def _call_all(client: AsyncProbeServiceClient, *, full_duplex: bool) -> None:
    """A call of each kind, and an error of each."""
    assert (await client.echo(EchoRequest(text="a"))).request.text == "a"
    assert [message.number async for message in client.count(CountRequest(up_to=3))] == [1, 2, 3]
    assert (await client.sum([SumRequest(number=number) for number in (1, 2, 3)])).sum == 6
    texts = ["a", "b", "c"]
    assert [message.text async for message in client.chat([ChatRequest(text=text) for text in texts])] == texts
    with pytest.raises(ConnectError) as caught:
        await client.missing(EchoRequest())
    assert caught.value.code is ConnectErrorCode.UNIMPLEMENTED
    with pytest.raises(ConnectError) as caught:
        [message async for message in client.count(CountRequest(up_to=1, misdeed="error last"))]
    assert (caught.value.code, caught.value.message) == (ConnectErrorCode.NOT_FOUND, "enough")
    if full_duplex:
        await _take_turns(client)


async def _take_turns(client: AsyncProbeServiceClient) -> None:
    """Each question waits for the answer to the one before."""
    answered = asyncio.Event()

    async def ask() -> AsyncIterator[ChatRequest]:
        for text in ("a", "b", "c"):
            yield ChatRequest(text=text)
            await asyncio.wait_for(answered.wait(), 10)
            answered.clear()

    answers = []
    async for message in client.chat(ask()):
        answers.append(message.text)
        answered.set()
    assert answers == ["a", "b", "c"]
