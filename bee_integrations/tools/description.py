"""What a family's calls look like, told as patterns. Trigger, grammar, reader and writer all come from it.

    Description(
        name="deepseek_v3_1",
        calls="<｜tool▁calls▁begin｜>$calls<｜tool▁calls▁end｜>",
        call="<｜tool▁call▁begin｜>$name<｜tool▁sep｜>$arguments<｜tool▁call▁end｜>",
        ...
    )

A pattern is text with fields. In `calls`: `$calls`. In `call`: `$name`; the arguments as `$arguments` (a JSON object)
or `$parameters` (one `parameter` after the other); `$id`, `$index` (from 0), `$number` (from 1). In `parameter`:
`$key`, `$value`, `$type` (the JSON type of the value), `$is_text` (`true` or `false`). The sign `⏎` stands for white
space that may be there or not.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

__all__ = ["GAP", "Description", "Pattern", "Values"]

GAP = "⏎"
_FIELD = re.compile(r"(\$[a-z_]+)")


class Values:
    """How values of parameters are written."""

    TEXT = "text"
    """Strings as they are up to what ends the value, everything else as JSON."""
    PYTHON = "python"
    """Literals of Python."""
    NESTED = "nested"
    """As `TEXT`, but objects and lists as tags within tags."""


class Pattern:
    """A text with fields, cut into pieces: texts, and fields with their `$`."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.pieces = tuple(piece for piece in _FIELD.split(text) if piece)

    def before(self, *fields: str) -> str:
        """The text in front of the first of these fields, which may itself hold other fields."""
        return self._cut(fields)[0]

    def after(self, *fields: str) -> str:
        """The text behind the first of these fields."""
        return self._cut(fields)[1]

    def _cut(self, fields: tuple[str, ...]) -> tuple[str, str]:
        for at, piece in enumerate(self.pieces):
            if piece in fields:
                return "".join(self.pieces[:at]), "".join(self.pieces[at + 1 :])
        return self.text, ""

    @cached_property
    def opening(self) -> str:
        """The text in front of the first field, without white space that may be missing at its end."""
        first = self.pieces[0] if self.pieces else ""
        return "" if first.startswith("$") else first.split(GAP)[0]

    @cached_property
    def regex(self) -> re.Pattern[str]:
        """Matches a text of the pattern; fields are groups by their names."""
        seen: set[str] = set()
        parts = []
        for piece in self.pieces:
            if not piece.startswith("$"):
                parts.append(re.escape(piece).replace(re.escape(GAP), r"\s*"))
            elif piece[1:] in seen:
                parts.append(f"(?P={piece[1:]})")
            else:
                seen.add(piece[1:])
                inner = r"\d+" if piece in ("$index", "$number") else ".+?"
                parts.append(f"(?P<{piece[1:]}>{inner})")
        return re.compile("".join(parts), re.DOTALL)

    def write(self, **fields: str) -> str:
        """The text with these fields; what may be missing of it is."""
        return "".join(fields[piece[1:]] if piece.startswith("$") else piece.replace(GAP, "") for piece in self.pieces)


@dataclass(frozen=True)
class Description:
    """One way of writing calls."""

    name: str
    """What users call it."""
    models: str
    """Who writes calls so, for the documentation."""
    call: str
    """A pattern of one call."""
    calls: str = "$calls"
    """What stands around calls."""
    each: bool = False
    """Every call has what stands around calls to itself; otherwise all calls of an answer stand between the two."""
    between: str = ""
    """What separates two calls."""
    parallel: bool = True
    """An answer may hold several calls."""
    parameter: str = ""
    """A pattern of one parameter, where the call has `$parameters`."""
    between_parameters: str = ""
    """What separates two of them."""
    values: str = Values.TEXT
    """How their values are written: one of `Values`."""
    quotes: tuple[str, str] | None = None
    """What may stand around a text that is a value, so that it can hold anything."""
    bare: bool = False
    """What stands around calls may be missing: the beginning of a call together with a tool's name is one."""
    loose_json: bool = False
    """The JSON of arguments may be spread over lines."""
    named_trigger: bool = False
    """Only the beginning together with the name of a tool begins a call."""
    prompt_end: str = ""
    """The part of an answer's first marker that the prompt has already said."""
    hidden: tuple[str, ...] = ()
    """Markers around what the user reads, or around calls, that are shown to nobody. May hold `$name`."""
    answer_opening: str = ""
    """What stands before an answer that is no call."""
    keeps_ids: bool = False
    """The ids are the model's own."""
    marks: tuple[str, ...] = ()
    """Texts that a chat template of the family has, all of them; where one holds `|||`, one of several will do."""
    unlike: tuple[str, ...] = ()
    """Texts that it does not have."""
    interrupts: bool = True
    """A call in the middle of thinking ends it."""
    note: str = ""
    """A word on the format, for the documentation."""

    @cached_property
    def call_pattern(self) -> Pattern:
        """`call`, cut into pieces."""
        return Pattern(self.call)

    @cached_property
    def calls_pattern(self) -> Pattern:
        """`calls`, cut into pieces."""
        return Pattern(self.calls)

    @cached_property
    def parameter_pattern(self) -> Pattern:
        """`parameter`, cut into pieces."""
        return Pattern(self.parameter)

    @property
    def is_object(self) -> bool:
        """Whether a call is one JSON object with the name as a value, whose members may come in any order."""
        return self.call.startswith("{") and bool(re.search(r':\s*"\$name"', self.call))

    @property
    def begin(self) -> str:
        """What stands in front of the calls."""
        return self.calls_pattern.before("$calls")

    @property
    def end(self) -> str:
        """What stands behind them."""
        return self.calls_pattern.after("$calls")

    @property
    def head(self) -> Pattern:
        """A call up to its arguments."""
        return Pattern(self.call_pattern.before("$arguments", "$parameters"))

    @property
    def tail(self) -> str:
        """A call behind its arguments."""
        return self.call_pattern.after("$arguments", "$parameters")

    def named_opening(self, name: str) -> str:
        """The beginning of a call of this tool, where the name is a part of what begins one."""
        first, _, following = self.call_pattern.pieces[:3]
        return first + name + following.split(GAP)[0]

    def openings(self, names: Sequence[str]) -> list[tuple[str, str]]:
        """The texts that begin a call, and of which kind each is: "group", "call", or the name of a tool."""
        group, call = Pattern(self.begin).opening, self.call_pattern.opening
        named = [(self.named_opening(name), name) for name in names] if self.named_trigger or self.bare else []
        if self.named_trigger:
            return named
        return [(group, "group"), *named] if group else [(call, "call")]

    def recognises(self, template: str) -> bool:
        """Whether a chat template (Jinja source) is of this family."""
        return (
            bool(self.marks)
            and all(any(part in template for part in mark.split("|||")) for mark in self.marks)
            and not any(mark in template for mark in self.unlike)
        )
