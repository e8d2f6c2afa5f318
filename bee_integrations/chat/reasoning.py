"""A model's thinking, kept apart from its answer: where it begins and ends, and when it has to be ended.

Models write their thinking before the answer, between two markers: "<think>Let me see ...</think>The answer is 4.". The
markers are recognised from the chat template or named by hand. The reader of answers follows llama.cpp's and SGLang's:
thinking stands at the beginning of an answer or nowhere, and the white space around it belongs to neither part.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from ..errors import ParameterError
from ..tools.tool_format import MarkerScan, Reasoning, Text

__all__ = [
    "LoopGuard",
    "ReasoningSpan",
    "ReasoningSplitter",
    "ThinkingBudget",
    "begins_open",
    "named",
    "recognise",
]


# ---- markers ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ReasoningSpan:
    """The texts between which a model thinks."""

    begin: str
    end: str
    answer: tuple[str, str] | None = field(default=None, compare=False)
    """Texts around the answer that follows, of models that mark it as well. They are no part of it."""


# In this order: templates that have several of them think between the first.
_SPANS = (
    ReasoningSpan("<|open|>think<|sep|>", "<|close|>think<|sep|>"),  # Kimi K3
    ReasoningSpan("to=self<|message|>", "<|eom|>"),  # Muse
    ReasoningSpan("<|think|>", "<|end|>"),  # Solar
    ReasoningSpan("<|channel>thought\n", "<channel|>"),  # Gemma 4
    ReasoningSpan("<|START_THINKING|>", "<|END_THINKING|>"),  # Cohere
    ReasoningSpan("<|inner_prefix|>", "<|inner_suffix|>"),  # Apertus
    ReasoningSpan("Here are my reasoning steps:\n", "[BEGIN FINAL RESPONSE]"),  # Apriel 1.6
    ReasoningSpan("[THINK]", "[/THINK]"),  # Mistral
    ReasoningSpan("<seed:think>", "</seed:think>"),  # ByteDance Seed
    ReasoningSpan("<mm:think>", "</mm:think>"),  # MiniMax M3
    ReasoningSpan("<think:opensource>", "</think:opensource>"),  # Hunyuan 3
    ReasoningSpan("<thinking>", "</thinking>"),  # Apriel 1.5
    ReasoningSpan("<think>", "</think>"),  # Qwen, DeepSeek, GLM, Kimi K2, Nemotron, SmolLM3 and most others
)

# What Granite 3.3 is told to put around its answer.
_ANSWER = ("<response>", "</response>")

_COMMENT = re.compile(r"\{#.*?(?:#\}|\Z)", re.DOTALL)
# Where a template looks into old messages: `.split('</think>')`, `| replace("<think>", "")`, `'<think>' in content`.
_LOOKS_FOR = re.compile(
    r"""[.|]\s*(?:r?split|r?partition|replace|startswith|endswith|r?find|r?index|count|[lr]?strip)\([^()]*\)"""
    r"""|(['"])[^'"]*\1\s+(?:not\s+)?in\b"""
)


def recognise(template: str | None) -> ReasoningSpan | None:
    """The span of the model that a chat template (Jinja source) belongs to; None if it does not think.

    A template must write the beginning of the span: into the prompt of an answer, around the thinking of old answers,
    or into the instructions. One that only looks for markers, to remove them from old messages, tells nothing. None as
    well for gpt-oss, which wraps everything that it says in channels: two markers cannot describe those.
    """
    if template is None:
        return None
    source = template.replace("\\n", "\n")
    if "set HYTK = ':opensource'" in source:  # Hunyuan appends this to the name of each of its tokens
        source = source.replace("{}>'.format(HYTK)", ":opensource>'")
    if "open_tag('think')" in source:  # Kimi K3 puts its markers together
        source += "<|open|>think<|sep|><|close|>think<|sep|>"
    written = _LOOKS_FOR.sub("", _COMMENT.sub("", source))
    found = next((span for span in _SPANS if span.begin in written and span.end in source), None)
    if found is not None and f"response between {''.join(_ANSWER)}" in written:
        return replace(found, answer=_ANSWER)
    return found


def named(value: str | tuple[str, str]) -> ReasoningSpan:
    """The span that a user names: by both of its texts, or by the first if it is a tag ("<think>", "[THINK]") or the
    beginning of a span that `recognise` knows. Raises `ParameterError`."""
    if isinstance(value, str):
        known = next((span for span in _SPANS if span.begin.strip() == value.strip()), None)
        if known is not None:
            return known
        if re.fullmatch(r"<[\w:-]+>|\[[\w:-]+\]", value):
            return ReasoningSpan(value, value[0] + "/" + value[1:])
        raise ParameterError(f"the reasoning span {value!r} is not a tag such as '<think>'; name its begin and its end")
    if not isinstance(value, (tuple, list)) or len(value) != 2 or not all(isinstance(text, str) for text in value):
        raise ParameterError(f"the reasoning span is {value!r}, expected a tag or the two texts that begin and end it")
    begin, end = value
    if not begin.strip() or not end.strip():
        raise ParameterError("the texts that begin and end a reasoning span must not be blank")
    if begin.strip() == end.strip():
        raise ParameterError(f"the reasoning span begins and ends with the same text, {begin!r}")
    return ReasoningSpan(begin, end)


def begins_open(span: ReasoningSpan, prompt: str) -> bool:
    """Whether the answer to a rendered prompt begins inside the span, because the prompt ends with its begin.

    Only the end counts: a marker further up may be quoted by anybody who wrote a message.
    """
    return prompt.rstrip().endswith(span.begin.rstrip())


# ---- the stream ------------------------------------------------------------------------------------------------------


class ReasoningSplitter:
    """Splits the text of one answer as it comes: what lies inside the span is `Reasoning`, all else `Text`.

    The span counts at the beginning of the answer, after white space, or if the prompt opened it (`opened`), and once
    at most, so an answer that speaks of "<think>" later stays whole. An opened span that the model opens again is one
    span; one that it ends right away without having begun it is empty. A span that never ends is all `Reasoning`. White
    space at both ends of the reasoning and after the span is dropped, and so are the texts that the span names around
    the answer behind it. However the text is cut into pieces, the events concatenate to the same.
    """

    def __init__(self, span: ReasoningSpan | None, opened: bool, calls: Sequence[str] = ()) -> None:
        """`calls`: what ends the thinking as well, and is no part of it."""
        self._begin = "" if span is None else span.begin.strip()
        self._end = MarkerScan() if span is None else MarkerScan(span.end, *calls)
        self._calls = calls
        self._last = "" if span is None else span.end.strip()
        self._at_start = span is not None  # the answer may yet begin with the span's begin
        self._inside = span is not None and opened
        self._start = ""  # the answer so far, while that is open
        self._trims = False  # white space that comes next is dropped
        self._unwrapped = None if span is None or span.answer is None else _Unwrapped(*span.answer)
        self._space = ""  # white space that is dropped if the reasoning ends with it
        self._ended = False  # the answer comes behind the span

    @property
    def inside(self) -> bool:
        """Whether the text so far ends inside the span."""
        return self._inside

    def push(self, text: str) -> list[Text | Reasoning]:
        """What the text so far makes certain."""
        if self._at_start:
            self._start += text
            stripped = self._start.lstrip()
            if any(one.startswith(stripped) and stripped != one for one in (self._begin, self._last)):
                return []  # a part of the begin, or nothing yet
            text = self._leave_start(stripped)
        return self._read(text)

    def finish(self) -> list[Text | Reasoning]:
        """The end of the answer: what was held back."""
        events: list[Text | Reasoning] = []
        if self._at_start:
            events = self._read(self._leave_start(self._start.lstrip()))
        if self._inside:
            return events + self._reasoning(self._end.flush())
        rest = self._unwrapped.flush() if self._unwrapped is not None and self._ended else ""
        return [*events, Text(rest)] if rest else events

    def _leave_start(self, stripped: str) -> str:
        """What is to be read of the answer's beginning, now that it is known whether the span begins there."""
        self._at_start = False
        if stripped.startswith(self._begin):
            self._inside = self._trims = True
            return stripped[len(self._begin) :]
        if not self._inside and stripped.startswith(self._last):  # the end of a span that was never begun
            self._trims = self._ended = True
            return stripped[len(self._last) :]
        self._trims = self._inside
        return self._start

    def _read(self, text: str) -> list[Text | Reasoning]:
        if not self._inside:
            return self._text(text)
        thought, end, rest = self._end.push(text)
        events = self._reasoning(thought)
        if end is not None:
            self._inside, self._trims, self._ended = False, True, True
            events += self._text(end + rest if end in self._calls else rest)
        return events

    def _reasoning(self, text: str) -> list[Text | Reasoning]:
        text = self._trimmed(self._space + text)
        shown = text.rstrip()
        self._space = text[len(shown) :]
        return [Reasoning(shown)] if shown else []

    def _text(self, text: str) -> list[Text | Reasoning]:
        text = self._trimmed(text)
        if self._unwrapped is not None and self._ended:
            text = self._unwrapped.push(text)
        return [Text(text)] if text else []

    def _trimmed(self, text: str) -> str:
        if self._trims:
            text = text.lstrip()
            self._trims = not text
        return text


class _Unwrapped:
    """A stream of text without what stands around it: a text at its beginning, and if that was there, one further on.
    White space inside of both is dropped as well."""

    def __init__(self, begin: str, end: str) -> None:
        self._begin = begin
        self._end = MarkerScan(end)
        self._start = ""  # the text so far, while that may be part of the begin
        self._space = ""  # white space before what may be the end
        self._state: Literal["start", "trims", "inside", "outside"] = "start"

    def push(self, text: str) -> str:
        if self._state == "start":
            self._start += text
            if self._begin.startswith(self._start) and self._start != self._begin:
                return ""
            begun = self._start.startswith(self._begin)
            self._state = "trims" if begun else "outside"
            text, self._start = self._start[len(self._begin) if begun else 0 :], ""
        if self._state == "trims":
            text = text.lstrip()
            self._state = "inside" if text else "trims"
        return self._inside(text) if self._state == "inside" else text

    def flush(self) -> str:
        """What was held back."""
        return self._start + self._space + self._end.flush()

    def _inside(self, text: str) -> str:
        before, found, rest = self._end.push(text)
        before = self._space + before
        shown = before.rstrip()
        self._space = before[len(shown) :]
        if found is None:
            return shown
        self._state, self._space = "outside", ""
        return shown + rest


# ---- when to end it --------------------------------------------------------------------------------------------------


class LoopGuard:
    """Notices verbatim loops: the same sequence of tokens again and again.

    The rule: a loop is certain when the last tokens are one sequence of at most `max_period` tokens, repeated without
    a gap, and these are at least `repeats` repetitions and at least `min_tokens` tokens (the last repetition counts as
    far as it has come).

    The reasons for the defaults: four copies of a long sequence (128 tokens and more, a paragraph) in a row are hardly
    ever meant. Many copies of a short one often are: rulers, empty table rows, lists of zeros. With 512 tokens, 150
    zeros ("0, " is two or three tokens), a 12 x 12 matrix of them or thirty equal lines of code pass, and that is
    little beside the thousands of tokens that a loop would take otherwise. A period of 512 tokens is a page; whatever
    repeats more slowly is for the budget to end.

    Each token is compared with the `max_period` tokens before it, all at once.
    """

    def __init__(self, max_period: int = 512, repeats: int = 4, min_tokens: int = 512) -> None:
        if max_period < 1 or repeats < 2 or min_tokens < 1:
            raise ParameterError(
                "a loop guard needs max_period >= 1, repeats >= 2 and min_tokens >= 1, "
                f"not {max_period}, {repeats} and {min_tokens}"
            )
        periods = np.arange(max_period, 0, -1)
        self._recent = np.full(
            max_period, -1, dtype=np.int64
        )  # the last tokens, so entry i is periods[i] before the next token
        self._runs = np.zeros(max_period, dtype=np.int64)  # how many tokens in a row equal the one a period before
        self._needed = np.maximum(repeats * periods, min_tokens) - periods

    def push(self, tokens: Sequence[int]) -> int | None:
        """The index of the first of these tokens with which a loop is certain, or None."""
        history = np.concatenate((self._recent, np.asarray(tokens, dtype=np.int64)))
        first = None
        for index, token in enumerate(tokens):
            self._runs += 1
            self._runs *= history[index : index + len(self._recent)] == token
            if first is None and (self._runs >= self._needed).any():
                first = index
        self._recent = history[len(tokens) :].copy()
        return first


class ThinkingBudget:
    """When a span must be closed: after `budget` tokens of reasoning (None: no bound), or when the guard, if there is
    one, sees a loop."""

    def __init__(self, budget: int | None, guard: LoopGuard | None) -> None:
        if budget is not None and budget < 0:
            raise ParameterError(f"the budget of reasoning is {budget} tokens, expected at least 0")
        self._left = budget
        self._guard = guard
        self._spent = False

    def push(self, tokens: Sequence[int]) -> int | None:
        """How many of these tokens of reasoning may stay before the span has to be closed; None: it may go on.

        The span has to be closed as soon as the budget is used up, so all of `tokens` may be the answer, and a budget
        of 0 is used up without any token. After that nothing may stay.
        """
        if self._spent:
            return 0
        stay = None
        if self._guard is not None and (certain := self._guard.push(tokens)) is not None:
            stay = certain + 1
        if self._left is not None:
            if self._left <= len(tokens):
                stay = self._left if stay is None else min(stay, self._left)
            self._left -= len(tokens)
        self._spent = stay is not None
        return stay
