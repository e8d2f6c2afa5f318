"""What all tool formats have in common: tools, the events that an answer's text becomes, and the interface of a format.

A format says how one family of models is told of tools and how it writes a call. The text of an answer passes through
its reader as it comes:

    text of the model  ->  AnswerReader.push  ->  Text | Reasoning | CallBegin | CallArguments | CallEnd | CallBroken

The text that a reader gets holds those control tokens that a format names as its markers ("<|channel|>"), as they are
spelled in the vocabulary, except the token that ended the answer.
"""

from __future__ import annotations

import secrets
import string
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..text.beginnings import possible_beginning

__all__ = [
    "AnswerReader",
    "CallArguments",
    "CallBegin",
    "CallBroken",
    "CallEnd",
    "Event",
    "Literal",
    "MarkerScan",
    "Reasoning",
    "Text",
    "Tool",
    "ToolFormat",
    "Trigger",
    "new_call_id",
]

Literal = Callable[[str], str]
"""A text as a Lark expression that matches it alone: control tokens in it become token references."""


@dataclass(frozen=True)
class Tool:
    """A function that a model may call."""

    name: str
    description: str
    parameters: Mapping[str, Any]  # JSON schema of an object
    strict: bool = False  # refuse parameters with keywords that no grammar keeps

    def as_openai(self) -> dict[str, Any]:
        """The form that chat templates expect."""
        function = {"name": self.name, "description": self.description, "parameters": dict(self.parameters)}
        return {"type": "function", "function": function}


# ---- events ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Text:
    """A piece of what the model says to the user."""

    text: str


@dataclass(frozen=True)
class Reasoning:
    """A piece of what the model says to itself."""

    text: str


@dataclass(frozen=True)
class CallBegin:
    """A call whose name is known."""

    index: int  # of the call in the answer, from 0
    name: str
    id: str


@dataclass(frozen=True)
class CallArguments:
    """A piece of a call's arguments; the pieces concatenate to the JSON text of one object."""

    index: int
    json: str


@dataclass(frozen=True)
class CallEnd:
    """The call is complete."""

    index: int
    raw: str = field(default="", compare=False)  # as in CallBroken


@dataclass(frozen=True)
class CallBroken:
    """What began as a call and is none: malformed, cut off, or of an unknown tool. If a CallBegin with this index came
    before, that call is void."""

    index: int
    raw: str  # the model's text from where the call began
    reason: str


Event = Text | Reasoning | CallBegin | CallArguments | CallEnd | CallBroken


# ---- what begins a call ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trigger:
    """A text in the answer from which on the grammar of a call is in force."""

    text: str
    rule: str = "after_trigger"  # of that grammar, which follows it
    at_start: bool = False  # it counts at the answer's beginning alone, after white space at most


# ---- a format --------------------------------------------------------------------------------------------------------


class AnswerReader(ABC):
    """Turns the text of one answer into events. However the text is cut into pieces, texts and arguments concatenate to
    the same, and the other events are the same."""

    @abstractmethod
    def push(self, text: str) -> list[Event]:
        """What the text so far makes certain; text that may turn out to begin a call is held back."""

    @abstractmethod
    def finish(self) -> list[Event]:
        """The end of the answer: what was held back, as text or as a broken call."""


class ToolFormat(ABC):
    """One family's way of showing tools and writing calls. Stateless."""

    name: str
    """What users call the format."""
    models: str
    """Who writes calls so, for the documentation."""
    example: str
    """A call, for the documentation."""
    trigger: str
    """The text that begins a call. As soon as it appears, the grammar of the call is in force."""
    markers: tuple[str, ...] = ()
    """The texts between which calls stand. Where a vocabulary has control tokens for them, the reader gets their text;
    it never gets that of other control tokens."""
    trigger_at_start: bool = False
    """A call is one only at the beginning of the answer, after white space at most."""
    other_triggers: tuple[Trigger, ...] = ()
    """Other texts that begin a call, each with the rule of `call_rules` that follows it."""
    ends_thinking: bool = False
    """A call counts in the middle of thinking, too, and ends it."""
    reads_all: bool = False
    """Answers without calls need the reader, too."""
    answer_opening: str = ""
    """What stands before an answer that is no call, where `reads_all`."""
    ends_turn: bool = False
    """Nothing follows a call, or a group of calls, in the same answer."""

    def triggers_for(self, tools: Sequence[Tool]) -> tuple[Trigger, ...]:
        """All texts that begin a call of one of these tools."""
        return Trigger(self.trigger, at_start=self.trigger_at_start), *self.other_triggers

    def first_call(self, tools: Sequence[Tool], literal: Literal) -> str:
        """A Lark expression, over the rules of `call_rules`, for an answer that must be a call, up to its end."""
        return f"{literal(self.trigger)} after_trigger"

    @abstractmethod
    def recognises(self, template: str) -> bool:
        """Whether a chat template (Jinja source) is of this family."""

    def prompt(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Tool]
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]] | None]:
        """Messages and tools as the chat template takes them. Formats whose template knows tools hand them on."""
        return [dict(message) for message in messages], [tool.as_openai() for tool in tools] or None

    @abstractmethod
    def call_rules(self, tools: Sequence[Tool], literal: Literal, *, parallel: bool) -> str:
        """Rules in llguidance's Lark dialect, of which `after_trigger` is what follows the trigger up to the end of the
        call; with `parallel`, of a group of calls where one trigger opens several. No rule is called `start`."""

    @abstractmethod
    def reader(self, tools: Sequence[Tool]) -> AnswerReader:
        """A reader for an answer that may call these tools."""


# ---- for readers -----------------------------------------------------------------------------------------------------


class MarkerScan:
    """Cuts a stream of text at markers, holding back what may turn out to begin one."""

    def __init__(self, *markers: str) -> None:
        self._markers = markers
        self.held = ""

    def push(self, text: str) -> tuple[str, str | None, str]:
        """(text before the first marker, the marker, what follows it); without a marker (certain text, None, "").

        Of markers that begin at the same character, the longest counts, so none should begin with another one. One that
        may have begun before another is waited for.
        """
        pending = self.held + text
        certain = len(pending) - possible_beginning(pending, self._markers)
        found = self._first(pending)
        if found is not None and found[0] <= certain:
            return self._cut(pending, *found)
        self.held = pending[certain:]
        return pending[:certain], None, ""

    def end(self) -> tuple[str, str | None, str]:
        """As `push`, where no more text will come."""
        found = self._first(self.held)
        return (self.flush(), None, "") if found is None else self._cut(self.held, *found)

    def _first(self, text: str) -> tuple[int, str] | None:
        found = [(at, -len(marker), marker) for marker in self._markers if (at := text.find(marker)) >= 0]
        at, _, marker = min(found, default=(0, 0, ""))
        return (at, marker) if marker else None

    def _cut(self, text: str, at: int, marker: str) -> tuple[str, str | None, str]:
        self.held = ""
        return text[:at], marker, text[at + len(marker) :]

    def flush(self) -> str:
        """What is held back."""
        held, self.held = self.held, ""
        return held


def new_call_id() -> str:
    """A fresh identifier: nine letters and digits, which is what the strictest template (Mistral's) accepts."""
    return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(9))
