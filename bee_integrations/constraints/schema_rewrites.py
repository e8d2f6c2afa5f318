"""Keywords that the grammar engine lacks, put as ones that it has.

Each rewriter takes such a keyword out of a schema, and puts in what means the same, or less: a few valid values may be
missing then, but no invalid one is let in. Where it finds no such thing, it says so, and the keyword is loosened or
refused. `TREATMENT` is the table of what becomes of every keyword.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .formats import NAME_PATTERNS

__all__ = ["TREATMENT", "TYPES", "rewritten", "table"]

TYPES = ("null", "boolean", "integer", "number", "string", "array", "object")

TREATMENT: dict[str, str] = {
    "type, enum, const": "enforced",
    "properties, required, additionalProperties": "enforced; properties in the schema's order",
    "patternProperties": "enforced, where no name fits two patterns",
    "minProperties, maxProperties": "enforced; more than one property can only be demanded by name",
    "propertyNames": "enforced: names, a pattern, a length, or a format; otherwise loosened",
    "dependentRequired, dependentSchemas, dependencies": "enforced",
    "items, prefixItems, additionalItems, minItems, maxItems": "enforced",
    "contains, minContains": "enforced: the first items fit; loosened beside prefixItems",
    "maxContains": "loosened",
    "uniqueItems": "enforced for at most one item, and for items of at most eight values; otherwise loosened",
    "minLength, maxLength, pattern": "enforced; a pattern with look-around or back-references is loosened",
    "format": "enforced where the engine knows it; others are annotations",
    "minimum, maximum, exclusiveMinimum, exclusiveMaximum": "enforced, within 64 bits",
    "multipleOf": "enforced up to 10,000, for powers of ten, and between near bounds; otherwise loosened",
    "anyOf, allOf, $ref": "enforced",
    "oneOf": "enforced where the alternatives exclude one another, or can be made to; otherwise loosened to anyOf",
    "not": "enforced for types, for values beside an enum, and for one name in required; otherwise loosened",
    "if, then, else": "enforced where the condition is the value of one property with few values; otherwise loosened",
    "unevaluatedProperties, unevaluatedItems": "enforced where additionalProperties, or items, would do; else loosened",
    "$dynamicRef, $recursiveRef": "as $ref",
    "title, description, default, examples, and all that is not listed": "annotations",
}
"""What becomes of each keyword, in words."""


def table() -> str:
    """The same as rows of Markdown."""
    return "\n".join(f"| {names} | {fate} |" for names, fate in TREATMENT.items())


_ANNOTATIONS = frozenset(
    {"title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "$comment"}
)
_MAX_VALUES = 400  # of a list that stands for a rule
_MAX_DIVISOR = 10_000
_IN_PLACE = ("allOf", "anyOf", "oneOf", "$ref", "if", "dependentSchemas", "not")

Schema = dict[str, Any]
Resolve = Callable[[Any], Any]
"""Follows references: what a schema refers to, or itself."""
Loosened = Callable[[str, str], None]
"""Told a keyword and why it cannot be enforced."""


def rewritten(node: Mapping[str, Any], resolve: Resolve, loosened: Loosened) -> Schema | bool:
    """A schema without the keywords that the engine lacks."""
    schema: Schema | bool = dict(node)
    for rewrite in _REWRITERS:
        if isinstance(schema, bool):
            return schema
        schema = rewrite(schema, resolve, loosened)
    return schema


def _allOf(schema: Schema, *parts: Any) -> Schema:  # noqa: N802
    return {**schema, "allOf": [*schema.get("allOf", ()), *parts]}


def _plain(schema: Any) -> Any:
    """The schema without annotations."""
    if not isinstance(schema, Mapping):
        return schema
    return {key: value for key, value in schema.items() if key not in _ANNOTATIONS}


def _types(schema: Mapping[str, Any]) -> tuple[str, ...]:
    given = schema.get("type", list(TYPES))
    return tuple(given) if isinstance(given, list) else (given,)


def _values(schema: Any, resolve: Resolve) -> list[Any] | None:
    """All values of a schema that lists them."""
    schema = resolve(schema)
    if not isinstance(schema, Mapping):
        return None
    if "const" in schema:
        return [schema["const"]]
    if isinstance(schema.get("enum"), list):
        return list(schema["enum"])
    return [False, True] if _types(schema) == ("boolean",) else [None] if _types(schema) == ("null",) else None


def _key(value: Any) -> str:
    """The same for equal values: 1 and 1.0 are, 1 and true are not."""

    def plain(part: Any) -> Any:
        if isinstance(part, float) and math.isfinite(part) and part == int(part):
            return int(part)
        if isinstance(part, list):
            return list(map(plain, part))
        return {name: plain(one) for name, one in part.items()} if isinstance(part, dict) else part

    return json.dumps(plain(value), sort_keys=True)


def _without(values: Sequence[Any], others: Sequence[Any]) -> list[Any]:
    left_out = set(map(_key, others))
    return [value for value in values if _key(value) not in left_out]


# ---- older spellings -------------------------------------------------------------------------------------------------


def _older(schema: Schema, resolve: Resolve, loosened: Loosened) -> Schema:
    for word, bound in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if isinstance(schema.get(word), bool) and schema.pop(word) and bound in schema:  # draft 4
            schema[word] = schema.pop(bound)
    if isinstance(schema.get("required"), bool):  # draft 3: of the property itself
        del schema["required"]
    for word in ("$dynamicRef", "$recursiveRef"):
        if isinstance(schema.get(word), str):
            schema = _allOf(schema, {"$ref": schema.pop(word)})
    dependencies = schema.pop("dependencies", None)
    if isinstance(dependencies, Mapping):
        lists = {name: needed for name, needed in dependencies.items() if isinstance(needed, list)}
        schema["dependentRequired"] = {**lists, **schema.get("dependentRequired", {})}
        schema["dependentSchemas"] = {
            **{name: part for name, part in dependencies.items() if name not in lists},
            **schema.get("dependentSchemas", {}),
        }
    return schema


# ---- objects ---------------------------------------------------------------------------------------------------------


def _dependent(schema: Schema, resolve: Resolve, loosened: Loosened) -> Schema:
    needed = schema.pop("dependentRequired", {})
    schemas = schema.pop("dependentSchemas", {})
    if not isinstance(needed, Mapping) or not isinstance(schemas, Mapping):
        return schema
    rules = [(name, {"required": list(names)}) for name, names in needed.items() if names]
    rules += [(name, part) for name, part in schemas.items() if _plain(part) not in (True, {})]
    for name, part in rules:
        if name in schema.get("required", ()):
            schema = _allOf(schema, part)
        elif name in schema.get("properties", {}) or schema.get("additionalProperties", True) is not False:
            schema = _allOf(schema, {"anyOf": [{"properties": {name: False}}, {"allOf": [{"required": [name]}, part]}]})
    return schema


def _property_names(schema: Schema, resolve: Resolve, loosened: Loosened) -> Schema:
    if "propertyNames" not in schema:
        return schema
    names = _plain(resolve(schema.pop("propertyNames")))
    if names is False:
        return _allOf(schema, {"maxProperties": 0})
    if names is True or not set(names) - {"type"}:
        if names is True or "string" in _types(names):
            return schema
        return _allOf(schema, {"maxProperties": 0})
    rest = schema.get("additionalProperties", True)
    properties = schema.get("properties", {})
    if "patternProperties" in schema or not isinstance(properties, Mapping):
        loosened("propertyNames", "stands beside 'patternProperties'")
        return schema
    values = _values(names, resolve)
    if values is not None:
        listed = {name: properties.get(name, rest) for name in values if isinstance(name, str)}
        return {**schema, "properties": listed, "additionalProperties": False}
    pattern = _pattern_of_names(names)
    if pattern is None:
        loosened("propertyNames", "is not a list of names, a pattern or a length")
        return schema
    kept = {name: part if re.search(pattern, name) else False for name, part in properties.items()}
    # A name in `properties` is none of the pattern's to the engine.
    return {**schema, "properties": kept, "patternProperties": {pattern: rest}, "additionalProperties": False}


def _pattern_of_names(names: Schema) -> str | None:
    words = set(names) - {"type"}
    if words == {"pattern"} and isinstance(names["pattern"], str):
        try:
            re.compile(names["pattern"])
        except re.error:
            return None
        return str(names["pattern"])
    if words and words <= {"minLength", "maxLength"}:
        most = names.get("maxLength", "")
        return f"^[^\\x00-\\x1f]{{{names.get('minLength', 0)},{most}}}$"
    return NAME_PATTERNS.get(names["format"]) if words == {"format"} else None


def _unevaluated(schema: Schema, resolve: Resolve, loosened: Loosened) -> Schema:
    properties = schema.pop("unevaluatedProperties", True)
    if _plain(properties) not in (True, {}) and "additionalProperties" not in schema:
        named = _named_everywhere(schema, resolve, 8)
        if named is None:
            loosened("unevaluatedProperties", "depends on which parts of the schema a value fits")
        else:
            listed = {name: True for name in named if name not in schema.get("properties", {})}
            schema["properties"] = {**schema.get("properties", {}), **listed}
            schema["additionalProperties"] = properties
    items = schema.pop("unevaluatedItems", True)
    if _plain(items) not in (True, {}) and "items" not in schema:
        if any(word in schema for word in (*_IN_PLACE, "contains")):
            loosened("unevaluatedItems", "depends on which parts of the schema a value fits")
        else:
            schema["items"] = items
    return schema


def _named_everywhere(schema: Any, resolve: Resolve, depth: int) -> list[str] | None:
    """The properties that a schema and the parts which every value of it fits name; None where that is not plain."""
    if not isinstance(schema, Mapping) or not depth:
        return [] if schema is True else None
    if any(word in schema for word in ("anyOf", "oneOf", "if", "dependentSchemas", "patternProperties")):
        return None
    if depth < 8 and schema.get("additionalProperties", True) is not True:
        return None
    names = list(schema.get("properties", {}))
    parts = list(schema.get("allOf", ()))
    if "$ref" in schema:
        parts.append(resolve({"$ref": schema["$ref"]}))
    for part in parts:
        inner = _named_everywhere(part, resolve, depth - 1)
        if inner is None:
            return None
        names += inner
    return names


# ---- arrays ----------------------------------------------------------------------------------------------------------


def _contains(schema: Schema, resolve: Resolve, loosened: Loosened) -> Schema:
    least, most = schema.pop("minContains", 1), schema.pop("maxContains", None)
    if "contains" not in schema:
        return schema
    part = schema.pop("contains")
    if most is not None:
        loosened("maxContains", "is a count that the grammar engine does not keep")
    if least == 0:
        return schema
    if "prefixItems" in schema or isinstance(schema.get("items"), list):
        loosened("contains", "stands beside a list of items")
        return schema
    first = {"allOf": [part, schema["items"]]} if "items" in schema else part
    if _types(schema) != ("array",) and "type" not in schema:
        return _allOf(schema, {"anyOf": [
            {"type": [kind for kind in TYPES if kind != "array"]},
            {"type": "array", "prefixItems": [first] * least, "minItems": least},
        ]})  # fmt: skip
    return {**schema, "prefixItems": [first] * least, "minItems": max(least, schema.get("minItems", 0))}


def _unique(schema: Schema, resolve: Resolve, loosened: Loosened) -> Schema | bool:
    if schema.pop("uniqueItems", False) is not True or schema.get("maxItems", 2) <= 1:
        return schema
    if "array" not in _types(schema):
        return schema
    values = _values(schema.get("items", True), resolve) if "prefixItems" not in schema else None
    least, most = schema.get("minItems", 0), schema.get("maxItems", math.inf)
    if values is not None:
        values = list({_key(value): value for value in values}.values())
        sizes = [size for size in range(len(values) + 1) if least <= size <= most]
        for ordered in (itertools.permutations, itertools.combinations):
            if sum(_count(ordered, len(values), size) for size in sizes) <= _MAX_VALUES:
                lists = [list(chosen) for size in sizes for chosen in ordered(values, size)]
                kept = {key: value for key, value in schema.items() if key not in ("items", "minItems", "maxItems")}
                others = [kind for kind in _types(schema) if kind != "array"]
                if not lists:
                    return {**kept, "type": others} if others else False
                if not others:
                    return {**kept, "type": "array", "enum": lists}
                return _allOf(kept, {"anyOf": [{"enum": lists}, {"type": others}]})
    loosened("uniqueItems", "items would have to be compared while they are written")
    return schema


def _count(ordered: Any, n: int, size: int) -> int:
    return math.perm(n, size) if ordered is itertools.permutations else math.comb(n, size)


# ---- combinations ----------------------------------------------------------------------------------------------------


def _negation(schema: Schema, resolve: Resolve, loosened: Loosened) -> Schema | bool:
    if "not" not in schema:
        return schema
    part = _plain(resolve(schema.pop("not")))
    if part in (True, {}):
        return False
    if part is False:
        return schema
    words = set(part)
    values = _values(part, resolve) if words <= {"const", "enum"} or words == {"type"} else None
    own = _values(schema, resolve)
    if values is not None and own is not None:
        kept = _without(own, values)
        schema.pop("const", None)
        return {**schema, "enum": kept} if kept else False
    if words == {"type"}:
        left = [kind for kind in _types(schema) if kind not in _types(part)]
        if "number" in _types(part):
            left = [kind for kind in left if kind != "integer"]
        if "integer" not in _types(part) or not {"number"} & set(left):
            return {**schema, "type": left} if left else False
    absent = part.get("required", []) if words <= {"required", "type"} and "object" in _types(part) else []
    if len(absent) == 1 and _types(schema) == ("object",):
        return _allOf(schema, {"properties": {absent[0]: False}})
    loosened("not", "excludes more than types or listed values")
    return schema


def _condition(schema: Schema, resolve: Resolve, loosened: Loosened) -> Schema:
    condition = schema.pop("if", None)
    then, otherwise = schema.pop("then", True), schema.pop("else", True)
    if condition is None or (_plain(then) in (True, {}) and _plain(otherwise) in (True, {})):
        return schema
    plain = _plain(resolve(condition))
    if plain in (True, {}) or plain is False:
        return _allOf(schema, otherwise if plain is False else then)
    branches = _branches(schema, plain, resolve)
    if branches is None:
        loosened("if", "the condition is not the value of one property with few values")
        return schema
    fits, others = branches
    return _allOf(schema, {"anyOf": [{"allOf": [fits, then]}, {"allOf": [others, otherwise]}]})


def _branches(schema: Schema, condition: Any, resolve: Resolve) -> tuple[Schema, Schema] | None:
    """What fits a condition, and what does not."""
    if not isinstance(condition, Mapping) or _types(schema) != ("object",):
        return None
    if not set(condition) <= {"type", "properties", "required"} or "object" not in _types(condition):
        return None
    tested, needed = condition.get("properties", {}), condition.get("required", [])
    if not tested and len(needed) == 1:
        return {"required": list(needed)}, {"properties": {needed[0]: False}}
    if len(tested) != 1 or not set(needed) <= set(tested):
        return None
    ((name, part),) = tested.items()
    wanted = _values(part, resolve)
    own = _values(schema.get("properties", {}).get(name, True), resolve)
    if wanted is None or own is None:
        return None
    rest = _without(own, wanted)
    kept = _without(own, rest)
    inside: Any = {"enum": kept} if kept else False
    outside: Any = {"enum": rest} if rest else False
    must = {"required": [name]}
    if needed:
        return {"properties": {name: inside}, **must}, {"properties": {name: outside}}
    return {"properties": {name: inside}}, {"properties": {name: outside}, **must}


def _one_of(schema: Schema, resolve: Resolve, loosened: Loosened) -> Schema:
    """Alternatives of which each needs a property that the other does not exclude one another once these are
    forbidden."""
    options = schema.get("oneOf")
    if not isinstance(options, list) or not 1 < len(options) <= 32:
        return schema
    plain = [resolve(option) for option in options]
    if not all(isinstance(option, Mapping) and isinstance(option.get("required", []), list) for option in plain):
        return schema
    needed = [set(option.get("required", ())) for option in plain]
    if not any(needed):
        return schema
    object_only = _types(schema) == ("object",) or all(_types(option) == ("object",) for option in plain)
    if not object_only:
        return schema
    forbidden: list[set[str]] = [set() for _ in options]
    for one, other in itertools.combinations(range(len(options)), 2):
        if _differ(plain[one], plain[other], resolve):
            continue
        for here, there in ((one, other), (other, one)):
            lacking = needed[there] - needed[here]
            if not lacking:
                return schema
            forbidden[here].add(min(lacking))
    changed = [
        {"allOf": [option, {"properties": dict.fromkeys(sorted(names), False)}]} if names else option
        for option, names in zip(options, forbidden, strict=True)
    ]
    return _allOf({key: value for key, value in schema.items() if key != "oneOf"}, {"anyOf": changed})


def _differ(left: Mapping[str, Any], right: Mapping[str, Any], resolve: Resolve) -> bool:
    """Whether a property that both need has other values in each."""
    for name in set(left.get("required", ())) & set(right.get("required", ())):
        ours = _values(left.get("properties", {}).get(name, True), resolve)
        theirs = _values(right.get("properties", {}).get(name, True), resolve)
        if ours is not None and theirs is not None and len(_without(ours, theirs)) == len(ours):
            return True
    return False


# ---- numbers ---------------------------------------------------------------------------------------------------------


def _multiple(schema: Schema, resolve: Resolve, loosened: Loosened) -> Schema:
    divisor = schema.get("multipleOf")
    if isinstance(divisor, bool) or not isinstance(divisor, (int, float)) or not divisor > 0 or divisor == math.inf:
        return schema
    digits = re.sub(r"e[+-]?\d+$", "", repr(divisor)).replace(".", "").strip("0")
    if int(digits or 0) <= _MAX_DIVISOR and len(repr(divisor)) <= 12:
        return schema
    low = schema.get("minimum", schema.get("exclusiveMinimum"))
    high = schema.get("maximum", schema.get("exclusiveMaximum"))
    if isinstance(divisor, int) and isinstance(low, (int, float)) and isinstance(high, (int, float)):
        first, last = math.ceil(low / divisor), math.floor(high / divisor)
        if last - first < _MAX_VALUES and set(_types(schema)) <= {"integer", "number"}:
            numbers = [divisor * count for count in range(first, last + 1)]
            numbers = [n for n in numbers if abs(n) < 2**53 and low <= n <= high]
            numbers = [n for n in numbers if n not in (schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum"))]
            kept = {key: value for key, value in schema.items() if key != "multipleOf"}
            return {**kept, "enum": numbers} if numbers and "enum" not in kept and "const" not in kept else schema
    del schema["multipleOf"]
    loosened("multipleOf", "the divisor has too many digits")
    return schema


_REWRITERS = (
    _older,
    _negation,
    _condition,
    _dependent,
    _unevaluated,
    _property_names,
    _contains,
    _unique,
    _one_of,
    _multiple,
)
