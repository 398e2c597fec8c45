"""Work that nobody waits for."""

from __future__ import annotations

import asyncio
import gc
import warnings
import weakref
from typing import Any

from connectrpc.transports._background import finish, in_background


def test_it_is_done_though_nobody_keeps_it() -> None:
    done: list[str] = []

    async def work() -> None:
        gc.collect()
        await asyncio.sleep(0)
        done.append("work")

    async def main() -> None:
        in_background(work())
        while not done:
            gc.collect()
            await asyncio.sleep(0)

    asyncio.run(asyncio.wait_for(main(), 5))
    assert done == ["work"]


def test_a_failure_is_of_no_interest() -> None:
    complaints: list[object] = []

    async def fail() -> None:
        raise ValueError

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: complaints.append(context))
        in_background(fail())
        for _ in range(5):
            await asyncio.sleep(0)
        gc.collect()

    asyncio.run(main())
    assert complaints == []


def test_it_may_be_cancelled_before_it_begins() -> None:
    """As the end of an event loop does."""

    async def work() -> None:
        raise AssertionError

    async def main() -> None:
        in_background(work()).cancel()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        asyncio.run(main())
        gc.collect()


def test_a_loop_that_ends_first_is_not_kept() -> None:
    complaints: list[object] = []
    closed: list[str] = []

    async def work() -> None:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            closed.append("work")

    async def main() -> None:
        in_background(work())
        await asyncio.sleep(0)

    def end() -> weakref.ref[asyncio.AbstractEventLoop]:
        loop = asyncio.new_event_loop()
        loop.set_exception_handler(lambda loop, context: complaints.append(context))
        loop.run_until_complete(main())
        loop.close()
        return weakref.ref(loop)

    first, _ = end(), end()
    gc.collect()
    assert first() is None
    assert closed == ["work"]
    assert complaints == []


def test_finishing() -> None:
    """What waits for nothing is done at once, the rest by the loop."""
    done: list[str] = []

    async def main() -> None:
        future: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        async def work(*waits_for: Any) -> None:
            await asyncio.sleep(0)
            done.extend([await given for given in waits_for])
            done.append("over")

        async def fail() -> None:
            raise ValueError

        finish(work())
        finish(fail())
        assert done == ["over"]
        finish(work(future))
        assert done == ["over"]
        future.set_result("given")
        for _ in range(5):
            await asyncio.sleep(0)

    asyncio.run(main())
    assert done == ["over", "given", "over"]
