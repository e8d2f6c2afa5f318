"""With speculation on, tokens are drawn from the softmax of the target's logits, computed here in float64.

Each sampled token is turned into a number: the probability of all tokens that are likelier, plus a uniform share of its
own. Where tokens are drawn from exactly that distribution, these numbers are uniform on (0, 1) and independent,
whatever came before them in the text; so samples after different prefixes can be put into one chi-square test. Seeds
are fixed, so the outcome is too.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from bee_integrations.engine import Engine, GenerationParams

Array = npt.NDArray[np.float64]

N_BINS = 21
SMALLEST_P = 1e-3


def chi_square_p(observed: Array, expected: Array, degrees: int) -> float:
    """Probability of a chi-square at least this large. For even degrees it is a sum of Poisson probabilities."""
    assert degrees % 2 == 0
    half = float(((observed - expected) ** 2 / expected).sum()) / 2
    return sum(math.exp(i * math.log(half) - half - math.lgamma(i + 1)) for i in range(degrees // 2)) if half else 1.0


def uniformity_p(values: Array) -> float:
    observed = np.histogram(values, bins=N_BINS, range=(0, 1))[0].astype(np.float64)
    return chi_square_p(observed, np.full(N_BINS, len(values) / N_BINS), N_BINS - 1)


def independence_p(first: Array, second: Array) -> float:
    """Of pairs of uniform numbers: are all 9 x 9 cells of the square equally full?"""
    observed = np.histogram2d(first, second, bins=9, range=[[0, 1], [0, 1]])[0].ravel()
    return chi_square_p(observed, np.full(81, len(first) / 81), 80)


def probabilities(logits: npt.NDArray[np.float32], params: GenerationParams) -> Array:
    """By definition: top_k, then top_p, then min_p on the plain softmax; what is left at the temperature."""
    scores = logits.astype(np.float64)
    order = np.argsort(-scores, kind="stable")
    plain = np.exp(scores - scores.max())
    plain /= plain.sum()
    keep = np.ones(len(scores), bool)
    if params.top_k:
        keep[order[params.top_k :]] = False
    kept = np.where(keep, plain, 0)
    kept /= kept.sum()
    before = np.concatenate([[0.0], np.cumsum(kept[order])[:-1]])
    keep[order[before >= params.top_p]] = False
    keep &= plain >= params.min_p * plain.max()
    weights = np.where(keep, np.exp((scores - scores.max()) / params.temperature), 0)
    result: Array = weights / weights.sum()
    return result


def place(distribution: Array, token: int, share: float) -> float:
    assert distribution[token] > 0, "a token that was truncated away was drawn"
    own = distribution[token]
    likelier = (distribution > own) | ((distribution == own) & (np.arange(len(distribution)) < token))
    return float(distribution[likelier].sum() + share * own)


def sample(
    engine: Engine, prompt: list[int], params: GenerationParams, n_seeds: int, *, reference: GenerationParams
) -> tuple[Array, int]:
    """Places of the tokens under the reference distribution, NaN where a text ended early: [n_seeds][max_tokens].
    Also the number of tokens that came from accepted drafts."""
    assert params.max_tokens is not None
    shares = np.random.default_rng(0).random((n_seeds, params.max_tokens))
    places = np.full(shares.shape, np.nan)
    accepted = 0
    known: dict[tuple[int, ...], Array] = {}
    for seed in range(n_seeds):
        done = engine.complete(prompt, replace(params, seed=seed))
        accepted += done.stats.accepted_tokens
        for index, token in enumerate(done.tokens):
            prefix = done.tokens[:index]
            if prefix not in known:
                logits = engine.evaluate(prompt + list(done.tokens))
                for known_to in range(len(done.tokens)):
                    row = logits[len(prompt) - 1 + known_to]
                    known.setdefault(done.tokens[:known_to], probabilities(row, reference))
            places[seed, index] = place(known[prefix], token, shares[seed, index])
    return places, accepted


PARAMS = {
    "temperature 1": GenerationParams(temperature=1.0),
    "temperature 0.6": GenerationParams(temperature=0.6),
    "top_k": GenerationParams(temperature=1.0, top_k=20),
    "top_p": GenerationParams(temperature=1.2, top_p=0.8),
    "min_p": GenerationParams(temperature=1.5, min_p=0.1),
    "all": GenerationParams(temperature=0.9, top_k=60, top_p=0.9, min_p=0.02),
}


@pytest.mark.parametrize("params", PARAMS.values(), ids=PARAMS)
def test_tiny_pair(tiny: Engine, params: GenerationParams) -> None:
    params = replace(params, max_tokens=6, speculation="dflash", draft_length=4)
    prompt = tiny.encode_prompt("chi-square")
    places, accepted = sample(tiny, prompt, params, 500, reference=params)
    assert accepted > 30
    assert uniformity_p(places[~np.isnan(places)]) > SMALLEST_P
    for index in range(1, 4):  # tokens of the first cycles, where drafts stand
        assert uniformity_p(places[~np.isnan(places[:, index]), index]) > SMALLEST_P


def test_positions_and_seeds_are_independent(tiny: Engine) -> None:
    params = GenerationParams(temperature=1.0, max_tokens=5, speculation="dflash")
    places, _ = sample(tiny, tiny.encode_prompt("independent"), params, 600, reference=params)
    following = np.stack([places[:, :-1].ravel(), places[:, 1:].ravel()])
    following = following[:, ~np.isnan(following).any(axis=0)]
    assert independence_p(following[0], following[1]) > SMALLEST_P
    neighbours = np.stack([places[:-1].ravel(), places[1:].ravel()])
    neighbours = neighbours[:, ~np.isnan(neighbours).any(axis=0)]
    assert independence_p(neighbours[0], neighbours[1]) > SMALLEST_P


def test_default_pair(engine: Engine) -> None:
    """The second and third tokens come from drafts where those were right."""
    params = GenerationParams(temperature=0.8, max_tokens=3, speculation="dflash", draft_length=3)
    prompt = engine.encode_prompt("The three primary colours are")
    places, accepted = sample(engine, prompt, params, 200, reference=params)
    assert accepted > 20
    for index in range(3):
        assert uniformity_p(places[~np.isnan(places[:, index]), index]) > SMALLEST_P


def test_default_pair_token_by_token(engine: Engine) -> None:
    """The first token after a prompt, its likeliest values counted one by one."""
    n_seeds = 250
    params = GenerationParams(temperature=0.7, max_tokens=2, speculation="dflash")
    prompt = engine.encode_prompt("My favourite animal is the")
    distribution = probabilities(engine.evaluate(prompt)[-1], params)
    drawn = [engine.complete(prompt, replace(params, seed=seed)).tokens[0] for seed in range(n_seeds)]
    likeliest = [int(token) for token in np.argsort(-distribution) if distribution[token] * n_seeds >= 5]
    likeliest = likeliest[: len(likeliest) // 2 * 2]  # with "any other" an odd number of bins
    assert len(likeliest) >= 4
    observed = np.array([*(drawn.count(token) for token in likeliest), 0], np.float64)
    observed[-1] = n_seeds - observed.sum()
    expected = np.append(distribution[likeliest], 1 - distribution[likeliest].sum()) * n_seeds
    assert chi_square_p(observed, expected, len(likeliest)) > SMALLEST_P


def test_the_test_sees_a_wrong_distribution(tiny: Engine) -> None:
    params = GenerationParams(temperature=1.0, max_tokens=6, speculation="dflash", draft_length=4)
    prompt = tiny.encode_prompt("chi-square")
    for wrong in (replace(params, temperature=1.15), replace(params, temperature=0.87)):
        places, _ = sample(tiny, prompt, params, 500, reference=wrong)
        assert uniformity_p(places[~np.isnan(places)]) < SMALLEST_P


def test_chi_square_table() -> None:
    """Critical values of the usual tables."""
    for degrees, critical in ((2, 5.991), (10, 18.307), (20, 31.410), (80, 101.879)):
        observed = np.array([1 + math.sqrt(critical), 1.0])
        assert chi_square_p(observed, np.ones(2), degrees) == pytest.approx(0.05, abs=1e-4)
