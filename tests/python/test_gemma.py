"""Gemma 3 270M, a real model with windows and 262,144 tokens: what llama.cpp says of it (tests/golden/gemma.json).

It is 240 MB, so these tests run where it is there: `bee pull gemma-3-270m` fetches it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest

from bee_integrations.engine import Engine, GenerationParams
from bee_integrations.models import REGISTRY, cache_directory

GOLDEN: list[dict[str, Any]] = json.loads(
    (Path(__file__).resolve().parent.parent / "golden" / "gemma.json").read_text(encoding="utf-8")
)
# Both engines round activations to 8 bits, each by its own rules: a token is decided where its lead is larger than
# what that changes. The largest lead at which another token was chosen: 0.28.
DECIDED = 0.8
NAME = "gemma-3-270m"


@pytest.fixture(scope="module")
def gemma() -> Iterator[Engine]:
    path = cache_directory() / "models" / NAME / REGISTRY[NAME].file
    if not path.is_file():
        pytest.skip(f"needs the model: run 'bee pull {NAME}'")
    with Engine(NAME, n_ctx=512, threads=2) as opened:
        yield opened


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: str(case["text"])[:20])
def test_greedy_tokens(gemma: Engine, case: dict[str, Any]) -> None:
    """Step by step behind llama.cpp's tokens, so that one other choice does not end the comparison."""
    assert gemma.encode_prompt(case["text"]) == case["prompt"]
    decided = np.array(case["margins"]) > DECIDED
    assert decided.mean() > 0.3
    for i in np.flatnonzero(decided):
        before = case["prompt"] + case["tokens"][:i]
        done = gemma.complete(before, GenerationParams(max_tokens=1, temperature=0))
        assert list(done.tokens) == case["tokens"][i : i + 1], i


def test_speculation_changes_nothing(gemma: Engine) -> None:
    for seed, case in enumerate(GOLDEN):
        params = {"max_tokens": 40, "temperature": 0.7 * (seed % 3), "seed": seed}
        plain = gemma.complete(case["prompt"], GenerationParams(**params, speculation="off"))
        for mode in ("auto", "dflash"):
            assert gemma.complete(case["prompt"], GenerationParams(**params, speculation=mode)).tokens == plain.tokens


def test_its_drafter_saves_passes(gemma: Engine) -> None:
    """On texts that training has not seen."""
    params = GenerationParams(max_tokens=100, temperature=0, speculation="dflash", draft_length=3)
    reached = [gemma.complete(case["prompt"], params).stats.tokens_per_cycle for case in GOLDEN]
    assert fmean(reached) > 1.7, reached
