"""Imports all that the rows run, so that it is compiled before the first of their processes starts.

A process that has compiled its modules itself stays some percent slower than one that found them compiled, and the
first to start would always be one of ours. The HTTP servers' own modules are seen to by `harness`.
"""

import contextlib
import importlib

MODULES = (
    *("asgi_floor", "wsgi_floor", "load", "load_streams", "responder", "stream_responder", "clients", "stream_clients"),
    *("grpc_load", "grpc_responder", "grpc_peer", "grpc_clients", "asgi_grpc_floor"),
    *("urllib3", "aiohttp", "asyncio", "grpc", "grpc.aio", "pyqwest"),
    *("asgi_ours", "wsgi_ours", "connectrpc.transports.urllib3", "connectrpc.transports.aiohttp"),
    "connectrpc.transports.pyqwest",
)

for module in MODULES:
    # Where the floors alone are measured, the code for ours is not there.
    with contextlib.suppress(ImportError):
        importlib.import_module(module)
