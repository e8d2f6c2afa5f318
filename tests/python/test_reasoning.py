"""Reasoning: found in real templates, split from the answer however it is cut, and ended by a budget or by a loop."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bee_integrations.chat.reasoning import (
    LoopGuard,
    ReasoningSpan,
    ReasoningSplitter,
    ThinkingBudget,
    begins_open,
    named,
    recognise,
)
from bee_integrations.errors import ParameterError
from bee_integrations.models.file import ModelFile
from bee_integrations.text.chat_template import ChatTemplate
from bee_integrations.text.tokenizer import Tokenizer
from bee_integrations.tools.tool_format import Reasoning, Text

REFERENCE = Path(__file__).resolve().parent.parent / "reference"
needs_templates = pytest.mark.skipif(
    not (REFERENCE / "archive.sha256").is_file(), reason="needs third-party chat templates: run 'make reference'"
)

THINK = ReasoningSpan("<think>", "</think>")
GEMMA = ReasoningSpan("<|channel>thought\n", "<channel|>")
COHERE = ReasoningSpan("<|START_THINKING|>", "<|END_THINKING|>")

# Template -> its span, and whether the prompt of an answer ends inside it: as the template likes it, with thinking
# switched on, and with thinking switched off.
THINKING: dict[str, tuple[ReasoningSpan, tuple[bool, bool, bool]]] = {
    "Apertus-8B-Instruct": (ReasoningSpan("<|inner_prefix|>", "<|inner_suffix|>"), (False, False, False)),
    "Apriel-1.6-15b-Thinker-fixed": (
        ReasoningSpan("Here are my reasoning steps:\n", "[BEGIN FINAL RESPONSE]"),
        (True, True, True),
    ),
    "Bielik-11B-v3.0-Instruct": (THINK, (False, True, False)),
    "ByteDance-Seed-OSS": (ReasoningSpan("<seed:think>", "</seed:think>"), (False, False, False)),
    "Cohere2MoE": (COHERE, (True, True, True)),
    "CohereForAI-c4ai-command-r7b-12-2024-tool_use": (COHERE, (False, False, False)),
    "GLM-4.6": (THINK, (False, False, False)),
    "GLM-4.7-Flash": (THINK, (True, True, False)),
    "HuggingFaceTB-SmolLM3-3B": (THINK, (False, False, False)),
    "Kimi-K2-Thinking": (THINK, (False, False, False)),
    "LFM2.5-8B-A1B": (THINK, (False, False, False)),
    "MiniMax-M2": (THINK, (True, True, True)),
    "MiniMax-M3": (ReasoningSpan("<mm:think>", "</mm:think>"), (False, False, False)),
    "NVIDIA-Nemotron-3-Nano-30B-A3B-BF16": (THINK, (True, True, False)),
    "NVIDIA-Nemotron-Nano-v2": (THINK, (True, True, True)),
    "Qwen-QwQ-32B": (THINK, (False, True, False)),
    "Qwen-Qwen3-0.6B": (THINK, (False, False, False)),
    "Qwen3.5-4B": (THINK, (True, True, False)),
    "Reka-Edge": (THINK, (False, True, False)),
    "Spark2.5": (THINK, (True, True, False)),
    "StepFun3.5-Flash": (THINK, (True, True, True)),
    "deepseek-ai-DeepSeek-R1-Distill-Llama-8B": (THINK, (True, True, True)),
    "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B": (THINK, (False, True, False)),
    "deepseek-ai-DeepSeek-V3.1": (THINK, (False, True, False)),
    "deepseek-ai-DeepSeek-V3.2": (THINK, (False, True, False)),
    "deepseek-ai-DeepSeek-V4": (THINK, (False, True, False)),
    "deepseek-ai-DeepSeek-V4-Flash-0731": (THINK, (False, True, False)),
    "google-gemma-4-31B-it": (GEMMA, (False, False, False)),
    "google-gemma-4-31B-it-interleaved": (GEMMA, (False, False, False)),
    "ibm-granite-granite-3.3-2B-Instruct": (THINK, (False, False, False)),
    "inclusionai-ling-3.0-flash": (THINK, (True, True, False)),
    "Kimi-K3": (ReasoningSpan("<|open|>think<|sep|>", "<|close|>think<|sep|>"), (True, True, False)),
    "muse-glimmer": (ReasoningSpan("to=self<|message|>", "<|eom|>"), (False, False, False)),
    "upstage-Solar-Open-100B": (ReasoningSpan("<|think|>", "<|end|>"), (False, False, False)),
    "llama-cpp-deepseek-r1": (THINK, (True, True, True)),
    "llama-cpp-rwkv-world": (THINK, (False, True, False)),
    "mistralai-Ministral-3-14B-Reasoning-2512": (ReasoningSpan("[THINK]", "[/THINK]"), (False, False, False)),
    "openbmb-MiniCPM5-1B": (THINK, (False, True, False)),
    "poolside-Laguna-S-2.1": (THINK, (True, True, False)),
    "poolside-Laguna-XS-2.1": (THINK, (False, True, False)),
    "poolside-Laguna-XS.2": (THINK, (False, True, False)),
    "tencent-Hy3": (ReasoningSpan("<think:opensource>", "</think:opensource>"), (False, False, False)),
    "unsloth-Apriel-1.5": (ReasoningSpan("<thinking>", "</thinking>"), (False, False, False)),
}
# Channels that two markers cannot describe, and a template that only removes "</think>" from old messages.
CHANNELS = {"openai-gpt-oss-120b"}
ONLY_STRIPS = {"LFM2.5-Instruct"}
NOT_THINKING = {
    "CohereForAI-c4ai-command-r-plus-tool_use",
    "GigaChat3-10B-A1.8B",
    "GigaChat3.1-10B-A1.8B",
    "Kimi-K2-Instruct",
    "LFM2-8B-A1B",
    "MiMo-VL",
    "MiniMax-M1",
    "Mistral-Small-3.2-24B-Instruct-2506",
    "NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use",
    "NousResearch-Hermes-3-Llama-3.1-8B-tool_use",
    "Qwen-Qwen2.5-7B-Instruct",
    "Qwen3-Coder",
    "fireworks-ai-llama-3-firefunction-v2",
    "google-gemma-2-2b-it",
    "ibm-granite-granite-4.0",
    "ibm-granite-granite-4.1",
    "meetkai-functionary-medium-v3.1",
    "meetkai-functionary-medium-v3.2",
    "meta-llama-Llama-3.1-8B-Instruct",
    "meta-llama-Llama-3.2-3B-Instruct",
    "meta-llama-Llama-3.3-70B-Instruct",
    "microsoft-Phi-3.5-mini-instruct",
    "mistralai-Mistral-Nemo-Instruct-2407",
    "moonshotai-Kimi-K2",
    "unsloth-mistral-Devstral-Small-2507",
}

T = TypeVar("T", str, list[int])


def cut(data: st.DataObject, whole: T) -> list[T]:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=8)))
    return [whole[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(whole)], strict=True)]


def source(name: str) -> str:
    return (REFERENCE / "templates" / f"{name}.jinja").read_text(encoding="utf-8")


def prompt(name: str, content: str = "Hi", **kwargs: Any) -> str:
    template = ChatTemplate(source(name), "<|bos|>", "<|eos|>")
    return template.render([{"role": "user", "content": content}], **kwargs)


# ---- templates -------------------------------------------------------------------------------------------------------


@needs_templates
def test_every_reference_template_is_accounted_for() -> None:
    names = {path.stem for path in (REFERENCE / "templates").glob("*.jinja")}
    assert names == THINKING.keys() | CHANNELS | ONLY_STRIPS | NOT_THINKING


@needs_templates
@pytest.mark.parametrize("name", sorted(THINKING.keys() | CHANNELS | ONLY_STRIPS | NOT_THINKING))
def test_recognises_reference_templates(name: str) -> None:
    assert recognise(source(name)) == (THINKING[name][0] if name in THINKING else None)


@needs_templates
@pytest.mark.parametrize("name", sorted(THINKING))
def test_prompts_begin_the_span_or_not(name: str) -> None:
    span, expected = THINKING[name]
    modes: list[dict[str, Any]] = [{}, *({"enable_thinking": on, "thinking": on} for on in (True, False))]
    # What a user quotes opens nothing, not even at the end of the message.
    for content in ("Hi", f"Explain {span.begin}", f"{span.begin}closed{span.end}"):
        prompts = [prompt(name, content, **mode) for mode in modes]
        assert tuple(begins_open(span, text) for text in prompts) == expected


@needs_templates
def test_switches_of_their_own() -> None:
    def opens(name: str, **kwargs: Any) -> bool:
        return begins_open(THINKING[name][0], prompt(name, **kwargs))

    assert opens("tencent-Hy3", reasoning_effort="high")
    assert not opens("Cohere2MoE", reasoning=False)
    assert opens("MiniMax-M3", thinking_mode="enabled")
    assert not opens("MiniMax-M3", thinking_mode="disabled")
    assert not opens("ByteDance-Seed-OSS", thinking_budget=0)
    assert not opens("NVIDIA-Nemotron-Nano-v2", content="Hi /no_think")


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (None, None),
        ("", None),
        ("{{ messages[0].content }}", None),
        ("{{ '<think>' }}", None),  # never ends
        ("{{ '<think>\\n' + m.reasoning + '\\n</think>' }}", THINK),
        ("{{ m.content.split('</think>')[-1].split('<think>')[0] }}", None),
        ('{{ m.content | replace("<think>", "") | replace("</think>", "") }}', None),
        ("{% if '<think>' in m.content and '</think>' not in m.content %}{% endif %}", None),
        ("{# not the <think></think> of others #}{{ m.content }}", None),
        ("{{ '<think>' }}{{ m.content.split('</think>')[-1] }}", THINK),
        ("{# <think> </think>", None),
        ("{{ x | default('<think>') }}{{ '</think>' }}", THINK),
        ("{{ '<|channel>thought\n<channel|>' }}", GEMMA),
        ("{{ '<|channel>thought\\n<channel|>' }}", GEMMA),
        ("{{ '<|channel|>analysis<|message|>' }}", None),
    ],
)
def test_recognises_what_a_template_writes(template: str | None, expected: ReasoningSpan | None) -> None:
    assert recognise(template) == expected


# ---- named by hand ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("<think>", THINK),
        ("[THINK]", ReasoningSpan("[THINK]", "[/THINK]")),
        ("<my-thoughts>", ReasoningSpan("<my-thoughts>", "</my-thoughts>")),
        ("<|START_THINKING|>", COHERE),
        ("<|channel>thought", GEMMA),
        (("<a>", "</a>"), ReasoningSpan("<a>", "</a>")),
        (("Thoughts:\n", "Answer:"), ReasoningSpan("Thoughts:\n", "Answer:")),
    ],
)
def test_named(value: str | tuple[str, str], expected: ReasoningSpan) -> None:
    assert named(value) == expected


@pytest.mark.parametrize(
    "value",
    [
        *("", "think", "</think>", "<think", "<a><b>", "<|some|>", "<a b>", "[]"),
        *(("<a>",), ("<a>", ""), (" \n", "</a>"), ("<a>", "<a>"), ("<a>", 1), ("a", "b", "c")),
        *(None, 7, {"<a>", "</a>"}),
    ],
)
def test_named_refuses(value: Any) -> None:
    with pytest.raises(ParameterError, match="reasoning span"):
        named(value)


# ---- the stream ------------------------------------------------------------------------------------------------------


def split(span: ReasoningSpan | None, opened: bool, pieces: list[str]) -> tuple[str, str]:
    """Reasoning and answer; no reasoning may come after the answer began, and no event may be empty."""
    splitter = ReasoningSplitter(span, opened)
    events = [event for piece in pieces for event in splitter.push(piece)] + splitter.finish()
    assert all(event.text for event in events)
    thoughts = [event.text for event in events if isinstance(event, Reasoning)]
    assert all(isinstance(event, Text) for event in events[len(thoughts) :])
    return "".join(thoughts), "".join(event.text for event in events[len(thoughts) :])


def by_definition(span: ReasoningSpan | None, opened: bool, text: str) -> tuple[str, str]:
    if span is None:
        return "", text
    inner, begin = text.lstrip(), span.begin.strip()
    if inner.startswith(begin):
        inner = inner[len(begin) :]
    elif not opened:
        return ("", inner[len(span.end) :].lstrip()) if inner.startswith(span.end) else ("", text)
    thought, _, answer = inner.partition(span.end)
    return thought.strip(), answer.lstrip()


spans = st.sampled_from([None, ReasoningSpan("<a>", "</a>"), ReasoningSpan("<a>\n", "<a|>"), ReasoningSpan("aa", "ab")])
answers = st.lists(
    st.sampled_from(["<a>", "</a>", "<a>\n", "<a|>", "<", "</", "a", "aa", "b", ">", " ", "\n", "x", "é\u2003"])
).map("".join)


@given(spans, st.booleans(), answers, st.data())
def test_any_cut_gives_the_definition(span: ReasoningSpan | None, opened: bool, text: str, data: st.DataObject) -> None:
    assert split(span, opened, cut(data, text)) == by_definition(span, opened, text)


@given(spans, st.booleans(), answers)
def test_every_character_alone_gives_the_definition(span: ReasoningSpan | None, opened: bool, text: str) -> None:
    assert split(span, opened, list(text)) == by_definition(span, opened, text)


@given(spans, st.booleans(), answers)
def test_inside_tells_where_the_text_ends(span: ReasoningSpan | None, opened: bool, text: str) -> None:
    splitter = ReasoningSplitter(span, opened)
    for character in text:
        splitter.push(character)
    began = span is not None and (opened or text.lstrip().startswith(span.begin.strip()))
    inner = text.lstrip().removeprefix(span.begin.strip()) if span is not None else ""
    assert splitter.inside == (began and span is not None and span.end not in inner)


@pytest.mark.parametrize(
    ("opened", "text", "expected"),
    [
        (False, "<think>\nHm.\n</think>\n\nFour.\n", ("Hm.", "Four.\n")),
        (False, " \n<think>Hm.</think>Four.", ("Hm.", "Four.")),
        (True, "\nHm.\n\nWell.\n</think>\n\nFour.", ("Hm.\n\nWell.", "Four.")),
        (True, "\n<think>\nHm.</think>Four.", ("Hm.", "Four.")),  # opened twice
        (False, "<think>\n\n</think>\n\nFour.", ("", "Four.")),
        (True, "</think>Four.", ("", "Four.")),
        # Not at the beginning, or a second time: text.
        (False, "Models write <think>Hm.</think>.", ("", "Models write <think>Hm.</think>.")),
        (False, "<think>a</think>b<think>c</think>d", ("a", "b<think>c</think>d")),
        (False, "</think>Four.", ("", "Four.")),
        (False, "\n\nFour. ", ("", "\n\nFour. ")),
        # Never ended.
        (False, "<think>Hm. </thin", ("Hm. </thin", "")),
        (True, "Hm. \n", ("Hm.", "")),
        (True, "<thi", ("<thi", "")),
        (True, "<think>", ("", "")),
        (False, "<thi", ("", "<thi")),
        (False, " \n", ("", " \n")),
        # Much like a marker.
        (False, "<thinking>Hm.</thinking>", ("", "<thinking>Hm.</thinking>")),
        (False, "<think >Hm.</think>", ("", "<think >Hm.</think>")),
        (True, "a </ think> </think/></thin</think>b", ("a </ think> </think/></thin", "b")),
        (True, "<thinker></think>b", ("<thinker>", "b")),
    ],
)
def test_examples(opened: bool, text: str, expected: tuple[str, str]) -> None:
    assert split(THINK, opened, [text]) == expected
    assert split(THINK, opened, list(text)) == expected


GRANITE = ReasoningSpan("<think>", "</think>", ("<response>", "</response>"))


@needs_templates
def test_granite_marks_its_answer_as_well() -> None:
    spans = {name: recognise(source(name)) for name in THINKING}
    marked = {name: span.answer for name, span in spans.items() if span is not None and span.answer is not None}
    assert marked == {"ibm-granite-granite-3.3-2B-Instruct": ("<response>", "</response>")}


@pytest.mark.parametrize(
    ("opened", "text", "expected"),
    [
        (False, "<think>Hm.</think>\n<response>\nFour.\n\nYes.\n</response>\n", ("Hm.", "Four.\n\nYes.\n")),
        (True, "Hm.</think><response>Four", ("Hm.", "Four")),
        (True, "Hm.</think><response>Four. \n", ("Hm.", "Four. \n")),
        (True, "Hm.</think><response>a </respons", ("Hm.", "a </respons")),
        (True, "Hm.</think><respo", ("Hm.", "<respo")),
        (True, "Hm.</think><responses>", ("Hm.", "<responses>")),
        (True, "Hm.</think>Four <response>a</response>", ("Hm.", "Four <response>a</response>")),
        (False, "<response>Four.</response>", ("", "<response>Four.</response>")),
        (False, "<think></think><response> </response>", ("", "")),
    ],
)
def test_what_marks_the_answer_is_no_part_of_it(opened: bool, text: str, expected: tuple[str, str]) -> None:
    assert split(GRANITE, opened, [text]) == expected
    assert split(GRANITE, opened, list(text)) == expected


def test_text_is_passed_on_as_soon_as_it_is_certain() -> None:
    splitter = ReasoningSplitter(THINK, opened=False)
    steps: list[tuple[str, list[Text | Reasoning], bool]] = [
        ("<thi", [], False),
        ("nk>", [], True),
        ("\nHm", [Reasoning("Hm")], True),
        (". ", [Reasoning(".")], True),
        ("Well", [Reasoning(" Well")], True),
        ("</", [], True),
        ("b>", [Reasoning("</b>")], True),
        ("\n</think", [], True),
        (">", [], False),
        ("\n", [], False),
        ("\nFour", [Text("Four")], False),
        (" ", [Text(" ")], False),
        ("<think>", [Text("<think>")], False),
    ]
    for text, events, inside in steps:
        assert splitter.push(text) == events
        assert splitter.inside == inside
    assert splitter.finish() == []


def test_text_that_begins_like_a_marker_is_released() -> None:
    splitter = ReasoningSplitter(THINK, opened=False)
    assert splitter.push(" <t") == []
    assert splitter.push("able>") == [Text(" <table>")]
    assert splitter.push(" <think>") == [Text(" <think>")]


@pytest.mark.parametrize("width", [1, 3, 100])
def test_a_call_ends_what_was_not_closed(width: int) -> None:
    text = "Hm.\n<tool_call>{}</tool_call></think>"
    splitter = ReasoningSplitter(THINK, True, ["<tool_call>", "<function="])
    events = [one for at in range(0, len(text), width) for one in splitter.push(text[at : at + width])]
    assert "".join(one.text for one in events if isinstance(one, Reasoning)) == "Hm."
    assert "".join(one.text for one in events if isinstance(one, Text)) == "<tool_call>{}</tool_call></think>"


def test_the_line_break_of_a_begin_may_be_missing() -> None:
    assert split(GEMMA, False, list("<|channel>thought<channel|>Hi")) == ("", "Hi")
    assert split(GEMMA, False, ["<|channel>thought\nHm.<channel|>\nHi"]) == ("Hm.", "Hi")


@needs_templates
@pytest.mark.parametrize("name", sorted(THINKING))
@pytest.mark.parametrize("mode", [{}, {"enable_thinking": True, "thinking": True}])
def test_answers_to_real_prompts(name: str, mode: dict[str, Any]) -> None:
    span = THINKING[name][0]
    opened = begins_open(span, prompt(name, **mode))
    answer = f"{'' if opened else span.begin}\nTwo and two.\n{span.end}\n\nFour, not {span.begin}."
    assert split(span, opened, list(answer)) == ("Two and two.", f"Four, not {span.begin}.")


# ---- loops -----------------------------------------------------------------------------------------------------------

SMALL = {"max_period": 4, "repeats": 3, "min_tokens": 6}


def certain(tokens: list[int], max_period: int, repeats: int, min_tokens: int) -> list[int]:
    """The rule, word by word: after which tokens the last ones are a loop."""
    found = []
    for end in range(1, len(tokens) + 1):
        for period in range(1, max_period + 1):
            length = max(repeats * period, min_tokens)
            last = tokens[max(end - length, 0) : end]
            if len(last) == length and last[period:] == last[:-period]:
                found.append(end - 1)
                break
    return found


def first_certain(tokens: list[int], guard: LoopGuard | None = None) -> int | None:
    return (guard or LoopGuard()).push(tokens)


few_tokens = st.lists(st.integers(0, 2), max_size=12)
loops = st.tuples(few_tokens, st.lists(st.integers(0, 3), min_size=1, max_size=6), st.integers(1, 6), few_tokens)
sequences = st.lists(loops, max_size=3).map(
    lambda parts: [token for before, unit, times, after in parts for token in before + unit * times + after]
)


@given(sequences, st.data())
def test_guard_follows_its_rule_however_the_tokens_are_cut(tokens: list[int], data: st.DataObject) -> None:
    expected = certain(tokens, **SMALL)
    guard, begin = LoopGuard(**SMALL), 0
    for piece in cut(data, tokens):
        here = [index - begin for index in expected if begin <= index < begin + len(piece)]
        assert guard.push(piece) == (here[0] if here else None)
        begin += len(piece)


@pytest.mark.parametrize("period", [*range(1, 70), 85, 100, 127, 128, 129, 255, 256, 257, 400, 511, 512])
def test_loops_of_all_periods_are_noticed_when_the_rule_says(period: int) -> None:
    before = list(range(1000, 1000 + 3 * period))
    loop = list(range(period)) * (600 // period + 5)
    expected = len(before) + max(4 * period, 512) - 1
    assert first_certain(before + loop) == expected
    assert first_certain((before + loop)[: expected + 1]) == expected
    assert first_certain((before + loop)[:expected]) is None


def test_a_period_beyond_the_window_is_none() -> None:
    assert first_certain(list(range(513)) * 8) is None


def test_a_loop_within_which_tokens_repeat() -> None:
    unit = [1, 2, 1, 2, 1, 3]
    assert first_certain(unit * 100) == 511
    assert first_certain([2, 1, 3] + unit * 100) == 511  # the loop began in the middle of the unit


@pytest.mark.parametrize("period", [2, 3, 7, 16, 40, 64, 100, 256, 512])
def test_near_loops_are_none(period: int) -> None:
    unit = list(range(period))
    counted = [token for count in range(1000, 1080) for token in [*unit[1:], count]]
    assert first_certain(counted) is None
    # As long as may be, with one or two other tokens in between.
    almost = (unit * (512 // period + 4))[: max(4 * period, 512) - 1]
    other = 5000
    assert first_certain([*almost, other, *almost, other, other, *almost]) is None
    # Or with a token left out where the unit begins again.
    if period > 2:
        assert first_certain([*almost[: len(almost) // period * period - 1], *almost]) is None


def test_random_tokens_are_none() -> None:
    source_of_tokens = random.Random(1)
    assert first_certain([source_of_tokens.randrange(5) for _ in range(20_000)]) is None


def test_real_text(model_path: Path) -> None:
    with ModelFile(model_path) as file:
        tokenizer = Tokenizer.from_model_file(file)
    fine = [
        "[" + ", ".join("0" * 150) + "]",
        "\n".join("[" + ", ".join("0" * 12) + "]," for _ in range(12)),
        "| a | b |\n|---|---|\n" + "\n".join(f"| {row} | {row * row} |" for row in range(300)),
        "| a | b |\n|---|---|\n" + "|   |   |\n" * 20,
        "    total += 1\n" * 30,
        "\n".join(f"assert f({number}) == {number + 1}" for number in range(200)),
        "-" * 400 + "\n",
        "1/7 = 0." + "142857" * 80,
    ]
    for text in fine:
        assert first_certain(tokenizer.encode(text)) is None, text[:30]
    for text in ("Wait, let me check that again.\n\n", "no ", "So the answer is 4. But is it? Hmm, let me think. "):
        looping = tokenizer.encode("The sum of two and two is asked for. " + text * 600)
        index = first_certain(looping)
        assert index is not None
        assert index < 600


@pytest.mark.parametrize("bad", [{"max_period": 0}, {"repeats": 1}, {"min_tokens": 0}])
def test_guard_refuses(bad: dict[str, int]) -> None:
    with pytest.raises(ParameterError, match="loop guard"):
        LoopGuard(**bad)


# ---- budgets ---------------------------------------------------------------------------------------------------------


@given(sequences, st.none() | st.integers(0, 60), st.booleans(), st.data())
def test_budget_keeps_the_same_tokens_however_they_are_cut(
    tokens: list[int], bound: int | None, guarded: bool, data: st.DataObject
) -> None:
    looping = certain(tokens, **SMALL) if guarded else []
    bounds = [*([bound] if bound is not None else []), *(index + 1 for index in looping[:1])]
    closes = min(bounds, default=None)
    budget, begin = ThinkingBudget(bound, LoopGuard(**SMALL) if guarded else None), 0
    for piece in cut(data, tokens):
        if closes is None or closes > begin + len(piece):
            assert budget.push(piece) is None
        else:
            assert budget.push(piece) == max(closes - begin, 0)
        begin += len(piece)


def test_budget_is_used_up_with_its_last_token() -> None:
    budget = ThinkingBudget(5, None)
    assert budget.push([1, 2, 3]) is None
    assert budget.push([4, 5]) == 2
    assert budget.push([6]) == 0
    assert ThinkingBudget(5, None).push([1] * 16) == 5


def test_budget_of_nothing_closes_at_once() -> None:
    assert ThinkingBudget(0, None).push([]) == 0
    assert ThinkingBudget(None, None).push([1] * 10_000) is None


def test_guard_closes_before_the_budget_and_the_budget_before_the_guard() -> None:
    assert ThinkingBudget(1000, LoopGuard()).push([7] * 1000) == 512
    assert ThinkingBudget(100, LoopGuard()).push([7] * 1000) == 100


def test_budget_refuses() -> None:
    with pytest.raises(ParameterError, match="budget"):
        ThinkingBudget(-1, None)
