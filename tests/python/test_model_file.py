"""What Python sees of a GGUF file, and how broken files are refused."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bee_integrations.errors import BeeError, ModelFileError, ModelFormatError, ParameterError, UnsupportedModelError
from bee_integrations.models.file import ModelFile

FORMATS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}


def string(text: str | bytes) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(data)) + data


def scalar(kind: int, value: Any) -> bytes:
    return struct.pack("<I", kind) + (string(value) if kind == 8 else struct.pack(FORMATS[kind], value))


def array(kind: int, values: list[Any]) -> bytes:
    items = [string(value) if kind == 8 else struct.pack(FORMATS[kind], value) for value in values]
    return struct.pack("<IIQ", 9, kind, len(values)) + b"".join(items)


def gguf(entries: dict[str, bytes], tensors: dict[str, tuple[int, ...]] | None = None) -> bytes:
    """A GGUF v3 file with the given encoded metadata values and zeroed F32 tensors."""
    tensors = tensors or {}
    header = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(entries))
    header += b"".join(string(key) + value for key, value in entries.items())
    data = b""
    for name, shape in tensors.items():
        header += string(name) + struct.pack("<I", len(shape)) + struct.pack(f"<{len(shape)}Q", *shape)
        header += struct.pack("<IQ", 0, len(data))
        data += bytes(-(-4 * int(np.prod(shape)) // 32) * 32)
    return header + bytes(-len(header) % 32) + data


ENTRIES = {
    "general.architecture": scalar(8, "llama"),
    "general.name": scalar(8, "Näme"),
    **{f"n.{kind}": scalar(kind, 1) for kind in FORMATS},
    "negative": scalar(5, -7),
    "quarter": scalar(6, 0.25),
    "no": scalar(7, False),
    "broken.text": scalar(8, b"a\xffb"),
    "texts": array(8, ["a", "", "ä", "x" * 300]),
    "floats": array(6, [0.5, -1.5]),
    "ints": array(5, [1, -2, 3]),
    "empty": array(4, []),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    target = tmp_path / "small ä.gguf"
    target.write_bytes(gguf(ENTRIES, {"first.weight": (4, 3), "second": (2,)}))
    return target


def test_metadata_is_decoded_by_type(path: Path) -> None:
    with ModelFile(path) as file:
        metadata = file.metadata
        assert list(metadata) == list(ENTRIES)
        assert len(metadata) == len(ENTRIES)
        assert file.architecture == "llama"
        assert metadata["general.name"] == "Näme"
        assert metadata["broken.text"] == "a\ufffdb"
        assert metadata["texts"] == ["a", "", "ä", "x" * 300]
        assert metadata["negative"] == -7
        assert metadata["quarter"] == 0.25
        assert metadata["no"] is False
        assert metadata["n.7"] is True
        for kind in FORMATS:
            assert metadata[f"n.{kind}"] == 1
            assert type(metadata[f"n.{kind}"]) is (bool if kind == 7 else float if kind in (6, 12) else int)
        assert metadata["floats"].dtype == np.float32
        assert metadata["floats"].tolist() == [0.5, -1.5]
        assert metadata["ints"].tolist() == [1, -2, 3]
        assert len(metadata["empty"]) == 0
        assert metadata.get("absent") is None
        assert "absent" not in metadata
        with pytest.raises(KeyError):
            metadata["absent"]


def test_tensors_and_size(path: Path) -> None:
    with ModelFile(str(path)) as file:
        first, second = file.tensors
        assert (first.name, first.type_name, first.shape, first.size) == ("first.weight", "F32", (4, 3), 48)
        assert (second.name, second.shape, second.size, second.supported) == ("second", (2,), 8, True)
        assert second.offset - first.offset == 64
        assert file.size == path.stat().st_size


def test_decoded_values_outlive_the_file_and_others_are_refused(path: Path) -> None:
    file = ModelFile(path)
    floats = file.metadata["floats"]
    file.close()
    file.close()
    assert floats.tolist() == [0.5, -1.5]
    assert file.metadata["floats"] is floats
    for access in (lambda: file.metadata["ints"], lambda: file.tensors, lambda: file.size, file.plan):
        with pytest.raises(ParameterError, match="closed"):
            access()


def test_default_model(model_path: Path) -> None:
    with ModelFile(model_path) as file:
        assert file.architecture == "llama"
        assert len(file.metadata["tokenizer.ggml.tokens"]) == 49152
        assert len(file.tensors) == 272
        assert sum(tensor.size for tensor in file.tensors) < file.size
        plan = file.plan()
    assert (plan.n_vocab, plan.n_layer, plan.n_embd, plan.is_drafter) == (49152, 30, 576, False)
    assert plan.kv_bytes_per_token == 30 * 2 * 3 * 64 * 2
    assert 50_000_000 < plan.weight_bytes < 200_000_000


def test_a_file_that_cannot_run_opens_but_has_no_plan(tmp_path: Path) -> None:
    target = tmp_path / "other.gguf"
    target.write_bytes(gguf({"general.architecture": scalar(8, "mamba")}))
    with ModelFile(target) as file:
        assert file.architecture == "mamba"
        with pytest.raises(UnsupportedModelError, match="mamba"):
            file.plan()


def test_a_file_without_architecture_says_so(tmp_path: Path) -> None:
    target = tmp_path / "bare.gguf"
    target.write_bytes(gguf({}))
    with ModelFile(target) as file, pytest.raises(ModelFormatError, match=r"general\.architecture"):
        _ = file.architecture


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="absent"):
        ModelFile(tmp_path / "absent.gguf")
    with pytest.raises(ModelFileError):
        ModelFile(tmp_path)
    with pytest.raises(ParameterError, match="NUL"):
        ModelFile("a\0b")


@pytest.mark.parametrize("content", [b"", b"GGUF", b"GGML" + bytes(100), b"PK\x03\x04" + bytes(100), bytes(1000)])
def test_foreign_files(tmp_path: Path, content: bytes) -> None:
    target = tmp_path / "foreign.gguf"
    target.write_bytes(content)
    with pytest.raises(ModelFormatError):
        ModelFile(target)


def test_every_truncation_is_refused(tmp_path: Path, path: Path) -> None:
    whole = path.read_bytes()
    target = tmp_path / "cut.gguf"
    for size in range(len(whole) - 33):
        target.write_bytes(whole[:size])
        with pytest.raises(ModelFormatError):
            ModelFile(target)


def test_flipped_bytes_never_crash(tmp_path: Path, path: Path) -> None:
    whole = path.read_bytes()
    source = np.random.default_rng(20261123)
    target = tmp_path / "flipped.gguf"
    outcomes = set()
    for _ in range(500):
        data = bytearray(whole)
        for position in source.integers(0, len(data) - 96, size=3):
            data[position] = source.integers(0, 256)
        target.write_bytes(data)
        try:
            with ModelFile(target) as file:
                dict(file.metadata)
                _ = file.tensors
            outcomes.add("opened")
        except BeeError:
            outcomes.add("refused")
    assert outcomes == {"opened", "refused"}
