"""Penalties, biases and log-probabilities against their definitions in numpy, on the logits that `evaluate` gives, and
against llama.cpp's sampler."""

from __future__ import annotations

import ctypes
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from bee_integrations.engine import Completion, Engine, GenerationParams
from bee_integrations.errors import ParameterError

Logits = npt.NDArray[np.float32]
MODES = ("off", "auto", "dflash", "copy")


def counted(tokens: Sequence[int], window: int) -> dict[int, int]:
    """How often each token stands among the last `window` ones; -1: among all."""
    last = list(tokens) if window < 0 else list(tokens)[max(len(tokens) - window, 0) :]
    return {token: last.count(token) for token in last}


def changed(logits: Logits, before: Sequence[int], params: GenerationParams) -> Logits:
    """By definition, in float32: biases, then what stands among the tokens before becomes less likely."""
    scores: Logits = logits.copy()
    for token, bias in params.logit_bias.items():
        scores[token] += np.float32(bias)
    for token, count in counted(before, params.penalty_window).items():
        repetition = np.float32(params.repetition_penalty)
        scores[token] = scores[token] / repetition if scores[token] > 0 else scores[token] * repetition
        scores[token] -= np.float32(count) * np.float32(params.frequency_penalty) + np.float32(params.presence_penalty)
    return scores


def log_softmax(logits: Logits) -> npt.NDArray[np.float64]:
    scores = logits.astype(np.float64) - logits.max()
    result: npt.NDArray[np.float64] = scores - np.log(np.exp(scores).sum())
    return result


def check_greedy(engine: Engine, prompt: list[int], done: Completion, params: GenerationParams) -> int:
    """Each token is the likeliest after the changes; for how many is it another one than without them?"""
    tokens = list(done.tokens)
    logits = engine.evaluate(prompt + tokens)[len(prompt) - 1 :]
    effects = 0
    for index, token in enumerate(tokens):
        assert token == np.argmax(changed(logits[index], prompt + tokens[:index], params)), (index, params)
        effects += int(token != np.argmax(logits[index]))
    return effects


# ---- greedy decoding by hand -----------------------------------------------------------------------------------------

PENALTIES: dict[str, dict[str, Any]] = {
    "repetition": {"repetition_penalty": 1.3},
    "repetition that rewards": {"repetition_penalty": 0.7},
    "repetition over all": {"repetition_penalty": 1.2, "penalty_window": -1},
    "frequency": {"frequency_penalty": 0.9},
    "frequency over little": {"frequency_penalty": 2.0, "penalty_window": 4},
    "presence": {"presence_penalty": 1.1},
    "presence that rewards": {"presence_penalty": -2.0, "penalty_window": 10},
    "all": {"repetition_penalty": 1.15, "frequency_penalty": 0.4, "presence_penalty": 0.3, "penalty_window": 20},
}
PROMPT = "the cat sat on the mat, the cat sat on the mat, the cat sat on"


@pytest.mark.parametrize("name", PENALTIES)
def test_penalties_on_the_default_model(engine: Engine, name: str) -> None:
    params = GenerationParams(max_tokens=16, **PENALTIES[name])
    prompt = engine.encode_prompt(PROMPT)
    done = [engine.complete(prompt, replace(params, speculation=mode)) for mode in MODES]
    assert {one.tokens for one in done} == {done[0].tokens}
    effects = check_greedy(engine, prompt, done[0], params)
    assert effects > 0 or "rewards" in name
    for one in done:
        assert one.stats.logit_paths == {"reduced": 0, "masked": 0, "full": one.stats.cycles}


def test_random_penalties_and_biases_on_the_tiny_model(tiny: Engine) -> None:
    draw = random.Random(12)
    effects = tokens = 0
    for _ in range(80):
        prompt = [draw.randrange(tiny.info["n_vocab"]) for _ in range(draw.choice([1, 5, 60, 200]))]
        if draw.random() < 0.5:
            prompt = [token % 8 for token in prompt]
        biased = draw.sample(range(tiny.info["n_vocab"]), draw.choice([0, 0, 1, 30]))
        params = GenerationParams(
            max_tokens=draw.choice([1, 7, 30]),
            repetition_penalty=draw.choice([1.0, 1.5, 0.5, 100.0]),
            frequency_penalty=draw.choice([0.0, 0.3, -0.1, 100.0]),
            presence_penalty=draw.choice([0.0, 1.0, -1.0]),
            penalty_window=draw.choice([0, 1, 2, 10, 64, -1, 2**31 - 1]),
            logit_bias={token: draw.choice([-1000.0, -1.5, 0.0, 2.25, 6.0]) for token in biased},
            speculation=draw.choice(MODES),
        )
        done = tiny.complete(prompt, params)
        effects += check_greedy(tiny, prompt, done, params)
        tokens += len(done.tokens)
    assert 0.1 * tokens < effects < 0.9 * tokens


def test_the_window_reaches_into_the_prompt(engine: Engine) -> None:
    """A token of the prompt is penalised as long as it is among the last ones."""
    prompt = engine.encode_prompt("red, blue, green, red, green,")
    (blue,) = engine.tokenizer.encode(" blue", add_special=False)
    back = len(prompt) - prompt.index(blue)
    assert back > 4
    for window in range(1, back + 3):
        params = GenerationParams(max_tokens=1, presence_penalty=100.0, penalty_window=window, logit_bias={blue: 60.0})
        assert (engine.complete(prompt, params).tokens[0] == blue) == (window < back)


@pytest.mark.parametrize(
    "params",
    [
        GenerationParams(penalty_window=0, repetition_penalty=2.0, frequency_penalty=3.0, presence_penalty=3.0),
        GenerationParams(repetition_penalty=1.0, frequency_penalty=0.0, presence_penalty=0.0, penalty_window=-1),
        GenerationParams(logit_bias={}),
    ],
    ids=["no window", "no penalty", "no bias"],
)
def test_what_is_off_costs_nothing(engine: Engine, params: GenerationParams) -> None:
    plain = engine.complete(PROMPT, GenerationParams(max_tokens=8))
    done = engine.complete(PROMPT, replace(params, max_tokens=8))
    assert done.tokens == plain.tokens
    assert done.stats.logit_paths == {"reduced": done.stats.cycles, "masked": 0, "full": 0}


def test_biases_choose_and_forbid(engine: Engine) -> None:
    prompt = engine.encode_prompt("The capital of France is")
    plain = engine.complete(prompt, GenerationParams(max_tokens=1)).tokens[0]
    wanted = 1234
    for speculation in MODES:
        chosen = GenerationParams(max_tokens=6, logit_bias={wanted: 1000.0}, speculation=speculation)
        assert set(engine.complete(prompt, chosen).tokens) == {wanted}
    forbidden = engine.complete(prompt, GenerationParams(max_tokens=1, logit_bias={plain: -1000.0})).tokens[0]
    assert forbidden == np.argsort(-engine.evaluate(prompt)[-1])[1]
    ends = dict.fromkeys(engine.tokenizer.stop_token_ids, 1000.0)
    done = engine.complete(prompt, GenerationParams(max_tokens=9, logit_bias=ends))
    assert (done.text, done.finish_reason, len(done.tokens)) == ("", "stop", 1)


def test_truncation_comes_after_the_changes(engine: Engine) -> None:
    """Of the changed logits, the likeliest is kept: at any temperature it is the greedy choice."""
    prompt = engine.encode_prompt(PROMPT)
    params = GenerationParams(max_tokens=10, logit_bias={260: 3.0}, **PENALTIES["all"])
    greedy = engine.complete(prompt, params).tokens
    for kept in ({"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}):
        for seed in range(2):
            drawn = replace(params, temperature=1.5, seed=seed, **kept)
            assert engine.complete(prompt, drawn).tokens == greedy


# ---- log-probabilities -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "params",
    [
        GenerationParams(max_tokens=12),
        GenerationParams(max_tokens=12, temperature=1.2, seed=3),
        GenerationParams(max_tokens=12, temperature=0.8, top_k=40, top_p=0.9, min_p=0.01, seed=4),
        GenerationParams(max_tokens=12, logit_bias={1234: 20.0, 28: -5.0}, **PENALTIES["all"]),
    ],
    ids=["greedy", "drawn", "truncated", "changed"],
)
def test_log_probabilities_are_those_of_the_model(engine: Engine, params: GenerationParams) -> None:
    prompt = engine.encode_prompt(PROMPT)
    asked = replace(params, logprobs=True, top_logprobs=20)
    done = engine.complete(prompt, replace(asked, speculation="off"))
    logits = engine.evaluate(prompt + list(done.tokens))[len(prompt) - 1 :]
    assert len(done.logprobs) == len(done.tokens)
    for token, found, row in zip(done.tokens, done.logprobs, logits, strict=False):
        expected = log_softmax(row)
        assert found.token == token
        assert found.text == engine.tokenizer.decode([token], skip_special=False)
        assert found.logprob == pytest.approx(expected[token], abs=1e-4)
        likeliest = np.argsort(-row, kind="stable")[:20]
        assert [i for i, _, _ in found.top] == likeliest.tolist()
        assert [text for _, text, _ in found.top] == [
            engine.tokenizer.decode([i], skip_special=False) for i in likeliest
        ]
        assert [value for _, _, value in found.top] == pytest.approx(expected[likeliest], abs=1e-4)
    for mode in MODES[1:]:
        other = engine.complete(prompt, replace(asked, speculation=mode))
        assert (other.tokens, other.logprobs) == (done.tokens, done.logprobs)


@pytest.mark.parametrize("n_top", [0, 1, 7, 20])
def test_as_many_alternatives_as_asked(tiny: Engine, n_top: int) -> None:
    done = tiny.complete("ab", GenerationParams(max_tokens=20, logprobs=True, top_logprobs=n_top))
    assert {len(found.top) for found in done.logprobs} == {n_top}
    if n_top:
        for found in done.logprobs:  # greedy: the first alternative is the token itself
            assert found.top[0] == (found.token, found.text, found.logprob)
            assert sorted((value for _, _, value in found.top), reverse=True) == [value for _, _, value in found.top]
            assert sum(np.exp(value) for _, _, value in found.top) <= 1 + 1e-5


def test_log_probabilities_come_with_their_tokens(tiny: Engine) -> None:
    """Step by step, stop tokens and stop strings included."""
    params = GenerationParams(max_tokens=60, temperature=1.0, logprobs=True, speculation="dflash")
    ends = set()
    for seed in range(30):
        for stop in ((), ("a",)):
            steps = list(tiny.generate("log", replace(params, seed=seed, stop=stop)))
            for step in steps:
                assert [found.token for found in step.logprobs] == list(step.tokens)
            ends.add((steps[-1].finish_reason, steps[-1].stop_text))
    assert ("stop", "a") in ends
    assert len(ends) == 3
    assert tiny.complete("log", replace(params, logprobs=False)).logprobs == ()


# ---- llama.cpp -------------------------------------------------------------------------------------------------------

NOISE_OF_MARGINS = 0.83  # logits: up to this both engines' 8-bit activations may decide; see test_logits.py
STEPS = 20


class LlamaCpp:
    """llama.cpp's logits, and its penalties."""

    def __init__(self, api: Any, model: Path) -> None:
        self._api = api
        # Token by token: builds of llama.cpp are about that crash in passes over several tokens of such a file.
        self._llama = api.Llama(str(model), n_ctx=256, n_batch=1, n_threads=2, verbose=False, logits_all=True)

    def logits(self, tokens: list[int]) -> Logits:
        self._llama.reset()
        self._llama.eval(tokens)
        return np.array(self._llama.scores[: len(tokens)], dtype=np.float32)

    def penalised(self, logits: Logits, before: Sequence[int], params: Mapping[str, Any]) -> Logits:
        window = params.get("penalty_window", 64)
        sampler = self._api.llama_sampler_init_penalties(
            len(logits),
            len(before) if window < 0 else window,
            params.get("repetition_penalty", 1.0),
            params.get("frequency_penalty", 0.0),
            params.get("presence_penalty", 0.0),
        )
        try:
            for token in before:
                self._api.llama_sampler_accept(sampler, token)
            data = (self._api.llama_token_data * len(logits))(*((i, float(x), 0.0) for i, x in enumerate(logits)))
            array = self._api.llama_token_data_array(data=data, size=len(logits), selected=-1, sorted=False)
            self._api.llama_sampler_apply(sampler, ctypes.byref(array))
            return np.array([data[i].logit for i in range(len(logits))], dtype=np.float32)
        finally:
            self._api.llama_sampler_free(sampler)

    def close(self) -> None:
        self._llama.close()


@pytest.fixture(scope="module")
def llama_cpp(model_path: Path) -> Iterator[LlamaCpp]:
    api = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    peer = LlamaCpp(api, model_path)
    yield peer
    peer.close()


@pytest.mark.parametrize("name", PENALTIES)
def test_the_definition_is_that_of_llama_cpp(llama_cpp: LlamaCpp, name: str) -> None:
    """The numpy above and llama.cpp's sampler make the same of any logits."""
    draw = np.random.default_rng(5)
    for n_before in (1, 30, 100):
        logits = draw.normal(0, 4, 500).astype(np.float32)
        before = [int(token) for token in draw.integers(0, 40, n_before)]
        ours = changed(logits, before, GenerationParams(**PENALTIES[name]))
        np.testing.assert_allclose(ours, llama_cpp.penalised(logits, before, PENALTIES[name]), rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("name", PENALTIES)
def test_greedy_tokens_are_those_of_llama_cpp(engine: Engine, llama_cpp: LlamaCpp, name: str) -> None:
    """Step by step after the same tokens. Where another one is the likeliest there, the two are so close that rounding
    decides."""
    prompt = engine.encode_prompt(PROMPT)
    tokens = list(engine.complete(prompt, GenerationParams(max_tokens=STEPS, **PENALTIES[name])).tokens)
    logits = llama_cpp.logits(prompt + tokens[:-1])[len(prompt) - 1 :]
    same = 0
    for index, token in enumerate(tokens):
        theirs = llama_cpp.penalised(logits[index], prompt + tokens[:index], PENALTIES[name])
        margin = float(theirs.max() - theirs[token])
        assert margin < NOISE_OF_MARGINS, f"step {index}: llama.cpp prefers {int(theirs.argmax())} by {margin:.2f}"
        same += margin == 0
    assert same >= 0.7 * len(tokens)


# ---- values that make no sense ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"repetition_penalty": 0.0},
            r"repetition_penalty is 0\.0; it must be a number above 0 and at most 100 \(1: off",
        ),
        ({"repetition_penalty": 1e-50}, "repetition_penalty is 1e-50; it must be a number above 0"),
        ({"repetition_penalty": float("nan")}, "repetition_penalty is nan; it must be a number"),
        ({"repetition_penalty": "1.1"}, r"repetition_penalty is '1\.1'; it must be a number"),
        ({"repetition_penalty": 101}, "repetition_penalty is 101; it must be a number above 0 and at most 100"),
        ({"frequency_penalty": -100.5}, r"frequency_penalty is -100\.5; it must be a number at least -100"),
        ({"presence_penalty": float("inf")}, "presence_penalty is inf; it must be a number at least -100"),
        ({"presence_penalty": True}, "presence_penalty is True; it must be a number"),
        ({"penalty_window": -2}, "penalty_window is -2; it must lie between -1 and 2147483647"),
        ({"penalty_window": 1.5}, r"penalty_window is 1\.5; it must be a whole number from -1"),
        ({"logit_bias": [1, 2]}, "logit_bias is a list; it must be a mapping from token ids to numbers"),
        ({"logit_bias": {-1: 1.0}}, "a token of logit_bias is -1; it must lie between 0 and"),
        ({"logit_bias": {"word": 1.0}}, "a token of logit_bias is 'word'; it must be a whole number"),
        (
            {"logit_bias": {3: 1000.5}},
            r"logit_bias\[3\] is 1000\.5; it must be a number at least -1000 and at most 1000",
        ),
        ({"logit_bias": {3: None}}, r"logit_bias\[3\] is None; it must be a number"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs is 21; it must lie between 0 and 20"),
        ({"logprobs": True, "top_logprobs": -1}, "top_logprobs is -1; it must lie between 0 and 20"),
        ({"top_logprobs": 3}, "top_logprobs is 3, but logprobs is off: switch it on"),
    ],
)
def test_refused_values(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        GenerationParams(**values)


def test_the_keys_of_biases_may_come_from_json() -> None:
    given: Any = {"12": 1, np.int32(5): np.float64(2.5)}
    assert GenerationParams(logit_bias=given).logit_bias == {12: 1.0, 5: 2.5}


def test_a_token_that_is_given_twice_is_refused() -> None:
    given: Any = {12: 1.0, "12": 2.0}
    with pytest.raises(ParameterError, match="logit_bias"):
        GenerationParams(logit_bias=given)


def test_a_bias_for_a_token_that_the_model_does_not_have(tiny: Engine) -> None:
    n_vocab = tiny.info["n_vocab"]
    message = f"logit_bias has token {n_vocab}; this model's ids are 0 to {n_vocab - 1}"
    with pytest.raises(ParameterError, match=message):
        tiny.complete("a", GenerationParams(logit_bias={n_vocab: 1.0}))
    assert tiny.complete("a", GenerationParams(max_tokens=2, logit_bias={n_vocab - 1: 1.0})).tokens
