"""What the sync and the async client under test have in common: everything but the calls themselves."""

from __future__ import annotations

import ssl
import tempfile
import traceback
import typing
from typing import TYPE_CHECKING, Protocol, TypeVar

from google.protobuf.message import Message

from connectrpc.conformance.v1.client_compat_pb2 import ClientCompatResponse, ClientErrorResult
from connectrpc.conformance.v1.config_pb2 import (
    CODEC_JSON,
    CODEC_PROTO,
    COMPRESSION_BR,
    COMPRESSION_GZIP,
    COMPRESSION_IDENTITY,
    COMPRESSION_ZSTD,
    PROTOCOL_CONNECT,
    PROTOCOL_GRPC,
    PROTOCOL_GRPC_WEB,
    STREAM_TYPE_FULL_DUPLEX_BIDI_STREAM,
    HTTPVersion,
)

from messages import error_to_proto, headers_to_proto

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Literal

    from google.protobuf.any_pb2 import Any
    from multidict import CIMultiDict

    from connectrpc.client import ClientOptions
    from connectrpc.conformance.v1.client_compat_pb2 import ClientCompatRequest, ClientResponseResult
    from connectrpc.errors import ConnectError

__all__ = [
    "Cancellation",
    "answer",
    "base_url",
    "client_options",
    "failure",
    "httpx_settings",
    "is_full_duplex",
    "only_message",
    "pycurl_settings",
    "pyqwest_settings",
    "record",
    "timeout_seconds",
    "tls_context",
    "unpack",
]

MessageT = TypeVar("MessageT", bound=Message)


_PROTOCOLS: dict[int, Literal["connect", "grpc", "grpc-web"]] = {
    PROTOCOL_CONNECT: "connect",
    PROTOCOL_GRPC: "grpc",
    PROTOCOL_GRPC_WEB: "grpc-web",
}
_CODECS: dict[int, Literal["proto", "json"]] = {CODEC_PROTO: "proto", CODEC_JSON: "json"}
_COMPRESSIONS = {COMPRESSION_GZIP: "gzip", COMPRESSION_BR: "br", COMPRESSION_ZSTD: "zstd"}


def base_url(request: ClientCompatRequest) -> str:
    scheme = "https" if request.server_tls_cert else "http"
    return f"{scheme}://{request.host}:{request.port}"


def client_options(request: ClientCompatRequest) -> ClientOptions:
    options: ClientOptions = {"protocol": _PROTOCOLS[request.protocol], "codec": _CODECS[request.codec]}
    if request.compression != COMPRESSION_IDENTITY:
        compression = _COMPRESSIONS[request.compression]
        options["send_compression"] = compression
        options["compress_min_bytes"] = 0  # the runner's messages are small, and it looks for the compression
        # The reference server answers with the first one that it knows: so that this one is tested both ways.
        options["accept_compression"] = [compression]
    if request.use_get_http_method:
        options["use_get"] = True
    if request.message_receive_limit:
        options["read_max_bytes"] = request.message_receive_limit
    return options


def timeout_seconds(request: ClientCompatRequest) -> float | None:
    return request.timeout_ms / 1000 if request.HasField("timeout_ms") else None


def tls_context(request: ClientCompatRequest) -> ssl.SSLContext | None:
    """What an HTTP client needs to trust the server, and to be trusted by it; None for plain text."""
    if not request.server_tls_cert:
        return None
    context = ssl.create_default_context(cadata=request.server_tls_cert.decode())
    if request.HasField("client_tls_creds"):
        with tempfile.NamedTemporaryFile() as pem:
            pem.write(request.client_tls_creds.key + request.client_tls_creds.cert)
            pem.flush()
            context.load_cert_chain(pem.name)
    return context


def httpx_settings(request: ClientCompatRequest) -> dict[str, typing.Any]:
    """The arguments of an httpx client: the HTTP version, and TLS. As many connections as there are calls."""
    import httpx

    http2 = request.http_version == HTTPVersion.HTTP_VERSION_2
    return {
        "http1": not http2,
        "http2": http2,
        "verify": tls_context(request) or True,
        "limits": httpx.Limits(max_connections=None),
        "timeout": None,
        "trust_env": False,
    }


def pycurl_settings(request: ClientCompatRequest) -> dict[str, typing.Any]:
    """The arguments of a transport over pycurl: the HTTP version, and TLS."""
    import pycurl

    versions = {HTTPVersion.HTTP_VERSION_1: "1.1", HTTPVersion.HTTP_VERSION_2: "2"}

    def configure(curl: pycurl.Curl) -> None:
        if request.server_tls_cert:
            curl.setopt(pycurl.CAINFO_BLOB, request.server_tls_cert)
        if request.HasField("client_tls_creds"):
            curl.setopt(pycurl.SSLCERT_BLOB, request.client_tls_creds.cert)
            curl.setopt(pycurl.SSLKEY_BLOB, request.client_tls_creds.key)

    return {"http_version": versions[request.http_version], "configure": configure}


def pyqwest_settings(request: ClientCompatRequest) -> dict[str, typing.Any]:
    """The arguments of a pyqwest transport: the HTTP version, TLS, and nothing behind the calls' backs."""
    import pyqwest

    versions = {
        HTTPVersion.HTTP_VERSION_1: pyqwest.HTTPVersion.HTTP1,
        HTTPVersion.HTTP_VERSION_2: pyqwest.HTTPVersion.HTTP2,
        HTTPVersion.HTTP_VERSION_3: pyqwest.HTTPVersion.HTTP3,
    }
    return {
        "http_version": versions[request.http_version],
        "tls_ca_cert": request.server_tls_cert or None,
        "tls_cert": request.client_tls_creds.cert or None,
        "tls_key": request.client_tls_creds.key or None,
        "follow_redirects": False,
        "enable_gzip": False,
        "enable_brotli": False,
        "enable_zstd": False,
    }


def is_full_duplex(request: ClientCompatRequest) -> bool:
    return request.stream_type == STREAM_TYPE_FULL_DUPLEX_BIDI_STREAM


def unpack(packed: Any, message_type: type[MessageT]) -> MessageT:
    message = message_type()
    if not packed.Unpack(message):
        raise ValueError(f"expected a {message_type.DESCRIPTOR.full_name}, got {packed.type_url}")
    return message


def only_message(request: ClientCompatRequest, message_type: type[MessageT]) -> MessageT:
    (packed,) = request.request_messages
    return unpack(packed, message_type)


class Cancellation:
    """Cancels a call at the moment that the runner asks for. The caller tells it how far the call has come.

    Args:
        request: names the moment, or none.
        cancel: cancels the call.
        call_later: calls a function after so many seconds, without waiting for it.
    """

    def __init__(
        self,
        request: ClientCompatRequest,
        cancel: Callable[[], object],
        call_later: Callable[[float, Callable[[], object]], object],
    ) -> None:
        self._cancel = cancel
        self._call_later = call_later
        self._request = request.cancel
        self._when = self._request.WhichOneof("cancel_timing")
        if self._when is None and request.HasField("cancel"):
            self._when = "after_close_send_ms"  # and the field is zero

    def messages_sent(self) -> bool:
        """All requests are sent. True when the call is cancelled instead of ending the request."""
        if self._when != "before_close_send":
            return False
        self._cancel()
        return True

    def request_ends(self) -> None:
        """The request ends now: at once where a call takes exactly one message."""
        if self._when == "after_close_send_ms":
            self._call_later(self._request.after_close_send_ms / 1000, self._cancel)

    def received(self, count: int) -> bool:
        """`count` responses have come. True when the call is cancelled now."""
        if self._when != "after_num_responses" or count != self._request.after_num_responses:
            return False
        self._cancel()
        return True


class _Outcome(Protocol):
    """What `UnaryOutput` and the outputs of streams have in common."""

    def error(self) -> ConnectError | None: ...
    def response_headers(self) -> CIMultiDict[str]: ...
    def response_trailers(self) -> CIMultiDict[str]: ...


def record(result: ClientResponseResult, output: _Outcome) -> None:
    """Note how a call ended."""
    result.response_headers.extend(headers_to_proto(output.response_headers()))
    result.response_trailers.extend(headers_to_proto(output.response_trailers()))
    error = output.error()
    if error is not None:
        result.error.CopyFrom(error_to_proto(error))


def answer(request: ClientCompatRequest, result: ClientResponseResult) -> ClientCompatResponse:
    return ClientCompatResponse(test_name=request.test_name, response=result)


def failure(request: ClientCompatRequest) -> ClientCompatResponse:
    """The answer when it was us who failed and not the call, with the exception that is being handled."""
    error = ClientErrorResult(message=traceback.format_exc())
    return ClientCompatResponse(test_name=request.test_name, error=error)
