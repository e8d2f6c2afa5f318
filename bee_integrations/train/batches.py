"""Batches of places to draft at, drawn from stored conversations."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .drafter import Places
from .shards import Conversation

CONTEXT_STEP = 64
"""Contexts are padded to multiples of this. PyTorch prepares CPU kernels for every shape anew and keeps them, so
shapes that differ in every step cost time and gigabytes."""

QUESTION_WEIGHT = 0.3
"""What a token in a question counts for the draft vocabulary, next to 1 for one in an answer."""


@dataclass
class Batch:
    places: Places
    labels: Tensor
    """int64[S][A][n - 1]: rows of the draft vocabulary; -1 beyond the answer's end or outside the vocabulary."""


def draft_vocabulary(conversations: Sequence[Conversation], n_vocab: int, size: int) -> npt.NDArray[np.int64]:
    """The `size` tokens that answers use most, in ascending order: int64[min(size, n_vocab)].

    Tokens that were never seen are taken in the order of their ids: in a BPE vocabulary early ids are frequent merges.
    """
    counts: npt.NDArray[np.float64] = np.zeros(n_vocab)
    for conversation in conversations:
        question, answer = np.split(conversation.tokens, [conversation.answer_start])
        counts += np.bincount(answer, minlength=n_vocab) + QUESTION_WEIGHT * np.bincount(question, minlength=n_vocab)
    order = np.lexsort((np.arange(n_vocab), -counts))
    return np.sort(order[:size]).astype(np.int64)


def coverage(conversations: Sequence[Conversation], vocabulary: npt.NDArray[np.int64]) -> float:
    """Share of the answers' tokens that the draft vocabulary holds."""
    answers = Counter(token for c in conversations for token in c.tokens[c.answer_start :].tolist())
    return sum(answers[token] for token in vocabulary.tolist()) / max(1, answers.total())


def feature_rms(conversations: Sequence[Conversation], sample: int = 128) -> Tensor:
    """Root mean square of every feature channel over some conversations: float32[n_taps * n_embd].

    A conversation's first position is left out: models park large values there that no other position has.
    """
    total, rows = torch.zeros(()), 0
    for conversation in conversations[:sample]:
        features = as_tensor(conversation.features)[1:].float()
        total = total + features.square().sum(0)
        rows += len(features)
    return (total / rows).sqrt().clamp(min=1e-3)


def as_tensor(features: npt.NDArray[np.uint16]) -> Tensor:
    """The bfloat16 tensor whose bits were stored."""
    return torch.from_numpy(np.array(features).view(np.int16)).view(torch.bfloat16)


class Batches:
    """Makes batches of conversations: anchors at random in their answers, features standardised."""

    def __init__(
        self,
        embedding: Tensor,
        vocabulary: Tensor,
        scale: Tensor,
        mask_token: int,
        rng: random.Random | None = None,
    ) -> None:
        """embedding: float32[n_vocab][n_embd]; vocabulary: int64[n_draft_vocab]; scale: one over `feature_rms`."""
        self._embedding = embedding
        self._scale = scale.bfloat16()
        self._mask_token = mask_token
        self._rng = rng or random.Random(0)
        self._draft_row = torch.full((len(embedding),), -1)
        self._draft_row[vocabulary] = torch.arange(len(vocabulary))

    def epoch(self, conversations: Sequence[Conversation], n_conversations: int) -> Iterator[list[Conversation]]:
        """All conversations in random order, `n_conversations` at a time; a rest that is too small is left out."""
        order = list(range(len(conversations)))
        self._rng.shuffle(order)
        for start in range(0, len(order) - n_conversations + 1, n_conversations):
            yield [conversations[i] for i in order[start : start + n_conversations]]

    def batch(self, conversations: Sequence[Conversation], n_anchors: int | None, n_block: int) -> Batch:
        """A batch with `n_anchors` places per conversation, None for all there are."""
        anchors = [self._anchors(conversation, n_anchors) for conversation in conversations]
        width = n_anchors or max(map(len, anchors))
        # A conversation short of places repeats its first one; those copies get no label.
        missing = torch.tensor([[i >= len(a) for i in range(width)] for a in anchors])
        padded = torch.tensor([a + a[:1] * (width - len(a)) for a in anchors])
        following = padded[..., None] + torch.arange(1, n_block)
        tokens = self._tokens(conversations, n_block)
        index = torch.arange(len(conversations))[:, None]
        next_tokens = tokens[index[..., None], following]
        labels = torch.where(next_tokens >= 0, self._draft_row[next_tokens.clamp(min=0)], -1)
        labels[missing] = -1
        block = torch.full((*padded.shape, n_block), self._mask_token)
        block[..., 0] = tokens[index, padded]
        return Batch(Places(self._context(conversations), padded, self._embedding[block]), labels)

    def _anchors(self, conversation: Conversation, n_anchors: int | None) -> list[int]:
        # From the prompt's last token, after which the first of the answer is drafted, to the last but one of all.
        places = range(conversation.answer_start - 1, len(conversation.tokens) - 1)
        return list(places) if n_anchors is None else self._rng.sample(places, min(n_anchors, len(places)))

    def _tokens(self, conversations: Sequence[Conversation], beyond: int) -> Tensor:
        longest = max(len(conversation.tokens) for conversation in conversations)
        tokens = torch.full((len(conversations), longest + beyond), -1)
        for row, conversation in zip(tokens, conversations, strict=True):
            row[: len(conversation.tokens)] = torch.from_numpy(np.array(conversation.tokens))
        return tokens

    def _context(self, conversations: Sequence[Conversation]) -> Tensor:
        longest = max(len(conversation.features) for conversation in conversations)
        length = -(-longest // CONTEXT_STEP) * CONTEXT_STEP
        context = torch.zeros(len(conversations), length, len(self._scale), dtype=torch.bfloat16)
        for row, conversation in zip(context, conversations, strict=True):
            torch.mul(as_tensor(conversation.features), self._scale, out=row[: len(conversation.features)])
        return context
