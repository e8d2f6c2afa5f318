"""The families of models that the library runs, as it says itself.

python -m bee_integrations.models.families prints the table of the README.
"""

from __future__ import annotations

from typing import NamedTuple

from ..library import ffi, lib

__all__ = ["Family", "families", "markdown"]


class Family(NamedTuple):
    """One value of `general.architecture`, and the models that have it."""

    architecture: str
    models: str
    is_drafter: bool


def families() -> list[Family]:
    """All of them, in the order of their names."""
    found: list[Family] = []
    while (at := lib.bee_architecture_at(len(found))) != ffi.NULL:
        found.append(Family(ffi.string(at.name).decode(), ffi.string(at.runs).decode(), bool(at.is_drafter)))
    return sorted(found)


def markdown() -> str:
    """A table: architecture, models."""
    rows = [f"| `{family.architecture}` | {family.models} |" for family in families()]
    return "\n".join(["| architecture | models |", "|---|---|", *rows])


if __name__ == "__main__":
    print(markdown())
