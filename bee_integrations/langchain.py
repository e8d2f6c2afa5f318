"""LangChain models that run a GGUF file in this process: `ChatBee` for chats, `BeeLLM` for plain text.

from bee_integrations.langchain import ChatBee

for chunk in ChatBee(max_tokens=64).stream("Why is the sky blue?"):
    print(chunk.text, end="", flush=True)
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import aclosing, closing
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Literal

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LangSmithParams, LanguageModelInput
from langchain_core.language_models.llms import BaseLLM
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult, Generation, GenerationChunk, LLMResult
from langchain_core.runnables import Runnable, RunnableMap, RunnablePassthrough
from pydantic import ConfigDict, Field
from pydantic.json_schema import SkipJsonSchema

from . import langchain_structured_output as structured
from .chat import reasoning
from .chat.held_engines import HeldEngines
from .chat.metadata import response_metadata, token_usage
from .chat.model_header import header
from .chat.parameters import BeeParameters, stored_constraint
from .chat.prompt import chat_prompt, tool_format
from .chat.request import ChatRequest
from .chat.text_request import Answer, Request, arun_all, run_all
from .chat.tool_use import ToolUse
from .engine.engine import Engine, Step, context_length
from .engine.interruption import each_interruptible, interruptible
from .errors import ParameterError, TemplateError, UnsupportedContentError
from .generation import TokenLogprob
from .langchain_messages import (
    AnswerChunks,
    chat_result,
    logprobs_metadata,
    openai_tools,
    overflow_in_langchain_terms,
    plain_text,
    template_messages,
    tool_use,
    usage_metadata,
)
from .models.sampling_defaults import FIELDS as SAMPLING_FIELDS

if TYPE_CHECKING:
    from langchain_core.language_models import ModelProfile

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
        return self.stored_parameters()

    @property
    def lc_attributes(self) -> dict[str, Any]:
        """Arguments that LangChain stores in another form than the object has them; part of its cache's keys, too."""
        # LangChain stores defaults that are not 0 as if they were given, and a 0 that was given not at all.
        left = self.left_to_the_model
        own = {
            name: None if name in left else getattr(self, name)
            for name in sorted(SAMPLING_FIELDS)
            if bool(getattr(self, name)) == (name in left)
        }
        return own if self.constraint is None else {**own, "constraint": stored_constraint(self.constraint)}

    def bind(self, **kwargs: Any) -> Any:
        """As all runnables have it; what the answer must look like is bound in a form that can be stored."""
        forms = {name: kwargs[name] for name in ("constraint", "response_format") if kwargs.get(name) is not None}
        if forms:
            checked = self.for_call(None, forms).stored_parameters()
            kwargs |= {name: checked[name] for name in forms}
        return super().bind(**kwargs)  # type: ignore[misc]

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

    Tools are bound with `bind_tools` or given per call (`tools`, `tool_choice`, `parallel_tool_calls`); answers of a
    schema come from `with_structured_output`. A model's thinking is in `additional_kwargs["reasoning_content"]`, and a
    block of `content_blocks`. A call that is malformed or cut off is in `invalid_tool_calls`.

    Answers carry `usage_metadata` (`cache_read` counts the prompt's tokens that an earlier turn had processed,
    `reasoning` those of thinking) and `response_metadata` (finish reason, seed, speed, log-probabilities where asked
    for, and how speculation did).

    Raises a `BeeError`: `ContextLengthError` for a prompt that does not fit, `TemplateError` for a model without
    a chat template (pass `chat_template`), `UnsupportedContentError` for images and sound, `ParameterError`
    for bad values and tools, `ConstraintError` for schemas that cannot be enforced. Raises `TimeoutError` after
    `timeout` seconds.
    """

    streaming: bool = False
    """Make `invoke` run through the streaming code, so that callbacks see the text as it comes."""

    @property
    def _llm_type(self) -> str:
        return "bee-chat"

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        return super()._get_ls_params(stop=stop or self.stop, **kwargs)

    def _resolve_model_profile(self) -> ModelProfile | None:
        """What a model of this kind can do. Reads the header of the model's file where it is here; downloads none."""
        n_ctx_train, template = header(self.model)
        span = self.reasoning_span
        thinks = span is not None and (
            span != "auto" or reasoning.recognise(self.chat_template or template) is not None
        )
        return {
            "max_input_tokens": context_length(self.n_ctx, n_ctx_train),
            "text_inputs": True,
            "image_inputs": False,
            "image_url_inputs": False,
            "pdf_inputs": False,
            "audio_inputs": False,
            "video_inputs": False,
            "image_tool_message": False,
            "pdf_tool_message": False,
            "text_outputs": True,
            "image_outputs": False,
            "audio_outputs": False,
            "video_outputs": False,
            "reasoning_output": thinks,
            "tool_calling": True,
            "tool_choice": True,
            "structured_output": True,
        }

    def get_num_tokens_from_messages(self, messages: list[BaseMessage], tools: Sequence[Any] | None = None) -> int:
        """Tokens that these messages and tools take as a prompt, with everything that the chat template adds.

        Lists that are no conversation, which the template rejects, count as the sum of their messages, each with what
        the template adds to one.
        """
        if not messages and not tools:
            return 0
        use = tool_use(tools)
        whole = self._prompt_tokens(messages, use)
        if whole is not None:
            return whole
        added = self._prompt_tokens([HumanMessage("")], ToolUse()) or 0
        described = [str(tool.as_openai()) for tool in use.tools]
        return sum(map(self.get_num_tokens, [*map(plain_text, messages), *described])) + added * len(messages)

    def _prompt_tokens(self, messages: list[BaseMessage], use: ToolUse) -> int | None:
        """Tokens of a conversation as a prompt; None for one that the template rejects."""
        engine = self.engine
        try:
            prompt = chat_prompt(engine, self, template_messages(messages), use, tool_format(engine, self))
        except (TemplateError, ParameterError, UnsupportedContentError):
            return None
        return len(prompt.tokens(engine))

    # ---- tools and structured output -------------------------------------------------------------------------

    def bind_tools(
        self,
        tools: Sequence[Any],
        *,
        tool_choice: str | bool | dict[str, Any] | None = None,
        parallel_tool_calls: bool | None = None,
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """This model with tools that it may call.

        tools: functions, LangChain tools, Pydantic classes, TypedDicts or dictionaries. tool_choice: "auto" (None)
        leaves the call to the model; "any" ("required", True) demands one, and a name, or OpenAI's dictionary with it,
        a call of that tool; "none" forbids calls. parallel_tool_calls: False allows one call in an answer; others take
        as many as the model's format knows. strict: False or True is told to the model; arguments fit their schema
        in any case. kwargs: parameters for every call.

        Raises `ParameterError` for tools that are none, or that do not fit the choice. A schema that cannot be
        enforced raises `ConstraintError` when the model is called.
        """
        described = openai_tools(tools, strict)
        # Wrong names are told here already; that two tools share one is told when the model is called.
        by_name = {str(tool["function"].get("name")): tool for tool in described}
        tool_use(list(by_name.values()), tool_choice, parallel_tool_calls)
        given = {"tool_choice": tool_choice, "parallel_tool_calls": parallel_tool_calls}
        bound = {name: value for name, value in given.items() if value is not None}
        with_tools: Runnable[LanguageModelInput, AIMessage] = self.bind(tools=described, **bound, **kwargs)
        return with_tools

    def with_structured_output(
        self,
        schema: Any = None,
        *,
        method: Literal["json_schema", "function_calling", "json_mode"] = "json_schema",
        include_raw: bool = False,
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, Any]:
        """This model with answers that are values of a schema: Pydantic objects for a Pydantic class, otherwise
        dictionaries.

        schema: a Pydantic class, a TypedDict, a JSON schema, or a function as OpenAI describes it. method:
        "json_schema" lets the model write nothing but a value of the schema; "function_calling" has it call a
        function with such arguments; "json_mode" demands a JSON object, of the schema as far as that can be enforced
        (it may be None), and leaves the rest to the prompt. Of the three, "function_calling" alone shows the schema to
        the model. include_raw: the result is a dictionary of "raw" (the message), "parsed" and "parsing_error"
        instead. strict: as in `bind_tools`. kwargs: parameters for every call.

        Raises `ParameterError` and `ConstraintError` for schemas that are none or cannot be enforced. An answer that
        `max_tokens` cuts off raises LangChain's `OutputParserException`, or is completed with
        `close_constraint=True`; a function call that is cut off is None.
        """
        if method not in ("json_schema", "function_calling", "json_mode"):
            raise ParameterError(
                f"method is {method!r}; it must be one of 'json_schema', 'function_calling', 'json_mode'"
            )
        if schema is None and method != "json_mode":
            raise ParameterError(f"the method {method!r} needs a schema")
        options = {"method": method} if strict is None else {"method": method, "strict": strict}
        traced = {"ls_structured_output_format": {"kwargs": options, "schema": structured.traced_schema(schema)}}
        if method == "function_calling":
            tool = structured.tool_of(schema)
            name = tool["function"]["name"]
            parser = structured.call_parser(schema, name)
            llm = self.bind_tools(
                [tool], tool_choice=name, parallel_tool_calls=False, strict=strict, **traced, **kwargs
            )
        else:
            wanted = structured.json_mode_format if method == "json_mode" else structured.response_format
            asked = wanted(schema, strict)
            parser = structured.answer_parser(schema)
            llm = self.bind(response_format=asked, **(traced if schema is not None else {}), **kwargs)
        return _with_raw(llm, parser) if include_raw else llm | parser

    # ---- the four forms of a generation --------------------------------------------------------------------

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        request = self._request(messages, stop, kwargs)
        with overflow_in_langchain_terms(), closing(request.pieces()) as pieces:
            return chat_result(request.engine, list(pieces))

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        request = await self._arequest(messages, stop, kwargs)
        with overflow_in_langchain_terms():
            async with aclosing(request.apieces()) as pieces:
                return chat_result(request.engine, [piece async for piece in pieces])

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        request = self._request(messages, stop, kwargs)
        chunks = AnswerChunks(request.engine)
        with overflow_in_langchain_terms(), closing(request.pieces()) as pieces:
            for piece in pieces:
                for chunk in chunks.of(piece):
                    if run_manager:
                        run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                    yield chunk

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        request = await self._arequest(messages, stop, kwargs)
        chunks = AnswerChunks(request.engine)
        with overflow_in_langchain_terms():
            async with aclosing(request.apieces()) as pieces:
                async for piece in pieces:
                    for chunk in chunks.of(piece):
                        if run_manager:
                            await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                        yield chunk

    def batch(self, inputs: list[LanguageModelInput], *args: Any, **kwargs: Any) -> list[AIMessage]:
        """As all runnables have it; Ctrl-C cancels the answers that are still on their way."""
        answers = super().batch
        return interruptible(lambda: answers(inputs, *args, **kwargs))

    def batch_as_completed(
        self, inputs: Sequence[LanguageModelInput], *args: Any, **kwargs: Any
    ) -> Iterator[tuple[int, Any]]:
        """As all runnables have it; Ctrl-C, and closing it, cancel the answers that are still on their way."""
        return each_interruptible(super().batch_as_completed(inputs, *args, **kwargs))

    def _request(self, messages: list[BaseMessage], stop: list[str] | None, overrides: dict[str, Any]) -> ChatRequest:
        use, parameters = self._for_call(stop, overrides)
        return _chat_request(self.held_engines.open(parameters), parameters, messages, use)

    async def _arequest(
        self, messages: list[BaseMessage], stop: list[str] | None, overrides: dict[str, Any]
    ) -> ChatRequest:
        use, parameters = self._for_call(stop, overrides)
        engine = await self.held_engines.aopen(parameters)
        # Compiling a grammar takes a while.
        return await asyncio.to_thread(_chat_request, engine, parameters, messages, use)

    def _for_call(self, stop: list[str] | None, overrides: dict[str, Any]) -> tuple[ToolUse, BeeParameters]:
        overrides.pop("stream", None)  # LangChain's own switch between `_generate` and `_stream`
        named = [overrides.pop(name, None) for name in ("tools", "tool_choice", "parallel_tool_calls")]
        return tool_use(*named), self.for_call(stop, overrides)


def _chat_request(engine: Engine, parameters: BeeParameters, messages: list[BaseMessage], use: ToolUse) -> ChatRequest:
    return ChatRequest.of_chat(engine, parameters, template_messages(messages), use)


def _with_raw(llm: Runnable[Any, Any], parser: Runnable[Any, Any]) -> Runnable[Any, Any]:
    parsed = RunnablePassthrough.assign(parsed=itemgetter("raw") | parser, parsing_error=lambda _: None)
    failed = RunnablePassthrough.assign(parsed=lambda _: None)
    # The model comes first, so that it gets the arguments of the call.
    return llm | RunnableMap(raw=RunnablePassthrough()) | parsed.with_fallbacks([failed], exception_key="parsing_error")


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
        with overflow_in_langchain_terms():
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
        with overflow_in_langchain_terms():
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
        with overflow_in_langchain_terms(), closing(request.steps()) as steps:
            for step in steps:
                chunk = GenerationChunk(
                    text=step.text, generation_info=_generation_info(request.engine, step, step.logprobs)
                )
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
        with overflow_in_langchain_terms():
            async with aclosing(request.asteps()) as steps:
                async for step in steps:
                    chunk = GenerationChunk(
                        text=step.text, generation_info=_generation_info(request.engine, step, step.logprobs)
                    )
                    if run_manager:
                        await run_manager.on_llm_new_token(step.text, chunk=chunk)
                    yield chunk


def _generation_info(engine: Engine, step: Step, logprobs: Sequence[TokenLogprob]) -> dict[str, Any] | None:
    info = logprobs_metadata(engine, logprobs)
    if step.stats is not None:
        info |= response_metadata(engine, step) | {"usage_metadata": dict(usage_metadata(step.stats))}
    return info or None


def _llm_result(engine: Engine, answers: list[Answer]) -> LLMResult:
    usages = [token_usage(answer.stats) for answer in answers]
    totals = {
        "prompt_tokens": sum(usage["input"] for usage in usages),
        "completion_tokens": sum(usage["output"] for usage in usages),
        "total_tokens": sum(usage["total"] for usage in usages),
    }
    return LLMResult(
        generations=[
            [Generation(text=a.text, generation_info=_generation_info(engine, a.last, a.logprobs))] for a in answers
        ],
        llm_output={"token_usage": totals, "model_name": engine.model_name},
    )
