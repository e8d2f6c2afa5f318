"""Reading calls that stand between a beginning and an ending marker, amid text.

`MarkedCallReader` finds the markers, and turns what cannot be read into a broken call; a `CallParser` reads what is
between the markers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

from .json_scan import SPACE
from .step_reader import StepReader, described
from .tool_format import Event, Tool

__all__ = ["CallParser", "CharacterParser", "MalformedCallError", "MarkedCallReader"]


class MalformedCallError(Exception):
    """The text is no call; the message says what is wrong. Never leaves a reader."""


class CallParser(ABC):
    """Reads one call between its markers."""

    def __init__(self, tools: Sequence[Tool]) -> None:
        self.tools = {tool.name: tool for tool in tools}
        self.name: str | None = None
        """The tool's name, as soon as it is complete and known to be a tool's."""
        self.complete = False
        """Nothing but white space may follow up to the ending marker."""
        self.fault: str | None = None
        """What is wrong; nothing is read after it."""
        self.pieces: list[str] = []
        """JSON of the arguments that was not handed on yet."""

    @abstractmethod
    def push(self, text: str) -> str:
        """Reads on; returns what follows the call or begins with what cannot be part of it."""

    def named(self, name: str) -> None:
        """Sets the name. Raises `MalformedCallError` where there is no such tool."""
        if name not in self.tools:
            raise MalformedCallError(f"there is no tool {name!r}")
        self.name = name


class CharacterParser(CallParser):
    """Reads one character at a time."""

    step: Callable[[str], None]
    """Takes a character, and sets the next step. Raises `MalformedCallError` at the one with which the text cannot be
    a call any more."""
    markers: tuple[str, ...]
    """What no name or number holds: a model that forgets to close one has gone on to the end of the call."""

    def push(self, text: str) -> str:
        for at, character in enumerate(text):
            if self.complete:
                return text[at:]
            try:
                self.step(character)
            except MalformedCallError as error:
                self.fault = str(error)
                return text[at:]
        return ""

    def check_word(self, word: str) -> None:
        """Raises `MalformedCallError` where a word that is being read has become a marker at its end."""
        for marker in self.markers:
            if word.endswith(marker):
                raise MalformedCallError(f"{marker} stands in {word!r}")


class MarkedCallReader(StepReader):
    """Text, and calls between two markers; thoughts between two others, wherever they stand."""

    def __init__(
        self, begin: str, end: str, parser: Callable[[], CallParser], *, thought: tuple[str, ...] = (), title: str = ""
    ) -> None:
        """`thought`: the markers around thoughts, which begin with `title`."""
        super().__init__(())
        self._begin = begin
        self._end = end
        self._thought = thought
        self._title = title
        self._header: str | None = ""  # of a thought, as long as it may be the title
        self._new_parser = parser
        self._parser = parser()
        self._tail = ""  # what follows a complete call, up to the end marker
        self._enter_text()

    def _enter_text(self) -> None:
        self.enter(self._text, self._begin, *self._thought)

    def finish(self) -> list[Event]:
        if self.step == self._text:
            self.say(self.marker.flush())
            self.say_held_space()
        elif self.step == self._thinking:
            self._think(self.marker.flush(), is_last=True)
        elif self.step == self._after_call:
            self.end_call()  # only the end marker is missing, so nothing of the call is
        elif self.step == self._skip:
            self.keep(self.marker.flush())
            self.break_call()
        else:
            self.break_call(f"{described(self._parser.name)} is cut off")
        return self.take()

    def _text(self, text: str) -> str:
        before, marker, rest = self.marker.push(text)
        self.say(before)
        if marker in self._thought:
            if marker == self._thought[0]:
                self._header = ""
                self.enter(self._thinking, *self._thought)
        elif marker is not None:
            self.open_call(marker)
            self._parser = self._new_parser()
            self.step = self._call
        return rest

    def _thinking(self, text: str) -> str:
        before, marker, rest = self.marker.push(text)
        self._think(before, is_last=marker is not None)
        if marker == self._thought[-1]:
            self._enter_text()
        elif marker is not None:
            self._header = ""
        return rest

    def _think(self, text: str, *, is_last: bool) -> None:
        """A piece of a thought, whose title is left out."""
        if self._header is None:
            self.think(text)
            return
        self._header += text
        bare = self._header.lstrip(SPACE)
        thought = bare.removeprefix(self._title).lstrip(SPACE)
        may_be_title = self._title.startswith(bare) or (bare.startswith(self._title) and not thought)
        if is_last or not may_be_title:
            self.think("" if may_be_title else thought)
            self._header = None

    def _call(self, text: str) -> str:
        rest = self._parser.push(text)
        self.keep(text, rest)
        if self._parser.name is not None and not self.begun:
            self.begin(self._parser.name)
        self.argue("".join(self._parser.pieces))
        self._parser.pieces.clear()
        if self._parser.fault is not None:
            return self._give_up(self._parser.fault, self._possible_marker() + rest)
        if self._parser.complete:
            self._tail = ""
            self.step = self._after_call
        return rest

    def _after_call(self, text: str) -> str:
        self._tail += text
        bare = self._tail.lstrip(SPACE)
        if bare.startswith(self._end):
            self.end_call()
            self._enter_text()
            return bare[len(self._end) :]
        if self._end.startswith(bare):
            return ""
        self.keep(self._tail, bare)
        wrong = next(one for one, wanted in zip(bare, self._end, strict=False) if one != wanted)
        return self._give_up(f"{wrong!r} stands between its end and {self._end}", bare)

    # ---- what is no call ----

    def _give_up(self, fault: str, rest: str) -> str:
        """From here on only the end of the call is looked for."""
        self.fault = f"{described(self._parser.name)} is malformed: {fault}"
        self.enter(self._skip, self._end, self._begin)
        return rest

    def _possible_marker(self) -> str:
        """The end of what was read of the call, if it is a marker, or one may begin with it."""
        markers = (self._end, self._begin)
        read = self.raw[len(self._begin) :]
        for length in range(min(len(read), max(map(len, markers))), 0, -1):
            if any(marker.startswith(read[-length:]) for marker in markers):
                return self.take_back(length)
        return ""

    def _skip(self, text: str) -> str:
        before, marker, rest = self.marker.push(text)
        self.keep(before)
        if marker is None:
            return rest
        if marker == self._end:
            self.keep(marker)
        else:
            rest = marker + rest
        self.break_call()
        self._enter_text()
        return rest
