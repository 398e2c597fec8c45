"""Worker processes: they sit still until they are told to work for some seconds, then say what they did.

An order is a line of JSON on standard input, `{"task": ..., "seconds": ...}`; its answer is one on standard output.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import IO

__all__ = ["Sample", "order", "serve"]


class Sample(NamedTuple):
    """What a process did in one slice of time."""

    calls: int
    wall: float
    cpu: float
    """Seconds of processor time of the process that says so, all its threads."""


def serve(tasks: Mapping[str, Callable[[float], Sample]]) -> None:
    """Say that the worker is ready, then carry out orders until standard input ends."""
    print("ready", flush=True)
    for line in sys.stdin:
        wanted = json.loads(line)
        print(json.dumps(tasks[wanted["task"]](wanted["seconds"])), flush=True)


def order(stdin: IO[str], stdout: IO[str], task: str, seconds: float) -> Sample:
    """Give an order and wait for what comes of it."""
    stdin.write(json.dumps({"task": task, "seconds": seconds}) + "\n")
    stdin.flush()
    line = stdout.readline()
    if not line:
        raise SystemExit(f"a worker died during {task!r}; its last words are above")
    return Sample(*json.loads(line))
