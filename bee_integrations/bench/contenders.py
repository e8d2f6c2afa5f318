"""Who runs in a benchmark, and answers of all of them in turn (A B A B), so that what slows the machine for a while
slows every one of them."""

from __future__ import annotations

import hashlib
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from ..engine.engine import Engine, GenerationParams
from .peer_process import PeerProcess

__all__ = [
    "Answers",
    "BeeContender",
    "Contender",
    "PeerContender",
    "Progress",
    "Sample",
    "Steps",
    "answer_in_turn",
    "median_of",
]

# Called with the number of runs done, their total as far as it is known, and what runs next.
Progress = Callable[[int, int, str], None]


@dataclass
class Steps:
    """Counts what a benchmark has done and still has to do."""

    progress: Progress | None = None
    total: int = 0
    done: int = 0

    def expect(self, count: int) -> None:
        """`count` more steps will come."""
        self.total += count

    def next(self, label: str) -> None:
        """The step called `label` begins."""
        if self.progress is not None:
            self.progress(self.done, self.total, label)
        self.done += 1


@dataclass(frozen=True)
class Sample:
    """One answer. A speed is None where there was nothing to time, what drafting did where nothing was drafted."""

    text: str
    output_tokens: int
    prefill_tokens_per_s: float | None
    decode_tokens_per_s: float | None
    time_to_first_token_s: float
    tokens_per_cycle: float | None = None
    draft_acceptance: float | None = None
    accepted_share: float | None = None
    drafted_histogram: tuple[int, ...] = ()  # as in Statistics; of Bee only
    drafter_histogram: tuple[int, ...] = ()


class Contender(Protocol):
    """An engine in one of its modes."""

    engine: str
    speculation: str

    def answer(self, prompt: Sequence[int], max_tokens: int) -> Sample:
        """A greedy answer to a prompt that starts from an empty cache."""
        ...


class BeeContender:
    """Bee in one speculation mode."""

    engine = "bee"

    def __init__(self, engine: Engine, speculation: str) -> None:
        self._engine = engine
        self.speculation = speculation

    def answer(self, prompt: Sequence[int], max_tokens: int) -> Sample:
        """A greedy answer; times are those that the caller of the engine sees, text decoding included."""
        self._engine.forget()
        params = GenerationParams(temperature=0.0, max_tokens=max_tokens, speculation=self.speculation)
        text: list[str] = []
        first_tokens = 0
        first = 0.0
        start = time.perf_counter()
        for step in self._engine.generate(prompt, params):
            text.append(step.text)
            if first_tokens == 0 and step.tokens:
                first, first_tokens = time.perf_counter(), len(step.tokens)
            stats = step.stats
        end = time.perf_counter()
        assert stats is not None, "the last step carries the statistics"
        drafted = stats.drafted_tokens > 0
        return Sample(
            text="".join(text),
            output_tokens=stats.output_tokens,
            prefill_tokens_per_s=stats.prefill_tokens_per_s,
            decode_tokens_per_s=_rate(stats.output_tokens - first_tokens, end - first),
            time_to_first_token_s=first - start,
            tokens_per_cycle=stats.tokens_per_cycle,
            draft_acceptance=stats.draft_acceptance if drafted else None,
            accepted_share=stats.accepted_share if drafted else None,
            drafted_histogram=stats.drafted_histogram,
            drafter_histogram=stats.drafter_histogram,
        )


class PeerContender:
    """The peer, which decodes plainly: its own DFlash is not reachable through llama-cpp-python."""

    speculation = "off"

    def __init__(self, peer: PeerProcess, engine: Engine) -> None:
        self.engine = peer.name
        self._peer = peer
        self._tokenizer = engine.tokenizer

    def answer(self, prompt: Sequence[int], max_tokens: int) -> Sample:
        """A greedy answer to the same tokens."""
        run = self._peer.generate(prompt, max_tokens, self._tokenizer.stop_token_ids)
        shown = run.tokens[:-1] if run.tokens[-1] in self._tokenizer.stop_token_ids else run.tokens
        return Sample(
            text=self._tokenizer.decode(shown),
            output_tokens=len(run.tokens),
            prefill_tokens_per_s=_rate(len(prompt), run.prefill_seconds),
            decode_tokens_per_s=_rate(len(run.tokens) - 1, run.decode_seconds),
            time_to_first_token_s=run.time_to_first_token_s,
        )


def _rate(tokens: int, seconds: float) -> float | None:
    return tokens / seconds if tokens > 0 and seconds > 0 else None


# ---- in turn -----------------------------------------------------------------------------------------------------


@dataclass
class Answers:
    """Every answer that was given, by contender and prompt."""

    contenders: list[Contender]
    tokens: dict[str, list[int]]  # of the prompts, by name
    samples: dict[tuple[int, str], list[Sample]] = field(default_factory=dict)

    def find(self, engine: str, speculation: str) -> int | None:
        """The number of a contender, or None."""
        for index, contender in enumerate(self.contenders):
            if (contender.engine, contender.speculation) == (engine, speculation):
                return index
        return None

    def speed(self, contender: int, prompt: str) -> float | None:
        """The median tokens/s of a contender's decoding on a prompt."""
        return median_of(sample.decode_tokens_per_s for sample in self.samples[contender, prompt])

    def speeds(self, contender: int) -> list[float]:
        """That of all prompts where there was something to time."""
        known = (self.speed(contender, prompt) for prompt in self.tokens)
        return [speed for speed in known if speed is not None]

    def ratios(self, contender: int, base: int) -> dict[str, float]:
        """The contender's speed over the base's, by prompt, where both are known."""
        pairs = {prompt: (self.speed(contender, prompt), self.speed(base, prompt)) for prompt in self.tokens}
        return {prompt: ours / theirs for prompt, (ours, theirs) in pairs.items() if ours and theirs}

    def rows(self) -> list[dict[str, Any]]:
        """A row per contender and prompt, as docs/benchmark.md describes them."""
        return [
            _row(contender, prompt, self.samples[index, prompt])
            for index, contender in enumerate(self.contenders)
            for prompt in self.tokens
        ]


def answer_in_turn(
    contenders: Sequence[Contender],
    tokens: Mapping[str, list[int]],
    *,
    max_tokens: int,
    repeats: int,
    steps: Steps,
) -> Answers:
    """All contenders answer a prompt before the next prompt comes; the whole list is run `repeats` times."""
    answers = Answers(list(contenders), dict(tokens))
    steps.expect(repeats * len(tokens) * len(contenders))
    for _ in range(repeats):
        for name, prompt in tokens.items():
            for index, contender in enumerate(contenders):
                steps.next(f"{name}, {contender.engine} {contender.speculation}")
                answers.samples.setdefault((index, name), []).append(contender.answer(prompt, max_tokens))
    return answers


def median_of(values: Iterable[float | None]) -> float | None:
    """The median of those that are known; None where none is."""
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


_MEDIANS = (
    "prefill_tokens_per_s",
    "decode_tokens_per_s",
    "time_to_first_token_s",
    "tokens_per_cycle",
    "draft_acceptance",
    "accepted_share",
)


def _row(contender: Contender, prompt: str, samples: Sequence[Sample]) -> dict[str, Any]:
    row: dict[str, Any] = {"engine": contender.engine, "speculation": contender.speculation, "prompt": prompt}
    row["output_tokens"] = samples[0].output_tokens
    for name in _MEDIANS:
        row[name] = median_of(getattr(sample, name) for sample in samples)
    hashes = {hashlib.sha256(sample.text.encode()).hexdigest() for sample in samples}
    # Greedy answers repeat themselves; where they did not, the row must not look like one that did.
    row["text_sha256"] = hashes.pop() if len(hashes) == 1 else None
    return row
