"""JSON schemas made fit for the grammar engine, so that every text which its masks allow is valid.

The engine (llguidance) enforces most of JSON Schema (draft 2020-12), passes over some keywords, and names no place when
it refuses. Here a schema is read once: what is malformed or cannot be enforced is refused with its path, what means
nothing for validity is left out, and what the engine would misread is put so that it does not. Where the result is
not the same schema it is a narrower one: a few valid texts may be missing, but no invalid one is let in.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import combinations
from typing import Any

from ..errors import ConstraintError
from .formats import ENFORCED_FORMATS, FORMAT_PATTERNS, OTHER_FORMATS
from .references import References, escaped
from .schema_rewrites import TYPES, rewritten

__all__ = ["MAX_CHAIN", "ReadSchema", "is_chain_too_long", "read_schema", "schema_refusal", "schema_text"]

Node = dict[str, Any] | bool

MAX_CHAIN = 600
"""Parts that may lie within, or refer to, one another in a row: the engine recurses along them on the native stack."""

_MAX_CHARACTERS = 1_000_000
_MAX_DEPTH = 64
_MAX_PARTS = 4_000  # schemas within the schema
_MAX_PROPERTIES = 1_000  # and properties or alternatives at one place: the engine's time grows with their square
_MAX_PATTERN = 10_000  # characters of a regular expression
_MAX_LEAST = 4_096  # characters, items or properties that may be demanded
_MAX_MOST = 1_000_000  # and allowed; larger limits are cut to it
_MAX_TEXT = 1_000_000  # characters that a value may need
_MAX_COMPARISONS = 100_000  # of alternatives
_LARGEST = 2**63 - 1024  # the largest whole number of 64 bits that is a double

# Keywords that hold several schemas.
_SCHEMA_GROUPS = frozenset({"properties", "patternProperties", "prefixItems", "allOf", "anyOf", "oneOf"})

_LOOK_AROUND = re.compile(r"(?<!\\)(?:\\\\)*(?:\(\?<?[=!]|\\[1-9]|\\k<)")

# Patterns with look-around, which the engine lacks, and what they mean without. Pydantic writes this one for Decimal.
_KNOWN_PATTERNS = {
    r"^(?!^[-+.]*$)[+-]?0*\d*\.?\d*$": r"^[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)$",
}


def schema_text(schema: Mapping[str, Any] | bool) -> str:
    """The schema as JSON. The order of keys is kept: properties are generated in it."""
    try:
        return json.dumps(schema, ensure_ascii=False, allow_nan=False, default=_plain)
    except RecursionError:
        raise ConstraintError(f"the schema is nested deeper than {_MAX_DEPTH} levels") from None
    except (TypeError, ValueError) as error:
        raise ConstraintError(f"the schema is no JSON document: {error}") from None


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"a {type(value).__name__} has no JSON form")


def read_schema(text: str, *, strict: bool = False) -> ReadSchema:
    """Read a schema from its JSON text.

    strict: raise `ConstraintError` with the path of a keyword that cannot be enforced; otherwise it is loosened, and
    named in `not_enforced`. What is malformed raises in any case.
    """
    if len(text) > _MAX_CHARACTERS:
        raise ConstraintError(f"the schema has {len(text):,} characters; at most {_MAX_CHARACTERS:,} are read")
    try:
        document = json.loads(text)
        text.encode()
    except RecursionError:
        raise ConstraintError(f"the schema is nested deeper than {_MAX_DEPTH} levels") from None
    except ValueError as error:
        raise ConstraintError(f"the schema is no JSON document: {error}") from None
    try:
        return ReadSchema(document, strict)
    except RecursionError:
        raise ConstraintError("the schema's references are nested too deeply") from None


class ReadSchema:
    """A schema as the engine gets it, and where each part of it came from."""

    def __init__(self, document: Any, strict: bool) -> None:
        self.not_enforced: list[str] = []
        """Pointers of the keywords that were loosened."""
        self._strict = strict
        self._references = References(document)
        self._comparisons = 0
        self._names: dict[str, str] = {}  # pointer of the target of a reference -> its name in `$defs`
        self._targets: dict[str, str] = {}  # and back
        self._definitions: dict[str, Node] = {}
        self._pending: list[str] = []
        self._parts: dict[str, Node] = {}
        self._children: dict[str, list[str]] = {}
        root = self._read(document, "", 0)
        while self._pending:
            pointer = self._pending.pop()
            self._definitions[self._names[pointer]] = self._part(pointer)
        if is_chain_too_long(self._children, ""):
            raise schema_refusal("", f"more than {MAX_CHAIN} parts refer to one another in a row")
        least = self._least_lengths()
        self._endless = {name for name, length in least.items() if length == math.inf}
        length = self._least_length(root, least)
        if length == math.inf:
            pointer = next((at for at, name in self._names.items() if name in self._endless), "")
            raise schema_refusal(pointer, "it refers to itself without an end, so that no value is finite")
        if length > _MAX_TEXT:
            raise schema_refusal("", f"no value of it has less than {_MAX_TEXT:,} characters")
        self.root: Node = self._prune(root)

    def compiled_form(self, node: Node | None = None) -> Node:
        """The whole schema, or one of its parts, as a document of its own."""
        node = self.root if node is None else node
        if isinstance(node, bool) or not self._definitions:
            return node
        return {**node, "$defs": {name: self._prune(part) for name, part in self._definitions.items()}}

    def find_refused(self, reason: str, refused: Callable[[Node], str]) -> tuple[str, str]:
        """(path, reason) of the innermost part that is at fault, where the whole is refused for a reason; `refused`
        gives a part's reason, or ""."""
        pointer = ""
        seen = {pointer}
        tries = 64
        while reason:
            for child in self._children.get(pointer, ()):
                tries -= 1
                if child in seen or tries < 0:
                    continue
                seen.add(child)
                part = self._prune(self._parts[child])
                inner = "false admits nothing" if part is False else refused(self.compiled_form(part))
                if inner:
                    pointer, reason = child, inner
                    break
            else:
                break
        return pointer, reason

    def patterns(self) -> list[str]:
        """The regular expressions in it."""
        nodes = [node for node in self._parts.values() if isinstance(node, dict)]
        return [
            text for node in nodes for text in (node.get("pattern", ""), *node.get("patternProperties", ())) if text
        ]

    # ---- reading ----

    def _read(self, node: Any, pointer: str, depth: int) -> Node:
        if depth > _MAX_DEPTH:
            raise schema_refusal(pointer, f"the schema is nested deeper than {_MAX_DEPTH} levels")
        if len(self._parts) >= _MAX_PARTS:
            raise schema_refusal("", f"it is too large: it has more than {_MAX_PARTS:,} schemas within it")
        if isinstance(node, bool):
            self._parts[pointer] = node
            return node
        if not isinstance(node, dict):
            raise schema_refusal(pointer, f"a schema is an object, true or false, not {_shown(node)}")
        pattern = node.get("pattern")
        if isinstance(pattern, str) and _LOOK_AROUND.search(pattern) and pattern not in _KNOWN_PATTERNS:
            node = {key: value for key, value in node.items() if key != "pattern"}
            self._loosen(pointer, "pattern", "it has look-around or a back-reference")
        try:
            simpler = rewritten(
                _modern(node, pointer), partial(self._followed_raw, pointer=pointer), partial(self._loosen, pointer)
            )
        except (TypeError, ValueError, AttributeError, LookupError) as error:
            if isinstance(error, ConstraintError):
                raise
            raise schema_refusal(pointer, f"a keyword in it is malformed ({error})") from None
        if isinstance(simpler, bool):
            self._parts[pointer] = simpler
            return simpler
        result: dict[str, Any] = {}
        self._parts[pointer] = result
        self._children[pointer] = []
        for key, value in simpler.items():
            if key == "format":
                self._read_format(result, value, f"{pointer}/format", _listed(node.get("type"), TYPES))
            else:
                self._read_keyword(result, key, value, pointer, depth)
        self._check_counts(result, pointer)
        return result

    def _read_keyword(self, result: dict[str, Any], key: str, value: Any, pointer: str, depth: int) -> None:
        at = f"{pointer}/{escaped(key)}"
        if key in _SCHEMA_GROUPS and isinstance(value, (list, dict)) and len(value) > _MAX_PROPERTIES:
            raise schema_refusal(at, f"{len(value):,} entries are too many; at most {_MAX_PROPERTIES:,} are read")
        if key in ("items", "additionalProperties"):
            result[key] = self._child(value, pointer, at, depth)
        elif key in ("properties", "patternProperties"):
            if not isinstance(value, dict):
                raise schema_refusal(at, f"expected an object of schemas, not {_shown(value)}")
            written = partial(_read_pattern, pointer=at) if key == "patternProperties" else str
            result[key] = {
                written(name): self._child(part, pointer, f"{at}/{escaped(name)}", depth)
                for name, part in value.items()
            }
        elif key in ("prefixItems", "allOf", "anyOf", "oneOf"):
            if not isinstance(value, list) or not value:
                raise schema_refusal(at, f"expected a list with at least one schema, not {_shown(value)}")
            parts = [self._child(part, pointer, f"{at}/{index}", depth) for index, part in enumerate(value)]
            # What excludes one another needs no counting of how many match.
            exclusive = (
                key == "oneOf"
                and len(parts) <= 100
                and all(self._exclude(left, right, 8) for left, right in combinations(parts, 2))
            )
            if key == "oneOf" and not exclusive:
                self._loosen(pointer, "oneOf", "its alternatives do not plainly exclude one another, as 'anyOf' allows")
                exclusive = True
            self._conjoin(result, "anyOf" if exclusive else key, parts)
        elif key == "$ref":
            target = self._target(value, at)
            self._children[pointer].append(target)
            result["$ref"] = f"#/$defs/{self._name_of(target)}"
        elif key in _READERS:
            result[key] = _READERS[key](value, at)
        # Everything else is an annotation, for which JSON Schema asks nothing.

    def _loosen(self, pointer: str, keyword: str, reason: str) -> None:
        if self._strict:
            raise schema_refusal(
                pointer, f"the keyword {keyword!r} cannot be enforced while a text is generated: {reason}"
            )
        place = f"{pointer}/{escaped(keyword)}"
        if place not in self.not_enforced:
            self.not_enforced.append(place)

    def _followed_raw(self, part: Any, pointer: str) -> Any:
        for _ in range(8):
            if not isinstance(part, dict) or "$ref" not in part or set(part) - {"$ref", "title", "description"}:
                return part
            pointer = self._target(part["$ref"], f"{pointer}/$ref")
            part = self._references.find(pointer)
        return part

    def _child(self, value: Any, parent: str, pointer: str, depth: int) -> Node:
        self._children[parent].append(pointer)
        return self._read(value, pointer, depth + 1)

    @staticmethod
    def _conjoin(result: dict[str, Any], key: str, parts: list[Node]) -> None:
        if key in result:
            result.setdefault("allOf", []).append({key: parts})
        else:
            result[key] = parts

    def _read_format(self, result: dict[str, Any], value: Any, pointer: str, types: tuple[Any, ...]) -> None:
        name = _text(value, pointer)
        if name in FORMAT_PATTERNS:
            self._conjoin(result, "allOf", [{"pattern": FORMAT_PATTERNS[name]}])
        elif name in ENFORCED_FORMATS:
            result["format"] = name
        elif name in OTHER_FORMATS and "string" in types:
            self._loosen(pointer.rpartition("/")[0], "format", "the grammar engine does not know it")
        # All others, such as OpenAPI's int32, are annotations.

    def _check_counts(self, result: dict[str, Any], pointer: str) -> None:
        least = result.get("minProperties", 0)
        if least <= len(result.get("required", ())):
            result.pop("minProperties", None)
        elif least > 1:
            # The engine may repeat a key that the schema does not name, and counts it twice.
            self._loosen(pointer, "minProperties", "more than one property can only be demanded by name, in 'required'")
            result["minProperties"] = 1
            if result.get("required"):
                del result["minProperties"]

    def _part(self, pointer: str) -> Node:
        """What is read at a place. A part that is being read just now comes as far as it has been read."""
        part = self._parts.get(pointer)
        return self._read(self._references.find(pointer), pointer, 0) if part is None else part

    # ---- references ----

    def _target(self, reference: Any, pointer: str) -> str:
        """The pointer that a reference means."""
        text = _text(reference, pointer)
        try:
            target = self._references.target(text, pointer)
        except (LookupError, ValueError):
            raise schema_refusal(pointer, f"the reference {text!r} leads nowhere") from None
        if target is None:
            raise schema_refusal(
                pointer, f"the reference {text!r} leads out of the schema, and only those within are followed"
            )
        return target

    def _name_of(self, pointer: str) -> str:
        if pointer not in self._names:
            self._names[pointer] = f"d{len(self._names)}"
            self._targets[self._names[pointer]] = pointer
            self._pending.append(pointer)
        return self._names[pointer]

    # ---- what the schema admits ----

    def _least_lengths(self) -> dict[str, float]:
        """Characters that a value of each definition has at least; infinite where it has no finite value."""
        known = dict.fromkeys(self._definitions, math.inf)
        while True:
            better = {name: self._least_length(node, known) for name, node in self._definitions.items()}
            if better == known:
                return known
            known = better

    def _least_length(self, node: Node, known: Mapping[str, float]) -> float:
        """Characters of a value at least, if the definitions have those in `known`."""
        if isinstance(node, bool):
            return 1  # false admits nothing, which is for the engine to say
        of = partial(self._least_length, known=known)
        parts = [min(map(of, node[key])) for key in ("anyOf", "oneOf") if key in node]
        parts += map(of, node.get("allOf", ()))
        reference = node.get("$ref")
        if reference is not None:
            parts.append(known[reference.rpartition("/")[2]])
        values = [node["const"]] if "const" in node else node.get("enum")
        if values is not None:
            own = float(min(len(json.dumps(value)) for value in values))
        else:
            own = min(self._least_of_type(kind, node, of) for kind in _listed(node.get("type"), TYPES))
        return min(max([own, *parts]), _MAX_TEXT + 1) if math.inf not in (own, *parts) else math.inf

    @staticmethod
    def _least_of_type(kind: str, node: Mapping[str, Any], of: Callable[[Node], float]) -> float:
        if kind == "array":
            items = [*node.get("prefixItems", ()), *[node.get("items", True)] * node.get("minItems", 0)]
            return 2 + sum(map(of, items[: node.get("minItems", 0)]))
        if kind == "object":
            properties, rest = node.get("properties", {}), node.get("additionalProperties", True)
            return 2 + sum(len(name) + of(properties.get(name, rest)) for name in node.get("required", ()))
        return 2 + node.get("minLength", 0) if kind == "string" else 1

    def _prune(self, node: Node) -> Node:
        """The same without references to what has no finite value: the engine would walk into them for ever."""
        if not self._endless or isinstance(node, bool):
            return node
        if node.get("$ref", "").rpartition("/")[2] in self._endless:
            return False
        result = dict(node)
        for key, value in node.items():
            if key in ("items", "additionalProperties"):
                result[key] = self._prune(value)
            elif key in ("properties", "patternProperties"):
                result[key] = {name: self._prune(part) for name, part in value.items()}
            elif key in ("prefixItems", "allOf", "anyOf", "oneOf"):
                result[key] = [self._prune(part) for part in value]
        return result

    def _exclude(self, left: Node, right: Node, depth: int) -> bool:
        """Whether it is plain that no value fits both: other types, other constants, or another tag."""
        self._comparisons += 1
        if self._comparisons > _MAX_COMPARISONS:
            return False
        left, right = self._followed(left), self._followed(right)
        if isinstance(left, bool) or isinstance(right, bool) or not depth:
            return left is False or right is False
        if not _kinds(left) & _kinds(right):
            return True
        ours, theirs = _constants(left), _constants(right)
        if ours is not None and theirs is not None:
            return not ours & theirs
        if _kinds(left) == {"object"} == _kinds(right):
            shared = set(left.get("required", ())) & set(right.get("required", ()))
            tags = [(left.get("properties", {}).get(name), right.get("properties", {}).get(name)) for name in shared]
            return any(None not in pair and self._exclude(*pair, depth - 1) for pair in tags)
        return False

    def _followed(self, node: Node) -> Node:
        for _ in range(8):
            if isinstance(node, bool) or set(node) != {"$ref"}:
                return node
            node = self._part(self._targets[node["$ref"].rpartition("/")[2]])
        return node


def is_chain_too_long(graph: Mapping[str, Sequence[str]], start: str) -> bool:
    """Whether a walk down a graph, which enters each node once, gets deeper than `MAX_CHAIN`."""
    entered = {start}
    path = [iter(graph.get(start, ()))]
    while path:
        child = next(path[-1], None)
        if child is None:
            path.pop()
        elif child not in entered:
            entered.add(child)
            path.append(iter(graph.get(child, ())))
            if len(path) > MAX_CHAIN:
                return True
    return False


# ---- the parts of a schema ------------------------------------------------------------------------------------------


def _modern(node: Mapping[str, Any], pointer: str) -> dict[str, Any]:
    """The older spelling of tuples (a list under `items`) in today's."""
    if not isinstance(node.get("items"), list):
        return {key: value for key, value in node.items() if key != "additionalItems"}
    if "prefixItems" in node:
        raise schema_refusal(f"{pointer}/items", "expected a schema, since 'prefixItems' stands beside it")
    renamed = {"items": "prefixItems", "additionalItems": "items"}
    modern = {renamed.get(key, key): value for key, value in node.items()}
    if not modern["prefixItems"]:
        del modern["prefixItems"]
    return modern


def schema_refusal(pointer: str, reason: str) -> ConstraintError:
    """What to raise for the part of a schema at a JSON pointer."""
    place = pointer if len(pointer) <= 200 else f"{pointer[:140]}...{pointer[-50:]}"
    return ConstraintError(f"{place or 'the schema'}: {reason}")


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _listed(value: Any, default: tuple[str, ...]) -> tuple[str, ...]:
    if value is None:
        return default
    return tuple(value) if isinstance(value, list) else (value,)


def _kinds(node: Mapping[str, Any]) -> set[str]:
    """The types that a part admits, with integers as numbers."""
    constants = _constants(node)
    kinds = {"number" if kind == "integer" else kind for kind in _listed(node.get("type"), TYPES)}
    if constants is not None:
        names = {"s": "string", "n": "number", "b": "boolean", "z": "null", "a": "array", "o": "object"}
        kinds &= {names[constant[0]] for constant in constants}
    return kinds


def _constants(node: Mapping[str, Any]) -> set[str] | None:
    """The values of `const` or `enum`, each as a letter for its type and its JSON; None where neither stands."""
    values = [node["const"]] if "const" in node else node.get("enum")
    return None if values is None else {_kind_letter(value) + _canonical(value) for value in values}


def _canonical(value: Any) -> str:
    """JSON that is the same for equal values: 1, 1.0 and 1e0 are."""
    text = json.dumps(value)
    return json.dumps(json.loads(text, parse_int=float, parse_float=lambda number: float(number) + 0.0), sort_keys=True)


def _kind_letter(value: Any) -> str:
    kinds = ((bool, "b"), (str, "s"), ((int, float), "n"), (list, "a"), (dict, "o"), (type(None), "z"))
    return next(letter for kind, letter in kinds if isinstance(value, kind))


def _text(value: Any, pointer: str) -> str:
    if not isinstance(value, str):
        raise schema_refusal(pointer, f"expected a string, not {_shown(value)}")
    return value


def _count(value: Any, pointer: str) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value < 0 or value != int(value):
        raise schema_refusal(pointer, f"expected a whole number from 0, not {_shown(value)}")
    return int(value)


def _least(value: Any, pointer: str) -> int:
    count = _count(value, pointer)
    if count > _MAX_LEAST:
        raise schema_refusal(pointer, f"{count:,} is more than the {_MAX_LEAST:,} that may be demanded")
    return count


def _most(value: Any, pointer: str) -> int:
    return min(_count(value, pointer), _MAX_MOST)


def _number(value: Any, pointer: str) -> int | float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise schema_refusal(pointer, f"expected a number, not {_shown(value)}")
    try:
        finite = math.isfinite(value)
    except OverflowError:
        finite = False
    if not finite:
        raise schema_refusal(pointer, "the number is larger than a double")
    return value


def _bound(value: Any, pointer: str, *, lower: bool) -> int | float:
    """A bound that the engine, which reads numbers as doubles, does not widen by rounding."""
    number = _number(value, pointer)
    if isinstance(number, int):  # the engine counts in 64 bits
        number = max(number, -_LARGEST) if lower else min(number, _LARGEST)
    nearest = float(number)
    if isinstance(number, float) or int(nearest) == number:
        return number
    if (nearest < number) if lower else (nearest > number):
        nearest = math.nextafter(nearest, math.inf if lower else -math.inf)
    return int(nearest)


def _divisor(value: Any, pointer: str) -> int | float:
    number = _number(value, pointer)
    if number <= 0:
        raise schema_refusal(pointer, f"expected a number above 0, not {_shown(number)}")
    return number


def _type_names(value: Any, pointer: str) -> str | list[str]:
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not names or any(name not in TYPES for name in names):
        raise schema_refusal(pointer, f"expected one or several of {', '.join(TYPES)}, not {_shown(value)}")
    return value  # type: ignore[no-any-return]


def _names(value: Any, pointer: str) -> list[str]:
    if not isinstance(value, list) or any(not isinstance(name, str) for name in value):
        raise schema_refusal(pointer, f"expected a list of names, not {_shown(value)}")
    return list(dict.fromkeys(value))


def _constant(value: Any, pointer: str) -> Any:
    if isinstance(value, str):
        unwritable = re.search(r"[\x00-\x07\x0b\x0e-\x1f\x7f]", value)
        if unwritable:
            raise schema_refusal(
                pointer, f"a string with the control character U+{ord(unwritable[0]):04X} is not generated"
            )
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        # The engine reads numbers as doubles, and those above 2**53 stand for several whole numbers each.
        if abs(_number(value, pointer)) > 2**53:
            raise schema_refusal(pointer, f"the number {_shown(value)} is beyond 2**53, where constants are not exact")
    elif isinstance(value, list):
        for index, part in enumerate(value):
            _constant(part, f"{pointer}/{index}")
    elif isinstance(value, dict):
        for name, part in value.items():
            _constant(part, f"{pointer}/{escaped(name)}")
    return value


def _enumeration(value: Any, pointer: str) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise schema_refusal(pointer, f"expected a list with at least one value, not {_shown(value)}")
    return [_constant(part, f"{pointer}/{index}") for index, part in enumerate(value)]


# A control character that JSON writes as \uXXXX only, as itself or as an escape of a regular expression.
_UNWRITABLE = re.compile(
    r"[\x00-\x07\x0b\x0e-\x1f\x7f]|\\(?:x(?:0[0-7bBeEfF]|1.|7[fF]|\{)|u(?:00(?:0[0-7bBeEfF]|1.|7[fF])|\{)|U0|c|0|v|a)"
)
_RANGE = re.compile(r"(\\x..|\\u....|\\?.)-(?!\1)(?=.)", re.DOTALL)
_WORD = r"\p{L}\p{M}\p{N}\p{Pc}\p{Alphabetic}\x{200C}\x{200D}"


def _read_pattern(value: Any, pointer: str) -> str:
    """A pattern that means the same, or less, to the engine as to those who validate.

    What is no word character and no digit differs: to ECMAScript the two are ASCII, to Python and Rust Unicode. The
    negations are put so that they hold for all three. Set operations in classes exist only in the engine's dialect.
    """
    pattern = _text(value, pointer)
    if len(pattern) > _MAX_PATTERN:
        raise schema_refusal(pointer, f"the pattern has {len(pattern):,} characters; at most {_MAX_PATTERN:,} are read")
    if pattern in _KNOWN_PATTERNS:
        return _KNOWN_PATTERNS[pattern]
    part = r"\\(?:x\{[^}]*\}|u\{[^}]*\}|x..|u....|U.{8}|c.|.)|\[\^?\]?(?:\\.|[^\]\\])*\]|[\x00-\x1f\x7f]"
    read = re.sub(part, partial(_read_pattern_part, pointer=pointer), pattern, flags=re.DOTALL)
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        if r"\p{" not in pattern and r"\P{" not in pattern:  # Python has no Unicode classes, ECMAScript has
            raise schema_refusal(pointer, f"the pattern {_shown(pattern)} is no regular expression: {error}") from None
    return read


def _read_pattern_part(match: re.Match[str], pointer: str) -> str:
    """An escape, a class, or a control character of a pattern."""
    part = match[0]
    negated = part.startswith("[^")
    # The engine drops such a character where it stands alone; in a range it leaves it out, as it should.
    if _UNWRITABLE.search(part) and not negated and not _RANGE.search(part):
        raise schema_refusal(pointer, f"the pattern has a control character, {_shown(part)}, which is not generated")
    if not part.startswith("["):
        return {r"\W": f"[^{_WORD}]", r"\D": r"\P{Nd}"}.get(part, part)
    if re.search(r"&&|--|~~|\|\||\[", re.sub(r"\\.", "", part[1:], flags=re.DOTALL)):
        raise schema_refusal(pointer, f"the class {_shown(part)} has '[', '&&', '--', '~~' or '||'; escape them")
    if negated:
        meant = {r"\w": _WORD, r"\d": r"\p{Nd}", r"\W": "[^a-zA-Z0-9_]", r"\D": "[^0-9]"}
    else:
        meant = {r"\W": f"[^{_WORD}]", r"\D": r"\P{Nd}"}
    return re.sub(r"\\.", lambda escape: meant.get(escape[0], escape[0]), part, flags=re.DOTALL)


_READERS: dict[str, Callable[[Any, str], Any]] = {
    "type": _type_names,
    "const": _constant,
    "enum": _enumeration,
    "required": _names,
    "minProperties": _least,
    "maxProperties": _most,
    "minItems": _least,
    "maxItems": _most,
    "minLength": _least,
    "maxLength": _most,
    "pattern": _read_pattern,
    "minimum": partial(_bound, lower=True),
    "exclusiveMinimum": partial(_bound, lower=True),
    "maximum": partial(_bound, lower=False),
    "exclusiveMaximum": partial(_bound, lower=False),
    "multipleOf": _divisor,
}
