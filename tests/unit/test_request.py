"""What handlers take and give."""

from __future__ import annotations

import asyncio
import copy
from typing import TYPE_CHECKING, Any

import pytest
from multidict import CIMultiDict, MultiDict

from connectrpc.deadline import Deadline
from connectrpc.errors import ConnectError, ConnectErrorCode
from connectrpc.request import AsyncClientStream, ClientRequest, ClientStream, Peer, ServerResponse, ServerStream
from harness import BIDI, UNARY, ask, reply

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from google.protobuf.source_context_pb2 import SourceContext

    from connectrpc.headers import HeaderInput
    from connectrpc.method import Method


class Info:
    """A call that counts how often it is asked."""

    def __init__(self, method: Method[Any, Any]) -> None:
        self.method = method
        self.deadline = Deadline(5000)
        self.asked = 0

    def request_headers(self) -> CIMultiDict[str]:
        self.asked += 1
        return CIMultiDict({"X-Name": "v"})

    def peer(self) -> Peer:
        self.asked += 1
        return Peer("192.0.2.1:5", "connect")


def test_request() -> None:
    info = Info(UNARY)
    request = ClientRequest(ask("a"), info)
    assert request.msg == ask("a")
    assert request.method is UNARY
    assert request.timeout is info.deadline
    assert info.asked == 0, "headers are built when they are wanted"
    assert request.headers["x-name"] == "v"
    assert (request.peer.address, request.peer.protocol) == ("192.0.2.1:5", "connect")
    assert request.trailers == CIMultiDict()
    assert request.trailers is request.trailers
    assert UNARY.path in repr(request)
    assert "192.0.2.1:5" in repr(request.peer)


def test_stream() -> None:
    info = Info(BIDI)
    stream = ClientStream(iter([ask("a"), ask("b")]), info)
    assert (stream.method, stream.timeout) == (BIDI, info.deadline)
    assert stream.headers["x-name"] == "v"
    assert stream.peer.address == "192.0.2.1:5"
    assert BIDI.path in repr(stream)
    assert [message.name for message in stream] == ["a", "b"]
    assert list(stream) == [], "it can be iterated once"


def test_async_stream() -> None:
    async def messages() -> AsyncIterator[Any]:
        yield ask("a")
        yield ask("b")

    async def main() -> None:
        info = Info(BIDI)
        stream = AsyncClientStream(messages(), info)
        assert (stream.method, stream.timeout) == (BIDI, info.deadline)
        assert stream.headers["x-name"] == "v"
        assert BIDI.path in repr(stream)
        assert [message.name async for message in stream] == ["a", "b"]
        assert [message async for message in stream] == []

    asyncio.run(main())


def test_response_of_a_message() -> None:
    message = reply("a")
    response = ServerResponse(message, {"a": "1"}, {"b": ["2", "3"]})
    assert response.msg is message
    assert response.error is None
    assert response.headers == CIMultiDict(a="1")
    assert response.trailers.getall("B") == ["2", "3"]


def test_response_of_an_error() -> None:
    error = ConnectError(ConnectErrorCode.ABORTED, "m")
    response: ServerResponse[SourceContext] = ServerResponse(error)
    assert response.msg is None
    assert response.error is error
    assert response.headers == CIMultiDict()
    assert response.trailers == CIMultiDict()


@pytest.mark.parametrize(
    "given",
    [
        None,
        {},
        {"A": "1"},
        {"A": ["1", "2"]},
        MultiDict([("A", "1"), ("a", "2")]),
        CIMultiDict([("A", "1"), ("a", "2")]),
    ],
)
@pytest.mark.parametrize("kind", [ServerResponse, ServerStream])
def test_metadata_may_be_added_later(kind: type[Any], given: HeaderInput | None) -> None:
    answer = kind([], given, copy.copy(given))
    before = list(answer.headers.items())
    answer.headers.add("X-New", "h")
    answer.trailers["x-new"] = "t"
    assert type(answer.headers) is CIMultiDict
    assert type(answer.trailers) is CIMultiDict
    assert answer.trailers["X-New"] == "t"
    assert list(answer.headers.items()) == [*before, ("X-New", "h")]


def test_stream_answer() -> None:
    messages = [reply("a")]
    stream = ServerStream(messages, {"a": "1"})
    assert stream.msgs is messages
    assert stream.headers["A"] == "1"
    assert stream.trailers == CIMultiDict()
