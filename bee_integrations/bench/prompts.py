"""The prompts of `bee bench`: the bundled sets, and those that users bring."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from ..engine.engine import Engine
from ..errors import ModelFileError, ParameterError
from ..text.chat_template import plain_text

__all__ = ["Prompt", "load_prompts", "prompt_text"]


@dataclass(frozen=True)
class Prompt:
    """A named conversation to be answered."""

    name: str
    messages: list[dict[str, Any]]
    schema: dict[str, Any] | None = None  # of the answer


def prompt_text(engine: Engine, messages: Sequence[Mapping[str, Any]]) -> str:
    """A conversation as the engine's model takes it: by its template, or as plain text where it has none."""
    return engine.render_chat(messages) if engine.chat_template else plain_text(messages)


def load_prompts(path: str | os.PathLike[str] | None = None, *, bundled: str = "benchmark") -> list[Prompt]:
    """The prompts of a JSON file, a list of {"name", "messages"}; without a path the bundled set of that name.

    Raises ModelFileError where the file cannot be read and ParameterError where it is not such a list.
    """
    if path is None:
        source = "the bundled prompts"
        text = (resources.files("bee_integrations") / "prompts" / f"{bundled}.json").read_text(encoding="utf-8")
    else:
        source = os.fspath(path)
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ModelFileError(f"the prompts file {source} cannot be read: {error}") from error
    try:
        entries = json.loads(text)
    except ValueError as error:
        raise ParameterError(f"{source} is not JSON: {error}") from error
    if not isinstance(entries, list) or not entries:
        raise ParameterError(f'{source} must be a JSON list of {{"name", "messages"}} with at least one entry')
    prompts = [_prompt(entry, f"entry {index} of {source}") for index, entry in enumerate(entries)]
    names = [prompt.name for prompt in prompts]
    for name in names:
        if names.count(name) > 1:
            raise ParameterError(f"{source} has several prompts named {name!r}; give each a name of its own")
    return prompts


def _prompt(entry: Any, where: str) -> Prompt:
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
        raise ParameterError(f'{where} must be an object with a string "name" and a list "messages"')
    messages = entry.get("messages")
    if not isinstance(messages, list) or not messages:
        raise ParameterError(f'"messages" in {where} must be a list with at least one message')
    for message in messages:
        if not isinstance(message, dict) or not all(isinstance(message.get(key), str) for key in ("role", "content")):
            raise ParameterError(f'each message in {where} must have "role" and "content", both strings')
    schema = entry.get("schema")
    if schema is not None and not isinstance(schema, dict):
        raise ParameterError(f'"schema" in {where} must be an object')
    return Prompt(entry["name"], messages, schema)
