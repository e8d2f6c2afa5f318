"""Sampling that a model's file or place states: taken where nobody gave another, and reported."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

import gguf_document as gguf
import pytest
import tiny_model
from gguf_document import Value, integer, number, text
from langchain_core.load import dumpd, load
from llama_index.core.llms import ChatMessage
from model_stores import own_places, write_ollama

from bee_integrations import Engine, GenerationParams
from bee_integrations.chat.parameters import BeeParameters
from bee_integrations.langchain import BeeLLM, ChatBee
from bee_integrations.llama_index import Bee

STATED = {
    "general.sampling.temp": number(0.5),
    "general.sampling.top_k": integer(20),
    "general.sampling.top_p": number(0.75),
    "general.sampling.min_p": number(0.0),
    "general.sampling.penalty_repeat": number(1.5),
    "general.sampling.penalty_last_n": Value(gguf.INT32, -1),
    "general.sampling.sequence": text("top_k;top_p"),
}
OWN = {"temperature": 0.5, "top_k": 20, "top_p": 0.75, "min_p": 0.0, "repetition_penalty": 1.5, "penalty_window": -1}


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own_places(tmp_path, monkeypatch)


def write(path: Path, stated: dict[str, Value]) -> Path:
    document = tiny_model.model()
    document.metadata |= stated
    return document.write(path)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write(tmp_path / "stated.gguf", STATED)


def test_what_a_file_states(model: Path) -> None:
    with Engine(model, threads=1) as engine:
        assert engine.sampling == engine.info["sampling"] == OWN
        assert engine.own_params(temperature=0.0, max_tokens=3) == GenerationParams(
            **{**OWN, "temperature": 0.0, "max_tokens": 3}
        )
        asked = GenerationParams(**OWN, seed=3, max_tokens=20)
        assert (
            engine.complete([1, 2], engine.own_params(seed=3, max_tokens=20)).tokens
            == engine.complete([1, 2], asked).tokens
        )


def test_a_file_that_states_nothing(tiny: Engine) -> None:
    assert tiny.sampling == {}
    assert tiny.own_params() == GenerationParams()


def test_parameters_that_were_given_count(model: Path) -> None:
    with Engine(model, threads=1) as engine:
        assert BeeParameters().generation_for(engine) == GenerationParams(**OWN)
        given = BeeParameters(temperature=0.0, top_k=None, seed=1)
        assert given.generation_for(engine) == GenerationParams(**{**OWN, "temperature": 0.0, "seed": 1})
        called = given.for_call(["x"], {"top_p": 1.0, "min_p": None})
        expected = GenerationParams(**{**OWN, "temperature": 0.0, "seed": 1, "top_p": 1.0, "stop": ("x",)})
        assert called.generation_for(engine) == expected
        assert called.for_call(None, {}).generation_for(engine) == expected


def test_what_is_stored_tells_given_from_own(model: Path) -> None:
    zero, own = BeeParameters(temperature=0.0).stored_parameters(), BeeParameters().stored_parameters()
    assert (zero["temperature"], own["temperature"], own["stop"]) == (0.0, None, None)
    with Engine(model, threads=1) as engine:
        for stored, temperature in ((zero, 0.0), (own, 0.5)):
            assert BeeParameters(**stored).generation_for(engine).temperature == temperature


@pytest.mark.parametrize("ask", ["langchain chat", "langchain text", "llama_index"])
def test_both_frameworks_take_and_report_it(model: Path, ask: str) -> None:
    def answer(**arguments: Any) -> tuple[str, dict[str, Any]]:
        given = {"model": str(model), "threads": 1, "max_tokens": 30, "seed": 5, **arguments}
        if ask == "langchain chat":
            message = ChatBee(**given).invoke("hello")
            return str(message.content), message.response_metadata
        if ask == "langchain text":
            generation = BeeLLM(**given).generate(["hello"]).generations[0][0]
            return generation.text, generation.generation_info or {}
        response = Bee(**given).chat([ChatMessage("hello")])
        return str(response.message.content), response.raw  # type: ignore[return-value]

    own, metadata = answer()
    assert metadata["model_sampling"] == OWN
    assert own == answer(**OWN)[0]
    assert own != answer(temperature=0.0, repetition_penalty=1.0)[0]


def test_a_store_counts_more_than_the_file(model: Path, tmp_path: Path) -> None:
    parameters = {"temperature": 0.25, "stop": ["END", "STOP"], "repeat_penalty": 1}
    layers = {"model": model.read_bytes(), "params": json.dumps(parameters).encode()}
    write_ollama(tmp_path / "ollama", "registry.ollama.ai/library/tiny/latest", layers)
    with Engine("ollama:tiny", threads=1) as engine:
        assert engine.sampling == {**OWN, "temperature": 0.25, "repetition_penalty": 1.0, "stop": ("END", "STOP")}
        assert BeeParameters().generation_for(engine).stop == ("END", "STOP")
        assert BeeParameters(stop=["x"]).generation_for(engine).stop == ("x",)


ODD: dict[str, Value] = {
    "a string": text("hot"),
    "NaN": number(math.nan),
    "infinity": number(math.inf),
    "too large": number(1e9),
    "an array": Value(gguf.ARRAY, [1, 2], gguf.INT32),
    "true": Value(gguf.BOOL, True),
}


@pytest.mark.parametrize("value", ODD.values(), ids=ODD)
@pytest.mark.parametrize("key", ["temp", "top_k", "top_p", "min_p", "penalty_repeat", "penalty_last_n"])
def test_values_that_make_no_sense_are_left_out(
    tmp_path: Path, key: str, value: Value, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path / "odd.gguf", {f"general.sampling.{key}": value})
    with caplog.at_level(logging.WARNING), Engine(path, threads=1) as engine:
        engine.complete([1], engine.own_params(max_tokens=2))
        assert engine.sampling == {} or value.content == 1e9  # a top_k of a milliard is one
    assert engine.sampling or "is not taken" in caplog.text


OFF = [("temp", number(-1.0), "temperature"), ("top_k", Value(gguf.INT32, -1), "top_k")]


@pytest.mark.parametrize(("key", "value", "name"), OFF)
def test_off_in_the_words_of_others(tmp_path: Path, key: str, value: Value, name: str) -> None:
    with Engine(write(tmp_path / "off.gguf", {f"general.sampling.{key}": value}), threads=1) as engine:
        assert engine.sampling == {name: 0}


@pytest.mark.parametrize("given", [{}, {"temperature": 0.0}, {"top_p": 1.0, "top_k": 0}, {"penalty_window": 64}])
def test_a_stored_chain_keeps_what_was_given(model: Path, given: dict[str, Any]) -> None:
    original = ChatBee(model=str(model), threads=1, **given)
    again = load(dumpd(original), valid_namespaces=["bee_integrations"], allowed_objects=[ChatBee])
    assert again.left_to_the_model == original.left_to_the_model
    with Engine(model, threads=1) as engine:
        assert again.generation_for(engine) == original.generation_for(engine) == GenerationParams(**{**OWN, **given})
