"""The grammar engine works on vocabularies of every kind, or says in a typed error why it cannot."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import gguf_document as gguf
import jsonschema
import numpy as np
import pytest
import tiny_model

from bee_integrations.constraints import Choice, Constraint, Grammar, GrammarCompiler, JsonSchema, Matcher, Regex
from bee_integrations.engine import Engine, GenerationParams
from bee_integrations.errors import ConstraintError
from bee_integrations.models.file import ModelFile
from bee_integrations.text.tokenizer import Tokenizer


def mask(matcher: Matcher) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Whether each token may come next."""
    words = np.zeros(matcher.mask_words, dtype=np.uint32)
    matcher.fill_mask(words.ctypes.data)
    return np.unpackbits(words.view(np.uint8), bitorder="little").astype(bool)


def allowed(matcher: Matcher) -> set[int]:
    return set(np.flatnonzero(mask(matcher)).tolist())


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


# ---- tokens that are bytes, and blanks that are U+2581 -------------------------------------------------

REFERENCE = Path(__file__).resolve().parent.parent / "reference"
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
TOKENS = ["<unk>", "<s>", "</s>", *BYTES, "▁", "a", "b", "▁a", "ab", "▁ab", "é"]
BYTE, BLANK, A, B, BLANK_A, AB, BLANK_AB, E_ACUTE = 3, 259, 260, 261, 262, 263, 264, 265


def pieces() -> Tokenizer:
    kinds = np.array([2, 3, 3, *[6] * 256, *[1] * 7], np.int32)
    return vocabulary(model="llama", tokens=TOKENS, token_type=kinds, scores=np.arange(0.0, -266.0, -1.0))


def test_masks_hold_byte_tokens_and_blanks() -> None:
    compiler = GrammarCompiler(pieces())
    start = compiler.compile(Regex("ab?( a)?")).matcher()
    assert allowed(start) == {BYTE + ord("a"), A, AB}
    assert start.consume(A)
    assert allowed(start) == {BYTE + ord("b"), B, BYTE + ord(" "), BLANK, BLANK_A, 2}
    assert start.consume(BYTE + ord(" "))
    assert allowed(start) == {A}, "forced, in the tokenizer's own token"
    start.rollback(1)
    assert start.consume(BLANK_A)
    assert start.finished


def test_characters_without_a_token_are_written_in_bytes() -> None:
    compiler = GrammarCompiler(pieces())
    matcher = compiler.compile(Choice(("é", "ü", "中"))).matcher()
    assert allowed(matcher) == {BYTE + 0xC3, E_ACUTE, BYTE + 0xE4}
    assert matcher.consume(BYTE + 0xC3)
    assert allowed(matcher) == {BYTE + 0xA9, BYTE + 0xBC}
    matcher.rollback(1)
    assert matcher.consume(BYTE + 0xE4)
    assert matcher.forced(5) == [BYTE + 0xB8, BYTE + 0xAD]
    assert matcher.closing_text() == "é", "part of a character at the end does not count"


def test_forced_text_goes_on_from_other_text() -> None:
    """No blank is put before it, and it is cut as the tokenizer cuts it."""
    matcher = GrammarCompiler(pieces()).compile(Choice(("ab ab aé",))).matcher()
    assert matcher.forced(9) == pieces().encode("ab ab aé", add_special=False, continues=True)


@lru_cache
def reference(name: str) -> tuple[Tokenizer, GrammarCompiler]:
    path = REFERENCE / f"ggml-vocab-{name}.gguf"
    if not path.is_file():
        pytest.skip("needs third-party vocabularies: run 'make reference'")
    with ModelFile(path) as file:
        tokenizer = Tokenizer.from_model_file(file)
    return tokenizer, GrammarCompiler(tokenizer)


SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "kind": {"enum": ["a b", "näïve", "中文", "x\ty"]},
        "numbers": {"type": "array", "items": {"type": "integer", "minimum": -10, "maximum": 500}, "maxItems": 3},
    },
    "required": ["name", "kind", "numbers"],
    "additionalProperties": False,
}
GBNF = 'root ::= word (" " word)*\nword ::= [a-zà-ÿ]+ | "中" [0-9]'


def said_under(constraint: Constraint, name: str, seed: int) -> str:
    """A random text under a constraint, closed where it does not come to an end. Every mask is checked on the way."""
    tokenizer, compiler = reference(name)
    source = np.random.RandomState(seed)
    stops = sorted(tokenizer.stop_token_ids)
    matcher = compiler.compile(constraint).matcher()
    tokens: list[int] = []
    while len(tokens) < 40 and not matcher.finished:
        possible = mask(matcher)
        possible[stops] = False
        token = int(source.choice(np.flatnonzero(possible)))
        assert matcher.consume(token)
        tokens.append(token)
    said = b"".join(map(tokenizer.token_bytes, tokens))
    return said.decode(errors="ignore") + ("" if matcher.accepting else matcher.closing_text())


@pytest.mark.parametrize("name", ["llama-spm", "phi-3", "gemma-4"])
def test_what_is_said_under_a_grammar_fits_it(name: str) -> None:
    for seed in range(4):
        text = said_under(JsonSchema(SCHEMA), name, seed)
        jsonschema.validate(json.loads(text), SCHEMA)
        assert re.fullmatch(r"(\d{2} ){2}[A-Zß]{1,4}\n", said_under(Regex(r"(\d{2} ){2}[A-Zß]{1,4}\n"), name, seed))
        assert re.fullmatch("([a-zà-ÿ]+|中[0-9])( ([a-zà-ÿ]+|中[0-9]))*", said_under(Grammar(GBNF, "gbnf"), name, seed))


# ---- with an engine ------------------------------------------------------------------------------------

ENGINE_TOKENS = [*TOKENS, *"cdefghijklmnopqrstuvwxyz", *'{}[]":,0123456789', '":', "▁1", "<|im_start|>", "<|im_end|>"]


def with_pieces(document: gguf.Document) -> gguf.Document:
    """The tiny model or its drafter, with a SentencePiece vocabulary."""
    n_vocab = len(ENGINE_TOKENS)
    kinds = [2, 3, 3, *[6] * 256, *[1] * (n_vocab - 261), 3, 3]
    document.metadata |= {
        "tokenizer.ggml.model": gguf.text("llama"),
        "tokenizer.ggml.add_bos_token": gguf.Value(gguf.BOOL, True),
        "tokenizer.ggml.token_type": gguf.Value(gguf.ARRAY, kinds, gguf.INT32),
        "tokenizer.ggml.scores": gguf.Value(gguf.ARRAY, [-float(token) for token in range(n_vocab)], gguf.FLOAT32),
    }
    del document.metadata["tokenizer.ggml.merges"], document.metadata["tokenizer.ggml.pre"]
    return document


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    folder = tmp_path_factory.mktemp("pieces")
    model = with_pieces(tiny_model.model(vocabulary=ENGINE_TOKENS)).write(folder / "pieces.gguf")
    drafter = with_pieces(tiny_model.drafter(vocabulary=ENGINE_TOKENS)).write(folder / "drafter.gguf")
    with Engine(model, drafter=drafter, n_ctx=512, threads=1) as opened:
        yield opened


CONSTRAINTS: list[Constraint | None] = [None, JsonSchema(SCHEMA), Regex("( ?[a-zé]{2,4}){3}"), Grammar(GBNF, "gbnf")]


@pytest.mark.parametrize("temperature", [0.0, 1.2])
@pytest.mark.parametrize("constraint", CONSTRAINTS)
def test_generations_are_the_same_in_all_modes(
    engine: Engine, constraint: Constraint | None, temperature: float
) -> None:
    for seed, prompt in enumerate(("ab ab", " a b é", "{ 1 }\n")):
        params = GenerationParams(
            max_tokens=60,
            seed=seed,
            temperature=temperature,
            stop=("zq", "é1"),
            logprobs=True,
            constraint=constraint,
            close_constraint=constraint is not None,
        )
        modes = ("off", "dflash", "copy", "auto")
        plain, *others = [engine.complete(prompt, replace(params, speculation=mode)) for mode in modes]
        for other in others:
            assert (other.tokens, other.text, other.finish_reason) == (plain.tokens, plain.text, plain.finish_reason)
            assert other.logprobs == plain.logprobs
        if constraint is None and plain.finish_reason == "length":
            # An answer that is cut in the middle of a character ends before it.
            assert engine.tokenizer.decode(plain.tokens, continues=True) in (plain.text, plain.text + "\ufffd")
        if isinstance(constraint, JsonSchema):
            jsonschema.validate(json.loads(plain.text), SCHEMA)


def test_a_prompt_gets_its_blank_and_a_chat_its_marks(engine: Engine) -> None:
    spell = engine.tokenizer.token_text
    assert [spell(token) for token in engine.encode_prompt("ab")] == ["<s>", "▁ab"]
    chat = engine.render_chat([{"role": "user", "content": "ab"}])
    tokens = [spell(token) for token in engine.encode_prompt(chat)]
    assert tokens[:4] == ["<s>", "<|im_start|>", "▁", "u"]
    assert tokens[7:9] == ["<|im_end|>", "▁"] or "<|im_end|>" in tokens
