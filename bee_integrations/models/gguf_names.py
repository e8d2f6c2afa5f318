"""What the names of GGUF files say: the quantisation, the parts of a split file, and what is no model by itself."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..errors import ModelFileError
from .memory import memory_for_models, size_text

__all__ = ["Choice", "GgufSet", "choose", "group", "is_drafter", "quantisation", "split_of"]

_SPLIT = re.compile(r"^(?P<prefix>.*)-(?P<index>\d{5})-of-(?P<count>\d{5})\.gguf$", re.IGNORECASE)
_QUANTISATION = re.compile(
    r"(?:^|[-._/])((?:UD-)?(?:I?Q\d+_[A-Z0-9]{1,3}(?:_[A-Z0-9]{1,3})*|TQ\d_\d|MXFP4(?:_MOE)?|NVFP4|BF16|F16|F32))(?=$|[-./])",
    re.IGNORECASE,
)
# What the library runs, by the words of names: weight types, and the mixtures of them that llama.cpp and others make.
_RUNS = re.compile(
    r"(?:UD-)?(?:F32|F16|BF16|Q[45]_[01]|Q8_0|Q[12]_0|Q[2-6]_K|Q8_K_X?L|IQ1_[SM]|IQ2_(?:XXS|XS|S|M)|IQ3_(?:XXS|XS|S|M)|"
    r"IQ4_(?:XS|NL)|TQ[12]_0|MXFP4(?:_MOE)?|NVFP4)(?:_(?:S|M|L|XS|XL|XXL))?"
)
_NO_MODEL = re.compile(
    r"mmproj|imatrix|(?:^|[-._/])(?:lora|vocab|clip|vision|projector|adapter)(?:[-._/]|$)", re.IGNORECASE
)
_DRAFTER = re.compile(r"(?:^|[-._/])(?:dflash|drafter?|mtp|eagle\d?)(?:[-._/]|$)", re.IGNORECASE)
_ROOM_FOR_CACHES = 512 << 20  # beside the weights: keys and values, scratch memory


@dataclass(frozen=True)
class GgufSet:
    """A model as files: one, or all parts of a split one in order."""

    files: tuple[str, ...]
    size: int  # bytes of all of them
    quantisation: str | None
    n_parts: int  # that there should be

    @property
    def complete(self) -> bool:
        """Whether all parts are there."""
        return len(self.files) == self.n_parts

    @property
    def runs(self) -> bool:
        """Whether its name states no quantisation that the library lacks, such as Q4_0_4_8 or IQ4_KS."""
        return self.quantisation is None or _RUNS.fullmatch(self.quantisation) is not None

    @property
    def first(self) -> str:
        """The file that opens the whole."""
        return self.files[0]


@dataclass(frozen=True)
class Choice:
    """The model that was chosen, and why."""

    chosen: GgufSet
    note: str | None


def split_of(name: str) -> tuple[str, int, int] | None:
    """Prefix, number (from 1) and count of a part of a split file; None for a whole one."""
    match = _SPLIT.match(name)
    return None if match is None else (match["prefix"], int(match["index"]), int(match["count"]))


def quantisation(name: str) -> str | None:
    """The quantisation that a file's name states last, in capitals ("Q4_K_M"), or None."""
    split = split_of(name)
    stem = re.sub(r"\.gguf$", "", name if split is None else split[0], flags=re.IGNORECASE)
    found = _QUANTISATION.findall(stem.replace("/", "//"))
    return found[-1].upper() if found else None


def is_drafter(name: str) -> bool:
    """Whether a file's name says that it drafts for another model."""
    return _DRAFTER.search(name) is not None


def group(files: Iterable[tuple[str, int]]) -> list[GgufSet]:
    """The models among files, given with their sizes; vision parts, adapters and drafters are left out."""
    parts: dict[tuple[str, int], dict[int, tuple[str, int]]] = {}
    for name, size in files:
        if not name.lower().endswith(".gguf") or _NO_MODEL.search(name) or is_drafter(name):
            continue
        prefix, index, count = split_of(name) or (name, 1, 1)
        parts.setdefault((prefix, count), {})[index] = (name, size)
    sets = []
    for (_, count), found in parts.items():
        ordered = [found[index] for index in sorted(found)]
        names = tuple(name for name, _ in ordered)
        sets.append(GgufSet(names, sum(size for _, size in ordered), quantisation(names[0]), count))
    return sorted(sets, key=lambda one: one.first)


def choose(sets: Sequence[GgufSet], wanted: str | None, place: str) -> Choice:
    """The set of a quantisation, or the best that fits this machine. `place` is for messages.

    Raises ModelFileError, which lists what there is.
    """
    if not sets:
        raise ModelFileError(f"{place} has no GGUF file with a model in it")
    if wanted is not None:
        matching = [one for one in sets if _matches(one, wanted)]
        if not matching:
            raise ModelFileError(f"{place} has no {wanted}; it has {_listed(sets)}")
        return Choice(_complete(matching[0], place), None)
    whole = [one for one in sets if one.complete]
    if not whole:
        return Choice(_complete(sets[0], place), None)  # raises, naming the missing part
    running = [one for one in whole if one.runs]
    if not running:
        raise ModelFileError(
            f"{place} has {_listed(whole)}, which Bee does not run; 'bee info' says of a file what it lacks"
        )
    chosen = Choice(running[0], None) if len(running) == 1 else _best(running)
    left_out = [one for one in whole if not one.runs]
    if not left_out:
        return chosen
    why = chosen.note or f"{chosen.chosen.quantisation or chosen.chosen.first}: the only one that Bee runs"
    return Choice(chosen.chosen, f"{why}; Bee does not run {_listed(left_out)}")


def _matches(one: GgufSet, wanted: str) -> bool:
    return wanted.upper() in {one.quantisation, (one.quantisation or "").removeprefix("UD-")}


def _complete(one: GgufSet, place: str) -> GgufSet:
    if not one.complete:
        here = {(split_of(name) or ("", 1, 1))[1] for name in one.files}
        missing = sorted(set(range(1, one.n_parts + 1)) - here)
        raise ModelFileError(
            f"{place} has {len(one.files)} of the {one.n_parts} parts of {one.first}; "
            f"missing: {', '.join(map(str, missing[:10]))}"
        )
    return one


def _best(sets: Sequence[GgufSet]) -> Choice:
    """More bits are better, up to eight: beyond that answers do not change, and everything takes twice as long."""
    memory, where = memory_for_models()
    ranked = sorted(sets, key=lambda one: (_is_plain(one), -one.size, one.first))
    fitting = [one for one in ranked if one.size + one.size // 10 + _ROOM_FOR_CACHES <= memory]
    if fitting:
        chosen = fitting[0]
        why = f"the best of {len(sets)} that fits the {size_text(memory)} of memory that are free {where}"
    else:
        chosen = min(sets, key=lambda one: one.size)
        why = f"the smallest of {len(sets)}; none fits the {size_text(memory)} of memory that are free {where}"
    return Choice(chosen, f"{chosen.quantisation or chosen.first}: {why}")


def _is_plain(one: GgufSet) -> bool:
    return one.quantisation in (None, "F32", "F16", "BF16")


def _listed(sets: Sequence[GgufSet]) -> str:
    return ", ".join(sorted({one.quantisation or one.first for one in sets}))
