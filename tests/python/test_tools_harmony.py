"""The harmony format of gpt-oss: channels become reasoning, text and calls; grammars allow valid calls."""

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
from bee_integrations.tools.harmony import HarmonyFormat
from bee_integrations.tools.tool_format import CallArguments, CallBegin, CallEnd, Reasoning, Text, Tool

HARMONY = HarmonyFormat()
WEATHER, NOW = checks.WEATHER, checks.NOW
TOOLS = [WEATHER, NOW]
ANALYSIS = "<|channel|>analysis<|message|>The user asks.<|end|><|start|>assistant"
PREAMBLE = "<|channel|>commentary<|message|>I look it up.<|end|><|start|>assistant"
FINAL = "<|channel|>final<|message|>It is warm."
CALL = '<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{"city": "Paris"}'
PARIS = ("get_weather", {"city": "Paris"})
TEMPLATE = "openai-gpt-oss-120b"
CONTROL = ["<|start|>", "<|channel|>", "<|message|>", "<|constrain|>", "<|end|>", "<|call|>", "<|return|>"]
NAMES = [name for name in checks.NAMES if " " not in name]


def answer(text: str, tools: list[Tool] = TOOLS) -> checks.Answer:
    return checks.answer(checks.check_cuts(HARMONY, tools, text))


def call_text(name: str, arguments: str) -> str:
    return f"<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>{arguments}"


# ---- reading ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (FINAL, checks.Answer("It is warm.")),
        (FINAL + "<|return|>", checks.Answer("It is warm.")),
        (ANALYSIS + FINAL, checks.Answer("It is warm.", "The user asks.")),
        (ANALYSIS + PREAMBLE + CALL, checks.Answer("I look it up.", "The user asks.", [PARIS])),
        (ANALYSIS + ANALYSIS + CALL + "<|call|>", checks.Answer("", "The user asks." * 2, [PARIS])),
        (ANALYSIS.replace("<|end|><|start|>assistant", "") + FINAL, checks.Answer("It is warm.", "The user asks.")),
        ("<|message|>Hello", checks.Answer("Hello")),
        ("Hello <b>", checks.Answer("Hello <b>")),
        ("  Hello ", checks.Answer("  Hello ")),
        (" to be", checks.Answer(" to be")),
        (" to=", checks.Answer(" to=")),
        (FINAL + "<|end|>More", checks.Answer("It is warm.More")),
        (FINAL + " a <|chan", checks.Answer("It is warm. a <|chan")),
        ("<|channel|>analysis<|message|>Hm <|", checks.Answer("", "Hm <|")),
        (FINAL + "<|end|>\n<|start|>assist", checks.Answer("It is warm.")),
        ("<|channel|>fin", checks.Answer()),
        ("", checks.Answer()),
        (FINAL + "<|end|><|start|>user<|message|>Thanks<|end|>", checks.Answer("It is warm.", "Thanks")),
    ],
)
def test_channels_are_told_apart(text: str, expected: checks.Answer) -> None:
    assert answer(text) == expected


@pytest.mark.parametrize(
    "header",
    [
        "<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>",
        "<|channel|>commentary to=functions.get_weather<|constrain|>json<|message|>",
        "<|channel|>commentary to=functions.get_weather json<|message|>",
        "<|channel|>commentary to=functions.get_weather code<|message|>",
        "<|channel|>commentary to=functions.get_weather<|message|>",
        "<|channel|>analysis to=functions.get_weather <|message|>",
        " to=functions.get_weather<|channel|>commentary json<|message|>",
        " to=functions.get_weather<|channel|>commentary <|constrain|>json<|message|>",
        " to=functions.get_weather<|message|>",
    ],
)
@pytest.mark.parametrize("end", ["", "<|call|>", " <|ca", " \n", "\n<|end|>", "<|start|>assistant"])
def test_a_recipient_may_stand_in_either_place(header: str, end: str) -> None:
    assert answer(f'{header}{{"city": "Paris"}}{end}') == checks.Answer(calls=[PARIS])
    assert answer(f'{header.strip()}{{"city": "Paris"}}{end}') == checks.Answer(calls=[PARIS])
    text = f'<|start|>assistant{header}{{"city": "Paris"}}{end}'
    assert answer(ANALYSIS.replace("<|start|>assistant", "") + text) == checks.Answer("", "The user asks.", [PARIS])


def test_arguments_may_hold_markers() -> None:
    city = "<|call|>} <|end|><|start|>assistant" + CALL
    text = call_text("get_weather", json.dumps({"city": city})) + "<|call|>"
    assert answer(text) == checks.Answer(calls=[("get_weather", {"city": city})])


def test_events_come_as_soon_as_they_are_certain() -> None:
    reader = HARMONY.reader(TOOLS)
    assert reader.push("<|channel|>analysis<|message|>Hm") == [Reasoning("Hm")]
    assert reader.push("<|end|><|start|>assistant<|channel|>commentary to=functions.now") == []
    (begin,) = reader.push("<|message|>")
    assert isinstance(begin, CallBegin)
    assert (begin.index, begin.name, len(begin.id)) == (0, "now", 9)
    assert reader.push('{"a') == [CallArguments(0, '{"a')]
    assert reader.push('": 1}') == [CallArguments(0, '": 1}')]
    assert reader.finish() == [CallEnd(0)]
    reader = HARMONY.reader(TOOLS)
    assert reader.push("<|channel|>final<|message|>Warm") == [Text("Warm")]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("<|channel|>commentary to=functions.", "cut off"),
        ("<|channel|>commentary to=functions.no", "'no' is cut off"),
        ("<|channel|>commentary to=functions.now <|constrain|>js", "'now' is cut off"),
        ("<|channel|>commentary to=functions.now<|message|>", "'now' is cut off"),
        ('<|channel|>commentary to=functions.now<|message|>{"a": "}', "'now' is cut off"),
        ("<|channel|>commentary to=functions.then<|message|>{}", "no tool 'then'"),
        ("<|channel|>commentary to=functions.now.x json<|message|>{}", "no tool 'now.x'"),
        ("<|channel|>commentary to=browser.open<|message|>{}", "no recipient 'browser.open'"),
        ("<|channel|>analysis to=python<|message|>print(1)", "no recipient 'python'"),
        ("<|channel|>commentary to=functions.now<|message|>[]", "'now' is malformed.*expected {"),
        ('<|channel|>commentary to=functions.now<|message|>{"a": tru}', "'now' is malformed.*value"),
        ('<|channel|>commentary to=functions.now<|message|>{"a": [}', "'now' is malformed.*expected ]"),
        ("<|channel|>commentary to=functions.now<|message|>{}}", "'now' is malformed.*'}' follows"),
        ("<|channel|>commentary to=functions.now<|message|>{} <|ca|", "'now' is malformed.*'<' follows"),
    ],
)
def test_a_malformed_call_is_broken(text: str, reason: str) -> None:
    result = answer(ANALYSIS + text)
    (broken,) = result.broken
    assert broken.raw == "<|start|>assistant" + text
    assert re.search(reason, broken.reason)
    assert result == checks.Answer("", "The user asks.", broken=[broken])
    if '"}' not in text:  # within a string, a marker is none
        result = answer(f"{text}<|end|><|start|>assistant{CALL}<|call|>")
        assert result.calls == [PARIS]
        assert [broken.index for broken in result.broken] == [0]


def test_a_long_header_is_read_in_time() -> None:
    # Tries of every way to share the spaces out would take hours.
    text = f"<|channel|>commentary to=functions.now{' ' * 5_000}!<|message|>{{}}"
    assert checks.answer(checks.read(HARMONY, TOOLS, [text])).calls == [("now", {})]


def test_a_cut_call_is_never_complete() -> None:
    for end in range(CALL.index("functions."), len(CALL)):
        result = answer("<|channel|>final<|message|>x<|end|><|start|>assistant" + CALL[:end])
        assert (result.text, result.calls) == ("x", [])


@given(
    st.lists(
        st.sampled_from(
            [
                *checks.FRAGMENTS,
                *CONTROL,
                "assistant",
                " to=functions.",
                "now",
                "json",
                "final",
                "analysis",
                FINAL,
                CALL,
            ]
        ),
        max_size=10,
    )
)
@settings(deadline=None)
def test_any_text_becomes_the_same_however_it_is_cut(parts: list[str]) -> None:
    text = "".join(parts)
    result = answer(text)
    if not any(marker in text for marker in [*CONTROL, "to=functions."]):
        assert result.text == text


# ---- templates -------------------------------------------------------------------------------------------------------


@checks.needs_reference
def test_this_template_is_recognised() -> None:
    assert checks.recognised_by(HARMONY) == [TEMPLATE]


@checks.needs_reference
@given(data=st.data())
@settings(deadline=None, max_examples=25)
def test_what_the_template_writes_is_read_back(data: st.DataObject) -> None:
    tools, arguments = data.draw(checks.tools_with_arguments())
    message = checks.assistant_message(tools[:1], arguments[:1])
    written = checks.rendered_answer(HARMONY, checks.reference_template(TEMPLATE), message, tools, "<|call|>")
    assert answer(written, tools) == checks.Answer(calls=[(tools[0].name, arguments[0])])


@checks.needs_reference
def test_a_history_with_several_calls_is_rendered_call_by_call() -> None:
    called = checks.assistant_message([WEATHER, NOW], [{"city": "Paris"}, {}], "I look it up.")
    called["tool_calls"][0]["function"]["arguments"] = '{"city": "Paris"}'
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "How is it in Paris?"},
        {**called, "reasoning_content": "The user asks."},
        {"role": "tool", "tool_call_id": "call00001", "content": "noon"},
        {"role": "tool", "tool_call_id": "call00000", "content": "22 degrees"},
    ]
    prompt = checks.rendered(HARMONY, checks.reference_template(TEMPLATE), messages, TOOLS)
    in_order = [
        "The weather in a city.", "How is it in Paris?",
        "<|channel|>analysis<|message|>The user asks.\n\nI look it up.",
        '<|start|>assistant to=functions.get_weather<|channel|>commentary json<|message|>{"city": "Paris"}<|call|>',
        '<|start|>functions.get_weather to=assistant<|channel|>commentary<|message|>"22 degrees"<|end|>',
        "<|start|>assistant to=functions.now<|channel|>commentary json<|message|>{}<|call|>",
        '<|start|>functions.now to=assistant<|channel|>commentary<|message|>"noon"<|end|>', "<|start|>assistant",
    ]  # fmt: skip
    at = 0
    for part in in_order:
        at = prompt.index(part, at) + len(part)
    assert at == len(prompt)
    only_thoughts = [messages[0], {**called, "content": None, "reasoning_content": "Hm."}]
    assert "<|channel|>analysis<|message|>Hm.<|end|>" in checks.rendered(
        HARMONY, checks.reference_template(TEMPLATE), only_thoughts, TOOLS
    )


def test_thinking_that_comes_as_a_message_to_the_assistant() -> None:
    text = "<|channel|>commentary to=assistant<|channel|>analysis<|message|>Hm.<|end|>"
    result = checks.answer(checks.check_cuts(HARMONY, TOOLS, f"{text}<|start|>assistant<|channel|>final<|message|>Hi"))
    assert (result.reasoning, result.text) == ("Hm.", "Hi")


# ---- grammars --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("markers", [(), tuple(CONTROL)], ids=["spelled", "tokens"])
@given(data=st.data(), seed=st.integers(0, 1000))
@settings(deadline=None, max_examples=40)
def test_calls_and_grammar_agree(markers: tuple[str, ...], data: st.DataObject, seed: int) -> None:
    tools, arguments = data.draw(checks.tools_with_arguments(names=NAMES))
    vocabulary = control_vocabulary(*markers)
    for tool, given_arguments in zip(tools, arguments, strict=True):
        text = call_text(tool.name, json.dumps(given_arguments, ensure_ascii=False))
        for written in (text, text.replace("<|constrain|>", ""), text.replace(" <|constrain|>json", "")):
            checks.check_accepts(HARMONY, vocabulary, tools, written)
            assert answer(written, tools).calls == [(tool.name, given_arguments)]
    result = checks.check_random_walk(HARMONY, vocabulary, tools, seed)
    assert len(result.calls) == 1
    assert not result.text


def test_the_grammar_keeps_to_the_tools() -> None:
    vocabulary = control_vocabulary(*CONTROL)
    for name, arguments, allowed in [
        ("get_weather", '{"city": "Paris", "days": 9}', True),
        ("get_weather", '{"city": "Paris", "days": 10}', False),
        ("get_weather", '{"city":"Paris"}', False),
        ("now", "{}", True),
        ("now", '{"a": 1}', False),
        ("then", "{}", False),
        ("now", "{}<|call|>", False),
    ]:
        assert checks.accepts(HARMONY, vocabulary, TOOLS, call_text(name, arguments)) == allowed


@pytest.mark.parametrize("name", ["two words", "a<|message|>", " ", ""])
def test_a_name_that_cannot_be_written_is_refused(name: str) -> None:
    with pytest.raises(ParameterError, match=re.escape(repr(name))):
        HARMONY.call_rules([Tool(name, "", {})], json.dumps, parallel=True)
