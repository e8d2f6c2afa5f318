"""Keys and values in 8 bits, as an option of everything that opens an engine. What the library makes of it is tested in
test_families.py and, kernel by kernel, in tests/native."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer.testing

from bee_integrations import BeeLLM, ChatBee, Engine, GenerationParams
from bee_integrations.bench.kv_quality import KvQualityOptions, run_kv_quality
from bee_integrations.bench.markdown import markdown_of
from bee_integrations.bench.shapes import ShapesOptions, run_shapes
from bee_integrations.bench.synthetic import SyntheticOptions
from bee_integrations.chat.held_engines import HeldEngines
from bee_integrations.cli import app
from bee_integrations.engine.device_plan import plan_memory
from bee_integrations.errors import ParameterError
from bee_integrations.llama_index import Bee
from bee_integrations.models.file import ModelFile

WRONG = r"kv_cache is 'q4_0'; it must be 'f16' or 'q8_0'"
PROMPTS = ("The capital of France is", "1, 2, 3, 4, 5,", "to be or not to be, to be or not to be, to be or")


@pytest.fixture(scope="module")
def in_8_bits(model_path: Path, drafter_path: Path) -> Iterator[Engine]:
    """The default pair."""
    with Engine(model_path, drafter=drafter_path, n_ctx=512, threads=2, kv_cache="q8_0") as opened:
        yield opened


def test_speculation_changes_nothing(in_8_bits: Engine) -> None:
    draw = random.Random(8)
    drafted = accepted = 0
    for prompt in PROMPTS[1:]:
        for temperature in (0.0, 0.8):
            params = GenerationParams(max_tokens=16, temperature=temperature, seed=draw.getrandbits(40))
            in_8_bits.forget()
            expected = in_8_bits.complete(prompt, GenerationParams(**{**vars(params), "speculation": "off"})).tokens
            for mode in ("auto", "dflash", "copy"):
                length = draw.choice([None, 1, 3, 7])
                with_drafts = GenerationParams(**{**vars(params), "speculation": mode, "draft_length": length})
                done = in_8_bits.complete(prompt, with_drafts)
                assert done.tokens == expected, (prompt, mode, length)
                drafted += done.stats.drafted_tokens
                accepted += done.stats.accepted_tokens
    assert drafted > 30
    assert 0 < accepted < drafted


def test_near_what_float16_gives(in_8_bits: Engine, engine: Engine) -> None:
    tokens = engine.encode_prompt(" ".join(PROMPTS) * 8)[:90]
    exact, found = engine.evaluate(tokens), in_8_bits.evaluate(tokens)
    assert np.array_equal(found, in_8_bits.evaluate(tokens, rows_per_pass=7))
    assert not np.array_equal(found, exact)
    assert np.sqrt(((found - exact) ** 2).mean()) < 0.1 * exact.std()
    assert (found.argmax(1) == exact.argmax(1)).mean() > 0.9


def _held(llm: BeeLLM | Bee) -> HeldEngines:
    return llm._held if isinstance(llm, Bee) else llm.held_engines


def test_who_shares_an_engine(tiny_path: Path) -> None:
    plain = Engine.shared(tiny_path, threads=1)
    other = Engine.shared(tiny_path, threads=1, kv_cache="q8_0")
    assert other is not plain
    assert other is Engine.shared(tiny_path, threads=1, kv_cache="q8_0")
    assert (plain.info["kv_cache"], other.info["kv_cache"]) == ("f16", "q8_0")
    for llm, expected in (
        (BeeLLM(model=str(tiny_path), threads=1, kv_cache="q8_0"), other),
        (BeeLLM(model=str(tiny_path), threads=1), plain),
        (Bee(model=str(tiny_path), threads=1, kv_cache="q8_0"), other),
    ):
        assert _held(llm).open(llm) is expected
    other.close()
    plain.close()


@pytest.mark.parametrize("kind", [ChatBee, BeeLLM, Bee])
def test_wrong_values_are_refused_by_the_faces(kind: Any) -> None:
    with pytest.raises(ValueError, match=WRONG):
        kind(kv_cache="q4_0")


def test_wrong_values_are_refused(tiny_path: Path) -> None:
    for arguments in (
        lambda: Engine(tiny_path, kv_cache="q4_0"),
        lambda: ShapesOptions(("tiny",), kv_caches=("q4_0",)),
        lambda: SyntheticOptions(("tiny",), kv_cache="q4_0"),
    ):
        with pytest.raises(ParameterError, match=WRONG):
            arguments()
    with pytest.raises(ParameterError, match="kv_cache is 8; it must be 'f16' or 'q8_0'"):
        Engine(tiny_path, kv_cache=8)  # type: ignore[arg-type]
    refused = typer.testing.CliRunner().invoke(app, ["info", str(tiny_path), "--kv-cache", "q4_0"])
    assert refused.exit_code == 1


def test_plans(tiny_path: Path) -> None:
    with ModelFile(tiny_path) as file:
        exact, less = (plan_memory(file, None, device, 256, kind) for device, kind in (("cpu", "f16"), ("cpu", "q8_0")))
        assert less.cache_bytes < 0.6 * exact.cache_bytes
        assert exact.total_bytes - less.total_bytes == exact.cache_bytes - less.cache_bytes
        assert (
            plan_memory(file, None, "cuda", 256, "q8_0").cache_bytes <= plan_memory(file, None, "cuda", 256).cache_bytes
        )
        assert file.plan("q8_0").kv_bytes_per_token * 256 == less.cache_bytes
    shown = typer.testing.CliRunner().invoke(
        app, ["info", str(tiny_path), "--n-ctx", "256", "--device", "cpu", "--kv-cache", "q8_0", "--json"]
    )
    report = json.loads(shown.stdout)
    assert report["memory"]["kv_cache"] == report["device_memory"]["kv_cache"] == "q8_0"
    assert report["memory"]["cache_bytes"] == less.cache_bytes


# ---- bee bench -------------------------------------------------------------------------------------------------------


def test_shapes_with_both(tmp_path: Path) -> None:
    options = ShapesOptions(("tiny",), threads=1, contexts=(128,), rounds=1, kv_caches=("f16", "q8_0"))
    exact, less = run_shapes(options)["shapes"]
    assert (exact["kv_cache"], less["kv_cache"]) == ("f16", "q8_0")
    assert 0.5 < less["kv_bytes"] / exact["kv_bytes"] < 0.57
    assert "q8_0, " in markdown_of({"shapes": [exact, less], "machine": {"cpu": "here"}})


def test_quality(tiny_path: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.md"
    text.write_text("Bee makes local models fast. " * 40, encoding="utf-8")
    prompts = tmp_path / "prompts.json"
    prompts.write_text(json.dumps([{"name": "a", "messages": [{"role": "user", "content": "abc"}]}]), encoding="utf-8")
    options = KvQualityOptions((text,), model=tiny_path, prompts=prompts, max_tokens=8, threads=1, windows=2, window=64)
    quality = run_kv_quality(options)["kv_quality"]
    assert quality["tokens"] == 2 * 63
    assert quality["perplexity"]["q8_0"] == pytest.approx(quality["perplexity"]["f16"], rel=0.02)
    assert quality["perplexity"]["q8_0"] != quality["perplexity"]["f16"]
    assert 0 < quality["divergence"] < 0.01
    assert 0.8 < quality["same_likeliest"] <= 1
    assert 0 <= quality["agreed_tokens"] <= quality["answer_tokens"] <= 8
    assert "perplexity" in markdown_of({"kv_quality": quality})
    text.write_text("Too short.", encoding="utf-8")
    with pytest.raises(ParameterError, match=r"text.md has \d+ tokens; a window has 512"):
        run_kv_quality(KvQualityOptions((text,), model=tiny_path))
