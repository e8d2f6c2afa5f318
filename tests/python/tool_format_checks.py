"""Checks that hold for every tool format: reading what a template wrote, the grammar of a call, cuts at every byte.

A test of a format draws tools with `tools_with_arguments`, and passes the format and a `Vocabulary` to the checks.
"""

from __future__ import annotations

import codecs
import functools
import json
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import assume, currently_in_test_context
from hypothesis import strategies as st
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from bee_integrations.models.file import ModelFile
from bee_integrations.text.chat_template import ChatTemplate
from bee_integrations.text.tokenizer import Tokenizer
from bee_integrations.tools.template_ways import tool_variables
from bee_integrations.tools.tool_format import (
    CallArguments,
    CallBegin,
    CallBroken,
    CallEnd,
    Event,
    Reasoning,
    Text,
    Tool,
    ToolFormat,
)

REFERENCE = Path(__file__).resolve().parent.parent / "reference"
WEATHER = Tool(
    "get_weather",
    "The weather in a city.",
    {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
        "required": ["city"],
    },
)
NOW = Tool("now", "The time.", {})
needs_reference = pytest.mark.skipif(
    not (REFERENCE / "archive.sha256").is_file(), reason="needs third-party templates: run 'make reference'"
)

# What ends a text or a value in some format, for random walks that have become long.
_CLOSERS = (
    "\n</parameter>\n", '<|"|>', '"', "]", "}", "'", ")", "</parameter>", "</arg_value>", "</arg_value:opensource>",
    "</param>", "</set>", "</atem:parameter>", "</｜DSML｜parameter>", "<|close|>argument<|sep|>",
    *(f"]<]minimax[>[</{name}>" for name in ("a", "ab", "get_weather", "item")),
)  # fmt: skip


# ---- templates and vocabularies --------------------------------------------------------------------------------------


@functools.cache
def reference_template(name: str) -> ChatTemplate:
    """One of the real chat templates, by its file name without ".jinja"."""
    return ChatTemplate((REFERENCE / "templates" / f"{name}.jinja").read_text(encoding="utf-8"), "<s>", "</s>")


class Vocabulary:
    """The tokens of one model, as grammars see them."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.control = tokenizer.special_tokens
        self.pieces = [tokenizer.token_bytes(token) for token in range(tokenizer.n_vocab)]
        self.ids: dict[bytes, int] = {}
        for token, piece in enumerate(self.pieces):
            if token not in self.control.values():
                self.ids.setdefault(piece, token)
        self.guidance = LLTokenizer(TokenizerWrapper(_GuidanceView(self)))

    def literal(self, text: str) -> str:
        """A text as a Lark expression; control tokens in it become token references."""
        parts: list[str | int] = [text]
        for spelling, token in sorted(self.control.items(), key=lambda item: -len(item[0])):
            parts = [piece for part in parts for piece in _split(part, spelling, token)]
        return " ".join(f"<[{part}]>" if isinstance(part, int) else json.dumps(part) for part in parts if part != "")

    def encode(self, text: str) -> list[int]:
        """The tokens of a text in which control tokens are spelled out."""
        return self.tokenizer.encode(text, add_special=False)

    def writes(self, text: str) -> bool:
        """Whether the vocabulary has all the bytes that the text needs."""
        return self.decode(self.encode(text)) == text

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of tokens, control tokens spelled out."""
        return b"".join(map(self.spelling, tokens)).decode(errors="replace")

    def spelling(self, token: int) -> bytes:
        return self.pieces[token] or self.tokenizer.token_text(token).encode()


@functools.cache
def reference_vocabulary(name: str) -> Vocabulary:
    """One of the real vocabularies ("qwen2", "llama-bpe", ...)."""
    with ModelFile(REFERENCE / f"ggml-vocab-{name}.gguf") as file:
        return Vocabulary(Tokenizer.from_model_file(file))


@functools.cache
def model_vocabulary(path: Path) -> Vocabulary:
    """The vocabulary of a model file."""
    with ModelFile(path) as file:
        return Vocabulary(Tokenizer.from_model_file(file))


class _GuidanceView:
    """What llguidance asks of a tokenizer."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._encode = vocabulary.tokenizer.encode
        self.eos_token_id = vocabulary.tokenizer.eos_token_id
        self.bos_token_id = vocabulary.tokenizer.bos_token_id
        self.special_token_ids = sorted(vocabulary.control.values())
        self.tokens = [vocabulary.spelling(token) for token in range(vocabulary.tokenizer.n_vocab)]

    def __call__(self, text: str) -> list[int]:
        if not isinstance(text, str):  # llguidance tries bytes first, and then text
            raise TypeError("a text is expected")
        return self._encode(text, add_special=False, parse_special=False)


def _split(part: str | int, spelling: str, token: int) -> list[str | int]:
    if isinstance(part, int) or spelling not in part:
        return [part]
    pieces: list[str | int] = []
    for index, piece in enumerate(part.split(spelling)):
        pieces += [token, piece] if index else [piece]
    return pieces


# ---- tools and arguments ---------------------------------------------------------------------------------------------

FRAGMENTS = [
    '"', "\\", "\\n", "\n", "\r\n", "\t", "{", "}", "[", "]", "</tool_call>", "<tool_call>", "\n</tool_call>\n",
    "</parameter>", "<parameter=a>", "</function>", "<function=a>", '{"name": "a", "arguments": {}}', "[TOOL_CALLS]",
    "[ARGS]", "a", "é", "工具", "🐝", "\u2028", "\x00", "\x7f", "null", "None", "true", "1", ",", ": ", "'",
    "<", ">", "|",
]  # fmt: skip
NAMES = [
    "a", "ab", "name", "arguments", "parameters", "function", "tool_call", "get_weather", "get-weather", "a.b:c",
    "two words", "größe", "工具", "🐝", "</function", "a>b", "{x}", "1", "null", "=",
]  # fmt: skip
QUOTED_NAMES = ['"', 'a", "arguments": {}', "back\\slash", "tab\t", "\\u0041"]
"""Names that no template escapes when it renders a call, though a model under a grammar writes them properly."""


def texts() -> st.SearchStrategy[str]:
    """Texts full of what could be mistaken for syntax."""
    anything = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
    return st.lists(st.sampled_from(FRAGMENTS) | anything, max_size=6).map("".join)


@dataclass(frozen=True)
class Shape:
    """A schema and the values that it allows."""

    schema: dict[str, Any]
    values: st.SearchStrategy[Any]


@st.composite
def tools_with_arguments(
    draw: st.DrawFn, *, names: Sequence[str] = NAMES, forbidden: Sequence[str] = ()
) -> tuple[list[Tool], list[dict[str, Any]]]:
    """One to three tools, and valid arguments for each. No text in the arguments holds one of `forbidden`."""
    chosen = draw(st.lists(st.sampled_from(names), min_size=1, max_size=3, unique=True))
    tools, arguments = [], []
    for name in chosen:
        shape = draw(_objects(_texts_without(forbidden), names, depth=2))
        tools.append(Tool(name, f"does {name}", shape.schema))
        arguments.append(draw(shape.values))
    return tools, arguments


def _texts_without(forbidden: Sequence[str]) -> st.SearchStrategy[str]:
    return texts().filter(lambda text: not any(part in text for part in forbidden))


@st.composite
def _shapes(draw: st.DrawFn, text: st.SearchStrategy[str], names: Sequence[str], depth: int) -> Shape:
    kinds = ["string", "bounded", "enum", "integer", "number", "boolean", "const", "nullable"]
    kind = draw(st.sampled_from(kinds + (["array", "object", "union"] if depth else [])))
    if kind == "array":
        item = draw(_shapes(text, names, depth - 1))
        low = draw(st.integers(0, 2))
        schema = {"type": "array", "items": item.schema, "minItems": low, "maxItems": 3}
        return Shape(schema, st.lists(item.values, min_size=low, max_size=3))
    if kind == "object":
        return draw(_objects(text, names, depth - 1))
    if kind == "union":
        inner = draw(_objects(text, names, depth - 1))
        return Shape({"anyOf": [inner.schema, {"type": "boolean"}]}, inner.values | st.booleans())
    return draw(_leaves(text, kind))


@st.composite
def _leaves(draw: st.DrawFn, text: st.SearchStrategy[str], kind: str) -> Shape:
    if kind == "enum":
        members = draw(st.lists(text, min_size=1, max_size=3, unique=True))
        return Shape({"type": "string", "enum": members}, st.sampled_from(members))
    if kind == "bounded":
        return Shape({"type": "string", "minLength": 1, "maxLength": 4}, text.filter(lambda s: 1 <= len(s) <= 4))
    if kind == "nullable":
        # "null" as a text cannot be told from null where texts are written without quotes.
        other = text.filter(lambda s: s not in ("null", "None"))
        return Shape({"anyOf": [{"type": "string"}, {"type": "null"}]}, other | st.none())
    if kind == "integer":
        low = draw(st.integers(-20, 5))
        return Shape({"type": "integer", "minimum": low, "maximum": low + 30}, st.integers(low, low + 30))
    if kind == "const":
        value = draw(text | st.integers(-9, 9) | st.booleans())
        return Shape({"const": value}, st.just(value))
    if kind == "number":
        return Shape({"type": "number"}, st.floats(allow_nan=False, allow_infinity=False) | st.integers())
    return Shape({"type": "boolean"}, st.booleans()) if kind == "boolean" else Shape({"type": "string"}, text)


@st.composite
def _objects(draw: st.DrawFn, text: st.SearchStrategy[str], names: Sequence[str], depth: int) -> Shape:
    keys = draw(st.lists(st.sampled_from(names), max_size=3, unique=True))
    shapes = {key: draw(_shapes(text, names, depth)) for key in keys}
    required = [key for key in keys if draw(st.booleans())]
    schema = {
        "type": "object",
        "properties": {key: shape.schema for key, shape in shapes.items()},
        "required": required,
        "additionalProperties": False,
    }
    values = st.fixed_dictionaries(
        {key: shapes[key].values for key in required},
        optional={key: shape.values for key, shape in shapes.items() if key not in required},
    )
    # Grammars fix the order of keys to the schema's.
    return Shape(schema, values.map(lambda value: {key: value[key] for key in keys if key in value}))


# ---- reading ---------------------------------------------------------------------------------------------------------


@dataclass
class Answer:
    """What the events of one answer come to."""

    text: str = ""
    reasoning: str = ""
    calls: list[tuple[str, Any]] = field(default_factory=list)  # name and arguments of the complete ones
    broken: list[CallBroken] = field(default_factory=list)


def read(tool_format: ToolFormat, tools: Sequence[Tool], pieces: Iterable[str]) -> list[Event]:
    """The events of an answer that comes in these pieces."""
    reader = tool_format.reader(tools)
    events = [event for piece in pieces for event in reader.push(piece)]
    return events + reader.finish()


def answer(events: Sequence[Event]) -> Answer:
    """Checks the order of events on the way: every call begins, gets its arguments, and then ends or breaks."""
    result = Answer()
    names: dict[int, str] = {}
    arguments: dict[int, str] = {}
    over: set[int] = set()
    for event in events:
        if isinstance(event, Text):
            result.text += event.text
        elif isinstance(event, Reasoning):
            result.reasoning += event.text
        elif isinstance(event, CallBegin):
            assert event.index not in names
            assert event.index not in over
            names[event.index], arguments[event.index] = event.name, ""
        elif isinstance(event, CallArguments):
            assert event.index in names
            assert event.index not in over
            arguments[event.index] += event.json
        else:
            assert event.index not in over
            over.add(event.index)
            if isinstance(event, CallEnd):
                result.calls.append((names[event.index], json.loads(arguments[event.index])))
            else:
                result.broken.append(event)
    assert names.keys() <= over
    assert over == set(range(len(over)))
    return result


def merged(events: Sequence[Event]) -> list[Event]:
    """Events with pieces of the same text or arguments put together, and without what is drawn by chance."""
    result: list[Event] = []
    for event in events:
        last = result[-1] if result else None
        if isinstance(event, Text) and isinstance(last, Text):
            result[-1] = Text(last.text + event.text)
        elif isinstance(event, Reasoning) and isinstance(last, Reasoning):
            result[-1] = Reasoning(last.text + event.text)
        elif isinstance(event, CallArguments) and isinstance(last, CallArguments) and event.index == last.index:
            result[-1] = CallArguments(event.index, last.json + event.json)
        else:
            result.append(CallBegin(event.index, event.name, "") if isinstance(event, CallBegin) else event)
    return result


def check_cuts(tool_format: ToolFormat, tools: Sequence[Tool], text: str, *, every_pair: bool = True) -> list[Event]:
    """However a text is cut, it becomes the same events; returns them. `every_pair`: also cut once at each place."""
    whole = merged(read(tool_format, tools, [text]))
    assert merged(read(tool_format, tools, text)) == whole
    decoder = codecs.getincrementaldecoder("utf-8")()
    data = text.encode()
    assert merged(read(tool_format, tools, [decoder.decode(data[i : i + 1]) for i in range(len(data))])) == whole
    for cut in range(1, len(text)) if every_pair else ():
        assert merged(read(tool_format, tools, [text[:cut], text[cut:]])) == whole
    return whole


# ---- templates -------------------------------------------------------------------------------------------------------


def assistant_message(tools: Sequence[Tool], arguments: Sequence[dict[str, Any]], content: str = "") -> dict[str, Any]:
    """A message in OpenAI's form in which each tool is called once."""
    calls = [
        {"id": f"call{index:05}", "type": "function", "function": {"name": tool.name, "arguments": given}}
        for index, (tool, given) in enumerate(zip(tools, arguments, strict=True))
    ]
    return {"role": "assistant", "content": content, "tool_calls": calls}


def rendered(
    tool_format: ToolFormat,
    template: ChatTemplate,
    messages: Sequence[dict[str, Any]],
    tools: Sequence[Tool],
    **kw: Any,
) -> str:
    """The prompt, by way of the format."""
    prepared, shown = tool_format.prompt(messages, tools)
    return template.render(prepared, tools=shown, **{**tool_variables(template.source, shown), **kw})


def rendered_answer(
    tool_format: ToolFormat, template: ChatTemplate, message: dict[str, Any], tools: Sequence[Tool], end: str
) -> str:
    """What a template writes for an assistant's message after the generation prompt, up to the turn's `end`."""
    question = {"role": "user", "content": "?"}
    before = rendered(tool_format, template, [question], tools)
    after = rendered(tool_format, template, [question, message], tools, add_generation_prompt=False)
    if not after.startswith(before):  # the template begins an answer otherwise than it shows one
        before = rendered(tool_format, template, [question], tools, add_generation_prompt=False)
    assert after.startswith(before)
    written = after[len(before) :]
    return written[: written.rindex(end)]


def written_by_template(
    tool_format: ToolFormat, template: ChatTemplate, tools: Sequence[Tool], arguments: Sequence[dict[str, Any]]
) -> str:
    """What a template writes behind the question for calls, with whatever it puts around them."""
    question = {"role": "user", "content": "The question?"}
    messages = [question, assistant_message(tools, arguments)]
    whole = rendered(tool_format, template, messages, tools, add_generation_prompt=False)
    return whole[whole.rindex("The question?") + len("The question?") :]


# ---- grammars --------------------------------------------------------------------------------------------------------


def grammar(tool_format: ToolFormat, vocabulary: Vocabulary, tools: Sequence[Tool], *, parallel: bool = True) -> str:
    """The grammar of one call, from its trigger on."""
    rules = tool_format.call_rules(tools, vocabulary.literal, parallel=parallel)
    start = f"start: {tool_format.first_call(tools, vocabulary.literal)}\n{rules}"
    source: str = LLMatcher.grammar_from_lark(start)
    return source


def matcher(tool_format: ToolFormat, vocabulary: Vocabulary, tools: Sequence[Tool], **kw: Any) -> LLMatcher:
    made = LLMatcher(vocabulary.guidance, grammar(tool_format, vocabulary, tools, **kw))
    assert not made.is_error(), made.get_error()
    return made


def forced_matcher(
    tool_format: ToolFormat, vocabulary: Vocabulary, tools: Sequence[Tool], *, parallel: bool = True
) -> LLMatcher:
    """A matcher of answers that must be calls."""
    rules = tool_format.call_rules(tools, vocabulary.literal, parallel=parallel)
    source = f"start: {tool_format.first_call(tools, vocabulary.literal)}\n{rules}"
    made = LLMatcher(vocabulary.guidance, LLMatcher.grammar_from_lark(source))
    assert not made.is_error(), (made.get_error(), source)
    return made


def check_accepts_first(tool_format: ToolFormat, vocabulary: Vocabulary, tools: Sequence[Tool], text: str) -> None:
    """The grammar of an answer that must be calls accepts a text."""
    made = forced_matcher(tool_format, vocabulary, tools)
    begun = getattr(tool_format, "description", None)
    text = text.removeprefix(begun.prompt_end) if begun is not None else text
    tokens = vocabulary.encode(text)
    if currently_in_test_context():
        assume(vocabulary.writes(text) and "\x7f" not in text)
    count = made.try_consume_tokens(tokens)
    assert count == len(tokens), f"{vocabulary.decode(tokens[:count])!r} | {vocabulary.decode(tokens[count:])!r}"
    assert made.is_accepting(), text


def check_forced_walk(
    tool_format: ToolFormat, vocabulary: Vocabulary, tools: Sequence[Tool], seed: int, *, parallel: bool
) -> Answer:
    """What the grammar of a forced call allows is read as calls of these tools with valid arguments, and no text."""
    if currently_in_test_context():
        assume(all(vocabulary.writes(text) for tool in tools for text in _strings(tool.as_openai())))
    text = _walk(forced_matcher(tool_format, vocabulary, tools, parallel=parallel), vocabulary, seed, 40)
    result = answer(check_cuts(tool_format, tools, text, every_pair=False))
    assert not result.broken, (text, result.broken)
    assert result.calls, text
    assert not result.text.strip(), text
    check_arguments(tools, result.calls)
    return result


def accepts(
    tool_format: ToolFormat, vocabulary: Vocabulary, tools: Sequence[Tool], text: str, *, parallel: bool = True
) -> bool:
    """Whether a text, from the trigger to the end of the call, is a complete call of the grammar."""
    made = matcher(tool_format, vocabulary, tools, parallel=parallel)
    tokens = vocabulary.encode(text)
    return made.try_consume_tokens(tokens) == len(tokens) and bool(made.is_accepting())


def check_accepts(tool_format: ToolFormat, vocabulary: Vocabulary, tools: Sequence[Tool], text: str, **kw: Any) -> None:
    """The grammar accepts a text, from the trigger to the end of the call; else the message shows where it stops."""
    made = matcher(tool_format, vocabulary, tools, **kw)
    tokens = vocabulary.encode(text)
    if currently_in_test_context():  # small vocabularies lack some bytes, and llguidance wants U+007F escaped in JSON
        assume(vocabulary.writes(text) and "\x7f" not in text)
    count = made.try_consume_tokens(tokens)
    assert count == len(tokens), f"{vocabulary.decode(tokens[:count])!r} | {vocabulary.decode(tokens[count:])!r}"
    assert made.is_accepting(), text


def random_walk(
    tool_format: ToolFormat, vocabulary: Vocabulary, tools: Sequence[Tool], seed: int, *, free: int = 40, **kw: Any
) -> str:
    """A text that the grammar allows: `free` tokens by chance, then such as lead to an end."""
    return _walk(matcher(tool_format, vocabulary, tools, **kw), vocabulary, seed, free)


def _walk(made: LLMatcher, vocabulary: Vocabulary, seed: int, free: int) -> str:
    chance = random.Random(seed)
    closer = _Closing(vocabulary, chance)
    tokens: list[int] = []
    while not made.is_stopped() and not (made.is_accepting() and len(tokens) > free):
        assert len(tokens) < 2000, f"no end: {vocabulary.decode(tokens)!r}"
        allowed = _allowed(made, vocabulary)
        if not len(allowed):
            break
        closing = closer.token(frozenset(allowed.tolist())) if len(tokens) > free else None
        token = int(chance.choice(allowed)) if closing is None else closing
        assert made.consume_token(token), made.get_error()
        tokens.append(token)
    assert made.is_accepting() or made.stop_reason() == "NoExtension", made.stop_reason()
    return vocabulary.decode(tokens)


def check_random_walk(
    tool_format: ToolFormat, vocabulary: Vocabulary, tools: Sequence[Tool], seed: int, **kw: Any
) -> Answer:
    """What a grammar allows is read as calls of these tools with arguments that their schemas allow."""
    if currently_in_test_context():  # small vocabularies cannot write every member of an enum
        assume(all(vocabulary.writes(text) for tool in tools for text in _strings(tool.as_openai())))
    text = random_walk(tool_format, vocabulary, tools, seed, **kw)
    result = answer(check_cuts(tool_format, tools, text, every_pair=False))
    assert not result.broken, (text, result.broken)
    assert result.calls, text
    check_arguments(tools, result.calls)
    return result


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list)):
        for inner in [*value, *value.values()] if isinstance(value, dict) else value:
            yield from _strings(inner)


def check_arguments(tools: Sequence[Tool], calls: Sequence[tuple[str, Any]]) -> None:
    """Each call names a tool and validates against its schema."""
    schemas = {tool.name: tool.parameters for tool in tools}
    for name, arguments in calls:
        assert isinstance(arguments, dict)
        jsonschema.Draft202012Validator(dict(schemas[name])).validate(arguments)


def _allowed(made: LLMatcher, vocabulary: Vocabulary) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Ids of the tokens that may come next, without the one that ends the answer."""
    bits = np.unpackbits(np.frombuffer(made.compute_bitmask(), dtype=np.uint8), bitorder="little")
    allowed = np.flatnonzero(bits[: vocabulary.tokenizer.n_vocab])
    stops = [vocabulary.tokenizer.eos_token_id]
    return np.asarray(allowed[~np.isin(allowed, [stop for stop in stops if stop is not None])])


class _Closing:
    """Writes closing markers, one after the other as chance has it, as far as a grammar allows them."""

    def __init__(self, vocabulary: Vocabulary, chance: random.Random) -> None:
        self._vocabulary = vocabulary
        self._chance = chance
        self._rest = b""

    def token(self, allowed: frozenset[int]) -> int | None:
        """The next token towards a marker's end, or None where no marker goes on here."""
        order = self._chance.sample(_CLOSERS, len(_CLOSERS))
        for marker in [self._rest, *map(str.encode, order)]:
            token = self._vocabulary.control.get(marker.decode(errors="replace"), -1)
            if token in allowed:
                self._rest = b""
                return token
            for length in range(len(marker), 0, -1):
                token = self._vocabulary.ids.get(marker[:length], -1)
                if token in allowed:
                    self._rest = marker[length:]
                    return token
        self._rest = b""
        return None


def recognised_by(form: ToolFormat) -> list[str]:
    """The names of the reference templates that a format takes for its own."""
    templates = (REFERENCE / "templates").glob("*.jinja")
    return sorted(path.stem for path in templates if form.recognises(path.read_text(encoding="utf-8")))
