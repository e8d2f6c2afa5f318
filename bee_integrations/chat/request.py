"""Chats with tools, structured answers and thinking: what both frameworks' chat classes ask of the engine.

    messages, tools, parameters  ->  ChatRequest  ->  pieces of events, or a whole Reply

A request puts together how the model is told of its tools (a `ToolFormat`), what it may say (a `SteeringPlan`), and how
its text is read (thinking first, then calls).
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Iterator, Mapping, Sequence
from contextlib import aclosing, closing, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from ..constraints.compiler import Constraint, JsonSchema
from ..constraints.json_schema import read_schema, schema_text
from ..constraints.phases import LazyGrammar, SteeringPlan, Thinking
from ..engine.engine import Engine, Step
from ..errors import ConstraintError, ParameterError, TemplateError
from ..generation import TokenLogprob
from ..tools import formats
from ..tools.argument_check import CheckedCalls
from ..tools.tool_format import (
    AnswerReader,
    CallArguments,
    CallBegin,
    CallBroken,
    CallEnd,
    Event,
    Reasoning,
    Text,
    Tool,
    ToolFormat,
)
from . import reasoning
from .parameters import BeeParameters
from .prompt import Prompt, Request, chat_text, guarded, template_source
from .reasoning import ReasoningSpan, ReasoningSplitter

__all__ = ["ChatRequest", "Piece", "Reply", "ReplyCall", "ToolUse"]


@dataclass(frozen=True)
class ToolUse:
    """The tools of a call, and whether they must be used. Raises ParameterError for tools that do not fit together."""

    tools: tuple[Tool, ...] = ()
    choice: str = "auto"
    """"auto": as the model likes; "any" ("required"): at least one call; "none": no call; or a tool's name."""
    parallel: bool = True
    """An answer may hold several calls, where the model's format knows that."""

    def __post_init__(self) -> None:
        names = [tool.name for tool in self.tools]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ParameterError(f"there are two tools with the name {twice!r}; give each a name of its own")
        if "" in names:
            raise ParameterError("a tool has no name")
        for tool in self.tools:
            kind = tool.parameters.get("type", "object")
            if kind != "object":
                raise ParameterError(
                    f"the parameters of the tool {tool.name!r} have the type {kind!r}; a schema of an object is needed"
                )
        known = ("auto", "any", "required", "none", *names)
        if self.choice not in known:
            raise ParameterError(f"tool_choice is {self.choice!r}; it must be one of {', '.join(map(repr, known))}")
        if self.choice not in ("auto", "none") and not self.tools:
            raise ParameterError(f"tool_choice is {self.choice!r}, but there are no tools")

    @property
    def callable_tools(self) -> tuple[Tool, ...]:
        """Those that the model may call."""
        if self.choice == "none":
            return ()
        named = tuple(tool for tool in self.tools if tool.name == self.choice)
        return named or self.tools

    @property
    def demanded(self) -> bool:
        """Whether the answer must hold a call."""
        return self.choice not in ("auto", "none")


# ---- answers ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Piece:
    """What one step of the engine brought."""

    events: tuple[Event, ...]
    step: Step


@dataclass
class ReplyCall:
    """A whole call of a tool."""

    id: str
    name: str
    arguments: str = ""  # the JSON text of an object


@dataclass
class Reply:
    """A whole answer."""

    text: str = ""
    reasoning: str = ""
    calls: dict[int, ReplyCall] = field(default_factory=dict)  # by index
    broken: list[CallBroken] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    last: Step = field(default_factory=lambda: Step("", ()))

    def add(self, piece: Piece) -> None:
        """Put the next piece to what came before."""
        self.last = piece.step
        self.logprobs += piece.step.logprobs
        for event in piece.events:
            match event:
                case Text(text):
                    self.text += text
                case Reasoning(text):
                    self.reasoning += text
                case CallBegin(index, name, call_id):
                    self.calls[index] = ReplyCall(call_id, name)
                case CallArguments(index, json):
                    self.calls[index].arguments += json
                case CallEnd():
                    pass
                case CallBroken(index):
                    self.calls.pop(index, None)
                    self.broken.append(event)

    @property
    def finish_reason(self) -> str:
        """ "tool_calls" where there are calls and the answer ended by itself; otherwise as the step says."""
        return finish_reason(self.last, bool(self.calls))


def finish_reason(last: Step, has_calls: bool) -> str:
    """The reason of an answer's last step in OpenAI's words."""
    return "tool_calls" if has_calls and last.finish_reason == "stop" else str(last.finish_reason)


# ---- requests --------------------------------------------------------------------------------------------------------


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
        span = _span(engine, parameters)
        opened = span is not None and reasoning.begins_open(span, prompt.rendered)
        request = cls(
            engine=engine,
            prompt=prompt.text,
            tokens=prompt.tokens(engine) if prompt.guard else None,
            params=parameters.generation_params(),
            timeout=parameters.timeout,
            format=style if tools or style.reads_all else None,
            tools=tools,
            span=span,
            opened=opened,
            demanded=use.demanded,
        )
        with _naming_tools(tools):
            steering = request._steering(parameters, use)
        params = replace(request.params, constraint=None, spoken_controls=request._spoken_controls())
        return replace(request, params=params, steering=steering)

    def pieces(self) -> Generator[Piece, None, None]:
        """The answer as it comes; closing the generator cancels it. The last piece's step has the statistics."""
        reader = _Reader(self)
        with _naming_tools(self.tools), closing(self.steps()) as steps:
            for step in steps:
                yield Piece(tuple(reader.read(step)), step)

    async def apieces(self) -> AsyncGenerator[Piece, None]:
        """As `pieces`, for an event loop; cancelling the task cancels the answer."""
        reader = _Reader(self)
        with _naming_tools(self.tools):
            async with aclosing(self.asteps()) as steps:
                async for step in steps:
                    yield Piece(tuple(reader.read(step)), step)

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

    def _spoken_controls(self) -> frozenset[str]:
        """The control tokens that the readers look for."""
        markers = [
            *(self.format.markers if self.format else ()),
            *((self.span.begin, self.span.end) if self.span else ()),
        ]
        known = self.engine.tokenizer.special_tokens
        return frozenset(text for text in known if any(text in marker for marker in markers))

    def _steering(self, parameters: BeeParameters, use: ToolUse) -> SteeringPlan | None:
        constraint = parameters.asked_constraint()
        grammar = lazy = None
        if self.tools and constraint is None and not use.demanded:
            lazy = self._lazy_calls(use)
        elif self.tools or (self.format is not None and constraint is not None):
            grammar = self.engine.grammars.compile_rules(self._calls_or_value(constraint, use))
        elif constraint is not None:
            grammar = self.engine.grammars.compile(constraint)
        thinking = self._thinking(parameters, bound=grammar is not None)
        if grammar is None and lazy is None and thinking is None:
            return None
        return SteeringPlan(grammar, lazy, thinking)

    def _lazy_calls(self, use: ToolUse) -> LazyGrammar:
        assert self.format is not None
        # A model that has called waits for the result: what follows a call is another one, or the end.
        rules, triggers = [self._call_rules(use)], []
        for index, trigger in enumerate(self.format.triggers):
            rules.append(f"rest_{index}: {trigger.rule}{self._more_calls(use)}")
            triggers.append(replace(trigger, rule=f"rest_{index}"))
        return LazyGrammar(tuple(triggers), "\n".join(rules), self.format.ends_thinking)

    def _calls_or_value(self, constraint: Constraint | None, use: ToolUse) -> str:
        """Rules of an answer that is calls, or a value of the schema where no call is demanded."""
        assert self.format is not None
        literal = self.engine.grammars.literal
        kinds, rules = [], []
        if self.tools:
            kinds.append(f"{literal(self.format.trigger)} after_trigger{self._more_calls(use)}")
            rules.append(self._call_rules(use))
        if constraint is not None and not use.demanded:
            if not isinstance(constraint, JsonSchema):
                raise ParameterError(
                    "where there are tools, or answers have channels, the answer can be constrained by a JSON schema "
                    f"alone, not by a {type(constraint).__name__}"
                )
            opening = f"{literal(self.format.answer_opening)} " if self.format.answer_opening else ""
            kinds.append(f"{opening}value")
            rules.append(f"value: %json {constraint.text}")
        return "\n".join([f"start: {' | '.join(kinds)}", *rules])

    def _more_calls(self, use: ToolUse) -> str:
        assert self.format is not None
        if not use.parallel or self.format.ends_turn:
            return ""
        return f' ("\\n" {self.engine.grammars.literal(self.format.trigger)} after_trigger)*'

    def _call_rules(self, use: ToolUse) -> str:
        assert self.format is not None
        return self.format.call_rules(self.tools, self.engine.grammars.literal, parallel=use.parallel)

    def _thinking(self, parameters: BeeParameters, *, bound: bool) -> Thinking | None:
        if self.span is None:
            return None
        # A prompt that closes an empty span has switched the thinking off.
        switched_off = not self.opened and self.prompt.rstrip().endswith(self.span.end.rstrip())
        if switched_off:
            return None
        return Thinking(self.span, self.opened, demanded=bound, budget=parameters.reasoning_budget)


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


class _Reader:
    """The text of one answer: thinking first, then what the tool format makes of the rest."""

    def __init__(self, request: ChatRequest) -> None:
        lazy = request.steering.lazy if request.steering is not None else None
        calls = () if lazy is None else lazy.in_thinking
        self._splitter = ReasoningSplitter(request.span, request.opened, [trigger.text for trigger in calls])
        self._calls: AnswerReader | None = request.format.reader(request.tools) if request.format else None
        self._trigger = request.format.trigger if request.format and request.demanded else ""
        self._checked = CheckedCalls(request.tools)
        self._n_calls = 0  # that have ended, well or not

    def read(self, step: Step) -> list[Event]:
        events = self._of_answer(self._splitter.push(step.text))
        if step.finish_reason is not None:
            events += self._of_answer(self._splitter.finish())
            events += self._calls.finish() if self._calls is not None else []
        events = self._checked.passed(events, bound=step.bound)
        self._n_calls += sum(isinstance(event, (CallEnd, CallBroken)) for event in events)
        return events if step.finish_reason is None else [self._as_cut_call(event) for event in events]

    def _as_cut_call(self, event: Event) -> Event:
        """What is left of a call that was cut off before its beginning was complete is no text."""
        if isinstance(event, Text) and self._trigger.startswith(event.text):
            return CallBroken(self._n_calls, event.text, "the call is cut off before it has begun")
        return event

    def _of_answer(self, split: Sequence[Text | Reasoning]) -> list[Event]:
        events: list[Event] = []
        for event in split:
            events += self._calls.push(event.text) if isinstance(event, Text) and self._calls is not None else [event]
        return events


# ---- prompts ---------------------------------------------------------------------------------------------------------


def tool_format(engine: Engine, parameters: BeeParameters) -> ToolFormat:
    """The format that the parameters name, or that of the chat template."""
    if parameters.tool_format is not None:
        return formats.by_name(parameters.tool_format)
    return formats.recognise(template_source(engine, parameters))


def chat_prompt(
    engine: Engine, parameters: BeeParameters, messages: Sequence[Mapping[str, Any]], use: ToolUse, style: ToolFormat
) -> Prompt:
    """The conversation as a prompt that shows the tools. Raises TemplateError and ParameterError."""
    given, guard = (
        ([dict(message) for message in messages], "") if parameters.parse_special else guarded(engine, messages)
    )
    return Prompt(_rendered(engine, parameters, given, use, style), guard)


def _rendered(
    engine: Engine, parameters: BeeParameters, messages: list[dict[str, Any]], use: ToolUse, style: ToolFormat
) -> str:
    shown = () if use.choice == "none" else use.tools
    touched = shown or any(message.get("tool_calls") or message.get("role") == "tool" for message in messages)
    if not touched:
        return chat_text(engine, parameters, messages)
    prepared, tools = style.prompt(messages, shown)
    try:
        return chat_text(engine, parameters, prepared, tools=tools)
    except TemplateError:
        joined = _system_joined_to_user(messages, prepared)
        if joined is None:
            raise
        return chat_text(engine, parameters, joined, tools=tools)


def _system_joined_to_user(
    given: Sequence[Mapping[str, Any]], prepared: list[dict[str, Any]]
) -> list[dict[str, Any]] | None:
    """For templates that take no system message (Gemma 2), where only the description of tools needs one: it goes to
    the first user's."""
    begins = [str(message.get("role")) for message in prepared[:2]]
    if begins != ["system", "user"] or (given and given[0].get("role") == "system"):
        return None
    system, user, *others = prepared
    return [{**user, "content": f"{system['content']}\n\n{user['content']}"}, *others]


def _span(engine: Engine, parameters: BeeParameters) -> ReasoningSpan | None:
    if parameters.reasoning_span is None:
        return None
    if parameters.reasoning_span == "auto":
        return reasoning.recognise(template_source(engine, parameters))
    return reasoning.named(parameters.reasoning_span)
