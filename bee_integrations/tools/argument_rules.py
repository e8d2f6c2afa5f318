"""Grammars of arguments that are written as JSON, which most formats share."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from ..constraints.strict_schema import closed
from .tool_format import Tool

__all__ = ["arguments_schema", "json_call_rules", "json_rule"]

# Keywords that can bring in properties which "properties" does not list.
_OPEN_KEYWORDS = frozenset(
    {
        "$dynamicRef", "$ref", "additionalProperties", "allOf", "anyOf", "dependentSchemas", "else", "if",
        "maxProperties", "minProperties", "not", "oneOf", "patternProperties", "propertyNames", "then",
        "unevaluatedProperties",
    }
)  # fmt: skip


def arguments_schema(tool: Tool) -> dict[str, Any]:
    """The schema of a tool's arguments for a grammar: an object, and closed unless it says otherwise. What this schema
    allows, the tool's own schema allows too."""
    schema = dict(tool.parameters)
    if "$ref" not in schema:
        schema.setdefault("type", "object")
    properties = schema.get("properties", {})
    if _OPEN_KEYWORDS.isdisjoint(schema) and set(schema.get("required", ())) <= set(properties):
        schema.update(properties=properties, additionalProperties=False)
    return dict(closed(schema))


def json_rule(schema: Any) -> str:
    """A Lark expression for the JSON texts of a schema, on one line and spaced as Python and templates space them.

    White space that may repeat would let a model write nothing else for ever.
    """
    spacing = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
    if schema is True:
        schema = {}
    return f"%json {json.dumps({**schema, 'x-guidance': spacing})}"


def json_call_rules(tools: Sequence[Tool], head: Callable[[Tool], str], tail: str = "") -> list[str]:
    """Lark rules of which `call` is a call of any of the tools: its head, its arguments as JSON, and the tail.

    `head`, `tail`: what stands before and after the arguments, as Lark expressions.
    """
    rules = ["call: " + " | ".join(f"call_{index}" for index in range(len(tools)))]
    for index, tool in enumerate(tools):
        rules.append(f"call_{index}: {head(tool)} arguments_{index} {tail}")
        rules.append(f"arguments_{index}: {json_rule(arguments_schema(tool))}")
    return rules
