"""Compare what the readers make of the answers in llama.cpp's own tests with what those tests expect.

    python tests/peer_chat_cases.py DIRECTORY [--template NAME] [--all]

DIRECTORY holds llama.cpp's sources: `tests/test-chat.cpp` and `models/templates`, as in the archive of llama-cpp-python
under `vendor/llama.cpp`. Nothing of it is part of this repository: the cases (template, tools, answer, expectation) are
taken from the C++ as it stands. Cases about a partial answer, one that is continued, or one that a schema constrains
are not about reading, and are left out.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bee_integrations.chat import reasoning
from bee_integrations.chat.reasoning import ReasoningSplitter
from bee_integrations.errors import BeeError
from bee_integrations.text.chat_template import ChatTemplate
from bee_integrations.tools.argument_check import CheckedCalls
from bee_integrations.tools.formats import recognise
from bee_integrations.tools.template_ways import tool_variables
from bee_integrations.tools.tool_format import (
    CallArguments,
    CallBegin,
    CallBroken,
    CallEnd,
    Event,
    Reasoning,
    Text,
    Tool,
)

_TOKEN = re.compile(
    r"""//[^\n]*|/\*.*?\*/|R"(?P<delimiter>[^("]*)\((?P<raw>.*?)\)(?P=delimiter)"|"(?P<text>(?:[^"\\]|\\.)*)"|'(?:[^'\\]|\\.)*'"""
    r"""|(?P<word>[A-Za-z_][\w:]*)|(?P<number>-?\d[\w.]*)|(?P<sign>[^\s\w])|\s+""",
    re.DOTALL,
)
_LEFT_OUT = ("is_partial", "continue_final_message", "json_schema", "messages", "add_generation_prompt")


@dataclass
class Expected:
    """An answer as the peer has it."""

    content: str = ""
    reasoning: str = ""
    calls: list[tuple[str, Any]] = field(default_factory=list)


@dataclass
class Case:
    """One test of the peer's."""

    template: str
    answer: str
    settings: dict[str, Any]
    expected: Expected


# ---- C++ -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Piece:
    """A token of C++: a string, a word, a number or a sign."""

    kind: str
    text: str


def pieces_of(source: str) -> list[Piece]:
    found = []
    for match in _TOKEN.finditer(source):
        if match["raw"] is not None:
            found.append(Piece("text", match["raw"]))
        elif match["text"] is not None:
            found.append(Piece("text", _unescaped(match["text"])))
        else:
            kind = next((name for name in ("word", "number", "sign") if match[name] is not None), None)
            if kind is not None:
                found.append(Piece(kind, match[0]))
    return found


def _unescaped(text: str) -> str:
    simple = {"n": "\n", "t": "\t", "r": "\r", "0": "\0", '"': '"', "\\": "\\", "'": "'"}

    def one(match: re.Match[str]) -> str:
        code = match[1]
        if code[0] == "x":
            return bytes([int(code[1:], 16)]).decode("latin-1")
        return chr(int(code[1:], 16)) if code[0] in "uU" else simple.get(code, code)

    plain = re.sub(r"\\(x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|.)", one, text, flags=re.DOTALL)
    try:
        return plain.encode("latin-1").decode("utf-8") if "\\x" in text else plain
    except (UnicodeEncodeError, UnicodeDecodeError):
        return plain


class UnknownExpressionError(Exception):
    """C++ that this reader does not follow."""


class Expressions:
    """Evaluates the few kinds of expressions that the cases are made of."""

    def __init__(self, tools: dict[str, Tool], messages: dict[str, Expected]) -> None:
        self.names: dict[str, Any] = {**tools, **messages}

    def value(self, pieces: Sequence[Piece]) -> Any:
        value, rest = self._sum(list(pieces))
        if rest:
            raise UnknownExpressionError(" ".join(piece.text for piece in rest[:5]))
        return value

    def _sum(self, pieces: list[Piece]) -> tuple[Any, list[Piece]]:
        value, rest = self._one(pieces)
        while rest and (rest[0].kind == "text" or rest[0].text == "+"):
            more, rest = self._one(rest[1:] if rest[0].text == "+" and rest[0].kind == "sign" else rest)
            value = value + more
        return value, rest

    def _one(self, pieces: list[Piece]) -> tuple[Any, list[Piece]]:
        if not pieces:
            raise UnknownExpressionError("nothing")
        first, rest = pieces[0], pieces[1:]
        if first.kind == "text":
            return first.text, rest
        if first.text == "{":
            inner, rest = _enclosed(pieces)
            return [self.value(part) for part in _split(inner)], rest
        if first.kind == "word" and rest and rest[0].text == "(":
            inner, rest = _enclosed(rest)
            return self._call(first.text, [self.value(part) for part in _split(inner)]), rest
        if first.kind == "word" and rest and rest[0].text == "{":
            return self._one(rest)
        if first.kind == "word":
            if first.text in ("true", "false"):
                return first.text == "true", rest
            if first.text in self.names:
                return self.names[first.text], rest
            return first.text, rest
        if first.kind == "number":
            return first.text, rest
        raise UnknownExpressionError(first.text)

    def _call(self, name: str, given: list[Any]) -> Any:
        if name in ("simple_assist_msg", "message_with_tool_calls", "message_with_content_and_tool_call",
                    "message_with_reasoning_and_tool_call", "message_with_tool_calls_and_reasoning",
                    "message_with_reasoning_content_and_multiple_tool_calls"):  # fmt: skip
            return message_of(name, given)
        if name == "std::string" and len(given) == 1:
            return given[0]
        raise UnknownExpressionError(name)


def message_of(name: str, given: list[Any]) -> Expected:
    """What the peer's helpers make of their arguments."""
    texts = [*given, "", "", "", "", ""]
    if name == "simple_assist_msg":
        content, thinking, tool, arguments = texts[:4]
        return Expected(content, thinking, [(tool, _arguments(arguments))] if tool or texts[4] else [])
    if name == "message_with_tool_calls":
        return Expected("", "", [(texts[0], _arguments(texts[1]))])
    if name == "message_with_content_and_tool_call":
        return Expected(texts[0], "", [(texts[1], _arguments(texts[2]))])
    if name == "message_with_reasoning_and_tool_call":
        return Expected("", texts[0], [(texts[1], _arguments(texts[2]))])
    if name == "message_with_tool_calls_and_reasoning":
        return Expected("", texts[2], [(texts[0], _arguments(texts[1]))])
    return Expected(texts[1], texts[0], [(call[0], _arguments(call[1])) for call in given[2]])


def _arguments(text: str) -> Any:
    try:
        return json.loads(text or "{}")
    except ValueError:
        return text


def _enclosed(pieces: Sequence[Piece]) -> tuple[list[Piece], list[Piece]]:
    """What stands between a bracket and the one that closes it, and the rest."""
    depth = 0
    for at, piece in enumerate(pieces):
        if piece.kind == "sign":
            depth += (piece.text in "([{") - (piece.text in ")]}")
        if depth == 0:
            return list(pieces[1:at]), list(pieces[at + 1 :])
    raise UnknownExpressionError("an open bracket")


def _split(pieces: Sequence[Piece]) -> list[list[Piece]]:
    parts: list[list[Piece]] = [[]]
    depth = 0
    for piece in pieces:
        if piece.kind == "sign":
            depth += (piece.text in "([{") - (piece.text in ")]}")
        if piece == Piece("sign", ",") and depth == 0:
            parts.append([])
        else:
            parts[-1].append(piece)
    return [part for part in parts if part]


# ---- the cases -------------------------------------------------------------------------------------------------------


def tools_in(pieces: Sequence[Piece]) -> dict[str, Tool]:
    found = {}
    for at, piece in enumerate(pieces):
        if piece.text == "common_chat_tool" and pieces[at + 1].kind == "word" and pieces[at + 2].text == "{":
            inner, _ = _enclosed(pieces[at + 2 :])
            texts = [part.text for part in inner if part.kind == "text"]
            if len(texts) == 3:
                found[pieces[at + 1].text] = Tool(texts[0], texts[1], json.loads(texts[2]))
    return found


def messages_in(pieces: Sequence[Piece], expressions: Expressions) -> dict[str, Expected]:
    found = {}
    for at, piece in enumerate(pieces):
        if (
            piece.text == "common_chat_msg"
            and pieces[at + 1].text.startswith("message_")
            and pieces[at + 2].text == "="
        ):
            end = next(i for i in range(at, len(pieces)) if pieces[i] == Piece("sign", ";"))
            found[pieces[at + 1].text] = expressions.value(pieces[at + 3 : end])
    return found


def cases_in(pieces: Sequence[Piece], expressions: Expressions, unread: Counter[str]) -> Iterator[Case]:
    """The chains of calls that begin with `.test(...)` and end with `.run()`."""
    template: list[str] = []
    listed: list[str] = []
    for at, piece in enumerate(pieces):
        if piece.kind == "text" and piece.text.endswith(".jinja") and piece.text.startswith("models/"):
            listed = [*listed, piece.text] if pieces[at - 1].text == "," and listed else [piece.text]
        if piece.text == "std::string" and pieces[at + 1].kind == "word" and pieces[at + 2].text == "=":
            end = next(i for i in range(at, len(pieces)) if pieces[i] == Piece("sign", ";"))
            try:
                expressions.names[pieces[at + 1].text] = expressions.value(pieces[at + 3 : end])
            except UnknownExpressionError:
                continue
        if piece.text == "common_chat_tool_call" and pieces[at + 1].kind == "word" and pieces[at + 2].text in "={":
            end = next(i for i in range(at, len(pieces)) if pieces[i] == Piece("sign", ";"))
            begin = at + 2 + (pieces[at + 2].text == "=")
            expressions.names[pieces[at + 1].text] = expressions.value(pieces[begin:end])
        if piece.text == "peg_tester" and pieces[at + 1].text == "(":
            named = pieces[at + 2]
            template = [named.text] if named.kind == "text" else list(listed)
        if piece.text == "test" and pieces[at - 1].text == "." and pieces[at + 1].text == "(" and template:
            try:
                answer, settings, expected = _chain(pieces[at + 1 :], expressions)
            except UnknownExpressionError as error:
                unread[str(error)] += 1
                continue
            for one in template:
                yield Case(Path(one).stem, answer, settings, expected)


def _chain(pieces: Sequence[Piece], expressions: Expressions) -> tuple[str, dict[str, Any], Expected]:
    inner, rest = _enclosed(pieces)
    answer = expressions.value(inner)
    settings: dict[str, Any] = {}
    expected = Expected()
    while len(rest) > 2 and rest[0].text == ".":
        name = rest[1].text
        inner, rest = _enclosed(rest[2:])
        given = [expressions.value(part) for part in _split(inner)]
        if name == "expect":
            expected = given[0]
        elif name == "expect_content":
            expected = Expected(given[0], expected.reasoning, expected.calls)
        elif name == "expect_reasoning":
            expected = Expected(expected.content, given[0], expected.calls)
        elif name == "expect_tool_calls":
            calls = [(call[0], _arguments(call[1])) for call in given[0]]
            expected = Expected(expected.content, expected.reasoning, calls)
        else:
            settings[name] = given[0] if given else True
    if not isinstance(answer, str) or not isinstance(expected, Expected):
        raise UnknownExpressionError("an answer that is no text")
    return answer, settings, expected


# ---- reading ---------------------------------------------------------------------------------------------------------


def read(case: Case, source: str) -> tuple[Expected, list[CallBroken]]:
    """The answer as this package reads it, character by character."""
    tools = list(_tools(case.settings.get("tools", [])))
    template = ChatTemplate(source, "<s>", "</s>")
    form = recognise(source)
    thinking = case.settings.get("enable_thinking", True)
    prepared, shown = form.prompt([{"role": "user", "content": "Hey there!"}], tools)
    prompt = template.render(
        prepared, tools=shown, enable_thinking=thinking, thinking=thinking, **tool_variables(source, shown)
    )
    span = reasoning.recognise(source)
    if case.settings.get("reasoning_format", "COMMON_REASONING_FORMAT_NONE") == "COMMON_REASONING_FORMAT_NONE":
        span = None
    opened = span is not None and reasoning.begins_open(span, prompt)
    calls = [one.text for one in form.triggers_for(tools) if not one.at_start] if tools and form.ends_thinking else []
    splitter = ReasoningSplitter(span, opened, calls)
    reader = form.reader(tools) if tools or form.reads_all else None
    checked = CheckedCalls(tools)
    events: list[Event] = []
    for split in [*(one for character in case.answer for one in splitter.push(character)), *splitter.finish()]:
        events += reader.push(split.text) if isinstance(split, Text) and reader is not None else [split]
    events += reader.finish() if reader is not None else []
    return _collected(checked.passed(events, bound=False))


def _tools(given: Sequence[Any]) -> Iterator[Tool]:
    """Tools by their names in the C++, or written where they are used."""
    for tool in given:
        if isinstance(tool, Tool):
            yield tool
        elif isinstance(tool, list) and len(tool) == 3:
            yield Tool(tool[0], tool[1], json.loads(tool[2]))


def _collected(events: Sequence[Event]) -> tuple[Expected, list[CallBroken]]:
    found, names, arguments, broken = Expected(), {}, {}, []
    for event in events:
        match event:
            case Text(text):
                found.content += text
            case Reasoning(text):
                found.reasoning += text
            case CallBegin(index, name):
                names[index], arguments[index] = name, ""
            case CallArguments(index, piece):
                arguments[index] += piece
            case CallEnd(index):
                found.calls.append((names[index], json.loads(arguments[index])))
            case CallBroken():
                broken.append(event)
    return found, broken


def agrees(expected: Expected, found: Expected) -> bool:
    """White space at the ends of texts is not compared."""
    same_text = expected.content.strip() == found.content.strip()
    return same_text and expected.reasoning.strip() == found.reasoning.strip() and expected.calls == found.calls


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--template", default="", help="only templates whose name holds this")
    parser.add_argument("--all", action="store_true", help="show the cases that agree, too")
    asked = parser.parse_args()
    pieces = pieces_of((asked.directory / "tests" / "test-chat.cpp").read_text(encoding="utf-8"))
    expressions = Expressions(tools_in(pieces), {})
    expressions.names |= {"tools": [expressions.names[name] for name in ("special_function_tool", "python_tool")]}
    expressions.names |= messages_in(pieces, expressions)
    unread: Counter[str] = Counter()
    same = different = left_out = 0
    for case in cases_in(pieces, expressions, unread):
        if asked.template.lower() not in case.template.lower():
            continue
        if any(name in case.settings for name in _LEFT_OUT):
            left_out += 1
            continue
        source = (asked.directory / "models" / "templates" / f"{case.template}.jinja").read_text(encoding="utf-8")
        try:
            found, broken = read(case, source)
        except BeeError as error:
            found, broken = Expected(content=f"{type(error).__name__}: {error}"), []
        if agrees(case.expected, found):
            same += 1
            if asked.all:
                print(f"same       {case.template}: {case.answer!r}")
            continue
        different += 1
        print(f"different  {case.template} ({recognise(source).name}) {sorted(case.settings)}: {case.answer!r}")
        print(f"    expected {case.expected}\n    found    {found}")
        for one in broken:
            print(f"    broken   {one.reason}")
    total = same + different
    print(f"{same} of {total} agree ({100 * same / max(total, 1):.1f}%); {left_out} are about other things; "
          f"{sum(unread.values())} could not be followed: {dict(unread.most_common(5))}")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
