#!/usr/bin/env python3
"""Whether two builds of libbee give the same bits: `python tests/compare_libraries.py OLD.so NEW.so`.

Compared are all logits of the default model and of the golden models, in passes of 1, 4 and 16 rows and with every
instruction set of this machine; then the tokens of generations over models with and without drafters, modes, draft
lengths, seeds, temperatures, truncations, penalties and constraints. Every difference is printed.

Exit codes: 0: none; 1: some; 2: nothing could be compared.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
ROWS = (1, 4, 16)
N_TOKENS = 33  # of the prompt whose logits are compared: passes of 4 and 16 rows end with a shorter one
CONSTRAINED = 0.4  # share of the generations


class Library:
    """One build, with the header that it was built from."""

    def __init__(self, path: Path, header: Path) -> None:
        import cffi

        from bee_integrations.library import declarations

        self.path = path
        self.ffi: Any = cffi.FFI()
        self.ffi.cdef(declarations(header.read_text(encoding="utf-8")))
        self.lib: Any = self.ffi.dlopen(str(path.resolve()))

    def instruction_sets(self) -> list[str]:
        names = self.lib.bee_instruction_sets()
        found: list[str] = []
        while names[len(found)] != self.ffi.NULL:
            found.append(self.ffi.string(names[len(found)]).decode())
        return found

    def checked(self, result: Any, error: Any) -> Any:
        """The result of a call, or the end of the comparison: a failure of one build is none of the numbers'."""
        failed = result == self.ffi.NULL if isinstance(result, self.ffi.CData) else result != 0
        if failed:
            raise SystemExit(f"{self.path}: {self.ffi.string(error.message).decode(errors='replace')}")
        return result


class Opened:
    """An engine of one of the libraries, and one session."""

    def __init__(self, library: Library, pair: Pair, instruction_set: str | None, threads: int) -> None:
        self.library = library
        ffi, lib = library.ffi, library.lib
        error = ffi.new("bee_error *")
        name = ffi.new("char[]", instruction_set.encode()) if instruction_set else ffi.NULL
        # Known costs save the time of measuring them, for each of some hundred engines.
        costs = ffi.new("bee_costs *", {"pass": [1e-3] * 11, "draft": [1e-4] * 16})
        params = ffi.new("bee_engine_params *", {"n_threads": threads, "instruction_set": name, "costs": costs})
        drafter = ffi.new("char[]", str(pair.drafter).encode()) if pair.drafter else ffi.NULL
        self.engine = library.checked(lib.bee_engine_open(str(pair.target).encode(), drafter, params, error), error)
        info = ffi.new("bee_engine_info *")
        lib.bee_engine_describe(self.engine, info)
        self.n_vocab = int(info.n_vocab)
        self.longest = int(info.block_size) - 1 if info.has_drafter else 15
        self.n_ctx = min(int(info.n_ctx_train), 256)
        self.session = library.checked(lib.bee_session_open(self.engine, self.n_ctx, False, error), error)

    def close(self) -> None:
        self.library.lib.bee_session_close(self.session)
        self.library.lib.bee_engine_close(self.engine)

    def logits(self, tokens: list[int], rows: int) -> np.ndarray[Any, np.dtype[np.float32]]:
        ffi = self.library.ffi
        error = ffi.new("bee_error *")
        out = np.empty((len(tokens), self.n_vocab), np.float32)
        into = ffi.cast("float *", ffi.from_buffer(out))
        status = self.library.lib.bee_session_evaluate(
            self.session, ffi.new("int32_t[]", tokens), len(tokens), rows, into, error
        )
        self.library.checked(status, error)
        return out

    def generate(self, job: Job) -> tuple[list[int], int]:
        """Tokens, and why they ended."""
        ffi, lib = self.library.ffi, self.library.lib
        error = ffi.new("bee_error *")
        prompt, stops = ffi.new("int32_t[]", job.prompt), ffi.new("int32_t[]", job.stops)
        request = ffi.new("bee_request *", job.fields)
        request.prompt, request.n_prompt = prompt, len(job.prompt)
        request.stop_tokens, request.n_stop_tokens = stops, len(job.stops)
        rules = Rules(self.library, self.n_vocab, job.rule_seed) if job.rule_seed is not None else None
        if rules:
            request.constraint = rules.constraint
        self.library.checked(lib.bee_session_begin(self.session, request, error), error)
        tokens: list[int] = []
        step, sessions = ffi.new("bee_step *"), ffi.new("bee_session *[]", [self.session])
        while step.finish == lib.BEE_FINISH_NONE:
            self.library.checked(lib.bee_engine_step(self.engine, sessions, 1, step, error), error)
            tokens += list(step.tokens[0 : step.n_tokens])
        return tokens, int(step.finish)


class Rules:
    """A constraint that follows from the tokens before a place alone: half of the vocabulary, or one certain token."""

    def __init__(self, library: Library, n_vocab: int, seed: int) -> None:
        self._ffi, self._lib, self._n_vocab = library.ffi, library.lib, n_vocab
        self._committed: list[int] = []
        self._path = [seed & 0xFFFFFFFF]  # a hash behind the committed tokens and behind each draft
        declared = {
            "begin": "int32_t(void *, int32_t *, int32_t)",
            "advance": "int32_t(void *, int32_t, uint32_t *)",
            "commit": "int32_t(void *, const int32_t *, int32_t, int32_t *)",
        }
        self._callbacks = {name: self._ffi.callback(kind, getattr(self, f"_{name}")) for name, kind in declared.items()}
        self.constraint = self._ffi.new("bee_constraint *", self._callbacks)

    @staticmethod
    def _follow(place: int, token: int) -> int:
        return (place * 1103515245 + token * 2654435761 + 12345) & 0xFFFFFFFF

    def _certain(self, place: int) -> int | None:
        return (place >> 8) % self._n_vocab if place % 5 == 0 else None

    def _allowed(self, place: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
        certain, tokens = self._certain(place), np.arange(self._n_vocab, dtype=np.uint64)
        if certain is not None:
            return tokens == certain
        allowed = (tokens * np.uint64(40503) + np.uint64(place)) // np.uint64(7) % np.uint64(2) == 0
        return allowed if allowed.any() else tokens == 0

    def _begin(self, _user: Any, forced: Any, room: int) -> int:
        self._path = [self._path[0]]
        place, n = self._path[0], 0
        while n < 16 and (token := self._certain(place)) is not None:
            if n < room:
                forced[n] = token
            place, n = self._follow(place, token), n + 1
        return n

    def _advance(self, _user: Any, draft: int, mask: Any) -> int:
        if draft >= 0:
            if not self._allowed(self._path[-1])[draft]:
                return int(self._lib.BEE_CONSTRAINT_REFUSED)
            self._path.append(self._follow(self._path[-1], draft))
        bits = np.packbits(self._allowed(self._path[-1]), bitorder="little").tobytes()
        self._ffi.memmove(mask, bits.ljust((self._n_vocab + 31) // 32 * 4, b"\0"), (self._n_vocab + 31) // 32 * 4)
        return int(self._lib.BEE_CONSTRAINT_MASKED)

    def _commit(self, _user: Any, tokens: Any, n: int, _next: Any) -> int:
        for i in range(n):
            self._path[0] = self._follow(self._path[0], tokens[i])
        return n


@dataclass(frozen=True)
class Pair:
    name: str
    target: Path
    drafter: Path | None = None


@dataclass(frozen=True)
class Job:
    prompt: list[int]
    stops: list[int]
    rule_seed: int | None
    fields: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{len(self.prompt)} tokens of prompt, constraint {self.rule_seed}, {self.fields}"


def golden_pairs(folder: Path) -> Iterator[Pair]:
    """The golden models, and the tiny one with its drafter."""
    sys.path.insert(0, str(ROOT / "tests" / "python"))
    import golden_models
    import tiny_model

    for name in (*golden_models.NAMES, *golden_models.PARTIALLY_ROTATED):
        yield Pair(name, golden_models.tiny_model(name).write(folder / f"{name}.gguf"))
    target = tiny_model.model().write(folder / "tiny.gguf")
    yield Pair("tiny with a drafter", target, tiny_model.drafter().write(folder / "tiny.dflash.gguf"))


def default_pair() -> Pair | None:
    """The default model with its drafter, where it was downloaded before."""
    from bee_integrations.errors import BeeError
    from bee_integrations.models import resolve_drafter, resolve_model

    try:
        model = resolve_model(download=False)
    except BeeError as error:
        print(f"the default model is left out: {error}")
        return None
    return Pair("the default model", model, resolve_drafter("auto", model))


def random_job(draw: random.Random, opened: Opened, has_drafter: bool) -> Job:
    lib = opened.library.lib
    modes = [lib.BEE_SPECULATION_OFF, lib.BEE_SPECULATION_AUTO, lib.BEE_SPECULATION_COPY]
    modes += [lib.BEE_SPECULATION_DFLASH] * 2 if has_drafter else []
    mode = draw.choice(modes)
    longest = 15 if mode == lib.BEE_SPECULATION_COPY else opened.longest
    words = draw.choice([opened.n_vocab, 3])  # a prompt that repeats itself has something to copy
    penalties = draw.random() < 0.25
    fields = {
        "max_tokens": draw.randint(1, 32),
        "speculation": mode,
        "draft_length": draw.choice([-1, -1, draw.randint(0, longest)]),
        "sampling": {
            "temperature": draw.choice([0.0, 0.0, 0.7, 1.5, 8.0]),
            "top_k": draw.choice([0, 0, 5]),
            "top_p": draw.choice([1.0, 1.0, 0.9]),
            "min_p": draw.choice([0.0, 0.0, 0.05]),
            "seed": draw.getrandbits(64),
        },
        "penalties": {"last_n": 64 if penalties else 0, "repetition": 1.3, "frequency": 0.2, "presence": 0.1},
    }
    return Job(
        prompt=[draw.randrange(words) for _ in range(draw.randint(1, 40))],
        stops=[draw.randrange(opened.n_vocab)] if draw.random() < 0.3 else [],
        rule_seed=draw.getrandbits(31) if draw.random() < CONSTRAINED else None,
        fields=fields,
    )


def compare_logits(libraries: list[Library], pair: Pair, instruction_set: str, threads: int) -> list[str]:
    engines = [Opened(library, pair, instruction_set, threads) for library in libraries]
    draw = random.Random(pair.name)
    tokens = [draw.randrange(engines[0].n_vocab) for _ in range(N_TOKENS)]
    found = []
    for rows in ROWS:
        old, new = (engine.logits(tokens, rows) for engine in engines)
        different = int(np.sum(old.view(np.uint32) != new.view(np.uint32)))
        if different:
            most = float(np.nanmax(np.abs(old - new)))
            found.append(
                f"{pair.name}, {instruction_set}, passes of {rows}: {different} of {old.size} logits differ, "
                f"by {most:g} at most"
            )
    for engine in engines:
        engine.close()
    return found


def compare_generations(libraries: list[Library], pair: Pair, n: int, threads: int) -> list[str]:
    engines = [Opened(library, pair, None, threads) for library in libraries]
    draw = random.Random(f"{pair.name} {n}")
    found = []
    for _ in range(n):
        job = random_job(draw, engines[0], pair.drafter is not None)
        old, new = (engine.generate(job) for engine in engines)
        if old != new:
            found.append(f"{pair.name}, {job}:\n    {old}\n    {new}")
    for engine in engines:
        engine.close()
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    header = ROOT / "libbee" / "include" / "bee.h"
    parser.add_argument("--old-header", type=Path, default=header, help="bee.h of the old one, if it was another")
    parser.add_argument("--new-header", type=Path, default=header)
    parser.add_argument("--generations", type=int, default=500, help="in all; 500")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tiny", action="store_true", help="leave the default model out")
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    os.environ.setdefault("BEE_LIBRARY", str(options.new.resolve()))
    libraries = [Library(options.old, options.old_header), Library(options.new, options.new_header)]
    sets = [name for name in libraries[0].instruction_sets() if name in libraries[1].instruction_sets()]
    with tempfile.TemporaryDirectory(prefix="bee-compare-") as folder:
        pairs = list(golden_pairs(Path(folder)))
        if not options.tiny and (default := default_pair()):
            pairs.append(default)
        differences: list[str] = []
        for pair in pairs:
            for name in sets:
                differences += compare_logits(libraries, pair, name, options.threads)
        print(f"logits of {len(pairs)} models with {', '.join(sets)} in passes of {', '.join(map(str, ROWS))} rows")
        # Half of them where there is a drafter.
        with_drafter = [pair for pair in pairs if pair.drafter] or pairs
        others = [pair for pair in pairs if not pair.drafter] or pairs
        for group in (with_drafter, others):
            for i, pair in enumerate(group):
                share = options.generations // 2 * (i + 1) // len(group) - options.generations // 2 * i // len(group)
                differences += compare_generations(libraries, pair, share, options.threads)
        print(f"{options.generations // 2 * 2} generations, {len(with_drafter)} of {len(pairs)} models with a drafter")
    print("\n".join(differences) or "no difference")
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main())
