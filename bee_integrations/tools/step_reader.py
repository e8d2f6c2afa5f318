"""What readers have in common whose calls are not simply text between two markers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from .json_scan import CallScan
from .tool_format import (
    AnswerReader,
    CallArguments,
    CallBegin,
    CallBroken,
    CallEnd,
    Event,
    Reasoning,
    Text,
    Tool,
    new_call_id,
)

__all__ = ["StepReader", "could_be", "described", "is_call_id"]

_SPACE = " \t\r\n"


class StepReader(AnswerReader):
    """Reads an answer step by step: `step` reads the beginning of a text, returns what it did not need, and sets the
    next step. Keeps the books of the call that is being read."""

    def __init__(self, tools: Sequence[Tool]) -> None:
        self.names = frozenset(tool.name for tool in tools)
        self.step: Callable[[str], str]
        self.begun = False
        """Whether the current call's CallBegin is out."""
        self.fault: str | None = None
        """What is wrong with the current call."""
        self.raw = ""
        """The text of the current call so far."""
        self._index = 0
        self._ids: set[str] = set()
        self._events: list[Event] = []
        self._space = ""
        self.after_call = False
        """Nothing but white space was read since the last call."""

    def push(self, text: str) -> list[Event]:
        while text:
            text = self.step(text)
        return self.take()

    def take(self) -> list[Event]:
        """The events since the last time."""
        events, self._events = self._events, []
        return events

    # ---- text ----

    def say(self, text: str) -> None:
        """Text, with the white space around calls left out."""
        text = self._space + text
        if self.after_call:
            text = text.lstrip(_SPACE)
            self.after_call = not text
        shown = text.rstrip(_SPACE)
        self._space = text[len(shown) :]
        if shown:
            self._events.append(Text(shown))

    def say_held_space(self) -> None:
        """At the end of the text: white space that no call followed."""
        if self._space:
            self._events.append(Text(self._space))
            self._space = ""

    def think(self, text: str) -> None:
        if text:
            self._events.append(Reasoning(text))

    # ---- calls ----

    def open_call(self, raw: str) -> None:
        """A call may begin here; `raw` is what announced it."""
        self.raw = raw
        self.begun = False
        self.fault = None

    def begin(self, name: str, call_id: str | None = None) -> None:
        """The name is known. An id of the model's own counts if it has the form of ours and was not used before."""
        if call_id is None or not is_call_id(call_id) or call_id in self._ids:
            call_id = new_call_id()
        self._ids.add(call_id)
        self.begun = True
        self._space = ""
        self._events.append(CallBegin(self._index, name, call_id))

    def argue(self, piece: str) -> None:
        if piece:
            self._events.append(CallArguments(self._index, piece))

    def end_call(self) -> None:
        self._events.append(CallEnd(self._index))
        self._close_call()

    def break_call(self, reason: str) -> None:
        self._space = ""
        self._events.append(CallBroken(self._index, self.raw, reason))
        self._close_call()

    def _close_call(self) -> None:
        self._index += 1
        self.after_call = True
        self.open_call("")

    def is_call(self, scan: CallScan) -> bool:
        """Whether an object with a tool's name is a call."""
        return True

    def scan_call(self, scan: CallScan, text: str) -> tuple[str, bool]:
        """Reads on in a call that is an object, and announces it once its name is that of a tool: (the rest, whether
        the call is at its end). Sets `fault` where the object is malformed."""
        piece, rest, done = scan.push(text)
        self.raw += text[: len(text) - len(rest)]
        if not self.begun and scan.name in self.names and self.is_call(scan):
            self.begin(scan.name, scan.id)
        if self.begun:
            self.argue(piece)
        if scan.error is not None:
            self.fault = f"{described(scan.name)} is malformed: {scan.error}"
        elif done and not self.begun:
            self.fault = f"there is no tool {scan.name!r}"
        return rest, done


def described(name: str | None) -> str:
    """A call in the words of a reason."""
    return "a call" if name is None else f"the call of {name!r}"


def is_call_id(text: str) -> bool:
    """Whether a text has the form of the ids that we make."""
    return len(text) == 9 and text.isascii() and text.isalnum()


def could_be(names: Collection[str], beginning: str) -> bool:
    """Whether one of the names begins so."""
    return any(name.startswith(beginning) for name in names)
