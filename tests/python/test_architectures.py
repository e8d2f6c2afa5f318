"""Logits of every architecture, variant and file type against two references.

The models are tiny and their weights random (golden_models.py). One reference is llama.cpp, whose logits are stored;
the other is a plain forward in double precision (reference_forward.py). They share no code with libbee or with each
other, and each is also checked against the other, so a mistake would have to be made twice to go unseen.

Differences are root mean squares over all logits of a sequence, as a part of the standard deviation of the reference's.
How large they may be depends on what is rounded on the way:

- libbee keeps keys and values as float16, llama.cpp here as float32. The relative error of a rounding is at most 2^-11;
  through attention that is about 4e-4 at the logits.
- llama.cpp rounds activations to the type of float weights, libbee does not. float16 has 11 significant bits, an error
  of 2^-11 / sqrt(3) = 2.8e-4 in the mean, and a chain of some ten products makes that nearly 1e-3. bfloat16 has 8 bits:
  eight times as much.
- Before a product with quantised weights both round activations to 8 bits: to multiples of a 127th of the largest
  magnitude among 32 values (llama.cpp: among 256 for the K types). Among 32 normal values the largest is about 2.2
  deviations, so a step is 0.017 deviations and its error 0.5% in the mean; the chain, with an attention that chooses
  sharply, makes that 2% to 4% at the logits.

The second reference can make libbee's own roundings too. Then both do the same arithmetic but for the last bits of
float32, and what remains is 1e-7, except where a value falls so close to the middle between two steps that it is
rounded otherwise. At a token in a hundred that happens, and it changes all that comes after it by up to a percent. So
long sequences are held to a mild bound, and most of many short ones to a sharp one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from gguf_document import Array, serialised
from golden_models import MODELS, NAMES, PARTIALLY_ROTATED, QUANTISED, STORED, tiny_model
from reference_forward import Forward

from bee_integrations.library import check, ffi, lib, new_error

CACHE_ERROR = 1e-3  # keys and values in float16
LLAMA_CPP_ERRORS = {"llama-f16": 2e-3, "llama-bf16": 1.5e-2, **dict.fromkeys(QUANTISED, 0.06)}
FLOAT32_ERROR = 5e-6  # llama.cpp with float32 throughout
# Against the reference that rounds as libbee does. The key: whether activations are rounded to 8 bits, or keys and
# values to float16 alone, where the other rounding is more frequent and hardly matters.
LONG_ERROR = {True: 2e-2, False: 1e-4}
SHORT_ERROR = {True: 2e-6, False: 5e-5}
# The CUDA backend also rounds queries and the probabilities of attention to float16: errors as of the cache's rounding,
# which change the rounding to 8 bits here and there in any sequence: by no more than that rounding itself may cost.
CUDA_ERROR = {True: 3e-2, False: 2e-3}
SHORT = 4  # tokens
ALL_NAMES = (*NAMES, *PARTIALLY_ROTATED)
SAME_FUNCTION = ("llama-f16", "llama-bf16", "llama-rope-none")  # as llama-f32, but for rounding


def _instruction_sets() -> list[str]:
    names = lib.bee_instruction_sets()
    out = []
    while names[len(out)] != ffi.NULL:
        out.append(ffi.string(names[len(out)]).decode())
    card = ffi.new("bee_device_info *")
    on_card = lib.bee_device_describe(lib.BEE_DEVICE_CUDA, card, ffi.NULL) == lib.BEE_OK
    return [*out, "cuda"] if on_card else out


INSTRUCTION_SETS = _instruction_sets()  # and "cuda" where there is a card, or an emulated one


@pytest.fixture(scope="module")
def model_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    directory = tmp_path_factory.mktemp("tiny")
    return {name: tiny_model(name).write(directory / f"{name}.gguf") for name in ALL_NAMES}


@contextmanager
def session(path: Path, instruction_set: str, threads: int = 2, n_ctx: int = 64) -> Iterator[Any]:
    error = new_error()
    params = ffi.new("bee_engine_params *")
    name = ffi.new("char[]", instruction_set.encode())
    if instruction_set == "cuda":
        params.device = lib.BEE_DEVICE_CUDA
    else:
        params.n_threads, params.instruction_set = threads, name
    engine = lib.bee_engine_open(str(path).encode(), ffi.NULL, params, error)
    check(engine, error)
    opened = lib.bee_session_open(engine, n_ctx, False, error)
    check(opened, error)
    try:
        yield opened
    finally:
        lib.bee_session_close(opened)
        lib.bee_engine_close(engine)


def evaluated(opened: Any, tokens: npt.NDArray[np.int32], n_vocab: int, rows_per_pass: int = 16) -> Any:
    """float32[tokens][n_vocab]"""
    out = np.empty((len(tokens), n_vocab), np.float32)
    pointer = ffi.cast("float *", out.ctypes.data)
    error = new_error()
    check(lib.bee_session_evaluate(opened, tokens.tolist(), len(tokens), rows_per_pass, pointer, error), error)
    return out


@lru_cache
def golden(name: str) -> list[tuple[npt.NDArray[np.int32], Array]]:
    """Token sequences, and llama.cpp's logits at each of their positions."""
    with np.load(MODELS / f"{name}.npz") as data:
        count = sum(key.startswith("tokens_") for key in data)
        return [(data[f"tokens_{i}"], data[f"logits_{i}"].astype(np.float64)) for i in range(count)]


@lru_cache
def exact_forward(name: str) -> Forward:
    return Forward(tiny_model(name))


@lru_cache
def rounding_forward(name: str) -> Forward:
    return Forward(tiny_model(name), float16_cache=True, rounded_activations=True)


@lru_cache
def exact_logits(name: str, index: int = 0) -> Array:
    return exact_forward(name).logits(sequence(name, index))


def sequence(name: str, index: int) -> npt.NDArray[np.int32]:
    return golden(name if name in NAMES else "llama-f32")[index][0]


def difference(a: Array, b: Array) -> float:
    return float(np.sqrt(((a - b) ** 2).mean()) / b.std())


def margins(logits: Array) -> Array:
    """By how much each row's best logit leads."""
    best = np.sort(logits, axis=-1)[:, -2:]
    return best[:, 1] - best[:, 0]


# ---- the references --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_these_are_the_models_that_llama_cpp_ran(name: str) -> None:
    with np.load(MODELS / f"{name}.npz") as data:
        assert hashlib.sha256(serialised(tiny_model(name))).hexdigest() == str(data["sha256"])
    if name in STORED:
        assert (MODELS / f"{name}.gguf").read_bytes() == serialised(tiny_model(name))


@pytest.mark.parametrize("name", NAMES)
def test_the_references_agree_with_each_other(name: str) -> None:
    for index, (_, logits) in enumerate(golden(name)):
        assert difference(logits, exact_logits(name, index)) < LLAMA_CPP_ERRORS.get(name, FLOAT32_ERROR)


@pytest.mark.parametrize("name", sorted({*ALL_NAMES} - {"llama-f32", *SAME_FUNCTION}))
def test_each_variant_has_logits_of_its_own(name: str) -> None:
    # If a variant hardly changed the logits, agreeing with its reference would say nothing about it.
    for other in ALL_NAMES:
        assert other == name or difference(exact_logits(other), exact_logits(name)) > 0.1, other


# ---- libbee ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
@pytest.mark.parametrize("name", NAMES)
def test_logits_agree_with_llama_cpp(name: str, instruction_set: str, model_files: dict[str, Path]) -> None:
    limit = LLAMA_CPP_ERRORS.get(name, 0) + CACHE_ERROR + (CUDA_ERROR[False] if instruction_set == "cuda" else 0)
    clear_rows = []
    with session(model_files[name], instruction_set) as opened:
        for index, (tokens, expected) in enumerate(golden(name)):
            logits = evaluated(opened, tokens, expected.shape[1])
            assert difference(logits, expected) < limit
            # Greedy choices agree where the best logit leads by twice what the difference of two logits may be off.
            clear = margins(expected) > 2 * np.sqrt(2) * limit * expected.std()
            clear_rows.extend(clear)
            assert np.array_equal(logits.argmax(1)[clear], expected.argmax(1)[clear])
            # Blocks of 32 with float32 scales: libbee's rounding is no coarser than llama.cpp's.
            if name in QUANTISED:
                exact = exact_logits(name, index)
                assert difference(logits, exact) < 1.25 * difference(expected, exact)
    assert np.mean(clear_rows) > 0.3


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
@pytest.mark.parametrize("name", ALL_NAMES)
def test_logits_agree_with_the_reference(name: str, instruction_set: str, model_files: dict[str, Path]) -> None:
    quantised = name in QUANTISED
    tokens = sequence(name, 0)
    expected = rounding_forward(name).logits(tokens)
    short_errors = []
    with session(model_files[name], instruction_set) as opened:
        logits = evaluated(opened, tokens, expected.shape[1])
        for start in range(0, len(tokens), SHORT):
            part = tokens[start : start + SHORT]
            wanted = rounding_forward(name).logits(part)
            short_errors.append(difference(evaluated(opened, part, wanted.shape[1]), wanted))
    cuda = instruction_set == "cuda"
    long_error = CUDA_ERROR[quantised] if cuda else LONG_ERROR[quantised]
    assert np.median(short_errors) < (long_error if cuda else SHORT_ERROR[quantised])
    assert difference(logits, expected) < long_error
    clear = margins(expected) > 3 * long_error * expected.std()
    assert clear.mean() > (0.6 if cuda else 0.7)
    assert np.array_equal(logits.argmax(1)[clear], expected.argmax(1)[clear])


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
@pytest.mark.parametrize("name", [*STORED, "llama-f16", "llama-bf16"])
def test_a_token_has_the_same_logits_in_every_pass(
    name: str, instruction_set: str, model_files: dict[str, Path]
) -> None:
    # Bit for bit, whatever else is in the pass and however many threads share it.
    tokens = sequence(name, 0)
    n_vocab = golden(name)[0][1].shape[1]
    with session(model_files[name], instruction_set, threads=1) as opened:
        alone = evaluated(opened, tokens, n_vocab, rows_per_pass=1).view(np.uint32)
    with session(model_files[name], instruction_set, threads=3) as opened:
        for rows in (1, 2, 3, 5, 7, 13, 16, 33, 128):
            assert np.array_equal(evaluated(opened, tokens, n_vocab, rows).view(np.uint32), alone), rows
