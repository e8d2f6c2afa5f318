"""How a model's makers want it sampled: what its file says, or the place that it comes from.

Keys of GGUF, which converters write from `generation_config.json`, and the parameters of a Modelfile of Ollama become
fields of `GenerationParams`. They count where nobody gave a value. What makes no sense is left out with a warning.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from ..errors import ParameterError
from ..generation import GenerationParams
from .located import Located

__all__ = ["FIELDS", "sampling_defaults"]

_log = logging.getLogger(__name__)

_KEYS = {
    "general.sampling.temp": "temperature",
    "general.sampling.top_k": "top_k",
    "general.sampling.top_p": "top_p",
    "general.sampling.min_p": "min_p",
    "general.sampling.penalty_repeat": "repetition_penalty",
    "general.sampling.penalty_last_n": "penalty_window",
}
FIELDS = frozenset({*_KEYS.values(), "presence_penalty", "frequency_penalty", "stop"})


def sampling_defaults(metadata: Mapping[str, Any], located: Located) -> dict[str, Any]:
    """Fields of `GenerationParams` that a file, or for it its place, states; the place's count more."""
    stated = {ours: metadata[key] for key, ours in _KEYS.items() if key in metadata} | dict(located.sampling)
    found = {name: value for name, given in stated.items() if (value := _sound(name, given, located.name)) is not None}
    if located.stop:
        found["stop"] = located.stop
    return found


def _sound(name: str, value: Any, model: str) -> Any:
    if name == "top_k" and isinstance(value, (int, float)) and value <= 0:  # off, in others' words
        value = 0
    if name in ("top_k", "penalty_window") and isinstance(value, float) and value.is_integer():
        value = int(value)
    if name == "temperature" and isinstance(value, (int, float)) and value < 0:  # greedy, in others' words
        value = 0.0
    try:
        return getattr(GenerationParams(**{name: value}), name)
    except (ParameterError, TypeError) as error:
        _log.warning("a default of %s is not taken: %s", model, error)
        return None
