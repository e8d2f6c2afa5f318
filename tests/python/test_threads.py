"""Threads change the speed and nothing else, also where the machine has fewer cores, or takes some away."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from bee_integrations.engine import Engine, GenerationParams

PROMPT = list(range(1, 150))  # longer than a pass and than a chunk of attention
PARAMS = GenerationParams(max_tokens=60, temperature=1.0, seed=3)


@pytest.fixture(autouse=True)
def all_cores() -> Iterator[None]:
    """Every core of the machine, where a worker of `make test` has one to itself."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, range(os.cpu_count() or 1))
    yield
    os.sched_setaffinity(0, before)


def tokens_with(path: Path, threads: int | None) -> tuple[int, ...]:
    with Engine(path, drafter=None, threads=threads) as engine:
        return engine.complete(PROMPT, PARAMS).tokens


@pytest.fixture(scope="module")
def expected(tiny_path: Path) -> tuple[int, ...]:
    tokens = tokens_with(tiny_path, 1)
    assert len(tokens) > 10
    return tokens


@pytest.mark.parametrize("threads", [2, 3, 7, 16, 64])
def test_any_number_of_threads(tiny_path: Path, expected: tuple[int, ...], threads: int) -> None:
    assert tokens_with(tiny_path, threads) == expected


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity masks")
def test_a_mask_that_shrinks_while_it_runs(tiny_path: Path, expected: tuple[int, ...]) -> None:
    before = os.sched_getaffinity(0)
    with Engine(tiny_path, drafter=None, threads=4) as engine:
        tokens: list[int] = []
        try:
            for step in engine.generate(PROMPT, PARAMS):
                tokens += step.tokens
                # All threads of the process, the engine's too.
                for thread in os.listdir("/proc/self/task"):
                    os.sched_setaffinity(int(thread), {min(before)})
        finally:
            for thread in os.listdir("/proc/self/task"):
                os.sched_setaffinity(int(thread), before)
    assert tuple(tokens) == expected


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity masks")
def test_the_default_is_the_cores_of_the_mask(tiny_path: Path) -> None:
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        with Engine(tiny_path, drafter=None) as engine:
            assert engine.info["n_threads"] == 1
    finally:
        os.sched_setaffinity(0, before)
