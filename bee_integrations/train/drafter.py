"""The DFlash drafter in PyTorch: the model that training fits and that libbee later runs from its exported file.

One forward drafts for many places at once. A place is an *anchor*: the position of a token that is known while the
target has not run it yet. Its block is that token and n - 1 masks at the positions after it; the block sees the
target's features of every position before the anchor and, without a causal mask, itself. The hidden states of the
masks, through the head, are the drafts. Method: DFlash, arXiv 2602.06036.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from .target import Shape, Target

INITIAL_QUERY_KEY_NORM = 2.0
"""Where the gains of the query and key norms start: near the size of queries and keys in the target's last layers."""
INITIAL_LOGITS = 1.5
"""At most this is the deviation that logits start with: a beginner should not be sure of anything."""


@dataclass(frozen=True)
class Plan:
    """What defines a drafter besides its target."""

    n_layer: int
    taps: tuple[int, ...]
    """Entry i means the *input* of that target layer, as in the file's key `dflash.target_layers`."""
    block_size: int
    mask_token: int


@dataclass
class Places:
    """Where to draft, for S conversations with A anchors each and blocks of n tokens."""

    context: Tensor
    """[S][T][n_taps * n_embd]: standardised features of positions 0 to T - 1, zero beyond a conversation's end."""
    anchors: Tensor
    """int64[S][A]: the position of each block's first token. Features before it are its context."""
    embeddings: Tensor
    """float32[S][A][n][n_embd]: of the block's tokens, the first known and the others the mask; unscaled."""


class Layer(nn.Module):
    def __init__(self, shape: Shape, n_layer: int) -> None:
        super().__init__()
        n_query, n_key = shape.n_head * shape.head_size, shape.n_head_kv * shape.head_size

        def matrix(outputs: int, inputs: int, deviation: float = 0.02) -> nn.Parameter:
            return nn.Parameter(torch.randn(outputs, inputs) * deviation)

        # Projections into the residual stream start smaller the more of them there are.
        into_residual = 0.02 / math.sqrt(2 * n_layer)
        self.attention_norm = nn.Parameter(torch.ones(shape.n_embd))
        self.query = matrix(n_query, shape.n_embd)
        self.key = matrix(n_key, shape.n_embd)
        self.value = matrix(n_key, shape.n_embd)
        self.output = matrix(shape.n_embd, n_query, into_residual)
        self.query_norm = nn.Parameter(torch.full((shape.head_size,), INITIAL_QUERY_KEY_NORM))
        self.key_norm = nn.Parameter(torch.full((shape.head_size,), INITIAL_QUERY_KEY_NORM))
        self.feed_forward_norm = nn.Parameter(torch.ones(shape.n_embd))
        self.gate = matrix(shape.n_feed_forward, shape.n_embd)
        self.up = matrix(shape.n_feed_forward, shape.n_embd)
        self.down = matrix(shape.n_embd, shape.n_feed_forward, into_residual)


class Drafter(nn.Module):
    """Matrices are float32 masters; products run in `compute` (`fit.faster_type`; float32 for comparisons)."""

    def __init__(self, shape: Shape, plan: Plan, compute: torch.dtype = torch.bfloat16) -> None:
        super().__init__()
        self.shape, self.plan, self.compute = shape, plan, compute
        self.fc = nn.Parameter(torch.randn(shape.n_embd, len(plan.taps) * shape.n_embd) * 0.005)
        self.context_norm = nn.Parameter(torch.ones(shape.n_embd))
        self.layers = nn.ModuleList(Layer(shape, plan.n_layer) for _ in range(plan.n_layer))
        self.output_norm = nn.Parameter(torch.ones(shape.n_embd))

    def start_from(self, target: Target, feature_rms: Tensor) -> None:
        """Begin as the target's last layers, reading its last tap.

        `feature_rms` is float32[n_taps * n_embd], what features were divided by; on the last tap's diagonal `fc`
        multiplies it back. Gains of the last norm that make logits large become smaller: see INITIAL_LOGITS.
        """
        n_embd = self.shape.n_embd
        rms = feature_rms[-n_embd:]
        first = target.shape.n_layer - self.plan.n_layer
        with torch.no_grad():
            self.fc[:, -n_embd:] += torch.diag(rms / rms.mean())
            gains, rows = torch.from_numpy(target.output_norm), torch.from_numpy(target.head)
            deviation = gains.square().mean().sqrt() * rows.square().sum(1).mean().sqrt()
            self.output_norm.copy_(gains * (INITIAL_LOGITS / deviation).clamp(max=1))
            for index, layer in enumerate(self.layers):
                source = target.layer(max(first + index, 0))
                if index == 0:
                    self.context_norm.copy_(torch.from_numpy(source.attention_norm))
                for name, weight in vars(source).items():
                    if weight is not None:
                        getattr(layer, name).copy_(torch.from_numpy(weight))

    def forward(self, places: Places) -> Tensor:
        """Normed hidden states of the blocks, float32[S][A][n][n_embd]; the head's product comes next."""
        n_places, n_anchors, n_block, n_embd = places.embeddings.shape
        n_context = places.context.shape[1]
        block_positions = places.anchors[..., None] + torch.arange(n_block)
        beyond = torch.arange(n_context) >= places.anchors[..., None]
        angles = rotations(self.shape, max(int(block_positions.max()) + 1, n_context))
        context_angles = angles[:, :n_context]
        block_angles = angles[:, block_positions.flatten(1)]
        context = self._norm(self._linear(places.context, self.fc), self.context_norm).to(self.compute)
        hidden = places.embeddings.reshape(n_places, n_anchors * n_block, n_embd) * self.shape.embedding_scale
        for layer in self.layers:
            hidden = hidden + self._attention(layer, hidden, context, block_angles, context_angles, beyond)
            hidden = hidden + self._feed_forward(layer, hidden)
        return self._norm(hidden, self.output_norm).view(n_places, n_anchors, n_block, n_embd)

    def _attention(
        self, layer: Any, hidden: Tensor, context: Tensor, angles: Tensor, context_angles: Tensor, beyond: Tensor
    ) -> Tensor:
        """Each block over its context and itself; `beyond` is bool[S][A][T]: context that a block must not see."""
        x = self._norm(hidden, layer.attention_norm).to(self.compute)
        query = self._rotated(self._linear(x, layer.query), layer.query_norm, angles)
        key = self._rotated(self._linear(x, layer.key), layer.key_norm, angles)
        context_key = self._rotated(self._linear(context, layer.key), layer.key_norm, context_angles)
        value = self._heads(self._linear(x, layer.value))
        context_value = self._heads(self._linear(context, layer.value))

        # Blocks share one context, so its scores are one product for all blocks; a block's own scores are small ones.
        n_sequences, n_anchors, n_context = beyond.shape
        query = self._by_block(query, n_anchors)
        own_key, own_value = self._by_block(key, n_anchors), self._by_block(value, n_anchors)
        context_scores = query.flatten(2, 3) @ context_key.transpose(-1, -2)
        context_scores = context_scores.view(*query.shape[:-1], n_context)
        context_scores = context_scores.masked_fill(beyond[:, None, :, None], -torch.inf)
        scores = torch.cat([context_scores, query @ own_key.transpose(-1, -2)], dim=-1)
        weights = (scores * self.shape.head_size**-0.5).softmax(-1)
        mixed = (weights[..., :n_context].flatten(2, 3) @ context_value).view(query.shape)
        mixed = mixed + weights[..., n_context:] @ own_value
        # [S][kv heads][A][group * n][size] to [S][A * n][heads * size]
        group = self.shape.n_head // self.shape.n_head_kv
        mixed = mixed.view(*mixed.shape[:3], group, -1, self.shape.head_size).permute(0, 2, 4, 1, 3, 5)
        return self._linear(mixed.reshape(n_sequences, hidden.shape[1], -1), layer.output).float()

    def _by_block(self, heads: Tensor, n_anchors: int) -> Tensor:
        """[S][heads][A * n][size] to [S][kv heads][A][heads of the group * n][size]"""
        n_sequences, n_heads, n_rows, size = heads.shape
        n_kv, n_block = self.shape.n_head_kv, n_rows // n_anchors
        blocks = heads.reshape(n_sequences, n_kv, n_heads // n_kv, n_anchors, n_block, size)
        return blocks.transpose(2, 3).flatten(3, 4)

    def _feed_forward(self, layer: Any, hidden: Tensor) -> Tensor:
        x = self._norm(hidden, layer.feed_forward_norm).to(self.compute)
        gated = functional.silu(self._linear(x, layer.gate)) * self._linear(x, layer.up)
        return self._linear(gated, layer.down).float()

    def _linear(self, x: Tensor, weight: Tensor) -> Tensor:
        return functional.linear(x.to(self.compute), weight.to(self.compute))

    def _norm(self, x: Tensor, gain: Tensor) -> Tensor:
        return functional.rms_norm(x.float(), gain.shape, gain, self.shape.norm_epsilon)

    def _heads(self, x: Tensor) -> Tensor:
        """[S][rows][heads * size] to [S][heads][rows][size]"""
        return x.view(*x.shape[:2], -1, self.shape.head_size).transpose(1, 2)

    def _rotated(self, x: Tensor, gain: Tensor, angles: Tensor) -> Tensor:
        """Heads of x, each normed and turned by RoPE in the NeoX layout; `angles` is [2][...rows][size / 2]."""
        cosine, sine = angles.unsqueeze(-3)
        low, high = self._norm(self._heads(x), gain).chunk(2, dim=-1)
        return torch.cat([low * cosine - high * sine, high * cosine + low * sine], dim=-1).to(self.compute)


def rotations(shape: Shape, n_positions: int) -> Tensor:
    """Cosines and sines of RoPE: float32[2][n_positions][head_size / 2]."""
    half = shape.head_size // 2
    frequency = shape.rope_base ** (-torch.arange(half, dtype=torch.float64) / half)
    angle = torch.arange(n_positions, dtype=torch.float64)[:, None] * frequency
    return torch.stack([angle.cos(), angle.sin()]).float()
