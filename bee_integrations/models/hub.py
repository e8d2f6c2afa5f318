"""Models of a hub: ``hf:owner/repo``, ``hf:owner/repo:Q4_K_M``, ``hf:owner/repo/file.gguf``, each with ``@revision``.

`huggingface_hub` downloads into its own cache, which other tools share, and reads its own settings: ``HF_ENDPOINT``,
``HF_TOKEN``, ``HF_HOME``, ``HF_HUB_CACHE``, ``HF_HUB_OFFLINE``. What is in the cache is used without asking the hub;
`bee pull` asks it. Every file whose SHA-256 the hub states is checked against it before its first use.
"""

from __future__ import annotations

import errno
import importlib.util
import inspect
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ModelDownloadError, ModelFileError, ParameterError
from .cache import sha256_of
from .gguf_names import Choice, GgufSet, choose, group, is_drafter
from .hub_download import WrongContentError, fetch_blob
from .located import Located, Progress

__all__ = ["FORMS", "cached_repositories", "locate"]

FORMS = "hf:owner/repo, hf:owner/repo:Q4_K_M or hf:owner/repo/file.gguf, each with @revision if need be"
_NAME = re.compile(
    r"(?P<repo>[\w.-]+/[\w.-]+)(?:/(?P<file>[^:@]+\.gguf)|:(?P<quantisation>[\w.-]+))?"
    r"(?:@(?P<revision>[\w./-]+)(?::(?P<later>[\w.-]+))?)?",
    re.IGNORECASE,
)
_SHA256 = re.compile(r"[0-9a-f]{64}")
_NETWORK_LIBRARIES = ("httpx", "httpx2", "httpcore", "requests", "urllib3", "hf_xet")


@dataclass(frozen=True)
class HubName:
    """The parts of a name."""

    repo: str
    revision: str
    quantisation: str | None
    file: str | None

    def __str__(self) -> str:
        return f"hf:{self.repo}" + ("" if self.revision == "main" else f"@{self.revision}")


@dataclass(frozen=True)
class _Entry:
    """A file of a repository."""

    name: str
    size: int
    sha256: str | None


def locate(name: str, *, download: bool, refresh: bool = False, progress: Progress | None = None) -> Located:
    """The model of a name without its "hf:".

    download: whether what is not in the cache may be fetched. refresh: ask the hub even if it is.

    Raises ParameterError for no name, ModelDownloadError where the hub or the network fails, ModelFileError where there
    is no such file.
    """
    parsed = _parse(name)
    offline = _is_offline()
    if not refresh or offline:
        found = _in_cache(parsed)
        if found is not None:
            return found
    if not download:
        raise ModelFileError(f"{parsed} is not here yet: get it with 'bee pull hf:{name}'")
    if offline:
        raise ModelDownloadError(
            f"{_what(parsed)} is not in the cache, and HF_HUB_OFFLINE is set; {_cached_text(parsed)}"
        )
    return _from_hub(parsed, progress)


def cached_repositories() -> Iterator[tuple[str, Path]]:
    """Each repository of the hub's cache with GGUF files in it, and the folder of its newest snapshot."""
    with suppress(OSError):
        for folder in sorted(_cache().glob("models--*--*")):
            repo = folder.name.removeprefix("models--").replace("--", "/", 1)
            snapshots = sorted((folder / "snapshots").glob("*"), key=lambda path: path.stat().st_mtime)
            if snapshots and any(True for _ in _gguf_files(snapshots[-1])):
                yield repo, snapshots[-1]


# ---- names -------------------------------------------------------------------------------------------------------


def _parse(name: str) -> HubName:
    match = _NAME.fullmatch(name.strip())
    if match is None or ".." in name or (match["quantisation"] and match["later"]):
        raise ParameterError(f"'hf:{name}' is no name of a model on a hub; the forms are: {FORMS}")
    return HubName(match["repo"], match["revision"] or "main", match["quantisation"] or match["later"], match["file"])


def _what(name: HubName) -> str:
    if name.file is not None:
        return f"hf:{name.repo}/{name.file}" + ("" if name.revision == "main" else f"@{name.revision}")
    return f"{name}:{name.quantisation}" if name.quantisation is not None else str(name)


def _choice(name: HubName, files: Iterable[tuple[str, int]], place: str) -> Choice:
    """The files that a name means, among those of its repository."""
    files = list(files)
    if name.file is None:
        return choose(group(files), name.quantisation, place)
    for one in group(files):
        if name.file in one.files:
            return choose([one], None, place)
    for file, size in files:  # what does not look like a model, but was asked for by name
        if file == name.file:
            return Choice(GgufSet((file,), size, None, 1), None)
    listed = ", ".join(sorted(file for file, _ in files if file.lower().endswith(".gguf"))) or "no GGUF file"
    raise ModelFileError(f"{place} has no {name.file}; it has {listed}")


# ---- the cache ---------------------------------------------------------------------------------------------------


def _cache() -> Path:
    from huggingface_hub import constants

    for variable, below in (("HF_HUB_CACHE", ""), ("HUGGINGFACE_HUB_CACHE", ""), ("HF_HOME", "hub")):
        if os.environ.get(variable):
            return Path(os.environ[variable]).expanduser() / below
    return Path(constants.HF_HUB_CACHE)


def _folder(name: HubName) -> Path:
    return _cache() / f"models--{name.repo.replace('/', '--')}"


def _snapshot(name: HubName) -> Path | None:
    folder = _folder(name)
    with suppress(OSError):
        reference = folder / "refs" / name.revision
        commit = reference.read_text(encoding="utf-8").strip() if reference.is_file() else name.revision
        snapshot = folder / "snapshots" / commit
        if snapshot.is_dir():
            return snapshot
    return None


def _gguf_files(snapshot: Path) -> Iterator[tuple[str, int]]:
    for path in sorted(snapshot.rglob("*.gguf")):
        with suppress(OSError):  # a link whose file somebody removed
            yield path.relative_to(snapshot).as_posix(), path.stat().st_size


def _in_cache(name: HubName) -> Located | None:
    snapshot = _snapshot(name)
    if snapshot is None:
        return None
    try:
        choice = _choice(name, _gguf_files(snapshot), str(name))
    except ModelFileError:
        return None
    for file in choice.chosen.files:
        _check(snapshot / file, _stated_sha256(snapshot / file), name)
    return _located(name, snapshot, choice)


def _stated_sha256(path: Path) -> str | None:
    """The hub's cache names the content of large files by their SHA-256."""
    with suppress(OSError):  # a cache without links
        content = Path(os.readlink(path)).name
        return content if _SHA256.fullmatch(content) else None
    return None


def _check(path: Path, sha256: str | None, name: HubName, progress: Progress | None = None) -> None:
    if sha256 is None or sha256_of(path, progress) == sha256:
        return
    with suppress(OSError):
        (path.parent / os.readlink(path)).unlink()
    with suppress(OSError):
        path.unlink()
    raise _wrong_content(path.name, sha256, name, "it was removed from the cache")


def _wrong_content(file: str, sha256: str, name: HubName, what_was_done: str) -> ModelDownloadError:
    return ModelDownloadError(
        f"{file} of {name} does not have the SHA-256 that the hub states ({sha256}); {what_was_done}: get it again "
        f"with 'bee pull {_what(name)}'"
    )


def _located(name: HubName, snapshot: Path, choice: Choice) -> Located:
    path = snapshot / choice.chosen.first
    companions = tuple(snapshot / file for file, _ in _gguf_files(snapshot) if is_drafter(file))
    shown = choice.chosen.quantisation
    return Located(path, f"{name}" + (f":{shown}" if shown else ""), "hub", choice.note, companions=companions)


def _cached_text(name: HubName) -> str:
    snapshot = _snapshot(name)
    files = [] if snapshot is None else [file for file, _ in _gguf_files(snapshot)]
    return f"the cache has {', '.join(files)}" if files else "the cache has nothing of that repository"


# ---- the hub -----------------------------------------------------------------------------------------------------


def _endpoint() -> str:
    from huggingface_hub import constants

    return (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")


def _is_offline() -> bool:
    from huggingface_hub import constants

    stated = os.environ.get("HF_HUB_OFFLINE")
    return bool(constants.HF_HUB_OFFLINE) if stated is None else stated.upper() in {"1", "ON", "YES", "TRUE"}


def _from_hub(name: HubName, progress: Progress | None) -> Located:
    from huggingface_hub import HfApi

    with _hub_errors(name):
        about = HfApi(endpoint=_endpoint()).model_info(name.repo, revision=name.revision, files_metadata=True)
    entries = {entry.name: entry for entry in map(_entry, about.siblings or ())}
    choice = _choice(name, ((entry.name, entry.size) for entry in entries.values()), str(name))
    wanted = [entries[file] for file in choice.chosen.files]
    wanted += [entry for entry in entries.values() if is_drafter(entry.name) and entry.name.lower().endswith(".gguf")]
    total, before = sum(entry.size for entry in wanted), 0
    path = Path()
    for entry in wanted:
        path = _download(name, entry, progress, before, total)
        before += entry.size
        _check(path, entry.sha256, name, progress)
    snapshot = _snapshot(name)
    if snapshot is None:  # a cache of another kind
        raise ModelDownloadError(f"{path} was downloaded, but the cache has no snapshot of {name}")
    return _located(name, snapshot, choice)


def _entry(sibling: Any) -> _Entry:
    sha256 = getattr(sibling.lfs, "sha256", None) if sibling.lfs is not None else None
    return _Entry(sibling.rfilename, int(sibling.size or 0), sha256 if _SHA256.fullmatch(str(sha256)) else None)


def _download(name: HubName, entry: _Entry, progress: Progress | None, before: int, total: int) -> Path:
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

    def report(arrived: int) -> None:
        if progress is not None:
            progress(min(before + arrived, total), total, "download")

    with _hub_errors(name):
        url = hf_hub_url(name.repo, entry.name, revision=name.revision, endpoint=_endpoint())
        about = get_hf_file_metadata(url, endpoint=_endpoint())
        if entry.sha256 is not None and entry.sha256 == about.etag and not _by_xet(about):
            try:
                fetch_blob(url, _folder(name), entry.sha256, entry.size, report, progress)
            except WrongContentError:
                raise _wrong_content(entry.name, entry.sha256, name, "it was not kept") from None
        # It finds the blob, makes its names in the cache, and fetches what is small or comes by Xet.
        arguments: dict[str, Any] = {"revision": name.revision, "endpoint": _endpoint(), "cache_dir": _cache()}
        if "tqdm_class" in inspect.signature(hf_hub_download).parameters:  # later than 1.0
            arguments["tqdm_class"] = _bar_class(report)
        return Path(hf_hub_download(name.repo, entry.name, **arguments))


def _by_xet(about: Any) -> bool:
    """Whether the library would fetch a file by Xet, which has its own cache of pieces."""
    from huggingface_hub import constants

    if about.xet_file_data is None or constants.HF_HUB_DISABLE_XET:
        return False
    return importlib.util.find_spec("hf_xet") is not None


def _bar_class(report: Callable[[int], None]) -> type[Any]:
    """A progress bar as `huggingface_hub` wants one, which shows nothing and calls `report`."""
    from tqdm import tqdm

    class Bar(tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **options: Any) -> None:
            options.pop("name", None)
            self._arrived = int(options.get("initial") or 0)
            super().__init__(*args, **{**options, "disable": True})

        def update(self, n: float | None = 1) -> bool | None:
            self._arrived += int(n or 0)
            report(self._arrived)
            return None

    return Bar


@contextmanager
def _hub_errors(name: HubName) -> Iterator[None]:
    """Errors of `huggingface_hub` in our words, with what to do."""
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError as error:
        raise ModelDownloadError(
            f"{name} is gated: accept its terms at {_endpoint()}/{name.repo}, then log in with 'hf auth login' or "
            "set HF_TOKEN"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise ModelDownloadError(
            f"there is no repository {name.repo} on {_endpoint()}; if it is private, log in with 'hf auth login' or "
            "set HF_TOKEN"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise ModelDownloadError(f"{name.repo} has no revision {name.revision!r}") from error
    except errors.HFValidationError as error:
        raise ParameterError(f"{name} is no name of a repository: {error}") from error
    except errors.LocalEntryNotFoundError as error:
        raise ModelDownloadError(_no_network(name, error.__cause__ or error)) from error
    except errors.HfHubHTTPError as error:
        raise ModelDownloadError(f"{_endpoint()} refused {_what(name)}: {_one_line(error)}") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            why = "the disk is full, or its quota used up; nothing was left there"
            raise ModelDownloadError(f"cannot write {_what(name)} to {_cache()}: {why}") from error
        raise ModelDownloadError(f"{_what(name)} could not be downloaded: {_one_line(error)}") from error
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in (
            "httpx",
            "httpx2",
            "httpcore",
            "requests",
            "urllib3",
            "hf_xet",
        ):
            raise
        raise ModelDownloadError(_no_network(name, error)) from error


def _no_network(name: HubName, error: BaseException) -> str:
    return f"{_endpoint()} cannot be reached for {_what(name)} ({_one_line(error)}); {_cached_text(name)}"


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:297] + "..."
