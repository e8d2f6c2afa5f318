"""Values that are written as nested tags: members of an object by their names, items of a list as `item`.

    ]<]minimax[>[<size>]<]minimax[>[<width>3]<]minimax[>[</width>]<]minimax[>[</size>

The sign before each tag ("namespace") tells them from text. What a schema leaves open is written as JSON.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from .argument_rules import json_rule
from .json_literals import json_of_literal
from .text_schema import possible_types, resolve, with_definitions
from .tool_format import Literal

__all__ = ["json_of_tags", "nested_rule"]

_MAX_DEPTH = 12
_PLAIN = frozenset({"additionalProperties", "description", "items", "maxItems", "minItems", "properties", "required",
                    "title", "type"})  # fmt: skip


# ---- reading ---------------------------------------------------------------------------------------------------------


def json_of_tags(text: str, namespace: str, schema: Any, root: Any) -> str | None:
    """The JSON of a value, the text between its tags; None where the tags do not close each other."""
    tokens = [token for token in re.split(f"({re.escape(namespace)}</?[^<>]+>)", text) if token]
    try:
        value, rest = _value(tokens, namespace, schema, root, 0)
    except ValueError:
        return None
    return None if rest else json.dumps(value, ensure_ascii=False)


def _value(tokens: list[str], namespace: str, schema: Any, root: Any, depth: int) -> tuple[Any, list[str]]:
    if depth > _MAX_DEPTH:
        raise ValueError("nested too deeply")
    opening, closing = f"{namespace}<", f"{namespace}</"
    before_closing = next((i for i, token in enumerate(tokens[:2]) if token.startswith(closing)), 2)
    if not any(token.startswith(opening) for token in tokens[:before_closing]):  # a leaf, which may be empty
        text = tokens.pop(0) if tokens and not tokens[0].startswith(closing) else ""
        return _leaf(text, schema, root), tokens
    members: list[tuple[str, Any]] = []
    while tokens and not tokens[0].startswith(closing):
        token = tokens.pop(0)
        if not token.startswith(opening):
            if token.strip():
                raise ValueError("text between tags")
            continue
        name = token[len(opening) : -1]
        inner, tokens = _value(tokens, namespace, _inner_schema(schema, root, name), root, depth + 1)
        if not tokens or tokens.pop(0) != f"{closing}{name}>":
            raise ValueError("a tag is not closed")
        members.append((name, inner))
    types = _types(schema, root)
    if all(name == "item" for name, _ in members) and ("array" in types or "object" not in types):
        return [inner for _, inner in members], tokens
    return dict(members), tokens


def _types(schema: Any, root: Any) -> frozenset[str]:
    types = possible_types(schema, root)
    return types if len(types) < 7 else frozenset()  # nothing is known


def _inner_schema(schema: Any, root: Any, name: str) -> Any:
    for one in _options(schema, root):
        if isinstance(one, Mapping) and name in one.get("properties", {}):
            return one["properties"][name]
        if isinstance(one, Mapping) and name == "item" and "items" in one:
            return one["items"]
    return True


def _options(schema: Any, root: Any) -> list[Any]:
    found = resolve(schema, root)
    if not isinstance(found, Mapping):
        return [found]
    return [found, *(resolve(one, root) for word in ("anyOf", "oneOf") for one in found.get(word, ()))]


def _is_text_or_null(schema: Any, root: Any) -> bool:
    """Any text, and null, which is then written as that word."""
    found = resolve(schema, root)
    if not isinstance(found, Mapping) or set(found) - {"anyOf", "type", "title", "description", "default"}:
        return False
    options = found.get(
        "anyOf", [{"type": kind} for kind in found["type"]] if isinstance(found.get("type"), list) else []
    )
    return sorted(json.dumps(option) for option in options) == ['{"type": "null"}', '{"type": "string"}']


def _leaf(text: str, schema: Any, root: Any) -> Any:
    types = possible_types(schema, root)
    if _is_text_or_null(schema, root):
        return None if text == "null" else text
    if types == {"string"}:
        return text
    if not text.strip():
        kinds: dict[str, Any] = {"null": None, "array": [], "object": {}}
        return next((value for kind, value in kinds.items() if kind in types), text)
    found = json_of_literal(text.strip())
    if found is not None:
        return json.loads(found)
    if "string" in types:
        return text
    raise ValueError("a value of another type")


# ---- grammars --------------------------------------------------------------------------------------------------------


def nested_rule(
    rule: str, schema: Any, root: Any, namespace: str, name: str, literal: Literal,
    text_rule: Callable[[str, Any, str], str], depth: int = 0,
) -> list[str]:  # fmt: skip
    """Rules of which the first is a value with the tag `name` that closes it.

    `text_rule(rule, schema, end)`: adds the rules of a text and what ends it, and returns an expression for them.
    """
    end = f"{namespace}</{name}>"
    found = resolve(schema, root)
    if possible_types(found, root) == {"string"}:
        return [f"{rule}: {text_rule(f'{rule}_text', found, end)}"]
    if _is_text_or_null(found, root):
        return [f"{rule}: {text_rule(f'{rule}_text', {'type': 'string'}, end)}"]
    plain = isinstance(found, Mapping) and set(found) <= _PLAIN and depth < _MAX_DEPTH
    if plain and found.get("type") == "object" and found.get("properties"):
        rules, parts = [], []
        for index, (key, inner) in enumerate(found["properties"].items()):
            member = f"{rule}_{index}"
            parts.append(member if key in found.get("required", ()) else f"{member}?")
            rules.append(f"{member}: {literal(f'{namespace}<{key}>')} {member}_in")
            rules += nested_rule(f"{member}_in", inner, root, namespace, key, literal, text_rule, depth + 1)
        return [f"{rule}: {' '.join(parts)} {literal(end)}", *rules]
    if plain and found.get("type") == "array" and "items" in found:
        low, high = found.get("minItems", 0), found.get("maxItems", "")
        rules = [f"{rule}_item: {literal(f'{namespace}<item>')} {rule}_item_in"]
        rules += nested_rule(f"{rule}_item_in", found["items"], root, namespace, "item", literal, text_rule, depth + 1)
        return [f"{rule}: {rule}_item{{{low},{high}}} {literal(end)}", *rules]
    empty = plain and found.get("type") == "object" and not found.get("required")  # no tags: no members
    return [
        f"{rule}: {rule}_json{'?' * empty} {literal(end)}",
        f"{rule}_json: {json_rule(with_definitions(schema, root))}",
    ]
