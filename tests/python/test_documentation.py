"""The maps in docs/: every file has its row, every row its file, and the walls that they promise hold."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bee_integrations.models import families

ROOT = Path(__file__).resolve().parents[2]
LIBBEE = ROOT / "libbee"
SUFFIXES = {".c", ".h", ".cu", ".cpp"}
# Rooms that know no backend.
BEHIND_THE_WALL = ("src/model", "src/engine", "src/draft", "src/sampling", "src/forward", "src/cache")


def rows(page: Path) -> list[str]:
    """The names in backticks in the first column of a page's tables."""
    names = []
    for line in page.read_text(encoding="utf-8").splitlines():
        if line.startswith("| `"):
            names += re.findall(r"`([^`]+)`", line.split("|")[1])
    return names


def c_files() -> dict[str, Path]:
    """Path from libbee/ -> file."""
    return {
        str(path.relative_to(LIBBEE)): path
        for path in sorted(LIBBEE.rglob("*"))
        if path.suffix in SUFFIXES and path.is_file()
    }


def module(name: str) -> str:
    """A source file and the header of its name are one."""
    return name.rsplit(".", 1)[0]


def test_every_c_file_has_its_row() -> None:
    named = [name for name in rows(ROOT / "docs" / "library.md") if "/" in name]
    files = c_files()
    assert [name for name in named if name not in files] == [], "rows of docs/library.md without a file"
    documented = [module(name) for name in named]
    # Each family is a file, which the README's table of families names (below).
    families = {name for name in files if name.startswith("src/architectures/")} - set(named)
    files = {name: path for name, path in files.items() if name not in families}
    assert sorted(set(documented)) == sorted(documented), "docs/library.md names a file twice"
    assert sorted(set(map(module, files)) - set(documented)) == [], "files without a row in docs/library.md"


def test_every_python_module_has_its_row() -> None:
    package = ROOT / "bee_integrations"
    named = [name for name in rows(ROOT / "docs" / "development.md") if name.endswith((".py", "families/"))]
    assert sorted(set(named)) == sorted(named), "docs/development.md names a module twice"
    folders = {name for name in named if name.endswith("/")}  # of many modules of one kind
    modules = {str(path.relative_to(package)) for path in package.rglob("*.py") if path.name != "__init__.py"}
    modules = {name for name in modules if not name.startswith(tuple(folders))}
    assert sorted(modules - set(named)) == [], "modules without a row in docs/development.md"
    assert sorted(set(named) - folders - modules) == [], "rows of docs/development.md without a module"


def includes() -> dict[str, set[str]]:
    """File -> files of libbee that it includes."""
    files = c_files()
    found = {}
    for name, path in files.items():
        here = path.parent.relative_to(LIBBEE)
        found[name] = set()
        for target in re.findall(r'^#include "([^"]+)"', path.read_text(encoding="utf-8"), re.MULTILINE):
            # As the compiler looks: beside the file, then in the include directories of libbee/CMakeLists.txt.
            places = [str(folder / target) for folder in (here, Path("include"), Path("src"), Path())]
            resolved = next((place for place in places if place in files), None)
            if target.endswith(".inc"):  # made by the build
                continue
            assert resolved is not None, f"{name} includes {target}, which is not there"
            found[name].add(resolved)
    return found


def test_nothing_reaches_through_the_wall() -> None:
    reached = {
        (name, target)
        for name, targets in includes().items()
        if name.startswith(BEHIND_THE_WALL)
        for target in targets
        if target.startswith(("cpu/", "cuda/"))
    }
    assert reached == set()


def test_no_circle_of_files() -> None:
    graph: dict[str, set[str]] = {}
    for name, targets in includes().items():
        if not name.startswith("cuda/emulate"):  # it is what the others are compiled against, and made of them
            graph.setdefault(module(name), set()).update(module(target) for target in targets)
    state: dict[str, str] = {}

    def visit(name: str, path: list[str]) -> None:
        if state.get(name) == "under way":
            pytest.fail(f"a circle of files: {' -> '.join([*path[path.index(name) :], name])}")
        if name in state:
            return
        state[name] = "under way"
        for target in sorted(graph.get(name, set()) - {name}):
            visit(target, [*path, name])
        state[name] = "done"

    for name in sorted(graph):
        visit(name, [])


def test_the_readme_lists_the_families() -> None:
    assert families.markdown() in (ROOT / "README.md").read_text(encoding="utf-8"), (
        "python -m bee_integrations.models.families prints the table for the README"
    )
    sources = {path.stem for path in (LIBBEE / "src" / "architectures").glob("*.c")} - {"registry"}
    assert {family.architecture.replace("-", "_") for family in families.families()} == sources
