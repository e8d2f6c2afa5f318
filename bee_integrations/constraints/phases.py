"""Which tokens may follow, token by token: grammars that hold from the start, grammars that a trigger starts, and
thinking that must come to an end. The Python side of `bee_constraint` (libbee/include/bee.h).

A request goes through phases. In a `_Bound` phase a grammar's masks decide, until nothing can follow in it; in a
`_Watch` phase any token may come, until a text that is watched for is complete; a `_Free` phase never ends. `_phases`
says which phase follows which. What is decided depends on committed tokens alone, so the output does not depend on
speculation: tokens that were chosen behind the one with which a `_Bound` phase begins are void.

The text that is watched for may be complete in the middle of a token (as in "<tool_call>{"). Such a token is void,
too: what it said up to the end of that text is demanded of the grammar, which allows the same token where its rest
fits.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np

from ..chat.reasoning import LoopGuard, ReasoningSpan, ThinkingBudget
from ..errors import ConstraintError
from ..library import ffi, lib
from ..text.beginnings import possible_beginning
from ..text.tokenizer import Tokenizer
from ..tools.tool_format import Trigger
from .compiler import CompiledGrammar, GrammarCompiler, Matcher
from .vocabulary import Mask

__all__ = ["AnswerPhases", "LazyGrammar", "RunningPhases", "Thinking"]

_FREE, _REFUSED, _MASKED, _COMPLETE, _WATCHING, _FAILED = (
    int(lib.BEE_CONSTRAINT_FREE),
    int(lib.BEE_CONSTRAINT_REFUSED),
    int(lib.BEE_CONSTRAINT_MASKED),
    int(lib.BEE_CONSTRAINT_COMPLETE),
    int(lib.BEE_CONSTRAINT_WATCHING),
    int(lib.BEE_CONSTRAINT_FAILED),
)


@dataclass(frozen=True)
class LazyGrammar:
    """A grammar that a text in the answer starts. The answer ends with it."""

    triggers: tuple[Trigger, ...]
    rules: str  # Lark, with the rules that follow the triggers
    ends_thinking: bool = False  # a trigger in the middle of thinking counts, too, unless it is bound to the beginning

    @property
    def in_thinking(self) -> tuple[Trigger, ...]:
        """The triggers that count in the middle of thinking."""
        return tuple(one for one in self.triggers if not one.at_start) if self.ends_thinking else ()


@dataclass(frozen=True)
class Thinking:
    """A span before the answer in which no grammar holds."""

    span: ReasoningSpan
    opened: bool  # the prompt ends inside the span; otherwise the answer may begin it
    demanded: bool = False  # the answer begins with it: the grammar that follows would not allow it later
    budget: int | None = None  # tokens after which it is ended; None: as long as it takes
    guard: bool = True  # it is ended where it repeats itself


@dataclass(frozen=True)
class AnswerPhases:
    """The phases of an answer: thinking, then a grammar for the whole answer, or one that lies in wait, or neither."""

    grammar: CompiledGrammar | None = None
    lazy: LazyGrammar | None = None
    thinking: Thinking | None = None
    markers: frozenset[str] = frozenset()  # control tokens that the text spells, for who reads it

    @property
    def limits(self) -> bool:
        """Whether anything limits what the answer may say."""
        return not (self.grammar is None and self.lazy is None and self.thinking is None)


SteeringPlan = AnswerPhases  # its earlier name


# ---- phases ----------------------------------------------------------------------------------------------------------


class _Bound:
    """A grammar decides, until nothing can follow in it."""

    def __init__(self, grammar: CompiledGrammar) -> None:
        self._grammar = grammar
        self.matcher: Matcher = grammar.matcher()
        self._said: list[int] = []  # committed tokens of this phase
        self._drafts: list[int] = []  # that the matcher has consumed since

    def forced(self, room: int) -> list[int]:
        self._roll_back(0)
        return self.matcher.forced(room) if room else []

    def advance(self, draft: int, mask: int) -> int:
        """As in `bee_constraint`, over a draft. One behind which the grammar engine meets its limits is refused: should
        the model choose it, the request ends there, as it would have without drafts."""
        try:
            if not self.matcher.consume(draft):
                return _REFUSED
            found = self.mask(mask)
        except ConstraintError:
            self._begin_anew(*self._said, *self._drafts)
            return _REFUSED
        self._drafts.append(draft)
        return found

    def mask(self, mask: int) -> int:
        """The mask of the token that follows, written to an address, or FREE where the grammar has ended."""
        if self.matcher.finished:
            return _FREE
        self.matcher.fill_mask(mask)
        return _MASKED

    def follow(self, tokens: Sequence[int]) -> tuple[int, bool]:
        agreed = 0
        while agreed < min(len(self._drafts), len(tokens)) and self._drafts[agreed] == tokens[agreed]:
            agreed += 1
        self._roll_back(agreed)
        self._drafts.clear()
        while agreed < len(tokens) and not self.matcher.finished:
            try:
                allowed = self.matcher.consume(tokens[agreed])
            except ConstraintError:
                # The tokens before it stay, as they would without drafts: they may end the answer by a stop string.
                if agreed == 0:
                    raise
                self._begin_anew(*self._said, *tokens[:agreed])
                break
            if not allowed:
                raise AssertionError(f"token {tokens[agreed]} was chosen against its mask")
            agreed += 1
        self._said += tokens[:agreed]
        return agreed, self.matcher.finished

    def _begin_anew(self, *tokens: int) -> None:
        """After an error the matcher is of no further use."""
        self.matcher = self._grammar.matcher()
        for token in tokens:
            self.matcher.consume(token)

    def _roll_back(self, kept: int) -> None:
        if len(self._drafts) > kept:
            self.matcher.rollback(len(self._drafts) - kept)
            del self._drafts[kept:]


class _Watch:
    """Any token may come, until one of the texts is complete, none can begin any more (those that count at the answer's
    beginning alone), or the budget is used up.

    Where the phase is `demanded`, the answer cannot end before it: instead of a stop token comes what is missing of the
    first text.
    """

    def __init__(
        self, *sought: Trigger, tokenizer: Tokenizer, said: bytes = b"", demanded: bool = False,
        budget: ThinkingBudget | None = None,
    ) -> None:  # fmt: skip
        self._texts = [trigger.text.encode() for trigger in sought]
        self._sought = sought
        self._tokenizer = tokenizer
        self._at_start = any(trigger.at_start for trigger in sought)  # one of those may yet come
        self._budget = budget
        self.demanded = demanded
        self.said = said  # with `_at_start` all of the answer, otherwise its end, as far as a text may begin there
        self.found: Trigger | None = None
        self.missing = ""  # what is still to be said of the text that was found, when the phase is over

    def follow(self, tokens: Sequence[int]) -> tuple[int, bool]:
        for used, token in enumerate(tokens):
            data = self.said + self._tokenizer.spoken_bytes(token)
            if self._find(data):
                return (used if self.missing else used + 1), True
            if self._at_start and not self._may_begin(data):
                self._at_start = False
                if all(trigger.at_start for trigger in self._sought):
                    return used, True
            self.said = data if self._at_start else data[len(data) - possible_beginning(data, self._lasting) :]
            spent = self._budget is not None and self._budget.push((token,)) is not None
            if spent and self._rest_is_whole():
                self.close()
                return used + 1, True
        return len(tokens), False

    @property
    def is_idle(self) -> bool:
        """Whether only a token that begins a text can change anything."""
        return not (self.said or self._at_start or self._budget)

    def close(self) -> None:
        """End the phase: the rest of the first text is to be said now."""
        self.found = self._sought[0]
        self.missing = self._rest_of_first().decode(errors="ignore")

    def _rest_of_first(self) -> bytes:
        return self._texts[0][possible_beginning(self.said, self._texts[:1]) :]

    def _rest_is_whole(self) -> bool:
        return not self._rest_of_first().decode(errors="replace").startswith("\N{REPLACEMENT CHARACTER}")

    @property
    def _lasting(self) -> list[bytes]:
        """The texts that count anywhere."""
        return [text for text, trigger in zip(self._texts, self._sought, strict=True) if not trigger.at_start]

    def _find(self, data: bytes) -> bool:
        """The text that is complete first counts; of several that end there, the longest."""
        best: tuple[int, int] | None = None
        for text, trigger in zip(self._texts, self._sought, strict=True):
            at = data.find(text)
            counts = at >= 0 and (not trigger.at_start or (self._at_start and not data[:at].strip()))
            if counts and (best is None or (at + len(text), at) < best):
                best, self.found = (at + len(text), at), trigger
        if best is None:
            return False
        end = best[0]
        # Text before it in the same token is said again, as far as it is whole characters.
        self.missing = "" if end == len(data) else data[len(self.said) : end].decode(errors="ignore")
        return True

    def _may_begin(self, data: bytes) -> bool:
        bare = data.lstrip()
        return any(
            text.startswith(bare[: len(text)])
            for text, trigger in zip(self._texts, self._sought, strict=True)
            if trigger.at_start
        )


class _Free:
    """Any token may come."""

    def follow(self, tokens: Sequence[int]) -> tuple[int, bool]:
        return len(tokens), False


_Phase = _Bound | _Watch | _Free


# ---- a request -------------------------------------------------------------------------------------------------------


class RunningPhases:
    """One answer on its way through its phases. `begin`, `advance` and `commit` run on the scheduler's thread, one at a
    time."""

    def __init__(self, plan: AnswerPhases, compiler: GrammarCompiler, tokenizer: Tokenizer) -> None:
        """Raises ConstraintError where a grammar of the plan cannot be compiled."""
        self._compiler = compiler
        self._tokenizer = tokenizer
        self._watched = self._tokens_of_interest(plan.lazy)
        self._thinks = False
        self._n_tokens = 0  # that were committed so far; exact until the thinking is over
        self._n_before_thinking = 0
        self._n_thought = 0  # of the thinking so far, its end included
        self.answer_is_bound = False
        """What follows the committed tokens is held to all of the answer's grammar, or to that of its calls."""
        loosened = list(plan.grammar.not_enforced) if plan.grammar is not None else []
        if plan.lazy is not None:  # compiled by the thread that makes the request, not by the one that runs all of them
            for trigger in plan.lazy.triggers:
                for missing in ("", trigger.text):
                    loosened += self._rest_of_answer(plan.lazy, trigger, missing).not_enforced
        self.not_enforced = tuple(dict.fromkeys(loosened))
        """JSON pointers of keywords that no grammar of this request enforces."""
        self._following = self._phases(plan)
        self._phase: _Phase | None = None  # None: the answer is complete
        self._enter_next()
        self.error: BaseException | None = None  # why a callback failed
        self.seconds = 0.0  # spent in callbacks
        self.answering = _Answering(self)
        self._handle = ffi.new_handle(self)

    def c_struct(self) -> Any:
        """A `bee_constraint *`; keep this object and the pointer until the request has ended."""
        watched = ffi.NULL if self._watched is None else ffi.from_buffer("uint32_t[]", self._watched)
        return ffi.new("bee_constraint *", {**_CALLBACKS, "user": self._handle, "watched": watched})

    def reasoning_tokens(self, n_tokens: int) -> int:
        """How many of the first tokens of the answer are thinking, its end included. A stop string may end the answer
        before the last token that was committed."""
        return max(0, min(self._n_thought, n_tokens - self._n_before_thinking))

    def closing_text(self) -> str:
        """What completes an answer that was cut off under its grammar, or in thinking before it; "" where nothing is to
        be completed. Asked last of all. Raises ConstraintError where no short end is found."""
        text = ""
        while True:
            phase = self._phase
            if isinstance(phase, _Bound):
                text += "" if phase.matcher.accepting else phase.matcher.closing_text()
            elif isinstance(phase, _Watch) and phase.demanded:
                phase.close()
            else:
                return text
            self._phase = next(self._following, None)

    # ---- what follows what -------------------------------------------------------------------------------------------

    def _phases(self, plan: AnswerPhases) -> Generator[_Phase, None, None]:
        said, call = b"", None
        if plan.thinking is not None:
            said, call = yield from self._thinking(plan.thinking, plan.lazy, demanded=plan.grammar is not None)
        if plan.grammar is not None:
            self.answer_is_bound = not self.not_enforced
            yield _Bound(plan.grammar)
            return
        if plan.lazy is not None:
            if call is None:
                call = _Watch(*plan.lazy.triggers, tokenizer=self._tokenizer, said=said)
                yield call
            if call.found is not None:
                self.answer_is_bound = not self.not_enforced
                yield _Bound(self._rest_of_answer(plan.lazy, call.found, call.missing))
                return
        yield _Free()

    def _thinking(
        self, thinking: Thinking, lazy: LazyGrammar | None, *, demanded: bool
    ) -> Generator[_Phase, None, tuple[bytes, _Watch | None]]:
        """Returns what the answer began with instead, or the watch that found a call in the middle of it. Where the end
        is `demanded`, the answer cannot end before it."""
        if thinking.demanded and not thinking.opened:
            yield self._demand(thinking.span.begin)
        elif not thinking.opened:
            begin = _Watch(Trigger(thinking.span.begin.strip(), at_start=True), tokenizer=self._tokenizer)
            yield begin
            if begin.found is None:
                return begin.said, None
            yield from self._say_missing(begin)
        budget = ThinkingBudget(thinking.budget, LoopGuard() if thinking.guard else None)
        calls = () if lazy is None else lazy.in_thinking
        end_text = Trigger(thinking.span.end)
        end = _Watch(end_text, *calls, tokenizer=self._tokenizer, demanded=demanded, budget=budget)
        self._thinks = True
        self._n_before_thinking = self._n_tokens
        if thinking.budget == 0:
            end.close()
        else:
            yield end
        if end.found is not end_text:
            self._thinks = False
            return b"", end
        yield from self._say_missing(end)
        self._thinks = False
        return b"", None

    def _rest_of_answer(self, lazy: LazyGrammar, trigger: Trigger, missing: str) -> CompiledGrammar:
        first = f"{self._compiler.literal(missing)} " if missing else ""
        return self._compiler.compile_rules(f"start: {first}{trigger.rule}\n{lazy.rules}")

    def _tokens_of_interest(self, lazy: LazyGrammar | None) -> Mask | None:
        """Those with which a text that is watched for may begin, where nothing else is of interest."""
        texts = [trigger.text for trigger in lazy.triggers if not trigger.at_start] if lazy is not None else []
        masks = [self._compiler.tokens_that_begin(text) for text in texts]
        return np.bitwise_or.reduce(masks) if masks else None

    def _say_missing(self, watch: _Watch) -> Generator[_Phase, None, None]:
        if watch.missing:
            yield self._demand(watch.missing)

    def _demand(self, text: str) -> _Bound:
        return _Bound(self._compiler.compile_rules(f"start: {self._compiler.literal(text)}"))

    def _enter_next(self) -> None:
        self._phase = next(self._following, None)
        while isinstance(self._phase, _Bound) and self._phase.matcher.finished:
            self._phase = next(self._following, None)

    @property
    def next_cycle(self) -> int:
        """What libbee need not ask or tell in the next cycle, as `bee_constraint` has it."""
        if isinstance(self._phase, _Bound):
            return _MASKED
        idle = self._watched is not None and isinstance(self._phase, _Watch) and self._phase.is_idle
        return _WATCHING if idle else _FREE

    # ---- what libbee asks --------------------------------------------------------------------------------------------

    def begin(self, room: int) -> list[int] | None:
        """Tokens that are certain to follow, at most `room`; None where any token may."""
        return self._phase.forced(room) if isinstance(self._phase, _Bound) else None

    def advance(self, draft: int, mask: int) -> int:
        """As in `bee_constraint`; `mask` is an address."""
        assert isinstance(self._phase, _Bound)
        if draft < 0:
            return self._phase.mask(mask)
        return _REFUSED if draft in self._tokenizer.stop_token_ids else self._phase.advance(draft, mask)

    def commit(self, tokens: Sequence[int]) -> tuple[int, bool]:
        """How many of the tokens stay, and whether the answer is complete with them."""
        stops = self._tokenizer.stop_token_ids
        end = next((index for index, token in enumerate(tokens) if token in stops), len(tokens))
        kept = 0
        while kept < end and self._phase is not None:
            used, over = self._phase.follow(tokens[kept:end])
            kept += used
            self._n_tokens += used
            self._n_thought += used if self._thinks else 0
            if over:
                self._enter_next()
                if isinstance(self._phase, _Bound):
                    return kept, False
            elif kept < end:
                return kept, False
        if self._phase is None:
            return kept, True
        if end < len(tokens) and isinstance(self._phase, _Watch) and self._phase.demanded:
            self._phase.close()
            self._enter_next()
            return kept, False
        return len(tokens), False


# ---- callbacks -------------------------------------------------------------------------------------------------------


class _Answering:
    """Around what a callback does: nothing that is raised may pass through C, and its time counts."""

    def __init__(self, phases: RunningPhases) -> None:
        self._phases = weakref.proxy(phases)
        self._start = 0.0

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        self._phases.seconds += time.perf_counter() - self._start
        if error is not None:
            self._phases.error = error
        return True


@ffi.callback("int32_t(void *, int32_t *, int32_t)")  # type: ignore[untyped-decorator]
def _begin(user: Any, forced: Any, room: int) -> int:
    phases: RunningPhases = ffi.from_handle(user)
    with phases.answering:
        tokens = phases.begin(room)
        if tokens is None:
            return _FREE
        forced[0 : len(tokens)] = tokens
        return len(tokens)
    return _FAILED


@ffi.callback("int32_t(void *, int32_t, uint32_t *)")  # type: ignore[untyped-decorator]
def _advance(user: Any, draft: int, mask: Any) -> int:
    phases: RunningPhases = ffi.from_handle(user)
    with phases.answering:
        return phases.advance(draft, int(ffi.cast("uintptr_t", mask)))
    return _FAILED


@ffi.callback("int32_t(void *, int32_t *, int32_t, int32_t *)")  # type: ignore[untyped-decorator]
def _commit(user: Any, tokens: Any, n_tokens: int, following: Any) -> int:
    phases: RunningPhases = ffi.from_handle(user)
    with phases.answering:
        kept, complete = phases.commit(ffi.unpack(tokens, n_tokens))
        following[0] = _COMPLETE if complete else phases.next_cycle
        return kept
    return _FAILED


_CALLBACKS = {"begin": _begin, "advance": _advance, "commit": _commit}
