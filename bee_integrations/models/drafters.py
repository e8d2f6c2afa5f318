"""Which drafter goes with a model: the one that was named, or the first of those at hand that fits."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from ..errors import BeeError
from . import registry
from .file import ModelFile
from .gguf_names import split_of
from .located import Located

__all__ = ["Drafter", "find_drafter"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Drafter:
    """The drafter of an engine; `path` None: none."""

    path: Path | None
    note: str | None
    """Which it is, and why others are not used; None where there was nothing to choose."""


def find_drafter(drafter: str | os.PathLike[str] | Drafter | None, model: Located) -> Drafter:
    """What an engine takes for `drafter=`.

    None is none; a path or a name is that file, whatever the model. "auto" takes the first that fits of
    ``<stem>.dflash.gguf`` beside the model, drafters of the same folder, repository or store, and the one that comes
    with this package for a registered model. One that does not fit is passed over with a warning.

    Raises what `locate_model` raises for a name.
    """
    if isinstance(drafter, Drafter):
        return drafter
    if drafter is None:
        return Drafter(None, None)
    if drafter != "auto":
        return Drafter(registry.named_drafter(drafter), None)
    passed_over: list[str] = []
    for path, where in _candidates(model):
        reason = _why_not(path, model.path)
        if reason is None:
            return Drafter(path, "; ".join([f"{path.name}, {where}", *passed_over]))
        _log.warning("the drafter %s, %s, is not used: %s", path, where, reason)
        passed_over.append(f"{path.name}, {where}, is not used: {reason}")
    return Drafter(None, "; ".join(["there is none for this model", *passed_over]))


def _candidates(model: Located) -> Iterator[tuple[Path, str]]:
    split = split_of(model.path.name)
    stem = model.path.stem if split is None else split[0]
    beside = model.path.with_name(f"{stem}.dflash.gguf")
    if beside.is_file():
        yield beside, "beside the model"
    for path in model.companions:
        if path != beside and path.is_file():
            yield path, "from the same place"
    bundled = registry.bundled_drafter(model.path)
    if bundled is not None:
        yield bundled, "which comes with this package"


def _why_not(drafter: Path, model: Path) -> str | None:
    from ..engine.device_plan import CPU, plan_memory

    try:
        with ExitStack() as files:
            plan_memory(files.enter_context(ModelFile(model)), files.enter_context(ModelFile(drafter)), CPU, 1)
    except BeeError as error:
        return str(error)
    return None
