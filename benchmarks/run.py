"""Measures what our runtime costs, as ratios to the same work done without it, and prints one table.

`python benchmarks/run.py --help` tells the options; README.md how to read the table.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import sys
from pathlib import Path

import grpc_table
import memory
from generate import generate
from harness import Ratio, Result, Row, Slice, measure
from rows import ROWS

__all__: list[str] = []


def _ratio(ratio: Ratio) -> str:
    return f"{ratio.median:.3f} ±{ratio.error:.3f} ({ratio.low:.2f}-{ratio.high:.2f})"


def _microseconds(slices: list[Slice]) -> str:
    return f"{sum(s.cpu for s in slices) / sum(s.calls for s in slices) * 1e6:,.1f}"


def _per_second(result: Result) -> str:
    rate = sum(s.calls for s in result.ours) / sum(s.wall for s in result.ours)
    if result.row.unit_bytes is None:
        return f"{rate:,.0f}"
    return f"{rate * result.row.unit_bytes / 2**20:,.0f} MiB"


def _target(row: Row) -> str:
    if row.target is None:
        return ""
    return f"{'<=' if row.is_cost else '>='} {row.target:.2f}"


def _met(result: Result) -> str:
    if result.row.target is None:
        return ""
    return "yes" if result.reaches_target() else "NO"


def _share(slices: list[Slice], seconds: float) -> str:
    return f"{seconds / sum(s.wall for s in slices):.0%}"


def _line(result: Result) -> list[str]:
    row, slices = result.row, result.ours + result.floor
    return [
        row.title,
        _microseconds(result.ours),
        _microseconds(result.floor),
        _ratio(result.cpu()),
        _target(row),
        _met(result),
        _ratio(result.rate()),
        _per_second(result),
        _share(slices, sum(s.cpu for s in slices)),
        _share(slices, sum(s.other for s in slices)),
    ]


def _raw(result: Result) -> dict[str, list[dict[str, float]]]:
    return {name: [s._asdict() for s in slices] for name, slices in (("ours", result.ours), ("floor", result.floor))}


def _table(results: list[Result]) -> str:
    titles = [
        "",
        "ours us",
        "floor us",
        "ratio by CPU time",
        "target",
        "met",
        "ratio by wall clock",
        "ours per s",
        "busy",
        "other side",
    ]
    lines = [titles, *map(_line, results)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = []
    for title, *cells in lines:
        padded = (cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))
        text.append("  ".join([title.ljust(widths[0]), *padded]))
    return "\n".join([text[0], "-" * len(text[0]), *text[1:]])


def main() -> int:
    keys = [*(row.key for row in ROWS), *(case.key for case in memory.CASES), *(case.key for case in grpc_table.CASES)]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "rows",
        nargs="*",
        metavar="ROW",
        help=f"what to measure, of {', '.join(keys)} (default: all); patterns such as 'uvicorn*' are understood",
    )
    parser.add_argument("--seconds", type=float, default=0.1, help="length of a slice (default: %(default)s)")
    parser.add_argument("--pairs", type=int, default=50, help="slices of each side of a row (default: %(default)s)")
    parser.add_argument("--check", action="store_true", help="exit with 1 when a target is missed")
    parser.add_argument("--floors", action="store_true", help="measure the floors against themselves instead")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all slices to this file")
    options = parser.parse_args()
    for pattern in options.rows:
        if not fnmatch.filter(keys, pattern):
            parser.error(f"no such row: {pattern}")
    if options.pairs < 2:
        parser.error("at least two pairs are needed")

    def wanted(key: str) -> bool:
        return not options.rows or any(fnmatch.fnmatchcase(key, pattern) for pattern in options.rows)

    rows = [row for row in ROWS if wanted(row.key)]
    cases = [] if options.floors else [case for case in memory.CASES if wanted(case.key)]

    compared = [] if options.floors else [case for case in grpc_table.CASES if wanted(case.key)]

    def progress(number: int) -> None:
        if sys.stderr.isatty():
            print(f"\r{number + 1}/{options.pairs} ", end="", file=sys.stderr, flush=True)

    generate(with_plugin=not options.floors or any(row.floor_is_ours for row in rows))
    sides = ("floor", "floor") if options.floors else ("ours", "floor")
    results: list[Result] = []
    if rows:
        results = measure(rows, seconds=options.seconds, pairs=options.pairs, sides=sides, progress=progress)
    if sys.stderr.isatty():
        print("\r", end="", file=sys.stderr)
    if results:
        print(_table(results))
    if options.json:
        options.json.write_text(json.dumps({result.row.key: _raw(result) for result in results}, indent=1))
    flat = memory.run(cases)
    # A quarter as many rounds, twice as long: a case has up to four sides, and a call may take a tenth of a second.
    met = grpc_table.run(compared, seconds=2 * options.seconds, rounds=max(2, options.pairs // 4))
    missed = not flat or not met or not all(result.reaches_target() for result in results)
    return 1 if options.check and missed and not options.floors else 0


if __name__ == "__main__":
    sys.exit(main())
