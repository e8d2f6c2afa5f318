"""Devices, and what a model takes of their memory: `bee info --device`, and where an engine is expected to run."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..errors import BeeError, DeviceError, ParameterError
from ..library import check, ffi, lib, new_error
from ..models.file import KV_CACHES, ModelFile
from ..models.memory import size_text

__all__ = [
    "CPU",
    "DEVICES",
    "Device",
    "MemoryPlan",
    "check_device",
    "describe_card",
    "describe_device_memory",
    "expected_place",
    "parse_size",
    "plan_memory",
    "print_device_memory",
    "size_text",
]

CPU = "cpu"
DEVICES: dict[str, int] = {
    "auto": int(lib.BEE_DEVICE_AUTO),
    CPU: int(lib.BEE_DEVICE_CPU),
    "cuda": int(lib.BEE_DEVICE_CUDA),
}

_CONTEXT_STEP = 128  # advice names multiples of it
_INT64_MAX = 2**63 - 1
_SIZE = re.compile(r"(\d{1,20}(?:\.\d{1,9})?)\s*(?:([kmgt])(i?b)?|b)?", re.IGNORECASE | re.ASCII)
_POWERS = {"k": 1, "m": 2, "g": 3, "t": 4}


def check_device(device: str) -> None:
    """Raise ParameterError for a name that is none of DEVICES. Whether there is such a device is not looked at."""
    if not isinstance(device, str) or device not in DEVICES:
        raise ParameterError(f"device is {device!r}; it must be 'auto', 'cpu' or 'cuda'")


# ---- sizes -------------------------------------------------------------------------------------------------------


def parse_size(text: str) -> int:
    """Bytes of a size as people write it: "24GiB", "24GB", "24g" (the same as 24GiB), "8000MiB", "8000000000".

    Raises ParameterError, which names the format, for anything else and for 0.
    """
    found = _SIZE.fullmatch(text.strip())
    size = 0
    if found is not None:
        number, unit, ending = found.groups()
        base = 1000 if (ending or "").lower() == "b" else 1024
        size = int(Decimal(number) * (base ** _POWERS[unit.lower()] if unit else 1))
    if not 0 < size <= _INT64_MAX:
        raise ParameterError(
            f"the memory size {text!r} cannot be read: give bytes, or a number with MiB or GiB (powers of 1024, also "
            "as m or g), or with MB or GB (powers of 1000), such as 24GiB"
        )
    return size


# ---- devices -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Device:
    """A device, and bytes of its memory at this moment."""

    name: str
    total_bytes: int
    free_bytes: int


def describe_card() -> Device:
    """The CUDA card. Raises DeviceError, which says what is missing, where there is none that can be used."""
    return _describe("cuda")


def _describe(device: str) -> Device:
    out = ffi.new("bee_device_info *")
    error = new_error()
    check(lib.bee_device_describe(DEVICES[device], out, error), error)
    name = ffi.string(out.name).decode("utf-8", errors="replace")
    return Device(name, int(out.total_bytes), int(out.free_bytes))


def expected_place(device: str, model: Path, drafter: Path | None, n_ctx: int, kv_cache: str = "f16") -> str:
    """Where an engine opened with these arguments will run, unless the card's memory changes in between: the card's
    name, or "cpu". `n_ctx` is in tokens. What stands against opening it is not raised here."""
    if device == CPU:
        return CPU
    try:
        card = describe_card()
        if device == "auto" and _plan_of_paths(model, drafter, n_ctx, kv_cache).total_bytes > card.free_bytes:
            return CPU
    except BeeError:
        return CPU
    return card.name


# ---- plans -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes that an engine with one session takes of a device's memory."""

    target_bytes: int
    drafter_bytes: int
    cache_bytes: int
    work_bytes: int
    total_bytes: int


def plan_memory(
    target: ModelFile, drafter: ModelFile | None, device: str, n_ctx: int, kv_cache: str = "f16"
) -> MemoryPlan:
    """The plan for a session of `n_ctx` tokens on "cpu" or "cuda", with keys and values as `kv_cache` names them, from
    the files' headers, with or without a card.

    Raises UnsupportedModelError, ModelFormatError, DrafterMismatchError or ParameterError where no engine could be
    opened so.
    """
    out = ffi.new("bee_memory_plan *")
    error = new_error()
    drafter_handle = ffi.NULL if drafter is None else drafter.handle
    kv_type = KV_CACHES[kv_cache]
    check(lib.bee_plan_memory(target.handle, drafter_handle, DEVICES[device], n_ctx, kv_type, out, error), error)
    return MemoryPlan(
        target_bytes=int(out.target_bytes),
        drafter_bytes=int(out.drafter_bytes),
        cache_bytes=int(out.cache_bytes),
        work_bytes=int(out.work_bytes),
        total_bytes=int(out.total_bytes),
    )


def _plan_of_paths(model: Path, drafter: Path | None, n_ctx: int, kv_cache: str) -> MemoryPlan:
    with ExitStack() as stack:
        target = stack.enter_context(ModelFile(model))
        second = None if drafter is None else stack.enter_context(ModelFile(drafter))
        return plan_memory(target, second, "cuda", n_ctx, kv_cache)


# ---- what bee info says ------------------------------------------------------------------------------------------


def describe_device_memory(
    model: Path,
    drafter: Path | None,
    device: str,
    n_ctx: int,
    *,
    stated: int | None,
    free: int | None,
    kv_cache: str = "f16",
) -> dict[str, Any]:
    """The key "device_memory" of `bee info --json`: the plan beside what there is, whether it fits, and what to change.

    device: "auto" is the card where there is one or a size is stated, otherwise the CPU.
    n_ctx: tokens of context.
    kv_cache: how keys and values are remembered, "f16" or "q8_0".
    stated: bytes of a card that need not be here; None takes what is free on the device.
    free: bytes that are free for the CPU; None where that is not known.

    Where nothing is known of the device's memory, `available_bytes`, `fits` and `largest_n_ctx` are None, and the
    advice says why.
    Raises ParameterError for unknown devices, and what `plan_memory` raises.
    """
    check_device(device)
    missing: DeviceError | None = None
    card: Device | None = None
    if device != CPU:
        try:
            card = describe_card()
        except DeviceError as error:
            missing = error
    if device == "auto":
        device = CPU if card is None and stated is None else "cuda"
    found = free if device == CPU else card.free_bytes if card is not None else None
    available = found if stated is None else stated
    with ExitStack() as stack:
        target = stack.enter_context(ModelFile(model))
        second = None if drafter is None else stack.enter_context(ModelFile(drafter))

        def planned(n: int, drafted: bool = second is not None, kv: str = kv_cache) -> MemoryPlan:
            return plan_memory(target, second if drafted else None, device, n, kv)

        plan = planned(n_ctx)
        largest = None if available is None else _longest(planned, target.plan().n_ctx_train, available)
        advice: list[str] = []
        if available is None:
            reason = f"there is no such device here ({missing})" if missing is not None else "what is free is not known"
            advice = [f"{reason}: give the size of one as --memory, such as --memory 24GiB"]
        elif plan.total_bytes > available:
            advice = _advice(planned, n_ctx, available, drafted=second is not None)
            if kv_cache == "f16" and planned(n_ctx, kv="q8_0").total_bytes <= available:
                advice.insert(0, _suggestion("--kv-cache q8_0", planned(n_ctx, kv="q8_0")))
    return {
        "device": device,
        "device_name": card.name if card is not None and device == "cuda" and stated is None else None,
        "n_ctx": n_ctx,
        "kv_cache": kv_cache,
        "target_bytes": plan.target_bytes,
        "drafter_bytes": plan.drafter_bytes,
        "cache_bytes": plan.cache_bytes,
        "work_bytes": plan.work_bytes,
        "total_bytes": plan.total_bytes,
        "available_bytes": available,
        "fits": None if available is None else plan.total_bytes <= available,
        "largest_n_ctx": largest,
        "advice": advice,
    }


def _advice(plan: Callable[[int, bool], MemoryPlan], n_ctx: int, available: int, *, drafted: bool) -> list[str]:
    """What would make a plan fit into `available` bytes; `plan` takes a context and whether there is a drafter."""
    advice = []
    shorter = _largest_context(lambda n: plan(n, drafted), n_ctx, available)
    if shorter is not None:
        advice.append(_suggestion(f"--n-ctx {shorter}", plan(shorter, drafted)))
    if drafted:
        if plan(n_ctx, False).total_bytes <= available:
            advice.append(_suggestion("--drafter none", plan(n_ctx, False)))
        elif shorter is None:
            shorter = _largest_context(lambda n: plan(n, False), n_ctx, available)
            if shorter is not None:
                advice.append(_suggestion(f"--drafter none --n-ctx {shorter}", plan(shorter, False)))
    weights = size_text(plan(n_ctx, drafted).target_bytes)
    return [*advice, f"a file of a smaller quantisation: the weights of this one take {weights}"]


def _suggestion(change: str, plan: MemoryPlan) -> str:
    return f"{change}: it takes {size_text(plan.total_bytes)} then"


def _largest_context(plan: Callable[[int], MemoryPlan], n_ctx: int, available: int) -> int | None:
    """The largest multiple of 128 tokens below `n_ctx` with which the plan fits; None where there is none."""
    fitting, beyond = 0, (n_ctx + _CONTEXT_STEP - 1) // _CONTEXT_STEP  # in steps; what is beyond does not fit
    while beyond - fitting > 1:
        middle = (fitting + beyond) // 2
        if plan(middle * _CONTEXT_STEP).total_bytes <= available:
            fitting = middle
        else:
            beyond = middle
    return fitting * _CONTEXT_STEP or None


def _longest(plan: Callable[[int], MemoryPlan], n_ctx_train: int, available: int) -> int | None:
    """The longest context with which the plan fits, of all that the model was trained for; None where none does."""
    if plan(n_ctx_train).total_bytes <= available:
        return n_ctx_train
    return _largest_context(plan, n_ctx_train, available)


def print_device_memory(memory: Mapping[str, Any], console: Console) -> None:
    """The plan as a table, and below it whether it fits and what to change."""
    where = memory["device_name"] or {CPU: "the CPU", "cuda": "a CUDA card"}[memory["device"]]
    table = Table(title=f"Memory on {escape(where)}", title_justify="left", show_header=False)
    table.add_column("part")
    table.add_column("size", justify="right")
    for name, key in (
        ("target", "target_bytes"),
        ("drafter", "drafter_bytes"),
        (f"caches, {memory['n_ctx']} tokens in {memory['kv_cache']}", "cache_bytes"),
        ("work space", "work_bytes"),
        ("total", "total_bytes"),
    ):
        table.add_row(name, size_text(memory[key]))
    total, available = memory["total_bytes"], memory["available_bytes"]
    if available is not None:
        table.add_row("available", size_text(available))
    console.print(table)
    if available is None:
        console.print(memory["advice"][0], markup=False)
    elif memory["fits"]:
        longest = f"and so would contexts of up to {memory['largest_n_ctx']} tokens"
        verdict = f"It fits: {size_text(total)} of {size_text(available)}, {longest}."
        console.print(verdict, style="green", markup=False, soft_wrap=True)
    else:
        verdict = f"It does not fit: it takes {size_text(total)}, and there are {size_text(available)}."
        console.print(f"{verdict} What would help:", style="bold red", markup=False)
        for line in memory["advice"]:
            console.print(f"- {line}", markup=False)
