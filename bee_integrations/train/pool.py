"""Many sessions of one target, stepped together: reading the weights once serves them all."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ModelFormatError
from ..library import check, ffi, lib, new_error


@dataclass(frozen=True)
class Sampling:
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


GREEDY = Sampling()


class Pool:
    """A target without a drafter and `n_sessions` sessions that keep their features at the layers `taps`.

    Sessions are numbered from 0. Raises what libbee raises (`bee_integrations.errors`).
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        taps: Sequence[int],
        *,
        n_sessions: int,
        n_ctx: int,
        threads: int = 1,
        stop_tokens: Sequence[int] = (),
    ) -> None:
        params = ffi.new("bee_engine_params *", {"n_threads": threads, "n_taps": len(taps), "taps": list(taps)})
        error = new_error()
        self._sessions: list[Any] = []
        self._engine = lib.bee_engine_open(os.fsencode(model), ffi.NULL, params, error)
        check(self._engine, error)
        info = ffi.new("bee_engine_info *")
        lib.bee_engine_describe(self._engine, info)
        self._feature_shape = (int(info.n_taps), int(info.n_embd))
        self._stop_tokens = ffi.new("int32_t[]", list(stop_tokens))
        self._active: list[int] = []
        for _ in range(n_sessions):
            session = lib.bee_session_open(self._engine, n_ctx, True, error)
            check(session, error)
            self._sessions.append(session)

    def begin(self, slot: int, prompt: Sequence[int], max_tokens: int, sampling: Sampling = GREEDY) -> None:
        """Start a request in a session, in place of the one that may run there."""
        tokens = ffi.new("int32_t[]", list(prompt))
        request = ffi.new("bee_request *")
        request.prompt, request.n_prompt = tokens, len(prompt)
        request.max_tokens, request.draft_length = max_tokens, 0
        request.stop_tokens, request.n_stop_tokens = self._stop_tokens, len(self._stop_tokens)
        request.sampling.temperature, request.sampling.top_p = sampling.temperature, sampling.top_p
        request.sampling.seed = sampling.seed
        error = new_error()
        check(lib.bee_session_begin(self._sessions[slot], request, error), error)
        if slot not in self._active:
            self._active.append(slot)

    def drop(self, slot: int) -> None:
        """Leave the request of a session unfinished."""
        if slot in self._active:
            self._active.remove(slot)

    def step(self) -> Iterator[tuple[int, list[int], bool]]:
        """One pass for all sessions with a request: (session, its new tokens, whether its request is finished).

        Raises ModelFormatError where the model's logits are not finite.
        """
        slots = list(self._active)
        if not slots:
            return
        sessions = ffi.new("bee_session *[]", [self._sessions[slot] for slot in slots])
        steps = ffi.new("bee_step[]", len(slots))
        error = new_error()
        check(lib.bee_engine_step(self._engine, sessions, len(slots), steps, error), error)
        for slot, step in zip(slots, steps, strict=True):
            if step.finish == lib.BEE_FINISH_NOT_FINITE:
                raise ModelFormatError("the model's logits are not finite; the file's weights are broken")
            finished = step.finish != lib.BEE_FINISH_NONE
            if finished:
                self._active.remove(slot)
            yield slot, [step.tokens[i] for i in range(step.n_tokens)], finished

    @property
    def feature_width(self) -> int:
        """n_taps * n_embd"""
        return self._feature_shape[0] * self._feature_shape[1]

    def features(self, slot: int, n: int) -> npt.NDArray[np.float32]:
        """Features of a session's first `n` positions: float32[n][n_taps][n_embd]."""
        out = np.empty((n, *self._feature_shape), np.float32)
        error = new_error()
        check(lib.bee_session_features(self._sessions[slot], 0, n, ffi.cast("float *", out.ctypes.data), error), error)
        return out

    def close(self) -> None:
        while self._sessions:
            lib.bee_session_close(self._sessions.pop())
        if self._engine:
            lib.bee_engine_close(self._engine)
            self._engine = None

    def __enter__(self) -> Pool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
