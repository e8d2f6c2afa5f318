"""What the masks allow is valid, forced tokens and masks agree, states roll back; what cannot be kept is refused."""

from __future__ import annotations

import codecs
import json
import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from json_schemas import SCHEMAS

from bee_integrations.constraints import (
    Choice,
    Constraint,
    Grammar,
    GrammarCompiler,
    JsonSchema,
    Matcher,
    Regex,
    json_object,
)
from bee_integrations.errors import ConstraintError, ParameterError
from bee_integrations.models.file import ModelFile
from bee_integrations.text.tokenizer import Tokenizer

REFERENCE = Path(__file__).resolve().parent.parent / "reference"
VOCABULARIES = ("qwen2", "llama-bpe")
FORMATS = jsonschema.FormatChecker(formats=["date", "ipv4", "ipv6", "uuid", "email"])


@dataclass
class Speaker:
    """Says random texts that a constraint allows, with a liking for what ends them."""

    tokenizer: Tokenizer
    compiler: GrammarCompiler

    def __post_init__(self) -> None:
        spelled = [self.tokenizer.token_bytes(token) for token in range(self.tokenizer.n_vocab)]
        closing = {b'"', b'"}', b"}", b"]", b'",', b'"]', b",", b"}]", b"}}"}
        self.closers = np.array([text in closing for text in spelled])
        self.ids = {text: token for token, text in enumerate(spelled) if text}
        self.plain = np.array([bool(text) and text.isascii() and len(text) < 12 for text in spelled])

    def start(self, constraint: Constraint) -> Matcher:
        return self.compiler.compile(constraint).matcher()

    def text(self, tokens: list[int]) -> str:
        """Without a part of a character at its end."""
        said = b"".join(self.tokenizer.token_bytes(token) for token in tokens)
        return codecs.getincrementaldecoder("utf-8")().decode(said)  # strict, but for what the end leaves open

    def say(self, matcher: Matcher, text: str) -> bool:
        """Say a text by the longest tokens that are allowed; False where it is not."""
        rest = text.encode()
        while rest:
            allowed = set(allowed_by(matcher).tolist())
            pieces = (rest[:length] for length in range(min(len(rest), 24), 0, -1))
            token = next((self.ids[piece] for piece in pieces if self.ids.get(piece) in allowed), None)
            if token is None:
                return False
            assert matcher.consume(token)
            rest = rest[len(self.tokenizer.token_bytes(token)) :]
        return True

    def takes(self, constraint: Constraint, text: str) -> bool:
        """Whether a text fulfils a constraint as a whole."""
        matcher = self.start(constraint)
        return self.say(matcher, text) and matcher.accepting

    def pick(self, allowed: np.ndarray, source: random.Random) -> int:
        for liked, chance in ((self.closers, 0.4), (self.plain, 0.9)):
            some = allowed[liked[allowed]]
            if len(some) and source.random() < chance:
                allowed = some
                break
        return int(allowed[source.randrange(len(allowed))])

    def walk(self, matcher: Matcher, source: random.Random, limit: int) -> Iterator[int]:
        """Tokens as they are consumed, up to the end of the answer or the limit."""
        for _ in range(limit):
            token = self.pick(allowed_by(matcher), source)
            assert matcher.consume(token)
            if token in self.tokenizer.stop_token_ids:
                return
            yield token


def allowed_by(matcher: Matcher) -> np.ndarray:
    """Ids of the tokens in the mask."""
    words = np.full(matcher.mask_words, 0xA5A5A5A5, dtype=np.uint32)
    matcher.fill_mask(words.ctypes.data)
    return np.flatnonzero(np.unpackbits(words.view(np.uint8), bitorder="little"))


@cache
def reference_speaker(name: str) -> Speaker:
    with ModelFile(REFERENCE / f"ggml-vocab-{name}.gguf") as file:
        tokenizer = Tokenizer.from_model_file(file)
    return Speaker(tokenizer, GrammarCompiler(tokenizer))


@pytest.fixture(scope="module")
def speaker(model_path: Path) -> Speaker:
    with ModelFile(model_path) as file:
        tokenizer = Tokenizer.from_model_file(file)
    return Speaker(tokenizer, GrammarCompiler(tokenizer))


@pytest.fixture(params=VOCABULARIES)
def other_speaker(request: pytest.FixtureRequest) -> Speaker:
    if not (REFERENCE / "archive.sha256").is_file():
        pytest.skip("needs third-party vocabularies: run 'make reference'")
    return reference_speaker(request.param)


def assert_valid(name: str, text: str) -> None:
    jsonschema.Draft202012Validator(SCHEMAS[name], format_checker=FORMATS).validate(json.loads(text))


# ---- every text that the masks allow is valid -----------------------------------------------------------


def check_walks(speaker: Speaker, name: str, walks: int) -> None:
    grammar = speaker.compiler.compile(JsonSchema(SCHEMAS[name]))
    for seed in range(walks):
        source = random.Random(f"{name} {seed}")
        matcher = grammar.matcher()
        tokens = list(speaker.walk(matcher, source, limit=source.choice((1, 3, 8, 20, 60, 120))))
        text = speaker.text(tokens)
        if matcher.accepting:
            assert_valid(name, text)
        assert_valid(name, text + matcher.closing_text())


def test_the_corpus_is_large_and_its_schemas_are_schemas() -> None:
    assert len(SCHEMAS) >= 70
    for schema in SCHEMAS.values():
        jsonschema.Draft202012Validator.check_schema(schema)


@pytest.mark.parametrize("name", SCHEMAS)
def test_what_the_masks_allow_is_valid(speaker: Speaker, name: str) -> None:
    check_walks(speaker, name, walks=25)


def test_what_the_masks_allow_is_valid_for_other_vocabularies(other_speaker: Speaker) -> None:
    for name in SCHEMAS:
        check_walks(other_speaker, name, walks=2)


@pytest.mark.parametrize("name", ["object", "tree", "unicode keys", "enum of unicode", "pydantic order"])
def test_values_in_the_corpus_style_are_accepted(speaker: Speaker, name: str) -> None:
    examples: dict[str, Any] = {
        "object": {"name": "Zoë 北京 😀", "age": 30},
        "tree": {"name": "a", "children": [{"name": "b", "children": []}, {"name": "c"}]},
        "unicode keys": {"名前": "太郎 🎌", "größe": 5, "ключ 🔑": True},
        "enum of unicode": 'naïve "quoted"\n',
        "pydantic order": {"size": [1, 2], "price": 9.5, "stock": {"é": 3}, "note": None, "paid": True},
    }
    text = json.dumps(examples[name], ensure_ascii=False)
    assert speaker.takes(JsonSchema(SCHEMAS[name]), text)
    assert not speaker.takes(JsonSchema(SCHEMAS[name]), text[:-1])


@pytest.mark.parametrize("text", ['"北京 is 首都"', '"😀👩‍👩‍👧‍👦"', '"ключ ñ \\n \\" \\\\"'])
def test_parts_of_characters_can_be_said(speaker: Speaker, text: str) -> None:
    assert speaker.takes(JsonSchema({"type": "string"}), text)
    tokens = speaker.tokenizer.encode(text, add_special=False)
    partial = [token for token in tokens if not is_utf8(speaker.tokenizer.token_bytes(token))]
    assert partial or "ñ" in text, "the text should need tokens that are parts of characters"


def is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def test_numbers_of_characters_count_characters(speaker: Speaker) -> None:
    pair = JsonSchema({"type": "string", "minLength": 2, "maxLength": 2})
    assert speaker.takes(pair, '"😀😀"')
    assert not speaker.takes(pair, '"😀"')


def test_the_style_has_single_blanks_and_no_others(speaker: Speaker) -> None:
    assert speaker.takes(json_object(), '{"a": 1, "b": [1, {"c": null}]}')
    for text in ('{"a":1}', '{ "a": 1}', '{"a": 1,"b": 2}', '{"a": [1 ]}', '\n{"a": 1}', "[1]", "3"):
        assert not speaker.takes(json_object(), text), text


def test_a_named_key_has_no_second_spelling(speaker: Speaker) -> None:
    schema = JsonSchema({"type": "object", "properties": {"a": {"type": "integer"}}})
    assert speaker.takes(schema, '{"a": 1, "b": "free"}')
    for text in ('{"a": "x"}', '{"\\u0061": "x"}', '{"a": 1, "a": "x"}'):
        assert not speaker.takes(schema, text), text


# ---- tokens that may stand in a text -------------------------------------------------------------------


def test_control_tokens_are_never_text(speaker: Speaker, other_speaker: Speaker) -> None:
    for voice in (speaker, other_speaker):
        control = set(voice.tokenizer.special_tokens.values()) | voice.tokenizer.stop_token_ids
        empty = {token for token in range(voice.tokenizer.n_vocab) if not voice.tokenizer.token_bytes(token)}
        for constraint in (Regex(r"(?s:.)*x"), JsonSchema({"type": "string"})):
            matcher = voice.start(constraint)
            for text in ("", '"', '"<', '"<|im'):
                if text == "" or matcher.consume(voice.tokenizer.encode(text[-1:], add_special=False)[0]):
                    allowed = set(allowed_by(matcher).tolist())
                    assert not allowed & (control | empty)


def test_text_that_looks_like_a_control_token_is_spelled_by_ordinary_ones(speaker: Speaker) -> None:
    matcher = speaker.start(Choice(("<|im_end|>!",)))
    forced = matcher.forced(15)
    assert forced
    assert not set(forced) & set(speaker.tokenizer.special_tokens.values())


def test_stop_tokens_are_allowed_where_the_text_is_complete(speaker: Speaker) -> None:
    stop = speaker.tokenizer.stop_token_ids
    assert len(stop) > 1
    matcher = speaker.start(Regex("[0-9]{2,3}"))
    for digit, complete in (("1", False), ("2", True), ("3", True)):
        if not matcher.accepting:
            assert not matcher.consume(min(stop))
        assert speaker.say(matcher, digit)
        assert matcher.accepting is complete
        assert stop <= set(allowed_by(matcher).tolist()) if complete else not stop & set(allowed_by(matcher).tolist())
    assert matcher.finished
    assert set(allowed_by(matcher).tolist()) == stop


def test_the_end_of_the_answer_is_taken_and_rolled_back(speaker: Speaker) -> None:
    stop = sorted(speaker.tokenizer.stop_token_ids)
    matcher = speaker.start(Regex("[0-9]+"))
    assert speaker.say(matcher, "12")
    assert not matcher.finished
    before = allowed_by(matcher)
    assert matcher.consume(stop[0])
    assert matcher.finished
    assert matcher.closing_text() == ""
    assert set(allowed_by(matcher).tolist()) == set(stop)
    assert not matcher.consume(int(before[before > stop[-1]][0]))
    matcher.rollback(1)
    assert not matcher.finished
    np.testing.assert_array_equal(allowed_by(matcher), before)
    assert matcher.consume(stop[1])
    matcher.rollback(3)
    assert not matcher.accepting
    with pytest.raises(ParameterError, match="0 were consumed"):
        matcher.rollback(1)


def test_every_vocabulary_bit_has_its_place(speaker: Speaker, other_speaker: Speaker) -> None:
    for voice in (speaker, other_speaker):
        matcher = voice.start(Regex(r"(?s:.)*"))
        assert matcher.mask_words == -(-voice.tokenizer.n_vocab // 32)
        assert allowed_by(matcher).max() < voice.tokenizer.n_vocab
        for token in (-1, voice.tokenizer.n_vocab, 2**31):
            assert not matcher.consume(token)


# ---- forced tokens, and going back ---------------------------------------------------------------------


FORCING = ("long keys", "unicode keys", "pydantic kennel", "enum of strings", "const object", "tagged union")


@pytest.mark.parametrize("name", FORCING)
def test_forced_tokens_and_masks_agree(speaker: Speaker, name: str) -> None:
    check_forcing(speaker, name)


def test_forced_tokens_and_masks_agree_for_other_vocabularies(other_speaker: Speaker) -> None:
    for name in FORCING:
        check_forcing(other_speaker, name)


def check_forcing(speaker: Speaker, name: str) -> None:
    found = 0
    grammar = speaker.compiler.compile(JsonSchema(SCHEMAS[name]))
    for seed in range(6):
        source = random.Random(seed)
        matcher = grammar.matcher()
        said: list[int] = []
        while not matcher.finished and len(said) < 80:
            together = matcher.forced(15)
            assert matcher.forced(2) == together[:2]
            allowed = allowed_by(matcher)
            if together:
                found += 1
                assert allowed.tolist() == together[:1]
                singly = []
                while len(singly) < 15 and matcher.forced(1):
                    singly += matcher.forced(1)
                    assert matcher.consume(singly[-1])
                assert singly == together
                matcher.rollback(len(singly))
                assert matcher.forced(15) == together
                wrong = int(together[0] + 1) % speaker.tokenizer.n_vocab
                assert not matcher.consume(wrong)
            # A matcher that took the same tokens without ever being asked is in the same state.
            other = grammar.matcher()
            assert all(other.consume(token) for token in said)
            np.testing.assert_array_equal(allowed_by(other), allowed)
            said.append(speaker.pick(allowed, source))
            assert matcher.consume(said[-1])
    assert found > 5


def test_forced_text_is_cut_as_the_tokenizer_does(speaker: Speaker) -> None:
    matcher = speaker.start(Choice(("an unbelievable internationalization of everything",)))
    expected = speaker.tokenizer.encode("an unbelievable internationalization of everything", add_special=False)
    forced = matcher.forced(100)
    assert len(forced) >= len(expected) - 1
    assert forced == expected[: len(forced)]


@pytest.mark.parametrize("name", ["nested objects", "open object", "expression", "pattern of words", "format date"])
def test_rolling_back_restores_the_state(speaker: Speaker, name: str) -> None:
    matcher = speaker.start(JsonSchema(SCHEMAS[name]))
    source = random.Random(name)
    masks = [allowed_by(matcher)]
    states = [(matcher.accepting, matcher.finished)]
    for _ in speaker.walk(matcher, source, limit=25):
        masks.append(allowed_by(matcher))
        states.append((matcher.accepting, matcher.finished))
        for _ in range(2):  # drafts, taken and given back
            ahead = list(speaker.walk(matcher, source, limit=source.randrange(5)))
            ended = matcher.finished and len(allowed_by(matcher)) == len(speaker.tokenizer.stop_token_ids)
            matcher.rollback(len(ahead))
            if ended and not np.array_equal(allowed_by(matcher), masks[-1]):
                matcher.rollback(1)  # the walk had taken a stop token, too
            np.testing.assert_array_equal(allowed_by(matcher), masks[-1])
            assert (matcher.accepting, matcher.finished) == states[-1]


def test_what_is_not_allowed_is_not_taken(speaker: Speaker) -> None:
    source = random.Random(5)
    matcher = speaker.start(JsonSchema(SCHEMAS["pydantic person"]))
    for _ in range(40):
        allowed = allowed_by(matcher)
        for token in source.sample(range(speaker.tokenizer.n_vocab), 20):
            taken = matcher.consume(token)
            assert taken == (token in allowed)
            matcher.rollback(int(taken))
        np.testing.assert_array_equal(allowed_by(matcher), allowed)
        if matcher.finished:
            break
        assert matcher.consume(speaker.pick(allowed, source))


# ---- closing what was cut off --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schema", "said", "closed"),
    [
        ({"type": "string"}, '"Bo', '"Bo"'),
        (SCHEMAS["object"], '{"name": "Bo', '{"name": "Bo", "age": 0}'),
        (SCHEMAS["array of objects"], '[{"id": 12', '[{"id": 12, "ok": false}]'),
        ({"type": "array"}, '[[{"a": [1, {"b": "c', '[[{"a": [1, {"b": "c"}]}]]'),
        ({"type": "number"}, "-", "-0"),
        ({"enum": ["red", "green"]}, '"g', '"green"'),
        ({"type": "string", "pattern": "[0-9]{3}-[0-9]{4}"}, '"call 123-4', '"call 123-4000"'),
        ({"type": "string", "pattern": "foo.*bar"}, '"a fo', '"a foobar"'),
        ({"type": "boolean"}, "", "false"),
    ],
)
def test_closing(speaker: Speaker, schema: Any, said: str, closed: str) -> None:
    matcher = speaker.start(JsonSchema(schema))
    assert speaker.say(matcher, said)
    before = allowed_by(matcher)
    text = said + matcher.closing_text()
    np.testing.assert_array_equal(allowed_by(matcher), before)
    jsonschema.Draft202012Validator(schema).validate(json.loads(text))
    assert len(text) <= len(closed)


def test_closing_follows_the_last_whole_character(speaker: Speaker) -> None:
    tokens = speaker.tokenizer.encode('"😀', add_special=False)
    assert not is_utf8(speaker.tokenizer.token_bytes(tokens[-1]))
    matcher = speaker.start(JsonSchema({"enum": ["😀😀"]}))
    first = speaker.tokenizer.encode("😀", add_special=False)
    assert matcher.consume(tokens[0])
    assert len(first) > 1
    assert matcher.consume(first[0])
    assert matcher.closing_text() == '😀😀"'


# ---- other kinds of constraints ------------------------------------------------------------------------


def test_a_choice_is_exactly_one_option(speaker: Speaker) -> None:
    options = Choice(("a", "ab", 'ein "Zitat"\n', "北京"))
    for text in options.options:
        assert speaker.takes(options, text)
    for text in ("b", "aa", "abc", "ein"):
        assert not speaker.takes(options, text)
    assert speaker.start(Choice(tuple(f"option {number}" for number in range(4000)))).closing_text() == "option 0"


def test_a_regular_expression_matches_as_a_whole(speaker: Speaker) -> None:
    plate = Regex("[A-Z]{2}-[0-9]+")
    assert speaker.takes(plate, "AB-12")
    for text in ("AB-", "xAB-12", "AB-12 "):
        assert not speaker.takes(plate, text)


def test_lark_with_an_inner_schema(speaker: Speaker) -> None:
    call = Grammar(
        'start: "call(" arguments ")"\narguments: %json {"type": "object", "properties": {"a": {"enum": [1]}}}'
    )
    assert speaker.takes(call, 'call({"a": 1})')
    assert not speaker.takes(call, 'call({"a":1})')
    assert not speaker.takes(call, 'call({"a": 2})')
    compact = Grammar('start: %json {"enum": [[1, 2]], "x-guidance": {"item_separator": ","}}')
    assert speaker.takes(compact, "[1,2]")


def test_gbnf(speaker: Speaker) -> None:
    listing = Grammar('# a list\nroot ::= item-line+\nitem-line ::= "- " [a-z\\u00e9 ]+ "\\n"\n', syntax="gbnf")
    assert speaker.takes(listing, "- un café\n- deux\n")
    assert not speaker.takes(listing, "- un\n-")


def test_literals_match_themselves_alone(speaker: Speaker) -> None:
    end = speaker.tokenizer.token_id("<|im_end|>")
    assert end is not None
    for text in ("plain", 'quo"te\\ \n\t', "日本 😀", "", "<|im", "a/b"):
        assert speaker.start(Grammar(f"start: {speaker.compiler.literal(text)}")).closing_text() == text
    literal = speaker.compiler.literal("a<|im_end|>b")
    assert f"<[{end}]>" in literal
    matcher = speaker.compiler.compile_rules(f'start: {literal} "!"').matcher()
    assert speaker.say(matcher, "a")
    assert allowed_by(matcher).tolist() == [end]
    assert not matcher.accepting
    assert matcher.closing_text() == "<|im_end|>b!"
    assert matcher.consume(end)
    assert matcher.closing_text() == "b!"
    matcher.rollback(1)
    assert allowed_by(matcher).tolist() == [end]


# ---- refusals ----------------------------------------------------------------------------------------------


def deep_schema(depth: int) -> Any:
    schema: Any = {"type": "integer"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


def chain_of_references(length: int) -> Any:
    links = {
        f"d{link}": {"type": "object", "properties": {"a": {"$ref": f"#/$defs/d{link + 1}"}}, "required": ["a"]}
        for link in range(length)
    }
    return {"$defs": {**links, f"d{length}": {"type": "null"}}, "$ref": "#/$defs/d0"}


def doubling(levels: int, keyword: Callable[[Any], Any]) -> Any:
    """Each definition has the one before twice, so the last one stands for 2**levels parts."""
    definitions = {"d0": {"type": "integer"}}
    for level in range(1, levels + 1):
        definitions[f"d{level}"] = keyword({"$ref": f"#/$defs/d{level - 1}"})
    return {"$defs": definitions, "$ref": f"#/$defs/d{levels}"}


REFUSED: dict[str, tuple[Any, str]] = {
    "more different items than values": (
        {"type": "array", "items": {"enum": [1, 2]}, "uniqueItems": True, "minItems": 3},
        "the schema: schema is false",
    ),
    "no schema": ([1], "the schema: a schema is an object"),
    "not JSON": ({"const": {1, 2}}, "no JSON document"),
    "not a number": ({"minimum": float("nan")}, "no JSON document"),
    "false": (False, "the schema: "),
    "crossed bounds": (
        {"properties": {"age": {"type": "integer", "minimum": 5, "maximum": 3}}, "required": ["age"], "type": "object"},
        "/properties/age: ",
    ),
    "no whole number": (
        {"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": 5.2, "maximum": 5.8}},
        "/items: ",
    ),
    "crossed lengths": ({"type": "string", "minLength": 5, "maxLength": 3}, "minLength"),
    "required but false": (
        {"type": "object", "properties": {"a/b": False}, "required": ["a/b"]},
        "/properties/a~1b: false admits nothing",
    ),
    "required but not allowed": (
        {"type": "object", "required": ["a"], "additionalProperties": False},
        "'a'|/additionalProperties",
    ),
    "types exclude": ({"allOf": [{"type": "string"}, {"type": "integer"}]}, "the schema: incompatible"),
    "pattern and const": ({"type": "string", "const": "abc", "pattern": "^x"}, "the schema: "),
    "empty enum": ({"properties": {"a": {"enum": []}}}, "/properties/a/enum: "),
    "empty type": ({"type": []}, "/type: "),
    "empty anyOf": ({"anyOf": []}, "/anyOf: "),
    "unknown type": ({"type": "text"}, "/type: expected one or several of null"),
    "malformed keyword": ({"items": {"minLength": "3"}}, "/items/minLength: expected a whole number"),
    "malformed properties": ({"properties": [1]}, "/properties: "),
    "malformed required": ({"required": "a"}, "/required: "),
    "malformed subschema": ({"properties": {"a": 3}}, "/properties/a: "),
    "divisor of zero": ({"type": "integer", "multipleOf": 0}, "/multipleOf: "),
    "huge bound": ({"type": "integer", "minimum": 10**400}, "/minimum: "),
    "inexact constant": ({"properties": {"n": {"const": 2**60 + 1}}}, "/properties/n/const: "),
    "unwritable constant": ({"enum": ["a", "b\x01"]}, "/enum/1: .*U\\+0001"),
    "uniqueItems": ({"$defs": {"s": {"uniqueItems": True}}, "$ref": "#/$defs/s"}, "/\\$defs/s: .*'uniqueItems'"),
    "minProperties": ({"additionalProperties": {"minProperties": 2}}, "/additionalProperties: .*'minProperties'"),
    "overlapping oneOf": (
        {"properties": {"n": {"oneOf": [{"type": "integer"}, {"type": "number"}]}}},
        "/properties/n: .*oneOf",
    ),
    "equal constants in oneOf": ({"oneOf": [{"const": 1}, {"const": 1.0}]}, "oneOf"),
    "overlapping patterns": (
        {"type": "object", "patternProperties": {"a": {}, "b": {"type": "null"}}},
        "the schema: .*disjoint",
    ),
    "look-around": ({"items": {"type": "string", "pattern": "a(?=b)"}}, "/items: .*look-around"),
    "broken pattern": ({"type": "string", "pattern": "(a"}, "/pattern: "),
    "control character in a pattern": ({"type": "string", "pattern": "^(a\\x01b|c)$"}, "/pattern: .*control character"),
    "nested class": ({"type": "string", "pattern": "[a[b]"}, "/pattern: .*class"),
    "external reference": ({"items": {"$ref": "https://example.com/x"}}, "/items/\\$ref: .*out of the schema"),
    "lost reference": ({"items": {"$ref": "#/$defs/x"}}, "/items/\\$ref: .*nowhere"),
    "reference to itself": ({"$ref": "#"}, "without an end"),
    "endless object": (
        {
            "$defs": {"n": {"type": "object", "properties": {"x": {"$ref": "#/$defs/n"}}, "required": ["x"]}},
            "$ref": "#/$defs/n",
        },
        "/\\$defs/n: .*without an end",
    ),
    "endless array": ({"type": "array", "items": {"$ref": "#"}, "minItems": 1}, "without an end"),
    "long chain of references": (chain_of_references(1_500), "in a row"),
    "long pattern": ({"type": "string", "pattern": "a?" * 10_000}, "/pattern: .*characters"),
    "long string": ({"items": {"type": "string", "minLength": 5_000_000}}, "/items/minLength: "),
    "long array": ({"type": "array", "minItems": 5_000_000}, "/minItems: "),
    "deep": (deep_schema(100), "nested deeper"),
    "very deep": (deep_schema(100_000), "nested deeper"),
    "large enum": ({"enum": list(range(100_000))}, "too big"),
    "huge enum": ({"enum": ["x" * 100] * 60_000}, "characters; at most"),
    "many properties": (
        {"type": "object", "properties": {f"p{number}": {} for number in range(20_000)}},
        "/properties: 20,000 entries are too many",
    ),
    "many values by doubling": (
        doubling(40, lambda part: {"type": "array", "prefixItems": [part, part], "minItems": 2}),
        "the schema: ",
    ),
    "product of unions": (
        {
            "allOf": [
                {"anyOf": [{"properties": {f"p{n}": {"const": v}}, "required": [f"p{n}"]} for v in range(5)]}
                for n in range(12)
            ]
        },
        "too large",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_schemas(speaker: Speaker, name: str) -> None:
    schema, message = REFUSED[name]
    with pytest.raises(ConstraintError, match=message) as caught:
        speaker.compiler.compile(JsonSchema(schema, strict=True))
    assert len(str(caught.value)) < 600


def test_a_schema_that_contains_itself_is_refused(speaker: Speaker) -> None:
    schema: dict[str, Any] = {"type": "object"}
    schema["properties"] = {"a": schema}
    with pytest.raises(ConstraintError, match="no JSON document"):
        speaker.compiler.compile(JsonSchema(schema))


@pytest.mark.parametrize("levels", [10, 40])
def test_shared_definitions_are_no_burden(speaker: Speaker, levels: int) -> None:
    schema = doubling(levels, lambda part: {"type": "array", "prefixItems": [part, part]})
    assert speaker.start(JsonSchema(schema)).closing_text() == "[]"


def test_what_cannot_be_is_left_out_where_it_need_not_be(speaker: Speaker) -> None:
    endless = {"$defs": {"n": {"type": "object", "properties": {"x": {"$ref": "#/$defs/n"}}, "required": ["x"]}}}
    schema = JsonSchema(
        {**endless, "type": "object", "properties": {"n": {"$ref": "#/$defs/n"}, "m": {"type": "null"}}}
    )
    assert speaker.takes(schema, '{"m": null}')
    assert not speaker.takes(schema, '{"n": {"x": 1}}')


def chain_of_rules(length: int, defines: str) -> str:
    start = "start" if defines == ":" else "root"
    rules = [f"{start} {defines} r0", *(f"r{number} {defines} r{number + 1}" for number in range(length))]
    return "\n".join([*rules, f'r{length} {defines} "a"', ""])


def nested_rules(length: int, depth: int) -> str:
    """A chain in which every rule names the next one within as many brackets."""
    rules = ["start: r0"]
    for number in range(length):
        rules.append(f"r{number}: " + '("b" | "c" ' * depth + f"r{number + 1}" + ")" * depth)
    return "\n".join([*rules, f'r{length}: "a"'])


def test_chains_of_a_usual_length_are_no_burden(speaker: Speaker) -> None:
    assert speaker.start(Grammar(chain_of_rules(300, ":"))).closing_text() == "a"
    assert speaker.start(Grammar(nested_rules(20, 5))).closing_text() == "b"
    closed = json.loads(speaker.start(JsonSchema(chain_of_references(100))).closing_text())
    jsonschema.Draft202012Validator(chain_of_references(100)).validate(closed)


@pytest.mark.parametrize(
    ("constraint", "message"),
    [
        (Regex("["), "the regular expression: .*unclosed"),
        (Regex("a(?=b)"), "look-around"),
        (Regex("[a&&b]"), "admits nothing"),
        (Regex("a{1000000}"), "the regular expression: .*10,000 times"),
        (Regex("x" * 300_000), "characters; at most"),
        (Choice(()), "at least one option"),
        (Choice(("\ud800",)), "lone surrogate"),
        (Grammar('start: "a"\n\nb: [c'), "the grammar, line 3: "),
        (Grammar('start: "a" missing'), "line 1: .*missing"),
        (Grammar('begin: "a"'), "no start rule"),
        (Grammar('start: "x"\nargs: %json {"items":\n{"minLength": "3"}}'), "line 2: /items/minLength: "),
        (Grammar('start: %json {"a":\n1}\nb: "x"\nc: ['), "line 4: "),
        (Grammar('start: "a" start'), "line 1: it admits nothing"),
        (Grammar('start: rest\nrest: "a" rest | "b" rest'), "line 1: it admits nothing"),
        (Grammar('start: "x" | "y" loop\nloop: ("a" loop)+'), "line 2: it admits nothing: the rule 'loop'"),
        (Grammar("start: /1+/ /1+/"), "the grammar: it admits no text of less than 16,384 bytes"),
        (Grammar("start: X\nX: /a/ & /b/"), "the grammar: it admits nothing"),
        (Grammar('root ::= "a"\nb := "c"', syntax="gbnf"), "the grammar, line 2: "),
        (Grammar('root ::= "a" |\n  missing', syntax="gbnf"), "line 2: .*missing"),
        (Grammar('root ::= my-rule\n\nmy-rule ::= "a" last\nlast ::= [z-a]', syntax="gbnf"), "line 4: .*range"),
        (Grammar('top ::= "a"', syntax="gbnf"), "root"),
        (Grammar('root ::= "a" root', syntax="gbnf"), "the grammar, line .: "),
        (Grammar("root ::= " + "(" * 5000, syntax="gbnf"), "nested too deeply|the grammar"),
        (Grammar("start: " + "(" * 5000 + '"a"' + ")" * 5000), "in a row"),
        (Grammar(chain_of_rules(9_000, ":")), "in a row"),
        (Grammar(nested_rules(500, 20)), "in a row"),
        (Grammar(chain_of_rules(5_000, "::="), syntax="gbnf"), "in a row"),
        (Grammar("start: /x/", syntax="abnf"), "syntax is 'abnf'"),  # type: ignore[arg-type]
    ],
)
def test_refused_grammars(speaker: Speaker, constraint: Constraint, message: str) -> None:
    with pytest.raises(ConstraintError, match=message):
        speaker.compiler.compile(constraint)


# ---- the cache, and threads ------------------------------------------------------------------------------


def test_compiled_grammars_are_kept(speaker: Speaker) -> None:
    compiler = GrammarCompiler(speaker.tokenizer)
    first = compiler.compile(JsonSchema({"type": "object", "properties": {"a": {}, "b": {}}}))
    assert compiler.compile(JsonSchema({"type": "object", "properties": {"a": {}, "b": {}}})) is first
    # The order of properties is the order of generation.
    assert compiler.compile(JsonSchema({"type": "object", "properties": {"b": {}, "a": {}}})) is not first
    assert compiler.compile_rules('start: "x"') is compiler.compile(Grammar('start: "x"'))
    for number in range(130):
        compiler.compile(Choice((f"option {number}",)))
    assert compiler.compile(JsonSchema({"type": "object", "properties": {"a": {}, "b": {}}})) is not first


def test_constraints_compare_by_what_they_say() -> None:
    assert JsonSchema({"type": "string"}) == JsonSchema({"type": "string"})
    assert hash(JsonSchema({"type": "string"})) == hash(JsonSchema({"type": "string"}))
    assert JsonSchema(True) != JsonSchema({})
    assert JsonSchema(True) != Regex("true")
    assert len({Choice(("a",)), Choice(("a",)), Regex("a"), Grammar("a")}) == 3


def test_two_threads_with_one_grammar(speaker: Speaker) -> None:
    compiler = GrammarCompiler(speaker.tokenizer)
    names = ("object", "tree", "open object", "format uuid")

    def say(results: list[str]) -> None:
        for name in names * 3:
            matcher = compiler.compile(JsonSchema(SCHEMAS[name])).matcher()
            tokens = list(speaker.walk(matcher, random.Random(name), limit=60))
            results.append(speaker.text(tokens) + matcher.closing_text())

    said: list[list[str]] = [[] for _ in range(4)]
    threads = [threading.Thread(target=say, args=(results,)) for results in said]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert len(said[0]) == len(names) * 3
    assert said[1:] == said[:1] * 3
    for name, text in zip(names * 3, said[0], strict=True):
        assert_valid(name, text)


def test_matchers_of_one_grammar_are_apart(speaker: Speaker) -> None:
    grammar = speaker.compiler.compile(JsonSchema(SCHEMAS["object"]))
    first, second = grammar.matcher(), grammar.matcher()
    before = allowed_by(second)
    for token in first.forced(3):
        assert first.consume(token)
    np.testing.assert_array_equal(allowed_by(second), before)
