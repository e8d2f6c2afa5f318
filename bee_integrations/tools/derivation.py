"""A description of a template that no family knows, derived from what it writes for a few past calls.

Two conversations are rendered: one with a call, one with two. In both, names and values are known, so what stands
between them is the template's own:

    one:   a NAME b ARGUMENTS c
    two:   a NAME b ARGUMENTS d NAME b ARGUMENTS c

What `c` and `d` begin with alike closes a call, what `a` and `d` end with alike opens one, and the rest stands around
the calls or between them. Values that are written one by one are taken apart in the same way. A description counts only
if its reader gets from the renderings what was put into them, and if its beginning is a marker rather than a word.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from ..errors import BeeError
from ..text.chat_template import ChatTemplate
from .described_format import DescribedFormat, written_calls
from .description import GAP, Description, Pattern
from .template_ways import PROBE_TOOL, calls_in, probe_call

__all__ = ["derived"]

_QUESTION, _ANSWER = "What does the probe say?", "The probe says nothing at all."
_TOKENS = re.compile(r"</?[^<>\s]{1,80}(?:[^<>]{0,80})>|\[/?[A-Z_]{2,40}\]|\s+|\w+|.", re.DOTALL)
_MARKER = re.compile(r"<[^<>]+>|\[/?[A-Z_]{2,}\]")


def derived(template: ChatTemplate) -> Description | None:
    """The description of the template's own calls, or None where it is not certain."""
    plain = _turn(template, {"role": "assistant", "content": _ANSWER})
    if plain is None or plain.count(_ANSWER) != 1 or "tool_calls" not in template.source:
        return None
    head, tail = plain.split(_ANSWER)
    for as_text in (False, True):
        one, two = (_calls_turn(template, n, head, tail, as_text=as_text) for n in (1, 2))
        if one is None or two is None:
            continue
        found = _described(one, two)
        if found is not None and _is_right(found, one, two):
            return found
    return None


def _turn(template: ChatTemplate, message: dict[str, Any]) -> str | None:
    """What a template writes behind the question."""
    messages = [{"role": "user", "content": _QUESTION}, message]
    try:
        text = template.render(messages, tools=[PROBE_TOOL.as_openai()], add_generation_prompt=False)
    except BeeError:
        return None
    return text[text.rfind(_QUESTION) + len(_QUESTION) :]


def _calls_turn(template: ChatTemplate, n: int, head: str, tail: str, *, as_text: bool) -> str | None:
    calls = [probe_call(number) for number in range(n)]
    for call in calls if as_text else ():
        call["function"]["arguments"] = json.dumps(call["function"]["arguments"])
    turn = _turn(template, {"role": "assistant", "content": "", "tool_calls": calls})
    if turn is None:
        return None
    begun = _common(_TOKENS.findall(turn), _TOKENS.findall(head))
    return turn[len(begun) :].removesuffix(tail)


def _is_right(found: Description, one: str, two: str) -> bool:
    opening = found.openings([PROBE_TOOL.name])
    if not opening or not re.search(r"[<\[]\S{2,}", opening[0][0]):
        return False
    form = DescribedFormat(found)
    wanted = [(PROBE_TOOL.name, probe_call(number)["function"]["arguments"]) for number in (0, 1)]
    again = written_calls(found, [(name, arguments, f"probe000{i}") for i, (name, arguments) in enumerate(wanted)])
    return calls_in(form, one) == wanted[:1] and calls_in(form, two) == wanted and calls_in(form, again) == wanted


# ---- taking apart ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Cut:
    """A text around the names and arguments of its calls."""

    before: str
    middles: tuple[str, ...]  # between name and arguments
    arguments: tuple[str, ...]  # as they stand there
    between: tuple[str, ...]  # one call and the next
    behind: str


def _described(one: str, two: str) -> Description | None:
    for number in (0, 1):
        one, two = (text.replace(probe_call(number)["id"], "$id") for text in (one, two))
    if "$id" in one.partition(PROBE_TOOL.name)[0]:
        return None
    single, double = _cut(one, 1), _cut(two, 2)
    if single is None or double is None or len({*single.middles, *double.middles}) != 1:
        return None
    opens = _common(_TOKENS.findall(single.before), _TOKENS.findall(double.between[0]), from_end=True)
    closes = _common(_TOKENS.findall(single.behind), _TOKENS.findall(double.between[0]))
    separator = double.between[0][len(closes) : len(double.between[0]) - len(opens)]
    if re.search(r"\d", separator):  # calls are counted, and how is not known
        return None
    begin, end = single.before[: len(single.before) - len(opens)], single.behind[len(closes) :]
    arguments, parameter = single.arguments[0], ""
    if not arguments.startswith("{"):
        taken = _parameters(arguments)
        if taken is None:
            return None
        before, parameter, behind = taken
        arguments = f"{before}$parameters{behind}"
    else:
        arguments = "$arguments"
    call = f"{opens}$name{single.middles[0]}{arguments}{closes}"
    return _with_object_apart(
        Description(
            name="derived",
            models="",
            calls=f"{_loose(begin)}$calls{_loose(end)}",
            call=_loose(call),
            between=_loose(separator),
            parameter=_loose(parameter),
        )
    )


def _cut(text: str, n_calls: int) -> _Cut | None:
    parts = text.split(PROBE_TOOL.name)
    if len(parts) != n_calls + 1:
        return None
    middles, arguments, between = [], [], []
    for number, part in enumerate(parts[1:]):
        found = _arguments_in(part, probe_call(number)["function"]["arguments"])
        if found is None:
            return None
        middles.append(part[: found[0]])
        arguments.append(part[found[0] : found[1]])
        between.append(part[found[1] :])
    return _Cut(parts[0], tuple(middles), tuple(arguments), tuple(between[:-1]), between[-1])


def _arguments_in(text: str, arguments: dict[str, Any]) -> tuple[int, int] | None:
    """Where the arguments of a call stand: as JSON, or from behind the name's mark to the last value."""
    at = text.find("{")
    if at >= 0:
        try:
            value, length = json.JSONDecoder().raw_decode(text[at:])
        except ValueError:
            value, length = None, 0
        if value == arguments:
            return at, at + length
    last = str(list(arguments.values())[-1])
    first = next(iter(arguments))
    begin, end = text.find(first), text.rfind(last)
    if min(begin, end) < 0 or text.count(first) != 1 or text.count(last) != 1:
        return None
    return 0, len(text) if _MARKER.search(text[end:]) is None else end + len(last) + _first_close(
        text[end + len(last) :]
    )


def _first_close(text: str) -> int:
    """The length of what closes a value: up to the end of the first marker."""
    found = _MARKER.search(text)
    return 0 if found is None else found.end()


def _parameters(text: str) -> tuple[str, str, str] | None:
    """(what stands before the parameters, the pattern of one, what stands behind them)"""
    (key, value), (other_key, other_value) = probe_call(0)["function"]["arguments"].items()
    pieces = re.fullmatch(
        f"(.*?){key}(.*?){re.escape(str(value))}(.*?){other_key}(.*?){re.escape(str(other_value))}(.*)", text, re.DOTALL
    )
    if pieces is None or pieces[2] != pieces[4]:
        return None
    opens = _common(_TOKENS.findall(pieces[1]), _TOKENS.findall(pieces[3]), from_end=True)
    closes = _common(_TOKENS.findall(pieces[3]), _TOKENS.findall(pieces[5]))
    if not closes.strip():
        return None
    between = pieces[3][len(closes) : len(pieces[3]) - len(opens)]
    if between.strip():
        return None
    before, behind = pieces[1][: len(pieces[1]) - len(opens)], pieces[5][len(closes) :]
    bare = opens.lstrip()
    gap = GAP if between or not behind or bare != opens else ""
    return before + opens[: len(opens) - len(bare)], f"{bare}$key{pieces[2]}$value{closes}{gap}", behind


def _common(first: list[str], second: list[str], *, from_end: bool = False) -> str:
    """What two lists of tokens begin with alike, or end with."""
    if from_end:
        first, second = first[::-1], second[::-1]
    n = next((i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second)))
    return "".join(first[:n][::-1] if from_end else first[:n])


def _loose(text: str) -> str:
    """A pattern in which line breaks beside markers may be missing."""
    return re.sub(r"(?<=[>\]])\s+(?=[<\[{$]|\Z)|(?<=[}\]>s])\s+(?=[<\[])|\A\s+(?=[<\[]|\Z)", GAP, text)


def _with_object_apart(description: Description) -> Description:
    """Where a call is an object between markers, the markers stand around the calls."""
    match = re.fullmatch(r"([^{]*)(\{\s*\"[^\"]+\":\s*\"\$name\".*\})([^}]*)", description.call, re.DOTALL)
    if match is None or not match[1] + match[3]:
        return description
    if Pattern(description.calls).text != "$calls":
        return description
    return Description(
        name=description.name,
        models="",
        calls=f"{match[1]}$calls{match[3]}",
        call=match[2],
        between=description.between,
        each=True,
    )
