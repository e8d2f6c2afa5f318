"""OpenVINO, through openvino-genai's reader of GGUF files, as a peer of `bee bench --shapes`."""

from __future__ import annotations

import importlib
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UnsupportedModelError
from .peer_process import PeerRun, import_from

__all__ = ["OpenVinoPeer"]


class OpenVinoPeer:
    """OpenVINO on the CPU. See `Peer`.

    Its pipeline generates, so that the cost of a pass is that of one token: passes over several are not within reach.
    It chooses the layout of weights itself, whatever `repack` says.
    """

    name = "openvino"
    largest_pass = 1

    def __init__(
        self, model_path: Path, *, n_ctx: int, threads: int, repack: bool = True, folder: Path | None = None
    ) -> None:
        self._genai: Any = import_from(folder, "openvino_genai", "openvino-genai")
        self._openvino: Any = importlib.import_module("openvino")
        self.version: str = self._genai.__version__.partition("-")[0]
        try:
            self._pipeline = self._genai.LLMPipeline(str(model_path), "CPU", INFERENCE_NUM_THREADS=threads)
        except (RuntimeError, LookupError) as error:
            reason = next(iter(str(error).strip().splitlines()[-1:]), "it does not say why")
            raise UnsupportedModelError(f"{self.name} {self.version} cannot load {model_path}: {reason}") from error

    def generate(self, prompt: Sequence[int], max_tokens: int, stop_tokens: Collection[int]) -> PeerRun:
        """See `Peer.generate`."""
        ids = np.array([prompt], np.int64)
        inputs = self._genai.TokenizedInputs(self._openvino.Tensor(ids), self._openvino.Tensor(np.ones_like(ids)))
        config = self._genai.GenerationConfig(
            max_new_tokens=max_tokens, do_sample=False, ignore_eos=not stop_tokens, stop_token_ids=set(stop_tokens)
        )
        start = time.perf_counter()
        answer = self._pipeline.generate(inputs, config)
        seconds = time.perf_counter() - start
        first = answer.perf_metrics.get_ttft().mean / 1e3
        return PeerRun(tuple(answer.tokens[0]), first, first, max(0.0, seconds - first))

    def pass_seconds(self, n_rows: int, n_past: int, repeats: int) -> float:
        """See `Peer.pass_seconds`. The mean time of a token after the first."""
        if n_rows != 1:
            raise UnsupportedModelError(f"{self.name} cannot be asked for a pass over {n_rows} tokens")
        run = self.generate([5 + index % 200 for index in range(max(n_past, 1))], repeats + 1, ())
        return run.decode_seconds / repeats

    def close(self) -> None:
        """See `Peer.close`."""
        self._pipeline = None
