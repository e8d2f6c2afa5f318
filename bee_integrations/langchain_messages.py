"""LangChain's messages and tools as chats of Bee take them, and answers as LangChain's messages, whole or in chunks."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any

from langchain_core.exceptions import ContextOverflowError
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    InvalidToolCall,
    SystemMessage,
    ToolCall,
    ToolCallChunk,
    ToolMessage,
)
from langchain_core.messages.ai import UsageMetadata
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool
from langchain_core.utils.json import parse_partial_json
from pydantic import BaseModel

from .chat.messages import chat_message, text_and_reasoning, tool_call
from .chat.metadata import finish_reason, response_metadata, token_usage
from .chat.reply import Piece, Reply
from .chat.tool_use import ToolUse
from .engine.engine import Engine, Statistics, Step
from .errors import ContextLengthError, ParameterError, UnsupportedContentError
from .generation import TokenLogprob
from .tools.tool_format import CallArguments, CallBegin, CallBroken, Event, Reasoning, Text, Tool

__all__ = [
    "AnswerChunks",
    "chat_result",
    "logprobs_metadata",
    "openai_tools",
    "overflow_in_langchain_terms",
    "plain_text",
    "template_messages",
    "tool_use",
    "usage_metadata",
]


class PromptOverflowError(ContextLengthError, ContextOverflowError):
    """A prompt has more tokens than the context holds, for who asks for Bee's exception and for who asks for
    LangChain's, as its middleware does, which shortens the conversation then."""


_REFERENCE = re.compile(r'"\$ref": "#/\$defs/([^"/]+)"')

# ---- messages --------------------------------------------------------------------------------------------------------


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
        text = text or str(message.additional_kwargs.get("refusal") or "")
        return chat_message(role, text, reasoning=reasoning, name=message.name, tool_calls=_calls(message))
    if not isinstance(message, ToolMessage):
        return chat_message(role, text, name=message.name)
    if message.status == "error" and not text.lower().startswith("error"):
        text = f"Error: {text}"  # templates know no status
    return chat_message(role, text, name=message.name, tool_call_id=message.tool_call_id)


def _calls(message: AIMessage) -> list[dict[str, Any]]:
    """The calls of an answer, be they in the form that OpenAI had before it had tools."""
    old = message.additional_kwargs.get("function_call")
    if not message.tool_calls and isinstance(old, Mapping) and isinstance(old.get("name"), str):
        return [tool_call(old["name"], old.get("arguments") or {})]
    return [tool_call(call["name"], call["args"], call["id"]) for call in message.tool_calls]


def plain_text(message: BaseMessage) -> str:
    """What a message says, whoever wrote it in whatever form, for counting."""
    calls = [f"{call['name']}{call['args']}" for call in message.tool_calls] if isinstance(message, AIMessage) else []
    return "\n".join([f"{message.type}: {message.text}", *calls])


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


@contextmanager
def overflow_in_langchain_terms() -> Iterator[None]:
    """A prompt that does not fit raises an error that is LangChain's as well."""
    try:
        yield
    except ContextLengthError as error:
        raise PromptOverflowError(str(error)) from error


# ---- tools -----------------------------------------------------------------------------------------------------------


def openai_tools(tools: Sequence[Any], strict: bool | None = None) -> list[dict[str, Any]]:
    """Whatever LangChain takes as tools, as OpenAI's dictionaries. Raises `ParameterError`, which names the tool."""
    if isinstance(tools, (str, bytes, Mapping)) or not isinstance(tools, Iterable):
        raise ParameterError(f"tools is {_shown(tools)}; it must be a list of tools")
    return [_openai_tool(index, tool, strict) for index, tool in enumerate(tools)]


def tool_use(tools: Sequence[Any] | None, choice: Any = None, parallel: bool | None = None) -> ToolUse:
    """The tools of one call. `tools` as of `openai_tools`; `choice`: "auto", "any", "required" or True, "none", a
    tool's name, or OpenAI's dictionary with one. Raises `ParameterError`."""
    known = tuple(_tool(index, tool) for index, tool in enumerate(openai_tools(tools or ())))
    return ToolUse(known, _choice(choice), parallel is not False)


def _openai_tool(index: int, tool: Any, strict: bool | None) -> dict[str, Any]:
    try:
        converted = convert_to_openai_tool(tool, strict=strict)
    except Exception as error:  # of whatever kind the conversion of a stranger's class or function raises
        raise ParameterError(f"tools[{index}], {_shown(tool)}, cannot be described to a model: {error}") from error
    if not isinstance(converted.get("function"), Mapping):
        raise ParameterError(
            f"tools[{index}] is of type {converted.get('type')!r}, which some hosted models run by themselves; "
            "a local model can call functions only"
        )
    if strict is not None:  # which LangChain does not say of tools that are OpenAI's dictionaries already
        converted = {**converted, "function": {**converted["function"], "strict": strict}}
    whole = _recursive_schema(tool)
    return converted if whole is None else {**converted, "function": {**converted["function"], "parameters": whole}}


def _recursive_schema(tool: Any) -> dict[str, Any] | None:
    """The schema of arguments that may hold values of their own kind, which LangChain's conversion would leave open;
    None for others."""
    arguments = tool.tool_call_schema if isinstance(tool, BaseTool) else tool
    if not (isinstance(arguments, type) and issubclass(arguments, BaseModel)):
        return None
    schema = arguments.model_json_schema()
    references = {name: _REFERENCE.findall(json.dumps(one)) for name, one in schema.get("$defs", {}).items()}
    for name, reached in references.items():
        for other in reached:  # grows
            reached += [one for one in references.get(other, ()) if one not in reached]
        if name in reached:
            return {key: value for key, value in schema.items() if key not in ("title", "description")}
    return None


def _shown(tool: Any) -> str:
    name = tool.get("name") if isinstance(tool, Mapping) else getattr(tool, "name", getattr(tool, "__name__", None))
    return f"a {type(tool).__name__}" if name is None else repr(name)


def _tool(index: int, tool: Mapping[str, Any]) -> Tool:
    function = tool["function"]
    name, description, parameters = (function.get(key) for key in ("name", "description", "parameters"))
    if not isinstance(name, str):
        raise ParameterError(f"tools[{index}] has no name")
    if parameters is None:
        parameters = {"type": "object", "properties": {}}
    if not isinstance(parameters, Mapping):
        raise ParameterError(f"the parameters of the tool {name!r} are {parameters!r}, expected a JSON schema")
    return Tool(name, str(description or ""), parameters, strict=function.get("strict") is True)


def _choice(choice: Any) -> str:
    if choice is None or choice is False:
        return "auto"
    if choice is True:
        return "any"
    if isinstance(choice, str):
        return choice
    function = choice.get("function") if isinstance(choice, Mapping) else None
    if isinstance(function, Mapping) and isinstance(function.get("name"), str):
        return str(function["name"])
    raise ParameterError(
        f"tool_choice is {choice!r}; expected 'auto', 'any', 'none', a tool's name or "
        "{'type': 'function', 'function': {'name': ...}}"
    )


# ---- answers ---------------------------------------------------------------------------------------------------------


def chat_result(engine: Engine, pieces: Sequence[Piece]) -> ChatResult:
    """A whole answer: what the chunks that `AnswerChunks` makes of the same pieces add up to, with the errors of
    invalid calls."""
    reply = Reply()
    for piece in pieces:
        reply.add(piece)
    events = [event for piece in pieces for event in piece.events]
    reasons = [broken.reason for broken in reply.broken]
    message = AIMessage(
        content=reply.text,
        additional_kwargs={"reasoning_content": reply.reasoning} if reply.reasoning else {},
        tool_calls=[
            ToolCall(name=call.name, args=json.loads(call.arguments or "{}", strict=False), id=call.id)
            for call in reply.calls.values()
        ],
        invalid_tool_calls=[_invalid_call(broken, events) for broken in reply.broken],
        response_metadata=_metadata(engine, reply.last, bool(reply.calls), reasons)
        | logprobs_metadata(engine, reply.logprobs),
        usage_metadata=_usage_of(reply.last),
    )
    info = {"finish_reason": message.response_metadata["finish_reason"]}
    return ChatResult(generations=[ChatGeneration(message=message, generation_info=info)])


class AnswerChunks:
    """Turns the pieces of one answer into chunks: each is text, thinking or calls, and the last one none of them."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._arguments: dict[int, str] = {}  # of the calls so far
        self._broken: dict[int, str] = {}  # reasons

    def of(self, piece: Piece) -> Iterator[ChatGenerationChunk]:
        """The chunks of the next piece."""
        messages: list[AIMessageChunk] = []
        for kind, events in groupby(piece.events, _kind):
            messages += self._messages(kind, list(events))
        ends = piece.step.stats is not None
        if ends:
            messages.append(self._last_message(piece.step))
        if piece.step.logprobs:
            messages = messages or [AIMessageChunk(content="")]
            messages[0].response_metadata |= logprobs_metadata(self._engine, piece.step.logprobs)
        for message in messages:
            reason = message.response_metadata.get("finish_reason")
            yield ChatGenerationChunk(message=message, generation_info={"finish_reason": reason} if reason else None)

    def _messages(self, kind: str, events: Sequence[Any]) -> list[AIMessageChunk]:
        if kind == "calls":
            chunks = self._call_chunks(events)
            return [AIMessageChunk(content="", tool_call_chunks=chunks)] if chunks else []
        text = "".join(event.text for event in events)
        if kind == "reasoning":
            return [AIMessageChunk(content="", additional_kwargs={"reasoning_content": text})]
        return [AIMessageChunk(content=text)]

    def _call_chunks(self, events: Sequence[Event]) -> list[ToolCallChunk]:
        chunks: dict[int, ToolCallChunk] = {}

        def argue(index: int, text: str, **known: str) -> None:
            chunk = chunks.setdefault(index, ToolCallChunk(name=None, args="", id=None, index=index))
            chunk["args"] = f"{chunk['args']}{text}"
            chunk["name"] = known.get("name", chunk["name"])
            chunk["id"] = known.get("id", chunk["id"])
            self._arguments[index] = self._arguments.get(index, "") + text

        for event in events:
            match event:
                case CallBegin(index, name, call_id):
                    argue(index, "", name=name, id=call_id)
                case CallArguments(index, text):
                    argue(index, text)
                case CallBroken(index, raw, reason):
                    if index not in self._arguments:
                        argue(index, raw)
                    argue(index, _void_end(self._arguments[index]))
                    self._broken[index] = reason
        return list(chunks.values())

    def _last_message(self, last: Step) -> AIMessageChunk:
        has_calls = bool(self._arguments.keys() - self._broken.keys())
        return AIMessageChunk(
            content="",
            response_metadata=_metadata(self._engine, last, has_calls, list(self._broken.values())),
            usage_metadata=_usage_of(last),
            chunk_position="last",
        )


def _kind(event: Event) -> str:
    if isinstance(event, Text):
        return "text"
    return "reasoning" if isinstance(event, Reasoning) else "calls"


def _invalid_call(broken: CallBroken, events: Sequence[Event]) -> InvalidToolCall:
    begun = next((e for e in events if isinstance(e, CallBegin) and e.index == broken.index), None)
    arguments = broken.raw
    if begun is not None:
        arguments = "".join(e.json for e in events if isinstance(e, CallArguments) and e.index == broken.index)
    return InvalidToolCall(
        type="invalid_tool_call",
        name=None if begun is None else begun.name,
        args=arguments + _void_end(arguments),
        id=None if begun is None else begun.id,
        error=broken.reason,
    )


def _void_end(arguments: str) -> str:
    """What makes the arguments of a call that is none unreadable.

    LangChain completes the arguments that chunks add up to: a call that was cut off would become one that the model
    did not make. It gives up at a bracket that closes nothing.
    """
    for end in ("", "]", "}", '"]', '"}', '""]', '""}'):  # outside of a string, in one, after a backslash in one
        try:
            read = parse_partial_json(arguments + end) if arguments + end else {}
        except ValueError:
            return end
        if not isinstance(read, dict):
            return end
    raise AssertionError(f"{arguments!r} reads as an object whatever follows it")


def _metadata(engine: Engine, last: Step, has_calls: bool, broken: list[str]) -> dict[str, Any]:
    metadata = response_metadata(engine, last) | {"finish_reason": finish_reason(last, has_calls)}
    # Chunks cannot hold the errors of invalid calls, so they stand here as well.
    return metadata | {"tool_call_errors": broken} if broken else metadata


def logprobs_metadata(engine: Engine, logprobs: Sequence[TokenLogprob]) -> dict[str, Any]:
    """In OpenAI's form; nothing where none were asked for."""

    def entry(token: int, text: str, logprob: float) -> dict[str, Any]:
        return {"token": text, "bytes": list(engine.tokenizer.spoken_bytes(token)), "logprob": logprob}

    content = [entry(p.token, p.text, p.logprob) | {"top_logprobs": [entry(*top) for top in p.top]} for p in logprobs]
    return {"logprobs": {"content": content}} if content else {}


def usage_metadata(stats: Statistics) -> UsageMetadata:
    """Tokens of a request: those of the prompt that were found in the cache, and those of thinking, apart."""
    tokens = token_usage(stats)
    return UsageMetadata(
        input_tokens=tokens["input"],
        output_tokens=tokens["output"],
        total_tokens=tokens["total"],
        input_token_details={"cache_read": tokens["reused"]},
        output_token_details={"reasoning": tokens["reasoning"]},
    )


def _usage_of(last: Step) -> UsageMetadata:
    assert last.stats is not None, "the last step of an answer carries its statistics"
    return usage_metadata(last.stats)
