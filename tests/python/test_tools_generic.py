"""The generic format: templates that know no tools show them all the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tool_format_checks as checks
from hypothesis import given, settings
from hypothesis import strategies as st

from bee_integrations.tools.generic import GenericFormat
from bee_integrations.tools.hermes import call_text
from bee_integrations.tools.tool_format import Tool

GENERIC = GenericFormat()
WEATHER = Tool(
    "get_weather", "The weather.", {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
)
NOW = Tool("now", "The time.", {})
QUESTION = {"role": "user", "content": "Hi"}
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'


def prepared(*messages: dict[str, Any], tools: list[Tool] | None = None) -> list[dict[str, Any]]:
    result, shown = GENERIC.prompt(messages, tools or [])
    assert shown is None
    return result


def test_tools_are_described_in_a_system_message() -> None:
    system, question = prepared(QUESTION, tools=[WEATHER, NOW])
    assert question == QUESTION
    assert system["role"] == "system"
    lines = system["content"].split("<tools>\n")[1].split("\n</tools>")[0].split("\n")
    assert [json.loads(line) for line in lines] == [tool.as_openai()["function"] for tool in (WEATHER, NOW)]
    assert "<tool_call>\n{" in system["content"]


def test_a_system_message_is_extended() -> None:
    given_message = {"role": "system", "content": "Be kind."}
    system, _ = prepared(given_message, QUESTION, tools=[NOW])
    assert system["content"].startswith("Be kind.\n\n")
    assert "<tools>" in system["content"]
    assert given_message["content"] == "Be kind."
    parts, _ = prepared({"role": "system", "content": [{"type": "text", "text": "Be kind."}]}, QUESTION, tools=[NOW])
    assert [part["text"].split("\n")[0] for part in parts["content"]] == [
        "Be kind.",
        "You can call these functions. Each line describes one; its parameters are a JSON schema.",
    ]
    empty, _ = prepared({"role": "system", "content": ""}, QUESTION, tools=[NOW])
    assert empty["content"].startswith("You can call")


def test_without_tools_nothing_is_added() -> None:
    assert prepared(QUESTION) == [QUESTION]


@pytest.mark.parametrize("arguments", [{"city": "Paris"}, '{"city": "Paris"}'])
@pytest.mark.parametrize("content", ["", None])
def test_a_call_and_its_result_are_told_with_the_question(arguments: Any, content: Any) -> None:
    call = checks.assistant_message([WEATHER], [arguments], content)
    result = {"role": "tool", "tool_call_id": "call00000", "content": "22 degrees"}
    told = 'Hi\n\nget_weather(city="Paris") returned: 22 degrees'
    assert prepared(QUESTION, call, result) == [{"role": "user", "content": told}]
    assert prepared(QUESTION, call) == [{"role": "user", "content": 'Hi\n\nget_weather(city="Paris") was called.'}]
    assert QUESTION["content"] == "Hi"


def test_text_beside_a_call_is_kept() -> None:
    call = checks.assistant_message([WEATHER], [{"city": "Paris"}], "Let me see.")
    result = {"role": "tool", "tool_call_id": "call00000", "content": "22 degrees"}
    assert prepared(QUESTION, call, result) == [
        QUESTION,
        {"role": "assistant", "content": "Let me see."},
        {"role": "user", "content": 'get_weather(city="Paris") returned: 22 degrees'},
    ]


def test_results_of_several_calls_and_what_comes_after_them() -> None:
    calls = checks.assistant_message([WEATHER, NOW], [{"city": "Paris"}, {}])
    first = {"role": "tool", "tool_call_id": "call00000", "content": "22 degrees"}
    second = {"role": "tool", "name": "now", "tool_call_id": "?", "content": [{"type": "text", "text": "noon"}]}
    third = {"role": "tool", "tool_call_id": "unknown", "content": "lost"}
    answered = {"role": "assistant", "content": "It is warm."}
    messages = prepared(QUESTION, calls, first, second, third, {"role": "user", "content": "So?"}, answered, QUESTION)
    assert [message["role"] for message in messages] == ["user", "assistant", "user"]
    assert messages[0]["content"] == (
        'Hi\n\nget_weather(city="Paris") returned: 22 degrees\nnow returned: noon\nA function returned: lost\n'
        "now() was called.\n\nSo?"
    )
    assert messages[1:] == [answered, QUESTION]


@given(data=st.data())
@settings(deadline=None, max_examples=60)
def test_calls_as_described_are_read_and_allowed(data: st.DataObject, model_path: Path) -> None:
    tools, arguments = data.draw(checks.tools_with_arguments(names=[*checks.NAMES, *checks.QUOTED_NAMES]))
    calls = [call_text(one.name, json.dumps(given)) for one, given in zip(tools, arguments, strict=True)]
    result = checks.answer(checks.read(GENERIC, tools, ["Let me see.\n" + "\n".join(calls)]))
    assert result.text == "Let me see."
    assert not result.broken
    assert result.calls == [(tool.name, given) for tool, given in zip(tools, arguments, strict=True)]
    if len(tools) == 1:
        text = call_text(tools[0].name, json.dumps(arguments[0], ensure_ascii=False))
        checks.check_accepts(GENERIC, checks.model_vocabulary(model_path), tools, text)


@given(data=st.data(), seed=st.integers(0, 1000))
@settings(deadline=None, max_examples=30)
def test_what_the_grammar_allows_is_a_valid_call(data: st.DataObject, seed: int, model_path: Path) -> None:
    tools, _ = data.draw(checks.tools_with_arguments())
    result = checks.check_random_walk(GENERIC, checks.model_vocabulary(model_path), tools, seed)
    assert len(result.calls) == 1


def test_the_line_break_after_the_marker_may_be_missing(model_path: Path) -> None:
    vocabulary = checks.model_vocabulary(model_path)
    assert checks.accepts(GENERIC, vocabulary, [WEATHER], CALL)
    assert checks.accepts(GENERIC, vocabulary, [WEATHER], CALL.replace("<tool_call>\n", "<tool_call>"))
    assert not checks.accepts(GENERIC, vocabulary, [WEATHER], CALL.replace("<tool_call>\n", "<tool_call>\n\n"))
