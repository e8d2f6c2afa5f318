"""Mistral's calls, after the control token `[TOOL_CALLS]`.

Mistral 7B v0.3, Nemo and others of their time write one array:

    [TOOL_CALLS][{"name": "get_weather", "arguments": {"city": "Paris"}, "id": "A1b2C3d4E"}]

Mistral Small 3.2, Devstral, Ministral and Magistral write one call after the other; in some of them an id follows the
name, as `[CALL_ID]A1b2C3d4E`:

    [TOOL_CALLS]get_weather[ARGS]{"city": "Paris"}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import ParameterError
from .argument_rules import json_call_rules
from .call_history import plain_messages, short_ids
from .hermes import call_head
from .json_scan import SPACE, CallScan, ValueScan
from .step_reader import StepReader, described
from .tool_format import AnswerReader, Event, Literal, Tool, ToolFormat

__all__ = ["MistralArgsFormat", "MistralFormat"]

_CALLS = "[TOOL_CALLS]"
_ARGS = "[ARGS]"
_ID = "[CALL_ID]"
_ARGUMENTS = ("arguments", "parameters")
_ID_RULE = "/[a-zA-Z0-9]{9}/"


class MistralFormat(ToolFormat):
    """[TOOL_CALLS] and an array of objects."""

    name: str = "mistral"
    models: str = "Mistral 7B v0.3, Nemo"
    example: str = '[TOOL_CALLS][{"name": "name", "arguments": {"key": "value"}, "id": "a1B2c3D4e"}]'
    trigger: str = _CALLS
    markers: tuple[str, ...] = (_CALLS, _ID, _ARGS)
    ends_turn: bool = True

    def recognises(self, template: str) -> bool:
        return _CALLS in template and _ARGS not in template

    def prompt(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Tool]
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]] | None]:
        """The templates take no ids but those of nine letters and digits."""
        return super().prompt(short_ids(plain_messages(messages)), tools)

    def call_rules(self, tools: Sequence[Tool], literal: Literal, *, parallel: bool) -> str:
        more = f"({literal(', ')} call)*" if parallel else ""
        rules = [f"after_trigger: {literal('[')} call {more} {literal(']')}"]
        id_member = " ".join([literal(', "id": "'), _ID_RULE, literal('"}')])
        rules += json_call_rules(tools, lambda tool: literal(call_head(tool.name)), id_member)
        return "\n".join(rules) + "\n"

    def reader(self, tools: Sequence[Tool]) -> AnswerReader:
        return _Reader(tools)


class MistralArgsFormat(MistralFormat):
    """[TOOL_CALLS], a name, [ARGS] and an object."""

    name: str = "mistral-args"
    models: str = "Mistral Small 3.2, Devstral, Ministral, Magistral"
    example: str = '[TOOL_CALLS]name[ARGS]{"key": "value"}'

    def recognises(self, template: str) -> bool:
        return _CALLS in template and _ARGS in template

    def call_rules(self, tools: Sequence[Tool], literal: Literal, *, parallel: bool) -> str:
        """The id after the name is left to the model, which knows whether it was trained to write one.

        Raises `ParameterError` where a tool's name cannot be written in this format.
        """
        more = f"({literal(_CALLS)} call)*" if parallel else ""
        for tool in tools:
            if tool.name != tool.name.strip(SPACE) or any(marker in tool.name for marker in (_CALLS, _ARGS, _ID)):
                raise ParameterError(f"the tool {tool.name!r} cannot be called by models of this format: rename it")
        rules = [f"after_trigger: call {more}", f"call_id: {literal(_ID)} {_ID_RULE}"]
        rules += json_call_rules(tools, lambda tool: f"{literal(tool.name)} call_id? {literal(_ARGS)}")
        return "\n".join(rules) + "\n"


class _Reader(StepReader):
    """Reads both forms; the first character after [TOOL_CALLS] tells which one it is."""

    def __init__(self, tools: Sequence[Tool]) -> None:
        super().__init__(tools)
        self._name = ""
        self._id: str | None = None
        self._object = ValueScan("{")
        self._scan = CallScan(_ARGUMENTS)
        self.enter(self._text, _CALLS)

    def finish(self) -> list[Event]:
        if self.step == self._text:
            self.say(self.marker.flush())
            self.say_held_space()
        elif self.step == self._skip:
            self.keep(self.marker.flush())
            self.break_call()
        elif self.step != self._after_member:
            name = self._scan.name if self.step == self._member else self._name.strip(SPACE)
            self.break_call(f"{described(name or None)} is cut off")
        return self.take()

    # ---- text ----

    def _text(self, text: str) -> str:
        before, marker, rest = self.marker.push(text)
        self.say(before)
        if marker is not None:
            self._begin_after(marker)
        return rest

    def _begin_after(self, marker: str) -> None:
        self.open_call(marker)
        self._name = ""
        self.step = self._opening

    def _opening(self, text: str) -> str:
        bare = text.lstrip(SPACE)
        self.keep(text, bare)
        if bare.startswith("["):
            self.keep("[")
            self.step = self._first_member
            return bare[1:]
        if bare:
            self._name, self._id = "", None
            self.enter(self._name_text, _ARGS, _ID, _CALLS)
        return bare

    def _give_up(self, fault: str, rest: str) -> str:
        """Only the next [TOOL_CALLS] ends a call that is malformed."""
        self.fault = fault
        self.enter(self._skip, _CALLS)
        return rest

    def _skip(self, text: str) -> str:
        before, marker, rest = self.marker.push(text)
        self.keep(before)
        if marker is not None:
            self.break_call()
            self._begin_after(marker)
        return rest

    # ---- the array form ----

    def _first_member(self, text: str) -> str:
        return self._member_after(text, "]")

    def _next_member(self, text: str) -> str:
        return self._member_after(text, "")

    def _member_after(self, text: str, end: str) -> str:
        bare = text.lstrip(SPACE)
        self.keep(text, bare)
        if not bare:
            return ""
        if bare[0] == end:
            return self._give_up("the array of calls is empty", bare)
        if bare[0] != "{" and self.raw.endswith("["):
            # What looked like the beginning of an array may be that of a marker.
            return self._give_up(f"a call is malformed: expected {{, found {bare[0]!r}", self.take_back(1) + bare)
        self._scan = CallScan(_ARGUMENTS)
        self.step = self._member
        return bare

    def _member(self, text: str) -> str:
        rest, done = self.scan_call(self._scan, text)
        if not done:
            return rest
        if self._scan.error is not None:
            return self._give_up(str(self.fault), rest)
        if self.fault is None:
            self.end_call()
        else:
            self.break_call()
        self.step = self._after_member
        return rest

    def _after_member(self, text: str) -> str:
        bare = text.lstrip(SPACE)
        if not bare:
            return ""
        if bare[0] == "]":
            self.enter(self._text, _CALLS)
            return bare[1:]
        if bare[0] == ",":
            self.open_call(",")
            self.step = self._next_member
            return bare[1:]
        self.open_call("")
        return self._give_up(f"a call is malformed: expected , or ] after the one before, found {bare[0]!r}", bare)

    # ---- the form with [ARGS] ----

    def _name_text(self, text: str) -> str:
        before, marker, rest = self.marker.push(text)
        self._name += before
        self.keep(text, rest)
        name = self._name.strip(SPACE)
        if marker is None:
            return rest
        if marker == _CALLS:
            return self._give_up_head(rest)
        if name not in self.names:
            return self._give_up(f"there is no tool {name!r}", rest)
        if marker == _ARGS:
            return self._announce(rest)
        self._id = ""
        self.enter(self._id_text, _ARGS, _CALLS)
        return rest

    def _id_text(self, text: str) -> str:
        before, marker, rest = self.marker.push(text)
        self._id = (self._id or "") + before
        self.keep(text, rest)
        if marker is None:
            return rest
        if marker == _CALLS:
            return self._give_up_head(rest)
        return self._announce(rest)

    def _give_up_head(self, rest: str) -> str:
        fault = f"{described(self._name.strip(SPACE) or None)} is malformed: another one begins before its arguments"
        return self._give_up(fault, self.take_back(len(_CALLS)) + rest)

    def _announce(self, rest: str) -> str:
        self.begin(self._name.strip(SPACE), None if self._id is None else self._id.strip(SPACE))
        self._object = ValueScan("{")
        self.step = self._arguments
        return rest

    def _arguments(self, text: str) -> str:
        rest, done = self.scan_arguments(self._object, self._name.strip(SPACE), text)
        if self.fault is not None:
            return self._give_up(self.fault, rest)
        if done:
            self.end_call()
            self.enter(self._text, _CALLS)
        return rest
