"""What a chat template does with tools, calls and results by itself: found out by rendering a few conversations."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import date
from typing import Any

from ..errors import BeeError
from ..text.chat_template import ChatTemplate
from .described_format import DescribedFormat, TemplateWays
from .tool_format import CallArguments, CallBegin, CallEnd, Tool

__all__ = ["PROBE_TOOL", "calls_in", "probe_call", "tool_variables", "ways_of"]

QUESTION, RESULT = "What does the probe say?", "The probe says: blue."
PROBE_TOOL = Tool(
    "probe_the_sea",
    "Sinks a probe into the sea.",
    {
        "type": "object",
        "properties": {
            "depth": {"type": "string", "description": "How deep."},
            "times": {"type": "integer", "description": "How often."},
        },
        "required": ["depth", "times"],
    },
)
_ARGUMENTS = ({"depth": "ninety fathoms", "times": 731}, {"depth": "two leagues", "times": 952})


def tool_variables(source: str, tools: Sequence[Mapping[str, Any]] | None) -> dict[str, Any]:
    """What a template asks for besides `tools`.

    Firefunction's takes them as text, and knows the day; SmolLM 3's has another name for those that are called in JSON.
    """
    functions = [tool["function"] for tool in tools or ()]
    if "+ functions" in source and "datetime" in source:
        return {"functions": json.dumps(functions, indent=4), "datetime": date.today().strftime("%b %d %Y")}
    return {"xml_tools": functions} if functions and "xml_tools" in source else {}


def probe_call(number: int) -> dict[str, Any]:
    """A call of the probe's tool, as messages have it: 0 or 1."""
    function = {"name": PROBE_TOOL.name, "arguments": dict(_ARGUMENTS[number])}
    return {"id": f"probe000{number}", "type": "function", "function": function}


def ways_of(form: DescribedFormat, template: ChatTemplate) -> TemplateWays:
    """How the conversation is told to a template of this family."""
    shown = _rendered(template, [{"role": "user", "content": QUESTION}])
    shows_tools = shown is not None and (PROBE_TOOL.name in shown or PROBE_TOOL.description in shown)
    for ways in _candidates(template.source):
        found = _render_history(form.with_ways(ways), template, n_calls=1 if ways.one_call else 2)
        if found is not None and calls_in(form, found) == [
            (PROBE_TOOL.name, one) for one in _ARGUMENTS[: 1 if ways.one_call else 2]
        ]:
            return _completed(ways, form, template, shows_tools, found)
    return _completed(TemplateWays(writes_calls=False), form, template, shows_tools, None)


def _candidates(source: str) -> Iterator[TemplateWays]:
    if "tool_calls" not in source:
        return
    for one_call, as_text, as_none in itertools.product((False, True), repeat=3):
        yield TemplateWays(one_call=one_call, arguments_as_text=as_text, content_as_none=as_none)


def _completed(
    ways: TemplateWays, form: DescribedFormat, template: ChatTemplate, shows_tools: bool, found: str | None
) -> TemplateWays:
    ways = replace(ways, shows_tools=shows_tools)
    if found is None:
        found = _render_history(form.with_ways(ways), template, n_calls=1)
    return replace(ways, writes_results=found is not None and RESULT in found)


def _render_history(form: DescribedFormat, template: ChatTemplate, *, n_calls: int) -> str | None:
    calls = [probe_call(number) for number in range(n_calls)]
    results = [
        {"role": "tool", "tool_call_id": call["id"], "name": PROBE_TOOL.name, "content": RESULT} for call in calls
    ]
    question = {"role": "user", "content": QUESTION}
    messages, _ = form.prompt([question, {"role": "assistant", "content": "", "tool_calls": calls}, *results], ())
    rendered = _rendered(template, messages)
    return None if rendered is None else rendered[rendered.rfind(QUESTION) + len(QUESTION) :]


def _rendered(template: ChatTemplate, messages: list[dict[str, Any]]) -> str | None:
    try:
        tools = [PROBE_TOOL.as_openai()]
        return template.render(messages, tools=tools, **tool_variables(template.source, tools))
    except BeeError:
        return None


def calls_in(form: DescribedFormat, text: str) -> list[tuple[str, Any]]:
    """The calls that a reader of the format finds in a text."""
    reader = form.reader([PROBE_TOOL])
    names: dict[int, str] = {}
    arguments: dict[int, str] = {}
    found = []
    for event in [*reader.push(text), *reader.finish()]:
        match event:
            case CallBegin(index, name):
                names[index], arguments[index] = name, ""
            case CallArguments(index, piece):
                arguments[index] += piece
            case CallEnd(index):
                found.append((names[index], json.loads(arguments[index])))
    return found
