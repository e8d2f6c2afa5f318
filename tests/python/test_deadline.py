"""Generations that must end within a time."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest

from bee_integrations.chat.deadline import steps_within, steps_within_blocking


class Source:
    """Counts up; waits for ever before `stuck_at`, and notes when it is closed."""

    def __init__(self, length: int, *, stuck_at: int | None = None, error: Exception | None = None) -> None:
        self.length = length
        self.stuck_at = stuck_at
        self.error = error
        self.closed = threading.Event()

    async def steps(self) -> AsyncGenerator[int, None]:
        try:
            for number in range(self.length):
                if number == self.stuck_at:
                    await asyncio.Event().wait()
                yield number
            if self.error is not None:
                raise self.error
        finally:
            self.closed.set()


async def collected(timeout: float, source: Source) -> list[int]:
    async with aclosing(steps_within(timeout, source.steps())) as steps:
        return [step async for step in steps]


def test_all_steps_come() -> None:
    source = Source(100)
    assert list(steps_within_blocking(60, source.steps)) == list(range(100))
    assert source.closed.is_set()
    assert asyncio.run(collected(60, Source(100))) == list(range(100))


def test_a_stuck_source_is_cancelled() -> None:
    source = Source(10, stuck_at=3)
    steps = steps_within_blocking(0.05, source.steps)
    assert [next(steps), next(steps), next(steps)] == [0, 1, 2]
    with pytest.raises(TimeoutError, match=r"after 0\.05 s"):
        next(steps)
    assert source.closed.is_set()
    again = Source(10, stuck_at=0)
    with pytest.raises(TimeoutError, match=r"after 0\.05 s"):
        asyncio.run(collected(0.05, again))
    assert again.closed.is_set()


def test_errors_of_the_source_pass() -> None:
    with pytest.raises(KeyError, match="broken"):
        list(steps_within_blocking(60, Source(2, error=KeyError("broken")).steps))
    with pytest.raises(KeyError, match="broken"):
        asyncio.run(collected(60, Source(2, error=KeyError("broken"))))


def test_closing_cancels_the_source() -> None:
    source = Source(10, stuck_at=1)
    steps = steps_within_blocking(60, source.steps)
    assert next(steps) == 0
    steps.close()
    assert source.closed.wait(30)


def test_cancelling_the_task_cancels_the_source() -> None:
    source = Source(10, stuck_at=1)

    async def cancelled() -> None:
        task = asyncio.create_task(collected(60, source))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled())


def test_inside_a_running_loop() -> None:
    async def caller() -> list[int]:
        return list(steps_within_blocking(60, Source(5).steps))

    assert asyncio.run(caller()) == [0, 1, 2, 3, 4]
