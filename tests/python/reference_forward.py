"""A plain forward of the architectures `llama` and `qwen3` in double precision, straight from their definitions."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from gguf_document import Array, Document


def rms_norm(x: Array, gain: Array, epsilon: float) -> Array:
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + epsilon) * gain


def rope_frequencies(document: Document, head_size: int) -> Array:
    """Radians per position of each pair of dimensions."""
    architecture = document.metadata["general.architecture"].content
    about = {key.removeprefix(architecture + "."): value.content for key, value in document.metadata.items()}
    n_rotated = about.get("rope.dimension_count", head_size)
    frequencies = about.get("rope.freq_base", 10000.0) ** (-np.arange(0, n_rotated, 2) / n_rotated)
    if about.get("rope.scaling.type", "linear") == "linear":
        frequencies /= about.get("rope.scaling.factor", about.get("rope.scale_linear", 1.0))
    if "rope_freqs.weight" in document.tensors:
        frequencies /= document.tensors["rope_freqs.weight"].values()
    return frequencies


def rotated(x: Array, frequencies: Array, neox: bool) -> Array:
    """x: [positions][heads][size]. NeoX turns dimension i with i + n / 2, otherwise 2 i turns with 2 i + 1."""
    half = len(frequencies)
    angle = np.arange(len(x))[:, None, None] * frequencies
    first, second = (slice(0, half), slice(half, 2 * half)) if neox else (slice(0, 2 * half, 2), slice(1, 2 * half, 2))
    out = x.copy()
    out[..., first] = x[..., first] * np.cos(angle) - x[..., second] * np.sin(angle)
    out[..., second] = x[..., first] * np.sin(angle) + x[..., second] * np.cos(angle)
    return out


def causal_attention(query: Array, key: Array, value: Array) -> Array:
    """[positions][heads][size]; each key-value head serves as many query heads as there are more of them."""
    group = query.shape[1] // key.shape[1]
    key, value = np.repeat(key, group, axis=1), np.repeat(value, group, axis=1)
    scores = np.einsum("rhd,phd->hrp", query, key) / np.sqrt(query.shape[-1])
    scores[:, ~np.tri(len(query), dtype=bool)] = -np.inf
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum("hrp,phd->rhd", weights, value).reshape(len(query), -1)


def rounded_to_8_bits(x: Array) -> Array:
    """Each group of 32 becomes multiples of a 127th of its largest magnitude."""
    padded = np.pad(x, [(0, 0), (0, -x.shape[-1] % 32)]).reshape(len(x), -1, 32)
    step = np.abs(padded).max(-1, keepdims=True) / 127
    codes = np.rint(np.divide(padded, step, out=np.zeros_like(padded), where=step > 0))
    return (codes * step).reshape(len(x), -1)[:, : x.shape[-1]]


class Forward:
    """The forward of one model. The two options add the roundings that libbee makes on purpose; everything else is
    exact but for the 53 bits of float64."""

    def __init__(self, document: Document, *, float16_cache: bool = False, rounded_activations: bool = False) -> None:
        self.document = document
        self.float16_cache, self.rounded_activations = float16_cache, rounded_activations
        self.about = {key.partition(".")[2]: value.content for key, value in document.metadata.items()}
        self.weights = {name: tensor.values() for name, tensor in document.tensors.items()}
        self.qwen3 = document.metadata["general.architecture"].content == "qwen3"
        self.epsilon = self.about["attention.layer_norm_rms_epsilon"]
        width, heads = self.about["embedding_length"], self.about["attention.head_count"]
        self.head_size = self.about.get("attention.key_length", width // heads)
        self.frequencies = rope_frequencies(document, self.head_size)

    def product(self, x: Array, name: str) -> Array:
        quantised = self.document.tensors[name].type_name not in ("F32", "F16", "BF16")
        if self.rounded_activations and quantised:
            x = rounded_to_8_bits(x)
        return x @ self.weights[name].T

    def norm(self, x: Array, name: str) -> Array:
        return rms_norm(x, self.weights[name], self.epsilon)

    def attention(self, x: Array, layer: str) -> Array:
        h = self.norm(x, f"{layer}.attn_norm.weight")
        query, key, value = (
            self.product(h, f"{layer}.attn_{part}.weight").reshape(len(h), -1, self.head_size) for part in "qkv"
        )
        if self.qwen3:
            query = self.norm(query, f"{layer}.attn_q_norm.weight")
            key = self.norm(key, f"{layer}.attn_k_norm.weight")
        query, key = rotated(query, self.frequencies, self.qwen3), rotated(key, self.frequencies, self.qwen3)
        if self.float16_cache:
            key, value = (part.astype(np.float16).astype(np.float64) for part in (key, value))
        return self.product(causal_attention(query, key, value), f"{layer}.attn_output.weight")

    def feed_forward(self, x: Array, layer: str) -> Array:
        h = self.norm(x, f"{layer}.ffn_norm.weight")
        gate = self.product(h, f"{layer}.ffn_gate.weight")
        hidden = gate / (1 + np.exp(-gate)) * self.product(h, f"{layer}.ffn_up.weight")
        return self.product(hidden, f"{layer}.ffn_down.weight")

    def logits(self, tokens: npt.NDArray[np.int32]) -> Array:
        """float64[tokens][vocabulary]"""
        x = self.weights["token_embd.weight"][tokens]
        for index in range(self.about["block_count"]):
            x = x + self.attention(x, f"blk.{index}")
            x = x + self.feed_forward(x, f"blk.{index}")
        head = "output.weight" if "output.weight" in self.weights else "token_embd.weight"
        return self.product(self.norm(x, "output_norm.weight"), head)
