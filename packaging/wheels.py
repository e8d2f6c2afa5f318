"""Build wheels that need no compiler where they are installed: x86-64 and 64-bit ARM Linux, from glibc 2.17 on.

    python packaging/wheels.py [--output dist] [--only x86_64] [--try MODEL.gguf]        # or: make wheels

The compiler is the one in the `ziglang` package, which has the headers and symbols of old C libraries and of other
processors; so one machine builds both. `auditwheel` checks what the library asks of a system. The CUDA backend is not
in these wheels: `pip install .` builds it where there is an nvcc.
"""

from __future__ import annotations

import argparse
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import ziglang

ROOT = Path(__file__).resolve().parent.parent
GLIBC = "2.17"
POLICY = f"manylinux_{GLIBC.replace('.', '_')}"
LIBRARY = "bee_integrations/_libbee/lib/libbee.so"
# What gcc's -march says is in zig's words -mcpu.
WORDS = {
    "x86_64": {},
    "aarch64": {"-march=armv8-a": "-mcpu=generic", "-march=armv8.2-a+dotprod": "-mcpu=generic+v8_2a+dotprod"},
}


def main() -> None:
    """Build, check and list the wheels."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "dist")
    parser.add_argument("--only", choices=sorted(WORDS), help="build for this processor alone")
    parser.add_argument("--try", dest="model", type=Path, help="run this model, under qemu where it is another's code")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    for processor in [options.only] if options.only else sorted(WORDS, reverse=True):
        wheel = build(processor, options.output)
        check(wheel, processor)
        print(f"{wheel} ({wheel.stat().st_size / 1e6:.1f} MB)")
        if options.model is not None:
            try_library(wheel, processor, options.model)


def build(processor: str, output: Path) -> Path:
    """The wheel for a processor, whose name says what systems it runs on."""
    with tempfile.TemporaryDirectory(prefix="bee-wheel-") as scratch:
        folder = Path(scratch)
        toolchain = write_toolchain(folder, processor)
        environment = {**os.environ, "CMAKE_ARGS": f"-DCMAKE_TOOLCHAIN_FILE={toolchain} -DBEE_CUDA=OFF"}
        for name in ("CC", "CFLAGS", "LDFLAGS", "CMAKE_C_COMPILER_LAUNCHER"):
            environment.pop(name, None)
        command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-deps"]
        run([*command, "--wheel-dir", str(folder / "built"), str(ROOT)], environment)
        (built,) = (folder / "built").glob("*.whl")
        tags = [f"{POLICY}_{processor}", f"manylinux2014_{processor}"]
        run(
            [sys.executable, "-m", "wheel", "tags", "--remove", "--platform-tag", ".".join(tags), str(built)],
            environment,
        )
        (tagged,) = (folder / "built").glob("*.whl")
        return Path(shutil.move(str(tagged), str(output / tagged.name)))


def write_toolchain(folder: Path, processor: str) -> Path:
    """A file for CMake, and the compiler and archiver that it names."""
    compiler, archiver = folder / "cc", folder / "ar"
    target = f"{processor}-linux-gnu.{GLIBC}"
    zig = Path(ziglang.__file__).parent / "zig"  # by path: pip's isolated builds do not see the package
    cases = "".join(f"        {gcc}) word={zig} ;;\n" for gcc, zig in WORDS[processor].items())
    compiler.write_text(
        "#!/bin/sh\n"
        "# zig would take -march for something else, and check for undefined behaviour where nobody asks.\n"
        "for word do\n    shift\n"
        + (f'    case "$word" in\n{cases}    esac\n' if cases else "")
        + '    set -- "$@" "$word"\ndone\n'
        f'exec "{zig}" cc -target {target} -fno-sanitize=undefined "$@"\n'
    )
    archiver.write_text(f'#!/bin/sh\nexec "{zig}" ar "$@"\n')
    for program in (compiler, archiver):
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
    toolchain = folder / "toolchain.cmake"
    toolchain.write_text(
        f"set(CMAKE_SYSTEM_NAME Linux)\nset(CMAKE_SYSTEM_PROCESSOR {processor})\n"
        f"set(CMAKE_C_COMPILER {compiler})\nset(CMAKE_AR {archiver} CACHE FILEPATH archiver)\n"
        f"set(CMAKE_SHARED_LINKER_FLAGS_INIT -s)\n"
    )
    return toolchain


def check(wheel: Path, processor: str) -> None:
    """Exit with what stands against it if the library in the wheel needs more than its name says."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        content = archive.read(LIBRARY)
    if missing := [name for name in (LIBRARY, "bee_integrations/_libbee/include/bee.h") if name not in names]:
        sys.exit(f"{wheel.name} has no {' and no '.join(missing)}")
    machine = {"x86_64": 62, "aarch64": 183}[processor]
    if int.from_bytes(content[18:20], "little") != machine:
        sys.exit(f"{LIBRARY} in {wheel.name} is not for {processor}")
    shown = subprocess.run(
        [sys.executable, "-m", "auditwheel", "show", str(wheel)], capture_output=True, text=True, check=False
    )
    said = " ".join(shown.stdout.split())
    if shown.returncode != 0 or f'"{POLICY}_{processor}"' not in said:
        sys.exit(f"auditwheel does not find {wheel.name} fit for {POLICY}_{processor}: {said} {shown.stderr}")


def try_library(wheel: Path, processor: str, model: Path) -> None:
    """Let the library in the wheel run a model in a small program, and show what that prints."""
    with tempfile.TemporaryDirectory(prefix="bee-try-") as scratch:
        folder = Path(scratch)
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
        write_toolchain(folder, processor)
        program = folder / "try_library"
        source = Path(__file__).with_name("try_library.c")
        run(
            [str(folder / "cc"), "-I", str(ROOT / "libbee/include"), str(source), "-o", str(program), "-ldl"],
            os.environ,
        )
        emulator = [] if os.uname().machine == processor else [f"qemu-{processor}", "-L", f"/usr/{processor}-linux-gnu"]
        shown = subprocess.run(
            [*emulator, program, folder / LIBRARY, model], capture_output=True, text=True, check=False
        )
        if shown.returncode != 0:
            sys.exit(f"the library of {wheel.name} does not run: {shown.stdout}{shown.stderr}")
        print(shown.stdout, end="")


def run(command: list[str], environment: Mapping[str, str]) -> None:
    """Run a program that says little; exit where it fails."""
    if subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=False).returncode != 0:
        sys.exit(f"this failed: {' '.join(command)}")


if __name__ == "__main__":
    main()
