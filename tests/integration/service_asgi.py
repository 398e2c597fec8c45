"""``service:app`` once more, for ASGI servers: ``service_asgi:app``. It does as the other one, request for request."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from connectrpc.errors import ConnectError, ConnectErrorCode
from connectrpc.server import AsyncClientStream, ClientRequest, ServerResponse, asgi_app

from integration_pb2 import (
    ChatRequest,
    ChatResponse,
    CountRequest,
    CountResponse,
    EchoRequest,
    EchoResponse,
    NotesRequest,
    NotesResponse,
    PingRequest,
    PingResponse,
    SumRequest,
    SumResponse,
)
from integration_pb2_connect import asgi_other_service, asgi_probe_service
from service import MISDEED, SECRET, add, answer_count, begin_sum, echo, name_and_delay, noted

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

__all__ = ["app", "probe"]


class AsyncProbe:
    """``service.Probe``, async."""

    async def echo(self, req: ClientRequest[EchoRequest]) -> ServerResponse[EchoResponse] | EchoResponse:
        if req.msg.delay_ms:
            await _sleep(req.msg.delay_ms / 1000, req.msg.text)
        return echo(req)

    look = echo

    def count(self, req: ClientRequest[CountRequest]) -> Any:
        return answer_count(req.msg, _count)

    async def sum(self, req: AsyncClientStream[SumRequest]) -> SumResponse:
        response = begin_sum(req.headers)
        name, delay = name_and_delay(req.headers)
        noted.add(f"{name}: begin")
        try:
            if not response.sum:
                async for msg in req:
                    if not add(response, msg, name):
                        break
                    if delay:
                        await _sleep(delay, name)
        finally:
            noted.add(f"{name}: end")
        return response

    async def chat(self, req: AsyncClientStream[ChatRequest]) -> AsyncIterator[ChatResponse | ConnectError]:
        misdeed = req.headers.get(MISDEED)
        name, delay = name_and_delay(req.headers)
        if misdeed == "error at once":
            raise ConnectError(ConnectErrorCode.NOT_FOUND, "at once")
        noted.add(f"{name}: begin")
        try:
            if misdeed == "greet":
                yield ChatResponse(text="hello")
            async for msg in req:
                if msg.misdeed == "raise":
                    raise ValueError(SECRET)
                if msg.misdeed == "error":
                    yield ConnectError(ConnectErrorCode.NOT_FOUND, "enough")
                if msg.misdeed == "enough":
                    return
                yield ChatResponse(text=msg.text)
                if delay:
                    await _sleep(delay, name)
        finally:
            noted.add(f"{name}: end")

    async def notes(self, req: ClientRequest[NotesRequest]) -> NotesResponse:
        return NotesResponse(notes=noted.take())


async def _sleep(seconds: float, name: str) -> None:
    """Sleep, and note when that was not for long enough."""
    try:
        await asyncio.sleep(seconds)
    except asyncio.CancelledError:
        noted.add(f"{name}: cancelled")
        raise


async def _count(msg: CountRequest) -> AsyncIterator[CountResponse | ConnectError]:
    name = msg.name or "count"
    noted.add(f"{name}: begin")
    try:
        if msg.misdeed == "raise first":
            raise ValueError(SECRET)
        if msg.first_delay_ms:
            await _sleep(msg.first_delay_ms / 1000, name)
        for number in range(1, msg.up_to + 1):
            noted.reached[name] = number
            yield CountResponse(number=number, padding=bytes(msg.padding))
            if msg.delay_ms:
                await asyncio.sleep(msg.delay_ms / 1000)
        if msg.misdeed == "raise last":
            raise ValueError(SECRET)
        if msg.misdeed == "error last":
            yield ConnectError(ConnectErrorCode.NOT_FOUND, "enough", [PingRequest(text="detail")])
            noted.add(f"{name}: went on after its error")
        if msg.misdeed == "wrong type":
            yield PingResponse()  # type: ignore[misc]
        if msg.misdeed == "stop iteration":
            raise RuntimeError(SECRET) from StopIteration(SECRET)
    finally:
        noted.add(f"{name}: end")
        if msg.misdeed == "raise finally":
            raise ValueError(SECRET)


class AsyncOther:
    """``service.Other``, async."""

    async def ping(self, req: ClientRequest[PingRequest]) -> PingResponse:
        return PingResponse(text=req.msg.text)


probe: Any = AsyncProbe()
"""Of no type, as the other one."""

_plain = asgi_app(asgi_probe_service(probe), asgi_other_service(AsyncOther()))
_mounts = {
    "/mounted": asgi_probe_service(probe),
    "/deep/er": _plain,
    "/strict": asgi_probe_service(probe, require_connect_protocol_header=True),
    "/hasty": asgi_probe_service(probe, max_timeout_seconds=0.2),
    "/small": asgi_probe_service(probe, read_max_bytes=1000),
}
_prefixed = asgi_probe_service(probe, prefix="/prefixed/")


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """A framework's dispatcher in small."""
    path = scope.get("path", "")
    for mount, service in _mounts.items():
        if path.startswith(mount + "/"):
            # As Starlette does it: the path stays whole.
            await service({**scope, "root_path": scope.get("root_path", "") + mount}, receive, send)
            return
    if path.startswith("/prefixed/"):
        await _prefixed(scope, receive, send)
    elif path == "/hello":
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")]})
        await send({"type": "http.response.body", "body": b"hello"})
    else:
        await _plain(scope, receive, send)
