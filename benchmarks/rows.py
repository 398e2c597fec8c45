"""The rows of the table. A new one is an entry here, and an application or a client for each of its sides."""

from __future__ import annotations

from harness import Row, client_row, import_row, server_row

__all__ = ["ROWS"]


def granian(application: str, port: int) -> list[str]:
    return ["-m", "granian", "--interface=wsgi", "--http=1", "--no-ws", "--workers=1", "--blocking-threads=1",
            "--log-level=warning", "--host=127.0.0.1", f"--port={port}", application]  # fmt: skip


def gunicorn(application: str, port: int) -> list[str]:
    return ["-m", "gunicorn", "--worker-class=gthread", "--workers=1", "--threads=2", "--keep-alive=60",
            "--log-level=warning", f"--bind=127.0.0.1:{port}", application]  # fmt: skip


ROWS = (
    Row(
        "granian-8",
        "unary, WSGI on granian, 8 in flight",
        0.85,
        server_row(granian, "wsgi_{}:app", connections=8, one_core=False),
    ),
    Row(
        "granian-32",
        "unary, WSGI on granian, 32 in flight",
        0.85,
        server_row(granian, "wsgi_{}:app", connections=32, one_core=False),
    ),
    Row("gunicorn", "unary, WSGI on gunicorn gthread", 0.93, server_row(gunicorn, "wsgi_{}:app", connections=8)),
    Row("sync", "unary, sync client, urllib3", 0.90, client_row("sync")),
    Row("async-1", "unary, async client, aiohttp, 1 at a time", 0.90, client_row("async")),
    Row("async-16", "unary, async client, aiohttp, 16 at a time", 0.90, client_row("async", concurrency=16)),
    Row("import", "import of generated code", 1.30, import_row("bench_pb2_connect", "bench_pb2"), is_cost=True),
)
