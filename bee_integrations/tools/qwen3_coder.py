"""Calls as nested tags, with one tag for each parameter.

    <tool_call>
    <function=get_weather>
    <parameter=city>
    Paris
    </parameter>
    </function>
    </tool_call>

Qwen3-Coder, Qwen 3.5, Nemotron 3 Nano and Step 3.5. A parameter whose schema allows only texts stands there as it is,
up to the line that closes it; where null is allowed too, the text `null` means null. Everything else is JSON.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any

from ..errors import ConstraintError, ParameterError
from .argument_rules import arguments_schema, json_rule
from .hermes import BEGIN, END, HermesFormat
from .json_scan import SPACE, parse_json
from .marked_calls import CharacterParser, MalformedCallError, MarkedCallReader
from .text_schema import possible_types, resolve, text_terminal, with_definitions
from .tool_format import AnswerReader, Literal, MarkerScan, Tool

__all__ = ["Qwen3CoderFormat"]

_FUNCTION = "<function="
_FUNCTION_END = "</function>"
_PARAMETER = "<parameter="
_HEAD_END = ">\n"
_VALUE_END = "\n</parameter>"

# The beginning of a call in a template, which may break strings between the tags.
_CALL = re.compile(r"<tool_call>(?:[\s'\"{}~+-]|\\n){0,80}<function=")

# Members of an object that tags cannot say, or that no grammar for tags can keep to.
_REFUSED = (
    "allOf", "anyOf", "dependentRequired", "dependentSchemas", "else", "if", "maxProperties", "minProperties", "not",
    "oneOf", "patternProperties", "propertyNames", "then", "unevaluatedProperties",
)  # fmt: skip


class Qwen3CoderFormat(HermesFormat):
    """The markers of Hermes, and tags between them."""

    name: str = "qwen3_coder"
    ends_thinking: bool = True

    def recognises(self, template: str) -> bool:
        return "tools" in template and _CALL.search(template) is not None

    def call_rules(self, tools: Sequence[Tool], literal: Literal, *, parallel: bool) -> str:
        """One trigger opens one call, so `parallel` changes nothing.

        Raises `ConstraintError` for schemas that cannot be kept to where parameters are tags, and `ParameterError`
        for names that cannot be in a tag.
        """
        calls = " | ".join(f"call_{index}" for index in range(len(tools)))
        # The line breaks are optional: the token that completes the trigger may end with something else, and some
        # models write the markers without any.
        rules = [f'after_trigger: "\\n"? ({calls}) {literal(_FUNCTION_END)} "\\n"? {literal(END)}']
        # Up to the first closing tag.
        rules.append(r"text[lazy]: /(?s:.*)\n<\/parameter>/")
        for index, tool in enumerate(tools):
            rules += _ToolRules(tool, f"call_{index}", literal).rules
        return "\n".join(rules) + "\n"

    def reader(self, tools: Sequence[Tool]) -> AnswerReader:
        signatures = {tool.name: _Signature(tool) for tool in tools}
        return MarkedCallReader(BEGIN, END, lambda: _TagCallParser(tools, signatures))


class _Kind(Enum):
    """How a parameter's value is written."""

    TEXT = "as it is"
    TEXT_OR_NULL = "as it is, and null without quotes"
    JSON = "as JSON"
    JSON_OR_TEXT = "as JSON; what is none is a text"


class _Signature:
    """The parameters of a tool."""

    def __init__(self, tool: Tool) -> None:
        """Raises `ConstraintError` for references that lead nowhere."""
        self._tool = tool
        self.root = tool.parameters
        try:
            self.schema = arguments_schema(Tool(tool.name, "", resolve(tool.parameters, self.root)))
            self.properties: dict[str, Any] = dict(self.schema.get("properties", {}))
            self.required = frozenset(self.schema.get("required", ()))
            self.others: Any = self.schema.get("additionalProperties", True)
            for name in self.schema.get("required", ()):
                self.properties.setdefault(name, self.others)
            self._kinds = {name: self._kind(schema) for name, schema in self.properties.items()}
            self._kind_of_others = self._kind(self.others)
        except ValueError as error:
            raise self.error(str(error)) from None

    def kind(self, parameter: str) -> _Kind:
        return self._kinds.get(parameter, self._kind_of_others)

    def _kind(self, schema: Any) -> _Kind:
        types = possible_types(schema, self.root)
        if "string" not in types:
            return _Kind.JSON
        if types == {"string"}:
            return _Kind.TEXT
        return _Kind.TEXT_OR_NULL if types == {"string", "null"} else _Kind.JSON_OR_TEXT

    def error(self, what: str) -> ConstraintError:
        return ConstraintError(f"the parameters of the tool {self._tool.name!r} do not fit qwen3_coder: {what}")


class _ToolRules:
    """Rules of one tool's call, of which the first has the given name."""

    def __init__(self, tool: Tool, rule: str, literal: Literal) -> None:
        self._tool = tool
        self._signature = _Signature(tool)
        self._literal = literal
        self._check()
        parameters = [f"{rule}_{index}" for index in range(len(self._signature.properties))]
        wanted = [
            name if parameter in self._signature.required else f"{name}?"
            for name, parameter in zip(parameters, self._signature.properties, strict=True)
        ]
        if self._signature.others is not False and "additionalProperties" in self._signature.schema:
            wanted.append(f"{rule}_others*")
        self.rules = [f"{rule}: {literal(_FUNCTION + tool.name + _HEAD_END)} {' '.join(wanted)}"]
        for name, (parameter, schema) in zip(parameters, self._signature.properties.items(), strict=True):
            self._add(name, literal(_PARAMETER + parameter + _HEAD_END), parameter, schema)
        if wanted[-1:] == [f"{rule}_others*"]:
            self._add_others(f"{rule}_others")

    def _check(self) -> None:
        for word in _REFUSED:
            if word in self._signature.schema:
                raise self._signature.error(f"{word!r} at the top of a schema cannot be kept to")
        for name in (self._tool.name, *self._signature.properties):
            if any(part in name for part in (_HEAD_END, BEGIN, END)):
                raise ParameterError(f"the tool {self._tool.name!r}: the name {name!r} cannot be in a tag; rename it")

    def _add(self, rule: str, head: str, parameter: str, schema: Any) -> None:
        if schema is False:
            raise self._signature.error(f"nothing is allowed for {parameter!r}")
        kind = self._signature.kind(parameter)
        if kind in (_Kind.JSON, _Kind.JSON_OR_TEXT):
            value = json_rule(with_definitions(schema, self._signature.root))
            self.rules.append(f"{rule}: {head} {rule}_value {self._literal(_VALUE_END + chr(10))}")
            self.rules.append(f"{rule}_value: {value}")
            return
        try:
            terminal = text_terminal(schema, self._signature.root)
        except ValueError as error:
            raise self._signature.error(f"{parameter!r}: {error}") from None
        if terminal is None:
            self.rules.append(f'{rule}: {head} text "\\n"')
            return
        name = rule.upper()
        ending = r"/(?s:.*)\n<\/parameter>(?s:.*)/"
        null = ' | "null"' if kind is _Kind.TEXT_OR_NULL else ""
        self.rules.append(f'{rule}: {head} {name} "\\n"')
        self.rules.append(f"{name}: {name}_VALUE {json.dumps(_VALUE_END)}")
        self.rules.append(f"{name}_VALUE: ({terminal}{null}) & ~{ending}")

    def _add_others(self, rule: str) -> None:
        known = "".join(f" & ~{json.dumps(name)}" for name in self._signature.properties)
        self.rules.append(f"{rule.upper()}_NAME: /[^<>=\\n]{{1,64}}/{known}")
        head = f"{json.dumps(_PARAMETER)} {rule.upper()}_NAME {json.dumps(_HEAD_END)}"
        self._add(rule, head, "", self._signature.others)


class _TagCallParser(CharacterParser):
    """Turns tags into the JSON text of an object while they come."""

    markers: tuple[str, ...] = (BEGIN, END)

    def __init__(self, tools: Sequence[Tool], signatures: Mapping[str, _Signature]) -> None:
        super().__init__(tools)
        self._signatures = signatures
        self.step = self._before_function
        self._tag = ""
        self._name = ""
        self._seen: set[str] = set()
        self._parameter = ""
        self._kind = _Kind.TEXT
        self._scan = MarkerScan(_VALUE_END)
        self._value: list[str] = []
        self._in_text = False  # the opening quote was written

    # ---- steps: each takes one character, and sets the next step ----

    def _before_function(self, character: str) -> None:
        if self._read_tag(character, _FUNCTION) is not None:
            self.step = self._in_function_name

    def _in_function_name(self, character: str) -> None:
        name = self._read_name(character)
        if name is not None:
            self.named(name)
            self.pieces.append("{")
            self.step = self._between

    def _between(self, character: str) -> None:
        tag = self._read_tag(character, _PARAMETER, _FUNCTION_END)
        if tag == _PARAMETER:
            self.step = self._in_parameter_name
        elif tag == _FUNCTION_END:
            missing = self._signatures[self.name or ""].required - self._seen
            if missing:
                raise MalformedCallError(f"it has no {min(missing)!r}")
            self.pieces.append("}")
            self.complete = True

    def _in_parameter_name(self, character: str) -> None:
        name = self._read_name(character)
        if name is None:
            return
        signature = self._signatures[self.name or ""]
        if name in self._seen and name in signature.properties:
            raise MalformedCallError(f"the parameter {name!r} is there twice")
        if name not in signature.properties and signature.others is False:
            raise MalformedCallError(f"it has no parameter {name!r}")
        self.pieces.append(f"{', ' if self._seen else ''}{json.dumps(name, ensure_ascii=False)}: ")
        self._seen.add(name)
        self._parameter = name
        self._kind = signature.kind(name)
        self._scan, self._in_text = MarkerScan(_VALUE_END), False
        self.step = self._in_value

    def _in_value(self, character: str) -> None:
        before, end, _ = self._scan.push(character)
        if before:
            self._value.append(before)
            self._stream(before)
        if end is not None:
            self._end_value()
            self.step = self._between

    # ---- values ----

    def _stream(self, text: str) -> None:
        """Hands on what is certainly part of a text."""
        if self._in_text:
            self.pieces.append(_escaped(text))
        elif self._kind is _Kind.TEXT or (self._kind is _Kind.TEXT_OR_NULL and not self._may_be_null()):
            self._in_text = True
            self.pieces.append('"' + _escaped("".join(self._value)))

    def _may_be_null(self) -> bool:
        return len(self._value) <= 4 and any(null.startswith("".join(self._value)) for null in ("null", "None"))

    def _end_value(self) -> None:
        text = "".join(self._value)
        if self._in_text:
            self.pieces.append('"')
        elif self._kind is _Kind.TEXT or (self._kind is _Kind.TEXT_OR_NULL and text not in ("null", "None")):
            self.pieces.append(json.dumps(text, ensure_ascii=False))
        else:
            self.pieces.append(self._json_of(text))
        self._value = []

    def _json_of(self, text: str) -> str:
        # Templates render constants as Python spells them.
        bare = text.strip(SPACE)
        bare = {"True": "true", "False": "false", "None": "null"}.get(bare, bare)
        try:
            parse_json(bare)
        except ValueError as error:
            if self._kind is _Kind.JSON_OR_TEXT:
                return json.dumps(text, ensure_ascii=False)
            raise MalformedCallError(f"the JSON of {self._parameter!r} is invalid: {error}") from None
        return bare

    # ---- tags ----

    def _read_tag(self, character: str, *tags: str) -> str | None:
        """The tag that is complete with this character, after white space."""
        if not self._tag and character in SPACE:
            return None
        self._tag += character
        if self._tag in tags:
            tag, self._tag = self._tag, ""
            return tag
        if not any(tag.startswith(self._tag) for tag in tags):
            raise MalformedCallError(f"{self._tag!r} stands where {' or '.join(tags)} is expected")
        return None

    def _read_name(self, character: str) -> str | None:
        self._name += character
        self.check_word(self._name)
        if not self._name.endswith(_HEAD_END):
            return None
        name, self._name = self._name[: -len(_HEAD_END)], ""
        return name


def _escaped(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]
