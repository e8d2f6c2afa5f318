"""Bee: local language models with DFlash speculative decoding, for LangChain and LlamaIndex.

The names below are imported on first use, so that ``import bee_integrations`` is cheap and needs neither framework.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .moved_modules import install

install()

__version__ = "0.1.0"

_EXPORTS = {
    "BeeError": "errors",
    "BeeLLM": "langchain",
    "ChatBee": "langchain",
    "Completion": "engine",
    "Engine": "engine",
    "GenerationParams": "engine",
    "Statistics": "engine",
    "Step": "engine",
}

__all__ = [
    "BeeError",
    "BeeLLM",
    "ChatBee",
    "Completion",
    "Engine",
    "GenerationParams",
    "Statistics",
    "Step",
    "__version__",
]

if TYPE_CHECKING:
    from .engine.engine import Completion, Engine, GenerationParams, Statistics, Step
    from .errors import BeeError
    from .langchain import BeeLLM, ChatBee


def __getattr__(name: str) -> Any:
    module = _EXPORTS.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{module}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(_EXPORTS))
