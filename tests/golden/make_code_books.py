"""Writes libbee/types/code_books.h: the code books of the IQ1, IQ2 and IQ3 weight types, as data.

    python tests/golden/make_code_books.py PATH/TO/ggml-common.h > libbee/types/code_books.h

The numbers were chosen by ggml's authors (https://github.com/ggml-org/llama.cpp, ggml/src/ggml-common.h, MIT licence);
files in these types hold indices into them. Each entry is four or eight small numbers out of at most eight different
ones: it is written as the digits of these, two or three bits each, the first number in the lowest bits.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

# Name here and there, bytes of an entry, bits of a digit, and the numbers that the digits stand for.
BOOKS = [
    ("IQ2_XXS", "iq2xxs_grid", 8, 2, [8, 25, 43]),
    ("IQ2_XS", "iq2xs_grid", 8, 2, [8, 25, 43]),
    ("IQ2_S", "iq2s_grid", 8, 2, [8, 25, 43]),
    ("IQ1", "iq1s_grid", 8, 2, [255, 0, 1]),
    ("IQ3_XXS", "iq3xxs_grid", 4, 3, [4, 12, 20, 28, 36, 44, 52, 62]),
    ("IQ3_S", "iq3s_grid", 4, 3, [1, 3, 5, 7, 9, 11, 13, 15]),
]
HEAD = """/* Made by tests/golden/make_code_books.py from ggml's ggml-common.h (MIT licence): the numbers that files in
 * IQ1, IQ2 and IQ3 hold indices into. An entry is its numbers' digits, the first in the lowest bits:
 *
 *   IQ2_*     eight of two bits: 0, 1, 2 are 8, 25, 43
 *   IQ1       eight of two bits: 0, 1, 2 are -1, 0, 1
 *   IQ3_XXS   four of three bits: 0 to 7 are 4, 12, 20, 28, 36, 44, 52, 62
 *   IQ3_S     four of three bits: 0 to 7 are 1, 3, 5, ..., 15 */
#ifndef BEE_TYPES_CODE_BOOKS_H
#define BEE_TYPES_CODE_BOOKS_H

// clang-format off
"""


def entries(header: str, name: str) -> list[int]:
    found = re.search(rf"GGML_TABLE_BEGIN\(\w+, {name}, [^)]*\)(.*?)GGML_TABLE_END", header, re.DOTALL)
    assert found, name
    return [int(text, 0) for text in re.findall(r"0x[0-9a-fA-F]+", found.group(1))]


def main() -> None:
    header = Path(sys.argv[1]).read_text(encoding="utf-8")
    print(HEAD)
    for name, source, n_bytes, bits, numbers in BOOKS:
        codes = [
            sum(numbers.index(number) << bits * i for i, number in enumerate(entry.to_bytes(n_bytes, "little")))
            for entry in entries(header, source)
        ]
        lines = [" ".join(f"E({code:#06x})" for code in codes[i : i + 12]) for i in range(0, len(codes), 12)]
        print(f"#define {name}_BOOK(E) \\\n    " + " \\\n    ".join(lines) + "\n")
    print("// clang-format on\n\n#endif")


if __name__ == "__main__":
    main()
