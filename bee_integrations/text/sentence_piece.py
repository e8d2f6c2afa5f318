"""SentencePiece's byte-pair encoding, in which scores decide what is merged first.

Own code, because the `tokenizers` library merges by rank: it has no equal scores, of which the leftmost pair goes
first, and no characters that are tokens only together with others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from heapq import heapify, heappop, heappush
from itertools import pairwise
from typing import Any

from .token_metadata import Kind, flag, scores, special_id

__all__ = ["SentencePieces"]

_CACHED_WORDS = 1 << 15
_LONGEST_CACHED = 32  # characters


class SentencePieces:
    """Merges characters, blanks among them, over the whole text (`tokenizer.ggml.model` = "llama").

    Of all neighbours that are a token together, those with the highest score are merged, the leftmost first where
    scores are equal. Characters without a token are given byte by byte. Safe to use from several threads.
    """

    add_bos = True
    always_bos = False
    default_ids: Mapping[str, int] = {"bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0}

    def __init__(
        self, metadata: Mapping[str, Any], texts: Sequence[str], ids: Mapping[str, int], kinds: Sequence[Kind]
    ) -> None:
        self.space_prefix = flag(metadata, "add_space_prefix", True)
        self._ids = ids
        self._scores = scores(metadata, texts, kinds)
        self._unknown = special_id(metadata, "unknown_token_id", len(texts), self.default_ids["unknown_token_id"])
        self._bytes = [ids.get(f"<0x{byte:02X}>") for byte in range(256)]
        # Two characters that no token holds next to each other are never merged over: there a text falls into words
        # of which each can be merged alone. That is between words mostly, as few tokens hold a blank inside.
        self._inner: set[tuple[str, str]] = set()
        for text in texts:
            self._inner.update(pairwise(text))
        self._merge_cached = lru_cache(_CACHED_WORDS)(self._merge)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text without special tokens."""
        text = text.replace(" ", "\u2581")
        inner = self._inner
        pairs = enumerate(pairwise(text), 1)
        seams = [at for at, pair in pairs if pair not in inner]
        tokens: list[int] = []
        for start, end in zip([0, *seams], [*seams, len(text)], strict=True):
            word = text[start:end]
            tokens += self._merge_cached(word) if len(word) <= _LONGEST_CACHED else self._merge(word)
        return tokens

    @staticmethod
    def bytes_of(spelling: str) -> bytes:
        """The bytes that an ordinary token stands for."""
        return spelling.replace("\u2581", " ").encode()

    def _merge(self, word: str) -> list[int]:
        symbols = list(word)  # "" for what is merged into a symbol before it
        before = list(range(-1, len(word) - 1))
        after = list(range(1, len(word) + 1))

        def candidate(left: int, right: int) -> tuple[float, int, int, str] | None:
            together = symbols[left] + symbols[right]
            token = self._ids.get(together)
            return None if token is None else (-self._scores[token], left, right, together)

        queue = [found for left in range(len(word) - 1) if (found := candidate(left, left + 1))]
        heapify(queue)
        while queue:
            _, left, right, together = heappop(queue)
            if not symbols[left] or not symbols[right] or symbols[left] + symbols[right] != together:
                continue  # one of the two has been merged with another symbol since
            symbols[left], symbols[right] = together, ""
            after[left] = after[right]
            if after[left] < len(word):
                before[after[left]] = left
            for pair in ((before[left], left), (left, after[left])):
                if pair[0] >= 0 and pair[1] < len(word) and (found := candidate(*pair)):
                    heappush(queue, found)
        return [token for symbol in symbols if symbol for token in self._tokens_of(symbol)]

    def _tokens_of(self, symbol: str) -> list[int]:
        token = self._ids.get(symbol)
        if token is not None:
            return [token]
        found = [self._bytes[byte] for byte in symbol.encode()]
        known = [token for token in found if token is not None]
        # A vocabulary without byte tokens has one token for all that it does not know.
        return known if len(known) == len(found) or self._unknown is None else [self._unknown]
