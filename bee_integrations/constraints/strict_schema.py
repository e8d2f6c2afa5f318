"""Schemas whose objects have no members but those that they list.

JSON schema allows any others, and a model that is held to a schema alone would make them up.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["closed"]

_ALTERNATIVES = frozenset({"$ref", "anyOf", "oneOf"})
_NAMED = frozenset({"$defs", "definitions", "patternProperties", "properties"})  # keywords with schemas by name
_VALUES = frozenset({"const", "default", "enum", "examples"})  # keywords with values, not schemas


def closed(schema: Any) -> Any:
    """The schema with objects that have no further members than those it lists; a model would only make them up.

    What it allows, the schema itself allows too. One that puts objects together from several schemas stays as it is,
    since none of its parts knows all members.
    """
    return schema if _combines(schema) else _closed(schema)


def _combines(schema: Any) -> bool:
    if isinstance(schema, list):
        return any(map(_combines, schema))
    if not isinstance(schema, Mapping):
        return False
    beside = not _ALTERNATIVES.isdisjoint(schema) and ("properties" in schema or "required" in schema)
    return "allOf" in schema or beside or any(map(_combines, schema.values()))


def _closed(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_closed(part) for part in schema]
    if not isinstance(schema, Mapping):
        return schema
    result: dict[str, Any] = {}
    for key, value in schema.items():
        if key in _NAMED and isinstance(value, Mapping):
            result[key] = {name: _closed(one) for name, one in value.items()}
        else:
            result[key] = value if key in _VALUES else _closed(value)
    if _lists_all(schema):
        result.setdefault("additionalProperties", False)
    return result


def _lists_all(schema: Mapping[str, Any]) -> bool:
    properties, required = schema.get("properties"), schema.get("required", ())
    if not isinstance(properties, Mapping) or not isinstance(required, list | tuple):
        return False
    return set(required) <= set(properties) and not schema.get("patternProperties")
