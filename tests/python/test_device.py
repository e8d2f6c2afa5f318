"""Where a model runs, and what it takes of a card's memory: all that can be told without a card."""

from __future__ import annotations

import json
import re
import shlex
from contextlib import ExitStack
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import tiny_model
from llama_index.core.llms import ChatMessage
from rich.console import Console
from test_cli import Bee

from bee_integrations.bench import BenchOptions
from bee_integrations.bench.report import describe_run
from bee_integrations.bench.synthetic_model import SHAPES, write_drafter, write_target
from bee_integrations.engine import Engine, device_plan, opening, pass_costs
from bee_integrations.engine.device_plan import (
    Device,
    describe_card,
    describe_device_memory,
    parse_size,
    plan_memory,
    print_device_memory,
    size_text,
)
from bee_integrations.engine.pass_costs import PassCosts
from bee_integrations.errors import DeviceError, DrafterMismatchError, ParameterError
from bee_integrations.langchain import BeeLLM, ChatBee
from bee_integrations.library import ffi
from bee_integrations.llama_index import Bee as LlamaIndexBee
from bee_integrations.models.file import ModelFile

NOWHERE = "/nowhere/libbee_cuda.so"
PARTS = ("target_bytes", "drafter_bytes", "cache_bytes", "work_bytes")


@pytest.fixture(autouse=True)
def no_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """libbee asks the environment each time, so that there is no card even where there is one."""
    monkeypatch.setenv("BEE_CUDA_LIBRARY", NOWHERE)


@pytest.fixture
def bee(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Bee:
    return Bee(capsys, monkeypatch)


# ---- devices ---------------------------------------------------------------------------------------------------------


def test_without_the_library_there_is_no_card_and_the_message_names_it(tiny_path: Path) -> None:
    with pytest.raises(DeviceError, match=re.escape(NOWHERE)):
        describe_card()
    with pytest.raises(DeviceError, match=re.escape(NOWHERE)) as raised:
        Engine(tiny_path, device="cuda")
    assert isinstance(raised.value, RuntimeError)
    with pytest.raises(DeviceError, match=re.escape(NOWHERE)):
        ChatBee(model=str(tiny_path), device="cuda").invoke("Hello")


def test_auto_runs_on_the_cpu_where_there_is_no_card(tiny_path: Path) -> None:
    for device in ("auto", "cpu"):
        with Engine(tiny_path, threads=1, device=device) as engine:
            assert engine.info["device"] == "cpu"
            assert isinstance(engine.info["device_name"], str)
            assert isinstance(engine.info["device_note"], str)


@pytest.mark.parametrize("device", ["tpu", "CUDA", "", None, 1, ["cpu"]])
def test_unknown_devices_are_refused(tiny_path: Path, device: Any) -> None:
    expected = re.escape(f"device is {device!r}; it must be 'auto', 'cpu' or 'cuda'")
    for make in (lambda: Engine(tiny_path, device=device), lambda: Engine.shared(tiny_path, device=device),
                 lambda: BenchOptions(device=device)):  # fmt: skip
        with pytest.raises(ParameterError, match=expected):
            make()


def test_an_instruction_set_is_one_of_the_cpu(tiny_path: Path) -> None:
    for make in (Engine, Engine.shared):
        with pytest.raises(ParameterError, match="instruction_set is 'portable', and device is 'cuda'"):
            make(tiny_path, device="cuda", instruction_set="portable")
    with Engine(tiny_path, threads=1, instruction_set="portable") as engine:
        assert (engine.info["device"], engine.info["instruction_set"]) == ("cpu", "portable")


def test_engines_are_shared_by_device(tiny_path: Path) -> None:
    one = Engine.shared(tiny_path, threads=1, device="cpu")
    other = Engine.shared(tiny_path, threads=1)
    try:
        assert one is not other
        assert Engine.shared(tiny_path, threads=1, device="cpu") is one
    finally:
        one.close()
        other.close()


def test_responses_tell_the_device(tiny_path: Path) -> None:
    arguments: dict[str, Any] = {"model": str(tiny_path), "threads": 1, "max_tokens": 4}
    assert ChatBee(**arguments).invoke("Hello").response_metadata["device"] == "cpu"
    whole = None
    for chunk in ChatBee(**arguments).stream("Hello"):
        whole = chunk if whole is None else whole + chunk
    assert whole is not None
    assert whole.response_metadata["device"] == "cpu"
    info = BeeLLM(**arguments).generate(["Hello"]).generations[0][0].generation_info
    assert info is not None
    assert info["device"] == "cpu"
    raw = LlamaIndexBee(**arguments).chat([ChatMessage("Hello")]).raw
    assert isinstance(raw, dict)
    assert raw["device"] == "cpu"


def test_the_report_of_a_benchmark_names_the_card(monkeypatch: pytest.MonkeyPatch) -> None:
    report: dict[str, Any] = {
        "model": {"file": "m.gguf"}, "drafter": None, "peer": None, "threads": 2, "instruction_set": "avx2",
        "machine": {"cpu": "A CPU", "cores": 4}, "settings": {"prompts": 1, "max_tokens": 2, "repeats": 3},
        "limits": {"read_bytes_per_s": 1e9, "reread_bytes_per_s": 1e9, "multiply_adds_per_s": 1e9},
    }  # fmt: skip
    assert "; A CPU, 2 of 4 cores, avx2; " in describe_run(report)
    assert "; A CPU, 2 of 4 cores, avx2; " in describe_run(report | {"device": None})
    assert "; on A Card, beside A CPU, 2 of 4 cores; " in describe_run(report | {"device": "A Card"})


# ---- remembered costs ------------------------------------------------------------------------------------------------


@pytest.fixture
def own_cache(tiny_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BEE_CACHE", str(tmp_path))
    return tmp_path / "pass_costs"


def test_costs_are_remembered_for_the_device_that_really_ran(
    tiny_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_cpu, on_card = (PassCosts(tiny_path, None, 1, None, place) for place in ("cpu", "A Card"))
    # A card is expected, and then the engine runs on the CPU all the same.
    monkeypatch.setattr(opening, "expected_place", lambda *_: "A Card")
    Engine(tiny_path, drafter=None, threads=1).close()
    assert on_card.load() == ffi.NULL
    assert on_cpu.load() != ffi.NULL
    # Costs of the card do not become the CPU's.
    (memo,) = own_cache.iterdir()
    content = json.loads(memo.read_text())
    costs = {"measured": content["measured"], "pass": [1.0] * 11, "draft": [1.0] * 16}
    on_card._path.write_text(json.dumps(costs))
    Engine(tiny_path, drafter=None, threads=1).close()
    assert max(on_cpu.load()[0].draft[0:16]) < 1.0
    assert max(getattr(on_cpu.load()[0], "pass")[0:11]) < 1.0
    assert json.loads(on_card._path.read_text()) == costs


def test_where_an_engine_is_expected_to_run(tiny_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert device_plan.expected_place("cuda", tiny_path, None, 128) == "cpu"  # there is none; opening says so
    with ModelFile(tiny_path) as file:
        needed = plan_memory(file, None, "cuda", 128).total_bytes
    for free, device, expected in (
        (needed, "auto", "A Card"),
        (needed - 1, "auto", "cpu"),
        (needed - 1, "cuda", "A Card"),
        (needed, "cpu", "cpu"),
    ):
        card = Device("A Card", 2 * needed, free)
        monkeypatch.setattr(device_plan, "describe_card", lambda card=card: card)
        assert device_plan.expected_place(device, tiny_path, None, 128) == expected
    assert pass_costs.PassCosts(tiny_path, None, 1, None)._path == PassCosts(tiny_path, None, 1, None, "cpu")._path


# ---- sizes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("24GiB", 24 * 2**30),
        ("24GB", 24 * 10**9),
        ("24g", 24 * 2**30),
        ("24 gib", 24 * 2**30),
        (" 8000MiB ", 8000 * 2**20),
        ("1.5G", 3 * 2**29),
        ("512kB", 512000),
        ("1TiB", 2**40),
        ("8000000000", 8 * 10**9),
        ("100B", 100),
    ],
)
def test_sizes(text: str, expected: int) -> None:
    assert parse_size(text) == expected


@pytest.mark.parametrize(
    "text",
    ["", "lots", "24 GiB free", "GiB", "-1GiB", "0", "0GiB", "1e9", "24XB", "2i", "9" * 400, "9" * 20, "\u0663GiB"],
)
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(ParameterError, match=r"(?s)the memory size .* such as 24GiB"):
        parse_size(text)


# ---- plans -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_plan_is_the_sum_of_its_parts(tiny_path: Path, device: str) -> None:
    with ModelFile(tiny_path) as target, ModelFile(tiny_path.with_name("tiny.dflash.gguf")) as drafter:
        with_drafter = plan_memory(target, drafter, device, 256)
        alone = plan_memory(target, None, device, 256)
    for plan in (with_drafter, alone):
        assert plan.total_bytes == sum(getattr(plan, part) for part in PARTS)
        assert min(plan.target_bytes, plan.cache_bytes, plan.work_bytes) > 0
    assert alone.drafter_bytes == 0 < with_drafter.drafter_bytes
    assert alone.cache_bytes < with_drafter.cache_bytes
    assert alone.target_bytes == with_drafter.target_bytes


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_caches_grow_linearly_with_the_context_and_the_plan_grows_with_them(tiny_path: Path, device: str) -> None:
    with ModelFile(tiny_path) as target, ModelFile(tiny_path.with_name("tiny.dflash.gguf")) as drafter:
        plans = [plan_memory(target, drafter, device, n_ctx) for n_ctx in (128, 256, 384)]
    caches, totals = ([getattr(plan, name) for plan in plans] for name in ("cache_bytes", "total_bytes"))
    assert caches[2] - caches[1] == caches[1] - caches[0] > 0
    assert totals[0] < totals[1] < totals[2]  # work space grows in steps


def test_a_plan_with_a_drafter_of_another_model(tiny_path: Path, tmp_path: Path) -> None:
    wide = tiny_model.drafter(n_embd=128).write(tmp_path / "wide.dflash.gguf")
    for path in (tiny_path, wide):
        with ModelFile(tiny_path) as target, ModelFile(path) as drafter, pytest.raises(DrafterMismatchError):
            plan_memory(target, drafter, "cuda", 128)


# ---- bee info --------------------------------------------------------------------------------------------------------


def test_info_plans_the_memory_of_a_card_that_is_not_here(bee: Bee, tiny_path: Path) -> None:
    memory = bee.json("info", tiny_path, "--device", "cuda", "--memory", "24GiB")["device_memory"]
    assert (memory["device"], memory["n_ctx"]) == ("cuda", tiny_model.N_CTX_TRAIN)
    assert memory["total_bytes"] == sum(memory[part] for part in PARTS)
    assert memory["drafter_bytes"] > 0
    assert (memory["available_bytes"], memory["fits"], memory["advice"]) == (24 * 2**30, True, [])
    code, output, _ = bee("info", tiny_path, "--device", "cuda", "--memory", "24GiB")
    assert code == 0
    assert f"It fits: {size_text(memory['total_bytes'])} of 25.77 GB" in " ".join(output.split())
    assert bee.json("info", tiny_path)["device_memory"] is None


def test_what_does_not_fit_comes_with_advice_that_helps(bee: Bee, tiny_path: Path) -> None:
    arguments = ["info", str(tiny_path), "--device", "cuda"]
    whole = bee.json(*arguments, "--memory", "24GiB")["device_memory"]
    alone = bee.json(*arguments, "--memory", "24GiB", "--drafter", "none")["device_memory"]
    shortest = bee.json(*arguments, "--memory", "24GiB", "--drafter", "none", "--n-ctx", "128")["device_memory"]
    assert shortest["total_bytes"] < alone["total_bytes"] < whole["total_bytes"]
    for size in (whole["total_bytes"] - 1, alone["total_bytes"], alone["total_bytes"] - 1, shortest["total_bytes"]):
        memory = bee.json(*arguments, "--memory", str(size))["device_memory"]
        assert not memory["fits"]
        *changes, last = memory["advice"]
        assert "quantisation" in last
        assert changes
        for change in changes:
            options = shlex.split(change.partition(":")[0])
            followed = bee.json(*arguments, "--memory", str(size), *options)["device_memory"]
            assert followed["fits"], change
            if "--n-ctx" in options:  # and more would not
                assert followed["n_ctx"] % 128 == 0
                options[-1] = str(followed["n_ctx"] + 128)
                assert not bee.json(*arguments, "--memory", str(size), *options)["device_memory"]["fits"]
    (last,) = bee.json(*arguments, "--memory", "1")["device_memory"]["advice"]
    assert "quantisation" in last
    code, output, _ = bee(*arguments, "--memory", "1")
    assert code == 0
    assert "does not fit" in output


@pytest.mark.parametrize(("name", "drafted", "longest"), [("qwen3.6-27b", True, 16384), ("gemma4-31b", False, 16384)])
def test_what_large_models_take_of_a_card(name: str, drafted: bool, longest: int, tmp_path: Path) -> None:
    """24 GiB hold a hybrid of 27 billion weights (Q5_K_S) with its drafter, and 31 billion (Q4_K_M) without one, with
    more context than asked for; 12 GB hold neither with any."""
    target = write_target(SHAPES[name], tmp_path / "target.gguf")
    drafter = write_drafter(SHAPES[name], tmp_path / "drafter.gguf") if drafted else None
    found = describe_device_memory(target, drafter, "cuda", 8192, stated=parse_size("24GiB"), free=None)
    assert found["fits"]
    assert longest < found["largest_n_ctx"] < 65536

    def total(n_ctx: int) -> int:
        with ModelFile(target) as file, ExitStack() as stack:
            second = None if drafter is None else stack.enter_context(ModelFile(drafter))
            return plan_memory(file, second, "cuda", n_ctx).total_bytes

    assert total(found["largest_n_ctx"]) <= parse_size("24GiB") < total(found["largest_n_ctx"] + 128)
    console = Console(width=150, record=True, file=StringIO())
    print_device_memory(found, console)
    assert f"up to {found['largest_n_ctx']} tokens" in console.export_text()

    refused = describe_device_memory(target, drafter, "cuda", 8192, stated=parse_size("12GB"), free=None)
    assert (refused["fits"], refused["largest_n_ctx"]) == (False, None)
    (advice,) = refused["advice"]
    assert size_text(refused["target_bytes"]) in advice
    print_device_memory(refused, console)
    assert f"it takes {size_text(refused['total_bytes'])}, and there are 12.00 GB" in console.export_text()


def test_info_without_a_card_and_without_a_size(bee: Bee, tiny_path: Path) -> None:
    memory = bee.json("info", tiny_path, "--device", "cuda")["device_memory"]
    assert (memory["available_bytes"], memory["fits"]) == (None, None)
    assert NOWHERE in memory["advice"][0]
    assert "--memory" in memory["advice"][0]
    assert NOWHERE in bee("info", tiny_path, "--device", "cuda")[1].replace("\n", "")
    assert bee.json("info", tiny_path, "--device", "auto")["device_memory"]["device"] == "cpu"


def test_info_refuses_bad_devices_and_sizes(bee: Bee, tiny_path: Path) -> None:
    assert "device is 'tpu'" in bee.refuses("info", tiny_path, "--device", "tpu")
    assert "24GiB" in bee.refuses("info", tiny_path, "--device", "cuda", "--memory", "much")
    assert "--device cuda" in bee.refuses("info", tiny_path, "--memory", "24GiB")
    drafter = tiny_path.with_name("tiny.dflash.gguf")
    assert "--drafter" in bee.refuses("info", drafter, "--device", "cuda", "--memory", "24GiB")


def test_run_takes_a_device(bee: Bee, tiny_path: Path) -> None:
    run = ["run", "Hello", "--model", str(tiny_path), "--threads", "1", "--max-tokens", "2"]
    assert bee.json(*run, "--device", "cpu")["device"] == "cpu"
    assert NOWHERE in bee.refuses(*run, "--device", "cuda")
