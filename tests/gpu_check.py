#!/usr/bin/env python3
"""`make gpu-check`: builds for the card of this machine, tests on it, measures, and writes docs/gpu/report-<card>.md.

Tests and sanitizers need a C and C++ compiler and nvcc, but of Python the standard library alone; measurements need the
package's dependencies, where PYTHONPATH or the interpreter has them. The kernels' tests come first, from the simple to
the composed, then whole engines without and with overlapping kernels, then full grids. The first test that fails is the
last one: it runs once more under compute-sanitizer. What can be measured is measured all the same. The report is
written after every step; what does not fit into the time is left out, and it says so.

--emulated FOLDER goes through the same steps on the emulation that CMake built there, with little of each.

Exit codes: 0; 1 where something failed; 2 where there is no card, or nothing to build with.
"""

from __future__ import annotations

import argparse
import ctypes
import datetime
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# From what others are made of to what is made of them.
KERNEL_TESTS = ("test_cuda_rows", "test_cuda_products", "test_cuda_recurrence", "test_cuda_choose")
ENGINE_TESTS = (
    "test_open", "test_inspect", "test_sources", "test_cycle", "test_session", "test_prefix", "test_device_cycle",
    "test_constraint", "test_logit_edits",
)  # fmt: skip
# Engines that these open run on a card where there is one.
PYTHON_TESTS = (
    "test_architectures.py", "test_families.py", "test_identity.py", "test_distribution.py", "test_logits.py",
    "test_engine.py",
)  # fmt: skip
WITHOUT_DEFAULT_MODEL = "tiny or passes or independent"
SANITIZERS = ("memcheck", "racecheck", "synccheck")
SHAPES = ("qwen3-8b", "llama-3.1-8b", "dense-27b", "dense-31b")
# Kernels overlap on compute capability 9.0 and up. Some tests and shapes run without it, too: what it brings, and
# whether it is what a failure comes from.
NO_OVERLAP = {"BEE_CUDA_OVERLAP": "0"}
# All kernels ask for the same split of shared memory and cache: measured beside the usual.
CARVEOUT = {"BEE_CUDA_CARVEOUT": "1"}
SHAPES_WITHOUT_OVERLAP = ("qwen3-8b", "dense-27b")
GRID_SHAPES = ("qwen3-8b", "dense-27b")
NOT_ENOUGH_TIME = 124
# As libbee/CMakeLists.txt has them.
INSTRUCTION_SETS = {
    "x86_64": {
        "avx2": "-mavx2 -mfma -mf16c",
        "avxvnni": "-mavx2 -mfma -mf16c -mavxvnni",
        "avx512": "-mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni -mfma -mf16c",
    },
    "aarch64": {"neon": "-march=armv8-a", "neon_dotprod": "-march=armv8.2-a+dotprod"},
}


class MissingError(Exception):
    """Something that the check cannot do without is not there."""


class BuildError(Exception):
    """A command of the build failed; the text is its output."""


# ---- the card ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Card:
    name: str
    capability: tuple[int, int]
    memory_bytes: int
    driver: str  # CUDA's version that it knows

    emulated: bool = False

    @property
    def architecture(self) -> str:
        """As nvcc and CMAKE_CUDA_ARCHITECTURES of any version have it, without "native"."""
        return f"{self.capability[0]}{self.capability[1]}"

    @property
    def overlaps(self) -> bool:
        return self.capability >= (9, 0)

    @property
    def slug(self) -> str:
        return re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")


EMULATED = Card("emulated device", (9, 0), 4 << 30, "13.0", emulated=True)


def find_card() -> Card:
    """The first card, asked of the driver itself."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise MissingError(f"no NVIDIA driver: libcuda.so.1 cannot be loaded ({error})") from error
    code = cuda.cuInit(0)
    if code:
        raise MissingError(f"no CUDA card: the driver's cuInit says {code}")
    count, device, version = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    cuda.cuDeviceGetCount(ctypes.byref(count))
    if not count.value:
        raise MissingError("no CUDA card is visible to the driver")
    cuda.cuDeviceGet(ctypes.byref(device), 0)
    cuda.cuDriverGetVersion(ctypes.byref(version))
    name, memory = ctypes.create_string_buffer(128), ctypes.c_size_t()
    cuda.cuDeviceGetName(name, 128, device)
    cuda.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
    capability = []
    for attribute in (75, 76):  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR
        value = ctypes.c_int()
        cuda.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
        capability.append(value.value)
    driver = f"{version.value // 1000}.{version.value % 1000 // 10}"
    return Card(name.value.decode(errors="replace"), (capability[0], capability[1]), memory.value, driver)


def find_nvcc() -> str:
    nvcc = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
    if nvcc is None:
        raise MissingError("no nvcc: it is neither on the PATH nor in /usr/local/cuda/bin")
    return nvcc


# ---- running -----------------------------------------------------------------------------------------------------


@dataclass
class Result:
    name: str
    outcome: str  # "passed", "failed", or why it was not run to its end
    seconds: float = 0
    output: str = ""


@dataclass
class Check:
    """The time that is left, and what was found."""

    end: float
    write: Callable[[Check], None]  # the report, as far as it is known
    only: tuple[str, ...] = ()  # beginnings of the steps to take; empty: all
    results: list[Result] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    parts: list[str] = field(default_factory=list)  # of the report: measurements, in Markdown

    def add(self, result: Result) -> Result:
        self.results.append(result)
        self.write(self)
        return result

    def remark(self, text: str) -> None:
        self.remarks.append(text)
        self.write(self)

    def wants(self, name: str) -> bool:
        return not self.only or name.startswith(self.only)

    @property
    def left(self) -> float:
        return self.end - time.monotonic()

    def run(self, name: str, command: Sequence[str], limit: float, env: dict[str, str], *, may_stop: bool) -> Result:
        """may_stop: to run out of time is no failure."""
        say(f"{name} ...")
        code, output, seconds = execute(command, min(limit, self.left), env)
        if code == NOT_ENOUGH_TIME:
            outcome = f"not done in {seconds:.0f} s" if may_stop or self.left < 1 else f"failed: {seconds:.0f} s"
        else:
            outcome = "passed" if code == 0 else f"failed: exit code {code}"
        result = Result(name, outcome, seconds, output)
        say(f"{name}: {outcome}, {seconds:.1f} s")
        if outcome.startswith("failed"):
            print(output[-4000:], flush=True)
        return result


def say(text: str) -> None:
    print(text, flush=True)


def execute(command: Sequence[str], limit: float, env: dict[str, str] | None = None) -> tuple[int, str, float]:
    """Exit code (NOT_ENOUGH_TIME where it was stopped), output, seconds."""
    start = time.monotonic()
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            cwd=ROOT,
            env={**os.environ, **(env or {})},
            start_new_session=True,
        )
        try:
            code = process.wait(timeout=max(limit, 0.1))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)  # compute-sanitizer runs the program as a child
            process.wait()
            code = NOT_ENOUGH_TIME
        output.seek(0)
        text = output.read().decode(errors="replace")
    return code, text, time.monotonic() - start


def first_line(command: Sequence[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    lines = done.stdout.strip().splitlines()
    return lines[0].strip() if done.returncode == 0 and lines else ""


# ---- building ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Built:
    library: Path
    cuda_library: Path
    tests: Path  # the folder of the test programs


def build(folder: Path, nvcc: str, architecture: str, limit: float) -> Built:
    """With CMake where there is one, else with the compilers themselves. Raises BuildError."""
    venv = Path(sys.executable).parent / "cmake"
    cmake = str(venv) if venv.exists() else shutil.which("cmake")
    if cmake is None:
        return build_by_hand(folder, nvcc, architecture, limit)
    configure = [cmake, "-S", "libbee", "-B", str(folder), "-DBEE_TESTS=ON", "-DBEE_TEST_ON_CARD=ON", "-DBEE_CUDA=ON"]
    configure += [f"-DBEE_CUDA_ARCHITECTURES={architecture}-real", f"-DCMAKE_CUDA_COMPILER={nvcc}"]
    compile_all = [cmake, "--build", str(folder), "--parallel", str(os.cpu_count() or 2)]
    end = time.monotonic() + limit
    for command in (configure, compile_all):
        must_run(command, end - time.monotonic())
    return Built(folder / "libbee.so", folder / "libbee_cuda.so", folder / "tests")


def must_run(command: Sequence[str], limit: float) -> None:
    code, output, _ = execute(command, limit)
    if code:
        reason = "out of time" if code == NOT_ENOUGH_TIME else f"exit code {code}"
        raise BuildError(f"{' '.join(command)}\n{output[-6000:]}\n{reason}")


def build_by_hand(folder: Path, nvcc: str, architecture: str, limit: float) -> Built:
    cc, cxx = (shutil.which(name) for name in ("gcc", "g++"))
    if cc is None or cxx is None:
        raise MissingError("neither cmake nor gcc and g++ are on the PATH")
    end = time.monotonic() + limit
    objects = folder / "objects"
    objects.mkdir(parents=True, exist_ok=True)
    libbee, native = ROOT / "libbee", ROOT / "tests" / "native"
    sets = [isa for isa in instruction_sets() if compiles(cc, instruction_sets()[isa].split())]
    version = re.search(r'__version__ = "([^"]+)"', (ROOT / "bee_integrations" / "__init__.py").read_text())
    defines = [f'-DBEE_VERSION="{version.group(1) if version else "0.0.0"}"']
    common = [*defines, *(f"-DBEE_HAVE_{isa.upper()}" for isa in sets)]
    common += [f"-I{place}" for place in (libbee / "include", libbee / "src", libbee, objects)]
    names = [source.stem for source in (libbee / "src" / "architectures").glob("*.c") if source.stem != "registry"]
    list_of_all = "".join(f"ARCHITECTURE({name})\n" for name in sorted(names))
    (objects / "architectures.inc").write_text(list_of_all, encoding="utf-8")
    c = [cc, "-std=gnu11", "-O3", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", *common, f"-I{libbee / 'cpu'}"]
    cuda = [nvcc, f"-arch=sm_{architecture}", "-std=c++17", "-O3", "-fmad=false", "-Xcompiler=-fPIC"]
    cuda += ["-Xcompiler=-fvisibility=hidden", "-Xcompiler=-ffp-contract=off", *common]

    # Without cpu/: its limits.h would be taken for the system's.
    of_tests = [*cuda, "-UNDEBUG", f"-I{libbee / 'cuda'}"]
    jobs: list[list[str]] = []

    def compiled(command: Sequence[str], source: Path, name: str = "") -> str:
        target = str(objects / f"{name or source.name}.o")
        jobs.append([*command, "-c", str(source), "-o", target])
        return target

    # The slow ones first.
    on_card = [compiled(cuda, source) for source in sorted((libbee / "cuda").glob("*.cu"))]
    programs = {s.stem: compiled([*of_tests, "-x", "cu"], s) for s in sorted((native / "cuda").glob("test_*.cpp"))}
    kernels = {"portable": "", **{isa: instruction_sets()[isa] for isa in sets}}
    on_host = [
        compiled([*c, f"-DBEE_ISA_{isa.upper()}", *flags.split()], libbee / "cpu" / "kernels.c", f"kernels-{isa}")
        for isa, flags in kernels.items()
    ]
    rooms = ("src", "types", "cpu", "cuda")
    sources = sorted(source for room in rooms for source in (libbee / room).rglob("*.c"))
    named = {source: "-".join(source.relative_to(libbee).parts) for source in sources}
    once = {source: name for source, name in named.items() if source.name not in ("kernels.c", "planar_grids.c")}
    on_host += [compiled(c, source, name) for source, name in once.items()]
    support = [compiled(c, native / f"{name}.c") for name in ("ggml_blocks", "tiny_model")]
    engine_tests = {name: compiled([*c, "-UNDEBUG"], native / f"{name}.c") for name in ENGINE_TESTS}
    run_all(jobs, end)

    built = Built(folder / "libbee.so", folder / "libbee_cuda.so", folder)
    error = str(objects / "src-error.c.o")
    libraries = ["-lpthread", "-lm", "-ldl"]
    links = [
        [cc, "-shared", "-o", str(built.library), *on_host, *libraries],
        [*cuda[:2], "-shared", "-cudart=static", "-o", str(built.cuda_library), *on_card, error],
    ]
    for name, program in programs.items():
        links.append([*cuda[:2], "-cudart=static", "-o", str(folder / name), program, *on_card, *support, *on_host])
        links[-1] += libraries
    for name, program in engine_tests.items():
        links.append([cc, "-o", str(folder / name), program, *support, *on_host, *libraries])
    run_all(links, end)
    return built


def instruction_sets() -> dict[str, str]:
    return INSTRUCTION_SETS.get(platform.machine(), {})


def compiles(cc: str, flags: Sequence[str]) -> bool:
    command = [cc, *flags, "-x", "c", "-c", "-o", os.devnull, os.devnull]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def run_all(jobs: Iterable[Sequence[str]], end: float) -> None:
    with ThreadPoolExecutor(os.cpu_count() or 2) as pool:
        for _ in pool.map(lambda job: must_run(job, end - time.monotonic()), jobs):
            pass


# ---- tests and measurements --------------------------------------------------------------------------------------


def run_tests(check: Check, built: Built, card: Card, nvcc: str) -> bool:
    """Whether the card computes what it should. The first failure ends it, with a sanitizer on that very test."""
    env = test_env(built, card)
    runs = [(name, "", {}) for name in KERNEL_TESTS]
    runs += [(name, ", no overlap" if card.overlaps else "", NO_OVERLAP) for name in ENGINE_TESTS]
    runs += [(name, "", {}) for name in ENGINE_TESTS if card.overlaps]
    for name, note, more in runs:
        if not check.wants(name):
            continue
        command = [str(built.tests / name)]
        result = check.add(check.run(f"{name}{note}", command, 180, env | more, may_stop=False))
        if result.outcome.startswith("failed"):
            sanitize(check, f"{name}{note}", command, env | more, nvcc)
            check.remark(f"Tests after {name}{note} were not run: it failed.")
            return False
    return True


def test_env(built: Built, card: Card) -> dict[str, str]:
    env = {"BEE_TEST_DEVICE": "cuda", "BEE_CUDA_LIBRARY": str(built.cuda_library)}
    return env | ({"BEE_TEST_DIVISOR": "1000"} if card.emulated else {})


def find_sanitizer(nvcc: str) -> str | None:
    return shutil.which("compute-sanitizer") or shutil.which(str(Path(nvcc).parent / "compute-sanitizer"))


def sanitize(check: Check, name: str, command: Sequence[str], env: dict[str, str], nvcc: str) -> None:
    """What the sanitizer says of a test that failed: of its memory, or else of its races."""
    sanitizer = find_sanitizer(nvcc)
    if sanitizer is None:
        check.remark(f"compute-sanitizer is not installed: it did not look at {name}.")
        return
    for tool in ("memcheck", "racecheck"):
        watched = [sanitizer, "--tool", tool, "--error-exitcode", "9", *command]
        result = check.run(f"{tool} {name}", watched, min(180.0, check.left / 3), env, may_stop=True)
        check.add(result)
        if result.outcome == "failed: exit code 9":
            return


def run_grids(check: Check, built: Built, card: Card) -> bool:
    """The same tokens from models of real shapes, whatever overlaps and whatever is drafted."""
    env = python_env(built)
    for shape in ("tiny",) if card.emulated else GRID_SHAPES:
        name = f"full grids {shape}"
        if not check.wants(name):
            continue
        command = [sys.executable, "tests/full_grids.py", shape, *(["--few"] if card.emulated else [])]
        result = check.run(name, command, 120, env, may_stop=True)
        lines = result.output.strip().splitlines() or ["no output"]
        if result.outcome == "failed: exit code 3":
            check.remark(f"`{name}` was not run: {lines[-1]}")
            continue
        check.add(result)
        if result.outcome.startswith("failed"):
            return False
    return True


def run_python_tests(check: Check, built: Built) -> None:
    env = python_env(built)
    if not check.wants("python tests"):
        return
    wanted = [sys.executable, "-c", "import pytest, hypothesis, bee_integrations.engine"]
    code, output, _ = execute(wanted, min(60, check.left), env)
    if code:
        reason = (output.strip().splitlines() or ["no output"])[-1]
        check.remark(f"The Python tests were not run: {sys.executable} lacks what they need ({reason}).")
        return
    without_model = default_model(env) is None
    if without_model:
        check.remark("Python tests on the default model were not run: it is not here.")
    for name in PYTHON_TESTS:
        command = [sys.executable, "-m", "pytest", "-q", "-x", f"tests/python/{name}"]
        if name in ("test_architectures.py", "test_families.py"):  # they go through the CPU's instruction sets as well
            command += ["-k", "cuda"]
        elif without_model:
            command += ["-k", WITHOUT_DEFAULT_MODEL]
        result = check.run(name, command, 120, env, may_stop=True)
        if result.outcome == "failed: exit code 5":  # pytest: no test was chosen
            continue
        check.add(result)


def run_sanitizers(check: Check, built: Built, nvcc: str) -> None:
    """At most half of the time that is left: they are slow, and measurements come after them."""
    sanitizer = find_sanitizer(nvcc)
    if not check.wants("sanitizers"):
        return
    if sanitizer is None:
        check.remark("compute-sanitizer is not installed: it was not run.")
        return
    end = time.monotonic() + check.left / 2
    runs = [(tool, name) for tool in SANITIZERS for name in KERNEL_TESTS]
    for index, (tool, name) in enumerate(runs):
        limit = min(120.0, 2 * (end - time.monotonic()) / (len(runs) - index), end - time.monotonic())
        if limit < 5:
            check.add(Result(f"{tool} {name}", "left out: no time"))
            continue
        command = [sanitizer, "--tool", tool, "--error-exitcode", "9", str(built.tests / name)]
        check.add(check.run(f"{tool} {name}", command, limit, {}, may_stop=True))


def bee(*arguments: str) -> list[str]:
    return [sys.executable, "-c", "from bee_integrations.cli import main; main()", *arguments]


def python_env(built: Built) -> dict[str, str]:
    # Before what is there: packages that lie beside, for a machine without a network, are needed, too.
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {"BEE_LIBRARY": str(built.library), "BEE_CUDA_LIBRARY": str(built.cuda_library), "PYTHONPATH": path}


def measure(check: Check, built: Built, card: Card, folder: Path) -> None:
    env = python_env(built)
    if not check.wants("bench"):
        return
    code, output, _ = execute(bee("bench", "--help"), min(60, check.left), env)
    if code:
        reason = (output.strip().splitlines() or ["no output"])[-1]
        check.remark(f"Nothing was measured: the Python package cannot be run by {sys.executable} ({reason}).")
        return
    rows = []
    runs = [(shape, "", {}) for shape in (("tiny",) if card.emulated else SHAPES)]
    if card.overlaps and not card.emulated:
        runs += [(shape, ", no overlap", NO_OVERLAP) for shape in SHAPES_WITHOUT_OVERLAP]
    runs += [(shape, ", one carveout", CARVEOUT) for shape in SHAPES_WITHOUT_OVERLAP if not card.emulated]
    limit = 30 if card.emulated else 150
    for shape, note, more in runs:
        file = folder / f"{shape}{note}.json"
        command = bee("bench", "--synthetic", shape, "--device", "cuda", "--json", str(file))
        if measured(check, f"bench --synthetic {shape}{note}", command, limit, env | more):
            rows.append((file, note))
    if rows:
        check.parts.append(synthetic_table(rows, env))
        check.write(check)
    if card.emulated:
        return
    model = os.environ.get("BEE_CHECK_MODEL") or default_model(env)
    if model is None:
        check.remark("`bee bench` was not run: the default model is not here, and BEE_CHECK_MODEL names none.")
        return
    file = folder / "bench.md"
    command = bee("bench", "--device", "cuda", "--model", model, "--max-tokens", "100", "--markdown", str(file))
    if measured(check, "bench --device cuda", command, 300, env):
        check.parts.append("## bee bench\n\n" + file.read_text(encoding="utf-8"))
        check.write(check)


def measured(check: Check, name: str, command: Sequence[str], limit: float, env: dict[str, str]) -> bool:
    if check.left < 20:
        check.remark(f"`{name}` was left out: no time.")
        return False
    result = check.run(name, command, limit, env, may_stop=True)
    if result.outcome == "passed":
        return True
    last = (result.output.strip().splitlines() or [""])[-1]
    if result.outcome.startswith("failed") and "memory" in last:
        result.outcome = "left out: it does not fit"
    check.remark(f"`{name}`: {result.outcome}. {last}".strip())
    if result.outcome.startswith("failed"):
        check.add(result)
    return False


def default_model(env: dict[str, str]) -> str | None:
    """The path of the default model, where it was downloaded before: nothing is fetched here."""
    code = "from bee_integrations.models import resolve_model; print(resolve_model(download=False))"
    status, output, _ = execute([sys.executable, "-c", code], 60, env)
    path = (output.strip().splitlines() or [""])[-1]
    return path if status == 0 and Path(path).is_file() else None


def synthetic_table(files: Sequence[tuple[Path, str]], env: dict[str, str]) -> str:
    """The rows of all files in one table, each with its note; by a process that has the library."""
    reports = [(json.loads(file.read_text(encoding="utf-8")), note) for file, note in files]
    rows = [row | {"shape": row["shape"] + note} for report, note in reports for row in report["synthetic"]]
    together = reports[0][0] | {"synthetic": rows}
    files[0][0].write_text(json.dumps(together), encoding="utf-8")
    code = (
        "import json, sys; from bee_integrations.bench.synthetic import synthetic_markdown; "
        "print(synthetic_markdown(json.load(open(sys.argv[1], encoding='utf-8'))))"
    )
    status, output, _ = execute([sys.executable, "-c", code, str(files[0][0])], 60, env)
    return f"## Synthetic models\n\n{output if status == 0 else json.dumps(together['synthetic'])}"


# ---- the report --------------------------------------------------------------------------------------------------


def write_report(check: Check, card: Card, nvcc: str, path: Path) -> None:
    query = "driver_version,clocks.sm,clocks.max.sm,clocks.mem,clocks.max.mem,power.limit,temperature.gpu"
    asked = first_line(["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"])
    found = dict(zip(query.split(","), asked.split(", "), strict=False)) if asked else {}
    commit = first_line(["git", "rev-parse", "HEAD"])
    changed = " with changes" if first_line(["git", "status", "--porcelain"]) else ""
    facts = {
        "card": f"{card.name}, compute capability {card.capability[0]}.{card.capability[1]}, "
        f"{card.memory_bytes / 2**30:.0f} GiB",
        "driver": f"{found.pop('driver_version', 'unknown')}, CUDA {card.driver}",
        **{name: value for name, value in found.items() if not value.startswith("[")},
        "compiler": nvcc_version(nvcc) if nvcc else "none",
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": f"{commit}{changed}" if commit else "unknown",
    }
    parts = [
        f"# {card.name}\n\nWritten by `make gpu-check`.",
        table(("", ""), facts.items()),
        "## Tests",
        table(("test", "outcome", "seconds"), ((r.name, r.outcome, f"{r.seconds:.1f}") for r in check.results)),
        *check.parts,
    ]
    for result in check.results:
        if result.outcome.startswith("failed"):
            parts.append(f"The end of what {result.name} said:\n\n```\n{result.output[-3000:].strip()}\n```")
    if check.remarks:
        parts.append("## Not done\n\n" + "\n".join(f"- {remark}" for remark in check.remarks))
    path.write_text("\n\n".join(part.strip() for part in parts) + "\n", encoding="utf-8")


def nvcc_version(nvcc: str) -> str:
    done = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=False)
    match = re.search(r"V(\d+\.\d+\.\d+)", done.stdout)
    return f"nvcc {match.group(1)}" if match else "nvcc"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=540, help="time for all of it; 540")
    parser.add_argument("--build", type=Path, default=ROOT / "build-gpu", help="the folder to build in; build-gpu")
    parser.add_argument("--report", type=Path, help="in place of docs/gpu/report-<card>.md")
    parser.add_argument("--only", default="", help="beginnings of steps, with commas: test_cuda, full grids, bench ...")
    parser.add_argument("--emulated", type=Path, help="a folder in which CMake built the tests for the emulation")
    options = parser.parse_args()
    end = time.monotonic() + options.seconds
    try:
        card = EMULATED if options.emulated else find_card()
        nvcc = "" if options.emulated else find_nvcc()
        if card.capability < (8, 0):
            raise MissingError(f"{card.name} has compute capability {card.capability}, and 8.0 is needed")
    except MissingError as missing:
        print(f"gpu-check: {missing}", file=sys.stderr)
        return 2
    path = options.report or ROOT / "docs" / "gpu" / f"report-{card.slug}.md"
    only = tuple(filter(None, options.only.split(",")))
    check = Check(end, lambda so_far: write_report(so_far, card, nvcc, path), only)
    start = time.monotonic()
    try:
        if options.emulated:
            folder = options.emulated.resolve()
            built = Built(folder / "libbee.so", folder / "libbee_cuda_emulated.so", folder / "tests")
        else:
            say(f"{card.name}; building in {options.build} ...")
            built = build(options.build.resolve(), nvcc, card.architecture, check.left)
            check.add(Result("build", "passed", time.monotonic() - start))
    except MissingError as missing:
        print(f"gpu-check: {missing}", file=sys.stderr)
        return 2
    except BuildError as failure:
        check.add(Result("build", "failed", time.monotonic() - start, str(failure)))
        say(f"{failure}\nwritten: {path}")
        return 1
    if run_tests(check, built, card, nvcc) and run_grids(check, built, card):
        run_python_tests(check, built)
        run_sanitizers(check, built, nvcc)
    with tempfile.TemporaryDirectory(prefix="bee-gpu-check-") as folder:
        measure(check, built, card, Path(folder))
    check.write(check)
    failed = [result.name for result in check.results if result.outcome.startswith("failed")]
    say(f"written: {path}")
    say(f"failed: {', '.join(failed)}" if failed else "nothing failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
