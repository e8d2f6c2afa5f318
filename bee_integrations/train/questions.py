"""How the questions of the training conversations begin, and which of them are refused.

The target writes its own training data, but a small model left alone asks about few things. So most of its
questions are begun for it: one of the patterns of questions.json, with its blanks filled at random, and the target
samples the rest. The variety of questions bounds what a drafter learns more than their number does.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterable
from pathlib import Path

BENCHMARK_PROMPTS = Path(__file__).parent.parent / "prompts" / "benchmark.json"
"""The prompts that come with the package, which `bee bench` reports on."""

FREE_SHARE = 0.1
"""Share of the questions that the target writes from their first word on."""

_BEGINNINGS = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
_PATTERNS: list[str] = _BEGINNINGS["patterns"]
_BLANKS: dict[str, list[str]] = _BEGINNINGS["blanks"]
_BLANK = re.compile(r"\{(\w+)\}")


def opening(rng: random.Random) -> str:
    """The beginning of a user's question, "" where the target is to write all of it."""
    if rng.random() < FREE_SHARE:
        return ""
    return _BLANK.sub(lambda blank: rng.choice(_BLANKS[blank[1]]), rng.choice(_PATTERNS))


class HeldOut:
    """Prompts that training must not see: those that `bee bench` reports on."""

    SIMILARITY = 0.5
    """Largest share of common words (Jaccard index) that a question may have with a held-out prompt."""

    def __init__(self, prompts: Iterable[str]) -> None:
        self._words = [words for words in map(_words, prompts) if words]

    @classmethod
    def bundled(cls) -> HeldOut:
        """The prompts that come with the package. Raises FileNotFoundError where they are missing."""
        return cls.from_file(BENCHMARK_PROMPTS)

    @classmethod
    def from_file(cls, path: Path) -> HeldOut:
        """Prompts of a JSON file: a list of {"name", "messages"}; the user's messages count."""
        prompts = json.loads(path.read_text(encoding="utf-8"))
        return cls(m["content"] for prompt in prompts for m in prompt["messages"] if m["role"] == "user")

    def resembles(self, question: str) -> bool:
        """Whether the question equals a held-out prompt, contains one's words, or shares most words with it."""
        words = _words(question)
        return any(held <= words or len(held & words) > self.SIMILARITY * len(held | words) for held in self._words)


def _words(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"\w+", text.lower()))
