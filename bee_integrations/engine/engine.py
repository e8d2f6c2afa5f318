"""The framework-free face of Bee: load a model, stream a generation in small steps.

    with Engine() as engine:
        prompt = engine.render_chat([{"role": "user", "content": "Name three colours."}])
        for step in engine.generate(prompt, GenerationParams(max_tokens=100)):
            print(step.text, end="", flush=True)

An engine may be used from several threads and event loops; requests run side by side up to `n_parallel`, and queue
beyond that. Closing a generator, interrupting its consumer or cancelling the task around `agenerate` stops the
generation within one pass over the model.
"""

from __future__ import annotations

import asyncio
import logging
import os
import queue
import random
import threading
import time
import weakref
from collections.abc import AsyncGenerator, Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from ..constraints.compiler import GrammarCompiler
from ..constraints.phases import AnswerPhases, RunningPhases
from ..errors import (
    ConstraintError,
    ContextLengthError,
    ModelFormatError,
    OutOfMemoryError,
    ParameterError,
    TemplateError,
    UnsupportedModelError,
)
from ..generation import Completion, GenerationParams, Statistics, Step, TokenLogprob
from ..library import check, ffi, lib, new_error
from ..models import registry as models
from ..models.drafters import Drafter, find_drafter
from ..models.file import ModelFile, Plan, check_kv_cache
from ..models.memory import available_memory, size_text
from ..models.ollama_templates import known_form
from ..models.packed import packed_directory
from ..models.sampling_defaults import sampling_defaults
from ..parameter_checks import INT32_MAX, boolean, integer, token_ids
from ..text.chat_template import TOOL_TEMPLATE, ChatTemplate
from ..text.stop_strings import StopStrings
from ..text.tokenizer import StreamDecoder, Tokenizer
from .device_plan import CPU, check_device, expected_place
from .interruption import begun_together
from .opening import beside, describe, logged_progress, open_engine
from .scheduler import FINISH_CONTEXT, FINISH_LENGTH, FINISH_STOP, Job, Scheduler, SessionView

__all__ = ["Completion", "Engine", "GenerationParams", "Statistics", "Step", "check_arguments", "model_tokenizer"]

DEFAULT_N_CTX = 8192  # or what the model was trained for, if that is less
_MAX_PARALLEL = 64
_DRAWN_SEED_BITS = 48  # survives JSON readers that keep numbers as doubles

_log = logging.getLogger("bee_integrations.engine")


# ---- the engine ------------------------------------------------------------------------------------------------------


class Engine:
    """A model, its drafter if any, and the thread that runs them. Use as a context manager, or `close` it."""

    def __init__(
        self,
        model: str | os.PathLike[str] | models.Located | None = None,
        *,
        drafter: str | os.PathLike[str] | Drafter | None = "auto",
        n_ctx: int | None = None,
        threads: int | None = None,
        device: str = "auto",
        instruction_set: str | None = None,
        n_parallel: int = 4,
        kv_cache: str = "f16",
        packed_cache: bool | str | os.PathLike[str] | None = None,
        share_prefixes: bool = True,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Load a model.

        model: a name (docs/models.md): a registered one, hf:owner/repo:Q4_K_M, ollama:model:tag,
            lmstudio:publisher/model, or the path of a GGUF file or of a folder with one; None is the default model.
            What is not here is downloaded on first use. `info` has in "model_note" why this file was chosen.
        drafter: the path or name of a DFlash GGUF or of one that holds the model's block that predicts further tokens
            ("mtp-*.gguf"), None, or "auto": the first that fits of those beside the model, of the same repository, and
            of this package; `info` has in "drafter_note" which, and why not another.
        n_ctx: tokens of context per request, prompt and answer together; None: what the model was trained for, at
            most 8192; 0: all of that. Memory for it is taken as it fills.
        threads: None: the cores that this process may use.
        device: "cpu"; "cuda": an NVIDIA card; "auto": the card where there is one and the plan for a session of n_ctx
            fits its free memory, otherwise the CPU. `info` tells where it runs: "device", "device_name", and with
            "auto" in "device_note" why the card is not used.
        instruction_set: None: the best of this machine; a name of docs/instruction_sets.md ("avx512", "avx2", ...)
            forces one, and the CPU with it where the device is "auto".
        n_parallel: requests that run side by side; others wait. Each keeps a cache of its own between requests.
        kv_cache: how keys and values are remembered, also those of the drafter: "f16", or "q8_0": 8 bits with a scale
            for every 32 numbers, in about half the memory. Answers may differ a little from those with "f16".
        packed_cache: a directory in which packed weights are kept, a file for each model, so that the next engine on
            the CPU maps them and packs nothing; True: the one that the environment variable BEE_PACKED_CACHE names, or
            else one in the cache directory; None: what BEE_PACKED_CACHE says, 1, 0 or a directory; otherwise, and with
            False, none are kept. `info` has in "mapped_bytes" how much came from there, and in "packed_note" what was
            written, or why not.
        share_prefixes: what the prompts of several requests begin with is read and kept once; False, for measurements:
            by each for itself.
        progress: called with the bytes of weights that are loaded and those of all, while the engine opens; what it
            raises ends that. None: tenths are logged (level INFO).

        Raises the exceptions of `bee_integrations.errors`: ParameterError, ModelFileError, ModelFormatError,
        UnsupportedModelError, DrafterMismatchError, OutOfMemoryError, DeviceError, ModelDownloadError.
        """
        device = _device(device, instruction_set)
        threads = _thread_count(threads)
        if progress is not None and not callable(progress):
            raise ParameterError(f"progress is {progress!r}; it must be a function of two numbers, or None")
        n_parallel = integer("n_parallel", n_parallel, 1, _MAX_PARALLEL)
        check_kv_cache(kv_cache)
        packed = packed_directory(packed_cache)
        share_prefixes = boolean("share_prefixes", share_prefixes)
        located = models.locate_model(model)
        found = find_drafter(drafter, located)
        self.model_path: Path = located.path
        self.model_name: str = located.name
        self.drafter_path: Path | None = found.path
        with ModelFile(self.model_path) as file:
            plan = self._read_plan(file, n_ctx)
            self._check_states(device, kv_cache)
            # A large vocabulary takes as long as a gigabyte of weights: the two are read side by side.
            handle = beside(
                partial(self._read_text_side, file, plan, located),
                partial(
                    open_engine,
                    self.model_path,
                    self.drafter_path,
                    threads,
                    instruction_set,
                    device=device,
                    n_ctx=self.n_ctx,
                    kv_cache=kv_cache,
                    packed=packed,
                    share_prefixes=share_prefixes,
                ),
                logged_progress(self.model_name) if progress is None else progress,
            )
        self._scheduler = Scheduler(handle, self.n_ctx, n_parallel)  # owns the handle from here on
        self.info: dict[str, Any] = self._scheduler.call(describe)
        self.info |= {"n_ctx": self.n_ctx, "architecture": self._architecture, "n_parallel": n_parallel}
        self.info |= {"model_note": located.note, "drafter_note": found.note, "sampling": dict(self.sampling)}
        self._block_size = int(self.info["block_size"])
        self.grammars = GrammarCompiler(self.tokenizer)
        # A collected engine stops its thread; at the interpreter's exit the scheduler module does it.
        self._finalizer = weakref.finalize(self, self._scheduler.stop)
        self._finalizer.atexit = False

    def _read_plan(self, file: ModelFile, n_ctx: int | None) -> Plan:
        with _named(self.model_path):
            plan = file.plan()  # says what an unsupported file lacks before anything is read from it
            if plan.is_drafter:
                raise UnsupportedModelError(
                    f"{self.model_path} is a drafter, not a model: give it as drafter= with the model it is for"
                )
        self.n_ctx: int = context_length(n_ctx, plan.n_ctx_train)
        self._n_ctx_train = plan.n_ctx_train
        self._state_bytes = plan.state_bytes
        return plan

    def _read_text_side(self, file: ModelFile, plan: Plan, located: models.Located) -> None:
        with _named(self.model_path):
            self.tokenizer: Tokenizer = model_tokenizer(file, plan)
            self._template, self._template_error = _read_template(file, self.tokenizer, located)
            self._tool_template = _read_tool_template(file, self.tokenizer)
            self._architecture = file.architecture
            # What the model's makers want for answers of which nobody says how they are to be sampled.
            self.sampling: dict[str, Any] = sampling_defaults(file.metadata, located)

    def _check_states(self, device: str, kv_cache: str) -> None:
        """Keys and values take memory as they fill; the states of recurrent layers are there from the first token on.
        A card is asked when the library plans for it."""
        free = available_memory() if self._state_bytes else None
        if free is None or self._state_bytes <= free:
            return
        if expected_place(device, self.model_path, self.drafter_path, self.n_ctx, kv_cache) == CPU:
            raise OutOfMemoryError(
                f"the states of this model's recurrent layers take {size_text(self._state_bytes)} for each session, "
                f"whatever its context, and {size_text(free)} of memory are free: take a smaller model"
            )

    @classmethod
    def shared(
        cls,
        model: str | os.PathLike[str] | models.Located | None = None,
        *,
        drafter: str | os.PathLike[str] | Drafter | None = "auto",
        n_ctx: int | None = None,
        threads: int | None = None,
        device: str = "auto",
        instruction_set: str | None = None,
        n_parallel: int = 4,
        kv_cache: str = "f16",
        packed_cache: bool | str | os.PathLike[str] | None = None,
    ) -> Engine:
        """The engine of this process for these arguments, loaded at the first call and kept while anybody uses it."""
        device = _device(device, instruction_set)
        located = models.locate_model(model)
        found = find_drafter(drafter, located)
        packed: Path | bool = packed_directory(packed_cache) or False
        key = (located.path, found.path, n_ctx, threads, device, instruction_set, n_parallel, kv_cache, packed)
        with _shared.lock:
            engine = _shared.engines.get(key)
            if engine is None or engine.closed:
                engine = cls(located, drafter=found, n_ctx=n_ctx, threads=threads, device=device,
                             instruction_set=instruction_set, n_parallel=n_parallel, kv_cache=kv_cache,
                             packed_cache=packed)  # fmt: skip
                _shared.engines[key] = engine
            return engine

    def own_params(self, **given: Any) -> GenerationParams:
        """`GenerationParams` of what is given, and for the rest what the model's file or place says (`sampling`)."""
        return GenerationParams(**self.sampling | given)

    # ---- text --------------------------------------------------------------------------------------------------------

    @property
    def chat_template(self) -> ChatTemplate | None:
        """The model's chat template, or None. Raises TemplateError where the model's template is broken."""
        if self._template_error is not None:
            raise TemplateError(str(self._template_error))
        return self._template

    @property
    def tool_template(self) -> ChatTemplate | None:
        """The template that the file has for chats with tools, or else `chat_template`."""
        return self.chat_template if self._tool_template is None else self._tool_template

    def render_chat(self, messages: Sequence[Mapping[str, Any]], **template_kwargs: Any) -> str:
        """A conversation as the prompt that the model was trained on. Raises TemplateError."""
        template = self.chat_template
        if template is None:
            raise TemplateError(f"the model {self.model_name!r} has no chat template: give it plain text as the prompt")
        return template.render(list(messages), **template_kwargs)

    def encode_prompt(self, text: str, *, guard: str = "") -> list[int]:
        """Tokens of a prompt. The beginning token is added where the model asks for it and the text lacks it. guard: as
        of `Tokenizer.guarded`."""
        bos = self.tokenizer.bos_token_id
        begun = bos is not None and text.startswith(self.tokenizer.token_text(bos))
        return self.tokenizer.encode(text, add_special=not begun, guard=guard)

    # ---- generation --------------------------------------------------------------------------------------------------

    def generate(
        self,
        prompt: str | Sequence[int],
        params: GenerationParams | None = None,
        *,
        phases: AnswerPhases | None = None,
        steering: AnswerPhases | None = None,
    ) -> Generator[Step, None, None]:
        """Generate after `prompt` (text or token ids), a step per pass. Nothing runs before the first step is asked
        for; closing the generator, or an exception in its consumer, cancels what still runs.

        phases: what may follow when, in place of a constraint among the parameters; `steering` is its earlier name.

        Raises ParameterError, ContextLengthError for a prompt that does not fit, ConstraintError, EngineClosedError.
        """
        arrived: queue.SimpleQueue[Step | BaseException] = queue.SimpleQueue()
        job = self._job(prompt, params or self.own_params(), phases or steering, arrived.put)
        try:
            self._submit(job)
            while True:
                self._scheduler.check_process()
                item = arrived.get()
                if isinstance(item, BaseException):
                    raise item
                yield item
                if item.finish_reason is not None:
                    return
        finally:
            self._scheduler.cancel(job)

    async def agenerate(
        self,
        prompt: str | Sequence[int],
        params: GenerationParams | None = None,
        *,
        phases: AnswerPhases | None = None,
        steering: AnswerPhases | None = None,
    ) -> AsyncGenerator[Step, None]:
        """As `generate`, for an event loop, which is never blocked. Cancelling the task cancels the generation."""
        loop = asyncio.get_running_loop()
        arrived: asyncio.Queue[Step | BaseException] = asyncio.Queue()

        def deliver(item: Step | BaseException) -> None:
            loop.call_soon_threadsafe(arrived.put_nowait, item)  # raises in a closed loop, which ends the request

        # Encoding a long prompt takes a while, and so does compiling a grammar.
        job = await asyncio.to_thread(self._job, prompt, params or self.own_params(), phases or steering, deliver)
        try:
            self._submit(job)
            while True:
                self._scheduler.check_process()
                item = await arrived.get()
                if isinstance(item, BaseException):
                    raise item
                yield item
                if item.finish_reason is not None:
                    return
        finally:
            self._scheduler.cancel(job)

    def complete(
        self,
        prompt: str | Sequence[int],
        params: GenerationParams | None = None,
        *,
        phases: AnswerPhases | None = None,
        steering: AnswerPhases | None = None,
    ) -> Completion:
        """Generate to the end. Raises what `generate` raises."""
        with closing(self.generate(prompt, params, phases=phases or steering)) as steps:
            collected = list(steps)
        last = collected[-1]
        assert last.finish_reason is not None
        assert last.stats is not None
        return Completion(
            text="".join(step.text for step in collected),
            tokens=tuple(token for step in collected for token in step.tokens),
            finish_reason=last.finish_reason,
            stats=last.stats,
            stop_text=last.stop_text,
            logprobs=tuple(logprob for step in collected for logprob in step.logprobs),
            closed=last.closed,
        )

    def _submit(self, job: Job) -> None:
        begun_together(partial(self._scheduler.interrupt, job))
        self._scheduler.submit(job)

    def _job(
        self,
        prompt: str | Sequence[int],
        params: GenerationParams,
        plan: AnswerPhases | None,
        deliver: Callable[[Step | BaseException], None],
    ) -> Job:
        tokens = self._prompt_tokens(prompt)
        speculation, draft_length = self._speculation(params)
        seed = random.SystemRandom().getrandbits(_DRAWN_SEED_BITS) if params.seed is None else params.seed
        sources = self._draft_sources(speculation, draft_length)
        phases = self._phases(params, plan)
        markers = params.markers | (plan.markers if plan is not None else frozenset())
        sink = _Generation(self.tokenizer, params, markers, seed, sources, phases, deliver)
        return Job(
            prompt=tokens,
            max_tokens=params.max_tokens or INT32_MAX,
            speculation=speculation,
            draft_length=draft_length,
            stop_tokens=tuple(sorted(self.tokenizer.stop_token_ids)),
            sampling={
                "temperature": params.temperature,
                "top_k": params.top_k,
                "top_p": params.top_p,
                "min_p": params.min_p,
                "seed": seed,
            },
            sink=sink,
            logit_edits=self._logit_edits(params),
            phases=phases,
        )

    def _phases(self, params: GenerationParams, plan: AnswerPhases | None) -> RunningPhases | None:
        if plan is None and params.constraint is not None:
            plan = AnswerPhases(grammar=self.grammars.compile(params.constraint))
        if plan is None:
            return None
        if not isinstance(plan, AnswerPhases):
            raise ParameterError(f"phases is a {type(plan).__name__}; it must be an AnswerPhases")
        return RunningPhases(plan, self.grammars, self.tokenizer) if plan.limits else None

    def _logit_edits(self, params: GenerationParams) -> dict[str, Any]:
        for token in params.logit_bias:
            if token >= self.info["n_vocab"]:
                raise ParameterError(
                    f"logit_bias has token {token}; this model's ids are 0 to {self.info['n_vocab'] - 1}"
                )
        return {
            "biases": list(params.logit_bias.items()),
            "penalties": {
                "last_n": params.penalty_window,
                "repetition": params.repetition_penalty,
                "frequency": params.frequency_penalty,
                "presence": params.presence_penalty,
            },
            "logprobs": params.logprobs,
            "n_top_logprobs": params.top_logprobs,
        }

    def _prompt_tokens(self, prompt: str | Sequence[int]) -> npt.NDArray[np.int32]:
        ids = self.encode_prompt(prompt) if isinstance(prompt, str) else token_ids(prompt)
        if not ids:
            raise ParameterError("the prompt is empty; it needs at least one token")
        for position, token in enumerate(ids):
            if not 0 <= token < self.info["n_vocab"]:
                raise ParameterError(
                    f"prompt token {position} is {token}; this model's ids are 0 to {self.info['n_vocab'] - 1}"
                )
        if len(ids) >= self.n_ctx:
            raise ContextLengthError(_too_long(len(ids), self.n_ctx, self._n_ctx_train))
        return np.array(ids, dtype=np.int32)

    def _speculation(self, params: GenerationParams) -> tuple[str, int]:
        """The mode and the drafts per cycle, -1 for the library's choice."""
        mode, length = params.speculation, params.draft_length
        if mode == "mtp" and not self.info["predicts"]:
            raise ParameterError(
                "speculation is 'mtp', but no block of this model predicts further tokens here (with a DFlash drafter "
                "none is used): use 'auto', or give the block's file ('mtp-*.gguf') as drafter="
            )
        if mode == "dflash" and not self.info["has_drafter"]:
            raise ParameterError(
                "speculation is 'dflash', but this engine has no drafter: open it with drafter= the path of a DFlash "
                f"GGUF for this model, put one beside the model as {self.model_path.stem}.dflash.gguf, or use 'auto'"
            )
        asks_drafter = mode in ("auto", "dflash", "mtp") and self._block_size > 0
        if asks_drafter and length is not None and length >= self._block_size:
            raise ParameterError(f"draft_length is {length}; this drafter drafts at most {self._block_size - 1} tokens")
        return mode, -1 if length is None else length

    def _draft_sources(self, mode: str, draft_length: int) -> str:
        """What statistics call the speculation that is in force."""
        if mode == "off" or draft_length == 0:
            return "off"
        if mode == "auto":
            return "dflash+copy" if self.info["has_drafter"] else "mtp+copy" if self.info["predicts"] else "copy"
        return mode

    # ---- looking inside ----------------------------------------------------------------------------------------------

    def evaluate(self, tokens: Sequence[int], *, rows_per_pass: int = 16) -> npt.NDArray[np.float32]:
        """Logits after each token of a text: float32 [len(tokens), n_vocab]. Runs between the passes of requests."""
        ids = token_ids(tokens)
        if not 1 <= len(ids) <= self.n_ctx:
            raise ContextLengthError(f"{len(ids)} tokens were given; 1 to n_ctx={self.n_ctx} can be evaluated")
        logits = np.empty((len(ids), int(self.info["n_vocab"])), dtype=np.float32)

        def run(engine: Any) -> None:
            error = new_error()
            session = lib.bee_session_open(engine, len(ids), False, error)
            check(session, error)
            try:
                out = ffi.from_buffer("float[]", logits)
                check(lib.bee_session_evaluate(session, ids, len(ids), rows_per_pass, out, error), error)
            finally:
                lib.bee_session_close(session)

        self._scheduler.call(run)
        return logits

    def measure(self, n_rows: int, n_past: int, repeats: int) -> tuple[float, float]:
        """Median seconds of one target pass over `n_rows` tokens after `n_past` of context, and of one draft of
        `n_rows` - 1 tokens, the projection of two committed tokens' features included (0 without a drafter, for one
        row, and beyond the drafter's block)."""

        def run(engine: Any) -> tuple[float, float]:
            seconds = ffi.new("double[2]")
            error = new_error()
            check(lib.bee_engine_measure(engine, n_rows, n_past, repeats, seconds, seconds + 1, error), error)
            return float(seconds[0]), float(seconds[1])

        return self._scheduler.call(run)

    def measure_passes(self, n_rows: Sequence[int], n_past: int, repeats: int) -> dict[int, float]:
        """Median seconds of target passes over so many tokens each after `n_past` of context, by the number of tokens:
        passes of all sizes in turn, behind one reading of the context."""

        def run(engine: Any) -> dict[int, float]:
            seconds = ffi.new("double[]", len(n_rows))
            error = new_error()
            sizes = ffi.new("int32_t[]", list(n_rows))
            check(lib.bee_engine_measure_passes(engine, sizes, len(n_rows), n_past, repeats, seconds, error), error)
            return dict(zip(n_rows, map(float, seconds), strict=True))

        return self._scheduler.call(run)

    def forget(self) -> None:
        """Drop what the caches hold of past prompts, so that the next request reads its prompt in full."""
        self._scheduler.forget()

    # ---- the end -----------------------------------------------------------------------------------------------------

    @property
    def closed(self) -> bool:
        """Whether `close` was called, or the engine belongs to the process that this one was forked from."""
        return not self._scheduler.usable

    def close(self) -> None:
        """Cancel what runs and free the model. Requests that were running raise EngineClosedError."""
        self._scheduler.stop()
        self._scheduler.join()

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> Any:
        raise TypeError("an Engine cannot be pickled or copied: it holds threads and memory of this process")

    def __repr__(self) -> str:
        return f"<Engine {self.model_name} drafter={self.drafter_path and self.drafter_path.name} n_ctx={self.n_ctx}>"


class _SharedEngines:
    """The engines that `Engine.shared` handed out and somebody still holds."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.engines: weakref.WeakValueDictionary[Any, Engine] = weakref.WeakValueDictionary()


_shared = _SharedEngines()


def _forget_shared_engines() -> None:
    # In a forked child the lock may be held by a thread that does not exist, and the engines have lost theirs.
    global _shared
    _shared = _SharedEngines()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_shared_engines)


# ---- tokens to steps -------------------------------------------------------------------------------------------------


class _Generation:
    """The sink of one request: turns its tokens into text and steps. Runs on the scheduler's thread, so that a stop
    string ends the generation at once, whatever the consumer is doing."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        params: GenerationParams,
        markers: frozenset[str],
        seed: int,
        speculation: str,
        phases: RunningPhases | None,
        deliver: Callable[[Step | BaseException], None],
    ) -> None:
        self._tokenizer = tokenizer
        self._decoder = StreamDecoder(tokenizer, markers=markers)
        self._stops = StopStrings(params.stop)
        self._logprobs = params.logprobs
        self._seed = seed
        self._speculation = speculation
        self._phases = phases
        self._bound = phases is not None and phases.answer_is_bound
        self._closes = params.close_constraint
        self._deliver = deliver
        self._submitted = time.monotonic()
        self._first_token_s: float | None = None
        self._n_tokens = 0

    def accept(self, tokens: list[int], finish: int, session: SessionView) -> bool:
        if self._first_token_s is None:
            self._first_token_s = time.monotonic() - self._submitted
        spoken = tokens[:-1] if finish == FINISH_STOP else tokens  # a stop token is control, not text
        text, used, stop_text = self._text_of(spoken)
        closing_text = self._closing_text() if finish in _CUT and stop_text is None else ""
        if closing_text:  # it follows the last whole character
            text += self._stops.flush()
        elif stop_text is None and finish:
            text, stop_text = self._last_text(text, cut=finish in _CUT)
        if used is not None:  # without speculation nothing would have followed, be it the token that ends the answer
            tokens = tokens[:used]
        self._n_tokens += len(tokens)
        reason = None if not finish and stop_text is None else _finish_reason(finish, stop_text)
        step = Step(
            text=text + closing_text,
            tokens=tuple(tokens),
            finish_reason=reason,
            stop_text=stop_text,
            stats=None if reason is None else self._statistics(session.stats()),
            logprobs=self._logprobs_of(tokens, session) if self._logprobs else (),
            closed=bool(closing_text),
            bound=self._bound,
            not_enforced=() if reason is None or self._phases is None else self._phases.not_enforced,
        )
        self._bound = self._phases is not None and self._phases.answer_is_bound
        self._deliver(step)
        return reason is not None

    def fail(self, error: BaseException) -> None:
        self._deliver(error)

    def _text_of(self, tokens: list[int]) -> tuple[str, int | None, str | None]:
        """Text of the tokens up to a stop string; where one came up, how many tokens that took, and which it is."""
        pieces = []
        for used, token in enumerate(tokens, start=1):
            piece, stop_text = self._stops.push(self._decoder.push((token,)))
            pieces.append(piece)
            if stop_text is not None:
                return "".join(pieces), used, stop_text
        return "".join(pieces), None, None

    def _last_text(self, text: str, *, cut: bool) -> tuple[str, str | None]:
        rest = self._decoder.flush()
        # A part of a character is broken where the model ended with it; an answer that was cut ends before it.
        piece, stop_text = self._stops.push("" if cut else rest)
        return text + piece + self._stops.flush(), stop_text

    def _closing_text(self) -> str:
        try:
            return self._phases.closing_text() if self._closes and self._phases is not None else ""
        except ConstraintError:  # no short end: the answer stays as it was cut, which its finish reason says
            return ""

    def _logprobs_of(self, tokens: Sequence[int], session: SessionView) -> tuple[TokenLogprob, ...]:
        def text(token: int) -> str:
            return self._tokenizer.decode([token], skip_special=False, continues=True)

        return tuple(
            TokenLogprob(
                token,
                text(token),
                found.logprob,
                tuple((i, text(i), found.top_logprobs[k]) for k, i in enumerate(found.top_tokens[0 : found.n_top])),
            )
            for token, found in zip(tokens, session.logprobs(len(tokens)), strict=True)
        )

    def _statistics(self, stats: Any) -> Statistics:
        return Statistics(
            prompt_tokens=stats.prompt_tokens,
            reused_tokens=stats.reused_tokens,
            shared_tokens=stats.shared_tokens,
            output_tokens=self._n_tokens,
            reasoning_tokens=self._phases.reasoning_tokens(self._n_tokens) if self._phases is not None else 0,
            cycles=stats.cycles,
            drafted_tokens=stats.drafted_tokens,
            accepted_tokens=stats.accepted_tokens,
            copied_tokens=stats.copied_tokens,
            copied_accepted=stats.copied_accepted,
            forced_tokens=stats.forced_tokens,
            logit_paths={"reduced": stats.reduced_cycles, "masked": stats.masked_cycles, "full": stats.full_cycles},
            accepted_histogram=tuple(stats.accepted_histogram),
            drafted_histogram=tuple(stats.drafted_histogram),
            drafter_histogram=tuple(stats.drafter_histogram),
            prefill_seconds=stats.prefill_seconds,
            decode_seconds=stats.decode_seconds,
            phase_seconds=self._phases.seconds if self._phases is not None else 0.0,
            time_to_first_token_s=self._first_token_s or 0.0,
            seed=self._seed,
            speculation=self._speculation,
        )


_CUT = (FINISH_LENGTH, FINISH_CONTEXT)


def _finish_reason(finish: int, stop_text: str | None) -> str:
    return "length" if stop_text is None and finish in _CUT else "stop"


# ---- the text side and the arguments ---------------------------------------------------------------------------------


def model_tokenizer(file: ModelFile, plan: Plan) -> Tokenizer:
    """The tokenizer of a model that the library can run; what stands against the text side is raised here.

    Raises UnsupportedModelError and ModelFormatError.
    """
    tokenizer = Tokenizer.from_model_file(file)
    if tokenizer.n_vocab != plan.n_vocab:
        raise ModelFormatError(
            f"tokenizer.ggml.tokens has {tokenizer.n_vocab} entries, but the weights are for {plan.n_vocab}"
        )
    if len(tokenizer.stop_token_ids) > int(lib.BEE_MAX_STOP_TOKENS):
        raise UnsupportedModelError(
            f"the model has {len(tokenizer.stop_token_ids)} tokens that end a generation; at most "
            f"{int(lib.BEE_MAX_STOP_TOKENS)} are supported"
        )
    return tokenizer


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Errors about a file's content name the file."""
    try:
        yield
    except (ModelFormatError, UnsupportedModelError) as error:
        if str(path) in str(error):
            raise
        raise type(error)(f"{path}: {error}") from error


def _read_template(
    file: ModelFile, tokenizer: Tokenizer, located: models.Located
) -> tuple[ChatTemplate | None, TemplateError | None]:
    # A broken template must not keep the model from completing plain text.
    try:
        template = ChatTemplate.from_model_file(file, tokenizer)
        if template is None and located.template is not None:
            template = ChatTemplate.of_tokenizer(known_form(located.name, located.template).jinja, tokenizer)
        return template, None
    except TemplateError as error:
        return None, error


def _read_tool_template(file: ModelFile, tokenizer: Tokenizer) -> ChatTemplate | None:
    try:
        return ChatTemplate.from_model_file(file, tokenizer, TOOL_TEMPLATE)
    except TemplateError as error:
        _log.warning("the template for tools of %s is not used: %s", file.path, error)
        return None


def context_length(n_ctx: int | None, n_ctx_train: int) -> int:
    """Tokens of context for the argument `n_ctx`. Raises ParameterError."""
    if n_ctx is None:
        return min(n_ctx_train, DEFAULT_N_CTX)
    return (
        integer("n_ctx", n_ctx, 0, n_ctx_train, note=", what the model was trained for (0: all of it)") or n_ctx_train
    )


def _too_long(n_tokens: int, n_ctx: int, n_ctx_train: int) -> str:
    room = f"the prompt has {n_tokens} tokens, but the context holds {n_ctx}, and the answer needs at least one of them"
    if n_tokens < n_ctx_train:
        return f"{room}: shorten it, or open the engine with n_ctx up to {n_ctx_train}"
    return f"{room}: shorten it; this model's context is at most {n_ctx_train}"


def check_arguments(*, n_ctx: int | None, threads: int | None, device: str, kv_cache: str) -> None:
    """Raise ParameterError for what no engine takes, whatever the model: an engine itself checks the same and more."""
    check_device(device)
    check_kv_cache(kv_cache)
    _thread_count(threads)
    if n_ctx is not None:
        integer("n_ctx", n_ctx, 0, INT32_MAX, note=", and at most what the model was trained for (0: all of it)")


def _thread_count(threads: int | None) -> int:
    return 0 if threads is None else integer("threads", threads, 1, int(lib.BEE_MAX_THREADS))


def _device(device: str, instruction_set: str | None) -> str:
    """The device to ask for: an instruction set is one of the CPU."""
    check_device(device)
    if instruction_set is None:
        return device
    if device == "cuda":
        raise ParameterError(
            f"instruction_set is {instruction_set!r}, and device is 'cuda': instruction sets are those of the CPU; "
            "give one of the two"
        )
    return CPU
