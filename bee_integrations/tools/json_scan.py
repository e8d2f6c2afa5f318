"""JSON that comes in pieces: where a value ends, and what a call that is written as an object says so far."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from typing import Any

__all__ = ["CallScan", "ObjectScan", "parse_json"]

_SPACE = " \t\r\n"
_OUTSIDE = re.compile(r'["{}\[\]]')
_INSIDE = re.compile(r'["\\]')
_CLOSING = {"{": "}", "[": "]"}


def parse_json(text: str) -> Any:
    """The value of a JSON text. Raises `ValueError`, also for NaN, infinities and what is nested too deeply."""
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON value")


class ObjectScan:
    """Finds the end of a JSON object or array in a stream of text. White space before it is dropped."""

    def __init__(self, openings: str = "{[") -> None:
        """`openings`: the characters that the value may begin with."""
        self._openings = openings
        self._expected: list[str] = []  # the brackets that are still to be closed
        self._in_string = False
        self._escaped = False
        self._pieces: list[str] = []
        self.error: str | None = None
        """What is wrong with the nesting; the text that `push` returned as the rest begins where it is."""

    @property
    def text(self) -> str:
        """The value so far."""
        return "".join(self._pieces)

    def value(self) -> Any:
        """The value as Python sees it, after the end. Raises `ValueError` where it is no JSON inside its brackets."""
        return parse_json(self.text)

    def push(self, text: str) -> tuple[str, str, bool]:
        """(the part of the text that belongs to the value, the rest, whether the value is at its end or broken)."""
        if not self._pieces:
            text = text.lstrip(_SPACE)
            if not text:
                return "", "", False
            if text[0] not in self._openings:
                self.error = f"expected {' or '.join(self._openings)}, found {text[0]!r}"
                return "", text, True
        end, done = self._scan(text)
        self._pieces.append(text[:end])
        return text[:end], text[end:], done

    def _scan(self, text: str) -> tuple[int, bool]:
        at = 0
        while at < len(text):
            if self._escaped:
                self._escaped = False
                at += 1
                continue
            found = (_INSIDE if self._in_string else _OUTSIDE).search(text, at)
            if found is None:
                break
            at, char = found.end(), found.group()
            if char == '"':
                self._in_string = not self._in_string
            elif char == "\\":
                self._escaped = True
            elif char in _CLOSING:
                self._expected.append(_CLOSING[char])
            elif char != self._expected[-1]:
                self.error = f"expected {self._expected[-1]}, found {char}"
                return at - 1, True
            else:
                self._expected.pop()
                if not self._expected:
                    return at, True
        return len(text), False


class CallScan:
    """Reads one call that is written as an object, {"name": "f", "arguments": {...}}, as it comes.

    The keys may stand in any order, and there may be others; the object may have white space before it. An "id" counts
    only where it stands before the name, since the name is what makes a call known.
    """

    def __init__(self, argument_keys: Collection[str] = ("arguments",)) -> None:
        self.name: str | None = None
        self.id: str | None = None
        self.members: dict[str, Any] = {}
        """The keys so far, with the values of those that are complete and hold neither name nor arguments."""
        self.error: str | None = None
        """What is wrong; nothing is read after it."""
        self.seen_arguments = False
        """Whether the key of the arguments has been read."""
        self._argument_keys = argument_keys
        self._read = self._opening
        self._key = ""
        self._pending = ""  # of the string or number that is being read
        self._value: ObjectScan | None = None
        self._arguments: list[str] = []  # what waits for the name
        self._done = False

    def push(self, text: str) -> tuple[str, str, bool]:
        """(a piece of the arguments, what follows the call, whether it is at its end or broken).

        Arguments come out only once the name is known.
        """
        while text and not self._done and self.error is None:
            text = self._read(text)
        piece = ""
        if self.name is not None:
            piece = "".join(self._arguments)
            self._arguments.clear()
        return piece, text, self._done or self.error is not None

    @property
    def partial_name(self) -> str | None:
        """The name so far while it is being read, as it is spelled in JSON."""
        return self._pending[1:] if self._key == "name" and self._pending.startswith('"') else None

    # Each of these reads one part, sets what reads the next one, and returns the text that it did not need.

    def _opening(self, text: str) -> str:
        return self._punctuation(text, {"{": self._first_key})

    def _first_key(self, text: str) -> str:
        return self._punctuation(text, {'"': self._key_text, "}": self._end})

    def _next_key(self, text: str) -> str:
        return self._punctuation(text, {'"': self._key_text})

    def _key_text(self, text: str) -> str:
        text = self._string(text)
        if self._is_complete_string():
            self._key = self._take_string()
            if self._key in self.members:
                self.error = f"the key {self._key!r} stands there twice"
            self.members[self._key] = None
            if self._key in self._argument_keys:
                if self.seen_arguments:
                    self.error = "the arguments stand there twice"
                self.seen_arguments = True
            self._read = self._colon
        return text

    def _colon(self, text: str) -> str:
        return self._punctuation(text, {":": self._any_value})

    def _any_value(self, text: str) -> str:
        text = text.lstrip(_SPACE)
        if not text:
            return ""
        if self._key in self._argument_keys:
            self._value = ObjectScan("{")
            self._read = self._arguments_value
        elif text[0] == '"':
            self._pending, text = '"', text[1:]
            self._read = self._string_value
        elif self._key == "name":
            self.error = "its name is not a string"
        elif text[0] in "{[":
            self._value = ObjectScan()
            self._read = self._nested_value
        else:
            self._read = self._scalar_value
        return text

    def _arguments_value(self, text: str) -> str:
        assert self._value is not None
        piece, text, done = self._value.push(text)
        self._arguments.append(piece)
        if done:
            self._finish_nested("the arguments are no JSON object: ")
        return text

    def _nested_value(self, text: str) -> str:
        assert self._value is not None
        _, text, done = self._value.push(text)
        if done:
            self._finish_nested(f"the value of {self._key!r} is malformed: ")
        return text

    def _finish_nested(self, complaint: str) -> None:
        assert self._value is not None
        if self._value.error is not None:
            self.error = complaint + self._value.error
            return
        try:
            value = self._value.value()
        except ValueError as error:
            self.error = complaint + str(error)
            return
        if self._key not in self._argument_keys:
            self.members[self._key] = value
        self._read = self._after_value

    def _string_value(self, text: str) -> str:
        text = self._string(text)
        if self._is_complete_string():
            value = self._take_string()
            if self._key == "name":
                self.name = value
            else:
                self.members[self._key] = value
                if self._key == "id" and self.name is None:
                    self.id = value
            self._read = self._after_value
        return text

    def _scalar_value(self, text: str) -> str:
        found = re.search(r"[\s,}\]]", text)
        self._pending += text[: found.start()] if found else text
        if found is None:
            return ""
        try:
            self.members[self._key] = parse_json(self._pending)
        except ValueError:
            self.error = f"the value of {self._key!r} is malformed"
        self._pending = ""
        self._read = self._after_value
        return text[found.start() :]

    def _after_value(self, text: str) -> str:
        return self._punctuation(text, {",": self._next_key, "}": self._end})

    def _end(self, text: str) -> str:
        return text

    def _punctuation(self, text: str, following: dict[str, Any]) -> str:
        text = text.lstrip(_SPACE)
        if not text:
            return ""
        if text[0] not in following:
            self.error = f"expected {' or '.join(following)}, found {text[0]!r}"
            return text
        self._read = following[text[0]]
        if text[0] == '"':
            self._pending = '"'
        if self._read == self._end:
            self._close()
        return text[1:]

    def _close(self) -> None:
        self._done = True
        if self.name is None:
            self.error = "it has no name"
        elif not self.seen_arguments:
            self.error = "it has no arguments"

    def _string(self, text: str) -> str:
        """Reads on in a string; `_pending` holds it from its opening quote."""
        at = 0
        while at < len(text):
            if len(self._pending) > 1 and _ends_in_escape(self._pending):
                self._pending += text[at]
                at += 1
                continue
            found = _INSIDE.search(text, at)
            end = found.end() if found else len(text)
            self._pending += text[at:end]
            at = end
            if found and found.group() == '"':
                break
        return text[at:]

    def _is_complete_string(self) -> bool:
        return len(self._pending) > 1 and self._pending[-1] == '"' and not _ends_in_escape(self._pending[:-1])

    def _take_string(self) -> str:
        text, self._pending = self._pending, ""
        try:
            return str(parse_json(text))
        except ValueError as error:
            self.error = f"a string is malformed: {error}"
            return ""


def _ends_in_escape(text: str) -> bool:
    return (len(text) - len(text.rstrip("\\"))) % 2 == 1
