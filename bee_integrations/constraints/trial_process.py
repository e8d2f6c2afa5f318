"""A helper process in which grammars are compiled before they are compiled here, and what both processes share.

A call of the grammar engine cannot be interrupted, and some grammars of a few characters let it run for ever or take
all memory. So whatever is not plainly harmless is tried first in a fork of this helper, which the operating system
ends when it exceeds its processor time or its memory (`trial.py` is the other side). Run as a script, this file needs
nothing of the package but itself, so that the helper is there within some hundredths of a second.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import resource
import select
import signal
import struct
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import IO, TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

__all__ = [
    "CPU_SECONDS",
    "MEMORY_BYTES",
    "WALL_SECONDS",
    "EngineVocabulary",
    "first_steps",
    "read_frame",
    "write_frame",
]

# What a trial may take. What follows it in the process itself does the same again, and is well within 10 s, 512 MB.
CPU_SECONDS = 3
WALL_SECONDS = 20.0  # on a machine that is busy with other things
MEMORY_BYTES = 320 << 20

_IDLE_SECONDS = 60.0  # after which a helper ends; the next trial starts another one
_OUT_OF_MEMORY = 2  # exit status of a trial


@dataclass
class EngineVocabulary:
    """A vocabulary with the attributes that llguidance looks for."""

    tokens: list[bytes]
    special_token_ids: list[int]
    eos_token_id: int
    bos_token_id: int | None
    encode: Callable[[str], list[int]] | None = field(default=None, repr=False)  # None: by the longest tokens that fit

    def __call__(self, text: str) -> list[int]:
        if not isinstance(text, str):
            raise TypeError("only text is tokenised")  # llguidance tries bytes once, and then keeps to text
        return self.encode(text) if self.encode is not None else self.longest_tokens(text.encode())

    def tokenizer(self) -> LLTokenizer:
        """The vocabulary in the order that the engine needs."""
        from llguidance import LLTokenizer, TokenizerWrapper

        return LLTokenizer(TokenizerWrapper(self), n_vocab=len(self.tokens), eos_token=self.eos_token_id)

    def longest_tokens(self, text: bytes) -> list[int]:
        """Tokens that spell a text, each the longest that fits; up to where none does."""
        tokens: list[int] = []
        at = 0
        while at < len(text):
            ends = range(min(len(text), at + self._longest), at, -1)
            end = next((end for end in ends if text[at:end] in self._by_bytes), None)
            if end is None:
                return tokens  # the engine finds out what no token spells
            tokens.append(self._by_bytes[text[at:end]])
            at = end
        return tokens

    @cached_property
    def _by_bytes(self) -> dict[bytes, int]:
        control = set(self.special_token_ids)
        return {text: token for token, text in reversed([*enumerate(self.tokens)]) if token not in control and text}

    @cached_property
    def _longest(self) -> int:
        return max(map(len, self._by_bytes), default=1)


def first_steps(tokenizer: LLTokenizer, grammar: str, by_characters: bool = False) -> tuple[LLMatcher, str]:
    """(matcher in the initial state, error or ""), with the forced tokens and the first mask, the dearest, computed.

    by_characters: terminals may be single characters, as those of GBNF, where a mask takes more and smaller steps."""
    from llguidance import LLMatcher, LLParserLimits

    # All requests wait for a step of one grammar, hence limits. A row holds what is possible at one place, like
    # a thousand optional properties. A state of the lexer takes some kilobytes.
    limits = LLParserLimits(
        max_items_in_row=4_000,
        step_max_items=200_000 if by_characters else 20_000,
        max_lexer_states=50_000,
        verbose_errors=False,
    )
    matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=limits)
    if not matcher.is_error():
        matcher.compute_ff_tokens()
        matcher.compute_bitmask()
    return matcher, matcher.get_error() if matcher.is_error() else ""


# ---- frames: a length in four bytes, and a pickle --------------------------------------------------------------------


class _Reads(Protocol):
    def read(self, n: int, /) -> bytes: ...


def write_frame(stream: IO[bytes], value: Any) -> None:
    data = pickle.dumps(value)
    stream.write(struct.pack("<I", len(data)) + data)
    stream.flush()


def read_frame(stream: _Reads) -> Any:
    """The next value. Raises EOFError."""
    head = stream.read(4)
    if len(head) < 4:
        raise EOFError
    return pickle.loads(stream.read(struct.unpack("<I", head)[0]))


# ---- the helper ------------------------------------------------------------------------------------------------------


def _serve() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that is served
    requests, answers = os.fdopen(0, "rb", buffering=0), os.fdopen(os.dup(1), "wb")
    whole = _Whole(requests)
    os.dup2(2, 1)  # nothing but answers may come that way
    sys.path[:] = read_frame(whole)
    import llguidance  # noqa: F401  # loaded once, for all forks

    vocabularies: dict[int, list[LLTokenizer]] = {}
    while select.select([requests], [], [], _IDLE_SECONDS)[0]:
        key, shapes, grammar, by_characters = read_frame(whole)
        if shapes is not None:
            vocabularies[key] = [EngineVocabulary(*shape).tokenizer() for shape in shapes]
        write_frame(answers, _tried(vocabularies[key], grammar, by_characters) if key in vocabularies else None)


class _Whole:
    """Reads as many bytes as are asked for from a pipe without a buffer, which `select` would not see."""

    def __init__(self, raw: Any) -> None:
        self._raw = raw

    def read(self, n: int, /) -> bytes:
        parts: list[bytes] = []
        while n > 0:
            part = self._raw.read(n)
            if not part:
                break
            parts.append(part)
            n -= len(part)
        return b"".join(parts)


def _tried(tokenizers: Sequence[LLTokenizer], grammar: str, by_characters: bool) -> str:
    """What became of a grammar in a fork: "", or what it exceeded ("time" or "memory")."""
    child = os.fork()
    if child == 0:
        _limit()
        try:
            for tokenizer in tokenizers:
                first_steps(tokenizer, grammar, by_characters)
        except MemoryError:
            os._exit(_OUT_OF_MEMORY)
        except BaseException:
            pass  # the same again in the process that asked says what it was
        os._exit(0)
    try:
        waited = os.pidfd_open(child)
        try:
            ended = bool(select.select([waited], [], [], WALL_SECONDS)[0])
        finally:
            os.close(waited)
    except (AttributeError, OSError):  # not Linux, or an old one: the limit of processor time has to do
        ended = True
    if not ended:
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if not ended or (os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGKILL)):
        return "time"
    return "memory" if status != 0 else ""


def _limit() -> None:
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)  # of a lack of memory the engine tells there
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS + 1))
    try:
        with open("/proc/self/statm") as counts:
            held = int(counts.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY_BYTES, held + MEMORY_BYTES))
    except (OSError, ValueError):
        pass  # no such file system, or no such limit there


if __name__ == "__main__":
    with contextlib.suppress(EOFError, BrokenPipeError):  # the process that is served has ended
        _serve()
