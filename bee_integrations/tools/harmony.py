"""gpt-oss's answers in the harmony format: messages in channels.

    <|channel|>analysis<|message|>The user asks ...<|end|><|start|>assistant<|channel|>commentary
     to=functions.get_weather <|constrain|>json<|message|>{"city": "Paris"}<|call|>

An answer begins right after `<|start|>assistant`. The channel "analysis" is reasoning, "final" is what the user reads,
and so is "commentary" unless it goes to a function. A call ends the answer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from ..errors import ParameterError
from .call_history import one_call_each, plain_messages
from .hermes import json_rule
from .json_scan import ObjectScan
from .marked_calls import arguments_schema
from .step_reader import StepReader, described
from .tool_format import AnswerReader, Event, Literal, MarkerScan, Tool, ToolFormat

__all__ = ["HarmonyFormat"]

_START, _CHANNEL, _MESSAGE = "<|start|>", "<|channel|>", "<|message|>"
_CONSTRAIN = "<|constrain|>"
_ENDS = ("<|end|>", "<|return|>", "<|call|>")
_TO = "to=functions."
_SPACE = " \t\r\n"

# What may stand between the name of a function and the message: a channel, and how the arguments are written.
_AFTER_NAME = r"\s*(?:<\|channel\|>\s*\w+)?\s*(?:<\|constrain\|>)?\s*\w*\s*"


class HarmonyFormat(ToolFormat):
    """<|channel|>commentary to=functions.name <|constrain|>json<|message|>{...}."""

    name: ClassVar[str] = "harmony"
    trigger: ClassVar[str] = f"{_CHANNEL}commentary {_TO}"
    ends_turn: ClassVar[bool] = True
    markers: ClassVar[tuple[str, ...]] = (_START, _CHANNEL, _MESSAGE, _CONSTRAIN, *_ENDS)
    reads_all: ClassVar[bool] = True
    answer_opening: ClassVar[str] = f"{_CHANNEL}final{_MESSAGE}"

    @classmethod
    def recognises(cls, template: str) -> bool:
        return all(part in template for part in (_CHANNEL, _MESSAGE, "functions", "commentary", "analysis"))

    def prompt(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Tool]
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]] | None]:
        """The template takes one call per message, and with it either text or reasoning, which it calls "thinking"."""
        prepared = one_call_each(plain_messages(messages))
        for message in prepared:
            thinking = message.pop("reasoning_content", None) or message.get("thinking")
            if "tool_calls" in message and thinking and message["content"]:
                # Both would be written into the channel of reasoning anyway.
                message["content"] = f"{thinking}\n\n{message['content']}"
                thinking = None
            message.pop("thinking", None)
            if thinking:
                message["thinking"] = thinking
        return super().prompt(prepared, tools)

    def call_rules(self, tools: Sequence[Tool], literal: Literal, *, parallel: bool) -> str:
        """These models call one tool at a time, so `parallel` changes nothing.

        Raises `ParameterError` where a tool's name cannot be written in this format.
        """
        calls = " | ".join(f"call_{index}" for index in range(len(tools)))
        content = f"({literal(f' {_CONSTRAIN}json')} | {literal(' json')})?"
        rules = [f"after_trigger: {calls}", f"content: {content} {literal(_MESSAGE)}"]
        for index, tool in enumerate(tools):
            if not tool.name.strip() or re.search(r"\s|<\|", tool.name):
                raise ParameterError(f"the tool {tool.name!r} cannot be called by models of this format: rename it")
            rules.append(f"call_{index}: {literal(tool.name)} content arguments_{index}")
            rules.append(f"arguments_{index}: {json_rule(arguments_schema(tool))}")
        return "\n".join(rules) + "\n"

    def reader(self, tools: Sequence[Tool]) -> AnswerReader:
        return _Reader(tools)


class _Reader(StepReader):
    def __init__(self, tools: Sequence[Tool]) -> None:
        super().__init__(tools)
        self._header = ""
        self._name: str | None = None
        self._marker = MarkerScan(_MESSAGE, *_ENDS)
        self._object = ObjectScan("{")
        self.step = self._beginning

    def finish(self) -> list[Event]:
        if self.step == self._beginning:
            self.say(self._header)
        elif self.step == self._head:
            self._header += self._marker.flush()
            self._finish_head()
        elif self.step == self._said:
            self.say(self._marker.flush())
        elif self.step == self._thought:
            self.think(self._marker.flush())
        elif self.step == self._after_arguments:
            self.end_call()  # at most a part of the marker is missing
        elif self.step == self._skip:
            self.raw += self._marker.flush()
            self.break_call(str(self.fault))
        elif self.step == self._arguments:
            self.break_call(f"{described(self._name)} is cut off")
        self.say_held_space()
        return self.take()

    # ---- headers ----

    def _beginning(self, text: str) -> str:
        """Without a header, an answer is text."""
        self._header += text
        bare = self._header.lstrip(_SPACE)
        openings = (_START, _CHANNEL, _MESSAGE, _TO)
        if any(bare.startswith(opening) for opening in openings):
            return self._enter_head(self._take_header())
        if any(opening.startswith(bare) for opening in openings):
            return ""
        return self._enter(self._said, self._take_header())

    def _take_header(self) -> str:
        header, self._header = self._header, ""
        return header

    def _enter_head(self, text: str) -> str:
        self._header = ""
        self._marker = MarkerScan(_MESSAGE, *_ENDS)
        self.step = self._head
        return text

    def _head(self, text: str) -> str:
        before, marker, rest = self._marker.push(text)
        self._header += before
        if marker is None:
            return rest
        if marker != _MESSAGE:
            self._finish_head()
            return self._enter(self._between, rest)
        return self._begin_body(rest)

    def _finish_head(self) -> None:
        """A header without a message: only a call is worth a word."""
        if _TO in self._header:
            self.open_call(self._header)
            self.break_call(f"{described(self._called())} is cut off")
        elif not any(marker in self._header for marker in (_START, _CHANNEL)) and self.step == self._head:
            self.say(self._header)

    def _called(self) -> str | None:
        """The name of the function that the header names."""
        after = self._header.partition(_TO)[2]
        for name in sorted(self.names, key=len, reverse=True):
            if after.startswith(name) and re.fullmatch(_AFTER_NAME, after[len(name) :]):
                return name
        found = re.match(r"(?:(?!<\|)\S)+", after)
        return found.group() if found else None

    def _begin_body(self, rest: str) -> str:
        header = self._header
        if re.search(r"\bto=", header.replace("to=assistant", "")):
            return self._begin_call(rest)
        channel = header.partition(_CHANNEL)[2].split()
        other_role = header.startswith(_START) and not header.startswith(f"{_START}assistant")
        if other_role or (channel and channel[0] == "analysis"):
            return self._enter(self._thought, rest)
        return self._enter(self._said, rest)

    # ---- bodies ----

    def _enter(self, step: Any, rest: str) -> str:
        self._marker = MarkerScan(*_ENDS, _START, _CHANNEL)
        self.step = step
        return rest

    def _said(self, text: str) -> str:
        before, marker, rest = self._marker.push(text)
        self.say(before)
        return self._after_body(marker, rest)

    def _thought(self, text: str) -> str:
        before, marker, rest = self._marker.push(text)
        self.think(before)
        return self._after_body(marker, rest)

    def _after_body(self, marker: str | None, rest: str) -> str:
        if marker is None:
            return rest
        if marker in _ENDS:
            return self._enter(self._between, rest)
        return self._enter_head(marker + rest)

    def _between(self, text: str) -> str:
        """After the end of a message; what is no header is text again."""
        bare = text.lstrip(_SPACE)
        if not bare:
            return ""
        return self._enter(self._said, bare)

    # ---- calls ----

    def _begin_call(self, rest: str) -> str:
        self.open_call(self._header + _MESSAGE)
        self._name = self._called() if _TO in self._header else None
        self._object = ObjectScan("{")
        if self._name is None:
            recipient = self._header.partition("to=")[2].split()
            return self._give_up(f"there is no recipient {recipient[0] if recipient else ''!r}", rest)
        if self._name not in self.names:
            return self._give_up(f"there is no tool {self._name!r}", rest)
        self.begin(self._name)
        self.step = self._arguments
        return rest

    def _give_up(self, fault: str, rest: str) -> str:
        self.fault = fault
        return self._enter(self._skip, rest)

    def _skip(self, text: str) -> str:
        before, marker, rest = self._marker.push(text)
        self.raw += before
        if marker is None:
            return rest
        self.break_call(str(self.fault))
        return self._after_body(marker, rest)

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
            return self._give_up(f"{described(self._name)} is malformed: {error}", rest)
        return self._enter(self._after_arguments, rest)

    def _after_arguments(self, text: str) -> str:
        before, marker, rest = self._marker.push(text)
        self.raw += before
        if before.strip(_SPACE):
            found = before.strip(_SPACE)[0]
            fault = f"{described(self._name)} is malformed: {found!r} follows its arguments"
            return self._give_up(fault, (marker or "") + self._marker.flush() + rest)
        if marker is None:
            return rest
        self.end_call()
        return self._after_body(marker, rest)
