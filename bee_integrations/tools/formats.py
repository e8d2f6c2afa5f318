"""The tool formats, and which of them a chat template is of.

Most are told by a description (`families`); a few are modules of their own. What a template does not do itself, such as
showing the tools or writing past calls, is found by rendering a few conversations, and done in messages instead.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from functools import lru_cache

from ..errors import BeeError, ParameterError
from ..text.chat_template import ChatTemplate
from .described_format import DescribedFormat
from .families import ALL
from .gemma4 import Gemma4Format
from .generic import GenericFormat
from .harmony import HarmonyFormat
from .hermes import HermesFormat
from .llama3 import Llama3Format
from .mistral import MistralArgsFormat, MistralFormat
from .qwen3_coder import Qwen3CoderFormat
from .template_ways import ways_of
from .tool_format import ToolFormat

__all__ = ["FORMATS", "Found", "by_name", "for_template", "recognise", "recognition"]

FORMATS: tuple[ToolFormat, ...] = (
    HarmonyFormat(),
    Gemma4Format(),
    MistralArgsFormat(),
    MistralFormat(),
    *(DescribedFormat(description) for description in ALL),
    Qwen3CoderFormat(),
    HermesFormat(),
    Llama3Format(),
    GenericFormat(),
)
"""The most specific first; the last takes every template."""


@dataclass(frozen=True)
class Found:
    """The format of a template, and why it is that one."""

    format: ToolFormat
    reason: str


def recognise(template: str | None) -> ToolFormat:
    """The format of a chat template (Jinja source), or the generic one."""
    return recognition(template or "").format


@lru_cache(maxsize=32)
def recognition(template: str) -> Found:
    """As `recognise`, with the reason. The work is done once per template: it may take some renderings."""
    form = next(one for one in FORMATS if one.recognises(template))
    if not isinstance(form, DescribedFormat):
        if form.name == "generic":
            return Found(form, "the template has the markers of no other format")
        return Found(form, "the template has its markers")
    return Found(*_adapted(form, template))


def for_template(form: ToolFormat, template: str | None) -> ToolFormat:
    """A format that was named by hand, as far as it depends on the template."""
    return _adapted(form, template)[0] if isinstance(form, DescribedFormat) and template else form


@lru_cache(maxsize=32)
def _adapted(form: DescribedFormat, source: str) -> tuple[DescribedFormat, str]:
    reason = "the template has its markers " + " and ".join(map(repr, form.description.marks))
    try:
        ways = ways_of(form, ChatTemplate(source, "<s>", "</s>"))
    except BeeError:  # a template that is broken says so when a conversation is rendered
        return form, reason
    told = [
        what
        for what, done in (
            ("the tools", ways.shows_tools),
            ("past calls", ways.writes_calls),
            ("results", ways.writes_results),
        )
        if not done
    ]
    return form.with_ways(ways), reason + (f"; it does not write {', '.join(told)}: the messages do" if told else "")


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
