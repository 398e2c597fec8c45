"""Work of an event loop that nobody need wait for."""

from __future__ import annotations

import asyncio
import contextlib
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Coroutine, Generator

__all__ = ["finish", "in_background", "kept"]

_under_way: dict[asyncio.AbstractEventLoop, set[asyncio.Task[None]]] = {}
"""Kept until they are done, as the event loop does not, or until their loop has been closed, and another one begun."""


def in_background(work: Coroutine[Any, Any, Any]) -> asyncio.Task[None]:
    """Do what need not be waited for, and whose failure is of no interest, in the running loop."""
    task = kept(asyncio.get_running_loop().create_task(_quietly(work)))
    task.add_done_callback(lambda _: work.close())  # it may be cancelled, as the loop ends, before it has begun
    return task


def finish(work: Coroutine[Any, Any, Any]) -> None:
    """Do at once what only gives way to other tasks, and leave the rest of it to a task of its own.

    A task that is made while the event loop shuts down may never run.
    """
    try:
        while (waits_for := work.send(None)) is None:
            pass
    except StopIteration:
        return
    except Exception:
        return  # the connection is lost in any case
    in_background(_rest(work, waits_for))


@types.coroutine
def _rest(work: Coroutine[Any, Any, Any], waits_for: Any) -> Generator[Any, Any, None]:
    try:
        while True:
            try:
                given = yield waits_for
            except BaseException as error:
                waits_for = work.throw(error)
            else:
                waits_for = work.send(given)
    except StopIteration:
        return


def kept(task: asyncio.Task[None]) -> asyncio.Task[None]:
    """A task that goes on though nobody holds it. One that the end of its loop leaves undone is not complained of."""
    loop = task.get_loop()
    tasks = _under_way.get(loop)
    if tasks is None:
        for other in list(_under_way):
            if other.is_closed():
                _under_way.pop(other, None)
        tasks = _under_way[loop] = set()
    tasks.add(task)
    task.add_done_callback(tasks.discard)
    task._log_destroy_pending = False  # type: ignore[attr-defined]  # as asyncio's own `gather` has it
    return task


async def _quietly(work: Coroutine[Any, Any, Any]) -> None:
    with contextlib.suppress(Exception):
        await work
