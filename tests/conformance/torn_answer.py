"""Shows that a torn answer is not our doing: what `run.py` lets pass, with a bare ASGI app in our place.

    python tests/conformance/torn_answer.py [server]

The app waits for as long as the request allows, and says then that the deadline has passed. The server is one of those
in `server.py`, gunicorn-asgi-http2 by default. The moment has to be hit, so it is tried some times.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

HERE = Path(__file__).resolve().parent

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, MutableMapping

    Event = MutableMapping[str, Any]

TRIES = 20
BODY = b'{"code":"deadline_exceeded"}'


async def app(scope: Event, receive: Callable[[], Awaitable[Event]], send: Callable[[Event], Awaitable[None]]) -> None:
    if scope["type"] != "http":
        return
    await asyncio.sleep(int(dict(scope["headers"])[b"connect-timeout-ms"]) / 1000)
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(BODY)).encode())]
    await send({"type": "http.response.start", "status": 504, "headers": headers})
    await send({"type": "http.response.body", "body": BODY})


def main() -> bool:
    """Whether an answer was torn."""
    import prepare

    prepare.prepare()
    # In a process of the runner: server.py, with this app where it would serve ours.
    program = "import sys, server; sys.argv[0] = 'server.py'; server.APP = 'torn_answer:app'; server.main()"
    name = sys.argv[1] if len(sys.argv) > 1 else "gunicorn-asgi-http2"
    config = "config_server_http2.yaml" if name.endswith("http2") else "config_server.yaml"
    command = [str(prepare.RUNNER), "--mode", "server", "--conf", str(HERE / config)]
    command += ["--run", "Timeouts/**/Protocol:PROTOCOL_CONNECT/**/unary"]
    command += ["--", sys.executable, "-c", program, "--server", name]
    path = os.pathsep.join([str(HERE), str(prepare.GEN)])
    return any(
        subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, check=False).returncode for _ in range(TRIES)
    )


if __name__ == "__main__":
    print("torn" if main() else f"not torn in {TRIES} runs")
