"""Answers put together from events: what is cut off never takes away what was complete."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bee_integrations.chat.reply import Piece, Reply, ReplyReader
from bee_integrations.chat.request import ChatRequest
from bee_integrations.chat.tool_use import ToolUse
from bee_integrations.engine.scheduler import Job
from bee_integrations.errors import ParameterError
from bee_integrations.generation import GenerationParams, Step
from bee_integrations.langchain import ChatBee
from bee_integrations.llama_index import Bee
from bee_integrations.tools.hermes import HermesFormat, call_text
from bee_integrations.tools.tool_format import CallBroken, Tool

ADD = Tool("add", "", {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]})
CALLS = [call_text("add", '{"a": 1}'), call_text("add", '{"a": 2}')]


def read(text: str, *, demanded: bool) -> Reply:
    """The reply that an answer of this text is, which was cut off at its end."""
    reader = ReplyReader(HermesFormat(), (ADD,), None, opened=False, demanded=demanded)
    reply = Reply()
    for step in (Step(text, ()), Step("", (), "length")):
        reply.add(Piece(tuple(reader.read(step)), step))
    return reply


@pytest.mark.parametrize("demanded", [True, False])
def test_a_call_that_is_cut_off_leaves_those_before_it(demanded: bool) -> None:
    text = "\n".join(CALLS)
    for cut in range(len(text) + 1):
        reply = read(text[:cut], demanded=demanded)
        # A call that lacks nothing but its end marker is complete.
        complete = sum(cut >= text.index("}}", start) + 2 for start in (0, len(CALLS[0])))
        assert [call.arguments for call in reply.calls.values()] == ['{"a": 1}', '{"a": 2}'][:complete], text[:cut]
        assert not (demanded and reply.text), text[:cut]
        assert all(isinstance(broken, CallBroken) for broken in reply.broken)
        assert not {broken.index for broken in reply.broken} & set(reply.calls)


@pytest.mark.parametrize(
    ("tools", "choice", "message"),
    [
        ((ADD, ADD), "auto", "two tools with the name 'add'"),
        ((Tool("", "", {}),), "auto", "a tool has no name"),
        ((ADD,), "sub", "tool_choice is 'sub'; it must be one of 'auto', 'any', 'required', 'none', 'add'"),
        ((), "any", "there are no tools"),
        ((Tool("f", "", {"type": "string"}),), "auto", "parameters of the tool 'f' have the type 'string'"),
    ],
)
def test_tools_that_do_not_fit_together(tools: Any, choice: str, message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        ToolUse(tools, choice)


def test_parameters_and_request_are_built_once(tiny_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[str] = []

    def counted(kind: type[Any]) -> None:
        constructor = kind.__init__

        def build(self: Any, *arguments: Any, **named: Any) -> None:
            built.append(kind.__name__)
            constructor(self, *arguments, **named)

        monkeypatch.setattr(kind, "__init__", build)

    chat, plain = ChatBee(model=tiny_path, max_tokens=3), Bee(model=tiny_path, max_tokens=3)
    chat.invoke("Hi")  # opens the engine
    for kind in (GenerationParams, ChatRequest, Job):
        counted(kind)
    for call in (
        lambda: chat.invoke("Hi", response_format={"type": "object"}, reasoning_span="<think>"),
        lambda: list(chat.stream("Hi", tools=[ADD.as_openai()], tool_format="hermes")),
        lambda: plain.complete("Hi", temperature=0.5),
    ):
        built.clear()
        call()
        assert sorted(built) == ["ChatRequest", "GenerationParams", "Job"]
