"""A short text that completes what was said under a grammar."""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from .vocabulary import Mask, Vocabulary, checked

if TYPE_CHECKING:
    from llguidance import LLMatcher

__all__ = ["ClosingSearch", "Hints", "ends_of_text"]

_MAX_CLOSING = 16_384  # bytes
_MAX_STEPS = 6_000  # of the search
_MAX_SECONDS = 2.0  # of processor time: a step of a large expression may take a hundredth of a second


@dataclass
class Hints:
    """What a search for a closing text may find useful."""

    text: str  # the sources of regular expressions
    examples: list[str] = field(default_factory=list)  # texts that match those that may match anywhere in a string
    ends: list[str] = field(default_factory=list)  # texts that may end a run of free text in a grammar


class ClosingSearch:
    """Looks for a short text that completes a state, over bytes, for a bounded number of steps and time.

    First along one path, which takes what closes something wherever it can: that ends nearly every JSON. Where it does
    not, level by level along many. States of a level that have the same mask and came by the same byte count as one,
    and of those that came by the same byte a run of it is kept.
    """

    _CLOSERS = b'}]", :0'
    _IN_STRING = b'"}], :0'
    _USUAL = b"@./-a"  # what the formats of strings ask for
    _SHORT_PATH = 1_000
    _LONG_PATH = 4_000
    _LEVEL_WIDTH = 32
    _FEW = 8  # possible bytes, where a text has ended
    _MANY = 64  # possible bytes, beyond which only those are tried that close something or that the grammar names

    def __init__(self, vocabulary: Vocabulary, state: LLMatcher, hints: Hints, subject: str) -> None:
        self._vocabulary = vocabulary
        self._start = state
        self._subject = subject
        self._deadline = time.thread_time() + _MAX_SECONDS
        self._passed_over = False  # something that may follow was not looked at
        self._first_byte = vocabulary.tokenizer.n_vocab
        self._words = vocabulary.mask_buffer(bytewise=True)
        self._control = np.array(vocabulary.control, dtype=np.int64)
        self._named = frozenset(hints.text.encode() + self._CLOSERS + self._USUAL)
        # Whatever was said, one of the ends of an example makes a string match that may match anywhere.
        spelled = [json.dumps(example, ensure_ascii=False)[1:-1].encode() for example in hints.examples]
        ends = {text[at:] for text in spelled for at in range(max(len(text) - 64, 0), len(text))}
        self._ends = [[self._first_byte + byte for byte in end] for end in sorted(ends, key=len)]

        # Free text ends with one of these, of which the beginning may have been said.
        tails = {text.encode()[at:] for text in hints.ends for at in range(len(text.encode()))}
        self._text_ends = [[self._first_byte + byte for byte in tail] for tail in sorted(tails, key=len)]

    def run(self) -> str | None:
        """The text, or None where none was found."""
        found = self._along_one_path(self._SHORT_PATH)
        if found is None:
            found = self._along_many_paths()
        if found is None:
            found = self._along_one_path(self._LONG_PATH)
        return None if found is None else self._vocabulary.spell(found)

    def nothing_found(self) -> str:
        """Why it is certain that no bearable text completes the state, since everything that may follow was looked at;
        "" where that is not certain."""
        if self._along_one_path(self._SHORT_PATH) is not None:
            return ""
        if self._forced_beyond(_MAX_CLOSING):
            return f"it admits no text of less than {_MAX_CLOSING:,} bytes"
        return "it admits nothing" if self._along_many_paths() is None and not self._passed_over else ""

    def _along_one_path(self, steps: int) -> list[int] | None:
        state = self._start.deep_copy()
        path: list[int] = []
        for _ in range(steps):
            if self._complete(state):
                return path
            step = self._end_of_text(state) or next(iter(self._next_steps(state)), None)
            if step is None or self._too_far(path) or state.try_consume_tokens(step) != len(step):
                self._check(state)
                return None
            path += step
        return None

    def _forced_beyond(self, length: int) -> bool:
        """Whether one single text of so many bytes may follow, and no shorter one."""
        state = self._start.deep_copy()
        forced = state.compute_ff_tokens()
        for _ in range(0 if forced else length):
            allowed = self._allowed(state)
            if (
                len(allowed) != 1
                or self._complete(state)
                or not state.try_consume_tokens([self._first_byte + allowed[0]])
            ):
                return False
        return not forced or len(forced) > length

    def _end_of_text(self, state: LLMatcher) -> list[int] | None:
        """Where nearly anything may follow: what would leave little choice."""
        if len(self._allowed(state)) <= self._MANY:
            return None
        for end in self._text_ends:
            taken = state.try_consume_tokens(end)
            ends = taken == len(end) and (self._complete(state) or len(self._allowed(state)) <= self._FEW)
            state.rollback(taken)
            if ends:
                return end
        return None

    def _allowed(self, state: LLMatcher) -> list[int]:
        """The bytes that may follow, and -1 for control tokens."""
        bits = np.unpackbits(self._mask(state).view(np.uint8), bitorder="little")
        found: list[int] = np.flatnonzero(bits[self._first_byte : self._first_byte + 256]).tolist()
        return [*found, *([-1] if bits[self._control].any() else [])]

    def _along_many_paths(self) -> list[int] | None:
        level: list[tuple[LLMatcher, list[int]]] = [(self._start.deep_copy(), [])]
        known_masks: set[bytes] = set()
        steps = 0
        while level:
            tries = [(state, path, step) for state, path in level for step in [*self._next_steps(state), *self._ends]]
            tries.sort(key=lambda attempt: attempt[1][-1:] != attempt[2])
            found: dict[tuple[bytes, tuple[int, ...]], tuple[LLMatcher, list[int], list[int]]] = {}
            for state, path, step in tries:
                steps += 1
                if steps > _MAX_STEPS or self._too_far([*path, *step]):
                    self._passed_over = True
                    return None
                taken = state.try_consume_tokens(step)
                self._check(state)
                if taken == len(step):
                    if self._complete(state):
                        return path + step
                    look = (self._mask(state).tobytes(), tuple(step))
                    self._passed_over |= look in found
                    found.setdefault(look, (state, path, step))
                state.rollback(taken)
            # What looks new comes first: it is where something has moved on.
            new_first = sorted(found, key=lambda look: look[0] in known_masks)
            self._passed_over |= len(new_first) > self._LEVEL_WIDTH
            del new_first[self._LEVEL_WIDTH :]
            known_masks.update(mask for mask, _ in found)
            level = [self._stepped(*found[look]) for look in new_first]
        return None

    def _stepped(self, state: LLMatcher, path: list[int], step: list[int]) -> tuple[LLMatcher, list[int]]:
        copy = state.deep_copy()
        copy.try_consume_tokens(step)
        return copy, path + step

    def _next_steps(self, state: LLMatcher) -> list[list[int]]:
        """What may follow, the most promising first."""
        forced = state.compute_ff_tokens()
        self._check(state)
        if forced:
            return [forced]
        bits = np.unpackbits(self._mask(state).view(np.uint8), bitorder="little")
        allowed = np.flatnonzero(bits[self._first_byte : self._first_byte + 256]).tolist()
        if len(allowed) > self._MANY:
            self._passed_over = True
            allowed = [byte for byte in allowed if byte in self._named]
        order = self._CLOSERS
        if len(allowed) > 8 and ord(".") in allowed:  # within a string, which is filled with dots if it may not end yet
            order = self._IN_STRING if ord('"') in allowed else b"." + self._IN_STRING
        steps = sorted(allowed, key=lambda byte: order.find(byte) if byte in order else byte + 99)
        control = self._control[bits[self._control] != 0].tolist()
        self._passed_over |= len(control) > 1
        return [[self._first_byte + byte] for byte in steps] + [[token] for token in control[:1]]

    def _too_far(self, path: list[int]) -> bool:
        return len(path) > _MAX_CLOSING or time.thread_time() > self._deadline

    def _mask(self, state: LLMatcher) -> Mask:
        state.unsafe_compute_mask_ptr(self._words.ctypes.data, self._words.nbytes)
        self._check(state)
        return self._words

    def _complete(self, state: LLMatcher) -> bool:
        complete = bool(state.is_accepting())
        self._check(state)
        return complete

    def _check(self, state: LLMatcher) -> None:
        checked((state, state.get_error() if state.is_error() else ""), self._subject)


def ends_of_text(lark: str) -> list[str]:
    """The literal texts of a grammar, and those at the ends of its regular expressions."""
    strings = [json.loads(match) for match in re.findall(r'"(?:[^"\\\n]|\\["\\/bfnrt]|\\u[0-9a-fA-F]{4})+"', lark)]
    tails = re.findall(r"((?:\\.|[^\\/()\[\]{}|*+?.^$\n])+)/", lark)
    plain = [re.sub(r"\\(.)", lambda match: {"n": "\n", "t": "\t"}.get(match[1], match[1]), tail) for tail in tails]
    return sorted({text for text in (*strings, *plain) if len(text) <= 64}, key=len)[:64]
