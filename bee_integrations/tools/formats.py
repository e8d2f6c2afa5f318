"""The tool formats, and which of them a chat template is of.

A template that knows tools in a syntax that no format here has (DeepSeek, GLM, Kimi, MiniMax, Command R, ...) is taken
as one that knows none: the generic format describes the tools itself, and never hands them to the template. The model
then sees a form of call that it was not trained on, but the grammar and the reader agree with what it was told.
"""

from __future__ import annotations

import difflib

from ..errors import ParameterError
from .gemma4 import Gemma4Format
from .generic import GenericFormat
from .harmony import HarmonyFormat
from .hermes import HermesFormat
from .llama3 import Llama3Format
from .mistral import MistralArgsFormat, MistralFormat
from .qwen3_coder import Qwen3CoderFormat
from .tool_format import ToolFormat

__all__ = ["FORMATS", "by_name", "recognise"]

FORMATS: tuple[ToolFormat, ...] = (
    HarmonyFormat(),
    Gemma4Format(),
    MistralArgsFormat(),
    MistralFormat(),
    Qwen3CoderFormat(),
    HermesFormat(),
    Llama3Format(),
    GenericFormat(),
)
"""The most specific first; the last takes every template."""


def recognise(template: str | None) -> ToolFormat:
    """The format of a chat template (Jinja source), or the generic one."""
    return next(one for one in FORMATS if one.recognises(template or ""))


def by_name(name: str) -> ToolFormat:
    """The format that users call `name`; "-" is as good as "_". Raises `ParameterError` where there is none."""
    formats = {_plain(one.name): one for one in FORMATS}
    wanted = _plain(name)
    if wanted in formats:
        return formats[wanted]
    near = difflib.get_close_matches(wanted, formats, n=1)
    meant = f"; did you mean {formats[near[0]].name!r}?" if near else "."
    known = ", ".join(sorted(one.name for one in FORMATS))
    raise ParameterError(f"there is no tool format {name!r}{meant} The formats are {known}.")


def _plain(name: object) -> str:
    return str(name).lower().replace("-", "_")
