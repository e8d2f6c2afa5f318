"""`bee models`, `bee rm`, `bee pull` and `bee run` with names."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny_model
from gguf_document import text
from hub_server import Repository, running_hub
from model_stores import own_places, write_folder, write_ollama
from rich.console import Console
from test_cli import Bee

from bee_integrations.models import registry
from bee_integrations.models.listing import print_models


@pytest.fixture
def bee(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Bee:
    own_places(tmp_path, monkeypatch)
    monkeypatch.setattr(registry, "REGISTRY", {})
    return Bee(capsys, monkeypatch)


@pytest.fixture
def tiny_bytes(tmp_path: Path) -> bytes:
    return tiny_model.model().write(tmp_path / "tiny.gguf").read_bytes()


@pytest.fixture
def drafter_bytes(tmp_path: Path) -> bytes:
    return tiny_model.drafter().write(tmp_path / "drafter.gguf").read_bytes()


def test_models_of_all_places(
    bee: Bee, tmp_path: Path, tiny_bytes: bytes, drafter_bytes: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    strange = tiny_model.model()
    strange.metadata["general.architecture"] = text("mamba")
    strange_bytes = strange.write(tmp_path / "strange.gguf").read_bytes()
    write_ollama(tmp_path / "ollama", "registry.ollama.ai/library/tiny/latest", {"model": tiny_bytes})
    write_ollama(tmp_path / "ollama", "registry.ollama.ai/library/gone/latest", {"model": b"gone"})
    for blob in (tmp_path / "ollama/blobs").iterdir():
        if blob.read_bytes() == b"gone":
            blob.unlink()
    studio = {"bee/tiny/tiny-F32.gguf": tiny_bytes, "bee/tiny/tiny-dflash.gguf": drafter_bytes}
    write_folder(tmp_path / "home/.lmstudio/models", studio)
    write_folder(tmp_path / "mine", {"a/strange.gguf": strange_bytes, "b/broken.gguf": b"GGUF"})
    with running_hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        hub.repositories["bee/tiny"] = Repository({"tiny-F32.gguf": tiny_bytes})
        assert bee("pull", "hf:bee/tiny")[0] == 0
    entries = {entry["name"]: entry for entry in bee.json("models", tmp_path / "mine")["models"]}
    strange_path, broken_path = tmp_path / "mine/a/strange.gguf", tmp_path / "mine/b/broken.gguf"
    assert set(entries) == {
        "hf:bee/tiny:F32", "ollama:tiny:latest", "lmstudio:bee/tiny:F32", str(strange_path), str(broken_path),
    }  # fmt: skip
    for name in ("hf:bee/tiny:F32", "ollama:tiny:latest", "lmstudio:bee/tiny:F32"):
        entry = entries[name]
        assert (entry["bytes"], entry["architecture"], entry["quantisation"]) == (len(tiny_bytes), "llama", "F32")
        assert (entry["runnable"], entry["fits"], entry["reason"]) == (True, True, None)
        assert bee("info", name)[0] == 0  # a listed name is one that can be given
    assert entries["lmstudio:bee/tiny:F32"]["drafter"].endswith("tiny-dflash.gguf")
    assert entries["ollama:tiny:latest"]["drafter"] is None
    assert not entries[str(strange_path)]["runnable"]
    assert "mamba" in entries[str(strange_path)]["reason"]
    assert "GGUF" in entries[str(broken_path)]["reason"] or "byte" in entries[str(broken_path)]["reason"]


def test_the_table_of_models(bee: Bee, tmp_path: Path, tiny_bytes: bytes) -> None:
    code, output, errors = bee("models")
    assert (code, output) == (0, "")
    assert "bee pull" in errors
    write_folder(tmp_path / "mine", {"tiny.gguf": tiny_bytes, "broken.gguf": b"GGUF"})
    code, output, _ = bee("models", tmp_path / "mine")
    assert code == 0
    assert "tiny.gguf" in output
    assert "yes" in output
    assert "no such folder" not in output
    assert "none" in bee.refuses("models", tmp_path / "none")


def test_the_table_prints_no_control_characters() -> None:
    output = io.StringIO()
    entry: dict[str, Any] = {"name": "evil \x1b[31m[red]", "bytes": 1, "architecture": "\x07", "quantisation": None}
    entry |= {"runnable": False, "reason": "\x1b]0;x", "fits": None, "drafter": None}
    print_models([entry], Console(file=output, width=200))
    assert "\x1b" not in output.getvalue()
    assert "\x07" not in output.getvalue()
    assert "[red]" in output.getvalue()


def test_rm(bee: Bee, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "REGISTRY", {"demo": object()})
    directory = tmp_path / "cache/models/demo"
    write_folder(directory, {"demo.gguf": b"x" * 2_000_000})
    write_folder(tmp_path / "cache/models/other", {"other.gguf": b"x"})
    code, output, errors = bee("rm", "demo")
    assert (code, output) == (0, "")
    assert "2.0 MB are free again" in errors
    assert not directory.exists()
    assert (tmp_path / "cache/models/other/other.gguf").exists()
    assert "is not in the cache" in bee.refuses("rm", "demo")
    for name, how in {"hf:a/b": "hf cache rm", "ollama:x": "ollama rm", "lmstudio:a/b": "LM Studio"}.items():
        assert how in bee.refuses("rm", name)
    assert "no model named '../other'" in bee.refuses("rm", "../other")


def test_run_takes_a_name_before_the_prompt(bee: Bee, tmp_path: Path, tiny_bytes: bytes) -> None:
    write_ollama(tmp_path / "ollama", "registry.ollama.ai/library/tiny/latest", {"model": tiny_bytes})
    arguments = ("--threads", "1", "-n", "5")
    by_name = bee.json("run", "ollama:tiny", "hello", *arguments)
    assert by_name["model"] == "ollama:tiny:latest"
    by_option = bee.json("run", "hello", "--model", "ollama:tiny", *arguments)
    assert by_option["tokens"] == by_name["tokens"]
    by_path = bee.json("run", tmp_path / "tiny.gguf", "hello", *arguments)
    assert by_path["tokens"] == by_name["tokens"]
    assert bee("run", "ollama:tiny", "hello", "--model", "ollama:tiny")[0] == 2
    assert bee("run", "a", "b", "c")[0] == 2


def test_run_with_a_name_alone_opens_a_chat(bee: Bee, tmp_path: Path, tiny_bytes: bytes) -> None:
    (tmp_path / "tiny.gguf").write_bytes(tiny_bytes)
    code, output, errors = bee(
        "run",
        tmp_path / "tiny.gguf",
        "--threads",
        "1",
        "-n",
        "4",
        "-s",
        "be short",
        stdin=b"hello\n/verbose\nmore\n/bye\n",
    )
    assert code == 0
    assert output.endswith("\n")
    assert "/? lists commands" in errors
    assert "4 tokens (length)" in errors
    assert "give it behind the model's name" in bee.refuses("run", tmp_path / "tiny.gguf", "--json")
    assert "is no name of a model" in bee.refuses("run", "hf:nonsense")


def test_a_prompt_with_a_colon_is_a_prompt(bee: Bee, tmp_path: Path, tiny_bytes: bytes) -> None:
    answer = bee.json("run", "hf: what does it mean?", "--model", tmp_path / "tiny.gguf", "--threads", "1", "-n", "2")
    assert len(answer["tokens"]) <= 2


def test_pull_tells_why(bee: Bee, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with running_hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        hub.repositories["bee/demo"] = Repository({"m-Q4_0.gguf": b"GGUF 4", "m-Q8_0.gguf": b"GGUF eight"})
        code, output, errors = bee("pull", "hf:bee/demo")
        assert code == 0
        assert Path(output.strip()).read_bytes() == b"GGUF eight"
        assert "Q8_0: the best of 2" in errors
        hub.repositories["bee/demo"] = Repository({"m-Q8_0.gguf": b"GGUF 8, newer"}, commit="b" * 40)
        assert Path(bee("pull", "hf:bee/demo")[1].strip()).read_bytes() == b"GGUF 8, newer"
    assert json.dumps(sys.argv[1:]) == '["pull", "hf:bee/demo"]'
