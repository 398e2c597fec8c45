"""How a row is measured: the two sides take turns, in short slices, and the pairs of slices are compared.

A row is declared with a `Row`; the functions that start processes and make a `Side` of them are here too.
"""

from __future__ import annotations

import contextlib
import math
import os
import socket
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

import workers
from generate import GEN, HERE

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence

__all__ = [
    "Ratio",
    "Result",
    "Row",
    "Side",
    "Slice",
    "Stage",
    "client_row",
    "client_stream_row",
    "compile_all",
    "grpc_client_side",
    "grpc_server_side",
    "import_row",
    "measure",
    "server",
    "server_row",
    "server_stream_row",
    "start",
    "tree",
]


T = TypeVar("T")


# ---- what a row is


class Slice(NamedTuple):
    """What happened in one slice of time."""

    calls: int
    """How often the work was done: calls, or the messages of streams."""
    wall: float
    """Seconds on the wall clock."""
    cpu: float
    """Seconds of processor time of what is measured."""
    other: float
    """Seconds of processor time of what it talks to: the load generator, or the server under a client."""


class Side(Protocol):
    """One side of a row, ready to be measured."""

    def run(self, seconds: float) -> Slice: ...


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        key: names the row on the command line.
        title: names it in the table.
        target: what the ratio ought to be at least, or at most where `is_cost`; None where nothing is promised.
        open: starts both sides, named by the second argument ("ours" or "floor"), on a stage that stops them.
        is_cost: the ratio is of times and not of rates: less is better.
        every: measured in one round of so many.
        unit_bytes: the size of a message, where bytes per second are to be printed.
        floor_is_ours: both sides run our code, so that it is needed for measuring the floors against themselves too.
    """

    key: str
    title: str
    target: float | None
    open: Callable[[Stage, Sequence[str]], Sequence[Side]]
    is_cost: bool = False
    every: int = 1
    unit_bytes: int | None = None
    floor_is_ours: bool = False


class Ratio(NamedTuple):
    """The median of the pairs' ratios, ours to the floor's."""

    median: float
    error: float
    """How far the median may be off: half the width of its 95 % confidence interval."""
    low: float
    """The lower quartile of the pairs."""
    high: float
    """The upper quartile."""

    @classmethod
    def of(cls, ratios: Sequence[float]) -> Ratio:
        """Summarise the ratios of at least two pairs."""
        low, median, high = statistics.quantiles(ratios, n=4, method="inclusive")
        # The interval between two order statistics, by the normal approximation of the binomial distribution: it
        # assumes nothing of how the ratios are distributed, which a standard error would.
        count, reach = len(ratios), 1.96 * math.sqrt(len(ratios)) / 2
        first, last = math.floor(count / 2 - reach), math.ceil(count / 2 + reach)
        ordered = sorted(ratios)
        return cls(median, (ordered[min(last, count - 1)] - ordered[max(first, 0)]) / 2, low, high)


@dataclass
class Result:
    """The slices of one row, in pairs."""

    row: Row
    ours: list[Slice] = field(default_factory=list)
    floor: list[Slice] = field(default_factory=list)

    def rate(self) -> Ratio:
        """Calls per second of wall clock, compared; for a cost seconds per call."""
        return self._ratio([slice_.wall / slice_.calls for slice_ in self.ours], [s.wall / s.calls for s in self.floor])

    def cpu(self) -> Ratio:
        """Calls per second of processor time, compared; for a cost seconds per call."""
        return self._ratio([slice_.cpu / slice_.calls for slice_ in self.ours], [s.cpu / s.calls for s in self.floor])

    def _ratio(self, ours: Sequence[float], floor: Sequence[float]) -> Ratio:
        costs = [mine / theirs for mine, theirs in zip(ours, floor, strict=True)]
        return Ratio.of(costs if self.row.is_cost else [1 / cost for cost in costs])

    def reaches_target(self) -> bool:
        """Whether the row is as good as it ought to be, to two decimals.

        Processor time decides, being the steadier of the two. The wall clock may object when it is sure: it is what
        would show a runtime that waits.
        """
        if self.row.target is None:
            return True
        rate, cpu = self.rate(), self.cpu()
        if self.row.is_cost:
            return round(cpu.median, 2) <= self.row.target and rate.median - rate.error <= self.row.target
        return round(cpu.median, 2) >= self.row.target and rate.median + rate.error >= self.row.target


def measure(
    rows: Sequence[Row], *, seconds: float, pairs: int, sides: Sequence[str], progress: Callable[[int], None]
) -> list[Result]:
    """Measure all rows together, so that a noisy minute of the machine harms a few pairs of each and no row as a whole.

    Args:
        rows: what to measure.
        seconds: the length of a slice.
        pairs: how many rounds there are, in each of which a row that is measured every time gives one pair of slices.
        sides: the names of the two sides, ("ours", "floor"); the same name twice measures the harness itself.
        progress: told the number of each round of pairs before it begins.
    """
    results = [Result(row) for row in rows]
    compile_all()
    with contextlib.ExitStack() as stack:
        stage = Stage(stack)
        opened = [row.open(stage, sides) for row in rows]
        for pair in opened:
            for side in pair:
                side.run(min(seconds, 0.5))  # to warm up: caches, the interpreter's specialised code, connections
        for number in range(pairs):
            progress(number)
            for place, (result, (ours, floor)) in enumerate(zip(results, opened, strict=True)):
                # Rows that are not measured in each round take turns. Two pairs are the least that make a ratio.
                every = min(result.row.every, pairs // 2)
                if (number + place) % every:
                    continue
                # The order turns round each time: a machine that gets steadily slower, or faster, favours neither.
                if len(result.ours) % 2:
                    result.floor.append(floor.run(seconds))
                    result.ours.append(ours.run(seconds))
                else:
                    result.ours.append(ours.run(seconds))
                    result.floor.append(floor.run(seconds))
    return results


# ---- processes


def compile_all() -> None:
    """Compile what will run, so that no process that is measured has to."""
    subprocess.run([sys.executable, str(HERE / "compiling.py")], cwd=HERE, env=_environment(), check=True)


def _cores() -> tuple[set[int], set[int]]:
    """A core for what is measured and one for what it talks to; the same, and all, where there is no choice."""
    if not hasattr(os, "sched_getaffinity"):
        return set(), set()
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        return set(cores), set(cores)
    return {cores[-1]}, {cores[0]}  # the first is where interrupts tend to land


_MEASURED, _OTHER = _cores()


class Stage:
    """What is running. Rows that can share a process do: it rests while another row is measured.

    Attributes:
        stack: stops it all.
    """

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self.stack = stack
        self._shared: dict[Hashable, Any] = {}

    def shared(self, key: Hashable, make: Callable[[], T]) -> T:
        """What `make` gives, made once for this key."""
        if key not in self._shared:
            self._shared[key] = make()
        found: T = self._shared[key]
        return found


def start(
    stack: contextlib.ExitStack, command: Sequence[str], cores: set[int], *, talks: bool = False
) -> subprocess.Popen[str]:
    """Start a process on these cores; the stack stops it."""

    def pin() -> None:
        if cores:
            os.sched_setaffinity(0, cores)

    pipe = subprocess.PIPE if talks else subprocess.DEVNULL
    process = subprocess.Popen(
        command, stdin=pipe, stdout=pipe, text=True, cwd=HERE, env=_environment(), preexec_fn=pin
    )
    stack.callback(_stop, process)
    return process


def _environment() -> dict[str, str]:
    path = [str(HERE), str(GEN), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path)}
    # An import is that of compiled modules, as everywhere after the first time, also where the machine writes none.
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    environment["PYTHONPYCACHEPREFIX"] = str(GEN / "bytecode")
    return environment


def _stop(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()


class _Worker:
    """A worker process (see `workers`)."""

    def __init__(self, stack: contextlib.ExitStack, script: str, *arguments: object, cores: set[int]) -> None:
        command = [sys.executable, str(HERE / script), *map(str, arguments)]
        process = start(stack, command, cores, talks=True)
        assert process.stdin is not None
        assert process.stdout is not None
        self._stdin, self._stdout = process.stdin, process.stdout
        if self._stdout.readline() != "ready\n":
            raise SystemExit(f"{script} did not start; its last words are above")

    def order(self, task: str, seconds: float) -> workers.Sample:
        return workers.order(self._stdin, self._stdout, task, seconds)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def _await_port(process: subprocess.Popen[str], port: int) -> None:
    """Wait until something listens there."""
    for _ in range(200):
        if process.poll() is not None:
            break
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.05)
    raise SystemExit(f"{process.args!r} did not start; its last words are above")


def tree(pid: int) -> Iterator[int]:
    """A process and all that descend from it."""
    yield pid
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/children") as children:
                for child in children.read().split():
                    yield from tree(int(child))


def _cpu_of(pids: Sequence[int]) -> float:
    """The processor time that processes have used, in seconds, to the nanosecond (which /proc/*/stat is not)."""
    # The id of another process's clock is made as clock_getcpuclockid(3) of Linux makes it.
    return sum(time.clock_gettime((~pid << 3) | 2) for pid in pids)


# ---- rows of servers


class _ServerSide:
    def __init__(self, process: subprocess.Popen[str], load: _Worker, task: str = "load") -> None:
        self._pids = list(tree(process.pid))
        self._load = load
        self._task = task

    def run(self, seconds: float) -> Slice:
        before = _cpu_of(self._pids)
        sample = self._load.order(self._task, seconds)
        return Slice(sample.calls, sample.wall, _cpu_of(self._pids) - before, sample.cpu)


def server(
    stack: contextlib.ExitStack, command: Callable[[str, int], Sequence[str]], application: str, cores: set[int]
) -> tuple[subprocess.Popen[str], int]:
    """A server with this application, and its port."""
    port = _free_port()
    process = start(stack, [sys.executable, *command(application, port)], cores)
    _await_port(process, port)
    return process, port


def _rehearse(stage: Stage, command: Callable[[str, int], Sequence[str]], application: str) -> None:
    """Have a server of this kind run once before those that are measured, so that these find its modules compiled."""

    def begin_and_stop() -> None:
        with contextlib.ExitStack() as stack:
            server(stack, command, application, _OTHER)

    stage.shared(("rehearsal", command), begin_and_stop)


def server_row(
    command: Callable[[str, int], Sequence[str]],
    application: str | Mapping[str, str],
    *,
    connections: int,
    one_core: bool = True,
) -> Callable[[Stage, Sequence[str]], list[Side]]:
    """Two servers, each with an application, under load.

    Args:
        command: makes the arguments for the interpreter of an application ("module:name") and a port.
        application: by the side's name, or with "{}" where the side's name goes.
        connections: how many requests are in flight.
        one_core: keep the server to one core. Otherwise it has all of them, and the load generator takes its share of
            one: then processor time alone is to be compared.
    """
    cores = _MEASURED if one_core else _MEASURED | _OTHER

    def open_sides(stage: Stage, names: Sequence[str]) -> list[Side]:
        sides: list[Side] = []
        for name in names:
            served = application.format(name) if isinstance(application, str) else application[name]
            _rehearse(stage, command, served)
            process, port = server(stage.stack, command, served, cores)
            sides.append(_ServerSide(process, _Worker(stage.stack, "load.py", port, connections, cores=_OTHER)))
        return sides

    return open_sides


def server_stream_row(
    command: Callable[[str, int], Sequence[str]], application: str, task: str
) -> Callable[[Stage, Sequence[str]], list[Side]]:
    """Two servers, each with an application, under streams, one at a time. All rows of a command share them.

    Args:
        command: makes the arguments for the interpreter of an application ("module:name") and a port.
        application: with "{}" where the side's name goes.
        task: of `load_streams`.
    """

    def open_side(stage: Stage, name: str) -> tuple[subprocess.Popen[str], _Worker]:
        _rehearse(stage, command, application.format(name))
        process, port = server(stage.stack, command, application.format(name), _MEASURED)
        return process, _Worker(stage.stack, "load_streams.py", port, cores=_OTHER)

    def open_sides(stage: Stage, names: Sequence[str]) -> list[Side]:
        sides: list[Side] = []
        for index, name in enumerate(names):
            key = ("server", command, application, index)
            process, load = stage.shared(key, lambda name=name: open_side(stage, name))  # type: ignore[misc]
            sides.append(_ServerSide(process, load, task))
        return sides

    return open_sides


# ---- rows of clients


class _ClientSide:
    def __init__(self, worker: _Worker, task: str, responder: subprocess.Popen[str]) -> None:
        self._worker = worker
        self._task = task
        self._responder = responder

    def run(self, seconds: float) -> Slice:
        before = _cpu_of([self._responder.pid])
        sample = self._worker.order(self._task, seconds)
        return Slice(sample.calls, sample.wall, sample.cpu, _cpu_of([self._responder.pid]) - before)


def _responder(stage: Stage, script: str) -> tuple[subprocess.Popen[str], int]:
    def begin() -> tuple[subprocess.Popen[str], int]:
        port = _free_port()
        process = start(stage.stack, [sys.executable, str(HERE / script), str(port)], _OTHER)
        _await_port(process, port)
        return process, port

    return stage.shared(script, begin)


def client_row(
    colour: str, *, concurrency: int = 1, clients: Mapping[str, str] | None = None
) -> Callable[[Stage, Sequence[str]], list[Side]]:
    """Two clients in one process, which makes them more alike than two processes are, against `responder`.

    Args:
        colour: "sync" or "async".
        concurrency: how many calls are in flight.
        clients: which of those in `clients` the sides are, where they are not named like these.
    """

    def open_sides(stage: Stage, names: Sequence[str]) -> list[Side]:
        responder, port = _responder(stage, "responder.py")
        chosen = [name if clients is None else clients[name] for name in names]
        worker = _Worker(stage.stack, "clients.py", colour, port, concurrency, *chosen, cores=_MEASURED)
        return [_ClientSide(worker, str(index), responder) for index in range(len(names))]

    return open_sides


def client_stream_row(colour: str, task: str) -> Callable[[Stage, Sequence[str]], list[Side]]:
    """Two clients in one process with streams, one at a time, against `stream_responder`. Rows of a colour share it.

    Args:
        colour: "sync" or "async".
        task: of `stream_clients`, without the side's number.
    """

    def open_sides(stage: Stage, names: Sequence[str]) -> list[Side]:
        responder, port = _responder(stage, "stream_responder.py")
        worker = stage.shared(
            ("stream_clients", colour),
            lambda: _Worker(stage.stack, "stream_clients.py", colour, port, *names, cores=_MEASURED),
        )
        return [_ClientSide(worker, f"{task}-{index}", responder) for index in range(len(names))]

    return open_sides


# ---- sides of the table of gRPC


def _uvicorn_http2(application: str, port: int) -> list[str]:
    return ["-m", "uvicorn", "--http=zttp", "--http2", "--loop=auto", "--lifespan=off", "--timeout-keep-alive=600",
            "--no-access-log", "--log-level=warning", "--host=127.0.0.1", f"--port={port}", application]  # fmt: skip


def grpc_server_side(stage: Stage, name: str, task: str) -> Side:
    """A server under the load of grpcio's client: our app or the floor on uvicorn, or one of grpcio's own.

    Args:
        stage: stops it.
        name: "ours", "floor", "grpcio-aio" or "grpcio-threads".
        task: of `grpc_load`.
    """

    def begin() -> tuple[subprocess.Popen[str], _Worker]:
        if name.startswith("grpcio-"):
            port = _free_port()
            command = [sys.executable, str(HERE / "grpc_peer.py"), name.removeprefix("grpcio-"), str(port)]
            process = start(stage.stack, command, _MEASURED)
            _await_port(process, port)
        else:
            application = {"ours": "asgi_ours:grpc", "floor": "asgi_grpc_floor:app"}[name]
            _rehearse(stage, _uvicorn_http2, application)
            process, port = server(stage.stack, _uvicorn_http2, application, _MEASURED)
        return process, _Worker(stage.stack, "grpc_load.py", port, cores=_OTHER)

    return _ServerSide(*stage.shared(("grpc server", name), begin), task)


def grpc_client_side(stage: Stage, name: str, task: str) -> Side:
    """A client that calls a server of grpcio's.

    Args:
        stage: stops it.
        name: of `grpc_clients`.
        task: of `grpc_clients`.
    """
    responder, port = _responder(stage, "grpc_responder.py")
    worker = stage.shared(
        ("grpc client", name), lambda: _Worker(stage.stack, "grpc_clients.py", name, port, cores=_MEASURED)
    )
    return _ClientSide(worker, task, responder)


# ---- rows of imports


class _ImportSide:
    def __init__(self, module: str) -> None:
        self._module = module

    def run(self, seconds: float) -> Slice:
        calls, wall, cpu = 0, 0.0, 0.0
        end = time.perf_counter() + seconds
        while time.perf_counter() < end or not calls:
            with contextlib.ExitStack() as stack:
                command = [sys.executable, str(HERE / "importing.py"), self._module]
                process = start(stack, command, _MEASURED, talks=True)
                words = process.communicate()[0].split()
            if process.returncode:
                raise SystemExit(f"{self._module} cannot be imported; why is above")
            calls += 1
            wall += float(words[0])
            cpu += float(words[1])
        return Slice(calls, wall, cpu, 0.0)


def import_row(ours: str, floor: str) -> Callable[[Stage, Sequence[str]], list[Side]]:
    """The import of one module against that of another, each time in a fresh interpreter."""
    modules = {"ours": ours, "floor": floor}

    def open_sides(stage: Stage, names: Sequence[str]) -> list[Side]:
        return [_ImportSide(modules[name]) for name in names]

    return open_sides
