"""``asyncio.timeout`` on every supported Python."""

import sys

__all__ = ["timeout"]

if sys.version_info >= (3, 11):
    from asyncio import timeout
else:  # aiohttp depends on it where the standard library has none
    from async_timeout import timeout
