"""`bee bench --synthetic`: what a model of some shape costs on this machine, without its file.

Weights are random, so nothing is said of texts, and how many drafts are accepted is not measured but taken from what
was published of a real pair: on a card, cycles accept as many as `acceptance_profile` says.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from .. import __version__
from ..engine.device_plan import CPU, DEVICES, check_device
from ..errors import ParameterError
from ..library import check, ffi, lib, new_error
from ..models.file import KV_CACHES, check_kv_cache
from .benchmark import describe_machine
from .contenders import Progress, Steps
from .limits import Limits, limits_of
from .run import made_up_tokens
from .synthetic_model import BLOCK_SIZE, SHAPES, no_shape, shape_named, write_drafter, write_target

__all__ = [
    "ACCEPTED_SHARE",
    "SyntheticOptions",
    "acceptance_profile",
    "print_synthetic",
    "run_synthetic",
    "synthetic_cells",
]

# Published for BeeLlama with a block of 16: of all tokens, those that were accepted drafts; and of the drafts, those
# that were accepted. The first gives the tokens of a cycle; by the second, its drafts were 12.2 and not always 15.
ACCEPTED_SHARE = 0.892
DRAFT_ACCEPTANCE = 0.677

PASS_ROWS = (1, 4, 8, 16)
_REPEATS = 15
_ROUNDS = 3  # of cycles: the fastest counts


@dataclass(frozen=True)
class SyntheticOptions:
    """What to measure. The numbers are smaller in tests alone."""

    shapes: tuple[str, ...]
    device: str = "auto"
    threads: int | None = None
    instruction_set: str | None = None
    kv_cache: str = "f16"
    context: int = 1024
    cycles: int = 48
    prefill: int = 2048

    def __post_init__(self) -> None:
        check_device(self.device)
        check_kv_cache(self.kv_cache)
        for shape in self.shapes:
            if shape_named(shape) is None:
                raise ParameterError(no_shape(shape))
        if not self.shapes:
            raise ParameterError(f"no shape is named; there are {', '.join(SHAPES)}")
        if self.threads is not None and self.threads < 1:
            raise ParameterError(f"threads is {self.threads}; give at least 1")


def acceptance_profile(accepted_share: float = ACCEPTED_SHARE) -> list[float]:
    """[k]: the share of cycles that accept more than k of 15 drafts, so that this share of all tokens was drafted.

    Every draft behind accepted ones is accepted with the same probability q, so entry k is q^(k + 1), and the mean
    number of accepted drafts, their sum, is accepted_share / (1 - accepted_share): each cycle adds one token.
    """
    wanted = accepted_share / (1 - accepted_share)
    if not 0 <= wanted < BLOCK_SIZE - 1:
        raise ParameterError(f"accepted_share is {accepted_share}; it must lie between 0 and {1 - 1 / BLOCK_SIZE}")
    low, high = 0.0, 1.0
    for _ in range(60):
        q = (low + high) / 2
        low, high = (q, high) if sum(q**k for k in range(1, BLOCK_SIZE)) < wanted else (low, q)
    return [*(low**k for k in range(1, BLOCK_SIZE)), 0.0]


# ---- measuring ---------------------------------------------------------------------------------------------------


def run_synthetic(options: SyntheticOptions, progress: Progress | None = None) -> dict[str, Any]:
    """Measure all shapes and return what `bee bench --synthetic --json` writes. Raises BeeError, as where a shape does
    not fit into the device's memory."""
    steps = Steps(progress)
    steps.expect(len(options.shapes) * (len(PASS_ROWS) + 3 + 2 * _ROUNDS))
    return {
        "bee_version": __version__,
        "machine": describe_machine(),
        "synthetic": [_measure_shape(name, options, steps) for name in options.shapes],
    }


@contextmanager
def _opened(name: str, options: SyntheticOptions) -> Iterator[Any]:
    """A `bee_engine *` of the shape and its drafter."""
    shape = shape_named(name)
    assert shape is not None, name  # SyntheticOptions has looked
    with tempfile.TemporaryDirectory(prefix="bee-synthetic-") as folder:
        target = write_target(shape, Path(folder) / "target.gguf")
        drafter = write_drafter(shape, Path(folder) / "drafter.gguf")
        isa = options.instruction_set
        text = ffi.NULL if isa is None else ffi.new("char[]", isa.encode())
        parameters = ffi.new(
            "bee_engine_params *",
            {
                "device": DEVICES[options.device],
                "n_ctx": max(_context_needed(options), options.prefill + 1),
                "n_threads": options.threads or 0,
                "instruction_set": text,
                "made_up_weights": True,
                "kv_type": KV_CACHES[options.kv_cache],
            },
        )
        error = new_error()
        handle = lib.bee_engine_open(os.fsencode(target), os.fsencode(drafter), parameters, error)
        check(handle, error)
        try:
            yield handle
        finally:
            lib.bee_engine_close(handle)


def _context_needed(options: SyntheticOptions) -> int:
    return options.context + (options.cycles + 12) * BLOCK_SIZE


def _measure_shape(name: str, options: SyntheticOptions, steps: Steps) -> dict[str, Any]:
    steps.next(f"{name}: opening")
    with _opened(name, options) as handle:
        info = ffi.new("bee_engine_info *")
        lib.bee_engine_describe(handle, info)
        on_cpu = int(info.device) == DEVICES[CPU]
        steps.next(f"{name}: limits")
        limits = limits_of(handle, has_drafter=True)
        passes = {}
        for rows in PASS_ROWS:
            steps.next(f"{name}: pass over {rows}")
            passes[rows] = _pass_seconds(handle, rows, options.context)
        profile = None if on_cpu else acceptance_profile()
        plain = _cycle(handle, 0, options, None, steps, name).seconds
        cost = _cycle(handle, BLOCK_SIZE - 1, options, profile, steps, name)
        cycle = cost.seconds
        steps.next(f"{name}: prompt of {options.prefill}")
        prefill = _prefill_seconds(handle, int(info.n_vocab), options.prefill)
        published = 1 / (1 - ACCEPTED_SHARE)
        return {
            "kind": "synthetic",
            "shape": name,
            "device": CPU if on_cpu else _text(info.device_info.name),
            "instruction_set": _text(info.instruction_set),
            "threads": int(info.n_threads),
            "context": options.context,
            "kv_cache": options.kv_cache,
            "weight_bytes": limits.target.weight_bytes,
            "read_bytes_per_s": limits.read_bytes_per_s,
            "multiply_adds_per_s": limits.multiply_adds_per_s,
            "pass_ms": {str(rows): 1e3 * seconds for rows, seconds in passes.items()},
            "pass_ratios": {str(rows): seconds / passes[1] for rows, seconds in passes.items()},
            "token_ms": 1e3 * plain,
            "decode_tokens_per_s": 1 / plain,
            "decode_bandwidth_share": _read_seconds(limits, options.context + options.cycles / 2) / plain,
            "cycle_ms": 1e3 * cycle,
            "cycle_cost": cycle / plain,
            "host_share": None if on_cpu else 1 - cost.device_seconds / cycle,
            "measured_tokens_per_cycle": cost.tokens,
            "profile": profile,
            "tokens_per_cycle": published,
            "speed_up": published * plain / cycle,
            "prefill_tokens": options.prefill,
            "prefill_tokens_per_s": options.prefill / prefill,
            "prefill_peak_share": _prefill_bound(limits, options.prefill) / prefill,
        }


def _text(characters: Any) -> str:
    return str(ffi.string(characters).decode("utf-8", errors="replace"))


def _pass_seconds(handle: Any, rows: int, context: int) -> float:
    seconds, draft, error = ffi.new("double *"), ffi.new("double *"), new_error()
    check(lib.bee_engine_measure(handle, rows, context, _REPEATS, seconds, draft, error), error)
    return float(seconds[0])


def _cycle(
    handle: Any, drafts: int, options: SyntheticOptions, profile: list[float] | None, steps: Steps, name: str
) -> Any:
    """The `bee_cycle_cost` of the fastest round."""
    shares = ffi.NULL if profile is None else ffi.new("float[16]", profile)
    results = []
    for _ in range(_ROUNDS):
        steps.next(f"{name}: cycles of {drafts} drafts")
        cost, error = ffi.new("bee_cycle_cost *"), new_error()
        context, cycles = options.context, options.cycles
        check(lib.bee_engine_measure_cycles(handle, drafts, context, cycles, shares, cost, error), error)
        results.append(cost)
    return min(results, key=lambda cost: float(cost.seconds))


def _prefill_seconds(handle: Any, n_vocab: int, length: int) -> float:
    """From the beginning of a request to its first token: the better of two."""
    error = new_error()
    session = lib.bee_session_open(handle, length + 1, False, error)
    check(session, error)
    try:
        tokens = made_up_tokens(length, n_vocab)
        # The second prompt has nothing in common with the first.
        return min(_answer_seconds(session, handle, prompt) for prompt in (tokens, tokens[1:] + tokens[:1]))
    finally:
        lib.bee_session_close(session)


def _answer_seconds(session: Any, handle: Any, tokens: Sequence[int]) -> float:
    prompt = ffi.new("int32_t[]", tokens)
    request = ffi.new("bee_request *", {"prompt": prompt, "n_prompt": len(tokens), "max_tokens": 1})
    request.sampling.top_p = request.penalties.repetition = 1
    sessions, step, error = ffi.new("bee_session *[1]", [session]), ffi.new("bee_step *"), new_error()
    check(lib.bee_session_begin(session, request, error), error)
    start = time.perf_counter()
    while not step.finish:
        check(lib.bee_engine_step(handle, sessions, 1, step, error), error)
    return time.perf_counter() - start


def _read_seconds(limits: Limits, context: float) -> float:
    needs = limits.target
    return (needs.weight_bytes + context * needs.kv_bytes_per_position) / limits.read_bytes_per_s


def _prefill_bound(limits: Limits, length: int) -> float:
    """Seconds of a prompt's multiply-adds at the peak: attention sees half of the prompt on average, and only the last
    row needs the head."""
    needs = limits.target
    attention = length * (length + 1) / 2 * needs.attention_multiply_adds
    computed = length * needs.multiply_adds + attention + needs.head_multiply_adds
    return computed / limits.multiply_adds_per_s


# ---- tables ------------------------------------------------------------------------------------------------------

COLUMNS = (
    "",
    "shape",
    "weights GB",
    "1 token ms",
    "4 / 1",
    "8 / 1",
    "16 / 1",
    "t/s",
    "share of bandwidth",
    "cycle ms",
    "cycle / token",
    "waits for host",
    "t/cycle",
    "speed-up",
    "prompt t/s",
    "share of peak",
)


def synthetic_cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    """A row of the report as text, by COLUMNS."""
    return (
        row["kind"],
        row["shape"],
        f"{row['weight_bytes'] / 1e9:.2f}",
        f"{row['pass_ms']['1']:.3f}",
        *(f"{row['pass_ratios'][rows]:.2f}" for rows in ("4", "8", "16")),
        f"{row['decode_tokens_per_s']:.1f}",
        f"{row['decode_bandwidth_share']:.0%}",
        f"{row['cycle_ms']:.3f}",
        f"{row['cycle_cost']:.2f}",
        "-" if row["host_share"] is None else f"{row['host_share']:.1%}",
        f"{row['tokens_per_cycle']:.2f}",
        f"{row['speed_up']:.2f}",
        f"{row['prefill_tokens_per_s']:.0f}",
        f"{row['prefill_peak_share']:.0%}",
    )


def describe_synthetic(report: Mapping[str, Any]) -> str:
    """Where it ran, and how the numbers are to be read."""
    rows = report["synthetic"]
    places = dict.fromkeys(row["device"] if row["device"] != CPU else report["machine"]["cpu"] for row in rows)
    rates = max(row["read_bytes_per_s"] for row in rows), max(row["multiply_adds_per_s"] for row in rows)
    return (
        f"Synthetic: random weights in the shapes of models, on {', '.join(places)}, which reads {rates[0] / 1e9:.0f} "
        f"GB/s and does {rates[1] / 1e12:.2f} T 8-bit multiply-adds/s. After {rows[0]['context']} tokens, keys and "
        f"values in {rows[0]['kv_cache']}. The tokens "
        f"of a cycle are not measured: {ACCEPTED_SHARE:.1%} accepted share and {DRAFT_ACCEPTANCE:.1%} draft "
        "acceptance were published for a real pair."
    )


def synthetic_markdown(report: Mapping[str, Any]) -> str:
    """The same as Markdown."""
    lines = [COLUMNS, ("---", "---", *("---:",) * (len(COLUMNS) - 2)), *map(synthetic_cells, report["synthetic"])]
    return describe_synthetic(report) + "\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def print_synthetic(report: Mapping[str, Any], console: Console) -> None:
    """One row for each shape."""
    table = Table(title="Synthetic, t = tokens", title_justify="left")
    for index, column in enumerate(COLUMNS):
        table.add_column(column, justify="left" if index < 2 else "right")
    for row in report["synthetic"]:
        table.add_row(*synthetic_cells(row))
    console.print(describe_synthetic(report), highlight=False)
    console.print(table)
