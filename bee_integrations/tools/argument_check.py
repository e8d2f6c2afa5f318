"""Whether the arguments of a call fit the tool's schema: for calls that were not written under a grammar.

What a reader takes for a call may have been spelled in a way that starts no grammar. Such a call counts only if its
arguments are what the schema allows, and nothing that cannot be checked counts.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from functools import lru_cache
from typing import Any

from .json_scan import parse_json
from .text_schema import text_terminal
from .tool_format import CallArguments, CallBegin, CallBroken, CallEnd, Event, Tool

__all__ = ["CheckedCalls", "fault_of_arguments"]

_LONGEST = 300  # characters of a reason


class CheckedCalls:
    """Lets the events of an answer through, but calls that are not what their tool's schema allows become broken ones.

    A call that begins while a grammar decides what is said needs no check.
    """

    def __init__(self, tools: Sequence[Tool]) -> None:
        self._tools = {tool.name: tool for tool in tools}
        self._open: dict[int, tuple[str, list[str]]] = {}  # name and pieces of the arguments, of calls to be checked

    def passed(self, events: Sequence[Event], *, bound: bool) -> list[Event]:
        """`bound`: whether all of the text that the events came from was written under the grammar of calls."""
        return [self._passed(event, bound) for event in events]

    def _passed(self, event: Event, bound: bool) -> Event:
        match event:
            case CallBegin(index, name) if not bound:
                self._open[index] = (name, [])
            case CallArguments(index, piece) if index in self._open:
                self._open[index][1].append(piece)
            case CallBroken(index):
                self._open.pop(index, None)
            case CallEnd(index, raw) if index in self._open:
                name, pieces = self._open.pop(index)
                fault = fault_of_arguments(self._tools[name], "".join(pieces))
                if fault is not None:
                    return CallBroken(index, raw, fault)
        return event


def fault_of_arguments(tool: Tool, arguments: str) -> str | None:
    """Why a call's arguments (JSON text) are not what the tool's schema allows; None: they are."""
    try:
        found = next(_validator(json.dumps(dict(tool.parameters))).iter_errors(parse_json(arguments)), None)
    except Exception as error:  # a schema that is none, a reference that leads nowhere
        return _cut(f"the arguments of {tool.name!r} cannot be checked against its schema: {error}")
    if found is None:
        return None
    where = "".join(f"/{part}" for part in found.absolute_path)
    return _cut(f"the arguments of {tool.name!r} do not fit its schema: {where + ': ' if where else ''}{found.message}")


def _cut(reason: str) -> str:
    return reason if len(reason) <= _LONGEST else reason[: _LONGEST - 3] + "..."


@lru_cache(maxsize=64)
def _validator(schema_text: str) -> Any:
    # Loaded when a call is first to be checked.
    from jsonschema import Draft202012Validator
    from jsonschema.validators import extend, validator_for
    from referencing.jsonschema import EMPTY_REGISTRY

    schema = json.loads(schema_text)
    kind = validator_for(schema, default=Draft202012Validator)
    exact = extend(kind, {"multipleOf": _multiple_of, "pattern": _pattern, "patternProperties": _pattern_properties})
    # With a registry, nothing is fetched from anywhere.
    return exact({"type": "object", **schema} if "$ref" not in schema else schema, registry=EMPTY_REGISTRY)


def _multiple_of(validator: Any, factor: Any, instance: Any, schema: Any) -> Iterator[Any]:
    """In decimal arithmetic: 0.3 is a multiple of 0.1."""
    from jsonschema import ValidationError

    if validator.is_type(instance, "number") and Fraction(str(instance)) % Fraction(str(factor)) != 0:
        yield ValidationError(f"{instance!r} is not a multiple of {factor}")


def _pattern(validator: Any, pattern: str, instance: Any, schema: Any) -> Iterator[Any]:
    from jsonschema import ValidationError

    if isinstance(instance, str) and not _found_in(pattern, instance):
        yield ValidationError(f"{instance!r} does not match {pattern!r}")


def _pattern_properties(validator: Any, patterns: Mapping[str, Any], instance: Any, schema: Any) -> Iterator[Any]:
    if not isinstance(instance, dict):
        return
    for pattern, inner in patterns.items():
        for key, value in instance.items():
            if _found_in(pattern, key):
                yield from validator.descend(value, inner, path=key, schema_path=pattern)


def _found_in(pattern: str, text: str) -> bool:
    """Whether a schema's pattern matches somewhere in a text, by the engine that grammars use: in linear time."""
    from llguidance import LLMatcher, LLTokenizer

    terminal = text_terminal({"pattern": pattern}, None)
    matcher = LLMatcher(LLTokenizer("byte"), LLMatcher.grammar_from_lark(f"start: TEXT\nTEXT: {terminal}"))
    if matcher.is_error():
        raise ValueError(f"the pattern {pattern!r} is not supported")
    data = list(text.encode())
    return bool(matcher.try_consume_tokens(data) == len(data) and matcher.is_accepting())
