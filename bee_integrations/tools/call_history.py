"""Messages with calls and results as chat templates take them: arguments as mappings, one call at a time, short ids."""

from __future__ import annotations

import hashlib
import string
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import ParameterError
from .json_scan import parse_json
from .step_reader import is_call_id

__all__ = ["one_call_each", "plain_messages", "short_ids"]

Message = dict[str, Any]

_DIGITS = string.ascii_letters + string.digits


def plain_messages(messages: Sequence[Mapping[str, Any]]) -> list[Message]:
    """Copies in which absent content is "", arguments are mappings, and "tool_calls" is there only where calls are.

    Templates trip over each of these. Raises `ParameterError` where a call in the messages is none.
    """
    return [_plain(message, f"messages[{index}]") for index, message in enumerate(messages)]


def _plain(message: Mapping[str, Any], where: str) -> Message:
    copy = dict(message)
    if copy.get("content") is None:
        copy["content"] = ""
    calls = copy.pop("tool_calls", None)
    if calls:
        copy["tool_calls"] = [_call(call, f"{where}.tool_calls[{index}]") for index, call in enumerate(calls)]
    return copy


def _call(call: Any, where: str) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise ParameterError(f'{where} is not a call of a function with a "name"')
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        try:
            arguments = parse_json(arguments or "{}")
        except ValueError as error:
            raise ParameterError(f"{where}: the arguments of {function['name']!r} are no JSON: {error}") from None
    if not isinstance(arguments, Mapping):
        raise ParameterError(f"{where}: the arguments of {function['name']!r} are not an object")
    plain = {"type": "function", "function": {"name": function["name"], "arguments": dict(arguments)}}
    return plain if call.get("id") is None else {"id": call["id"], **plain}


def one_call_each(messages: Sequence[Message]) -> list[Message]:
    """Splits messages with several calls into as many, each followed by its result."""
    result: list[Message] = []
    at = 0
    while at < len(messages):
        message = messages[at]
        at += 1
        if len(message.get("tool_calls", ())) < 2:
            result.append(message)
            continue
        end = next((i for i in range(at, len(messages)) if messages[i].get("role") != "tool"), len(messages))
        result += _split(message, list(messages[at:end]))
        at = end
    return result


def _split(message: Message, results: list[Message]) -> list[Message]:
    said: list[Message] = []
    calls = message["tool_calls"]
    known = {call.get("id") for call in calls}
    for number, call in enumerate(calls):
        kept = message if number == 0 else {"role": message["role"], "content": ""}
        said.append({**kept, "tool_calls": [call]})
        ours = [result for result in results if call.get("id") is not None and result.get("tool_call_id") == call["id"]]
        # Results without an id belong to the calls in their order.
        nameless = [result for result in results if result.get("tool_call_id") not in known]
        ours = ours or nameless[:1]
        said += ours
        results = [result for result in results if all(result is not our for our in ours)]
    return said + results


def short_ids(messages: Sequence[Message]) -> list[Message]:
    """Ids of nine letters and digits in place of others, the same for a call and its results, and the same each time;
    calls without one get one, and so do their results, in the calls' order."""
    taken = {call["id"] for message in messages for call in message.get("tool_calls", ()) if "id" in call}
    renamed: dict[str, str] = {}
    waiting: list[str] = []
    result = []
    for index, message in enumerate(messages):
        copy = dict(message)
        if "tool_calls" in copy:
            calls = []
            waiting = []
            for number, call in enumerate(copy["tool_calls"]):
                call_id = _short(str(call.get("id", f"message {index}, call {number}")), taken, renamed)
                calls.append({**call, "id": call_id})
                waiting.append(call_id)
            copy["tool_calls"] = calls
        elif copy.get("role") == "tool":
            given = copy.get("tool_call_id")
            if given is None and waiting:
                copy["tool_call_id"] = waiting[0]
            else:
                copy["tool_call_id"] = _short(str(given), taken, renamed)
            waiting = [call_id for call_id in waiting if call_id != copy["tool_call_id"]]
        result.append(copy)
    return result


def _short(call_id: str, taken: set[str], renamed: dict[str, str]) -> str:
    if is_call_id(call_id):
        return call_id
    attempt = 0
    while call_id not in renamed:
        number = int.from_bytes(hashlib.sha256(f"{attempt} {call_id}".encode()).digest(), "big")
        short = "".join(_DIGITS[number // len(_DIGITS) ** place % len(_DIGITS)] for place in range(9))
        attempt += 1
        if short not in taken:
            taken.add(short)
            renamed[call_id] = short
    return renamed[call_id]
