"""One run of the benchmark: what is open, what several figures share, and what a figure is."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..engine.device_plan import CPU
from ..engine.engine import Engine
from .contenders import Answers, BeeContender, Contender, PeerContender, Steps, answer_in_turn
from .limits import Limits, measure_limits
from .llama_cpp_peer import LlamaCppPeer
from .passes import PassTimes, measure_passes
from .peer_process import PeerProcess

__all__ = ["NO_PEER", "Figure", "Run", "made_up_tokens", "same_place"]

NO_PEER = "no peer: give --peer llama-cpp-python"


@dataclass(frozen=True)
class Figure:
    """One row of the table. `reached` is `ours` over `rival` as `unit` has it (for times, the rival's over ours)."""

    group: str
    name: str
    asked: float | None = None
    reached: float | None = None
    ours: float | None = None
    rival: float | None = None
    unit: str = ""  # of ours and rival
    at_most: bool = False  # the figure asked is an upper limit
    bound_share: float | None = None  # the time that the machine's limits allow, over ours
    note: str = ""  # against whom, or why there is no figure

    @property
    def met(self) -> bool | None:
        """Whether what is asked was reached; None where nothing is asked or nothing was measured."""
        if self.asked is None or self.reached is None:
            return None
        return self.reached <= self.asked if self.at_most else self.reached >= self.asked


@dataclass
class Run:
    """What is open while a benchmark runs, and what several figures share, measured once."""

    engine: Engine
    peer: PeerProcess | None
    tokens: dict[str, list[int]]  # the prompts, by name
    modes: tuple[str, ...]
    max_tokens: int
    repeats: int
    threads: int  # of the CPU: the engine's, or where that runs on a card, the peer's
    steps: Steps
    folder: Path  # for files that live as long as the benchmark
    peer_folder: Path | None = None
    avx2_peer_folder: Path | None = None
    draft_bounds: list[dict[str, Any]] = field(default_factory=list)  # how auto did on each prompt
    _answers: Answers | None = None
    _passes: dict[int, PassTimes] = field(default_factory=dict)
    _limits: Limits | None = None

    @property
    def limits(self) -> Limits:
        """What the machine allows, by the best rates seen so far."""
        limits = self._limits or measure_limits(self.engine)
        for costs in self._passes.values():
            limits = limits.with_rates_of(costs.limits)
        self._limits = limits
        return limits

    def answers(self) -> Answers:
        """Answers of Bee in all modes and of the peer to all prompts."""
        if self._answers is None:
            contenders: list[Contender] = [BeeContender(self.engine, mode) for mode in self.modes]
            if self.peer is not None:
                contenders.append(PeerContender(self.peer, self.engine))
            self._answers = answer_in_turn(
                contenders, self.tokens, max_tokens=self.max_tokens, repeats=self.repeats, steps=self.steps
            )
        return self._answers

    def passes(self, context: int) -> PassTimes:
        """Costs of passes after `context` positions."""
        if context not in self._passes:
            self._passes[context] = measure_passes(self.engine, self.peer, context, self.steps)
        return self._passes[context]

    def report(self) -> dict[str, Any]:
        """What was measured so far, ready for JSON: a part of what docs/benchmark.md describes."""
        limits = self.limits
        return {
            "limits": asdict(limits),
            "passes": [self._passes[context].as_dict(limits) for context in sorted(self._passes)],
            "rows": [] if self._answers is None else self._answers.rows(),
            "draft_bounds": self.draft_bounds,
        }

    def some_prompts(self) -> dict[str, list[int]]:
        """Six prompts from all over the list: enough for the ratio of two plain decoders."""
        names = list(self.tokens)
        return {name: self.tokens[name] for name in names[:: math.ceil(len(names) / 6)]}

    @contextmanager
    def another_pair(
        self,
        model: Path,
        *,
        threads: int,
        device: str | None = None,
        instruction_set: str | None = None,
        peer_folder: Path | None = None,
    ) -> Iterator[tuple[Engine, PeerProcess]]:
        """Another engine without a drafter, and the peer, on the same file and as many threads. device: None is that
        of the run's engine."""
        n_ctx = max(map(len, self.tokens.values())) + self.max_tokens
        with (
            Engine(
                model,
                drafter=None,
                n_ctx=n_ctx,
                threads=threads,
                device=device or self.engine.info["device"],
                instruction_set=instruction_set,
                n_parallel=1,
            ) as e,
            PeerProcess(
                LlamaCppPeer, model, n_ctx=n_ctx, threads=threads, folder=peer_folder or self.peer_folder
            ) as peer,
        ):
            yield e, peer


def same_place(engine: Engine) -> dict[str, Any]:
    """Arguments for another engine that runs where and as this one does, with as many threads."""
    info = engine.info
    instruction_set = info["instruction_set"] if info["device"] == CPU else None
    place = {"threads": info["n_threads"], "device": info["device"], "instruction_set": instruction_set}
    return place | {"kv_cache": info["kv_cache"]}


def made_up_tokens(count: int, n_vocab: int) -> list[int]:
    """Token ids for measurements in which the text does not matter."""
    return [(7 * index + 11) % n_vocab for index in range(count)]
