"""Which constraints the grammar engine surely compiles in little time and memory, so that they need no trial.

Short regular expressions that repeat little, small schemas without intersections and divisors, rules of literals and
names: the engine's work on them grows with their size. All else is tried in a helper process first, at the cost of
compiling it twice.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["is_harmless_regex", "is_harmless_rules", "is_harmless_schema", "may_force_for_ever"]

_MAX_PATTERN = 200  # characters, of all patterns together
_MAX_REPEATED = 64  # {64}
_MAX_SCHEMAS = 500
_MAX_VALUES = 2_000  # constants
_MAX_COUNT = 1_000  # of items and characters
_MAX_DIVISOR = 1_000
_MAX_RULES = 20_000  # characters

_STRING = r'"(?:[^"\\\n]|\\.)*"i?'
_REGEX = r"/(?:[^/\\\n]|\\.)+/[imslux]*"
_REMARK = r"(?://|#)[^\n]*"


def is_harmless_regex(*patterns: str) -> bool:
    """Whether regular expressions are, together."""
    text = "".join(patterns)
    counts = [int(count) for count in re.findall(r"[{,]([0-9]{1,9})", text)]
    return len(text) <= _MAX_PATTERN and text.count("{") <= 4 and max(counts, default=0) <= _MAX_REPEATED


def is_harmless_schema(schema: Any) -> bool:
    """Whether a schema, in the form that the engine gets, is."""
    nodes = []
    for node in _nodes(schema):
        nodes.append(node)
        if len(nodes) > _MAX_SCHEMAS or not _is_small(node):
            return False
    patterns = [text for node in nodes for text in (node.get("pattern", ""), *node.get("patternProperties", ()))]
    values = sum(len(node.get("enum", ())) for node in nodes)
    return values <= _MAX_VALUES and is_harmless_regex(*patterns)


def _is_small(node: Mapping[str, Any]) -> bool:
    counts = ("minItems", "maxItems", "minProperties", "maxProperties", "minLength", "maxLength")
    if max((node.get(name, 0) for name in counts), default=0) > _MAX_COUNT or len(str(node.get("const", ""))) > 10_000:
        return False
    divisor = node.get("multipleOf", 1)
    if divisor > _MAX_DIVISOR or len(str(divisor)) > 6:
        return False
    # An intersection of unions is a product.
    unions = sum(key in node for key in ("anyOf", "oneOf"))
    return "allOf" not in node and unions + ("$ref" in node) <= 1


def _nodes(node: Any) -> Iterator[Mapping[str, Any]]:
    if not isinstance(node, Mapping):
        return
    yield node
    for key, value in node.items():
        if key in ("items", "additionalProperties"):
            yield from _nodes(value)
        elif key in ("properties", "patternProperties", "$defs"):
            for part in value.values():
                yield from _nodes(part)
        elif key in ("prefixItems", "allOf", "anyOf", "oneOf"):
            for part in value:
                yield from _nodes(part)


def is_harmless_rules(lark: str) -> bool:
    """Whether rules in Lark, schemas aside, are: literals, names, short regular expressions, and what combines them."""
    if len(lark) > _MAX_RULES:
        return False
    regexes = [match[0] for match in re.finditer(f"{_STRING}|{_REMARK}|{_REGEX}", lark) if match[0].startswith("/")]
    rest = re.sub(rf"{_STRING}|{_REMARK}|{_REGEX}|<[^<>\n]*>", " ", lark)
    return re.fullmatch(r"[\w\s:|()\[\]?*+!-]*", rest) is not None and is_harmless_regex(*regexes)


def may_force_for_ever(lark: str) -> bool:
    """Whether a terminal of rules in Lark may repeat a text without an alternative, as in `/1+/ /1+/`: the first takes
    all, so nothing but a further 1 may ever follow, and the engine would look ahead without an end.

    Whatever repeats is to be a class of several characters, or of all; what else it may be counts as dangerous.
    """
    several = r"\[\^?[^\]\\]-[^\]]*\]|\[\^[^\]]*\]|\\[dwsDWSpP](?:\{\w+\})?|\(\?s:\.\)|\."
    for match in re.finditer(f"{_STRING}|{_REMARK}|{_REGEX}", lark):
        if match[0].startswith("/") and not match[0].startswith("//"):
            free = re.sub(rf"(?:{several})(?:[*+]|\{{\d*,?\d*\}})\??", "", match[0])
            if re.search(r"(?<!\\)(?:[*+]|\{\d*,\})", free):
                return True
    rest = re.sub(rf"{_STRING}|{_REMARK}|{_REGEX}|<[^<>\n]*>", '""', lark)
    terminals = re.findall(r"^\s*[A-Z_][A-Z0-9_]*[^:\n]*:(.*(?:\n\s+\|.*)*)", rest, flags=re.MULTILINE)
    return "%regex" in rest or "%lark" in rest or any(re.search(r"[*+&~{]", body) for body in terminals)
