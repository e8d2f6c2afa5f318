"""The `tokenizer.ggml.*` keys of a GGUF file, read with typed errors: a value may be of any type and size there."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import Any

import numpy as np

from ..errors import ModelFormatError

__all__ = [
    "Kind",
    "byte_of",
    "flag",
    "ids_by_text",
    "merges",
    "quoted",
    "scores",
    "special_id",
    "text",
    "token_kinds",
    "token_texts",
]


class Kind(IntEnum):
    """GGUF's `tokenizer.ggml.token_type`."""

    UNDEFINED = 0
    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


def text(metadata: Mapping[str, Any], name: str) -> str:
    """A text that the file must have."""
    value = _required(metadata, name)
    if not isinstance(value, str):
        raise _wrong(name, value, "a text")
    return value


def flag(metadata: Mapping[str, Any], name: str, default: bool) -> bool:
    """True or false; `default` where the file does not say."""
    value = metadata.get(f"tokenizer.ggml.{name}")
    if value is None:
        return default
    if not isinstance(value, bool):
        raise _wrong(name, value, "true or false")
    return value


def special_id(metadata: Mapping[str, Any], name: str, n_vocab: int, default: int | None = None) -> int | None:
    """A token id; `default` where the file names none. Ids outside the vocabulary count as none: some converters write
    -1 for it, as an unsigned number."""
    value = metadata.get(f"tokenizer.ggml.{name}")
    if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
        raise _wrong(name, value, "a token id")
    for token in (value, default):
        if token is not None and 0 <= token < n_vocab:
            return token
    return None


def token_texts(metadata: Mapping[str, Any]) -> list[str]:
    """The tokens as the vocabulary spells them; those without a text get one of their own, as in llama.cpp."""
    texts = _strings(metadata, "tokens")
    if not texts:
        raise ModelFormatError("tokenizer.ggml.tokens is empty; a vocabulary has at least one token")
    return [spelling if spelling else f"[EMPTY_{token}]" for token, spelling in enumerate(texts)]


def ids_by_text(texts: Sequence[str]) -> dict[str, int]:
    """Token ids by spelling, which must be different for all."""
    ids = {spelling: token for token, spelling in enumerate(texts)}
    if len(ids) < len(texts):
        later = next(token for token, spelling in enumerate(texts) if ids[spelling] != token)
        raise ModelFormatError(
            f"tokenizer.ggml.tokens has {quoted(texts[later])} twice, as tokens {later} and {ids[texts[later]]}"
        )
    return ids


def token_kinds(metadata: Mapping[str, Any], texts: Sequence[str]) -> list[Kind]:
    """The kind of each token; unknown numbers mean UNDEFINED. Byte tokens are spelled like bytes."""
    if metadata.get("tokenizer.ggml.token_type") is None:
        return [Kind.NORMAL] * len(texts)
    values = _numbers(metadata, "token_type", len(texts), "iu", "integers")
    known = {int(kind): kind for kind in Kind}
    kinds = [known.get(value, Kind.UNDEFINED) for value in values.tolist()]
    for token, kind in enumerate(kinds):
        if kind is Kind.BYTE and byte_of(texts[token]) is None:
            raise ModelFormatError(
                f"tokenizer.ggml.token_type says that token {token}, {quoted(texts[token])}, is a byte token; those "
                "are spelled like <0x0A>"
            )
    return kinds


def scores(metadata: Mapping[str, Any], texts: Sequence[str], kinds: Sequence[Kind]) -> list[float]:
    """The score of each token. They decide what is merged first, so they must be there and have an order."""
    values = _numbers(metadata, "scores", len(texts), "fiu", "numbers")
    unordered = np.flatnonzero(~np.isfinite(values))
    if unordered.size:
        raise ModelFormatError(
            f"tokenizer.ggml.scores[{unordered[0]}] is {values[unordered[0]]}, expected a number: scores decide what "
            "is merged first"
        )
    merged = [token for token, kind in enumerate(kinds) if kind is Kind.NORMAL and len(texts[token]) > 1]
    if len(merged) > 1 and np.ptp(values[merged]) == 0:
        raise ModelFormatError(
            f"tokenizer.ggml.scores is {values[merged[0]]} for all tokens, expected different numbers: they decide "
            "what is merged first"
        )
    return [float(value) for value in values]


def merges(metadata: Mapping[str, Any], ids: Mapping[str, int]) -> list[tuple[str, str]]:
    """The pairs of tokens that become one, first come first."""
    pairs: dict[tuple[str, str], None] = {}  # of a pair that occurs twice, the first rank counts
    for rank, merge in enumerate(_strings(metadata, "merges")):
        at = merge.find(" ", 1)
        left, right = merge[:at], merge[at + 1 :]
        if at < 0 or left not in ids or right not in ids or left + right not in ids:
            raise ModelFormatError(
                f"tokenizer.ggml.merges[{rank}] is {quoted(merge)}, expected two tokens separated by a space whose "
                "concatenation is a token"
            )
        pairs[(left, right)] = None
    return list(pairs)


def byte_of(spelling: str) -> int | None:
    """The byte that a byte token stands for, or None where it is not spelled like one."""
    return int(spelling[3:5], 16) if re.fullmatch(r"<0x[0-9A-Fa-f]{2}>", spelling) else None


def quoted(spelling: str) -> str:
    """A text of the file for a message: of any length there, short here."""
    return repr(spelling) if len(spelling) <= 60 else f"{spelling[:60]!r}... ({len(spelling)} characters)"


def _required(metadata: Mapping[str, Any], name: str) -> Any:
    value = metadata.get(f"tokenizer.ggml.{name}")
    if value is None:
        raise ModelFormatError(f"the file has no tokenizer.ggml.{name}, so its text cannot be read")
    return value


def _strings(metadata: Mapping[str, Any], name: str) -> list[str]:
    value = _required(metadata, name)
    # An array without elements has no telling type.
    if not isinstance(value, list) and not (isinstance(value, np.ndarray) and not value.size):
        raise _wrong(name, value, "an array of strings")
    return list(value)


def _numbers(metadata: Mapping[str, Any], name: str, count: int, kinds: str, expected: str) -> np.ndarray[Any, Any]:
    value = _required(metadata, name)
    if not isinstance(value, (list, np.ndarray)):
        raise _wrong(name, value, f"an array of {expected}")
    values = np.asarray(value)
    if len(values) and values.dtype.kind not in kinds:
        raise _wrong(name, value, f"an array of {expected}")
    if len(values) != count:
        raise ModelFormatError(f"tokenizer.ggml.{name} has {len(values)} entries for {count} tokens")
    return values


def _wrong(name: str, value: object, expected: str) -> ModelFormatError:
    if isinstance(value, (bool, int, float)):
        found = repr(value)
    elif isinstance(value, str):
        found = f"the text {quoted(value)}"
    elif isinstance(value, np.ndarray):
        found = f"an array of {value.dtype}"
    else:
        found = "an array of strings"
    return ModelFormatError(f"tokenizer.ggml.{name} is {found}, expected {expected}")
