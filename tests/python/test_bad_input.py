"""Bad files, prompts and parameters: each gives a typed error that says what is wrong and what would be right, leaves
the process and other requests working, and leaks nothing."""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import random
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf_document as gguf
import numpy as np
import pytest
import tiny_model
from gguf_document import Document, Stored, Value, integer, serialised, text

from bee_integrations.engine import Engine, GenerationParams
from bee_integrations.errors import (
    BeeError,
    ContextLengthError,
    DrafterMismatchError,
    ModelFileError,
    ModelFormatError,
    OutOfMemoryError,
    ParameterError,
    TemplateError,
    UnsupportedModelError,
)

WORKING = GenerationParams(temperature=1.0, seed=5, max_tokens=40)


@pytest.fixture(autouse=True)
def others_go_on(tiny: Engine) -> Iterator[None]:
    """A generation that began before the bad input gives what it always gives, and so does one after it."""
    expected = tiny.complete("go on", WORKING).tokens
    with closing(tiny.generate("go on", WORKING)) as running:
        first = next(running)
        yield
        assert first.tokens + tuple(token for step in running for token in step.tokens) == expected
    assert tiny.complete("go on", WORKING).tokens == expected


def open_engine(path: Path, drafter: Path | None = None) -> None:
    Engine(path, drafter=drafter, threads=1).close()


# ---- files that are no model -----------------------------------------------------------------------------------------


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"nowhere\.gguf.* does not exist.*smollm2-135m-instruct"):
        open_engine(tmp_path / "nowhere.gguf")
    with pytest.raises(ModelFileError, match="is a directory"):
        open_engine(tmp_path)
    with pytest.raises(OSError, match="no-such-model"):  # it is an OSError, too
        Engine("no-such-model")
    with pytest.raises(ParameterError, match="path"):
        Engine("a\0b")
    with pytest.raises(ParameterError, match=r"path of the model is empty.*smollm2-135m-instruct"):
        Engine("")


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (os.mkfifo, "is a pipe"),
        (lambda path: path.symlink_to(path), "leads to itself"),
        (lambda path: path.symlink_to("nowhere"), "link to something that does not exist"),
        (lambda path: path.symlink_to("/dev/null"), "is a device"),
        (lambda path: path.symlink_to(path.parent), "is a directory"),
        (lambda path: socket.socket(socket.AF_UNIX).bind(os.fspath(path)), "is a socket"),
    ],
)
def test_what_is_no_file(tmp_path: Path, tiny_path: Path, make: Callable[[Path], object], expected: str) -> None:
    path = tmp_path / "m.gguf"
    make(path)
    with pytest.raises(ModelFileError, match=expected):
        open_engine(path)
    with pytest.raises(ModelFileError, match=expected):
        open_engine(tiny_path, path)
    beside = tmp_path / "tiny.gguf"  # "auto" looks beside the model, and takes what is a file
    beside.write_bytes(tiny_path.read_bytes())
    path.rename(tmp_path / "tiny.dflash.gguf")
    with Engine(beside, threads=1) as engine:
        assert engine.drafter_path is None


def test_paths_that_lead_nowhere(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ModelFileError, match="something in its path is no directory"):
        open_engine(tmp_path / "file" / "m.gguf")
    with pytest.raises(ModelFileError, match="File name too long"):
        open_engine(tmp_path / ("m" * 300))


def test_no_more_threads(tiny_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(OutOfMemoryError, match="no more threads"):
        open_engine(tiny_path)


def test_missing_drafter(tiny_path: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"drafter file .*none\.gguf.* does not exist.*'auto'"):
        open_engine(tiny_path, tmp_path / "none.gguf")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read every file")
def test_unreadable_files(tmp_path: Path) -> None:
    path = tiny_model.model().write(tmp_path / "secret.gguf")
    path.chmod(0)
    with pytest.raises(ModelFileError, match=r"secret\.gguf"):
        open_engine(path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"GGUF",
        b"not a model",
        b"\x7fELF" + bytes(200),
        b"GGML" + bytes(200),
        b"PK\x03\x04" + bytes(200),
        bytes(4096),
    ],
)
def test_foreign_files(tmp_path: Path, tiny_path: Path, content: bytes) -> None:
    path = tmp_path / "foreign.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelFormatError, match="GGUF"):
        open_engine(path)
    with pytest.raises(ModelFormatError, match="GGUF"):
        open_engine(tiny_path, path)


def test_truncated_files(tmp_path: Path, tiny_path: Path) -> None:
    whole = tiny_path.read_bytes()
    path = tmp_path / "truncated.gguf"
    for size in [*range(4, 400, 37), *range(400, len(whole), len(whole) // 20), len(whole) - 1]:
        path.write_bytes(whole[:size])
        with pytest.raises(ModelFormatError):
            open_engine(path)


def test_a_truncated_copy_of_the_default_model(tmp_path: Path, model_path: Path) -> None:
    path = tmp_path / "half.gguf"
    with model_path.open("rb") as source:
        path.write_bytes(source.read(8 << 20))
    with pytest.raises(ModelFormatError, match=r"beyond|past|end|outside|truncated"):
        open_engine(path)


def test_corrupted_files(tmp_path: Path, tiny_path: Path) -> None:
    """Any change of the header gives a model that still runs, or an error of ours: never a crash."""
    whole = tiny_path.read_bytes()
    draw = random.Random(3)
    path = tmp_path / "corrupted.gguf"
    header = len(whole) - sum(len(tensor.data) for tensor in tiny_model.model().tensors.values())
    refused = 0
    for _ in range(250):
        changed = bytearray(whole)
        for _ in range(draw.choice([1, 1, 4])):
            changed[draw.randrange(header)] = draw.choice([0, 1, 0x7F, 0x80, 0xFF, draw.randrange(256)])
        path.write_bytes(changed)
        try:
            with Engine(path, drafter=None, threads=1) as engine:
                engine.complete("x", GenerationParams(max_tokens=2))
        except BeeError:
            refused += 1
    assert refused > 20


def test_random_weights_run_or_are_refused(tmp_path: Path) -> None:
    document = tiny_model.model()
    draw = random.Random(4)
    for name, tensor in list(document.tensors.items()):
        document.tensors[name] = replace(tensor, data=draw.randbytes(len(tensor.data)))
    path = document.write(tmp_path / "noise.gguf")
    with Engine(path, drafter=None, threads=1) as engine, suppress(ModelFormatError):
        engine.complete("x", GenerationParams(max_tokens=3))


def test_weights_that_are_not_numbers(tmp_path: Path) -> None:
    document = tiny_model.model()
    shape = document.tensors["output.weight"].shape
    document.tensors["output.weight"] = Stored.of(np.full(shape, np.nan, np.float32))
    with Engine(document.write(tmp_path / "nan.gguf"), drafter=None, threads=1) as engine:
        for _ in range(2):  # the engine survives it
            with pytest.raises(ModelFormatError, match="not finite"):
                engine.complete("x")


# ---- sizes that overflow ---------------------------------------------------------------------------------------------

HUGE = 2**64 - 1


def entry(name: str, shape: tuple[int, ...], kind: int, offset: int) -> bytes:
    """A tensor's entry in the header; the shape as in the file, contiguous dimension first."""
    encoded = name.encode()
    head = struct.pack("<Q", len(encoded)) + encoded + struct.pack("<I", len(shape))
    return head + struct.pack(f"<{len(shape)}Q", *shape) + struct.pack("<IQ", kind, offset)


def header(n_tensors: int, n_values: int, rest: bytes) -> bytes:
    content = struct.pack("<4sIQQ", b"GGUF", 3, n_tensors, n_values) + rest
    return content + bytes(-len(content) % 32) + bytes(256)


def metadata_array(element: int, count: int) -> bytes:
    return struct.pack("<Q", 1) + b"k" + struct.pack("<IIQ", gguf.ARRAY, element, count)


F32, Q4_0 = gguf.TYPES["F32"][0], gguf.TYPES["Q4_0"][0]
OVERFLOWS = {
    # The product of the dimensions, or the size in bytes, passes 2**64 and comes out small (CVE-2026-27940).
    "elements 2**32 x 2**32": header(1, 0, entry("t", (2**32, 2**32), F32, 0)),
    "elements 2**63 x 2": header(1, 0, entry("t", (2**63, 2), F32, 0)),
    "bytes 2**62 x 4": header(1, 0, entry("t", (2**62,), F32, 0)),
    "four dimensions": header(1, 0, entry("t", (2**16, 2**16, 2**16, 2**16), Q4_0, 0)),
    "blocks": header(1, 0, entry("t", (HUGE - 31, 1), Q4_0, 0)),
    # A tensor that claims more bytes than the file has (CVE-2026-7482).
    "larger than the file": header(1, 0, entry("t", (4096,), F32, 0)),
    "offset at the end": header(1, 0, entry("t", (64,), F32, 224)),
    "offset beyond the end": header(1, 0, entry("t", (1,), F32, 2**40)),
    "offset that wraps": header(1, 0, entry("t", (64,), F32, HUGE - 31)),
    "quantised": header(1, 0, entry("t", (32, 4096), Q4_0, 0)),
    # Counts and lengths.
    "tensors": header(HUGE, 0, b""),
    "many tensors": header(2**40, 0, b""),
    "metadata": header(0, HUGE, b""),
    "key length": header(0, 1, struct.pack("<Q", HUGE)),
    "string length": header(0, 1, struct.pack("<Q", 1) + b"k" + struct.pack("<IQ", gguf.STRING, HUGE - 7)),
    "array of numbers": header(0, 1, metadata_array(gguf.UINT64, 2**61)),
    "array of strings": header(0, 1, metadata_array(gguf.STRING, 2**61)),
    "array of arrays": header(0, 1, metadata_array(gguf.ARRAY, 1) * 50),
    "name length": header(1, 0, struct.pack("<Q", 2**63)),
    "dimensions": header(1, 0, struct.pack("<Q", 1) + b"t" + struct.pack("<I", 2**31)),
}


@pytest.mark.parametrize("content", OVERFLOWS.values(), ids=OVERFLOWS)
def test_sizes_that_overflow(tmp_path: Path, tiny_path: Path, content: bytes) -> None:
    path = tmp_path / "overflow.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelFormatError):
        open_engine(path)
    with pytest.raises(ModelFormatError):
        open_engine(tiny_path, path)


DIMENSIONS = [
    (key, value)
    for key in (
        "block_count",
        "embedding_length",
        "feed_forward_length",
        "attention.head_count",
        "attention.key_length",
    )
    for value in (0, 1, 2**31 - 1, 2**31, 2**32 - 1)
] + [("context_length", 0), ("context_length", 2**31), ("context_length", 2**32 - 1)]


@pytest.mark.parametrize(("key", "value"), DIMENSIONS)
def test_dimensions_that_the_weights_contradict(tmp_path: Path, key: str, value: int) -> None:
    document = tiny_model.model()
    document.metadata[f"llama.{key}"] = integer(value)
    with pytest.raises((ModelFormatError, UnsupportedModelError), match=key.rpartition(".")[2] + "|tensor"):
        open_engine(document.write(tmp_path / "dimensions.gguf"))


def test_a_context_of_one_token(tmp_path: Path) -> None:
    document = tiny_model.model()
    document.metadata["llama.context_length"] = integer(1)
    path = document.write(tmp_path / "short.gguf")
    with Engine(path, drafter=None, threads=1) as engine, pytest.raises(ContextLengthError, match="at most 1"):
        engine.complete("x")


# ---- models that cannot run ------------------------------------------------------------------------------------------


def changed(key: str, value: Value | None) -> Document:
    document = tiny_model.model()
    document.metadata.pop(key)
    if value is not None:
        document.metadata[key] = value
    return document


def test_unsupported_architecture(tmp_path: Path) -> None:
    path = changed("general.architecture", text("mamba")).write(tmp_path / "m.gguf")
    with pytest.raises(UnsupportedModelError, match=r"m\.gguf.*'mamba'.*llama.*qwen3"):
        open_engine(path)


def test_unsupported_tensor_type(tmp_path: Path) -> None:
    document = tiny_model.model(n_embd=256)
    document.tensors["blk.1.ffn_gate.weight"] = Stored.zeros("Q8_K", (tiny_model.N_FF, 256))
    with pytest.raises(UnsupportedModelError, match=r"ffn_gate.*Q8_K"):
        open_engine(document.write(tmp_path / "m.gguf"))


def test_unsupported_tokenizer(tmp_path: Path) -> None:
    path = changed("tokenizer.ggml.model", text("t5")).write(tmp_path / "m.gguf")
    with pytest.raises(UnsupportedModelError, match=r"tokenizer\.ggml\.model.*gpt2"):
        open_engine(path)


@pytest.mark.parametrize(
    "key", ["general.architecture", "llama.block_count", "llama.attention.head_count", "tokenizer.ggml.tokens"]
)
def test_missing_metadata(tmp_path: Path, key: str) -> None:
    with pytest.raises(ModelFormatError, match=key):
        open_engine(changed(key, None).write(tmp_path / "m.gguf"))


def test_missing_tensors(tmp_path: Path) -> None:
    for name in ("token_embd.weight", "blk.1.attn_q.weight", "output_norm.weight"):
        document = tiny_model.model()
        del document.tensors[name]
        with pytest.raises(ModelFormatError, match=name):
            open_engine(document.write(tmp_path / "m.gguf"))


def test_a_vocabulary_of_another_size(tmp_path: Path) -> None:
    document = tiny_model.model()
    words = [*tiny_model.VOCABULARY, "one more"]
    document.metadata["tokenizer.ggml.tokens"] = Value(gguf.ARRAY, words, gguf.STRING)
    document.metadata["tokenizer.ggml.token_type"] = Value(gguf.ARRAY, [1] * len(words), gguf.INT32)
    with pytest.raises(ModelFormatError, match=r"260 .*259"):
        open_engine(document.write(tmp_path / "m.gguf"))


# ---- drafters that do not fit ----------------------------------------------------------------------------------------


def test_a_drafter_for_another_width(tiny_path: Path, tmp_path: Path) -> None:
    path = tiny_model.drafter(n_embd=96).write(tmp_path / "wide.gguf")
    with pytest.raises(DrafterMismatchError, match=r"embedding_length is 96, the target's is 64"):
        open_engine(tiny_path, path)


def test_a_drafter_for_another_vocabulary(tiny_path: Path, tmp_path: Path) -> None:
    larger = tiny_model.drafter(vocabulary=[*tiny_model.VOCABULARY, "one more"])
    with pytest.raises(DrafterMismatchError, match="vocabulary"):
        open_engine(tiny_path, larger.write(tmp_path / "larger.gguf"))
    words = list(tiny_model.VOCABULARY)
    words[7], words[8] = words[8], words[7]
    with pytest.raises(DrafterMismatchError, match="vocabular"):
        open_engine(tiny_path, tiny_model.drafter(vocabulary=words).write(tmp_path / "other.gguf"))


def test_a_drafter_that_taps_layers_the_target_lacks(tiny_path: Path, tmp_path: Path) -> None:
    document = tiny_model.drafter()
    document.metadata["dflash.target_layers"] = Value(gguf.ARRAY, [0, 1, 9], gguf.INT32)
    with pytest.raises(DrafterMismatchError, match=r"target_layers.* 9\b.*layers 0 to 2"):
        open_engine(tiny_path, document.write(tmp_path / "deep.gguf"))


def test_the_default_drafter_on_another_model(tiny_path: Path, drafter_path: Path) -> None:
    with pytest.raises(DrafterMismatchError, match="does not fit"):
        open_engine(tiny_path, drafter_path)


def test_models_and_drafters_confused(tiny_path: Path) -> None:
    drafter = tiny_path.with_name("tiny.dflash.gguf")
    with pytest.raises(DrafterMismatchError, match="dflash"):
        open_engine(tiny_path, tiny_path)
    with pytest.raises(UnsupportedModelError, match="drafter="):
        open_engine(drafter)


# ---- prompts ---------------------------------------------------------------------------------------------------------


def test_a_prompt_longer_than_the_context(tiny: Engine, tiny_path: Path) -> None:
    with pytest.raises(ContextLengthError, match=r"700 tokens.*holds 512.*shorten"):
        tiny.complete([1] * 700)
    with pytest.raises(ContextLengthError, match="at least one"):
        tiny.complete([1] * 512)
    assert len(tiny.complete([1] * 511, GenerationParams(max_tokens=5)).tokens) >= 1
    with Engine(tiny_path, drafter=None, threads=1, n_ctx=64) as small:
        with pytest.raises(ContextLengthError, match=r"100 tokens.*holds 64.*n_ctx up to 512"):
            small.complete([1] * 100)
        with pytest.raises(ContextLengthError, match="64"):
            small.evaluate([1] * 65)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("", "empty"),
        ([], "empty"),
        ([0, 259], "token 1 is 259; this model's ids are 0 to 258"),
        ([-1], "token 0 is -1"),
        ([2**40], "token 0 is"),
        ([1.5], "token ids"),
        (["a"], "token ids"),
        (b"bytes", "bytes"),
        (7, "token ids"),
        (None, "token ids"),
        ("lone \ud800 surrogate", "surrogate"),
    ],
)
def test_prompts_that_are_none(tiny: Engine, prompt: Any, expected: str) -> None:
    with pytest.raises(ParameterError, match=expected):
        tiny.complete(prompt)


def test_templates_that_raise(tiny: Engine) -> None:
    with pytest.raises(TemplateError, match="tools are not for this model"):
        tiny.render_chat([{"role": "tool", "content": "42"}])
    assert "hi" in tiny.render_chat([{"role": "user", "content": "hi"}])


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{% for %}", "line 1|template"),
        ("{{ messages[0].nothing.at_all }}", "nothing|undefined"),
        ("{{ ''.__class__.__mro__ }}", "unsafe|access"),
        (
            "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}",
            "range|loop|limit|large|long|more",
        ),
    ],
)
def test_hostile_templates(tmp_path: Path, source: str, expected: str) -> None:
    path = changed("tokenizer.chat_template", text(source)).write(tmp_path / "m.gguf")
    with Engine(path, drafter=None, threads=1) as engine:
        with pytest.raises(TemplateError, match=f"(?i){expected}"):
            engine.render_chat([{"role": "user", "content": "hi"}])
        assert engine.complete("plain text goes on", GenerationParams(max_tokens=3)).tokens


def test_a_model_without_a_template(tmp_path: Path) -> None:
    path = changed("tokenizer.chat_template", None).write(tmp_path / "m.gguf")
    with Engine(path, drafter=None, threads=1) as engine:
        assert engine.chat_template is None
        with pytest.raises(TemplateError, match="no chat template"):
            engine.render_chat([{"role": "user", "content": "hi"}])


# ---- parameters ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("temperature", [-0.1, 101, float("nan"), float("inf"), "warm", True, 10**400]),
        ("top_k", [-2, 2.5, 2**31, True, "3"]),
        ("top_p", [0, -1, 1.01, float("nan"), 1e-60]),
        ("min_p", [-0.01, 1.01, float("nan")]),
        ("seed", [-1, 2**64, 1.0, "1"]),
        ("max_tokens", [0, -5, 1.5, 2**31]),
        ("stop", [("",), (1,), ("a", None), ("\udc80",)]),
        ("speculation", ["on", True, "DFLASH"]),
        ("draft_length", [-1, 16, 1.5, True]),
    ],
)
def test_parameters_out_of_range(name: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(ParameterError, match=f"(?s)stop string|{name} (is|has) .* must"):
            GenerationParams(**{name: value})


def test_a_draft_longer_than_the_drafters_block(tiny: Engine) -> None:
    with pytest.raises(ParameterError, match="draft_length is 8; this drafter drafts at most 7"):
        tiny.complete("x", GenerationParams(draft_length=8))
    assert tiny.complete("x", GenerationParams(speculation="copy", draft_length=15, max_tokens=2)).tokens


OF_ANOTHER_PROCESSOR = "neon" if platform.machine().lower() in ("x86_64", "amd64") else "avx2"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"n_ctx": -1}, "n_ctx is -1; it must lie between 0 and 512"),
        ({"n_ctx": 513}, "n_ctx is 513; it must lie between 0 and 512"),
        ({"n_ctx": "many"}, "n_ctx is 'many'"),
        ({"threads": 0}, "threads is 0; it must lie between 1 and 64"),
        ({"threads": 65}, "threads is 65"),
        ({"threads": 1.5}, "threads is 1.5"),
        ({"n_parallel": 0}, "n_parallel is 0"),
        ({"device": "tpu"}, "device is 'tpu'; it must be 'auto', 'cpu' or 'cuda'"),
        ({"device": "cuda", "instruction_set": "portable"}, "instruction_set is 'portable', and device is 'cuda'"),
        ({"instruction_set": "sse9"}, "instruction set 'sse9' is not available; this machine has: .*portable"),
        ({"instruction_set": OF_ANOTHER_PROCESSOR}, f"'{OF_ANOTHER_PROCESSOR}' is not available; .* has: .*portable"),
        ({"instruction_set": ""}, "instruction set '' is not available"),
    ],
)
def test_engine_arguments_out_of_range(tiny_path: Path, arguments: dict[str, Any], expected: str) -> None:
    with pytest.raises(ParameterError, match=expected):
        Engine(tiny_path, **arguments)


# ---- nothing leaks ---------------------------------------------------------------------------------------------------


def resident_bytes() -> int:
    """Memory in use, without what Python's collector or the C library's heap have yet to give back."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def handles() -> tuple[int, int]:
    """Open files and threads of this process."""
    return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))


def has_more(now: tuple[int, int], before: tuple[int, int]) -> bool:
    return now[0] > before[0] or now[1] > before[1]


linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


def repeat(action: Callable[[], None], times: int) -> int:
    """Growth in bytes of the process over `times` calls, after some to warm up; files and threads must not grow."""
    for _ in range(5):
        action()
    files_and_threads, before = handles(), resident_bytes()
    for _ in range(times):
        action()
    after = resident_bytes()
    end = time.monotonic() + 10
    while has_more(handles(), files_and_threads) and time.monotonic() < end:
        time.sleep(0.01)  # a thread that was joined stays in /proc for a moment
    assert not has_more(handles(), files_and_threads)
    return after - before


@linux
def test_opening_and_closing_leaks_nothing(tiny_path: Path) -> None:
    def use() -> None:
        with Engine(tiny_path, threads=2) as engine:
            engine.complete("x", GenerationParams(max_tokens=3))
            with closing(engine.generate("y", GenerationParams())) as steps:
                next(steps)

    # A session's caches alone take 100 kB, packed weights 500 kB: a leak of either would show.
    assert repeat(use, 60) < 60 * 50_000


@linux
def test_failing_to_open_leaks_nothing(tiny_path: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    document = tiny_model.model()
    del document.tensors["blk.1.ffn_down.weight"]  # fails after most weights are packed
    broken.write_bytes(serialised(document))
    wide = tiny_model.drafter(n_embd=96).write(tmp_path / "wide.gguf")

    def fail() -> None:
        with pytest.raises(ModelFormatError):
            open_engine(broken)
        with pytest.raises(DrafterMismatchError):
            open_engine(tiny_path, wide)

    assert repeat(fail, 60) < 60 * 50_000


@linux
def test_the_default_pair_leaks_nothing(model_path: Path, drafter_path: Path) -> None:
    def use() -> None:
        Engine(model_path, drafter=drafter_path, n_ctx=256, threads=1).close()

    for _ in range(2):
        use()
    before = resident_bytes()
    for _ in range(3):
        use()
    assert resident_bytes() - before < 60_000_000  # of 110 MB of weights each time


@linux
def test_cancelled_requests_leak_nothing(tiny: Engine) -> None:
    def cancel() -> None:
        with closing(tiny.generate("x" * 100, GenerationParams(temperature=1.0))) as steps:
            next(steps)

    assert repeat(cancel, 200) < 4_000_000


def test_bad_requests_in_many_threads(tiny: Engine) -> None:
    errors: list[type[BaseException]] = []

    def fail() -> None:
        for _ in range(20):
            try:
                tiny.complete([1] * 600)
            except ContextLengthError as error:
                errors.append(type(error))

    threads = [threading.Thread(target=fail) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == [ContextLengthError] * 120
