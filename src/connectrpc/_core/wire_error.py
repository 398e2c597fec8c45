"""ConnectError to and from Connect's JSON, and from answers that are no protocol's."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any

from connectrpc.errors import ConnectError, ConnectErrorCode, ConnectErrorDetail
from connectrpc.headers import encode_binary

if TYPE_CHECKING:
    from multidict import CIMultiDict

    from connectrpc._core.http import HeaderList

__all__ = ["end_stream_from_json", "end_stream_to_json", "error_from_http", "error_from_json", "error_to_json"]

_dumps = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode


def _error_to_object(error: ConnectError) -> dict[str, Any]:
    wire: dict[str, Any] = {"code": error.code.code_name}
    if error.message:
        wire["message"] = error.message
    if error.details:
        wire["details"] = [_detail_to_object(detail) for detail in error.details]
    return wire


def _detail_to_object(detail: ConnectErrorDetail) -> dict[str, Any]:
    # Connect "Error": the value is base64 without padding.
    wire: dict[str, Any] = {"type": detail.type, "value": encode_binary(detail.value)}
    if detail.debug is not None:
        try:
            _dumps(detail.debug)
        except (TypeError, ValueError, RecursionError):
            return wire  # it is no JSON value: it was for people only
        wire["debug"] = detail.debug
    return wire


def error_from_http(status: int) -> ConnectError:
    """What the answer of somebody means who knows of no RPC: a proxy, or another server."""
    message = f"HTTP status {status}"
    if status == 404:
        message += ": nothing is served at this path (is the base URL right?)"
    elif status in _REDIRECTS:
        message += ": redirects are not followed"
    return ConnectError(ConnectErrorCode.from_http_status(status), message)


_REDIRECTS = (301, 302, 303, 307, 308)


def error_to_json(error: ConnectError) -> bytes:
    """The body of a unary error."""
    return _encode(_error_to_object(error))


def end_stream_to_json(error: ConnectError | None, trailers: HeaderList) -> bytes:
    """The payload of the envelope that ends a stream."""
    wire: dict[str, Any] = {}
    if error is not None:
        wire["error"] = _error_to_object(error)
    if trailers:
        metadata: dict[str, list[str]] = {}
        for name, value in trailers:
            metadata.setdefault(name, []).append(value)
        wire["metadata"] = metadata
    return _encode(wire)


def _encode(wire: dict[str, Any]) -> bytes:
    # A handler's message may hold lone surrogates, for which UTF-8 has no bytes.
    return _dumps(wire).encode("utf-8", "replace")


def error_from_json(body: bytes, inferred: ConnectErrorCode) -> ConnectError | None:
    """The error that a unary answer's body describes; None when the body is no such thing.

    Args:
        body: the body.
        inferred: the code that the HTTP status stands for, which is used where the body names none that is known.
    """
    wire = _decode(body)
    if isinstance(wire, dict) and wire.keys().isdisjoint(("code", "message")):
        return None  # somebody else's JSON, such as a web framework's for a path that it does not serve
    return _error_from_object(wire, inferred)


def end_stream_from_json(payload: bytes) -> tuple[ConnectError | None, CIMultiDict[str]]:
    """The error, if any, and the trailers that end a stream.

    Raises:
        ConnectError: ``internal``: the payload is not what ends a stream.
    """
    from multidict import CIMultiDict

    wire = _decode(payload)
    malformed = ConnectError(ConnectErrorCode.INTERNAL, "the message that ends the stream is malformed")
    if not isinstance(wire, dict):
        raise malformed
    trailers: CIMultiDict[str] = CIMultiDict()
    metadata = wire.get("metadata")
    if metadata is not None:
        if not isinstance(metadata, dict):
            raise malformed
        for name, values in metadata.items():
            if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
                raise malformed
            trailers.extend((_text(name), _text(value)) for value in values)
    error = None
    if wire.get("error") is not None:
        error = _error_from_object(wire["error"], ConnectErrorCode.UNKNOWN)
        if error is None:
            raise malformed
    return error, trailers


def _decode(body: bytes) -> object:
    try:
        value: object = json.loads(body.decode())
    except (ValueError, RecursionError):  # UnicodeDecodeError is a ValueError
        return None
    return value


def _error_from_object(wire: object, inferred: ConnectErrorCode) -> ConnectError | None:
    if not isinstance(wire, dict):
        return None
    name, message = wire.get("code"), wire.get("message")
    code = ConnectErrorCode.from_name(name) if isinstance(name, str) else None
    error = ConnectError(code or inferred, _text(message) if isinstance(message, str) else "")
    details = wire.get("details")
    if isinstance(details, list):
        for detail in map(_detail_from_object, details):
            if detail is not None:
                error.add_detail(detail)
    return error


def _detail_from_object(wire: object) -> ConnectErrorDetail | None:
    """A detail, or None when it is malformed: the error it would have adorned is worth more than the complaint."""
    if not isinstance(wire, dict):
        return None
    name, value = wire.get("type"), wire.get("value")
    if not isinstance(name, str) or not isinstance(value, str):
        return None
    try:
        decoded = base64.b64decode(value + "=" * (-len(value) % 4), validate=True)
    except ValueError:
        return None
    return ConnectErrorDetail(_text(name), decoded, wire.get("debug"))


def _text(value: str) -> str:
    # JSON can write lone surrogates, which nobody could print or send on.
    return value if value.isascii() else value.encode("utf-8", "replace").decode()
