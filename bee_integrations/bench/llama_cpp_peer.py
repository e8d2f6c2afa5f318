"""llama.cpp and ik_llama.cpp, through the low-level interfaces of their Python packages, as peers of `bee bench`.

Those interfaces are used so that a peer is timed without the Python work of its high-level classes: a pass is one
`llama_decode`, and the greedy choice is one argmax over the logits that it leaves in memory.
"""

from __future__ import annotations

import ctypes
import importlib
import multiprocessing
import statistics
import time
from collections.abc import Collection, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ContextLengthError, UnsupportedModelError
from .peer_process import PeerCrashedError, PeerRun, import_from

__all__ = ["REQUANTISED_TYPES", "IkLlamaPeer", "LlamaCppPeer", "requantise"]

PASS_TOKENS = 512  # the largest pass (n_batch and n_ubatch): llama.cpp's default for prompts

REQUANTISED_TYPES = {"Q4_0": 2, "Q8_0": 7, "Q4_K_M": 15}  # llama_ftype


def _import_api(folder: Path | None) -> Any:
    return import_from(folder, "llama_cpp", LlamaCppPeer.name)


def _silence(api: Any) -> Any:
    """Stops llama.cpp's messages. What is returned must stay alive."""
    callback = api.llama_log_callback(lambda level, text, user_data: None)
    api.llama_log_set(callback, None)
    return callback


class LlamaCppPeer:
    """llama.cpp. See `Peer`."""

    name = "llama-cpp-python"
    largest_pass = PASS_TOKENS
    _repacks = "use_extra_bufts"  # the parameter that says so

    def __init__(
        self, model_path: Path, *, n_ctx: int, threads: int, repack: bool = True, folder: Path | None = None
    ) -> None:
        self._open(folder)
        self.n_ctx = n_ctx
        self._model: Any = None
        self._context: Any = None
        self._batch: Any = None
        self._context_of_passes = -1
        self._state: Any = None
        self._api.llama_backend_init()
        try:
            self._load(model_path, threads, repack)
        except BaseException:
            self.close()
            raise

    def _open(self, folder: Path | None) -> None:
        self._api = _import_api(folder)
        self.version: str = self._api.__version__
        self._silence = _silence(self._api)

    def _load(self, model_path: Path, threads: int, repack: bool) -> None:
        api = self._api
        self._model = api.llama_model_load_from_file(str(model_path).encode(), self._model_params(repack))
        if not self._model:
            raise UnsupportedModelError(f"{self.name} {self.version} cannot load {model_path}")
        params = self._context_params()
        params.n_ctx = self.n_ctx
        params.n_batch = params.n_ubatch = PASS_TOKENS
        params.n_threads = params.n_threads_batch = threads
        self._context = api.llama_init_from_model(self._model, params)
        if not self._context:
            raise UnsupportedModelError(f"{self.name} {self.version} cannot make a context of {self.n_ctx} tokens")
        self._batch = api.llama_batch_init(PASS_TOKENS, 0, 1)
        self.n_vocab: int = api.llama_vocab_n_tokens(api.llama_model_get_vocab(self._model))

    def _model_params(self, repack: bool) -> Any:
        params = self._api.llama_model_default_params()
        params.n_gpu_layers = 0
        setattr(params, self._repacks, repack)
        return params

    def _context_params(self) -> Any:
        return self._api.llama_context_default_params()

    def generate(self, prompt: Sequence[int], max_tokens: int, stop_tokens: Collection[int]) -> PeerRun:
        """See `Peer.generate`."""
        if len(prompt) + max_tokens > self.n_ctx:
            raise ContextLengthError(f"{len(prompt)} + {max_tokens} tokens do not fit into a context of {self.n_ctx}")
        self._forget(0)
        self._context_of_passes = -1
        start = time.perf_counter()
        self._read(prompt)
        prefilled = time.perf_counter()
        tokens = [self._best()]
        first = time.perf_counter()
        while len(tokens) < max_tokens and tokens[-1] not in stop_tokens:
            self._run(tokens[-1:], len(prompt) + len(tokens) - 1)
            tokens.append(self._best())
        return PeerRun(tuple(tokens), prefilled - start, first - start, time.perf_counter() - first)

    def pass_seconds(self, n_rows: int, n_past: int, repeats: int) -> float:
        """See `Peer.pass_seconds`."""
        tokens = [(7 * index + 11) % self.n_vocab for index in range(n_past + n_rows)]
        if self._context_of_passes != n_past:  # it is the same for passes of any size
            self._forget(0)
            self._read(tokens[:n_past])
            self._context_of_passes, self._state = n_past, self._saved_state()
        seconds = []
        for _ in range(repeats + 1):
            self._go_to(n_past)
            start = time.perf_counter()
            self._run(tokens[n_past:], n_past, all_logits=True)
            seconds.append(time.perf_counter() - start)
        return statistics.median(seconds[1:])  # the first pass of a new size plans its graph

    def _saved_state(self) -> Any:
        """What the context holds, where the model is recurrent: it cannot forget some of its tokens. Or None."""
        api = self._api
        if not (api.llama_model_is_recurrent(self._model) or api.llama_model_is_hybrid(self._model)):
            return None
        state = (ctypes.c_uint8 * api.llama_state_seq_get_size(self._context, 0))()
        api.llama_state_seq_get_data(self._context, state, len(state), 0)
        return state

    def _go_to(self, position: int) -> None:
        if self._state is None:
            self._forget(position)
        else:
            self._forget(0)
            self._api.llama_state_seq_set_data(self._context, self._state, len(self._state), 0)

    def _forget(self, position: int) -> None:
        """All from `position` on."""
        if not self._api.llama_memory_seq_rm(self._api.llama_get_memory(self._context), 0, position, -1):
            raise UnsupportedModelError(f"{self.name} cannot go back to token {position} of this model")

    def _read(self, tokens: Sequence[int]) -> None:
        for position in range(0, len(tokens), PASS_TOKENS):
            self._run(tokens[position : position + PASS_TOKENS], position)

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


class IkLlamaPeer(LlamaCppPeer):
    """ik_llama.cpp, a fork of an earlier llama.cpp. See `Peer`."""

    name = "ik-llama"
    _repacks = "repack_tensors"

    def _open(self, folder: Path | None) -> None:
        self.version: str = import_from(folder, "ik_llama_cpp", "ik-llama-cpp-python").__version__
        self._api = _IkApi()
        self._silence = _silence(self._api)

    def _context_params(self) -> Any:
        params = self._api.llama_context_default_params()
        params.flash_attn = True
        return params

    def _saved_state(self) -> Any:
        return None  # its package binds no states; `_forget` says where it cannot go back without


class _IkApi:
    """ik_llama.cpp's interface by llama.cpp's present names. Its package binds what its own classes need."""

    def __init__(self) -> None:
        self._bound = importlib.import_module("ik_llama_cpp._ctypes_api")
        library = self._bound._lib
        library.llama_kv_cache_seq_rm.argtypes = [ctypes.c_void_p, *[ctypes.c_int32] * 3]
        library.llama_kv_cache_seq_rm.restype = ctypes.c_bool
        library.llama_synchronize.argtypes = [ctypes.c_void_p]
        self.llama_memory_seq_rm = library.llama_kv_cache_seq_rm
        self.llama_synchronize = library.llama_synchronize
        self.llama_model_free = self._bound.llama_free_model
        self.llama_log_set = library.llama_log_set
        self.llama_log_callback = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)

    def llama_get_memory(self, context: int) -> int:
        return context

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bound, name)


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
