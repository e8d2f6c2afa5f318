"""What a stream of text must hold back: its end, where something that is looked for may begin."""

from __future__ import annotations

from collections.abc import Collection
from typing import AnyStr

__all__ = ["possible_beginning"]


def possible_beginning(text: AnyStr, sought: Collection[AnyStr]) -> int:
    """Length of the longest end of `text` with which one of `sought` begins, and does not end yet."""
    longest = max(map(len, sought), default=1) - 1
    for length in range(min(longest, len(text)), 0, -1):
        if any(one.startswith(text[len(text) - length :]) and len(one) > length for one in sought):
            return length
    return 0
