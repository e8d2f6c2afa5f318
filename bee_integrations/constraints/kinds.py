"""What an answer must look like: the kinds of constraints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from .json_schema import schema_text

__all__ = ["Choice", "Constraint", "Grammar", "JsonSchema", "Regex", "json_object"]


@dataclass(frozen=True, eq=False)
class JsonSchema:
    """JSON that fits a schema (draft 2020-12), written as `{"a": 1, "b": [1, 2]}`, properties in the schema's order."""

    schema: Mapping[str, Any] | bool
    strict: bool = False
    """Refuse a schema with keywords that cannot be enforced while a text is written; otherwise such a keyword is left
    out, which a warning and the metadata of the answer (`not_enforced`) tell."""

    @cached_property
    def text(self) -> str:
        """The schema as JSON."""
        return schema_text(self.schema)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, JsonSchema) and (self.text, self.strict) == (other.text, other.strict)

    def __hash__(self) -> int:
        return hash((self.text, self.strict))


@dataclass(frozen=True)
class Regex:
    """A text that a regular expression matches as a whole: Rust's syntax, without look-around and back-references."""

    pattern: str


@dataclass(frozen=True)
class Grammar:
    """A text of a context-free language: llguidance's dialect of Lark, from its rule `start`, or GBNF, from `root`.

    Lark's terminals are greedy: `start: /1+/ /1+/` admits nothing, since the first takes all. GBNF has no terminals."""

    source: str
    syntax: Literal["lark", "gbnf"] = "lark"


@dataclass(frozen=True)
class Choice:
    """A text that is exactly one of these."""

    options: tuple[str, ...]


Constraint = JsonSchema | Regex | Grammar | Choice


def json_object() -> JsonSchema:
    """Any JSON object ("JSON mode")."""
    return JsonSchema({"type": "object"})
