"""Tools for models whose template does not show them.

The tools and the way to call them go into the system message, calls of earlier turns into the text of the assistant's
messages, and results into messages of the user. Calls are written as Hermes models write them, since that form is the
one that small models have seen most.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from .call_history import plain_messages
from .hermes import BEGIN, END, HermesFormat, call_text
from .tool_format import Tool

__all__ = ["GenericFormat"]


class GenericFormat(HermesFormat):
    """Calls as in Hermes, and tools that the system message describes."""

    name: ClassVar[str] = "generic"
    ends_turn: ClassVar[bool] = True  # models that were not trained on calls would go on calling

    @classmethod
    def recognises(cls, template: str) -> bool:
        """Any template will do, so this format is asked last."""
        return True

    def prompt(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Tool]
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]] | None]:
        """Messages without tools in them, for a template that knows none."""
        given = plain_messages(messages)
        names = _names_by_id(given)
        prepared = [_as_plain(message, names) for message in given]
        if tools:
            _add_to_system(prepared, _description(tools))
        return _with_joined_results(prepared), None


def _description(tools: Sequence[Tool]) -> str:
    functions = "\n".join(json.dumps(tool.as_openai()["function"], ensure_ascii=False) for tool in tools)
    return (
        "You can call these functions. Each line describes one; its parameters are a JSON schema.\n"
        f"<tools>\n{functions}\n</tools>\n"
        "To call a function, write its name and its arguments as JSON in this form, and nothing after it:\n"
        f'{BEGIN}\n{{"name": <name>, "arguments": <arguments>}}\n{END}\n'
        "The result of the call is in the next message. Once you have what you need, answer in plain text."
    )


def _add_to_system(messages: list[dict[str, Any]], description: str) -> None:
    if messages and messages[0].get("role") == "system":
        given = messages[0].get("content") or ""
        if isinstance(given, str):
            messages[0]["content"] = f"{given}\n\n{description}" if given else description
        else:
            messages[0]["content"] = [*given, {"type": "text", "text": description}]
    else:
        messages.insert(0, {"role": "system", "content": description})


def _names_by_id(messages: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Messages with results often give only the id of the call."""
    calls = [call for message in messages for call in message.get("tool_calls", ())]
    return {call["id"]: call["function"]["name"] for call in calls if "id" in call}


def _as_plain(message: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    if message.get("role") == "tool":
        name = message.get("name") or names.get(message.get("tool_call_id") or "")
        return {"role": "user", "content": _result_text(name, _text(message.get("content"))), "tool_result": True}
    plain = dict(message)
    calls = plain.pop("tool_calls", None)
    if calls:
        functions = [call["function"] for call in calls]
        written = [call_text(one["name"], json.dumps(one["arguments"], ensure_ascii=False)) for one in functions]
        plain["content"] = "\n".join(filter(None, [_text(plain.get("content")), *written]))
    return plain


def _result_text(name: str | None, result: str) -> str:
    begin = f"<tool_response name={json.dumps(name, ensure_ascii=False)}>" if name else "<tool_response>"
    return f"{begin}\n{result}\n</tool_response>"


def _text(content: Any) -> str:
    """The text of a message's content, which may be a list of parts."""
    if isinstance(content, str) or content is None:
        return content or ""
    if isinstance(content, Sequence):
        return "\n".join(part if isinstance(part, str) else str(part.get("text", "")) for part in content)
    return str(content)


def _with_joined_results(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Results, and what the user says next, as one message: many templates want turns to alternate."""
    joined: list[dict[str, Any]] = []
    after_result = False
    for message in messages:
        result = message.pop("tool_result", False)
        mergeable = message.get("role") == "user" and isinstance(message.get("content"), str)
        if after_result and mergeable:
            joined[-1]["content"] += "\n" + message["content"]
        else:
            joined.append(message)
        after_result = bool(result)
    return joined
