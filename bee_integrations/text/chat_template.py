"""Chat templates: the jinja2 source inside a model file that turns messages into a prompt.

Rendering follows Hugging Face's conventions, which the templates are written for: blocks are trimmed, `tojson` does not
escape, and `raise_exception`, `strftime_now`, `{% break %}` and `{% generation %}` exist.

A template comes with a model file, that is from a stranger. Those of well-known models and those that are plain by
their shape are rendered here; all others in a helper process, whose limits no template talks around.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import ParameterError, TemplateError
from ..models.file import ModelFile
from . import template_process
from .known_templates import is_known
from .template_rendering import compile_template, render_template
from .template_shape import is_bounded
from .tokenizer import Tokenizer

__all__ = ["CHAT_TEMPLATE", "TOOL_TEMPLATE", "ChatTemplate"]

CHAT_TEMPLATE = "tokenizer.chat_template"
TOOL_TEMPLATE = "tokenizer.chat_template.tool_use"  # in files of models that have one for chats with tools alone
MAX_SOURCE = 1_000_000  # characters

_log = logging.getLogger(__name__)


class ChatTemplate:
    """One compiled template. Immutable, and safe to use from several threads."""

    def __init__(self, source: str, bos_token: str | None = "", eos_token: str | None = "") -> None:
        """`bos_token` and `eos_token` are the texts that templates know under these names.

        Raises `TemplateError`, naming the line, where the source is not a valid template.
        """
        if len(source) > MAX_SOURCE:
            raise TemplateError(f"the chat template has {len(source)} characters; at most {MAX_SOURCE} are accepted")
        self.source = source
        self.bos_token = bos_token or ""
        self.eos_token = eos_token or ""
        # None: it is compiled and rendered in a helper.
        self._template = compile_template(source) if _runs_here(source) else None
        if self._template is None:
            template_process.run(source, None)

    @classmethod
    def from_model_file(cls, file: ModelFile, tokenizer: Tokenizer, key: str = CHAT_TEMPLATE) -> ChatTemplate | None:
        """The template of a model under a key of its file, by default that for all chats; None where it has none."""
        source = file.metadata.get(key)
        if not isinstance(source, str) or not source.strip():
            return None
        return cls.of_tokenizer(source, tokenizer)

    @classmethod
    def of_tokenizer(cls, source: str, tokenizer: Tokenizer) -> ChatTemplate:
        """A template with a model's tokens."""
        bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
        return cls(
            source,
            None if bos is None else tokenizer.token_text(bos),
            None if eos is None else tokenizer.token_text(eos),
        )

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Any] | None = None,
        add_generation_prompt: bool = True,
        **kwargs: Any,
    ) -> str:
        """The prompt for `messages` (each with "role" and "content").

        add_generation_prompt: end with the beginning of an answer. kwargs: further variables that a template knows
        ("enable_thinking"). Raises `TemplateError`, naming the line, where the template rejects the messages, fails,
        or exceeds its limits of time and memory.
        """
        _check_messages(messages)
        variables: dict[str, Any] = {
            "messages": [dict(message) for message in messages],
            "tools": tools,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
            "bos_token": self.bos_token,
            "eos_token": self.eos_token,
        }
        variables.update(kwargs)
        try:
            return self._rendered(variables)
        except TemplateError as error:
            if tools is not None or "tools" not in self.source or "'NoneType'" not in str(error):
                raise
            with contextlib.suppress(TemplateError):  # one that knows chats with tools alone gets an empty list
                return self._rendered(variables | {"tools": []})
            raise

    def _rendered(self, variables: Mapping[str, Any]) -> str:
        if self._template is None:
            return template_process.run(self.source, variables)
        return render_template(self._template, variables, template_process.MAX_SECONDS)


def plain_text(messages: Sequence[Mapping[str, Any]]) -> str:
    """Messages as a model without a chat template takes them: nothing but their text."""
    return "\n".join(message["content"] for message in messages)


def _runs_here(source: str) -> bool:
    if is_known(source) or is_bounded(source):
        return True
    if getattr(sys, "frozen", False) or not sys.executable:  # there is no Python to start
        _log.warning("this program cannot start Python: the limits of a chat template are not strict")
        return True
    return False


def _check_messages(messages: Any) -> None:
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence):
        raise ParameterError(f"messages is a {type(messages).__name__}, expected a list of dicts")
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise ParameterError(
                f'messages[{index}] is a {type(message).__name__}, expected a dict with "role" and "content"'
            )
