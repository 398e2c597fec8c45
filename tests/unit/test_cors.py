"""The lists for CORS middlewares hold all that our protocols send and answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from connectrpc import cors
from connectrpc.client import SyncClient
from connectrpc.errors import ConnectError, ConnectErrorCode
from harness import PURE, SERVER, UNARY, MemoryTransport, ask, call_wsgi, environ, reply, through_wsgi, wsgi

if TYPE_CHECKING:
    from collections.abc import Iterator

BIG = "x" * 2000

# Of what is not listed, a browser lets these through at any rate (the Fetch standard's "CORS-safelisted") or sets them
# itself; the rest says nothing to a client.
SENT_AT_ANY_RATE = {"user-agent"}
READ_AT_ANY_RATE = {"content-length", "content-type"}
MEANT_FOR_OTHERS = {"accept-encoding", "grpc-accept-encoding", "vary"}

allowed = {name.lower() for name in cors.ALLOW_HEADERS}
exposed = {name.lower() for name in cors.EXPOSE_HEADERS}


def answer(req: Any) -> Any:
    if req.msg.name == "fail":
        raise ConnectError(ConnectErrorCode.ABORTED, BIG)
    return reply(BIG)


def stream(req: Any) -> Iterator[Any]:
    yield answer(req)


def calls(protocol: str, codec: str) -> MemoryTransport:
    """What goes over the wire, and back, when all that browsers can call is called, with everything turned on."""
    transport = MemoryTransport(through_wsgi(wsgi(unary=answer, pure=answer, server=stream)))
    options: Any = {"protocol": protocol, "codec": codec, "send_compression": "gzip", "use_get": protocol == "connect"}
    with SyncClient("http://h", transport, **options) as client:
        for name in (BIG, "fail"):
            for method in (UNARY, PURE):
                client._caller.unary_output(method, ask(name), timeout_seconds=5)
            list(client._caller.server_stream_output(SERVER, ask(name), timeout_seconds=5))
    return transport


@pytest.mark.parametrize("codec", ["proto", "json"])
@pytest.mark.parametrize("protocol", ["connect", "grpc-web"])
def test_what_goes_over_the_wire(protocol: str, codec: str) -> None:
    transport = calls(protocol, codec)
    requests = [request for request, _ in transport.requests]
    assert len(requests) == 6
    sent = {name.lower() for request in requests for name, _ in request.headers}
    assert sent - SENT_AT_ANY_RATE <= allowed
    assert {request.method for request in requests} <= set(cors.ALLOW_METHODS)
    read = {name.lower() for response in transport.responses for name, _ in response.headers.items()}
    assert read - READ_AT_ANY_RATE - MEANT_FOR_OTHERS <= exposed
    # Or the above would say little.
    assert {"content-type", "connect-timeout-ms" if protocol == "connect" else "grpc-timeout"} <= sent
    assert {"content-encoding", "connect-content-encoding"} & read or "grpc-encoding" in read


def test_methods() -> None:
    app = wsgi(unary=answer, pure=answer)
    refused = call_wsgi(app, environ(PURE.path, REQUEST_METHOD="OPTIONS"))
    assert refused.status == 405
    assert set(refused.headers["allow"].split(", ")) == set(cors.ALLOW_METHODS)


def test_status_of_grpc_web() -> None:
    """An answer that has no body has its status here."""
    assert {"grpc-status", "grpc-message", "grpc-status-details-bin"} <= exposed


@pytest.mark.parametrize("names", [cors.ALLOW_HEADERS, cors.EXPOSE_HEADERS, cors.ALLOW_METHODS])
def test_names(names: tuple[str, ...]) -> None:
    """Fit to be joined into the value of a header, each once."""
    assert len({name.lower() for name in names}) == len(names)
    assert all(name.replace("-", "").isalnum() for name in names)
