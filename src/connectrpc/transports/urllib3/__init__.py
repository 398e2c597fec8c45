"""urllib3 as a transport.

It shuts the sockets of a pool's connections down, from whatever thread, to wake a call that is blocked on one. That is
how calls are cancelled, how a deadline bounds what urllib3's own timeouts do not (a head or a body that drips, an
upload that is not taken), and how a stream is closed while it is being read.
"""

from __future__ import annotations

from connectrpc.transports.urllib3._transport import Urllib3Transport

__all__ = ["Urllib3Transport"]
