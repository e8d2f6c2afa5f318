"""The grammar engine works on vocabularies of every kind, or says in a typed error why it cannot."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bee_integrations.constraints import GrammarCompiler, Matcher, Regex
from bee_integrations.errors import ConstraintError
from bee_integrations.text.tokenizer import Tokenizer


def allowed(matcher: Matcher) -> set[int]:
    """The tokens of the mask of the next token."""
    mask = np.zeros(matcher.mask_words, dtype=np.uint32)
    matcher.fill_mask(mask.ctypes.data)
    return set(np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little")).tolist())


def vocabulary(**keys: Any) -> Tokenizer:
    return Tokenizer({f"tokenizer.ggml.{key}": value for key, value in keys.items()})


def with_token_of(length: int, kind: int) -> Tokenizer:
    tokens = ["x" * length, *"abcdefgh", "</s>"]
    kinds = np.array([kind, *[1] * 8, 3], np.int32)
    return vocabulary(model="gpt2", pre="gpt-2", merges=[], tokens=tokens, token_type=kinds, eos_token_id=9)


@pytest.mark.parametrize("kind", [1, 3, 4])
@pytest.mark.parametrize("length", [1, 1022, 1023])
def test_long_tokens_are_no_burden(length: int, kind: int) -> None:
    assert allowed(GrammarCompiler(with_token_of(length, kind)).compile(Regex("[ab]{3}")).matcher()) == {1, 2}


@pytest.mark.parametrize("kind", [1, 3, 4])
@pytest.mark.parametrize("length", [1024, 70_000])
def test_tokens_that_the_engine_cannot_take_are_named(length: int, kind: int) -> None:
    compiler = GrammarCompiler(with_token_of(length, kind))
    for _ in range(2):
        with pytest.raises(ConstraintError, match=rf"token 0 of .*\(tokenizer.ggml.tokens\) is {length} bytes long"):
            compiler.compile(Regex("[ab]{3}"))
