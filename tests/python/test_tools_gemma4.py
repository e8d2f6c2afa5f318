"""The Gemma 4 format: what templates write is read back as JSON, and schemas become grammars of the notation."""

from __future__ import annotations

import json
import re
from typing import Any

import jsonschema
import pytest
import tool_format_checks as checks
from control_vocabulary import USER_DEFINED, control_vocabulary
from hypothesis import given, settings
from hypothesis import strategies as st

from bee_integrations.errors import ConstraintError, ParameterError
from bee_integrations.tools.gemma4 import Gemma4Format
from bee_integrations.tools.tool_format import CallArguments, CallBegin, CallBroken, Tool

GEMMA4 = Gemma4Format()
WEATHER, NOW = checks.WEATHER, checks.NOW
TOOLS = [WEATHER, NOW]
CALL = '<|tool_call>call:get_weather{city:<|"|>Paris<|"|>,days:2}<tool_call|>'
PARIS = ("get_weather", {"city": "Paris", "days": 2})
TEMPLATES = ["google-gemma-4-31B-it", "google-gemma-4-31B-it-interleaved"]
MARKERS = ['<|"|>', "<|tool_call>", "<tool_call|>"]
NAMES = [name for name in checks.NAMES if not re.search(r'[:,{}<>"]', name)]
# In the real vocabulary the markers are tokens that count as text; elsewhere they may be control tokens or none.
VOCABULARIES = {
    "tokens that are text": control_vocabulary(*MARKERS, kind=USER_DEFINED),
    "control tokens": control_vocabulary(*MARKERS),
    "spelled": control_vocabulary(),
}
TEXT_TOKENS = VOCABULARIES["tokens that are text"]


def answer(text: str, tools: list[Tool] = TOOLS) -> checks.Answer:
    return checks.answer(checks.check_cuts(GEMMA4, tools, text))


def written(value: Any) -> str:
    """A value in the notation, as the templates write it."""
    if isinstance(value, str):
        return f'<|"|>{value}<|"|>'
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{written(value[key])}" for key in sorted(value, key=str.lower)) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(written, value)) + "]"
    return str(value).lower() if isinstance(value, bool) else str(value)


def call_text(name: str, arguments: dict[str, Any]) -> str:
    return f"<|tool_call>call:{name}{written(arguments)}<tool_call|>"


# ---- reading ---------------------------------------------------------------------------------------------------------


def test_text_around_calls_is_kept_without_the_white_space_between() -> None:
    result = answer(f"Let me see.\n{CALL}\n<|tool_call>call:now{{}}<tool_call|> Done.\n")
    assert result == checks.Answer("Let me see.Done.\n", calls=[PARIS, ("now", {})])


@pytest.mark.parametrize("text", ["", "\n", "a <|", "<|tool_call", "call:now{}", "<tool_call|>", '<|"|>'])
def test_what_only_looks_like_a_call_is_text(text: str) -> None:
    assert answer(text) == checks.Answer(text)


@pytest.mark.parametrize(
    ("inner", "arguments"),
    [
        ("{}", {}),
        ("{ }", {}),
        ("{a:[],b:{},c:[{},[[]]]}", {"a": [], "b": {}, "c": [{}, [[]]]}),
        ("{a:true,b:false,c:null,d:None}", {"a": True, "b": False, "c": None, "d": None}),
        ("{a:-1.5e-07,b:0,c:[1,2.0]}", {"a": -1.5e-07, "b": 0, "c": [1, 2.0]}),
        ('{ a b : 1 , größe:<|"|><|"|> , 工具:[ 1 , 2 ] }', {"a b": 1, "größe": "", "工具": [1, 2]}),
        ('{a:<|"|>"\\\n\t\x00\u2028}],<tool_call|><|"|>}', {"a": '"\\\n\t\x00\u2028}],<tool_call|>'}),
        ('{a:<|"|><|"<|<||"|><|"|>}', {"a": '<|"<|<||"|>'}),
    ],
)
def test_values_become_json(inner: str, arguments: dict[str, Any]) -> None:
    assert answer(f"<|tool_call>call:now{inner}<tool_call|>") == checks.Answer(calls=[("now", arguments)])


def test_name_and_arguments_come_as_soon_as_they_are_certain() -> None:
    reader = GEMMA4.reader(TOOLS)
    assert reader.push("<|tool_call>call:get_weather") == []
    begin, opening = reader.push("{ci")
    assert isinstance(begin, CallBegin)
    assert (begin.index, begin.name, len(begin.id)) == (0, "get_weather", 9)
    assert opening == CallArguments(0, "{")
    assert reader.push('ty:<|"|>Pa"') == [CallArguments(0, '"city": "Pa\\"')]


@pytest.mark.parametrize(
    ("inner", "reason"),
    [
        ("", "call:"),
        ("now{}", "call:"),
        ("call:then{}", "no tool 'then'"),
        ("call:now{a:tru}", "'now'.*'tru'"),
        ("call:now{a:01}", "'now'.*'01'"),
        ("call:now{a:}", "'now'.*''"),
        ("call:now{a:NaN}", "'now'.*'NaN'"),
        ("call:now{a:[1}}", "'now'.*'}'"),
        ("call:now{a:[1,]}", "'now'.*''"),
        ("call:now{a:1]", "'now'.*']'"),
        ("call:now{a:<|x}", "'now'.*'<|x'"),
        ("call:now{a:<|\"|>x<|\"|>y}", "'now'.*'y'"),
        ("call:now{}}", "'now'.*'}'"),
    ],
)  # fmt: skip
def test_a_malformed_call_is_broken_and_the_text_goes_on(inner: str, reason: str) -> None:
    result = answer(f"A<|tool_call>{inner}<tool_call|>B{CALL}C")
    assert (result.text, result.calls) == ("ABC", [PARIS])
    (broken,) = result.broken
    assert broken.raw == f"<|tool_call>{inner}<tool_call|>"
    assert re.search(reason.replace("|x", r"\|x"), broken.reason)


@pytest.mark.parametrize("inner", ["call:now", "call:now{a", "call:now{a:1", "call:now{a:[true"])
def test_a_call_that_is_not_closed_takes_in_nothing_of_what_follows(inner: str) -> None:
    result = answer(f"A<|tool_call>{inner}<tool_call|>B: {{1, 2}} {CALL}C")
    assert (result.text, result.calls) == ("AB: {1, 2}C", [PARIS])
    (broken,) = result.broken
    assert broken.raw == f"<|tool_call>{inner}<tool_call|>"


def test_a_cut_call_is_broken_wherever_it_is_cut() -> None:
    for end in range(len("<|tool_call>"), CALL.index("}") + 1):
        (broken,) = answer("x" + CALL[:end]).broken
        assert broken.raw == CALL[:end]
        assert "cut off" in broken.reason
    assert answer(CALL[: -len("<tool_call|>")]).calls == [PARIS]


def test_deep_nesting_is_no_crash() -> None:
    reader = GEMMA4.reader(TOOLS)
    events = reader.push("<|tool_call>call:now{a:" + "[" * 100_000) + reader.finish()
    assert isinstance(events[-1], CallBroken)
    assert "deep" in events[-1].reason


@given(
    st.lists(
        st.sampled_from([*checks.FRAGMENTS, *MARKERS, "<|tool_call>call:", "now{", "a:", '<|"', "}<tool_call|>", CALL]),
        max_size=10,
    )
)
@settings(deadline=None)
def test_any_text_becomes_the_same_however_it_is_cut(parts: list[str]) -> None:
    text = "".join(parts)
    result = answer(text)
    if "<|tool_call>" not in text:
        assert result.text == text


# ---- templates -------------------------------------------------------------------------------------------------------


@checks.needs_reference
def test_these_templates_are_recognised() -> None:
    assert checks.recognised_by(GEMMA4) == TEMPLATES


@checks.needs_reference
@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("vocabulary", VOCABULARIES)
@given(data=st.data())
@settings(deadline=None, max_examples=25)
def test_what_a_template_writes_is_read_back_and_allowed(name: str, vocabulary: str, data: st.DataObject) -> None:
    tools, arguments = data.draw(checks.tools_with_arguments(names=NAMES, forbidden=MARKERS))
    messages = [{"role": "user", "content": "?"}, checks.assistant_message(tools, arguments)]
    prompt = checks.rendered(GEMMA4, checks.reference_template(name), messages, tools, add_generation_prompt=False)
    given_text = prompt[prompt.index("<|tool_call>") : prompt.rindex("<tool_call|>") + len("<tool_call|>")]
    calls = [(tool.name, given_arguments) for tool, given_arguments in zip(tools, arguments, strict=True)]
    assert answer(given_text, tools).calls == calls
    checks.check_accepts(GEMMA4, VOCABULARIES[vocabulary], tools, given_text)


@checks.needs_reference
@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("with_ids", [True, False])
def test_results_stand_after_their_calls(name: str, with_ids: bool) -> None:
    called = checks.assistant_message([WEATHER, NOW], [{"city": "Paris"}, {}])
    called["tool_calls"][0]["function"]["arguments"] = '{"city": "Paris"}'
    results: list[dict[str, Any]] = [{"role": "tool", "content": "22 degrees"}, {"role": "tool", "content": "noon"}]
    for call, result in zip(called["tool_calls"], results, strict=True):
        result["tool_call_id"] = call["id"]
        if not with_ids:
            del call["id"], result["tool_call_id"]
    messages = [{"role": "user", "content": "How is it in Paris?"}, {**called, "content": None}, *results]
    prompt = checks.rendered(GEMMA4, checks.reference_template(name), messages, TOOLS)
    in_order = [
        "declaration:get_weather", "The weather in a city.", "How is it in Paris?",
        '<|tool_call>call:get_weather{city:<|"|>Paris<|"|>}<tool_call|><|tool_call>call:now{}<tool_call|>',
        '<|tool_response>response:get_weather{value:<|"|>22 degrees<|"|>}<tool_response|>'
        '<|tool_response>response:now{value:<|"|>noon<|"|>}<tool_response|>',
    ]  # fmt: skip
    places = [prompt.index(part) for part in in_order]
    assert places == sorted(places)
    assert "tool_responses" not in called
    # The answer goes on in the same turn.
    turn = prompt[places[-1] + len(in_order[-1]) :]
    assert turn in ("", "<|channel>thought\n<channel|>")


# ---- grammars --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
@given(data=st.data(), seed=st.integers(0, 1000))
@settings(deadline=None, max_examples=30)
def test_what_the_grammar_allows_is_a_valid_call(vocabulary: str, data: st.DataObject, seed: int) -> None:
    tools, _ = data.draw(checks.tools_with_arguments(names=NAMES, forbidden=MARKERS))
    parallel = seed % 2 == 0
    result = checks.check_random_walk(GEMMA4, VOCABULARIES[vocabulary], tools, seed, parallel=parallel)
    assert not result.text
    assert parallel or len(result.calls) == 1


REF = {"$ref": "#/$defs/node"}
NODE = {
    "type": "object",
    "properties": {"leaf": {"type": "string", "maxLength": 3}, "kids": {"type": "array", "items": REF}},
    "required": ["kids"],
}
STRINGS = [
    ({"minLength": 2, "maxLength": 3}, ["ab", "é\n🐝"], ["a", "abcd"]),
    ({"maxLength": 0}, [""], ["a"]),
    ({"pattern": "^[A-Z]{2}[0-9]+$"}, ["AB1"], ["AB", "xAB1", "AB1x"]),
    ({"pattern": "b+"}, ["b", "a\nbc"], ["", "ac"]),
    ({"pattern": "^a|c$"}, ["ab", "bc"], ["b", "ba"]),
    (
        {"pattern": r"^\d\w\s[\d.\]/~&[-]\/\x41\u0042\.$"},
        ["1_ ]/AB.", "1a\t~/AB.", "1a [/AB."],
        ["١_ 1/AB.", "1_ x/AB."],
    ),
    ({"pattern": r"^(?P<a>x|yz)(?:q)?$", "minLength": 2}, ["yz", "xq"], ["x", "yzz"]),
    ({"pattern": "^{a}b{,2}c{2}d{1,}$"}, ["{a}ccd", "{a}bbccdd"], ["{a}bbbccd", "acc"]),
    ({"pattern": "^[^a]$"}, ["b", "\n"], ["a"]),
    ({"format": "date"}, ["2024-02-28", "2030-01-01"], ["2024-02-30", "2024-2-1", "x"]),
    ({"format": "date-time"}, ["2024-12-31T23:59:59.5Z", "2024-01-01T00:00:00+01:00"], ["2024-12-31"]),
    ({"format": "email"}, ["a.b@c.de"], ["a@b", "@c.de"]),
    ({"format": "uuid"}, ["01234567-89ab-cdef-0123-456789abcdef"], ["x"]),
    ({"format": "ipv4"}, ["10.0.255.1"], ["10.0.256.1", "1.1.1"]),
    ({"enum": ["a", '"b\\', ""]}, ["a", '"b\\', ""], ["b"]),
    ({"const": "é"}, ["é"], ["e"]),
]
VALUES = [
    ({"type": "integer", "minimum": -2, "exclusiveMaximum": 12}, [-2, 0, 11], [-3, 12, 1.5]),
    ({"type": "number", "minimum": 0.5}, [0.5, 7, 1e3], [0.25]),
    ({"type": "integer", "multipleOf": 5}, [0, 15], [3]),
    ({"type": ["boolean", "null"]}, [True, None], [0, "null"]),
    (
        {"enum": [1, None, "a", [1, {"b": "c"}], {"y": 1, "X": [True]}]},
        [None, 1, [1, {"b": "c"}], {"y": 1, "X": [True]}],
        ["b", 2],
    ),
    ({"enum": [1, "a"], "type": "string"}, ["a"], [1]),
    (
        {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 2},
        [[True], [True, False]],
        [[], [True] * 3, [1]],
    ),
    ({"type": "array", "maxItems": 0}, [[]], [[1]]),
    ({"type": "array", "minItems": 2}, [[1, "a"], [[], {}, None]], [[1]]),
    ({"type": "array", "items": False}, [[]], [[1]]),
    (
        {"type": "object", "properties": {"b": {}, "A": {}, "c": {}}, "required": ["b"]},
        [{"b": 1}, {"A": 1, "b": 2, "c": 3}, {"b": 1, "c": 2}],
        [{}, {"A": 1}, {"b": 1, "d": 2}],
    ),
    ({"type": "object", "properties": {"b": {}, "a": False}}, [{}, {"b": 1}], [{"a": 1}]),
    ({"type": "object", "additionalProperties": {"type": "integer"}}, [{}, {"x": 1, "y": 2}], [{"x": "1"}]),
    (
        {"type": "object", "properties": {"a": {"type": "null"}}, "additionalProperties": {"type": "integer"}},
        [{"a": None, "b": 1}, {"b": 1}],
        [{"a": 1}],
    ),
    ({"type": "object", "required": ["a"], "additionalProperties": {"type": "integer"}}, [{"a": 1}], [{}, {"b": 1}]),
    ({"properties": {"a": {"minimum": 3}}}, [{"a": 3}, {}], [{"a": 1}]),
    ({"anyOf": [{"type": "integer"}, {"type": "string"}]}, [1, "a"], [True]),
    ({"type": "string", "anyOf": [{"minLength": 3}, {"const": "a"}]}, ["abc", "a"], ["b", 1]),
    ({"oneOf": [{"type": "integer"}, {"type": "string"}, {"enum": [None, True]}]}, [1, "a", None, True], [False]),
    (
        {"oneOf": [{"properties": {"k": {"const": n}, n: {}}, "required": ["k"], "type": "object"} for n in "ab"]},
        [{"k": "a", "a": 1}, {"k": "b"}],
        [{"k": "c"}, {}, {"a": 1, "k": "b"}],
    ),
    ({"anyOf": [{"const": 1}, {"type": "integer", "minimum": 10}]}, [1, 10, 12], [2]),
    (
        {"anyOf": [{"const": {"b": "c"}}, {"type": "object", "additionalProperties": {"type": "integer"}}]},
        [{"b": "c"}, {"b": 1}],
        [{"b": "d"}],
    ),
    ({"anyOf": [{"type": "array", "maxItems": 0}, {"type": "array", "items": {"const": "a"}}]}, [[], ["a"]], [["b"]]),
    ({"allOf": [{"type": "boolean"}]}, [True], [1]),
    (
        REF,
        [{"kids": []}, {"kids": [{"kids": [{"kids": [], "leaf": "abc"}]}], "leaf": ""}],
        [{"kids": [{}]}, {"kids": [], "leaf": "abcd"}],
    ),
    ({}, [1, "a", None, True, [], {"a": [{"b": "c"}]}], []),
    (True, [1, {"a": {}}], []),
]


def accepts(schema: Any, value: Any, vocabulary: checks.Vocabulary = TEXT_TOKENS) -> bool:
    parameters = {"type": "object", "properties": {"v": schema}, "required": ["v"], "$defs": {"node": NODE}}
    return checks.accepts(GEMMA4, vocabulary, [Tool("f", "", parameters)], call_text("f", {"v": value}))


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
@pytest.mark.parametrize(
    ("schema", "good", "bad"), [*[({"type": "string", **more}, good, bad) for more, good, bad in STRINGS], *VALUES]
)
def test_the_grammar_keeps_to_the_schema(vocabulary: str, schema: Any, good: list[Any], bad: list[Any]) -> None:
    for value in good:
        assert accepts(schema, value, VOCABULARIES[vocabulary]), value
        if schema is not REF:
            jsonschema.Draft202012Validator(schema).validate(value)
    for value in bad:
        assert not accepts(schema, value, VOCABULARIES[vocabulary]), value


@pytest.mark.parametrize(
    "schema", [*[{"type": "string", **more} for more, _, _ in STRINGS], *[row[0] for row in VALUES]]
)
def test_what_such_a_grammar_allows_validates(schema: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "_CLOSERS", ('<|"|>', "]", "}", "b", "c"))  # two patterns want letters first
    properties = {"v": schema, "w": {"type": "array", "items": schema, "maxItems": 2}}
    parameters = {"type": "object", "properties": properties, "required": ["v"], "$defs": {"node": NODE}}
    tools = [Tool("f", "", parameters)]
    for seed in range(10):
        checks.check_random_walk(GEMMA4, TEXT_TOKENS, tools, seed, free=5 * seed, parallel=False)


@pytest.mark.parametrize(
    ("schema", "path"),
    [
        ({"not": {}}, "/not"),
        ({"type": "array", "uniqueItems": True}, "/uniqueItems"),
        ({"type": "array", "prefixItems": [{}]}, "/prefixItems"),
        ({"type": "array", "items": {"type": "string", "format": "regex"}}, "/items/format"),
        ({"type": "array", "minItems": 3, "maxItems": 2}, "/maxItems"),
        ({"type": "array", "minItems": 1, "items": False}, "/items"),
        ({"type": "string", "maxLength": -1}, "/maxLength"),
        ({"type": "string", "pattern": "(?=a)"}, "/pattern"),
        ({"type": "string", "pattern": r"(a)\1"}, "/pattern"),
        ({"type": "string", "pattern": r"a\b"}, "/pattern"),
        ({"type": "string", "pattern": "a(^b)"}, "/pattern"),
        ({"type": "string", "pattern": "("}, "/pattern"),
        ({"type": "text"}, "/type"),
        ({"type": []}, "/type"),
        ({"enum": []}, "/enum"),
        ({"enum": ['<|"|>']}, "/enum"),
        ({"enum": [1], "type": "string"}, "/enum"),
        ({"const": 1, "minimum": 0}, "/minimum"),
        ({"type": "object", "properties": {"a:b": {}}}, "/properties/a:b"),
        ({"type": "object", "properties": {"": {}}}, "/properties/"),
        ({"type": "object", "properties": {"a": {"properties": {"{": {}}}}}, "/properties/a/properties/{"),
        ({"type": "object", "properties": {"a": False}, "required": ["a"]}, "/properties/a"),
        ({"type": "object", "properties": {}, "required": ["a"], "additionalProperties": False}, "/required"),
        ({"type": "object", "minProperties": 1}, "/minProperties"),
        ({"type": "object", "patternProperties": {}}, "/patternProperties"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "/oneOf"),
        ({"oneOf": [{"type": "string"}, {"const": "a"}]}, "/oneOf"),
        ({"allOf": [{"type": "string"}, {"minLength": 1}]}, "/allOf"),
        ({"anyOf": []}, "/anyOf"),
        ({"anyOf": [False]}, "/anyOf"),
        ({"anyOf": [{"type": "string"}], "minLength": 1}, "/minLength"),
        ({"anyOf": [{"type": "string"}], "type": "integer"}, "/type"),
        ({"$ref": "#/$defs/none"}, "/$ref"),
        ({"$ref": "other.json"}, "/$ref"),
        ({"$ref": "#/properties/v"}, "/$ref"),
        ({"$ref": "#/$defs/node", "required": ["leaf"]}, "/required"),
        (False, ""),
        (7, ""),
    ],
)
def test_what_cannot_be_expressed_is_refused_with_its_path(schema: Any, path: str) -> None:
    with pytest.raises(ConstraintError, match=rf"tool 'f': #/properties/v{re.escape(path)}: "):
        accepts(schema, None)


@pytest.mark.parametrize("name", ["a{b", " a", "a\n"])
def test_a_name_that_cannot_be_written_is_refused(name: str) -> None:
    with pytest.raises(ParameterError, match=re.escape(repr(name))):
        GEMMA4.call_rules([Tool(name, "", {})], json.dumps, parallel=True)


@pytest.mark.parametrize("parameters", [{}, {"type": "object", "properties": {}}, {"type": "object"}])
def test_a_tool_without_parameters_gets_an_empty_object(parameters: dict[str, Any]) -> None:
    tools = [Tool("now", "", parameters)]
    assert checks.accepts(GEMMA4, TEXT_TOKENS, tools, call_text("now", {}))
    assert not checks.accepts(GEMMA4, TEXT_TOKENS, tools, call_text("now", {"a": 1}))
