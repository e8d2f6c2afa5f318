"""The two Mistral formats: what templates write is read back, ids have nine characters, grammars allow valid calls."""

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
from bee_integrations.tools.mistral import MistralArgsFormat, MistralFormat
from bee_integrations.tools.tool_format import CallArguments, CallBegin, Tool, ToolFormat

ARRAY, ARGS = MistralFormat(), MistralArgsFormat()
FORMATS: list[ToolFormat] = [ARRAY, ARGS]
WEATHER, NOW = checks.WEATHER, checks.NOW
TOOLS = [WEATHER, NOW]
PARIS = ("get_weather", {"city": "Paris"})
MEMBER = '{"name": "get_weather", "arguments": {"city": "Paris"}, "id": "abcdefgh1"}'
CALL = '[TOOL_CALLS]get_weather[ARGS]{"city": "Paris"}'
TEMPLATES: dict[str, ToolFormat] = {
    "Mistral-Small-3.2-24B-Instruct-2506": ARGS,
    "mistralai-Ministral-3-14B-Reasoning-2512": ARGS,
    "mistralai-Mistral-Nemo-Instruct-2407": ARRAY,
    "unsloth-mistral-Devstral-Small-2507": ARGS,
}
MARKERS = ["[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"]


def answer(text: str, tools: list[Tool] = TOOLS) -> checks.Answer:
    """Both formats read both forms."""
    result = checks.answer(checks.check_cuts(ARRAY, tools, text))
    assert result == checks.answer(checks.check_cuts(ARGS, tools, text, every_pair=False))
    return result


def ids(text: str, step: int) -> list[str]:
    pieces = [text[at : at + step] for at in range(0, len(text), step)]
    return [event.id for event in checks.read(ARRAY, TOOLS, pieces) if isinstance(event, CallBegin)]


# ---- reading ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        (f"[TOOL_CALLS][{MEMBER}]", [PARIS]),
        (f"[TOOL_CALLS] [ {MEMBER} ,\n{MEMBER}]\n", [PARIS, PARIS]),
        (f"[TOOL_CALLS][{MEMBER}", [PARIS]),
        (f"[TOOL_CALLS][{MEMBER}][TOOL_CALLS][{MEMBER}]", [PARIS, PARIS]),
        ('[TOOL_CALLS][{"arguments": {}, "name": "now"}]', [("now", {})]),
        (CALL, [PARIS]),
        (f"{CALL}\n {CALL}", [PARIS, PARIS]),
        ('[TOOL_CALLS] get_weather [CALL_ID]abcdefgh1[ARGS] {"city": "Paris"} ', [PARIS]),
        ('[TOOL_CALLS]get_weather[ARGS]{"city": "[TOOL_CALLS]"}', [("get_weather", {"city": "[TOOL_CALLS]"})]),
    ],
)
def test_calls_are_read(text: str, calls: list[tuple[str, Any]]) -> None:
    assert answer(text) == checks.Answer(calls=calls)
    assert answer(f"So:\n{text}") == checks.Answer("So:", calls=calls)
    if not text.endswith("}") or "[{" not in text:  # else more of the array may follow
        assert answer(f"So:\n{text} Done. ") == checks.Answer("So:Done. ", calls=calls)


def test_text_around_calls_is_kept() -> None:
    assert answer(f"a [ {CALL} b {CALL}c\n") == checks.Answer("a [bc\n", calls=[PARIS, PARIS])
    assert answer(f"a [TOOL_CALLS][{MEMBER}] b\n") == checks.Answer("ab\n", calls=[PARIS])


@pytest.mark.parametrize("text", ["", " ", "[TOOL_CALLS", "[TOOL_CALL ]", "x [TOOL", "[ARGS]{}", '[{"name": "now"}]'])
def test_what_only_looks_like_a_call_is_text(text: str) -> None:
    assert answer(text) == checks.Answer(text)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "cut off"),
        ("[", "cut off"),
        ("[]", "empty"),
        ("[7]", "expected {"),
        ('[{"name": "then", "arguments": {}}', "no tool 'then'"),
        ('[{"name": "now"}]', "'now' is malformed.*no arguments"),
        ('[{"arguments": {}}]', "no name"),
        ('[{"name": "now", "arguments": {"a": tru}}]', "'now' is malformed.*value"),
        ('[{"name": "now", "arguments": {"a": [}}}]', "'now' is malformed.*expected ]"),
        ('[{"name": "now", "arguments": {"a"', "'now' is cut off"),
        ('[{"name": "now", "arguments": {}', "'now' is cut off"),
        ("now", "'now' is cut off"),
        ("now[CALL_ID]abcdefgh1", "'now' is cut off"),
        ("now[ARGS]", "'now' is cut off"),
        ('now[ARGS]{"a": 1', "'now' is cut off"),
        ("now[ARGS][]", "'now' is malformed.*expected {"),
        ('now[ARGS]{"a": }', "'now' is malformed.*value"),
        ("then[ARGS]{}", "no tool 'then'"),
    ],
)
def test_a_malformed_call_is_broken_and_the_next_is_read(text: str, reason: str) -> None:
    result = answer(f"So [TOOL_CALLS]{text}")
    (broken,) = result.broken
    assert broken.raw == f"[TOOL_CALLS]{text}"
    assert re.search(reason, broken.reason)
    assert result == checks.Answer("So", broken=[broken])
    if '"a"' not in text or "cut off" not in reason:  # within arguments, a marker is none
        assert answer(f"[TOOL_CALLS]{text}{CALL}").calls[-1:] == [PARIS]


def test_members_after_a_broken_one() -> None:
    result = answer('[TOOL_CALLS][{"name": "then", "arguments": {}}, ' + MEMBER + ",")
    assert result.calls == [PARIS]
    assert [broken.raw for broken in result.broken] == ['[TOOL_CALLS][{"name": "then", "arguments": {}}', ","]
    (broken,) = answer(f"[TOOL_CALLS][{MEMBER} {MEMBER}]").broken
    assert broken.raw == f"{MEMBER}]"


def test_name_and_arguments_come_as_soon_as_they_are_certain() -> None:
    for head in ('[TOOL_CALLS][{"name": "now"', "[TOOL_CALLS]now[ARGS]"):
        reader = ARRAY.reader(TOOLS)
        assert reader.push(head[:-1]) == []
        (begin,) = reader.push(head[-1])
        assert isinstance(begin, CallBegin)
        assert (begin.index, begin.name, len(begin.id)) == (0, "now", 9)
        assert CallArguments(0, '{"a') in reader.push((', "arguments": ' if '"' in head else "") + '{"a')


def test_the_models_own_id_counts_where_it_comes_in_time() -> None:
    cases = [
        ('[TOOL_CALLS][{"id": "abcdefgh1", "name": "now", "arguments": {}}]', True),
        ('[TOOL_CALLS][{"name": "now", "arguments": {}, "id": "abcdefgh1"}]', False),
        ("[TOOL_CALLS]now[CALL_ID]abcdefgh1[ARGS]{}", True),
    ]
    for text, counts in cases:
        for step in (1, 7, len(text)):
            (given_id,) = ids(text, step)
            assert re.fullmatch("[A-Za-z0-9]{9}", given_id)
            assert (given_id == "abcdefgh1") == counts
    assert len(set(ids(cases[2][0] * 2, 5))) == 2
    assert ids("[TOOL_CALLS]now[CALL_ID]abc[ARGS]{}", 3) != ["abc"]


@given(
    st.lists(
        st.sampled_from([*checks.FRAGMENTS, "[CALL_ID]", "now", '{"name": "now", ', '"arguments": {}}', MEMBER, CALL]),
        max_size=10,
    )
)
@settings(deadline=None)
def test_any_text_becomes_the_same_however_it_is_cut(parts: list[str]) -> None:
    text = "".join(parts)
    result = answer(text)
    if "[TOOL_CALLS]" not in text:
        assert result.text == text


# ---- templates -------------------------------------------------------------------------------------------------------


@checks.needs_reference
def test_these_templates_are_recognised() -> None:
    found = {
        path.stem: tool_format
        for path in sorted((checks.REFERENCE / "templates").glob("*.jinja"))
        for tool_format in FORMATS
        if tool_format.recognises(path.read_text(encoding="utf-8"))
    }
    assert found == TEMPLATES


@checks.needs_reference
@pytest.mark.parametrize("name", sorted(TEMPLATES))
@given(data=st.data())
@settings(deadline=None, max_examples=25)
def test_what_a_template_writes_is_read_back_and_allowed(name: str, data: st.DataObject) -> None:
    # Ministral's template escapes names as HTML, which those of real tools do not need.
    names = [tool for tool in checks.NAMES if "Ministral" not in name or not re.search("[<>]", tool)]
    tools, arguments = data.draw(checks.tools_with_arguments(names=names, forbidden=["</s>"]))
    tool_format, message = TEMPLATES[name], checks.assistant_message(tools, arguments)
    written = checks.rendered_answer(tool_format, checks.reference_template(name), message, tools, "</s>")
    calls = [(tool.name, given_arguments) for tool, given_arguments in zip(tools, arguments, strict=True)]
    assert answer(written, tools) == checks.Answer(calls=calls)
    checks.check_accepts(tool_format, control_vocabulary(), tools, written)


@checks.needs_reference
@pytest.mark.parametrize("name", sorted(TEMPLATES))
@pytest.mark.parametrize("long_ids", [True, False])
def test_results_find_their_calls(name: str, long_ids: bool) -> None:
    called = checks.assistant_message([WEATHER, NOW], [{"city": "Paris"}, {}])
    names = ["call_0123456789_a", "call_0123456789_b"] if long_ids else ["abcdefgh1", "abcdefgh2"]
    for call, call_id in zip(called["tool_calls"], names, strict=True):
        call["id"] = call_id
    called["tool_calls"][0]["function"]["arguments"] = '{"city": "Paris"}'
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "How is it in Paris?"},
        {**called, "content": None},
        {"role": "tool", "tool_call_id": names[0], "content": "22 degrees"},
        {"role": "tool", "tool_call_id": names[1], "content": "noon"},
        {"role": "assistant", "content": "Warm."},
        {"role": "user", "content": "Thanks"},
    ]
    tool_format = TEMPLATES[name]
    prompt = checks.rendered(tool_format, checks.reference_template(name), messages, TOOLS)
    assert prompt == checks.rendered(tool_format, checks.reference_template(name), messages, TOOLS)
    for part in ("The weather in a city.", '{"city": "Paris"}', "22 degrees", "noon", "Warm.", "Thanks"):
        assert part in prompt
    prepared, _ = tool_format.prompt(messages, TOOLS)
    written = [call["id"] for call in prepared[1]["tool_calls"]]
    assert written == [message["tool_call_id"] for message in prepared[2:4]]
    assert len(set(written)) == 2
    assert all(re.fullmatch("[A-Za-z0-9]{9}", call_id) for call_id in written)
    assert (written == names) == (not long_ids)
    assert messages[1]["tool_calls"][0]["id"] == names[0]


def test_calls_without_ids_get_some() -> None:
    call = {"type": "function", "function": {"name": "now", "arguments": {}}}
    messages = [
        {"role": "assistant", "content": "", "tool_calls": [call, call]},
        {"role": "tool", "content": "a"},
        {"role": "tool", "content": "b"},
    ]
    prepared, _ = ARRAY.prompt(messages, TOOLS)
    written = [call["id"] for call in prepared[0]["tool_calls"]]
    assert len(set(written)) == 2
    assert written == [message["tool_call_id"] for message in prepared[1:]]


# ---- grammars --------------------------------------------------------------------------------------------------------


def written_call(tool_format: ToolFormat, name: str, arguments: str) -> str:
    if tool_format is ARGS:
        return f"[TOOL_CALLS]{name}[ARGS]{arguments}"
    quoted = json.dumps(name, ensure_ascii=False)
    return f'[TOOL_CALLS][{{"name": {quoted}, "arguments": {arguments}, "id": "a1B2c3D4e"}}]'


@pytest.mark.parametrize("tool_format", FORMATS, ids=lambda tool_format: tool_format.name)
@pytest.mark.parametrize("markers", [(), tuple(MARKERS)], ids=["spelled", "tokens"])
@given(data=st.data(), seed=st.integers(0, 1000))
@settings(deadline=None, max_examples=30)
def test_calls_and_grammar_agree(
    tool_format: ToolFormat, markers: tuple[str, ...], data: st.DataObject, seed: int
) -> None:
    names = [*checks.NAMES, *(checks.QUOTED_NAMES if tool_format is ARRAY else ())]
    tools, arguments = data.draw(checks.tools_with_arguments(names=names, forbidden=markers))
    vocabulary = control_vocabulary(*markers)
    for tool, given_arguments in zip(tools, arguments, strict=True):
        text = written_call(tool_format, tool.name, json.dumps(given_arguments, ensure_ascii=False))
        checks.check_accepts(tool_format, vocabulary, tools, text, parallel=False)
        assert answer(text, tools).calls == [(tool.name, given_arguments)]
    parallel = seed % 2 == 0
    result = checks.check_random_walk(tool_format, vocabulary, tools, seed, parallel=parallel)
    assert not result.text
    assert parallel or len(result.calls) == 1


@pytest.mark.parametrize("tool_format", FORMATS, ids=lambda tool_format: tool_format.name)
def test_the_grammar_keeps_to_the_tools(tool_format: ToolFormat) -> None:
    vocabulary = control_vocabulary(*MARKERS)
    for name, arguments, allowed in [
        ("get_weather", '{"city": "Paris", "days": 9}', True),
        ("get_weather", '{"city": "Paris", "days": 10}', False),
        ("get_weather", '{"city":"Paris"}', False),
        ("now", "{}", True),
        ("now", '{"a": 1}', False),
        ("then", "{}", False),
    ]:
        text = written_call(tool_format, name, arguments)
        assert checks.accepts(tool_format, vocabulary, TOOLS, text, parallel=False) == allowed
    two = written_call(tool_format, "now", "{}")
    two = two * 2 if tool_format is ARGS else two[:-1] + ", " + two[len("[TOOL_CALLS][") :]
    assert checks.accepts(tool_format, vocabulary, TOOLS, two, parallel=True)
    assert not checks.accepts(tool_format, vocabulary, TOOLS, two, parallel=False)


def test_ids_in_the_grammar_have_nine_characters() -> None:
    vocabulary = control_vocabulary(*MARKERS)
    for call_id, allowed in [("a1B2c3D4e", True), ("a1B2c3D4", False), ("a1B2c3D4e5", False), ("a1B2c3D4_", False)]:
        member = f'[TOOL_CALLS][{{"name": "now", "arguments": {{}}, "id": "{call_id}"}}]'
        assert checks.accepts(ARRAY, vocabulary, TOOLS, member) == allowed
        assert checks.accepts(ARGS, vocabulary, TOOLS, f"[TOOL_CALLS]now[CALL_ID]{call_id}[ARGS]{{}}") == allowed


@pytest.mark.parametrize("name", ["a[ARGS]", "[CALL_ID]", " a"])
def test_a_name_that_cannot_be_written_is_refused(name: str) -> None:
    with pytest.raises(ParameterError, match=re.escape(repr(name))):
        ARGS.call_rules([Tool(name, "", {})], json.dumps, parallel=True)
