"""Text to token ids and back, built from the vocabulary inside a GGUF file.

Byte-level byte-pair encoding (`tokenizer.ggml.model` = "gpt2") through the `tokenizers` library. Which texts are
special tokens, which tokens end a generation, and what stands around a text follow llama.cpp, so that a prompt gives
the same ids in both.
"""

from __future__ import annotations

import codecs
from collections.abc import Collection, Iterable, Mapping, Sequence
from enum import IntEnum
from typing import Any

import numpy as np
import tokenizers
from tokenizers import models

from ..errors import ModelFormatError, ParameterError, UnsupportedModelError
from ..models.file import ModelFile
from .pre_tokenizers import pre_tokenizer

__all__ = ["StreamDecoder", "Tokenizer"]


class _Kind(IntEnum):
    """GGUF's `tokenizer.ggml.token_type`."""

    UNDEFINED = 0
    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


# Tokens that end a generation whatever the file's keys say; converters often leave the keys out.
_END_TEXTS = frozenset(
    {
        "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "<end_of_turn>",
        "<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>",
        "<end_of_utterance>", "<eos>", "<turn|>", "<|tool_response>", "<｜end▁of▁sentence｜>", "[e~[",
    }
)  # fmt: skip

# Markers of fill-in-the-middle formats: metadata key, texts where the key is absent, and whether it ends a generation.
_FILL_MARKERS = (
    (
        "fim_pre_token_id",
        ("<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>", "<｜fim▁begin｜>", "<PRE>"),
        False,
    ),
    (
        "fim_suf_token_id",
        ("<|fim_suffix|>", "<fim-suffix>", "<fim_suffix>", "<｜fim▁hole｜>", "<SUF>"),
        False,
    ),
    ("fim_mid_token_id", ("<|fim_middle|>", "<fim-middle>", "<fim_middle>", "<｜fim▁end｜>", "<MID>"), False),
    ("fim_pad_token_id", ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"), True),
    ("fim_rep_token_id", ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"), True),
    ("fim_sep_token_id", ("<|file_sep|>",), True),
)

# Channel markers of the Harmony format: the text around them is meant to be read, so they count as text.
_VISIBLE_MARKERS = frozenset({"<|channel|>", "<|message|>", "<|start|>", "<|constrain|>"})


class Tokenizer:
    """Encodes and decodes the text of one model. Immutable, and safe to use from several threads."""

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        """`metadata`: the `tokenizer.ggml.*` keys of a GGUF file, as `ModelFile.metadata` gives them."""
        model = _key(metadata, "model")
        if not isinstance(model, str):
            raise _wrong("model", model, "a text")
        if model != "gpt2":
            raise UnsupportedModelError(
                f"tokenizer.ggml.model is {_quoted(model)}; supported is 'gpt2' (byte-level byte-pair encoding)"
            )
        cut = pre_tokenizer(_pre_name(metadata))
        self._texts = _token_texts(metadata)
        self._ids = _ids_by_text(self._texts)
        self._kinds = _kinds(metadata, len(self._texts))
        self._bos = _special_id(metadata, "bos_token_id", len(self._texts))
        self._eos = _special_id(metadata, "eos_token_id", len(self._texts))
        self._stop = self._find_stop_tokens(metadata)
        self._add_bos = _flag(metadata, "add_bos_token", cut.add_bos)
        self._add_eos = _flag(metadata, "add_eos_token", False)
        _require(self._bos, self._add_bos, "bos")
        _require(self._eos, self._add_eos, "eos")
        self._partition = _special_texts(self._texts, self._kinds)
        self._bytes = [_bytes_of(text, kind) for text, kind in zip(self._texts, self._kinds, strict=True)]
        self._encoder = _encoder(metadata, self._ids, cut.whole_words)
        self._encoder.pre_tokenizer = cut.build()

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
        return {self._texts[token]: token for token, kind in enumerate(self._kinds) if kind is _Kind.CONTROL}

    def token_text(self, token: int) -> str:
        """The token as the vocabulary spells it (byte-level characters for ordinary tokens)."""
        return self._texts[self._checked(token)]

    def token_id(self, text: str) -> int | None:
        """The token that the vocabulary spells `text`, or None."""
        return self._ids.get(text)

    def encode(self, text: str, *, add_special: bool = True, parse_special: bool = True) -> list[int]:
        """Token ids of `text`.

        add_special: put the beginning and ending tokens around it where the model asks for them. parse_special: read
        the texts of control tokens ("<|im_start|>") as those tokens; switch it off for text from outside. Raises
        `ParameterError` for text that cannot be UTF-8.
        """
        _check_text(text)
        ids: list[int] = []
        if add_special and self._add_bos:
            assert self._bos is not None
            ids.append(self._bos)
        for piece in self._split_special(text, parse_special):
            if isinstance(piece, int):
                ids.append(piece)
            else:
                encoded = self._encoder.encode(piece, add_special_tokens=False).ids
                ids.extend(token for token in encoded if token < len(self._texts))
        if add_special and self._add_eos:
            assert self._eos is not None
            ids.append(self._eos)
        return ids

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """The text of `ids`; bytes that are not UTF-8 become U+FFFD. Control tokens are left out or spelled."""
        bytes_of = self.token_bytes if skip_special else self.spoken_bytes
        return b"".join(map(bytes_of, ids)).decode("utf-8", errors="replace")

    def token_bytes(self, token: int) -> bytes:
        """The bytes that a token adds to the text: b"" for control tokens. May be part of a character."""
        return self._bytes[self._checked(token)]

    def spoken_bytes(self, token: int) -> bytes:
        """As `token_bytes`, but control tokens give their text."""
        control = self._kinds[self._checked(token)] in (_Kind.CONTROL, _Kind.UNKNOWN)
        return self._texts[token].encode() if control else self._bytes[token]

    def _checked(self, token: int) -> int:
        if not 0 <= token < len(self._texts):
            raise ParameterError(f"token id {token} is outside the vocabulary; ids are 0 to {len(self._texts) - 1}")
        return token

    def _split_special(self, text: str, parse_special: bool) -> Iterable[str | int]:
        """Cut the text at special tokens: the longest special text is looked for first, over the whole text."""
        pieces: list[str | int] = [text] if text else []
        for special, token, is_control in self._partition:
            if (parse_special or not is_control) and special in text:
                pieces = [part for piece in pieces for part in _cut(piece, special, token)]
        return pieces

    def _find_stop_tokens(self, metadata: Mapping[str, Any]) -> frozenset[int]:
        """The tokens that end a generation; also corrects kinds that converters are known to get wrong."""
        n_vocab = len(self._texts)
        stop = {self._ids[text] for text in _END_TEXTS if text in self._ids}
        named = set(stop)
        for key, texts, ends in _FILL_MARKERS:
            marker = _special_id(metadata, key, n_vocab)
            if marker is None:
                marker = min((self._ids[text] for text in texts if text in self._ids), default=None)
                named.update(() if marker is None else (marker,))
            if ends and marker is not None:
                stop.add(marker)
        for token in named:
            self._kinds[token] = _Kind.CONTROL
        for text in _VISIBLE_MARKERS & self._ids.keys():
            self._kinds[self._ids[text]] = _Kind.USER_DEFINED
        keyed = [
            self._eos,
            *(_special_id(metadata, key, n_vocab) for key in ("eot_token_id", "eom_token_id")),
        ]
        stop.update(token for token in keyed if token is not None)
        self._drop_ambiguous_stops(stop)
        return frozenset(stop)

    def _drop_ambiguous_stops(self, stop: set[int]) -> None:
        # In these two families a text that ends a turn elsewhere is an ordinary part of a message.
        found = {self._texts[token] for token in stop}
        ends_by_call = {"<|return|>", "<|call|>"} <= found or (
            "<|flush|>" in found and bool({"<|call|>", "<|calls|>"} & found)
        )
        if ends_by_call and "<|end|>" in found:
            stop.discard(self._ids["<|end|>"])
            self._kinds[self._ids["<|end|>"]] = _Kind.USER_DEFINED
        if "</s>" in found and "<|tool_response>" in found:
            stop.discard(self._ids["</s>"])
            self._kinds[self._ids["</s>"]] = _Kind.NORMAL


class StreamDecoder:
    """Decodes tokens as they come, holding back bytes that do not yet form a whole character.

    The concatenation of all results equals `Tokenizer.decode` of all tokens, but for the texts of the control tokens
    that are to be `spoken`.
    """

    def __init__(self, tokenizer: Tokenizer, *, spoken: Collection[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._spoken = {tokenizer.token_id(text) for text in spoken}
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, ids: Iterable[int]) -> str:
        """The text that these tokens complete."""
        return self._decoder.decode(b"".join(map(self._bytes_of, ids)))

    def _bytes_of(self, token: int) -> bytes:
        shown = token in self._spoken
        return self._tokenizer.spoken_bytes(token) if shown else self._tokenizer.token_bytes(token)

    def flush(self) -> str:
        """What is left: U+FFFD for an incomplete character, or nothing. The decoder can be used anew afterwards."""
        rest = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return rest


def _key(metadata: Mapping[str, Any], name: str) -> Any:
    value = metadata.get(f"tokenizer.ggml.{name}")
    if value is None:
        raise ModelFormatError(f"the file has no tokenizer.ggml.{name}, so its text cannot be read")
    return value


def _quoted(text: str) -> str:
    """A text of the file for a message: of any length there, short here."""
    return repr(text) if len(text) <= 60 else f"{text[:60]!r}... ({len(text)} characters)"


def _wrong(name: str, value: object, expected: str) -> ModelFormatError:
    """The error for a key whose value is of another kind than it should be. Values may be of any size."""
    if isinstance(value, (bool, int, float)):
        found = repr(value)
    elif isinstance(value, str):
        found = f"the text {_quoted(value)}"
    elif isinstance(value, np.ndarray):
        found = f"an array of {value.dtype}"
    else:
        found = "an array of strings"
    return ModelFormatError(f"tokenizer.ggml.{name} is {found}, expected {expected}")


def _strings(metadata: Mapping[str, Any], name: str) -> list[str]:
    value = _key(metadata, name)
    # An array without elements has no telling type.
    if not isinstance(value, list) and not (isinstance(value, np.ndarray) and not value.size):
        raise _wrong(name, value, "an array of strings")
    return list(value)


def _pre_name(metadata: Mapping[str, Any]) -> str:
    name = metadata.get("tokenizer.ggml.pre")
    if not isinstance(name, str) or not name:
        raise UnsupportedModelError(
            "the file does not say how its text is cut into words (tokenizer.ggml.pre); convert the model again with a "
            "current converter, which writes that key"
        )
    return name


def _flag(metadata: Mapping[str, Any], name: str, default: bool) -> bool:
    value = metadata.get(f"tokenizer.ggml.{name}", default)
    if not isinstance(value, bool):
        raise _wrong(name, value, "true or false")
    return value


def _special_id(metadata: Mapping[str, Any], name: str, n_vocab: int) -> int | None:
    value = metadata.get(f"tokenizer.ggml.{name}")
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool):
        raise _wrong(name, value, "a token id")
    # Some converters write -1 (as an unsigned number) for "none".
    return value if 0 <= value < n_vocab else None


def _require(token: int | None, wanted: bool, name: str) -> None:
    if wanted and token is None:
        raise ModelFormatError(
            f"the tokenizer puts a {name} token around every text (tokenizer.ggml.add_{name}_token), but "
            f"tokenizer.ggml.{name}_token_id is missing or outside the vocabulary"
        )


def _token_texts(metadata: Mapping[str, Any]) -> list[str]:
    texts = _strings(metadata, "tokens")
    if not texts:
        raise ModelFormatError("tokenizer.ggml.tokens is empty; a vocabulary has at least one token")
    return [text if text else f"[EMPTY_{token}]" for token, text in enumerate(texts)]


def _ids_by_text(texts: Sequence[str]) -> dict[str, int]:
    ids = {text: token for token, text in enumerate(texts)}
    if len(ids) < len(texts):
        later = next(token for token, text in enumerate(texts) if ids[text] != token)
        raise ModelFormatError(
            f"tokenizer.ggml.tokens has {_quoted(texts[later])} twice, as tokens {later} and {ids[texts[later]]}"
        )
    return ids


def _kinds(metadata: Mapping[str, Any], n_vocab: int) -> list[_Kind]:
    values = metadata.get("tokenizer.ggml.token_type")
    if values is None:
        return [_Kind.NORMAL] * n_vocab
    if not isinstance(values, (list, np.ndarray)) or (len(values) and np.asarray(values).dtype.kind not in "iu"):
        raise _wrong("token_type", values, "an array of integers")
    if len(values) != n_vocab:
        raise ModelFormatError(f"tokenizer.ggml.token_type has {len(values)} entries for {n_vocab} tokens")
    known = {int(kind): kind for kind in _Kind}
    return [known.get(int(value), _Kind.UNDEFINED) for value in values]


def _special_texts(texts: Sequence[str], kinds: Sequence[_Kind]) -> list[tuple[str, int, bool]]:
    """(text, id, is control) of the tokens that are found in text before anything else, longest first."""
    found = (_Kind.CONTROL, _Kind.UNKNOWN, _Kind.USER_DEFINED)
    special = [(texts[token], token, kind is not found[2]) for token, kind in enumerate(kinds) if kind in found]
    return sorted(special, key=lambda entry: len(entry[0].encode()), reverse=True)


def _cut(piece: str | int, special: str, token: int) -> list[str | int]:
    if isinstance(piece, int):
        return [piece]
    parts: list[str | int] = []
    for index, part in enumerate(piece.split(special)):
        if index:
            parts.append(token)
        if part:
            parts.append(part)
    return parts


def _byte_of_character() -> dict[str, int]:
    """GPT-2's spelling of bytes: printable Latin-1 stands for itself, the other bytes are shifted to U+0100 and up."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + index): byte for index, byte in enumerate(others)}


_BYTE_OF_CHARACTER = _byte_of_character()


def _bytes_of(text: str, kind: _Kind) -> bytes:
    if kind is _Kind.USER_DEFINED:
        return text.encode()
    if kind is _Kind.BYTE:
        try:
            return bytes([int(text.removeprefix("<0x").removesuffix(">"), 16)])
        except ValueError:
            raise ModelFormatError(f"the byte token {_quoted(text)} is not spelled like <0x0A>") from None
    if kind is not _Kind.NORMAL:
        return b""
    try:
        return bytes([_BYTE_OF_CHARACTER[character] for character in text])
    except KeyError:
        # Not byte-level spelling, as some added tokens are: it stands for itself.
        return b"".join(
            bytes([_BYTE_OF_CHARACTER[character]]) if character in _BYTE_OF_CHARACTER else character.encode()
            for character in text
        )


def _encoder(metadata: Mapping[str, Any], ids: dict[str, int], whole_words: bool) -> tokenizers.Tokenizer:
    merges: dict[tuple[str, str], None] = {}  # in order; of a pair that occurs twice, the first rank counts
    for rank, merge in enumerate(_strings(metadata, "merges")):
        at = merge.find(" ", 1)
        left, right = merge[:at], merge[at + 1 :]
        if at < 0 or left not in ids or right not in ids or left + right not in ids:
            raise ModelFormatError(
                f"tokenizer.ggml.merges[{rank}] is {_quoted(merge)}, expected two tokens separated by a space whose "
                "concatenation is a token"
            )
        merges[(left, right)] = None
    # Some vocabularies lack bytes (control characters, mostly). Those are dropped from the text, but still keep
    # their neighbours from merging: they get ids beyond the vocabulary, which `encode` leaves out.
    missing = [character for character in _BYTE_OF_CHARACTER if character not in ids]
    vocabulary = ids | {character: len(ids) + index for index, character in enumerate(missing)}
    return tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=list(merges), ignore_merges=whole_words))


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ParameterError(
            f"the text has a lone surrogate, U+{ord(text[error.start]):04X}, at character {error.start}, which is not "
            "Unicode text; decode its source with the right encoding"
        ) from None
