"""A tokenizer as the grammar engine knows it, and what the engine says of errors."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import ConstraintError
from ..text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLParserLimits, LLTokenizer

__all__ = ["Mask", "Vocabulary", "checked", "ends_within_character", "grammar_engine", "message"]

Mask = np.ndarray[Any, np.dtype[np.uint32]]

_LONGEST_TOKEN = 1023  # bytes; the grammar engine counts the depth of its tree of tokens in ten bits


def grammar_engine() -> type[LLMatcher]:
    """llguidance's matcher, loaded when a grammar is first needed: text without one saves its memory."""
    from llguidance import LLMatcher

    return LLMatcher


class Vocabulary:
    """A tokenizer as the grammar engine knows it, and a second one for it that has a token for each byte."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.mask_words = -(-tokenizer.n_vocab // 32)
        self.own_tokens = self._bits(range(tokenizer.n_vocab))
        self.stop_tokens = self._bits(tokenizer.stop_token_ids)
        self._lock = Lock()
        # Tokens that stand for no text of their own. A stop token is one whatever its kind.
        self.control = sorted({*tokenizer.special_tokens.values(), *tokenizer.stop_token_ids})

    def build(self, grammar: str, *, bytewise: bool = False) -> tuple[LLMatcher, str]:
        """(matcher in the initial state, error or "")."""
        with self._lock:
            known = self._byte_tokens if bytewise else self._tokens
        matcher = grammar_engine()(known, grammar, log_level=0, limits=self._limits)
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
        whole = len(text.decode("utf-8", errors="ignore").encode()) if ends_within_character(text) else len(text)
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
    def _limits(self) -> LLParserLimits:
        from llguidance import LLParserLimits

        # All requests wait for a step of one grammar: with the engine's own limits it may take seconds, with these a
        # tenth of one.
        return LLParserLimits(max_items_in_row=500, step_max_items=5000, verbose_errors=False)

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
        token, length = max(enumerate(map(len, texts)), key=lambda entry: entry[1])
        if length > _LONGEST_TOKEN:
            raise ConstraintError(
                f"token {token} of the model's vocabulary (tokenizer.ggml.tokens) is {length} bytes long; the grammar "
                f"engine takes at most {_LONGEST_TOKEN}, so this model runs without constraints only"
            )
        shape = _EngineVocabulary(texts, [*self.control, end], end, self.tokenizer.bos_token_id, encode)
        from llguidance import LLTokenizer, TokenizerWrapper

        try:
            return LLTokenizer(TokenizerWrapper(shape), n_vocab=len(texts), eos_token=end)
        except BaseException as error:
            # A panic inside the engine is no Exception, and its class cannot be imported.
            if type(error).__name__ != "PanicException":
                raise
            raise ConstraintError(f"the grammar engine cannot take the model's vocabulary: {error}") from None

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


def checked(built: tuple[LLMatcher, str], subject: str) -> LLMatcher:
    matcher, error = built
    if error:
        reason = "it admits nothing" if error.startswith("NoExtension") else message(error)
        raise ConstraintError(f"{subject}: {reason}")
    return matcher


def message(error: str) -> str:
    """What an error of the engine says, without its drawings."""
    lines = [line for line in error.splitlines() if line.strip() and line.strip() != "<non-verbose/>"]
    first = lines[0][:300] if lines else ""
    if first.startswith("panic:"):
        return "it is too large for the grammar engine"
    if "Current row has" in first:
        return "it is too large for the grammar engine: too much is possible at one place"
    cause = next((line for line in lines[1:] if line.startswith("error: ")), "")
    return f"{first.rstrip(':')}: {cause.removeprefix('error: ')}" if cause else first


def ends_within_character(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError as error:
        return error.reason == "unexpected end of data"
    return False
