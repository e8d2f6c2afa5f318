"""The drafters that come with the package: small, bound to their targets, and as good as their recipe promises."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import fmean

import pytest

from bee_integrations.bench.prompts import Prompt, load_prompts
from bee_integrations.engine import Engine, GenerationParams
from bee_integrations.models import DEFAULT_MODEL, REGISTRY
from bee_integrations.models.file import ModelFile

LARGEST = 16_000_000  # bytes; it is part of every installation
TOKENS_PER_CYCLE = 1.57  # what the first study of the recipe reached on the same prompts, whole blocks, greedy
ANSWER = 200  # tokens


@pytest.mark.parametrize("name", REGISTRY)
def test_it_is_small_and_names_its_target(name: str) -> None:
    path = REGISTRY[name].drafter_path
    assert path is not None
    with ModelFile(path) as file:
        assert file.size <= LARGEST
        assert file.plan().is_drafter
        assert "dflash.target_vocabulary_hash" in file.metadata
        names = {tensor.name for tensor in file.tensors}
    assert names >= {"d2t", "output.weight"}
    assert "token_embd.weight" not in names  # the target's serves


def test_tokens_per_cycle_on_prompts_that_training_has_not_seen(engine: Engine, drafter_path: Path) -> None:
    assert drafter_path == REGISTRY[DEFAULT_MODEL].drafter_path
    params = GenerationParams(max_tokens=ANSWER, speculation="dflash")

    def tokens_per_cycle(prompt: Prompt) -> float:
        return engine.complete(engine.render_chat(prompt.messages), params).stats.tokens_per_cycle

    prompts = load_prompts()
    assert len(prompts) >= 20
    with ThreadPoolExecutor(4) as pool:
        reached = list(pool.map(tokens_per_cycle, prompts))
    assert fmean(reached) >= TOKENS_PER_CYCLE, dict(zip((prompt.name for prompt in prompts), reached, strict=True))
