"""ChatBee and BeeLLM on the default model."""

from __future__ import annotations

import asyncio
import copy
import json
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from langchain.agents import create_agent
from langchain.agents.middleware import SummarizationMiddleware
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler, UsageMetadataCallbackHandler
from langchain_core.exceptions import ContextOverflowError
from langchain_core.load import dumpd, dumps, load, loads
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    ChatMessage,
    HumanMessage,
    RemoveMessage,
    SystemMessage,
    ToolMessage,
    trim_messages,
)
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import (
    ChatPromptTemplate,
    HumanMessagePromptTemplate,
    PromptTemplate,
    SystemMessagePromptTemplate,
)
from langchain_core.runnables import ConfigurableField, RunnableBinding, RunnableSequence
from pydantic import ValidationError

from bee_integrations.constraints import Choice, Grammar, JsonSchema, Regex
from bee_integrations.engine import Engine
from bee_integrations.errors import (
    ContextLengthError,
    ModelFileError,
    ParameterError,
    TemplateError,
    UnsupportedContentError,
)
from bee_integrations.langchain import BeeLLM, ChatBee
from bee_integrations.langchain_messages import template_messages

QUESTION = "Name three colours."
STORABLE = [ChatBee, BeeLLM, RunnableBinding, RunnableSequence, StrOutputParser, ChatPromptTemplate, PromptTemplate,
            SystemMessagePromptTemplate, HumanMessagePromptTemplate]  # fmt: skip
STORED = Path(__file__).resolve().parents[1] / "golden" / "stored"
PROMPTS = ["The capital of France is", "Once upon a time", "1, 2, 3, 4,", "Water is made of"]
EVERY_PROMPT_EVERY_WAY = settings(
    max_examples=5,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.fixture(scope="module")
def chat(model_path: Path) -> ChatBee:
    return ChatBee(model=model_path, n_ctx=1024, threads=1, max_tokens=40)


@pytest.fixture(scope="module")
def llm(model_path: Path) -> BeeLLM:
    return BeeLLM(model=model_path, n_ctx=1024, threads=1, max_tokens=24)


def joined(chunks: list[AIMessageChunk]) -> AIMessageChunk:
    total = chunks[0]
    for chunk in chunks[1:]:
        total = total + chunk
    return total


async def collected(stream: Any) -> list[Any]:
    return [part async for part in stream]


# ---- arguments ---------------------------------------------------------------------------------------------


def test_defaults_are_greedy_and_load_nothing() -> None:
    chat = ChatBee()
    assert (chat.temperature, chat.top_k, chat.top_p, chat.min_p, chat.drafter) == (0.0, 0, 1.0, 0.0, "auto")
    assert chat.model == ChatBee(model=None).model == "smollm2-135m-instruct"


@pytest.mark.parametrize("name", ["model", "model_name", "model_path"])
def test_other_words_for_the_model(name: str) -> None:
    assert ChatBee(**{name: Path("a.gguf")}).model == "a.gguf"


def test_other_words_for_lengths_and_threads() -> None:
    chat = ChatBee(num_predict=7, num_ctx=128, n_threads=2, stop="\n")
    assert (chat.max_tokens, chat.n_ctx, chat.threads, chat.stop) == (7, 128, 2, ["\n"])


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"temprature": 1.0}, "did you mean 'temperature'"),
        ({"max_tokens": 5, "num_predict": 6}, "'max_tokens' is given twice"),
        ({"temperature": -1.0}, "temperature"),
        ({"top_p": 2.0}, "top_p"),
        ({"min_p": -0.5}, "min_p"),
        ({"top_k": -3}, "top_k"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"timeout": 0}, "timeout"),
        ({"n_ctx": -1}, "n_ctx is -1"),
        ({"threads": 65}, "threads is 65"),
        ({"device": "tpu"}, "must be 'auto', 'cpu' or 'cuda'"),
        ({"speculation": "always"}, "speculation"),
    ],
)
@pytest.mark.parametrize("model", [ChatBee, BeeLLM])
def test_bad_arguments_are_named(model: type[Any], arguments: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValidationError, match=expected):
        model(**arguments)
    if "num_predict" not in arguments:
        with pytest.raises(ParameterError, match=expected):
            model().invoke("Hello", **arguments)


def test_tools_belong_to_calls_of_a_chat() -> None:
    for model in (ChatBee, BeeLLM):
        with pytest.raises(ValidationError, match="tools"):
            model(tools=[])
    with pytest.raises(ParameterError, match="tools"):
        BeeLLM().invoke("Hello", tools=[])


def test_missing_model_file() -> None:
    with pytest.raises(ModelFileError, match=r"nowhere\.gguf"):
        ChatBee(model="/nowhere.gguf").invoke("Hello")


def test_importing_the_package_imports_no_framework() -> None:
    code = """
import sys
import bee_integrations.engine
print([name for name in sys.modules if name.split(".")[0] in ("langchain_core", "llama_index")])
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


# ---- storing and copying -----------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::langchain_core._api.beta_decorator.LangChainBetaWarning")
@pytest.mark.parametrize("model", [ChatBee, BeeLLM])
def test_serialisation_round_trip(model: type[Any]) -> None:
    original = model(
        model="x.gguf",
        drafter=None,
        temperature=0.5,
        top_k=3,
        seed=4,
        stop=["a", "b"],
        max_tokens=9,
        timeout=5.0,
        speculation="off",
        chat_template="{{ messages }}",
        chat_template_kwargs={"enable_thinking": False},
    )
    for again in (
        load(dumpd(original), allowed_objects=[model], valid_namespaces=["bee_integrations"]),
        loads(dumps(original), allowed_objects=[model], valid_namespaces=["bee_integrations"]),
        pickle.loads(pickle.dumps(original)),
        copy.deepcopy(original),
        copy.copy(original),
    ):
        assert type(again) is model
        assert again.asdict() == original.asdict()
        assert again == original
    assert original.asdict()["_type"] == original._llm_type


@pytest.mark.filterwarnings("ignore::langchain_core._api.beta_decorator.LangChainBetaWarning")
@pytest.mark.parametrize("model", [ChatBee, BeeLLM])
@pytest.mark.parametrize(
    "constraint",
    [Choice(["apple", "pear"]), Regex("a+"), Grammar('root ::= "a"', "gbnf"), JsonSchema({"type": "integer"})],  # type: ignore[arg-type]
)
def test_constraints_are_stored_and_part_of_the_cache_key(model: type[Any], constraint: Any) -> None:
    original = model(model="x.gguf", constraint=constraint)
    for again in (original, original.bind(max_tokens=3), model(model="x.gguf").bind(constraint=constraint)):
        text = dumps(again)
        assert "not_implemented" not in text
        loaded = loads(text, allowed_objects=[model, RunnableBinding], valid_namespaces=["bee_integrations"])
        assert dumps(loaded) == text
        held = getattr(loaded, "bound", loaded).for_call(None, getattr(loaded, "kwargs", {})).constraint
        assert getattr(held, "options", ()) == tuple(getattr(constraint, "options", ()))
        assert type(held) is type(constraint)
    others = [Choice(("seven", "eight")), Regex("b+"), Grammar("root: /a/"), JsonSchema({"type": "string"}), None]
    keys = [_cache_key(model(model="x.gguf", constraint=other)) for other in [constraint, *others]]
    assert len(set(keys)) == len(keys)
    assert keys[0] == _cache_key(model(model="x.gguf", constraint=copy.deepcopy(constraint)))


def _cache_key(llm: Any) -> str:
    return str(llm._get_llm_string() if isinstance(llm, ChatBee) else sorted(llm.asdict().items()))


@pytest.mark.filterwarnings("ignore::langchain_core._api.beta_decorator.LangChainBetaWarning")
@pytest.mark.parametrize("path", sorted(STORED.glob("chains_*.json")), ids=lambda path: path.stem)
def test_chains_that_earlier_versions_stored_load(path: Path) -> None:
    chains = json.loads(path.read_text(encoding="utf-8"))
    loaded = {
        name: load(chain, allowed_objects=STORABLE, valid_namespaces=["bee_integrations"])
        for name, chain in chains.items()
    }
    chat = loaded["chain"].steps[1]
    assert type(chat) is ChatBee
    assert (chat.model, chat.drafter, chat.temperature, chat.seed, chat.stop) == ("x.gguf", None, 0.5, 4, ["a", "b"])
    assert (chat.max_tokens, chat.timeout) == (9, 5.0)
    assert type(loaded["completion"]) is BeeLLM
    assert (loaded["completion"].top_k, loaded["completion"].logit_bias) == (3, {5: 1.5})
    assert loaded["thinking"].reasoning_span == ("<a>", "</a>")
    bound = loaded["bound"]
    assert bound.bound.for_call(None, bound.kwargs).asked_constraint() is not None
    assert loaded["tools"].kwargs["tools"][0]["function"]["name"] == "add"


def test_copies_of_a_used_model_work(chat: ChatBee) -> None:
    expected = chat.invoke(QUESTION).text
    assert copy.deepcopy(chat).invoke(QUESTION).text == expected
    assert pickle.loads(pickle.dumps(chat)).invoke(QUESTION).text == expected


def test_tracing_parameters() -> None:
    params = ChatBee(model="x.gguf", temperature=0.5, max_tokens=3, stop=["a"])._get_ls_params()
    assert params["ls_provider"] == "bee"
    assert (params["ls_model_name"], params["ls_model_type"]) == ("x.gguf", "chat")
    assert (params["ls_temperature"], params["ls_max_tokens"], params["ls_stop"]) == (0.5, 3, ["a"])
    assert BeeLLM()._get_ls_params(model="y", stop=["b"]) == {
        "ls_provider": "bee",
        "ls_model_name": "y",
        "ls_model_type": "llm",
        "ls_temperature": 0.0,
        "ls_stop": ["b"],
    }


def test_langchain_records_its_versions() -> None:
    assert "langchain-core" in (ChatBee().metadata or {})["lc_versions"]


# ---- messages ----------------------------------------------------------------------------------------------


def test_messages_for_the_template() -> None:
    call = {"name": "add", "args": {"a": 1}, "id": "c1", "type": "tool_call"}
    messages: list[BaseMessage] = [
        SystemMessage("s"),
        HumanMessage(["u", {"type": "text", "text": "v"}], name="Ann"),
        AIMessage([{"type": "reasoning", "reasoning": "hm"}, {"type": "tool_use", "id": "c1"}], tool_calls=[call]),
        ToolMessage("2", tool_call_id="c1", name="add"),
        ChatMessage(role="judge", content="j"),
    ]
    assert template_messages(messages) == [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "uv", "name": "Ann"},
        {
            "role": "assistant",
            "content": "",
            "reasoning_content": "hm",
            "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": {"a": 1}}, "id": "c1"}],
        },
        {"role": "tool", "content": "2", "name": "add", "tool_call_id": "c1"},
        {"role": "judge", "content": "j"},
    ]


@pytest.mark.parametrize(
    "block",
    [
        {"type": "image", "base64": "AAAA", "mime_type": "image/png"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
        {"type": "audio", "base64": "AAAA", "mime_type": "audio/wav"},
        {"type": "file", "base64": "AAAA", "mime_type": "application/pdf"},
        {"type": "tool_use", "id": "x"},
    ],
)
def test_other_content_than_text_is_refused(chat: ChatBee, block: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedContentError, match=f"'user'.*{block['type']!r}.*text"):
        chat.invoke([HumanMessage([{"type": "text", "text": "What is this?"}, block])])


def test_no_messages_and_no_real_message(chat: ChatBee) -> None:
    with pytest.raises(ParameterError, match="at least one"):
        chat.invoke([])
    with pytest.raises(UnsupportedContentError, match="RemoveMessage"):
        chat.invoke([RemoveMessage(id="1")])


def test_text_blocks_read_as_plain_text(chat: ChatBee) -> None:
    blocks = HumanMessage([{"type": "text", "text": "Name three "}, {"type": "text", "text": "colours."}])
    assert chat.invoke([blocks]).text == chat.invoke(QUESTION).text


def test_tool_history_is_accepted(chat: ChatBee) -> None:
    call = {"name": "add", "args": {"a": 1}, "id": "c1", "type": "tool_call"}
    history = [HumanMessage("1 + 1?"), AIMessage("", tool_calls=[call]), ToolMessage("2", tool_call_id="c1")]
    assert chat.invoke(history).text


# ---- templates ---------------------------------------------------------------------------------------------


def test_own_template(chat: ChatBee, llm: BeeLLM) -> None:
    template = "{% for m in messages %}{{ prefix }}{{ m.content }}{% endfor %}"
    answer = chat.invoke(PROMPTS[0], chat_template=template, chat_template_kwargs={"prefix": "Well: "}, max_tokens=12)
    assert answer.text == llm.invoke("Well: " + PROMPTS[0], max_tokens=12)


def test_failing_template(chat: ChatBee) -> None:
    with pytest.raises(TemplateError, match="no such thing"):
        chat.invoke(QUESTION, chat_template="{{ raise_exception('no such thing') }}")
    assert chat.invoke(QUESTION).text


def test_model_without_template(chat: ChatBee, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Engine, "chat_template", None)
    with pytest.raises(TemplateError, match="chat_template="):
        chat.invoke(QUESTION)


# ---- streaming ---------------------------------------------------------------------------------------------


@EVERY_PROMPT_EVERY_WAY
@given(
    prompt=st.sampled_from(PROMPTS),
    temperature=st.sampled_from([0.0, 0.7, 1.5]),
    seed=st.integers(0, 2**31),
    speculation=st.sampled_from(["auto", "off"]),
)
def test_every_form_gives_the_same_text(
    chat: ChatBee, prompt: str, temperature: float, seed: int, speculation: str
) -> None:
    arguments = {"temperature": temperature, "seed": seed, "speculation": speculation, "max_tokens": 20}
    expected = chat.invoke(prompt, **arguments).text
    assert "".join(chunk.text for chunk in chat.stream(prompt, **arguments)) == expected
    assert chat.invoke(prompt, **{**arguments, "speculation": "off"}).text == expected

    async def both() -> tuple[AIMessage, list[AIMessageChunk]]:
        return await chat.ainvoke(prompt, **arguments), await collected(chat.astream(prompt, **arguments))

    answer, chunks = asyncio.run(both())
    assert answer.text == "".join(chunk.text for chunk in chunks) == expected


def test_last_chunk_carries_the_metadata(chat: ChatBee) -> None:
    chunks = list(chat.stream(QUESTION))
    assert len(chunks) > 2
    assert [chunk.chunk_position for chunk in chunks] == [None] * (len(chunks) - 1) + ["last"]
    assert all(chunk.usage_metadata is None and not chunk.response_metadata for chunk in chunks[:-1])
    assert all(chunk.text for chunk in chunks[:-1])
    total = joined(chunks)
    answer = chat.invoke(QUESTION)
    assert total.text == answer.text
    assert total.usage_metadata is not None
    assert total.usage_metadata["output_tokens"] == answer.usage_metadata["output_tokens"]
    assert total.response_metadata.keys() == answer.response_metadata.keys()


def test_metadata(chat: ChatBee) -> None:
    answer = chat.invoke([SystemMessage("Be brief."), HumanMessage("Why do cats purr?")])
    usage, metadata = answer.usage_metadata, answer.response_metadata
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    assert 0 < usage["output_tokens"] <= 40
    assert usage["input_tokens"] == chat.get_num_tokens_from_messages(
        [SystemMessage("Be brief."), HumanMessage("Why do cats purr?")]
    )
    assert metadata["model_provider"] == "bee"
    assert metadata["model_name"] == chat.engine.model_name
    assert metadata["finish_reason"] in ("stop", "length")
    speculation = metadata["speculation"]
    assert speculation["mode"] == "dflash+copy"
    assert speculation["tokens_per_cycle"] == pytest.approx(1 + speculation["accepted_tokens"] / speculation["cycles"])
    assert 0 <= speculation["accepted_tokens"] <= speculation["drafted_tokens"]
    assert 0 <= speculation["accepted_share"] < 1
    assert sum(speculation["logit_paths"].values()) == speculation["cycles"]
    assert metadata["speed"]["decode_tokens_per_s"] > 0


def test_length_is_the_finish_reason_of_a_cut_answer(chat: ChatBee) -> None:
    answer = chat.invoke(QUESTION, max_tokens=3)
    assert answer.response_metadata["finish_reason"] == "length"
    assert answer.usage_metadata["output_tokens"] == 3


def test_streaming_flag_and_events(chat: ChatBee, model_path: Path) -> None:
    streaming = ChatBee(model=model_path, n_ctx=1024, threads=1, max_tokens=40, streaming=True)
    handler = _Tokens()
    answer = streaming.invoke(QUESTION, config={"callbacks": [handler]})
    assert answer.text == "".join(handler.seen) == chat.invoke(QUESTION).text
    assert len(handler.seen) > 2
    assert answer.usage_metadata["input_tokens"] == chat.invoke(QUESTION).usage_metadata["input_tokens"]
    assert "chunk_position" not in answer.model_dump()


class _Tokens(BaseCallbackHandler):
    def __init__(self) -> None:
        self.seen: list[str] = []

    def on_llm_new_token(self, token: Any, **kwargs: Any) -> None:
        self.seen.append(token)


def test_usage_callback(chat: ChatBee) -> None:
    handler = UsageMetadataCallbackHandler()
    answer = chat.invoke(QUESTION, config={"callbacks": [handler]})
    used = handler.usage_metadata[chat.engine.model_name]
    assert used["total_tokens"] == answer.usage_metadata["total_tokens"]


# ---- stop, seeds, batches ----------------------------------------------------------------------------------


@EVERY_PROMPT_EVERY_WAY
@given(data=st.data())
def test_stop_cuts_at_the_first_match(chat: ChatBee, data: st.DataObject) -> None:
    whole = chat.invoke(QUESTION).text
    start = data.draw(st.integers(0, len(whole) - 1))
    stop = whole[start : start + data.draw(st.integers(1, 12))]
    answer = chat.invoke(QUESTION, stop=["never there", stop])
    assert answer.text == whole[: whole.index(stop)]
    assert answer.response_metadata["finish_reason"] == "stop"
    assert answer.response_metadata["stop_sequence"] == stop
    assert "".join(chunk.text for chunk in chat.stream(QUESTION, stop=[stop])) == answer.text


def test_stop_of_the_object_and_of_the_call(chat: ChatBee, model_path: Path) -> None:
    whole = chat.invoke(QUESTION).text
    stopping = ChatBee(model=model_path, n_ctx=1024, threads=1, max_tokens=40, stop=[whole[8]])
    assert stopping.invoke(QUESTION).text == whole[: whole.index(whole[8])]
    assert stopping.invoke(QUESTION, stop=[]).text == whole
    assert stopping.bind(stop=[whole[4]]).invoke(QUESTION).text == whole[: whole.index(whole[4])]


def test_seeds_reproduce(chat: ChatBee) -> None:
    texts = [chat.invoke(QUESTION, temperature=1.5, seed=seed).text for seed in (1, 1, 2, 3)]
    assert texts[0] == texts[1]
    assert len(set(texts)) > 1


def test_drawn_seed_is_reported(chat: ChatBee) -> None:
    answer = chat.invoke(QUESTION, temperature=1.5)
    again = chat.invoke(QUESTION, temperature=1.5, seed=answer.response_metadata["seed"])
    assert again.text == answer.text


def test_batch_equals_one_by_one(chat: ChatBee, llm: BeeLLM) -> None:
    arguments = {"temperature": 0.9, "seed": 5, "max_tokens": 16}
    for model in (chat, llm):
        one_by_one = [model.invoke(prompt, **arguments) for prompt in PROMPTS]
        expected = [getattr(answer, "text", answer) for answer in one_by_one]
        together = model.batch(PROMPTS, **arguments)
        assert [getattr(answer, "text", answer) for answer in together] == expected
        limited = model.batch(PROMPTS, config={"max_concurrency": 2}, **arguments)
        assert [getattr(answer, "text", answer) for answer in limited] == expected
        later = asyncio.run(model.abatch(PROMPTS, **arguments))
        assert [getattr(answer, "text", answer) for answer in later] == expected


def test_failing_batch_leaves_the_engine_working(llm: BeeLLM) -> None:
    prompts = ["word " * 3000, *PROMPTS]
    with pytest.raises(ContextLengthError):
        llm.batch(prompts)
    with pytest.raises(ContextLengthError):
        asyncio.run(llm.abatch(prompts))
    assert llm.invoke(PROMPTS[0])


# ---- conversations and overrides ---------------------------------------------------------------------------


def test_next_turn_reuses_the_conversation(chat: ChatBee) -> None:
    history: list[BaseMessage] = [HumanMessage("My name is Ada and I keep bees in the garden.")]
    first = chat.invoke(history)
    history += [first, HumanMessage("What is my name?")]
    second = chat.invoke(history)
    reused = second.usage_metadata["input_token_details"]["cache_read"]
    assert first.usage_metadata["input_tokens"] <= reused < second.usage_metadata["input_tokens"]


def test_overrides_per_call(chat: ChatBee) -> None:
    assert chat.bind(num_predict=2).invoke(QUESTION).usage_metadata["output_tokens"] == 2
    off = chat.invoke(QUESTION, speculation="off")
    assert off.response_metadata["speculation"]["mode"] == "off"
    assert off.response_metadata["speculation"]["drafted_tokens"] == 0
    undrafted = chat.invoke(QUESTION, drafter=None)
    assert undrafted.text == off.text == chat.invoke(QUESTION).text


def test_configurable_fields(chat: ChatBee) -> None:
    configurable = chat.configurable_fields(max_tokens=ConfigurableField(id="length"))
    short = configurable.with_config(configurable={"length": 2}).invoke(QUESTION)
    assert short.usage_metadata["output_tokens"] == 2
    assert configurable.invoke(QUESTION).text == chat.invoke(QUESTION).text


def test_configured_copies_do_not_load_the_model_again(model_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    open_engine = Engine.__init__

    def counting(self: Engine, *arguments: Any, **options: Any) -> None:
        opened.append(self)
        open_engine(self, *arguments, **options)

    monkeypatch.setattr(Engine, "__init__", counting)
    unused = ChatBee(model=model_path, n_ctx=256, threads=1)
    configurable = unused.configurable_fields(max_tokens=ConfigurableField(id="length"))
    for length in (1, 2):
        answer = configurable.with_config(configurable={"length": length}).invoke(QUESTION)
        assert answer.usage_metadata["output_tokens"] == length
    assert opened == [unused.engine]


def test_model_per_call(chat: ChatBee, model_path: Path, tmp_path: Path) -> None:
    other = tmp_path / "other-name.gguf"
    other.symlink_to(model_path)
    answer = chat.invoke(QUESTION, model=str(other))
    assert answer.response_metadata["model_name"] == "other-name"
    assert answer.text == chat.invoke(QUESTION).text
    assert chat.invoke(QUESTION).response_metadata["model_name"] == chat.engine.model_name


def test_objects_share_an_engine(chat: ChatBee, llm: BeeLLM, model_path: Path) -> None:
    assert chat.engine is llm.engine is ChatBee(model=model_path, n_ctx=1024, threads=1).engine


# ---- cancelling --------------------------------------------------------------------------------------------


def test_closing_a_stream_early(chat: ChatBee) -> None:
    expected = chat.invoke(QUESTION).text
    stream: Iterator[Any] = chat.stream("Write a very long story.", max_tokens=900)
    assert next(stream).text
    stream.close()
    assert chat.invoke(QUESTION).text == expected


def test_cancelling_a_task(chat: ChatBee) -> None:
    expected = chat.invoke(QUESTION).text

    async def cancelled() -> str:
        task = asyncio.create_task(chat.ainvoke("Write a very long story.", max_tokens=900))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return (await chat.ainvoke(QUESTION)).text

    assert asyncio.run(cancelled()) == expected


def test_interrupting_a_batch(llm: BeeLLM) -> None:
    expected = llm.invoke(PROMPTS[0])
    interrupt = threading.Timer(0.3, signal.pthread_kill, (threading.get_ident(), signal.SIGINT))
    interrupt.start()
    with pytest.raises(KeyboardInterrupt):
        llm.generate(PROMPTS, max_tokens=900)
    interrupt.join()
    assert llm.invoke(PROMPTS[0]) == expected


def test_timeout(chat: ChatBee) -> None:
    with pytest.raises(TimeoutError, match=r"0\.001"):
        chat.invoke("Write a very long story.", max_tokens=900, timeout=0.001)
    with pytest.raises(TimeoutError, match=r"0\.001"):
        asyncio.run(chat.ainvoke("Write a very long story.", max_tokens=900, timeout=0.001))
    assert chat.invoke(QUESTION, timeout=600).text == chat.invoke(QUESTION).text


# ---- the rest of LangChain ---------------------------------------------------------------------------------


def test_chain(chat: ChatBee) -> None:
    prompt = ChatPromptTemplate.from_messages([("system", "Be brief."), ("human", "{question}")])
    chain = prompt | chat | StrOutputParser()
    assert "".join(chain.stream({"question": QUESTION})) == chain.invoke({"question": QUESTION})


def test_cache(model_path: Path) -> None:
    cached = ChatBee(model=model_path, n_ctx=1024, threads=1, max_tokens=16, temperature=1.5, cache=InMemoryCache())
    first = cached.invoke(QUESTION)
    assert cached.invoke(QUESTION).response_metadata["seed"] == first.response_metadata["seed"]
    assert cached.invoke(QUESTION, seed=1).response_metadata["seed"] == 1


def test_the_cache_does_not_mix_up_constraints(tiny_path: Path) -> None:
    cache = InMemoryCache()
    for options in (("apple", "pear"), ("seven", "eight")):
        for chat in (
            ChatBee(model=tiny_path, constraint=Choice(options), cache=cache),
            ChatBee(model=tiny_path, cache=cache).bind(constraint=Choice(options)),
            BeeLLM(model=tiny_path, constraint=Choice(options), cache=cache) | (lambda text: AIMessage(text)),
        ):
            assert chat.invoke("Pick one word.").content in options


def test_a_prompt_that_does_not_fit_is_langchains_error_too(tiny_path: Path) -> None:
    chat, llm = ChatBee(model=tiny_path), BeeLLM(model=tiny_path)
    long = "word " * 600

    forms: list[Callable[[Any], Any]] = [
        lambda model: model.invoke(long),
        lambda model: list(model.stream(long)),
        lambda model: model.batch([long, long]),
        lambda model: asyncio.run(model.ainvoke(long)),
        lambda model: asyncio.run(collected(model.astream(long))),
    ]
    for model in (chat, llm):
        for form in forms:
            with pytest.raises(ContextOverflowError, match="the context holds 512") as raised:
                form(model)
            assert isinstance(raised.value, ContextLengthError)


# As Gemma's and Mistral's templates have it: turns alternate and begin with the user's.
STRICT = (
    "{% for m in messages %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('turns') }}{% endif %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
)


@pytest.mark.parametrize("template", [None, STRICT, "{{ raise_exception('never') }}"])
def test_any_list_of_messages_can_be_counted(chat: ChatBee, template: str | None) -> None:
    counting = chat.model_copy(update={"chat_template": template})
    call = {"name": "add", "args": {"a": 1}, "id": "c1", "type": "tool_call"}
    image = HumanMessage([{"type": "image", "base64": "AAAA", "mime_type": "image/png"}])
    lists: list[list[BaseMessage]] = [
        [AIMessage("Hi")],
        [SystemMessage("s"), AIMessage("Hi")],
        [AIMessage("", tool_calls=[call])],
        [ToolMessage("2", tool_call_id="c1")],
        [HumanMessage("a"), HumanMessage("b")],
        [image],
        [RemoveMessage(id="1")],
        [ChatMessage(role="judge", content="j")],
    ]
    assert counting.get_num_tokens_from_messages([]) == 0
    for messages in lists:
        assert counting.get_num_tokens_from_messages(messages) > 0, messages
    with_tools = counting.get_num_tokens_from_messages([HumanMessage("a")], tools=[_add])
    assert with_tools > counting.get_num_tokens_from_messages([HumanMessage("a")]) + 10
    turns = [HumanMessage("Question " * 12), AIMessage("Answer " * 12)] * 6 + [HumanMessage("Last?")]
    for options in (
        {"strategy": "last"},
        {"strategy": "last", "start_on": "human"},
        {"strategy": "first"},
        {"strategy": "last", "include_system": True, "start_on": "human"},
    ):
        kept = trim_messages([SystemMessage("s"), *turns], max_tokens=150, token_counter=counting, **options)
        assert 0 < len(kept) < len(turns)
        if "start_on" in options and template is None:  # a conversation
            assert counting.get_num_tokens_from_messages(kept) <= 150
    assert trim_messages([], max_tokens=10, token_counter=counting) == []
    assert trim_messages([HumanMessage("word " * 500)], max_tokens=9, token_counter=counting, strategy="last") == []


def _add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


def test_summarization_middleware_shortens_what_does_not_fit(model_path: Path) -> None:
    options = {"trigger": ("messages", 6), "keep": ("messages", 2), "trim_tokens_to_summarize": None}
    summarizer = SummarizationMiddleware(ChatBee(model=model_path, n_ctx=1536, max_tokens=8, threads=1), **options)
    agent = create_agent(ChatBee(model=model_path, n_ctx=1024, max_tokens=8, threads=1), [], middleware=[summarizer])
    history: list[BaseMessage] = []
    for n in range(10):
        history += [HumanMessage(f"Tell me about {n}. " + "blah " * 60), AIMessage("It is a number. " * 20)]
    assert agent.invoke({"messages": [*history, HumanMessage("Say hi.")]})["messages"][-1].text


def test_token_counts(chat: ChatBee, llm: BeeLLM) -> None:
    ids = chat.get_token_ids("Bees make honey.")
    assert chat.engine.tokenizer.decode(ids) == "Bees make honey."
    assert chat.get_num_tokens("Bees make honey.") == llm.get_num_tokens("Bees make honey.") == len(ids)
    assert ChatBee(custom_get_token_ids=lambda text: [1, 2]).get_num_tokens("anything") == 2


def test_completion_metadata(llm: BeeLLM) -> None:
    result = llm.generate(PROMPTS[:2])
    assert [generations[0].text for generations in result.generations] == [llm.invoke(p) for p in PROMPTS[:2]]
    info = result.generations[0][0].generation_info
    assert info is not None
    assert info["usage_metadata"]["output_tokens"] <= 24
    assert info["model_provider"] == "bee"
    totals = (result.llm_output or {})["token_usage"]
    assert totals["total_tokens"] == sum(
        (generations[0].generation_info or {})["usage_metadata"]["total_tokens"] for generations in result.generations
    )


def test_completion_streams(llm: BeeLLM) -> None:
    for prompt in PROMPTS:
        expected = llm.invoke(prompt)
        handler = _Tokens()
        assert "".join(llm.stream(prompt, config={"callbacks": [handler]})) == expected
        assert "".join(handler.seen) == expected
        assert "".join(asyncio.run(collected(llm.astream(prompt)))) == expected
        assert asyncio.run(llm.ainvoke(prompt)) == expected


def test_completions_report_log_probabilities(model_path: Path) -> None:
    llm = BeeLLM(max_tokens=4, logprobs=True, top_logprobs=2)
    (whole,) = llm.generate(["The three primary colours are"]).generations[0]
    assert whole.generation_info is not None
    entries = whole.generation_info["logprobs"]["content"]
    assert len(entries) == 4
    assert all(entry["logprob"] <= 0 and len(entry["top_logprobs"]) == 2 for entry in entries)
    streamed = [
        entry
        for chunk in llm._stream("The three primary colours are")
        for entry in (chunk.generation_info or {}).get("logprobs", {}).get("content", [])
    ]
    assert streamed == entries
