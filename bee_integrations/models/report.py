"""What `bee info` says about a GGUF file."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..engine.device_plan import describe_device_memory, print_device_memory
from ..engine.engine import DEFAULT_N_CTX, model_tokenizer
from ..errors import ModelFormatError, ParameterError, UnsupportedModelError
from .file import ModelFile, Plan, TensorInfo, check_kv_cache
from .memory import available_memory, size_text
from .registry import resolve_drafter

__all__ = ["describe_model_file", "plain_text", "print_model_report"]

_SHOWN_ELEMENTS = 8  # of an array; vocabularies have hundreds of thousands


def describe_model_file(
    path: Path,
    n_ctx: int | None = None,
    *,
    device: str | None = None,
    memory: int | None = None,
    drafter: str | os.PathLike[str] | None = "auto",
    kv_cache: str = "f16",
) -> dict[str, Any]:
    """Everything `bee info --json` prints; `n_ctx` (tokens; None: what an engine takes by default) and `kv_cache` (a
    name of KV_CACHES) size the caches.

    device: None, or the one whose memory is planned, with `drafter` as an engine takes it, and `memory` bytes in place
    of what is free on it. The plan is `device_memory`: None where none was asked for, and for what cannot run.

    Raises ModelFileError and ModelFormatError where the file cannot be read as GGUF. A sound file that cannot be run is
    no error: `runnable` is False then, and `reason` says why.
    """
    if n_ctx is not None and n_ctx < 1:
        raise ParameterError(f"n_ctx is {n_ctx}; give at least 1 token")
    check_kv_cache(kv_cache)
    with ModelFile(path) as file:
        metadata = {key: _shortened(value) for key, value in file.metadata.items()}
        report: dict[str, Any] = {
            "path": str(path),
            "bytes": file.size,
            "architecture": metadata.get("general.architecture"),
            "name": metadata.get("general.name"),
            "metadata": metadata,
            "tensor_types": _tensor_types(file.tensors),
            "tensors": [
                {"name": tensor.name, "type": tensor.type_name, "shape": list(tensor.shape), "bytes": tensor.size}
                for tensor in file.tensors
            ],
        }
        report |= _running(file, n_ctx, kv_cache)
        report["tools"] = _tool_format(file) if report["kind"] == "target" else None
    report["device_memory"] = None
    if device is not None:
        report["device_memory"] = _on_device(path, report, device, memory, drafter, kv_cache)
    return report


def _on_device(
    path: Path,
    report: Mapping[str, Any],
    device: str,
    memory: int | None,
    drafter: str | os.PathLike[str] | None,
    kv_cache: str,
) -> dict[str, Any] | None:
    if report["kind"] == "drafter":
        raise ParameterError(f"{path} is a drafter, which runs with its target: give that, and this as --drafter")
    context = report["memory"] and report["memory"]["n_ctx"]
    if context is None or context > report["n_ctx_train"]:
        return None
    return describe_device_memory(
        path,
        resolve_drafter(drafter, path),
        device,
        context,
        stated=memory,
        free=available_memory(),
        kv_cache=kv_cache,
    )


def _running(file: ModelFile, n_ctx: int | None, kv_cache: str) -> dict[str, Any]:
    """Whether an engine would open the file, and what that would take."""
    try:
        plan = file.plan(kv_cache)
        if not plan.is_drafter:
            model_tokenizer(file, plan)  # weights that run are of no use without a vocabulary that can be read
    except (UnsupportedModelError, ModelFormatError) as error:
        return {"runnable": False, "reason": str(error), "kind": None, "memory": None}
    context = n_ctx if n_ctx is not None else min(plan.n_ctx_train, DEFAULT_N_CTX)
    cache = context * plan.kv_bytes_per_token + plan.state_bytes
    memory = {
        "n_ctx": context,
        "kv_cache": kv_cache,
        "weight_bytes": plan.weight_bytes,
        "cache_bytes": cache,
        "total_bytes": plan.weight_bytes + cache,
        "available_bytes": available_memory(),
    }
    model = {
        "kind": "drafter" if plan.is_drafter else "target",
        "n_vocab": plan.n_vocab,
        "n_ctx_train": plan.n_ctx_train,
        "n_layer": plan.n_layer,
        "n_embd": plan.n_embd,
        "left_out": _left_out(file, plan),
    }
    reason = _what_stands_against(memory, plan.n_ctx_train)
    return {"runnable": reason is None, "reason": reason, **model, "memory": memory}


def _left_out(file: ModelFile, plan: Plan) -> dict[str, int] | None:
    """The file's blocks that predict further tokens (MTP), which nothing runs."""
    if not plan.n_left_out:
        return None
    names = tuple(f"blk.{plan.n_layer + index}." for index in range(plan.n_left_out))
    tensors = [tensor for tensor in file.tensors if tensor.name.startswith(names)]
    if not tensors:  # the metadata count them, but they were left out of the file
        return None
    return {
        "first_block": plan.n_layer,
        "blocks": plan.n_left_out,
        "tensors": len(tensors),
        "bytes": sum(tensor.size for tensor in tensors),
    }


def _what_stands_against(memory: Mapping[str, Any], n_ctx_train: int) -> str | None:
    if memory["n_ctx"] > n_ctx_train:
        return f"the model was trained for {n_ctx_train} tokens of context, not {memory['n_ctx']}"
    available = memory["available_bytes"]
    if available is not None and memory["total_bytes"] > available:
        return (
            f"it takes {size_text(memory['total_bytes'])} with a context of {memory['n_ctx']} tokens, and "
            f"{size_text(available)} of memory are free: give a smaller context"
        )
    return None


def _tool_format(file: ModelFile) -> dict[str, str]:
    """The format in which the model is told of tools and writes calls, and why it is that one."""
    from ..text.chat_template import CHAT_TEMPLATE, TOOL_TEMPLATE
    from ..tools.formats import recognition  # which need the engine's room of the package

    for key, which in ((TOOL_TEMPLATE, "of the template for tools: "), (CHAT_TEMPLATE, "")):
        template = file.metadata.get(key)
        if isinstance(template, str) and template.strip():
            found = recognition(template)
            return {"format": found.format.name, "reason": which + found.reason}
    return {"format": "generic", "reason": "the file has no chat template"}


def _shortened(value: Any) -> Any:
    """A metadata value as JSON; a long array as its length and first elements."""
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, list):
        if len(value) > _SHOWN_ELEMENTS:
            return {"length": len(value), "first": _shortened(value[:_SHOWN_ELEMENTS])}
        return [_shortened(element) for element in value]
    # JSON has no infinities and no NaN.
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _tensor_types(tensors: Iterable[TensorInfo]) -> list[dict[str, Any]]:
    types: dict[str, dict[str, Any]] = {}
    for tensor in tensors:
        entry = types.setdefault(
            tensor.type_name, {"type": tensor.type_name, "tensors": 0, "bytes": 0, "supported": tensor.supported}
        )
        entry["tensors"] += 1
        entry["bytes"] += tensor.size
    return sorted(types.values(), key=lambda entry: -int(entry["bytes"]))


# ---- printing ----------------------------------------------------------------------------------------------------


def print_model_report(report: Mapping[str, Any], console: Console) -> None:
    """The report as tables: where it stands, tensor types, metadata, and the answer to "can I run this?" last."""
    console.print(f"{os.path.basename(report['path'])}: {size_text(report['bytes'])}", style="bold", markup=False)
    console.print(_types_table(report["tensor_types"]))
    console.print(_metadata_table(report["metadata"]))
    memory = report["memory"]
    if memory is not None:
        console.print(
            f"Memory: weights {size_text(memory['weight_bytes'])}, and {size_text(memory['cache_bytes'])} for each "
            f"session of {memory['n_ctx']} tokens ({memory['kv_cache']})"
        )
    left_out = report.get("left_out")
    if left_out is not None:
        console.print(
            f"Left out: blk.{left_out['first_block']} and what is behind it, which predict further tokens (MTP): "
            f"{left_out['tensors']} tensors, {size_text(left_out['bytes'])}",
            markup=False,
        )
    if report["tools"] is not None:
        said = f"Tools: {report['tools']['format']} ({report['tools']['reason']})"
        console.print(plain_text(said), soft_wrap=True)
    if report["runnable"] and report["kind"] == "drafter":
        console.print("A drafter that can run here: give it with its target, as --drafter.", style="green")
    elif report["runnable"]:
        console.print("This model can run here.", style="green")
    else:
        # One line, however narrow the terminal: it names what is missing.
        console.print(f"This file cannot run here: {report['reason']}", style="bold red", markup=False, soft_wrap=True)
    if report["device_memory"] is not None:
        print_device_memory(report["device_memory"], console)


def _types_table(types: Iterable[Mapping[str, Any]]) -> Table:
    table = Table(title="Tensors", title_justify="left")
    table.add_column("type")
    table.add_column("tensors", justify="right")
    table.add_column("size", justify="right")
    table.add_column("can run")
    for entry in types:
        table.add_row(entry["type"], str(entry["tensors"]), size_text(entry["bytes"]), _usable(entry))
    return table


def _metadata_table(metadata: Mapping[str, Any]) -> Table:
    table = Table(title="Metadata", title_justify="left", show_header=False)
    table.add_column("key", overflow="fold")
    table.add_column("value", overflow="fold")
    for key, value in metadata.items():
        table.add_row(plain_text(key), plain_text(_one_line(value)))
    return table


def _one_line(value: Any) -> str:
    if isinstance(value, dict):
        return f"{value['length']} elements: {', '.join(str(element) for element in value['first'])}, ..."
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 200 else f"{text[:200]}... ({len(text)} characters)"


def plain_text(text: str) -> str:
    """Text from a stranger's file, without terminal control sequences and without rich's markup."""
    return escape("".join(character if character.isprintable() else repr(character)[1:-1] for character in text))


def _usable(entry: Mapping[str, Any]) -> str:
    if entry["type"] == "I64":
        return "as an index"  # the tokens of a reduced head; never as weights
    return "yes" if entry["supported"] else "[red]no"
