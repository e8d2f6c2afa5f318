"""Chat messages in the form that chat templates expect, built from the parts that both frameworks have.

A message is a dictionary with "role" and "content" (always a string), and where they apply
"reasoning_content", "name", "tool_calls" and "tool_call_id": the convention of Hugging Face's templates, which
GGUF files carry.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic_core import from_json, to_json

from ..errors import UnsupportedContentError

__all__ = ["chat_message", "left_out", "text_and_reasoning", "tool_call", "unsupported_content"]

# Blocks of an assistant's message that repeat its tool calls, which templates get as "tool_calls".
_TOOL_CALL_BLOCKS = frozenset(
    {"tool_call", "tool_call_chunk", "invalid_tool_call", "tool_use", "input_json_delta", "function_call"}
)
# Blocks whose text is under the key beside them: LangChain's, OpenAI's and Anthropic's.
_TEXT_BLOCKS = {
    "text": "text",
    "text-plain": "text",
    "input_text": "text",
    "output_text": "text",
    "summary_text": "text",
    "reasoning_text": "text",
    "refusal": "refusal",
}
# Media, which somebody asks about: leaving them out would make another question of it. (What an assistant of another
# provider drew or spoke is only history.)
_MEDIA_BLOCKS = frozenset(
    {
        "image", "image_url", "input_image", "audio", "audio_url", "input_audio", "video", "video_url", "file",
        "input_file", "document", "media", "tool_use", "text-plain",
    }
)  # fmt: skip


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
    """One entry of "tool_calls". Arguments that are JSON text are parsed: templates serialise them. Values in them that
    are no JSON, such as dates, become their text."""
    if isinstance(arguments, str):
        arguments = _parsed_arguments(name, arguments)
    call: dict[str, Any] = {"type": "function", "function": {"name": name, "arguments": _as_json(name, arguments)}}
    if call_id:
        call["id"] = call_id
    return call


def text_and_reasoning(content: str | Sequence[str | Mapping[str, Any]] | None, role: str) -> tuple[str, str]:
    """(text, reasoning) of a message's content: a string, or a list of strings and content blocks.

    Text blocks are joined as they are. Of blocks that only other providers know, what is text is taken, and the rest
    left out with a warning. Raises `UnsupportedContentError` for images, sound and files that a model is asked about.
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
        shown, thought = _of_block(block, role)
        text.append(shown)
        reasoning.append(thought)
    return "".join(text), "".join(reasoning)


def left_out(kind: object, role: str) -> None:
    """Warn that a content block is not shown to the model."""
    warnings.warn(
        f"a message of role {role!r} has a content block of type {kind!r}, which Bee's models cannot read; "
        "it is left out",
        stacklevel=2,
    )


def _of_block(block: Mapping[str, Any], role: str) -> tuple[str, str]:
    """(text, reasoning) of one content block."""
    kind = block.get("type")
    assistant = role == "assistant"
    key = _TEXT_BLOCKS.get(str(kind))
    if key is not None and isinstance(block.get(key), str):
        return str(block[key]), ""
    if kind in ("reasoning", "thinking"):
        thought = (
            block.get("reasoning") or block.get("thinking") or _texts(block.get("summary") or block.get("content"))
        )
        return ("", str(thought)) if assistant else ("", "")
    if kind in _TOOL_CALL_BLOCKS and assistant:
        return "", ""
    if kind == "non_standard" and isinstance(block.get("value"), Mapping):
        return _of_block(block["value"], role)
    if kind == "json" and "json" in block:  # a result of a tool, as Bedrock has it
        return json.dumps(block["json"], ensure_ascii=False, default=str), ""
    source = block.get("source")
    if kind == "document" and isinstance(source, Mapping) and source.get("type") == "text":
        return str(source.get("data", "")), ""
    if kind in ("search_result", "tool_result", "document") and (inner := _texts(block.get("content"))):
        return inner, ""
    if kind in _MEDIA_BLOCKS and not assistant:
        raise unsupported_content(kind, role)
    left_out(kind, role)
    return "", ""


def _texts(content: Any) -> str:
    """The texts in a block's own content: a string, or blocks of text."""
    if isinstance(content, str):
        return content
    blocks = content if isinstance(content, list) else []
    return "".join(str(block["text"]) for block in blocks if isinstance(block, Mapping) and "text" in block)


def unsupported_content(kind: object, role: str) -> UnsupportedContentError:
    """The error for a content block that is not text."""
    return UnsupportedContentError(
        f"a message of role {role!r} has a content block of type {kind!r}, but Bee's models read text only; "
        "remove the block or replace it by a text block that describes it"
    )


def _parsed_arguments(name: str, arguments: str) -> Mapping[str, Any]:
    try:
        parsed = json.loads(arguments or "{}")
    except (ValueError, RecursionError) as error:
        raise UnsupportedContentError(
            f"the arguments of the call of tool {name!r} are not JSON ({error}); give a JSON object or a dictionary"
        ) from error
    if not isinstance(parsed, dict):
        raise UnsupportedContentError(
            f"the arguments of the call of tool {name!r} are a JSON {type(parsed).__name__}; give an object"
        )
    return parsed


def _as_json(name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return dict(from_json(to_json(dict(arguments), inf_nan_mode="strings", fallback=str)))
    except (ValueError, TypeError, RecursionError) as error:  # such as a list that holds itself
        raise UnsupportedContentError(f"the arguments of the call of tool {name!r} are no JSON: {error}") from error
