"""Token ids equal llama.cpp's; text survives the way there and back; broken vocabularies are refused."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_texts import block_digests, unicode_texts

from bee_integrations.errors import (
    BeeError,
    ModelFileError,
    ModelFormatError,
    ParameterError,
    UnsupportedModelError,
)
from bee_integrations.models import resolve_model
from bee_integrations.models.file import ModelFile
from bee_integrations.text.pre_tokenizers import PreTokenizer, pre_tokenizer, supported_pre_tokenizers
from bee_integrations.text.tokenizer import StreamDecoder, Tokenizer

TESTS = Path(__file__).resolve().parent.parent
GOLDEN: dict[str, Any] = json.loads((TESTS / "golden" / "text" / "tokens.json").read_text())
REFERENCE = TESTS / "reference"
needs_reference = pytest.mark.skipif(
    not (REFERENCE / "archive.sha256").is_file(), reason="needs third-party vocabularies: run 'make reference'"
)


@lru_cache
def reference_tokenizer(name: str) -> Tokenizer:
    """Of a third-party vocabulary, or of a model that was pulled before."""
    path = REFERENCE / f"ggml-vocab-{name}.gguf"
    if name in MODELS:
        try:
            path = resolve_model(name, download=False)
        except ModelFileError:
            pytest.skip(f"needs a model: run 'bee pull {name}'")
    if not path.is_file():
        pytest.skip("needs third-party vocabularies: run 'make reference'")
    with ModelFile(path) as file:
        return Tokenizer.from_model_file(file)


def blocks(tokenizer: Tokenizer, texts: list[str] | None = None) -> list[str]:
    """Hashes of the ids of many texts, with special tokens in and around them and without."""
    return block_digests(
        lambda text: [tokenizer.encode(text), tokenizer.encode(text, add_special=False, parse_special=False)],
        texts or UNICODE_TEXTS,
    )


MODELS = {"gemma-3-270m"}  # whose vocabularies come with a whole model
UNICODE_TEXTS = unicode_texts(2000)


def inp_texts(path: Path) -> list[str]:
    return path.read_bytes().decode("utf-8").split("\n__ggml_vocab_test__\n")


def short_digest(ids: list[int]) -> str:
    return hashlib.sha256(json.dumps(ids).encode()).hexdigest()[:8]


def pieces_digest(tokenizer: Tokenizer) -> str:
    result = hashlib.sha256()
    for token in range(tokenizer.n_vocab):
        piece = tokenizer.token_bytes(token)
        result.update(len(piece).to_bytes(4, "little") + piece)
    return result.hexdigest()


@pytest.fixture(scope="module")
def tokenizer(model_path: Path) -> Iterator[Tokenizer]:
    with ModelFile(model_path) as file:
        yield Tokenizer.from_model_file(file)


# ---- the default model --------------------------------------------------------------------------------


def test_random_texts_give_the_ids_of_llama_cpp(tokenizer: Tokenizer) -> None:
    for text, with_special, without_special in GOLDEN["strings"]:
        assert tokenizer.encode(text, add_special=False) == with_special, ascii(text)
        assert tokenizer.encode(text, add_special=False, parse_special=False) == without_special, ascii(text)
    assert blocks(tokenizer) == GOLDEN["blocks"]


def test_stop_tokens_pieces_and_surroundings_equal_llama_cpp(tokenizer: Tokenizer) -> None:
    assert sorted(tokenizer.stop_token_ids) == GOLDEN["stop_token_ids"]
    assert pieces_digest(tokenizer) == GOLDEN["pieces_sha256"]
    assert (tokenizer.add_bos, tokenizer.add_eos) == (GOLDEN["add_bos"], GOLDEN["add_eos"])


@needs_reference
@pytest.mark.parametrize("name", sorted(GOLDEN["inp"]))
def test_inp_texts_give_the_ids_of_llama_cpp(tokenizer: Tokenizer, name: str) -> None:
    golden = GOLDEN["inp"][name]
    assert hashlib.sha256((REFERENCE / name).read_bytes()).hexdigest() == golden["sha256"]
    texts = inp_texts(REFERENCE / name)
    assert len(texts) == len(golden["ids"]) > 40
    for text, ids in zip(texts, golden["ids"], strict=True):
        assert tokenizer.encode(text, add_special=False, parse_special=False) == ids, ascii(text)


def test_special_tokens_are_read_only_on_request(tokenizer: Tokenizer) -> None:
    start = tokenizer.special_tokens["<|im_start|>"]
    assert tokenizer.encode("<|im_start|>user")[0] == start
    plain = tokenizer.encode("<|im_start|>user", parse_special=False)
    assert start not in plain
    assert tokenizer.decode(plain) == "<|im_start|>user"
    assert tokenizer.decode([start], skip_special=True) == ""
    assert tokenizer.decode([start], skip_special=False) == "<|im_start|>"
    assert tokenizer.token_bytes(start) == b""


# Bytes that this vocabulary has no token for are dropped, as in llama.cpp; other text comes back as it went.
LOST = {0x04, 0x06, 0x13, 0x14, 0x16, 0x1D}


@settings(max_examples=300, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"], max_codepoint=0x3FFFF), max_size=60))
def test_text_survives_encoding_and_decoding(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text, add_special=False, parse_special=False)
    assert all(0 <= token < tokenizer.n_vocab for token in ids)
    assert tokenizer.decode(ids) == "".join(character for character in text if ord(character) not in LOST)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(0, 49151), max_size=40), st.integers(1, 5))
def test_stream_decoder_equals_decode(tokenizer: Tokenizer, ids: list[int], width: int) -> None:
    decoder = StreamDecoder(tokenizer)
    parts = [decoder.push(ids[start : start + width]) for start in range(0, len(ids), width)]
    assert "".join(parts) + decoder.flush() == tokenizer.decode(ids)


def test_stream_decoder_never_splits_a_character(tokenizer: Tokenizer) -> None:
    text = "naïve 中文 👩‍👩‍👧 end"
    ids = tokenizer.encode(text, add_special=False)
    assert len(ids) > len(text), "the text should need several tokens per character"
    decoder = StreamDecoder(tokenizer)
    parts = [decoder.push([token]) for token in ids]
    assert "".join(parts) == text
    assert all("\ufffd" not in part for part in parts)
    assert decoder.flush() == ""


def test_stream_decoder_flush_gives_what_is_left_and_starts_anew(tokenizer: Tokenizer) -> None:
    first_byte = tokenizer.encode("👩", add_special=False)[0]
    decoder = StreamDecoder(tokenizer)
    assert decoder.push([first_byte]) == ""
    assert decoder.flush() == "\ufffd"
    assert decoder.push(tokenizer.encode("ok", add_special=False)) == "ok"


def test_several_threads_get_the_same_ids(tokenizer: Tokenizer) -> None:
    expected = [ids for _, ids, _ in GOLDEN["strings"][:50]]
    results: list[list[list[int]]] = []

    def encode_all() -> None:
        results.append([tokenizer.encode(text, add_special=False) for text, _, _ in GOLDEN["strings"][:50]])

    threads = [threading.Thread(target=encode_all) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [expected] * 4


def test_long_runs_of_spaces_and_letters(tokenizer: Tokenizer) -> None:
    for text in (" " * 100_000, "a" * 100_000, "\n" * 50_000 + "x", "🙂" * 20_000):
        assert tokenizer.decode(tokenizer.encode(text, add_special=False)) == text


def test_text_that_is_not_unicode_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(ParameterError, match=r"U\+D83D, at character 2"):
        tokenizer.encode("ab\ud83d")


@pytest.mark.parametrize("token", [-1, 49152, 1 << 40])
def test_ids_outside_the_vocabulary_are_refused(tokenizer: Tokenizer, token: int) -> None:
    for call in (tokenizer.token_bytes, tokenizer.token_text, lambda token: tokenizer.decode([token])):
        with pytest.raises(ParameterError, match="0 to 49151"):
            call(token)


# ---- other vocabularies -------------------------------------------------------------------------------


@needs_reference
@pytest.mark.parametrize("name", sorted(GOLDEN["vocabularies"]))
def test_third_party_vocabularies_give_the_ids_of_llama_cpp(name: str) -> None:
    golden = GOLDEN["vocabularies"][name]
    tokenizer = reference_tokenizer(name)
    for (text, _, _), expected in zip(GOLDEN["strings"], golden["hashes"], strict=True):
        assert short_digest(tokenizer.encode(text, add_special=False)) == expected, ascii(text)
    assert blocks(tokenizer) == golden["blocks"]
    assert sorted(tokenizer.stop_token_ids) == golden["stop_token_ids"]
    if golden["pieces_sha256"] is not None:
        assert pieces_digest(tokenizer) == golden["pieces_sha256"]
    assert (tokenizer.add_bos, tokenizer.add_eos) == (golden["add_bos"], golden["add_eos"])


@needs_reference
@pytest.mark.parametrize("name", sorted(set(GOLDEN["vocabularies"]) - MODELS))
def test_third_party_inp_texts_give_the_expected_ids(name: str) -> None:
    tokenizer = reference_tokenizer(name)
    texts = inp_texts(REFERENCE / f"ggml-vocab-{name}.gguf.inp")
    lines = (REFERENCE / f"ggml-vocab-{name}.gguf.out").read_text().split("\n")[: len(texts)]
    for text, line in zip(texts, lines, strict=True):
        ids = tokenizer.encode(text, add_special=False, parse_special=False)
        assert ids == [int(token) for token in line.split()], ascii(text)


def test_every_cut_is_compared_with_llama_cpp() -> None:
    assert sorted(GOLDEN["cuts_of_refact"]) == supported_pre_tokenizers()


@lru_cache
def cut_of_refact(cut: PreTokenizer) -> list[str]:
    """Hashes of the ids of random texts, as the golden file has them, with this cut and a small vocabulary."""
    name = next(name for name in supported_pre_tokenizers() if pre_tokenizer(name) == cut)
    with ModelFile(REFERENCE / "ggml-vocab-refact.gguf") as file:
        tokenizer = Tokenizer({**file.metadata, "tokenizer.ggml.pre": name})
    return blocks(tokenizer, [*UNICODE_TEXTS[:300], *(text for text, _, _ in GOLDEN["strings"][:200])])


@needs_reference
@pytest.mark.parametrize("name", sorted(GOLDEN["cuts_of_refact"]))
def test_every_cut_gives_the_ids_of_llama_cpp(name: str) -> None:
    assert cut_of_refact(pre_tokenizer(name)) == GOLDEN["cuts_of_refact"][name]


@pytest.mark.parametrize("cut", sorted({pre_tokenizer(name) for name in supported_pre_tokenizers()}, key=str))
def test_no_cut_takes_forever_over_long_runs(cut: PreTokenizer) -> None:
    """A cut that searched from each character on would take minutes over one of these."""
    for run in ("a", "aB", "1", " ", "\t x", "!", "\n", "\u0301", "a\u0301", "中", "'s", "\u3000"):
        text = run * (20_000 // len(run)) + "x1"
        pieces = cut.build().pre_tokenize_str(text)
        assert (pieces[0][1][0], pieces[-1][1][1]) == (0, len(text))


# ---- made vocabularies --------------------------------------------------------------------------------


def made(**changes: Any) -> dict[str, Any]:
    """Metadata of a tiny vocabulary; a change to None removes the key."""
    metadata: dict[str, Any] = {
        "model": "gpt2",
        "pre": "gpt-2",
        "tokens": ["<s>", "</s>", "a", "b", "ab", "<note>", "<|im_end|>", "Ġ"],
        "token_type": [3, 3, 1, 1, 1, 4, 1, 1],
        "merges": ["a b"],
        "bos_token_id": 0,
        "eos_token_id": 1,
    }
    metadata.update(changes)
    return {f"tokenizer.ggml.{key}": value for key, value in metadata.items() if value is not None}


def test_beginning_and_ending_tokens_follow_the_keys() -> None:
    assert Tokenizer(made()).encode("ab") == [4]
    around = Tokenizer(made(add_bos_token=True, add_eos_token=True))
    assert around.encode("ab") == [0, 4, 1]
    assert around.encode("") == [0, 1]
    assert around.encode("ab", add_special=False) == [4]
    assert Tokenizer(made(pre="llama-bpe")).encode("ab") == [0, 4]
    assert Tokenizer(made(pre="llama-bpe", add_bos_token=False)).encode("ab") == [4]


def test_user_defined_tokens_are_always_read_and_shown() -> None:
    tokenizer = Tokenizer(made())
    assert tokenizer.encode("a<note>b", parse_special=False) == [2, 5, 3]
    assert tokenizer.decode([2, 5, 3]) == "a<note>b"


def test_turn_ends_are_found_by_text_even_when_mistyped() -> None:
    tokenizer = Tokenizer(made())
    assert tokenizer.stop_token_ids == {1, 6}
    assert tokenizer.token_bytes(6) == b""
    assert Tokenizer(made(eot_token_id=3)).stop_token_ids == {1, 3, 6}


def test_special_ids_outside_the_vocabulary_count_as_absent() -> None:
    assert Tokenizer(made(bos_token_id=0xFFFFFFFF)).bos_token_id is None


@pytest.mark.parametrize("name", supported_pre_tokenizers())
def test_every_named_cut_can_be_built_and_loses_nothing(name: str) -> None:
    tokenizer = Tokenizer(made(pre=name))
    assert tokenizer.decode(tokenizer.encode("ab ba  aab", add_special=False)) == "ab ba  aab"


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"model": None}, ModelFormatError, "no tokenizer.ggml.model"),
        ({"model": "t5"}, UnsupportedModelError, "'t5'; supported are 'gpt2'.*'gemma4'.*'llama'"),
        ({"model": 5}, ModelFormatError, "model is 5, expected a text"),
        ({"pre": None}, UnsupportedModelError, "tokenizer.ggml.pre"),
        ({"pre": "new"}, UnsupportedModelError, "'new'.*smollm"),
        ({"tokens": None}, ModelFormatError, "no tokenizer.ggml.tokens"),
        ({"tokens": []}, ModelFormatError, "empty"),
        ({"tokens": ["a", "b", "ab", "a"], "token_type": None}, ModelFormatError, "'a' twice, as tokens 0 and 3"),
        ({"token_type": [1]}, ModelFormatError, "1 entries for 8 tokens"),
        ({"token_type": [6] * 8}, ModelFormatError, "token_type says that token 0, '<s>', is a byte token"),
        ({"token_type": 5}, ModelFormatError, "token_type is 5, expected an array of integers"),
        ({"token_type": "x" * 99}, ModelFormatError, "token_type is the text 'x{60}'... .99 characters., expected"),
        ({"token_type": np.full(8, np.nan, np.float32)}, ModelFormatError, "token_type is an array of float32"),
        ({"token_type": np.full(8, np.inf)}, ModelFormatError, "token_type is an array of float64"),
        ({"token_type": [True] * 8}, ModelFormatError, "token_type is an array of .*, expected an array of integers"),
        ({"token_type": ["1"] * 8}, ModelFormatError, "token_type is an array of strings, expected"),
        ({"tokens": np.arange(8)}, ModelFormatError, "tokens is an array of int64, expected an array of strings"),
        ({"tokens": np.array([], np.int32)}, ModelFormatError, "empty"),
        ({"merges": 1.5}, ModelFormatError, "merges is 1.5, expected an array of strings"),
        ({"eos_token_id": ["x"] * 10_000}, ModelFormatError, "eos_token_id is an array of strings, expected a token"),
        ({"add_eos_token": np.arange(3)}, ModelFormatError, "add_eos_token is an array of int64, expected true or"),
        ({"merges": None}, ModelFormatError, "no tokenizer.ggml.merges"),
        ({"merges": ["a b", "ab"]}, ModelFormatError, r"merges\[1\] is 'ab'"),
        ({"merges": ["a c"]}, ModelFormatError, r"merges\[0\]"),
        ({"merges": ["b a"]}, ModelFormatError, r"merges\[0\]"),
        ({"bos_token_id": "0"}, ModelFormatError, "bos_token_id"),
        ({"add_bos_token": 1}, ModelFormatError, "add_bos_token"),
        ({"bos_token_id": None, "add_bos_token": True}, ModelFormatError, "bos_token_id is missing"),
        ({"eos_token_id": 99, "add_eos_token": True}, ModelFormatError, "eos_token_id is missing or outside"),
    ],
)
def test_broken_vocabularies_are_refused(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Tokenizer(made(**changes))


# ---- SentencePiece and Gemma 4 -------------------------------------------------------------------------

BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def pieces(**changes: Any) -> dict[str, Any]:
    """Metadata of a tiny SentencePiece vocabulary; a change to None removes the key."""
    tokens = ["<unk>", "<s>", "</s>", "<u>", *BYTES, "▁", "a", "b", "▁a", "ab", "▁ab", "▁▁", "é"]
    metadata: dict[str, Any] = {
        "model": "llama",
        "tokens": tokens,
        "token_type": [2, 3, 3, 4, *[6] * 256, *[1] * 8],
        "scores": np.array([0.0] * 260 + [-1, -2, -3, -4, -5, -6, -7, -8], np.float32),
    }
    metadata.update(changes)
    return {f"tokenizer.ggml.{key}": value for key, value in metadata.items() if value is not None}


def spelled(tokenizer: Tokenizer, text: str, **options: bool) -> list[str]:
    return [tokenizer.token_text(token) for token in tokenizer.encode(text, **options)]


def test_a_blank_stands_before_a_text_and_after_special_tokens() -> None:
    tokenizer = Tokenizer(pieces())
    assert spelled(tokenizer, "ab") == ["<s>", "▁ab"]
    assert spelled(tokenizer, "ab", add_special=False) == ["▁ab"]
    assert spelled(tokenizer, "ab", add_special=False, continues=True) == ["ab"]
    assert spelled(tokenizer, "") == ["<s>"]
    assert spelled(tokenizer, "a<u>a</s>a", add_special=False) == ["▁a", "<u>", "▁a", "</s>", "▁a"]
    assert spelled(tokenizer, "a</s>", parse_special=False)[1:] == ["▁a", "<0x3C>", "<0x2F>", "<0x73>", "<0x3E>"]
    without = Tokenizer(pieces(add_space_prefix=False))
    assert spelled(without, "ab<u>a  é z") == ["<s>", "ab", "<u>", "a", "▁▁", "é", "▁", "<0x7A>"]


def test_the_blank_before_a_text_goes_again() -> None:
    tokenizer = Tokenizer(pieces())
    for text in ("ab", " ab", "  ab b", "", " ", "zé\n", "▁"):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == tokenizer.decode(ids[1:]) == text.replace("▁", " ")
        assert tokenizer.decode(ids[1:], continues=True) == ("" if text == "" else " " + text.replace("▁", " "))
    assert tokenizer.decode(tokenizer.encode("ab"), skip_special=False) == "<s> ab"
    decoder = StreamDecoder(tokenizer)
    assert decoder.push(tokenizer.encode("ab")) == " ab"


def test_sentencepiece_names_its_tokens_by_convention() -> None:
    tokenizer = Tokenizer(pieces())
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (1, 2)
    assert (tokenizer.add_bos, tokenizer.add_eos) == (True, False)
    assert Tokenizer(pieces(bos_token_id=2, eos_token_id=0xFFFFFFFF)).bos_token_id == 2
    assert Tokenizer(pieces(bos_token_id=2, eos_token_id=0xFFFFFFFF)).eos_token_id == 2
    assert not Tokenizer(pieces(add_bos_token=False)).add_bos


def test_without_byte_tokens_there_is_the_unknown_token() -> None:
    tokens = ["<unk>", "<s>", "</s>", "▁", "a"]
    keys = {"tokens": tokens, "token_type": [2, 3, 3, 1, 1], "scores": np.arange(5.0)}
    assert spelled(Tokenizer(pieces(**keys)), "aéa") == ["<s>", "▁", "a", "<unk>", "a"]


def by_the_book(text: str, ids: dict[str, int], scores: list[float]) -> list[int]:
    """SentencePiece's merging, one pair after the other over the whole text."""
    symbols = list(text.replace(" ", "▁"))
    while True:
        together = [left + right for left, right in pairwise(symbols)]
        known = [(-scores[ids[text]], at) for at, text in enumerate(together) if text in ids]
        if not known:
            break
        at = min(known)[1]
        symbols[at : at + 2] = [together[at]]
    tokens = []
    for symbol in symbols:
        tokens += [ids[symbol]] if symbol in ids else [ids[BYTES[byte]] for byte in symbol.encode()]
    return tokens


@settings(max_examples=300, deadline=None)
@given(
    st.dictionaries(st.text("abc▁é", min_size=1, max_size=5), st.integers(-3, 0), min_size=3, max_size=40),
    st.lists(st.text("abcé z", max_size=40), min_size=1, max_size=5),
)
def test_merging_by_score_is_done_by_the_book(words: dict[str, int], texts: list[str]) -> None:
    """Scores are often equal here, and parts of tokens often are none."""
    tokens = ["<unk>", "<s>", "</s>", *BYTES, *words, "xy", "yx"]
    scores = [0.0] * 259 + [float(score) for score in words.values()] + [-1.0, -2.0]
    kinds = [2, 3, 3, *[6] * 256, *[1] * (len(words) + 2)]
    tokenizer = Tokenizer(pieces(tokens=tokens, token_type=kinds, scores=scores, add_space_prefix=False))
    ids = {text: token for token, text in enumerate(tokens)}
    for text in texts:
        assert tokenizer.encode(text, add_special=False) == by_the_book(text, ids, scores)


@needs_reference
@pytest.mark.parametrize("name", ["llama-spm", "gemma-4"])
def test_long_paragraphs_are_no_burden(name: str) -> None:
    tokenizer = reference_tokenizer(name)
    paragraph = (TESTS.parent / "LICENSE").read_text().replace("\n", " ")
    for text in (paragraph * 10, "a" * 50_000, "中文字符漢字" * 5_000, " " * 50_000, "ab" * 25_000, "\n" * 50_000):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_phi_3_swallows_white_space_behind_its_marks() -> None:
    tokens = ["<unk>", "<s>", "</s>", "<|user|>", "<|end|>", "<|endoftext|>", "<u>", *BYTES, "▁", "a"]
    keys = {"tokens": tokens, "token_type": [2, 3, 3, 3, 3, 3, 4, *[6] * 256, 1, 1], "scores": [0.0] * 265}
    text = "<|user|>\n\n a<|end|> \t<|user|> <u>  a</s> a<s> a"
    of_phi = Tokenizer({**pieces(**keys), "general.name": "Microsoft Phi-3.5 Mini"})
    assert spelled(of_phi, text, add_special=False) == [
        "<|user|>", "▁", "a", "<|end|>", "<|user|>", "<u>", "▁", "a", "</s>", "▁", "a", "<s>", "▁", "▁", "a",
    ]  # fmt: skip
    assert len(Tokenizer({**pieces(**keys), "general.name": "Phi 4"}).encode(text)) > 20
    assert len(Tokenizer({**pieces(**keys), "general.name": np.arange(3)}).encode(text)) > 20


def gemma4(**changes: Any) -> dict[str, Any]:
    """Metadata of a tiny vocabulary of Gemma 4's kind; a change to None removes the key."""
    metadata: dict[str, Any] = {
        "model": "gemma4",
        "tokens": ["<pad>", "<eos>", "<bos>", "</s>", "<|tool_response>", *BYTES, "▁", "a", "b", "a▁", "▁b", "\n\n"],
        "token_type": [3, 3, 3, 3, 4, *[6] * 256, *[1] * 6],
        "merges": ["a ▁", "▁ b"],
        "bos_token_id": 2,
        "eos_token_id": 1,
        "add_bos_token": False,
    }
    metadata.update(changes)
    return {f"tokenizer.ggml.{key}": value for key, value in metadata.items() if value is not None}


def test_gemma_4_merges_over_blanks_and_takes_line_breaks_whole() -> None:
    tokenizer = Tokenizer(gemma4())
    assert spelled(tokenizer, "a b") == ["<bos>", "a▁", "b"], "begins a text whatever the file says"
    assert spelled(tokenizer, "b b\n\n\na\n\nz")[1:] == ["b", "▁b", *["<0x0A>"] * 3, "a", "\n\n", "<0x7A>"]
    assert tokenizer.decode(tokenizer.encode("a b\n\né")) == "a b\n\né"
    assert tokenizer.stop_token_ids == {1, 4}, "</s> is an ordinary token here"
    lossy = Tokenizer(gemma4(tokens=["<pad>", "<eos>", "<bos>", "a"], token_type=[3, 3, 3, 1], merges=[]))
    assert spelled(lossy, "aéa")[1:] == ["a", "a"]
    with pytest.raises(ModelFormatError, match="bos_token_id is missing"):
        Tokenizer(gemma4(bos_token_id=None))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scores": None}, "no tokenizer.ggml.scores"),
        ({"scores": "high"}, "scores is the text 'high', expected an array of numbers"),
        ({"scores": np.zeros(5, np.float32)}, "scores has 5 entries for 268 tokens"),
        ({"scores": np.full(268, True)}, "scores is an array of bool, expected an array of numbers"),
        ({"scores": np.zeros(268, np.float32)}, "scores is 0.0 for all tokens, expected different numbers"),
        ({"scores": np.array([*range(267), np.nan])}, r"scores\[267\] is nan, expected a number"),
        ({"scores": np.array([-np.inf, *range(267)])}, r"scores\[0\] is -inf, expected a number"),
        ({"add_space_prefix": 1}, "add_space_prefix is 1, expected true or false"),
        ({"token_type": [6] * 268}, "token 0, '<unk>', is a byte token; those are spelled like <0x0A>"),
        ({"token_type": [*[1] * 264, 6, *[1] * 3]}, "token 264, 'ab', is a byte token"),
    ],
)
def test_broken_sentencepiece_vocabularies_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelFormatError, match=message):
        Tokenizer(pieces(**changes))


@pytest.mark.parametrize("spelling", ["<0x1>", "<0x1_0>", "<0x100>", "<0xG0>", "0x0A", "<0x0A", "<0x-1>", "<0x0A>>"])
def test_byte_tokens_are_spelled_in_one_way(spelling: str) -> None:
    tokens = [*pieces()["tokenizer.ggml.tokens"][:-1], spelling]
    with pytest.raises(ModelFormatError, match="is a byte token; those are spelled like <0x0A>"):
        Tokenizer(pieces(tokens=tokens, token_type=[*[1] * 267, 6]))


# ---- metadata of any type ------------------------------------------------------------------------------

KEYS = (
    "model", "pre", "tokens", "token_type", "scores", "merges", "bos_token_id", "eos_token_id", "eot_token_id",
    "fim_pad_token_id", "unknown_token_id", "add_bos_token", "add_eos_token", "add_space_prefix",
)  # fmt: skip
VALUES: dict[str, Any] = {
    "nothing": None,
    "integer": 5,
    "minus one": -1,
    "huge": 2**64 - 1,
    "float": 1.5,
    "NaN": float("nan"),
    "true": True,
    "text": "x",
    "no text": "",
    "long text": "x" * 100_000,
    "no integers": np.array([], np.int32),
    "no strings": [],
    "few integers": np.array([1, 2, 3], np.int32),
    "few strings": ["a", "b"],
    "equal strings": ["zz"] * 8,
    "numbers as text": ["1"] * 8,
    "NaNs": np.full(8, np.nan, np.float32),
    "infinities": np.full(8, np.inf, np.float32),
    "truths": np.full(8, True),
    "large": np.full(8, 2**63, np.uint64),
    "negative": np.full(8, -5, np.int8),
    **{f"kind {kind}": np.full(8, kind, np.int32) for kind in range(8)},
}


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("sound", [made, pieces, gemma4])
def test_metadata_of_any_type_is_taken_or_refused_in_few_words(
    sound: Callable[..., dict[str, Any]], key: str, value: str
) -> None:
    metadata = sound(**{key: VALUES[value]})
    try:
        tokenizer = Tokenizer(metadata)
    except BeeError as error:
        message = str(error)
    else:
        assert all(0 <= token < tokenizer.n_vocab for token in tokenizer.encode("ab <note>ü</s>"))
        tokenizer.decode(range(tokenizer.n_vocab), skip_special=False)
        return
    assert "tokenizer.ggml." in message or "byte token" in message
    assert len(message) < 2000
