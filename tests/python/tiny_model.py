"""A model and a drafter of a few hundred kilobytes with random weights, for tests that need no language.

The vocabulary is the 256 bytes, one merge and the ChatML markers, so that generated text is random bytes: whole
characters and broken ones.
"""

from __future__ import annotations

import gguf_document as gguf
import numpy as np
import numpy.typing as npt
from gguf_document import Document, Stored, Value, integer, number, text

N_EMBD, N_HEAD, N_HEAD_KV, HEAD_SIZE, N_FF, N_LAYER, N_CTX_TRAIN = 64, 4, 2, 16, 96, 2, 512
BLOCK_SIZE = 8
TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.role == 'tool' %}{{ raise_exception('tools are not for this model') }}{% endif %}"
    "<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}<|im_start|>assistant\n"
)


def byte_characters() -> list[str]:
    """GPT-2's spelling of the 256 bytes."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    shifted = {byte: 256 + index for index, byte in enumerate(b for b in range(256) if b not in printable)}
    return [chr(shifted.get(byte, byte)) for byte in range(256)]


VOCABULARY = [*byte_characters(), "ab", "<|im_start|>", "<|im_end|>"]
# The same without a token that could end a generation.
ENDLESS_VOCABULARY = [*byte_characters(), "ab", "<|left|>", "<|right|>"]


def model(
    seed: int = 1, *, vocabulary: list[str] | None = None, n_embd: int = N_EMBD, n_ctx: int = N_CTX_TRAIN
) -> Document:
    """A `llama` model whose files differ by seed, vocabulary, width or context length."""
    random = np.random.default_rng(seed)
    words = vocabulary or VOCABULARY
    document = Document(
        {
            "general.architecture": text("llama"),
            **_shape("llama", N_LAYER, n_embd, n_ctx),
            **_tokenizer(words),
            "tokenizer.chat_template": text(TEMPLATE),
        }
    )
    # Large enough for logits that spread over a few units, whatever the text.
    document.tensors["token_embd.weight"] = Stored.of(_normal(random, len(words), n_embd) * 0.7)
    document.tensors["output_norm.weight"] = Stored.of(np.ones(n_embd, np.float32))
    document.tensors["output.weight"] = Stored.of(_normal(random, len(words), n_embd) * 0.25)
    for index in range(N_LAYER):
        document.tensors |= _layer(random, index, n_embd, with_norms=False)
    return document


def drafter(seed: int = 2, *, vocabulary: list[str] | None = None, n_embd: int = N_EMBD) -> Document:
    """A DFlash drafter that fits `model` of the same vocabulary and width; untrained, so it is seldom right."""
    random = np.random.default_rng(seed)
    targets = [0, 1, 2]
    document = Document(
        {
            "general.architecture": text("dflash"),
            **_shape("dflash", 1, n_embd, N_CTX_TRAIN),
            **_tokenizer(vocabulary or VOCABULARY),
            "dflash.block_size": integer(BLOCK_SIZE),
            "dflash.target_layers": Value(gguf.ARRAY, targets, gguf.INT32),
            "tokenizer.ggml.mask_token_id": integer(0),
        }
    )
    document.tensors["fc.weight"] = Stored.of(_normal(random, n_embd, len(targets) * n_embd))
    document.tensors["enc.output_norm.weight"] = Stored.of(np.ones(n_embd, np.float32))
    document.tensors["output_norm.weight"] = Stored.of(np.ones(n_embd, np.float32))
    document.tensors |= _layer(random, 0, n_embd, with_norms=True)
    return document


def _normal(random: np.random.Generator, rows: int, columns: int) -> npt.NDArray[np.float32]:
    return random.standard_normal((rows, columns)).astype(np.float32)


def _layer(random: np.random.Generator, index: int, n_embd: int, *, with_norms: bool) -> dict[str, Stored]:
    query, key = N_HEAD * HEAD_SIZE, N_HEAD_KV * HEAD_SIZE
    shapes = {
        "attn_q": (query, n_embd),
        "attn_k": (key, n_embd),
        "attn_v": (key, n_embd),
        "attn_output": (n_embd, query),
        "ffn_gate": (N_FF, n_embd),
        "ffn_up": (N_FF, n_embd),
        "ffn_down": (n_embd, N_FF),
    }
    tensors = {name: Stored.of(_normal(random, *shape) / np.sqrt(shape[1])) for name, shape in shapes.items()}
    norms = {"attn_norm": n_embd, "ffn_norm": n_embd}
    if with_norms:
        norms |= {"attn_q_norm": HEAD_SIZE, "attn_k_norm": HEAD_SIZE}
    tensors |= {name: Stored.of(np.ones(size, np.float32)) for name, size in norms.items()}
    return {f"blk.{index}.{name}.weight": tensor for name, tensor in tensors.items()}


def _shape(prefix: str, n_layer: int, n_embd: int, n_ctx: int) -> dict[str, Value]:
    return {
        f"{prefix}.block_count": integer(n_layer),
        f"{prefix}.context_length": integer(n_ctx),
        f"{prefix}.embedding_length": integer(n_embd),
        f"{prefix}.feed_forward_length": integer(N_FF),
        f"{prefix}.attention.head_count": integer(N_HEAD),
        f"{prefix}.attention.head_count_kv": integer(N_HEAD_KV),
        f"{prefix}.attention.key_length": integer(HEAD_SIZE),
        f"{prefix}.attention.value_length": integer(HEAD_SIZE),
        f"{prefix}.attention.layer_norm_rms_epsilon": number(1e-5),
        f"{prefix}.rope.freq_base": number(10000.0),
    }


def _tokenizer(words: list[str]) -> dict[str, Value]:
    kinds = [3 if word.startswith("<|") else 1 for word in words]
    ends = {"tokenizer.ggml.eos_token_id": integer(words.index("<|im_end|>"))} if "<|im_end|>" in words else {}
    return {
        "tokenizer.ggml.model": text("gpt2"),
        "tokenizer.ggml.pre": text("gpt-2"),
        "tokenizer.ggml.tokens": Value(gguf.ARRAY, words, gguf.STRING),
        "tokenizer.ggml.token_type": Value(gguf.ARRAY, kinds, gguf.INT32),
        "tokenizer.ggml.merges": Value(gguf.ARRAY, ["a b"], gguf.STRING),
        **ends,
        "tokenizer.ggml.add_bos_token": Value(gguf.BOOL, False),
    }
