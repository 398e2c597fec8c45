"""The options of a client, and what they are turned into when it is made. The same for both colours."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from connectrpc import __version__, compression
from connectrpc._core.call import DEFAULT_COMPRESS_MIN_BYTES, DEFAULT_READ_MAX_BYTES, ClientSettings, check_option_names
from connectrpc._core.chain import checked_interceptors
from connectrpc._core.connect_get import ConnectGetClient
from connectrpc._core.connect_stream import ConnectStreamClient
from connectrpc._core.connect_unary import ConnectUnaryClient
from connectrpc._core.grpc import GrpcStreamClient, GrpcUnaryClient
from connectrpc._core.grpc_web import GrpcWebStreamClient, GrpcWebUnaryClient
from connectrpc._core.metadata import checked
from connectrpc._core.timeout import check_seconds, timeout_ms
from connectrpc.client import ClientOptions
from connectrpc.codec import JsonCodec, ProtoCodec
from connectrpc.deadline import NO_DEADLINE, Deadline
from connectrpc.method import IdempotencyLevel, MethodKind

if TYPE_CHECKING:
    from collections.abc import Callable

    from connectrpc._core.call import StreamClient, UnaryClient
    from connectrpc.codec import Codec
    from connectrpc.method import Method

    _MakeUnary = Callable[[Method[Any, Any], ClientSettings], UnaryClient]
    _MakeStream = Callable[[Method[Any, Any], ClientSettings], StreamClient]

__all__ = ["Procedures"]

_DEFAULT_GET_URL_MAX_BYTES = 4000  # gunicorn takes request lines of 4094 bytes; RFC 9110 section 4.1 hopes for 8000

_USER_AGENT = f"connect-python/{__version__} (Python/{sys.version_info[0]}.{sys.version_info[1]})"

_PROTOCOLS: dict[str, tuple[_MakeUnary, _MakeStream]] = {
    "connect": (ConnectUnaryClient, ConnectStreamClient),
    "grpc": (GrpcUnaryClient, GrpcStreamClient),
    "grpc-web": (GrpcWebUnaryClient, GrpcWebStreamClient),
}

_CODECS: dict[str, Callable[[], Codec]] = {"proto": ProtoCodec, "json": JsonCodec}


class Procedures:
    """The methods of a service as one client calls them, made as they are first called.

    Attributes:
        base_url: where the service is, without a slash at the end.
        protocol: which is spoken.
        connect_timeout: how long connecting may take, in seconds, or None.
        interceptors: what stands around the calls.
    """

    def __init__(self, base_url: str, options: ClientOptions, *, asynchronous: bool) -> None:
        check_option_names(options, ClientOptions)
        self.protocol = options.get("protocol", "connect")
        if self.protocol not in _PROTOCOLS:
            raise ValueError(f"protocol {self.protocol!r} is not one that is spoken here: {', '.join(_PROTOCOLS)}")
        self.base_url = _checked_base_url(base_url)
        self._unary_client, self._stream_client = _PROTOCOLS[self.protocol]
        self._use_get = options.get("use_get", False)
        if self._use_get and self.protocol != "connect":
            raise ValueError(f"use_get is for the Connect protocol: {self.protocol} always calls by POST")
        self._default_timeout = options.get("timeout_seconds")
        if self._default_timeout is not None:
            check_seconds("timeout_seconds", self._default_timeout)
        connect_timeout = options.get("connect_timeout_seconds")
        if connect_timeout is not None:
            check_seconds("connect_timeout_seconds", connect_timeout)
            connect_timeout = timeout_ms(connect_timeout) / 1000  # as with deadlines, infinity is months
        self.connect_timeout = connect_timeout
        self._open_timeout = options.get("open_timeout_seconds")
        if self._open_timeout is not None:
            check_seconds("open_timeout_seconds", self._open_timeout)
        self.interceptors = checked_interceptors(options.get("interceptors"), asynchronous=asynchronous)
        send = options.get("send_compression")
        extra_headers = options.get("extra_headers")
        if extra_headers:
            checked(extra_headers)  # a client that could never call is refused now
        self._settings = ClientSettings(
            base_url=self.base_url,
            codec=_codec(options.get("codec", "proto")),
            send_compression=next(iter(compression.resolve([send]).values()), None) if send is not None else None,
            accept_compressions=compression.resolve(options.get("accept_compression")),
            compress_min_bytes=options.get("compress_min_bytes", DEFAULT_COMPRESS_MIN_BYTES),
            read_max_bytes=options.get("read_max_bytes", DEFAULT_READ_MAX_BYTES),
            send_max_bytes=options.get("send_max_bytes"),
            get_url_max_bytes=options.get("get_url_max_bytes", _DEFAULT_GET_URL_MAX_BYTES),
            extra_headers=extra_headers,
            user_agent=_USER_AGENT,
        )
        if self._use_get and not hasattr(self._settings.codec, "encode_deterministic"):
            raise ValueError(
                f"use_get needs a codec with encode_deterministic(), which {self._settings.codec.name} has not"
            )
        # Threads may fill these at the same time: they would put in equal things.
        self._unary: dict[Method[Any, Any], UnaryClient] = {}
        self._streams: dict[Method[Any, Any], StreamClient] = {}

    def check_transport(self, transport: object) -> None:
        """Refuse a transport that cannot carry the protocol.

        Raises:
            ValueError: it is gRPC, and the transport has no trailers.
        """
        if self.protocol == "grpc" and not getattr(transport, "has_trailers", False):
            raise ValueError(
                "gRPC needs HTTP/2 and its trailers, which this HTTP client has not: give a PycurlTransport, an "
                "AsyncPycurlTransport or a pyqwest client as http_client, or take the protocol 'grpc-web' or 'connect'"
            )

    def unary(self, method: Method[Any, Any]) -> UnaryClient:
        """How a method without streams is called."""
        found = self._unary.get(method)
        if found is None:
            by_get = self._use_get and method.idempotency_level is IdempotencyLevel.NO_SIDE_EFFECTS
            make = ConnectGetClient if by_get else self._unary_client
            found = self._unary[method] = make(method, self._settings)
        return found

    def stream(self, method: Method[Any, Any]) -> StreamClient:
        """How a method with streams is called."""
        found = self._streams.get(method)
        if found is None:
            found = self._streams[method] = self._stream_client(method, self._settings)
        return found

    def deadline(self, timeout_seconds: float | None) -> Deadline:
        """The deadline of a call that begins now.

        Raises:
            ValueError: the timeout is not a number.
            ConnectError: ``deadline_exceeded``: it is zero or less.
        """
        if timeout_seconds is None:
            timeout_seconds = self._default_timeout
            if timeout_seconds is None:
                return NO_DEADLINE
        return Deadline(timeout_ms(timeout_seconds))

    def timeout_ms(self, deadline: Deadline) -> int | None:
        """What the server is told of a deadline: the milliseconds that are left."""
        # Nothing but interceptors takes time before a request is made.
        return deadline.remaining_ms() if self.interceptors else deadline.timeout_ms

    def opening(self, method: Method[Any, Any], deadline: Deadline) -> Deadline:
        """The deadline until which the head of an answer has to be there: the call's own, or an earlier one."""
        if self._open_timeout is None or method.kind is not MethodKind.SERVER_STREAM:
            return deadline
        left = deadline.remaining()
        if left is not None and left <= self._open_timeout:
            return deadline
        return Deadline(timeout_ms(self._open_timeout))


def _codec(given: str | Codec) -> Codec:
    if not isinstance(given, str):
        if not all(hasattr(given, name) for name in ("name", "encode", "decode")):
            raise TypeError(f"codec {given!r} is neither a name nor has the shape of a codec")
        return given
    if given not in _CODECS:
        raise ValueError(f"no codec is called {given!r}: there are {' and '.join(_CODECS)}, or give an object")
    return _CODECS[given]()


def _checked_base_url(base_url: str) -> str:
    parts = urlsplit(base_url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"base_url {base_url!r} must be like http://host or https://host:port/path")
    try:
        _ = parts.port
    except ValueError as error:
        raise ValueError(f"base_url {base_url!r} has no valid port") from error
    if parts.username is not None or parts.password is not None:
        raise ValueError("base_url has a user: send an authorization header, with extra_headers or an interceptor")
    if any(character.isspace() or not character.isprintable() for character in base_url):
        raise ValueError(f"base_url {base_url!r} has characters that no URL has")
    if "?" in base_url or "#" in base_url:  # though nothing be behind it: what is called would be
        raise ValueError(f"base_url {base_url!r} must have neither a query nor a fragment")
    return base_url.rstrip("/")
