"""ChatBee with tools, structured output and thinking, on the default model.

What the model says is up to the model; that it calls, what a call looks like and how an answer is cut are up to the
constraints and limits that each test sets.
"""

from __future__ import annotations

import asyncio
import copy
import json
import pickle
from typing import Annotated, Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain.agents import create_agent
from langchain.agents.middleware import wrap_model_call
from langchain.agents.structured_output import ProviderStrategy, ToolStrategy
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.exceptions import OutputParserException
from langchain_core.load import dumpd, load
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    HumanMessage,
    ToolMessage,
    message_chunk_to_message,
)
from langchain_core.runnables import RunnableBinding
from langchain_core.tools import tool
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition
from pydantic import BaseModel, Field, create_model
from pydantic import v1 as pydantic_v1
from typing_extensions import TypedDict

from bee_integrations.chat.request import Piece
from bee_integrations.constraints import JsonSchema
from bee_integrations.errors import ConstraintError, ParameterError
from bee_integrations.generation import Step
from bee_integrations.langchain import ChatBee
from bee_integrations.langchain_messages import AnswerChunks, template_messages
from bee_integrations.langchain_structured_output import closed
from bee_integrations.tools.formats import FORMATS
from bee_integrations.tools.tool_format import CallArguments, CallBegin, CallBroken

WEATHER = "What is the weather in Paris?"
THINKING = {
    "chat_template": "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
    "{% endfor %}{{ '<|im_start|>assistant\n<think>\n' }}",
    "reasoning_span": "<think>",
    "reasoning_budget": 10,
}


@tool
def get_weather(city: str, days: int) -> str:
    """Get the weather forecast of a city."""
    return f"Sunny in {city} for {days} days."


@tool
def add(a: int, b: int) -> int:
    """Add two integers."""
    return a + b


class Tree(BaseModel):
    """A tree of numbers."""

    value: int = Field(ge=0, le=9)
    children: list[Tree] = Field(default=[], max_length=2)


class Verdict(BaseModel):
    """What somebody thinks of a film."""

    mood: str = Field(pattern="^(good|bad)$")
    stars: int = Field(ge=1, le=5)


class VerdictV1(pydantic_v1.BaseModel):
    """What somebody thinks of a film."""

    stars: int = pydantic_v1.Field(ge=1, le=5)


class VerdictDict(TypedDict):
    """What somebody thinks of a film."""

    stars: Annotated[int, ..., "from 1 to 5"]
    seen: Annotated[bool, ..., "whether it was seen"]


VERDICT_SCHEMA: dict[str, Any] = {
    "title": "verdict",
    "description": "What somebody thinks of a film.",
    "type": "object",
    "properties": {"stars": {"enum": [1, 2, 3]}, "mood": {"enum": ["good", "bad"]}},
    "required": ["stars", "mood"],
}
VERDICT_FUNCTION = {
    "name": "verdict",
    "description": "What somebody thinks of a film.",
    "parameters": {key: VERDICT_SCHEMA[key] for key in ("type", "properties", "required")},
}
_CLOSED = {"properties": {}, "additionalProperties": False}
FILM = "I saw the film yesterday and I loved it. How many stars, 1 to 5?"


@pytest.fixture(scope="module")
def chat(model_path: Any) -> ChatBee:
    return ChatBee(model=model_path, n_ctx=1024, threads=1, max_tokens=60)


def summed(chunks: list[AIMessageChunk]) -> AIMessage:
    total = chunks[0]
    for chunk in chunks[1:]:
        total = total + chunk
    message = message_chunk_to_message(total)
    assert isinstance(message, AIMessage)
    return message


async def collected(stream: Any) -> list[Any]:
    return [part async for part in stream]


def essence(message: AIMessage) -> dict[str, Any]:
    """A message without what differs from run to run: ids, times, and the errors that chunks cannot hold."""
    return {
        "content": message.content,
        "additional": message.additional_kwargs,
        "calls": [(call["name"], call["args"]) for call in message.tool_calls],
        "invalid": [(call["name"], call["args"]) for call in message.invalid_tool_calls],
        "finish_reason": message.response_metadata["finish_reason"],
        "errors": message.response_metadata.get("tool_call_errors"),
        "logprobs": message.response_metadata.get("logprobs"),
        "output_tokens": (message.usage_metadata or {}).get("output_tokens"),
        "details": (message.usage_metadata or {}).get("output_token_details"),
    }


def every_form(model: Any, question: Any, **arguments: Any) -> AIMessage:
    """The answer of `invoke`, after a check that all other forms give the same."""
    answer = model.invoke(question, **arguments)
    assert isinstance(answer, AIMessage)
    expected = essence(answer)
    assert essence(summed(list(model.stream(question, **arguments)))) == expected

    async def both() -> tuple[AIMessage, list[AIMessageChunk]]:
        return await model.ainvoke(question, **arguments), await collected(model.astream(question, **arguments))

    later, chunks = asyncio.run(both())
    assert essence(later) == essence(summed(chunks)) == expected
    plain = model.invoke(question, **arguments, speculation="off")
    assert essence(plain) == expected
    return answer


# ---- the choice ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("choice", ["any", "required", True])
def test_demanded_call(chat: ChatBee, choice: Any) -> None:
    answer = every_form(chat.bind_tools([get_weather, add], tool_choice=choice), WEATHER)
    (call,) = answer.tool_calls
    assert call["name"] in ("get_weather", "add")
    assert call["id"]
    assert answer.response_metadata["finish_reason"] == "tool_calls"
    assert answer.content == ""
    assert answer.invalid_tool_calls == []
    assert [block["type"] for block in answer.content_blocks] == ["tool_call"]


@pytest.mark.parametrize("choice", ["add", {"type": "function", "function": {"name": "add"}}])
def test_named_tool(chat: ChatBee, choice: Any) -> None:
    answer = every_form(chat.bind_tools([get_weather, add], tool_choice=choice), WEATHER)
    (call,) = answer.tool_calls
    assert call["name"] == "add"
    assert {name: type(value) for name, value in call["args"].items()} == {"a": int, "b": int}


@pytest.mark.parametrize("choice", ["none", "auto", None, False])
def test_no_call_where_none_is_demanded(chat: ChatBee, choice: Any) -> None:
    # A greeting gives the model no reason to call.
    answer = every_form(chat.bind_tools([get_weather], tool_choice=choice), "Hello!", max_tokens=12)
    assert answer.text
    assert answer.tool_calls == answer.invalid_tool_calls == []
    assert answer.response_metadata["finish_reason"] in ("stop", "length")


def test_call_by_choice_of_the_model(chat: ChatBee) -> None:
    """The trigger comes from the model, which a bias leans towards it; the call's grammar starts with it."""
    bias = {"logit_bias": dict.fromkeys(chat.get_token_ids("<tool_call>"), 12.0)}
    for use in ({}, {"tool_choice": "auto"}):
        answer = every_form(chat.bind_tools([add], **use), "Call add with 1 and 2, as in <tool_call>", **bias)
        assert [call["name"] for call in answer.tool_calls] == ["add"]
        assert answer.tool_calls[0]["args"].keys() == {"a", "b"}
        assert "<tool_call>" not in answer.text
        assert answer.response_metadata["finish_reason"] == "tool_calls"


def test_arguments_fit_the_schema_at_any_temperature(chat: ChatBee) -> None:
    model = chat.bind_tools([Verdict], tool_choice="any")
    for seed in range(4):
        (call,) = every_form(model, FILM, temperature=1.5, seed=seed).tool_calls
        jsonschema.validate(call["args"], Verdict.model_json_schema())


@pytest.mark.parametrize("style", [style.name for style in FORMATS])
def test_calls_in_every_format(chat: ChatBee, style: str) -> None:
    """The model was trained on none of them; the grammar makes it write each."""
    model = chat.bind_tools([get_weather], tool_choice="any", parallel_tool_calls=False, tool_format=style)
    answer = every_form(model, WEATHER, close_constraint=True)
    assert [call["name"] for call in answer.tool_calls] == ["get_weather"]
    jsonschema.validate(answer.tool_calls[0]["args"], get_weather.get_input_jsonschema())
    for length in (4, 16):
        cut = every_form(model, WEATHER, max_tokens=length)
        assert cut.tool_calls == []


def test_per_call_tools(chat: ChatBee) -> None:
    bound = chat.bind_tools([add], tool_choice="any").invoke("1 + 1?")
    assert essence(chat.invoke("1 + 1?", tools=[add], tool_choice="any")) == essence(bound)
    assert chat.invoke("1 + 1?", tools=[], max_tokens=2).tool_calls == []


@pytest.mark.parametrize(
    "described",
    [
        Verdict,
        VerdictDict,
        VERDICT_SCHEMA,
        VERDICT_FUNCTION,
        {"type": "function", "function": VERDICT_FUNCTION},
        {"name": "verdict", "description": "d", "input_schema": VERDICT_FUNCTION["parameters"]},
    ],
    ids=["pydantic", "typed dict", "schema", "function", "openai", "anthropic"],
)
def test_tools_of_every_kind(chat: ChatBee, described: Any) -> None:
    (call,) = chat.bind_tools([described], tool_choice="any").invoke(FILM).tool_calls
    assert "stars" in call["args"]


def test_python_function_as_a_tool(chat: ChatBee) -> None:
    def double(number: int) -> int:
        """Double a number.

        Args:
            number: what to double.
        """
        return 2 * number

    for strict in (None, True):
        (call,) = chat.bind_tools([double], tool_choice="any", strict=strict).invoke("Double 4.").tool_calls
        assert call["name"] == "double"
        assert isinstance(call["args"]["number"], int)


def test_recursive_arguments(chat: ChatBee) -> None:
    (call,) = chat.bind_tools([Tree], tool_choice="any").invoke("Make a tree.", close_constraint=True).tool_calls
    assert Tree.model_validate(call["args"])

    @tool
    def plant(tree: Tree) -> str:
        """Plant a tree."""
        return "planted"

    for described in (Tree, plant):
        bound = chat.bind_tools([described])
        assert isinstance(bound, RunnableBinding)
        assert "#/$defs/Tree" in json.dumps(bound.kwargs["tools"])


# ---- wrong tools and choices -----------------------------------------------------------------------------------------


def test_wrong_choices(chat: ChatBee) -> None:
    with pytest.raises(ParameterError, match=r"tool_choice is 'subtract'.*'add'"):
        chat.bind_tools([add], tool_choice="subtract")
    with pytest.raises(ParameterError, match="no tools"):
        chat.bind_tools([], tool_choice="any")
    with pytest.raises(ParameterError, match="tool_choice is 3"):
        chat.invoke("1 + 1?", tools=[add], tool_choice=3)
    with pytest.raises(ParameterError, match=r"tool_choice is \{'type': 'any'\}"):
        chat.bind_tools([add], tool_choice={"type": "any"})


def test_wrong_tools(chat: ChatBee) -> None:
    with pytest.raises(ParameterError, match=r"tools\[1\], a int"):
        chat.bind_tools([add, 7])
    with pytest.raises(ParameterError, match=r"tools\[0\].*'web_search'"):
        chat.bind_tools([{"type": "web_search"}])
    with pytest.raises(ParameterError, match=r"tools\[0\] has no name"):
        chat.bind_tools([{"type": "function", "function": {"parameters": {}}}])
    with pytest.raises(ParameterError, match=r"'f'.*'nothing'"):
        chat.bind_tools([{"name": "f", "parameters": "nothing"}])
    with pytest.raises(ParameterError, match="two tools with the name 'add'"):
        chat.bind_tools([add, add]).invoke("1 + 1?")


@pytest.mark.parametrize("choice", ["any", "auto"])
def test_refused_schemas_name_tool_and_path(chat: ChatBee, choice: str) -> None:
    schema = {"type": "object", "properties": {"list": {"type": "array", "items": {"type": "strin"}}}}
    bound = chat.bind_tools([add, {"name": "pick", "parameters": schema}], tool_choice=choice)
    with pytest.raises(ConstraintError, match=r"'pick'.*/properties/list/items/type.*strin"):
        bound.invoke("Pick one.")
    with pytest.raises(ConstraintError, match=r"'pick'.*/properties/list/items/type.*strin"):
        list(bound.stream("Pick one."))
    with pytest.raises(ConstraintError, match=r"'pick'.*/properties/list/items/type.*strin"):
        asyncio.run(collected(bound.astream("Pick one.")))
    assert chat.invoke("Hello", tools=bound.kwargs["tools"], tool_choice="none", max_tokens=2).text  # type: ignore[attr-defined]


# ---- streams ---------------------------------------------------------------------------------------------------------


def test_streamed_calls_grow(chat: ChatBee) -> None:
    chunks = list(chat.bind_tools([get_weather], tool_choice="any").stream(WEATHER))
    pieces = [piece for chunk in chunks for piece in chunk.tool_call_chunks]
    assert len(pieces) > 2
    assert pieces[0]["name"] == "get_weather"
    assert pieces[0]["id"]
    assert {piece["index"] for piece in pieces} == {0}
    assert all(piece["name"] is None and piece["id"] is None for piece in pieces[1:])
    assert json.loads("".join(piece["args"] or "" for piece in pieces)).keys() == {"city", "days"}
    assert chunks[-1].chunk_position == "last"
    assert not chunks[-1].tool_call_chunks


def test_streams_of_version_1_hold_the_calls(chat: ChatBee) -> None:
    model = chat.model_copy(update={"output_version": "v1"}).bind_tools([get_weather], tool_choice="any")
    whole, total = model.invoke(WEATHER), summed(list(model.stream(WEATHER)))
    for message in (whole, total):
        (block,) = message.content_blocks
        assert block["type"] == "tool_call"
        assert (block["name"], block["args"]) == ("get_weather", whole.tool_calls[0]["args"])


def test_cut_off_calls_are_none(chat: ChatBee) -> None:
    """`max_tokens` at every place in a call: there is a whole call or an invalid one, in every form."""
    model = chat.bind_tools([get_weather], tool_choice="any")
    whole = model.invoke(WEATHER).usage_metadata["output_tokens"]
    kinds = []
    for length in range(1, whole + 1, 3):
        answer = every_form(model, WEATHER, max_tokens=length)
        assert len(answer.tool_calls) + len(answer.invalid_tool_calls) <= 1
        for call in answer.tool_calls:
            assert call["args"].keys() == {"city", "days"}
        for broken in answer.invalid_tool_calls:
            assert "cut off" in (broken["error"] or "")
            assert answer.response_metadata["finish_reason"] == "length"
            assert answer.response_metadata["tool_call_errors"] == [broken["error"]]
        kinds.append((len(answer.tool_calls), len(answer.invalid_tool_calls)))
    assert (0, 1) in kinds


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(value=st.dictionaries(st.text(max_size=4), _JSON, max_size=3), data=st.data())
def test_void_calls_never_read_as_calls(value: dict[str, Any], data: st.DataObject) -> None:
    """LangChain would complete arguments that are cut off."""
    text = json.dumps(value, ensure_ascii=data.draw(st.booleans()))
    cut = text[: data.draw(st.integers(0, len(text)))]
    begun = (CallBegin(0, "f", "id"), CallArguments(0, cut)) if cut else (CallBegin(0, "f", "id"),)
    broken = CallBroken(0, f"<tool_call>{cut}", "cut off")
    made = AnswerChunks(None)  # type: ignore[arg-type] - asked for log-probabilities and the last step alone
    chunks = [c for events in (begun, (broken,)) for c in made.of(Piece(tuple(events), Step("", ())))]
    message = summed([chunk.message for chunk in chunks])  # type: ignore[misc]
    assert message.tool_calls == []
    assert [(call["name"], call["id"]) for call in message.invalid_tool_calls] == [("f", "id")]
    assert (message.invalid_tool_calls[0]["args"] or "").startswith(cut)
    unknown = AnswerChunks(None)  # type: ignore[arg-type]
    (chunk,) = unknown.of(Piece((CallBroken(0, text, "there is no tool 'g'"),), Step("", ())))
    assert chunk.message.tool_calls == []  # type: ignore[attr-defined]
    assert len(chunk.message.invalid_tool_calls) == 1  # type: ignore[attr-defined]


class _Seen(BaseCallbackHandler):
    def __init__(self) -> None:
        self.tokens: list[str] = []
        self.chunks: list[Any] = []

    def on_llm_new_token(self, token: Any, *, chunk: Any = None, **kwargs: Any) -> None:
        self.tokens.append(token)
        self.chunks.append(chunk.message)


def test_callbacks_see_calls(chat: ChatBee) -> None:
    seen = _Seen()
    model = chat.model_copy(update={"streaming": True}).bind_tools([add], tool_choice="any")
    answer = model.invoke("1 + 1?", config={"callbacks": [seen]})
    assert summed(seen.chunks).tool_calls == answer.tool_calls
    assert set(seen.tokens) == {""}
    assert len(seen.tokens) > 2


def test_batch_equals_one_by_one(chat: ChatBee) -> None:
    model = chat.bind_tools([get_weather], tool_choice="any")
    questions = [WEATHER, "And in Rome, for 3 days?", "Oslo?"]
    expected = [essence(model.invoke(question)) for question in questions]
    assert [essence(answer) for answer in model.batch(questions)] == expected
    assert [essence(answer) for answer in asyncio.run(model.abatch(questions))] == expected


# ---- histories -------------------------------------------------------------------------------------------------------


def test_failed_tools_say_so() -> None:
    results = [
        ToolMessage("no such city", tool_call_id="1", status="error", artifact={"secret": 1}),
        ToolMessage("Error: no such city", tool_call_id="1", status="error"),
        ToolMessage("sunny", tool_call_id="1"),
    ]
    contents = [message["content"] for message in template_messages(results)]
    assert contents == ["Error: no such city", "Error: no such city", "sunny"]


def test_own_answers_are_taken_back(chat: ChatBee) -> None:
    model = chat.bind_tools([get_weather], tool_choice="any")
    for version in (None, "v1"):
        speaker = chat.model_copy(update={"output_version": version})
        call = speaker.bind_tools([get_weather], tool_choice="any").invoke(WEATHER)
        history: list[BaseMessage] = [HumanMessage(WEATHER), call, get_weather.invoke(call.tool_calls[0])]
        answer = model.invoke(history, tool_choice="none", max_tokens=10)
        assert answer.text
        counted = chat.get_num_tokens_from_messages(history)
        assert answer.usage_metadata["input_tokens"] == counted
    cut = model.invoke(WEATHER, max_tokens=20)
    assert cut.invalid_tool_calls
    assert chat.invoke([HumanMessage(WEATHER), cut, HumanMessage("Go on.")], max_tokens=4).text


def test_tools_count_as_tokens(chat: ChatBee) -> None:
    asked = [HumanMessage(WEATHER)]
    counted = chat.get_num_tokens_from_messages(asked, tools=[get_weather])
    assert counted > chat.get_num_tokens_from_messages(asked)
    answer = chat.bind_tools([get_weather]).invoke(asked, max_tokens=1)
    assert answer.usage_metadata["input_tokens"] == counted


# ---- structured output -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["json_schema", "function_calling", "json_mode"])
@pytest.mark.parametrize(
    ("schema", "kind"),
    [
        (Verdict, Verdict),
        (VerdictV1, VerdictV1),
        (VerdictDict, dict),
        (VERDICT_SCHEMA, dict),
        (VERDICT_FUNCTION, dict),
        ({"type": "function", "function": VERDICT_FUNCTION}, dict),
        (Tree, Tree),
    ],
    ids=["pydantic", "pydantic 1", "typed dict", "schema", "function", "openai", "recursive"],
)
def test_structured_output(chat: ChatBee, schema: Any, kind: type[Any], method: Any) -> None:
    model = chat.with_structured_output(schema, method=method, close_constraint=True)
    value = model.invoke(FILM)
    assert isinstance(value, kind)
    if schema in (VERDICT_SCHEMA, VERDICT_FUNCTION):
        jsonschema.validate(value, VERDICT_SCHEMA)
        assert value.keys() == {"stars", "mood"}
    assert list(model.stream(FILM))[-1] == value
    assert asyncio.run(model.ainvoke(FILM)) == value
    assert asyncio.run(collected(model.astream(FILM)))[-1] == value
    raw = chat.with_structured_output(schema, method=method, include_raw=True, close_constraint=True).invoke(FILM)
    assert raw["parsed"] == value
    assert raw["parsing_error"] is None
    assert isinstance(raw["raw"], AIMessage)
    assert bool(raw["raw"].tool_calls) == (method == "function_calling")


def test_structured_output_is_the_same_without_speculation(chat: ChatBee) -> None:
    model = chat.with_structured_output(Verdict, include_raw=True)
    for seed in range(3):
        one, other = (
            model.invoke(FILM, temperature=1.2, seed=seed, speculation=speculation) for speculation in ("auto", "off")
        )
        assert one["raw"].content == other["raw"].content
        assert one["parsed"] == other["parsed"] != None  # noqa: E711 - a value, and the same one


def test_json_mode_without_schema(chat: ChatBee) -> None:
    value = chat.with_structured_output(method="json_mode", close_constraint=True).invoke("Describe a bee as JSON.")
    assert isinstance(value, dict)
    # What cannot be enforced is left to the parser.
    odd = {"title": "odd", "type": "object", "not": {"required": ["a"]}}
    assert isinstance(
        chat.with_structured_output(odd, method="json_mode", close_constraint=True).invoke("A bee as JSON."), dict
    )


def test_answers_that_are_no_objects(chat: ChatBee) -> None:
    schema = {"type": "array", "items": {"enum": ["red", "green"]}, "minItems": 2, "maxItems": 2}
    value = chat.with_structured_output(schema).invoke("Two colours.")
    assert len(value) == 2
    assert set(value) <= {"red", "green"}


def test_nothing_is_made_up_beside_the_schema(chat: ChatBee) -> None:
    inner = create_model("Inner", n=(int, Field(ge=0, le=9)))
    outer = create_model("Outer", inner=(inner, ...), also=(inner, ...))
    raw = chat.with_structured_output(outer, include_raw=True).invoke("Numbers?", temperature=1.5, seed=1)["raw"]
    value = json.loads(raw.content)
    assert value.keys() == {"inner", "also"}
    assert value["inner"].keys() == value["also"].keys() == {"n"}


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ({"properties": {"a": {"properties": {}}}}, {"properties": {"a": _CLOSED}, "additionalProperties": False}),
        ({"properties": {"a": {}}, "additionalProperties": {}}, None),
        ({"properties": {"a": {}}, "patternProperties": {"b": {}}}, None),
        ({"properties": {"a": {}}, "required": ["b"]}, None),
        ({"type": "object"}, None),
        ({"properties": {"a": {}}, "anyOf": [{"properties": {"b": {}}}]}, None),
        ({"allOf": [{"properties": {"a": {}}}, {"$ref": "#/$defs/b"}], "$defs": {"b": {"properties": {}}}}, None),
        ({"anyOf": [{"properties": {}}, {"const": {"a": {}}}]}, {"anyOf": [_CLOSED, {"const": {"a": {}}}]}),
        ({"$ref": "#/$defs/b", "$defs": {"b": {"properties": {}}}}, {"$ref": "#/$defs/b", "$defs": {"b": _CLOSED}}),
        ({"properties": {"properties": {}}}, {"properties": {"properties": {}}, "additionalProperties": False}),
    ],
)  # fmt: skip
def test_closed_schemas(schema: dict[str, Any], expected: dict[str, Any] | None) -> None:
    """Objects get no members that nobody asked for, and none is lost; None: the schema stays as it is."""
    assert closed(schema) == (schema if expected is None else expected)


@pytest.mark.parametrize("schema", [Verdict, VERDICT_SCHEMA], ids=["pydantic", "schema"])
def test_cut_off_answers_raise(chat: ChatBee, schema: Any) -> None:
    """LangChain's own parser would complete what is there."""
    model = chat.with_structured_output(schema)
    with pytest.raises(OutputParserException, match="max_tokens"):
        model.invoke(FILM, max_tokens=6)
    with pytest.raises(OutputParserException, match="max_tokens"):
        list(model.stream(FILM, max_tokens=6))
    with pytest.raises(OutputParserException, match="max_tokens"):
        asyncio.run(collected(model.astream(FILM, max_tokens=6)))
    raw = chat.with_structured_output(schema, include_raw=True).invoke(FILM, max_tokens=6)
    assert raw["parsed"] is None
    assert isinstance(raw["parsing_error"], OutputParserException)
    assert raw["raw"].response_metadata["finish_reason"] == "length"
    assert chat.with_structured_output(schema, method="function_calling").invoke(FILM, max_tokens=22) is None


def test_values_that_only_the_class_refuses(chat: ChatBee) -> None:
    class Never(BaseModel):
        """Of no number."""

        stars: int = Field(ge=1, le=5)

        def model_post_init(self, context: Any) -> None:
            raise ValueError("never right")

    with pytest.raises(OutputParserException, match="never right"):
        chat.with_structured_output(Never).invoke(FILM)
    raw = chat.with_structured_output(Never, include_raw=True).invoke(FILM)
    assert isinstance(raw["parsing_error"], OutputParserException)


@pytest.mark.parametrize("method", ["json_schema", "function_calling", "json_mode"])
@pytest.mark.parametrize(
    "wrapper",
    [
        {"type": "json_schema", "json_schema": {"name": "verdict", "schema": VERDICT_SCHEMA, "strict": True}},
        {"type": "json_schema", "name": "verdict", "schema": VERDICT_SCHEMA},
        {"type": "json_object", "schema": VERDICT_SCHEMA},
        {"name": "verdict", "schema": VERDICT_SCHEMA},
    ],
)
def test_schemas_in_openais_wrappers(chat: ChatBee, wrapper: dict[str, Any], method: Any) -> None:
    expected = chat.with_structured_output({"title": "verdict", **VERDICT_SCHEMA}, method=method).invoke(FILM)
    assert expected.keys() == VERDICT_SCHEMA["properties"].keys()
    assert chat.with_structured_output(wrapper, method=method).invoke(FILM) == expected


def test_wrong_schemas(chat: ChatBee) -> None:
    with pytest.raises(ConstraintError, match="/properties/a/type"):
        chat.with_structured_output({"title": "x", "type": "object", "properties": {"a": {"type": "strin"}}})
    with pytest.raises(ParameterError, match="5 is no schema"):
        chat.with_structured_output(5)
    with pytest.raises(ParameterError, match="title"):
        chat.with_structured_output({"type": "object", "properties": {}}, method="function_calling")
    with pytest.raises(ParameterError, match=r"'xml'.*'json_schema'"):
        chat.with_structured_output(Verdict, method="xml")  # type: ignore[arg-type]
    with pytest.raises(ParameterError, match="needs a schema"):
        chat.with_structured_output(None)
    with pytest.raises(ParameterError, match="both given"):
        chat.with_structured_output(Verdict).invoke(FILM, constraint=JsonSchema(VERDICT_SCHEMA))


# ---- thinking and log-probabilities ----------------------------------------------------------------------------------


def test_thinking_is_apart(chat: ChatBee) -> None:
    answer = every_form(chat, WEATHER, max_tokens=30, **THINKING)
    thought = answer.additional_kwargs["reasoning_content"]
    assert thought
    assert "<think>" not in answer.text + thought
    assert "</think>" not in answer.text + thought
    assert 0 < answer.usage_metadata["output_token_details"]["reasoning"] <= answer.usage_metadata["output_tokens"]
    assert answer.content_blocks[0] == {"type": "reasoning", "reasoning": thought}
    chunks = list(chat.stream(WEATHER, max_tokens=30, **THINKING))
    parts = [chunk.additional_kwargs.get("reasoning_content") for chunk in chunks]
    assert "".join(part for part in parts if part) == thought
    assert all(not chunk.content for chunk, part in zip(chunks, parts, strict=True) if part)


def test_thinking_before_a_call_and_before_a_value(chat: ChatBee) -> None:
    called = every_form(chat.bind_tools([add], tool_choice="any"), "1 + 1?", **THINKING)
    assert called.additional_kwargs["reasoning_content"]
    assert [call["name"] for call in called.tool_calls] == ["add"]
    assert [block["type"] for block in called.content_blocks] == ["reasoning", "tool_call"]
    raw = chat.with_structured_output(Verdict, include_raw=True).invoke(FILM, **THINKING)
    assert raw["raw"].additional_kwargs["reasoning_content"]
    assert isinstance(raw["parsed"], Verdict)
    (again,) = template_messages([called])
    assert again["reasoning_content"] == called.additional_kwargs["reasoning_content"]


def test_logprobs(chat: ChatBee) -> None:
    answer = every_form(chat, "Hello!", max_tokens=6, logprobs=True, top_logprobs=3)
    content = answer.response_metadata["logprobs"]["content"]
    assert len(content) == answer.usage_metadata["output_tokens"]
    assert all(entry["logprob"] <= 0 and len(entry["top_logprobs"]) == 3 for entry in content)
    spoken = b"".join(bytes(entry["bytes"]) for entry in content)
    assert spoken.decode().startswith(answer.text)
    assert all(entry["top_logprobs"][0]["logprob"] >= entry["logprob"] for entry in content)
    assert "logprobs" not in chat.invoke("Hello!", max_tokens=2).response_metadata


# ---- storing and describing ------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::langchain_core._api.beta_decorator.LangChainBetaWarning")
def test_bound_models_are_stored(chat: ChatBee) -> None:
    bound = chat.bind_tools([add], tool_choice="any")
    assert isinstance(bound, RunnableBinding)
    expected = essence(bound.invoke("1 + 1?"))
    stored = load(dumpd(bound), allowed_objects=[ChatBee, RunnableBinding], valid_namespaces=["bee_integrations"])
    for again in (pickle.loads(pickle.dumps(bound)), copy.deepcopy(bound), stored):
        assert again.kwargs == bound.kwargs
        assert essence(again.invoke("1 + 1?")) == expected
    structured = chat.with_structured_output(Verdict)
    assert pickle.loads(pickle.dumps(structured)).invoke(FILM) == structured.invoke(FILM)


def test_profile(chat: ChatBee) -> None:
    profile = chat.profile or {}
    assert profile["max_input_tokens"] == 1024
    assert profile["tool_calling"]
    assert profile["structured_output"]
    assert not profile["image_inputs"]
    assert not profile["reasoning_output"]
    assert (ChatBee(model=chat.model).profile or {})["max_input_tokens"] == 8192
    assert (ChatBee(model=chat.model, reasoning_span="<think>").profile or {})["reasoning_output"]
    assert ChatBee(model="nowhere.gguf").profile is None
    own = {"max_input_tokens": 7}
    assert ChatBee(model=chat.model, profile=own).profile == own


# ---- agents ----------------------------------------------------------------------------------------------------------


@wrap_model_call
def calls_once(request: Any, handler: Any) -> Any:
    """A call is demanded until there is a result, and none is allowed then: what a larger model knows by itself."""
    answered = isinstance(request.messages[-1], ToolMessage)
    return handler(request.override(tool_choice="none" if answered else "get_weather"))


def test_agent(chat: ChatBee) -> None:
    agent = create_agent(chat, [get_weather, add], system_prompt="Be brief.", middleware=[calls_once])
    asked, call, result, answer = agent.invoke({"messages": [HumanMessage(WEATHER)]})["messages"]
    assert call.tool_calls[0]["name"] == "get_weather"
    assert result.content == get_weather.invoke(call.tool_calls[0]["args"])
    assert result.status == "success"
    assert answer.text
    assert not answer.tool_calls
    parts = [part for part, _ in agent.stream({"messages": [asked]}, stream_mode="messages")]
    calls = [piece for part in parts for piece in getattr(part, "tool_call_chunks", [])]
    assert json.loads("".join(piece["args"] or "" for piece in calls)) == call.tool_calls[0]["args"]


def test_agent_with_structured_answer(chat: ChatBee) -> None:
    model = chat.model_copy(update={"close_constraint": True})
    for asked in (Verdict, ProviderStrategy(Verdict), ToolStrategy(Verdict)):
        agent = create_agent(model, [], response_format=asked)
        answer = agent.invoke({"messages": [HumanMessage(FILM)]})
        assert isinstance(answer["structured_response"], Verdict)
        later = asyncio.run(agent.ainvoke({"messages": [HumanMessage(FILM)]}))
        assert later["structured_response"] == answer["structured_response"]


def test_agent_with_tools_and_structured_answer(chat: ChatBee) -> None:
    @wrap_model_call
    def demands(request: Any, handler: Any) -> Any:
        answered = isinstance(request.messages[-1], ToolMessage)
        # With a format of the answer, agents hand on settings, and not the choice.
        return handler(request.override(model_settings={"tool_choice": "none" if answered else "any"}))

    model = chat.model_copy(update={"close_constraint": True})
    with_tools = create_agent(model, [get_weather], response_format=Verdict, middleware=[demands])
    messages = with_tools.invoke({"messages": [HumanMessage(WEATHER)]})
    assert isinstance(messages["structured_response"], Verdict)
    assert any(isinstance(message, ToolMessage) for message in messages["messages"])


def test_graph_with_a_tool_node(chat: ChatBee) -> None:
    def ask(state: MessagesState) -> dict[str, Any]:
        answered = isinstance(state["messages"][-1], ToolMessage)
        model = chat.bind_tools([get_weather], tool_choice="none" if answered else "any")
        return {"messages": [model.invoke(state["messages"])]}

    graph = StateGraph(MessagesState)
    graph.add_node("model", ask)
    graph.add_node("tools", ToolNode([get_weather]))
    graph.add_edge(START, "model")
    graph.add_conditional_edges("model", tools_condition)
    graph.add_edge("tools", "model")
    messages = graph.compile().invoke({"messages": [HumanMessage(WEATHER)]})["messages"]
    assert [type(message) for message in messages] == [HumanMessage, AIMessage, ToolMessage, AIMessage]
    assert messages[2].content.startswith("Sunny in ")
