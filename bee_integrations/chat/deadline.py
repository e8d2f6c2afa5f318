"""Generations that must end within a time: when it is over they are cancelled and TimeoutError is raised."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import os
import queue
import threading
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import aclosing
from typing import Generic, TypeVar

from ..errors import EngineClosedError, OutOfMemoryError

__all__ = ["steps_within", "steps_within_blocking"]

_T = TypeVar("_T")


async def steps_within(timeout: float, steps: AsyncGenerator[_T, None]) -> AsyncGenerator[_T, None]:
    """`steps`, as long as they come within `timeout` seconds from now. Closes them in any case."""
    loop = asyncio.get_running_loop()
    end = loop.time() + timeout
    async with aclosing(steps):
        while True:
            step = asyncio.ensure_future(_next(steps))
            if not await _ends_within(end - loop.time(), step):
                raise TimeoutError(f"the answer was not complete after {timeout} s and was cancelled")
            try:
                result = step.result()
            except StopAsyncIteration:
                return
            yield result


async def _next(steps: AsyncGenerator[_T, None]) -> _T:
    return await steps.__anext__()


async def _ends_within(seconds: float, task: asyncio.Future[_T]) -> bool:
    # Not asyncio.wait_for: before Python 3.12 it loses a cancellation that comes just when the task ends.
    try:
        await asyncio.wait({task}, timeout=max(seconds, 0))
        return task.done()
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait({task})


def steps_within_blocking(timeout: float, start: Callable[[], AsyncGenerator[_T, None]]) -> Generator[_T, None, None]:
    """As `steps_within`, for a caller without an event loop; closing the generator cancels the steps.

    A blocked generator cannot be stopped from outside, but a task can: so the steps run in a loop of their own.
    """
    runner = _Runner(timeout, start)
    try:
        runner.thread.start()
    except RuntimeError as error:
        raise OutOfMemoryError(f"the system gives this process no more threads ({error})") from error
    try:
        while True:
            if os.getpid() != runner.pid:
                raise EngineClosedError("this process was forked while the answer came, which ends in the parent alone")
            item = runner.arrived.get()
            if isinstance(item, _End):
                if item.error is not None:
                    raise item.error
                return
            yield item
    finally:
        runner.cancel()


class _End:
    def __init__(self, error: BaseException | None) -> None:
        self.error = error


class _Runner(Generic[_T]):
    """A thread with an event loop that puts the steps into a queue."""

    def __init__(self, timeout: float, start: Callable[[], AsyncGenerator[_T, None]]) -> None:
        self.arrived: queue.SimpleQueue[_T | _End] = queue.SimpleQueue()
        self.pid = os.getpid()
        context = contextvars.copy_context()
        self.thread = threading.Thread(target=context.run, args=(self._run,), name="bee-deadline", daemon=True)
        self._timeout = timeout
        self._start = start
        self._lock = threading.Lock()
        self._cancelled = False
        self._task: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def cancel(self) -> None:
        with self._lock:
            self._cancelled = True
            if self._task is not None and self._loop is not None:
                with contextlib.suppress(RuntimeError):  # the loop has ended, and the steps with it
                    self._loop.call_soon_threadsafe(self._task.cancel)

    def _run(self) -> None:
        try:
            asyncio.run(self._pump())
        except BaseException as error:  # handed to the consumer, whatever it is
            self.arrived.put(_End(error))
        else:
            self.arrived.put(_End(None))

    async def _pump(self) -> None:
        with self._lock:
            if self._cancelled:
                return
            self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
        async with aclosing(steps_within(self._timeout, self._start())) as steps:
            async for step in steps:
                self.arrived.put(step)
