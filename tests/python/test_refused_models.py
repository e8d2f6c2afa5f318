"""Models and drafters that cannot be run are refused with the right exception and a message that names the field."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf_document import ARRAY, BOOL, INT32, STRING, UINT64, Document, Stored, Value, integer, number, text
from golden_models import tiny_model

from bee_integrations.errors import BeeError, DrafterMismatchError, ModelFormatError, UnsupportedModelError
from bee_integrations.library import check, ffi, lib, new_error
from bee_integrations.models.file import ModelFile

Change = Callable[[Document], None]
N_EMBD, N_FF, N_LAYER, N_VOCAB, HEAD_SIZE = 64, 96, 2, 264, 16  # of llama-f32


@contextmanager
def engine(model: Path, drafter: Path | None = None) -> Iterator[Any]:
    error = new_error()
    params = ffi.new("bee_engine_params *")
    params.n_threads = 1
    drafter_path = ffi.NULL if drafter is None else ffi.new("char[]", str(drafter).encode())
    opened = lib.bee_engine_open(str(model).encode(), drafter_path, params, error)
    check(opened, error)
    try:
        yield opened
    finally:
        lib.bee_engine_close(opened)


@contextmanager
def session(opened: Any) -> Iterator[Any]:
    error = new_error()
    made = lib.bee_session_open(opened, 64, False, error)
    check(made, error)
    try:
        yield made
    finally:
        lib.bee_session_close(made)


def opens(model: Path, drafter: Path | None = None) -> bool:
    with engine(model, drafter):
        return True


# ---- changes of a file -----------------------------------------------------------------------------------------------


def key(name: str, value: Value) -> Change:
    return lambda document: document.metadata.update({name: value})


def without(name: str) -> Change:
    def change(document: Document) -> None:
        del document.metadata[name]

    return change


def tensor(name: str, *shape: int, type_name: str = "F32") -> Change:
    """Adds or replaces a tensor; the shape begins with the rows."""
    return lambda document: document.tensors.update({name: Stored.zeros(type_name, shape)})


def without_tensor(name: str) -> Change:
    def change(document: Document) -> None:
        del document.tensors[name]

    return change


def ones(name: str, size: int, **others: float) -> Change:
    """A vector of ones, but for the entries given as _0=..."""
    values = np.ones(size)
    for index, value in others.items():
        values[int(index[1:])] = value
    return lambda document: document.tensors.update({name: Stored.of(values)})


def changed(document: Document, *changes: Change) -> Document:
    document = document.copy()
    for change in changes:
        change(document)
    return document


# ---- targets ---------------------------------------------------------------------------------------------------------

UNSUPPORTED = {
    "negative rope scale": (key("llama.rope.scaling.factor", number(-2.0)), "llama.rope.scaling.factor"),
    "not causal": (key("llama.attention.causal", Value(BOOL, False)), "llama.attention.causal"),
    "head size": (key("llama.attention.key_length", integer(24)), "llama.attention.key_length"),
    "derived head size beyond any kernel": (
        key("llama.embedding_length", integer(65536)),
        "llama.attention.key_length",
    ),
    "derived head size": (key("llama.attention.head_count", integer(8)), "llama.attention.key_length"),
    "other value size": (key("llama.attention.value_length", integer(32)), "llama.attention.value_length"),
    "uneven groups": (key("llama.attention.head_count_kv", integer(3)), "llama.attention.head_count_kv"),
    "odd rotation": (key("llama.rope.dimension_count", integer(15)), "llama.rope.dimension_count"),
    "rope base": (key("llama.rope.freq_base", number(0.0)), "llama.rope.freq_base"),
    "epsilon": (key("llama.attention.layer_norm_rms_epsilon", number(0.0)), "llama.attention.layer_norm_rms_epsilon"),
    "architecture": (key("general.architecture", text("mamba")), "'mamba'.*llama.*qwen3"),
    "fused projection": (tensor("blk.1.attn_qkv.weight", 2 * N_EMBD, N_EMBD), "'blk.1.attn_qkv.weight'"),
    "more layers than stated": (key("llama.block_count", integer(1)), r"'blk\.1\."),
    "integers as weights": (tensor("output.weight", N_VOCAB, N_EMBD, type_name="I64"), "'output.weight'.*I64"),
}
BROKEN = {
    "no architecture": (without("general.architecture"), "general.architecture"),
    "no layer count": (without("llama.block_count"), "llama.block_count"),
    "no epsilon": (
        without("llama.attention.layer_norm_rms_epsilon"), "llama.attention.layer_norm_rms_epsilon",
    ),
    "zero layers": (key("llama.block_count", integer(0)), "llama.block_count"),
    "zero heads": (key("llama.attention.head_count", integer(0)), "llama.attention.head_count"),
    "zero key-value heads": (key("llama.attention.head_count_kv", integer(0)), "llama.attention.head_count_kv"),
    "heads of each layer": (
        key("llama.attention.head_count_kv", Value(ARRAY, [2, 2, 2], INT32)), "llama.attention.head_count_kv",
    ),
    "huge width": (key("llama.embedding_length", integer(2**32 - 1)), "llama.embedding_length"),
    "width as text": (key("llama.embedding_length", text("64")), "llama.embedding_length"),
    "rotation beyond the head": (key("llama.rope.dimension_count", integer(32)), "llama.rope.dimension_count"),
    "infinite base": (key("llama.rope.freq_base", number(math.inf)), "llama.rope.freq_base"),
    "missing layer": (key("llama.block_count", integer(3)), r"'blk\.2\."),
    "missing tensor": (without_tensor("blk.1.ffn_up.weight"), "'blk.1.ffn_up.weight'"),
    "missing embedding": (without_tensor("token_embd.weight"), "'token_embd.weight'"),
    "transposed": (tensor("blk.0.ffn_down.weight", N_FF, N_EMBD), r"'blk.0.ffn_down.weight'.*\[96, 64\]"),
    "narrow embedding": (tensor("token_embd.weight", N_VOCAB, 32), "'token_embd.weight'.*32.*64"),
    "short head": (tensor("output.weight", N_VOCAB - 1, N_EMBD), "'output.weight'.*263.*264"),
    "query rows": (tensor("blk.1.attn_q.weight", 32, N_EMBD), "'blk.1.attn_q.weight'.*32.*64"),
    "key rows": (tensor("blk.1.attn_k.weight", N_EMBD, N_EMBD), r"'blk.1.attn_k.weight'.*\[64, 64\].*\[64, 32\]"),
    "short gain": (tensor("blk.0.attn_norm.weight", 32), "'blk.0.attn_norm.weight'.*32.*64"),
    "matrix as gain": (tensor("output_norm.weight", 2, N_EMBD), "'output_norm.weight'"),
    "three dimensions": (
        tensor("blk.0.attn_q.weight", 2, 32, N_EMBD), r"'blk.0.attn_q.weight': shape is \[64, 32, 2\].*\[64, 64\]",
    ),
    "short rope factors": (ones("rope_freqs.weight", 4), "'rope_freqs.weight'.*4.*8"),
}  # fmt: skip


def assert_refused(path: Path, exception: type[BeeError], pattern: str, drafter: Path | None = None) -> None:
    with pytest.raises(exception, match=pattern) as caught, engine(path, drafter):
        pass
    assert type(caught.value) is exception
    assert "\n" not in str(caught.value)


def assert_no_plan(path: Path, exception: type[BeeError], pattern: str) -> None:
    with ModelFile(path) as file, pytest.raises(exception, match=pattern):
        file.plan()


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model("llama-f32").write(tmp_path_factory.mktemp("target") / "target.gguf")


@pytest.mark.parametrize(("change", "pattern"), UNSUPPORTED.values(), ids=UNSUPPORTED)
def test_unsupported_models(change: Change, pattern: str, tmp_path: Path, target: Path) -> None:
    path = changed(tiny_model("llama-f32"), change).write(tmp_path / "changed.gguf")
    assert_refused(path, UnsupportedModelError, pattern)
    assert_no_plan(path, UnsupportedModelError, pattern)
    assert opens(target)


@pytest.mark.parametrize(("change", "pattern"), BROKEN.values(), ids=BROKEN)
def test_broken_models(change: Change, pattern: str, tmp_path: Path, target: Path) -> None:
    path = changed(tiny_model("llama-f32"), change).write(tmp_path / "changed.gguf")
    assert_refused(path, ModelFormatError, pattern)
    assert_no_plan(path, ModelFormatError, pattern)
    assert opens(target)


@pytest.mark.parametrize("factor", [0.0, -1.0, math.nan])
def test_a_rope_factor_that_is_no_divisor(factor: float, tmp_path: Path) -> None:
    document = changed(tiny_model("llama-f32"), ones("rope_freqs.weight", HEAD_SIZE // 2, _3=factor))
    assert_refused(document.write(tmp_path / "changed.gguf"), ModelFormatError, "'rope_freqs.weight'.*3")


@pytest.mark.parametrize("type_name", ["Q8_K", "I16"])
@pytest.mark.parametrize("name", ["blk.0.attn_q.weight", "token_embd.weight"])
def test_tensor_types_that_cannot_be_run(type_name: str, name: str, tmp_path: Path) -> None:
    document = tiny_model("llama-q4_k").copy()
    document.tensors[name] = Stored.zeros(type_name, document.tensors[name].shape)
    path = document.write(tmp_path / "changed.gguf")
    pattern = f"'{re.escape(name)}'.*{type_name}.*Q4_K.*IQ2_XXS"
    assert_refused(path, UnsupportedModelError, pattern)
    assert_no_plan(path, UnsupportedModelError, pattern)


@pytest.mark.parametrize("type_name", ["Q2_K", "Q8_0", "IQ4_NL"])
def test_norms_are_floats(type_name: str, tmp_path: Path) -> None:
    document = tiny_model("llama-q4_k").copy()
    name = "blk.0.ffn_norm.weight"
    document.tensors[name] = Stored.zeros(type_name, document.tensors[name].shape)
    assert_refused(document.write(tmp_path / "m.gguf"), UnsupportedModelError, f"'{re.escape(name)}'.*{type_name}.*F32")


def test_norms_of_qwen3_are_required(tmp_path: Path) -> None:
    document = changed(tiny_model("qwen3-f32"), without_tensor("blk.1.attn_k_norm.weight"))
    assert_refused(document.write(tmp_path / "changed.gguf"), ModelFormatError, "'blk.1.attn_k_norm.weight'")


@pytest.mark.parametrize(
    "change",
    [
        key("llama.expert_count", integer(0)),
        key("llama.attention.sliding_window", integer(256)),
        key("llama.attention.causal", Value(BOOL, True)),
        key("llama.rope.scaling.attn_factor", number(1.0)),
        key("llama.rope.scaling.type", text("none")),
    ],
    ids=["no experts", "window of the whole context", "causal", "unscaled attention", "unscaled rope"],
)
def test_keys_that_change_nothing_are_no_reason_to_refuse(change: Change, tmp_path: Path) -> None:
    path = changed(tiny_model("llama-f32"), change).write(tmp_path / "changed.gguf")
    assert opens(path)
    with ModelFile(path) as file:
        plan = file.plan()
    assert (plan.n_layer, plan.n_embd, plan.n_vocab) == (N_LAYER, N_EMBD, N_VOCAB)


# ---- drafters --------------------------------------------------------------------------------------------------------


def tiny_drafter(*, n_embd: int = N_EMBD, taps: tuple[int, ...] = (0, 2), mask: int = 5) -> Document:
    """One layer with random weights for llama-f32, whose head and embedding it shares."""
    random = np.random.RandomState(7)

    def matrix(rows: int, columns: int) -> Stored:
        return Stored.of(random.standard_normal((rows, columns)) / columns**0.5)

    tokens = tiny_model("llama-f32").metadata["tokenizer.ggml.tokens"]
    metadata = {
        "general.architecture": text("dflash"),
        "dflash.block_count": integer(1),
        "dflash.context_length": integer(256),
        "dflash.embedding_length": integer(n_embd),
        "dflash.feed_forward_length": integer(48),
        "dflash.attention.head_count": integer(2),
        "dflash.attention.head_count_kv": integer(1),
        "dflash.attention.key_length": integer(HEAD_SIZE),
        "dflash.attention.layer_norm_rms_epsilon": number(1e-5),
        "dflash.rope.freq_base": number(10000.0),
        "dflash.block_size": integer(8),
        "dflash.target_layers": Value(ARRAY, list(taps), INT32),
        "tokenizer.ggml.mask_token_id": integer(mask),
        "tokenizer.ggml.tokens": tokens,
    }
    vectors = {"attn_norm": n_embd, "ffn_norm": n_embd, "attn_q_norm": HEAD_SIZE, "attn_k_norm": HEAD_SIZE}
    matrices = {
        "attn_q": (2 * HEAD_SIZE, n_embd), "attn_k": (HEAD_SIZE, n_embd), "attn_v": (HEAD_SIZE, n_embd),
        "attn_output": (n_embd, 2 * HEAD_SIZE), "ffn_gate": (48, n_embd), "ffn_up": (48, n_embd),
        "ffn_down": (n_embd, 48),
    }  # fmt: skip
    tensors = {"fc.weight": matrix(n_embd, max(1, len(taps)) * n_embd)}
    tensors["enc.output_norm.weight"] = tensors["output_norm.weight"] = Stored.of(np.ones(n_embd))
    tensors |= {f"blk.0.{name}.weight": Stored.of(np.ones(size)) for name, size in vectors.items()}
    tensors |= {f"blk.0.{name}.weight": matrix(*shape) for name, shape in matrices.items()}
    return Document(metadata, tensors)


def other_tokens(change: Callable[[list[str]], None]) -> Change:
    def apply(document: Document) -> None:
        stored = document.metadata["tokenizer.ggml.tokens"]
        tokens = list(stored.content)
        change(tokens)
        document.metadata["tokenizer.ggml.tokens"] = replace(stored, content=tokens)

    return apply


def renamed_token(tokens: list[str]) -> None:
    tokens[100] += "x"


def reduced_head(*ids: int) -> Change:
    return lambda document: document.tensors.update({"d2t": Stored.of(np.array(ids, np.int64), "I64")})


def vocabulary_hash(document: Document) -> int:
    """FNV-1a over the number of tokens, then the length and bytes of each."""
    tokens = [token.encode() for token in document.metadata["tokenizer.ggml.tokens"].content]
    data = len(tokens).to_bytes(8, "little") + b"".join(len(t).to_bytes(8, "little") + t for t in tokens)
    value = 0xCBF29CE484222325
    for byte in data:
        value = (value ^ byte) * 0x100000001B3 % 2**64
    return value


def hash_instead_of_tokens(offset: int) -> Change:
    def change(document: Document) -> None:
        value = (vocabulary_hash(tiny_model("llama-f32")) + offset) % 2**64
        del document.metadata["tokenizer.ggml.tokens"]
        document.metadata["dflash.target_vocabulary_hash"] = Value(UINT64, value)

    return change


FITTING: dict[str, tuple[Document, int]] = {
    "whole vocabulary": (tiny_drafter(), N_VOCAB),
    "reduced vocabulary": (changed(tiny_drafter(), reduced_head(3, 250, 7, 7, 263)), 5),
    "head of its own": (changed(tiny_drafter(), tensor("output.weight", N_VOCAB, N_EMBD)), N_VOCAB),
    "embedding of its own": (changed(tiny_drafter(), tensor("token_embd.weight", N_VOCAB, N_EMBD)), N_VOCAB),
    "hash of the vocabulary": (changed(tiny_drafter(), hash_instead_of_tokens(0)), N_VOCAB),
    "last token as mask": (tiny_drafter(mask=N_VOCAB - 1), N_VOCAB),
    "sixteen taps": (tiny_drafter(taps=(0, 1, 2, 1) * 4), N_VOCAB),
}
UNFIT = {
    "hidden size": (tiny_drafter(n_embd=32), "embedding_length is 32, the target's is 64"),
    "vocabulary size": (
        changed(tiny_drafter(), key("dflash.vocab_size", integer(100))), "vocab_size is 100, the target's is 264",
    ),
    "fewer tokens": (
        changed(tiny_drafter(), other_tokens(lambda tokens: tokens.pop())),
        "vocabulary size is 263, the target's is 264",
    ),
    "other tokens": (changed(tiny_drafter(), other_tokens(renamed_token)), "vocabular"),
    "other order": (changed(tiny_drafter(), other_tokens(lambda tokens: tokens.reverse())), "vocabular"),
    "other hash": (changed(tiny_drafter(), hash_instead_of_tokens(1)), "vocabular"),
    "no vocabulary": (changed(tiny_drafter(), without("tokenizer.ggml.tokens")), "tokenizer.ggml.tokens"),
    "tap beyond the last layer": (tiny_drafter(taps=(1, 3)), r"dflash.target_layers\[1\] is 3.*0 to 2"),
    "negative tap": (tiny_drafter(taps=(-1, 1)), r"dflash.target_layers"),
    "mask beyond the vocabulary": (tiny_drafter(mask=N_VOCAB), "tokenizer.ggml.mask_token_id is 264.*0 to 263"),
}  # fmt: skip
BROKEN_DRAFTERS = {
    "no mask": (changed(tiny_drafter(), without("tokenizer.ggml.mask_token_id")), "tokenizer.ggml.mask_token_id"),
    "no taps": (tiny_drafter(taps=()), "dflash.target_layers"),
    "taps missing": (changed(tiny_drafter(), without("dflash.target_layers")), "dflash.target_layers"),
    "too many taps": (tiny_drafter(taps=(1,) * 17), "dflash.target_layers"),
    "block of one": (changed(tiny_drafter(), key("dflash.block_size", integer(1))), "dflash.block_size"),
    "fc for other taps": (
        changed(tiny_drafter(), tensor("fc.weight", N_EMBD, 3 * N_EMBD)), r"'fc.weight'.*192.*128",
    ),
    "short embedding": (
        changed(tiny_drafter(), tensor("token_embd.weight", 10, N_EMBD)), "'token_embd.weight'",
    ),
    "short head": (changed(tiny_drafter(), tensor("output.weight", 10, N_EMBD)), "'output.weight'.*10.*264"),
    "head and d2t of other sizes": (
        changed(tiny_drafter(), reduced_head(1, 2, 3), tensor("output.weight", 4, N_EMBD)), "'output.weight'.*4.*3",
    ),
    "d2t beyond the vocabulary": (changed(tiny_drafter(), reduced_head(1, N_VOCAB)), "'d2t': entry 1 is 264"),
    "negative d2t": (changed(tiny_drafter(), reduced_head(-1)), "'d2t': entry 0 is -1"),
    "d2t of floats": (changed(tiny_drafter(), ones("d2t", 3)), "'d2t'.*I64"),
    "missing norm": (changed(tiny_drafter(), without_tensor("blk.0.attn_q_norm.weight")), "'blk.0.attn_q_norm.weight'"),
}  # fmt: skip
UNSUPPORTED_DRAFTERS = {
    "a window without a pattern": (
        key("dflash.attention.sliding_window", integer(64)), "dflash.attention.sliding_window_pattern",
    ),
    "sections that are not turned": (
        key("dflash.rope.dimension_sections", Value(ARRAY, [4, 2, 1, 1], INT32)), "dflash.rope.dimension_sections",
    ),
    "activation": (key("dflash.hidden_activation", text("relu")), "dflash.hidden_activation"),
    "markov head": (tensor("markov_w1.weight", N_VOCAB, 8), "'markov_w1.weight'"),
}  # fmt: skip


def drafted(target: Path, drafter: Path) -> tuple[list[int], Any]:
    """Seven drafts after 13 tokens, and their logits."""
    error = new_error()
    with engine(target, drafter) as opened, session(opened) as made:
        info = ffi.new("bee_engine_info *")
        lib.bee_engine_describe(opened, info)
        assert (info.has_drafter, info.block_size) == (True, 8)
        check(lib.bee_session_evaluate(made, list(range(0, 260, 20)), 13, 16, ffi.NULL, error), error)
        drafts, logits = ffi.new("int32_t[7]"), np.empty((7, info.n_draft_vocab), np.float32)
        check(lib.bee_session_draft(made, 9, 7, drafts, ffi.cast("float *", logits.ctypes.data), error), error)
    assert np.isfinite(logits).all()
    return list(drafts), logits


@pytest.mark.parametrize(("document", "n_draft_vocab"), FITTING.values(), ids=FITTING)
def test_fitting_drafters_draft(document: Document, n_draft_vocab: int, target: Path, tmp_path: Path) -> None:
    # The refusals below would prove nothing if this drafter were refused unchanged.
    drafts, logits = drafted(target, document.write(tmp_path / "drafter.gguf"))
    assert logits.shape == (7, n_draft_vocab)
    reduced = document.tensors.get("d2t")
    best = logits.argmax(1)
    assert drafts == (np.frombuffer(reduced.data, "<i8")[best] if reduced else best).tolist()


@pytest.mark.parametrize("model", ["llama-f32", "llama-tied"])
def test_a_reduced_head_takes_the_rows_of_the_target(model: str, tmp_path: Path) -> None:
    target = tiny_model(model).write(tmp_path / "target.gguf")
    rows = [3, 250, 7, 7, 263]
    _, whole = drafted(target, tiny_drafter().write(tmp_path / "whole.gguf"))
    document = changed(tiny_drafter(), reduced_head(*rows))
    _, reduced = drafted(target, document.write(tmp_path / "reduced.gguf"))
    assert np.array_equal(reduced, whole[:, rows])


@pytest.mark.parametrize(("document", "pattern"), UNFIT.values(), ids=UNFIT)
def test_drafters_for_another_target(document: Document, pattern: str, target: Path, tmp_path: Path) -> None:
    path = document.write(tmp_path / "drafter.gguf")
    assert_refused(target, DrafterMismatchError, f"drafter.*{pattern}", path)
    assert opens(target)


@pytest.mark.parametrize(("document", "pattern"), BROKEN_DRAFTERS.values(), ids=BROKEN_DRAFTERS)
def test_broken_drafters(document: Document, pattern: str, target: Path, tmp_path: Path) -> None:
    assert_refused(target, ModelFormatError, pattern, document.write(tmp_path / "drafter.gguf"))
    assert opens(target)


@pytest.mark.parametrize(("change", "pattern"), UNSUPPORTED_DRAFTERS.values(), ids=UNSUPPORTED_DRAFTERS)
def test_unsupported_drafters(change: Change, pattern: str, target: Path, tmp_path: Path) -> None:
    path = changed(tiny_drafter(), change).write(tmp_path / "drafter.gguf")
    assert_refused(target, UnsupportedModelError, pattern, path)
    assert opens(target)


def test_a_target_is_no_drafter(target: Path) -> None:
    assert_refused(target, DrafterMismatchError, "not a DFlash drafter", target)


def test_a_drafter_is_no_model(tmp_path: Path) -> None:
    path = tiny_drafter().write(tmp_path / "drafter.gguf")
    assert_refused(path, UnsupportedModelError, "is a DFlash drafter")
    with ModelFile(path) as file:
        assert file.plan().is_drafter


def test_a_target_without_a_vocabulary_cannot_vouch_for_a_drafter(tmp_path: Path) -> None:
    model = changed(tiny_model("llama-f32"), without("tokenizer.ggml.tokens")).write(tmp_path / "target.gguf")
    drafter = tiny_drafter().write(tmp_path / "drafter.gguf")
    assert opens(model)
    assert_refused(model, DrafterMismatchError, "vocabular", drafter)


def test_tokens_of_another_type_are_no_vocabulary(target: Path, tmp_path: Path) -> None:
    document = changed(tiny_drafter(), key("tokenizer.ggml.tokens", Value(ARRAY, list(range(N_VOCAB)), INT32)))
    assert tiny_model("llama-f32").metadata["tokenizer.ggml.tokens"].element == STRING
    assert_refused(target, DrafterMismatchError, "tokenizer.ggml.tokens", document.write(tmp_path / "drafter.gguf"))
