"""The tool formats, and which of them a chat template is of.

Most are told by a description (`families`); a few are modules of their own. What a template does not do itself, such as
showing the tools or writing past calls, is found by rendering a few conversations, and done in messages instead.
"""

from __future__ import annotations

import difflib
import logging
import re
from dataclasses import dataclass
from functools import lru_cache

from ..errors import BeeError, ParameterError
from ..text.chat_template import ChatTemplate
from .derivation import derived
from .described_format import DescribedFormat
from .families import ALL
from .gemma4 import Gemma4Format
from .generic import GenericFormat
from .harmony import HarmonyFormat
from .hermes import HermesFormat
from .llama3 import Llama3Format
from .mistral import MistralArgsFormat, MistralFormat
from .template_ways import ways_of
from .tool_format import ToolFormat

__all__ = ["FORMATS", "Found", "by_name", "for_template", "recognise", "recognition"]

_log = logging.getLogger("bee_integrations.tools")

FORMATS: tuple[ToolFormat, ...] = (
    HarmonyFormat(),
    Gemma4Format(),
    MistralArgsFormat(),
    MistralFormat(),
    *(DescribedFormat(description) for description in ALL),
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
    if isinstance(form, DescribedFormat):
        marks = " and ".join(mark.replace("|||", " or ") for mark in form.description.marks)
        return _adapted(form, template, f"the template has {marks}")
    if form.name != "generic":
        return Found(form, "the template has its markers")
    return _unknown(form, template)


def for_template(form: ToolFormat, template: str | None) -> ToolFormat:
    """A format that was named by hand, as far as it depends on the template."""
    if not isinstance(form, DescribedFormat) or not template:
        return form
    return _adapted(form, template, "it was named").format


@lru_cache(maxsize=32)
def _adapted(form: DescribedFormat, source: str, reason: str) -> Found:
    try:
        ways = ways_of(form, ChatTemplate(source, "<s>", "</s>"))
    except BeeError:  # a template that is broken says so when a conversation is rendered
        return Found(form, reason)
    told = {"the tools": ways.shows_tools, "past calls": ways.writes_calls, "results": ways.writes_results}
    lacking = [what for what, done in told.items() if not done]
    also = f"; it does not write {' and '.join(lacking)}, so messages do" if lacking else ""
    return Found(form.with_ways(ways), reason + also)


def _unknown(generic: ToolFormat, source: str) -> Found:
    """A format for a template that no family knows: its own, where that is certain."""
    if not re.search(r"\btool_calls\b", source):
        return Found(generic, "the template knows no calls, so the system message describes the tools")
    try:
        description = derived(ChatTemplate(source, "<s>", "</s>"))
    except BeeError:
        description = None
    if description is not None:
        reason = f"derived from what the template writes for past calls: {description.calls_pattern.write(calls='...')}"
        return _adapted(DescribedFormat(description), source, reason)
    begin = " ".join(source.split())[:60]
    _log.warning(
        "the chat template that begins with %r writes calls in a form that is not known: tools are described in the "
        "system message instead. If the model was trained on one of the known forms, name it: tool_format=%s",
        begin,
        " or ".join(repr(one.name) for one in FORMATS[:3]) + ", ...",
    )
    return Found(generic, "the template writes calls in a form that is not known")


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
