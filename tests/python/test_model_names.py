"""Names of models: hubs, stores and folders made here, and every way in which they can be wrong."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_model
from gguf_document import TYPES, Document, Stored, text
from hub_server import Hub, Repository, running_hub
from model_stores import own_places, write_folder, write_ollama
from no_home import without_home

from bee_integrations import Engine, GenerationParams
from bee_integrations.errors import BeeError, ModelDownloadError, ModelFileError, ParameterError, TemplateError
from bee_integrations.models import gguf_names, hub_download, lmstudio, locate_model, ollama, resolve_model
from bee_integrations.models import memory as memory_module
from bee_integrations.models.file import ModelFile
from bee_integrations.models.gguf_names import choose, group, quantisation, split_of

CONTENT = b"GGUF" + bytes(range(256)) * 4000
OTHER = b"GGUF" + bytes(reversed(range(256))) * 5000


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of this machine's own stores is seen."""
    own_places(tmp_path, monkeypatch)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with running_hub() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        server.repositories["bee/demo"] = Repository(
            {
                "README.md": b"hello",
                "demo-Q4_K_M.gguf": CONTENT,
                "demo-Q8_0.gguf": OTHER,
                "mmproj-demo-F16.gguf": b"GGUF vision",
            }
        )
        yield server


# ---- what names of files say -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Qwen3-8B-Q4_K_M.gguf", "Q4_K_M"),
        ("qwen3-8b.q5_0.gguf", "Q5_0"),
        ("Model-IQ4_XS.gguf", "IQ4_XS"),
        ("Model-UD-Q4_K_XL.gguf", "UD-Q4_K_XL"),
        ("Q8_0/model-00001-of-00002.gguf", "Q8_0"),
        ("model-Q6_K-00001-of-00002.gguf", "Q6_K"),
        ("SmolLM2-135M-Instruct.Q4_1.gguf", "Q4_1"),
        ("model-bf16.gguf", "BF16"),
        ("gpt-oss-20b-mxfp4.gguf", "MXFP4"),
        ("model.gguf", None),
        ("Q4_K_Mixed.gguf", None),
    ],
)
def test_quantisations(name: str, expected: str | None) -> None:
    assert quantisation(name) == expected


def test_parts_of_a_split_file() -> None:
    assert split_of("a/b-00002-of-00010.gguf") == ("a/b", 2, 10)
    assert split_of("b-2-of-10.gguf") is None
    sets = group([(f"m-Q4_0-0000{part}-of-00003.gguf", 10) for part in (3, 1, 2)] + [("m-Q8_0-00002-of-00002.gguf", 9)])
    whole, half = sets
    assert whole.files == tuple(f"m-Q4_0-0000{part}-of-00003.gguf" for part in (1, 2, 3))
    assert (whole.complete, whole.size, whole.quantisation) == (True, 30, "Q4_0")
    assert not half.complete
    with pytest.raises(ModelFileError, match=r"the place has 1 of the 2 parts .*missing: 1$"):
        choose(sets, "Q8_0", "the place")


def test_the_best_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    gigabyte = 10**9
    sets = group([("m-F16.gguf", 16 * gigabyte), ("m-Q8_0.gguf", 8 * gigabyte), ("m-Q4_K_M.gguf", 5 * gigabyte)])
    for free, expected, why in ((100, "Q8_0", "best of 3"), (9, "Q4_K_M", "best of 3"), (2, "Q4_K_M", "none fits")):
        monkeypatch.setattr(gguf_names, "memory_for_models", lambda free=free: (free * gigabyte, "here"))
        choice = choose(sets, None, "the place")
        assert choice.chosen.quantisation == expected
        assert choice.note is not None
        assert why in choice.note
    assert memory_module.memory_for_models()[0] > 0


def test_the_best_is_one_that_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_names, "memory_for_models", lambda: (10**12, "here"))
    unknown = ("m-IQ6_K.gguf", "m-Q6_K_R4.gguf", "m-Q4_0_4_8.gguf")
    sets = group([(name, 9) for name in unknown] + [("m-Q4_K_M.gguf", 5), ("m-IQ2_M.gguf", 3)])
    choice = choose(sets, None, "the place")
    assert choice.chosen.quantisation == "Q4_K_M"
    assert choice.note is not None
    assert choice.note.startswith("Q4_K_M: the best of 2 that fits")
    assert choice.note.endswith("; Bee does not run IQ6_K, Q4_0_4_8, Q6_K_R4")
    assert choose(sets, "IQ6_K", "the place").chosen.first == "m-IQ6_K.gguf"  # by name, whatever it is
    only = choose([one for one in sets if one.quantisation != "IQ2_M"], None, "the place")
    assert only.note == "Q4_K_M: the only one that Bee runs; Bee does not run IQ6_K, Q4_0_4_8, Q6_K_R4"
    with pytest.raises(ModelFileError, match=r"the place has IQ6_K, Q4_0_4_8, Q6_K_R4, which Bee does not run"):
        choose([one for one in sets if not one.runs], None, "the place")


def test_every_weight_type_counts_as_one_that_runs(tmp_path: Path) -> None:
    """The words of names against the library itself."""
    document = Document({"general.architecture": text("llama")})
    for kind in TYPES:
        document.tensors[kind] = Stored.zeros(kind, (1, 256))
    with ModelFile(document.write(tmp_path / "types.gguf")) as file:
        running = {tensor.type_name for tensor in file.tensors if tensor.supported}
    assert running > {"F32", "Q4_K", "IQ1_M", "NVFP4"}
    for kind in running:
        for mixture in {"Q3_K": ("Q3_K_S", "UD-Q3_K_XL"), "IQ3_S": ("IQ3_XS", "IQ3_M")}.get(kind, (kind,)):
            (one,) = group([(f"m-{mixture}.gguf", 1)])
            assert one.quantisation == mixture
            assert one.runs, mixture
    for mixture in ("Q8_K", "I16", "IQ2_KS", "IQ4_KSS", "Q4_0_8_8", "IQ4_NL_R4", "Q4_2", "IQ5_K"):
        (one,) = group([(f"m-{mixture}.gguf", 1)])
        assert one.quantisation in (None, mixture)
        assert one.quantisation is None or not one.runs, mixture


# ---- hubs ------------------------------------------------------------------------------------------------------------


def test_a_quantisation_of_a_repository(hub: Hub) -> None:
    seen: list[tuple[int, int, str]] = []
    located = locate_model("hf:bee/demo:q4_k_m", progress=lambda *step: seen.append(step))
    assert located.path.read_bytes() == CONTENT
    assert (located.name, located.place, located.note) == ("hf:bee/demo:Q4_K_M", "hub", None)
    assert [step for step in seen if step[2] == "download"][-1] == (len(CONTENT), len(CONTENT), "download")
    assert all(0 <= done <= total for done, total, _ in seen)
    count = len(hub.requests)
    assert locate_model("hf:bee/demo:Q4_K_M").path == located.path
    assert len(hub.requests) == count  # from the cache, without asking


def test_a_file_of_a_repository(hub: Hub) -> None:
    assert resolve_model("hf:bee/demo/demo-Q8_0.gguf").read_bytes() == OTHER
    assert resolve_model("hf:bee/demo/mmproj-demo-F16.gguf").read_bytes() == b"GGUF vision"  # by name, whatever it is
    with pytest.raises(ModelFileError, match=r"has no demo-Q2_K\.gguf; it has demo-Q4_K_M\.gguf, demo-Q8_0\.gguf"):
        resolve_model("hf:bee/demo/demo-Q2_K.gguf")


def test_the_best_of_a_repository(hub: Hub) -> None:
    located = locate_model("hf:bee/demo")
    assert located.path.read_bytes() == OTHER
    assert located.note is not None
    assert "Q8_0: the best of 2 that fits" in located.note
    assert not [request for request in hub.requests if "mmproj" in request or "README" in request]


def test_revisions(hub: Hub) -> None:
    commit = hub.repositories["bee/demo"].commit
    for name in (
        f"hf:bee/demo@{commit}:Q4_K_M",
        f"hf:bee/demo:Q4_K_M@{commit}",
        f"hf:bee/demo/demo-Q4_K_M.gguf@{commit}",
    ):
        assert resolve_model(name).read_bytes() == CONTENT
    with pytest.raises(ModelDownloadError, match="bee/demo has no revision 'v9'"):
        resolve_model("hf:bee/demo@v9")


def test_a_missing_quantisation_is_answered_with_those_there_are(hub: Hub) -> None:
    with pytest.raises(ModelFileError, match="hf:bee/demo has no Q2_K; it has Q4_K_M, Q8_0"):
        resolve_model("hf:bee/demo:Q2_K")


def test_a_repository_without_gguf(hub: Hub) -> None:
    hub.repositories["bee/text"] = Repository({"README.md": b"", "model.safetensors": b"x", "mmproj-F16.gguf": b"GGUF"})
    with pytest.raises(ModelFileError, match="hf:bee/text has no GGUF file with a model in it"):
        resolve_model("hf:bee/text")


def test_a_split_model_comes_as_a_set(hub: Hub) -> None:
    parts = {f"Q4_0/m-Q4_0-0000{part}-of-00003.gguf": CONTENT[part:] for part in (1, 2, 3)}
    hub.repositories["bee/split"] = Repository(parts)
    path = resolve_model("hf:bee/split:Q4_0")
    assert path.name == "m-Q4_0-00001-of-00003.gguf"
    assert {file.name: file.read_bytes() for file in path.parent.iterdir()} == {
        Path(name).name: content for name, content in parts.items()
    }
    del hub.repositories["bee/split"].files["Q4_0/m-Q4_0-00002-of-00003.gguf"]
    hub.repositories["bee/half"] = hub.repositories["bee/split"]
    with pytest.raises(ModelFileError, match=r"2 of the 3 parts .* missing: 2"):
        resolve_model("hf:bee/half:Q4_0")


def test_a_gated_repository(hub: Hub) -> None:
    hub.repositories["bee/gated"] = Repository({"m.gguf": CONTENT}, gated=True)
    with pytest.raises(ModelDownloadError, match=r"is gated: accept its terms at .*/bee/gated.*HF_TOKEN"):
        resolve_model("hf:bee/gated")


def test_no_such_repository(hub: Hub) -> None:
    with pytest.raises(ModelDownloadError, match=r"no repository bee/nothing on http.*HF_TOKEN"):
        resolve_model("hf:bee/nothing")


def test_a_dropped_connection_goes_on_where_it_ended(hub: Hub) -> None:
    hub.drop_after = 300_000
    assert resolve_model("hf:bee/demo:Q4_K_M").read_bytes() == CONTENT
    assert hub.ranges == ["bytes=300000-"]


def test_a_killed_download_goes_on_where_it_ended(hub: Hub, tmp_path: Path) -> None:
    def interrupt(done: int, total: int, stage: str) -> None:
        if done > 200_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        resolve_model("hf:bee/demo:Q4_K_M", progress=interrupt)
    (part,) = (tmp_path / "hub").rglob("*.bee-part")
    arrived = part.stat().st_size
    assert 200_000 < arrived < len(CONTENT)
    assert part.read_bytes() == CONTENT[:arrived]
    with pytest.raises(ModelFileError, match="is not here yet"):  # half of a file is none
        resolve_model("hf:bee/demo:Q4_K_M", download=False)
    assert resolve_model("hf:bee/demo:Q4_K_M").read_bytes() == CONTENT
    assert hub.ranges == [f"bytes={arrived}-"]
    assert not part.exists()


def test_the_half_of_another_file_is_noticed(hub: Hub, tmp_path: Path) -> None:
    blobs = tmp_path / "hub/models--bee--demo/blobs"
    blobs.mkdir(parents=True)
    (blobs / f"{hashlib.sha256(CONTENT).hexdigest()}.bee-part").write_bytes(b"something else")
    with pytest.raises(ModelDownloadError, match=r"does not have the SHA-256 that the hub states .* it was not kept"):
        resolve_model("hf:bee/demo:Q4_K_M")
    assert resolve_model("hf:bee/demo:Q4_K_M").read_bytes() == CONTENT


def test_a_wrong_hash_is_not_kept(hub: Hub) -> None:
    hub.repositories["bee/demo"].stated["demo-Q4_K_M.gguf"] = CONTENT[:-1] + b"?"
    with pytest.raises(ModelDownloadError, match=r"demo-Q4_K_M\.gguf .*does not have the SHA-256 that the hub states"):
        resolve_model("hf:bee/demo:Q4_K_M")
    del hub.repositories["bee/demo"].stated["demo-Q4_K_M.gguf"]
    assert resolve_model("hf:bee/demo:Q4_K_M").read_bytes() == CONTENT


def test_a_file_that_changes_in_the_cache(hub: Hub) -> None:
    path = resolve_model("hf:bee/demo:Q4_K_M").resolve()
    path.chmod(0o644)
    path.write_bytes(CONTENT[:-1] + b"?")
    with pytest.raises(ModelDownloadError, match=r"removed from the cache: get it again with 'bee pull hf:bee/demo"):
        resolve_model("hf:bee/demo:Q4_K_M")
    assert resolve_model("hf:bee/demo:Q4_K_M").read_bytes() == CONTENT


def test_without_a_network_the_cache_is_used(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    path = resolve_model("hf:bee/demo:Q4_K_M")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    assert resolve_model("hf:bee/demo:Q4_K_M") == path
    assert resolve_model("hf:bee/demo") == path  # the best of what is here
    with pytest.raises(ModelDownloadError, match=r"cannot be reached for hf:bee/demo:Q8_0 .*the cache has demo-Q4_K_M"):
        resolve_model("hf:bee/demo:Q8_0")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert resolve_model("hf:bee/demo:Q4_K_M") == path
    with pytest.raises(ModelDownloadError, match="HF_HUB_OFFLINE is set"):
        resolve_model("hf:bee/demo:Q8_0")
    with pytest.raises(ModelDownloadError, match="the cache has nothing of that repository"):
        resolve_model("hf:bee/other")


def test_nothing_is_fetched_where_that_is_not_wanted(hub: Hub) -> None:
    with pytest.raises(ModelFileError, match="bee pull hf:bee/demo:Q4_K_M"):
        resolve_model("hf:bee/demo:Q4_K_M", download=False)
    assert hub.requests == []


def test_a_full_disk(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(url: str, part: Path, *_: Any) -> None:
        part.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(hub_download, "_fetch_rest", full)
        with pytest.raises(ModelDownloadError, match="the disk is full"):
            resolve_model("hf:bee/demo:Q4_K_M")
    assert [path for path in (tmp_path / "hub").rglob("*") if path.is_file() and path.suffix != ".lock"] == []
    assert resolve_model("hf:bee/demo:Q4_K_M").read_bytes() == CONTENT


def test_two_processes_at_once(hub: Hub, tmp_path: Path) -> None:
    program = (
        f"import sys; sys.path.insert(0, {str(Path(gguf_names.__file__).parents[2])!r})\n"
        "from bee_integrations.models import resolve_model\n"
        "print(resolve_model('hf:bee/demo:Q4_K_M'))"
    )
    processes = [subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    paths = {process.communicate(timeout=120)[0].strip() for process in processes}
    assert len(paths) == 1
    assert Path(paths.pop()).read_bytes() == CONTENT
    assert not list((tmp_path / "hub").rglob("*.incomplete"))


@pytest.mark.parametrize(
    "name",
    ["hf:", "hf:demo", "hf:/demo", "hf:bee/", "hf:bee/demo:", "hf:bee/demo@", "hf:a/b/../../c.gguf",
     "hf:bee/demo/x.bin", "hf:bee/demo:Q4:Q5", "hf:https://example.org/bee/demo", "hf:bee/de mo", "ollama:",
     "ollama:a b",
     "ollama:a/b/c/d:e", "ollama:../x", "ollama::", "lmstudio:", "lmstudio:a/b/c/d.gguf", "lmstudio:../a"],
)  # fmt: skip
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(ParameterError, match=r"is no name of a model.*the forms are"):
        resolve_model(name)


# ---- Ollama ----------------------------------------------------------------------------------------------------------


PARAMETERS = {
    "temperature": 0.6,
    "top_k": 20,
    "repeat_penalty": 1,
    "stop": ["<|im_start|>", "<|im_end|>"],
    "num_gpu": 1,
}


@pytest.fixture
def store(tmp_path: Path) -> Path:
    directory = tmp_path / "ollama"
    layers = {
        "model": CONTENT,
        "template": b"{{ .Prompt }}",
        "params": json.dumps(PARAMETERS).encode(),
        "license": b"MIT",
    }
    write_ollama(directory, "registry.ollama.ai/library/qwen3/8b", layers)
    write_ollama(directory, "registry.ollama.ai/library/qwen3/latest", layers)
    write_ollama(directory, "registry.ollama.ai/me/mine/latest", {"model": OTHER})
    write_ollama(directory, "hf.co/bee/demo-GGUF/Q4_K_M", {"model": OTHER})
    return directory


def test_ollama(store: Path) -> None:
    located = locate_model("ollama:qwen3:8b")
    assert located.path.read_bytes() == CONTENT
    assert (located.name, located.place) == ("ollama:qwen3:8b", "ollama")
    assert located.sampling == {"temperature": 0.6, "top_k": 20, "repetition_penalty": 1}
    assert located.stop == ("<|im_start|>", "<|im_end|>")
    assert locate_model("ollama:qwen3").name == "ollama:qwen3:latest"
    assert locate_model("ollama:library/qwen3:8b").path == located.path
    assert locate_model("ollama:me/mine").path.read_bytes() == OTHER
    assert locate_model("ollama:hf.co/bee/demo-GGUF:Q4_K_M").name == "ollama:hf.co/bee/demo-GGUF:Q4_K_M"
    assert [str(name) for name, _, _ in ollama.installed()] == [
        "ollama:hf.co/bee/demo-GGUF:Q4_K_M", "ollama:qwen3:8b", "ollama:qwen3:latest", "ollama:me/mine:latest",
    ]  # fmt: skip


def test_ollama_in_the_home_directory(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OLLAMA_MODELS")
    home = tmp_path / "home" / ".ollama" / "models"
    home.parent.mkdir(parents=True)
    store.rename(home)
    assert resolve_model("ollama:qwen3").parent == home / "blobs"
    without_home(monkeypatch)
    with pytest.raises(ModelFileError, match="has no ollama:qwen3"):
        resolve_model("ollama:qwen3")


def test_a_blob_as_stores_of_old_name_it(store: Path) -> None:
    for blob in (store / "blobs").iterdir():
        blob.rename(blob.with_name(blob.name.replace("-", ":")))
    assert resolve_model("ollama:qwen3:8b").read_bytes() == CONTENT


def test_a_model_that_ollama_lacks(store: Path) -> None:
    with pytest.raises(
        ModelFileError, match=r"has no ollama:llama3:latest; it has .*ollama:qwen3:8b.*ollama pull llama3"
    ):
        resolve_model("ollama:llama3")


# Ollama's templates, old and new, and the prompt for a system message, a question, an answer and a question.
GO_TEMPLATES = {
    "{{ if .System }}<|im_start|>system\n{{ .System }}<|im_end|>\n{{ end }}<|im_start|>user\n{{ .Prompt }}<|im_end|>\n"
    "<|im_start|>assistant\n{{ .Response }}<|im_end|>\n": (
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\nA<|im_end|>\n"
        "<|im_start|>user\nV<|im_end|>\n<|im_start|>assistant\n"
    ),
    "{{- range $i, $_ := .Messages }}{{- $last := eq (len (slice $.Messages $i)) 1 -}}"
    "<start_of_turn>{{ .Role }}\n{{ .Content }}<end_of_turn>\n"
    "{{ if $last }}<start_of_turn>model\n{{ end }}{{- end }}": (
        "<start_of_turn>user\nS\n\nU<end_of_turn>\n<start_of_turn>model\nA<end_of_turn>\n"
        "<start_of_turn>user\nV<end_of_turn>\n<start_of_turn>model\n"
    ),
    "{{- range .Messages }}<|start_header_id|>{{ .Role }}<|end_header_id|>\n\n{{ .Content }}<|eot_id|>{{ end }}": (
        "<|start_header_id|>system<|end_header_id|>\n\nS<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nU<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nA<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nV<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    ),
    "[INST] <<SYS>>{{ .System }}<</SYS>>\n\n{{ .Prompt }} [/INST]": (
        "[INST] <<SYS>>\nS\n<</SYS>>\n\nU [/INST] A <|im_end|>[INST] V [/INST]"
    ),
    "[INST] {{ if .System }}{{ .System }} {{ end }}{{ .Prompt }} [/INST]": (
        "[INST] S\n\nU[/INST] A<|im_end|>[INST] V[/INST]"
    ),
    "{{ if .System }}<|system|>\n{{ .System }}</s>\n{{ end }}<|user|>\n{{ .Prompt }}</s>\n<|assistant|>\n": (
        "<|system|>\nS</s>\n<|user|>\nU</s>\n<|assistant|>\nA</s>\n<|user|>\nV</s>\n<|assistant|>\n"
    ),
    "{{ .System }}\nUSER: {{ .Prompt }}\nASSISTANT: ": "S\n\nUSER: U\nASSISTANT: A<|im_end|>\nUSER: V\nASSISTANT:",
    "{{ .System }}\n### Instruction:\n{{ .Prompt }}\n\n### Response:\n": (
        "S\n\n### Instruction:\nU\n\n### Response:\nA\n\n### Instruction:\nV\n\n### Response:\n"
    ),
}


def write_old(folder: Path, name: str, go: str) -> None:
    """A model of Ollama's whose file has no template."""
    document = tiny_model.model()
    del document.metadata["tokenizer.chat_template"]
    layers = {"model": document.write(folder / "tiny.gguf").read_bytes(), "template": go.encode()}
    write_ollama(folder / "ollama", f"registry.ollama.ai/library/{name}/latest", layers)


@pytest.mark.parametrize(("go", "expected"), GO_TEMPLATES.items())
def test_a_template_of_ollama_counts_where_the_file_has_none(go: str, expected: str, tmp_path: Path) -> None:
    write_old(tmp_path, "old", go)
    conversation = [("system", "S"), ("user", "U"), ("assistant", "A"), ("user", "V")]
    with Engine("ollama:old", threads=1) as engine:
        assert engine.render_chat([{"role": role, "content": said} for role, said in conversation]) == expected


@pytest.mark.parametrize(
    ("go", "said"),
    [
        ("{{ .System }} Q: {{ .Prompt }} A:", "none of these"),
        ("<|im_start|>{{ .Prompt }}<|im_end|>[INST][/INST]", "of ChatML and Mistral at once"),
        ('{{ if eq .Role "<|im_start|><|im_end|>" }}{{ end }}', "none of these"),
    ],
)
def test_a_template_of_ollama_that_nobody_knows(go: str, said: str, tmp_path: Path) -> None:
    write_old(tmp_path, "odd", go)
    with Engine("ollama:odd", threads=1) as engine:
        with pytest.raises(
            TemplateError, match=rf"ollama:odd:latest has no chat template.*is {said}: pass chat_template="
        ):
            engine.render_chat([{"role": "user", "content": "U"}])
        assert list(engine.generate("plain text", GenerationParams(max_tokens=2)))[-1].finish_reason == "length"


def test_the_file_counts_more_than_ollama(tmp_path: Path) -> None:
    content = tiny_model.model().write(tmp_path / "tiny.gguf").read_bytes()
    layers = {"model": content, "template": b"[INST] {{ .Prompt }} [/INST]"}
    write_ollama(tmp_path / "ollama", "registry.ollama.ai/library/new/latest", layers)
    with Engine("ollama:new", threads=1) as engine:
        assert engine.render_chat([{"role": "user", "content": "U"}]).startswith("<|im_start|>user\nU")


DAMAGED_MANIFESTS: dict[str, Any] = {
    "nothing": b"",
    "no JSON": b"{",
    "nested": b"[" * 100_000,
    "a list": b"[]",
    "no layers": b"{}",
    "layers that are none": b'{"layers": [1, null, {"mediaType": 3}]}',
    "no digest": b'{"layers": [{"mediaType": "application/vnd.ollama.image.model", "digest": "../../etc/passwd"}]}',
    "nowhere": json.dumps(
        {"layers": [{"mediaType": "application/vnd.ollama.image.model", "digest": "sha256:" + "1" * 64}]}
    ).encode(),
}


@pytest.mark.parametrize("content", DAMAGED_MANIFESTS.values(), ids=DAMAGED_MANIFESTS)
def test_damaged_manifests(store: Path, content: bytes) -> None:
    (store / "manifests/registry.ollama.ai/library/qwen3/8b").write_bytes(content)
    with pytest.raises(ModelFileError, match="ollama:qwen3:8b"):
        resolve_model("ollama:qwen3:8b")


def test_a_blob_that_changed(store: Path) -> None:
    path = resolve_model("ollama:qwen3:8b")
    path.write_bytes(CONTENT[:-1] + b"?")
    with pytest.raises(ModelFileError, match="does not have the SHA-256 of its name"):
        resolve_model("ollama:qwen3:8b")


def test_parameters_of_any_shape(store: Path) -> None:
    odd = {"temperature": "hot", "top_k": True, "top_p": None, "min_p": [1], "stop": ["a", 3, "", "a"]}
    write_ollama(store, "registry.ollama.ai/library/odd/latest", {"model": CONTENT, "params": json.dumps(odd).encode()})
    located = locate_model("ollama:odd")
    assert (located.sampling, located.stop) == ({}, ("a",))


# ---- LM Studio and folders -------------------------------------------------------------------------------------------


@pytest.fixture
def studio(tmp_path: Path) -> Path:
    files = {
        "bee/demo-GGUF/demo-Q4_K_M.gguf": CONTENT,
        "bee/demo-GGUF/demo-Q8_0.gguf": OTHER,
        "bee/demo-GGUF/mmproj-demo-F16.gguf": b"GGUF",
        "bee/one/one.gguf": CONTENT,
        "other/one/one-Q4_0.gguf": OTHER,
        "other/empty/readme.txt": b"",
    }
    return write_folder(tmp_path / "home" / ".lmstudio" / "models", files)


def test_lm_studio(studio: Path) -> None:
    located = locate_model("lmstudio:bee/demo-GGUF:Q4_K_M")
    assert located.path == studio / "bee/demo-GGUF/demo-Q4_K_M.gguf"
    assert (located.name, located.place) == ("lmstudio:bee/demo-GGUF", "lmstudio")
    assert resolve_model("lmstudio:bee/demo") == studio / "bee/demo-GGUF/demo-Q8_0.gguf"
    assert resolve_model("lmstudio:demo-gguf/demo-Q4_K_M.gguf".replace("demo-gguf", "bee/demo-GGUF")) == located.path
    assert resolve_model("lmstudio:bee/one") == studio / "bee/one/one.gguf"
    assert [name for name, _ in lmstudio.installed()] == ["bee/demo-GGUF", "bee/one", "other/one"]
    with pytest.raises(ModelFileError, match="several models are called 'one': bee/one, other/one"):
        resolve_model("lmstudio:one")
    with pytest.raises(ModelFileError, match="has no model 'bee/none'; it has bee/demo-GGUF, bee/one, other/one"):
        resolve_model("lmstudio:bee/none")
    with pytest.raises(ModelFileError, match="has no Q2_K; it has Q4_K_M, Q8_0"):
        resolve_model("lmstudio:bee/demo:Q2_K")
    with pytest.raises(ModelFileError, match=r"has no x\.gguf; it has demo-Q4_K_M\.gguf"):
        resolve_model("lmstudio:bee/demo/x.gguf")


@pytest.mark.parametrize("settings", ["", "[]", "{", '{"downloadsFolder": 3}', "[" * 100_000])
def test_the_folder_in_lm_studios_settings(studio: Path, tmp_path: Path, settings: str) -> None:
    file = studio.parent / "settings.json"
    file.write_text(settings)
    assert len(list(lmstudio.installed())) == 3
    studio.rename(tmp_path / "elsewhere")
    file.write_text(json.dumps({"downloadsFolder": str(tmp_path / "elsewhere")}))
    assert resolve_model("lmstudio:bee/one") == tmp_path / "elsewhere/bee/one/one.gguf"


def test_lm_studio_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    without_home(monkeypatch)
    with pytest.raises(ModelFileError, match="no home directory"):
        resolve_model("lmstudio:bee/one")


def test_a_folder_with_one_model(studio: Path, tmp_path: Path) -> None:
    located = locate_model(studio / "bee/demo-GGUF")
    assert located.path == studio / "bee/demo-GGUF/demo-Q8_0.gguf"
    assert (located.name, located.place) == ("demo-Q8_0", "folder")
    (studio / "bee/demo-GGUF/second.gguf").write_bytes(CONTENT)
    with pytest.raises(ModelFileError, match=r"several models: .*second\.gguf; give the path of one"):
        locate_model(str(studio / "bee/demo-GGUF"))
    with pytest.raises(ModelFileError, match="is a directory without a GGUF file"):
        locate_model(studio / "other/empty")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(ModelFileError, match="leads to itself"):
        locate_model(tmp_path / "loop")


# ---- drafters --------------------------------------------------------------------------------------------------------


def write_pair(folder: Path, model: str, drafter: str, seed: int = 2, n_embd: int = tiny_model.N_EMBD) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    tiny_model.drafter(seed, n_embd=n_embd).write(folder / drafter)
    return tiny_model.model().write(folder / model)


def test_a_drafter_of_the_same_folder_is_found(tmp_path: Path) -> None:
    write_pair(tmp_path / "m", "tiny-F32.gguf", "tiny-dflash-F32.gguf")
    with Engine(tmp_path / "m", threads=1) as engine:
        assert engine.drafter_path == tmp_path / "m/tiny-dflash-F32.gguf"
        assert engine.info["drafter_note"] == "tiny-dflash-F32.gguf, from the same place"
        assert engine.complete([1, 2], GenerationParams(max_tokens=4)).tokens


def test_a_drafter_of_the_same_repository_is_found(hub: Hub, tmp_path: Path) -> None:
    write_pair(tmp_path / "m", "tiny-F32.gguf", "tiny-dflash-F32.gguf")
    hub.repositories["bee/tiny"] = Repository({path.name: path.read_bytes() for path in (tmp_path / "m").iterdir()})
    with Engine("hf:bee/tiny", threads=1) as engine:
        assert engine.model_name == "hf:bee/tiny:F32"
        assert engine.drafter_path is not None
        assert engine.drafter_path.name == "tiny-dflash-F32.gguf"


def test_a_drafter_that_does_not_fit_is_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = write_pair(tmp_path, "tiny.gguf", "tiny.dflash.gguf", n_embd=96)
    tiny_model.drafter().write(tmp_path / "b-dflash.gguf")
    with Engine(model, threads=1) as engine:  # a path says nothing of other files beside it
        assert engine.drafter_path is None
        assert "tiny.dflash.gguf, beside the model, is not used: " in engine.info["drafter_note"]
        assert "embedding_length is 96" in engine.info["drafter_note"]
    assert "is not used" in caplog.text
    with Engine(tmp_path, threads=1) as engine:
        assert engine.drafter_path == tmp_path / "b-dflash.gguf"
        assert engine.info["drafter_note"].startswith("b-dflash.gguf, from the same place; tiny.dflash.gguf")
    with pytest.raises(BeeError, match="embedding_length is 96"):
        Engine(model, drafter=tmp_path / "tiny.dflash.gguf", threads=1)


def test_drafters_have_names_too(hub: Hub, tmp_path: Path) -> None:
    model = write_pair(tmp_path / "m", "tiny.gguf", "d-dflash.gguf")
    hub.repositories["bee/drafter"] = Repository({"d-dflash.gguf": (tmp_path / "m/d-dflash.gguf").read_bytes()})
    with Engine(model, drafter="hf:bee/drafter/d-dflash.gguf", threads=1) as engine:
        assert engine.info["has_drafter"]


def test_an_engine_is_shared_whatever_the_spelling(store: Path, tmp_path: Path) -> None:
    tiny_model.model().write(tmp_path / "tiny.gguf")
    write_ollama(store, "registry.ollama.ai/library/tiny/latest", {"model": (tmp_path / "tiny.gguf").read_bytes()})
    engine = Engine.shared("ollama:tiny", threads=1)
    assert Engine.shared("ollama:library/tiny:latest", threads=1) is engine
    assert engine.model_name == "ollama:tiny:latest"
    engine.close()
