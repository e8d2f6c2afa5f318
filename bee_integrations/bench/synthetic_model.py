"""Model files of a given shape: real headers before random weights, or before a hole as large as those would be.

An engine opens one with a hole with `made_up_weights`, which never reads it. What such a model costs is what any of its
shape costs; what it says is noise.
"""

from __future__ import annotations

import functools
import math
import os
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from ..errors import ModelFileError
from ..library import check, ffi, lib, new_error

__all__ = [
    "BLOCK_SIZE",
    "SHAPES",
    "WEIGHT_TYPES",
    "Shape",
    "no_shape",
    "shape_named",
    "write_drafter",
    "write_target",
]

BLOCK_SIZE = 16  # of the drafters: the last token and 15 drafts

_DRAFT_LAYERS = 5
_TAPS = 5
_ALIGNMENT = 32
_MIXTURE = 15  # the number that llama.cpp gives to files of Q4_K_M
_FACTORS = "rope_freqs.weight"
_UINT32, _INT32, _FLOAT32, _BOOL, _STRING, _ARRAY = 4, 5, 6, 7, 8, 9
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
class Experts:
    """Feed-forwards of which each row takes a few."""

    count: int
    used: int
    n_ff: int
    kind: str | None = None  # of their weights; None: as the others'
    shared: int = 0  # columns of one more, of which every row takes a share


@dataclass(frozen=True)
class Windows:
    """Layers that see the last positions alone. One in `interval` sees all, with heads of its own sizes."""

    size: int
    interval: int
    full_head_kv: int
    full_head_size: int


@dataclass(frozen=True)
class Shape:
    """A model's sizes, and how it is quantised: `kind` everywhere, but `head_kind` for the head, `more_kind` for half
    of the layers' values and last matrices of feed-forwards."""

    architecture: str  # one of _LAYERS
    n_layer: int
    n_embd: int
    n_ff: int  # where there are experts: of the drafter alone
    n_head: int
    n_head_kv: int
    head_size: int
    n_vocab: int
    kind: str
    head_kind: str
    more_kind: str
    delta: DeltaNet | None = None
    experts: Experts | None = None
    windows: Windows | None = None
    n_ctx: int = 8192  # that it is said to be trained for


# Those of docs/gpu/model.py, and some for tests.
SHAPES: dict[str, Shape] = {
    "qwen3-8b": Shape("qwen3", 36, 4096, 12288, 32, 8, 128, 151936, "Q4_K", "Q6_K", "Q6_K", n_ctx=40960),
    "llama-3.1-8b": Shape("llama", 32, 4096, 14336, 32, 8, 128, 128256, "Q4_K", "Q6_K", "Q6_K", n_ctx=131072),
    "dense-27b": Shape("qwen3", 64, 5120, 20480, 40, 8, 128, 248320, "Q5_K", "Q6_K", "Q5_K"),
    "qwen3-1.7b": Shape("qwen3", 28, 2048, 6144, 16, 8, 128, 151936, "Q4_K", "Q6_K", "Q6_K", n_ctx=40960),
    "qwen3-4b": Shape("qwen3", 36, 2560, 9728, 32, 8, 128, 151936, "Q4_K", "Q6_K", "Q6_K", n_ctx=40960),
    "dense-31b": Shape("qwen3", 60, 5376, 21504, 32, 16, 256, 262144, "Q4_K", "Q6_K", "Q6_K"),
    "qwen3.6-27b": Shape(
        "qwen35", 64, 5120, 17408, 24, 4, 256, 248320, "Q5_K", "Q6_K", "Q5_K", DeltaNet(16, 48), n_ctx=262144
    ),
    "qwen3.6-35b-a3b": Shape(
        "qwen35moe", 40, 2048, 6144, 16, 2, 256, 248320, "Q4_K", "Q6_K", "Q6_K", DeltaNet(16, 32),
        Experts(256, 8, 512, shared=512), n_ctx=262144,
    ),
    "gemma4-31b": Shape(
        "gemma4", 60, 5376, 21504, 32, 16, 256, 262144, "Q4_K", "Q6_K", "Q6_K", windows=Windows(1024, 6, 4, 512),
        n_ctx=262144,
    ),
    "gpt-oss-20b": Shape(
        "gpt-oss", 24, 2880, 2880, 64, 8, 64, 201088, "Q8_0", "Q8_0", "Q8_0", experts=Experts(32, 4, 2880, "MXFP4"),
        windows=Windows(128, 2, 8, 64), n_ctx=131072,
    ),
    "hybrid-2b": Shape("qwen35", 24, 2048, 6144, 8, 2, 256, 248320, "Q4_K", "Q6_K", "Q6_K", DeltaNet(16, 16)),
    "tiny": Shape("qwen3", 2, 256, 512, 4, 2, 64, 320, "Q4_K", "Q6_K", "Q6_K"),
    "tiny-hybrid": Shape("qwen35", 4, 256, 512, 4, 2, 64, 320, "Q4_K", "Q6_K", "Q6_K", DeltaNet(2, 8, state_size=32)),
    "tiny-hybrid-mixture": Shape(
        "qwen35moe", 4, 256, 512, 4, 2, 64, 320, "Q4_K", "Q6_K", "Q6_K", DeltaNet(2, 8, state_size=32),
        Experts(8, 2, 256, shared=256),
    ),
    "tiny-windows": Shape(
        "gemma4", 6, 256, 512, 4, 2, 64, 320, "Q4_K", "Q6_K", "Q6_K", windows=Windows(64, 6, 1, 128)
    ),
    "tiny-mixture": Shape(
        "gpt-oss", 2, 320, 320, 4, 2, 64, 320, "Q8_0", "Q8_0", "Q8_0", experts=Experts(8, 2, 320, "MXFP4"),
        windows=Windows(64, 2, 2, 64),
    ),
}  # fmt: skip


def shape_named(name: str) -> Shape | None:
    """One of SHAPES, or `shape@LAYERS` with its first layers alone, or either and `:TYPE`, with all matrices of that
    type; None where there is no such shape."""
    whole, colon, kind = name.partition(":")
    base, at, layers = whole.partition("@")
    if base not in SHAPES or (colon and kind not in _TYPES):
        return None
    shape = SHAPES[base]
    if at:
        if not (layers.isdecimal() and 1 <= int(layers) <= shape.n_layer):
            return None
        shape = replace(shape, n_layer=int(layers))
    if not colon:
        return shape
    experts = shape.experts and replace(shape.experts, kind=kind)
    return replace(shape, kind=kind, head_kind=kind, more_kind=kind, experts=experts)


def no_shape(name: str) -> str:
    """What to say of a name that `shape_named` does not know."""
    return (
        f"there is no shape {name!r}; there are {', '.join(SHAPES)}, each of them also as SHAPE@LAYERS, with its first "
        f"layers alone, and as SHAPE:TYPE, with all matrices of one of the types {', '.join(WEIGHT_TYPES)}"
    )


@dataclass(frozen=True)
class _Tensor:
    name: str
    columns: int
    rows: int  # 0: a vector
    kind: str
    depth: int = 0  # matrices one behind the other; 0: one

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(size for size in (self.columns, self.rows, self.depth) if size)

    @property
    def size(self) -> int:
        _, columns, size = _TYPES[self.kind]
        return math.prod(self.sizes) // columns * size


def write_target(shape: Shape, path: Path, *, with_weights: bool = False) -> Path:
    """A target of that shape, with an embedding and, where its family has one, a head of its own.

    with_weights: random ones are in the file, which other programs can open as well.
    """
    tied = shape.architecture == "gemma4"
    tensors = [
        _Tensor("token_embd.weight", shape.n_embd, shape.n_vocab, shape.head_kind if tied else shape.kind),
        _Tensor("output_norm.weight", shape.n_embd, 0, "F32"),
    ]
    if tied:
        assert shape.windows is not None
        tensors.append(_Tensor(_FACTORS, shape.windows.full_head_size // 2, 0, "F32"))
    else:
        tensors.append(_Tensor("output.weight", shape.n_embd, shape.n_vocab, shape.head_kind))
    for index in range(shape.n_layer):
        kind = shape.more_kind if _has_more_bits(index, shape.n_layer) else shape.kind
        tensors += _LAYERS[shape.architecture](shape, index, kind)
    metadata = _metadata(shape, shape.architecture, shape.n_layer) | _family_metadata(shape)
    if with_weights:
        metadata |= _whole_vocabulary(shape.n_vocab)
    return _write(path, metadata, tensors, with_weights=with_weights)


def write_drafter(shape: Shape, path: Path) -> Path:
    """A drafter of five such layers for it, which uses the target's embedding and head."""
    step = max(1, shape.n_layer // _TAPS)
    taps = [min(1 + index * step, shape.n_layer) for index in range(_TAPS)]
    metadata = {
        **_metadata(shape, "dflash", _DRAFT_LAYERS),
        "dflash.block_size": _integer(BLOCK_SIZE),
        "dflash.target_layers": _integers(taps),
        "tokenizer.ggml.mask_token_id": _integer(0),
    }
    tensors = [
        _Tensor("fc.weight", _TAPS * shape.n_embd, shape.n_embd, shape.kind),
        _Tensor("enc.output_norm.weight", shape.n_embd, 0, "F32"),
        _Tensor("output_norm.weight", shape.n_embd, 0, "F32"),
    ]
    for index in range(_DRAFT_LAYERS):
        tensors += _normed_layer(replace(shape, experts=None), index, shape.kind)
    return _write(path, metadata, tensors)


def _has_more_bits(index: int, n_layer: int) -> bool:
    """llama.cpp's choice of the layers that "M" mixtures give more bits."""
    eighth = n_layer // 8
    return index < eighth or index >= 7 * n_layer // 8 or (index - eighth) % 3 == 2


Layer = Iterator[_Tensor]


def _matrices(index: int, kind: str, **shapes: tuple[int, int]) -> Layer:
    for name, (columns, rows) in shapes.items():
        yield _Tensor(f"blk.{index}.{name}.weight", columns, rows, kind)


def _vectors(index: int, **columns: int) -> Layer:
    """Two underscores stand for a dot."""
    for name, n in columns.items():
        full = name.replace("__", ".")
        yield _Tensor(f"blk.{index}.{full}{'' if '.' in full or full == 'ssm_a' else '.weight'}", n, 0, "F32")


def _attention(shape: Shape, index: int, more_kind: str, *, gated: bool = False) -> Layer:
    queries, keys = shape.n_head * shape.head_size, shape.n_head_kv * shape.head_size
    wide = 2 * queries if gated else queries
    yield from _matrices(index, shape.kind, attn_q=(shape.n_embd, wide), attn_k=(shape.n_embd, keys))
    yield from _matrices(index, more_kind, attn_v=(shape.n_embd, keys))
    yield from _matrices(index, shape.kind, attn_output=(queries, shape.n_embd))


def _feed_forward(shape: Shape, index: int, more_kind: str) -> Layer:
    experts, width = shape.experts, shape.n_embd
    if experts is None:
        yield from _matrices(index, shape.kind, ffn_gate=(width, shape.n_ff), ffn_up=(width, shape.n_ff))
        yield from _matrices(index, more_kind, ffn_down=(shape.n_ff, width))
        return
    kind, last = experts.kind or shape.kind, experts.kind or more_kind
    yield from _matrices(index, "F32", ffn_gate_inp=(width, experts.count))
    for name, columns, rows, of in (
        ("gate", width, experts.n_ff, kind), ("up", width, experts.n_ff, kind), ("down", experts.n_ff, width, last),
    ):  # fmt: skip
        yield _Tensor(f"blk.{index}.ffn_{name}_exps.weight", columns, rows, of, experts.count)
    if experts.shared:
        yield from _matrices(index, kind, ffn_gate_shexp=(width, experts.shared), ffn_up_shexp=(width, experts.shared))
        yield from _matrices(index, last, ffn_down_shexp=(experts.shared, width))
        yield from _vectors(index, ffn_gate_inp_shexp=width)


def _plain_layer(shape: Shape, index: int, more_kind: str) -> Layer:
    yield from _attention(shape, index, more_kind)
    yield from _feed_forward(shape, index, more_kind)
    yield from _vectors(index, attn_norm=shape.n_embd, ffn_norm=shape.n_embd)


def _normed_layer(shape: Shape, index: int, more_kind: str) -> Layer:
    yield from _plain_layer(shape, index, more_kind)
    yield from _vectors(index, attn_q_norm=shape.head_size, attn_k_norm=shape.head_size)


def _hybrid_layer(shape: Shape, index: int, more_kind: str) -> Layer:
    delta, width = shape.delta, shape.n_embd
    assert delta is not None
    yield from _feed_forward(shape, index, more_kind)
    yield from _vectors(index, attn_norm=width, post_attention_norm=width)
    if (index + 1) % delta.interval == 0:
        yield from _attention(shape, index, more_kind, gated=True)
        yield from _vectors(index, attn_q_norm=shape.head_size, attn_k_norm=shape.head_size)
        return
    rates = (width, delta.value_heads)
    yield from _matrices(index, more_kind, attn_qkv=(width, delta.channels))
    yield from _matrices(index, shape.kind, attn_gate=(width, delta.results), ssm_out=(delta.results, width))
    yield from _matrices(index, shape.kind, ssm_beta=rates, ssm_alpha=rates)
    yield from _matrices(index, "F32", ssm_conv1d=(delta.kernel, delta.channels))
    yield from _vectors(index, ssm_a=delta.value_heads, ssm_dt__bias=delta.value_heads, ssm_norm=delta.state_size)


def _sees_all(windows: Windows, index: int) -> bool:
    return (index + 1) % windows.interval == 0


def _gemma_layer(shape: Shape, index: int, more_kind: str) -> Layer:
    """A layer that sees all has heads of its own size, and no values: its keys are."""
    windows, width = shape.windows, shape.n_embd
    assert windows is not None
    whole = _sees_all(windows, index)
    if whole:
        shape = replace(shape, n_head_kv=windows.full_head_kv, head_size=windows.full_head_size)
    for tensor in _normed_layer(shape, index, more_kind):
        if not whole or ".attn_v." not in tensor.name:
            yield tensor
    yield from _vectors(index, post_attention_norm=width, post_ffw_norm=width, layer_output_scale=1)


def _gpt_oss_layer(shape: Shape, index: int, more_kind: str) -> Layer:
    experts, width = shape.experts, shape.n_embd
    queries, keys = shape.n_head * shape.head_size, shape.n_head_kv * shape.head_size
    assert experts is not None
    yield from _attention(shape, index, more_kind)
    yield from _feed_forward(shape, index, more_kind)
    yield from _vectors(index, attn_norm=width, post_attention_norm=width, attn_sinks=shape.n_head)
    yield from _vectors(index, attn_q__bias=queries, attn_k__bias=keys, attn_v__bias=keys, attn_output__bias=width)
    yield from _vectors(index, ffn_gate_inp__bias=experts.count)
    for name, n in (("gate", experts.n_ff), ("up", experts.n_ff), ("down", width)):
        yield _Tensor(f"blk.{index}.ffn_{name}_exps.bias", n, experts.count, "F32")


_LAYERS: dict[str, Callable[[Shape, int, str], Layer]] = {
    "llama": _plain_layer,
    "qwen3": _normed_layer,
    "qwen35": _hybrid_layer,
    "qwen35moe": _hybrid_layer,
    "gemma4": _gemma_layer,
    "gpt-oss": _gpt_oss_layer,
}


def _family_metadata(shape: Shape) -> dict[str, bytes]:
    """What a target has beyond the sizes that all have."""
    found: dict[str, bytes] = {}
    if shape.delta is not None:
        found |= _delta_metadata(shape.head_size // 4, shape.delta)
    if shape.experts is not None:
        found |= _experts_metadata(shape.experts)
    if shape.windows is not None:
        found["attention.sliding_window"] = _integer(shape.windows.size)
        found |= _gemma_metadata(shape, shape.windows) if shape.architecture == "gemma4" else {}
    return {f"{shape.architecture}.{key}": value for key, value in found.items()}


def _experts_metadata(experts: Experts) -> dict[str, bytes]:
    return {
        "expert_count": _integer(experts.count),
        "expert_used_count": _integer(experts.used),
        "expert_feed_forward_length": _integer(experts.n_ff),
        **({"expert_shared_feed_forward_length": _integer(experts.shared)} if experts.shared else {}),
    }


def _whole_vocabulary(n_vocab: int) -> dict[str, bytes]:
    """What llama.cpp wants to know of a vocabulary, and OpenVINO, which wants a control token, too."""
    types = [1] * (n_vocab - 1) + [3]
    return {
        "general.file_type": _integer(_MIXTURE),
        "tokenizer.ggml.model": _text("gpt2"),
        "tokenizer.ggml.pre": _text("qwen2"),
        "tokenizer.ggml.eos_token_id": _integer(n_vocab - 1),
        "tokenizer.ggml.merges": struct.pack("<IIQ", _ARRAY, _STRING, 0),
        "tokenizer.ggml.token_type": _integers(types),
    }


def _gemma_metadata(shape: Shape, windows: Windows) -> dict[str, bytes]:
    whole = [_sees_all(windows, index) for index in range(shape.n_layer)]
    heads = [windows.full_head_kv if sees_all else shape.n_head_kv for sees_all in whole]
    return {
        "attention.sliding_window_pattern": _booleans([not sees_all for sees_all in whole]),
        "attention.head_count_kv": _integers(heads),
        "attention.key_length": _integer(windows.full_head_size),
        "attention.value_length": _integer(windows.full_head_size),
        "attention.key_length_swa": _integer(shape.head_size),
        "attention.value_length_swa": _integer(shape.head_size),
        "rope.dimension_count": _integer(windows.full_head_size),
        "rope.dimension_count_swa": _integer(shape.head_size),
        "attention.shared_kv_layers": _integer(0),
        "embedding_length_per_layer_input": _integer(0),
    }


def _delta_metadata(rotated: int, delta: DeltaNet) -> dict[str, bytes]:
    return {
        "rope.dimension_count": _integer(rotated),
        "rope.dimension_sections": _integers(
            [rotated // 6 + 1, rotated // 6 + 1, rotated // 2 - 2 * (rotated // 6 + 1), 0]
        ),
        "full_attention_interval": _integer(delta.interval),
        "ssm.conv_kernel": _integer(delta.kernel),
        "ssm.state_size": _integer(delta.state_size),
        "ssm.group_count": _integer(delta.key_heads),
        "ssm.time_step_rank": _integer(delta.value_heads),
        "ssm.inner_size": _integer(delta.results),
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


def _integers(values: Sequence[int]) -> bytes:
    return struct.pack(f"<IIQ{len(values)}i", _ARRAY, _INT32, len(values), *values)


def _booleans(values: Sequence[bool]) -> bytes:
    return struct.pack(f"<IIQ{len(values)}?", _ARRAY, _BOOL, len(values), *values)


def _metadata(shape: Shape, prefix: str, n_layer: int) -> dict[str, bytes]:
    words = b"".join(_string(f"w{token}") for token in range(shape.n_vocab))
    return {
        "general.architecture": _text(prefix),
        f"{prefix}.block_count": _integer(n_layer),
        f"{prefix}.context_length": _integer(shape.n_ctx),
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
        sizes = tensor.sizes
        header.append(_string(tensor.name) + struct.pack(f"<I{len(sizes)}Q", len(sizes), *sizes))
        header.append(struct.pack("<IQ", _TYPES[tensor.kind][0], offset))
        offset += _aligned(tensor.size)
    data = b"".join(header)
    begin = _aligned(len(data))
    try:
        with path.open("wb") as file:
            file.write(data)
            file.truncate(begin + offset)
            file.seek(begin)
            for tensor in tensors:
                if with_weights or tensor.name == _FACTORS:  # a plan reads these
                    _write_weights(file, tensor)
                else:
                    file.seek(_aligned(tensor.size), os.SEEK_CUR)
    except OSError as error:
        raise ModelFileError(
            f"the made-up model of {(begin + offset) / 1e9:.1f} GB cannot be written to {path.parent} "
            f"({error.strerror}): TMPDIR names another folder"
        ) from error
    return path


def _write_weights(file: BinaryIO, tensor: _Tensor) -> None:
    """The same random blocks again and again; a norm's gains are 1, and what states decay by is below 0.

    Each tensor begins at another block: a program that finds two constants equal may compute with one of them.
    """
    if tensor.name == _FACTORS:  # a quarter of the pairs turn, the others hardly
        turning = tensor.columns // 4
        file.write(struct.pack(f"<{tensor.columns}f", *[1.0] * turning, *[1e30] * (tensor.columns - turning)))
    elif not tensor.rows:
        file.write(struct.pack("<f", -1.0 if tensor.name.endswith("ssm_a") else 1.0) * tensor.columns)
    else:
        blocks, (_, _, block) = _random_blocks(tensor.kind), _TYPES[tensor.kind]
        begin = zlib.crc32(tensor.name.encode()) % (len(blocks) // block) * block
        blocks = blocks[begin:] + blocks[:begin]
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
