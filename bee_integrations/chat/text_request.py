"""One prompt for an engine: what both frameworks' classes make of a call, as steps or as a whole."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Generator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import aclosing, closing
from dataclasses import dataclass

from ..constraints.phases import AnswerPhases
from ..engine.engine import Engine, GenerationParams, Statistics, Step
from ..errors import GenerationCancelled
from ..generation import TokenLogprob
from .deadline import steps_within, steps_within_blocking
from .parameters import BeeParameters

__all__ = ["Answer", "Request", "arun_all", "run_all"]

# More would only wait: an engine runs few requests at once, and the others queue in it.
_BATCH_THREADS = 16


@dataclass(frozen=True)
class Answer:
    """A whole generation."""

    text: str
    last: Step  # carries the finish reason and the statistics
    logprobs: tuple[TokenLogprob, ...] = ()

    @property
    def stats(self) -> Statistics:
        """Statistics of the generation."""
        assert self.last.stats is not None, "the last step of a generation carries its statistics"
        return self.last.stats

    @classmethod
    def of(cls, steps: Sequence[Step]) -> Answer:
        """Put the steps of a finished generation together."""
        logprobs = tuple(logprob for step in steps for logprob in step.logprobs)
        return cls("".join(step.text for step in steps), steps[-1], logprobs)


@dataclass(frozen=True)
class Request:
    """A prompt for an engine; nothing runs before `run`, `steps` or their async forms are called."""

    engine: Engine
    prompt: str
    params: GenerationParams
    timeout: float | None = None
    phases: AnswerPhases | None = None
    tokens: Sequence[int] | None = None  # of the prompt, where they are not what its text reads as

    @classmethod
    def of(cls, engine: Engine, parameters: BeeParameters, prompt: str) -> Request:
        """A request for `prompt` with the generation's part of `parameters`."""
        return cls(engine, prompt, parameters.generation_for(engine), parameters.timeout)

    def steps(self) -> Generator[Step, None, None]:
        """The generation as it comes, without steps that bring nothing; closing the generator cancels it.

        The last step has the statistics. Raises what the engine raises, and TimeoutError.
        """
        with closing(self._all_steps()) as steps:
            yield from (step for step in steps if _matters(step))

    async def asteps(self) -> AsyncGenerator[Step, None]:
        """As `steps`, for an event loop; cancelling the task cancels the generation."""
        async with aclosing(self._all_asteps()) as steps:
            async for step in steps:
                if _matters(step):
                    yield step

    def run(self) -> Answer:
        """Generate to the end."""
        with closing(self.steps()) as steps:
            return Answer.of(list(steps))

    async def arun(self) -> Answer:
        """As `run`, for an event loop."""
        async with aclosing(self.asteps()) as steps:
            return Answer.of([step async for step in steps])

    def _all_steps(self) -> Generator[Step, None, None]:
        if self.timeout is None:
            return self.engine.generate(self._given, self.params, phases=self.phases)
        return steps_within_blocking(self.timeout, self._engine_asteps)

    def _all_asteps(self) -> AsyncGenerator[Step, None]:
        steps = self._engine_asteps()
        return steps if self.timeout is None else steps_within(self.timeout, steps)

    def _engine_asteps(self) -> AsyncGenerator[Step, None]:
        return self.engine.agenerate(self._given, self.params, phases=self.phases)

    @property
    def _given(self) -> str | Sequence[int]:
        return self.prompt if self.tokens is None else self.tokens


def _matters(step: Step) -> bool:
    return bool(step.text) or bool(step.logprobs) or step.stats is not None


def run_all(requests: Sequence[Request]) -> list[Answer]:
    """Answers in the order of the requests, which the engine works on side by side.

    Where one fails, or the caller is interrupted, the others are cancelled and the first error is raised.
    """
    if len(requests) == 1:
        return [requests[0].run()]
    cancelled = threading.Event()

    def run(request: Request) -> Answer:
        steps = []
        with closing(request.steps()) as running:
            for step in running:
                if cancelled.is_set():
                    raise GenerationCancelled("another request of the same batch failed")
                steps.append(step)
        return Answer.of(steps)

    with ThreadPoolExecutor(max_workers=_BATCH_THREADS, thread_name_prefix="bee-batch") as pool:
        futures = [pool.submit(run, request) for request in requests]
        try:
            finished = wait(futures, return_when=FIRST_EXCEPTION).done
            for future in finished:
                future.result()  # raises the first error before any other request is waited for
            return [future.result() for future in futures]
        finally:
            cancelled.set()
            pool.shutdown(wait=False, cancel_futures=True)


async def arun_all(requests: Sequence[Request]) -> list[Answer]:
    """As `run_all`, for an event loop."""
    tasks = [asyncio.ensure_future(request.arun()) for request in requests]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
