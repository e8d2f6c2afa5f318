"""What a model's file says of itself before anything is loaded, where the file is here. Nothing is downloaded."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from ..errors import BeeError
from ..models import registry
from ..models.file import ModelFile

__all__ = ["Header", "header", "known_header"]


class Header(NamedTuple):
    """The part of a file's header that an object's arguments are checked against."""

    n_ctx_train: int  # tokens of context that the model was trained for
    chat_template: str | None  # Jinja source


def header(model: str) -> Header:
    """The header of a model, by name or path. Raises `ModelFileError` where there is no file, and what reading does."""
    path = registry.resolve_model(model, download=False)
    return _read(path, path.stat().st_mtime_ns)


def known_header(model: str) -> Header | None:
    """As `header`; None where the file is not here or cannot be read, which is told when it is loaded."""
    try:
        return header(model)
    except (BeeError, OSError):
        return None


@lru_cache(maxsize=16)
def _read(path: Path, modified: int) -> Header:
    """`modified` makes a changed file another."""
    with ModelFile(path) as file:
        template = file.metadata.get("tokenizer.chat_template")
        return Header(file.plan().n_ctx_train, template if isinstance(template, str) else None)
