"""What the fuzzers share: a budget of time, seeds that can be given again, and ways to spoil things.

Each fuzzer runs for about ``FUZZ_SECONDS`` (0.5 by default, so that they run along with the unit tests). A failure
names its seed: ``FUZZ_SEED=<seed> pytest tests/fuzz -k <name>`` does that one case again. Cases are not remembered from
one run to the next; the first ones of a run are always the same.
"""

from __future__ import annotations

import os
import random
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

SECONDS = float(os.environ.get("FUZZ_SECONDS", "0.5"))
SEED = os.environ.get("FUZZ_SEED")

INTERESTING = [0, 1, 2, 3, 4, 5, 0x7F, 0x80, 0xFF]


def fuzz(case: Callable[[random.Random], None], at_least: int = 50) -> None:
    """Run ``case`` with one seed after the other until the time is up.

    Args:
        case: one experiment, all chance of which is in the generator it is given.
        at_least: so many, however slow they are.
    """
    if SEED is not None:
        case(random.Random(int(SEED)))
        return
    until, seed = time.monotonic() + SECONDS, 0
    while seed < at_least or time.monotonic() < until:
        try:
            case(random.Random(seed))
        except BaseException as error:
            raise AssertionError(f"FUZZ_SEED={seed}: {error!r}") from error
        seed += 1


def cut(chance: random.Random, data: bytes) -> list[bytes]:
    """``data`` in random pieces, some of which are empty."""
    found, position = [], 0
    while position < len(data):
        size = chance.choice((0, 1, 1, 2, 5, chance.randrange(1, 2 + len(data))))
        found.append(data[position : position + size])
        position += size
    return found


def noise(chance: random.Random, longest: int = 200) -> bytes:
    """Random bytes, some of them all the same."""
    size = chance.randrange(longest)
    return chance.randbytes(size) if chance.random() < 0.8 else bytes([chance.choice(INTERESTING)]) * size


def spoil(chance: random.Random, data: bytes) -> bytes:
    """``data`` with some things changed, left out, doubled or put in; sometimes with none."""
    spoiled = bytearray(data)
    for _ in range(chance.choice((0, 1, 1, 1, 2, 3, 10))):
        start = chance.randrange(len(spoiled) + 1)
        stop = min(len(spoiled), start + chance.choice((1, 1, 2, 4, 16, 1000)))
        kind = chance.randrange(7)
        if kind == 0 and start < len(spoiled):
            spoiled[start] ^= 1 << chance.randrange(8)
        elif kind == 1 and start < len(spoiled):
            spoiled[start] = chance.choice(INTERESTING)
        elif kind == 2:
            del spoiled[start:stop]
        elif kind == 3:
            spoiled[start:start] = spoiled[start:stop]
        elif kind == 4:
            spoiled[start:start] = noise(chance, 20)
        elif kind == 5:
            del spoiled[start:]
        else:
            spoiled[start:stop] = noise(chance, 20)
    return bytes(spoiled)


def spoil_text(chance: random.Random, text: str, words: Sequence[str] = ()) -> str:
    """``text`` with some things changed; may hold any character."""
    spoiled = text
    for _ in range(chance.choice((0, 1, 1, 2, 5))):
        start = chance.randrange(len(spoiled) + 1)
        stop = start + chance.choice((0, 1, 3, 1000))
        pool = ["", " ", ",", ";", "=", "\t", "0", "-", "\x00", "\xff", "\u20ac", "9" * 30, "a" * 3000, *words]
        spoiled = spoiled[:start] + chance.choice(pool) + spoiled[stop:]
    return spoiled
