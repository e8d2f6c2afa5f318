"""Every family of models: logits against llama.cpp's, the same bits however a pass is cut, and speculation that changes
nothing. The models are tiny and made from their names (family_models.py); golden logits: tests/golden/families.npz.

BEE_FAMILY_GENERATIONS=100 runs as many generations per family in place of a few; BEE_FAMILIES=all runs every test of
every family on CUDA, where an emulation takes long, in place of those that differ there.
"""

from __future__ import annotations

import ctypes
import os
import random
import re
import subprocess
import sys
import threading
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from family_models import CASES, LONG, LONG_CASES, N_CTX, N_POSITIONS, N_VOCAB, WINDOW, make, tokens
from gguf_document import ARRAY, BOOL, FLOAT32, INT32, STRING, Document, Stored, Value, integer, number, text
from tiny_model import VOCABULARY as BYTES

import bee_integrations
from bee_integrations.engine import Engine
from bee_integrations.engine import engine as engine_module
from bee_integrations.errors import BeeError, OutOfMemoryError
from bee_integrations.library import check, ffi, lib, new_error
from bee_integrations.models.file import KV_CACHES, ModelFile

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "families.npz"
ERROR = 1e-5  # normalised squared error: llama.cpp rounds queries, probabilities and F16 operands to half precision
GENERATIONS = int(os.environ.get("BEE_FAMILY_GENERATIONS", "5"))
Logits = npt.NDArray[np.float32]


def _devices() -> list[str]:
    card = ffi.new("bee_device_info *")
    return ["cpu", "cuda"] if lib.bee_device_describe(lib.BEE_DEVICE_CUDA, card, ffi.NULL) == lib.BEE_OK else ["cpu"]


DEVICES = _devices()  # "cuda" where there is a card, or an emulated one


def _with(*keys: str) -> list[str]:
    """Names of models whose files have one of these keys."""
    return [name for name in CASES if any(key.endswith(keys) for key in make(name).metadata)]


RECURRENT = _with("ssm.conv_kernel", "shortconv.l_cache")
MIXTURES = _with("expert_count")
# Among mixtures: shared experts, biases, activations, routings; among recurrent ones: delta net and gated heads,
# convolutions, Mamba-2 and experts without gates.
DIFFERENT = ("qwen2moe", "gpt-oss", "glm4moe", "qwen35", "lfm2", "nemotron_h_moe")
ON_CUDA = [
    name for name in CASES if name not in (*MIXTURES, *RECURRENT) or name in DIFFERENT or os.environ.get("BEE_FAMILIES")
]
# For what a pass is computed with, not what it computes: one of each kind of layer.
KINDS = [
    "llama-fused-qkv", "gemma2", "gemma3-softcap-pattern", "gemma4-embeddings-shared-caches", "phi3-long",
    "granite-without-positions", "olmo2", "glm4", "cohere2", "minicpm-scales", *DIFFERENT,
]  # fmt: skip
if os.environ.get("BEE_FAMILIES"):
    KINDS = [name for name in ON_CUDA if name != "exaone4-windows"]  # its 64 layers take long on an emulation


def of_devices(names: Any, on_cuda: Any = None) -> Any:
    """Parametrises a test with devices and names of models."""
    pairs = [
        (device, name) for device in DEVICES for name in (names if device == "cpu" or on_cuda is None else on_cuda)
    ]
    return pytest.mark.parametrize(("device", "name"), pairs)


@lru_cache
def golden() -> dict[str, Logits]:
    with np.load(GOLDEN) as stored:
        return dict(stored)


@contextmanager
def engine(
    path: Path,
    drafter: Path | None = None,
    threads: int = 2,
    instruction_set: str | None = None,
    device: str = "cpu",
    kv_cache: str = "f16",
) -> Iterator[Any]:
    error = new_error()
    name = ffi.new("char[]", instruction_set.encode()) if instruction_set else ffi.NULL
    on = lib.BEE_DEVICE_CUDA if device == "cuda" else lib.BEE_DEVICE_CPU
    params = ffi.new("bee_engine_params *", {"n_threads": threads, "device": on, "instruction_set": name})
    params.kv_type = KV_CACHES[kv_cache]
    handle = lib.bee_engine_open(bytes(path), bytes(drafter) if drafter else ffi.NULL, params, error)
    check(handle, error)
    yield handle
    lib.bee_engine_close(handle)


@contextmanager
def session(handle: Any, n_ctx: int = N_CTX, alone: bool = False) -> Iterator[Any]:
    """alone: it reads its prompts itself, whatever other sessions hold, as those do that keep features."""
    error = new_error()
    found = lib.bee_session_open(handle, n_ctx, alone, error)
    check(found, error)
    yield found
    lib.bee_session_close(found)


def evaluate(found: Any, ids: list[int], rows: int) -> Logits:
    error = new_error()
    out = np.empty((len(ids), N_VOCAB), np.float32)
    pointer = ffi.cast("float *", ffi.from_buffer(out))
    check(lib.bee_session_evaluate(found, ffi.new("int32_t[]", ids), len(ids), rows, pointer, error), error)
    return out


def logits(path: Path, ids: list[int], rows: int, n_ctx: int = N_CTX, **options: Any) -> Logits:
    with engine(path, **options) as handle, session(handle, n_ctx) as found:
        return evaluate(found, ids, rows)


def assert_like(found: Logits, expected: Logits) -> None:
    exact = expected.astype(np.float64)
    error = ((found - exact) ** 2).mean() / (exact**2).mean()
    assert error < ERROR
    top = np.sort(exact, axis=1)
    decisive = top[:, -1] - top[:, -2] > 8 * np.sqrt(error * (exact**2).mean())
    assert (found.argmax(1) == exact.argmax(1))[decisive].all()
    assert decisive.mean() > 0.5


@of_devices(CASES, on_cuda=ON_CUDA)
def test_logits(device: str, name: str, tmp_path: Path) -> None:
    ids = tokens()
    path = make(name).write(tmp_path / "f32.gguf")
    assert_like(logits(path, ids, 16, device=device)[WINDOW:], golden()[name])
    half = make(name, "F16").write(tmp_path / "f16.gguf")
    expected = golden()[f"{name} F16"]
    assert_like(logits(half, ids, 16, device=device)[-len(expected) :], expected)


# A plain family, windows, sinks, latent attention, recurrent layers, no positions.
IN_8_BITS = ("llama-fused-qkv", "gemma3", "gpt-oss", "deepseek2", "qwen35", "granite-without-positions")


@of_devices(IN_8_BITS, on_cuda=("gpt-oss", "deepseek2"))
def test_keys_and_values_in_8_bits(device: str, name: str, tmp_path: Path) -> None:
    """Near the logits with float16, but where a router chooses other experts; the same bits in passes of any size."""
    path, ids = make(name, "F16").write(tmp_path / "model.gguf"), tokens(N_POSITIONS if device == "cpu" else 44)
    exact, found = (logits(path, ids, 16, device=device, kv_cache=kv_cache) for kv_cache in ("f16", "q8_0"))
    errors = ((found - exact).astype(np.float64) ** 2).mean(1) / (exact.astype(np.float64) ** 2).mean(1)
    assert 1e-9 < np.median(errors) < 1e-3
    for rows in (1, 3, 11, len(ids)) if device == "cpu" else (1, len(ids)):
        other = logits(path, ids, rows, threads=1 + rows % 3, device=device, kv_cache="q8_0")
        assert other.tobytes() == found.tobytes(), rows


@pytest.mark.skipif("cuda" not in DEVICES, reason="needs a card, or an emulated one")
def test_cuda_refuses_gate_and_up_of_different_types(tmp_path: Path) -> None:
    document = make("qwen3moe", "F16")
    name = "blk.1.ffn_up_exps.weight"
    document.tensors[name] = Stored.of(document.tensors[name].values(), "BF16")
    with pytest.raises(BeeError, match=f"'{name}' have types F16 and BF16"):
        logits(document.write(tmp_path / "model.gguf"), tokens(), 16, device="cuda")


@of_devices(LONG_CASES, on_cuda=[name for name in LONG_CASES if name in KINDS])
def test_logits_beyond_what_windows_remember(device: str, name: str, tmp_path: Path) -> None:
    ids, expected = tokens(LONG), golden()[f"{name} long"]
    path = make(name, n_ctx=1024).write(tmp_path / "model.gguf")
    found = logits(path, ids, 128, n_ctx=1024, device=device)
    assert_like(found[-len(expected) :], expected)
    assert found.tobytes() == logits(path, ids, 7, n_ctx=1024, device=device).tobytes()


@pytest.mark.parametrize("name", CASES)
def test_same_bits_however_a_pass_is_cut(name: str, tmp_path: Path) -> None:
    path = make(name, "F16").write(tmp_path / "model.gguf")
    ids = tokens()
    sets = lib.bee_instruction_sets()
    for i in range(8):
        if sets[i] == ffi.NULL:
            break
        found = logits(path, ids, 16, instruction_set=ffi.string(sets[i]).decode())
        for rows in (1, 2, 3, 5, 11, 108):
            other = logits(path, ids, rows, threads=1 + rows % 3, instruction_set=ffi.string(sets[i]).decode())
            assert other.tobytes() == found.tobytes(), (ffi.string(sets[i]), rows)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.skipif("cuda" not in DEVICES, reason="needs a card, or an emulated one")
def test_same_bits_however_a_pass_is_cut_on_cuda(name: str, tmp_path: Path) -> None:
    path = make(name, "F16").write(tmp_path / "model.gguf")
    ids = tokens(44 if name in RECURRENT else N_POSITIONS)  # no window to leave, but more rows than are kept
    found = logits(path, ids, 16, device="cuda")
    for rows in (1, 3, len(ids)):
        assert logits(path, ids, rows, device="cuda").tobytes() == found.tobytes(), rows


# ---- speculation -----------------------------------------------------------------------------------------------------


VOCABULARY = Value(ARRAY, [f"token {i}" for i in range(N_VOCAB)], STRING)


def target_of(name: str, n_ctx: int = N_CTX) -> Document:
    document = make(name, n_ctx=n_ctx)
    document.metadata["tokenizer.ggml.tokens"] = VOCABULARY
    return document


def spoken(name: str) -> Document:
    """With a tokenizer, so that an engine opens it; it knows some of the bytes."""
    document = target_of(name)
    words = Value(ARRAY, [*BYTES[: N_VOCAB - 3], "a", "b", "ab"], STRING)
    document.metadata |= {
        "tokenizer.ggml.model": text("gpt2"), "tokenizer.ggml.pre": text("gpt-2"), "tokenizer.ggml.tokens": words,
        "tokenizer.ggml.merges": Value(ARRAY, ["a b"], STRING),
    }  # fmt: skip
    return document


def drafter_for(name: str, window: int = 0) -> Document:
    """A DFlash drafter of random weights; none of its drafts is better than chance."""
    target = make(name)
    architecture = target.metadata["general.architecture"].content
    predicted = target.metadata.get(f"{architecture}.nextn_predict_layers", integer(0)).content
    layers = target.metadata[f"{architecture}.block_count"].content - predicted
    keys = {
        "block_count": 2, "context_length": 1024, "embedding_length": 64, "feed_forward_length": 96,
        "vocab_size": N_VOCAB, "attention.head_count": 4, "attention.head_count_kv": 2, "attention.key_length": 16,
        "attention.value_length": 16, "block_size": 8,
    }  # fmt: skip
    document = Document({"general.architecture": text("dflash"), "tokenizer.ggml.mask_token_id": integer(3)})
    document.metadata |= {f"dflash.{key}": integer(value) for key, value in keys.items()}
    document.metadata["dflash.attention.layer_norm_rms_epsilon"] = number(1e-5)
    document.metadata["dflash.target_layers"] = Value(ARRAY, [1, layers], INT32)
    document.metadata["tokenizer.ggml.tokens"] = VOCABULARY
    if window:
        document.metadata["dflash.attention.sliding_window"] = integer(window)
        document.metadata["dflash.attention.sliding_window_pattern"] = Value(ARRAY, [True, False], BOOL)
    shapes: dict[str, tuple[int, ...]] = {"fc": (64, 128), "enc.output_norm": (64,), "output_norm": (64,)}
    for i in range(2):
        layer = {
            "attn_norm": (64,), "attn_q": (64, 64), "attn_k": (32, 64), "attn_v": (32, 64), "attn_output": (64, 64),
            "attn_q_norm": (16,), "attn_k_norm": (16,), "ffn_norm": (64,), "ffn_gate": (96, 64), "ffn_up": (96, 64),
            "ffn_down": (64, 96),
        }  # fmt: skip
        shapes |= {f"blk.{i}.{name}": shape for name, shape in layer.items()}
    for tensor, shape in shapes.items():
        values = np.random.RandomState(zlib.crc32(tensor.encode())).standard_normal(shape)
        values = 1 + 0.2 * values if len(shape) == 1 else values / np.sqrt(shape[1])
        document.tensors[f"{tensor}.weight"] = Stored.of(values.astype(np.float32))
    return document


def generate(
    handle: Any, found: Any, prompt: list[int], mode: int, length: int, temperature: float, seed: int, n: int
) -> list[int]:
    begin(found, prompt, mode, length, temperature, seed, n)
    error, step, out = new_error(), ffi.new("bee_step *"), []
    while step.finish == lib.BEE_FINISH_NONE:
        check(lib.bee_engine_step(handle, ffi.new("bee_session *[]", [found]), 1, step, error), error)
        out.extend(step.tokens[0 : step.n_tokens])
    return [int(token) for token in out]


def begin(found: Any, prompt: list[int], mode: int, length: int, temperature: float, seed: int, n: int) -> None:
    error = new_error()
    ids = ffi.new("int32_t[]", prompt)
    request = ffi.new("bee_request *", {"prompt": ids, "n_prompt": len(prompt), "max_tokens": n, "speculation": mode})
    request.draft_length = length
    request.sampling.temperature, request.sampling.top_p, request.sampling.seed = temperature, 1.0, seed
    request.penalties.repetition = 1.0
    check(lib.bee_session_begin(found, request, error), error)


def speculate(device: str, name: str, kv_cache: str, own_block: bool, tmp_path: Path) -> None:
    """Conversations that grow, go back and branch, with and without drafts, in sessions that remember them."""
    draw = random.Random(name)
    path = target_of(name).write(tmp_path / "model.gguf")
    drafter = drafter_for(name, window=draw.choice([0, 5])).write(tmp_path / "drafter.gguf")
    by_model = lib.BEE_SPECULATION_MTP if own_block else lib.BEE_SPECULATION_DFLASH
    modes = (by_model, lib.BEE_SPECULATION_COPY, lib.BEE_SPECULATION_AUTO)
    lengths = [-1, 1, 3, 5 if own_block else 7]
    rounds = GENERATIONS if device == "cpu" else (GENERATIONS + 3) // 4
    with (
        engine(path, None if own_block else drafter, device=device, kv_cache=kv_cache) as handle,
        session(handle, alone=True) as plain,
        session(handle) as drafting,
    ):
        history = tokens(20)
        for _ in range(rounds):
            temperature, seed, n = draw.choice([0, 0.3, 1, 1.5]), draw.getrandbits(48), draw.randint(1, 24)
            expected = generate(handle, plain, history, lib.BEE_SPECULATION_OFF, 0, temperature, seed, n)
            mode = draw.choice(modes)
            found = generate(handle, drafting, history, mode, draw.choice(lengths), temperature, seed, n)
            assert found == expected, (mode, temperature)
            history = [*(history + expected)[: draw.randint(5, 180)], draw.randrange(N_VOCAB)]


@of_devices(CASES, on_cuda=KINDS)
def test_speculation_changes_nothing(device: str, name: str, tmp_path: Path) -> None:
    speculate(device, name, "f16", False, tmp_path)


@of_devices((*IN_8_BITS, "deepseek2-predicting"), on_cuda=("gpt-oss",))
def test_speculation_in_8_bits_changes_nothing(device: str, name: str, tmp_path: Path) -> None:
    """Those of drafters, too: of DFlash, or of a block of the model's own."""
    speculate(device, name, "q8_0", name.endswith("predicting"), tmp_path)


TURNS = ((800, 1), (790, 2), (400, 3), (799, 4), (120, 5), (30, 6), (900, 7), (640, 8), (200, 9))  # tokens, the next


@of_devices(
    (*LONG_CASES, "qwen35", "lfm2-windows", "nemotron_h", "gemma3 in 8 bits"),
    on_cuda=["gemma3"] if os.environ.get("BEE_FAMILIES") else ["lfm2-windows"],
)
def test_going_back_further_than_a_window_remembers(device: str, name: str, tmp_path: Path) -> None:
    kv_cache = "q8_0" if name.endswith("8 bits") else "f16"
    name = name.partition(" ")[0]
    path = target_of(name, n_ctx=1024).write(tmp_path / "model.gguf")
    drafter = drafter_for(name, window=6).write(tmp_path / "drafter.gguf")
    text_ids = tokens(900)
    with engine(path, drafter, device=device, kv_cache=kv_cache) as handle, session(handle, 1024) as kept:
        for length, other in TURNS if device == "cpu" else TURNS[:4]:
            prompt = [*text_ids[:length], other]
            found = generate(handle, kept, prompt, lib.BEE_SPECULATION_DFLASH, 5, 0.8, length, 12)
            with session(handle, 1024, alone=True) as fresh:
                assert found == generate(handle, fresh, prompt, lib.BEE_SPECULATION_OFF, 0, 0.8, length, 12), length


def test_a_file_that_is_cut_or_overwritten_while_it_is_open(tmp_path: Path) -> None:
    """An engine has all of a model in memory of its own."""
    path = target_of("qwen2").write(tmp_path / "model.gguf")
    drafter = drafter_for("qwen2").write(tmp_path / "drafter.gguf")
    with engine(path, drafter) as handle, session(handle) as found:
        options = (lib.BEE_SPECULATION_DFLASH, 5, 0.9, 1, 20)
        expected = generate(handle, found, tokens(9), *options)
        path.write_bytes(os.urandom(path.stat().st_size))
        os.truncate(drafter, 100)
        generate(handle, found, tokens(30)[::-1], *options)  # so that nothing is reused
        assert generate(handle, found, tokens(9), *options) == expected


# ---- states that cannot be cut ---------------------------------------------------------------------------------------


def reused(found: Any) -> int:
    stats = ffi.new("bee_stats *")
    lib.bee_session_stats(found, stats)
    return int(stats.reused_tokens)


@pytest.mark.parametrize("name", ["qwen35", "lfm2"])
def test_a_long_prompt_cut_in_two_ways(name: str, tmp_path: Path) -> None:
    path, ids = make(name, n_ctx=4096).write(tmp_path / "model.gguf"), tokens(3000)
    found = logits(path, ids, 128, n_ctx=4096)
    assert np.isfinite(found).all()
    assert found.tobytes() == logits(path, ids, 9, n_ctx=4096, threads=1).tobytes()


# Tokens that are shared with the text so far, those that follow, and how many must be remembered.
BRANCHES = [(0, 2900, 0), (2900, 3, 2880), (2000, 40, 1488), (2035, 9, 2020), (100, 20, 0), (90, 5, 0), (88, 700, 75)]
FEW_BRANCHES = [(0, 60, 0), (60, 3, 40), (72, 9, 72), (62, 5, 45), (30, 9, 0)]


@of_devices(["qwen35", "lfm2", "granitehybrid"])
def test_states_are_saved_where_conversations_branch(device: str, name: str, tmp_path: Path) -> None:
    """A prompt that differs goes on from the last place before the difference at which states were saved: a few tokens
    before the end of a prompt, or one of every 512; and always as if it had been read from the beginning."""
    path, ids = target_of(name, n_ctx=4096).write(tmp_path / "model.gguf"), tokens(3000)
    off = (lib.BEE_SPECULATION_OFF, 0, 0.8, 1, 20 if device == "cpu" else 10)
    with engine(path, device=device) as handle, session(handle, 4096) as kept:
        history: list[int] = []
        for shared, more, least in BRANCHES if device == "cpu" else FEW_BRANCHES:
            prompt = history[:shared] + [token ^ shared % 61 for token in ids[:more]]
            found = generate(handle, kept, prompt, *off)
            assert least <= reused(kept) <= shared
            with session(handle, 4096, alone=True) as fresh:
                assert found == generate(handle, fresh, prompt, *off)
            history = prompt + found


@of_devices(["lfm2"], on_cuda=["lfm2"] if os.environ.get("BEE_FAMILIES") else [])
def test_states_are_saved_in_the_middle_of_an_answer(device: str, name: str, tmp_path: Path) -> None:
    """On a device a cycle is not queued ahead of the one behind which a state is saved."""
    path = target_of(name, n_ctx=1024).write(tmp_path / "model.gguf")
    off = (lib.BEE_SPECULATION_OFF, 0, 0.8, 1)
    with engine(path, device=device) as handle, session(handle, 1024) as kept:
        answer = generate(handle, kept, tokens(9), *off, 620)
        prompt = [*tokens(9), *answer[:560], answer[560] ^ 1]
        found = generate(handle, kept, prompt, *off, 9)
        assert 512 <= reused(kept) <= 569
        with session(handle, 1024, alone=True) as fresh:
            assert found == generate(handle, fresh, prompt, *off, 9)


@pytest.mark.parametrize("name", ["qwen35", "lfm2", "nemotron_h"])
def test_cancelled_in_the_middle_of_a_pass(name: str, tmp_path: Path) -> None:
    """Some layers have then read rows that others have not."""
    draw, path = random.Random(name), target_of(name, n_ctx=1024).write(tmp_path / "model.gguf")
    drafter, ids, ended = drafter_for(name).write(tmp_path / "drafter.gguf"), tokens(1000), 0
    with engine(path, drafter) as handle, session(handle, 1024) as kept:
        for i in range(12):
            prompt = [*ids[: draw.randint(20, 900)], i]
            timer = threading.Timer(draw.uniform(0.001, 0.02), lib.bee_session_cancel, [kept])
            timer.start()
            cut = generate(handle, kept, prompt, lib.BEE_SPECULATION_COPY, -1, 0, 1, 100)
            timer.join()
            ended += len(cut) < 100
            prompt = [*(prompt + cut)[: draw.randint(20, 900)], i]
            found = generate(handle, kept, prompt, lib.BEE_SPECULATION_AUTO, -1, 0.7, i, 12)
            with session(handle, 1024, alone=True) as fresh:
                assert found == generate(handle, fresh, prompt, lib.BEE_SPECULATION_OFF, 0, 0.7, i, 12)
    assert ended


def generate_together(
    handle: Any, found: list[Any], prompts: list[list[int]], mode: int, length: int, temperature: float, n: int
) -> list[list[int]]:
    """Of sessions whose rows share their passes."""
    out: list[list[int]] = [[] for _ in prompts]
    for prompt, one in zip(prompts, found, strict=True):
        begin(one, prompt, mode, length, temperature, 1, n)
    running = list(range(len(prompts)))
    while running:
        steps = ffi.new("bee_step[]", len(running))
        error = new_error()
        together = ffi.new("bee_session *[]", [found[i] for i in running])
        check(lib.bee_engine_step(handle, together, len(running), steps, error), error)
        for i, step in zip(running, steps, strict=True):
            out[i].extend(int(token) for token in step.tokens[0 : step.n_tokens])
        running = [i for i, step in zip(running, steps, strict=True) if step.finish == lib.BEE_FINISH_NONE]
    return out


@pytest.mark.parametrize("device", DEVICES)
def test_sessions_in_company(device: str, tmp_path: Path) -> None:
    """Rows of several sessions in one pass, each with its own state."""
    path = target_of("qwen35").write(tmp_path / "model.gguf")
    prompts = [tokens(30), tokens(41)[::-1], tokens(60)[7:9], [*tokens(50), 5]]
    n = 30 if device == "cpu" else 8
    with engine(path, device=device) as handle, ExitStack() as stack:
        found = [stack.enter_context(session(handle)) for _ in prompts]
        expected = [generate(handle, found[0], prompt, lib.BEE_SPECULATION_OFF, 0, 0.9, 1, n) for prompt in prompts]
        assert generate_together(handle, found, prompts, lib.BEE_SPECULATION_COPY, -1, 0.9, n) == expected


# ---- beginnings that sessions share ----------------------------------------------------------------------------------


def shared(found: Any) -> int:
    stats = ffi.new("bee_stats *")
    lib.bee_session_stats(found, stats)
    assert stats.shared_tokens <= stats.reused_tokens
    return int(stats.shared_tokens)


SHARING = ("qwen2", "gemma2", "gemma3", "gemma4-embeddings-shared-caches", "phi3-long", "qwen35", "lfm2-windows",
           "nemotron_h", "deepseek2", "gpt-oss")  # fmt: skip


def assert_shared(handle: Any, prompts: list[list[int]], common: int, mode: int, n_ctx: int, n: int) -> None:
    """Requests made at once: the first reads what all begin with, the others take it over, and all get what they get
    alone."""
    with session(handle, n_ctx, alone=True) as one:
        expected = [generate(handle, one, prompt, lib.BEE_SPECULATION_OFF, 0, 0.9, 1, n) for prompt in prompts]
    with ExitStack() as stack:
        found = [stack.enter_context(session(handle, n_ctx)) for _ in prompts]
        assert generate_together(handle, found, prompts, mode, -1, 0.9, n) == expected
        assert [shared(one) for one in found] == [0] + [common] * (len(prompts) - 1)


@of_devices(SHARING, on_cuda=["gemma3", "lfm2-windows"])
def test_beginnings_are_shared(device: str, name: str, tmp_path: Path) -> None:
    """Beyond what a window remembers, too."""
    n_ctx = 1024
    path = target_of(name, n_ctx=n_ctx).write(tmp_path / "model.gguf")
    drafter = drafter_for(name, window=6).write(tmp_path / "drafter.gguf")
    text_ids, common, n = tokens(900), 700 if device == "cpu" else 110, 12 if device == "cpu" else 4
    prompts = [[*text_ids[:common], i, *text_ids[: 7 * i]] for i in range(4 if device == "cpu" else 2)]
    with engine(path, drafter, device=device) as handle:
        for mode in (lib.BEE_SPECULATION_OFF, lib.BEE_SPECULATION_DFLASH)[: 2 if device == "cpu" else 1]:
            assert_shared(handle, prompts, common, mode, n_ctx, n)


def test_what_a_window_forgot_is_read_again(tmp_path: Path) -> None:
    path = target_of("gemma3", n_ctx=2048).write(tmp_path / "model.gguf")
    ids, off = tokens(1500), (lib.BEE_SPECULATION_OFF, 0, 0.9, 1, 8)
    with engine(path) as handle, session(handle, 2048) as first, session(handle, 2048) as second:
        with session(handle, 2048, alone=True) as one:
            expected = {n: generate(handle, one, [*ids[:n], 1], *off) for n in (300, 1400)}
        generate(handle, first, ids, *off)
        for n, found in ((300, 0), (1400, 1400 - 300)):
            assert generate(handle, second, [*ids[:n], 1], *off) == expected[n]
            assert shared(second) == found


def test_states_are_taken_over_where_they_were_saved(tmp_path: Path) -> None:
    """A new conversation begins as one that has ended: states cannot be cut, so it goes on from the last saved one."""
    path = target_of("qwen35", n_ctx=2048).write(tmp_path / "model.gguf")
    ids, off = tokens(1500), (lib.BEE_SPECULATION_OFF, 0, 0.9, 1, 8)
    with engine(path) as handle, session(handle, 2048) as first, session(handle, 2048) as second:
        generate(handle, first, ids, *off)
        prompt = [*ids[:1300], 1]
        with session(handle, 2048, alone=True) as one:
            expected = generate(handle, one, prompt, *off)
        assert generate(handle, second, prompt, *off) == expected
        assert 700 < shared(second) <= 1300


def test_angles_that_depend_on_the_context_are_not_mixed(tmp_path: Path) -> None:
    path = target_of("phi3-long", n_ctx=1024).write(tmp_path / "model.gguf")
    ids, off = tokens(200), (lib.BEE_SPECULATION_OFF, 0, 0.9, 1, 8)
    with engine(path) as handle, session(handle, 1024) as first, session(handle, 256) as second:
        generate(handle, first, ids, *off)
        found = generate(handle, second, ids, *off)
        assert shared(second) == 0
        with session(handle, 256, alone=True) as one:
            assert generate(handle, one, ids, *off) == found


# ---- memory ----------------------------------------------------------------------------------------------------------


def planned(path: Path, n_ctx: int, device: int = lib.BEE_DEVICE_CPU, kv_type: int = lib.BEE_KV_F16) -> Any:
    error = new_error()
    file = lib.bee_file_open(bytes(path), error)
    check(file, error)
    plan = ffi.new("bee_memory_plan *")
    check(lib.bee_plan_memory(file, ffi.NULL, device, n_ctx, kv_type, plan, error), error)
    lib.bee_file_close(file)
    return plan


class HeapSizes(ctypes.Structure):
    """glibc's struct mallinfo2."""

    _fields_ = [(name, ctypes.c_size_t) for name in (*"0123456", "used", *"89")]


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="the C library does not count what is taken")
def test_plans_leave_nothing_behind(tmp_path: Path) -> None:
    """A mixture has an array for each matrix of a layer."""
    library = ctypes.CDLL(None)
    library.mallinfo2.restype = HeapSizes
    with ModelFile(make("qwen3moe").write(tmp_path / "model.gguf")) as file:
        file.plan()
        before = library.mallinfo2().used
        for _ in range(300):
            file.plan()
        assert library.mallinfo2().used - before < 50_000


def cache_bytes(path: Path, n_ctx: int) -> int:
    return int(planned(path, n_ctx).cache_bytes)


def test_a_window_bounds_the_cache(tmp_path: Path) -> None:
    """Six of seven layers remember a window of 8 and 512 positions more, in chunks of 128."""
    path = make("gemma3", n_ctx=8192).write(tmp_path / "model.gguf")
    position = 2 * 2 * 2 * 16  # keys and values, two bytes, two heads of 16
    assert cache_bytes(path, 8192) == position * (8192 + 6 * 640)
    assert cache_bytes(path, 256) == position * 7 * 256


@pytest.mark.parametrize("name", ["qwen35", "lfm2", "qwen35-listed-predicting"])
@pytest.mark.skipif("cuda" not in DEVICES, reason="needs a card, or an emulated one")
def test_the_plan_counts_states_on_cuda(name: str, tmp_path: Path) -> None:
    path, error = target_of(name).write(tmp_path / "model.gguf"), new_error()
    card = ffi.new("bee_device_info *")

    def free() -> int:
        check(lib.bee_device_describe(lib.BEE_DEVICE_CUDA, card, error), error)
        return int(card.free_bytes)

    before, plan = free(), planned(path, N_CTX, lib.BEE_DEVICE_CUDA)
    with engine(path, device="cuda") as handle, session(handle) as found:
        generate(handle, found, tokens(20), lib.BEE_SPECULATION_AUTO, -1, 0, 1, 5)
        one = free()
        assert before - one <= plan.total_bytes
        with session(handle):
            held = one - free()
    # Keys, values, states, the rows kept for them and the saved ones; what one cycle leaves for the next, and features
    # that wait for a block that predicts.
    assert plan.cache_bytes <= held <= plan.cache_bytes + (1 << 16)


def test_keys_and_values_in_8_bits_take_half(tmp_path: Path) -> None:
    """And a scale for every 32 dimensions of a head, or for 16 of them; states stay what they are."""
    for name in ("llama-fused-qkv", "qwen35"):
        path = make(name, n_ctx=1024).write(tmp_path / f"{name}.gguf")
        f16, q8_0 = (
            [planned(path, n, kv_type=kv_type).cache_bytes for n in (256, 1024)] for kv_type in KV_CACHES.values()
        )
        assert f16[1] - f16[0] > 0
        assert (q8_0[1] - q8_0[0]) / (f16[1] - f16[0]) in (18 / 32, 34 / 64)
        assert f16[0] - q8_0[0] == (f16[1] - q8_0[1]) / 4


def test_states_do_not_grow_with_the_context(tmp_path: Path) -> None:
    """Three recurrent layers of four: each has 3 rows of 160 inputs and 6 states of 16 x 16 floats, and saves eight
    more of both, beside 16 rows of 160 inputs, and of 6 rates and steps in places of 16."""
    path = make("qwen35", n_ctx=8192).write(tmp_path / "model.gguf")
    position = 2 * 2 * 2 * 32  # keys and values of the layer that attends
    states = 3 * 4 * (9 * (3 * 160 + 6 * 16 * 16) + 16 * (160 + 2 * 16))
    assert cache_bytes(path, 256) == position * 256 + states
    assert cache_bytes(path, 8192) == position * 8192 + states


LARGE_STATES = """
import resource, sys
from pathlib import Path
from bee_integrations.bench.synthetic_model import DeltaNet, Shape, write_target
from bee_integrations.errors import OutOfMemoryError
from bee_integrations.library import check, ffi, lib, new_error
from bee_integrations.models.file import ModelFile
sizes = Shape("qwen35", 4, 256, 512, 4, 2, 64, 320, "Q4_K", "Q6_K", "Q6_K", DeltaNet(4, 64, state_size=512))
path = write_target(sizes, Path(sys.argv[1]) / "model.gguf")
error = new_error()
params = ffi.new("bee_engine_params *", {"n_threads": 1, "made_up_weights": True})
engine = lib.bee_engine_open(bytes(path), ffi.NULL, params, error)
check(engine, error)
held = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
most = resource.getrlimit(resource.RLIMIT_AS)
resource.setrlimit(resource.RLIMIT_AS, (held + (300 << 20), most[1]))  # for the states, not for those that are saved
try:
    check(lib.bee_session_open(engine, 64, False, error), error)
except OutOfMemoryError as refused:
    print(refused)
resource.setrlimit(resource.RLIMIT_AS, most)
session = lib.bee_session_open(engine, 64, False, error)
check(session, error)
check(lib.bee_session_evaluate(session, [1, 2, 3], 3, 3, ffi.NULL, error), error)
print("and it runs")
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits of memory are Linux's")
def test_states_for_which_there_is_no_memory(tmp_path: Path) -> None:
    """Three states of 67 MB, and room to save two of each: that is said before anything is computed, and an engine that
    could not open a session is as good as before."""
    environment = os.environ | {"PYTHONPATH": str(Path(bee_integrations.__file__).parents[1])}
    ran = subprocess.run(
        [sys.executable, "-c", LARGE_STATES, str(tmp_path)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert re.fullmatch(
        r"out of memory for a context of 64 tokens; 0\.6\d GB of it are states .*\nand it runs\n", ran.stdout
    ), ran.stderr[-2000:]


def test_states_are_held_against_the_memory_that_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unlike keys and values they do not grow: that they do not fit is known before weights are read."""
    path = spoken("qwen35").write(tmp_path / "model.gguf")
    monkeypatch.setattr(engine_module, "available_memory", lambda: 200_000)
    monkeypatch.setattr(engine_module, "open_engine", None)  # is not come to
    with pytest.raises(OutOfMemoryError, match=r"recurrent layers take 0\.\d MB .* 0\.2 MB of memory are free"):
        Engine(path, device="cpu")


# ---- bad input -------------------------------------------------------------------------------------------------------


def key(name: str, value: Value) -> Any:
    def change(document: Document) -> None:
        document.metadata[name] = value

    return change


def without(name: str) -> Any:
    def change(document: Document) -> None:
        del (document.metadata if name in document.metadata else document.tensors)[name]

    return change


def booleans(*values: bool) -> Value:
    return Value(ARRAY, list(values), BOOL)


BROKEN = {
    "pattern of another length": (
        "gemma4-dense", key("gemma4.attention.sliding_window_pattern", booleans(True, False)), "sliding_window_pattern",
    ),
    "no pattern": ("gemma4-dense", without("gemma4.attention.sliding_window_pattern"), "sliding_window_pattern"),
    "no window": ("gemma4-dense", without("gemma4.attention.sliding_window"), "sliding_window"),
    "a window of 0": ("gemma4-dense", key("gemma4.attention.sliding_window", integer(0)), "sliding_window"),
    "a window beyond the context": ("gemma2", key("gemma2.attention.sliding_window", integer(300)), "sliding_window"),
    "heads of another length": (
        "gemma4-dense", key("gemma4.attention.head_count_kv", Value(ARRAY, [2, 2, 1], INT32)), "head_count_kv",
    ),
    "heads that do not divide": (
        "gemma4-dense", key("gemma4.attention.head_count_kv", Value(ARRAY, [3] * 8, INT32)), "head_count_kv",
    ),
    "caches without a source": (
        "gemma4-embeddings-shared-caches", key("gemma4.attention.shared_kv_layers", integer(5)), "shared_kv_layers",
    ),
    "nothing but shared caches": (
        "gemma4-embeddings-shared-caches", key("gemma4.attention.shared_kv_layers", integer(8)), "shared_kv_layers",
    ),
    "factors of zero": (
        "gemma4-dense",
        lambda d: d.tensors.update({"rope_freqs.weight": Stored.of(np.zeros(16, np.float32))}),
        "rope_freqs.weight",
    ),
    "factors that are no numbers": (
        "phi3-long",
        lambda d: d.tensors.update({"rope_factors_long.weight": Stored.of(np.full(6, np.nan, np.float32))}),
        "rope_factors_long.weight",
    ),
    "a factor that is no number": (
        "llama-yarn", key("llama.rope.scaling.factor", Value(FLOAT32, float("nan"))), "rope.scaling.factor",
    ),
    "an unknown scaling": ("llama-yarn", key("llama.rope.scaling.type", text("su")), "rope.scaling.type"),
    "no logit scale": ("granite", without("granite.logit_scale"), "granite.logit_scale"),
    "a bias of another length": (
        "qwen2",
        lambda d: d.tensors.update({"blk.0.attn_q.bias": Stored.of(np.zeros(32, np.float32))}),
        "blk.0.attn_q.bias",
    ),
    "a fused projection of another height": (
        "phi3-long",
        lambda d: d.tensors.update({"blk.0.attn_qkv.weight": Stored.of(np.zeros((96, 64), np.float32))}),
        "blk.0.attn_qkv.weight",
    ),
    "whole and fused": (
        "qwen2",
        lambda d: d.tensors.update({"blk.0.attn_qkv.weight": Stored.of(np.zeros((128, 64), np.float32))}),
        "blk.0.attn_qkv.weight",
    ),
    "no head of its own": ("olmo2", without("output.weight"), "output.weight"),
    "no embedding of a layer": (
        "gemma4-embeddings-shared-caches", without("per_layer_token_embd.weight"), "per_layer_token_embd.weight",
    ),
    "sections that are none": (
        "qwen3vl", key("qwen3vl.rope.dimension_sections", Value(ARRAY, [-1, 2, 2, 0], INT32)), "dimension_sections",
    ),
    "more experts used than there are": (
        "qwen3moe", key("qwen3moe.expert_used_count", integer(7)), "qwen3moe.expert_used_count",
    ),
    "experts of which none is used": (
        "qwen3moe", key("qwen3moe.expert_used_count", integer(0)), "qwen3moe.expert_used_count",
    ),
    "no experts": ("qwen3moe", key("qwen3moe.expert_count", integer(0)), "qwen3moe.expert_count"),
    "a router of another width": (
        "qwen3moe",
        lambda d: d.tensors.update({"blk.0.ffn_gate_inp.weight": Stored.of(np.zeros((5, 64), np.float32))}),
        "blk.0.ffn_gate_inp.weight",
    ),
    "experts of another number": (
        "qwen3moe",
        lambda d: d.tensors.update({"blk.0.ffn_up_exps.weight": Stored.of(np.zeros((5, 40, 64), np.float32))}),
        "blk.0.ffn_up_exps.weight",
    ),
    "a layer that is said to attend, and does not": (
        "qwen35-listed-predicting",
        key("qwen35.attention.recurrent_layers", booleans(False, False, True, False)),
        r"blk.1.attn_q.weight",
    ),
    "too few layers in the list": (
        "qwen35-listed-predicting", key("qwen35.attention.recurrent_layers", booleans(True, False)), "recurrent_layers",
    ),
    "a convolution of one row": ("qwen35", key("qwen35.ssm.conv_kernel", integer(1)), "ssm.conv_kernel"),
    "a convolution of another length": ("qwen35", key("qwen35.ssm.conv_kernel", integer(3)), "blk.0.ssm_conv1d.weight"),
    "a state of an odd size": ("qwen35", key("qwen35.ssm.state_size", integer(15)), "ssm.state_size"),
    "a state that is too large": ("qwen35", key("qwen35.ssm.state_size", integer(1024)), "ssm.state_size"),
    "groups that do not divide": ("qwen35", key("qwen35.ssm.group_count", integer(4)), "ssm.group_count"),
    "states of another width": ("qwen35", key("qwen35.ssm.inner_size", integer(64)), "ssm.inner_size"),
    "no width of states": ("qwen35", without("qwen35.ssm.inner_size"), "qwen35.ssm.inner_size"),
    "no sections": ("qwen35", without("qwen35.rope.dimension_sections"), "rope.dimension_sections"),
    "an interval of 0": ("qwen35", key("qwen35.full_attention_interval", integer(0)), "full_attention_interval"),
    "a layer without its decay": ("qwen35", without("blk.1.ssm_a"), r"blk.1.ssm_a"),
    "queries without gates": (
        "qwen35",
        lambda d: d.tensors.update({"blk.3.attn_q.weight": Stored.of(np.zeros((128, 64), np.float32))}),
        "blk.3.attn_q.weight",
    ),
    "heads of an odd size": ("granitehybrid", key("granitehybrid.ssm.inner_size", integer(100)), "ssm.inner_size"),
    "steps of another number": (
        "granitehybrid",
        lambda d: d.tensors.update({"blk.0.ssm_dt.bias": Stored.of(np.zeros(5, np.float32))}),
        "blk.0.ssm_dt.bias",
    ),
    "a short convolution that is too long": ("lfm2", key("lfm2.shortconv.l_cache", integer(17)), "shortconv.l_cache"),
    "experts of another width": ("nemotron_h_moe", key("nemotron_h_moe.moe_latent_size", integer(32)), "latent_size"),
    "a shared expert without its share": (
        "qwen2moe", without("blk.0.ffn_gate_inp_shexp.weight"), "blk.0.ffn_gate_inp_shexp.weight",
    ),
    "a share of another width": (
        "qwen2moe",
        lambda d: d.tensors.update({"blk.0.ffn_gate_inp_shexp.weight": Stored.of(np.zeros(32, np.float32))}),
        "blk.0.ffn_gate_inp_shexp.weight",
    ),
    "a file of the former kind": (
        "deepseek2", without("deepseek2.attention.key_length_mla"), "attention.key_length_mla",
    ),
    "a row of an odd size": ("deepseek2", key("deepseek2.attention.kv_lora_rank", integer(24)), "kv_lora_rank"),
    "a row that is too long": ("deepseek2", key("deepseek2.attention.kv_lora_rank", integer(1024)), "kv_lora_rank"),
    "heads that are rotated whole": (
        "deepseek2", key("deepseek2.attention.key_length_mla", integer(16)), "attention.key_length_mla",
    ),
    "experts in groups": ("deepseek2", key("deepseek2.expert_group_count", integer(2)), "expert_group_count"),
    "a head without its keys": (
        "deepseek2",
        lambda d: d.tensors.update({"blk.0.attn_k_b.weight": Stored.of(np.zeros((3, 32, 32), np.float32))}),
        "blk.0.attn_k_b.weight",
    ),
    "half a shared expert": ("qwen2moe", without("blk.1.ffn_up_shexp.weight"), "blk.1.ffn_up_shexp.weight"),
    "a shared expert that nothing announces": (
        "granitemoe", without("granitemoe.expert_shared_feed_forward_length"), "shexp",
    ),
    "a layer without its router": ("gemma4-experts", without("blk.3.ffn_gate_inp.weight"), "blk.3.ffn_gate_inp.weight"),
    "a router without its scale": ("gemma4-experts", without("blk.3.ffn_gate_inp.scale"), "blk.3.ffn_gate_inp.scale"),
    "gate and up of one height": (
        "gemma4-experts",
        lambda d: d.tensors.update({"blk.0.ffn_gate_up_exps.weight": Stored.of(np.zeros((6, 48, 64), np.float32))}),
        "blk.0.ffn_gate_up_exps.weight",
    ),
    "experts of another kind of output": (
        "qwen3moe",
        lambda d: d.tensors.update({"blk.0.ffn_down_exps.weight": Stored.of(np.zeros((6, 40, 64), np.float32))}),
        "blk.0.ffn_down_exps.weight",
    ),
    "more experts used than there are, of GLM": (
        "glm4moe", key("glm4moe.expert_used_count", integer(7)), "glm4moe.expert_used_count",
    ),
    "a bias that chooses of another number": (
        "glm4moe",
        lambda d: d.tensors.update({"blk.1.exp_probs_b.bias": Stored.of(np.zeros(5, np.float32))}),
        "blk.1.exp_probs_b.bias",
    ),
    "a layer that is said not to attend, and does": (
        "qwen35-listed-predicting",
        key("qwen35.attention.recurrent_layers", booleans(True, True, True, False)),
        r"blk.0.attn_qkv.weight",
    ),
    "a list that is of no booleans": (
        "qwen35-listed-predicting",
        key("qwen35.attention.recurrent_layers", Value(ARRAY, [0, 1, 2, 0], INT32)), "recurrent_layers",
    ),
    "a convolution that is too long": ("qwen35", key("qwen35.ssm.conv_kernel", integer(17)), "ssm.conv_kernel"),
    "a short convolution of one row": ("lfm2", key("lfm2.shortconv.l_cache", integer(1)), "shortconv.l_cache"),
    "a short convolution of another length": ("lfm2", key("lfm2.shortconv.l_cache", integer(4)), "shortconv.conv"),
    "a state of an odd size, of Mamba": (
        "granitehybrid", key("granitehybrid.ssm.state_size", integer(33)), "ssm.state_size",
    ),
    "a convolution of other channels": (
        "nemotron_h",
        lambda d: d.tensors.update({"blk.0.ssm_conv1d.weight": Stored.of(np.zeros((100, 4), np.float32))}),
        "blk.0.ssm_conv1d.weight",
    ),
    "no state": ("granitehybrid", key("granitehybrid.ssm.state_size", integer(0)), "ssm.state_size"),
    "a part for pictures": ("qwen2", key("general.architecture", text("clip")), "vision"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_broken_files_are_refused(case: str, tmp_path: Path) -> None:
    name, change, pattern = BROKEN[case]
    document = make(name)
    change(document)
    with pytest.raises(BeeError, match=pattern) as caught, engine(document.write(tmp_path / "model.gguf")):
        pass
    assert "\n" not in str(caught.value)
