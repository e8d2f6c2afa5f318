"""A call that was not written under its grammar counts only if its tool's schema allows its arguments."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from tool_format_checks import answer, read, tools_with_arguments

from bee_integrations.chat.parameters import BeeParameters
from bee_integrations.chat.request import ChatRequest, ToolUse
from bee_integrations.engine import Engine
from bee_integrations.tools import formats
from bee_integrations.tools.argument_check import CheckedCalls, fault_of_arguments
from bee_integrations.tools.tool_format import CallArguments, CallBegin, CallBroken, CallEnd, Text, Tool

ADD = Tool(
    "add",
    "Add.",
    {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
        "required": ["a", "b"],
        "additionalProperties": False,
    },
)


@pytest.mark.parametrize(
    ("schema", "arguments", "fault"),
    [
        ({"required": ["a"]}, '{"a": 1}', None),
        ({"required": ["a"]}, "{}", "'a' is a required property"),
        ({"properties": {"a": {"type": "integer"}}}, '{"a": "1"}', "/a: '1' is not of type 'integer'"),
        ({"properties": {"a": {"multipleOf": 0.1}}}, '{"a": 0.3}', None),
        ({"properties": {"a": {"multipleOf": 0.1}}}, '{"a": 0.35}', "/a: 0.35 is not a multiple of 0.1"),
        ({"properties": {"a": {"pattern": "^(a+)+$"}}}, json.dumps({"a": "a" * 60 + "!"}), "does not match"),
        ({"properties": {"a": {"pattern": "é.$"}}}, json.dumps({"a": "x\u007fé\u00e9"}), None),
        ({"patternProperties": {"^x": {"type": "null"}}}, '{"x1": 1}', "/x1: 1 is not of type 'null'"),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"required": ["b"]}}}, "{}", "'b' is a required property"),
        ({"$ref": "https://example.com/schema"}, "{}", "cannot be checked"),
        ({"properties": {"a": {"pattern": "(?=a)b"}}}, '{"a": "b"}', "cannot be checked"),
        ({"properties": {"a": {"type": "no such type"}}}, '{"a": "b"}', "cannot be checked"),
        ({}, "[1]", "is not of type 'object'"),
        ({}, '{"a": NaN}', "NaN"),
    ],
)
def test_faults(schema: dict[str, Any], arguments: str, fault: str | None) -> None:
    found = fault_of_arguments(Tool("t", "", schema), arguments)
    assert found is None if fault is None else fault in (found or "")


@given(tools_with_arguments())
@settings(max_examples=150, deadline=None)
def test_the_check_agrees_with_a_validator(drawn: tuple[list[Tool], list[dict[str, Any]]]) -> None:
    tools, arguments = drawn
    for tool, own in zip(tools, arguments, strict=True):
        assert fault_of_arguments(tool, json.dumps(own)) is None
        for others in arguments:
            valid = jsonschema.Draft202012Validator(dict(tool.parameters)).is_valid(others)
            assert (fault_of_arguments(tool, json.dumps(others)) is None) == valid


def test_only_what_was_said_freely_is_checked() -> None:
    wrong = [CallBegin(0, "add", "1"), CallArguments(0, '{"a": '), CallArguments(0, '"x"}'), CallEnd(0, "raw")]
    assert CheckedCalls([ADD]).passed(wrong, bound=True) == wrong
    checked = CheckedCalls([ADD])
    assert checked.passed(wrong[:2], bound=False) == wrong[:2]
    # It began freely, whatever holds later.
    passed = checked.passed([*wrong[2:], Text("so")], bound=True)
    assert isinstance(passed[1], CallBroken)
    assert passed[1].raw == "raw"
    assert "is not of type 'integer'" in passed[1].reason or "required" in passed[1].reason
    assert passed[2] == Text("so")


# Spellings that readers take for calls, with arguments that the schema forbids.
FREE = [
    ("llama3", '{"name":"add", "parameters": {"a": "one"}}'),
    ("llama3", '{"parameters": {"a": "one"}, "name": "add"}'),
    ("llama3", '<|python_tag|>\n{"type":"function","name": "add", "parameters": {"a": [1]}}'),
    ("llama3", '{"id": "x", "name": "add", "arguments": {}}'),
    ("harmony", '<|channel|>commentary json to=functions.add<|message|>{"a": "one", "c": [1]}'),
    ("harmony", '<|start|>assistant  to=functions.add<|channel|>commentary<|message|>{"a": "one"}'),
]


@pytest.mark.parametrize(("name", "text"), FREE)
def test_every_format_is_checked(name: str, text: str) -> None:
    events = read(formats.by_name(name), [ADD], text)
    assert answer(events).calls
    broken = answer(CheckedCalls([ADD]).passed(events, bound=False)).broken
    assert [one.reason[:24] for one in broken] == ["the arguments of 'add' d"]


@pytest.mark.parametrize(
    ("name", "line", "valid"),
    [
        ("llama3", '{"name":"add", "parameters": {"a": "one"}}', False),
        ("llama3", '{"type": "function", "name": "add", "parameters": {"a": "one"}}', True),
        ("harmony", 'to=functions.add<|channel|>commentary json<|message|>{"a": "one", "c": [1]}', True),
        ("hermes", '<tool_call>\n{"name": "add", "arguments": {"a": "one"}}\n</tool_call>', True),
    ],
)
@pytest.mark.parametrize("speculation", ["off", "auto"])
def test_a_model_that_copies_a_forbidden_call(
    engine: Engine, name: str, line: str, valid: bool, speculation: str
) -> None:
    """It either meets the grammar, which makes the call a valid one, or the check."""
    template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    parameters = BeeParameters(
        max_tokens=60, stop=["\n\n"], tool_format=name, chat_template=template, speculation=speculation, temperature=0
    )
    text = "\n\n".join(f"Line {i}: {line}" for i in range(1, 7)) + "\n\nLine 7:"
    request = ChatRequest.of_chat(engine, parameters, [{"role": "user", "content": text}], ToolUse((ADD,)))
    reply = request.reply()
    for call in reply.calls.values():
        jsonschema.Draft202012Validator(dict(ADD.parameters)).validate(json.loads(call.arguments))
    assert bool(reply.calls) == valid
    assert valid or "do not fit its schema" in reply.broken[0].reason
