"""Schemas whose objects have no members but those that they list, and whose whole numbers end.

JSON schema allows any other members, and a model that is held to a schema alone would make them up; and it allows
numbers of any length, which a small model that has begun one may go on with for ever.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["closed", "with_ending_integers"]

_ALTERNATIVES = frozenset({"$ref", "anyOf", "oneOf"})
_NAMED = frozenset({"$defs", "definitions", "patternProperties", "properties"})  # keywords with schemas by name
_VALUES = frozenset({"const", "default", "enum", "examples"})  # keywords with values, not schemas
_PLAIN_INTEGER = frozenset({"type", "title", "description", "default", "examples", "deprecated"})
_LARGE = 9 * 10**18  # what 64 bits hold, but for the last few, which doubles do not hold exactly


def closed(schema: Any) -> Any:
    """The schema with objects that have no further members than those it lists; a model would only make them up.

    What it allows, the schema itself allows too. One that puts objects together from several schemas stays as it is,
    since none of its parts knows all members.
    """
    return schema if _combines(schema) else _changed(schema, _close)


def with_ending_integers(schema: Any) -> Any:
    """The schema with whole numbers of at most 19 digits where it says nothing about them but that."""
    return schema if _combines(schema) else _changed(schema, _bound)


def _combines(schema: Any) -> bool:
    if isinstance(schema, list):
        return any(map(_combines, schema))
    if not isinstance(schema, Mapping):
        return False
    beside = not _ALTERNATIVES.isdisjoint(schema) and ("properties" in schema or "required" in schema)
    return "allOf" in schema or beside or any(map(_combines, schema.values()))


def _changed(schema: Any, change: Callable[[dict[str, Any]], None]) -> Any:
    """A copy in which `change` was applied to every schema, the inner ones first."""
    if isinstance(schema, list):
        return [_changed(part, change) for part in schema]
    if not isinstance(schema, Mapping):
        return schema
    result: dict[str, Any] = {}
    for key, value in schema.items():
        if key in _NAMED and isinstance(value, Mapping):
            result[key] = {name: _changed(one, change) for name, one in value.items()}
        else:
            result[key] = value if key in _VALUES else _changed(value, change)
    change(result)
    return result


def _close(schema: dict[str, Any]) -> None:
    if _lists_all(schema):
        schema.setdefault("additionalProperties", False)


def _bound(schema: dict[str, Any]) -> None:
    if schema.get("type") == "integer" and schema.keys() <= _PLAIN_INTEGER:
        schema |= {"minimum": -_LARGE, "maximum": _LARGE}


def _lists_all(schema: Mapping[str, Any]) -> bool:
    properties, required = schema.get("properties"), schema.get("required", ())
    if not isinstance(properties, Mapping) or not isinstance(required, list | tuple):
        return False
    return set(required) <= set(properties) and not schema.get("patternProperties")
