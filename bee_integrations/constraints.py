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
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper
from llguidance.gbnf_to_lark import any_to_lark

from .errors import ConstraintError, ParameterError
from .json_schema import (
    MAX_CHAIN,
    Node,
    ReadSchema,
    is_chain_too_long,
    read_schema,
    schema_refusal,
    schema_text,
)
from .tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

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
_MAX_SOURCE = 200_000  # characters of a grammar, or of all options
_MAX_REGEX = 10_000  # characters: the engine's time grows with their square
_MAX_FORCED = 256  # tokens looked ahead
_MAX_CLOSING = 16_384  # bytes
_MAX_EXAMPLES = 50  # of patterns
_MAX_STEPS = 6_000  # of the search for a closing text

# One way to write a value, and many forced tokens: single blanks after "," and ":", no other white space, and no
# \uXXXX, by which a key that the schema names could be written as if it were another one.
_JSON_STYLE: JsonCompileOptions = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
    "json_allowed_escapes": 'nrbtf\\"',
    "lenient": False,
    "coerce_one_of": False,
}


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
Mask = np.ndarray[Any, np.dtype[np.uint32]]


def json_object() -> JsonSchema:
    """Any JSON object ("JSON mode")."""
    return JsonSchema({"type": "object"})


class GrammarCompiler:
    """Compiles constraints for one vocabulary, and keeps the latest. Safe to use from several threads."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._vocabulary = _Vocabulary(tokenizer)
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
                "regex", _source(constraint.pattern, "the regular expression", _MAX_REGEX), self._compile_regex
            )
        if isinstance(constraint, Grammar):
            source = _source(constraint.source, "the grammar")
            if constraint.syntax == "lark":
                return self.compile_rules(source)
            if constraint.syntax == "gbnf":
                return self._cached("gbnf", source, self._compile_gbnf)
            raise ConstraintError(f"the grammar's syntax is {constraint.syntax!r}; known are 'lark' and 'gbnf'")
        return self._cached("choice", _choice_source(constraint.options), self._compile_choice)

    def compile_rules(self, lark: str) -> CompiledGrammar:
        """Rules in llguidance's Lark dialect, from `start`. Schemas in them (`%json {...}`) are read as strictly as
        others, and written in the same style unless their `x-guidance` sets the separators."""
        return self._cached("lark", _source(lark, "the grammar"), self._compile_lark)

    def literal(self, text: str) -> str:
        """A text as a Lark expression that matches it alone; control tokens in it become token references."""
        parts = []
        at = 0
        for match in self._special.finditer(text):
            if match.start() > at:
                parts.append(_quoted(text[at : match.start()]))
            parts.append(f"<[{self._vocabulary.tokenizer.token_id(match[0])}]>")
            at = match.end()
        if at < len(text) or not parts:
            parts.append(_quoted(text[at:]))
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
                grammar = LLMatcher.grammar_from_json_schema(json.dumps(document), overrides=_JSON_STYLE)
            except ValueError as error:
                return str(error)
            grammars.append(grammar)
            fault = _message(self._vocabulary.build(grammar)[1])
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
            LLMatcher.grammar_from_regex(text), _Hints(text), "the regular expression", lambda line: ""
        )

    def _compile_lark(self, text: str) -> CompiledGrammar:
        strict, schemas = _strict_inner_schemas(text)
        _check_rule_chain(strict)
        hints = self._hints(schemas)
        hints.text += text
        hints.ends = _ends_of_text(text)
        return self._compile(LLMatcher.grammar_from_lark(strict), hints, "the grammar", str)

    def _compile_gbnf(self, text: str) -> CompiledGrammar:
        try:
            lark = any_to_lark(_plain_escapes(text))
        except RecursionError:
            raise ConstraintError("the grammar is nested too deeply") from None
        except Exception as error:  # the converter raises plain exceptions for what is undefined or defined twice
            raise ConstraintError(f"the grammar, {_with_gbnf_line(str(error), text)}") from None

        _check_rule_chain(lark)

        def line(lark_line: int) -> str:
            return _line_of_rule(text, lark.splitlines()[:lark_line])

        return self._compile(LLMatcher.grammar_from_lark(lark), _Hints(text), "the grammar", line)

    def _compile_choice(self, text: str) -> CompiledGrammar:
        return self._compile(LLMatcher.grammar_from_lark(text), _Hints(text), "the choice", lambda line: "")

    def _hints(self, schemas: Sequence[ReadSchema]) -> _Hints:
        """What helps to close strings that match the patterns of these schemas."""
        patterns = [pattern for schema in schemas for pattern in schema.patterns()]
        hints = _Hints("".join(patterns))
        for pattern in patterns[:_MAX_EXAMPLES]:
            words = re.findall(r"[\w@/:-]{2,}", pattern)
            hints.examples += words
            if pattern.startswith("^") and pattern.endswith("$"):
                continue  # then the masks show the way
            core = pattern.removeprefix("^").removesuffix("$")
            state, error = self._vocabulary.build(LLMatcher.grammar_from_regex(core), bytewise=True)
            if error:
                continue
            search = _ClosingSearch(self._vocabulary, state, _Hints(core, words), "the pattern")
            with contextlib.suppress(ConstraintError):
                hints.examples.append(search.run() or "")
        return hints

    def _compile(self, grammar: str, hints: _Hints, subject: str, line_name: Callable[[int], str]) -> CompiledGrammar:
        _, error = self._vocabulary.build(grammar)
        if error:
            place = re.match(r"(?:at )?(\d+)\(\d+\): ", error)
            line = line_name(int(place[1])) if place else ""
            reason = _message(error[place.end() :] if place else error)
            raise ConstraintError(f"{subject}{f', line {line}' if line else ''}: {reason}")
        return CompiledGrammar(self._vocabulary, grammar, subject, hints)


class CompiledGrammar:
    """A constraint ready for use with one vocabulary. Immutable, and safe to use from several threads."""

    def __init__(self, vocabulary: _Vocabulary, grammar: str, subject: str, hints: _Hints) -> None:
        self._vocabulary = vocabulary
        self._subject = subject
        self._lock = Lock()
        self._bytes = _checked(vocabulary.build(grammar, bytewise=True), subject)
        self._hints = hints
        shortest = _ClosingSearch(vocabulary, self._bytes, hints, subject).run()
        if shortest is None:
            raise ConstraintError(f"{subject}: it admits nothing, or nothing that a bounded search finds")
        self._pristine = _checked(vocabulary.build(grammar), subject)
        # The first mask of a large expression is the dearest: taken here, it is there for every copy.
        words = vocabulary.mask_buffer()
        self._pristine.unsafe_compute_mask_ptr(words.ctypes.data, words.nbytes)
        _checked((self._pristine, self._pristine.get_error()), subject)

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
        closing = _ClosingSearch(self._vocabulary, state, self._hints, self._subject).run()
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
            raise ConstraintError(f"{self._grammar._subject}: {_message(self._engine.get_error())}")


class _Vocabulary:
    """A tokenizer as the grammar engine knows it, and a second one for it that has a token for each byte."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.mask_words = -(-tokenizer.n_vocab // 32)
        self.own_tokens = self._bits(range(tokenizer.n_vocab))
        self.stop_tokens = self._bits(tokenizer.stop_token_ids)
        # All requests wait for a step of one grammar: with the engine's own limits it may take seconds, with these a
        # tenth of one.
        self._limits = LLParserLimits(max_items_in_row=500, step_max_items=5000, verbose_errors=False)
        self._lock = Lock()
        # Tokens that stand for no text of their own. A stop token is one whatever its kind.
        self.control = sorted({*tokenizer.special_tokens.values(), *tokenizer.stop_token_ids})

    def build(self, grammar: str, *, bytewise: bool = False) -> tuple[LLMatcher, str]:
        """(matcher in the initial state, error or "")."""
        with self._lock:
            known = self._byte_tokens if bytewise else self._tokens
        matcher = LLMatcher(known, grammar, log_level=0, limits=self._limits)
        return matcher, matcher.get_error() if matcher.is_error() else ""

    def tokens_that_begin(self, text: bytes) -> Mask:
        """As `GrammarCompiler` has it."""

        def begins(spoken: bytes) -> bool:
            if text[0] not in spoken:
                return False
            return text in spoken or any(spoken.endswith(text[:length]) for length in range(1, len(text)))

        tokenizer = self.tokenizer
        return self._bits([token for token in range(tokenizer.n_vocab) if begins(tokenizer.spoken_bytes(token))])

    def mask_buffer(self, *, bytewise: bool = False) -> Mask:
        """Room for a mask of the engine's, which has one token more."""
        n_tokens = self.tokenizer.n_vocab + (256 if bytewise else 0) + 1
        return np.empty(-(-n_tokens // 32), dtype=np.uint32)

    def _bits(self, tokens: Collection[int]) -> Mask:
        bits = np.zeros(self.mask_words * 32, dtype=np.uint8)
        bits[list(tokens)] = 1
        return np.packbits(bits, bitorder="little").view(np.uint32)

    def bytewise(self, tokens: Sequence[int]) -> list[int]:
        """Tokens as the second vocabulary has them, without part of a character at the end."""
        spelled: list[int] = []
        text = b""
        control = set(self.control)
        for token in tokens:
            if token in control:
                text = b""
                spelled.append(token)
            else:
                part = self.tokenizer.token_bytes(token)
                text += part
                spelled += [self.tokenizer.n_vocab + byte for byte in part]
        whole = len(text.decode("utf-8", errors="ignore").encode()) if _ends_within_character(text) else len(text)
        return spelled[: len(spelled) - (len(text) - whole)]

    def spell(self, tokens: Sequence[int]) -> str:
        """The text of tokens of the second vocabulary; control tokens as the vocabulary spells them."""
        n_vocab = self.tokenizer.n_vocab
        parts = [
            bytes([token - n_vocab]) if token >= n_vocab else self.tokenizer.token_text(token).encode()
            for token in tokens
        ]
        return b"".join(parts).decode()

    @cached_property
    def _tokens(self) -> LLTokenizer:
        texts = [self.tokenizer.token_bytes(token) for token in range(self.tokenizer.n_vocab)]
        return self._build_tokenizer(texts, self._encode)

    @cached_property
    def _byte_tokens(self) -> LLTokenizer:
        n_vocab = self.tokenizer.n_vocab
        texts = [b""] * n_vocab + [bytes([byte]) for byte in range(256)]
        return self._build_tokenizer(texts, lambda text: [n_vocab + byte for byte in text.encode()])

    def _build_tokenizer(self, texts: list[bytes], encode: Callable[[str], list[int]]) -> LLTokenizer:
        if not self.tokenizer.stop_token_ids:
            raise ConstraintError("the model's vocabulary has no token that ends a text, so no constraint can end")
        for token in self.control:
            texts[token] = self.tokenizer.token_text(token).encode()
        # The engine cannot roll back over what it holds for the end of a text, and grammars may have stop tokens in
        # them. So its end is a token of its own, and the stop tokens are control tokens like any other.
        end = len(texts)
        texts.append(b"<end of text>")
        shape = _EngineVocabulary(texts, [*self.control, end], end, self.tokenizer.bos_token_id, encode)
        return LLTokenizer(TokenizerWrapper(shape), n_vocab=len(texts), eos_token=end)

    def _encode(self, text: str) -> list[int]:
        """The tokenizer's own tokens for a piece of text; the longest that fit where those spell it otherwise (some
        tokenizers put a blank before a text)."""
        tokens = self.tokenizer.encode(text, add_special=False, parse_special=False)
        wanted = text.encode()
        if b"".join(map(self.tokenizer.token_bytes, tokens)) == wanted:
            return tokens
        return self._longest_tokens(wanted)

    def _longest_tokens(self, text: bytes) -> list[int]:
        tokens: list[int] = []
        at = 0
        while at < len(text):
            ends = range(min(len(text), at + self._longest), at, -1)
            end = next((end for end in ends if text[at:end] in self._by_bytes), None)
            if end is None:
                return tokens  # the engine finds out what no token spells
            tokens.append(self._by_bytes[text[at:end]])
            at = end
        return tokens

    @cached_property
    def _by_bytes(self) -> dict[bytes, int]:
        control = set(self.control)
        ordinary = [token for token in range(self.tokenizer.n_vocab) if token not in control]
        return {self.tokenizer.token_bytes(token): token for token in reversed(ordinary)}

    @cached_property
    def _longest(self) -> int:
        return max(map(len, self._by_bytes))


@dataclass
class _EngineVocabulary:
    """A vocabulary with the attributes that llguidance looks for."""

    tokens: list[bytes]
    special_token_ids: list[int]
    eos_token_id: int
    bos_token_id: int | None
    encode: Callable[[str], list[int]]

    def __call__(self, text: str) -> list[int]:
        if not isinstance(text, str):
            raise TypeError("only text is tokenised")  # llguidance tries bytes once, and then keeps to text
        return self.encode(text)


@dataclass
class _Hints:
    """What a search for a closing text may find useful."""

    text: str  # the sources of regular expressions
    examples: list[str] = field(default_factory=list)  # texts that match those that may match anywhere in a string
    ends: list[str] = field(default_factory=list)  # texts that may end a run of free text in a grammar


class _ClosingSearch:
    """Looks for a short text that completes a state, over bytes.

    First along one path, which takes what closes something wherever it can: that ends nearly every JSON. Where it does
    not, level by level along many. States of a level that have the same mask and came by the same byte count as one,
    and of those that came by the same byte a run of it is kept.
    """

    _CLOSERS = b'}]", :0'
    _IN_STRING = b'"}], :0'
    _USUAL = b"@./-a"  # what the formats of strings ask for
    _SHORT_PATH = 1_000
    _LONG_PATH = 4_000
    _LEVEL_WIDTH = 32
    _FEW = 8  # possible bytes, where a text has ended
    _MANY = 64  # possible bytes, beyond which only those are tried that close something or that the grammar names

    def __init__(self, vocabulary: _Vocabulary, state: LLMatcher, hints: _Hints, subject: str) -> None:
        self._vocabulary = vocabulary
        self._start = state
        self._subject = subject
        self._first_byte = vocabulary.tokenizer.n_vocab
        self._words = vocabulary.mask_buffer(bytewise=True)
        self._control = np.array(vocabulary.control, dtype=np.int64)
        self._named = frozenset(hints.text.encode() + self._CLOSERS + self._USUAL)
        # Whatever was said, one of the ends of an example makes a string match that may match anywhere.
        spelled = [json.dumps(example, ensure_ascii=False)[1:-1].encode() for example in hints.examples]
        ends = {text[at:] for text in spelled for at in range(max(len(text) - 64, 0), len(text))}
        self._ends = [[self._first_byte + byte for byte in end] for end in sorted(ends, key=len)]

        # Free text ends with one of these, of which the beginning may have been said.
        tails = {text.encode()[at:] for text in hints.ends for at in range(len(text.encode()))}
        self._text_ends = [[self._first_byte + byte for byte in tail] for tail in sorted(tails, key=len)]

    def run(self) -> str | None:
        """The text, or None where none was found."""
        found = self._along_one_path(self._SHORT_PATH)
        if found is None:
            found = self._along_many_paths()
        if found is None:
            found = self._along_one_path(self._LONG_PATH)
        return None if found is None else self._vocabulary.spell(found)

    def _along_one_path(self, steps: int) -> list[int] | None:
        state = self._start.deep_copy()
        path: list[int] = []
        for _ in range(steps):
            if self._complete(state):
                return path
            step = self._end_of_text(state) or next(iter(self._next_steps(state)), None)
            if step is None or len(path) > _MAX_CLOSING or state.try_consume_tokens(step) != len(step):
                self._check(state)
                return None
            path += step
        return None

    def _end_of_text(self, state: LLMatcher) -> list[int] | None:
        """Where nearly anything may follow: what would leave little choice."""
        if self._n_allowed(state) <= self._MANY:
            return None
        for end in self._text_ends:
            taken = state.try_consume_tokens(end)
            ends = taken == len(end) and (self._complete(state) or self._n_allowed(state) <= self._FEW)
            state.rollback(taken)
            if ends:
                return end
        return None

    def _n_allowed(self, state: LLMatcher) -> int:
        bits = np.unpackbits(self._mask(state).view(np.uint8), bitorder="little")
        return int(bits[self._first_byte : self._first_byte + 256].sum())

    def _along_many_paths(self) -> list[int] | None:
        level: list[tuple[LLMatcher, list[int]]] = [(self._start.deep_copy(), [])]
        known_masks: set[bytes] = set()
        steps = 0
        while level:
            tries = [(state, path, step) for state, path in level for step in [*self._next_steps(state), *self._ends]]
            tries.sort(key=lambda attempt: attempt[1][-1:] != attempt[2])
            found: dict[tuple[bytes, tuple[int, ...]], tuple[LLMatcher, list[int], list[int]]] = {}
            for state, path, step in tries:
                steps += 1
                if steps > _MAX_STEPS or len(path) + len(step) > _MAX_CLOSING:
                    return None
                taken = state.try_consume_tokens(step)
                self._check(state)
                if taken == len(step):
                    if self._complete(state):
                        return path + step
                    found.setdefault((self._mask(state).tobytes(), tuple(step)), (state, path, step))
                state.rollback(taken)
            # What looks new comes first: it is where something has moved on.
            new_first = sorted(found, key=lambda look: look[0] in known_masks)[: self._LEVEL_WIDTH]
            known_masks.update(mask for mask, _ in found)
            level = [self._stepped(*found[look]) for look in new_first]
        return None

    def _stepped(self, state: LLMatcher, path: list[int], step: list[int]) -> tuple[LLMatcher, list[int]]:
        copy = state.deep_copy()
        copy.try_consume_tokens(step)
        return copy, path + step

    def _next_steps(self, state: LLMatcher) -> list[list[int]]:
        """What may follow, the most promising first."""
        forced = state.compute_ff_tokens()
        self._check(state)
        if forced:
            return [forced]
        bits = np.unpackbits(self._mask(state).view(np.uint8), bitorder="little")
        allowed = np.flatnonzero(bits[self._first_byte : self._first_byte + 256]).tolist()
        if len(allowed) > self._MANY:
            allowed = [byte for byte in allowed if byte in self._named]
        order = self._CLOSERS
        if len(allowed) > 8 and ord(".") in allowed:  # within a string, which is filled with dots if it may not end yet
            order = self._IN_STRING if ord('"') in allowed else b"." + self._IN_STRING
        steps = sorted(allowed, key=lambda byte: order.find(byte) if byte in order else byte + 99)
        control = self._control[bits[self._control] != 0].tolist()
        return [[self._first_byte + byte] for byte in steps] + [[token] for token in control[:1]]

    def _mask(self, state: LLMatcher) -> Mask:
        state.unsafe_compute_mask_ptr(self._words.ctypes.data, self._words.nbytes)
        self._check(state)
        return self._words

    def _complete(self, state: LLMatcher) -> bool:
        complete = bool(state.is_accepting())
        self._check(state)
        return complete

    def _check(self, state: LLMatcher) -> None:
        _checked((state, state.get_error() if state.is_error() else ""), self._subject)


def _checked(built: tuple[LLMatcher, str], subject: str) -> LLMatcher:
    matcher, error = built
    if error:
        reason = "it admits nothing" if error.startswith("NoExtension") else _message(error)
        raise ConstraintError(f"{subject}: {reason}")
    return matcher


def _message(error: str) -> str:
    """What an error of the engine says, without its drawings."""
    lines = [line for line in error.splitlines() if line.strip() and line.strip() != "<non-verbose/>"]
    first = lines[0][:300] if lines else ""
    if first.startswith("panic:"):
        return "it is too large for the grammar engine"
    if "Current row has" in first:
        return "it is too large for the grammar engine: too much is possible at one place"
    cause = next((line for line in lines[1:] if line.startswith("error: ")), "")
    return f"{first.rstrip(':')}: {cause.removeprefix('error: ')}" if cause else first


def _source(text: str, subject: str, most: int = _MAX_SOURCE) -> str:
    if not isinstance(text, str):
        raise ConstraintError(f"{subject} is a {type(text).__name__}, expected a string")
    if len(text) > most:
        raise ConstraintError(f"{subject} has {len(text):,} characters; at most {most:,} are read")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ConstraintError(f"{subject} has a lone surrogate, which is not Unicode text") from None
    return text


def _choice_source(options: Sequence[str]) -> str:
    if isinstance(options, str) or not options or any(not isinstance(option, str) for option in options):
        raise ConstraintError("a choice needs at least one option, and each is a string")
    # One terminal, not a rule: thousands of options are no burden to the lexer, but are to the parser.
    return _source("start: OPTION\nOPTION: " + " | ".join(map(_quoted, dict.fromkeys(options))), "the choice")


def _ends_of_text(lark: str) -> list[str]:
    """The literal texts of a grammar, and those at the ends of its regular expressions."""
    strings = [json.loads(match) for match in re.findall(r'"(?:[^"\\\n]|\\["\\/bfnrt]|\\u[0-9a-fA-F]{4})+"', lark)]
    tails = re.findall(r"((?:\\.|[^\\/()\[\]{}|*+?.^$\n])+)/", lark)
    plain = [re.sub(r"\\(.)", lambda match: {"n": "\n", "t": "\t"}.get(match[1], match[1]), tail) for tail in tails]
    return sorted({text for text in (*strings, *plain) if len(text) <= 64}, key=len)[:64]


def _quoted(text: str) -> str:
    # The grammar engine's lexer takes no U+007F as it stands.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _strict_inner_schemas(lark: str) -> tuple[str, list[ReadSchema]]:
    """The rules with each `%json {...}` read strictly. Line breaks are kept, so that errors name the right line."""
    schemas = []
    decoder = json.JSONDecoder()
    parts = []
    at = 0
    for match in re.finditer(r"%json\s*(?=\{)", lark):
        if match.start() < at:
            continue
        try:
            schema, end = decoder.raw_decode(lark, match.end())
        except (ValueError, RecursionError):
            continue  # the engine says what is wrong with it
        line = lark.count("\n", 0, match.start()) + 1
        own_style = schema.get("x-guidance") or {}
        try:
            schemas.append(read_schema(schema_text(schema)))
        except ConstraintError as error:
            raise ConstraintError(f"the grammar, line {line}: {error}") from None
        strict = schemas[-1].compiled_form()
        separators = {key: own_style[key] for key in ("item_separator", "key_separator") if key in own_style}
        document = {**(strict if isinstance(strict, dict) else {"allOf": [strict]})}
        document["x-guidance"] = {**_JSON_STYLE, **separators}
        breaks = "\n" * lark.count("\n", match.start(), end)
        parts += [lark[at : match.start()], "%json ", _quoted_breaks(document, breaks)]
        at = end
    return "".join(parts) + lark[at:], schemas


def _quoted_breaks(document: Mapping[str, Any], breaks: str) -> str:
    text = json.dumps(document, ensure_ascii=False)
    return text[:-1] + breaks + text[-1]


def _check_rule_chain(lark: str) -> None:
    """Refuse rules that refer to one another in so long a row that the engine would exhaust the stack."""
    graph: dict[str, list[str]] = {}
    rule = ""
    brackets = 0
    for line in lark.splitlines():
        head = re.match(r"\s*([?!]?[A-Za-z_][\w-]*)[^:]*:", line)
        if head:
            rule = head[1].lstrip("?!")
            brackets = 0
        for name, bracket in re.findall(r"([A-Za-z_][\w-]*)|([()\[\]])", line[head.end() :] if head else line):
            # What stands in brackets is a rule of its own, of which the engine makes a level, too.
            inner = f"{rule} {brackets}" if brackets else rule
            if bracket and bracket in "([":
                brackets += 1
                graph.setdefault(inner, []).append(f"{rule} {brackets}")
            elif bracket:
                brackets = max(brackets - 1, 0)
            else:
                graph.setdefault(inner, []).append(name)
    if is_chain_too_long(graph, "start"):
        raise ConstraintError(f"the grammar: more than {MAX_CHAIN} rules and brackets lead into one another in a row")


def _plain_escapes(gbnf: str) -> str:
    r"""GBNF with the characters themselves in place of \uXXXX and \UXXXXXXXX, which the converter misspells."""

    def plain(match: re.Match[str]) -> str:
        code = int(match[1] or match[2] or "0", 16)
        if not 0x80 <= code < 0x110000 or 0xD800 <= code < 0xE000:
            return f"\\x{code:02x}" if (match[1] or match[2]) and code < 0x80 else match[0]
        return chr(code)

    return re.sub(r"\\(?:u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|.)", plain, gbnf, flags=re.DOTALL)


def _with_gbnf_line(error: str, gbnf: str) -> str:
    place = re.search(r"^(.*) at line (\d+), ", error, flags=re.DOTALL)
    if place:
        return f"line {place[2]}: {place[1]}"
    name = re.search(r"Rule '(.+?)'", error)
    for number, line in enumerate(gbnf.splitlines(), start=1):
        if name and re.search(rf"(?<![\w-]){re.escape(name[1])}(?![\w-])", line):
            return f"line {number}: {error}"
    return f"line 1: {error}"


def _line_of_rule(gbnf: str, lark_lines: Sequence[str]) -> str:
    """The line of the GBNF rule that the last of these Lark lines belongs to."""

    def plain(name: str) -> str:
        return re.sub(r"[^a-z0-9]", "", name.lower())

    heads = [head for line in lark_lines if (head := re.match(r"([\w-]+)\s*:", line))]
    wanted = plain(heads[-1][1]) if heads else ""
    for number, line in enumerate(gbnf.splitlines(), start=1):
        head = re.match(r"\s*([\w-]+)\s*::=", line)
        if head and plain(head[1]) in (wanted, "root" if wanted == "start" else wanted):
            return str(number)
    return ""


def _ends_within_character(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError as error:
        return error.reason == "unexpected end of data"
    return False
