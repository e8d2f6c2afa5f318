"""Grammars are tried where they can be ended before they are compiled where they cannot (`trial_process.py`)."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import weakref
from collections.abc import Sequence
from threading import Lock
from typing import Any

from ..errors import ConstraintError
from . import trial_process
from .trial_process import CPU_SECONDS, MEMORY_BYTES, EngineVocabulary, read_frame, write_frame

__all__ = ["Trial"]

_keys = itertools.count()


class Trial:
    """Tries grammars for the vocabularies of one tokenizer. Safe to use from several threads; trials of all take turns
    in one helper, which is started when it is first needed and ends by itself when it is not."""

    def __init__(self, vocabularies: Sequence[EngineVocabulary]) -> None:
        self._shapes = [(v.tokens, v.special_token_ids, v.eos_token_id, v.bos_token_id) for v in vocabularies]
        self._key = next(_keys)

    def check(self, grammar: str, subject: str, by_characters: bool = False) -> None:
        """Raises `ConstraintError` where a grammar takes too much time or memory to compile."""
        try:
            exceeded = _helper.tried(self._key, self._shapes, (grammar, by_characters))
        except (OSError, EOFError) as error:
            raise ConstraintError(
                f"{subject}: compiling it needs a process of its own, which cannot be run ({error})"
            ) from error
        if exceeded == "time":
            raise ConstraintError(f"{subject}: it takes more than {CPU_SECONDS} s of processor time to compile")
        if exceeded == "memory":
            raise ConstraintError(f"{subject}: it takes more than {MEMORY_BYTES >> 20} MB of memory to compile")


class _Helper:
    """The helper process of this process; a forked child gets its own."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._process: subprocess.Popen[bytes] | None = None
        os.register_at_fork(after_in_child=self._forget)

    def tried(self, key: int, shapes: Sequence[Any], grammar: tuple[str, bool]) -> str:
        with self._lock:
            for attempt in range(2):  # a helper may have ended just now, having waited for long
                try:
                    return self._asked(key, shapes, grammar)
                except (OSError, EOFError):
                    self._end()
                    if attempt:
                        raise
        raise AssertionError

    def _asked(self, key: int, shapes: Sequence[Any], grammar: tuple[str, bool]) -> str:
        process = self._process or self._start()
        answer = self._answer(process, (key, None, *grammar))
        if answer is None:  # it does not know this vocabulary yet
            answer = self._answer(process, (key, shapes, *grammar))
        return str(answer)

    @staticmethod
    def _answer(process: subprocess.Popen[bytes], request: Any) -> Any:
        assert process.stdin is not None
        assert process.stdout is not None
        write_frame(process.stdin, request)
        return read_frame(process.stdout)

    def _start(self) -> subprocess.Popen[bytes]:
        if not sys.executable or getattr(sys, "frozen", False):
            raise FileNotFoundError("there is no Python interpreter")
        process = subprocess.Popen(
            [sys.executable, "-S", "-E", trial_process.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert process.stdin is not None
        write_frame(process.stdin, sys.path)
        weakref.finalize(self, _close, process)
        self._process = process
        return process

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            _close(process)

    def _forget(self) -> None:
        """In a forked child: the pipes belong to the parent's requests."""
        self._lock = Lock()
        self._process = None


def _close(process: subprocess.Popen[bytes]) -> None:
    """It ends by itself at the end of its input."""
    for stream in (process.stdin, process.stdout):
        try:
            if stream is not None:
                stream.close()
        except OSError:
            pass
    process.kill()
    process.wait()


_helper = _Helper()
