"""The client under test: makes the calls that the runner wants on stdin, and tells on stdout how each went.

`run.py` starts this program; by hand it needs the generated stubs on PYTHONPATH.
"""

from __future__ import annotations

import argparse
import asyncio
import signal

import client_async
import client_sync

MODES = [f"{colour}{library}" for library in ("", "-httpx", "-pyqwest", "-pycurl") for colour in ("sync", "async")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mode", choices=MODES, required=True)
    parser.add_argument("--parallel", type=int, default=16, help="how many calls are made at a time")
    arguments = parser.parse_args()

    # The runner wants a program to leave at once, whatever is still under way.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    match arguments.mode:
        case "sync":
            client_sync.run(arguments.parallel, client_sync.pool_manager)
        case "async":
            asyncio.run(client_async.run(arguments.parallel, client_async.client_session))
        case "sync-httpx":
            client_sync.run(arguments.parallel, client_sync.httpx_client)
        case "async-httpx":
            asyncio.run(client_async.run(arguments.parallel, client_async.httpx_client))
        case "sync-pyqwest":
            client_sync.run(arguments.parallel, client_sync.pyqwest_client)
        case "async-pyqwest":
            asyncio.run(client_async.run(arguments.parallel, client_async.pyqwest_client))
        case "sync-pycurl":
            client_sync.run(arguments.parallel, client_sync.pycurl_transport)
        case "async-pycurl":
            asyncio.run(client_async.run(arguments.parallel, client_async.pycurl_transport))


if __name__ == "__main__":
    main()
