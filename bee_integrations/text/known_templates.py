"""Chat templates of well-known models, by hash: their renderings are tested, and they need no process of their own.

The list has a line for each template that `make reference` fetches: the fingerprint, and a name for the reader.
"""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

__all__ = ["LIST", "fingerprint", "is_known"]

LIST = Path(__file__).with_suffix(".txt")


def fingerprint(source: str) -> str:
    """SHA-256 in hex, without the white space around the source, which differs from copy to copy."""
    return hashlib.sha256(source.strip().encode("utf-8", "surrogatepass")).hexdigest()


def is_known(source: str) -> bool:
    """Whether a template is one of the list."""
    return fingerprint(source) in _fingerprints()


@functools.cache
def _fingerprints() -> frozenset[str]:
    try:
        lines = LIST.read_text(encoding="utf-8").splitlines()
    except OSError:  # then none is known
        return frozenset()
    return frozenset(line.split(" ")[0] for line in lines)
