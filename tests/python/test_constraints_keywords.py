# ruff: noqa: E501, UP007, UP045 - tables of schemas and types, one a line, as people write them
"""What becomes of every keyword: what is enforced lets in valid values alone, what is loosened is named, and nothing of
real tools and classes is refused."""

from __future__ import annotations

import contextlib
import json
import os
import random
import warnings
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum, IntEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address
from pathlib import Path
from re import Pattern
from typing import Annotated, Any, Literal, Optional, Union
from uuid import UUID

import jsonschema
import pydantic
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field, TypeAdapter, create_model
from test_constraints import Speaker, speaker  # noqa: F401  # a fixture

from bee_integrations.constraints import JsonSchema
from bee_integrations.constraints.json_schema import read_schema, schema_text
from bee_integrations.constraints.pydantic_schema import class_schema
from bee_integrations.constraints.schema_rewrites import TREATMENT, table
from bee_integrations.errors import ConstraintError

EXAMPLES = int(os.environ.get("BEE_SCHEMA_EXAMPLES", "60"))
OBJECT = {"type": "object", "additionalProperties": False}
AB = {**OBJECT, "properties": {"a": {"enum": ["x", "y"]}, "b": {"type": "integer", "minimum": 0, "maximum": 99}}}


def values_of(speaker: Speaker, schema: Any, walks: int = 12) -> list[Any]:  # noqa: F811
    """Some values that the masks allow."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        grammar = speaker.compiler.compile(JsonSchema(schema))
    found = []
    for seed in range(walks):
        matcher = grammar.matcher()
        tokens = list(speaker.walk(matcher, random.Random(f"{seed}"), limit=40))
        with contextlib.suppress(ConstraintError):  # that a short end is found is no promise
            found.append(json.loads(speaker.text(tokens) + matcher.closing_text()))
    return found


def not_enforced(schema: Any) -> list[str]:
    return read_schema(schema_text(schema)).not_enforced


# Schemas that are enforced, with a value that is to be let in and one that is not.
ENFORCED: dict[str, tuple[Any, Any, Any]] = {
    "propertyNames that restrict nothing": ({"type": "object", "propertyNames": {"type": "string"}}, {"a": 1}, [1]),
    "propertyNames enum": (
        {"type": "object", "propertyNames": {"enum": ["low", "high"]}, "additionalProperties": {"type": "integer"}},
        {"high": 1},
        {"other": 1},
    ),
    "propertyNames by reference": (
        {"$defs": {"c": {"enum": ["r", "g"]}}, "type": "object", "propertyNames": {"$ref": "#/$defs/c"}},
        {"g": 1},
        {"b": 1},
    ),
    "propertyNames pattern": ({"type": "object", "propertyNames": {"pattern": "^x_"}}, {"x_1": 1}, {"y": 1}),
    "propertyNames length": ({"type": "object", "propertyNames": {"maxLength": 2}}, {"ab": 1}, {"abc": 1}),
    "propertyNames format": (
        {"type": "object", "propertyNames": {"format": "date"}, "additionalProperties": {"type": "null"}},
        {"2024-02-28": None},
        {"today": None},
    ),
    "propertyNames false": ({"type": "object", "propertyNames": False}, {}, {"a": 1}),
    "dependentRequired": ({**AB, "dependentRequired": {"a": ["b"]}}, {"a": "x", "b": 1}, {"a": "x"}),
    "dependencies": ({**AB, "dependencies": {"a": ["b"]}}, {"b": 1}, {"a": "x"}),
    "dependentSchemas": (
        {**AB, "dependentSchemas": {"a": {"properties": {"b": {"maximum": 5}}}}}, {"a": "x", "b": 5}, {"a": "x", "b": 9},
    ),
    "contains": ({"type": "array", "items": {"type": "integer"}, "contains": {"const": 7}}, [7, 1], [1, 2]),
    "contains twice": ({"type": "array", "contains": {"const": 7}, "minContains": 2}, [7, 7], [7]),
    "contains none": ({"type": "array", "items": {"enum": [1]}, "contains": {"const": 7}, "minContains": 0}, [1], [2]),
    "uniqueItems of an enum": ({"type": "array", "items": {"enum": ["a", "b"]}, "uniqueItems": True}, ["b", "a"], ["a", "a"]),
    "uniqueItems of many": (
        {"type": "array", "items": {"enum": list("abcdefgh")}, "uniqueItems": True, "minItems": 2}, ["a", "h"], ["a", "a"],
    ),
    "uniqueItems of one": ({"type": "array", "maxItems": 1, "uniqueItems": True}, ["a"], ["a", "b"]),
    "oneOf by required names": (
        {**AB, "oneOf": [{"required": ["a"]}, {"required": ["b"]}]}, {"b": 1}, {"a": "x", "b": 1},
    ),
    "not a type": ({"not": {"type": ["string", "object", "array"]}}, 1, "a"),
    "not in a union": ({"anyOf": [{"not": {}}, {"type": "integer"}]}, 3, "a"),
    "not values": ({"enum": ["a", "b", 1], "not": {"enum": ["b", 1.0]}}, "a", "b"),
    "not a name": ({**AB, "not": {"required": ["b"]}}, {"a": "x"}, {"b": 1}),
    "not false": ({"type": "integer", "not": False}, 1, "a"),
    "if over constants": (
        {**AB, "if": {"properties": {"a": {"const": "x"}}}, "then": {"required": ["b"]}},
        {"a": "x", "b": 1},
        {"a": "x"},
    ),
    "if and else": (
        {
            **AB,
            "required": ["a"],
            "if": {"properties": {"a": {"const": "x"}}, "required": ["a"]},
            "then": {"properties": {"b": {"maximum": 1}}},
            "else": {"properties": {"b": {"minimum": 50}}},
        },
        {"a": "y", "b": 60},
        {"a": "y", "b": 1},
    ),
    "if without effect": ({"type": "integer", "if": {"minimum": 3}}, 1, "a"),
    "if true": ({"if": True, "then": {"type": "integer"}}, 1, "a"),
    "unevaluatedProperties": ({"type": "object", "properties": {"a": {}}, "unevaluatedProperties": False}, {"a": 1}, {"b": 1}),
    "unevaluatedProperties over allOf": (
        {
            "type": "object",
            "allOf": [{"properties": {"a": {"type": "integer"}}}, {"$ref": "#/$defs/b"}],
            "$defs": {"b": {"properties": {"b": {"type": "null"}}}},
            "unevaluatedProperties": False,
        },
        {"a": 1, "b": None},
        {"c": 1},
    ),
    "unevaluatedItems": ({"type": "array", "prefixItems": [{"type": "null"}], "unevaluatedItems": False}, [None], [None, 1]),
    "draft-4 bounds": ({"type": "integer", "minimum": 3, "exclusiveMinimum": True}, 4, 3),
    "draft-4 bounds that are off": ({"type": "integer", "maximum": 3, "exclusiveMaximum": False}, 3, 4),
    "int64": ({"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1}, 9007199254740992, "a"),
    "uint64": ({"type": "integer", "minimum": 0, "maximum": 2**64 - 1}, 12345678901234567, -1),
    "multipleOf between bounds": ({"type": "integer", "multipleOf": 104729, "minimum": 0, "maximum": 10**6}, 209458, 5),
    "multipleOf of a power of ten": ({"type": "integer", "multipleOf": 1000000, "minimum": 0}, 3000000, 5),
    "formats of others": ({"type": "integer", "format": "int32"}, 7, "a"),
    "a format nobody knows": ({"type": "string", "format": "colour"}, "red", 3),
    "required of draft 3": ({**OBJECT, "properties": {"a": {"type": "integer", "required": True}}}, {"a": 1}, {"b": 1}),
    "anchors in constants": (
        {
            "$defs": {"a": {"const": {"$anchor": "x", "type": "null"}}, "b": {"$anchor": "x", "type": "string"}},
            "$ref": "#x",
        },
        "text",
        None,
    ),
    "a nested base": (
        {
            "$id": "http://h/a",
            "properties": {
                "x": {"$id": "http://h/b", "$ref": "#/$defs/t", "$defs": {"t": {"type": "string"}}},
            },
            "$defs": {"t": {"type": "integer"}},
            "type": "object",
            "required": ["x"],
        },
        {"x": "a"},
        {"x": 1},
    ),
    "an anchor is no key": (
        {"foo": {"type": "integer"}, "$defs": {"s": {"$dynamicAnchor": "foo", "type": "string"}}, "$ref": "#foo"}, "a", 1,
    ),
    "a reference by identifier": (
        {"$id": "http://h/a", "$defs": {"t": {"$id": "t", "type": "null"}}, "$ref": "http://h/t"}, None, 1,
    ),
    "$dynamicRef": ({"$defs": {"t": {"$dynamicAnchor": "t", "type": "null"}}, "$dynamicRef": "#t"}, None, 1),
    "a pattern that matches anywhere": ({"type": "string", "pattern": "^.+@.+\\..+$"}, "a@b.c", "ab"),
    "a pattern of digits": ({"type": "string", "pattern": r"^\d+\.\d+\.\d+\.\d+/\d+$"}, "10.0.0.0/8", "10.0.0.0"),
    "an optional pattern": (
        {**OBJECT, "properties": {"ssh": {"type": "string", "pattern": "^.+@.+$"}, "w": {"type": "boolean"}}, "required": ["w"]},
        {"ssh": "a@b", "w": True},
        {"ssh": "ab", "w": True},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ENFORCED)
def test_enforced(speaker: Speaker, name: str) -> None:  # noqa: F811
    schema, valid, invalid = ENFORCED[name]
    assert not_enforced(schema) == []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert speaker.takes(JsonSchema(schema), json.dumps(valid))
        assert speaker.takes(JsonSchema(schema, strict=True), json.dumps(valid))
    assert not speaker.takes(JsonSchema(schema), json.dumps(invalid))
    if "draft" not in name:
        validator = jsonschema.Draft202012Validator(schema)
        for value in values_of(speaker, schema):
            validator.validate(value)


LOOSENED: dict[str, tuple[Any, str, Any]] = {
    "not": ({"properties": {"a": {"not": {"minLength": 3}}}}, "/properties/a/not", {"a": "long enough"}),
    "contains": ({"type": "array", "prefixItems": [{}], "contains": {"const": 1}}, "/contains", [2]),
    "maxContains": ({"type": "array", "contains": {"const": 1}, "maxContains": 1}, "/maxContains", [1, 1]),
    "uniqueItems": ({"type": "array", "items": {"type": "integer"}, "uniqueItems": True}, "/uniqueItems", [1, 1]),
    "if": ({"type": "object", "if": {"minProperties": 2}, "then": False}, "/if", {"a": 1, "b": 2}),
    "oneOf": ({"properties": {"n": {"oneOf": [{"type": "integer"}, {"type": "number"}]}}}, "/properties/n/oneOf", {"n": 1}),
    "propertyNames": ({"type": "object", "propertyNames": {"not": {"const": "a"}}}, "/propertyNames", {"a": 1}),
    "unevaluatedProperties": (
        {"type": "object", "anyOf": [{"properties": {"a": {}}}, {}], "unevaluatedProperties": False},
        "/unevaluatedProperties",
        {"b": 1},
    ),
    "unevaluatedItems": (
        {"type": "array", "allOf": [{"prefixItems": [{}]}], "unevaluatedItems": False}, "/unevaluatedItems", [1, 2],
    ),
    "minProperties": ({"type": "object", "minProperties": 2}, "/minProperties", {"a": 1}),
    "look-around": ({"items": {"type": "string", "pattern": "a(?=b)"}}, "/items/pattern", ["c"]),
    "back-reference": ({"type": "string", "pattern": r"^(a)\1$"}, "/pattern", "c"),
    "multipleOf": ({"type": "integer", "multipleOf": 1299709}, "/multipleOf", 3),
    "format": ({"type": "string", "format": "json-pointer"}, "/format", "x"),
}  # fmt: skip


@pytest.mark.parametrize("name", LOOSENED)
def test_loosened(speaker: Speaker, name: str) -> None:  # noqa: F811
    schema, place, value = LOOSENED[name]
    assert not_enforced(schema) == [place]
    with pytest.raises(ConstraintError, match=place.rpartition("/")[0] or "the schema"):
        speaker.compiler.compile(JsonSchema(schema, strict=True))
    fresh = type(speaker.compiler)(speaker.tokenizer)
    with pytest.warns(UserWarning, match=place):
        grammar = fresh.compile(JsonSchema(schema))
    assert grammar.not_enforced == (place,)
    text = json.dumps(value)
    assert speaker.takes(JsonSchema(schema), text)
    if name not in ("format",):
        assert grammar.fault(text) is not None
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the same again is told by the metadata alone
        fresh.compile(JsonSchema(schema))
        fresh.compile_rules(f"start: %json {json.dumps(schema)}")


@pytest.mark.parametrize("count", [130, 900])
def test_many_optional_properties_in_an_optional_object(speaker: Speaker, count: int) -> None:  # noqa: F811
    rules = {**OBJECT, "properties": {f"p{number}": {"type": "string"} for number in range(count)}}
    schema = JsonSchema({**OBJECT, "properties": {"name": {"type": "string"}, "rules": rules}, "required": ["name"]})
    assert speaker.takes(schema, '{"name": "a", "rules": {"p3": "x", "p129": "y"}}')
    assert not speaker.takes(schema, '{"name": "a", "rules": {"p129": "x", "p3": "y"}}')


def test_the_table_names_every_keyword_and_stands_in_the_docs() -> None:
    words = " ".join(TREATMENT)
    for keyword in jsonschema.Draft202012Validator.VALIDATORS.keys() - {"$ref", "$dynamicRef"}:
        assert keyword in words, keyword
    page = Path(__file__).resolve().parents[2] / "docs" / "tools.md"
    assert table() in page.read_text(encoding="utf-8")


# ---- Pydantic ------------------------------------------------------------------------------------------------------


class Colour(Enum):
    RED = "red"
    GREEN = "green"


class Size(IntEnum):
    SMALL = 1
    LARGE = 2


class Point(BaseModel):
    x: int
    y: int = 0


class Tree(BaseModel):
    name: str
    children: list[Tree] = []


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: int = 9


class Dog(BaseModel):
    kind: Literal["dog"]
    friends: set[str] = set()


Words = Annotated[str, Field(pattern="^[a-z]+$")]
TYPES: list[Any] = [
    str, int, float, bool, None, bytes, Decimal, date, time, datetime, timedelta, UUID, complex, Pattern, Any, object,
    list, dict, set, frozenset, tuple, Colour, Size, Point, Tree, IPv4Address, IPv4Network, IPv6Address, Path,
    Optional[int], Union[int, str, None], list[str], list[list[int]], set[str], set[int], set[Colour], set[Literal["a", "b"]],
    frozenset[int], frozenset[Colour], tuple[int, str], tuple[int, ...], dict[str, int], dict[str, list[Point]],
    dict[Literal["low", "high"], int], dict[Colour, int], dict[date, int], dict[UUID, str], dict[int, str], dict[float, int],
    dict[bool, int], dict[Words, int], dict[IPv4Address, str], dict[Annotated[str, Field(min_length=1, max_length=8)], int],
    Literal["a", "b", 3, None], Annotated[int, Field(gt=0, le=10)], Annotated[int, Field(multiple_of=7)],
    Annotated[int, Field(ge=-(2**63), le=2**63 - 1)], Annotated[float, Field(gt=0, lt=1)],
    Annotated[Decimal, Field(max_digits=6, decimal_places=2)], Annotated[Decimal, Field(ge=0, le=100)],
    Annotated[str, Field(min_length=2, max_length=5)], Words, Annotated[list[int], Field(min_length=1, max_length=3)],
    Annotated[dict[str, int], Field(min_length=1)], Annotated[dict[str, int], Field(min_length=2)],
    Annotated[set[Colour], Field(min_length=1)], Annotated[list[Colour], Field(max_length=2)],
    Annotated[Cat | Dog, Field(discriminator="kind")], list[Annotated[Cat | Dog, Field(discriminator="kind")]],
    Union[Point, Tree], Union[Cat, Dog], Optional[Point], dict[str, int | list[str]], pydantic.NaiveDatetime,
    pydantic.AwareDatetime, pydantic.PastDate, pydantic.FutureDate, pydantic.PastDatetime, pydantic.FutureDatetime,
    pydantic.PositiveInt, pydantic.NegativeFloat, pydantic.NonNegativeInt, pydantic.StrictStr, pydantic.StrictInt,
    pydantic.SecretStr, pydantic.SecretBytes, pydantic.AnyUrl, pydantic.HttpUrl, pydantic.FileUrl, pydantic.PostgresDsn,
    pydantic.IPvAnyAddress, pydantic.IPvAnyNetwork, pydantic.ByteSize, pydantic.Json, pydantic.Json[list[int]],
    pydantic.Base64Bytes, pydantic.Base64Str, pydantic.Base64UrlStr, pydantic.UUID4, pydantic.UUID7, pydantic.FilePath,
    pydantic.JsonValue, pydantic.FiniteFloat,
]  # fmt: skip
MODELS = {f"{number} {shown}"[:60]: shown for number, shown in enumerate(TYPES)}
# What one random text of a class need not be, since no schema says it: of these the class refuses some.
UNSAID = (
    "Pattern", "complex", "Past", "Future", "Json", "Path", "Dsn", "Url", "IPv4Network", "bytes", "Bytes", "multiple",
    "<class 'set'>", "<class 'frozenset'>", "MinLen(min_length=2)", "ByteSize", "EncodedStr",
)  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_pydantic_types(speaker: Speaker, name: str) -> None:  # noqa: F811
    model = create_model("Answer", value=(MODELS[name], ...))
    for mode in ("validation", "serialization"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            speaker.compiler.compile(JsonSchema(model.model_json_schema(mode=mode)))  # type: ignore[arg-type]
    if any(word in str(MODELS[name]) for word in UNSAID):
        return
    for value in values_of(speaker, class_schema(model), walks=6):
        model.model_validate_json(json.dumps(value))


def test_the_types_are_many() -> None:
    assert len(MODELS) >= 97
    assert TypeAdapter(Decimal).json_schema() != class_schema(create_model("A", a=(Decimal, ...)))["properties"]["a"]


# ---- random schemas -------------------------------------------------------------------------------------------------

SCALARS = st.sampled_from(
    [{"type": "null"}, {"type": "boolean"}, {"enum": ["x", "y", 1]}, {"const": "x"}, {"type": "integer", "minimum": 0, "maximum": 5},
     {"type": "string", "maxLength": 3}, {}, True, {"not": {}}, {"not": {"type": "string"}}, {"type": ["integer", "null"]}]
)  # fmt: skip
NAMES = st.sampled_from(["a", "b", "c"])


@st.composite
def objects(draw: Any, inner: Any) -> Any:
    schema: dict[str, Any] = {"type": "object", "properties": draw(st.dictionaries(NAMES, inner, max_size=3))}
    if draw(st.booleans()):
        schema["additionalProperties"] = draw(st.sampled_from([False, {"type": "null"}]))
    extra = draw(
        st.sampled_from(["", "required", "names", "dependent", "if", "not", "oneOf", "unevaluated", "schemas"])
    )
    one, other = draw(NAMES), draw(NAMES)
    schema |= {
        "": {},
        "required": {"required": [one]},
        "names": {"propertyNames": draw(st.sampled_from([{"enum": ["a", "b"]}, {"pattern": "^[ab]"}, {"maxLength": 1}]))},
        "dependent": {"dependentRequired": {one: [other]}},
        "if": {"if": {"properties": {one: {"const": "x"}}}, "then": {"required": [other]}, "else": {"properties": {other: False}}},
        "not": {"not": {"required": [one]}},
        "oneOf": {"oneOf": [{"required": [one]}, {"required": [other]}]},
        "unevaluated": {"unevaluatedProperties": False, "allOf": [{"properties": {one: {}}}]},
        "schemas": {"dependentSchemas": {one: {"required": [other]}}},
    }[extra]  # fmt: skip
    return schema


@st.composite
def arrays(draw: Any, inner: Any) -> Any:
    schema: dict[str, Any] = {"type": "array", "items": draw(inner), "maxItems": 3}
    return schema | draw(
        st.sampled_from(
            [{}, {"uniqueItems": True}, {"contains": {"const": "x"}}, {"minItems": 1}, {"unevaluatedItems": False}]
        )
    )


SCHEMAS = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        objects(inner),
        arrays(inner),
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: {"anyOf": parts}),
        st.lists(inner, min_size=2, max_size=2).map(lambda parts: {"oneOf": parts}),
        st.lists(inner, min_size=2, max_size=2).map(lambda parts: {"allOf": parts}),
    ),
    max_leaves=5,
)


@settings(
    max_examples=EXAMPLES,
    phases=[Phase.generate],
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
@given(schema=SCHEMAS)
def test_random_schemas(speaker: Speaker, schema: Any) -> None:  # noqa: F811
    loosened = not_enforced(schema)
    try:
        values = values_of(speaker, schema, walks=4)
    except ConstraintError as error:
        if "admits" in str(error) or "nothing" in str(error) or "Unsatisfiable" in str(error):
            return
        values = []
    if not loosened:
        validator = jsonschema.Draft202012Validator(schema)
        for value in values:
            validator.validate(value)
