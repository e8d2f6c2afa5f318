"""gpt-oss's answers in the harmony format: messages in channels.

    <|channel|>analysis<|message|>The user asks ...<|end|><|start|>assistant<|channel|>commentary
     to=functions.get_weather <|constrain|>json<|message|>{"city": "Paris"}<|call|>

An answer begins right after `<|start|>assistant`. The channel "analysis" is reasoning, "final" is what the user reads,
and so is "commentary" unless it goes to a function. A call ends the answer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..errors import ParameterError
from .argument_rules import json_call_rules
from .call_history import one_call_each, plain_messages
from .json_scan import SPACE, ValueScan
from .step_reader import StepReader, described
from .tool_format import AnswerReader, Event, Literal, Tool, ToolFormat, Trigger

__all__ = ["HarmonyFormat"]

_START, _CHANNEL, _MESSAGE = "<|start|>", "<|channel|>", "<|message|>"
_CONSTRAIN = "<|constrain|>"
_ENDS = ("<|end|>", "<|return|>", "<|call|>")
_TO = "to=functions."

# What may stand between the name of a function and the message: a channel, and how the arguments are written.
_AFTER_NAME = r" ?(?:<\|channel\|> ?\w+)? ?(?:<\|constrain\|>)? ?\w* ?"


class HarmonyFormat(ToolFormat):
    """<|channel|>commentary to=functions.name <|constrain|>json<|message|>{...}."""

    name: str = "harmony"
    models: str = "gpt-oss"
    example: str = '<|channel|>commentary to=functions.name <|constrain|>json<|message|>{"key": "value"}<|call|>'
    trigger: str = f"{_CHANNEL}commentary {_TO}"
    other_triggers: tuple[Trigger, ...] = (
        Trigger(f"{_CHANNEL}analysis {_TO}"),
        # The recipient may follow the role.
        Trigger(f"{_START}assistant {_TO}", "after_recipient"),
        Trigger(_TO, "after_recipient", at_start=True),
    )
    ends_turn: bool = True
    markers: tuple[str, ...] = (_START, _CHANNEL, _MESSAGE, _CONSTRAIN, *_ENDS)
    reads_all: bool = True
    answer_opening: str = f"{_CHANNEL}final{_MESSAGE}"

    def recognises(self, template: str) -> bool:
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
        content = f"({literal(f' {_CONSTRAIN}json')} | {literal(' json')})?"
        for tool in tools:
            if not tool.name.strip() or re.search(r"\s|<\|", tool.name):
                raise ParameterError(f"the tool {tool.name!r} cannot be called by models of this format: rename it")
        rules = ["after_trigger: call", f"content: {content} {literal(_MESSAGE)}"]
        rules += json_call_rules(tools, lambda tool: f"{literal(tool.name)} content")
        channel = literal(f"{_CHANNEL}commentary")
        called = (f"{literal(tool.name)} {channel} content arguments_{index}" for index, tool in enumerate(tools))
        rules.append(f"after_recipient: {' | '.join(called)}")
        return "\n".join(rules) + "\n"

    def reader(self, tools: Sequence[Tool]) -> AnswerReader:
        return _Reader(tools)


class _Reader(StepReader):
    def __init__(self, tools: Sequence[Tool]) -> None:
        super().__init__(tools)
        self._header = ""
        self._name: str | None = None
        self._object = ValueScan("{")
        self.enter(self._beginning)

    def finish(self) -> list[Event]:
        if self.step == self._beginning:
            self.say(self._header)
        elif self.step == self._head:
            self._header += self.marker.flush()
            self._finish_head()
        elif self.step == self._said:
            self.say(self.marker.flush())
        elif self.step == self._thought:
            self.think(self.marker.flush())
        elif self.step == self._after_arguments:
            self.end_call()  # at most a part of the marker is missing
        elif self.step == self._skip:
            self.keep(self.marker.flush())
            self.break_call()
        elif self.step == self._arguments:
            self.break_call(f"{described(self._name)} is cut off")
        self.say_held_space()
        return self.take()

    # ---- headers ----

    def _beginning(self, text: str) -> str:
        """Without a header, an answer is text."""
        self._header += text
        bare = self._header.lstrip(SPACE)
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
        self.enter(self._head, _MESSAGE, *_ENDS)
        return text

    def _head(self, text: str) -> str:
        before, marker, rest = self.marker.push(text)
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
        after = re.sub(r"\s+", " ", self._header.partition(_TO)[2])  # the pattern takes one space at a time at most
        for name in sorted(self.names, key=len, reverse=True):
            if after.startswith(name) and re.fullmatch(_AFTER_NAME, after[len(name) :]):
                return name
        found = re.match(r"(?:(?!<\|)\S)+", after)
        return found.group() if found else None

    def _begin_body(self, rest: str) -> str:
        header = self._header
        if re.search(r"\bto=", header.replace("to=assistant", "")):
            return self._begin_call(rest)
        channel = header.rpartition(_CHANNEL)[2].split() if _CHANNEL in header else ()  # the last one counts
        other_role = header.startswith(_START) and not header.startswith(f"{_START}assistant")
        if other_role or (channel and channel[0] == "analysis"):
            return self._enter(self._thought, rest)
        return self._enter(self._said, rest)

    # ---- bodies ----

    def _enter(self, step: Callable[[str], str], rest: str) -> str:
        self.enter(step, *_ENDS, _START, _CHANNEL)
        return rest

    def _said(self, text: str) -> str:
        before, marker, rest = self.marker.push(text)
        self.say(before)
        return self._after_body(marker, rest)

    def _thought(self, text: str) -> str:
        before, marker, rest = self.marker.push(text)
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
        bare = text.lstrip(SPACE)
        if not bare:
            return ""
        return self._enter(self._said, bare)

    # ---- calls ----

    def _begin_call(self, rest: str) -> str:
        self.open_call(self._header + _MESSAGE)
        self._name = self._called() if _TO in self._header else None
        self._object = ValueScan("{")
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
        before, marker, rest = self.marker.push(text)
        self.keep(before)
        if marker is None:
            return rest
        self.break_call()
        return self._after_body(marker, rest)

    def _arguments(self, text: str) -> str:
        rest, done = self.scan_arguments(self._object, str(self._name), text)
        if not done:
            return rest
        return self._enter(self._after_arguments if self.fault is None else self._skip, rest)

    def _after_arguments(self, text: str) -> str:
        before, marker, rest = self.marker.push(text)
        self.keep(before)
        if before.strip(SPACE):
            found = before.strip(SPACE)[0]
            fault = f"{described(self._name)} is malformed: {found!r} follows its arguments"
            return self._give_up(fault, (marker or "") + self.marker.flush() + rest)
        if marker is None:
            return rest
        self.end_call()
        return self._after_body(marker, rest)
