"""What drafting gains: over plain decoding, of the bound that its own choices set, and where texts are repeated."""

from __future__ import annotations

import statistics
from dataclasses import replace
from typing import Any

from .contenders import Answers, BeeContender, answer_in_turn
from .llama_cpp_peer import LlamaCppPeer
from .passes import bound_speed_up, measure_cycle_costs
from .prompts import load_prompts, prompt_text
from .run import NO_PEER, Figure, Run

__all__ = ["repeat_figures", "speculation_figures"]

REPEAT_TOKENS = 450  # of an answer that repeats a text of 300 words
GOOD_CYCLE = 2.4  # tokens per cycle, from which more is asked of drafting
CONTEXT_STEP = 128  # costs of cycles are measured at multiples of it


def speculation_figures(run: Run) -> list[Figure]:
    """How auto does on the prompts of the run: over plain decoding, over the bound of its drafts, and over the peer."""
    answers = run.answers()
    off, auto, peer = answers.find("bee", "off"), answers.find("bee", "auto"), answers.find(LlamaCppPeer.name, "off")
    figures = [
        Figure("speculation", "auto over off, mean", asked=1.1),
        Figure("speculation", "auto over off, worst prompt", asked=0.97),
        Figure("speculation", "auto over off, over the bound of its drafts, mean", asked=0.95),
        Figure("speculation", "auto over the peer, mean", asked=4.8),
    ]
    if off is None or auto is None:
        return [replace(figure, note="needs the modes off and auto") for figure in figures]
    ratios = answers.ratios(auto, off)
    if not ratios:
        return [replace(figure, note="every answer ended with its first token") for figure in figures]
    speeds: dict[str, Any] = {
        "ours": statistics.fmean(answers.speeds(auto)),
        "rival": statistics.fmean(answers.speeds(off)),
        "unit": "tokens/s",
    }
    worst = min(ratios, key=lambda prompt: ratios[prompt])
    run.draft_bounds = _draft_bounds(run, answers, auto, ratios)
    yielded = statistics.fmean(
        sample.tokens_per_cycle or 0.0 for (i, _), s in answers.samples.items() if i == auto for sample in s
    )
    mean, least, bound, over_peer = figures
    return [
        replace(
            mean,
            reached=statistics.fmean(ratios.values()),
            asked=1.1 if yielded < GOOD_CYCLE else 1.3,
            note=f"{yielded:.2f} tokens per cycle",
            **speeds,
        ),
        replace(
            least,
            reached=ratios[worst],
            ours=answers.speed(auto, worst),
            rival=answers.speed(off, worst),
            unit="tokens/s",
            note=worst,
        ),
        replace(
            bound,
            reached=statistics.fmean(entry["over_bound"] for entry in run.draft_bounds),
            note=f"bound {statistics.fmean(entry['bound'] for entry in run.draft_bounds):.2f} on average",
        ),
        _over_peer(over_peer, answers, auto, peer),
    ]


def _over_peer(figure: Figure, answers: Answers, ours: int, peer: int | None) -> Figure:
    if peer is None:
        return replace(figure, note=NO_PEER)
    return replace(
        figure,
        reached=statistics.fmean(answers.ratios(ours, peer).values()),
        ours=statistics.fmean(answers.speeds(ours)),
        rival=statistics.fmean(answers.speeds(peer)),
        unit="tokens/s",
        note="over the peer",
    )


def _draft_bounds(run: Run, answers: Answers, mode: int, ratios: dict[str, float]) -> list[dict[str, Any]]:
    """By prompt: what drafting reached, and what it could have reached with the lengths it chose, at the costs of
    passes and drafts at that prompt's typical context."""
    contexts = {prompt: _typical_context(run, answers, mode, prompt) for prompt in ratios}
    costs = {}
    for context in sorted(set(contexts.values())):
        lengths = {
            k
            for prompt in ratios
            if contexts[prompt] == context
            for sample in answers.samples[mode, prompt]
            for histogram in (sample.drafted_histogram, sample.drafter_histogram)
            for k, count in enumerate(histogram)
            if count
        }
        costs[context] = measure_cycle_costs(run.engine, context, sorted(lengths), run.steps)
    result = []
    for prompt, ratio in ratios.items():
        bound = statistics.median(
            bound_speed_up(s.output_tokens - 1, s.drafted_histogram, s.drafter_histogram, costs[contexts[prompt]])
            for s in answers.samples[mode, prompt]
        )
        result.append(
            {
                "prompt": prompt,
                "context": contexts[prompt],
                "reached": ratio,
                "bound": bound,
                "over_bound": ratio / bound,
            }
        )
    return result


def _typical_context(run: Run, answers: Answers, mode: int, prompt: str) -> int:
    """The middle of the answer, rounded: few contexts to measure costs at."""
    middle = len(answers.tokens[prompt]) + answers.samples[mode, prompt][0].output_tokens / 2
    most = run.engine.n_ctx - 16
    return min(max(1, round(middle / CONTEXT_STEP)) * CONTEXT_STEP, most)


def repeat_figures(run: Run) -> list[Figure]:
    """Texts that the prompt asks to repeat or to edit lightly."""
    modes = ("off", "auto", "copy")
    tokens = {
        prompt.name: run.engine.encode_prompt(prompt_text(run.engine, prompt.messages))
        for prompt in load_prompts(bundled="repeat")
    }
    if max(map(len, tokens.values())) + REPEAT_TOKENS > run.engine.n_ctx:
        return [Figure("repeat", "auto over off", asked=2.0, note=f"the context holds {run.engine.n_ctx} tokens")]
    answers = answer_in_turn(
        [BeeContender(run.engine, mode) for mode in modes],
        tokens,
        max_tokens=REPEAT_TOKENS,
        repeats=run.repeats,
        steps=run.steps,
    )
    return [
        Figure(
            "repeat",
            f"{prompt}: {mode} over off",
            asked=2.0 if mode == "auto" else None,
            reached=ratio,
            ours=answers.speed(index, prompt),
            rival=answers.speed(0, prompt),
            unit="tokens/s",
            note=_repeat_note(answers, index, prompt),
        )
        for index, mode in ((1, "auto"), (2, "copy"))
        for prompt, ratio in answers.ratios(index, 0).items()
    ]


def _repeat_note(answers: Answers, mode: int, prompt: str) -> str:
    samples = answers.samples[mode, prompt]
    texts = {sample.text for sample in (*samples, *answers.samples[0, prompt])}
    yielded = f"{samples[0].tokens_per_cycle or 0.0:.2f} tokens per cycle"
    return yielded if len(texts) == 1 else f"THE TEXTS DIFFER; {yielded}"
