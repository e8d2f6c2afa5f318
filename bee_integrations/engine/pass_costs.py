"""Costs of passes, remembered between processes: an engine that opens the same files again need not measure them.

A measurement of one bad minute must not stay forever, so it is forgotten after a week; in between the engine corrects
what passes take while it runs (libbee/src/draft/policy.h).
"""

from __future__ import annotations

import json
import os
import platform
import time
from pathlib import Path
from typing import Any, TypeGuard

from .. import __version__
from ..library import ffi, lib
from ..models.cache import memo_path, recall, remember

__all__ = ["PassCosts"]

_LIFETIME_S = 7 * 24 * 3600.0
_EMPTY = ffi.new("bee_costs *")
_N_PASSES, _N_DRAFTS = len(getattr(_EMPTY, "pass")), len(_EMPTY.draft)
_LEAST_S, _MOST_S = 1e-7, 1e4  # a pass over any model
_MOST = 1e12


class PassCosts:
    """The memory of one engine's costs: a small JSON file in the cache directory."""

    def __init__(
        self,
        model: Path,
        drafter: Path | None,
        threads: int,
        instruction_set: str | None,
        device: str = "cpu",
        kv_cache: str = "f16",
    ) -> None:
        """`threads` 0 and `instruction_set` None: as libbee chooses them here. `device`: "cpu" or a card's name."""
        held = {
            "files": [_stamp(path) for path in (model, drafter) if path is not None],
            "threads": threads or len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else threads,
            "instruction_set": instruction_set or ffi.string(lib.bee_instruction_sets()[0]).decode(),
            "processor": _processor(),
            "device": device,
            "kv_cache": kv_cache,
            "version": __version__,
        }
        self._path = memo_path("pass_costs", json.dumps(held, sort_keys=True).encode())

    def load(self) -> Any:
        """A `bee_costs *`, or NULL where nothing is remembered, or nothing that could have been measured."""
        known = recall(self._path)
        measured, passes, drafts = known.get("measured"), known.get("pass"), known.get("draft")
        if not (_is_number(measured) and 0 <= time.time() - measured < _LIFETIME_S):
            return ffi.NULL
        if not (_are_costs(passes, _N_PASSES, _LEAST_S) and _are_costs(drafts, _N_DRAFTS, 0.0)):
            return ffi.NULL
        if passes != sorted(passes):  # more rows never cost less
            return ffi.NULL
        return ffi.new("bee_costs *", {"pass": passes, "draft": drafts})

    def store(self, engine: Any) -> None:
        """Remember the costs that a `bee_engine` measured."""
        costs = ffi.new("bee_costs *")
        lib.bee_engine_costs(engine, costs)
        content = {"measured": time.time(), "pass": list(getattr(costs, "pass")), "draft": list(costs.draft)}
        remember(self._path, content)


def _is_number(value: Any) -> TypeGuard[float]:
    # JSON's true is an int of Python's; of a number with hundreds of digits no float can be made.
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < _MOST


def _are_costs(values: Any, count: int, least: float) -> TypeGuard[list[float]]:
    """Seconds that passes can take."""
    if not (isinstance(values, list) and len(values) == count):
        return False
    return all(_is_number(value) and least <= value < _MOST_S for value in values)


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
