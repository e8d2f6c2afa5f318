"""A tokenizer as the grammar engine knows it, and what the engine says of errors."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import cached_property
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import ConstraintError
from ..text.tokenizer import Tokenizer
from .trial import Trial
from .trial_process import EngineVocabulary, first_steps

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

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

    def build(self, grammar: str, *, bytewise: bool = False, by_characters: bool = False) -> tuple[LLMatcher, str]:
        """(matcher in the initial state, error or ""). What may run for long is to be tried first (`trial`)."""
        with self._lock:
            known = self._byte_tokens if bytewise else self._tokens
        return first_steps(known, grammar, by_characters)

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
    def trial(self) -> Trial:
        """Where grammars are tried before they are compiled here."""
        return Trial([self._shape, self._byte_shape])

    @cached_property
    def _tokens(self) -> LLTokenizer:
        return self._tokenizer_of(self._shape)

    @cached_property
    def _byte_tokens(self) -> LLTokenizer:
        return self._tokenizer_of(self._byte_shape)

    @cached_property
    def _shape(self) -> EngineVocabulary:
        texts = [self.tokenizer.token_bytes(token) for token in range(self.tokenizer.n_vocab)]
        return self._shape_of(texts, self._encode)

    @cached_property
    def _byte_shape(self) -> EngineVocabulary:
        n_vocab = self.tokenizer.n_vocab
        texts = [b""] * n_vocab + [bytes([byte]) for byte in range(256)]
        return self._shape_of(texts, None)

    def _shape_of(self, texts: list[bytes], encode: Callable[[str], list[int]] | None) -> EngineVocabulary:
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
        return EngineVocabulary(texts, [*self.control, end], end, self.tokenizer.bos_token_id, encode)

    @staticmethod
    def _tokenizer_of(shape: EngineVocabulary) -> LLTokenizer:
        try:
            return shape.tokenizer()
        except BaseException as error:
            if isinstance(error, Exception) or type(error).__name__ == "PanicException":
                raise ConstraintError(f"the grammar engine cannot take the model's vocabulary: {error}") from error
            raise

    def _encode(self, text: str) -> list[int]:
        """The tokenizer's own tokens for a piece of text; the longest that fit where those spell it otherwise (some
        vocabularies lack bytes)."""
        tokens = self.tokenizer.encode(text, add_special=False, parse_special=False, continues=True)
        wanted = text.encode()
        if b"".join(map(self.tokenizer.token_bytes, tokens)) == wanted:
            return tokens
        return self._shape.longest_tokens(wanted)


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
