"""What an answer must look like (JSON schema, regular expression, grammar, choice), and the masks that make it so.

    Constraint -> GrammarCompiler.compile -> CompiledGrammar.matcher -> Matcher: mask, consume, roll back

The grammar engine is llguidance. It works on bytes, so tokens that are parts of characters need no care here. What it
is given is narrower than what it takes: schemas are read by `json_schema` first, sizes are limited, and a constraint
that no text fulfils is refused when it is compiled.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
import warnings
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from threading import Lock
from typing import TYPE_CHECKING

from ..errors import ConstraintError
from ..text.tokenizer import Tokenizer
from .closing_text import ClosingSearch, Hints, ends_of_text
from .gbnf import lark_of_gbnf
from .grammar_source import (
    JSON_STYLE,
    check_chain,
    check_repeats,
    check_rules,
    checked_source,
    choice_source,
    quoted,
    with_read_schemas,
)
from .harmless import is_harmless_regex, is_harmless_rules, is_harmless_schema, may_force_for_ever
from .json_schema import Node, ReadSchema, read_schema, schema_refusal
from .kinds import Choice, Constraint, Grammar, JsonSchema, Regex, json_object
from .matcher import CompiledGrammar, Matcher
from .vocabulary import Mask, Vocabulary, checked, grammar_engine, message

if TYPE_CHECKING:
    from llguidance import LLMatcher

__all__ = [
    "Choice",
    "CompiledGrammar",
    "Constraint",
    "Grammar",
    "GrammarCompiler",
    "JsonSchema",
    "Matcher",
    "Regex",
    "json_object",
]

_CACHED_GRAMMARS = 128
_MAX_REGEX = 10_000  # characters: the engine's time grows with their square
_MAX_EXAMPLES = 50  # of patterns
_MAX_HARMLESS_CHOICE = 20_000  # characters
_MAX_BLAMING = 2.0  # seconds for finding the part of a schema that is at fault


class GrammarCompiler:
    """Compiles constraints for one vocabulary, and keeps the latest. Safe to use from several threads."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._vocabulary = Vocabulary(tokenizer)
        self._cache: OrderedDict[tuple[str, str], CompiledGrammar] = OrderedDict()
        self._beginnings: dict[str, Mask] = {}
        self._named: set[tuple[str, ...]] = set()  # keywords of which a warning told that they are not enforced
        self._lock = Lock()
        special = sorted(tokenizer.special_tokens, key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, special)) or r"(?!)")

    def compile(self, constraint: Constraint) -> CompiledGrammar:
        """Raises `ConstraintError` where the constraint is invalid, unsupported, too large, or admits nothing.

        It takes no more than some seconds and some hundred megabytes: what might take more is tried in a helper
        process, which is ended when it does.
        """
        if isinstance(constraint, JsonSchema):
            build = partial(self._compile_schema, strict=constraint.strict)
            return self._cached("strict schema" if constraint.strict else "schema", constraint.text, build)
        if isinstance(constraint, Regex):
            text = checked_source(constraint.pattern, "the regular expression", _MAX_REGEX)
            return self._cached("regex", text, self._compile_regex)
        if isinstance(constraint, Grammar):
            text = checked_source(constraint.source, "the grammar")
            if constraint.syntax == "lark":
                return self.compile_rules(text)
            if constraint.syntax == "gbnf":
                return self._cached("gbnf", text, self._compile_gbnf)
            raise ConstraintError(f"the grammar's syntax is {constraint.syntax!r}; known are 'lark' and 'gbnf'")
        return self._cached("choice", choice_source(constraint.options), self._compile_choice)

    def compile_rules(self, lark: str, *, strict: bool = False) -> CompiledGrammar:
        """Rules in llguidance's Lark dialect, from `start`. Schemas in them (`%json {...}`) are read as others are, and
        written in the same style unless their `x-guidance` sets the separators; strict: as in `JsonSchema`. Raises as
        `compile`."""
        build = partial(self._compile_lark, strict=strict)
        return self._cached("strict lark" if strict else "lark", checked_source(lark, "the grammar"), build)

    def literal(self, text: str) -> str:
        """A text as a Lark expression that matches it alone; control tokens in it become token references."""
        parts = []
        at = 0
        for match in self._special.finditer(text):
            if match.start() > at:
                parts.append(quoted(text[at : match.start()]))
            parts.append(f"<[{self._vocabulary.tokenizer.token_id(match[0])}]>")
            at = match.end()
        if at < len(text) or not parts:
            parts.append(quoted(text[at:]))
        return parts[0] if len(parts) == 1 else f"({' '.join(parts)})"

    def tokens_that_begin(self, text: str) -> Mask:
        """A mask of the tokens with which a text may begin: those that hold all of it, or end with its beginning."""
        with self._lock:
            mask = self._beginnings.get(text)
        if mask is None:
            mask = self._vocabulary.tokens_that_begin(text.encode())
            with self._lock:
                self._beginnings[text] = mask
        return mask

    def _cached(self, kind: str, text: str, build: Callable[[str], CompiledGrammar]) -> CompiledGrammar:
        key = (kind, text)
        with self._lock:
            if key in self._cache:
                self._cache.move_to_end(key)
                return self._cache[key]
        # Compiled outside the lock: a large schema takes half a second, and others need not wait for it.
        built = build(text)
        with self._lock:
            known = self._cache.setdefault(key, built)
            self._cache.move_to_end(key)
            while len(self._cache) > _CACHED_GRAMMARS:
                self._cache.popitem(last=False)
        return known

    def _compile_schema(self, text: str, strict: bool) -> CompiledGrammar:
        schema = read_schema(text, strict=strict)
        give_up = time.monotonic() + _MAX_BLAMING
        built: list[tuple[LLMatcher, str]] = []

        def refused(node: Node) -> str:
            if built and time.monotonic() > give_up:
                return ""
            grammar = _schema_grammar(node)
            if not is_harmless_schema(node):
                self._vocabulary.trial.check(grammar, "the schema")
            matcher, error = self._vocabulary.build(grammar)
            built.append((matcher, grammar))
            return message(error).removeprefix("Unsatisfiable schema: ")

        reason = refused(schema.compiled_form())
        if not reason:
            pristine, grammar = built[0]
            states = pristine, checked(self._vocabulary.build(grammar, bytewise=True), "the schema")
            hints = self._hints([schema])
            return CompiledGrammar(self._vocabulary, states, "the schema", hints, self._told(schema.not_enforced), text)
        path = ""
        if "too " not in reason:  # what is too large as a whole need not be so in any part
            path, reason = schema.find_refused(reason, refused)
        raise schema_refusal(path, reason)

    def _compile_regex(self, text: str) -> CompiledGrammar:
        check_repeats(text, "the regular expression")
        grammar = grammar_engine().grammar_from_regex(text)
        return self._compile(grammar, Hints(text), "the regular expression", harmless=is_harmless_regex(text))

    def _compile_lark(self, text: str, strict: bool) -> CompiledGrammar:
        readable, schemas, rules = with_read_schemas(text, strict=strict)
        check_rules(rules)
        check_repeats(rules, "the grammar")
        hints = self._hints(schemas)
        hints.text += text
        hints.ends = ends_of_text(text)
        harmless = is_harmless_rules(rules) and all(is_harmless_schema(schema.compiled_form()) for schema in schemas)
        if may_force_for_ever(rules):
            readable = f'{readable}\n%llguidance {{"no_forcing": true}}\n'
        grammar = grammar_engine().grammar_from_lark(readable)
        loosened = self._told([place for schema in schemas for place in schema.not_enforced])
        return self._compile(grammar, hints, "the grammar", harmless=harmless, line_name=str, not_enforced=loosened)

    def _compile_gbnf(self, text: str) -> CompiledGrammar:
        try:
            lark, lines = lark_of_gbnf(text)
        except RecursionError:
            raise ConstraintError("the grammar is nested too deeply") from None
        check_chain(lark)
        grammar = grammar_engine().grammar_from_lark(lark)
        hints = Hints(text, ends=ends_of_text(lark))
        return self._compile(
            grammar,
            hints,
            "the grammar",
            harmless=is_harmless_rules(lark),
            line_name=lambda line: lines[line - 1],
            by_characters=True,
        )

    def _compile_choice(self, text: str) -> CompiledGrammar:
        grammar = grammar_engine().grammar_from_lark(text)
        return self._compile(grammar, Hints(text), "the choice", harmless=len(text) <= _MAX_HARMLESS_CHOICE)

    def _told(self, not_enforced: Sequence[str]) -> Sequence[str]:
        """Keywords that are loosened, named in a warning when they are first met."""
        places = tuple(dict.fromkeys(not_enforced))
        with self._lock:
            new = bool(places) and places not in self._named
            self._named.add(places)
        if new:
            shown = ", ".join(places)
            warnings.warn(
                "cannot be enforced while a text is generated, and left out of the grammar: "
                f"{shown if len(shown) <= 400 else f'{shown[:400]}...'}",
                stacklevel=3,
            )
        return places

    def _hints(self, schemas: Sequence[ReadSchema]) -> Hints:
        """What helps to close strings that match the patterns of these schemas."""
        patterns = [pattern for schema in schemas for pattern in schema.patterns()]
        hints = Hints("".join(patterns))
        give_up = time.monotonic() + _MAX_BLAMING
        for pattern in patterns[:_MAX_EXAMPLES]:
            words = re.findall(r"[\w@/:-]{2,}", pattern)
            hints.examples += words
            if pattern.startswith("^") and pattern.endswith("$"):
                continue  # then the masks show the way
            core = pattern.removeprefix("^").removesuffix("$")
            if not is_harmless_regex(core) or time.monotonic() > give_up:
                continue
            state, error = self._vocabulary.build(grammar_engine().grammar_from_regex(core), bytewise=True)
            if error:
                continue
            search = ClosingSearch(self._vocabulary, state, Hints(core, words), "the pattern")
            with contextlib.suppress(ConstraintError):
                hints.examples.append(search.run() or "")
        return hints

    def _compile(
        self,
        grammar: str,
        hints: Hints,
        subject: str,
        *,
        harmless: bool,
        line_name: Callable[[int], object] = lambda line: "",
        by_characters: bool = False,
        not_enforced: Sequence[str] = (),
    ) -> CompiledGrammar:
        """`line_name`: what users call a line of the Lark source."""
        if not harmless:
            self._vocabulary.trial.check(grammar, subject, by_characters)
        pristine, error = self._vocabulary.build(grammar, by_characters=by_characters)
        place = re.match(r"(?:at )?(\d+)\(\d+\): ", error)
        if place:
            line = line_name(int(place[1]))
            raise ConstraintError(f"{subject}{f', line {line}' if line else ''}: {message(error[place.end() :])}")
        checked((pristine, error), subject)
        states = pristine, checked(self._vocabulary.build(grammar, bytewise=True, by_characters=by_characters), subject)
        return CompiledGrammar(self._vocabulary, states, subject, hints, not_enforced)


def _schema_grammar(node: Node) -> str:
    # The engine takes its options from the schema's top level, which has to be an object for that.
    document = node if isinstance(node, dict) else {"allOf": [node]}
    try:
        return grammar_engine().grammar_from_json_schema(json.dumps(document), overrides=JSON_STYLE)
    except ValueError as error:
        raise ConstraintError(f"the schema: {error}") from None
