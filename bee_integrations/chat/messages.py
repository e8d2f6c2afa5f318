"""Chat messages in the form that chat templates expect, built from the parts that both frameworks have.

A message is a dictionary with "role" and "content" (always a string), and where they apply
"reasoning_content", "name", "tool_calls" and "tool_call_id": the convention of Hugging Face's templates, which
GGUF files carry.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import UnsupportedContentError

__all__ = ["chat_message", "text_and_reasoning", "tool_call", "unsupported_content"]

# Blocks of an assistant's message that repeat its tool calls, which templates get as "tool_calls".
_TOOL_CALL_BLOCKS = frozenset({"tool_call", "tool_call_chunk", "invalid_tool_call", "tool_use", "input_json_delta"})


def chat_message(
    role: str,
    text: str,
    *,
    reasoning: str = "",
    name: str | None = None,
    tool_calls: Sequence[Mapping[str, Any]] = (),
    tool_call_id: str | None = None,
) -> dict[str, Any]:
    """One message for a chat template; what is empty is left out, except the content."""
    message: dict[str, Any] = {"role": role, "content": text}
    if reasoning:
        message["reasoning_content"] = reasoning
    if name:
        message["name"] = name
    if tool_calls:
        message["tool_calls"] = [dict(call) for call in tool_calls]
    if tool_call_id:
        message["tool_call_id"] = tool_call_id
    return message


def tool_call(name: str, arguments: Mapping[str, Any] | str, call_id: str | None = None) -> dict[str, Any]:
    """One entry of "tool_calls". Arguments that are JSON text are parsed: templates serialise them."""
    if isinstance(arguments, str):
        arguments = _parsed_arguments(name, arguments)
    call: dict[str, Any] = {"type": "function", "function": {"name": name, "arguments": dict(arguments)}}
    if call_id:
        call["id"] = call_id
    return call


def text_and_reasoning(content: str | Sequence[str | Mapping[str, Any]] | None, role: str) -> tuple[str, str]:
    """(text, reasoning) of a message's content: a string, or a list of strings and content blocks.

    Text blocks are joined as they are. Raises `UnsupportedContentError` for images, sound and other blocks.
    """
    if content is None:
        return "", ""
    if isinstance(content, str):
        return content, ""
    text: list[str] = []
    reasoning: list[str] = []
    for block in content:
        if isinstance(block, str):
            text.append(block)
            continue
        kind = block.get("type")
        if kind in ("text", "text-plain") and isinstance(block.get("text"), str):
            text.append(block["text"])
        elif kind in ("reasoning", "thinking") and role == "assistant":
            reasoning.append(str(block.get("reasoning") or block.get("thinking") or ""))
        elif not (kind in _TOOL_CALL_BLOCKS and role == "assistant"):
            raise unsupported_content(kind, role)
    return "".join(text), "".join(reasoning)


def unsupported_content(kind: object, role: str) -> UnsupportedContentError:
    """The error for a content block that is not text."""
    return UnsupportedContentError(
        f"a message of role {role!r} has a content block of type {kind!r}, but Bee's models read text only; "
        "remove the block or replace it by a text block that describes it"
    )


def _parsed_arguments(name: str, arguments: str) -> Mapping[str, Any]:
    try:
        parsed = json.loads(arguments or "{}")
    except json.JSONDecodeError as error:
        raise UnsupportedContentError(
            f"the arguments of the call of tool {name!r} are not JSON ({error}); give a JSON object or a dictionary"
        ) from error
    if not isinstance(parsed, dict):
        raise UnsupportedContentError(
            f"the arguments of the call of tool {name!r} are a JSON {type(parsed).__name__}; give an object"
        )
    return parsed
