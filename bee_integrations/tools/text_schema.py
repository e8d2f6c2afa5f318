"""JSON schemas of texts that are written without quotes, as terminals of llguidance's Lark dialect."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import unquote

__all__ = ["possible_types", "resolve", "text_terminal", "with_definitions"]

_ANY = "/(?s:.*)/"
_NEVER = "/[a&&b]/"
_TYPES = frozenset({"array", "boolean", "integer", "null", "number", "object", "string"})
_ROOT = "whole"
_MAX_DEPTH = 32

_DAY = (
    "[1-9][0-9]{3}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)"
    "|02-(?:0[1-9]|1[0-9]|2[0-8]))"
)
_TIME = r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]{1,6})?(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
_BYTE = "(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_LABEL = "[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_HOST = rf"{_LABEL}(?:\.{_LABEL})*"
# Texts that are certainly of a format, though not all of them. Other formats are notes, as JSON schema has it.
_FORMATS = {
    "date": _DAY,
    "time": _TIME,
    "date-time": f"{_DAY}T{_TIME}",
    "duration": "P(?:[0-9]+[YMWD]|T[0-9]+[HMS]|[0-9]+DT[0-9]+[HMS])",
    "email": rf"[A-Za-z0-9_+-]+(?:\.[A-Za-z0-9_+-]+)*@{_HOST}",
    "hostname": _HOST,
    "ipv4": rf"{_BYTE}(?:\.{_BYTE}){{3}}",
    "ipv6": "(?:[0-9A-Fa-f]{1,4}:){7}[0-9A-Fa-f]{1,4}",
    "uri": r"[A-Za-z][A-Za-z0-9+.-]*:[A-Za-z0-9._~:/?#@!$&'()*+,;=-]+",
    "uuid": "[0-9A-Fa-f]{8}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{12}",
}


def resolve(schema: Any, root: Any) -> Any:
    """What a schema that is a reference refers to, in the document `root`; other schemas as they are.

    Raises `ValueError` for references that lead out of the document, nowhere, or in a circle.
    """
    for _ in range(_MAX_DEPTH):
        if not isinstance(schema, Mapping) or "$ref" not in schema:
            return schema
        schema = _at(schema["$ref"], root)
    raise ValueError(f"the reference {schema.get('$ref')!r} leads in a circle")


def _at(reference: Any, root: Any) -> Any:
    if not isinstance(reference, str) or not (reference == "#" or reference.startswith("#/")):
        raise ValueError(f"the reference {reference!r} does not point into the schema")
    found = root
    for part in reference.split("/")[1:]:
        key = unquote(part).replace("~1", "/").replace("~0", "~")
        try:
            found = found[int(key)] if isinstance(found, Sequence) else found[key]
        except (KeyError, IndexError, ValueError, TypeError):
            raise ValueError(f"the reference {reference!r} leads nowhere") from None
    return found


def possible_types(schema: Any, root: Any, depth: int = 0) -> frozenset[str]:
    """The types of the values that a schema may allow; at least those that it does.

    Raises `ValueError` for references that lead nowhere.
    """
    if depth > _MAX_DEPTH or schema is True:
        return _TYPES
    if not isinstance(schema, Mapping):
        return frozenset()
    types = _TYPES
    if "$ref" in schema:
        types &= possible_types(_at(schema["$ref"], root), root, depth + 1)
    if "type" in schema:
        given = schema["type"]
        types &= frozenset([given] if isinstance(given, str) else given)
    if "const" in schema:
        types &= {_type_of(schema["const"])}
    if "enum" in schema:
        types &= frozenset(map(_type_of, schema["enum"]))
    for word in ("anyOf", "oneOf"):
        if word in schema:
            types &= frozenset().union(*(possible_types(option, root, depth + 1) for option in schema[word]))
    for part in schema.get("allOf", ()):
        types &= possible_types(part, root, depth + 1)
    return types


def _type_of(value: Any) -> str:
    if isinstance(value, bool):
        return "boolean"
    names = {str: "string", int: "integer", float: "number", type(None): "null", list: "array", tuple: "array"}
    return names.get(type(value), "object")


def with_definitions(schema: Any, root: Any) -> Any:
    """A part of the schema `root` as a document of its own, in which references still find what they refer to."""
    if "$ref" not in json.dumps(schema):
        return schema
    moved = _moved(schema)
    return {**moved, "$defs": {**moved.get("$defs", {}), _ROOT: _moved(root)}}


def _moved(schema: Any) -> Any:
    if isinstance(schema, Mapping):
        return {
            key: f"#/$defs/{_ROOT}{value[1:]}"
            if key == "$ref" and isinstance(value, str) and value.startswith("#")
            else (value if key in ("const", "enum") and not isinstance(value, Mapping) else _moved(value))
            for key, value in schema.items()
        }
    if isinstance(schema, (list, tuple)):
        return [_moved(item) for item in schema]
    return schema


def text_terminal(schema: Any, root: Any) -> str | None:
    """A Lark expression for the texts that a schema allows, or None where it allows every text.

    Raises `ValueError` for what cannot be put into a regular expression.
    """
    parts = list(_parts(schema, root, 0))
    return None if not parts else " & ".join(parts) if len(parts) == 1 else " & ".join(f"({part})" for part in parts)


def _terminal(schema: Any, root: Any, depth: int) -> str:
    parts = [f"({part})" for part in _parts(schema, root, depth)]
    return " & ".join(parts or [_ANY])


def _parts(schema: Any, root: Any, depth: int) -> Iterator[str]:
    """Expressions that a text has to match, all of them."""
    if depth > _MAX_DEPTH:
        raise ValueError("its references are nested too deeply")
    if not isinstance(schema, Mapping):
        if schema is not True:
            yield _NEVER
        return
    if "$ref" in schema:
        yield from _parts(_at(schema["$ref"], root), root, depth + 1)
    given = schema.get("type", "string")
    if given != "string" and "string" not in given:
        yield _NEVER
    for word in ("const", "enum"):
        if word in schema:
            members = [schema[word]] if word == "const" else schema[word]
            yield _any_of(json.dumps(member) for member in members if isinstance(member, str))
    if "minLength" in schema or "maxLength" in schema:
        yield f"/(?s:.){{{int(schema.get('minLength', 0))},{schema.get('maxLength', '')}}}/"
    if "pattern" in schema:
        yield _pattern(schema["pattern"])
    if schema.get("format") in _FORMATS:
        yield _regex(_FORMATS[schema["format"]], use_ascii="d")
    yield from _applied(schema, root, depth + 1)


def _applied(schema: Mapping[str, Any], root: Any, depth: int) -> Iterator[str]:
    for part in schema.get("allOf", ()):
        yield from _parts(part, root, depth)
    if "anyOf" in schema:
        yield _any_of(_terminal(option, root, depth) for option in schema["anyOf"])
    if "oneOf" in schema:
        options = [f"({_terminal(option, root, depth)})" for option in schema["oneOf"]]
        yield _any_of(
            " & ".join([option, *(f"~{other}" for other in options[:at] + options[at + 1 :])])
            for at, option in enumerate(options)
        )
    if "not" in schema:
        yield f"{_ANY} & ~({_terminal(schema['not'], root, depth)})"
    for word in ("if", "dependentSchemas"):
        if word in schema:
            raise ValueError(f"{word!r} cannot be kept to in a text")


def _any_of(options: Iterator[str]) -> str:
    return " | ".join(f"({option})" for option in options) or _NEVER


def _pattern(pattern: str) -> str:
    """A pattern matches anywhere in a text, unless it is anchored."""
    anchors = list(_bare(pattern, "^$"))
    begins, ends = pattern.startswith("^"), bool(anchors) and pattern.endswith("$") and anchors[-1] == len(pattern) - 1
    if len(anchors) != begins + ends or (anchors and any(True for _ in _bare(pattern, "|", top=True))):
        raise ValueError(f"the pattern {pattern!r} has anchors inside")
    inner = pattern[1 if begins else 0 : len(pattern) - 1 if ends else len(pattern)]
    whole = f"{'' if begins else '(?s:.*)'}(?:{inner}){'' if ends else '(?s:.*)'}"
    return _regex(whole, use_ascii="dw")


def _bare(pattern: str, characters: str, *, top: bool = False) -> Iterator[int]:
    """Where such characters stand outside of escapes and classes; with `top`, also outside of groups."""
    depth, in_class, escaped = 0, False, False
    for at, character in enumerate(pattern):
        if escaped or character == "\\":
            escaped = not escaped
        elif in_class:
            in_class = character != "]"
        elif character == "[":
            in_class = True
        elif character in characters and not (top and depth):
            yield at
        else:
            depth += (character == "(") - (character == ")")


def _regex(pattern: str, *, use_ascii: str) -> str:
    from llguidance import regex_to_lark  # loaded when a grammar is first needed

    return f"/{regex_to_lark(pattern, use_ascii)}/"
