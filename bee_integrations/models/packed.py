"""Files of packed weights, from which an engine maps what it would have to pack.

Where they lie, which there are, and their removal. Off unless asked for: they take as much of the disk as the models.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import ModelFileError, ParameterError
from .cache import cache_directory

__all__ = [
    "ENVIRONMENT",
    "PackedFile",
    "make_packed_directory",
    "packed_directory",
    "packed_files",
    "remove_packed_files",
]

ENVIRONMENT = "BEE_PACKED_CACHE"
_OFF, _ON = {"", "0", "OFF", "NO", "FALSE"}, {"1", "ON", "YES", "TRUE"}
_NAME = re.compile(r".+-[0-9a-f]{16}\.packed(\.[A-Za-z0-9]{6})?")  # as libbee names them, until they are whole


@dataclass(frozen=True)
class PackedFile:
    """One of them, or what is left of one that was not finished."""

    path: Path
    size: int  # bytes


def packed_directory(packed_cache: bool | str | os.PathLike[str] | None) -> Path | None:
    """The directory that an engine keeps packed weights in; None: it does not.

    packed_cache: a directory; True: the one that the environment variable BEE_PACKED_CACHE names, or else one in the
    cache directory; False: none; None: what BEE_PACKED_CACHE says, 1, 0 or a directory.

    Raises ParameterError for other values, and ModelFileError where there is no place for a cache.
    """
    named = os.environ.get(ENVIRONMENT, "")
    if packed_cache is None:
        packed_cache = named.upper() not in _OFF
    if packed_cache is True:
        packed_cache = cache_directory() / "packed" if named.upper() in _OFF | _ON else named
    if packed_cache is False:
        return None
    if not isinstance(packed_cache, (str, os.PathLike)) or not os.fspath(packed_cache):
        raise ParameterError(f"packed_cache is {packed_cache!r}; it must be True, False, a directory, or None")
    return Path(packed_cache).expanduser().absolute()


def make_packed_directory(directory: Path) -> None:
    """Make it where it is not there; where that fails, so does writing into it, which libbee tells."""
    with contextlib.suppress(OSError):
        directory.mkdir(parents=True, exist_ok=True)


def packed_files(directory: Path) -> Iterator[PackedFile]:
    """The files in that directory by name, and those that were not finished: "<name>.packed.<six characters>". What
    else lies there is somebody else's."""
    try:
        paths = sorted(directory.iterdir())
    except OSError:
        return
    for path in paths:
        with contextlib.suppress(OSError):  # another process may have removed it, or given it its name
            if _NAME.fullmatch(path.name) and path.is_file():
                yield PackedFile(path, path.stat().st_size)


def remove_packed_files(directory: Path) -> int:
    """Remove them all; the bytes that this freed. Engines that have one mapped go on with it.

    Raises ModelFileError where one cannot be removed.
    """
    freed = 0
    for file in packed_files(directory):
        try:
            file.path.unlink(missing_ok=True)
        except OSError as error:
            raise ModelFileError(f"{file.path} cannot be removed: {error}") from error
        freed += file.size
    return freed
