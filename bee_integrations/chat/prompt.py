"""One request of an LLM class: engine, prompt and parameters, and what is reported about the answer."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Generator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import aclosing, closing
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from .. import __version__
from ..constraints.phases import SteeringPlan
from ..engine.engine import Engine, GenerationParams, Statistics, Step
from ..errors import GenerationCancelled, ParameterError, TemplateError
from ..generation import TokenLogprob
from ..text.chat_template import ChatTemplate
from .deadline import steps_within, steps_within_blocking
from .parameters import BeeParameters

__all__ = [
    "Answer",
    "HeldEngines",
    "Prompt",
    "Request",
    "arun_all",
    "chat_text",
    "guarded",
    "has_template",
    "response_metadata",
    "run_all",
    "template_source",
    "token_usage",
]

_TRUSTED_ROLES = frozenset({"system", "developer", "assistant"})
_PRIVATE_USE = range(0xE000, 0xF900)  # characters that mean nothing, so templates leave them where they are

# More would only wait: an engine runs few requests at once, and the others queue in it.
_BATCH_THREADS = 16


class HeldEngines:
    """Keeps the engines that an LLM object used last from being closed: its own, and one that a call named.

    Copies and pickles of the object start with an empty one and share the engines of their process.
    """

    _KEPT = 2

    def __init__(self) -> None:
        self._engines: dict[tuple[Any, ...], Engine] = {}  # the one used last at the end

    def open(self, parameters: BeeParameters) -> Engine:
        """The engine for these parameters, shared with all objects of this process that ask for the same."""
        key = _engine_key(parameters)
        engine = self._engines.get(key)
        if engine is None or engine.closed:
            engine = Engine.shared(
                parameters.model,
                drafter=parameters.drafter,
                n_ctx=parameters.n_ctx,
                threads=parameters.threads,
                device=parameters.device,
            )
        # Replaced as a whole, so that threads need no lock: a race only costs another look-up.
        others = [(other, held) for other, held in self._engines.items() if other != key]
        self._engines = dict([*others, (key, engine)][-self._KEPT :])
        return engine

    async def aopen(self, parameters: BeeParameters) -> Engine:
        """As `open`, without blocking the event loop while a model loads."""
        engine = self._engines.get(_engine_key(parameters))
        if engine is not None and not engine.closed:
            return self.open(parameters)
        return await asyncio.to_thread(self.open, parameters)

    def __copy__(self) -> HeldEngines:
        return HeldEngines()

    def __deepcopy__(self, memo: Any) -> HeldEngines:
        return HeldEngines()

    def __reduce__(self) -> tuple[type[HeldEngines], tuple[()]]:
        return HeldEngines, ()

    def __eq__(self, other: object) -> bool:
        # What is loaded is no part of an object's identity: two LLM objects with equal parameters are equal.
        return isinstance(other, HeldEngines)

    __hash__ = None  # type: ignore[assignment]


def _engine_key(parameters: BeeParameters) -> tuple[Any, ...]:
    return parameters.model, parameters.drafter, parameters.n_ctx, parameters.threads, parameters.device


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
    steering: SteeringPlan | None = None
    tokens: Sequence[int] | None = None  # of the prompt, where they are not what its text reads as

    @classmethod
    def of(cls, engine: Engine, parameters: BeeParameters, prompt: str) -> Request:
        """A request for `prompt` with the generation's part of `parameters`."""
        return cls(engine, prompt, parameters.generation_params(), parameters.timeout)

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
            return self.engine.generate(self._given, self.params, steering=self.steering)
        return steps_within_blocking(self.timeout, self._engine_asteps)

    def _all_asteps(self) -> AsyncGenerator[Step, None]:
        steps = self._engine_asteps()
        return steps if self.timeout is None else steps_within(self.timeout, steps)

    def _engine_asteps(self) -> AsyncGenerator[Step, None]:
        return self.engine.agenerate(self._given, self.params, steering=self.steering)

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


@dataclass(frozen=True)
class Prompt:
    """A rendered conversation."""

    rendered: str
    guard: str = ""
    """A character that stands in the texts of control tokens that somebody wrote: these are text."""

    @property
    def text(self) -> str:
        """The prompt as it may be shown."""
        return self.rendered.replace(self.guard, "") if self.guard else self.rendered

    def tokens(self, engine: Engine) -> list[int]:
        """The prompt as the model gets it."""
        return engine.encode_prompt(self.rendered, guard=self.guard)


def guarded(engine: Engine, messages: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], str]:
    """The messages with the texts of control tokens broken up by a character, and that character; "" where there are
    none.

    What the model and the developer wrote stays: a system message, and the model's own answers.
    """
    texts = [str(message.get("content", "")) for message in messages]
    guard = next(character for character in map(chr, _PRIVATE_USE) if not any(character in text for text in texts))
    result, found = [], False
    for message, text in zip(messages, texts, strict=True):
        broken = text if message.get("role") in _TRUSTED_ROLES else engine.tokenizer.guarded(text, guard)
        found = found or broken != text
        result.append({**message, "content": broken} if broken != text else dict(message))
    return result, guard if found else ""


def chat_text(
    engine: Engine,
    parameters: BeeParameters,
    messages: list[dict[str, Any]],
    tools: list[dict[str, Any]] | None = None,
) -> str:
    """A conversation, rendered by the parameters' chat template or else the model's own.

    Raises `TemplateError` where there is no template, or where it rejects the messages.
    """
    if not messages:
        raise ParameterError("there are no messages; a chat needs at least one")
    switch = parameters.enable_thinking
    # Templates know the switch by one of these names.
    thinking = {} if switch is None else {"enable_thinking": switch, "thinking": switch}
    effort = {} if parameters.reasoning_effort is None else {"reasoning_effort": parameters.reasoning_effort}
    variables = thinking | effort | (parameters.chat_template_kwargs or {})
    return _template(engine, parameters).render(messages, tools=tools, **variables)


def template_source(engine: Engine, parameters: BeeParameters) -> str | None:
    """The Jinja source that `chat_text` works with; None where there is none."""
    if parameters.chat_template is not None:
        return parameters.chat_template
    return None if engine.chat_template is None else engine.chat_template.source


def has_template(engine: Engine, parameters: BeeParameters) -> bool:
    """Whether `chat_text` has a template to work with."""
    return parameters.chat_template is not None or engine.chat_template is not None


def _template(engine: Engine, parameters: BeeParameters) -> ChatTemplate:
    if parameters.chat_template is not None:
        tokenizer = engine.tokenizer
        ends = (tokenizer.bos_token_id, tokenizer.eos_token_id)
        bos, eos = ("" if token is None else tokenizer.token_text(token) for token in ends)
        return _compiled(parameters.chat_template, bos, eos)
    if engine.chat_template is None:
        raise TemplateError(
            f"the model {engine.model_name!r} has no chat template, so it cannot be given messages; pass one as "
            "chat_template=... (Jinja source), or give the model plain text "
            "(BeeLLM in LangChain, complete() in LlamaIndex)"
        )
    return engine.chat_template


@lru_cache(maxsize=8)
def _compiled(source: str, bos: str, eos: str) -> ChatTemplate:
    """A user's template, which comes with every call."""
    return ChatTemplate(source, bos, eos)


def token_usage(stats: Statistics) -> dict[str, int]:
    """Counts of tokens: "input", "output", "total", "reused" of the input, and "reasoning" of the output."""
    return {
        "input": stats.prompt_tokens,
        "output": stats.output_tokens,
        "total": stats.prompt_tokens + stats.output_tokens,
        "reused": stats.reused_tokens,
        "reasoning": stats.reasoning_tokens,
    }


def response_metadata(engine: Engine, last: Step) -> dict[str, Any]:
    """What is known about an answer besides its text: plain numbers, strings and dictionaries."""
    metadata: dict[str, Any] = {
        "model_name": engine.model_name,
        "model_provider": "bee",
        "finish_reason": last.finish_reason,
        "system_fingerprint": _fingerprint(engine.info),
        "device": engine.info["device"],
    }
    if last.closed:
        metadata["closed"] = True
    if last.stop_text is not None:
        metadata["stop_sequence"] = last.stop_text
    stats = last.stats
    if stats is not None:
        metadata["seed"] = stats.seed
        metadata["speculation"] = {
            "mode": stats.speculation,
            "tokens_per_cycle": stats.tokens_per_cycle,
            "draft_acceptance": stats.draft_acceptance,
            "accepted_share": stats.accepted_share,
            "cycles": stats.cycles,
            "drafted_tokens": stats.drafted_tokens,
            "accepted_tokens": stats.accepted_tokens,
            "copied_tokens": stats.copied_tokens,
            "copied_accepted": stats.copied_accepted,
            "forced_tokens": stats.forced_tokens,
            "logit_paths": dict(stats.logit_paths),
        }
        metadata["speed"] = {
            "prefill_tokens_per_s": stats.prefill_tokens_per_s,
            "decode_tokens_per_s": stats.decode_tokens_per_s,
            "time_to_first_token_s": stats.time_to_first_token_s,
        }
    return metadata


def _fingerprint(info: Mapping[str, Any]) -> str:
    # Versions, instruction sets and cards may round differently; within one of each, equal requests give equal texts.
    card = [] if info["device"] == "cpu" else str(info["device_name"]).split()
    return "-".join(["bee", __version__, info["instruction_set"], *card])
