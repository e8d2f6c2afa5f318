"""Reading calls that stand between a beginning and an ending marker, amid text.

`MarkedCallReader` finds the markers, trims the white space around calls, and turns what cannot be read into a broken
call; a `CallParser` reads what is between the markers, one character at a time.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

from ..closed_schema import closed
from .json_scan import parse_json
from .tool_format import (
    AnswerReader,
    CallArguments,
    CallBegin,
    CallBroken,
    CallEnd,
    Event,
    MarkerScan,
    Text,
    Tool,
    new_call_id,
)

__all__ = ["SPACE", "CallParser", "MalformedCallError", "MarkedCallReader", "arguments_schema", "parsed"]

SPACE = " \t\r\n"

# Keywords that can bring in properties which "properties" does not list.
_OPEN_KEYWORDS = frozenset(
    {
        "$dynamicRef", "$ref", "additionalProperties", "allOf", "anyOf", "dependentSchemas", "else", "if",
        "maxProperties", "minProperties", "not", "oneOf", "patternProperties", "propertyNames", "then",
        "unevaluatedProperties",
    }
)  # fmt: skip


class MalformedCallError(Exception):
    """The text is no call; the message says what is wrong. Never leaves a reader."""


class CallParser(ABC):
    """Reads one call between its markers."""

    def __init__(self, tools: Sequence[Tool]) -> None:
        self.tools = {tool.name: tool for tool in tools}
        self.name: str | None = None
        """The tool's name, as soon as it is complete and known to be a tool's."""
        self.complete = False
        """Nothing but white space may follow up to the ending marker."""
        self.pieces: list[str] = []
        """JSON of the arguments that was not handed on yet."""

    @abstractmethod
    def feed(self, character: str) -> None:
        """Raises `MalformedCallError` at the character with which the text cannot be a call any more."""

    def named(self, name: str) -> None:
        """Sets the name. Raises `MalformedCallError` where there is no such tool."""
        if name not in self.tools:
            raise MalformedCallError(f"there is no tool {name!r}")
        self.name = name


class MarkedCallReader(AnswerReader):
    """Text, and calls between two markers."""

    def __init__(self, begin: str, end: str, parser: Callable[[], CallParser]) -> None:
        self._begin = begin
        self._end = end
        self._new_parser = parser
        self._parser: CallParser | None = None  # of the call that the text is in
        self._scan = MarkerScan(begin)
        self._space = ""  # white space that is dropped if a call follows
        self._after_call = False  # white space is dropped until other text comes
        self._count = 0
        self._raw: list[str] = []
        self._begun = False
        self._fault: str | None = None
        self._tail = ""  # what follows a complete call, up to the end marker
        self._events: list[Event] = []

    def push(self, text: str) -> list[Event]:
        rest = text
        while rest:
            if self._parser is None:
                rest = self._read_text(rest)
            elif self._fault is not None:
                rest = self._skip(rest)
            else:
                rest = self._read_call(self._parser, rest)
        if self._parser is not None:
            self._hand_on(self._parser)
        events, self._events = self._events, []
        return events

    def finish(self) -> list[Event]:
        if self._parser is None:
            rest = self._space + self._scan.flush()
            if self._after_call:
                rest = rest.lstrip(SPACE)
            if rest:
                self._events.append(Text(rest))
        elif self._parser.complete and self._fault is None:
            # Only the end marker is missing, so nothing of the call is.
            self._end_call(self._parser)
        else:
            self._raw.append(self._scan.flush())
            self._break(self._parser, self._fault or "it is cut off")
        events, self._events = self._events, []
        return events

    # ---- text ----

    def _read_text(self, text: str) -> str:
        before, marker, rest = self._scan.push(text)
        before = self._space + before
        if self._after_call:
            before = before.lstrip(SPACE)
            self._after_call = not before
        shown = before.rstrip(SPACE)
        self._space = before[len(shown) :]
        if shown:
            self._events.append(Text(shown))
        if marker is not None:
            self._space = ""
            self._parser = self._new_parser()
            self._raw, self._begun, self._fault, self._tail = [self._begin], False, None, ""
        return rest

    # ---- calls ----

    def _read_call(self, parser: CallParser, text: str) -> str:
        for at, character in enumerate(text):
            try:
                if parser.complete:
                    if self._read_tail(character):
                        self._raw.append(text[: at + 1])
                        self._end_call(parser)
                        return text[at + 1 :]
                else:
                    parser.feed(character)
            except MalformedCallError as error:
                self._raw.append(text[:at])
                return self._give_up(str(error), text[at:])
        self._raw.append(text)
        return ""

    def _read_tail(self, character: str) -> bool:
        """Whether the end marker is complete with this character."""
        tail = self._tail + character
        if not tail.strip(SPACE):
            return False
        if not self._end.startswith(tail):
            raise MalformedCallError(f"{character!r} stands between its end and {self._end}")
        self._tail = tail
        return tail == self._end

    def _give_up(self, reason: str, rest: str) -> str:
        """From here on only the end of the call is looked for."""
        self._fault = reason
        self._scan = MarkerScan(self._end, self._begin)
        # What was read last may be the beginning of a marker.
        raw = "".join(self._raw)
        after_begin = raw[len(self._begin) :][-len(self._end) :]
        held = next((end for at in range(len(after_begin)) if self._may_grow(end := after_begin[at:])), "")
        self._raw = [raw[: len(raw) - len(held)]]
        return held + rest

    def _may_grow(self, text: str) -> bool:
        return any(marker.startswith(text) and marker != text for marker in (self._end, self._begin))

    def _skip(self, text: str) -> str:
        before, marker, rest = self._scan.push(text)
        self._raw.append(before)
        if marker is None or self._parser is None or self._fault is None:
            return rest
        if marker == self._end:
            self._raw.append(marker)
        else:
            rest = marker + rest
        self._break(self._parser, self._fault)
        return rest

    def _hand_on(self, parser: CallParser) -> None:
        if parser.name is None:
            return
        if not self._begun:
            self._begun = True
            self._events.append(CallBegin(self._count, parser.name, new_call_id()))
        if parser.pieces:
            self._events.append(CallArguments(self._count, "".join(parser.pieces)))
            parser.pieces.clear()

    def _end_call(self, parser: CallParser) -> None:
        self._hand_on(parser)
        self._events.append(CallEnd(self._count))
        self._leave()

    def _break(self, parser: CallParser, fault: str) -> None:
        self._hand_on(parser)
        what = "a call" if parser.name is None else f"the call of {parser.name!r}"
        self._events.append(CallBroken(self._count, "".join(self._raw), f"{what} is malformed: {fault}"))
        self._leave()

    def _leave(self) -> None:
        self._count += 1
        self._parser = None
        self._after_call = True
        self._raw = []
        self._scan = MarkerScan(self._begin)


def parsed(text: str) -> Any:
    """The value of a JSON text. Raises `MalformedCallError`."""
    try:
        return parse_json(text)
    except ValueError as error:
        raise MalformedCallError(f"its JSON is invalid: {error}") from None


def arguments_schema(tool: Tool) -> dict[str, Any]:
    """The schema of a tool's arguments for a grammar: an object, and closed unless it says otherwise. What this schema
    allows, the tool's own schema allows too."""
    schema = dict(tool.parameters)
    if "$ref" not in schema:
        schema.setdefault("type", "object")
    properties = schema.get("properties", {})
    if _OPEN_KEYWORDS.isdisjoint(schema) and set(schema.get("required", ())) <= set(properties):
        schema.update(properties=properties, additionalProperties=False)
    return dict(closed(schema))
