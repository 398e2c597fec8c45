"""How gRPC through our server and our clients compares with grpcio: a table of its own, as there are several sides.

Each round measures every side of every case once, in turning order. What counts is the processor time of the process
that is measured, ours to grpcio's in the same round; the median of the rounds is printed.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from harness import Ratio, Slice, Stage, compile_all, grpc_client_side, grpc_server_side
from shapes import KINDS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from harness import Side

__all__ = ["CASES", "Case", "run"]

UNARY_TARGET = 1.0
STREAM_TARGET = 2.0


@dataclass(frozen=True)
class Case:
    """One line of the table.

    Attributes:
        key: names it on the command line.
        task: what is done, such as "download-small".
        sides: what is measured: ours, the floor, and grpcio's.
        open: makes one of the sides.
    """

    key: str
    task: str
    sides: tuple[str, ...]
    open: Callable[[Stage, str, str], Side]

    @property
    def target(self) -> float:
        """How many times as much as grpcio ours is to do in the same processor time."""
        return UNARY_TARGET if self.task.startswith("unary") else STREAM_TARGET


SERVER = ("ours", "floor", "grpcio-aio", "grpcio-threads")
SYNC = ("ours-sync", "floor-sync", "grpcio-sync")
ASYNC = ("ours-async", "floor-async", "grpcio-async")
SYNC_PYCURL = ("ours-sync-pycurl", "floor-sync-pycurl", "grpcio-sync")
ASYNC_PYCURL = ("ours-async-pycurl", "floor-async-pycurl", "grpcio-async")

_GROUPS = (
    ("server", SERVER, grpc_server_side),
    ("sync", SYNC, grpc_client_side),
    ("async", ASYNC, grpc_client_side),
    ("sync-pycurl", SYNC_PYCURL, grpc_client_side),
    ("async-pycurl", ASYNC_PYCURL, grpc_client_side),
)

CASES = tuple(
    Case(f"grpc-{name}-{kind}{suffix}", f"{kind}-{size}", sides, opener)
    for name, sides, opener in _GROUPS
    for size, suffix in (("small", ""), ("medium", "-64k"))
    for kind in ("unary", *KINDS)
)


@dataclass
class _Result:
    case: Case
    slices: dict[str, list[Slice]] = field(default_factory=dict)

    def cost(self, side: str) -> float:
        """Microseconds of processor time for a unit."""
        costs = [slice_.cpu / slice_.calls for slice_ in self.slices[side]]
        return Ratio.of(costs).median * 1e6

    def rate(self, side: str) -> float:
        """Units per second of wall clock."""
        return Ratio.of([slice_.calls / slice_.wall for slice_ in self.slices[side]]).median

    def ratio(self, side: str, peer: str) -> Ratio:
        """How many times as much as ``peer`` a side does in the same processor time."""
        pairs = zip(self.slices[side], self.slices[peer], strict=True)
        return Ratio.of([(b.cpu / b.calls) / (a.cpu / a.calls) for a, b in pairs])

    def met(self) -> str:
        """Whether the target is met; where it is not, whether anything on the same library could."""
        ours, floor, *peers = self.case.sides
        if all(round(self.ratio(ours, peer).median, 2) >= self.case.target for peer in peers):
            return "yes"
        reachable = all(self.ratio(floor, peer).median >= self.case.target for peer in peers)
        return "NO" if reachable else "no, nor the floor"


def measure(cases: Sequence[Case], *, seconds: float, rounds: int) -> list[_Result]:
    """Measure all cases together, each side for ``seconds`` in every round."""
    results = [_Result(case, {side: [] for side in case.sides}) for case in cases]
    with contextlib.ExitStack() as stack:
        stage = Stage(stack)
        opened = [{side: case.open(stage, side, case.task) for side in case.sides} for case in cases]
        for sides in opened:
            for side in sides.values():
                side.run(min(seconds, 0.5))  # to warm up
        for number in range(rounds):
            for result, sides in zip(results, opened, strict=True):
                names = list(sides)
                turn = number % len(names)
                for name in names[turn:] + names[:turn]:
                    result.slices[name].append(sides[name].run(seconds))
    return results


def _lines(result: _Result) -> list[str]:
    case = result.case
    ours, floor, *peers = case.sides
    ratios = [result.ratio(ours, peer) for peer in peers]
    return [
        case.key,
        f"{result.cost(ours):,.1f}",
        f"{result.cost(floor):,.1f}",
        " / ".join(f"{result.cost(peer):,.1f}" for peer in peers),
        " / ".join(f"{ratio.median:.2f} ±{ratio.error:.2f}" for ratio in ratios),
        f">= {case.target:.0f}",
        result.met(),
        f"{result.ratio(ours, floor).median:.2f}",
        f"{result.rate(ours):,.0f}",
        f"{result.rate(floor):,.0f}",
        " / ".join(f"{result.rate(peer):,.0f}" for peer in peers),
    ]


TITLES = [
    "gRPC",
    "ours us",
    "floor us",
    "grpcio us",
    "grpcio's cost to ours",
    "target",
    "met",
    "to floor",
    "ours per s",
    "floor per s",
    "grpcio per s",
]


def run(cases: Sequence[Case], *, seconds: float, rounds: int) -> bool:
    """Measure, and print the table; whether all targets are met that can be."""
    if not cases:
        return True
    compile_all()
    rows = [_lines(result) for result in measure(cases, seconds=seconds, rounds=rounds)]
    widths = [max(map(len, column)) for column in zip(TITLES, *rows, strict=True)]
    for row in (TITLES, *rows):
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        print("  ".join(cells))
    return all(row[6] != "NO" for row in rows)
