"""Synchronous and asynchronous clients behind one face, so that one test holds both to the same."""

from __future__ import annotations

import abc
import asyncio
from typing import TYPE_CHECKING, Any, NamedTuple

from typing_extensions import Self

from integration_pb2 import CountRequest, EchoRequest, EchoResponse
from integration_pb2_connect import AsyncProbeServiceClient, ProbeServiceClient

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Coroutine, Iterable
    from types import TracebackType
    from typing import TypeVar

    from multidict import CIMultiDict

    from connectrpc.errors import ConnectError
    from connectrpc.headers import HeaderInput
    from connectrpc.streams import AsyncStreamOutput, StreamOutput
    from connectrpc.unary import UnaryOutput

    from integration_pb2 import SumResponse

    T = TypeVar("T")

__all__ = ["COLOURS", "AsyncColour", "Colour", "Streamed", "SyncColour"]


class Streamed(NamedTuple):
    """A streamed answer that is over."""

    messages: list[Any]
    error: ConnectError | None
    headers: CIMultiDict[str]
    trailers: CIMultiDict[str]


class Colour(abc.ABC):
    """A client. Every method waits for the end of the call that it makes."""

    @abc.abstractmethod
    def __init__(self, base_url: str, **options: Any) -> None: ...

    @property
    @abc.abstractmethod
    def base_url(self) -> str: ...

    @abc.abstractmethod
    def echo(self, req: Any, headers: HeaderInput | None = None, timeout: float | None = None) -> EchoResponse: ...

    @abc.abstractmethod
    def call_echo(
        self, req: Any, headers: HeaderInput | None = None, timeout: float | None = None
    ) -> UnaryOutput[EchoResponse]: ...

    @abc.abstractmethod
    def call_look(self, req: Any, headers: HeaderInput | None = None) -> UnaryOutput[EchoResponse]: ...

    @abc.abstractmethod
    def call_count(
        self, req: Any, headers: HeaderInput | None = None, timeout: float | None = None, *, most: int | None = None
    ) -> Streamed:
        """Read all of the stream, or leave after the first ``most`` messages."""

    @abc.abstractmethod
    def count(self, req: Any, headers: HeaderInput | None = None, *, most: int | None = None) -> list[Any]: ...

    @abc.abstractmethod
    def sum(self, reqs: Any, headers: HeaderInput | None = None) -> SumResponse: ...

    @abc.abstractmethod
    def call_sum(self, reqs: Any, headers: HeaderInput | None = None) -> UnaryOutput[SumResponse]: ...

    @abc.abstractmethod
    def call_chat(self, reqs: Any, headers: HeaderInput | None = None) -> Streamed: ...

    @abc.abstractmethod
    def chat(self, reqs: Any) -> list[Any]: ...

    @abc.abstractmethod
    def close(self) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def text(self, text: str = "hi") -> str:
        """What comes back from an ordinary call."""
        return self.echo(EchoRequest(text=text)).request.text

    def numbers(self, up_to: int) -> list[int]:
        """What comes back from an ordinary stream."""
        return [message.number for message in self.count(CountRequest(up_to=up_to))]


class SyncColour(Colour):
    def __init__(self, base_url: str, **options: Any) -> None:
        self.client = ProbeServiceClient(base_url, **options)

    @property
    def base_url(self) -> str:
        return self.client.base_url

    def echo(self, req: Any, headers: HeaderInput | None = None, timeout: float | None = None) -> EchoResponse:
        return self.client.echo(req, headers, timeout)

    def call_echo(
        self, req: Any, headers: HeaderInput | None = None, timeout: float | None = None
    ) -> UnaryOutput[EchoResponse]:
        return self.client.call_echo(req, headers, timeout)

    def call_look(self, req: Any, headers: HeaderInput | None = None) -> UnaryOutput[EchoResponse]:
        return self.client.call_look(req, headers)

    def call_count(
        self, req: Any, headers: HeaderInput | None = None, timeout: float | None = None, *, most: int | None = None
    ) -> Streamed:
        return self._read(self.client.call_count(req, headers, timeout), most)

    def count(self, req: Any, headers: HeaderInput | None = None, *, most: int | None = None) -> list[Any]:
        generator = self.client.count(req, headers)
        if most is None:
            return list(generator)
        found = [message for _, message in zip(range(most), generator, strict=False)]
        generator.close()
        return found

    def sum(self, reqs: Any, headers: HeaderInput | None = None) -> SumResponse:
        return self.client.sum(reqs, headers)

    def call_sum(self, reqs: Any, headers: HeaderInput | None = None) -> UnaryOutput[SumResponse]:
        return self.client.call_sum(reqs, headers)

    def call_chat(self, reqs: Any, headers: HeaderInput | None = None) -> Streamed:
        return self._read(self.client.call_chat(reqs, headers), None)

    def chat(self, reqs: Any) -> list[Any]:
        return list(self.client.chat(reqs))

    def close(self) -> None:
        self.client.close()

    @staticmethod
    def _read(stream: StreamOutput[Any], most: int | None) -> Streamed:
        messages: list[Any] = []
        with stream:
            while most is None or len(messages) < most:
                try:
                    messages.append(next(stream))
                except StopIteration:
                    break
        return Streamed(messages, stream.error(), stream.response_headers(), stream.response_trailers())


class AsyncColour(Colour):
    def __init__(self, base_url: str, **options: Any) -> None:
        self.client = AsyncProbeServiceClient(base_url, **options)
        self._loop = asyncio.new_event_loop()

    def run(self, call: Coroutine[Any, Any, T]) -> T:
        return self._loop.run_until_complete(call)

    @property
    def base_url(self) -> str:
        return self.client.base_url

    def echo(self, req: Any, headers: HeaderInput | None = None, timeout: float | None = None) -> EchoResponse:
        return self.run(self.client.echo(req, headers, timeout))

    def call_echo(
        self, req: Any, headers: HeaderInput | None = None, timeout: float | None = None
    ) -> UnaryOutput[EchoResponse]:
        return self.run(self.client.call_echo(req, headers, timeout))

    def call_look(self, req: Any, headers: HeaderInput | None = None) -> UnaryOutput[EchoResponse]:
        return self.run(self.client.call_look(req, headers))

    def call_count(
        self, req: Any, headers: HeaderInput | None = None, timeout: float | None = None, *, most: int | None = None
    ) -> Streamed:
        async def read() -> Streamed:
            async with self.client.call_count(req, headers, timeout) as stream:
                return await self._read(stream, most)

        return self.run(read())

    def count(self, req: Any, headers: HeaderInput | None = None, *, most: int | None = None) -> list[Any]:
        async def read() -> list[Any]:
            found: list[Any] = []
            generator = self.client.count(req, headers)
            if most != 0:
                async for message in generator:
                    found.append(message)
                    if len(found) == most:
                        break
            await generator.aclose()
            return found

        return self.run(read())

    def sum(self, reqs: Any, headers: HeaderInput | None = None) -> SumResponse:
        return self.run(self.client.sum(reqs, headers))

    def call_sum(self, reqs: Any, headers: HeaderInput | None = None) -> UnaryOutput[SumResponse]:
        return self.run(self.client.call_sum(reqs, headers))

    def call_chat(self, reqs: AsyncIterable[Any] | Iterable[Any], headers: HeaderInput | None = None) -> Streamed:
        async def read() -> Streamed:
            return await self._read(await self.client.call_chat(reqs, headers), None)

        return self.run(read())

    def chat(self, reqs: Any) -> list[Any]:
        async def read() -> list[Any]:
            return [message async for message in self.client.chat(reqs)]

        return self.run(read())

    def close(self) -> None:
        if not self._loop.is_closed():
            self.run(self.client.aclose())
            self.run(asyncio.sleep(0.01))
            self.run(self._loop.shutdown_asyncgens())
            self._loop.close()

    @staticmethod
    async def _read(stream: AsyncStreamOutput[Any], most: int | None) -> Streamed:
        messages: list[Any] = []
        async with stream:
            while most is None or len(messages) < most:
                try:
                    messages.append(await anext(stream))
                except StopAsyncIteration:
                    break
        return Streamed(messages, stream.error(), stream.response_headers(), stream.response_trailers())


COLOURS: dict[str, type[Colour]] = {"sync": SyncColour, "async": AsyncColour}
