#!/usr/bin/env python3
"""Whether a card gives the same tokens again and again, on grids as large as real models': `full_grids.py SHAPE`.

A model of that shape with made-up weights generates greedily, with and without kernels that overlap, with and without
speculation, ten times each: all must give the same tokens. Small models leave most of a card idle, and what goes wrong
between blocks or kernels seldom shows there.

Exit codes: 0; 1 where tokens differ; 3 where the package cannot be used here.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def generate(lib: Any, ffi: Any, engine: Any, session: Any, n: int, speculation: int) -> list[int]:
    from bee_integrations.library import check, new_error

    error = new_error()
    prompt = ffi.new("int32_t[]", [(37 * i + 11) % 251 for i in range(33)])
    request = ffi.new(
        "bee_request *", {"n_prompt": 33, "max_tokens": n, "speculation": speculation, "draft_length": -1}
    )
    request.prompt, request.sampling.top_p = prompt, 1.0
    check(lib.bee_session_begin(session, request, error), error)
    step, sessions = ffi.new("bee_step *"), ffi.new("bee_session *[]", [session])
    tokens: list[int] = []
    while step.finish == lib.BEE_FINISH_NONE:
        check(lib.bee_engine_step(engine, sessions, 1, step, error), error)
        tokens += list(step.tokens[0 : step.n_tokens])
    return tokens


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("shape")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--few", action="store_true", help="of everything, for the emulation")
    options = parser.parse_args()
    n, rounds = (6, 1) if options.few else (options.tokens, options.rounds)
    sys.path.insert(0, str(ROOT))
    try:
        from bee_integrations.bench.synthetic_model import SHAPES, write_drafter, write_target
        from bee_integrations.library import check, ffi, lib, new_error
    except Exception as error:
        print(f"the Python package cannot be used: {error}")
        return 3
    shape = SHAPES[options.shape]
    seen: dict[tuple[int, ...], list[str]] = {}
    with tempfile.TemporaryDirectory(prefix="bee-grids-") as folder:
        target = write_target(shape, Path(folder) / "target.gguf")
        drafter = write_drafter(shape, Path(folder) / "drafter.gguf")
        for overlap in ("0", "1"):
            os.environ["BEE_CUDA_OVERLAP"] = overlap
            costs = ffi.new("bee_costs *", {"pass": [1e-3] * 11, "draft": [1e-4] * 16})
            wanted = {"device": lib.BEE_DEVICE_CUDA if options.device == "cuda" else lib.BEE_DEVICE_CPU, "n_ctx": 256}
            parameters = ffi.new("bee_engine_params *", {**wanted, "made_up_weights": True, "costs": costs})
            error = new_error()
            engine = lib.bee_engine_open(os.fsencode(target), os.fsencode(drafter), parameters, error)
            check(engine, error)
            session = lib.bee_session_open(engine, 256, False, error)
            check(session, error)
            for round_ in range(rounds):
                for name in ("OFF", "DFLASH"):
                    mode = getattr(lib, f"BEE_SPECULATION_{name}")
                    tokens = tuple(generate(lib, ffi, engine, session, n, mode))
                    seen.setdefault(tokens, []).append(f"overlap {overlap}, {name.lower()}, round {round_}")
            lib.bee_session_close(session)
            lib.bee_engine_close(engine)
    for tokens, where in seen.items():
        print(f"{len(where)} times {len(set(tokens))} different ones of {len(tokens)} tokens: {where[0]} ...")
    return 0 if len(seen) == 1 else 1


if __name__ == "__main__":
    sys.exit(main())
