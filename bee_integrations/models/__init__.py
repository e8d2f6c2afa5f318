"""Model files: which there are, how to get them, what is in them."""

from .registry import (
    DEFAULT_MODEL,
    REGISTRY,
    NamedModel,
    cache_directory,
    default_model_path,
    model_name,
    pull,
    remember,
    resolve_drafter,
    resolve_model,
    sha256_of,
)

__all__ = [
    "DEFAULT_MODEL",
    "REGISTRY",
    "NamedModel",
    "cache_directory",
    "default_model_path",
    "model_name",
    "pull",
    "remember",
    "resolve_drafter",
    "resolve_model",
    "sha256_of",
]
