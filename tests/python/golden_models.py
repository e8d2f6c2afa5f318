"""The tiny models with random weights: the stored files, and the variants that are made from them by small changes.

Those in NAMES have golden logits of the same name beside the stored files (tests/golden/make_tiny_models.py).
llama.cpp turns all dimensions of a head or refuses the model, so that the partial rotations have none.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
from gguf_document import Document, Stored, integer, number, read, text

MODELS = Path(__file__).resolve().parent.parent / "golden" / "models"
QUANTISED = (
    "llama-q8_0", "llama-q4_0", "llama-q4_1", "llama-q5_0", "llama-q5_1", "llama-q4_k", "llama-q5_k", "llama-q6_k",
    "llama-mixed",
)  # fmt: skip
STORED = ("llama-f32", "qwen3-f32", *QUANTISED)


@lru_cache
def stored(name: str) -> Document:
    return read(MODELS / f"{name}.gguf")


def _tied() -> Document:
    document = stored("llama-f32").copy()
    del document.tensors["output.weight"]
    return document


def _untied_qwen3() -> Document:
    document = stored("qwen3-f32").copy()
    head = np.random.RandomState(3).standard_normal(document.tensors["token_embd.weight"].shape)
    document.tensors["output.weight"] = Stored.of(head / 3)
    return document


def _llama3_factors() -> Document:
    """As Llama 3.1: slow pairs are slowed eightfold, fast ones left, those between in between."""
    document = stored("llama-f32").copy()
    document.tensors["rope_freqs.weight"] = Stored.of(np.array([1, 1, 1.5, 2, 3.25, 5, 8, 8]))
    return document


def _with_metadata(name: str, **values: object) -> Document:
    """Keys are given with '__' for '.'."""
    document = stored(name).copy()
    architecture = document.metadata["general.architecture"].content
    for key, value in values.items():
        make = {str: text, int: integer, float: number}[type(value)]
        document.metadata[f"{architecture}.{key.replace('__', '.')}"] = make(value)
    return document


def _narrow_heads() -> Document:
    """Two heads of 16 in a model of width 64: the head size is not the width over the number of heads."""
    document = _with_metadata(
        "llama-f32", attention__head_count=2, attention__head_count_kv=1, attention__key_length=16,
        attention__value_length=16, rope__dimension_count=16,
    )  # fmt: skip
    for name, tensor in document.tensors.items():
        values = tensor.values()
        if "attn_q." in name:
            values = values[:32]
        elif "attn_k." in name or "attn_v." in name:
            values = values[:16]
        elif "attn_output." in name:
            values = values[:, :32]
        document.tensors[name] = Stored.of(values)
    return document


def _matrices_as(type_name: str) -> Document:
    document = stored("llama-f32").copy()
    for name, tensor in document.tensors.items():
        if len(tensor.shape) == 2:
            document.tensors[name] = Stored.of(tensor.values(), type_name)
    return document


DERIVED = {
    "llama-tied": _tied,
    "llama-f16": lambda: _matrices_as("F16"),
    "llama-bf16": lambda: _matrices_as("BF16"),
    "llama-rope-factors": _llama3_factors,
    "llama-rope-linear": lambda: _with_metadata("llama-f32", rope__scaling__type="linear", rope__scaling__factor=4.0),
    "llama-rope-untyped": lambda: _with_metadata("llama-f32", rope__scaling__factor=2.5),
    "llama-rope-old-key": lambda: _with_metadata("llama-f32", rope__scale_linear=2.0),
    "llama-rope-none": lambda: _with_metadata("llama-f32", rope__scaling__type="none", rope__scaling__factor=4.0),
    "llama-rope-base": lambda: _with_metadata("llama-f32", rope__freq_base=500000.0),
    "llama-narrow-heads": _narrow_heads,
    "qwen3-untied": _untied_qwen3,
}
PARTIALLY_ROTATED = {
    "llama-partial-rope": lambda: _with_metadata("llama-f32", rope__dimension_count=6),
    "qwen3-partial-rope": lambda: _with_metadata("qwen3-f32", rope__dimension_count=20),
}
NAMES = (*STORED, *DERIVED)


@lru_cache
def tiny_model(name: str) -> Document:
    """The model of that name; not to be changed, but to be copied."""
    return stored(name) if name in STORED else {**DERIVED, **PARTIALLY_ROTATED}[name]()
