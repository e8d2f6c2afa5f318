"""Parameters that are written one by one: how the schema types their values, and the rules of a grammar for them.

A parameter whose schema allows only texts stands there as it is, up to what ends it; where null is allowed too, the
text `null` means null. Everything else is JSON, or a literal of Python where the family writes those.
"""

from __future__ import annotations

import json
import re
from enum import Enum
from typing import Any

from ..errors import ConstraintError
from .argument_rules import arguments_schema, json_rule
from .description import GAP, Description, Pattern, Values
from .nested_values import nested_rule
from .text_schema import possible_types, resolve, text_terminal, with_definitions
from .tool_format import Literal, Tool

__all__ = ["Kind", "ParameterRules", "Signature", "gapped"]

# Members of an object that single parameters cannot say, or that no grammar for them can keep to.
_REFUSED = (
    "allOf", "anyOf", "dependentRequired", "dependentSchemas", "else", "if", "maxProperties", "minProperties", "not",
    "oneOf", "patternProperties", "propertyNames", "then", "unevaluatedProperties",
)  # fmt: skip
_TYPE_NAMES = {"integer": "number", "number": "number"}
_PLAIN = frozenset({"type", "description", "title", "default", "examples"})
# Strings of Python, with escapes that JSON has as well, and without halves of characters.
_ESCAPE = r"""\\(['"\\bfnrt]|u([0-9a-ce-f][0-9a-f]{3}|d[0-7][0-9a-f]{2}))"""
_PYTHON_TEXT = rf"""/'([^'\\\n]|{_ESCAPE})*'/ | /"([^"\\\n]|{_ESCAPE})*"/"""


class Kind(Enum):
    """How a parameter's value is written."""

    TEXT = "as it is"
    TEXT_OR_NULL = "as it is, and null without quotes"
    JSON = "as JSON"
    JSON_OR_TEXT = "as JSON; what is none is a text"


class Signature:
    """The parameters of a tool."""

    def __init__(self, tool: Tool, format_name: str) -> None:
        """Raises `ConstraintError` for references that lead nowhere."""
        self._tool = tool
        self._format_name = format_name
        self.root = tool.parameters
        try:
            self.schema = arguments_schema(Tool(tool.name, "", resolve(tool.parameters, self.root)))
            self.properties: dict[str, Any] = dict(self.schema.get("properties", {}))
            self.required = frozenset(self.schema.get("required", ()))
            self.others: Any = self.schema.get("additionalProperties", True)
            for name in self.schema.get("required", ()):
                self.properties.setdefault(name, self.others)
            self._kinds = {name: self._kind(schema) for name, schema in self.properties.items()}
            self._kind_of_others = self._kind(self.others)
        except ValueError as error:
            raise self.error(str(error)) from None

    def kind(self, parameter: str) -> Kind:
        """How the value of a parameter is written."""
        return self._kinds.get(parameter, self._kind_of_others)

    def _kind(self, schema: Any) -> Kind:
        types = possible_types(schema, self.root)
        if "string" not in types:
            return Kind.JSON
        if types == {"string"}:
            return Kind.TEXT
        return Kind.TEXT_OR_NULL if types == {"string", "null"} else Kind.JSON_OR_TEXT

    def error(self, what: str) -> ConstraintError:
        """What is wrong with the tool's schema."""
        return ConstraintError(f"the parameters of the tool {self._tool.name!r} do not fit {self._format_name}: {what}")


def gapped(text: str, literal: Literal) -> str:
    """A text of a pattern as a Lark expression, with the rule `gap` where white space may stand."""
    parts = [literal(part) if part else "" for part in text.split(GAP)]
    return " gap? ".join(parts).strip()


class ParameterRules:
    """Rules of one tool's parameters, of which the first has the given name."""

    def __init__(self, description: Description, tool: Tool, rule: str, literal: Literal) -> None:
        """Raises `ConstraintError` for schemas that cannot be kept to where parameters stand one by one."""
        self._description = description
        self._literal = literal
        self._signature = signature = Signature(tool, description.name)
        for word in _REFUSED:
            if word in signature.schema:
                raise signature.error(f"{word!r} at the top of a schema cannot be kept to")
        self.rules: list[str] = []
        names = [f"{rule}_{index}" for index in range(len(signature.properties))]
        wanted = [parameter in signature.required for parameter in signature.properties]
        repeated = ""
        if signature.others is not False and "additionalProperties" in signature.schema:
            repeated = f"{rule}_others"
        self.rules += _in_order(rule, names, wanted, repeated, gapped(description.between_parameters, literal))
        for name, (parameter, schema) in zip(names, signature.properties.items(), strict=True):
            self._add(name, literal(parameter), parameter, schema)
        if repeated:
            known = "".join(f" & ~{json.dumps(name)}" for name in signature.properties)
            self.rules.append(f'{repeated.upper()}_NAME: /[^<>="\\n(), ]{{1,64}}/{known}')
            self._add(repeated, f"{repeated.upper()}_NAME", "", signature.others)

    def _add(self, rule: str, key: str, parameter: str, schema: Any) -> None:
        if schema is False:
            raise self._signature.error(f"nothing is allowed for {parameter!r}")
        kind = self._signature.kind(parameter)
        pattern = self._description.parameter_pattern
        if self._description.values == Values.PYTHON:
            self._add_python(rule, key, schema)
            return
        if self._description.values == Values.NESTED:
            self._add_nested(rule, key, parameter, schema)
            return
        typed = "$is_text" in pattern.pieces or "$type" in pattern.pieces
        ways = []
        if kind is not Kind.JSON and (typed or kind is not Kind.JSON_OR_TEXT):
            may_be_null = kind is Kind.TEXT_OR_NULL and not typed
            value = self._text(f"{rule}_text", schema, may_be_null, parameter, kind)
            ways.append(f"{self._head(key, ['string'], is_text=True)} {value}")
        if kind in (Kind.JSON, Kind.JSON_OR_TEXT) or (typed and kind is Kind.TEXT_OR_NULL):
            self.rules.append(f"{rule}_value: {self._json(schema)}")
            types = sorted(possible_types(schema, self._signature.root) - {"string"})
            ways.append(
                f"{self._head(key, types, is_text=False)} {rule}_value {gapped(self._value_end, self._literal)}"
            )
        self.rules.append(f"{rule}: " + " | ".join(ways))

    def _json(self, schema: Any) -> str:
        inner = with_definitions(schema, self._signature.root)
        if isinstance(schema, dict) and schema.get("type") == "boolean" and not {"const", "enum"} & set(schema):
            return '"true" | "false" | "True" | "False"'  # templates render the constants of Python
        return json_rule(inner)

    @property
    def _value_end(self) -> str:
        return self._description.parameter_pattern.after("$value")

    def _head(self, key: str, types: list[str], *, is_text: bool) -> str:
        """A parameter up to its value."""
        parts = []
        names = sorted({_TYPE_NAMES.get(one, one) for one in types}) or ["null"]
        for piece in Pattern(self._description.parameter_pattern.before("$value")).pieces:
            if piece == "$key":
                parts.append(key)
            elif piece == "$is_text":
                parts.append(json.dumps("true" if is_text else "false"))
            elif piece == "$type":
                parts.append("(" + " | ".join(map(json.dumps, names)) + ")")
            else:
                parts.append(gapped(piece, self._literal))
        return " ".join(parts)

    # ---- texts ----

    def _text(self, rule: str, schema: Any, may_be_null: bool, parameter: str, kind: Kind) -> str:
        """An expression for a text and what ends it, which the text cannot hold."""
        end, _, rest = self._value_end.partition(GAP)
        rest = f"gap? {gapped(rest, self._literal)}".strip() if GAP in self._value_end else ""
        # What a union allows of texts is left to the check of the call.
        terminal = None if kind is Kind.JSON_OR_TEXT else self._terminal(schema, parameter)
        return self._ended(rule, terminal, end, rest, may_be_null=may_be_null)

    def _terminal(self, schema: Any, parameter: str) -> str | None:
        try:
            return text_terminal(schema, self._signature.root)
        except ValueError as error:
            raise self._signature.error(f"{parameter!r}: {error}") from None

    def _ended(self, rule: str, terminal: str | None, end: str, rest: str, *, may_be_null: bool) -> str:
        """An expression for a text of the terminal (None: any), what ends it, and what follows that."""
        null = ' | "null"' if may_be_null and terminal is not None else ""
        control = re.fullmatch(r'\(?((?:"(?:[^"\\]|\\.)*" )?)(<\[\d+\]>.*?)\)?', self._literal(end))
        if control is not None:  # a control token ends it: no text can hold that
            self.rules.append(f"{rule.upper()}: {rule.upper()}_VALUE {control[1]}".strip())
            self.rules.append(f"{rule.upper()}_VALUE: {'/(?s:.*)/' if terminal is None else f'({terminal}){null}'}")
            return f"{rule.upper()} {control[2]} {rest}"
        escaped = _regex_text(end)
        if terminal is None:
            self.rules.append(f"{rule}[lazy]: /(?s:.*){escaped}/")
            return f"{rule} {rest}"
        self.rules.append(f"{rule.upper()}: {rule.upper()}_VALUE {json.dumps(end)}")
        self.rules.append(f"{rule.upper()}_VALUE: ({terminal}{null}) & ~/(?s:.*){escaped}(?s:.*)/")
        return f"{rule.upper()} {rest}"

    # ---- tags within tags ----

    def _add_nested(self, rule: str, key: str, parameter: str, schema: Any) -> None:
        end = self._value_end.split(GAP)[0]
        namespace = end.partition("</$key>")[0]
        head = self._head(key, [], is_text=False)
        self.rules.append(f"{rule}: {head} {rule}_in gap?")
        self.rules += nested_rule(
            f"{rule}_in", schema, self._signature.root, namespace, parameter, self._literal,
            lambda name, inner, ending: self._text_until(name, inner, ending, parameter),
        )  # fmt: skip

    def _text_until(self, rule: str, schema: Any, end: str, parameter: str) -> str:
        return self._ended(rule, self._terminal(schema, parameter), end, "", may_be_null=False)

    # ---- literals of Python ----

    def _add_python(self, rule: str, key: str, schema: Any) -> None:
        types = possible_types(schema, self._signature.root)
        plain = isinstance(schema, dict) and set(schema) <= _PLAIN
        if types == {"boolean"} and plain:
            value = '"True" | "False" | "true" | "false"'
        elif types == {"null"}:
            value = '"None" | "null"'
        elif types == {"string"} and plain:
            value = _PYTHON_TEXT
        elif types == {"string"} and set(schema) <= {*_PLAIN, "minLength", "maxLength"}:
            self.rules.append(f"{rule}_json: {json_rule(schema)}")
            length = f"{{{schema.get('minLength', 0)},{schema.get('maxLength', '')}}}"
            value = rf"{rule}_json | /'[^'\\\n]{length}'/"
        else:
            value = json_rule(with_definitions(schema, self._signature.root))
            self.rules.append(f"{rule}_json: {value}")
            spelled = [repr(member) for member in _listed(schema)]
            if isinstance(schema, dict) and not {"const", "enum", "$ref", "not", "allOf"} & set(schema):
                spelled += ["None"] if "null" in types else []
                spelled += ["True", "False"] if "boolean" in types else []
            ways = [f"{rule}_json", *map(json.dumps, spelled)]
            value = " | ".join([*ways, _PYTHON_TEXT] if _allows_any_text(schema) else ways)
        self.rules.append(f"{rule}_value: {value}")
        self.rules.append(f"{rule}: {self._head(key, [], is_text=False)} {rule}_value")


def _listed(schema: Any) -> list[Any]:
    """The members of a schema that is a list of values, as far as Python may spell them in other ways than JSON."""
    if not isinstance(schema, dict) or not set(schema) <= {*_PLAIN, "enum", "const"}:
        return []
    members = schema["enum"] if "enum" in schema else [schema["const"]] if "const" in schema else []
    return [member for member in members if member is None or isinstance(member, (str, bool))]


def _allows_any_text(schema: Any) -> bool:
    """Whether a union has texts without any bound among its options."""
    if not isinstance(schema, dict):
        return schema is True
    types = schema.get("type", ())
    if set(schema) <= _PLAIN:
        return not types or "string" in ([types] if isinstance(types, str) else types)
    return set(schema) <= {*_PLAIN, "anyOf"} and any(map(_allows_any_text, schema["anyOf"]))


def _regex_text(text: str) -> str:
    """A text in a regular expression of Lark."""
    special = set("\\/.*+?()[]{}|^$#&-~")
    return "".join(f"\\{c}" if c in special else "\\n" if c == "\n" else c for c in text)


def _in_order(rule: str, names: list[str], wanted: list[bool], repeated: str, separator: str) -> list[str]:
    """Rules for parameters in this order, of which some may be missing, with what separates them."""
    if not separator:
        parts = [name if needed else f"{name}?" for name, needed in zip(names, wanted, strict=True)]
        return [f"{rule}: " + (" ".join([*parts, f"{repeated}*" if repeated else ""]).strip() or '""')]
    rules = []
    for at in range(len(names) + 1):
        # What may come once `at` of them are behind.
        ways = []
        for other in range(at, len(names)):
            ways.append(f"{names[other]} {rule}_after_{other + 1}")
            if wanted[other]:
                break
        else:
            ways += [f"{repeated} {rule}_after_{len(names)}"] if repeated else []
            ways.append('""')
        following = [way if way == '""' else f"{separator} {way}" for way in ways]
        if at == 0:
            rules.append(f"{rule}: {' | '.join(ways)}")
        else:
            rules.append(f"{rule}_after_{at}: {' | '.join(following)}")
    if not names:
        rules.append(f"{rule}_after_0: " + (f'{separator} {repeated} {rule}_after_0 | ""' if repeated else '""'))
    return rules
