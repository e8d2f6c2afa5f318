"""`bee bench --shapes`: files of real shapes with random weights, measured beside a peer."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bee_integrations import Engine, GenerationParams
from bee_integrations.bench import shapes
from bee_integrations.bench.markdown import markdown_of
from bee_integrations.bench.peer_process import Peer, PeerCrashedError, PeerProcess
from bee_integrations.bench.plot import plot_report
from bee_integrations.bench.shapes import PEERS, ShapesOptions, expert_bytes, run_shapes
from bee_integrations.bench.synthetic_model import shape_named, write_target
from bee_integrations.errors import ModelFileError, ParameterError, UnsupportedModelError
from bee_integrations.models.file import ModelFile


def quick(*names: str, **more: Any) -> ShapesOptions:
    return ShapesOptions(names, threads=1, contexts=(16,), rounds=1, **more)


def test_a_row_has_passes_bounds_and_sizes() -> None:
    report = run_shapes(quick("tiny", "tiny:IQ3_S", "tiny@1:IQ3_S"))
    assert report["shapes"][2]["n_weights"] < report["shapes"][1]["n_weights"]
    for row, bits in zip(report["shapes"], (4.9, 3.5, 3.5), strict=True):
        assert list(row["pass_ms"]) == list(row["bound_ms"]) == ["1", "4", "8", "16"]
        assert all(0 < row["bound_ms"][rows] < math.inf and row["pass_ms"][rows] > 0 for rows in row["pass_ms"])
        assert row["share_in_turn"] == pytest.approx(row["bound_ms"]["1"] / row["pass_ms"]["1"])  # of one round
        assert 8 * row["file_bytes"] / row["n_weights"] == pytest.approx(bits, rel=0.1)
        assert row["memory_bytes"] < 1.15 * row["file_bytes"]
        assert row["peers"] == row["refusals"] == {}
    assert "| tiny:IQ3_S |" in markdown_of(report)


def test_a_bound_counts_the_experts_that_rows_hit(tmp_path: Path) -> None:
    mixture, dense = shape_named("tiny-hybrid-mixture"), shape_named("tiny")
    assert mixture is not None
    assert mixture.experts is not None
    assert dense is not None
    file = write_target(mixture, tmp_path / "mixture.gguf")
    with ModelFile(file) as opened:
        every = sum(tensor.size for tensor in opened.tensors if len(tensor.shape) == 3)
    share = mixture.experts.used / mixture.experts.count
    assert expert_bytes(file, 1) == pytest.approx(0)
    assert expert_bytes(file, 2) == pytest.approx(every * share * (1 - share))
    assert expert_bytes(file, 10_000) == pytest.approx(every * (1 - share))
    assert expert_bytes(write_target(dense, tmp_path / "dense.gguf"), 8) == 0


def test_contexts_have_rows_of_their_own_and_a_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    report = run_shapes(ShapesOptions(("tiny",), threads=1, contexts=(16, 1100), rounds=1))
    assert [(row["context"], row["prompt"]) for row in report["shapes"]] == [(16, 32), (1100, 550)]
    assert all(row["load_seconds"] > 0 for row in report["shapes"])
    plot_report(report, tmp_path / "shapes.png")
    assert (tmp_path / "shapes.png").stat().st_size > 10_000


class StubPeer:
    """As fast as it is told, so that ratios can be told from anything else."""

    version, repack = "0", True

    def __init__(self, peer: type[Peer], file: Path, **_: Any) -> None:
        self.name, self.largest_pass = peer.name, peer.largest_pass
        assert file.exists()

    def pass_seconds(self, n_rows: int, n_past: int, repeats: int) -> float:
        return 1e3 * n_rows

    def generate(self, tokens: Any, max_tokens: int, stop_tokens: Any) -> Any:
        return type("Run", (), {"time_to_first_token_s": 5e3})

    def close(self) -> None:
        self.closed = True


def test_ratios_are_the_peers_time_over_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shapes, "PeerProcess", StubPeer)
    report = run_shapes(quick("tiny", peers=("llama-cpp-python", "openvino")))
    (row,) = report["shapes"]
    assert list(row["peers"]) == ["llama-cpp-python", "openvino"]
    for peer in row["peers"].values():
        for rows, ratio in peer["pass_ratios"].items():
            assert peer["pass_ms"][rows] == pytest.approx(1e6 * int(rows))
            assert ratio == pytest.approx(1e6 * int(rows) / row["pass_ms"][rows])
        assert peer["prompt_ratio"] == pytest.approx(5e3 * row["prompt_tokens_per_s"] / 32)
    assert list(row["peers"]["llama-cpp-python"]["pass_ratios"]) == ["1", "4", "8", "16"]
    assert list(row["peers"]["openvino"]["pass_ratios"]) == ["1"]  # it cannot be asked for more
    second = markdown_of(report).splitlines()[-1].split(" | ")
    assert second[0].strip("| ") == ""  # Bee's own figures stand once
    peer = shapes.COLUMNS.index("peer")
    assert second[peer] == "openvino"
    assert second[peer + 2 : peer + 5] == ["-", "-", "-"]


class FailingPeer(StubPeer):
    def pass_seconds(self, n_rows: int, n_past: int, repeats: int) -> float:
        if n_rows == 8 and self.name == "ik-llama":
            raise UnsupportedModelError("it cannot go back")
        return super().pass_seconds(n_rows, n_past, repeats)


def test_a_peer_that_fails_on_the_way_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shapes, "PeerProcess", FailingPeer)
    options = ShapesOptions(("tiny",), peers=("ik-llama", "llama-cpp-python"), threads=1, contexts=(16, 17), rounds=2)
    report = run_shapes(options)
    for row in report["shapes"]:
        assert list(row["peers"]) == ["llama-cpp-python"]
        assert row["refusals"] == {"ik-llama": "it cannot go back"}
    assert "Left out: tiny: it cannot go back." in markdown_of(report)


class ShortLivedPeer(StubPeer):
    """Of a process."""

    name, largest_pass = "short-lived", 1

    def __init__(self, model_path: Path, **_: Any) -> None:
        pass


def test_a_peer_that_dies_between_two_calls(tmp_path: Path) -> None:
    with PeerProcess(ShortLivedPeer, tmp_path, n_ctx=8, threads=1) as peer:
        assert peer.pass_seconds(1, 0, 1) == 1e3
        peer._process.kill()
        peer._process.join()
        for _ in range(2):
            with pytest.raises(PeerCrashedError, match="short-lived crashed"):
                peer.pass_seconds(1, 0, 1)


def test_a_peer_that_cannot_open_the_file_is_left_out_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(peer: type[Peer], file: Path, **_: Any) -> None:
        raise UnsupportedModelError(f"the peer cannot load {file}")

    monkeypatch.setattr(shapes, "PeerProcess", refuse)
    report = run_shapes(quick("tiny", peers=("llama-cpp-python",)))
    assert report["shapes"][0]["refusals"] == {"llama-cpp-python": "the peer cannot load the file"}
    assert "Left out: tiny: the peer cannot load the file." in markdown_of(report)


@pytest.mark.parametrize("kind", ["Q4_K", "IQ2_S", "MXFP4", "F16"])
def test_files_hold_weights_of_usual_size(kind: str, tmp_path: Path) -> None:
    shape = shape_named(f"tiny:{kind}")
    assert shape is not None
    file = write_target(shape, tmp_path / "model.gguf", with_weights=True)
    with ModelFile(file) as opened:
        last = max(opened.tensors, key=lambda tensor: tensor.offset)
        assert file.stat().st_size >= last.offset + last.size
        assert {tensor.type_name for tensor in opened.tensors} == {kind, "F32"}
    with Engine(file, drafter=None, n_ctx=64, device="cpu", threads=1) as engine:
        answer = engine.complete([1, 2, 3], GenerationParams(max_tokens=8, temperature=0.0, logprobs=True))
        assert len(answer.tokens) == 8
        chances = np.array([token.logprob for token in answer.logprobs])
        assert np.isfinite(chances).all()
        assert (chances < -0.01).all()  # nothing is so sure of itself, and nothing is NaN


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shapes": ("huge",)}, "there is no shape 'huge'"),
        ({"shapes": ("tiny:Q9",)}, "there is no shape 'tiny:Q9'"),
        ({"shapes": ("tiny@0",)}, "there is no shape 'tiny@0'"),
        ({"shapes": ("tiny@3",)}, "there is no shape 'tiny@3'"),  # it has two
        ({"shapes": ("tiny@",)}, "there is no shape 'tiny@'"),
        ({"shapes": ()}, "no shape is named"),
        ({"shapes": ("tiny",), "contexts": (0,)}, "from 1 to 8175"),
        ({"shapes": ("tiny", "qwen3-1.7b@2"), "contexts": (16384,)}, "a context is 16384; with 'tiny' it must be"),
        ({"shapes": ("qwen3-1.7b@2",), "contexts": (32769,)}, "from 1 to 32768"),
        ({"shapes": ("tiny",), "contexts": (8176,)}, "a context is 8176; with 'tiny' it must be from 1 to 8175"),
        ({"shapes": ("gpt-oss-20b",), "contexts": ()}, "from 1 to 32768"),
        ({"shapes": ("tiny",), "peers": ("another",)}, "there is no peer 'another'"),
        ({"shapes": ("tiny",), "peers": ("another=folder",)}, "there is no peer 'another'"),
        ({"shapes": ("tiny",), "peers": ("openvino=a", "openvino=b")}, "the peer 'openvino' is named twice"),
    ],
)
def test_names_that_do_not_exist(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        ShapesOptions(**options)


@pytest.mark.parametrize(("name", "package"), [("ik-llama", "ik_llama_cpp"), ("openvino", "openvino_genai")])
def test_a_peer_that_is_not_there_is_left_out_by_name(name: str, package: str, tmp_path: Path) -> None:
    (tmp_path / package).mkdir()
    (tmp_path / package / "__init__.py").write_text("raise ImportError('the one in the folder')")
    (row,) = run_shapes(quick("tiny", peers=(f"{name}={tmp_path}",)))["shapes"]
    assert "the one in the folder" in row["refusals"][name]
    assert "pip install" in row["refusals"][name]


@pytest.mark.parametrize("name", PEERS)
def test_peers_that_are_installed_measure(name: str) -> None:
    (row,) = run_shapes(quick("tiny", peers=(name,)))["shapes"]
    if "cannot be imported" in row["refusals"].get(name, ""):
        pytest.skip(row["refusals"][name])
    assert all(ratio > 0 for ratio in row["peers"][name]["pass_ratios"].values())
    assert row["peers"][name]["prompt_ratio"] > 0


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    shape = shape_named("tiny")
    assert shape is not None
    (tmp_path / "full.gguf").symlink_to("/dev/full")
    with pytest.raises(ModelFileError, match=r"cannot be written .*TMPDIR"):
        write_target(shape, tmp_path / "full.gguf", with_weights=True)
