"""A peer of `bee bench` in a process of its own: its crash is an error message and not the end of the benchmark."""

from __future__ import annotations

import importlib
import multiprocessing
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, Protocol

from ..errors import BeeError, ParameterError

__all__ = ["Peer", "PeerCrashedError", "PeerProcess", "PeerRun", "import_from"]


@dataclass(frozen=True)
class PeerRun:
    """One greedy generation. Times in seconds."""

    tokens: tuple[int, ...]
    prefill_seconds: float
    time_to_first_token_s: float
    decode_seconds: float  # for all tokens after the first


class PeerCrashedError(BeeError):
    """The peer's process ended by itself."""


class Peer(Protocol):
    """Another program that runs a GGUF model on the CPU, in this process.

    Made with (model_path, *, n_ctx, threads, repack, folder). `repack` lets it hold weights in the layout that suits
    the machine; `folder` is where to import it from, None: where it is installed.

    Raises ParameterError where it is not installed and UnsupportedModelError where it cannot load the file.
    """

    name: str
    version: str
    largest_pass: int
    """Tokens of the largest pass that `pass_seconds` can measure."""

    def generate(self, prompt: Sequence[int], max_tokens: int, stop_tokens: Collection[int]) -> PeerRun:
        """Greedy tokens after `prompt`, up to `max_tokens` of them or a stop token (which is included)."""

    def pass_seconds(self, n_rows: int, n_past: int, repeats: int) -> float:
        """Median time of one pass over `n_rows` tokens, with logits for each, after `n_past` tokens of context."""

    def close(self) -> None:
        """Free the model; a second call does nothing."""


def import_from(folder: Path | None, package: str, distribution: str) -> ModuleType:
    """A peer's module: the one that is installed, or the one in `folder`. Raises ParameterError."""
    if folder is not None:
        sys.path.insert(0, str(folder))
    try:
        module = importlib.import_module(package)
    except ImportError as error:
        raise ParameterError(
            f"the peer {distribution} cannot be imported ({error}): install it with 'pip install {distribution}', "
            "or run the benchmark without it"
        ) from error
    if folder is not None and folder.resolve() not in Path(str(module.__file__)).resolve().parents:
        raise ParameterError(f"there is no {package} in {folder}: give the folder that pip installed it into")
    return module


class PeerProcess:
    """A peer in a child process, with the same methods. A context manager.

    A build with repacked weights may crash on a machine that does not have all that its build machine had (AMX in
    virtual machines is one such). Then the peer runs without repacking, and `repack` is False.

    Raises what the peer raises, and PeerCrashedError where the process dies.
    """

    def __init__(
        self, peer: type[Peer], model_path: Path, *, n_ctx: int, threads: int, folder: Path | None = None
    ) -> None:
        arguments = {"model_path": model_path, "n_ctx": n_ctx, "threads": threads, "folder": folder}
        self._peer = peer
        self.name, self.largest_pass = peer.name, peer.largest_pass
        self.n_ctx = n_ctx
        self.repack = True
        try:
            self._start({**arguments, "repack": True})
        except PeerCrashedError:
            self.repack = False
            self._start({**arguments, "repack": False})

    def _start(self, arguments: dict[str, Any]) -> None:
        # spawn: a forked child would inherit the threads' locks of libbee, but not the threads.
        context = multiprocessing.get_context("spawn")
        self._pipe, other_end = context.Pipe()
        self._process = context.Process(target=_serve, args=(other_end, self._peer, arguments), daemon=True)
        self._process.start()
        other_end.close()
        try:
            self.version: str = self._answer()
            for n_rows in {1, min(16, self.largest_pass)}:  # passes of one row and of several take different paths
                self.pass_seconds(n_rows, 0, 1)
        except BaseException:
            self.close()
            raise

    def generate(self, prompt: Sequence[int], max_tokens: int, stop_tokens: Collection[int]) -> PeerRun:
        """See `Peer.generate`."""
        run = self._call("generate", list(prompt), max_tokens, frozenset(stop_tokens))
        assert isinstance(run, PeerRun)
        return run

    def pass_seconds(self, n_rows: int, n_past: int, repeats: int) -> float:
        """See `Peer.pass_seconds`."""
        return float(self._call("pass_seconds", n_rows, n_past, repeats))

    def _call(self, method: str, *arguments: Any) -> Any:
        return self._answer((method, arguments))

    def _answer(self, request: tuple[str, tuple[Any, ...]] | None = None) -> Any:
        """Of a request, or that the process has begun."""
        try:
            if request is not None:
                self._pipe.send(request)
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
            self._process.join()  # until then it has its memory

    def __enter__(self) -> PeerProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _serve(pipe: Connection, kind: type[Peer], arguments: dict[str, Any]) -> None:
    """The child: answers (error, value) to each request until the parent closes the pipe."""
    try:
        peer = kind(**arguments)
        try:
            pipe.send((None, peer.version))
            while True:
                method, values = pipe.recv()
                try:
                    pipe.send((None, getattr(peer, method)(*values)))
                except BeeError as error:
                    pipe.send((error, None))
        finally:
            peer.close()
    except BeeError as error:
        pipe.send((error, None))
    except (EOFError, KeyboardInterrupt, BrokenPipeError):
        pass
