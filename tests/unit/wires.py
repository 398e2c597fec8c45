"""The real HTTP libraries over connections made of memory: what they send is kept, what they get stands in a script."""

from __future__ import annotations

import asyncio
import io
from typing import TYPE_CHECKING, Any

import aiohttp
import urllib3
from multidict import CIMultiDict
from urllib3.connection import HTTPConnection

from harness import pieces

if TYPE_CHECKING:
    from collections.abc import Iterable


class Reply:
    """What a server does about one request.

    Args:
        data: the bytes of its answer, as they go over the wire.
        then: what becomes of the connection after that: it is kept ("keep"), ended ("end") or broken ("reset").
        early: whether the answer comes as soon as the request's head is there.
    """

    def __init__(self, data: bytes, then: str = "keep", *, early: bool = False) -> None:
        self.data = data
        self.then = then
        self.early = early


class Sent:
    """A request as it went over the wire."""

    def __init__(self, data: bytes) -> None:
        head, _, rest = data.partition(b"\r\n\r\n")
        self.line, *fields = head.decode("latin-1").split("\r\n")
        pairs = [(name, value.strip()) for name, _, value in (field.partition(":") for field in fields)]
        self.headers: CIMultiDict[str] = CIMultiDict(pairs)
        self.body, self.complete = rest, True
        if self.headers.get("transfer-encoding") == "chunked":
            self.body, self.complete = dechunked(rest)
        else:
            self.complete = len(rest) == int(self.headers.get("content-length", "0"))

    def joined(self) -> dict[str, str]:
        """The headers, those that are repeated as one list (RFC 9110 section 5.3)."""
        names = {name.lower() for name in self.headers}
        return {name: ", ".join(self.headers.getall(name)) for name in sorted(names)}


def dechunked(data: bytes) -> tuple[bytes, bool]:
    """What chunks hold, and whether the last of them is there."""
    body = b""
    while True:
        size, newline, data = data.partition(b"\r\n")
        if not newline:
            return body, False
        length = int(size.partition(b";")[0], 16)
        if not length:
            return body, data == b"\r\n"
        body += data[:length]
        data = data[length + 2 :]


class Network:
    """The server's side of all connections.

    Args:
        replies: one for each request; a list for each connection.
        size: in pieces of how many bytes answers come; 0 is whole.
    """

    def __init__(self, replies: Iterable[Reply], size: int = 0) -> None:
        self.replies = list(replies)
        self.size = size
        self.connections = 0
        self.raw: list[bytearray] = []

    def sent(self) -> list[Sent]:
        return [Sent(bytes(data)) for data in self.raw]

    def manager(self, **options: Any) -> urllib3.PoolManager:
        """What a synchronous client needs to speak to this network."""
        network = self

        class Connection(HTTPConnection):
            def _new_conn(self) -> Any:
                network.connections += 1
                return Socket(network)

            @property
            def is_connected(self) -> bool:
                return self.sock is not None

        class Pool(urllib3.HTTPConnectionPool):
            ConnectionCls = Connection

        manager = urllib3.PoolManager(**options)
        manager.pool_classes_by_scheme = {"http": Pool}
        return manager

    def session(self, **options: Any) -> aiohttp.ClientSession:
        """What an asynchronous client needs to speak to this network."""
        return aiohttp.ClientSession(connector=Connector(self), cookie_jar=aiohttp.DummyCookieJar(), **options)


class Socket:
    """As ``socket.socket``."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._answering = True  # the request that is to come is a new one

    def sendall(self, data: bytes) -> None:
        if self._answering:
            self._answering = False
            self._network.raw.append(bytearray())
        self._network.raw[-1] += data

    def makefile(self, *args: object) -> io.BufferedReader:
        self._answering = True
        return io.BufferedReader(Reader(self._network.replies.pop(0), self._network.size), 64)

    def settimeout(self, timeout: float | None) -> None: ...
    def setsockopt(self, *args: object) -> None: ...
    def shutdown(self, how: int) -> None: ...
    def close(self) -> None: ...


class Reader(io.RawIOBase):
    def __init__(self, reply: Reply, size: int) -> None:
        self._data = io.BytesIO(reply.data)
        self._then = reply.then
        self._size = size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        chunk = self._data.read(min(len(buffer), self._size or len(buffer)))
        if not chunk and self._then == "reset":
            raise ConnectionResetError(104, "Connection reset by peer")
        if not chunk and self._then == "keep":
            raise AssertionError("the script has no more, and the client reads on")
        buffer[: len(chunk)] = chunk
        return len(chunk)


class Connector(aiohttp.BaseConnector):
    """Connections that are made at once, and lead nowhere."""

    def __init__(self, network: Network) -> None:
        super().__init__(limit=0)
        self._network = network

    async def _create_connection(self, *args: Any, **kwargs: Any) -> Any:
        self._network.connections += 1
        protocol = self._factory()
        protocol.connection_made(Wire(self._network, protocol))
        return protocol


class Wire(asyncio.Transport):
    """A connection of an event loop's."""

    def __init__(self, network: Network, protocol: Any) -> None:
        super().__init__()
        self._network = network
        self._protocol = protocol
        self._loop = asyncio.get_running_loop()
        self._closed = False
        self._paused = False
        self._raw: bytearray | None = None  # of the request that comes, or came last
        self._reply: Reply | None = None
        self._left: list[bytes] = []

    def write(self, data: Any) -> None:
        if self._raw is None or Sent(bytes(self._raw)).complete:
            self._raw = bytearray()
            self._network.raw.append(self._raw)
        raw = self._raw
        raw += bytes(data)
        if self._reply is None and b"\r\n\r\n" in raw:
            early = self._network.replies[0].early
            if early or Sent(bytes(raw)).complete:
                self._reply = self._network.replies.pop(0)
                self._left = [piece for piece in pieces(self._reply.data, self._network.size) if piece]
                self._loop.call_soon(self._feed)

    def writelines(self, list_of_data: Iterable[Any]) -> None:
        self.write(b"".join(map(bytes, list_of_data)))

    def _feed(self) -> None:
        if self._closed or self._paused or self._reply is None:
            return
        if not self._left:
            self._lose(ConnectionResetError(104, "Connection reset by peer") if self._reply.then == "reset" else None)
            return
        piece = self._left.pop(0)
        if not self._left and self._reply.then == "keep":
            self._reply = None  # now: the next request may be written any moment
        else:
            self._loop.call_soon(self._feed)
        self._protocol.data_received(piece)

    def _lose(self, error: Exception | None) -> None:
        if not self._closed:
            self._closed = True
            self._loop.call_soon(self._protocol.connection_lost, error)

    def close(self) -> None:
        self._lose(None)

    def abort(self) -> None:
        self._lose(None)

    def is_closing(self) -> bool:
        return self._closed

    def pause_reading(self) -> None:
        self._paused = True

    def resume_reading(self) -> None:
        if self._paused:
            self._paused = False
            self._loop.call_soon(self._feed)

    def is_reading(self) -> bool:
        return not self._paused

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None: ...

    def get_write_buffer_size(self) -> int:
        return 0
