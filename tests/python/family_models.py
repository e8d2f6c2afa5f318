"""Tiny models of every family, with random weights that are made from their names: nothing is stored but logits.

Written from what the families' files hold, not from libbee: each case lists its metadata and its tensors. Weights have
deviations at which a mistake in the structure changes the logits by far more than any rounding; the golden logits are
llama.cpp's (tests/golden/make_family_golden.py).
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from gguf_document import ARRAY, BOOL, INT32, Document, Stored, Value, integer, number, text

N_VOCAB = 64
N_CTX = 256
N_EXPERTS = 6
N_POSITIONS = 108  # 100 beyond a window of 8
LONG = 800  # positions: beyond what a layer with a window remembers
WINDOW = 8
N_PREDICTED = 24  # pairs whose logits are stored
KERNEL = 4  # rows that a convolution of a recurrent layer sees


def tokens(n: int = N_POSITIONS) -> list[int]:
    return [int(token) for token in np.random.RandomState(1).randint(0, N_VOCAB, n)]


def _value(content: Any) -> Value:
    if isinstance(content, bool):
        return Value(BOOL, content)
    if isinstance(content, list):
        return Value(ARRAY, content, BOOL if isinstance(content[0], bool) else INT32)
    return {str: text, int: integer, float: number}[type(content)](content)


class Model:
    """A document in the making."""

    def __init__(self, architecture: str, layers: int, *, size: int = 16, kv: int = 2, **keys: Any) -> None:
        self.document = Document()
        self.architecture, self.layers = architecture, layers
        self.embd, self.heads, self.kv, self.size, self.ff = 64, 4, kv, size, 96
        self.document.metadata["general.architecture"] = text(architecture)
        self.document.metadata["tokenizer.ggml.model"] = text("none")
        common = {
            "vocab_size": N_VOCAB, "context_length": N_CTX, "embedding_length": self.embd, "block_count": layers,
            "feed_forward_length": self.ff, "attention.head_count": self.heads, "attention.head_count_kv": self.kv,
            "attention.key_length": size, "attention.value_length": size,
            "attention.layer_norm_rms_epsilon": 1e-5, "rope.freq_base": 500.0,
        }  # fmt: skip
        for key, content in {**common, **{key.replace("__", "."): value for key, value in keys.items()}}.items():
            if content is not None:
                self.document.metadata[f"{architecture}.{key}"] = _value(content)

    def add(self, name: str, rows: int | None, columns: int, *, kind: str = "weight", depth: int = 0) -> None:
        """A matrix, several of them, or a vector where rows is None, of gains ("norm"), "bias", "factors", "decay"."""
        random = np.random.RandomState(zlib.crc32(f"{self.architecture} {name}".encode()))
        shape = (columns,) if rows is None else (depth, rows, columns) if depth else (rows, columns)
        values = random.standard_normal(shape)
        if kind == "norm":
            values = 1 + 0.2 * values
        elif kind == "bias":
            values = 0.3 * values
        elif kind == "factors":
            values = 0.5 + 3 * np.abs(values)
        elif kind == "decay":
            values = -0.05 - np.abs(values)
        elif "token_embd" not in name:
            values *= 1.4 / np.sqrt(columns)
        self.document.tensors[name] = Stored.of(values.astype(np.float32))

    def layer_tensors(self, names: Iterable[str], layers: Iterable[int] | None = None, **sizes: int) -> None:
        """By name, "_norm" for gains, "+bias" behind those of matrices with one. Sizes: query, key, ff, head."""
        query = sizes.get("query", self.heads * self.size)
        key = sizes.get("key", self.kv * self.size)
        ff, head = sizes.get("ff", self.ff), sizes.get("head", self.size)
        shapes = {
            "attn_q": (query, self.embd), "attn_k": (key, self.embd), "attn_v": (key, self.embd),
            "attn_qkv": (query + 2 * key, self.embd), "attn_output": (self.embd, query),
            "ffn_gate": (ff, self.embd), "ffn_up": (ff, self.embd), "ffn_gate_up": (2 * ff, self.embd),
            "ffn_down": (self.embd, ff),
        }  # fmt: skip
        gains = {
            "attn_sinks_norm": self.heads,
            "attn_q_norm": head,
            "attn_k_norm": head,
            "q_row_norm": query,
            "k_row_norm": key,
        }
        for i in range(self.layers) if layers is None else layers:
            for wanted in names:
                name, _, bias = wanted.partition("+")
                place = f"blk.{i}." + {
                    "ffn_gate_up": "ffn_up",
                    "q_row_norm": "attn_q_norm",
                    "k_row_norm": "attn_k_norm",
                    "attn_sinks_norm": "attn_sinks",
                }.get(name, name)
                if name.endswith("_norm"):
                    self.add(place + ".weight", None, gains.get(name, self.embd), kind="norm")
                    continue
                self.add(place + ".weight", *shapes[name])
                if bias:
                    self.add(place + ".bias", None, shapes[name][0], kind="bias")

    def experts(
        self, layers: Iterable[int], *, ff: int, shared: int = 0, share: bool = False, biases: bool = False,
        chooser: bool = False, gates: bool = True,
    ) -> None:  # fmt: skip
        """Experts of so many columns, and a feed-forward of `shared` for all rows; `share`: each row takes its own of
        it; `chooser`: a bias that chooses."""
        for i in layers:
            self.add(f"blk.{i}.ffn_gate_inp.weight", N_EXPERTS, self.embd)
            shapes = {"gate": (ff, self.embd), "up": (ff, self.embd), "down": (self.embd, ff)}
            if not gates:
                del shapes["gate"]
            for name, (rows, columns) in shapes.items():
                self.add(f"blk.{i}.ffn_{name}_exps.weight", rows, columns, depth=N_EXPERTS)
                if biases:
                    self.add(f"blk.{i}.ffn_{name}_exps.bias", N_EXPERTS, rows, kind="bias")
                if shared:
                    wide = (self.embd, shared) if name == "down" else (shared, self.embd)
                    self.add(f"blk.{i}.ffn_{name}_shexp.weight", *wide)
            if share:
                self.add(f"blk.{i}.ffn_gate_inp_shexp.weight", None, self.embd, kind="bias")
            if biases:
                self.add(f"blk.{i}.ffn_gate_inp.bias", None, N_EXPERTS, kind="bias")
            if chooser:
                self.add(f"blk.{i}.exp_probs_b.bias", None, N_EXPERTS, kind="bias")

    def delta_net(self, layers: Iterable[int], *, keys: int, values: int, together: bool = False) -> None:
        """Gated delta nets of so many heads of 16; rates and steps in one tensor where `together`."""
        channels, results = 16 * (2 * keys + values), 16 * values
        for i in layers:
            self.add(f"blk.{i}.attn_qkv.weight", channels, self.embd)
            self.add(f"blk.{i}.attn_gate.weight", results, self.embd)
            self.add(f"blk.{i}.ssm_out.weight", self.embd, results)
            self.add(f"blk.{i}.ssm_conv1d.weight", channels, KERNEL)
            for name in ["ssm_ba"] if together else ["ssm_beta", "ssm_alpha"]:
                self.add(f"blk.{i}.{name}.weight", 2 * values if together else values, self.embd)
            self.add(f"blk.{i}.ssm_a", None, values, kind="decay")
            self.add(f"blk.{i}.ssm_dt.bias", None, values, kind="bias")
            self.add(f"blk.{i}.ssm_norm.weight", None, 16, kind="norm")

    def mamba(self, layers: Iterable[int], *, inner: int, heads: int, state: int) -> None:
        """Mamba-2 in two groups."""
        channels = inner + 2 * 2 * state
        for i in layers:
            self.add(f"blk.{i}.ssm_in.weight", inner + channels + heads, self.embd)
            self.add(f"blk.{i}.ssm_out.weight", self.embd, inner)
            self.add(f"blk.{i}.ssm_conv1d.weight", channels, KERNEL)
            self.add(f"blk.{i}.ssm_conv1d.bias", None, channels, kind="bias")
            self.add(f"blk.{i}.ssm_dt.bias", None, heads, kind="bias")
            self.add(f"blk.{i}.ssm_a", heads, 1, kind="decay")
            self.add(f"blk.{i}.ssm_d", heads, 1, kind="bias")
            self.add(f"blk.{i}.ssm_norm.weight", 2, inner // 2, kind="norm")

    def nextn(self, *, own_ends: bool = False) -> None:
        """The block behind the layers, with a norm of its own; or with an embedding and a head, as GLM's has them."""
        place = f"blk.{self.layers - 1}.nextn."
        self.add(place + "eh_proj.weight", self.embd, 2 * self.embd)
        for name in ("enorm", "hnorm") if own_ends else ("enorm", "hnorm", "shared_head_norm"):
            self.add(place + f"{name}.weight", None, self.embd, kind="norm")
        for name in ("embed_tokens", "shared_head_head") if own_ends else ():
            self.add(place + f"{name}.weight", N_VOCAB, self.embd)

    def ends(self, *, tied: bool = False, bias: bool = False) -> Document:
        self.add("token_embd.weight", N_VOCAB, self.embd)
        self.add("output_norm.weight", None, self.embd, kind="norm")
        if not tied:
            self.add("output.weight", N_VOCAB, self.embd)
        if bias:
            self.add("output.bias", None, N_VOCAB, kind="bias")
        return self.document


QKV = ("attn_q", "attn_k", "attn_v", "attn_output")
BIASED_QKV = ("attn_q+bias", "attn_k+bias", "attn_v+bias", "attn_output")
GATED = ("ffn_gate", "ffn_up", "ffn_down")
PRE = ("attn_norm", "ffn_norm")
POST = ("post_attention_norm", "post_ffw_norm")
HEAD_NORMS = ("attn_q_norm", "attn_k_norm")
YARN: dict[str, Any] = {
    "rope__scaling__type": "yarn", "rope__scaling__factor": 4.0, "rope__scaling__original_context_length": 64,
}  # fmt: skip


def decoder(
    architecture: str, names: Iterable[str], *, layers: int = 2, tied: bool = False, bias: bool = False,
    factors: Iterable[str] = (), **keys: Any,
) -> Callable[[], Document]:  # fmt: skip
    """A case of layers that are all alike."""

    def make() -> Document:
        model = Model(architecture, layers, **keys)
        model.layer_tensors(names)
        for name in factors:
            model.add(name, None, int(keys.get("rope__dimension_count", model.size)) // 2, kind="factors")
        return model.ends(tied=tied, bias=bias)

    return make


def mixture(
    architecture: str, names: Iterable[str], *, ff: int = 40, dense: int = 0, shared: int = 0, share: bool = False,
    biases: bool = False, chooser: bool = False, tied: bool = False, layers: int = 2, **keys: Any,
) -> Callable[[], Document]:  # fmt: skip
    """A case of layers with experts, behind some without."""

    def make() -> Document:
        model = Model(architecture, layers, expert_count=N_EXPERTS, expert_used_count=3, **keys)
        model.layer_tensors(names)
        model.layer_tensors(GATED, range(dense))
        model.experts(range(dense, layers), ff=ff, shared=shared, share=share, biases=biases, chooser=chooser)
        return model.ends(tied=tied)

    return make


def _gemma4(*, own_embeddings: bool, shared: int, fused: bool = False, experts: bool = False) -> Document:
    layers, per_token = 8, 12 if own_embeddings else 0
    windowed = [i % 4 != 3 for i in range(layers)]
    own = layers - shared
    model = Model(
        "gemma4", layers, size=32, attention__head_count_kv=[2 if window else 1 for window in windowed],
        feed_forward_length=[96 if i < own else 128 for i in range(layers)], attention__key_length_swa=16,
        attention__value_length_swa=16, rope__dimension_count=32, rope__dimension_count_swa=16, rope__freq_base=1e5,
        rope__freq_base_swa=1e3, attention__sliding_window=WINDOW, attention__sliding_window_pattern=windowed,
        attention__shared_kv_layers=shared, embedding_length_per_layer_input=per_token, final_logit_softcapping=25.0,
        expert_count=N_EXPERTS if experts else None, expert_used_count=3 if experts else None,
        expert_feed_forward_length=48 if experts else None,
    )  # fmt: skip
    for i, window in enumerate(windowed):
        sizes = {"query": 4 * 16 if window else 4 * 32, "key": 2 * 16 if window else 32, "head": 16 if window else 32}
        names = [*PRE, *POST, "attn_q_norm", "attn_output", *GATED]
        if i >= own:
            names.append("attn_q")
        elif fused and window:
            names += ["attn_qkv", "attn_k_norm"]
        else:  # full layers have no values of their own
            names += ["attn_q", "attn_k", "attn_k_norm", *(["attn_v"] if window else [])]
        model.layer_tensors(names, [i], ff=96 if i < own else 128, **sizes)
        model.add(f"blk.{i}.layer_output_scale.weight", None, 1, kind="norm")
        if experts:
            for norm in ("post_ffw_norm_1", "pre_ffw_norm_2", "post_ffw_norm_2"):
                model.add(f"blk.{i}.{norm}.weight", None, model.embd, kind="norm")
            model.add(f"blk.{i}.ffn_gate_inp.weight", N_EXPERTS, model.embd)
            model.add(f"blk.{i}.ffn_gate_inp.scale", None, model.embd, kind="norm")
            model.add(f"blk.{i}.ffn_gate_up_exps.weight", 2 * 48, model.embd, depth=N_EXPERTS)
            model.add(f"blk.{i}.ffn_down_exps.weight", model.embd, 48, depth=N_EXPERTS)
            model.add(f"blk.{i}.ffn_down_exps.scale", None, N_EXPERTS, kind="norm")
        if own_embeddings:
            model.add(f"blk.{i}.inp_gate.weight", per_token, model.embd)
            model.add(f"blk.{i}.proj.weight", model.embd, per_token)
            model.add(f"blk.{i}.post_norm.weight", None, model.embd, kind="norm")
    if own_embeddings:
        model.add("per_layer_token_embd.weight", N_VOCAB, per_token * layers)
        model.add("per_layer_model_proj.weight", per_token * layers, model.embd)
        model.add("per_layer_proj_norm.weight", None, per_token, kind="norm")
    # A quarter of the pairs turn, the others hardly.
    factors = np.array([1.0] * 4 + [1e30] * 12, np.float32)
    model.document.tensors["rope_freqs.weight"] = Stored.of(factors)
    return model.ends(tied=True)


def _delta_nets(
    architecture: str, recurrent: list[bool], *, values: int, shared: int = 0, predicted: int = 0, tied: bool = False,
    **keys: Any,
) -> Document:  # fmt: skip
    """Qwen 3.5 and its kin: two heads of keys; experts where there is a shared one; behind the layers a block that
    predicts a further token, where there is one."""
    layers, next_ = len(recurrent), architecture == "qwen3next"
    if shared:
        keys |= {
            "expert_count": N_EXPERTS, "expert_used_count": 3, "expert_feed_forward_length": 40,
            "expert_shared_feed_forward_length": shared, "feed_forward_length": None,
        }  # fmt: skip
    model = Model(
        architecture, layers + predicted, size=32, rope__dimension_count=16,
        rope__dimension_sections=None if next_ else [3, 3, 2, 0], nextn_predict_layers=predicted or None,
        ssm__conv_kernel=KERNEL, ssm__state_size=16, ssm__group_count=2, ssm__time_step_rank=values,
        ssm__inner_size=16 * values, **keys,
    )  # fmt: skip
    blocks = range(layers + predicted)
    attending = [i for i in blocks if i >= layers or not recurrent[i]]
    model.layer_tensors(["attn_norm", "post_attention_norm", *(() if shared else GATED)])
    model.layer_tensors(["attn_k", "attn_v", "attn_output", *HEAD_NORMS], attending)
    for i in attending:
        model.add(f"blk.{i}.attn_q.weight", 2 * 4 * 32, model.embd)
    model.delta_net([i for i in range(layers) if recurrent[i]], keys=2, values=values, together=next_)
    if shared:
        model.experts(blocks, ff=40, shared=shared)
    for i in blocks if shared else ():
        model.add(f"blk.{i}.ffn_gate_inp_shexp.weight", None, model.embd, kind="bias")
    if predicted:
        model.nextn()
    return model.ends(tied=tied)


def _glm4moe_predicting() -> Document:
    """A layer without experts, one with, and the block, which has them."""
    model = Model(
        "glm4moe", 3, nextn_predict_layers=1, expert_count=N_EXPERTS, expert_used_count=3,
        expert_feed_forward_length=48, expert_shared_count=2, leading_dense_block_count=1, rope__dimension_count=12,
        expert_weights_norm=True, expert_weights_scale=1.5,
    )  # fmt: skip
    model.layer_tensors(["attn_norm", "post_attention_norm", *BIASED_QKV, *HEAD_NORMS])
    model.layer_tensors(GATED, [0])
    model.experts([1, 2], ff=48, shared=96, chooser=True)
    model.nextn(own_ends=True)
    return model.ends()


def block_alone(document: Document) -> Document:
    """What llama.cpp's converter writes with `--mtp`: the metadata and the vocabulary of the whole, and of its tensors
    the block's, the embedding, the last norm and the head."""
    architecture = document.metadata["general.architecture"].content
    block = f"blk.{document.metadata[f'{architecture}.block_count'].content - 1}."
    return Document(
        dict(document.metadata),
        {name: stored for name, stored in document.tensors.items() if name.startswith((block, "token_embd", "output"))},
    )


def without_block(document: Document) -> Document:
    """... and with `--no-mtp`."""
    architecture = document.metadata["general.architecture"].content
    layers = document.metadata[f"{architecture}.block_count"].content - 1
    metadata = {**document.metadata, f"{architecture}.block_count": integer(layers)}
    del metadata[f"{architecture}.nextn_predict_layers"]
    listed = metadata.get(f"{architecture}.attention.recurrent_layers")
    if listed is not None:
        metadata[f"{architecture}.attention.recurrent_layers"] = Value(ARRAY, listed.content[:layers], listed.element)
    return Document(
        metadata,
        {name: stored for name, stored in document.tensors.items() if not name.startswith(f"blk.{layers}.")},
    )


def _lfm2(heads: list[int], *, dense: int | None = None, **keys: Any) -> Document:
    """Layers without heads of keys are short convolutions; experts from layer `dense` on."""
    layers, first = len(heads), len(heads) if dense is None else dense
    if dense is not None:
        keys |= {
            "expert_count": N_EXPERTS, "expert_used_count": 3, "expert_feed_forward_length": 40,
            "expert_gating_func": 2, "leading_dense_block_count": dense,
        }  # fmt: skip
    model = Model(
        "lfm2" if dense is None else "lfm2moe", layers, attention__head_count_kv=heads, shortconv__l_cache=3, **keys
    )
    model.layer_tensors(PRE)
    model.layer_tensors([*QKV, *HEAD_NORMS], [i for i in range(layers) if heads[i]])
    model.layer_tensors(GATED, range(first))
    model.experts(range(first, layers), ff=40, chooser=True)
    for i in range(layers):
        if not heads[i]:
            model.add(f"blk.{i}.shortconv.in_proj.weight", 3 * model.embd, model.embd)
            model.add(f"blk.{i}.shortconv.out_proj.weight", model.embd, model.embd)
            model.add(f"blk.{i}.shortconv.conv.weight", model.embd, 3)
    document = model.ends(tied=True)
    document.tensors["token_embd_norm.weight"] = document.tensors.pop("output_norm.weight")
    return document


def _mamba(inner: int, heads: int) -> dict[str, Any]:
    return {
        "ssm__conv_kernel": KERNEL, "ssm__inner_size": inner, "ssm__state_size": 32, "ssm__time_step_rank": heads,
        "ssm__group_count": 2,
    }  # fmt: skip


def _granitehybrid(heads: list[int], *, mixture: bool = False, **keys: Any) -> Document:
    layers = len(heads)
    if mixture:
        keys |= {"expert_count": N_EXPERTS, "expert_used_count": 3, "expert_shared_feed_forward_length": 48}
    model = Model(
        "granitehybrid", layers, attention__head_count_kv=heads, residual_scale=0.7, embedding_scale=1.5,
        attention__scale=0.2, **_mamba(128, 4), **keys,
    )  # fmt: skip
    model.layer_tensors(PRE)
    model.layer_tensors(QKV, [i for i in range(layers) if heads[i]])
    model.mamba([i for i in range(layers) if not heads[i]], inner=128, heads=4, state=32)
    if mixture:
        model.experts(range(layers), ff=96, shared=48)
    else:
        model.layer_tensors(GATED)
    return model.ends(tied=mixture)


def _nemotron_h(layers: str, *, mixture: bool = False, **keys: Any) -> Document:
    """A letter for each layer: Mamba-2, attention or feed-forward."""
    if mixture:
        keys |= {
            "expert_count": N_EXPERTS, "expert_used_count": 3, "expert_feed_forward_length": 40,
            "expert_shared_feed_forward_length": 24, "expert_shared_count": 1, "expert_weights_norm": True,
            "expert_weights_scale": 2.5,
        }  # fmt: skip
    model = Model(
        "nemotron_h_moe" if mixture else "nemotron_h", len(layers), attention__head_count_kv=[2 * (x == "a") for x in
        layers], feed_forward_length=[96 * (x == "f") for x in layers], attention__layer_norm_epsilon=1e-5,
        **_mamba(96, 6), **keys,
    )  # fmt: skip
    places = {kind: [i for i, letter in enumerate(layers) if letter == kind] for kind in "maf"}
    model.layer_tensors(["attn_norm"])
    model.layer_tensors(QKV, places["a"])
    model.mamba(places["m"], inner=96, heads=6, state=32)
    if mixture:
        model.experts(places["f"], ff=40, shared=24, chooser=True, gates=False)
    else:
        model.layer_tensors(["ffn_up+bias", "ffn_down"], places["f"])
    return model.ends()


def _latent(
    architecture: str, *, layers: int = 3, query_rank: int = 24, predicted: bool = False, **keys: Any
) -> Document:
    """Heads that share one compressed row of 32 numbers and 16 that are rotated; the last layer may be a block."""
    rank, rotated, unrotated, value = 32, 16, 32, 12
    model = Model(
        architecture, layers, kv=1, size=rank + rotated, attention__value_length=rank,
        attention__key_length_mla=unrotated + rotated, attention__value_length_mla=value,
        attention__kv_lora_rank=rank, attention__q_lora_rank=query_rank or None, rope__dimension_count=rotated,
        leading_dense_block_count=1, expert_count=N_EXPERTS, expert_used_count=3, expert_feed_forward_length=40,
        expert_shared_count=2, expert_weights_norm=True, expert_weights_scale=2.5, expert_gating_func=2,
        nextn_predict_layers=1 if predicted else None, **keys,
    )  # fmt: skip
    if predicted:
        model.nextn()
    model.layer_tensors(PRE)
    model.layer_tensors(GATED, [0])
    model.experts(range(1, layers), ff=40, shared=80, chooser=True)
    whole = model.heads * (unrotated + rotated)
    for i in range(layers):
        if query_rank:
            model.add(f"blk.{i}.attn_q_a.weight", query_rank, model.embd)
            model.add(f"blk.{i}.attn_q_a_norm.weight", None, query_rank, kind="norm")
        model.add(f"blk.{i}.attn_q{'_b' if query_rank else ''}.weight", whole, query_rank or model.embd)
        model.add(f"blk.{i}.attn_kv_a_mqa.weight", rank + rotated, model.embd)
        model.add(f"blk.{i}.attn_kv_a_norm.weight", None, rank, kind="norm")
        model.add(f"blk.{i}.attn_k_b.weight", rank, unrotated, depth=model.heads)
        model.add(f"blk.{i}.attn_v_b.weight", value, rank, depth=model.heads)
        model.add(f"blk.{i}.attn_output.weight", model.embd, model.heads * value)
    return model.ends()


LONG_FACTORS = ("rope_factors_long.weight", "rope_factors_short.weight")
ALL_BIASES = (
    "attn_q+bias",
    "attn_k+bias",
    "attn_v+bias",
    "attn_output+bias",
    "ffn_gate+bias",
    "ffn_up+bias",
    "ffn_down+bias",
)
WINDOWED: dict[str, Any] = {"attention__sliding_window": WINDOW}

# Name -> how it is made. The name begins with the architecture's.
CASES: dict[str, Callable[[], Document]] = {
    "llama-biases-factors-tied": decoder("llama", [*PRE, *ALL_BIASES], tied=True, factors=["rope_freqs.weight"]),
    "llama-yarn": decoder("llama", [*PRE, *QKV, *GATED], **YARN),
    "llama-longrope": decoder(
        "llama", [*PRE, *QKV, *GATED], factors=LONG_FACTORS, rope__scaling__type="longrope",
        rope__scaling__original_context_length=64, rope__scaling__attn_factor=1.2,
    ),
    "llama-fused-qkv": decoder("llama", [*PRE, "attn_qkv+bias", "attn_output", *GATED]),
    "llama-factor-0": decoder("llama", [*PRE, *QKV, *GATED], rope__scaling__factor=0.0),
    "llama-window-ignored": decoder("llama", [*PRE, *QKV, *GATED], **WINDOWED),
    "qwen2": decoder("qwen2", [*PRE, *BIASED_QKV, *GATED], bias=True),
    "qwen2-yarn": decoder("qwen2", [*PRE, *BIASED_QKV, *GATED], tied=True, **YARN),
    "qwen3-yarn": decoder("qwen3", [*PRE, *QKV, *HEAD_NORMS, *GATED], size=32, **YARN),
    "qwen3vl": decoder("qwen3vl", [*PRE, *QKV, *HEAD_NORMS, *GATED], rope__dimension_sections=[3, 2, 2, 0]),
    "gemma": decoder("gemma", [*PRE, *QKV, *GATED], tied=True, size=32),
    "gemma2": decoder(
        "gemma2", [*PRE, *POST, *QKV, *GATED], tied=True, layers=4, attn_logit_softcapping=5.0,
        final_logit_softcapping=6.0, **WINDOWED,
    ),
    "gemma2-defaults": decoder("gemma2", [*PRE, *POST, *QKV, *GATED], tied=True, **WINDOWED),
    "gemma3": decoder(
        "gemma3", [*PRE, *POST, *QKV, *HEAD_NORMS, *GATED], tied=True, layers=7, rope__scaling__type="linear",
        rope__scaling__factor=8.0, rope__freq_base=1e5, **WINDOWED,
    ),
    "gemma3-softcap-pattern": decoder(
        "gemma3", [*PRE, *POST, *QKV, *HEAD_NORMS, *GATED], layers=4, final_logit_softcapping=3.0,
        attention__sliding_window_pattern=2, rope__freq_base_swa=300.0, **WINDOWED,
    ),
    "gemma4-dense": lambda: _gemma4(own_embeddings=False, shared=0),
    "gemma4-fused-qkv": lambda: _gemma4(own_embeddings=False, shared=0, fused=True),
    "gemma4-experts": lambda: _gemma4(own_embeddings=False, shared=0, experts=True),
    "gemma4-embeddings-shared-caches": lambda: _gemma4(own_embeddings=True, shared=4),
    "mistral3": decoder(
        "mistral3", [*PRE, *QKV, *GATED], attention__temperature_scale=0.3, rope__scaling__yarn_log_multiplier=1.0,
        **{**YARN, "rope__scaling__original_context_length": 24},
    ),
    "phi3-long": decoder(
        "phi3", [*PRE, "attn_qkv", "attn_output", "ffn_gate_up", "ffn_down"], factors=LONG_FACTORS,
        rope__dimension_count=12, rope__scaling__original_context_length=64, rope__scaling__attn_factor=1.2, **WINDOWED,
    ),
    "phi3-short": decoder(
        "phi3", [*PRE, *QKV, "ffn_gate_up", "ffn_down"], factors=LONG_FACTORS,
        rope__scaling__original_context_length=N_CTX, rope__scaling__attn_factor=1.1,
    ),
    "granite": decoder(
        "granite", [*PRE, *QKV, *GATED], logit_scale=2.0, residual_scale=0.7, embedding_scale=1.5,
        attention__scale=0.2,
    ),
    "granite-without-positions": decoder(
        "granite", [*PRE, *ALL_BIASES], logit_scale=3.0, rope__scaling__finetuned=False, tied=True
    ),
    "smollm3": decoder("smollm3", [*PRE, *QKV, *GATED], layers=4, tied=True),
    "olmo2": decoder("olmo2", [*POST, *QKV, "q_row_norm", "k_row_norm", *GATED]),
    "olmo2-windows-yarn": decoder(
        "olmo2", [*POST, *QKV, "q_row_norm", "k_row_norm", *GATED], layers=4, **YARN, **WINDOWED
    ),
    "seed_oss": decoder("seed_oss", ["attn_norm", "post_attention_norm", *BIASED_QKV, *GATED], size=32),
    "glm4": decoder("glm4", [*PRE, *POST, *BIASED_QKV, "ffn_gate_up", "ffn_down"], rope__dimension_count=8),
    "exaone4": decoder("exaone4", [*POST, *QKV, *HEAD_NORMS, *GATED], factors=["rope_freqs.weight"]),
    "exaone4-windows": decoder("exaone4", [*POST, *QKV, *HEAD_NORMS, *GATED], layers=64, **WINDOWED),
    "cohere2": decoder(
        "cohere2", ["attn_norm", *QKV, *GATED], layers=4, tied=True, logit_scale=0.25,
        attention__layer_norm_epsilon=1e-5, attention__layer_norm_rms_epsilon=None, **WINDOWED,
    ),
    "hunyuan-dense": decoder("hunyuan-dense", [*PRE, *QKV, *HEAD_NORMS, *GATED]),
    "minicpm": decoder("minicpm", [*PRE, *QKV, *GATED]),
    "minicpm-scales": decoder(
        "minicpm", [*PRE, *QKV, *GATED], logit_scale=0.25, residual_scale=0.9, embedding_scale=2.0
    ),
    "ernie4_5": decoder("ernie4_5", [*PRE, *QKV, *GATED], tied=True, size=32),
    "internlm2": decoder("internlm2", [*PRE, *QKV, *GATED]),
    "qwen35": lambda: _delta_nets("qwen35", [True, True, True, False], values=6),
    "qwen35-listed-predicting": lambda: _delta_nets(
        "qwen35", [False, True, True], values=4, predicted=1, tied=True,
        attention__recurrent_layers=[False, True, True, False],
    ),
    "qwen35moe": lambda: _delta_nets("qwen35moe", [True, False], values=4, shared=24, full_attention_interval=2),
    "qwen3next": lambda: _delta_nets("qwen3next", [True, True, True, False], values=4, shared=24),
    "lfm2": lambda: _lfm2([0, 2, 0]),
    "lfm2-windows": lambda: _lfm2([0, 2], **WINDOWED),
    "lfm2moe": lambda: _lfm2([0, 2, 0], dense=1),
    "granitehybrid": lambda: _granitehybrid([0, 2, 0], logit_scale=2.0, rope__scaling__finetuned=False),
    "granitehybrid-experts": lambda: _granitehybrid([0, 0, 2], mixture=True),
    "nemotron_h": lambda: _nemotron_h("mafm"),
    "nemotron_h_moe": lambda: _nemotron_h("mfam", mixture=True),
    "llama-experts": mixture("llama", [*PRE, *QKV], ff=96, **YARN),
    "mistral3-experts": mixture("mistral3", [*PRE, *QKV], ff=96, attention__temperature_scale=0.1),
    "qwen3moe": mixture("qwen3moe", [*PRE, *QKV, *HEAD_NORMS], size=32, expert_feed_forward_length=40),
    "qwen3moe-default-width": mixture("qwen3moe", [*PRE, *QKV, *HEAD_NORMS], ff=32),
    "qwen3vlmoe": mixture(
        "qwen3vlmoe", [*PRE, *QKV, *HEAD_NORMS], expert_feed_forward_length=40,
        rope__dimension_sections=[3, 2, 2, 0],
    ),
    "granitemoe": mixture(
        "granitemoe", [*PRE, *QKV], ff=96, shared=48, expert_shared_feed_forward_length=48, logit_scale=2.0,
        residual_scale=0.7, embedding_scale=1.5, attention__scale=0.2, tied=True,
    ),
    "gpt-oss": mixture(
        "gpt-oss", ["attn_norm", "post_attention_norm", *BIASED_QKV[:3], "attn_output+bias", "attn_sinks_norm"],
        biases=True, layers=4, expert_feed_forward_length=40, **YARN, **WINDOWED,
    ),
    "ernie4_5-moe": mixture(
        "ernie4_5-moe", [*PRE, *QKV], dense=1, shared=48, chooser=True, layers=3, expert_feed_forward_length=40,
        expert_shared_feed_forward_length=48, leading_dense_block_count=1, interleave_moe_layer_step=1,
    ),
    "glm4moe": mixture(
        "glm4moe", ["attn_norm", "post_attention_norm", *BIASED_QKV, *HEAD_NORMS], ff=48,
        dense=1, shared=96, chooser=True,
        layers=3, expert_feed_forward_length=48, expert_shared_count=2, leading_dense_block_count=1,
        rope__dimension_count=12, expert_weights_norm=True, expert_weights_scale=1.5,
    ),
    "qwen2moe": mixture(
        "qwen2moe", [*PRE, *BIASED_QKV], shared=48, share=True, expert_feed_forward_length=40,
        expert_shared_feed_forward_length=48,
    ),
    "qwen2moe-default-widths": mixture("qwen2moe", [*PRE, *QKV], ff=32, shared=96, share=True),
    "deepseek2": lambda: _latent("deepseek2"),
    "deepseek2-yarn": lambda: _latent("deepseek2", rope__scaling__yarn_log_multiplier=0.05, **YARN),
    "deepseek2-yarn-default": lambda: _latent("deepseek2", **YARN),
    "mistral4": lambda: _latent(
        "mistral4", attention__temperature_scale=0.3, attention__temperature_length=24,
        rope__scaling__yarn_log_multiplier=0.1, **YARN,
    ),
    "olmoe": mixture("olmoe", [*PRE, *QKV, "q_row_norm", "k_row_norm"], ff=112, kv=4, feed_forward_length=112),
}  # fmt: skip
# With a block behind the layers that predicts a further token; golden are its logits.
PREDICTING: dict[str, Callable[[], Document]] = {
    "qwen35-listed-predicting": CASES["qwen35-listed-predicting"],
    "qwen35moe-predicting": lambda: _delta_nets(
        "qwen35moe", [True, False], values=4, shared=24, predicted=1, full_attention_interval=2
    ),
    "qwen3next-predicting": lambda: _delta_nets(
        "qwen3next", [True, False], values=4, shared=24, predicted=1, full_attention_interval=2
    ),
    "glm4moe-predicting": _glm4moe_predicting,
    "deepseek2-predicting": lambda: _latent("deepseek2", predicted=True),
}
# With a context that windows do not remember: the logits of the last positions.
LONG_CASES = ("gemma3", "gemma4-embeddings-shared-caches", "cohere2")
# Numbers that are no weights of products, and F32 in any file; and matrices that llama.cpp does not multiply as F16.
FLOATS = ("attn_k_b", "ffn_gate_inp", ".bias", "ssm_conv1d", "ssm_a", "ssm_d", "ssm_norm", "shortconv.conv")


def make(name: str, type_name: str = "F32", n_ctx: int = N_CTX) -> Document:
    """A case, with matrices of a type."""
    document = (CASES | PREDICTING)[name]()
    architecture = document.metadata["general.architecture"].content
    document.metadata[f"{architecture}.context_length"] = integer(n_ctx)
    for tensor, stored in document.tensors.items():
        if type_name != "F32" and len(stored.shape) > 1 and not any(name in tensor for name in FLOATS):
            document.tensors[tensor] = Stored.of(stored.values(), type_name)
    return document
