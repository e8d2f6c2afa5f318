"""Writes a trained drafter as a GGUF file of the architecture `dflash`.

What a draft reads is most of its cost, so the layers have 5 bits and the head 4; its rows are the target's. A draft is
verified anyway: coarser weights cost a little acceptance and no exactness. A hash of the vocabulary stands in
for the vocabulary itself, which llama.cpp wants in the file: `for_llama_cpp` adds it.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import quantize

from .fit import Checkpoint
from .target import Target

ARCHITECTURE = "dflash"
VOCABULARY_KEYS = (
    "tokenizer.ggml.model",
    "tokenizer.ggml.pre",
    "tokenizer.ggml.tokens",
    "tokenizer.ggml.token_type",
    "tokenizer.ggml.scores",
    "tokenizer.ggml.merges",
    "tokenizer.ggml.bos_token_id",
    "tokenizer.ggml.eos_token_id",
    "tokenizer.ggml.unknown_token_id",
    "tokenizer.ggml.padding_token_id",
    "tokenizer.ggml.add_bos_token",
    "tokenizer.ggml.add_space_prefix",
)
"""Copied from the target for llama.cpp, where the target has them."""

LAYER_MATRICES = {
    "query": "attn_q",
    "key": "attn_k",
    "value": "attn_v",
    "output": "attn_output",
    "gate": "ffn_gate",
    "up": "ffn_up",
    "down": "ffn_down",
}
LAYER_GAINS = {
    "attention_norm": "attn_norm",
    "query_norm": "attn_q_norm",
    "key_norm": "attn_k_norm",
    "feed_forward_norm": "ffn_norm",
}


def export(checkpoint: Checkpoint, target: Target, path: Path, *, name: str, for_llama_cpp: bool = False) -> None:
    """Write the drafter to `path`, atomically. `name` is the file's `general.name`.

    Layers are Q5_1, the head Q4_1, the projection of features, whose inputs spread further, Q8_0; rows that are not
    whole blocks of 32 are F16; gains are F32.
    """
    part = path.with_name(path.name + ".part")
    writer = GGUFWriter(part, ARCHITECTURE)
    writer.add_name(name)
    if target.has_field("general.license"):  # layers and head rows begin as the target's
        writer.add_license(target.field("general.license"))
    _add_sizes(writer, checkpoint, target)
    if for_llama_cpp:
        _add_vocabulary(writer, target)
    _add_tensors(writer, checkpoint, target)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    os.replace(part, path)


def _add_sizes(writer: GGUFWriter, checkpoint: Checkpoint, target: Target) -> None:
    shape, plan = target.shape, checkpoint.plan
    writer.add_block_count(plan.n_layer)
    writer.add_context_length(shape.n_context)
    writer.add_embedding_length(shape.n_embd)
    writer.add_feed_forward_length(shape.n_feed_forward)
    writer.add_head_count(shape.n_head)
    writer.add_head_count_kv(shape.n_head_kv)
    writer.add_key_length(shape.head_size)
    writer.add_value_length(shape.head_size)
    writer.add_layer_norm_rms_eps(shape.norm_epsilon)
    writer.add_rope_freq_base(shape.rope_base)
    writer.add_rope_dimension_count(shape.head_size)
    writer.add_vocab_size(shape.n_vocab)
    if shape.embedding_scale != 1:
        writer.add_float32(f"{ARCHITECTURE}.embedding_scale", shape.embedding_scale)
    writer.add_uint32(f"{ARCHITECTURE}.block_size", plan.block_size)
    writer.add_array(f"{ARCHITECTURE}.target_layers", list(plan.taps))
    writer.add_uint32(f"{ARCHITECTURE}.target_embedding_length", shape.n_embd)
    writer.add_uint64(f"{ARCHITECTURE}.target_vocabulary_hash", target.vocabulary_hash)
    writer.add_uint32("tokenizer.ggml.mask_token_id", plan.mask_token)


def _add_vocabulary(writer: GGUFWriter, target: Target) -> None:
    for key in VOCABULARY_KEYS:
        found = target.field_with_type(key)
        if found is not None:
            writer.add_key_value(key, *found)


def _add_tensors(writer: GGUFWriter, checkpoint: Checkpoint, target: Target) -> None:
    model = {name: weight.float() for name, weight in checkpoint.model.items()}
    # Training reads features divided by their RMS; the file's `fc` reads them as they are.
    scale = (1 / checkpoint.feature_rms).bfloat16().float()
    _add_matrix(writer, "fc.weight", _array(model["fc"] * scale), GGMLQuantizationType.Q8_0)
    writer.add_tensor("enc.output_norm.weight", _array(model["context_norm"]))
    writer.add_tensor("output_norm.weight", _array(model["output_norm"]))
    for index in range(checkpoint.plan.n_layer):
        for attribute, tensor in LAYER_GAINS.items():
            writer.add_tensor(f"blk.{index}.{tensor}.weight", _array(model[f"layers.{index}.{attribute}"]))
        for attribute, tensor in LAYER_MATRICES.items():
            weight = _array(model[f"layers.{index}.{attribute}"])
            _add_matrix(writer, f"blk.{index}.{tensor}.weight", weight, GGMLQuantizationType.Q5_1)
    rows = checkpoint.vocabulary.numpy()
    _add_matrix(writer, "output.weight", target.head[rows], GGMLQuantizationType.Q4_1)
    writer.add_tensor("d2t", rows.astype(np.int64))


def _add_matrix(
    writer: GGUFWriter, name: str, weight: npt.NDArray[np.float32], blocks_of_32: GGMLQuantizationType
) -> None:
    kind = blocks_of_32 if weight.shape[1] % 32 == 0 else GGMLQuantizationType.F16
    writer.add_tensor(name, quantize(weight, kind), raw_dtype=kind)


def _array(tensor: torch.Tensor) -> npt.NDArray[np.float32]:
    return np.ascontiguousarray(tensor.numpy(), dtype=np.float32)
