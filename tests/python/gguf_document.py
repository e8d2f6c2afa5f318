"""GGUF files as values that tests read, change and write again, and their tensors in double precision.

Written from the GGUF specification and ggml's description of its block formats, not from libbee: what libbee makes of a
file is compared with what this module makes of it.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
BOOL, STRING, ARRAY, UINT32, INT32, FLOAT32, UINT64 = 7, 8, 9, 4, 5, 6, 10
# ggml's number of a type, values in a block, bytes of a block
TYPES = {
    "F32": (0, 1, 4), "F16": (1, 1, 2), "BF16": (30, 1, 2), "I64": (27, 1, 8), "Q8_0": (8, 32, 34), "Q4_0": (2, 32, 18),
    "Q4_1": (3, 32, 20), "Q5_0": (6, 32, 22), "Q5_1": (7, 32, 24), "Q4_K": (12, 256, 144), "Q5_K": (13, 256, 176),
    "Q6_K": (14, 256, 210), "Q2_K": (10, 256, 84), "Q3_K": (11, 256, 110), "IQ4_NL": (20, 32, 18),
    "IQ4_XS": (23, 256, 136), "MXFP4": (39, 32, 17), "NVFP4": (40, 64, 36), "IQ3_S": (21, 256, 110),
    "IQ3_XXS": (18, 256, 98), "IQ2_S": (22, 256, 82), "IQ2_XS": (17, 256, 74), "IQ2_XXS": (16, 256, 66),
    "IQ1_S": (19, 256, 50), "IQ1_M": (29, 256, 56), "TQ1_0": (34, 256, 54), "TQ2_0": (35, 256, 66),
    "Q1_0": (41, 128, 18), "Q2_0": (42, 64, 18), "Q8_K": (15, 256, 292), "I16": (25, 1, 2),
}  # fmt: skip
# Where a block has its float16 scales.
HALVES = {
    "Q8_0": (0,), "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q4_K": (0, 2), "Q5_K": (0, 2),
    "Q6_K": (208,), "Q2_K": (80, 82), "Q3_K": (108,), "IQ4_NL": (0,), "IQ4_XS": (0,), "IQ3_S": (0,), "IQ3_XXS": (0,),
    "IQ2_S": (0,), "IQ2_XS": (0,), "IQ2_XXS": (0,), "IQ1_S": (0,), "IQ1_M": (), "TQ1_0": (52,), "TQ2_0": (64,),
    "Q1_0": (0,), "Q2_0": (0,), "MXFP4": (), "NVFP4": (),
}  # fmt: skip
NAMES = {number: name for name, (number, _, _) in TYPES.items()}
ALIGNMENT = 32

Array = npt.NDArray[np.float64]
Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Value:
    """A metadata value; `element` is the type of an array's elements."""

    kind: int
    content: Any
    element: int = 0


def text(content: str) -> Value:
    return Value(STRING, content)


def integer(content: int) -> Value:
    return Value(UINT32, content)


def number(content: float) -> Value:
    return Value(FLOAT32, content)


@dataclass(frozen=True)
class Stored:
    """A tensor as the file holds it; `shape` begins with the rows, unlike in the file."""

    type_name: str
    shape: tuple[int, ...]
    data: bytes

    @classmethod
    def of(cls, values: npt.NDArray[Any], type_name: str = "F32") -> Stored:
        """F32, F16, BF16 (rounded to nearest, ties to even) or I64."""
        if type_name == "BF16":
            bits = np.ascontiguousarray(values, "<f4").view("<u4")
            data = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype("<u2").tobytes()
        else:
            data = values.astype({"F32": "<f4", "F16": "<f2", "I64": "<i8"}[type_name]).tobytes()
        return cls(type_name, values.shape, data)

    @classmethod
    def zeros(cls, type_name: str, shape: tuple[int, ...]) -> Stored:
        _, values, size = TYPES[type_name]
        return cls(type_name, shape, bytes(int(np.prod(shape)) // values * size))

    def values(self) -> Array:
        """The exact values, rows first."""
        data = np.frombuffer(self.data, np.uint8)
        _, _, size = TYPES[self.type_name]
        if self.type_name in ("F32", "F16"):
            return data.view({"F32": "<f4", "F16": "<f2"}[self.type_name]).astype(np.float64).reshape(self.shape)
        if self.type_name == "BF16":
            return (data.view("<u2").astype("<u4") << 16).view("<f4").astype(np.float64).reshape(self.shape)
        return DECODERS[self.type_name](data.reshape(-1, size)).reshape(self.shape)


@dataclass
class Document:
    metadata: dict[str, Value] = field(default_factory=dict)
    tensors: dict[str, Stored] = field(default_factory=dict)

    def copy(self) -> Document:
        return Document(dict(self.metadata), dict(self.tensors))

    def write(self, path: Path) -> Path:
        path.write_bytes(serialised(self))
        return path


# ---- reading and writing -----------------------------------------------------------------------------


class _Cursor:
    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def scalar(self, code: str) -> Any:
        (value,) = struct.unpack_from("<" + code, self.data, self.at)
        self.at += struct.calcsize("<" + code)
        return value

    def string(self) -> str:
        length = self.scalar("Q")
        self.at += length
        return self.data[self.at - length : self.at].decode()

    def element(self, kind: int) -> Any:
        return self.string() if kind == STRING else self.scalar(SCALARS[kind])

    def value(self) -> Value:
        kind = self.scalar("I")
        if kind != ARRAY:
            return Value(kind, self.element(kind))
        element, count = self.scalar("I"), self.scalar("Q")
        return Value(ARRAY, [self.element(element) for _ in range(count)], element)


def read(path: Path) -> Document:
    cursor = _Cursor(path.read_bytes())
    assert cursor.scalar("4s") == b"GGUF"
    assert cursor.scalar("I") == 3
    n_tensors, n_values = cursor.scalar("Q"), cursor.scalar("Q")
    document = Document({cursor.string(): cursor.value() for _ in range(n_values)})
    places = []
    for _ in range(n_tensors):
        name = cursor.string()
        shape = tuple(cursor.scalar("Q") for _ in range(cursor.scalar("I")))[::-1]
        places.append((name, shape, NAMES[cursor.scalar("I")], cursor.scalar("Q")))
    start = -(-cursor.at // ALIGNMENT) * ALIGNMENT
    for name, shape, type_name, offset in places:
        _, values, size = TYPES[type_name]
        begin = start + offset
        data = cursor.data[begin : begin + int(np.prod(shape)) // values * size]
        document.tensors[name] = Stored(type_name, shape, data)
    return document


def _string(content: str) -> bytes:
    encoded = content.encode()
    return struct.pack("<Q", len(encoded)) + encoded


def _element(kind: int, content: Any) -> bytes:
    return _string(content) if kind == STRING else struct.pack("<" + SCALARS[kind], content)


def _value(value: Value) -> bytes:
    if value.kind != ARRAY:
        return struct.pack("<I", value.kind) + _element(value.kind, value.content)
    head = struct.pack("<IIQ", ARRAY, value.element, len(value.content))
    return head + b"".join(_element(value.element, item) for item in value.content)


def _padding(size: int) -> bytes:
    return bytes(-size % ALIGNMENT)


def serialised(document: Document) -> bytes:
    header = struct.pack("<4sIQQ", b"GGUF", 3, len(document.tensors), len(document.metadata))
    header += b"".join(_string(key) + _value(value) for key, value in document.metadata.items())
    data = b""
    for name, tensor in document.tensors.items():
        header += _string(name) + struct.pack("<I", len(tensor.shape))
        header += struct.pack(f"<{len(tensor.shape)}Q", *tensor.shape[::-1])
        header += struct.pack("<IQ", TYPES[tensor.type_name][0], len(data))
        data += tensor.data + _padding(len(tensor.data))
    return header + _padding(len(header)) + data


# ---- block formats: uint8[blocks][bytes] to float64[blocks][values] ----------------------------------


def _half(blocks: Bytes, at: int) -> Array:
    return np.ascontiguousarray(blocks[:, at : at + 2]).view("<f2").astype(np.float64)


def _nibbles(blocks: Bytes, at: int) -> Bytes:
    codes = blocks[:, at : at + 16]
    return np.concatenate([codes & 15, codes >> 4], axis=1)


def _fifth_bits(blocks: Bytes, at: int) -> Bytes:
    return np.unpackbits(blocks[:, at : at + 4], axis=1, bitorder="little") << 4


def _q8_0(blocks: Bytes) -> Array:
    return _half(blocks, 0) * np.ascontiguousarray(blocks[:, 2:]).view(np.int8)


def _q4_0(blocks: Bytes) -> Array:
    return _half(blocks, 0) * (_nibbles(blocks, 2).astype(np.float64) - 8)


def _q4_1(blocks: Bytes) -> Array:
    return _half(blocks, 0) * _nibbles(blocks, 4) + _half(blocks, 2)


def _q5_0(blocks: Bytes) -> Array:
    return _half(blocks, 0) * ((_nibbles(blocks, 6) | _fifth_bits(blocks, 2)).astype(np.float64) - 16)


def _q5_1(blocks: Bytes) -> Array:
    return _half(blocks, 0) * (_nibbles(blocks, 8) | _fifth_bits(blocks, 4)) + _half(blocks, 2)


def _six_bit_pairs(packed: Bytes) -> tuple[Array, Array]:
    """12 bytes: eight scales and eight minima of 6 bits each."""
    first, second, rest = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = np.concatenate([first & 63, (rest & 15) | (first >> 6 << 4)], axis=1)
    minima = np.concatenate([second & 63, (rest >> 4) | (second >> 6 << 4)], axis=1)
    return scales.astype(np.float64), minima.astype(np.float64)


def _k_values(blocks: Bytes, codes: Bytes) -> Array:
    """codes: [blocks][8 groups][32]"""
    scales, minima = _six_bit_pairs(blocks[:, 4:16])
    scales, minima = _half(blocks, 0) * scales, _half(blocks, 2) * minima
    return (scales[:, :, None] * codes - minima[:, :, None]).reshape(len(blocks), 256)


def _k_nibbles(blocks: Bytes, at: int) -> Bytes:
    """Per 64 values 32 bytes: the low nibbles are the first group, the high ones the second."""
    packed = blocks[:, at : at + 128].reshape(-1, 4, 1, 32)
    return np.concatenate([packed & 15, packed >> 4], axis=2).reshape(-1, 8, 32)


def _q4_k(blocks: Bytes) -> Array:
    return _k_values(blocks, _k_nibbles(blocks, 16))


def _q5_k(blocks: Bytes) -> Array:
    fifth = np.unpackbits(blocks[:, 16:48, None], axis=2, bitorder="little").transpose(0, 2, 1)
    return _k_values(blocks, _k_nibbles(blocks, 48) | fifth << 4)


def _q6_k(blocks: Bytes) -> Array:
    """Two halves of 128 values; in each, 64 bytes of nibbles, 32 bytes of bit pairs, and 8 scales."""
    low = blocks[:, :128].reshape(-1, 2, 2, 32)
    low = np.concatenate([low & 15, low >> 4], axis=2)
    pairs = blocks[:, 128:192].reshape(-1, 2, 1, 32)
    high = np.concatenate([pairs >> shift & 3 for shift in (0, 2, 4, 6)], axis=2)
    codes = (low | high << 4).astype(np.float64).reshape(-1, 16, 16) - 32
    scales = np.ascontiguousarray(blocks[:, 192:208]).view(np.int8).astype(np.float64)
    return (_half(blocks, 208) * scales)[:, :, None] * codes


def _fp4(nibbles: Bytes) -> Array:
    """Twice the floats of 4 bits: the last 16 of 32, or the last 8 of 16, are in the high nibbles."""
    table = np.array([0, 1, 2, 3, 4, 6, 8, 12])
    return np.concatenate([table, -table])[np.concatenate([nibbles & 15, nibbles >> 4], axis=-1)].astype(np.float64)


def _mxfp4(blocks: Bytes) -> Array:
    return 2.0 ** (blocks[:, :1].astype(int) - 128) * _fp4(blocks[:, 1:])


def small_floats(bits: Bytes) -> Array:
    """E4M3 without a sign, of which 0x7f is nothing."""
    exponent, mantissa = (bits >> 3 & 15).astype(int), bits & 7
    values = np.where(exponent > 0, (1 + mantissa / 8) * 2.0 ** (exponent - 7), mantissa * 2.0**-9)
    return np.where(bits == 0x7F, 0, values)


def _nvfp4(blocks: Bytes) -> Array:
    """Four scales, then 8 bytes for each."""
    return (small_floats(blocks[:, :4, None]) / 2 * _fp4(blocks[:, 4:].reshape(-1, 4, 8))).reshape(len(blocks), 64)


DECODERS = {
    "Q8_0": _q8_0, "Q4_0": _q4_0, "Q4_1": _q4_1, "Q5_0": _q5_0, "Q5_1": _q5_1, "Q4_K": _q4_k, "Q5_K": _q5_k,
    "Q6_K": _q6_k, "MXFP4": _mxfp4, "NVFP4": _nvfp4,
}  # fmt: skip
