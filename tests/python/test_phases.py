"""Phases of an answer by hand, without an engine: whatever the cut of the tokens into blocks, and whatever is drafted,
the same tokens stay, chosen under the same masks, as one token at a time."""

from __future__ import annotations

import importlib
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from bee_integrations.chat.reasoning import ReasoningSpan
from bee_integrations.constraints import Choice, Grammar, GrammarCompiler, JsonSchema, Regex
from bee_integrations.constraints.phases import AnswerPhases, LazyGrammar, RunningPhases, Thinking
from bee_integrations.engine import Engine
from bee_integrations.errors import ConstraintError
from bee_integrations.library import ffi, lib
from bee_integrations.models.file import ModelFile
from bee_integrations.text.tokenizer import Tokenizer
from bee_integrations.tools.tool_format import Trigger

FREE, REFUSED, MASKED, COMPLETE, WATCHING, FAILED = (
    int(lib.BEE_CONSTRAINT_FREE),
    int(lib.BEE_CONSTRAINT_REFUSED),
    int(lib.BEE_CONSTRAINT_MASKED),
    int(lib.BEE_CONSTRAINT_COMPLETE),
    int(lib.BEE_CONSTRAINT_WATCHING),
    int(lib.BEE_CONSTRAINT_FAILED),
)
LIMIT = 100
THINK = ReasoningSpan("<think>", "</think>")
WORD = LazyGrammar((Trigger("<tool_call>", "rest"),), 'rest: "\\"" /[a-c]{2,4}/ "\\" is what was asked for"')
COLOUR = LazyGrammar((Trigger("call:", "rest"),), 'rest: " " ("red" | "green") " is a colour."')
EITHER = LazyGrammar(
    (Trigger("<tool_call>", "word"), Trigger("<function=", "colour"), Trigger("{", "colour", at_start=True)),
    'word: "\\"" /[a-c]{2,4}/ "\\" is what was asked for"\ncolour: " " ("red" | "green") " is a colour."',
    ends_thinking=True,
)
AT_START = replace(COLOUR, triggers=(Trigger("call:", "rest", at_start=True),))
WORDS, COLOURS = r'"[a-c]{2,4}" is what was asked for', r" (red|green) is a colour\."

Draft = Callable[[list[int]], list[int]]


@dataclass
class Desk:
    """A vocabulary, and what grammars are compiled with."""

    tokenizer: Tokenizer
    compiler: GrammarCompiler

    @property
    def stop(self) -> int:
        return min(self.tokenizer.stop_token_ids)

    def phases(self, plan: AnswerPhases) -> RunningPhases:
        return RunningPhases(plan, self.compiler, self.tokenizer)

    def pieces(self, *texts: str) -> list[int]:
        """Tokens that are spelled so, one each."""
        tokens = []
        for text in texts:
            found = self.tokenizer.encode(text, add_special=False)
            assert len(found) == 1, f"{text!r} is not one token"
            tokens += found
        return tokens

    def text(self, tokens: Sequence[int]) -> str:
        return self.tokenizer.decode([token for token in tokens if token not in self.tokenizer.stop_token_ids])

    def speaker(self, script: Sequence[int], seed: int = 0) -> Speaker:
        return Speaker(list(script), seed, self.tokenizer)


@pytest.fixture(scope="module")
def desk(model_path: Path) -> Desk:
    with ModelFile(model_path) as file:
        tokenizer = Tokenizer.from_model_file(file)
    return Desk(tokenizer, GrammarCompiler(tokenizer))


# ---- a model, and the engine's cycle ---------------------------------------------------------------------------------


class Speaker:
    """In the place of a model: says its script, token by token, where it may; any token where it may not."""

    def __init__(self, script: list[int], seed: int, tokenizer: Tokenizer) -> None:
        self.script = script
        self.n_vocab = tokenizer.n_vocab
        self.stops = tokenizer.stop_token_ids
        self._noise: npt.NDArray[np.float32] = np.random.default_rng(seed).random(self.n_vocab, dtype=np.float32)

    def wish(self, position: int) -> int:
        return self.script[position] if position < len(self.script) else min(self.stops)

    def choose(self, position: int, mask: npt.NDArray[np.uint32] | None) -> int:
        wish = self.wish(position)
        if mask is None:
            return wish
        allowed = np.unpackbits(mask.view(np.uint8), bitorder="little")[: self.n_vocab].astype(bool)
        assert allowed.any(), "a mask allows nothing"
        if allowed[wish]:
            return wish
        return int(np.argmax(np.where(allowed, np.roll(self._noise, 977 * position), -1)))


@dataclass
class Said:
    """What a request came to."""

    tokens: list[int] = field(default_factory=list)
    masks: list[bytes | None] = field(default_factory=list)  # under which each token was chosen
    end: str = "length"  # "stop", "complete" or "length"


class Request:
    """A request as libbee runs it: begin, advance over the drafts, choose, commit; through the C callbacks."""

    def __init__(self, phases: RunningPhases, speaker: Speaker, limit: int = LIMIT) -> None:
        self.phases = phases
        self._constraint = phases.c_struct()
        self._speaker = speaker
        self._limit = limit
        self._words = -(-speaker.n_vocab // 32)
        self.forced = self.voided = self.refused = 0
        self._next = MASKED

    def run(self, draft: Draft) -> Said:
        said = Said()
        stalled = False
        while said.end == "length":
            tokens, masks = self._cycle(said.tokens, draft)
            kept, complete = self._commit(tokens)
            assert complete or kept or not stalled, "two cycles in a row yield nothing"
            stalled = not kept
            self.voided += len(tokens) - kept
            said.tokens += tokens[:kept]
            said.masks += [None if mask is None else mask.tobytes() for mask in masks[:kept]]
            if said.tokens and kept == len(tokens) and said.tokens[-1] in self._speaker.stops:
                said.end = "stop"
            elif complete:
                said.end = "complete"
            elif len(said.tokens) >= self._limit:
                return said
        return said

    def _cycle(self, said: list[int], draft: Draft) -> tuple[list[int], list[npt.NDArray[np.uint32] | None]]:
        drafts = draft(said)[: self._limit - len(said) - 1]
        masks: list[npt.NDArray[np.uint32] | None] = [None] * (len(drafts) + 1)
        room = len(drafts)
        forced = ffi.new("int32_t[]", max(room, 1))
        # Where any token may follow, libbee need not ask, and both ways must come to the same.
        skips = self._next == WATCHING or (self._next == FREE and len(said) % 2)
        n_forced = FREE if skips else self._constraint.begin(self._constraint.user, forced, room)
        assert n_forced >= FREE, self.phases.error
        if n_forced != FREE:
            assert n_forced <= room
            self.forced += n_forced
            drafts[:n_forced] = forced[0:n_forced]
            drafts, masks = self._masked(drafts, n_forced)
        tokens: list[int] = []
        for index in range(len(drafts) + 1):
            token = self._speaker.choose(len(said) + index, masks[index])
            tokens.append(token)
            stops = token in self._speaker.stops or len(said) + len(tokens) >= self._limit
            if stops or (index < len(drafts) and drafts[index] != token):
                break
        return tokens, masks

    def _masked(self, drafts: list[int], n_forced: int) -> tuple[list[int], list[npt.NDArray[np.uint32] | None]]:
        masks = [self._advance(-1)[1]]
        for index, token in enumerate(drafts):
            if masks[index] is None:
                return drafts[:index], masks
            result, mask = self._advance(token)
            if result == REFUSED:
                assert index >= n_forced, "a forced token is refused"
                self.refused += 1
                return drafts[:index], masks
            masks.append(mask)
        return drafts, masks

    def _advance(self, token: int) -> tuple[int, npt.NDArray[np.uint32] | None]:
        mask = np.full(self._words, 0xA5A5A5A5, dtype=np.uint32)
        result = int(self._constraint.advance(self._constraint.user, token, ffi.from_buffer("uint32_t[]", mask)))
        assert result in (FREE, REFUSED, MASKED), self.phases.error
        return result, mask if result == MASKED else None

    def _commit(self, tokens: list[int]) -> tuple[int, bool]:
        watched = self._constraint.watched
        if self._next == WATCHING and not any(watched[token // 32] >> token % 32 & 1 for token in tokens):
            return len(tokens), False
        following = ffi.new("int32_t *", MASKED)
        chosen = ffi.new("int32_t[]", tokens)
        kept = int(self._constraint.commit(self._constraint.user, chosen, len(tokens), following))
        assert 0 <= kept <= len(tokens), self.phases.error
        self._next = following[0]
        return kept, following[0] == COMPLETE


def nothing(said: list[int]) -> list[int]:
    return []


def drafts_of(speaker: Speaker, source: random.Random, known: Sequence[int] = ()) -> Draft:
    """Drafts in random number: what will be said, as far as that is known, what the speaker would like to say, a token
    of no account, one that ends the text; whole drafts of one kind, and mixed ones."""

    def guess(position: int, kind: str) -> int:
        if kind == "right" and position < len(known):
            return known[position]
        if kind == "wrong":
            return source.randrange(speaker.n_vocab)
        return min(speaker.stops) if kind == "stop" and source.random() < 0.3 else speaker.wish(position)

    def draft(said: list[int]) -> list[int]:
        kinds = source.choice((["right"], ["right"], ["wish"], ["wrong"], ["right", "right", "wish", "wrong", "stop"]))
        length = source.choice((0, 1, 2, 3, 7, 15))
        return [guess(len(said) + index, source.choice(kinds)) for index in range(length)]

    return draft


def said_alike(desk: Desk, plan: AnswerPhases, script: Sequence[int], *, cuts: int = 4, limit: int = LIMIT) -> Said:
    """What is said one token at a time; asserts that blocks of all kinds come to the same."""
    speaker = desk.speaker(script)
    expected = Request(desk.phases(plan), speaker, limit).run(nothing)
    for seed in range(cuts):
        source = random.Random(f"{seed} {list(script)}")
        found = Request(desk.phases(plan), speaker, limit).run(drafts_of(speaker, source, expected.tokens))
        assert found == expected
    return expected


# ---- grammars that a text starts -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lazy", "pieces", "expected"),
    [
        pytest.param(WORD, ["Hi", " <", "tool", "_", "call", ">"], 'Hi <tool_call>"', id="at a token's end"),
        pytest.param(WORD, ["Hi", " <", "tool", "_", "call", '>"'], 'Hi <tool_call>"', id="and the rest fits"),
        pytest.param(WORD, ["Hi", " <", "tool", "_", "call", "></"], 'Hi <tool_call>"', id="and the rest does not"),
        pytest.param(WORD, ["<", "t", "o", "o", "l", "_", "c", "a", "l", "l", ">"], '<tool_call>"', id="letters"),
        pytest.param(WORD, ["?<", "tool", "_", "call", ">>"], '?<tool_call>"', id="text before it in the first token"),
        pytest.param(WORD, ["<", "tool", "<", "tool", "_", "call", ">"], '<tool<tool_call>"', id="begun twice"),
        pytest.param(WORD, ["<<", "tool", "_", "call", ">"], '<<tool_call>"', id="its first character twice"),
        pytest.param(COLOUR, ["Call", " call", ":"], "Call call: ", id="with another case before"),
        pytest.param(COLOUR, ["call", ":", " red", " is"], "call: red is", id="and the grammar is followed"),
        pytest.param(COLOUR, ["call", ":"], "call: ", id="and the model would end there"),
        pytest.param(AT_START, ["call", ":"], "call: ", id="only at the start"),
        pytest.param(AT_START, ["\n\n", " ", " call", ":"], "\n\n  call: ", id="after white space"),
        pytest.param(AT_START, ["call", "::"], "call: ", id="at the start, in a token's middle"),
    ],
)
def test_a_trigger_starts_the_grammar(desk: Desk, lazy: LazyGrammar, pieces: list[str], expected: str) -> None:
    said = said_alike(desk, AnswerPhases(lazy=lazy), desk.pieces(*pieces))
    text = desk.text(said.tokens)
    begun, trigger, rest = text.partition(lazy.triggers[0].text)
    assert text.startswith(expected)
    assert re.fullmatch(WORDS if lazy is WORD else COLOURS, rest)
    assert said.end == "complete"
    # The text up to the trigger is free but for what a void token said, and no token behind it is.
    spoken = "".join(pieces)
    assert (begun + trigger) == spoken[: spoken.index(trigger) + len(trigger)]
    free = said.masks.count(None)
    assert said.masks == [None] * free + [mask for mask in said.masks if mask is not None]
    assert len(desk.text(said.tokens[:free])) <= len(begun + trigger)


@pytest.mark.parametrize(
    ("lazy", "pieces"),
    [
        (WORD, ["Hi", " <", "tool", "_", "call", "s", ">"]),
        (WORD, ["<", "tool", " ", "_", "call", ">"]),
        (WORD, ["<", "tool", "_", "call", "<", "tool", "_"]),
        (WORD, []),
        (COLOUR, ["call", " :", "call"]),
        (AT_START, ["A", " call", ":"]),
        (AT_START, ["call", "call", ":"]),
        (AT_START, ["\n", "call", " :"]),
    ],
)
def test_a_trigger_that_does_not_come_leaves_the_text_alone(desk: Desk, lazy: LazyGrammar, pieces: list[str]) -> None:
    script = desk.pieces(*pieces)
    said = said_alike(desk, AnswerPhases(lazy=lazy), script)
    assert said == Said([*script, desk.stop], [None] * (len(script) + 1), "stop")


def test_a_void_token_is_said_again_where_its_rest_fits(desk: Desk) -> None:
    """The token that completes the trigger and begins the call is chosen twice, the second time under a mask."""
    script = desk.pieces("<", "tool", "_", "call", '>"')
    said = said_alike(desk, AnswerPhases(lazy=WORD), script)
    assert said.tokens[: len(script)] == script
    assert [mask is None for mask in said.masks[: len(script)]] == [True] * 4 + [False]


def test_a_grammar_that_is_complete_with_its_trigger(desk: Desk) -> None:
    lazy = LazyGrammar((Trigger("<tool_call>", "rest"),), 'rest: ""')
    for last in (">", ">>"):
        said = said_alike(desk, AnswerPhases(lazy=lazy), desk.pieces("a", "<", "tool", "_", "call", last, " more"))
        assert desk.text(said.tokens) == "a<tool_call>"
        assert said.end in ("stop", "complete")


# ---- grammars from the start -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("constraint", "pattern", "ends"),
    [
        (Regex(r"[0-9]{3}-[a-f]{2}"), r"[0-9]{3}-[a-f]{2}", {"complete"}),
        (Choice(("low", "lower", "lowest")), "low|lower|lowest", {"complete", "stop"}),
        (Grammar('start: "a" ("b" "c")* "d"?'), "a(bc)*d?", {"complete", "stop", "length"}),
        (JsonSchema({"enum": ["one", "two"]}), '"one"|"two"', {"complete"}),
        (Regex("[0-9]*"), "[0-9]*", {"stop"}),
    ],
)
def test_a_grammar_holds_from_the_start(desk: Desk, constraint: Any, pattern: str, ends: set[str]) -> None:
    plan = AnswerPhases(grammar=desk.compiler.compile(constraint))
    for script in ([], ["low"], ["1", "2"], ["Hi", " there"], ["a", "b", "c", "b"]):
        said = said_alike(desk, plan, desk.pieces(*script))
        assert said.end in ends
        assert None not in said.masks
        assert said.end == "length" or re.fullmatch(pattern, desk.text(said.tokens))


def test_a_grammar_that_admits_the_empty_text_alone(desk: Desk) -> None:
    said = said_alike(desk, AnswerPhases(grammar=desk.compiler.compile(Regex(""))), desk.pieces("Hi"))
    assert desk.text(said.tokens) == ""
    assert said.end in ("stop", "complete")


def test_stop_tokens_are_refused_within_a_grammar_and_taken_at_its_end(desk: Desk) -> None:
    plan = AnswerPhases(grammar=desk.compiler.compile(Regex("[0-9]{1,3}")))
    stops = sorted(desk.tokenizer.stop_token_ids)
    for stop in stops:
        request = Request(desk.phases(plan), desk.speaker([]))
        assert request.phases.begin(4) == []
        assert request._advance(-1)[0] == MASKED
        assert request._advance(stop)[0] == REFUSED
    seven = desk.pieces("7")
    for stop in stops:
        phases = desk.phases(plan)
        assert phases.commit([*seven, stop]) == (2, False)  # libbee knows that the stop token ends the request
        assert phases.closing_text() == ""


@pytest.mark.parametrize("position", range(9))
def test_the_model_ends_anywhere(desk: Desk, position: int) -> None:
    """A stop token in free text ends the answer; where a trigger is complete it is void."""
    script = desk.pieces("Hi", " <", "tool", "_", "call", ">", '"', "ab", '"')[:position]
    said = said_alike(desk, AnswerPhases(lazy=WORD), script)
    if position < 6:
        assert said == Said([*script, desk.stop], [None] * (position + 1), "stop")
    else:
        assert re.fullmatch(f"Hi <tool_call>{WORDS}", desk.text(said.tokens))
        assert said.end == "complete"


# ---- thinking --------------------------------------------------------------------------------------------------------


def thought(desk: Desk, thinking: Thinking, *pieces: str, lazy: LazyGrammar | None = None) -> str:
    """The text of a scripted answer, however it is cut; the model's own end is left out."""
    said = said_alike(desk, AnswerPhases(lazy=lazy, thinking=thinking), desk.pieces(*pieces))
    return desk.text(said.tokens)


OPENED = Thinking(THINK, opened=True)
CLOSED = Thinking(THINK, opened=False)


def test_thinking_without_a_grammar_changes_nothing(desk: Desk) -> None:
    for thinking in (OPENED, CLOSED, replace(CLOSED, budget=50)):
        for pieces in (
            ["Well", "."],
            ["<", "think", ">", "Well", "</", "think", ">", "So"],
            ["</", "think", ">", "</", "think", ">>"],
            ["\n", "<", "think", ">", "<", "think", ">"],
            [" ", "<", "thinking", ">", "</", "think", ">"],
            ["<", "think"],
            [],
        ):
            assert thought(desk, thinking, *pieces) == "".join(pieces)


@pytest.mark.parametrize("budget", range(6))
def test_the_budget_ends_what_the_prompt_opened(desk: Desk, budget: int) -> None:
    text = thought(desk, replace(OPENED, budget=budget), "one", " two", " three", " four")
    said = "".join(["one", " two", " three", " four"][:budget])
    assert text.startswith(said if budget > 4 else f"{said}</think>")


@pytest.mark.parametrize("budget", range(5))
def test_the_budget_begins_behind_the_marker(desk: Desk, budget: int) -> None:
    words = ["one", " two", " three", " four", " five"]
    for begin in (["<", "think", ">"], ["\n", "<", "th", "ink", ">"]):
        text = thought(desk, replace(CLOSED, budget=budget), *begin, *words)
        assert text.startswith("".join(begin + words[:budget]) + "</think>")


@pytest.mark.parametrize(
    ("said", "missing"),
    [(["</"], "think>"), (["</", "th"], "ink>"), (["a", "</", "think"], ">"), (["a", " </"], "think>")],
)
def test_a_budget_that_is_used_up_within_the_end(desk: Desk, said: list[str], missing: str) -> None:
    text = thought(desk, replace(OPENED, budget=len(said)), *said, " no", " end")
    assert text.startswith("".join(said) + missing)


def test_a_budget_that_is_used_up_within_a_character_of_the_end(desk: Desk) -> None:
    """The end's "思" is two tokens; what is missing of it is less than a character."""
    thinking = Thinking(ReasoningSpan("<思>", "</思>"), opened=True)
    end = desk.tokenizer.encode("</思>", add_special=False)
    assert len(end) == 4
    script = [*end[:2], *desk.pieces(" no", " end")]
    said = said_alike(desk, AnswerPhases(thinking=replace(thinking, budget=2)), script)
    assert "</思>" in desk.text(said.tokens)


def test_thinking_of_another_answer_is_not_ended(desk: Desk) -> None:
    """An answer that does not begin with the marker is no thinking, whatever the budget."""
    words = ["A", " <", "think", ">", "one", " two", " three"]
    assert thought(desk, replace(CLOSED, budget=1), *words) == "".join(words)
    assert thought(desk, replace(CLOSED, budget=0), *words) == "".join(words)


def test_verbatim_loops_are_ended(desk: Desk) -> None:
    script = desk.pieces("Well", *[" no", ",", " no"] * 400)
    said = said_alike(desk, AnswerPhases(thinking=OPENED), script, cuts=2, limit=900)
    at = desk.text(said.tokens).index("</think>")
    assert 512 <= len(desk.tokenizer.encode(desk.text(said.tokens)[:at])) <= 520
    endless = said_alike(desk, AnswerPhases(thinking=replace(OPENED, guard=False)), script, cuts=1, limit=900)
    assert endless == Said(script[:900], [None] * 900, "length")


def test_thinking_then_a_call(desk: Desk) -> None:
    """A trigger within the thinking is none; the one behind it is."""
    trigger = ["<", "tool", "_", "call", ">"]
    answer = thought(desk, OPENED, "a", *trigger, "b", "</", "think", ">", "c", *trigger, lazy=WORD)
    assert re.fullmatch(f"a<tool_call>b</think>c<tool_call>{WORDS}", answer)
    in_one = thought(desk, OPENED, "a", "</", "think", "><", "tool", "_", "call", ">", lazy=WORD)
    assert re.match(r"a</think>", in_one)
    at_start = thought(desk, OPENED, "a", "</", "think", ">", "\n\n", "call", ":", lazy=AT_START)
    assert re.fullmatch(f"a</think>\n\ncall:{COLOURS}", at_start)
    missed = thought(desk, OPENED, "a", "</", "think", ">", "b", "call", ":", lazy=AT_START)
    assert missed == "a</think>bcall:"


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        (["a", "<", "tool", "_", "call", ">"], f"a<tool_call>{WORDS}"),
        (["a", "<", "tool", "<", "function", "="], f"a<tool<function={COLOURS}"),
        (["a", "<", "function", '="'], f"a<function={COLOURS}"),
        (["a", "<", "tool", "</", "think", ">", "\n", "<", "function", "="], f"a<tool</think>\n<function={COLOURS}"),
        (["a", "</", "think", ">", "\n", "{", "b"], f"a</think>\n{{{COLOURS}"),
        (["a", "</", "think", ">", "b", "{", "b"], "a</think>b{b"),
        (["{", "a", "</", "think", ">", "b"], "{a</think>b"),
    ],
)
def test_one_of_several_calls_may_end_the_thinking(desk: Desk, pieces: list[str], expected: str) -> None:
    assert re.fullmatch(expected, thought(desk, OPENED, *pieces, lazy=EITHER))


def test_a_budget_that_is_used_up_within_the_beginning_of_a_call(desk: Desk) -> None:
    """What was said of the call is no part of the end."""
    said = thought(desk, replace(OPENED, budget=3), "a", "<", "tool", "_", "call", ">", lazy=EITHER)
    assert said.startswith("a<tool</think>")


def test_an_answer_without_thinking_may_begin_with_a_call(desk: Desk) -> None:
    """The trigger and the marker begin with the same token."""
    for last in (">", '>"', ">>"):
        answer = thought(desk, CLOSED, "<", "tool", "_", "call", last, lazy=WORD)
        assert re.fullmatch(f"<tool_call>{WORDS}", answer)
    at_start = thought(desk, CLOSED, "\n", "call", ":", lazy=AT_START)
    assert re.fullmatch(f"\ncall:{COLOURS}", at_start)


DIGITS = r"[0-9]{2}"


@pytest.mark.parametrize(
    ("thinking", "pieces", "pattern"),
    [
        (replace(CLOSED, demanded=True, budget=0), ["Hi", " you"], rf"<think></think>{DIGITS}"),
        (
            replace(CLOSED, demanded=True, budget=2),
            ["<", "think", ">", "a", "b", "c", "d"],
            rf"<think>ab</think>{DIGITS}",
        ),
        (replace(CLOSED, demanded=True), ["<", "think", ">", "a", "</", "think", ">", "4", "2"], r"<think>a</think>42"),
        (OPENED, ["a", "</", "think", ">", "Hi"], rf"a</think>{DIGITS}"),
        (OPENED, ["a", "</", "think", ">>", "Hi"], rf"a</think>{DIGITS}"),
        (OPENED, ["a", "</", "think", ">", "4", "2"], r"a</think>42"),
        (replace(OPENED, budget=0), ["4", "2"], rf"</think>{DIGITS}"),
        (replace(OPENED, budget=3), ["a", "b", "c", "d"], rf"abc</think>{DIGITS}"),
        (replace(OPENED, budget=2), ["a", "</", "think", ">"], rf"a</think>{DIGITS}"),
    ],
)
def test_thinking_then_a_grammar(desk: Desk, thinking: Thinking, pieces: list[str], pattern: str) -> None:
    plan = AnswerPhases(grammar=desk.compiler.compile(Regex(DIGITS)), thinking=thinking)
    tokens = desk.pieces(*pieces)
    said = said_alike(desk, plan, tokens + [desk.pieces("a")[0]] * 5)
    assert re.fullmatch(pattern, desk.text(said.tokens))
    assert said.end == "complete"


@pytest.mark.parametrize("position", range(5))
def test_a_grammar_holds_though_the_model_ends_while_it_thinks(desk: Desk, position: int) -> None:
    """Structured answers are valid, or cut off: a stop token in the thinking does not get around the grammar."""
    plan = AnswerPhases(grammar=desk.compiler.compile(Regex(DIGITS)), thinking=OPENED)
    said = said_alike(desk, plan, desk.pieces("a", "b", "</", "think", ">")[:position])
    assert re.fullmatch(rf".*</think>{DIGITS}", desk.text(said.tokens))
    assert said.end == "complete"


def test_reasoning_tokens(desk: Desk) -> None:
    """Those of the thinking with its end, whoever said that."""

    def counted(thinking: Thinking, *pieces: str) -> int:
        phases = desk.phases(AnswerPhases(thinking=thinking))
        speaker = desk.speaker(desk.pieces(*pieces))
        Request(phases, speaker).run(nothing)
        return phases.reasoning_tokens(1000)

    end = ["</", "think", ">"]
    assert counted(OPENED, "a", "b", *end, "c") == 5
    assert counted(CLOSED, "<", "think", ">", "a", *end, "c", "d") == 4
    assert counted(CLOSED, "Hi") == 0
    assert counted(replace(OPENED, budget=2), "a", "b", "c", "d") == 2 + len(end)
    assert counted(OPENED, "a", "</", "think", ">>", "c") == 1 + len(end)


# ---- cut off ---------------------------------------------------------------------------------------------------------


def test_how_what_is_unfinished_would_be_closed(desk: Desk) -> None:
    schema = JsonSchema({"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]})

    def closing(plan: AnswerPhases, *said: str) -> str:
        phases = desk.phases(plan)
        for piece in said:
            phases.commit(desk.tokenizer.encode(piece, add_special=False))
        return phases.closing_text()

    held = AnswerPhases(grammar=desk.compiler.compile(schema))
    assert closing(held).startswith('{"a": ')
    assert closing(held, '{"a": 12') == "}"
    lazy = AnswerPhases(lazy=WORD)
    assert closing(lazy, "Hello") == ""
    assert closing(lazy, "<", "tool", "_") == ""
    assert re.fullmatch(WORDS, closing(lazy, "<", "tool", "_", "call", ">"))


def test_drafts_do_not_change_how_it_would_be_closed(desk: Desk) -> None:
    plan = AnswerPhases(grammar=desk.compiler.compile(Regex("abc|abd[0-9]{2}e")))
    before, drafted = desk.phases(plan), desk.phases(plan)
    for phases in (before, drafted):
        phases.commit(desk.pieces("a"))
    request = Request(drafted, desk.speaker([]))
    drafted.begin(8)
    for piece in ("b", "d", "1"):
        assert request._advance(desk.pieces(piece)[0])[0] == MASKED
    drafted.commit(desk.pieces("b"))
    assert "b" + drafted.closing_text() == before.closing_text()


@pytest.mark.parametrize("n_tokens", range(8))
def test_an_answer_that_is_cut_while_it_thinks(desk: Desk, n_tokens: int) -> None:
    """Where a grammar follows, what closes the answer holds a value of the grammar; or nothing closes it."""
    plan = AnswerPhases(grammar=desk.compiler.compile(Regex(DIGITS)), thinking=replace(OPENED, budget=2))
    phases = desk.phases(plan)
    speaker = desk.speaker(desk.pieces("a", "b", "c"))
    said = Request(phases, speaker, n_tokens).run(nothing) if n_tokens else Said()
    if said.end == "complete":
        assert phases.closing_text() == ""
        return
    assert re.fullmatch(rf"(ab?)?</think>{DIGITS}", desk.text(said.tokens) + phases.closing_text())


AMBIGUOUS = 100
LIMITED = f"""start: "go: " many | "x, " /[a-z]+/
many: "x" | {" | ".join(f"many t{i}" for i in range(AMBIGUOUS))}
""" + "\n".join(f't{i}: many? "x" many?' for i in range(AMBIGUOUS))


def test_a_draft_that_meets_the_limits_of_the_grammar_engine_is_refused(desk: Desk) -> None:
    grammar = desk.compiler.compile(Grammar(LIMITED))
    request = Request(desk.phases(AnswerPhases(grammar=grammar)), desk.speaker([]))
    request.phases.begin(12)
    assert request._advance(-1)[0] == MASKED
    drafts = desk.pieces("go", ":", " ", *"xxxxxxxxx")
    results = [request._advance(draft)[0] for draft in drafts]
    refused = results.index(REFUSED)
    assert results[:refused] == [MASKED] * refused
    matcher, mask = grammar.matcher(), np.empty(49152 // 32, np.uint32)

    def take(draft: int) -> None:
        assert matcher.consume(draft)
        matcher.fill_mask(mask.ctypes.data)

    for draft in drafts[:refused]:
        take(draft)
    with pytest.raises(ConstraintError):  # the limits, not the grammar, refuse it
        take(drafts[refused])
    # What was before the draft still stands, and what the drafts were not goes on.
    fresh = Request(desk.phases(AnswerPhases(grammar=grammar)), desk.speaker([]))
    said = desk.pieces("x", ",", " ", "a")
    assert request.phases.commit(said) == fresh.phases.commit(said) == (len(said), False)
    for one in (request, fresh):
        one.phases.begin(8)
    assert np.array_equal(request._advance(-1)[1], fresh._advance(-1)[1])


# ---- random scripts --------------------------------------------------------------------------------------------------

PLANS = {
    "lazy": AnswerPhases(lazy=WORD),
    "either": AnswerPhases(lazy=EITHER),
    "opened thinking, either": AnswerPhases(lazy=EITHER, thinking=replace(OPENED, budget=8)),
    "at the start": AnswerPhases(lazy=AT_START),
    "thinking": AnswerPhases(thinking=replace(CLOSED, budget=9)),
    "opened thinking, lazy": AnswerPhases(lazy=WORD, thinking=OPENED),
    "closed thinking, lazy": AnswerPhases(lazy=WORD, thinking=replace(CLOSED, budget=6)),
    "closed thinking, at the start": AnswerPhases(lazy=AT_START, thinking=replace(CLOSED, budget=12)),
    "opened thinking with a budget, lazy": AnswerPhases(lazy=COLOUR, thinking=replace(OPENED, budget=5)),
}
SCRAPS = ["<tool_call>", "<tool", "_call>", "<tool_call", '>"', "><", "call:", "call: red.", " call", ":", "<think>"]
SCRAPS += ["</think>", "<", "</", "think", ">>", ">", "\n\n", " ", "ab", " word", "思", "<|im_end|>", '"', "ca", "ll"]


def random_script(desk: Desk, source: random.Random, *more: str) -> list[int]:
    """Scraps of text, together cut as the tokenizer cuts them, or each on its own, or letter by letter."""
    scraps = [source.choice([*SCRAPS, *more]) for _ in range(source.randrange(1, 12))]
    how = source.random()
    if how < 0.4:
        scraps = ["".join(scraps)]
    elif how < 0.5:
        scraps = list("".join(scraps).replace("<|im_end|>", ""))[:50]
    return [token for scrap in scraps for token in desk.tokenizer.encode(scrap, add_special=False)]


@pytest.mark.parametrize("name", [*PLANS, "a grammar", "opened thinking, a grammar", "demanded thinking, a grammar"])
def test_blocks_change_nothing(desk: Desk, name: str) -> None:
    grammar = desk.compiler.compile(JsonSchema({"type": "array", "items": {"enum": ["ab", 1]}, "maxItems": 3}))
    thinking = {
        "a grammar": None,
        "opened thinking, a grammar": replace(OPENED, budget=7),
        "demanded thinking, a grammar": replace(CLOSED, demanded=True, budget=7),
    }
    plan = PLANS[name] if name in PLANS else AnswerPhases(grammar=grammar, thinking=thinking[name])
    source = random.Random(name)
    ends = set()
    forced = voided = refused = 0
    for case in range(120):
        more = ("<function=", "{", "</think>", "</think>", "<tool_call>") if plan.lazy is EITHER else ()
        speaker = desk.speaker(random_script(desk, source, *more), seed=case)
        expected = Request(desk.phases(plan), speaker).run(nothing)
        check_text(desk, plan, speaker, expected)
        ends.add(expected.end)
        for _ in range(2):
            request = Request(desk.phases(plan), speaker)
            assert request.run(drafts_of(speaker, source, expected.tokens)) == expected
            forced, voided, refused = forced + request.forced, voided + request.voided, refused + request.refused
    # The comparison means something only where all of this happens.
    assert ends & {"complete", "stop"}
    assert forced > 5
    assert name == "a grammar" or voided > 0
    assert refused > 3 or name == "thinking"  # whose few demanded tokens are all forced


def check_text(desk: Desk, plan: AnswerPhases, speaker: Speaker, said: Said) -> None:
    """A lazy grammar holds from the first trigger on, and everything before that is what the model wished."""
    if plan.lazy is None or plan.thinking is not None or plan.lazy is EITHER:
        return
    text = desk.text(said.tokens)
    (trigger,) = plan.lazy.triggers
    at = text.find(trigger.text)
    if at < 0 or (trigger.at_start and text[:at].strip()):
        assert said.masks == [None] * len(said.tokens)
        assert said.tokens == [speaker.wish(position) for position in range(len(said.tokens))]
        assert said.end == "stop"
    else:
        rest = text[at + len(trigger.text) :]
        assert re.fullmatch(WORDS if plan.lazy is WORD else COLOURS, rest)
        assert desk.text(speaker.script).startswith(text[:at] + trigger.text)
        assert said.end == "complete"


def test_one_plan_for_two_requests(desk: Desk) -> None:
    """Requests side by side, cycle by cycle, do not disturb each other."""
    plan = AnswerPhases(lazy=WORD, thinking=OPENED)
    script = desk.pieces("a", "</", "think", ">", "<", "tool", "_", "call", ">")
    expected = Request(desk.phases(plan), desk.speaker(script)).run(nothing)
    first, second = desk.phases(plan), desk.phases(plan)
    kept: dict[int, list[int]] = {0: [], 1: []}
    for token in expected.tokens:
        for index, phases in enumerate((first, second)):
            phases.begin(4)
            n_kept, _ = phases.commit([token])
            kept[index] += [token][:n_kept]
    assert kept == {0: expected.tokens, 1: expected.tokens}


# ---- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["begin", "advance", "commit"])
def test_errors_do_not_pass_through_c(desk: Desk, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    phases = desk.phases(AnswerPhases(grammar=desk.compiler.compile(Regex(DIGITS))))
    constraint = phases.c_struct()
    failure = ConstraintError("too much")

    def fail(*arguments: Any) -> Any:
        raise failure

    monkeypatch.setattr(phases, name, fail)
    tokens, mask, complete = ffi.new("int32_t[4]"), ffi.new("uint32_t[]", 49152 // 32), ffi.new("int32_t *")
    arguments = {"begin": (tokens, 4), "advance": (-1, mask), "commit": (tokens, 1, complete)}[name]
    assert phases.error is None
    assert getattr(constraint, name)(constraint.user, *arguments) == FAILED
    assert phases.error is failure


def test_a_token_against_its_mask_is_an_error(desk: Desk) -> None:
    phases = desk.phases(AnswerPhases(grammar=desk.compiler.compile(Regex(DIGITS))))
    constraint = phases.c_struct()
    tokens = ffi.new("int32_t[]", desk.pieces("a"))
    assert constraint.commit(constraint.user, tokens, 1, ffi.new("int32_t *")) == FAILED
    assert isinstance(phases.error, AssertionError)


def test_grammars_that_cannot_be_compiled_are_refused_before_the_request(desk: Desk) -> None:
    with pytest.raises(ConstraintError, match="grammar"):
        desk.phases(AnswerPhases(lazy=LazyGrammar((Trigger("<tool_call>", "rest"),), "rest: nowhere")))


def test_phases_under_their_earlier_name(tiny: Engine) -> None:
    assert importlib.import_module("bee_integrations.steering").SteeringPlan is AnswerPhases
    phases = AnswerPhases(grammar=tiny.grammars.compile(Choice(("ab", "ba"))))
    said = tiny.complete("Hi", steering=phases)
    assert said.text == tiny.complete("Hi", phases=phases).text
    assert said.text in ("ab", "ba")
    assert said.stats.steering_seconds == said.stats.phase_seconds > 0
