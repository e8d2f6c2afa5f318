"""A corpus of JSON schemas that constrained generation supports, by name."""

from __future__ import annotations

from datetime import date, datetime
from enum import Enum
from typing import Any, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

Schema = dict[str, Any]


def an_object(**properties: Any) -> Schema:
    """An object that has exactly these properties."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


TEXT: Schema = {"type": "string", "maxLength": 20}
WHOLE: Schema = {"type": "integer", "minimum": 0, "maximum": 999}


# ---- written by Pydantic -----------------------------------------------------------------------------


class Colour(Enum):
    RED = "red"
    GREEN = "green"


class Address(BaseModel):
    street: str = Field(max_length=20)
    number: int = Field(ge=1, le=500)
    postcode: str = Field(pattern=r"^\d{5}$")


class Person(BaseModel):
    name: str = Field(max_length=20)
    born: date
    address: Address
    nickname: str | None = None
    tags: list[str] = Field(default_factory=list, max_length=3)


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: int = Field(ge=0, le=9)


class Dog(BaseModel):
    kind: Literal["dog"]
    breed: Colour


class Kennel(BaseModel):
    model_config = ConfigDict(extra="forbid")
    pet: Cat | Dog = Field(discriminator="kind")
    since: datetime
    chip: UUID


class Tree(BaseModel):
    value: int = Field(ge=0, le=9)
    children: list[Tree] = Field(default_factory=list, max_length=2)


class Order(BaseModel):
    size: tuple[int, int]
    price: float = Field(gt=0, lt=100)
    stock: dict[str, int] = Field(max_length=3)
    note: str | int | None
    paid: bool = False


PYDANTIC: dict[str, Schema] = {
    f"pydantic {model.__name__.lower()}": model.model_json_schema() for model in (Address, Person, Kennel, Tree, Order)
}

# ---- single values -----------------------------------------------------------------------------------

VALUES: dict[str, Schema] = {
    "null": {"type": "null"},
    "boolean": {"type": "boolean"},
    "string": {"type": "string"},
    "integer": {"type": "integer"},
    "number": {"type": "number"},
    "integer with bounds": {"type": "integer", "minimum": -5, "maximum": 120},
    "integer with open bounds": {"type": "integer", "exclusiveMinimum": 0, "exclusiveMaximum": 10},
    "integer that is a multiple": {"type": "integer", "multipleOf": 5, "minimum": 5, "maximum": 95},
    "number with bounds": {"type": "number", "minimum": -1.5, "maximum": 2.25},
    "number with open bounds": {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
    "number that is a multiple": {"type": "number", "multipleOf": 0.25, "minimum": 0, "maximum": 10},
    "large bounds": {"type": "integer", "minimum": 2**53 + 1, "maximum": 2**53 + 9},
    "string with length": {"type": "string", "minLength": 2, "maxLength": 8},
    "string of one character": {"type": "string", "minLength": 1, "maxLength": 1},
    "one of several types": {"type": ["integer", "null", "boolean"]},
}

PATTERNS: dict[str, Schema] = {
    "pattern of a plate": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3}$"},
    "pattern with alternatives": {"type": "string", "pattern": "^(yes|no|maybe [0-9])$"},
    "pattern of words": {"type": "string", "pattern": r"^\w+( \w+){0,3}$"},
    "pattern without anchors": {"type": "string", "pattern": "[0-9]{3}", "maxLength": 12},
    "pattern at the beginning": {"type": "string", "pattern": "^Dr\\. ", "maxLength": 16},
    "pattern at the end": {"type": "string", "pattern": "\\.txt$", "maxLength": 16},
    "pattern of negations": {"type": "string", "pattern": r"^\D\W[^\d\w]\S$"},
    "pattern with quotes": {"type": "string", "pattern": '^"[a-c]\\\\"$'},
    "pattern of another script": {"type": "string", "pattern": "^[а-я]{3,6}$"},
    "pattern and length": {"type": "string", "pattern": "^[ab]+$", "minLength": 3, "maxLength": 5},
    "pattern of printable characters": {"type": "string", "pattern": r"^[^\x00-\x1f]{1,6}$"},
}

FORMATS: dict[str, Schema] = {
    f"format {name}": {"type": "string", "format": name}
    for name in ("date", "time", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "uri", "uuid")
}

# ---- choices -----------------------------------------------------------------------------------------

CHOICES: dict[str, Schema] = {
    "enum of strings": {"enum": ["low", "lower", "medium", "high"]},
    "enum of mixed values": {"enum": [1, 2.5, "a", None, True, {"x": [1, 2]}, []]},
    "enum of unicode": {"enum": ["北京", "Zürich", "😀", 'naïve "quoted"\n']},
    "const string": {"const": "exactly this"},
    "const number": {"const": 3.5},
    "const object": {"const": {"a": 1, "b": {"c": [True, None]}}},
    "enum narrowed by type": {"type": "string", "enum": ["a", 1, "b"]},
    "union of types": {"anyOf": [TEXT, {"type": "integer"}, {"type": "null"}]},
    "one of disjoint types": {"oneOf": [WHOLE, {"type": "string", "maxLength": 5}, {"type": "array", "maxItems": 0}]},
    "intersection of ranges": {"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 6}]},
    "intersection of objects": {
        "allOf": [
            {"type": "object", "properties": {"a": WHOLE}, "required": ["a"]},
            {"type": "object", "properties": {"b": {"type": "boolean"}}, "required": ["b"]},
        ]
    },
    "union in an intersection": {"type": "integer", "anyOf": [{"maximum": 3}, {"minimum": 7, "maximum": 9}]},
}

# ---- arrays ------------------------------------------------------------------------------------------

ARRAYS: dict[str, Schema] = {
    "array of integers": {"type": "array", "items": WHOLE, "maxItems": 4},
    "array with bounds": {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 3},
    "array of enums": {"type": "array", "items": {"enum": ["x", "y"]}, "minItems": 1, "maxItems": 4},
    "array of arrays": {
        "type": "array",
        "items": {"type": "array", "items": WHOLE, "maxItems": 2},
        "maxItems": 3,
    },
    "array of objects": {"type": "array", "items": an_object(id=WHOLE, ok={"type": "boolean"}), "maxItems": 3},
    "tuple": {"type": "array", "prefixItems": [TEXT, WHOLE], "minItems": 2, "items": False},
    "tuple with a rest": {"type": "array", "prefixItems": [TEXT], "items": WHOLE, "minItems": 1, "maxItems": 3},
    "tuple of optional length": {"type": "array", "prefixItems": [WHOLE, {"type": "null"}], "items": False},
    "empty array": {"type": "array", "maxItems": 0},
    "uniqueItems that is false": {"type": "array", "items": WHOLE, "maxItems": 3, "uniqueItems": False},
}

# ---- objects -----------------------------------------------------------------------------------------

OBJECTS: dict[str, Schema] = {
    "object": an_object(name=TEXT, age=WHOLE),
    "empty object": {"type": "object", "maxProperties": 0},
    "nested objects": an_object(a=an_object(b=an_object(c=WHOLE, d={"type": "null"}), e=TEXT), f={"type": "boolean"}),
    "optional properties": {
        "type": "object",
        "properties": {"a": WHOLE, "b": TEXT, "c": {"type": "boolean"}},
        "required": ["b"],
        "additionalProperties": False,
    },
    "only optional properties": {
        "type": "object",
        "properties": {"a": WHOLE, "b": TEXT},
        "additionalProperties": False,
    },
    "nullable properties": an_object(
        a={"anyOf": [WHOLE, {"type": "null"}]}, b={"type": ["string", "null"], "maxLength": 5}
    ),
    "map of integers": {"type": "object", "additionalProperties": WHOLE, "maxProperties": 3},
    "map with one entry at least": {
        "type": "object",
        "additionalProperties": WHOLE,
        "minProperties": 1,
        "maxProperties": 2,
    },
    "map beside properties": {
        "type": "object",
        "properties": {"id": WHOLE},
        "required": ["id"],
        "additionalProperties": {"type": "boolean"},
        "maxProperties": 3,
    },
    "map by pattern": {
        "type": "object",
        "patternProperties": {"^x_[a-z]{1,5}$": WHOLE},
        "additionalProperties": False,
        "maxProperties": 2,
    },
    "open object": {"type": "object", "properties": {"a": WHOLE}, "required": ["a"]},
    "unicode keys": an_object(**{"名前": TEXT, "größe": WHOLE, "ключ 🔑": {"type": "boolean"}}),
    "keys to be escaped": an_object(**{'say "hi"': WHOLE, "back\\slash": WHOLE, "line\nbreak": WHOLE, "a/b~c": WHOLE}),
    "forbidden property": {
        "type": "object",
        "properties": {"a": False, "b": WHOLE},
        "required": ["b"],
        "maxProperties": 2,
        "additionalProperties": {"type": "null"},
    },
    "annotated": {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "https://example.com/annotated",
        "title": "Annotated",
        "description": "Keywords that restrict nothing",
        "examples": [{"a": 1}],
        **an_object(a={**WHOLE, "default": 3, "deprecated": True, "readOnly": False, "$comment": "none"}),
    },
    "long keys": an_object(internationalization_of_descriptions=WHOLE, unbelievably_long_name_of_a_property=WHOLE),
    "list narrows the rest": {
        "properties": {"a": WHOLE},
        "allOf": [{"properties": {"b": TEXT}, "required": ["b"]}],
        "required": ["a"],
        "type": "object",
    },
}

# ---- references --------------------------------------------------------------------------------------

REFERENCES: dict[str, Schema] = {
    "definitions": {
        "$defs": {"point": an_object(x=WHOLE, y=WHOLE)},
        **an_object(start={"$ref": "#/$defs/point"}, end={"$ref": "#/$defs/point"}),
    },
    "older definitions": {"definitions": {"a/b %": WHOLE}, "$ref": "#/definitions/a~1b%20%25"},
    "reference to a property": an_object(a=WHOLE, b={"$ref": "#/properties/a"}),
    "reference by anchor": {
        "$defs": {"n": {"$anchor": "count", **WHOLE}},
        "type": "array",
        "items": {"$ref": "#count"},
        "maxItems": 2,
    },
    "reference with a sibling": {"$defs": {"n": {"type": "integer"}}, "$ref": "#/$defs/n", "minimum": 1, "maximum": 5},
    "linked list": {
        "$defs": {
            "node": an_object(value=WHOLE, next={"anyOf": [{"type": "null"}, {"$ref": "#/$defs/node"}]}),
        },
        "$ref": "#/$defs/node",
    },
    "tree": {
        "type": "object",
        "properties": {"name": TEXT, "children": {"type": "array", "items": {"$ref": "#"}, "maxItems": 2}},
        "required": ["name"],
        "additionalProperties": False,
    },
    "expression": {
        "$defs": {
            "expression": {
                "oneOf": [
                    {"type": "integer", "minimum": 0, "maximum": 9},
                    an_object(op={"enum": ["+", "*"]}, left={"$ref": "#/$defs/expression"}, right=WHOLE),
                ]
            }
        },
        "$ref": "#/$defs/expression",
    },
    "tagged union": {
        "$defs": {
            "circle": an_object(shape={"const": "circle"}, radius=WHOLE),
            "square": an_object(shape={"const": "square"}, side=WHOLE),
        },
        "oneOf": [{"$ref": "#/$defs/circle"}, {"$ref": "#/$defs/square"}],
    },
    "a branch without an end": {
        "$defs": {"loop": an_object(again={"$ref": "#/$defs/loop"})},
        "anyOf": [{"$ref": "#/$defs/loop"}, WHOLE],
    },
}

SCHEMAS: dict[str, Schema] = VALUES | PATTERNS | FORMATS | CHOICES | ARRAYS | OBJECTS | REFERENCES | PYDANTIC
"""Every schema of the corpus by name."""
