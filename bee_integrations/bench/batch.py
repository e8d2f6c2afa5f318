"""Several sequences at once: what sharing a reading of the weights gains, and a beginning that all have in common."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from statistics import median

from ..engine.engine import Engine, GenerationParams
from .contenders import BeeContender, Steps, median_of
from .fresh import AtOnce, FreshEngine, answers_at_once

__all__ = ["BatchSpeed", "measure_batch", "measure_prefix", "shared_rate"]

Arrivals = Sequence[tuple[float, int]]  # of one sequence: when a step came, and how many tokens it brought


class BatchSpeed:
    """Tokens per second of one sequence, and of several together."""

    def __init__(self, alone: float | None, together: float | None) -> None:
        self.alone = alone
        self.together = together


def measure_batch(
    engine: Engine, prompts: Sequence[list[int]], mode: str, *, count: int, max_tokens: int, repeats: int, steps: Steps
) -> BatchSpeed:
    """`count` greedy answers at once, and in turn with that a few of them alone. The prompts with the longest answers
    are taken, several times where there are too few. The engine must run `count` requests side by side."""
    single = BeeContender(engine, mode)
    steps.expect(len(prompts) + repeats)
    lengths, alone = [], []
    for prompt in prompts:
        steps.next(f"{mode}, alone")
        sample = single.answer(prompt, max_tokens)
        lengths.append(sample.output_tokens)
    longest = [prompts[i] for i in sorted(range(len(prompts)), key=lambda i: -lengths[i])]
    chosen = [longest[i % len(longest)] for i in range(count)]
    together = []
    for _ in range(repeats):
        steps.next(f"{mode}, {count} at once")
        alone += [single.answer(prompt, max_tokens).decode_tokens_per_s for prompt in chosen[:4]]
        engine.forget()
        together.append(_answer_together(engine, chosen, GenerationParams(max_tokens=max_tokens, speculation=mode)))
    rates = [rate for rate in together if rate is not None]
    return BatchSpeed(median_of(alone), median(rates) if rates else None)


def measure_prefix(
    fresh: FreshEngine, prompts: list[list[int]], *, max_tokens: int, repeats: int, steps: Steps
) -> tuple[AtOnce, AtOnce]:
    """Answers to prompts that begin alike, made at once: with that beginning shared, and read by each for itself. In
    turn, each time in a new process; medians."""
    steps.expect(2 * repeats)
    measured: dict[bool, list[AtOnce]] = {True: [], False: []}
    for _ in range(repeats):
        for shares in measured:
            steps.next("a common beginning, shared" if shares else "a common beginning, each for itself")
            engine = replace(fresh, n_parallel=len(prompts), share_prefixes=shares)
            measured[shares].append(answers_at_once(engine, prompts, max_tokens))
    return _median(measured[True]), _median(measured[False])


def _median(measured: list[AtOnce]) -> AtOnce:
    peaks = [one.peak for one in measured if one.peak is not None]
    return AtOnce(median(one.seconds for one in measured), round(median(peaks)) if peaks else None)


def _answer_together(engine: Engine, prompts: Sequence[list[int]], params: GenerationParams) -> float | None:
    def arrivals(prompt: list[int]) -> Arrivals:
        return [(time.perf_counter(), len(step.tokens)) for step in engine.generate(prompt, params) if step.tokens]

    with ThreadPoolExecutor(max_workers=len(prompts)) as pool:
        return shared_rate(list(pool.map(arrivals, prompts)))


def shared_rate(sequences: Sequence[Arrivals]) -> float | None:
    """Tokens per second of all sequences together while all of them decode: from the moment when the last one had its
    first tokens to the moment when the first one ended. None where there is no such time."""
    if not all(sequences):
        return None
    begin = max(arrivals[0][0] for arrivals in sequences)
    end = min(arrivals[-1][0] for arrivals in sequences)
    if end <= begin:
        return None
    return sum(count for arrivals in sequences for when, count in arrivals if begin < when <= end) / (end - begin)
