"""tests/compare_libraries.py finds what differs, and nothing where nothing does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bee_integrations.library import library_path

SCRIPT = Path(__file__).resolve().parent.parent / "compare_libraries.py"


@pytest.mark.parametrize("other", [False, True])
def test_compare_libraries(other: bool, tmp_path: Path) -> None:
    library = library_path()
    changed = tmp_path / "libbee.so"
    code = library.read_bytes()
    # The first odd constant of the generator that all noise comes from (src/sampling/sample.c), one higher.
    constant = (0xBF58476D1CE4E5B9).to_bytes(8, "little")
    assert constant in code
    changed.write_bytes(code.replace(constant, (0xBF58476D1CE4E5BB).to_bytes(8, "little")) if other else code)
    command = [sys.executable, str(SCRIPT), str(library), str(changed), "--tiny", "--generations", "20"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == int(other), done.stdout + done.stderr
    assert ("no difference" in done.stdout) != other
    if other:  # greedy tokens and logits are what they were
        assert "logits differ" not in done.stdout
        assert "'temperature': 0.0" not in done.stdout
