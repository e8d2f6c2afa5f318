"""Which tokens end a generation, and kinds of tokens that converters are known to get wrong. As llama.cpp has it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .token_metadata import Kind, special_id

__all__ = ["find_stop_tokens"]

# Tokens that end a generation whatever the file's keys say; converters often leave the keys out.
_END_TEXTS = frozenset(
    {
        "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "<end_of_turn>",
        "<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>",
        "<end_of_utterance>", "<eos>", "<turn|>", "<|tool_response>", "<｜end▁of▁sentence｜>", "[e~[",
    }
)  # fmt: skip

# Markers of fill-in-the-middle formats: metadata keys (the later one counts), texts where there is no key, and whether
# it ends a generation.
_FILL_MARKERS = (
    (
        ("fim_pre_token_id", "prefix_token_id"),
        (
            "<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>", "<｜fim▁begin｜>", "<PRE>", "▁<PRE>", "<|code_prefix|>",
            "<|prefix|>",
        ),
        False,
    ),
    (
        ("fim_suf_token_id", "suffix_token_id"),
        (
            "<|fim_suffix|>", "<fim-suffix>", "<fim_suffix>", "<｜fim▁hole｜>", "<SUF>", "▁<SUF>", "<|code_suffix|>",
            "<|suffix|>",
        ),
        False,
    ),
    (
        ("fim_mid_token_id", "middle_token_id"),
        (
            "<|fim_middle|>", "<fim-middle>", "<fim_middle>", "<｜fim▁end｜>", "<MID>", "▁<MID>", "<|code_middle|>",
            "<|middle|>",
        ),
        False,
    ),
    (("fim_pad_token_id",), ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"), True),
    (("fim_rep_token_id",), ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"), True),
    (("fim_sep_token_id",), ("<|file_sep|>",), True),
)  # fmt: skip

# Channel markers of the Harmony format: the text around them is meant to be read, so they count as text.
_SPELLED_MARKERS = ("<|channel|>", "<|message|>", "<|start|>", "<|constrain|>")


def find_stop_tokens(
    metadata: Mapping[str, Any], texts: list[str], ids: Mapping[str, int], kinds: list[Kind], eos: int | None
) -> frozenset[int]:
    """The tokens that end a generation. Corrects `kinds`: what ends a text by its spelling is a control token."""
    stop = {ids[text] for text in _END_TEXTS if text in ids}
    named = set(stop)
    for keys, spellings, ends in _FILL_MARKERS:
        marker = None
        for key in keys:
            marker = special_id(metadata, key, len(texts), default=marker)
        if marker is None:
            marker = min((ids[text] for text in spellings if text in ids), default=None)
            named.update(() if marker is None else (marker,))
        if ends and marker is not None:
            stop.add(marker)
    for token in named:
        kinds[token] = Kind.CONTROL
    for text in _SPELLED_MARKERS:
        if text in ids:
            kinds[ids[text]] = Kind.USER_DEFINED
    keyed = (eos, *(special_id(metadata, key, len(texts)) for key in ("eot_token_id", "eom_token_id")))
    stop.update(token for token in keyed if token is not None)
    _drop_ambiguous(stop, texts, ids, kinds)
    return frozenset(stop)


def _drop_ambiguous(stop: set[int], texts: list[str], ids: Mapping[str, int], kinds: list[Kind]) -> None:
    # In these families a text that ends a turn elsewhere is an ordinary part of a message.
    found = {texts[token] for token in stop}
    ends_by_call = bool({"<|call|>", "<|calls|>"} & found) and bool({"<|return|>", "<|flush|>"} & found)
    if ends_by_call and "<|end|>" in found:
        stop.discard(ids["<|end|>"])
        kinds[ids["<|end|>"]] = Kind.USER_DEFINED
    if "</s>" in found and "<|tool_response>" in found:
        stop.discard(ids["</s>"])
        kinds[ids["</s>"]] = Kind.NORMAL
