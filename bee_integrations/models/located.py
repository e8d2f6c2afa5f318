"""What a name of a model leads to: a file here, and what its place knows about it beyond the file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["Located", "Progress"]

# Called with (bytes done, bytes in total, stage); the stages are "download", "extract" and "check".
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Located:
    """A model file, and where it was found."""

    path: Path
    name: str
    """As messages and metadata name the model."""
    place: str
    """"registry", "path", "folder", "hub", "ollama" or "lmstudio"."""
    note: str | None = None
    """Why this file and not another of the same name."""
    sampling: Mapping[str, float] = field(default_factory=dict)
    """Sampling that the place has for the model, under the names of `GenerationParams`."""
    stop: tuple[str, ...] = ()
    """Stop strings that the place has for the model."""
    template: str | None = None
    """The chat template that the place has for the model, in the language of Go: it counts where the file has none."""
    companions: tuple[Path, ...] = ()
    """Other GGUF files of the same repository or store: one of them may be a drafter."""
