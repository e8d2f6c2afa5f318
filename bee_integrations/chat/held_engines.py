"""The engines that an object of a framework's class keeps open."""

from __future__ import annotations

import asyncio
from typing import Any

from ..engine.engine import Engine
from .parameters import BeeParameters

__all__ = ["HeldEngines"]


class HeldEngines:
    """Keeps the engines that an LLM object used last from being closed: its own, and one that a call named.

    Copies and pickles of the object start with an empty one and share the engines of their process.
    """

    _KEPT = 2

    def __init__(self) -> None:
        self._engines: dict[tuple[Any, ...], Engine] = {}  # the one used last at the end

    def open(self, parameters: BeeParameters) -> Engine:
        """The engine for these parameters, shared with all objects of this process that ask for the same."""
        key = _engine_key(parameters)
        engine = self._engines.get(key)
        if engine is None or engine.closed:
            engine = Engine.shared(
                parameters.model,
                drafter=parameters.drafter,
                n_ctx=parameters.n_ctx,
                threads=parameters.threads,
                device=parameters.device,
                kv_cache=parameters.kv_cache,
                packed_cache=parameters.packed_cache,
            )
        # Replaced as a whole, so that threads need no lock: a race only costs another look-up.
        others = [(other, held) for other, held in self._engines.items() if other != key]
        self._engines = dict([*others, (key, engine)][-self._KEPT :])
        return engine

    async def aopen(self, parameters: BeeParameters) -> Engine:
        """As `open`, without blocking the event loop while a model loads."""
        engine = self._engines.get(_engine_key(parameters))
        if engine is not None and not engine.closed:
            return self.open(parameters)
        return await asyncio.to_thread(self.open, parameters)

    def __copy__(self) -> HeldEngines:
        return HeldEngines()

    def __deepcopy__(self, memo: Any) -> HeldEngines:
        return HeldEngines()

    def __reduce__(self) -> tuple[type[HeldEngines], tuple[()]]:
        return HeldEngines, ()

    def __eq__(self, other: object) -> bool:
        # What is loaded is no part of an object's identity: two LLM objects with equal parameters are equal.
        return isinstance(other, HeldEngines)

    __hash__ = None  # type: ignore[assignment]


def _engine_key(parameters: BeeParameters) -> tuple[Any, ...]:
    p = parameters
    return p.model, p.drafter, p.n_ctx, p.threads, p.device, p.kv_cache, p.packed_cache
