"""Values from users: converted where that is harmless, refused with the range where it is not."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .errors import ParameterError

__all__ = ["INT32_MAX", "boolean", "control_texts", "integer", "logit_bias", "real", "stop_strings", "token_ids"]

INT32_MAX = 2**31 - 1


def boolean(name: str, value: Any) -> bool:
    if not isinstance(value, (bool, np.bool_)):
        raise ParameterError(f"{name} is {value!r}; it must be True or False")
    return bool(value)


def integer(name: str, value: Any, low: int, high: int, *, note: str = "") -> int:
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool):
        raise ParameterError(f"{name} is {value!r}; it must be a whole number from {low} to {high}{note}")
    if not low <= number <= high:
        raise ParameterError(f"{name} is {number}; it must lie between {low} and {high}{note}")
    return number


def real(name: str, value: Any, low: float, high: float, *, open_low: bool = False, note: str = "") -> float:
    begin = "above" if open_low else "at least"
    expected = f"it must be a number {begin} {low:g} and at most {high:g}{note}"
    try:
        if isinstance(value, (bool, str, bytes)):
            raise TypeError
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise ParameterError(f"{name} is {value!r}; {expected}") from None
    # The library computes in float32, in which a tiny value may be 0.
    if not math.isfinite(number) or not low <= number <= high or (open_low and np.float32(number) <= low):
        raise ParameterError(f"{name} is {value!r}; {expected}")
    return number


def stop_strings(stop: Any) -> tuple[str, ...]:
    strings = (stop,) if isinstance(stop, str) else tuple(stop or ())
    for string in strings:
        if not isinstance(string, str) or not string:
            raise ParameterError(f"stop has {string!r} in it; its members must be non-empty strings")
        try:
            string.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ParameterError(
                f"the stop string {string!r} has a lone surrogate at {error.start}; it can never match"
            ) from None
    return strings


def control_texts(texts: Any) -> frozenset[str]:
    if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
        raise ParameterError(f"markers is {texts!r}; it must be a set of the control tokens' texts")
    return frozenset(texts)


def logit_bias(bias: Any) -> dict[int, float]:
    if not isinstance(bias, Mapping):
        raise ParameterError(f"logit_bias is a {type(bias).__name__}; it must be a mapping from token ids to numbers")
    # JSON has no numbers for keys.
    ids = [int(token) if isinstance(token, str) and token.isdecimal() else token for token in bias]
    if len(set(ids)) < len(ids):
        twice = next(token for token in ids if ids.count(token) > 1)
        raise ParameterError(f"logit_bias has token {twice} twice; give it once")
    return {
        integer("a token of logit_bias", token, 0, INT32_MAX): real(f"logit_bias[{token}]", value, -1000.0, 1000.0)
        for token, value in zip(ids, bias.values(), strict=True)
    }


def token_ids(tokens: Sequence[int]) -> list[int]:
    try:
        if isinstance(tokens, (bytes, bytearray)):
            raise TypeError("bytes are neither text nor tokens")
        return [operator.index(token) for token in tokens]
    except TypeError as error:
        raise ParameterError(f"the prompt must be a string or a sequence of token ids: {error}") from None
