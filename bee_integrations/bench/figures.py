"""The figures that Bee is meant to reach, each beside what it reached: `bee bench --figures`.

A figure is a ratio of two things measured in turn in one run: Bee over its peer, or Bee in one mode over Bee in
another. What could not be measured says why.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..engine.device_plan import CPU
from ..engine.engine import Engine
from ..errors import ParameterError
from ..models.file import ModelFile
from .batch import measure_batch, measure_prefix
from .contenders import Answers, BeeContender, PeerContender, answer_in_turn
from .drafting import repeat_figures, speculation_figures
from .fresh import FreshEngine, load_time, peak_memory
from .limits import Limits, measure_limits
from .llama_cpp_peer import REQUANTISED_TYPES, LlamaCppPeer, requantise
from .passes import PassTimes
from .run import NO_PEER, Figure, Run, made_up_tokens, same_place
from .structured import structured_figures

__all__ = ["GROUPS", "measure_figures"]

PREFILL_TOKENS = 512
LOAD_PROMPT = 16
MEMORY_PROMPT, MEMORY_ANSWER = 1024, 64
BATCH = 16
PREFIX, PREFIX_REST, PREFIX_ANSWER = 512, 32, 32  # tokens that prompts have in common, of each alone, of its answer

_ASKED_REQUANTISED = {"Q4_0": 2.7, "Q8_0": 1.7, "Q4_K_M": 2.5}
_ASKED_PASSES = {256: {1: 4.0, 4: 7.0, 8: 7.0, 16: 6.0}, 1024: {1: 3.5, 4: 5.5, 8: 5.5, 16: 5.0}}
_ASKED_BOUND_SHARE = 0.6


def measure_figures(run: Run, groups: tuple[str, ...]) -> list[Figure]:
    """The figures of these groups, in the order of GROUPS."""
    return [figure for name, measure in GROUPS.items() if name in groups for figure in measure(run)]


# ---- decoding and reading, against the peer ----------------------------------------------------------------------


def _decode_figure(figure: Figure, answers: Answers, limits: Limits) -> Figure:
    """Plain decoding over the peer's: the median of the ratios on the same prompts."""
    ours, theirs = answers.find("bee", "off"), answers.find(LlamaCppPeer.name, "off")
    if ours is None or theirs is None:
        return replace(figure, note=NO_PEER if theirs is None else "speculation 'off' is not among the modes")
    ratios = answers.ratios(ours, theirs)
    if not ratios:
        return replace(figure, note="every answer ended with its first token")
    shares = []
    for prompt in ratios:
        speed = answers.speed(ours, prompt)
        context = len(answers.tokens[prompt]) + answers.samples[ours, prompt][0].output_tokens / 2
        shares.append(limits.pass_seconds(1, context) * (speed or 0.0))
    return replace(
        figure,
        reached=statistics.median(ratios.values()),
        ours=statistics.median(answers.speeds(ours)),
        rival=statistics.median(answers.speeds(theirs)),
        unit="tokens/s",
        bound_share=statistics.median(shares),
        note="over the peer",
    )


def _decode(run: Run) -> list[Figure]:
    figure = Figure("decode", "decode, speculation off, as shipped", asked=4.0)
    if run.peer is None:
        return [replace(figure, note=NO_PEER)]
    return [_decode_figure(figure, run.answers(), run.limits)]


def _decode_pair(run: Run, figure: Figure, model: Path, **arguments: Any) -> Figure:
    with run.another_pair(model, **arguments) as (engine, peer):
        answers = answer_in_turn(
            [BeeContender(engine, "off"), PeerContender(peer, engine)],
            run.some_prompts(),
            max_tokens=run.max_tokens,
            repeats=run.repeats,
            steps=run.steps,
        )
        return _decode_figure(figure, answers, measure_limits(engine))


def _requantised(run: Run) -> list[Figure]:
    figures = []
    for name in REQUANTISED_TYPES:
        figure = Figure("requantised", f"decode, requantised to {name}", asked=_ASKED_REQUANTISED[name])
        if run.peer is None:
            figures.append(replace(figure, note=NO_PEER))
            continue
        path = run.folder / f"{run.engine.model_path.stem}.{name}.gguf"
        run.steps.expect(1)
        run.steps.next(f"requantising to {name}")
        requantise(run.engine.model_path, path, name, threads=run.threads, folder=run.peer_folder)
        figures.append(_decode_pair(run, figure, path, threads=run.threads))
        path.unlink()
    return figures


def _one_thread(run: Run) -> list[Figure]:
    figure = Figure("one-thread", "decode, one thread each", asked=4.0)
    if run.peer is None:
        return [replace(figure, note=NO_PEER)]
    return [_decode_pair(run, figure, run.engine.model_path, threads=1, device=CPU)]


def _avx2(run: Run) -> list[Figure]:
    figure = Figure("avx2", "decode, AVX2 forced, the peer built without AVX-512", asked=2.5)
    if run.avx2_peer_folder is None:
        return [replace(figure, note="no such peer: give --avx2-peer-path")]
    try:
        return [
            _decode_pair(
                run,
                figure,
                run.engine.model_path,
                threads=run.threads,
                device=CPU,
                instruction_set="avx2",
                peer_folder=run.avx2_peer_folder,
            )
        ]
    except ParameterError as error:  # a machine without AVX2
        return [replace(figure, note=str(error))]


def _prefill(run: Run) -> list[Figure]:
    figure = Figure("prefill", f"prompt of {PREFILL_TOKENS} tokens", asked=5.0)
    if run.peer is None:
        return [replace(figure, note=NO_PEER)]
    if run.engine.n_ctx <= PREFILL_TOKENS:
        return [replace(figure, note=f"the context holds {run.engine.n_ctx} tokens")]
    prompt = made_up_tokens(PREFILL_TOKENS, run.engine.info["n_vocab"])
    answers = answer_in_turn(
        [BeeContender(run.engine, "off"), PeerContender(run.peer, run.engine)],
        {"prefill": prompt},
        max_tokens=1,
        repeats=max(5, run.repeats),
        steps=run.steps,
    )
    ours, theirs = (
        statistics.median(sample.prefill_tokens_per_s or 0.0 for sample in answers.samples[index, "prefill"])
        for index in (0, 1)
    )
    bound = run.limits.pass_seconds(PREFILL_TOKENS, 0, logits=1)
    return [
        replace(
            figure,
            reached=ours / theirs,
            ours=ours,
            rival=theirs,
            unit="tokens/s",
            bound_share=bound / (PREFILL_TOKENS / ours),
            note="over the peer",
        )
    ]


# ---- passes ------------------------------------------------------------------------------------------------------


def _passes(run: Run) -> list[Figure]:
    room = min(run.engine.n_ctx, run.engine.info["n_ctx_train"])
    figures = []
    measured: dict[int, PassTimes] = {}
    for context, asked in _ASKED_PASSES.items():
        if context + max(asked) <= room:
            measured[context] = run.passes(context)
        else:
            figures.append(Figure("passes", f"passes after {context} positions", note=f"the context holds {room}"))
    limits = run.limits  # the best rates of the whole run
    for context, costs in measured.items():
        figures += [_pass_ratio(costs, rows, asked) for rows, asked in _ASKED_PASSES[context].items()]
    for context, costs in measured.items():
        figures += [_pass_share(costs, rows, limits) for rows in _ASKED_PASSES[context]]
    return figures


def _pass_ratio(costs: PassTimes, rows: int, asked: float) -> Figure:
    ours = costs.target[rows]
    figure = Figure(
        "passes", f"pass over {rows} after {costs.context} positions", asked=asked, ours=1e3 * ours, unit="ms"
    )
    if not costs.peer:
        return replace(figure, note=NO_PEER)
    return replace(
        figure, rival=1e3 * costs.peer[rows], reached=costs.peer_ratios[rows], note="the peer's time over ours"
    )


def _pass_share(costs: PassTimes, rows: int, limits: Limits) -> Figure:
    ours, bound = costs.target[rows], limits.pass_seconds(rows, costs.context)
    return Figure(
        "passes",
        f"pass over {rows} after {costs.context} positions, of its bound",
        asked=_ASKED_BOUND_SHARE,
        reached=bound / ours,
        ours=1e3 * ours,
        rival=1e3 * bound,
        unit="ms",
        bound_share=bound / ours,
        note=f"{limits.pass_seconds(rows, costs.context, from_caches=True) / ours:.0%} of the bound with caches",
    )


# ---- memory, loading, many at once -------------------------------------------------------------------------------


def _fresh_engine(run: Run, n_ctx: int) -> FreshEngine:
    engine = run.engine
    return FreshEngine(engine.model_path, engine.drafter_path, min(n_ctx, engine.n_ctx), same_place(engine))


def _memory(run: Run) -> list[Figure]:
    figure = Figure("memory", "peak memory over files and key-value cache", asked=1.35, at_most=True, unit="MB")
    fresh = _fresh_engine(run, MEMORY_PROMPT + MEMORY_ANSWER)
    n_prompt = MEMORY_PROMPT if fresh.n_ctx > MEMORY_PROMPT else fresh.n_ctx // 2
    prompt = made_up_tokens(n_prompt, run.engine.info["n_vocab"])
    run.steps.expect(1)
    run.steps.next("memory")
    measured = peak_memory(fresh, prompt, min(MEMORY_ANSWER, fresh.n_ctx - len(prompt)))
    if measured is None:
        return [replace(figure, note="the system does not tell a process's peak")]
    needed = 0
    for path in (fresh.model, fresh.drafter):
        if path is not None:
            with ModelFile(path) as file:
                needed += path.stat().st_size + measured.positions * file.plan().kv_bytes_per_token
    return [
        replace(
            figure,
            reached=measured.peak / needed,
            ours=measured.peak / 1e6,
            rival=needed / 1e6,
            note=f"{measured.positions} positions; at the end {measured.file_pages / 1e6:.0f} MB are pages of files",
        )
    ]


def _load(run: Run) -> list[Figure]:
    fresh = _fresh_engine(run, run.engine.n_ctx)
    prompt = made_up_tokens(LOAD_PROMPT, run.engine.info["n_vocab"])
    run.steps.expect(run.repeats)
    times = []
    for _ in range(run.repeats):
        run.steps.next("load")
        times.append(load_time(fresh, prompt))
    seconds = statistics.median(one.first_token_s for one in times)
    opening = statistics.median(one.open_s for one in times)
    imports = statistics.median(one.import_s for one in times)
    return [
        Figure(
            "load",
            f"load to the first token of a {len(prompt)}-token prompt",
            asked=1.0,
            reached=seconds,
            ours=seconds,
            unit="s",
            at_most=True,
            note=f"opening {opening:.2f} s of it; imports, {imports:.2f} s, come before",
        )
    ]


def _batch(run: Run) -> list[Figure]:
    figures = []
    engine = run.engine
    with Engine(
        engine.model_path,
        drafter=engine.drafter_path,
        n_ctx=engine.n_ctx,
        n_parallel=BATCH,
        **same_place(engine),
    ) as parallel:
        for mode in ("off", "auto"):
            speed = measure_batch(
                parallel,
                list(run.tokens.values()),
                mode,
                count=BATCH,
                max_tokens=run.max_tokens,
                repeats=run.repeats,
                steps=run.steps,
            )
            figure = Figure("batch", f"{BATCH} sequences at once over one, {mode}", asked=4.0, unit="tokens/s")
            if speed.alone is None or speed.together is None:
                figures.append(replace(figure, note="the answers are too short to overlap"))
                continue
            ratio = speed.together / speed.alone
            figures.append(replace(figure, reached=ratio, ours=speed.together, rival=speed.alone))
    return figures


def _prefix(run: Run) -> list[Figure]:
    fresh = _fresh_engine(run, PREFIX + PREFIX_REST + PREFIX_ANSWER)
    n_prefix = min(PREFIX, fresh.n_ctx // 2)
    n_rest = n_answer = min(PREFIX_REST, fresh.n_ctx // 8)
    n_vocab = run.engine.info["n_vocab"]
    prefix = made_up_tokens(n_prefix, n_vocab)
    prompts = [
        prefix + [(i + token) % n_vocab for token in made_up_tokens(n_prefix + n_rest, n_vocab)[n_prefix:]]
        for i in range(BATCH)
    ]
    shared, apart = measure_prefix(fresh, prompts, max_tokens=n_answer, repeats=run.repeats, steps=run.steps)
    name = f"{BATCH} prompts that share {n_prefix} tokens"
    seconds = Figure(
        "prefix",
        f"{name}: to the last answer",
        reached=apart.seconds / shared.seconds,
        ours=shared.seconds,
        rival=apart.seconds,
        unit="s",
        note=f"each reading them for itself, over shared; {n_rest} tokens more of each, and {n_answer} of its answer",
    )
    memory = Figure("prefix", f"{name}: peak memory", unit="MB")
    if shared.peak is None or apart.peak is None:
        return [seconds, replace(memory, note="the system does not tell a process's peak")]
    reached = apart.peak / shared.peak
    return [seconds, replace(memory, reached=reached, ours=shared.peak / 1e6, rival=apart.peak / 1e6)]


GROUPS: dict[str, Callable[[Run], list[Figure]]] = {
    "decode": _decode,
    "requantised": _requantised,
    "prefill": _prefill,
    "speculation": speculation_figures,
    "repeat": repeat_figures,
    "structured": structured_figures,
    "passes": _passes,
    "one-thread": _one_thread,
    "memory": _memory,
    "load": _load,
    "batch": _batch,
    "prefix": _prefix,
    "avx2": _avx2,
}
