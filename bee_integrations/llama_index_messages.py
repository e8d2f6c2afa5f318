"""Messages, tools and answers between LlamaIndex's types and those of `chat.py`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from llama_index.core.base.llms import types
from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    CompletionResponse,
    LogProb,
    MessageRole,
    TextBlock,
)
from llama_index.core.llms.llm import ToolSelection
from llama_index.core.llms.utils import parse_partial_json
from llama_index.core.program.utils import FlexibleModel, create_flexible_model
from llama_index.core.tools.types import BaseTool
from llama_index.core.types import Model
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json

from .chat.messages import chat_message, left_out, tool_call, unsupported_content
from .chat.metadata import response_metadata, token_usage
from .chat.reply import Piece, Reply
from .chat.tool_use import ToolUse
from .constraints.pydantic_schema import class_schema
from .constraints.strict_schema import closed
from .engine.engine import Engine
from .errors import ConstraintError, ParameterError
from .generation import TokenLogprob
from .tools.tool_format import Reasoning, Text, Tool

__all__ = [
    "chat_response",
    "closed_schema",
    "completion_response",
    "parsed_object",
    "partial_object",
    "template_messages",
    "tool_selections",
    "tool_specification",
    "tool_use",
    "with_schema",
]

# LlamaIndex's roles that have another name in chat templates.
_ROLES = {MessageRole.FUNCTION: "tool", MessageRole.CHATBOT: "assistant", MessageRole.MODEL: "assistant"}

# Blocks that the first versions of 0.14 lack. There, calls are in `additional_kwargs` alone, and thinking is nowhere.
_ThinkingBlock = getattr(types, "ThinkingBlock", None)
_ToolCallBlock = getattr(types, "ToolCallBlock", None)


# ---- messages to the model -------------------------------------------------------------------------------------------


def template_messages(messages: Sequence[ChatMessage]) -> list[dict[str, Any]]:
    """LlamaIndex's messages as chat templates take them. `UnsupportedContentError` for images and the like."""
    return [_template_message(message) for message in messages]


def _template_message(message: ChatMessage) -> dict[str, Any]:
    role = _ROLES.get(message.role, message.role.value)
    parts = [_of_block(block, role) for block in message.blocks]
    return chat_message(
        role,
        "\n".join(text for text, _ in parts if text),  # as LlamaIndex joins them itself
        reasoning="".join(thought for _, thought in parts),
        name=message.additional_kwargs.get("name"),
        tool_calls=[tool_call(name, arguments, call_id) for call_id, name, arguments in _calls(message)],
        # Agents put the id into the assistant's message as well that repeats a result.
        tool_call_id=message.additional_kwargs.get("tool_call_id") if role == "tool" else None,
    )


def _of_block(block: Any, role: str) -> tuple[str, str]:
    """(text, reasoning) of one content block. Raises as `template_messages` does."""
    match block.block_type:
        case "text":
            return block.text, ""
        case "thinking":
            return "", block.content or ""
        case "cache" | "tool_call":
            return "", ""
        case "citable":  # sources that an answer may cite, and the part of one that it did
            return "".join(_of_block(inner, role)[0] for inner in block.content), ""
        case "citation":
            return _of_block(block.cited_content, role)
    if role != "assistant":
        raise unsupported_content(block.block_type, role)
    left_out(block.block_type, role)
    return "", ""


def _calls(message: ChatMessage) -> list[tuple[str | None, str, Mapping[str, Any] | str]]:
    """(id, name, arguments) of a message's calls: those of its blocks, or else those of `additional_kwargs`."""
    blocks = [block for block in message.blocks if block.block_type == "tool_call"]
    if blocks:
        return [(block.tool_call_id, block.tool_name, block.tool_kwargs) for block in blocks]
    given = message.additional_kwargs.get("tool_calls") or ()
    return [_openai_call(call.model_dump() if isinstance(call, BaseModel) else call) for call in given]


def _openai_call(call: Any) -> tuple[str | None, str, Mapping[str, Any] | str]:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise ParameterError(
            f"additional_kwargs['tool_calls'] holds {call!r}; expected {{'id': ..., 'type': 'function', 'function': "
            "{'name': ..., 'arguments': ...}}"
        )
    return call.get("id"), function["name"], function.get("arguments") or {}


# ---- tools -----------------------------------------------------------------------------------------------------------


def tool_specification(tool: BaseTool) -> dict[str, Any]:
    """A tool in OpenAI's form, under its own name: a local model's grammar takes any."""
    about = tool.metadata
    return Tool(about.name or "", about.description, about.get_parameters_dict()).as_openai()


def tool_use(
    tools: Iterable[Mapping[str, Any] | BaseTool], choice: str | Mapping[str, Any] | None, *, parallel: bool
) -> ToolUse:
    """The tools of a call, given as LlamaIndex's or in OpenAI's form; so is the choice. Raises ParameterError."""
    return ToolUse(tuple(_tool(tool) for tool in tools), _choice(choice), parallel)


def _tool(given: Mapping[str, Any] | BaseTool) -> Tool:
    specification = tool_specification(given) if isinstance(given, BaseTool) else given
    function = specification.get("function") if isinstance(specification, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise ParameterError(
            f"a tool is {given!r}; expected a BaseTool, or {{'type': 'function', 'function': {{'name': ..., "
            "'description': ..., 'parameters': {...}}}"
        )
    parameters = function.get("parameters") or {"type": "object", "properties": {}}
    strict = function.get("strict") is True
    return Tool(function["name"], function.get("description") or "", parameters, strict=strict)


def _choice(choice: str | Mapping[str, Any] | None) -> str:
    if choice is None:
        return "auto"
    function = choice.get("function") if isinstance(choice, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else choice
    if not isinstance(name, str):
        raise ParameterError(
            f"tool_choice is {choice!r}; expected 'auto', 'any', 'required', 'none', a tool's name, or "
            "{'type': 'function', 'function': {'name': ...}}"
        )
    return name


def tool_selections(response: ChatResponse) -> list[ToolSelection]:
    """The calls of an answer; while it is streamed, with as many of the arguments as are there."""
    return [
        ToolSelection(tool_id=call_id or "", tool_name=name, tool_kwargs=_known_arguments(arguments))
        for call_id, name, arguments in _calls(response.message)
    ]


def _known_arguments(arguments: Mapping[str, Any] | str) -> dict[str, Any]:
    if isinstance(arguments, Mapping):
        return dict(arguments)
    try:
        known = parse_partial_json(arguments)
    except ValueError:  # too little for the parser, as after a colon
        return {}
    return known if isinstance(known, dict) else {}


# ---- answers ---------------------------------------------------------------------------------------------------------


def chat_response(engine: Engine, reply: Reply, piece: Piece | None = None) -> ChatResponse:
    """The answer so far, of which `piece` is new; or a whole one."""
    ended = reply.last.stats is not None
    blocks: list[Any] = []
    if reply.reasoning and _ThinkingBlock is not None:
        n_tokens = reply.last.stats.reasoning_tokens if reply.last.stats is not None else None
        blocks.append(_ThinkingBlock(content=reply.reasoning, num_tokens=n_tokens))
    blocks.append(TextBlock(text=reply.text))
    # LlamaIndex reads calls from here, too: programs that stream objects, and versions without blocks for calls.
    openai_calls = []
    for call in reply.calls.values():
        function = {"name": call.name, "arguments": call.arguments}
        openai_calls.append({"id": call.id, "type": "function", "function": function})
        if _ToolCallBlock is not None:
            arguments = json.loads(call.arguments or "{}") if ended else call.arguments
            blocks.append(_ToolCallBlock(tool_call_id=call.id, tool_name=call.name, tool_kwargs=arguments))
    return ChatResponse(
        message=ChatMessage(
            role=MessageRole.ASSISTANT,
            blocks=blocks,
            additional_kwargs={"tool_calls": openai_calls} if openai_calls else {},
        ),
        **_shared_fields(engine, reply, piece),
    )


def completion_response(engine: Engine, reply: Reply, piece: Piece | None = None) -> CompletionResponse:
    """As `chat_response`, for plain text."""
    return CompletionResponse(text=reply.text, **_shared_fields(engine, reply, piece))


def _shared_fields(engine: Engine, reply: Reply, piece: Piece | None) -> dict[str, Any]:
    fields: dict[str, Any] = {"additional_kwargs": {}}
    if piece is not None:
        fields["delta"] = "".join(event.text for event in piece.events if isinstance(event, Text))
        thought = "".join(event.text for event in piece.events if isinstance(event, Reasoning))
        if thought:
            fields["additional_kwargs"]["thinking_delta"] = thought
    logprobs = reply.logprobs if piece is None else piece.step.logprobs
    if logprobs:
        fields["logprobs"] = [_logprobs(engine, token) for token in logprobs]
    if reply.last.stats is not None:
        tokens = token_usage(reply.last.stats)
        usage = {
            "prompt_tokens": tokens["input"],
            "completion_tokens": tokens["output"],
            "total_tokens": tokens["total"],
        }
        fields["additional_kwargs"] |= usage
        details = {"cached_tokens": tokens["reused"], "reasoning_tokens": tokens["reasoning"]}
        fields["raw"] = response_metadata(engine, reply.last) | {
            "finish_reason": reply.finish_reason,
            "usage": usage | details,
        }
        if reply.broken:
            fields["raw"]["broken_tool_calls"] = [{"text": one.raw, "reason": one.reason} for one in reply.broken]
    return fields


def _logprobs(engine: Engine, token: TokenLogprob) -> list[LogProb]:
    """The token that was taken, then the most likely others in its place."""
    others = [one for one in token.top if one[0] != token.token]
    return [
        LogProb(token=text, logprob=logprob, bytes=list(engine.tokenizer.spoken_bytes(index)))
        for index, text, logprob in [(token.token, token.text, token.logprob), *others]
    ]


# ---- answers that are objects ----------------------------------------------------------------------------------------


def closed_schema(output_cls: type[BaseModel]) -> dict[str, Any]:
    """The JSON schema of a class, whose objects have no members but its fields."""
    return dict(closed(class_schema(output_cls)))


def with_schema(messages: Sequence[ChatMessage], output_cls: type[BaseModel]) -> list[ChatMessage]:
    """The messages with the class's schema in the system message where the first is one, otherwise in the last.

    A grammar alone would not tell the model what the fields mean.
    """
    shown = json.dumps(output_cls.model_json_schema(), ensure_ascii=False)
    extended = list(messages)
    if extended:
        index = 0 if extended[0].role == MessageRole.SYSTEM else -1
        blocks = [*extended[index].blocks, TextBlock(text=f"\nAnswer with JSON of this schema:\n{shown}")]
        extended[index] = extended[index].model_copy(update={"blocks": blocks})
    return extended


def parsed_object(output_cls: type[Model], response: ChatResponse) -> Model:
    """The object that an answer is, or the arguments of its call. Raises ConstraintError where the answer was cut off,
    and pydantic's ValidationError where a check of the class that no schema expresses refuses it."""
    try:
        return output_cls.model_validate_json(_object_text(response))
    except ValidationError as error:
        if all(finding["type"] != "json_invalid" for finding in error.errors()):
            raise
        reason = (response.raw or {}).get("finish_reason")
        raise ConstraintError(
            f"the JSON of {output_cls.__name__} is cut off; the answer ended by {reason!r}. "
            "Allow it more tokens (max_tokens, n_ctx), or set close_constraint=True"
        ) from error


def partial_object(output_cls: type[Model], response: ChatResponse) -> Model | FlexibleModel | None:
    """The object of a streamed answer: while that is not complete, one of the class where what is there is valid
    already, otherwise one that may lack fields, or None. Raises as `parsed_object` does."""
    if response.raw is not None:
        return parsed_object(output_cls, response)
    try:
        known = from_json(_object_text(response), allow_partial="trailing-strings")
    except ValueError:
        return None
    for kind in (output_cls, create_flexible_model(output_cls)):
        try:
            return kind.model_validate(known)
        except ValidationError:
            continue
    return None


def _object_text(response: ChatResponse) -> str:
    calls = response.message.additional_kwargs.get("tool_calls")
    return str(calls[0]["function"]["arguments"] if calls else response.message.content or "")
