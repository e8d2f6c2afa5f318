"""A GGUF file seen from Python: metadata, tensors, and what running it would take."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np

from ..errors import ModelFormatError, ParameterError
from ..library import check, ffi, lib, new_error

__all__ = ["KV_CACHES", "ModelFile", "Plan", "TensorInfo", "check_kv_cache"]

# How keys and values may be remembered.
KV_CACHES: dict[str, int] = {"f16": int(lib.BEE_KV_F16), "q8_0": int(lib.BEE_KV_Q8_0)}

# GGUF's numbers of value types that NumPy reads directly, little-endian as in the file.
_NUMBERS: dict[int, np.dtype[Any]] = {
    0: np.dtype("<u1"),
    1: np.dtype("<i1"),
    2: np.dtype("<u2"),
    3: np.dtype("<i2"),
    4: np.dtype("<u4"),
    5: np.dtype("<i4"),
    6: np.dtype("<f4"),
    7: np.dtype("?"),
    10: np.dtype("<u8"),
    11: np.dtype("<i8"),
    12: np.dtype("<f8"),
}
_STRING = 8
_ARRAY = 9


def check_kv_cache(kv_cache: str) -> None:
    """Raise ParameterError for a name that is none of KV_CACHES."""
    if not isinstance(kv_cache, str) or kv_cache not in KV_CACHES:
        raise ParameterError(f"kv_cache is {kv_cache!r}; it must be {' or '.join(map(repr, KV_CACHES))}")


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a file.

    `shape` is in the file's order: shape[0] is contiguous in memory. `type` is ggml's number of the type, `offset` is
    in bytes from the start of the file, `size` in bytes (0 for a type whose layout is unknown).
    """

    name: str
    type_name: str
    type: int
    supported: bool
    shape: tuple[int, ...]
    offset: int
    size: int


@dataclass(frozen=True)
class Plan:
    """What running a file would take; sizes in bytes."""

    weight_bytes: int
    kv_bytes_per_token: int
    state_bytes: int  # of a session's recurrent layers, whatever its context
    n_vocab: int
    n_ctx_train: int
    n_layer: int
    n_embd: int
    n_left_out: int  # blocks behind the layers, which predict further tokens: they are not run
    is_drafter: bool


class ModelFile:
    """A GGUF v3 file, mapped read-only and checked in full when it is opened. A context manager.

    Raises `ModelFileError` where the file cannot be read and `ModelFormatError` where it is not a sound GGUF file.
    What was decoded (metadata values, tensor lists) stays valid after `close`.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._handle: Any = None
        self.path = os.fspath(path)
        encoded = os.fsencode(self.path)
        if b"\0" in encoded:
            raise ParameterError(f"the path {self.path!r} contains a NUL character; give the path of a GGUF file")
        error = new_error()
        handle = lib.bee_file_open(encoded, error)
        check(handle, error)
        self._handle = handle
        self._tensors: list[TensorInfo] | None = None
        try:
            self._metadata = _Metadata(self)
        except BaseException:
            self.close()
            raise

    @property
    def metadata(self) -> Mapping[str, Any]:
        """Metadata by key, in the file's order; each value is decoded when it is first asked for.

        Numbers become int, float or bool, strings str, arrays of numbers NumPy arrays, arrays of strings lists of str.
        Bytes that are not UTF-8 become U+FFFD.
        """
        return self._metadata

    @property
    def tensors(self) -> list[TensorInfo]:
        """The tensors in the file's order."""
        if self._tensors is None:
            handle = self._open_handle()
            self._tensors = [_tensor(handle, index) for index in range(lib.bee_file_tensor_count(handle))]
        return self._tensors

    @property
    def architecture(self) -> str:
        """`general.architecture`; raises `ModelFormatError` where the file has none."""
        value = self.metadata.get("general.architecture")
        if not isinstance(value, str):
            raise ModelFormatError(f"{self.path}: the metadata key general.architecture is missing or not a string")
        return value

    @property
    def handle(self) -> Any:
        """The `bee_file *`, which lives until `close`."""
        return self._open_handle()

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        return int(lib.bee_file_size(self._open_handle()))

    def plan(self, kv_cache: str = "f16") -> Plan:
        """What running the file would take, from its header alone, with keys and values as `kv_cache` names them.

        Raises `UnsupportedModelError` or `ModelFormatError`, with the reason, where an engine could not open it.
        """
        out = ffi.new("bee_plan *")
        error = new_error()
        check(lib.bee_file_plan(self._open_handle(), KV_CACHES[kv_cache], out, error), error)
        return Plan(
            weight_bytes=out.weight_bytes,
            kv_bytes_per_token=out.kv_bytes_per_token,
            state_bytes=out.state_bytes,
            n_vocab=out.n_vocab,
            n_ctx_train=out.n_ctx_train,
            n_layer=out.n_layer,
            n_embd=out.n_embd,
            n_left_out=out.n_left_out,
            is_drafter=bool(out.is_drafter),
        )

    def close(self) -> None:
        """Unmap the file; a second call does nothing."""
        handle, self._handle = self._handle, None
        if handle is not None:
            lib.bee_file_close(handle)

    def __enter__(self) -> ModelFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        # `lib` is None while the interpreter shuts down; the mapping goes with the process then.
        if getattr(self, "_handle", None) is not None and lib is not None:
            self.close()

    def __repr__(self) -> str:
        return f"ModelFile({self.path!r})"

    def _open_handle(self) -> Any:
        if self._handle is None:
            raise ParameterError(f"{self.path} is closed; open it again with ModelFile(path)")
        return self._handle


class _Metadata(Mapping[str, Any]):
    """Keys are read at once; values are decoded on first use, because vocabularies are large."""

    def __init__(self, file: ModelFile) -> None:
        self._file = file
        self._values: dict[str, Any] = {}
        handle = file._open_handle()
        entry = ffi.new("bee_metadata *")
        self._index: dict[str, int] = {}
        for index in range(lib.bee_file_metadata_count(handle)):
            error = new_error()
            check(lib.bee_file_metadata(handle, index, entry, error), error)
            self._index.setdefault(_text(entry.key, entry.key_length), index)

    def __getitem__(self, key: str) -> Any:
        if key not in self._values:
            index = self._index[key]
            entry = ffi.new("bee_metadata *")
            error = new_error()
            check(lib.bee_file_metadata(self._file._open_handle(), index, entry, error), error)
            self._values[key] = _decode(key, entry)
        return self._values[key]

    def __contains__(self, key: object) -> bool:
        return key in self._index

    def __iter__(self) -> Iterator[str]:
        return iter(self._index)

    def __len__(self) -> int:
        return len(self._index)


def _text(pointer: Any, length: int) -> str:
    return bytes(ffi.buffer(pointer, length)).decode("utf-8", errors="replace")


def _decode(key: str, entry: Any) -> Any:
    # bytes(): a copy, because the mapping ends with the file.
    data = bytes(ffi.buffer(entry.data, entry.size)) if entry.size else b""
    element = int(entry.element_type)
    if int(entry.type) == _ARRAY:
        if element == _STRING:
            return _strings(key, data, int(entry.count))
        return np.frombuffer(data, dtype=_dtype(key, element), count=int(entry.count))
    if element == _STRING:
        return _strings(key, data, 1)[0]
    return np.frombuffer(data, dtype=_dtype(key, element), count=1)[0].item()


def _dtype(key: str, element: int) -> np.dtype[Any]:
    if element not in _NUMBERS:
        raise ModelFormatError(f"metadata {key} has elements of type {element}; only numbers and strings are read")
    return _NUMBERS[element]


def _strings(key: str, data: bytes, count: int) -> list[str]:
    strings = []
    position = 0
    length_at = struct.Struct("<Q").unpack_from
    for index in range(count):
        if position + 8 > len(data):
            raise ModelFormatError(f"metadata {key} ends inside string {index} of {count}")
        end = position + 8 + length_at(data, position)[0]
        if end > len(data):
            raise ModelFormatError(f"metadata {key}: string {index} of {count} is longer than the value")
        strings.append(data[position + 8 : end].decode("utf-8", errors="replace"))
        position = end
    return strings


def _tensor(handle: Any, index: int) -> TensorInfo:
    out = ffi.new("bee_tensor_info *")
    error = new_error()
    check(lib.bee_file_tensor(handle, index, out, error), error)
    return TensorInfo(
        name=_text(out.name, out.name_length),
        type_name=ffi.string(out.type_name).decode("utf-8", errors="replace") if out.type_name else f"type {out.type}",
        type=out.type,
        supported=bool(out.supported),
        shape=tuple(out.shape[dimension] for dimension in range(out.n_dimensions)),
        offset=out.offset,
        size=out.size,
    )
