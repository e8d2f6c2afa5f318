"""Make tests/golden/logits/: what llama-cpp-python 0.3.36 computes for the default model, and how exact that is.

    python tests/golden/make_logit_golden.py MODEL.gguf

MODEL.gguf is the default model. Needs llama-cpp-python, gguf and NumPy; takes a few minutes on one core.

greedy.json: for six chat prompts the token ids, the greedy continuation of 64 tokens, and at each step the two
largest logits. full.npz: all logits of a few positions. Both hold the values of llama.cpp and those of a plain
forward pass in double precision over the same weights (`exact`). llama.cpp rounds activations to 8 bits, in blocks
of 32, before each product with quantised weights, as libbee does by its own rules; so the distance of llama.cpp from
`exact` is a measure of the noise that is to be expected of either.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

HERE = Path(__file__).resolve().parent / "logits"
STEPS = 64
FULL_PROMPTS = (0, 3)  # prompts whose logits are stored in full ...
FULL_STEPS = (0, 40)  # ... at these steps

PROMPTS: list[list[dict[str, str]]] = [
    [{"role": "user", "content": "Explain why the sky is blue, in simple words."}],
    [{"role": "user", "content": "Write a Python function that reverses a linked list. Explain each step."}],
    [
        {"role": "system", "content": "You are a patient cooking teacher."},
        {"role": "user", "content": "How do I boil an egg?"},
        {"role": "assistant", "content": "Put it in boiling water for eight minutes, then cool it."},
        {"role": "user", "content": "Write a long letter to a friend about your first cooking lesson."},
    ],
    [{"role": "user", "content": "Tell me a story about a lighthouse keeper who finds a message in a bottle."}],
    [
        {
            "role": "user",
            "content": "Summarise this text:\n\nThe bee colony keeps its brood nest at about 35 °C. On hot days bees "
            "carry water and fan their wings; on cold days they cluster and shiver.\n\nThen list three "
            "questions about it.",
        }
    ],
    [{"role": "user", "content": "Describe a day in the life of a mail carrier in a small mountain village."}],
]


class Exact:
    """The llama architecture in double precision: embedding, blocks, norm, tied head. One sequence from position 0."""

    def __init__(self, path: Path) -> None:
        reader = gguf.GGUFReader(path)
        self._tensors = {tensor.name: tensor for tensor in reader.tensors}
        key = {name: field.contents() for name, field in reader.fields.items() if name.startswith("llama.")}
        self._layers: int = key["llama.block_count"]
        self._heads: int = key["llama.attention.head_count"]
        self._kv_heads: int = key["llama.attention.head_count_kv"]
        self._epsilon: float = key["llama.attention.layer_norm_rms_epsilon"]
        self._base: float = key["llama.rope.freq_base"]
        self._embedding = self._weight("token_embd.weight")

    def _weight(self, name: str) -> Array:
        tensor = self._tensors[name]
        return gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float64)

    def _norm(self, x: Array, name: str) -> Array:
        scale = np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + self._epsilon)
        return x / scale * self._weight(name)

    def _rotate(self, x: Array) -> Array:
        """x: [position][head][dimension]; neighbouring dimensions are the pairs."""
        width = x.shape[-1]
        frequency = self._base ** (-np.arange(0, width, 2) / width)
        angle = (np.arange(len(x))[:, None] * frequency)[:, None, :]
        even, odd = x[..., 0::2], x[..., 1::2]
        turned = (even * np.cos(angle) - odd * np.sin(angle), even * np.sin(angle) + odd * np.cos(angle))
        return np.stack(turned, axis=-1).reshape(x.shape)

    def _attention(self, x: Array, layer: str) -> Array:
        n = len(x)
        q = self._rotate((x @ self._weight(layer + "attn_q.weight").T).reshape(n, self._heads, -1))
        k = self._rotate((x @ self._weight(layer + "attn_k.weight").T).reshape(n, self._kv_heads, -1))
        v = (x @ self._weight(layer + "attn_v.weight").T).reshape(n, self._kv_heads, -1)
        group = self._heads // self._kv_heads
        k, v = np.repeat(k, group, axis=1), np.repeat(v, group, axis=1)
        scores = np.einsum("ihd,jhd->hij", q, k) / np.sqrt(q.shape[-1])
        scores[:, ~np.tri(n, dtype=bool)] = -np.inf
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        return np.einsum("hij,jhd->ihd", weights, v).reshape(n, -1) @ self._weight(layer + "attn_output.weight").T

    def _feed_forward(self, x: Array, layer: str) -> Array:
        gate = x @ self._weight(layer + "ffn_gate.weight").T
        up = x @ self._weight(layer + "ffn_up.weight").T
        return (gate / (1 + np.exp(-gate)) * up) @ self._weight(layer + "ffn_down.weight").T

    def logits(self, tokens: list[int]) -> Array:
        """[position][vocabulary]"""
        x = self._embedding[tokens]
        for index in range(self._layers):
            layer = f"blk.{index}."
            x = x + self._attention(self._norm(x, layer + "attn_norm.weight"), layer)
            x = x + self._feed_forward(self._norm(x, layer + "ffn_norm.weight"), layer)
        return self._norm(x, "output_norm.weight") @ self._embedding.T


def without_repacking() -> Any:
    """Parameters under which llama.cpp computes with the weights as they are in the file.

    Its repacked layouts differ by machine, and the one for AMX crashes in this release. llama_cpp.Llama has no argument
    for this, so it is told through the function that it takes its defaults from.
    """
    parameters = default_parameters()
    parameters.use_extra_bufts = False
    return parameters


default_parameters = llama_cpp.llama_cpp.llama_model_default_params


def greedy(model: llama_cpp.Llama, prompt: list[int]) -> tuple[list[int], npt.NDArray[np.float32]]:
    """The continuation, and the logits that each of its tokens was chosen from: [step][vocabulary]."""
    model.reset()
    model.eval(prompt)
    tokens: list[int] = []
    rows = []
    for _ in range(STEPS):
        row = np.array(model.scores[model.n_tokens - 1], dtype=np.float32)
        rows.append(row)
        tokens.append(int(row.argmax()))
        model.eval(tokens[-1:])
    return tokens, np.stack(rows)


def top_two(row: npt.NDArray[Any]) -> list[tuple[int, float]]:
    """(id, logit) of the two largest, largest first."""
    best = np.argsort(row)[-2:][::-1]
    return [(int(token), round(float(row[token]), 4)) for token in best]


def measure(model: llama_cpp.Llama, exact: Exact, prompt: list[int]) -> tuple[dict[str, Any], dict[str, Any]]:
    """One prompt's golden entry, and its full logits of llama.cpp and of the exact pass."""
    tokens, rows = greedy(model, prompt)
    if any(llama_cpp.llama_vocab_is_eog(model._model.vocab, token) for token in tokens):
        raise SystemExit("a continuation ends before 64 tokens; choose another prompt")
    exact_rows = exact.logits(prompt + tokens)[len(prompt) - 1 : -1]
    deviation = rows - exact_rows
    entry = {
        "prompt": prompt,
        "continuation": tokens,
        "top_two": [top_two(row) for row in rows],
        "exact": [
            [round(float(values[token]), 4) for token, _ in top_two(row)]
            for row, values in zip(rows, exact_rows, strict=True)
        ],
        "rms_deviation": round(float(np.sqrt(np.mean(deviation**2))), 5),
        "rms_deviation_of_steps": [round(float(np.sqrt(np.mean(d**2))), 4) for d in deviation],
        "largest_deviation": round(float(np.abs(deviation).max()), 4),
        "agreement_of_argmax": float(np.mean(rows.argmax(axis=1) == exact_rows.argmax(axis=1))),
    }
    full = {"llama": rows, "exact": exact_rows}
    return entry, full


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    path = Path(sys.argv[1])
    settings: dict[str, Any] = {"n_ctx": 512, "n_batch": 512, "n_threads": 1, "n_threads_batch": 1, "flash_attn": False}
    llama_cpp.llama_cpp.llama_model_default_params = without_repacking
    model = llama_cpp.Llama(str(path), logits_all=True, verbose=False, **settings)
    render = llama_cpp.llama_chat_format.Jinja2ChatFormatter(
        model.metadata["tokenizer.chat_template"], eos_token="<|im_end|>", bos_token="<|im_start|>"
    )
    exact = Exact(path)
    entries = []
    arrays: dict[str, npt.NDArray[np.float16]] = {}
    for index, messages in enumerate(PROMPTS):
        prompt = model.tokenize(render(messages=messages).prompt.encode(), add_bos=False, special=True)
        entry, full = measure(model, exact, prompt)
        entries.append({"messages": messages, **entry})
        for step in FULL_STEPS if index in FULL_PROMPTS else ():
            for kind, rows in full.items():
                arrays[f"{kind}_{index}_{step}"] = rows[step].astype(np.float16)
    made_with = {
        "llama-cpp-python": llama_cpp.__version__,
        "gguf": "dequantize",
        "numpy": np.__version__,
        "model": path.name,
        "settings": {**settings, "use_extra_bufts": False},
        "system": llama_cpp.llama_print_system_info().decode(),
    }
    HERE.mkdir(exist_ok=True)
    lines = [json.dumps(entry) for entry in entries]
    head = f'{{"made_with": {json.dumps(made_with)},\n"prompts": [\n'
    (HERE / "greedy.json").write_text(head + ",\n".join(lines) + "\n]}\n")
    np.savez_compressed(HERE / "full.npz", **arrays)


if __name__ == "__main__":
    main()
