"""Whether an answer fits a schema of which no grammar could keep everything."""

from __future__ import annotations

import json

__all__ = ["fault_of_answer"]

_LONGEST = 300  # characters of a fault


def fault_of_answer(schema: str, text: str) -> str | None:
    """What the JSON text of an answer violates of a schema's text, with the path; None where it fits, is cut off, or
    `jsonschema` is not installed."""
    try:
        from jsonschema import Draft202012Validator
        from jsonschema.validators import validator_for
        from referencing.jsonschema import EMPTY_REGISTRY
    except ImportError:
        return None
    document = json.loads(schema)
    try:
        answer = json.loads(text)
        kind = validator_for(document, default=Draft202012Validator)
        found = next(kind(document, registry=EMPTY_REGISTRY).iter_errors(answer), None)
    except Exception:  # an answer that is cut off, a schema that the validator reads otherwise
        return None
    if found is None:
        return None
    fault = f"{''.join(f'/{part}' for part in found.absolute_path) or 'the answer'}: {found.message}"
    return fault if len(fault) <= _LONGEST else f"{fault[: _LONGEST - 3]}..."
