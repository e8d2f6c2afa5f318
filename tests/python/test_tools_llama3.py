"""The Llama 3 format: what templates write is read back, grammars allow valid calls, and other JSON stays text."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import tool_format_checks as checks
from control_vocabulary import control_vocabulary
from hypothesis import given, settings
from hypothesis import strategies as st

from bee_integrations.errors import ParameterError
from bee_integrations.tools.llama3 import Llama3Format
from bee_integrations.tools.tool_format import CallArguments, CallBegin, CallBroken, Tool

LLAMA3 = Llama3Format()
WEATHER, NOW = checks.WEATHER, checks.NOW
TOOLS = [WEATHER, NOW]
CALL = '{"name": "get_weather", "parameters": {"city": "Paris", "days": 2}}'
PARIS = ("get_weather", {"city": "Paris", "days": 2})
TEMPLATES = [
    "meta-llama-Llama-3.1-8B-Instruct",
    "meta-llama-Llama-3.2-3B-Instruct",
    "meta-llama-Llama-3.3-70B-Instruct",
]
NAMES = [*checks.NAMES, *checks.QUOTED_NAMES]


def answer(text: str, tools: list[Tool] = TOOLS) -> checks.Answer:
    return checks.answer(checks.check_cuts(LLAMA3, tools, text))


def call_text(name: str, arguments: str) -> str:
    return f'{{"name": {json.dumps(name, ensure_ascii=False)}, "parameters": {arguments}}}'


# ---- reading ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        CALL,
        f" \n{CALL}\n",
        f"<|python_tag|>{CALL}",
        f"\n<|python_tag|> {CALL} ;",
        CALL.replace("parameters", "arguments"),
        CALL.replace(": ", ":").replace("{", "{ \n"),
        '{"type": "function", ' + CALL[1:],
        '{"parameters": {"city": "Paris", "days": 2}, "name": "get_weather"}',
        CALL.replace("get_weather", "get\\u005fweather"),
        CALL[:-1] + ', "note": ["}", {"a": null}], "n": -1.5e3}',
    ],
)
def test_a_call_is_read(text: str) -> None:
    result = answer(text)
    assert result == checks.Answer(calls=[PARIS])


@pytest.mark.parametrize("separator", ["; ", ";", "\n", " \n\n", "\n;\n", ""])
def test_calls_may_be_separated(separator: str) -> None:
    assert answer(separator.join([CALL, '{"name": "now", "parameters": {}}', CALL])).calls == [
        PARIS,
        ("now", {}),
        PARIS,
    ]


def test_text_after_a_call_is_kept() -> None:
    assert answer(f"{CALL}\n\nThat is it.\n{CALL}\n") == checks.Answer(f"That is it.\n{CALL}\n", calls=[PARIS])


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "\n\n", "{", "{}", '{"', '{"na', '{"name', '{"name": ', '{"name": "Bob', '{"name": "Bob", "age": 3}',
        '{"name": "Bob", "age": 3} is a person.\n', '{"names": ["now"]}', '{"city": "Paris", "name": "now"}',
        "<|python", "<|python_tag|>print(1)", "<|python_tag|>", "[1]", f"See: {CALL}", f"; {CALL}",
        '{"parameters": {}}', '{"name": 1}',
        '{name: "now"}', "{'name': 'now', 'parameters': {}}", '{"type": "function", "name": ', "  Hello  ",
    ],
)  # fmt: skip
def test_what_only_looks_like_a_call_is_text(text: str) -> None:
    result = answer(text)
    assert result.text == text
    assert not result.calls
    assert not result.broken


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"name": "now", "parameters": []}', "'now' is malformed.*expected {"),
        ('{"name": "now", "parameters": "{}"}', "'now' is malformed.*expected {"),
        ('{"name": "now", "parameters": {"a": tru}}', "'now' is malformed.*value"),
        ('{"name": "now", "parameters": {"a": NaN}}', "'now' is malformed.*NaN"),
        ('{"name": "now", "parameters": {"a": "\n"}}', "'now' is malformed.*control"),
        ('{"name": "now", "parameters": {"a": [}}', "'now' is malformed.*expected ], found }"),
        ('{"name": "now"}', "'now' is malformed.*no arguments"),
        ('{"name": "now" "parameters": {}}', "'now' is malformed.*expected , or }"),
        ('{"name": "now", "parameters": {}, "name": "x"}', "'now' is malformed.*twice"),
        ('{"name": "now", "parameters": {}, "arguments": {}}', "'now' is malformed.*twice"),
        ('{"name": "now", "parameters": {}, "x": y}', "'now' is malformed.*'x'"),
        ('{"name": "then", "parameters": {}}', "no tool 'then'"),
        ('{"parameters": {}, "name": "then"}', "no tool 'then'"),
        ('{"name": "', "cut off"),
        ('{"name": "no', "cut off"),
        ('{"name": "now"', "'now' is cut off"),
        ('{"name": "now", "parameters": {"a": "}', "'now' is cut off"),
        ('{"name": "now", "parameters": {}', "'now' is cut off"),
    ],
)
def test_a_malformed_call_is_broken(text: str, reason: str) -> None:
    for before, calls in [("", []), (CALL + ";", [PARIS])]:
        result = answer(before + text)
        assert result.calls == calls
        assert result.text == ""
        (broken,) = result.broken
        assert broken.raw == text or broken.raw == ";" + text
        assert re.search(reason, broken.reason)


def test_a_cut_call_is_never_complete() -> None:
    for end in range(len(CALL)):
        result = answer(CALL[:end])
        assert not result.calls
        assert result.text + "".join(broken.raw for broken in result.broken) == CALL[:end]


def test_name_and_arguments_come_as_soon_as_they_are_certain() -> None:
    reader = LLAMA3.reader(TOOLS)
    assert reader.push('{"name": "get_weather') == []
    (begin,) = reader.push('"')
    assert isinstance(begin, CallBegin)
    assert (begin.index, begin.name, len(begin.id)) == (0, "get_weather", 9)
    assert reader.push(', "parameters": {"ci') == [CallArguments(0, '{"ci')]
    assert reader.push('ty": "}\\"') == [CallArguments(0, 'ty": "}\\"')]


def test_deep_nesting_is_no_crash() -> None:
    deep = "[" * 200_000 + "]" * 200_000
    reader = LLAMA3.reader(TOOLS)
    events = reader.push(call_text("get_weather", f'{{"city": {deep}}}')) + reader.finish()
    assert isinstance(events[-1], CallBroken)
    assert "deep" in events[-1].reason


@given(
    st.lists(
        st.sampled_from(
            [*checks.FRAGMENTS, '{"name": "', 'a", "parameters": {', '"name"', ";", "<|python_tag|>", CALL]
        ),
        max_size=10,
    )
)
@settings(deadline=None)
def test_any_text_becomes_the_same_however_it_is_cut(parts: list[str]) -> None:
    answer("".join(parts), [*TOOLS, Tool("a", "", {})])


# ---- templates -------------------------------------------------------------------------------------------------------


@checks.needs_reference
def test_these_templates_are_recognised() -> None:
    assert checks.recognised_by(LLAMA3) == TEMPLATES


@checks.needs_reference
@pytest.mark.parametrize("name", TEMPLATES)
@given(data=st.data())
@settings(deadline=None, max_examples=25)
def test_what_a_template_writes_is_read_back_and_allowed(name: str, data: st.DataObject) -> None:
    tools, arguments = data.draw(checks.tools_with_arguments(forbidden=["<|eot_id|>"]))
    message = checks.assistant_message(tools[:1], arguments[:1])
    written = checks.rendered_answer(LLAMA3, checks.reference_template(name), message, tools, "<|eot_id|>")
    assert answer(written, tools) == checks.Answer(calls=[(tools[0].name, arguments[0])])
    checks.check_accepts(LLAMA3, checks.reference_vocabulary("llama-bpe"), tools, written)


@checks.needs_reference
@pytest.mark.parametrize("name", TEMPLATES)
def test_a_history_with_several_calls_is_rendered_call_by_call(name: str) -> None:
    called = checks.assistant_message([WEATHER, NOW], [{"city": "Paris"}, {}], "Let me see.")
    called["tool_calls"][0]["function"]["arguments"] = '{"city": "Paris"}'
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "How is it in Paris?"},
        called,
        {"role": "tool", "tool_call_id": "call00001", "content": "noon"},
        {"role": "tool", "tool_call_id": "call00000", "content": "22 degrees"},
        {"role": "assistant", "content": "Warm.", "tool_calls": []},
        {"role": "user", "content": "Thanks"},
    ]
    prompt = checks.rendered(LLAMA3, checks.reference_template(name), messages, TOOLS)
    in_order = [
        '"description": "The weather in a city."', "How is it in Paris?", "Let me see.",
        '{"name": "get_weather", "parameters": {"city": "Paris"}}<|eot_id|>', "22 degrees",
        '{"name": "now", "parameters": {}}<|eot_id|>', "noon", "Warm.<|eot_id|>", "Thanks",
    ]  # fmt: skip
    places = [prompt.index(part) for part in in_order]
    assert places == sorted(places)
    assert prompt.endswith("<|start_header_id|>assistant<|end_header_id|>\n\n")
    assert "tool_calls" in called


@pytest.mark.parametrize(
    ("call", "what"),
    [
        ({"id": "1"}, "name"),
        ({"function": {"arguments": {}}}, "name"),
        ({"function": {"name": "now", "arguments": "{"}}, "'now'.*JSON"),
        ({"function": {"name": "now", "arguments": [1]}}, "'now'.*object"),
        ("now", "name"),
    ],
)
def test_a_history_with_a_call_that_is_none_is_refused(call: Any, what: str) -> None:
    messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": None, "tool_calls": [call]}]
    with pytest.raises(ParameterError, match=rf"messages\[1\].tool_calls\[0\].*{what}"):
        LLAMA3.prompt(messages, TOOLS)


# ---- grammars --------------------------------------------------------------------------------------------------------


@given(data=st.data())
@settings(deadline=None, max_examples=50)
def test_the_grammar_allows_valid_calls(data: st.DataObject) -> None:
    tools, arguments = data.draw(checks.tools_with_arguments(names=NAMES))
    for tool, given_arguments in zip(tools, arguments, strict=True):
        text = call_text(tool.name, json.dumps(given_arguments, ensure_ascii=False))
        checks.check_accepts(LLAMA3, control_vocabulary(), tools, text)
        assert answer(text, tools).calls == [(tool.name, given_arguments)]


@given(data=st.data(), seed=st.integers(0, 1000))
@settings(deadline=None, max_examples=40)
def test_what_the_grammar_allows_is_a_valid_call(data: st.DataObject, seed: int) -> None:
    tools, _ = data.draw(checks.tools_with_arguments(names=NAMES))
    result = checks.check_random_walk(LLAMA3, control_vocabulary(), tools, seed)
    assert len(result.calls) == 1
    assert not result.text


@pytest.mark.parametrize(
    ("text", "allowed"),
    [
        (CALL, True),
        (call_text("get_weather", '{"city": "Paris"}'), True),
        (call_text("get_weather", '{"city": "Paris", "days": 10}'), False),
        (call_text("get_weather", '{"city": "Paris", "unit": "C"}'), False),
        (call_text("get_weather", '{"city":"Paris"}'), False),
        (call_text("now", "{}"), True),
        (call_text("now", '{"a": 1}'), False),
        (call_text("then", "{}"), False),
        (f"{CALL}; {CALL}", False),
    ],
)
def test_the_grammar_keeps_to_the_tools(text: str, allowed: bool) -> None:
    assert checks.accepts(LLAMA3, control_vocabulary(), TOOLS, text) == allowed
