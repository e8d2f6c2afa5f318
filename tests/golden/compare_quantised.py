"""Mixed files as llama.cpp's quantiser writes them: do they open here, and do the logits agree?

    python tests/golden/compare_quantised.py [--width 576] [--mix Q2_K,IQ3_M] [--keep FOLDER]

Needs gguf and llama-cpp-python. A random model with rows of 576 and of 1024 is quantised in each mix, with an
importance matrix of ones, and run by both; the exact logits are those of a forward pass in double precision over the
file's weights, as gguf decodes them. MXFP4_MOE is of a model with experts (family_models.py) instead, whose exact
logits are libbee's over a file of the decoded weights. Each line has the types in the file and the root mean square
of both errors, as parts of the deviation of the exact logits. The exit status is 1 where libbee is further from the
exact logits than 1.3 times llama.cpp.
"""

from __future__ import annotations

import argparse
import ctypes
import sys
import tempfile
from collections import Counter
from pathlib import Path

import gguf
import llama_cpp
import numpy as np
import numpy.typing as npt

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "python")]
import make_tiny_models as tiny  # noqa: E402
from family_models import HEAD_NORMS, N_VOCAB, PRE, QKV, mixture, tokens  # noqa: E402
from gguf_document import Document, Stored  # noqa: E402
from gguf_document import read as read_document  # noqa: E402
from reference_forward import Forward  # noqa: E402
from test_architectures import INSTRUCTION_SETS, evaluated, session  # noqa: E402

MIXES = (
    "Q2_K", "Q3_K_M", "IQ4_XS", "IQ4_NL", "IQ3_M", "IQ3_XXS", "IQ2_M", "IQ2_XS", "IQ2_XXS", "IQ1_S", "IQ1_M", "TQ1_0",
    "TQ2_0", "Q4_K_M", "MXFP4_MOE",
)  # fmt: skip
MIXTURE = mixture("qwen3moe", [*PRE, *QKV, *HEAD_NORMS], size=32, ff=64, expert_feed_forward_length=64)
TOKENS = np.array(np.random.RandomState(0).randint(0, tiny.N_VOCAB, 40), np.int32)
SLACK = 1.3


def make_source(folder: Path, width: int, mix: str) -> Path:
    if mix == "MXFP4_MOE":
        return MIXTURE().write(folder / "source-mixture.gguf")
    tiny.MODELS = folder
    tiny.make_model(
        f"source-{width}", "llama", 7, n_layer=2, n_embd=width, n_ff=1024, n_head=width // 64, n_head_kv=width // 64,
        head_size=64, type_of=lambda _: gguf.GGMLQuantizationType.F32, tied=False,
    )  # fmt: skip
    return folder / f"source-{width}.gguf"


class Importance(ctypes.Structure):
    """llama_model_imatrix_data"""

    _fields_ = [("name", ctypes.c_char_p), ("data", ctypes.POINTER(ctypes.c_float)), ("size", ctypes.c_size_t)]


def importance_of_ones(source: Path) -> ctypes.Array[Importance]:
    """Ended by an entry without a name."""
    tensors = gguf.GGUFReader(str(source)).tensors
    names = [(t.name.encode(), int(t.shape[0] * (t.shape[2] if len(t.shape) > 2 else 1))) for t in tensors]
    entries = (Importance * (len(names) + 1))()
    for entry, (name, columns) in zip(entries, names, strict=False):
        entry.name, entry.size = name, columns
        entry.data = (ctypes.c_float * columns)(*[1.0] * columns)
    return entries


def quantise(source: Path, out: Path, mix: str) -> None:
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{mix}")
    params.nthread = 1
    entries = importance_of_ones(source)
    params.imatrix = ctypes.cast(entries, type(params.imatrix))
    failed = llama_cpp.llama_model_quantize(str(source).encode(), str(out).encode(), ctypes.byref(params))
    assert not failed, f"llama.cpp does not write {mix}"


def exact_logits(path: Path, ids: npt.NDArray[np.int32]) -> npt.NDArray[np.float64]:
    """Over the file's weights, which gguf decodes."""
    document = read_document(path)
    decoded = Document(document.metadata, {})
    for tensor in gguf.GGUFReader(str(path)).tensors:
        values = gguf.dequantize(tensor.data, tensor.tensor_type)
        decoded.tensors[tensor.name] = Stored.of(values)
    if "mixture" not in path.stem:
        return Forward(decoded).logits(ids)
    with session(decoded.write(path.with_suffix(".decoded")), "portable") as opened:
        return evaluated(opened, ids, N_VOCAB).astype(np.float64)


def error(logits: npt.NDArray[np.float64], exact: npt.NDArray[np.float64]) -> float:
    return float(np.sqrt(((logits - exact) ** 2).mean()) / exact.std())


def compare(source: Path, folder: Path, mix: str) -> bool:
    path = folder / f"{source.stem}-{mix}.gguf"
    quantise(source, path, mix)
    types = Counter(tensor.tensor_type.name for tensor in gguf.GGUFReader(str(path)).tensors)
    ids, n_vocab = (TOKENS, tiny.N_VOCAB) if "mixture" not in path.stem else (np.array(tokens(40), np.int32), N_VOCAB)
    exact = exact_logits(path, ids)
    theirs = error(tiny.llama_cpp_logits(path, ids.tolist()).astype(np.float64), exact)
    fine = True
    for name in INSTRUCTION_SETS:
        with session(path, name) as opened:
            ours = error(evaluated(opened, ids, n_vocab).astype(np.float64), exact)
        fine = fine and ours <= SLACK * theirs
        print(f"{path.stem:22} {name:9} {ours:.4f}  llama.cpp {theirs:.4f}  {dict(types)}", flush=True)
    return fine


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, nargs="+", default=[576, 1024])
    parser.add_argument("--mix", type=lambda text: text.split(","), default=MIXES)
    parser.add_argument("--keep", type=Path, help="leave the files there")
    arguments = parser.parse_args()
    tiny.plain_kernels()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        results = [
            compare(make_source(folder, width, mix), folder, mix)
            for width in arguments.width
            for mix in arguments.mix
            if mix != "MXFP4_MOE" or width == arguments.width[0]
        ]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
