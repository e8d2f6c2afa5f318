"""Every quantised weight type against ggml's own decoder (tests/golden/make_weight_blocks.py), through whole models;
and files that mix types, as llama-quantize writes them.

A model of one layer that adds nothing is its embedding, its norm and its head. With the type in the embedding, and a
head that is the identity, its logits are the normed rows of the table. With the type in the head, and an embedding of
unit vectors, they are the head's weights one by one: a unit vector is rounded to 8 bits without an error.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from family_models import BIASED_QKV, HEAD_NORMS, N_EXPERTS, N_VOCAB, PRE, QKV, WINDOWED, YARN, mixture, tokens
from gguf_document import FLOAT32, HALVES, TYPES, Array, Document, Stored, Value, integer, small_floats
from golden_models import tiny_model
from reference_forward import Forward
from test_architectures import CUDA_ERROR, INSTRUCTION_SETS, SHORT_ERROR, difference, evaluated, session

from bee_integrations.engine.device_plan import plan_memory
from bee_integrations.errors import UnsupportedModelError
from bee_integrations.models.file import ModelFile

BLOCKS = Path(__file__).resolve().parent.parent / "golden" / "weights" / "blocks.npz"
WIDTH = 256
# The norm's sum, root and product, the head's product, and the scale that is divided and multiplied by.
ROUNDINGS = 16 * 2.0**-24
EPSILON = 1e-30


def stored_blocks() -> dict[str, tuple[npt.NDArray[np.uint8], Array]]:
    with np.load(BLOCKS) as data:
        names = [name for name in data if f"{name}_values" in data]
        return {name: (data[name], data[f"{name}_values"].astype(np.float64)) for name in names}


GOLDEN = stored_blocks()


def model(embedding: Stored, head: Stored) -> Document:
    document = tiny_model("llama-q4_k").copy()
    for name, tensor in document.tensors.items():
        if name.startswith("blk."):
            values = np.ones(tensor.shape) if len(tensor.shape) == 1 else np.zeros(tensor.shape)
            document.tensors[name] = Stored.of(values)
    document.tensors["output_norm.weight"] = Stored.of(np.ones(WIDTH))
    document.tensors["token_embd.weight"] = embedding
    document.tensors["output.weight"] = head
    document.metadata["llama.attention.layer_norm_rms_epsilon"] = Value(FLOAT32, EPSILON)
    return document


def logits(document: Document, path: Path, instruction_set: str, n: int) -> Array:
    """Of tokens 0 to n - 1, as float64[n][WIDTH]. What a token gets does not depend on those before it."""
    with session(document.write(path), instruction_set, n_ctx=WIDTH) as opened:
        return evaluated(opened, np.arange(n, dtype=np.int32), WIDTH).astype(np.float64)


def of_type(name: str) -> Stored:
    """The type's rows, again and again."""
    blocks, values = GOLDEN[name]
    return Stored(name, (WIDTH, WIDTH), np.tile(blocks, (WIDTH // len(values), 1)).tobytes())


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
@pytest.mark.parametrize("name", GOLDEN)
def test_rows_of_the_table(name: str, instruction_set: str, tmp_path: Path) -> None:
    values = GOLDEN[name][1]
    # Rows whose squares a float cannot hold have no norm.
    rows = [i for i, row in enumerate(values) if (row**2).mean() > 1e-30]
    assert len(rows) > len(values) // 2
    out = logits(model(of_type(name), Stored.of(np.eye(WIDTH))), tmp_path / "m.gguf", instruction_set, len(values))
    for i in rows:
        expected = values[i] / np.sqrt((values[i] ** 2).mean() + EPSILON)
        assert np.abs(out[i] - expected).max() <= ROUNDINGS * np.abs(expected).max()


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
@pytest.mark.parametrize("name", GOLDEN)
def test_weights_of_a_product(name: str, instruction_set: str, tmp_path: Path) -> None:
    values = GOLDEN[name][1]
    head = of_type(name)
    out = logits(model(Stored.of(np.eye(WIDTH)), head), tmp_path / "m.gguf", instruction_set, WIDTH)
    expected = np.tile(values, (WIDTH // len(values), 1)).T * np.sqrt(WIDTH)
    # A type's minimum is added behind a product: its error is that of the larger of the two.
    bound = ROUNDINGS * np.maximum(np.abs(expected), np.abs(values).max() * np.sqrt(WIDTH) * 2)
    assert (np.abs(out - expected) <= bound + sys.float_info.min).all()


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
@pytest.mark.parametrize("name", GOLDEN)
def test_an_embedding_that_is_the_head(name: str, instruction_set: str, tmp_path: Path) -> None:
    """On the CPU it is there once: rows of the packed matrix are those of a table of its own, to the bit."""
    twice = model(of_type(name), of_type(name))
    once = twice.copy()
    del once.tensors["output.weight"]
    paths = once.write(tmp_path / "once.gguf"), twice.write(tmp_path / "twice.gguf")
    n = len(GOLDEN[name][1])
    bits = [logits(document, path, instruction_set, n) for document, path in zip((once, twice), paths, strict=True)]
    assert np.array_equal(*bits, equal_nan=True)
    planned = []
    for path in paths:
        with ModelFile(path) as file:
            planned.append(plan_memory(file, None, "cpu", 0).target_bytes)
    assert planned[1] - planned[0] == len(of_type(name).data)


# ---- files of several types ------------------------------------------------------------------------------------------

# By the beginnings of names, the last that fits: what llama-quantize makes of large models, where the first of these
# layers is one of their first eighth.
MIXES = {
    "Q2_K": {
        "": "Q2_K", "output.weight": "Q6_K", "attn_v": "Q4_K", "attn_output": "Q3_K", "ffn_down": "Q3_K",
    },
    "Q3_K_M": {
        "": "Q3_K", "output.weight": "Q6_K", "attn_v": "Q5_K", "attn_output": "Q4_K", "ffn_down": "Q4_K",
        "blk.0.ffn_down": "Q5_K",
    },
    "IQ4_XS": {"": "IQ4_XS", "output.weight": "Q6_K", "attn_v": "Q5_K", "blk.0.ffn_down": "Q5_K"},
    "IQ3_M": {
        "": "IQ3_S", "output.weight": "Q6_K", "attn_v": "Q4_K", "attn_output": "Q4_K", "blk.0.ffn_down": "Q4_K",
    },
    "IQ2_M": {
        "": "IQ2_S", "output.weight": "Q5_K", "token_embd": "IQ3_S", "attn_v": "Q4_K", "attn_output": "IQ3_S",
        "blk.0.ffn_down": "IQ3_S",
    },
}  # fmt: skip
# Of rows that are no whole number of 256 columns; of the others IQ4_NL.
REPLACED = {"Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
PAIR = 2  # tokens: few enough that some pairs have no activation in the middle between two steps


@dataclass(frozen=True)
class Known(Stored):
    """A tensor whose values somebody else knows."""

    known: Array = field(default_factory=lambda: np.zeros(0))

    def values(self) -> Array:
        return self.known


def random_matrix(name: str, rows: int, columns: int, random: np.random.RandomState) -> Known:
    """Random blocks, their scales such that the weights are of a usual size; gguf decodes them."""
    gguf = pytest.importorskip("gguf", reason="gguf is not installed")
    number, width, size = TYPES[name]
    blocks = random.randint(0, 256, (rows, columns // width, size)).astype(np.uint8)

    def decoded(scale: float) -> Array:
        for at in HALVES[name]:
            blocks[..., at : at + 2] = np.array([scale], np.float16).view(np.uint8)
        values = gguf.dequantize(blocks.reshape(rows, -1), gguf.GGMLQuantizationType(number))
        return np.asarray(values, np.float64)

    values = decoded(1 / (decoded(1).std() * np.sqrt(columns)))
    return Known(name, (rows, columns), blocks.tobytes(), values)


@lru_cache
def mixed_model(mix: str, width: int) -> Document:
    document, random = tiny_model("llama-f32").copy(), np.random.RandomState(width)
    heads = width // 64
    sizes = {"embedding_length": width, "feed_forward_length": 1024, "head_count": heads, "head_count_kv": heads}
    for key, size in sizes.items():
        document.metadata["llama." + ("attention." if "head" in key else "") + key] = integer(size)
    for name, tensor in document.tensors.items():
        rows, columns = (
            1024 if size == 96 else width if size in (32, 64) else size for size in (1, *tensor.shape)[-2:]
        )
        if len(tensor.shape) == 1:
            document.tensors[name] = Stored.of(1 + 0.2 * random.standard_normal(columns))
            continue
        inner = name.split(".", 2)[-1] if name.startswith("blk.") else name
        kind = [kind for begins, kind in MIXES[mix].items() if name.startswith(begins) or inner.startswith(begins)][-1]
        if columns % TYPES[kind][1]:
            kind = REPLACED.get(kind, "IQ4_NL")
        document.tensors[name] = random_matrix(kind, rows, columns, random)
    return document


def pairs_of(n_vocab: int) -> list[npt.NDArray[np.int32]]:
    return list(np.random.RandomState(4).randint(0, n_vocab, (8, PAIR)).astype(np.int32))


def errors(path: Path, instruction_set: str, n_vocab: int, wanted: Callable[[npt.NDArray[np.int32]], Array]) -> Array:
    with session(path, instruction_set) as opened:
        return np.array([difference(evaluated(opened, pair, n_vocab), wanted(pair)) for pair in pairs_of(n_vocab)])


def check_errors(found: Array, instruction_set: str) -> None:
    """Where an activation lay in the middle between two steps, it was rounded otherwise: not so in every pair."""
    cuda = instruction_set == "cuda"
    assert np.sort(found)[1] < (CUDA_ERROR if cuda else SHORT_ERROR)[True]
    assert found.max() < CUDA_ERROR[True]


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
@pytest.mark.parametrize("width", [576, 1024])
@pytest.mark.parametrize("mix", MIXES)
def test_mixed_files(mix: str, width: int, instruction_set: str, tmp_path: Path) -> None:
    document = mixed_model(mix, width)
    forward = Forward(document, float16_cache=True, rounded_activations=True)
    n_vocab = document.tensors["output.weight"].shape[0]
    check_errors(errors(document.write(tmp_path / "m.gguf"), instruction_set, n_vocab, forward.logits), instruction_set)


# ---- floats of 4 bits ------------------------------------------------------------------------------------------------


def random_fp4(name: str, shape: tuple[int, ...], random: np.random.RandomState) -> Stored:
    _, width, size = TYPES[name]
    blocks = random.randint(0, 256, (int(np.prod(shape)) // width, size)).astype(np.uint8)
    if name == "MXFP4":
        blocks[:, 0] = random.randint(121, 124, len(blocks))
    else:  # both halves of 32 columns alike, so that one scale can say it; 0 and 0x7f are nothing
        blocks[:, :4:2] = blocks[:, 1:4:2] = np.array([0x28, 0x2B, 0x30, 0x36, 0, 0x7F])[
            random.randint(0, 6, (len(blocks), 2))
        ]
    return Stored(name, shape, blocks.tobytes())


def as_q8_0(tensor: Stored, scale: Array | None = None) -> Stored:
    """Of matrices of floats of 4 bits and scales: exactly the same weights. Of others: rounded ones."""
    values = tensor.values().reshape(-1, 32)
    data = np.frombuffer(tensor.data, np.uint8)
    if tensor.type_name == "MXFP4":
        steps = 2.0 ** (data.reshape(-1, 17)[:, 0].astype(int) - 128)
    elif tensor.type_name == "NVFP4":
        steps = small_floats(data.reshape(-1, 36)[:, :4:2]).reshape(-1) / 2
    else:
        steps = (np.abs(values).max(1) / 127).astype(np.float16).astype(np.float64)
    codes = np.rint(np.divide(values, steps[:, None], out=np.zeros_like(values), where=steps[:, None] > 0))
    if scale is not None:
        steps = (steps.reshape(len(scale), -1) * scale[:, None]).reshape(-1)
    blocks = np.concatenate(
        [steps.astype(np.float16)[:, None].view(np.uint8), codes.clip(-127, 127).astype(np.int8).view(np.uint8)], axis=1
    )
    return Stored("Q8_0", tensor.shape, blocks.tobytes())


EXPERTS = {
    "qwen3moe": mixture("qwen3moe", [*PRE, *QKV, *HEAD_NORMS], size=32, ff=64, expert_feed_forward_length=64),
    "gpt-oss": mixture(
        "gpt-oss", ["attn_norm", "post_attention_norm", *BIASED_QKV[:3], "attn_output+bias", "attn_sinks_norm"],
        biases=True, layers=4, ff=64, expert_feed_forward_length=64, **YARN, **WINDOWED,
    ),
}  # fmt: skip


def with_experts(name: str, type_name: str, scaled: bool) -> tuple[Document, Document]:
    """Experts of a type of 4 bits, all else Q8_0 as llama-quantize's MXFP4_MOE has it; and the same weights in Q8_0."""
    document, random = EXPERTS[name](), np.random.RandomState(5)
    same = document.copy()
    for key, tensor in document.copy().tensors.items():
        if "_exps.weight" in key:
            document.tensors[key] = random_fp4(type_name, tensor.shape, random)
            scale = random.choice([0.5, 0.75, 1.25, 1.5], N_EXPERTS) if scaled else None
            if scale is not None:
                document.tensors[key.replace(".weight", ".scale")] = Stored.of(scale)
            same.tensors[key] = as_q8_0(document.tensors[key], scale)
        elif len(tensor.shape) == 2 and key.endswith(".weight") and "ffn_gate_inp" not in key:
            document.tensors[key] = same.tensors[key] = as_q8_0(tensor)
    return document, same


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
@pytest.mark.parametrize("name", EXPERTS)
def test_experts_in_mxfp4(name: str, instruction_set: str, tmp_path: Path) -> None:
    document, same = with_experts(name, "MXFP4", scaled=False)
    ids = np.array(tokens(40), np.int32)
    paths = document.write(tmp_path / "a.gguf"), same.write(tmp_path / "b.gguf")
    with session(paths[0], instruction_set) as a, session(paths[1], instruction_set) as b:
        found, wanted = evaluated(a, ids, N_VOCAB), evaluated(b, ids, N_VOCAB)
    # Products of integers with the same scales.
    assert difference(found, wanted) < (CUDA_ERROR[True] if instruction_set == "cuda" else 1e-12)


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
def test_scales_of_experts(instruction_set: str, tmp_path: Path) -> None:
    document, same = with_experts("qwen3moe", "NVFP4", scaled=True)
    with session(same.write(tmp_path / "b.gguf"), instruction_set) as opened:
        wanted = {tuple(pair): evaluated(opened, pair, N_VOCAB) for pair in pairs_of(N_VOCAB)}
    path = document.write(tmp_path / "a.gguf")
    check_errors(errors(path, instruction_set, N_VOCAB, lambda pair: wanted[tuple(pair)]), instruction_set)


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
def test_scales_of_matrices(instruction_set: str, tmp_path: Path) -> None:
    document, random = tiny_model("llama-q4_k").copy(), np.random.RandomState(6)
    exact = document.copy()
    for name, tensor in document.copy().tensors.items():
        if name.startswith("blk.") and len(tensor.shape) == 2:
            document.tensors[name] = matrix = random_fp4("NVFP4", tensor.shape, random)
            scale = np.float32(random.uniform(0.5, 2) / (matrix.values().std() * np.sqrt(WIDTH)))
            document.tensors[name.replace(".weight", ".scale")] = Stored.of(np.array([scale]))
            document.tensors[name.replace(".weight", ".input_scale")] = Stored.of(np.array([3.0]))  # read by nobody
            exact.tensors[name] = Known("NVFP4", matrix.shape, matrix.data, matrix.values() * float(scale))
    forward = Forward(exact, float16_cache=True, rounded_activations=True)
    n_vocab = document.tensors["token_embd.weight"].shape[0]
    check_errors(errors(document.write(tmp_path / "m.gguf"), instruction_set, n_vocab, forward.logits), instruction_set)


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
@pytest.mark.parametrize("type_name", ["F32", "NVFP4"])
@pytest.mark.parametrize("name", ["attn_output", "ffn_up", "ffn_down"])
def test_a_scale_beside_a_bias(name: str, type_name: str, instruction_set: str, tmp_path: Path) -> None:
    """A feed-forward's multiplies the bias, too, as in llama.cpp; but not beside NVFP4, where it belongs to the
    weights. Halves are exact: the weights may be them."""
    scaled, random = tiny_model("llama-q4_k").copy(), np.random.RandomState(8)
    rows, columns = scaled.tensors[f"blk.0.{name}.weight"].shape
    bias = random.standard_normal(rows).astype(np.float32)
    halved = scaled.copy()
    if type_name == "F32":
        matrix = random.standard_normal((rows, columns)).astype(np.float32)
        pair = Stored.of(matrix), Stored.of(matrix / 2)
    else:
        pair = halves_of_nvfp4(rows, columns, random)
    of_bias = 0.5 if name.startswith("ffn_") and type_name != "NVFP4" else 1
    for document, weights, factor in ((scaled, pair[0], 1), (halved, pair[1], of_bias)):
        document.tensors[f"blk.0.{name}.weight"] = weights
        document.tensors[f"blk.0.{name}.bias"] = Stored.of(bias * factor)
    scaled.tensors[f"blk.0.{name}.scale"] = Stored.of(np.array([0.5]))
    n_vocab, found = scaled.tensors["token_embd.weight"].shape[0], []
    for document in (scaled, halved):
        with session(document.write(tmp_path / "m.gguf"), instruction_set) as opened:
            found.append(evaluated(opened, np.arange(8, dtype=np.int32), n_vocab))
    assert np.array_equal(*found)


def halves_of_nvfp4(rows: int, columns: int, random: np.random.RandomState) -> tuple[Stored, Stored]:
    """A matrix, and its half: the exponents of the scales, above the three bits of their mantissas, are less by one."""
    blocks = random.randint(0, 256, (rows * columns // 64, 36)).astype(np.uint8)
    blocks[:, :4] = random.randint(24, 48, (len(blocks), 4))
    less = blocks.copy()
    less[:, :4] -= 8
    return Stored("NVFP4", (rows, columns), blocks.tobytes()), Stored("NVFP4", (rows, columns), less.tobytes())


def test_an_input_scale_without_a_matrix(tmp_path: Path) -> None:
    document = tiny_model("llama-q4_k").copy()
    document.tensors["blk.0.attn_x.input_scale"] = Stored.of(np.array([3.0]))
    path = document.write(tmp_path / "m.gguf")
    with pytest.raises(UnsupportedModelError, match=r"blk\.0\.attn_x\.input_scale"), session(path, INSTRUCTION_SETS[0]):
        pass
