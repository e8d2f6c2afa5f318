"""JSON that comes in pieces: where a value ends, and what a call that is written as an object says so far."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection
from typing import Any

__all__ = ["SPACE", "CallScan", "ValueScan", "parse_json"]

SPACE = " \t\r\n"

# What means something outside of strings, or cannot stand there at all; and the same inside of them.
_OUTSIDE = re.compile(r"[^\w \t\r\n,:.+-]", re.ASCII)
_INSIDE = re.compile(r'["\\\x00-\x1f]')
_CLOSING = {"{": "}", "[": "]"}


def parse_json(text: str) -> Any:
    """The value of a JSON text. Raises `ValueError`, also for NaN, infinities and what is nested too deeply."""
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON value")


class ValueScan:
    """Finds the end of a JSON string, object or array in a stream of text. White space before it is dropped.

    Characters that cannot stand where they do are told at once: a value without an end would take in all that follows.
    """

    def __init__(self, openings: str) -> None:
        """`openings`: the characters that the value may begin with."""
        self._openings = openings
        self._expected: list[str] = []  # the brackets that are still to be closed
        self._in_string = False
        self._escaped = False
        self._pieces: list[str] = []
        self.value: Any = None
        """The value as Python sees it, after the end."""
        self.error: str | None = None
        """What is wrong, after the end; the rest that `push` returned begins where the nesting breaks."""

    @property
    def in_string(self) -> bool:
        """Whether what comes next is part of a string."""
        return self._in_string

    @property
    def text(self) -> str:
        """The value so far."""
        return "".join(self._pieces)

    def push(self, text: str) -> tuple[str, str, bool]:
        """(the part of the text that belongs to the value, the rest, whether the value is at its end or broken)."""
        if not self._pieces:
            text = text.lstrip(SPACE)
            if not text:
                return "", "", False
            if text[0] not in self._openings:
                self.error = f"expected {' or '.join(self._openings)}, found {text[0]!r}"
                return "", text, True
        end, done = self._scan(text)
        self._pieces.append(text[:end])
        if done and self.error is None:
            try:
                self.value = parse_json(self.text)
            except ValueError as error:
                self.error = str(error)
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
            elif self._in_string and char == "\\":
                self._escaped = True
            elif self._in_string:
                self.error = f"the control character {char!r} stands in a string"
            elif char in _CLOSING:
                self._expected.append(_CLOSING[char])
            elif char not in "}]":
                self.error = f"{char!r} stands outside of a string"
            elif char != self._expected[-1]:
                self.error = f"expected {self._expected[-1]}, found {char}"
            else:
                self._expected.pop()
            if self.error is not None:
                return at - 1, True
            if not self._expected and not self._in_string:
                return at, True
        return len(text), False


class CallScan:
    """Reads one call that is written as an object, {"name": "f", "arguments": {...}}, as it comes.

    The keys may stand in any order; the object may have white space before it. An "id" counts only where it stands
    before the name, since the name is what makes a call known.
    """

    def __init__(
        self,
        argument_keys: Collection[str] = ("arguments",),
        *,
        other_keys: bool = True,
        name_key: str = "name",
        id_key: str = "id",
    ) -> None:
        """`other_keys`: whether there may be keys beside the name and the arguments."""
        self.name: str | None = None
        self.id: str | None = None
        self.members: dict[str, Any] = {}
        """The keys so far, with the values of those that are complete and hold neither name nor arguments."""
        self.error: str | None = None
        """What is wrong; nothing is read after it."""
        self._argument_keys = argument_keys
        self._other_keys = other_keys
        self._name_key = name_key
        self._id_key = id_key
        self._expected = "{"  # the punctuation that may come
        self._read: Callable[[str], str] = self._punctuation
        self._key = ""
        self._value = ValueScan("")  # the key or the value that is being read
        self._scalar = ""
        self._arguments: list[str] = []  # what waits for the name
        self._done = False

    @property
    def seen_arguments(self) -> bool:
        """Whether the key of the arguments has been read."""
        return any(key in self.members for key in self._argument_keys)

    @property
    def partial_name(self) -> str | None:
        """The name so far while it is being read, as it is spelled in JSON."""
        return self._value.text[1:] if self._key == self._name_key and self._read == self._nested else None

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

    # Each of these reads one part, sets what reads the next one, and returns the text that it did not need.

    def _punctuation(self, text: str) -> str:
        text = text.lstrip(SPACE)
        if not text:
            return ""
        found = text[0]
        if found not in self._expected:
            self.error = f"expected {' or '.join(self._expected)}, found {found!r}"
            if self._expected == "{":
                self.error = f"{found!r} stands where a JSON object is expected"
            return text
        if found == '"':
            self._value = ValueScan('"')
            self._read = self._key_text
            return text
        if found == ":":
            self._read = self._value_start
        elif found == "}":
            self._close()
        else:
            self._expected = '"}' if found == "{" else '"'
        return text[1:]

    def _await(self, punctuation: str) -> None:
        self._expected = punctuation
        self._read = self._punctuation

    def _key_text(self, text: str) -> str:
        _, text, done = self._value.push(text)
        if done and self._value.error is not None:
            self.error = f"a key is malformed: {self._value.error}"
        elif done:
            self._take_key(self._value.value)
        return text

    def _take_key(self, key: str) -> None:
        is_argument = key in self._argument_keys
        if key in self.members:
            self.error = f"the key {key!r} is there twice"
        elif is_argument and self.seen_arguments:
            self.error = "the arguments are there twice"
        elif not (is_argument or key == self._name_key or self._other_keys):
            self.error = f"the key {key!r} is none of a call"
        self._key = key
        self.members[key] = None
        self._await(":")

    def _value_start(self, text: str) -> str:
        text = text.lstrip(SPACE)
        if text:
            openings = "{" if self._key in self._argument_keys else '"' if self._key == self._name_key else '"{['
            self._value = ValueScan(openings)
            self._read = self._nested if len(openings) == 1 or text[0] in openings else self._bare
        return text

    def _nested(self, text: str) -> str:
        piece, text, done = self._value.push(text)
        if self._key in self._argument_keys:
            self._arguments.append(piece)
        if done and self._value.error is not None:
            is_argument = self._key in self._argument_keys
            what = "the arguments are no JSON object" if is_argument else f"the value of {self._key!r} is malformed"
            self.error = f"{what}: {self._value.error}"
        elif done:
            self._take_value(self._value.value)
        return text

    def _bare(self, text: str) -> str:
        """A number, a truth value or null, of which only what follows shows the end."""
        found = re.search(r"[\s,}\]]", text)
        self._scalar += text[: found.start()] if found else text
        if found is None:
            return ""
        try:
            self._take_value(parse_json(self._scalar))
        except ValueError:
            self.error = f"the value of {self._key!r} is malformed"
        self._scalar = ""
        return text[found.start() :]

    def _take_value(self, value: Any) -> None:
        if self._key == self._name_key:
            self.name = value
        elif self._key not in self._argument_keys:
            self.members[self._key] = value
            if self._key == self._id_key and self.name is None and isinstance(value, str):
                self.id = value
        self._await(",}")

    def _close(self) -> None:
        self._done = True
        if self.name is None:
            self.error = f"it has no name: there is no {self._name_key!r}"
        elif not self.seen_arguments:
            self.error = f"it has no arguments: there is no {' or '.join(map(repr, self._argument_keys))}"
