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
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from .call_history import plain_messages
from .marked_calls import SPACE, CallParser, MalformedCallError, MarkedCallReader, arguments_schema, parsed
from .tool_format import AnswerReader, Literal, Tool, ToolFormat

__all__ = ["BEGIN", "END", "HermesFormat", "call_text", "json_rule"]

BEGIN = "<tool_call>"
END = "</tool_call>"

# The beginning of a call in a template, which may break strings between the marker and the object, and escape quotes.
_CALL = re.compile(r"<tool_call>(?:[\s'\"{}~+-]|\\n){0,80}\{\s*\\?\"name\\?\"\s*:")


class HermesFormat(ToolFormat):
    """JSON between `<tool_call>` and `</tool_call>`."""

    name: ClassVar[str] = "hermes"
    trigger: ClassVar[str] = BEGIN
    markers: ClassVar[tuple[str, ...]] = (BEGIN, END)

    @classmethod
    def recognises(cls, template: str) -> bool:
        return "tools" in template and _CALL.search(template) is not None

    def prompt(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Tool]
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]] | None]:
        """Some templates of the family look into content that is not there."""
        return super().prompt(plain_messages(messages), tools)

    def call_rules(self, tools: Sequence[Tool], literal: Literal, *, parallel: bool) -> str:
        """One trigger opens one call, so `parallel` changes nothing."""
        calls = " | ".join(f"call_{index}" for index in range(len(tools)))
        # The line break is optional, since the token that completes the trigger may end with something else.
        rules = [f'after_trigger: "\\n"? ({calls}) {literal(chr(10) + END)}']
        for index, tool in enumerate(tools):
            head = f'{{"name": {json.dumps(tool.name, ensure_ascii=False)}, "arguments": '
            rules.append(f"call_{index}: {literal(head)} arguments_{index} {literal('}')}")
            rules.append(f"arguments_{index}: {json_rule(arguments_schema(tool))}")
        return "\n".join(rules) + "\n"

    def reader(self, tools: Sequence[Tool]) -> AnswerReader:
        return MarkedCallReader(BEGIN, END, lambda: _JsonCallParser(tools))


def call_text(name: str, arguments: str) -> str:
    """A call as models write it. `arguments`: the JSON text of an object."""
    return f'{BEGIN}\n{{"name": {json.dumps(name, ensure_ascii=False)}, "arguments": {arguments}}}\n{END}'


def json_rule(schema: Any) -> str:
    """A Lark expression for the JSON texts of a schema, on one line and spaced as Python and templates space them.

    White space that may repeat would let a model write nothing else for ever.
    """
    spacing = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
    if schema is True:
        schema = {}
    return f"%json {json.dumps({**schema, 'x-guidance': spacing})}"


class _JsonCallParser(CallParser):
    """An object of "name" and "arguments", in either order."""

    def __init__(self, tools: Sequence[Tool]) -> None:
        super().__init__(tools)
        self._step: Callable[[str], None] = self._open
        self._key = ""
        self._seen: set[str] = set()
        self._string: list[str] = []
        self._escaped = False
        self._in_string = False  # of the arguments
        self._depth = 0
        self._arguments: list[str] = []

    def feed(self, character: str) -> None:
        self._step(character)

    # ---- steps: each takes one character, and sets the next step ----

    def _open(self, character: str) -> None:
        if character not in SPACE:
            self._expect(character, "{", "a JSON object")
            self._step = self._before_key

    def _before_key(self, character: str) -> None:
        if character not in SPACE:
            self._expect(character, '"', "a key")
            self._string = ['"']
            self._step = self._in_key

    def _in_key(self, character: str) -> None:
        text = self._string_of(character)
        if text is None:
            return
        if text not in ("name", "arguments") or text in self._seen:
            raise MalformedCallError(f"the key {text!r} is {'there twice' if text in self._seen else 'none of a call'}")
        self._key = text
        self._seen.add(text)
        self._step = self._before_colon

    def _before_colon(self, character: str) -> None:
        if character not in SPACE:
            self._expect(character, ":", '":"')
            self._step = self._before_name if self._key == "name" else self._before_arguments

    def _before_name(self, character: str) -> None:
        if character not in SPACE:
            self._expect(character, '"', "the tool's name in quotes")
            self._string = ['"']
            self._step = self._in_name

    def _in_name(self, character: str) -> None:
        name = self._string_of(character)
        if name is not None:
            self.named(name)
            self.pieces += self._arguments
            self._step = self._after_value

    def _before_arguments(self, character: str) -> None:
        if character not in SPACE:
            self._expect(character, "{", "the arguments as a JSON object")
            self._depth = 1
            self._argue(character)
            self._step = self._in_arguments

    def _in_arguments(self, character: str) -> None:
        if self._in_string:
            self._in_argument_string(character)
        elif character == '"':
            self._in_string = True
        elif character in "{[":
            self._depth += 1
        elif character in "}]":
            self._depth -= 1
        if self._depth == 0:
            parsed("".join(self._arguments) + character)
            self._step = self._after_value
        self._argue(character)

    def _after_value(self, character: str) -> None:
        if character in SPACE:
            return
        if character == ",":
            self._step = self._before_key
            return
        self._expect(character, "}", '"," or "}"')
        missing = {"name", "arguments"} - self._seen
        if missing:
            raise MalformedCallError(f"it has no {min(missing)!r}")
        self.complete = True

    # ---- pieces ----

    def _argue(self, character: str) -> None:
        self._arguments.append(character)
        if self.name is not None:
            self.pieces.append(character)

    def _in_argument_string(self, character: str) -> None:
        if self._escaped:
            self._escaped = False
        elif character == "\\":
            self._escaped = True
        elif character == '"':
            self._in_string = False
        elif character < " ":
            raise MalformedCallError(f"{character!r} stands in a JSON string")

    def _string_of(self, character: str) -> str | None:
        """The string that ends with this character, or None where it goes on."""
        self._string.append(character)
        if self._escaped:
            self._escaped = False
        elif character == "\\":
            self._escaped = True
        elif character == '"':
            return str(parsed("".join(self._string)))
        elif character < " ":
            raise MalformedCallError(f"{character!r} stands in a JSON string")
        return None

    @staticmethod
    def _expect(character: str, expected: str, what: str) -> None:
        if character != expected:
            raise MalformedCallError(f"{character!r} stands where {what} is expected")
