"""Work that nobody waits for."""

from __future__ import annotations

import asyncio
import gc

from connectrpc.transports._background import in_background


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
