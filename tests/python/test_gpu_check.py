"""tests/gpu_check.py goes through its steps as it should: with programs that only say what they were asked."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bee_integrations.library import library_path

GPU_CHECK = Path(__file__).resolve().parent.parent / "gpu_check.py"
sys.path.insert(0, str(GPU_CHECK.parent))
import gpu_check  # noqa: E402

KERNELS = ["test_cuda_rows", "test_cuda_products", "test_cuda_recurrence", "test_cuda_choose"]


class Machine:
    """A folder as CMake builds it for the emulation, whose programs write down that they ran, and a PATH."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.log = folder, folder / "log"
        self.report = folder / "report.md"
        (folder / "tests").mkdir()
        (folder / "bin").mkdir()
        (folder / "beside").mkdir()
        (folder / "libbee.so").symlink_to(library_path())
        (folder / "libbee_cuda_emulated.so").write_bytes(b"no library")
        for name in (*gpu_check.KERNEL_TESTS, *gpu_check.ENGINE_TESTS):
            self.program(f"tests/{name}", f"echo {name} overlap=${{BEE_CUDA_OVERLAP:-1}}")
        # Run by every Python that finds it on its PYTHONPATH, which it writes down.
        said = f"import os\nopen({str(folder / 'seen')!r}, 'a').write(os.environ['PYTHONPATH'] + '\\n')\n"
        (folder / "beside" / "sitecustomize.py").write_text(said)

    def program(self, name: str, text: str) -> None:
        path = self.folder / name
        path.write_text(f"#!/bin/sh\n{{ {text}; }} >> {self.log}\n" if "exit" not in text else f"#!/bin/sh\n{text}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(GPU_CHECK), "--emulated", str(self.folder), "--report", str(self.report)]
        env = {**os.environ, "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}"}
        env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(self.folder / "beside"), env.get("PYTHONPATH")]))
        return subprocess.run([*command, *arguments], capture_output=True, text=True, env=env, timeout=120, check=False)

    def ran(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_the_order_of_the_steps(machine: Machine) -> None:
    done = machine.run("--only", "test_")
    assert done.returncode == 0, done.stdout
    engines = list(gpu_check.ENGINE_TESTS)
    expected = [f"{name} overlap=1" for name in KERNELS]
    expected += [f"{name} overlap=0" for name in engines] + [f"{name} overlap=1" for name in engines]
    assert machine.ran() == expected
    rows = re.findall(r"^\| (test_\w+)(, no overlap)? \| passed", machine.report.read_text(), re.MULTILINE)
    assert [row[0] for row in rows] == [*KERNELS, *engines, *engines]


def test_the_first_failure_is_the_last_test(machine: Machine) -> None:
    machine.program("bin/compute-sanitizer", 'echo "$2 ${5##*/} overlap=${BEE_CUDA_OVERLAP:-1}"')
    machine.program("tests/test_inspect", f"echo test_inspect >> {machine.log}; exit 1")
    done = machine.run("--only", "test_")
    assert done.returncode == 1
    assert machine.ran() == [
        *(f"{name} overlap=1" for name in KERNELS),
        "test_open overlap=0",
        "test_inspect",
        "memcheck test_inspect overlap=0",
        "racecheck test_inspect overlap=0",
    ]
    report = machine.report.read_text()
    assert "| test_inspect, no overlap | failed: exit code 1 |" in report
    assert "Tests after test_inspect, no overlap were not run" in report


def test_the_report_is_there_before_the_next_step(machine: Machine) -> None:
    machine.program("tests/test_cuda_choose", f"grep -c passed {machine.report}")
    machine.run("--only", "test_cuda")
    assert machine.ran()[-1] == str(len(KERNELS) - 1)


def test_a_time_limit_is_kept(machine: Machine) -> None:
    machine.program("tests/test_cuda_products", "exec sleep 60; exit 0")
    start = time.monotonic()
    done = machine.run("--only", "test_cuda", "--seconds", "6")
    assert time.monotonic() - start < 30
    assert "not done in" in machine.report.read_text()
    assert done.returncode == 0  # to run out of time is no failure of the card


def test_measurements_keep_what_lies_beside(machine: Machine) -> None:
    machine.run("--only", "bench")
    # The measuring processes: the checkout comes first, and what lay beside is still there.
    assert any(
        line.startswith(f"{gpu_check.ROOT}{os.pathsep}") for line in (machine.folder / "seen").read_text().split()
    )
    report = machine.report.read_text()
    assert "Nothing was measured" not in report
    assert "bench --synthetic tiny" in report


def test_the_build_names_the_card(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As CMake 3.18 understands it: "native" came with 3.24."""
    commands: list[list[str]] = []
    monkeypatch.setattr(gpu_check, "must_run", lambda command, limit: commands.append(command))
    monkeypatch.setattr(gpu_check.shutil, "which", lambda name: f"/usr/bin/{name}")
    card = gpu_check.Card("a card", (8, 9), 1, "13.0")
    gpu_check.build(tmp_path, "/usr/bin/nvcc", card.architecture, 60)
    assert "-DBEE_CUDA_ARCHITECTURES=89-real" in commands[0]
