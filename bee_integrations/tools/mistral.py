"""Mistral's calls, after the control token `[TOOL_CALLS]`.

Mistral 7B v0.3, Nemo and others of their time write one array:

    [TOOL_CALLS][{"name": "get_weather", "arguments": {"city": "Paris"}, "id": "A1b2C3d4E"}]

Mistral Small 3.2, Devstral, Ministral and Magistral write one call after the other; in some of them an id follows the
name, as `[CALL_ID]A1b2C3d4E`:

    [TOOL_CALLS]get_weather[ARGS]{"city": "Paris"}
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from ..errors import ParameterError
from .call_history import plain_messages, short_ids
from .hermes import json_rule
from .json_scan import CallScan, ObjectScan
from .marked_calls import arguments_schema
from .step_reader import StepReader, described
from .tool_format import AnswerReader, Event, Literal, MarkerScan, Tool, ToolFormat

__all__ = ["MistralArgsFormat", "MistralFormat"]

_CALLS = "[TOOL_CALLS]"
_ARGS = "[ARGS]"
_ID = "[CALL_ID]"
_ID_RULE = "/[a-zA-Z0-9]{9}/"
_SPACE = " \t\r\n"


class MistralFormat(ToolFormat):
    """[TOOL_CALLS] and an array of objects."""

    name: ClassVar[str] = "mistral"
    trigger: ClassVar[str] = _CALLS
    markers: ClassVar[tuple[str, ...]] = (_CALLS, _ID, _ARGS)
    ends_turn: ClassVar[bool] = True

    @classmethod
    def recognises(cls, template: str) -> bool:
        return _CALLS in template and _ARGS not in template

    def prompt(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Tool]
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]] | None]:
        """The templates take no ids but those of nine letters and digits."""
        return super().prompt(short_ids(plain_messages(messages)), tools)

    def call_rules(self, tools: Sequence[Tool], literal: Literal, *, parallel: bool) -> str:
        more = f"({literal(', ')} call)*" if parallel else ""
        rules = [
            f"after_trigger: {literal('[')} call {more} {literal(']')}",
            "call: " + " | ".join(f"call_{index}" for index in range(len(tools))),
        ]
        id_member = " ".join([literal(', "id": "'), _ID_RULE, literal('"}')])
        for index, tool in enumerate(tools):
            head = f'{{"name": {json.dumps(tool.name, ensure_ascii=False)}, "arguments": '
            rules.append(f"call_{index}: {literal(head)} arguments_{index} {id_member}")
            rules.append(f"arguments_{index}: {json_rule(arguments_schema(tool))}")
        return "\n".join(rules) + "\n"

    def reader(self, tools: Sequence[Tool]) -> AnswerReader:
        return _Reader(tools)


class MistralArgsFormat(ToolFormat):
    """[TOOL_CALLS], a name, [ARGS] and an object."""

    name: ClassVar[str] = "mistral-args"
    trigger: ClassVar[str] = _CALLS
    markers: ClassVar[tuple[str, ...]] = (_CALLS, _ID, _ARGS)
    ends_turn: ClassVar[bool] = True

    @classmethod
    def recognises(cls, template: str) -> bool:
        return _CALLS in template and _ARGS in template

    def prompt(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Tool]
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]] | None]:
        """The templates take no ids but those of nine letters and digits."""
        return super().prompt(short_ids(plain_messages(messages)), tools)

    def call_rules(self, tools: Sequence[Tool], literal: Literal, *, parallel: bool) -> str:
        """The id after the name is left to the model, which knows whether it was trained to write one.

        Raises `ParameterError` where a tool's name cannot be written in this format.
        """
        more = f"({literal(_CALLS)} call)*" if parallel else ""
        rules = [
            f"after_trigger: call {more}",
            "call: " + " | ".join(f"call_{index}" for index in range(len(tools))),
            f"call_id: {literal(_ID)} {_ID_RULE}",
        ]
        for index, tool in enumerate(tools):
            if tool.name != tool.name.strip(_SPACE) or any(marker in tool.name for marker in (_CALLS, _ARGS, _ID)):
                raise ParameterError(f"the tool {tool.name!r} cannot be called by models of this format: rename it")
            rules.append(f"call_{index}: {literal(tool.name)} call_id? {literal(_ARGS)} arguments_{index}")
            rules.append(f"arguments_{index}: {json_rule(arguments_schema(tool))}")
        return "\n".join(rules) + "\n"

    def reader(self, tools: Sequence[Tool]) -> AnswerReader:
        return _Reader(tools)


class _Reader(StepReader):
    """Reads both forms; the first character after [TOOL_CALLS] tells which one it is."""

    def __init__(self, tools: Sequence[Tool]) -> None:
        super().__init__(tools)
        self._marker = MarkerScan(_CALLS)
        self._head = MarkerScan(_ARGS, _ID, _CALLS)
        self._name = ""
        self._id: str | None = None
        self._object = ObjectScan("{")
        self._scan = CallScan(("arguments", "parameters"))
        self.step = self._text

    def finish(self) -> list[Event]:
        if self.step == self._text:
            self.say(self._marker.flush())
            self.say_held_space()
        elif self.step == self._skip:
            self.raw += self._marker.flush()
            self.break_call(str(self.fault))
        elif self.step != self._after_member:
            name = self._scan.name if self.step == self._member else self._name.strip(_SPACE)
            self.break_call(f"{described(name or None)} is cut off")
        return self.take()

    # ---- text ----

    def _text(self, text: str) -> str:
        before, marker, rest = self._marker.push(text)
        self.say(before)
        if marker is not None:
            self._begin_after(marker)
        return rest

    def _begin_after(self, marker: str) -> None:
        self.open_call(marker)
        self._name = ""
        self.step = self._opening

    def _opening(self, text: str) -> str:
        bare = text.lstrip(_SPACE)
        self.raw += text[: len(text) - len(bare)]
        if bare.startswith("["):
            self.raw += "["
            self.step = self._first_member
            return bare[1:]
        if bare:
            self._head = MarkerScan(_ARGS, _ID, _CALLS)
            self._name, self._id = "", None
            self.step = self._name_text
        return bare

    def _give_up(self, fault: str, rest: str) -> str:
        """Only the next [TOOL_CALLS] ends a call that is malformed."""
        self.fault = fault
        self._marker = MarkerScan(_CALLS)
        self.step = self._skip
        return rest

    def _skip(self, text: str) -> str:
        before, marker, rest = self._marker.push(text)
        self.raw += before
        if marker is not None:
            self.break_call(str(self.fault))
            self._begin_after(marker)
        return rest

    # ---- the array form ----

    def _first_member(self, text: str) -> str:
        return self._member_after(text, "]")

    def _next_member(self, text: str) -> str:
        return self._member_after(text, "")

    def _member_after(self, text: str, end: str) -> str:
        bare = text.lstrip(_SPACE)
        self.raw += text[: len(text) - len(bare)]
        if not bare:
            return ""
        if bare[0] == end:
            return self._give_up("the array of calls is empty", bare)
        if bare[0] != "{" and self.raw.endswith("["):
            # What looked like the beginning of an array may be that of a marker.
            self.raw, found = self.raw[:-1], bare[0]
            return self._give_up(f"a call is malformed: expected {{, found {found!r}", "[" + bare)
        self._scan = CallScan(("arguments", "parameters"))
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
            self.break_call(self.fault)
        self.step = self._after_member
        return rest

    def _after_member(self, text: str) -> str:
        bare = text.lstrip(_SPACE)
        if not bare:
            return ""
        if bare[0] == "]":
            self._marker = MarkerScan(_CALLS)
            self.step = self._text
            return bare[1:]
        if bare[0] == ",":
            self.open_call(",")
            self.step = self._next_member
            return bare[1:]
        self.open_call("")
        return self._give_up(f"a call is malformed: expected , or ] after the one before, found {bare[0]!r}", bare)

    # ---- the form with [ARGS] ----

    def _name_text(self, text: str) -> str:
        before, marker, rest = self._head.push(text)
        self._name += before
        self.raw += text[: len(text) - len(rest)]
        name = self._name.strip(_SPACE)
        if marker is None:
            return rest
        if marker == _CALLS:
            return self._broken_head("another one begins before its arguments", marker + rest)
        if name not in self.names:
            return self._give_up(f"there is no tool {name!r}", rest)
        self._head = MarkerScan(_ARGS, _CALLS)
        self.step = self._id_text
        if marker == _ARGS:
            return self._announce(rest)
        self._id = ""
        return rest

    def _id_text(self, text: str) -> str:
        before, marker, rest = self._head.push(text)
        self._id = (self._id or "") + before
        self.raw += text[: len(text) - len(rest)]
        if marker is None:
            return rest
        if marker == _CALLS:
            return self._broken_head("another one begins before its arguments", marker + rest)
        return self._announce(rest)

    def _broken_head(self, what: str, rest: str) -> str:
        self.raw = self.raw[: len(self.raw) - len(_CALLS)]
        return self._give_up(f"{described(self._name.strip(_SPACE) or None)} is malformed: {what}", rest)

    def _announce(self, rest: str) -> str:
        self.begin(self._name.strip(_SPACE), None if self._id is None else self._id.strip(_SPACE))
        self._object = ObjectScan("{")
        self.step = self._arguments
        return rest

    def _arguments(self, text: str) -> str:
        piece, rest, done = self._object.push(text)
        self.raw += text[: len(text) - len(rest)]
        self.argue(piece)
        if not done:
            return rest
        error = self._object.error
        if error is None:
            try:
                self._object.value()
            except ValueError as invalid:
                error = str(invalid)
        if error is not None:
            return self._give_up(f"{described(self._name.strip(_SPACE))} is malformed: {error}", rest)
        self.end_call()
        self._marker = MarkerScan(_CALLS)
        self.step = self._text
        return rest
