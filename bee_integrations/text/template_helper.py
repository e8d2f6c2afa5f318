"""The process that renders templates of strangers, one after the other, under limits that the kernel holds.

`template_process.py` starts it and talks to it. A message is its length (8 bytes, little-endian), a tag of one byte,
and the rest. Requests are pickled, because they come from a process that this one trusts; answers are text and JSON,
because what runs here may have been taken over.
"""

from __future__ import annotations

import contextlib
import json
import pickle
import resource
import signal
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import jinja2

from ..errors import TemplateError
from .template_rendering import MAX_MEMORY, compile_template, one_line, render_template

__all__ = ["ANSWER", "CALL", "ERROR", "REQUEST", "Callback", "read_message", "serve", "write_message"]

REQUEST, ANSWER, ERROR, CALL = b"R", b"A", b"E", b"C"
_KEPT_TEMPLATES = 4
_LENGTH = struct.Struct("<Q")


class Callback:
    """Stands in a request for a function that the caller gave to the template; it is called over there."""

    def __init__(self, name: str) -> None:
        self.name = name


def write_message(stream: BinaryIO, tag: bytes, body: bytes) -> None:
    """Send one message over an unbuffered pipe."""
    rest = memoryview(_LENGTH.pack(len(body)) + tag + body)
    while rest:
        rest = rest[stream.write(rest) :]


def read_message(stream: BinaryIO) -> tuple[bytes, bytes]:
    """The next message of an unbuffered pipe: tag and body. Raises EOFError where the other side has gone."""
    head = _read_exactly(stream, _LENGTH.size + 1)
    return head[-1:], _read_exactly(stream, _LENGTH.unpack(head[:-1])[0])


def _read_exactly(stream: BinaryIO, size: int) -> bytes:
    pieces = []
    while size:
        piece = stream.read(min(size, 1 << 20))
        if not piece:
            raise EOFError("the other side has gone")
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)


def serve() -> None:
    """Answer requests on stdin until it ends."""
    requests, answers = open(0, "rb", buffering=0), open(1, "wb", buffering=0)  # noqa: SIM115
    _limit_memory()
    templates: dict[str, jinja2.Template] = {}
    with contextlib.suppress(EOFError, OSError):
        while True:
            _, body = read_message(requests)
            try:
                text = _answer(body, templates, lambda name: _caller(name, requests, answers))
                write_message(answers, ANSWER, text.encode("utf-8", "surrogatepass"))
            except TemplateError as error:
                write_message(answers, ERROR, str(error).encode("utf-8", "surrogatepass"))
            except MemoryError:
                write_message(answers, ERROR, b"the chat template was stopped: memory for its messages ran out")
            if _memory()[1] > MAX_MEMORY // 2:
                return  # what one template left behind, the next would lack


def _answer(body: bytes, templates: dict[str, jinja2.Template], caller: Callable[[str], Callable[..., Any]]) -> str:
    source, variables, seconds = _request(body)
    _limit_time(seconds)
    template = templates.pop(source, None) or compile_template(source)
    templates[source] = template
    if len(templates) > _KEPT_TEMPLATES:
        del templates[next(iter(templates))]
    if variables is None:
        return ""
    given = {name: caller(name) if isinstance(value, Callback) else value for name, value in variables.items()}
    return render_template(template, given, seconds)


def _request(body: bytes) -> tuple[str, dict[str, Any] | None, int]:
    try:
        request: tuple[str, dict[str, Any] | None, int] = pickle.loads(body)
        return request
    except MemoryError:
        raise
    except Exception as error:  # a class of the caller's that cannot be imported here
        raise TemplateError(f"the chat template cannot be given these messages: {one_line(error)}") from error


def _caller(name: str, requests: BinaryIO, answers: BinaryIO) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        write_message(answers, CALL, json.dumps([name, args, kwargs]).encode())
        tag, body = read_message(requests)
        if tag == ERROR:
            raise ValueError(body.decode("utf-8", "replace"))
        return pickle.loads(body)

    return call


def _limit_memory() -> None:
    """So much address space more that what is resident stays within the limit."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    mapped, resident = _memory()
    if mapped:
        room = MAX_MEMORY + mapped - resident
        resource.setrlimit(resource.RLIMIT_AS, (room, room))


def _memory() -> tuple[int, int]:
    """Bytes mapped and resident; zeros where it is not Linux, and template_sandbox.py has the only limits."""
    try:
        pages = Path("/proc/self/statm").read_text(encoding="ascii").split()
    except OSError:
        return 0, 0
    return int(pages[0]) * resource.getpagesize(), int(pages[1]) * resource.getpagesize()


def _limit_time(seconds: int) -> None:
    """The kernel ends this process when it has used so much more processor time."""
    signal.signal(signal.SIGXCPU, signal.SIG_DFL)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    soft = int(time.process_time()) + seconds + 1
    resource.setrlimit(resource.RLIMIT_CPU, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))
