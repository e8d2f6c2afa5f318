"""The LlamaIndex LLM on the default model."""

from __future__ import annotations

import asyncio
import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llama_index.core.base.llms.types import ThinkingBlock, ToolCallBlock
from llama_index.core.callbacks import CallbackManager, TokenCountingHandler
from llama_index.core.chat_engine import SimpleChatEngine
from llama_index.core.llms import LLM, ChatMessage, ImageBlock, MessageRole, TextBlock
from llama_index.core.llms.llm import default_completion_to_prompt
from llama_index.core.prompts import PromptTemplate
from pydantic import ValidationError

from bee_integrations.engine import Engine
from bee_integrations.errors import (
    ContextLengthError,
    ModelFileError,
    ParameterError,
    TemplateError,
    UnsupportedContentError,
)
from bee_integrations.llama_index import Bee
from bee_integrations.llama_index_messages import template_messages

QUESTION = "Name three colours."
PROMPTS = ["The capital of France is", "Once upon a time", "1, 2, 3, 4,", "Water is made of"]


@pytest.fixture(scope="module")
def llm(model_path: Path) -> Bee:
    return Bee(model=model_path, n_ctx=1024, threads=1, max_tokens=32)


def user(text: str) -> ChatMessage:
    return ChatMessage(role=MessageRole.USER, content=text)


async def collected(stream: Any) -> list[Any]:
    return [part async for part in await stream]


# ---- arguments and metadata -----------------------------------------------------------------------------------------


def test_is_an_llm_that_loads_nothing_when_made() -> None:
    llm = Bee()
    assert isinstance(llm, LLM)
    assert llm.class_name() == llm.to_payload()["class_name"] == "Bee"
    assert (llm.temperature, llm.model) == (0.0, "smollm2-135m-instruct")
    assert Bee(model_path="a.gguf", context_window=128, max_new_tokens=3).to_payload()["n_ctx"] == 128


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [({"temprature": 1.0}, "did you mean 'temperature'"), ({"top_p": 2.0}, "top_p"), ({"max_tokens": 0}, "max_tokens")],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValidationError, match=expected):
        Bee(**arguments)
    with pytest.raises(ParameterError, match=expected):
        Bee().complete("Hello", **arguments)


def test_missing_model_file() -> None:
    with pytest.raises(ModelFileError, match=r"nowhere\.gguf"):
        Bee(model="/nowhere.gguf").complete("Hello")


def test_metadata(llm: Bee, monkeypatch: pytest.MonkeyPatch) -> None:
    metadata = llm.metadata
    assert (metadata.context_window, metadata.num_output) == (1024, 32)
    assert metadata.model_name == llm.engine.model_name
    assert metadata.is_chat_model
    assert metadata.is_function_calling_model
    small = Bee(model=llm.model, n_ctx=256, threads=1).metadata
    assert (small.context_window, small.num_output) == (256, 128)
    monkeypatch.setattr(Engine, "chat_template", None)
    assert not llm.metadata.is_chat_model
    assert not llm.metadata.is_function_calling_model


def test_storing(model_path: Path) -> None:
    original = Bee(
        model=model_path, n_ctx=1024, threads=1, drafter=None, temperature=0.5, stop=["x"], system_prompt="Be brief."
    )
    assert original.to_dict()["class_name"] == "Bee"
    for again in (Bee.from_dict(original.to_dict()), Bee.from_json(original.to_json())):
        assert again.to_dict() == original.to_dict()
        assert again.stop == ["x"]
    assert pickle.loads(pickle.dumps(original)).to_dict() == original.to_dict()


def test_copies_of_a_used_object_work(llm: Bee) -> None:
    expected = llm.complete(QUESTION).text
    again = pickle.loads(pickle.dumps(llm))
    assert again.complete(QUESTION).text == expected
    assert again.messages_to_prompt([user(QUESTION)]) == llm.messages_to_prompt([user(QUESTION)])


# ---- messages and prompts -------------------------------------------------------------------------------------------


def test_messages_for_the_template() -> None:
    call = ToolCallBlock(tool_call_id="c1", tool_name="add", tool_kwargs='{"a": 1}')
    messages = [
        ChatMessage(role="system", content="s"),
        ChatMessage(role="user", blocks=[TextBlock(text="u"), TextBlock(text="v")]),
        ChatMessage(role="assistant", blocks=[ThinkingBlock(content="hm"), call]),
        ChatMessage(role="tool", content="2", additional_kwargs={"tool_call_id": "c1", "name": "add"}),
        ChatMessage(role="chatbot", content="c"),
    ]
    assert template_messages(messages) == [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "u\nv"},
        {
            "role": "assistant",
            "content": "",
            "reasoning_content": "hm",
            "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": {"a": 1}}, "id": "c1"}],
        },
        {"role": "tool", "content": "2", "name": "add", "tool_call_id": "c1"},
        {"role": "assistant", "content": "c"},
    ]


def test_images_are_refused(llm: Bee) -> None:
    image = ImageBlock(image=b"\x89PNG\r\n\x1a\n")
    with pytest.raises(UnsupportedContentError, match=r"'user'.*'image'.*text"):
        llm.chat([ChatMessage(role="user", blocks=[TextBlock(text="What is this?"), image])])


def test_prompts_go_through_the_template(llm: Bee) -> None:
    text = llm.messages_to_prompt([user("Hi")])
    assert text == llm.completion_to_prompt("Hi")
    assert "<|im_start|>user\nHi<|im_end|>" in text
    assert text.endswith("<|im_start|>assistant\n")


def test_complete_is_chat_unless_formatted(llm: Bee) -> None:
    chatted = llm.chat([user(QUESTION)]).message.content
    assert llm.complete(QUESTION).text == chatted
    assert llm.complete(llm.messages_to_prompt([user(QUESTION)]), formatted=True).text == chatted
    assert llm.complete(QUESTION, formatted=True).text != chatted


def test_own_prompt_functions(llm: Bee, model_path: Path) -> None:
    own = Bee(
        model=model_path,
        n_ctx=1024,
        threads=1,
        max_tokens=12,
        messages_to_prompt=lambda messages: " ".join(str(message.content) for message in messages),
        completion_to_prompt=lambda prompt: f"Q: {prompt} A:",
    )
    expected = llm.complete("one two", formatted=True, max_tokens=12).text
    assert own.chat([user("one"), user("two")]).message.content == expected
    assert own.complete("Why?").text == llm.complete("Q: Why? A:", formatted=True, max_tokens=12).text


def test_own_template(llm: Bee, model_path: Path) -> None:
    template = "{{ start }}{{ messages[-1].content }}"
    own = Bee(
        model=model_path,
        n_ctx=1024,
        threads=1,
        max_tokens=12,
        chat_template=template,
        chat_template_kwargs={"start": "So: "},
    )
    assert own.messages_to_prompt([user("Hi")]) == "So: Hi"
    assert own.chat([user("Hi")]).message.content == llm.complete("So: Hi", formatted=True, max_tokens=12).text


def test_model_without_template(llm: Bee, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = llm.complete(QUESTION, formatted=True).text
    monkeypatch.setattr(Engine, "chat_template", None)
    with pytest.raises(TemplateError, match="chat_template="):
        llm.chat([user(QUESTION)])
    assert llm.complete(QUESTION).text == plain
    assert default_completion_to_prompt(QUESTION) == llm.completion_to_prompt(QUESTION)


# ---- answers --------------------------------------------------------------------------------------------------------


@settings(max_examples=4, deadline=None, derandomize=True)
@given(prompt=st.sampled_from(PROMPTS), temperature=st.sampled_from([0.0, 0.7, 1.5]), seed=st.integers(0, 2**31))
def test_every_form_gives_the_same_text(llm: Bee, prompt: str, temperature: float, seed: int) -> None:
    arguments = {"temperature": temperature, "seed": seed, "max_tokens": 16}
    expected = llm.complete(prompt, **arguments).text
    messages = [user(prompt)]
    assert llm.chat(messages, **arguments).message.content == expected
    assert llm.complete(prompt, speculation="off", **arguments).text == expected

    async def asynchronous() -> list[str]:
        return [
            (await llm.acomplete(prompt, **arguments)).text,
            str((await llm.achat(messages, **arguments)).message.content),
            "".join(part.delta for part in await collected(llm.astream_complete(prompt, **arguments))),
            "".join(part.delta for part in await collected(llm.astream_chat(messages, **arguments))),
        ]

    assert asyncio.run(asynchronous()) == [expected] * 4
    parts = list(llm.stream_complete(prompt, **arguments))
    assert "".join(part.delta or "" for part in parts) == parts[-1].text == expected
    chat_parts = list(llm.stream_chat(messages, **arguments))
    assert "".join(part.delta or "" for part in chat_parts) == chat_parts[-1].message.content == expected


def test_stream_grows_and_ends_with_the_statistics(llm: Bee) -> None:
    parts = list(llm.stream_complete(QUESTION))
    assert len(parts) > 2
    so_far = ""
    for part in parts:
        so_far += part.delta or ""
        assert part.text == so_far
    assert all(part.raw is None for part in parts[:-1])
    assert parts[-1].raw["usage"]["completion_tokens"] > 0


def test_raw_and_token_counts(llm: Bee) -> None:
    response = llm.chat([user(QUESTION)])
    assert response.message.role == MessageRole.ASSISTANT
    usage = response.raw["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert response.additional_kwargs["completion_tokens"] == usage["completion_tokens"]
    assert response.raw["finish_reason"] in ("stop", "length")
    assert response.raw["speculation"]["mode"] == "dflash+copy"
    assert response.raw["speculation"]["tokens_per_cycle"] >= 1


def test_next_turn_reuses_the_conversation(llm: Bee) -> None:
    messages = [user("My name is Ada and I keep bees in the garden.")]
    first = llm.chat(messages)
    second = llm.chat([*messages, first.message, user("What is my name?")])
    assert second.raw["usage"]["cached_tokens"] >= first.raw["usage"]["prompt_tokens"]


def test_stop_and_length(llm: Bee) -> None:
    whole = llm.complete(QUESTION).text
    stop = whole[5:8]
    response = llm.complete(QUESTION, stop=[stop])
    assert response.text == whole[: whole.index(stop)]
    assert response.raw["stop_sequence"] == stop
    assert llm.complete(QUESTION, max_tokens=2).raw["finish_reason"] == "length"


def test_too_long_prompt_leaves_the_engine_working(llm: Bee) -> None:
    expected = llm.complete(QUESTION).text
    with pytest.raises(ContextLengthError):
        llm.complete("word " * 3000)
    assert llm.complete(QUESTION).text == expected


def test_leaving_a_stream_early(llm: Bee) -> None:
    expected = llm.complete(QUESTION).text
    stream = llm.stream_chat([user("Write a very long story.")], max_tokens=900)
    assert next(stream).delta
    stream.close()

    async def first() -> str | None:
        parts = await llm.astream_chat([user("Write a very long story.")], max_tokens=900)
        async for part in parts:
            await parts.aclose()
            return part.delta
        return None

    assert asyncio.run(first())
    assert llm.complete(QUESTION).text == expected


def test_timeout(llm: Bee) -> None:
    with pytest.raises(TimeoutError):
        llm.complete("Write a very long story.", max_tokens=900, timeout=0.001)
    with pytest.raises(TimeoutError):
        asyncio.run(llm.acomplete("Write a very long story.", max_tokens=900, timeout=0.001))


# ---- the rest of LlamaIndex -----------------------------------------------------------------------------------------


def test_predict_and_stream(llm: Bee) -> None:
    prompt = PromptTemplate("Name three {things}.")
    expected = llm.predict(prompt, things="colours")
    assert expected == llm.complete(QUESTION).text.strip() or expected == llm.complete(QUESTION).text
    assert "".join(llm.stream(prompt, things="colours")) == expected
    assert asyncio.run(llm.apredict(prompt, things="colours")) == expected


def test_system_prompt(llm: Bee, model_path: Path) -> None:
    polite = Bee(model=model_path, n_ctx=1024, threads=1, max_tokens=32, system_prompt="Answer in French.")
    expected = llm.chat([ChatMessage(role="system", content="Answer in French."), user(QUESTION)]).message.content
    assert polite.predict(PromptTemplate(QUESTION)) == expected


def test_callbacks_count_tokens(model_path: Path) -> None:
    counter = TokenCountingHandler(tokenizer=str.split)
    llm = Bee(model=model_path, n_ctx=1024, threads=1, max_tokens=8, callback_manager=CallbackManager([counter]))
    usage = llm.chat([user(QUESTION)]).raw["usage"]
    assert counter.prompt_llm_token_count == usage["prompt_tokens"]
    assert counter.completion_llm_token_count == usage["completion_tokens"]
    list(llm.stream_complete(QUESTION))
    assert counter.completion_llm_token_count == 2 * usage["completion_tokens"]


def test_chat_engine(llm: Bee) -> None:
    engine = SimpleChatEngine.from_defaults(llm=llm)
    assert str(engine.chat("Hello, I am Ada.")) == llm.complete("Hello, I am Ada.").text
    assert "".join(engine.stream_chat("What did I say?").response_gen)
