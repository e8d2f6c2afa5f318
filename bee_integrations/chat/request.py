"""Chats with tools, structured answers and thinking: what both frameworks' chat classes ask of the engine.

    messages, tools, parameters  ->  ChatRequest  ->  pieces of events, or a whole Reply

A request puts together how the model is told of its tools (a `ToolFormat`), what it may say (a `AnswerPhases`), and how
its text is read (thinking first, then calls).
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Generator, Iterator, Mapping, Sequence
from contextlib import aclosing, closing, contextmanager
from dataclasses import dataclass, replace
from typing import Any

from ..constraints.json_schema import read_schema, schema_text
from ..engine.engine import Engine, Step
from ..errors import ConstraintError
from ..tools.tool_format import Tool, ToolFormat
from . import reasoning
from .answer_plan import answer_plan
from .parameters import BeeParameters
from .prompt import chat_prompt, template_source, tool_format
from .reasoning import ReasoningSpan
from .reply import Piece, Reply, ReplyReader
from .text_request import Request
from .tool_use import ToolUse

__all__ = ["ChatRequest"]


@dataclass(frozen=True)
class ChatRequest(Request):
    """A conversation for an engine; nothing runs before `reply`, `pieces` or their async forms are called."""

    format: ToolFormat | None = None  # reads calls; None: the answer holds none
    tools: tuple[Tool, ...] = ()  # that may be called
    span: ReasoningSpan | None = None
    opened: bool = False  # the prompt ends inside the span
    demanded: bool = False  # the answer is a call

    @classmethod
    def of_chat(
        cls,
        engine: Engine,
        parameters: BeeParameters,
        messages: Sequence[Mapping[str, Any]],
        use: ToolUse | None = None,
    ) -> ChatRequest:
        """A request for an answer to `messages` (of `messages.chat_message`).

        Raises TemplateError, ParameterError, and ConstraintError for what no grammar can be made of.
        """
        use = use or ToolUse()
        style = tool_format(engine, parameters)
        prompt = chat_prompt(engine, parameters, messages, use, style)
        tools = use.callable_tools
        reads_calls = style if tools or style.reads_all else None
        span = _span(engine, parameters)
        _check_strict(tools)
        with _naming_tools(tools):
            plan = answer_plan(engine, parameters, use, reads_calls, span, prompt.text)
        return cls(
            engine=engine,
            prompt=prompt.text,
            params=parameters.generation_for(engine),
            timeout=parameters.timeout,
            phases=plan,
            tokens=prompt.tokens(engine) if prompt.guard else None,
            format=reads_calls,
            tools=tools,
            span=span,
            opened=span is not None and reasoning.begins_open(span, prompt.rendered),
            demanded=use.demanded,
        )

    def pieces(self) -> Generator[Piece, None, None]:
        """The answer as it comes; closing the generator cancels it. The last piece's step has the statistics."""
        reader = self._reader()
        with _naming_tools(self.tools), closing(self.steps()) as steps:
            for step in map(self._answer_check(), steps):
                yield Piece(tuple(reader.read(step)), step)

    async def apieces(self) -> AsyncGenerator[Piece, None]:
        """As `pieces`, for an event loop; cancelling the task cancels the answer."""
        reader, check = self._reader(), self._answer_check()
        with _naming_tools(self.tools):
            async with aclosing(self.asteps()) as steps:
                async for step in steps:
                    yield Piece(tuple(reader.read(checked := check(step))), checked)

    def reply(self) -> Reply:
        """The whole answer."""
        reply = Reply()
        with closing(self.pieces()) as pieces:
            for piece in pieces:
                reply.add(piece)
        return reply

    async def areply(self) -> Reply:
        """As `reply`, for an event loop."""
        reply = Reply()
        async with aclosing(self.apieces()) as pieces:
            async for piece in pieces:
                reply.add(piece)
        return reply

    def _answer_check(self) -> Callable[[Step], Step]:
        """Adds to the last step what the answer violates of the keywords that its grammar could not keep."""
        grammar = self.phases.grammar if self.phases is not None else None
        said: list[str] = []

        def checked(step: Step) -> Step:
            said.append(step.text)
            if step.finish_reason is None or grammar is None or not grammar.not_enforced:
                return step
            return replace(step, fault=grammar.fault("".join(said)))

        return checked

    def _reader(self) -> ReplyReader:
        lazy = self.phases.lazy if self.phases is not None else None
        ends_thinking = [trigger.text for trigger in lazy.in_thinking] if lazy is not None else []
        return ReplyReader(
            self.format, self.tools, self.span, opened=self.opened, demanded=self.demanded, ends_thinking=ends_thinking
        )


def _check_strict(tools: Sequence[Tool]) -> None:
    """Raises ConstraintError, with the tool and the path, for what no grammar keeps of a strict tool."""
    for tool in tools:
        if tool.strict:
            try:
                read_schema(schema_text(tool.parameters), strict=True)
            except ConstraintError as error:
                raise ConstraintError(f"the parameters of the tool {tool.name!r}: {error}") from None


@contextmanager
def _naming_tools(tools: Sequence[Tool]) -> Iterator[None]:
    """Refusals of a schema inside name the tool that it belongs to, besides the path in the schema."""
    try:
        yield
    except ConstraintError as error:
        for tool in tools:
            try:
                read_schema(schema_text(tool.parameters))
            except ConstraintError as found:
                raise ConstraintError(f"the parameters of the tool {tool.name!r}: {found}") from error
        raise


def _span(engine: Engine, parameters: BeeParameters) -> ReasoningSpan | None:
    if parameters.reasoning_span is None:
        return None
    if parameters.reasoning_span == "auto":
        return reasoning.recognise(template_source(engine, parameters))
    return reasoning.named(parameters.reasoning_span)
