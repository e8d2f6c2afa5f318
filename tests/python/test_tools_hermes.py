"""The Hermes format: what templates write is read back, grammars allow valid calls and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tool_format_checks as checks
from hypothesis import given, settings
from hypothesis import strategies as st

from bee_integrations.tools.hermes import HermesFormat, call_text
from bee_integrations.tools.tool_format import CallArguments, CallBegin, CallBroken, Tool

HERMES = HermesFormat()
WEATHER, NOW = checks.WEATHER, checks.NOW
TOOLS = [WEATHER, NOW]
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris", "days": 2}}\n</tool_call>'
TEMPLATES = {
    "Bielik-11B-v3.0-Instruct": "<|im_end|>",
    "MiMo-VL": "<|im_end|>",
    "NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use": "<|im_end|>",
    "NousResearch-Hermes-3-Llama-3.1-8B-tool_use": "<|im_end|>",
    "Qwen-QwQ-32B": "<|im_end|>",
    "Qwen-Qwen2.5-7B-Instruct": "<|im_end|>",
    "Qwen-Qwen3-0.6B": "<|im_end|>",
    "Reka-Edge": "<sep>",
    "ibm-granite-granite-4.0": "<|end_of_text|>",
    "ibm-granite-granite-4.1": "<|end_of_text|>",
}


def answer(text: str, tools: list[Tool] = TOOLS) -> checks.Answer:
    return checks.answer(checks.check_cuts(HERMES, tools, text))


# ---- reading ---------------------------------------------------------------------------------------------------------


def test_text_around_calls_is_kept_without_the_white_space_between() -> None:
    result = answer(f'Let me see.\n\n{CALL}\n<tool_call>{{"name": "now", "arguments": {{}}}}</tool_call>\n Done.\n')
    assert result.text == "Let me see.Done.\n"
    assert result.calls == [("get_weather", {"city": "Paris", "days": 2}), ("now", {})]
    assert not result.broken


@pytest.mark.parametrize(
    "text", ["", "\n", "a <b", "x <tool_call", "\n<tool", "</tool_call>", "<tool_calls>", "< tool_call>"]
)
def test_what_only_looks_like_a_call_is_text(text: str) -> None:
    result = answer(text)
    assert result.text == text
    assert not result.calls
    assert not result.broken


def test_name_and_arguments_come_as_soon_as_they_are_certain() -> None:
    reader = HERMES.reader(TOOLS)
    assert reader.push('Hm <tool_call>\n{"name": "get_weather') != []
    (begin,) = reader.push('"')
    assert isinstance(begin, CallBegin)
    assert (begin.index, begin.name) == (0, "get_weather")
    assert len(begin.id) == 9
    assert reader.push(', "arguments": {"ci') == [CallArguments(0, '{"ci')]
    assert reader.push('ty": "}\\"') == [CallArguments(0, 'ty": "}\\"')]


def test_keys_may_come_in_either_order() -> None:
    result = answer('<tool_call>{"arguments" : {"city": "a"} ,\n "name":"get_weather" }</tool_call>')
    assert result.calls == [("get_weather", {"city": "a"})]
    reader = HERMES.reader(TOOLS)
    assert reader.push('<tool_call>{"arguments": {"city": "a"}, "name": "get_weather') == []


def test_arguments_may_hold_markers() -> None:
    city = '</tool_call>\n<tool_call>{"name": "now", "arguments": {}}</tool_call> \\ " }'
    assert answer(call_text("get_weather", json.dumps({"city": city}))).calls == [("get_weather", {"city": city})]


def test_a_call_without_the_end_marker_alone_is_complete() -> None:
    for text in (CALL[: -len("\n</tool_call>")], CALL[:-1]):
        result = answer(text)
        assert result.calls == [("get_weather", {"city": "Paris", "days": 2})]
        assert not result.broken


@pytest.mark.parametrize(
    ("inner", "reason"),
    [
        ('{"name": "get_wether", "arguments": {}}', "no tool 'get_wether'"),
        ('{"name": "get_weather", "arguments": {"city": tru}}', "'get_weather'.*invalid"),
        ('{"name": "get_weather", "arguments": {"city": NaN}}', "'get_weather'.*NaN"),
        ('{"name": "get_weather", "arguments": {"city": "a\n"}}', "'get_weather'.*string"),
        ('{"name": "get_weather", "arguments": {"city": ["a"}]}', "'get_weather'.*invalid"),
        ('{"name": "get_weather", "arguments": "{}"}', "'get_weather'.*object"),
        ('{"name": "get_weather"}', "'get_weather'.*no 'arguments'"),
        ('{"arguments": {}}', "no 'name'"),
        ('{"name": "get_weather", "name": "now", "arguments": {}}', "'name' is there twice"),
        ('{"name": "get_weather", "id": 1}', "'id'"),
        ('{"name": "get_weather", "arguments": {}}}', "'get_weather'.*'}' stands between"),
        ('{"name": "get_weather", "arguments": {}}</tool_', "'get_weather'.*stands between"),
        ("get_weather", "'g' stands where a JSON object"),
        ("", "'<' stands where a JSON object"),
    ],
)
def test_a_malformed_call_is_broken_and_the_text_goes_on(inner: str, reason: str) -> None:
    text = f"A<tool_call>{inner}</tool_call>B{CALL}C"
    result = answer(text)
    assert result.text == "ABC"
    assert result.calls == [("get_weather", {"city": "Paris", "days": 2})]
    (broken,) = result.broken
    assert broken.raw == f"<tool_call>{inner}</tool_call>"
    assert broken.index == 0
    with pytest.raises(ValueError, match=reason):
        raise ValueError(broken.reason)


@pytest.mark.parametrize(
    "arguments", ['{"city": "a"', '{"city": [1', '{"city": "a</tool_call>\n', "{'city': 'a'}}", '{\\"']
)
def test_arguments_without_an_end_take_in_nothing_of_what_follows(arguments: str) -> None:
    end = "" if "</tool_call>" in arguments else "</tool_call>"
    result = answer(f'<tool_call>{{"name": "get_weather", "arguments": {arguments}{end}B{CALL}C')
    assert result.text == "BC"
    assert result.calls == [("get_weather", {"city": "Paris", "days": 2})]
    assert len(result.broken) == 1


def test_a_call_of_an_unknown_tool_goes_up_to_its_own_end() -> None:
    result = answer(call_text("then", '{"a": "</tool_call> x"}') + "B")
    assert (result.text, len(result.broken)) == ("B", 1)


def test_many_backslashes_are_read_in_time() -> None:
    text = json.dumps("\\" * 300_000)  # minutes, if all before were looked at for each
    pieces = ['<tool_call>{"name": ', text, ', "arguments": {}}</tool_call>']
    assert checks.answer(checks.read(HERMES, TOOLS, pieces)).broken
    (call,) = checks.answer(checks.read(HERMES, TOOLS, call_text("now", f'{{"a": {text}}}'))).calls
    assert len(call[1]["a"]) == 300_000


def test_a_cut_call_is_broken_wherever_it_is_cut() -> None:
    for end in range(len("<tool_call>"), CALL.index("\n</tool_call>")):
        result = answer("x" + CALL[:end])
        assert result.text == "x"
        assert not result.calls
        (broken,) = result.broken
        assert broken.raw == CALL[:end]
        assert "cut off" in broken.reason


def test_a_call_that_begins_within_a_broken_one_is_read() -> None:
    result = answer(f"<tool_call>oops {CALL}")
    assert [broken.raw for broken in result.broken] == ["<tool_call>oops "]
    assert result.calls == [("get_weather", {"city": "Paris", "days": 2})]


def test_deep_nesting_is_no_crash() -> None:
    deep = "[" * 200_000 + "]" * 200_000
    reader = HERMES.reader(TOOLS)
    events = reader.push(call_text("get_weather", f'{{"city": {deep}}}')) + reader.finish()
    assert isinstance(events[-1], CallBroken)
    assert "deep" in events[-1].reason


@given(
    st.lists(st.sampled_from([*checks.FRAGMENTS, "<tool_call>\n", '{"name": "a", "arguments": {', CALL]), max_size=12)
)
@settings(deadline=None)
def test_any_text_becomes_the_same_however_it_is_cut(parts: list[str]) -> None:
    text = "".join(parts)
    result = checks.answer(checks.check_cuts(HERMES, [*TOOLS, Tool("a", "", {})], text))
    if "<tool_call>" not in text:
        assert result.text == text


# ---- templates -------------------------------------------------------------------------------------------------------


@checks.needs_reference
@pytest.mark.parametrize("name", sorted(TEMPLATES))
@given(data=st.data())
@settings(deadline=None, max_examples=15)
def test_what_a_template_writes_is_read_back_and_allowed(name: str, data: st.DataObject, model_path: Path) -> None:
    tools, arguments = data.draw(checks.tools_with_arguments())
    message = checks.assistant_message(tools, arguments, "")
    written = checks.rendered_answer(HERMES, checks.reference_template(name), message, tools, TEMPLATES[name])
    result = checks.answer(checks.read(HERMES, tools, [written]))
    assert not result.broken
    assert result.calls == [(tool.name, given) for tool, given in zip(tools, arguments, strict=True)]
    begin, end = written.index("<tool_call>"), written.rindex("</tool_call>") + len("</tool_call>")
    # Reka's template escapes what is not ASCII; a grammar has one spelling of a schema's keys, the usual one.
    if len(tools) == 1 and name != "Reka-Edge":
        qwen = name.startswith("Qwen")
        vocabulary = checks.reference_vocabulary("qwen2") if qwen else checks.model_vocabulary(model_path)
        checks.check_accepts(HERMES, vocabulary, tools, written[begin:end])


@checks.needs_reference
@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_results_and_tools_reach_the_prompt(name: str) -> None:
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "How is it in Paris?"},
        checks.assistant_message([WEATHER], [{"city": "Paris"}]),
        {"role": "tool", "tool_call_id": "call00000", "name": "get_weather", "content": "22 degrees"},
    ]
    prompt = checks.rendered(HERMES, checks.reference_template(name), messages, TOOLS)
    assert "The weather in a city." in prompt
    assert '"arguments": {"city": "Paris"}' in prompt
    assert "22 degrees" in prompt


# ---- grammars --------------------------------------------------------------------------------------------------------


@given(data=st.data())
@settings(deadline=None, max_examples=60)
def test_the_grammar_allows_valid_calls(data: st.DataObject, model_path: Path) -> None:
    tools, arguments = data.draw(checks.tools_with_arguments(names=[*checks.NAMES, *checks.QUOTED_NAMES]))
    for tool, given_arguments in zip(tools, arguments, strict=True):
        text = call_text(tool.name, json.dumps(given_arguments, ensure_ascii=False))
        checks.check_accepts(HERMES, checks.model_vocabulary(model_path), tools, text)
        assert answer(text, tools).calls == [(tool.name, given_arguments)]


@given(data=st.data(), seed=st.integers(0, 1000))
@settings(deadline=None, max_examples=40)
def test_what_the_grammar_allows_is_a_valid_call(data: st.DataObject, seed: int, model_path: Path) -> None:
    tools, _ = data.draw(checks.tools_with_arguments(names=[*checks.NAMES, *checks.QUOTED_NAMES]))
    result = checks.check_random_walk(HERMES, checks.model_vocabulary(model_path), tools, seed)
    assert len(result.calls) == 1
    assert not result.text


@pytest.mark.parametrize(
    ("arguments", "allowed"),
    [
        ('{"city": "Paris"}', True),
        ('{"city": "Paris", "days": 9}', True),
        ('{"city": "Paris", "days": 10}', False),
        ('{"days": 1}', False),
        ('{"city": "Paris", "unit": "C"}', False),
        ('{"city":  "Paris"}', False),
        ('{"city":"Paris"}', False),
        ('{"city": "Par\nis"}', False),
    ],
)
def test_the_grammar_keeps_to_the_schema(arguments: str, allowed: bool, model_path: Path) -> None:
    text = call_text("get_weather", arguments)
    assert checks.accepts(HERMES, checks.model_vocabulary(model_path), TOOLS, text) == allowed


@pytest.mark.parametrize("parameters", [{}, {"type": "object", "properties": {}}, {"type": "object"}])
def test_a_tool_without_parameters_gets_an_empty_object(parameters: dict[str, Any], model_path: Path) -> None:
    vocabulary, tools = checks.model_vocabulary(model_path), [Tool("now", "", parameters)]
    assert checks.accepts(HERMES, vocabulary, tools, call_text("now", "{}"))
    assert not checks.accepts(HERMES, vocabulary, tools, call_text("now", '{"a": 1}'))


def test_a_name_that_begins_another_is_told_apart(model_path: Path) -> None:
    one = {"type": "object", "properties": {"x": {"const": 1}}, "required": ["x"]}
    two = {"type": "object", "properties": {"x": {"const": 2}}, "required": ["x"]}
    vocabulary, tools = checks.model_vocabulary(model_path), [Tool("a", "", one), Tool("ab", "", two)]
    for name, value, allowed in [("a", 1, True), ("ab", 2, True), ("a", 2, False), ("ab", 1, False), ("abc", 1, False)]:
        assert checks.accepts(HERMES, vocabulary, tools, call_text(name, f'{{"x": {value}}}')) == allowed


def test_references_resolve_in_every_tool(model_path: Path) -> None:
    def tree(leaf: str) -> dict[str, Any]:
        node = {
            "type": "object",
            "properties": {"leaf": {"const": leaf}, "kids": {"type": "array", "items": {"$ref": "#/$defs/node"}}},
            "required": ["leaf", "kids"],
            "additionalProperties": False,
        }
        root = {"type": "object", "properties": {"root": {"$ref": "#/$defs/node"}}, "required": ["root"]}
        return {**root, "$defs": {"node": node}}

    vocabulary = checks.model_vocabulary(model_path)
    tools = [
        Tool("oak", "", tree("o")),
        Tool("ash", "", tree("a")),
        Tool(
            "top",
            "",
            {
                "$ref": "#/$defs/t",
                "$defs": {"t": tree("t")["$defs"]["node"] | {"properties": {"leaf": {"type": "null"}}, "required": []}},
            },
        ),
    ]
    for name, leaf, allowed in [("oak", "o", True), ("ash", "a", True), ("oak", "a", False)]:
        inner = f'{{"root": {{"leaf": "{leaf}", "kids": [{{"leaf": "{leaf}", "kids": []}}]}}}}'
        assert checks.accepts(HERMES, vocabulary, tools, call_text(name, inner)) == allowed
    assert checks.accepts(HERMES, vocabulary, tools, call_text("top", '{"leaf": null}'))
    for seed in range(20):
        checks.check_random_walk(HERMES, vocabulary, tools, seed)


@checks.needs_reference
def test_markers_may_be_control_tokens() -> None:
    # In the vocabulary of Hermes 3 the markers are tokens; here any control token stands for one.
    vocabulary = checks.reference_vocabulary("qwen2")
    rules = HERMES.call_rules(
        [NOW], lambda text: vocabulary.literal(text.replace("</tool_call>", "<|im_end|>")), parallel=False
    )
    assert f"<[{vocabulary.control['<|im_end|>']}]>" in rules
