"""The rows of the table. A new one is an entry here, and an application or a client for each of its sides."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness import Row, client_row, client_stream_row, import_row, server_row, server_stream_row
from shapes import KINDS, SHAPES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from harness import Side, Stage

    Opener = Callable[[Stage, Sequence[str]], Sequence[Side]]

__all__ = ["ROWS", "gunicorn", "uvicorn"]

# A connection rests while other rows are measured, so no server may close it for that.


def granian(application: str, port: int) -> list[str]:
    return ["-m", "granian", "--interface=wsgi", "--http=1", "--no-ws", "--workers=1", "--blocking-threads=1",
            "--log-level=warning", "--http1-header-read-timeout=60000",
            "--host=127.0.0.1", f"--port={port}", application]  # fmt: skip


def gunicorn(application: str, port: int) -> list[str]:
    return ["-m", "gunicorn", "--worker-class=gthread", "--workers=1", "--threads=2", "--keep-alive=600",
            "--log-level=warning", f"--bind=127.0.0.1:{port}", application]  # fmt: skip


def uvicorn(application: str, port: int) -> list[str]:
    # Its loop is uvloop where that is installed, else asyncio's own.
    return ["-m", "uvicorn", "--http=httptools", "--loop=auto", "--lifespan=off", "--timeout-keep-alive=600",
            "--no-access-log", "--log-level=warning", "--host=127.0.0.1", f"--port={port}", application]  # fmt: skip


def gunicorn_streams(task: str) -> Opener:
    return server_stream_row(gunicorn, "wsgi_{}:streams", task)


def uvicorn_streams(task: str) -> Opener:
    return server_stream_row(uvicorn, "asgi_{}:streams", task)


def stream_rows() -> Iterator[Row]:
    stacks: dict[str, tuple[str, Callable[[str], Opener]]] = {
        "gunicorn": ("WSGI on gunicorn", gunicorn_streams),
        "uvicorn": ("ASGI on uvicorn", uvicorn_streams),
        "sync": ("sync client", lambda task: client_stream_row("sync", task)),
        "async": ("async client", lambda task: client_stream_row("async", task)),
    }
    kinds = {"download": "server stream", "upload": "client stream", "echo": "bidi stream"}
    for name, suffix, size in (("small", "", ""), ("large", "-large", "1 MiB, ")):
        for stack, (title, opener) in stacks.items():
            for kind in KINDS:
                yield Row(
                    f"{stack}-{kind}{suffix}",
                    f"{kinds[kind]}, {size}{title}",
                    0.80,
                    opener(f"{kind}-{name}"),
                    every=3 if suffix else 2,
                    unit_bytes=SHAPES[name].size if suffix else None,
                )


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
    Row("uvicorn", "unary, ASGI on uvicorn", 0.80, server_row(uvicorn, "asgi_{}:app", connections=8)),
    Row(
        "uvicorn-waits",
        "the same, handler waits once",
        None,
        server_row(uvicorn, "asgi_{}:waiting", connections=8),
    ),
    Row(
        "uvicorn-no-interceptors",
        "interceptors=[], ASGI on uvicorn",
        0.98,
        server_row(uvicorn, {"ours": "asgi_ours:empty_list", "floor": "asgi_ours:app"}, connections=8),
        floor_is_ours=True,
    ),
    Row("sync", "unary, sync client, urllib3", 0.90, client_row("sync")),
    Row("async-1", "unary, async client, aiohttp, 1 at a time", 0.90, client_row("async")),
    Row("async-16", "unary, async client, aiohttp, 16 at a time", 0.90, client_row("async", concurrency=16)),
    Row(
        "sync-no-interceptors",
        "interceptors=[], sync client",
        0.98,
        client_row("sync", clients={"ours": "empty-list", "floor": "ours"}),
        floor_is_ours=True,
    ),
    Row("import", "import of generated code", 1.30, import_row("bench_pb2_connect", "bench_pb2"), is_cost=True),
    *stream_rows(),
)
