"""Answers of chats: events step by step, and what they add up to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ..engine.engine import Step
from ..generation import TokenLogprob
from ..tools.argument_check import CheckedCalls
from ..tools.tool_format import (
    AnswerReader,
    CallArguments,
    CallBegin,
    CallBroken,
    CallEnd,
    Event,
    Reasoning,
    Text,
    Tool,
    ToolFormat,
)
from .metadata import finish_reason
from .reasoning import ReasoningSpan, ReasoningSplitter

__all__ = ["Piece", "Reply", "ReplyCall", "ReplyReader"]


@dataclass(frozen=True)
class Piece:
    """What one step of the engine brought."""

    events: tuple[Event, ...]
    step: Step


@dataclass
class ReplyCall:
    """A whole call of a tool."""

    id: str
    name: str
    arguments: str = ""  # the JSON text of an object


@dataclass
class Reply:
    """A whole answer."""

    text: str = ""
    reasoning: str = ""
    calls: dict[int, ReplyCall] = field(default_factory=dict)  # by index
    broken: list[CallBroken] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    last: Step = field(default_factory=lambda: Step("", ()))

    def add(self, piece: Piece) -> None:
        """Put the next piece to what came before."""
        self.last = piece.step
        self.logprobs += piece.step.logprobs
        for event in piece.events:
            match event:
                case Text(text):
                    self.text += text
                case Reasoning(text):
                    self.reasoning += text
                case CallBegin(index, name, call_id):
                    self.calls[index] = ReplyCall(call_id, name)
                case CallArguments(index, json):
                    self.calls[index].arguments += json
                case CallEnd():
                    pass
                case CallBroken(index):
                    self.calls.pop(index, None)
                    self.broken.append(event)

    @property
    def finish_reason(self) -> str:
        """ "tool_calls" where there are calls and the answer ended by itself; otherwise as the step says."""
        return finish_reason(self.last, bool(self.calls))


class ReplyReader:
    """The text of one answer: thinking first, then what the tool format makes of the rest."""

    def __init__(
        self,
        style: ToolFormat | None,
        tools: Sequence[Tool],
        span: ReasoningSpan | None,
        *,
        opened: bool,
        demanded: bool,
        ends_thinking: Sequence[str] = (),
    ) -> None:
        """style: None reads no calls. opened: the prompt ends inside the span. demanded: the answer is a call.
        ends_thinking: what ends the thinking besides the span's end, and is no part of it."""
        self._splitter = ReasoningSplitter(span, opened, ends_thinking)
        self._calls: AnswerReader | None = style.reader(tools) if style is not None else None
        self._beginnings = [one.text for one in style.triggers_for(tools)] if style is not None and demanded else []
        self._checked = CheckedCalls(tools)
        self._n_calls = 0  # that have ended, well or not

    def read(self, step: Step) -> list[Event]:
        """What the text of the next step brings."""
        events = self._of_answer(self._splitter.push(step.text))
        if step.finish_reason is not None:
            events += self._of_answer(self._splitter.finish())
            events += self._calls.finish() if self._calls is not None else []
        events = self._checked.passed(events, bound=step.bound)
        self._n_calls += sum(isinstance(event, (CallEnd, CallBroken)) for event in events)
        return events if step.finish_reason is None else [self._as_cut_call(event) for event in events]

    def _as_cut_call(self, event: Event) -> Event:
        """What is left of a call that was cut off before its beginning was complete is no text."""
        if isinstance(event, Text) and any(one.startswith(event.text) for one in self._beginnings):
            return CallBroken(self._n_calls, event.text, "the call is cut off before it has begun")
        return event

    def _of_answer(self, split: Sequence[Text | Reasoning]) -> list[Event]:
        events: list[Event] = []
        for event in split:
            events += self._calls.push(event.text) if isinstance(event, Text) and self._calls is not None else [event]
        return events
