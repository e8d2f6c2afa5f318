"""Modules under the names that they had before they moved into folders: code that imports those goes on working."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType

__all__ = ["install"]

_PACKAGE = __package__
_MOVED = {
    "chat_template": "text.chat_template",
    "closing_text": "constraints.closing_text",
    "deadline": "chat.deadline",
    "device_plan": "engine.device_plan",
    "grammar_source": "constraints.grammar_source",
    "json_schema": "constraints.json_schema",
    "llm_parameters": "chat.parameters",
    "llm_request": "chat",
    "messages": "chat.messages",
    "model_file": "models.file",
    "model_report": "models.report",
    "pass_costs": "engine.pass_costs",
    "pre_tokenizers": "text.pre_tokenizers",
    "reasoning": "chat.reasoning",
    "scheduler": "engine.scheduler",
    "steering": "constraints.phases",
    "stop_strings": "text.stop_strings",
    "template_sandbox": "text.template_sandbox",
    "tokenizer": "text.tokenizer",
}


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        package, _, name = fullname.rpartition(".")
        if package != _PACKAGE or name not in _MOVED:
            return None
        return importlib.machinery.ModuleSpec(fullname, self)

    def exec_module(self, module: ModuleType) -> None:
        """The module of today takes the place of the empty one: both names are one module."""
        name = module.__name__.rpartition(".")[2]
        sys.modules[module.__name__] = importlib.import_module(f"{_PACKAGE}.{_MOVED[name]}")


def install() -> None:
    """Let the earlier names be imported; those that exist come first."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())
