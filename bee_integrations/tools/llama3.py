"""Llama 3's calls: the whole answer is one JSON object.

    {"name": "get_weather", "parameters": {"city": "Paris"}}

Llama 3.1, 3.2 and 3.3. The reader also takes what these models are seen to write now and then: a leading
`<|python_tag|>`, "arguments" in place of "parameters", a "type" before the name, and several calls that are separated
by ";" or line breaks.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

from .argument_rules import json_call_rules
from .call_history import one_call_each, plain_messages
from .json_scan import SPACE, CallScan
from .step_reader import StepReader, described
from .tool_format import AnswerReader, Event, Literal, Tool, ToolFormat, Trigger

__all__ = ["Llama3Format"]

_TAG = "<|python_tag|>"
_ARGUMENTS = ("parameters", "arguments")


class Llama3Format(ToolFormat):
    """{"name": ..., "parameters": ...} as the whole answer."""

    name: str = "llama3"
    models: str = "Llama 3.1 to 3.3"
    example: str = '{"name": "name", "parameters": {"key": "value"}}'
    markers: tuple[str, ...] = (_TAG,)
    trigger: str = '{"name": "'
    trigger_at_start: bool = True
    other_triggers: tuple[Trigger, ...] = tuple(
        Trigger(text, at_start=True)
        for text in (
            f'{_TAG}{{"name": "',
            '{"type": "function", "name": "',
            f'{_TAG}{{"type": "function", "name": "',
        )
    )
    ends_turn: bool = True

    def recognises(self, template: str) -> bool:
        return (
            "<|start_header_id|>" in template and "tools_in_user_message" in template and '"parameters": ' in template
        )

    def prompt(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Tool]
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]] | None]:
        """The templates take one call per message, and of a message with a call only the call."""
        prepared: list[dict[str, Any]] = []
        for message in one_call_each(plain_messages(messages)):
            if "tool_calls" in message and message["content"]:
                prepared.append({key: value for key, value in message.items() if key != "tool_calls"})
                message = {**message, "content": ""}
            prepared.append(message)
        return super().prompt(prepared, tools)

    def call_rules(self, tools: Sequence[Tool], literal: Literal, *, parallel: bool) -> str:
        """These models call one tool at a time, so `parallel` changes nothing."""

        def head(tool: Tool) -> str:
            # The trigger has the first quote.
            return literal(json.dumps(tool.name, ensure_ascii=False)[1:] + ', "parameters": ')

        return "\n".join(["after_trigger: call", *json_call_rules(tools, head, literal("}"))]) + "\n"

    def reader(self, tools: Sequence[Tool]) -> AnswerReader:
        return _Reader(tools)


class _Reader(StepReader):
    def __init__(self, tools: Sequence[Tool]) -> None:
        super().__init__(tools)
        self._spellings = [json.dumps(name, ensure_ascii=ascii)[1:-1] for name in self.names for ascii in (True, False)]
        self._held = ""  # what stands before a call, should one come
        self._skipped = SPACE
        self._scan = CallScan(_ARGUMENTS)
        self.step = self._before_call

    def finish(self) -> list[Event]:
        if self.step == self._before_call:
            # What separates calls is dropped even where no other follows.
            self.say(self._held if self._held.strip(self._skipped) or not self.after_call else "")
        elif self.step == self._object and not self.begun and not self._named_in_part():
            self.say(self.raw)
        elif self.step == self._object:
            self.break_call(f"{described(self._scan.name)} is cut off")
        elif self.step == self._broken_object:
            self.break_call()
        self.say_held_space()
        return self.take()

    # ---- steps ----

    def _before_call(self, text: str) -> str:
        self._held += text
        bare = self._held.lstrip(self._skipped)
        if bare.startswith(_TAG):
            bare = bare[len(_TAG) :].lstrip(SPACE)
        if not bare or _TAG.startswith(bare):
            return ""
        before, self._held = self._held[: len(self._held) - len(bare)], ""
        if not bare.startswith("{"):
            return self._give_way(before + bare)
        self.open_call(before)
        self._scan = CallScan(_ARGUMENTS)
        self.step = self._object
        return bare

    def _object(self, text: str) -> str:
        rest, done = self.scan_call(self._scan, text)
        if not self.begun and self._is_no_call(done):
            return self._give_way(self.raw + rest)
        if not done:
            return rest
        if self._scan.error is not None:
            self.step = self._broken_object
            return rest
        if self.fault is None:
            self.end_call()
        else:
            self.break_call()
        self._skipped = SPACE + ";"
        self.step = self._before_call
        return rest

    def _broken_object(self, text: str) -> str:
        """Nothing marks the end of an object that is malformed."""
        self.keep(text)
        return ""

    def _text(self, text: str) -> str:
        self.say(text)
        return ""

    def _give_way(self, text: str) -> str:
        self.step = self._text
        return text

    # ---- calls and what only looks like one ----

    def is_call(self, scan: CallScan) -> bool:
        """Whether only keys of calls stand before the name."""
        before_name = itertools.takewhile(lambda key: key != "name", scan.members)
        return all(key in (*_ARGUMENTS, "type", "id") for key in before_name)

    def _is_no_call(self, done: bool) -> bool:
        """Whether an object in which no tool is named by now is none of a call, but part of what the model says."""
        return not self.is_call(self._scan) or (done and (self._scan.name is None or not self._scan.seen_arguments))

    def _named_in_part(self) -> bool:
        """Whether an object that is cut off has a call's name, or the beginning of a tool's."""
        partial = self._scan.partial_name
        if partial is not None:
            return any(name.startswith(partial) for name in self._spellings)
        return self._scan.name is not None and self._scan.seen_arguments
