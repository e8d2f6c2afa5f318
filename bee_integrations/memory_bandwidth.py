"""How fast this machine reads memory: the limit that decoding runs against."""

from __future__ import annotations

import threading
import time

import numpy as np

__all__ = ["read_bandwidth"]

_BYTES_PER_THREAD = 128 << 20  # together far larger than any cache


def read_bandwidth(threads: int, rounds: int = 5) -> float:
    """Bytes per second that `threads` threads read together from memory: the best of `rounds`.

    Each thread reduces an array of its own with NumPy, which releases the interpreter lock.
    """
    arrays = [np.ones(_BYTES_PER_THREAD // 8, dtype=np.int64) for _ in range(threads)]
    best = 0.0
    for _ in range(rounds):
        start_line = threading.Barrier(threads + 1)
        workers = [threading.Thread(target=_read, args=(array, start_line), daemon=True) for array in arrays]
        for worker in workers:
            worker.start()
        start_line.wait()
        start = time.perf_counter()
        for worker in workers:
            worker.join()
        best = max(best, threads * _BYTES_PER_THREAD / (time.perf_counter() - start))
    return best


def _read(array: np.ndarray, start_line: threading.Barrier) -> None:
    start_line.wait()
    np.bitwise_or.reduce(array)
