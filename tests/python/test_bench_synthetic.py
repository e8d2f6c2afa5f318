"""Measurements of made-up models, and the program that checks a card. No speed is judged here."""

from __future__ import annotations

import ctypes
import itertools
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from gguf_document import read

from bee_integrations import cli
from bee_integrations.bench.markdown import markdown_of
from bee_integrations.bench.synthetic import (
    ACCEPTED_SHARE,
    SyntheticOptions,
    acceptance_profile,
    run_synthetic,
)
from bee_integrations.bench.synthetic_model import BLOCK_SIZE, SHAPES, write_drafter, write_target
from bee_integrations.engine.device_plan import plan_memory
from bee_integrations.errors import ParameterError, UnsupportedModelError
from bee_integrations.library import check, ffi, lib, new_error
from bee_integrations.models.file import ModelFile

GPU_CHECK = Path(__file__).resolve().parent.parent / "gpu_check.py"


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    options = SyntheticOptions(("tiny",), device="cpu", threads=1, context=64, cycles=4, prefill=128)
    return run_synthetic(options)


def test_every_row_says_that_it_is_synthetic(report: dict[str, Any]) -> None:
    (row,) = report["synthetic"]
    assert row["kind"] == "synthetic"
    assert row["shape"] == "tiny"
    assert row["device"] == "cpu"
    assert "| synthetic | tiny |" in markdown_of(report)
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_a_shape_with_one_type_everywhere() -> None:
    with pytest.raises(ParameterError, match=r"IQ9_Z.*IQ3_S"):
        SyntheticOptions(("tiny:IQ9_Z",))
    options = SyntheticOptions(("tiny:IQ3_S", "tiny"), device="cpu", threads=1, context=16, cycles=2, prefill=32)
    of_type, mixed = run_synthetic(options)["synthetic"]
    assert of_type["shape"] == "tiny:IQ3_S"
    assert of_type["weight_bytes"] < 0.8 * mixed["weight_bytes"]  # 3.5 bits a weight, 4.5 and more


def test_rows_hold_passes_cycles_and_prompts(report: dict[str, Any]) -> None:
    (row,) = report["synthetic"]
    assert list(row["pass_ms"]) == ["1", "4", "8", "16"]
    assert row["pass_ratios"]["1"] == 1
    assert row["cycle_cost"] == pytest.approx(row["cycle_ms"] / row["token_ms"])
    assert row["speed_up"] == pytest.approx(row["tokens_per_cycle"] / row["cycle_cost"])
    assert row["profile"] is None  # the CPU accepts what it accepts
    assert row["host_share"] is None
    assert 1 <= row["measured_tokens_per_cycle"] <= BLOCK_SIZE
    assert row["prefill_tokens_per_s"] > 0
    assert row["weight_bytes"] > 0


def test_the_command_measures_a_shape(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "synthetic.json"
    arguments = ["bee", "bench", "--synthetic", "tiny", "--device", "cpu", "--threads", "1", "--json", str(file)]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert not left.value.code
    (row,) = json.loads(file.read_text())["synthetic"]
    assert row["kind"] == "synthetic"
    assert row["context"] == 1024
    assert row["prefill_tokens"] == 2048


def test_unknown_shapes_are_refused() -> None:
    with pytest.raises(ParameterError, match="no shape 'huge'; there are qwen3-8b"):
        SyntheticOptions(("huge",))


# ---- the profile -----------------------------------------------------------------------------------------------------


def test_the_profile_has_the_published_share() -> None:
    profile = acceptance_profile()
    accepted = sum(profile)
    assert len(profile) == 16
    assert accepted == pytest.approx(8.26, abs=0.005)
    assert accepted / (accepted + 1) == pytest.approx(ACCEPTED_SHARE, abs=1e-9)
    assert all(0 <= later <= earlier <= 1 for earlier, later in itertools.pairwise(profile))
    assert profile[15] == 0  # there are 15 drafts


@pytest.mark.parametrize("share", [-0.1, 0.94, 0.999])
def test_shares_that_no_block_of_16_reaches_are_refused(share: float) -> None:
    with pytest.raises(ParameterError, match="accepted_share is"):
        acceptance_profile(share)


# ---- the files -------------------------------------------------------------------------------------------------------


def test_hybrids_and_mixtures_are_measured() -> None:
    shapes = ("tiny-hybrid", "tiny-hybrid-mixture", "tiny-windows", "tiny-mixture")
    options = SyntheticOptions(shapes, device="cpu", threads=1, context=16, cycles=2, prefill=32)
    for row in run_synthetic(options)["synthetic"]:
        assert row["weight_bytes"] > 0
        assert row["pass_ms"]["16"] > 0


# Numbers of weights, and of the keys and values of a position, as the models' makers have it.
PUBLISHED = {
    "qwen3.6-27b": (26.9e9, 16 * 2 * 4 * 256),
    "qwen3.6-35b-a3b": (34.7e9, 10 * 2 * 2 * 256),
    "gemma4-31b": (30.7e9, 50 * 2 * 16 * 256 + 10 * 2 * 4 * 512),
    "gpt-oss-20b": (20.9e9, 24 * 2 * 8 * 64),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_shapes_have_the_sizes_of_the_models(name: str, tmp_path: Path) -> None:
    n_weights, numbers = PUBLISHED[name]
    with (
        ModelFile(write_target(SHAPES[name], tmp_path / "target.gguf")) as file,
        ModelFile(write_drafter(SHAPES[name], tmp_path / "drafter.gguf")) as drafter,
    ):
        assert sum(math.prod(tensor.shape) for tensor in file.tensors) == pytest.approx(n_weights, rel=0.005)
        assert file.plan().kv_bytes_per_token == 2 * numbers
        for device in ("cpu", "cuda"):
            plan = plan_memory(file, drafter, device, 8192)
            assert plan.drafter_bytes < 0.1 * plan.target_bytes


def test_weights_in_files_run(tmp_path: Path) -> None:
    """What a peer opens, too: the mixtures have their router, biases and sinks, the windows their factors."""
    for name in ("tiny-hybrid-mixture", "tiny-windows", "tiny-mixture"):
        target = write_target(SHAPES[name], tmp_path / f"{name}.gguf", with_weights=True)
        error, parameters = new_error(), ffi.new("bee_engine_params *", {"n_threads": 1})
        handle = lib.bee_engine_open(os.fsencode(target), ffi.NULL, parameters, error)
        check(handle, error)
        session = lib.bee_session_open(handle, 4, False, error)
        check(session, error)
        logits = ffi.new("float[]", 4 * SHAPES[name].n_vocab)
        check(lib.bee_session_evaluate(session, [1, 2, 3, 4], 4, 4, logits, error), error)
        lib.bee_session_close(session)
        lib.bee_engine_close(handle)
        assert all(math.isfinite(value) for value in logits)
        assert len({float(value) for value in logits}) > 100


def test_states_of_hybrids_with_weights_do_not_grow(tmp_path: Path) -> None:
    document = read(write_target(SHAPES["tiny-hybrid"], tmp_path / "target.gguf", with_weights=True))
    assert (document.tensors["blk.0.ssm_a"].values() == -1).all()
    assert (document.tensors["blk.0.ssm_norm.weight"].values() == 1).all()


@pytest.mark.parametrize("name", ["qwen3.6-27b", "tiny-hybrid"])
def test_files_of_hybrids_can_be_planned(name: str, tmp_path: Path) -> None:
    shape = SHAPES[name]
    assert shape.delta is not None
    with ModelFile(write_target(shape, tmp_path / "target.gguf")) as file:
        plan = file.plan()
        tensors = [tensor for tensor in file.tensors if tensor.name.startswith("blk.")]
        attending = shape.n_layer // 4
        assert len(tensors) == 11 * attending + 14 * (shape.n_layer - attending)
        assert plan.kv_bytes_per_token == attending * 2 * 2 * shape.n_head_kv * shape.head_size
        state = 3 * shape.delta.channels + shape.delta.results * shape.delta.state_size
        assert plan.state_bytes > 3 * 4 * (shape.n_layer - attending) * state


@pytest.mark.parametrize("name", ["qwen3-8b", "tiny"])
def test_files_are_holes_of_the_right_size(name: str, tmp_path: Path) -> None:
    shape = SHAPES[name]
    target = write_target(shape, tmp_path / "target.gguf")
    drafter = write_drafter(shape, tmp_path / "drafter.gguf")
    assert target.stat().st_blocks * 512 < 16e6
    with ModelFile(target) as file, ModelFile(drafter) as draft_file:
        assert file.architecture == "qwen3"
        assert len(file.tensors) == 3 + shape.n_layer * 11
        assert draft_file.metadata["dflash.block_size"] == BLOCK_SIZE


# ---- cycles, from the library ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("synthetic")
    target = write_target(SHAPES["tiny"], folder / "target.gguf")
    drafter = write_drafter(SHAPES["tiny"], folder / "drafter.gguf")
    parameters, error = ffi.new("bee_engine_params *", {"n_threads": 1, "made_up_weights": True}), new_error()
    handle = lib.bee_engine_open(os.fsencode(target), os.fsencode(drafter), parameters, error)
    check(handle, error)
    yield handle
    lib.bee_engine_close(handle)


def cycles(engine: Any, drafts: int, past: int = 8, count: int = 2, profile: Any = ffi.NULL) -> tuple[float, float]:
    cost, error = ffi.new("bee_cycle_cost *"), new_error()
    check(lib.bee_engine_measure_cycles(engine, drafts, past, count, profile, cost, error), error)
    assert cost.device_seconds == 0
    return float(cost.seconds), float(cost.tokens)


def test_a_cycle_without_drafts_yields_one_token(engine: Any) -> None:
    seconds, tokens = cycles(engine, 0, past=0)
    assert seconds > 0
    assert tokens == 1


def test_cycles_with_drafts_yield_at_least_one(engine: Any) -> None:
    _, tokens = cycles(engine, 15)
    assert 1 <= tokens <= 16


def test_the_cpu_refuses_a_profile(engine: Any) -> None:
    with pytest.raises(UnsupportedModelError, match="run on a device as a whole draw accepted drafts"):
        cycles(engine, 15, profile=ffi.new("float[16]", acceptance_profile()))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((16, 8, 2), "between 0 and 15"),
        ((-1, 8, 2), "between 0 and 15"),
        ((15, -1, 2), "n_past be at least 0"),
        ((15, 8, 0), "n_cycles between 1"),
        ((15, 8000, 100), "may need"),
        ((0, 2147483647, 1), "may need"),
    ],
)
def test_arguments_out_of_range_are_refused(engine: Any, arguments: tuple[int, int, int], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        cycles(engine, *arguments)


def test_made_up_weights_give_finite_logits_that_differ(engine: Any) -> None:
    error = new_error()
    session = lib.bee_session_open(engine, 4, False, error)
    check(session, error)
    logits = ffi.new("float[]", 4 * SHAPES["tiny"].n_vocab)
    check(lib.bee_session_evaluate(session, [1, 2, 3, 4], 4, 4, logits, error), error)
    lib.bee_session_close(session)
    assert all(math.isfinite(value) for value in logits)
    assert len({float(value) for value in logits}) > 100


# ---- the check of a card ---------------------------------------------------------------------------------------------


def has_card() -> bool:
    try:
        return ctypes.CDLL("libcuda.so.1").cuInit(0) == 0
    except OSError:
        return False


@pytest.mark.skipif(has_card(), reason="there is a card")
def test_the_check_of_a_card_says_that_there_is_none() -> None:
    done = subprocess.run([sys.executable, str(GPU_CHECK)], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert done.stderr.startswith("gpu-check: no ")
    assert len(done.stderr.strip().splitlines()) == 1
