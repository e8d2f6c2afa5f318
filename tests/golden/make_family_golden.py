"""Store llama.cpp's logits of every family's tiny model (tests/python/family_models.py) in families.npz.

    python tests/golden/make_family_golden.py [CASE ...]       (needs llama-cpp-python 0.3.36)

Named cases are made anew, the others stay as they are; those that there are no more go.

Of F32 weights the logits of the 100 positions beyond the window; of F16 weights, and of long contexts, of the last 25.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
from llama_cpp import Llama

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "python"))

from family_models import CASES, LONG, LONG_CASES, N_CTX, WINDOW, make, tokens  # noqa: E402

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


def main() -> None:
    wanted = sys.argv[1:] or list(CASES)
    with np.load(OUT) as stored:
        found = {name: stored[name] for name in stored if name.split()[0] in CASES}
    for name in wanted:
        found[name] = logits(name, "F32", N_CTX, len(tokens()))[WINDOW:]
        found[f"{name} F16"] = logits(name, "F16", N_CTX, len(tokens()))[-LAST:]
        print(name)
    for name in set(LONG_CASES).intersection(wanted):
        found[f"{name} long"] = logits(name, "F32", 1024, LONG)[-LAST:]
    np.savez_compressed(OUT, **dict(sorted(found.items())))


if __name__ == "__main__":
    main()
