"""`bee bench`: what Bee reaches on this machine, with and without speculation, beside its peer.

All contenders run in turn on every prompt (A B A B), so that a machine that is slower for a while is slower for all of
them. Answers are greedy. What is written is described in docs/benchmark.md.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Protocol

from . import __version__
from .bench_report import median_of, summarise
from .engine import Engine, GenerationParams
from .errors import ModelFileError, ParameterError
from .llama_cpp_peer import PeerProcess
from .memory_bandwidth import read_bandwidth
from .model_file import ModelFile
from .models import sha256_of

__all__ = ["BenchOptions", "Prompt", "load_prompts", "run_benchmark"]

PASS_ROWS = (1, 2, 4, 8, 16)
PASS_CONTEXT = 256  # tokens before the measured pass
PASS_ROUNDS = 3
PASS_REPEATS = 10  # per round; the medians of the rounds are reduced to their median

# Called with the number of runs done, their total, and what runs next.
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class BenchOptions:
    """What to measure. `speculation`: modes of Bee in the order of a turn; None: off, and dflash with a drafter."""

    model: str | os.PathLike[str] | None = None
    drafter: str | os.PathLike[str] | None = "auto"
    prompts: str | os.PathLike[str] | None = None
    speculation: tuple[str, ...] | None = None
    max_tokens: int = 200
    repeats: int = 3
    threads: int | None = None
    n_ctx: int | None = None
    peer: str | None = None
    instruction_set: str | None = None

    def __post_init__(self) -> None:
        for name in ("max_tokens", "repeats"):
            if getattr(self, name) < 1:
                raise ParameterError(f"{name} is {getattr(self, name)}; give at least 1")
        for mode in self.speculation or ():
            if mode not in ("auto", "dflash", "off"):
                raise ParameterError(f"speculation {mode!r} is none of 'auto', 'dflash', 'off'")
        if self.speculation is not None and len(set(self.speculation)) != len(self.speculation):
            raise ParameterError(f"speculation names a mode twice: {','.join(self.speculation)}")
        if self.speculation == ():
            raise ParameterError("speculation is empty; give at least one of 'auto', 'dflash', 'off'")
        if self.peer not in (None, PeerProcess.name):
            raise ParameterError(f"there is no peer {self.peer!r}; the only one is {PeerProcess.name!r}")


@dataclass(frozen=True)
class Prompt:
    """A named conversation to be answered."""

    name: str
    messages: list[dict[str, Any]]


@dataclass(frozen=True)
class Sample:
    """One answer. A speed is None where there was nothing to time, what drafting did where nothing was drafted."""

    text: str
    output_tokens: int
    prefill_tokens_per_s: float | None
    decode_tokens_per_s: float | None
    time_to_first_token_s: float
    tokens_per_cycle: float | None = None
    draft_acceptance: float | None = None
    accepted_share: float | None = None


class Contender(Protocol):
    """An engine in one of its modes."""

    engine: str
    speculation: str

    def answer(self, prompt: Sequence[int], max_tokens: int) -> Sample:
        """A greedy answer to a prompt that starts from an empty cache."""
        ...


# ---- prompts -----------------------------------------------------------------------------------------------------


def load_prompts(path: str | os.PathLike[str] | None = None) -> list[Prompt]:
    """The prompts of a JSON file, a list of {"name", "messages"}; without a path the bundled ones.

    Raises ModelFileError where the file cannot be read and ParameterError where it is not such a list.
    """
    if path is None:
        source = "the bundled prompts"
        text = (resources.files(__package__) / "prompts" / "benchmark.json").read_text(encoding="utf-8")
    else:
        source = os.fspath(path)
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ModelFileError(f"the prompts file {source} cannot be read: {error}") from error
    try:
        entries = json.loads(text)
    except ValueError as error:
        raise ParameterError(f"{source} is not JSON: {error}") from error
    if not isinstance(entries, list) or not entries:
        raise ParameterError(f'{source} must be a JSON list of {{"name", "messages"}} with at least one entry')
    prompts = [_prompt(entry, f"entry {index} of {source}") for index, entry in enumerate(entries)]
    names = [prompt.name for prompt in prompts]
    for name in names:
        if names.count(name) > 1:
            raise ParameterError(f"{source} has several prompts named {name!r}; give each a name of its own")
    return prompts


def _prompt(entry: Any, where: str) -> Prompt:
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
        raise ParameterError(f'{where} must be an object with a string "name" and a list "messages"')
    messages = entry.get("messages")
    if not isinstance(messages, list) or not messages:
        raise ParameterError(f'"messages" in {where} must be a list with at least one message')
    for message in messages:
        if not isinstance(message, dict) or not all(isinstance(message.get(key), str) for key in ("role", "content")):
            raise ParameterError(f'each message in {where} must have "role" and "content", both strings')
    return Prompt(entry["name"], messages)


# ---- contenders --------------------------------------------------------------------------------------------------


class BeeContender:
    """Bee in one speculation mode."""

    engine = "bee"

    def __init__(self, engine: Engine, speculation: str) -> None:
        self._engine = engine
        self.speculation = speculation

    def answer(self, prompt: Sequence[int], max_tokens: int) -> Sample:
        """A greedy answer; times are those that the caller of the engine sees, text decoding included."""
        self._engine.forget()
        params = GenerationParams(temperature=0.0, max_tokens=max_tokens, speculation=self.speculation)
        text: list[str] = []
        first_tokens = 0
        first = 0.0
        start = time.perf_counter()
        for step in self._engine.generate(prompt, params):
            text.append(step.text)
            if first_tokens == 0 and step.tokens:
                first, first_tokens = time.perf_counter(), len(step.tokens)
            stats = step.stats
        end = time.perf_counter()
        assert stats is not None, "the last step carries the statistics"
        drafted = stats.drafted_tokens > 0
        return Sample(
            text="".join(text),
            output_tokens=stats.output_tokens,
            prefill_tokens_per_s=stats.prefill_tokens_per_s,
            decode_tokens_per_s=_rate(stats.output_tokens - first_tokens, end - first),
            time_to_first_token_s=first - start,
            tokens_per_cycle=stats.tokens_per_cycle,
            draft_acceptance=stats.draft_acceptance if drafted else None,
            accepted_share=stats.accepted_share if drafted else None,
        )


class PeerContender:
    """The peer, which decodes plainly: its own DFlash is not reachable through llama-cpp-python."""

    speculation = "off"

    def __init__(self, peer: PeerProcess, engine: Engine) -> None:
        self.engine = peer.name
        self._peer = peer
        self._tokenizer = engine.tokenizer

    def answer(self, prompt: Sequence[int], max_tokens: int) -> Sample:
        """A greedy answer to the same tokens."""
        run = self._peer.generate(prompt, max_tokens, self._tokenizer.stop_token_ids)
        shown = run.tokens[:-1] if run.tokens[-1] in self._tokenizer.stop_token_ids else run.tokens
        return Sample(
            text=self._tokenizer.decode(shown),
            output_tokens=len(run.tokens),
            prefill_tokens_per_s=_rate(len(prompt), run.prefill_seconds),
            decode_tokens_per_s=_rate(len(run.tokens) - 1, run.decode_seconds),
            time_to_first_token_s=run.time_to_first_token_s,
        )


def _rate(tokens: int, seconds: float) -> float | None:
    return tokens / seconds if tokens > 0 and seconds > 0 else None


# ---- the benchmark -----------------------------------------------------------------------------------------------


def run_benchmark(options: BenchOptions, progress: Progress | None = None) -> dict[str, Any]:
    """Measure and return what `bee bench --json` writes.

    Raises BeeError for bad options, files that cannot be used, a peer that is not installed, and prompts that do not
    fit into the context.
    """
    prompts = load_prompts(options.prompts)
    with ExitStack() as stack:
        engine = stack.enter_context(
            Engine(
                options.model,
                drafter=options.drafter,
                n_ctx=options.n_ctx,
                threads=options.threads,
                instruction_set=options.instruction_set,
                n_parallel=1,
            )
        )
        modes = _modes(options, engine)
        tokens = {prompt.name: engine.encode_prompt(engine.render_chat(prompt.messages)) for prompt in prompts}
        contenders: list[Contender] = [BeeContender(engine, mode) for mode in modes]
        peer = None
        if options.peer is not None:
            longest = max(map(len, tokens.values()))
            n_ctx = max(longest + options.max_tokens, PASS_CONTEXT + max(PASS_ROWS))
            peer = stack.enter_context(PeerProcess(engine.model_path, n_ctx=n_ctx, threads=engine.info["n_threads"]))
            contenders.append(PeerContender(peer, engine))
        steps = _Steps(progress, PASS_ROUNDS * len(PASS_ROWS) + options.repeats * len(prompts) * len(contenders))
        passes = _measure_passes(engine, peer, steps)
        rows = _run_prompts(contenders, tokens, options, steps)
        return {
            "bee_version": __version__,
            "machine": describe_machine(),
            "threads": engine.info["n_threads"],
            "instruction_set": engine.info["instruction_set"],
            "model": _describe_file(engine.model_path),
            "drafter": None if engine.drafter_path is None else _describe_file(engine.drafter_path),
            "peer": None if peer is None else {"name": peer.name, "version": peer.version, "repacked": peer.repack},
            "settings": {"max_tokens": options.max_tokens, "repeats": options.repeats, "temperature": 0.0},
            **passes,
            "rows": rows,
            "summary": summarise(rows, passes),
        }


def _modes(options: BenchOptions, engine: Engine) -> tuple[str, ...]:
    if options.speculation is None:
        return ("off",) if engine.drafter_path is None else ("off", "dflash")
    if "dflash" in options.speculation and engine.drafter_path is None:
        raise ParameterError(
            f"speculation 'dflash' needs a drafter, and there is none for {engine.model_path.name}: "
            "give the path of one as the drafter"
        )
    return options.speculation


@dataclass
class _Steps:
    progress: Progress | None
    total: int
    done: int = 0

    def next(self, label: str) -> None:
        if self.progress is not None:
            self.progress(self.done, self.total, label)
        self.done += 1


def _measure_passes(engine: Engine, peer: PeerProcess | None, steps: _Steps) -> dict[str, Any]:
    """Milliseconds of one pass by its number of tokens, and the least time that reading the weights takes."""
    ours: dict[int, list[float]] = {rows: [] for rows in PASS_ROWS}
    drafts: dict[int, list[float]] = {rows: [] for rows in PASS_ROWS}
    theirs: dict[int, list[float]] = {rows: [] for rows in PASS_ROWS}
    for _ in range(PASS_ROUNDS):
        for rows in PASS_ROWS:
            steps.next(f"pass over {rows}")
            pass_seconds, draft_seconds = engine.measure(rows, PASS_CONTEXT, PASS_REPEATS)
            ours[rows].append(pass_seconds)
            drafts[rows].append(draft_seconds)
            if peer is not None:
                theirs[rows].append(peer.pass_seconds(rows, PASS_CONTEXT, PASS_REPEATS))
    bandwidth = read_bandwidth(engine.info["n_threads"])
    with ModelFile(engine.model_path) as file:
        plan = file.plan()
    read = plan.weight_bytes + PASS_CONTEXT * plan.kv_bytes_per_token
    result: dict[str, Any] = {
        "pass_ms": _milliseconds(ours),
        "draft_ms": _milliseconds(drafts) if engine.drafter_path is not None else None,
        "limit": {
            "bytes_per_pass": read,
            "memory_read_bytes_per_s": bandwidth,
            "pass_ms": 1e3 * read / bandwidth,
        },
    }
    if peer is not None:
        result["peer_pass_ms"] = _milliseconds(theirs)
    return result


def _milliseconds(seconds: Mapping[int, Sequence[float]]) -> dict[str, float]:
    medians = {str(rows): 1e3 * statistics.median(values) for rows, values in seconds.items()}
    return {
        rows: value for rows, value in medians.items() if value > 0
    }  # a drafter drafts no longer blocks than its own


def _run_prompts(
    contenders: Sequence[Contender], tokens: Mapping[str, Sequence[int]], options: BenchOptions, steps: _Steps
) -> list[dict[str, Any]]:
    samples: dict[tuple[int, str], list[Sample]] = {}
    for _ in range(options.repeats):
        for name, prompt in tokens.items():
            for index, contender in enumerate(contenders):
                steps.next(f"{name}, {contender.engine} {contender.speculation}")
                samples.setdefault((index, name), []).append(contender.answer(prompt, options.max_tokens))
    return [
        _row(contender, name, samples[index, name]) for index, contender in enumerate(contenders) for name in tokens
    ]


_MEDIANS = (
    "prefill_tokens_per_s",
    "decode_tokens_per_s",
    "time_to_first_token_s",
    "tokens_per_cycle",
    "draft_acceptance",
    "accepted_share",
)


def _row(contender: Contender, prompt: str, samples: Sequence[Sample]) -> dict[str, Any]:
    row: dict[str, Any] = {"engine": contender.engine, "speculation": contender.speculation, "prompt": prompt}
    row["output_tokens"] = samples[0].output_tokens
    for name in _MEDIANS:
        row[name] = median_of(getattr(sample, name) for sample in samples)
    hashes = {hashlib.sha256(sample.text.encode()).hexdigest() for sample in samples}
    # Greedy answers repeat themselves; where they did not, the row must not look like one that did.
    row["text_sha256"] = hashes.pop() if len(hashes) == 1 else None
    return row


# ---- where it ran ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Machine:
    """The machine, as far as it matters for speed."""

    cpu: str
    cores: int  # that this process may use
    memory_bytes: int | None
    system: str
    python: str


def describe_machine() -> dict[str, Any]:
    """The machine that this process runs on."""
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        memory = None
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return asdict(
        Machine(_cpu_name(), cores, memory, f"{platform.system()} {platform.machine()}", platform.python_version())
    )


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _describe_file(path: Path) -> dict[str, Any]:
    return {"file": path.name, "bytes": path.stat().st_size, "sha256": sha256_of(path)}
