"""Conversations on disk: token ids and the target's features, written while they are generated.

One folder per writer, three files that only grow. The index is written last, so what it names is complete; a writer
that was interrupted cuts the other two back to what its index names and goes on.

    tokens.bin     int32 ids of one conversation after another: prompt, then answer
    features.bin   bfloat16[n_taps * n_embd] per token but the last of a conversation, which the target never ran
    index.bin      one `RECORD` per conversation
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

RECORD = np.dtype([("token_start", "<u8"), ("feature_start", "<u8"), ("n_tokens", "<u4"), ("answer_start", "<u4")])
"""Where a conversation lies in its shard (in tokens and feature rows) and where in it the answer begins."""


def to_bfloat16(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """The upper halves of float32 numbers, rounded to nearest even. NumPy has no bfloat16: PyTorch reads the bits."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


class ShardWriter:
    """Appends conversations to one folder. `width` is n_taps * n_embd."""

    def __init__(self, folder: Path, width: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._width = width
        self._files = [
            open(folder / name, "ab")  # noqa: SIM115 - closed by close()
            for name in ("tokens.bin", "features.bin", "index.bin")
        ]
        index = _read_index(folder)
        self.n_conversations = len(index)
        self.n_answer_tokens = int((index["n_tokens"] - index["answer_start"]).sum())
        self._n_tokens = int(index["n_tokens"].sum())
        self._n_features = self._n_tokens - len(index)
        sizes = (self._n_tokens * 4, self._n_features * width * 2, len(index) * RECORD.itemsize)
        for file, size in zip(self._files, sizes, strict=True):
            file.truncate(size)

    def add(self, tokens: Sequence[int], answer_start: int, features: npt.NDArray[np.float32]) -> None:
        """Store one conversation; `features` is float32[len(tokens) - 1][width], in any shape of that size."""
        rows = to_bfloat16(features).reshape(-1, self._width)
        if len(rows) != len(tokens) - 1:
            raise ValueError(f"{len(tokens)} tokens need {len(tokens) - 1} rows of features, not {len(rows)}")
        record = np.array([(self._n_tokens, self._n_features, len(tokens), answer_start)], RECORD)
        for file, data in zip(self._files, (np.asarray(tokens, "<i4"), rows, record), strict=True):
            file.write(data.tobytes())
            file.flush()
        self._n_tokens += len(tokens)
        self._n_features += len(rows)
        self.n_conversations += 1
        self.n_answer_tokens += len(tokens) - answer_start

    def close(self) -> None:
        for file in self._files:
            file.close()

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@dataclass(frozen=True)
class Conversation:
    tokens: npt.NDArray[np.int32]
    """int32[n]: prompt and answer."""
    answer_start: int
    features: npt.NDArray[np.uint16]
    """Bits of bfloat16[n - 1][n_taps * n_embd], mapped from the file."""


class Conversations(Sequence[Conversation]):
    """Everything that the shards of a folder hold at the moment of opening."""

    def __init__(self, folder: Path, width: int) -> None:
        self._shards = [_Shard(path.parent, width) for path in sorted(folder.glob("*/index.bin"))]
        self._where = [(shard, row) for shard, content in enumerate(self._shards) for row in range(len(content.index))]

    def __len__(self) -> int:
        return len(self._where)

    def __getitem__(self, item):  # type: ignore[no-untyped-def]
        if isinstance(item, slice):
            return [self[i] for i in range(*item.indices(len(self)))]
        shard, row = self._where[item]
        return self._shards[shard].conversation(row)

    @property
    def n_answer_tokens(self) -> int:
        return sum(int((shard.index["n_tokens"] - shard.index["answer_start"]).sum()) for shard in self._shards)


class _Shard:
    def __init__(self, folder: Path, width: int) -> None:
        self.index = _read_index(folder)
        self._tokens = _mapped(folder / "tokens.bin", np.dtype("<i4"))
        features = _mapped(folder / "features.bin", np.dtype("<u2"))
        self._features = features[: len(features) // width * width].reshape(-1, width)

    def conversation(self, row: int) -> Conversation:
        token, feature, n_tokens, answer = (int(value) for value in self.index[row])
        return Conversation(
            self._tokens[token : token + n_tokens], answer, self._features[feature : feature + n_tokens - 1]
        )


def _read_index(folder: Path) -> npt.NDArray[np.void]:
    data = (folder / "index.bin").read_bytes()
    return np.frombuffer(data[: len(data) // RECORD.itemsize * RECORD.itemsize], RECORD)


def _mapped(path: Path, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    n = os.path.getsize(path) // dtype.itemsize
    return np.memmap(path, dtype, "r", shape=(n,)) if n else np.empty(0, dtype)
