"""Compiling and rendering one chat template, wherever that happens: in this process, or in a helper of its own.

Nothing heavy is imported here: a helper (template_helper.py) is up in a tenth of a second.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping
from types import TracebackType
from typing import Any

import jinja2

from ..errors import TemplateError
from .template_sandbox import BoundedEnvironment, LimitError, limits

__all__ = ["MAX_MEMORY", "compile_template", "one_line", "render_template"]

MAX_MEMORY = 256 << 20  # bytes that a helper may have in memory, itself included
_FILENAME = "<chat template>"


def compile_template(source: str) -> jinja2.Template:
    """The template of a source. Raises `TemplateError`, naming the line, where it is invalid."""
    environment = BoundedEnvironment()
    try:
        code = environment.compile_source(source, _FILENAME)
        return jinja2.Template.from_code(environment, code, environment.make_globals(None))
    except jinja2.TemplateSyntaxError as error:
        raise TemplateError(f"the chat template is invalid at line {error.lineno}: {error.message}") from error
    except (RecursionError, SyntaxError) as error:
        raise TemplateError("the chat template is invalid: it is nested too deeply") from error
    except MemoryError as error:
        memory = f"{MAX_MEMORY >> 20} MB of memory"
        raise TemplateError(f"the chat template cannot be compiled: it takes more than {memory}") from error
    except Exception as error:
        raise TemplateError(f"the chat template cannot be compiled: {one_line(error)}") from error


def render_template(template: jinja2.Template, variables: Mapping[str, Any], seconds: float) -> str:
    """The text of a template. Raises `TemplateError`, naming the line, where it rejects, fails or exceeds its limits.

    seconds: of processor time.
    """
    known = {"raise_exception": _raise_exception, "strftime_now": _strftime_now, **variables}
    try:
        with limits(seconds) as budget:
            chunks = []
            for chunk in template.generate(known):
                budget.text(len(chunk))
                chunks.append(chunk)
            budget.text(sum(map(len, chunks)))
            return "".join(chunks)
    except Exception as error:
        raise _as_template_error(error) from error


class _RejectedError(Exception):
    """The template called raise_exception."""


def _as_template_error(error: Exception) -> TemplateError:
    line = _template_line(error.__traceback__)
    where = "" if line is None else f" at line {line}"
    if isinstance(error, _RejectedError):
        return TemplateError(f"the chat template rejects these messages{where}: {one_line(error)}")
    if isinstance(error, LimitError):
        return TemplateError(f"the chat template was stopped{where}: {one_line(error)}")
    if isinstance(error, RecursionError):
        return TemplateError(f"the chat template was stopped{where}: its macros or values are nested too deeply")
    if isinstance(error, MemoryError):
        return TemplateError(
            f"the chat template was stopped{where}: it takes more than {MAX_MEMORY >> 20} MB of memory"
        )
    return TemplateError(f"the chat template failed{where}: {one_line(error)}")


def _template_line(traceback: TracebackType | None) -> int | None:
    """jinja2 rewrites tracebacks so that lines of the template appear as frames of their own; the last one counts."""
    line = None
    while traceback is not None:
        if traceback.tb_frame.f_code.co_filename == _FILENAME:
            line = traceback.tb_lineno
        traceback = traceback.tb_next
    return line


def one_line(error: Exception) -> str:
    """What an exception says, short enough for a message."""
    text = str(error)
    if len(text) > 5000:  # before it is split into words
        text = text[:5000]
    text = " ".join(text.split()) or type(error).__name__
    return text if len(text) <= 500 else text[:497] + "..."


def _raise_exception(message: Any) -> None:
    raise _RejectedError(str(message))


def _strftime_now(pattern: Any) -> str:
    # A width in the pattern ("%1000000000Y") would make that much text.
    text = str(pattern)
    if len(text) > 200 or re.search(r"%[-_0^#+]*\d{2,}", text):
        raise ValueError(f"strftime_now: the format {text[:40]!r} is longer or wider than any date")
    return datetime.datetime.now().strftime(text)
