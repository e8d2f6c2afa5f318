"""What the machine allows and what a pass needs: the bound that every figure of `bee bench` is held against."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..engine.engine import Engine
from ..library import check, ffi, lib, new_error

__all__ = ["Limits", "PassNeeds", "limits_of", "measure_limits"]


@dataclass(frozen=True)
class PassNeeds:
    """What a pass reads and computes; see `bee_pass_needs`."""

    weight_bytes: int
    kv_bytes_per_position: int
    multiply_adds: int  # of the weights, for a row
    head_multiply_adds: int  # of the head's weights, for a row that needs logits
    attention_multiply_adds: int  # for a row, by position


@dataclass(frozen=True)
class Limits:
    """The machine's rates with the engine's threads and instruction set, and the needs of target and drafter."""

    read_bytes_per_s: float  # from memory
    reread_bytes_per_s: (
        float  # as many bytes as the target's weights again and again, with what the caches keep of them
    )
    multiply_adds_per_s: float
    target: PassNeeds
    drafter: PassNeeds | None

    def pass_seconds(
        self,
        rows: int,
        context: float,
        *,
        logits: int | None = None,
        from_caches: bool = False,
        more_bytes: float = 0,
    ) -> float:
        """The bound of a pass of the target over `rows` tokens, the last `logits` of them (None: all) with logits,
        after `context` positions: the larger of the time to read and the time to compute.

        from_caches: counts what the caches keep from pass to pass; without it, a pass may be faster than its bound.
        more_bytes: what several rows read beyond what one does, of a mixture of experts.
        """
        needs = self.target
        read = needs.weight_bytes + more_bytes + context * needs.kv_bytes_per_position
        # Within the block, a row also sees the rows before it.
        seen = rows * context + rows * (rows + 1) / 2
        computed = (
            rows * needs.multiply_adds
            + (rows if logits is None else logits) * needs.head_multiply_adds
            + seen * needs.attention_multiply_adds
        )
        rate = max(self.read_bytes_per_s, self.reread_bytes_per_s) if from_caches else self.read_bytes_per_s
        return max(read / rate, computed / self.multiply_adds_per_s)

    def with_rates_of(self, other: Limits) -> Limits:
        """These limits with the better of both rates: what the machine did once, it allows."""
        return Limits(
            max(self.read_bytes_per_s, other.read_bytes_per_s),
            max(self.reread_bytes_per_s, other.reread_bytes_per_s),
            max(self.multiply_adds_per_s, other.multiply_adds_per_s),
            self.target,
            self.drafter,
        )


def measure_limits(engine: Engine) -> Limits:
    """Measures for some tenths of a second, between the passes of requests. Raises OutOfMemoryError."""

    # The engine has no method for it: nobody but the benchmark asks.
    limits: Limits = engine._scheduler.call(lambda handle: limits_of(handle, has_drafter=engine.info["has_drafter"]))
    return limits


def limits_of(handle: Any, *, has_drafter: bool) -> Limits:
    """The same of a `bee_engine *`."""
    out, error = ffi.new("bee_limits *"), new_error()
    check(lib.bee_engine_limits(handle, out, error), error)
    return Limits(
        out.read_bytes_per_second,
        out.reread_bytes_per_second,
        out.multiply_adds_per_second,
        _needs(out.target),
        _needs(out.drafter) if has_drafter else None,
    )


def _needs(struct: Any) -> PassNeeds:
    return PassNeeds(
        int(struct.weight_bytes),
        int(struct.kv_bytes_per_position),
        int(struct.multiply_adds),
        int(struct.head_multiply_adds),
        int(struct.attention_multiply_adds),
    )
