"""The client side: what generated clients are made of, and their options.

The machinery, and the HTTP library under it, load when a client is made.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict

from connectrpc.cancel import CancelToken

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType
    from typing import Literal

    import aiohttp
    import urllib3
    from typing_extensions import Self, Unpack

    from connectrpc.client.aio import AsyncCaller
    from connectrpc.client.sync import SyncCaller
    from connectrpc.codec import Codec
    from connectrpc.compression import Compression
    from connectrpc.headers import HeaderInput
    from connectrpc.interceptors import AsyncInterceptor, Hooks, Interceptor
    from connectrpc.transports import AsyncTransport, SyncTransport
    from connectrpc.transports.base import AsyncHTTPClient, SyncHTTPClient

__all__ = ["AsyncClient", "CancelToken", "ClientOptions", "SyncClient"]


class ClientOptions(TypedDict, total=False):
    """The keyword arguments of generated clients; all of them are optional."""

    protocol: Literal["connect", "grpc", "grpc-web"]
    """The RPC protocol. By default ``"connect"``. gRPC needs an ``http_client`` with HTTP/2 and trailers."""

    codec: Literal["proto", "json"] | Codec
    """The encoding of messages. By default ``"proto"``."""

    send_compression: str | Compression | None
    """What requests are compressed with: a name or an object. By default, and for None, they are not."""

    accept_compression: Sequence[str | Compression] | None
    """The compressions that answers may have, the preferred one first. By default all that are installed."""

    compress_min_bytes: int
    """The size in bytes from which on a message is compressed. By default 1024."""

    read_max_bytes: int | None
    """The largest response message, in bytes, both as it is sent and after it was decompressed. By default 4 MiB; None
    for no limit. A larger one fails the call with ``resource_exhausted``."""

    send_max_bytes: int | None
    """The largest request message, in bytes before it is compressed. By default there is no limit. A larger one fails
    the call with ``resource_exhausted``, and is not sent."""

    use_get: bool
    """Call methods that are marked ``NO_SIDE_EFFECTS`` by GET, so that HTTP caches can answer. By default they are
    called by POST as all others. Only the Connect protocol has it."""

    get_url_max_bytes: int
    """The longest URL of a GET; a call whose message makes it longer goes by POST. By default 4000."""

    timeout_seconds: float | None
    """The deadline of calls that are not given one of their own. By default they may take for ever."""

    connect_timeout_seconds: float | None
    """The longest that making a connection may take, with TLS; whatever the deadline, and instead of the HTTP client's
    own limit. A call that has none by then fails with ``unavailable``, and was not sent. By default the HTTP client's
    own limit stands. With an ``aiohttp.ClientSession`` whose connector limits the number of connections, as it does by
    default, each address of the server may take so long, and neither resolving its name nor a proxy's answer is
    counted."""

    open_timeout_seconds: float | None
    """The longest that a server stream may take to open: until the head of its answer is there. It is for streams that
    may last for ever, but not begin for ever. One that is not open by then fails with ``deadline_exceeded``. Calls
    whose requests are streams are not concerned: their answers may rightly wait for the requests. By default there is
    no such limit."""

    interceptors: Sequence[Interceptor | AsyncInterceptor | Hooks] | None
    """What stands around every call, the first outermost; see ``connectrpc.interceptors``. By default nothing."""

    extra_headers: HeaderInput | None
    """Headers that every request carries, unless a call gives others of the same name."""


class SyncClient:
    """What every generated synchronous client is. May be shared by any number of threads, and survives ``fork()``.

    Args:
        base_url: where the service is: scheme, host, and a path if it is served below one.
        http_client: the ``urllib3.PoolManager``, ``httpx.Client``, ``pyqwest.SyncClient`` or transport to use. It stays
            the caller's: it is not closed here. None makes one of its own, over urllib3, which ``close()`` closes.
        options: see ``ClientOptions``.

    Raises:
        TypeError: an option is unknown, or ``http_client`` is nothing that can be used.
        ValueError: ``base_url`` or an option has a value that makes no sense.

    Every method takes, beside its request:

    - ``extra_headers``: headers for this call; ``ValueError`` for those that belong to the protocol.
    - ``timeout_seconds``: the deadline of the whole call, streams included. Zero and less fail at once.
    - ``cancel``: a ``CancelToken``, by which another thread can end the call.

    A failed call raises ``ConnectError``. The ``call_`` form of a method gives the outcome with its headers and
    trailers, and does not raise for a failed call.
    """

    def __init__(
        self,
        base_url: str,
        http_client: urllib3.PoolManager | SyncHTTPClient | SyncTransport | None = None,
        **options: Unpack[ClientOptions],
    ) -> None:
        from connectrpc.client.sync import SyncCaller

        self._caller: SyncCaller = SyncCaller(base_url, http_client, options)

    @property
    def base_url(self) -> str:
        """Where the service is, without a slash at the end."""
        return self._caller.base_url

    def close(self) -> None:
        """Close the connections, if they are the client's own. Safe to call again; a later call makes new ones."""
        self._caller.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class AsyncClient:
    """What every generated asynchronous client is. For any number of tasks of one event loop.

    Args:
        base_url: where the service is: scheme, host, and a path if it is served below one.
        http_client: the ``aiohttp.ClientSession``, ``httpx.AsyncClient``, ``pyqwest.Client`` or transport to use, such
            as an ``AsyncPycurlTransport``. It stays the caller's: it is not closed here. None makes one of its own,
            over aiohttp, in each event loop where it is used, which ``aclose()`` closes; such a client may be used in
            any number of loops, also of several threads at once.
        options: see ``ClientOptions``.

    Raises:
        TypeError: an option is unknown, or ``http_client`` is nothing that can be used.
        ValueError: ``base_url`` or an option has a value that makes no sense.

    Every method takes, beside its request:

    - ``extra_headers``: headers for this call; ``ValueError`` for those that belong to the protocol.
    - ``timeout_seconds``: the deadline of the whole call, streams included. Zero and less fail at once.

    A failed call raises ``ConnectError``. The ``call_`` form of a method gives the outcome with its headers and
    trailers, and does not raise for a failed call. Cancelling the task cancels the call: ``CancelledError`` passes
    through untouched, and the connection is given up.
    """

    def __init__(
        self,
        base_url: str,
        http_client: aiohttp.ClientSession | AsyncHTTPClient | AsyncTransport | None = None,
        **options: Unpack[ClientOptions],
    ) -> None:
        from connectrpc.client.aio import AsyncCaller

        self._caller: AsyncCaller = AsyncCaller(base_url, http_client, options)

    @property
    def base_url(self) -> str:
        """Where the service is, without a slash at the end."""
        return self._caller.base_url

    async def aclose(self) -> None:
        """Close the connections, if they are the client's own. Safe to call again; a later call makes new ones."""
        await self._caller.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()
