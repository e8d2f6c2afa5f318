"""Opening an engine of the library: its weights beside the model's words, progress, and what came of it."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ..library import check, ffi, lib, new_error
from ..models.file import KV_CACHES
from ..models.packed import make_packed_directory
from .device_plan import CPU, DEVICES, expected_place
from .pass_costs import PassCosts

__all__ = ["beside", "describe", "logged_progress", "open_engine"]

_log = logging.getLogger("bee_integrations.engine")


def beside(read: Callable[[], None], open_handle: Callable[..., Any], progress: Callable[[int, int], None]) -> Any:
    """The `bee_engine *` that is opened, with `progress`, while another thread reads. What stands against reading ends
    the loading, and is raised first."""
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="bee-text") as pool:
        try:
            reading = pool.submit(read)
        except RuntimeError:  # no more threads: one after the other, and what the engine lacks it says itself
            read()
            return open_handle(progress=progress)

        def tell(done: int, total: int) -> None:
            if reading.done():
                reading.result()
            progress(done, total)

        try:
            handle = open_handle(progress=tell)
        except Exception:
            reading.result()
            raise
        try:
            reading.result()
        except BaseException:
            lib.bee_engine_close(handle)
            raise
    return handle


def logged_progress(name: str) -> Callable[[int, int], None]:
    logged = 0

    def log(done: int, total: int) -> None:
        nonlocal logged
        if 10 * done // total != logged:
            logged = 10 * done // total
            _log.info("%s: loaded %.2f of %.2f GB of weights", name, 1e-9 * done, 1e-9 * total)

    return log


class _ProgressCallback:
    """A `bee_progress_function` for a Python function; keeps what that raises, Ctrl-C included."""

    def __init__(self, progress: Callable[[int, int], None]) -> None:
        self._progress = progress
        self.raised: BaseException | None = None
        # Ctrl-C may strike before the first line of _tell: cffi alone sees that.
        self.function = ffi.callback("bee_progress_function", self._tell, error=False, onerror=self._failed)

    def _tell(self, user: Any, done: int, total: int) -> bool:
        self._progress(done, total)
        return True

    def _failed(self, kind: Any, error: BaseException, trace: Any) -> None:
        self.raised = error  # raised again by the thread that opens the engine


def open_engine(
    model: Path,
    drafter: Path | None,
    threads: int,
    instruction_set: str | None,
    *,
    device: str,
    n_ctx: int,
    kv_cache: str,
    packed: Path | None,
    progress: Callable[[int, int], None],
    share_prefixes: bool,
) -> Any:
    """A `bee_engine *`, with the costs that are remembered for where it runs, or those that it measured remembered."""

    def opened(costs: Any) -> Any:
        name = ffi.NULL if instruction_set is None else ffi.new("char[]", str(instruction_set).encode())
        given = {"device": DEVICES[device], "n_ctx": n_ctx, "n_threads": threads, "instruction_set": name}
        told = _ProgressCallback(progress)
        directory = ffi.NULL if packed is None else ffi.new("char[]", os.fsencode(packed))
        given |= {"costs": costs, "progress": told.function, "kv_type": KV_CACHES[kv_cache]}
        given |= {"packed_cache": directory, "unshared": not share_prefixes}
        parameters = ffi.new("bee_engine_params *", given)
        drafter_name = ffi.NULL if drafter is None else os.fsencode(drafter)
        error = new_error()
        handle = lib.bee_engine_open(os.fsencode(model), drafter_name, parameters, error)
        if told.raised is not None:
            raise told.raised
        check(handle, error)
        return handle

    if packed is not None:
        make_packed_directory(packed)
    place = expected_place(device, model, drafter, n_ctx, kv_cache)
    memory = PassCosts(model, drafter, threads, instruction_set, place, kv_cache)
    known = memory.load()
    handle = opened(known)
    if _place(handle) != place:
        if known != ffi.NULL:  # the costs of another device
            lib.bee_engine_close(handle)
            known = ffi.NULL
            handle = opened(known)
        memory = PassCosts(model, drafter, threads, instruction_set, _place(handle), kv_cache)
    if known == ffi.NULL:
        memory.store(handle)
    _tell_of_packed_weights(handle, packed)
    return handle


def _tell_of_packed_weights(handle: Any, directory: Path | None) -> None:
    info = describe(handle)
    if info["packed_note"]:
        level = logging.WARNING if info["packed_failed"] else logging.INFO
        _log.log(level, "packed weights in %s: %s", directory, info["packed_note"])


def _place(handle: Any) -> str:
    """As `expected_place` has it: the name of the card that the engine runs on, or "cpu"."""
    info = describe(handle)
    return CPU if info["device"] == CPU else str(info["device_name"])


def _text(characters: Any) -> str:
    return str(ffi.string(characters).decode("utf-8", errors="replace"))


def describe(handle: Any) -> dict[str, Any]:
    out = ffi.new("bee_engine_info *")
    lib.bee_engine_describe(handle, out)
    names = ("n_vocab", "n_ctx_train", "n_layer", "n_embd", "n_threads", "has_drafter", "block_size", "n_draft_vocab",
             "mask_token", "weight_bytes", "predicts", "mapped_bytes", "packed_failed")  # fmt: skip
    info: dict[str, Any] = {name: getattr(out, name) for name in names}
    info["kv_cache"] = next(name for name, number in KV_CACHES.items() if number == int(out.kv_type))
    info["instruction_set"] = ffi.string(out.instruction_set).decode()
    info["device"] = CPU if int(out.device) == DEVICES[CPU] else "cuda"
    info["device_name"] = _text(out.device_info.name)
    info["device_note"] = _text(out.device_note)
    info["packed_note"] = _text(out.packed_note)
    info["library_version"] = ffi.string(lib.bee_version()).decode()
    return info
