"""Calls as JSON between `<tool_call>` and `</tool_call>`.

    <tool_call>
    {"name": "get_weather", "arguments": {"city": "Paris"}}
    </tool_call>

Hermes 2 and 3, Qwen 2.5, Qwen 3, QwQ, MiMo, Granite 4, Bielik 3, Reka Edge, and whoever's template writes calls in
this way.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from .argument_rules import json_call_rules
from .call_history import plain_messages
from .json_scan import CallScan
from .marked_calls import CallParser, MarkedCallReader
from .tool_format import AnswerReader, Literal, Tool, ToolFormat

__all__ = ["BEGIN", "END", "HermesFormat", "call_head", "call_text"]

BEGIN = "<tool_call>"
END = "</tool_call>"

# The beginning of a call in a template, which may break strings between the marker and the object, and escape quotes.
_CALL = re.compile(r"<tool_call>(?:[\s'\"{}~+-]|\\n){0,80}\{\s*\\?\"name\\?\"\s*:")


class HermesFormat(ToolFormat):
    """JSON between `<tool_call>` and `</tool_call>`."""

    name: str = "hermes"
    models: str = "Hermes 2 and 3, Qwen2.5, Qwen3, QwQ, MiMo, Granite 4, Bielik 3, Reka Edge"
    example: str = '<tool_call>\n{"name": "name", "arguments": {"key": "value"}}\n</tool_call>'
    trigger: str = BEGIN
    markers: tuple[str, ...] = (BEGIN, END)

    def recognises(self, template: str) -> bool:
        return "tools" in template and _CALL.search(template) is not None

    def prompt(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Tool]
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]] | None]:
        """Some templates of the family look into content that is not there."""
        return super().prompt(plain_messages(messages), tools)

    def call_rules(self, tools: Sequence[Tool], literal: Literal, *, parallel: bool) -> str:
        """One trigger opens one call, so `parallel` changes nothing."""
        # The line breaks are optional: the token that completes the trigger may end with something else, and some
        # models write the markers without any.
        rules = [f'after_trigger: "\\n"? call "\\n"? {literal(END)}']
        rules += json_call_rules(tools, lambda tool: literal(call_head(tool.name)), literal("}"))
        return "\n".join(rules) + "\n"

    def reader(self, tools: Sequence[Tool]) -> AnswerReader:
        return MarkedCallReader(BEGIN, END, lambda: _JsonCallParser(tools))


def call_head(name: str) -> str:
    """What stands before the arguments of a call that is an object."""
    return f'{{"name": {json.dumps(name, ensure_ascii=False)}, "arguments": '


def call_text(name: str, arguments: str) -> str:
    """A call as models write it. `arguments`: the JSON text of an object."""
    return f"{BEGIN}\n{call_head(name)}{arguments}}}\n{END}"


class _JsonCallParser(CallParser):
    """An object of "name" and "arguments", in either order."""

    def __init__(self, tools: Sequence[Tool]) -> None:
        super().__init__(tools)
        self._scan = CallScan(other_keys=False)

    def push(self, text: str) -> str:
        """A call of an unknown tool is read to its end, too: its arguments may hold what looks like the marker."""
        piece, rest, self.complete = self._scan.push(text)
        if self._scan.name in self.tools:
            self.name = self._scan.name
            self.pieces.append(piece)
        if self._scan.error is not None:
            self.fault = f"its JSON is invalid: {self._scan.error}"
        elif self.complete and self.name is None:
            self.fault = f"there is no tool {self._scan.name!r}"
        return rest
