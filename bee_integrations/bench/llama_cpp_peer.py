"""llama.cpp, through llama-cpp-python's low-level interface, as the peer of `bee bench`.

The low-level interface is used so that the peer is timed without the Python work of its high-level classes: a pass is
one `llama_decode`, and the greedy choice is one argmax over the logits that it leaves in memory. It runs in a process
of its own, so that a crash of the peer is an error message and not the end of the benchmark.
"""

from __future__ import annotations

import multiprocessing
import statistics
import sys
import time
from collections.abc import Collection, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from ..errors import BeeError, ContextLengthError, ParameterError, UnsupportedModelError

__all__ = ["REQUANTISED_TYPES", "LlamaCppPeer", "PeerCrashedError", "PeerProcess", "PeerRun", "requantise"]

PASS_TOKENS = 512  # the largest pass (n_batch and n_ubatch): llama.cpp's default for prompts

REQUANTISED_TYPES = {"Q4_0": 2, "Q8_0": 7, "Q4_K_M": 15}  # llama_ftype


@dataclass(frozen=True)
class PeerRun:
    """One greedy generation. Times in seconds."""

    tokens: tuple[int, ...]
    prefill_seconds: float
    time_to_first_token_s: float
    decode_seconds: float  # for all tokens after the first


class PeerCrashedError(BeeError):
    """The peer's process ended by itself."""


def _import_api(folder: Path | None) -> Any:
    """The low-level interface: the module that is installed, or the one in `folder`. Raises ParameterError."""
    if folder is not None:
        sys.path.insert(0, str(folder))
    try:
        import llama_cpp
    except ImportError as error:
        raise ParameterError(
            f"the peer llama-cpp-python cannot be imported ({error}): install it with 'pip install llama-cpp-python', "
            "or run the benchmark without --peer"
        ) from error
    if folder is not None and folder.resolve() not in Path(llama_cpp.__file__).resolve().parents:
        raise ParameterError(f"there is no llama_cpp in {folder}: give the folder that pip installed it into")
    return llama_cpp


def _silence(api: Any) -> Any:
    """Stops llama.cpp's messages. What is returned must stay alive."""
    callback = api.llama_log_callback(lambda level, text, user_data: None)
    api.llama_log_set(callback, None)
    return callback


class LlamaCppPeer:
    """A GGUF model in llama.cpp on the CPU, in this process. A context manager.

    `repack` lets llama.cpp hold the weights in the layout that suits the machine, which is its default. `folder` is
    where to import llama_cpp from; None: where it is installed.

    Raises ParameterError where llama-cpp-python is not installed and UnsupportedModelError where it cannot load the
    file.
    """

    name = "llama-cpp-python"

    def __init__(
        self, model_path: Path, *, n_ctx: int, threads: int, repack: bool = True, folder: Path | None = None
    ) -> None:
        self._api = _import_api(folder)
        self.version: str = self._api.__version__
        self.n_ctx = n_ctx
        self._model: Any = None
        self._context: Any = None
        self._batch: Any = None
        self._context_of_passes = -1
        self._silence = _silence(self._api)
        self._api.llama_backend_init()
        try:
            self._load(model_path, threads, repack)
        except BaseException:
            self.close()
            raise

    def _load(self, model_path: Path, threads: int, repack: bool) -> None:
        api = self._api
        model_params = api.llama_model_default_params()
        model_params.n_gpu_layers = 0
        model_params.use_extra_bufts = repack
        self._model = api.llama_model_load_from_file(str(model_path).encode(), model_params)
        if not self._model:
            raise UnsupportedModelError(f"{self.name} {self.version} cannot load {model_path}")
        params = api.llama_context_default_params()
        params.n_ctx = self.n_ctx
        params.n_batch = params.n_ubatch = PASS_TOKENS
        params.n_threads = params.n_threads_batch = threads
        self._context = api.llama_init_from_model(self._model, params)
        if not self._context:
            raise UnsupportedModelError(f"{self.name} {self.version} cannot make a context of {self.n_ctx} tokens")
        self._memory = api.llama_get_memory(self._context)
        self._batch = api.llama_batch_init(PASS_TOKENS, 0, 1)
        self.n_vocab: int = api.llama_vocab_n_tokens(api.llama_model_get_vocab(self._model))

    def generate(self, prompt: Sequence[int], max_tokens: int, stop_tokens: Collection[int]) -> PeerRun:
        """Greedy tokens after `prompt`, up to `max_tokens` of them or a stop token (which is included)."""
        if len(prompt) + max_tokens > self.n_ctx:
            raise ContextLengthError(f"{len(prompt)} + {max_tokens} tokens do not fit into a context of {self.n_ctx}")
        self._forget(0)
        self._context_of_passes = -1
        start = time.perf_counter()
        for position in range(0, len(prompt), PASS_TOKENS):
            self._run(prompt[position : position + PASS_TOKENS], position)
        prefilled = time.perf_counter()
        tokens = [self._best()]
        first = time.perf_counter()
        while len(tokens) < max_tokens and tokens[-1] not in stop_tokens:
            self._run(tokens[-1:], len(prompt) + len(tokens) - 1)
            tokens.append(self._best())
        return PeerRun(tuple(tokens), prefilled - start, first - start, time.perf_counter() - first)

    def pass_seconds(self, n_rows: int, n_past: int, repeats: int) -> float:
        """Median time of one pass over `n_rows` tokens, with logits for each, after `n_past` tokens of context."""
        tokens = [(7 * index + 11) % self.n_vocab for index in range(n_past + n_rows)]
        if self._context_of_passes != n_past:  # it is the same for passes of any size
            self._forget(0)
            for position in range(0, n_past, PASS_TOKENS):
                self._run(tokens[position : min(position + PASS_TOKENS, n_past)], position)
            self._context_of_passes = n_past
        seconds = []
        for _ in range(repeats + 1):
            self._forget(n_past)
            start = time.perf_counter()
            self._run(tokens[n_past:], n_past, all_logits=True)
            seconds.append(time.perf_counter() - start)
        return statistics.median(seconds[1:])  # the first pass of a new size plans its graph

    def _forget(self, position: int) -> None:
        self._api.llama_memory_seq_rm(self._memory, 0, position, -1)

    def _run(self, tokens: Sequence[int], position: int, *, all_logits: bool = False) -> None:
        batch = self._batch
        batch.n_tokens = len(tokens)
        for row, token in enumerate(tokens):
            batch.token[row] = token
            batch.pos[row] = position + row
            batch.n_seq_id[row] = 1
            batch.seq_id[row][0] = 0
            batch.logits[row] = all_logits or row == len(tokens) - 1
        if self._api.llama_decode(self._context, batch) != 0:
            raise UnsupportedModelError(f"{self.name} failed in a pass over {len(tokens)} tokens at {position}")
        self._api.llama_synchronize(self._context)

    def _best(self) -> int:
        pointer = self._api.llama_get_logits_ith(self._context, -1)
        return int(np.ctypeslib.as_array(pointer, shape=(self.n_vocab,)).argmax())

    def close(self) -> None:
        """Free the model; a second call does nothing."""
        api = self._api
        if self._batch is not None:
            api.llama_batch_free(self._batch)
        if self._context:
            api.llama_free(self._context)
        if self._model:
            api.llama_model_free(self._model)
        self._batch = self._context = self._model = None

    def __enter__(self) -> LlamaCppPeer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class PeerProcess:
    """A `LlamaCppPeer` in a child process, with the same methods. A context manager.

    A build with repacked weights may crash on a machine that does not have all that its build machine had (AMX in
    virtual machines is one such). Then the peer runs without repacking, and `repack` is False.

    Raises what `LlamaCppPeer` raises, and PeerCrashedError where the process dies.
    """

    name = LlamaCppPeer.name

    def __init__(self, model_path: Path, *, n_ctx: int, threads: int, folder: Path | None = None) -> None:
        arguments = {"model_path": model_path, "n_ctx": n_ctx, "threads": threads, "folder": folder}
        self.n_ctx = n_ctx
        self.repack = True
        try:
            self._start(arguments)
        except PeerCrashedError:
            self.repack = False
            self._start({**arguments, "repack": False})

    def _start(self, arguments: dict[str, Any]) -> None:
        # spawn: a forked child would inherit the threads' locks of libbee, but not the threads.
        context = multiprocessing.get_context("spawn")
        self._pipe, other_end = context.Pipe()
        self._process = context.Process(target=_serve, args=(other_end, arguments), daemon=True)
        self._process.start()
        other_end.close()
        try:
            self.version: str = self._answer()
            for n_rows in (1, 16):  # passes of one row and of several take different paths
                self.pass_seconds(n_rows, 0, 1)
        except BaseException:
            self.close()
            raise

    def generate(self, prompt: Sequence[int], max_tokens: int, stop_tokens: Collection[int]) -> PeerRun:
        """See `LlamaCppPeer.generate`."""
        run = self._call("generate", list(prompt), max_tokens, frozenset(stop_tokens))
        assert isinstance(run, PeerRun)
        return run

    def pass_seconds(self, n_rows: int, n_past: int, repeats: int) -> float:
        """See `LlamaCppPeer.pass_seconds`."""
        return float(self._call("pass_seconds", n_rows, n_past, repeats))

    def _call(self, method: str, *arguments: Any) -> Any:
        self._pipe.send((method, arguments))
        return self._answer()

    def _answer(self) -> Any:
        try:
            error, value = self._pipe.recv()
        except (EOFError, ConnectionError) as lost:
            self._process.join(timeout=10)
            raise PeerCrashedError(f"{self.name} crashed (exit code {self._process.exitcode})") from lost
        if error is not None:
            raise error
        return value

    def close(self) -> None:
        """End the process; a second call does nothing."""
        self._pipe.close()  # the child sees the end of its requests
        self._process.join(timeout=10)
        if self._process.is_alive():
            self._process.kill()

    def __enter__(self) -> PeerProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _serve(pipe: Connection, arguments: dict[str, Any]) -> None:
    """The child: answers (error, value) to each request until the parent closes the pipe."""
    try:
        with LlamaCppPeer(**arguments) as peer:
            pipe.send((None, peer.version))
            while True:
                method, values = pipe.recv()
                try:
                    pipe.send((None, getattr(peer, method)(*values)))
                except BeeError as error:
                    pipe.send((error, None))
    except BeeError as error:
        pipe.send((error, None))
    except (EOFError, KeyboardInterrupt, BrokenPipeError):
        pass


# ---- the same model in other types -------------------------------------------------------------------------------


def requantise(source: Path, target: Path, type_name: str, *, threads: int, folder: Path | None = None) -> None:
    """Write `source` with its weights in one of REQUANTISED_TYPES to `target`, with llama.cpp's own quantiser.

    Raises ParameterError where llama-cpp-python is not installed, UnsupportedModelError where it fails.
    """
    with ProcessPoolExecutor(max_workers=1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            pool.submit(_requantise, source, target, type_name, threads, folder).result()
        except BrokenProcessPool as error:
            raise PeerCrashedError(f"{LlamaCppPeer.name} crashed while it made {type_name} of {source.name}") from error


def _requantise(source: Path, target: Path, type_name: str, threads: int, folder: Path | None) -> None:
    api = _import_api(folder)
    kept_alive = _silence(api)
    params = api.llama_model_quantize_default_params()
    params.ftype = REQUANTISED_TYPES[type_name]
    params.allow_requantize = True
    params.nthread = threads
    failed = api.llama_model_quantize(str(source).encode(), str(target).encode(), params)
    del kept_alive
    if failed:
        raise UnsupportedModelError(f"{LlamaCppPeer.name} cannot make {type_name} of {source.name}")
