"""Models in Ollama's store: ``ollama:qwen3:8b``, ``ollama:user/model``, ``ollama:hf.co/owner/repo:Q4_K_M``.

Read from the store itself, no server is needed: a manifest names blobs by their SHA-256, one of which is the GGUF. The
parameters and stop strings of the Modelfile become defaults. Ollama's own template is not Jinja: the one in the GGUF is
used, and where there is none, that of the family that Ollama's writes (`ollama_templates.py`).
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ModelFileError, ParameterError
from .cache import sha256_of
from .located import Located, Progress

__all__ = ["FORMS", "blob_of", "installed", "locate", "stores"]

FORMS = "ollama:model, ollama:model:tag or ollama:user/model:tag"
_PART = r"[A-Za-z0-9_][A-Za-z0-9_.-]*"
_NAME = re.compile(
    rf"(?:(?:(?P<host>{_PART}(?::\d+)?)/)?(?P<user>{_PART})/)?(?P<model>{_PART})(?::(?P<tag>{_PART}))?", re.ASCII
)
_HOST, _USER, _TAG = "registry.ollama.ai", "library", "latest"
_LAYER = "application/vnd.ollama.image."
_DIGEST = re.compile(r"sha256[:-]([0-9a-f]{64})")
_MAX_BYTES = 4 << 20  # bytes of a manifest, of parameters, or of a template

# Ollama's words for what an engine takes.
_SAMPLING = {
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "repeat_penalty": "repetition_penalty",
    "repeat_last_n": "penalty_window",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
}


@dataclass(frozen=True)
class OllamaName:
    """The parts of a name; those that were left out are Ollama's defaults."""

    host: str
    user: str
    model: str
    tag: str

    def __str__(self) -> str:
        user = "" if self.user == _USER and self.host == _HOST else f"{self.user}/"
        host = "" if self.host == _HOST else f"{self.host}/"
        return f"ollama:{host}{user}{self.model}:{self.tag}"

    @property
    def manifest(self) -> Path:
        """Below the store's folder of manifests."""
        return Path(self.host, self.user, self.model, self.tag)


def stores() -> list[Path]:
    """The folders where Ollama keeps models: that of ``OLLAMA_MODELS`` alone, or the user's and the service's."""
    stated = os.environ.get("OLLAMA_MODELS")
    if stated:
        return [Path(stated)]
    places = [Path("/usr/share/ollama/.ollama/models"), Path("/var/lib/ollama/.ollama/models")]
    with contextlib.suppress(RuntimeError):  # no home directory
        places.insert(0, Path.home() / ".ollama" / "models")
    return places


def locate(name: str, *, progress: Progress | None = None) -> Located:
    """The model of a name without its "ollama:".

    Raises ParameterError for no name, ModelFileError where the store lacks it or is damaged.
    """
    parsed = _parse(name)
    for store in stores():
        manifest = store / "manifests" / parsed.manifest
        if manifest.is_file():
            return _read(parsed, store, manifest, progress)
    searched = " and ".join(str(store) for store in stores())
    names = sorted(str(found) for found, _, _ in installed())
    there = f"it has {', '.join(names)}" if names else "there is none"
    short = str(parsed).removeprefix("ollama:")
    raise ModelFileError(f"Ollama's store ({searched}) has no {parsed}; {there}. Get it with 'ollama pull {short}'")


def installed() -> Iterator[tuple[OllamaName, Path, Path]]:
    """The models of all stores: name, store and manifest."""
    for store in stores():
        root = store / "manifests"
        for manifest in sorted(root.glob("*/*/*/*")):
            if manifest.is_file() and not manifest.name.startswith("."):
                host, user, model, tag = manifest.relative_to(root).parts
                yield OllamaName(host, user, model, tag), store, manifest


def blob_of(name: OllamaName) -> Path | None:
    """The GGUF of an installed model, unchecked; None where its manifest or the blob is damaged."""
    for found, store, manifest in installed():
        if found == name:
            with contextlib.suppress(ModelFileError):
                models = _layers(name, manifest).get("model", [])
                return _blob(name, store, models[0]) if len(models) == 1 else None
    return None


def _parse(name: str) -> OllamaName:
    match = _NAME.fullmatch(name.strip())
    if match is None or ".." in name:
        raise ParameterError(f"'ollama:{name}' is no name of a model; the forms are: {FORMS}")
    return OllamaName(match["host"] or _HOST, match["user"] or _USER, match["model"], match["tag"] or _TAG)


def _read(name: OllamaName, store: Path, manifest: Path, progress: Progress | None) -> Located:
    layers = _layers(name, manifest)
    models = layers.get("model", [])
    if len(models) != 1:
        kind = "no model" if not models else f"a model in {len(models)} files, which is not GGUF"
        raise ModelFileError(f"{name} has {kind} in it (manifest {manifest})")
    path = _blob(name, store, models[0])
    stated = path.name.removeprefix("sha256-").removeprefix("sha256:")
    if sha256_of(path, progress) != stated:
        raise ModelFileError(f"{path} does not have the SHA-256 of its name: pull {name} again with Ollama")
    sampling, stop = _parameters(name, store, layers.get("params", []))
    template = _template(name, store, layers.get("template", []))
    return Located(path, str(name), "ollama", sampling=sampling, stop=stop, template=template)


def _layers(name: OllamaName, manifest: Path) -> dict[str, list[str]]:
    """The digests of a manifest's layers by their kind."""
    content = _json(name, manifest)
    layers = content.get("layers")
    if not isinstance(layers, list):
        raise ModelFileError(f"the manifest of {name} ({manifest}) has no layers: pull it again with Ollama")
    found: dict[str, list[str]] = {}
    for layer in layers:
        kind, digest = (layer.get("mediaType"), layer.get("digest")) if isinstance(layer, Mapping) else (None, None)
        if isinstance(kind, str) and isinstance(digest, str):
            found.setdefault(kind.removeprefix(_LAYER), []).append(digest)
    return found


def _blob(name: OllamaName, store: Path, digest: str) -> Path:
    match = _DIGEST.fullmatch(digest)
    if match is None:  # and no path out of the store
        raise ModelFileError(f"the manifest of {name} names {digest!r}, which is no SHA-256: pull it again with Ollama")
    for spelling in ("sha256-", "sha256:"):  # the second in stores of old
        path = store / "blobs" / f"{spelling}{match[1]}"
        if path.is_file():
            return path
    missing = store / "blobs" / f"sha256-{match[1]}"
    raise ModelFileError(f"the manifest of {name} leads to {missing}, which is not there: pull it again with Ollama")


def _parameters(name: OllamaName, store: Path, digests: list[str]) -> tuple[dict[str, float], tuple[str, ...]]:
    sampling: dict[str, float] = {}
    stop: list[str] = []
    for digest in digests:
        content = _json(name, _blob(name, store, digest))
        for word, ours in _SAMPLING.items():
            value = content.get(word)
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                sampling[ours] = value
        stated = content.get("stop", [])
        stop += [text for text in (stated if isinstance(stated, list) else [stated]) if isinstance(text, str) and text]
    return sampling, tuple(dict.fromkeys(stop))


def _template(name: OllamaName, store: Path, digests: list[str]) -> str | None:
    for digest in digests[-1:]:
        path = _blob(name, store, digest)
        try:
            with path.open("rb") as file:
                return file.read(_MAX_BYTES).decode("utf-8", errors="replace")
        except OSError as error:
            raise ModelFileError(f"{path} of {name} cannot be read ({error}): pull it again with Ollama") from error
    return None


def _json(name: OllamaName, path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            content = json.loads(file.read(_MAX_BYTES))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelFileError(f"{path} of {name} cannot be read ({error}): pull it again with Ollama") from error
    if not isinstance(content, dict):
        raise ModelFileError(f"{path} of {name} is not a JSON object: pull it again with Ollama")
    return content
