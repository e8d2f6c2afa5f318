"""Model files: which there are, how to get them, what is in them."""

from .cache import cache_directory, remember, sha256_of
from .registry import (
    DEFAULT_MODEL,
    REGISTRY,
    Located,
    NamedModel,
    default_model_path,
    locate_model,
    model_name,
    pull,
    resolve_drafter,
    resolve_model,
)

__all__ = [
    "DEFAULT_MODEL",
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
