"""libbee through cffi: `ffi`, `lib`, and the translation of its statuses into exceptions.

cffi reads the very header that the C compiler read, so the declarations cannot drift. The shared library is looked
for in this order: the file named by the environment variable ``BEE_LIBRARY``; the copy installed in the package; in a
source checkout, ``build/libbee.so``.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any, NoReturn

import cffi  # type: ignore[import-untyped,unused-ignore]

from .errors import (
    BeeError,
    ContextLengthError,
    DeviceError,
    DrafterMismatchError,
    LibraryLoadError,
    ModelFileError,
    ModelFormatError,
    OutOfMemoryError,
    ParameterError,
    UnsupportedModelError,
)

__all__ = ["check", "ffi", "header_path", "lib", "library_path", "new_error", "raise_error"]

_PACKAGE = Path(__file__).resolve().parent
_LIBRARY_NAME = "libbee.dylib" if sys.platform == "darwin" else "libbee.so"

_EXCEPTIONS: dict[int, type[BeeError]] = {
    1: ParameterError,
    2: ModelFileError,
    3: ModelFormatError,
    4: UnsupportedModelError,
    5: DrafterMismatchError,
    6: ContextLengthError,
    7: OutOfMemoryError,
    8: DeviceError,
}


def header_path() -> Path:
    """The `bee.h` that belongs to this package."""
    candidates = [_PACKAGE / "_libbee" / "include" / "bee.h", _PACKAGE.parent / "libbee" / "include" / "bee.h"]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise LibraryLoadError(f"bee.h is missing from this installation; looked for {_listed(candidates)}")


def library_path() -> Path:
    """The shared library that is (or would be) loaded."""
    override = os.environ.get("BEE_LIBRARY")
    if override:
        path = Path(override)
        if not path.is_file():
            raise LibraryLoadError(f"BEE_LIBRARY names {path}, which is not a file")
        return path.resolve()
    candidates = [_PACKAGE / "_libbee" / "lib" / _LIBRARY_NAME, _PACKAGE.parent / "build" / _LIBRARY_NAME]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise LibraryLoadError(
        f"libbee is not built: looked for {_listed(candidates)}. Install the package with pip, build it with "
        "'make' in a source checkout, or name the library in the environment variable BEE_LIBRARY"
    )


def _listed(paths: list[Path]) -> str:
    return " and ".join(str(path) for path in paths)


def declarations(header: str) -> str:
    """The header without what cffi's parser does not read: preprocessor lines, C++ guards and BEE_API."""
    without_cpp = re.sub(r"^#ifdef __cplusplus\n.*?^#endif\n", "", header, flags=re.MULTILINE | re.DOTALL)
    without_directives = re.sub(r"^#(?:.*\\\n)*.*\n", "", without_cpp, flags=re.MULTILINE)
    return without_directives.replace("BEE_API ", "")


def _load() -> tuple[Any, Any]:
    builder = cffi.FFI()
    builder.cdef(declarations(header_path().read_text(encoding="utf-8")))
    path = library_path()
    try:
        library = builder.dlopen(str(path))
        version = builder.string(library.bee_version()).decode()
    except (OSError, AttributeError) as error:
        raise LibraryLoadError(f"{path} cannot be loaded as libbee: {error}") from error
    _check_version(path, version)
    # cffi looks a name up at its first use, under a lock: a collected object that closes its handle in the middle of
    # another look-up would wait for itself.
    for name in dir(library):
        if name.startswith("bee_"):
            getattr(library, name)
    return builder, library


def _check_version(path: Path, version: str) -> None:
    # Structures are laid out by the packaged header: a library of another release would read them wrongly.
    from . import __version__

    if version.split(".")[:2] != __version__.split(".")[:2]:
        raise LibraryLoadError(f"{path} is libbee {version}, this package is {__version__}: rebuild or reinstall it")


ffi, lib = _load()


def new_error() -> Any:
    """A zeroed `bee_error *` to pass as the last argument of a call."""
    return ffi.new("bee_error *")


def raise_error(error: Any) -> NoReturn:
    """Raise the exception that a filled-in `bee_error *` describes."""
    message = ffi.string(error.message).decode("utf-8", errors="replace") or "libbee gave no message"
    raise _EXCEPTIONS.get(int(error.status), BeeError)(message)


def check(status: Any, error: Any) -> None:
    """Raise the typed exception for the result of a call: a `bee_status` that is not BEE_OK, or a NULL handle."""
    failed = status == ffi.NULL if isinstance(status, ffi.CData) else int(status) != 0
    if failed:
        raise_error(error)
