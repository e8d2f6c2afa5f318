"""Constrained generations, and those in phases, with real engines: always valid, the same with and without
speculation, and apart from requests beside them."""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import jsonschema
import pytest
from json_schemas import SCHEMAS, TEXT, WHOLE, an_object

from bee_integrations.chat.parameters import BeeParameters
from bee_integrations.chat.reasoning import ReasoningSpan
from bee_integrations.chat.request import ChatRequest, Reply, ToolUse
from bee_integrations.constraints import Choice, Constraint, Grammar, JsonSchema, Regex
from bee_integrations.constraints.phases import AnswerPhases, LazyGrammar, Thinking
from bee_integrations.engine import Completion, Engine, GenerationParams, Step
from bee_integrations.errors import ConstraintError
from bee_integrations.tools.tool_format import Tool, Trigger

FORMATS = jsonschema.FormatChecker(formats=["date", "ipv4", "ipv6", "uuid", "email"])
MODES = ("auto", "dflash", "copy")
TEMPERATURES = (0.0, 0.7, 1.5)
Job = tuple[str, GenerationParams]


def side_by_side(engine: Engine, jobs: Iterable[Job]) -> list[Completion]:
    """As many at once as the engine runs, which share their passes."""
    with ThreadPoolExecutor(int(engine.info["n_parallel"])) as pool:
        return list(pool.map(lambda job: engine.complete(*job), jobs))


def outcome(done: Completion) -> tuple[tuple[int, ...], str, str, bool]:
    return done.tokens, done.text, done.finish_reason, done.closed


def parsed(text: str, schema: Any) -> Any:
    """The value of a text, which must be valid."""
    value = json.loads(text)
    jsonschema.Draft202012Validator(schema, format_checker=FORMATS).validate(value)
    return value


def is_valid(text: str, schema: Any) -> bool:
    try:
        parsed(text, schema)
    except (json.JSONDecodeError, jsonschema.ValidationError):
        return False
    return True


def valid_as(constraint: Constraint) -> Callable[[str], bool]:
    patterns = {
        Regex: lambda regex: regex.pattern,
        Choice: lambda choice: "|".join(map(re.escape, choice.options)),
    }
    pattern = patterns[type(constraint)](constraint)
    return lambda text: re.fullmatch(pattern, text) is not None


# ---- schemas ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_every_answer_fits_its_schema(engine: Engine, temperature: float) -> None:
    """Two generations for each schema of the corpus, one of them with drafts: 540 in the three tests."""
    jobs: list[Job] = []
    for index, (name, schema) in enumerate(SCHEMAS.items()):
        plain = GenerationParams(
            temperature=temperature,
            seed=index,
            max_tokens=36,
            constraint=JsonSchema(schema),
            close_constraint=True,
            speculation="off",
        )
        mode = MODES[(index + TEMPERATURES.index(temperature)) % 3]
        length = (None, None, 2, 7)[index % 4]
        jobs += [(f"{name}:", plain), (f"{name}:", replace(plain, speculation=mode, draft_length=length))]
    done = side_by_side(engine, jobs)
    cut = drafted = forced = accepted = 0
    invalid: dict[str, str] = {}
    for (name, schema), plain_done, drafted_done in zip(SCHEMAS.items(), done[::2], done[1::2], strict=True):
        assert outcome(drafted_done) == outcome(plain_done), name
        if not is_valid(plain_done.text, schema):
            invalid[name] = plain_done.text
        cut += plain_done.closed
        stats = drafted_done.stats
        assert stats.logit_paths == {"reduced": 0, "masked": stats.cycles, "full": 0}
        assert plain_done.stats.forced_tokens == plain_done.stats.drafted_tokens == 0
        drafted += stats.drafted_tokens
        forced += stats.forced_tokens
        accepted += stats.accepted_tokens
    assert not invalid
    # The comparison means something only where drafts were right and wrong, and some answers were cut off.
    assert cut > 5
    assert 100 < forced <= accepted < drafted


@pytest.mark.parametrize(
    "name", ["object", "nested objects", "array of objects", "linked list", "string", "open object"]
)
def test_an_answer_that_is_cut_is_closed_on_request_alone(engine: Engine, name: str) -> None:
    params = GenerationParams(constraint=JsonSchema(SCHEMAS[name]), temperature=1.0, seed=3, max_tokens=4)
    for mode in ("off", *MODES):
        cut = engine.complete("JSON:", replace(params, speculation=mode))
        assert (cut.finish_reason, cut.closed, len(cut.tokens)) == ("length", False, 4)
        with pytest.raises(json.JSONDecodeError):
            json.loads(cut.text)
        closed = engine.complete("JSON:", replace(params, speculation=mode, close_constraint=True))
        assert (closed.finish_reason, closed.closed, closed.tokens) == ("length", True, cut.tokens)
        parsed(closed.text, SCHEMAS[name])
        assert closed.text.startswith(cut.text.rstrip("\ufffd"))


def test_a_character_that_is_cut_is_left_out_of_what_is_closed(engine: Engine) -> None:
    """The text before the closing is whole characters, whatever the tokens are."""
    schema = {"type": "string", "pattern": "^[\u4e00-\u9fff😀-😂]{3}$"}
    for max_tokens in range(1, 9):
        params = GenerationParams(
            constraint=JsonSchema(schema),
            temperature=1.5,
            seed=max_tokens,
            max_tokens=max_tokens,
            close_constraint=True,
        )
        done = engine.complete("三:", params)
        parsed(done.text, schema)
        assert done.finish_reason == "length" or not done.closed


def test_an_answer_that_may_end_where_it_is_cut_needs_no_closing(engine: Engine) -> None:
    params = GenerationParams(constraint=Regex("[0-9]+"), max_tokens=3, close_constraint=True)
    done = engine.complete("1 2 3 4", params)
    assert (done.finish_reason, done.closed, len(done.tokens)) == ("length", False, 3)
    assert done.text.isdecimal()


def test_stop_strings_in_a_constraint(engine: Engine) -> None:
    """A stop string ends the answer, and nothing is closed then: the caller asked for this end."""
    params = GenerationParams(constraint=JsonSchema(an_object(a=WHOLE, b=WHOLE)), stop=(",",), close_constraint=True)
    for mode in ("off", *MODES):
        done = engine.complete("JSON:", replace(params, speculation=mode))
        assert (done.finish_reason, done.stop_text, done.closed) == ("stop", ",", False)
        assert re.fullmatch(r'\{"a": [0-9]{1,3}', done.text)


# ---- other constraints -----------------------------------------------------------------------------------------------

ARITHMETIC = """
start: sum
sum: product (" + " product){0,3}
product: NUMBER | "(" sum ")"
NUMBER: /[1-9][0-9]{0,2}/
"""
MOVES = """
root ::= (move "\\n"){2,3}
move ::= [1-9] ". " ("e4" | "Nf3" | "O-O" | "d" [1-8]) check?
check ::= "+" | "#"
"""
PATTERNS: dict[str, tuple[Constraint, str | None]] = {
    "a plate": (Regex("[A-Z]{1,3}-[A-Z]{2} [1-9][0-9]{0,3}"), None),
    "lines": (Regex("(- [a-z]{2,9}\n){3}"), None),
    "an address": (Regex(r"[a-z]{3,8}@[a-z]{3,8}\.(com|org)"), None),
    "yes or no": (Choice(("yes", "no", "not yet", "nobody knows")), None),
    "a sentence": (Choice(("It is certain.", "It is certain, but for one thing.", "北京", "It isn't.")), None),
    "lark": (Grammar(ARITHMETIC), r"[0-9+() ]+"),
    "gbnf": (Grammar(MOVES, "gbnf"), r"([1-9]\. (e4|Nf3|O-O|d[1-8])[+#]?\n){2,3}"),
}


def test_other_constraints(engine: Engine) -> None:
    jobs: list[Job] = []
    for name, (constraint, _) in PATTERNS.items():
        for seed, temperature in enumerate(TEMPERATURES):
            params = GenerationParams(
                temperature=temperature, seed=seed, max_tokens=40, constraint=constraint, close_constraint=True
            )
            jobs += [(f"{name}:\n", replace(params, speculation=mode)) for mode in ("off", *MODES)]
    done = side_by_side(engine, jobs)
    for index, (name, (constraint, pattern)) in enumerate(PATTERNS.items()):
        some = done[12 * index : 12 * index + 12]
        for plain, *others in (some[:4], some[4:8], some[8:]):
            assert [outcome(other) for other in others] == [outcome(plain)] * 3
            valid = (
                valid_as(constraint) if pattern is None else lambda text, p=pattern: re.fullmatch(p, text) is not None
            )
            assert valid(plain.text), (name, plain.text)
        if name == "lark":
            assert all(eval(one.text) >= 1 for one in some)
    assert sum(one.stats.forced_tokens for one in done) > 100


def test_grammars_that_admit_one_text_are_said_in_few_passes(engine: Engine) -> None:
    text = "This is the only answer there is, and it goes on for a while, so that it is more than a block of drafts."
    params = GenerationParams(constraint=Choice((text,)), temperature=1.5, seed=1)
    for mode in ("off", *MODES):
        done = engine.complete("Say it: ", replace(params, speculation=mode))
        assert (done.text, done.finish_reason) == (text, "stop")
        if mode == "off":
            assert done.stats.cycles >= len(done.tokens) - 1
        else:
            assert done.stats.forced_tokens > len(done.tokens) / 2
            assert done.stats.cycles < len(done.tokens) / 2


def test_a_constraint_that_admits_the_empty_text_alone(engine: Engine) -> None:
    done = engine.complete("Say nothing: ", GenerationParams(constraint=Regex("")))
    assert (done.text, done.finish_reason, done.closed) == ("", "stop", False)


# ---- the tiny model: many random requests ----------------------------------------------------------------------------

TINY_CONSTRAINTS: tuple[Constraint | None, ...] = (
    None,
    JsonSchema(SCHEMAS["tree"]),
    JsonSchema(SCHEMAS["string"]),
    JsonSchema(SCHEMAS["enum of unicode"]),
    JsonSchema(SCHEMAS["unicode keys"]),
    Regex("(ab|ba|b{2,5}){5,30}"),
    Regex("[a-zäöü€ ]{1,80}!"),
    Grammar('start: "(" start? ")" start?'),
    Choice(("abab", "ababab", "no")),
)


def random_params(draw: random.Random) -> GenerationParams:
    constraint = draw.choice(TINY_CONSTRAINTS)
    return GenerationParams(
        temperature=draw.choice([0.0, 0.7, 1.5]),
        top_k=draw.choice([0, 0, 5, 40]),
        top_p=draw.choice([1.0, 1.0, 0.8]),
        min_p=draw.choice([0.0, 0.0, 0.1]),
        seed=draw.getrandbits(64),
        max_tokens=draw.choice([1, 2, 9, 40, 90]),
        repetition_penalty=draw.choice([1.0, 1.0, 1.3, 0.8]),
        frequency_penalty=draw.choice([0.0, 0.0, 0.5]),
        presence_penalty=draw.choice([0.0, 0.0, -0.5]),
        penalty_window=draw.choice([0, 3, 64, -1]),
        logit_bias=draw.choice([{}, {}, {97: 5.0, 98: -1000.0}, dict.fromkeys(range(40, 60), 2.5)]),
        logprobs=draw.random() < 0.3,
        constraint=constraint,
        close_constraint=draw.random() < 0.5,
        speculation="off",
    )


def test_random_requests_come_to_the_same_with_and_without_speculation(tiny: Engine) -> None:
    draw = random.Random(4)
    jobs: list[Job] = []
    for _ in range(120):
        size = draw.choice([1, 20, 128, 300, tiny.n_ctx - 30])
        prompt = "".join(draw.choice('ab() {}"äx,') for _ in range(size))[:size]
        plain = random_params(draw)
        drafted = [
            replace(plain, speculation=draw.choice(MODES), draft_length=draw.choice([None, 1, 3, 7])) for _ in range(2)
        ]
        if len(tiny.encode_prompt(prompt)) < tiny.n_ctx:
            jobs += [(prompt, params) for params in (plain, *drafted)]
    done = side_by_side(tiny, jobs)
    drafted_tokens = accepted = 0
    for index in range(0, len(jobs), 3):
        first, *others = done[index : index + 3]
        for other in others:
            assert (outcome(other), other.logprobs) == (outcome(first), first.logprobs), jobs[index]
            drafted_tokens += other.stats.drafted_tokens
            accepted += other.stats.accepted_tokens
        check_paths(jobs[index][1], first)
    assert len(jobs) > 250
    assert 200 < accepted < drafted_tokens


def check_paths(params: GenerationParams, done: Completion) -> None:
    """The cheapest path that is exact, and masks as long as there is a constraint."""
    penalises = params.penalty_window != 0 and (
        params.repetition_penalty != 1 or params.frequency_penalty != 0 or params.presence_penalty != 0
    )
    full = params.logprobs or bool(params.logit_bias) or penalises
    path = "full" if full else "masked" if params.constraint is not None else "reduced"
    assert done.stats.logit_paths == {"reduced": 0, "masked": 0, "full": 0} | {path: done.stats.cycles}


# ---- calls -----------------------------------------------------------------------------------------------------------

UNITS = ["celsius", "fahrenheit"]
WEATHER = Tool("get_weather", "Current weather in a city", an_object(city=TEXT, unit={"enum": UNITS}))
ADD = Tool("add", "The sum of two numbers", an_object(a=WHOLE, b=WHOLE))
TOOLS = (WEATHER, ADD)
QUESTIONS = ("What is the weather in Paris?", "What is 12 plus 30?", "Tell me a joke.")

# A template that shows the last message alone: a pattern, which the model goes on with, so that it calls by itself.
BARE = "{{ messages[-1].content }}"
SHOTS = "".join(
    f'Q: {city}? A: Let me look. <tool_call>\n{{"name": "get_weather", "arguments": {{"city": "{city}", '
    f'"unit": "celsius"}}}}\n</tool_call>\n'
    for city in ("Oslo", "Rome", "Lima")
)


def chat(engine: Engine, question: str, choice: str, **parameters: Any) -> ChatRequest:
    use = ToolUse(TOOLS, choice)
    return ChatRequest.of_chat(engine, BeeParameters(**parameters), [{"role": "user", "content": question}], use)


@dataclass(frozen=True)
class Told:
    """What a chat came to, without what differs each time."""

    text: str
    calls: tuple[tuple[str, str], ...]
    broken: int
    finish_reason: str
    tokens: tuple[int, ...]

    @classmethod
    def of(cls, request: ChatRequest) -> tuple[Told, Reply]:
        reply = Reply()
        tokens: list[int] = []
        for piece in request.pieces():
            reply.add(piece)
            tokens += piece.step.tokens
        calls = tuple((call.name, call.arguments) for call in reply.calls.values())
        return cls(reply.text, calls, len(reply.broken), reply.finish_reason, tuple(tokens)), reply


def told(requests: Sequence[ChatRequest]) -> list[tuple[Told, Reply]]:
    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(Told.of, requests))


@pytest.mark.parametrize("choice", ["any", "required", "get_weather", "add"])
def test_demanded_calls(engine: Engine, choice: str) -> None:
    requests = [
        chat(engine, question, choice, temperature=temperature, seed=seed, max_tokens=60, speculation=mode)
        for question in QUESTIONS[:2]
        for seed, temperature in enumerate(TEMPERATURES)
        for mode in ("off", *MODES)
    ]
    done = told(requests)
    by_name = {tool.name: tool for tool in TOOLS}
    for index in range(0, len(done), 4):
        (plain, first), *others = done[index : index + 4]
        assert [other for other, _ in others] == [plain] * 3
        assert (plain.text, plain.broken, plain.finish_reason, len(plain.calls)) == ("", 0, "tool_calls", 1)
        name, arguments = plain.calls[0]
        assert choice in ("any", "required", name)
        parsed(arguments, by_name[name].parameters)
        assert first.last.stats is not None
        assert first.last.stats.forced_tokens == 0
        for _, reply in others:
            stats = reply.last.stats
            assert stats is not None
            assert stats.logit_paths == {"reduced": 0, "masked": stats.cycles, "full": 0}
            assert 10 < stats.forced_tokens <= stats.drafted_tokens
            assert stats.cycles < first.last.stats.cycles


def test_calls_that_the_model_begins(engine: Engine) -> None:
    """The grammar starts with the trigger: masks and forced tokens belong to the call alone, text before it is kept."""
    requests = [
        chat(engine, SHOTS + "Q: Paris? A:", "auto", chat_template=BARE, temperature=temperature, seed=seed,
             max_tokens=60, speculation=mode)
        for seed, temperature in ((0, 0.0), (1, 0.3), (2, 0.6))
        for mode in ("off", *MODES)
    ]  # fmt: skip
    done = told(requests)
    called = 0
    for index in range(0, len(done), 4):
        (plain, _), *others = done[index : index + 4]
        assert [other for other, _ in others] == [plain] * 3
        assert not plain.broken
        if not plain.calls:
            continue
        called += 1
        assert plain.finish_reason == "tool_calls"
        assert plain.text.strip()
        parsed(plain.calls[0][1], {tool.name: tool.parameters for tool in TOOLS}[plain.calls[0][0]])
        for _, reply in others:
            stats = reply.last.stats
            assert stats is not None
            assert 0 < stats.logit_paths["masked"] < stats.cycles
            assert stats.logit_paths["reduced"] == stats.cycles - stats.logit_paths["masked"]
            assert stats.forced_tokens > 0
    assert called >= 2


@pytest.mark.parametrize("choice", ["auto", "none"])
def test_tools_that_are_not_called(engine: Engine, choice: str) -> None:
    """A grammar that lies in wait costs no mask, and the text is that of the same prompt without steering."""
    steered = [
        chat(engine, question, choice, temperature=temperature, seed=7, max_tokens=30, speculation=mode)
        for question in QUESTIONS
        for temperature in TEMPERATURES
        for mode in ("off", "auto")
    ]
    assert all((request.phases is not None) == (choice == "auto") for request in steered)
    done = told(steered + [replace(request, phases=None, format=None) for request in steered])
    free = 0
    for (with_tools, reply), (without, _) in zip(done[: len(steered)], done[len(steered) :], strict=True):
        if with_tools.calls or with_tools.broken:
            continue
        free += 1
        assert with_tools == without
        assert reply.last.stats is not None
        assert reply.last.stats.logit_paths == {"reduced": reply.last.stats.cycles, "masked": 0, "full": 0}
        assert reply.last.stats.forced_tokens == 0
    assert free > 12
    for index in range(0, len(steered), 2):
        assert done[index][0] == done[index + 1][0]


def test_a_call_that_is_cut_off_is_no_call(engine: Engine) -> None:
    for max_tokens in (1, 5, 12, 20):
        cut, _ = Told.of(chat(engine, QUESTIONS[0], "any", max_tokens=max_tokens))
        assert (cut.calls, cut.finish_reason) == ((), "length")
        closed, reply = Told.of(chat(engine, QUESTIONS[0], "any", max_tokens=max_tokens, close_constraint=True))
        assert (len(closed.calls), closed.broken, closed.finish_reason) == (1, 0, "length")
        assert reply.last.closed
        assert closed.tokens == cut.tokens
        parsed(closed.calls[0][1], {tool.name: tool.parameters for tool in TOOLS}[closed.calls[0][0]])


def test_a_value_or_a_call(engine: Engine) -> None:
    """With tools on "auto" and a schema, the answer is the one or the other."""
    schema = an_object(answer=WHOLE)
    asked = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    requests = [
        chat(engine, question, "auto", response_format=asked, temperature=temperature, seed=2, max_tokens=60,
             speculation=mode)
        for question in QUESTIONS
        for temperature in (0.0, 1.5)
        for mode in ("off", "auto")
    ]  # fmt: skip
    done = [one for one, _ in told(requests)]
    assert done[::2] == done[1::2]
    for one in done:
        assert not one.broken
        if one.calls:
            assert (one.text, one.finish_reason) == ("", "tool_calls")
            parsed(one.calls[0][1], {tool.name: tool.parameters for tool in TOOLS}[one.calls[0][0]])
        else:
            parsed(one.text, schema)


# ---- lazy grammars and thinking, by plan -----------------------------------------------------------------------------

COLOURS = LazyGrammar(
    (Trigger("call:", "rest"),), 'rest: " " ("red" | "green" | "blue") " is a colour that was asked for."'
)
PATTERN = "Q: red? A: Sure, here it is. call: red it is.\nQ: green? A: Sure, here it is. call: green it is.\nQ: red? A:"


def test_a_lazy_grammar(engine: Engine) -> None:
    triggered = 0
    for seed, temperature in enumerate((0.0, 0.5, 0.5, 0.8)):
        params = GenerationParams(temperature=temperature, seed=seed, max_tokens=40, speculation="off")
        plain = engine.complete(PATTERN, params, phases=AnswerPhases(lazy=COLOURS))
        free = engine.complete(PATTERN, params)
        before, trigger, rest = plain.text.partition("call:")
        assert free.text.startswith(before + trigger)
        if trigger:
            triggered += 1
            assert re.fullmatch(r" (red|green|blue) is a colour that was asked for\.", rest)
            assert plain.finish_reason == "stop"
        for mode in MODES:
            done = engine.complete(PATTERN, replace(params, speculation=mode), phases=AnswerPhases(lazy=COLOURS))
            assert outcome(done) == outcome(plain)
            if trigger:
                assert done.stats.forced_tokens > 3
                assert 0 < done.stats.logit_paths["masked"] < plain.stats.logit_paths["masked"]
    assert triggered >= 2


THINK = ReasoningSpan("<think>", "</think>")


@pytest.mark.parametrize("opened", [True, False])
def test_thinking_then_a_value(engine: Engine, opened: bool) -> None:
    schema = an_object(city=TEXT, sure={"type": "boolean"})
    grammar = engine.grammars.compile(JsonSchema(schema))
    plan = AnswerPhases(grammar=grammar, thinking=Thinking(THINK, opened, demanded=True, budget=8))
    prompt = engine.render_chat([{"role": "user", "content": "Is Paris a large city?"}]) + ("<think>" if opened else "")
    for temperature in TEMPERATURES:
        params = GenerationParams(temperature=temperature, seed=5, max_tokens=60, speculation="off")
        plain = engine.complete(prompt, params, phases=plan)
        begin, thought, answer = re.split("<think>|</think>", "<think>" * opened + plain.text, maxsplit=2)
        assert begin == ""
        assert thought
        parsed(answer, schema)
        for mode in MODES:
            done = engine.complete(prompt, replace(params, speculation=mode), phases=plan)
            assert outcome(done) == outcome(plain)
            assert done.stats.reasoning_tokens == plain.stats.reasoning_tokens
            assert done.stats.logit_paths["reduced"] > 0
            assert done.stats.logit_paths["masked"] > 0


def test_a_model_that_ends_while_it_thinks_still_gives_the_value(engine: Engine) -> None:
    """A stop token within the thinking does not get around the grammar that follows."""
    grammar = engine.grammars.compile(JsonSchema(WHOLE))
    plan = AnswerPhases(grammar=grammar, thinking=Thinking(THINK, opened=True))
    stops = dict.fromkeys(engine.tokenizer.stop_token_ids, 1000.0)
    params = GenerationParams(max_tokens=30, logit_bias=stops)
    done = engine.complete("Think first. <think>", params, phases=plan)
    parsed(done.text.partition("</think>")[2], WHOLE)


def test_reasoning_of_a_chat(engine: Engine) -> None:
    asked = {"type": "json_schema", "json_schema": {"name": "answer", "schema": an_object(answer=WHOLE)}}
    parameters = BeeParameters(reasoning_span="<think>", reasoning_budget=6, response_format=asked, max_tokens=40)
    request = ChatRequest.of_chat(engine, parameters, [{"role": "user", "content": QUESTIONS[1]}])
    plain, reply = Told.of(replace(request, params=replace(request.params, speculation="off")))
    assert reply.reasoning
    assert "think>" not in reply.reasoning + reply.text
    parsed(reply.text, an_object(answer=WHOLE))
    assert reply.last.stats is not None
    assert reply.last.stats.reasoning_tokens >= 6
    for mode in MODES:
        again, other = Told.of(replace(request, params=replace(request.params, speculation=mode)))
        assert (again, other.reasoning) == (plain, reply.reasoning)


# ---- with what takes the full path -----------------------------------------------------------------------------------

OBJECT = JsonSchema(an_object(name=TEXT, size={"enum": ["small", "large", "huge"]}, n=WHOLE))


@pytest.mark.parametrize("constraint", [None, OBJECT], ids=["free", "constrained"])
def test_log_probabilities_change_nothing(engine: Engine, constraint: Constraint | None) -> None:
    for seed, temperature in enumerate(TEMPERATURES):
        params = GenerationParams(temperature=temperature, seed=seed, max_tokens=24, constraint=constraint)
        bare = engine.complete("A thing: ", replace(params, speculation="off"))
        asked = [
            engine.complete("A thing: ", replace(params, speculation=mode, logprobs=True, top_logprobs=3))
            for mode in ("off", *MODES)
        ]
        for done in asked:
            assert outcome(done) == outcome(bare)
            assert done.logprobs == asked[0].logprobs
            assert [logprob.token for logprob in done.logprobs] == list(done.tokens)
            assert done.stats.logit_paths["full"] == done.stats.cycles


def test_penalties_and_biases_under_a_constraint(engine: Engine) -> None:
    changes: dict[str, dict[str, Any]] = {
        "repetition": {"repetition_penalty": 1.4},
        "frequency": {"frequency_penalty": 0.8, "penalty_window": -1},
        "presence": {"presence_penalty": 1.5, "penalty_window": 5},
        "biases": {"logit_bias": dict.fromkeys(engine.encode_prompt("0123456789"), 4.0)},
        "all": {"repetition_penalty": 1.2, "frequency_penalty": 0.3, "logit_bias": {30: -4.0}, "logprobs": True},
    }
    words = Regex("[a-z]{1,9}( [a-z0-9]{1,9}){6}")
    free = GenerationParams(temperature=0.7, seed=1, max_tokens=30, constraint=words, close_constraint=True)
    jobs = [
        ("big and big and big and", replace(free, speculation=mode, **change))
        for change in ({}, *changes.values())
        for mode in ("off", *MODES)
    ]
    done = side_by_side(engine, jobs)
    texts = set()
    for index in range(0, len(jobs), 4):
        plain, *others = done[index : index + 4]
        assert [outcome(other) for other in others] == [outcome(plain)] * 3
        assert valid_as(words)(plain.text)
        assert plain.stats.logit_paths["full"] == (plain.stats.cycles if index else 0)
        texts.add(plain.text)
    assert len(texts) > 3  # they have their effect


def test_no_bias_gets_around_a_constraint(engine: Engine) -> None:
    wanted = engine.tokenizer.encode(" no", add_special=False)
    for mode in ("off", *MODES):
        done = engine.complete(
            "Well?",
            GenerationParams(constraint=Choice(("yes", "yes, yes")), logit_bias={wanted[0]: 1000.0}, speculation=mode),
        )
        assert done.text in ("yes", "yes, yes")
    choice = GenerationParams(constraint=Choice(("yes", "no")))
    for word, other in (("yes", "no"), ("no", "yes")):
        against = [
            token for token in range(engine.info["n_vocab"]) if engine.tokenizer.token_bytes(token) == word[:1].encode()
        ]
        against += engine.tokenizer.encode(word, add_special=False)
        assert engine.complete("Well?", replace(choice, logit_bias=dict.fromkeys(against, -1000.0))).text == other


# ---- side by side, cancelled, failing --------------------------------------------------------------------------------


def test_constrained_and_free_requests_side_by_side(engine: Engine) -> None:
    constraints = [None, OBJECT, Regex("[0-9a-f]{20,30}"), None, Choice(("red", "green")), JsonSchema(SCHEMAS["tree"])]
    jobs: list[Job] = [
        (f"Number {index}:" + " and so on" * (index % 3), GenerationParams(
            temperature=TEMPERATURES[index % 3], seed=index, max_tokens=10 + 3 * (index % 5),
            constraint=constraints[index % 6], close_constraint=True, speculation=("off", *MODES)[index % 4],
            logprobs=index % 5 == 0, presence_penalty=0.5 * (index % 7 == 0)))
        for index in range(24)
    ]  # fmt: skip
    alone = [engine.complete(*job) for job in jobs]
    together = side_by_side(engine, jobs)
    assert [outcome(done) for done in together] == [outcome(done) for done in alone]
    assert [done.logprobs for done in together] == [done.logprobs for done in alone]


LONG = GenerationParams(constraint=Regex("[a-z ]{400,500}"), temperature=1.0, seed=1)


def test_a_constrained_generation_is_cancelled(engine: Engine) -> None:
    expected = engine.complete("Ok: ", GenerationParams(constraint=OBJECT))
    with closing(engine.generate("Letters: ", LONG)) as steps:
        some = "".join(step.text for step in islice(steps, 4))
    assert some
    assert set(some) <= set("abcdefghijklmnopqrstuvwxyz ")
    assert outcome(engine.complete("Ok: ", GenerationParams(constraint=OBJECT))) == outcome(expected)
    again = engine.complete("Letters: ", replace(LONG, max_tokens=12))
    assert again.text.startswith(some) or some.startswith(again.text)


async def test_the_task_around_a_constrained_generation_is_cancelled(engine: Engine) -> None:
    begun = asyncio.Event()

    async def read() -> None:
        async for step in engine.agenerate("Letters: ", LONG):
            if step.tokens:
                begun.set()

    task = asyncio.create_task(read())
    await asyncio.wait_for(begun.wait(), 60)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    done = await asyncio.to_thread(engine.complete, "Ok: ", GenerationParams(constraint=OBJECT, max_tokens=5))
    assert done.tokens


def ambiguous(n_ways: int) -> Grammar:
    """Each further "x" may be read in more ways than the last, until there are too many."""
    ways = "\n".join(f'way_{index}: xs? "x" xs?' for index in range(n_ways))
    choices = " | ".join(f"xs way_{index}" for index in range(n_ways))
    return Grammar(f'start: xs\nxs: "x" | {choices}\n{ways}')


@pytest.mark.parametrize("mode", ["off", "auto"])
def test_a_grammar_that_becomes_too_large_for_its_engine(engine: Engine, mode: str) -> None:
    expected = engine.complete("Ok: ", GenerationParams(constraint=OBJECT))
    grammar = ambiguous(20)
    engine.grammars.compile(grammar)  # nothing is wrong with it so far
    on_and_on = dict.fromkeys(engine.tokenizer.stop_token_ids, -1000.0)
    params = GenerationParams(constraint=grammar, logit_bias=on_and_on, speculation=mode, max_tokens=200)
    with ThreadPoolExecutor(1) as pool, closing(engine.generate("x x x x", params)) as steps:
        beside = pool.submit(engine.complete, "Ok: ", GenerationParams(constraint=OBJECT))
        said: list[Step] = []
        with pytest.raises(ConstraintError, match="too large for the grammar engine"):
            said.extend(steps)
        assert {step.finish_reason for step in said} == {None}
        assert set("".join(step.text for step in said)) == {"x"}
        assert outcome(beside.result()) == outcome(expected)
    assert outcome(engine.complete("Ok: ", GenerationParams(constraint=OBJECT))) == outcome(expected)


def test_max_tokens_in_a_constraint_says_length(engine: Engine) -> None:
    for mode in ("off", *MODES):
        for max_tokens in (1, 3, 6):
            done = engine.complete(
                "A thing: ", GenerationParams(constraint=OBJECT, max_tokens=max_tokens, speculation=mode)
            )
            assert (done.finish_reason, done.closed, len(done.tokens)) == ("length", False, max_tokens)
            assert '{"name": "'.startswith(done.text[:10])


def test_a_full_context_in_a_constraint_says_length(tiny: Engine) -> None:
    prompt = "x" * (tiny.n_ctx - 6)
    for close in (False, True):
        params = GenerationParams(constraint=JsonSchema(SCHEMAS["unicode keys"]), close_constraint=close)
        done = tiny.complete(prompt, params)
        assert (done.finish_reason, done.closed) == ("length", close)
        assert len(done.tokens) <= 6
        if close:
            parsed(done.text, SCHEMAS["unicode keys"])
