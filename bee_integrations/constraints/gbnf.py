"""GBNF, the grammar language of llama.cpp: read, checked, and put as rules of llguidance's Lark dialect.

    text -> Grammar (rules of expressions) -> finite rules alone -> pieces: terminals and what joins them -> Lark

GBNF knows characters only, and any text that some derivation spells is in its language. The engine's terminals are
greedy: one that may go on takes what the next one needs. A grammar of single characters as terminals has the right
language, but costs a step of the parser for every character. So as much as possible is put into one terminal, and
taken apart again where greed would matter: where a terminal may end while another one that began at the same place,
or itself, may go on with a character that may follow (`_Terminals.conflict`).
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from ..errors import ConstraintError
from .json_schema import MAX_CHAIN, is_chain_too_long

__all__ = ["lark_of_gbnf"]

_EMPTY = '""'
_MAX_NESTING = 64
_MAX_REPEATED = 10_000
_MAX_POSITIONS = 400  # characters of a terminal, repetitions counted once
_MAX_CHAIN = 40  # rules within one another in a terminal
_MAX_WORK = 500_000  # steps of comparing terminals
_MAX_SOLVING = 3_000_000  # and of solving what rules say of one another
_LAST = 0x10FFFF
_ESCAPES = {"t": "\t", "r": "\r", "n": "\n"}

Ranges = tuple[tuple[int, int], ...]
"""Code points, as sorted ranges with gaps between them."""


# ---- expressions -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Chars:
    """One character of these."""

    ranges: Ranges


@dataclass(frozen=True, eq=False)
class Token:
    """One token of the vocabulary, as Lark refers to it."""

    lark: str


@dataclass(frozen=True, eq=False)
class Ref:
    rule: str


@dataclass(frozen=True, eq=False)
class Seq:
    items: tuple[Expr, ...]


@dataclass(frozen=True, eq=False)
class Alt:
    options: tuple[Expr, ...]


@dataclass(frozen=True, eq=False)
class Repeat:
    item: Expr
    least: int
    most: int | None


Expr = Chars | Token | Ref | Seq | Alt | Repeat
Value = TypeVar("Value")


def _refs(expr: Expr) -> Iterator[str]:
    return (part.rule for part in _all(expr) if isinstance(part, Ref))


def _all(expr: Expr) -> Iterator[Expr]:
    yield expr
    for part in _parts(expr):
        yield from _all(part)


def _parts(expr: Expr) -> tuple[Expr, ...]:
    if isinstance(expr, Seq):
        return expr.items
    if isinstance(expr, Alt):
        return expr.options
    return (expr.item,) if isinstance(expr, Repeat) else ()


# ---- reading ---------------------------------------------------------------------------------------------------------


class _Reader:
    """Reads the rules. What is defined twice counts as it stands last, as in llama.cpp."""

    _SPACE = re.compile(r"(?:[ \t]|#[^\r\n]*)*")
    _SPACE_AND_LINES = re.compile(r"(?:\s|#[^\r\n]*)*")
    _NAME = re.compile(r"[A-Za-z0-9_-]+")

    def __init__(self, text: str) -> None:
        self._text = text
        self._breaks = [match.start() for match in re.finditer("\n", text)]
        self._at = 0
        self._depth = 0
        self.rules: dict[str, Expr] = {}
        self.lines: dict[str, int] = {}
        self._used: dict[str, int] = {}  # names that are referred to, and the line

    def read(self) -> None:
        self._skip(lines=True)
        while self._at < len(self._text):
            self._rule()
        for name, line in self._used.items():
            if name not in self.rules:
                raise _fault(line, f"there is no rule {name!r}")
        if "root" not in self.rules:
            raise _fault(1, "there is no rule 'root'")

    def _rule(self) -> None:
        line = self._line()
        name = self._match(self._NAME, "the name of a rule")
        self._skip()
        if not self._take("::="):
            raise self._unexpected("'::='")
        self._skip(lines=True)
        self.rules[name] = self._alternatives(nested=False)
        self.lines[name] = line
        if self._at < len(self._text) and self._peek() not in "\r\n":
            raise self._unexpected("the end of the line")
        self._skip(lines=True)

    def _alternatives(self, *, nested: bool) -> Expr:
        self._depth += 1
        if self._depth > _MAX_NESTING:
            raise _fault(self._line(), "brackets are nested too deeply")
        options = [self._sequence(nested=nested)]
        while self._take("|"):
            self._skip(lines=True)
            options.append(self._sequence(nested=nested))
        self._depth -= 1
        return options[0] if len(options) == 1 else Alt(tuple(options))

    def _sequence(self, *, nested: bool) -> Expr:
        items: list[Expr] = []
        while (item := self._item()) is not None:
            self._skip(lines=nested)
            while (times := self._times()) is not None:
                item = Repeat(item, *times)
                self._skip(lines=nested)
            items.append(item)
        return items[0] if len(items) == 1 else Seq(tuple(items))

    def _item(self) -> Expr | None:
        next_one = self._peek()
        if next_one == '"':
            return self._literal()
        if next_one == "[":
            return self._class()
        if next_one == "(":
            self._at += 1
            self._skip(lines=True)
            inner = self._alternatives(nested=True)
            if not self._take(")"):
                raise self._unexpected("')'")
            return inner
        if next_one == ".":
            self._at += 1
            return Chars(_without_surrogates(((0, _LAST),)))
        if next_one in ("<", "!") and next_one:
            return self._token()
        if not self._NAME.match(self._text, self._at):
            return None
        self._used.setdefault(name := self._match(self._NAME, "a name"), self._line())
        return Ref(name)

    def _literal(self) -> Expr:
        self._at += 1
        items: list[Expr] = []
        while not self._take('"'):
            code = self._character()
            items.append(Chars(((code, code),)))
        return Seq(tuple(items))

    def _class(self) -> Expr:
        self._at += 1
        negated = self._take("^")
        ranges = []
        while not self._take("]"):
            low = high = self._character()
            if self._peek() == "-" and self._text[self._at + 1 : self._at + 2] not in ("]", ""):
                self._at += 1
                high = self._character()
            if high < low:
                raise _fault(self._line(), f"the range {chr(low)}-{chr(high)} is empty")
            ranges.append((low, high))
        if not ranges and not negated:
            raise _fault(self._line(), "the class [] has no character")
        merged = _merged(ranges)
        return Chars(_without_surrogates(_complement(merged) if negated else merged))

    def _character(self) -> int:
        if self._at >= len(self._text):
            raise self._unexpected("a character")
        char = self._text[self._at]
        self._at += 1
        if char != "\\":
            return ord(char)
        kind = self._peek()
        self._at += 1
        digits = {"x": 2, "u": 4, "U": 8}.get(kind)
        if digits is not None:
            text = self._text[self._at : self._at + digits]
            if len(text) < digits or not re.fullmatch("[0-9a-fA-F]+", text) or int(text, 16) > _LAST:
                raise _fault(self._line(), f"\\{kind} stands before {digits} hexadecimal digits of a character")
            self._at += digits
            return int(text, 16)
        if kind == "" or (kind.isalnum() and kind not in _ESCAPES):
            raise _fault(self._line(), f"\\{kind} is no escape")
        return ord(_ESCAPES.get(kind, kind))

    def _token(self) -> Expr:
        negated = self._take("!")
        match = re.compile(r"<(?:\[(\d+)\]|[^<>\n]+)>").match(self._text, self._at)
        if match is None:
            raise self._unexpected("a token such as <[7]> or <|end|>")
        self._at = match.end()
        if negated and match[1] is None:
            raise _fault(self._line(), f"the token in !{match[0]} is to be given by its number, as in !<[7]>")
        return Token(f"<[^{match[1]}]>" if negated else match[0])

    def _times(self) -> tuple[int, int | None] | None:
        for sign, times in (("*", (0, None)), ("+", (1, None)), ("?", (0, 1))):
            if self._take(sign):
                return times
        match = re.compile(r"\{\s*(\d{1,9})\s*(,?)\s*(\d{0,9})\s*\}").match(self._text, self._at)
        if match is None:
            if self._peek() == "{":
                raise self._unexpected("{m}, {m,} or {m,n}")
            return None
        self._at = match.end()
        least = int(match[1])
        most = int(match[3]) if match[3] else None if match[2] else least
        if most is not None and most < least:
            raise _fault(self._line(), f"{match[0]} repeats at most fewer times than at least")
        if max(least, most or 0) > _MAX_REPEATED:
            raise _fault(self._line(), f"{match[0]} repeats more than {_MAX_REPEATED:,} times")
        return least, most

    # ---- characters of the source ----

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _take(self, text: str) -> bool:
        if not self._text.startswith(text, self._at):
            return False
        self._at += len(text)
        return True

    def _match(self, pattern: re.Pattern[str], what: str) -> str:
        match = pattern.match(self._text, self._at)
        if match is None:
            raise self._unexpected(what)
        self._at = match.end()
        return match[0]

    def _skip(self, *, lines: bool = False) -> None:
        match = (self._SPACE_AND_LINES if lines else self._SPACE).match(self._text, self._at)
        assert match is not None
        self._at = match.end()

    def _line(self) -> int:
        return bisect_right(self._breaks, self._at - 1) + 1

    def _unexpected(self, wanted: str) -> ConstraintError:
        found = self._text[self._at : self._at + 12].split("\n")[0]
        return _fault(self._line(), f"expected {wanted}, not {found!r}" if found else f"expected {wanted}")


def _fault(line: int, reason: str) -> ConstraintError:
    return ConstraintError(f"the grammar, line {line}: {reason}")


def _merged(ranges: Sequence[tuple[int, int]]) -> Ranges:
    result: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if result and low <= result[-1][1] + 1:
            result[-1] = (result[-1][0], max(result[-1][1], high))
        else:
            result.append((low, high))
    return tuple(result)


def _complement(ranges: Ranges) -> Ranges:
    edges = [-1, *(edge for low, high in ranges for edge in (low, high)), _LAST + 1]
    gaps = zip(edges[::2], edges[1::2], strict=True)
    return tuple((low + 1, high - 1) for low, high in gaps if low + 1 <= high - 1)


def _without_surrogates(ranges: Ranges) -> Ranges:
    parts = [(low, min(high, 0xD7FF)) for low, high in ranges if low < 0xD800]
    return (*parts, *((max(low, 0xE000), high) for low, high in ranges if high > 0xDFFF))


# ---- rules without an end --------------------------------------------------------------------------------------------


def _solve(rules: dict[str, Expr], least: Value, value: Callable[[Expr, dict[str, Value]], Value]) -> dict[str, Value]:
    """The values of rules that depend on those of the rules that they name: from the least on, until none changes."""
    users: dict[str, list[str]] = {name: [] for name in rules}
    for name, expr in rules.items():
        for used in set(_refs(expr)):
            users[used].append(name)
    sizes = {name: sum(1 for _ in _all(expr)) for name, expr in rules.items()}
    values = dict.fromkeys(rules, least)
    waiting = dict.fromkeys(rules)
    work = 0
    while waiting:
        name, _ = waiting.popitem()
        work += sizes[name]
        if work > _MAX_SOLVING:
            raise ConstraintError("the grammar: it is too large: its rules depend on one another in too many ways")
        found = value(rules[name], values)
        if found != values[name]:
            values[name] = found
            waiting.update(dict.fromkeys(users[name]))
    return values


def _is_finite(expr: Expr, finite: dict[str, bool]) -> bool:
    """Whether some text of an expression is, where those rules have one."""
    if isinstance(expr, Ref):
        return finite[expr.rule]
    if isinstance(expr, Chars):
        return bool(expr.ranges)
    if isinstance(expr, Repeat):
        return expr.least == 0 or _is_finite(expr.item, finite)
    return (any if isinstance(expr, Alt) else all)(_is_finite(part, finite) for part in _parts(expr))


def _prune(rules: dict[str, Expr], lines: dict[str, int]) -> dict[str, Expr]:
    """The rules that `root` needs, without alternatives of which no text is finite."""
    finite = _solve(rules, False, _is_finite)

    def pruned(expr: Expr) -> Expr:
        if isinstance(expr, Alt):
            return Alt(tuple(pruned(option) for option in expr.options if _is_finite(option, finite)))
        if isinstance(expr, Repeat):
            return Repeat(pruned(expr.item), expr.least, expr.most) if _is_finite(expr.item, finite) else Seq(())
        return Seq(tuple(map(pruned, expr.items))) if isinstance(expr, Seq) else expr

    if not finite["root"]:
        raise _fault(lines["root"], "it admits nothing: the rule 'root' has no finite text")
    kept: dict[str, Expr] = {}
    pending = ["root"]
    while pending:
        name = pending.pop()
        if name not in kept:
            kept[name] = pruned(rules[name])
            pending += _refs(kept[name])
    return kept


# ---- what may come first, and what may follow ------------------------------------------------------------------------


class _Alphabet:
    """The characters of a grammar in classes that it does not tell apart; a set of them is the bits of a number."""

    def __init__(self, rules: dict[str, Expr]) -> None:
        edges = {0, _LAST + 1}
        for expr in rules.values():
            for part in _all(expr):
                if isinstance(part, Chars):
                    edges |= {edge for low, high in part.ranges for edge in (low, high + 1)}
        self._index = {edge: index for index, edge in enumerate(sorted(edges))}
        self._known: dict[Ranges, int] = {}

    def bits(self, ranges: Ranges) -> int:
        if ranges not in self._known:
            parts = ((self._index[low], self._index[high + 1]) for low, high in ranges)
            self._known[ranges] = sum((1 << end) - (1 << begin) for begin, end in parts)
        return self._known[ranges]


class _Firsts:
    """Which characters begin a text of an expression, and whether the empty text is one."""

    def __init__(self, rules: dict[str, Expr]) -> None:
        self.alphabet = _Alphabet(rules)
        self._rules = _solve(rules, (0, False), self._of)

    def of(self, expr: Expr) -> tuple[int, bool]:
        return self._of(expr, self._rules)

    def _of(self, expr: Expr, known: dict[str, tuple[int, bool]]) -> tuple[int, bool]:
        if isinstance(expr, Chars):
            return self.alphabet.bits(expr.ranges), False
        if isinstance(expr, Token):
            return 0, False
        if isinstance(expr, Ref):
            return known[expr.rule]
        if isinstance(expr, Repeat):
            first, empty = self._of(expr.item, known) if expr.most != 0 else (0, True)
            return first, empty or expr.least == 0
        firsts = 0
        if isinstance(expr, Alt):
            parts = [self._of(part, known) for part in expr.options]
            for first, _ in parts:
                firsts |= first
            return firsts, any(empty for _, empty in parts)
        for part in expr.items:
            first, empty = self._of(part, known)
            firsts |= first
            if not empty:
                return firsts, False
        return firsts, True


# ---- terminals -------------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class _Piece:
    """An expression at one place of the grammar: a terminal, or what joins its parts."""

    expr: Expr
    terminal: bool
    parts: list[_Piece] = field(default_factory=list)
    follow: int = 0  # characters that may come behind it


class _Terminals:
    """Puts as much into each terminal as greed allows."""

    def __init__(self, rules: dict[str, Expr]) -> None:
        self.rules = rules
        self.firsts = _Firsts(rules)
        self._sizes = _solve(rules, None, self._size)
        self.roots: dict[str, _Piece] = {}
        self._work = 0
        self._add_rule("root")
        self._automata: dict[Expr, _Automaton] = {}
        self._find_what_follows()
        while conflicts := self._conflicts():
            for piece in conflicts:
                self._split(piece)
            self._find_what_follows()

    def _size(self, expr: Expr, known: dict[str, tuple[int, int] | None]) -> tuple[int, int] | None:
        """(characters in it, depth of rules) of what may be one terminal; None for what may not."""
        if isinstance(expr, Chars):
            return 1, 0
        if isinstance(expr, Token):
            return None
        if isinstance(expr, Ref):
            size = known[expr.rule]
            return size and (size[0], size[1] + 1)
        count = depth = 0
        for part in _parts(expr):
            inner = self._size(part, known)
            if inner is None:
                return None
            count, depth = count + inner[0], max(depth, inner[1])
        return (count, depth) if count <= _MAX_POSITIONS and depth <= _MAX_CHAIN else None

    def _add_rule(self, name: str) -> None:
        pending = [name]
        while pending:
            rule = pending.pop()
            if rule not in self.roots:
                self.roots[rule] = self._piece(self.rules[rule])
                pending += self._joined_rules(self.roots[rule])

    def _joined_rules(self, piece: _Piece) -> Iterator[str]:
        if isinstance(piece.expr, Ref) and not piece.terminal:
            yield piece.expr.rule
        for part in piece.parts:
            yield from self._joined_rules(part)

    def _piece(self, expr: Expr) -> _Piece:
        if not isinstance(expr, Token) and self._size(expr, self._sizes) is not None:
            return _Piece(expr, terminal=self.firsts.of(expr)[0] != 0)
        if isinstance(expr, Seq):
            return _Piece(expr, False, [self._piece(part) for part in self._runs(expr.items)])
        return _Piece(expr, False, [self._piece(part) for part in _parts(expr)])

    def _runs(self, items: Sequence[Expr]) -> list[Expr]:
        """The items of a sequence, with those together that may be one terminal."""
        runs: list[list[Expr]] = []
        room = -1  # characters that the last run may still take; -1: nothing, not even what has none
        for item in items:
            size = self._size(item, self._sizes)
            if size is None or size[0] > room:
                runs.append([])
                room = -1 if size is None else _MAX_POSITIONS
            runs[-1].append(item)
            room -= size[0] if size is not None else 0
        return [run[0] if len(run) == 1 else Seq(tuple(run)) for run in runs]

    def _find_what_follows(self) -> None:
        for root in self.roots.values():
            _reset(root)
        waiting = dict.fromkeys(self.roots)
        while waiting:
            name, _ = waiting.popitem()
            waiting.update(dict.fromkeys(self._hand_down(self.roots[name])))

    def _hand_down(self, piece: _Piece) -> Iterator[str]:
        """Tell the parts of a piece what may follow them. Yields the rules of which something new may follow."""
        self._work += 1
        if piece.terminal:
            return
        follow = piece.follow
        if isinstance(piece.expr, Ref):
            target = self.roots[piece.expr.rule]
            if follow & ~target.follow:
                target.follow |= follow
                yield piece.expr.rule
        if isinstance(piece.expr, Repeat) and piece.expr.most != 1:
            follow |= self.firsts.of(piece.expr.item)[0]
        for part in reversed(piece.parts):
            part.follow |= follow
            yield from self._hand_down(part)
            if isinstance(piece.expr, Seq):
                first, empty = self.firsts.of(part.expr)
                follow = first | (follow if empty else 0)

    def _conflicts(self) -> list[_Piece]:
        """Terminals of several characters that may go on where a text of another one, or of itself, has ended. All of
        them, where finding out would take too long: single characters are always right."""
        terminals = [piece for root in self.roots.values() for piece in _terminals(root)]
        long = [piece for piece in terminals if not isinstance(piece.expr, Chars)]
        found = []
        for going_on in long:
            automaton = self._automaton(going_on.expr)
            if self._work > _MAX_WORK or any(self._goes_on(ending, automaton) for ending in terminals):
                found.append(going_on)
        return found

    def _automaton(self, expr: Expr) -> _Automaton:
        if expr not in self._automata:
            self._automata[expr] = _Automaton(self.rules, self.firsts.alphabet, expr)
            self._work += 4 * len(self._automata[expr].masks)
        return self._automata[expr]

    def _goes_on(self, ending: _Piece, other: _Automaton) -> bool:
        self._work += 1
        if not ending.follow or self._work > _MAX_WORK:
            return self._work > _MAX_WORK
        own = self._automaton(ending.expr)
        seen: set[tuple[int, int]] = set()
        pending = [(mine, its) for mine in own.first for its in other.first if own.masks[mine] & other.masks[its]]
        while pending:
            pair = pending.pop()
            if pair in seen:
                continue
            seen.add(pair)
            mine, its = pair
            self._work += 1 + len(other.next[its])
            if mine in own.last and any(other.masks[then] & ending.follow for then in other.next[its]):
                return True
            self._work += len(own.next[mine]) * len(other.next[its])
            pending += [
                (then, its_then)
                for then in own.next[mine]
                for its_then in other.next[its]
                if own.masks[then] & other.masks[its_then]
            ]
        return False

    def _split(self, piece: _Piece) -> None:
        """Take a terminal apart, by as little as may do: its last part (half of many), then what is in it."""
        piece.terminal = False
        expr = piece.expr
        if isinstance(expr, Seq) and len(expr.items) > 1:
            at = len(expr.items) - 1 if len(expr.items) <= 8 else len(expr.items) // 2
            sides = expr.items[:at], expr.items[at:]
            piece.parts = [self._piece(side[0] if len(side) == 1 else Seq(side)) for side in sides]
        elif isinstance(expr, Ref):
            self._add_rule(expr.rule)
            if self.roots[expr.rule].terminal:
                self._split(self.roots[expr.rule])
        else:
            piece.parts = [self._piece(part) for part in _parts(expr)]


def _reset(piece: _Piece) -> None:
    piece.follow = 0
    for part in piece.parts:
        _reset(part)


def _terminals(piece: _Piece) -> Iterator[_Piece]:
    if piece.terminal:
        yield piece
    for part in piece.parts:
        yield from _terminals(part)


class _Automaton:
    """The characters of a terminal in the order in which they may be read. Repetitions of whatever number count as any
    number, by which it reads more, never less."""

    def __init__(self, rules: dict[str, Expr], alphabet: _Alphabet, expr: Expr) -> None:
        self.masks: list[int] = []
        self.next: list[set[int]] = []
        self._rules = rules
        self._alphabet = alphabet
        first, last, _ = self._read(expr)
        self.first, self.last = frozenset(first), frozenset(last)

    def _read(self, expr: Expr) -> tuple[set[int], set[int], bool]:
        """(characters that may be first, that may be last, whether there may be none)"""
        if isinstance(expr, Chars):
            self.masks.append(self._alphabet.bits(expr.ranges))
            self.next.append(set())
            return {len(self.masks) - 1}, {len(self.masks) - 1}, False
        if isinstance(expr, Ref):
            return self._read(self._rules[expr.rule])
        if isinstance(expr, Repeat):
            first, last, empty = self._read(expr.item)
            if expr.most != 1:
                self._join(last, first)
            return first, last, empty or expr.least == 0
        parts = [self._read(part) for part in _parts(expr)]
        if isinstance(expr, Alt):
            return (
                set().union(*(first for first, _, _ in parts)),
                set().union(*(last for _, last, _ in parts)),
                any(empty for _, _, empty in parts),
            )
        firsts: set[int] = set()
        lasts: set[int] = set()
        all_empty = True
        for first, last, empty in parts:
            self._join(lasts, first)
            firsts |= first if all_empty else set()
            lasts = last | (lasts if empty else set())
            all_empty &= empty
        return firsts, lasts, all_empty

    def _join(self, last: set[int], first: set[int]) -> None:
        for position in last:
            self.next[position] |= first


# ---- writing ---------------------------------------------------------------------------------------------------------


def lark_of_gbnf(text: str) -> tuple[str, list[int]]:
    """(rules in Lark that have the language of a grammar in GBNF, the line in the source for each line of them).

    Raises `ConstraintError` with the line of what is malformed, and where no text is finite.
    """
    reader = _Reader(text)
    reader.read()
    if is_chain_too_long({name: [*_refs(expr)] for name, expr in reader.rules.items()}, "root"):
        raise _fault(reader.lines["root"], f"more than {MAX_CHAIN} rules lead into one another in a row")
    writer = _Writer(_Terminals(_prune(reader.rules, reader.lines)))
    return "\n".join(writer.lines) + "\n", [reader.lines[name] for name in writer.sources]


class _Writer:
    """Rules and terminals as lines of Lark, each terminal behind the rule that needs it first."""

    def __init__(self, terminals: _Terminals) -> None:
        self._terminals = terminals
        self._regexes = _Regexes(terminals.rules, terminals.firsts)
        self._names = {name: f"r{index}" if index else "start" for index, name in enumerate(terminals.roots)}
        self._known: dict[str, str] = {}  # regular expressions, and the names of their terminals
        self.lines: list[str] = []
        self.sources: list[str] = []  # the rule of the grammar that a line is of
        for name, root in terminals.roots.items():
            self._defined: list[str] = []
            body = self._joined(root)
            self.lines += [f"{self._names[name]}: {body}", *self._defined]
            self.sources += [name] * (1 + len(self._defined))

    def _joined(self, piece: _Piece) -> str:
        expr = piece.expr
        if piece.terminal:
            return self._terminal(expr)
        if isinstance(expr, Token):
            return expr.lark
        if isinstance(expr, Ref):
            return self._names[expr.rule]
        parts = [self._joined(part) for part in piece.parts]
        if isinstance(expr, Repeat):
            return _as_one(parts[0]) + _times(expr) if parts else _EMPTY
        if isinstance(expr, Alt):
            return " | ".join(parts) or _EMPTY
        return " ".join(f"({part})" if " | " in part else part for part in parts) or _EMPTY

    def _terminal(self, expr: Expr) -> str:
        spoken = self._regexes.spoken(expr)
        if spoken not in self._known:
            self._known[spoken] = f"T{len(self._known)}"
            self._defined.append(f"{self._known[spoken]}: /{spoken}/")
        return self._known[spoken] + ("?" if self._terminals.firsts.of(expr)[1] else "")


def _as_one(text: str) -> str:
    return text if re.fullmatch(r"\w+", text) else f"({text})"


class _Regexes:
    """Expressions as regular expressions."""

    def __init__(self, rules: dict[str, Expr], firsts: _Firsts) -> None:
        self._rules = rules
        self._firsts = firsts

    def whole(self, expr: Expr) -> str:
        if isinstance(expr, Chars):
            return _class(expr.ranges)
        if isinstance(expr, Ref):
            return self.whole(self._rules[expr.rule])
        if isinstance(expr, Repeat):
            return f"(?:{self.whole(expr.item)}){_times(expr)}"
        if isinstance(expr, Alt):
            return f"(?:{'|'.join(map(self.whole, expr.options))})"
        return "".join(map(self.whole, _parts(expr)))

    def spoken(self, expr: Expr) -> str:
        """The same without the empty text, which is no terminal."""
        first, empty = self._firsts.of(expr)
        if not empty:
            return self.whole(expr)
        assert first
        if isinstance(expr, Ref):
            return self.spoken(self._rules[expr.rule])
        if isinstance(expr, Repeat):
            # Where the item may be empty, any number up to the largest is as good as another.
            least = Repeat(expr.item, 1, expr.most)
            return f"(?:{self.spoken(expr.item)}){_times(least)}"
        if isinstance(expr, Alt):
            return f"(?:{'|'.join(self.spoken(part) for part in expr.options if self._firsts.of(part)[0])})"
        items = [part for part in _parts(expr) if self._firsts.of(part)[0]]
        rests = [self.spoken(item) + "".join(map(self.whole, items[index + 1 :])) for index, item in enumerate(items)]
        return f"(?:{'|'.join(rests)})"


def _times(repeat: Repeat) -> str:
    sign = {(0, None): "*", (1, None): "+", (0, 1): "?"}.get((repeat.least, repeat.most))
    if sign is not None:
        return sign
    return f"{{{repeat.least},{'' if repeat.most is None else repeat.most}}}"


def _class(ranges: Ranges) -> str:
    parts = [_escaped(low) if low == high else f"{_escaped(low)}-{_escaped(high)}" for low, high in ranges]
    return parts[0] if len(parts) == 1 and ranges[0][0] == ranges[0][1] else f"[{''.join(parts)}]"


def _escaped(code: int) -> str:
    char = chr(code)
    return char if char.isascii() and char.isalnum() else f"\\x{{{code:X}}}"
