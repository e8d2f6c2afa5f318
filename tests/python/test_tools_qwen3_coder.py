"""The format of Qwen3-Coder: tags become JSON while they stream, and grammars keep values to their schemas."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tool_format_checks as checks
from hypothesis import given, settings
from hypothesis import strategies as st

from bee_integrations.errors import ConstraintError, ParameterError
from bee_integrations.tools.formats import by_name
from bee_integrations.tools.tool_format import CallArguments, CallBegin, Tool

QWEN = by_name("qwen3_coder")
END = "\n</parameter>"
WRITE = Tool(
    "write",
    "Writes a file.",
    {
        "type": "object",
        "properties": {
            "path": {"type": "string"},
            "text": {"type": ["string", "null"]},
            "mode": {"enum": ["w", "a"]},
            "lines": {"type": "array", "items": {"type": "integer"}},
            "force": {"type": "boolean"},
        },
        "required": ["path"],
    },
)
NOW = Tool("now", "The time.", {})
TOOLS = [WRITE, NOW]
CALL = (
    "<tool_call>\n<function=write>\n<parameter=path>\na/b\n</parameter>\n<parameter=lines>\n[1, 2]\n</parameter>\n"
    "</function>\n</tool_call>"
)
NAMES = [name for name in checks.NAMES if name != "</function"]  # which cannot be told from what ends a call
TEMPLATES = {
    "NVIDIA-Nemotron-3-Nano-30B-A3B-BF16": "<|im_end|>",
    "Qwen3-Coder": "<|im_end|>",
    "Qwen3.5-4B": "<|im_end|>",
    "StepFun3.5-Flash": "<|im_end|>",
}


def answer(text: str, tools: list[Tool] = TOOLS) -> checks.Answer:
    return checks.answer(checks.check_cuts(QWEN, tools, text))


def call(tool: str, **parameters: str) -> str:
    given_tags = "".join(f"<parameter={name}>\n{value}{END}\n" for name, value in parameters.items())
    return f"<tool_call>\n<function={tool}>\n{given_tags}</function>\n</tool_call>"


# ---- reading ---------------------------------------------------------------------------------------------------------


def test_text_around_calls_is_kept_without_the_white_space_between() -> None:
    result = answer(f"First.\n\n{CALL}\n{call('now')}\n\nThen.")
    assert result.text == "First.Then."
    assert result.calls == [("write", {"path": "a/b", "lines": [1, 2]}), ("now", {})]
    assert not result.broken


def test_texts_stream_as_json() -> None:
    reader = QWEN.reader(TOOLS)
    assert reader.push("<tool_call>\n<function=write>") == []
    begin, opened = reader.push("\n")
    assert isinstance(begin, CallBegin)
    assert begin.name == "write"
    assert opened == CallArguments(0, "{")
    assert reader.push('<parameter=path>\nsay "') == [CallArguments(0, '"path": "say \\"')]
    assert reader.push("x\n</para") == [CallArguments(0, "x")]
    assert reader.push("graph>\n") == [CallArguments(0, "\\n</paragraph>")]
    assert reader.push("</parameter>\n</function") == [CallArguments(0, '"')]


@pytest.mark.parametrize(
    "value",
    ["", "\n", "a\n", "\na", "null", '"quoted"', "5", "\\n", "<b>\n</b>", "</parameter>", "\n</parameter",
     "\n\n</function>", "</tool_call>", "<tool_call>\n<function=now>\n</function>\n</tool_call>",
     "a\n</parameter\n</paramete"],
)  # fmt: skip
def test_a_text_is_taken_as_it_is(value: str) -> None:
    assert answer(call("write", path=value)).calls == [("write", {"path": value})]


@pytest.mark.parametrize(
    ("parameter", "written", "value"),
    [
        ("text", "null", None),
        ("text", "None", None),
        ("text", "nul", "nul"),
        ("text", "nulls", "nulls"),
        ("text", "", ""),
        ("text", "Nothing", "Nothing"),
        ("force", "true", True),
        ("force", "False", False),
        ("lines", " [1,\n 2] ", [1, 2]),
        ("mode", "w", "w"),
    ],
)
def test_values_by_their_type(parameter: str, written: str, value: Any) -> None:
    assert answer(call("write", path="p", **{parameter: written})).calls == [("write", {"path": "p", parameter: value})]


def test_a_union_with_texts_reads_json_where_it_is_some() -> None:
    tools = [
        Tool("f", "", {"type": "object", "properties": {"x": {"anyOf": [{"type": "string"}, {"type": "integer"}]}}})
    ]
    for written, value in [("5", 5), ('"5"', "5"), ("five", "five")]:
        assert answer(call("f", x=written), tools).calls == [("f", {"x": value})]


@pytest.mark.parametrize(
    ("inner", "reason"),
    [
        ("\n<function=wrote>\n</function>\n", "no tool 'wrote'"),
        ("\n<function=write>\n</function>\n", "'write'.*no 'path'"),
        (f"\n<function=write>\n<parameter=force>\nyes{END}\n</function>\n", "'write'.*'force'.*invalid"),
        (f"\n<function=now>\n<parameter=x>\n1{END}\n</function>\n", "'now'.*no parameter 'x'"),
        (f"\n<function=write>\n<parameter=path>\n1{END}<parameter=path>\n1{END}</function>", "'path' is there twice"),
        ('\n{"name": "now", "arguments": {}}\n', "'{' stands where <function="),
        ("\n<function=now>\n</functions>", "stands between|stands where"),
        ("", "there is no call"),
    ],
)
def test_a_malformed_call_is_broken_and_the_text_goes_on(inner: str, reason: str) -> None:
    result = answer(f"A<tool_call>{inner}</tool_call>B{CALL}C")
    assert result.text == "ABC"
    assert result.calls == [("write", {"path": "a/b", "lines": [1, 2]})]
    (broken,) = result.broken
    assert broken.raw == f"<tool_call>{inner}</tool_call>"
    with pytest.raises(ValueError, match=reason):
        raise ValueError(broken.reason)


@pytest.mark.parametrize("inner", ["\n<function=now", "\n<function=write>\n<parameter=path"])
@pytest.mark.parametrize("after", ["B", "\nB"])
def test_a_tag_that_is_not_closed_takes_in_nothing_of_what_follows(inner: str, after: str) -> None:
    result = answer(f"A<tool_call>{inner}</tool_call>{after}{CALL}C")
    assert (result.text, result.calls) == ("ABC", [("write", {"path": "a/b", "lines": [1, 2]})])
    (broken,) = result.broken
    assert broken.raw == f"<tool_call>{inner}</tool_call>"


def test_a_cut_call_is_broken_wherever_it_is_cut() -> None:
    for end in range(len("<tool_call>"), CALL.index("\n</tool_call>")):
        result = answer("x" + CALL[:end])
        assert result.text == "x"
        assert not result.calls
        assert [broken.raw for broken in result.broken] == [CALL[:end]]


@given(
    st.lists(st.sampled_from([*checks.FRAGMENTS, "\n</parameter>\n", "<function=write>\n", "<parameter=path>\n", CALL]))
)
@settings(deadline=None)
def test_any_text_becomes_the_same_however_it_is_cut(parts: list[str]) -> None:
    text = "".join(parts)
    result = answer(text)
    if "<tool_call>" not in text and "<function=write>" not in text:
        assert result.text == text


# ---- templates -------------------------------------------------------------------------------------------------------


@checks.needs_reference
@pytest.mark.parametrize("name", sorted(TEMPLATES))
@given(data=st.data())
@settings(deadline=None, max_examples=40)
def test_what_a_template_writes_is_read_back(name: str, data: st.DataObject) -> None:
    tools, arguments = data.draw(checks.tools_with_arguments(names=NAMES, forbidden=[END]))
    message = checks.assistant_message(tools, arguments)
    written = checks.rendered_answer(QWEN, checks.reference_template(name), message, tools, TEMPLATES[name])
    result = checks.answer(checks.read(QWEN, tools, [written]))
    assert not result.broken
    assert result.calls == [(tool.name, given) for tool, given in zip(tools, arguments, strict=True)]


@checks.needs_reference
@pytest.mark.parametrize("name", sorted(TEMPLATES))
@pytest.mark.parametrize("arguments", [{"path": "p q"}, '{"path": "p q"}'])
def test_results_and_tools_reach_the_prompt(name: str, arguments: Any) -> None:
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "Write it."},
        checks.assistant_message([WRITE], [arguments]),
        {"role": "tool", "tool_call_id": "call00000", "name": "write", "content": "22 bytes"},
    ]
    prompt = checks.rendered(QWEN, checks.reference_template(name), messages, TOOLS)
    assert "Writes a file." in prompt
    assert "<parameter=path>\np q\n</parameter>" in prompt
    assert "22 bytes" in prompt


# ---- grammars --------------------------------------------------------------------------------------------------------


@checks.needs_reference
@given(data=st.data())
@settings(deadline=None, max_examples=60)
def test_the_grammar_allows_what_the_template_writes(data: st.DataObject, model_path: Path) -> None:
    # The template spells constants as Python does; a grammar keeps to JSON.
    tools, arguments = data.draw(checks.tools_with_arguments(names=NAMES, forbidden=[END]))
    tool, given_arguments = (
        tools[0],
        {k: v for k, v in arguments[0].items() if v is not None and not isinstance(v, bool)},
    )
    if len(given_arguments) == len(arguments[0]):
        message = checks.assistant_message([tool], [given_arguments])
        text = checks.rendered_answer(
            QWEN, checks.reference_template("Qwen3-Coder"), message, tools, "<|im_end|>"
        ).strip()
        checks.check_accepts(QWEN, checks.model_vocabulary(model_path), tools, text)


@given(data=st.data(), seed=st.integers(0, 1000))
@settings(deadline=None, max_examples=60)
def test_what_the_grammar_allows_is_a_valid_call(data: st.DataObject, seed: int, model_path: Path) -> None:
    tools, _ = data.draw(checks.tools_with_arguments(names=[*NAMES, *checks.QUOTED_NAMES], forbidden=[END]))
    result = checks.check_random_walk(QWEN, checks.model_vocabulary(model_path), tools, seed)
    assert result.calls
    assert not result.text


UNLIKELY = {"type": "string", "pattern": "b+/"}  # to be met by chance
TEXTS: list[tuple[dict[str, Any], list[str], list[str]]] = [
    ({"type": "string", "minLength": 2, "maxLength": 3}, ["ab", "é\n工"], ["a", "abcd"]),
    ({"type": "string", "pattern": "^[a-z]+$"}, ["abc"], ["", "aB", "a\n"]),
    (UNLIKELY, ["b/", "abbb/c\n"], ["b", "a/"]),
    ({"type": "string", "pattern": "a|b"}, ["a", "xbx"], ["c", ""]),
    ({"type": "string", "pattern": "^[$^|]\\$(x|y)$"}, ["|$x", "^$y"], ["a$x", "|$"]),
    ({"type": "string", "format": "date"}, ["2024-12-31", "2023-02-28"], ["2024-13-01", "2023-02-30", "soon"]),
    ({"type": "string", "format": "password"}, ["", "x y"], []),
    ({"enum": ["a", 'b"\n', "ü"]}, ["a", 'b"\n', "ü"], ["b", "", "u"]),
    ({"const": "</parameter>"}, ["</parameter>"], ["", "x"]),
    ({"$ref": "#/$defs/Color"}, ["red", "green"], ["blue"]),
    ({"allOf": [{"$ref": "#/$defs/Color"}, {"type": "string", "maxLength": 3}]}, ["red"], ["green"]),
    ({"anyOf": [{"const": "x"}, {"type": "null"}]}, ["x", "null"], ["y", "None"]),
    ({"oneOf": [{"type": "string", "minLength": 2}, {"enum": ["a", "bb"]}]}, ["a", "cc"], ["bb", "c"]),
    ({"type": "string", "not": {"enum": ["no"]}}, ["yes", "n"], ["no"]),
    ({"type": "integer", "minimum": 3}, ["3", "10"], ["2", "x", " 3"]),
    ({"type": "array", "items": {"$ref": "#/$defs/Color"}}, ['["red", "green"]', "[]"], ['["blue"]', '["red","red"]']),
    ({"$ref": "#/properties/other"}, ["true"], ["True", "x"]),
    ({"anyOf": [{"type": "string"}, {"type": "integer"}]}, ["5", '"five"'], ["five"]),
    (True, ["5", '{"a": [null]}'], ["five"]),  # type: ignore[list-item]
]


@pytest.mark.parametrize(("schema", "allowed", "refused"), TEXTS)
def test_the_grammar_keeps_to_the_schema(
    schema: dict[str, Any], allowed: list[str], refused: list[str], model_path: Path
) -> None:
    properties = {"x": schema, "other": {"type": "boolean"}}
    parameters = {"type": "object", "properties": properties, "$defs": {"Color": {"enum": ["red", "green"]}}}
    tools = [NOW, Tool("f", "", {**parameters, "required": ["x"]})]
    vocabulary = checks.model_vocabulary(model_path)
    for text in allowed:
        checks.check_accepts(QWEN, vocabulary, tools, call("f", x=text))
        checks.check_arguments(tools, answer(call("f", x=text), tools).calls)
    for text in refused:
        assert not checks.accepts(QWEN, vocabulary, tools, call("f", x=text)), text
    for seed in range(0 if schema == UNLIKELY else 6):
        checks.check_random_walk(QWEN, vocabulary, tools, seed)


def test_parameters_that_are_required_must_be_there_and_others_must_not(model_path: Path) -> None:
    vocabulary = checks.model_vocabulary(model_path)
    assert checks.accepts(QWEN, vocabulary, TOOLS, CALL)
    assert not checks.accepts(QWEN, vocabulary, TOOLS, call("write"))
    assert not checks.accepts(QWEN, vocabulary, TOOLS, call("write", path="a", more="b"))
    assert not checks.accepts(QWEN, vocabulary, TOOLS, call("now", path="a"))
    assert checks.accepts(QWEN, vocabulary, TOOLS, call("now"))


def test_a_map_has_any_names(model_path: Path) -> None:
    parameters = {"type": "object", "properties": {"a": {"const": "b"}}, "additionalProperties": {"type": "integer"}}
    tools = [Tool("put", "", parameters)]
    vocabulary = checks.model_vocabulary(model_path)
    assert checks.accepts(QWEN, vocabulary, tools, call("put", a="b", x="1", y="2"))
    assert not checks.accepts(QWEN, vocabulary, tools, call("put", x="b"))
    assert not checks.accepts(QWEN, vocabulary, tools, call("put", a="1"))
    assert answer(call("put", x="1", y="2"), tools).calls == [("put", {"x": 1, "y": 2})]
    for seed in range(6):
        checks.check_random_walk(QWEN, vocabulary, tools, seed)


@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        ({"anyOf": [{"properties": {"a": {}}}, {"properties": {"b": {}}}]}, "anyOf"),
        ({"properties": {"a": {}}, "minProperties": 1}, "minProperties"),
        ({"properties": {"a": {"type": "string", "pattern": "^a|b$"}}}, "anchors"),
        ({"properties": {"a": {"$ref": "#/$defs/missing"}}}, "leads nowhere"),
        ({"properties": {"a": {"$ref": "https://example.com/schema"}}}, "does not point into"),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}, "circle"),
    ],
)
def test_schemas_that_tags_cannot_keep_to_are_refused(parameters: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConstraintError, match=f"(?s)'f'.*{reason}"):
        QWEN.call_rules([NOW, Tool("f", "", parameters)], str, parallel=False)


def test_names_that_end_a_tag_are_refused() -> None:
    for tool in (
        Tool("a>\nb", "", {}),
        Tool("f", "", {"properties": {"a>\nb": {}}}),
        Tool("a</tool_call>", "", {}),
    ):
        with pytest.raises(ParameterError, match="rename"):
            QWEN.call_rules([tool], str, parallel=False)
