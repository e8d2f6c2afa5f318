"""Arguments as people write them: names and values of other libraries, None, and names that are none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from bee_integrations.chat.parameters import BeeParameters, stored_constraint
from bee_integrations.constraints import Choice, Grammar, JsonSchema, Regex
from bee_integrations.engine import Engine
from bee_integrations.errors import ParameterError
from bee_integrations.langchain import BeeLLM, ChatBee
from bee_integrations.llama_index import Bee

NOWHERE = "nowhere.gguf"  # arguments load nothing
CLASSES: list[type[Any]] = [ChatBee, BeeLLM, Bee]


class City(BaseModel):
    """Somewhere."""

    population: int


SCHEMA = City.model_json_schema()
CLOSED = {**SCHEMA, "additionalProperties": False}
OPENAI = {"type": "json_schema", "json_schema": {"name": "City", "schema": CLOSED}}

TRANSLATED: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"num_predict": -1}, {"max_tokens": None}),
    ({"num_predict": -2}, {"max_tokens": None}),
    ({"n_predict": -1}, {"max_tokens": None}),
    ({"num_predict": 7}, {"max_tokens": 7}),
    ({"max_tokens": -1}, {"max_tokens": None}),
    ({"max_completion_tokens": 5}, {"max_tokens": 5}),
    ({"max_output_tokens": 5}, {"max_tokens": 5}),
    ({"top_k": -1}, {"top_k": 0}),
    ({"seed": -1}, {"seed": None}),
    ({"n_ctx": 0}, {"n_ctx": 0}),
    ({"context_window": -1}, {"n_ctx": 0}),
    ({"n_threads": 0}, {"threads": None}),
    ({"num_thread": -1}, {"threads": None}),
    ({"request_timeout": 3.0}, {"timeout": 3.0}),
    ({"repeat_last_n": 0}, {"penalty_window": 0}),
    ({"n_gpu_layers": 0}, {"device": "cpu"}),
    ({"n_gpu_layers": -1}, {"device": "auto"}),
    ({"num_gpu": 99, "device": "cuda"}, {"device": "cuda"}),
    ({"reasoning": False}, {"enable_thinking": False}),
    ({"think": True}, {"enable_thinking": True}),
    ({"reasoning": "low"}, {"reasoning_effort": "low", "enable_thinking": None}),
    ({"reasoning": {"effort": "high", "summary": "auto"}}, {"reasoning_effort": "high"}),
    (
        {"thinking": {"type": "enabled", "budget_tokens": 99}},
        {"enable_thinking": True, "reasoning_budget": 99},
    ),
    ({"thinking": {"type": "disabled"}}, {"enable_thinking": False}),
    ({"logprobs": 3}, {"logprobs": True, "top_logprobs": 3}),
    ({"logprobs": True, "top_logprobs": 2}, {"logprobs": True, "top_logprobs": 2}),
    ({"format": "json"}, {"response_format": {"type": "json_object"}}),
    ({"format": ""}, {"response_format": None}),
    ({"format": SCHEMA}, {"response_format": OPENAI}),
    ({"json_mode": True}, {"response_format": {"type": "json_object"}}),
    ({"grammar": 'root ::= "a"'}, {"constraint": Grammar('root ::= "a"', "gbnf")}),
    ({"json_schema": SCHEMA}, {"constraint": JsonSchema(SCHEMA)}),
    ({"model_kwargs": {"num_predict": 4, "options": {"top_k": -1}}}, {"max_tokens": 4, "top_k": 0}),
    ({"additional_kwargs": {"temperature": 0.5}}, {"temperature": 0.5}),
    ({"max_tokens": 5, "num_predict": 5}, {"max_tokens": 5}),
]


@pytest.mark.parametrize(("given", "expected"), TRANSLATED)
def test_other_libraries_words(given: dict[str, Any], expected: dict[str, Any]) -> None:
    for kind in CLASSES:
        made = kind(model=NOWHERE, **given)
        assert {name: getattr(made, name) for name in expected} == expected
        called = kind(model=NOWHERE).for_call(None, given)
        assert {name: getattr(called, name) for name in expected} == expected


@pytest.mark.parametrize(
    "given",
    [
        {"n_batch": 512, "n_ubatch": 512, "use_mmap": True, "use_mlock": False, "f16_kv": True, "num_keep": 4},
        {"keep_alive": "5m", "validate_model_on_init": True, "stream_usage": True, "streaming": True},
        {"verbose": False, "api_key": "x", "max_retries": 2, "user": "me"},
        {"n": 1, "best_of": 1, "mirostat": 0, "tfs_z": 1.0, "typical_p": 1.0, "echo": False, "suffix": ""},
        {
            "base_url": None,
            "grammar": None,
            "format": None,
            "reasoning": None,
            "model_kwargs": {},
            "n_gpu_layers": None,
        },
    ],
)
def test_what_changes_no_answer_is_taken(given: dict[str, Any]) -> None:
    plain = BeeParameters(model=NOWHERE)
    assert BeeParameters(model=NOWHERE, **given).parameters() == plain.parameters()
    for kind in CLASSES:
        assert kind(model=NOWHERE).for_call(None, given).parameters() == plain.parameters()


def test_none_is_the_default_of_every_argument() -> None:
    default = BeeParameters()
    for name, field in BeeParameters.model_fields.items():
        made = getattr(BeeParameters(**{name: None}), name)
        # Where None is a value of its own, it is that one.
        assert made in (None, field.default)
        if name not in ("drafter", "reasoning_span"):
            assert made == getattr(default, name), name
    sampling = {"temperature": 0.7, "top_k": 5, "top_p": 0.5, "min_p": 0.1, "repetition_penalty": 1.2, "logprobs": True}
    for kind in CLASSES:
        llm = kind(model=NOWHERE, **sampling)
        called = llm.for_call(None, dict.fromkeys([*sampling, "repeat_penalty", "seed", "max_tokens", "stop"]))
        assert {name: getattr(called, name) for name in sampling} == {n: getattr(default, n) for n in sampling}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"base_url": "http://x"}, "'base_url': .*in this process"),
        ({"n": 3}, "one answer; use batch"),
        ({"mirostat": 2}, "'mirostat': use temperature"),
        ({"lora_path": "a.gguf"}, "merge the adapter"),
        ({"chat_format": "chatml"}, "chat_template="),
        ({"grammar": 5}, "grammar is a int; give the text of the grammar in GBNF"),
        ({"n_gpu_layers": "all"}, "n_gpu_layers is 'all'.*device="),
        ({"n_gpu_layers": 0, "device": "cuda"}, "'device' is given twice"),
        ({"model_kwargs": 5}, "model_kwargs is 5; it must be a dictionary"),
        ({"reasoning": 5}, "reasoning is 5; expected True or False"),
        ({"num_predict": 0}, "max_tokens is 0"),
        ({"num_predict": -3}, "max_tokens is -3"),
        ({"temprature": 1.0}, "did you mean 'temperature'"),
        ({"temp": 1.0}, "did you mean 'temperature'"),
        ({"maxTokens": 1}, "did you mean 'max_tokens'"),
        ({"top-p": 1}, "did you mean 'top_p'"),
        ({"context_length": 5}, "did you mean 'n_ctx'"),
        ({"num_threads": 5}, "did you mean 'threads'"),
        ({"gpu_layers": 5}, "did you mean 'device'"),
        ({"stop_words": ["a"]}, "did you mean 'stop'"),
        ({"regex": "a"}, "did you mean 'constraint'"),
        ({"penalty": 5}, "did you mean 'repetition_penalty'"),
        ({"colour": "blue"}, "there is no parameter 'colour'$"),
    ],
)
def test_the_rest_is_named_with_what_to_use_instead(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        BeeParameters().for_call(None, given)
    for kind in CLASSES:
        with pytest.raises(ValidationError, match=message.rstrip("$")):
            kind(model=NOWHERE, **given)


def test_what_belongs_to_the_object_is_told_in_a_call() -> None:
    with pytest.raises(ParameterError, match=r"'cache' belongs to the object.*ChatBee\(cache=\.\.\.\)"):
        ChatBee(model=NOWHERE).invoke("Hello", cache=False)


def test_the_form_of_an_answer_in_a_call_takes_the_place_of_the_objects() -> None:
    chat = ChatBee(model=NOWHERE, constraint=Choice(("a", "b")))
    assert chat.for_call(None, {"format": "json"}).asked_constraint() == JsonSchema({"type": "object"})
    assert chat.for_call(None, {"response_format": None}).constraint == Choice(("a", "b"))
    json = ChatBee(model=NOWHERE, response_format={"type": "json_object"})
    assert json.for_call(None, {"constraint": Regex("a")}).asked_constraint() == Regex("a")


@pytest.mark.parametrize(
    "asked",
    [
        City,
        SCHEMA,
        {"type": "json_object", "schema": SCHEMA},
        {"type": "json_schema", "schema": SCHEMA, "name": "City"},
        {"type": "json_schema", "json_schema": {"schema": SCHEMA, "name": "City"}},
        {"type": "json_schema", "json_schema": {"schema": SCHEMA}},
    ],
)
def test_every_way_to_give_a_schema_is_enforced(asked: Any) -> None:
    assert BeeParameters(response_format=asked).response_format == OPENAI
    constraint = BeeParameters().for_call(None, {"response_format": asked}).asked_constraint()
    assert isinstance(constraint, JsonSchema)
    assert isinstance(constraint.schema, dict)
    assert constraint.schema["required"] == ["population"]
    assert constraint.schema["additionalProperties"] is False


@pytest.mark.parametrize("asked", ["yaml", {"type": "xml"}, {"type": "json_schema"}, 5, {}, {"type": ["object", {}]}])
def test_other_forms_of_an_answer_are_refused(asked: Any) -> None:
    with pytest.raises(ParameterError, match=r"response_format is .*expected"):
        BeeParameters().for_call(None, {"response_format": asked})


def test_a_number_that_a_model_goes_on_with_for_ever_ends(tiny_path: Path) -> None:
    """A model with random weights says digits again and again where nothing else may follow."""
    chat = ChatBee(model=tiny_path, max_tokens=60, response_format=City, logit_bias={ord("1"): 100.0})
    answer = City.model_validate_json(str(chat.invoke("How many?").content))
    assert answer.population == 1_111_111_111_111_111_111


@pytest.mark.parametrize(
    "constraint",
    [Choice(("a", "b")), Regex("a+"), Grammar("start: /a/"), Grammar('root ::= "a"', "gbnf"), JsonSchema(SCHEMA)],
)
def test_constraints_can_be_stored(constraint: Any) -> None:
    stored = stored_constraint(constraint)
    assert BeeParameters(constraint=stored).constraint == constraint  # type: ignore[arg-type]


def test_a_context_beyond_the_models_is_told_at_once(tiny_path: Path) -> None:
    for kind in CLASSES:
        with pytest.raises(ValidationError, match="n_ctx is 513; it must lie between 1 and 512"):
            kind(model=tiny_path, num_ctx=513)
        assert kind(model=NOWHERE, num_ctx=10**6).n_ctx == 10**6  # nobody knows yet
    assert ChatBee(model=tiny_path, n_ctx=0).profile["max_input_tokens"] == 512  # type: ignore[index]
    with Engine(tiny_path, n_ctx=0, threads=1) as engine:
        assert engine.n_ctx == 512
