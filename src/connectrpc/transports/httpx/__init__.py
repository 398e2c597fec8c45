"""httpx as a transport: HTTP/1.1, and HTTP/2 without trailers.

A request goes out whole before its answer is read. So a bidirectional stream is half duplex.

What httpx does not tell by itself comes from its ``trace`` extension: which connection a call is given. In HTTP/1.1
that connection is the call's own, and is shut down to wake a thread that is blocked on it. In HTTP/2 it is shared, and
a call that has to end leaves it alone: the thread that waits for it is another one, which is left behind.
"""

from __future__ import annotations

from connectrpc.transports.httpx._aio import AsyncHttpxTransport
from connectrpc.transports.httpx._sync import HttpxTransport

__all__ = ["AsyncHttpxTransport", "HttpxTransport"]
