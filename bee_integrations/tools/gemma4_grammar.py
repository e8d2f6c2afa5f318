"""JSON schemas as grammars of Gemma 4's notation for values.

What a grammar admits, the schema admits. It may admit less: objects that list their properties have no others unless
the schema grants them expressly, and keys come in the template's order. What cannot be told in a grammar is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..errors import ConstraintError
from .tool_format import Literal

__all__ = ["MARK", "NUMBER", "value_rules"]

MARK = '<|"|>'
"""What stands before and after a string."""
NUMBER = r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?"

_TYPES = ("string", "integer", "number", "boolean", "null", "array", "object")
_NUMBER_KEYWORDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
_STRING_KEYWORDS = ("minLength", "maxLength", "pattern", "format")
_ARRAY_KEYWORDS = ("items", "minItems", "maxItems")
_OBJECT_KEYWORDS = ("properties", "required", "additionalProperties")
_ALTERNATIVES = ("anyOf", "oneOf", "allOf")
_REFUSED = frozenset(
    {
        "$dynamicRef", "additionalItems", "contains", "contentEncoding", "dependencies", "dependentRequired",
        "dependentSchemas", "else", "if", "maxContains", "maxProperties", "minContains", "minProperties", "not",
        "patternProperties", "prefixItems", "propertyNames", "then", "unevaluatedItems", "unevaluatedProperties",
        "uniqueItems",
    }
)  # fmt: skip
_ASSERTIONS = frozenset(
    {"type", "enum", "const", *_NUMBER_KEYWORDS, *_STRING_KEYWORDS, *_ARRAY_KEYWORDS, *_OBJECT_KEYWORDS}
)
_BARE_KEY = r"[^\s:,{}\[\]<>\"](?:[^:,{}\[\]<>\"\n\r]*[^\s:,{}\[\]<>\"])?"
_ANY_KEY = "[A-Za-z_][A-Za-z0-9_]{0,40}"

_DATE = r"[1-9][0-9]{3}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|02-(?:0[1-9]|1[0-9]|2[0-8]))"  # fmt: skip  # noqa: E501
_TIME = r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]{1,9})?(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
_LABEL = "[a-z0-9](?:[a-z0-9-]{0,20}[a-z0-9])?"
_BYTE = "(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_FORMATS = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f"{_DATE}T{_TIME}",
    "email": rf"[A-Za-z0-9_+-]{{1,40}}(?:\.[A-Za-z0-9_+-]{{1,20}}){{0,3}}@{_LABEL}(?:\.{_LABEL}){{1,4}}",
    "hostname": rf"{_LABEL}(?:\.{_LABEL}){{0,4}}",
    "ipv4": rf"{_BYTE}(?:\.{_BYTE}){{3}}",
    "uri": rf"https?://{_LABEL}(?:\.{_LABEL}){{1,4}}(?:/[A-Za-z0-9_.~-]{{0,60}}){{0,8}}(?:\?[A-Za-z0-9_.~=&-]{{0,200}})?",
    "uuid": "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
}
"""A part of what each format allows, so that every reading of it is met."""


def value_rules(name: str, schema: Any, literal: Literal, where: str) -> list[str]:
    """Lark rules of which `name` matches the values that a schema allows; other names begin with it too.

    `where`: what the path in an error's message follows. Raises `ConstraintError`, naming the path in the schema.
    """
    rules = _Rules(name, schema, literal, where)
    rules.add(name, rules.value(schema, "#"))
    return rules.lines


class _Rules:
    def __init__(self, name: str, root: Any, literal: Literal, where: str) -> None:
        self.lines: list[str] = []
        self._name = name
        self._root = root
        self._mark = literal(MARK)
        # Where the mark is a token, no text of a lexeme can contain it; else string and mark have to be one lexeme.
        self._mark_is_token = self._mark.startswith("<")
        self._where = where
        self._count = 0
        self._referred: dict[str, str] = {}
        self._any = ""

    def add(self, name: str, expression: str) -> str:
        self.lines.append(f"{name}: {expression}")
        return name

    def _new(self, expression: str) -> str:
        self._count += 1
        return self.add(f"{self._name}_{self._count}", expression)

    def _refuse(self, path: str, what: str) -> ConstraintError:
        return ConstraintError(f"{self._where}{path}: {what}")

    # ---- any schema ----

    def value(self, schema: Any, path: str) -> str:
        """A Lark expression in parentheses, a name, or a text."""
        if schema is True or schema == {}:
            return self._anything()
        if schema is False:
            raise self._refuse(path, "nothing is allowed here")
        if not isinstance(schema, Mapping):
            raise self._refuse(path, "is not a schema")
        for keyword in _REFUSED.intersection(schema):
            if schema[keyword] is not False or keyword in ("unevaluatedItems", "unevaluatedProperties"):
                raise self._refuse(f"{path}/{keyword}", "is not supported in calls of this format")
        if "$ref" in schema:
            self._alone(schema, "$ref", path)
            return self._reference(schema["$ref"], f"{path}/$ref")
        for keyword in _ALTERNATIVES:
            if keyword in schema:
                return self._alternatives(schema, keyword, path)
        if "const" in schema or "enum" in schema:
            return self._constants(schema, path)
        names = self._types(schema, path)
        return self._either([getattr(self, f"_{name}")(schema, path) for name in names])

    def _either(self, choices: Sequence[str]) -> str:
        return choices[0] if len(choices) == 1 else f"({' | '.join(choices)})"

    def _alone(self, schema: Mapping[str, Any], keyword: str, path: str, *also: str) -> None:
        """Refuses keywords beside one that would have to be met as well."""
        for other in schema:
            if other != keyword and other not in also and other in (_ASSERTIONS | {"$ref", *_ALTERNATIVES}):
                raise self._refuse(f"{path}/{other}", f"is not supported beside {keyword}")

    def _types(self, schema: Mapping[str, Any], path: str) -> list[str]:
        given = schema.get("type")
        if given is None:
            groups = {
                "string": _STRING_KEYWORDS, "number": _NUMBER_KEYWORDS, "array": _ARRAY_KEYWORDS,
                "object": _OBJECT_KEYWORDS,
            }  # fmt: skip
            # A schema without a type allows any other type; the one that it speaks of is meant.
            meant = [name for name, keywords in groups.items() if any(word in schema for word in keywords)]
            return meant or ["anything"]
        names = [given] if isinstance(given, str) else given
        if not isinstance(names, list) or not names or any(name not in _TYPES for name in names):
            raise self._refuse(f"{path}/type", f"{given!r} is not a type of JSON schema")
        return [name for name in dict.fromkeys(names) if not (name == "integer" and "number" in names)]

    def _anything(self, schema: Any = None, path: str = "") -> str:
        if not self._any:
            self._any = f"{self._name}_any"
            text, key = self._text_between_marks("/(?s:.*)/"), self._new_terminal(f"/{_ANY_KEY}/")
            value = self._any
            self.add(
                value,
                f'{text} | {self._number({}, "#")} | "true" | "false" | {self._null({}, "#")}'
                f' | "[" ({value} ("," {value})*)? "]" | "{{" ({key} ":" {value} ("," {key} ":" {value})*)? "}}"',
            )
        return self._any

    # ---- references and alternatives ----

    def _reference(self, pointer: Any, path: str) -> str:
        if not isinstance(pointer, str) or not pointer.startswith("#"):
            raise self._refuse(path, f"{pointer!r} is not a reference within the schema")
        if pointer not in self._referred:
            target = self._target(pointer, path)
            self._count += 1
            self._referred[pointer] = f"{self._name}_{self._count}"
            self.add(self._referred[pointer], self.value(target, pointer))
        return self._referred[pointer]

    def _target(self, pointer: str, path: str) -> Any:
        """What a reference leads to in the end."""
        passed: set[str] = set()
        while True:
            if pointer in passed:
                raise self._refuse(path, "refers to itself and to nothing else")
            passed.add(pointer)
            target = self._root
            for part in pointer[1:].split("/")[1:]:
                part = part.replace("~1", "/").replace("~0", "~")
                if isinstance(target, list) and part.isdecimal() and int(part) < len(target):
                    target = target[int(part)]
                elif isinstance(target, Mapping) and part in target:
                    target = target[part]
                else:
                    raise self._refuse(path, f"{pointer!r} is not there")
            if not (isinstance(target, Mapping) and isinstance(target.get("$ref"), str)):
                return target
            self._alone(target, "$ref", pointer)
            pointer = target["$ref"]

    def _alternatives(self, schema: Mapping[str, Any], keyword: str, path: str) -> str:
        self._alone(schema, keyword, path, "type")
        choices = schema[keyword]
        if not isinstance(choices, list) or not choices:
            raise self._refuse(f"{path}/{keyword}", "is not a list of schemas")
        if "type" in schema:
            choices = [self._typed(choice, schema["type"], f"{path}/type") for choice in choices]
        if keyword == "allOf" and len(choices) > 1:
            raise self._refuse(f"{path}/allOf", "more than one schema is not supported in calls of this format")
        if keyword == "oneOf" and not self._disjoint(choices, f"{path}/oneOf"):
            raise self._refuse(f"{path}/oneOf", "a value may match several of them; use anyOf")
        possible = [(number, choice) for number, choice in enumerate(choices) if choice is not False]
        if not possible:
            raise self._refuse(f"{path}/{keyword}", "nothing is allowed here")
        return self._either([self._new(self.value(choice, f"{path}/{keyword}/{n}")) for n, choice in possible])

    def _typed(self, choice: Any, kind: Any, path: str) -> Any:
        """An alternative of a schema that has a type itself."""
        if choice is True:
            return {"type": kind}
        if not isinstance(choice, Mapping):
            return choice
        if "type" not in choice and "$ref" not in choice and not any(word in choice for word in _ALTERNATIVES):
            return {**choice, "type": kind}
        target = self._target(choice["$ref"], path) if isinstance(choice.get("$ref"), str) else choice
        if not isinstance(target, Mapping) or target.get("type") != kind:
            raise self._refuse(path, "differs from an alternative's type")
        return choice

    def _disjoint(self, choices: Sequence[Any], path: str) -> bool:
        resolved = [
            self._target(choice["$ref"], path)
            if isinstance(choice, Mapping) and isinstance(choice.get("$ref"), str)
            else choice
            for choice in choices
        ]
        return all(_exclude(a, b) for n, a in enumerate(resolved) for b in resolved[:n])

    # ---- constants ----

    def _constants(self, schema: Mapping[str, Any], path: str) -> str:
        keyword = "const" if "const" in schema else "enum"
        self._alone(schema, keyword, path, "type")
        values = [schema["const"]] if keyword == "const" else schema["enum"]
        if not isinstance(values, list):
            raise self._refuse(f"{path}/enum", "is not a list")
        if "type" in schema:
            names = self._types(schema, path)
            values = [value for value in values if any(_is_of(value, name) for name in names)]
        if not values:
            raise self._refuse(f"{path}/{keyword}", "nothing is allowed here")
        return self._either([f"({' '.join(self._constant(value, f'{path}/{keyword}'))})" for value in values])

    def _constant(self, value: Any, path: str) -> list[str]:
        if isinstance(value, str):
            if MARK in value:
                raise self._refuse(path, f"a string with {MARK} in it cannot be written in this format")
            if not self._mark_is_token:
                return [_quoted(MARK + value + MARK)]  # one lexeme, as other strings are
            return [self._mark, *([_quoted(value)] if value else []), self._mark]
        if isinstance(value, Mapping):
            parts = []
            for key, member in _sorted(value):
                parts.append([_quoted(self._key(key, path)), '":"', *self._constant(member, path)])
            return _quoted_list("{", parts, "}")
        if isinstance(value, list):
            return _quoted_list("[", [self._constant(item, path) for item in value], "]")
        if value is None:
            return [self._null({}, path)]
        return [_quoted(json.dumps(value))]

    def _key(self, key: str, path: str) -> str:
        if not re.fullmatch(_BARE_KEY, key):
            raise self._refuse(path, f"the key {key!r} cannot be written in this format: rename it")
        return key

    # ---- one type each ----

    def _null(self, schema: Mapping[str, Any], path: str) -> str:
        return '("null" | "None")'

    def _boolean(self, schema: Mapping[str, Any], path: str) -> str:
        return '("true" | "false")'

    def _integer(self, schema: Mapping[str, Any], path: str) -> str:
        return self._numeric("integer", schema)

    def _number(self, schema: Mapping[str, Any], path: str) -> str:
        return self._numeric("number", schema)

    def _numeric(self, kind: str, schema: Mapping[str, Any]) -> str:
        """Numbers are written as in JSON, so that a schema of theirs can stay one."""
        bounds = {keyword: schema[keyword] for keyword in _NUMBER_KEYWORDS if keyword in schema}
        whole = {"type": kind, **bounds, "x-guidance": {"whitespace_flexible": False}}
        return self._new(f"%json {json.dumps(whole)}")

    def _string(self, schema: Mapping[str, Any], path: str) -> str:
        conditions = []
        low, high = self._bounds(schema, "minLength", "maxLength", path)
        if (low, high) != (0, None):
            conditions.append(f"/(?s:.{{{low},{'' if high is None else high}}})/")
        if "pattern" in schema:
            try:
                conditions.append(f"/{_lark_regex(schema['pattern'])}/")
            except ValueError as error:
                raise self._refuse(f"{path}/pattern", str(error)) from None
        if "format" in schema:
            if schema["format"] not in _FORMATS:
                known = ", ".join(sorted(_FORMATS))
                raise self._refuse(f"{path}/format", f"{schema['format']!r} is not supported; supported are {known}")
            conditions.append(f"/{_slashes(_FORMATS[schema['format']])}/")
        return self._text_between_marks(" & ".join(conditions) or "/(?s:.*)/")

    def _text_between_marks(self, condition: str) -> str:
        text = f"({condition}) & /(?s:.*)/ & ~/(?s:.*){re.escape(MARK)}(?s:.*)/"
        if self._mark_is_token:
            return f"({self._mark} {self._new_terminal(text)} {self._mark})"
        quoted = json.dumps(MARK)
        return self._new_terminal(f"{quoted} ({text}) {quoted}")

    def _new_terminal(self, expression: str) -> str:
        self._count += 1
        name = f"{self._name}_{self._count}".upper()
        self.lines.append(f"{name}: {expression}")
        return name

    def _bounds(self, schema: Mapping[str, Any], low: str, high: str, path: str) -> tuple[int, int | None]:
        for keyword in (low, high):
            bound = schema.get(keyword, 0)
            if isinstance(bound, bool) or not isinstance(bound, (int, float)) or bound < 0 or bound != int(bound):
                raise self._refuse(f"{path}/{keyword}", f"{bound!r} is not a number of things")
        least, most = int(schema.get(low, 0)), int(schema[high]) if high in schema else None
        if most is not None and least > most:
            raise self._refuse(f"{path}/{high}", f"is less than {low}")
        return least, most

    def _array(self, schema: Mapping[str, Any], path: str) -> str:
        low, high = self._bounds(schema, "minItems", "maxItems", path)
        items = schema.get("items", True)
        if items is False and low == 0:
            high = 0
        if high == 0:
            return '("[" "]")'
        item = self._new(self.value(items, f"{path}/items"))
        more = f'("," {item}){{{max(low - 1, 0)},{"" if high is None else high - 1}}}'
        return f'("[" {item} {more} "]")' if low else f'("[" ({item} {more})? "]")'

    def _object(self, schema: Mapping[str, Any], path: str) -> str:
        properties, required = schema.get("properties", {}), schema.get("required", [])
        if not isinstance(properties, Mapping) or not isinstance(required, list):
            raise self._refuse(path, '"properties" is not an object, or "required" not a list')
        extra = schema.get("additionalProperties", not properties)
        members: list[tuple[str, bool]] = []
        listed = {**{key: schema.get("additionalProperties", True) for key in required}, **properties}
        for key, member in _sorted(listed):
            if member is False and key not in required:
                continue
            where = f"{path}/properties/{key}" if key in properties else f"{path}/required"
            entry = f'{_quoted(self._key(key, where))} ":" {self.value(member, where)}'
            members.append((self._new(entry), key in required))
        return f'("{{" {self._members(members, self._extra_member(extra, listed, path))} "}}")'

    def _extra_member(self, schema: Any, listed: Mapping[str, Any], path: str) -> str:
        """A rule for members that the schema does not list, or "" where it has none."""
        if schema is False:
            return ""
        others = f" & ~({' | '.join(map(_quoted, listed))})" if listed else ""
        key = self._new_terminal(f"/{_ANY_KEY}/{others}")
        return self._new(f'{key} ":" {self.value(schema, f"{path}/additionalProperties")}')

    def _members(self, members: Sequence[tuple[str, bool]], extra: str) -> str:
        """Members in their order, with commas between those that are there."""
        rest = self._new(f'("," {extra})*') if extra else '""'  # when a member stands before
        first = f"({extra} {rest})?" if extra else '""'  # when none does
        for entry, required in reversed(members):
            if required:
                first = f"{entry} {rest}"
                rest = self._new(f'"," {entry} {rest}')
            else:
                first = self._new(f"{entry} {rest} | {first}")
                rest = self._new(f'("," {entry})? {rest}')
        return first


# ---- texts -----------------------------------------------------------------------------------------------------------


def _quoted(text: str) -> str:
    return json.dumps(text)


def _quoted_list(opening: str, parts: Sequence[Sequence[str]], closing: str) -> list[str]:
    result = [_quoted(opening)]
    for number, part in enumerate(parts):
        result += [_quoted(","), *part] if number else part
    return [*result, _quoted(closing)]


def _sorted(mapping: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """In the order of jinja's `dictsort`."""
    return sorted(mapping.items(), key=lambda item: item[0].lower())


# ---- what schemas exclude --------------------------------------------------------------------------------------------


def _is_of(value: Any, kind: str) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    if isinstance(value, (int, float)):
        return kind == "number" or (kind == "integer" and value == int(value))
    kinds: dict[str, type | tuple[type, ...]] = {"string": str, "array": list, "object": Mapping, "null": type(None)}
    return kind in kinds and isinstance(value, kinds[kind])


def _kinds(schema: Mapping[str, Any]) -> set[str]:
    """The types that a schema allows, "integer" as "number"."""
    if "const" in schema or "enum" in schema:
        values = [schema["const"]] if "const" in schema else schema["enum"]
        return {kind for value in values for kind in _TYPES if kind != "integer" and _is_of(value, kind)}
    given = schema.get("type", list(_TYPES))
    return {"number" if kind == "integer" else kind for kind in ([given] if isinstance(given, str) else given)}


def _constants_of(schema: Any) -> set[str] | None:
    if not isinstance(schema, Mapping) or not ("const" in schema or "enum" in schema):
        return None
    values = [schema["const"]] if "const" in schema else schema["enum"]
    return {json.dumps(value, sort_keys=True) for value in values}


def _exclude(one: Any, other: Any) -> bool:
    """Whether it is certain that no value matches both schemas."""
    if one is False or other is False:
        return True
    if not isinstance(one, Mapping) or not isinstance(other, Mapping):
        return False
    if not _kinds(one) & _kinds(other):
        return True
    constants, others = _constants_of(one), _constants_of(other)
    if constants is not None and others is not None:
        return not constants & others
    if not _kinds(one) & _kinds(other) <= {"object"}:
        return False
    shared = set(one.get("required", ())) & set(other.get("required", ()))
    return any(
        _exclude(one.get("properties", {}).get(key, True), other.get("properties", {}).get(key, True)) for key in shared
    )


# ---- patterns --------------------------------------------------------------------------------------------------------

_CLASSES = {"d": "0-9", "w": "A-Za-z0-9_", "s": r" \t\r\n"}
_PLAIN_ESCAPES = frozenset("tnrfv")


def _lark_regex(pattern: Any) -> str:
    """A schema's pattern, which is looked for anywhere in a text, as a Lark regex of the whole text.

    Raises `ValueError` for what such a regex cannot express.
    """
    if not isinstance(pattern, str):
        raise ValueError("is not a text")
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"{pattern!r} is no regular expression: {error}") from None
    branches = [_Pattern(pattern, branch).translated() for branch in _branches(pattern)]
    return "|".join(branches)


def _branches(pattern: str) -> list[str]:
    """The alternatives at the top level, for an anchor belongs to one of them."""
    branches, depth, in_class, start, at = [], 0, False, 0, 0
    while at < len(pattern):
        char = pattern[at]
        if char == "\\":
            at += 1
        elif in_class:
            in_class = char != "]"
        elif char == "[":
            in_class = True
        elif char in "()":
            depth += 1 if char == "(" else -1
        elif char == "|" and depth == 0:
            branches.append(pattern[start:at])
            start = at + 1
        at += 1
    return [*branches, pattern[start:]]


class _Pattern:
    """Translates one alternative of a pattern, character by character."""

    def __init__(self, pattern: str, branch: str) -> None:
        self._pattern = pattern
        self._open_left = not branch.startswith("^")
        self._text = branch if self._open_left else branch[1:]
        escapes = len(self._text[:-1]) - len(self._text[:-1].rstrip("\\"))
        self._open_right = not self._text.endswith("$") or escapes % 2 == 1
        if not self._open_right:
            self._text = self._text[:-1]
        self._at = 0
        self._out: list[str] = []

    def translated(self) -> str:
        while self._at < len(self._text):
            char = self._next()
            if char in "^$":
                raise ValueError(f"{self._pattern!r}: {char} is supported only at its beginning and end")
            read: dict[str, Callable[[], str]] = {
                "\\": self._escape, "[": self._class, "(": self._group, "{": self._brace,
            }  # fmt: skip
            self._out.append(read[char]() if char in read else _slashes(char))
        inside = f"(?:{''.join(self._out)})"
        anything = "(?s:.*)"
        return (anything if self._open_left else "") + inside + (anything if self._open_right else "")

    def _next(self) -> str:
        self._at += 1
        return self._text[self._at - 1]

    def _group(self) -> str:
        if not self._text.startswith("?", self._at):
            return "(?:"
        for opening in ("?:", "?P<"):
            if self._text.startswith(opening, self._at):
                self._at += len(opening)
                if opening == "?P<":
                    self._at = self._text.index(">", self._at) + 1
                return "(?:"
        raise ValueError(f"{self._pattern!r}: ({self._text[self._at : self._at + 2]} is not supported")

    def _escape(self, in_class: bool = False) -> str:
        char = self._next()
        if char in _CLASSES:
            return _CLASSES[char] if in_class else f"[{_CLASSES[char]}]"
        if char in "DWS" and not in_class:
            return f"\\{char}"
        if char in _PLAIN_ESCAPES:
            return f"\\{char}"
        if char in "xu":
            digits = 2 if char == "x" else 4
            code = self._text[self._at : self._at + digits]
            self._at += digits
            return f"\\x{{{int(code, 16):X}}}"
        if not char.isalnum() and char.isascii() and char.isprintable():
            return f"\\x{{{ord(char):X}}}" if char in " <>/\"'" else f"\\{char}"
        raise ValueError(f"{self._pattern!r}: \\{char} is not supported")

    def _brace(self) -> str:
        """A brace that counts repetitions, or one that stands for itself."""
        found = re.match(r"([0-9]*)(,?)([0-9]*)\}", self._text[self._at :])
        if found is None or not (found[1] or found[3]):
            return r"\{"
        self._at += found.end()
        return f"{{{found[1] or 0}{found[2]}{found[3]}}}"

    def _class(self) -> str:
        out = ["["]
        if self._text.startswith("^", self._at):
            self._at += 1
            out.append("^")
        first = True
        while (char := self._next()) != "]" or first:
            first = False
            if char == "\\":
                out.append(self._escape(in_class=True))
            elif char in "[]&~":
                out.append(f"\\{char}")  # these mean something in a class there
            else:
                out.append(_slashes(char))
        return "".join(out) + "]"


def _slashes(text: str) -> str:
    """For between the slashes of a Lark regex, which is one line."""
    return text.replace("/", r"\/").replace("\n", r"\n").replace("\r", r"\r")
