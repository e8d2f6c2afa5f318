"""How good a drafter is: tokens per cycle on prompts that training has not seen.

Two ways give the same figure. `measure` lets libbee generate with the exported file, as users will. `simulate` replays
stored answers through the PyTorch drafter: quicker to try things with, and a check of the other.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as functional
from torch import Tensor

from .batches import Batches
from .fit import Checkpoint
from .shards import Conversation
from .target import Target


@dataclass(frozen=True)
class Score:
    """What drafting reached on one prompt."""

    prompt: str
    output_tokens: int
    """Tokens that the cycles gave: all but the first, which the prompt's pass gives."""
    cycles: int

    @property
    def tokens_per_cycle(self) -> float:
        return self.output_tokens / max(1, self.cycles)


def mean_tokens_per_cycle(scores: Sequence[Score]) -> float:
    """The mean over prompts, each counting the same."""
    return sum(score.tokens_per_cycle for score in scores) / max(1, len(scores))


def by_category(scores: Sequence[Score]) -> dict[str, float]:
    """Mean tokens per cycle of the prompts whose names agree but for a number at the end ("code-1", "code-2")."""
    groups: dict[str, list[Score]] = {}
    for score in scores:
        groups.setdefault(score.prompt.rstrip("0123456789").rstrip("-"), []).append(score)
    return {category: mean_tokens_per_cycle(group) for category, group in groups.items()}


def measure(
    model: str | os.PathLike[str],
    drafter: str | os.PathLike[str],
    prompts: Path,
    *,
    draft_length: int,
    max_tokens: int = 200,
    threads: int = 1,
) -> list[Score]:
    """Generate greedily with libbee from the prompts of a JSON file (a list of {"name", "messages"}), count cycles."""
    from ..bench.prompts import prompt_text
    from ..engine.engine import Engine, GenerationParams  # here, so that replaying needs no libbee

    params = GenerationParams(max_tokens=max_tokens, speculation="dflash", draft_length=draft_length)
    scores = []
    with Engine(model, drafter=drafter, threads=threads, n_parallel=1) as engine:
        for prompt in json.loads(prompts.read_text(encoding="utf-8")):
            stats = engine.complete(prompt_text(engine, prompt["messages"]), params).stats
            # The prompt's pass gives the first token, the cycles give the others.
            scores.append(Score(prompt["name"], stats.output_tokens - 1, stats.cycles))
    return scores


def simulate(
    checkpoint: Checkpoint, target: Target, conversations: Sequence[tuple[str, Conversation]], draft_length: int
) -> list[Score]:
    """Replay answers: draft after every token, then count the cycles that accepting along the answer takes."""
    drafter = checkpoint.drafter(target).eval()
    head = torch.from_numpy(target.head)[checkpoint.vocabulary].to(drafter.compute)
    batches = Batches(
        torch.from_numpy(target.token_embedding),
        checkpoint.vocabulary,
        1 / checkpoint.feature_rms,
        checkpoint.plan.mask_token,
    )
    scores = []
    for name, conversation in conversations:
        batch = batches.batch([conversation], None, draft_length + 1)
        with torch.no_grad():
            hidden = drafter(batch.places)[0, :, 1:]
            drafts = functional.linear(hidden.to(head.dtype), head).argmax(-1)
        accepted = (drafts == batch.labels[0]).long().cumprod(-1).sum(-1)
        scores.append(_replay(name, accepted))
    return scores


def _replay(name: str, accepted: Tensor) -> Score:
    """`accepted`: int64[places], how many drafts agree after each token, the prompt's last one first."""
    place, cycles = 1, 0
    counts = accepted.tolist()
    while place < len(counts):
        place += counts[place] + 1
        cycles += 1
    return Score(name, len(counts) - 1, cycles)
