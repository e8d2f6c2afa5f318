"""What the readers of all formats have in common: steps, text around calls, and the books of calls."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .json_scan import SPACE, CallScan, ValueScan
from .tool_format import (
    AnswerReader,
    CallArguments,
    CallBegin,
    CallBroken,
    CallEnd,
    Event,
    MarkerScan,
    Reasoning,
    Text,
    Tool,
    new_call_id,
)

__all__ = ["StepReader", "described", "is_call_id"]


class StepReader(AnswerReader):
    """Reads an answer step by step: `step` reads the beginning of a text, returns what it did not need, and sets the
    next step. Keeps the books of the call that is being read."""

    def __init__(self, tools: Sequence[Tool]) -> None:
        self.names = frozenset(tool.name for tool in tools)
        self.step: Callable[[str], str]
        self.marker: MarkerScan
        """Looks for what ends the current step, where that is a marker."""
        self.begun = False
        """Whether the current call's CallBegin is out."""
        self.fault: str | None = None
        """What is wrong with the current call."""
        self.after_call = False
        """Nothing but white space was read since the last call."""
        self._raw: list[str] = []
        self._index = 0
        self._ids: set[str] = set()
        self._events: list[Event] = []
        self._space = ""

    def push(self, text: str) -> list[Event]:
        while text:
            text = self.step(text)
        return self.take()

    def enter(self, step: Callable[[str], str], *markers: str) -> None:
        """The next step, which reads up to one of these markers."""
        self.step = step
        self.marker = MarkerScan(*markers)

    def take(self) -> list[Event]:
        """The events since the last time."""
        events, self._events = self._events, []
        return events

    # ---- text ----

    def say(self, text: str) -> None:
        """Text, with the white space around calls left out."""
        text = self._space + text
        if self.after_call:
            text = text.lstrip(SPACE)
            self.after_call = not text
        shown = text.rstrip(SPACE)
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

    @property
    def raw(self) -> str:
        """The text of the current call so far."""
        return "".join(self._raw)

    def keep(self, text: str, rest: str = "") -> None:
        """The text, up to the rest of it, is part of the current call."""
        self._raw.append(text[: len(text) - len(rest)])

    def take_back(self, count: int) -> str:
        """The last characters of the current call, which may rather begin another one; they are no part of it then."""
        raw = self.raw
        kept = len(raw) - count
        self._raw = [raw[:kept]]
        return raw[kept:]

    def open_call(self, raw: str) -> None:
        """A call may begin here; `raw` is what announced it."""
        self._raw = [raw]
        self.begun = False
        self.fault = None

    def begin(self, name: str, call_id: str | None = None, *, keeps_id: bool = False) -> None:
        """The name is known. An id of the model's own counts if it has the form of ours (any, with `keeps_id`) and
        was not used before."""
        if not call_id or not (keeps_id or is_call_id(call_id)) or call_id in self._ids:
            call_id = new_call_id()
        self._ids.add(call_id)
        self.begun = True
        self._space = ""
        self._events.append(CallBegin(self._index, name, call_id))

    def argue(self, piece: str) -> None:
        if piece:
            self._events.append(CallArguments(self._index, piece))

    def end_call(self) -> None:
        self._events.append(CallEnd(self._index, self.raw))
        self._close_call()

    def break_call(self, reason: str | None = None) -> None:
        """`reason`: where it is not the fault that was found before."""
        self._space = ""
        self._events.append(CallBroken(self._index, self.raw, str(reason or self.fault)))
        self._close_call()

    def _close_call(self) -> None:
        self._index += 1
        self.after_call = True
        self.open_call("")

    # ---- objects ----

    def scan_arguments(self, scan: ValueScan, name: str, text: str) -> tuple[str, bool]:
        """Reads on in the arguments of a call that is announced: (the rest, whether they are at their end). Sets
        `fault` where they are none."""
        piece, rest, done = scan.push(text)
        self.keep(text, rest)
        self.argue(piece)
        if scan.error is not None:
            self.fault = f"{described(name)} is malformed: {scan.error}"
        return rest, done

    def is_call(self, scan: CallScan) -> bool:
        """Whether an object with a tool's name is a call."""
        return True

    def scan_call(self, scan: CallScan, text: str, *, keeps_id: bool = False) -> tuple[str, bool]:
        """Reads on in a call that is an object, and announces it once its name is that of a tool: (the rest, whether
        the call is at its end). Sets `fault` where it is none."""
        piece, rest, done = scan.push(text)
        self.keep(text, rest)
        if not self.begun and scan.name in self.names and self.is_call(scan):
            self.begin(scan.name, scan.id, keeps_id=keeps_id)
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
