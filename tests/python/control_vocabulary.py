"""A vocabulary of the 256 bytes and of the control tokens that a test names."""

from __future__ import annotations

import functools

import tiny_model
from tool_format_checks import Vocabulary

from bee_integrations.text.tokenizer import Tokenizer

CONTROL, USER_DEFINED = 3, 4  # of GGUF's token types


@functools.cache
def control_vocabulary(*spellings: str, kind: int = CONTROL) -> Vocabulary:
    """`kind`: the type of the named tokens; "<|endoftext|>" ends a generation."""
    words = [*tiny_model.byte_characters(), "<|endoftext|>", *spellings]
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": words,
        "tokenizer.ggml.token_type": [1] * 256 + [CONTROL] + [kind] * len(spellings),
        "tokenizer.ggml.merges": [],
        "tokenizer.ggml.eos_token_id": 256,
        "tokenizer.ggml.add_bos_token": False,
    }
    return Vocabulary(Tokenizer(metadata))
