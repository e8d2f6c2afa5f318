"""Every quantised weight type against ggml's own decoder (tests/golden/make_weight_blocks.py), through whole models.

A model of one layer that adds nothing is its embedding, its norm and its head. With the type in the embedding, and a
head that is the identity, its logits are the normed rows of the table. With the type in the head, and an embedding of
unit vectors, they are the head's weights one by one: a unit vector is rounded to 8 bits without an error.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from gguf_document import FLOAT32, Array, Document, Stored, Value
from golden_models import tiny_model
from test_architectures import INSTRUCTION_SETS, evaluated, session

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
