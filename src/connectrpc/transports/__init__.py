"""HTTP clients as transports. No library is imported before a client needs it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from connectrpc._core.http import HeaderView, HTTPRequest
from connectrpc.transports.base import AsyncResponse, AsyncTransport, SyncResponse, SyncTransport

if TYPE_CHECKING:
    from types import ModuleType

__all__ = [
    "AsyncResponse",
    "AsyncTransport",
    "HTTPRequest",
    "HeaderView",
    "SyncResponse",
    "SyncTransport",
    "async_transport",
    "sync_transport",
]


def sync_transport(http_client: object | None, base_url: str, *, connect_timeout: float | None = None) -> SyncTransport:
    """The transport over a user's HTTP client, or over one of our own for None.

    Raises:
        TypeError: it is none that is known here, nor a transport.
        ValueError: it cannot keep a connect timeout.
    """
    urllib3 = _loaded("urllib3")
    if http_client is None or (urllib3 is not None and isinstance(http_client, urllib3.PoolManager)):
        from connectrpc.transports.urllib3 import Urllib3Transport

        return Urllib3Transport(http_client, base_url, connect_timeout=connect_timeout)
    pyqwest = _loaded("pyqwest")
    if pyqwest is not None and isinstance(http_client, pyqwest.SyncClient):
        from connectrpc.transports.pyqwest import PyqwestTransport

        _refuse(connect_timeout, _PYQWEST_CONNECTS)
        return PyqwestTransport(http_client)
    httpx = _loaded("httpx")
    if httpx is not None and isinstance(http_client, httpx.Client):
        from connectrpc.transports.httpx import HttpxTransport

        return HttpxTransport(http_client, connect_timeout=connect_timeout)
    if isinstance(http_client, SyncTransport) and _takes(http_client.send, "deadline"):
        _refuse(connect_timeout, "transports of your own: they know how they connect")
        return http_client
    raise TypeError(
        f"http_client is a {type(http_client).__qualname__}: a synchronous client takes a urllib3.PoolManager, an "
        "httpx.Client, a pyqwest.SyncClient or a connectrpc.transports.SyncTransport"
    )


def async_transport(http_client: object | None, *, connect_timeout: float | None = None) -> AsyncTransport:
    """The transport over a user's HTTP client, or over one of our own for None.

    Raises:
        TypeError: it is none that is known here, nor a transport.
        ValueError: it cannot keep a connect timeout.
    """
    aiohttp = _loaded("aiohttp")
    if http_client is None or (aiohttp is not None and isinstance(http_client, aiohttp.ClientSession)):
        from connectrpc.transports.aiohttp import AiohttpTransport

        return AiohttpTransport(http_client, connect_timeout=connect_timeout)
    pyqwest = _loaded("pyqwest")
    if pyqwest is not None and isinstance(http_client, pyqwest.Client):
        from connectrpc.transports.pyqwest import AsyncPyqwestTransport

        _refuse(connect_timeout, _PYQWEST_CONNECTS)
        return AsyncPyqwestTransport(http_client)
    httpx = _loaded("httpx")
    if httpx is not None and isinstance(http_client, httpx.AsyncClient):
        from connectrpc.transports.httpx import AsyncHttpxTransport

        return AsyncHttpxTransport(http_client, connect_timeout=connect_timeout)
    if isinstance(http_client, AsyncTransport) and _takes(http_client.send, "body"):
        _refuse(connect_timeout, "transports of your own: they know how they connect")
        return http_client
    raise TypeError(
        f"http_client is a {type(http_client).__qualname__}: an asynchronous client takes an aiohttp.ClientSession, "
        "an httpx.AsyncClient, a pyqwest.Client or a connectrpc.transports.AsyncTransport"
    )


def _loaded(name: str) -> ModuleType | None:
    # Whoever hands over an object of a library has imported it.
    return sys.modules.get(name)


def _takes(function: Any, parameter: str) -> bool:
    # Many HTTP clients have a method of that name, but not of that shape. A wrapper that takes anything may.
    from inspect import Parameter, signature

    parameters = signature(function).parameters
    kinds = {given.kind for given in parameters.values()}
    return parameter in parameters or {Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD} <= kinds


_PYQWEST_CONNECTS = "pyqwest: give its transport a connect_timeout"


def _refuse(connect_timeout: float | None, what: str) -> None:
    if connect_timeout is not None:
        raise ValueError(f"connect_timeout_seconds is not for {what}")
