"""Recognition of formats over all real templates, and what every format keeps to."""

from __future__ import annotations

import os
import random
import re
from pathlib import Path
from typing import Any

import pytest
import tool_format_checks as checks
from hypothesis import given, settings
from hypothesis import strategies as st

from bee_integrations.errors import ParameterError, TemplateError
from bee_integrations.models.file import ModelFile
from bee_integrations.text.chat_template import ChatTemplate
from bee_integrations.text.tokenizer import Tokenizer
from bee_integrations.tools.derivation import derived
from bee_integrations.tools.described_format import DescribedFormat, written_calls
from bee_integrations.tools.formats import FORMATS, by_name, recognise, recognition
from bee_integrations.tools.formats_table import with_table
from bee_integrations.tools.tool_format import Tool, ToolFormat

# Templates that know no tools are generic.
EXPECTED = {
    "Apertus-8B-Instruct": "apertus",
    "Apriel-1.6-15b-Thinker-fixed": "apriel",
    "Bielik-11B-v3.0-Instruct": "hermes",
    "ByteDance-Seed-OSS": "seed_oss",
    "Cohere2MoE": "cohere",
    "CohereForAI-c4ai-command-r-plus-tool_use": "command_r_plus",
    "CohereForAI-c4ai-command-r7b-12-2024-tool_use": "cohere",
    "GLM-4.6": "glm",
    "GLM-4.7-Flash": "glm",
    "GigaChat3-10B-A1.8B": "gigachat3",
    "GigaChat3.1-10B-A1.8B": "gigachat3_1",
    "HuggingFaceTB-SmolLM3-3B": "generic",
    "Kimi-K2-Instruct": "kimi_k2",
    "Kimi-K2-Thinking": "kimi_k2",
    "Kimi-K3": "kimi_k3",
    "LFM2-8B-A1B": "lfm2",
    "LFM2.5-8B-A1B": "lfm2",
    "LFM2.5-Instruct": "lfm2",
    "MiMo-VL": "hermes",
    "MiniMax-M1": "minimax_m1",
    "MiniMax-M2": "minimax_m2",
    "MiniMax-M3": "minimax_m3",
    "Mistral-Small-3.2-24B-Instruct-2506": "mistral-args",
    "NVIDIA-Nemotron-3-Nano-30B-A3B-BF16": "qwen3_coder",
    "NVIDIA-Nemotron-Nano-v2": "nemotron_v2",
    "NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use": "hermes",
    "NousResearch-Hermes-3-Llama-3.1-8B-tool_use": "hermes",
    "Qwen-QwQ-32B": "hermes",
    "Qwen-Qwen2.5-7B-Instruct": "hermes",
    "Qwen-Qwen3-0.6B": "hermes",
    "Qwen3-Coder": "qwen3_coder",
    "Qwen3.5-4B": "qwen3_coder",
    "Reka-Edge": "hermes",
    "Spark2.5": "glm",
    "StepFun3.5-Flash": "qwen3_coder",
    "deepseek-ai-DeepSeek-R1-Distill-Llama-8B": "deepseek_r1",
    "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B": "deepseek_r1",
    "deepseek-ai-DeepSeek-V3.1": "deepseek_v3_1",
    "deepseek-ai-DeepSeek-V3.2": "deepseek_v3_2",
    "deepseek-ai-DeepSeek-V4": "deepseek_v4",
    "deepseek-ai-DeepSeek-V4-Flash-0731": "deepseek_v4",
    "fireworks-ai-llama-3-firefunction-v2": "firefunction",
    "google-gemma-2-2b-it": "generic",
    "google-gemma-4-31B-it": "gemma4",
    "google-gemma-4-31B-it-interleaved": "gemma4",
    "ibm-granite-granite-3.3-2B-Instruct": "granite3",
    "ibm-granite-granite-4.0": "hermes",
    "ibm-granite-granite-4.1": "hermes",
    "inclusionai-ling-3.0-flash": "glm",
    "llama-cpp-deepseek-r1": "deepseek_r1",
    "llama-cpp-rwkv-world": "generic",
    "meetkai-functionary-medium-v3.1": "functionary_v3_1",
    "meetkai-functionary-medium-v3.2": "functionary_v3_2",
    "meta-llama-Llama-3.1-8B-Instruct": "llama3",
    "meta-llama-Llama-3.2-3B-Instruct": "llama3",
    "meta-llama-Llama-3.3-70B-Instruct": "llama3",
    "microsoft-Phi-3.5-mini-instruct": "generic",
    "mistralai-Ministral-3-14B-Reasoning-2512": "mistral-args",
    "mistralai-Mistral-Nemo-Instruct-2407": "mistral",
    "moonshotai-Kimi-K2": "kimi_k2",
    "muse-glimmer": "muse",
    "openai-gpt-oss-120b": "harmony",
    "openbmb-MiniCPM5-1B": "minicpm5",
    "poolside-Laguna-S-2.1": "glm",
    "poolside-Laguna-XS-2.1": "glm",
    "poolside-Laguna-XS.2": "glm",
    "tencent-Hy3": "hunyuan3",
    "unsloth-Apriel-1.5": "apriel",
    "unsloth-mistral-Devstral-Small-2507": "mistral-args",
    "upstage-Solar-Open-100B": "solar",
}
NO_SYSTEM = {"google-gemma-2-2b-it"}
# These render nothing unless they are given tools (the second calls them "functions"), whatever the messages are.
ONLY_WITH_TOOLS: set[str] = set()

WEATHER = Tool(
    "get_weather",
    "The weather in a city.",
    {"type": "object", "properties": {"city": {"type": "string", "description": "A city."}}, "required": ["city"]},
)
MODULES = [one for one in FORMATS if not isinstance(one, DescribedFormat)]  # test_tool_families.py has the others
by_format = pytest.mark.parametrize("tool_format", MODULES, ids=[one.name for one in MODULES])


# ---- recognition -----------------------------------------------------------------------------------------------------


@checks.needs_reference
def test_the_format_of_every_real_template() -> None:
    found = {
        path.stem: recognise(path.read_text(encoding="utf-8")).name
        for path in (checks.REFERENCE / "templates").glob("*.jinja")
    }
    assert found == EXPECTED


@checks.needs_reference
@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_no_two_formats_claim_a_template(name: str) -> None:
    source = checks.reference_template(name).source
    claims = [one.name for one in FORMATS if one.recognises(source)]
    assert claims in ([EXPECTED[name], "generic"], ["generic"])


def test_the_default_model_and_models_without_a_template_are_generic(model_path: Path) -> None:
    with ModelFile(model_path) as file:
        assert recognise(file.metadata["tokenizer.chat_template"]).name == "generic"
    assert recognise(None).name == "generic"
    assert recognise("").name == "generic"


def test_a_long_template_is_looked_through_quickly() -> None:
    # Quadratic searches would take minutes.
    for part in ("<tool_call>" + "' \n" * 20, "<tool_call>\\n{{", "[TOOL_CALLS]<"):
        assert recognise("tools" + part * (900_000 // len(part))).name


def test_formats_by_name() -> None:
    assert [by_name(one.name) for one in FORMATS] == list(FORMATS)
    assert len({one.name for one in FORMATS}) == len(FORMATS)
    assert by_name("Qwen3-Coder").name == "qwen3_coder"
    with pytest.raises(
        ParameterError, match=r"'hermse'; did you mean 'hermes'\? The formats are .*generic, .*hermes, "
    ):
        by_name("hermse")
    with pytest.raises(ParameterError, match=r"'zzzzzz'\. The formats are"):
        by_name("zzzzzz")


# ---- every template with its format ----------------------------------------------------------------------------------


@checks.needs_reference
@pytest.mark.parametrize("name", sorted(set(EXPECTED) - NO_SYSTEM - ONLY_WITH_TOOLS))
def test_every_template_takes_tools_calls_and_results(name: str) -> None:
    template = checks.reference_template(name)
    tool_format = recognise(template.source)
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "How is it in Paris?"},
        checks.assistant_message([WEATHER], [{"city": "Paris, France"}]),
        {"role": "tool", "tool_call_id": "call00000", "name": "get_weather", "content": "22 degrees"},
    ]
    prompt = checks.rendered(tool_format, template, messages, [WEATHER])
    for part in ("How is it in Paris?", "The weather in a city.", "get_weather", "Paris, France", "22 degrees"):
        assert part in prompt


@checks.needs_reference
@pytest.mark.parametrize("name", sorted(NO_SYSTEM | ONLY_WITH_TOOLS))
def test_templates_that_cannot_show_tools_say_so(name: str) -> None:
    template = checks.reference_template(name)
    with pytest.raises(TemplateError, match=r"[Ss]ystem role|functions|iterable"):
        checks.rendered(recognise(template.source), template, [{"role": "user", "content": "Hi"}], [WEATHER])


# ---- every format ----------------------------------------------------------------------------------------------------


@by_format
@given(text=checks.texts())
@settings(deadline=None, max_examples=50)
def test_text_that_calls_nothing_is_kept(tool_format: ToolFormat, text: str) -> None:
    events = checks.check_cuts(tool_format, [WEATHER], f"So: {text}")
    if tool_format.trigger not in text and tool_format.name != "harmony":
        assert checks.answer(events).text == f"So: {text}"


N_SOUPS = 5 * int(os.environ.get("BEE_FAMILY_EXAMPLES", "8"))
WORDS = re.compile(r"<[^<>]*>|\w+|\s+|.", re.DOTALL)
SOUP = [
    "get_weather", "now", "city", "days", "unknown_tool", '"', "{", "}", "[", "]", "\\", "\n", " ", "3", "null", "{}",
    '{"city": "Paris"}', '"city"', ": ", ", ", "call00000", "<", ">", "é", "\u2028",
]  # fmt: skip


def example_of(form: ToolFormat) -> str:
    """Two calls as the format writes them, or one."""
    if not isinstance(form, DescribedFormat):
        return form.example.replace("name", "get_weather").replace('"get_weather":', '"name":').replace("key", "city")
    calls = [("get_weather", {"city": "Paris", "days": 3}, "callcall1"), ("now", {}, "callcall2")]
    return written_calls(form.description, calls if form.description.parallel else calls[:1])


def markers_of(form: ToolFormat) -> list[str]:
    """All that stands in its calls without being a value."""
    found = {form.trigger, *form.markers, *WORDS.findall(example_of(form))}
    if isinstance(form, DescribedFormat):
        d = form.description
        patterns = (d.call_pattern, d.calls_pattern, d.parameter_pattern)
        found |= {part for pattern in patterns for piece in pattern.pieces for part in piece.split("⏎")} | set(d.hidden)
    return sorted(found - {""})


def soup(form: ToolFormat, draw: random.Random) -> str:
    """Markers and what stands between them in no order, or calls with pieces lost, repeated and strewn in."""
    markers = markers_of(form)
    if draw.random() < 0.4:
        return "".join(draw.choice(markers if draw.random() < 0.7 else SOUP) for _ in range(draw.randint(1, 25)))
    words = WORDS.findall(example_of(form))
    for _ in range(draw.randint(1, 3)):
        at = draw.randrange(len(words) + 1)
        lost, strewn = ((at, at + 1), []), ((at, at), [draw.choice(markers), draw.choice(SOUP)])
        (begin, end), new = draw.choice([lost, strewn, ((at, at), words[max(0, at - 5) : at])])
        words[begin:end] = new
    return "".join(words)


@pytest.mark.parametrize("tool_format", FORMATS, ids=[one.name for one in FORMATS])
def test_whatever_is_made_of_markers_is_read_in_one_way(tool_format: ToolFormat) -> None:
    """BEE_FAMILY_EXAMPLES=1000 tries more."""
    draw = random.Random(tool_format.name)
    for _ in range(N_SOUPS):
        text = soup(tool_format, draw)
        events = checks.read(tool_format, [checks.WEATHER, checks.NOW], [text])
        whole = checks.merged(events)
        cut = draw.randint(0, len(text))
        for pieces in (list(text), [text[:cut], text[cut:]]):
            assert checks.merged(checks.read(tool_format, [checks.WEATHER, checks.NOW], pieces)) == whole, (text, cut)
        found = checks.answer(events)
        assert all(name in ("get_weather", "now") and isinstance(given, dict) for name, given in found.calls), text


@by_format
@pytest.mark.parametrize("parallel", [False, True])
@given(data=st.data(), seed=st.integers(0, 10_000))
@settings(deadline=None, max_examples=20)
def test_what_the_grammar_allows_is_a_valid_call(
    tool_format: ToolFormat, parallel: bool, data: st.DataObject, seed: int, model_path: Path
) -> None:
    tools, _ = data.draw(
        checks.tools_with_arguments(names=["a", "ab", "get_weather"], forbidden=["\n</parameter>", '<|"|>'])
    )
    checks.check_forced_walk(tool_format, checks.model_vocabulary(model_path), tools, seed, parallel=parallel)


@by_format
def test_no_rule_is_called_start(tool_format: ToolFormat, model_path: Path) -> None:
    rules = tool_format.call_rules([WEATHER], checks.model_vocabulary(model_path).literal, parallel=True)
    for trigger in tool_format.triggers_for([WEATHER]):
        assert f"\n{trigger.rule}:" in f"\n{rules}"
    assert "\nstart:" not in f"\n{rules}"


def test_the_default_template_renders_a_conversation_with_tools(model_path: Path) -> None:
    with ModelFile(model_path) as file:
        template = ChatTemplate.from_model_file(file, Tokenizer.from_model_file(file))
    assert template is not None
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "How is it in Paris?"},
        checks.assistant_message([WEATHER], [{"city": "Paris"}]),
        {"role": "tool", "tool_call_id": "call00000", "content": "22 degrees"},
    ]
    prompt = checks.rendered(recognise(template.source), template, messages, [WEATHER])
    assert "The weather in a city." in prompt
    assert 'How is it in Paris?\n\nget_weather(city="Paris") returned: 22 degrees<|im_end|>' in prompt


# ---- what is said of them --------------------------------------------------------------------------------------------


def test_the_documentation_has_the_table_of_the_formats() -> None:
    page = Path(__file__).resolve().parents[2] / "docs" / "tools.md"
    if not page.is_file():
        pytest.skip("the documentation is not here")
    assert page.read_text(encoding="utf-8") == with_table(page.read_text(encoding="utf-8"))


def test_the_examples_of_the_modules_are_calls() -> None:
    tool = Tool("name", "", {"properties": {"key": {"type": "string"}}})
    for form in MODULES:
        assert checks.answer(checks.read(form, [tool], [form.example])).calls == [("name", {"key": "value"})]


# ---- templates that no format knows ----------------------------------------------------------------------------------


def unknown(calls: str) -> str:
    """A template that shows tools, and writes calls in this way."""
    shown = "{% if tools %}[tools] {{ tools | tojson }}\n{% endif %}"
    calls = calls.replace("NAME", "c.function.name").replace("ARGUMENTS", "c.function.arguments")
    said = f"{{% if m.tool_calls %}}{calls}{{% endif %}}"
    return shown + "{% for m in messages %}[{{ m.role }}] {{ m.content }}" + said + "\n{% endfor %}[assistant] "


@pytest.mark.parametrize(
    ("calls", "call"),
    [
        (
            "<doing>{% for c in m.tool_calls %}<act>{{ NAME }}: {{ ARGUMENTS | tojson }}</act>{% endfor %}</doing>",
            '<doing><act>get_weather: {"city": "Paris"}</act></doing>',
        ),
        (
            '{% for c in m.tool_calls %}<use>\n{"tool": "{{ NAME }}", "with": {{ ARGUMENTS | tojson }}}'
            "\n</use>\n{% endfor %}",
            '<use>\n{"tool": "get_weather", "with": {"city": "Paris"}}\n</use>',
        ),
        (
            "{% for c in m.tool_calls %}<run what={{ NAME }}>\n{% for k, v in ARGUMENTS.items() %}"
            "<set {{ k }}>{{ v if v is string else v | tojson }}</set>\n{% endfor %}</run>\n{% endfor %}",
            "<run what=get_weather>\n<set city>Paris</set>\n</run>",
        ),
    ],
)
def test_a_form_is_derived_from_what_the_template_writes(calls: str, call: str, model_path: Path) -> None:
    source = unknown(calls)
    found = recognition(source)
    assert found.format.name == "derived"
    assert "derived from" in found.reason
    events = checks.check_cuts(found.format, [WEATHER], f"Let me see. {call}")
    assert checks.answer(events).calls == [("get_weather", {"city": "Paris"})]
    checks.check_accepts_first(found.format, checks.model_vocabulary(model_path), [WEATHER], call)
    for seed in range(3):
        checks.check_forced_walk(found.format, checks.model_vocabulary(model_path), [WEATHER], seed, parallel=True)
    history = [{"role": "user", "content": "Hi"}, checks.assistant_message([WEATHER], [{"city": "Paris"}])]
    template = ChatTemplate(source, "", "")
    assert call in checks.rendered(found.format, template, history, [WEATHER])


@pytest.mark.parametrize(
    "calls",
    [
        "{{ m.tool_calls[0].function['name'] }}!",  # without the arguments
        "{% for c in m.tool_calls %}{{ NAME }} {{ ARGUMENTS | tojson }} {% endfor %}",  # no marker
        "{% for c in m.tool_calls %}<c {{ loop.index }}>{{ NAME }}{{ ARGUMENTS | tojson }}</c>{% endfor %}",
    ],
)
def test_what_is_not_certain_is_generic_with_one_warning(calls: str, caplog: pytest.LogCaptureFixture) -> None:
    source = unknown(calls)
    for _ in range(2):
        assert recognition(source).format.name == "generic"
    (warning,) = (record.getMessage() for record in caplog.records)
    assert "[tools]" in warning
    assert "tool_format=" in warning


@checks.needs_reference
@pytest.mark.parametrize("name", ["GLM-4.7-Flash", "MiMo-VL", "Apertus-8B-Instruct", "ByteDance-Seed-OSS"])
def test_known_families_would_be_derived_as_well(name: str) -> None:
    template = checks.reference_template(name)
    description = derived(template)
    assert description is not None
    tool = Tool("get_weather", "", {"properties": {"city": {"type": "string"}}})
    form = DescribedFormat(description)
    written = checks.written_by_template(form, template, [tool], [{"city": "Paris"}])
    assert checks.answer(checks.read(form, [tool], [written])).calls == [("get_weather", {"city": "Paris"})]
