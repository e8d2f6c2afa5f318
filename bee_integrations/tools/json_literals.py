"""Values that models write as JSON or as Python does, as JSON."""

from __future__ import annotations

import ast
import json
import re

from .json_scan import parse_json

__all__ = ["json_of_literal"]

_LONGEST = 100_000  # characters of a value that is read as one of Python
_CONSTANTS = {"True": "true", "False": "false", "None": "null"}
_PYTHON_NAMES = {json_name: python_name for python_name, json_name in _CONSTANTS.items()}
_STRINGS_AND_NAMES = re.compile(r"""('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")|\b(true|false|null)\b""", re.DOTALL)


def json_of_literal(text: str) -> str | None:
    """The JSON of a value that is written as JSON or as Python writes it; None where it is neither."""
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    try:
        parse_json(text)
    except ValueError:
        pass
    else:
        return text
    if len(text) > _LONGEST or not text.startswith(("'", '"', "[", "{", "(")):
        return None
    python = _STRINGS_AND_NAMES.sub(lambda found: found[1] or _PYTHON_NAMES[found[2]], text)
    try:
        found = json.dumps(ast.literal_eval(python), ensure_ascii=False, allow_nan=False)
        found.encode()  # halves of characters are none
        return found
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None
