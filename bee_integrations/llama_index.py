"""A LlamaIndex LLM that runs a GGUF file in this process.

from bee_integrations.llama_index import Bee

for part in Bee(max_tokens=64).stream_complete("Why is the sky blue?"):
    print(part.delta, end="", flush=True)
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import aclosing, closing
from typing import TYPE_CHECKING, Any

from llama_index.core.base.llms.generic_utils import messages_to_prompt as generic_messages_to_prompt
from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    CompletionResponse,
    CompletionResponseAsyncGen,
    CompletionResponseGen,
    LLMMetadata,
    MessageRole,
)
from llama_index.core.constants import DEFAULT_NUM_OUTPUTS
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.llm import ToolSelection, default_completion_to_prompt
from llama_index.core.program.function_program import get_function_tool
from llama_index.core.prompts import PromptTemplate
from llama_index.core.types import Model, PydanticProgramMode
from pydantic import PrivateAttr, model_validator

from .chat.held_engines import HeldEngines
from .chat.messages import chat_message
from .chat.parameters import BeeParameters
from .chat.prompt import chat_prompt, has_template, tool_format
from .chat.reply import Piece, Reply
from .chat.request import ChatRequest
from .chat.tool_use import ToolUse
from .constraints.compiler import JsonSchema
from .engine.engine import Engine
from .errors import ParameterError
from .llama_index_messages import (
    chat_response,
    closed_schema,
    completion_response,
    parsed_object,
    partial_object,
    template_messages,
    tool_selections,
    tool_specification,
    tool_use,
    with_schema,
)

if TYPE_CHECKING:
    from llama_index.core.tools.types import BaseTool

__all__ = ["Bee"]

# Arguments that LlamaIndex's programs pass along with those of the model, and that say nothing where an answer is an
# object by its grammar.
_TOOL_ARGUMENTS = ("tools", "tool_choice", "tool_required", "parallel_tool_calls", "allow_parallel_tool_calls")


class Bee(FunctionCallingLLM, BeeParameters):
    """A local model for LlamaIndex, with DFlash speculative decoding.

        from llama_index.core.llms import ChatMessage

        from bee_integrations.llama_index import Bee

        llm = Bee(max_tokens=64)
        print(llm.chat([ChatMessage("What is a leap year? Answer in one sentence.")]))

    Without `model` the default model and its drafter are used. The arguments are those of `BeeParameters`, of
    LlamaIndex's `LLM`, and `tool_choice`; those of `BeeParameters` can be given again per call, as in
    `llm.complete("Hello", temperature=0.7, seed=1)`. The model is loaded on first use, and objects that ask for the
    same model share it.

    `chat_with_tools`, `predict_and_call` and agents give the model tools: calls come as `ToolCallBlock`s, thinking as
    a `ThinkingBlock`. While a call is streamed, its arguments are the JSON text so far; in the last response they are
    a dictionary. `structured_predict` and `as_structured_llm` constrain the answer by the JSON schema of a class.

    `complete` sends its prompt as one user message where the model has a chat template, and as it stands with
    `formatted=True` or without a template. Responses carry in `raw` the finish reason, the seed, token
    counts, speed and how speculation did; while streaming, the last one does. `logprobs` holds for each new token
    the one that was taken and then the most likely others.

    Raises a `BeeError`: `ContextLengthError` for a prompt that does not fit, `TemplateError` for a chat with
    a model that has no chat template (pass `chat_template`), `UnsupportedContentError` for images and sound,
    `ParameterError` for bad values and tools, `ConstraintError` for schemas that no grammar can be made of.
    """

    tool_choice: str = "auto"
    """What calls with tools do that do not say it: "auto", "any" (an answer is a call), "none", or a tool's name."""

    _held: HeldEngines = PrivateAttr(default_factory=HeldEngines)

    @model_validator(mode="after")
    def _use_chat_template(self) -> Bee:
        # LlamaIndex's defaults are for models that read plain text. What the user passed stays.
        if self.messages_to_prompt is generic_messages_to_prompt or isinstance(
            self.messages_to_prompt, _TemplatePrompt
        ):
            self.messages_to_prompt = _MessagesToPrompt(self.for_call(None, {}), self._held)
        if self.completion_to_prompt is default_completion_to_prompt or isinstance(
            self.completion_to_prompt, _TemplatePrompt
        ):
            self.completion_to_prompt = _CompletionToPrompt(self.for_call(None, {}), self._held)
        return self

    @classmethod
    def class_name(cls) -> str:
        """The name under which LlamaIndex stores objects of this class."""
        return "Bee"

    @property
    def engine(self) -> Engine:
        """The engine that runs this object's model; it is loaded on first use."""
        return self._held.open(self)

    @property
    def metadata(self) -> LLMMetadata:
        """What LlamaIndex needs to know to fit prompts into the context. Loads the model."""
        engine = self.engine
        # Prompts are cut to leave this much room for the answer, so it must not take all of a small context.
        reserved = self.max_tokens or min(DEFAULT_NUM_OUTPUTS, engine.n_ctx // 2)
        return LLMMetadata(
            context_window=engine.n_ctx,
            num_output=reserved,
            is_chat_model=has_template(engine, self),
            is_function_calling_model=has_template(engine, self) and self._messages_by_template,
            model_name=engine.model_name,
        )

    def to_payload(self) -> dict[str, Any]:
        """This object for observers of events; unlike `metadata` it does not load the model."""
        return {"class_name": self.class_name(), "model_name": self.model, **self.stored_parameters()}

    # ---- chat ----------------------------------------------------------------------------------------------

    @llm_chat_callback()
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Answer a conversation. Besides parameters, `kwargs` may hold `tools` (LlamaIndex's or in OpenAI's form),
        `tool_choice` and `parallel_tool_calls`."""
        request = self._chat_request(messages, kwargs)
        return chat_response(request.engine, request.reply())

    @llm_chat_callback()
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        """Answer a conversation as it comes: each response has all so far, and in `delta` the text that is new."""
        request = self._chat_request(messages, kwargs)

        def responses() -> ChatResponseGen:
            with closing(_growing(request)) as parts:
                for reply, piece in parts:
                    yield chat_response(request.engine, reply, piece)

        return responses()

    @llm_chat_callback()
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """As `chat`, for an event loop."""
        request = await self._achat_request(messages, kwargs)
        return chat_response(request.engine, await request.areply())

    @llm_chat_callback()
    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseAsyncGen:
        """As `stream_chat`, for an event loop."""
        request = await self._achat_request(messages, kwargs)

        async def responses() -> ChatResponseAsyncGen:
            async with aclosing(_agrowing(request)) as parts:
                async for reply, piece in parts:
                    yield chat_response(request.engine, reply, piece)

        return responses()

    # ---- complete ------------------------------------------------------------------------------------------

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """Answer a prompt; `formatted` says that it is already in the model's own format."""
        request = self._text_request(prompt, formatted, kwargs)
        return completion_response(request.engine, request.reply())

    @llm_completion_callback()
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:
        """Answer a prompt as the text comes: each response has the text so far, and its `delta`."""
        request = self._text_request(prompt, formatted, kwargs)

        def responses() -> CompletionResponseGen:
            with closing(_growing(request)) as parts:
                for reply, piece in parts:
                    yield completion_response(request.engine, reply, piece)

        return responses()

    @llm_completion_callback()
    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """As `complete`, for an event loop."""
        request = await self._atext_request(prompt, formatted, kwargs)
        return completion_response(request.engine, await request.areply())

    @llm_completion_callback()
    async def astream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseAsyncGen:
        """As `stream_complete`, for an event loop."""
        request = await self._atext_request(prompt, formatted, kwargs)

        async def responses() -> CompletionResponseAsyncGen:
            async with aclosing(_agrowing(request)) as parts:
                async for reply, piece in parts:
                    yield completion_response(request.engine, reply, piece)

        return responses()

    # ---- tools ---------------------------------------------------------------------------------------------

    def _prepare_chat_with_tools(
        self,
        tools: Sequence[BaseTool],
        user_msg: str | ChatMessage | None = None,
        chat_history: list[ChatMessage] | None = None,
        verbose: bool = False,
        allow_parallel_tool_calls: bool = False,
        tool_required: bool = False,
        tool_choice: str | dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        if isinstance(user_msg, str):
            user_msg = ChatMessage(role=MessageRole.USER, content=user_msg)
        return {
            "messages": [*(chat_history or ()), *([user_msg] if user_msg else ())],
            "tools": [tool_specification(tool) for tool in tools],
            "tool_choice": tool_choice or ("any" if tool_required and tools else None),
            "parallel_tool_calls": allow_parallel_tool_calls,
            **kwargs,
        }

    def get_tool_calls_from_response(
        self, response: ChatResponse, error_on_no_tool_call: bool = True, **kwargs: Any
    ) -> list[ToolSelection]:
        """The calls of an answer. Raises ValueError where there are none and `error_on_no_tool_call` is set."""
        selections = tool_selections(response)
        if not selections and error_on_no_tool_call:
            ended_by = (response.raw or {}).get("finish_reason")
            raise ValueError(
                f"the model called no tool; it said {response.message.content!r}, and ended by {ended_by!r}. "
                "tool_required=True, or tool_choice, makes it call one where max_tokens leaves room for it"
            )
        return selections

    def _tool_use(self, arguments: dict[str, Any]) -> tuple[ToolUse, dict[str, Any]]:
        """The tools of a call, and what else its arguments say."""
        others = dict(arguments)
        tools = others.pop("tools", None) or ()
        choice = others.pop("tool_choice", None)
        parallel = others.pop("parallel_tool_calls", True)
        return tool_use(tools, choice or (self.tool_choice if tools else None), parallel=parallel), others

    # ---- objects -------------------------------------------------------------------------------------------

    def structured_predict(
        self, output_cls: type[Model], prompt: PromptTemplate, llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Model:  # fmt: skip
        """An object of a pydantic class, whose JSON schema constrains the answer.

        Raises ConstraintError where the answer is cut off before it is complete, or no grammar can be made of the
        schema; and pydantic's ValidationError where a check of the class refuses what its schema allows.
        """
        constrained = self._constrained(output_cls, llm_kwargs)
        if not self._answers_objects:
            answer: Model = super().structured_predict(output_cls, prompt, constrained, **prompt_args)
            return answer
        messages = self._messages_for_object(output_cls, prompt, prompt_args)
        return parsed_object(output_cls, self.chat(messages, **constrained))

    async def astructured_predict(
        self, output_cls: type[Model], prompt: PromptTemplate, llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Model:  # fmt: skip
        """As `structured_predict`, for an event loop."""
        await self._held.aopen(self)  # what follows asks the model, and must not block the loop while that loads
        constrained = self._constrained(output_cls, llm_kwargs)
        if not self._answers_objects:
            answer: Model = await super().astructured_predict(output_cls, prompt, constrained, **prompt_args)
            return answer
        messages = self._messages_for_object(output_cls, prompt, prompt_args)
        return parsed_object(output_cls, await self.achat(messages, **constrained))

    def _structured_stream_call(
        self, output_cls: type[Model], prompt: PromptTemplate, llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Generator[Any, None, None]:  # fmt: skip
        constrained = self._constrained(output_cls, llm_kwargs)
        if not self._answers_objects and not self._calls_for_objects:
            yield from super()._structured_stream_call(output_cls, prompt, constrained, **prompt_args)
            return
        if self._calls_for_objects:
            responses = self.stream_chat_with_tools(
                **self._call_for_object(output_cls, prompt, constrained, prompt_args)
            )
        else:
            responses = self.stream_chat(self._messages_for_object(output_cls, prompt, prompt_args), **constrained)
        with closing(responses):
            for response in responses:
                known = partial_object(output_cls, response)
                if known is not None:
                    yield known

    async def _structured_astream_call(
        self, output_cls: type[Model], prompt: PromptTemplate, llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> AsyncGenerator[Any, None]:  # fmt: skip
        await self._held.aopen(self)
        constrained = self._constrained(output_cls, llm_kwargs)
        if not self._answers_objects and not self._calls_for_objects:
            return await super()._structured_astream_call(output_cls, prompt, constrained, **prompt_args)
        if self._calls_for_objects:
            asked = self._call_for_object(output_cls, prompt, constrained, prompt_args)
            responses = await self.astream_chat_with_tools(**asked)
        else:
            messages = self._messages_for_object(output_cls, prompt, prompt_args)
            responses = await self.astream_chat(messages, **constrained)

        async def objects() -> AsyncGenerator[Any, None]:
            async with aclosing(responses):
                async for response in responses:
                    known = partial_object(output_cls, response)
                    if known is not None:
                        yield known

        return objects()

    def _constrained(self, output_cls: type[Model], llm_kwargs: dict[str, Any] | None) -> dict[str, Any]:
        """The arguments of a call whose answer is an object of the class."""
        given = dict(llm_kwargs or {})  # programs take things out of it
        if self.pydantic_program_mode not in (PydanticProgramMode.DEFAULT, PydanticProgramMode.LLM):
            return given  # the program makes the class a tool
        others = {name: value for name, value in given.items() if name not in _TOOL_ARGUMENTS}
        return others | {"constraint": JsonSchema(closed_schema(output_cls)), "response_format": None}

    @property
    def _answers_objects(self) -> bool:
        """Otherwise one of LlamaIndex's programs asks for them in its way."""
        return self.pydantic_program_mode == PydanticProgramMode.DEFAULT and self.metadata.is_chat_model

    @property
    def _calls_for_objects(self) -> bool:
        """The class is a tool that must be called. LlamaIndex's program demands the call only of answers that are not
        streamed, and makes an empty object of one without."""
        return self.pydantic_program_mode == PydanticProgramMode.FUNCTION and self.metadata.is_function_calling_model

    def _call_for_object(
        self, output_cls: type[Model], prompt: PromptTemplate, given: dict[str, Any], prompt_args: dict[str, Any]
    ) -> dict[str, Any]:
        """The arguments of a streamed call of the tool that is the class."""
        tool = get_function_tool(output_cls)
        others = {name: value for name, value in given.items() if name not in _TOOL_ARGUMENTS}
        messages = self._extend_messages(prompt.format_messages(llm=self, **prompt_args))
        return {"tools": [tool], "chat_history": messages, "tool_choice": tool.metadata.name, **others}

    def _messages_for_object(
        self, output_cls: type[Model], prompt: PromptTemplate, prompt_args: dict[str, Any]
    ) -> list[ChatMessage]:
        messages = self._extend_messages(prompt.format_messages(llm=self, **prompt_args))
        return with_schema(messages, output_cls)

    # ---- from LlamaIndex to the engine ---------------------------------------------------------------------

    @property
    def _messages_by_template(self) -> bool:
        return self.messages_to_prompt is None or isinstance(self.messages_to_prompt, _TemplatePrompt)

    def _chat_request(self, messages: Sequence[ChatMessage], arguments: dict[str, Any]) -> ChatRequest:
        use, overrides = self._tool_use(arguments)
        parameters = self.for_call(None, overrides)
        return self._chat_request_for(self._held.open(parameters), parameters, messages, use)

    async def _achat_request(self, messages: Sequence[ChatMessage], arguments: dict[str, Any]) -> ChatRequest:
        use, overrides = self._tool_use(arguments)
        parameters = self.for_call(None, overrides)
        engine = await self._held.aopen(parameters)
        # Compiling a grammar takes a while.
        return await asyncio.to_thread(self._chat_request_for, engine, parameters, messages, use)

    def _chat_request_for(
        self, engine: Engine, parameters: BeeParameters, messages: Sequence[ChatMessage], use: ToolUse
    ) -> ChatRequest:
        if self._messages_by_template:
            return ChatRequest.of_chat(engine, parameters, template_messages(messages), use)
        if use.tools:
            raise ParameterError("messages_to_prompt cannot show tools; leave it out, so that the chat template does")
        assert self.messages_to_prompt is not None
        return _plain_request(engine, parameters, self.messages_to_prompt(messages))

    def _text_request(self, prompt: str, formatted: bool, overrides: dict[str, Any]) -> ChatRequest:
        parameters = self.for_call(None, overrides)
        return self._text_request_for(self._held.open(parameters), parameters, prompt, formatted)

    async def _atext_request(self, prompt: str, formatted: bool, overrides: dict[str, Any]) -> ChatRequest:
        parameters = self.for_call(None, overrides)
        return self._text_request_for(await self._held.aopen(parameters), parameters, prompt, formatted)

    def _text_request_for(self, engine: Engine, parameters: BeeParameters, prompt: str, formatted: bool) -> ChatRequest:
        own = None if isinstance(self.completion_to_prompt, _TemplatePrompt) else self.completion_to_prompt
        if formatted or (own is None and not has_template(engine, parameters)):
            return _plain_request(engine, parameters, prompt)
        if own is not None:
            return _plain_request(engine, parameters, own(prompt))
        return ChatRequest.of_chat(engine, parameters, [chat_message("user", prompt)])


class _TemplatePrompt:
    """The default of an LLM's prompt functions: its model's chat template. Unlike a method it can be pickled."""

    def __init__(self, parameters: BeeParameters, held: HeldEngines) -> None:
        self._parameters = parameters
        self._held = held

    def _prompt(self, messages: list[dict[str, Any]]) -> str:
        engine = self._held.open(self._parameters)
        style = tool_format(engine, self._parameters)
        return chat_prompt(engine, self._parameters, messages, ToolUse(), style).text


class _MessagesToPrompt(_TemplatePrompt):
    def __call__(self, messages: Sequence[ChatMessage]) -> str:
        return self._prompt(template_messages(messages))


class _CompletionToPrompt(_TemplatePrompt):
    def __call__(self, prompt: str) -> str:
        known = has_template(self._held.open(self._parameters), self._parameters)
        return self._prompt([chat_message("user", prompt)]) if known else prompt


def _plain_request(engine: Engine, parameters: BeeParameters, prompt: str) -> ChatRequest:
    """A request whose answer is text as it stands."""
    return ChatRequest(engine, prompt, parameters.generation_for(engine), parameters.timeout)


# ---- answers as they come ----------------------------------------------------------------------------------


def _growing(request: ChatRequest) -> Generator[tuple[Reply, Piece], None, None]:
    """The answer so far, and what is new in it."""
    reply = Reply()
    with closing(request.pieces()) as pieces:
        for piece in pieces:
            reply.add(piece)
            if _brings_something(piece):
                yield reply, piece


async def _agrowing(request: ChatRequest) -> AsyncGenerator[tuple[Reply, Piece], None]:
    reply = Reply()
    async with aclosing(request.apieces()) as pieces:
        async for piece in pieces:
            reply.add(piece)
            if _brings_something(piece):
                yield reply, piece


def _brings_something(piece: Piece) -> bool:
    return bool(piece.events) or bool(piece.step.logprobs) or piece.step.stats is not None
