"""Speculation changes nothing that a caller can see: same prompt, parameters and seed, with and without drafts.

BEE_IDENTITY_GENERATIONS=5000 runs so many generations with stops, constraints, thinking and ends at random in place of
a few hundred.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import tiny_model

from bee_integrations.chat.reasoning import ReasoningSpan
from bee_integrations.constraints import Choice, Grammar, JsonSchema, Regex
from bee_integrations.constraints.phases import AnswerPhases, LazyGrammar, Thinking
from bee_integrations.engine import Completion, Engine, GenerationParams
from bee_integrations.tools.tool_format import Trigger

N_CASES, N_DRAFTED = 40, 5  # each case runs once without and five times with speculation: 240 generations
THREADS = (1, 2, 3)
MODES = (
    ("dflash", 1),
    ("dflash", 2),
    ("dflash", 4),
    ("dflash", None),
    ("copy", 3),
    ("copy", 15),
    ("copy", None),
    ("auto", 2),
    ("auto", None),
)
TEXTS = (
    "The capital of France is",
    "1, 2, 3, 4, 5,",
    "def fibonacci(n):\n    if n < 2:\n        return n\n    return",
    "Once upon a time, in a land far away, there lived",
    '{"name": "Ada", "born": 1815, "name": "Alan", "born":',
    "Die Hauptstadt von Deutschland ist",
    "to be or not to be, to be or not to be, to be or",
    "Zażółć gęślą jaźń 日本語 🐝",
)
QUESTIONS = ("Name three fruits.", "What is 12 times 12?", "Write a haiku about rain.", "Why is the sky blue?")


@pytest.fixture(scope="module")
def engines(model_path: Path, drafter_path: Path) -> Iterator[list[Engine]]:
    with ExitStack() as stack:
        yield [
            stack.enter_context(Engine(model_path, drafter=drafter_path, n_ctx=256, threads=threads))
            for threads in THREADS
        ]


def random_prompt(engine: Engine, draw: random.Random) -> list[int]:
    kind = draw.random()
    if kind < 0.4:
        return engine.encode_prompt(draw.choice(TEXTS))
    if kind < 0.8:
        return engine.encode_prompt(engine.render_chat([{"role": "user", "content": draw.choice(QUESTIONS)}]))
    return [draw.randrange(engine.info["n_vocab"]) for _ in range(draw.randint(1, 30))]


def random_params(draw: random.Random, longest: int) -> GenerationParams:
    return GenerationParams(
        temperature=draw.choice([0.0, 0.0, 0.3, 0.7, 1.0, 1.5]),
        top_k=draw.choice([0, 0, 1, 5, 40]),
        top_p=draw.choice([1.0, 1.0, 0.9, 0.5]),
        min_p=draw.choice([0.0, 0.0, 0.05, 0.3]),
        seed=draw.getrandbits(64),
        max_tokens=draw.randint(1, longest),
        speculation="off",
    )


def outcome(done: Completion) -> tuple[Any, ...]:
    """Everything that a caller can see, but for what tells how it came about: cycles, drafts, times, the cache."""
    stats = done.stats
    counts = stats.prompt_tokens, stats.output_tokens, stats.reasoning_tokens
    return done.tokens, done.text, done.finish_reason, done.stop_text, done.closed, done.logprobs, counts


def test_default_pair(engines: list[Engine]) -> None:
    draw = random.Random(2026)
    drafted = accepted = copied = copied_accepted = generations = 0
    for case in range(N_CASES):
        plain = random_params(draw, 14)
        prompt = random_prompt(engines[0], draw)
        expected = outcome(engines[case % len(engines)].complete(prompt, plain))
        for _ in range(N_DRAFTED):
            engine = draw.choice(engines)
            if draw.random() < 0.3:
                engine.forget()  # otherwise a part of the prompt may come from the cache
            mode, length = draw.choice(["auto", "dflash", "copy"]), draw.choice([None, 1, 2, 3, 5, 7])
            params = replace(plain, speculation=mode, draft_length=length)
            done = engine.complete(prompt, params)
            assert outcome(done) == expected, (case, params, engine.info["n_threads"])
            drafted += done.stats.drafted_tokens
            accepted += done.stats.accepted_tokens
            copied += done.stats.copied_tokens
            copied_accepted += done.stats.copied_accepted
            generations += 1
        generations += 1
    # The comparison means something only if drafts of both sources were made, and some were kept and others not.
    assert generations >= 200
    by_drafter, drafter_accepted = drafted - copied, accepted - copied_accepted
    assert by_drafter > 500
    assert 0.02 * by_drafter < drafter_accepted < 0.9 * by_drafter
    assert copied > 100
    assert 0 < copied_accepted < copied


def test_tiny_pair_up_to_the_end_of_the_context(tiny: Engine) -> None:
    draw = random.Random(7)
    drafted = accepted = copied = 0
    for _ in range(150):
        size = draw.choice([1, 2, 30, 127, 128, 129, 256, tiny.n_ctx - 20, tiny.n_ctx - 1])
        prompt = [draw.randrange(tiny.info["n_vocab"]) for _ in range(size)]
        plain = replace(random_params(draw, 60), max_tokens=draw.choice([1, 2, 9, 40, None if size > 400 else 50]))
        expected = outcome(tiny.complete(prompt, plain))
        for mode, draft_length in MODES:
            done = tiny.complete(prompt, replace(plain, speculation=mode, draft_length=draft_length))
            assert outcome(done) == expected
            drafted += done.stats.drafted_tokens
            accepted += done.stats.accepted_tokens
            copied += done.stats.copied_tokens
    assert drafted > 1000
    assert accepted > 100
    assert copied > 100


def test_requests_that_share_passes(tiny: Engine) -> None:
    """The rows of one pass belong to several sessions, some drafting, some reading their prompts."""
    draw = random.Random(11)
    jobs = []
    for _ in range(60):
        n_ids = draw.choice([2, tiny.info["n_vocab"]])  # two of them repeat themselves, so that there is much to copy
        prompt = [draw.randrange(n_ids) for _ in range(draw.choice([3, 40, 200]))]
        mode = draw.choice(["off", "auto", "dflash", "copy"])
        jobs.append((prompt, replace(random_params(draw, 50), speculation=mode)))
    alone = [outcome(tiny.complete(prompt, replace(params, speculation="off"))) for prompt, params in jobs]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda job: outcome(tiny.complete(*job)), jobs))
    assert together == alone


def test_repetitions_are_copied_without_a_drafter(model_path: Path) -> None:
    with Engine(model_path, drafter=None, n_ctx=256, threads=2) as engine:
        prompt = engine.encode_prompt("the cat, the dog, the bird; " * 6)
        plain = GenerationParams(max_tokens=40, speculation="off")
        expected = outcome(engine.complete(prompt, plain))
        for length in (None, 4, 15):
            done = engine.complete(prompt, replace(plain, speculation="copy", draft_length=length))
            assert outcome(done) == expected
            assert done.stats.speculation == "copy"
            assert done.stats.drafted_tokens == done.stats.copied_tokens
            assert done.stats.accepted_tokens == done.stats.copied_accepted > 10
        chosen = engine.complete(prompt, replace(plain, speculation="auto"))
        assert outcome(chosen) == expected
        assert chosen.stats.copied_accepted > 0


def test_the_seed_matters(tiny: Engine) -> None:
    params = GenerationParams(temperature=1.0, max_tokens=20)
    texts = [tiny.complete("seed", replace(params, seed=seed)).tokens for seed in range(20)]
    long = [text for text in texts if len(text) > 3]  # two texts may well both end at once
    assert len(long) > 10
    assert len(set(long)) == len(long)
    greedy = GenerationParams(max_tokens=20)
    assert len({tiny.complete("seed", replace(greedy, seed=seed)).tokens for seed in range(10)}) == 1


# ---- stops, constraints, thinking and ends on every position of a cycle ----------------------------------------------

GENERATIONS = int(os.environ.get("BEE_IDENTITY_GENERATIONS", "600"))
VARIANTS = (
    None,
    None,
    Regex("[a-z ,.]{4,30}"),
    Regex("(?s:.{3,12})"),
    Choice(("yes", "no", "perhaps so")),
    JsonSchema({"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}),
    Grammar('start: /[^x]{1,20}/ "x"'),
)


@dataclass
class Difference(Exception):  # noqa: N818
    case: Any
    mode: Any


def random_phases(draw: random.Random) -> AnswerPhases | None:
    """Thinking between letters that come at any place, and calls that a letter begins."""
    if draw.random() < 0.6:
        return None
    span = ReasoningSpan(draw.choice(["a", "\n", "e "]), draw.choice(["e", "t", " ", ".", "\n\n"]))
    thinking = Thinking(span, opened=draw.random() < 0.8, budget=draw.choice([None, None, 0, 3, 9]))
    trigger = Trigger(draw.choice(["s", "th", ":", "1"]), "rest", at_start=draw.random() < 0.2)
    lazy = LazyGrammar((trigger,), 'rest: /[0-9]{2,6}/ "."', ends_thinking=draw.random() < 0.5)
    return AnswerPhases(thinking=draw.choice([thinking, None]), lazy=draw.choice([lazy, None]))


def stops_within(draw: random.Random, text: str) -> tuple[str, ...]:
    """Parts of an answer, among them its very end, which comes with the token that ends it."""
    found = []
    for _ in range(draw.choice([1, 1, 2, 3])):
        begin = draw.choice([draw.randrange(len(text)), max(0, len(text) - draw.randint(1, 3))])
        found.append(text[begin : begin + draw.randint(1, 4)])
    return tuple(found)


def compare_all_modes(draw: random.Random, engine: Engine, longest: int, cases: int) -> dict[str, int]:
    """Compares `cases` generations, and counts what makes the comparison worth something."""
    seen = {"generations": 0, "stopped": 0, "ended": 0, "cut": 0, "thought": 0, "drafted": 0, "accepted": 0}
    ends = list(engine.tokenizer.stop_token_ids)
    while seen["generations"] < cases:
        prompt = random_prompt(engine, draw)
        phases = random_phases(draw)
        bias = {end: draw.choice([2.0, 4.0]) for end in ends} if draw.random() < 0.2 else {}
        plain = replace(
            random_params(draw, longest),
            constraint=draw.choice(VARIANTS) if phases is None else None,
            close_constraint=draw.random() < 0.3,
            logprobs=draw.random() < 0.2,
            logit_bias=bias,
        )
        first = engine.complete(prompt, plain, phases=phases)
        if first.text and draw.random() < 0.7:
            plain = replace(plain, stop=stops_within(draw, first.text))
            first = engine.complete(prompt, plain, phases=phases)
        for mode, length in draw.sample(MODES, 4):
            params = replace(plain, speculation=mode, draft_length=length)
            done = engine.complete(prompt, params, phases=phases)
            if outcome(done) != outcome(first):
                raise Difference((prompt, params, phases), (outcome(first), outcome(done)))
            seen["drafted"] += done.stats.drafted_tokens
            seen["accepted"] += done.stats.accepted_tokens
        seen["generations"] += 5
        seen["stopped"] += first.stop_text is not None
        seen["cut"] += first.finish_reason == "length"
        seen["ended"] += first.finish_reason == "stop" and first.stop_text is None
        seen["thought"] += first.stats.reasoning_tokens > 0
    return seen


def test_whatever_ends_an_answer(engine: Engine) -> None:
    seen = compare_all_modes(random.Random(13), engine, 24, GENERATIONS // 6)
    assert min(seen.values()) > 0, seen


@pytest.mark.parametrize("seed", [1, 5])
def test_whatever_ends_a_tiny_models_answer(seed: int, tmp_path: Path) -> None:
    tiny_model.drafter(seed + 1).write(tmp_path / "tiny.dflash.gguf")
    with Engine(tiny_model.model(seed).write(tmp_path / "tiny.gguf"), threads=1) as engine:
        seen = compare_all_modes(random.Random(seed), engine, 60, 5 * GENERATIONS // 12)
    assert min(seen.values()) > 0, seen


def test_a_stop_string_before_the_end_token(engine: Engine) -> None:
    """The token that ends the answer is drafted behind the one that completes the stop string."""
    question = [{"role": "user", "content": "Repeat exactly: The cat sat."}]
    plain = GenerationParams(max_tokens=40, speculation="off")
    whole = engine.complete(engine.render_chat(question), plain)
    assert whole.tokens[-1] in engine.tokenizer.stop_token_ids
    plain = replace(plain, stop=(whole.text[-1],))
    expected = engine.complete(engine.render_chat(question), plain)
    assert expected.tokens[-1] not in engine.tokenizer.stop_token_ids
    assert expected.stats.output_tokens == len(expected.tokens)
    for mode, length in MODES:
        done = engine.complete(engine.render_chat(question), replace(plain, speculation=mode, draft_length=length))
        assert outcome(done) == outcome(expected)
