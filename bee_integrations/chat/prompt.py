"""Conversations as prompts: the chat template, how it is told of tools, and texts that look like control tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from ..engine.engine import Engine
from ..errors import ParameterError, TemplateError
from ..text.chat_template import ChatTemplate
from ..tools import formats
from ..tools.template_ways import tool_variables
from ..tools.tool_format import ToolFormat
from .parameters import BeeParameters
from .tool_use import ToolUse

__all__ = ["Prompt", "chat_prompt", "chat_text", "has_template", "template_source", "tool_format"]

_TRUSTED_ROLES = frozenset({"system", "developer", "assistant"})
_PRIVATE_USE = range(0xE000, 0xF900)  # characters that mean nothing, so templates leave them where they are


@dataclass(frozen=True)
class Prompt:
    """A rendered conversation."""

    rendered: str
    guard: str = ""
    """A character that stands in the texts of control tokens that somebody wrote: these are text."""

    @property
    def text(self) -> str:
        """The prompt as it may be shown."""
        return self.rendered.replace(self.guard, "") if self.guard else self.rendered

    def tokens(self, engine: Engine) -> list[int]:
        """The prompt as the model gets it."""
        return engine.encode_prompt(self.rendered, guard=self.guard)


def _guarded(
    engine: Engine, parameters: BeeParameters, messages: Sequence[Mapping[str, Any]], use: ToolUse
) -> tuple[list[dict[str, Any]], str]:
    """The messages with the texts of control tokens broken up by a character, and that character; "" where there are
    none.

    What the model and the developer wrote stays: a system message, and the model's own answers.
    """
    from_outside = [m for m in messages if m.get("role") not in _TRUSTED_ROLES and isinstance(m.get("content"), str)]
    if parameters.parse_special or not any(engine.tokenizer.holds_control(m["content"]) for m in from_outside):
        return [dict(message) for message in messages], ""
    templates = [template_source(engine, parameters), template_source(engine, parameters, for_tools=True)]
    shown = [templates, messages, [tool.as_openai() for tool in use.tools], parameters.chat_template_kwargs]
    known = {character for text in _strings(shown) for character in text}
    guard = next(character for character in map(chr, _PRIVATE_USE) if character not in known)
    broken = {id(m): {**m, "content": engine.tokenizer.guarded(m["content"], guard)} for m in from_outside}
    return [broken.get(id(message), dict(message)) for message in messages], guard


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, one in value.items():
            yield from (*_strings(key), *_strings(one))
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _strings(one)


def tool_format(engine: Engine, parameters: BeeParameters) -> ToolFormat:
    """The format that the parameters name, or that of the chat template."""
    source = template_source(engine, parameters, for_tools=True)
    if parameters.tool_format is not None:
        return formats.for_template(formats.by_name(parameters.tool_format), source)
    return formats.recognise(source)


def chat_prompt(
    engine: Engine, parameters: BeeParameters, messages: Sequence[Mapping[str, Any]], use: ToolUse, style: ToolFormat
) -> Prompt:
    """The conversation as a prompt that shows the tools. Raises TemplateError and ParameterError."""
    given, guard = _guarded(engine, parameters, messages, use)
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
        return chat_text(engine, parameters, prepared, tools=tools, for_tools=True)
    except TemplateError:
        joined = _system_joined_to_user(messages, prepared)
        if joined is None:
            raise
        return chat_text(engine, parameters, joined, tools=tools, for_tools=True)


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


# ---- the template ----------------------------------------------------------------------------------------------------


def chat_text(
    engine: Engine,
    parameters: BeeParameters,
    messages: list[dict[str, Any]],
    tools: list[dict[str, Any]] | None = None,
    *,
    for_tools: bool = False,
) -> str:
    """A conversation, rendered by the parameters' chat template or else the model's own; `for_tools`: by that which it
    has for tools.

    Raises `TemplateError` where there is no template, or where it rejects the messages.
    """
    if not messages:
        raise ParameterError("there are no messages; a chat needs at least one")
    switch = parameters.enable_thinking
    # Templates know the switch by one of these names.
    thinking = {} if switch is None else {"enable_thinking": switch, "thinking": switch}
    effort = {} if parameters.reasoning_effort is None else {"reasoning_effort": parameters.reasoning_effort}
    template = _template(engine, parameters, for_tools)
    variables = tool_variables(template.source, tools) | thinking | effort | (parameters.chat_template_kwargs or {})
    return template.render(messages, tools=tools, **variables)


def template_source(engine: Engine, parameters: BeeParameters, *, for_tools: bool = False) -> str | None:
    """The Jinja source that `chat_text` works with; None where there is none."""
    if parameters.chat_template is not None:
        return parameters.chat_template
    own = engine.tool_template if for_tools else engine.chat_template
    return None if own is None else own.source


def has_template(engine: Engine, parameters: BeeParameters) -> bool:
    """Whether `chat_text` has a template to work with."""
    return parameters.chat_template is not None or engine.chat_template is not None


def _template(engine: Engine, parameters: BeeParameters, for_tools: bool) -> ChatTemplate:
    if parameters.chat_template is not None:
        tokenizer = engine.tokenizer
        ends = (tokenizer.bos_token_id, tokenizer.eos_token_id)
        bos, eos = ("" if token is None else tokenizer.token_text(token) for token in ends)
        return _compiled(parameters.chat_template, bos, eos)
    own = engine.tool_template if for_tools else engine.chat_template
    if own is None:
        raise TemplateError(
            f"the model {engine.model_name!r} has no chat template, so it cannot be given messages; pass one as "
            "chat_template=... (Jinja source), or give the model plain text "
            "(BeeLLM in LangChain, complete() in LlamaIndex)"
        )
    return own


@lru_cache(maxsize=8)
def _compiled(source: str, bos: str, eos: str) -> ChatTemplate:
    """A user's template, which comes with every call."""
    return ChatTemplate(source, bos, eos)
