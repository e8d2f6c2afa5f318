"""Byte-pair encoding through the `tokenizers` library: GPT-2's, over bytes, and Gemma 4's, over characters."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import tokenizers
from tokenizers import models

from ..errors import UnsupportedModelError
from .pre_tokenizers import pre_tokenizer
from .token_metadata import merges

__all__ = ["BytePairs", "CharacterPairs"]


class BytePairs:
    """Merges bytes within words (`tokenizer.ggml.model` = "gpt2")."""

    always_bos = False
    space_prefix = False
    default_ids: Mapping[str, int] = {}

    def __init__(self, metadata: Mapping[str, Any], ids: Mapping[str, int]) -> None:
        cut = pre_tokenizer(_pre_name(metadata))
        self.add_bos = cut.add_bos
        self._n_vocab = len(ids)
        # Some vocabularies lack bytes (control characters, mostly). Those are dropped from the text, but still keep
        # their neighbours from merging: they get ids beyond the vocabulary, which `encode` leaves out.
        missing = [character for character in _BYTE_OF_CHARACTER if character not in ids]
        self._encoder = _encoder(metadata, ids, missing, ignore_merges=cut.whole_words)
        self._encoder.pre_tokenizer = cut.build()

    def encode(self, text: str) -> list[int]:
        """Token ids of a text without special tokens."""
        encoded = self._encoder.encode(text, add_special_tokens=False).ids
        return [token for token in encoded if token < self._n_vocab]

    @staticmethod
    def bytes_of(spelling: str) -> bytes:
        """The bytes that an ordinary token stands for."""
        try:
            return bytes([_BYTE_OF_CHARACTER[character] for character in spelling])
        except KeyError:
            # Not byte-level spelling, as some added tokens are: it stands for itself.
            return b"".join(
                bytes([_BYTE_OF_CHARACTER[character]]) if character in _BYTE_OF_CHARACTER else character.encode()
                for character in spelling
            )


class CharacterPairs:
    """Merges characters, blanks among them, between line breaks (`tokenizer.ggml.model` = "gemma4").

    A run of line breaks that is a token is taken whole. Characters without a token are given byte by byte.
    """

    add_bos = True
    always_bos = True  # whatever the file says: the models were trained so, and some files say otherwise
    space_prefix = False
    default_ids: Mapping[str, int] = {}

    def __init__(self, metadata: Mapping[str, Any], ids: Mapping[str, int]) -> None:
        self._ids = ids
        self._n_vocab = len(ids)
        missing = [spelling for spelling in (f"<0x{byte:02X}>" for byte in range(256)) if spelling not in ids]
        self._encoder = _encoder(metadata, ids, missing, byte_fallback=True)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text without special tokens."""
        tokens: list[int] = []
        for run in re.findall(r"\n+|[^\n]+", text.replace(" ", "\u2581")):
            whole = self._ids.get(run) if run[0] == "\n" else None
            tokens += self._encoder.encode(run, add_special_tokens=False).ids if whole is None else [whole]
        return [token for token in tokens if token < self._n_vocab]

    @staticmethod
    def bytes_of(spelling: str) -> bytes:
        """The bytes that an ordinary token stands for."""
        return spelling.replace("\u2581", " ").encode()


def _encoder(
    metadata: Mapping[str, Any], ids: Mapping[str, int], missing: list[str], **options: bool
) -> tokenizers.Tokenizer:
    """`missing`: spellings of bytes that the vocabulary lacks; they get ids beyond it."""
    vocabulary = {**ids, **{spelling: len(ids) + index for index, spelling in enumerate(missing)}}
    return tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=merges(metadata, ids), **options))


def _pre_name(metadata: Mapping[str, Any]) -> str:
    name = metadata.get("tokenizer.ggml.pre")
    if not isinstance(name, str) or not name:
        raise UnsupportedModelError(
            "the file does not say how its text is cut into words (tokenizer.ggml.pre); convert the model again with a "
            "current converter, which writes that key"
        )
    return name


def _byte_of_character() -> dict[str, int]:
    """GPT-2's spelling of bytes: printable Latin-1 stands for itself, the other bytes are shifted to U+0100 and up."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + index): byte for index, byte in enumerate(others)}


_BYTE_OF_CHARACTER = _byte_of_character()
