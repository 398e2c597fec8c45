"""Calling an app without a socket, for tests of services.

A transport takes the place of the HTTP client; the URL is only for show::

    client = GreetServiceClient("http://test", WSGITransport(wsgi_greet_service(Greeter())))
    client = AsyncGreetServiceClient("http://test", ASGITransport(asgi_greet_service(AsyncGreeter())))

Either kind of client calls either kind of app, also a framework's with services mounted in it, in every protocol.
"""

from __future__ import annotations

from connectrpc.transports.memory import ASGITransport, WSGITransport

__all__ = ["ASGITransport", "WSGITransport"]
