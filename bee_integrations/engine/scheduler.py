"""The thread that runs the passes of one engine for all requests at once.

The thread owns the sessions and every list of requests; others talk to it through a mailbox, so there is no lock to
hold while a pass runs. (`SimpleQueue.put` is reentrant: a garbage collector that closes a generator in the middle of
anything may post a message.) The one thing done from outside is `bee_session_cancel`, which stops a running pass.

The thread knows nothing of text: a job hands its tokens to a `Sink`. It holds no reference to the `Engine`, so an
engine that nobody uses can be collected, which stops the thread, which frees the library's handles.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import queue
import threading
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from ..errors import ConstraintError, EngineClosedError, GenerationCancelled, ModelFormatError, OutOfMemoryError
from ..library import check, ffi, lib, new_error

__all__ = ["Job", "Phased", "Scheduler", "SessionView", "Sink"]

_log = logging.getLogger("bee_integrations.engine")
_T = TypeVar("_T")
_EXIT_WAIT_S = 10.0  # a cancelled pass ends within a layer; never hang the interpreter's exit

# bee_finish
(FINISH_NONE, FINISH_STOP, FINISH_LENGTH, FINISH_CONTEXT, FINISH_CANCELLED, FINISH_NOT_FINITE, FINISH_COMPLETE,
 FINISH_CONSTRAINT) = range(8)  # fmt: skip
_SPECULATION = {
    "off": int(lib.BEE_SPECULATION_OFF),
    "auto": int(lib.BEE_SPECULATION_AUTO),
    "dflash": int(lib.BEE_SPECULATION_DFLASH),
    "copy": int(lib.BEE_SPECULATION_COPY),
    "mtp": int(lib.BEE_SPECULATION_MTP),
}


class SessionView:
    """What a sink may ask of its session. Only asked where needed: a call of the library offers the interpreter to the
    threads that the tokens woke."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    def stats(self) -> Any:
        """The `bee_stats` so far."""
        stats = ffi.new("bee_stats *")
        lib.bee_session_stats(self._handle, stats)
        return stats

    def logprobs(self, n: int) -> list[Any]:
        """The `bee_logprobs` of the last step's first n tokens."""
        results, error = [], new_error()
        for index in range(n):
            results.append(ffi.new("bee_logprobs *"))
            check(lib.bee_session_logprobs(self._handle, index, results[-1], error), error)
        return results


class Sink(Protocol):
    """Receives what a request produces, on the scheduler's thread. Must not block."""

    def accept(self, tokens: list[int], finish: int, session: SessionView) -> bool:
        """New tokens, with the reason (`bee_finish`) and the session's view. True: the request wants no more."""
        ...

    def fail(self, error: BaseException) -> None:
        """The request ended with an error; nothing follows."""
        ...


class Phased(Protocol):
    """What decides which tokens may follow: the Python side of `bee_constraint`."""

    error: BaseException | None

    def c_struct(self) -> Any:
        """A `bee_constraint *`; it and this object are kept until the request has ended."""
        ...


@dataclass(eq=False)
class Job:
    """One generation: what `bee_session_begin` takes, where the tokens go, and how far it has come."""

    prompt: npt.NDArray[np.int32]
    max_tokens: int
    speculation: str
    draft_length: int  # -1: the library's choice
    stop_tokens: tuple[int, ...]
    sampling: dict[str, float | int]  # fields of bee_sampling
    sink: Sink
    logit_edits: dict[str, Any] = field(default_factory=dict)  # those of bee_request that concern the full logit path
    phases: Phased | None = None
    cancelled: bool = False
    session: _Session | None = field(default=None, repr=False)  # while it runs
    constraint: Any = field(default=None, repr=False)  # the C side of `phases`


class _Session:
    """A `bee_session` and the order in which sessions were used."""

    def __init__(self, handle: Any) -> None:
        self.handle = handle
        self.last_used = 0

    def cached_tokens(self) -> npt.NDArray[np.int32]:
        """Tokens whose keys and values the session holds; a view that ends with the next call on the session."""
        pointer = ffi.new("int32_t **")
        count = lib.bee_session_tokens(self.handle, pointer)
        if count == 0:
            return np.empty(0, np.int32)
        return np.frombuffer(ffi.buffer(pointer[0], 4 * count), dtype=np.int32)


class _Call(Generic[_T]):
    """A function to run between passes, and its result."""

    def __init__(self, function: Callable[[Any], _T]) -> None:
        self._function = function
        self._done = threading.Event()
        self._result: _T | None = None
        self._error: BaseException | None = None

    def run(self, engine: Any) -> None:
        try:
            self._result = self._function(engine)
        except BaseException as error:  # handed to the caller, whatever it is
            self._error = error
        self._done.set()

    def fail(self, error: BaseException) -> None:
        self._error = error
        self._done.set()

    def result(self) -> _T:
        self._done.wait()
        if self._error is not None:
            raise self._error
        return self._result  # type: ignore[return-value]


_Message = Job | _Call[Any] | None  # a new request, a function to call, or just "look again"

_alive: weakref.WeakSet[Scheduler] = weakref.WeakSet()


class Scheduler:
    """Runs requests on an engine, at most `n_parallel` side by side; the others wait in the order they came.

    Takes over the `bee_engine` handle and frees it after `stop`.
    """

    def __init__(self, engine: Any, n_ctx: int, n_parallel: int) -> None:
        self._engine = engine
        self._n_ctx = n_ctx
        self._n_parallel = n_parallel
        self._pid = os.getpid()
        self._mailbox: queue.SimpleQueue[_Message] = queue.SimpleQueue()
        # Guards `Job.session` against a cancellation that comes while the session passes to the next request, and
        # the decision whether a message is still going to be read. Reentrant because a collected generator cancels.
        self._lock = threading.RLock()
        self._stopping = False
        self._stopped = False
        # Of the thread alone:
        self._waiting: deque[Job] = deque()
        self._calls: deque[_Call[Any]] = deque()
        self._active: list[Job] = []
        self._sessions: list[_Session] = []
        self._uses = 0
        self._thread = threading.Thread(target=self._run, name="bee-scheduler", daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:
            lib.bee_engine_close(engine)
            raise OutOfMemoryError(f"the system gives this process no more threads ({error})") from error
        _alive.add(self)

    # ---- from any thread ---------------------------------------------------------------------------------------------

    @property
    def usable(self) -> bool:
        """Whether requests are still taken, in this process."""
        return not self._stopping and os.getpid() == self._pid

    def submit(self, job: Job) -> None:
        """Queue a request. Raises EngineClosedError after `stop`, or in a process forked from the engine's."""
        self._post(job)

    def interrupt(self, job: Job) -> None:
        """Stop a request as `cancel` does, and tell its sink so."""
        if not job.cancelled and os.getpid() == self._pid:
            self.cancel(job)
            with contextlib.suppress(Exception):  # a sink whose event loop is gone
                job.sink.fail(GenerationCancelled("the generation was interrupted"))

    def cancel(self, job: Job) -> None:
        """Stop a request: its pass ends within a layer, and its sink hears nothing more. Does not wait."""
        if os.getpid() != self._pid:
            return
        with self._lock:
            job.cancelled = True
            if job.session is not None:
                lib.bee_session_cancel(job.session.handle)
        self._mailbox.put(None)

    def check_process(self) -> None:
        """Raises EngineClosedError in a process forked from the engine's: nothing arrives there any more."""
        if os.getpid() != self._pid:
            raise _forked()

    def fail_in_child(self) -> None:
        """After a fork, in the child: whoever waits for a request hears that its thread is not here."""
        waiting = [*self._active, *self._waiting]
        with contextlib.suppress(queue.Empty):
            while True:
                message = self._mailbox.get_nowait()
                if isinstance(message, Job):
                    waiting.append(message)
        for job in waiting:
            with contextlib.suppress(Exception):  # a sink whose event loop is gone
                job.sink.fail(_forked())

    def call(self, function: Callable[[Any], _T]) -> _T:
        """Run `function(bee_engine)` between two passes, and return its result."""
        call = _Call(function)
        self._post(call)
        return call.result()

    def forget(self) -> None:
        """Drop the sessions that no request uses, and what they have cached."""
        self.call(lambda engine: self._close_sessions(self._idle_sessions()))

    def stop(self) -> None:
        """Cancel everything and let the thread free the handles. Does not wait; may be called again."""
        if os.getpid() != self._pid:
            return  # the thread did not survive the fork, and its memory belongs to the parent
        with self._lock:
            self._stopping = True
            for job in list(self._active):
                if job.session is not None:
                    lib.bee_session_cancel(job.session.handle)
        self._mailbox.put(None)

    def join(self, timeout: float | None = None) -> None:
        """After `stop`: wait until the handles are freed."""
        if os.getpid() == self._pid and threading.current_thread() is not self._thread:
            self._thread.join(timeout)

    def _post(self, message: Job | _Call[Any]) -> None:
        self.check_process()
        with self._lock:
            if self._stopping:
                raise EngineClosedError("the engine is closed")
            self._mailbox.put(message)

    # ---- on the thread -----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        error: BaseException = EngineClosedError("the engine was closed while the request ran")
        try:
            while self._read_mailbox():
                self._run_calls()
                self._drop_cancelled()
                self._admit()
                if self._active:
                    self._run_pass()
        except BaseException as failure:
            _log.exception("the scheduler of an engine failed; the engine is closed")
            error = failure
        self._release(error)

    def _read_mailbox(self) -> bool:
        """Take the messages, waiting for one if there is nothing to do. False: stop."""
        idle = not (self._active or self._waiting or self._calls)
        while not self._stopping:
            try:
                message = self._mailbox.get(block=idle)
            except queue.Empty:
                break
            if isinstance(message, Job):
                self._waiting.append(message)
            elif message is not None:
                self._calls.append(message)
            idle = False
        return not self._stopping

    def _run_calls(self) -> None:
        while self._calls:
            self._calls.popleft().run(self._engine)

    def _drop_cancelled(self) -> None:
        if any(job.cancelled for job in self._waiting):
            self._waiting = deque(job for job in self._waiting if not job.cancelled)

    def _admit(self) -> None:
        while self._waiting and len(self._active) < self._n_parallel:
            job = self._waiting.popleft()
            try:
                session = self._session_for(job.prompt)
                if session is None:  # no memory for one more session: wait for one that is in use
                    self._waiting.appendleft(job)
                    return
                self._begin(job, session)
            except Exception as error:
                self._fail(job, error)

    def _session_for(self, prompt: npt.NDArray[np.int32]) -> _Session | None:
        """The idle session that saves most work. Where that would lose more than it keeps, a new one, or the one that
        was not used for longest: what the prompt shares with others, it takes over."""
        idle = self._idle_sessions()
        shared = {id(session): _common_prefix(session.cached_tokens(), prompt) for session in idle}
        best = max(idle, key=lambda session: (shared[id(session)], -session.last_used), default=None)
        if best is not None and 2 * shared[id(best)] >= len(best.cached_tokens()):
            return best
        if len(self._sessions) < self._n_parallel:
            try:
                return self._open_session()
            except OutOfMemoryError:
                if not self._sessions:
                    raise
        return min(idle, key=lambda session: session.last_used, default=None)

    def _open_session(self) -> _Session:
        error = new_error()
        handle = lib.bee_session_open(self._engine, self._n_ctx, False, error)
        check(handle, error)
        session = _Session(handle)
        self._sessions.append(session)
        return session

    def _idle_sessions(self) -> list[_Session]:
        used = {id(job.session) for job in self._active}
        return [session for session in self._sessions if id(session) not in used]

    def _begin(self, job: Job, session: _Session) -> None:
        stop_tokens = ffi.new("int32_t[]", list(job.stop_tokens))
        job.constraint = ffi.NULL if job.phases is None else job.phases.c_struct()
        biases = ffi.new("bee_logit_bias[]", list(job.logit_edits.get("biases", ())))
        parameters = ffi.new(
            "bee_request *",
            {
                "prompt": ffi.from_buffer("int32_t[]", job.prompt),
                "n_prompt": len(job.prompt),
                "max_tokens": job.max_tokens,
                "speculation": _SPECULATION[job.speculation],
                "draft_length": job.draft_length,
                "stop_tokens": stop_tokens,
                "n_stop_tokens": len(job.stop_tokens),
                "sampling": job.sampling,
                "constraint": job.constraint,
                **job.logit_edits,
                "biases": biases,
                "n_biases": len(biases),
            },
        )
        error = new_error()
        check(lib.bee_session_begin(session.handle, parameters, error), error)
        self._uses += 1
        session.last_used = self._uses
        with self._lock:
            # bee_session_begin forgets earlier cancellations: from here on they reach the session.
            job.session = session
            self._active.append(job)
            if job.cancelled:
                lib.bee_session_cancel(session.handle)

    def _run_pass(self) -> None:
        running = list(self._active)
        sessions = ffi.new("bee_session *[]", [_handle(job) for job in running])
        steps = ffi.new("bee_step[]", len(running))
        error = new_error()
        status = lib.bee_engine_step(self._engine, sessions, len(running), steps, error)
        try:
            check(status, error)
        except Exception as failure:
            for job in running:
                self._fail(job, failure)
            return
        for job, step in zip(running, steps, strict=True):
            self._hand_over(job, step)

    def _hand_over(self, job: Job, step: Any) -> None:
        finish = int(step.finish)
        if job.cancelled:
            self._retire(job)
        elif finish == FINISH_CANCELLED:
            if not self._stopping:  # else `_release` tells it why
                self._fail(job, GenerationCancelled("the generation was cancelled"))
        elif finish == FINISH_NOT_FINITE:
            broken = "the model's logits are not finite; the file's weights are broken"
            self._fail(job, ModelFormatError(broken))
        elif finish == FINISH_CONSTRAINT:
            cause = job.phases.error if job.phases is not None else None
            self._fail(job, cause or ConstraintError("the constraint keeps no token that the model can choose"))
        elif step.n_tokens or finish:
            try:
                tokens = ffi.unpack(step.tokens, step.n_tokens)
                done = job.sink.accept(tokens, finish, SessionView(_handle(job)))
            except Exception as error:
                self._fail(job, error)
                return
            if done or finish:
                self._retire(job)

    def _retire(self, job: Job) -> None:
        with self._lock:
            job.session = None
            if job in self._active:
                self._active.remove(job)

    def _fail(self, job: Job, error: BaseException) -> None:
        self._retire(job)
        if not job.cancelled:
            with contextlib.suppress(Exception):  # a sink whose event loop is gone
                job.sink.fail(error)

    def _close_sessions(self, sessions: list[_Session]) -> None:
        for session in sessions:
            self._sessions.remove(session)
            lib.bee_session_close(session.handle)

    def _release(self, error: BaseException) -> None:
        """The end of the thread: everybody who waits hears why, and the handles are freed."""
        with self._lock:
            self._stopping = True
        waiting: list[Job | _Call[Any]] = [*self._active, *self._waiting, *self._calls]
        with contextlib.suppress(queue.Empty):
            while True:
                message = self._mailbox.get_nowait()
                if message is not None:
                    waiting.append(message)
        for message in waiting:
            if isinstance(message, Job):
                self._fail(message, error)
            else:
                message.fail(error)
        self._waiting.clear()
        self._calls.clear()
        self._close_sessions(list(self._sessions))
        lib.bee_engine_close(self._engine)
        self._engine = None


def _forked() -> EngineClosedError:
    return EngineClosedError(
        "this engine was opened before the process forked, and its threads exist only in the parent: open an engine in "
        "each child process (multiprocessing: use the 'spawn' start method)"
    )


def _handle(job: Job) -> Any:
    assert job.session is not None
    return job.session.handle


def _common_prefix(a: npt.NDArray[np.int32], b: npt.NDArray[np.int32]) -> int:
    length = min(len(a), len(b))
    different = np.flatnonzero(a[:length] != b[:length])
    return int(different[0]) if len(different) else length


@atexit.register
def _stop_all() -> None:
    """Stop the threads while the interpreter still works, so that none is inside the library when it ends."""
    schedulers = list(_alive)
    for scheduler in schedulers:
        scheduler.stop()
    for scheduler in schedulers:
        scheduler.join(_EXIT_WAIT_S)


def _fail_all_in_child() -> None:
    for scheduler in list(_alive):
        scheduler.fail_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_fail_all_in_child)
