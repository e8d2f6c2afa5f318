"""Models in folders: a folder that holds one model, whole or split, and several quantisations of it at most."""

from __future__ import annotations

from pathlib import Path

from ..errors import ModelFileError
from .gguf_names import choose, group, is_drafter
from .located import Located

__all__ = ["gguf_files", "locate"]


def gguf_files(folder: Path, *, below: bool = False) -> list[tuple[str, int]]:
    """Names and sizes of the GGUF files in a folder, or anywhere below it.

    Raises ModelFileError where it cannot be read.
    """
    found = []
    try:
        for path in sorted(folder.rglob("*") if below else folder.iterdir()):
            if path.suffix.lower() == ".gguf" and path.is_file():
                found.append((path.relative_to(folder).as_posix(), path.stat().st_size))
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links
        raise ModelFileError(f"the folder {folder} cannot be read: {error}") from error
    return found


def locate(folder: Path, *, quantisation: str | None = None, name: str | None = None, place: str = "folder") -> Located:
    """The model in a folder, which is not searched below.

    Raises ModelFileError where there is none, or where there are several that are not the same model.
    """
    files = gguf_files(folder)
    sets = group(files)
    named = name or f"the folder {folder}"
    stems = {_model_of(one.first, one.quantisation) for one in sets}
    if len(stems) > 1:
        listed = ", ".join(one.first for one in sets[:10])
        raise ModelFileError(f"{named} has several models: {listed}; give the path of one")
    choice = choose(sets, quantisation, named)
    companions = tuple(folder / file for file, _ in files if is_drafter(file))
    path = folder / choice.chosen.first
    return Located(path, name or path.stem, place, choice.note, companions=companions)


def _model_of(file: str, quantisation: str | None) -> str:
    """A file's name up to its quantisation: the same for all quantisations of a model."""
    if quantisation is None:
        return file.lower()
    return file.lower()[: file.lower().rindex(quantisation.lower())].rstrip("-._ ")
