"""What constraints cost, and what drafting gains under them."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ..constraints.compiler import JsonSchema
from ..constraints.phases import AnswerPhases, LazyGrammar
from ..engine.engine import Engine, GenerationParams
from ..tools.hermes import HermesFormat
from ..tools.tool_format import Tool, Trigger
from .prompts import Prompt, load_prompts, prompt_text
from .run import Figure, Run

__all__ = ["structured_figures"]

ANSWER_TOKENS = 200
LAZY_PROMPTS = 6  # those of the run that a grammar lies in wait for

_TOOL = Tool("get_weather", "", {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]})


def structured_figures(run: Run) -> list[Figure]:
    """Answers that a JSON schema constrains, masks beside passes, and a call that never comes."""
    return [*_constrained(run), _lazy(run)]


def _seconds(engine: Engine, prompt: Sequence[int], params: GenerationParams, plan: AnswerPhases | None) -> Any:
    """Statistics and tokens of a greedy answer from an empty cache."""
    engine.forget()
    answer = engine.complete(prompt, params, phases=plan)
    return answer.stats.decode_seconds, answer


# ---- schemas ---------------------------------------------------------------------------------------------------------


def _constrained(run: Run) -> list[Figure]:
    prompts = load_prompts(bundled="structured")
    gains, shares, cycles, forced = [], [], [], []
    run.steps.expect(run.repeats * len(prompts))
    times: dict[tuple[str, str], list[float]] = {}
    for _ in range(run.repeats):
        for prompt in prompts:
            run.steps.next(f"structured, {prompt.name}")
            answers = {mode: _answer(run, prompt, mode, times) for mode in ("off", "auto")}
            if answers["off"].tokens != answers["auto"].tokens:
                return [Figure("structured", "auto over off, mean", asked=1.5, note=f"THE TEXTS DIFFER: {prompt.name}")]
    for prompt in prompts:
        off, auto = (statistics.median(times[prompt.name, mode]) for mode in ("off", "auto"))
        answer = _answer(run, prompt, "auto", {})
        gains.append(off / auto)
        cycles.append(answer.stats.tokens_per_cycle)
        forced.append(answer.stats.forced_tokens / len(answer.tokens))
        shares.append(answer.stats.phase_seconds / answer.stats.decode_seconds)
    return [
        Figure(
            "structured",
            "answers under a JSON schema, auto over off, mean",
            asked=1.5,
            reached=statistics.fmean(gains),
            note=f"{statistics.fmean(cycles):.2f} tokens per cycle, {statistics.fmean(forced):.0%} of the tokens "
            f"forced; least {min(gains):.2f}, most {max(gains):.2f}",
        ),
        Figure(
            "structured",
            f"masks and all else of the constraint, share of the cycles, {run.engine.info['n_vocab']} tokens",
            asked=0.1,
            reached=statistics.fmean(shares),
            at_most=True,
            note=f"most {max(shares):.3f}",
        ),
    ]


def _schema(prompt: Prompt) -> JsonSchema:
    assert prompt.schema is not None
    return JsonSchema(prompt.schema)


def _answer(run: Run, prompt: Prompt, mode: str, times: dict[tuple[str, str], list[float]]) -> Any:
    tokens = run.engine.encode_prompt(prompt_text(run.engine, prompt.messages))
    params = GenerationParams(max_tokens=ANSWER_TOKENS, speculation=mode, constraint=_schema(prompt))
    seconds, answer = _seconds(run.engine, tokens, params, None)
    times.setdefault((prompt.name, mode), []).append(seconds)
    return answer


# ---- a call that never comes -----------------------------------------------------------------------------------------


def _lazy(run: Run) -> Figure:
    """Plain answers while a tool call's trigger is watched for, over answers without that."""
    form = HermesFormat()
    rules = f"rest: after_trigger\n{form.call_rules([_TOOL], run.engine.grammars.literal, parallel=False)}"
    plan = AnswerPhases(lazy=LazyGrammar((Trigger(form.trigger, "rest"),), rules))
    chosen = list(run.tokens.items())[:LAZY_PROMPTS]
    params = GenerationParams(max_tokens=ANSWER_TOKENS, speculation="off")
    rounds = 2 * run.repeats
    run.steps.expect(rounds * len(chosen))
    figure = Figure("structured", "decode with a tool call in wait that never comes, over none", asked=0.98)
    ratios: list[float] = []
    for round_ in range(rounds):
        for name, tokens in chosen:
            run.steps.next(f"lazy, {name}")
            turn = [(None, 0), (plan, 1)]
            seconds, texts = [0.0, 0.0], ["", ""]
            for phases, place in turn if round_ % 2 else reversed(turn):
                seconds[place], answer = _seconds(run.engine, tokens, params, phases)
                texts[place] = answer.text
            if texts[0] != texts[1]:
                return replace(figure, note=f"THE TEXTS DIFFER: {name}")
            ratios.append(seconds[0] / seconds[1])
    return replace(figure, reached=statistics.median(ratios), note=f"{len(ratios)} pairs")
