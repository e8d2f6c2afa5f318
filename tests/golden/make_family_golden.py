"""Store llama.cpp's logits of every family's tiny model (tests/python/family_models.py) in families.npz.

    python tests/golden/make_family_golden.py [CASE ...]       (needs llama-cpp-python 0.3.36)

Named cases are made anew, the others stay as they are; those that there are no more go.

Of F32 weights the logits of the 100 positions beyond the window; of F16 weights, and of long contexts, of the last 25;
of blocks that predict a further token, what they are given and what they give.
"""

from __future__ import annotations

import ctypes
import sys
import tempfile
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import numpy.typing as npt
from llama_cpp import Llama

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "python"))

from family_models import (  # noqa: E402
    CASES,
    LONG,
    LONG_CASES,
    N_CTX,
    N_PREDICTED,
    N_VOCAB,
    PREDICTING,
    WINDOW,
    make,
    tokens,
)

OUT = HERE / "families.npz"
LAST = 25


def logits(name: str, type_name: str, n_ctx: int, n: int) -> npt.NDArray[np.float32]:
    with tempfile.TemporaryDirectory() as folder:
        path = make(name, type_name, n_ctx).write(Path(folder) / "model.gguf")
        model = Llama(str(path), n_ctx=n_ctx, logits_all=True, verbose=False, n_threads=1, n_threads_batch=1)
        model.eval(tokens(n))
        out = np.array(model.scores[:n], np.float32)
        model.close()
    return out


# ---- blocks that predict: llama.cpp's staging interface, which the Python package does not wrap ----------------------

Floats = ctypes.POINTER(ctypes.c_float)


class Row(ctypes.Structure):
    _fields_ = (("data", Floats), ("n_rows", ctypes.c_size_t), ("n_columns", ctypes.c_size_t))


def function(name: str, result: Any, *arguments: Any) -> Any:
    library = ctypes.CDLL(str(Path(llama_cpp.__file__).parent / "lib" / "libllama.so"))
    found = library[name]
    found.restype, found.argtypes = result, arguments
    return found


def context(model: Any, *, predicts: bool) -> Any:
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = N_CTX
    params.n_threads = params.n_threads_batch = 1
    params.ctx_type, params.flash_attn_type = int(predicts), 0
    made = llama_cpp.llama_init_from_model(model, params)
    tells = function("_Z26llama_set_embeddings_nextnP13llama_contextbb", None, ctypes.c_void_p, *[ctypes.c_bool] * 2)
    tells(made, True, predicts)
    return made


def run(made: Any, ids: list[int], hidden: npt.NDArray[np.float32] | None = None) -> None:
    """Tokens, each with what the layers made of the one before where `hidden` has it."""
    pointer, integer, flag = ctypes.c_void_p, ctypes.c_int, ctypes.c_bool
    batch = function("llama_batch_ext_init", pointer, pointer)(made)
    for i, token in enumerate(ids):
        row = function("llama_batch_ext_add_token", integer, pointer, integer, integer)(batch, 0, token)
        if hidden is not None:
            one = Row(np.ascontiguousarray(hidden[i]).ctypes.data_as(Floats), 1, hidden.shape[1])
            assert function("llama_batch_ext_set_embd_token", flag, pointer, integer, Row)(batch, row, one)
        places = (ctypes.c_int32 * 4)(i, i, i, 0)
        function("llama_batch_ext_set_pos", flag, pointer, integer, ctypes.POINTER(ctypes.c_int32))(batch, row, places)
        function("llama_batch_ext_set_output_logits", flag, pointer, integer, flag)(batch, row, True)
    assert function("llama_process", integer, pointer, integer, pointer)(made, 1, batch) == 0


def rows(name: str, made: Any, n: int, columns: int) -> npt.NDArray[np.float32]:
    row = function(name, Floats, ctypes.c_void_p, ctypes.c_int32)
    return np.array([row(made, i)[:columns] for i in range(n)], np.float32)


def predicted(name: str) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """What the layers make of tokens, as their head reads it, and the block's logits of these and the tokens behind."""
    ids = tokens(N_PREDICTED + 1)
    params = llama_cpp.llama_model_default_params()
    params.load_mtp = True
    with tempfile.TemporaryDirectory() as folder:
        path = make(name).write(Path(folder) / "model.gguf")
        model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
    layers, block = context(model, predicts=False), context(model, predicts=True)
    run(layers, ids[:-1])
    hidden = rows("_Z30llama_get_embeddings_nextn_ithP13llama_contexti", layers, N_PREDICTED, 64)
    run(block, ids[1:], hidden)
    return hidden, rows("llama_get_logits_ith", block, N_PREDICTED, N_VOCAB)


def main() -> None:
    wanted = sys.argv[1:] or [*CASES, *PREDICTING]
    with np.load(OUT) as stored:
        found = {name: stored[name] for name in stored if name.split()[0] in CASES | PREDICTING}
    for name in PREDICTING:
        if name in wanted:
            found[f"{name} hidden"], found[f"{name} predicted"] = predicted(name)
    for name in CASES:
        if name not in wanted:
            continue
        found[name] = logits(name, "F32", N_CTX, len(tokens()))[WINDOW:]
        found[f"{name} F16"] = logits(name, "F16", N_CTX, len(tokens()))[-LAST:]
        print(name)
    for name in set(LONG_CASES).intersection(wanted):
        found[f"{name} long"] = logits(name, "F32", 1024, LONG)[-LAST:]
    np.savez_compressed(OUT, **dict(sorted(found.items())))


if __name__ == "__main__":
    main()
