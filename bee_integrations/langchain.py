"""LangChain models that run a GGUF file in this process: `ChatBee` for chats, `BeeLLM` for plain text.

from bee_integrations.langchain import ChatBee

for chunk in ChatBee(max_tokens=64).stream("Why is the sky blue?"):
    print(chunk.text, end="", flush=True)
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import aclosing, closing
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LangSmithParams
from langchain_core.language_models.llms import BaseLLM
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_core.messages.ai import UsageMetadata
from langchain_core.outputs import (
    ChatGeneration,
    ChatGenerationChunk,
    ChatResult,
    Generation,
    GenerationChunk,
    LLMResult,
)
from pydantic import ConfigDict, Field
from pydantic.json_schema import SkipJsonSchema

from .engine import Engine, Statistics, Step
from .errors import UnsupportedContentError
from .llm_parameters import BeeParameters
from .llm_request import (
    Answer,
    HeldEngines,
    Request,
    arun_all,
    chat_text,
    response_metadata,
    run_all,
    token_usage,
)
from .messages import chat_message, text_and_reasoning, tool_call

__all__ = ["BeeLLM", "ChatBee"]


class _BeeModel(BeeParameters):
    """What both classes have beyond their parameters: engines, tokens, and how LangChain stores them."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    # A field and not a private attribute, because LangChain makes a new object of an object's fields for each call
    # with `configurable_fields`, and that must not load the model anew.
    held_engines: SkipJsonSchema[HeldEngines] = Field(default_factory=HeldEngines, exclude=True, repr=False)
    """The engines in use; leave it alone."""

    @classmethod
    def is_lc_serializable(cls) -> bool:
        """`langchain_core.load` can store these models and make them anew; they hold no secrets."""
        return True

    @property
    def _identifying_params(self) -> Mapping[str, Any]:
        return self.parameters()

    @property
    def engine(self) -> Engine:
        """The engine that runs this object's model; it is loaded on first use."""
        return self.held_engines.open(self)

    def get_token_ids(self, text: str) -> list[int]:
        """Tokens of `text` in the model's own vocabulary, without any that would begin or end it."""
        custom: Any = getattr(self, "custom_get_token_ids", None)
        if custom is not None:
            return [int(token) for token in custom(text)]
        return self.engine.tokenizer.encode(text, add_special=False)


class ChatBee(_BeeModel, BaseChatModel):
    """A chat model that runs a GGUF file in this process, with DFlash speculative decoding.

        from langchain_core.output_parsers import StrOutputParser
        from langchain_core.prompts import ChatPromptTemplate

        from bee_integrations.langchain import ChatBee

        prompt = ChatPromptTemplate.from_messages([("system", "Be brief."), ("human", "{question}")])
        chain = prompt | ChatBee(max_tokens=64) | StrOutputParser()
        for text in chain.stream({"question": "What is a leap year?"}):
            print(text, end="", flush=True)

    Without `model` the default model and its drafter are used. The arguments are those of `BeeParameters`;
    each can be given again per call, as in `llm.invoke("Hello", temperature=0.7, seed=1)` or
    `llm.bind(max_tokens=9)`. The model is loaded on first use, and objects that ask for the same model share it.

    Answers carry `usage_metadata` (`cache_read` counts the prompt's tokens that an earlier turn had processed)
    and `response_metadata` (finish reason, seed, speed, and how speculation did).

    Raises a `BeeError`: `ContextLengthError` for a prompt that does not fit, `TemplateError` for a model without
    a chat template (pass `chat_template`), `UnsupportedContentError` for images and sound, `ParameterError`
    for bad values. Raises `TimeoutError` after `timeout` seconds.
    """

    streaming: bool = False
    """Make `invoke` run through the streaming code, so that callbacks see the text as it comes."""

    @property
    def _llm_type(self) -> str:
        return "bee-chat"

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        return super()._get_ls_params(stop=stop or self.stop, **kwargs)

    def get_num_tokens_from_messages(self, messages: list[BaseMessage], tools: Sequence[Any] | None = None) -> int:
        """Tokens that these messages take as a prompt, with everything that the chat template adds.

        Tools are not counted: a prompt of this class holds none. Raises as `invoke` does.
        """
        engine = self.engine
        return len(engine.encode_prompt(chat_text(engine, self, template_messages(messages))))

    # ---- the four forms of a generation --------------------------------------------------------------------

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        request = self._request(messages, stop, kwargs)
        return _chat_result(request.engine, request.run())

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        request = await self._arequest(messages, stop, kwargs)
        return _chat_result(request.engine, await request.arun())

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        request = self._request(messages, stop, kwargs)
        with closing(request.steps()) as steps:
            for step in steps:
                chunk = _chat_chunk(request.engine, step)
                if run_manager:
                    run_manager.on_llm_new_token(step.text, chunk=chunk)
                yield chunk

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        request = await self._arequest(messages, stop, kwargs)
        async with aclosing(request.asteps()) as steps:
            async for step in steps:
                chunk = _chat_chunk(request.engine, step)
                if run_manager:
                    await run_manager.on_llm_new_token(step.text, chunk=chunk)
                yield chunk

    def _request(self, messages: list[BaseMessage], stop: list[str] | None, overrides: dict[str, Any]) -> Request:
        parameters = self._for_call(stop, overrides)
        return _chat_request(self.held_engines.open(parameters), parameters, messages)

    async def _arequest(
        self, messages: list[BaseMessage], stop: list[str] | None, overrides: dict[str, Any]
    ) -> Request:
        parameters = self._for_call(stop, overrides)
        return _chat_request(await self.held_engines.aopen(parameters), parameters, messages)

    def _for_call(self, stop: list[str] | None, overrides: dict[str, Any]) -> BeeParameters:
        overrides.pop("stream", None)  # LangChain's own switch between `_generate` and `_stream`
        return self.for_call(stop, overrides)


class BeeLLM(_BeeModel, BaseLLM):
    """A text completion model that runs a GGUF file in this process: it continues the prompt as it stands.

        from bee_integrations.langchain import BeeLLM

        print(BeeLLM(max_tokens=32).invoke("The three primary colours are"))

    No chat template is applied; use `ChatBee` for conversations. Arguments, overrides per call and errors are
    as for `ChatBee`. Several prompts in one `generate` or `batch` run side by side.
    """

    @property
    def _llm_type(self) -> str:
        return "bee"

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        return super()._get_ls_params(stop=stop or self.stop, **kwargs)

    def _generate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        parameters = self.for_call(stop, kwargs)
        engine = self.held_engines.open(parameters)
        return _llm_result(engine, run_all([Request.of(engine, parameters, prompt) for prompt in prompts]))

    async def _agenerate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        parameters = self.for_call(stop, kwargs)
        engine = await self.held_engines.aopen(parameters)
        answers = await arun_all([Request.of(engine, parameters, prompt) for prompt in prompts])
        return _llm_result(engine, answers)

    def _stream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[GenerationChunk]:
        parameters = self.for_call(stop, kwargs)
        request = Request.of(self.held_engines.open(parameters), parameters, prompt)
        with closing(request.steps()) as steps:
            for step in steps:
                chunk = GenerationChunk(text=step.text, generation_info=_generation_info(request.engine, step))
                if run_manager:
                    run_manager.on_llm_new_token(step.text, chunk=chunk)
                yield chunk

    async def _astream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[GenerationChunk]:
        parameters = self.for_call(stop, kwargs)
        request = Request.of(await self.held_engines.aopen(parameters), parameters, prompt)
        async with aclosing(request.asteps()) as steps:
            async for step in steps:
                chunk = GenerationChunk(text=step.text, generation_info=_generation_info(request.engine, step))
                if run_manager:
                    await run_manager.on_llm_new_token(step.text, chunk=chunk)
                yield chunk


# ---- from LangChain ----------------------------------------------------------------------------------------


def template_messages(messages: Sequence[BaseMessage]) -> list[dict[str, Any]]:
    """LangChain's messages as chat templates take them.

    Raises `UnsupportedContentError` for content other than text, and for messages that are none, as
    `RemoveMessage`.
    """
    return [_template_message(message) for message in messages]


def _template_message(message: BaseMessage) -> dict[str, Any]:
    role = _role(message)
    text, reasoning = text_and_reasoning(message.content, role)
    if isinstance(message, AIMessage):
        reasoning = reasoning or str(message.additional_kwargs.get("reasoning_content") or "")
        calls = [tool_call(call["name"], call["args"], call["id"]) for call in message.tool_calls]
        return chat_message(role, text, reasoning=reasoning, name=message.name, tool_calls=calls)
    call_id = message.tool_call_id if isinstance(message, ToolMessage) else None
    return chat_message(role, text, name=message.name, tool_call_id=call_id)


def _role(message: BaseMessage) -> str:
    if isinstance(message, ChatMessage):
        return message.role
    if isinstance(message, HumanMessage):
        return "user"
    if isinstance(message, AIMessage):
        return "assistant"
    if isinstance(message, SystemMessage):
        return "system"
    if isinstance(message, ToolMessage | FunctionMessage):
        return "tool"
    raise UnsupportedContentError(
        f"a {type(message).__name__} cannot be given to a model; expected human, AI, system, tool or chat messages"
    )


def _chat_request(engine: Engine, parameters: BeeParameters, messages: list[BaseMessage]) -> Request:
    return Request.of(engine, parameters, chat_text(engine, parameters, template_messages(messages)))


# ---- to LangChain ------------------------------------------------------------------------------------------


def _usage(stats: Statistics) -> UsageMetadata:
    tokens = token_usage(stats)
    return UsageMetadata(
        input_tokens=tokens["input"],
        output_tokens=tokens["output"],
        total_tokens=tokens["total"],
        input_token_details={"cache_read": tokens["reused"]},
    )


def _chat_result(engine: Engine, answer: Answer) -> ChatResult:
    message = AIMessage(
        content=answer.text,
        response_metadata=response_metadata(engine, answer.last),
        usage_metadata=_usage(answer.stats),
    )
    info = {"finish_reason": answer.last.finish_reason}
    return ChatResult(generations=[ChatGeneration(message=message, generation_info=info)])


def _chat_chunk(engine: Engine, step: Step) -> ChatGenerationChunk:
    if step.stats is None:
        return ChatGenerationChunk(message=AIMessageChunk(content=step.text))
    last = AIMessageChunk(
        content=step.text,
        response_metadata=response_metadata(engine, step),
        usage_metadata=_usage(step.stats),
        chunk_position="last",
    )
    return ChatGenerationChunk(message=last, generation_info={"finish_reason": step.finish_reason})


def _generation_info(engine: Engine, step: Step) -> dict[str, Any] | None:
    if step.stats is None:
        return None
    return response_metadata(engine, step) | {"usage_metadata": dict(_usage(step.stats))}


def _llm_result(engine: Engine, answers: list[Answer]) -> LLMResult:
    usages = [token_usage(answer.stats) for answer in answers]
    totals = {
        "prompt_tokens": sum(usage["input"] for usage in usages),
        "completion_tokens": sum(usage["output"] for usage in usages),
        "total_tokens": sum(usage["total"] for usage in usages),
    }
    return LLMResult(
        generations=[[Generation(text=a.text, generation_info=_generation_info(engine, a.last))] for a in answers],
        llm_output={"token_usage": totals, "model_name": engine.model_name},
    )
