"""How much memory a model may take here."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

__all__ = ["available_memory", "memory_for_models", "size_text"]


def available_memory() -> int | None:
    """Bytes that could be had without swapping; None where the system does not say."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None


def memory_for_models() -> tuple[int, str]:
    """Bytes that are free for a model, and where: on the card if there is one with a library for it, else here."""
    from ..engine.device_plan import describe_card
    from ..errors import BeeError

    with contextlib.suppress(BeeError):
        card = describe_card()
        return card.free_bytes, f"on {card.name}"
    free = available_memory()
    if free is None:  # what the machine has is the next best guess
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return free, "here"


def size_text(size: int) -> str:
    """Bytes for people: "1.25 GB", "135.0 MB" (powers of 1000)."""
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
