"""The benchmark: what it writes, the order of its runs, and what it makes of the rows. No speed is judged here."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from bee_integrations import bench, cli
from bee_integrations.bench import BenchOptions, Sample, load_prompts, run_benchmark
from bee_integrations.bench_report import summarise
from bee_integrations.engine import Engine, GenerationParams
from bee_integrations.errors import BeeError, ModelFileError, ParameterError
from bee_integrations.llama_cpp_peer import LlamaCppPeer, PeerCrashedError, PeerProcess
from bee_integrations.memory_bandwidth import read_bandwidth

PROMPTS = [
    {"name": "first", "messages": [{"role": "user", "content": "Say something."}]},
    {"name": "second", "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]},
]
ROW_KEYS = {
    "engine",
    "speculation",
    "prompt",
    "output_tokens",
    "prefill_tokens_per_s",
    "decode_tokens_per_s",
    "time_to_first_token_s",
    "tokens_per_cycle",
    "draft_acceptance",
    "accepted_share",
    "text_sha256",
}
N_TOKENS = 10


@pytest.fixture(scope="module")
def prompts_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bench") / "prompts.json"
    path.write_text(json.dumps(PROMPTS))
    return path


@pytest.fixture(scope="module")
def report(tiny_path: Path, prompts_file: Path) -> dict[str, Any]:
    """A benchmark of the tiny model."""
    return run_benchmark(BenchOptions(model=tiny_path, prompts=prompts_file, max_tokens=N_TOKENS, repeats=2, threads=1))


# ---- what it writes --------------------------------------------------------------------------------------------------


def test_the_report_names_what_ran_where(report: dict[str, Any], tiny_path: Path) -> None:
    assert report["threads"] == 1
    assert report["machine"]["cores"] >= 1
    assert report["model"]["sha256"] == hashlib.sha256(tiny_path.read_bytes()).hexdigest()
    assert report["drafter"]["file"] == "tiny.dflash.gguf"
    assert report["peer"] is None
    assert "peer_pass_ms" not in report
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_passes_are_timed_by_their_number_of_tokens(report: dict[str, Any]) -> None:
    assert list(report["pass_ms"]) == ["1", "2", "4", "8", "16"]
    assert list(report["draft_ms"]) == ["2", "4", "8"]  # one token leaves nothing to draft, and the block is of eight
    assert all(value > 0 for value in report["pass_ms"].values())
    assert report["limit"]["pass_ms"] == pytest.approx(
        1e3 * report["limit"]["bytes_per_pass"] / report["limit"]["memory_read_bytes_per_s"]
    )


def test_there_is_a_row_per_mode_and_prompt(report: dict[str, Any]) -> None:
    assert all(set(row) == ROW_KEYS for row in report["rows"])
    assert [(row["speculation"], row["prompt"]) for row in report["rows"]] == [
        ("off", "first"),
        ("off", "second"),
        ("dflash", "first"),
        ("dflash", "second"),
    ]


def test_rows_hold_the_texts_that_the_engine_gives(report: dict[str, Any], tiny: Engine) -> None:
    for row, prompt in zip(report["rows"][:2], PROMPTS, strict=True):
        completion = tiny.complete(tiny.render_chat(prompt["messages"]), GenerationParams(max_tokens=N_TOKENS))  # type: ignore[arg-type]
        assert row["text_sha256"] == hashlib.sha256(completion.text.encode()).hexdigest()
        assert row["output_tokens"] == len(completion.tokens)
    assert report["summary"]["same_text_in_all_modes"] is True


def test_only_rows_that_drafted_report_acceptance(report: dict[str, Any]) -> None:
    plain, drafted = report["rows"][:2], report["rows"][2:]
    assert all(row["tokens_per_cycle"] == 1 and row["draft_acceptance"] is None for row in plain)
    assert all(row["tokens_per_cycle"] >= 1 for row in drafted)


def test_prompts_are_read_in_full_every_time(tiny_path: Path) -> None:
    with Engine(tiny_path, threads=1, n_parallel=1) as engine:
        contender = bench.BeeContender(engine, "off")
        prompt = engine.encode_prompt("a prompt of some length, twice")
        first = contender.answer(prompt, 3)
        again = contender.answer(prompt, 3)
        assert first.text == again.text
        engine.forget()
        assert engine.complete(prompt, GenerationParams(max_tokens=1)).stats.reused_tokens == 0
        assert engine.complete(prompt, GenerationParams(max_tokens=1)).stats.reused_tokens > 0


def test_the_command_writes_the_report_and_prints_tables(
    tiny_path: Path,
    prompts_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    output = tmp_path / "bench.json"
    options = ["--speculation", "dflash,off", "--max-tokens", "4", "--repeats", "1", "--threads", "1"]
    code, printed, _ = _bee(
        ["bench", "--json", str(output), "--prompts", str(prompts_file), "--model", str(tiny_path), *options],
        capsys,
        monkeypatch,
    )
    assert code == 0
    written = json.loads(output.read_text())
    assert [row["speculation"] for row in written["rows"]] == ["dflash", "dflash", "off", "off"]
    assert "bee off over bee dflash" in printed
    assert "same text in all modes" in printed


def test_the_command_fails_where_speculation_changed_a_text(
    report: dict[str, Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = {**report, "summary": {**report["summary"], "same_text_in_all_modes": False}}
    monkeypatch.setattr(bench, "run_benchmark", lambda options, progress: broken)
    monkeypatch.setattr("bee_integrations.models.resolve_model", lambda model, progress: Path("unused"))
    code, printed, _ = _bee(["bench"], capsys, monkeypatch)
    assert code == 1
    assert "differ" in printed


def _bee(
    arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["bee", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    captured = capsys.readouterr()
    return int(ended.value.code or 0), captured.out, captured.err


# ---- the order of runs, and the summary ------------------------------------------------------------------------------


class Recorded:
    """A contender that writes down when it was asked."""

    engine = "bee"

    def __init__(self, speculation: str, calls: list[tuple[str, int]]) -> None:
        self.speculation = speculation
        self._calls = calls

    def answer(self, prompt: Sequence[int], max_tokens: int) -> Sample:
        self._calls.append((self.speculation, prompt[0]))
        return Sample("text", 1, 1.0, float(len(self._calls)), 1.0)


def test_contenders_take_turns_on_every_prompt() -> None:
    calls: list[tuple[str, int]] = []
    contenders = [Recorded("off", calls), Recorded("dflash", calls)]
    rows = bench._run_prompts(contenders, {"x": [7], "y": [8]}, BenchOptions(repeats=3), bench._Steps(None, 0))
    turn = [("off", 7), ("dflash", 7), ("off", 8), ("dflash", 8)]
    assert calls == 3 * turn
    assert rows[0]["decode_tokens_per_s"] == 5.0  # the median of calls 1, 5 and 9


def _row(
    engine: str, speculation: str, prompt: str, speed: float | None, sha: str | None, cycle: float
) -> dict[str, Any]:
    return {
        "engine": engine,
        "speculation": speculation,
        "prompt": prompt,
        "output_tokens": 1,
        "prefill_tokens_per_s": speed,
        "decode_tokens_per_s": speed,
        "time_to_first_token_s": 1.0,
        "tokens_per_cycle": cycle,
        "draft_acceptance": None,
        "accepted_share": None,
        "text_sha256": sha,
    }


PASSES = {"pass_ms": {"1": 2.0, "8": 3.0}, "peer_pass_ms": {"1": 8.0, "8": 30.0}}


def test_the_summary_has_medians_means_and_ratios_per_prompt() -> None:
    rows = [_row("bee", "off", name, speed, "same", 1.0) for name, speed in (("x", 10.0), ("y", 100.0), ("z", 50.0))]
    rows += [
        _row("bee", "dflash", name, speed, "same", cycle)
        for name, speed, cycle in (("x", 30.0, 4.0), ("y", 110.0, 1.0), ("z", None, 1.0))
    ]
    rows += [_row("peer", "off", name, 5.0, "other", 1.0) for name in "xyz"]
    summary = summarise(rows, PASSES)
    off, dflash, _ = summary["contenders"]
    assert (off["decode_tokens_per_s"], off["prompts"]) == (50.0, 3)
    assert dflash["decode_tokens_per_s"] == 70.0  # of the two that are known
    assert dflash["tokens_per_cycle"] == 2.0  # a mean
    ratios = {(ratio["of"], ratio["over"]): ratio["decode_tokens_per_s"] for ratio in summary["speed_ratios"]}
    assert ratios == {
        ("bee dflash", "bee off"): pytest.approx((3.0 + 1.1) / 2),
        ("bee off", "peer off"): 10.0,
        ("bee dflash", "peer off"): 14.0,
    }
    assert summary["pass_cost"] == {"1": 1.0, "8": 1.5}
    assert summary["peer_pass_ratios"] == {"1": 4.0, "8": 10.0}
    assert summary["same_text_in_all_modes"] is True  # the peer's text is its own affair


@pytest.mark.parametrize("other", ["another", None])
def test_the_summary_tells_texts_that_differ_or_do_not_repeat(other: str | None) -> None:
    rows = [_row("bee", "off", "x", 1.0, "one", 1.0), _row("bee", "dflash", "x", 1.0, other, 1.0)]
    assert summarise(rows, PASSES)["same_text_in_all_modes"] is False
    assert summarise(rows[:1], PASSES)["same_text_in_all_modes"] is None


def test_a_row_of_repeats_that_disagree_has_no_hash() -> None:
    samples = [Sample(text, 1, None, None, 1.0) for text in ("one", "two")]
    assert bench._row(Recorded("off", []), "x", samples)["text_sha256"] is None


def test_memory_bandwidth_is_a_positive_number() -> None:
    assert read_bandwidth(1, rounds=1) > 0


# ---- bad input -------------------------------------------------------------------------------------------------------


def test_the_bundled_prompts_are_well_formed() -> None:
    prompts = load_prompts()
    assert len(prompts) == 24
    assert all(prompt.messages[-1]["role"] == "user" for prompt in prompts)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("not json", "not JSON"),
        ("{}", "list"),
        ("[]", "at least one"),
        ("[1]", "entry 0"),
        ('[{"name": 1, "messages": []}]', "name"),
        ('[{"name": "x", "messages": []}]', "messages"),
        ('[{"name": "x", "messages": [{"role": "user"}]}]', "content"),
        (json.dumps([PROMPTS[0], PROMPTS[0]]), "several prompts named 'first'"),
    ],
)
def test_a_bad_prompts_file_is_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "prompts.json"
    path.write_text(content)
    with pytest.raises(ParameterError, match=message):
        load_prompts(path)


def test_a_missing_prompts_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"missing\.json"):
        load_prompts(tmp_path / "missing.json")


@pytest.mark.parametrize(
    "options",
    [
        {"max_tokens": 0},
        {"repeats": 0},
        {"speculation": ("fast",)},
        {"speculation": ()},
        {"speculation": ("off", "off")},
        {"peer": "somebody"},
    ],
)
def test_bad_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ParameterError):
        BenchOptions(**options)


def test_dflash_without_a_drafter_is_refused(tiny_path: Path, prompts_file: Path) -> None:
    options = BenchOptions(
        model=tiny_path, drafter=None, prompts=prompts_file, speculation=("dflash",), repeats=1, threads=1
    )
    with pytest.raises(ParameterError, match="drafter"):
        run_benchmark(options)


# ---- the peer --------------------------------------------------------------------------------------------------------


def test_a_peer_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch, tiny_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    with pytest.raises(ParameterError, match="pip install llama-cpp-python"):
        LlamaCppPeer(tiny_path, n_ctx=64, threads=1)


def test_the_peer_answers_and_its_crash_is_an_error(model_path: Path) -> None:
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    with PeerProcess(model_path, n_ctx=64, threads=1) as peer:
        run = peer.generate([1, 4093, 198], 5, {2})
        assert 1 <= len(run.tokens) <= 5
        assert run.tokens == peer.generate([1, 4093, 198], 5, {2}).tokens
        with pytest.raises(BeeError, match="context of 64"):
            peer.generate([1] * 60, 5, {2})
        assert peer.pass_seconds(2, 3, 1) > 0
        peer._process.kill()
        with pytest.raises(PeerCrashedError, match="crashed"):
            peer.pass_seconds(1, 0, 1)


def test_the_report_has_the_peer_beside_ours(model_path: Path, prompts_file: Path) -> None:
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    options = BenchOptions(
        model=model_path, prompts=prompts_file, speculation=("off",), max_tokens=3, repeats=1, peer="llama-cpp-python"
    )
    report = run_benchmark(options)
    assert list(report["peer_pass_ms"]) == list(report["pass_ms"])
    assert [row["engine"] for row in report["rows"]] == 2 * ["bee"] + 2 * ["llama-cpp-python"]
    assert set(report["rows"][-1]) == ROW_KEYS
