"""Every format that a description tells: its template's own calls, its grammar, its reader, all from one source."""

from __future__ import annotations

import json
import os
import random
import re
from pathlib import Path
from typing import Any

import pytest
import tool_format_checks as checks
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tool_format_checks import NOW, WEATHER, answer

from bee_integrations.chat.parameters import BeeParameters
from bee_integrations.chat.request import ChatRequest
from bee_integrations.chat.tool_use import ToolUse
from bee_integrations.engine import Engine
from bee_integrations.errors import ParameterError, TemplateError
from bee_integrations.text.chat_template import ChatTemplate
from bee_integrations.tools.described_format import DescribedFormat, written_calls
from bee_integrations.tools.description import Description, Values
from bee_integrations.tools.families import ALL
from bee_integrations.tools.formats import FORMATS as ALL_FORMATS
from bee_integrations.tools.formats import recognise
from bee_integrations.tools.template_ways import tool_variables
from bee_integrations.tools.tool_format import Tool

FORMATS = {description.name: DescribedFormat(description) for description in ALL}
EXAMPLES = int(os.environ.get("BEE_FAMILY_EXAMPLES", "8"))
NAMES = ["a", "ab", "get_weather", "get-weather", "größe", "工具", "null"]
by_format = pytest.mark.parametrize("name", sorted(FORMATS))
TEMPLATES = sorted(
    path.stem
    for path in (checks.REFERENCE / "templates").glob("*.jinja")
    if any(description.recognises(path.read_text(encoding="utf-8")) for description in ALL)
)


def forbidden(description: Description) -> list[str]:
    """Texts that no value of the format can hold."""
    if description.values == Values.PYTHON:
        return ["'", "\\"]  # which templates do not escape
    patterns = (description.parameter_pattern, description.call_pattern, description.calls_pattern)
    texts = [piece for pattern in patterns for piece in pattern.pieces if not piece.startswith("$")]
    return [part for text in texts for part in text.split("⏎") if part.startswith(("<", "]<"))]


# ---- templates -------------------------------------------------------------------------------------------------------


@checks.needs_reference
@pytest.mark.parametrize("template_name", TEMPLATES)
@given(data=st.data())
@settings(deadline=None, max_examples=EXAMPLES // 2)
def test_what_a_template_writes_is_read_and_allowed(template_name: str, data: st.DataObject, model_path: Path) -> None:
    template = checks.reference_template(template_name)
    form = recognise(template.source)
    assert isinstance(form, DescribedFormat)
    tools, arguments = data.draw(checks.tools_with_arguments(names=NAMES, forbidden=forbidden(form.description)))
    try:
        written = checks.written_by_template(form, template, tools, arguments)
    except TemplateError:  # one that wants more of a schema than it must have
        assume(False)
    found = answer(checks.read(form, tools, [written]))
    assert found.calls == [(tool.name, given_arguments) for tool, given_arguments in zip(tools, arguments, strict=True)]


# ---- readers and grammars --------------------------------------------------------------------------------------------


@by_format
@given(data=st.data())
@settings(deadline=None, max_examples=EXAMPLES)
def test_what_the_format_writes_is_read_back_and_allowed(name: str, data: st.DataObject, model_path: Path) -> None:
    form = FORMATS[name]
    tools, arguments = data.draw(checks.tools_with_arguments(names=NAMES, forbidden=forbidden(form.description)))
    calls = [
        (tool.name, one, f"callcall{index}") for index, (tool, one) in enumerate(zip(tools, arguments, strict=True))
    ]
    calls = calls if form.description.parallel else calls[:1]
    written = written_calls(form.description, calls)
    found = answer(checks.check_cuts(form, tools, written, every_pair=False))
    assert found.calls == [(called, one) for called, one, _ in calls]
    assert not found.text.strip()
    text = written_calls(form.description, calls[:1])
    checks.check_accepts_first(form, checks.model_vocabulary(model_path), tools, text)


@by_format
@pytest.mark.parametrize("parallel", [False, True])
@given(data=st.data(), seed=st.integers(0, 10_000))
@settings(deadline=None, max_examples=EXAMPLES // 2)
def test_what_the_grammar_allows_is_a_valid_call(
    name: str, parallel: bool, data: st.DataObject, seed: int, model_path: Path
) -> None:
    form = FORMATS[name]
    tools, _ = data.draw(checks.tools_with_arguments(names=NAMES[:3], forbidden=forbidden(form.description)))
    checks.check_forced_walk(form, checks.model_vocabulary(model_path), tools, seed, parallel=parallel)


@by_format
@given(text=checks.texts())
@settings(deadline=None, max_examples=EXAMPLES)
def test_text_without_a_call_is_kept(name: str, text: str) -> None:
    form = FORMATS[name]
    found = answer(checks.check_cuts(form, [WEATHER], f"So: {text}"))
    if not any(opening in text for opening, _ in form.description.openings(["get_weather"])):
        assert found.text == f"So: {text}"


@by_format
def test_a_call_that_is_cut_off_or_of_an_unknown_tool_is_broken(name: str) -> None:
    form = FORMATS[name]
    text = written_calls(form.description, [("get_weather", {"city": "Paris", "days": 3}, "callcall1")])
    needed = len(text) if form.description.call.endswith("$arguments") else text.rindex("3") + 1
    for length in range(1, needed):
        found = answer(checks.check_cuts(form, [WEATHER], text[:length], every_pair=False))
        assert not found.calls, text[:length]
    whole = answer(checks.check_cuts(form, [WEATHER], text))
    assert whole.calls == [("get_weather", {"city": "Paris", "days": 3})]
    other = answer(checks.check_cuts(form, [NOW], text))
    assert not other.calls
    if not form.description.named_trigger:
        assert "there is no tool 'get_weather'" in other.broken[0].reason


@by_format
def test_text_before_and_behind_calls_is_text(name: str) -> None:
    form = FORMATS[name]
    call = written_calls(form.description, [("get_weather", {"city": "Paris"}, "callcall1")])
    found = answer(checks.check_cuts(form, [WEATHER], f"Let me see.\n{call}"))
    assert (found.text.strip(), found.calls) == ("Let me see.", [("get_weather", {"city": "Paris"})])
    if form.description.end or form.description.tail:
        found = answer(checks.check_cuts(form, [WEATHER], f"{call}\nDone."))
        assert found.text == "Done."


@by_format
def test_an_answer_that_is_cut_off_between_two_calls_shows_no_marker(name: str) -> None:
    form = FORMATS[name]
    calls = [("get_weather", {"city": city}, f"callcall{index}") for index, city in enumerate(("Paris", "Rome"))]
    if not form.description.parallel:
        return
    text = written_calls(form.description, calls)
    for length in range(text.index("Paris"), text.index("Rome")):
        found = answer(checks.read(form, [WEATHER], [text[:length]]))
        assert not found.text.strip(), text[:length]


@by_format
def test_names_with_the_formats_own_markers_are_refused_or_told_apart(name: str, model_path: Path) -> None:
    form = FORMATS[name]
    literal = checks.model_vocabulary(model_path).literal
    pieces = [piece for text in (form.description.call, form.description.calls) for piece in re.split(r"⏎|\$\w+", text)]
    refused = 0
    for piece in filter(None, pieces):
        tool = Tool(f"a{piece}b", "", {})
        try:
            form.call_rules([tool], literal, parallel=True)
        except ParameterError as error:
            assert "rename it" in str(error)  # noqa: PT017
            refused += 1
        else:
            text = written_calls(form.description, [(tool.name, {}, "callcall1")])
            assert answer(checks.read(form, [tool], [text])).calls == [(tool.name, {})]
    assert refused or form.description.call.startswith("{") or form.description.named_trigger


@by_format
def test_arguments_that_imitate_a_call_are_arguments(name: str) -> None:
    form = FORMATS[name]
    inner = written_calls(form.description, [("now", {}, "callcall2")])
    if form.description.parameter:
        inner = inner.replace(form.description.parameter_pattern.after("$value").strip("⏎"), "")
        tail = form.description.parameter_pattern.after("$value").split("⏎")[0]
        if tail and tail in inner:
            return
    text = written_calls(form.description, [("get_weather", {"city": inner}, "callcall1")])
    found = answer(checks.check_cuts(form, [WEATHER, NOW], text, every_pair=False))
    assert found.calls == [("get_weather", {"city": inner})]


def test_every_family_has_a_name_of_its_own() -> None:
    assert len(FORMATS) == len(ALL)
    for description in ALL:
        assert description.marks
        assert json.dumps(description.models)


def test_the_model_is_told_what_the_template_does_not_tell() -> None:
    template = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}<|tool_call|> <|start_of_role|>"
    form = recognise(template)
    assert form.name == "granite3"
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "How is it?"},
        checks.assistant_message([WEATHER], [{"city": "Paris"}], "So:"),
        {"role": "tool", "tool_call_id": "call00000", "content": "22 degrees"},
    ]
    told, _ = form.prompt(messages, [WEATHER])
    assert [message["role"] for message in told] == ["system", "user", "assistant", "tool"]
    assert "The weather in a city." in told[0]["content"]
    assert told[2]["content"] == 'So:\n<|tool_call|>[{"name": "get_weather", "arguments": {"city": "Paris"}}]'


# As the maker's template has it: tools under a name of their own, and no word on past calls.
SMOLLM3 = (
    "<|im_start|>system\n{% if xml_tools or python_tools %}{% if xml_tools %}<tools>\n{% for tool in xml_tools[:] %}"
    "{{ tool | string }}\n{% endfor %}</tools>\nFor each function call, return a json object within "
    "<tool_call></tool_call>:\n"
    '<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>'
    "{% endif %}{% endif %}<|im_end|>\n"
    "{% for message in messages %}<|im_start|>{{ 'user' if message.role == 'tool' else message.role }}\n"
    "{{ message.content if message.content is string else '' }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
)


@pytest.mark.parametrize(
    "source",
    [
        SMOLLM3,
        SMOLLM3.replace(
            "{% if xml_tools %}", "{% if xml_tools or tools %}{% if tools %}{% set xml_tools = tools %}{% endif %}"
        ),
    ],
    ids=["xml_tools", "tools as well"],
)
def test_smollm3_is_shown_its_tools_and_past_calls(source: str) -> None:
    form = recognise(source)
    assert form.name == "smollm3"
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "How is it?"},
        checks.assistant_message([WEATHER], [{"city": "Paris"}], ""),
        {"role": "tool", "tool_call_id": "call00000", "content": "22 degrees"},
    ]
    told, shown = form.prompt(messages, [WEATHER])
    rendered = ChatTemplate(source).render(told, tools=shown, **tool_variables(source, shown))
    assert "'description': 'The weather in a city.'" in rendered.partition("<|im_end|>")[0]
    asked, called, result = rendered.split("<|im_start|>")[2:5]
    assert asked == "user\nHow is it?<|im_end|>\n"
    text = called.removeprefix("assistant\n").removesuffix("<|im_end|>\n")
    assert answer(checks.read(form, [WEATHER], [text])).calls == [("get_weather", {"city": "Paris"})]
    assert result == "user\n22 degrees<|im_end|>\n"
    assert "<tools>" not in ChatTemplate(source).render(told)


# ---- an engine -------------------------------------------------------------------------------------------------------

N_FORCED = int(os.environ.get("BEE_FORCED_CALLS", "10"))
CLOSED = {
    "type": "object",
    "properties": {
        "unit": {"enum": ["celsius", "kelvin"]},
        "days": {"type": "integer", "minimum": -9, "maximum": 99},
        "precise": {"type": "boolean"},
        "places": {"type": "array", "items": {"enum": ["Paris", "Rome", "Oslo"]}, "minItems": 1, "maxItems": 2},
    },
    "required": ["unit", "days"],
    "additionalProperties": False,
}


def test_forced_calls_are_valid_and_the_same_with_speculation(engine: Engine) -> None:
    """BEE_FORCED_CALLS=1000 makes so many."""
    draw = random.Random(18)
    names = [form.name for form in ALL_FORMATS if form.name != "generic"]
    template = "{% for message in messages %}{{ message.content }}\n{% endfor %}"
    complete = 0
    for number in range(N_FORCED):
        keys = draw.sample(list(CLOSED["properties"]), draw.randint(1, 4))
        tool = Tool(
            draw.choice(["measure", "get_weather"]),
            "Measures.",
            {**CLOSED, "properties": {key: CLOSED["properties"][key] for key in keys},
             "required": [key for key in CLOSED["required"] if key in keys]},
        )  # fmt: skip
        parameters = BeeParameters(
            max_tokens=120, temperature=draw.choice([0.0, 0.7, 1.5]), seed=draw.getrandbits(40),
            tool_format=names[number % len(names)], chat_template=template,
        )  # fmt: skip
        use = ToolUse((tool, NOW), choice=draw.choice(["any", tool.name]), parallel=draw.random() < 0.3)
        replies = []
        for speculation in ("off", "auto"):
            asked = parameters.model_copy(update={"speculation": speculation})
            replies.append(
                ChatRequest.of_chat(engine, asked, [{"role": "user", "content": "How warm is it?"}], use).reply()
            )
        off, auto = ([(call.name, call.arguments) for call in reply.calls.values()] for reply in replies)
        assert off == auto
        assert [one.reason for one in replies[0].broken] == [one.reason for one in replies[1].broken]
        assert replies[0].text == replies[1].text == ""
        if replies[0].finish_reason != "length":
            complete += 1
            assert off
            assert not replies[0].broken
        checks.check_arguments([tool, NOW], [(name, json.loads(arguments)) for name, arguments in off])
    assert complete > N_FORCED // 2
