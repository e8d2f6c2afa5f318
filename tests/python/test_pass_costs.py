"""What passes cost is measured once, and remembered for the same files and machine."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_model
from no_home import without_home

from bee_integrations import Engine, GenerationParams
from bee_integrations.engine.pass_costs import PassCosts
from bee_integrations.library import ffi


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BEE_CACHE", str(tmp_path / "cache"))
    return tiny_model.model().write(tmp_path / "tiny.gguf")


def _memo(model: Path) -> Path:
    (memo,) = (model.parent / "cache" / "pass_costs").iterdir()
    return memo


def test_an_engine_takes_the_costs_that_one_before_it_measured(model: Path) -> None:
    memory = PassCosts(model, None, 1, None)
    assert memory.load() == ffi.NULL
    with Engine(model, drafter=None, threads=1):
        measured = json.loads(_memo(model).read_text())
    assert measured["pass"] == sorted(measured["pass"])
    measured["pass"][0] /= 2  # to be told from a new measurement
    _memo(model).write_text(json.dumps(measured))
    with Engine(model, drafter=None, threads=1) as engine:
        memory.store(engine._scheduler._engine)
    assert json.loads(_memo(model).read_text())["pass"] == measured["pass"]


GOOD = [1e-5 * step for step in range(1, 12)]
DAMAGE: dict[str, Any] = {
    "nothing": "",
    "null": "null",
    "a list": "[]",
    "an object": "{}",
    "a string": '"x"',
    "half of it": '{"measured": 1.0, "pass": [0.0',
    "from the future": '{"measured": 1e18, "pass": [], "draft": []}',
    "no time": {"measured": "now"},
    "no time at all": {"measured": None},
    "a time that is true": {"measured": True},
    "a byte": "\x00",
    "nested": "[" * 100_000,
    "a long number": '{"measured": ' + "9" * 5000 + "}",
    "a huge integer": {"pass": [10**400] * 11},
    "NaN": {"pass": [math.nan] * 11},
    "infinity": {"draft": [math.inf] * 16},
    "zero": {"pass": [0] * 11},
    "negative": {"pass": [-1] * 11},
    "a negative draft": {"draft": [-1e-5] * 16},
    "ages": {"pass": [1e308] * 11},
    "no time for a pass": {"pass": [1e-9] * 11},
    "a wrong order": {"pass": [1e3, *GOOD[:10]]},
    "no passes": {"pass": []},
    "too many passes": {"pass": [1e-5] * 50},
    "too few drafts": {"draft": [0.0] * 15},
    "strings": {"pass": ["1"] * 11},
    "nested lists": {"pass": [[1e-5]] * 11},
    "true": {"pass": True},
    "truths": {"pass": [True] * 11},
    "a dictionary": {"pass": {"a": 1}},
    "no drafts": {"draft": None},
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_broken_memo_counts_for_nothing(model: Path, damage: Any) -> None:
    memory = PassCosts(model, None, 1, None)
    content = {"measured": time.time(), "pass": GOOD, "draft": [0.0] * 16}
    assert memory._path is not None
    memory._path.parent.mkdir(parents=True)
    memory._path.write_text(json.dumps(content))
    assert list(getattr(memory.load(), "pass")) == GOOD
    memory._path.write_text(json.dumps(content | damage) if isinstance(damage, dict) else damage)
    assert memory.load() == ffi.NULL


def test_a_broken_memo_is_measured_anew(model: Path) -> None:
    with Engine(model, drafter=None, threads=1):
        pass
    _memo(model).write_text('{"pass": [1]}')
    with Engine(model, drafter=None, threads=1):
        assert len(json.loads(_memo(model).read_text())["pass"]) == 11


@pytest.mark.parametrize(
    "make", [os.mkfifo, os.mkdir, lambda path: os.symlink(path, path)], ids=["pipe", "dir", "loop"]
)
def test_something_else_in_the_place_of_a_memo(model: Path, make: Callable[[Path], None]) -> None:
    memory = PassCosts(model, None, 1, None)
    assert memory._path is not None
    memory._path.parent.mkdir(parents=True)
    make(memory._path)
    with Engine(model, drafter=None, threads=1) as engine:
        assert engine.complete([1], GenerationParams(max_tokens=1)).tokens
    assert len(list(memory._path.parent.iterdir())) == 1  # and no half of a memo beside it


def test_no_home_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_home(monkeypatch)
    path = tiny_model.model().write(tmp_path / "tiny.gguf")
    with Engine(path, threads=1) as engine:
        assert engine.complete([1], GenerationParams(max_tokens=1)).tokens


def test_what_costs_depend_on_is_told_apart(model: Path) -> None:
    one = PassCosts(model, None, 1, None)
    with Engine(model, drafter=None, threads=1):
        pass
    assert one.load() != ffi.NULL
    assert PassCosts(model, None, 2, None).load() == ffi.NULL
    assert PassCosts(model, None, 1, "portable").load() == ffi.NULL
    assert PassCosts(model, model, 1, None).load() == ffi.NULL
    model.write_bytes(model.read_bytes() + b"\0" * 32)
    assert PassCosts(model, None, 1, None).load() == ffi.NULL


def test_a_memo_is_forgotten_after_a_week(model: Path) -> None:
    with Engine(model, drafter=None, threads=1):
        pass
    memo = _memo(model)
    content = json.loads(memo.read_text())
    content["measured"] -= 8 * 24 * 3600
    memo.write_text(json.dumps(content))
    assert PassCosts(model, None, 1, None).load() == ffi.NULL
