"""Costs of passes, remembered between processes: an engine that opens the same files again need not measure them.

A measurement of one bad minute must not stay forever, so it is forgotten after a week; in between the engine corrects
what passes take while it runs (libbee/src/draft/policy.h).
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
from pathlib import Path
from typing import Any

from .. import __version__
from ..library import ffi, lib
from ..models.registry import cache_directory, remember

__all__ = ["PassCosts"]

_LIFETIME_S = 7 * 24 * 3600.0


class PassCosts:
    """The memory of one engine's costs: a small JSON file in the cache directory."""

    def __init__(
        self, model: Path, drafter: Path | None, threads: int, instruction_set: str | None, device: str = "cpu"
    ) -> None:
        """`threads` 0 and `instruction_set` None: as libbee chooses them here. `device`: "cpu" or a card's name."""
        held = {
            "files": [_stamp(path) for path in (model, drafter) if path is not None],
            "threads": threads or len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else threads,
            "instruction_set": instruction_set or ffi.string(lib.bee_instruction_sets()[0]).decode(),
            "processor": _processor(),
            "device": device,
            "version": __version__,
        }
        name = hashlib.sha256(json.dumps(held, sort_keys=True).encode()).hexdigest()
        self._path = cache_directory() / "pass_costs" / f"{name}.json"

    def load(self) -> Any:
        """A `bee_costs *`, or NULL where nothing is remembered."""
        try:
            known = json.loads(self._path.read_text(encoding="utf-8"))
            if not 0 <= time.time() - known["measured"] < _LIFETIME_S:
                return ffi.NULL
            return ffi.new("bee_costs *", {"pass": known["pass"], "draft": known["draft"]})
        except (OSError, ValueError, KeyError, TypeError, IndexError, OverflowError):
            return ffi.NULL  # none, or not one of ours: measure

    def store(self, engine: Any) -> None:
        """Remember the costs that a `bee_engine` measured."""
        costs = ffi.new("bee_costs *")
        lib.bee_engine_costs(engine, costs)
        content = {"measured": time.time(), "pass": list(getattr(costs, "pass")), "draft": list(costs.draft)}
        remember(self._path, content)


def _stamp(path: Path) -> list[str | int]:
    try:
        state = path.stat()
    except OSError:  # opening it says what is wrong
        return [os.fspath(path)]
    return [os.fspath(path), state.st_size, state.st_mtime_ns]


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line
    except OSError:
        pass
    return platform.processor()
