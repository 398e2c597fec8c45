"""Work of an event loop that nobody need wait for."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Coroutine

__all__ = ["in_background", "kept"]

_under_way: set[asyncio.Task[None]] = set()
"""Kept until they are done, as the event loop does not."""


def in_background(work: Coroutine[Any, Any, Any]) -> asyncio.Task[None]:
    """Do what need not be waited for, and whose failure is of no interest, in the running loop."""
    return kept(asyncio.get_running_loop().create_task(_quietly(work)))


def kept(task: asyncio.Task[None]) -> asyncio.Task[None]:
    """A task that goes on though nobody holds it."""
    _under_way.add(task)
    task.add_done_callback(_under_way.discard)
    return task


async def _quietly(work: Coroutine[Any, Any, Any]) -> None:
    with contextlib.suppress(Exception):
        await work
