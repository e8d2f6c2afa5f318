"""A compiled constraint, and the states of the generations under it: masks, forced tokens, taking tokens back."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np

from ..errors import ConstraintError, ParameterError
from .closing_text import ClosingSearch, Hints
from .validation import fault_of_answer
from .vocabulary import Vocabulary, message

if TYPE_CHECKING:
    from llguidance import LLMatcher

__all__ = ["CompiledGrammar", "Matcher"]

_MAX_FORCED = 256  # tokens looked ahead


class CompiledGrammar:
    """A constraint ready for use with one vocabulary. Immutable, and safe to use from several threads."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        states: tuple[LLMatcher, LLMatcher],
        subject: str,
        hints: Hints,
        not_enforced: Sequence[str] = (),
        schema: str | None = None,
    ) -> None:
        """`states`: the first one, for the vocabulary and for bytes. Raises ConstraintError where it admits nothing."""
        self.not_enforced = tuple(not_enforced)
        """JSON pointers of the keywords that no mask enforces, such as "/properties/a/not"."""
        self._schema = schema
        self._vocabulary = vocabulary
        self._subject = subject
        self._lock = Lock()
        self._pristine, self._bytes = states
        self._hints = hints
        reason = ClosingSearch(vocabulary, self._bytes, hints, subject).nothing_found()
        if reason:
            raise ConstraintError(f"{subject}: {reason}")

    def matcher(self) -> Matcher:
        """A matcher in the initial state. Cheap."""
        with self._lock:
            return Matcher(self, self._pristine.deep_copy())

    def fault(self, text: str) -> str | None:
        """What a whole answer violates of the schema whose keywords were loosened, by `jsonschema`; None where that
        cannot be told, or nothing."""
        return None if self._schema is None else fault_of_answer(self._schema, text)

    def _closing(self, tokens: Sequence[int]) -> str:
        with self._lock:
            state = self._bytes.deep_copy()
        replay = self._vocabulary.bytewise(tokens)
        if state.try_consume_tokens(replay) != len(replay):
            raise ConstraintError(f"{self._subject}: what was said cannot be followed again ({state.get_error()})")
        closing = ClosingSearch(self._vocabulary, state, self._hints, self._subject).run()
        if closing is None:
            raise ConstraintError(f"{self._subject}: nothing short completes what was said")
        return closing


class Matcher:
    """The state of one generation under a constraint. For one thread at a time.

    What it allows depends on the tokens consumed and on nothing else, so drafts may be consumed and rolled back at
    will. Where the engine meets its limits, methods raise `ConstraintError`, and the matcher is of no further use.
    """

    mask_words: int
    """uint32 words of a mask: ceil(n_vocab / 32); bit t % 32 of word t // 32 is token t."""

    def __init__(self, grammar: CompiledGrammar, engine: LLMatcher) -> None:
        self._grammar = grammar
        self._engine = engine
        self._vocabulary = grammar._vocabulary
        self._stop = self._vocabulary.tokenizer.stop_token_ids
        self._tokens: list[int] = []
        self._ended = 0  # stop tokens consumed after the complete text; the engine does not see them
        # For each state up to the present one: the tokens that must follow, or None where that is not known yet.
        self._plans: list[list[int] | None] = [None]
        self.mask_words = self._vocabulary.mask_words
        self._buffer = self._vocabulary.mask_buffer()

    def forced(self, room: int) -> list[int]:
        """The tokens that must follow, at most `room`, in the tokenizer's own tokenisation.

        Text whose tokenisation depends on what comes after it is not forced, though its characters may be certain.
        """
        return self._plan()[: max(room, 0)]

    def fill_mask(self, address: int) -> None:
        """Write the mask of the next token to `address`: `mask_words` * 4 bytes, aligned to 4.

        Where tokens are forced, it holds the first of them alone. It holds the stop tokens where, and only where, the
        text is complete or the grammar itself has one there.
        """
        plan = self._plan()
        words = np.ctypeslib.as_array((ctypes.c_uint32 * self.mask_words).from_address(address))
        if plan or self._ended:
            words.fill(0)
            for token in plan[:1]:
                words[token // 32] = 1 << (token % 32)
        else:
            self._engine.unsafe_compute_mask_ptr(self._buffer.ctypes.data, self._buffer.nbytes)
            self._check()
            np.bitwise_and(self._buffer[: self.mask_words], self._vocabulary.own_tokens, out=words)
        if not plan and self.accepting:
            np.bitwise_or(words, self._vocabulary.stop_tokens, out=words)
        elif not words.any():
            raise ConstraintError(f"{self._grammar._subject}: nothing can follow what was said, which is not complete")

    def consume(self, token: int) -> bool:
        """Take a token; False, with the state as it was, where it is not allowed."""
        plan = self._plan()
        if not 0 <= token < self._vocabulary.tokenizer.n_vocab or (plan and token != plan[0]):
            return False
        if token in self._stop and (self._ended or self.accepting):
            self._ended += 1
        elif self._ended:
            return False
        elif self._engine.try_consume_tokens([token]) != 1:
            self._check()
            return False
        self._tokens.append(token)
        self._plans.append(plan[1:] or None)
        return True

    def rollback(self, n: int) -> None:
        """Take back the last `n` tokens."""
        if not 0 <= n <= len(self._tokens):
            raise ParameterError(f"cannot roll back {n} tokens: {len(self._tokens)} were consumed")
        if not n:
            return
        behind_end = min(n, self._ended)
        self._ended -= behind_end
        if n > behind_end:
            self._engine.rollback(n - behind_end)
            self._check()
        del self._tokens[-n:]
        del self._plans[-n:]

    @property
    def finished(self) -> bool:
        """The text is complete, and nothing can follow but the end of the answer."""
        return bool(self._ended) or (self.accepting and bool(self._engine.is_stopped()))

    @property
    def accepting(self) -> bool:
        """What was said so far is complete."""
        accepting = bool(self._engine.is_accepting())
        self._check()
        return accepting

    def closing_text(self) -> str:
        """A short text that completes what was said so far: what hit its limit becomes a valid value.

        It follows the last whole character: bytes at the end that are only part of one are to be dropped. Raises
        `ConstraintError` where none is found in a bounded search.
        """
        spoken = self._tokens[: len(self._tokens) - self._ended]
        return self._grammar._closing(spoken)

    def _plan(self) -> list[int]:
        """The forced tokens of the present state, found once and then used up one by one, so that they come the same
        whether they are asked for together or singly."""
        plan = self._plans[-1]
        if plan is None:
            plan = [] if self._ended else self._look_ahead()
            self._plans[-1] = plan
        return plan

    def _look_ahead(self) -> list[int]:
        plan: list[int] = []
        while len(plan) < _MAX_FORCED and not self._engine.is_accepting():
            more = self._engine.compute_ff_tokens()
            taken = self._engine.try_consume_tokens(more) if more else 0
            plan += more[:taken]
            if not taken or taken < len(more):
                break
        if plan:
            self._engine.rollback(len(plan))
        self._check()
        return plan

    def _check(self) -> None:
        if self._engine.is_error():
            raise ConstraintError(f"{self._grammar._subject}: {message(self._engine.get_error())}")
