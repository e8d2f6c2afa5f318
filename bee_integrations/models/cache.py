"""The cache directory and what is remembered in it: small JSON files, which may be missing, damaged or forged.

A memo only saves time. So nothing here fails for its sake: what cannot be read counts as unknown, and what cannot be
written is not remembered.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import stat
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from ..errors import ModelFileError
from .located import Progress

__all__ = ["cache_directory", "disk_error", "memo_path", "read_chunks", "recall", "remember", "sha256_of"]

_CHUNK = 1 << 20
_MAX_MEMO = 64 << 10  # bytes


def cache_directory() -> Path:
    """``$BEE_CACHE``, or ``bee`` in the user's cache directory. It need not exist.

    Raises ModelFileError where there is neither that variable nor a home directory.
    """
    try:
        override = os.environ.get("BEE_CACHE")
        if override:
            return Path(override).expanduser().absolute()
        if sys.platform == "darwin":
            return Path.home() / "Library" / "Caches" / "bee"
        base = os.environ.get("XDG_CACHE_HOME", "")
        # The XDG specification says that a relative path is to be ignored.
        return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "bee"
    except RuntimeError as error:  # neither HOME nor an entry of this user's in the system
        raise ModelFileError(
            f"there is no home directory ({error}), so no place for models and memos: name a folder in the "
            "environment variable BEE_CACHE"
        ) from error


def memo_path(kind: str, key: bytes) -> Path | None:
    """Where the memo of a key is kept; None where there is no cache directory."""
    with contextlib.suppress(ModelFileError):
        return cache_directory() / kind / f"{hashlib.sha256(key).hexdigest()}.json"
    return None


def recall(memo: Path | None) -> Mapping[str, Any]:
    """What a memo says; empty where it says nothing that can be read. Its values may be anything that JSON can say."""
    if memo is None:
        return {}
    try:
        content = json.loads(_read_regular(memo))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _read_regular(path: Path) -> bytes:
    # A pipe in its place must not make us wait, nor a device fill the memory.
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        return os.read(handle, _MAX_MEMO) if stat.S_ISREG(os.fstat(handle).st_mode) else b""
    finally:
        os.close(handle)


def remember(memo: Path | None, content: Mapping[str, object]) -> None:
    """Write a memo, whole or not at all."""
    if memo is None:
        return
    with contextlib.suppress(OSError):  # a full disk or a read-only cache directory only costs time
        memo.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=memo.parent, prefix=".memo-")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump(content, file)
            os.replace(temporary, memo)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise


def sha256_of(path: Path, progress: Progress | None = None) -> str:
    """SHA-256 of a file in hex; remembered in the cache directory for as long as the file stays the same."""
    path = path.absolute()
    state = path.stat()
    stamp = [state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino]
    memo = memo_path("checksums", os.fsencode(path))
    known = recall(memo)
    digest = known.get("sha256")
    if isinstance(digest, str) and known == _checksum_memo(stamp, digest):
        return digest
    computed = hashlib.sha256()
    done = 0
    with path.open("rb") as file:
        for chunk in read_chunks(file):
            computed.update(chunk)
            done += len(chunk)
            if progress is not None:
                progress(min(done, state.st_size), state.st_size, "check")
    digest = computed.hexdigest()
    remember(memo, _checksum_memo(stamp, digest))
    return digest


def _checksum_memo(stamp: list[int], digest: str) -> dict[str, object]:
    """The memo with a seal on it: a digit that a disk or an editor changed must not pass for a checksum."""
    if not re.fullmatch(r"[0-9a-f]{64}", digest):
        return {}
    seal = hashlib.sha256(f"{stamp} {digest}".encode()).hexdigest()
    return {"stamp": stamp, "sha256": digest, "seal": seal}


def read_chunks(file: IO[bytes]) -> Iterator[bytes]:
    """The rest of a file, a megabyte at a time."""
    while chunk := file.read(_CHUNK):
        yield chunk


def disk_error(error: OSError, what: str, directory: Path) -> str:
    """What stood against writing `what` in a directory; that the disk is full in so many words."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"cannot write {what} to {directory}: the disk is full, or its quota used up; nothing was left there"
    return f"cannot write {what} to {directory}: {error}"
