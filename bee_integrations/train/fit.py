"""The training loop: stored conversations in, a checkpoint out.

It runs in one or several processes that average their gradients, and can be interrupted at any time: it goes on from
the last checkpoint, and the learning rate follows the share of the minutes that has passed.
"""

from __future__ import annotations

import json
import math
import os
import random
import socket
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as distributed
import torch.multiprocessing as multiprocessing
import torch.nn.functional as functional
from torch import Tensor

from ..errors import ParameterError
from .batches import Batch, Batches, draft_vocabulary, feature_rms
from .drafter import Drafter, Plan
from .loss import draft_loss
from .shards import Conversations
from .target import Target

CHECKPOINT = "checkpoint.pt"
LOG = "fit.jsonl"
COMPUTE_TYPES = (torch.float32, torch.bfloat16)


@dataclass(frozen=True)
class FitParams:
    """How to train. The defaults are the recipe of docs/drafter.md."""

    minutes: float = 30.0
    max_steps: int | None = None
    processes: int = 1
    threads: int = 1
    """Threads of each process."""
    conversations_per_step: int = 16
    """In all processes together."""
    anchors: int = 48
    """Places per conversation and step."""
    block_lengths: tuple[int, ...] = (8, 7, 6, 5, 5, 4, 4, 3)
    """A step draws one of these: an engine that drafts k tokens runs blocks of k + 1."""
    draft_vocabulary: int = 16384
    learning_rate: float = 1.5e-3
    final_rate: float = 0.04
    """Share of the learning rate that is left at the end."""
    warm_up: int = 50
    """Steps until the learning rate is reached."""
    weight_decay: float = 0.01
    position_decay: float = 4.0
    """The k-th draft weighs exp(-(k - 1) / position_decay): it counts only where all before it were right."""
    checkpoint_minutes: float = 3.0
    seed: int = 0


@dataclass
class Checkpoint:
    """All that training and export go on from."""

    plan: Plan
    vocabulary: Tensor
    """int64[n_draft_vocab]: the target's id of each row of the head, ascending."""
    feature_rms: Tensor
    """float32[n_taps * n_embd]: what features are divided by before `fc`."""
    model: dict[str, Tensor]
    optimizer: dict[str, Any] | None = None
    step: int = 0
    seconds: float = 0.0
    blocks: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)

    def save(self, path: Path) -> None:
        """Write atomically: an interruption leaves the checkpoint before."""
        part = path.with_suffix(".part")
        torch.save({**vars(self), "plan": asdict(self.plan)}, part)
        os.replace(part, path)

    @classmethod
    def load(cls, path: Path) -> Checkpoint:
        content = torch.load(path, weights_only=True)
        content["plan"] = Plan(**content["plan"])
        return cls(**content)

    @property
    def n_features(self) -> int:
        """Numbers stored per token: n_taps * n_embd."""
        return len(self.feature_rms)

    def drafter(self, target: Target, compute: torch.dtype = torch.bfloat16) -> Drafter:
        drafter = Drafter(target.shape, self.plan, compute)
        drafter.load_state_dict(self.model)
        return drafter


def faster_type() -> torch.dtype:
    """bfloat16 or float32, by this machine's own products: without instructions for it, bfloat16 takes several times
    as long."""
    seconds = {}
    for compute in COMPUTE_TYPES:
        matrix = torch.ones(512, 512, dtype=compute)
        functional.linear(matrix, matrix)
        start = time.perf_counter()
        for _ in range(8):
            functional.linear(matrix, matrix)
        seconds[compute] = time.perf_counter() - start
    return min(seconds, key=lambda compute: seconds[compute])


def agreed_type(rank: int, processes: int) -> torch.dtype:
    """The first process's faster type: a step takes as long as in the slowest process."""
    choice = torch.tensor([COMPUTE_TYPES.index(faster_type()) if rank == 0 else 0])
    if processes > 1:
        distributed.broadcast(choice, 0)
    return COMPUTE_TYPES[int(choice)]


def fit(model: Path, data: Path, folder: Path, plan: Plan, params: FitParams) -> Checkpoint:
    """Train on the conversations under `data`; checkpoint and log go to `folder`. Returns the final checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    n_conversations = len(Conversations(data, 1))
    if n_conversations < params.conversations_per_step:
        raise ParameterError(
            f"{data} holds {n_conversations} conversations but a step takes {params.conversations_per_step}: "
            "generate more, or lower conversations_per_step"
        )
    if params.conversations_per_step % params.processes:
        raise ParameterError(
            f"conversations_per_step is {params.conversations_per_step}; it must be a multiple of the "
            f"{params.processes} processes"
        )
    if not (folder / CHECKPOINT).exists():
        _begin(model, data, plan, params).save(folder / CHECKPOINT)
    if params.processes == 1:
        _train(0, model, data, folder, params, None)
    else:
        arguments = (model, data, folder, params, _free_port())
        multiprocessing.spawn(_train, arguments, nprocs=params.processes)  # type: ignore[attr-defined, no-untyped-call]
    return Checkpoint.load(folder / CHECKPOINT)


def _begin(model: Path, data: Path, plan: Plan, params: FitParams) -> Checkpoint:
    target = Target(model)
    conversations = Conversations(data, len(plan.taps) * target.shape.n_embd)
    torch.manual_seed(params.seed)
    drafter = Drafter(target.shape, plan)
    rms = feature_rms(conversations)
    drafter.start_from(target, rms)
    vocabulary = draft_vocabulary(conversations, target.shape.n_vocab, params.draft_vocabulary)
    return Checkpoint(plan, torch.from_numpy(vocabulary), rms, drafter.state_dict())


def _train(rank: int, model: Path, data: Path, folder: Path, params: FitParams, port: int | None) -> None:
    torch.set_num_threads(params.threads)
    if port is not None:
        distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=params.processes)
    trainer = Trainer(rank, model, data, folder, params)
    try:
        trainer.run()
    finally:
        trainer.save()
        if port is not None:
            distributed.destroy_process_group()


class Trainer:
    """One process of the training run; the first one keeps checkpoint and log."""

    def __init__(self, rank: int, model: Path, data: Path, folder: Path, params: FitParams) -> None:
        self._rank, self._data, self._folder, self._params = rank, data, folder, params
        self._state = Checkpoint.load(folder / CHECKPOINT)
        target = Target(model)
        self._width = len(self._state.plan.taps) * target.shape.n_embd
        self._drafter = self._state.drafter(target, agreed_type(rank, params.processes))
        self._head = torch.from_numpy(target.head)[self._state.vocabulary].to(self._drafter.compute)
        self._rng = random.Random(f"{params.seed}-{self._state.step}-{rank}")
        self._batches = Batches(
            torch.from_numpy(target.token_embedding),
            self._state.vocabulary,
            1 / self._state.feature_rms,
            self._state.plan.mask_token,
            self._rng,
        )
        self._optimizer = self._make_optimizer()

    def run(self) -> None:
        resumed, started = self._state.seconds, time.monotonic()
        saved = started
        for batch in self._endless():
            if self._passed() >= 1:
                return
            loss, right = self._step(batch)
            now = time.monotonic()
            self._state.seconds = self._agreed(resumed + now - started)
            if self._rank == 0 and self._state.step % 10 == 0:
                self._log(loss, right)
            if now - saved > 60 * self._params.checkpoint_minutes:
                saved = now
                self.save()

    def save(self) -> None:
        if self._rank == 0:
            self._state.model = self._drafter.state_dict()
            self._state.optimizer = self._optimizer.state_dict()
            self._state.save(self._folder / CHECKPOINT)

    def _make_optimizer(self) -> torch.optim.AdamW:
        matrices = [p for p in self._drafter.parameters() if p.dim() > 1]
        gains = [p for p in self._drafter.parameters() if p.dim() == 1]
        groups = [
            {"params": matrices, "weight_decay": self._params.weight_decay},
            {"params": gains, "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=self._params.learning_rate, betas=(0.9, 0.95), fused=True)
        if self._state.optimizer is not None:
            optimizer.load_state_dict(self._state.optimizer)
        return optimizer

    def _endless(self) -> Iterator[Batch]:
        params = self._params
        while True:
            # Opened anew for every epoch, so that conversations still being generated join in.
            conversations = Conversations(self._data, self._width)
            share = conversations[self._rank :: params.processes]
            each = params.conversations_per_step // params.processes
            for chosen in self._batches.epoch(share, each):
                yield self._batches.batch(chosen, params.anchors, self._block_length())

    def _block_length(self) -> int:
        # Follows from the step alone: processes that wait for each other had better have equally much to do.
        return random.Random(f"{self._params.seed}-{self._state.step}").choice(self._params.block_lengths)

    def _passed(self) -> float:
        """How much of the training is over, 0 to 1."""
        by_clock = self._state.seconds / (60 * self._params.minutes)
        by_steps = self._state.step / self._params.max_steps if self._params.max_steps else 0.0
        return max(by_clock, by_steps)

    def _rate(self) -> float:
        params = self._params
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, self._passed())))
        warm = min(1.0, (self._state.step + 1) / params.warm_up)
        return params.learning_rate * warm * (params.final_rate + (1 - params.final_rate) * cosine)

    def _step(self, batch: Batch) -> tuple[float, list[float]]:
        """One update. Returns the loss and, now and then, the share of right drafts at each position."""
        for group in self._optimizer.param_groups:
            group["lr"] = self._rate()
        hidden = self._drafter(batch.places)[:, :, 1:]
        decay = torch.exp(-torch.arange(hidden.shape[2]) / self._params.position_decay)
        weights = (decay * (batch.labels >= 0)).flatten()
        weights = weights / weights.sum()
        loss = draft_loss(hidden.flatten(0, 2), self._head, batch.labels.flatten(), weights)
        loss.backward()  # type: ignore[no-untyped-call]
        self._average_gradients()
        torch.nn.utils.clip_grad_norm_(self._drafter.parameters(), 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._state.step += 1
        self._state.blocks += batch.labels.shape[0] * batch.labels.shape[1] * self._params.processes
        right = _right(hidden[:1].detach(), self._head, batch.labels[:1]) if self._state.step % 10 == 0 else []
        return loss.item(), right

    def _average_gradients(self) -> None:
        if self._params.processes == 1:
            return
        gradients = [p.grad for p in self._drafter.parameters() if p.grad is not None]
        flat = torch.cat([g.flatten() for g in gradients])
        distributed.all_reduce(flat)
        flat /= self._params.processes
        parts = torch.split(flat, [g.numel() for g in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))

    def _agreed(self, seconds: float) -> float:
        """The first process's clock, so that all follow one learning rate and stop together."""
        if self._params.processes == 1:
            return seconds
        clock = torch.tensor([seconds], dtype=torch.float64)
        distributed.broadcast(clock, 0)
        return float(clock)

    def _log(self, loss: float, right: list[float]) -> None:
        entry = {
            "step": self._state.step,
            "seconds": round(self._state.seconds, 1),
            "passed": round(self._passed(), 4),
            "blocks": self._state.blocks,
            "loss": round(loss, 4),
            "right": [round(share, 3) for share in right],
        }
        with open(self._folder / LOG, "a", encoding="utf-8") as log:
            log.write(json.dumps(entry) + "\n")


@torch.no_grad()
def _right(hidden: Tensor, head: Tensor, labels: Tensor) -> list[float]:
    """Share of right drafts at each position of the block, where there is a label."""
    drafts = torch.nn.functional.linear(hidden.to(head.dtype), head).argmax(-1)
    known = labels >= 0
    right = ((drafts == labels) & known).flatten(0, 1).sum(0) / known.flatten(0, 1).sum(0).clamp(min=1)
    return [float(share) for share in right]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
