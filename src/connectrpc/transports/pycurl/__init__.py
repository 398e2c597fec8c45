"""libcurl as a transport, by pycurl: HTTP/1.1 and 2, with trailers and full duplex.

libcurl works in the thread, or in the event loop, whose call it is: so a call changes no threads, and a cancellation
takes effect at once.
"""

from __future__ import annotations

import importlib.util

if importlib.util.find_spec("pycurl") is None:
    raise ModuleNotFoundError(
        "connectrpc.transports.pycurl needs pycurl, which is not installed: pip install 'connect-python[pycurl]'",
        name="pycurl",
    )

from connectrpc.transports.pycurl._aio import AsyncPycurlTransport
from connectrpc.transports.pycurl._sync import PycurlTransport

__all__ = ["AsyncPycurlTransport", "PycurlTransport"]
