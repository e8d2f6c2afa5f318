"""Make tests/golden/models/: tiny models with random weights, and the logits that llama.cpp computes with them.

    python tests/golden/make_tiny_models.py

Needs gguf and llama-cpp-python (0.19.0 and 0.3.36 made the committed files). The models are the same on every run. A
file NAME.npz holds, for the stored model NAME.gguf or for the variant NAME that tests/python/golden_models.py derives,
the SHA-256 of the model, the token sequences, and the logits at every position.

llama.cpp runs here with a float32 cache, without flash attention and without its repacked kernels: its plainest
arithmetic, so that what is left of a difference is due to the roundings that the file type itself calls for.
"""

from __future__ import annotations

import hashlib
import sys
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import gguf
import llama_cpp
import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType as Type

HERE = Path(__file__).resolve().parent
MODELS = HERE / "models"
sys.path.insert(0, str(HERE.parent / "python"))
import golden_models  # noqa: E402
from gguf_document import NAMES, serialised  # noqa: E402

Random = np.random.RandomState  # its streams are frozen, unlike those of numpy.random.Generator
Quantise = Callable[[Random, npt.NDArray[np.float32]], npt.NDArray[np.uint8]]

N_VOCAB = 264
SEQUENCE_LENGTHS = (40, 5)  # variants of a stored model are run on the first only
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>")
MERGES = ("Ġ t", "h e", "i n", "Ġt he")


# ---- vocabulary --------------------------------------------------------------------------------------


def byte_letters() -> list[str]:
    """The letter that byte-level BPE writes for each byte: the printable ones stand for themselves."""
    own = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in own else chr(next(others)) for byte in range(256)]


def add_vocabulary(writer: gguf.GGUFWriter) -> None:
    tokens = byte_letters() + [merge.replace(" ", "") for merge in MERGES] + list(SPECIALS)
    assert len(tokens) == N_VOCAB
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.NORMAL] * (N_VOCAB - 4) + [gguf.TokenType.CONTROL] * 4)
    writer.add_token_merges(list(MERGES))
    writer.add_bos_token_id(tokens.index("<|im_start|>"))
    writer.add_eos_token_id(tokens.index("<|im_end|>"))
    writer.add_pad_token_id(tokens.index("<|pad|>"))
    writer.add_add_bos_token(False)


# ---- random blocks of the K types --------------------------------------------------------------------
# The gguf package does not quantise to these, and random weights need no quantising: random codes with random scales
# are random weights. Scales reach over their whole range, so that every bit of their packing matters.


def half_bytes(values: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
    return values.astype("<f2")[:, None].view(np.uint8)


def six_bit_pairs(scales: npt.NDArray[np.uint8], minima: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    first = scales[:, :4] | scales[:, 4:] >> 4 << 6
    second = minima[:, :4] | minima[:, 4:] >> 4 << 6
    return np.concatenate([first, second, scales[:, 4:] & 15 | (minima[:, 4:] & 15) << 4], axis=1)


def random_k_blocks(bits: int) -> Quantise:
    def make(random: Random, like: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
        n, top = like.size // 256, 2**bits - 1
        scales = random.randint(4, 64, (n, 8)).astype(np.uint8)
        minima = np.clip(scales.astype(int) + random.randint(-6, 7, (n, 8)), 0, 63).astype(np.uint8)
        # A uniform code has a standard deviation of top / sqrt(12); the root mean square of the scales is 38.
        d = like.std() / (38 * top / np.sqrt(12)) * random.uniform(0.8, 1.2, n)
        codes = random.randint(0, 256, (n, (32 if bits == 5 else 0) + 128)).astype(np.uint8)
        return np.concatenate([half_bytes(d), half_bytes(d * top / 2), six_bit_pairs(scales, minima), codes], axis=1)

    return make


def random_q6_k(random: Random, like: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    n = like.size // 256
    scales = random.randint(-128, 128, (n, 16)).astype(np.int8).view(np.uint8)
    d = like.std() / (74 * 18.5) * random.uniform(0.8, 1.2, n)
    codes = random.randint(0, 256, (n, 192)).astype(np.uint8)
    return np.concatenate([codes, scales, half_bytes(d)], axis=1)


K_TYPES: dict[Type, Quantise] = {
    Type.Q4_K: random_k_blocks(4),
    Type.Q5_K: random_k_blocks(5),
    Type.Q6_K: random_q6_k,
}


# ---- models ------------------------------------------------------------------------------------------


class Builder:
    def __init__(self, name: str, architecture: str, seed: int) -> None:
        self.path = MODELS / f"{name}.gguf"
        self.writer = gguf.GGUFWriter(str(self.path), architecture)
        self.random = Random(seed)
        self.writer.add_name(name)
        self.writer.add_license("Apache-2.0")

    def vector(self, name: str, size: int) -> None:
        # Gains far from 1 and from each other: a norm that drops its gain must show.
        self.writer.add_tensor(name, self.random.uniform(0.5, 1.5, size).astype(np.float32))

    def matrix(self, name: str, rows: int, columns: int, deviation: float, type_: Type) -> None:
        values = (self.random.standard_normal((rows, columns)) * deviation).astype(np.float32)
        if type_ == Type.F32:
            self.writer.add_tensor(name, values)
            return
        make = K_TYPES.get(type_)
        data = make(self.random, values) if make else gguf.quantize(values, type_)
        self.writer.add_tensor(name, data.reshape(rows, -1), raw_dtype=type_)

    def close(self) -> None:
        self.writer.write_header_to_file()
        self.writer.write_kv_data_to_file()
        self.writer.write_tensors_to_file()
        self.writer.close()


def make_model(
    name: str, architecture: str, seed: int, *, n_layer: int, n_embd: int, n_ff: int, n_head: int, n_head_kv: int,
    head_size: int, type_of: Callable[[str], Type], tied: bool,
) -> None:  # fmt: skip
    build = Builder(name, architecture, seed)
    w = build.writer
    w.add_block_count(n_layer)
    w.add_context_length(256)
    w.add_embedding_length(n_embd)
    w.add_feed_forward_length(n_ff)
    w.add_head_count(n_head)
    w.add_head_count_kv(n_head_kv)
    w.add_layer_norm_rms_eps(1e-5)
    if head_size * n_head != n_embd:
        w.add_key_length(head_size)
        w.add_value_length(head_size)
    add_vocabulary(w)

    def matrix(tensor: str, rows: int, columns: int, gain: float) -> None:
        build.matrix(tensor, rows, columns, gain / columns**0.5, type_of(tensor))

    build.matrix("token_embd.weight", N_VOCAB, n_embd, 1.0 if not tied else 0.3, type_of("token_embd.weight"))
    for i in range(n_layer):
        build.vector(f"blk.{i}.attn_norm.weight", n_embd)
        # Queries and keys this large make attention choose, as trained models do.
        matrix(f"blk.{i}.attn_q.weight", n_head * head_size, n_embd, 1.5)
        matrix(f"blk.{i}.attn_k.weight", n_head_kv * head_size, n_embd, 1.5)
        matrix(f"blk.{i}.attn_v.weight", n_head_kv * head_size, n_embd, 1.0)
        if architecture == "qwen3":
            build.vector(f"blk.{i}.attn_q_norm.weight", head_size)
            build.vector(f"blk.{i}.attn_k_norm.weight", head_size)
        matrix(f"blk.{i}.attn_output.weight", n_embd, n_head * head_size, 1.0)
        build.vector(f"blk.{i}.ffn_norm.weight", n_embd)
        matrix(f"blk.{i}.ffn_gate.weight", n_ff, n_embd, 1.5)
        matrix(f"blk.{i}.ffn_up.weight", n_ff, n_embd, 1.5)
        matrix(f"blk.{i}.ffn_down.weight", n_embd, n_ff, 1.0)
    build.vector("output_norm.weight", n_embd)
    if not tied:
        matrix("output.weight", N_VOCAB, n_embd, 3.0)
    build.close()


def mixed_type(tensor: str) -> Type:
    """As llama.cpp's Q4_K_M chooses: more bits where it matters, other types where 256 does not divide the columns."""
    if tensor.endswith(("attn_v.weight", "token_embd.weight")):
        return Type.Q6_K
    if tensor.endswith("ffn_down.weight"):
        return Type.Q8_0 if tensor.startswith("blk.0") else Type.Q5_0
    if tensor.endswith("attn_output.weight"):
        return Type.Q5_0
    if tensor == "blk.1.attn_k.weight":
        return Type.F16
    return Type.Q5_K if tensor == "blk.0.attn_k.weight" else Type.Q4_K


def make_models() -> None:
    MODELS.mkdir(exist_ok=True)
    small = {"n_layer": 2, "n_head": 4, "n_head_kv": 2, "head_size": 16}
    make_model("llama-f32", "llama", 1, n_embd=64, n_ff=96, type_of=lambda _: Type.F32, tied=False, **small)
    # Widths that are no multiple of any vector's length, and heads wider than the model.
    make_model(
        "qwen3-f32", "qwen3", 2, n_layer=2, n_embd=72, n_ff=56, n_head=4, n_head_kv=1, head_size=32,
        type_of=lambda _: Type.F32, tied=True,
    )  # fmt: skip
    # 96 columns are an odd number of blocks of 32.
    for seed, type_ in enumerate((Type.Q8_0, Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q5_1), 10):
        make_model(
            f"llama-{type_.name.lower()}", "llama", seed, n_layer=1, n_embd=96, n_ff=96, n_head=6, n_head_kv=2,
            head_size=16, type_of=lambda _, t=type_: t, tied=True,
        )  # fmt: skip
    for seed, type_ in enumerate((Type.Q4_K, Type.Q5_K, Type.Q6_K), 20):
        make_model(
            f"llama-{type_.name.lower()}", "llama", seed, n_layer=1, n_embd=256, n_ff=256, n_head=4, n_head_kv=1,
            head_size=64, type_of=lambda _, t=type_: t, tied=True,
        )  # fmt: skip
    make_model(
        "llama-mixed", "llama", 30, n_layer=2, n_embd=256, n_ff=96, n_head=4, n_head_kv=1, head_size=32,
        type_of=mixed_type, tied=True,
    )  # fmt: skip


def check_decoders() -> None:
    """The tests' own decoding of every block format equals the gguf package's."""
    for name in golden_models.STORED:
        for tensor, stored in golden_models.stored(name).tensors.items():
            type_ = Type[stored.type_name]
            theirs = gguf.dequantize(np.frombuffer(stored.data, np.uint8).reshape(stored.shape[0], -1), type_)
            ours = stored.values().reshape(theirs.shape)
            assert np.allclose(theirs, ours, rtol=1e-6, atol=1e-7 * np.abs(ours).max()), (name, tensor)
            assert stored.type_name in NAMES.values()


# ---- golden logits -----------------------------------------------------------------------------------


def sequences() -> list[list[int]]:
    random = Random(0)
    return [random.randint(0, N_VOCAB, length).tolist() for length in SEQUENCE_LENGTHS]


def plain_kernels() -> None:
    """Repacked weights round otherwise, and differ from machine to machine."""
    defaults = llama_cpp.llama_cpp.llama_model_default_params

    def without_repacking() -> llama_cpp.llama_model_params:
        params = defaults()
        params.use_extra_bufts = False
        return params

    llama_cpp.llama_cpp.llama_model_default_params = without_repacking
    llama_cpp.llama_model_default_params = without_repacking


def llama_cpp_logits(path: Path, tokens: list[int]) -> npt.NDArray[np.float32]:
    llm = llama_cpp.Llama(
        str(path), n_ctx=64, n_batch=64, n_threads=1, logits_all=True, flash_attn=False, verbose=False,
        type_k=llama_cpp.GGML_TYPE_F32, type_v=llama_cpp.GGML_TYPE_F32,
    )  # fmt: skip
    llm.eval(tokens)
    out = np.array(llm.scores[: len(tokens)], np.float32)
    llm.close()
    return out


def make_golden(name: str, directory: Path) -> None:
    data = serialised(golden_models.tiny_model(name))
    path = directory / f"{name}.gguf"
    path.write_bytes(data)
    # Where llama.cpp rounds activations to 8 or 11 bits, 11 bits of a logit are enough.
    precise = name not in (*golden_models.QUANTISED, "llama-f16", "llama-bf16")
    arrays = {}
    for index, tokens in enumerate(sequences()[: 2 if name in golden_models.STORED else 1]):
        arrays[f"tokens_{index}"] = np.array(tokens, np.int32)
        arrays[f"logits_{index}"] = llama_cpp_logits(path, tokens).astype(np.float32 if precise else np.float16)
    versions = f"llama-cpp-python {llama_cpp.__version__}, gguf {version('gguf')}, numpy {np.__version__}"
    np.savez_compressed(MODELS / f"{name}.npz", sha256=hashlib.sha256(data).hexdigest(), made_with=versions, **arrays)


def main() -> None:
    make_models()
    check_decoders()
    plain_kernels()
    with tempfile.TemporaryDirectory() as directory:
        for name in golden_models.NAMES:
            make_golden(name, Path(directory))


if __name__ == "__main__":
    main()
