"""Packed weights that are kept in files: the next engine maps them, computes the same bits, and packs anew what is not
whole or not of this model."""

from __future__ import annotations

import hashlib
import logging
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from family_models import N_CTX, N_VOCAB, make, tokens
from typer.testing import CliRunner

from bee_integrations.bench.fresh import FreshEngine, load_time
from bee_integrations.cli import app
from bee_integrations.engine import Engine, GenerationParams
from bee_integrations.errors import ParameterError
from bee_integrations.langchain import BeeLLM, ChatBee
from bee_integrations.library import check, ffi, lib, new_error
from bee_integrations.llama_index import Bee
from bee_integrations.models.packed import ENVIRONMENT, packed_directory, packed_files

# Tied and not; rows in stripes, experts, tables of layers, heads of latent attention, a block that predicts.
NAMES = [
    "llama-biases-factors-tied", "llama-fused-qkv", "qwen3moe", "gemma4-embeddings-shared-caches", "deepseek2",
    "qwen35-listed-predicting",
]  # fmt: skip


def opened(path: Path, packed: Path | None, threads: int = 2) -> tuple[bytes, dict[str, Any]]:
    """The bits of an engine's logits, and what it says of its packed weights."""
    error = new_error()
    directory = ffi.NULL if packed is None else ffi.new("char[]", bytes(packed))
    given = {"n_threads": threads, "device": lib.BEE_DEVICE_CPU, "packed_cache": directory}
    handle = lib.bee_engine_open(bytes(path), ffi.NULL, ffi.new("bee_engine_params *", given), error)
    check(handle, error)
    found = lib.bee_session_open(handle, N_CTX, False, error)
    check(found, error)
    ids, out = tokens(20), np.empty((20, N_VOCAB), np.float32)
    pointer = ffi.cast("float *", ffi.from_buffer(out))
    check(lib.bee_session_evaluate(found, ffi.new("int32_t[]", ids), len(ids), 16, pointer, error), error)
    info = ffi.new("bee_engine_info *")
    lib.bee_engine_describe(handle, info)
    lib.bee_session_close(found)
    lib.bee_engine_close(handle)
    said = {"mapped": int(info.mapped_bytes), "failed": bool(info.packed_failed), "all": int(info.weight_bytes)}
    return out.tobytes(), said | {"note": ffi.string(info.packed_note).decode()}


@pytest.mark.parametrize("name", NAMES)
def test_the_second_engine_maps_what_the_first_packed(name: str, tmp_path: Path) -> None:
    model, packed = make(name).write(tmp_path / "model.gguf"), tmp_path / "packed"
    plain, without = opened(model, None)
    first, written = opened(model, packed)
    second, mapped = opened(model, packed, threads=3)
    assert plain == first == second
    assert (without["mapped"], without["note"]) == (0, "")
    assert written["mapped"] == 0
    assert written["note"].count("written") == len(list(packed.iterdir()))
    assert (mapped["note"], mapped["failed"]) == ("", False)
    # Vectors are read from the model's file.
    assert 0.8 * mapped["all"] < mapped["mapped"] <= mapped["all"] == written["all"]


def test_a_drafter_has_a_file_of_its_own(tiny_path: Path, tmp_path: Path) -> None:
    def answer(packed: Path | None) -> tuple[list[int], int, Any]:
        with Engine(tiny_path, n_ctx=256, threads=2, packed_cache=packed or False) as engine:
            params = GenerationParams(max_tokens=24, speculation="dflash")
            completion = engine.complete([5, 6, 7], params)
            return list(completion.tokens), engine.info["mapped_bytes"], completion.stats.accepted_histogram

    plain, first, second = answer(None), answer(tmp_path), answer(tmp_path)
    assert plain[0] == first[0] == second[0]
    assert plain[2] == first[2] == second[2]
    assert (plain[1], first[1]) == (0, 0)
    assert second[1] > 0
    files = sorted(path.name.partition("-")[0] for path in tmp_path.iterdir())
    assert files == ["tiny.dflash.gguf", "tiny.gguf"]


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path, Path]:
    """A model, the directory, and the file of packed weights in it."""
    model, packed = make("llama-fused-qkv").write(tmp_path / "model.gguf"), tmp_path / "packed"
    opened(model, packed)
    (file,) = packed.iterdir()
    return model, packed, file


def assert_written_anew(model: Path, packed: Path, reason: str) -> None:
    plain, _ = opened(model, None)
    first, said = opened(model, packed)
    assert f"written anew: {reason}" in said["note"]
    second, mapped = opened(model, packed)
    assert plain == first == second
    assert mapped["mapped"] > 0
    assert len(list(packed.iterdir())) == 1


def test_a_changed_model_is_packed_anew(pair: tuple[Path, Path, Path]) -> None:
    """Even one whose size and time are the old one's."""
    model, packed, _ = pair
    content, stamp = bytearray(model.read_bytes()), model.stat()
    content[-2000] ^= 0x40
    model.write_bytes(content)
    os.utime(model, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert_written_anew(model, packed, "the model has changed")
    os.utime(model, ns=(stamp.st_atime_ns, stamp.st_mtime_ns + 1))
    assert_written_anew(model, packed, "the model has changed")


@pytest.mark.parametrize(
    ("at", "reason"),
    [
        (-5, "the checksum of its data"),
        (5, "it is no file"),
        (20, "the header's checksum"),
        (300, "the checksum of its"),
    ],
)
def test_a_damaged_file_is_packed_anew(at: int, reason: str, pair: tuple[Path, Path, Path]) -> None:
    model, packed, file = pair
    content = bytearray(file.read_bytes())
    content[at] ^= 1
    file.write_bytes(content)
    assert_written_anew(model, packed, reason)


@pytest.mark.parametrize("size", [0, 100, 4096, -1])
def test_a_file_that_was_cut_is_packed_anew(size: int, pair: tuple[Path, Path, Path]) -> None:
    model, packed, file = pair
    file.write_bytes(file.read_bytes()[:size])
    assert_written_anew(model, packed, "it is shorter")


def mixed(lane: int, word: int) -> int:
    lane ^= word
    return (lane << 29 & (1 << 64) - 1 | lane >> 35) * 0x9E3779B97F4A7C15 & (1 << 64) - 1


def checksum(content: bytearray) -> int:
    """As libbee/src/file/checksum.c has it."""
    total = mixed(0, len(content))
    lanes = [mixed(total, i) for i in range(8)]
    words = struct.iter_unpack("<8Q", content + bytes(-len(content) % 64))
    for row in words:
        lanes = [mixed(lane, word) for lane, word in zip(lanes, row, strict=True)]
    for lane in lanes:
        total = mixed(total, lane)
    return total ^ total >> 32


def test_a_file_of_other_weights_is_packed_anew(pair: tuple[Path, Path, Path]) -> None:
    """As of a library that asks for them in another order: all is whole, but the second weight is another."""
    model, packed, file = pair
    content = bytearray(file.read_bytes())
    n, _, data_bytes = struct.unpack_from("<QQQ", content, 88)
    entries = 128 + 8 * -(-data_bytes // (2 << 20))  # behind the header and the checksums
    content[entries + 24] ^= 1
    struct.pack_into("<Q", content, 112, checksum(content[128 : entries + 24 * n]))
    struct.pack_into("<Q", content, 120, checksum(content[:120]))
    file.write_bytes(content)
    assert_written_anew(model, packed, "it had other weights")


def test_what_cannot_be_written_only_warns(tmp_path: Path, caplog: pytest.LogCaptureFixture, tiny_path: Path) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    with caplog.at_level(logging.WARNING), Engine(tiny_path, threads=1, packed_cache=in_the_way / "packed") as engine:
        assert engine.info["packed_failed"]
        assert "not written: Not a directory" in engine.info["packed_note"]
        assert engine.complete([5, 6], GenerationParams(max_tokens=3)).tokens
    assert f"packed weights in {in_the_way / 'packed'}: " in caplog.text
    assert "not written: Not a directory" in caplog.text


def test_a_directory_without_a_name_is_none(tmp_path: Path) -> None:
    _, said = opened(make("llama-fused-qkv").write(tmp_path / "model.gguf"), b"")  # type: ignore[arg-type]
    assert (said["note"], said["failed"]) == ("", False)


SCRIPT = """
import sys
from pathlib import Path
from test_packed_weights import opened
out, said = opened(Path(sys.argv[1]), Path(sys.argv[2]))
import hashlib
print(hashlib.sha256(out).hexdigest(), said["failed"])
"""


def test_two_processes_at_once(tmp_path: Path) -> None:
    model, packed = make("qwen3moe").write(tmp_path / "model.gguf"), tmp_path / "packed"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    command = [sys.executable, "-c", SCRIPT, str(model), str(packed)]
    running = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) for _ in range(2)]
    outputs = [process.communicate(timeout=120)[0].decode().split() for process in running]
    plain, _ = opened(model, None)
    assert outputs == [[hashlib.sha256(plain).hexdigest(), "False"]] * 2
    third, said = opened(model, packed)
    assert third == plain
    assert said["mapped"] > 0
    assert len(list(packed.iterdir())) == 1


def test_where_they_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BEE_CACHE", str(tmp_path))
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    assert packed_directory(None) is packed_directory(False) is None
    assert packed_directory(True) == tmp_path / "packed"
    usual, other = tmp_path / "packed", Path("/some/where")
    said = {"": None, "0": None, "off": None, "False": None, "1": usual, "yes": usual, "TRUE": usual, str(other): other}
    for value, expected in said.items():
        monkeypatch.setenv(ENVIRONMENT, value)
        assert packed_directory(None) == expected
        assert packed_directory(True) == (expected or usual)
        assert packed_directory(False) is None
    for wrong in ("", 3, b"x"):
        with pytest.raises(ParameterError, match="packed_cache is"):
            packed_directory(wrong)  # type: ignore[arg-type]


def test_the_command_line(tiny_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BEE_CACHE", str(tmp_path))
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    runner, place = CliRunner(), tmp_path / "packed"
    run = ["run", "hello", "--raw", "--model", str(tiny_path), "--drafter", "none", "-n", "2", "-t", "1"]
    assert runner.invoke(app, run).exit_code == 0
    assert not place.exists()
    assert runner.invoke(app, [*run, "--packed-cache"]).exit_code == 0
    (file,) = packed_files(place)
    (place / f"{file.path.name}.Ab12Xy").write_bytes(b"left over")
    mine = ["data.packed.tar.gz", "holiday.packed", "notes.packed.gz", "notes.txt"]
    for name in mine:
        (place / name).write_text("mine")
    listed = runner.invoke(app, ["packed"]).output
    assert file.path.name in listed
    assert f"{file.path.name}.Ab12Xy" in listed
    assert "notes" not in listed
    assert "are free again" in runner.invoke(app, ["packed", "--remove"]).output
    assert sorted(path.name for path in place.iterdir()) == mine


def test_the_command_line_has_one_place(tiny_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What BEE_PACKED_CACHE names is where --packed-cache writes, and where it is listed."""
    monkeypatch.setenv("BEE_CACHE", str(tmp_path))
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path / "named"))
    run = ["run", "hello", "--raw", "--model", str(tiny_path), "--drafter", "none", "-n", "2", "-t", "1"]
    assert CliRunner().invoke(app, [*run, "--packed-cache"]).exit_code == 0
    (file,) = packed_files(tmp_path / "named")
    assert file.path.name in CliRunner().invoke(app, ["packed"]).output


def test_the_benchmark_loads_the_model_itself(tiny_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fresh process has the environment, and its figures are those of packing."""
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path / "packed"))
    place = {"threads": 1, "device": "cpu", "instruction_set": None}
    assert load_time(FreshEngine(tiny_path, None, 64, place), [5, 6]).open_s > 0
    assert not (tmp_path / "packed").exists()


def test_a_file_that_vanishes_hides_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"{name}.gguf-0123456789abcdef.packed" for name in "abc"]
    for name in names:
        (tmp_path / name).write_bytes(b"x")
    found = [tmp_path / name for name in names]
    monkeypatch.setattr(Path, "iterdir", lambda _: iter(found))
    found[1].unlink()
    assert [file.path.name for file in packed_files(tmp_path)] == [names[0], names[2]]


def test_language_models_of_frameworks_keep_them_too(tiny_path: Path, tmp_path: Path) -> None:
    for kind, ask in ((BeeLLM, "invoke"), (ChatBee, "invoke"), (Bee, "complete")):
        place = tmp_path / kind.__name__
        model = kind(model=str(tiny_path), threads=1, n_ctx=256, max_tokens=4, packed_cache=str(place))
        answer = getattr(model, ask)("a b")
        assert str(getattr(answer, "content", answer))
        assert list(packed_files(place)), kind
