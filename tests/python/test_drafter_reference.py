"""libbee's drafter against a plain NumPy forward, in double precision, of the weights in the same file.

The reference below is written from the definition of DFlash (arXiv 2602.06036), not from libbee. Its inputs are the
features that libbee taps from the target, so what is compared is the drafter alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from family_models import N_CTX, N_VOCAB, tokens
from gguf_document import ARRAY, BOOL, INT32, Document, Stored, Value, integer, number, text
from test_families import DEVICES, ERROR, drafter_for, target_of
from test_families import engine as tiny_engine

from bee_integrations.engine.device_plan import plan_memory
from bee_integrations.errors import DrafterMismatchError
from bee_integrations.library import check, ffi, lib, new_error
from bee_integrations.models.file import ModelFile
from bee_integrations.text.tokenizer import Tokenizer

Array = npt.NDArray[np.float64]
Change = Callable[[Document], Any]

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


def attention(query: Array, key: Array, value: Array, visible: Array, scale: float, sinks: Array | None) -> Array:
    """query: [rows][heads][size]; key, value: [positions][key-value heads][size]; visible: [rows][positions]; sinks:
    scores of no position, one for each head."""
    group = query.shape[1] // key.shape[1]
    key, value = np.repeat(key, group, axis=1), np.repeat(value, group, axis=1)
    scores = np.where(visible, np.einsum("rhd,phd->hrp", query, key) * scale, -np.inf)
    if sinks is not None:
        nowhere = np.broadcast_to(sinks[:, None, None], (*scores.shape[:2], 1))
        scores = np.concatenate([scores, nowhere], -1)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum("hrp,phd->rhd", weights[..., : len(key)], value).reshape(len(query), -1)


def activated(gate: Array, name: str) -> Array:
    if name == "silu":
        return gate / (1 + np.exp(-gate))
    return gate / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3)))


def reference_logits(drafter: Weights, target: Weights, features: Array, last_token: int, n_drafts: int) -> Array:
    """Logits of `n_drafts` masks after `last_token`: float64[n_drafts][n_draft_vocab].

    features: float64[positions][n_taps * n_embd], of all tokens before the last one.
    """
    about = {key.partition(".")[2]: value for key, value in drafter.metadata.items() if key.startswith("dflash.")}
    epsilon, base = about["attention.layer_norm_rms_epsilon"], about.get("rope.freq_base", 10000.0)
    size = about["attention.key_length"]
    scale = about.get("attention.scale", 0) or 1 / np.sqrt(size)
    windows = about.get("attention.sliding_window_pattern", [False] * about["block_count"])
    context = rms_norm(features @ drafter["fc.weight"].T, drafter["enc.output_norm.weight"], epsilon)
    block = [last_token] + [int(drafter.metadata["tokenizer.ggml.mask_token_id"])] * n_drafts
    own = "token_embd.weight" in drafter
    x = (drafter if own else target)["token_embd.weight"][block] * (about.get("embedding_scale", 0) or 1)
    before, here = np.arange(len(features)), len(features) + np.arange(len(block))

    for index in range(about["block_count"]):

        def weight(name: str, index: int = index) -> Array:
            return drafter[f"blk.{index}.{name}.weight"]

        def key_heads(rows: Array, positions: npt.NDArray[np.int64], weight: Any = weight) -> Array:
            heads = (rows @ weight("attn_k").T).reshape(len(rows), -1, size)
            return rope(rms_norm(heads, weight("attn_k_norm"), epsilon), positions, base)

        def value_heads(rows: Array, weight: Any = weight, index: int = index) -> Array:
            if f"blk.{index}.attn_v.weight" in drafter:
                return (rows @ weight("attn_v").T).reshape(len(rows), -1, size)
            shared = (rows @ weight("attn_k").T).reshape(len(rows), -1, size)
            return rms_norm(shared, np.ones(size), epsilon)

        def normed_if(name: str, rows: Array, weight: Any = weight, index: int = index) -> Array:
            has = f"blk.{index}.{name}.weight" in drafter
            return rms_norm(rows, weight(name), epsilon) if has else rows

        distance = here[:, None] - np.concatenate([before, here])
        visible = distance < about["attention.sliding_window"] if windows[index] else distance > -len(block)
        if about.get("attention.causal", False):
            visible &= distance >= 0
        h = rms_norm(x, weight("attn_norm"), epsilon)
        query = (h @ weight("attn_q").T).reshape(len(h), -1, size)
        query = rope(rms_norm(query, weight("attn_q_norm"), epsilon), here, base)
        key = np.concatenate([key_heads(context, before), key_heads(h, here)])
        value = np.concatenate([value_heads(context), value_heads(h)])
        sinks = weight("attn_sinks") if f"blk.{index}.attn_sinks.weight" in drafter else None
        o = attention(query, key, value, visible, scale, sinks) @ weight("attn_output").T
        x = x + normed_if("post_attention_norm", o * (about.get("attention.value_scale", 0) or 1))
        h = rms_norm(x, weight("ffn_norm"), epsilon)
        gate = activated(h @ weight("ffn_gate").T, about.get("hidden_activation", "silu"))
        x = x + normed_if("post_ffw_norm", (gate * (h @ weight("ffn_up").T)) @ weight("ffn_down").T)
        if f"blk.{index}.layer_output_scale.weight" in drafter:
            x = x * weight("layer_output_scale")

    hidden = rms_norm(x[1:], drafter["output_norm.weight"], epsilon)
    if "output.weight" in drafter:
        return hidden @ drafter["output.weight"].T
    whose = drafter if own else target
    head = whose["output.weight" if "output.weight" in whose else "token_embd.weight"]
    return hidden @ (head[drafter["d2t"]] if "d2t" in drafter else head).T


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


# ---- what drafters of other makers have ------------------------------------------------------------------------------


def keys(**content: Any) -> Change:
    def change(document: Document) -> None:
        values = {bool: lambda x: Value(BOOL, x), int: integer, float: number, str: text}
        for name, value in content.items():
            key = "dflash." + name.replace("__", ".")
            made = Value(ARRAY, value, type_of(value)) if isinstance(value, list) else values[type(value)](value)
            document.metadata[key] = made

    return change


def type_of(values: list[Any]) -> int:
    return BOOL if isinstance(values[0], bool) else INT32


def tensors(**shapes: tuple[int, ...]) -> Change:
    """More tensors; "layer_" in front of those of every layer."""

    def change(document: Document) -> None:
        for name, shape in shapes.items():
            of_layer = name.startswith("layer_")
            for place in ("blk.0.", "blk.1.") if of_layer else ("",):
                full = f"{place}{name.removeprefix('layer_')}.weight"
                values = np.random.default_rng(len(full)).standard_normal(shape)
                document.tensors[full] = Stored.of((1 + 0.3 * values if of_layer else values).astype(np.float32))

    return change


def shared_values(document: Document) -> None:
    for index in range(2):
        del document.tensors[f"blk.{index}.attn_v.weight"]


def reduced(document: Document) -> None:
    document.tensors["d2t"] = Stored.of(np.array([5, 3, 60, 7, 7]), "I64")


OPTIONS: dict[str, list[Change]] = {
    "nothing": [],
    "features of every layer of a hybrid": [
        keys(target_layers=[0, 1, 2, 3, 4]), lambda d: d.tensors.pop("fc.weight"), tensors(fc=(64, 320)),
    ],
    "a causal block": [keys(attention__causal=True)],
    "a window": [keys(attention__sliding_window=6, attention__sliding_window_pattern=[True, False])],
    "a window and a causal block": [
        keys(attention__sliding_window=3, attention__sliding_window_pattern=[False, True], attention__causal=True)
    ],
    "sections": [keys(rope__dimension_sections=[8, 0, 0, 0])],
    "sinks": [tensors(layer_attn_sinks=(4,))],
    "keys that are the values": [shared_values],
    "keys that are the values in one layer": [lambda d: d.tensors.pop("blk.1.attn_v.weight")],
    "scales": [keys(embedding_scale=3.0, attention__value_scale=1.5, attention__scale=0.4)],
    "scales that are ignored": [keys(logit_scale=0.5, final_logit_softcapping=2.0)],
    "another activation": [keys(hidden_activation="gelu_pytorch_tanh")],
    "norms and a scale behind": [
        tensors(layer_post_attention_norm=(64,), layer_post_ffw_norm=(64,), layer_layer_output_scale=(1,))
    ],
    "a reduced head": [reduced],
    "an embedding of its own": [tensors(token_embd=(64, 64))],
    "an embedding of its own, and a reduced head of it": [tensors(token_embd=(64, 64)), reduced],
    "all of it": [
        keys(attention__sliding_window=6, attention__sliding_window_pattern=[True, False], embedding_scale=2.0),
        keys(rope__dimension_sections=[8, 0, 0, 0], attention__value_scale=0.5, hidden_activation="gelu"),
        tensors(layer_attn_sinks=(4,), layer_post_attention_norm=(64,), layer_post_ffw_norm=(64,)), shared_values,
    ],
}  # fmt: skip


ON_CUDA = ("an embedding of its own, and a reduced head of it", "all of it") if "cuda" in DEVICES else ()


@pytest.mark.parametrize(
    ("device", "name", "option"),
    [*(("cpu", "qwen35", option) for option in OPTIONS), *(("cuda", "llama-yarn", option) for option in ON_CUDA)],
)
def test_options_of_drafters(device: str, name: str, option: str, tmp_path: Path) -> None:
    """Of floats, which nothing is rounded for but keys and values; on the CPU behind a hybrid that the features are
    taken from."""
    document = drafter_for(name)
    for change in OPTIONS[option]:
        change(document)
    paths = target_of(name).write(tmp_path / "model.gguf"), document.write(tmp_path / "drafter.gguf")
    target, drafter = map(Weights, paths)
    ids = tokens(60)
    n_rows = len(drafter["d2t"]) if "d2t" in drafter else N_VOCAB
    with tiny_engine(*paths, threads=1, device=device) as engine:
        error = new_error()
        found = lib.bee_session_open(engine, N_CTX, True, error)
        check(found, error)
        for n, n_drafts in ((59, 7), (2, 3), (30, 7)):
            run(found, ids[:n])
            features = features_of(found, n, drafter["fc.weight"].shape[1])
            _, logits = draft(found, ids[n], n_drafts, n_rows)
            expected = reference_logits(drafter, target, features, ids[n], n_drafts)
            assert ((logits - expected) ** 2).mean() < ERROR * (expected**2).mean(), (n, n_drafts)
        lib.bee_session_close(found)


def test_no_option_is_without_effect(tmp_path: Path) -> None:
    """What is compared above would be worth little otherwise."""
    target = Weights(target_of("qwen35").write(tmp_path / "model.gguf"))
    seen: dict[bytes, str] = {}
    for option, changes in OPTIONS.items():
        document = drafter_for("qwen35")
        for change in changes:
            change(document)
        drafter = Weights(document.write(tmp_path / "drafter.gguf"))
        features = np.random.default_rng(3).standard_normal((40, drafter["fc.weight"].shape[1]))
        logits = reference_logits(drafter, target, features, 9, 7)
        if option not in ("sections", "scales that are ignored"):
            assert seen.setdefault(logits.tobytes(), option) == option


def test_a_window_bounds_what_a_drafter_remembers(tmp_path: Path) -> None:
    """One of its two layers remembers the window and 512 positions more, in chunks of 128."""
    target = target_of("llama-yarn", n_ctx=1 << 16).write(tmp_path / "model.gguf")
    position = 2 * 2 * 2 * 16  # keys and values, two bytes, two heads of 16

    def taken(window: int) -> int:
        document = drafter_for("llama-yarn", window=window)
        document.metadata["dflash.context_length"] = integer(1 << 16)
        path = document.write(tmp_path / "drafter.gguf")
        with ModelFile(target) as model, ModelFile(path) as drafter:
            return (
                plan_memory(model, drafter, "cpu", 1 << 16).cache_bytes
                - plan_memory(model, None, "cpu", 1 << 16).cache_bytes
            )

    whole = (1 << 16) + 128  # a block behind the last position
    assert taken(0) == position * 2 * whole
    assert taken(6) == position * (whole + 640)


def test_a_tap_on_a_layer_that_is_not_there(tmp_path: Path) -> None:
    target = target_of("qwen35").write(tmp_path / "model.gguf")
    document = drafter_for("qwen35")
    document.metadata["dflash.target_layers"] = Value(ARRAY, [1, 5], INT32)
    path = document.write(tmp_path / "drafter.gguf")
    with pytest.raises(DrafterMismatchError, match=r"target_layers\[1\] is 5.* 0 to 4"), tiny_engine(target, path):
        pass
