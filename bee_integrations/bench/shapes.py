"""`bee bench --shapes`: files of the shape of real models, with random weights of any type, in Bee and in its peers.

Unlike `--synthetic`, which measures Bee alone and without a file, this writes the file: others can open it, too.
"""

from __future__ import annotations

import functools
import math
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from .. import __version__
from ..engine.engine import Engine, GenerationParams
from ..errors import BeeError, ParameterError
from ..models.file import ModelFile, check_kv_cache
from .benchmark import describe_machine
from .contenders import Progress, Steps
from .limits import Limits, measure_limits
from .llama_cpp_peer import IkLlamaPeer, LlamaCppPeer
from .openvino_peer import OpenVinoPeer
from .peer_process import Peer, PeerProcess
from .run import made_up_tokens
from .synthetic_model import SHAPES, no_shape, shape_named, write_target

__all__ = ["PEERS", "ShapesOptions", "print_shapes", "run_shapes", "shapes_markdown"]

PEERS: dict[str, type[Peer]] = {peer.name: peer for peer in (LlamaCppPeer, IkLlamaPeer, OpenVinoPeer)}
PASS_ROWS = (1, 4, 8, 16)
_REPEATS = 6
_LONGEST = 1 << 15


@dataclass(frozen=True)
class ShapesOptions:
    """What to measure. The numbers are smaller in tests alone."""

    shapes: tuple[str, ...]
    """As `shape_named` knows them."""
    peers: tuple[str, ...] = ()
    """Names of PEERS, or `PEER=FOLDER` with the folder to import it from."""
    peer_path: Path | None = None
    """The folder to import those from that name none."""
    threads: int | None = None
    instruction_set: str | None = None
    contexts: tuple[int, ...] = (256,)
    """Tokens before the measured passes; one row for each."""
    kv_caches: tuple[str, ...] = ("f16",)
    """How keys and values are remembered: KV_CACHES; one row for each."""
    rounds: int = 3

    def __post_init__(self) -> None:
        if not self.shapes:
            raise ParameterError(f"no shape is named; there are {', '.join(SHAPES)}")
        for name in self.shapes:
            self._check_shape(name)
        for kv_cache in self.kv_caches:
            check_kv_cache(kv_cache)
        names = [name for name, _ in self.peer_folders()]
        for name in names:
            if name not in PEERS:
                raise ParameterError(f"there is no peer {name!r} for shapes; there are {', '.join(PEERS)}")
            if names.count(name) > 1:
                raise ParameterError(f"the peer {name!r} is named twice; a report has one place for it")

    def _check_shape(self, name: str) -> None:
        shape = shape_named(name)
        if shape is None:
            raise ParameterError(no_shape(name))
        longest = min(_LONGEST, shape.n_ctx - max(PASS_ROWS) - 1)
        for context in self.contexts or (0,):
            if not 1 <= context <= longest:
                raise ParameterError(f"a context is {context}; with {name!r} it must be from 1 to {longest}")

    def rows(self) -> Iterator[tuple[int, int]]:
        """Tokens of context and of a prompt."""
        return ((context, max(min(2 * context, 512), context // 2)) for context in self.contexts)

    def peer_folders(self) -> list[tuple[str, Path | None]]:
        """The peers, each with where to import it from."""
        named = [peer.partition("=") for peer in self.peers]
        return [(name, Path(folder) if folder else self.peer_path) for name, _, folder in named]


def run_shapes(options: ShapesOptions, progress: Progress | None = None) -> dict[str, Any]:
    """Measure all shapes and return what `bee bench --shapes --json` writes. A peer that cannot open a file,
    or fails at it, is left out of its row, which says why. Raises BeeError where Bee itself cannot."""
    steps = Steps(progress)
    steps.expect(len(options.shapes) * (1 + len(options.kv_caches) * (1 + 2 * len(options.contexts) * options.rounds)))
    return {
        "bee_version": __version__,
        "machine": describe_machine(),
        "shapes": [row for name in options.shapes for row in _measure_shape(name, options, steps)],
    }


def _measure_shape(name: str, options: ShapesOptions, steps: Steps) -> Iterator[dict[str, Any]]:
    shape = shape_named(name)
    assert shape is not None, name  # ShapesOptions has looked
    steps.next(f"{name}: writing the file")
    with tempfile.TemporaryDirectory(prefix="bee-shapes-") as folder:
        file = write_target(shape, Path(folder) / "model.gguf", with_weights=True)
        for kv_cache in options.kv_caches:
            yield from _measure_file(name, file, kv_cache, options, steps)


def _measure_file(
    name: str, file: Path, kv_cache: str, options: ShapesOptions, steps: Steps
) -> Iterator[dict[str, Any]]:
    with ExitStack() as stack:
        n_ctx = max(max(context + max(PASS_ROWS), prompt) for context, prompt in options.rows()) + 1
        steps.next(f"{name}: opening")
        start = time.perf_counter()
        engine = stack.enter_context(
            Engine(
                file,
                drafter=None,
                n_ctx=n_ctx,
                n_parallel=1,
                device="cpu",
                kv_cache=kv_cache,
                threads=options.threads,
                instruction_set=options.instruction_set,
            )
        )
        common = {
            "shape": name,
            "kv_cache": kv_cache,
            "file_bytes": file.stat().st_size,
            "memory_bytes": int(engine.info["weight_bytes"]),
            "n_weights": _n_weights(file),
            "load_seconds": time.perf_counter() - start,
            "instruction_set": engine.info["instruction_set"],
            "threads": int(engine.info["n_threads"]),
        }
        experts = {rows: expert_bytes(file, rows) for rows in PASS_ROWS}
        peers = _Peers(file)
        peers.start(options, n_ctx, common["threads"], stack)
        for context, prompt in options.rows():
            label = f"{name} after {context}"
            measured = _measure_in_turn(label, engine, peers, context, prompt, experts, options.rounds, steps)
            yield {**common, "context": context, "prompt": prompt, **measured, "refusals": dict(peers.refusals)}


@dataclass
class _Peers:
    """Those that are there and can run the file; and of the others, why not."""

    file: Path
    running: list[PeerProcess] = field(default_factory=list)
    refusals: dict[str, str] = field(default_factory=dict)

    def start(self, options: ShapesOptions, n_ctx: int, threads: int, stack: ExitStack) -> None:
        for name, folder in options.peer_folders():
            with self.left_out_on_error(name):
                peer = PeerProcess(PEERS[name], self.file, n_ctx=n_ctx, threads=threads, folder=folder)
                stack.callback(peer.close)
                self.running.append(peer)

    @contextmanager
    def left_out_on_error(self, name: str) -> Iterator[None]:
        """One that fails once is not asked again."""
        try:
            yield
        except BeeError as error:
            self.refusals[name] = str(error).replace(str(self.file), "the file")
            self.running = [peer for peer in self.running if peer.name != name]


def _n_weights(file: Path) -> int:
    with ModelFile(file) as opened:
        return sum(math.prod(tensor.shape) for tensor in opened.tensors)


def expert_bytes(file: Path, rows: int) -> float:
    """Of the experts, what a pass over so many rows reads beyond one over a single row, on the average: each row hits
    `expert_used_count` of them, whatever the others hit."""
    with ModelFile(file) as opened:
        keys = {key.partition(".")[2]: value for key, value in opened.metadata.items()}
        if "expert_count" not in keys:
            return 0.0
        share = keys["expert_used_count"] / keys["expert_count"]
        size = sum(tensor.size for tensor in opened.tensors if "_exps." in tensor.name)
    return float(size * (1 - (1 - share) ** rows - share))


@dataclass
class _Times:
    """Seconds of one program, a list over the rounds each."""

    passes: dict[int, list[float]] = field(default_factory=lambda: {rows: [] for rows in PASS_ROWS})
    prompts: list[float] = field(default_factory=list)


def _measure_in_turn(
    name: str,
    engine: Engine,
    peers: _Peers,
    context: int,
    prompt: int,
    experts: Mapping[int, float],
    rounds: int,
    steps: Steps,
) -> dict[str, Any]:
    ours, theirs = _Times(), {peer.name: _Times() for peer in peers.running}
    limits: list[Limits] = []  # just before our passes of each round
    tokens = made_up_tokens(prompt, int(engine.info["n_vocab"]))
    for _ in range(rounds):
        steps.next(f"{name}: passes")
        limits.append(measure_limits(engine))
        for rows, seconds in engine.measure_passes(PASS_ROWS, context, _REPEATS).items():
            ours.passes[rows].append(seconds)
            for peer in [peer for peer in peers.running if rows <= peer.largest_pass]:
                with peers.left_out_on_error(peer.name):
                    theirs[peer.name].passes[rows].append(peer.pass_seconds(rows, context, _REPEATS))
        steps.next(f"{name}: prompt of {prompt}")
        tokens = tokens[1:] + tokens[:1]  # nothing in common with the last one
        ours.prompts.append(_prompt_seconds(engine, tokens))
        for peer in peers.running:
            with peers.left_out_on_error(peer.name):
                theirs[peer.name].prompts.append(peer.generate(tokens, 1, ()).time_to_first_token_s)

    def bound(rows: int, rates: Limits) -> float:
        return rates.pass_seconds(rows, context, more_bytes=experts[rows])

    best = functools.reduce(Limits.with_rates_of, limits)
    return {
        "read_bytes_per_s": best.read_bytes_per_s,
        "pass_ms": _milliseconds(ours),
        "bound_ms": {str(rows): 1e3 * bound(rows, best) for rows in PASS_ROWS},
        "share_in_turn": statistics.median(
            bound(1, rates) / seconds for rates, seconds in zip(limits, ours.passes[1], strict=True)
        ),
        "prompt_tokens_per_s": prompt / statistics.median(ours.prompts),
        "kv_bytes": context * best.target.kv_bytes_per_position,
        "peers": {peer.name: _beside(peer, theirs[peer.name], ours) for peer in peers.running},
    }


def _beside(peer: PeerProcess, theirs: _Times, ours: _Times) -> dict[str, Any]:
    """A peer's times, and its time over ours."""
    measured = {rows: seconds for rows, seconds in theirs.passes.items() if seconds}
    return {
        "version": peer.version,
        "repacks": peer.repack,
        "pass_ms": _milliseconds(theirs),
        "pass_ratios": {str(rows): _ratio(seconds, ours.passes[rows]) for rows, seconds in measured.items()},
        "prompt_ratio": _ratio(theirs.prompts, ours.prompts),
    }


def _prompt_seconds(engine: Engine, tokens: Sequence[int]) -> float:
    start = time.perf_counter()
    engine.complete(tokens, GenerationParams(max_tokens=1, temperature=0.0, speculation="off"))
    return time.perf_counter() - start


def _milliseconds(times: _Times) -> dict[str, float]:
    return {str(rows): 1e3 * statistics.median(seconds) for rows, seconds in times.passes.items() if seconds}


def _ratio(peer: Sequence[float], bee: Sequence[float]) -> float:
    """The peer's time over ours: the median over rounds, each of which has both."""
    return statistics.median(theirs / ours for theirs, ours in zip(peer, bee, strict=True))


# ---- tables ------------------------------------------------------------------------------------------------------

COLUMNS = (
    "shape",
    "bits per weight, file",
    "in memory",
    "load s/GB",
    "after",
    "keys, values",
    "1 token ms",
    "share of bound",
    "in turn",
    "4 / 1",
    "8 / 1",
    "16 / 1",
    "prompt t/s",
    "peer",
    "peer / bee, 1",
    "4",
    "8",
    "16",
    "prompt",
)


def shapes_lines(row: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """A row of the report as lines of text, by COLUMNS: one for each peer, the first of them with Bee's own figures."""
    passes = row["pass_ms"]
    ours = (
        row["shape"],
        f"{8 * row['file_bytes'] / row['n_weights']:.2f}",
        f"{8 * row['memory_bytes'] / row['n_weights']:.2f}",
        f"{1e9 * row['load_seconds'] / row['file_bytes']:.2f}",
        f"{row['context']}",
        _kept(row),
        f"{passes['1']:.1f}",
        f"{row['bound_ms']['1'] / passes['1']:.0%}",
        f"{row['share_in_turn']:.0%}",
        *(f"{passes[rows] / passes['1']:.2f}" for rows in ("4", "8", "16")),
        f"{row['prompt_tokens_per_s']:.0f}",
    )
    lines: list[tuple[str, ...]] = []
    for name, peer in row["peers"].items():
        ratios = [peer["pass_ratios"].get(str(rows)) for rows in PASS_ROWS] + [peer["prompt_ratio"]]
        cells = ("-" if ratio is None else f"{ratio:.2f}" for ratio in ratios)
        lines.append((*(("",) * len(ours) if lines else ours), name, *cells))
    return lines or [(*ours, *("-",) * (len(COLUMNS) - len(ours)))]


def _kept(row: Mapping[str, Any]) -> str:
    """Of keys and values type and bytes, and the share of a token's pass that reading these takes at the least."""
    share = 1e3 * row["kv_bytes"] / row["read_bytes_per_s"] / row["pass_ms"]["1"]
    return f"{row['kv_cache']}, {row['kv_bytes'] / 1e6:.1f} MB, {share:.0%}"


def describe_shapes(report: Mapping[str, Any]) -> str:
    """Where it ran, against whom, and how the numbers are to be read."""
    rows = report["shapes"]
    peers = {name: peer for row in rows for name, peer in row["peers"].items()}
    names = [
        f"{name} {peer['version']}{'' if peer['repacks'] else ' without repacked weights'}"
        for name, peer in peers.items()
    ]
    text = (
        f"Random weights in the shapes of models, on {report['machine']['cpu']}, {rows[0]['threads']} threads, "
        f"{rows[0]['instruction_set']}, which reads {max(row['read_bytes_per_s'] for row in rows) / 1e9:.0f} GB/s; "
        f"passes after so many tokens; {', '.join(names) or 'no peer'}. Prompts are of "
        f"{' and '.join(str(row['prompt']) for row in {row['context']: row for row in rows}.values())} tokens. "
        "Ratios are the peer's time over Bee's."
    )
    refusals = [f"{row['shape']}: {reason}" for row in rows for reason in row["refusals"].values()]
    return text + "".join(f" Left out: {refusal}." for refusal in dict.fromkeys(refusals))


def shapes_markdown(report: Mapping[str, Any]) -> str:
    """The same as Markdown."""
    lines = [line for row in report["shapes"] for line in shapes_lines(row)]
    lines = [COLUMNS, ("---", *("---:",) * (len(COLUMNS) - 1)), *lines]
    return describe_shapes(report) + "\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def print_shapes(report: Mapping[str, Any], console: Console) -> None:
    """One row for each shape and peer."""
    table = Table(title="Shapes, t = tokens", title_justify="left")
    for index, column in enumerate(COLUMNS):
        table.add_column(column, justify="left" if index < 1 else "right")
    for row in report["shapes"]:
        for line in shapes_lines(row):
            table.add_row(*line)
    console.print(describe_shapes(report), highlight=False)
    console.print(table)
