"""Models in LM Studio's folders: ``lmstudio:publisher/model``, and ``:Q4_K_M`` or ``/file.gguf`` behind it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from ..errors import ModelFileError, ParameterError
from . import folder
from .located import Located

__all__ = ["FORMS", "installed", "locate", "stores"]

FORMS = "lmstudio:publisher/model, lmstudio:publisher/model:Q4_K_M or lmstudio:publisher/model/file.gguf"
_NAME = re.compile(
    r"(?:(?P<publisher>[\w.-]+)/)?(?P<model>[\w.-]+)(?:/(?P<file>[^/:]+\.gguf)|:(?P<quantisation>[\w.-]+))?",
    re.IGNORECASE,
)


def stores() -> list[Path]:
    """The folders where LM Studio keeps models: the one in its settings, and its own of today and before."""
    try:
        home = Path.home()
    except RuntimeError:  # no home directory
        return []
    pointer = home / ".lmstudio-home-pointer"
    base = home / ".lmstudio"
    with suppress(OSError, ValueError):
        base = Path(pointer.read_text(encoding="utf-8").strip() or base)
    places = [base / "models", home / ".cache" / "lm-studio" / "models"]
    with suppress(OSError, ValueError, AttributeError, RecursionError):
        stated = json.loads((base / "settings.json").read_text(encoding="utf-8")).get("downloadsFolder")
        if isinstance(stated, str) and stated:
            places.insert(0, Path(stated))
    return list(dict.fromkeys(places))


def locate(name: str) -> Located:
    """The model of a name without its "lmstudio:".

    Raises ParameterError for no name, ModelFileError where there is no such model, or several.
    """
    match = _NAME.fullmatch(name.strip())
    if match is None or ".." in name:
        raise ParameterError(f"'lmstudio:{name}' is no name of a model; the forms are: {FORMS}")
    found = [(shown, path) for shown, path in installed() if _means(match, shown)]
    if not found:
        names = ", ".join(shown for shown, _ in installed())
        searched = " and ".join(map(str, stores())) or "no folder, because there is no home directory"
        raise ModelFileError(
            f"LM Studio ({searched}) has no model {name!r}; {'it has ' + names if names else 'there is none'}"
        )
    if len({shown for shown, _ in found}) > 1:
        raise ModelFileError(
            f"several models are called {name!r}: {', '.join(shown for shown, _ in found)}; give one in full"
        )
    shown, path = found[0]
    if match["file"] is None:
        return folder.locate(path, quantisation=match["quantisation"], name=f"lmstudio:{shown}", place="lmstudio")
    file = path / match["file"]
    if not file.is_file():
        files = ", ".join(file for file, _ in folder.gguf_files(path))
        raise ModelFileError(f"lmstudio:{shown} has no {match['file']}; it has {files}")
    located = folder.locate(path, name=f"lmstudio:{shown}", place="lmstudio")
    return replace(located, path=file, note=None)


def installed() -> Iterator[tuple[str, Path]]:
    """The models of all folders: "publisher/model" and the folder of its files."""
    for store in stores():
        with suppress(OSError):
            for path in sorted(store.glob("*/*")):
                if path.is_dir() and any(child.suffix.lower() == ".gguf" for child in path.iterdir()):
                    yield path.relative_to(store).as_posix(), path


def _means(match: re.Match[str], shown: str) -> bool:
    publisher, model = shown.lower().split("/")
    given = match["model"].lower()
    return given in (model, model.removesuffix("-gguf")) and (match["publisher"] or publisher).lower() == publisher
