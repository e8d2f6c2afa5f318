"""Gemma 4's calls: a notation of its own, with strings between `<|"|>` marks and bare keys.

    <|tool_call>call:get_weather{city:<|"|>Paris<|"|>,days:[1,2]}<tool_call|>

A string may hold anything but the mark; nothing is escaped. Keys stand in alphabetical order, as the template sorts
them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import ParameterError
from .argument_rules import arguments_schema
from .call_history import plain_messages
from .gemma4_grammar import MARK, NUMBER, value_rules
from .json_scan import SPACE
from .marked_calls import CharacterParser, MalformedCallError, MarkedCallReader
from .tool_format import AnswerReader, Literal, MarkerScan, Tool, ToolFormat

__all__ = ["Gemma4Format"]

_BEGIN = "<|tool_call>"
_END = "<tool_call|>"
_MAX_DEPTH = 200
_CHANNEL, _CHANNEL_END = "<|channel>", "<channel|>"  # around what is not for the user
_CONSTANTS = {"true": "true", "false": "false", "null": "null", "None": "null"}  # the template writes None


class Gemma4Format(ToolFormat):
    """<|tool_call>call:name{key:value}<tool_call|>."""

    name: str = "gemma4"
    models: str = "Gemma 4"
    example: str = '<|tool_call>call:name{key:<|"|>value<|"|>}<tool_call|>'
    trigger: str = _BEGIN
    markers: tuple[str, ...] = (_BEGIN, _END, '<|"|>', _CHANNEL, _CHANNEL_END)
    reads_all: bool = True
    ends_turn: bool = True

    def recognises(self, template: str) -> bool:
        return _BEGIN in template and _END in template and MARK in template

    def prompt(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Tool]
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]] | None]:
        """Results become part of the message that called: every template of the family takes them there."""
        prepared: list[dict[str, Any]] = []
        caller: dict[str, Any] | None = None
        for message in plain_messages(messages):
            if message.get("role") == "tool" and caller is not None:
                response = {"name": _called_name(caller, message), "response": message["content"]}
                caller.setdefault("tool_responses", []).append(response)
                continue
            caller = message if "tool_calls" in message else None
            prepared.append(message)
        return super().prompt(prepared, tools)

    def call_rules(self, tools: Sequence[Tool], literal: Literal, *, parallel: bool) -> str:
        """Raises `ParameterError` for a tool's name, and `ConstraintError` for a part of a schema, that this notation
        or the translation of schemas cannot express."""
        more = f"({literal(_BEGIN)} call)*" if parallel else ""
        rules = [f"after_trigger: call {more}", "call: " + " | ".join(f"call_{i}" for i in range(len(tools)))]
        for index, tool in enumerate(tools):
            if "{" in tool.name or tool.name != tool.name.strip(SPACE):
                raise ParameterError(f"the tool {tool.name!r} cannot be called by models of this format: rename it")
            head, end = literal(f"call:{tool.name}"), literal(_END)
            rules.append(f"call_{index}: {head} arguments_{index} {end}")
            rules += value_rules(f"arguments_{index}", arguments_schema(tool), literal, f"tool {tool.name!r}: ")
        return "\n".join(rules) + "\n"

    def reader(self, tools: Sequence[Tool]) -> AnswerReader:
        channel = (_CHANNEL, _CHANNEL_END)
        return MarkedCallReader(_BEGIN, _END, lambda: _Parser(tools), thought=channel, title="thought")


def _called_name(caller: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    """The name of the tool that gave a result."""
    calls = caller["tool_calls"]
    for call in calls:
        if call.get("id") is not None and call["id"] == result.get("tool_call_id"):
            return str(call["function"]["name"])
    answered = len(caller.get("tool_responses", ()))
    # Without ids, results come in the order of the calls.
    return str(result.get("name") or calls[min(answered, len(calls) - 1)]["function"]["name"])


class _Parser(CharacterParser):
    """Turns the notation into JSON, one character at a time."""

    markers: tuple[str, ...] = (_BEGIN, _END)

    def __init__(self, tools: Sequence[Tool]) -> None:
        super().__init__(tools)
        self.step = self._prefix
        self._text = ""  # of what is being read: the prefix, the name, a key, a number
        self._open: list[str] = []  # the brackets that are still to be closed
        self._string = MarkerScan(MARK)

    def _prefix(self, character: str) -> None:
        self._text += character
        if not "call:".startswith(self._text):
            raise MalformedCallError(f"{self._text!r} stands where call: is expected")
        if self._text == "call:":
            self._text = ""
            self.step = self._tool_name

    def _tool_name(self, character: str) -> None:
        if character != "{":
            self._add(character)
            return
        self.named(self._text)
        self._enter("{", "}")

    def _add(self, character: str) -> None:
        """Reads on in a name, a key or a number."""
        self._text += character
        self.check_word(self._text)

    # ---- values ----

    def _enter(self, opening: str, closing: str) -> None:
        if len(self._open) == _MAX_DEPTH:
            raise MalformedCallError("it is nested too deeply")
        self._open.append(closing)
        self.pieces.append(opening)
        self._text = ""
        self.step = self._first_key if closing == "}" else self._first_item

    def _leave(self, character: str) -> None:
        if character != self._open[-1]:
            raise MalformedCallError(f"{character!r} stands where {self._open[-1]!r} is expected")
        self._open.pop()
        self.pieces.append(character)
        self.step = self._after_value
        self.complete = not self._open

    def _first_key(self, character: str) -> None:
        if character == "}" and not self._text:
            self._leave(character)
        elif character not in SPACE:
            self.step = self._key
            self._key(character)

    def _key(self, character: str) -> None:
        if character != ":":
            self._add(character)
            return
        self.pieces.append(json.dumps(self._text.strip(SPACE), ensure_ascii=False) + ": ")
        self._text = ""
        self.step = self._value

    def _first_item(self, character: str) -> None:
        if character == "]":
            self._leave(character)
        elif character not in SPACE:
            self.step = self._value
            self._value(character)

    def _value(self, character: str) -> None:
        if character in SPACE:
            return
        if character == "{":
            self._enter("{", "}")
        elif character == "[":
            self._enter("[", "]")
        elif character == "<":
            self._text = character
            self.step = self._opening_mark
        else:
            self._text = ""
            self.step = self._scalar
            self._scalar(character)

    def _opening_mark(self, character: str) -> None:
        self._text += character
        if not MARK.startswith(self._text):
            raise MalformedCallError(f"{self._text!r} stands where a value is expected")
        if self._text == MARK:
            self.pieces.append('"')
            self._string = MarkerScan(MARK)
            self.step = self._string_text

    def _string_text(self, character: str) -> None:
        text, mark, _ = self._string.push(character)
        if text:
            self.pieces.append(json.dumps(text, ensure_ascii=False)[1:-1])
        if mark is not None:
            self.pieces.append('"')
            self.step = self._after_value

    def _scalar(self, character: str) -> None:
        if character not in ",}]" + SPACE:
            self._add(character)
            return
        if self._text in _CONSTANTS:
            self.pieces.append(_CONSTANTS[self._text])
        elif re.fullmatch(NUMBER, self._text):
            self.pieces.append(self._text)
        else:
            raise MalformedCallError(f"{self._text!r} is no value")
        self.step = self._after_value
        self._after_value(character)

    def _after_value(self, character: str) -> None:
        if character in SPACE:
            return
        if character != ",":
            self._leave(character)
            return
        self.pieces.append(", ")
        self._text = ""
        self.step = self._key if self._open[-1] == "}" else self._value
