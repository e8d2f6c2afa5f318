"""Chat templates: the jinja2 source inside a model file that turns messages into a prompt.

Rendering follows Hugging Face's conventions, which the templates are written for: blocks are trimmed, `tojson` does not
escape, and `raise_exception`, `strftime_now`, `{% break %}` and `{% generation %}` exist.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

import jinja2

from ..errors import ParameterError, TemplateError
from ..models.file import ModelFile
from .template_sandbox import BoundedEnvironment, LimitError, limits
from .tokenizer import Tokenizer

__all__ = ["ChatTemplate"]

MAX_SOURCE = 1_000_000  # characters
_FILENAME = "<chat template>"


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
        self._template = _compile(source)

    @classmethod
    def from_model_file(cls, file: ModelFile, tokenizer: Tokenizer) -> ChatTemplate | None:
        """The default template of a model (`tokenizer.chat_template`), or None where it has none."""
        source = file.metadata.get("tokenizer.chat_template")
        if not isinstance(source, str) or not source.strip():
            return None
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
            "raise_exception": _raise_exception,
            "strftime_now": _strftime_now,
        }
        variables.update(kwargs)
        try:
            with limits() as budget:
                chunks = []
                for chunk in self._template.generate(variables):
                    budget.text(len(chunk))
                    chunks.append(chunk)
                budget.text(sum(map(len, chunks)))
                return "".join(chunks)
        except Exception as error:
            raise _as_template_error(error) from error


class _RejectedError(Exception):
    """The template called raise_exception."""


def _compile(source: str) -> jinja2.Template:
    environment = BoundedEnvironment()
    try:
        code = environment.compile_source(source, _FILENAME)
        return jinja2.Template.from_code(environment, code, environment.make_globals(None))
    except jinja2.TemplateSyntaxError as error:
        raise TemplateError(f"the chat template is invalid at line {error.lineno}: {error.message}") from error
    except (RecursionError, MemoryError, SyntaxError) as error:
        raise TemplateError("the chat template is invalid: it is nested too deeply") from error
    except Exception as error:
        raise TemplateError(f"the chat template cannot be compiled: {_one_line(error)}") from error


def _check_messages(messages: Any) -> None:
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence):
        raise ParameterError(f"messages is a {type(messages).__name__}, expected a list of dicts")
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise ParameterError(
                f'messages[{index}] is a {type(message).__name__}, expected a dict with "role" and "content"'
            )


def _as_template_error(error: Exception) -> TemplateError:
    line = _template_line(error.__traceback__)
    where = "" if line is None else f" at line {line}"
    if isinstance(error, _RejectedError):
        return TemplateError(f"the chat template rejects these messages{where}: {_one_line(error)}")
    if isinstance(error, LimitError):
        return TemplateError(f"the chat template was stopped{where}: {_one_line(error)}")
    if isinstance(error, RecursionError):
        return TemplateError(f"the chat template was stopped{where}: its macros call each other too deeply")
    return TemplateError(f"the chat template failed{where}: {_one_line(error)}")


def _template_line(traceback: TracebackType | None) -> int | None:
    """jinja2 rewrites tracebacks so that lines of the template appear as frames of their own; the last one counts."""
    line = None
    while traceback is not None:
        if traceback.tb_frame.f_code.co_filename == _FILENAME:
            line = traceback.tb_lineno
        traceback = traceback.tb_next
    return line


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 500 else text[:497] + "..."


def _raise_exception(message: Any) -> None:
    raise _RejectedError(str(message))


def _strftime_now(pattern: Any) -> str:
    # A width in the pattern ("%1000000000Y") would make that much text.
    text = str(pattern)
    if len(text) > 200 or re.search(r"%[-_0^#+]*\d{2,}", text):
        raise ValueError(f"strftime_now: the format {text[:40]!r} is longer or wider than any date")
    return datetime.datetime.now().strftime(text)
