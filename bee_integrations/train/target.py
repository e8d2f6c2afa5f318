"""What training needs of a target model's file: its shape, a few tensors in float32, and its vocabulary.

Training never runs the whole target: libbee does, while it makes the data. What is read here starts the drafter off
(the target's last layers), embeds its input tokens, and gives the rows of its head.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf import GGUFReader
from gguf.quants import dequantize

from ..errors import ModelFileError, ModelFormatError, UnsupportedModelError

CONTROL = 3
"""GGUF's token type of control tokens."""

Matrix = npt.NDArray[np.float32]
"""float32[outputs][inputs], or a vector."""


@dataclass(frozen=True)
class Shape:
    """The sizes of a target that its drafter's layers share."""

    n_layer: int
    n_embd: int
    n_head: int
    n_head_kv: int
    head_size: int
    n_feed_forward: int
    n_vocab: int
    n_context: int
    norm_epsilon: float
    rope_base: float
    embedding_scale: float
    """What the target multiplies the rows of its embedding by; its drafter does so, too."""


@dataclass(frozen=True)
class Layer:
    """One layer's weights, with queries and keys in the NeoX order of RoPE (pairs half a head apart)."""

    attention_norm: Matrix
    query: Matrix
    key: Matrix
    value: Matrix
    output: Matrix
    feed_forward_norm: Matrix
    gate: Matrix
    up: Matrix
    down: Matrix
    query_norm: Matrix | None = None
    key_norm: Matrix | None = None
    """Gains of the norms over each head's queries and keys, where the architecture has them."""


class Target:
    """A target's GGUF file, read with the `gguf` package: of a dense family whose layers all have one shape.

    Raises ModelFileError where it is missing, ModelFormatError where it is broken and UnsupportedModelError for an
    architecture that no drafter can be trained for.
    """

    ARCHITECTURES = ("gemma", "gemma2", "gemma3", "llama", "qwen2", "qwen3")
    SCALES_EMBEDDING = ("gemma", "gemma2", "gemma3")
    """By the root of the embedding's length."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        if not os.path.isfile(path):
            raise ModelFileError(f"{os.fspath(path)} is not a file; name the target's GGUF file")
        try:
            self._reader = GGUFReader(path)
        except (ValueError, IndexError, KeyError) as error:
            raise ModelFormatError(f"{os.fspath(path)} is not a readable GGUF file: {error}") from error
        self.architecture: str = self.field("general.architecture")
        if self.architecture not in self.ARCHITECTURES:
            raise UnsupportedModelError(
                f"drafters can be trained for the architectures {', '.join(self.ARCHITECTURES)}, "
                f"not for '{self.architecture}'"
            )
        self._tensors = {tensor.name: tensor for tensor in self._reader.tensors}
        self.shape = self._read_shape()

    def field(self, key: str, default: Any = None) -> Any:
        """The value of a metadata key; where it is absent, `default`, or ModelFormatError if that is None."""
        found = self._reader.fields.get(key)
        if found is not None:
            return found.contents()
        if default is None:
            raise ModelFormatError(f"the target's file has no key '{key}'")
        return default

    def field_with_type(self, key: str) -> tuple[Any, Any, Any] | None:
        """Value, GGUF type and element type (None but for arrays) of a metadata key, None where it is absent."""
        found = self._reader.fields.get(key)
        if found is None:
            return None
        return found.contents(), found.types[0], found.types[1] if len(found.types) > 1 else None

    def has_field(self, key: str) -> bool:
        return key in self._reader.fields

    def tensor(self, name: str) -> Matrix:
        """A tensor in float32, rows first."""
        found = self._tensors.get(name)
        if found is None:
            raise ModelFormatError(f"the target's file has no tensor '{name}'")
        # A copy, because dequantising float32 gives a view of the mapped file, which cannot be written to.
        return np.array(dequantize(found.data, found.tensor_type), dtype=np.float32)

    @property
    def token_embedding(self) -> Matrix:
        """float32[n_vocab][n_embd], unscaled"""
        return self.tensor("token_embd.weight")

    @property
    def head(self) -> Matrix:
        """float32[n_vocab][n_embd]: the embedding itself where the file ties them."""
        return self.tensor("output.weight") if "output.weight" in self._tensors else self.token_embedding

    @property
    def output_norm(self) -> Matrix:
        return self.tensor("output_norm.weight")

    def layer(self, index: int) -> Layer:
        """The weights of one layer; `index` counts from 0."""

        def weight(name: str) -> Matrix:
            return self.tensor(f"blk.{index}.{name}.weight")

        def weight_or_none(name: str) -> Matrix | None:
            return weight(name) if f"blk.{index}.{name}.weight" in self._tensors else None

        query, key = weight("attn_q"), weight("attn_k")
        if self.architecture == "llama":
            query = to_neox(query, self.shape.head_size)
            key = to_neox(key, self.shape.head_size)
        return Layer(
            attention_norm=weight("attn_norm"),
            query=query,
            key=key,
            value=weight("attn_v"),
            output=weight("attn_output"),
            feed_forward_norm=weight("ffn_norm"),
            gate=weight("ffn_gate"),
            up=weight("ffn_up"),
            down=weight("ffn_down"),
            query_norm=weight_or_none("attn_q_norm"),
            key_norm=weight_or_none("attn_k_norm"),
        )

    @property
    def mask_token(self) -> int:
        """The token that stands for "not known yet" in a block: the last control token that ends nothing.

        Its embedding stays as it is; all that matters is that no text contains it.
        """
        types: list[int] = self.field("tokenizer.ggml.token_type")
        ends = {self.field(f"tokenizer.ggml.{name}_token_id", -1) for name in ("bos", "eos", "eot", "eom")}
        controls = [token for token, kind in enumerate(types) if kind == CONTROL and token not in ends]
        if not controls:
            raise UnsupportedModelError("the target's vocabulary has no control token that could serve as the mask")
        return controls[-1]

    @property
    def vocabulary_hash(self) -> int:
        """The hash by which libbee tells vocabularies apart."""
        tokens = self._reader.fields["tokenizer.ggml.tokens"]
        return vocabulary_hash([tokens.parts[index].tobytes() for index in tokens.data])

    def _read_shape(self) -> Shape:
        prefix = self.architecture
        n_head = int(self.field(f"{prefix}.attention.head_count"))
        n_embd = int(self.field(f"{prefix}.embedding_length"))
        return Shape(
            n_layer=int(self.field(f"{prefix}.block_count")),
            n_embd=n_embd,
            n_head=n_head,
            n_head_kv=int(self.field(f"{prefix}.attention.head_count_kv", n_head)),
            head_size=int(self.field(f"{prefix}.attention.key_length", n_embd // n_head)),
            n_feed_forward=int(self.field(f"{prefix}.feed_forward_length")),
            n_vocab=len(self._reader.fields["tokenizer.ggml.tokens"].data)
            if self.has_field("tokenizer.ggml.tokens")
            else int(self._tensors["token_embd.weight"].shape[1]),
            n_context=int(self.field(f"{prefix}.context_length")),
            norm_epsilon=float(self.field(f"{prefix}.attention.layer_norm_rms_epsilon")),
            rope_base=float(self.field(f"{prefix}.rope.freq_base", 10000.0)),
            embedding_scale=float(np.sqrt(np.float32(n_embd))) if prefix in self.SCALES_EMBEDDING else 1.0,
        )


def to_neox(weight: Matrix, head_size: int) -> Matrix:
    """Undo the row order of `llama` files, whose RoPE turns neighbouring rows (2i, 2i + 1), into (i, i + half)."""
    rows, columns = weight.shape
    pairs = weight.reshape(rows // head_size, head_size // 2, 2, columns)
    return np.ascontiguousarray(pairs.swapaxes(1, 2).reshape(rows, columns))


def vocabulary_hash(tokens: list[bytes]) -> int:
    """FNV-1a (64 bits) over the number of tokens and each token's length and bytes.

    Numbers are eight little-endian bytes. A GGUF file holds the array in just this form, so libbee hashes what it maps.
    """
    data = len(tokens).to_bytes(8, "little") + b"".join(len(t).to_bytes(8, "little") + t for t in tokens)
    value = 0xCBF29CE484222325
    for byte in data:
        value = ((value ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return value
