"""The arithmetic of the benchmark: bounds, what drafts could gain, and rates of sequences that run together."""

from __future__ import annotations

import pytest

from bee_integrations.bench.batch import shared_rate
from bee_integrations.bench.contenders import median_of
from bee_integrations.bench.limits import Limits, PassNeeds
from bee_integrations.bench.passes import CycleCosts, PassTimes, bound_speed_up

NEEDS = PassNeeds(
    weight_bytes=1000, kv_bytes_per_position=10, multiply_adds=400, head_multiply_adds=100, attention_multiply_adds=2
)
LIMITS = Limits(
    read_bytes_per_s=100.0, reread_bytes_per_s=250.0, multiply_adds_per_s=1000.0, target=NEEDS, drafter=None
)


def test_a_pass_of_few_tokens_is_bound_by_reading() -> None:
    assert LIMITS.pass_seconds(1, 100) == (1000 + 100 * 10) / 100
    assert LIMITS.pass_seconds(1, 100, from_caches=True) == (1000 + 100 * 10) / 250


def test_a_pass_of_many_tokens_is_bound_by_computing() -> None:
    # Row i of 64 sees the 100 positions before the pass and i rows of it.
    seen = sum(100 + row for row in range(1, 65))
    assert LIMITS.pass_seconds(64, 100) == (64 * 500 + seen * 2) / 1000
    assert LIMITS.pass_seconds(64, 100, logits=1) == (64 * 400 + 100 + seen * 2) / 1000


def test_memory_that_is_faster_than_the_caches_is_noise() -> None:
    noisy = Limits(100.0, 90.0, 1000.0, NEEDS, None)
    assert noisy.pass_seconds(1, 0, from_caches=True) == noisy.pass_seconds(1, 0)


def test_the_best_rates_count() -> None:
    other = Limits(90.0, 300.0, 2000.0, NEEDS, None)
    assert LIMITS.with_rates_of(other) == Limits(100.0, 300.0, 2000.0, NEEDS, None)


def test_costs_of_passes_are_reported_in_milliseconds() -> None:
    costs = PassTimes(100, target={1: 0.04, 4: 0.05}, drafter={4: 0.01}, peer={}, peer_ratios={}, limits=LIMITS)
    assert costs.as_dict(LIMITS) == {
        "context": 100,
        "pass_ms": {"1": 40.0, "4": 50.0},
        "draft_ms": {"4": 10.0},
        "peer_pass_ms": None,
        "peer_pass_ratios": None,
        "bound_ms": {"1": 20000.0, "4": 20000.0},
        "cached_bound_ms": {"1": 8000.0, "4": 8000.0},
    }


COSTS = CycleCosts(passes={1: 2.0, 4: 3.0, 8: 5.0}, drafts={3: 0.5, 7: 1.0})


def test_the_bound_counts_passes_and_drafts_by_length() -> None:
    # Ten plain cycles, four of three drafts by the drafter, two of seven copied ones: 10 x 2 + 4 x 3.5 + 2 x 5.
    drafted = (10, 0, 0, 4, 0, 0, 0, 2)
    drafter = (12, 0, 0, 4, 0, 0, 0, 0)
    assert bound_speed_up(30, drafted, drafter, COSTS) == pytest.approx(30 * 2.0 / 44.0)


def test_without_drafts_the_bound_is_plain_decoding() -> None:
    assert bound_speed_up(10, (10,), (10,), COSTS) == 1.0


def test_the_shared_rate_counts_only_while_all_sequences_decode() -> None:
    slow = [(1.0, 1), (2.0, 1), (5.0, 1)]
    quick = [(0.0, 1), (1.5, 3), (3.0, 2), (4.0, 4)]
    # From 1.0, when the slow one has its first token, to 4.0, when the quick one ends: 1 + (3 + 2 + 4) tokens.
    assert shared_rate([slow, quick]) == pytest.approx(10 / 3.0)


@pytest.mark.parametrize("sequences", [[[(0.0, 1)], []], [[(0.0, 1), (1.0, 1)], [(2.0, 1), (3.0, 1)]]])
def test_sequences_that_do_not_overlap_have_no_shared_rate(sequences: list[list[tuple[float, int]]]) -> None:
    assert shared_rate(sequences) is None


def test_a_median_is_of_what_is_known() -> None:
    assert median_of([3.0, None, 1.0, 2.0]) == 2.0
    assert median_of([None]) is None
