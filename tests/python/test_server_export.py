"""Drafters in the layout that vLLM and SGLang read: names, shapes and values, and z-lab's own model code on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf_document as gguf
import numpy as np
import numpy.typing as npt
import pytest
import tiny_model
from gguf_document import Document, Stored, Value, integer
from test_drafter_reference import TEXTS, Weights, features_of, reference_logits, run, session
from typer.testing import CliRunner

from bee_integrations.cli import app
from bee_integrations.errors import DrafterMismatchError, ParameterError, UnsupportedModelError
from bee_integrations.models.file import ModelFile
from bee_integrations.text.tokenizer import Tokenizer
from bee_integrations.train.server_export import export_for_server

__all__ = ["session"]  # a fixture

LARGEST_ROUNDING = 2.0**-8  # of a value: bfloat16 has eight significant bits
LARGEST_ERROR = 0.02  # of the standard deviation of a row of logits: bfloat16 weights through two layers


def stored(folder: Path) -> dict[str, npt.NDArray[Any]]:
    """The tensors of model.safetensors, read from the format's description."""
    data = (folder / "model.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    assert length % 8 == 0
    header = json.loads(data[8 : 8 + length])
    assert header.pop("__metadata__") == {"format": "pt"}
    tensors, end = {}, 0
    for name, entry in header.items():
        begin, stop = entry["data_offsets"]
        assert begin == end, "tensors lie one behind the other"
        end = stop
        bits = data[8 + length + begin : 8 + length + stop]
        if entry["dtype"] == "BF16":
            values = (np.frombuffer(bits, "<u2").astype("<u4") << 16).view("<f4")
        else:
            assert entry["dtype"] == "I64"
            values = np.frombuffer(bits, "<i8")
        tensors[name] = values.reshape(entry["shape"])
    assert 8 + length + end == len(data)
    return tensors


def tiny_drafter() -> Document:
    """The tiny drafter, with taps that are outputs of layers."""
    document = tiny_model.drafter()
    document.metadata["dflash.target_layers"] = Value(gguf.ARRAY, [1, 2], gguf.INT32)
    fc = np.random.default_rng(5).standard_normal((tiny_model.N_EMBD, 2 * tiny_model.N_EMBD))
    document.tensors["fc.weight"] = Stored.of(fc.astype(np.float32))
    return document


def random_blocks(kind: str, shape: tuple[int, int]) -> Stored:
    """A quantised matrix of any codes, with scales near one."""
    random = np.random.default_rng(3)
    _, values, size = gguf.TYPES[kind]
    blocks = random.integers(0, 256, (shape[0] * shape[1] // values, size), np.uint8)
    scales = 1 if kind == "Q8_0" else 2
    blocks[:, : 2 * scales] = random.uniform(0.5, 2, (len(blocks), scales)).astype("<f2").view(np.uint8)
    return Stored(kind, shape, blocks.tobytes())


def test_names_shapes_and_values_of_the_bundled_drafter(model_path: Path, drafter_path: Path, tmp_path: Path) -> None:
    done = export_for_server(drafter_path, model_path, tmp_path / "out", "vllm")
    drafter, tensors = Weights(drafter_path), stored(tmp_path / "out")
    layer = {
        "input_layernorm": ("attn_norm", (576,)),
        "self_attn.q_proj": ("attn_q", (576, 576)),
        "self_attn.k_proj": ("attn_k", (192, 576)),
        "self_attn.v_proj": ("attn_v", (192, 576)),
        "self_attn.o_proj": ("attn_output", (576, 576)),
        "self_attn.q_norm": ("attn_q_norm", (64,)),
        "self_attn.k_norm": ("attn_k_norm", (64,)),
        "post_attention_layernorm": ("ffn_norm", (576,)),
        "mlp.gate_proj": ("ffn_gate", (1536, 576)),
        "mlp.up_proj": ("ffn_up", (1536, 576)),
        "mlp.down_proj": ("ffn_down", (576, 1536)),
    }
    expected = {
        "fc": ("fc", (576, 5 * 576)),
        "hidden_norm": ("enc.output_norm", (576,)),
        "norm": ("output_norm", (576,)),
        "lm_head": ("output", (16384, 576)),
    }
    for index in range(2):
        expected |= {f"layers.{index}.{name}": (f"blk.{index}.{of}", shape) for name, (of, shape) in layer.items()}
    assert set(tensors) == {f"{name}.weight" for name in expected} | {"d2t"}
    for name, (of, shape) in expected.items():
        got, want = tensors[f"{name}.weight"], drafter[f"{of}.weight"]
        assert got.shape == want.shape == shape, name
        assert np.all(np.abs(got - want) <= LARGEST_ROUNDING * np.abs(want)), name
    assert np.array_equal(tensors["d2t"] + np.arange(16384), drafter["d2t"])
    assert done.drafts == 7
    assert '"num_speculative_tokens": 7' in done.command


def test_the_configuration_says_what_the_file_says(model_path: Path, drafter_path: Path, tmp_path: Path) -> None:
    for server in ("vllm", "sglang"):
        export_for_server(drafter_path, model_path, tmp_path / server, server)
    config = json.loads((tmp_path / "sglang" / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == ["DFlashDraftModel"]
    assert config["model_type"] == "qwen3"
    assert config["dflash_config"] == {"target_layer_ids": [1, 8, 14, 20, 27], "mask_token_id": 16}
    sizes = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 2, "num_target_layers": 30}
    sizes |= {"num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64, "vocab_size": 49152, "block_size": 8}
    sizes |= {"rms_norm_eps": 1e-5, "rope_theta": 100000.0, "max_position_embeddings": 8192}
    assert {key: config[key] for key in sizes} == sizes
    # vLLM alone reads a head of the drafter's own.
    assert set(stored(tmp_path / "vllm")) - set(stored(tmp_path / "sglang")) == {"lm_head.weight", "d2t"}
    other = json.loads((tmp_path / "vllm" / "config.json").read_text(encoding="utf-8"))
    assert other == config | {"draft_vocab_size": 16384}


@pytest.mark.parametrize("kind", ["F32", "F16", "Q8_0", "Q4_1", "Q5_1"])
def test_every_type_that_training_writes(kind: str, tiny_path: Path, tmp_path: Path) -> None:
    document = tiny_drafter()
    weight = document.tensors["fc.weight"]
    weight = Stored.of(weight.values(), kind) if kind.startswith("F") else random_blocks(kind, weight.shape)
    document.tensors["fc.weight"] = weight
    export_for_server(document.write(tmp_path / "drafter.gguf"), tiny_path, tmp_path / "out", "vllm")
    tensors, want = stored(tmp_path / "out"), weight.values()
    assert np.all(np.abs(tensors["fc.weight"] - want) <= LARGEST_ROUNDING * np.abs(want))
    assert "lm_head.weight" not in tensors, "a drafter without a head of its own takes the target's"


def test_the_model_code_of_the_method_drafts_the_same(
    session: Any, model_path: Path, drafter_path: Path, tmp_path: Path
) -> None:
    torch = pytest.importorskip("torch", reason="the model code of the package dflash needs PyTorch")
    pytest.importorskip("transformers", reason="the model code of the package dflash needs transformers")
    code = pytest.importorskip("dflash.model", reason="the package dflash, which has the model code, is not installed")

    export_for_server(drafter_path, model_path, tmp_path, "vllm")
    model = code.DFlashDraftModel.from_pretrained(tmp_path, dtype=torch.float32).eval()
    assert list(model.target_layer_ids) == [1, 8, 14, 20, 27]
    target, drafter = Weights(model_path), Weights(drafter_path)
    with ModelFile(model_path) as file:
        tokens = Tokenizer.from_model_file(file).encode(TEXTS[0])
    run(session, tokens[:-1])
    features = features_of(session, len(tokens) - 1, drafter["fc.weight"].shape[1])
    block = [tokens[-1]] + [model.mask_token_id] * (model.block_size - 1)
    with torch.inference_mode():
        hidden = model(
            position_ids=torch.arange(len(features) + len(block))[None],
            noise_embedding=torch.from_numpy(target["token_embd.weight"][block]).float()[None],
            target_hidden=torch.from_numpy(features).float()[None],
        )[0, 1:].numpy()
    logits = hidden @ stored(tmp_path)["lm_head.weight"].T
    expected = reference_logits(drafter, target, features, tokens[-1], len(block) - 1)
    error = np.sqrt(((logits - expected) ** 2).mean(-1)) / expected.std(-1)
    assert error.max() < LARGEST_ERROR


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("dflash.attention.sliding_window", integer(6), "dflash.attention.sliding_window"),
        ("dflash.logit_scale", gguf.number(0.5), "dflash.logit_scale"),
        ("dflash.target_layers", Value(gguf.ARRAY, [0, 1], gguf.INT32), "embedding"),
    ],
)
def test_what_the_layout_cannot_say_is_refused(
    key: str, value: Value, said: str, tiny_path: Path, tmp_path: Path
) -> None:
    document = tiny_drafter()
    document.metadata[key] = value
    with pytest.raises(UnsupportedModelError, match=said):
        export_for_server(document.write(tmp_path / "drafter.gguf"), tiny_path, tmp_path / "out", "vllm")
    assert not (tmp_path / "out").exists()


def test_wrong_pairs_and_servers_are_refused(tiny_path: Path, model_path: Path, tmp_path: Path) -> None:
    drafter = tiny_drafter().write(tmp_path / "drafter.gguf")
    for first, second, server, error in (
        (drafter, model_path, "vllm", DrafterMismatchError),
        (drafter, drafter, "vllm", DrafterMismatchError),
        (tiny_path, tiny_path, "vllm", UnsupportedModelError),
        (drafter, tiny_path, "tgi", ParameterError),
    ):
        with pytest.raises(error):
            export_for_server(first, second, tmp_path / "out", server)


def test_the_command(tiny_path: Path, tmp_path: Path) -> None:
    drafter = tiny_drafter().write(tmp_path / "drafter.gguf")
    arguments = ["export-drafter", str(tmp_path / "out"), "--drafter", str(drafter), "--model", str(tiny_path)]
    result = CliRunner().invoke(app, [*arguments, "--to", "sglang"])
    assert result.exit_code == 0, result.stderr
    assert result.stdout.strip() == str(tmp_path / "out")
    assert f"--speculative-draft-model-path {tmp_path / 'out'}" in result.stderr
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"config.json", "model.safetensors"}
    refused = CliRunner().invoke(app, [*arguments, "--to", "tgi"])
    assert refused.exit_code == 1
    assert "vllm or sglang" in refused.stderr
