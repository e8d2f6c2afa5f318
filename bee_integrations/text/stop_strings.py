"""Stop strings in a stream of text that arrives in arbitrary pieces."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from .beginnings import possible_beginning

__all__ = ["StopScan", "StopStrings"]


class StopScan(NamedTuple):
    """What one piece of text released."""

    text: str  # safe to show: no part of it can belong to a stop string
    stop_text: str | None  # the stop string that ended the text, if one did


class StopStrings:
    """Finds the first stop string and holds back text that may turn out to be the beginning of one.

    The stop string that is *complete* first wins; of several that end at the same character, the longest. This rule
    reads the text character by character, so the result does not depend on how the text was cut into pieces, which is
    what keeps the output the same whether one token or a block of them was accepted at a time.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        if any(not stop for stop in stops):
            raise ValueError("a stop string must not be empty")
        self._stops = tuple(stops)
        self._held = ""

    def push(self, text: str) -> StopScan:
        """Add a piece of text. After a match, what follows it is dropped and the object is empty again."""
        if not self._stops:
            return StopScan(text, None)
        pending = self._held + text
        match = self._first_match(pending)
        if match is not None:
            start, stop = match
            self._held = ""
            return StopScan(pending[:start], stop)
        keep = possible_beginning(pending, self._stops)
        self._held = pending[len(pending) - keep :]
        return StopScan(pending[: len(pending) - keep], None)

    def flush(self) -> str:
        """The text still held back, when no more will come."""
        held, self._held = self._held, ""
        return held

    def _first_match(self, text: str) -> tuple[int, str] | None:
        best: tuple[int, int, str] | None = None  # end, start, stop: the smallest wins
        for stop in self._stops:
            start = text.find(stop)
            if start >= 0 and (best is None or (start + len(stop), start) < best[:2]):
                best = (start + len(stop), start, stop)
        return None if best is None else (best[1], best[2])
