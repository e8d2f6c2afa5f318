"""The sources of grammars: checked, quoted, and with schemas in them read strictly."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import ConstraintError
from .json_schema import MAX_CHAIN, ReadSchema, is_chain_too_long, read_schema, schema_text

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

__all__ = [
    "JSON_STYLE",
    "check_chain",
    "check_repeats",
    "check_rules",
    "checked_source",
    "choice_source",
    "quoted",
    "with_read_schemas",
]

# One way to write a value, and many forced tokens: single blanks after "," and ":", no other white space, and no
# \uXXXX, by which a key that the schema names could be written as if it were another one.
JSON_STYLE: JsonCompileOptions = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
    "json_allowed_escapes": 'nrbtf\\"',
    "lenient": False,
    "coerce_one_of": False,
}

_MAX_SOURCE = 200_000  # characters of a grammar, or of all options
_MAX_REPEATED = 10_000  # times by a regular expression: where a text is certain, the engine looks ahead to its end
_MAX_PASSES = 40  # over the rules


def checked_source(text: str, subject: str, most: int = _MAX_SOURCE) -> str:
    if not isinstance(text, str):
        raise ConstraintError(f"{subject} is a {type(text).__name__}, expected a string")
    if len(text) > most:
        raise ConstraintError(f"{subject} has {len(text):,} characters; at most {most:,} are read")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ConstraintError(f"{subject} has a lone surrogate, which is not Unicode text") from None
    return text


def check_repeats(regexes: str, subject: str) -> None:
    """Refuse regular expressions that repeat something too often."""
    counts = re.findall(r"(?<!\\)\{0*(\d*),?0*(\d*)\}", regexes)
    if any(int(digits[:9] or 0) > _MAX_REPEATED for pair in counts for digits in pair):
        raise ConstraintError(f"{subject}: something is repeated more than {_MAX_REPEATED:,} times")


def choice_source(options: Sequence[str]) -> str:
    if isinstance(options, str) or not options or any(not isinstance(option, str) for option in options):
        raise ConstraintError("a choice needs at least one option, and each is a string")
    # One terminal, not a rule: thousands of options are no burden to the lexer, but are to the parser.
    return checked_source("start: OPTION\nOPTION: " + " | ".join(map(quoted, dict.fromkeys(options))), "the choice")


def quoted(text: str) -> str:
    # The grammar engine's lexer takes no U+007F as it stands.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def with_read_schemas(lark: str, *, strict: bool) -> tuple[str, list[ReadSchema], str]:
    """(the rules with each `%json {...}` as `read_schema` has it, these schemas, the rules with "json" in their place).

    Line breaks are kept, so that errors name the right line."""
    schemas = []
    bare = []
    decoder = json.JSONDecoder()
    parts = []
    at = 0
    for match in re.finditer(r"%json\s*(?=\{)", lark):
        if match.start() < at:
            continue
        try:
            schema, end = decoder.raw_decode(lark, match.end())
        except (ValueError, RecursionError):
            continue  # the engine says what is wrong with it
        line = lark.count("\n", 0, match.start()) + 1
        own_style = schema.get("x-guidance") or {}
        try:
            schemas.append(read_schema(schema_text(schema), strict=strict))
        except ConstraintError as error:
            raise ConstraintError(f"the grammar, line {line}: {error}") from None
        node = schemas[-1].compiled_form()
        separators = {key: own_style[key] for key in ("item_separator", "key_separator") if key in own_style}
        document = {**(node if isinstance(node, dict) else {"allOf": [node]})}
        document["x-guidance"] = {**JSON_STYLE, **separators}
        breaks = "\n" * lark.count("\n", match.start(), end)
        parts += [lark[at : match.start()], "%json ", _quoted_breaks(document, breaks)]
        bare += [lark[at : match.start()], '"json"', breaks]
        at = end
    return "".join(parts) + lark[at:], schemas, "".join(bare) + lark[at:]


def _quoted_breaks(document: Mapping[str, Any], breaks: str) -> str:
    text = json.dumps(document, ensure_ascii=False)
    return text[:-1] + breaks + text[-1]


def check_rules(lark: str) -> None:
    """As `check_chain`, and refuse rules of which no text is finite: the engine would look for its end for ever."""
    check_chain(lark)
    for name, line in _endless_rules(lark):
        raise ConstraintError(
            f"the grammar, line {line}: it admits nothing: the rule {name!r} refers to itself without an end"
        )


_LARK_PARTS = re.compile(
    r"(?P<head>^[ \t]*[?!]?[A-Za-z_][\w-]*(?:\[[^\]\n]*\])?(?:\.-?\d+)?[ \t]*:)"
    r'|(?P<name>[A-Za-z_][\w-]*)|(?P<text>"(?:[^"\\\n]|\\.)*"i?|/(?:[^/\\\n]|\\.)+/[imslux]*|<[^<>\n]*>)'
    r"|(?P<skip>(?://|#)[^\n]*|->[ \t]*\w+|\s+)|(?P<sign>.)",
    flags=re.MULTILINE,
)


def _endless_rules(lark: str) -> Iterator[tuple[str, int]]:
    """Rules, and their lines, that have no finite text because each alternative needs such a rule.

    Names that are not defined here count as finite, and so does what is not understood or takes many passes."""
    rules: dict[str, tuple[int, list[str]]] = {}
    body: list[str] = []
    for match in re.finditer(_LARK_PARTS, lark):
        kind, text = match.lastgroup, match[0]
        if kind == "head":
            body = []
            name = re.sub(r"[\[.:].*", "", text.strip().lstrip("?!"), flags=re.DOTALL).strip()
            rules[name] = (lark.count("\n", 0, match.end()) + 1, body)
        elif text == "%" and not body:
            continue
        elif kind == "text":
            body.append('""')
        elif kind != "skip":
            body.append(text)
    finite = {part for _, parts in rules.values() for part in parts if part not in rules}
    rest = list(rules)
    for _ in range(_MAX_PASSES):
        rest.reverse()  # rules that follow one another in a row, whichever way, are done in one pass
        endless = []
        for name in rest:
            if _is_finite(rules[name][1], finite):
                finite.add(name)
            else:
                endless.append(name)
        if len(endless) == len(rest):
            yield from sorted(((name, rules[name][0]) for name in endless), key=lambda rule: rule[1])
            return
        rest = endless


def _is_finite(parts: Sequence[str], finite: Collection[str]) -> bool:
    """Whether one of the alternatives of a rule's body consists of finite parts; brackets are read as they come."""
    stack = [[True, False]]  # for each open bracket: the present alternative, any of those before it
    last = True  # the part just read, which a sign behind it may make optional
    for part in [*parts, "|"]:
        if part in {"?", "*", "{", "~"}:
            last = True
        elif part in {"(", "["}:
            stack[-1][0] &= last
            stack.append([True, False])
            last = True
        elif part in {")", "]"} and len(stack) > 1:
            stack[-1][0] &= last
            last = any(stack.pop()) or part == "]"
        elif part == "|":
            stack[-1] = [True, stack[-1][1] or (stack[-1][0] and last)]
            last = True
        elif part[0].isalpha() or part[0] in '_"':
            stack[-1][0] &= last
            last = part[0] == '"' or part in finite
    return stack[0][1]


def check_chain(lark: str) -> None:
    """Refuse rules that refer to one another in so long a row that the engine would exhaust the stack."""
    graph: dict[str, list[str]] = {}
    rule = ""
    brackets = 0
    for line in lark.splitlines():
        head = re.match(r"\s*([?!]?[A-Za-z_][\w-]*)[^:]*:", line)
        if head:
            rule = head[1].lstrip("?!")
            brackets = 0
        for name, bracket in re.findall(r"([A-Za-z_][\w-]*)|([()\[\]])", line[head.end() :] if head else line):
            # What stands in brackets is a rule of its own, of which the engine makes a level, too.
            inner = f"{rule} {brackets}" if brackets else rule
            if bracket and bracket in "([":
                brackets += 1
                graph.setdefault(inner, []).append(f"{rule} {brackets}")
            elif bracket:
                brackets = max(brackets - 1, 0)
            else:
                graph.setdefault(inner, []).append(name)
    if is_chain_too_long(graph, "start"):
        raise ConstraintError(f"the grammar: more than {MAX_CHAIN} rules and brackets lead into one another in a row")
