"""What passes cost: the target's over 1 to 16 tokens, the drafter's, the peer's, and what the bound allows.

Also what the cycles of an answer could have taken at best: the speed-up that its drafts allowed, given those costs."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..engine.engine import Engine
from .contenders import Steps
from .limits import Limits, measure_limits
from .peer_process import PeerProcess

__all__ = ["PASS_ROWS", "CycleCosts", "PassTimes", "bound_speed_up", "measure_cycle_costs", "measure_passes"]

PASS_ROWS = (1, 2, 4, 8, 16)
_ROUNDS = 5
_CYCLE_ROUNDS = 3
_REPEATS = 10  # per round; the medians of the rounds are reduced to their median
_CYCLE_REPEATS = 5


@dataclass(frozen=True)
class PassTimes:
    """Seconds by the number of tokens in a pass, after `context` positions."""

    context: int
    target: dict[int, float]
    drafter: dict[int, float]  # the draft of a block of that many tokens; a drafter's blocks may be shorter than 16
    peer: dict[int, float]  # empty without a peer
    peer_ratios: dict[int, float]  # the peer's time over ours: the median over rounds, each of which has both
    limits: Limits  # with the best rates of the measurement

    def as_dict(self, limits: Limits) -> dict[str, Any]:
        """Milliseconds, and the bounds that `limits` set, ready for JSON; None where there is no drafter or no peer."""
        bound = {rows: limits.pass_seconds(rows, self.context) for rows in self.target}
        from_caches = {rows: limits.pass_seconds(rows, self.context, from_caches=True) for rows in self.target}
        return {
            "context": self.context,
            "pass_ms": _milliseconds(self.target),
            "draft_ms": _milliseconds(self.drafter),
            "peer_pass_ms": _milliseconds(self.peer),
            "peer_pass_ratios": {str(rows): ratio for rows, ratio in self.peer_ratios.items()} or None,
            "bound_ms": _milliseconds(bound),
            "cached_bound_ms": _milliseconds(from_caches),
        }


def _milliseconds(seconds: Mapping[int, float]) -> dict[str, float] | None:
    return {str(rows): 1e3 * value for rows, value in seconds.items()} or None


def measure_passes(engine: Engine, peer: PeerProcess | None, context: int, steps: Steps) -> PassTimes:
    """Passes of ours and of the peer's in turn, and the machine's rates, in several rounds."""
    ours: dict[int, list[float]] = {rows: [] for rows in PASS_ROWS}
    drafts: dict[int, list[float]] = {rows: [] for rows in PASS_ROWS}
    theirs: dict[int, list[float]] = {rows: [] for rows in PASS_ROWS}
    limits = measure_limits(engine)
    steps.expect(_ROUNDS * len(PASS_ROWS))
    for _ in range(_ROUNDS):
        for rows in PASS_ROWS:
            steps.next(f"pass over {rows} after {context}")
            pass_seconds, draft_seconds = engine.measure(rows, context, _REPEATS)
            ours[rows].append(pass_seconds)
            drafts[rows].append(draft_seconds)
            if peer is not None:
                theirs[rows].append(peer.pass_seconds(rows, context, _REPEATS))
        limits = limits.with_rates_of(measure_limits(engine))
    ratios = {rows: [peer / bee for peer, bee in zip(theirs[rows], ours[rows], strict=False)] for rows in PASS_ROWS}
    return PassTimes(context, _medians(ours), _medians(drafts), _medians(theirs), _medians(ratios), limits)


def _medians(rounds: Mapping[int, Sequence[float]]) -> dict[int, float]:
    medians = {rows: statistics.median(values) for rows, values in rounds.items() if values}
    return {rows: value for rows, value in medians.items() if value > 0}  # a draft that does not exist takes no time


# ---- what drafts could have gained -------------------------------------------------------------------------------


@dataclass(frozen=True)
class CycleCosts:
    """Seconds of the passes that cycles are made of."""

    passes: dict[int, float]  # by the number of tokens: drafts + 1
    drafts: dict[int, float]  # by the number of drafts


def bound_speed_up(tokens: int, drafted: Sequence[int], drafter: Sequence[int], costs: CycleCosts) -> float:
    """How much faster than plain decoding the cycles of an answer can be at best: as many one-token passes as the
    cycles yielded tokens, over their own passes and the drafter's.

    drafted, drafter: `Statistics.drafted_histogram` and `.drafter_histogram`. Copied drafts cost nothing.
    """
    passes = sum(count * costs.passes[k + 1] for k, count in enumerate(drafted) if count)
    drafts = sum(count * costs.drafts[k] for k, count in enumerate(drafter) if k and count)
    return tokens * costs.passes[1] / (passes + drafts)


def measure_cycle_costs(engine: Engine, context: int, drafts: Sequence[int], steps: Steps) -> CycleCosts:
    """Passes that verify so many drafts, plain decoding included, and the drafts themselves, after `context`."""
    sizes = sorted({1, *(k + 1 for k in drafts)})
    passes: dict[int, list[float]] = {rows: [] for rows in sizes}
    drafted: dict[int, list[float]] = {rows - 1: [] for rows in sizes}
    steps.expect(_CYCLE_ROUNDS * len(sizes))
    for _ in range(_CYCLE_ROUNDS):
        for rows in sizes:
            steps.next(f"cycle of {rows} after {context}")
            pass_seconds, draft_seconds = engine.measure(rows, context, _CYCLE_REPEATS)
            passes[rows].append(pass_seconds)
            drafted[rows - 1].append(draft_seconds)
    return CycleCosts(_medians(passes), _medians(drafted))
