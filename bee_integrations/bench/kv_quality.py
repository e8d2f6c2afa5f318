"""`bee bench --kv-quality`: what keys and values in 8 bits change: perplexity of texts, likeliest tokens and greedy
answers, beside those with float16."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

from .. import __version__
from ..engine.device_plan import plan_memory
from ..engine.engine import Engine, GenerationParams
from ..errors import ModelFileError, ParameterError
from ..models.file import KV_CACHES, ModelFile
from .benchmark import describe_machine
from .contenders import Progress, Steps
from .prompts import load_prompts, prompt_text

__all__ = ["KvQualityOptions", "kv_quality_markdown", "print_kv_quality", "run_kv_quality"]

WINDOW = 512
"""Tokens of a text that are read together, each behind those before it."""


@dataclass(frozen=True)
class KvQualityOptions:
    """What to measure. The numbers are smaller in tests alone."""

    texts: tuple[str | os.PathLike[str], ...]
    """Files of plain text or Markdown."""
    model: str | os.PathLike[str] | None = None
    prompts: str | os.PathLike[str] | None = None
    max_tokens: int = 128
    threads: int | None = None
    instruction_set: str | None = None
    device: str = "auto"
    windows: int = 16
    """Of all texts together, at most."""
    window: int = WINDOW

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ParameterError(f"max_tokens is {self.max_tokens}; give at least 1")
        if not self.texts:
            raise ParameterError("no text is named; give files, comma-separated")


def run_kv_quality(options: KvQualityOptions, progress: Progress | None = None) -> dict[str, Any]:
    """Measure, and return what `bee bench --kv-quality --json` writes. Raises BeeError, as where a text cannot be read
    or is too short."""
    steps = Steps(progress)
    with ExitStack() as stack:
        engines = {
            kv_cache: stack.enter_context(
                Engine(
                    options.model,
                    drafter=None,
                    kv_cache=kv_cache,
                    threads=options.threads,
                    device=options.device,
                    instruction_set=options.instruction_set,
                    n_parallel=1,
                )
            )
            for kv_cache in KV_CACHES
        }
        engine = engines["f16"]
        windows = _windows(options, engine)
        prompts = load_prompts(options.prompts)
        steps.expect(len(windows) + 2 * len(prompts))
        return {
            "bee_version": __version__,
            "machine": describe_machine(),
            "kv_quality": {
                "model": engine.model_name,
                "instruction_set": engine.info["instruction_set"],
                "texts": [Path(text).name for text in options.texts],
                "window": options.window,
                **_read(engines, windows, steps),
                **_answer(engines, [prompt_text(engine, prompt.messages) for prompt in prompts], options, steps),
                "plans": _plans(engine),
            },
        }


def _windows(options: KvQualityOptions, engine: Engine) -> list[list[int]]:
    """The texts' tokens in windows, as many of each text, each begun as the model wants a text begun."""
    begin = engine.encode_prompt("")
    size = min(options.window, engine.n_ctx)
    each = math.ceil(options.windows / len(options.texts))
    windows: list[list[int]] = []
    for text in options.texts:
        try:
            tokens = engine.tokenizer.encode(Path(text).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise ModelFileError(f"the text {os.fspath(text)} cannot be read: {error}") from error
        step = size - len(begin)
        found = [begin + tokens[at : at + step] for at in range(0, len(tokens) - step + 1, step)][:each]
        if not found:
            raise ParameterError(f"the text {os.fspath(text)} has {len(tokens)} tokens; a window has {size}")
        windows += found
    return windows[: options.windows]


def _read(engines: Mapping[str, Engine], windows: Sequence[list[int]], steps: Steps) -> dict[str, Any]:
    losses: dict[str, list[float]] = {kv_cache: [] for kv_cache in engines}
    same = total = 0
    divergence = 0.0
    for window in windows:
        steps.next("reading")
        scores = {name: _log_probabilities(engine.evaluate(window)[:-1]) for name, engine in engines.items()}
        rows = np.arange(len(window) - 1)
        for name, log_p in scores.items():
            losses[name] += (-log_p[rows, window[1:]]).tolist()
        exact, other = scores["f16"], scores["q8_0"]
        same += int((exact.argmax(axis=1) == other.argmax(axis=1)).sum())
        divergence += float((np.exp(exact) * (exact - other)).sum())
        total += len(rows)
    return {
        "tokens": total,
        "perplexity": {name: math.exp(sum(values) / total) for name, values in losses.items()},
        "divergence": divergence / total,
        "same_likeliest": same / total,
    }


def _log_probabilities(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    logits -= logits.max(axis=1, keepdims=True)
    logits -= np.log(np.exp(logits).sum(axis=1, dtype=np.float64, keepdims=True)).astype(np.float32)
    return logits


def _answer(
    engines: Mapping[str, Engine], prompts: Sequence[str], options: KvQualityOptions, steps: Steps
) -> dict[str, Any]:
    params = GenerationParams(max_tokens=options.max_tokens, temperature=0.0, speculation="off")
    agreed, lengths = [], []
    for prompt in prompts:
        answers = []
        for name, engine in engines.items():
            steps.next(f"answering with {name}")
            answers.append(engine.complete(prompt, params).tokens)
        pairs = list(zip(*answers, strict=False))
        lengths.append(max(map(len, answers)))
        first = next((at for at, (ours, theirs) in enumerate(pairs) if ours != theirs), len(pairs))
        agreed.append(first)
    return {
        "answers": len(prompts),
        "max_tokens": options.max_tokens,
        "same_answers": sum(first == length for first, length in zip(agreed, lengths, strict=True)),
        "agreed_tokens": sum(agreed) / len(agreed),
        "answer_tokens": sum(lengths) / len(lengths),
    }


def _plans(engine: Engine) -> list[dict[str, Any]]:
    """Bytes of the caches for contexts up to what the model was trained for."""
    with ModelFile(engine.model_path) as file:
        longest = int(engine.info["n_ctx_train"])
        contexts = [n for n in (8192, 32768, 131072) if n < longest] + [longest]
        return [
            {"n_ctx": n, **{name: plan_memory(file, None, "cpu", n, name).cache_bytes for name in KV_CACHES}}
            for n in contexts
        ]


# ---- tables ------------------------------------------------------------------------------------------------------


def _rows(quality: Mapping[str, Any]) -> list[tuple[str, ...]]:
    p = quality["perplexity"]
    plans = [
        (f"keys and values of {plan['n_ctx']} positions, MB", *(f"{plan[name] / 1e6:.1f}" for name in KV_CACHES))
        for plan in quality["plans"]
    ]
    return [
        ("perplexity", f"{p['f16']:.4f}", f"{p['q8_0']:.4f} ({p['q8_0'] / p['f16'] - 1:+.3%})"),
        ("Kullback-Leibler divergence, nats a token", "", f"{quality['divergence']:.2e}"),
        ("the same likeliest token", "", f"{quality['same_likeliest']:.2%}"),
        (
            f"greedy answers of up to {quality['max_tokens']} tokens that are the same",
            "",
            f"{quality['same_answers']} of {quality['answers']}",
        ),
        (
            "tokens of an answer before the first other one",
            "",
            f"{quality['agreed_tokens']:.1f} of {quality['answer_tokens']:.1f}",
        ),
        *plans,
    ]


def _describe(quality: Mapping[str, Any]) -> str:
    return (
        f"{quality['model']}, {quality['instruction_set']}: {quality['tokens']} tokens of "
        f"{', '.join(quality['texts'])} in windows of {quality['window']}."
    )


def kv_quality_markdown(report: Mapping[str, Any]) -> str:
    """The comparison as Markdown."""
    quality = report["kv_quality"]
    lines = [("", *KV_CACHES), ("---", "---:", "---:"), *_rows(quality)]
    return _describe(quality) + "\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def print_kv_quality(report: Mapping[str, Any], console: Console) -> None:
    """The comparison as a table."""
    quality = report["kv_quality"]
    table = Table(title="Keys and values", title_justify="left")
    for name in ("", *KV_CACHES):
        table.add_column(name, justify="right" if name else "left")
    for row in _rows(quality):
        table.add_row(*row)
    console.print(_describe(quality), highlight=False)
    console.print(table)
