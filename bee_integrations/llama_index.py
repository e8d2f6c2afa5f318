"""A LlamaIndex LLM that runs a GGUF file in this process.

from bee_integrations.llama_index import Bee

for part in Bee(max_tokens=64).stream_complete("Why is the sky blue?"):
    print(part.delta, end="", flush=True)
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import aclosing, closing
from typing import Any

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
from llama_index.core.llms.custom import CustomLLM
from llama_index.core.llms.llm import default_completion_to_prompt
from pydantic import PrivateAttr, model_validator

from .engine import Engine, Step
from .llm_parameters import BeeParameters
from .llm_request import HeldEngines, Request, chat_text, has_template, response_metadata, token_usage
from .messages import chat_message, tool_call, unsupported_content

__all__ = ["Bee"]

# LlamaIndex's roles that have another name in chat templates.
_ROLES = {MessageRole.FUNCTION: "tool", MessageRole.CHATBOT: "assistant", MessageRole.MODEL: "assistant"}


class Bee(CustomLLM, BeeParameters):
    """A local model for LlamaIndex, with DFlash speculative decoding.

        from llama_index.core.llms import ChatMessage

        from bee_integrations.llama_index import Bee

        llm = Bee(max_tokens=64)
        print(llm.chat([ChatMessage("What is a leap year? Answer in one sentence.")]))

    Without `model` the default model and its drafter are used. The arguments are those of `BeeParameters` and
    of LlamaIndex's `LLM`; the former can be given again per call, as in `llm.complete("Hello",
    temperature=0.7, seed=1)`. The model is loaded on first use, and objects that ask for the same model share
    it.

    `complete` sends its prompt as one user message where the model has a chat template, and as it stands with
    `formatted=True` or without a template. Responses carry in `raw` the finish reason, the seed, token
    counts, speed and how speculation did; while streaming, the last one does.

    Raises a `BeeError`: `ContextLengthError` for a prompt that does not fit, `TemplateError` for a chat with
    a model that has no chat template (pass `chat_template`), `UnsupportedContentError` for images and sound,
    `ParameterError` for bad values.
    """

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
            is_function_calling_model=False,
            model_name=engine.model_name,
        )

    def to_payload(self) -> dict[str, Any]:
        """This object for observers of events; unlike `metadata` it does not load the model."""
        return {"class_name": self.class_name(), "model_name": self.model, **self.parameters()}

    # ---- chat ----------------------------------------------------------------------------------------------

    @llm_chat_callback()
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Answer a conversation."""
        return _chat_response(self._complete(self._chat_request(messages, kwargs)))

    @llm_chat_callback()
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        """Answer a conversation as the text comes: each response has the text so far, and its `delta`."""
        request = self._chat_request(messages, kwargs)

        def responses() -> ChatResponseGen:
            with closing(_stream(request)) as parts:
                for part in parts:
                    yield _chat_response(part)

        return responses()

    @llm_chat_callback()
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """As `chat`, for an event loop."""
        return _chat_response(await self._acomplete(await self._achat_request(messages, kwargs)))

    @llm_chat_callback()
    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseAsyncGen:
        """As `stream_chat`, for an event loop."""
        request = await self._achat_request(messages, kwargs)

        async def responses() -> ChatResponseAsyncGen:
            async with aclosing(_astream(request)) as parts:
                async for part in parts:
                    yield _chat_response(part)

        return responses()

    # ---- complete ------------------------------------------------------------------------------------------

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """Answer a prompt; `formatted` says that it is already in the model's own format."""
        return self._complete(self._text_request(prompt, formatted, kwargs))

    @llm_completion_callback()
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:
        """Answer a prompt as the text comes: each response has the text so far, and its `delta`."""
        return _stream(self._text_request(prompt, formatted, kwargs))

    @llm_completion_callback()
    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """As `complete`, for an event loop."""
        return await self._acomplete(await self._atext_request(prompt, formatted, kwargs))

    @llm_completion_callback()
    async def astream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseAsyncGen:
        """As `stream_complete`, for an event loop."""
        return _astream(await self._atext_request(prompt, formatted, kwargs))

    # ---- from LlamaIndex to the engine ---------------------------------------------------------------------

    def _chat_request(self, messages: Sequence[ChatMessage], overrides: dict[str, Any]) -> Request:
        parameters = self.for_call(None, overrides)
        return self._chat_request_for(self._held.open(parameters), parameters, messages)

    async def _achat_request(self, messages: Sequence[ChatMessage], overrides: dict[str, Any]) -> Request:
        parameters = self.for_call(None, overrides)
        return self._chat_request_for(await self._held.aopen(parameters), parameters, messages)

    def _chat_request_for(self, engine: Engine, parameters: BeeParameters, messages: Sequence[ChatMessage]) -> Request:
        if self.messages_to_prompt is None or isinstance(self.messages_to_prompt, _TemplatePrompt):
            text = chat_text(engine, parameters, template_messages(messages))
        else:
            text = self.messages_to_prompt(messages)
        return Request.of(engine, parameters, text)

    def _text_request(self, prompt: str, formatted: bool, overrides: dict[str, Any]) -> Request:
        parameters = self.for_call(None, overrides)
        return self._text_request_for(self._held.open(parameters), parameters, prompt, formatted)

    async def _atext_request(self, prompt: str, formatted: bool, overrides: dict[str, Any]) -> Request:
        parameters = self.for_call(None, overrides)
        return self._text_request_for(await self._held.aopen(parameters), parameters, prompt, formatted)

    def _text_request_for(self, engine: Engine, parameters: BeeParameters, prompt: str, formatted: bool) -> Request:
        if formatted:
            return Request.of(engine, parameters, prompt)
        if self.completion_to_prompt is None or isinstance(self.completion_to_prompt, _TemplatePrompt):
            return Request.of(engine, parameters, _completion_text(engine, parameters, prompt))
        return Request.of(engine, parameters, self.completion_to_prompt(prompt))

    @staticmethod
    def _complete(request: Request) -> CompletionResponse:
        answer = request.run()
        return _completion_response(request.engine, answer.text, answer.last, None)

    @staticmethod
    async def _acomplete(request: Request) -> CompletionResponse:
        answer = await request.arun()
        return _completion_response(request.engine, answer.text, answer.last, None)


class _TemplatePrompt:
    """The default of an LLM's prompt functions: its model's chat template. Unlike a method it can be pickled."""

    def __init__(self, parameters: BeeParameters, held: HeldEngines) -> None:
        self._parameters = parameters
        self._held = held


class _MessagesToPrompt(_TemplatePrompt):
    def __call__(self, messages: Sequence[ChatMessage]) -> str:
        return chat_text(self._held.open(self._parameters), self._parameters, template_messages(messages))


class _CompletionToPrompt(_TemplatePrompt):
    def __call__(self, prompt: str) -> str:
        return _completion_text(self._held.open(self._parameters), self._parameters, prompt)


def _completion_text(engine: Engine, parameters: BeeParameters, prompt: str) -> str:
    if has_template(engine, parameters):
        return chat_text(engine, parameters, [chat_message("user", prompt)])
    return prompt


def template_messages(messages: Sequence[ChatMessage]) -> list[dict[str, Any]]:
    """LlamaIndex's messages as chat templates take them. `UnsupportedContentError` for images and the like."""
    return [_template_message(message) for message in messages]


def _template_message(message: ChatMessage) -> dict[str, Any]:
    role = _ROLES.get(message.role, message.role.value)
    reasoning: list[str] = []
    calls: list[dict[str, Any]] = []
    for block in message.blocks:
        # By name, because the first versions of 0.14 lack the classes.
        if block.block_type == "thinking":
            reasoning.append(block.content or "")
        elif block.block_type == "tool_call":
            calls.append(tool_call(block.tool_name, block.tool_kwargs, block.tool_call_id))
        elif block.block_type not in ("text", "cache"):
            raise unsupported_content(block.block_type, role)
    return chat_message(
        role,
        message.content or "",
        reasoning="".join(reasoning),
        name=message.additional_kwargs.get("name"),
        tool_calls=calls,
        tool_call_id=message.additional_kwargs.get("tool_call_id"),
    )


# ---- to LlamaIndex -----------------------------------------------------------------------------------------


def _stream(request: Request) -> CompletionResponseGen:
    text = ""
    with closing(request.steps()) as steps:
        for step in steps:
            text += step.text
            yield _completion_response(request.engine, text, step, step.text)


async def _astream(request: Request) -> CompletionResponseAsyncGen:
    text = ""
    async with aclosing(request.asteps()) as steps:
        async for step in steps:
            text += step.text
            yield _completion_response(request.engine, text, step, step.text)


def _completion_response(engine: Engine, text: str, step: Step, delta: str | None) -> CompletionResponse:
    if step.stats is None:
        return CompletionResponse(text=text, delta=delta)
    tokens = token_usage(step.stats)
    usage = {
        "prompt_tokens": tokens["input"],
        "completion_tokens": tokens["output"],
        "total_tokens": tokens["total"],
    }
    raw = response_metadata(engine, step) | {"usage": usage | {"cached_tokens": tokens["reused"]}}
    return CompletionResponse(text=text, delta=delta, raw=raw, additional_kwargs=usage)


def _chat_response(response: CompletionResponse) -> ChatResponse:
    return ChatResponse(
        message=ChatMessage(role=MessageRole.ASSISTANT, content=response.text),
        delta=response.delta,
        raw=response.raw,
        additional_kwargs=response.additional_kwargs,
    )
