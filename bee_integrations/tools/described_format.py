"""A tool format that a description tells: trigger and grammar, reader, and how a conversation is told to the model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import ParameterError
from .argument_rules import arguments_schema, json_rule
from .call_history import one_call_each, plain_messages
from .described_reader import DescribedReader
from .description import GAP, Description, Pattern, Values
from .parameter_rules import ParameterRules, gapped
from .tool_format import AnswerReader, CallBroken, CallEnd, Literal, Tool, ToolFormat, Trigger

__all__ = ["DescribedFormat", "TemplateWays", "written_call", "written_calls"]

_ID = "/[a-zA-Z0-9_.:-]{1,64}/"
_NAME_SIGN = "\ue0ff"  # stands for the name in a pattern
_GAP_RULE = r"gap: /[ \n]{1,9}/"


@dataclass(frozen=True)
class TemplateWays:
    """What a chat template does by itself, and how it wants to be given it."""

    shows_tools: bool = True
    writes_calls: bool = True
    writes_results: bool = True
    arguments_as_text: bool = False
    content_as_none: bool = False  # beside calls
    one_call: bool = False  # in a message


class DescribedFormat(ToolFormat):
    """A family's format, as far as a template can be known: with what the template does not do itself."""

    def __init__(self, description: Description, ways: TemplateWays = TemplateWays()) -> None:
        self.description = description
        self.ways = ways
        self.name = description.name
        self.models = description.models
        self.ends_turn = True
        self.ends_thinking = description.interrupts
        self.reads_all = bool(description.hidden)
        self.answer_opening = description.answer_opening
        self.markers = _markers(description)
        openings = description.openings(["$name"])
        self.trigger = openings[0][0]

    def recognises(self, template: str) -> bool:
        return self.description.recognises(template)

    def with_ways(self, ways: TemplateWays) -> DescribedFormat:
        """The format for a template that has these ways."""
        return DescribedFormat(self.description, ways)

    # ---- what begins a call, and what may follow it ------------------------------------------------------------------

    def triggers_for(self, tools: Sequence[Tool]) -> tuple[Trigger, ...]:
        d = self.description
        names = [tool.name for tool in tools]
        found = []
        for text, kind in d.openings(names):
            rule = f"after_{kind}" if kind in ("group", "call") else f"after_name_{names.index(kind)}"
            found.append(Trigger(text, rule))
            if d.prompt_end and text.startswith(d.prompt_end):
                found.append(Trigger(text[len(d.prompt_end) :], rule, at_start=True))
        return tuple(found)

    def first_call(self, tools: Sequence[Tool], literal: Literal) -> str:
        """An expression for what an answer is that must be a call."""
        d = self.description
        ways = []
        for text, rule in ((one.text, one.rule) for one in self.triggers_for(tools) if not one.at_start):
            said = text[len(d.prompt_end) :] if d.prompt_end and text.startswith(d.prompt_end) else text
            ways.append(f"{literal(said)} {rule}")
            if not d.named_trigger:
                break
        return " | ".join(ways)

    def call_rules(self, tools: Sequence[Tool], literal: Literal, *, parallel: bool) -> str:
        """Raises `ParameterError` for names, and `ConstraintError` for schemas, that this format cannot write."""
        d = self.description
        for index, tool in enumerate(tools):
            self._check_names(tool, index)
        several = parallel and d.parallel
        between, begin, end = (gapped(text, literal) for text in (d.between, d.begin, d.end))
        if d.each:
            inner, more = "call", f"({between} {begin} call {end})*" if several else ""
        else:
            inner, more = f"call ({between} call)*" if several else "call", ""
        alone = f"({between} {begin} call {end})*" if several else ""
        rules = ["call: " + " | ".join(f"call_{i}" for i in range(len(tools))), _GAP_RULE]
        opening = Pattern(d.begin).opening
        for index, tool in enumerate(tools if d.named_trigger or d.bare else ()):
            # Alone, a call does without what would stand around it.
            closed = f"({end})?" if end else ""
            rules.append(f"after_name_{index}: rest_{index} {closed} {alone if d.named_trigger or d.each else ''}")
            rules.append(self._call_rule(f"rest_{index}", index, tool, literal, d.named_opening(tool.name)))
        if opening and not d.named_trigger:
            rules.append(f"after_group: {gapped(d.begin[len(opening) :], literal)} {inner} {end} {more}")
        if not opening and not d.named_trigger:
            alternatives = " | ".join(f"rest_{index}" for index in range(len(tools)))
            rules.append(f"after_call: ({alternatives}) {alone}")
            for index, tool in enumerate(tools):
                rules.append(self._call_rule(f"rest_{index}", index, tool, literal, d.call_pattern.opening))
        for index, tool in enumerate(tools):
            rules.append(self._call_rule(f"call_{index}", index, tool, literal, ""))
            if d.parameter:
                rules += ParameterRules(d, tool, f"arguments_{index}", literal).rules
            else:
                rules.append(f"arguments_{index}: {_json(tool, loose=d.loose_json)}")
        return "\n".join(rules) + "\n"

    def _call_rule(self, rule: str, index: int, tool: Tool, literal: Literal, said: str) -> str:
        """A call without its beginning, which was said."""
        d = self.description
        name = json.dumps(tool.name, ensure_ascii=False)[1:-1] if d.call.startswith("{") else tool.name
        # A name and what stands around it are one text: else a name that begins another one could not be told from it.
        pattern = Pattern("".join(_NAME_SIGN if piece == "$name" else piece for piece in d.call_pattern.pieces))
        parts = []
        for piece in pattern.pieces:
            if piece.startswith("$"):
                parts.append(_FIELD_RULES.get(piece, f"arguments_{index}"))
                continue
            text = piece.replace(_NAME_SIGN, name)
            if said:
                bare = text if text.startswith(said) or said.startswith(text) else text.replace(GAP, "")
                cut = min(len(bare), len(said))
                assert bare[:cut] == said[:cut], (bare, said)
                said, text = said[cut:], bare[cut:]
            if text:
                parts.append(gapped(text, literal))
        return f"{rule}: " + " ".join(parts)

    def _check_names(self, tool: Tool, index: int) -> None:
        """A name that the format's own markers are part of cannot be told from them."""
        properties = [key for key in tool.parameters.get("properties", {}) if self.description.parameter]
        arguments: dict[str, Any] = dict.fromkeys(properties, "x")
        bare = Tool(tool.name, "", {"properties": {key: {"type": "string"} for key in arguments}})
        text = written_calls(self.description, [(tool.name, arguments, "callcall1")])
        reader = DescribedReader(self.description, [bare])
        events = [*reader.push(text), *reader.finish()]
        ends = [isinstance(event, CallEnd) for event in events if isinstance(event, (CallEnd, CallBroken))]
        if ends != [True] or not tool.name.strip():
            names = ", ".join(map(repr, [tool.name, *properties]))
            raise ParameterError(
                f"the tool {tool.name!r} cannot be called by models of this format ({self.name}), which could not tell "
                f"one of the names {names} from its own markers: rename it"
            )

    # ---- reading and telling -----------------------------------------------------------------------------------------

    def reader(self, tools: Sequence[Tool]) -> AnswerReader:
        return DescribedReader(self.description, tools, begun=self.description.prompt_end)

    def prompt(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Tool]
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]] | None]:
        """What the template does not tell the model itself is put into messages."""
        ways = self.ways
        prepared = plain_messages(messages)
        if ways.one_call:
            prepared = one_call_each(prepared)
        told = [self._told(message) for message in prepared]
        if tools and not ways.shows_tools:
            told = _with_system(told, _description_of_tools(tools, self.description))
        return told, [tool.as_openai() for tool in tools] or None

    def _told(self, message: dict[str, Any]) -> dict[str, Any]:
        ways = self.ways
        if message.get("role") == "tool" and not ways.writes_results:
            return {"role": "user", "content": f"<tool_response>\n{message.get('content')}\n</tool_response>"}
        if "tool_calls" not in message:
            return message
        if not ways.writes_calls:
            said = message["content"] if isinstance(message["content"], str) else ""
            text = written_calls(self.description, [_parts(call) for call in message["tool_calls"]])
            kept = {key: value for key, value in message.items() if key != "tool_calls"}
            return {**kept, "content": f"{said}\n{text}" if said else text}
        calls = (
            [_with_text(call) for call in message["tool_calls"]] if ways.arguments_as_text else message["tool_calls"]
        )
        content = None if ways.content_as_none and not message["content"] else message["content"]
        return {**message, "tool_calls": calls, "content": content}


def _parts(call: Mapping[str, Any]) -> tuple[str, Mapping[str, Any], str]:
    return call["function"]["name"], call["function"]["arguments"], str(call.get("id", ""))


def _with_text(call: Mapping[str, Any]) -> dict[str, Any]:
    """A call with its arguments as JSON text."""
    arguments = json.dumps(call["function"]["arguments"], ensure_ascii=False)
    return {**call, "function": {**call["function"], "arguments": arguments}}


_FIELD_RULES = {"$id": _ID, "$index": "/[0-9]{1,3}/", "$number": "/[0-9]{1,3}/"}


def _json(tool: Tool, *, loose: bool) -> str:
    if not loose:
        return json_rule(arguments_schema(tool))
    schema = {
        **arguments_schema(tool),
        "x-guidance": {"whitespace_flexible": True, "whitespace_pattern": r"[ \n]{0,40}"},
    }
    return f"%json {json.dumps(schema)}"


def _markers(description: Description) -> tuple[str, ...]:
    """The texts of a description that may be control tokens."""
    d = description
    patterns = (d.calls, d.call, d.parameter, d.between, *(d.quotes or ()), d.answer_opening)
    texts = [piece for text in patterns for piece in Pattern(text).pieces if not piece.startswith("$")]
    hidden = [piece for text in d.hidden for piece in Pattern(text).pieces if not piece.startswith("$")]
    return tuple(dict.fromkeys(text for text in (*texts, *hidden) if text.strip(GAP)))


# ---- writing -------------------------------------------------------------------------------------------------------


def written_call(description: Description, name: str, arguments: Mapping[str, Any], call_id: str, index: int) -> str:
    """A call as models of the family write it."""
    d = description
    spelled = json.dumps(name, ensure_ascii=False)[1:-1] if d.call.startswith("{") else name
    return d.call_pattern.write(
        name=spelled,
        id=call_id,
        index=str(index),
        number=str(index + 1),
        arguments=json.dumps(arguments, ensure_ascii=False),
        parameters=d.between_parameters.replace(GAP, "").join(
            _parameter(d, key, value) for key, value in arguments.items()
        ),
    )


def _nested(value: Any, namespace: str) -> str:
    """A value as tags within tags."""
    if isinstance(value, Mapping):
        members = list(value.items())
    elif isinstance(value, (list, tuple)):
        members = [("item", inner) for inner in value]
    else:
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return "".join(f"{namespace}<{key}>{_nested(inner, namespace)}{namespace}</{key}>" for key, inner in members)


def _parameter(d: Description, key: str, value: Any) -> str:
    is_text = isinstance(value, str)
    if d.values == Values.NESTED:
        return d.parameter_pattern.write(key=key, value=_nested(value, d.parameter_pattern.opening[:-1]))
    if d.values == Values.PYTHON:
        plain = (is_text and "\\" not in repr(value)) or isinstance(value, bool) or value is None
        text = repr(value) if plain else json.dumps(value, ensure_ascii=False)
    else:
        text = value if is_text else json.dumps(value, ensure_ascii=False)
    return d.parameter_pattern.write(key=key, value=text, type=_type_of(value), is_text="true" if is_text else "false")


def _type_of(value: Any) -> str:
    if value is None:
        return "null"
    names = {str: "string", bool: "boolean", int: "number", float: "number", list: "array", tuple: "array"}
    return names.get(type(value), "object")


def written_calls(description: Description, calls: Sequence[tuple[str, Mapping[str, Any], str]]) -> str:
    """Calls (name, arguments, id) as models of the family write them."""
    d = description
    written = [
        written_call(d, name, arguments, call_id, index) for index, (name, arguments, call_id) in enumerate(calls)
    ]
    between = d.between.replace(GAP, "\n")
    if d.each:
        return between.join(d.calls_pattern.write(calls=one) for one in written)
    return d.calls_pattern.write(calls=between.join(written))


def _with_system(messages: list[dict[str, Any]], text: str) -> list[dict[str, Any]]:
    if messages and messages[0].get("role") == "system" and isinstance(messages[0].get("content"), str):
        first = {**messages[0], "content": f"{messages[0]['content']}\n\n{text}".strip()}
        return [first, *messages[1:]]
    return [{"role": "system", "content": text}, *messages]


def _description_of_tools(tools: Sequence[Tool], description: Description) -> str:
    functions = "\n".join(json.dumps(tool.as_openai()["function"], ensure_ascii=False) for tool in tools)
    example = written_calls(description, [("name_of_the_function", {"parameter": "value"}, "callcall1")])
    return (
        "You can call these functions. Each line describes one; its parameters are a JSON schema.\n"
        f"<tools>\n{functions}\n</tools>\nTo call a function, write:\n{example}"
    )
