"""`bee bench --shapes`: files of the shape of real models, with random weights of any type, in Bee and in its peers.

Unlike `--synthetic`, which measures Bee alone and without a file, this writes the file: others can open it, too.
"""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from .. import __version__
from ..engine.engine import Engine, GenerationParams
from ..errors import BeeError, ParameterError
from .benchmark import describe_machine
from .contenders import Progress, Steps
from .limits import measure_limits
from .llama_cpp_peer import PeerProcess
from .run import made_up_tokens
from .synthetic_model import SHAPES, WEIGHT_TYPES, shape_named, write_target

__all__ = ["PEERS", "ShapesOptions", "print_shapes", "run_shapes", "shapes_markdown"]

PEERS = ("llama-cpp-python",)
PASS_ROWS = (1, 4, 8, 16)
_REPEATS = 6


@dataclass(frozen=True)
class ShapesOptions:
    """What to measure. The numbers are smaller in tests alone."""

    shapes: tuple[str, ...]
    """Names of SHAPES, or `SHAPE:TYPE` with all matrices of that type."""
    peers: tuple[str, ...] = ()
    peer_path: Path | None = None
    """The folder to import the peer from."""
    threads: int | None = None
    instruction_set: str | None = None
    context: int = 256
    prompt: int = 512
    rounds: int = 3

    def __post_init__(self) -> None:
        for shape in self.shapes:
            if shape_named(shape) is None:
                raise ParameterError(
                    f"there is no shape {shape!r}; there are {', '.join(SHAPES)}, and each of them as SHAPE:TYPE, with "
                    f"all matrices of one of the types {', '.join(WEIGHT_TYPES)}"
                )
        for peer in self.peers:
            if peer not in PEERS:
                raise ParameterError(f"there is no peer {peer!r} for shapes; there are {', '.join(PEERS)}")
        if not self.shapes:
            raise ParameterError(f"no shape is named; there are {', '.join(SHAPES)}")


def run_shapes(options: ShapesOptions, progress: Progress | None = None) -> dict[str, Any]:
    """Measure all shapes and return what `bee bench --shapes --json` writes. A peer that cannot open a file is left
    out of its row, which says why. Raises BeeError where Bee itself cannot."""
    steps = Steps(progress)
    steps.expect(len(options.shapes) * (2 + options.rounds * (len(PASS_ROWS) + 1)))
    return {
        "bee_version": __version__,
        "machine": describe_machine(),
        "context": options.context,
        "prompt": options.prompt,
        "shapes": [_measure_shape(name, options, steps) for name in options.shapes],
    }


def _measure_shape(name: str, options: ShapesOptions, steps: Steps) -> dict[str, Any]:
    shape = shape_named(name)
    assert shape is not None, name  # ShapesOptions has looked
    steps.next(f"{name}: writing the file")
    with tempfile.TemporaryDirectory(prefix="bee-shapes-") as folder, ExitStack() as stack:
        file = write_target(shape, Path(folder) / "model.gguf", with_weights=True)
        n_ctx = max(options.context + max(PASS_ROWS), options.prompt) + 1
        steps.next(f"{name}: opening")
        engine = stack.enter_context(
            Engine(
                file,
                drafter=None,
                n_ctx=n_ctx,
                n_parallel=1,
                device="cpu",
                threads=options.threads,
                instruction_set=options.instruction_set,
            )
        )
        threads = int(engine.info["n_threads"])
        peer, refusal = None, None
        try:
            if options.peers:
                peer = PeerProcess(file, n_ctx=n_ctx, threads=threads, folder=options.peer_path)
                stack.callback(peer.close)
        except BeeError as error:
            refusal = str(error).replace(str(file), "the file")
        row = _measure_in_turn(name, engine, peer, options, steps)
        return {
            "shape": name,
            "file_bytes": file.stat().st_size,
            "memory_bytes": int(engine.info["weight_bytes"]),
            "n_weights": _n_weights(file),
            "instruction_set": engine.info["instruction_set"],
            "threads": threads,
            **row,
            "peer": None if peer is None else f"{peer.name} {peer.version}",
            "peer_refusal": refusal,
            "peer_repacks": None if peer is None else peer.repack,
        }


def _n_weights(file: Path) -> int:
    from ..models.file import ModelFile

    with ModelFile(file) as opened:
        return sum(math.prod(tensor.shape) for tensor in opened.tensors)


def _measure_in_turn(
    name: str, engine: Engine, peer: PeerProcess | None, options: ShapesOptions, steps: Steps
) -> dict[str, Any]:
    ours: dict[int, list[float]] = {rows: [] for rows in PASS_ROWS}
    theirs: dict[int, list[float]] = {rows: [] for rows in PASS_ROWS}
    prompts: tuple[list[float], list[float]] = ([], [])
    limits = measure_limits(engine)
    tokens = made_up_tokens(options.prompt, int(engine.info["n_vocab"]))
    for _ in range(options.rounds):
        for rows in PASS_ROWS:
            steps.next(f"{name}: pass over {rows}")
            ours[rows].append(engine.measure(rows, options.context, _REPEATS)[0])
            if peer is not None:
                theirs[rows].append(peer.pass_seconds(rows, options.context, _REPEATS))
        steps.next(f"{name}: prompt of {options.prompt}")
        tokens = tokens[1:] + tokens[:1]  # nothing in common with the last one
        prompts[0].append(_prompt_seconds(engine, tokens))
        if peer is not None:
            prompts[1].append(peer.generate(tokens, 1, ()).time_to_first_token_s)
        limits = limits.with_rates_of(measure_limits(engine))
    return {
        "read_bytes_per_s": limits.read_bytes_per_s,
        "pass_ms": _milliseconds(ours),
        "bound_ms": {str(rows): 1e3 * limits.pass_seconds(rows, options.context) for rows in PASS_ROWS},
        "peer_pass_ms": _milliseconds(theirs),
        "peer_pass_ratios": _ratios(theirs, ours),
        "prompt_tokens_per_s": options.prompt / statistics.median(prompts[0]),
        "peer_prompt_ratio": _ratio(prompts[1], prompts[0]),
    }


def _prompt_seconds(engine: Engine, tokens: Sequence[int]) -> float:
    start = time.perf_counter()
    engine.complete(tokens, GenerationParams(max_tokens=1, temperature=0.0, speculation="off"))
    return time.perf_counter() - start


def _milliseconds(rounds: Mapping[int, Sequence[float]]) -> dict[str, float]:
    return {str(rows): 1e3 * statistics.median(values) for rows, values in rounds.items() if values}


def _ratios(peer: Mapping[int, Sequence[float]], bee: Mapping[int, Sequence[float]]) -> dict[str, float]:
    return {str(rows): ratio for rows, values in peer.items() if (ratio := _ratio(values, bee[rows])) is not None}


def _ratio(peer: Sequence[float], bee: Sequence[float]) -> float | None:
    """The peer's time over ours: the median over rounds, each of which has both."""
    return statistics.median(theirs / ours for theirs, ours in zip(peer, bee, strict=True)) if peer else None


# ---- tables ------------------------------------------------------------------------------------------------------

COLUMNS = (
    "shape",
    "bits per weight, file",
    "in memory",
    "1 token ms",
    "share of bound",
    "4 / 1",
    "8 / 1",
    "16 / 1",
    "peer / bee, 1",
    "4",
    "8",
    "16",
    "prompt t/s",
    "peer / bee",
)


def shapes_cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    """A row of the report as text, by COLUMNS."""
    passes, ratios = row["pass_ms"], row["peer_pass_ratios"]

    def over_peer(ratio: float | None) -> str:
        return "-" if ratio is None else f"{ratio:.2f}"

    return (
        row["shape"],
        f"{8 * row['file_bytes'] / row['n_weights']:.2f}",
        f"{8 * row['memory_bytes'] / row['n_weights']:.2f}",
        f"{passes['1']:.1f}",
        f"{row['bound_ms']['1'] / passes['1']:.0%}",
        *(f"{passes[rows] / passes['1']:.2f}" for rows in ("4", "8", "16")),
        *(over_peer(ratios.get(str(rows))) for rows in PASS_ROWS),
        f"{row['prompt_tokens_per_s']:.0f}",
        over_peer(row["peer_prompt_ratio"]),
    )


def describe_shapes(report: Mapping[str, Any]) -> str:
    """Where it ran, against whom, and how the numbers are to be read."""
    rows = report["shapes"]
    peers = dict.fromkeys(row["peer"] for row in rows if row["peer"]) or {"no peer": None}
    refusals = dict.fromkeys(f"{row['shape']}: {row['peer_refusal']}" for row in rows if row["peer_refusal"])
    unpacked = " without repacked weights" if any(row["peer_repacks"] is False for row in rows) else ""
    text = (
        f"Random weights in the shapes of models, on {report['machine']['cpu']}, {rows[0]['threads']} threads, "
        f"{rows[0]['instruction_set']}, which reads {max(row['read_bytes_per_s'] for row in rows) / 1e9:.0f} GB/s; "
        f"passes after {report['context']} tokens, prompts of {report['prompt']}; {', '.join(peers)}{unpacked}. "
        "Ratios are the peer's time over Bee's."
    )
    return text + "".join(f" Left out: {refusal}." for refusal in refusals)


def shapes_markdown(report: Mapping[str, Any]) -> str:
    """The same as Markdown."""
    lines = [COLUMNS, ("---", *("---:",) * (len(COLUMNS) - 1)), *map(shapes_cells, report["shapes"])]
    return describe_shapes(report) + "\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def print_shapes(report: Mapping[str, Any], console: Console) -> None:
    """One row for each shape."""
    table = Table(title="Shapes, t = tokens", title_justify="left")
    for index, column in enumerate(COLUMNS):
        table.add_column(column, justify="left" if index < 1 else "right")
    for row in report["shapes"]:
        table.add_row(*shapes_cells(row))
    console.print(describe_shapes(report), highlight=False)
    console.print(table)
