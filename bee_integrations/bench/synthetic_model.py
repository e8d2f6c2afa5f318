"""Model files of a given shape: real headers before random weights, or before a hole as large as those would be.

An engine opens one with a hole with `made_up_weights`, which never reads it. What such a model costs is what any of its
shape costs; what it says is noise.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from ..library import check, ffi, lib, new_error

__all__ = ["BLOCK_SIZE", "SHAPES", "WEIGHT_TYPES", "Shape", "shape_named", "write_drafter", "write_target"]

BLOCK_SIZE = 16  # of the drafters: the last token and 15 drafts
CONTEXT_LENGTH = 8192

_DRAFT_LAYERS = 5
_TAPS = 5
_ALIGNMENT = 32
_UINT32, _INT32, _FLOAT32, _STRING, _ARRAY = 4, 5, 6, 8, 9
# ggml's number of a type, columns of a block, bytes of a block
_TYPES = {
    "F32": (0, 1, 4), "F16": (1, 1, 2), "BF16": (30, 1, 2), "Q8_0": (8, 32, 34), "Q4_0": (2, 32, 18),
    "Q4_1": (3, 32, 20), "Q5_0": (6, 32, 22), "Q5_1": (7, 32, 24), "Q4_K": (12, 256, 144), "Q5_K": (13, 256, 176),
    "Q6_K": (14, 256, 210), "Q3_K": (11, 256, 110), "Q2_K": (10, 256, 84), "IQ4_XS": (23, 256, 136),
    "IQ4_NL": (20, 32, 18), "MXFP4": (39, 32, 17), "NVFP4": (40, 64, 36), "IQ3_S": (21, 256, 110),
    "IQ3_XXS": (18, 256, 98), "IQ2_S": (22, 256, 82), "IQ2_XS": (17, 256, 74), "IQ2_XXS": (16, 256, 66),
    "IQ1_M": (29, 256, 56), "IQ1_S": (19, 256, 50), "TQ2_0": (35, 256, 66), "TQ1_0": (34, 256, 54),
    "Q2_0": (42, 64, 18), "Q1_0": (41, 128, 18),
}  # fmt: skip
WEIGHT_TYPES = tuple(_TYPES)


@dataclass(frozen=True)
class DeltaNet:
    """Gated delta nets in three layers of four."""

    key_heads: int
    value_heads: int
    state_size: int = 128
    kernel: int = 4
    interval: int = 4  # every so many layers one attends

    @property
    def channels(self) -> int:
        return self.state_size * (2 * self.key_heads + self.value_heads)

    @property
    def results(self) -> int:
        return self.state_size * self.value_heads


@dataclass(frozen=True)
class Shape:
    """A model's sizes, and how it is quantised: `kind` everywhere, but `head_kind` for the head, `more_kind` for half
    of the layers' attn_v and ffn_down."""

    architecture: str  # "llama", "qwen3" or, with `delta`, "qwen35"
    n_layer: int
    n_embd: int
    n_ff: int
    n_head: int
    n_head_kv: int
    head_size: int
    n_vocab: int
    kind: str
    head_kind: str
    more_kind: str
    delta: DeltaNet | None = None


# Those of docs/gpu/model.py, and one for tests.
SHAPES: dict[str, Shape] = {
    "qwen3-8b": Shape("qwen3", 36, 4096, 12288, 32, 8, 128, 151936, "Q4_K", "Q6_K", "Q6_K"),
    "llama-3.1-8b": Shape("llama", 32, 4096, 14336, 32, 8, 128, 128256, "Q4_K", "Q6_K", "Q6_K"),
    "dense-27b": Shape("qwen3", 64, 5120, 20480, 40, 8, 128, 248320, "Q5_K", "Q6_K", "Q5_K"),
    "qwen3-1.7b": Shape("qwen3", 28, 2048, 6144, 16, 8, 128, 151936, "Q4_K", "Q6_K", "Q6_K"),
    "qwen3-4b": Shape("qwen3", 36, 2560, 9728, 32, 8, 128, 151936, "Q4_K", "Q6_K", "Q6_K"),
    "dense-31b": Shape("qwen3", 60, 5376, 21504, 32, 16, 256, 262144, "Q4_K", "Q6_K", "Q6_K"),
    "qwen3.6-27b": Shape("qwen35", 64, 5120, 17408, 24, 4, 256, 248320, "Q5_K", "Q6_K", "Q5_K", DeltaNet(16, 48)),
    "hybrid-2b": Shape("qwen35", 24, 2048, 6144, 8, 2, 256, 248320, "Q4_K", "Q6_K", "Q6_K", DeltaNet(16, 16)),
    "tiny": Shape("qwen3", 2, 256, 512, 4, 2, 64, 320, "Q4_K", "Q6_K", "Q6_K"),
    "tiny-hybrid": Shape("qwen35", 4, 256, 512, 4, 2, 64, 320, "Q4_K", "Q6_K", "Q6_K", DeltaNet(2, 8, state_size=32)),
}


def shape_named(name: str) -> Shape | None:
    """One of SHAPES, or `shape:TYPE`, all of whose matrices have that type; None where there is no such shape."""
    base, colon, kind = name.partition(":")
    if base not in SHAPES or (colon and kind not in _TYPES):
        return None
    return replace(SHAPES[base], kind=kind, head_kind=kind, more_kind=kind) if colon else SHAPES[base]


@dataclass(frozen=True)
class _Tensor:
    name: str
    columns: int
    rows: int  # 0: a vector
    kind: str

    @property
    def size(self) -> int:
        _, columns, size = _TYPES[self.kind]
        return self.columns * max(self.rows, 1) // columns * size


def write_target(shape: Shape, path: Path, *, with_weights: bool = False) -> Path:
    """A target of that shape, with an embedding and a head of its own.

    with_weights: random ones are in the file, which other programs can open as well.
    """
    tensors = [
        _Tensor("token_embd.weight", shape.n_embd, shape.n_vocab, shape.kind),
        _Tensor("output.weight", shape.n_embd, shape.n_vocab, shape.head_kind),
        _Tensor("output_norm.weight", shape.n_embd, 0, "F32"),
    ]
    for index in range(shape.n_layer):
        kind = shape.more_kind if _has_more_bits(index, shape.n_layer) else shape.kind
        tensors += _layer(shape, index, more_kind=kind, with_norms=shape.architecture != "llama")
    metadata = _metadata(shape, shape.architecture, shape.n_layer)
    if with_weights:  # llama.cpp wants a whole vocabulary
        metadata["tokenizer.ggml.model"] = _text("gpt2")
        metadata["tokenizer.ggml.pre"] = _text("qwen2")
        metadata["tokenizer.ggml.merges"] = struct.pack("<IIQ", _ARRAY, _STRING, 0)
    return _write(path, metadata, tensors, with_weights=with_weights)


def write_drafter(shape: Shape, path: Path) -> Path:
    """A drafter of five such layers for it, which uses the target's embedding and head."""
    step = max(1, shape.n_layer // _TAPS)
    taps = [min(1 + index * step, shape.n_layer) for index in range(_TAPS)]
    metadata = {
        **_metadata(shape, "dflash", _DRAFT_LAYERS),
        "dflash.block_size": _integer(BLOCK_SIZE),
        "dflash.target_layers": struct.pack(f"<IIQ{_TAPS}i", _ARRAY, _INT32, _TAPS, *taps),
        "tokenizer.ggml.mask_token_id": _integer(0),
    }
    tensors = [
        _Tensor("fc.weight", _TAPS * shape.n_embd, shape.n_embd, shape.kind),
        _Tensor("enc.output_norm.weight", shape.n_embd, 0, "F32"),
        _Tensor("output_norm.weight", shape.n_embd, 0, "F32"),
    ]
    for index in range(_DRAFT_LAYERS):
        tensors += _layer(replace(shape, delta=None), index, more_kind=shape.kind, with_norms=True)
    return _write(path, metadata, tensors)


def _has_more_bits(index: int, n_layer: int) -> bool:
    """llama.cpp's choice of the layers that "M" mixtures give more bits."""
    eighth = n_layer // 8
    return index < eighth or index >= 7 * n_layer // 8 or (index - eighth) % 3 == 2


def _layer(shape: Shape, index: int, *, more_kind: str, with_norms: bool) -> Iterator[_Tensor]:
    if shape.delta is not None:
        yield from _hybrid_layer(shape, shape.delta, index, more_kind=more_kind)
        return
    queries, keys = shape.n_head * shape.head_size, shape.n_head_kv * shape.head_size
    matrices = {
        "attn_q": (shape.n_embd, queries),
        "attn_k": (shape.n_embd, keys),
        "attn_v": (shape.n_embd, keys),
        "attn_output": (queries, shape.n_embd),
        "ffn_gate": (shape.n_embd, shape.n_ff),
        "ffn_up": (shape.n_embd, shape.n_ff),
        "ffn_down": (shape.n_ff, shape.n_embd),
    }
    vectors = {"attn_norm": shape.n_embd, "ffn_norm": shape.n_embd}
    if with_norms:
        vectors |= {"attn_q_norm": shape.head_size, "attn_k_norm": shape.head_size}
    for name, (columns, rows) in matrices.items():
        kind = more_kind if name in ("attn_v", "ffn_down") else shape.kind
        yield _Tensor(f"blk.{index}.{name}.weight", columns, rows, kind)
    for name, columns in vectors.items():
        yield _Tensor(f"blk.{index}.{name}.weight", columns, 0, "F32")


def _hybrid_layer(shape: Shape, delta: DeltaNet, index: int, *, more_kind: str) -> Iterator[_Tensor]:
    queries, keys = shape.n_head * shape.head_size, shape.n_head_kv * shape.head_size
    attends = (index + 1) % delta.interval == 0
    matrices = {
        "ffn_gate": (shape.n_embd, shape.n_ff),
        "ffn_up": (shape.n_embd, shape.n_ff),
        "ffn_down": (shape.n_ff, shape.n_embd),
    }
    vectors = {"attn_norm.weight": shape.n_embd, "post_attention_norm.weight": shape.n_embd}
    if attends:
        matrices |= {
            "attn_q": (shape.n_embd, 2 * queries),  # queries and gates
            "attn_k": (shape.n_embd, keys),
            "attn_v": (shape.n_embd, keys),
            "attn_output": (queries, shape.n_embd),
        }
        vectors |= {"attn_q_norm.weight": shape.head_size, "attn_k_norm.weight": shape.head_size}
    else:
        matrices |= {
            "attn_qkv": (shape.n_embd, delta.channels),
            "attn_gate": (shape.n_embd, delta.results),
            "ssm_beta": (shape.n_embd, delta.value_heads),
            "ssm_alpha": (shape.n_embd, delta.value_heads),
            "ssm_out": (delta.results, shape.n_embd),
        }
        vectors |= {"ssm_a": delta.value_heads, "ssm_dt.bias": delta.value_heads, "ssm_norm.weight": delta.state_size}
        yield _Tensor(f"blk.{index}.ssm_conv1d.weight", delta.kernel, delta.channels, "F32")
    for name, (columns, rows) in matrices.items():
        kind = more_kind if name in ("attn_v", "attn_qkv", "ffn_down") else shape.kind
        yield _Tensor(f"blk.{index}.{name}.weight", columns, rows, kind)
    for name, columns in vectors.items():
        yield _Tensor(f"blk.{index}.{name}", columns, 0, "F32")


def _delta_metadata(prefix: str, rotated: int, delta: DeltaNet) -> dict[str, bytes]:
    sections = (rotated // 6 + 1, rotated // 6 + 1, rotated // 2 - 2 * (rotated // 6 + 1), 0)
    return {
        f"{prefix}.rope.dimension_count": _integer(rotated),
        f"{prefix}.rope.dimension_sections": struct.pack("<IIQ4i", _ARRAY, _INT32, 4, *sections),
        f"{prefix}.full_attention_interval": _integer(delta.interval),
        f"{prefix}.ssm.conv_kernel": _integer(delta.kernel),
        f"{prefix}.ssm.state_size": _integer(delta.state_size),
        f"{prefix}.ssm.group_count": _integer(delta.key_heads),
        f"{prefix}.ssm.time_step_rank": _integer(delta.value_heads),
        f"{prefix}.ssm.inner_size": _integer(delta.results),
    }


# ---- the file ----------------------------------------------------------------------------------------------------


def _string(value: str) -> bytes:
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def _text(value: str) -> bytes:
    return struct.pack("<I", _STRING) + _string(value)


def _integer(value: int) -> bytes:
    return struct.pack("<II", _UINT32, value)


def _number(value: float) -> bytes:
    return struct.pack("<If", _FLOAT32, value)


def _metadata(shape: Shape, prefix: str, n_layer: int) -> dict[str, bytes]:
    delta = shape.delta if prefix == shape.architecture else None
    words = b"".join(_string(f"w{token}") for token in range(shape.n_vocab))
    return {
        **({} if delta is None else _delta_metadata(prefix, shape.head_size // 4, delta)),
        "general.architecture": _text(prefix),
        f"{prefix}.block_count": _integer(n_layer),
        f"{prefix}.context_length": _integer(CONTEXT_LENGTH),
        f"{prefix}.embedding_length": _integer(shape.n_embd),
        f"{prefix}.feed_forward_length": _integer(shape.n_ff),
        f"{prefix}.attention.head_count": _integer(shape.n_head),
        f"{prefix}.attention.head_count_kv": _integer(shape.n_head_kv),
        f"{prefix}.attention.key_length": _integer(shape.head_size),
        f"{prefix}.attention.value_length": _integer(shape.head_size),
        f"{prefix}.attention.layer_norm_rms_epsilon": _number(1e-6),
        f"{prefix}.rope.freq_base": _number(1e6),
        "tokenizer.ggml.tokens": struct.pack("<IIQ", _ARRAY, _STRING, shape.n_vocab) + words,
    }


def _write(path: Path, metadata: dict[str, bytes], tensors: Sequence[_Tensor], *, with_weights: bool = False) -> Path:
    header = [struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(metadata))]
    header += [_string(key) + value for key, value in metadata.items()]
    offset = 0
    for tensor in tensors:
        sizes = (tensor.columns, tensor.rows) if tensor.rows else (tensor.columns,)
        header.append(_string(tensor.name) + struct.pack(f"<I{len(sizes)}Q", len(sizes), *sizes))
        header.append(struct.pack("<IQ", _TYPES[tensor.kind][0], offset))
        offset += _aligned(tensor.size)
    with path.open("wb") as file:
        begin = _aligned(file.write(b"".join(header)))
        file.truncate(begin + offset)
        file.seek(begin)
        for tensor in tensors if with_weights else ():
            _write_weights(file, tensor)
    return path


def _write_weights(file: BinaryIO, tensor: _Tensor) -> None:
    """The same random blocks again and again; a norm's gains are 1, and what states decay by is below 0."""
    if not tensor.rows:
        file.write(struct.pack("<f", -1.0 if tensor.name.endswith("ssm_a") else 1.0) * tensor.columns)
    else:
        blocks = _random_blocks(tensor.kind)
        for written in range(0, tensor.size, len(blocks)):
            file.write(blocks[: tensor.size - written])
    file.seek(_aligned(file.tell()))


@functools.cache
def _random_blocks(kind: str) -> bytes:
    """About a megabyte of them."""
    number, _, size = _TYPES[kind]
    blocks, error = ffi.new("uint8_t[]", (1 << 20) // size * size), new_error()
    check(lib.bee_random_weights(number, blocks, len(blocks), error), error)
    return bytes(ffi.buffer(blocks))


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
