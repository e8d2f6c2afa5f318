"""A drafter in the Hugging Face layout that vLLM and SGLang read as their draft model of the method DFlash.

Names and configuration are those of z-lab's checkpoints: a Qwen3 decoder without embedding, which is the target's, and
the projection `fc` of the target's features. Weights become bfloat16, as both servers compute. RoPE is the NeoX layout
in the GGUF file already, so no rows change places.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import DrafterMismatchError, ModelFileError, ParameterError, UnsupportedModelError
from ..models.file import ModelFile, Plan, TensorInfo
from .shards import to_bfloat16

SERVERS = ("vllm", "sglang")
ARCHITECTURE = "dflash"

_FILE_TENSORS = {
    "fc.weight": "fc.weight",
    "enc.output_norm.weight": "hidden_norm.weight",
    "output_norm.weight": "norm.weight",
}
_LAYER_TENSORS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_HEAD, _ROWS = "output.weight", "d2t"

# What `_config` says in other words, and what changes no number.
_SAID = {
    f"{ARCHITECTURE}.{key}"
    for key in (
        *("block_count", "context_length", "embedding_length", "feed_forward_length", "vocab_size"),
        *("attention.head_count", "attention.head_count_kv", "attention.key_length", "attention.value_length"),
        *("attention.layer_norm_rms_epsilon", "rope.freq_base", "rope.dimension_count"),
        *("block_size", "target_layers", "target_embedding_length", "target_vocabulary_hash"),
    )
}

Values = npt.NDArray[Any]


@dataclass(frozen=True)
class Exported:
    """What was written, and how a server is started with it."""

    folder: Path
    drafts: int
    """Tokens that a block drafts."""
    server: str

    @property
    def command(self) -> str:
        """The server's command; TARGET is the target as the server takes it, in the Hugging Face layout."""
        if self.server == "sglang":
            return (
                "python -m sglang.launch_server --model-path TARGET --speculative-algorithm DFLASH "
                f"--speculative-draft-model-path {self.folder}"
            )
        asked = {"method": "dflash", "model": str(self.folder), "num_speculative_tokens": self.drafts}
        return f"vllm serve TARGET --speculative-config '{json.dumps(asked)}'"


def export_for_server(drafter: Path, target: Path, folder: Path, server: str) -> Exported:
    """Write `config.json` and `model.safetensors` into `folder`, which may exist.

    target: the GGUF of the model that it drafts for: the configuration has its number of layers. For vLLM the drafter's
    own head and vocabulary come along; SGLang reads neither and takes the target's head, which drafts no worse.

    Raises ParameterError for another server, DrafterMismatchError where the two files do not belong together,
    UnsupportedModelError for what the layout cannot say, and what reading a file raises.
    """
    if server not in SERVERS:
        raise ParameterError(f"there is no layout for {server!r}: say {' or '.join(SERVERS)}")
    with ModelFile(drafter) as file, ModelFile(target) as model:
        _check_pair(file, model)
        tensors = {info.name: info for info in file.tensors}
        names = _names(file, tensors, with_head=server == "vllm")
        config = _config(file, model.plan())
        if _ROWS in names:
            config["draft_vocab_size"] = tensors[_ROWS].shape[0]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write_weights(drafter, folder / "model.safetensors", {name: tensors[of] for of, name in names.items()})
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise ModelFileError(f"the drafter cannot be written to {folder}: {error.strerror or error}") from error
    return Exported(folder, int(config["block_size"]) - 1, server)


def _check_pair(drafter: ModelFile, target: ModelFile) -> None:
    from ..engine.device_plan import CPU, plan_memory

    if drafter.architecture != ARCHITECTURE:
        raise UnsupportedModelError(
            f"{drafter.path} is of the architecture '{drafter.architecture}', not a DFlash drafter ('{ARCHITECTURE}')"
        )
    if target.plan().is_drafter:
        raise DrafterMismatchError(f"{target.path} is a drafter itself: name the GGUF of the model that it drafts for")
    plan_memory(target, drafter, CPU, 1)  # opens nothing, and refuses what does not fit


def _names(file: ModelFile, tensors: Mapping[str, TensorInfo], *, with_head: bool) -> dict[str, str]:
    """The layout's name of each of the file's tensors that are written; refuses what servers would not compute."""
    names = dict(_FILE_TENSORS)
    for layer in range(int(file.metadata[f"{ARCHITECTURE}.block_count"])):
        for of, name in _LAYER_TENSORS.items():
            names[f"blk.{layer}.{of}.weight"] = f"layers.{layer}.{name}.weight"
    odd = [key for key in file.metadata if key.startswith(f"{ARCHITECTURE}.") and key not in _SAID]
    odd += [name for name in tensors if name not in names and name not in (_HEAD, _ROWS)]
    odd += [f"no {name}" for name in names if name not in tensors]
    if odd:
        raise UnsupportedModelError(
            f"{file.path} is no plain DFlash drafter, as 'bee train' makes them, and its layout for servers is not "
            f"known: it has {', '.join(odd)}. Drafters that were converted from a hub are there in their first layout"
        )
    if with_head and _HEAD in tensors:  # rows without a head are the target's, as is the whole head of the layout
        names[_HEAD] = "lm_head.weight"
        names |= {_ROWS: "d2t"} if _ROWS in tensors else {}
    return names


def _config(file: ModelFile, target: Plan) -> dict[str, Any]:
    def said(key: str, default: Any = None) -> Any:
        return file.metadata.get(f"{ARCHITECTURE}.{key}", default)  # what has no default was checked with the plan

    n_layer, n_head = int(said("block_count")), int(said("attention.head_count"))
    block_size = int(said("block_size", 16))
    config: dict[str, Any] = {
        "architectures": ["DFlashDraftModel"],
        "model_type": "qwen3",
        "dtype": "bfloat16",
        "hidden_size": int(said("embedding_length")),
        "intermediate_size": int(said("feed_forward_length")),
        "num_hidden_layers": n_layer,
        "num_attention_heads": n_head,
        "num_key_value_heads": int(said("attention.head_count_kv", n_head)),
        "head_dim": int(said("attention.key_length", int(said("embedding_length")) // n_head)),
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "rms_norm_eps": _shortest(said("attention.layer_norm_rms_epsilon")),
        "rope_theta": _shortest(said("rope.freq_base", 10000.0)),
        "rope_scaling": None,
        "max_position_embeddings": int(said("context_length")),
        "layer_types": ["full_attention"] * n_layer,
        "is_causal": False,
        "sliding_window": None,
        "use_sliding_window": False,
        "tie_word_embeddings": False,
        "vocab_size": target.n_vocab,
        "num_target_layers": target.n_layer,
        "block_size": block_size,
        "dflash_config": {
            # The file names inputs of layers, the layout outputs.
            "target_layer_ids": [int(layer) - 1 for layer in said("target_layers")],
            "mask_token_id": int(file.metadata["tokenizer.ggml.mask_token_id"]),
        },
    }
    if min(config["dflash_config"]["target_layer_ids"]) < 0:
        raise UnsupportedModelError(f"{file.path} reads the target's embedding, for which the layout has no number")
    return config


def _shortest(value: float) -> float:
    """The shortest number that is this float32: 1e-05, and not 9.99999974e-06."""
    return float(str(np.float32(value)))


# ---- weights -----------------------------------------------------------------------------------------------------


def _write_weights(source: Path, destination: Path, tensors: Mapping[str, TensorInfo]) -> None:
    """safetensors: the length of a JSON header, the header, and the tensors one behind the other."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, info in tensors.items():
        begin, end = end, end + math.prod(info.shape) * (8 if name == "d2t" else 2)
        kind = "I64" if name == "d2t" else "BF16"
        header[name] = {"dtype": kind, "shape": list(info.shape[::-1]), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    part = destination.with_name(destination.name + ".part")
    try:
        with part.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for data in _encoded(source, tensors):
                file.write(data)
        os.replace(part, destination)
    finally:
        part.unlink(missing_ok=True)


def _encoded(source: Path, tensors: Mapping[str, TensorInfo]) -> Iterator[bytes]:
    content = np.memmap(source, np.uint8, "r")
    for name, info in tensors.items():
        data = content[info.offset : info.offset + info.size]
        if name == "d2t":
            rows = data.view("<i8")
            yield (rows - np.arange(len(rows))).astype("<i8").tobytes()  # the layout has distances, the file ids
        else:
            yield to_bfloat16(_values(info, data)).tobytes()


def _values(info: TensorInfo, data: Values) -> npt.NDArray[np.float32]:
    """A tensor's values in float32: the types that `bee train` writes here, others through the `gguf` package."""
    if info.type_name in ("F32", "F16"):
        return _float32(data.view("<f4" if info.type_name == "F32" else "<f2"))
    if info.type_name == "Q8_0":
        blocks = data.view(np.dtype([("scale", "<f2"), ("codes", "i1", 32)]))
        return _float32(blocks["scale"])[:, None] * _float32(blocks["codes"])
    if info.type_name in ("Q4_1", "Q5_1"):
        fifth = [("fifth", "<u4")] if info.type_name == "Q5_1" else []
        blocks = data.view(np.dtype([("scale", "<f2"), ("least", "<f2"), *fifth, ("nibbles", "u1", 16)]))
        codes = np.concatenate([blocks["nibbles"] & 15, blocks["nibbles"] >> 4], axis=1)
        if fifth:
            codes |= (blocks["fifth"][:, None] >> np.arange(32, dtype=np.uint32) & 1).astype(np.uint8) << 4
        return _float32(blocks["scale"])[:, None] * _float32(codes) + _float32(blocks["least"])[:, None]
    try:
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize
    except ImportError:
        raise ParameterError(
            f"{info.name} is of the type {info.type_name}, which takes the package gguf: "
            "pip install 'bee-integrations[train]'"
        ) from None
    return _float32(dequantize(data.reshape(info.shape[-1], -1), GGMLQuantizationType(info.type)))


def _float32(values: Values) -> npt.NDArray[np.float32]:
    return np.asarray(values, np.float32)
