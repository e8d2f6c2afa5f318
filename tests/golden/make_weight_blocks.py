"""Make tests/golden/weights/blocks.npz: random blocks of every quantised weight type, and what ggml decodes them to.

    python tests/golden/make_weight_blocks.py

Needs llama-cpp-python (0.3.36 made the committed file), whose libggml-base decodes. A type's array `TYPE` holds a
matrix of random blocks, float16 scales of the size that models have but for some that are zero, negative, subnormal or
large; `TYPE_values` holds its weights as float32[rows][256].
"""

from __future__ import annotations

import ctypes
import glob
import sys
from pathlib import Path

import llama_cpp
import numpy as np
import numpy.typing as npt

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "python"))
from gguf_document import HALVES, TYPES  # noqa: E402

ROWS, COLUMNS = 8, 256
ODD_SCALES = (0.0, -0.0, 6e-8, -3e-5, 2.5, -7.0)  # the third is the smallest subnormal number


def random_blocks(name: str, random: np.random.RandomState) -> npt.NDArray[np.uint8]:
    _, columns, size = TYPES[name]
    blocks = random.randint(0, 256, (ROWS * COLUMNS // columns, size)).astype(np.uint8)
    scales = random.standard_normal((len(blocks), 2)) * 0.01
    scales[: len(ODD_SCALES), 0] = ODD_SCALES
    halves = scales.astype(np.float16).view(np.uint8).reshape(len(blocks), 2, 2)
    for index, at in enumerate(HALVES[name]):
        blocks[:, at : at + 2] = halves[:, index]
    if name == "IQ1_M":  # a nibble of the scale on top of each of the last four words
        for i in range(4):
            blocks[:, 49 + 2 * i] = blocks[:, 49 + 2 * i] % 16 | (halves[:, 0, i // 2] >> i % 2 * 4 & 15) << 4
    if name == "MXFP4":  # powers of two: about 2^-8, and the smallest
        blocks[:, 0] = np.where(random.randint(0, 8, len(blocks)) > 0, random.randint(116, 124, len(blocks)), 1)
        blocks[0, 0] = 0
    if name == "NVFP4":
        blocks[0, :4] = (0, 1, 0x7E, 0x7F)
    return blocks


def decoded(name: str, blocks: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    folder = Path(llama_cpp.__file__).parent / "lib"
    library = ctypes.CDLL(glob.glob(str(folder / "libggml-base.so*"))[0])
    out = np.zeros((ROWS, COLUMNS), np.float32)
    decode = library["dequantize_row_" + name.lower().replace("_k", "_K")]
    decode(blocks.ctypes.data_as(ctypes.c_void_p), out.ctypes.data_as(ctypes.c_void_p), ctypes.c_int64(out.size))
    return out


def main() -> None:
    arrays = {}
    for seed, name in enumerate(HALVES):
        blocks = random_blocks(name, np.random.RandomState(seed))
        arrays[name] = blocks.reshape(ROWS, -1)
        arrays[f"{name}_values"] = decoded(name, blocks)
    (HERE / "weights").mkdir(exist_ok=True)
    made_with = f"llama-cpp-python {llama_cpp.__version__}"
    np.savez_compressed(HERE / "weights" / "blocks.npz", made_with=made_with, **arrays)


if __name__ == "__main__":
    main()
