"""The queue: one task at a time, in order, and not too many of one client."""

import asyncio

import pytest

from sightline.app.web.delivery.request_queue import QueueFullError, RequestQueue


def test_one_after_the_other() -> None:
    running = 0
    order: list[int] = []

    async def work(queue: RequestQueue, number: int) -> None:
        nonlocal running
        async with queue.take_turn(f"client {number}"):
            running += 1
            assert running == 1
            await asyncio.sleep(0.001)
            order.append(number)
            running -= 1

    async def run() -> None:
        queue = RequestQueue()
        await asyncio.gather(*(work(queue, number) for number in range(9)))

    asyncio.run(run())
    assert order == list(range(9))


def test_a_client_has_a_limit_and_others_have_theirs() -> None:
    async def run() -> list[bool]:
        queue = RequestQueue(max_tasks_per_client=2, max_tasks=4)
        gate = asyncio.Event()

        async def wait(client: str) -> bool:
            try:
                async with queue.take_turn(client):
                    await gate.wait()
                    return True
            except QueueFullError:
                return False

        tasks = [asyncio.ensure_future(wait(client)) for client in "aaabbbc"]
        await asyncio.sleep(0)
        gate.set()
        results = await asyncio.gather(*tasks)
        assert await wait("a")
        return results

    assert asyncio.run(run()) == [True, True, False, True, True, False, False]


def test_a_task_that_fails_gives_its_place_back() -> None:
    async def run() -> None:
        queue = RequestQueue(max_tasks_per_client=1)
        for _ in range(3):
            with pytest.raises(RuntimeError):
                async with queue.take_turn("a"):
                    raise RuntimeError
        async with queue.take_turn("a"):
            with pytest.raises(QueueFullError):
                async with queue.take_turn("a"):
                    pass

    asyncio.run(run())
