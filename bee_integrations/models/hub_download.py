"""A large file of a hub, into the hub's cache, so that a download that was cut off goes on where it ended.

`huggingface_hub` itself begins anew after its process was killed, unless the hub and it speak Xet. So what comes over
plain HTTP is fetched here, with the library's session, headers and locks, to where the library looks for it.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

from .cache import sha256_of

__all__ = ["WrongContentError", "fetch_blob"]

_ATTEMPTS = 5  # in a row that bring nothing


class WrongContentError(Exception):
    """What arrived does not have the SHA-256 that the hub states."""


def fetch_blob(
    url: str, repository: Path, sha256: str, size: int, report: Callable[[int], None], check: Callable[..., None] | None
) -> None:
    """Make the blob `sha256` (of `size` bytes) of a repository's cache folder from `url`, unless it is there.

    report: called with the bytes that are here. check: progress of the check. What has arrived stays for the next try,
    except on a full disk. Raises what the session raises, OSError, and WrongContentError for content that is another.
    """
    from filelock import FileLock

    blob = repository / "blobs" / sha256
    part = blob.with_name(f"{sha256}.bee-part")
    lock = repository.parent / ".locks" / repository.name / f"{sha256}.lock"  # the library's own
    for directory in (blob.parent, lock.parent):
        directory.mkdir(parents=True, exist_ok=True)
    with FileLock(lock):
        if blob.exists():
            return
        try:
            _fetch(url, part, size, report)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                part.unlink(missing_ok=True)
            raise
        if part.stat().st_size != size or sha256_of(part, check) != sha256:
            part.unlink()
            raise WrongContentError
        os.replace(part, blob)


def _fetch(url: str, part: Path, size: int, report: Callable[[int], None]) -> None:
    failures = 0
    while (here := part.stat().st_size if part.exists() else 0) < size:
        try:
            _fetch_rest(url, part, here, report)
        except Exception as error:
            arrived = part.stat().st_size if part.exists() else 0
            failures = 0 if arrived > here else failures + 1
            if not _is_cut(error) or failures == _ATTEMPTS:
                raise


def _fetch_rest(url: str, part: Path, start: int, report: Callable[[int], None]) -> None:
    from huggingface_hub import get_session, hf_raise_for_status
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    headers = build_hf_headers() | {"Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    with get_session().stream("GET", url, headers=headers, follow_redirects=True) as response:
        if start and response.status_code == 416:  # it has become shorter
            part.unlink()
            return
        hf_raise_for_status(response)
        with part.open("ab" if response.status_code == 206 else "wb") as file:
            for chunk in response.iter_raw():
                file.write(chunk)
                file.flush()
                report(file.tell())


def _is_cut(error: Exception) -> bool:
    """Whether a connection ended in the middle, in the words of whichever HTTP library the hub's library uses."""
    return type(error).__name__ in ("RemoteProtocolError", "ReadError", "ReadTimeout", "ConnectTimeout", "WriteError")
