"""Text to token ids and back, built from the vocabulary inside a GGUF file.

Three kinds of vocabulary (`tokenizer.ggml.model`): "gpt2" and "gemma4" in `byte_pair`, "llama" in `sentence_piece`.
Which texts are special tokens, which tokens end a generation, and what stands around a text follow llama.cpp, so that a
prompt gives the same ids in both.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Protocol

from ..errors import ModelFormatError, ParameterError, UnsupportedModelError
from ..models.file import ModelFile
from . import token_metadata
from .byte_pair import BytePairs, CharacterPairs
from .sentence_piece import SentencePieces
from .stop_tokens import find_stop_tokens
from .token_metadata import Kind

__all__ = ["StreamDecoder", "Tokenizer"]

_WHITE_SPACE = " \t\n\v\f\r"


class _Encoder(Protocol):
    """What tells one kind of vocabulary from another."""

    @property
    def add_bos(self) -> bool:
        """Whether a text gets a beginning token where the file does not say."""

    @property
    def always_bos(self) -> bool:
        """Whether it gets one whatever the file says."""

    @property
    def space_prefix(self) -> bool:
        """Whether a text gets a blank before it, at its beginning and after special tokens."""

    @property
    def default_ids(self) -> Mapping[str, int]:
        """Special tokens where the file names none."""

    def encode(self, text: str) -> list[int]:
        """Token ids of a text without special tokens."""

    def bytes_of(self, spelling: str) -> bytes:
        """The bytes that an ordinary token stands for."""


class Tokenizer:
    """Encodes and decodes the text of one model. Immutable, and safe to use from several threads."""

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        """`metadata`: the metadata of a GGUF file, as `ModelFile.metadata` gives them; of `general.name` and the
        `tokenizer.ggml.*` keys use is made."""
        model = token_metadata.text(metadata, "model")
        if model not in ("gpt2", "gemma4", "llama"):
            raise UnsupportedModelError(
                f"tokenizer.ggml.model is {token_metadata.quoted(model)}; supported are 'gpt2' (byte-level byte-pair "
                "encoding), 'gemma4', and 'llama' (SentencePiece)"
            )
        self._texts = token_metadata.token_texts(metadata)
        self._ids = token_metadata.ids_by_text(self._texts)
        self._kinds = token_metadata.token_kinds(metadata, self._texts)
        self._encoder = self._build_encoder(model, metadata)
        n_vocab, defaults = len(self._texts), self._encoder.default_ids
        self._bos = token_metadata.special_id(metadata, "bos_token_id", n_vocab, defaults.get("bos_token_id"))
        self._eos = token_metadata.special_id(metadata, "eos_token_id", n_vocab, defaults.get("eos_token_id"))
        self._add_bos = token_metadata.flag(metadata, "add_bos_token", self._encoder.add_bos)
        self._add_bos = self._add_bos or self._encoder.always_bos
        self._add_eos = token_metadata.flag(metadata, "add_eos_token", False)
        _require(self._bos, self._add_bos, "bos")
        _require(self._eos, self._add_eos, "eos")
        self._stop = find_stop_tokens(metadata, self._texts, self._ids, self._kinds, self._eos)
        self._control = {self._texts[token]: token for token, kind in enumerate(self._kinds) if kind is Kind.CONTROL}
        self._partition = _special_texts(self._texts, self._kinds, _swallowing(metadata))
        self._by_beginning: dict[str, list[int]] = {}
        for place, special in enumerate(self._partition):
            self._by_beginning.setdefault(special.text[:4], []).append(place)
        self._bytes = [self._bytes_of(token) for token in range(n_vocab)]

    def _build_encoder(self, model: str, metadata: Mapping[str, Any]) -> _Encoder:
        if model == "llama":
            return SentencePieces(metadata, self._texts, self._ids, self._kinds)
        return CharacterPairs(metadata, self._ids) if model == "gemma4" else BytePairs(metadata, self._ids)

    @classmethod
    def from_model_file(cls, file: ModelFile) -> Tokenizer:
        """The tokenizer of a model.

        Raises `UnsupportedModelError` for kinds of tokenizer that Bee does not know, and `ModelFormatError` where the
        file's vocabulary contradicts itself.
        """
        return cls(file.metadata)

    @property
    def n_vocab(self) -> int:
        """Number of tokens; ids are 0 to n_vocab - 1."""
        return len(self._texts)

    @property
    def bos_token_id(self) -> int | None:
        """The token that begins a text, or None where the file names none."""
        return self._bos

    @property
    def eos_token_id(self) -> int | None:
        """The token that ends a text, or None where the file names none."""
        return self._eos

    @property
    def add_bos(self) -> bool:
        """Whether `encode` puts the beginning token before a text."""
        return self._add_bos

    @property
    def add_eos(self) -> bool:
        """Whether `encode` puts the ending token after a text."""
        return self._add_eos

    @property
    def stop_token_ids(self) -> frozenset[int]:
        """Every token that ends a generation: end of text, of turn, of message, and their well-known kin."""
        return self._stop

    @property
    def special_tokens(self) -> dict[str, int]:
        """Text to id of the control tokens, which `decode` leaves out."""
        return dict(self._control)

    def token_text(self, token: int) -> str:
        """The token as the vocabulary spells it (byte-level characters, or U+2581 for a blank, in ordinary tokens)."""
        return self._texts[self._checked(token)]

    def token_id(self, text: str) -> int | None:
        """The token that the vocabulary spells `text`, or None."""
        return self._ids.get(text)

    def encode(
        self,
        text: str,
        *,
        add_special: bool = True,
        parse_special: bool = True,
        continues: bool = False,
        guard: str = "",
    ) -> list[int]:
        """Token ids of `text`.

        add_special: put the beginning and ending tokens around it where the model asks for them. parse_special: read
        the texts of control tokens ("<|im_start|>") as those tokens; switch it off for text from outside. continues:
        the text goes on from other text, so SentencePiece's blank is not put before it. guard: what `guarded` put into
        parts of it. Raises `ParameterError` for text that cannot be UTF-8.
        """
        _check_text(text)
        ids: list[int] = []
        if add_special and self._add_bos:
            assert self._bos is not None
            ids.append(self._bos)
        begins = not continues
        for piece in self._split_special(text, parse_special):
            if isinstance(piece, int):
                ids.append(piece)
                begins = True
            else:
                plain = piece.replace(guard, "") if guard else piece
                ids += self._encoder.encode(" " + plain if begins and self._encoder.space_prefix else plain)
                begins = False
        if add_special and self._add_eos:
            assert self._eos is not None
            ids.append(self._eos)
        return ids

    def holds_control(self, text: str) -> bool:
        """Whether the text of a control token stands in `text`."""
        return any(special.is_control for special in self._occurring(text))

    def guarded(self, text: str, guard: str) -> str:
        """`text` with the character `guard`, which it must not hold, inside every text of a control token: `encode`
        with the same `guard` reads those as text, and what is around them as ever."""
        for special in self._occurring(text):
            if special.is_control:
                text = text.replace(special.text, f"{special.text[0]}{guard}{special.text[1:]}")
        return text

    def decode(self, ids: Iterable[int], *, skip_special: bool = True, continues: bool = False) -> str:
        """The text of `ids`; bytes that are not UTF-8 become U+FFFD. Control tokens are left out or spelled.

        The opposite of `encode`: the blank that SentencePiece puts before a text is taken away again, unless the ids
        go on from others (`continues`).
        """
        bytes_of = self.token_bytes if skip_special else self.spoken_bytes
        spelled = b"".join(map(bytes_of, ids))
        if self._encoder.space_prefix and not continues:
            spelled = spelled.removeprefix(b" ")
        return spelled.decode("utf-8", errors="replace")

    def token_bytes(self, token: int) -> bytes:
        """The bytes that a token adds to the text: b"" for control tokens. May be part of a character."""
        return self._bytes[self._checked(token)]

    def spoken_bytes(self, token: int) -> bytes:
        """As `token_bytes`, but control tokens give their text."""
        control = self._kinds[self._checked(token)] in (Kind.CONTROL, Kind.UNKNOWN)
        return self._texts[token].encode() if control else self._bytes[token]

    def _checked(self, token: int) -> int:
        if not 0 <= token < len(self._texts):
            raise ParameterError(f"token id {token} is outside the vocabulary; ids are 0 to {len(self._texts) - 1}")
        return token

    def _bytes_of(self, token: int) -> bytes:
        text, kind = self._texts[token], self._kinds[token]
        if kind is Kind.NORMAL:
            return self._encoder.bytes_of(text)
        if kind is Kind.BYTE:
            byte = token_metadata.byte_of(text)
            assert byte is not None  # checked when the kinds were read
            return bytes([byte])
        return text.encode() if kind is Kind.USER_DEFINED else b""

    def _occurring(self, text: str) -> Iterator[_Special]:
        """The special tokens whose texts stand in `text`, the longest first."""
        # Vocabularies have thousands of them, few of which occur: most are ruled out by how they begin.
        begun = (places for beginning, places in self._by_beginning.items() if beginning in text)
        candidates = map(self._partition.__getitem__, sorted(chain.from_iterable(begun)))
        return (special for special in candidates if special.text in text)

    def _split_special(self, text: str, parse_special: bool) -> list[str | int]:
        """Cut the text at special tokens: the longest special text is looked for first, over the whole text."""
        pieces: list[str | int] = [text] if text else []
        for special in self._occurring(text):
            if parse_special or not special.is_control:
                pieces = [part for piece in pieces for part in special.cut(piece)]
        return pieces


@dataclass(frozen=True)
class _Special:
    """A token that is found in text before anything else."""

    text: str
    token: int
    is_control: bool
    swallows: bool  # white space that follows

    def cut(self, piece: str | int) -> list[str | int]:
        """The parts of a piece of text around this token, and the token between them."""
        if isinstance(piece, int):
            return [piece]
        first, *others = piece.split(self.text)
        parts: list[str | int] = [first] if first else []
        for other in others:
            rest = other.lstrip(_WHITE_SPACE) if self.swallows else other
            parts += [self.token, rest] if rest else [self.token]
        return parts


class StreamDecoder:
    """Decodes tokens as they come, holding back bytes that do not yet form a whole character.

    The concatenation of all results equals `Tokenizer.decode` of all tokens, but for the texts of the control tokens
    that are `markers`. They are taken to go on from others, those of a prompt.
    """

    def __init__(self, tokenizer: Tokenizer, *, markers: Collection[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._markers = {tokenizer.token_id(text) for text in markers}
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, ids: Iterable[int]) -> str:
        """The text that these tokens complete."""
        return self._decoder.decode(b"".join(map(self._bytes_of, ids)))

    def _bytes_of(self, token: int) -> bytes:
        shown = token in self._markers
        return self._tokenizer.spoken_bytes(token) if shown else self._tokenizer.token_bytes(token)

    def flush(self) -> str:
        """What is left: U+FFFD for an incomplete character, or nothing. The decoder can be used anew afterwards."""
        rest = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return rest


def _special_texts(texts: Sequence[str], kinds: Sequence[Kind], swallowing: Callable[[str], bool]) -> list[_Special]:
    """The tokens that are found in text before anything else, longest first."""
    found = (Kind.CONTROL, Kind.UNKNOWN, Kind.USER_DEFINED)
    special = [
        _Special(texts[token], token, kind is not Kind.USER_DEFINED, swallowing(texts[token]))
        for token, kind in enumerate(kinds)
        if kind in found
    ]
    return sorted(special, key=lambda entry: len(entry.text.encode()), reverse=True)


def _swallowing(metadata: Mapping[str, Any]) -> Callable[[str], bool]:
    """Whether white space after a special token is part of it: in Phi-3, which files do not say but by their name."""
    name = metadata.get("general.name")
    of_phi = isinstance(name, str) and re.search("phi-?3", name.lower()) is not None
    return lambda text: of_phi and text not in ("<unk>", "<s>", "<|endoftext|>")


def _require(token: int | None, wanted: bool, name: str) -> None:
    if wanted and token is None:
        raise ModelFormatError(
            f"the tokenizer puts a {name} token around every text (tokenizer.ggml.add_{name}_token), but "
            f"tokenizer.ggml.{name}_token_id is missing or outside the vocabulary"
        )


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ParameterError(
            f"the text has a lone surrogate, U+{ord(text[error.start]):04X}, at character {error.start}, which is not "
            "Unicode text; decode its source with the right encoding"
        ) from None
