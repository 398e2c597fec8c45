"""What a CORS middleware has to let through, so that pages of other origins can call services from a browser.

The middleware is that of your stack, such as Starlette's ``CORSMiddleware``; it stands around the application. Add the
names of your own: headers that your pages send to ``ALLOW_HEADERS``; headers and trailers that they read to
``EXPOSE_HEADERS``. A trailer of a unary Connect call travels as a header with ``Trailer-`` before its name.
"""

from __future__ import annotations

__all__ = ["ALLOW_HEADERS", "ALLOW_METHODS", "EXPOSE_HEADERS"]

ALLOW_METHODS = ("GET", "POST")
"""The values of ``Access-Control-Allow-Methods``. GET is for methods without side effects."""

ALLOW_HEADERS = (
    "Content-Type",
    "Connect-Protocol-Version",
    "Connect-Timeout-Ms",
    "Grpc-Timeout",
    "X-Grpc-Web",
    "X-User-Agent",
    # No browser client compresses its requests or chooses compressions by itself today.
    "Accept-Encoding",
    "Content-Encoding",
    "Connect-Accept-Encoding",
    "Connect-Content-Encoding",
    "Grpc-Accept-Encoding",
    "Grpc-Encoding",
    "Grpc-Message-Type",
)
"""The values of ``Access-Control-Allow-Headers``: what clients in browsers send, in Connect and in gRPC-Web."""

EXPOSE_HEADERS = (
    "Grpc-Status",
    "Grpc-Message",
    "Grpc-Status-Details-Bin",
    "Content-Encoding",
    "Connect-Content-Encoding",
    "Grpc-Encoding",
)
"""The values of ``Access-Control-Expose-Headers``: what clients in browsers read, beside the body. A call of gRPC-Web
can end with its status among the headers."""
