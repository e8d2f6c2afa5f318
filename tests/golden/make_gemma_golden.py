"""Store what llama.cpp makes of Gemma 3 270M: greedy continuations and how decided each step was (gemma.json).

bee pull gemma-3-270m
python tests/golden/make_gemma_golden.py MODEL.gguf        (needs llama-cpp-python 0.3.36)
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from llama_cpp import Llama

TEXTS = (
    "The capital of France is",
    "def fibonacci(n):\n    if n < 2:",
    "Once upon a time, in a land far away, there lived",
    "日本の首都は",
    "Die Hauptstadt von Deutschland ist",
    "SELECT name, COUNT(*) FROM orders",
)
STEPS = 32


def main() -> None:
    model = Llama(sys.argv[1], n_ctx=256, logits_all=True, verbose=False)
    found = []
    for text in TEXTS:
        prompt = model.tokenize(text.encode())
        model.reset()
        model.eval(prompt)
        chosen, margins = [], []
        for _ in range(STEPS):
            row = np.array(model.scores[model.n_tokens - 1])
            best = np.sort(row)[-2:]
            chosen.append(int(row.argmax()))
            margins.append(round(float(best[1] - best[0]), 3))
            model.eval([chosen[-1]])
        found.append({"text": text, "prompt": prompt, "tokens": chosen, "margins": margins})
    path = Path(__file__).resolve().parent / "gemma.json"
    path.write_text(json.dumps(found, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
