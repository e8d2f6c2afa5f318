"""Generations in other threads that end with their caller: Ctrl-C strikes in the main thread alone.

A thread pool waits for its threads when the one that uses it is interrupted, so the generations in them must be told.
"""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Generator, Iterator
from typing import TypeVar

from ..errors import GenerationCancelled

__all__ = ["begun_together", "each_interruptible", "interruptible"]

_T = TypeVar("_T")


class _Together:
    """Generations that one call began, in whatever threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._cancels: list[Callable[[], None]] = []
        self._cancelled = False

    def add(self, cancel: Callable[[], None]) -> None:
        with self._lock:
            if self._cancelled:
                raise GenerationCancelled("the call that this generation belongs to was interrupted")
            self._cancels.append(cancel)

    def cancel(self) -> None:
        with self._lock:
            self._cancelled = True
        for cancel in self._cancels:
            cancel()


_together: contextvars.ContextVar[_Together | None] = contextvars.ContextVar("bee_together", default=None)


def begun_together(cancel: Callable[[], None]) -> None:
    """A generation begins, and `cancel` ends it, from any thread and also when it is over. Raises GenerationCancelled
    where the call that it belongs to was interrupted."""
    together = _together.get()
    if together is not None:
        together.add(cancel)


def interruptible(function: Callable[[], _T]) -> _T:
    """`function()` in a thread of its own. What interrupts the wait for it (Ctrl-C) cancels the generations that it
    began in this or other threads, as far as these run in copies of its context, and is raised at once."""
    return _Waiting().run(function)


def each_interruptible(results: Iterator[_T]) -> Generator[_T, None, None]:
    """The results, each worked out as by `interruptible`; the end of this generator cancels what still runs, too."""
    waiting = _Waiting()
    try:
        while (result := waiting.run(lambda: next(results, _NO_MORE))) is not _NO_MORE:
            yield result  # type: ignore[misc]
    finally:
        waiting.together.cancel()


_NO_MORE = object()


class _Waiting:
    """A caller that waits for functions, one after the other, which work in another thread."""

    def __init__(self) -> None:
        self.together = _Together()
        self._context = contextvars.copy_context()
        self._context.run(_together.set, self.together)

    def run(self, function: Callable[[], _T]) -> _T:
        results: list[_T] = []
        errors: list[BaseException] = []

        def work() -> None:
            try:
                results.append(self._context.run(function))
            except BaseException as error:  # raised again by the thread that waits
                errors.append(error)

        thread = threading.Thread(target=work, name="bee-interruptible", daemon=True)
        thread.start()
        try:
            thread.join()
        except BaseException:
            self.together.cancel()
            raise
        if errors:
            raise errors[0]
        return results[0]
