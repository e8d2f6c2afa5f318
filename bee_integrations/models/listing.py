"""The models on this machine: all that names lead to, whether they can run, and the drafters that go with them."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ..errors import BeeError, ModelFileError, ParameterError
from . import folder, hub, lmstudio, ollama, registry
from .cache import cache_directory
from .drafters import find_drafter
from .file import ModelFile
from .gguf_names import GgufSet, group, is_drafter, quantisation
from .located import Located
from .memory import memory_for_models, size_text

__all__ = ["found_models", "print_models", "remove_model"]


def found_models(folders: Sequence[Path] = ()) -> list[dict[str, Any]]:
    """What `bee models --json` prints: one entry for each model that is found.

    folders: also what lies in these, and below. What cannot be read is listed with the reason.
    """
    memory, _ = memory_for_models()
    return [_described(located, memory) for located in _all(folders)]


def _all(folders: Sequence[Path]) -> Iterator[Located]:
    for name in registry.REGISTRY:
        with suppress(BeeError):
            yield registry.locate_model(name, download=False)
    for repository, snapshot in hub.cached_repositories():
        yield from _of_folder(snapshot, "hub", lambda one, repository=repository: _hub_name(repository, one))
    for installed, _, _ in ollama.installed():
        blob = ollama.blob_of(installed)
        if blob is not None:
            yield Located(blob, str(installed), "ollama")
    for shown, path in lmstudio.installed():
        yield from _of_folder(path, "lmstudio", lambda one, shown=shown: _studio_name(shown, one))
    for path in folders:
        if not path.is_dir():
            raise ModelFileError(f"{path} is no folder")
        yield from _of_folder(path, "folder", lambda one, path=path: str(path / one.first))


def _hub_name(repository: str, one: GgufSet) -> str:
    return f"hf:{repository}:{one.quantisation}" if one.quantisation else f"hf:{repository}/{one.first}"


def _studio_name(shown: str, one: GgufSet) -> str:
    return f"lmstudio:{shown}:{one.quantisation}" if one.quantisation else f"lmstudio:{shown}/{one.first}"


def _of_folder(path: Path, place: str, name: Any) -> Iterator[Located]:
    files = folder.gguf_files(path, below=True)
    companions = tuple(path / file for file, _ in files if is_drafter(file))
    for one in group(files):
        yield Located(path / one.first, name(one), place, companions=companions)


def _described(located: Located, memory: int) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "name": located.name, "place": located.place, "path": str(located.path), "bytes": None, "architecture": None,
        "quantisation": quantisation(located.path.name), "runnable": False, "reason": None, "fits": None,
        "drafter": None,
    }  # fmt: skip
    try:
        with ModelFile(located.path) as file:
            entry["bytes"] = file.size
            entry["architecture"] = file.metadata.get("general.architecture")
            entry["quantisation"] = entry["quantisation"] or _main_type(file)
            plan = file.plan()
            if plan.is_drafter:
                entry["reason"] = "a drafter: it runs with its model"
                return entry
            _check_tokenizer(file, plan)
        entry["runnable"] = True
        entry["fits"] = plan.weight_bytes <= memory
        drafter = find_drafter("auto", located)
        entry["drafter"] = None if drafter.path is None else str(drafter.path)
    except BeeError as error:
        entry["reason"] = str(error)
    return entry


def _check_tokenizer(file: ModelFile, plan: Any) -> None:
    from ..engine.engine import model_tokenizer

    model_tokenizer(file, plan)


def _main_type(file: ModelFile) -> str | None:
    """The type that most of the weights have."""
    sizes: dict[str, int] = {}
    for tensor in file.tensors:
        sizes[tensor.type_name] = sizes.get(tensor.type_name, 0) + tensor.size
    return max(sizes, key=lambda name: sizes[name]) if sizes else None


# ---- removing --------------------------------------------------------------------------------------------------------


def remove_model(name: str) -> int:
    """Remove a registered model from the cache directory; the bytes that this freed.

    Raises ParameterError for a name that is none of these, with what removes it, and ModelFileError where it is not
    here.
    """
    place = name.partition(":")[0]
    if place in registry.PLACES and ":" in name:
        how = {"hf": "'hf cache rm'", "ollama": "'ollama rm'", "lmstudio": "LM Studio"}[place]
        raise ParameterError(f"{name} is in a store that others share: remove it with {how}")
    if name not in registry.REGISTRY:
        known = ", ".join(sorted(registry.REGISTRY))
        raise ParameterError(f"there is no model named {name!r} in the cache; its names are: {known}")
    directory = cache_directory() / "models" / name
    if not directory.is_dir():
        raise ModelFileError(f"the model {name!r} is not in the cache ({directory})")
    freed = sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
    try:
        shutil.rmtree(directory)
    except OSError as error:
        raise ModelFileError(f"{directory} cannot be removed: {error}") from error
    return freed


# ---- printing --------------------------------------------------------------------------------------------------------


def print_models(entries: Iterable[Mapping[str, Any]], console: Console) -> None:
    """The entries as a table, and below it why some cannot run."""
    from .report import plain_text

    table = Table()
    for column in ("name", "size", "architecture", "quantisation", "runs here", "drafter"):
        table.add_column(column, justify="right" if column == "size" else "left", overflow="fold")
    reasons = []
    for entry in entries:
        runs = "yes" if entry["fits"] else "too large" if entry["runnable"] else "no"
        drafter = Path(entry["drafter"]).name if entry["drafter"] else "-"
        size = "?" if entry["bytes"] is None else size_text(entry["bytes"])
        words = (entry["name"], size, entry["architecture"] or "?", entry["quantisation"] or "?", runs, drafter)
        table.add_row(*(plain_text(str(word)) for word in words))
        if entry["reason"] is not None:
            reasons.append(f"{entry['name']}: {entry['reason']}")
    console.print(table)
    for reason in reasons:
        console.print(plain_text(reason), style="dim")
