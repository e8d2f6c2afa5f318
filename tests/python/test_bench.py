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
from bee_integrations.bench import BenchOptions, load_report, merge_figures, run_benchmark
from bee_integrations.bench import contenders as bench_contenders
from bee_integrations.bench import markdown as bench_markdown
from bee_integrations.bench import plot as bench_plot
from bee_integrations.bench.contenders import BeeContender, Sample, Steps, answer_in_turn
from bee_integrations.bench.figures import GROUPS
from bee_integrations.bench.llama_cpp_peer import LlamaCppPeer, requantise
from bee_integrations.bench.peer_process import PeerCrashedError, PeerProcess
from bee_integrations.bench.prompts import load_prompts
from bee_integrations.bench.report import summarise
from bee_integrations.bench.run import Figure
from bee_integrations.engine import Engine, GenerationParams
from bee_integrations.errors import BeeError, ModelFileError, ParameterError
from bee_integrations.models.file import ModelFile

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
    assert report["figures"] == []
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_passes_are_timed_by_their_number_of_tokens(report: dict[str, Any]) -> None:
    (passes,) = report["passes"]
    assert passes["context"] == 256
    assert list(passes["pass_ms"]) == ["1", "2", "4", "8", "16"]
    assert list(passes["draft_ms"]) == ["2", "4", "8"]  # one token leaves nothing to draft, and the block is of eight
    assert passes["peer_pass_ms"] is None
    assert all(value > 0 for value in passes["pass_ms"].values())


def test_each_pass_has_its_bound_beside_it(report: dict[str, Any], tiny_path: Path) -> None:
    limits, (passes,) = report["limits"], report["passes"]
    with ModelFile(tiny_path) as file:
        plan = file.plan()
    needs = limits["target"]
    assert needs["kv_bytes_per_position"] == plan.kv_bytes_per_token
    # A plan counts the gains of norms, too, and the embedding, of which a pass reads a row.
    matrices = plan.weight_bytes - 4 * plan.n_vocab * plan.n_embd
    assert 0.9 * matrices < needs["weight_bytes"] <= matrices
    read = needs["weight_bytes"] + 256 * needs["kv_bytes_per_position"]
    computed = needs["multiply_adds"] + needs["head_multiply_adds"] + 257 * needs["attention_multiply_adds"]
    bound = max(read / limits["read_bytes_per_s"], computed / limits["multiply_adds_per_s"])
    assert passes["bound_ms"]["1"] == pytest.approx(1e3 * bound)
    assert passes["bound_ms"]["16"] >= passes["bound_ms"]["1"]
    assert all(passes["cached_bound_ms"][rows] <= bound for rows, bound in passes["bound_ms"].items())


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
        contender = BeeContender(engine, "off")
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
    answers = answer_in_turn(contenders, {"x": [7], "y": [8]}, max_tokens=5, repeats=3, steps=Steps())
    turn = [("off", 7), ("dflash", 7), ("off", 8), ("dflash", 8)]
    assert calls == 3 * turn
    assert answers.rows()[0]["decode_tokens_per_s"] == 5.0  # the median of calls 1, 5 and 9
    assert answers.find("bee", "dflash") == 1
    assert answers.find("bee", "auto") is None
    assert answers.ratios(1, 0) == {"x": 6 / 5, "y": 8 / 7}


def test_progress_counts_up_to_what_is_expected() -> None:
    seen: list[tuple[int, int, str]] = []
    steps = Steps(lambda done, total, label: seen.append((done, total, label)))
    answer_in_turn([Recorded("off", [])], {"x": [7]}, max_tokens=5, repeats=2, steps=steps)
    assert seen == [(0, 2, "x, bee off"), (1, 2, "x, bee off")]


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


PASSES = [{"context": 256, "pass_ms": {"1": 2.0, "8": 3.0}}]


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
    assert summary["pass_cost"] == {"256": {"1": 1.0, "8": 1.5}}
    assert summary["same_text_in_all_modes"] is True  # the peer's text is its own affair


@pytest.mark.parametrize("other", ["another", None])
def test_the_summary_tells_texts_that_differ_or_do_not_repeat(other: str | None) -> None:
    rows = [_row("bee", "off", "x", 1.0, "one", 1.0), _row("bee", "dflash", "x", 1.0, other, 1.0)]
    assert summarise(rows, PASSES)["same_text_in_all_modes"] is False
    assert summarise(rows[:1], PASSES)["same_text_in_all_modes"] is None


def test_a_row_of_repeats_that_disagree_has_no_hash() -> None:
    samples = [Sample(text, 1, None, None, 1.0) for text in ("one", "two")]
    assert bench_contenders._row(Recorded("off", []), "x", samples)["text_sha256"] is None


# ---- figures -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def figures(tiny_path: Path, prompts_file: Path) -> dict[str, Any]:
    """All figures of the tiny model, without a peer."""
    return run_benchmark(
        BenchOptions(
            model=tiny_path, prompts=prompts_file, figures=tuple(GROUPS), max_tokens=N_TOKENS, repeats=1, threads=1
        )
    )


def test_every_group_has_figures_or_says_why_not(figures: dict[str, Any]) -> None:
    assert {figure["group"] for figure in figures["figures"]} == set(GROUPS)
    for figure in figures["figures"]:
        assert (figure["reached"] is None) == (figure["met"] is None) or figure["asked"] is None
        assert figure["reached"] is not None or figure["note"], figure["name"]
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures


def test_figures_that_need_a_peer_say_so(figures: dict[str, Any]) -> None:
    notes = {figure["name"]: figure["note"] for figure in figures["figures"]}
    assert "--peer" in notes["decode, speculation off, as shipped"]
    assert "--peer" in notes["decode, requantised to Q8_0"]
    assert "--avx2-peer-path" in notes["decode, AVX2 forced, the peer built without AVX-512"]


def test_a_context_that_is_too_short_is_named(figures: dict[str, Any]) -> None:
    notes = [figure["note"] for figure in figures["figures"] if figure["reached"] is None]
    assert "the context holds 512" in notes  # passes after 1024 positions


def test_drafting_is_held_against_its_bound(figures: dict[str, Any]) -> None:
    assert [entry["prompt"] for entry in figures["draft_bounds"]] == ["first", "second"]
    for entry in figures["draft_bounds"]:
        assert entry["over_bound"] == pytest.approx(entry["reached"] / entry["bound"])
        assert entry["bound"] > 0
    mean = next(figure for figure in figures["figures"] if "over the bound" in figure["name"])
    assert mean["reached"] == pytest.approx(sum(entry["over_bound"] for entry in figures["draft_bounds"]) / 2)


def test_a_fresh_process_tells_memory_and_loading(figures: dict[str, Any]) -> None:
    memory, load = (next(f for f in figures["figures"] if f["group"] == group) for group in ("memory", "load"))
    assert memory["at_most"] is True
    assert load["at_most"] is True
    assert load["reached"] > 0
    assert memory["reached"] is None or memory["reached"] == pytest.approx(memory["ours"] / memory["rival"])


def test_the_tables_are_markdown_and_fill_the_marked_part(figures: dict[str, Any], tmp_path: Path) -> None:
    text = bench_markdown.markdown_of(figures)
    assert text.count("\n| decode, speculation off, as shipped | ") == 1
    widths = {line.count("|") for line in text.split("\n\n")[1].splitlines()}
    assert len(widths) == 1  # every line of a table has as many cells
    page = tmp_path / "page.md"
    page.write_text(f"# Before\n{bench_markdown.BEGIN}\nold\n{bench_markdown.END}\nafter\n")
    bench_markdown.write_markdown(figures, page)
    bench_markdown.write_markdown(figures, page)  # what was filled can be filled again
    assert page.read_text() == f"# Before\n{bench_markdown.BEGIN}\n{text}{bench_markdown.END}\nafter\n"


def test_a_page_without_marks_is_the_tables_alone(figures: dict[str, Any], tmp_path: Path) -> None:
    bench_markdown.write_markdown(figures, tmp_path / "new.md")
    assert (tmp_path / "new.md").read_text() == bench_markdown.markdown_of(figures)
    with pytest.raises(ModelFileError, match="cannot be written"):
        bench_markdown.write_markdown(figures, tmp_path / "nowhere" / "new.md")


def test_the_picture_is_drawn(figures: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    bench_plot.plot_report(figures, tmp_path / "bench.png")
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ModelFileError, match="cannot be written"):
        bench_plot.plot_report(figures, tmp_path / "bench.unknown")
    with pytest.raises(ParameterError, match="nothing to draw"):
        bench_plot.plot_report({**figures, "passes": [], "rows": []}, tmp_path / "bench.png")


def test_a_picture_without_matplotlib_names_the_extra(
    prompts_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, _, errors = _bee(["bench", "--plot", str(tmp_path / "bench.png")], capsys, monkeypatch)
    assert code == 1
    assert "bee-integrations[plot]" in errors


def test_earlier_results_are_shown_and_partly_measured_anew(
    figures: dict[str, Any],
    tiny_path: Path,
    prompts_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before, after = tmp_path / "before.json", tmp_path / "after.json"
    before.write_text(json.dumps(figures))
    code, printed, _ = _bee(["bench", "--from", str(before), "--json", str(after)], capsys, monkeypatch)
    assert code == 0
    assert "peak memory" in printed
    assert json.loads(after.read_text()) == figures
    options = ["--rows", "load", "--repeats", "1", "--threads", "1", "--model", str(tiny_path)]
    again = ["bench", "--from", str(before), "--json", str(after), "--prompts", str(prompts_file), *options]
    code, _, _ = _bee(again, capsys, monkeypatch)
    assert code == 0
    merged = json.loads(after.read_text())
    assert [figure["name"] for figure in merged["figures"]] == [figure["name"] for figure in figures["figures"]]
    kept = [figure for figure in merged["figures"] if figure["group"] != "load"]
    assert kept == [figure for figure in figures["figures"] if figure["group"] != "load"]
    assert (merged["rows"], merged["passes"]) == (figures["rows"], figures["passes"])


def test_results_of_something_else_are_not_merged(figures: dict[str, Any]) -> None:
    with pytest.raises(ParameterError, match="another threads"):
        merge_figures(figures, {**figures, "threads": 7})


@pytest.mark.parametrize(("content", "message"), [("nonsense", "not JSON"), ("{}", "does not hold results")])
def test_earlier_results_that_are_none_are_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "bench.json").write_text(content)
    with pytest.raises(ParameterError, match=message):
        load_report(tmp_path / "bench.json")
    with pytest.raises(ModelFileError, match="cannot be read"):
        load_report(tmp_path / "missing.json")


@pytest.mark.parametrize(
    ("figure", "met"),
    [
        (Figure("x", "x", asked=2.0, reached=2.0), True),
        (Figure("x", "x", asked=2.0, reached=1.9), False),
        (Figure("x", "x", asked=2.0, reached=1.9, at_most=True), True),
        (Figure("x", "x", asked=2.0, reached=2.1, at_most=True), False),
        (Figure("x", "x", asked=2.0), None),
        (Figure("x", "x", reached=2.0), None),
    ],
)
def test_a_figure_knows_whether_it_is_met(figure: Figure, met: bool | None) -> None:
    assert figure.met is met


# ---- bad input -------------------------------------------------------------------------------------------------------


def test_the_bundled_prompts_are_well_formed() -> None:
    prompts = load_prompts()
    assert len(prompts) == 24
    assert all(prompt.messages[-1]["role"] == "user" for prompt in prompts)
    assert len(load_prompts(bundled="repeat")) == 4


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
        {"figures": ("speed",)},
        {"figures": ()},
        {"figures": ("load", "load")},
        {"peer_path": "no/such/folder"},
        {"avx2_peer_path": "no/such/folder"},
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
    with PeerProcess(LlamaCppPeer, model_path, n_ctx=64, threads=1) as peer:
        run = peer.generate([1, 4093, 198], 5, {2})
        assert 1 <= len(run.tokens) <= 5
        assert run.tokens == peer.generate([1, 4093, 198], 5, {2}).tokens
        with pytest.raises(BeeError, match="context of 64"):
            peer.generate([1] * 60, 5, {2})
        assert peer.pass_seconds(2, 3, 1) > 0
        peer._process.kill()
        with pytest.raises(PeerCrashedError, match="crashed"):
            peer.pass_seconds(1, 0, 1)


def test_a_peer_is_imported_from_the_folder_that_is_named(model_path: Path, tmp_path: Path) -> None:
    (tmp_path / "llama_cpp").mkdir()
    (tmp_path / "llama_cpp" / "__init__.py").write_text("raise ImportError('the one in the folder')")
    with pytest.raises(ParameterError, match="the one in the folder"):
        PeerProcess(LlamaCppPeer, model_path, n_ctx=64, threads=1, folder=tmp_path)


def test_the_peer_writes_the_model_in_another_type(model_path: Path, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    requantise(model_path, tmp_path / "q8.gguf", "Q8_0", threads=2)
    with ModelFile(tmp_path / "q8.gguf") as file:
        types = {tensor.type_name for tensor in file.tensors if len(tensor.shape) > 1}
    assert types == {"Q8_0"}
    with pytest.raises(BeeError, match="cannot make Q8_0"):
        requantise(tmp_path / "missing.gguf", tmp_path / "no.gguf", "Q8_0", threads=2)


def test_the_report_has_the_peer_beside_ours(model_path: Path, prompts_file: Path) -> None:
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    options = BenchOptions(
        model=model_path,
        prompts=prompts_file,
        speculation=("off",),
        max_tokens=3,
        repeats=1,
        threads=2,
        peer="llama-cpp-python",
    )
    report = run_benchmark(options)
    (passes,) = report["passes"]
    assert list(passes["peer_pass_ms"]) == list(passes["pass_ms"])
    assert all(ratio > 0 for ratio in passes["peer_pass_ratios"].values())
    assert [row["engine"] for row in report["rows"]] == 2 * ["bee"] + 2 * ["llama-cpp-python"]
    assert set(report["rows"][-1]) == ROW_KEYS


def test_figures_are_ratios_to_the_peer(model_path: Path, prompts_file: Path) -> None:
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    options = BenchOptions(
        model=model_path,
        prompts=prompts_file,
        figures=("decode", "prefill", "one-thread"),
        max_tokens=4,
        repeats=1,
        threads=2,
        peer="llama-cpp-python",
    )
    figures = run_benchmark(options)["figures"]
    assert [figure["group"] for figure in figures] == ["decode", "prefill", "one-thread"]
    for figure in figures:
        assert figure["reached"] > 0
        assert figure["bound_share"] > 0
    assert figures[1]["reached"] == pytest.approx(figures[1]["ours"] / figures[1]["rival"])
