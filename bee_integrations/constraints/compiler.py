"""What an answer must look like (JSON schema, regular expression, grammar, choice), and the masks that make it so.

    Constraint -> GrammarCompiler.compile -> CompiledGrammar.matcher -> Matcher: mask, consume, roll back

The grammar engine is llguidance. It works on bytes, so tokens that are parts of characters need no care here. What it
is given is narrower than what it takes: schemas are read by `json_schema` first, sizes are limited, and a constraint
that no text fulfils is refused when it is compiled.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ..errors import ConstraintError, ParameterError
from ..text.tokenizer import Tokenizer
from .closing_text import ClosingSearch, Hints, ends_of_text
from .grammar_source import (
    JSON_STYLE,
    check_rule_chain,
    checked_source,
    choice_source,
    lark_of_gbnf,
    line_of_rule,
    quoted,
    strict_inner_schemas,
    with_gbnf_line,
)
from .json_schema import (
    Node,
    ReadSchema,
    read_schema,
    schema_refusal,
    schema_text,
)
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
_MAX_FORCED = 256  # tokens looked ahead
_MAX_EXAMPLES = 50  # of patterns


@dataclass(frozen=True, eq=False)
class JsonSchema:
    """JSON that fits a schema (draft 2020-12), written as `{"a": 1, "b": [1, 2]}`, properties in the schema's order."""

    schema: Mapping[str, Any] | bool

    @cached_property
    def text(self) -> str:
        """The schema as JSON."""
        return schema_text(self.schema)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, JsonSchema) and self.text == other.text

    def __hash__(self) -> int:
        return hash(self.text)


@dataclass(frozen=True)
class Regex:
    """A text that a regular expression matches as a whole: Rust's syntax, without look-around and back-references."""

    pattern: str


@dataclass(frozen=True)
class Grammar:
    """A text of a context-free language: llguidance's dialect of Lark, from its rule `start`, or GBNF, from `root`."""

    source: str
    syntax: Literal["lark", "gbnf"] = "lark"


@dataclass(frozen=True)
class Choice:
    """A text that is exactly one of these."""

    options: tuple[str, ...]


Constraint = JsonSchema | Regex | Grammar | Choice


def json_object() -> JsonSchema:
    """Any JSON object ("JSON mode")."""
    return JsonSchema({"type": "object"})


class GrammarCompiler:
    """Compiles constraints for one vocabulary, and keeps the latest. Safe to use from several threads."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._vocabulary = Vocabulary(tokenizer)
        self._cache: OrderedDict[tuple[str, str], CompiledGrammar] = OrderedDict()
        self._beginnings: dict[str, Mask] = {}
        self._lock = Lock()
        special = sorted(tokenizer.special_tokens, key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, special)) or r"(?!)")

    def compile(self, constraint: Constraint) -> CompiledGrammar:
        """Raises `ConstraintError` where the constraint is invalid, unsupported, too large, or admits nothing."""
        if isinstance(constraint, JsonSchema):
            return self._cached("schema", constraint.text, self._compile_schema)
        if isinstance(constraint, Regex):
            return self._cached(
                "regex", checked_source(constraint.pattern, "the regular expression", _MAX_REGEX), self._compile_regex
            )
        if isinstance(constraint, Grammar):
            text = checked_source(constraint.source, "the grammar")
            if constraint.syntax == "lark":
                return self.compile_rules(text)
            if constraint.syntax == "gbnf":
                return self._cached("gbnf", text, self._compile_gbnf)
            raise ConstraintError(f"the grammar's syntax is {constraint.syntax!r}; known are 'lark' and 'gbnf'")
        return self._cached("choice", choice_source(constraint.options), self._compile_choice)

    def compile_rules(self, lark: str) -> CompiledGrammar:
        """Rules in llguidance's Lark dialect, from `start`. Schemas in them (`%json {...}`) are read as strictly as
        others, and written in the same style unless their `x-guidance` sets the separators."""
        return self._cached("lark", checked_source(lark, "the grammar"), self._compile_lark)

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

    def _compile_schema(self, text: str) -> CompiledGrammar:
        schema = read_schema(text)

        def refused(node: Node) -> str:
            # The engine takes its options from the schema's top level, which has to be an object for that.
            document = node if isinstance(node, dict) else {"allOf": [node]}
            try:
                grammar = grammar_engine().grammar_from_json_schema(json.dumps(document), overrides=JSON_STYLE)
            except ValueError as error:
                return str(error)
            grammars.append(grammar)
            fault = message(self._vocabulary.build(grammar)[1])
            if fault.startswith("oneOf constraints"):
                fault = (
                    "it is not plain that the alternatives of 'oneOf' exclude one another; 'anyOf' needs no such thing"
                )
            return fault.removeprefix("Unsatisfiable schema: ")

        grammars: list[str] = []
        reason = refused(schema.compiled_form())
        if not reason:
            return CompiledGrammar(self._vocabulary, grammars[0], "the schema", self._hints([schema]))
        path = ""
        if "too " not in reason:  # what is too large as a whole need not be so in any part
            path, reason = schema.find_refused(refused)
        raise schema_refusal(path, reason)

    def _compile_regex(self, text: str) -> CompiledGrammar:
        return self._compile(
            grammar_engine().grammar_from_regex(text), Hints(text), "the regular expression", lambda line: ""
        )

    def _compile_lark(self, text: str) -> CompiledGrammar:
        strict, schemas = strict_inner_schemas(text)
        check_rule_chain(strict)
        hints = self._hints(schemas)
        hints.text += text
        hints.ends = ends_of_text(text)
        return self._compile(grammar_engine().grammar_from_lark(strict), hints, "the grammar", str)

    def _compile_gbnf(self, text: str) -> CompiledGrammar:
        try:
            lark = lark_of_gbnf(text)
        except RecursionError:
            raise ConstraintError("the grammar is nested too deeply") from None
        except Exception as error:  # the converter raises plain exceptions for what is undefined or defined twice
            raise ConstraintError(f"the grammar, {with_gbnf_line(str(error), text)}") from None

        check_rule_chain(lark)

        def line(lark_line: int) -> str:
            return line_of_rule(text, lark.splitlines()[:lark_line])

        return self._compile(grammar_engine().grammar_from_lark(lark), Hints(text), "the grammar", line)

    def _compile_choice(self, text: str) -> CompiledGrammar:
        return self._compile(grammar_engine().grammar_from_lark(text), Hints(text), "the choice", lambda line: "")

    def _hints(self, schemas: Sequence[ReadSchema]) -> Hints:
        """What helps to close strings that match the patterns of these schemas."""
        patterns = [pattern for schema in schemas for pattern in schema.patterns()]
        hints = Hints("".join(patterns))
        for pattern in patterns[:_MAX_EXAMPLES]:
            words = re.findall(r"[\w@/:-]{2,}", pattern)
            hints.examples += words
            if pattern.startswith("^") and pattern.endswith("$"):
                continue  # then the masks show the way
            core = pattern.removeprefix("^").removesuffix("$")
            state, error = self._vocabulary.build(grammar_engine().grammar_from_regex(core), bytewise=True)
            if error:
                continue
            search = ClosingSearch(self._vocabulary, state, Hints(core, words), "the pattern")
            with contextlib.suppress(ConstraintError):
                hints.examples.append(search.run() or "")
        return hints

    def _compile(self, grammar: str, hints: Hints, subject: str, line_name: Callable[[int], str]) -> CompiledGrammar:
        _, error = self._vocabulary.build(grammar)
        if error:
            place = re.match(r"(?:at )?(\d+)\(\d+\): ", error)
            line = line_name(int(place[1])) if place else ""
            reason = message(error[place.end() :] if place else error)
            raise ConstraintError(f"{subject}{f', line {line}' if line else ''}: {reason}")
        return CompiledGrammar(self._vocabulary, grammar, subject, hints)


class CompiledGrammar:
    """A constraint ready for use with one vocabulary. Immutable, and safe to use from several threads."""

    def __init__(self, vocabulary: Vocabulary, grammar: str, subject: str, hints: Hints) -> None:
        self._vocabulary = vocabulary
        self._subject = subject
        self._lock = Lock()
        self._bytes = checked(vocabulary.build(grammar, bytewise=True), subject)
        self._hints = hints
        shortest = ClosingSearch(vocabulary, self._bytes, hints, subject).run()
        if shortest is None:
            raise ConstraintError(f"{subject}: it admits nothing, or nothing that a bounded search finds")
        self._pristine = checked(vocabulary.build(grammar), subject)
        # The first mask of a large expression is the dearest: taken here, it is there for every copy.
        words = vocabulary.mask_buffer()
        self._pristine.unsafe_compute_mask_ptr(words.ctypes.data, words.nbytes)
        checked((self._pristine, self._pristine.get_error()), subject)

    def matcher(self) -> Matcher:
        """A matcher in the initial state. Cheap."""
        with self._lock:
            return Matcher(self, self._pristine.deep_copy())

    def _closing(self, tokens: Sequence[int]) -> str:
        with self._lock:
            state = self._bytes.deep_copy()
        replay = self._vocabulary.bytewise(tokens)
        if state.try_consume_tokens(replay) != len(replay):
            raise ConstraintError(f"{self._subject}: what was said cannot be followed again ({state.get_error()})")
        closing = ClosingSearch(self._vocabulary, state, self._hints, self._subject).run()
        if closing is None:
            raise ConstraintError(f"{self._subject}: nothing short completes what was said")
        return closing


class Matcher:
    """The state of one generation under a constraint. For one thread at a time.

    What it allows depends on the tokens consumed and on nothing else, so drafts may be consumed and rolled back at
    will. Where the engine meets its limits, methods raise `ConstraintError`, and the matcher is of no further use.
    """

    mask_words: int
    """uint32 words of a mask: ceil(n_vocab / 32); bit t % 32 of word t // 32 is token t."""

    def __init__(self, grammar: CompiledGrammar, engine: LLMatcher) -> None:
        self._grammar = grammar
        self._engine = engine
        self._vocabulary = grammar._vocabulary
        self._stop = self._vocabulary.tokenizer.stop_token_ids
        self._tokens: list[int] = []
        self._ended = 0  # stop tokens consumed after the complete text; the engine does not see them
        # For each state up to the present one: the tokens that must follow, or None where that is not known yet.
        self._plans: list[list[int] | None] = [None]
        self.mask_words = self._vocabulary.mask_words
        self._buffer = self._vocabulary.mask_buffer()

    def forced(self, room: int) -> list[int]:
        """The tokens that must follow, at most `room`, in the tokenizer's own tokenisation.

        Text whose tokenisation depends on what comes after it is not forced, though its characters may be certain.
        """
        return self._plan()[: max(room, 0)]

    def fill_mask(self, address: int) -> None:
        """Write the mask of the next token to `address`: `mask_words` * 4 bytes, aligned to 4.

        Where tokens are forced, it holds the first of them alone. It holds the stop tokens where, and only where, the
        text is complete or the grammar itself has one there.
        """
        plan = self._plan()
        words = np.ctypeslib.as_array((ctypes.c_uint32 * self.mask_words).from_address(address))
        if plan or self._ended:
            words.fill(0)
            for token in plan[:1]:
                words[token // 32] = 1 << (token % 32)
        else:
            self._engine.unsafe_compute_mask_ptr(self._buffer.ctypes.data, self._buffer.nbytes)
            self._check()
            np.bitwise_and(self._buffer[: self.mask_words], self._vocabulary.own_tokens, out=words)
        if not plan and self.accepting:
            np.bitwise_or(words, self._vocabulary.stop_tokens, out=words)
        elif not words.any():
            raise ConstraintError(f"{self._grammar._subject}: nothing can follow what was said, which is not complete")

    def consume(self, token: int) -> bool:
        """Take a token; False, with the state as it was, where it is not allowed."""
        plan = self._plan()
        if not 0 <= token < self._vocabulary.tokenizer.n_vocab or (plan and token != plan[0]):
            return False
        if token in self._stop and (self._ended or self.accepting):
            self._ended += 1
        elif self._ended:
            return False
        elif self._engine.try_consume_tokens([token]) != 1:
            self._check()
            return False
        self._tokens.append(token)
        self._plans.append(plan[1:] or None)
        return True

    def rollback(self, n: int) -> None:
        """Take back the last `n` tokens."""
        if not 0 <= n <= len(self._tokens):
            raise ParameterError(f"cannot roll back {n} tokens: {len(self._tokens)} were consumed")
        if not n:
            return
        behind_end = min(n, self._ended)
        self._ended -= behind_end
        if n > behind_end:
            self._engine.rollback(n - behind_end)
            self._check()
        del self._tokens[-n:]
        del self._plans[-n:]

    @property
    def finished(self) -> bool:
        """The text is complete, and nothing can follow but the end of the answer."""
        return bool(self._ended) or (self.accepting and bool(self._engine.is_stopped()))

    @property
    def accepting(self) -> bool:
        """What was said so far is complete."""
        accepting = bool(self._engine.is_accepting())
        self._check()
        return accepting

    def closing_text(self) -> str:
        """A short text that completes what was said so far: what hit its limit becomes a valid value.

        It follows the last whole character: bytes at the end that are only part of one are to be dropped. Raises
        `ConstraintError` where none is found in a bounded search.
        """
        spoken = self._tokens[: len(self._tokens) - self._ended]
        return self._grammar._closing(spoken)

    def _plan(self) -> list[int]:
        """The forced tokens of the present state, found once and then used up one by one, so that they come the same
        whether they are asked for together or singly."""
        plan = self._plans[-1]
        if plan is None:
            plan = [] if self._ended else self._look_ahead()
            self._plans[-1] = plan
        return plan

    def _look_ahead(self) -> list[int]:
        plan: list[int] = []
        while len(plan) < _MAX_FORCED and not self._engine.is_accepting():
            more = self._engine.compute_ff_tokens()
            taken = self._engine.try_consume_tokens(more) if more else 0
            plan += more[:taken]
            if not taken or taken < len(more):
                break
        if plan:
            self._engine.rollback(len(plan))
        self._check()
        return plan

    def _check(self) -> None:
        if self._engine.is_error():
            raise ConstraintError(f"{self._grammar._subject}: {message(self._engine.get_error())}")
