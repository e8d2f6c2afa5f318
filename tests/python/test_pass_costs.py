"""What passes cost is measured once, and remembered for the same files and machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny_model

from bee_integrations import Engine
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


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"measured": 1e18, "pass": [], "draft": []}',
                                     '{"measured": "now"}', "\x00"])  # fmt: skip
def test_a_broken_memo_is_measured_anew(model: Path, content: str) -> None:
    with Engine(model, drafter=None, threads=1):
        pass
    _memo(model).write_text(content)
    with Engine(model, drafter=None, threads=1):
        assert len(json.loads(_memo(model).read_text())["pass"]) == 11


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
