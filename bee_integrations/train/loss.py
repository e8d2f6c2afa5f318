"""The loss of drafts: cross-entropy through the frozen, reduced head, without ever holding all logits."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor

CHUNK = 512
"""Rows whose logits exist at one time. Fewer would read the head from memory more often, more would not fit a cache."""


def draft_loss(hidden: Tensor, head: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum of the cross-entropies of N hidden states.

    hidden: float32[N][n_embd]; head: [n_draft_vocab][n_embd], frozen, its dtype computes; labels: int64[N], a row of
    the head, negative to leave a state out; weights: float32[N].
    """
    loss: Tensor = _HeadLoss.apply(hidden, head, labels.clamp(min=0), weights * (labels >= 0))  # type: ignore[no-untyped-call]
    return loss


class _HeadLoss(torch.autograd.Function):
    # The gradient of cross-entropy is (softmax - label) times the head; it is made chunk by chunk along with the loss,
    # so one chunk of logits is read while it is still in the cache.
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        gradient = torch.empty_like(hidden)
        loss = torch.zeros(())
        states = hidden.to(head.dtype)
        for start in range(0, len(hidden), CHUNK):
            rows = slice(start, start + CHUNK)
            difference = functional.linear(states[rows], head).softmax(-1)
            index, label = torch.arange(len(difference)), labels[rows]
            chosen = difference[index, label].float().clamp(min=1e-12)
            loss -= (chosen.log() * weights[rows]).sum()
            difference[index, label] -= 1
            gradient[rows] = torch.mm(difference, head).float() * weights[rows, None]
        ctx.save_for_backward(gradient)
        return loss

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * outer, None, None, None
