"""What only a fresh process can tell: how long loading takes, and how much memory."""

from __future__ import annotations

import multiprocessing
import re
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ..errors import BeeError

# The engine is imported in the functions: the import is a part of what they measure.

__all__ = ["AtOnce", "FreshEngine", "LoadTime", "PeakMemory", "answers_at_once", "load_time", "peak_memory"]

R = TypeVar("R")


@dataclass(frozen=True)
class FreshEngine:
    """The arguments of an engine that a fresh process opens."""

    model: Path
    drafter: Path | None
    n_ctx: int
    place: dict[str, Any]  # "threads", "device", "instruction_set"
    n_parallel: int = 1
    share_prefixes: bool = True

    def as_arguments(self) -> dict[str, Any]:
        """Keyword arguments of `Engine`, but the model."""
        return {
            "drafter": self.drafter,
            "n_ctx": self.n_ctx,
            "n_parallel": self.n_parallel,
            "share_prefixes": self.share_prefixes,
            "packed_cache": False,  # loading is packing, whatever BEE_PACKED_CACHE says
            **self.place,
        }


@dataclass(frozen=True)
class LoadTime:
    """Seconds. `first_token_s` begins when the modules are imported and the engine is asked for."""

    import_s: float
    open_s: float
    first_token_s: float


@dataclass(frozen=True)
class PeakMemory:
    """Bytes of resident memory beyond what the interpreter and its modules held before the engine was opened."""

    peak: int
    file_pages: int  # of what is resident at the end: pages of mapped files, shared with the page cache
    positions: int  # of context that were used


@dataclass(frozen=True)
class AtOnce:
    """Of several requests that are made at once: seconds until the last answer ended, and what `PeakMemory.peak` is,
    None where the system does not tell."""

    seconds: float
    peak: int | None


def load_time(engine: FreshEngine, prompt: list[int]) -> LoadTime:
    """From the engine's constructor to the first token after `prompt`, in a new process. Raises BeeError."""
    return _in_fresh_process(_load_time, engine, prompt)


def peak_memory(engine: FreshEngine, prompt: list[int], max_tokens: int) -> PeakMemory | None:
    """The peak while an engine is opened and answers, in a new process; None where the system does not tell."""
    return _in_fresh_process(_peak_memory, engine, prompt, max_tokens)


def answers_at_once(engine: FreshEngine, prompts: list[list[int]], max_tokens: int) -> AtOnce:
    """Plain greedy answers to all prompts, of an engine that runs as many side by side, in a new process."""
    return _in_fresh_process(_answers_at_once, engine, prompts, max_tokens)


def _in_fresh_process(function: Callable[..., R], *arguments: Any) -> R:
    with ProcessPoolExecutor(max_workers=1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(function, *arguments).result()
        except BrokenProcessPool as error:
            raise BeeError(f"the process for {function.__name__.strip('_')} ended by itself") from error


def _load_time(engine: FreshEngine, prompt: list[int]) -> LoadTime:
    begin = time.perf_counter()
    from ..engine.engine import Engine, GenerationParams

    imported = time.perf_counter()
    with Engine(engine.model, **engine.as_arguments()) as opened:
        ready = time.perf_counter()
        for step in opened.generate(prompt, GenerationParams(max_tokens=1)):
            if step.tokens:
                break
        return LoadTime(imported - begin, ready - imported, time.perf_counter() - imported)


def _peak_memory(engine: FreshEngine, prompt: list[int], max_tokens: int) -> PeakMemory | None:
    from ..engine.engine import Engine, GenerationParams

    with suppress(OSError):  # where it is not allowed, the interpreter's own peak stays in
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = _memory_status("VmRSS")
    with Engine(engine.model, **engine.as_arguments()) as opened:
        answer = opened.complete(prompt, GenerationParams(max_tokens=max_tokens))
        peak, pages = _memory_status("VmHWM"), _memory_status("RssFile")
    if before is None or peak is None or pages is None:
        return None
    return PeakMemory(peak - before, pages, len(prompt) + len(answer.tokens))


def _answers_at_once(engine: FreshEngine, prompts: list[list[int]], max_tokens: int) -> AtOnce:
    from ..engine.engine import Engine, GenerationParams

    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    before = _memory_status("VmRSS")
    params = GenerationParams(max_tokens=max_tokens, speculation="off")
    with Engine(engine.model, **engine.as_arguments()) as opened, ThreadPoolExecutor(len(prompts)) as pool:
        begin = time.perf_counter()
        list(pool.map(lambda prompt: opened.complete(prompt, params), prompts))
        seconds, peak = time.perf_counter() - begin, _memory_status("VmHWM")
    return AtOnce(seconds, None if before is None or peak is None else peak - before)


def _memory_status(name: str) -> int | None:
    """Bytes, from /proc/self/status; None where there is no such thing."""
    try:
        found = re.search(rf"^{name}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    except OSError:
        return None
    return 1024 * int(found[1]) if found else None
