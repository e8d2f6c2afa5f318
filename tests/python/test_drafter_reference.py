"""libbee's drafter against a plain NumPy forward, in double precision, of the weights in the same file.

The reference below is written from the definition of DFlash (arXiv 2602.06036), not from libbee. Its inputs are the
features that libbee taps from the target, so what is compared is the drafter alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from bee_integrations.library import check, ffi, lib, new_error
from bee_integrations.models.file import ModelFile
from bee_integrations.text.tokenizer import Tokenizer

Array = npt.NDArray[np.float64]

TEXTS = (
    "<|im_start|>user\nName three fruits.<|im_end|>\n<|im_start|>assistant\n1. Apple\n2. Banana\n3.",
    "The quick brown fox jumps over the lazy dog. The quick brown fox",
    "def add(a, b):\n    return a + b\n\ndef subtract(a, b):\n    return",
)
DRAFTS = 7
# libbee rounds activations to 8 bits before each product with a quantised matrix, the reference does not. A product of
# such vectors is off by about 1/127 of a typical term, and the drafter chains a dozen of them: 2 to 6% in the end.
LARGEST_ERROR = 0.1  # of the standard deviation of a row of logits, as a root mean square
MARGIN = 0.25  # in logits: where the reference's best token leads by this much, libbee must choose it too


class Weights:
    """Tensors of a GGUF file in float64, rows first."""

    def __init__(self, path: Path) -> None:
        with ModelFile(path) as file:
            self.metadata = dict(file.metadata)
            self._infos = {info.name: info for info in file.tensors}
        self._bytes = np.memmap(path, np.uint8, "r")

    def __contains__(self, name: str) -> bool:
        return name in self._infos

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        info = self._infos[name]
        data = self._bytes[info.offset : info.offset + info.size]
        shape = info.shape[::-1]
        if info.type_name == "Q8_0":
            blocks = data.view(np.dtype([("scale", "<f2"), ("quants", "i1", 32)]))
            return (blocks["scale"][:, None].astype(np.float64) * blocks["quants"]).reshape(shape)
        if info.type_name in ("Q4_1", "Q5_1"):
            fifth = [("fifth", "<u4")] if info.type_name == "Q5_1" else []
            blocks = data.view(np.dtype([("scale", "<f2"), ("minimum", "<f2"), *fifth, ("nibbles", "u1", 16)]))
            codes = np.concatenate([blocks["nibbles"] & 15, blocks["nibbles"] >> 4], axis=1).astype(np.float64)
            if fifth:
                codes += 16 * (blocks["fifth"][:, None] >> np.arange(32) & 1)
            return (blocks["scale"][:, None] * codes + blocks["minimum"][:, None]).reshape(shape)
        if info.type_name == "I64":
            return data.view("<i8").reshape(shape)
        return data.view({"F32": "<f4", "F16": "<f2"}[info.type_name]).reshape(shape).astype(np.float64)


def rms_norm(x: Array, gain: Array, epsilon: float) -> Array:
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + epsilon) * gain


def rope(x: Array, positions: npt.NDArray[np.int64], base: float) -> Array:
    """x: [rows][heads][size], NeoX layout: element i turns with element i + size / 2."""
    half = x.shape[-1] // 2
    angle = positions[:, None, None] * base ** (-np.arange(half) / half)
    low, high = x[..., :half], x[..., half:]
    return np.concatenate(
        [low * np.cos(angle) - high * np.sin(angle), high * np.cos(angle) + low * np.sin(angle)], axis=-1
    )


def attention(query: Array, key: Array, value: Array) -> Array:
    """query: [rows][heads][size]; key, value: [positions][key-value heads][size]. Every row sees every position."""
    group = query.shape[1] // key.shape[1]
    key, value = np.repeat(key, group, axis=1), np.repeat(value, group, axis=1)
    scores = np.einsum("rhd,phd->hrp", query, key) / np.sqrt(query.shape[-1])
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum("hrp,phd->rhd", weights, value).reshape(len(query), -1)


def reference_logits(drafter: Weights, target: Weights, features: Array, last_token: int, n_drafts: int) -> Array:
    """Logits of `n_drafts` masks after `last_token`: float64[n_drafts][n_draft_vocab].

    features: float64[positions][n_taps * n_embd], of all tokens before the last one.
    """
    about = {key.partition(".")[2]: value for key, value in drafter.metadata.items() if key.startswith("dflash.")}
    epsilon, base = about["attention.layer_norm_rms_epsilon"], about["rope.freq_base"]
    size = about["attention.key_length"]
    context = rms_norm(features @ drafter["fc.weight"].T, drafter["enc.output_norm.weight"], epsilon)
    block = [last_token] + [int(drafter.metadata["tokenizer.ggml.mask_token_id"])] * n_drafts
    x = target["token_embd.weight"][block]
    before, here = np.arange(len(features)), len(features) + np.arange(len(block))

    for index in range(about["block_count"]):

        def weight(name: str, index: int = index) -> Array:
            return drafter[f"blk.{index}.{name}.weight"]

        def key_heads(rows: Array, positions: npt.NDArray[np.int64], weight: Any = weight) -> Array:
            heads = (rows @ weight("attn_k").T).reshape(len(rows), -1, size)
            return rope(rms_norm(heads, weight("attn_k_norm"), epsilon), positions, base)

        h = rms_norm(x, weight("attn_norm"), epsilon)
        query = (h @ weight("attn_q").T).reshape(len(h), -1, size)
        query = rope(rms_norm(query, weight("attn_q_norm"), epsilon), here, base)
        key = np.concatenate([key_heads(context, before), key_heads(h, here)])
        value = (np.concatenate([context, h]) @ weight("attn_v").T).reshape(len(key), -1, size)
        x = x + attention(query, key, value) @ weight("attn_output").T
        h = rms_norm(x, weight("ffn_norm"), epsilon)
        gate = h @ weight("ffn_gate").T
        x = x + (gate / (1 + np.exp(-gate)) * (h @ weight("ffn_up").T)) @ weight("ffn_down").T

    hidden = rms_norm(x[1:], drafter["output_norm.weight"], epsilon)
    if "output.weight" in drafter:
        return hidden @ drafter["output.weight"].T
    head = target["output.weight" if "output.weight" in target else "token_embd.weight"]
    return hidden @ head[drafter["d2t"]].T


@pytest.fixture(scope="module")
def session(model_path: Path, drafter_path: Path) -> Iterator[Any]:
    error = new_error()
    engine = lib.bee_engine_open(str(model_path).encode(), str(drafter_path).encode(), ffi.NULL, error)
    check(engine, error)
    opened = lib.bee_session_open(engine, 256, True, error)
    check(opened, error)
    yield opened
    lib.bee_session_close(opened)
    lib.bee_engine_close(engine)


def run(session: Any, tokens: list[int]) -> None:
    error = new_error()
    check(lib.bee_session_evaluate(session, tokens, len(tokens), 16, ffi.NULL, error), error)


def features_of(session: Any, n: int, width: int) -> Array:
    out = np.empty((n, width), np.float32)
    error = new_error()
    check(lib.bee_session_features(session, 0, n, ffi.cast("float *", out.ctypes.data), error), error)
    return out.astype(np.float64)


def draft(session: Any, last_token: int, n: int, n_draft_vocab: int) -> tuple[npt.NDArray[np.int32], Array]:
    drafts, logits = np.empty(n, np.int32), np.empty((n, n_draft_vocab), np.float32)
    error = new_error()
    status = lib.bee_session_draft(
        session,
        last_token,
        n,
        ffi.cast("int32_t *", drafts.ctypes.data),
        ffi.cast("float *", logits.ctypes.data),
        error,
    )
    check(status, error)
    return drafts, logits.astype(np.float64)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("n_drafts", [DRAFTS, 2])
def test_logits_agree_with_the_reference(
    session: Any, model_path: Path, drafter_path: Path, text: str, n_drafts: int
) -> None:
    target, drafter = Weights(model_path), Weights(drafter_path)
    with ModelFile(model_path) as file:
        tokens = Tokenizer.from_model_file(file).encode(text)
    content, last = tokens[:-1], tokens[-1]
    run(session, content)
    features = features_of(session, len(content), drafter["fc.weight"].shape[1])
    drafts, logits = draft(session, last, n_drafts, len(drafter["d2t"]))

    expected = reference_logits(drafter, target, features, last, n_drafts)
    error = np.sqrt(((logits - expected) ** 2).mean(-1)) / expected.std(-1)
    assert error.max() < LARGEST_ERROR
    best_two = np.sort(expected, axis=-1)[:, -2:]
    clear = best_two[:, 1] - best_two[:, 0] > MARGIN
    assert np.array_equal(drafts[clear], drafter["d2t"][expected.argmax(-1)][clear])
    assert np.array_equal(drafts, drafter["d2t"][logits.argmax(-1)])


def test_the_reference_tells_wrong_inputs_apart(session: Any, model_path: Path, drafter_path: Path) -> None:
    # The comparison above would be worth nothing if other features gave nearly the same logits.
    target, drafter = Weights(model_path), Weights(drafter_path)
    with ModelFile(model_path) as file:
        tokens = Tokenizer.from_model_file(file).encode(TEXTS[0])
    run(session, tokens[:-1])
    features = features_of(session, len(tokens) - 1, drafter["fc.weight"].shape[1])
    right = reference_logits(drafter, target, features, tokens[-1], DRAFTS)
    shifted = reference_logits(drafter, target, np.roll(features, 1, axis=0), tokens[-1], DRAFTS)
    error = np.sqrt(((shifted - right) ** 2).mean(-1)) / right.std(-1)
    assert np.median(error) > 3 * LARGEST_ERROR
