"""`bee train`: generate, fit, evaluate, export. Every stage goes on where an earlier run of it stopped."""

from __future__ import annotations

import json
import math
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from ..errors import ParameterError
from ..models.registry import resolve_model
from .batches import coverage
from .conversations import ConversationParams, generate, stored_answer_tokens
from .drafter import Plan
from .evaluate import Score, by_category, mean_tokens_per_cycle, measure
from .export import export
from .fit import LOG, Checkpoint, FitParams, fit
from .questions import BENCHMARK_PROMPTS, HeldOut
from .shards import Conversations
from .target import Target

MAX_TOKENS = 200
"""Of each answer that the drafter is evaluated on."""


@dataclass(frozen=True)
class Report:
    """What a training run reached."""

    drafter: Path
    answer_tokens: int
    draft_vocabulary_coverage: float
    """Share of the tokens of generated answers that the reduced vocabulary holds."""
    blocks: int
    scores: list[Score]
    """One per held-out prompt, measured with libbee and the exported file."""

    @property
    def tokens_per_cycle(self) -> float:
        return mean_tokens_per_cycle(self.scores)

    def as_dict(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "drafter": str(self.drafter),
            "tokens_per_cycle": self.tokens_per_cycle,
            "categories": by_category(self.scores),
        }


def train(
    model: str | os.PathLike[str] | None = None,
    output: str | os.PathLike[str] | None = None,
    *,
    folder: str | os.PathLike[str] = "drafter-training",
    prompts: str | os.PathLike[str] | None = None,
    generate_minutes: float | None = 25.0,
    answer_tokens: int = 2_000_000,
    fit_minutes: float = 30.0,
    processes: int | None = None,
    n_layer: int = 2,
    n_taps: int = 5,
    block_size: int = 8,
    draft_vocabulary: int = FitParams.draft_vocabulary,
    llama_cpp_output: str | os.PathLike[str] | None = None,
    console: Console | None = None,
) -> Report:
    """Train a DFlash drafter for a target and write it as a GGUF file.

    model: a registered name or the path of a GGUF file, None for the default model. output: where the drafter goes,
    "<model>.dflash.gguf" in `folder` if None. folder: data, checkpoint and log; running again with the same folder goes
    on. prompts: a JSON list of {"name", "messages"} to evaluate on and keep out of training, None for the bundled ones.
    generate_minutes, answer_tokens: how long to make data, whichever ends first. processes: None for one per core.
    llama_cpp_output: where to write a second file that llama.cpp can load.

    Raises ParameterError where an argument is out of range or the folder belongs to another target, and what reading or
    running the target raises.
    """
    _check(fit_minutes, n_layer, n_taps, block_size, draft_vocabulary)
    console = console or Console(stderr=True)
    model_path, folder = resolve_model(model), Path(folder)
    prompts = Path(prompts) if prompts is not None else BENCHMARK_PROMPTS
    output = Path(output) if output is not None else folder / f"{model_path.stem}.dflash.gguf"
    processes = processes or len(os.sched_getaffinity(0))
    target = Target(model_path)
    plan = Plan(n_layer, spread_taps(target.shape.n_layer, n_taps), block_size, target.mask_token)
    _claim(folder, target, plan)

    goal = ConversationParams(answer_tokens=answer_tokens, minutes=generate_minutes, processes=processes)
    _generate(model_path, folder, plan, goal, HeldOut.from_file(prompts), console)
    params = FitParams(
        minutes=fit_minutes,
        # Every process takes the same number of conversations in a step.
        processes=math.gcd(processes, FitParams.conversations_per_step),
        block_lengths=tuple(n for n in FitParams.block_lengths if n <= block_size) or (block_size,),
        draft_vocabulary=draft_vocabulary,
    )
    with _fit_progress(folder / "fit", console):
        checkpoint = fit(model_path, folder / "conversations", folder / "fit", plan, params)

    name = f"{target.field('general.name', model_path.stem)} DFlash"
    output.parent.mkdir(parents=True, exist_ok=True)
    export(checkpoint, target, output, name=name)
    if llama_cpp_output is not None:
        export(checkpoint, target, Path(llama_cpp_output), name=name, for_llama_cpp=True)
    report = _evaluate(checkpoint, model_path, output, folder, prompts, processes)
    (folder / "report.json").write_text(json.dumps(report.as_dict(), indent=1), encoding="utf-8")
    console.print(f"{output}: {report.tokens_per_cycle:.3f} tokens per cycle over {len(report.scores)} prompts")
    return report


def spread_taps(n_layer: int, n_taps: int) -> tuple[int, ...]:
    """Which layers' inputs to tap: evenly spread from early to late, as the DFlash drafters do.

    The deepest is the input of the third layer from the end: what comes after is about the next token alone.
    """
    last = max(n_layer - 3, 1)
    steps = max(n_taps - 1, 1)
    return tuple(sorted({min(round(1 + i * (last - 1) / steps) + 1, n_layer - 1) for i in range(n_taps)}))


def _check(fit_minutes: float, n_layer: int, n_taps: int, block_size: int, draft_vocabulary: int) -> None:
    for name, value, low, high in (
        ("fit_minutes", fit_minutes, 0.01, 1e6),
        ("n_layer", n_layer, 1, 16),
        ("n_taps", n_taps, 1, 16),
        ("block_size", block_size, 2, 16),
        ("draft_vocabulary", draft_vocabulary, 32, 1 << 20),
    ):
        if not low <= value <= high:
            raise ParameterError(f"{name} is {value}; it must be from {low} to {high}")


def _claim(folder: Path, target: Target, plan: Plan) -> None:
    """Tie the folder to this target and plan, or refuse where it belongs to others."""
    folder.mkdir(parents=True, exist_ok=True)
    identity = json.loads(json.dumps({**asdict(plan), "vocabulary_hash": target.vocabulary_hash}))
    path = folder / "target.json"
    if not path.exists():
        path.write_text(json.dumps(identity, indent=1), encoding="utf-8")
    elif json.loads(path.read_text(encoding="utf-8")) != identity:
        raise ParameterError(
            f"{folder} holds the training of another target or another kind of drafter: name a new folder"
        )


def _generate(
    model: Path, folder: Path, plan: Plan, goal: ConversationParams, held_out: HeldOut, console: Console
) -> None:
    finished = folder / "conversations" / "finished"
    if finished.exists():
        console.print(f"{stored_answer_tokens(folder / 'conversations'):,} answer tokens are here already")
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("answer tokens", total=goal.answer_tokens)
        generate(
            model,
            folder / "conversations",
            plan.taps,
            goal,
            held_out=held_out,
            on_progress=lambda tokens, _: progress.update(task, completed=tokens),
        )
    finished.touch()


@contextmanager
def _fit_progress(folder: Path, console: Console) -> Iterator[None]:
    """Shows what the training processes log."""
    columns = (TextColumn("training {task.description}"), BarColumn(), TimeElapsedColumn())
    done = threading.Event()
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=1.0)

        def follow() -> None:
            while not done.wait(1.0):
                entry = _last_entry(folder / LOG)
                if entry:
                    text = f"step {entry['step']}, loss {entry['loss']:.2f}"
                    progress.update(task, completed=entry["passed"], description=text)

        follower = threading.Thread(target=follow, daemon=True)
        follower.start()
        try:
            yield
        finally:
            done.set()
            follower.join()


def _last_entry(log: Path) -> dict[str, Any] | None:
    try:
        lines = log.read_bytes()[-4096:].splitlines(keepends=True)
    except FileNotFoundError:
        return None
    complete = [line for line in lines if line.endswith(b"\n")]
    entry: dict[str, Any] | None = json.loads(complete[-1]) if complete else None
    return entry


def _evaluate(checkpoint: Checkpoint, model: Path, drafter: Path, folder: Path, prompts: Path, threads: int) -> Report:
    conversations = Conversations(folder / "conversations", checkpoint.n_features)
    return Report(
        drafter=drafter,
        answer_tokens=conversations.n_answer_tokens,
        draft_vocabulary_coverage=coverage(conversations, checkpoint.vocabulary.numpy()),
        blocks=checkpoint.blocks,
        scores=measure(
            model,
            drafter,
            prompts,
            draft_length=checkpoint.plan.block_size - 1,
            max_tokens=MAX_TOKENS,
            threads=threads,
        ),
    )
