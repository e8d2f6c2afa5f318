"""Tools for models whose template does not show them.

The tools and the way to call them go into the system message. Calls are written as Hermes models write them, since that
form is the one that small models have seen most. What was called, and what came of it, is told in the user's message,
as in `get_weather(city="Paris") returned: rain`: models that were not trained on tools take a call among their own
messages for what they are to say again, and its result for a form to imitate.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from .call_history import plain_messages
from .hermes import BEGIN, END, HermesFormat
from .tool_format import Tool

__all__ = ["GenericFormat"]


class GenericFormat(HermesFormat):
    """Calls as in Hermes, and tools that the system message describes."""

    name: str = "generic"
    models: str = "all others: the system message describes the tools"
    example: str = '<tool_call>\n{"name": "name", "arguments": {"key": "value"}}\n</tool_call>'
    ends_turn: bool = True  # models that were not trained on calls would go on calling

    def recognises(self, template: str) -> bool:
        """Any template will do, so this format is asked last."""
        return True

    def prompt(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Tool]
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]] | None]:
        """Messages without tools in them, for a template that knows none."""
        history = _History()
        for message in plain_messages(messages):
            history.add(message)
        prepared = history.finish()
        if tools:
            _add_to_system(prepared, _description(tools))
        return prepared, None


def _description(tools: Sequence[Tool]) -> str:
    functions = "\n".join(json.dumps(tool.as_openai()["function"], ensure_ascii=False) for tool in tools)
    return (
        "You can call these functions. Each line describes one; its parameters are a JSON schema.\n"
        f"<tools>\n{functions}\n</tools>\n"
        "To call a function, write its name and its arguments as JSON in this form, and nothing after it:\n"
        f'{BEGIN}\n{{"name": <name>, "arguments": <arguments>}}\n{END}\n'
        "You are told what it returned. Once you know what you need, answer in plain text."
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


class _History:
    """A conversation in which calls and results become a part of what the user says."""

    def __init__(self) -> None:
        self._messages: list[dict[str, Any]] = []
        self._calls: dict[str, str] = {}  # that wait for their results, as text by id
        self._told = False  # the last message ends with results

    def add(self, message: dict[str, Any]) -> None:
        if message.get("role") == "tool":
            self._tell(f"{self._call_of(message)} returned: {_text(message.get('content'))}")
            return
        self._give_up_waiting()
        calls = message.pop("tool_calls", ())
        if not calls or message["content"]:
            self._say(message)
        for index, call in enumerate(calls):
            function = call["function"]
            self._calls[call.get("id") or f"call {index}"] = _as_code(function["name"], function["arguments"])

    def finish(self) -> list[dict[str, Any]]:
        self._give_up_waiting()
        return self._messages

    def _call_of(self, message: Mapping[str, Any]) -> str:
        call = self._calls.pop(str(message.get("tool_call_id")), None)
        return call or str(message.get("name") or "A function")

    def _give_up_waiting(self) -> None:
        for call in self._calls.values():
            self._tell(f"{call} was called.")
        self._calls.clear()

    def _tell(self, line: str) -> None:
        last = self._messages[-1] if self._messages else {}
        if last.get("role") == "user" and isinstance(last["content"], str):
            last["content"] += ("\n" if self._told else "\n\n") + line
        else:
            self._messages.append({"role": "user", "content": line})
        self._told = True

    def _say(self, message: dict[str, Any]) -> None:
        if self._told and message.get("role") == "user" and isinstance(message["content"], str):
            self._messages[-1]["content"] += "\n\n" + message["content"]  # many templates want turns to alternate
        else:
            self._messages.append(message)
        self._told = False


def _as_code(name: str, arguments: Mapping[str, Any]) -> str:
    given = (f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in arguments.items())
    return f"{name}({', '.join(given)})"


def _text(content: Any) -> str:
    """The text of a message's content, which may be a list of parts."""
    if isinstance(content, str) or content is None:
        return content or ""
    if isinstance(content, Sequence):
        return "\n".join(part if isinstance(part, str) else str(part.get("text", "")) for part in content)
    return str(content)
