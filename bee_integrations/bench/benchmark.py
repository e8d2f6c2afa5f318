"""`bee bench`: what Bee reaches on this machine, with and without speculation, beside its peer.

All contenders run in turn on every prompt (A B A B), so that a machine that is slower for a while is slower for all of
them. Answers are greedy. What is written is described in docs/benchmark.md.
"""

from __future__ import annotations

import json
import os
import platform
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .. import __version__
from ..engine.device_plan import CPU, check_device
from ..engine.engine import Engine
from ..errors import ModelFileError, ParameterError
from ..models.file import check_kv_cache
from ..models.registry import sha256_of
from .contenders import Progress, Steps
from .figures import GROUPS, PREFILL_TOKENS, measure_figures
from .llama_cpp_peer import LlamaCppPeer
from .passes import PASS_ROWS
from .peer_process import PeerProcess
from .prompts import load_prompts, prompt_text
from .report import summarise
from .run import Run

__all__ = ["BenchOptions", "load_report", "merge_figures", "run_benchmark"]

PASS_CONTEXT = 256  # tokens before the measured pass
_FIGURES_CONTEXT = 1024  # the longest that figures ask for
_MODES = ("auto", "dflash", "copy", "off")


@dataclass(frozen=True)
class BenchOptions:
    """What to measure. `speculation`: modes of Bee in the order of a turn; None: off, and dflash with a drafter, or off
    and auto for figures. `figures`: groups of figures; None measures answers and passes alone."""

    model: str | os.PathLike[str] | None = None
    drafter: str | os.PathLike[str] | None = "auto"
    prompts: str | os.PathLike[str] | None = None
    speculation: tuple[str, ...] | None = None
    figures: tuple[str, ...] | None = None
    max_tokens: int = 200
    repeats: int = 3
    threads: int | None = None
    n_ctx: int | None = None
    peer: str | None = None
    peer_path: str | os.PathLike[str] | None = None  # the folder to import the peer from
    avx2_peer_path: str | os.PathLike[str] | None = None  # that of a build without AVX-512
    device: str = "auto"
    instruction_set: str | None = None
    kv_cache: str = "f16"

    def __post_init__(self) -> None:
        for name in ("max_tokens", "repeats"):
            if getattr(self, name) < 1:
                raise ParameterError(f"{name} is {getattr(self, name)}; give at least 1")
        check_device(self.device)
        check_kv_cache(self.kv_cache)
        _check_choice("speculation", self.speculation, _MODES)
        _check_choice("rows", self.figures, tuple(GROUPS))
        if self.peer not in (None, LlamaCppPeer.name):
            raise ParameterError(f"there is no peer {self.peer!r}; the only one is {LlamaCppPeer.name!r}")
        for name in ("peer_path", "avx2_peer_path"):
            folder = getattr(self, name)
            if folder is not None and not (Path(folder) / "llama_cpp").is_dir():
                raise ParameterError(f"{name} names {os.fspath(folder)}, where there is no llama_cpp")


def _check_choice(name: str, values: tuple[str, ...] | None, known: tuple[str, ...]) -> None:
    if values is None:
        return
    for value in values:
        if value not in known:
            raise ParameterError(f"{name} {value!r} is none of {', '.join(map(repr, known))}")
    if len(set(values)) != len(values):
        raise ParameterError(f"{name} names one twice: {','.join(values)}")
    if not values:
        raise ParameterError(f"{name} is empty; give at least one of {', '.join(map(repr, known))}")


# ---- the benchmark -----------------------------------------------------------------------------------------------


def run_benchmark(options: BenchOptions, progress: Progress | None = None) -> dict[str, Any]:
    """Measure and return what `bee bench --json` writes.

    Raises BeeError for bad options, files that cannot be used, a peer that is not installed, and prompts that do not
    fit into the context.
    """
    with ExitStack() as stack:
        run = _open_run(options, progress, stack)
        figures = []
        if options.figures is None:
            run.passes(PASS_CONTEXT)
            run.answers()
        else:
            figures = measure_figures(run, options.figures)
        measured = run.report()
        return {
            "bee_version": __version__,
            "machine": describe_machine(),
            "device": None if run.engine.info["device"] == CPU else run.engine.info["device_name"],
            "threads": run.threads,
            "instruction_set": run.engine.info["instruction_set"],
            "model": _describe_file(run.engine.model_path),
            "drafter": None if run.engine.drafter_path is None else _describe_file(run.engine.drafter_path),
            "peer": _describe_peer(run.peer),
            "settings": {
                "prompts": len(run.tokens),
                "max_tokens": options.max_tokens,
                "repeats": options.repeats,
                "temperature": 0.0,
            },
            **measured,
            "figures": [asdict(figure) | {"met": figure.met} for figure in figures],
            "summary": summarise(measured["rows"], measured["passes"]),
        }


def _open_run(options: BenchOptions, progress: Progress | None, stack: ExitStack) -> Run:
    prompts = load_prompts(options.prompts)
    engine = stack.enter_context(
        Engine(
            options.model,
            drafter=options.drafter,
            n_ctx=options.n_ctx,
            threads=options.threads,
            device=options.device,
            instruction_set=options.instruction_set,
            n_parallel=1,
            kv_cache=options.kv_cache,
        )
    )
    modes = _modes(options, engine)
    tokens = {prompt.name: engine.encode_prompt(prompt_text(engine, prompt.messages)) for prompt in prompts}
    on_cpu = engine.info["device"] == CPU
    threads = engine.info["n_threads"] if on_cpu else options.threads or _available_cores()
    peer = None
    if options.peer is not None:
        measured = PASS_CONTEXT if options.figures is None else _FIGURES_CONTEXT
        answered = max(map(len, tokens.values())) + options.max_tokens
        n_ctx = max(answered, PREFILL_TOKENS + 1, measured + max(PASS_ROWS))
        peer = stack.enter_context(
            PeerProcess(
                LlamaCppPeer, engine.model_path, n_ctx=n_ctx, threads=threads, folder=_folder(options.peer_path)
            )
        )
    return Run(
        engine=engine,
        peer=peer,
        tokens=tokens,
        modes=modes,
        max_tokens=options.max_tokens,
        repeats=options.repeats,
        threads=threads,
        steps=Steps(progress),
        folder=Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bee-bench-"))),
        peer_folder=_folder(options.peer_path),
        avx2_peer_folder=_folder(options.avx2_peer_path),
    )


def _folder(path: str | os.PathLike[str] | None) -> Path | None:
    return None if path is None else Path(path).resolve()


def _modes(options: BenchOptions, engine: Engine) -> tuple[str, ...]:
    if options.speculation is None:
        if options.figures is not None:
            return ("off", "auto")
        return ("off",) if engine.drafter_path is None else ("off", "dflash")
    if "dflash" in options.speculation and engine.drafter_path is None:
        raise ParameterError(
            f"speculation 'dflash' needs a drafter, and there is none for {engine.model_path.name}: "
            "give the path of one as the drafter"
        )
    return options.speculation


# ---- an earlier report -------------------------------------------------------------------------------------------


def load_report(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What an earlier run wrote. Raises ModelFileError where it cannot be read, ParameterError for anything else."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelFileError(f"the results {os.fspath(path)} cannot be read: {error}") from error
    try:
        report = json.loads(text)
    except ValueError as error:
        raise ParameterError(f"{os.fspath(path)} is not JSON: {error}") from error
    if not isinstance(report, dict) or not {"machine", "model", "figures", "passes", "rows", "summary"} <= set(report):
        raise ParameterError(f"{os.fspath(path)} does not hold results of 'bee bench'")
    return report


def merge_figures(earlier: Mapping[str, Any], later: Mapping[str, Any]) -> dict[str, Any]:
    """The earlier report with the groups of figures that the later one measured anew in their place, and the passes and
    answers of the later one where it has any. Raises ParameterError where the two are not of the same thing."""
    for name in ("machine", "model", "drafter", "threads", "instruction_set"):
        if earlier[name] != later[name]:
            raise ParameterError(f"the earlier results are of another {name}: {earlier[name]} and not {later[name]}")
    devices = [report.get("device") or "the CPU" for report in (earlier, later)]  # none in reports of before there were
    if devices[0] != devices[1]:
        raise ParameterError(f"the earlier results are of another device: {devices[0]} and not {devices[1]}")
    anew = {figure["group"] for figure in later["figures"]}
    figures = [*(figure for figure in earlier["figures"] if figure["group"] not in anew), *later["figures"]]
    order = list(GROUPS)
    passes = {entry["context"]: entry for report in (earlier, later) for entry in report["passes"]}
    merged = {
        **later,
        "figures": sorted(figures, key=lambda figure: order.index(figure["group"])),
        "passes": [passes[context] for context in sorted(passes)],
        "rows": later["rows"] or earlier["rows"],
        "peer": later["peer"] or earlier["peer"],
        "draft_bounds": later["draft_bounds"] or earlier["draft_bounds"],
    }
    return merged | {"summary": summarise(merged["rows"], merged["passes"])}


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
    system = f"{platform.system()} {platform.machine()}"
    return asdict(Machine(_cpu_name(), _available_cores(), memory, system, platform.python_version()))


def _available_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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


def _describe_peer(peer: PeerProcess | None) -> dict[str, Any] | None:
    return None if peer is None else {"name": peer.name, "version": peer.version, "repacked": peer.repack}
