"""Whether streams are buffered: how much a process grows while a gigabyte goes through it, in either direction.

Each case starts a process of ours, has it carry one short stream, notes its resident memory, and has it carry a long
one. What counts is how far the peak lies above what was noted. A few messages are always on their way; everything else
is to stay with the sender. Slow peers show it best, so there are cases with one of these, which last some seconds.

`python benchmarks/memory.py [CASE...]`, or as a part of `run.py`.
"""

from __future__ import annotations

import contextlib
import fnmatch
import re
import select
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from generate import HERE, generate
from harness import server, start, tree
from rows import gunicorn, uvicorn
from shapes import LONG, SHORT, Shape

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator, Sequence

__all__ = ["CASES", "Case", "run"]

LIMIT_MIB = 48
"""The most that a case may grow by."""

_MIB = 1024 * 1024
_MAX_SECONDS = 10.0
_SLOW_SECONDS = 3.0
_SLOW_BYTES = 64 * 1024  # what a slow peer takes at a time
_SLOW_STEP = 0.02


class Growth(NamedTuple):
    """What became of one case."""

    mib: float
    """How far the peak lay above the start."""
    carried: float
    """How many MiB the stream carried."""
    seconds: float


# ---- resident memory


def _status(pid: int, name: str) -> float:
    """A figure of /proc/PID/status, in MiB."""
    found = re.search(rf"^{name}:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) / 1024


class _Watch:
    """Tells how far processes grow from now on."""

    def __init__(self, pids: Sequence[int]) -> None:
        self._pids = pids
        for pid in pids:
            Path(f"/proc/{pid}/clear_refs").write_text("5")  # forgets the peak so far
        self._start = {pid: _status(pid, "VmRSS") for pid in pids}

    def growth(self) -> float:
        return max(_status(pid, "VmHWM") - self._start[pid] for pid in self._pids)


# ---- the other side, with raw sockets


class _Peer:
    """What our side talks to: it sends and takes bytes, as fast as it can or slowly, until its time is up."""

    def __init__(self, sock: socket.socket, *, slow: bool = False) -> None:
        self._sock = sock
        self._sock.settimeout(_MAX_SECONDS)
        self._slow = slow
        self._until = time.monotonic() + (_SLOW_SECONDS if slow else _MAX_SECONDS)
        self._buffer = memoryview(bytearray(_SLOW_BYTES if slow else _MIB))

    def _expired(self) -> bool:
        if self._slow:
            time.sleep(_SLOW_STEP)
        return time.monotonic() > self._until

    def take(self) -> tuple[int, bool]:
        """How many bytes came up to the end of a chunked body, and whether that was the end or time was up."""
        taken, tail = 0, b""
        while not tail.endswith(b"\r\n0\r\n\r\n"):
            if self._expired():
                return taken, False
            size = self._sock.recv_into(self._buffer)
            if not size:
                raise SystemExit("our side hung up in the middle of a stream")
            taken += size
            tail = tail[-7:] + bytes(self._buffer[max(0, size - 7) : size])
        return taken, True

    def give(self, messages: int, chunk: bytes, end: bytes) -> tuple[int, bool]:
        """How many bytes were taken of so many chunks, and whether it was all of them."""
        given = 0
        view = memoryview(chunk)
        for _ in range(messages):
            unsent = view
            while unsent:
                # Not much longer than it takes to notice that the other side reads slowly.
                if time.monotonic() > self._until:
                    return given, False
                if select.select([], [self._sock], [], 0.1)[1]:
                    size = self._sock.send(unsent, socket.MSG_DONTWAIT)
                    given += size
                    unsent = unsent[size:]
        self._sock.sendall(end)
        return given, True


def _answer_head(sock: socket.socket) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        more = sock.recv(65536)
        if not more:
            raise SystemExit("our side hung up before it answered")
        data += more
    return data


# ---- our side as a server


@dataclass(frozen=True)
class _Server:
    """A server of ours, under one stream."""

    command: Callable[[str, int], list[str]]
    application: str
    kind: str
    slow_reader: bool = False
    slow_handler: bool = False

    def __call__(self) -> Growth:
        # Not imported above: these need the generated code.
        import load_streams

        with contextlib.ExitStack() as stack:
            process, port = server(stack, self.command, self.application, set())
            self._carry(port, load_streams.request(self.kind, SHORT), None)
            watch = _Watch(list(tree(process.pid)))
            begun = time.monotonic()
            one = Shape(1, LONG.size)
            head, _, chunk = load_streams.request(self.kind, one).partition(b"\r\n\r\n")
            if self.kind == "download":
                carried = self._carry(port, load_streams.request(self.kind, LONG), None)
            else:
                carried = self._carry(port, head + b"\r\n\r\n", chunk.removesuffix(b"0\r\n\r\n"))
            return Growth(watch.growth(), carried / _MIB, time.monotonic() - begun)

    def _carry(self, port: int, request: bytes, chunk: bytes | None) -> int:
        with socket.socket() as sock:
            if self.slow_reader:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SLOW_BYTES)
            sock.settimeout(_MAX_SECONDS)
            sock.connect(("127.0.0.1", port))
            sock.sendall(request)
            if chunk is not None:
                peer = _Peer(sock)
                if self.slow_handler:
                    peer._until = time.monotonic() + _SLOW_SECONDS
                given, ended = peer.give(LONG.messages, chunk, b"0\r\n\r\n")
                if ended:
                    _check(_answer_head(sock))
                return given
            if self.kind == "download":
                return _Peer(sock, slow=self.slow_reader).take()[0]
            _check(_answer_head(sock))
            return 0


def _check(answer: bytes) -> None:
    if not answer.startswith(b"HTTP/1.1 200 "):
        raise SystemExit(f"the server's answer is not the expected one: {answer!r}")


# ---- our side as a client


@dataclass(frozen=True)
class _Client:
    """A client of ours, in one stream."""

    colour: str
    kind: str
    slow_consumer: bool = False
    slow_server: bool = False

    def __call__(self) -> Growth:
        with contextlib.ExitStack() as stack:
            listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            listener.settimeout(_MAX_SECONDS)
            if self.slow_server:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SLOW_BYTES)
            port = listener.getsockname()[1]
            pause = "slow" if self.slow_consumer else "fast"
            command = [sys.executable, str(HERE / "memory_client.py"), self.colour, self.kind, str(port), pause]
            process = start(stack, command, set(), talks=True)
            sock = stack.enter_context(listener.accept()[0])
            self._serve(sock, SHORT, slow=False)
            self._await(process, "warm")
            watch = _Watch([process.pid])
            begun = time.monotonic()
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
            # The stream goes over another connection where the client does not keep the first.
            if not select.select([sock], [], [], 1)[0]:
                sock = stack.enter_context(listener.accept()[0])
            carried, ended = self._serve(sock, LONG, slow=self.slow_server)
            growth = watch.growth()
            seconds = time.monotonic() - begun
            if ended:
                self._await(process, "done")
            return Growth(max(growth, watch.growth()), carried / _MIB, seconds)

    def _await(self, process: subprocess.Popen[str], word: str) -> None:
        assert process.stdout is not None
        if process.stdout.readline() != f"{word}\n":
            raise SystemExit("the client failed; its last words are above")

    def _serve(self, sock: socket.socket, shape: Shape, *, slow: bool) -> tuple[int, bool]:
        """Serve one request. How much it carried, and whether all of it."""
        import load_streams
        from stream_responder import answer_head
        from wire import chunked

        parts = load_streams.expected(self.kind, Shape(1, shape.size) if self.kind == "download" else shape)
        if self.kind == "download":
            _answer_head(sock)
            sock.sendall(answer_head())
            chunk, end = (chunked([part]).removesuffix(b"0\r\n\r\n") for part in parts)
            peer = _Peer(sock)
            if self.slow_consumer and shape is LONG:
                peer._until = time.monotonic() + _SLOW_SECONDS
            return peer.give(shape.messages, chunk, end + b"0\r\n\r\n")
        taken, ended = _Peer(sock, slow=slow).take()
        if ended:
            sock.sendall(answer_head() + chunked(parts))
        return taken, ended


# ---- cases


@dataclass(frozen=True)
class Case:
    """One line of the table."""

    key: str
    title: str
    measure: Callable[[], Growth]


def _cases() -> Iterator[Case]:
    kinds = {"download": "server stream", "upload": "client stream"}
    for stack, command, application, title in (
        ("gunicorn", gunicorn, "wsgi_ours:streams", "WSGI on gunicorn"),
        ("uvicorn", uvicorn, "asgi_ours:streams", "ASGI on uvicorn"),
    ):
        for kind in kinds:
            yield Case(f"memory-{stack}-{kind}", f"{kinds[kind]}, {title}", _Server(command, application, kind))
    for colour in ("sync", "async"):
        for kind in kinds:
            yield Case(f"memory-{colour}-{kind}", f"{kinds[kind]}, {colour} client", _Client(colour, kind))
    yield Case(
        "memory-uvicorn-slow-reader",
        "server stream, ASGI on uvicorn, slow reader",
        _Server(uvicorn, "asgi_ours:streams", "download", slow_reader=True),
    )
    yield Case(
        "memory-uvicorn-slow-handler",
        "client stream, ASGI on uvicorn, slow handler",
        _Server(uvicorn, "asgi_ours:slow", "upload", slow_handler=True),
    )
    yield Case(
        "memory-async-slow-consumer",
        "server stream, async client, slow consumer",
        _Client("async", "download", slow_consumer=True),
    )
    yield Case(
        "memory-async-slow-server",
        "client stream, async client, slow server",
        _Client("async", "upload", slow_server=True),
    )


CASES = tuple(_cases())


def run(cases: Sequence[Case]) -> bool:
    """Measure and print; whether all of them were flat."""
    if not cases:
        return True
    from generate import GEN

    sys.path.insert(0, str(GEN))
    width = max(len(case.title) for case in cases)
    header = f"{'memory':{width}}  MiB over the start  limit  flat  MiB carried  seconds"
    print(f"\n{header}\n{'-' * len(header)}")
    flat = True
    for case in cases:
        growth = case.measure()
        flat = flat and growth.mib <= LIMIT_MIB
        print(
            f"{case.title:{width}}  {growth.mib:18.1f}  {LIMIT_MIB:5}  {'yes' if growth.mib <= LIMIT_MIB else 'NO':>4}"
            f"  {growth.carried:11,.0f}  {growth.seconds:7.1f}",
            flush=True,
        )
    return flat


def main() -> int:
    patterns = sys.argv[1:] or ["*"]
    cases = [case for case in CASES if any(fnmatch.fnmatchcase(case.key, pattern) for pattern in patterns)]
    if not cases:
        raise SystemExit(f"no such case; there are {', '.join(case.key for case in CASES)}")
    generate()
    return 0 if run(cases) else 1


if __name__ == "__main__":
    sys.exit(main())
