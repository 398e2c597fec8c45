"""One call, from either side: what every protocol has to be able to do, and the rules that all of them share."""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from connectrpc._core.http import WholeResponse
from connectrpc._core.message import IDENTITY, encoder_of
from connectrpc.deadline import NO_DEADLINE, Deadline
from connectrpc.errors import ConnectError, ConnectErrorCode
from connectrpc.request import Peer, ServerResponse, ServerStream

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from multidict import CIMultiDict

    from connectrpc._core.http import HeaderList, HeaderView, HTTPRequest, RequestHead, ResponseHead
    from connectrpc._core.metadata import Metadata
    from connectrpc.codec import Codec
    from connectrpc.compression import Compression
    from connectrpc.headers import HeaderInput
    from connectrpc.method import Method

__all__ = [
    "DEFAULT_COMPRESS_MIN_BYTES",
    "DEFAULT_READ_MAX_BYTES",
    "ClientSettings",
    "ServerCall",
    "ServerMethod",
    "ServerSettings",
    "StreamClient",
    "StreamClientCall",
    "StreamServerCall",
    "UnaryClient",
    "check_option_names",
    "exactly_one",
    "messages_of",
    "wrong_input",
    "wrong_output",
]

T = TypeVar("T")

DEFAULT_COMPRESS_MIN_BYTES = 1024
DEFAULT_READ_MAX_BYTES = 4 * 1024 * 1024


def check_option_names(options: Mapping[str, object], kind: type) -> None:
    """Check that all options that somebody gave are among those of ``kind``, a ``TypedDict``.

    Raises:
        TypeError: some are not.
    """
    unknown = options.keys() - kind.__annotations__.keys()
    if unknown:
        raise TypeError(f"unknown option: {', '.join(sorted(unknown))}")


def checked_size(name: str, value: int) -> int:
    """A size in bytes that somebody configured.

    Raises:
        ValueError: it is none.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{name} must be a number of bytes, not {value!r}")
    return value


class ServerSettings:
    """What is the same for all calls of one service."""

    __slots__ = (
        "compress_min_bytes",
        "compressions",
        "max_timeout_ms",
        "read_max_bytes",
        "require_connect_protocol_header",
        "send_max_bytes",
    )

    def __init__(
        self,
        *,
        compressions: Mapping[str, Compression],
        compress_min_bytes: int,
        read_max_bytes: int | None,
        send_max_bytes: int | None,
        max_timeout_ms: int | None,
        require_connect_protocol_header: bool,
    ) -> None:
        self.compressions = compressions
        self.compress_min_bytes = checked_size("compress_min_bytes", compress_min_bytes)
        self.read_max_bytes = None if read_max_bytes is None else checked_size("read_max_bytes", read_max_bytes)
        self.send_max_bytes = None if send_max_bytes is None else checked_size("send_max_bytes", send_max_bytes)
        self.max_timeout_ms = max_timeout_ms
        self.require_connect_protocol_header = require_connect_protocol_header

    def deadline(self, timeout_ms: int | None) -> Deadline:
        """The deadline of a call whose client gave it ``timeout_ms``."""
        limit = self.max_timeout_ms
        if limit is not None and (timeout_ms is None or timeout_ms > limit):
            timeout_ms = limit
        return NO_DEADLINE if timeout_ms is None else Deadline(timeout_ms)

    def find_compression(self, name: str | None) -> Compression | None:
        """The compression that a request declares, None for none.

        Raises:
            ConnectError: ``unimplemented``, with what there is.
        """
        if not name or name == IDENTITY:
            return None
        compression = self.compressions.get(name.lower())
        if compression is None and name.lower() != IDENTITY:
            have = ", ".join((*self.compressions, IDENTITY))
            raise ConnectError(
                ConnectErrorCode.UNIMPLEMENTED, f"unknown compression {name[:40]!r}: supported are {have}"
            )
        return compression


class ServerMethod(abc.ABC):
    """One method in one media type: everything about its calls that is known when the app is built.

    Attributes:
        method: the method.
        codec: what the media type names.
        encoder: what makes bytes of the messages that its handlers give.
        settings: the service's.
    """

    __slots__ = ("codec", "encoder", "method", "settings")

    media_types: tuple[str, ...]
    """The media types that name this protocol and codec."""

    def __init__(self, method: Method[Any, Any], codec: Codec, settings: ServerSettings) -> None:
        self.method = method
        self.codec = codec
        self.encoder = encoder_of(codec, method.output)
        self.settings = settings

    @abc.abstractmethod
    def call(self, head: RequestHead) -> ServerCall:
        """A call that came in. ``ServerCall.open`` tells whether it can go on."""


class ServerCall(abc.ABC):
    """One call on a server.

    The order of events: ``open``; the request, through ``receive``, or through ``take`` and ``taken``; then the answer,
    which is made by ``answer``, or by ``fail`` for any failure before it has begun.

    Attributes:
        keeps_failure: whether ``failure`` is wanted; who sets it clears that, as what was raised holds much.
        failure: what the handler, or our work for it, has raised. It is there before messages are closed.
    """

    __slots__ = ("_headers", "deadline", "failure", "head", "keeps_failure", "method")

    protocol: str
    """What ``Peer.protocol`` says."""

    def __init__(self, method: Method[Any, Any], head: RequestHead) -> None:
        self.method = method
        self.head = head
        self.deadline = NO_DEADLINE
        self._headers: CIMultiDict[str] | None = None
        self.keeps_failure = False
        self.failure: Exception | None = None

    def request_headers(self) -> CIMultiDict[str]:
        """All headers of the request."""
        if self._headers is None:
            self._headers = self.head.read_headers()
        return self._headers

    def peer(self) -> Peer:
        """Who calls."""
        return Peer(self.head.peer_address(), self.protocol)

    @abc.abstractmethod
    def open(self) -> None:
        """Read what the head says about the call.

        Raises:
            ConnectError: the call cannot go on; ``fail`` with it.
        """

    @abc.abstractmethod
    def receive(self, body: bytes) -> Any:
        """The message in a whole body.

        Raises:
            ConnectError: there is not exactly one, or it cannot be read.
        """

    @abc.abstractmethod
    def take(self, chunk: bytes) -> None:
        """Take a part of the body.

        Raises:
            ConnectError: what came so far cannot become a message; no more is to be read.
        """

    @abc.abstractmethod
    def taken(self) -> Any:
        """The message, once the body has ended.

        Raises:
            ConnectError: as ``receive``.
        """

    @abc.abstractmethod
    def whole_body_limit(self) -> int | None:
        """The longest body that may be read at once for ``receive``; None when there is no limit."""

    def answer(self, result: object) -> WholeResponse:
        """The whole answer that a handler's result stands for, in a call that is answered by one message.

        A result that comes too late is not sent: the deadline has promised the client otherwise. A whole answer is one
        that was made from the result before.

        Raises:
            TypeError: the result is not what a handler may give.
            Exception: whatever encoding the message, or checking the metadata, raises.
        """
        if isinstance(result, WholeResponse):
            return result
        if self.deadline.expires_at is not None and self.deadline.expired():
            self.deadline.check()
        if isinstance(result, self.method.output):
            return self.respond(result, None, None)
        if isinstance(result, ServerResponse):
            headers, trailers = result.metadata()
            if result.error is not None:
                return self.fail(result.error, headers, trailers)
            if isinstance(result.msg, self.method.output):
                return self.respond(result.msg, headers, trailers)
            result = result.msg
        if isinstance(result, ConnectError):
            return self.fail(result)
        raise wrong_output(self.method, result, "{}, a ServerResponse of it, or a ConnectError")

    @abc.abstractmethod
    def respond(self, message: Any, headers: HeaderInput | None, trailers: HeaderInput | None) -> WholeResponse:
        """The whole answer that brings ``message``."""

    @abc.abstractmethod
    def respond_with(self, payload: bytes, headers: HeaderInput | None, trailers: HeaderInput | None) -> WholeResponse:
        """``respond``, for a message that is encoded already."""

    @abc.abstractmethod
    def fail(
        self, error: ConnectError, headers: HeaderInput | None = None, trailers: HeaderInput | None = None
    ) -> WholeResponse:
        """The whole answer that brings ``error``, when nothing has been sent yet."""


class StreamServerCall(ServerCall):
    """One call on a server that can have a stream on either side. All calls of methods with streams are of this kind.

    A streamed request comes through ``feed`` and ``feed_end``. A streamed answer is ``start``, any number of ``send``,
    and ``finish``.
    """

    __slots__ = ("trailers",)

    has_trailers = False
    """Whether a streamed answer ends with HTTP trailers. They are in ``trailers`` after ``finish``."""

    trailers: HeaderList

    @abc.abstractmethod
    def feed(self, chunk: bytes) -> Iterator[Any]:
        """The messages that a part of the body completes. Exhaust the iterator before feeding again.

        Raises:
            ConnectError: after the messages before the fault.
        """

    @abc.abstractmethod
    def feed_end(self) -> None:
        """Take the end of the body.

        Raises:
            ConnectError: it ended in the middle of a message.
        """

    @property
    @abc.abstractmethod
    def wanted(self) -> int:
        """How many bytes to read for the next step of ``feed``: never more than the next message needs."""

    @abc.abstractmethod
    def start(self, headers: HeaderInput | None) -> ResponseHead:
        """The head of a streamed answer."""

    @abc.abstractmethod
    def send(self, message: Any) -> bytes:
        """The next part of a streamed answer.

        Raises:
            ConnectError: this is what stands in place of a message; or the message is too large.
            TypeError: ``message`` is not one of the method's.
            UnencodableError: the codec has no bytes for it.
        """

    @abc.abstractmethod
    def finish(self, error: ConnectError | None, trailers: HeaderInput | None) -> bytes:
        """The last part of a streamed answer."""


def messages_of(method: Method[Any, Any], result: object) -> tuple[Any, HeaderInput | None, ServerStream[Any] | None]:
    """The messages and headers, and where the trailers will be, of what a streaming handler gave.

    Raises:
        ConnectError: that is what it gave.
        TypeError: the result is not what a handler may give.
    """
    if isinstance(result, ServerStream):
        return result.msgs, result.metadata()[0], result
    if isinstance(result, ConnectError):
        raise result
    if hasattr(result, "__iter__") or hasattr(result, "__aiter__"):
        return result, None, None
    raise wrong_output(method, result, "a ServerStream, or an iterable of {}")


def wrong_input(method: Method[Any, Any], message: object) -> TypeError:
    """The error of a request's message that is none of the method's."""
    return TypeError(f"{method.path} takes a {method.input.DESCRIPTOR.full_name}, not a {type(message).__name__}")


def wrong_output(method: Method[Any, Any], result: object, expected: str) -> TypeError:
    """The error of a handler that gave what it may not. In ``expected``, ``{}`` stands for the method's message."""
    expected = expected.format(method.output.DESCRIPTOR.full_name)
    return TypeError(f"{method.python_name}() gave {type(result).__name__}: expected {expected}")


def exactly_one(messages: list[T], what: str) -> T:
    """The only message of a stream that must hold one.

    Raises:
        ConnectError: ``unimplemented``, which is what all protocols answer to none and to several.
    """
    if len(messages) != 1:
        found = "none" if not messages else "more than one"
        raise ConnectError(ConnectErrorCode.UNIMPLEMENTED, f"expected exactly one {what} message, got {found}")
    return messages[0]


class ClientSettings:
    """What is the same for all calls of one client."""

    __slots__ = (
        "accept_compressions",
        "base_url",
        "codec",
        "compress_min_bytes",
        "extra_headers",
        "get_url_max_bytes",
        "read_max_bytes",
        "send_compression",
        "send_max_bytes",
        "user_agent",
    )

    def __init__(
        self,
        *,
        base_url: str,
        codec: Codec,
        send_compression: Compression | None,
        accept_compressions: Mapping[str, Compression],
        compress_min_bytes: int,
        read_max_bytes: int | None,
        send_max_bytes: int | None,
        get_url_max_bytes: int,
        extra_headers: HeaderInput | None,
        user_agent: str,
    ) -> None:
        self.base_url = base_url
        self.codec = codec
        self.send_compression = send_compression
        self.accept_compressions = accept_compressions
        self.compress_min_bytes = checked_size("compress_min_bytes", compress_min_bytes)
        self.read_max_bytes = None if read_max_bytes is None else checked_size("read_max_bytes", read_max_bytes)
        self.send_max_bytes = None if send_max_bytes is None else checked_size("send_max_bytes", send_max_bytes)
        self.get_url_max_bytes = checked_size("get_url_max_bytes", get_url_max_bytes)
        self.extra_headers = extra_headers
        self.user_agent = user_agent

    def find_compression(self, name: str | None) -> Compression | None:
        """The compression that an answer declares, None for none.

        Raises:
            ConnectError: ``internal``: it is not one that was asked for.
        """
        name = (name or IDENTITY).strip().lower()  # not all HTTP libraries take white space off
        compression = self.accept_compressions.get(name)
        if compression is None and name != IDENTITY:
            raise ConnectError(ConnectErrorCode.INTERNAL, f"the answer's compression {name!r} is not one we accept")
        return compression


class UnaryClient(abc.ABC):
    """A method that takes and gives one message, as one client calls it. Holds no state of a call."""

    __slots__ = ()

    body_limit: int | None
    """The longest body worth reading. A longer one can be cut off there: it fails all the same."""

    @abc.abstractmethod
    def request(
        self, message: Any, extra_headers: HeaderInput | None, timeout_ms: int | None
    ) -> tuple[HTTPRequest, bytes | None]:
        """The head and the body to send, None for a request that has none.

        Raises:
            TypeError: ``message`` is not one of the method's.
            ValueError: ``extra_headers`` holds what cannot be sent.
        """

    @abc.abstractmethod
    def response(
        self, status: int, headers: HeaderView, body: bytes, trailers: HeaderView | None
    ) -> tuple[Any, Callable[[], Metadata]]:
        """The message of an answer, and what makes its headers and trailers when somebody asks.

        Args:
            status: the HTTP status.
            headers: as they came.
            body: all of it.
            trailers: those of HTTP itself, if there were any.

        Raises:
            ConnectError: what the server answered, or what is wrong with the answer.
        """


class StreamClient(abc.ABC):
    """A method with a stream on either side, as one client calls it. Holds no state of a call."""

    __slots__ = ()

    @abc.abstractmethod
    def call(self) -> StreamClientCall:
        """A new call."""

    @abc.abstractmethod
    def request(self, extra_headers: HeaderInput | None, timeout_ms: int | None) -> HTTPRequest:
        """The head to send.

        Raises:
            ValueError: ``extra_headers`` holds what cannot be sent.
        """

    @abc.abstractmethod
    def send(self, message: Any) -> bytes:
        """The part of the request's body that carries ``message``.

        Raises:
            TypeError: ``message`` is not one of the method's.
        """


class _Uploading(Protocol):
    @property
    def uploaded(self) -> bool: ...


class StreamClientCall(abc.ABC):
    """The answer to one streaming call: ``head``, any number of ``feed``, ``feed_end``.

    Attributes:
        complete: whether the server has said how the stream went, so that only the end of the body may still come.
    """

    __slots__ = ()

    complete: bool

    @abc.abstractmethod
    def head(self, status: int, headers: HeaderView) -> None:
        """Take the answer's head.

        Raises:
            ConnectError: the answer is no stream of this call; its body is not worth reading.
        """

    @abc.abstractmethod
    def feed(self, chunk: bytes) -> Iterator[Any]:
        """The messages that a part of the body completes. Exhaust the iterator before feeding again.

        Raises:
            ConnectError: after the messages before the fault.
        """

    def ends_early(self, response: _Uploading) -> bool:
        """Whether not to wait for the end of the body: the server may be waiting for that of a request, which nobody
        reads any more.
        """
        return self.complete and not response.uploaded

    @abc.abstractmethod
    def feed_end(self, trailers: HeaderView | None) -> None:
        """Take the end of the body, and the trailers of HTTP itself, if there were any.

        Raises:
            ConnectError: what the server ended the stream with, or that it broke off.
        """

    @abc.abstractmethod
    def metadata(self) -> Metadata:
        """The headers and the trailers, as far as they have come."""

    def only(self, messages: list[T]) -> T:
        """The only message of an answer that must hold one.

        Raises:
            ConnectError: ``unimplemented``.
        """
        try:
            return exactly_one(messages, "response")
        except ConnectError as error:
            error._read_metadata = self.metadata
            raise
