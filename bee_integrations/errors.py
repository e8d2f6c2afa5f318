"""The exceptions of Bee. All derive from `BeeError`; each also derives from the builtin that fits it."""

from __future__ import annotations

__all__ = [
    "BeeError",
    "ConstraintError",
    "ContextLengthError",
    "DeviceError",
    "DrafterMismatchError",
    "EngineClosedError",
    "GenerationCancelled",
    "LibraryLoadError",
    "ModelDownloadError",
    "ModelFileError",
    "ModelFormatError",
    "OutOfMemoryError",
    "ParameterError",
    "TemplateError",
    "UnsupportedContentError",
    "UnsupportedModelError",
]


class BeeError(Exception):
    """Base class of every error that Bee raises on purpose."""


class LibraryLoadError(BeeError, ImportError):
    """libbee cannot be found or loaded, or does not belong to this version of the package."""


class ParameterError(BeeError, ValueError):
    """A parameter is out of range; the message names it and the range."""


class ModelFileError(BeeError, OSError):
    """A file cannot be opened or read."""


class ModelFormatError(BeeError, ValueError):
    """The file is not a GGUF file, or a broken one; the message names the field."""


class UnsupportedModelError(BeeError):
    """A valid file that this version cannot run."""


class DrafterMismatchError(BeeError):
    """The drafter was made for another target model."""


class ConstraintError(BeeError, ValueError):
    """A constraint is invalid, contradictory, unsupported or too large, or admits nothing.

    The message names the schema path or the grammar's line.
    """


class ContextLengthError(BeeError, ValueError):
    """A prompt has more tokens than the context holds."""


class OutOfMemoryError(BeeError, MemoryError):
    """An allocation failed."""


class DeviceError(BeeError, RuntimeError):
    """There is no such device, or it failed; the message says what is missing."""


class GenerationCancelled(BeeError):  # noqa: N818 - an outcome that was asked for
    """The generation was cancelled before it ended by itself."""


class EngineClosedError(BeeError, RuntimeError):
    """The engine was closed, or belongs to the process that this one was forked from."""


class TemplateError(BeeError, ValueError):
    """A chat template is invalid, or raised an error for the given messages."""


class UnsupportedContentError(BeeError, ValueError):
    """A message holds something other than text, such as an image."""


class ModelDownloadError(BeeError):
    """A model could not be downloaded or did not have the expected content."""
