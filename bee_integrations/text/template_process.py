"""Helper processes for templates that may do anything: `run` renders there, and this process goes on meanwhile.

A helper takes 10 s of processor time and 256 MB of memory at most, and the kernel sees to it: whatever a template
finds to do between two looks of template_sandbox.py, it ends. Helpers are started when they are needed, kept for the
next template, and end with this process. They are programs of their own and not forks, so that threads, locks and the
caller's `__main__` do not matter; a fork of this process starts its own.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import pickle
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO, cast

from ..errors import TemplateError
from .template_helper import ANSWER, CALL, ERROR, REQUEST, Callback, read_message, write_message
from .template_rendering import one_line

__all__ = ["close_helpers", "run"]

MAX_SECONDS = 10  # of processor time, for one template
_KEPT = 2  # helpers that wait for work
_MOMENT_S = 0.2  # for a helper to end by itself

# The same modules as here, in whatever way they were installed.
_PROGRAM = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from bee_integrations.text.template_helper import serve; serve()"
)


def run(source: str, variables: Mapping[str, Any] | None) -> str:
    """Render a template in a helper; with `variables` None only see whether it compiles.

    Raises `TemplateError`: what the template raised, or the limit that it met.
    """
    functions = {name: value for name, value in (variables or {}).items() if callable(value)}
    request = _pickled(source, variables, functions)
    while True:
        helper = _take()
        answer = None
        try:
            answer = helper.ask(request, functions)
        except _LeftError:  # it had grown too large between two requests
            continue
        finally:  # an interrupted helper is in the middle of something
            if answer is None or len(_idle) >= _KEPT:
                helper.end()
            else:
                _idle.append(helper)
        tag, text = answer
        if tag == ERROR:
            raise TemplateError(text)
        return text


def close_helpers() -> None:
    """End the helpers that wait for work."""
    with contextlib.suppress(IndexError):
        while True:
            _idle.pop().end()


class _LeftError(Exception):
    """The helper ended by itself before it took the request."""


class _Helper:
    def __init__(self) -> None:
        command = [sys.executable, "-I", "-c", _PROGRAM, json.dumps([os.path.abspath(entry) for entry in sys.path])]
        try:
            self._process = subprocess.Popen(
                command,
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for this process
            )
        except (OSError, ValueError) as error:
            raise TemplateError(f"the chat template runs in a process of its own, and none starts: {error}") from error
        self._answered = False
        self._requests = cast(BinaryIO, self._process.stdin)
        self._answers = cast(BinaryIO, self._process.stdout)

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def ask(self, request: bytes, functions: Mapping[str, Callable[..., Any]]) -> tuple[bytes, str]:
        """The tag of the answer, ANSWER or ERROR, and its text."""
        try:
            write_message(self._requests, REQUEST, request)
            while True:
                tag, body = read_message(self._answers)
                if tag != CALL:
                    self._answered = True
                    return tag, body.decode("utf-8", "surrogatepass")
                write_message(self._requests, *_called(body, functions))
        except (EOFError, OSError):
            status = self.end()
            if status == 0 and self._answered:
                raise _LeftError from None
            raise TemplateError(_why_it_ended(status)) from None

    def end(self) -> int:
        """End the process, if it has not ended; its exit status as `subprocess` has it."""
        self._requests.close()
        self._answers.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._process.wait(_MOMENT_S)
        self._process.kill()
        return self._process.wait()

    def forget(self) -> None:
        """In a fork: the process is not a child of this one."""
        self._requests.close()
        self._answers.close()
        self._process.returncode = 0


_idle: deque[_Helper] = deque()  # its methods are atomic: no lock that a fork could copy while it is held


def _pickled(source: str, variables: Mapping[str, Any] | None, functions: Mapping[str, Any]) -> bytes:
    given = None if variables is None else {**variables, **{name: Callback(name) for name in functions}}
    try:
        return pickle.dumps((source, given, MAX_SECONDS), pickle.HIGHEST_PROTOCOL)
    except Exception as error:
        raise TemplateError(f"the chat template cannot be given these messages: {one_line(error)}") from error


def _called(body: bytes, functions: Mapping[str, Callable[..., Any]]) -> tuple[bytes, bytes]:
    """The answer to a helper whose template called one of the caller's functions."""
    try:
        name, args, kwargs = json.loads(body)
        return ANSWER, pickle.dumps(functions[name](*args, **kwargs), pickle.HIGHEST_PROTOCOL)
    except Exception as error:
        return ERROR, one_line(error).encode("utf-8", "replace")


def _why_it_ended(status: int) -> str:
    stopped = "the chat template was stopped: "
    if status == -signal.SIGXCPU:
        return f"{stopped}it takes more than {MAX_SECONDS} seconds of processor time"
    if status < 0:
        with contextlib.suppress(ValueError):
            status_name = signal.Signals(-status).name
            return f"{stopped}its process ended with {status_name}: its values are nested too deeply or take all memory"
    return f"{stopped}its process ended with status {status}"


def _take() -> _Helper:
    with contextlib.suppress(IndexError):
        while True:
            helper = _idle.pop()
            if helper.alive:
                return helper
            helper.end()
    return _Helper()


def _forget_helpers() -> None:
    while _idle:
        _idle.pop().forget()


os.register_at_fork(after_in_child=_forget_helpers)
atexit.register(close_helpers)
