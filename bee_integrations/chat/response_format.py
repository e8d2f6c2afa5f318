"""`response_format`: what OpenAI's and other libraries' words for structured answers ask for.

    {"type": "text"}, {"type": "json_object"}, {"type": "json_schema", "json_schema": {"name": ..., "schema": {...}}}

are OpenAI's; llama.cpp and its kin write {"type": "json_object", "schema": {...}}, the Responses API {"type":
"json_schema", "name": ..., "schema": {...}}, Ollama "json" or the schema itself, and frameworks give a Pydantic class.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from ..constraints.compiler import Constraint, JsonSchema, json_object
from ..constraints.pydantic_schema import class_schema
from ..constraints.strict_schema import closed, with_ending_integers
from ..errors import ParameterError

__all__ = ["constraint_of", "in_openai_words", "wrapped_schema"]

_EXPECTED = (
    "{'type': 'text'}, {'type': 'json_object'}, {'type': 'json_schema', 'json_schema': {'name': ..., 'schema': {...}}},"
    " a JSON schema or a Pydantic class"
)
_JSON_TYPES = frozenset({"object", "array", "string", "number", "integer", "boolean", "null"})
_SCHEMA_WORDS = frozenset({"$ref", "$defs", "properties", "items", "enum", "const", "anyOf", "oneOf", "allOf"})


def in_openai_words(asked: Any) -> dict[str, Any] | None:
    """Whatever way the answer's form is asked for, as OpenAI's dictionary, which can be stored as JSON.

    Raises `ParameterError` for what is none of these ways.
    """
    if asked is None or asked == "" or asked == "text":
        return None
    if asked in ("json", "json_object"):
        return {"type": "json_object"}
    if isinstance(asked, type) and issubclass(asked, BaseModel):
        return _as_json_schema(asked.__name__, class_schema(asked))
    if not isinstance(asked, Mapping):
        raise _refused(asked)
    wrapped = wrapped_schema(asked)
    if wrapped is not None:
        name, schema, others = wrapped
        return _as_json_schema(name, schema, **others)
    if asked.get("type") in ("text", "json_object"):
        return dict(asked)
    if _is_schema(asked):
        return _as_json_schema(str(asked.get("title", "answer")), asked)
    raise _refused(asked)


def wrapped_schema(asked: Mapping[str, Any]) -> tuple[str, Mapping[str, Any], dict[str, Any]] | None:
    """(name, schema, what else the wrapper says: "strict", "description") of a schema inside one of the wrappers; None
    for what is no wrapper."""
    wrapper = asked.get("json_schema") if asked.get("type") == "json_schema" else None
    wrapper = asked if wrapper is None else wrapper
    schema = wrapper.get("schema") if isinstance(wrapper, Mapping) else None
    if not isinstance(schema, Mapping):
        return None
    others = {key: wrapper[key] for key in ("strict", "description") if wrapper.get(key) is not None}
    return str(wrapper.get("name") or schema.get("title") or "answer"), schema, others


def constraint_of(response_format: Mapping[str, Any] | None) -> Constraint | None:
    """The constraint that a dictionary of `in_openai_words` stands for."""
    kind = "text" if response_format is None else response_format["type"]
    if response_format is None or kind == "text":
        return None
    return (
        json_object()
        if kind == "json_object"
        else JsonSchema(
            with_ending_integers(response_format["json_schema"]["schema"]),
            strict=response_format["json_schema"].get("strict") is True,
        )
    )


def _as_json_schema(name: str, schema: Mapping[str, Any], **others: Any) -> dict[str, Any]:
    # Members that a schema does not list are not meant, in none of these libraries.
    return {"type": "json_schema", "json_schema": {"name": name, "schema": closed(schema), **others}}


def _is_schema(asked: Mapping[str, Any]) -> bool:
    kind = asked.get("type")
    known = all(isinstance(one, str) and one in _JSON_TYPES for one in (kind if isinstance(kind, list) else [kind]))
    return known or (kind is None and not _SCHEMA_WORDS.isdisjoint(asked))


def _refused(asked: Any) -> ParameterError:
    return ParameterError(f"response_format is {asked!r}; expected {_EXPECTED}")
