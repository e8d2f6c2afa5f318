"""Random texts over all of Unicode, the same on every run: what tokenizers are compared with llama.cpp on.

Only hashes of the results are stored, so the texts are made from `random.Random.random()` alone, whose stream is
promised to stay.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from random import Random

BLOCK = 100  # texts of which one hash is stored
MARKERS = (
    "<|im_start|>", "<|im_end|>\n", "<|endoftext|>", "<|eot_id|>", "<s>", "</s>", "<unk>", "<|end|> \n", "<|user|>\t",
    "<start_of_turn>", "<end_of_turn>", "<|turn>", "<turn|>", "<|channel>", '<|"|>', "<0x0A>", "[INST]", "\n\n\n",
    "     ", "\u2581", "<h1>", "'s", "'LL", "'\u017f", "1234567", "3.14", "don't", "HTMLParser", " the quick brown fox",
)  # fmt: skip
RANGES = (  # first and last + 1 of the code points
    (0x20, 0x7F), (0x20, 0x7F), (0x20, 0x7F), (0x20, 0x21), (0x00, 0x20), (0x30, 0x3A), (0xA0, 0x300), (0x300, 0x3000),
    (0x3000, 0xD800), (0xE000, 0x10000), (0x10000, 0x20000), (0x10000, 0x20000), (0x20000, 0x110000),
)  # fmt: skip


def unicode_texts(count: int) -> list[str]:
    """Short texts of markers and of characters from all planes, unassigned ones among them."""
    source = Random(20261129)
    return ["".join(_pieces(source)) for _ in range(count)]


def _pieces(source: Random) -> Iterator[str]:
    for _ in range(1 + int(source.random() * 30)):
        if source.random() < 0.07:
            yield MARKERS[int(source.random() * len(MARKERS))]
            continue
        first, end = RANGES[int(source.random() * len(RANGES))]
        repeated = 1 + int(source.random() * 4) if source.random() < 0.2 else 1
        yield chr(first + int(source.random() * (end - first))) * repeated


def block_digests(encode: Callable[[str], object], texts: list[str]) -> list[str]:
    """One short hash of the results for each block of texts."""
    return [
        hashlib.sha256(json.dumps([encode(text) for text in texts[at : at + BLOCK]]).encode()).hexdigest()[:8]
        for at in range(0, len(texts), BLOCK)
    ]
