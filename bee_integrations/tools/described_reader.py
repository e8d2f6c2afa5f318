"""The reader of formats that are told by a description."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Generator, Sequence
from typing import Any

from .description import GAP, Description, Pattern, Values
from .json_literals import json_of_literal
from .json_scan import SPACE, CallScan, ValueScan
from .nested_values import json_of_tags
from .parameter_rules import Kind, Signature
from .step_reader import StepReader, described
from .tool_format import CallArguments, Event, MarkerScan, Tool

__all__ = ["DescribedReader"]


_Reading = Generator[None, None, Any]
"""A part of the reader's work; it yields where it needs more text."""


class _MalformedError(Exception):
    """The text is no call; the message says what is wrong."""


class _CutOffError(Exception):
    """The answer ended in the middle of a call."""


class DescribedReader(StepReader):
    """Reads an answer by the description of its format. What it reads is one routine, which waits where text is
    missing; `push` gives it more."""

    def __init__(self, description: Description, tools: Sequence[Tool], *, begun: str = "") -> None:
        """`begun`: what the prompt has said of the answer's first marker."""
        super().__init__(tools)
        self._description = description
        self._tools = {tool.name: tool for tool in tools}
        self._signatures = (
            {tool.name: Signature(tool, description.name) for tool in tools} if description.parameter else {}
        )
        self._begun = begun
        self._text = ""  # that is not read yet
        self._over = False  # no more will come
        self._in_call = False  # what is read is part of a call
        self._in_group = False  # a call, or the end of the calls, comes next
        self._n_in_group = 0  # calls of it so far
        self._entered = ""  # what was read of a call that stands on its own
        self._name: str | None = None  # of the current call
        self._read_for_good = 1  # characters of the current call that are no part of another one
        self._hidden = self._hidden_markers()
        self._kinds = dict(description.openings(list(self.names)))  # of beginnings
        self._openings = self._call_openings()
        self._reading = self._answer()

    def push(self, text: str) -> list[Event]:
        self._text += text
        next(self._reading, None)
        return _joined(self.take())

    def finish(self) -> list[Event]:
        self._over = True
        next(self._reading, None)
        return _joined(self.take())

    # ---- markers -----------------------------------------------------------------------------------------------------

    def _hidden_markers(self) -> frozenset[str]:
        named = [marker for marker in self._description.hidden if "$name" in marker]
        plain = [marker for marker in self._description.hidden if "$name" not in marker]
        return frozenset(plain + [marker.replace("$name", name) for marker in named for name in self.names])

    def _call_openings(self) -> frozenset[str]:
        """The texts that begin the calls, or one of them where nothing needs to stand around it."""
        return frozenset(self._kinds)

    # ---- the answer --------------------------------------------------------------------------------------------------

    def _answer(self) -> _Reading:
        yield from self._first_marker()
        while True:
            if not self._in_group:
                marker = yield from self._scan([*self._openings, *self._hidden], self.say)
                if marker is None:
                    self.say_held_space()
                    return
                if marker not in self._openings:
                    continue
                self._enter(marker)
            try:
                yield from self._next_call()
            except _MalformedError as error:
                yield from self._skip(str(error))
            except _CutOffError:
                self._in_group = False
                self.break_call(f"{described(self._name)} is cut off")
            self._in_call = False

    def _first_marker(self) -> _Reading:
        """A marker of which the prompt has said a part."""
        if not self._begun:
            return
        markers = [one[len(self._begun) :] for one in (*self._openings, *self._hidden) if one.startswith(self._begun)]
        yield from self._skip_space()
        found = yield from self._one_of(*markers)
        if found is not None:
            self._text = self._begun + found + self._text

    def _enter(self, marker: str) -> None:
        """A call, or a group of them, begins with this marker."""
        self._open_call(marker)
        self._in_group = self._kinds[marker] == "group"
        self._entered = "" if self._in_group else marker
        self._n_in_group = 0

    def _open_call(self, raw: str) -> None:
        self.open_call(raw)
        self._name = None
        self._in_call = True
        self._read_for_good = 1

    def _next_call(self) -> _Reading:
        """The next call of a group or the end of it, or the only call."""
        d = self._description
        if self._in_group:
            if self._n_in_group == 0:
                yield from self._literal(d.begin[len(Pattern(d.begin).opening) :])
            yield from self._separator()
            if (yield from self._group_ends()):
                return
            if self._n_in_group:
                self._open_call("")
            self._n_in_group += 1
        if d.is_object:
            yield from self._object()
        else:
            yield from self._head()
            if d.parameter:
                yield from self._parameters()
            else:
                yield from self._arguments()
                if not (yield from self._next_begins()):
                    yield from self._literal(d.tail, may_end=True)
        self.end_call()
        if not d.end.strip(GAP) and not d.parallel:
            self._in_group = False
        if not self._in_group and d.end.strip(GAP):  # a call without the beginning of a group may have its end
            self._in_call = False
            yield from self._skip_space()
            yield from self._one_of(d.end.strip(GAP + SPACE))

    def _group_ends(self) -> _Reading:
        end = self._description.end.strip(GAP + SPACE)
        opening = Pattern(end).opening
        yield from self._skip_space()
        if not self._text:  # the answer is at its end, and only that of the group is missing
            if self._n_in_group == 0:
                raise _CutOffError
            self._in_group = False
            return True
        if not opening:
            return (yield from self._endless_group_ends())
        if not (yield from self._one_of(opening)):
            return False
        yield from self._literal(end[len(opening) :], may_end=True)
        self._in_group = False
        if self._n_in_group == 0:
            raise _MalformedError("there is no call between the markers")
        return True

    def _endless_group_ends(self) -> _Reading:
        """Where nothing marks the end of the calls, whatever is none ends them."""
        call = self._description.call_pattern.opening
        if self._n_in_group == 0 or not call:
            return False
        found = yield from self._one_of(call)
        if found is not None:
            self._put_back(found)
        elif self._over and call.startswith(self._text):  # cut off in the middle of what begins the next one
            self._take(len(self._text))
        self._in_group = found is not None
        return found is None

    # ---- calls -------------------------------------------------------------------------------------------------------

    def _object(self) -> _Reading:
        d = self._description
        (name_key,) = self._keys_of('"$name"')
        id_key = next(iter(self._keys_of('"$id"', '"$index"')), "id")
        scan = CallScan(self._keys_of("$arguments"), name_key=name_key, id_key=id_key)
        while True:
            yield from self._some()
            self._text, done = self.scan_call(scan, self._text, keeps_id=d.keeps_ids)
            self._name = scan.name or self._name
            self._raise_fault()
            if done:
                return

    def _keys_of(self, *fields: str) -> tuple[str, ...]:
        """The keys of the members that hold these fields in a call that is an object."""
        found = (re.findall(r'"([^"]+)":\s*' + re.escape(field), self._description.call) for field in fields)
        return tuple(key for keys in found for key in keys)

    def _raise_fault(self) -> None:
        fault, self.fault = self.fault, None
        if fault is not None:
            raise _MalformedError(fault)

    def _head(self) -> _Reading:
        """The call up to its arguments."""
        d = self._description
        head = d.head
        if self._kinds.get(self._entered) in self.names:
            name, rest = self._kinds[self._entered], head.text.replace("$name", self._kinds[self._entered])
            if "$" in rest.replace(name, ""):
                yield from self._until(head.pieces[-1].strip(GAP))
            else:
                yield from self._literal(rest[len(self._entered) :])
            self._begin(name, None)
            return
        said = self._entered
        if not said and d.call_pattern.opening:
            said = d.call_pattern.opening
            yield from self._literal(said)
        last = head.pieces[-1]
        marks_end = not last.startswith("$") and bool(last.strip(GAP))
        text, end = yield from self._until(last.strip(GAP) if marks_end else None)
        said += text + end
        found = head.regex.fullmatch(said) or head.regex.fullmatch(said.rstrip(SPACE))
        if found is None:
            raise _MalformedError(f"{said!r} stands where {head.text.replace(GAP, '')!r} is expected")
        name = found["name"] if found["name"] in self._tools else found["name"].strip(SPACE)
        self._begin(_unescaped(name) if d.call.startswith("{") else name, found.groupdict().get("id"))

    def _begin(self, name: str, call_id: str | None) -> None:
        self._name = name
        if name not in self._tools:
            raise _MalformedError(f"there is no tool {name!r}")
        self.begin(name, call_id, keeps_id=self._description.keeps_ids)
        self._read_for_good = len(self.raw)

    def _arguments(self) -> _Reading:
        scan = ValueScan("{")
        while True:
            yield from self._some()
            self._text, done = self.scan_arguments(scan, str(self._name), self._text)
            self._raise_fault()
            if done:
                return

    def _next_begins(self) -> _Reading:
        """Whether another call, or the end of the group, follows at once: then only a marker is missing."""
        others = [one for one in (*self._openings, self._description.call_pattern.opening) if one]
        others += [one for one in self._ends() if one not in self._description.tail]
        yield from self._skip_space()
        found = yield from self._one_of(*others)
        if found is not None:
            self._put_back(found)
        return found is not None

    # ---- parameters --------------------------------------------------------------------------------------------------

    def _parameters(self) -> _Reading:
        signature = self._signatures[str(self._name)]
        seen: set[str] = set()
        self.argue("{")
        tail = Pattern(self._description.tail.strip(GAP + SPACE)).opening
        while True:
            yield from self._skip_space()
            if (yield from self._one_of(tail)):
                break
            if seen and self._description.between_parameters:
                yield from self._literal(self._description.between_parameters)
                yield from self._skip_space()
            key, fields = yield from self._key()
            if key in seen and key in signature.properties:
                raise _MalformedError(f"the parameter {key!r} is there twice")
            if key not in signature.properties and signature.others is False:
                raise _MalformedError(f"it has no parameter {key!r}")
            self.argue(f"{', ' if seen else ''}{json.dumps(key, ensure_ascii=False)}: ")
            seen.add(key)
            yield from self._value(key, signature.kind(key), fields)
        missing = signature.required - seen
        if missing:
            raise _MalformedError(f"it has no {min(missing)!r}")
        self.argue("}")
        yield from self._literal(self._description.tail.strip(GAP + SPACE)[len(tail) :], may_end=True)

    def _key(self) -> _Reading:
        pattern = Pattern(self._description.parameter_pattern.before("$value"))
        if pattern.opening:
            yield from self._literal(pattern.opening)
        last = pattern.pieces[-1].rpartition(GAP)[2] or pattern.pieces[-1]
        text, end = yield from self._until(last)
        found = pattern.regex.fullmatch(pattern.opening + text + end)
        if found is None:
            wanted = pattern.text.replace(GAP, "")
            raise _MalformedError(f"{pattern.opening + text + end!r} stands where {wanted!r} is expected")
        return found["key"], found.groupdict()

    def _value(self, key: str, kind: Kind, fields: dict[str, str]) -> _Reading:
        if self._description.values == Values.PYTHON:
            yield from self._python_value(key, kind)
            return
        if "is_text" in fields or "type" in fields:
            is_text = fields.get("is_text") == "true" or fields.get("type") == "string"
            kind = Kind.TEXT if is_text else Kind.JSON
        end = self._description.parameter_pattern.after("$value").split(GAP)[0].replace("$key", key)
        if self._description.values == Values.NESTED and kind is not Kind.TEXT:
            yield from self._nested_value(key, end)
            return
        quotes = self._description.quotes
        if quotes is not None and (yield from self._one_of(quotes[0])):
            end = quotes[1] + end
        value = _TextValue(self.argue, key, kind)
        held: list[str] = []  # of a value in which the marker may be part of a string
        take = value.add if kind in (Kind.TEXT, Kind.TEXT_OR_NULL) else held.append
        while (marker := (yield from self._scan([end], take))) is not None:
            if not _ends_in_string("".join(held)):
                break
            held.append(end)
        if marker is None:
            raise _CutOffError
        if held:
            value.add("".join(held))
        value.finish()

    def _nested_value(self, key: str, end: str) -> _Reading:
        """Up to the tag that closes the value; one of the same name may stand within it."""
        namespace, signature = end.removesuffix(f"</{key}>"), self._signatures[str(self._name)]
        pieces: list[str] = []
        n_open = 1
        while n_open:
            marker = yield from self._scan([end, f"{namespace}<{key}>"], pieces.append)
            if marker is None:
                raise _CutOffError
            n_open += -1 if marker == end else 1
            pieces.append(marker if n_open else "")
        schema = signature.properties.get(key, signature.others)
        found = json_of_tags("".join(pieces), namespace, schema, signature.root)
        if found is None:
            raise _MalformedError(f"the value of {key!r} is malformed")
        self.argue(found)

    def _python_value(self, key: str, kind: Kind) -> _Reading:
        """Up to the comma or the bracket behind it."""
        depth, quote, text = 0, "", ""
        while True:
            yield from self._some()
            character, self._text = self._text[0], self._text[1:]
            if not quote and depth == 0 and character in ",)":
                self._text = character + self._text
                break
            self.keep(character)
            text += character
            if quote:
                escaped = len(text) - len(text[:-1].rstrip("\\")) - 1
                if character == quote and escaped % 2 == 0:
                    quote = ""
            elif character in "'\"":
                quote = character
            elif character in "([{":
                depth += 1
            elif character in ")]}":
                depth -= 1
        bare = text.strip(SPACE)
        found = json_of_literal(bare)
        if found is None and kind is Kind.JSON:
            raise _MalformedError(f"the value of {key!r} is malformed")
        if found is None:  # templates put texts into quotes as they are
            quoted = len(bare) > 1 and bare[0] == bare[-1] and bare[0] in "'\""
            found = json.dumps(bare[1:-1] if quoted else bare, ensure_ascii=False)
        self.argue(found)

    # ---- what is no call ---------------------------------------------------------------------------------------------

    def _skip(self, fault: str) -> _Reading:
        """Only an end, or another beginning, ends a call that is malformed."""
        named = fault.startswith(("there is no", described(self._name)))
        self.fault = fault if named else f"{described(self._name)} is malformed: {fault}"
        ends = self._ends()
        self._reconsider([*ends, *self._openings])
        marker = yield from self._scan([*ends, *self._openings], lambda text: None)
        if marker in self._openings:
            self._put_back(str(marker))
        if marker is None or marker in self._openings or (ends and marker == ends[-1]):
            self._in_group = False
        self.break_call()

    def _ends(self) -> list[str]:
        """What ends a call, and the group that it stands in, without a doubt."""
        d = self._description
        ends = ("" if d.is_object or (d.each and self._in_group) else d.tail, d.end)
        return [one for end in ends if len(one := end.split(GAP)[-1].strip(SPACE)) > 1]

    def _reconsider(self, markers: list[str]) -> None:
        """The end of what was read of the call is read again, if it is a marker, or one may begin with it."""
        raw = self.raw
        for length in range(min(len(raw) - self._read_for_good, max(map(len, markers), default=0)), 0, -1):
            if any(one.startswith(raw[-length:]) for one in markers):
                self._text = self.take_back(length) + self._text
                return

    # ---- reading -----------------------------------------------------------------------------------------------------

    def _some(self) -> _Reading:
        """Waits until there is text. Raises `_CutOffError` where none will come."""
        while not self._text:
            if self._over:
                raise _CutOffError
            yield

    def _take(self, count: int) -> str:
        text, self._text = self._text[:count], self._text[count:]
        if self._in_call:
            self.keep(text)
        return text

    def _put_back(self, text: str) -> None:
        if self._in_call:
            self.take_back(len(text))
        self._text = text + self._text

    def _skip_space(self) -> _Reading:
        """Reads over white space; at the end of the answer, too."""
        while True:
            self._take(len(self._text) - len(self._text.lstrip(SPACE)))
            if self._text or self._over:
                return
            yield

    def _separator(self) -> _Reading:
        """What may stand between two calls."""
        separators = self._description.between.strip(GAP + SPACE)
        yield from self._skip_space()
        while separators and (yield from self._one_of(separators)):
            yield from self._skip_space()

    def _one_of(self, *texts: str) -> _Reading:
        """Reads the longest of the texts that stands here; returns it, or None."""
        while True:
            longer = [one for one in texts if len(one) > len(self._text) and one.startswith(self._text)]
            if not longer or self._over:
                found = max((one for one in texts if one and self._text.startswith(one)), key=len, default=None)
                if found is not None:
                    self._take(len(found))
                return found
            yield

    def _literal(self, text: str, *, may_end: bool = False) -> _Reading:
        """Reads a text of a pattern, in which white space counts little. `may_end`: the answer may end before it."""
        for part in text.split(GAP):
            for word in re.split(r"\s+", part.strip(SPACE)):
                yield from self._skip_space()
                if word and not (yield from self._one_of(word)):
                    if self._over and word.startswith(self._text):
                        self._take(len(self._text))
                        if may_end:
                            return
                        raise _CutOffError
                    wrong = next((a for a, b in zip(self._text, word, strict=False) if a != b), self._text[:1])
                    raise _MalformedError(f"{wrong!r} stands where {word} is expected")
        if text and text[-1] in SPACE:
            yield from self._skip_space()

    def _until(self, end: str | None) -> _Reading:
        """(the text before its end, the end). Without one it reads up to what may follow a name: white space, a
        parameter, the end of the call, none of which it takes."""
        d = self._description
        stops = [*self._ends(), *self._openings]
        following = (
            []
            if end is not None
            else [one for one in (d.parameter_pattern.opening, Pattern(d.tail.strip(GAP)).opening) if one]
        )
        pieces: list[str] = []
        marker = yield from self._scan(
            [end] if end is not None and end in stops else [*([end] if end else following), *stops], pieces.append
        )
        text = "".join(pieces)
        if marker is None:
            raise _CutOffError
        if end is None and marker in following:
            self._put_back(marker)
            return text, ""
        if marker != end:
            self._put_back(marker)
            raise _MalformedError(f"{marker} stands in {text!r}")
        return text, marker

    def _scan(self, markers: Sequence[str], take: Callable[[str], None]) -> _Reading:
        """Hands on the text up to the first of the markers, and returns the marker; None at the answer's end."""
        scan = MarkerScan(*markers)
        while True:
            text, self._text = self._text, ""
            before, marker, rest = scan.push(text)
            if marker is None and self._over:
                held, marker, rest = scan.end()
                if marker is not None or self._in_call or not self.after_call or before.strip():
                    before += held  # otherwise an answer that is cut off in the middle of what follows a call
            if self._in_call:
                self.keep(before + (marker or ""))
            if before:
                take(before)
            if marker is not None:
                self._text = rest
            if marker is not None or self._over:
                return marker
            yield


class _TextValue:
    """The value of a parameter that comes as text, on its way to JSON."""

    def __init__(self, argue: Callable[[str], None], key: str, kind: Kind) -> None:
        self._argue = argue
        self._key = key
        self._kind = kind
        self._pieces: list[str] = []
        self._in_text = False  # the opening quote was written

    def add(self, text: str) -> None:
        """Hands on what is certainly part of a text."""
        if self._in_text:
            self._argue(_escaped(text))
            return
        self._pieces.append(text)
        if self._kind is Kind.TEXT or (self._kind is Kind.TEXT_OR_NULL and not self._may_be_null()):
            self._in_text = True
            self._argue('"' + _escaped("".join(self._pieces)))

    def _may_be_null(self) -> bool:
        so_far = "".join(self._pieces)
        return any(null.startswith(so_far) for null in ("null", "None"))

    def finish(self) -> None:
        """The value is at its end. Raises `_MalformedError` where it is none."""
        text = "".join(self._pieces)
        if self._in_text:
            self._argue('"')
        elif self._kind is Kind.TEXT or (self._kind is Kind.TEXT_OR_NULL and text not in ("null", "None")):
            self._argue(json.dumps(text, ensure_ascii=False))
        else:
            self._argue(self._json_of(text))

    def _json_of(self, text: str) -> str:
        found = json_of_literal(text.strip(SPACE))
        if found is not None:
            return found
        if self._kind is Kind.JSON_OR_TEXT:
            return json.dumps(text, ensure_ascii=False)
        raise _MalformedError(f"the JSON of {self._key!r} is invalid")


def _ends_in_string(text: str) -> bool:
    """Whether a text that begins as JSON ends in the middle of a string."""
    bare = text.lstrip(SPACE)
    if not bare.startswith(("{", "[", '"')):
        return False
    scan = ValueScan('{["')
    _, _, done = scan.push(bare)
    return not done and scan.in_string


def _joined(events: list[Event]) -> list[Event]:
    """Events in which pieces of the same arguments that follow one another are one."""
    joined: list[Event] = []
    for event in events:
        last = joined[-1] if joined else None
        if isinstance(event, CallArguments) and isinstance(last, CallArguments) and event.index == last.index:
            joined[-1] = CallArguments(event.index, last.json + event.json)
        else:
            joined.append(event)
    return joined


def _escaped(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]


def _unescaped(name: str) -> str:
    try:
        return str(json.loads(f'"{name}"'))
    except ValueError:
        return name
